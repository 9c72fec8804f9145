"""The registry's operators on a chain: who has staked, which range is whose, and the transactions that give ranges.

Without ``chain`` in the configuration nothing here runs, and the dispatcher's own table applies the same rules
(docs/spec/17-registry.md).
"""

import asyncio
import time
from collections.abc import Mapping
from decimal import Decimal

from aos.adapters.chain.contracts import contract
from aos.adapters.chain.journal import Entry, Journal
from aos.adapters.chain.node import ChainNode
from aos.adapters.chain.registry import SQL, OperatorContract
from aos.adapters.postgres import Pool, migrate
from aos.core.beacon import block_time
from aos.core.log.anchor import Anchor
from aos.dispatcher.config import Chain, DispatcherConfig
from aos.errors import ConfigError, RuleViolation, Unavailable
from aos.ports import OnChainOperator, RegistryView

GWEI = 10**9
SETTLE_S = 1_800.0
_ANCHOR = "anchor "

REGISTRY = contract("OperatorRegistry")


class DispatcherChain:
    """What the dispatcher reads from its OperatorRegistry, and has done there."""

    def __init__(
        self, node: ChainNode, operators: OperatorContract, journal: Journal, *, settings: Chain
    ) -> None:
        self._node = node
        self._operators = operators
        self._journal = journal
        self._settings = settings
        self.beacon = settings.beacon
        self.anchor_s = settings.anchor_s
        self._beacons: dict[int, bytes] = {}

    @classmethod
    async def open(cls, pool: Pool, config: DispatcherConfig) -> "DispatcherChain | None":
        """None where the configuration names no chain. Reads nothing yet."""
        settings = config.chain
        if settings is None:
            return None
        if not settings.operator_registry:
            raise ConfigError(
                "chain.none",
                "the configuration names a chain and no OperatorRegistry",
                field="chain.operator_registry",
                hint="`aos chain deploy` deploys one and prints its address",
            )
        await migrate(pool, SQL)
        node = ChainNode(settings.rpc_url, chain_id=settings.chain_id)
        operators = OperatorContract(
            node,
            pool,
            settings.operator_registry,
            max_range=config.max_range,
            owner=config.keys.address,
        )
        journal = Journal(pool, node, config.keys.signer, max_fee_gwei=settings.max_fee_gwei)
        return cls(node, operators, journal, settings=settings)

    async def close(self) -> None:
        await self._node.close()

    def facts(self) -> dict[str, object]:
        """What the network file says of it."""
        facts: dict[str, object] = {
            "chain_id": self._node.chain_id,
            "operator_registry": self._operators.address,
        }
        if (domain := self._settings.domain) is not None:
            facts |= {"court": domain.court, "claim_s": self._settings.claim_s}
        return facts

    async def view(self) -> RegistryView:
        """Everybody with a range, at the newest final block. Raises VerificationError, InvalidMessage, Unavailable ``chain.*``."""
        return await self._operators.view()

    async def check_staked(self, node_id: str, vrf_key: bytes) -> None:
        """Whether this operator may have a range.

        Raises RuleViolation ``registration.stake``, ``registration.leaving``, ``registration.chain_key``; as ``view``.
        """
        found = await self._operators.operator(node_id)
        if found.exit_at:
            raise RuleViolation(
                "registration.leaving", f"{node_id} is leaving the contract and can have no range"
            )
        if found.stake < self._operators.min_stake:
            raise RuleViolation(
                "registration.stake",
                f"{node_id} has {ether(found.stake)} ether staked in a final block, the contract asks for"
                f" {ether(self._operators.min_stake)}",
                hint="`aos operator stake` deposits it; a deposit counts once its block is final",
            )
        if found.vrf_key != vrf_key:
            raise RuleViolation(
                "registration.chain_key",
                f"{node_id} deposited with another VRF key than it registers with",
                field="vrf_key",
            )

    async def give_ranges(self, wanted: Mapping[str, tuple[int, int]], *, again: str | None = None) -> None:
        """Have these ranges registered, each once. Who lost its range on the chain (a slash, an exit) gets none by itself:
        ``again`` names an operator that a person lets in once more.
        """
        for node_id, (start, end) in wanted.items():
            purpose, before = f"register {node_id}", None
            while again == node_id and (held := await self._journal.entry(purpose)) and held.state == "done":
                before = held.block
                purpose = f"register {node_id} after {before}"
            await self._journal.want(
                purpose,
                to=self._operators.address,
                data=REGISTRY.call("registerOperator", node_id, start, end),
            )

    async def last_anchor(self) -> Anchor | None:
        """The last checkpoint of the log that a final block holds. Raises as ``view``."""
        return await self._operators.last_anchor()

    async def newest_anchor(self) -> Entry | None:
        """The anchor that was wanted last, whatever became of it."""
        return await self._journal.newest(_ANCHOR)

    async def anchor(self, root: bytes, size: int) -> None:
        """Have a signed checkpoint written into the contract, once."""
        await self._journal.want(
            f"{_ANCHOR}{size}", to=self._operators.address, data=REGISTRY.call("anchor", root, size)
        )

    async def send(self) -> bool:
        """One round over the transactions; False where all are final."""
        return await self._journal.step(REGISTRY)

    async def keep(self) -> None:
        """Send, and follow to their end, until cancelled."""
        await self._journal.keep(REGISTRY)

    async def settle(self, *, within_s: float = SETTLE_S) -> None:
        """Until every transaction is final. Raises Unavailable ``chain.not_final``; RuleViolation ``chain.failed``."""
        deadline = time.monotonic() + within_s
        while await self.send():
            if time.monotonic() > deadline:
                left = ", ".join(entry.purpose for entry in await self._journal.open())
                raise Unavailable("chain.not_final", f"not final after {within_s:.0f} s: {left}")
            await asyncio.sleep(0.2)

    async def beacon_at(self, epoch: int, genesis_ms: int, epoch_ms: int) -> bytes:
        """The hash of the epoch's block, which is final.

        Raises Unavailable ``chain.too_early``; as ``view``.
        """
        if (held := self._beacons.get(epoch)) is None:
            block = await self._operators.block_since(block_time(epoch, genesis_ms, epoch_ms))
            if len(self._beacons) >= 16:
                self._beacons.pop(min(self._beacons))
            held = self._beacons[epoch] = block.hash
        return held


def stake_units(operator: OnChainOperator) -> int:
    """A stake as a snapshot carries it: whole gwei."""
    return operator.stake // GWEI


def ether(wei: int) -> str:
    """Wei as ether, for people."""
    return format((Decimal(wei) / 10**18).normalize(), "f")
