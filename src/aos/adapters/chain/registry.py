"""The OperatorRegistry as a dispatcher and an operator read it: at final blocks alone, from a node that is checked.

Implements ``aos.ports.OperatorChain`` (docs/spec/17-registry.md).
"""

from collections.abc import Callable

from aos.adapters.chain.contracts import contract
from aos.adapters.chain.node import Block, ChainNode, now_s
from aos.adapters.postgres import Pool, unavailable
from aos.core.log.anchor import Anchor
from aos.errors import InvalidMessage, Unavailable, VerificationError
from aos.ports import OnChainOperator, RegistryView

SQL = "aos.adapters.chain.sql"
MAX_OPERATORS = 10_000
STALE_S = 3_600
"""A final block older than this is no news: twice what finality takes on Ethereum, and some. Clocks may differ by a minute."""
_SKEW_S = 60

REGISTRY = contract("OperatorRegistry")


async def newest_final(node: ChainNode, clock: Callable[[], int] = now_s) -> Block:
    """The newest final block, as far as a node can be checked that says nothing of earlier ones.

    Raises VerificationError ``chain.id``; Unavailable ``chain.stale``, ``chain.unavailable``; InvalidMessage ``chain.answer``.
    """
    await node.check_chain()
    final, head = await node.block("finalized"), await node.block("latest")
    now = clock()
    if head.number < final.number or final.time > head.time or final.time > now + _SKEW_S:
        raise InvalidMessage(
            "chain.answer", f"the node {node.name} names a final block that is not in the past"
        )
    if final.time < now - STALE_S:
        raise Unavailable(
            "chain.stale",
            f"the newest final block that the node {node.name} knows is {(now - final.time) // 60} minutes old",
            hint="is the node in step with its chain, and this machine's clock right?",
        )
    return final


async def check_history(node: ChainNode, final: Block, *, number: int, digest: bytes) -> None:
    """Whether a final block comes after one that was final before. Raises Unavailable ``chain.stale``, VerificationError
    ``chain.rewritten`` (the node denies a block that was final).
    """
    if final.number < number:
        raise Unavailable("chain.stale", f"the node {node.name} is behind block {number}, which was final")
    there = final if final.number == number else await node.block(number)
    if there.hash != digest:
        raise VerificationError(
            "chain.rewritten",
            f"the node {node.name} has another block {number} than the one that was final",
            hint="one of the two answers was a lie, or the chain was reset; nothing is read until a person decides"
            " (docs/chain.md, 'When the chain disagrees')",
        )


async def block_since(node: ChainNode, final: Block, time_s: int) -> Block:
    """The first block up to ``final`` that is not older than ``time_s``. Raises Unavailable ``chain.too_early``, and as
    ``ChainNode.block``.
    """
    if final.time < time_s:
        raise Unavailable("chain.too_early", "the block that decides is not final yet")
    low, high, found = 0, final.number, final
    while low < high:
        middle = (low + high) // 2
        block = await node.block(middle)
        if block.time >= time_s:
            high, found = middle, block
        else:
            low = middle + 1
    return found


class Finality:
    """The newest final block, which may only ever go forward: remembered in the database over restarts."""

    def __init__(self, node: ChainNode, pool: Pool, *, clock: Callable[[], int] = now_s) -> None:
        self._node = node
        self._pool = pool
        self._clock = clock

    async def block(self) -> Block:
        """Raises VerificationError ``chain.id``, ``chain.rewritten`` (the node denies a block that was final);
        Unavailable ``chain.stale``, ``chain.unavailable``; InvalidMessage ``chain.answer``.
        """
        node = self._node
        final = await newest_final(node, self._clock)
        async with unavailable():
            known = await self._pool.fetchrow(
                "SELECT number, hash FROM chain_final WHERE chain_id = $1", node.chain_id
            )
        if known is not None:
            await check_history(node, final, number=known["number"], digest=known["hash"])
        async with unavailable():
            await self._pool.execute(
                """INSERT INTO chain_final (chain_id, number, hash) VALUES ($1, $2, $3)
                   ON CONFLICT (chain_id) DO UPDATE SET number = excluded.number, hash = excluded.hash
                   WHERE chain_final.number < excluded.number""",
                node.chain_id,
                final.number,
                final.hash,
            )
        return final


class OperatorContract:
    """An OperatorRegistry at ``address``. Before its first answer it is looked at: it must be this release's contract."""

    def __init__(
        self,
        node: ChainNode,
        pool: Pool,
        address: str,
        *,
        max_range: int | None = None,
        owner: str | None = None,
        clock: Callable[[], int] = now_s,
    ) -> None:
        self._node = node
        self._finality = Finality(node, pool, clock=clock)
        self.address = address.lower()
        self._max_range = max_range
        self._owner = owner
        self._checked = False
        self.min_stake = 0
        self.exit_delay_s = 0

    async def final(self) -> Block:
        """The newest final block. Raises as ``view``."""
        return await self._finality.block()

    async def view(self) -> RegistryView:
        """All operators with a range, at the newest final block.

        Raises VerificationError ``chain.*``, Unavailable ``chain.*``, InvalidMessage ``chain.answer``.
        """
        block = await self._finality.block()
        await self._check(block)
        (answer,) = await self._node.calls(self.address, [REGISTRY.call("getNumOperators")], block=block)
        count = REGISTRY.answer("getNumOperators", answer)
        if count > MAX_OPERATORS:
            raise InvalidMessage("chain.answer", f"the contract lists {count} operators")
        calls = [REGISTRY.call("operators", index) for index in range(count)]
        addresses = [
            str(REGISTRY.answer("operators", data)).lower()
            for data in await self._node.calls(self.address, calls, block=block)
        ]
        if len(set(addresses)) != count:
            raise InvalidMessage("chain.answer", "the contract lists an operator twice")
        found = await self._operators(addresses, block)
        if not all(op.registered and op.start < op.end for op in found):
            raise InvalidMessage("chain.answer", "the contract lists an operator that has no range")
        return RegistryView(
            number=block.number, hash=block.hash, time=block.time, operators={op.node_id: op for op in found}
        )

    async def operator(self, node_id: str) -> OnChainOperator:
        """One account at the newest final block, whether it is an operator or not. Raises as ``view``."""
        block = await self._finality.block()
        await self._check(block)
        return (await self._operators([node_id.lower()], block))[0]

    async def newest(self, node_id: str) -> OnChainOperator:
        """The same in the newest block, which may yet be reorganised: to show, not to act upon. Raises as ``view``."""
        await self._check(await self._finality.block())
        return (await self._operators([node_id.lower()], await self._node.block("latest")))[0]

    async def last_anchor(self) -> Anchor | None:
        """The last checkpoint of the log that a final block holds; None before the first. Raises as ``view``."""
        block = await self._finality.block()
        await self._check(block)
        return await last_anchor(self._node, self.address, block)

    async def burnt(self) -> int:
        """Wei that convicted operators have lost for nobody, at the newest final block. Raises as ``view``."""
        block = await self._finality.block()
        await self._check(block)
        (answer,) = await self._node.calls(self.address, [REGISTRY.call("burnt")], block=block)
        found: int = REGISTRY.answer("burnt", answer)
        return found

    async def block_since(self, time_s: int) -> Block:
        """The first block that is not older than ``time_s``; it must be final. Raises Unavailable ``chain.too_early``."""
        return await block_since(self._node, await self._finality.block(), time_s)

    async def _operators(self, addresses: list[str], block: Block) -> list[OnChainOperator]:
        calls = [REGISTRY.call(f, a) for a in addresses for f in ("operatorInfo", "operatorRanges")]
        answers = await self._node.calls(self.address, calls, block=block)
        found = []
        for index, node_id in enumerate(addresses):
            stake, vrf_key, exit_at, locks, registered = REGISTRY.answer("operatorInfo", answers[2 * index])
            start, end = REGISTRY.answer("operatorRanges", answers[2 * index + 1])
            found.append(
                OnChainOperator(
                    node_id=node_id,
                    stake=stake,
                    vrf_key=vrf_key,
                    exit_at=exit_at,
                    games=locks,
                    registered=registered,
                    start=start,
                    end=end,
                )
            )
        return found

    async def _check(self, block: Block) -> None:
        if self._checked:
            return
        if not REGISTRY.is_code(await self._node.code(self.address, block=block)):
            raise VerificationError(
                "chain.contract",
                f"there is no OperatorRegistry of this release at {self.address} on chain {self._node.chain_id}",
                hint="`aos chain deploy` deploys one; was the deployment final yet?",
            )
        names = ("MAX_RANGE", "owner", "minStake", "exitDelay")
        answers = await self._node.calls(self.address, [REGISTRY.call(name) for name in names], block=block)
        max_range, owner, stake, delay = (
            REGISTRY.answer(name, data) for name, data in zip(names, answers, strict=True)
        )
        for wanted, there, what in (
            (self._max_range, max_range, "MAX_RANGE"),
            (self._owner, str(owner).lower(), "owner"),
        ):
            if wanted is not None and wanted != there:
                raise VerificationError(
                    "chain.foreign", f"the contract's {what} is {there}, this network's is {wanted}"
                )
        self.min_stake, self.exit_delay_s = stake, delay
        self._checked = True


async def last_anchor(node: ChainNode, registry: str, block: Block) -> Anchor | None:
    """What an OperatorRegistry holds of the log at ``block``, which is then the anchor's block too: it was written by then."""
    (answer,) = await node.calls(registry, [REGISTRY.call("lastAnchor")], block=block)
    root, size = REGISTRY.answer("lastAnchor", answer)
    return Anchor(size=size, root=root, block=block.number) if size else None
