"""SIMULATED disputes: random lies, roles, orders, delays and dirty tricks, played to the end and judged again.

``play_one(number)`` is one dispute, ``play_job(number)`` a job of three claims and all games between them. Both raise
AssertionError where an honest party was convicted, lost or left to the referee's word, or a lie went through. Everything
follows from the number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from typing import Any

from dispute_toy import AROUND, Key, Lie, Run, Toy, ToyArithmetic, ToyTrace, around_proof, case_of, honest

from aos.core.dispute import players
from aos.core.dispute.case import Case
from aos.core.dispute.contradiction import contradiction
from aos.core.dispute.game import Game, apply, start
from aos.core.dispute.moves import Answer, Choose, Move, Open, Proof, turn_of
from aos.core.dispute.resolution import bond_events, resolve
from aos.core.dispute.rules import Rules
from aos.core.dispute.transcript import EXIT_CODES, judge, transcript_of, write_transcript
from aos.core.statements import Signed, sign
from aos.errors import AOSError

RULES = Rules(grace_ms=1_000, budget_ms=5_000, window_ms=120_000, bond=10)
START = 1_700_000_000_000
OUTSIDER = Key("outsider")

Moved = tuple[Move, int]
"""A move, and the milliseconds that it took."""


@cache
def toys() -> tuple[Toy, ...]:
    """Shapes from one tile up, with one to three levels, with and without values that are not finite."""
    rng = Random("toys")
    shapes: list[Toy] = [
        Toy(seed=1, n_positions=1, sizes=(1, 1, 1)),
        Toy(seed=2, n_positions=2, sizes=(2, 13, 1)),
    ]
    for seed in range(3, 25):
        sizes = tuple(rng.choice((1, 2, 5, 12, 13, 30, 60, 144, 145, 170)) for _ in range(rng.randint(2, 4)))
        shapes.append(
            Toy(seed=seed, n_positions=rng.randint(1, 6), sizes=sizes, nan=rng.choice((0, 0, 300, 900)))
        )
    return tuple(shapes)


def random_lie(rng: Random, toy: Toy) -> Lie:
    """A lie that this toy's run can tell; ``Run`` may still come out honest (a trap that comes first)."""
    run = honest(toy)
    what = rng.choice(("tile", "tile", "tile", "output", "output", "trap", "no_trap", "short", "fact"))
    position, unit = rng.choice(run.places)
    size = toy.sizes[unit]
    index = rng.choice((0, size - 1, rng.randrange(size)))
    if what == "no_trap" and run.trap is None:
        what = "tile"
    return Lie(what=what, position=position, unit=unit, index=index, kind=rng.choice(AROUND))


@cache
def lying_run(toy: Toy, lie: Lie) -> Run:
    return Run(toy, lie)


def difference(run: Run, own: Run) -> tuple[str, int, int, bytes]:
    """Where a challenger that computed ``own`` challenges ``run``: kind, position, unit, its own leaf there."""
    for kind in AROUND:
        if run.facts[kind] != own.facts[kind]:
            return kind, 0, 0, b""
    for place, theirs, ours in zip(own.places, run.leaves, own.leaves, strict=False):
        if theirs != ours:
            return "unit", *place, ours
    return "stop", 0, 0, b""


def opening(case: Case, own: Run, challenger: Key, where: tuple[str, int, int, bytes], bond: int) -> Open:
    core = case.core
    kind, position, unit, leaf = where
    return Open(
        network=core.network,
        challenger=challenger.address,
        claimant=core.operator,
        claim=case.claim,
        job_ref=core.job_ref,
        attempt=core.attempt,
        kind=kind,  # type: ignore[arg-type]
        position=position,
        unit=unit,
        state_root=own.root,
        leaf=leaf,
        bond=bond,
    )


@dataclass(slots=True)
class Player:
    """An honest party; who cheats overrides ``moves``. ``moves`` gives nothing where it stays silent for ever."""

    run: Run
    key: Key
    rng: Random
    arithmetic: ToyArithmetic

    def honest_move(self, game: Game, run: Run | None = None) -> Move:
        trace = ToyTrace(run or self.run, game.open.position, game.open.unit)
        if game.stage == "choose":
            return players.choose(game, trace)
        if game.open.kind != "unit":
            return players.prove(game, around_proof(run or self.run))
        return players.answer(game, self.arithmetic, trace)

    def delay(self) -> int:
        return self.rng.choice((0, 1, RULES.grace_ms // 2, RULES.grace_ms))

    def moves(self, game: Game) -> list[Moved]:
        return [(self.honest_move(game), self.delay())]


CLAIMANT_TRICKS = (
    *("none",) * 6,
    *("stall", "late", "contradict", "contradict_later", "children", "children_count", "bounds", "proof"),
    *(
        "swap_operand",
        "unit_root",
        "previous",
        "move_type",
        "place",
        "other_trace",
        "forged_trace",
        "oversize",
    ),
)
CHALLENGER_TRICKS = (
    *("none",) * 3,
    *("stall", "late", "contradict", "contradict_later", "reopen", "child", "random_child", "previous"),
    *("move_type", "random_place", "around", "nowhere", "same_leaf"),
)


@dataclass(slots=True)
class Cheat(Player):
    """A party that plays ``trick`` in turn ``when`` or the next one of its own, and otherwise its own run."""

    trick: str = "none"
    when: int = 1
    done: bool = False

    def moves(self, game: Game) -> list[Moved]:
        try:
            move = self.honest_move(game)
        except (AOSError, StopIteration, IndexError, KeyError, ValueError):
            # Its own run has nothing to show here: it shows something.
            move = self.desperate(game)
        if self.done or game.turn < self.when or self.trick == "none":
            return [(move, self.delay())]
        self.done = True
        return self.cheat(game, move)

    def desperate(self, game: Game) -> Move:
        if game.stage == "choose":
            return self._choice(game, self.rng.randrange(len(game.children)))
        noise = self.rng.randbytes(self.rng.choice((0, 40, 400)))
        if game.stage == "proof":
            return Proof(game=game.id, turn=game.turn, previous=game.taken[-1].hash, proof=noise)
        return self._noise_answer(game, noise)

    def _choice(self, game: Game, child: int) -> Choose:
        return Choose(game=game.id, turn=game.turn, previous=game.taken[-1].hash, child=child)

    def _noise_answer(self, game: Game, noise: bytes) -> Answer:
        o = game.open
        return Answer(
            game=game.id,
            turn=game.turn,
            previous=game.taken[-1].hash,
            claimant=o.claimant,
            claim=o.claim,
            position=o.position,
            unit=o.unit,
            unit_root=game.unit_root or bytes(32),
            children=bytes(64),
            bounds=noise,
        )

    def cheat(self, game: Game, move: Move) -> list[Moved]:
        rng, trick = self.rng, self.trick
        late = RULES.grace_ms + RULES.budget_ms + rng.choice((1, 5_000))
        if trick == "stall":
            return []
        if trick == "late":
            return [(move, late)]
        if trick == "contradict":
            return [(move, 0), (self.altered(move), 5)]
        if trick == "contradict_later":
            return [(move, 0), (self.altered(move), -1)]
        if trick == "previous" and not isinstance(move, Open):
            return [(replace(move, previous=bytes(32)), 0)]
        if trick == "move_type":
            other: Move = self._choice(game, 0)
            if isinstance(move, Choose):
                other = Proof(game=game.id, turn=game.turn, previous=game.taken[-1].hash, proof=b"")
            return [(other, 0)]
        return [(self._content(game, move, trick), 0)]

    def _content(self, game: Game, move: Move, trick: str) -> Move:
        rng = self.rng
        if isinstance(move, Answer):
            if trick == "children" and move.children:
                at = rng.randrange(len(move.children))
                flipped = bytes([move.children[at] ^ 1])
                return replace(move, children=move.children[:at] + flipped + move.children[at + 1 :])
            if trick == "children_count":
                return replace(move, children=move.children[32:] if rng.random() < 0.5 else bytes(32 * 256))
            if trick == "bounds":
                return replace(move, bounds=self._mutated(move.bounds or b"x"))
            if trick == "unit_root":
                return replace(move, unit_root=bytes(32))
            if trick == "place":
                return replace(move, position=move.position + 1)
            if trick in ("other_trace", "forged_trace"):
                return self._other_trace(game, move, forged=trick == "forged_trace")
        if isinstance(move, Proof):
            if trick in ("proof", "oversize"):
                return replace(
                    move, proof=bytes(40 * 1024) if trick == "oversize" else self._mutated(move.proof)
                )
            if trick == "swap_operand":
                return replace(move, proof=self._swapped(game, move.proof))
        if isinstance(move, Choose):
            if trick == "child":
                return replace(move, child=min(255, len(game.children)))
            if trick == "random_child":
                return replace(move, child=rng.randrange(len(game.children)))
        self.done = False  # not the move for this trick yet
        return move

    def _other_trace(self, game: Game, move: Answer, *, forged: bool) -> Answer:
        """The honest trace over a dishonest state, or hashes that no tile has."""
        opened = game.opened
        if opened is None:
            try:
                opened = self.arithmetic.open_unit(game.case, game.open.position, game.open.unit, move.bounds)
            except AOSError:
                return move
        if not opened.n_tiles:
            return move
        trace = ToyTrace(honest(self.run.toy), game.open.position, game.open.unit)
        hashes = [self.rng.randbytes(32) if forged else h for h in trace.tile_hashes[: opened.n_tiles]]
        hashes += [self.rng.randbytes(32)] * (opened.n_tiles - len(hashes))
        if game.opened is not None:
            return move
        fake = _Hashes(hashes)
        shape = players.Shape(opened.n_tiles, opened.fanout)
        return replace(
            move,
            unit_root=players.own_unit_root(self.arithmetic, game, opened, fake),  # type: ignore[arg-type]
            children=b"".join(shape.children(shape.root, hashes)),
        )

    def _mutated(self, data: bytes) -> bytes:
        if not data:
            return b"{}"
        at = self.rng.randrange(len(data))
        return self.rng.choice(
            (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], b"", b"[]", data + b" ")
        )

    def _swapped(self, game: Game, proof: bytes) -> bytes:
        """An operand of another tile, or of the honest run: the wrong position or the wrong root."""
        if game.node is None:
            return self._mutated(proof)
        run = honest(self.run.toy) if self.rng.random() < 0.5 else self.run
        position, unit = self.rng.choice(run.places)
        trace = ToyTrace(run, position, unit)
        try:
            return trace.prove(self.rng.randrange(len(trace.tile_hashes)))
        except (KeyError, ValueError, IndexError):
            return self._mutated(proof)

    def altered(self, move: Move) -> Move:
        if isinstance(move, Open):
            return replace(move, bond=move.bond + 1)
        if isinstance(move, Choose):
            return replace(move, child=(move.child + 1) % 256)
        if isinstance(move, Answer):
            return replace(move, unit_root=bytes(32))
        return replace(move, proof=move.proof + b" ")


@dataclass(frozen=True, slots=True)
class _Hashes:
    tile_hashes: Sequence[bytes]


@dataclass(slots=True)
class Played:
    """A game with all that was sent. ``at`` is when the last word was said."""

    game: Game
    log: list[tuple[Signed[Move], int]]
    at: int
    refused: list[str] = field(default_factory=list)

    def transcript(self, *, judged_at: int | None = None) -> bytes:
        now = self.at if judged_at is None else judged_at
        return write_transcript(transcript_of(RULES, self.game.case, self.log, judged_at=now))


def play(
    arithmetic: ToyArithmetic,
    case: Case,
    first: Open,
    sides: dict[str, Player],
    rng: Random,
    *,
    noise: bool = True,
) -> Played:
    """Play a game to its end: until it is over, or its mover stays silent until it closes."""
    challenger = sides["challenger"]
    signed = sign(challenger.key.secret, first)
    game = start(RULES, case, signed, at=START)
    played = Played(game=game, log=[(signed, START)], at=START)
    pending: list[Signed[Move]] = []
    if isinstance(challenger, Cheat) and challenger.trick == "reopen":
        pending.append(sign(challenger.key.secret, challenger.altered(first)))

    def send(move: Signed[Move], at: int) -> None:
        try:
            after = apply(played.game, arithmetic, move, at=at)
        except AOSError as error:
            played.refused.append(error.code)
            return
        if after is not played.game:
            played.log.append((move, at))
        played.game, played.at = after, at

    for _ in range(40):
        game = played.game
        if game.mover is None:
            break
        if noise and rng.random() < 0.3:
            disturb(send, played, sides, rng)
        side = sides[game.mover]
        moved = side.moves(game)
        if not moved:
            played.at = game.closes
            break
        turn = game.turn
        for move, took in moved:
            if took < 0:
                pending.append(sign(side.key.secret, move))
                continue
            send(sign(side.key.secret, move), game.taken[-1].at + took)
        if played.game.turn == turn and played.game.mover == game.mover:
            played.at = game.closes  # what it sent was refused; it has nothing else
            break
    for move in pending:
        send(move, played.at)
    return played


def disturb(
    send: Callable[[Signed[Move], int], None], played: Played, sides: dict[str, Player], rng: Random
) -> None:
    """What a dispatcher or an outsider may slip in: nothing of it may change the game."""
    before = played.game
    at = played.at
    last, _ = rng.choice(played.log)
    trick = rng.randrange(4)
    statement = last.statement
    if trick == 0:
        send(last, at)  # sent again
    elif trick == 1:
        if not isinstance(statement, Open):
            send(sign(OUTSIDER.secret, replace(statement, turn=before.turn)), at)
    elif trick == 2:
        send(replace(last, signature=bytes(64) + b"\x1b"), at)
    elif not isinstance(statement, Open):
        author = sides["challenger" if turn_of(statement) % 2 else "claimant"]  # the other side's key
        send(sign(author.key.secret, replace(statement, previous=bytes(32))), at)
    after = played.game
    assert (after.taken, after.stage, after.faults) == (before.taken, before.stage, before.faults)


def check_again(played: Played, arithmetic: ToyArithmetic) -> str:
    """The transcript alone gives the same verdict; shortened, or under another clock, it convicts nobody else."""
    now = played.at
    verdict = played.game.verdict(now)
    found = judge(played.transcript(), arithmetic)
    assert found.verdict == verdict, (found.headline, verdict)
    state = {"claimant": "CONVICTED", "challenger": "REFUTED"}.get(verdict.against, "UNDECIDED")
    assert found.state == (state if verdict.state == "proven" else "UNDECIDED"), found.headline
    assert found.exit_code == EXIT_CODES[found.state]
    assert bond_events(played.game, now)[0].event == "locked"
    assert played.game.size <= RULES.max_bytes
    return found.state


def proven_against(played: Played) -> set[str]:
    return {fault.party for fault in played.game.faults}


@dataclass(frozen=True, slots=True)
class Outcome:
    role: str
    what: str
    trick: str
    verdict: str
    code: str


def play_one(number: int) -> Outcome:
    """One dispute between an honest party and one that is not."""
    rng = Random(number)
    toy = rng.choice(toys())
    arithmetic = ToyArithmetic(toy)
    own = honest(toy)
    claimant, challenger = Key(f"claimant {number % 16}"), Key(f"challenger {number % 16}")
    if rng.random() < 0.6:
        return _liar_claims(rng, toy, arithmetic, own, claimant, challenger)
    return _sham_challenges(rng, toy, arithmetic, own, claimant, challenger)


def _liar_claims(
    rng: Random, toy: Toy, arithmetic: ToyArithmetic, own: Run, claimant: Key, challenger: Key
) -> Outcome:
    lie = random_lie(rng, toy)
    run = lying_run(toy, lie)
    trick = rng.choice(CLAIMANT_TRICKS)
    if run.root == own.root:
        return Outcome("liar", lie.what, trick, "no lie", "")
    case = case_of(toy, run, claimant)
    first = opening(case, own, challenger, difference(run, own), RULES.bond)
    sides: dict[str, Player] = {
        "claimant": Cheat(
            run=run,
            key=claimant,
            rng=rng,
            arithmetic=arithmetic,
            trick=trick,
            when=rng.choice((1, 1, 3, 5, 7)),
        ),
        "challenger": Player(run=own, key=challenger, rng=rng, arithmetic=arithmetic),
    }
    played = play(arithmetic, case, first, sides, rng)
    verdict = played.game.verdict(played.at)
    story = (number_of(rng), toy, lie, trick, verdict, played.refused)
    assert verdict.state in ("proven", "defaulted"), story
    assert verdict.against == "claimant", story
    assert "challenger" not in proven_against(played), story
    check_again(played, arithmetic)
    events = [event.event for event in bond_events(played.game, max(played.at, played.game.closes))]
    assert events == ["locked", "returned"], story
    return Outcome("liar", lie.what, trick, verdict.state, verdict.code)


def _sham_challenges(
    rng: Random, toy: Toy, arithmetic: ToyArithmetic, own: Run, claimant: Key, challenger: Key
) -> Outcome:
    trick = rng.choice(CHALLENGER_TRICKS)
    lie = random_lie(rng, toy)
    run = lying_run(toy, lie)
    if run.root == own.root:
        run = lying_run(toy, Lie(what="fact", kind="text"))
    case = case_of(toy, own, claimant)
    where = _sham_place(rng, toy, own, run, trick)
    first = opening(case, run, challenger, where, RULES.bond)
    sides: dict[str, Player] = {
        "claimant": Player(run=own, key=claimant, rng=rng, arithmetic=arithmetic),
        "challenger": Cheat(
            run=run,
            key=challenger,
            rng=rng,
            arithmetic=arithmetic,
            trick=trick,
            when=rng.choice((2, 2, 4, 6)),
        ),
    }
    try:
        played = play(arithmetic, case, first, sides, rng)
    except AOSError as error:
        if error.code != "dispute.no_such_place":
            raise
        return Outcome("sham", lie.what, trick, "refused", error.code)
    verdict = played.game.verdict(played.at)
    story = (number_of(rng), toy, lie, trick, verdict, played.refused)
    assert verdict.state in ("proven", "defaulted"), story
    assert verdict.against == "challenger", story
    assert "claimant" not in proven_against(played), story
    check_again(played, arithmetic)
    events = bond_events(played.game, max(played.at, played.game.closes))
    assert [(event.event, event.party) for event in events][1:] == [("forfeited", claimant.address)], story
    return Outcome("sham", lie.what, trick, verdict.state, verdict.code)


def _sham_place(rng: Random, toy: Toy, own: Run, run: Run, trick: str) -> tuple[str, int, int, bytes]:
    if trick == "around":
        return rng.choice(AROUND), rng.randrange(5), rng.randrange(5), b""
    position, unit = rng.choice(own.places)
    if trick == "random_place":
        return "unit", position, unit, rng.randbytes(32)
    if trick == "nowhere":
        return "unit", rng.randrange(toy.n_positions + 2), toy.units + rng.randrange(3), rng.randbytes(32)
    if trick == "same_leaf":
        return "unit", position, unit, own.leaves[own.place(position, unit) - 1]
    return difference(own, run)


def number_of(rng: Random) -> str:
    """For messages: what follows in this dispute's random numbers."""
    return f"next random number {rng.random()}"


def play_job(number: int) -> str:
    """A job of one honest and two lying operators, who all challenge every root that is not their own, and a sham that
    loses on purpose. The honest root is the result, whatever is found first."""
    rng = Random(f"job {number}")
    toy = rng.choice(toys())
    arithmetic = ToyArithmetic(toy)
    keys = [Key(f"operator {index}") for index in range(3)]
    runs = [honest(toy)]
    while len(runs) < 3:
        run = lying_run(toy, random_lie(rng, toy))
        if run.root != runs[0].root:
            runs.append(run)
    order = list(range(3))
    rng.shuffle(order)
    cases = {index: case_of(toy, runs[index], keys[index]) for index in order}
    games: list[Game] = []
    for claim in order:
        for other in order:
            if runs[claim].root == runs[other].root:
                continue
            trick = rng.choice(CLAIMANT_TRICKS) if claim else ""
            sides: dict[str, Player] = {
                "claimant": _player(runs[claim], keys[claim], rng, arithmetic, trick),
                "challenger": _player(
                    runs[other],
                    keys[other],
                    rng,
                    arithmetic,
                    rng.choice(CHALLENGER_TRICKS[:9]) if other else "",
                ),
            }
            case = cases[claim]
            where = difference(runs[claim], runs[other])
            first = opening(case, runs[other], keys[other], where, RULES.bond)
            games.append(play(arithmetic, case, first, sides, rng).game)
    rng.shuffle(games)
    claims = {case.claim: case.core.state_root for case in cases.values()}
    end = START + RULES.window_ms
    result = resolve(claims, games, end)
    assert result.standing[cases[0].claim] == "stands", (number, result)
    assert all(result.standing[cases[i].claim] in ("convicted", "withheld") for i in (1, 2)), (number, result)
    assert result.state_root == runs[0].root, (number, result)
    return "/".join(sorted(result.standing.values()))


def _player(run: Run, key: Key, rng: Random, arithmetic: ToyArithmetic, trick: str) -> Player:
    if not trick:
        return Player(run=run, key=key, rng=rng, arithmetic=arithmetic)
    return Cheat(run=run, key=key, rng=rng, arithmetic=arithmetic, trick=trick, when=rng.choice((1, 2, 3, 4)))


def tally(numbers: Sequence[int]) -> tuple[Counter[str], Counter[str]]:
    """Play these disputes; returns how they ended by role, and by what was lied about or tried."""
    ends: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for number in numbers:
        outcome = play_one(number)
        ends[f"{outcome.role}: {outcome.verdict}"] += 1
        what = outcome.what if outcome.role == "liar" else outcome.trick
        kinds[f"{outcome.role} {what}: {outcome.code or outcome.verdict}"] += 1
    return ends, kinds


def evidence_between(a: Signed[Any], b: Signed[Any], address: str) -> str:
    """The code of the contradiction between two statements."""
    return contradiction(a, b, address=address).code
