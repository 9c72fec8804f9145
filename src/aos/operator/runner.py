"""Between the Redis stream and the workers: one runner for each worker URL, one job at a time.

A runner takes an entry, asks its worker, stores what comes, and only then takes the entry off the stream. Where
the worker dies, the entry is released and any runner claims it, this one included once its worker is back.
Redis is never believed: what is on the stream and finished in PostgreSQL is dropped, and ``Reconciler`` puts
back what is unfinished in PostgreSQL and not on the stream.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import structlog

from aos.adapters.causal_clock import CausalClock
from aos.adapters.redis_queue import Entry, RedisQueue
from aos.core.codec import encode
from aos.core.encoding import b64u_decode, b64u_encode
from aos.errors import AOSError, InvalidMessage, RuleViolation, Unavailable, VerificationError
from aos.operator.identity import Identity
from aos.operator.metrics import Metrics
from aos.operator.network import Network
from aos.operator.results import ChunkWriter, check_result, commit_result
from aos.operator.rows import Assignment
from aos.operator.store import Store
from aos.operator.tasks import end_tasks
from aos.operator.worker_client import ResultLine, WorkerBusy, WorkerClient, WorkerDied, WorkerStatus

log = structlog.get_logger("aos.operator")

TOUCH_EVERY_S = 1.0
IDLE_MS = 5_000
SOON_S = 0.5
WAIT_MS = 500
MAX_CRASHES = 5
MAX_PASSED_OVER = 1_000
_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)

JobKey = tuple[bytes, int]


class Board:
    """What is running in this process, and how often a job has taken its worker down."""

    def __init__(self) -> None:
        self._running: dict[JobKey, asyncio.Event] = {}
        self._crashes: dict[JobKey, int] = {}

    @property
    def running(self) -> frozenset[JobKey]:
        return frozenset(self._running)

    def stop(self, job_ref: bytes, attempt: int) -> None:
        """End a run that is under way; its result is not wanted."""
        event = self._running.get((job_ref, attempt))
        if event is not None:
            event.set()

    @asynccontextmanager
    async def run(self, key: JobKey) -> AsyncIterator[asyncio.Event]:
        """Mark ``key`` as running; the event is set when the run must end."""
        event = self._running[key] = asyncio.Event()
        try:
            yield event
        finally:
            del self._running[key]

    def crashed(self, key: JobKey) -> int:
        self._crashes[key] = self._crashes.get(key, 0) + 1
        return self._crashes[key]

    def forget(self, key: JobKey) -> None:
        self._crashes.pop(key, None)


class Runner:
    """One worker's runner. ``clock`` is asked for when a commit is signed: there is none before the first link.
    ``may_run`` says whether a worker in this state may be given a job."""

    def __init__(
        self,
        client: WorkerClient,
        *,
        store: Store,
        queue: RedisQueue,
        board: Board,
        identity: Identity,
        network: Callable[[], tuple[Network, CausalClock] | None],
        wake: Callable[[], None],
        metrics: Metrics,
        now_ms: Callable[[], int],
        may_run: Callable[[WorkerStatus], bool] = lambda _: True,
    ) -> None:
        self.client = client
        self._may_run = may_run
        self._store = store
        self._queue = queue
        self._board = board
        self._identity = identity
        self._network = network
        self._wake = wake
        self._metrics = metrics
        self._now_ms = now_ms
        self._failures = 0
        self._resumed = False
        self.consumer = client.name
        self.status: WorkerStatus | None = None
        self.last_status: WorkerStatus | None = None
        self.error = "not asked yet"

    @property
    def ready(self) -> bool:
        """Does the worker answer, has it a model, and, where it has an enclave, an accepted boot?"""
        return self.status is not None and self.status.model_id != b"" and self._may_run(self.status)

    async def run(self) -> None:
        """Work until cancelled; ends only with an error that is nobody's but ours."""
        while True:
            try:
                if await self._check_worker():
                    await self._once()
                    self._failures = 0
                elif self.status is not None:  # it only lacks its model, its boot or our link: soon there
                    await asyncio.sleep(SOON_S)
                else:
                    await self._pause()
            except WorkerBusy as error:
                await asyncio.sleep(error.retry_after_s)
            except (Unavailable, InvalidMessage) as error:
                self._log_trouble(error)
                await self._pause()

    async def _check_worker(self) -> bool:
        try:
            self.status = self.last_status = await self.client.status()
        except AOSError as error:
            if not self.error:
                log.warning("worker.unavailable", worker=self.consumer, code=error.code)
            self.status, self.error = None, error.message
            return False
        if self.error:
            log.info("worker.available", worker=self.consumer, model=self.status.model, kind=self.status.kind)
        self.error = ""
        return self.ready and self._network() is not None

    async def _pause(self) -> None:
        await asyncio.sleep(_PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)])
        self._failures += 1

    def _log_trouble(self, error: AOSError) -> None:
        log.warning("runner.waits", worker=self.consumer, code=error.code, message=error.message)

    async def _once(self) -> None:
        entry: Entry | None = None
        if not self._resumed:  # this process has just begun: what its consumer holds is nobody's work now
            entry = await self._queue.held(self.consumer)
            self._resumed = entry is None
        if entry is None:
            entry = await self._queue.claim(self.consumer, idle_ms=IDLE_MS)
        for _ in range(MAX_PASSED_OVER):
            if entry is None:
                entry = await self._queue.next(self.consumer, wait_ms=WAIT_MS)
            if entry is None:
                return
            key = _read_entry(entry)
            held = None if key is None else await self._store.assignment(*key)
            if key is None or held is None or held.state != "stored":
                await self._queue.finish(entry.id)
                return
            if key in self._board.running:  # a second entry for a job that runs: the first one decides
                await self._queue.finish(entry.id)
                return
            if self.status is not None and held.model_id == self.status.model_id:
                await self._work(entry, held)
                return
            # Another worker's model: what waits behind it must not wait for that worker.
            await self._queue.release(self.consumer, entry.id)
            entry = await self._queue.claim(self.consumer, idle_ms=IDLE_MS, after=entry.id)

    async def _work(self, entry: Entry, held: Assignment) -> None:
        """Run one job; on return or error the entry is either finished or released."""
        try:
            async with self._board.run(held.key) as stop, self._touching(entry):
                ended = await self._execute_or_stop(held, stop)
        except Unavailable as error:
            with suppress(Unavailable):
                await self._queue.release(self.consumer, entry.id)
            if isinstance(error, WorkerDied) and self._board.crashed(held.key) >= MAX_CRASHES:
                await self._fail(
                    held, "worker.crashed", f"the worker went away {MAX_CRASHES} times in this job"
                )
                ended = True
            else:
                raise
        if ended:
            self._board.forget(held.key)
            self._wake()
            # A Redis that is away now will offer the entry again; it is then seen to be finished.
            with suppress(Unavailable):
                await self._queue.finish(entry.id)

    async def _execute_or_stop(self, held: Assignment, stop: asyncio.Event) -> bool:
        work: asyncio.Task[None] = asyncio.create_task(self._execute(held))
        stopped = asyncio.create_task(stop.wait())
        try:
            done: set[asyncio.Task[Any]] = set()
            while not done and (left_ms := await self._time_left(held)) > 0:
                done, _ = await asyncio.wait(
                    {work, stopped}, timeout=left_ms / 1000, return_when=asyncio.FIRST_COMPLETED
                )
            if work.done():
                await work
        finally:
            await end_tasks([work, stopped])
        if not done:
            await self._fail(held, "run.deadline", "the deadline passed before the worker had answered")
        return True

    async def _time_left(self, held: Assignment) -> int:
        """Milliseconds; the dispatcher may have put the deadline off since the job was taken."""
        now = await self._store.assignment(held.job_ref, held.attempt)
        return (held if now is None else now).deadline - self._now_ms()

    async def _execute(self, held: Assignment) -> None:
        context = self._network()
        if context is None:
            raise Unavailable("operator.not_connected", "the dispatcher has not named its network yet")
        network, clock = context
        if not await self._store.begin(
            held.job_ref, held.attempt, worker=self.consumer, now_ms=self._now_ms()
        ):
            return
        log.info("job.started", job_ref=b64u_encode(held.job_ref), attempt=held.attempt, role=held.role)
        started = self._now_ms()
        try:
            result = await self._ask(held, network)
            check_result(held, result, node_id=self._identity.node_id)
        except (RuleViolation, VerificationError, InvalidMessage) as error:
            await self._fail(held, error.code, error.message)
            return
        if await commit_result(
            self._store,
            self._identity,
            network,
            clock=clock,
            held=held,
            result=result,
            now_ms=self._now_ms(),
        ):
            self._metrics.executed.labels(role=held.role).inc()
            self._metrics.tokens.inc(len(result.tokens))
            self._metrics.seconds.observe((self._now_ms() - started) / 1000)
            log.info(
                "job.executed",
                job_ref=b64u_encode(held.job_ref),
                attempt=held.attempt,
                n_out=len(result.tokens),
            )

    async def _ask(self, held: Assignment, network: Network) -> ResultLine:
        question = {
            "job_ref": b64u_encode(held.job_ref),
            "attempt": held.attempt,
            "operator": self._identity.node_id,
            "role": held.role,
            "request": held.request.decode(),
            "nonce": b64u_encode(held.nonce),
            "sampling_seed": held.sampling_seed,
        }
        writer: ChunkWriter | None = None
        if held.role == "checker" and held.stream is not None:
            question["tokens"] = held.stream["tokens"]
        if held.role == "executor":
            writer = ChunkWriter(self._store, self._identity, network, held, wake=self._wake)
            await writer.open()
        async with aclosing(self.client.ask(question)) as lines:
            async for line in lines:
                if isinstance(line, ResultLine):
                    if writer is not None:
                        await writer.finish(line)
                    return line
                if writer is not None:
                    await writer.token(line)
        raise WorkerDied("the worker ended its answer before the result")

    async def _fail(self, held: Assignment, code: str, message: str) -> None:
        if await self._store.failed(held.job_ref, held.attempt, code, message[:500]):
            self._metrics.failed.labels(code=code).inc()
            log.warning("job.failed", job_ref=b64u_encode(held.job_ref), attempt=held.attempt, code=code)
            self._wake()

    @asynccontextmanager
    async def _touching(self, entry: Entry) -> AsyncIterator[None]:
        async def touch() -> None:
            while True:
                await asyncio.sleep(TOUCH_EVERY_S)
                with suppress(Unavailable):
                    await self._queue.touch(self.consumer, entry.id)

        task = asyncio.create_task(touch())
        try:
            yield
        finally:
            await end_tasks([task])


class Reconciler:
    """Puts on the stream what PostgreSQL holds unfinished and the stream does not: new jobs, and all after a loss.

    A job whose deadline passes while it waits is failed by name; ``owed`` is called when one was.
    """

    def __init__(
        self,
        store: Store,
        queue: RedisQueue,
        board: Board,
        *,
        owed: Callable[[], None],
        now_ms: Callable[[], int],
        metrics: Metrics,
        every_s: float = 2.0,
    ) -> None:
        self._store = store
        self._queue = queue
        self._board = board
        self._owed = owed
        self._now_ms = now_ms
        self._metrics = metrics
        self._every_s = every_s
        self._signal = asyncio.Event()
        self.queue_error = "not asked yet"

    def wake(self) -> None:
        """There is a new job."""
        self._signal.set()

    async def run(self) -> None:
        """Reconcile when woken and every few seconds, until cancelled."""
        while True:
            self._signal.clear()
            try:
                await self.reconcile()
                if self.queue_error:
                    log.info("queue.available")
                self.queue_error = ""
            except Unavailable as error:
                if not self.queue_error or self.queue_error == "not asked yet":
                    log.warning("queue.waits", code=error.code, message=error.message)
                self.queue_error = error.message
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._signal.wait()

    async def reconcile(self) -> int:
        """Fail what is overdue, add what is missing; how many entries that were. Raises Unavailable."""
        waiting = [
            held for held in await self._store.in_state("stored") if held.key not in self._board.running
        ]
        overdue = [held for held in waiting if held.deadline <= self._now_ms()]
        for held in overdue:
            await self._overdue(held)
        await self._queue.prepare()
        added = 0
        for held in waiting:
            if held in overdue:
                continue
            if held.queue_entry is not None and await self._queue.holds(held.queue_entry):
                continue
            entry = await self._queue.add(
                {"job_ref": b64u_encode(held.job_ref), "attempt": str(held.attempt)}
            )
            await self._store.set_queue_entry(held.job_ref, held.attempt, entry)
            added += 1
        return added

    async def _overdue(self, held: Assignment) -> None:
        code, message = "run.deadline", "the deadline passed before a worker was free"
        if await self._store.failed(held.job_ref, held.attempt, code, message):
            self._metrics.failed.labels(code=code).inc()
            log.warning("job.failed", job_ref=b64u_encode(held.job_ref), attempt=held.attempt, code=code)
            self._owed()


def _read_entry(entry: Entry) -> JobKey | None:
    """The key that an entry names; None for an entry that nobody of us wrote."""
    try:
        job_ref = b64u_decode(entry.fields["job_ref"], length=32)
        attempt = int(entry.fields["attempt"])
    except (KeyError, ValueError, InvalidMessage):
        return None
    return (job_ref, attempt) if 1 <= attempt < 2**31 else None


def describe_worker(runner: Runner) -> dict[str, object]:
    """One worker's line in the operator's status."""
    status = runner.status
    return {
        "url": runner.consumer,
        "ok": status is not None,
        "error": runner.error,
        **({} if status is None else {k: v for k, v in encode(status).items() if k != "url"}),
    }
