"""Openings below ``state_root`` (docs/spec/07-inference.md, "Openings").

One tile, one tile of many positions, a unit, a trap, the header or token ids, with the hashes that lead up. Who
verifies gives the place and the sizes (``StateShape``); an opening holds bytes and hashes, never an index or a
size. So its encoding is their concatenation, of a length that place and shape dictate.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from aos.core.dispute.state_tree import (
    TOKENS_A_TILE,
    Part,
    StateHeader,
    StateShape,
    part_root,
    position_leaf,
    position_leaf_over,
    tile_hashes,
    trap_leaf,
    unit_leaf,
)
from aos.core.hashes import token_bytes
from aos.core.merkle import (
    HASH_BYTES,
    MerkleTree,
    inclusion_root,
    leaf_hash,
    range_path_length,
    range_root,
)
from aos.errors import InvalidMessage, VerificationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One tile of one part of one unit, at ``count`` positions from ``position`` on."""

    position: int
    unit: int
    part: int
    tile: int
    count: int = 1

    @property
    def positions(self) -> range:
        """The positions."""
        return range(self.position, self.position + self.count)

    def parts(self, shape: StateShape) -> list[tuple[Part, ...]]:
        """The unit's parts at every position. Raises InvalidMessage ``state.place``."""
        if not 1 <= self.count <= shape.n_positions:
            raise InvalidMessage("state.place", "the run has not so many positions", field="count")
        parts = [shape.parts(position, self.unit) for position in self.positions]
        if any(not 0 <= self.part < len(each) for each in parts):
            raise InvalidMessage("state.place", "the unit has no such part there", field="part")
        return parts


# --- openings


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def hashes(self, count: int) -> tuple[bytes, ...]:
        return tuple(self.take(HASH_BYTES) for _ in range(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafOpening:
    """One unit's leaf at consecutive positions: its path within each position, and the positions' one."""

    unit_paths: tuple[tuple[bytes, ...], ...]
    path: tuple[bytes, ...]

    @staticmethod
    def size(shape: StateShape, position: int, unit: int, count: int = 1) -> int:
        """Bytes of the encoding. Raises InvalidMessage ``state.place``."""
        return HASH_BYTES * sum(_path_lengths(shape, position, unit, count))

    def encode(self) -> bytes:
        """Every hash, one after the other."""
        return b"".join((*(b"".join(path) for path in self.unit_paths), *self.path))

    @classmethod
    def decode(cls, data: bytes, shape: StateShape, position: int, unit: int, count: int = 1) -> Self:
        """Raises InvalidMessage ``state.place``, ``state.opening_length``."""
        _check_length(data, cls.size(shape, position, unit, count))
        return cls._read(_Reader(data), shape, position, unit, count)

    @classmethod
    def _read(cls, reader: _Reader, shape: StateShape, position: int, unit: int, count: int) -> Self:
        *units, top = _path_lengths(shape, position, unit, count)
        return cls(
            unit_paths=tuple(reader.hashes(length) for length in units),
            path=reader.hashes(top),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StateOpening:
    """One tile at consecutive positions, with all that leads from it to ``state_root``.

    Per position: the tile, its path within the part, and the roots of the unit's other parts.
    """

    tiles: tuple[bytes, ...]
    tile_paths: tuple[tuple[bytes, ...], ...]
    other_parts: tuple[tuple[bytes, ...], ...]
    leaves: LeafOpening

    @staticmethod
    def size(shape: StateShape, place: Place) -> int:
        """Bytes of the encoding. Raises InvalidMessage ``state.place``."""
        size = LeafOpening.size(shape, place.position, place.unit, place.count)
        for parts in place.parts(shape):
            part = parts[place.part]
            size += part.tile_size(place.tile)
            size += HASH_BYTES * (range_path_length(place.tile, 1, part.tiles) + len(parts) - 1)
        return size

    def encode(self) -> bytes:
        """Per position tile, path and other parts; then the leaves' opening."""
        out = []
        for tile, path, others in zip(self.tiles, self.tile_paths, self.other_parts, strict=True):
            out += [tile, *path, *others]
        return b"".join(out) + self.leaves.encode()

    @classmethod
    def decode(cls, data: bytes, shape: StateShape, place: Place) -> Self:
        """Raises InvalidMessage ``state.place``, ``state.opening_length``."""
        _check_length(data, cls.size(shape, place))
        reader = _Reader(data)
        tiles, paths, others = [], [], []
        for parts in place.parts(shape):
            part = parts[place.part]
            tiles.append(reader.take(part.tile_size(place.tile)))
            paths.append(reader.hashes(range_path_length(place.tile, 1, part.tiles)))
            others.append(reader.hashes(len(parts) - 1))
        return cls(
            tiles=tuple(tiles),
            tile_paths=tuple(paths),
            other_parts=tuple(others),
            leaves=LeafOpening._read(reader, shape, place.position, place.unit, place.count),
        )


def verify_leaves(
    state_root: bytes,
    shape: StateShape,
    position: int,
    unit: int,
    leaves: Sequence[bytes],
    opening: LeafOpening,
) -> None:
    """Check that ``leaves`` are the unit's leaf hashes at the positions from ``position`` on.

    Raises InvalidMessage ``state.place``; VerificationError ``state.opening``.
    """
    _path_lengths(shape, position, unit, len(leaves))
    if len(opening.unit_paths) != len(leaves):
        raise _broken("the opening is of another number of positions")
    try:
        hashes = [
            position_leaf_over(at, shape.units(at), inclusion_root(leaf, unit, shape.units(at), path))
            for at, (leaf, path) in enumerate(zip(leaves, opening.unit_paths, strict=True), start=position)
        ]
        root = range_root(hashes, 1 + position, 1 + shape.n_positions, opening.path)
    except (InvalidMessage, VerificationError) as error:
        raise _broken(error.message) from error
    if root != state_root:
        raise _broken("the opening does not lead to the state root")


def verify_units(
    state_root: bytes, shape: StateShape, position: int, units_root: bytes, path: Sequence[bytes]
) -> None:
    """Check that the position has as many units as the shape says; ``units_root`` is the root over their leaves.

    Raises InvalidMessage ``state.place``; VerificationError ``state.opening``.
    """
    hashed = position_leaf_over(position, shape.units(position), units_root)
    try:
        root = range_root([hashed], 1 + position, 1 + shape.n_positions, path)
    except (InvalidMessage, VerificationError) as error:
        raise _broken(error.message) from error
    if root != state_root:
        raise _broken("the position has another number of units")


def verify_tiles(
    state_root: bytes, shape: StateShape, place: Place, opening: StateOpening
) -> tuple[bytes, ...]:
    """The tile of every position, where ``state_root`` committed to them.

    Raises InvalidMessage ``state.place``; VerificationError ``state.opening``.
    """
    everywhere = place.parts(shape)
    if not len(opening.tiles) == len(opening.tile_paths) == len(opening.other_parts) == len(everywhere):
        raise _broken("the opening is of another number of positions")
    leaves = []
    rows = zip(
        place.positions, everywhere, opening.tiles, opening.tile_paths, opening.other_parts, strict=True
    )
    for position, parts, tile, path, others in rows:
        part = parts[place.part]
        if len(tile) != part.tile_size(place.tile):
            raise _broken("a tile has another size")
        if len(others) != len(parts) - 1 or any(len(root) != HASH_BYTES for root in others):
            raise _broken("the roots of the unit's other parts are not there")
        try:
            root = inclusion_root(leaf_hash(tile), place.tile, part.tiles, path)
        except (InvalidMessage, VerificationError) as error:
            raise _broken(error.message) from error
        leaves.append(unit_leaf(position, place.unit, (*others[: place.part], root, *others[place.part :])))
    verify_leaves(state_root, shape, place.position, place.unit, leaves, opening.leaves)
    return opening.tiles


def verify_trap(state_root: bytes, shape: StateShape, op: int, opening: LeafOpening) -> None:
    """Check that the run trapped in ``op`` of the shape's ``trap_unit``, at its last position.

    Raises InvalidMessage ``state.trap`` for a shape without a trap; VerificationError ``state.opening``.
    """
    if shape.trap_unit is None:
        raise InvalidMessage("state.trap", "the run did not trap", field="trap_unit")
    position = shape.n_positions - 1
    leaf = trap_leaf(position, shape.trap_unit, op)
    verify_leaves(state_root, shape, position, shape.trap_unit, [leaf], opening)


def verify_header(state_root: bytes, entry: bytes, path: Sequence[bytes]) -> StateHeader:
    """The header that ``state_root`` committed to. The caller checks its members, first of all ``check()``.

    Raises InvalidMessage ``state.header``; VerificationError ``state.opening``.
    """
    header = StateHeader.read(entry)
    try:
        root = inclusion_root(leaf_hash(entry), 0, 1 + header.n_positions, path)
    except (InvalidMessage, VerificationError) as error:
        raise _broken(error.message) from error
    if root != state_root:
        raise _broken("the header is not that of the state root")
    return header


def verify_tokens(header: StateHeader, tile: int, data: bytes, path: Sequence[bytes]) -> tuple[int, ...]:
    """The token ids 64 · ``tile`` … of prompt and output, where the header committed to them.

    Raises InvalidMessage ``state.place``; VerificationError ``state.opening``.
    """
    part = Part(4 * (header.n_prompt + header.n_out), 4 * TOKENS_A_TILE)
    if len(data) != part.tile_size(tile):
        raise _broken("a tile of tokens has another size")
    try:
        root = inclusion_root(leaf_hash(data), tile, part.tiles, path)
    except (InvalidMessage, VerificationError) as error:
        raise _broken(error.message) from error
    if root != header.tokens_root:
        raise _broken("the tokens are not those of the header")
    return struct.unpack(f"<{len(data) // 4}I", data)


# --- the claimant's side


class StateTree:
    """A run's tree, from the leaf hashes of its units: what its owner keeps to open any of it.

    ``units`` are per position those of its units, in order; a trap is the last of the last.
    """

    def __init__(self, header: StateHeader, units: Sequence[Sequence[bytes]]) -> None:
        """Raises InvalidMessage ``state.positions`` where the header counts other positions."""
        if len(units) != header.n_positions:
            raise InvalidMessage(
                "state.positions", "the header counts other positions than there are", field="n_positions"
            )
        self.header = header
        self.units = units
        leaves = [position_leaf(position, each) for position, each in enumerate(units)]
        self._tree = MerkleTree([leaf_hash(header.entry()), *leaves])

    @property
    def root(self) -> bytes:
        """The ``state_root``."""
        return self._tree.root

    def open_header(self) -> tuple[bytes, ...]:
        """The path that ``verify_header`` takes beside the header's entry."""
        return tuple(self._tree.range_path(0, 1))

    def open_leaves(self, position: int, unit: int, count: int = 1) -> LeafOpening:
        """The unit's leaf at ``count`` positions. Raises InvalidMessage ``merkle.index_out_of_range``."""
        path = self._tree.range_path(1 + position, count)
        return LeafOpening(
            unit_paths=tuple(
                tuple(MerkleTree(self.units[at]).range_path(unit, 1))
                for at in range(position, position + count)
            ),
            path=tuple(path),
        )

    def open_units(self, position: int) -> tuple[bytes, ...]:
        """The root over a position's units, and its path. Raises InvalidMessage ``merkle.index_out_of_range``."""
        return MerkleTree(self.units[position]).root, *self._tree.range_path(1 + position, 1)

    def open_tiles(
        self, shape: StateShape, place: Place, payloads: Sequence[Sequence[bytes]]
    ) -> StateOpening:
        """The tile at every position of ``place``; ``payloads`` are the unit's parts at each of them.

        Raises InvalidMessage ``state.place``, and ``state.payload`` for parts of other sizes.
        """
        tiles, paths, others = [], [], []
        for parts, payload in zip(place.parts(shape), payloads, strict=True):
            if [part.size for part in parts] != [len(data) for data in payload]:
                raise InvalidMessage("state.payload", "a part has another size", field="payloads")
            tile_bytes = parts[place.part].tile_bytes
            data = payload[place.part]
            at = place.tile * tile_bytes
            tiles.append(data[at : at + parts[place.part].tile_size(place.tile)])
            paths.append(tuple(MerkleTree(tile_hashes(data, tile_bytes)).range_path(place.tile, 1)))
            others.append(
                tuple(
                    part_root(other, part.tile_bytes)
                    for index, (part, other) in enumerate(zip(parts, payload, strict=True))
                    if index != place.part
                )
            )
        return StateOpening(
            tiles=tuple(tiles),
            tile_paths=tuple(paths),
            other_parts=tuple(others),
            leaves=self.open_leaves(place.position, place.unit, place.count),
        )


def open_tokens(tokens: Sequence[int], tile: int) -> tuple[bytes, tuple[bytes, ...]]:
    """A tile of token ids and its path, for ``verify_tokens``. Raises InvalidMessage ``state.place``."""
    data, tile_bytes = token_bytes(tokens), 4 * TOKENS_A_TILE
    size = Part(len(data), tile_bytes).tile_size(tile)
    path = MerkleTree(tile_hashes(data, tile_bytes)).range_path(tile, 1)
    return data[tile * tile_bytes : tile * tile_bytes + size], tuple(path)


def _path_lengths(shape: StateShape, position: int, unit: int, count: int) -> list[int]:
    """Lengths of the paths within the positions, then of the positions' own."""
    if not 1 <= count <= shape.n_positions:
        raise InvalidMessage("state.place", "the run has not so many positions", field="count")
    lengths = []
    for at in range(position, position + count):
        shape.is_trap(at, unit)  # the unit is there
        lengths.append(range_path_length(unit, 1, shape.units(at)))
    return [*lengths, range_path_length(1 + position, count, 1 + shape.n_positions)]


def _check_length(data: bytes, size: int) -> None:
    if len(data) != size:
        raise InvalidMessage(
            "state.opening_length", f"the opening has {len(data)} bytes instead of {size}", field="opening"
        )


def _broken(what: str) -> VerificationError:
    return VerificationError(
        "state.opening", what, field="opening", hint="whoever committed to the root can open it"
    )
