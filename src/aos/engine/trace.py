"""The fine trace of one unit, made on demand, and openings of its tiles (docs/spec/11-trace.md).

A party that has run a job keeps the tokens and the leaf hashes of its units. For a dispute the run is computed once more,
with the residuals of two units and the cache of a layer kept; from these the unit's ops are recomputed and any tile opened,
weights from the model file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from aos.core.arithmetic.floats import F16, F32, NumericTrap
from aos.core.arithmetic.formats import U8
from aos.core.arithmetic.rope_table import table_leaf
from aos.core.arithmetic.sampler import choose
from aos.core.dispute.fine.bounds import (
    LAST_OP,
    Bounds,
    Run,
    exists,
    state_shape,
    unit_context,
    unit_shape,
)
from aos.core.dispute.fine.element import make_element_proof, wrong_element
from aos.core.dispute.fine.grid import UnitShape
from aos.core.dispute.fine.operands import Poisoned, UnitContext, WeightBlock
from aos.core.dispute.fine.tile import OpenedWeights, make_proof, recomputed
from aos.core.dispute.state_opening import Place, StateOpening, StateTree, open_tokens
from aos.core.dispute.state_tree import KEYS, TOKENS_A_TILE, tile_hashes, trap_leaf
from aos.core.dispute.trace_tree import TraceTree, tile_hash, unit_root
from aos.core.manifest import CHUNK_WEIGHTS, Manifest, TensorType, chunk_leaf
from aos.core.merkle import MerkleTree, leaf_hash
from aos.engine.canonical import Run as EngineRun
from aos.engine.fast_trace import WholeOperands, whole_op
from aos.engine.gguf import GGUF, Tensor
from aos.engine.llama import ROPE_FACTORS, read_hyper_parameters
from aos.engine.manifest import cached_rope_table, row_hashes, tensor_leaves
from aos.errors import InvalidMessage


class Capture(Protocol):
    """What an engine kept of a run's positions (all of one token sequence, up to a trap)."""

    def residuals(self, unit: int) -> F32:
        """The residual after a unit that was asked for, at every position that has it: [positions, width]."""

    def cache(self, layer: int, first: int, end: int) -> tuple[F16, F16]:
        """K and V of a layer at positions ``first`` … ``end`` - 1: [positions, kv_width] each."""


class Claimed(Protocol):
    """What a challenger's trace takes over from the claim. ``aos.core.dispute.fine.bounds.Unit`` where it was opened whole."""

    @property
    def trap_op(self) -> int | None:
        """The op that the unit's trap leaf names, 0 where it has values; None without the unit."""

    @property
    def cuts(self) -> tuple[int, int] | None:
        """Those of the sampler's record, where one is committed."""


class CapturingEngine(Protocol):
    """An engine of the canonical arithmetic that can compute positions and keep what a trace needs of them."""

    def capture(self, tokens: Sequence[int], units: Sequence[int]) -> Capture:
        """Compute the positions of ``tokens`` and keep the residuals of ``units`` (0 the embedding)."""


class ModelWeights:
    """Opens weights and rotary rows of one model file. The hashes of a tensor's rows are made when one is opened."""

    def __init__(self, file: GGUF, *, cache_dir: Path | None = None, threads: int = 1) -> None:
        """Hashes every weight of the file once. The file is one of the canonical arithmetic."""
        self.file = file
        factors = next((tensor for tensor in file.tensors if tensor.name == ROPE_FACTORS), None)
        listed = None if factors is None else np.frombuffer(file.tensor_bytes(factors), dtype="<f4").tolist()
        self._cos, self._sin = cached_rope_table(read_hyper_parameters(file), listed, cache_dir)
        leaves, _ = tensor_leaves(file, threads=threads)
        self.tensor_leaves: tuple[bytes, ...] = tuple(leaves)
        """Those under ``root``."""
        self._tree = MerkleTree(leaves)
        self._numbers = {tensor.name: number for number, tensor in enumerate(file.tensors)}
        self._rows: dict[str, MerkleTree] = {}
        self._threads = threads

    @property
    def root(self) -> bytes:
        """The ``weights_root``."""
        return self._tree.root

    @property
    def n_tensors(self) -> int:
        """Tensors of the file."""
        return len(self.file.tensors)

    def raw(self, block: WeightBlock) -> tuple[TensorType, list[bytes]]:
        """The block's bytes, per row."""
        tensor = self._tensor(block.tensor)
        first = tensor.type.bytes_of(block.first_chunk * CHUNK_WEIGHTS)
        end = tensor.type.bytes_of(min(block.end_chunk * CHUNK_WEIGHTS, block.columns))
        data = self.file.tensor_bytes(tensor)
        size = tensor.row_bytes
        rows = range(block.first_row, block.end_row)
        return tensor.type, [bytes(data[row * size + first : row * size + end]) for row in rows]

    def matrix(self, name: str) -> tuple[TensorType, U8]:
        """A tensor's type and bytes: [rows, bytes]."""
        tensor = self._tensor(name)
        raw = np.frombuffer(self.file.tensor_bytes(tensor), dtype=np.uint8)
        return tensor.type, raw.reshape(tensor.rows, -1)

    def open_weights(self, block: WeightBlock) -> OpenedWeights:
        """The block and its paths."""
        tensor = self._tensor(block.tensor)
        kind, rows = self.raw(block)
        count = block.end_chunk - block.first_chunk
        paths = [self._chunks(tensor, row).range_path(block.first_chunk, count) for row in self._range(block)]
        if block.tensor not in self._rows:
            self._rows[block.tensor] = MerkleTree(row_hashes(self.file, tensor, self._threads)[0])
        number = self._numbers[block.tensor]
        return OpenedWeights(
            kind=kind,
            number=number,
            rows=rows,
            chunk_paths=paths,
            row_path=self._rows[block.tensor].range_path(block.first_row, len(rows)),
            tensor_path=self._tree.range_path(number, 1),
        )

    def open_rope(self, position: int) -> tuple[bytes, Sequence[bytes]]:
        """A row of the rotary table and its path."""
        return self.rope_row(position), self._turns.range_path(position, 1)

    def rope_row(self, position: int) -> bytes:
        """cos, then sin, of a position."""
        row: bytes = np.concatenate([self._cos[position], self._sin[position]]).astype("<f4").tobytes()
        return row

    @cached_property
    def _turns(self) -> MerkleTree:
        return MerkleTree([table_leaf(c, s) for c, s in zip(self._cos, self._sin, strict=True)])

    def _tensor(self, name: str) -> Tensor:
        return self.file.tensors[self._numbers[name]]

    @staticmethod
    def _range(block: WeightBlock) -> range:
        return range(block.first_row, block.end_row)

    def _chunks(self, tensor: Tensor, row: int) -> MerkleTree:
        data = self.file.tensor_bytes(tensor)[row * tensor.row_bytes : (row + 1) * tensor.row_bytes]
        size = tensor.type.bytes_of(CHUNK_WEIGHTS) if tensor.columns >= CHUNK_WEIGHTS else tensor.row_bytes
        return MerkleTree([chunk_leaf(bytes(data[at : at + size])) for at in range(0, len(data), size)])


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """A run as its owner keeps it: ``tree`` holds the leaf hashes of all units; ``tokens`` are prompt and output."""

    run: Run
    tree: StateTree
    tokens: Sequence[int]

    @property
    def trap(self) -> tuple[int, int] | None:
        """(unit, op) of a run that trapped."""
        if self.tree.header.finish_reason != "numeric_trap":
            return None
        position = len(self.tree.units) - 1
        unit = len(self.tree.units[position]) - 1
        leaf = self.tree.units[position][unit]
        return unit, next(op for op in range(1, LAST_OP + 1) if trap_leaf(position, unit, op) == leaf)


def known_run(run: EngineRun, manifest: Manifest) -> KnownRun:
    """What to keep of a run of a canonical engine that has ended."""
    tree = run.leaves().tree(run.header())
    return KnownRun(
        run=Run(manifest=manifest, params=run.params, salt=run.salt, state_root=tree.root),
        tree=tree,
        tokens=[*run.prompt, *run.tokens],
    )


class UnitTrace:
    """One party's trace of one unit of its own run. ``aos.core.dispute.case.UnitTrace``."""

    def __init__(
        self,
        known: KnownRun,
        weights: ModelWeights,
        engine: CapturingEngine,
        position: int,
        unit: int,
        *,
        against: Claimed | None = None,
        capture: Capture | None = None,
        fast: bool = True,
    ) -> None:
        """``against``: the claimant's unit, where this is its challenger's trace: whether it trapped, and the cuts
        of its sampler record, are inputs of a trace. ``capture``: what the engine kept of the run already, of
        this unit and the one before. ``fast`` False computes tile by tile. Raises InvalidMessage
        ``trace.unit`` where the run has no such unit.
        """
        header = known.tree.header
        trap_unit, op = known.trap if known.trap is not None else (None, 0)
        state = state_shape(known.run, header, trap_unit)
        if not exists(state, position, unit):
            raise InvalidMessage("trace.unit", "the run has no such unit", field="unit")
        trap_op = op if state.is_trap(position, unit) else 0
        if against is not None and against.trap_op is not None:
            trap_op = against.trap_op
        self.context: UnitContext = unit_context(known.run, header, state, position, unit, trap_op)
        self.shape: UnitShape = unit_shape(self.context)
        self.known, self._weights = known, weights
        if capture is None:
            watched = [each for each in (unit - 1, unit) if 0 <= each <= state.n_layers]
            capture = engine.capture(known.tokens[: position + 1], watched)
        self._capture = capture
        self.cuts = None if against is None else against.cuts
        self.tiles: Sequence[bytes] = self._compute(fast)
        self._tree = TraceTree([tile_hash(tile) for tile in self.tiles])

    def _compute(self, fast: bool) -> Sequence[bytes]:
        operands = _OwnOperands(self)
        for op in self.shape.ops:
            data = whole_op(operands, op) if fast else None
            if data is None:
                for index in range(op.first, op.first + op.grid.tiles):
                    operands.tiles.append(recomputed(operands, index))
                continue
            at = 0
            for tile in range(op.grid.tiles):
                size = op.grid.tile_size(tile)
                operands.tiles.append(data[at : at + size])
                at += size
        return operands.tiles

    @property
    def tree(self) -> TraceTree:
        """The tree over all tiles."""
        return self._tree

    @property
    def tile_hashes(self) -> Sequence[bytes]:
        """The hash of every tile."""
        return [self._tree.node(self._tree.shape.depth, index) for index in range(self.shape.n_tiles)]

    @property
    def unit_root(self) -> bytes:
        """What this party signs of the trace."""
        context = self.context
        n, root = self.shape.n_tiles, self._tree.root
        return unit_root(context.state_root, context.position, context.unit, n, root)

    @property
    def outputs(self) -> Sequence[tuple[int, bytes]]:
        """Every tile that a ``state_root`` commits, or a rule demands, with the leaf hash of what this trace has there."""
        indices = [
            index
            for op in self.shape.ops
            if op.part is not None or op.demanded is not None or op is self.shape.ops[-1]
            for index in range(op.first, op.first + op.grid.tiles)
        ]
        return [(index, leaf_hash(self.tiles[index])) for index in indices]

    @property
    def bounds(self) -> bytes:
        """The opening of the unit under this party's own ``state_root``."""
        context, tree = self.context, self.known.tree
        parts = context.state.parts(context.position, context.unit) if not context.trapped else ()
        payload = self.payload(context.position, context.unit) if parts else ()
        hashes = [
            tuple(tile_hashes(data, part.tile_bytes)) for data, part in zip(payload, parts, strict=True)
        ]
        record = payload[1] if len(payload) > 1 and context.unit > context.state.n_layers else b""
        return Bounds(
            header=tree.header.entry(),
            header_path=tree.open_header(),
            trap_unit=context.state.trap_unit,
            op=context.trap_op,
            tile_hashes=tuple(hashes),
            leaf_opening=tree.open_leaves(context.position, context.unit),
            head=record[:1024],
        ).encode()

    def prove(self, index: int) -> bytes:
        """The proof of tile ``index``, with its operands. Raises InvalidMessage ``trace.tile``."""
        return make_proof(self.context, self.shape, self.tiles, self._tree, self, index)

    def prove_element(self, index: int, element: int) -> tuple[int, bytes]:
        """The element to show and its proof, for a contract. Raises InvalidMessage ``trace.tile``, ``trace.element``."""
        return make_element_proof(self.context, self.shape, self.tiles, self._tree, self, index, element)

    def wrong_element(self, index: int, claimed: bytes) -> int:
        """As ``aos.core.dispute.fine.element.wrong_element``, of this trace."""
        return wrong_element(self.context, self.shape, self.tiles, self, index, claimed)

    # --- what proofs are opened from

    def payload(self, position: int, unit: int) -> tuple[bytes, ...]:
        """The parts that this run committed of a unit: of this one, of the one before, or of this layer's earlier
        positions.
        """
        context = self.context
        if unit > context.state.n_layers:
            return tuple(self._part(name) for name in ("logits", "record", "token"))
        residual = self._capture.residuals(unit)[position].astype("<f4").tobytes()
        if unit == 0:
            return (residual,)
        keys, values = self._capture.cache(unit - 1, position, position + 1)
        return residual, keys.astype("<f2").tobytes(), values.astype("<f2").tobytes()

    def _part(self, name: str) -> bytes:
        try:
            op = self.shape.named(name)
        except KeyError:
            return b""
        return b"".join(self.tiles[op.first : op.first + op.grid.tiles])

    def open_state(self, place: Place) -> StateOpening:
        """See ``OperandSource``."""
        payloads = [self.payload(position, place.unit) for position in place.positions]
        return self.known.tree.open_tiles(self.context.state, place, payloads)

    def open_tokens(self, tile: int) -> tuple[bytes, Sequence[bytes]]:
        """See ``OperandSource``."""
        return open_tokens(self.known.tokens, tile)

    def open_rope(self, position: int) -> tuple[bytes, Sequence[bytes]]:
        """See ``OperandSource``."""
        return self._weights.open_rope(position)

    def open_weights(self, block: WeightBlock) -> OpenedWeights:
        """See ``OperandSource``."""
        return self._weights.open_weights(block)

    @property
    def n_tensors(self) -> int:
        """See ``OperandSource``."""
        return self._weights.n_tensors

    # --- what tiles are computed from

    @property
    def weights(self) -> ModelWeights:
        """The model's weights."""
        return self._weights

    @property
    def capture(self) -> Capture:
        """What the engine kept."""
        return self._capture


class _OwnOperands(WholeOperands):
    """A trace's operands while it is made: no paths, tiles as they come."""

    def __init__(self, trace: UnitTrace) -> None:
        super().__init__(trace.context, trace.shape)
        self.trace = trace
        self.tiles: list[bytes] = []

    def tile(self, index: int) -> bytes:
        return self.tiles[index]

    def state(self, place: Place) -> tuple[bytes, ...]:
        if place.unit > self.context.graph.n_layers:
            before, after = self.trace.cuts or self._own_cuts()
            return (bytes(8) + before.to_bytes(4, "little") + after.to_bytes(4, "little"),)
        out = []
        for position in place.positions:
            part = self.trace.payload(position, place.unit)[place.part]
            size = self.context.state.parts(position, place.unit)[place.part].tile_bytes
            out.append(part[place.tile * size : (place.tile + 1) * size])
        return tuple(out)

    def _own_cuts(self) -> tuple[int, int]:
        """The cuts that rule 9 gives."""
        context, logits = self.context, self.shape.named("logits")
        tiles = self.tiles[logits.first : logits.first + logits.grid.tiles]
        values = np.frombuffer(b"".join(tiles), dtype="<f4").astype(np.float32)
        seen = self.trace.known.tokens[: context.position + 1]
        try:
            record = choose(values, seen, context.step, context.rules, 21).record
        except NumericTrap:
            raise Poisoned from None
        return int.from_bytes(record[8:12], "little"), int.from_bytes(record[12:16], "little")

    def weights(self, block: WeightBlock) -> tuple[TensorType, U8]:
        kind, rows = self.trace.weights.raw(block)
        return kind, np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)

    def rope_row(self) -> bytes:
        return self.trace.weights.rope_row(self.context.position)

    def token_tile(self, tile: int) -> tuple[int, ...]:
        tokens = self.trace.known.tokens
        return tuple(tokens[tile * TOKENS_A_TILE : (tile + 1) * TOKENS_A_TILE])

    def tensor(self, name: str) -> tuple[TensorType, U8]:
        return self.trace.weights.matrix(name)

    def cache_rows(self, part: int, own: bytes) -> F32:
        rows = np.frombuffer(own, dtype="<f2").astype(np.float32)[None]
        position = self.context.position
        if position:
            earlier = self.trace.capture.cache(self.context.unit - 1, 0, position)[part - KEYS]
            rows = np.concatenate([earlier.astype(np.float32), rows])
        return rows


class AbsentUnit:
    """What a claimant shows of a place that its run does not have: the header that says so, and where it trapped.
    ``aos.core.dispute.case.UnitTrace``.
    """

    tile_hashes: Sequence[bytes] = ()
    outputs: Sequence[tuple[int, bytes]] = ()

    def __init__(self, known: KnownRun) -> None:
        self._known = known

    @property
    def bounds(self) -> bytes:
        """The opening of the header, and of the number of units at the last position of a run that trapped."""
        tree, trap = self._known.tree, self._known.trap
        return Bounds(
            header=tree.header.entry(),
            header_path=tree.open_header(),
            trap_unit=None if trap is None else trap[0],
            op=0,
            tile_hashes=(),
            leaf_opening=None,
            head=b"",
            last_units=() if trap is None else tree.open_units(tree.header.n_positions - 1),
        ).encode()

    def prove(self, index: int) -> bytes:
        """There is no tile. Raises InvalidMessage ``trace.tile``."""
        raise InvalidMessage(
            "trace.tile", f"the run has no such unit, and no tile {index} of it", field="index"
        )
