"""What an operator of the service can watch at ``/metrics``: counts and times, with labels from closed sets only.

No label says what a requester or an operator wrote; codes are this dispatcher's own.
"""

import time
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from aos.core.job import STATES, STATUS, TERMINAL, RunState
from aos.core.statements import JobType

OPEN_STATES = tuple(state for state in STATES if state not in TERMINAL)
METHODS = (
    "vrf_claim",
    "stream_chunk",
    "job_commit",
    "job_result",
    "job_failed",
    "heartbeat",
    "drain",
)
WEBHOOK_OUTCOMES = ("delivered", "refused", "given_up")
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_PHASES = {
    "drawing": "aos_draw_seconds",
    "running": "aos_commit_seconds",
    "committed": "aos_reveal_seconds",
}


class Metrics:
    """One dispatcher's counters since its start. ``moved``, ``submitted``, … are told as things happen."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._up = Gauge("aos_database_up", "1 where PostgreSQL answered just now", registry=self.registry)
        self._open = Gauge("aos_runs", "Runs under way, by state", ["state"], registry=self.registry)
        self._tasks = Gauge("aos_open_runs", "Runs that this process drives", registry=self.registry)
        self._links = Gauge("aos_operator_links", "Live operator links", registry=self.registry)
        self._streams = Gauge("aos_event_streams", "Followed jobs", registry=self.registry)
        self._ended = Counter("aos_runs_ended", "Ended runs, by status", ["status"], registry=self.registry)
        self._failed = Counter("aos_attempts_failed", "Attempts without a result", registry=self.registry)
        self._jobs = Counter("aos_submissions", "Accepted jobs", ["job_type"], registry=self.registry)
        self._refusals = Counter(
            "aos_refusals", "Refused requests over HTTP", ["code"], registry=self.registry
        )
        self._convicted = Counter(
            "aos_convictions",
            "Operators convicted by a game, since this process began",
            registry=self.registry,
        )
        self._games = Counter("aos_disputes", "Games opened", registry=self.registry)
        self._messages = Counter(
            "aos_operator_messages", "Operators' messages", ["method", "outcome"], registry=self.registry
        )
        self._webhooks = Counter(
            "aos_webhooks", "Tries to tell of a job's end", ["outcome"], registry=self.registry
        )
        self._leaves = Counter("aos_log_leaves", "Leaves put into the log's tree", registry=self.registry)
        self._sequencing = Histogram(
            "aos_log_seconds",
            "One pass of the log's sequencer, signing included",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._submit = Histogram(
            "aos_submit_seconds",
            "Submission, from body read to stored",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._phases = {
            state: Histogram(name, help_, buckets=_BUCKETS, registry=self.registry)
            for (state, name), help_ in zip(
                _PHASES.items(),
                ("Draw call to draw record", "Dispatch to commit set", "Commit set to result"),
                strict=True,
            )
        }
        self._since: dict[int, tuple[str, float]] = {}
        for job_type in get_args(JobType):
            self._jobs.labels(job_type)
        for outcome in WEBHOOK_OUTCOMES:
            self._webhooks.labels(outcome)
        for state in TERMINAL:
            self._ended.labels(STATUS[state])

    def webhook(self, outcome: str) -> None:
        """One of ``WEBHOOK_OUTCOMES``."""
        self._webhooks.labels(outcome).inc()

    def moved(self, run_id: int, target: RunState) -> None:
        """A run has changed its state."""
        now = time.monotonic()
        if target == "checking":
            return
        before = self._since.pop(run_id, None)
        if before is not None and target != "created":
            self._phases[before[0]].observe(now - before[1])
        if target in _PHASES:
            self._since[run_id] = (target, now)
        if target == "created":
            self._failed.inc()
        if target in TERMINAL:
            self._ended.labels(STATUS[target]).inc()

    def submitted(self, job_type: JobType, seconds: float) -> None:
        """A job was accepted and stored."""
        self._jobs.labels(job_type).inc()
        self._submit.observe(seconds)

    def sequenced(self, leaves: int, seconds: float) -> None:
        """The log has put leaves into its tree."""
        self._leaves.inc(leaves)
        self._sequencing.observe(seconds)

    def disputed(self, event: Literal["opened", "convicted"]) -> None:
        """A game was opened, or somebody convicted."""
        (self._games if event == "opened" else self._convicted).inc()

    def refused(self, code: str) -> None:
        """A request over HTTP was refused with this code."""
        self._refusals.labels(code).inc()

    def message(self, method: str, outcome: str) -> None:
        """An operator's message was taken (`ok`), or refused with this dispatcher's own code."""
        self._messages.labels(method if method in METHODS else "unknown", outcome).inc()

    def text(self, *, tasks: int, links: int, streams: int, states: dict[str, int] | None) -> bytes:
        """The Prometheus text. ``states``: open runs in the database, None where it does not answer."""
        self._tasks.set(tasks)
        self._links.set(links)
        self._streams.set(streams)
        self._up.set(states is not None)
        if states is not None:
            for state in OPEN_STATES:
                self._open.labels(state).set(states.get(state, 0))
        return generate_latest(self.registry)
