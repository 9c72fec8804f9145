"""Anchors of a log as a stranger reads them, with a node and nothing else (docs/spec/15-log.md, "Anchors").

Whose contract it is, is the reader's to know: a dispatcher could show each stranger another one of its own.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aos.adapters.chain.node import Block, ChainNode, now_s
from aos.adapters.chain.registry import REGISTRY, check_history, last_anchor, newest_final
from aos.core.log.anchor import Anchor
from aos.errors import InvalidMessage, VerificationError

_NAME = re.compile(r"eip155:([1-9][0-9]{0,15}):(0x[0-9a-fA-F]{40})\Z")
_ANCHORED = REGISTRY.topic("LogAnchored")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryName:
    """An OperatorRegistry, as CAIP-10 names accounts: ``eip155:CHAIN_ID:0xADDRESS``. ``address`` in lower case."""

    chain_id: int
    address: str

    def __str__(self) -> str:
        return f"eip155:{self.chain_id}:{self.address}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How far a reader has come: the final block up to which it read, and the last anchor by then."""

    number: int
    hash: bytes
    last: Anchor | None


def read_registry_name(text: str) -> RegistryName:
    """Raises InvalidMessage ``chain.registry_name``."""
    found = _NAME.match(text)
    if found is None:
        raise InvalidMessage(
            "chain.registry_name",
            f"not a contract on a chain: {text[:80]!r}",
            field="--registry",
            hint="eip155:CHAIN_ID:0xADDRESS, as `aos chain status` shows it",
        )
    return RegistryName(chain_id=int(found[1]), address=found[2].lower())


class AnchorReader:
    """Reads the anchors in ``registry``, whose owner must be the log's dispatcher."""

    def __init__(
        self, node: ChainNode, registry: RegistryName, owner: str, *, clock: Callable[[], int] = now_s
    ) -> None:
        self._node, self._registry, self._owner, self._clock = node, registry, owner, clock

    async def since(self, seen: Seen | None) -> tuple[list[Anchor], Seen]:
        """The anchors of final blocks since ``seen``, oldest first, and how far that is.

        Raises VerificationError ``chain.id``, ``chain.contract``, ``chain.foreign``, ``chain.rewritten``; InvalidMessage
        ``chain.answer`` (the node's events do not end where the contract's state does); Unavailable ``chain.*``.
        """
        final = await newest_final(self._node, self._clock)
        if seen is not None:
            await check_history(self._node, final, number=seen.number, digest=seen.hash)
        await self._check(final)
        first = 0 if seen is None else seen.number + 1
        found = await self._told([_ANCHORED], first, final) if first <= final.number else []
        held = await last_anchor(self._node, self._registry.address, final)
        before = [] if seen is None or seen.last is None else [seen.last]
        told = [*before, *found]
        rising = all(a.size < b.size for a, b in itertools.pairwise(told))
        same = (held and (held.size, held.root)) == (told[-1].size, told[-1].root) if told else held is None
        if not rising or not same:
            raise InvalidMessage(
                "chain.answer",
                f"the node {self._node.name} tells anchors that do not lead to the one that the contract holds",
                hint="ask another node",
            )
        return found, Seen(number=final.number, hash=final.hash, last=told[-1] if told else None)

    async def of_size(self, size: int) -> Anchor | None:
        """The anchor of exactly this size in a final block; None where there is none. Raises as ``since``."""
        final = await newest_final(self._node, self._clock)
        await self._check(final)
        found = await self._told([_ANCHORED, size.to_bytes(32)], 0, final)
        return found[0] if found else None

    async def _told(self, topics: Sequence[bytes], first: int, final: Block) -> list[Anchor]:
        entries = await self._node.logs(self._registry.address, topics, first=first, last=final.number)
        anchors = []
        for entry in entries:
            event = REGISTRY.event(entry.topics, entry.data)
            if event is None:
                raise InvalidMessage(
                    "chain.answer", f"the node {self._node.name} tells no event of this contract"
                )
            anchors.append(Anchor(size=event.args["size"], root=event.args["root"], block=entry.block))
        return anchors

    async def _check(self, block: Block) -> None:
        code = await self._node.code(self._registry.address, block=block)
        if not REGISTRY.is_code(code):
            raise VerificationError(
                "chain.contract", f"there is no OperatorRegistry of this release at {self._registry}"
            )
        (answer,) = await self._node.calls(self._registry.address, [REGISTRY.call("owner")], block=block)
        owner = str(REGISTRY.answer("owner", answer)).lower()
        if owner != self._owner:
            raise VerificationError(
                "chain.foreign",
                f"the contract's owner is {owner}, the log is of the dispatcher {self._owner}",
            )
