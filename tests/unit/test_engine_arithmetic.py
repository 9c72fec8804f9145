"""The arithmetic, term by term: every vectorised operation against a scalar reading of spec 07's rules."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import gguf
import numpy as np
import pytest

from aos.core.arithmetic.floats import F32, ZERO, NumericTrap, check_finite, lane_sum, millionths, nearest_f32
from aos.core.arithmetic.formats import BLOCK_FORMATS, U8, dequantise, widen_bf16
from aos.core.arithmetic.matmul import BlockMatrix, DenseMatrix, quantise
from aos.core.arithmetic.ops import attention, exp, rms_norm, rope
from aos.core.arithmetic.rope_table import _nearest_of_pair, rope_table
from aos.core.arithmetic.sampler import Rules, choose, philox4x32_10, uniform_bits
from aos.errors import InvalidMessage

f = np.float32
S = np.float32


def random_f32(rng: random.Random, *shape: int, spread: float = 1.0) -> F32:
    count = math.prod(shape)
    values = [rng.gauss(0, spread) * 2.0 ** rng.randint(-8, 2) for _ in range(count)]
    return np.array(values, dtype=np.float32).reshape(shape)


def bits(x: object) -> list[int]:
    return [int(v) for v in np.asarray(x, dtype=np.float32).reshape(-1).view(np.uint32)]


# --- the rules, one scalar operation at a time


def scalar_quantise(x: Sequence[S]) -> tuple[S, list[int]]:
    largest = max(abs(v) for v in x)
    if not largest >= f(2.0**-100):
        return f(0), [0] * 32
    inverse = f(127) / largest
    return largest / f(127), [int(np.rint(v * inverse)) for v in x]


def scalar_chunked(terms: Sequence[S], chunk: int) -> S:
    total = f(0)
    for start in range(0, len(terms), chunk):
        part = f(0)
        for term in terms[start : start + chunk]:
            part = part + term
        total = total + part
    return total


def scalar_block_terms(kind: str, block: bytes, x: Sequence[S]) -> list[S]:
    """Rule 2 for one packed block against as many activations."""
    terms = []
    for index, part in enumerate(scalar_unpack(kind, block)):
        dx, q = scalar_quantise(x[32 * index : 32 * index + 32])
        isum = 0
        for group, step in enumerate(part.steps):
            width = 32 // len(part.steps)
            at = range(width * group, width * (group + 1))
            isum += step * sum(part.weights[i] * q[i] for i in at)
        assert abs(isum) < 2**24
        t = (part.d * dx) * f(isum)
        if part.kind == "+m":
            t = t + (part.m * dx) * f(sum(q))
        elif part.kind == "-dmin":
            t = t - (part.m * dx) * f(part.n * sum(q))
        terms.append(t)
    return terms


def scalar_weights(kind: str, block: bytes) -> list[S]:
    """Rule 8 for one packed block."""
    out = []
    for part in scalar_unpack(kind, block):
        for i, w in enumerate(part.weights):
            d = part.d
            if kind.endswith("K"):
                d = d * f(part.steps[i * len(part.steps) // 32])
            value = d * f(w)
            if part.kind == "+m":
                value = value + part.m
            elif part.kind == "-dmin":
                value = value - part.m * f(part.n)
            out.append(value)
    return out


@dataclass
class Part:
    """32 weights of a block as the specification describes them."""

    d: S
    weights: list[int]
    steps: list[int]
    kind: str = ""
    m: S = ZERO
    n: int = 1


def scalar_unpack(kind: str, block: bytes) -> list[Part]:
    def half(at: int) -> S:
        return f(np.frombuffer(block[at : at + 2], dtype="<f2")[0])

    if kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        at = 4 if kind.endswith("1") else 2
        fifth = int.from_bytes(block[at : at + 4], "little") if kind[1] == "5" else 0
        packed = block[-16:]
        w = [packed[i] & 15 if i < 16 else packed[i - 16] >> 4 for i in range(32)]
        w = [v + 16 * (fifth >> i & 1) for i, v in enumerate(w)]
        if kind.endswith("1"):
            return [Part(half(0), w, [1], "+m", half(2))]
        return [Part(half(0), [v - (16 if kind == "Q5_0" else 8) for v in w], [1])]
    if kind == "Q8_0":
        return [Part(half(0), [v - 256 if v > 127 else v for v in block[2:]], [1])]
    parts = []
    if kind == "Q6_K":
        for s in range(8):
            low, high = block[64 * (s // 4) :], block[128 + 32 * (s // 4) :]
            w = []
            for i in range(32):
                byte = low[32 * (s % 2) + i]
                nibble = byte & 15 if s % 4 < 2 else byte >> 4
                w.append(nibble + 16 * (high[i] >> 2 * (s % 4) & 3) - 32)
            steps = [v - 256 if v > 127 else v for v in block[192 + 2 * s : 194 + 2 * s]]
            parts.append(Part(half(208), w, steps))
        return parts
    packed = block[4:16]
    for s in range(8):
        if s < 4:
            step, n = packed[s] & 63, packed[s + 4] & 63
        else:
            step = (packed[s + 4] & 15) + 16 * (packed[s - 4] >> 6)
            n = (packed[s + 4] >> 4) + 16 * (packed[s] >> 6)
        run = block[-128:][32 * (s // 2) :]
        w = [run[i] & 15 if s % 2 == 0 else run[i] >> 4 for i in range(32)]
        if kind == "Q5_K":
            w = [v + 16 * (block[16 + i] >> s & 1) for i, v in enumerate(w)]
        parts.append(Part(half(0), w, [step], "-dmin", half(2), n))
    return parts


def scalar_lanes(terms: Sequence[S]) -> S:
    lanes = [f(0)] * 16
    for index, term in enumerate(terms):
        lanes[index % 16] = lanes[index % 16] + term
    for half in (8, 4, 2, 1):
        for index in range(half):
            lanes[index] = lanes[index] + lanes[index + half]
    return lanes[0]


def scalar_exp(x: S) -> S:
    c = [
        f(float.fromhex(h))
        for h in (
            "0x1.a0d2cep-13",
            "0x1.6e879cp-10",
            "0x1.11121p-7",
            "0x1.555382p-5",
            "0x1.555554p-3",
            "0x1p-1",
        )
    ]
    x = min(max(x, f(-87)), f(88))
    n = (x * f(float.fromhex("0x1.715476p+0")) + f(12582912)) - f(12582912)
    y = (x - n * f(0.693359375)) - n * f(float.fromhex("-0x1.bd0106p-13"))
    p = ((((c[0] * y + c[1]) * y + c[2]) * y + c[3]) * y + c[4]) * y + c[5]
    p = p * (y * y) + y
    return f(math.ldexp(float(p + f(1)), int(n)))


def scalar_attention(q: F32, keys: F32, values: F32, position: int) -> F32:
    heads, width = q.shape
    shared = heads // keys.shape[1]
    out = np.zeros((heads, width), dtype=np.float32)
    scale = f(1) / np.sqrt(f(width))
    for head in range(heads):
        scores = []
        for j in range(position + 1):
            s = f(0)
            for i in range(width):
                s = s + (q[head, i] * scale) * keys[i, head // shared, j]
            scores.append(s)
        largest = max(scores)
        weights = [scalar_exp(s - largest) for s in scores]
        inverse = f(1) / scalar_lanes(weights)
        for i in range(width):
            terms = [w * values[j, head // shared, i] for j, w in enumerate(weights)]
            out[head, i] = scalar_chunked(terms, 256) * inverse
    return out


# --- the comparisons


def random_blocks(kind: str, rng: random.Random, rows: int, columns: int) -> U8:
    """Packed blocks [rows, n, bytes] of random bits, with moderate, subnormal, zero and negative scales."""
    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = np.frombuffer(rng.randbytes(rows * columns // weights * size), dtype=np.uint8).copy()
    raw = raw.reshape(rows, columns // weights, size)
    for at in BLOCK_FORMATS[kind].scales_at:
        raw[..., at + 1] = raw[..., at + 1] & 0x83 | 0x20
        # A subnormal binary16, and zero.
        raw[0, 0, at : at + 2] = (3, 0x80)
        raw[1, 0, at : at + 2] = (0, 0)
    return raw


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        (kind, columns)
        for kind in BLOCK_FORMATS
        for columns in ((256, 512, 768) if kind.endswith("K") else (32, 256, 288, 544))
    ],
)
def test_block_products_follow_rule_2(kind: str, columns: int) -> None:
    rng = random.Random(columns)
    rows = 5
    raw = random_blocks(kind, rng, rows, columns)
    matrices = [
        BlockMatrix(raw, BLOCK_FORMATS[kind].unpack, keep=keep, rows_per_tile=tile)
        for keep, tile in ((False, 2), (True, 4096))
    ]
    x = random_f32(rng, 3, columns)
    x[1, :32] = f(2.0**-120)
    x[2] = f(-0.0)
    for matrix in matrices:
        got = matrix.product(*quantise(x))
        for t in range(3):
            for r in range(rows):
                size = columns // raw.shape[1]
                terms = [
                    term
                    for b, block in enumerate(raw[r])
                    for term in scalar_block_terms(kind, block.tobytes(), x[t, size * b : size * (b + 1)])
                ]
                assert bits(got[t, r]) == bits(scalar_chunked(terms, 8))


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_dequantised_weights_follow_rule_8_and_ggml(kind: str) -> None:
    raw = random_blocks(kind, random.Random(kind), 6, 512)
    got = dequantise(BLOCK_FORMATS[kind].unpack(raw)).reshape(6, 512)
    expected = [[w for block in row for w in scalar_weights(kind, block.tobytes())] for row in raw]
    assert bits(got) == bits(expected)
    theirs = gguf.quants.dequantize(raw.reshape(6, -1), gguf.GGMLQuantizationType[kind])
    assert bits(got) == bits(theirs)


def test_bf16_weights_are_the_upper_halves_of_binary32() -> None:
    patterns = np.array([0x3F80, 0xC000, 0x0001, 0x8000, 0x7F7F], dtype=np.uint16)
    assert widen_bf16(patterns).tolist() == [1.0, -2.0, 2.0**-133, 0.0, float.fromhex("0x1.fep127")]
    theirs = gguf.quants.dequantize(patterns.view(np.uint8), gguf.GGMLQuantizationType.BF16)
    assert bits(widen_bf16(patterns)) == bits(theirs)


@pytest.mark.parametrize("columns", [32, 256, 320, 544])
def test_dense_products_follow_rule_2(columns: int) -> None:
    rng = random.Random(columns)
    weights, x = random_f32(rng, 4, columns), random_f32(rng, 2, columns)
    x[1] = f(-0.0)
    got = DenseMatrix(weights).product(x)
    for t in range(2):
        for r in range(4):
            assert bits(got[t, r]) == bits(
                scalar_chunked([w * v for w, v in zip(weights[r], x[t], strict=True)], 256)
            )


@pytest.mark.parametrize("sign", [1, -1])
def test_isum_is_exact_at_its_largest(sign: int) -> None:
    x = np.full((1, 256), 127 * sign, dtype=np.float32)
    q8_0 = np.full((1, 1, 34), 0x80, dtype=np.uint8)
    q8_0[..., :2] = (0x00, 0x3C)
    matrix = BlockMatrix(q8_0, BLOCK_FORMATS["Q8_0"].unpack, keep=True)
    assert matrix.product(*quantise(x[:, :32]))[0, 0] == f(-128 * 127 * 32 * sign)
    # Q6_K: every weight -32, every scale -128, d 2^-8 so that the sum of the row stays exact as well.
    q6_k = np.zeros((1, 1, 210), dtype=np.uint8)
    q6_k[..., 192:208] = 0x80
    q6_k[..., 208:] = (0x00, 0x1C)
    matrix = BlockMatrix(q6_k, BLOCK_FORMATS["Q6_K"].unpack, keep=True)
    assert matrix.product(*quantise(x))[0, 0] == f(128 * 32 * 127 * 256 * sign / 256)
    # Q5_K: every weight 31, scale 63, no offset.
    q5_k = np.full((1, 1, 176), 0xFF, dtype=np.uint8)
    q5_k[..., :4] = (0x00, 0x3C, 0, 0)
    matrix = BlockMatrix(q5_k, BLOCK_FORMATS["Q5_K"].unpack, keep=True)
    assert matrix.product(*quantise(x))[0, 0] == f(31 * 63 * 127 * 32 * sign) * f(8)


def test_sums_in_lanes_follow_rule_3() -> None:
    rng = random.Random(3)
    for n in (16, 24, 40, 64, 256, 7):
        x = random_f32(rng, 2, n)
        weight = random_f32(rng, n)
        eps = f(1e-5)
        assert bits(lane_sum(x)) == bits([scalar_lanes(row) for row in x])
        got = rms_norm(x, weight, eps, 0)
        for t in range(2):
            r = f(1) / np.sqrt(scalar_lanes([v * v for v in x[t]]) / f(n) + eps)
            assert bits(got[t]) == bits([(v * r) * w for v, w in zip(x[t], weight, strict=True)])


@pytest.mark.parametrize("halves", [False, True])
def test_rotation_follows_rule_4_and_leaves_the_other_dimensions(halves: bool) -> None:
    rng = random.Random(4)
    x = random_f32(rng, 2, 3, 16)
    cos, sin = rope_table(10_000.0, 12, 50)
    got = rope(x, cos[7:9], sin[7:9], halves=halves)
    for t in range(2):
        for head in range(3):
            for i in range(6):
                first, second = (i, i + 6) if halves else (2 * i, 2 * i + 1)
                a, b, c, s = x[t, head, first], x[t, head, second], cos[7 + t, i], sin[7 + t, i]
                assert bits(got[t, head, [first, second]]) == bits([a * c - b * s, a * s + b * c])
    assert bits(got[..., 12:]) == bits(x[..., 12:])


def test_a_norm_per_head_treats_every_head_as_a_row() -> None:
    rng = random.Random(12)
    x, weight = random_f32(rng, 3, 4, 24), random_f32(rng, 24)
    got = rms_norm(x, weight, f(1e-6), 0)
    for t in range(3):
        for head in range(4):
            r = f(1) / np.sqrt(scalar_lanes([v * v for v in x[t, head]]) / f(24) + f(1e-6))
            assert bits(got[t, head]) == bits([(v * r) * w for v, w in zip(x[t, head], weight, strict=True)])
    x[2, 1, 5] = f(1e30)
    with np.errstate(over="ignore"), pytest.raises(NumericTrap) as caught:
        rms_norm(x, weight, f(1e-6), 23)
    assert (caught.value.op, caught.value.row) == (23, 2)


def test_attention_follows_rule_6_across_chunks() -> None:
    rng = random.Random(6)
    count, first = 262, 258
    keys = random_f32(rng, 8, 2, count).astype(np.float16).astype(np.float32)
    values = random_f32(rng, count, 2, 8).astype(np.float16).astype(np.float32)
    q = random_f32(rng, count - first, 4, 8, spread=3.0)
    got = attention(q, keys, values, first, (1, 2, 3))
    for t in range(count - first):
        assert bits(got[t]) == bits(scalar_attention(q[t], keys, values, first + t))
        alone = attention(q[t : t + 1], keys, values, first + t, (1, 2, 3))
        assert bits(alone) == bits(got[t])


def test_exp_follows_rule_7_and_is_accurate() -> None:
    rng = random.Random(7)
    x = np.array([rng.uniform(-90, 90) for _ in range(3000)], dtype=np.float32)
    got = exp(x)
    assert bits(got) == bits([scalar_exp(v) for v in x])
    inside = (x > f(-87)) & (x < f(88))
    exact = np.array([math.exp(float(v)) for v in x[inside]])
    assert np.max(np.abs(got[inside] / exact - 1)) < 8.1e-8
    assert exp(np.array([0.0, -0.0], dtype=np.float32)).tolist() == [1.0, 1.0]
    assert bits(exp(np.array([-np.inf, -200], dtype=np.float32))) == bits([scalar_exp(f(-87))] * 2)


def test_the_rotary_table_is_the_correct_rounding() -> None:
    # An independent computation: 60 digits by Decimal series would share no code, math's own binary64 shares no method.
    for base, n_rot in ((10_000.0, 16), (500_000.0, 24)):
        cos, sin = rope_table(base, n_rot, 600)
        for p in (0, 1, 2, 77, 599):
            for i in range(n_rot // 2):
                angle = p * base ** (-2 * i / n_rot)
                for got, exact in ((cos[p, i], math.cos(angle)), (sin[p, i], math.sin(angle))):
                    # binary64 is off by far less than half a unit of binary32 in its last place.
                    assert abs(float(got) - exact) <= abs(exact) * 2.0**-24 + 1e-12
    assert cos[0].tolist() == [1.0] * 12
    assert not sin[0].any()


@pytest.mark.parametrize(
    ("base", "n_rot", "factors"),
    [
        (10_000.0, 8, None),
        (500_000.0, 10, [1.0, 1.5, 8.0, 32.0, 2.0**20]),
        (2.0**40, 6, None),
        (1.5, 6, None),
    ],
)
def test_pairs_of_binary64_give_the_rotary_table_that_integers_give(
    base: float, n_rot: int, factors: list[float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = 2500
    by_pairs = rope_table(base, n_rot, positions, factors)
    shorter = rope_table(base, n_rot, 7, factors)
    monkeypatch.setattr("aos.core.arithmetic.rope_table._PAIR_ERROR", 1.0)
    by_integers = rope_table(base, n_rot, positions, factors)
    for a, b, c in zip(by_pairs, by_integers, shorter, strict=True):
        assert bits(a) == bits(b)
        assert bits(a[:7]) == bits(c)


def test_pairs_of_binary64_leave_what_they_cannot_decide() -> None:
    half_way = 1.0 + 2.0**-24
    high = np.array([half_way, half_way, half_way, 1.25, 0.0])
    low = np.array([2.0**-110, 2.0**-60, -(2.0**-60), 0.0, 0.0])
    nearest, sure = _nearest_of_pair(high, low)
    assert sure.tolist() == [False, False, False, True, False]
    assert nearest[3] == 1.25


@pytest.mark.parametrize(
    ("base", "n_rot", "positions", "factors", "code"),
    [
        (1.0, 8, 4, None, "rope.base"),
        (float("inf"), 8, 4, None, "rope.base"),
        (float("nan"), 8, 4, None, "rope.base"),
        (1e4, 7, 4, None, "rope.dimensions"),
        (1e4, 0, 4, None, "rope.dimensions"),
        (1e4, 8, 0, None, "rope.positions"),
        (1e4, 8, 2**20 + 1, None, "rope.positions"),
        (1e4, 8, 4, [1.0] * 3, "rope.factor"),
        (1e4, 8, 4, [1.0, 1.0, 1.0, 0.5], "rope.factor"),
        (1e4, 8, 4, [1.0, 1.0, 1.0, float("nan")], "rope.factor"),
    ],
)
def test_rotary_parameters_outside_the_limits_are_refused(
    base: float, n_rot: int, positions: int, factors: list[float] | None, code: str
) -> None:
    with pytest.raises(InvalidMessage) as caught:
        rope_table(base, n_rot, positions, factors)
    assert caught.value.code == code


def test_quotients_round_once() -> None:
    rng = random.Random(9)
    for _ in range(2000):
        n = rng.randrange(1, 10**7)
        got = Fraction(float(millionths(n)))
        exact = Fraction(n, 10**6)
        for neighbour in (np.nextafter(millionths(n), f(0)), np.nextafter(millionths(n), f(1e9))):
            assert abs(got - exact) <= abs(Fraction(float(neighbour)) - exact)
    # Halfway cases go to the even mantissa; binary64 in between would not change these.
    assert float(nearest_f32(2**24 + 1, 1)) == 2.0**24
    assert float(nearest_f32(2**24 + 3, 1)) == 2.0**24 + 4
    assert float(nearest_f32((2**24 + 1) * 2**30 + 1, 2**30)) == 2.0**24 + 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_trap_names_the_first_row_that_is_not_finite(bad: float) -> None:
    x = np.zeros((4, 3), dtype=np.float32)
    check_finite(x, 5)
    x[2, 1] = x[3, 0] = bad
    with pytest.raises(NumericTrap) as caught:
        check_finite(x, 5)
    assert (caught.value.op, caught.value.row) == (5, 2)


def test_an_infinite_sum_traps_although_the_norm_would_hide_it() -> None:
    x = np.ones((1, 16), dtype=np.float32)
    x[0, 3] = f(1e30)
    with np.errstate(over="ignore"), pytest.raises(NumericTrap):
        rms_norm(x, np.ones(16, dtype=np.float32), f(1e-5), 2)


# --- the sampler


def test_philox_gives_the_published_words() -> None:
    # Known answers of Random123, the authors' library: philox4x32-10.
    assert philox4x32_10(0, (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox4x32_10(2**64 - 1, (ones,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox4x32_10(0x299F31D0_A4093822, pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def scalar_mass(weights: list[S], members: set[int]) -> tuple[S, list[S]]:
    total, running = f(0), []
    for start in range(0, len(weights), 256):
        part = f(0)
        for index in range(start, min(start + 256, len(weights))):
            if index in members:
                part = part + weights[index]
            running.append(total + part)
        total = total + part
    return total, running


def scalar_choose(logits: F32, seen: set[int], step: int, rules: Rules) -> int:
    penalty, temperature = f(rules.repeat_penalty / 1e6), f(rules.temperature / 1e6)
    adjusted = [v if i not in seen else (v / penalty if v > 0 else v * penalty) for i, v in enumerate(logits)]
    order = sorted(range(len(adjusted)), key=lambda i: (-adjusted[i], i))
    if not rules.temperature:
        return order[0]
    adjusted = [v / temperature for v in adjusted]
    order = sorted(range(len(adjusted)), key=lambda i: (-adjusted[i], i))
    weights = [scalar_exp(v - max(adjusted)) for v in adjusted]
    kept = order[: rules.top_k] if rules.top_k else order
    if rules.min_p:
        cut = next((n for n, i in enumerate(kept) if weights[i] < f(rules.min_p / 1e6)), len(kept))
        kept = kept[:cut]
    if rules.top_p < 10**6:
        target = f(rules.top_p / 1e6) * scalar_mass(weights, set(kept))[0]
        kept = next(
            kept[:n] for n in range(1, len(kept) + 1) if scalar_mass(weights, set(kept[:n]))[0] >= target
        )
    mass, running = scalar_mass(weights, set(kept))
    threshold = (f(uniform_bits(rules.seed, step)) * f(2.0**-24)) * mass
    return next((i for i in sorted(kept) if running[i] > threshold), max(kept))


def test_choices_follow_rule_9() -> None:
    rng = random.Random(11)
    for trial in range(60):
        size = rng.choice([5, 255, 256, 300])
        logits = np.round(random_f32(rng, size, spread=4.0), rng.choice([0, 1, 6])).astype(np.float32)
        rules = Rules(
            temperature=rng.choice([0, 10_000, 700_000, 1_000_000, 10_000_000]),
            top_k=rng.choice([0, 1, 3, 50]),
            top_p=rng.choice([0, 100_000, 500_000, 950_000, 1_000_000]),
            min_p=rng.choice([0, 50_000, 1_000_000]),
            repeat_penalty=rng.choice([1_000_000, 1_300_000, 500_000]),
            seed=rng.getrandbits(64),
        )
        seen = [rng.randrange(size) for _ in range(4)]
        assert choose(logits, seen, trial, rules, 0).token == scalar_choose(
            logits, set(seen), trial, rules
        ), rules


def test_equal_logits_take_the_lowest_id() -> None:
    logits = np.array([1, 3, -0.0, 3, 0.0], dtype=np.float32)
    rules = Rules(temperature=0, top_k=0, top_p=10**6, min_p=0, repeat_penalty=10**6, seed=0)
    assert choose(logits, [], 0, rules, 0).token == 1
    one = Rules(temperature=10**6, top_k=1, top_p=10**6, min_p=0, repeat_penalty=10**6, seed=0)
    assert {choose(logits, [], step, one, 0).token for step in range(50)} == {1}


def test_a_logit_that_overflows_in_the_sampler_traps() -> None:
    logits = np.array([3e38, 0], dtype=np.float32)
    rules = Rules(temperature=10_000, top_k=0, top_p=10**6, min_p=0, repeat_penalty=10**6, seed=0)
    with np.errstate(over="ignore"), pytest.raises(NumericTrap) as caught:
        choose(logits, [], 0, rules, 21)
    assert caught.value.op == 21


def test_choices_are_distributed_as_the_softmax() -> None:
    logits = np.array([0.0, 1.0, 2.0, -1.0, 0.5], dtype=np.float32)
    rules = {"temperature": 10**6, "top_k": 0, "top_p": 10**6, "min_p": 0, "repeat_penalty": 10**6}
    count = 4000
    counts = np.zeros(5)
    for seed in range(count):
        counts[choose(logits, [], 0, Rules(**rules, seed=seed * 2654435761), 0).token] += 1
    expected = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum() * count
    # Chi-square with 4 degrees of freedom: 23.5 is exceeded once in 10,000.
    assert float(((counts - expected) ** 2 / expected).sum()) < 23.5
