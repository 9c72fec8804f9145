"""Rule 9: the canonical sampler (docs/spec/07-inference.md, "Sampling"). Philox4x32-10 and the choice of
one token.

Nothing sorted is committed: a kept set is a prefix of the order (adjusted logit descending, id ascending),
named by its last member; masses are sums in id order.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aos.core.arithmetic.floats import CHUNK, F32, I64, ZERO, Mask, NumericTrap, millionths, running_sum
from aos.core.arithmetic.ops import argmax, exp

MILLION = 1_000_000
U_SCALE = np.float32(2.0**-24)
_WORD = 0xFFFFFFFF


def philox4x32_10(key: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). ``key`` is 64 bits, its low word
    first.
    """
    k0, k1 = key & _WORD, key >> 32
    c0, c1, c2, c3 = counter
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & _WORD, (left >> 32) ^ c3 ^ k1, left & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def uniform_bits(seed: int, step: int) -> int:
    """24 uniform bits of output index ``step`` under the sampling seed: the top bits of Philox's first
    word.
    """
    return philox4x32_10(seed, (step, 0, 0, 0))[0] >> 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What shapes the choice, in millionths where decimal. Ranges are the engine's to check."""

    temperature: int
    top_k: int
    top_p: int
    min_p: int
    repeat_penalty: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The token and the sampler record that the tail commits (``record`` is empty at temperature 0)."""

    token: int
    record: bytes


def choose(logits: F32, seen: Sequence[int], step: int, rules: Rules, op: int) -> Choice:
    """Choose the token of output index ``step`` from finite ``logits`` [V], ``seen`` being every token of
    the context.

    Raises NumericTrap(op, row 0) where an adjusted logit is not finite.
    """
    adjusted = _penalised(logits, seen, rules.repeat_penalty)
    if rules.temperature == 0:
        _check(adjusted, op)
        return Choice(token=argmax(adjusted), record=b"")
    adjusted = adjusted / millionths(rules.temperature)
    _check(adjusted, op)
    largest = adjusted[argmax(adjusted)]  # of -0 and +0 the one with the lowest id
    weights = exp(adjusted - largest)
    # Stable, so that equal values stay in id order; -0 and +0 are equal.
    order = np.argsort(-adjusted, kind="stable")
    kept = order.size
    if rules.top_k:
        kept = min(kept, rules.top_k)
    if rules.min_p:
        below = weights[order[:kept]] < millionths(rules.min_p)
        if below.any():
            kept = int(np.argmax(below))
    before_cut, before = int(order[kept - 1]), _mass(weights, order[:kept])
    if rules.top_p < MILLION:
        kept = _shortest(weights, order[:kept], millionths(rules.top_p) * before[-1])
    members = order[:kept]
    mass = _mass(weights, members)
    bits = uniform_bits(rules.seed, step)
    token = _pick(weights, members, mass, (np.float32(bits) * U_SCALE) * mass[-1])
    record = struct.pack("<IfII", bits, largest, before_cut, int(members[-1]))
    record += _chunk_masses(weights, order, before_cut) + _chunk_masses(weights, order, int(members[-1]))
    return Choice(token=token, record=record)


def _check(adjusted: F32, op: int) -> None:
    if not np.isfinite(adjusted).all():
        raise NumericTrap(op, 0)


def _penalised(logits: F32, seen: Sequence[int], penalty: int) -> F32:
    if penalty == MILLION:
        return logits
    factor = millionths(penalty)
    ids = np.unique(np.asarray(seen, dtype=np.int64))
    out = logits.copy()
    values = logits[ids]
    out[ids] = np.where(values > ZERO, values / factor, values * factor)
    return out


def _member_chunks(weights: F32, members: I64) -> F32:
    """[chunks, 256] in id order: a member's weight, +0 for the others (adding +0 is skipping: no sum can be
    -0).
    """
    padded = np.zeros(-(-weights.size // CHUNK) * CHUNK, dtype=np.float32)
    padded[members] = weights[members]
    return padded.reshape(-1, CHUNK)


def _running(weights: F32, members: I64) -> tuple[F32, F32]:
    """(running sums inside each chunk [chunks, 256], sums of whole chunks in order [chunks])."""
    inside = running_sum(_member_chunks(weights, members))
    return inside, running_sum(inside[:, -1])


def _mass(weights: F32, members: I64) -> F32:
    """Sums over the chunks in order; the last is the mass."""
    return _running(weights, members)[1]


def _chunk_masses(weights: F32, order: I64, cut: int) -> bytes:
    kept = int(np.flatnonzero(order == cut)[0]) + 1
    return _running(weights, order[:kept])[0][:, -1].astype("<f4").tobytes()


def _shortest(weights: F32, order: I64, target: np.float32) -> int:
    """Length of the shortest prefix of ``order`` whose mass is at least ``target``.

    Rounded addition is monotone and a member only ever adds to a partial sum, so masses never fall as the
    prefix grows.
    """
    low, high = 1, order.size
    while low < high:
        middle = (low + high) // 2
        if _mass(weights, order[:middle])[-1] >= target:
            high = middle
        else:
            low = middle + 1
    return low


def _pick(weights: F32, members: I64, mass: F32, threshold: np.float32) -> int:
    inside, totals = _running(weights, members)
    before = np.concatenate([np.zeros(1, dtype=np.float32), totals[:-1]])
    kept: Mask = np.zeros(inside.size, dtype=np.bool_)
    kept[members] = True
    exceeding = np.flatnonzero(((before[:, None] + inside) > threshold).reshape(-1) & kept)
    return int(exceeding[0]) if exceeding.size else int(members.max())
