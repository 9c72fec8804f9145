"""Runs on a real PostgreSQL: the honest paths, and every way in which a run must still end in exactly one result set."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peers.engine_case import EngineCase
from peers.hub_peer import OperatorPeer, Result

from aos.core.encoding import b64u_encode
from aos.core.hashes import job_ref
from aos.core.statements import ReceiptCore, sign, verify_signed
from aos.errors import RuleViolation, VerificationError

Open = Callable[..., Any]


@pytest.fixture
async def open_case(tmp_path: Path, pg_url: str) -> AsyncIterator[Open]:
    """``open_case(*operators, **settings) -> EngineCase``."""
    cases: list[EngineCase] = []

    async def open_(*operators: OperatorPeer, **changes: Any) -> EngineCase:
        cases.append(await EngineCase.open(tmp_path / "dispatcher", pg_url, *operators, **changes))
        return cases[-1]

    yield open_
    for case in cases:
        await case.close()


def opml(count: int) -> list[OperatorPeer]:
    return [OperatorPeer(f"opml-{n}") for n in range(count)]


async def test_an_honest_job_ends_agreed_and_its_answer_file_verifies(open_case: Open) -> None:
    case = await open_case(*opml(3))
    job = (await case.submit()).job_id
    assert await case.ended(job) == "agreed"
    report = await case.report(job)
    assert report.verdict == "VERIFIED", report.headline
    assert any(level.startswith("redundant:") for level in report.levels)
    (drawn,) = await case.rechecked_draws(job)
    assert drawn.complete


async def test_a_tee_job_ends_single_with_evidence(open_case: Open) -> None:
    case = await open_case(*opml(2), OperatorPeer("tee-0", job_type="tee"))
    job = (await case.submit(case.job(job_type="tee"))).job_id
    assert await case.ended(job) == "single"
    report = await case.report(job)
    assert report.verdict == "VERIFIED", report.headline
    assert report.levels == ("signed", "simulated")


# --- attempts that fail


async def test_an_operator_that_does_not_reveal_is_left_out_and_recorded_as_withheld(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators, deadlines={"reveal_ms": 1_000})
    operators[0].silent.add("commit_set")
    job = (await case.submit()).job_id
    assert await case.ended(job) == "single"
    rows = await case.dispatcher.pool.fetch("SELECT node_id, standing FROM seat WHERE job_id = $1", job)
    assert {row["node_id"]: row["standing"] for row in rows} == {
        operators[0].node_id: "withheld",
        operators[1].node_id: "revealed",
    }
    assert (await case.report(job)).verdict == "VERIFIED"


async def test_different_state_roots_are_disputed_and_the_answer_file_says_so(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators)
    operators[1].result = Result(state_root=b"\7" * 32)
    job = (await case.submit()).job_id
    assert await case.ended(job) == "disputed"
    assert (await case.report(job)).verdict == "NOT VERIFIED"
    rows = await case.dispatcher.jobs.result_rows(job, token=None)
    assert [row["outcome"] for row in rows] == ["disputed", "disputed"]


async def test_an_executor_that_reports_failure_is_drawn_around_with_the_same_sampling_seed(
    open_case: Open,
) -> None:
    operators = opml(2)
    case = await open_case(*operators)
    for operator in operators:
        operator.refuse_dispatch = "dispatch.model"
    job = (await case.submit()).job_id
    await case.until("SELECT attempt >= 2 FROM run WHERE job_id = $1", job)
    for operator in operators:
        operator.refuse_dispatch = None
    assert await case.ended(job) == "agreed"
    report = await case.report(job)
    assert report.verdict == "VERIFIED", report.headline
    failures = await case.dispatcher.pool.fetch(
        "SELECT failure FROM attempt WHERE job_id = $1 ORDER BY attempt", job
    )
    assert failures[0]["failure"] == "run.no_result"
    assert failures[-1]["failure"] == ""
    draws = await case.rechecked_draws(job)
    assert [drawn.draw.record.attempt for drawn in draws] == list(range(1, len(failures) + 1))
    assert [drawn.complete for drawn in draws] == [False] * (len(draws) - 1) + [
        True
    ]  # its tag is still hidden


async def test_a_run_is_given_up_after_three_executions_and_says_why(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators)
    for operator in operators:
        operator.refuse_dispatch = "dispatch.model"
    job = (await case.submit()).job_id
    assert await case.ended(job) == "failed"
    detail = await case.dispatcher.jobs.detail(job, token=None)
    assert detail["status"] == "failed"
    assert "run.no_result" in detail["error"]
    assert await case.dispatcher.jobs.result_rows(job, token=None) == []
    attempts = await case.dispatcher.pool.fetchval("SELECT count(*) FROM attempt WHERE job_id = $1", job)
    assert attempts == 3


async def test_an_executor_that_never_finishes_costs_one_attempt(open_case: Open) -> None:
    operators = opml(3)
    case = await open_case(*operators, deadlines={"execution_ms": 1_000})
    for operator in operators:
        operator.silent.add("dispatch_job")
    job = (await case.submit()).job_id
    await case.until("SELECT attempt = 2 FROM run WHERE job_id = $1", job)
    for operator in operators:
        operator.silent.discard("dispatch_job")
    assert await case.ended(job) == "agreed"
    assert await case.dispatcher.pool.fetchval("SELECT attempt FROM run WHERE job_id = $1", job) == 2
    assert (await case.report(job)).verdict == "VERIFIED"


async def test_a_job_that_nobody_can_run_in_time_expires(open_case: Open) -> None:
    operators = opml(1)
    case = await open_case(*operators, deadlines={"expiry_ms": 5_000, "draw_ms": 100})
    operators[0].decline = True
    job = (await case.submit()).job_id
    assert await case.ended(job) == "expired"
    events = await case.dispatcher.jobs.events_after(job, 0, wait_s=0)
    assert events[-1][1] == "done"
    assert json.loads(events[-1][2])["status"] == "expired"


# --- operators that lie


def lie(member: str, value: Any) -> Callable[[ReceiptCore], ReceiptCore]:
    return lambda core: replace(core, **{member: value})


@pytest.mark.parametrize(
    ("member", "value", "code"),
    [
        ("request_hash", b"\1" * 32, "reveal.member"),
        ("params_hash", b"\1" * 32, "reveal.member"),
        ("model_id", b"\1" * 32, "reveal.member"),
        ("sampling_seed", "7", "reveal.member"),
        ("seed_source", "request", "reveal.member"),
        ("stream_head", b"\1" * 32, "reveal.member"),
        ("role", "blind", "reveal.member"),
        ("draw_record", b"\1" * 32, "reveal.member"),
        ("commit_set", b"\1" * 32, "reveal.member"),
        ("node", 999, "reveal.member"),
        ("operator", "0x" + "11" * 20, "reveal.member"),
        ("response_hash", b"\1" * 32, "reveal.content"),
        ("tokens_hash", b"\1" * 32, "reveal.content"),
        ("n_out", 3, "reveal.content"),
        ("state_root", b"\1" * 32, "reveal.commitment"),
        ("finish_reason", "cancelled", "reveal.member"),
    ],
)
async def test_a_receipt_with_one_false_member_is_refused_by_name(
    open_case: Open, member: str, value: Any, code: str
) -> None:
    operators = opml(2)
    case = await open_case(*operators, deadlines={"reveal_ms": 1_000})
    operators[0].edit["ReceiptCore"] = lie(member, value)
    job = (await case.submit()).job_id
    assert await case.ended(job) == "single"
    assert ("job_result", code) in operators[0].refusals
    rows = await case.dispatcher.jobs.result_rows(job, token=None)
    assert [row["operator"] for row in rows] == [operators[1].node_id]


async def test_a_reveal_that_does_not_open_its_commitment_is_kept_as_evidence(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators)
    operators[0].edit["job_result"] = lambda body: body | {"commit_salt": b64u_encode(b"\x09" * 32)}
    job = (await case.submit()).job_id
    assert await case.ended(job) == "single"
    seat = await case.dispatcher.pool.fetchrow(
        """SELECT standing, e.code, e.statement FROM seat JOIN evidence e USING (job_id, attempt, node_id)
           WHERE job_id = $1 AND node_id = $2""",
        job,
        operators[0].node_id,
    )
    assert (seat["standing"], seat["code"]) == ("broken", "reveal.commitment")
    kept = json.loads(seat["statement"])
    assert kept.pop("commit_salt") == b64u_encode(b"\x09" * 32)
    verify_signed(ReceiptCore, kept, address=operators[0].node_id)


@pytest.mark.parametrize("member", ["response_hash", "request_hash", "job_ref", "operator", "sampling_seed"])
async def test_an_enclave_statement_of_another_answer_is_refused(open_case: Open, member: str) -> None:
    operator = OperatorPeer("tee-0", job_type="tee")
    case = await open_case(operator, deadlines={"reveal_ms": 1_000})
    values: dict[str, Any] = {"operator": "0x" + "22" * 20, "sampling_seed": "1"}
    operator.edit["TeeAnswer"] = lambda answer: replace(answer, **{member: values.get(member, b"\1" * 32)})
    job = (await case.submit(case.job(job_type="tee"))).job_id
    await case.until("SELECT attempt >= 2 FROM run WHERE job_id = $1", job)
    assert next(code for method, code in operator.refusals if method == "job_result").startswith(
        ("reveal.", "tee.")
    )
    assert await case.dispatcher.jobs.result_rows(job, token=None) == []


async def test_a_claim_with_another_key_is_refused_and_its_operator_unanswered(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators, deadlines={"draw_ms": 300})
    operators[0].vrf_seed = b"\5" * 32
    job = (await case.submit()).job_id
    assert await case.ended(job) == "single"
    assert ("vrf_claim", "draw.claim_proof") in operators[0].refusals
    shown = await case.dispatcher.jobs.draw(job_ref(job))
    entries = {
        entry["entry"]["node_id"]: entry["entry"]["status"] for entry in shown["attempts"][0]["entries"]
    }
    assert entries[operators[0].node_id] == "unanswered"


async def test_who_has_no_seat_cannot_commit(open_case: Open) -> None:
    operators = opml(3)
    case = await open_case(*operators)
    job = (await case.submit()).job_id
    assert await case.ended(job) == "agreed"
    seats = {
        row["node_id"]
        for row in await case.dispatcher.pool.fetch("SELECT node_id FROM seat WHERE job_id = $1", job)
    }
    outsider = next((o for o in operators if o.node_id not in seats), None)
    seated = next(o for o in operators if o.node_id in seats)
    if outsider is None:  # the draw may seat everybody
        outsider = OperatorPeer("outsider")
    key = (job_ref(job), 1)
    commit = sign(outsider.signer, replace(seated.made("commit", key).statement, node_id=outsider.node_id))
    with pytest.raises(VerificationError) as refusal:
        await case.dispatcher.messages.handle(outsider.node_id, "job_commit", {"commit": commit.to_json()})
    assert refusal.value.code == "seat.none"


# --- twice changes nothing, differing is evidence


async def test_every_message_sent_again_changes_nothing(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators)
    job = (await case.submit()).job_id
    assert await case.ended(job) == "agreed"
    before = await snapshot_of(case)
    for node_id, method, body in list(case.hub.delivered):
        await case.dispatcher.messages.handle(node_id, method, body)
    assert await snapshot_of(case) == before


async def test_a_second_different_claim_commit_chunk_or_receipt_is_equivocation(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators)
    job = (await case.submit()).job_id
    assert await case.ended(job) == "agreed"
    executor = next(o for o in operators if o.role((job_ref(job), 1)) == "executor")
    key = (job_ref(job), 1)
    changed: dict[str, tuple[str, Any]] = {
        "vrf_claim": (
            "claim",
            replace(executor.made("claim", key).statement, answer="decline", reason="capacity", pi=b""),
        ),
        "stream_chunk": ("chunk", replace(executor.made("chunk 0", key).statement, text="something else")),
        "job_commit": ("commit", replace(executor.made("commit", key).statement, commitment=b"\3" * 32)),
    }
    codes = {
        "vrf_claim": "equivocation.claim",
        "stream_chunk": "equivocation.chunk",
        "job_commit": "equivocation.commit",
    }
    for method, (member, statement) in changed.items():
        body = {member: sign(executor.signer, statement).to_json()}
        with pytest.raises(VerificationError) as refusal:
            await case.dispatcher.messages.handle(executor.node_id, method, body)
        assert refusal.value.code == codes[method]
    core = replace(executor.made("receipt", key).statement, finished_at=1)
    reveal = next(
        body
        for node, method, body in case.hub.delivered
        if (node, method) == (executor.node_id, "job_result")
    )
    signed = sign(executor.signer, core).to_json()
    with pytest.raises(VerificationError) as refusal:
        await case.dispatcher.messages.handle(
            executor.node_id,
            "job_result",
            reveal | {"receipt": signed["statement"], "signature": signed["signature"]},
        )
    assert refusal.value.code == "equivocation.receipt"
    rows = await case.dispatcher.pool.fetch("SELECT code FROM evidence WHERE node_id = $1", executor.node_id)
    assert {row["code"] for row in rows} == {*codes.values(), "equivocation.receipt"}


@pytest.mark.parametrize("method", ["submit_result", "connect", ""])
async def test_an_unknown_method_is_refused(open_case: Open, method: str) -> None:
    case = await open_case(*opml(1))
    with pytest.raises(RuleViolation) as refusal:
        await case.dispatcher.messages.handle(case.operators[0].node_id, method, {})
    assert refusal.value.code == "link.unknown_method"


# --- reconnects and crashes


async def test_an_operator_that_reconnects_is_offered_again_what_it_has_not_answered(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators, deadlines={"draw_ms": 60_000})
    operators[0].silent.add("draw_call")
    job = (await case.submit()).job_id
    await case.until("SELECT count(*) = 1 FROM claim WHERE job_id = $1", job)
    operators[0].silent.clear()
    case.dispatcher.runs.forget(operators[0].node_id)
    case.dispatcher.runs.wake_all()
    assert await case.ended(job) == "agreed"
    assert operators[0].count("draw_call") == 2


@pytest.mark.parametrize("after", [False, True], ids=["message lost", "answer lost"])
async def test_a_dispatcher_killed_at_any_message_ends_in_exactly_one_result_set(
    open_case: Open, after: bool
) -> None:
    """One job for each message that an undisturbed run takes; the dispatcher dies at that message and another one goes on."""
    case = await open_case(*opml(3))
    quiet = (await case.submit()).job_id
    await case.ended(quiet)
    total = case.hub.messages
    assert total > 10
    for n in range(1, total + 1):
        case.hub.messages, case.hub.crash_at, case.hub.after = 0, n, after
        job = (await case.submit(case.job(min_operators=2))).job_id
        crash = asyncio.create_task(case.hub.crashed.wait())
        end = asyncio.create_task(case.ended(job))
        await asyncio.wait({crash, end}, return_when=asyncio.FIRST_COMPLETED)
        if not crash.done():  # fewer seats were drawn: this run took fewer messages
            crash.cancel()
        else:
            end.cancel()
            await asyncio.gather(end, return_exceptions=True)
            await case.restart()
        assert await case.ended(job) == "agreed", f"killed at message {n} of {total}"
        rows = await case.dispatcher.jobs.result_rows(job, token=None)
        assert len({row["operator"] for row in rows}) == len(rows) >= 2
        assert len({row["attempt"] for row in rows}) == 1
        report = await case.report(job)
        assert report.verdict == "VERIFIED", f"killed at message {n}: {report.headline}"


async def snapshot_of(case: EngineCase) -> list[Any]:
    tables = ("run", "attempt", "claim", "seat", "chunk", "receipt", "result", "event")
    return [
        sorted(map(repr, await case.dispatcher.pool.fetch(f"SELECT * FROM {table}")))  # noqa: S608
        for table in tables
    ]
