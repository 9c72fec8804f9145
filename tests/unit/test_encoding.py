"""Canonical JSON, strict parsing, base64url, tagged hashes, millionths, and strict object reading."""

import json
from collections.abc import Callable
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from aos.core.encoding import (
    Fields,
    b64u_decode,
    b64u_encode,
    canonical_json,
    lp,
    millionths,
    parse_canonical,
    parse_json_strict,
    tagged_hash,
)
from aos.errors import InvalidMessage

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "aos" / "encoding" / "encoding.json").read_text("utf-8")
)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(InvalidMessage) as caught:
        call()
    return caught.value.code


@pytest.mark.parametrize("case", VECTORS["canonical"], ids=lambda c: c["name"])
def test_canonical_vectors(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    if case["error"] is None:
        assert canonical_json(parse_canonical(data, max_bytes=4096)) == data
    else:
        assert refused(lambda: parse_canonical(data, max_bytes=4096)) == case["error"]


@pytest.mark.parametrize("case", VECTORS["base64url"], ids=lambda c: c["name"])
def test_base64url_vectors(case: dict[str, Any]) -> None:
    if case["error"] is None:
        assert b64u_decode(case["text"], length=case["length"]) == bytes.fromhex(case["hex"])
        assert b64u_encode(bytes.fromhex(case["hex"])) == case["text"]
    else:
        assert refused(lambda: b64u_decode(case["text"], length=case["length"])) == case["error"]


@pytest.mark.parametrize("case", VECTORS["millionths"], ids=lambda c: c["text"])
def test_millionths_vectors(case: dict[str, Any]) -> None:
    if case["error"] is None:
        assert millionths(case["text"]) == case["value"]
    else:
        assert refused(lambda: millionths(case["text"])) == case["error"]


@pytest.mark.parametrize("case", VECTORS["tagged_hash"], ids=lambda c: c["name"])
def test_tagged_hash_vectors(case: dict[str, Any]) -> None:
    parts = [bytes.fromhex(p) for p in case["parts"]]
    assert tagged_hash(case["name"], *parts).hex() == case["hash"]
    assert sha256(b"AOS/" + case["name"].encode() + b"/v1\0" + b"".join(parts)).hexdigest() == case["hash"]


def test_keys_sort_by_utf16_units_as_rfc_8785_says() -> None:
    value = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\xf6": 7}
    assert list(json.loads(canonical_json(value))) == [
        "\r",
        "1",
        "\x80",
        "\xf6",
        "\u20ac",
        "\U0001f600",
        "\ufb33",
    ]


ANY_KEY = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from(
    ["\U0001f600", "\ufb33", "\uffff", "\U00010000", "\x7f", "\x00", '"', "\\", "/", "\u2028"]
)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | ANY_KEY,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_KEY, inner, max_size=4),
        max_leaves=12,
    )
)
def test_canonical_json_is_what_another_implementation_of_rfc_8785_writes(value: Any) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (1.0, "encoding.float"),
        ({"a": [0.5]}, "encoding.float"),
        (Decimal("1"), "encoding.float"),
        (float("nan"), "encoding.float"),
        (2**53, "encoding.integer_range"),
        (-(2**53), "encoding.integer_range"),
        ("\ud800", "encoding.surrogate"),
        ({"\udfff": 1}, "encoding.surrogate"),
        ({1: 1}, "encoding.key"),
        (b"bytes", "encoding.type"),
        ({1, 2}, "encoding.type"),
    ],
)
def test_what_has_no_canonical_form_is_refused(value: object, code: str) -> None:
    assert refused(lambda: canonical_json(value)) == code


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert refused(lambda: canonical_json(loop)) == "encoding.depth"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(_VALUES)
def test_canonical_bytes_parse_back_to_the_same_value(value: Any) -> None:
    data = canonical_json(value)
    assert parse_canonical(data, max_bytes=len(data)) == value


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"[" * 17 + b"]" * 17, "encoding.depth"),
        (b"[" * 100_000, "encoding.too_large"),
        (b"[" * 4000, "encoding.depth"),
        (b'{"a":{"b":1,"b":1}}', "encoding.duplicate_key"),
        (b'{"a":1,"\\u0061":2}', "encoding.duplicate_key"),
        (b"\xef\xbb\xbf{}", "encoding.bom"),
        (b'"\xff"', "encoding.utf8"),
        (b'"\xed\xa0\x80"', "encoding.utf8"),
        (b'"\xc0\x80"', "encoding.utf8"),
        (b"NaN", "encoding.nan"),
        (b"[-Infinity]", "encoding.nan"),
        (b"1.0", "encoding.float"),
        (b"1e3", "encoding.float"),
        (b"-0", "encoding.number"),
        (b"9007199254740992", "encoding.integer_range"),
        (b"1" * 4000, "encoding.integer_range"),
        (b"01", "encoding.syntax"),
        (b"+1", "encoding.syntax"),
        (b"{}{}", "encoding.syntax"),
        (b"{} x", "encoding.syntax"),
        (b"", "encoding.syntax"),
        (b"[1,]", "encoding.syntax"),
        (b"{'a':1}", "encoding.syntax"),
        (b'"a\nb"', "encoding.syntax"),
        (b'"open', "encoding.syntax"),
        (b"\x0c1", "encoding.syntax"),
        (b'"\\ud800"', "encoding.surrogate"),
        (b'{"\\udc00":1}', "encoding.surrogate"),
        (b'["\\ud800\\u0041"]', "encoding.surrogate"),
    ],
)
def test_json_with_two_readings_is_refused(data: bytes, code: str) -> None:
    assert refused(lambda: parse_json_strict(data, max_bytes=4096)) == code


def test_brackets_inside_text_are_no_depth() -> None:
    text = "[" * 50 + '\\"{{'
    data = json.dumps([text]).encode()
    assert parse_json_strict(data, max_bytes=1000) == [text]


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse_json_strict(b'"\\ud83d\\ude00"', max_bytes=100) == "\U0001f600"


def test_decimals_are_exact_where_allowed() -> None:
    value = parse_json_strict(b"[1.0,0.1,5]", max_bytes=100, allow_floats=True)
    assert value == [Decimal("1.0"), Decimal("0.1"), 5]
    long = b"0." + b"1" * 70
    assert refused(lambda: parse_json_strict(long, max_bytes=100, allow_floats=True)) == "encoding.number"


@pytest.mark.parametrize(
    "value", [Decimal("NaN"), Decimal("Infinity"), Decimal("sNaN"), True, 0.5, None, b"1"]
)
def test_millionths_takes_only_plain_decimals(value: Any) -> None:
    assert refused(lambda: millionths(value)) == "encoding.number"


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_millionths_inverts_division_by_a_million(value: int) -> None:
    assert millionths(Decimal(value).scaleb(-6)) == value


def test_lp_tells_apart_what_concatenation_does_not() -> None:
    assert tagged_hash("x", b"ab", b"c") == tagged_hash("x", b"a", b"bc")
    assert tagged_hash("x", lp(b"ab"), lp(b"c")) != tagged_hash("x", lp(b"a"), lp(b"bc"))


@pytest.mark.parametrize("name", ["", "Draw", "a b", "a\0", "-a", "a/"])
def test_a_tag_name_is_plain(name: str) -> None:
    with pytest.raises(ValueError, match="tag name"):
        tagged_hash(name)


GOOD: dict[str, Any] = {
    "t": "abc", "n": 7, "b": True, "k": "AAA", "h": "0x00ff", "e": "tee", "l":
    [1], "o": {"x": 1},
}  # fmt: skip


def read(value: Any) -> tuple[object, ...]:
    f = Fields(value, tuple(GOOD), optional=("opt",))
    inner = f.fields("o", ("x",))
    return (
        f.text("t", 3, min_chars=1), f.uint("n", 9, min_value=1), f.boolean("b"),
        f.b64u("k", 2), f.hex("h", 2, prefix="0x"), f.enum("e", ("opml", "tee")), f.array("l", 1,
        min_items=1), inner.uint("x"), f.has("opt"), f.mapping("o"), f.raw("n"),
    )  # fmt: skip


def test_fields_reads_every_kind() -> None:
    assert read(GOOD) == (
        "abc", 7, True, b"\0\0", b"\0\xff", "tee", [1], 1, False, {"x": 1}, 7,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"t": 1}, "field.type", "t"),
        ({"t": ""}, "field.range", "t"),
        ({"t": "abcd"}, "field.range", "t"),
        ({"n": True}, "field.type", "n"),
        ({"n": "7"}, "field.type", "n"),
        ({"n": Decimal(7)}, "field.type", "n"),
        ({"n": 0}, "field.range", "n"),
        ({"n": 10}, "field.range", "n"),
        ({"b": 1}, "field.type", "b"),
        ({"k": "AAB"}, "field.range", "k"),
        ({"k": "AA"}, "field.range", "k"),
        ({"k": "AAA="}, "field.range", "k"),
        ({"h": "00ff"}, "field.range", "h"),
        ({"h": "0x00FF"}, "field.range", "h"),
        ({"h": "0x00f"}, "field.range", "h"),
        ({"h": "0x00f\n"}, "field.range", "h"),
        ({"e": "sgx"}, "field.range", "e"),
        ({"l": []}, "field.range", "l"),
        ({"l": {}}, "field.type", "l"),
        ({"o": []}, "field.type", "o"),
        ({"o": {}}, "field.missing", "o.x"),
        ({"o": {"x": -1}}, "field.range", "o.x"),
        ({"o": {"x": 1, "y": 2}}, "field.unknown", "o.y"),
        ({"new": 1}, "field.unknown", "new"),
    ],
)
def test_fields_refuses_and_names_the_member(change: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        read({**GOOD, **change})
    assert (caught.value.code, caught.value.field) == (code, field)


@pytest.mark.parametrize("name", list(GOOD))
def test_every_member_is_required(name: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        read({k: v for k, v in GOOD.items() if k != name})
    assert (caught.value.code, caught.value.field) == ("field.missing", name)


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_only_an_object_has_fields(value: object) -> None:
    assert refused(lambda: read(value)) == "field.type"


JSON_PIECES = (
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b'"a"', b'"\\ud800"', b'"\\u0061"', b"\\", b" ", b"\x00"),
    *(b"-0", b"1e9", b"1.5", b"9007199254740992", b"NaN", b"Infinity", b"true", b"null"),
    *(b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\xaf"),
)


@given(st.lists(st.sampled_from(JSON_PIECES), max_size=12).map(b"".join) | st.binary(max_size=40))
def test_any_bytes_are_one_value_or_refused_by_name(data: bytes) -> None:
    for floats in (False, True):
        try:
            value = parse_json_strict(data, max_bytes=200, max_depth=8, allow_floats=floats)
        except InvalidMessage:
            continue
        # What is accepted is what every reader takes it for: Python's own parser agrees.
        assert value == json.loads(data, parse_float=Decimal)
        if not floats:
            assert parse_canonical(canonical_json(value), max_bytes=2000) == value


@given(st.text(max_size=20).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)))
def test_text_has_exactly_one_canonical_form(text: str) -> None:
    data = canonical_json(text)
    escaped = json.dumps(text).encode()
    if escaped != data:
        assert refused(lambda: parse_canonical(escaped, max_bytes=1000)) == "encoding.not_canonical"
    assert refused(lambda: parse_canonical(data + b" ", max_bytes=1000)) == "encoding.not_canonical"


def test_normal_forms_are_different_texts_and_neither_is_changed() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert canonical_json({composed: 1, decomposed: 2}).count(b":") == 2
    assert parse_canonical(canonical_json(decomposed), max_bytes=100) == decomposed
    assert canonical_json(composed) != canonical_json(decomposed)
