"""The ops of the embedding and of a layer (docs/spec/11-trace.md, "Embedding", "Layer")."""

import numpy as np

from aos.core.arithmetic.floats import CHUNK, F32, ONE, ZERO, running_sum, to_half
from aos.core.arithmetic.ops import exp, rope, silu_product
from aos.core.dispute.fine.common import (
    TILE,
    add_lanes,
    add_norm,
    add_product,
    add_quantised,
    add_sum,
    by_group,
    embedding_row,
    residual_source,
    source_of,
)
from aos.core.dispute.fine.grid import Grid, Mix, Op, OpList, Scores
from aos.core.dispute.fine.operands import Operands, Source, WeightBlock, finite, packed
from aos.core.dispute.state_tree import KEYS, RESIDUAL, VALUES
from aos.core.manifest import CHUNK_WEIGHTS, GraphKind, GraphSizes

POSITIONS = 16
"""Positions of a tile of scores, and of a tile of the weighted sum."""


def embedding_ops(graph: GraphSizes) -> OpList:
    """Unit 0: the token's row of the embedding."""
    ops = OpList()

    def output(operands: Operands, group: int, first: int, end: int) -> bytes:
        (token,) = operands.tokens(operands.context.position, operands.context.position + 1)
        kind, raw = operands.weights(
            WeightBlock(
                tensor="token_embd.weight",
                shape=(graph.width, graph.n_vocab),
                first_row=token,
                end_row=token + 1,
                first_chunk=first // CHUNK_WEIGHTS,
                end_chunk=first // CHUNK_WEIGHTS + 1,
            )
        )
        return packed(embedding_row(kind, raw))

    ops.add("embedding", Grid(values=graph.width, tile=TILE, size=4), output, trap=1, part=RESIDUAL)
    ops.add_trap()
    return ops


def layer_ops(graph: GraphSizes, kind: GraphKind, layer: int, position: int) -> OpList:
    """Unit ``layer`` + 1 at ``position``."""
    ops = OpList()
    prefix = f"blk.{layer}."
    n = graph.width
    heads, kv_heads, width = graph.n_heads, graph.n_kv_heads, graph.head_width

    norm = source_of(add_norm(ops, "attn_norm", residual_source, prefix + "attn_norm.weight", 2, n=n))
    quantised = add_quantised(ops, "attn_norm.quantised", norm, n)
    projections: list[Source] = []
    for name, rows, trap in (("q", heads * width, 3), ("k", kv_heads * width, 4), ("v", kv_heads * width, 5)):
        bias = f"{prefix}attn_{name}.bias" if kind.biases else None
        tensor = f"{prefix}attn_{name}.weight"
        op = add_product(ops, name, norm, quantised, tensor, (n, rows), trap, bias)
        projections.append(source_of(op))
    q, k, v = projections
    q, k = by_group(q, width), by_group(k, width)
    if kind.head_norms:
        q = source_of(add_norm(ops, "q_norm", q, prefix + "attn_q_norm.weight", 22, groups=heads, n=width))
        k = source_of(add_norm(ops, "k_norm", k, prefix + "attn_k_norm.weight", 23, groups=kv_heads, n=width))
    turned_q = add_rope(ops, "rope_q", q, graph, kind, heads, 6)
    turned_k = add_rope(ops, "rope_k", k, graph, kind, kv_heads, 7)
    keys = add_half(ops, "keys", flat(source_of(turned_k), width), graph.kv_width, KEYS)
    values = add_half(ops, "values", v, graph.kv_width, VALUES)
    mixed = add_attention(ops, graph, source_of(turned_q), keys, values, position)
    attended = flat(source_of(mixed), width)

    quantised = add_quantised(ops, "attention.quantised", attended, heads * width)
    tensor = prefix + "attn_output.weight"
    out = source_of(add_product(ops, "attn_output", attended, quantised, tensor, (heads * width, n), 11))
    middle = source_of(add_sum(ops, "attn_residual", residual_source, out, n, 12))
    norm = source_of(add_norm(ops, "ffn_norm", middle, prefix + "ffn_norm.weight", 13, n=n))
    quantised = add_quantised(ops, "ffn_norm.quantised", norm, n)
    size = (n, graph.ff_width)
    gate = source_of(add_product(ops, "gate", norm, quantised, prefix + "ffn_gate.weight", size, 14))
    up = source_of(add_product(ops, "up", norm, quantised, prefix + "ffn_up.weight", size, 15))
    active = source_of(add_activation(ops, gate, up, graph.ff_width))
    quantised = add_quantised(ops, "activation.quantised", active, graph.ff_width)
    size = (graph.ff_width, n)
    down = source_of(add_product(ops, "down", active, quantised, prefix + "ffn_down.weight", size, 17))
    add_sum(ops, "residual", middle, down, n, 18, RESIDUAL)
    ops.add_trap()
    return ops


def flat(source: Source, width: int) -> Source:
    """Groups of ``width`` values, read as one group."""

    def read(operands: Operands, group: int, first: int, end: int) -> F32:
        parts = []
        while first < end:
            at, offset = divmod(first, width)
            stop = min(width, offset + end - first)
            parts.append(source(operands, at, offset, stop))
            first += stop - offset
        return np.concatenate(parts)

    return read


def add_rope(
    ops: OpList, name: str, source: Source, graph: GraphSizes, kind: GraphKind, heads: int, trap: int
) -> Op:
    """Rule 4, a tile a head."""
    width = graph.head_width

    def output(operands: Operands, group: int, first: int, end: int) -> bytes:
        x = source(operands, group, 0, width)
        cos, sin = operands.rope_turns()
        return packed(rope(x[None, None], cos[None], sin[None], halves=kind.rope_halves)[0, 0])

    return ops.add(name, Grid(groups=heads, values=width, tile=width, size=4), output, trap=trap)


def add_half(ops: OpList, name: str, source: Source, n: int, part: int) -> Op:
    """Rule 5: binary16, as the cache holds it."""

    def output(operands: Operands, group: int, first: int, end: int) -> bytes:
        return to_half(source(operands, 0, first, end)).astype("<f2").tobytes()

    return ops.add(name, Grid(values=n, tile=TILE, size=2), output, part=part, element=2, by_value=True)


def cache_rows(operands: Operands, own: Op, part: int, head: int, width: int, first: int, end: int) -> F32:
    """K or V of key head ``head`` at positions ``first`` … ``end`` - 1, widened, [positions, width]: of earlier
    positions as ``state_root`` has it, of this one as the trace has it. Raises Poisoned.
    """
    position = operands.context.position
    columns = head * width, (head + 1) * width
    parts = []
    if first < position:
        earlier = min(end, position) - first
        parts.append(operands.cached(part, first, earlier, *columns))
    if end > position:
        here = np.frombuffer(operands.raw(own, 0, *columns), dtype="<f2").astype(np.float32)
        parts.append(finite(here)[None])
    return np.concatenate(parts)


def add_attention(ops: OpList, graph: GraphSizes, q: Source, keys: Op, values: Op, position: int) -> Op:
    """Rule 6: scores, their largest, exp, S, and the weighted sum with a running value every 16 positions."""
    heads, width = graph.n_heads, graph.head_width
    shared = graph.n_heads // graph.n_kv_heads
    count = position + 1
    chunks = -(-count // CHUNK)

    def score(operands: Operands, head: int, first: int, end: int) -> bytes:
        scaled = q(operands, head, 0, width) * (ONE / np.sqrt(np.float32(width)))
        rows = cache_rows(operands, keys, KEYS, head // shared, width, first, end)
        return packed(running_sum(scaled * rows)[:, -1])

    scores = ops.add(
        "scores",
        Grid(groups=heads, values=count, tile=POSITIONS, size=4),
        score,
        trap=8,
        whole=Scores(queries=q, keys=keys),
        by_value=True,
    )

    def chunk_largest(operands: Operands, head: int, first: int, end: int) -> bytes:
        chunk = operands.floats(scores, head, first * CHUNK, min(end * CHUNK, count))
        # The sign of a largest value that is zero decides nothing; + 0 makes it one.
        return packed(chunk.max() + ZERO)

    partial = ops.add("scores.max.chunks", Grid(groups=heads, values=chunks, tile=1, size=4), chunk_largest)

    def largest(operands: Operands, head: int, first: int, end: int) -> bytes:
        return packed(operands.floats(partial, head, 0, chunks).max() + ZERO)

    highest = ops.add("scores.max", Grid(groups=heads, values=1, tile=1, size=4), largest)

    def weight(operands: Operands, head: int, first: int, end: int) -> bytes:
        m = operands.floats(highest, head, 0, 1)
        return packed(exp(operands.floats(scores, head, first, end) - m))

    weights = ops.add("exp", Grid(groups=heads, values=count, tile=TILE, size=4), weight, by_value=True)
    total = add_lanes(ops, "exp", source_of(weights), heads, count, 9, squares=False)

    def mix(operands: Operands, head: int, first: int, end: int) -> bytes:
        start, stop = first * POSITIONS, min(end * POSITIONS, count)
        before = np.zeros(width, dtype=np.float32)
        if start % CHUNK:
            before = operands.floats(running, head, first - 1, first)
        e = operands.floats(weights, head, start, stop)
        rows = cache_rows(operands, values, VALUES, head // shared, width, start, stop)
        terms = np.concatenate([before[None], e[:, None] * rows])
        return packed(np.add.accumulate(terms, axis=0, dtype=np.float32)[-1] + ZERO)

    steps = -(-count // POSITIONS)
    running = ops.add(
        "mix",
        Grid(groups=heads, values=steps, tile=1, size=4 * width),
        mix,
        whole=Mix(weights=weights, values=values),
    )

    def add_chunk(operands: Operands, head: int, first: int, end: int) -> bytes:
        last = min(end * (CHUNK // POSITIONS), steps)
        chunk = operands.floats(running, head, last - 1, last)
        if first:
            chunk = operands.floats(added, head, first - 1, first) + chunk
        return packed(chunk)

    added = ops.add("mix.chunks", Grid(groups=heads, values=chunks, tile=1, size=4 * width), add_chunk)

    def output(operands: Operands, head: int, first: int, end: int) -> bytes:
        mixed = operands.floats(added, head, chunks - 1, chunks)
        return packed(mixed * (ONE / operands.floats(total, head, 0, 1)[0]))

    grid = Grid(groups=heads, values=width, tile=width, size=4)
    return ops.add("attention", grid, output, trap=10)


def add_activation(ops: OpList, gate: Source, up: Source, n: int) -> Op:
    """Rule 7: silu(gate)·up."""

    def output(operands: Operands, group: int, first: int, end: int) -> bytes:
        return packed(silu_product(gate(operands, 0, first, end), up(operands, 0, first, end)))

    return ops.add("activation", Grid(values=n, tile=TILE, size=4), output, trap=16, by_value=True)
