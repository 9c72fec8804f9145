"""The one-tile referee: one value recomputed with the reference arithmetic, from openings alone (docs/spec/11-trace.md,
"A tile's proof").

A proof holds what the tile's op asks for, in the order in which it asks, and hashes; every place, index, length and tree
size is the referee's own. The same code writes and reads it.
"""

import hmac
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from aos.core.arithmetic.formats import U8
from aos.core.dispute.fine.bounds import Unit
from aos.core.dispute.fine.grid import UnitShape
from aos.core.dispute.fine.operands import Operands, Poisoned, UnitContext, WeightBlock, known_type
from aos.core.dispute.state_opening import Place, StateOpening, verify_tiles, verify_tokens
from aos.core.dispute.state_tree import TOKENS_A_TILE, Part
from aos.core.dispute.trace_tree import TraceTree, TreeShape, opened_root, tile_hash, unit_root
from aos.core.hashes import u32
from aos.core.manifest import TENSOR_TYPES, TensorType, chunk_leaf, tensor_count, tensor_leaf
from aos.core.merkle import (
    HASH_BYTES,
    inclusion_root,
    leaf_hash,
    range_path_length,
    range_root,
)
from aos.errors import InvalidMessage, VerificationError

MAX_PROOF_BYTES = 40 * 1024


class WeightRows(Protocol):
    """Opens weights of the model's file."""

    def open_weights(self, block: WeightBlock) -> "OpenedWeights":
        """The block and its paths."""


class OpenedWeights:
    """A block's bytes with what leads to ``weights_root``: the tensor's type, number, and how many there are; raw bytes
    per row; per row the path of its chunks; the path of the rows; that of the tensor.
    """

    def __init__(
        self,
        *,
        kind: TensorType,
        number: int,
        rows: Sequence[bytes],
        chunk_paths: Sequence[Sequence[bytes]],
        row_path: Sequence[bytes],
        tensor_path: Sequence[bytes],
    ) -> None:
        self.kind, self.number = kind, number
        self.rows, self.chunk_paths = rows, chunk_paths
        self.row_path, self.tensor_path = row_path, tensor_path

    def encode(self, n_tensors: int) -> bytes:
        """As in a proof."""
        out = [u32(self.kind.code), u32(self.number), u32(n_tensors), *self.rows]
        for path in self.chunk_paths:
            out += path
        return b"".join((*out, *self.row_path, *self.tensor_path))


class ProofReader(Operands):
    """Operands out of a proof. State, weights, rotary rows and tokens are checked as they are read; the tiles of the same
    trace all together by ``finish``. Raises VerificationError ``tile.length``, ``tile.state``, ``tile.weights``,
    ``tile.rope``, ``tile.tokens``, ``tile.path``.
    """

    def __init__(self, context: UnitContext, shape: UnitShape, index: int, proof: bytes) -> None:
        super().__init__(context, shape)
        self._proof, self._at = proof, 0
        self._tiles: dict[int, bytes] = {}
        self._states: dict[Place, tuple[bytes, ...]] = {}
        self._weights: dict[WeightBlock, tuple[TensorType, U8]] = {}
        self._tokens: dict[int, tuple[int, ...]] = {}
        self._rope: bytes | None = None
        self.output = self.tile(index)

    def take(self, size: int) -> bytes:
        """The next bytes of the proof."""
        if size > len(self._proof) - self._at:
            raise refused("tile.length", "the proof is too short")
        self._at += size
        return self._proof[self._at - size : self._at]

    def hashes(self, count: int) -> list[bytes]:
        """The next hashes of the proof."""
        return [self.take(HASH_BYTES) for _ in range(count)]

    def tile(self, index: int) -> bytes:
        """A tile of the same trace; read where it is asked for first."""
        if index not in self._tiles:
            self._tiles[index] = self.take(self.shape.tile_size(index))
        return self._tiles[index]

    def state(self, place: Place) -> tuple[bytes, ...]:
        """See ``Operands``."""
        if place not in self._states:
            context = self.context
            data = self.take(StateOpening.size(context.state, place))
            opening = StateOpening.decode(data, context.state, place)
            try:
                tiles = verify_tiles(context.state_root, context.state, place, opening)
            except VerificationError as error:
                raise refused("tile.state", error.message) from error
            self._states[place] = tiles
        return self._states[place]

    def token_tile(self, tile: int) -> tuple[int, ...]:
        """See ``Operands``."""
        if tile not in self._tokens:
            header = self.context.header
            part = Part(4 * (header.n_prompt + header.n_out), 4 * TOKENS_A_TILE)
            data = self.take(part.tile_size(tile))
            path = self.hashes(range_path_length(tile, 1, part.tiles))
            try:
                ids = verify_tokens(header, tile, data, path)
            except VerificationError as error:
                raise refused("tile.tokens", error.message) from error
            if max(ids) >= self.context.graph.n_vocab:
                raise refused("tile.tokens", "a token id is beyond the vocabulary")
            self._tokens[tile] = ids
        return self._tokens[tile]

    def rope_row(self) -> bytes:
        """See ``Operands``."""
        if self._rope is None:
            context = self.context
            row = self.take(4 * context.graph.n_rot)
            positions = context.graph.n_ctx
            path = self.hashes(range_path_length(context.position, 1, positions))
            root = inclusion_root(leaf_hash(row), context.position, positions, path)
            if root != context.manifest.rope_table:
                raise refused("tile.rope", "the turns are not those of the model's rotary table")
            self._rope = row
        return self._rope

    def weights(self, block: WeightBlock) -> tuple[TensorType, U8]:
        """See ``Operands``."""
        if block not in self._weights:
            self._weights[block] = self._read_weights(block)
        return self._weights[block]

    def _read_weights(self, block: WeightBlock) -> tuple[TensorType, U8]:
        code, number, count = (int.from_bytes(self.take(4), "big") for _ in range(3))
        kind = TENSOR_TYPES.get(code)
        if kind is None or not known_type(kind) or block.columns % kind.block_weights:
            raise refused("tile.weights", "the tensor has a type that the canonical arithmetic has not")
        if not number < count or count not in tensor_count(self.context.graph, self.context.kind):
            raise refused("tile.weights", "the model has another number of tensors")
        chunks = range(block.first_chunk, block.end_chunk)
        sizes = [kind.bytes_of(block.weights_of(chunk)) for chunk in chunks]
        rows = [self.take(sum(sizes)) for _ in range(block.first_row, block.end_row)]
        inner = range_path_length(chunks.start, len(chunks), block.chunks)
        hashes = []
        for row in rows:
            path, leaves, at = self.hashes(inner), [], 0
            for size in sizes:
                leaves.append(chunk_leaf(row[at : at + size]))
                at += size
            hashes.append(range_root(leaves, chunks.start, block.chunks, path))
        row_path = self.hashes(range_path_length(block.first_row, len(rows), block.rows))
        root = range_root(hashes, block.first_row, block.rows, row_path)
        leaf = tensor_leaf(block.tensor, kind.code, block.shape, root)
        path = self.hashes(range_path_length(number, 1, count))
        if inclusion_root(leaf, number, count, path) != self.context.manifest.weights_root:
            raise refused("tile.weights", f"the weights are not those of {block.tensor}")
        return kind, np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)

    def finish(self, state_root: bytes, claimed: bytes, *, behind: int = 0) -> list[bytes]:
        """Check that all tiles of the trace lead to the unit root, and that nothing is left but ``behind`` hashes, which
        are returned.
        """

        def path() -> Iterator[bytes]:
            while True:
                yield self.take(HASH_BYTES)

        hashes = {index: tile_hash(data) for index, data in self._tiles.items()}
        root = opened_root(TreeShape(self.shape.n_tiles), hashes, path())
        left = self.hashes(behind)
        if self._at != len(self._proof):
            raise refused("tile.length", "the proof is too long")
        context = self.context
        found = unit_root(state_root, context.position, context.unit, self.shape.n_tiles, root)
        if not hmac.compare_digest(found, claimed):
            raise refused("tile.path", "the tiles are not those of the unit root")
        return left


class OperandSource(WeightRows, Protocol):
    """What a prover opens operands from: its own run and its own model file."""

    def open_state(self, place: Place) -> StateOpening:
        """A tile of the run's payloads, with its paths."""

    def open_tokens(self, tile: int) -> tuple[bytes, Sequence[bytes]]:
        """A tile of the run's tokens and its path."""

    def open_rope(self, position: int) -> tuple[bytes, Sequence[bytes]]:
        """A row of the rotary table and its path."""

    @property
    def n_tensors(self) -> int:
        """Tensors of the file."""


class TraceOperands(Operands):
    """Operands out of a party's own trace and files, in the order asked for; ``written`` is what a proof holds of them."""

    def __init__(
        self, context: UnitContext, shape: UnitShape, tiles: Sequence[bytes], source: OperandSource
    ) -> None:
        super().__init__(context, shape)
        self._own, self._source = tiles, source
        self._seen: dict[object, object] = {}
        self.used: list[int] = []
        self._out: list[bytes] = []

    @property
    def written(self) -> bytes:
        """Everything asked for so far, once."""
        return b"".join(self._out)

    def tile(self, index: int) -> bytes:
        """See ``Operands``."""
        if ("tile", index) not in self._seen:
            self._seen["tile", index] = True
            self.used.append(index)
            self._out.append(self._own[index])
        return self._own[index]

    def state(self, place: Place) -> tuple[bytes, ...]:
        """See ``Operands``."""
        opening = self._seen.get(place)
        if not isinstance(opening, StateOpening):
            opening = self._source.open_state(place)
            self._seen[place] = opening
            self._out.append(opening.encode())
        return opening.tiles

    def token_tile(self, tile: int) -> tuple[int, ...]:
        """See ``Operands``."""
        data, path = self._source.open_tokens(tile)
        if ("tokens", tile) not in self._seen:
            self._seen["tokens", tile] = True
            self._out += [data, *path]
        return tuple(np.frombuffer(data, dtype="<u4").tolist())

    def rope_row(self) -> bytes:
        """See ``Operands``."""
        row, path = self._source.open_rope(self.context.position)
        if "rope" not in self._seen:
            self._seen["rope"] = True
            self._out += [row, *path]
        return row

    def weights(self, block: WeightBlock) -> tuple[TensorType, U8]:
        """See ``Operands``."""
        opened = self._seen.get(block)
        if not isinstance(opened, OpenedWeights):
            opened = self._source.open_weights(block)
            self._seen[block] = opened
            self._out.append(opened.encode(self._source.n_tensors))
        raw = np.frombuffer(b"".join(opened.rows), dtype=np.uint8)
        return opened.kind, raw.reshape(len(opened.rows), -1)


def recomputed(operands: Operands, index: int) -> bytes:
    """The bytes of a tile, from its operands: all ones where one of these that has to be finite is not."""
    op = operands.shape.op_of(index)
    group, first, end = op.grid.place(index - op.first)
    try:
        with np.errstate(all="ignore"):
            data = op.compute(operands, group, first, end)
    except Poisoned:
        return b"\xff" * op.grid.tile_size(index - op.first)
    return data


def make_proof(
    context: UnitContext,
    shape: UnitShape,
    tiles: Sequence[bytes],
    tree: TraceTree,
    source: OperandSource,
    index: int,
) -> bytes:
    """The proof of tile ``index`` of a party's own trace. Raises InvalidMessage ``trace.tile``."""
    operands = TraceOperands(context, shape, tiles, source)
    operands.tile(index)
    recomputed(operands, index)
    return operands.written + b"".join(tree.path(sorted(operands.used)))


def check_tile(unit: Unit, claimed_root: bytes, index: int, proof: bytes) -> None:
    """Judge the claimant's proof of one tile under its signed ``unit_root``.

    Every refusal convicts the claimant, who signed the root and made the proof: VerificationError with an opening that
    does not hold (``tile.length``, ``tile.path``, ``tile.state``, ``tile.tokens``, ``tile.weights``, ``tile.rope``), a
    value that is another one when it is recomputed (``tile.value``), or one that is not what ``state_root`` committed
    (``tile.commitment``; ``tile.trap`` for the unit's trap, ``tile.cut`` for the sampler's cuts). InvalidMessage
    ``trace.tile`` for a tile that the unit does not have.
    """
    if unit.context is None or unit.shape is None:
        raise InvalidMessage("trace.tile", "the run has no such unit", field="index")
    op = unit.shape.op_of(index)
    if len(proof) > MAX_PROOF_BYTES:
        raise refused("tile.length", f"the proof is longer than {MAX_PROOF_BYTES} bytes")
    try:
        operands = ProofReader(unit.context, unit.shape, index, proof)
        value = recomputed(operands, index)
        operands.finish(unit.context.state_root, claimed_root)
    except InvalidMessage as error:
        raise refused("tile.length", error.message) from error
    if value != operands.output:
        raise VerificationError(
            "tile.value",
            f"tile {index} of op {op.name} is another value when it is recomputed",
            field="proof",
        )
    expected = dict(unit.outputs).get(index)
    if expected is not None and leaf_hash(value) != expected:
        code, what = "tile.commitment", "is not what the state root commits to"
        if op.demanded is not None:
            code, what = "tile.cut", "says that the record's cut is not the sampler's"
        elif op is unit.shape.ops[-1]:
            code, what = "tile.trap", "is not the trap that the state root commits to"
        raise VerificationError(code, f"tile {index} of op {op.name} {what}", field="proof")


def refused(code: str, what: str) -> VerificationError:
    """Why a proof does not hold."""
    return VerificationError(code, what, field="proof", hint="whoever signed the root can open it")


def n_tiles(unit: Unit) -> int:
    """The tiles of the unit's trace; none where the header says that there is no such unit."""
    return unit.shape.n_tiles if unit.shape is not None else 0
