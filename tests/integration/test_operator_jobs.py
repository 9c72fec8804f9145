"""An operator's jobs, from the draw call to the acknowledged receipt, with real PostgreSQL, Redis, WebSocket and HTTP."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from peers.dispatcher_peer import MAX_RANGE, now_ms
from peers.operator_under_test import OPERATOR, Scene, eventually, rest, running, scene, write_config

from aos.core import hashes, sortition, vrf
from aos.core.codec import decode, encode
from aos.core.draw import claim_alpha_of
from aos.core.encoding import b64u_decode
from aos.core.signing import verify_statement
from aos.core.statements import Chunk, DrawCall, ReceiptCore, hash_of, verify_signed
from aos.core.vrf import ecvrf_proof_to_hash
from aos.operator import link_client
from aos.operator.store import Store


@pytest.fixture
async def operator(tmp_path: Path, pg_url: str, redis_url: str) -> AsyncIterator[Scene]:
    """A running operator with its peers."""
    async with scene(tmp_path, pg_url, redis_url) as found, running(found.path):
        await found.ready()
        yield found


async def test_executor_streams_commits_and_reveals(operator: Scene) -> None:
    dispatcher, worker = operator.dispatcher, operator.worker
    job = dispatcher.new_job()
    claim = await dispatcher.draw(job)
    beta = vrf.ecvrf_verify(OPERATOR.vrf_key, claim.statement.pi, claim_alpha_of(job.call.statement))
    assert await dispatcher.dispatch(job) == {"ok": {}}
    commit = await dispatcher.commit(job)
    seed = hashes.sampling_seed_from_draw(job.call.statement.draw_seed)
    tokens, words = worker.answer_of(job.request, seed)
    statements = [
        verify_signed(Chunk, chunk, address=OPERATOR.address).statement
        for chunk in dispatcher.chunks[job.key]
    ]
    assert [token for chunk in statements for token in chunk.tokens] == tokens
    assert "".join(chunk.text for chunk in statements) == "".join(words)
    assert [len(chunk.tokens) for chunk in statements] == [8, 8, 4]
    assert [chunk.final for chunk in statements] == [False, False, True]
    assert [chunk.previous for chunk in statements] == [b"", *(hash_of(chunk) for chunk in statements[:-1])]
    assert dispatcher.results == [], "nothing is revealed before the commit set"
    assert job.record is not None
    assert commit.statement.draw_record == job.record.hash
    result = await dispatcher.reveal(job)
    core = decode(ReceiptCore, result["receipt"])
    verify_statement(encode(core), result["signature"], OPERATOR.address)
    assert core.vrf.beta == beta
    assert core.stream_head == hash_of(statements[-1])
    assert core.sampling_seed == seed
    assert core.request_hash == hashes.request_hash(job.nonce, job.request.encode())
    assert core.response_hash == hashes.response_hash(job.nonce, result["text"])
    assert (
        hashes.commitment(
            job_ref=job.job_ref,
            attempt=1,
            node_id=OPERATOR.address,
            draw_record=job.record.hash,
            result=core.state_root,
            tokens_hash=hashes.tokens_hash(job.nonce, result["tokens"]),
            salt=b64u_decode(result["commit_salt"]),
        )
        == commit.statement.commitment
    )
    assert int(core.clock["2"]) > int(commit.statement.clock["2"])
    assert decode(DrawCall, encode(job.call.statement)) == job.call.statement


async def test_checker_replays_the_streamed_tokens_and_streams_nothing(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    job = await dispatcher.seated(executor=False)
    await dispatcher.commit(job)
    result = await dispatcher.reveal(job)
    assert operator.worker.questions[-1]["role"] == "checker"
    assert operator.worker.questions[-1]["tokens"] == [1, 2, 3]
    assert result["receipt"]["stream_head"] == ""
    assert job.key not in dispatcher.chunks


async def test_the_requests_own_seed_is_used(operator: Scene) -> None:
    job = await operator.dispatcher.seated(request=operator.dispatcher.request_bytes(seed="77"))
    await operator.dispatcher.commit(job)
    result = await operator.dispatcher.reveal(job)
    assert (result["receipt"]["sampling_seed"], result["receipt"]["seed_source"]) == ("77", "request")


async def test_a_second_attempt_keeps_the_first_attempts_sampling_seed(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    first = dispatcher.new_job()
    again = replace(first, attempt=2, call=dispatcher.draw_call(first.job_ref, attempt=2))
    again.first_call = first.call
    await dispatcher.draw(again)
    assert await dispatcher.dispatch(again) == {"ok": {}}
    await dispatcher.commit(again)
    result = await dispatcher.reveal(again)
    assert result["receipt"]["sampling_seed"] == hashes.sampling_seed_from_draw(
        first.call.statement.draw_seed
    )


async def test_a_seat_that_was_filled_says_so_in_its_receipt(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    found: dict[str, str] = {}
    for _ in range(24):  # width is half of the range: each status is as likely as the other
        job = await dispatcher.seated()
        await dispatcher.commit(job)
        result = await dispatcher.reveal(job)
        entry = next(e for e in job.entries if e.node_id == OPERATOR.address)
        found[entry.status] = result["receipt"]["vrf"]["status"]
        if len(found) == 2:
            break
    assert found == {"selected": "selected", "not_selected": "filled"}


async def test_everything_sent_again_changes_nothing(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    job = dispatcher.new_job()
    await dispatcher.draw(job)
    await dispatcher.draw(job)
    body = dispatcher.dispatch_body(job)
    assert await dispatcher.request("dispatch_job", body) == {"ok": {}}
    assert await dispatcher.request("dispatch_job", body) == {"ok": {}}
    await dispatcher.commit(job)
    message = dispatcher.commit_set_body(job, dispatcher.commit_set(job))
    assert await dispatcher.request("commit_set", message) == {"ok": {}}
    assert await dispatcher.request("commit_set", message) == {"ok": {}}
    await dispatcher.result(job)
    await operator.job_state(job, "done")
    assert await dispatcher.request("dispatch_job", body) == {"ok": {}}
    assert len(dispatcher.results) == 1
    assert operator.worker.finished == 1


async def test_a_failed_run_is_reported_with_the_workers_own_code(operator: Scene) -> None:
    operator.worker.error = ("engine.prompt_too_long", "the prompt has too many tokens")
    job = await operator.dispatcher.seated()
    await operator.dispatcher.until(lambda: operator.dispatcher.failures)
    (failure,) = operator.dispatcher.failures
    assert (failure["job_ref"], failure["attempt"], failure["code"]) == (*job.key, "engine.prompt_too_long")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model_id": "A" * 43}, "worker.wrong_model"),
        ({"state_root": ""}, "worker.no_state_root"),
        ({"tokens": [1, 2]}, "worker.inconsistent"),
        ({"text": "something else"}, "worker.inconsistent"),
        ({"finish_reason": "bored"}, "field.range"),
        ({"surprise": 1}, "field.unknown"),
        ({"evidence": {}}, "worker.no_state_root"),
    ],
)
async def test_a_result_that_does_not_fit_the_job_is_not_signed(
    operator: Scene, change: dict[str, object], code: str
) -> None:
    operator.worker.change_result = change
    job = await operator.dispatcher.seated()
    await operator.dispatcher.until(lambda: operator.dispatcher.failures)
    assert operator.dispatcher.failures[0]["code"] == code
    assert job.key not in operator.dispatcher.commits


async def test_cancel_stops_the_worker(operator: Scene) -> None:
    dispatcher, worker = operator.dispatcher, operator.worker
    worker.hold(at_token=10)
    job = await dispatcher.seated()
    await dispatcher.until(lambda: dispatcher.chunks.get(job.key))
    assert await dispatcher.request("cancel_job", {"job_ref": job.key[0], "attempt": 1}) == {"ok": {}}
    await operator.job_state(job, "cancelled")
    worker.gate.set()
    following = await dispatcher.seated()
    await dispatcher.commit(following)
    assert worker.cancelled == 1
    assert job.key not in dispatcher.commits


async def test_cancel_after_the_commit_changes_nothing(operator: Scene) -> None:
    job = await operator.dispatcher.seated()
    await operator.dispatcher.commit(job)
    await operator.dispatcher.request("cancel_job", {"job_ref": job.key[0], "attempt": 1})
    assert await operator.dispatcher.reveal(job)


async def test_draining_declines_draws_and_finishes_what_is_held(operator: Scene) -> None:
    dispatcher, worker = operator.dispatcher, operator.worker
    worker.hold(at_token=3)
    job = await dispatcher.seated()
    answer = await rest(operator.content, "POST", "/api/v1/operator/drain")
    assert answer.json() == {"code": 200, "result": {"draining": True, "unfinished": 1}}
    assert ("drain", {}) in dispatcher.received
    declined = await dispatcher.draw(dispatcher.new_job())
    assert (declined.statement.answer, declined.statement.reason) == ("decline", "draining")
    worker.gate.set()
    await dispatcher.commit(job)
    assert await dispatcher.reveal(job)
    await operator.job_state(job, "done")
    answer = await rest(operator.content, "POST", "/api/v1/operator/resume")
    assert answer.json() == {"code": 200, "result": {"draining": False, "unfinished": 0}}
    claimed = await dispatcher.draw(dispatcher.new_job())
    assert claimed.statement.answer == "claim"


@pytest.mark.parametrize("route", ["drain", "resume"])
@pytest.mark.parametrize("header", ["origin", "x-forwarded-for"])
async def test_drain_is_not_taken_from_elsewhere(operator: Scene, header: str, route: str) -> None:
    answer = await rest(
        operator.content, "POST", f"/api/v1/operator/{route}", headers={header: "http://elsewhere"}
    )
    assert (answer.status_code, answer.json()["error"]) == (403, "operator.not_local")
    assert not (await operator.status())["draining"]


async def test_status_says_connected_eligible_drawn(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    assert (await operator.status())["last_draw"] is None
    job = await dispatcher.seated()
    await dispatcher.commit(job)
    await dispatcher.reveal(job)
    status = await operator.status()
    assert status["connected"]
    assert status["eligible"]
    assert status["problems"] == []
    assert status["node"] == 2
    assert status["last_draw"]["job_ref"] == job.key[0]
    assert status["last_draw"]["seated"]
    assert status["last_draw"]["selected"] in (True, False)
    assert [w["ok"] for w in status["workers"]] == [True]
    metrics = (await rest(operator.content, "GET", "/metrics")).text
    assert 'aos_operator_executed_total{role="executor"} 1.0' in metrics


async def test_status_counts_draws_seats_and_receipts(operator: Scene) -> None:
    dispatcher = operator.dispatcher
    status = await operator.status()
    assert status["state"] == "eligible; no draws seen in the last hour"
    await dispatcher.draw(dispatcher.new_job(job_type="tee"))
    state = (await operator.status())["state"]
    assert state == "eligible; 1 draws seen in the last hour, all declined (job_type 1)"
    seated = await dispatcher.seated()
    await dispatcher.commit(seated)
    await dispatcher.reveal(seated)
    await operator.job_state(seated, "done")
    for _ in range(3):
        await dispatcher.draw(dispatcher.new_job())
    status = await operator.status()
    draws = status["draws"]
    selected = sum(
        sortition.is_selected(ecvrf_proof_to_hash(claim.statement.pi), MAX_RANGE // 2, MAX_RANGE)
        for claim in dispatcher.claims.values()
        if claim.statement.pi
    )
    assert draws == {"seen": 5, "claimed": 4, "declined": {"job_type": 1}, "selected": selected, "seated": 1}
    assert status["jobs"] == {"done": 1}
    chosen = f"selected in {selected}" if selected else "not selected in any"
    assert status["state"] == (
        f"eligible; 5 draws seen in the last hour, {chosen} of 4, 1 declined, seated in 1;"
        " 1 receipts in the dispatcher's hands"
    )


async def test_status_says_until_when_a_key_is_too_young(tmp_path: Path, pg_url: str, redis_url: str) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found:
        found.dispatcher.since_epoch = 1
        async with running(found.path):
            await found.ready()
            status = await found.status()
            assert not status["eligible"]
            assert re.fullmatch(
                r"not eligible: key too young until epoch 3 \(now 0; about 1[45]\d minutes\)", status["state"]
            )


async def test_status_says_that_the_model_is_missing(tmp_path: Path, pg_url: str, redis_url: str) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found:
        found.worker.model_id = b"\x08" * 32
        async with running(found.path):
            await found.ready()
            state = (await found.status())["state"]
            assert state.startswith(
                "not eligible: model missing: no worker has a model that the registry lists"
            )


async def test_the_snapshot_that_lets_an_operator_in_is_seen_without_a_draw(
    tmp_path: Path, pg_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_client, "REGISTRY_EVERY_S", 0.1)
    async with scene(tmp_path, pg_url, redis_url) as found:
        dispatcher = found.dispatcher
        dispatcher.listed = False
        dispatcher.genesis, dispatcher.epoch_ms = now_ms(), 1_000
        async with running(found.path):
            await found.ready()
            assert "not in the registry" in (await found.status())["state"]
            dispatcher.listed, dispatcher.snapshot_epoch = True, 1

            async def eligible() -> bool:
                return bool((await found.status())["eligible"])

            await eventually(eligible)
            assert not dispatcher.claims


async def test_a_model_that_no_worker_has_is_declined(operator: Scene) -> None:
    other = b"\x08" * 32
    operator.dispatcher.model_ids = (*operator.dispatcher.model_ids, other)
    claim = await operator.dispatcher.draw(operator.dispatcher.new_job(model_id=other))
    assert (claim.statement.answer, claim.statement.reason) == ("decline", "model")


async def test_another_job_type_is_declined(operator: Scene) -> None:
    claim = await operator.dispatcher.draw(operator.dispatcher.new_job(job_type="tee"))
    assert (claim.statement.answer, claim.statement.reason) == ("decline", "job_type")


async def test_a_full_operator_declines(tmp_path: Path, pg_url: str, redis_url: str) -> None:
    async with (
        scene(tmp_path, pg_url, redis_url, cache_msg_maximum=1) as found,
        running(found.path),
    ):
        await found.ready()
        found.worker.hold(at_token=1)
        await found.dispatcher.seated()
        claim = await found.dispatcher.draw(found.dispatcher.new_job())
        assert (claim.statement.answer, claim.statement.reason) == ("decline", "capacity")
        found.worker.gate.set()


async def test_one_worker_runs_as_many_jobs_at_a_time_as_it_is_given(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found:
        found.content["net"]["worker_parallel"] = 3
        async with running(write_config(tmp_path, found.content)):
            await found.ready()
            found.worker.hold(at_token=2)
            jobs = [await found.dispatcher.seated() for _ in range(4)]

            async def three_at_work() -> bool:
                return len(found.worker.questions) == 3

            await eventually(three_at_work)
            assert len({question["job_ref"] for question in found.worker.questions}) == 3
            found.worker.gate.set()
            for job in jobs:
                await found.dispatcher.commit(job)
            assert found.worker.finished == 4


async def test_prompts_and_answers_are_erased_and_the_signed_statements_stay(
    operator: Scene, pg_url: str
) -> None:
    job = await operator.dispatcher.seated()
    await operator.dispatcher.commit(job)
    await operator.dispatcher.reveal(job)
    await operator.job_state(job, "done")
    store = await Store.open(pg_url, min_size=1, max_size=2, connect_timeout_s=5, acquire_timeout_s=5)
    try:
        assert await store.erase_content(1) == 0
        assert await store.erase_content(0) == 1
        held = await store.assignment(job.job_ref, 1)
        assert held is not None
        assert (held.request, held.result) == (b"", None)
        assert await store.chunks(job.job_ref, 1) == []
        assert held.receipt is not None
        assert held.commit_set is not None
    finally:
        await store.close()
    assert await operator.dispatcher.request("dispatch_job", operator.dispatcher.dispatch_body(job)) == {
        "ok": {}
    }


async def test_nothing_of_a_prompt_or_an_answer_is_logged(
    operator: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "the caramel password is 4711"
    job = await operator.dispatcher.seated(request=operator.dispatcher.request_bytes(prompt=secret))
    await operator.dispatcher.commit(job)
    result = await operator.dispatcher.reveal(job)
    await operator.job_state(job, "done")
    output = "".join(capfd.readouterr())
    assert "job.executed" in output
    for forbidden in (secret, result["text"], job.job_id, job.request):
        assert forbidden not in output
