"""What the tokenizer tests share: tiny vocabularies, the published ones, and texts that tokenizers get wrong."""

import random
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from engine_models import tiny_models

from aos.engine.gguf import Value
from aos.engine.tokenizer.bpe import BYTE_OF
from aos.engine.tokenizer.spm import SPACE
from aos.engine.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN

ALPHABET = {value: stand_in for stand_in, value in BYTE_OF.items()}
SPECIALS = (("<|begin|>", CONTROL), ("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL))


def stand_in(text: str) -> str:
    """``text`` in GPT-2's alphabet."""
    return "".join(ALPHABET[value] for value in text.encode())


def spm_metadata(*pieces: tuple[str, float, int]) -> dict[str, Value]:
    """<unk>, <s>, </s>, the 256 bytes, U+2581, then ``pieces`` (text, score, type)."""
    entries = [
        ("<unk>", 0.0, UNKNOWN),
        ("<s>", 0.0, CONTROL),
        ("</s>", 0.0, CONTROL),
        *((f"<0x{value:02X}>", 0.0, BYTE) for value in range(256)),
        (SPACE, -9.0, NORMAL),
        *pieces,
    ]
    return {
        "tokenizer.ggml.model": b"llama",
        "tokenizer.ggml.tokens": tuple(text.encode() for text, _, _ in entries),
        "tokenizer.ggml.scores": tuple(score for _, score, _ in entries),
        "tokenizer.ggml.token_type": tuple(kind for _, _, kind in entries),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def bpe_metadata(
    merges: tuple[tuple[str, str], ...] = (),
    *,
    pre: str = "qwen2",
    extra: tuple[tuple[str, int], ...] = SPECIALS,
) -> dict[str, Value]:
    """The 256 bytes in order, what ``merges`` (plain text) make, then ``extra`` (name, type)."""
    pieces = [ALPHABET[value] for value in range(256)]
    for left, right in merges:
        joined = stand_in(left + right)
        if joined not in pieces:
            pieces.append(joined)
    entries = [*((piece, NORMAL) for piece in pieces), *extra]
    return {
        "tokenizer.ggml.model": b"gpt2",
        "tokenizer.ggml.pre": pre.encode(),
        "tokenizer.ggml.tokens": tuple(text.encode() for text, _ in entries),
        "tokenizer.ggml.token_type": tuple(kind for _, kind in entries),
        "tokenizer.ggml.merges": tuple(
            f"{stand_in(left)} {stand_in(right)}".encode() for left, right in merges
        ),
    }


def fixture_rows(directory: Path, name: str) -> list[tuple[str, tuple[int, ...]]]:
    """The published texts of a vocabulary, and their ids without BOS."""
    stem = directory / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{stem}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    rows = Path(f"{stem}.out").read_text(encoding="utf-8").split("\n")[: len(texts)]
    return [(text, tuple(map(int, row.split()))) for text, row in zip(texts, rows, strict=True)]


ATOMS = (
    *("'s", "'S", "'Re", "'LL", "'vE", "'t", "'d", "'M", "\u2019s", "'\u017f", "'\u0130", "don't", "'", "''"),
    *(
        " ",
        "  ",
        "   ",
        "\n",
        "\r\n",
        "\n\n",
        "\t",
        " \n",
        "\r",
        "\x85",
        "\xa0",
        "\u3000",
        "\u2028",
        "\u200b",
    ),
    *(
        "1",
        "12",
        "123",
        "1234567",
        "\u0661\u0662",
        "\u00bd",
        "\u216b",
        "\u2581",
        "\u200d",
        "\ufe0f",
        "\ufeff",
    ),
    *(
        "hello",
        "Hello",
        "HELLO",
        " the",
        "the",
        "ing",
        "!!",
        "...",
        "==",
        "()",
        "_",
        "<0x41>",
        "<unk>",
        "</s>",
    ),
    *("\u0301", "e\u0301", "\x00", "\x1c", "\x7f", "\ufffe", "\uffff", "\u180e", "\U0002ebf0", "\U0010ffff"),
    *("你好", "🦙", "👨\u200d👩\u200d👧", "é", "ß", "ſ", "İ", "Å", "한국", "ไทย", "हिन्दी", "عربي"),
    *("<|im_end|>", "<|eot_id|>", "<s>", "[INST]"),
)
BLOCKS = (
    *((0x20, 0x7F), (0, 0x20), (0x80, 0x250), (0x300, 0x370), (0x370, 0x530), (0x530, 0x700), (0x900, 0x980)),
    *(
        (0xE00, 0xE80),
        (0x1100, 0x1200),
        (0x2000, 0x2070),
        (0x2150, 0x2190),
        (0x2460, 0x2500),
        (0x3000, 0x3100),
    ),
    *((0x4E00, 0x5200), (0xAC00, 0xB000), (0xFDD0, 0xFDF0), (0xFE00, 0xFE10), (0xFF00, 0x10000)),
    *((0x1D400, 0x1D500), (0x1F300, 0x1F650), (0x1FFFE, 0x20000), (0x2EBF0, 0x2EE5E), (0x10FFFE, 0x110000)),
)


def random_text(rng: random.Random) -> str:
    """Parts that are known to matter, stretches of one or two scripts, any code points, long words."""

    def character() -> str:
        point = rng.randrange(0x110000 - 0x800)
        return chr(point if point < 0xD800 else point + 0x800)

    kind = rng.random()
    if kind < 0.45:
        return "".join(rng.choice(ATOMS) for _ in range(rng.randrange(1, 16)))
    if kind < 0.75:
        blocks = [rng.choice(BLOCKS) for _ in range(rng.randrange(1, 4))]
        return "".join(chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randrange(1, 40)))
    if kind < 0.97:
        choices = (lambda: rng.choice(ATOMS), character, lambda: chr(rng.randrange(32, 127)))
        return "".join(rng.choice(choices)() for _ in range(rng.randrange(1, 40)))
    return rng.choice(ATOMS) * rng.randrange(1, 400)


WIDTH = 32


def value_type(value: Value) -> tuple[object, object]:
    """A metadata value as ``gguf_bytes`` wants it."""
    if isinstance(value, tuple):
        code = {bytes: 8, float: 6, int: 5}[type(value[0])]
        return (9, code), [v.decode() if isinstance(v, bytes) else v for v in value]
    if isinstance(value, bytes):
        return 8, value.decode()
    return {bool: 7, float: 6, int: 4}[type(value)], value


def write_model(metadata: Mapping[str, Value], path: Path) -> Path:
    """A llama model of one tiny layer around ``tokenizer.*`` metadata."""
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, tuple)

    def tensor(name: str, *shape: int) -> tuple[str, str, tuple[int, ...], bytes]:
        kind, dtype = ("F16", "<f2") if len(shape) > 1 else ("F32", "<f4")
        return name, kind, shape, np.full(int(np.prod(shape)), 0.01, dtype=dtype).tobytes()

    block = [
        *(tensor(f"blk.0.{name}.weight", WIDTH) for name in ("attn_norm", "ffn_norm")),
        *(tensor(f"blk.0.attn_{name}.weight", WIDTH, WIDTH) for name in ("q", "k", "v", "output")),
        *(tensor(f"blk.0.ffn_{name}.weight", WIDTH, WIDTH) for name in ("gate", "up", "down")),
    ]
    entries = [
        ("general.architecture", 8, "llama"),
        ("general.name", 8, "vocabulary"),
        ("llama.context_length", 4, 128),
        ("llama.embedding_length", 4, WIDTH),
        ("llama.block_count", 4, 1),
        ("llama.feed_forward_length", 4, WIDTH),
        ("llama.attention.head_count", 4, 2),
        ("llama.attention.head_count_kv", 4, 2),
        ("llama.rope.dimension_count", 4, 16),
        ("llama.rope.freq_base", 6, 1e4),
        ("llama.attention.layer_norm_rms_epsilon", 6, 1e-5),
        ("llama.vocab_size", 4, len(tokens)),
        *((key, *value_type(value)) for key, value in metadata.items()),
    ]
    embedding = tensor("token_embd.weight", WIDTH, len(tokens))
    path.write_bytes(
        tiny_models().gguf_bytes(entries, [embedding, *block, tensor("output_norm.weight", WIDTH)])
    )
    return path


def category_by_this_python(point: int) -> str:
    """L, N, M, O, or nothing where this Python does not know the character."""
    category = unicodedata.category(chr(point))
    return "" if category == "Cn" else category[0] if category[0] in "LNM" else "O"
