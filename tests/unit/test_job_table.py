"""The run's state table (docs/spec/06-network.md, "A run")."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from aos.core.job import (
    COLLECTED,
    STATES,
    STATUS,
    TERMINAL,
    TRANSITIONS,
    RunEvent,
    RunState,
    markdown_table,
    next_state,
    outcome_of,
)
from aos.errors import RuleViolation

EVENTS: tuple[RunEvent, ...] = get_args(RunEvent)
ROOT, OTHER = b"\1" * 32, b"\2" * 32


def test_the_honest_run_with_checkers() -> None:
    events: list[RunEvent] = [
        "draw_called",
        "record_signed",
        "dispatched",
        "stream_final",
        "commit_set_signed",
        "revealed_agreed",
    ]
    state: RunState = "created"
    statuses = [STATUS[state]]
    for event in events:
        state = next_state(state, event)
        statuses.append(STATUS[state])
    assert state == "agreed"
    assert [status for status, _ in itertools.groupby(statuses)] == [
        "created",
        "dispatched",
        "running",
        "committed",
        "verified",
    ]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", EVENTS)
def test_what_the_table_does_not_have_is_refused(state: RunState, event: RunEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) == TRANSITIONS[state, event]
        return
    with pytest.raises(RuleViolation) as refusal:
        next_state(state, event)
    assert refusal.value.code == "job.transition"


def test_terminal_states_are_the_ends_that_the_specification_names() -> None:
    assert {"agreed", "resolved", "single", "failed", "cancelled", "expired"} == TERMINAL
    assert TERMINAL | {"disputed"} == COLLECTED


def test_every_open_state_expires_and_reaches_an_end() -> None:
    for state in set(STATES) - COLLECTED:
        assert next_state(state, "expire") == "expired"
        reached, todo = {state}, [state]
        while todo:
            for (source, _), target in TRANSITIONS.items():
                if source == todo[-1] and target not in reached:
                    reached.add(target)
                    todo.insert(0, target)
            todo.pop()
        assert {"agreed", "failed"} <= reached


def test_a_committed_run_cannot_be_cancelled() -> None:
    cancellable = {state for state in STATES if (state, "cancel") in TRANSITIONS}
    assert cancellable == {"created", "drawing", "drawn", "running", "checking"}


def test_no_result_without_a_commit_set() -> None:
    sources = {source for (source, event) in TRANSITIONS if event.startswith("revealed_")}
    assert sources == {"committed"}
    assert {s for (s, e), t in TRANSITIONS.items() if t == "committed"} == {"running", "checking"}


@pytest.mark.parametrize(
    ("job_type", "roots", "outcome"),
    [
        ("opml", [ROOT, ROOT], "agreed"),
        ("opml", [ROOT, ROOT, ROOT], "agreed"),
        ("opml", [ROOT, OTHER], "disputed"),
        ("opml", [ROOT, ROOT, OTHER], "disputed"),
        ("opml", [ROOT], "single"),
        ("tee", [b""], "single"),
        ("tee", [b"", b""], "single"),
    ],
)
def test_outcome(job_type: str, roots: list[bytes], outcome: str) -> None:
    assert outcome_of(job_type, roots) == outcome  # type: ignore[arg-type]


def test_no_outcome_without_a_reveal() -> None:
    with pytest.raises(RuleViolation) as refusal:
        outcome_of("opml", [])
    assert refusal.value.code == "job.no_reveal"


def test_the_printed_table_is_the_table() -> None:
    lines = markdown_table().splitlines()[2:]
    assert len(lines) == len(TRANSITIONS)
    printed = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert {(source, event): target for source, event, target in printed} == TRANSITIONS
