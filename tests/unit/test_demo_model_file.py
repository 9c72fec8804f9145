"""The committed demo model is the file that docs/demo-model.md describes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "models" / "aos-demo.Q8_0.gguf"
SHA256 = "c2f23369563037f2d34b5452ed633af7f9e1af9d4569c3f2c00162cb94572b89"
MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def reader() -> gguf.GGUFReader:
    return gguf.GGUFReader(FILE)


def value(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def test_the_file_has_the_committed_digest_and_the_page_names_it() -> None:
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == SHA256
    assert SHA256 in (ROOT / "docs" / "demo-model.md").read_text(encoding="utf-8")


def test_the_file_is_small() -> None:
    assert FILE.stat().st_size <= MOST_BYTES


def test_it_is_a_llama_with_a_long_enough_context_and_says_what_it_is(reader: gguf.GGUFReader) -> None:
    assert value(reader, "general.architecture") == "llama"
    assert value(reader, "general.name") == "AOS demo"
    assert value(reader, "general.license") == "Apache-2.0"
    assert "memorised a few pages" in value(reader, "general.description")
    assert value(reader, "llama.context_length") >= 2048


def test_shapes_suit_the_exact_engine(reader: gguf.GGUFReader) -> None:
    width = value(reader, "llama.embedding_length")
    ff = value(reader, "llama.feed_forward_length")
    heads = value(reader, "llama.attention.head_count")
    kv_heads = value(reader, "llama.attention.head_count_kv")
    head_size = value(reader, "llama.attention.key_length")
    assert width % 32 == ff % 32 == (kv_heads * head_size) % 32 == 0
    assert heads % kv_heads == 0
    assert value(reader, "llama.rope.dimension_count") == head_size
    expected = {"token_embd.weight": (2048, width), "output_norm.weight": (width,)}
    for i in range(value(reader, "llama.block_count")):
        expected |= {
            f"blk.{i}.attn_norm.weight": (width,),
            f"blk.{i}.attn_q.weight": (heads * head_size, width),
            f"blk.{i}.attn_k.weight": (kv_heads * head_size, width),
            f"blk.{i}.attn_v.weight": (kv_heads * head_size, width),
            f"blk.{i}.attn_output.weight": (width, heads * head_size),
            f"blk.{i}.ffn_norm.weight": (width,),
            f"blk.{i}.ffn_gate.weight": (ff, width),
            f"blk.{i}.ffn_up.weight": (ff, width),
            f"blk.{i}.ffn_down.weight": (width, ff),
        }
    found = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    assert found == expected  # nothing else: no output.weight (tied), no bias


def test_matrices_are_q8_0_and_norms_are_finite_f32(reader: gguf.GGUFReader) -> None:
    for tensor in reader.tensors:
        if tensor.name.endswith("norm.weight"):
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
            assert np.isfinite(tensor.data).all()
        else:
            assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
            assert np.isfinite(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).all()


def test_the_tokenizer_is_spm_with_byte_fallback(reader: gguf.GGUFReader) -> None:
    assert value(reader, "tokenizer.ggml.model") == "llama"
    assert value(reader, "tokenizer.ggml.add_bos_token") is True
    assert value(reader, "tokenizer.ggml.add_eos_token") is False
    special = [value(reader, f"tokenizer.ggml.{k}_token_id") for k in ("unknown", "bos", "eos")]
    assert special == [0, 1, 2]
    pieces = value(reader, "tokenizer.ggml.tokens")
    kinds = value(reader, "tokenizer.ggml.token_type")
    scores = value(reader, "tokenizer.ggml.scores")
    assert len(pieces) == len(set(pieces)) == len(kinds) == len(scores) == 2048
    assert pieces[:3] == ["<unk>", "<s>", "</s>"]
    assert pieces[3:259] == [f"<0x{b:02X}>" for b in range(256)]
    assert kinds[:3] == [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    assert set(kinds[3:259]) == {gguf.TokenType.BYTE}
    assert set(kinds[259:]) == {gguf.TokenType.NORMAL}
    assert scores[259:] == sorted(scores[259:], reverse=True)


def test_no_piece_holds_a_newline_so_a_prompt_is_a_prefix_of_its_document(reader: gguf.GGUFReader) -> None:
    pieces = value(reader, "tokenizer.ggml.tokens")
    assert not [p for p in pieces if re.search(r"[\n\r]", p)]


def test_the_page_records_fifty_held_out_questions() -> None:
    page = (ROOT / "docs" / "demo-model.md").read_text(encoding="utf-8")
    held_out = [
        line.removeprefix("H: ")
        for path in sorted((ROOT / "scripts" / "train_demo" / "corpus").glob("*.txt"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("H: ")
    ]
    assert len(held_out) == 50
    assert [q for q in held_out if q not in page] == []
