"""The declarative codec: every statement survives JSON, and every refusal names the member without repeating what was sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.core.codec import (
    Address,
    Bytes32,
    ClockMap,
    Decimal64,
    Label,
    NetworkId,
    OptionalBytes32,
    UInt,
    UInt32,
    decode,
    encode,
)
from aos.core.encoding import MAX_INT, canonical_json, parse_canonical
from aos.errors import InvalidMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    TYPE: ClassVar[str] = "test.everything"
    V: ClassVar[int] = 1

    network: NetworkId
    who: Address
    digest: Bytes32
    maybe: OptionalBytes32
    count: UInt
    small: UInt32
    seed: Decimal64 | None
    engine: Label
    flag: bool
    clock: ClockMap
    tokens: tuple[UInt32, ...]


VALUES = st.builds(
    Everything,
    network=st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    who=st.binary(min_size=20, max_size=20).map(lambda b: "0x" + b.hex()),
    digest=st.binary(min_size=32, max_size=32),
    maybe=st.sampled_from([b"", bytes(32)]),
    count=st.integers(0, MAX_INT),
    small=st.integers(0, 2**32 - 1),
    seed=st.none() | st.integers(0, 2**64 - 1).map(str),
    engine=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/+:-]{0,127}", fullmatch=True),
    flag=st.booleans(),
    clock=st.dictionaries(st.integers(1, 2**31).map(str), st.integers(1, MAX_INT).map(str), max_size=4),
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple),
)
GOOD: dict[str, Any] = encode(
    Everything(
        network="net",
        who="0x" + "ab" * 20,
        digest=bytes(32),
        maybe=b"",
        count=MAX_INT,
        small=0,
        seed="18446744073709551615",
        engine="aos-canonical/1",
        flag=True,
        clock={"1": "2"},
        tokens=(1, 2),
    )
)


@given(VALUES)
def test_a_value_survives_its_canonical_bytes(value: Everything) -> None:
    data = canonical_json(encode(value))
    assert decode(Everything, parse_canonical(data, max_bytes=65536)) == value


@pytest.mark.parametrize(
    ("member", "value", "code"),
    [
        ("type", "test.Everything", "statement.type"),
        ("v", 2, "statement.version"),
        ("v", True, "statement.version"),
        ("network", "Net", "field.range"),
        ("network", "net\n", "field.range"),
        ("network", "", "field.range"),
        ("who", "0x" + "AB" * 20, "field.range"),
        ("who", "0x" + "ab" * 20 + "\n", "field.range"),
        ("who", "0x" + "\u0661" * 40, "field.range"),
        ("digest", "A" * 42 + "B", "field.type"),  # trailing bits
        ("digest", "A" * 43 + "=", "field.type"),
        ("digest", "A" * 44, "field.range"),
        ("digest", "+" + "A" * 42, "field.type"),
        ("maybe", "AA", "field.range"),
        ("count", MAX_INT + 1, "field.range"),
        ("count", -1, "field.range"),
        ("count", True, "field.type"),
        ("count", "1", "field.type"),
        ("small", 2**32, "field.range"),
        ("seed", "18446744073709551616", "field.range"),
        ("seed", "01", "field.range"),
        ("seed", "-1", "field.range"),
        ("seed", "1\n", "field.range"),
        ("seed", "\u0661", "field.range"),
        ("seed", 1, "field.type"),
        ("engine", "a b", "field.range"),
        ("flag", 1, "field.type"),
        ("clock", {"01": "1"}, "field.range"),
        ("clock", {"1": "0"}, "field.range"),
        ("clock", {"1": 1}, "field.range"),
        ("clock", {str(2**31 + 1): "1"}, "field.range"),
        ("clock", {"1": str(2**53)}, "field.range"),
        ("clock", [], "field.type"),
        ("tokens", {}, "field.type"),
        ("tokens", [1, True], "field.type"),
        ("tokens", [1] * 65537, "field.range"),
    ],
)
def test_a_bent_member_is_refused_by_name(member: str, value: Any, code: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode(Everything, {**GOOD, member: value})
    assert caught.value.code == code
    assert caught.value.field is not None
    assert caught.value.field.split("[")[0] == member


@pytest.mark.parametrize("member", GOOD)
def test_every_member_is_required(member: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode(Everything, {name: value for name, value in GOOD.items() if name != member})
    assert (caught.value.code, caught.value.field) == ("field.missing", member)


@settings(max_examples=50)
@given(st.text(min_size=1, max_size=200).filter(lambda name: name not in GOOD))
def test_an_unknown_member_cannot_write_on_the_readers_screen(name: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode(Everything, {**GOOD, name: 1})
    assert caught.value.code == "field.unknown"
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 150


@pytest.mark.parametrize("value", [None, [], "text", 1, True])
def test_only_an_object_is_decoded(value: Any) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode(Everything, value)
    assert caught.value.code == "field.type"
