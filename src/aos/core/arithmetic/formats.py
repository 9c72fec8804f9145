"""Block formats of quantised weights (docs/spec/07-inference.md, "Block formats").

Every format is read as blocks of 32 consecutive weights of a row, each weight ``(d · step) · w +
offset · n``: w an integer of its own, the others shared. All products of these are exact in binary32, so
only the sum rounds. The byte layouts are ggml's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from aos.core.arithmetic.floats import F32

U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]

Item = TypeVar("Item", bound=np.generic)

BLOCK = 32


@dataclass(frozen=True, slots=True)
class Blocks:
    """Unpacked blocks of 32 weights; [...] are the dimensions of the packed blocks.

    ``weights`` [..., 32] are the integers w and ``scales`` [...] is d. ``steps`` [..., 32] are the integers
    that scale each weight in the super-block formats. Where the format has an offset, ``offsets`` [...] is
    m (Q4_1, Q5_1) or -dmin (Q4_K, Q5_K) and ``counts`` [...] the integer n that multiplies it (1 in Q4_1
    and Q5_1).
    """

    weights: I16
    scales: F32
    steps: I16 | None = None
    offsets: F32 | None = None
    counts: I16 | None = None

    def factors(self) -> I16:
        """The integers that rule 2 multiplies with the activations': w, or step · w, below 2^13."""
        return self.weights if self.steps is None else self.weights * self.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat:
    """``unpack`` takes packed blocks [..., n, bytes] to Blocks [..., n · (block weights / 32)].

    ``scales_at`` are the byte offsets of a block's binary16 numbers.
    """

    unpack: Callable[[U8], Blocks]
    scales_at: tuple[int, ...]


def dequantise(blocks: Blocks) -> F32:
    """Rule 8: the weights as binary32 [..., 32]."""
    scales = blocks.scales[..., None]
    if blocks.steps is not None:
        # Not scale · (step · w): zeros would have another sign.
        scales = scales * blocks.steps.astype(np.float32)
    weights: F32 = scales * blocks.weights.astype(np.float32)
    if blocks.offsets is not None and blocks.counts is not None:
        weights = weights + (blocks.offsets * blocks.counts.astype(np.float32))[..., None]
    return weights


def _halves(raw: U8, at: int) -> F32:
    """The binary16 at byte ``at`` of blocks [..., bytes], widened. Shape [...]."""
    return np.ascontiguousarray(raw[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32)


def _unpack_q8_0(raw: U8) -> Blocks:
    return Blocks(raw[..., 2:].view(np.int8).astype(np.int16), _halves(raw, 0))


def _unpack_q4_0(raw: U8) -> Blocks:
    return Blocks(_nibbles(raw[..., 2:]) - np.int16(8), _halves(raw, 0))


def _unpack_q4_1(raw: U8) -> Blocks:
    return _with_offset(raw, _nibbles(raw[..., 4:]))


def _unpack_q5_0(raw: U8) -> Blocks:
    weights = _nibbles(raw[..., 6:]) + _fifth_bits(raw[..., 2:6])
    return Blocks(weights - np.int16(16), _halves(raw, 0))


def _unpack_q5_1(raw: U8) -> Blocks:
    return _with_offset(raw, _nibbles(raw[..., 8:]) + _fifth_bits(raw[..., 4:8]))


def _unpack_q4_k(raw: U8) -> Blocks:
    return _with_six_bit_scales(raw, _low_then_high(raw[..., 16:]))


def _unpack_q5_k(raw: U8) -> Blocks:
    # Bit s of byte i is the fifth bit of weight i of sub-block s.
    fifth = raw[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _with_six_bit_scales(raw, _low_then_high(raw[..., 48:]) + (fifth.astype(np.int16) << 4))


def _unpack_q6_k(raw: U8) -> Blocks:
    # In each half of 128: low four bits as two groups of 32 low halves, then their high halves; upper two
    # bits as four groups of 32 in one run of 32 bytes.
    low = raw[..., :128].reshape(*raw.shape[:-1], 2, 1, 64)
    nibbles = np.concatenate([low & 15, low >> 4], axis=-2).reshape(*raw.shape[:-1], 8, 32)
    high = raw[..., 128:192].reshape(*raw.shape[:-1], 2, 1, 32)
    pairs = (high >> np.array([[0], [2], [4], [6]], dtype=np.uint8) & 3).reshape(*raw.shape[:-1], 8, 32)
    weights = nibbles.astype(np.int16) + (pairs.astype(np.int16) << 4) - np.int16(32)
    steps = np.repeat(raw[..., 192:208].view(np.int8).astype(np.int16), 16, axis=-1).reshape(weights.shape)
    d = np.repeat(_halves(raw, 208)[..., None], 8, axis=-1)
    return Blocks(_joined(weights, 1), _joined(d, 0), _joined(steps, 1))


def _nibbles(packed: U8) -> I16:
    """Weight i in the low and weight i + 16 in the high half of byte i: [..., 16] to [..., 32]."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.int16)


def _fifth_bits(packed: U8) -> I16:
    """Bit i of a little-endian 32-bit word, as 16 of weight i: [..., 4] to [..., 32]."""
    return np.unpackbits(packed, axis=-1, bitorder="little").astype(np.int16) << 4


def _low_then_high(packed: U8) -> I16:
    """Each run of 32 bytes is a sub-block of low halves, then one of high halves: [..., 128] to [..., 8,
    32].
    """
    runs = packed.reshape(*packed.shape[:-1], 4, 1, 32)
    both = np.concatenate([runs & 15, runs >> 4], axis=-2)
    return both.reshape(*packed.shape[:-1], 8, 32).astype(np.int16)


def _with_offset(raw: U8, weights: I16) -> Blocks:
    offsets = _halves(raw, 2)
    return Blocks(weights, _halves(raw, 0), None, offsets, np.ones(offsets.shape, dtype=np.int16))


def _with_six_bit_scales(raw: U8, weights: I16) -> Blocks:
    packed = raw[..., 4:16].astype(np.int16)
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    steps = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=-1)
    counts = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)
    steps = np.broadcast_to(steps[..., None], weights.shape)
    d, dmin = (np.repeat(_halves(raw, at)[..., None], 8, axis=-1) for at in (0, 2))
    return Blocks(
        _joined(weights, 1), _joined(d, 0), _joined(steps, 1), _joined(-dmin, 0), _joined(counts, 0)
    )


def _joined(values: npt.NDArray[Item], inner: int) -> npt.NDArray[Item]:
    """Blocks and their sub-blocks as one axis; ``inner`` axes follow it."""
    axis = values.ndim - 1 - inner
    return values.reshape(*values.shape[: axis - 1], -1, *values.shape[axis + 1 :])


BLOCK_FORMATS: Mapping[str, BlockFormat] = {
    "Q4_0": BlockFormat(unpack=_unpack_q4_0, scales_at=(0,)),
    "Q4_1": BlockFormat(unpack=_unpack_q4_1, scales_at=(0, 2)),
    "Q5_0": BlockFormat(unpack=_unpack_q5_0, scales_at=(0,)),
    "Q5_1": BlockFormat(unpack=_unpack_q5_1, scales_at=(0, 2)),
    "Q8_0": BlockFormat(unpack=_unpack_q8_0, scales_at=(0,)),
    "Q4_K": BlockFormat(unpack=_unpack_q4_k, scales_at=(0, 2)),
    "Q5_K": BlockFormat(unpack=_unpack_q5_k, scales_at=(0, 2)),
    "Q6_K": BlockFormat(unpack=_unpack_q6_k, scales_at=(208,)),
}
"""By the name of the tensor type."""


def widen_bf16(raw: npt.NDArray[np.uint16]) -> F32:
    """bfloat16 patterns as the binary32 whose upper half they are."""
    return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
