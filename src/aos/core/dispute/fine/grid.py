"""Ops and how their outputs are cut into tiles (docs/spec/11-trace.md, "Ops").

An op's output is groups of values; within a group consecutive values make a tile, the last may be short. Everything
that depends on a tile's number is here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aos.errors import InvalidMessage

if TYPE_CHECKING:
    from aos.core.dispute.fine.operands import Operands, Source

    Compute = Callable[[Operands, int, int, int], bytes]
    """The bytes of values ``first`` … ``end`` - 1 of a group. Raises Poisoned where an operand is not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """``groups`` of ``values``, ``tile`` of them in a tile, ``size`` bytes each (``last_size`` in the last group)."""

    groups: int = 1
    values: int
    tile: int
    size: int
    last_size: int = 0

    @property
    def tiles_a_group(self) -> int:
        """Tiles of every group."""
        return -(-self.values // self.tile)

    @property
    def tiles(self) -> int:
        """Tiles in all."""
        return self.groups * self.tiles_a_group

    def value_size(self, group: int) -> int:
        """Bytes of a value of the group."""
        return self.last_size if self.last_size and group == self.groups - 1 else self.size

    def place(self, tile: int) -> tuple[int, int, int]:
        """(group, first value, end) of a tile."""
        group, index = divmod(tile, self.tiles_a_group)
        first = index * self.tile
        return group, first, min(first + self.tile, self.values)

    def tile_size(self, tile: int) -> int:
        """Bytes of a tile."""
        group, first, end = self.place(tile)
        return (end - first) * self.value_size(group)

    @property
    def full_tile_size(self) -> int:
        """Bytes of a tile that is not short."""
        return min(self.tile, self.values) * self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product's chunk sums, for who computes all of its tiles at once."""

    tensor: str
    shape: tuple[int, int]
    source: "Source"
    quantised: "Op"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The scores of all heads, likewise: queries after RoPE, and this position's keys."""

    queries: "Source"
    keys: "Op"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The weighted sums of all heads, likewise: e of every position, and this position's values."""

    weights: "Op"
    values: "Op"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Op:
    """One op of a unit, its tiles numbered from ``first`` on.

    ``trap``: the op's number in rule 10, 0 for an op that it does not check. ``part``: the part of the unit's payload
    that ``state_root`` commits to whose tiles these are, tile for tile. ``demanded``: what its one tile must be in every
    unit that did not trap. ``whole``: of the ops with the most tiles, what they compute. ``element``: the bytes of a part
    of a tile that is judged alone (docs/spec/16-chain-disputes.md), 0 for the whole tile; ``by_value``: from the operands of
    its value alone, else from those of the tile; ``component``: computes a value's element (its number in place of an end)
    where that reads less than the value.
    """

    name: str
    grid: Grid
    compute: "Compute"
    first: int
    trap: int = 0
    part: int | None = None
    demanded: bytes | None = None
    whole: Product | Scores | Mix | None = None
    element: int = 4
    by_value: bool = False
    component: "Compute | None" = None

    def tiles_of(self, group: int, first: int, end: int) -> range:
        """The trace's tiles that hold values ``first`` … ``end`` - 1 of a group."""
        base = self.first + group * self.grid.tiles_a_group
        return range(base + first // self.grid.tile, base + (end - 1) // self.grid.tile + 1)


FLAGGED_BYTES = 16_384
FLAGGED_TILES = 128
TRAP = "trap"


class OpList:
    """A unit's ops in topological order, while they are listed."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.n_tiles = 0

    def add(
        self,
        name: str,
        grid: Grid,
        compute: "Compute",
        *,
        trap: int = 0,
        part: int | None = None,
        demanded: bytes | None = None,
        whole: Product | Scores | Mix | None = None,
        element: int = 4,
        by_value: bool = False,
        component: "Compute | None" = None,
    ) -> Op:
        """List the next op."""
        op = Op(
            name=name,
            grid=grid,
            compute=compute,
            first=self.n_tiles,
            trap=trap,
            part=part,
            demanded=demanded,
            whole=whole,
            element=element,
            by_value=by_value,
            component=component,
        )
        self.ops.append(op)
        self.n_tiles += grid.tiles
        return op

    def add_trap(self) -> Op:
        """The last ops: a flag for every run of tiles of a checked op, and the unit's trap."""
        flags = [(self._add_flags(op), op.trap) for op in self.ops if op.trap]

        def trap(operands: "Operands", group: int, first: int, end: int) -> bytes:
            for op, number in flags:
                if any(operands.raw(op, 0, 0, op.grid.values)):
                    return number.to_bytes(4, "little")
            return bytes(4)

        return self.add(TRAP, Grid(values=1, tile=1, size=4), trap)

    def _add_flags(self, checked: Op) -> Op:
        at_once = max(1, min(FLAGGED_TILES, FLAGGED_BYTES // checked.grid.full_tile_size))

        def flag(operands: "Operands", group: int, first: int, end: int) -> bytes:
            start = checked.first + first * at_once
            tiles = range(start, min(start + at_once, checked.first + checked.grid.tiles))
            return bytes([not all([operands.finite_tile(tile) for tile in tiles])])

        values = -(-checked.grid.tiles // at_once)
        return self.add(f"{checked.name}.finite", Grid(values=values, tile=1, size=1), flag, element=1)


class UnitShape:
    """The ops of one unit at one position, and the numbers of their tiles."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = tuple(ops)
        self.n_tiles = ops[-1].first + ops[-1].grid.tiles

    def op_of(self, index: int) -> Op:
        """The op that tile ``index`` belongs to. Raises InvalidMessage ``trace.tile``."""
        if not 0 <= index < self.n_tiles:
            raise InvalidMessage("trace.tile", f"the unit has {self.n_tiles} tiles", field="index")
        low, high = 0, len(self.ops) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.ops[middle].first <= index:
                low = middle
            else:
                high = middle - 1
        return self.ops[low]

    def tile_size(self, index: int) -> int:
        """Bytes of tile ``index``. Raises InvalidMessage ``trace.tile``."""
        op = self.op_of(index)
        return op.grid.tile_size(index - op.first)

    def named(self, name: str) -> Op:
        """The op of that name. Raises KeyError."""
        for op in self.ops:
            if op.name == name:
                return op
        raise KeyError(name)
