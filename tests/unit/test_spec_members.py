"""The specification lists every member of every statement, and the code has exactly these."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from aos.core import answer, draw_document, encoding, envelope, statements, trust
from aos.core.codec import DecimalText, Length, MaxLength, Pattern, Range
from aos.core.receipt import CHECKS

SPEC = Path(__file__).resolve().parents[2] / "docs/spec"
SIGNERS = {
    "Acceptance": "D",
    "Snapshot": "D",
    "DrawCall": "D",
    "VrfClaim": "O",
    "DrawRecord": "D",
    "Chunk": "O",
    "Commit": "O",
    "CommitAck": "D",
    "CommitSet": "D",
    "ReceiptCore": "O",
    "Countersign": "D",
    "Connect": "O",
    "Registration": "O",
}
NAMED = {
    r"0x[0-9a-f]{40}": "address",
    r"[a-z0-9][a-z0-9-]{0,62}": "network id",
    r"[A-Za-z0-9][A-Za-z0-9._/+:-]{0,127}": "label",
}


def number(value: int) -> str:
    return {2**53 - 1: "2^53−1", 2**32 - 1: "2^32−1", 2**31: "2^31"}.get(value, str(value))


def form(hint: Any) -> str:
    """How the specification writes the form of a member."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, mark = get_args(hint)
        if isinstance(mark, Length):
            return " or ".join(
                "empty" if n == 0 else f"{n} bytes" for n in sorted(mark.allowed, reverse=True)
            )
        if isinstance(mark, Pattern):
            return NAMED[mark.expression]
        if isinstance(mark, DecimalText):
            return "u64 text"
        if isinstance(mark, Range):
            return f"{mark.low} … {number(mark.high)}"
        assert isinstance(mark, MaxLength)
        if base is str:
            return f"text ≤ {mark.limit}"
        if get_origin(base) is dict:
            return "clock"
        return f"≤ {mark.limit} × {form(get_args(base)[0])}"
    if origin is Literal:
        return "/".join(f'"{value}"' for value in get_args(hint))
    if origin in (typing.Union, UnionType):
        inner = [option for option in get_args(hint) if option is not type(None)]
        return " or ".join([*map(form, inner), *(["null"] if type(None) in get_args(hint) else [])])
    if hint is bool:
        return "boolean"
    assert dataclasses.is_dataclass(hint)
    return hint.__name__


def rows() -> list[str]:
    """The table of docs/spec/06-network.md, "Statements", as it follows from the code."""
    lines = []
    for name, cls in vars(statements).items():
        if name in ("Signed", "_Pair") or not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            continue
        if cls.__module__ != statements.__name__:
            continue
        hints = typing.get_type_hints(cls, include_extras=True)
        members = "; ".join(f"`{field.name}` {form(hints[field.name])}" for field in dataclasses.fields(cls))
        kind = f"`{cls.TYPE}` {cls.V}" if hasattr(cls, "TYPE") else name
        lines.append(f"| {kind} | {SIGNERS.get(name, '')} | {members} |")
    return lines


def section(page: str, title: str) -> str:
    text = (SPEC / page).read_text("utf-8")
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"{page} has no section {title!r}"
    return found.group(1)


def test_every_statement_is_in_the_specification_member_by_member() -> None:
    written = [line for line in section("06-network.md", "Statements").splitlines() if line.startswith("| ")]
    assert written[1:] == rows()  # the first is the table's head


def names(cls: type) -> list[str]:
    assert dataclasses.is_dataclass(cls)
    return [field.name for field in dataclasses.fields(cls)]


def listed(text: str) -> list[str]:
    """Member names of ``{a, b: what it is, c}``: what stands before a colon or comma, at the top level."""
    found, depth, word = [], 0, ""
    for character in text.strip().removeprefix("{").removesuffix("}") + ",":
        if character == "," and depth == 0:
            found.append(word.split(":", maxsplit=1)[0].strip().strip('"'))
            word = ""
            continue
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(character, 0)
        word += character
    return found


def braces(text: str, start: str) -> str:
    """The first balanced ``{…}`` behind ``start``."""
    begin = text.index("{", text.index(start))
    depth = 0
    for index in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[begin : index + 1]
    raise AssertionError(f"unbalanced braces behind {start!r}")


def test_the_answer_file_has_the_members_of_the_specification() -> None:
    text = section("08-receipts.md", "Answer file (`.aos`)")
    top = [name for row in re.findall(r"^\| (`.*?`) \|", text, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert top == names(answer.Answer)
    assert listed(braces(text, "| `receipt` |")) == names(answer.Receipt)
    assert listed(braces(text, "| `draw` |")) == names(answer.DrawPart)
    assert listed(braces(text, "entries: [")) == names(answer.DrawnOperator)
    assert listed(braces(text, "| `commit` |")) == names(answer.CommitPart)
    assert listed(braces(text, "openings: [")) == names(answer.Opening)


def test_trust_files_and_policies_have_the_members_of_the_specification() -> None:
    text = section("08-receipts.md", "Trust file")
    assert listed(braces(text, "JSON:"))[2:] == names(trust.Trust)
    assert listed(braces(text, '"dispatchers": [')) == names(trust.TrustedDispatcher)
    assert listed(braces(text, '"beacon":')) == names(trust.TrustedBeacon)
    assert listed(braces(text, '"tee_roots": [')) == names(trust.TrustedTeeRoot)
    assert listed(braces(text, '"tee_measurements": [')) == names(trust.TeeMeasurement)
    assert listed(braces(text, "Policies are")) == names(trust.Policy)


def test_the_checks_are_those_of_the_specification_in_its_order() -> None:
    text = section("08-receipts.md", "Checks, in order")
    assert re.findall(r"^\| `([a-z]+-\d)` \|", text, re.M) == [name for name, _ in CHECKS]


def test_draw_documents_and_snapshot_entries_have_the_members_of_the_specification() -> None:
    text = section("04-sortition.md", "Draw document")
    assert listed(braces(text, "public:")) == names(draw_document.DrawDocument)
    assert listed(braces(text, '"attempts": [')) == names(draw_document.DrawnAttempt)
    assert listed(braces(text, '"tag_opening": null or')) == names(draw_document.TagOpening)
    registry = section("04-sortition.md", "Registry snapshot")
    assert listed(braces(registry, "An entry is")) == names(statements.SnapshotEntry)


def test_the_link_header_has_the_members_of_the_specification() -> None:
    text = (SPEC / "02-signing.md").read_text("utf-8")
    table = text[text.index("| member | value |") :]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(envelope._HEADER)


@pytest.mark.parametrize("number", [16, 64])
def test_limits_that_are_written_are_those_of_the_code(number: int) -> None:
    text = (SPEC / "01-encoding.md").read_text("utf-8")
    assert {16: encoding.MAX_DEPTH, 64: encoding._MAX_NUMBER_CHARS}[number] == number
    assert {16: "at most 16 deep", 64: "more than 64 characters"}[number] in text
