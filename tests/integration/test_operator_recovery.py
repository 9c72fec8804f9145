"""Whatever dies, an operator continues: nothing lost, and nothing said twice in two versions to the outside.

The dispatcher peer asserts by itself that claims, chunks and commits never come in a second version.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from peers.dispatcher_peer import Job, now_ms
from peers.operator_under_test import (
    OperatorProcess,
    Scene,
    eventually,
    running,
    scene,
    write_config,
)

from aos.adapters.embedded.postgres import EmbeddedPostgres
from aos.adapters.embedded.redis import EmbeddedRedis
from aos.operator.store import Store


@pytest.fixture
async def surroundings(tmp_path: Path, pg_url: str, redis_url: str) -> AsyncIterator[Scene]:
    """Peers and a configuration with two workers; no operator yet."""
    async with scene(tmp_path, pg_url, redis_url, workers=2) as found:
        yield found


@pytest.fixture
def process(surroundings: Scene, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator that is a process."""
    operator = OperatorProcess(surroundings.path, tmp_path / "operator.log")
    operator.start()
    yield operator
    operator.kill()


async def finish(found: Scene, job: Job) -> None:
    """The rest of the honest path, and exactly one result at its end."""
    await found.dispatcher.commit(job)
    result = await found.dispatcher.reveal(job)
    await found.job_state(job, "done")
    assert [r for r in found.dispatcher.results if r["receipt"]["job_ref"] == job.key[0]] == [result]


def questions(found: Scene) -> int:
    return sum(len(worker.questions) for worker in found.workers)


# --- workers


async def test_a_job_of_a_worker_that_dies_is_finished_by_another(surroundings: Scene) -> None:
    async with running(surroundings.path):
        await surroundings.ready()
        for worker in surroundings.workers:
            worker.hold(at_token=12)
        job = await surroundings.dispatcher.seated()
        await surroundings.dispatcher.until(lambda: surroundings.dispatcher.chunks.get(job.key))
        (first,) = [worker for worker in surroundings.workers if worker.questions]
        (second,) = [worker for worker in surroundings.workers if not worker.questions]
        second.gate.set()
        await first.stop()
        await finish(surroundings, job)
        assert (len(first.questions), len(second.questions)) == (1, 1)
        assert first.finished == 0


async def test_a_worker_that_comes_back_gets_its_job_again(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found, running(found.path):
        await found.ready()
        found.worker.die_after_tokens = 11
        job = await found.dispatcher.seated()
        await finish(found, job)
        assert len(found.worker.questions) == 2
        assert len(found.dispatcher.chunks[job.key]) == 3


async def test_a_worker_that_does_not_repeat_is_never_signed_a_second_time(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found, running(found.path):
        await found.ready()
        found.worker.hold(at_token=10)
        job = await found.dispatcher.seated()
        await found.dispatcher.until(lambda: found.dispatcher.chunks.get(job.key))
        await found.worker.stop()
        found.worker.salt = "another mood"
        found.worker.gate.set()
        await found.worker.start()
        await found.dispatcher.until(lambda: found.dispatcher.failures)
        assert found.dispatcher.failures[0]["code"] == "stream.not_repeatable"
        assert len(found.dispatcher.chunks[job.key]) == 1
        assert job.key not in found.dispatcher.commits


async def test_a_job_that_takes_its_worker_down_every_time_is_given_up(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found, running(found.path):
        await found.ready()

        def poison() -> bool:
            found.worker.die_after_tokens = 3
            return bool(found.dispatcher.failures)

        found.worker.die_after_tokens = 3
        await found.dispatcher.seated()

        async def given_up() -> bool:
            return poison()

        await eventually(given_up, timeout_s=40)
        assert found.dispatcher.failures[0]["code"] == "worker.crashed"
        assert len(found.worker.questions) == 5


@pytest.mark.parametrize("code", ["enclave.died", "enclave.silent", "engine.failed"])
async def test_a_question_whose_enclave_dies_is_asked_again(
    tmp_path: Path, pg_url: str, redis_url: str, code: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found, running(found.path):
        await found.ready()
        found.worker.error = (code, "the enclave ended while it was needed")
        job = await found.dispatcher.seated()
        await eventually(lambda: asked(found, 1))
        found.worker.error = None
        await finish(found, job)
        assert found.dispatcher.failures == []


async def test_an_enclave_that_is_long_in_starting_costs_no_job(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found, running(found.path):
        await found.ready()
        found.worker.error = ("enclave.starting", "the enclave is starting")
        job = await found.dispatcher.seated()
        await eventually(lambda: asked(found, 7), timeout_s=60)  # more often than a job may kill its worker
        found.worker.error = None
        await finish(found, job)
        assert found.dispatcher.failures == []


async def asked(found: Scene, times: int) -> bool:
    return questions(found) >= times


async def test_a_job_for_a_worker_that_is_away_does_not_hold_up_the_others(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    other = b"\x08" * 32
    async with scene(tmp_path, pg_url, redis_url, workers=2) as found:
        found.workers[1].model_id = other
        found.dispatcher.model_ids = (*found.dispatcher.model_ids, other)
        async with running(found.path):
            await found.ready()
            await eventually(lambda: both_known(found))
            await found.workers[1].stop()
            waiting = [
                await found.dispatcher.seated(request=found.dispatcher.request_bytes(model_id=other))
                for _ in range(3)
            ]
            await finish(found, await found.dispatcher.seated())
            await found.workers[1].start()
            for job in waiting:
                await finish(found, job)


async def both_known(found: Scene) -> bool:
    return all(worker["ok"] for worker in (await found.status())["workers"])


async def test_a_job_that_no_worker_takes_before_its_deadline_fails_by_name(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found, running(found.path):
        await found.ready()
        job = found.dispatcher.new_job()
        await found.dispatcher.draw(job)
        await found.worker.stop()
        assert await found.dispatcher.dispatch(job, deadline=now_ms() + 3_000) == {"ok": {}}
        await found.dispatcher.until(lambda: found.dispatcher.failures)
        assert [failure["code"] for failure in found.dispatcher.failures] == ["run.deadline"]


async def test_a_run_that_outlasts_its_deadline_is_stopped_and_fails_by_name(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found, running(found.path):
        await found.ready()
        found.worker.hold(at_token=5)
        job = found.dispatcher.new_job()
        await found.dispatcher.draw(job)
        assert await found.dispatcher.dispatch(job, deadline=now_ms() + 3_000) == {"ok": {}}
        await found.dispatcher.until(lambda: found.dispatcher.failures)
        assert [failure["code"] for failure in found.dispatcher.failures] == ["run.deadline"]
        await eventually(lambda: was_cancelled(found))
        found.worker.gate.set()
        await finish(found, await found.dispatcher.seated())


async def was_cancelled(found: Scene) -> bool:
    return found.worker.cancelled == 1


async def test_a_deadline_that_is_put_off_is_the_one_that_counts(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found, running(found.path):
        await found.ready()
        found.worker.hold(at_token=5)
        job = found.dispatcher.new_job()
        await found.dispatcher.draw(job)
        first = now_ms() + 2_000
        for deadline in (first, first + 60_000):
            assert await found.dispatcher.dispatch(job, deadline=deadline) == {"ok": {}}

        async def past_the_first() -> bool:
            return now_ms() > first + 500

        await eventually(past_the_first)
        found.worker.gate.set()
        await finish(found, job)
        assert len(found.worker.questions) == 1
        assert found.dispatcher.failures == []


async def test_an_answer_that_fits_into_no_message_fails_by_name(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found, running(found.path):
        await found.ready()
        found.worker.change_result = {"text": "\u0001" * 600_000}
        job = await found.dispatcher.seated(executor=False)
        await found.dispatcher.until(lambda: found.dispatcher.failures)
        assert found.dispatcher.failures[0]["code"] == "result.too_large"
        assert job.key not in found.dispatcher.commits
        assert len(found.dispatcher.connects) == 1


async def test_a_workers_message_of_odd_characters_takes_nothing_down(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found, running(found.path):
        await found.ready()
        found.worker.error = ("worker.odd", "a \x00 and a \ud800")
        await found.dispatcher.seated()
        await found.dispatcher.until(lambda: found.dispatcher.failures)
        assert found.dispatcher.failures[0]["code"] == "worker.odd"


# --- Redis


async def test_a_redis_that_loses_everything_loses_no_job(
    surroundings: Scene, redis_server: EmbeddedRedis
) -> None:
    async with running(surroundings.path):
        await surroundings.ready()
        for worker in surroundings.workers:
            worker.hold(at_token=1)
        jobs = [await surroundings.dispatcher.seated() for _ in range(4)]  # two run, two wait
        await surroundings.dispatcher.until(lambda: len(surroundings.dispatcher.received) > 0)
        redis_server.flush()
        for worker in surroundings.workers:
            worker.gate.set()
        for job in jobs:
            await finish(surroundings, job)


async def test_a_redis_that_is_killed_and_comes_back_loses_no_job(
    tmp_path: Path, pg_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    redis = EmbeddedRedis(tmp_path_factory.mktemp("own-redis"))
    redis.start()
    try:
        async with scene(tmp_path, pg_url, redis.url()) as found, running(found.path):
            await found.ready()
            found.worker.hold(at_token=9)
            job = await found.dispatcher.seated()
            await found.dispatcher.until(lambda: found.dispatcher.chunks.get(job.key))
            await asyncio.to_thread(redis.kill)
            during = await found.dispatcher.seated()  # taken and stored while Redis is away
            found.worker.gate.set()
            await found.dispatcher.commit(job)
            await asyncio.to_thread(redis.start)
            await finish(found, job)
            await finish(found, during)
            assert len(found.worker.questions) == 2
    finally:
        redis.stop()


# --- PostgreSQL


async def test_while_postgresql_is_away_nothing_is_acknowledged_and_after_it_all_goes_on(
    tmp_path: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("own-postgres"))
    postgres.start()
    try:
        url = postgres.create_database("operator_db")
        async with scene(tmp_path, url, redis_url) as found, running(found.path):
            await found.ready()
            found.worker.hold(at_token=9)
            job = await found.dispatcher.seated()
            await found.dispatcher.until(lambda: found.dispatcher.chunks.get(job.key))
            waiting = found.dispatcher.new_job()
            await asyncio.to_thread(postgres.kill)
            with pytest.raises((TimeoutError, AssertionError)):
                await found.dispatcher.request(
                    "draw_call", {"draw_call": waiting.call.to_json()}, timeout_s=2
                )
            found.worker.gate.set()
            connects = len(found.dispatcher.connects)
            await asyncio.to_thread(postgres.start)
            await found.dispatcher.connected(times=connects)
            await found.ready(connects=connects)
            await found.dispatcher.draw(waiting)
            assert await found.dispatcher.dispatch(waiting) == {"ok": {}}
            await finish(found, job)
            await finish(found, waiting)
    finally:
        postgres.stop()


# --- the operator itself


async def test_killed_before_it_answers_a_draw(surroundings: Scene, process: OperatorProcess) -> None:
    dispatcher = surroundings.dispatcher
    await surroundings.ready()
    dispatcher.mute.add("vrf_claim")
    job = dispatcher.new_job()
    await dispatcher.call(job)
    await dispatcher.until(lambda: any(method == "vrf_claim" for method, _ in dispatcher.received))
    process.kill()
    dispatcher.mute.clear()
    process.start()
    claim = await dispatcher.until(lambda: dispatcher.claims.get(job.key))
    first = next(body for method, body in dispatcher.received if method == "vrf_claim")
    assert claim.to_json() == first["claim"]
    assert [c.incarnation for c in dispatcher.connects] == sorted(
        {c.incarnation for c in dispatcher.connects}
    )


async def test_killed_in_the_middle_of_a_stream(surroundings: Scene, process: OperatorProcess) -> None:
    dispatcher = surroundings.dispatcher
    await surroundings.ready()
    for worker in surroundings.workers:
        worker.hold(at_token=18)
    job = await dispatcher.seated()
    await dispatcher.until(lambda: len(dispatcher.chunks.get(job.key, [])) == 2)
    process.kill()
    for worker in surroundings.workers:
        worker.gate.set()
    process.start()
    await finish(surroundings, job)
    assert len(dispatcher.chunks[job.key]) == 3


async def test_killed_between_commit_and_its_acknowledgement(
    surroundings: Scene, process: OperatorProcess
) -> None:
    dispatcher = surroundings.dispatcher
    await surroundings.ready()
    dispatcher.mute.add("job_commit")
    job = await dispatcher.seated()
    await dispatcher.until(lambda: any(method == "job_commit" for method, _ in dispatcher.received))
    process.kill()
    dispatcher.mute.clear()
    process.start()
    commit = await dispatcher.commit(job)
    sent = [body["commit"] for method, body in dispatcher.received if method == "job_commit"]
    assert sent == [commit.to_json()] * len(sent)
    assert len(sent) >= 2
    await finish(surroundings, job)
    assert questions(surroundings) == 1


async def test_killed_after_the_commit_set_reveals_the_same_receipt(
    surroundings: Scene, process: OperatorProcess
) -> None:
    dispatcher = surroundings.dispatcher
    await surroundings.ready()
    job = await dispatcher.seated()
    await dispatcher.commit(job)
    dispatcher.mute.add("job_result")
    body = dispatcher.commit_set_body(job, dispatcher.commit_set(job))
    assert await dispatcher.request("commit_set", body) == {"ok": {}}
    await dispatcher.until(lambda: any(method == "job_result" for method, _ in dispatcher.received))
    process.kill()
    dispatcher.mute.clear()
    process.start()
    result = await dispatcher.result(job)
    await surroundings.job_state(job, "done")
    sent = [body for method, body in dispatcher.received if method == "job_result"]
    assert sent == [result] * len(sent)
    assert len(sent) >= 2
    assert questions(surroundings) == 1


async def test_its_own_clock_never_goes_back_over_a_kill(
    surroundings: Scene, process: OperatorProcess
) -> None:
    dispatcher = surroundings.dispatcher
    await surroundings.ready()
    before = await dispatcher.seated()
    first = await dispatcher.commit(before)
    process.kill()
    process.start()
    await surroundings.ready(connects=2)
    after = await dispatcher.seated()
    second = await dispatcher.commit(after)
    assert int(second.statement.clock["2"]) > int(first.statement.clock["2"])


async def test_a_second_process_takes_over_and_the_first_ends_by_name(
    surroundings: Scene, process: OperatorProcess, tmp_path: Path
) -> None:
    await surroundings.ready()
    content = {**surroundings.content}
    content["net"] = {**content["net"], "rest_url": "127.0.0.1:0"}
    (tmp_path / "second").mkdir()
    second = OperatorProcess(write_config(tmp_path / "second", content), tmp_path / "second.log")
    second.start()
    try:
        await surroundings.dispatcher.connected(times=2)
        assert await asyncio.to_thread(process.wait) == 1
        assert "operator.second_process" in process.log_text()
    finally:
        second.kill()


async def test_a_database_of_another_operator_is_refused(surroundings: Scene, tmp_path: Path) -> None:
    store = await Store.open(
        surroundings.content["db"]["pg_db_url"],
        min_size=1,
        max_size=1,
        connect_timeout_s=5,
        acquire_timeout_s=5,
    )
    await store.claim_node("0x" + "1" * 40, surroundings.dispatcher.keys.address, owner=b"them")
    await store.close()
    operator = OperatorProcess(surroundings.path, tmp_path / "refused.log")
    operator.start()
    assert await asyncio.to_thread(operator.wait) == 1
    assert "operator.foreign_database" in operator.log_text()


async def test_sigterm_ends_it_cleanly_in_the_middle_of_a_job_and_the_next_one_finishes_it(
    surroundings: Scene, process: OperatorProcess
) -> None:
    await surroundings.ready()
    for worker in surroundings.workers:
        worker.hold(at_token=9)
    job = await surroundings.dispatcher.seated()
    await surroundings.dispatcher.until(lambda: surroundings.dispatcher.chunks.get(job.key))
    assert await asyncio.to_thread(process.terminate) == 0
    for worker in surroundings.workers:
        worker.gate.set()
    process.start()
    await finish(surroundings, job)


async def test_a_drain_outlives_kills_of_the_operator_and_of_the_command_that_waits(
    surroundings: Scene, process: OperatorProcess
) -> None:
    dispatcher = surroundings.dispatcher
    await surroundings.ready()
    for worker in surroundings.workers:
        worker.hold(at_token=18)
    job = await dispatcher.seated()
    await dispatcher.until(lambda: len(dispatcher.chunks.get(job.key, [])) == 2)
    waiting = command("operator", "drain", "-c", str(surroundings.path), "--wait")

    async def draining() -> bool:
        return bool((await surroundings.status())["draining"])

    await eventually(draining)
    waiting.send_signal(signal.SIGINT)
    assert (await ended(waiting))[0] == 130
    late = command("operator", "drain", "-c", str(surroundings.path), "--wait", "--timeout", "1", "--json")
    code, out, _ = await ended(late)
    assert (code, json.loads(out)["error"]["code"]) == (20, "operator.not_drained")
    process.kill()
    process.start()
    await surroundings.ready(connects=2)
    assert await draining()
    declined = await dispatcher.draw(dispatcher.new_job())
    assert (declined.statement.answer, declined.statement.reason) == ("decline", "draining")
    again = command("operator", "drain", "-c", str(surroundings.path), "--wait", "--json")
    for worker in surroundings.workers:
        worker.gate.set()
    await finish(surroundings, job)
    code, out, err = await ended(again)
    assert (code, err) == (0, "")
    assert json.loads(out)["result"] == {"draining": True, "unfinished": 0}
    assert await asyncio.to_thread(process.terminate) == 0
    process.start()
    await surroundings.ready(connects=3)
    code, _, err = await ended(command("operator", "resume", "-c", str(surroundings.path)))
    assert (code, err.partition(":")[0]) == (0, "resumed")
    assert (await dispatcher.draw(dispatcher.new_job())).statement.answer == "claim"


def command(*arguments: str) -> subprocess.Popen[str]:
    """`aos …`, as a process."""
    argv = [sys.executable, "-m", "aos.cli.main", *arguments]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, err = await asyncio.to_thread(process.communicate, timeout=60)
    return process.returncode, out, err


# --- the link


@pytest.mark.parametrize("method", ["vrf_claim", "stream_chunk", "job_commit", "job_result", "job_failed"])
async def test_what_is_not_acknowledged_is_sent_again_over_the_next_link(
    surroundings: Scene, method: str
) -> None:
    dispatcher = surroundings.dispatcher
    async with running(surroundings.path):
        await surroundings.ready()
        dispatcher.mute.add(method)
        if method == "job_failed":
            for worker in surroundings.workers:
                worker.error = ("engine.prompt_too_long", "too long")
        job = dispatcher.new_job()
        await dispatcher.call(job)

        async def through() -> None:
            await dispatcher.until(lambda: any(sent == method for sent, _ in dispatcher.received))
            await dispatcher.drop()
            dispatcher.mute.clear()
            await dispatcher.connected(times=2)

        if method == "vrf_claim":
            await through()
        await dispatcher.until(lambda: job.key in dispatcher.claims)
        assert await dispatcher.dispatch(job) == {"ok": {}}
        if method in ("stream_chunk", "job_commit", "job_failed"):
            await through()
        if method == "job_failed":
            await dispatcher.until(lambda: dispatcher.failures)
            return
        await dispatcher.commit(job)
        body = dispatcher.commit_set_body(job, dispatcher.commit_set(job))
        assert await dispatcher.request("commit_set", body) == {"ok": {}}
        if method == "job_result":
            await through()
        await dispatcher.result(job)
        await surroundings.job_state(job, "done")
        assert questions(surroundings) == 1


async def test_a_dispatcher_that_lost_the_first_chunks_gets_them_again(surroundings: Scene) -> None:
    dispatcher = surroundings.dispatcher
    async with running(surroundings.path):
        await surroundings.ready()
        for worker in surroundings.workers:
            worker.hold(at_token=10)
        job = await dispatcher.seated()
        await dispatcher.until(lambda: dispatcher.chunks.get(job.key))
        dispatcher.forget_chunks = True
        for worker in surroundings.workers:
            worker.gate.set()
        await finish(surroundings, job)
        assert [c["statement"]["index"] for c in dispatcher.chunks[job.key]] == [0, 1, 2]


async def test_a_commit_that_is_refused_for_good_is_not_sent_for_ever(surroundings: Scene) -> None:
    dispatcher = surroundings.dispatcher
    dispatcher.refuse["job_commit"] = ("commit.late", "this attempt takes no more commits")
    async with running(surroundings.path):
        await surroundings.ready()
        job = await dispatcher.seated()
        await surroundings.job_state(job, "failed")
        assert sum(method == "job_commit" for method, _ in dispatcher.received) == 1


async def test_a_commit_that_is_refused_for_now_is_sent_again(surroundings: Scene) -> None:
    dispatcher = surroundings.dispatcher
    dispatcher.refuse["job_commit"] = ("store.unavailable", "PostgreSQL does not answer")
    async with running(surroundings.path):
        await surroundings.ready()
        job = await dispatcher.seated()
        await dispatcher.until(lambda: any(method == "job_commit" for method, _ in dispatcher.received))
        dispatcher.refuse.clear()
        await finish(surroundings, job)
