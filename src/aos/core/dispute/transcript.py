"""The transcript: all that a game is, in one file that anybody judges again (docs/spec/13-dispute.md, "Transcript").

``replay`` gives the game, ``judge`` a report in numbered checks. The times in it are the referee's word: ``proven`` does
not depend on them, ``defaulted`` rests on nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from aos.core.codec import MaxLength, TimeMs, decode, encode
from aos.core.dispute.case import Arithmetic, Case, check_case
from aos.core.dispute.contradiction import Contradiction, contradiction, read_evidence
from aos.core.dispute.game import Game, Verdict, apply, start
from aos.core.dispute.moves import Move, read_move
from aos.core.dispute.rules import Rules
from aos.core.encoding import canonical_json, parse_canonical
from aos.core.report import Check
from aos.core.statements import Signed
from aos.errors import AOSError, Unavailable, VerificationError

MAX_TRANSCRIPT_BYTES = 32 * 1024 * 1024
MAX_ENTRIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One signed move (``{"statement", "signature"}``), and when the referee had it (ms)."""

    at: TimeMs
    move: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """A game's file. ``evidence`` holds signed statements from elsewhere that contradict one of the moves or the claim.
    ``judged_at`` is the moment (ms) for which deadlines are judged."""

    TYPE: ClassVar[str] = "aos.dispute"
    V: ClassVar[int] = 1

    rules: Rules
    case: Case
    moves: Annotated[tuple[Entry, ...], MaxLength(MAX_ENTRIES)]
    evidence: Annotated[tuple[Any, ...], MaxLength(MAX_ENTRIES)]
    judged_at: TimeMs


def read_transcript(data: bytes) -> Transcript:
    """Strictly decode a transcript of at most 32 MiB: canonical JSON, exact members, at least one move, times that do
    not go back.

    Raises InvalidMessage ``encoding.*``, ``field.*``, ``statement.*``; VerificationError ``dispute.no_moves``,
    ``dispute.time_order``.
    """
    transcript = decode(Transcript, parse_canonical(data, max_bytes=MAX_TRANSCRIPT_BYTES))
    if not transcript.moves:
        raise VerificationError(
            "dispute.no_moves", "a transcript holds at least the challenge", field="moves"
        )
    times = [*(entry.at for entry in transcript.moves), transcript.judged_at]
    if times != sorted(times):
        raise VerificationError("dispute.time_order", "the times of the moves go back", field="moves")
    return transcript


def write_transcript(transcript: Transcript) -> bytes:
    """The file's bytes."""
    return canonical_json(encode(transcript))


def transcript_of(
    game_rules: Rules,
    case: Case,
    moves: Sequence[tuple[Signed[Move], int]],
    *,
    judged_at: int,
    evidence: Sequence[Signed[Any]] = (),
) -> Transcript:
    """A transcript from moves with their times (ms)."""
    return Transcript(
        rules=game_rules,
        case=case,
        moves=tuple(Entry(at=at, move=move.to_json()) for move, at in moves),
        evidence=tuple(item.to_json() for item in evidence),
        judged_at=judged_at,
    )


def replay(transcript: Transcript, arithmetic: Arithmetic) -> Game:
    """The game that the transcript is. Raises what ``check_case``, ``start`` and ``apply`` raise: a transcript holds
    no move that was refused."""
    check_case(transcript.case)
    first, *rest = transcript.moves
    game = start(transcript.rules, transcript.case, read_move(first.move, where="moves[0]"), at=first.at)
    for index, entry in enumerate(rest, start=1):
        game = apply(game, arithmetic, read_move(entry.move, where=f"moves[{index}]"), at=entry.at)
    return game


JudgedState = Literal["CONVICTED", "REFUTED", "UNDECIDED", "NOT A GAME"]
EXIT_CODES: dict[JudgedState, int] = {"REFUTED": 0, "CONVICTED": 10, "UNDECIDED": 11, "NOT A GAME": 12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a transcript shows. ``CONVICTED``: the claim is proven wrong, or its claimant contradicted itself.
    ``REFUTED``: this challenge failed; the claim may still be wrong elsewhere. ``UNDECIDED``: open, defaulted, or not to
    be checked here. ``NOT A GAME``: unreadable, or moves that no referee takes."""

    state: JudgedState
    checks: tuple[Check, ...]
    game: Game | None
    verdict: Verdict | None
    contradictions: tuple[Contradiction, ...]

    @property
    def exit_code(self) -> int:
        """0, 10, 11 or 12, as the state says."""
        return EXIT_CODES[self.state]

    @property
    def headline(self) -> str:
        """The judgement in one line."""
        if self.game is None:
            failed = next(check for check in self.checks if check.status == "FAIL")
            return f"{self.state}: {failed.id} failed: {failed.text} [{failed.code}]"
        opening = self.game.open
        if self.state == "CONVICTED":
            why = next(check for check in self.checks if check.status == "FAIL")
            return f"CONVICTED: the claim of {opening.claimant} does not hold: {why.text} [{why.code}]"
        if self.state == "REFUTED":
            return f"REFUTED: this challenge by {opening.challenger} failed; that says nothing else about the claim"
        if self.verdict is not None and self.verdict.state == "defaulted":
            who = opening.claimant if self.verdict.against == "claimant" else opening.challenger
            return f"UNDECIDED: by the referee's clock the {self.verdict.against} {who} is late; nobody is convicted"
        return "UNDECIDED: " + (
            self.verdict.message if self.verdict is not None else "could not be checked here"
        )


class _Judge:
    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic
        self.checks: list[Check] = []

    def passed(self, name: str, text: str, detail: str = "") -> None:
        self.checks.append(Check(id=name, status="PASS", text=text, detail=detail))

    def failed(self, name: str, error: AOSError) -> None:
        self.checks.append(Check(id=name, status="FAIL", text=error.message, code=error.code))

    def skipped(self, name: str, text: str) -> None:
        self.checks.append(Check(id=name, status="SKIP", text=text))

    def end(
        self,
        state: JudgedState,
        game: Game | None = None,
        verdict: Verdict | None = None,
        contradictions: tuple[Contradiction, ...] = (),
    ) -> Judgement:
        return Judgement(
            state=state,
            checks=tuple(self.checks),
            game=game,
            verdict=verdict,
            contradictions=contradictions,
        )


def judge(data: bytes, arithmetic: Arithmetic) -> Judgement:
    """Judge a transcript. Never raises for what the file holds."""
    report = _Judge(arithmetic)
    try:
        transcript = read_transcript(data)
    except AOSError as error:
        report.failed("file-1", error)
        return report.end("NOT A GAME")
    count = len(transcript.moves)
    report.passed("file-1", f"a game of {count} move{'s' if count > 1 else ''}")
    case = transcript.case
    try:
        known = check_case(case)
        first = transcript.moves[0]
        report.passed("claim-1", "the claimant signed the claim", case.core.operator)
        game = start(transcript.rules, case, read_move(first.move, where="moves[0]"), at=first.at)
    except AOSError as error:
        report.failed("open-1" if report.checks[-1].id == "claim-1" else "claim-1", error)
        return report.end("NOT A GAME")
    report.passed("open-1", _asked(game), game.open.challenger)
    report.passed("data-1", f"disclosed and the claim's own: {', '.join(known) or 'nothing'}")
    refused = unavailable = False
    for index, entry in enumerate(transcript.moves[1:], start=1):
        name = f"move-{index}"
        before = game
        try:
            game = apply(game, arithmetic, read_move(entry.move, where=f"moves[{index}]"), at=entry.at)
        except Unavailable as error:
            report.skipped(name, f"cannot be checked here: {error.message} [{error.code}]")
            unavailable = True
            break
        except AOSError as error:
            report.failed(name, error)
            refused = True
            break
        _say(report, name, before, game)
    contradictions = _contradictions(report, transcript, game)
    guilty = {found.address for found in contradictions}
    verdict = game.verdict(transcript.judged_at)
    if (verdict.state, verdict.against) == ("proven", "claimant") or game.open.claimant in guilty:
        return report.end("CONVICTED", game, verdict, contradictions)
    if refused:
        return report.end("NOT A GAME", None, None, contradictions)
    if unavailable:
        return report.end("UNDECIDED", game, None, contradictions)
    if verdict.state == "proven" or game.open.challenger in guilty:
        return report.end("REFUTED", game, verdict, contradictions)
    _clock(report, game, verdict)
    return report.end("UNDECIDED", game, verdict, contradictions)


def _asked(game: Game) -> str:
    opening = game.open
    where = f" {opening.unit} at position {opening.position}" if opening.kind == "unit" else ""
    return f"the challenge: {opening.kind}{where}, bond {opening.bond}"


def _say(report: _Judge, name: str, before: Game, game: Game) -> None:
    """One line for a move: what it did, or whose fault it shows."""
    if len(game.faults) > len(before.faults):
        fault = game.faults[-1]
        if fault.party == "claimant":
            report.failed(name, VerificationError(fault.code, f"claimant: {fault.message}"))
        else:
            report.passed(name, f"challenger: {fault.message}", fault.code)
    elif game.turn == before.turn:
        report.passed(name, "sent again, changes nothing")
    elif game.stage == "choose":
        report.passed(name, f"claimant shows {len(game.children)} children with the signed hash")
    else:
        node = game.node
        where = f"tile {node.first}" if game.stage == "proof" and node else "one child"
        report.passed(name, f"challenger chooses {where}")


def _clock(report: _Judge, game: Game, verdict: Verdict) -> None:
    if verdict.state == "defaulted":
        report.skipped("clock-1", f"{verdict.message}: the referee's word, cured by a late move")
    else:
        report.skipped("clock-1", f"the game {verdict.message}")


def _contradictions(report: _Judge, transcript: Transcript, game: Game) -> tuple[Contradiction, ...]:
    own: list[Any] = [Signed(statement=game.case.core, signature=game.case.signature)]
    own += [read_move(entry.move) for entry in transcript.moves[: len(game.taken)]]
    found: list[Contradiction] = []
    for index, item in enumerate(transcript.evidence):
        name = f"evidence-{index + 1}"
        try:
            other = read_evidence(item, where=f"evidence[{index}]")
            hit = _hit(own, other, (game.open.claimant, game.open.challenger))
        except AOSError as error:
            report.skipped(name, f"shows nothing: {error.message} [{error.code}]")
            continue
        found.append(hit)
        message = f"{hit.address} signed {hit.message}"
        if hit.address == game.open.claimant:
            report.failed(name, VerificationError(hit.code, message))
        else:
            report.passed(name, message, hit.code)
    return tuple(found)


def _hit(own: Sequence[Any], other: Any, parties: Sequence[str]) -> Contradiction:
    last: AOSError = VerificationError("dispute.no_contradiction", "it contradicts nothing here")
    for mine in own:
        for address in parties:
            try:
                return contradiction(mine, other, address=address)
            except AOSError as error:
                if error.code != "dispute.no_contradiction":
                    last = error
    raise last
