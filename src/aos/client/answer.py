"""An answer with its receipt, and the text on its way to one."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aos.core.receipt import verify_answer
from aos.core.report import Report
from aos.core.trust import Policy, Trust, load_policy
from aos.errors import RuleViolation


class Event(Protocol):
    """What a stream reads of a job's events."""

    @property
    def kind(self) -> str: ...
    @property
    def data(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer file. ``status`` is `verified`, or `disputed` where operators committed different results: the dispatcher's
    words. What it is worth, ``verify`` computes.
    """

    job_id: str
    status: str
    data: bytes = field(repr=False)
    trust: Trust | None = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """The text of the first seat."""
        return str(json.loads(self.data)["text"])

    def verify(self, *, trust: Trust | None = None, policy: Policy | str | None = None) -> Report:
        """Check it, offline. ``trust`` and ``policy`` default to the client's trust file and the policy that it names.

        Never raises for a bad answer: the report's ``verdict`` says VERIFIED, PARTIAL, NOT VERIFIED or EVIDENCE MISSING.
        """
        trust = trust or self.trust
        if policy is None:
            policy = trust.policy if trust is not None else "default"
        if isinstance(policy, str):
            policy = load_policy(policy)
        return verify_answer(self.data, trust=trust, policy=policy)

    def save(self, path: str | Path) -> Path:
        """Write it, for ``aos verify``."""
        path = Path(path)
        path.write_bytes(self.data)
        return path


class Stream(Iterator[str]):
    """Pieces of the text as they come; ``answer`` after the last one. ``job_id`` is known from the start."""

    def __init__(self, job_id: str, events: Iterator[Event], fetch: Callable[[str, str], Answer]) -> None:
        self.job_id = job_id
        self.superseded = False
        """An attempt failed after some of its text was read: the text began again."""
        self._events = events
        self._fetch = fetch
        self._attempt = 0
        self._status = ""
        self._answer: Answer | None = None

    def __next__(self) -> str:
        for event in self._events:
            if event.kind == "text":
                attempt = int(event.data.get("attempt", 0))
                self.superseded = self.superseded or self._attempt not in (0, attempt)
                self._attempt = attempt
                return str(event.data.get("text", ""))
            if event.kind == "done":
                self._status = str(event.data.get("status", ""))
        raise StopIteration

    @property
    def answer(self) -> Answer:
        """Raises RuleViolation ``client.not_done`` before the end, ``job.*`` where the job ended without an answer."""
        if not self._status:
            raise RuleViolation("client.not_done", "read the stream to its end first")
        if self._answer is None:
            self._answer = self._fetch(self.job_id, self._status)
        return self._answer
