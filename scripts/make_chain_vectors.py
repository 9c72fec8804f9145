"""Make the games of the 7B shape whose gas is measured (vectors/aos/dispute/chain.json; docs/spec/16-chain-disputes.md).

``python scripts/make_chain_vectors.py``: a random layer of that shape (4-bit weights, position 2,000; 2 GB, a minute), and of
some ops everything that both parties send: bounds, nodes on the way, the proof of one element.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks")]

from dispute import SALT, synthetic  # noqa: E402

from aos.core.dispute.fine.element import check_element, element_count  # noqa: E402
from aos.core.dispute.fine.onchain import chain_bounds, context_words, frontier, halvings  # noqa: E402
from aos.core.dispute.trace_tree import TreeShape  # noqa: E402
from aos.core.encoding import b64u_encode  # noqa: E402
from aos.core.merkle import tree_root  # noqa: E402
from aos.engine.trace import UnitTrace  # noqa: E402

VECTORS = ROOT / "vectors" / "aos" / "dispute" / "chain.json"
OPS = ("q.chunks", "q", "down.chunks", "down", "mix", "scores", "scores.finite", "activation", "exp.lanes")
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


def main() -> None:
    """Write the file."""
    trace, claim, _ = synthetic(1)
    nodes = Nodes(trace)
    games = []
    for name in OPS:
        op = trace.shape.named(name)
        tile = op.first + op.grid.tiles // 2
        element = element_count(trace.shape, tile) // 2
        shown, proof = trace.prove_element(tile, element)
        check_element(claim, trace.unit_root, tile, element, shown, proof)
        games.append(
            {"op": name, "tile": tile, "element": element, "proof": b64u_encode(proof), **nodes.way(tile)}
        )
    run, context = trace.known.run, trace.context
    params = {name: value for name, value in asdict(run.params).items() if name != "seed"}  # type: ignore[call-overload]
    vector = {
        "description": "docs/spec/16-chain-disputes.md; made by scripts/make_chain_vectors.py",
        "manifest": run.manifest.json().decode(),
        "params": {**params, "stop": list(params["stop"])},
        "salt": SALT.hex(),
        "position": context.position,
        "unit": context.unit,
        "state_root": b64u_encode(context.state_root),
        "root": nodes.hash((0, 0, 1)),
        "bounds": b64u_encode(chain_bounds(trace.bounds, run, context.position, context.unit)),
        "context": b64u_encode(context_words(claim, trace.unit_root)),
        "games": games,
    }
    VECTORS.write_text(json.dumps(vector, indent=1) + "\n")


if __name__ == "__main__":
    main()
