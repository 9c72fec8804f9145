"""A running operator: its parts wired together, and what they know in one place.

The parts share nothing but the database, the stream and a few signals. Each waits and tries again where the world
fails; an error that is our own ends the process, and the next one continues from the database.
"""

import asyncio
import contextlib
import secrets
import signal
import socket
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, repeat
from typing import Any

import structlog
import uvicorn

from aos.adapters.link import now_ms
from aos.adapters.redis_queue import RedisQueue
from aos.core.encoding import b64u_encode
from aos.errors import AOSError, ConfigError, Unavailable
from aos.operator.attesting import Attesting
from aos.operator.audits import Audits
from aos.operator.chain import OperatorAccount
from aos.operator.chain_games import CourtGames
from aos.operator.config import OperatorConfig
from aos.operator.court import CourtClient
from aos.operator.disputes import Disputes
from aos.operator.draws import Refusal
from aos.operator.identity import Identity
from aos.operator.link_client import LinkClient
from aos.operator.metrics import Metrics
from aos.operator.network import Network, Registry
from aos.operator.outbox import Outbox
from aos.operator.rest import build_app
from aos.operator.rows import Assignment, NodeState
from aos.operator.runner import Board, Reconciler, Runner, describe_worker
from aos.operator.standing import RecentDraws, describe_last_draw, recent_draws, why_not_eligible
from aos.operator.store import Store
from aos.operator.tasks import end_tasks
from aos.operator.worker_client import WorkerClient

log = structlog.get_logger("aos.operator")

GROUP = "operator"
START_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
ERASE_EVERY_S = 60.0
SILENT_HOURS = 24


class OperatorNode:
    """One operator process."""

    def __init__(self, config: OperatorConfig, identity: Identity) -> None:
        self._config = config
        self._identity = identity
        self._owner = secrets.token_bytes(16)
        self._draining = False
        self._stop = asyncio.Event()
        self.metrics = Metrics()
        self._store: Store
        self._link: LinkClient
        self._reconciler: Reconciler
        self._attesting: Attesting
        self._runners: list[Runner]
        self._games: CourtGames | None = None

    def stop(self) -> None:
        """End ``run``; what is under way is continued by the next process."""
        self._stop.set()

    async def run(self) -> None:
        """Run until stopped or signalled.

        Raises ConfigError; RuleViolation ``operator.second_process``, ``operator.foreign_database``.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError, NotImplementedError):  # not the main thread
                loop.add_signal_handler(number, self.stop)
        opened = await self._open_store()
        if opened is None:
            return
        store, state = opened
        queue = RedisQueue(self._config.queue_url, topic=self._config.topic, group=GROUP)
        registry = Registry(store, url=self._config.dispatcher_http, node_id=self._identity.node_id)
        clients = [
            WorkerClient(url, token=self._config.worker_token, lane=lane)
            for lane in range(self._config.worker_parallel)
            for url in self._config.workers
        ]
        try:
            await self._run_parts(store, state, queue, registry, clients)
        finally:
            await asyncio.gather(
                queue.close(), registry.close(), store.close(), *(client.close() for client in clients)
            )
            log.info("operator.ended", node_id=self._identity.node_id)

    async def _open_store(self) -> tuple[Store, NodeState] | None:
        """The store, once PostgreSQL answers, taken for this process; None where it is stopped before."""
        for pause_s in chain(START_PAUSES_S, repeat(START_PAUSES_S[-1])):
            store: Store | None = None
            try:
                store = await Store.open(
                    self._config.pg_url,
                    min_size=self._config.pool_min,
                    max_size=self._config.pool_max,
                    connect_timeout_s=self._config.connect_timeout_s,
                    acquire_timeout_s=self._config.acquire_timeout_s,
                )
                return store, await store.claim_node(
                    self._identity.node_id, self._config.dispatcher_address, owner=self._owner
                )
            except AOSError as error:
                if store is not None:
                    await store.close()
                if not isinstance(error, Unavailable):
                    raise
                log.warning("store.waits", code=error.code, message=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()
            if self._stop.is_set():
                break
        return None

    async def _run_parts(
        self,
        store: Store,
        state: NodeState,
        queue: RedisQueue,
        registry: Registry,
        clients: list[WorkerClient],
    ) -> None:
        account = await OperatorAccount.open(self._config, self._identity)
        board = Board()
        settings = self._config.chain
        outbox = Outbox(
            store,
            self._identity,
            claim_hours=0 if settings is None else settings.claim_hours,
            now_ms=now_ms,
        )
        self._store = store
        self._draining = state.draining
        tee = self._config.node_type == "tee"
        self._attesting = Attesting(
            [client for client in clients if client.lane == 0] if tee else [], self._identity, now_ms=now_ms
        )
        self._reconciler = Reconciler(
            store, queue, board, owed=outbox.wake, now_ms=now_ms, metrics=self.metrics
        )
        court = CourtClient(self._config.dispatcher_http, self._identity, now_ms=now_ms)

        def network() -> Network | None:
            return None if (context := self._link.context()) is None else context[0]

        audits = Audits(
            store,
            self._identity,
            court=court,
            network=network,
            worker=self._worker_with,
            most=self._config.audit_mib << 20,
        )
        disputes = Disputes(
            store,
            self._identity,
            court=court,
            network=network,
            worker=self._worker_with,
            audited=audits.want,
        )
        self._link = LinkClient(
            self._config,
            self._identity,
            store,
            state,
            owner=self._owner,
            registry=registry,
            outbox=outbox,
            board=board,
            reconciler=self._reconciler,
            attesting=self._attesting,
            readiness=self._readiness,
            load=self._load,
            metrics=self.metrics,
            disputes=disputes,
            now_ms=now_ms,
            chain=account,
        )
        self._runners = [
            Runner(
                client,
                store=store,
                queue=queue,
                board=board,
                identity=self._identity,
                network=self._link.context,
                wake=outbox.wake,
                metrics=self.metrics,
                now_ms=now_ms,
                may_run=self._attesting.accepted if tee else lambda _: True,
            )
            for client in clients
        ]
        if account is not None and account.court is not None:
            self._games = CourtGames(store, self._identity, account, account.court, worker=self._worker_with)
        listener = _listen(self._config)
        server = _Server(
            uvicorn.Config(
                build_app(self),
                log_config=None,
                access_log=False,
                lifespan="off",
            )
        )
        log.info("operator.started", node_id=self._identity.node_id, workers=len(clients))
        parts = [
            self._link.run(),
            self._reconciler.run(),
            *(runner.run() for runner in self._runners),
            self._erase(),
            disputes.run(),
            audits.run(),
            server.serve(sockets=[listener]),
            self._stop.wait(),
            *([] if account is None else [account.keep()]),
            *([] if self._games is None else [self._games.run()]),
        ]
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await next(iter(done))
        finally:
            server.should_exit = True
            listener.close()
            await end_tasks(tasks)
            await court.close()
            if account is not None:
                await account.close()

    async def _erase(self) -> None:
        while True:
            try:
                silent = await self._store.give_up_silent(SILENT_HOURS)
                if silent:
                    log.warning("dispatcher.silent", jobs=silent)
                erased = await self._store.erase_content(self._config.retention_hours)
                if erased:
                    log.info("content.erased", jobs=erased)
            except Unavailable as error:
                log.warning("content.not_erased", code=error.code)
            await asyncio.sleep(ERASE_EVERY_S)

    # --- what the link asks

    def _serves(self, model_name: str) -> bool:
        return not self._config.models or model_name in self._config.models

    def _worker_with(self, model_id: bytes) -> WorkerClient | None:
        """A worker that has a model loaded and answers."""
        return next(
            (
                runner.client
                for runner in self._runners
                if runner.status is not None and runner.status.model_id == model_id
            ),
            None,
        )

    async def _readiness(self, job_type: str, model_id: bytes) -> Refusal:
        if self._draining:
            return "draining"
        if job_type != self._config.node_type:
            return "job_type"
        known = [
            runner
            for runner in self._runners
            if runner.last_status is not None
            and runner.last_status.model_id == model_id
            and self._serves(runner.last_status.model)
        ]
        if not known:
            return "model"
        if all(runner.status is None for runner in known):
            return "capacity"
        if job_type == "tee" and not self._attesting.holds(model_id):
            return "capacity"
        if await self._store.count_unfinished() >= self._config.max_held_jobs:
            return "capacity"
        return ""

    async def _load(self) -> dict[str, Any]:
        """The heartbeat: how many jobs could be taken, how many are held."""
        unfinished = await self._store.count_unfinished()
        self.metrics.queued.set(unfinished)
        return {
            "capacity": 0 if self._draining else max(self._config.max_held_jobs - unfinished, 0),
            "running": unfinished,
            "draining": self._draining,
        }

    # --- what a person asks

    async def problems(self) -> list[str]:
        """Why no job can be worked on now."""
        found: list[str] = []
        try:
            await self._store.ping()
        except Unavailable as error:
            found.append(error.message)
        if self._reconciler.queue_error:
            found.append(f"queue: {self._reconciler.queue_error}")
        if not self._link.status.connected:
            found.append(f"link: {self._link.status.problem}")
        if not self._runners:
            found.append("no worker is configured (net.workers)")
        elif all(runner.status is None for runner in self._runners):
            found += [f"worker {runner.consumer}: {runner.error}" for runner in self._runners]
        if self._attesting.problem:
            found.append(self._attesting.problem)
        return found

    async def status(self) -> dict[str, Any]:
        """Everything that `aos operator status` shows."""
        context = self._link.context()
        why_not = await self._why_not_eligible()
        problems = await self.problems()
        if why_not:
            problems.append(f"not eligible: {why_not}")
        if self._draining:
            problems.append("draining: takes part in no draws; `aos operator resume` ends it")
        court = None if self._games is None else await self._games.describe()
        if court is not None:
            problems += court.pop("problems")
        draws, jobs = await recent_draws(self._store), await self._store.count_jobs()
        connected = self._link.status.connected
        return {
            "state": _in_one_line(connected, problems, draws, jobs.get("done", 0)),
            "node_id": self._identity.node_id,
            "node": None if context is None else context[1].node,
            "node_type": self._config.node_type,
            "network": None if context is None else context[0].name,
            "dispatcher": self._config.dispatcher_address,
            "connected": connected,
            "connected_since_ms": self._link.status.since_ms,
            "eligible": not why_not,
            "draining": self._draining,
            "draws": asdict(draws),
            "last_draw": await describe_last_draw(self._store),
            "jobs": jobs,
            "unfinished": await self._store.count_unfinished(),
            "workers": [describe_worker(runner) for runner in self._runners],
            "court": court,
            "problems": problems,
        }

    async def jobs(self) -> list[dict[str, Any]]:
        """The newest jobs."""
        return [_describe(held) for held in await self._store.recent(self._config.rows_maximum)]

    async def drain(self) -> dict[str, Any]:
        """Decline draws from now on, until ``resume``; a process that follows this one goes on with it."""
        await self._store.set_draining(True)
        self._draining = True
        with contextlib.suppress(
            Unavailable
        ):  # without a link nobody draws this operator; declines say the rest
            await self._link.send_drain()
        return {"draining": True, "unfinished": await self._store.count_unfinished()}

    async def resume(self) -> dict[str, Any]:
        """Answer draws again."""
        await self._store.set_draining(False)
        self._draining = False
        return {"draining": False, "unfinished": await self._store.count_unfinished()}

    async def _why_not_eligible(self) -> str:
        context = self._link.context()
        return why_not_eligible(
            await self._store.latest_snapshot(),
            network=None if context is None else context[0],
            identity=self._identity,
            job_type=self._config.node_type,
            models={r.last_status.model_id for r in self._runners if r.last_status is not None} - {b""},
            now_ms=now_ms(),
        )


def _in_one_line(connected: bool, problems: list[str], draws: RecentDraws, credited: int) -> str:
    """What a person reads first."""
    if not connected or problems:
        return problems[0]
    taken = f"; {credited} receipts in the dispatcher's hands" if credited else ""
    return f"eligible; {draws.in_words()}{taken}"


def _describe(held: Assignment) -> dict[str, Any]:
    return {
        "job_ref": b64u_encode(held.job_ref),
        "attempt": held.attempt,
        "state": held.state,
        "role": held.role,
        "seat": held.seat,
        "worker": held.worker,
        "started_at": held.started_at,
        "finished_at": held.finished_at,
        "failure": held.failure_code,
    }


def _listen(config: OperatorConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.rest_host else socket.AF_INET
    try:
        return socket.create_server((config.rest_host, config.rest_port), family=family)
    except OSError as error:
        raise ConfigError(
            "config.rest_url",
            f"cannot listen on {config.rest_host}:{config.rest_port}: {error.strerror}",
            field="net.rest_url",
        ) from error


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the operator has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
