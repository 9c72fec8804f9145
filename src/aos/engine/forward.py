"""The forward pass of one context in the canonical arithmetic (docs/spec/07-inference.md, "The graph").

Positions are given in any split (all at once, in chunks, one by one) and every split gives the same bits,
because each operation treats each position on its own. Nothing is sampled or hashed here: a ``Sink`` takes
what each unit produced.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import numpy as np

from aos.core.arithmetic.floats import F16, F32, NumericTrap, check_finite, to_half
from aos.core.arithmetic.matmul import BlockMatrix, DenseMatrix, quantise
from aos.core.arithmetic.ops import attention, rms_norm, rope, silu_product
from aos.engine.llama import HyperParameters, Layer, Model

Matrix = BlockMatrix | DenseMatrix


class Op(IntEnum):
    """Operations of a unit; the number is what a trap commits. They are evaluated in the order of their
    numbers, except that Q_NORM and K_NORM come after V.
    """

    EMBEDDING = 1
    ATTN_NORM = 2
    Q = 3
    K = 4
    V = 5
    ROPE_Q = 6
    ROPE_K = 7
    SCORES = 8
    SOFTMAX_SUM = 9
    ATTENTION = 10
    ATTN_OUTPUT = 11
    ATTN_RESIDUAL = 12
    FFN_NORM = 13
    GATE = 14
    UP = 15
    ACTIVATION = 16
    DOWN = 17
    FFN_RESIDUAL = 18
    OUTPUT_NORM = 19
    LOGITS = 20
    SAMPLER = 21
    Q_NORM = 22
    K_NORM = 23


class Trap(Exception):
    """Rule 10 at the lowest (position, unit, op) of the run."""

    def __init__(self, position: int, unit: int, op: int) -> None:
        super().__init__(f"not finite at position {position}, unit {unit}, op {op}")
        self.position = position
        self.unit = unit
        self.op = op


class Sink(Protocol):
    """Takes the outputs of units. Rows beyond a trap may be delivered too; whoever commits must drop them."""

    def embedding(self, first: int, residual: F32) -> None: ...

    def layer(self, first: int, index: int, residual: F32, keys: F16, values: F16) -> None: ...


class Context:
    """Keys and values of the positions computed so far."""

    def __init__(self, model: Model, cos: F32, sin: F32) -> None:
        self.model = model
        self.length = 0
        self._cos, self._sin = cos, sin
        self._keys: list[F32] = []
        self._values: list[F32] = []
        self._capacity = 0

    def extend(self, tokens: Sequence[int], sink: Sink) -> tuple[F32, Trap | None]:
        """Compute the next positions. Returns the residuals [T, width] of the positions before the first
        trap, and the trap.

        After a trap the context takes no more positions.
        """
        h = self.model.hyper
        first = self.length
        if first + len(tokens) > h.n_ctx:
            raise ValueError("the context is full")
        self._reserve(first + len(tokens))
        x = np.empty((0, h.width), dtype=np.float32)
        trap: Trap | None = None
        rows = len(tokens)
        unit = 0
        with np.errstate(all="ignore"):
            while rows:
                try:
                    if unit == 0:
                        x = self.model.embedding(list(tokens[:rows]))
                        check_finite(x, Op.EMBEDDING)
                        sink.embedding(first, x)
                    else:
                        x = self._layer(unit - 1, x[:rows], first, sink)
                except NumericTrap as found:
                    # Positions before the trapped one do not depend on it: go on with them, they may trap
                    # earlier still.
                    trap = Trap(first + found.row, unit, found.op)
                    rows = found.row
                    continue
                unit += 1
                if unit > h.n_layers:
                    break
        self.length = first + rows
        return x[:rows], trap

    def _layer(self, index: int, x: F32, first: int, sink: Sink) -> F32:
        model, h = self.model, self.model.hyper
        layer: Layer = model.layers[index]
        rows = x.shape[0]
        last = first + rows
        eps = np.float32(h.eps)
        cos, sin = self._cos[first:last], self._sin[first:last]
        normed = rms_norm(x, layer.attn_norm, eps, Op.ATTN_NORM)
        q, k, v = products(normed, (layer.q, layer.k, layer.v), (Op.Q, Op.K, Op.V), layer.biases)
        q = q.reshape(rows, h.n_heads, h.head_width)
        k = k.reshape(rows, h.n_kv_heads, h.head_width)
        if layer.head_norms is not None:
            q = rms_norm(q, layer.head_norms[0], eps, Op.Q_NORM)
            k = rms_norm(k, layer.head_norms[1], eps, Op.K_NORM)
        q = rope(q, cos, sin, halves=h.architecture.rope_halves)
        check_finite(q, Op.ROPE_Q)
        k = rope(k, cos, sin, halves=h.architecture.rope_halves)
        check_finite(k, Op.ROPE_K)
        k_half, v_half = to_half(k), to_half(v.reshape(k.shape))
        self._keys[index][:, :, first:last] = k_half.transpose(2, 1, 0)
        self._values[index][first:last] = v_half
        mixed = attention(
            q, self._keys[index], self._values[index], first, (Op.SCORES, Op.SOFTMAX_SUM, Op.ATTENTION)
        )
        (out,) = products(mixed, (layer.attn_output,), (Op.ATTN_OUTPUT,))
        x = x + out
        check_finite(x, Op.ATTN_RESIDUAL)
        normed = rms_norm(x, layer.ffn_norm, eps, Op.FFN_NORM)
        gate, up = products(normed, (layer.gate, layer.up), (Op.GATE, Op.UP))
        active = silu_product(gate, up)
        check_finite(active, Op.ACTIVATION)
        (down,) = products(active, (layer.down,), (Op.DOWN,))
        x = x + down
        check_finite(x, Op.FFN_RESIDUAL)
        sink.layer(first, index, x, k_half.reshape(rows, -1), v_half.reshape(rows, -1))
        return x

    def cache(self, layer: int, first: int, end: int) -> tuple[F16, F16]:
        """K and V of a layer at positions ``first`` .. ``end`` - 1: [positions, kv_width] each."""
        keys = self._keys[layer][:, :, first:end].transpose(2, 1, 0).reshape(end - first, -1)
        values = self._values[layer][first:end].reshape(end - first, -1)
        return keys.astype(np.float16), values.astype(np.float16)

    def _reserve(self, length: int) -> None:
        if length <= self._capacity:
            return
        h: HyperParameters = self.model.hyper
        capacity = min(h.n_ctx, max(64, 2 * self._capacity, length))
        keys, values = self._keys, self._values
        self._keys = [
            np.zeros((h.head_width, h.n_kv_heads, capacity), dtype=np.float32) for _ in range(h.n_layers)
        ]
        self._values = [
            np.zeros((capacity, h.n_kv_heads, h.head_width), dtype=np.float32) for _ in range(h.n_layers)
        ]
        for old, new in zip(keys, self._keys, strict=False):
            new[:, :, : self.length] = old[:, :, : self.length]
        for old, new in zip(values, self._values, strict=False):
            new[: self.length] = old[: self.length]
        self._capacity = capacity


def tail_logits(model: Model, x: F32) -> F32:
    """The final norm and the output matrix for residuals [T, width]: [T, n_vocab]. Raises NumericTrap."""
    with np.errstate(all="ignore"):
        normed = rms_norm(x, model.output_norm, np.float32(model.hyper.eps), Op.OUTPUT_NORM)
        return products(normed, (model.output,), (Op.LOGITS,))[0]


def products(
    x: F32, matrices: Sequence[Matrix], ops: Sequence[int], biases: Sequence[F32] | None = None
) -> list[F32]:
    """Rule 2 for several matrices over the same activations ``x`` [T, columns]. Raises NumericTrap."""
    quantised: tuple[F32, F32] | None = None
    out: list[F32] = []
    for index, (matrix, op) in enumerate(zip(matrices, ops, strict=True)):
        if isinstance(matrix, BlockMatrix):
            if quantised is None:
                quantised = quantise(x)
            y = matrix.product(*quantised)
        else:
            y = matrix.product(x)
        if biases is not None:
            y = y + biases[index]
        check_finite(y, op)
        out.append(y)
    return out
