"""A dispute at which a test sits: two parties over the toy, move by move."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dispute_toy import Key, Lie, Run, Toy, ToyArithmetic, ToyTrace, around_proof, case_of, honest

from aos.core.dispute import players
from aos.core.dispute.game import Game, apply, start
from aos.core.dispute.moves import Move, Open
from aos.core.dispute.rules import Rules
from aos.core.statements import Signed, sign

TOY = Toy(seed=7, n_positions=4, sizes=(3, 40, 200, 9))
ARITHMETIC = ToyArithmetic(TOY)
RULES = Rules(grace_ms=100, budget_ms=1_000, window_ms=100_000, bond=10)
T0 = 5_000
CLAIMANT, CHALLENGER, OTHER = Key("claimant"), Key("challenger"), Key("other")
LIE = Lie(what="tile", position=2, unit=2, index=77)


@cache
def lying(lie: Lie) -> Run:
    """The run that is wrong there."""
    return Run(TOY, lie)


def sent(key: Key, move: Move) -> Signed[Move]:
    return sign(key.secret, move)


@dataclass
class Table:
    """A game in progress: a claimant with ``run``, a challenger that believes ``own``."""

    run: Run = field(default_factory=lambda: honest(TOY))
    own: Run = field(default_factory=lambda: honest(TOY))
    rules: Rules = RULES
    changes: dict[str, Any] = field(default_factory=dict)
    game: Game = field(init=False)

    def __post_init__(self) -> None:
        self.case = case_of(TOY, self.run, CLAIMANT)
        self.game = start(self.rules, self.case, self.opening(), at=T0)

    def opening(self, **more: Any) -> Signed[Move]:
        place = next(
            (n for n, (a, b) in enumerate(zip(self.run.leaves, self.own.leaves, strict=False)) if a != b), 0
        )
        position, unit = self.own.places[place]
        values: dict[str, Any] = {
            "network": self.case.core.network,
            "challenger": CHALLENGER.address,
            "claimant": CLAIMANT.address,
            "claim": self.case.claim,
            "job_ref": self.case.core.job_ref,
            "attempt": self.case.core.attempt,
            "kind": "unit",
            "position": position,
            "unit": unit,
            "state_root": self.own.root,
            "leaf": self.own.leaves[place],
            "bond": 10,
        }
        return sent(CHALLENGER, Open(**(values | self.changes | more)))

    @property
    def last(self) -> int:
        return self.game.taken[-1].at

    def trace(self, run: Run) -> ToyTrace:
        return ToyTrace(run, self.game.open.position, self.game.open.unit)

    def next_move(self) -> Move:
        if self.game.mover == "challenger":
            return players.choose(self.game, self.trace(self.own))
        if self.game.open.kind != "unit":
            return players.prove(self.game, around_proof(self.run))
        return players.answer(self.game, ARITHMETIC, self.trace(self.run))

    def send(self, move: Move, key: Key | None = None, *, after: int = 1) -> Table:
        mover = key or (CLAIMANT if self.game.mover == "claimant" else CHALLENGER)
        self.game = apply(self.game, ARITHMETIC, sent(mover, move), at=self.last + after)
        return self

    def play(self, turns: int = 8) -> Table:
        """Play on, honestly, at most until ``turns`` moves were made."""
        while self.game.mover is not None and self.game.turn < turns:
            self.send(self.next_move())
        return self

    def fault(self) -> tuple[str, str]:
        (found,) = self.game.faults
        return found.party, found.code


def liar() -> Table:
    return Table(run=lying(LIE))


def sham(turns: int) -> Table:
    """An honest claimant, and a challenger whose run is the lie, after ``turns`` moves."""
    return Table(own=lying(LIE)).play(turns)
