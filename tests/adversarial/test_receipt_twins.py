"""What a change is refused as, not only that it is: own codes for form, twins, downgrades, splices, replays, other signers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from test_receipt_fields import GENUINE, NETWORK, POLICY, TRUST, Path, at, changed, drop, members, put, walk

from aos.core.answer import Answer, read_answer, write_answer
from aos.core.encoding import canonical_json
from aos.core.receipt import verify_answer
from aos.core.report import Report
from aos.core.statements import sign


def judged(data: bytes) -> Report:
    return verify_answer(data, trust=TRUST, policy=POLICY)


def code_of(data: bytes) -> str:
    """The code of the first check that failed; empty where none did."""
    report = judged(data)
    assert report.verdict != "VERIFIED"
    return next((check.code for check in report.checks if check.status == "FAIL"), "")


def named(name: str) -> Iterator[tuple[Path, Any]]:
    """Members by name, without those of clocks, which are numbers of nodes and not names."""
    for path, value in members(name):
        if isinstance(path[-1], str) and "clock" not in path[:-1]:
            yield path, value


@pytest.mark.parametrize("name", GENUINE)
def test_a_dropped_and_an_added_member_are_named(name: str) -> None:
    document = json.loads(GENUINE[name])
    for path, value in named(name):
        where = ".".join(map(str, path))
        if path != ("log",):  # left out where there is none
            report = judged(changed(document, path, drop))
            assert report.checks[0].code == "field.missing", where
            assert str(path[-1]) in report.checks[0].text
        if isinstance(value, dict) and path[-1] != "clock":
            report = judged(changed(document, (*path, "more"), put("1")))
            assert (report.checks[0].code, "more" in report.checks[0].text) == ("field.unknown", True), where


@pytest.mark.parametrize("name", GENUINE)
def test_a_retyped_member_is_refused_as_its_type_or_range(name: str) -> None:
    document = json.loads(GENUINE[name])
    allowed = {"field.type", "field.range", "field.missing", "statement.type", "statement.version"}
    for number, (path, value) in enumerate(named(name)):
        for wrong in ((None, 7, {}), (False, "7", []))[number % 2]:
            # Null is the other value of a member that may be absent, and no change of type.
            optional = value is None or (wrong is None and path[-1] in ("claim", "first_draw", "evidence"))
            if not optional and type(wrong) is not type(value):
                assert judged(changed(document, path, put(wrong))).checks[0].code in allowed, (path, wrong)


def reordered(value: Any, path: Path) -> bytes:
    """Canonical but for the object at ``path``, whose members are written backwards."""
    if isinstance(value, dict):
        names = sorted(value, reverse=path == ())
        rest = {name: path[1:] if path and path[0] == name else ("\0",) for name in names}
        return b"{" + b",".join(canonical_json(n) + b":" + reordered(value[n], rest[n]) for n in names) + b"}"
    if isinstance(value, list):
        steps = (path[1:] if path and path[0] == index else ("\0",) for index in range(len(value)))
        return b"[" + b",".join(reordered(item, step) for item, step in zip(value, steps, strict=True)) + b"]"
    return canonical_json(value)


def test_members_in_another_order_are_refused_wherever_they_are() -> None:
    document = json.loads(GENUINE["opml"])
    assert reordered(document, ("\0",)) == GENUINE["opml"]
    objects = [path for path, value in walk(document) if isinstance(value, dict) and len(value) > 1]
    assert len(objects) > 30
    for path in objects:
        assert code_of(reordered(document, path)) == "encoding.not_canonical", path


NUMBER_TWINS = {
    "{}.0": "encoding.float",
    "{}e0": "encoding.float",
    "{}E+0": "encoding.float",
    "{}0e-1": "encoding.float",
    "0{}": "encoding.syntax",
    "+{}": "encoding.syntax",
    " {}": "encoding.not_canonical",
    "{} ": "encoding.not_canonical",
    "-0": "encoding.number",
    "1" + "0" * 16: "encoding.integer_range",
    "0x{}": "encoding.syntax",
    "NaN": "encoding.nan",
    "-Infinity": "encoding.nan",
}


@pytest.mark.parametrize("form", NUMBER_TWINS)
def test_a_number_in_another_form_is_refused_wherever_it_is(form: str) -> None:
    data = GENUINE["opml"].decode()
    found = list(re.finditer(r'(?<=":)[1-9]\d*(?=[,}])', data))
    assert len(found) > 40
    for match in found[::4]:
        twin = data[: match.start()] + form.format(match[0]) + data[match.end() :]
        assert code_of(twin.encode()) == NUMBER_TWINS[form], (form, match)


TEXT_TWINS = {
    "an escape": (lambda letter: f"\\u{ord(letter):04x}", {"encoding.not_canonical"}),
    "full width": (lambda letter: chr(ord(letter) + 0xFEE0), {"field.range", "field.type", "statement.type"}),
    "followed by a joiner": (
        lambda letter: letter + "\u200d",
        {"field.range", "field.type", "statement.type"},
    ),
    "followed by an accent": (
        lambda letter: letter + "\u0301",
        {"field.range", "field.type", "statement.type"},
    ),
}
FREE_TEXT = {"text": {"io.response_hash"}, "request": {"io.request_hash", "field.range"}}


@pytest.mark.parametrize("twin", TEXT_TWINS)
def test_a_text_that_looks_alike_is_refused_wherever_it_is(twin: str) -> None:
    other, codes = TEXT_TWINS[twin]
    data = GENUINE["opml"]
    seen = 0
    for path, value in walk(json.loads(data)):
        if not isinstance(value, str) or not value or value[0] in '{"\\' or path[0] in ("peers", "draw"):
            continue
        seen += 1
        found = code_of(put_text(data, path, other(value[0]) + json.dumps(value, ensure_ascii=False)[2:-1]))
        free = FREE_TEXT.get(str(path[-1]), set())
        assert found in codes | (free if twin != "an escape" else set()), (path, found)
    assert seen > 60


def put_text(data: bytes, path: Path, inner: str) -> bytes:
    """``data`` with ``inner`` between the quotes of the text at ``path``, as it stands."""
    document = json.loads(data)
    marked = changed(document, path, put("@here@"))
    assert marked.count(b'"@here@"') == 1
    return marked.replace(b'"@here@"', f'"{inner}"'.encode())


def test_every_version_and_type_is_the_only_one() -> None:
    for name in GENUINE:
        document = json.loads(GENUINE[name])
        versioned = [path for path, value in members(name) if isinstance(value, dict) and "v" in value]
        if name == "opml":
            versioned.append(())
        assert versioned
        for path in versioned:
            version = at(document, path)["v"]
            for wrong in (0, version - 1, version + 1, str(version), True, None):
                assert code_of(changed(document, (*path, "v"), put(wrong))) == "statement.version", (
                    path,
                    wrong,
                )
            for wrong in ("aos.other", "AOS.receipt", "", None, 1):
                assert code_of(changed(document, (*path, "type"), put(wrong))) == "statement.type", path


@cache
def other_run() -> dict[str, Any]:
    """A genuine answer of another job of the same network."""
    answer = NETWORK.run(job="another job", prompt="What else?")
    assert judged(write_answer(answer)).verdict == "VERIFIED"
    found: dict[str, Any] = json.loads(write_answer(answer))
    return found


def test_any_part_of_another_receipt_is_refused_in_its_place() -> None:
    """A splice: every object, list and digest of one genuine file in the place that it has in the other."""
    document, other = json.loads(GENUINE["opml"]), other_run()
    splices = 0
    for path, value in walk(document):
        if not path or "clock" in path[:-1]:
            continue
        try:
            theirs = at(other, path)
        except (KeyError, IndexError):
            continue
        if theirs == value or type(theirs) is not type(value):
            continue
        splices += 1
        report = judged(changed(document, path, put(deepcopy(theirs))))
        assert report.verdict != "VERIFIED", path
        assert any(check.status == "FAIL" and check.code for check in report.checks), path
    assert splices > 100


def test_an_answer_is_not_one_to_another_request() -> None:
    """A replay: everything of one job under another's request, nonce and acceptance."""
    replayed = json.loads(GENUINE["opml"]) | {
        name: other_run()[name] for name in ("request", "nonce", "acceptance")
    }
    assert code_of(canonical_json(replayed)) == "io.request_hash"


def signed_by(answer: Answer, name: str, *, renamed: bool) -> bytes:
    """The receipt signed anew by another operator, which names itself or leaves the name."""
    stranger = next(operator for operator in NETWORK.operators if operator.name == name)
    core = replace(answer.receipt.core, operator=stranger.node_id) if renamed else answer.receipt.core
    pair = sign(stranger.key, core)
    return write_answer(replace(answer, receipt=replace(answer.receipt, core=core, signature=pair.signature)))


def test_another_operator_cannot_sign_in_its_place() -> None:
    answer = read_answer(GENUINE["opml"])
    seats = answer.draw.draw_record.statement.seats
    others = [operator for operator in NETWORK.operators if operator.node_id != answer.receipt.core.operator]
    assert any(operator.node_id in seats for operator in others)
    for operator in others:
        assert code_of(signed_by(answer, operator.name, renamed=False)) == "signature.wrong_signer"
        assert code_of(signed_by(answer, operator.name, renamed=True)) in (
            "receipt.countersign",
            "file.openings",
        )
