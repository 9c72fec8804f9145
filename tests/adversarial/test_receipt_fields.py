"""Every member of a genuine answer file is bound: dropped, retyped, doubled, added, reordered or changed, it is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from logged_run import TestLog
from simulated_run import Network

from aos.core.answer import write_answer
from aos.core.encoding import canonical_json
from aos.core.receipt import verify_answer
from aos.core.trust import load_policy

NETWORK = Network()
LOG = TestLog(NETWORK)
TRUST = LOG.trust()
POLICY = load_policy("dev")
WITH_LOG = replace(POLICY, required=(*POLICY.required, "log-1", "witness-1"))
GENUINE = {
    "opml": write_answer(NETWORK.run()),
    "tee": write_answer(NETWORK.run(job_type="tee")),
    "retried": write_answer(NETWORK.run(attempt=2, min_operators=1)),
    "logged": write_answer(LOG.logged(NETWORK.run(min_operators=1))),
}
POLICIES = {name: WITH_LOG if name == "logged" else POLICY for name in GENUINE}
# Members that are in every file are looped over in one: the other two add what only they have.
ONLY_IN: dict[str, tuple[tuple[str, ...], ...]] = {
    "opml": ((),),
    "tee": (("evidence",), ("receipt", "core")),
    "retried": (("draw", "first_draw"), ("receipt", "core"), ("peers",)),
    "logged": (("log",), ("acceptance",), ("receipt", "countersign"), ("receipt", "countersign_signature")),
}
OTHER_WORDS: dict[str, tuple[str, ...]] = {
    "answer": ("decline",),
    "beacon_source": ("chain",),
    "dispatcher": (NETWORK.operators[0].node_id,),
    "finish_reason": ("length", "numeric_trap"),
    "job_type": ("tee", "opml"),
    "network": ("other",),
    "nonce_source": ("dispatcher",),
    "outcome": ("single", "disputed", "agreed"),
    "position": ("before", "after"),
    "reason": ("capacity",),
    "role": ("executor", "checker", "blind"),
    "seed_source": ("request",),
    "status": ("selected", "not_selected", "filled", "declined", "unanswered", "ineligible"),
    "tag": ("suspicion", "malicious", "opml", "tee"),
    "tee": ("simulated", "nitro", ""),
}
Path = tuple[str | int, ...]


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    yield path, value
    if isinstance(value, dict):
        for name, item in value.items():
            yield from walk(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from walk(item, (*path, index))


def members(name: str) -> Iterator[tuple[Path, Any]]:
    """Every path below the root that this file's tests change, with its value."""
    for path, value in walk(json.loads(GENUINE[name])):
        if path and any(path[: len(start)] == start for start in ONLY_IN[name]):
            yield path, value


def at(document: Any, path: Path) -> Any:
    for step in path:
        document = document[step]
    return document


def changed(document: Any, path: Path, change: Callable[[Any, Any], None]) -> bytes:
    """Canonical bytes of a copy in which ``change(container, key)`` was made to the last step of ``path``."""
    copy = deepcopy(document)
    change(at(copy, path[:-1]), path[-1])
    return canonical_json(copy)


def refused(name: str, data: bytes) -> bool:
    """True where the file is not verified and some check says why, by a code or by having been skipped."""
    report = verify_answer(data, trust=TRUST, policy=POLICIES[name])
    named = any(check.status == "FAIL" and check.code for check in report.checks)
    return report.exit_code != 0 and (named or bool(report.missing))


def put(value: Any) -> Callable[[Any, Any], None]:
    def change(container: Any, key: Any) -> None:
        container[key] = value

    return change


def drop(container: Any, key: Any) -> None:
    del container[key]


def other_values(path: Path, value: Any) -> Iterator[Any]:
    """Other values of the same type, well-formed wherever that is easy."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
        if value:
            yield value - 1
    elif isinstance(value, str):
        words = OTHER_WORDS.get(str(path[-1]), ())
        yield from (word for word in words if word != value)
        if not value:
            yield "A" * 43
        elif value[2:3] and value.startswith("0x"):
            yield value[:-1] + ("0" if value[-1] != "0" else "1")
        elif value.isdigit():
            yield str(int(value) + 1)
        else:
            yield ("B" if value[0] != "B" else "C") + value[1:]
            yield ""
    elif isinstance(value, list):
        if len(value) > 1 and value != value[::-1]:
            yield value[::-1]
        if value:
            yield value[1:]
            yield [*value, value[0]]
    elif isinstance(value, dict) and value and path[-1] == "clock":
        yield {node: count for node, count in value.items() if node != "1"}


def survivors(name: str, cases: Iterator[tuple[str, bytes]]) -> list[str]:
    found, count = [], 0
    for label, data in cases:
        count += 1
        if data != GENUINE[name] and not refused(name, data):
            found.append(label)
    assert count > 20
    return found


@pytest.mark.parametrize("name", GENUINE)
def test_the_genuine_file_is_accepted(name: str) -> None:
    assert verify_answer(GENUINE[name], trust=TRUST, policy=POLICIES[name]).verdict == "VERIFIED"


@pytest.mark.parametrize("name", GENUINE)
def test_a_dropped_member_is_refused(name: str) -> None:
    document = json.loads(GENUINE[name])
    paths = [path for path, _ in members(name) if isinstance(path[-1], str) and "clock" not in path[:-1]]
    assert survivors(name, ((str(path), changed(document, path, drop)) for path in paths)) == []


@pytest.mark.parametrize("name", GENUINE)
def test_a_retyped_member_is_refused(name: str) -> None:
    document = json.loads(GENUINE[name])

    def cases() -> Iterator[tuple[str, bytes]]:
        for path, value in members(name):
            for wrong in (None, True, 7, "7", [], {}, [value], {"value": value}):
                if type(wrong) is not type(value) or isinstance(wrong, list | dict):
                    yield f"{path} = {wrong!r:.40}", changed(document, path, put(wrong))

    assert survivors(name, cases()) == []


@pytest.mark.parametrize("name", GENUINE)
def test_a_changed_value_is_refused(name: str) -> None:
    document = json.loads(GENUINE[name])

    def cases() -> Iterator[tuple[str, bytes]]:
        for path, value in members(name):
            for other in other_values(path, value):
                yield f"{path} = {other!r:.40}", changed(document, path, put(other))

    assert survivors(name, cases()) == []


@pytest.mark.parametrize("name", GENUINE)
def test_an_added_member_is_refused(name: str) -> None:
    document = json.loads(GENUINE[name])

    def cases() -> Iterator[tuple[str, bytes]]:
        for path, value in [((), document), *members(name)]:
            if isinstance(value, dict):
                for extra in ("zzz", "note", "verified", "9999999"):
                    yield f"{path} + {extra}", changed(document, (*path, extra), put("1"))

    assert survivors(name, cases()) == []


def doubled(value: Any, path: Path, name: str) -> bytes:
    """The document with member ``name`` of the object at ``path`` written twice."""
    if isinstance(value, dict):
        parts = []
        for key in sorted(value):
            rest = path[1:] if path and path[0] == key else ("\0",)
            text = canonical_json(key) + b":" + doubled(value[key], rest, name)
            parts.append(text)
            if not path and key == name:
                parts.append(text)
        return b"{" + b",".join(parts) + b"}"
    if isinstance(value, list):
        items = [
            doubled(item, path[1:] if path and path[0] == index else ("\0",), name)
            for index, item in enumerate(value)
        ]
        return b"[" + b",".join(items) + b"]"
    return canonical_json(value)


def test_a_member_written_twice_is_refused() -> None:
    document = json.loads(GENUINE["opml"])
    assert doubled(document, ("\0",), "") == GENUINE["opml"]
    paths = [path for path, value in walk(document) if path and isinstance(path[-1], str)]
    cases = ((str(path), doubled(document, path[:-1], str(path[-1]))) for path in paths)
    assert survivors("opml", cases) == []


@pytest.mark.parametrize(
    ("damage", "code", "exit_code"),
    [
        (lambda data: data[:-1], "encoding.syntax", 12),
        (lambda data: data[: len(data) // 2], "encoding.syntax", 12),
        (lambda data: b"", "encoding.syntax", 12),
        (lambda data: data + b"\n", "encoding.not_canonical", 10),
        (lambda data: b" " + data, "encoding.not_canonical", 10),
        (lambda data: b"\xef\xbb\xbf" + data, "encoding.bom", 12),
        (lambda data: data.replace(b'"v":1', b'"v":1.0', 1), "encoding.float", 12),
        (lambda data: b"[" * 100_000, "encoding.depth", 12),
        (lambda data: data + b" " * (9 << 20), "encoding.too_large", 12),
        (
            lambda data: data.replace(b'"type":"aos.answer","v":1', b'"type":"aos.answer","v":2'),
            "statement.version",
            12,
        ),
        (
            lambda data: data.replace(b'"type":"aos.answer","v":1', b'"type":"aos.answer","v":0'),
            "statement.version",
            12,
        ),
        (lambda data: data.replace(b'"aos.receipt"', b'"aos.receipT"', 1), "statement.type", 12),
        (lambda data: json.dumps(json.loads(data)).encode(), "encoding.not_canonical", 10),
        (lambda data: json.dumps(json.loads(data), indent=1).encode(), "encoding.not_canonical", 10),
    ],
)
def test_damaged_bytes_are_refused_by_name(
    damage: Callable[[bytes], bytes], code: str, exit_code: int
) -> None:
    report = verify_answer(damage(GENUINE["opml"]), trust=TRUST, policy=POLICY)
    assert [(check.id, check.code) for check in report.checks] == [("file-1", code)]
    assert report.exit_code == exit_code
