"""What each project has under way, and how much it may (requests, and the tokens that they may generate); documents.

Counted in memory, by the one process that accepts jobs: exact, and nothing to ask the database for. A start counts what is open.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aos.adapters.postgres import Pool, unavailable
from aos.dispatcher.refusals import TooMany


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one project."""

    requests: int
    tokens: int


@dataclass(slots=True)
class _Held:
    requests: int = 0
    tokens: int = 0


class InFlight:
    """Every project's open first runs. Re-runs that a flag causes have a quota of their own and do not count."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._runs: dict[int, tuple[str, int]] = {}

    async def load(self, pool: Pool) -> None:
        """Count what was open when this process started."""
        async with unavailable():
            rows = await pool.fetch(
                """SELECT r.run_id, j.project_id, j.max_tokens FROM run r JOIN job j USING (job_id)
                   WHERE r.position <> 'before'
                   AND r.state IN ('created', 'drawing', 'drawn', 'running', 'checking', 'committed')"""
            )
        for row in rows:
            self._add(row["project_id"], row["max_tokens"])
            self.began(row["run_id"], row["project_id"], row["max_tokens"])

    def reserve(self, project: str, tokens: int, limits: Limits) -> None:
        """Room for one more request. Raises TooMany ``project.requests``, ``project.tokens``."""
        held = self._held.get(project, _Held())
        if held.requests >= limits.requests:
            raise TooMany(
                "project.requests",
                f"this project has {held.requests} requests under way, as many as it may",
                hint="wait for one to end",
            )
        if held.tokens + tokens > limits.tokens:
            raise TooMany(
                "project.tokens",
                f"this project's requests under way may generate {held.tokens} tokens, its limit is {limits.tokens}",
                field="job.params.max_tokens",
                hint="wait for one to end, or ask for fewer tokens",
            )
        self._add(project, tokens)

    def release(self, project: str, tokens: int) -> None:
        """The request that room was reserved for is not under way."""
        held = self._held[project]
        held.requests -= 1
        held.tokens -= tokens
        if not held.requests:
            del self._held[project]

    def began(self, run_id: int, project: str, tokens: int) -> None:
        """The request became this run."""
        self._runs[run_id] = (project, tokens)

    def ended(self, run_id: int) -> None:
        """The run is over. Telling it twice, or of a run that is not counted, changes nothing."""
        if (counted := self._runs.pop(run_id, None)) is not None:
            self.release(*counted)

    def _add(self, project: str, tokens: int) -> None:
        held = self._held.setdefault(project, _Held())
        held.requests += 1
        held.tokens += tokens


class DocumentLimits:
    """How often enclaves are asked for documents about answers: each costs an enclave a signature, and asking is free.

    Counted in memory, within a window of a minute by ``clock_s`` (monotonic seconds).
    """

    WINDOW_S = 60.0
    PER_JOB, OVERALL = 6, 240
    OVERALL_AT_ONCE = 8

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._asked: deque[tuple[float, str]] = deque()
        self._open: set[str] = set()

    @contextmanager
    def asking(self, job_id: str) -> Iterator[None]:
        """Room for one document about ``job_id``. Raises TooMany ``attestation.busy``, ``attestation.rate``."""
        now = self._clock_s()
        while self._asked and self._asked[0][0] <= now - self.WINDOW_S:
            self._asked.popleft()
        own = [at for at, asked in self._asked if asked == job_id]
        if len(own) >= self.PER_JOB:
            raise self._later(own[-self.PER_JOB], now, f"a job has {self.PER_JOB} documents a minute")
        if len(self._asked) >= self.OVERALL:
            oldest = self._asked[-self.OVERALL][0]
            raise self._later(oldest, now, f"this dispatcher asks for {self.OVERALL} documents a minute")
        if job_id in self._open or len(self._open) >= self.OVERALL_AT_ONCE:
            raise TooMany("attestation.busy", "an enclave is being asked for a document already")
        self._asked.append((now, job_id))
        self._open.add(job_id)
        try:
            yield
        finally:
            self._open.remove(job_id)

    def _later(self, oldest: float, now: float, why: str) -> TooMany:
        error = TooMany("attestation.rate", why, hint="try again after the seconds in Retry-After")
        error.retry_after_s = math.ceil(oldest + self.WINDOW_S - now)
        return error
