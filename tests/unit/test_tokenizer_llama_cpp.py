"""Ids of text are llama.cpp's, for every kind (spec 07, "Tokens"): random texts of all scripts, and every code
point. The vocabularies are the published ones, around a model of one tiny layer.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizer_cases import random_text, write_model

from aos.engine.gguf import read_gguf
from aos.engine.llama_cpp import LlamaCppEngine

TEXTS = 150
# One vocabulary each, and every other way to split on one of them.
CASES = (
    ("llama-spm", ""),
    ("llama-bpe", ""),
    ("qwen2", ""),
    *(("qwen2", pre) for pre in ("dbrx", "qwen35", "gpt-2", "smollm")),
)


def engine_of(vocabulary: Path, pre: str, path: Path) -> LlamaCppEngine:
    metadata = {
        key: value
        for key, value in read_gguf(vocabulary).metadata.items()
        if key.startswith("tokenizer.") and key != "tokenizer.chat_template"
    }
    if pre:
        metadata["tokenizer.ggml.pre"] = pre.encode()
    return LlamaCppEngine(write_model(metadata, path))


def every_code_point() -> Iterator[str]:
    """All planes that have characters, and the ends of the others."""
    ranges = (
        *((0, 0xD800), (0xE000, 0x32400), (0xE0000, 0xE0200)),
        *((n << 16, (n << 16) + 4) for n in range(4, 17)),
    )
    points = [chr(point) for first, last in ranges for point in range(first, last)]
    for at in range(0, len(points), 512):
        yield "".join(f"a{c}b {c}1" for c in points[at : at + 512])


def ids_by_llama_cpp(engine: LlamaCppEngine, text: str, *, special: bool) -> tuple[int, ...]:
    body = {"content": text, "add_special": True, "parse_special": special}
    return tuple(engine._server.post("/tokenize", body)["tokens"])


@pytest.mark.parametrize(("vocabulary", "pre"), CASES, ids=lambda value: value or "own")
def test_ids_of_any_text_are_llama_cpps(
    shared_fixtures: Path, tmp_path: Path, vocabulary: str, pre: str
) -> None:
    source = shared_fixtures / "tokenizers" / f"ggml-vocab-{vocabulary}.gguf"
    engine = engine_of(source, pre, tmp_path / "model.gguf")
    assert engine._tokenizer is not None
    rng = random.Random(f"{vocabulary} {pre}")
    texts = [random_text(rng) for _ in range(TEXTS if not pre else TEXTS // 3)]
    if vocabulary != "qwen2":  # the two byte-pair kinds share their classes
        texts.extend(every_code_point())
    for text in texts:
        assert engine.tokenize(text) == ids_by_llama_cpp(engine, text, special=False), repr(text)


@pytest.mark.parametrize("vocabulary", ["llama-spm", "llama-bpe", "qwen2"])
def test_ids_of_trusted_text_are_llama_cpps_with_special_tokens(
    shared_fixtures: Path, tmp_path: Path, vocabulary: str
) -> None:
    source = shared_fixtures / "tokenizers" / f"ggml-vocab-{vocabulary}.gguf"
    engine = engine_of(source, "", tmp_path / "model.gguf")
    assert engine._tokenizer is not None
    rng = random.Random(23)
    names = [
        "<s>",
        "</s>",
        "<unk>",
        "<|im_start|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|begin_of_text|>",
        "[PAD151650]",
    ]
    for _ in range(TEXTS):
        text = "".join(rng.choice([rng.choice(names), random_text(rng)]) for _ in range(rng.randint(1, 6)))
        # llama.cpp makes control tokens of ordinary pieces that have such names; here the file decides.
        text = text.replace("</s>", "") if vocabulary == "qwen2" else text
        expected = ids_by_llama_cpp(engine, text, special=True)
        assert engine._tokenizer.encode(text, special=True) == expected, repr(text)


def test_a_kind_that_is_not_known_here_is_left_to_llama_cpp(shared_fixtures: Path, tmp_path: Path) -> None:
    source = shared_fixtures / "tokenizers" / "ggml-vocab-qwen2.gguf"
    engine = engine_of(source, "tekken", tmp_path / "model.gguf")
    assert engine._tokenizer is None
    text = "it's 12345 <|im_end|>"
    ids = engine.tokenize(text)
    assert ids[1:] == ids_by_llama_cpp(engine, text, special=False)[1:]
    assert b"".join(engine._pieces[token] for token in ids) == text.encode()
