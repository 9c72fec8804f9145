"""Keeping the link to the dispatcher (docs/spec/06-network.md, "Link"): connect, prove who we are, serve, and again.

Every message must be signed by the dispatcher's configured address. What the first connection says of the network
is pinned in the database. A lost link is dialled again with a growing, random pause; whatever was not acknowledged
is still in the database, so nothing is lost with the link.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from aos.adapters.causal_clock import CausalClock, next_incarnation
from aos.adapters.link import ClientWire, Link, open_link, origin_of
from aos.core.clock import ClockState
from aos.core.statements import Snapshot, verify_signed
from aos.errors import AOSError, RuleViolation, Unavailable, VerificationError
from aos.operator.assignments import Assignments
from aos.operator.attesting import Attesting
from aos.operator.config import OperatorConfig
from aos.operator.disputes import Disputes
from aos.operator.draws import Draws, Readiness
from aos.operator.identity import Identity
from aos.operator.metrics import Metrics
from aos.operator.network import (
    ChainReader,
    Network,
    Registry,
    check_court,
    check_pinned,
    get_document,
    public_client,
    read_network,
)
from aos.operator.outbox import Outbox
from aos.operator.rows import NodeState
from aos.operator.runner import Board, Reconciler
from aos.operator.store import Store
from aos.operator.tasks import end_tasks

log = structlog.get_logger("aos.operator")

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
STEADY_AFTER_S = 10.0
CLOSE_WITHIN_S = 5.0
REGISTRY_EVERY_S = 20.0
MAX_NETWORK_FILE_BYTES = 1 << 16

Load = Callable[[], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class LinkStatus:
    """What a person asks first: is it connected, since when, and if not, why not."""

    connected: bool = False
    since_ms: int | None = None
    problem: str = "not connected yet"
    snapshot_root: bytes = b""


class LinkClient:
    """One operator's connection to its dispatcher. ``load`` gives the heartbeat's members, ``owner`` names this
    process in the database."""

    def __init__(
        self,
        config: OperatorConfig,
        identity: Identity,
        store: Store,
        state: NodeState,
        *,
        owner: bytes,
        registry: Registry,
        outbox: Outbox,
        board: Board,
        reconciler: Reconciler,
        attesting: Attesting,
        readiness: Readiness,
        load: Load,
        metrics: Metrics,
        disputes: Disputes,
        now_ms: Callable[[], int],
        chain: ChainReader | None = None,
    ) -> None:
        self._chain = chain
        self._disputes = disputes
        self._config = config
        self._identity = identity
        self._store = store
        self._registry = registry
        self._outbox = outbox
        self._board = board
        self._reconciler = reconciler
        self._attesting = attesting
        self._readiness = readiness
        self._load = load
        self._metrics = metrics
        self._now_ms = now_ms
        self._owner = owner
        self._stored_clock = None if state.clock_state is None else ClockState.decode(state.clock_state)
        self._incarnation = next_incarnation(self._stored_clock.incarnation if self._stored_clock else 0)
        self._clock: CausalClock | None = None
        self._network = None if state.network_file is None else read_network(state.network_file)
        self._pinned = (state.network, state.dispatcher_vrf_key)
        self._handlers: dict[str, Callable[[object], Awaitable[dict[str, Any]]]] = {}
        self._link: Link | None = None
        self._opened_s: float | None = None
        self._superseded: RuleViolation | None = None
        self.status = LinkStatus()

    def context(self) -> tuple[Network, CausalClock] | None:
        """Network and clock, known since the first link of this process."""
        return None if self._network is None or self._clock is None else (self._network, self._clock)

    async def run(self) -> None:
        """Keep the link until cancelled. Raises RuleViolation ``operator.second_process``, never for a bad link."""
        pause_s = FIRST_PAUSE_S
        while True:
            self._opened_s = None
            try:
                await self._once()
            except AOSError as error:
                if self._superseded is not None:
                    raise self._superseded from error
                self._lost(error)
            loop_s = asyncio.get_running_loop().time()
            if self._opened_s is not None and loop_s - self._opened_s > STEADY_AFTER_S:
                pause_s = FIRST_PAUSE_S
            # Full jitter over the upper half: operators that lost one dispatcher do not come back at once.
            await asyncio.sleep(pause_s * (0.5 + secrets.randbelow(1001) / 2000))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def send_drain(self) -> None:
        """Tell the dispatcher, where there is a link, that no more draws are wanted."""
        if self._link is not None:
            await self._link.request("drain", {})

    def _lost(self, error: AOSError) -> None:
        self.status.problem = f"{error.message} [{error.code}]"
        self._metrics.connected.set(0)
        if self.status.connected or not isinstance(error, Unavailable):
            log.warning("link.lost", code=error.code, message=error.message)
        else:
            log.info("link.waits", code=error.code)
        self.status.connected, self.status.since_ms = False, None

    async def _once(self) -> None:
        """One link, from dialling to its end; always ends with an error."""
        name = self._config.network or self._pinned[0] or await self._ask_network()
        wire = await ClientWire.dial(self._config.dispatcher_link)
        try:
            link, ok = await open_link(
                wire,
                private_key=self._identity.signer_key,
                network=name,
                dispatcher=self._config.dispatcher_address,
                origin=origin_of(self._config.dispatcher_link),
                incarnation=self._incarnation,
                open_clock=self._open_clock,
                handle=self._handle,
            )
            network = await self._pin(ok)
            snapshot = verify_signed(
                Snapshot, ok["snapshot"], address=network.dispatcher, where="ok.snapshot"
            )
        except BaseException:
            await wire.close(1000, "")
            raise
        self.status.snapshot_root = snapshot.statement.root
        try:
            await self._registry.snapshot(network, snapshot.statement.root)
        except AOSError as error:
            log.warning("registry.unavailable", code=error.code, message=error.message)
        await self._serve(link, network)

    async def _serve(self, link: Link, network: Network) -> None:
        assert self._clock is not None  # noqa: S101  open_link has opened it
        draws = Draws(
            self._store,
            self._identity,
            network,
            self._registry,
            readiness=self._readiness,
            wake=self._outbox.wake,
            now_ms=self._now_ms,
            metrics=self._metrics,
            chain=self._chain,
        )
        assignments = Assignments(
            self._store,
            self._identity,
            network,
            self._clock,
            stored=self._reconciler.wake,
            wake=self._outbox.wake,
            stop=self._board.stop,
            now_ms=self._now_ms,
            chain=self._chain,
        )
        self._handlers = {
            "draw_call": draws.on_draw_call,
            "dispatch_job": assignments.on_dispatch,
            "commit_set": assignments.on_commit_set,
            "cancel_job": assignments.on_cancel,
            "dispute": self._disputes.on_hint,
            "tee_document": self._attesting.on_document,
        }
        tasks = [
            asyncio.create_task(link.run()),
            asyncio.create_task(self._outbox.run(link, network)),
            asyncio.create_task(self._beat(link)),
            asyncio.create_task(self._watch_registry(network)),
            asyncio.create_task(self._attesting.run(link, network)),
        ]
        self._link = link
        self._opened_s = asyncio.get_running_loop().time()
        self.status.connected, self.status.since_ms, self.status.problem = True, self._now_ms(), ""
        self._metrics.links.inc()
        self._metrics.connected.set(1)
        log.info("link.open", dispatcher=network.dispatcher, network=network.name, node=self._clock.node)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if link.closed:  # the others only notice it; the link itself says why
                await asyncio.wait(tasks[:1], timeout=CLOSE_WITHIN_S)
        finally:
            self._link = None
            await end_tasks(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()
        raise Unavailable("link.closed", "the link ended")

    async def _beat(self, link: Link) -> None:
        while True:
            try:
                await link.request("heartbeat", await self._load())
            except RuleViolation as error:
                log.warning("dispatcher.refused", method="heartbeat", code=error.code)
            await asyncio.sleep(self._config.heartbeat_interval_s)

    async def _watch_registry(self, network: Network) -> None:
        """See every epoch's snapshot, also where no draw names it: it may be the one that lets this operator in."""
        seen = network.epoch_at(self._now_ms())
        while True:
            await asyncio.sleep(REGISTRY_EVERY_S)
            epoch = network.epoch_at(self._now_ms())
            if epoch == seen:
                continue
            try:
                await self._registry.look(network)
                seen = epoch
            except AOSError as error:
                log.warning("registry.unavailable", code=error.code, message=error.message)

    async def _handle(self, method: str, body: object) -> dict[str, Any]:
        handler = self._handlers.get(method)
        if handler is None:
            raise RuleViolation("link.unknown_method", f"an operator does not answer {method[:64]}")
        try:
            return await handler(body)
        except Unavailable as error:
            if error.code != "store.unavailable":
                raise
            # Without the database nothing may be acknowledged: the link ends, and all of it is offered again.
            if self._link is not None:
                await self._link.close(1013, "store.unavailable")
            raise
        except AOSError as error:
            self._metrics.refused.labels(code=error.code).inc()
            log.warning("dispatcher.message_refused", method=method, code=error.code, message=error.message)
            raise

    # --- what is known of the network

    async def _ask_network(self) -> str:
        """The network's id where nobody has named it yet; believed only once the dispatcher has signed it."""
        async with public_client(self._config.dispatcher_http) as http:
            document = await get_document(
                http, "/v1/aos/network", code="link.unreachable", max_bytes=MAX_NETWORK_FILE_BYTES
            )
        name = read_network(document).name
        log.warning("network.learnt", network=name, hint="set network.id to be sure of it")
        return name

    async def _pin(self, ok: dict[str, Any]) -> Network:
        network = read_network(ok["network"])
        if network.dispatcher != self._config.dispatcher_address:
            raise VerificationError("network.changed", "the network file is another dispatcher's")
        check_pinned(
            network,
            configured=self._config.network,
            configured_key=self._config.dispatcher_vrf_key,
            pinned=self._pinned[0],
            pinned_key=self._pinned[1],
        )
        if self._config.node_type == "opml":
            check_court(network, self._config.chain)
        if network != self._network or self._pinned[0] is None:
            await self._store.pin_network(network.name, network.vrf_key, ok["network"])
            self._pinned = (network.name, network.vrf_key)
        self._network = network
        return network

    async def _open_clock(self, node: int) -> CausalClock:
        if self._clock is None:
            self._clock = await CausalClock.open(
                node, self._stored_clock, self._save_clock, incarnation=self._incarnation
            )
        elif self._clock.node != node:
            raise VerificationError("network.changed", f"this operator was node {self._clock.node} until now")
        return self._clock

    async def _save_clock(self, state: ClockState) -> None:
        try:
            await self._store.save_clock(state.to_json(), owner=self._owner)
        except RuleViolation as error:
            self._superseded = error
            raise
