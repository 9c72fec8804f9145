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


class ShownText:
    """What a reader was shown of an answer that is not there yet. A later attempt, or the answer itself, may continue it; where it
    says something else, what was shown is superseded and the text begins again."""

    def __init__(self) -> None:
        self.shown = ""
        self.superseded = False
        self._attempt = 0
        self._text = ""

    def push(self, attempt: int, text: str) -> tuple[str, bool]:
        """What to show of a piece of an attempt's text, and whether it replaces all that was shown."""
        if attempt != self._attempt:
            self._attempt, self._text = attempt, ""
        self._text += text
        return self._advance(self._text)

    def finish(self, text: str) -> tuple[str, bool]:
        """What to show of the answer's whole text, and whether it replaces all that was shown."""
        new, again = self._advance(text)
        if again or self.shown == text:
            return new, again
        self.superseded, self.shown = True, text  # it was shown more than there is
        return text, True

    def _advance(self, text: str) -> tuple[str, bool]:
        if text.startswith(self.shown):
            new, self.shown = text[len(self.shown) :], text
            return new, False
        if self.shown.startswith(text):
            return "", False
        self.superseded, self.shown = True, text
        return text, True


class Stream(Iterator[str]):
    """Pieces of the text as they come; ``answer`` after the last one. ``job_id`` is known from the start."""

    def __init__(self, job_id: str, events: Iterator[Event], fetch: Callable[[str, str], Answer]) -> None:
        self.job_id = job_id
        self._text = ShownText()
        self._events = events
        self._fetch = fetch
        self._status = ""
        self._answer: Answer | None = None

    @property
    def superseded(self) -> bool:
        """What was read is not what the receipt is about: an attempt failed and the next one wrote something else, or its writer
        was overruled. ``text`` is then what counts; after the end it is ``answer.text``."""
        return self._text.superseded

    @property
    def text(self) -> str:
        """The text so far, without what is superseded."""
        return self._text.shown

    def __next__(self) -> str:
        for event in self._events:
            if event.kind == "text":
                new, _ = self._text.push(int(event.data.get("attempt", 0)), str(event.data.get("text", "")))
                if new:
                    return new
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
            self._text.finish(self._answer.text)
        return self._answer
