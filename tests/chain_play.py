"""Random games on the contracts beside the Python referee."""

import copy
import random
from dataclasses import dataclass
from functools import cache
from typing import Any

from chain_steps import referee
from court_games import CLAIMANT, Match, World, build
from dispute_runs import GREEDY, SAMPLED, TinyRun, changed, flipped, tiny_run
from evm import Reverted, Revm

from aos.core.dispute.fine.element import element_count
from aos.core.dispute.fine.onchain import FAULTS
from aos.core.dispute.trace_tree import tile_hash
from aos.engine.trace import UnitTrace

PROMPT = "what is the meaning"
RUNS: list[tuple[str, str, dict[str, Any], tuple[int, ...]]] = [
    # model, prompt, parameters, units (-1: the tail)
    ("tiny-f32", PROMPT, SAMPLED, (0, 1, -1)),
    ("tiny-qwen3-partial", PROMPT, SAMPLED, (1, -1)),
    ("tiny-qwen2", PROMPT, GREEDY, (1, -1)),
    ("tiny-q4_0", PROMPT, SAMPLED | {"top_p": 300_000}, (0, 1, -1)),
    ("tiny-mixed", PROMPT, GREEDY, (0, 1, 2, -1)),
    ("tiny-llama-3", PROMPT, SAMPLED | {"top_k": 0, "min_p": 0, "top_p": 1_000_000}, (1, -1)),
    ("tiny-trap", "is it so? yes", GREEDY, (0, 1)),
    ("tiny-f16", "the end of it " * 34, SAMPLED, (1, -1)),
]
GAMES_A_WORLD = 250


@dataclass(frozen=True, kw_only=True)
class Played:
    """One game: where, whether its claimant lied, and the verdicts (codes; empty: the proof holds)."""

    model: str
    unit: int
    op: str
    tile: int
    element: int
    lied: bool
    referee: str
    contract: str


@cache
def places() -> list[tuple[TinyRun, UnitTrace, int, str]]:
    """Every op of every unit that is played, the ops of the same name one after the other."""
    found = []
    for name, prompt, members, units in RUNS:
        run = tiny_run(name, prompt, members)
        for unit in units:
            trace = run.trace(run.last, run.tail if unit < 0 else unit)
            for number in range(len(trace.shape.ops)):
                found.append((run, trace, number, trace.shape.ops[number].name))
    return sorted(found, key=lambda place: place[3])


class Player:
    """Plays game after game in one world after the other."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world: World | None = None
        self.by_op: dict[str, list[tuple[TinyRun, UnitTrace, int]]] = {}
        for run, trace, number, name in places():
            self.by_op.setdefault(name, []).append((run, trace, number))
        self.names = sorted(self.by_op)

    def play(self, number: int) -> Played:
        """One game, of the next op in turn."""
        rng = self.rng
        if self.world is None or number % GAMES_A_WORLD == 0:
            self.world = build(Revm(), slash=1)
            for manifest in {id(run): run for run, *_ in places()}.values():
                Match.register(self.world, manifest.known.run.manifest)
        name = self.names[number % len(self.names)]
        run, trace, op_number = rng.choice(self.by_op[name])
        op = trace.shape.ops[op_number]
        tile = rng.randrange(op.grid.tiles)
        index = op.first + tile
        element = rng.randrange(element_count(trace.shape, index))
        lied = rng.random() < 0.6
        committed = trace
        if lied:
            trace, element = self._lie(trace, index, element)
        game = Match(
            world=self.world,
            run=run,
            trace=trace,
            position=trace.context.position,
            unit=trace.context.unit,
            committed=committed,
            receipt=tile_hash(number.to_bytes(8, "big")),
        )
        game.open()
        game.answer()
        game.descend(index, element, at_once=rng.random() < 0.8)
        shown, proof = trace.prove_element(index, element)
        if rng.random() < 0.05:
            # A proof that is not what it should be, of whoever lied or not.
            lied = True
            proof = rng.choice(
                [
                    flipped(proof, rng.randrange(8 * len(proof))),
                    proof[:-1],
                    proof + b"\0",
                    proof[: len(proof) // 2],
                ]
            )
        expected = referee(game.opened, trace.unit_root, index, element, shown, proof)
        return Played(
            model=run.known.run.manifest.architecture,
            unit=trace.context.unit,
            op=name,
            tile=tile,
            element=element,
            lied=lied,
            referee=expected,
            contract=self._verdict(game, index, element, shown, proof),
        )

    def _lie(self, trace: UnitTrace, index: int, element: int) -> tuple[UnitTrace, int]:
        """A trace with one wrong tile, and mostly the element where it is wrong."""
        rng, data = self.rng, trace.tiles[index]
        size = len(data) // element_count(trace.shape, index)
        at = element * size
        kind = rng.randrange(6)
        if kind == 0:
            other = b"\xff" * len(data)
        elif kind == 1:
            other = data[:at] + bytes(size) + data[at + size :]
        elif kind == 2:
            other = (
                data[:at]
                + bytes(rng.choice([0x00, 0x7F, 0x80, 0xFF]) for _ in range(size))
                + data[at + size :]
            )
        elif kind == 3 and size % 4 == 0:
            other = data[:at] + b"\0\0\xc0\x7f" * (size // 4) + data[at + size :]
        else:
            other = flipped(data, 8 * at + rng.randrange(8 * size))
        if rng.random() < 0.1:
            element = rng.randrange(element_count(trace.shape, index))
        return changed(copy.copy(trace), index, lambda _: other), element

    def _verdict(self, game: Match, index: int, element: int, shown: int, proof: bytes) -> str:
        """What the court says of the proof."""
        court = game.world.court
        step = game.step_of(index, element, shown, proof)
        try:
            done = court.send(CLAIMANT, "prove", game.id, game.context(), index, element, step, shown, proof)
        except Reverted as error:
            return f"reverted: {court.contract.error(error.data)}"
        for event in court.events(done):
            if event.name == "Refuted":
                return ""
            if event.name == "Convicted":
                return FAULTS[event.args["code"]]
        raise AssertionError("the game did not end")
