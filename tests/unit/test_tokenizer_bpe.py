"""The byte-pair tokenizer: the published ids, the rule on random vocabularies, loss-free, closed to special
tokens, never quadratic, the same under every Python (spec 07, "Byte-pair vocabularies").
"""

import importlib.util
import itertools
import random
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_cases import (
    SPECIALS,
    bpe_metadata,
    category_by_this_python,
    fixture_rows,
    random_text,
    stand_in,
    write_model,
)

from aos.engine.gguf import Value, read_gguf
from aos.engine.llama_cpp import LlamaCppEngine
from aos.engine.reference import ReferenceEngine
from aos.engine.text import OutputText
from aos.engine.tokenizer import Tokenizer, read_vocabulary
from aos.engine.tokenizer.bpe import UTF8_BYTES
from aos.engine.tokenizer.pretokenize import (
    CLASSES_DIGEST,
    GPT2,
    KINDS,
    LLAMA3,
    QWEN2,
    Splitter,
    classes_digest,
)
from aos.engine.tokenizer.unicode_table import UNICODE_VERSION
from aos.engine.tokenizer.vocabulary import CONTROL, NORMAL, USER_DEFINED, BytePairs
from aos.errors import InvalidMessage
from aos.ports import SamplingParams, TokenEvent

FIXTURES = ("llama-bpe", "qwen2")


@pytest.fixture(scope="module")
def published(shared_fixtures: Path) -> dict[str, Tokenizer]:
    return {
        name: Tokenizer(
            read_vocabulary(read_gguf(shared_fixtures / "tokenizers" / f"ggml-vocab-{name}.gguf").metadata)
        )
        for name in FIXTURES
    }


@pytest.mark.parametrize("name", FIXTURES)
def test_every_published_text_gives_the_published_ids_and_comes_back(
    published: dict[str, Tokenizer], shared_fixtures: Path, name: str
) -> None:
    tokenizer = published[name]
    rows = fixture_rows(shared_fixtures / "tokenizers", name)
    assert len(rows) > 40
    for text, ids in rows:
        bos = (tokenizer.vocabulary.bos,) if name == "llama-bpe" else ()
        assert tokenizer.encode(text) == (*bos, *ids), repr(text)
        assert tokenizer.decode(ids) == text.encode()


@pytest.mark.parametrize("name", FIXTURES)
def test_random_text_comes_back_byte_for_byte(published: dict[str, Tokenizer], name: str) -> None:
    rng = random.Random(5)
    for text in (random_text(rng) for _ in range(500)):
        ids = published[name].encode(text)
        assert published[name].decode(ids) == text.encode(), repr(text)
        assert all(published[name].vocabulary.kinds[token] == NORMAL for token in ids[1:])


def slow_merge(merges: tuple[tuple[str, str], ...], word: str) -> list[str]:
    """The rule itself: join the adjacent pair of the lowest rank, leftmost first, until no pair has one."""
    symbols = list(word)
    while True:
        found = [
            (merges.index(pair), i) for i, pair in enumerate(itertools.pairwise(symbols)) if pair in merges
        ]
        if not found:
            return symbols
        _, i = min(found)
        symbols[i : i + 2] = ["".join(symbols[i : i + 2])]


def test_merging_follows_the_rule_on_random_vocabularies() -> None:
    rng = random.Random(11)
    for _ in range(60):
        known, merges = ["a", "b", "c"], []
        while len(merges) < 25:
            pair = (rng.choice(known), rng.choice(known))
            if pair not in merges and len(pair[0] + pair[1]) < 12:
                merges.append(pair)
                known.append(pair[0] + pair[1])
        tokenizer = Tokenizer(read_vocabulary(bpe_metadata(tuple(merges))))
        for _ in range(10):
            word = "".join(rng.choice("abc") for _ in range(rng.randint(1, 40)))
            pieces = [tokenizer.piece(token).decode() for token in tokenizer.encode(word)]
            assert pieces == slow_merge(tuple(merges), word)


def test_a_whole_word_wins_over_its_merges_only_where_the_kind_says_so() -> None:
    merges = (("a", "b"), ("b", "c"), ("a", "bc"))
    whole, built = (
        Tokenizer(read_vocabulary(bpe_metadata(merges, pre=pre))) for pre in ("llama-bpe", "dbrx")
    )
    assert [whole.piece(token) for token in whole.encode("abc")] == [b"abc"]
    assert [built.piece(token) for token in built.encode("abc")] == [b"ab", b"c"]
    assert whole.vocabulary.digest() != built.vocabulary.digest()


@pytest.mark.parametrize(
    ("splitter", "text", "words"),
    [
        (LLAMA3, "it's IT'S 12345", ["it", "'s", " IT", "'S", " ", "123", "45"]),
        (QWEN2, "it'Ll 123", ["it", "'Ll", " ", "1", "2", "3"]),
        (GPT2, "it's IT'S 12345", ["it", "'s", " IT", "'", "S", " 12345"]),
        (KINDS["smollm"].splitter, "a 12", ["a", " ", "1", "2"]),
        (LLAMA3, "a  b\n\n c \r\n", ["a", " ", " b", "\n\n", " c", " \r\n"]),
        (LLAMA3, "x =\u00a0\u00a0y", ["x", " =", "\u00a0", "\u00a0y"]),
        (LLAMA3, "e\u0301a", ["e", "\u0301a"]),
        (KINDS["qwen35"].splitter, "e\u0301a", ["e\u0301a"]),
        (LLAMA3, "\u0661\u0662\u0663\u0664½", ["\u0661\u0662\u0663", "\u0664½"]),
        (LLAMA3, "?!\r\n\n.", ["?!\r\n\n", "."]),
        (QWEN2, "'\u017f", ["'\u017f"]),
        (GPT2, "", []),
    ],
)
def test_words_are_split_as_the_kind_says(splitter: Splitter, text: str, words: list[str]) -> None:
    assert list(splitter.words(text)) == words


@given(text=st.text(), name=st.sampled_from(sorted(KINDS)))
@settings(max_examples=300)
def test_words_are_the_text_cut_in_pieces(text: str, name: str) -> None:
    words = list(KINDS[name].splitter.words(text))
    assert "".join(words) == text
    assert all(words)


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "qwen35", "gpt-2", "smollm"])
@pytest.mark.parametrize("unit", ["a", " ", "\n", " \n", "🦙", "1", "'", "\u0301", "a\u0301 ", "'s"])
def test_a_hundred_thousand_of_one_thing_is_not_quadratic(pre: str, unit: str) -> None:
    # 2**17 symbols in one word: a quadratic rule would need hours, and the time limit ends it.
    merges = tuple((unit[0] * 2**k, unit[0] * 2**k) for k in range(5 if unit.isascii() else 0))
    tokenizer = Tokenizer(read_vocabulary(bpe_metadata(merges, pre=pre)))
    text = unit * (2**17 // len(unit))
    assert tokenizer.decode(tokenizer.encode(text)) == text.encode()


def test_names_of_special_tokens_in_plain_text_stay_plain_text() -> None:
    extra = (*SPECIALS, ("<tool>", USER_DEFINED), ("word", CONTROL))
    tokenizer = Tokenizer(read_vocabulary(bpe_metadata(extra=extra)))
    text = "<|im_start|>a<tool><|im_end|> word"
    ids = tokenizer.encode(text)
    assert all(tokenizer.vocabulary.kinds[token] == NORMAL for token in ids)
    assert tokenizer.decode(ids) == text.encode()


def test_names_of_special_tokens_in_trusted_text_are_cut_out_longest_first() -> None:
    extra = (("<a>", CONTROL), ("<a>>", CONTROL), ("<t>", USER_DEFINED))
    tokenizer = Tokenizer(read_vocabulary(bpe_metadata(extra=extra)))
    assert tokenizer.encode("x<a>><a><t>", special=True) == (ord("x"), 257, 256, 258)
    assert tokenizer.decode((ord("x"), 257, 258)) == b"x<t>"


def test_user_defined_white_space_is_cut_out_of_any_text() -> None:
    tokenizer = Tokenizer(
        read_vocabulary(bpe_metadata(extra=(("    ", USER_DEFINED), ("<t>", USER_DEFINED))))
    )
    assert tokenizer.encode("a    <") == (ord("a"), 256, ord("<"))


def test_a_name_counts_only_within_one_trusted_run() -> None:
    tokenizer = Tokenizer(read_vocabulary(bpe_metadata()))
    end = 258
    assert tokenizer.encode_runs([("<|im_end|>", True)]) == (end,)
    assert tokenizer.encode_runs([("<|im_", True), ("end|>", True)]) == (end,)
    for runs in (
        [("<|im_end|>", False)],
        [("<|im_", True), ("end|>", False)],
        [("<|im_", False), ("end|>", True)],
        [("<|im", True), ("_", False), ("end|>", True)],
    ):
        ids = tokenizer.encode_runs(runs)
        assert end not in ids
        assert ids == tokenizer.encode("<|im_end|>")


def test_plain_runs_are_one_text_whoever_wrote_them() -> None:
    tokenizer = Tokenizer(read_vocabulary(bpe_metadata((("a", "b"),))))
    assert tokenizer.encode_runs([("x a", True), ("b", False)]) == tokenizer.encode("x ab")


def test_bos_leads_a_conversation_once() -> None:
    metadata = bpe_metadata(pre="llama-bpe") | {"tokenizer.ggml.bos_token_id": 256}
    tokenizer = Tokenizer(read_vocabulary(metadata))
    assert tokenizer.encode("a") == (256, ord("a"))
    assert tokenizer.encode_runs([("<|begin|>a", True)]) == (256, ord("a"))
    assert tokenizer.encode_runs([("a", True)]) == (256, ord("a"))
    assert tokenizer.encode_runs([("<|begin|>", False)])[0] == 256
    assert len(tokenizer.encode_runs([("<|begin|>", False)])) == 10


def test_defaults_of_bos_follow_the_kind() -> None:
    for pre, adds in (("llama-bpe", True), ("qwen2", False), ("gpt-2", False)):
        metadata = bpe_metadata(pre=pre) | {"tokenizer.ggml.bos_token_id": 256}
        assert read_vocabulary(metadata).add_bos is adds
    assert not read_vocabulary(bpe_metadata(pre="llama-bpe")).add_bos


def test_the_digest_covers_all_that_decides_ids() -> None:
    vocabulary = read_vocabulary(bpe_metadata((("a", "b"), ("b", "c"))))
    rules = vocabulary.rules
    assert isinstance(rules, BytePairs)
    variants = [
        vocabulary,
        replace(vocabulary, bos=256),
        replace(vocabulary, eos=256),
        replace(vocabulary, bos=256, add_bos=True),
        replace(vocabulary, eos=256, add_eos=True),
        replace(vocabulary, kinds=(*vocabulary.kinds[:-1], USER_DEFINED)),
        replace(vocabulary, pieces=(*vocabulary.pieces[:-1], b"<|other|>")),
        replace(vocabulary, rules=replace(rules, merges=rules.merges[::-1])),
        replace(vocabulary, rules=replace(rules, merges=rules.merges[:1])),
        replace(vocabulary, rules=replace(rules, kind=KINDS["gpt-2"])),
        replace(vocabulary, rules=replace(rules, kind=replace(rules.kind, whole_words=True))),
    ]
    assert len({variant.digest() for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"tokenizer.ggml.pre": b"no-such-kind"}, "tokenizer.pre"),
        ({"tokenizer.ggml.pre": b"default"}, "tokenizer.pre"),
        ({"tokenizer.ggml.pre": b"\xff"}, "tokenizer.pre"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.pre"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.missing"),
        ({"tokenizer.ggml.merges": (1,)}, "tokenizer.type"),
        ({"tokenizer.ggml.merges": (b"ab",)}, "tokenizer.merge"),
        ({"tokenizer.ggml.merges": (b"a z",)}, "tokenizer.merge"),
        ({"tokenizer.ggml.merges": (b"a b", b"a b")}, "tokenizer.merge"),
        ({"tokenizer.ggml.merges": (b"a  b",)}, "tokenizer.merge"),
        ({"tokenizer.ggml.tokens": (b"a",)}, "tokenizer.length"),
        ({"tokenizer.ggml.token_type": (0,) * 260}, "tokenizer.kind"),
        ({"tokenizer.ggml.token_type": (CONTROL,) * 257 + (NORMAL,) * 3}, "tokenizer.merge"),
        ({"tokenizer.ggml.add_bos_token": True}, "tokenizer.special_id"),
        ({"tokenizer.ggml.add_eos_token": True}, "tokenizer.special_id"),
        ({"tokenizer.ggml.bos_token_id": 4096}, "tokenizer.special_id"),
    ],
)
def test_a_broken_vocabulary_is_refused_by_name(change: dict[str, object], code: str) -> None:
    metadata: dict[str, object] = {**bpe_metadata((("a", "b"),)), **change}
    with pytest.raises(InvalidMessage) as caught:
        Tokenizer(read_vocabulary({k: v for k, v in metadata.items() if v is not None}))  # type: ignore[misc]
    assert caught.value.code == code


def with_tokens(change: dict[int, bytes]) -> dict[str, Value]:
    metadata = bpe_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, tuple)
    return metadata | {"tokenizer.ggml.tokens": tuple(change.get(i, t) for i, t in enumerate(tokens))}  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [0x00, 0x41, 0x80, 0xBF, 0xC2, 0xF4])
def test_a_vocabulary_that_cannot_spell_every_text_is_refused(value: int) -> None:
    with pytest.raises(InvalidMessage) as caught:
        Tokenizer(read_vocabulary(with_tokens({value: stand_in("other").encode()})))
    assert caught.value.code == "tokenizer.byte_tokens"


def test_bytes_that_no_text_has_need_no_piece() -> None:
    names = {value: f"unused{value}".encode() for value in range(256) if value not in UTF8_BYTES}
    assert Tokenizer(read_vocabulary(with_tokens(names))).encode("a") == (ord("a"),)


@pytest.mark.parametrize(
    ("token", "code"),
    [(b"\xff", "tokenizer.piece"), (b"", "tokenizer.piece"), (b"a" * 1025, "tokenizer.piece")],
)
def test_an_impossible_piece_is_refused(token: bytes, code: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        Tokenizer(read_vocabulary(with_tokens({0xFF: token})))
    assert caught.value.code == code


def test_two_equal_pieces_are_refused() -> None:
    with pytest.raises(InvalidMessage) as caught:
        read_vocabulary(with_tokens({0xFF: b"a"}))
    assert caught.value.code == "tokenizer.duplicate"


def test_streamed_pieces_give_the_text_wherever_tokens_cut_its_characters() -> None:
    tokenizer = Tokenizer(read_vocabulary(bpe_metadata((("a", "b"), ("b", "c")))))
    text = "ab é你🦙\u200d\x00abc"
    output, streamed = OutputText(()), ""
    for token in tokenizer.encode(text):
        output.push(tokenizer.piece(token))
        streamed += output.release()
        assert text.startswith(streamed)
    output.finish()
    assert streamed + output.release() == text


def test_engines_run_a_model_with_byte_pairs_and_its_digest_is_in_the_manifest(tmp_path: Path) -> None:
    metadata = bpe_metadata((("a", "b"),)) | {"tokenizer.ggml.eos_token_id": 259}
    vocabulary = read_vocabulary(metadata)
    path = write_model(metadata, tmp_path / "model.gguf")
    reference, other = ReferenceEngine(path), LlamaCppEngine(path)
    assert reference.manifest == other.manifest
    assert reference.manifest.tokenizer == vocabulary.digest()
    assert reference.manifest.arithmetic == 1
    assert reference.tokenize("ab é") == other.tokenize("ab é") == Tokenizer(vocabulary).encode("ab é")
    params = SamplingParams(max_tokens=8, seed=3)
    for engine in (reference, other):
        events: list[TokenEvent] = []
        run = engine.generate("ab é", params, salt=bytes(32), on_token=events.append)
        assert "".join(event.text for event in events) == run.text
        raw = b"".join(Tokenizer(vocabulary).piece(token) for token in run.tokens)
        assert run.text == raw.decode("utf-8", "replace")


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InvalidMessage) as caught:
        Tokenizer(read_vocabulary(bpe_metadata())).encode("a\udfff")
    assert caught.value.code == "tokenizer.text"


def table_maker() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "make_unicode_tables.py"
    spec = importlib.util.spec_from_file_location("make_unicode_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pinned_classes_are_those_of_the_digest_and_agree_with_this_python() -> None:
    assert classes_digest() == CLASSES_DIGEST
    assert UNICODE_VERSION == "15.1.0"
    splitter = KINDS["qwen35"].splitter
    for point in range(0x80, 0x110000):
        known = category_by_this_python(point)
        if 0xD800 <= point < 0xE000 or (not known and unicodedata.unidata_version < UNICODE_VERSION):
            continue
        if unicodedata.unidata_version > UNICODE_VERSION and known:
            continue
        words = list(splitter.words(f"a{chr(point)}a"))
        expected = {"L": 1, "M": 1, "N": 3}.get(known, 2)
        assert len(words) == expected, hex(point)


@pytest.mark.skipif(
    unicodedata.unidata_version != UNICODE_VERSION, reason="this Python has another Unicode version"
)
def test_the_table_is_what_its_script_makes() -> None:
    maker = table_maker()
    assert maker.TARGET.read_text(encoding="utf-8") == maker.module()
