"""Hostile operators, requesters and circumstances at the dispatcher: what they may cost, and what they never change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peers.engine_case import EngineCase, secret
from peers.hub_peer import OperatorPeer
from structlog.testing import capture_logs

from aos.core.encoding import b64u_encode
from aos.core.hashes import job_ref
from aos.core.statements import sign
from aos.dispatcher.jobs import Jobs
from aos.dispatcher.link_server import ServerWire
from aos.dispatcher.refusals import TooMany
from aos.errors import AOSError, RuleViolation, Unavailable, VerificationError

Open = Callable[..., Any]


@pytest.fixture
async def open_case(tmp_path: Path, pg_url: str) -> AsyncIterator[Open]:
    """``open_case(*operators, **settings) -> EngineCase``."""
    cases: list[EngineCase] = []

    async def open_(*operators: OperatorPeer, **changes: Any) -> EngineCase:
        operators = operators or opml(2)
        cases.append(await EngineCase.open(tmp_path / "dispatcher", pg_url, *operators, **changes))
        return cases[-1]

    yield open_
    for case in cases:
        await case.close()


def opml(count: int) -> tuple[OperatorPeer, ...]:
    return tuple(OperatorPeer(f"opml-{n}") for n in range(count))


async def count(case: EngineCase, query: str, *arguments: Any) -> int:
    return int(await case.dispatcher.pool.fetchval(f"SELECT count(*) FROM {query}", *arguments))  # noqa: S608


async def eventually(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(0.01)


# --- requesters


async def test_fifty_submissions_with_one_key_at_once_make_one_job(open_case: Open) -> None:
    case = await open_case()
    answers = await asyncio.gather(*(case.submit(case.job(tag="suspicion"), key="k") for _ in range(50)))
    assert len({answer.job_id for answer in answers}) == 1
    assert len({json.dumps(answer.acceptance, sort_keys=True) for answer in answers}) == 1
    assert await count(case, "job") == await count(case, "run") == await count(case, "flag") == 1


async def test_fifty_bodies_with_one_key_at_once_make_one_job_and_conflicts(open_case: Open) -> None:
    case = await open_case()
    news = [case.job(body_hash=secret(f"body {n}"), user=f"u{n}") for n in range(50)]
    answers = await asyncio.gather(*(case.submit(new, key="k") for new in news), return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(refusals) == 49
    assert all(isinstance(e, RuleViolation) and e.code == "idempotency.conflict" for e in refusals)
    assert await count(case, "job") == await count(case, "run") == 1


async def test_flags_at_once_share_the_project_s_quota(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators, rerun_quota=3)
    for operator in operators:
        operator.connected = False
    for user in range(6):
        await case.submit(case.job(user=f"u{user}"))
    flagged = await asyncio.gather(
        *(case.submit(case.job(user=f"u{user}", tag="suspicion")) for user in range(6))
    )
    assert await count(case, "run WHERE position = 'before'") == 3
    assert sum("quota" in answer.warning for answer in flagged) == 3


async def test_a_full_dispatcher_refuses_before_it_stores_and_repeats_old_answers(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators, max_open_runs=2)
    for operator in operators:
        operator.connected = False
    first = await case.submit(key="first")
    await case.submit()
    with pytest.raises(TooMany) as refusal:
        await case.submit()
    assert (refusal.value.code, refusal.value.http_status) == ("dispatcher.full", 429)
    assert await count(case, "job") == 2
    assert await case.submit(key="first") == replace(first, promise=None)
    await case.dispatcher.jobs.cancel(first.job_id, case.founded.token)
    for operator in operators:
        operator.connected = True
    case.dispatcher.runs.wake_all()
    await eventually(lambda: case.dispatcher.runs.open < 2)
    await case.submit()


async def test_a_cancel_that_meets_a_draw_call_half_way_is_no_deadlock(open_case: Open) -> None:
    """A cancel holds the run and wants the job; a draw call being stored wants both."""
    operators = opml(2)
    case = await open_case(*operators)
    for operator in operators:
        operator.connected = False
    job = (await case.submit()).job_id
    async with case.dispatcher.pool.acquire() as db:
        transaction = db.transaction()
        await transaction.start()
        await db.execute("SELECT 1 FROM run WHERE job_id = $1 FOR UPDATE", job)
        for operator in operators:
            operator.connected = True
        case.dispatcher.runs.wake_all()
        await case.until(
            """SELECT true FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        )
        await db.execute("UPDATE job SET events = events WHERE job_id = $1", job)
        await transaction.commit()
    assert await case.ended(job) == "agreed"
    deadlocks = "SELECT deadlocks = 0 FROM pg_stat_database WHERE datname = current_database()"
    assert await case.dispatcher.pool.fetchval(deadlocks)


async def test_cancels_and_commits_at_once_leave_one_end(open_case: Open) -> None:
    case = await open_case(*opml(2), deadlines={"draw_ms": 60_000})
    jobs = [(await case.submit()).job_id for _ in range(12)]

    async def cancel(job: str) -> str:
        try:
            return str(await case.dispatcher.jobs.cancel(job, case.founded.token))
        except RuleViolation as error:
            return error.code

    for n, job in enumerate(jobs):  # each at another point of its run
        await case.until("SELECT events >= $2 FROM job WHERE job_id = $1", job, min(n // 2, 5))
        said = await cancel(job)
        end = await case.ended(job)
        assert (said, end) in {("cancelled", "cancelled"), ("job.too_late", "agreed")}
        events = await case.dispatcher.jobs.events_after(job, 0, wait_s=0)
        assert [kind for _, kind, _ in events].count("done") == 1
        assert bool(await case.dispatcher.jobs.result_rows(job, token=None)) == (end == "agreed")


# --- operators


async def test_two_receipts_at_once_are_one_receipt_and_evidence(open_case: Open) -> None:
    operators = opml(1)
    case = await open_case(*operators, deadlines={"reveal_ms": 60_000})
    operator = operators[0]
    operator.silent.add("commit_set")
    job = (await case.submit(case.job(min_operators=1))).job_id
    await case.until("SELECT state = 'committed' FROM run WHERE job_id = $1", job)
    await case.hub.received("commit_set")
    key = (job_ref(job), 1)
    asked = next(body for method, body in operator.received if method == "commit_set")
    body = operator.reveal(key, asked)
    other = sign(
        operator.signer, replace(operator.made("receipt", key).statement, finished_at=2**42)
    ).to_json()
    second = body | {"receipt": other["statement"], "signature": other["signature"]}
    handle = case.dispatcher.messages.handle

    async def sent(what: object) -> object:
        while True:
            try:
                return await handle(operator.node_id, "job_result", what)
            except Unavailable:
                continue  # an outbox sends it again
            except VerificationError as error:
                return error

    answers = await asyncio.gather(*(sent(what) for what in (body, second) * 4))
    taken = {answer["receipt"] for answer in answers if isinstance(answer, dict)}
    assert len(taken) == 1
    refused = [answer for answer in answers if isinstance(answer, VerificationError)]
    assert {error.code for error in refused} == {"equivocation.receipt"}
    assert len(refused) == 4
    assert (
        await count(case, "receipt") == await count(case, "evidence WHERE code = 'equivocation.receipt'") == 1
    )
    assert await case.ended(job) == "single"


async def test_an_unsigned_second_receipt_accuses_nobody(open_case: Open) -> None:
    case = await open_case()
    job = (await case.submit()).job_id
    await case.ended(job)
    node_id, _, body = next(sent for sent in case.hub.delivered if sent[1] == "job_result")
    assert isinstance(body, dict)
    forged = body | {"receipt": body["receipt"] | {"finished_at": 2**40}}
    with pytest.raises(VerificationError) as refusal:
        await case.dispatcher.messages.handle(node_id, "job_result", forged)
    assert refusal.value.code.startswith("signature.")
    assert await count(case, "evidence") == 0


async def test_messages_of_another_operator_s_job_or_seat_change_nothing(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators)
    job = (await case.submit()).job_id
    await case.ended(job)
    stranger = OperatorPeer("stranger")
    for node_id, method, body in list(case.hub.delivered):
        other = next(o.node_id for o in operators if o.node_id != node_id)
        for sender in (other, stranger.node_id):
            with pytest.raises(AOSError):
                await case.dispatcher.messages.handle(sender, method, body)
    assert await count(case, "evidence") == 0
    assert (await case.report(job)).verdict == "VERIFIED"


async def test_what_an_operator_says_in_a_refusal_is_not_logged(open_case: Open) -> None:
    case = await open_case(*opml(1))
    words = "What is AI? and the job id"

    async def refuse(node_id: str, method: str, body: dict[str, Any]) -> dict[str, Any]:
        raise RuleViolation(words, words)

    asking = case.dispatcher.runs._asking
    case.hub.request = refuse
    with capture_logs() as logs:
        asking.send(1, 1, case.operators[0].node_id, "draw_call", {})
        await eventually(lambda: any(entry["event"] == "operator.refused" for entry in logs))
    assert [entry["code"] for entry in logs if entry["event"] == "operator.refused"] == ["unreadable"]
    assert "AI?" not in repr(logs)


async def test_the_log_of_runs_and_lies_holds_no_job_id_prompt_answer_or_token(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators, deadlines={"draw_ms": 60_000})
    with capture_logs() as logs:
        first = (await case.submit(case.job(prompt="a prompt that nobody logs"))).job_id
        await case.ended(first)
        operators[0].edit["job_result"] = lambda body: body | {"commit_salt": b64u_encode(b"\x09" * 32)}
        flagged = (await case.submit(case.job(tag="malicious"))).job_id
        await case.ended(flagged)
        await case.ended(first, position="before")
    assert {"run.moved", "evidence.kept"} <= {entry["event"] for entry in logs}
    text = json.dumps(logs, default=repr)
    nonces = await case.dispatcher.pool.fetch("SELECT nonce FROM job")
    secrets = [first, flagged, case.founded.token, "nobody logs", "someone", operators[0].result.text]
    for word in (*secrets, *(b64u_encode(row["nonce"]) for row in nonces)):
        assert word not in text


async def test_a_link_that_is_never_read_is_given_up() -> None:
    class NeverRead:
        async def send_text(self, text: str) -> None:
            await asyncio.Event().wait()

        async def close(self, code: int, reason: str) -> None:
            await asyncio.Event().wait()

    wire = ServerWire(NeverRead(), send_s=0.05)  # type: ignore[arg-type]
    for call in (wire.send("x"), wire.close(1000, "")):
        with pytest.raises(Unavailable) as refusal:
            await call
        assert refusal.value.code == "link.stalled"


# --- circumstances


async def test_a_job_whose_commit_was_answered_by_nobody_is_run_all_the_same(
    open_case: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL may go away between COMMIT and its answer: the rows are there, and no task was told."""
    monkeypatch.setattr("aos.dispatcher.runs.TAKE_UP_S", 0.0)
    case = await open_case()
    untold = Jobs(
        case.dispatcher.pool,
        case.config,
        case.dispatcher.registry,
        case.dispatcher.clock,
        case.dispatcher.events,
        started=lambda _: None,
        under_way=lambda: 0,
        cancelled=case.dispatcher.runs.cancelled,
    )
    job = (await untold.submit(case.job(), idempotency_key=None)).job_id
    assert await case.ended(job) == "agreed"


async def test_a_defect_is_logged_without_what_it_is_about_and_the_run_goes_on(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators)
    for operator in operators:
        operator.connected = False
    job = (await case.submit()).job_id
    pool = case.dispatcher.pool
    await pool.execute(
        "ALTER TABLE attempt ADD CONSTRAINT no_attempt CHECK (job_id <> draw_call AND attempt > 1)"
    )
    with capture_logs() as logs:
        for operator in operators:
            operator.connected = True
        case.dispatcher.runs.wake_all()
        await eventually(lambda: any(entry["event"] == "run.defect" for entry in logs))
        await pool.execute("ALTER TABLE attempt DROP CONSTRAINT no_attempt")
        case.dispatcher.runs.wake_all()
        assert await case.ended(job) == "agreed"
    defect = next(entry for entry in logs if entry["event"] == "run.defect")
    assert defect["kind"] == "CheckViolationError"
    assert "drawing.py" in defect["where"]
    assert job not in repr(logs)


@pytest.mark.slow
async def test_a_dispatcher_killed_after_any_statement_ends_in_exactly_one_result_set(
    open_case: Open,
) -> None:
    """Every fifth statement of a run in turn is the last one that reaches the database; another dispatcher goes on."""
    case = await open_case(*opml(2))
    counted = [0]
    for holder in case.dispatcher.pool._holders:
        holder._con.add_query_logger(lambda _: counted.__setitem__(0, counted[0] + 1))
    await case.ended((await case.submit()).job_id)
    total = counted[0]
    assert total > 40
    await case.restart()
    for n in range(1, total, 5):
        job = (await case.submit()).job_id
        died = asyncio.create_task(case.dispatcher.die_after(n).wait())
        end = asyncio.create_task(case.ended(job))
        await asyncio.wait({died, end}, return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        end.cancel()
        await asyncio.gather(died, end, return_exceptions=True)
        await case.restart()
        assert await case.ended(job) == "agreed", f"killed after statement {n} of {total}"
        rows = await case.dispatcher.jobs.result_rows(job, token=None)
        assert len({row["operator"] for row in rows}) == len(rows) == 2, f"statement {n}"
        assert len({row["attempt"] for row in rows}) == 1
        report = await case.report(job)
        assert report.verdict == "VERIFIED", f"killed after statement {n}: {report.headline}"
