"""The local registry: operators, ranges, epochs, signed snapshots (docs/spec/04-sortition.md)."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from aos.adapters.postgres import Connection, Pool, Record, unavailable
from aos.core import beacon, draw, vrf
from aos.core.codec import decode, encode
from aos.core.encoding import canonical_json
from aos.core.log.checkpoint import log_key, origin_of
from aos.core.signing import statement_hash
from aos.core.statements import (
    Registration,
    Signed,
    Snapshot,
    SnapshotEntry,
    read_signed,
    sign,
    verify_signed,
)
from aos.dispatcher.chain import DispatcherChain, stake_units
from aos.dispatcher.config import DispatcherConfig
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable, VerificationError
from aos.ports import OnChainOperator

log = structlog.get_logger("aos.dispatcher")

MAX_PENDING = 1_000
_PENDING = "SELECT count(*) FROM operator WHERE NOT admitted"
CHAIN_PAUSE_S = 5.0
RANGES = 24
"""How many operators of the default width a registry holds."""


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The network's fixed facts, from its one row."""

    genesis_ms: int
    epoch_ms: int
    max_range: int
    beacon_anchor: bytes
    beacon_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInForce:
    """A signed snapshot with its entries, ascending by node_id."""

    signed: Signed[Snapshot]
    entries: tuple[SnapshotEntry, ...]

    @property
    def root(self) -> bytes:
        return self.signed.statement.root


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """An operator as the registry holds it."""

    node_id: str
    admitted: bool
    counts_from: int
    """The first epoch in whose draws it may claim a seat, once admitted."""
    job_types: tuple[str, ...]
    models: int
    """How many it offers."""
    convicted: bool = False
    """In no snapshot from the next one on: a game or a contradiction convicted it."""


class Registry:
    """Reads and writes the registry of one dispatcher."""

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        network: Network,
        wall_ms: Callable[[], int] = now_ms,
        chain: DispatcherChain | None = None,
    ) -> None:
        self._pool = pool
        self.chain = chain
        self._config = config
        self.network = network
        self._wall_ms = wall_ms
        self._beacon: tuple[int, bytes] = (-1, b"")
        self._in_force: tuple[int, SnapshotInForce] | None = None
        self._by_epoch: dict[int, SnapshotInForce] = {}
        self._anchor = encode(network.beacon_anchor)
        self._chain_trouble: tuple[float, AOSError] | None = None

    @classmethod
    async def load(cls, pool: Pool, config: DispatcherConfig) -> "Registry":
        """Raises ConfigError ``network.not_founded``, ``network.foreign``."""
        async with unavailable():
            row = await pool.fetchrow("SELECT * FROM network")
        if row is None:
            raise ConfigError(
                "network.not_founded", "this database holds no network", hint="`aos up` founds a local one"
            )
        if (row["network"], row["address"]) != (config.network, config.keys.address):
            raise ConfigError("network.foreign", "this database belongs to another network or dispatcher key")
        if row["beacon_length"] != config.beacon_length:
            raise ConfigError("network.foreign", "beacon_length is not that of the founded network")
        facts = Network(
            genesis_ms=row["genesis_ms"],
            epoch_ms=row["epoch_ms"],
            max_range=row["max_range"],
            beacon_anchor=row["beacon_anchor"],
            beacon_length=row["beacon_length"],
        )
        return cls(pool, config, facts, chain=await DispatcherChain.open(pool, config))

    async def close(self) -> None:
        """Let the chain's node go. The pool is the caller's."""
        if self.chain is not None:
            await self.chain.close()

    def network_file(self) -> dict[str, object]:
        """The public network file (docs/spec/09-http.md)."""
        config = self._config
        chain: dict[str, object] = {}
        if self.chain is not None:
            chain["chain"] = self.chain.facts()
            if self.chain.beacon:
                chain["beacon_source"] = "chain"
        return {
            "type": "aos.network",
            "v": 1,
            "network": config.network,
            "dispatcher": config.keys.address,
            "vrf_key": encode(config.keys.vrf_public),
            "genesis": self.network.genesis_ms,
            "epoch_ms": self.network.epoch_ms,
            "beacon": {
                "anchor": self._anchor,
                "length": self.network.beacon_length,
            },
            "max_range": self.network.max_range,
            "log_key": ""
            if config.keys.log is None
            else str(log_key(origin_of(config.network, config.keys.address), config.keys.log)),
            "witnesses": [str(key) for key in config.witnesses],
            **chain,
        }

    def epoch(self) -> int:
        return self.epoch_at(self._wall_ms())

    def epoch_at(self, time_ms: int) -> int:
        """The epoch of a time. Raises Unavailable ``network.clock`` outside the epochs that this network has."""
        facts = self.network
        epoch = (time_ms - facts.genesis_ms) // facts.epoch_ms
        if not 0 <= epoch < facts.beacon_length:
            raise Unavailable(
                "network.clock",
                "by the dispatcher's clock this network has not begun, or its beacon is used up",
                hint="set the clock of the dispatcher's machine, or found a new network",
            )
        return epoch

    def beacon_of(self, epoch: int) -> bytes:
        """The epoch's beacon; the last one is remembered, because it takes as many hashes as epochs are left."""
        if self._beacon[0] != epoch:
            value = beacon.beacon_at(self._config.keys.beacon, self._config.beacon_length, epoch)
            self._beacon = (epoch, value)
        return self._beacon[1]

    async def beacon(self, epoch: int) -> tuple[bytes, Literal["dispatcher", "chain"]]:
        """The epoch's beacon (32 bytes) and whose it is. Raises Unavailable ``chain.*``, VerificationError ``chain.*``."""
        if self.chain is None or not self.chain.beacon:
            if self._beacon[0] == epoch:
                return self._beacon[1], "dispatcher"
            return await asyncio.to_thread(self.beacon_of, epoch), "dispatcher"
        facts = self.network
        return await self.chain.beacon_at(epoch, facts.genesis_ms, facts.epoch_ms), "chain"

    async def in_force(self, epoch: int) -> SnapshotInForce:
        """The snapshot for draws of ``epoch``: signed for it or earlier; the next epoch's is signed ahead.

        With a chain that cannot be read, the one that was signed for this very epoch serves to its end; then
        Unavailable, VerificationError or InvalidMessage ``chain.*``.
        """
        if self._in_force is not None and self._in_force[0] == epoch:
            return self._in_force[1]
        trouble: AOSError | None = None
        try:
            await self._sign_up_to(epoch + 1)
        except AOSError as error:
            if self.chain is None or not error.code.startswith(("chain.", "draw.snapshot")):
                raise
            trouble = error
        async with unavailable():
            row = await self._pool.fetchrow(
                "SELECT epoch, signed, entries FROM snapshot WHERE epoch <= $1 ORDER BY epoch DESC LIMIT 1",
                epoch,
            )
        if row is None:
            raise ConfigError("network.not_founded", "this database holds no snapshot")
        if trouble is not None:
            if row["epoch"] != epoch:
                raise trouble
            log.warning("registry.not_signed", code=trouble.code, message=trouble.message)
            return _read_snapshot(row["signed"], row["entries"])
        self._in_force = (epoch, _read_snapshot(row["signed"], row["entries"]))
        return self._in_force[1]

    async def by_root(self, root: bytes) -> SnapshotInForce | None:
        async with unavailable():
            row = await self._pool.fetchrow(
                "SELECT signed, entries FROM snapshot WHERE root = $1 ORDER BY epoch LIMIT 1", root
            )
        return None if row is None else _read_snapshot(row["signed"], row["entries"])

    async def by_epoch(self, epoch: int) -> SnapshotInForce:
        """The snapshot that was signed for ``epoch`` itself; it never changes."""
        if (held := self._by_epoch.get(epoch)) is not None:
            return held
        async with unavailable():
            row = await self._pool.fetchrow("SELECT signed, entries FROM snapshot WHERE epoch = $1", epoch)
        assert row is not None  # noqa: S101  attempts refer to it by foreign key
        if len(self._by_epoch) >= 64:
            self._by_epoch.pop(next(iter(self._by_epoch)))
        self._by_epoch[epoch] = _read_snapshot(row["signed"], row["entries"])
        return self._by_epoch[epoch]

    async def member(self, node_id: str) -> int | None:
        """The node number of an admitted operator, None for others."""
        async with unavailable():
            node: int | None = await self._pool.fetchval(
                "SELECT node FROM operator WHERE node_id = $1 AND admitted", node_id
            )
        return node

    async def register(self, value: object, *, genesis: bool = False) -> Entered:
        """Enter an operator: signature, proof of possession, a free range. A newer registration with the same keys changes
        what it offers, and nothing else: its range and the epoch that it counts from stay.

        Raises InvalidMessage, VerificationError ``registration.*``, ``vrf.*``, ``signature.*``; RuleViolation
        ``registration.full``, ``registration.queue_full``, ``registration.exists``.
        """
        pair = read_signed(Registration, value, where="registration")
        request = pair.statement
        # 1. Of this network, fresh, signed by the operator.
        if (request.network, request.dispatcher) != (self._config.network, self._config.keys.address):
            raise VerificationError("registration.foreign", "the registration is for another network")
        if not genesis and abs(request.time - self._wall_ms()) > 600_000:
            raise VerificationError("registration.stale", "the registration is older than ten minutes")
        verify_signed(Registration, value, address=request.node_id, where="registration")
        # 2. It holds its VRF key.
        vrf.verify_possession(
            request.vrf_key, request.possession, network=self._config.network, address=request.node_id
        )
        if not request.job_types or not request.models:
            raise InvalidMessage(
                "registration.empty", "a registration names job types and models", field="models"
            )
        # 3. A number and a range of its own; who waits to be admitted has neither, because keys cost nothing.
        since = 0 if genesis else max(1, self.epoch())  # 0 is the genesis operators' alone: it counts at once
        admitted = genesis or self._config.open_registration
        if admitted and self.chain is not None:
            await self.chain.check_staked(request.node_id, request.vrf_key)
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock(4711)")
            held = await db.fetchrow("SELECT vrf_key FROM operator WHERE node_id = $1", request.node_id)
            if held is not None and held["vrf_key"] != request.vrf_key:
                raise RuleViolation("registration.exists", "this operator is registered with another VRF key")
            if held is None:
                await self._enter_in(db, pair, since, admitted=admitted)
            else:
                await db.execute(
                    """UPDATE operator SET job_types = $2, models = $3, registration = $4, time_ms = $5
                       WHERE node_id = $1 AND time_ms < $5""",
                    request.node_id,
                    list(request.job_types),
                    list(request.models),
                    _text(pair.to_json()),
                    request.time,
                )
            row = await db.fetchrow("SELECT * FROM operator WHERE node_id = $1", request.node_id)
            if admitted and not row["admitted"]:
                await self._admit_in(db, request.node_id, since)
                row = await db.fetchrow("SELECT * FROM operator WHERE node_id = $1", request.node_id)
        await self._give_ranges()
        return _entered(row)

    async def _enter_in(
        self, db: Connection, pair: Signed[Registration], since: int, *, admitted: bool
    ) -> None:
        request = pair.statement
        if await db.fetchval("SELECT 1 FROM operator WHERE vrf_key = $1", request.vrf_key):
            raise RuleViolation(
                "registration.key_taken", "another operator has this VRF key", field="vrf_key"
            )
        if not admitted and await db.fetchval(_PENDING) >= MAX_PENDING:
            raise RuleViolation("registration.queue_full", "too many operators wait to be admitted")
        await db.execute(
            """INSERT INTO operator (node_id, vrf_key, job_types, models, since_epoch, admitted, registration, time_ms)
               VALUES ($1, $2, $3, $4, $5, false, $6, $7)""",
            request.node_id,
            request.vrf_key,
            list(request.job_types),
            list(request.models),
            since,
            _text(pair.to_json()),
            request.time,
        )

    async def operators(self) -> list[Entered]:
        """Everybody who has registered, those who wait first."""
        async with unavailable():
            rows = await self._pool.fetch(
                """SELECT o.*, EXISTS (SELECT FROM conviction c WHERE c.node_id = o.node_id) AS convicted
                   FROM operator o ORDER BY admitted, node_id"""
            )
        return [replace(_entered(row), convicted=row["convicted"]) for row in rows]

    async def admit(self, node_id: str) -> Entered:
        """Give a waiting operator its number and range; it counts two epochs from now. Admitting twice is no change, but for one
        that lost its range on the chain: it gets it back.

        Raises RuleViolation ``registration.unknown``, ``registration.full``, with a chain also ``registration.stake`` and
        what else ``DispatcherChain.check_staked`` raises.
        """
        if self.chain is not None:
            async with unavailable():
                key = await self._pool.fetchval("SELECT vrf_key FROM operator WHERE node_id = $1", node_id)
            if key is not None:
                await self.chain.check_staked(node_id, key)
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock(4711)")
            admitted = await db.fetchval("SELECT admitted FROM operator WHERE node_id = $1", node_id)
            if admitted is None:
                raise RuleViolation("registration.unknown", f"no operator {node_id[:64]} has registered")
            if not admitted:
                await self._admit_in(db, node_id, max(1, self.epoch()))
            row = await db.fetchrow("SELECT * FROM operator WHERE node_id = $1", node_id)
        await self._give_ranges(again=node_id if admitted else None)
        return _entered(row)

    async def _give_ranges(self, again: str | None = None) -> None:
        """Have the chain told of every admitted operator. Asked often: it is recorded once, and a process that died between the
        two is made good for by the next.
        """
        if self.chain is None:
            return
        if again is not None and again in (await self.chain.view()).operators:
            again = None
        async with unavailable():
            rows = await self._pool.fetch(
                """SELECT node_id, range_start, range_end FROM operator o WHERE admitted
                   AND NOT EXISTS (SELECT FROM conviction c WHERE c.node_id = o.node_id) ORDER BY node"""
            )
        wanted = {row["node_id"]: (row["range_start"], row["range_end"]) for row in rows}
        await self.chain.give_ranges(wanted, again=again)

    async def _admit_in(self, db: Connection, node_id: str, since: int) -> None:
        start = await db.fetchval("SELECT coalesce(max(range_end), 0) FROM operator")
        width = await db.fetchval("SELECT range_width FROM network")
        if start + width > self.network.max_range:
            raise RuleViolation("registration.full", "no range is free in this registry")
        await db.execute(
            """UPDATE operator SET admitted = true, since_epoch = $2, range_start = $3, range_end = $4,
                                   node = (SELECT coalesce(max(node), 1) + 1 FROM operator) WHERE node_id = $1""",
            node_id,
            since,
            start,
            start + width,
        )

    async def _sign_up_to(self, epoch: int) -> None:
        """Sign a snapshot for ``epoch`` where the registry has changed since the last one. With a chain, ranges and stakes are
        its, and nobody is in it who has none there; what the chain says must itself be a registry (no ranges that overlap).
        """
        on_chain = None if self.chain is None else await self._on_chain(self.chain)
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock(4711)")
            last = await db.fetchrow("SELECT epoch, root, signed FROM snapshot ORDER BY epoch DESC LIMIT 1")
            if last is not None and last["epoch"] >= epoch:
                return
            rows = await db.fetch(
                """SELECT * FROM operator o WHERE admitted
                   AND NOT EXISTS (SELECT FROM conviction c WHERE c.node_id = o.node_id) ORDER BY node_id"""
            )
            entries = [
                SnapshotEntry(
                    node_id=row["node_id"],
                    node=row["node"],
                    vrf_key=row["vrf_key"],
                    start=row["range_start"],
                    end=row["range_end"],
                    stake=row["stake"],
                    job_types=tuple(row["job_types"]),
                    models=tuple(row["models"]),
                    since_epoch=row["since_epoch"],
                )
                for row in rows
            ]
            if on_chain is not None:
                entries = [
                    replace(entry, start=there.start, end=there.end, stake=stake_units(there))
                    for entry in entries
                    if (there := on_chain.get(entry.node_id)) is not None and there.vrf_key == entry.vrf_key
                ]
            root = draw.snapshot_root(self._config.network, self.network.max_range, entries)
            previous = b"" if last is None else statement_hash(json.loads(last["signed"])["statement"])
            snapshot = Snapshot(
                network=self._config.network,
                dispatcher=self._config.keys.address,
                epoch=epoch,
                max_range=self.network.max_range,
                count=len(entries),
                root=root,
                previous=previous,
            )
            await db.execute(
                "INSERT INTO snapshot (epoch, root, signed, entries) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
                epoch,
                root,
                _text(sign(self._config.keys.signer, snapshot).to_json()),
                _text([encode(entry) for entry in entries]),
            )

    async def _on_chain(self, chain: DispatcherChain) -> Mapping[str, OnChainOperator]:
        """Who has a range there. A node that fails is left alone for a while: every draw would wait for it."""
        if self._chain_trouble is not None and time.monotonic() < self._chain_trouble[0]:
            raise self._chain_trouble[1]
        try:
            found = (await chain.view()).operators
        except AOSError as error:
            self._chain_trouble = (time.monotonic() + CHAIN_PAUSE_S, error)
            raise
        self._chain_trouble = None
        return found

    async def keep_signing(self) -> None:
        """Sign the next epoch's snapshot in every epoch, and have its beacon ready. Runs until cancelled."""
        while True:
            try:
                epoch = self.epoch()
                await self.in_force(epoch)
                await self.beacon(epoch)
                await self._give_ranges()
            except AOSError as error:
                log.warning("registry.not_signed", code=error.code, message=error.message)
            now, facts = self._wall_ms(), self.network
            left_ms = facts.epoch_ms - (now - facts.genesis_ms) % facts.epoch_ms
            await asyncio.sleep(min(left_ms / 1000 + 0.01, 60.0))

    async def sign_genesis(self) -> bytes:
        """Sign the snapshot of epoch 0 and return its root. With a chain, once its ranges are final there."""
        if self.chain is not None:
            await self.chain.settle()
        await self._sign_up_to(0)
        return (await self.by_epoch(0)).root


def _entered(row: Record) -> Entered:
    return Entered(
        node_id=row["node_id"],
        admitted=row["admitted"],
        counts_from=row["since_epoch"] and row["since_epoch"] + draw.KEY_AGE_EPOCHS,
        job_types=tuple(row["job_types"]),
        models=len(row["models"]),
    )


def _text(value: object) -> str:
    return canonical_json(value).decode()


def _read_snapshot(signed: str, entries: str) -> SnapshotInForce:
    return SnapshotInForce(
        signed=read_signed(Snapshot, json.loads(signed)),
        entries=tuple(decode(SnapshotEntry, entry) for entry in json.loads(entries)),
    )
