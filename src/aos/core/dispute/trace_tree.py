"""The tree over a unit's trace (docs/spec/11-trace.md, "The tree"): its shape, ``unit_root``, and the openings of
any tiles at once.

A trace of n tiles is a tree of at most three levels, at most 256 wide, whose widths n alone decides. A node is the
RFC 9162 root over its children, so that they can be shown whole, and one of them by a binary path.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence

from aos.core.encoding import tag, tagged_hash
from aos.core.hashes import u32
from aos.core.merkle import leaf_hash, node_hash, tree_root
from aos.errors import InvalidMessage

MAX_WIDTH = 256
MAX_LEVELS = 3
MAX_TILES = MAX_WIDTH**MAX_LEVELS
TILE_TAG = tag("trace-tile")


def fanout(n_tiles: int) -> tuple[int, ...]:
    """Children of a node, level by level from the root: as few levels as there can be, as even as they can be.

    Raises InvalidMessage ``trace.size`` unless 1 <= n_tiles <= 256³.
    """
    if not 1 <= n_tiles <= MAX_TILES:
        raise InvalidMessage("trace.size", f"a trace has 1 to {MAX_TILES} tiles", field="n_tiles")
    levels = 1
    while MAX_WIDTH**levels < n_tiles:
        levels += 1
    width = 1
    while width**levels < n_tiles:
        width += 1
    return (-(-n_tiles // width ** (levels - 1)), *(width,) * (levels - 1))


def tile_hash(data: bytes) -> bytes:
    """The leaf hash of a tile's bytes."""
    return leaf_hash(TILE_TAG + data)


def unit_root(state_root: bytes, position: int, unit: int, n_tiles: int, root: bytes) -> bytes:
    """What a claimant signs of a unit's trace: its tree's ``root``, bound to place, size and run."""
    return tagged_hash("unit-root", state_root, u32(position), u32(unit), u32(n_tiles), root)


class TreeShape:
    """Spans and counts of the tree over ``n_tiles``; level 0 is the root, the last level are the tiles."""

    def __init__(self, n_tiles: int) -> None:
        """Raises InvalidMessage ``trace.size``."""
        self.n_tiles = n_tiles
        self.widths = fanout(n_tiles)
        self.depth = len(self.widths)
        spans = [1]
        for width in reversed(self.widths):
            spans.append(spans[-1] * width)
        self.spans = spans[::-1]
        """Tiles below a full node, by level."""

    def count(self, level: int) -> int:
        """Nodes of a level."""
        return -(-self.n_tiles // self.spans[level])

    def children(self, level: int, index: int) -> range:
        """The children of a node, as indices of the next level. Raises InvalidMessage ``trace.node``."""
        if not 0 <= level < self.depth or not 0 <= index < self.count(level):
            raise InvalidMessage("trace.node", "the trace has no such node", field="index")
        first = index * self.widths[level]
        return range(first, min(first + self.widths[level], self.count(level + 1)))

    def fold(self, tiles: Mapping[int, bytes], missing: Callable[[int, int, int], bytes]) -> bytes:
        """The root over known tile hashes and, for every largest binary subtree that has none of them, ``missing(level,
        first, end)``: the hash over nodes ``first`` … ``end`` - 1 of ``level``. They are asked for from left to right.
        """
        known = sorted(tiles)

        def node(level: int, first: int, end: int) -> bytes:
            start = first * self.spans[level]
            at = bisect_left(known, start)
            if at == len(known) or known[at] >= end * self.spans[level]:
                return missing(level, first, end)
            if end - first > 1:
                middle = first + (1 << ((end - first - 1).bit_length() - 1))
                return node_hash(node(level, first, middle), node(level, middle, end))
            if level == self.depth:
                return tiles[first]
            below = self.children(level, first)
            return node(level + 1, below.start, below.stop)

        return node(0, 0, 1)


class TraceTree:
    """A trace's tree with all nodes, as its maker holds it."""

    def __init__(self, tile_hashes: Sequence[bytes]) -> None:
        """Raises InvalidMessage ``trace.size``."""
        self.shape = TreeShape(len(tile_hashes))
        levels = [list(tile_hashes)]
        for level in reversed(range(self.shape.depth)):
            below = levels[-1]
            nodes = (self.shape.children(level, index) for index in range(self.shape.count(level)))
            levels.append([tree_root(below[each.start : each.stop]) for each in nodes])
        self._levels = levels[::-1]

    @property
    def root(self) -> bytes:
        """The root over all tiles."""
        return self._levels[0][0]

    def node(self, level: int, index: int) -> bytes:
        """The hash of node ``index`` of a level (0 the root, the last the tiles). Raises InvalidMessage
        ``trace.node``.
        """
        if not 0 <= level <= self.shape.depth or not 0 <= index < len(self._levels[level]):
            raise InvalidMessage("trace.node", "the trace has no such node", field="index")
        return self._levels[level][index]

    def children(self, level: int, index: int) -> list[bytes]:
        """The hashes of a node's children, at most 256. Raises InvalidMessage ``trace.node``."""
        below = self.shape.children(level, index)
        return self._levels[level + 1][below.start : below.stop]

    def range(self, level: int, first: int, end: int) -> bytes:
        """The hash over siblings ``first`` … ``end`` - 1 of a level."""
        return tree_root(self._levels[level][first:end])

    def path(self, tiles: Sequence[int]) -> list[bytes]:
        """What ``opened_root`` needs beside the hashes of ``tiles``."""
        path: list[bytes] = []

        def missing(level: int, first: int, end: int) -> bytes:
            path.append(tree_root(self._levels[level][first:end]))
            return path[-1]

        self.shape.fold({index: self._levels[-1][index] for index in tiles}, missing)
        return path


def opened_root(shape: TreeShape, tiles: Mapping[int, bytes], path: Iterator[bytes]) -> bytes:
    """The root that opened tile hashes lead to, with as many hashes of ``path`` as the tree dictates.

    Raises StopIteration where the path is too short.
    """
    return shape.fold(tiles, lambda level, first, end: next(path))
