"""Ops that several units share: norms, activation quantisation, products (docs/spec/11-trace.md, "Ops").

Each function lists an op and gives it its arithmetic, one tile at a time, in the order of docs/spec/07-inference.md.
"""

import numpy as np

from aos.core.arithmetic.floats import CHUNK, F32, LANES, ONE, ZERO, halving_tree, running_sum
from aos.core.arithmetic.formats import BLOCK, BLOCK_FORMATS, U8, dequantise
from aos.core.arithmetic.matmul import BLOCKS_PER_CHUNK, quantise
from aos.core.dispute.fine.grid import Grid, Op, OpList, Product
from aos.core.dispute.fine.operands import Operands, Source, WeightBlock, finite, packed, widened
from aos.core.manifest import TensorType

TILE = 256
"""fp32 values of an ordinary tile."""
LANE_TERMS = 64
"""Terms of a lane between two committed running values."""
SEGMENT = LANES * LANE_TERMS
PRODUCT_ROWS = 4
PRODUCT_CHUNKS = 4
SUM_ROWS = 64
QUANTISED_BYTES = 4 + BLOCK


def source_of(op: Op) -> Source:
    """An op's finite values, as an operand."""
    return lambda operands, group, first, end: operands.floats(op, group, first, end)


def by_group(source: Source, width: int) -> Source:
    """A flat source of one group, read as groups of ``width`` values."""
    return lambda operands, group, first, end: source(operands, 0, group * width + first, group * width + end)


def residual_source(operands: Operands, group: int, first: int, end: int) -> F32:
    """The residual that the unit before left."""
    return operands.residual(first, end)


def fold_lanes(before: F32, terms: F32) -> F32:
    """Rule 0: 16 lanes, from ``before`` over the next terms; a term that does not exist adds nothing."""
    padded = np.zeros(-(-terms.size // LANES) * LANES, dtype=np.float32)
    padded[: terms.size] = terms
    # A strict left fold over the terms of every lane.
    rows = np.concatenate([before[None], padded.reshape(-1, LANES)])
    lanes: F32 = np.add.accumulate(rows, axis=0, dtype=np.float32)[-1] + ZERO
    return lanes


def add_lanes(ops: OpList, name: str, source: Source, groups: int, n: int, trap: int, *, squares: bool) -> Op:
    """lanes(t) of ``n`` terms per group, with a running value of every lane each 64 terms; then the sum, which is
    returned.
    """
    segments = -(-n // SEGMENT)

    def lanes(operands: Operands, group: int, first: int, end: int) -> bytes:
        segment = first // LANES
        before = np.zeros(LANES, dtype=np.float32)
        if segment:
            before = operands.any_floats(running, group, first - LANES, first)
        terms = source(operands, group, segment * SEGMENT, min((segment + 1) * SEGMENT, n))
        return packed(fold_lanes(before, terms * terms if squares else terms))

    running = ops.add(
        f"{name}.lanes", Grid(groups=groups, values=segments * LANES, tile=LANES, size=4), lanes
    )

    def total(operands: Operands, group: int, first: int, end: int) -> bytes:
        last = operands.any_floats(running, group, (segments - 1) * LANES, segments * LANES)
        return packed(halving_tree(last))

    return ops.add(f"{name}.sum", Grid(groups=groups, values=1, tile=1, size=4), total, trap=trap)


def add_norm(
    ops: OpList, name: str, source: Source, weights: str, trap: int, *, groups: int = 1, n: int
) -> Op:
    """Rule 3 over ``n`` numbers of every group, with one weight vector for all groups."""
    total = add_lanes(ops, name, source, groups, n, trap, squares=True)

    def output(operands: Operands, group: int, first: int, end: int) -> bytes:
        s = operands.floats(total, group, 0, 1)[0]
        r = ONE / np.sqrt(s / np.float32(n) + operands.context.eps)
        x = source(operands, group, first, end)
        return packed((x * r) * operands.vector(weights, n, first, end))

    return ops.add(name, Grid(groups=groups, values=n, tile=TILE, size=4), output, trap=trap, by_value=True)


def add_quantised(ops: OpList, name: str, source: Source, n: int) -> Op:
    """Rule 1: per 32 values D (fp32), then 32 signed bytes q."""

    def output(operands: Operands, group: int, first: int, end: int) -> bytes:
        q, scale = quantise(source(operands, 0, first * BLOCK, end * BLOCK)[None])
        out = np.empty((end - first, QUANTISED_BYTES), dtype=np.uint8)
        out[:, :4] = scale[:, 0].astype("<f4").view(np.uint8)
        out[:, 4:] = q[:, 0].astype(np.int8).view(np.uint8)
        return out.tobytes()

    grid = Grid(values=n // BLOCK, tile=BLOCKS_PER_CHUNK, size=QUANTISED_BYTES)
    return ops.add(name, grid, output, element=QUANTISED_BYTES, by_value=True)


def add_product(
    ops: OpList,
    name: str,
    source: Source,
    quantised: Op,
    tensor: str,
    shape: tuple[int, int],
    trap: int,
    bias: str | None = None,
) -> Op:
    """Rule 2: the chunks of every row's sum, then the sums, with the bias where there is one.

    ``shape`` is (columns, rows). Chunk sums lie in tiles of 4 rows by 4 chunks, chunk by chunk.
    """
    columns, rows = shape
    chunks = -(-columns // CHUNK)

    def partials(operands: Operands, group: int, first: int, end: int) -> bytes:
        start = group * PRODUCT_ROWS
        return of_rows(operands, start, min(start + PRODUCT_ROWS, rows), first, end)

    def one_row(operands: Operands, group: int, first: int, component: int) -> bytes:
        row = group * PRODUCT_ROWS + component
        return of_rows(operands, row, row + 1, first, first + 1)

    def of_rows(operands: Operands, first_row: int, end_row: int, first: int, end: int) -> bytes:
        kind, raw = operands.weights(
            WeightBlock(
                tensor=tensor,
                shape=shape,
                first_row=first_row,
                end_row=end_row,
                first_chunk=first,
                end_chunk=end,
            )
        )
        last_column = min(end * CHUNK, columns)
        if kind.name not in BLOCK_FORMATS:
            sums = dense_chunks(kind, raw, source(operands, 0, first * CHUNK, last_column))
        else:
            blocks = operands.raw(quantised, 0, first * BLOCKS_PER_CHUNK, last_column // BLOCK)
            sums = block_chunks(kind, raw, blocks)
        return packed(sums.T)

    short = rows % PRODUCT_ROWS
    part = ops.add(
        f"{name}.chunks",
        Grid(
            groups=-(-rows // PRODUCT_ROWS),
            values=chunks,
            tile=PRODUCT_CHUNKS,
            size=4 * PRODUCT_ROWS,
            last_size=4 * short,
        ),
        partials,
        whole=Product(tensor=tensor, shape=shape, source=source, quantised=quantised),
        by_value=True,
        component=one_row,
    )

    def sums(operands: Operands, group: int, first: int, end: int) -> bytes:
        groups = range(first // PRODUCT_ROWS, -(-end // PRODUCT_ROWS))
        terms = np.concatenate(
            [operands.any_floats(part, each, 0, chunks).reshape(chunks, -1) for each in groups], axis=1
        )
        start = groups.start * PRODUCT_ROWS
        y = running_sum(terms.T)[first - start : end - start, -1]
        if bias is not None:
            y = y + operands.vector(bias, rows, first, end)
        return packed(y)

    return ops.add(name, Grid(values=rows, tile=SUM_ROWS, size=4), sums, trap=trap, by_value=True)


def block_chunks(kind: TensorType, raw: U8, quantised: bytes) -> F32:
    """Rule 2 of a block type: the chunk sums [rows, chunks] of raw bytes [rows, bytes] and as many blocks of
    quantised activations. Raises Poisoned.
    """
    blocks = BLOCK_FORMATS[kind.name].unpack(raw.reshape(raw.shape[0], -1, kind.block_bytes))
    cells = np.frombuffer(quantised, dtype=np.uint8).reshape(-1, QUANTISED_BYTES)
    d = finite(np.ascontiguousarray(cells[:, :4]).view("<f4")[:, 0])
    q = cells[:, 4:].view(np.int8).astype(np.int32)
    # Exact integers below 2^24: any order, and exact in fp32.
    sums = (blocks.factors().astype(np.int32) * q).sum(axis=2).astype(np.float32)
    terms = (blocks.scales * d) * sums
    if blocks.offsets is not None and blocks.counts is not None:
        counted = (blocks.counts.astype(np.int32) * q.sum(axis=1)).astype(np.float32)
        terms = terms + (blocks.offsets * d) * counted
    return chunk_sums(terms, BLOCKS_PER_CHUNK)


def dense_chunks(kind: TensorType, raw: U8, x: F32) -> F32:
    """Rule 2 of F16, BF16 and F32: the chunk sums [rows, chunks]."""
    return chunk_sums(widened(kind, raw) * x, CHUNK)


def chunk_sums(terms: F32, chunk: int) -> F32:
    """Sums of ``chunk`` terms on the last axis, each in order from +0, the last may be short.

    A term that does not exist is +0, which changes no sum: none can be -0.
    """
    short = -terms.shape[1] % chunk
    if short:
        terms = np.concatenate([terms, np.zeros((terms.shape[0], short), dtype=np.float32)], axis=1)
    sums: F32 = running_sum(terms.reshape(terms.shape[0], -1, chunk))[..., -1]
    return sums


def embedding_row(kind: TensorType, raw: U8) -> F32:
    """Rule 8 of a row's bytes: its weights."""
    if kind.name not in BLOCK_FORMATS:
        row: F32 = widened(kind, raw.reshape(1, -1))[0]
        return row
    row = dequantise(BLOCK_FORMATS[kind.name].unpack(raw.reshape(-1, kind.block_bytes))).reshape(-1)
    return row


def add_sum(ops: OpList, name: str, a: Source, b: Source, n: int, trap: int, part: int | None = None) -> Op:
    """Rule 8's residual: a + b."""

    def output(operands: Operands, group: int, first: int, end: int) -> bytes:
        return packed(a(operands, 0, first, end) + b(operands, 0, first, end))

    return ops.add(name, Grid(values=n, tile=TILE, size=4), output, trap=trap, part=part, by_value=True)
