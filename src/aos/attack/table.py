"""What a row of the attack table is, and what came out of playing one.

A row is one function that plays its attacks and their honest twin against a ``Live`` network and tells a ``Trial`` what it found.
An attack counts as refused only with its own code: refused for another reason, it has not been shown that this defence works.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from aos.attack.live import Live

Needs = Literal["log", "chain", ""]
Verdict = Literal["REFUSED", "ACCEPTED", "PASSED", "WRONG REASON", "TWIN REFUSED", "BROKEN", "SKIPPED"]
ACCEPTED = "accepted"
"""What an attack is found to be where nothing refused it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attack: the codes of which one must refuse it, and what did (``accepted`` where nothing did)."""

    name: str
    expected: tuple[str, ...]
    found: str

    @property
    def refused(self) -> bool:
        return self.found in self.expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """The same thing done honestly: it must be accepted. ``found`` is the code where it was not."""

    name: str
    found: str

    @property
    def accepted(self) -> bool:
        return self.found == ACCEPTED


@dataclass(slots=True)
class Trial:
    """What playing one row has shown so far."""

    attempts: list[Attempt] = field(default_factory=list)
    twins: list[Twin] = field(default_factory=list)

    def attack(self, name: str, expected: str | tuple[str, ...], found: str | tuple[str, ...]) -> None:
        """An attack was played. ``found`` is the code of the refusal (a verifier says all that it finds), or ``accepted``."""
        wanted = (expected,) if isinstance(expected, str) else expected
        codes = (found,) if isinstance(found, str) else found
        named = next((code for code in codes if code in wanted), codes[0])
        self.attempts.append(Attempt(name=name, expected=wanted, found=named))

    def twin(self, name: str, found: str | tuple[str, ...]) -> None:
        """The honest counterpart was played; ``found`` is ``accepted``, or the code that refused it."""
        self.twins.append(Twin(name=name, found=found if isinstance(found, str) else found[0]))

    def verdict(self, *, must_fail: bool) -> Verdict:
        """What the row comes to. A row that showed no attack, or no twin, has shown nothing."""
        if any(attempt.found == ACCEPTED for attempt in self.attempts):
            return "PASSED"
        if not all(attempt.refused for attempt in self.attempts):
            return "WRONG REASON"
        if not all(twin.accepted for twin in self.twins):
            return "TWIN REFUSED"
        if not self.twins or (must_fail and not self.attempts):
            return "BROKEN"
        return "REFUSED" if must_fail else "ACCEPTED"


Play = Callable[["Live", Trial], Awaitable[None]]
Begin = Callable[["Live"], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the threat model. ``play`` is None where it cannot be played: ``needs`` and ``reason`` say why.

    ``codes``: every reason that the row's attacks may be refused for. ``guests``: it needs operators of our own in the registry,
    which only a network has that this command started. ``must_fail`` False: the row must be accepted.
    ``missing``: what of the row this function does not play. ``begin`` is called before any row is played: it begins what needs
    time to pass, so that nobody waits for it.
    """

    number: int
    title: str
    codes: tuple[str, ...] = ()
    play: Play | None = None
    guests: bool = False
    must_fail: bool = True
    needs: Needs = ""
    reason: str = ""
    missing: str = ""
    begin: Begin | None = None
    chain: bool = False
    """It needs the second network, whose beacon is a block of a real node on this machine."""

    @property
    def standing(self) -> str:
        """``ready``, ``not yet: needs …`` or ``gap``."""
        if self.play is not None:
            return "ready"
        return f"not yet: needs {self.needs}" if self.needs else "gap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A row that was played. ``problem`` says what kept it from being played to its end."""

    row: Row
    verdict: Verdict
    attempts: tuple[Attempt, ...]
    twins: tuple[Twin, ...]
    problem: str = ""
    seconds: float = 0.0

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes that were found, each once, in order."""
        return tuple(dict.fromkeys(attempt.found for attempt in self.attempts))


ROWS: dict[int, Row] = {}
"""The table, by number; filled by importing ``aos.attack.rows``."""


def row(
    number: int,
    title: str,
    *codes: str,
    guests: bool = False,
    must_fail: bool = True,
    missing: str = "",
    begin: Begin | None = None,
    chain: bool = False,
) -> Callable[[Play], Play]:
    """Register a function as a row."""

    def register(play: Play) -> Play:
        _enter(
            Row(
                number=number,
                title=title,
                codes=codes,
                play=play,
                guests=guests,
                must_fail=must_fail,
                missing=missing,
                begin=begin,
                chain=chain,
            )
        )
        return play

    return register


def not_yet(number: int, title: str, *, needs: Needs, reason: str) -> None:
    """Register a row that cannot be played: what it needs does not exist; with ``needs`` empty, a known gap."""
    _enter(Row(number=number, title=title, needs=needs, reason=reason))


def _enter(entry: Row) -> None:
    if entry.number in ROWS:
        raise ValueError(f"row {entry.number} is there twice")
    ROWS[entry.number] = entry
