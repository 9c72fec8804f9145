"""Computed beginnings of prompts, kept to be used again (docs/adr/0007-prefixes-stay-with-their-owner.md).

Pages of keys, values and leaf hashes are found by scope and by the very tokens from position 0 on; a page
depends on nothing else, so a run that takes it over has the bits that it would have computed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from aos.engine.native import PAGE_POSITIONS, Page


@dataclass(eq=False, slots=True)
class _Node:
    """One page after its parent's. ``users`` runs read it or wrote it and are not done."""

    parent: "_Node | None"
    tokens: tuple[int, ...]
    page: Page | None
    used: int = 0
    users: int = 0
    children: "list[_Node]" = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The longest known beginning of some tokens: ``pages`` hold its ``positions``, the last maybe in part."""

    pages: tuple[Page, ...] = ()
    positions: int = 0
    nodes: tuple[_Node, ...] = ()

    @property
    def full_pages(self) -> int:
        """Pages that a run reads where they are; the rest of the prefix is copied."""
        return self.positions // PAGE_POSITIONS


class PrefixCache:
    """Pages by scope and tokens, the least recently used dropped first. Not thread-safe."""

    def __init__(self) -> None:
        self._roots: dict[bytes, _Node] = {}
        self._clock = 0
        self._pages = 0

    @property
    def pages(self) -> int:
        return self._pages

    def find(self, scope: bytes, tokens: Sequence[int]) -> Prefix:
        """The longest beginning of ``tokens`` that ``scope`` has, held until ``release``."""
        found: list[_Node] = []
        positions = 0
        node = self._roots.get(scope)
        while node is not None and positions < len(tokens):
            block = tuple(tokens[positions : positions + PAGE_POSITIONS])
            best, length = None, 0
            for child in node.children:
                common = _common(child.tokens, block)
                if common > length:
                    best, length = child, common
            if best is None:
                break
            found.append(best)
            positions += length
            node = best if length == PAGE_POSITIONS else None
        self._hold(found)
        pages = tuple(node.page for node in found if node.page is not None)
        return Prefix(pages, positions, tuple(found))

    def _hold(self, nodes: Sequence[_Node]) -> None:
        self._clock += 1
        for node in nodes:
            node.used = self._clock
            node.users += 1

    def release(self, prefix: Prefix) -> None:
        """The run that held it is done."""
        for node in prefix.nodes:
            node.users -= 1

    def add(self, scope: bytes, tokens: Sequence[int], page_of: Callable[[int], Page]) -> Prefix:
        """Keep a run's positions, whose page ``index`` is ``page_of(index)``. Gives the pages that were new,
        held until ``release``.
        """
        node = self._roots.setdefault(scope, _Node(None, (), None))
        added: list[_Node] = []
        for start in range(0, len(tokens), PAGE_POSITIONS):
            block = tuple(tokens[start : start + PAGE_POSITIONS])
            known = next((child for child in node.children if child.tokens[: len(block)] == block), None)
            if known is None:
                # A shorter beginning of the same page is worth nothing beside it, unless a run still has it.
                for child in [c for c in node.children if block[: len(c.tokens)] == c.tokens and not c.users]:
                    self._drop(child)
                known = _Node(node, block, page_of(start // PAGE_POSITIONS))
                node.children.append(known)
                self._pages += 1
                added.append(known)
            node = known
        self._hold(added)
        self._forget_empty(scope)
        return Prefix(tuple(node.page for node in added if node.page is not None), len(tokens), tuple(added))

    def evict(self) -> bool:
        """Drop the least recently used page that nobody holds and no other page follows. False if there is
        none.
        """
        leaves = [node for node in self._nodes() if not node.children and not node.users]
        if not leaves:
            return False
        self._drop(min(leaves, key=lambda node: node.used))
        for scope in list(self._roots):
            self._forget_empty(scope)
        return True

    def _nodes(self) -> Iterator[_Node]:
        rest = list(self._roots.values())
        while rest:
            node = rest.pop()
            rest.extend(node.children)
            if node.page is not None:
                yield node

    def _drop(self, node: _Node) -> None:
        if node.parent is not None:
            node.parent.children.remove(node)
        node.page = None
        self._pages -= 1

    def _forget_empty(self, scope: bytes) -> None:
        if not self._roots[scope].children:
            del self._roots[scope]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
