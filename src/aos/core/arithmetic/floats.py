"""Binary32 and binary16 as the canonical arithmetic uses them (docs/spec/07-inference.md, rules 0, 5 and 10).

Every other module of this package builds on IEEE 754 single operations of NumPy, one rounding each, in a
written order. Nothing here calls libm, BLAS or a reduction whose order NumPy may choose.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from aos.errors import ConfigError

F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ZERO = np.float32(0.0)
ONE = np.float32(1.0)
CHUNK = 256
LANES = 16
HALF_MAX = np.float32(65504.0)


class NumericTrap(Exception):
    """Rule 10: an output of ``op`` is NaN or infinite, first in row ``row`` of the batch."""

    def __init__(self, op: int, row: int) -> None:
        super().__init__(f"op {op} is not finite in row {row}")
        self.op = op
        self.row = row


def nearest_f32(numerator: int, denominator: int) -> np.float32:
    """The binary32 nearest to ``numerator / denominator``, ties to even. Both non-negative; the result must
    be normal or 0.
    """
    if numerator == 0:
        return ZERO
    shift = 26 + denominator.bit_length() - numerator.bit_length()
    quotient, rest = divmod(numerator << max(shift, 0), denominator << max(-shift, 0))
    # 26 or 27 bits and a sticky bit below them are enough to round once to 24.
    quotient = quotient << 1 | (rest != 0)
    drop = quotient.bit_length() - 24
    mantissa, tail = quotient >> drop, quotient & ((1 << drop) - 1)
    half = 1 << (drop - 1)
    if tail > half or (tail == half and mantissa & 1):
        mantissa += 1
    exponent = drop - 1 - shift
    if not -149 <= exponent <= 103:
        raise ValueError("the quotient is not a normal binary32")
    return np.float32(mantissa * 2.0**exponent)


def millionths(value: int) -> np.float32:
    """A parameter in millionths as the nearest binary32."""
    return nearest_f32(value, 1_000_000)


def to_half(x: F32) -> F16:
    """Rule 5: binary16, round to nearest even, saturating at 65504 in magnitude. ``x`` must be finite."""
    return np.clip(x, -HALF_MAX, HALF_MAX).astype(np.float16)


def halving_tree(lanes: F32) -> F32:
    """Sum of 16 lanes on the last axis: lane i takes lane i + h for h = 8, 4, 2, 1. Shape [..., 16] to
    [...].
    """
    width = LANES
    while width > 1:
        width //= 2
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return lanes[..., 0]


def lane_sum(terms: F32) -> F32:
    """Sum over the last axis: 16 lanes (index mod 16), each in order from +0, then the halving tree."""
    short = -terms.shape[-1] % LANES
    if short:
        # A lane starts at +0 and so is never -0: adding +0 for a term that does not exist changes nothing.
        terms = np.concatenate([terms, np.zeros((*terms.shape[:-1], short), dtype=np.float32)], axis=-1)
    groups = terms.reshape(*terms.shape[:-1], -1, LANES)
    lanes = groups[..., 0, :] + ZERO
    for index in range(1, groups.shape[-2]):
        lanes += groups[..., index, :]
    return halving_tree(lanes)


def running_sum(terms: F32) -> F32:
    """Partial sums over the last axis, in order, from +0. ``accumulate`` is a strict left fold."""
    return np.add.accumulate(terms, axis=-1, dtype=np.float32) + ZERO


def check_finite(x: Any, op: int) -> None:
    """Rule 10. ``x`` has the batch as its first axis. Raises NumericTrap for the first row that is not
    finite.
    """
    finite = np.isfinite(x)
    if not finite.all():
        rows = finite.reshape(finite.shape[0], -1).all(axis=1)
        raise NumericTrap(op, int(np.argmin(rows)))


def require_ieee() -> None:
    """Refuse a processor state that flushes subnormals (a library built with fast-math sets it for a thread).

    Raises ConfigError ``engine.flush_to_zero``.
    """
    tiny = np.full(8, 2.0**-126, dtype=np.float32)
    subnormal = tiny * np.float32(0.5)
    if not (subnormal > ZERO).all() or not (subnormal + subnormal == tiny).all():
        raise ConfigError(
            "engine.flush_to_zero",
            "this thread flushes subnormal numbers to zero, so its results would not be canonical",
            hint="find the library that was built with -ffast-math and keep it out of this process",
        )
