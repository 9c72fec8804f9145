"""One lie per kind of op at the 7B shape and position 2,000: what the whole game costs, its rounds, bytes, and the time of its
referee and of both parties' moves (docs/spec/13-dispute.md).

The unit is that of benchmarks/dispute.py, its weights and run random. The claimant alters one tile of the op, recomputes the
rest of the unit from it and commits to that; where nothing that is committed changes, to another last value. SIMULATED
parties. ``python benchmarks/dispute_lies.py`` prints a line a game.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from dispute import SEVEN_B, synthetic  # noqa: E402
from dispute_real import case_of, leaf_of, parts_of  # noqa: E402
from dispute_toy import Key  # noqa: E402
from liars import all_signs, downstream  # noqa: E402

from aos.core.dispute import players  # noqa: E402
from aos.core.dispute.fine.bounds import open_unit  # noqa: E402
from aos.core.dispute.fine.grid import Op  # noqa: E402
from aos.core.dispute.fine.referee import Canonical  # noqa: E402
from aos.core.dispute.game import Game, apply, start  # noqa: E402
from aos.core.dispute.moves import Move, Open  # noqa: E402
from aos.core.dispute.rules import Rules  # noqa: E402
from aos.core.dispute.state_opening import StateTree  # noqa: E402
from aos.core.dispute.trace_tree import TraceTree, tile_hash  # noqa: E402
from aos.core.statements import Params, sign  # noqa: E402
from aos.engine.trace import UnitTrace  # noqa: E402


class LyingTrace(UnitTrace):
    """The trace of ``honest``'s unit with other tiles, by who committed to ``parts`` there."""

    def __init__(self, honest: UnitTrace, tiles: Sequence[bytes], parts: Sequence[bytes]) -> None:
        self.__dict__.update(honest.__dict__)
        self.tiles, self._parts = tiles, tuple(parts)
        self._tree = TraceTree([tile_hash(tile) for tile in tiles])
        at = self.context.position, self.context.unit
        units = [list(each) for each in honest.known.tree.units]
        units[at[0]][at[1]] = leaf_of(honest, parts)
        tree = StateTree(honest.known.tree.header, units)
        self.known = replace(honest.known, tree=tree, run=replace(honest.known.run, state_root=tree.root))
        self.context = replace(self.context, state_root=tree.root)

    def payload(self, position: int, unit: int) -> tuple[bytes, ...]:
        if (position, unit) == (self.context.position, self.context.unit):
            return self._parts
        return super().payload(position, unit)


def lie(honest: UnitTrace, op: Op, rng: Random) -> tuple[LyingTrace, int]:
    """The trace of who alters a tile of ``op``, and the tile."""
    index = op.first + rng.randrange(op.grid.tiles)
    tiles = downstream(honest, index, all_signs)
    own = list(honest.tiles)
    honest.tiles = tiles
    parts = parts_of(honest)
    honest.tiles = own
    place = honest.context.position, honest.context.unit
    if leaf_of(honest, parts) == honest.known.tree.units[place[0]][place[1]]:
        last = bytes(byte ^ 0x80 for byte in parts[0][-4:])
        parts = [parts[0][:-4] + last, *parts[1:]]
    return LyingTrace(honest, tiles, parts), index


@dataclass
class Cost:
    """Of one game; times in ms of processor time: the referee's for all moves and for the last, the claimant's and the challenger's
    for all of theirs once they have their traces.
    """

    code: str = ""
    tile: int = -1
    moves: int = 0
    size: int = 0
    referee: float = 0.0
    last: float = 0.0
    claimant: float = 0.0
    challenger: float = 0.0


def play(claimed: LyingTrace, own: UnitTrace, params: Params) -> Cost:
    """Play the game about a lie; its costs."""
    claimant, challenger = Key("real claimant"), Key("real challenger")
    place = claimed.context.position, claimed.context.unit
    run = SimpleNamespace(
        known=claimed.known,
        root=claimed.known.tree.root,
        model=SimpleNamespace(engine=SimpleNamespace(manifest=claimed.context.manifest)),
        job=SimpleNamespace(params=params),
    )
    case = case_of(run, claimant)  # type: ignore[arg-type]
    core, cost, arithmetic = case.core, Cost(), Canonical()
    opening = Open(
        network=core.network,
        challenger=challenger.address,
        claimant=claimant.address,
        claim=case.claim,
        job_ref=core.job_ref,
        attempt=core.attempt,
        kind="unit",
        position=place[0],
        unit=place[1],
        state_root=own.known.tree.root,
        leaf=own.known.tree.units[place[0]][place[1]],
        bond=1,
    )
    game: Game = start(Rules(), case, sign(challenger.secret, opening), at=0)
    while game.mover is not None:
        began = time.process_time()
        move: Move
        if game.mover == "claimant":
            move, key = players.answer(game, arithmetic, claimed), claimant
        else:
            move, key = players.choose(game, own), challenger
        signed = sign(key.secret, move)
        made = time.process_time()
        mover, game = game.mover, apply(game, arithmetic, signed, at=game.turn)
        took = 1e3 * (time.process_time() - made)
        setattr(cost, mover, getattr(cost, mover) + 1e3 * (made - began))
        cost.referee, cost.last = cost.referee + took, took
    (fault,) = game.faults
    assert fault.party == "claimant", fault
    cost.code, cost.moves, cost.size = fault.code, len(game.taken), game.size
    cost.tile = game.node.first if game.node is not None else -1
    return cost


def main() -> None:
    """Print a line for every op."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--position", type=int, default=2000)
    parser.add_argument("--type", default="Q4_0")
    parser.add_argument("--all", action="store_true", help="every op, not one of each kind")
    options = parser.parse_args()
    rng = Random(1)
    games: list[Cost] = []
    for label, unit in (("embedding", 0), ("layer", SEVEN_B.n_layers), ("tail", SEVEN_B.n_layers + 1)):
        honest, _, seconds = synthetic(
            unit, position=options.position, default=options.type, types={"output": "Q6_K"}
        )
        members: dict[str, Any] = asdict(honest.known.run.params)
        params = Params(**{**members, "seed": str(members["seed"]), "stop": tuple(members["stop"])})
        print(
            f"{label}: {honest.shape.n_tiles} tiles; either party's trace {seconds:.1f} s, replay not counted"
        )
        print(
            f"  {'lie at':24} {'moves':>5} {'bytes':>6} {'referee':>8} {'last':>6} {'claimant':>8} {'challenger':>10}  verdict"
        )
        for op in honest.shape.ops if options.all else kinds(honest.shape.ops):
            claimed, index = lie(honest, op, rng)
            own = honest
            if unit > SEVEN_B.n_layers:
                context = opened_by(claimed, params)
                own = UnitTrace(
                    honest.known,
                    honest.weights,
                    honest.capture,  # type: ignore[arg-type]
                    options.position,
                    unit,
                    against=context,
                    capture=honest.capture,
                )
            cost = play(claimed, own, params)
            named = cost.tile == index or any(
                each.first == cost.tile for each in honest.shape.ops if each.name == "cuts"
            )
            assert named, (op.name, index, cost)
            games.append(cost)
            print(
                f"  {op.name:24} {cost.moves:5} {cost.size:6} {cost.referee:8.2f} {cost.last:6.2f} "
                f"{cost.claimant:8.1f} {cost.challenger:10.1f}  {cost.code}",
                flush=True,
            )
    print(
        f"{len(games)} games, all won by the honest side at the lie's own tile; most: {max(g.size for g in games)} bytes, "
        f"referee {max(g.referee for g in games):.2f} ms in all, {max(g.last for g in games):.2f} for the last move"
    )


SAME = {
    "q": ("k", "v", "attn_output", "gate", "up", "down", "output"),
    "attn_norm": ("ffn_norm", "output_norm"),
    "attn_residual": ("residual",),
    "rope_q": ("rope_k",),
    "keys": ("values",),
    "attention.quantised": ("attn_norm.quantised", "ffn_norm.quantised", "output_norm.quantised"),
}
"""Ops of one kind: the first stands for the others."""


def kinds(ops: Sequence[Op]) -> list[Op]:
    """One op of each kind."""
    found: dict[str, Op] = {}
    names = {other: first for first, others in SAME.items() for other in others}
    for op in ops:
        stem, dot, end = op.name.partition(".")
        kind = "finite" if end.endswith("finite") else names.get(op.name) or names.get(stem, stem) + dot + end
        found.setdefault(kind, op)
    return list(found.values())


def opened_by(claimed: LyingTrace, params: Params) -> Any:
    """The unit as the claimant's bounds open it: a challenger takes its cuts."""

    run = replace(claimed.known.run, params=params)
    return open_unit(run, claimed.context.position, claimed.context.unit, claimed.bounds)


if __name__ == "__main__":
    main()
