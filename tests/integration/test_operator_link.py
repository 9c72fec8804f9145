"""An operator against a dispatcher that misbehaves: each lie is refused by its own name, contradictions become evidence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peers.dispatcher_peer import DispatcherPeer, Job, Keys, now_ms
from peers.operator_under_test import OPERATOR, Scene, eventually, rest, running, scene
from websockets.exceptions import ConnectionClosed

from aos.core.codec import encode
from aos.core.encoding import b64u_encode
from aos.core.statements import CommitSetEntry, DrawEntry, Signed, sign
from aos.operator.store import Store

STRANGER = Keys.of("stranger")


@pytest.fixture
async def operator(tmp_path: Path, pg_url: str, redis_url: str) -> AsyncIterator[Scene]:
    """A running operator with its peers."""
    async with scene(tmp_path, pg_url, redis_url) as found, running(found.path):
        await found.ready()
        yield found


async def evidence(pg_url: str) -> list[str]:
    store = await Store.open(pg_url, min_size=1, max_size=2, connect_timeout_s=5, acquire_timeout_s=5)
    try:
        return [kind for kind, _, _ in await store.evidence()]
    finally:
        await store.close()


def code_of(answer: Any) -> str:
    return str(answer["error"]["code"])


# --- the link itself


async def test_a_dispatcher_with_another_key_is_not_talked_to(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found:
        found.dispatcher.signer = STRANGER.signer
        async with running(found.path):
            await found.dispatcher.until(lambda: len(found.dispatcher.closes) >= 2)
            assert found.dispatcher.connects == []
            problems = (await found.status())["problems"]
            assert any("signature.wrong_signer" in problem for problem in problems)
            assert (await rest(found.content, "GET", "/ready")).status_code == 503


@pytest.mark.parametrize(
    ("challenge", "code"),
    [
        ({"network": "another"}, "link.foreign_network"),
        ({"dispatcher": STRANGER.address}, "link.foreign_network"),
        ({"time": now_ms() - 3_600_000}, "link.stale"),
        ({"purpose": "something"}, "field.range"),
    ],
)
async def test_a_foreign_or_stale_challenge_is_not_answered(
    tmp_path: Path, pg_url: str, redis_url: str, challenge: dict[str, Any], code: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found:
        found.dispatcher.challenge = challenge
        async with running(found.path):
            await found.dispatcher.until(lambda: len(found.dispatcher.closes) >= 2)
            assert found.dispatcher.connects == []
            assert any(code in problem for problem in (await found.status())["problems"])


async def test_a_refused_session_is_shown_by_name_and_tried_again(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found:
        found.dispatcher.refuse_connect = ("connect.not_registered", "no such operator")
        async with running(found.path):
            await found.dispatcher.until(lambda: len(found.dispatcher.connects) >= 2)

            async def shown() -> bool:
                return any("connect.not_registered" in p for p in (await found.status())["problems"])

            await eventually(shown)
            found.dispatcher.refuse_connect = None
            await found.ready()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"counter": 7}, "link.skipped"),
        ({"counter": 1}, "link.replayed"),
        ({"prev": b"\1" * 32}, "link.prev_mismatch"),
        ({"session": b"\1" * 32}, "link.wrong_session"),
        ({"network": "another"}, "link.foreign_network"),
        ({"to": STRANGER.address}, "link.wrong_addressee"),
        ({"incarnation": 9}, "link.wrong_incarnation"),
        ({"time": 1_000}, "link.stale"),
    ],
)
async def test_a_message_out_of_its_place_closes_the_link(
    operator: Scene, changes: dict[str, Any], code: str
) -> None:
    dispatcher = operator.dispatcher
    await dispatcher.draw(dispatcher.new_job())  # so that counter 1 is in the past
    text, _ = dispatcher.frame("x", "cancel_job", [{"job_ref": "A" * 43, "attempt": 1}], None, **changes)
    await dispatcher.send_text(text)
    await dispatcher.until(lambda: code in dispatcher.closes)
    await dispatcher.connected(times=2)


async def test_a_replayed_message_closes_the_link(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    text, sender = dispatcher.frame("x", "cancel_job", [{"job_ref": "A" * 43, "attempt": 1}], None)
    assert dispatcher.connection is not None
    dispatcher.connection.sender = sender
    await dispatcher.send_text(text)
    await dispatcher.send_text(text)
    await dispatcher.until(lambda: "link.replayed" in dispatcher.closes)
    await dispatcher.connected(times=2)


async def test_a_flood_of_requests_closes_the_link_and_the_next_one_serves(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    body = {"job_ref": "A" * 43, "attempt": 1}
    async with asyncio.timeout(60):
        while "link.flood" not in dispatcher.closes:
            for _ in range(400):
                await dispatcher.push("cancel_job", body)
    await dispatcher.connected(times=2)
    await dispatcher.commit(await dispatcher.seated())


@pytest.mark.parametrize("frame", ["x" * (3 << 20), b"binary", '{"id":' * 1000, ""])
async def test_a_frame_that_is_no_envelope_ends_the_link_and_the_next_one_serves(
    operator: Scene, frame: str | bytes
) -> None:
    dispatcher = operator.dispatcher
    assert dispatcher.connection is not None
    await dispatcher.connection.socket.send(frame)
    await dispatcher.connected(times=2)
    await dispatcher.commit(await dispatcher.seated())


async def test_a_frame_that_never_ends_is_no_business_of_the_jobs(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    dispatcher.mute.add("job_commit")
    job = await dispatcher.seated()
    await dispatcher.until(lambda: any(method == "job_commit" for method, _ in dispatcher.received))
    assert dispatcher.connection is not None
    release = asyncio.Event()

    async def drip() -> Any:
        yield "{"
        await release.wait()

    dripping = asyncio.create_task(dispatcher.connection.socket.send(drip()))
    assert (await operator.status())["connected"]
    await dispatcher.drop()
    release.set()
    with contextlib.suppress(ConnectionClosed):
        await dripping
    dispatcher.mute.clear()
    await dispatcher.connected(times=2)
    await operator.job_state(job, "committed")


async def test_pings_are_answered_and_disturb_no_job(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    assert dispatcher.connection is not None
    pongs = [await dispatcher.connection.socket.ping() for _ in range(2_000)]
    job = await dispatcher.seated()
    await dispatcher.commit(job)
    await asyncio.wait_for(pongs[-1], 20)
    assert len(dispatcher.connects) == 1


async def test_an_unknown_method_is_refused_and_the_link_stays(operator: Scene) -> None:
    assert code_of(await operator.dispatcher.request("format_disk", {})) == "link.unknown_method"
    assert len(operator.dispatcher.connects) == 1


async def test_a_network_that_changes_its_vrf_key_is_refused(operator: Scene) -> None:
    operator.dispatcher.keys.vrf_seed = STRANGER.vrf_seed
    await operator.dispatcher.drop()
    await operator.dispatcher.connected(times=2)

    async def shown() -> bool:
        return any("network.changed" in p for p in (await operator.status())["problems"])

    await eventually(shown)


async def test_an_operator_whose_node_number_changes_does_not_go_on(operator: Scene) -> None:
    operator.dispatcher.node = 9
    await operator.dispatcher.drop()
    await operator.dispatcher.connected(times=2)

    async def shown() -> bool:
        return any("network.changed" in p for p in (await operator.status())["problems"])

    await eventually(shown)


# --- draws


async def refused_call(operator: Scene, **changes: Any) -> str:
    job = operator.dispatcher.new_job(**changes)
    code = code_of(await operator.dispatcher.call(job))
    assert job.key not in operator.dispatcher.claims
    return code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"network": "another"}, "draw.foreign_call"),
        ({"dispatcher": STRANGER.address}, "draw.foreign_call"),
        ({"draw_seed": b"\1" * 64}, "draw.seed_proof"),
        ({"draw_proof": b"\1" * 80}, "draw.seed_proof"),
        ({"epoch": 5}, "draw.epoch"),
        ({"beacon": b"\1" * 32}, "beacon.mismatch"),
        ({"beacon_source": "chain"}, "beacon.source"),
        ({"model_id": b"\1" * 32}, "draw.not_eligible"),
        ({"attempt_": 0}, "field.unknown"),
    ],
)
async def test_a_wrong_draw_call_is_not_answered(operator: Scene, changes: dict[str, Any], code: str) -> None:
    if "attempt_" in changes:
        body = operator.dispatcher.new_job().call.to_json()
        body["statement"]["extra"] = 1
        assert code_of(await operator.dispatcher.request("draw_call", {"draw_call": body})) == code
        return
    assert await refused_call(operator, **changes) == code


async def test_a_draw_call_signed_by_another_is_not_answered(operator: Scene) -> None:
    call = operator.dispatcher.new_job().call
    body = {"draw_call": sign(STRANGER.signer, call.statement).to_json()}
    assert code_of(await operator.dispatcher.request("draw_call", body)) == "signature.wrong_signer"


async def test_a_snapshot_root_that_the_registry_does_not_give_is_refused(operator: Scene) -> None:
    assert await refused_call(operator, snapshot_root=b"\1" * 32) == "draw.seed_proof"


async def test_a_snapshot_without_this_operators_key_is_refused(operator: Scene) -> None:
    operator.dispatcher.operator_vrf_key = STRANGER.vrf_key
    assert await refused_call(operator) == "draw.foreign_key"


async def test_a_key_that_is_too_young_is_not_drawn(operator: Scene) -> None:
    operator.dispatcher.since_epoch = 1
    assert await refused_call(operator) == "draw.not_eligible"


async def test_a_draw_call_past_its_deadline_is_declined(operator: Scene) -> None:
    claim = await operator.dispatcher.draw(operator.dispatcher.new_job(deadline=now_ms() - 1))
    assert (claim.statement.answer, claim.statement.reason) == ("decline", "stale")


async def test_many_contradictions_fill_no_disk(operator: Scene, pg_url: str) -> None:
    dispatcher = operator.dispatcher
    job = dispatcher.new_job()
    await dispatcher.draw(job)
    for number in range(20):
        other = replace(job, call=dispatcher.draw_call(job.job_ref, deadline=now_ms() + 99_000 + number))
        assert code_of(await dispatcher.call(other)) == "equivocation.draw_call"
    assert await evidence(pg_url) == ["equivocation.draw_call"]


async def test_a_second_draw_call_is_evidence(operator: Scene, pg_url: str) -> None:
    dispatcher = operator.dispatcher
    job = dispatcher.new_job()
    await dispatcher.draw(job)
    second = replace(job, call=dispatcher.draw_call(job.job_ref, deadline=now_ms() + 99_000))
    for _ in range(2):
        assert code_of(await dispatcher.call(second)) == "equivocation.draw_call"
    assert await evidence(pg_url) == ["equivocation.draw_call"]


# --- dispatches


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"seat": 1}, "dispatch.seat"),
        ({"seat": 9}, "dispatch.seat"),
        ({"role": "checker"}, "dispatch.role"),
        ({"role": "blind"}, "dispatch.role"),
        ({"stream": {"tokens": [1], "head": "A" * 43, "finish_reason": "stop"}}, "dispatch.stream"),
        ({"deadline": 5}, "dispatch.late"),
        ({"attempt": 2}, "dispatch.no_claim"),
        ({"job_id": "ab" * 32}, "dispatch.no_claim"),
        ({"first_draw": "own"}, "dispatch.first_draw"),
        ({"request": "model"}, "dispatch.request"),
        ({"request": "network"}, "dispatch.foreign_request"),
        ({"request": "operators"}, "dispatch.request"),
        ({"request": "spaces"}, "encoding.not_canonical"),
        ({"extra": 1}, "field.unknown"),
    ],
)
async def test_a_wrong_dispatch_is_not_stored(operator: Scene, changes: dict[str, Any], code: str) -> None:
    dispatcher = operator.dispatcher
    job = dispatcher.new_job()
    await dispatcher.draw(job)
    requests = {
        "model": lambda: dispatcher.request_bytes(job_type="tee"),
        "network": lambda: dispatcher.request_bytes(network="another"),
        "operators": lambda: dispatcher.request_bytes(min_operators=1),
        "spaces": lambda: job.request.replace(":", ": ", 1),
    }
    if "request" in changes:
        changes = {"request": requests[changes["request"]]()}
    if changes.get("first_draw") == "own":
        changes = {"first_draw": job.call.to_json()}
    assert code_of(await dispatcher.dispatch(job, **changes)) == code
    assert (await rest(operator.content, "GET", "/api/v1/operator/jobs")).json()["result"] == []


async def test_a_draw_record_of_another_draw_is_refused(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    job = dispatcher.new_job()
    await dispatcher.draw(job)
    job.record = dispatcher.make_record(job, draw_call=b"\1" * 32)
    assert code_of(await dispatcher.dispatch(job)) == "dispatch.draw_record"


async def test_an_unsigned_draw_record_is_refused(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    job = dispatcher.new_job()
    await dispatcher.draw(job)
    job.record = sign(STRANGER.signer, dispatcher.make_record(job).statement)
    assert code_of(await dispatcher.dispatch(job)) == "signature.wrong_signer"


async def test_another_draw_call_in_the_dispatch_is_refused(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    job = dispatcher.new_job()
    await dispatcher.draw(job)
    other = dispatcher.draw_call(job.job_ref, deadline=now_ms() + 99_000)
    assert code_of(await dispatcher.dispatch(job, draw_call=other.to_json())) == "dispatch.draw_call"


async def test_a_dispatch_after_declining_is_refused(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    declined, honest = dispatcher.new_job(deadline=now_ms() - 1), dispatcher.new_job()
    await dispatcher.draw(declined)
    await dispatcher.draw(honest)
    declined.record = dispatcher.make_record(honest)
    assert code_of(await dispatcher.dispatch(declined)) == "dispatch.no_claim"


async def test_a_second_draw_record_is_evidence(operator: Scene, pg_url: str) -> None:
    dispatcher = operator.dispatcher
    job = await dispatcher.seated()
    job.record = dispatcher.make_record(job, filled=dispatcher.make_record(job).statement.filled + 1)
    assert code_of(await dispatcher.dispatch(job)) == "equivocation.draw_record"
    assert await evidence(pg_url) == ["equivocation.draw_record"]


async def second_attempt(operator: Scene, *, first_is_held: bool) -> tuple[Job, Job]:
    """A job whose second attempt is drawn; with or without this operator in its first."""
    dispatcher = operator.dispatcher
    first = dispatcher.new_job()
    if first_is_held:
        await dispatcher.draw(first)
    again = replace(first, attempt=2, call=dispatcher.draw_call(first.job_ref, attempt=2))
    await dispatcher.draw(again)
    return first, again


async def test_a_first_draw_that_differs_from_the_held_one_is_evidence(operator: Scene, pg_url: str) -> None:
    first, again = await second_attempt(operator, first_is_held=True)
    again.first_call = operator.dispatcher.draw_call(first.job_ref, deadline=now_ms() + 99_000)
    assert code_of(await operator.dispatcher.dispatch(again)) == "equivocation.draw_call"
    assert await evidence(pg_url) == ["equivocation.draw_call"]
    again.first_call = first.call
    assert await operator.dispatcher.dispatch(again) == {"ok": {}}


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"draw_seed": b"\1" * 64}, "draw.seed_proof"), ({"beacon": b"\1" * 32}, "beacon.mismatch")],
)
async def test_a_sampling_seed_of_the_dispatchers_choice_is_refused(
    operator: Scene, changes: dict[str, Any], code: str
) -> None:
    first, again = await second_attempt(operator, first_is_held=False)
    again.first_call = operator.dispatcher.draw_call(first.job_ref, **changes)
    assert code_of(await operator.dispatcher.dispatch(again)) == code
    assert (await rest(operator.content, "GET", "/api/v1/operator/jobs")).json()["result"] == []


async def test_a_dispatch_with_another_request_is_refused(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    job = await dispatcher.seated()
    other = dispatcher.request_bytes(prompt="What is tea?")
    assert code_of(await dispatcher.dispatch(job, request=other)) == "dispatch.changed"


# --- commit sets


async def refused_set(operator: Scene, changes: dict[str, Any], body: dict[str, Any]) -> str:
    dispatcher = operator.dispatcher
    job = await dispatcher.seated()
    await dispatcher.commit(job)
    await operator.job_state(job, "committed")
    message = dispatcher.commit_set_body(job, dispatcher.commit_set(job, **changes), **body)
    code = code_of(await dispatcher.request("commit_set", message))
    honest = await dispatcher.reveal(job)  # the refusal has spoilt nothing
    assert dispatcher.results == [honest]
    return code


async def test_a_commit_set_without_the_own_commit_reveals_nothing_and_is_evidence(
    operator: Scene, pg_url: str
) -> None:
    other = (CommitSetEntry(node_id=operator.dispatcher.other.address, commit=b"\4" * 32),)
    assert await refused_set(operator, {"commits": other}, {}) == "commit_set.own_commit_missing"
    assert await evidence(pg_url) == ["commit_set.commit_dropped"]


async def test_a_commit_set_with_another_commit_of_ours_reveals_nothing(operator: Scene) -> None:
    changed = (CommitSetEntry(node_id=OPERATOR.address, commit=b"\4" * 32),)
    assert await refused_set(operator, {"commits": changed}, {}) == "commit_set.own_commit_missing"


@pytest.mark.parametrize(
    "changes", [{"draw_record": b"\1" * 32}, {"network": "another"}, {"dispatcher": STRANGER.address}]
)
async def test_a_foreign_commit_set_is_refused(operator: Scene, changes: dict[str, Any]) -> None:
    assert await refused_set(operator, changes, {}) == "commit_set.foreign"


async def test_a_commit_set_with_a_stranger_is_refused(operator: Scene) -> None:
    stranger = (CommitSetEntry(node_id=STRANGER.address, commit=b"\4" * 32),)
    assert await refused_set(operator, {"commits": stranger}, {}) == "commit_set.foreign"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"entry_index": 0, "entry_path": []}, "merkle.path_length"),
        ({"entry_path": [b64u_encode(b"\1" * 32)]}, "merkle.root_mismatch"),
        (
            {"entry": encode(DrawEntry(node_id=OPERATOR.address, status="selected", claim=b"\1" * 32))},
            "merkle.root_mismatch",
        ),
    ],
)
async def test_a_commit_set_that_does_not_open_the_own_entry_is_refused(
    operator: Scene, body: dict[str, Any], code: str
) -> None:
    assert await refused_set(operator, {}, body) == code


async def test_the_entry_of_another_operator_is_refused(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    job = await dispatcher.seated()
    await dispatcher.commit(job)
    own = DispatcherPeer.commit_set_body
    index = next(i for i, e in enumerate(job.entries) if e.node_id != OPERATOR.address)
    body = own(dispatcher, job, dispatcher.commit_set(job))
    leaf = next(i for i, e in enumerate(job.entries) if e.node_id == OPERATOR.address)
    from aos.core import draw, merkle

    leaves = [draw.entry_leaf(e) for e in job.entries]
    assert leaf != index
    body |= {
        "entry": encode(job.entries[index]),
        "entry_index": index,
        "entry_path": [b64u_encode(h) for h in merkle.inclusion_path(leaves, index)],
    }
    assert code_of(await dispatcher.request("commit_set", body)) == "commit_set.own_claim"


async def test_a_second_commit_set_is_evidence_and_changes_no_receipt(operator: Scene, pg_url: str) -> None:
    dispatcher = operator.dispatcher
    job = await dispatcher.seated()
    await dispatcher.commit(job)
    first = await dispatcher.reveal(job)
    second = dispatcher.commit_set(job, missing=(dispatcher.other.address,))
    body = dispatcher.commit_set_body(job, second)
    assert code_of(await dispatcher.request("commit_set", body)) == "equivocation.commit_set"
    assert await evidence(pg_url) == ["equivocation.commit_set"]
    assert dispatcher.results == [first]


async def test_a_commit_set_signed_by_another_is_refused(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    job = await dispatcher.seated()
    await dispatcher.commit(job)
    forged: Signed[Any] = sign(STRANGER.signer, dispatcher.commit_set(job).statement)
    body = dispatcher.commit_set_body(job, forged)
    assert code_of(await dispatcher.request("commit_set", body)) == "signature.wrong_signer"


async def test_a_commit_set_before_the_commit_is_refused(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    operator.worker.hold(at_token=2)
    job = await dispatcher.seated()
    body = dispatcher.commit_set_body(job, dispatcher.commit_set(job))
    assert code_of(await dispatcher.request("commit_set", body)) == "commit_set.unknown"
    operator.worker.gate.set()


async def test_an_acknowledgement_of_another_commit_ends_the_link_and_is_not_stored(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    honest = dispatcher.commit_ack
    dispatcher.commit_ack = lambda commit: sign(  # type: ignore[method-assign]
        dispatcher.keys.signer, replace(honest(commit).statement, commit=b"\1" * 32)
    )
    job = await dispatcher.seated()
    await dispatcher.commit(job)
    await dispatcher.connected(times=2)
    dispatcher.commit_ack = honest  # type: ignore[method-assign]
    await operator.job_state(job, "committed")
    await asyncio.wait_for(dispatcher.reveal(job), 20)
