"""The run engine: moves every open run through the table of ``aos.core.job``, one step a transaction.

A task for each open run reads its row, does what its state asks for (``drawing``, ``collecting``), and waits for a message, a
connection or a deadline. Nothing is kept in memory that matters: a dispatcher killed at any point begins again from the rows.
What operators send comes in through ``aos.dispatcher.messages``.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from asyncpg import Record

from aos.adapters.causal_clock import CausalClock
from aos.adapters.postgres import Pool, unavailable
from aos.core.job import COLLECTED, RunState
from aos.dispatcher.asking import POLL_S, Asking
from aos.dispatcher.collecting import Collecting
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.drawing import PARKED_S, Drawing
from aos.dispatcher.events import Events
from aos.dispatcher.hub import Hub
from aos.dispatcher.moves import Moves
from aos.dispatcher.refusals import place
from aos.dispatcher.registry import Registry, now_ms
from aos.errors import Unavailable

log = structlog.get_logger("aos.dispatcher")

RESTART_GRACE_MS = 15_000
SLOTS = 64
TAKE_UP_S = 10.0


class Runs:
    """Drives every open run."""

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        registry: Registry,
        clock: CausalClock,
        events: Events,
        hub: Hub,
        *,
        moved: Callable[[int, RunState], None],
        ended: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._ended = ended
        self._pool = pool
        self._hub = hub
        self._moved = moved
        self._asking = Asking(pool, hub, self.wake)
        self.moves = Moves(pool, clock, events, self._asking, self.wake, moved)
        self.disputed: Callable[[int], Awaitable[None]] | None = None
        """Told of a run whose results differ."""
        self._drawing = Drawing(pool, config, registry, clock, events, self._asking, self.moves)
        self._collecting = Collecting(pool, config, clock, events, self._asking, self.moves)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._wakes: dict[int, asyncio.Event] = {}
        self._slots = asyncio.Semaphore(SLOTS)
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up every open run; deadlines that passed while nobody was here are put off once."""
        async with unavailable():
            await self._pool.execute(
                """UPDATE run SET deadline = greatest(deadline, $1)
                   WHERE state IN ('drawing', 'running', 'checking', 'committed')""",
                now_ms() + RESTART_GRACE_MS,
            )
        log.info("runs.taken_up", count=await self._take_up())
        self._sweeper = asyncio.create_task(self._sweep())

    async def _take_up(self) -> int:
        """Drive every open run that no task drives: those of before a restart, and those whose COMMIT was answered by nobody
        because PostgreSQL went away."""
        async with unavailable():
            rows = await self._pool.fetch(
                """SELECT run_id FROM run WHERE state IN
                   ('created', 'drawing', 'drawn', 'running', 'checking', 'committed') ORDER BY run_id"""
            )
        missing = [row["run_id"] for row in rows if row["run_id"] not in self._tasks]
        for run_id in missing:
            self.begin(run_id)
        return len(missing)

    async def stop(self) -> None:
        """End the tasks; the rows keep everything."""
        tasks = list(self._tasks.values())
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._asking.stop()

    def begin(self, run_id: int) -> None:
        """Drive a run that is new."""
        if run_id not in self._tasks:
            self._wakes[run_id] = asyncio.Event()
            self._tasks[run_id] = asyncio.create_task(self._drive(run_id))

    def wake(self, run_id: int) -> None:
        """Something came in for this run."""
        if run_id in self._wakes:
            self._wakes[run_id].set()

    def wake_all(self) -> None:
        """An operator connected: everybody looks whether it lacks something."""
        for event in self._wakes.values():
            event.set()

    @property
    def open(self) -> int:
        """Runs under way."""
        return len(self._tasks)

    async def cancelled(self, run_id: int, job_id: str, attempt: int) -> None:
        """A run was cancelled: tell the seated operators, as far as they are connected."""
        self._moved(run_id, "cancelled")
        await self._asking.cancelled(job_id, attempt)

    def forget(self, node_id: str) -> None:
        """An operator's link is new: what it was asked before may not have reached it."""
        self._asking.forget(node_id)

    async def _drive(self, run_id: int) -> None:
        try:
            parked = not self._hub.connected()
            while True:
                if parked:
                    await self._wait(run_id, PARKED_S)
                # Parked runs hold no slot: what nobody can serve does not stand in the way of what somebody can.
                async with self._slots:
                    parked = await self._work(run_id)
                if not parked:
                    return
        finally:
            self._tasks.pop(run_id, None)
            self._wakes.pop(run_id, None)
            self._ended(run_id)

    async def _work(self, run_id: int) -> bool:
        """Step until the run is over (False) or has to wait for an operator to connect (True)."""
        while True:
            self._wakes[run_id].clear()
            try:
                pause_s = await self._step(run_id)
            except Unavailable as error:
                log.warning("run.waits", run=run_id, code=error.code)
                pause_s = 0.5
            except Exception as error:
                # A defect must not leave an accepted job without an end: it is tried again until it expires.
                log.error("run.defect", run=run_id, **place(error))
                pause_s = 5.0
            if pause_s is None:
                return False
            if pause_s == PARKED_S:
                return True
            await self._wait(run_id, pause_s)

    async def _wait(self, run_id: int, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wakes[run_id].wait()
        except TimeoutError:
            return

    async def _sweep(self) -> None:
        """End what has expired without having a slot, and find what nobody drives."""
        taken_up = time.monotonic()
        while True:
            await asyncio.sleep(POLL_S)
            try:
                if time.monotonic() >= taken_up + TAKE_UP_S:
                    if (count := await self._take_up()) > 0:
                        log.warning("runs.taken_up", count=count)
                    taken_up = time.monotonic()
                async with unavailable():
                    rows = await self._pool.fetch(
                        """SELECT r.*, j.job_type, j.blind, j.model_id, j.job_ref FROM run r JOIN job j USING (job_id)
                           WHERE state = 'created' AND r.expires_at <= $1 LIMIT 100""",
                        now_ms(),
                    )
                for row in rows:
                    await self.moves.end(row, "expire", "job.expired", "the job's time is over")
                    self.wake(row["run_id"])
            except Unavailable as error:
                log.warning("sweep.waits", code=error.code)

    async def _step(self, run_id: int) -> float | None:
        """Do what the run's state asks for; seconds until it is worth another look, None at its end."""
        async with unavailable():
            run = await self._pool.fetchrow(
                "SELECT r.*, j.job_type, j.blind, j.model_id, j.job_ref FROM run r JOIN job j USING (job_id) WHERE run_id = $1",
                run_id,
            )
        assert run is not None  # noqa: S101  runs are never deleted
        state: RunState = run["state"]
        if state in COLLECTED:
            if state == "disputed" and self.disputed is not None:
                await self.disputed(run_id)
            return None
        now = now_ms()
        if now >= run["expires_at"]:
            await self.moves.end(run, "expire", "job.expired", "the job's time is over")
            return None
        if state == "created":
            if now < run["not_before"]:
                return float(run["not_before"] - now) / 1000
            return await self._drawing.call(run, now)
        attempt = await self._attempt(run)
        if state == "drawing":
            return await self._drawing.collect(run, attempt, now)
        if state == "drawn":
            return await self._collecting.dispatch(run, now)
        if state in ("running", "checking"):
            return await self._collecting.commits(run, attempt, now)
        return await self._collecting.reveals(run, attempt, now)

    async def _attempt(self, run: Record) -> Record:
        async with unavailable():
            row = await self._pool.fetchrow(
                "SELECT * FROM attempt WHERE job_id = $1 AND attempt = $2", run["job_id"], run["attempt"]
            )
        assert row is not None  # noqa: S101  written with the state that follows `created`
        return row
