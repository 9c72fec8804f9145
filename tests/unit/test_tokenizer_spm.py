"""The llama (SentencePiece) tokenizer: equal to llama.cpp's, loss-free, and closed to special tokens (spec
07, "Tokens").
"""

import heapq
import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from aos.engine.gguf import read_gguf
from aos.engine.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Tokenizer,
    Vocabulary,
    read_vocabulary,
)
from aos.errors import InvalidMessage

FIXTURES = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures" / "tokenizers"
SPM = FIXTURES / "ggml-vocab-llama-spm.gguf"

needs_fixtures = pytest.mark.skipif(
    not SPM.exists(), reason="tokenizer fixtures are not beside this checkout"
)


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    return Tokenizer(read_vocabulary(read_gguf(SPM).metadata))


def tiny_vocabulary(*pieces: tuple[str, float], kinds: dict[str, int] | None = None) -> Vocabulary:
    """<unk>, <s>, </s>, the bytes, then ``pieces`` with their scores (kind NORMAL unless ``kinds`` says
    otherwise).
    """
    special = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    byte = [(f"<0x{value:02X}>", 0.0, BYTE) for value in range(256)]
    own = [(text, score, (kinds or {}).get(text, NORMAL)) for text, score in ((SPACE, -9.0), *pieces)]
    entries = [*special, *byte, *own]
    return Vocabulary(
        pieces=tuple(text.encode() for text, _, _ in entries),
        scores=tuple(score for _, score, _ in entries),
        kinds=tuple(kind for _, _, kind in entries),
        bos=1,
        eos=2,
        add_bos=True,
        add_eos=False,
        add_space_prefix=True,
    )


def metadata_of(vocabulary: Vocabulary) -> dict[str, object]:
    return {
        "tokenizer.ggml.model": b"llama",
        "tokenizer.ggml.tokens": vocabulary.pieces,
        "tokenizer.ggml.scores": vocabulary.scores,
        "tokenizer.ggml.token_type": vocabulary.kinds,
        "tokenizer.ggml.bos_token_id": vocabulary.bos,
        "tokenizer.ggml.eos_token_id": vocabulary.eos,
    }


@needs_fixtures
def test_every_line_of_the_published_fixture_gives_the_published_ids(llama: Tokenizer) -> None:
    texts = SPM.with_suffix(".gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    rows = SPM.with_suffix(".gguf.out").read_text(encoding="utf-8").split("\n")[: len(texts)]
    assert len(texts) > 40
    for text, row in zip(texts, rows, strict=True):
        assert llama.encode(text)[1:] == tuple(map(int, row.split())), repr(text)
        assert llama.encode(text)[0] == llama.vocabulary.bos


@needs_fixtures
def test_decoding_gives_every_text_back_byte_for_byte(llama: Tokenizer) -> None:
    rng = random.Random(7)
    alphabet = "aeint shLO  \n\t.,'{}<|>0123éßжд你好🦙\U0001f468\u200d\0\x7f"
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))
        assert llama.decode(llama.encode(text)) == text.encode()


@needs_fixtures
@pytest.mark.parametrize("text", ["</s>", "<s>", "<unk>", "<0x41>", "a</s>b<s><unk>", "[INST]<s></s>"])
def test_special_tokens_in_user_text_stay_plain_text(llama: Tokenizer, text: str) -> None:
    ids = llama.encode(text)[1:]
    assert all(llama.vocabulary.kinds[token] in (NORMAL, BYTE) for token in ids)
    assert llama.decode(ids) == text.encode()


def slow_merge(vocabulary: Vocabulary, text: str) -> list[str]:
    """The rule itself: merge the adjacent pair with the best score, leftmost among equals, until none is a
    piece.
    """
    score = {
        piece.decode(): value
        for piece, value, kind in zip(vocabulary.pieces, vocabulary.scores, vocabulary.kinds, strict=True)
        if kind == NORMAL
    }
    symbols = list(text)
    while True:
        pairs = [(-score[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in score]
        if not pairs:
            return symbols
        heapq.heapify(pairs)
        _, i = pairs[0]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


def test_merging_follows_the_rule_on_random_vocabularies() -> None:
    rng = random.Random(3)
    for _ in range(100):
        words = {"".join(rng.choice("abc") for _ in range(rng.randint(2, 5))) for _ in range(30)}
        vocabulary = tiny_vocabulary(*((w, float(rng.randint(-5, 0))) for w in sorted({*"abc", *words})))
        tokenizer = Tokenizer(vocabulary)
        text = "".join(rng.choice("abc") for _ in range(30))
        pieces = [vocabulary.pieces[token].decode() for token in tokenizer.encode(text)[1:]]
        assert pieces == slow_merge(vocabulary, SPACE + text)


def test_a_character_that_is_no_piece_falls_back_to_its_bytes() -> None:
    tokenizer = Tokenizer(tiny_vocabulary(("a", -1.0)))
    assert tokenizer.encode("aé") == (1, 3 + 256, 3 + 257, 3 + 0xC3, 3 + 0xA9)
    assert tokenizer.encode("") == (1,)


def test_user_defined_pieces_are_cut_out_longest_first() -> None:
    vocabulary = tiny_vocabulary(
        ("a", -1.0), ("<u>", 0.0), ("<u>>", 0.0), kinds={"<u>": USER_DEFINED, "<u>>": USER_DEFINED}
    )
    tokenizer = Tokenizer(vocabulary)
    space, a, user, longer = range(259, 263)
    assert tokenizer.encode("a<u>a<u>>a") == (1, space, a, user, space, a, longer, space, a)
    assert tokenizer.decode(tokenizer.encode("a<u> a<u>>a")) == b"a<u> a<u>>a"


def test_bos_eos_and_space_prefix_follow_the_file() -> None:
    vocabulary = tiny_vocabulary(("a", -1.0))
    bare = replace(vocabulary, add_bos=False, add_eos=True, add_space_prefix=False)
    assert Tokenizer(bare).encode("a") == (260, 2)
    assert vocabulary.digest() != bare.digest()


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InvalidMessage) as caught:
        Tokenizer(tiny_vocabulary()).encode("\ud800")
    assert caught.value.code == "tokenizer.text"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"tokenizer.ggml.model": b"gpt2"}, "tokenizer.unsupported"),
        ({"tokenizer.ggml.model": b"\xff"}, "tokenizer.unsupported"),
        ({"tokenizer.ggml.model": None}, "tokenizer.unsupported"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.missing"),
        ({"tokenizer.ggml.tokens": (1, 2)}, "tokenizer.type"),
        ({"tokenizer.ggml.scores": (0.0,)}, "tokenizer.length"),
        ({"tokenizer.ggml.scores": (float("nan"),) * 260}, "tokenizer.score"),
        ({"tokenizer.ggml.token_type": (9,) * 260}, "tokenizer.kind"),
        ({"tokenizer.ggml.bos_token_id": 260}, "tokenizer.special_id"),
        ({"tokenizer.ggml.eos_token_id": -1}, "tokenizer.special_id"),
        ({"tokenizer.ggml.add_bos_token": 1}, "tokenizer.type"),
        ({"tokenizer.ggml.token_type": (NORMAL,) * 260}, "tokenizer.byte_tokens"),
        ({"tokenizer.ggml.tokens": (b"\xff",) * 260}, "tokenizer.piece"),
    ],
)
def test_a_broken_vocabulary_is_refused_by_name(change: dict[str, object], code: str) -> None:
    metadata = metadata_of(tiny_vocabulary()) | change
    with pytest.raises(InvalidMessage) as caught:
        Tokenizer(read_vocabulary({key: value for key, value in metadata.items() if value is not None}))  # type: ignore[misc]
    assert caught.value.code == code


def test_a_piece_that_appears_twice_is_refused() -> None:
    with pytest.raises(InvalidMessage) as caught:
        Tokenizer(tiny_vocabulary(("a", -1.0), ("a", -2.0)))
    assert caught.value.code == "tokenizer.duplicate"


@needs_fixtures
@pytest.mark.parametrize("name", ["ggml-vocab-llama-bpe.gguf", "ggml-vocab-qwen2.gguf"])
def test_byte_pair_vocabularies_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidMessage, match="gpt2") as caught:
        read_vocabulary(read_gguf(FIXTURES / name).metadata)
    assert caught.value.code == "tokenizer.unsupported"
