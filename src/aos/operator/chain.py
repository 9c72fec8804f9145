"""An operator's own look at the chain: its range, its stake, its transactions (docs/chain.md, docs/spec/17-registry.md)."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aos.adapters.chain.contracts import contract
from aos.adapters.chain.court import COURT, CourtContract, CourtFacts
from aos.adapters.chain.journal import Entry, Journal
from aos.adapters.chain.node import Block, ChainNode
from aos.adapters.chain.registry import SQL, OperatorContract
from aos.adapters.postgres import Pool, connect_pool, create_database, migrate
from aos.core.statements import SnapshotEntry
from aos.errors import ConfigError, RuleViolation, VerificationError
from aos.operator.config import OperatorConfig, load_config
from aos.operator.identity import Identity, load_identity
from aos.ports import OnChainOperator

REGISTRY = contract("OperatorRegistry")
LOOK_EVERY_S = 15.0
FOLLOW_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where this operator's account stands, in the newest block, which may yet change. Amounts in wei, times in Unix seconds.

    ``open`` are the transactions that are not final; ``final`` says whether the registry already counts what is shown.
    """

    node_id: str
    chain_id: int
    registry: str
    stake: int
    min_stake: int
    registered: bool
    range: tuple[int, int] | None
    exit_at: int
    games: int
    owed: int
    balance: int
    final: bool
    open: tuple[str, ...]


class OperatorAccount:
    """One operator's account at its OperatorRegistry."""

    def __init__(
        self,
        pool: Pool,
        node: ChainNode,
        operators: OperatorContract,
        journal: Journal,
        identity: Identity,
        *,
        court: CourtContract | None,
    ) -> None:
        self._pool = pool
        self.node = node
        self._operators = operators
        self.journal = journal
        self._identity = identity
        self.court = court
        self._court_facts: CourtFacts | None = None
        self._looked: tuple[float, OnChainOperator] | None = None
        self._before: tuple[float, tuple[int, int]] | None = None

    @classmethod
    async def open(cls, config: OperatorConfig, identity: Identity) -> "OperatorAccount | None":
        """None where the configuration names no chain. Asks the node nothing yet. Raises as ``connect_pool``."""
        settings = config.chain
        if settings is None:
            return None
        pool = await connect_pool(config.pg_url, max_size=3, application_name="aos-operator-chain")
        try:
            await migrate(pool, SQL)
        except BaseException:
            pool.terminate()
            raise
        node = ChainNode(settings.rpc_url, chain_id=settings.chain_id)
        operators = OperatorContract(
            node,
            pool,
            settings.operator_registry,
            max_range=settings.max_range,
            owner=config.dispatcher_address,
        )
        journal = Journal(pool, node, identity.signer_key, max_fee_gwei=settings.max_fee_gwei)
        court = None if settings.court is None else CourtContract(node, settings.court.court)
        return cls(pool, node, operators, journal, identity, court=court)

    async def close(self) -> None:
        await self.node.close()
        self._pool.terminate()

    @property
    def registry(self) -> str:
        """The OperatorRegistry's address."""
        return self._operators.address

    async def final(self) -> Block:
        """The newest final block. Raises VerificationError, InvalidMessage, Unavailable ``chain.*``."""
        return await self._operators.final()

    async def keep(self) -> None:
        """Follow what a command, or a game at the court, wants sent to its end, until cancelled."""
        await self.journal.keep(REGISTRY, COURT)

    async def court_facts(self) -> CourtFacts | None:
        """What the configured court is, once it was looked at: it must be this release's, and of this registry. None without one.

        Raises VerificationError ``chain.contract``, ``chain.foreign``, ``chain.id``; InvalidMessage, Unavailable ``chain.*``.
        """
        if self.court is not None and self._court_facts is None:
            await self.node.check_chain()
            facts = await self.court.facts(await self.node.block("latest"))
            if facts.registry != self.registry:
                raise VerificationError(
                    "chain.foreign",
                    f"the court at {self.court.address} is the registry's at {facts.registry}, not of this one",
                    field="chain.court",
                )
            self._court_facts = facts
        return self._court_facts

    # --- what draws ask

    async def check_range(self, entry: SnapshotEntry, epoch_ms: int) -> None:
        """Whether a snapshot's entry has the range that the contract gives; for two epochs after a change, the one before will do.
        Nor is a draw answered before the court is known to be one: with its result goes a claim there.

        Raises VerificationError ``chain.range``; as ``court_facts``.
        """
        await self.court_facts()
        now = time.monotonic()
        if self._looked is None or now - self._looked[0] >= LOOK_EVERY_S:
            found = await self._operators.operator(self._identity.node_id)
            if self._looked is not None and _range(self._looked[1]) != _range(found):
                self._before = (now, _range(self._looked[1]))
            self._looked = (now, found)
        seen = _range(self._looked[1])
        named = (entry.start, entry.end)
        if named == seen:
            return
        if (
            self._before is not None
            and named == self._before[1]
            and now - self._before[0] < 2 * epoch_ms / 1_000
        ):
            return
        raise VerificationError(
            "chain.range",
            f"the dispatcher's registry gives this operator the range {named[0]} … {named[1]}, the contract"
            f" {seen[0]} … {seen[1]}",
        )

    async def block_hash(self, time_s: int) -> bytes:
        """As ``ChainReader.block_hash``."""
        return (await self._operators.block_since(time_s)).hash

    # --- what commands ask

    async def standing(self) -> Standing:
        """Raises VerificationError, InvalidMessage, Unavailable ``chain.*``."""
        node_id = self._identity.node_id
        newest = await self._operators.newest(node_id)
        head = await self.node.block("latest")
        (owed,) = await self.node.calls(self._operators.address, [REGISTRY.call("owed", node_id)], block=head)
        return Standing(
            node_id=node_id,
            chain_id=self.node.chain_id,
            registry=self._operators.address,
            stake=newest.stake,
            min_stake=self._operators.min_stake,
            registered=newest.registered,
            range=_range(newest) if newest.registered else None,
            exit_at=newest.exit_at,
            games=newest.games,
            owed=REGISTRY.answer("owed", owed),
            balance=await self.node.balance(node_id),
            final=newest == await self._operators.operator(node_id),
            open=tuple(entry.purpose for entry in await self.journal.open()),
        )

    async def stake_to(self, target: int) -> Standing:
        """Bring the stake up to ``target`` wei. Run again, it deposits what is missing and no more.

        Raises RuleViolation ``chain.leaving``, ``chain.failed``, ``chain.key``; as ``standing``.
        """
        await self._follow_all()
        now = await self.standing()
        if now.exit_at:
            raise RuleViolation(
                "chain.leaving",
                "this operator is leaving; it can stake again once it has left",
                hint="`aos operator exit` says when",
            )
        held = await self._operators.newest(self._identity.node_id)
        if any(held.vrf_key) and held.vrf_key != self._identity.vrf_key:
            raise RuleViolation(
                "chain.key",
                "this account deposited with another VRF key, which stays until it has left",
                hint="configure that key, or `aos operator exit` and stake anew",
            )
        if now.stake < target:
            data = REGISTRY.call("deposit", self._identity.vrf_key)
            await self._do(f"stake up to {target / 10**18:g} ether", data, value=target - now.stake)
        return await self.standing()

    async def leave(self) -> Standing:
        """The next step out: ask to leave; once the delay is over, exit; withdraw what is owed. Run again, it goes on.

        Raises RuleViolation ``chain.nothing`` (neither stake nor anything owed), ``chain.failed``; as ``standing``.
        """
        await self._follow_all()
        now = await self.standing()
        if not now.stake and not now.owed:
            raise RuleViolation(
                "chain.nothing", "this operator has nothing staked, and nothing is owed to it"
            )
        if now.stake and not now.exit_at:
            await self._do("ask to leave", REGISTRY.call("requestExit"))
        elif now.stake and now.exit_at <= (await self.node.block("latest")).time and not now.games:
            await self._do("leave", REGISTRY.call("exit"))
        if (await self.standing()).owed:
            await self._do("withdraw", REGISTRY.call("withdraw", self._identity.node_id))
        return await self.standing()

    async def _do(self, what: str, data: bytes, *, value: int = 0) -> None:
        # One of a kind: the account's count of transactions is in its name, and whatever is open was followed before.
        count = await self.node.nonce(self._identity.node_id, "latest")
        purpose = f"{what} ({count})"
        await self.journal.want(purpose, to=self._operators.address, data=data, value=value)
        await self._follow(purpose)

    async def _follow_all(self) -> None:
        for entry in await self.journal.open():
            await self._follow(entry.purpose)

    async def _follow(self, purpose: str) -> None:
        """Until it is mined. Whoever comes later follows it until it is final: the running operator, or the next command."""
        deadline = time.monotonic() + FOLLOW_S
        while True:
            await self.journal.step(REGISTRY)
            entry = await self.journal.entry(purpose)
            assert entry is not None  # noqa: S101  it was recorded
            if entry.state == "failed":
                raise RuleViolation("chain.failed", f"{purpose}: {entry.error}")
            if entry.state == "done" or await self._mined(entry):
                return
            if time.monotonic() > deadline:
                raise RuleViolation(
                    "chain.not_mined",
                    f"{purpose}: sent, and not mined after {FOLLOW_S:.0f} s",
                    hint="nothing is lost: run the command again, it goes on with the same transaction",
                )
            await asyncio.sleep(0.5)

    async def _mined(self, entry: Entry) -> bool:
        return entry.hash is not None and await self.node.receipt(entry.hash) is not None


@asynccontextmanager
async def account(
    path: Path | None, *, environment: Mapping[str, str] | None = None
) -> AsyncIterator[OperatorAccount]:
    """The account of the operator with this configuration; its database is made where it is missing.

    Raises ConfigError ``chain.none`` (no chain is configured), ``config.*``, ``key.*``, Unavailable.
    """
    config = load_config(path, environment=environment)
    if config.chain is None:
        raise ConfigError(
            "chain.none",
            "this operator's configuration names no chain",
            field="chain.chain_id",
            hint="set chain.chain_id, chain.chain_rpc_url and chain.vrf_range_contract (docs/chain.md)",
        )
    identity, _ = load_identity(config, environment=environment)
    await create_database(config.pg_url)
    opened = await OperatorAccount.open(config, identity)
    assert opened is not None  # noqa: S101  the chain is configured
    try:
        yield opened
    finally:
        await opened.close()


def _range(operator: OnChainOperator) -> tuple[int, int]:
    return operator.start, operator.end
