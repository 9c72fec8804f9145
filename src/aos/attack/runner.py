"""Plays rows against a network, its own or a running one, and sums up."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

import aos.attack.rows  # noqa: F401  fills the table
from aos.attack.engines import damaged_copy, load, other_weight
from aos.attack.guest import Guest
from aos.attack.live import HTTP_S, Live, Stolen, read_state, stolen
from aos.attack.table import ACCEPTED, ROWS, Begin, Outcome, Row, Trial, Verdict
from aos.engine import read_manifest
from aos.errors import AOSError, InvalidMessage, Unavailable

GUESTS = ("guest-1", "guest-2", "guest-3")
GUEST_MODEL = "attack-guest.gguf"
LIARS = ("liar-1", "liar-2", "liar-3", "liar-4")
"""More than the operators, so that they can be the majority."""
OPERATORS = 3
SETTINGS = {
    "deadlines": {"commit_ms": 3_000, "reveal_ms": 2_000},
    "disputes": {"grace_ms": 15_000, "budget_ms": 0, "window_ms": 50_000},
}
"""Short, because some rows wait for them to pass."""

NO_NODE = "no Ethereum node is installed here (make chain-tools)"

OK, FAILED, UNCHECKED = 0, 10, 11
Told = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainPlace:
    """A second network, whose beacon is a block of the node at ``rpc_url``; where there is no such node, rows cannot be played."""

    state: Path
    rpc_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The network to attack: where its state is, and which of the guests' things there are (none in a network of others).

    ``chain`` None: there is no node on this machine.
    """

    state: Path
    model: Path
    guest_model: Path | None = None
    chain: ChainPlace | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What came out of all rows that were asked for."""

    outcomes: tuple[Outcome, ...]
    later: tuple[Row, ...]
    seconds: float

    def count(self, *verdicts: Verdict) -> int:
        return sum(outcome.verdict in verdicts for outcome in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0 where every row that was played went as it must; 10 where an attack passed, met another reason, or an honest twin was
        refused; 11 where a row could not be played to its end.
        """
        if self.count("PASSED", "WRONG REASON", "TWIN REFUSED"):
            return FAILED
        return UNCHECKED if self.count("BROKEN", "SKIPPED") else OK


def rows() -> tuple[Row, ...]:
    """The whole table, by number."""
    return tuple(ROWS[number] for number in sorted(ROWS))


def chosen(numbers: Sequence[str]) -> tuple[Row, ...]:
    """The rows with these numbers, in the table's order. Raises InvalidMessage ``attack.row``."""
    wanted = set()
    for text in numbers:
        if not (text.isascii() and text.isdigit() and int(text) in ROWS):
            raise InvalidMessage(
                "attack.row", f"there is no row {text[:20]!r}", hint="`aos attack --list` shows the rows"
            )
        wanted.add(int(text))
    return tuple(row for row in rows() if row.number in wanted)


def guest_model(directory: Path, source: Path) -> Path:
    """The guests' own model: the network's with one weight changed, so that nobody else is drawn for it."""
    return damaged_copy(source, directory / GUEST_MODEL, other_weight)


async def run(place: Place, wanted: Sequence[Row], *, told: Told) -> Summary:
    """Play ``wanted`` one after the other; ``told`` gets each outcome as it comes. Rows that are not ready are not played."""
    begun = time.monotonic()
    outcomes = []
    ready, later = parted(wanted, chain=place.chain is not None)
    async with _opened(place) as live:
        for row in ready:
            if row.begin is not None and (live.guests or not row.guests):
                await _begun(row, row.begin, live)
        if place.chain is not None:
            live.chain = read_state(place.chain.state, live.http, place.model)
            live.chain_url = place.chain.rpc_url
        for row in ready:
            outcome = await play_row(row, live)
            outcomes.append(outcome)
            told(outcome)
    return Summary(
        outcomes=tuple(outcomes),
        later=later,
        seconds=time.monotonic() - begun,
    )


def parted(wanted: Sequence[Row], *, chain: bool) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Rows that can be played, and those that cannot be: without a ``chain`` those that need one are not."""
    missing = [row for row in wanted if row.play is None or (row.chain and not chain)]
    ready = tuple(row for row in wanted if row not in missing)
    later = (
        replace(row, play=None, needs="chain", reason=NO_NODE) if row.play is not None else row
        for row in missing
    )
    return ready, tuple(later)


async def _begun(row: Row, begin: Begin, live: Live) -> None:
    """Begin a row. What goes wrong is said when the row is played."""
    try:
        await begin(live)
    except (AOSError, TimeoutError, httpx.TransportError) as error:
        live.begun[row.number] = error


async def play_row(row: Row, live: Live) -> Outcome:
    """One row. What keeps it from being played is part of the outcome; only an unreachable network is raised (Unavailable)."""
    trial, begun = Trial(), time.monotonic()
    if row.guests and not live.guests:
        problem = "needs operators of our own in the registry: run it without --state"
        return Outcome(row=row, verdict="SKIPPED", attempts=(), twins=(), problem=problem)
    assert row.play is not None  # noqa: S101  the caller has looked
    problem = ""
    try:
        if isinstance(failed := live.begun.get(row.number), Exception):
            raise failed
        await row.play(live, trial)
    except Unavailable as error:
        if error.code == "client.unreachable":
            raise
        problem = str(error)
    except httpx.TransportError as error:
        raise Unavailable(
            "client.unreachable", f"no answer from the dispatcher: {type(error).__name__}"
        ) from error
    except AOSError as error:
        problem = str(error)
    except TimeoutError:
        problem = "the network did not answer in time"
    odd = {code for attempt in trial.attempts for code in attempt.expected} - set(row.codes)
    if odd:
        raise AssertionError(f"row {row.number} names codes that the table does not: {sorted(odd)}")
    verdict: Verdict = trial.verdict(must_fail=row.must_fail)
    if problem and verdict in ("REFUSED", "ACCEPTED"):
        verdict = "BROKEN"
    return Outcome(
        row=row,
        verdict=verdict,
        attempts=tuple(trial.attempts),
        twins=tuple(trial.twins),
        problem=problem or _what_is_wrong(trial, verdict),
        seconds=time.monotonic() - begun,
    )


def _what_is_wrong(trial: Trial, verdict: Verdict) -> str:
    for attempt in trial.attempts:
        if not attempt.refused:
            wanted = " or ".join(attempt.expected)
            return f"{attempt.name}: must be refused with {wanted}, was {attempt.found}"
    for twin in trial.twins:
        if not twin.accepted:
            return f"{twin.name}: must be accepted, was refused with {twin.found}"
    return "nothing was shown" if verdict == "BROKEN" else ""


@contextlib.asynccontextmanager
async def _opened(place: Place) -> AsyncIterator[Live]:
    async with httpx.AsyncClient(timeout=HTTP_S, trust_env=False) as http:
        live = read_state(place.state, http, place.model)
        if place.guest_model is not None:
            keys = read_guests(place.state)
            live.guests, live.liars = (
                tuple(
                    Guest(live.url, network=live.network, dispatcher=live.dispatcher, keys=keys[name])
                    for name in names
                )
                for names in (GUESTS, LIARS)
            )
            live.honest_operators = OPERATORS
            live.guest_model, live.guest_model_path = GUEST_MODEL, place.guest_model
            live.engine = await load(place.guest_model, place.state / "cache")
            for guest in live.guests:
                if (code := await guest.connect()) != ACCEPTED:
                    raise Unavailable("attack.guest", f"the dispatcher did not take a guest: {code}")
        try:
            yield live
        finally:
            for guest in (*live.guests, *live.liars):
                await guest.leave()


def read_guests(state: Path) -> dict[str, Stolen]:
    """The guests' keys, by name."""
    return {name: stolen(state / name) for name in (*GUESTS, *LIARS)}


@contextlib.contextmanager
def temporary_place() -> Iterator[Path]:
    """A directory for a network of our own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="aos-attack-") as directory:
        yield Path(directory)


def read_model_id(path: Path) -> bytes:
    """What the file is, by its bytes."""
    return read_manifest(path).model_id


def play_all(place: Place, wanted: Sequence[Row], *, told: Told) -> Summary:
    """``run`` for callers without an event loop."""
    return asyncio.run(run(place, wanted, told=told))
