"""What a requester can ask: idempotent submission, private jobs, cancelling, flags with their re-runs and quota (06, 09)."""

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

from aos.core.answer import read_answer
from aos.core.codec import decode
from aos.core.hashes import job_ref, request_hash
from aos.core.statements import Acceptance, Request, verify_signed
from aos.dispatcher.setup import new_project
from aos.errors import AOSError

Open = Callable[..., Any]


@pytest.fixture
async def open_case(tmp_path: Path, pg_url: str) -> AsyncIterator[Open]:
    """``open_case(*operators, **settings) -> EngineCase``."""
    cases: list[EngineCase] = []

    async def open_(*operators: OperatorPeer, **changes: Any) -> EngineCase:
        operators = operators or (OperatorPeer("opml-0"), OperatorPeer("opml-1"))
        cases.append(await EngineCase.open(tmp_path / "dispatcher", pg_url, *operators, **changes))
        return cases[-1]

    yield open_
    for case in cases:
        await case.close()


async def refused(code: str, call: Any) -> AOSError:
    with pytest.raises(AOSError) as refusal:
        await call
    assert refusal.value.code == code
    return refusal.value


async def count(case: EngineCase, table: str) -> int:
    return int(await case.dispatcher.pool.fetchval(f"SELECT count(*) FROM {table}"))  # noqa: S608


# --- submit


async def test_the_acceptance_is_signed_over_the_stored_request(open_case: Open) -> None:
    case = await open_case()
    submitted = await case.submit(case.job(nonce=b"\3" * 32, user="somebody"))
    accepted = verify_signed(Acceptance, submitted.acceptance, address=case.config.keys.address).statement
    data = await case.dispatcher.jobs.request_bytes(submitted.job_id)
    assert accepted.request_hash == request_hash(b"\3" * 32, data)
    assert accepted.job_ref == job_ref(submitted.job_id)
    request = decode(Request, json.loads(data))
    assert (request.user, request.nonce_source, request.min_operators) == ("somebody", "client", 2)
    assert case.founded.token.encode() not in data


async def test_the_same_key_and_body_give_the_first_answer_again(open_case: Open) -> None:
    case = await open_case()
    first = await case.submit(key="key-1")
    assert await case.submit(key="key-1") == replace(first, promise=None)
    assert await count(case, "job") == 1


async def test_the_same_key_sent_at_once_makes_one_job(open_case: Open) -> None:
    case = await open_case()
    answers = await asyncio.gather(*(case.submit(key="key-1") for _ in range(8)))
    assert len({answer.job_id for answer in answers}) == 1
    assert await count(case, "job") == await count(case, "run") == 1


async def test_the_same_key_with_another_body_is_a_conflict(open_case: Open) -> None:
    case = await open_case()
    await case.submit(key="key-1")
    error = await refused(
        "idempotency.conflict", case.submit(case.job(body_hash=secret("else")), key="key-1")
    )
    assert error.http_status == 409


@pytest.mark.parametrize(
    ("changes", "code", "status"),
    [
        ({"token": "wrong"}, "token.invalid", 401),
        ({"project": "p-nobody"}, "token.invalid", 401),
        ({"model": "other.gguf"}, "model.unknown", 404),
        ({"min_operators": 3}, "field.range", 400),
        ({"job_type": "tee"}, "job.no_operator", 409),
    ],
)
async def test_a_refused_submission_stores_nothing(
    open_case: Open, changes: dict[str, Any], code: str, status: int
) -> None:
    case = await open_case()
    error = await refused(code, case.submit(case.job(**changes)))
    assert error.http_status == status
    assert await count(case, "job") == await count(case, "run") == await count(case, "flag") == 0


# --- read


async def test_result_rows_have_the_guide_s_members_and_more(open_case: Open) -> None:
    case = await open_case()
    job = (await case.submit()).job_id
    await case.ended(job)
    rows = await case.dispatcher.jobs.result_rows(job, token=None)
    assert len(rows) == 2
    row = rows[0]
    assert row["id"] == f"{row['operator']}_{job}_"
    assert {
        "job_id",
        "operator",
        "result",
        "verify_id",
        "vrf",
        "clock",
        "signature",
        "job_type",
        "tag",
        "created_at",
    } <= set(row)
    assert set(row["vrf"]) == {
        "selected",
        "vrf_prompt_hash",
        "vrf_random_value",
        "vrf_verify_pubkey",
        "vrf_proof",
    }
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in row["clock"].items())


async def test_the_events_tell_the_whole_story_once_and_resume(open_case: Open) -> None:
    case = await open_case()
    job = (await case.submit()).job_id
    await case.ended(job)
    events = await case.dispatcher.jobs.events_after(job, 0, wait_s=0)
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    told = [json.loads(data) for _, kind, data in events if kind == "status"]
    assert [event["status"] for event in told] == ["created", "dispatched", "running", "committed"]
    text = "".join(json.loads(data)["text"] for _, kind, data in events if kind == "text")
    assert text == case.operators[0].result.text
    done = json.loads(events[-1][2])
    assert (events[-1][1], done["status"], done["outcome"]) == ("done", "verified", "agreed")
    assert await case.dispatcher.jobs.events_after(job, 3, wait_s=0) == events[3:]
    assert await case.dispatcher.jobs.events_after(job, len(events), wait_s=0) == []


async def test_a_private_job_needs_its_project_s_token(open_case: Open) -> None:
    case = await open_case()
    job = (await case.submit(case.job(private=True))).job_id
    await case.ended(job)
    jobs = case.dispatcher.jobs
    other = (await new_project(case.config_path, "other")).token
    for token in (None, "wrong", other):
        await refused("token.required", jobs.result_rows(job, token=token))
        await refused("token.required", jobs.detail(job, token=token))
    assert len(await jobs.result_rows(job, token=case.founded.token)) == 2


async def test_what_does_not_exist_is_not_found(open_case: Open) -> None:
    case = await open_case()
    jobs = case.dispatcher.jobs
    for call in (
        jobs.result_rows("0" * 64, token=None),
        jobs.detail("0" * 64, token=None),
        jobs.draw(b"\1" * 32),
    ):
        assert (await refused("job.unknown", call)).http_status == 404


async def test_an_unfinished_job_has_no_rows_and_no_answer_yet(open_case: Open) -> None:
    case = await open_case()
    for operator in case.operators:
        operator.silent.add("draw_call")
    job = (await case.submit()).job_id
    assert await case.dispatcher.jobs.result_rows(job, token=None) == []
    await refused("job.no_answer", case.dispatcher.jobs.answer(job, None))


async def test_a_user_s_results_come_newest_first_in_pages_that_miss_nothing(open_case: Open) -> None:
    case = await open_case()
    expected = []
    for _ in range(3):
        job = (await case.submit()).job_id
        await case.ended(job)
        expected = [job, job, *expected]
    await case.ended((await case.submit(case.job(user="somebody else"))).job_id)
    project, seen, before = case.founded.project, [], None
    for _ in range(10):
        rows, cursor = await case.dispatcher.jobs.user_results(project, "someone", before=before, limit=4)
        seen += [row["job_id"] for row in rows]
        if cursor is None:
            break
        before = int(cursor)
    assert seen == expected


async def test_a_draw_is_public_without_job_id_prompt_or_tag(open_case: Open) -> None:
    case = await open_case()
    for operator in case.operators:
        operator.silent.add("dispatch_job")
    job = (await case.submit(case.job(tag="suspicion"))).job_id
    await case.until("SELECT state = 'running' FROM run WHERE job_id = $1", job)
    shown = await case.dispatcher.jobs.draw(job_ref(job))
    assert len(shown["attempts"]) == 1
    assert shown["attempts"][0]["tag_opening"] is None
    text = json.dumps(shown)
    assert job not in text
    assert "What is AI?" not in text
    assert "suspicion" not in text


# --- cancel


async def test_a_cancelled_job_ends_at_once_and_its_operators_are_told(open_case: Open) -> None:
    case = await open_case()
    for operator in case.operators:
        operator.silent.add("dispatch_job")
    job = (await case.submit()).job_id
    await case.until("SELECT state = 'running' FROM run WHERE job_id = $1", job)
    jobs = case.dispatcher.jobs
    await refused("token.invalid", jobs.cancel(job, "wrong"))
    assert await jobs.cancel(job, case.founded.token) == "cancelled"
    assert await jobs.cancel(job, case.founded.token) == "cancelled"
    assert (await jobs.detail(job, token=None))["status"] == "cancelled"
    events = await jobs.events_after(job, 0, wait_s=0)
    assert [kind for _, kind, _ in events].count("done") == 1
    await case.hub.received("cancel_job")


async def test_a_finished_job_cannot_be_cancelled(open_case: Open) -> None:
    case = await open_case()
    job = (await case.submit()).job_id
    await case.ended(job)
    await refused("job.too_late", case.dispatcher.jobs.cancel(job, case.founded.token))
    assert await case.state(job) == "agreed"


async def test_nothing_that_comes_after_a_cancel_changes_the_job(open_case: Open) -> None:
    case = await open_case()
    for operator in case.operators:
        operator.silent.add("job_commit")
    job = (await case.submit()).job_id
    await case.until("SELECT state = 'checking' FROM run WHERE job_id = $1", job)
    await case.dispatcher.jobs.cancel(job, case.founded.token)
    key = (job_ref(job), 1)
    for operator in case.operators:
        assert await case.hub.deliver(operator, "job_commit", operator.commit(key)) is None
        assert operator.refusals[-1] == ("job_commit", "commit.late")
    assert await case.state(job) == "cancelled"


# --- flags


async def test_a_flagged_job_sends_the_user_s_earlier_jobs_out_again_with_their_sampling_seed(
    open_case: Open,
) -> None:
    case = await open_case()
    first = (await case.submit()).job_id
    stranger = (await case.submit(case.job(user="somebody else"))).job_id
    for job in (first, stranger):
        await case.ended(job)
    flagged = (await case.submit(case.job(tag="malicious"))).job_id
    assert await case.ended(flagged) == "agreed"
    assert await case.ended(first, position="before") == "agreed"
    rows = await case.dispatcher.jobs.result_rows(first, token=None)
    assert {(row["tag"], row["position"], row["attempt"]) for row in rows} == {
        ("", "", 1),
        ("malicious", "before", 2),
    }
    assert len(await case.dispatcher.jobs.result_rows(stranger, token=None)) == 2
    answers = [read_answer(await case.dispatcher.jobs.answer(first, attempt)) for attempt in (1, 2)]
    assert len({answer.receipt.core.sampling_seed for answer in answers}) == 1
    assert answers[1].draw.first_draw == answers[0].draw.draw_call
    for attempt in (1, 2):
        report = await case.report(first, attempt)
        assert report.verdict == "VERIFIED", report.headline


async def test_an_earlier_job_is_sent_out_once_for_each_tag(open_case: Open) -> None:
    case = await open_case()
    first = (await case.submit()).job_id
    await case.ended(first)
    for tag in ("suspicion", "suspicion", "malicious"):
        await case.ended((await case.submit(case.job(tag=tag))).job_id)
    tags = await case.dispatcher.pool.fetch(
        "SELECT tag FROM run WHERE job_id = $1 AND position = 'before' ORDER BY run_id", first
    )
    assert [row["tag"] for row in tags] == ["suspicion", "malicious"]


async def test_only_the_last_ten_jobs_are_sent_out_again(open_case: Open) -> None:
    case = await open_case()
    jobs = [(await case.submit()).job_id for _ in range(12)]
    await case.submit(case.job(tag="suspicion"))
    rows = await case.dispatcher.pool.fetch("SELECT job_id FROM run WHERE position = 'before'")
    assert {row["job_id"] for row in rows} == set(jobs[2:])


async def test_the_user_s_next_job_and_no_other_runs_as_after(open_case: Open) -> None:
    case = await open_case()
    await case.submit(case.job(tag="suspicion"))
    other = (await case.submit(case.job(user="somebody else"))).job_id
    marked = (await case.submit()).job_id
    later = (await case.submit()).job_id
    shown = {}
    for job in (other, marked, later):
        detail = await case.dispatcher.jobs.detail(job, token=None)
        shown[job] = (detail["tag"], detail["position"])
        assert await case.ended(job) == "agreed"
        report = await case.report(job)
        assert report.verdict == "VERIFIED", report.headline
    assert shown == {other: ("", ""), marked: ("suspicion", "after"), later: ("", "")}


async def test_beyond_its_quota_a_project_gets_no_re_runs_and_is_told(open_case: Open) -> None:
    case = await open_case(rerun_quota=2)
    for _ in range(4):
        await case.submit()
    flagged = await case.submit(case.job(tag="suspicion"))
    assert "quota" in flagged.warning
    assert await case.dispatcher.pool.fetchval("SELECT count(*) FROM run WHERE position = 'before'") == 2
    assert await case.ended(flagged.job_id) == "agreed"
