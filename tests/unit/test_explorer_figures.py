"""The explorer's numbers and plots, from rows by hand."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.core.encoding import b64u_encode
from aos.core.statements import SnapshotEntry
from aos.dispatcher.ui import figures, pages, plots

MODEL_ID = b"\3" * 32
A, B = "0x" + "0a" * 20, "0x" + "0b" * 20


def entry(node_id: str, node: int, start: int, end: int, **changes: Any) -> SnapshotEntry:
    members: dict[str, Any] = {
        "node_id": node_id,
        "node": node,
        "vrf_key": bytes([node]) * 32,
        "start": start,
        "end": end,
        "stake": 0,
        "job_types": ("opml",),
        "models": (MODEL_ID,),
        "since_epoch": 0,
    }
    return SnapshotEntry(**(members | changes))


def drawn(a: str, b: str, /, *, seats: list[str], tag: str = "", **standings: str) -> dict[str, Any]:
    call = {"job_type": "opml", "model_id": b64u_encode(MODEL_ID), "epoch": 5}
    return {
        "snapshot_epoch": 5,
        "draw_call": json.dumps({"statement": call}),
        "draw_record": json.dumps({"statement": {"seats": seats}}),
        "entries": json.dumps([{"node_id": A, "status": a}, {"node_id": B, "status": b}]),
        "tag": tag,
        "position": "",
        "standings": json.dumps({A: standings.get("a", "revealed"), B: standings.get("b", "revealed")}),
    }


def test_selected_against_expected_by_hand() -> None:
    rows = [
        drawn("selected", "not_selected", seats=[A]),
        drawn("not_selected", "declined", seats=[A]),  # filled; a decline is no answered draw
        drawn("selected", "selected", seats=[A, B], tag="suspicion", b="withheld"),
        drawn("unanswered", "selected", seats=[B]),
    ]
    entries = [entry(A, 2, 0, 100_000), entry(B, 3, 100_000, 110_000)]
    found = figures.tallies(rows, lambda _: entries, 1_000_000)
    a, b = found[A], found[B]
    assert (a.eligible, a.answered, a.selected, a.seated) == (4, 3, 2, 3)
    assert a.expected == 100_000 + 100_000 + (100_000 + 60_000)
    assert (b.eligible, b.answered, b.selected, b.seated) == (4, 3, 2, 2)
    assert b.expected == 10_000 + 20_000 + 10_000
    assert b.standings == {"withheld": 1, "revealed": 1}
    assert (a.selected_per_mille(), a.expected_per_mille(1_000_000)) == (666, 120)


def test_who_does_not_offer_the_model_or_is_too_young_is_in_no_draw() -> None:
    entries = [entry(A, 2, 0, 10, models=()), entry(B, 3, 10, 20, since_epoch=4)]
    assert figures.tallies([drawn("ineligible", "ineligible", seats=[])], lambda _: entries, 100) == {}


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (0, "0"),
        (1, "0.000001"),
        (249_996, "0.249996"),
        (1_000_000, "1"),
        (12_500_000, "12.5"),
        (2**53, "9007199254.740992"),
    ],
)
def test_expected_selections_are_shown_exactly(expected: int, text: str) -> None:
    assert figures.Tally(expected=expected).expected_text(1_000_000) == text


@given(st.lists(st.floats(0, 1_000, allow_nan=False), min_size=1, max_size=50).map(sorted))
def test_a_histogram_counts_every_value_once_and_a_percentile_is_a_value(values: list[float]) -> None:
    assert sum(count for _, count in figures.histogram(values)) == len(values)
    assert figures.percentile(values, 50) in values
    assert figures.percentile(values, 100) == values[-1]


def test_edges_belong_to_the_bar_above() -> None:
    counted = dict(figures.histogram([0.0, 0.25, 0.49, 64.0, 65.0]))
    assert (counted["< 0.25 s"], counted["< 0.5 s"], counted["≥ 64 s"]) == (1, 2, 2)
    assert figures.percentile([], 50) is None


def test_hours_are_the_oldest_first_and_none_is_missing() -> None:
    rows = [{"ago": 0, "job_type": "opml", "jobs": 3}, {"ago": 23, "job_type": "tee", "jobs": 1}]
    hours = figures.by_hour([*rows, {"ago": 24, "job_type": "opml", "jobs": 9}])
    assert (len(hours), hours[0], hours[-1], sum(a + b for a, b in hours)) == (24, (0, 1), (3, 0), 4)


@pytest.mark.parametrize(
    ("row", "level"),
    [
        ({"outcome": None, "state": "running"}, "under way"),
        ({"outcome": None, "state": "failed"}, "no result"),
        ({"outcome": "agreed", "agreeing": 3}, "redundant:3"),
        ({"outcome": "resolved", "agreeing": 2}, "redundant:2"),
        ({"outcome": "resolved", "agreeing": 1, "tee": ""}, "signed"),
        ({"outcome": "disputed", "agreeing": 2}, "disputed"),
        ({"outcome": "single", "tee": ""}, "signed"),
        ({"outcome": "single", "tee": "simulated"}, "simulated"),
        ({"outcome": "single", "tee": "nitro"}, "attested"),
    ],
)
def test_assurance_is_what_the_stored_result_claims(row: dict[str, Any], level: str) -> None:
    assert figures.assurance(row) == level


@given(st.lists(st.tuples(st.text(max_size=12), st.integers(0, 10**9)), min_size=1, max_size=9))
def test_a_plot_is_well_formed_whatever_the_names(named: list[tuple[str, int]]) -> None:
    cleaned = [("".join(c for c in name if c.isprintable()), count) for name, count in named]
    for markup in (
        plots.bars(cleaned, "<b>"),
        plots.share(cleaned, '"'),
        plots.hours([(c, c) for _, c in cleaned]),
        plots.growth(sorted((c, c) for _, c in cleaned), cleaned[0][0], "<i>"),
    ):
        root = ElementTree.fromstring(str(markup))  # noqa: S314  our own markup
        assert root.tag == "svg"
        assert {element.tag for element in root.iter()} <= {
            "svg",
            "g",
            "rect",
            "title",
            "line",
            "path",
            "text",
        }
        assert not any("style" in element.attrib for element in root.iter())


def test_growth_is_drawn_from_the_first_size_to_the_last_in_few_steps() -> None:
    points = [(7, 0), *((7 + n, n * n) for n in range(2_000)), (2_006, 1_999**2)]
    markup = str(plots.growth(points, "then", "now"))
    curve = re.search(r'class="curve" d="(M[^"]+)"', markup)
    assert curve is not None
    steps = [(int(x), int(y)) for x, y in re.findall(r"H(\d+)V(\d+)", curve[1])]
    assert len(steps) <= 481
    assert steps == sorted(steps, key=lambda step: (step[0], -step[1]))
    assert (steps[0][1], steps[-1]) == (132, (480, 0))
    assert f">{1_999**2}<" in markup


@pytest.mark.parametrize(
    ("value", "text"), [(0, "1970-01-01 00:00:00"), (2**53 - 1, f"{2**53 - 1} ms"), (2**73, f"{2**73} ms")]
)
def test_a_date_that_no_calendar_has_is_a_number(value: int, text: str) -> None:
    assert pages.of_ms(value) == text


def test_a_log_without_a_signed_tree_says_so() -> None:
    facts: dict[str, Any] = {"latest": None, "checkpoints": [], "points": [], "witnesses": [], "leaves": []}
    answer = pages.page(
        "log.html",
        here="/ui/log",
        network="n",
        key="aos/n/0x+00000000+A",
        asked=2,
        first=True,
        following=None,
        plots=plots,
        **facts,
    )
    text = bytes(answer.body).decode()
    assert "No tree is signed yet" in text
    assert "None of the 2 asked has cosigned" in text
    assert "<svg" not in text
