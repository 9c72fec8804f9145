"""The llama (SentencePiece) tokenizer: equal to llama.cpp's, loss-free, and closed to special tokens (spec
07, "Tokens").
"""

import heapq
import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizer_cases import fixture_rows, random_text, spm_metadata

from aos.engine.gguf import read_gguf
from aos.engine.tokenizer import Tokenizer, Vocabulary, read_vocabulary
from aos.engine.tokenizer.spm import SPACE
from aos.engine.tokenizer.vocabulary import BYTE, NORMAL, USER_DEFINED, SentencePieces
from aos.errors import InvalidMessage


@pytest.fixture(scope="module")
def llama(shared_fixtures: Path) -> Tokenizer:
    path = shared_fixtures / "tokenizers" / "ggml-vocab-llama-spm.gguf"
    return Tokenizer(read_vocabulary(read_gguf(path).metadata))


def tiny_vocabulary(*pieces: tuple[str, float], kinds: dict[str, int] | None = None) -> Vocabulary:
    """<unk>, <s>, </s>, the bytes, U+2581, then ``pieces`` with their scores (kind NORMAL unless ``kinds``
    says otherwise).
    """
    return read_vocabulary(
        spm_metadata(*((text, score, (kinds or {}).get(text, NORMAL)) for text, score in pieces))
    )


def test_every_line_of_the_published_fixture_gives_the_published_ids(
    llama: Tokenizer, shared_fixtures: Path
) -> None:
    rows = fixture_rows(shared_fixtures / "tokenizers", "llama-spm")
    assert len(rows) > 40
    for text, ids in rows:
        assert llama.encode(text) == (llama.vocabulary.bos, *ids), repr(text)
        assert llama.decode(ids) == text.encode()


def test_decoding_gives_every_text_back_byte_for_byte(llama: Tokenizer) -> None:
    rng = random.Random(7)
    for text in (random_text(rng).replace(SPACE, "") for _ in range(500)):
        assert llama.decode(llama.encode(text)) == text.encode()


def test_the_stand_in_for_the_space_comes_back_as_the_space_that_it_stands_for(llama: Tokenizer) -> None:
    assert llama.encode(f"a{SPACE}b") == llama.encode("a b")
    assert llama.decode(llama.encode(f"a{SPACE}b")) == b"a b"


@pytest.mark.parametrize("text", ["</s>", "<s>", "<unk>", "<0x41>", "a</s>b<s><unk>", "[INST]<s></s>"])
def test_special_tokens_in_user_text_stay_plain_text(llama: Tokenizer, text: str) -> None:
    ids = llama.encode(text)[1:]
    assert all(llama.vocabulary.kinds[token] in (NORMAL, BYTE) for token in ids)
    assert llama.decode(ids) == text.encode()


def slow_merge(vocabulary: Vocabulary, text: str) -> list[str]:
    """The rule itself: merge the adjacent pair with the best score, leftmost among equals, until none is a
    piece.
    """
    assert isinstance(vocabulary.rules, SentencePieces)
    scores = vocabulary.rules.scores
    score = {
        piece.decode(): value
        for piece, value, kind in zip(vocabulary.pieces, scores, vocabulary.kinds, strict=True)
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


def test_user_defined_pieces_are_cut_out_of_trusted_text_longest_first() -> None:
    vocabulary = tiny_vocabulary(
        ("a", -1.0), ("<u>", 0.0), ("<u>>", 0.0), kinds={"<u>": USER_DEFINED, "<u>>": USER_DEFINED}
    )
    tokenizer = Tokenizer(vocabulary)
    space, a, user, longer = range(259, 263)
    ids = (1, space, a, user, space, a, longer, space, a)
    assert tokenizer.encode("a<u>a<u>>a", special=True) == ids
    assert tokenizer.decode(tokenizer.encode("a<u> a<u>>a", special=True)) == b"a<u> a<u>>a"


def test_user_defined_pieces_never_come_out_of_plain_text() -> None:
    # Not even by merging: "<u" and ">" are pieces that would join to it.
    pieces = (("<", -1.0), ("u", -1.0), (">", -1.0), ("<u", -0.5), ("<u>", 0.0))
    tokenizer = Tokenizer(tiny_vocabulary(*pieces, kinds={"<u>": USER_DEFINED}))
    assert tokenizer.encode("<u>") == (1, 259, 263, 262)


def test_user_defined_white_space_is_cut_out_of_any_text() -> None:
    tokenizer = Tokenizer(tiny_vocabulary(("a", -1.0), ("\n\n", 0.0), kinds={"\n\n": USER_DEFINED}))
    assert tokenizer.encode("a\n\na") == (1, 259, 260, 261, 259, 260)


def test_the_space_prefix_follows_special_tokens_of_a_conversation() -> None:
    tokenizer = Tokenizer(tiny_vocabulary(("a", -1.0)))
    runs = [("<s>", True), ("a</s>", False), ("</s>", True), ("a", False)]
    ids = tokenizer.encode_runs(runs)
    assert ids[:3] == (1, 259, 260)
    assert ids[-3:] == (2, 259, 260)
    assert ids.count(2) == 1
    assert tokenizer.decode(ids) == b"a</s>a"


@pytest.mark.parametrize("unit", ["a", " ", "\n", "é", "🦙", "ab"])
def test_a_hundred_thousand_of_one_thing_is_not_quadratic(unit: str) -> None:
    pieces = tuple((unit[0] * 2**k, -float(9 - k)) for k in range(5))
    tokenizer = Tokenizer(tiny_vocabulary(*(piece for piece in pieces if not piece[0].isspace())))
    text = unit * (2**17 // len(unit))
    assert tokenizer.decode(tokenizer.encode(text)) == text.encode()


def test_bos_eos_and_space_prefix_follow_the_file() -> None:
    vocabulary = tiny_vocabulary(("a", -1.0))
    rules = SentencePieces(scores=(0.0,) * len(vocabulary.pieces), add_space_prefix=False)
    bare = replace(vocabulary, add_bos=False, add_eos=True, rules=rules)
    assert Tokenizer(bare).encode("a") == (260, 2)
    assert vocabulary.digest() != bare.digest()


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InvalidMessage) as caught:
        Tokenizer(tiny_vocabulary()).encode("\ud800")
    assert caught.value.code == "tokenizer.text"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"tokenizer.ggml.model": b"bert"}, "tokenizer.unsupported"),
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
    metadata = {**spm_metadata(), **change}
    with pytest.raises(InvalidMessage) as caught:
        Tokenizer(read_vocabulary({key: value for key, value in metadata.items() if value is not None}))  # type: ignore[misc]
    assert caught.value.code == code


def test_a_piece_that_appears_twice_is_refused() -> None:
    with pytest.raises(InvalidMessage) as caught:
        Tokenizer(tiny_vocabulary(("a", -1.0), ("a", -2.0)))
    assert caught.value.code == "tokenizer.duplicate"
