"""A run's moves through the table of ``aos.core.job``: compare and set, with the events that tell of them."""

import json
from collections.abc import Callable
from typing import Any

import structlog
from asyncpg import Record

from aos.adapters.causal_clock import CausalClock
from aos.adapters.postgres import Pool, unavailable
from aos.core.encoding import canonical_json
from aos.core.job import MAX_EXECUTIONS, STATUS, TERMINAL, RunEvent, RunState, next_state
from aos.dispatcher.asking import POLL_S, Asking
from aos.dispatcher.events import Events
from aos.dispatcher.registry import now_ms

log = structlog.get_logger("aos.dispatcher")

NO_OPERATOR_PAUSE_MS = 1_000
WITHHELD = (
    "UPDATE seat SET standing = 'withheld' WHERE job_id = $1 AND attempt = $2 AND standing = 'committed'"
)


class Moves:
    """Changes the state of runs; everything else that a step stores goes into the same transaction."""

    def __init__(
        self,
        pool: Pool,
        clock: CausalClock,
        events: Events,
        asking: Asking,
        wake: Callable[[int], None],
        moved: Callable[[int, RunState], None],
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._events = events
        self._asking = asking
        self._wake = wake
        self._moved = moved

    async def move(self, db: Any, run: Record, event: RunEvent, **members: Any) -> bool:
        """Compare and set; tells the followers of a first run. False where the run has moved meanwhile."""
        target = next_state(run["state"], event)
        names = ", ".join(f"{name} = ${i}" for i, name in enumerate(members, start=5))
        done = await db.execute(
            f"UPDATE run SET state = $3, clock = $4{', ' + names if names else ''} WHERE run_id = $1 AND state = $2",  # noqa: S608
            run["run_id"],
            run["state"],
            target,
            json.dumps(self._clock.now.to_json()),
            *members.values(),
        )
        if done == "UPDATE 0":
            return False
        if run["position"] != "before" and STATUS[target] != STATUS[run["state"]] and target not in TERMINAL:
            status = {"status": STATUS[target], "attempt": members.get("attempt", run["attempt"])}
            await self._events.add(db, run["job_id"], "status", status)
        self._moved(run["run_id"], target)
        log.info("run.moved", run=run["run_id"], state=target, attempt=members.get("attempt", run["attempt"]))
        return True

    async def end(self, run: Record, event: RunEvent, code: str, message: str) -> None:
        """End a run without a result; the seated operators are told."""
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await self._end_in(db, run, event, code, message)
        self._events.tell(run["job_id"])
        if run["attempt"]:
            await self._asking.cancelled(run["job_id"], run["attempt"])

    async def _end_in(self, db: Any, run: Record, event: RunEvent, code: str, message: str) -> bool:
        if not await self.move(db, run, event, error_code=code, error_message=message):
            return False
        if run["position"] != "before":
            status = STATUS[next_state(run["state"], event)]
            data = {"status": status, "attempt": run["attempt"], "error": f"{message} [{code}]"}
            await self._events.add(db, run["job_id"], "done", data)
        return True

    async def fail_attempt(self, run: Record, code: str, message: str) -> None:
        """This attempt gave nothing: draw again, or give up after the third that reached an operator."""
        log.warning("attempt.failed", run=run["run_id"], attempt=run["attempt"], code=code)
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            if run["executions"] >= MAX_EXECUTIONS:
                moved = await self._end_in(db, run, "given_up", code, message)
            else:
                pause = NO_OPERATOR_PAUSE_MS if code == "draw.no_operator" else 0
                moved = await self.move(db, run, "attempt_failed", not_before=now_ms() + pause)
            if moved:
                await db.execute(
                    "UPDATE attempt SET failure = $3 WHERE job_id = $1 AND attempt = $2",
                    run["job_id"],
                    run["attempt"],
                    code,
                )
                if run["state"] == "committed":
                    await db.execute(WITHHELD, run["job_id"], run["attempt"])
        self._events.tell(run["job_id"])
        self._wake(run["run_id"])
        await self._asking.cancelled(run["job_id"], run["attempt"])


def pause_until_deadline(run: Record, now: int) -> float:
    """Seconds until the next look: the deadline, or the time after which a silent operator is asked again."""
    return min(POLL_S, float(run["deadline"] - now) / 1000)


def stored_json(value: object) -> str:
    """Canonical JSON as text, as the tables hold it."""
    return canonical_json(value).decode()
