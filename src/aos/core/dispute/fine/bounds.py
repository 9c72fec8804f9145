"""A unit as ``state_root`` commits it: what a game about it begins with (docs/spec/11-trace.md, "Bounds").

Bounds open the run's header, the unit's leaf, the hashes of all tiles of its payload, and the head of its sampler record.
All lengths follow from header, graph and parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from aos.core.arithmetic.sampler import Rules
from aos.core.dispute.fine.grid import UnitShape
from aos.core.dispute.fine.layer import embedding_ops, layer_ops
from aos.core.dispute.fine.operands import UnitContext
from aos.core.dispute.fine.tail import tail_ops
from aos.core.dispute.state_opening import LeafOpening, verify_header, verify_leaves, verify_units
from aos.core.dispute.state_tree import (
    HEADER_BYTES,
    RECORD,
    StateHeader,
    StateShape,
    graph_shape,
    trap_leaf,
    unit_leaf,
)
from aos.core.hashes import RunParams, run_params_hash, u32
from aos.core.manifest import GRAPH_KINDS, GraphSizes, Manifest
from aos.core.merkle import HASH_BYTES, leaf_hash, range_path_length, tree_root
from aos.errors import VerificationError

LAST_OP = 23
MAX_BOUNDS_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a referee knows of a run beside its ``state_root``: manifest and parameters, each checked against its hash,
    and the salt of the latter.
    """

    manifest: Manifest
    params: RunParams
    salt: bytes
    state_root: bytes

    @property
    def graph(self) -> GraphSizes:
        """Raises VerificationError ``tile.model`` where the canonical arithmetic does not cover the model."""
        kind = GRAPH_KINDS.get(self.manifest.architecture)
        if self.manifest.graph is None or kind is None or self.manifest.arithmetic != 1:
            raise VerificationError(
                "tile.model", "the model is none of the canonical arithmetic", field="manifest.arithmetic"
            )
        return self.manifest.graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """``trap_unit``: of a run that trapped; ``op``: of a unit that did; ``head``: the record's first tile;
    ``last_units``: where a run that trapped has no such unit, the root over the last position's units, and its path.
    """

    header: bytes
    header_path: tuple[bytes, ...]
    trap_unit: int | None
    op: int
    tile_hashes: tuple[tuple[bytes, ...], ...]
    leaf_opening: LeafOpening | None
    head: bytes
    last_units: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """The bytes of a game's first answer."""
        out = [self.header, *self.header_path]
        if self.trap_unit is not None:
            out.append(u32(self.trap_unit))
        if self.op:
            out.append(u32(self.op))
        for part in self.tile_hashes:
            out += part
        if self.leaf_opening is not None:
            out.append(self.leaf_opening.encode())
        return b"".join((*out, self.head, *self.last_units))

    @classmethod
    def decode(cls, data: bytes, run: Run, position: int, unit: int) -> tuple[Self, StateHeader, StateShape]:
        """Read bounds of a place, and check that the header is that of ``run``; whether the rest leads to ``state_root``
        is ``open_unit``'s to say.

        Raises VerificationError and InvalidMessage ``tile.bounds``, ``state.*``, ``tile.header``.
        """
        if len(data) > MAX_BOUNDS_BYTES:
            raise _broken("they are too long")
        reader = Reader(data)
        entry = reader.take(HEADER_BYTES)
        count = 1 + StateHeader.read(entry).n_positions
        path = reader.hashes(range_path_length(0, 1, count))
        header = verify_header(run.state_root, entry, path)
        check_header(run, header)
        trapped = header.finish_reason == "numeric_trap"
        trap_unit = reader.number() if trapped else None
        shape = state_shape(run, header, trap_unit)
        op, hashes, opening, head = 0, [], None, b""
        last_units: tuple[bytes, ...] = ()
        if exists(shape, position, unit):
            if shape.is_trap(position, unit):
                op = reader.number()
                if not 1 <= op <= LAST_OP:
                    raise _broken("the trap's op has no such number")
            else:
                hashes = [reader.hashes(part.tiles) for part in shape.parts(position, unit)]
            size = LeafOpening.size(shape, position, unit)
            opening = LeafOpening.decode(reader.take(size), shape, position, unit)
            if len(hashes) > RECORD and unit == shape.n_layers + 1 and hashes[RECORD]:
                head = reader.take(shape.parts(position, unit)[RECORD].tile_size(0))
        elif trapped:
            last_units = reader.hashes(1 + range_path_length(count - 1, 1, count))
        reader.end()
        bounds = cls(
            header=entry,
            header_path=path,
            trap_unit=trap_unit,
            op=op,
            tile_hashes=tuple(hashes),
            leaf_opening=opening,
            head=head,
            last_units=last_units,
        )
        return bounds, header, shape


class Reader:
    """Reads bytes whose lengths the reader dictates. Raises VerificationError ``tile.bounds``."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if size > len(self._data) - self._at:
            raise _broken("they are too short")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self) -> int:
        """The next u32."""
        return int.from_bytes(self.take(4), "big")

    def hashes(self, count: int) -> tuple[bytes, ...]:
        """The next hashes."""
        return tuple(self.take(HASH_BYTES) for _ in range(count))

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._data):
            raise _broken("they are too long")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit whose bounds hold. ``leaf`` is its leaf hash, ``outputs`` pairs each trace tile that ``state_root`` commits
    (or whose value every run must have) with the leaf hash of the bytes it must be.

    ``context`` and ``shape`` are None where the header says that there is no such unit.
    """

    context: UnitContext | None
    shape: UnitShape | None
    leaf: bytes
    outputs: tuple[tuple[int, bytes], ...]
    cuts: tuple[int, int] | None

    @property
    def trap_op(self) -> int | None:
        """The op that the unit's trap leaf names, 0 where it has values; None without the unit."""
        return None if self.context is None else self.context.trap_op


def open_unit(run: Run, position: int, unit: int, bounds: bytes) -> Unit:
    """Check a claimant's bounds of the unit at a position.

    Raises VerificationError and InvalidMessage: ``tile.bounds``, ``tile.header``, ``tile.model``, ``state.*``.
    """
    opened, header, state = Bounds.decode(bounds, run, position, unit)
    if opened.leaf_opening is None:
        if opened.last_units:
            root, *path = opened.last_units
            verify_units(run.state_root, state, state.n_positions - 1, root, path)
        return Unit(context=None, shape=None, leaf=b"", outputs=(), cuts=None)
    leaf = trap_leaf(position, unit, opened.op)
    if not opened.op:
        leaf = unit_leaf(position, unit, [tree_root(part) for part in opened.tile_hashes])
    verify_leaves(run.state_root, state, position, unit, [leaf], opened.leaf_opening)
    cuts = None
    if opened.head:
        if leaf_hash(opened.head) != opened.tile_hashes[RECORD][0]:
            raise _broken("the head of the record is not the one that was committed")
        cuts = int.from_bytes(opened.head[8:12], "little"), int.from_bytes(opened.head[12:16], "little")
    context = unit_context(run, header, state, position, unit, opened.op)
    shape = unit_shape(context)
    outputs = committed_outputs(shape, opened.tile_hashes, opened.op)
    return Unit(context=context, shape=shape, leaf=leaf, outputs=outputs, cuts=cuts)


def committed_outputs(
    shape: UnitShape, tile_hashes: Sequence[Sequence[bytes]], trap_op: int
) -> tuple[tuple[int, bytes], ...]:
    """Each trace tile that a state root commits of a unit, by the hashes of its parts' tiles and its trap's op (or whose value
    every run must have), with the leaf hash of the bytes it must be.
    """
    outputs: list[tuple[int, bytes]] = []
    for op in shape.ops:
        if op.part is not None and not trap_op:
            outputs += [(op.first + tile, each) for tile, each in enumerate(tile_hashes[op.part])]
        elif op.demanded is not None and not trap_op:
            outputs.append((op.first, leaf_hash(op.demanded)))
    outputs.append((shape.n_tiles - 1, leaf_hash(trap_op.to_bytes(4, "little"))))
    return tuple(outputs)


def check_header(run: Run, header: StateHeader) -> None:
    """Check that a header is that of the run. Raises VerificationError ``tile.header`` naming the member."""
    if header.model_id != run.manifest.model_id:
        raise VerificationError("tile.header", "the header names another model", field="model_id")
    if header.params_hash != run_params_hash(run.salt, run.params):
        raise VerificationError("tile.header", "the header hashes other parameters", field="params_hash")
    if header.n_prompt + header.n_out > run.graph.n_ctx:
        raise VerificationError("tile.header", "the run is longer than the model's context", field="n_out")


def state_shape(run: Run, header: StateHeader, trap_unit: int | None) -> StateShape:
    """The sizes of the run's state tree. Raises as ``shape_of``."""
    sampled = run.params.temperature != 0
    return graph_shape(header, run.graph, sampled=sampled, trap_unit=trap_unit)


def exists(state: StateShape, position: int, unit: int) -> bool:
    """Whether the run has such a unit."""
    return 0 <= position < state.n_positions and 0 <= unit < state.units(position)


def unit_context(
    run: Run, header: StateHeader, state: StateShape, position: int, unit: int, trap_op: int
) -> UnitContext:
    """What the referee of a unit's tiles knows. The header is checked."""
    params = run.params
    rules = Rules(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repeat_penalty=params.repeat_penalty,
        seed=header.sampling_seed,
    )
    return UnitContext(
        manifest=run.manifest,
        graph=run.graph,
        state_root=run.state_root,
        header=header,
        state=state,
        rules=rules,
        position=position,
        unit=unit,
        trap_op=trap_op,
    )


def unit_shape(context: UnitContext) -> UnitShape:
    """The ops of the context's unit, from graph, place, length of the prompt, and whether tokens are sampled."""
    graph, position, unit = context.graph, context.position, context.unit
    if unit == 0:
        ops = embedding_ops(graph)
    elif unit <= graph.n_layers:
        ops = layer_ops(graph, context.kind, unit - 1, position)
    else:
        ops = tail_ops(graph, position, context.header.n_prompt, sampled=context.rules.temperature != 0)
    return UnitShape(ops.ops)


def _broken(what: str) -> VerificationError:
    return VerificationError("tile.bounds", f"the unit's bounds do not hold: {what}", field="bounds")
