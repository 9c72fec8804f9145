"""An opML worker's process that answers several questions at a time: equal roots, streams that interleave,
clients that go, a kill.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from integration.test_workers import (
    ENDLESS,
    GREEDY,
    Worker,
    alive,
    question,
    request_of,
    started,
    url_of,
    wait_for,
)

from aos.core.encoding import b64u_decode
from aos.core.statements import Params, Request
from aos.engine import load_engine
from aos.errors import ConfigError
from aos.ports import Engine
from aos.workers.execution import sampling_params
from aos.workers.opml_main import OpmlBackend, prefix_scope

PARALLEL = 8
NATIVE = ("--engine", "native", "--parallel", str(PARALLEL), "--share-prefixes", "user")


@pytest.fixture(scope="module")
def engine() -> Engine:
    from integration.test_workers import MODEL

    return load_engine(MODEL, kind="native")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    process = started(tmp_path_factory.mktemp("parallel"), "opml", *NATIVE)
    yield Worker(process, url_of(process))
    process.stop()


def params(number: int) -> Params:
    return replace(GREEDY, temperature=1_000_000 * (number % 2), max_tokens=12 + number)


def asked(engine: Engine, number: int) -> Request:
    request = request_of("opml", engine, params(number), user=f"user {number % 3}")
    return replace(request, job=replace(request.job, prompt=f"What is AI? {'What is it? ' * (number % 4)}"))


def test_eight_streams_at_a_time_have_the_roots_of_eight_runs_alone(worker: Worker, engine: Engine) -> None:
    assert (worker.status()["capacity"], worker.status()["busy"]) == (PARALLEL, 0)
    bodies = [question(asked(engine, number)) for number in range(PARALLEL)]
    begun = threading.Barrier(PARALLEL)

    def ask(number: int) -> list[dict[str, Any]]:
        begun.wait()
        return worker.ask(bodies[number])

    with ThreadPoolExecutor(PARALLEL) as pool:
        for _ in range(2):  # the second time with every prefix known
            answers = list(pool.map(ask, range(PARALLEL)))
            for number, (*tokens, result) in enumerate(answers):
                request = asked(engine, number)
                alone = engine.generate(
                    request.job.prompt,
                    sampling_params(request.job.params, "77"),
                    salt=b64u_decode(bodies[number]["nonce"]),
                )
                assert [event["token"] for event in tokens] == list(alone.tokens) == result["tokens"]
                assert b64u_decode(result["state_root"]) == alone.state_root
                assert (result["text"], result["finish_reason"]) == (alone.text, alone.finish_reason)
                check = worker.ask(bodies[number] | {"role": "checker", "tokens": result["tokens"]})
                assert check[-1]["state_root"] == result["state_root"]


def test_one_more_than_it_can_is_told_to_come_back_and_who_goes_makes_room(
    worker: Worker, engine: Engine
) -> None:
    body = question(request_of("opml", engine, ENDLESS))
    cancelled = worker.runs("cancelled")
    release = threading.Event()
    streaming = threading.Barrier(PARALLEL + 1)

    def hold() -> None:
        with worker.stream(body) as answer:
            lines = answer.iter_lines()  # kept: the response closes with it
            assert json.loads(next(lines))["index"] == 0
            streaming.wait()
            release.wait()

    with ThreadPoolExecutor(PARALLEL) as pool:
        held = [pool.submit(hold) for _ in range(PARALLEL)]
        streaming.wait()
        assert worker.status()["busy"] == PARALLEL
        refused = worker.post(body)
        assert (refused.status_code, refused.json()["error"]) == (429, "worker.busy")
        release.set()
        for job in held:
            job.result()
    wait_for(lambda: worker.status()["busy"] == 0, "the runs end when their clients go")
    assert worker.runs("cancelled") == cancelled + PARALLEL
    assert worker.ask(question(asked(engine, 1)))[-1]["event"] == "result"


def test_a_bad_question_among_others_is_refused_alone(worker: Worker, engine: Engine) -> None:
    long = asked(engine, 2)
    long = replace(long, job=replace(long.job, prompt="What is AI? " * 1_000))

    def ask(number: int) -> int:
        body = question(long if number % 2 else asked(engine, 2))
        answer = worker.post(body)
        if number % 2:
            assert answer.json()["error"] == "engine.prompt_too_long"
        return answer.status_code

    with ThreadPoolExecutor(PARALLEL) as pool:
        assert list(pool.map(ask, range(PARALLEL))) == [200, 400] * (PARALLEL // 2)


def test_a_killed_worker_leaves_nothing(tmp_path: Path, engine: Engine) -> None:
    process = started(tmp_path, "opml", *NATIVE)
    worker = Worker(process, url_of(process))
    pid = process.pid
    assert pid is not None
    with worker.stream(question(request_of("opml", engine, ENDLESS))) as answer:
        next(answer.iter_lines())
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not alive(pid), "the process is gone")
    assert children == []
    process.stop()


def test_an_engine_that_runs_one_at_a_time_is_not_given_more(engine: Engine) -> None:
    with pytest.raises(ConfigError) as refused:
        OpmlBackend(engine, model="m", capacity=2)
    assert refused.value.code == "worker.parallel"
    with pytest.raises(ConfigError):
        OpmlBackend(engine, model="m", share_prefixes="user")


def test_prefixes_are_shared_by_one_user_or_one_project_and_nobody_else(engine: Engine) -> None:
    request = request_of("opml", engine)
    other_user = replace(request, user="someone else")
    other_project = replace(request, project="another")
    assert prefix_scope(request, "user") != prefix_scope(other_user, "user")
    assert prefix_scope(request, "project") == prefix_scope(other_user, "project")
    for scope in ("user", "project"):
        assert prefix_scope(request, scope) != prefix_scope(other_project, scope)
        assert prefix_scope(request, scope) != prefix_scope(replace(request, network="other"), scope)
    assert prefix_scope(request, "user") != prefix_scope(request, "project")
