"""Make the games of the 7B shape whose gas is measured (vectors/aos/dispute/chain.json; docs/spec/16-chain-disputes.md).

``python scripts/make_chain_vectors.py``: random units of that shape (4-bit weights, the output's of 6 bits; position 2,000; 2 GB,
a minute), and of some ops the proof of one element; of a few everything that both parties send: nodes on the way, too.
``--all FILE`` writes every op, at its first, its middle and its last tile, whole, for ``scripts/chain_gas.py``.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks")]

from dispute import PARAMS, SALT, SEVEN_B, synthetic  # noqa: E402

from aos.core.dispute.fine.bounds import Unit  # noqa: E402
from aos.core.dispute.fine.element import check_element, element_count  # noqa: E402
from aos.core.dispute.fine.onchain import chain_bounds, context_words, frontier, halvings  # noqa: E402
from aos.core.dispute.trace_tree import TreeShape  # noqa: E402
from aos.core.encoding import b64u_encode  # noqa: E402
from aos.core.merkle import tree_root  # noqa: E402
from aos.engine.trace import UnitTrace  # noqa: E402

VECTORS = ROOT / "vectors" / "aos" / "dispute" / "chain.json"
LAYER = (
    "attn_norm.lanes attn_norm.sum attn_norm attn_norm.quantised q.chunks q rope_q keys scores scores.max.chunks scores.max "
    "exp exp.lanes mix mix.chunks attention attn_residual up.chunks activation down.chunks down residual v.finite "
    "scores.finite trap"
)
TAIL = (
    "output.chunks logits seen adjusted largest.chunks largest weights cuts before.chunks before before.holds "
    "after.chunks after after.holds running picks record token"
)
WHOLE = ("q.chunks", "q", "mix", "down.chunks", "v.finite")
HALVINGS = 4


class Nodes:
    """The hashes of a trace's nodes."""

    def __init__(self, trace: UnitTrace) -> None:
        self.shape = TreeShape(trace.shape.n_tiles)
        self._levels = [list(trace.tile_hashes)]
        for level in reversed(range(self.shape.depth)):
            below = self._levels[0]
            spans = (self.shape.children(level, index) for index in range(self.shape.count(level)))
            self._levels.insert(0, [tree_root(below[each.start : each.stop]) for each in spans])

    def hash(self, node: tuple[int, int, int]) -> str:
        """Of siblings ``first`` … ``end`` - 1 of a level."""
        level, first, end = node
        return b64u_encode(tree_root(self._levels[level][first:end]))

    def way(self, tile: int) -> dict[str, Any]:
        """Down to a tile: turns, the other halves, the nodes themselves, and what a reveal at each move shows."""
        turns = halvings(self.shape, tile)
        node = frontier(self.shape, (0, 0, 1), 0)[0]
        nodes, shown = [], []
        for number, (right, _) in enumerate(turns):
            if number % HALVINGS == 0:
                shown.append([self.hash(each) for each in frontier(self.shape, node, HALVINGS)])
            halves = frontier(self.shape, node, 1)
            node = halves[int(right)]
            nodes.append(self.hash(node))
        return {
            "right": [right for right, _ in turns],
            "others": [self.hash(other) for _, other in turns],
            "nodes": nodes,
            "shown": shown,
        }


def games(trace: UnitTrace, claim: Unit, names: Sequence[str], everything: bool) -> list[dict[str, Any]]:
    """A game about an element in the middle of a tile of each op."""
    nodes, found = Nodes(trace), []
    for op in trace.shape.ops:
        count = op.grid.tiles
        if count == 0 or not (everything or op.name in names):
            continue
        for tile in sorted({0, count // 2, count - 1}) if everything else [count // 2]:
            index = op.first + tile
            element = element_count(trace.shape, index) // 2
            shown, proof = trace.prove_element(index, element)
            check_element(claim, trace.unit_root, index, element, shown, proof)
            way = nodes.way(index) if everything or op.name in WHOLE else {}
            found.append(
                {"op": op.name, "tile": index, "element": element, "proof": b64u_encode(proof), **way}
            )
    return found


def unit_vector(number: int, names: str, everything: bool) -> dict[str, Any]:
    """A unit's games, and what both parties know of it."""
    trace, claim, _ = synthetic(number, types={"output": "Q6_K"})
    run, context = trace.known.run, trace.context
    return {
        "manifest": run.manifest.json().decode(),
        "position": context.position,
        "unit": context.unit,
        "state_root": b64u_encode(context.state_root),
        "root": Nodes(trace).hash((0, 0, 1)),
        "bounds": b64u_encode(chain_bounds(trace.bounds, run, context.position, context.unit)),
        "context": b64u_encode(context_words(claim, trace.unit_root)),
        "games": games(trace, claim, names.split(), everything),
    }


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", type=Path, metavar="FILE")
    everything: Path | None = parser.parse_args().all
    params = {name: value for name, value in asdict(PARAMS).items() if name != "seed"}  # type: ignore[call-overload]
    units = ((1, LAYER), (0, "embedding"), (SEVEN_B.n_layers + 1, TAIL))
    layer, *others = (unit_vector(number, names, everything is not None) for number, names in units)
    vector = {
        "description": "docs/spec/16-chain-disputes.md; made by scripts/make_chain_vectors.py",
        "params": {**params, "stop": list(params["stop"])},
        "salt": SALT.hex(),
        **layer,
        "other_units": others,
    }
    (everything or VECTORS).write_text(json.dumps(vector, indent=1) + "\n")


if __name__ == "__main__":
    main()
