"""States of runs and jobs, as tables (docs/spec/06-network.md, "A run").

``next_state`` is the only way from one state to another; the database compares and sets what it says. Who causes an event,
and when, is the dispatcher's run engine. The tables in the documentation are printed from these (``markdown_table``).
"""

from typing import Final, Literal, get_args

from aos.core.statements import JobType, Outcome
from aos.errors import RuleViolation

RunState = Literal[
    "created",
    "drawing",
    "drawn",
    "running",
    "checking",
    "committed",
    "agreed",
    "disputed",
    "resolved",
    "single",
    "failed",
    "cancelled",
    "expired",
]
RunEvent = Literal[
    "draw_called",
    "record_signed",
    "dispatched",
    "stream_final",
    "commit_set_signed",
    "revealed_agreed",
    "revealed_disputed",
    "revealed_single",
    "games_resolved",
    "attempt_failed",
    "given_up",
    "cancel",
    "expire",
]
JobStatus = Literal[
    "created", "dispatched", "running", "committed", "verified", "disputed", "failed", "cancelled", "expired"
]

TRANSITIONS: Final[dict[tuple[RunState, RunEvent], RunState]] = {
    ("created", "draw_called"): "drawing",
    ("created", "given_up"): "failed",
    ("drawing", "record_signed"): "drawn",
    ("drawn", "dispatched"): "running",
    ("running", "stream_final"): "checking",
    ("running", "commit_set_signed"): "committed",
    ("checking", "commit_set_signed"): "committed",
    ("committed", "revealed_agreed"): "agreed",
    ("committed", "revealed_disputed"): "disputed",
    ("committed", "revealed_single"): "single",
    ("disputed", "games_resolved"): "resolved",
    # An attempt without a result: the next one begins, or the run is given up.
    ("drawing", "attempt_failed"): "created",
    ("drawn", "attempt_failed"): "created",
    ("running", "attempt_failed"): "created",
    ("checking", "attempt_failed"): "created",
    ("committed", "attempt_failed"): "created",
    ("drawing", "given_up"): "failed",
    ("drawn", "given_up"): "failed",
    ("running", "given_up"): "failed",
    ("checking", "given_up"): "failed",
    ("committed", "given_up"): "failed",
    ("created", "cancel"): "cancelled",
    ("drawing", "cancel"): "cancelled",
    ("drawn", "cancel"): "cancelled",
    ("running", "cancel"): "cancelled",
    ("checking", "cancel"): "cancelled",
    ("created", "expire"): "expired",
    ("drawing", "expire"): "expired",
    ("drawn", "expire"): "expired",
    ("running", "expire"): "expired",
    ("checking", "expire"): "expired",
    ("committed", "expire"): "expired",
}

STATUS: Final[dict[RunState, JobStatus]] = {
    "created": "created",
    "drawing": "dispatched",
    "drawn": "dispatched",
    "running": "running",
    "checking": "running",
    "committed": "committed",
    "agreed": "verified",
    "disputed": "disputed",
    "resolved": "verified",
    "single": "verified",
    "failed": "failed",
    "cancelled": "cancelled",
    "expired": "expired",
}

STATES: Final[tuple[RunState, ...]] = get_args(RunState)
TERMINAL: Final[frozenset[RunState]] = frozenset(
    state for state in STATES if not any(source == state for source, _ in TRANSITIONS)
)
COLLECTED: Final[frozenset[RunState]] = TERMINAL | {"disputed"}
"""No operator's result is waited for any more; games about them may be."""
MAX_EXECUTIONS: Final = 3
"""Attempts of a run that reached an operator; the last failure gives the run up."""


def next_state(state: RunState, event: RunEvent) -> RunState:
    """The state after ``event``. Raises RuleViolation ``job.transition`` where the table has none."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise RuleViolation("job.transition", f"a run that is {state} takes no {event}") from None


def outcome_of(job_type: JobType, state_roots: list[bytes]) -> Outcome:
    """What comparing the revealed results gives. ``state_roots``: one for each operator that revealed, at least one.

    Raises RuleViolation ``job.no_reveal``.
    """
    if not state_roots:
        raise RuleViolation("job.no_reveal", "nobody revealed a result")
    if job_type == "tee" or len(state_roots) == 1:
        return "single"
    return "agreed" if len(set(state_roots)) == 1 else "disputed"


def markdown_table() -> str:
    """The transitions as the table in the documentation: one row for each state and event."""
    rows = [f"| {source} | {event} | {target} |" for (source, event), target in TRANSITIONS.items()]
    return "\n".join(["| state | event | next |", "|---|---|---|", *rows])
