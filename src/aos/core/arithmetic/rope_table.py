"""The exact rotary table of rule 4: cos and sin of p · base^(-2i/n_rot) / factor_i, correctly rounded,
without libm.

docs/spec/07-inference.md, "Rotary table". Fixed-point integers with 256 fractional bits give the turns of
the first 1,024 positions and of every 1,024th; the true value lies within 2^-200 of the computed one (error
budget in the spec). All other positions are turned by the addition theorem, in pairs of binary64 whose sum
is within 2^-98 of the true value. A value is accepted only where the whole interval rounds to one binary32:
where that of the pairs does not, the integers decide.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from aos.core.arithmetic.floats import F32
from aos.core.merkle import leaf_hash, tree_root
from aos.errors import InvalidMessage

F64 = npt.NDArray[np.float64]
Pair = tuple[F64, F64]

FRACTION_BITS = 256
ERROR_BITS = 200
MAX_POSITIONS = 1 << 20
MAX_ENTRIES = 1 << 26
"""Pairs times positions: 512 MiB of cos and sin."""
MAX_FACTOR = 1 << 20

_SPAN = 1024
_PAIR_ERROR = 2.0**-98
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
    if positions * half > MAX_ENTRIES:
        raise InvalidMessage(
            "rope.positions",
            f"{positions} positions of {half} pairs are more than {MAX_ENTRIES} entries",
            field="context_length",
        )
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


def table_leaf(cos: F32, sin: F32) -> bytes:
    """A position's leaf hash, from its cos and sin, [n_rot/2] each: its entry is cos, then sin, float32, little
    endian.
    """
    return leaf_hash(cos.astype("<f4").tobytes() + sin.astype("<f4").tobytes())


def table_root(cos: F32, sin: F32) -> bytes:
    """What a manifest holds of a table: the tree root (RFC 9162) over its positions."""
    return tree_root([table_leaf(c, s) for c, s in zip(cos, sin, strict=True)])


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


def _turns(angle: int, positions: int) -> tuple[F32, F32]:
    """cos and sin of 0 .. positions-1 times ``angle`` (fixed point), each [positions]."""
    span = min(_SPAN, positions)
    near = _powers(_cos_sin(angle), span + 1)
    far = _powers(near.pop(), -(-positions // span))
    a, b = _Pairs(far), _Pairs(near)
    cos, cos_sure = _nearest_of_pair(*_difference(_product(a.cos, b.cos), _product(a.sin, b.sin)))
    sin, sin_sure = _nearest_of_pair(*_sum(_product(a.sin, b.cos), _product(a.cos, b.sin)))
    unsure = ~(cos_sure & sin_sure).reshape(-1)[:positions]
    unsure[0] = False  # exact: 1 and 0
    for index in np.flatnonzero(unsure).tolist():
        (cos_a, sin_a), (cos_b, sin_b) = far[index // span], near[index % span]
        cos.reshape(-1)[index] = _round((cos_a * cos_b - sin_a * sin_b) >> FRACTION_BITS)
        sin.reshape(-1)[index] = _round((sin_a * cos_b + cos_a * sin_b) >> FRACTION_BITS)
    return cos.reshape(-1)[:positions], sin.reshape(-1)[:positions]


def _powers(turn: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """(cos, sin) of 0 .. count-1 times a turn, by the addition theorem."""
    cos_1, sin_1 = turn
    cos_p, sin_p = _ONE, 0
    out = [(cos_p, sin_p)]
    for _ in range(1, count):
        cos_p, sin_p = (
            (cos_p * cos_1 - sin_p * sin_1) >> FRACTION_BITS,
            (sin_p * cos_1 + cos_p * sin_1) >> FRACTION_BITS,
        )
        out.append((cos_p, sin_p))
    return out


class _Pairs:
    """Turns as unevaluated sums of two binary64, off by at most 2^-106; [count] each."""

    def __init__(self, turns: list[tuple[int, int]]) -> None:
        self.cos = _pair([cos for cos, _ in turns])
        self.sin = _pair([sin for _, sin in turns])


def _pair(values: list[int]) -> Pair:
    # Python rounds an integer to the nearest binary64; the rest is exact again as an integer.
    high = [float(value) for value in values]
    low = [float(value - int(h)) for value, h in zip(values, high, strict=True)]
    scale = 2.0**-FRACTION_BITS
    return np.array(high) * scale, np.array(low) * scale


def _product(a: Pair, b: Pair) -> Pair:
    """All products a_i · b_j, [len(a), len(b)]: the rounded product of the high parts (its error is exact, by
    Dekker's splitting) and the sum of all that is smaller, low · low apart.
    """
    (a_high, a_low), (b_high, b_low) = (a[0][:, None], a[1][:, None]), b
    (a_1, a_2), (b_1, b_2) = _split(a_high), _split(b_high)
    product = a_high * b_high
    error = ((a_1 * b_1 - product) + a_1 * b_2 + a_2 * b_1) + a_2 * b_2
    return product, error + (a_high * b_low + a_low * b_high)


def _split(x: F64) -> Pair:
    """Two halves of 26 bits whose sum is x."""
    shifted = x * 134_217_729.0
    high = shifted - (shifted - x)
    return high, x - high


def _sum(a: Pair, b: Pair) -> Pair:
    """The sum of two pairs; the high part's error is exact (Knuth), and so is the last step."""
    high, error = _two_sum(a[0], b[0])
    return _two_sum(high, error + (a[1] + b[1]))


def _difference(a: Pair, b: Pair) -> Pair:
    return _sum(a, (-b[0], -b[1]))


def _two_sum(a: F64, b: F64) -> Pair:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _nearest_of_pair(high: F64, low: F64) -> tuple[F32, npt.NDArray[np.bool_]]:
    """The binary32 nearest to each pair's sum, and whether all values within 2^-98 round to it."""
    nearest = high.astype(np.float32)
    towards_zero = np.nextafter(nearest, np.float32(0)).astype(np.float64)
    rounded = nearest.astype(np.float64)
    # The smaller of the two distances to a neighbour; the margin is far above what the subtraction rounds.
    half = np.abs(rounded - towards_zero) * (0.5 - 2.0**-31)
    sure: npt.NDArray[np.bool_] = np.abs((high - rounded) + low) + _PAIR_ERROR < half
    return nearest, sure


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
