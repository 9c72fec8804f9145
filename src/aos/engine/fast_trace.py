"""The ops with the most tiles, all tiles at once: the same numbers as tile by tile, some hundred times faster."""

from abc import abstractmethod

import numpy as np

from aos.core.arithmetic.floats import CHUNK, F32, ONE, ZERO, running_sum
from aos.core.arithmetic.formats import BLOCK_FORMATS, U8
from aos.core.arithmetic.matmul import BLOCKS_PER_CHUNK
from aos.core.dispute.fine.common import (
    PRODUCT_ROWS,
    QUANTISED_BYTES,
    chunk_sums,
    dense_chunks,
)
from aos.core.dispute.fine.grid import Mix, Op, Product, Scores
from aos.core.dispute.fine.layer import POSITIONS
from aos.core.dispute.fine.operands import Operands, Poisoned, finite, packed
from aos.core.dispute.state_tree import KEYS, VALUES
from aos.core.manifest import TensorType

_ROWS = 256


class WholeOperands(Operands):
    """Operands that also come whole."""

    @abstractmethod
    def tensor(self, name: str) -> tuple[TensorType, U8]:
        """A matrix: [rows, bytes]."""

    @abstractmethod
    def cache_rows(self, part: int, own: bytes) -> F32:
        """K or V of this layer at all positions up to this one, widened: [positions, kv_width]."""


def whole_op(operands: WholeOperands, op: Op) -> bytes | None:
    """All bytes of an op's output, or None where it has to be computed tile by tile: because it is a small one, or an
    operand is not finite.
    """
    try:
        with np.errstate(all="ignore"):
            if isinstance(op.whole, Product):
                return _product(operands, op.whole)
            if isinstance(op.whole, Scores):
                return _scores(operands, op.whole)
            if isinstance(op.whole, Mix):
                return _mix(operands, op.whole)
    except Poisoned:
        pass
    return None


def _product(operands: WholeOperands, product: Product) -> bytes:
    columns, rows = product.shape
    kind, raw = operands.tensor(product.tensor)
    cells = np.zeros((0, QUANTISED_BYTES), dtype=np.uint8)
    x = np.zeros(0, dtype=np.float32)
    if kind.name in BLOCK_FORMATS:
        values = product.quantised.grid.values
        cells = np.frombuffer(operands.raw(product.quantised, 0, 0, values), dtype=np.uint8)
        cells = cells.reshape(-1, QUANTISED_BYTES)
    else:
        x = product.source(operands, 0, 0, columns)
    out = []
    for first in range(0, rows, _ROWS):
        some = raw[first : first + _ROWS]
        sums = _block_chunks(kind, some, cells) if kind.name in BLOCK_FORMATS else dense_chunks(kind, some, x)
        whole = sums.shape[0] // PRODUCT_ROWS * PRODUCT_ROWS
        out.append(packed(sums[:whole].reshape(-1, PRODUCT_ROWS, sums.shape[1]).transpose(0, 2, 1)))
        if whole < sums.shape[0]:
            out.append(packed(sums[whole:].T))
    return b"".join(out)


def _block_chunks(kind: TensorType, raw: U8, cells: U8) -> F32:
    d = finite(np.ascontiguousarray(cells[:, :4]).view("<f4")[:, 0])
    q = cells[:, 4:].view(np.int8)
    blocks = BLOCK_FORMATS[kind.name].unpack(raw.reshape(raw.shape[0], -1, kind.block_bytes))
    # Exact integers below 2^24, in any order.
    sums = np.einsum("rbi,bi->rb", blocks.factors().astype(np.float32), q.astype(np.float32))
    terms = (blocks.scales * d) * sums
    if blocks.offsets is not None and blocks.counts is not None:
        counted = (blocks.counts.astype(np.int32) * q.astype(np.int32).sum(axis=1)).astype(np.float32)
        terms = terms + (blocks.offsets * d) * counted
    return chunk_sums(terms, BLOCKS_PER_CHUNK)


def _scores(operands: WholeOperands, scores: Scores) -> bytes:
    graph = operands.context.graph
    heads, width, shared = graph.n_heads, graph.head_width, graph.n_heads // graph.n_kv_heads
    rows = operands.cache_rows(KEYS, operands.raw(scores.keys, 0, 0, graph.kv_width))
    rows = finite(rows).reshape(-1, graph.n_kv_heads, width)
    scale = ONE / np.sqrt(np.float32(width))
    return b"".join(
        packed(
            running_sum((scores.queries(operands, head, 0, width) * scale) * rows[:, head // shared])[:, -1]
        )
        for head in range(heads)
    )


def _mix(operands: WholeOperands, mix: Mix) -> bytes:
    graph, count = operands.context.graph, operands.context.position + 1
    heads, width, shared = graph.n_heads, graph.head_width, graph.n_heads // graph.n_kv_heads
    rows = operands.cache_rows(VALUES, operands.raw(mix.values, 0, 0, graph.kv_width))
    rows = finite(rows).reshape(-1, graph.n_kv_heads, width)
    chunks, steps = -(-count // CHUNK), -(-count // POSITIONS)
    out = []
    for head in range(heads):
        terms = np.zeros((chunks * CHUNK, width), dtype=np.float32)
        e = operands.floats(mix.weights, head, 0, count)
        np.multiply(e[:, None], rows[:, head // shared], out=terms[:count])
        sums = np.add.accumulate(terms.reshape(chunks, CHUNK, width), axis=1, dtype=np.float32) + ZERO
        out.append(packed(sums[:, POSITIONS - 1 :: POSITIONS].reshape(-1, width)[:steps]))
    return b"".join(out)
