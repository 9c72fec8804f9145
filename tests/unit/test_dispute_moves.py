"""Moves and transcripts as bytes: strict reading, sizes, and the page's tables member by member."""

from __future__ import annotations

import re
import typing
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from dispute_table import CHALLENGER, RULES, liar, sham
from hypothesis import given, settings
from hypothesis import strategies as st
from test_spec_members import form, listed

from aos.core.codec import MaxLength, encode
from aos.core.dispute.case import Case
from aos.core.dispute.court import Read
from aos.core.dispute.moves import (
    MAX_GAME_BYTES,
    Answer,
    Choose,
    Open,
    Proof,
    game_id,
    move_size,
    parse_move,
    read_move,
    split_hashes,
    turn_of,
)
from aos.core.dispute.rules import Rules
from aos.core.encoding import canonical_json, parse_json_strict
from aos.core.statements import sign
from aos.errors import AOSError, InvalidMessage

PAGE = (Path(__file__).resolve().parents[2] / "docs/spec/13-dispute.md").read_text("utf-8")
SIGNERS = {Open: "challenger", Answer: "claimant", Choose: "challenger", Proof: "claimant"}


def written_form(hint: Any) -> str:
    if (
        get_origin(hint) is Annotated
        and get_args(hint)[0] is bytes
        and isinstance(get_args(hint)[1], MaxLength)
    ):
        return f"≤ {get_args(hint)[1].limit} bytes"
    return form(hint)


def test_the_page_lists_every_move_member_by_member() -> None:
    rows = []
    for cls, signer in (*SIGNERS.items(), (Read, "reader")):
        hints = typing.get_type_hints(cls, include_extras=True)
        members = "; ".join(f"`{f.name}` {written_form(hints[f.name])}" for f in fields(cls))
        rows.append(f"| `{cls.TYPE}` {cls.V} | {signer} | {members} |")
    assert re.findall(r"^\| `aos\.dispute_\w+` \d .*\|$", PAGE, re.M) == rows


def test_the_page_lists_rules_case_and_transcript() -> None:
    found = re.search(r"`aos\.dispute_rules` 1: (\{.*?\})", PAGE)
    assert found is not None
    assert listed(found.group(1)) == [f.name for f in fields(Rules)]
    found = re.search(r"`case`: (\{.*?\})", PAGE)
    assert found is not None
    assert listed(found.group(1)) == [f.name for f in fields(Case)]


def every_move() -> list[Any]:
    table = liar()
    moves = [table.opening()]
    while table.game.mover is not None:
        move = table.next_move()
        moves.append(sign(CHALLENGER.secret, move))
        table.send(move)
    return moves


GENUINE = every_move()


@pytest.mark.parametrize("number", range(8))
def test_a_move_is_read_back_and_counts_its_canonical_bytes(number: int) -> None:
    move = GENUINE[number]
    data = canonical_json(move.to_json())
    assert parse_move(data) == move
    assert move_size(move) == len(data)
    assert turn_of(move.statement) == number
    assert game_id(move.statement) == game_id(GENUINE[0].statement)


def test_a_games_size_is_that_of_its_moves() -> None:
    table = liar().play()
    assert table.game.size == sum(map(move_size, GENUINE))  # sizes do not depend on the key
    assert table.game.size < MAX_GAME_BYTES


def changed(number: int, name: str, value: object) -> dict[str, Any]:
    pair: dict[str, Any] = GENUINE[number].to_json()
    return {**pair, "statement": {**pair["statement"], name: value}}


REFUSED: list[tuple[str, object]] = [
    ("dispute.move_type", None),
    ("dispute.move_type", []),
    ("dispute.move_type", {}),
    ("dispute.move_type", {"statement": {"type": ["aos.dispute_open"]}, "signature": ""}),
    ("dispute.move_type", changed(0, "type", "aos.receipt")),
    ("statement.version", changed(0, "v", 2)),
    ("statement.version", changed(0, "v", True)),
    ("field.unknown", changed(0, "more", 1)),
    ("field.unknown", {**GENUINE[0].to_json(), "at": 1}),
    ("field.missing", {"statement": GENUINE[0].to_json()["statement"]}),
    ("field.range", changed(0, "kind", "weights")),
    ("field.range", changed(0, "leaf", "AAAA")),
    ("field.range", changed(0, "bond", -1)),
    ("field.type", changed(0, "bond", "10")),
    ("field.range", changed(0, "position", 2**32)),
    ("field.range", changed(0, "challenger", "0x" + 40 * "A")),
    ("field.range", changed(1, "turn", 0)),
    ("field.range", changed(1, "turn", 8)),
    ("field.type", changed(1, "turn", True)),
    ("field.range", changed(1, "previous", "")),
    ("field.range", changed(1, "children", "A" * (4 * 2731))),
    ("field.type", changed(1, "children", "A=")),
    ("field.type", changed(1, "bounds", 5)),
    ("field.range", changed(2, "child", 256)),
    ("field.range", changed(2, "child", -1)),
    ("field.range", changed(7, "proof", "A" * (4 * 13654))),
]


@pytest.mark.parametrize(("code", "value"), REFUSED)
def test_a_malformed_move_is_refused_by_name(code: str, value: object) -> None:
    with pytest.raises(InvalidMessage) as caught:
        read_move(value)
    assert caught.value.code == code


BYTES: list[tuple[str, bytes]] = [
    ("encoding.too_large", b" " * (MAX_GAME_BYTES + 1)),
    ("encoding.syntax", b""),
    ("encoding.utf8", b"\xff"),
    ("encoding.depth", b"[" * 40),
    ("encoding.float", b'{"statement": 1.0}'),
    ("encoding.duplicate_key", b'{"statement": 1, "statement": 2}'),
]


@pytest.mark.parametrize(("code", "data"), BYTES)
def test_bytes_that_are_no_move_are_refused_by_name(code: str, data: bytes) -> None:
    with pytest.raises(InvalidMessage) as caught:
        parse_move(data)
    assert caught.value.code == code


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    with pytest.raises(AOSError):
        parse_move(data)


@given(st.data())
@settings(max_examples=100)
def test_a_move_with_one_byte_changed_is_refused_or_another_move(data: st.DataObject) -> None:
    move = data.draw(st.sampled_from(GENUINE))
    raw = bytearray(canonical_json(move.to_json()))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        other = parse_move(bytes(raw))
    except AOSError:
        return
    assert other != move or parse_json_strict(bytes(raw), max_bytes=MAX_GAME_BYTES) == encode(move)


def test_children_are_whole_hashes() -> None:
    assert split_hashes(bytes(64)) == (bytes(32), bytes(32))
    assert split_hashes(b"") == ()
    with pytest.raises(InvalidMessage, match="children_length"):
        split_hashes(bytes(33))


def test_one_challenger_has_one_game_about_one_claim() -> None:
    opening = GENUINE[0].statement
    table = sham(0)
    assert game_id(opening) == liar().game.id
    assert game_id(table.opening(kind="stop", leaf=b"").statement) == game_id(table.opening().statement)
    others = [
        table.opening(claim=bytes(32)).statement,
        table.opening(network="other").statement,
        table.opening(challenger="0x" + 40 * "0").statement,
    ]
    assert len({game_id(other) for other in [*others, table.opening().statement]}) == 4
    assert RULES.bond == 10
