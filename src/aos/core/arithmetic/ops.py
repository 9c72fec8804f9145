"""Rules 3, 4, 6, 7 and 8: normalisation, rotary embedding, attention, exp, SiLU, argmax
(docs/spec/07-inference.md).

Pure functions over float32 arrays. The first axis is the batch (positions); every function gives the same
bits for a row whatever else is in the batch.
"""

import numpy as np

from aos.core.arithmetic.floats import CHUNK, F32, ONE, ZERO, check_finite, lane_sum
from aos.core.arithmetic.matmul import chunked_sum

EXP_LOW = np.float32(-87.0)
EXP_HIGH = np.float32(88.0)
LOG2_E = np.float32(float.fromhex("0x1.715476p+0"))
ROUNDER = np.float32(float.fromhex("0x1.8p+23"))
LN2_HIGH = np.float32(float.fromhex("0x1.63p-1"))
LN2_LOW = np.float32(float.fromhex("-0x1.bd0106p-13"))
EXP_COEFFICIENTS = tuple(
    np.float32(float.fromhex(c))
    for c in (
        "0x1.a0d2cep-13",
        "0x1.6e879cp-10",
        "0x1.11121p-7",
        "0x1.555382p-5",
        "0x1.555554p-3",
        "0x1p-1",
    )
)


def exp(x: F32) -> F32:
    """Rule 7. Any finite input or -infinity; exact at 0."""
    x = np.minimum(np.maximum(x, EXP_LOW), EXP_HIGH)
    shifted = x * LOG2_E + ROUNDER
    n = shifted - ROUNDER
    y = (x - n * LN2_HIGH) - n * LN2_LOW
    p = y * EXP_COEFFICIENTS[0]
    for coefficient in EXP_COEFFICIENTS[1:-1]:
        p += coefficient
        p *= y
    p += EXP_COEFFICIENTS[-1]
    p = p * (y * y) + y
    p = p + ONE
    scaled: F32 = (p.view(np.int32) + (n.astype(np.int32) << 23)).view(np.float32)
    return scaled


def silu_product(gate: F32, up: F32) -> F32:
    """Rule 7: (g / (1 + exp(-g))) · u."""
    out: F32 = (gate / (ONE + exp(-gate))) * up
    return out


def rms_norm(x: F32, weight: F32, eps: np.float32, op: int) -> F32:
    """Rule 3 over the last axis of ``x`` [T, ..., n]. Raises NumericTrap for a sum or an output that is not
    finite.
    """
    total = lane_sum(x * x)
    check_finite(total, op)
    scale = ONE / np.sqrt(total / np.float32(x.shape[-1]) + eps)
    out: F32 = (x * scale[..., None]) * weight
    check_finite(out, op)
    return out


def rope(x: F32, cos: F32, sin: F32, *, halves: bool) -> F32:
    """Rule 4: ``x`` [T, heads, hd], ``cos`` and ``sin`` [T, n_rot/2]; dimensions from n_rot on stay.

    Pairs are (i, i + n_rot/2) with ``halves``, else (2i, 2i + 1).
    """
    half = cos.shape[1]
    first, second = (
        (slice(0, half), slice(half, 2 * half)) if halves else (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
    )
    out = x.copy()
    a, b = x[:, :, first], x[:, :, second]
    c, s = cos[:, None, :], sin[:, None, :]
    out[:, :, first] = a * c - b * s
    out[:, :, second] = a * s + b * c
    return out


def attention(q: F32, keys: F32, values: F32, first: int, ops: tuple[int, int, int]) -> F32:
    """Rule 6 for positions ``first`` .. ``first + T - 1``.

    ``q`` [T, heads, hd]; ``keys`` [hd, kv_heads, P] and ``values`` [P, kv_heads, hd] hold binary16 values
    as float32 for positions 0 .. P-1, P >= first + T. Heads h·r .. h·r + r - 1 (r = heads / kv_heads) share
    key head h. Returns [T, heads · hd]. ``ops`` are the trap numbers of scores, sum and output.
    """
    rows, heads, width = q.shape
    kv_heads, count = keys.shape[1], first + rows
    scaled = (q * (ONE / np.sqrt(np.float32(width)))).reshape(rows, kv_heads, heads // kv_heads, width)
    scores = np.zeros((rows, kv_heads, heads // kv_heads, count), dtype=np.float32)
    scratch = np.empty_like(scores)
    by_dimension = np.ascontiguousarray(scaled.transpose(3, 0, 1, 2))[..., None]
    for i in range(width):
        np.multiply(by_dimension[i], keys[i, :, None, :count], out=scratch)
        scores += scratch
    if rows > 1:
        # A key after the row's own position takes no part: weight +0 adds nothing to a sum that cannot be -0.
        absent = np.arange(count)[None, :] > np.arange(first, count)[:, None]
        scores[~np.isfinite(scores) & absent[:, None, None, :]] = ZERO
    check_finite(scores, ops[0])
    if rows > 1:
        scores = np.where(absent[:, None, None, :], -np.inf, scores).astype(np.float32)
    weights = exp(scores - scores.max(axis=-1, keepdims=True))
    if rows > 1:
        weights[np.broadcast_to(absent[:, None, None, :], weights.shape)] = ZERO
    total = lane_sum(weights)
    check_finite(total, ops[1])
    mixed = _mix(weights, values[:count], first)
    out = mixed * (ONE / total)[..., None]
    check_finite(out, ops[2])
    return out.reshape(rows, heads * width)


def _mix(weights: F32, values: F32, first: int) -> F32:
    """Per chunk of 256 absolute positions sum e_j · v_j in order; chunks in order. [T, kv, r, P] x [P, kv,
    hd].
    """
    rows, kv_heads, shared, count = weights.shape
    width = values.shape[2]
    if rows == 1:
        spread = np.ascontiguousarray(weights[0].transpose(2, 0, 1))[..., None] * values[:, :, None, :]
        return chunked_sum(spread, CHUNK)[None]
    total = np.zeros((rows, kv_heads, shared, width), dtype=np.float32)
    columns = np.ascontiguousarray(weights.transpose(3, 0, 1, 2))[..., None]
    scratch = np.empty_like(total)
    for start in range(0, count, CHUNK):
        part = np.zeros_like(total)
        for j in range(start, min(start + CHUNK, count)):
            row = max(j - first, 0)
            np.multiply(columns[j, row:], values[j][None, :, None, :], out=scratch[row:])
            part[row:] += scratch[row:]
        total = total + part
    return total


def argmax(x: F32) -> int:
    """Rule 8: the lowest index of the largest value."""
    return int(np.argmax(x))
