"""What a tile is computed from, and where each operand must be (docs/spec/11-trace.md, "Operands").

An op asks for operands by the places that the graph dictates. A prover's and a referee's ``Operands`` answer the same
requests in the same order: the one from its trace, the other from a proof.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aos.core.arithmetic.floats import F32
from aos.core.arithmetic.formats import BLOCK_FORMATS, U8, widen_bf16
from aos.core.arithmetic.sampler import Rules
from aos.core.dispute.fine.grid import Op, UnitShape
from aos.core.dispute.state_opening import Place
from aos.core.dispute.state_tree import (
    CACHE_TILE_BYTES,
    RESIDUAL,
    TILE_BYTES,
    TOKENS_A_TILE,
    StateHeader,
    StateShape,
)
from aos.core.manifest import CHUNK_WEIGHTS, GRAPH_KINDS, GraphKind, GraphSizes, Manifest, TensorType
from aos.errors import VerificationError

NAN_BITS = 0x7FC00000
DENSE_TYPES = frozenset({"F16", "BF16", "F32"})

Source = Callable[["Operands", int, int, int], F32]
"""Values ``first`` … ``end`` - 1 of a group."""


class Poisoned(Exception):
    """An operand that has to be finite is not: the tile is all ones (0xFF)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitContext:
    """What a referee knows before it sees a proof: the model's manifest, the run's opened header and parameters, and
    the place.

    ``trap_op``: the op that the unit's trap leaf names, 0 where ``state_root`` commits to values there.
    """

    manifest: Manifest
    graph: GraphSizes
    state_root: bytes
    header: StateHeader
    state: StateShape
    rules: Rules
    position: int
    unit: int
    trap_op: int

    @property
    def kind(self) -> GraphKind:
        """What distinguishes the model's graph."""
        return GRAPH_KINDS[self.manifest.architecture]

    @property
    def eps(self) -> np.float32:
        """Of rule 3."""
        return np.uint32(self.graph.eps_bits).view(np.float32)

    @property
    def step(self) -> int:
        """The output index of the token that a tail at this position chooses."""
        return self.position - (self.header.n_prompt - 1)

    @property
    def trapped(self) -> bool:
        """Whether a trap leaf stands for the unit."""
        return self.trap_op != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBlock:
    """Rows ``first_row`` … ``end_row`` - 1 of a tensor, chunks ``first_chunk`` … ``end_chunk`` - 1 of each.

    ``shape`` is the tensor's, columns first.
    """

    tensor: str
    shape: tuple[int, ...]
    first_row: int
    end_row: int
    first_chunk: int
    end_chunk: int

    @property
    def columns(self) -> int:
        """Weights of a row."""
        return self.shape[0]

    @property
    def rows(self) -> int:
        """Rows of the tensor."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def chunks(self) -> int:
        """Chunks of a row."""
        return -(-self.columns // CHUNK_WEIGHTS)

    def weights_of(self, chunk: int) -> int:
        """Weights of a chunk; a row's last may be short."""
        return min(CHUNK_WEIGHTS, self.columns - chunk * CHUNK_WEIGHTS)


class Operands(ABC):
    """The operands of one unit's tiles. Nothing that it returns may be trusted before ``check_tile`` is through."""

    def __init__(self, context: UnitContext, shape: UnitShape) -> None:
        self.context = context
        self.shape = shape

    @abstractmethod
    def tile(self, index: int) -> bytes:
        """A tile of the same trace."""

    @abstractmethod
    def state(self, place: Place) -> tuple[bytes, ...]:
        """One tile of other units' payloads, at each position of ``place``."""

    @abstractmethod
    def weights(self, block: WeightBlock) -> tuple[TensorType, U8]:
        """The type of a tensor of the canonical arithmetic, and raw bytes [rows, bytes] of the block."""

    @abstractmethod
    def rope_row(self) -> bytes:
        """The position's leaf of the rotary table: cos, then sin, fp32."""

    @abstractmethod
    def token_tile(self, tile: int) -> tuple[int, ...]:
        """The run's token ids from 64 · ``tile`` on, at most 64."""

    # --- from the same trace

    def raw(self, op: Op, group: int, first: int, end: int) -> bytes:
        """The bytes of values ``first`` … ``end`` - 1 of a group of an op's output."""
        data = b"".join([self.tile(index) for index in op.tiles_of(group, first, end)])
        size = op.grid.value_size(group)
        start = (first - first % op.grid.tile) * size
        return data[first * size - start : end * size - start]

    def floats(self, op: Op, group: int, first: int, end: int) -> F32:
        """Finite fp32 values of an op's output. Raises Poisoned."""
        return finite(self.any_floats(op, group, first, end))

    def any_floats(self, op: Op, group: int, first: int, end: int) -> F32:
        """Values that may be infinite or NaN."""
        return np.frombuffer(self.raw(op, group, first, end), dtype="<f4")

    def finite_tile(self, index: int) -> bool:
        """Whether a tile of fp32 values is finite throughout."""
        return bool(np.isfinite(np.frombuffer(self.tile(index), dtype="<f4")).all())

    # --- from the state root

    def residual(self, first: int, end: int) -> F32:
        """Values of the residual that the unit before this left at this position. Raises Poisoned."""
        tile_values = TILE_BYTES // 4
        at = (self.context.position, self.context.unit - 1)
        tiles = [
            self.state(Place(position=at[0], unit=at[1], part=RESIDUAL, tile=tile))[0]
            for tile in range(first // tile_values, (end - 1) // tile_values + 1)
        ]
        start = first - first % tile_values
        return finite(np.frombuffer(b"".join(tiles), dtype="<f4")[first - start : end - start])

    def cached(self, part: int, position: int, count: int, first: int, end: int) -> F32:
        """Values ``first`` … ``end`` - 1 of K or V of this layer at earlier positions, widened: [count, end - first].
        Raises Poisoned.
        """
        tile_values = CACHE_TILE_BYTES // 2
        columns = [
            self.state(Place(position=position, unit=self.context.unit, part=part, tile=tile, count=count))
            for tile in range(first // tile_values, (end - 1) // tile_values + 1)
        ]
        rows = b"".join([b"".join(row) for row in zip(*columns, strict=True)])
        start = first - first % tile_values
        values = np.frombuffer(rows, dtype="<f2").reshape(count, -1)[:, first - start : end - start]
        return finite(values.astype(np.float32))

    def tokens(self, first: int, end: int) -> list[int]:
        """The run's token ids at positions ``first`` … ``end`` - 1."""
        ids: list[int] = []
        start = first - first % TOKENS_A_TILE
        for tile in range(first // TOKENS_A_TILE, (end - 1) // TOKENS_A_TILE + 1):
            ids += self.token_tile(tile)
        return ids[first - start : end - start]

    # --- from the manifest

    def vector(self, tensor: str, width: int, first: int, end: int) -> F32:
        """Values of an F32 vector. Raises VerificationError ``tile.weights``."""
        chunks = first // CHUNK_WEIGHTS, (end - 1) // CHUNK_WEIGHTS + 1
        block = WeightBlock(
            tensor=tensor,
            shape=(width,),
            first_row=0,
            end_row=1,
            first_chunk=chunks[0],
            end_chunk=chunks[1],
        )
        kind, raw = self.weights(block)
        if kind.name != "F32":
            raise VerificationError("tile.weights", f"{tensor} is not a vector of F32", field="proof")
        start = chunks[0] * CHUNK_WEIGHTS
        return raw.reshape(-1).view("<f4")[first - start : end - start].astype(np.float32)

    def rope_turns(self) -> tuple[F32, F32]:
        """cos and sin at this position, [n_rot/2] each."""
        both = np.frombuffer(self.rope_row(), dtype="<f4")
        half = self.context.graph.n_rot // 2
        return both[:half], both[half:]


def finite(values: F32) -> F32:
    """``values``. Raises Poisoned unless all are finite."""
    if not np.isfinite(values).all():
        raise Poisoned
    return values


def packed(values: F32 | np.float32) -> bytes:
    """fp32 values little-endian, every NaN as the one quiet NaN 0x7FC00000."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    nan = np.isnan(values)
    return np.where(nan, np.uint32(NAN_BITS), bits.reshape(nan.shape)).astype("<u4").tobytes()


def known_type(kind: TensorType | None) -> bool:
    """Whether the canonical arithmetic has the tensor type."""
    return kind is not None and (kind.name in DENSE_TYPES or kind.name in BLOCK_FORMATS)


def widened(kind: TensorType, raw: U8) -> F32:
    """Weights of a dense type as fp32: bytes [rows, bytes] to [rows, columns]."""
    if kind.name == "BF16":
        return widen_bf16(raw.view("<u2").astype(np.uint16))
    return raw.view("<f2" if kind.name == "F16" else "<f4").astype(np.float32)
