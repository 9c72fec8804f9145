"""Random-weight GGUF files of well-known shapes, for measuring speed: the sizes and tensor types of the real
files, weights tiled from a few random blocks.
"""

import argparse
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

CACHE = Path(tempfile.gettempdir()) / "aos-benchmark-models"
BLOCKS = {"Q4_0": (2, 32, 18), "Q6_K": (14, 256, 210), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144)}
POOL_BLOCKS = 4093
"""Distinct random blocks per type; a prime, so that rows do not repeat in step with them."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a llama graph. ``default`` is the type of every matrix but ``output``'s, Q6_K."""

    name: str
    width: int
    ff_width: int
    layers: int
    heads: int
    kv_heads: int
    n_ctx: int
    default: str = "Q4_0"
    n_vocab: int = 32_000


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="llama-2-7b", width=4096, ff_width=11008, layers=32, heads=32, kv_heads=32, n_ctx=4096),
        Shape(name="tinyllama-1.1b", width=2048, ff_width=5632, layers=22, heads=32, kv_heads=4, n_ctx=4096),
        Shape(name="small", width=512, ff_width=1408, layers=4, heads=8, kv_heads=2, n_ctx=2048),
    )
}


def tensors(shape: Shape) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape (columns first) in file order."""
    kv = shape.width // shape.heads * shape.kv_heads
    yield "token_embd.weight", shape.default, (shape.width, shape.n_vocab)
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        yield prefix + "attn_norm.weight", "F32", (shape.width,)
        yield prefix + "attn_q.weight", shape.default, (shape.width, shape.width)
        yield prefix + "attn_k.weight", shape.default, (shape.width, kv)
        yield prefix + "attn_v.weight", shape.default, (shape.width, kv)
        yield prefix + "attn_output.weight", shape.default, (shape.width, shape.width)
        yield prefix + "ffn_norm.weight", "F32", (shape.width,)
        yield prefix + "ffn_gate.weight", shape.default, (shape.width, shape.ff_width)
        yield prefix + "ffn_up.weight", shape.default, (shape.width, shape.ff_width)
        yield prefix + "ffn_down.weight", shape.default, (shape.ff_width, shape.width)
    yield "output_norm.weight", "F32", (shape.width,)
    yield "output.weight", "Q6_K", (shape.width, shape.n_vocab)


def size_of(kind: str, dimensions: tuple[int, ...]) -> int:
    count = int(np.prod(dimensions, dtype=np.int64))
    return 4 * count if kind == "F32" else count // BLOCKS[kind][1] * BLOCKS[kind][2]


def pool(kind: str, seed: int) -> bytes:
    """Random blocks whose weights have a spread of about 0.02."""
    rng = np.random.default_rng(seed)
    _, _, size = BLOCKS[kind]
    raw = rng.integers(0, 256, (POOL_BLOCKS, size), dtype=np.uint8)
    at, spread = {"Q4_0": (0, 4.6), "Q8_0": (0, 74.0), "Q4_K": (0, 290.0), "Q6_K": (208, 1360.0)}[kind]
    scales = (0.02 / spread * rng.uniform(0.5, 1.5, POOL_BLOCKS)).astype("<f2")
    raw[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    if kind == "Q4_K":
        raw[:, 2:4] = (scales * np.float16(7)).astype("<f2").view(np.uint8).reshape(-1, 2)
    return raw.tobytes()


def metadata(shape: Shape) -> list[tuple[str, Any, Any]]:
    specials = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    byte_tokens = [(f"<0x{value:02X}>", 6) for value in range(256)]
    words = [(chr(0x2581), 1), *((chr(0x61 + i), 1) for i in range(26))]
    pieces = [*specials, *byte_tokens, *words]
    pieces += [(f"w{index:05d}", 1) for index in range(len(pieces), shape.n_vocab)]
    head = shape.width // shape.heads
    return [
        ("general.architecture", 8, "llama"),
        ("general.name", 8, f"random {shape.name}"),
        ("llama.context_length", 4, shape.n_ctx),
        ("llama.embedding_length", 4, shape.width),
        ("llama.block_count", 4, shape.layers),
        ("llama.feed_forward_length", 4, shape.ff_width),
        ("llama.attention.head_count", 4, shape.heads),
        ("llama.attention.head_count_kv", 4, shape.kv_heads),
        ("llama.rope.dimension_count", 4, head),
        ("llama.attention.layer_norm_rms_epsilon", 6, 1e-5),
        ("tokenizer.ggml.model", 8, "llama"),
        ("tokenizer.ggml.tokens", (9, 8), [piece for piece, _ in pieces]),
        ("tokenizer.ggml.scores", (9, 6), [-float(index) for index in range(len(pieces))]),
        ("tokenizer.ggml.token_type", (9, 5), [kind for _, kind in pieces]),
        ("tokenizer.ggml.bos_token_id", 4, 1),
        ("tokenizer.ggml.eos_token_id", 4, 2),
        ("tokenizer.ggml.add_bos_token", 7, True),
    ]


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> bytes:
    return _string(value) if kind == 8 else struct.pack({4: "<I", 5: "<i", 6: "<f", 7: "<?"}[kind], value)


def _header(shape: Shape) -> bytes:
    entries, listed = metadata(shape), list(tensors(shape))
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(entries)))
    for key, kind, value in entries:
        out += _string(key)
        if isinstance(kind, tuple):
            out += struct.pack("<IIQ", 9, kind[1], len(value)) + b"".join(_value(kind[1], v) for v in value)
        else:
            out += struct.pack("<I", kind) + _value(kind, value)
    offset = 0
    for name, kind, dimensions in listed:
        code = 0 if kind == "F32" else BLOCKS[kind][0]
        count = len(dimensions)
        out += _string(name) + struct.pack(f"<I{count}QIQ", count, *dimensions, code, offset)
        offset += -(-size_of(kind, dimensions) // 32) * 32
    return bytes(out + bytes(-len(out) % 32))


def _write_tiled(stream: BinaryIO, blocks: bytes, start: int, size: int) -> None:
    """``size`` bytes of the endless repetition of ``blocks`` from ``start`` on."""
    start %= len(blocks)
    while size:
        part = blocks[start : start + size]
        stream.write(part)
        size -= len(part)
        start = 0


def make(shape: Shape, directory: Path = CACHE) -> Path:
    """The file of a shape; written once."""
    path = directory / f"{shape.name}.{shape.default}.gguf"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    pools = {kind: pool(kind, seed) for seed, kind in enumerate(sorted(BLOCKS))}
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        stream.write(_header(shape))
        for index, (_, kind, dimensions) in enumerate(tensors(shape)):
            size = size_of(kind, dimensions)
            if kind == "F32":
                noise = np.random.default_rng(index).normal(1, 0.1, dimensions[0])
                stream.write(noise.astype("<f4").tobytes())
            else:
                _write_tiled(stream, pools[kind], index * 977 * BLOCKS[kind][2], size)
            stream.write(bytes(-size % 32))
    part.rename(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES), nargs="+")
    parser.add_argument("--directory", type=Path, default=CACHE)
    options = parser.parse_args()
    for name in options.shape:
        print(make(SHAPES[name], options.directory))


if __name__ == "__main__":
    main()
