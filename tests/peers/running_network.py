"""A whole local network from outside: asking it as a client, killing its processes, and reading its databases.

The databases are read behind the programs' backs: what the interface says of a job must be what the tables hold.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx

from aos.client import Accepted, Submission
from aos.core.hashes import job_ref
from aos.core.receipt import Report, verify_answer
from aos.core.trust import load_policy, read_trust
from aos.local.network import RunningNetwork

PARAMS = {"temperature": 1.0, "top_p": 0.5, "max_tokens": 200}
QUESTIONS = ("What is AI?", "What is a receipt?", "Explain VRF sortition", "What is a TEE?")


def submit(network: RunningNetwork, prompt: str, job_type: str = "opml", **more: Any) -> Accepted:
    seats = more.pop("min_operators", 3 if job_type == "opml" else None)
    submission = Submission(
        prompt=prompt,
        model=network.model_name,
        job_type=job_type,
        params=PARAMS | more.pop("params", {}),
        min_operators=seats,
        **more,
    )
    with network.client() as client:
        return client.submit(submission)


def follow(network: RunningNetwork, job_id: str, *, first_text: threading.Event | None = None) -> str:
    """The job's last status; ``first_text`` is set when the first text arrives."""
    with network.client() as client:
        for event in client.events(job_id):
            if event.kind == "text" and first_text is not None:
                first_text.set()
            if event.kind == "done":
                return str(event.data["status"])
    raise AssertionError("the events ended without `done`")


def judge(network: RunningNetwork, job_id: str) -> Report:
    with network.client() as client:
        answer = client.answer(job_id)
    trust = read_trust(network.trust_path.read_bytes())
    return verify_answer(answer, trust=trust, policy=load_policy(trust.policy))


def rows_of(network: RunningNetwork, job_id: str) -> list[dict[str, Any]]:
    with network.client() as client:
        rows: list[dict[str, Any]] = client.result(job_id)
    return rows


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    ticker = threading.Event()
    for _ in range(int(timeout_s / 0.2)):
        if condition():
            return
        ticker.wait(0.2)
    raise AssertionError("the condition did not come true")


# --- killing


def pid_of(network: RunningNetwork, name: str) -> int:
    """The process id of a supervised process, or of the TEE worker's ``enclave``."""
    if name != "enclave":
        pid = network.processes[name].pid
        assert pid is not None
        return pid
    listen = network.processes["operator-tee-1-worker"].argv
    url = f"http://{listen[listen.index('--listen') + 1]}/api/v1/status"
    token = (network.trust_path.parent / "operator-tee-1" / "worker.token").read_text().strip()
    answer = httpx.get(url, headers={"authorization": f"Bearer {token}"}, timeout=30)
    return int(answer.json()["result"]["enclave"]["pid"])


def kill(network: RunningNetwork, victim: str) -> None:
    """SIGKILL, as a crash would end it; the supervisor starts it again. ``connections``: every one to PostgreSQL."""
    if victim == "redis":
        network.redis.kill()
    elif victim == "redis-data":
        network.redis.flush()
    elif victim == "postgres":
        network.postgres.kill()
    elif victim == "connections":
        query(
            network,
            "dispatcher",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )
    else:
        os.kill(pid_of(network, victim), signal.SIGKILL)


# --- the databases


def query(network: RunningNetwork, database: str, sql: str, *values: object) -> list[asyncpg.Record]:
    """Rows of one database, on a connection of our own."""

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(network.postgres.url(database))
        try:
            rows: list[asyncpg.Record] = await connection.fetch(sql, *values)
            return rows
        finally:
            await connection.close()

    return asyncio.run(run())


def operators(network: RunningNetwork) -> dict[str, str]:
    """Database of each operator, by its name."""
    names = (name for name in network.processes if name.startswith("operator-"))
    return {name: name.replace("-", "_") for name in names if not name.endswith("-worker")}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What both sides' tables hold of some jobs."""

    runs: list[asyncpg.Record]
    results: list[asyncpg.Record]
    strays: list[asyncpg.Record]
    seats: list[asyncpg.Record]
    assignments: dict[tuple[str, bytes, int], asyncpg.Record]


def outcome_of(network: RunningNetwork, job_ids: list[str]) -> Outcome:
    runs = query(network, "dispatcher", "SELECT * FROM run WHERE job_id = ANY($1)", job_ids)
    results = query(
        network,
        "dispatcher",
        "SELECT r.*, c.core, c.countersign IS NOT NULL AS countersigned FROM result r JOIN receipt c USING (receipt_id)"
        " WHERE r.job_id = ANY($1)",
        job_ids,
    )
    strays = query(
        network,
        "dispatcher",
        "SELECT job_id, attempt, node_id FROM receipt WHERE job_id = ANY($1) AND countersign IS NOT NULL"
        " AND receipt_id NOT IN (SELECT receipt_id FROM result)",
        job_ids,
    )
    seats = query(network, "dispatcher", "SELECT * FROM seat WHERE job_id = ANY($1)", job_ids)
    refs = [job_ref(job_id) for job_id in job_ids]
    assignments: dict[tuple[str, bytes, int], asyncpg.Record] = {}
    for database in operators(network).values():
        (node,) = query(network, database, "SELECT node_id FROM node_state")
        for row in query(network, database, "SELECT * FROM assignment WHERE job_ref = ANY($1)", refs):
            assignments[node["node_id"], row["job_ref"], row["attempt"]] = row
        assert query(network, database, "SELECT kind FROM evidence") == [], "nobody contradicted itself"
    return Outcome(runs=runs, results=results, strays=strays, seats=seats, assignments=assignments)


def assert_exactly_once(network: RunningNetwork, jobs: Iterable[Accepted]) -> None:
    """Every job has one run, ended well, with one result set: the revealed seats of the run's last attempt, each with
    the very receipt that its operator stored; nothing else was ever countersigned, and no operator still works on it."""
    job_ids = [job.job_id for job in jobs]

    def settled() -> bool:
        try:
            states = {row["state"] for row in outcome_of(network, job_ids).assignments.values()}
        except (OSError, asyncpg.PostgresError):  # killed a moment ago, not back yet
            return False
        return not states & {"stored", "executed", "revealing"}

    wait_until(settled, 90)
    found = outcome_of(network, job_ids)
    assert sorted(run["job_id"] for run in found.runs) == sorted(job_ids), "one run a job, none lost"
    assert found.strays == []
    for run in found.runs:
        job_id, attempt = run["job_id"], run["attempt"]
        assert (run["tag"], run["position"]) == ("", "")
        assert run["state"] in ("agreed", "single"), (run["state"], run["error_code"])
        rows = [row for row in found.results if row["job_id"] == job_id]
        assert rows, "no result"
        assert {(row["tag"], row["position"], row["attempt"]) for row in rows} == {("", "", attempt)}
        assert all(row["countersigned"] for row in rows)
        revealed = [
            seat["node_id"]
            for seat in found.seats
            if (seat["job_id"], seat["attempt"], seat["standing"]) == (job_id, attempt, "revealed")
        ]
        assert sorted(row["node_id"] for row in rows) == sorted(revealed)
        for row in rows:
            held = found.assignments[row["node_id"], job_ref(job_id), attempt]
            assert held["state"] == "done"
            stored = {"statement": json.loads(held["receipt"]), "signature": held["receipt_signature"]}
            assert stored == json.loads(row["core"]), "one receipt, signed once"
        assert sorted(row["node_id"] for row in rows) == sorted(
            r["operator"] for r in rows_of(network, job_id)
        )
