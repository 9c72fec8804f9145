"""The exact rotary table of rule 4: cos and sin of p · base^(-2i/n_rot) / factor_i, correctly rounded,
without libm.

docs/spec/07-inference.md, "Rotary table". Fixed-point integers with 256 fractional bits; the true value
lies within 2^-200 of the computed one (error budget in the spec), and a value is accepted only where that
whole interval rounds to one binary32.
"""

from collections.abc import Sequence
from fractions import Fraction
from hashlib import sha256

import numpy as np

from aos.core.arithmetic.floats import F32
from aos.errors import InvalidMessage

FRACTION_BITS = 256
ERROR_BITS = 200
MAX_POSITIONS = 1 << 20
MAX_FACTOR = 1 << 20
DIGEST_TAG = b"AOS/rope-table/v1\0"

_ONE = 1 << FRACTION_BITS
_ERROR = 1 << (FRACTION_BITS - ERROR_BITS)


def rope_table(
    base: float, n_rot: int, positions: int, factors: Sequence[float] | None = None
) -> tuple[F32, F32]:
    """(cos, sin), each [positions, n_rot/2]. ``base`` and ``factors`` are the file's binary32 values, taken
    as exact.

    Raises InvalidMessage ``rope.base``, ``rope.factor``, ``rope.dimensions`` or ``rope.positions`` outside
    the limits.
    """
    if not 1.0 < base <= 2.0**40:
        raise InvalidMessage("rope.base", f"the rotary base {base} is not in 1..2^40", field="rope.freq_base")
    if n_rot < 2 or n_rot % 2 or n_rot > 1024:
        raise InvalidMessage(
            "rope.dimensions", f"{n_rot} is not an even count in 2..1024", field="rope.dimension_count"
        )
    if not 1 <= positions <= MAX_POSITIONS:
        raise InvalidMessage(
            "rope.positions", f"{positions} is not in 1..{MAX_POSITIONS}", field="context_length"
        )
    half = n_rot // 2
    divisors = [Fraction(1)] * half if factors is None else [_factor(f) for f in factors]
    if len(divisors) != half:
        raise InvalidMessage(
            "rope.factor", f"{len(divisors)} factors for {half} pairs", field="rope_freqs.weight"
        )
    cos = np.empty((positions, half), dtype=np.float32)
    sin = np.empty((positions, half), dtype=np.float32)
    step = _inverse_root(Fraction(base), half)
    angle = _ONE
    for i in range(half):
        cos[:, i], sin[:, i] = _turns(angle * divisors[i].denominator // divisors[i].numerator, positions)
        angle = angle * step >> FRACTION_BITS
    return cos, sin


def table_digest(cos: F32, sin: F32) -> bytes:
    """SHA-256 over the tag, cos, then sin: float32, little endian, positions outermost."""
    return sha256(DIGEST_TAG + cos.astype("<f4").tobytes() + sin.astype("<f4").tobytes()).digest()


def _factor(value: float) -> Fraction:
    if not 1.0 <= value <= MAX_FACTOR:
        raise InvalidMessage(
            "rope.factor", f"the factor {value} is not in 1..{MAX_FACTOR}", field="rope_freqs.weight"
        )
    return Fraction(value)


def _inverse_root(base: Fraction, degree: int) -> int:
    """floor(base^(-1/degree) · 2^256), by Newton's method on integers."""
    target = (base.denominator << (FRACTION_BITS * degree)) // base.numerator
    root = 1 << -(-target.bit_length() // degree)
    while True:
        better = ((degree - 1) * root + target // root ** (degree - 1)) // degree
        if better >= root:
            return root
        root = better


def _turns(angle: int, positions: int) -> tuple[list[float], list[float]]:
    """cos and sin of 0 .. positions-1 times ``angle`` (fixed point), by the addition theorem, each rounded
    to binary32.
    """
    cos_1, sin_1 = _cos_sin(angle)
    cos_p, sin_p = _ONE, 0
    cosines, sines = [1.0], [0.0]
    for _ in range(1, positions):
        cos_p, sin_p = (
            (cos_p * cos_1 - sin_p * sin_1) >> FRACTION_BITS,
            (sin_p * cos_1 + cos_p * sin_1) >> FRACTION_BITS,
        )
        cosines.append(_round(cos_p))
        sines.append(_round(sin_p))
    return cosines, sines


def _cos_sin(angle: int) -> tuple[int, int]:
    """Taylor series at ``angle`` in 0..1, fixed point."""
    sums = [_ONE, angle]
    term, k = angle, 1
    while term:
        k += 1
        term = (term * angle >> FRACTION_BITS) // k
        sums[k & 1] += -term if k & 2 else term
    return sums[0], sums[1]


def _round(value: int) -> float:
    """The binary32 nearest to value · 2^-256, the same for the whole error interval."""
    magnitude = abs(value)
    low, high = _nearest(magnitude - _ERROR), _nearest(magnitude + _ERROR)
    if low != high:
        raise ArithmeticError("256 bits do not decide the rounding of a rotary table entry")
    return -low if value < 0 else low


def _nearest(magnitude: int) -> float:
    drop = magnitude.bit_length() - 24
    mantissa = (magnitude >> (drop - 1)) + 1 >> 1
    return float(mantissa) * 2.0 ** (drop - FRACTION_BITS)
