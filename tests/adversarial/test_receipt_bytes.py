"""Any byte of a valid answer file, and any value in it, changed at random: refused, and never by a crash."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from logged_run import TestLog
from simulated_run import Network

from aos.core.answer import write_answer
from aos.core.encoding import canonical_json
from aos.core.receipt import verify_answer
from aos.core.report import EXIT_CODES
from aos.core.trust import load_policy
from aos.errors import InvalidMessage

NETWORK = Network()
LOG = TestLog(NETWORK)
TRUST = LOG.trust()
DEV = load_policy("dev")
POLICY = replace(DEV, required=(*DEV.required, "log-1", "witness-1"))
FILES = {
    "opml": write_answer(LOG.logged(NETWORK.run(min_operators=2))),
    "tee": write_answer(LOG.logged(NETWORK.run(job_type="tee"))),
}
BOUNDED = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def refused(data: bytes) -> bool:
    report = verify_answer(data, trust=TRUST, policy=POLICY)
    assert report.exit_code == EXIT_CODES[report.verdict]
    assert not report.levels or report.verdict == "PARTIAL"
    assert report.missing or any(check.code for check in report.checks if check.status == "FAIL")
    return report.exit_code in (10, 11, 12)


@pytest.mark.parametrize("name", FILES)
def test_the_unchanged_file_is_accepted(name: str) -> None:
    assert verify_answer(FILES[name], trust=TRUST, policy=POLICY).exit_code == 0


@pytest.mark.parametrize("name", FILES)
@BOUNDED
@given(position=st.integers(0, 2**20), change=st.integers(1, 255))
@example(position=0, change=1)
def test_any_changed_byte_is_refused(name: str, position: int, change: int) -> None:
    data = bytearray(FILES[name])
    data[position % len(data)] ^= change
    assert refused(bytes(data))


@pytest.mark.parametrize("name", FILES)
@BOUNDED
@given(position=st.integers(0, 2**20), byte=st.integers(0, 255), insert=st.booleans())
def test_any_byte_put_in_or_taken_out_is_refused(name: str, position: int, byte: int, insert: bool) -> None:
    data = bytearray(FILES[name])
    at = position % len(data)
    if insert:
        data.insert(at, byte)
    else:
        del data[at]
    assert refused(bytes(data))


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(leaf for key, item in items for leaf in leaves(item, (*path, key)))]


DOCUMENTS = {name: json.loads(data) for name, data in FILES.items()}
PATHS = {name: leaves(document) for name, document in DOCUMENTS.items()}
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.sampled_from(
        ["", "A" * 43, "0x" + "0" * 40, "1", "0", "18446744073709551615", "opml", "tee", "\u0000"]
    )
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("name", FILES)
@BOUNDED
@given(pick=st.integers(0, 2**20), value=ANY_JSON)
def test_any_value_in_any_place_is_judged_and_not_accepted(name: str, pick: int, value: Any) -> None:
    document = deepcopy(DOCUMENTS[name])
    *path, last = PATHS[name][pick % len(PATHS[name])]
    place = document
    for step in path:
        place = place[step]
    if place[last] == value and type(place[last]) is type(value):
        return
    place[last] = value
    try:
        data = canonical_json(document)
    except InvalidMessage:  # a lone surrogate
        return
    assert refused(data)


def test_a_twin_in_another_normal_form_is_another_text() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    data = write_answer(NETWORK.run(min_operators=1, prompt=composed))
    twin = data.replace(composed.encode(), decomposed.encode())
    assert twin != data
    assert all(check.status != "FAIL" for check in verify_answer(data, trust=TRUST, policy=POLICY).checks)
    report = verify_answer(twin, trust=TRUST, policy=POLICY)
    assert next(check.code for check in report.checks if check.status == "FAIL") == "io.request_hash"
