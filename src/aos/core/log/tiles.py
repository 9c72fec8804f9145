"""A tree kept as tiles (docs/spec/15-log.md, "Tiles"; c2sp.org/tlog-tiles): growing it, and reading proofs out of it.

A tile is 256 consecutive hashes of tile level L, which are the nodes of height 8·L; the last one may be partial. Growing needs the
partial tiles alone, a proof the few tiles that ``Plan.tiles`` names. Reading them is the caller's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aos.core.merkle import EMPTY_ROOT, HASH_BYTES, MAX_TREE_SIZE, node_hash
from aos.errors import InvalidMessage

HEIGHT = 8
WIDTH = 1 << HEIGHT

_PATH = re.compile(
    r"(?P<level>0|[1-9][0-9]?|entries)/(?P<index>(?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?\Z",
    re.ASCII,
)

Tile = tuple[int, int]
"""Tile level and index."""
Node = tuple[int, int]
"""Height and index: the root over the leaves index·2^height up to (index+1)·2^height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TilePath:
    """What a tile's path names; ``level`` -1 is the entries themselves, ``width`` 256 a full tile."""

    level: int
    index: int
    width: int


def read_tile_path(path: str) -> TilePath:
    """``<L>/<N>[.p/<W>]``, N in three-digit elements. Raises InvalidMessage ``log.tile_path``."""
    match = _PATH.match(path)
    if match is None:
        raise InvalidMessage("log.tile_path", "a tile is LEVEL/INDEX or LEVEL/INDEX.p/WIDTH", field="tile")
    index = int(match["index"].replace("x", "").replace("/", ""))
    width = WIDTH if match["width"] is None else int(match["width"])
    found = TilePath(
        level=-1 if match["level"] == "entries" else int(match["level"]), index=index, width=width
    )
    if (match["width"] is not None and width >= WIDTH) or found.level > 63 or tile_path(found) != path:
        raise InvalidMessage("log.tile_path", "the tile's path is not in its one form", field="tile")
    return found


def tile_path(tile: TilePath) -> str:
    """The path of a tile below ``tile/``."""
    digits = f"{tile.index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    parts = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    index = "/".join([f"x{part}" for part in parts[:-1]] + parts[-1:])
    level = "entries" if tile.level < 0 else str(tile.level)
    return f"{level}/{index}" + (f".p/{tile.width}" if tile.width < WIDTH else "")


def width_at(level: int, index: int, size: int) -> int:
    """How many hashes the tile holds in a tree of ``size`` leaves; 0 where it is not there."""
    return max(0, min(WIDTH, (size >> HEIGHT * max(level, 0)) - index * WIDTH))


def edge_tiles(size: int) -> list[Tile]:
    """The partial tiles at the right edge, from level 0 up: what ``grow`` needs of a tree of ``size`` leaves."""
    found, level = [], 0
    while size >> HEIGHT * level:
        if (size >> HEIGHT * level) % WIDTH:
            found.append((level, (size >> HEIGHT * level) // WIDTH))
        level += 1
    return found


def grow(size: int, edge: Mapping[Tile, bytes], leaves: Sequence[bytes]) -> dict[Tile, bytes]:
    """Append leaf hashes to a tree of ``size`` leaves; every tile that is new or changed, whole.

    ``edge`` holds the tiles of ``edge_tiles(size)``. Raises InvalidMessage ``log.tile_missing``.
    """
    changed: dict[Tile, bytes] = {}
    new, level = list(leaves), 0
    while new:
        first = size >> HEIGHT * level
        index, held = divmod(first, WIDTH)
        data = b"" if held == 0 else _tile(edge, (level, index))[: held * HASH_BYTES]
        if len(data) != held * HASH_BYTES:
            raise InvalidMessage("log.tile_missing", f"tile {level}/{index} is shorter than its tree")
        data += b"".join(new)
        above = []
        for start in range(0, len(data), WIDTH * HASH_BYTES):
            tile = data[start : start + WIDTH * HASH_BYTES]
            changed[level, index] = tile
            if len(tile) == WIDTH * HASH_BYTES:
                above.append(_fold_perfect(_hashes(tile)))
            index += 1
        new, level = above, level + 1
    return changed


@dataclass(frozen=True, slots=True)
class Plan:
    """Hashes to read out of tiles: each is the root over a run of perfect subtrees, given from left to right."""

    groups: tuple[tuple[Node, ...], ...]

    def tiles(self) -> frozenset[Tile]:
        """The tiles that ``resolve`` needs."""
        return frozenset(_place(node)[0] for group in self.groups for node in group)

    def resolve(self, tiles: Mapping[Tile, bytes]) -> list[bytes]:
        """The hashes (32 bytes each). Raises InvalidMessage ``log.tile_missing``."""
        return [_fold([_node(node, tiles) for node in group]) for group in self.groups]


def root_plan(size: int) -> Plan:
    """The root of the first ``size`` leaves (size > 0)."""
    return Plan((_cover(0, size),))


def inclusion_plan(leaf_index: int, size: int) -> Plan:
    """The inclusion path of a leaf (RFC 9162, 2.1.3.1). Raises InvalidMessage ``merkle.index_out_of_range``."""
    if not 0 <= leaf_index < size <= MAX_TREE_SIZE:
        raise InvalidMessage("merkle.index_out_of_range", "leaf index is beyond the tree", field="leaf_index")
    return range_plan(leaf_index, 1, size)


def range_plan(first: int, count: int, size: int) -> Plan:
    """What ``merkle.range_root`` needs beside ``count`` leaves from ``first`` on.

    Raises InvalidMessage ``merkle.index_out_of_range``.
    """
    if not (first >= 0 and 1 <= count <= size - first and size <= MAX_TREE_SIZE):
        raise InvalidMessage("merkle.index_out_of_range", "the leaves are beyond the tree", field="first")
    groups, height, start, end, width = [], 0, first, first + count, size
    while width > 1:
        if start & 1:
            groups.append(_cover((start - 1) << height, start << height))
        if end & 1 and end < width:
            groups.append(_cover(end << height, min((end + 1) << height, size)))
        start, end, width, height = start >> 1, end + 1 >> 1, width + 1 >> 1, height + 1
    return Plan(tuple(groups))


def consistency_plan(old_size: int, size: int) -> Plan:
    """The consistency path between two sizes (RFC 9162, 2.1.4.1). Raises InvalidMessage ``merkle.tree_size``."""
    if not 1 <= old_size <= size <= MAX_TREE_SIZE:
        raise InvalidMessage("merkle.tree_size", "old size is not within the tree", field="old_size")
    groups: list[tuple[Node, ...]] = []
    start, end, old, whole = 0, size, old_size, True
    while end - start != old:
        split = 1 << ((end - start - 1).bit_length() - 1)
        if old <= split:
            groups.append(_cover(start + split, end))
            end = start + split
        else:
            groups.append(_cover(start, start + split))
            start, old, whole = start + split, old - split, False
    if not whole:
        groups.append(_cover(start, end))
    return Plan(tuple(reversed(groups)))


def _cover(start: int, end: int) -> tuple[Node, ...]:
    """The perfect subtrees over the leaves ``start`` to ``end``, left to right; ``start`` is where one of them may begin."""
    nodes = []
    while start < end:
        height = (end - start).bit_length() - 1
        if start:
            height = min(height, (start & -start).bit_length() - 1)
        nodes.append((height, start >> height))
        start += 1 << height
    return tuple(nodes)


def _place(node: Node) -> tuple[Tile, int, int]:
    """The tile that a node is in, and which of its hashes the node is over."""
    height, index = node
    level, above = divmod(height, HEIGHT)
    first = index << above
    return (level, first // WIDTH), first % WIDTH, 1 << above


def _node(node: Node, tiles: Mapping[Tile, bytes]) -> bytes:
    tile, first, count = _place(node)
    data = _tile(tiles, tile)[first * HASH_BYTES : (first + count) * HASH_BYTES]
    if len(data) != count * HASH_BYTES:
        raise InvalidMessage("log.tile_missing", f"tile {tile[0]}/{tile[1]} is shorter than its tree")
    return _fold_perfect(_hashes(data))


def _tile(tiles: Mapping[Tile, bytes], tile: Tile) -> bytes:
    data = tiles.get(tile)
    if data is None:
        raise InvalidMessage("log.tile_missing", f"tile {tile[0]}/{tile[1]} is not there")
    return data


def _hashes(data: bytes) -> list[bytes]:
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


def _fold_perfect(level: list[bytes]) -> bytes:
    while len(level) > 1:
        level = [node_hash(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    return level[0]


def _fold(peaks: Sequence[bytes]) -> bytes:
    if not peaks:
        return EMPTY_ROOT
    node = peaks[-1]
    for peak in reversed(peaks[:-1]):
        node = node_hash(peak, node)
    return node
