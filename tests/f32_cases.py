"""Cases for contracts/src/F32.sol against the reference arithmetic: uniform patterns, neighbours in exponent, subnormals,
ties, cancellation, special values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from evm import Deployed, Revm, deploy

from aos.core.arithmetic.floats import to_half
from aos.core.arithmetic.ops import exp

U32 = npt.NDArray[np.uint32]
AT_ONCE = 25_000
NAN = 0x7FC00000
# fmt: off
SPECIAL = np.array(
    [
        0, 1, 2, 0x7FFFFF, 0x800000, 0x800001, 0xFFFFFF, 0x1000000, 0x33000000, 0x33800000, 0x33800001, 0x34000000,
        0x387FC000, 0x38800000, 0x3F7FFFFF, 0x3F800000, 0x3F800001, 0x40000000, 0x42AE0000, 0x42B00000, 0x477FE000,
        0x477FF000, 0x4B000000, 0x4B7FFFFF, 0x4B800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000,
    ],
    dtype=np.uint32,
)
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``differ`` are (a, b, the contract's result, the reference's)."""

    cases: int
    differ: list[tuple[int, int, int, int]]
    subnormal: int
    infinite: int
    nan: int


def floats(bits: U32) -> npt.NDArray[np.float32]:
    """Patterns as numbers."""
    return bits.view(np.float32)


def patterns(rng: np.random.Generator, count: int) -> tuple[U32, U32]:
    """Pairs of patterns."""

    def uniform() -> U32:
        return rng.integers(0, 2**32, count, dtype=np.uint32)

    def exponents(low: int, high: int) -> U32:
        return (uniform() & np.uint32(0x807FFFFF)) | (rng.integers(low, high, count, dtype=np.uint32) << 23)

    special = np.concatenate([SPECIAL, SPECIAL | np.uint32(0x80000000)])
    a, b = uniform(), uniform()
    kind = rng.integers(0, 9, count)
    for number, pair in enumerate(
        (
            (exponents(100, 154), exponents(100, 154)),  # near each other
            (exponents(0, 3), exponents(0, 3)),  # subnormal
            (a, a ^ np.uint32(0x80000000) ^ rng.integers(0, 4, count, dtype=np.uint32)),  # cancellation
            (
                exponents(120, 134) & np.uint32(0xFFFFF000),
                exponents(108, 146) & np.uint32(0xFFFFF800),
            ),  # ties
            (exponents(40, 90), exponents(30, 90)),  # products among the subnormal numbers
            (rng.choice(special, count), rng.choice(special, count)),
            (uniform(), rng.choice(special, count)),
            (exponents(112, 128), exponents(118, 134)),
        )
    ):
        a, b = np.where(kind == number, pair[0], a), np.where(kind == number, pair[1], b)
    return a.astype(np.uint32), b.astype(np.uint32)


def canonical(values: npt.NDArray[np.float32]) -> U32:
    """Patterns with one NaN."""
    return np.where(np.isnan(values), np.uint32(NAN), values.view(np.uint32)).astype(np.uint32)


def arithmetic(function: Callable[..., npt.NDArray[np.float32]]) -> Callable[[U32, U32], U32]:
    """An operation on patterns, from one on numbers."""
    return lambda a, b: canonical(np.asarray(function(floats(a), floats(b)), dtype=np.float32))


def bounded(limit: float) -> Callable[[U32, U32], tuple[U32, U32]]:
    """Only finite numbers up to a magnitude; others become small."""

    def change(a: U32, b: U32) -> tuple[U32, U32]:
        good = np.abs(floats(a)) <= np.float32(limit)
        return np.where(good, a, a & np.uint32(0xBFFFFFFF) & np.uint32(0xC2FFFFFF)).astype(np.uint32), b

    return change


def whole(a: U32, b: U32) -> tuple[U32, U32]:
    """As they are."""
    return a, b


Reference = Callable[[U32, U32], U32]
OPERATIONS: dict[str, tuple[int, Reference, Callable[[U32, U32], tuple[U32, U32]]]] = {
    "add": (0, arithmetic(lambda a, b: a + b), whole),
    "sub": (1, arithmetic(lambda a, b: a - b), whole),
    "mul": (2, arithmetic(lambda a, b: a * b), whole),
    "div": (3, arithmetic(lambda a, b: a / b), whole),
    "sqrt": (4, arithmetic(lambda a, b: np.sqrt(a)), whole),
    "fromHalf": (
        5,
        lambda a, b: canonical((a & 0xFFFF).astype(np.uint16).view(np.float16).astype(np.float32)),
        whole,
    ),
    "toHalf": (6, lambda a, b: to_half(floats(a)).view(np.uint16).astype(np.uint32), bounded(3.4e38)),
    "toInt": (7, lambda a, b: np.rint(floats(a)).astype(np.int64).astype(np.uint32), bounded(2.0**31 - 128)),
    "fromInt": (8, lambda a, b: a.view(np.int32).astype(np.float32).view(np.uint32), whole),
    "lt": (9, lambda a, b: (floats(a) < floats(b)).astype(np.uint32), whole),
    "exp": (10, lambda a, b: exp(floats(a)).view(np.uint32), bounded(3.4e38)),
}


def differences(name: str, count: int, *, seed: int) -> Comparison:
    """Run one operation in the EVM and in the reference."""
    code, reference, domain = OPERATIONS[name]
    harness = deploy(Revm(), "F32Harness")
    rng = np.random.default_rng([seed, code])
    a, b = domain(*patterns(rng, count))
    if name == "lt":
        keep = ~(np.isnan(floats(a)) | np.isnan(floats(b)))
        a, b = np.where(keep, a, 0).astype(np.uint32), np.where(keep, b, 0).astype(np.uint32)
    if name == "fromHalf":
        a = np.arange(65_536, dtype=np.uint32)
        b = np.zeros_like(a)
    with np.errstate(all="ignore"):
        expected = reference(a, b)
    found = np.concatenate(
        [
            _batch(harness, code, a[at : at + AT_ONCE], b[at : at + AT_ONCE])
            for at in range(0, a.size, AT_ONCE)
        ]
    )
    wrong = np.flatnonzero(found != expected)
    magnitude = expected & np.uint32(0x7FFFFFFF)
    return Comparison(
        cases=int(a.size),
        differ=[(int(a[i]), int(b[i]), int(found[i]), int(expected[i])) for i in wrong],
        subnormal=int((magnitude < 0x800000).sum()),
        infinite=int((magnitude == 0x7F800000).sum()),
        nan=int((magnitude > 0x7F800000).sum()),
    )


def _batch(harness: Deployed, code: int, a: U32, b: U32) -> U32:
    operands = np.stack([a, b], axis=1).astype(">u4").tobytes()
    return np.frombuffer(harness.read("batch", code, operands), dtype=">u4").astype(np.uint32)
