"""The tree of a unit's trace, and where in it a game stands (docs/spec/13-dispute.md, "The tree of a unit").

The shape follows from the number of tiles and the fan-out alone: a node at level l covers ``span(l)`` consecutive
tiles, the last one of a level maybe fewer. A node's hash is the RFC 9162 root over its children's hashes; below the last
level stand the tiles' own hashes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from aos.core.dispute.moves import MAX_LEVELS, MAX_WIDTH
from aos.core.merkle import tree_root


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Tiles ``first`` … ``first + count - 1``, ``level`` steps below the root (level 0)."""

    level: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The tree over ``n_tiles`` tiles with ``fanout`` children at most at each level.

    Raises ValueError unless the fan-out has 1 to 3 levels of 1 to 256 that hold all tiles.
    """

    n_tiles: int
    fanout: tuple[int, ...]

    def __post_init__(self) -> None:
        levels = 1 <= len(self.fanout) <= MAX_LEVELS and all(1 <= n <= MAX_WIDTH for n in self.fanout)
        if not levels or not 1 <= self.n_tiles <= prod(self.fanout):
            raise ValueError(f"no tree of {self.n_tiles} tiles with fan-out {self.fanout}")

    @property
    def root(self) -> Node:
        """All tiles."""
        return Node(level=0, first=0, count=self.n_tiles)

    def is_tile(self, node: Node) -> bool:
        """True where ``node`` is one tile at the end of the descent."""
        return node.level == len(self.fanout)

    def width(self, node: Node) -> int:
        """How many children ``node`` has."""
        span = self._span(node.level + 1)
        return -(-node.count // span)

    def child(self, node: Node, index: int) -> Node:
        """Child ``index`` of ``node``, 0 <= index < width(node)."""
        span = self._span(node.level + 1)
        first = node.first + index * span
        return Node(level=node.level + 1, first=first, count=min(span, node.first + node.count - first))

    def hash(self, node: Node, tile_hashes: Sequence[bytes]) -> bytes:
        """The hash of ``node`` over the tiles' own hashes (as many as the tree has)."""
        if self.is_tile(node):
            return tile_hashes[node.first]
        return tree_root(self.children(node, tile_hashes))

    def children(self, node: Node, tile_hashes: Sequence[bytes]) -> list[bytes]:
        """The hashes of the children of ``node``, in order."""
        return [self.hash(self.child(node, index), tile_hashes) for index in range(self.width(node))]

    def _span(self, level: int) -> int:
        return prod(self.fanout[level:])
