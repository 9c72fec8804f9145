"""kill -9 in the middle of the work: every accepted job ends in exactly one result set, none is lost.

Checked at the interface, in the receipts, and in the tables of both sides (``assert_exactly_once``).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import httpx
import pytest
from peers.running_network import (
    QUESTIONS,
    assert_exactly_once,
    follow,
    judge,
    kill,
    operators,
    pid_of,
    query,
    submit,
    wait_until,
)

from aos.client import Accepted
from aos.core.hashes import job_ref
from aos.local.network import RunningNetwork

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(290)]

VICTIMS = (
    ("dispatcher",),
    ("operator-1",),
    ("operator-2-worker",),
    ("operator-tee-1",),
    ("operator-tee-1-worker",),
    ("enclave",),
    ("redis",),
    ("redis-data",),
    ("postgres",),
    ("connections",),
    ("operator-1", "connections"),
    ("dispatcher", "redis"),
    ("operator-2", "operator-2-worker"),
    ("operator-tee-1", "enclave"),
    ("postgres", "dispatcher"),
)
EVERYTHING = sorted({name for names in VICTIMS for name in names})


def answered(
    network: RunningNetwork, jobs: list[Accepted], meanwhile: Callable[[threading.Event], None]
) -> None:
    """Follow all jobs to their verified end; ``meanwhile`` is given an event that says: the first text is there."""
    started = threading.Event()
    with ThreadPoolExecutor(len(jobs)) as pool:
        ends = [pool.submit(follow, network, job.job_id, first_text=started) for job in jobs]
        meanwhile(started)
        assert [end.result() for end in ends] == ["verified"] * len(jobs)
    assert_exactly_once(network, jobs)
    for job in jobs:
        assert judge(network, job.job_id).verdict == "VERIFIED"


@pytest.mark.parametrize("victims", VICTIMS, ids="+".join)
def test_killed_in_the_middle_of_its_work_nothing_is_lost_and_nothing_comes_twice(
    network: RunningNetwork, victims: tuple[str, ...]
) -> None:
    tee_only = victims[-1] == "enclave"
    kinds = ["tee" if tee_only or i % 3 == 2 else "opml" for i in range(3 if tee_only else 6)]
    jobs = [submit(network, QUESTIONS[i % len(QUESTIONS)], kind) for i, kind in enumerate(kinds)]

    def strike(started: threading.Event) -> None:
        assert started.wait(60)
        for victim in victims:
            kill(network, victim)

    answered(network, jobs, strike)


@contextlib.contextmanager
def stopped(network: RunningNetwork, name: str) -> Iterator[None]:
    """The process stands still meanwhile."""
    pid = pid_of(network, name)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    "victims", [("operator-1",), ("dispatcher",), ("operator-1", "dispatcher"), ("postgres",)], ids="+".join
)
def test_killed_between_commit_and_reveal(network: RunningNetwork, victims: tuple[str, ...]) -> None:
    # A blind run: all three seats generate. The third one's worker stands still from before the draw until after the kills,
    # so that no commit set can be signed.
    databases = operators(network)

    def state(name: str) -> str:
        rows = query(network, databases[name], "SELECT state FROM assignment WHERE job_ref = $1", ref)
        return rows[0]["state"] if rows else ""

    with contextlib.ExitStack() as still:
        still.enter_context(stopped(network, "operator-3-worker"))
        job = submit(network, "What is AI?", blind=True)
        ref = job_ref(job.job_id)

        def strike(_: threading.Event) -> None:
            wait_until(lambda: state("operator-1") == "committed")
            assert state("operator-3") == "stored", "it is seated, has not committed, and cannot now"
            for victim in victims:
                kill(network, victim)
            still.close()
            assert len(query_when_back(network, ref)) == 1

        answered(network, [job], strike)


def query_when_back(network: RunningNetwork, ref: bytes) -> list[object]:
    """The commit that operator 1 had stored before it was killed is there after it."""
    found: list[object] = []

    def asked() -> bool:
        with contextlib.suppress(OSError, asyncpg.PostgresError):  # killed a moment ago, not back yet
            rows = query(
                network,
                "operator_1",
                "SELECT commit_hash FROM assignment WHERE job_ref = $1 AND commit_ack IS NOT NULL",
                ref,
            )
            found[:] = [row["commit_hash"] for row in rows]
            return True
        return False

    wait_until(asked)
    return found


@pytest.mark.parametrize("seed", [20_261])
def test_killed_at_random_moments_over_many_jobs(network: RunningNetwork, seed: int) -> None:
    rng = random.Random(seed)  # which process, and when
    jobs = [
        submit(
            network,
            QUESTIONS[i % len(QUESTIONS)],
            "tee" if i % 4 == 3 else "opml",
            min_operators=1 if i % 4 == 3 else 2,
            params={"max_tokens": 48},
        )
        for i in range(30)
    ]
    moments = threading.Event()

    def strike(started: threading.Event) -> None:
        assert started.wait(60)
        for _ in range(10):
            with contextlib.suppress(
                OSError, AssertionError, httpx.HTTPError, asyncpg.PostgresError
            ):  # down already
                kill(network, rng.choice(EVERYTHING))
            moments.wait(rng.uniform(0.0, 2.0))

    answered(network, jobs, strike)
