"""Tiny random GGUF files, made byte for byte from a name with SHAKE-256 (docs/spec/07-inference.md, "Vectors").

They are not committed; their digests are, in vectors/aos/engine.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import shake_256
from typing import Any

import numpy as np
import numpy.typing as npt

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
WORDS = (
    "th he in er an re on at en nd the ing and ion _t _a _the _i _is _of _and _an _w _wh _what ou _you st es ed le"
    " . , ?"
)

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """A recipe. ``types`` maps the last part of a tensor's name to a type; ``default`` is for the others.

    ``omit`` names keys (without the architecture) that the file does without; ``extra`` adds some.
    """

    name: str
    architecture: str = "llama"
    default: str
    width: int = 32
    ff_width: int = 64
    layers: int = 1
    heads: int = 2
    kv_heads: int = 1
    head_width: int = 16
    n_rot: int = 16
    n_ctx: int = 512
    rope_base: float = 10_000.0
    tied: bool = True
    rope_factors: tuple[float, ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    loud_piece: str = ""
    loud_norm: str = ""
    omit: frozenset[str] = frozenset()
    extra: tuple[tuple[str, int, Any], ...] = ()
    ends: tuple[tuple[str, int], ...] = ()


DERIVED_KEYS = frozenset(
    {"attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size"}
)
MODELS = (
    TinyModel(name="tiny-q4_0", default="Q4_0", width=64, ff_width=96, layers=2, heads=4, kv_heads=2),
    TinyModel(name="tiny-q8_0", default="Q8_0", ff_width=288, layers=2, tied=False),
    TinyModel(name="tiny-f16", default="F16", ff_width=288, kv_heads=2, rope_base=500_000.0),
    TinyModel(name="tiny-f32", default="F32", layers=2, n_ctx=64),
    TinyModel(
        name="tiny-mixed",
        default="Q8_0",
        width=64,
        ff_width=96,
        layers=2,
        heads=4,
        kv_heads=2,
        head_width=24,
        n_rot=24,
        tied=False,
        rope_factors=(1.0, 1.0, 1.0, 1.0, 1.25, 1.5, 2.0, 4.0, 8.0, 8.0, 16.0, 32.0),
        types={
            "attn_q": "F16",
            "attn_k": "Q4_0",
            "attn_output": "F32",
            "ffn_up": "F16",
            "ffn_down": "Q4_0",
            "token_embd": "Q4_0",
        },
    ),
    TinyModel(name="tiny-trap", default="F32", loud_piece="?", n_ctx=128),
    TinyModel(name="tiny-q4_1", default="Q4_1", width=64, ff_width=288, head_width=32, n_rot=32, n_ctx=128),
    TinyModel(name="tiny-q5_0", default="Q5_0", width=64, ff_width=288, head_width=32, n_rot=32, n_ctx=128),
    TinyModel(name="tiny-q5_1", default="Q5_1", width=64, ff_width=288, head_width=32, n_rot=32, n_ctx=128),
    TinyModel(name="tiny-bf16", default="BF16", width=64, ff_width=288, head_width=32, n_rot=32, n_ctx=128),
    TinyModel(
        name="tiny-q4_k", default="Q4_K", width=256, ff_width=512, heads=4, head_width=64, n_rot=64, n_ctx=128
    ),
    TinyModel(
        name="tiny-q5_k", default="Q5_K", width=256, ff_width=512, heads=4, head_width=64, n_rot=64, n_ctx=128
    ),
    TinyModel(
        name="tiny-q6_k", default="Q6_K", width=256, ff_width=512, heads=4, head_width=64, n_rot=64, n_ctx=128
    ),
    # The layout of llama-2-7b-chat.Q4_0.gguf: its keys, its tensor types, ff_width / width as there.
    TinyModel(
        name="tiny-llama-2",
        default="Q4_0",
        width=256,
        ff_width=704,
        layers=2,
        heads=4,
        kv_heads=4,
        head_width=64,
        n_rot=64,
        n_ctx=128,
        tied=False,
        types={"output": "Q6_K"},
        omit=DERIVED_KEYS - {"rope.dimension_count"} | {"rope.freq_base"},
    ),
    # Llama 3.1 and 3.2: factors of the rotary angles, and the embedding's Q6_K as the output matrix.
    TinyModel(
        name="tiny-llama-3",
        default="Q5_K",
        width=256,
        ff_width=768,
        heads=8,
        kv_heads=2,
        head_width=32,
        n_rot=32,
        n_ctx=128,
        rope_base=500_000.0,
        rope_factors=(*(1.0,) * 8, 1.25, 2.5, 5.0, *(8.0,) * 5),
        types={"token_embd": "Q6_K"},
    ),
    # Q4_K_M's mixture of types.
    TinyModel(
        name="tiny-qwen2",
        architecture="qwen2",
        default="Q4_K",
        width=256,
        ff_width=512,
        layers=2,
        heads=8,
        kv_heads=2,
        head_width=32,
        n_rot=32,
        n_ctx=128,
        rope_base=1_000_000.0,
        tied=False,
        types={"attn_v": "Q6_K", "ffn_down": "Q6_K", "output": "Q6_K"},
        omit=DERIVED_KEYS,
    ),
    # Heads that are wider than width / heads and no multiple of 16.
    TinyModel(
        name="tiny-qwen3",
        architecture="qwen3",
        default="Q8_0",
        width=64,
        ff_width=96,
        layers=2,
        heads=4,
        kv_heads=2,
        head_width=40,
        n_rot=40,
        n_ctx=128,
        rope_base=1_000_000.0,
    ),
    # Every type of 32 weights a block, some dimensions that do not turn, a window shorter than the context.
    TinyModel(
        name="tiny-qwen3-partial",
        architecture="qwen3",
        default="Q5_0",
        width=64,
        ff_width=96,
        layers=2,
        heads=4,
        kv_heads=2,
        head_width=24,
        n_rot=16,
        n_ctx=128,
        rope_base=1_000_000.0,
        tied=False,
        types={
            "attn_q": "Q4_1",
            "attn_k": "Q5_1",
            "attn_v": "BF16",
            "attn_output": "F16",
            "ffn_up": "Q8_0",
            "ffn_down": "Q4_0",
            "token_embd": "Q5_1",
        },
        extra=(("attention.sliding_window", 4, 64),),
    ),
    TinyModel(
        name="tiny-qwen3-trap", architecture="qwen3", default="F32", n_ctx=64, loud_norm="attn_k_norm.weight"
    ),
    TinyModel(name="tiny-ends", default="F32", n_ctx=64, ends=(("eot", 250), ("eom", 203))),
)

TYPE_CODES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "BF16": 30,
}


@dataclass(frozen=True)
class Packing:
    """A block format: weights and bytes a block, where its binary16 numbers lie.

    ``scale`` is d's share of a weight's spread; ``offset`` is that of m or dmin in d.
    """

    weights: int
    size: int
    scale: float
    offset: float = 0.0
    scales_at: tuple[int, ...] = (0,)


PACKINGS = {
    "Q4_1": Packing(32, 20, 1 / 4.6, -7.5, (0, 2)),
    "Q5_0": Packing(32, 22, 1 / 9.2),
    "Q5_1": Packing(32, 24, 1 / 9.2, -15.5, (0, 2)),
    "Q4_K": Packing(256, 144, 1 / 258, 7.5, (0, 2)),
    "Q5_K": Packing(256, 176, 1 / 520, 15.5, (0, 2)),
    "Q6_K": Packing(256, 210, 1 / 1370, scales_at=(208,)),
}


def vocabulary() -> list[tuple[str, float, int]]:
    """(piece, score, type): <unk>, <s>, </s>, the bytes, the space, the letters, some words."""
    letters = [SPACE, *"abcdefghijklmnopqrstuvwxyz"]
    words = [word.replace("_", SPACE) for word in WORDS.split()]
    return [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        *((f"<0x{value:02X}>", 0.0, 6) for value in range(256)),
        *((letter, -100.0 - index, 1) for index, letter in enumerate(letters)),
        *((word, -float(index), 1) for index, word in enumerate(words)),
    ]


def noise(seed: str, count: int) -> npt.NDArray[np.float64]:
    """Bell-shaped numbers of variance 1, exact in binary64: sums of four 16-bit integers."""
    words = np.frombuffer(shake_256(seed.encode()).digest(8 * count), dtype="<u2").reshape(count, 4)
    return (words.astype(np.int64).sum(axis=1) - 2 * 65535) / 37837.0


def tensor_bytes(kind: str, seed: str, rows: int, columns: int, spread: float) -> bytes:
    """Raw weights of about the given spread."""
    if kind == "BF16":
        patterns = (noise(seed, rows * columns) * spread).astype("<f4").view("<u4") >> 16
        return patterns.astype("<u2").tobytes()
    if kind in PACKINGS:
        return packed_bytes(PACKINGS[kind], seed, rows * columns, spread)
    if kind in ("F32", "F16"):
        dtype = "<f4" if kind == "F32" else "<f2"
        return (noise(seed, rows * columns) * spread).astype(dtype).tobytes()
    blocks = rows * columns // 32
    raw = np.frombuffer(shake_256(seed.encode()).digest(blocks * 34), dtype=np.uint8).reshape(blocks, 34)
    sizes = (raw[:, 0].astype(np.float64) / 256 + 0.5) * np.where(raw[:, 1] & 1, -1, 1)
    if kind == "Q8_0":
        scales, payload = sizes * spread / 74, raw[:, 2:]
    else:
        scales, payload = sizes * spread / 4.6, raw[:, 2:18]
    return np.concatenate([scales.astype("<f2").view(np.uint8).reshape(blocks, 2), payload], axis=1).tobytes()


def packed_bytes(packing: Packing, seed: str, count: int, spread: float) -> bytes:
    """Random blocks whose binary16 numbers give weights of about the given spread."""
    blocks = count // packing.weights
    raw = np.frombuffer(shake_256(seed.encode()).digest(blocks * (packing.size + 2)), dtype=np.uint8)
    raw = raw.reshape(blocks, packing.size + 2)
    sizes = (raw[:, 0].astype(np.float64) / 256 + 0.5) * np.where(raw[:, 1] & 1, -1, 1)
    scales = (sizes * spread * packing.scale).astype("<f2")
    out = raw[:, 2:].copy()
    numbers = (scales, (scales.astype(np.float64) * packing.offset).astype("<f2"))
    for at, number in zip(packing.scales_at, numbers, strict=False):
        out[:, at : at + 2] = number.view(np.uint8).reshape(blocks, 2)
    return out.tobytes()


def build_model(model: TinyModel) -> bytes:
    """The whole file."""
    tokens = vocabulary()
    tensors: list[tuple[str, str, tuple[int, ...], bytes]] = []

    def matrix(name: str, columns: int, rows: int, gain: float = 1.0) -> None:
        kind = model.types.get(name.split(".")[-2], model.default)
        raw = tensor_bytes(kind, f"{model.name}/{name}", rows, columns, gain * columns**-0.5)
        if name == "token_embd.weight" and model.loud_piece:
            ids = [index for index, (piece, _, _) in enumerate(tokens) if piece == model.loud_piece]
            rows_f32 = np.frombuffer(raw, dtype="<f4").reshape(rows, columns).copy()
            rows_f32[ids] = np.float32(2e19)
            raw = rows_f32.tobytes()
        tensors.append((name, kind, (columns, rows), raw))

    def vector(name: str, length: int) -> None:
        values = (1 + noise(f"{model.name}/{name}", length) / 8).astype("<f4")
        if name.endswith(".bias"):
            values = (noise(f"{model.name}/{name}", length) / 2).astype("<f4")
        if model.loud_norm and name.endswith(model.loud_norm):
            # The product with a value of more than 2.7 in magnitude overflows.
            values[:] = np.float32(2.0**128 / 2.7)
        raw = values.tobytes()
        tensors.append((name, "F32", (length,), raw))

    attention, kv = model.heads * model.head_width, model.kv_heads * model.head_width
    matrix("token_embd.weight", model.width, len(tokens), gain=4.0)
    if model.rope_factors:
        raw = np.array(model.rope_factors, dtype="<f4").tobytes()
        tensors.append(("rope_freqs.weight", "F32", (len(model.rope_factors),), raw))
    for layer in range(model.layers):
        prefix = f"blk.{layer}."
        vector(prefix + "attn_norm.weight", model.width)
        matrix(prefix + "attn_q.weight", model.width, attention, gain=2.0)
        matrix(prefix + "attn_k.weight", model.width, kv, gain=2.0)
        matrix(prefix + "attn_v.weight", model.width, kv)
        if model.architecture == "qwen2":
            vector(prefix + "attn_q.bias", attention)
            vector(prefix + "attn_k.bias", kv)
            vector(prefix + "attn_v.bias", kv)
        if model.architecture == "qwen3":
            vector(prefix + "attn_q_norm.weight", model.head_width)
            vector(prefix + "attn_k_norm.weight", model.head_width)
        matrix(prefix + "attn_output.weight", attention, model.width)
        vector(prefix + "ffn_norm.weight", model.width)
        matrix(prefix + "ffn_gate.weight", model.width, model.ff_width)
        matrix(prefix + "ffn_up.weight", model.width, model.ff_width)
        matrix(prefix + "ffn_down.weight", model.ff_width, model.width)
    vector("output_norm.weight", model.width)
    if not model.tied:
        matrix("output.weight", model.width, len(tokens), gain=4.0)
    sizes: list[tuple[str, int, Any]] = [
        ("context_length", 4, model.n_ctx),
        ("embedding_length", 4, model.width),
        ("block_count", 4, model.layers),
        ("feed_forward_length", 4, model.ff_width),
        ("attention.head_count", 4, model.heads),
        ("attention.head_count_kv", 4, model.kv_heads),
        ("attention.key_length", 4, model.head_width),
        ("attention.value_length", 4, model.head_width),
        ("rope.dimension_count", 4, model.n_rot),
        ("rope.freq_base", 6, model.rope_base),
        ("attention.layer_norm_rms_epsilon", 6, 1e-5),
        ("vocab_size", 4, len(tokens)),
        *model.extra,
    ]
    metadata: list[tuple[str, Any, Any]] = [
        ("general.architecture", 8, model.architecture),
        ("general.name", 8, model.name),
        *((f"{model.architecture}.{name}", kind, v) for name, kind, v in sizes if name not in model.omit),
        ("tokenizer.ggml.model", 8, "llama"),
        ("tokenizer.ggml.tokens", (9, 8), [piece for piece, _, _ in tokens]),
        ("tokenizer.ggml.scores", (9, 6), [score for _, score, _ in tokens]),
        ("tokenizer.ggml.token_type", (9, 5), [kind for _, _, kind in tokens]),
        ("tokenizer.ggml.bos_token_id", 4, 1),
        ("tokenizer.ggml.eos_token_id", 4, 2),
        *((f"tokenizer.ggml.{name}_token_id", 4, token) for name, token in model.ends),
        ("tokenizer.ggml.unknown_token_id", 4, 0),
        ("tokenizer.ggml.add_bos_token", 7, True),
        ("tokenizer.ggml.add_eos_token", 7, False),
    ]
    return gguf_bytes(metadata, tensors)


def gguf_bytes(
    metadata: Iterable[tuple[str, Any, Any]], tensors: list[tuple[str, str, tuple[int, ...], bytes]]
) -> bytes:
    """GGUF version 3, alignment 32. A metadata type is a number, or (9, item type) for an array."""
    entries = list(metadata)
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)))
    for key, kind, value in entries:
        out += packed_string(key)
        if isinstance(kind, tuple):
            out += struct.pack("<IIQ", 9, kind[1], len(value)) + b"".join(_value(kind[1], v) for v in value)
        else:
            out += struct.pack("<I", kind) + _value(kind, value)
    offset = 0
    for name, kind, shape, raw in tensors:
        out += packed_string(name) + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *shape, TYPE_CODES[kind], offset
        )
        offset += -(-len(raw) // 32) * 32
    for _, _, _, raw in tensors:
        out += bytes(-len(out) % 32) + raw
    return bytes(out + bytes(-len(out) % 32))


def packed_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> bytes:
    if kind == 8:
        return packed_string(value)
    return struct.pack({4: "<I", 5: "<i", 6: "<f", 7: "<?"}[kind], value)
