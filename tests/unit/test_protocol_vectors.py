"""The vectors of sortition and of answer files; and of every file of protocol vectors, half must be refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from aos.core.codec import decode
from aos.core.encoding import canonical_json
from aos.core.receipt import verify_answer
from aos.core.sortition import (
    OperatorRange,
    fill_seats,
    is_selected,
    seat_order,
    threshold,
    validate_ranges,
)
from aos.core.trust import Trust, load_policy
from aos.errors import AOSError

VECTORS = Path(__file__).resolve().parents[2] / "vectors/aos"
SORTITION = json.loads((VECTORS / "sortition/sortition.json").read_text())
ANSWERS = json.loads((VECTORS / "receipt/answers.json").read_text())
TRUST = decode(Trust, ANSWERS["trust"])
SEED = bytes(range(64))


def threshold_of(case: dict[str, Any]) -> object:
    return threshold(case["width"], case["max_range"], case["percent"])


def selected(case: dict[str, Any]) -> object:
    return is_selected(bytes.fromhex(case["beta"]), case["threshold"], case["max_range"])


def filled(case: dict[str, Any]) -> object:
    seed = bytes.fromhex(case["draw_seed"]) if "draw_seed" in case else SEED
    candidates = [(name, width) for name, width in case["candidates"]]
    return fill_seats(seed, case["attempt"], candidates, case["excluded"], case["wanted"])


def ordered(case: dict[str, Any]) -> object:
    return seat_order(SEED, case["attempt"], case["nodes"])


def ranged(case: dict[str, Any]) -> object:
    ranges = [OperatorRange(node_id=name, start=start, end=end) for name, start, end in case["ranges"]]
    return validate_ranges(ranges, case["max_range"])


SECTIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "threshold": threshold_of,
    "selected": selected,
    "fill": filled,
    "order": ordered,
    "ranges": ranged,
}


@pytest.mark.parametrize(
    ("section", "number"), [(name, n) for name in SECTIONS for n in range(len(SORTITION[name]))]
)
def test_sortition_vectors(section: str, number: int) -> None:
    case = SORTITION[section][number]
    if case["error"] is None:
        assert SECTIONS[section](case) == case["result"]
    else:
        with pytest.raises(AOSError) as caught:
            SECTIONS[section](case)
        assert caught.value.code == case["error"]


def changed(document: Any, changes: list[Any]) -> Any:
    copy = deepcopy(document)
    for path, value in changes:
        place = copy
        for step in path[:-1]:
            place = place[step]
        if value == {"absent": True}:
            del place[path[-1]]
        else:
            place[path[-1]] = value
    return copy


@pytest.mark.parametrize("case", ANSWERS["cases"], ids=lambda case: case["name"])
def test_answer_file_vectors(case: dict[str, Any]) -> None:
    text = ANSWERS["files"][case["file"]]
    data = canonical_json(changed(json.loads(text), case["changes"]))
    report = verify_answer(data, trust=TRUST, policy=load_policy(case["policy"]))
    assert (report.verdict, list(report.levels)) == (case["verdict"], case["levels"])
    if case["check"] is None:
        assert data.decode() == text or case["changes"]
    else:
        check = next(check for check in report.checks if check.id == case["check"])
        assert (check.status, check.code) == ("FAIL", case["error"])


def cases_of(path: Path) -> Iterator[dict[str, Any]]:
    for value in json.loads(path.read_text("utf-8")).values():
        if isinstance(value, list):
            yield from (case for case in value if isinstance(case, dict))


@pytest.mark.parametrize(
    "path",
    sorted(
        path
        for path in VECTORS.rglob("*.json")
        if path.parent.name not in ("engine", "attest") and path.stem not in ("trace", "chain", "elements")
    ),
    ids=lambda path: path.stem,
)
def test_at_least_half_of_the_cases_are_refusals_with_a_named_code(path: Path) -> None:
    cases = list(cases_of(path))
    refusals = [case for case in cases if case.get("error") or case.get("holds") is False]
    assert cases
    assert all(
        "holds" in case or (isinstance(case["error"], str) and "." in case["error"]) for case in refusals
    )
    assert 2 * len(refusals) >= len(cases), f"{len(refusals)} of {len(cases)}"


def test_most_proofs_of_an_element_are_refused_with_a_contracts_code() -> None:
    units = json.loads((VECTORS / "dispute" / "elements.json").read_text("utf-8"))["units"]
    cases = [case for unit in units for case in unit["cases"]]
    codes = [fault for case in cases for _, fault in case.get("flipped", [])]
    codes += [case[name] for case in cases for name in ("fault", "shorter", "longer") if name in case]
    assert 2 * sum(code != 0 for code in codes) >= len(codes)


def test_most_proofs_of_a_trace_are_refused_with_a_named_code() -> None:
    units = json.loads((VECTORS / "dispute" / "trace.json").read_text("utf-8"))["units"]
    good = [proof for unit in units for proof in unit["proofs"]]
    codes = [code for proof in good for _, code in proof["refused"]]
    codes += [lie["code"] for unit in units for lie in unit["lies"]]
    assert len(codes) > 2 * len(good)
    assert all(code.startswith(("tile.", "state.")) for code in codes)
