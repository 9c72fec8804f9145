"""One game about one claim, between its claimant and one challenger (docs/spec/13-dispute.md).

A ``Game`` is a value that follows from the case, the rules and the signed moves alone; ``start`` and ``apply`` give the
next one. What they *raise* was refused: it changes nothing and is nobody's evidence. A move that its party signed in its
turn counts whatever it holds: it is lawful, or it is evidence against its signer. A game never says that its winner is
right: only that a claim is wrong, or that this challenge of it was.
"""

from dataclasses import dataclass, replace
from typing import Literal

from aos.core.dispute.case import Arithmetic, Case, OpenedUnit
from aos.core.dispute.moves import (
    Answer,
    Choose,
    Move,
    Open,
    Party,
    Proof,
    game_id,
    move_size,
    split_hashes,
    turn_of,
)
from aos.core.dispute.place import Node, Shape
from aos.core.dispute.rules import MOVER, Event, Rules, Stage, next_stage
from aos.core.merkle import tree_root
from aos.core.statements import Signed, check_signed
from aos.errors import InvalidMessage, RuleViolation, Unavailable, VerificationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a party lost: anybody who judges the moves again finds the same. ``turns`` are those of its moves that show
    it; ``code`` is the error's."""

    party: Party
    code: str
    message: str
    turns: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A move that counts: its hash, and when the referee had it (ms)."""

    hash: bytes
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``proven``: anybody finds it again; only this convicts. ``defaulted``: on the referee's clock, cured by a late
    move. ``against`` is empty where the game is open. ``deadline`` is the mover's, ms."""

    state: Literal["open", "proven", "defaulted"]
    against: Party | Literal[""]
    code: str
    message: str
    deadline: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """A game after some moves. ``children`` are those shown last, of ``node``; ``wanted`` is the hash that the next
    ones must have, or that of the tile to prove."""

    rules: Rules
    case: Case
    id: bytes
    open: Open
    stage: Stage
    taken: tuple[Taken, ...]
    size: int
    spent: tuple[int, int]
    unit_root: bytes = b""
    opened: OpenedUnit | None = None
    node: Node | None = None
    wanted: bytes = b""
    children: tuple[bytes, ...] = ()
    faults: tuple[Fault, ...] = ()

    @property
    def turn(self) -> int:
        """The turn that is on."""
        return len(self.taken)

    @property
    def mover(self) -> Party | None:
        """Who is to move; None where the game is over."""
        return MOVER.get(self.stage)

    @property
    def shape(self) -> Shape:
        """The tree of the unit. Only after the first answer."""
        if self.opened is None:
            raise RuleViolation("dispute.stage", "the unit was not opened yet")
        return Shape(self.opened.n_tiles, self.opened.fanout)

    def address(self, party: Party) -> str:
        """Whose key signs for ``party``."""
        return self.open.claimant if party == "claimant" else self.open.challenger

    @property
    def deadline(self) -> int | None:
        """The last moment (ms) at which the mover is in time; None where the game is over."""
        mover = self.mover
        if mover is None:
            return None
        left = max(0, self.rules.budget_ms - self.spent[_index(mover)])
        return self.taken[-1].at + self.rules.grace_ms + left

    @property
    def closes(self) -> int:
        """From this moment (ms) on no move is taken; what was late then stays late."""
        return self.taken[0].at + self.rules.window_ms

    def verdict(self, now: int) -> Verdict:
        """What can be said at ``now`` (ms). A fault of the claimant comes first: the game is about its claim."""
        for party in ("claimant", "challenger"):
            for fault in self.faults:
                if fault.party == party:
                    return Verdict(
                        state="proven",
                        against=party,
                        code=fault.code,
                        message=fault.message,
                        deadline=None,
                    )
        mover, deadline = self.mover, self.deadline
        if mover is None or deadline is None:
            raise AssertionError("a game that is over has a fault")
        if now > deadline or now >= self.closes:
            return Verdict(
                state="proven" if self.rules.silence_convicts else "defaulted",
                against=mover,
                code="dispute.silent",
                message=f"the {mover} did not move in time",
                deadline=deadline,
            )
        return Verdict(state="open", against="", code="", message=f"waits for the {mover}", deadline=deadline)


def start(rules: Rules, case: Case, move: Signed[Move], *, at: int, bond: int | None = None) -> Game:
    """The game that a challenger opens. ``case`` was checked (``check_case``); ``bond`` is the least one, the rules'
    where not given; ``at`` is the referee's time in ms.

    Raises RuleViolation ``dispute.bond``, ``dispute.own_claim``; VerificationError ``dispute.wrong_claim``,
    ``dispute.same_root``, ``dispute.no_such_place``, ``dispute.leaf``, ``dispute.move_type``, ``signature.*``.
    """
    opening, core = move.statement, case.core
    if not isinstance(opening, Open):
        raise VerificationError("dispute.move_type", "a game begins with a challenge")
    size = move_size(move)
    if size > rules.max_bytes:
        raise RuleViolation("dispute.size", f"the moves of a game have at most {rules.max_bytes} bytes")
    stated = (opening.network, opening.claimant, opening.job_ref, opening.attempt, opening.claim)
    if stated != (core.network, core.operator, core.job_ref, core.attempt, case.claim):
        raise VerificationError("dispute.wrong_claim", "the challenge is of another claim", field="claim")
    check_signed(move, address=opening.challenger)
    if opening.challenger == opening.claimant:
        raise RuleViolation("dispute.own_claim", "nobody challenges its own claim", field="challenger")
    if not core.state_root:
        raise VerificationError("dispute.not_disputable", "this receipt commits to no state root")
    if opening.state_root == core.state_root:
        raise VerificationError(
            "dispute.same_root", "the challenger's own state root is the claim's", field="state_root"
        )
    if (opening.kind == "unit") != bool(opening.leaf):
        raise VerificationError(
            "dispute.leaf", "a challenge of a unit names its leaf, another one none", field="leaf"
        )
    if opening.kind == "unit" and opening.position >= core.n_prompt + core.n_out:
        raise VerificationError("dispute.no_such_place", "the claim has no such position", field="position")
    least = rules.bond if bond is None else bond
    if opening.bond < least:
        raise RuleViolation("dispute.bond", f"a challenge needs a bond of {least} units", field="bond")
    return Game(
        rules=rules,
        case=case,
        id=game_id(opening),
        open=opening,
        stage=next_stage("new", "unit_opened" if opening.kind == "unit" else "around_opened"),
        taken=(Taken(hash=move.hash, at=at),),
        size=size,
        spent=(0, 0),
    )


def apply(game: Game, arithmetic: Arithmetic, move: Signed[Move], *, at: int) -> Game:
    """The game after one more move, at the referee's time ``at`` (ms). A repeated move changes nothing.

    Refused, in this order: RuleViolation ``dispute.size``; VerificationError ``dispute.wrong_game``; RuleViolation
    ``dispute.over``, ``dispute.turn`` (not on yet), ``dispute.size`` (all together), ``dispute.late``; ``signature.*``
    (not by whose turn it is); VerificationError ``dispute.previous``. Unavailable: this referee cannot recompute.
    """
    statement = move.statement
    size = move_size(move)
    if size > game.rules.max_bytes:
        raise RuleViolation("dispute.size", f"the moves of a game have at most {game.rules.max_bytes} bytes")
    if game_id(statement) != game.id:
        raise VerificationError("dispute.wrong_game", "the move is of another game", field="game")
    turn = turn_of(statement)
    if turn < game.turn:
        return _earlier(game, move, turn)
    if game.mover is None:
        raise RuleViolation("dispute.over", "the game is over")
    if turn > game.turn:
        raise RuleViolation("dispute.turn", f"turn {game.turn} is on, not {turn}", field="turn")
    if game.size + size > game.rules.max_bytes:
        raise RuleViolation("dispute.size", f"the moves of a game have at most {game.rules.max_bytes} bytes")
    if at >= game.closes or (game.rules.silence_convicts and game.verdict(at).state == "proven"):
        raise RuleViolation("dispute.late", "the time for this move, and to make up for a late one, is over")
    check_signed(move, address=game.address(game.mover))
    if isinstance(statement, Open) or statement.previous != game.taken[-1].hash:
        raise VerificationError(
            "dispute.previous", "the move does not follow the one before it", field="previous"
        )
    over_grace = max(0, at - game.taken[-1].at - game.rules.grace_ms)
    spent = list(game.spent)
    spent[_index(game.mover)] += over_grace
    moved = replace(
        game,
        taken=(*game.taken, Taken(hash=move.hash, at=at)),
        size=game.size + size,
        spent=(spent[0], spent[1]),
    )
    if game.stage == "answer" and isinstance(statement, Answer):
        return _answer(moved, arithmetic, statement)
    if game.stage == "choose" and isinstance(statement, Choose):
        return _choose(moved, statement)
    if game.stage == "proof" and isinstance(statement, Proof):
        return _proof(moved, arithmetic, statement)
    return _lost(moved, game.mover, "illegal", "dispute.move_type", f"the game waits for {game.stage}", turn)


def _earlier(game: Game, move: Signed[Move], turn: int) -> Game:
    """A move for a turn that is over: the one that was taken, or its author's contradiction."""
    if move.hash == game.taken[turn].hash:
        return game
    author = _author(turn, game)
    check_signed(move, address=game.address(author))
    if any(fault.party == author for fault in game.faults):
        return game
    message = f"the {author} signed two different moves for turn {turn}"
    return _lost(game, author, "contradicted", "dispute.contradiction", message, turn)


def _author(turn: int, game: Game) -> Party:
    return "challenger" if turn % 2 == 0 else "claimant"


def _index(party: Party) -> int:
    return 0 if party == "claimant" else 1


def _lost(game: Game, party: Party, event: Event, code: str, message: str, turn: int) -> Game:
    fault = Fault(party=party, code=code, message=message, turns=(turn,))
    return replace(game, stage=next_stage(game.stage, event), faults=(*game.faults, fault))


def _answer(game: Game, arithmetic: Arithmetic, answer: Answer) -> Game:
    opening, turn = game.open, answer.turn

    def broken(code: str, message: str) -> Game:
        return _lost(game, "claimant", "broken", code, message, turn)

    stated = (answer.claimant, answer.claim, answer.position, answer.unit)
    if stated != (opening.claimant, opening.claim, opening.position, opening.unit):
        return broken("dispute.place", "the answer is about another place")
    if game.opened is None:
        try:
            opened = arithmetic.open_unit(game.case, opening.position, opening.unit, answer.bounds)
        except (VerificationError, InvalidMessage) as error:
            return broken(error.code, error.message)
        game = replace(game, opened=opened, unit_root=answer.unit_root)
        if opened.n_tiles == 0:
            return _lost(
                game, "challenger", "refuted", "dispute.no_such_place", "the claim has no such unit", turn
            )
        if opened.leaf == opening.leaf:
            return _lost(
                game,
                "challenger",
                "refuted",
                "dispute.same_leaf",
                "the claim commits to this very leaf",
                turn,
            )
        try:
            shape = Shape(opened.n_tiles, opened.fanout)
        except ValueError as error:
            raise Unavailable("dispute.shape", f"the arithmetic's tree: {error}") from error
        if len(shape.fanout) > game.rules.levels or max(shape.fanout) > game.rules.width:
            raise Unavailable("dispute.shape", "these rules do not allow a tree of this width or depth")
        game = replace(game, node=shape.root)
    elif answer.unit_root != game.unit_root:
        return broken("dispute.unit_root", "the answer names another unit root than the first one")
    elif answer.bounds:
        return broken("dispute.bounds", "a unit is opened in the first answer only")
    unit, node = game.opened, game.node
    assert unit is not None  # noqa: S101  set with the first answer
    assert node is not None  # noqa: S101
    try:
        children = split_hashes(answer.children)
    except InvalidMessage as error:
        return broken(error.code, error.message)
    if len(children) != game.shape.width(node):
        return broken("dispute.children_count", f"this node has {game.shape.width(node)} children")
    root = tree_root(children)
    if node.level == 0:
        root = arithmetic.unit_root(unit, opening.position, opening.unit, root)
        wanted = answer.unit_root
    else:
        wanted = game.wanted
    if root != wanted:
        return broken("dispute.children_root", "the children do not have the hash that was signed before")
    return replace(game, stage=next_stage(game.stage, "children_shown"), children=children)


def _choose(game: Game, choice: Choose) -> Game:
    shape, node = game.shape, game.node
    assert node is not None  # noqa: S101  set with the first answer
    if choice.child >= len(game.children):
        message = f"there are {len(game.children)} children"
        return _lost(game, "challenger", "illegal", "dispute.child", message, choice.turn)
    child = shape.child(node, choice.child)
    event: Event = "tile_chosen" if shape.is_tile(child) else "node_chosen"
    return replace(
        game,
        stage=next_stage(game.stage, event),
        node=child,
        wanted=game.children[choice.child],
        children=(),
    )


def _proof(game: Game, arithmetic: Arithmetic, proof: Proof) -> Game:
    opening = game.open
    try:
        if opening.kind == "unit":
            opened, node = game.opened, game.node
            assert opened is not None  # noqa: S101  the table leads here through an answer
            assert node is not None  # noqa: S101
            arithmetic.check_tile(opened, game.unit_root, node.first, proof.proof)
        else:
            arithmetic.check_around(game.case, opening.kind, opening.position, opening.unit, proof.proof)
    except (VerificationError, InvalidMessage) as error:
        return _lost(game, "claimant", "broken", error.code, error.message, proof.turn)
    return _lost(
        game,
        "challenger",
        "refuted",
        "dispute.refuted",
        "the value in question was recomputed and is the claimed one",
        proof.turn,
    )
