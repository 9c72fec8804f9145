"""The bytes of proofs at any shape, counted without weights: a proof's length follows from sizes alone."""

import importlib
import sys
from collections.abc import Mapping
from functools import cache
from types import ModuleType

import numpy as np
from engine_models import REPOSITORY

from aos.core.arithmetic.formats import U8
from aos.core.arithmetic.sampler import Rules
from aos.core.dispute.fine.bounds import unit_shape
from aos.core.dispute.fine.grid import UnitShape
from aos.core.dispute.fine.operands import Operands, UnitContext, WeightBlock
from aos.core.dispute.fine.tile import recomputed
from aos.core.dispute.state_opening import Place, StateOpening
from aos.core.dispute.state_tree import TOKENS_A_TILE, Part, StateHeader, shape_of
from aos.core.dispute.trace_tree import TreeShape
from aos.core.manifest import GRAPH_KINDS, TENSOR_TYPES, GraphSizes, Manifest, TensorType, tensor_count
from aos.core.merkle import range_path_length

F32 = next(kind for kind in TENSOR_TYPES.values() if kind.name == "F32")


@cache
def benchmark() -> ModuleType:
    """benchmarks/dispute.py as a module."""
    path = str(REPOSITORY / "benchmarks")
    if path not in sys.path:
        sys.path.append(path)
    return importlib.import_module("dispute")


SEVEN_B: GraphSizes = benchmark().SEVEN_B


def sized_context(graph: GraphSizes, architecture: str, position: int, unit: int) -> UnitContext:
    """A place in a run of nothing but sizes."""
    header = StateHeader(
        model_id=bytes(32),
        prompt_tokens_hash=bytes(32),
        params_hash=bytes(32),
        sampling_seed=1,
        n_prompt=position - 98,
        n_out=100,
        finish_reason="length",
        tokens_hash=bytes(32),
        response_hash=bytes(32),
        tokens_root=bytes(32),
        n_positions=position + 1,
    )
    state = shape_of(
        header,
        n_layers=graph.n_layers,
        width=graph.width,
        kv_width=graph.kv_width,
        n_vocab=graph.n_vocab,
        sampled=True,
    )
    manifest = Manifest(
        file_sha256=bytes(32),
        file_size=0,
        weights_root=bytes(32),
        architecture=architecture,
        graph=graph,
        tokenizer=bytes(32),
        chat_template=b"",
        rope_table=bytes(32),
        arithmetic=1,
    )
    rules = Rules(
        temperature=800_000, top_k=40, top_p=900_000, min_p=10_000, repeat_penalty=1_100_000, seed=1
    )
    return UnitContext(
        manifest=manifest,
        graph=graph,
        state_root=bytes(32),
        header=header,
        state=state,
        rules=rules,
        position=position,
        unit=unit,
        trap_op=0,
    )


def sized_shape(context: UnitContext) -> UnitShape:
    """The ops of the place."""
    return unit_shape(context)


class _Counted(Operands):
    """Zeros, counted as what opens them is long."""

    def __init__(
        self, context: UnitContext, shape: UnitShape, types: TensorType | Mapping[str, TensorType]
    ) -> None:
        super().__init__(context, shape)
        self._types = types
        self.seen: set[object] = set()
        self.tiles: set[int] = set()
        self.size = 0

    def _count(self, key: object, size: int) -> None:
        if key not in self.seen:
            self.seen.add(key)
            self.size += size

    def tile(self, index: int) -> bytes:
        self.tiles.add(index)
        size = self.shape.tile_size(index)
        self._count(index, size)
        return bytes(size)

    def state(self, place: Place) -> tuple[bytes, ...]:
        state = self.context.state
        self._count(place, StateOpening.size(state, place))
        parts = [state.parts(position, place.unit)[place.part] for position in place.positions]
        return tuple(bytes(part.tile_size(place.tile)) for part in parts)

    def weights(self, block: WeightBlock) -> tuple[TensorType, U8]:
        kind = self._types if isinstance(self._types, TensorType) else self._types[block.tensor]
        if len(block.shape) == 1:
            kind = F32
        rows, chunks = block.end_row - block.first_row, block.end_chunk - block.first_chunk
        raw = sum(
            kind.bytes_of(block.weights_of(chunk)) for chunk in range(block.first_chunk, block.end_chunk)
        )
        count = self._tensors()
        hashes = rows * range_path_length(block.first_chunk, chunks, block.chunks)
        hashes += range_path_length(block.first_row, rows, block.rows)
        number = self._number(block.tensor, count)
        hashes += range_path_length(number, 1, count)
        self._count(block, 12 + rows * raw + 32 * hashes)
        return kind, np.zeros((rows, raw), dtype=np.uint8)

    def _tensors(self) -> int:
        if isinstance(self._types, TensorType):
            return tensor_count(self.context.graph, self.context.kind)[0]
        return len(self._types)

    def _number(self, tensor: str, count: int) -> int:
        return 0 if isinstance(self._types, TensorType) else list(self._types).index(tensor)

    def rope_row(self) -> bytes:
        graph = self.context.graph
        self._count("rope", 4 * graph.n_rot + 32 * range_path_length(self.context.position, 1, graph.n_ctx))
        return bytes(4 * graph.n_rot)

    def token_tile(self, tile: int) -> tuple[int, ...]:
        header = self.context.header
        part = Part(4 * (header.n_prompt + header.n_out), 4 * TOKENS_A_TILE)
        size = part.tile_size(tile)
        self._count(("tokens", tile), size + 32 * range_path_length(tile, 1, part.tiles))
        return (0,) * (size // 4)


def proof_size(
    context: UnitContext, shape: UnitShape, index: int, types: TensorType | Mapping[str, TensorType]
) -> int:
    """The bytes of the proof of a tile whose operands are zeros. ``types`` are those of the tensors by name and in file
    order, or one for all matrices of a file without ``rope_freqs.weight``.
    """
    operands = _Counted(context, shape, types)
    operands.tile(index)
    recomputed(operands, index)
    path: list[bytes] = []

    def missing(level: int, first: int, end: int) -> bytes:
        path.append(bytes(32))
        return path[-1]

    TreeShape(shape.n_tiles).fold({tile: bytes(32) for tile in operands.tiles}, missing)
    return operands.size + 32 * len(path)


__all__ = ["GRAPH_KINDS", "SEVEN_B", "benchmark", "proof_size", "sized_context", "sized_shape"]
