"""What a run of the canonical engine commits to, as it comes out of the forward pass
(docs/spec/07-inference.md, "State root"). Only the leaf hashes of units are kept; the rules are
``aos.core.dispute.state_tree``.
"""

import struct

from aos.core.arithmetic.floats import F16, F32
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.state_tree import (
    CACHE_TILE_BYTES,
    TILE_BYTES,
    StateHeader,
    part_root,
    trap_leaf,
    unit_leaf,
)
from aos.core.merkle import tree_root


class StateLeaves:
    """Leaf hashes of one run, by position and unit. A ``Sink`` of the forward pass."""

    def __init__(self, n_layers: int) -> None:
        self.n_layers = n_layers
        self.positions: list[list[bytes]] = []

    def embedding(self, first: int, residual: F32) -> None:
        """Unit 0: the residual, float32."""
        del self.positions[first:]
        for row in residual.astype("<f4"):
            root = part_root(row.tobytes(), TILE_BYTES)
            self.positions.append([unit_leaf(len(self.positions), 0, [root])])

    def layer(self, first: int, index: int, residual: F32, keys: F16, values: F16) -> None:
        """Unit ``index + 1``: the residual, K after RoPE and V, binary16."""
        rows = zip(residual.astype("<f4"), keys.astype("<f2"), values.astype("<f2"), strict=True)
        for position, (x, k, v) in enumerate(rows, start=first):
            roots = [part_root(x.tobytes(), TILE_BYTES)]
            roots += [part_root(half.tobytes(), CACHE_TILE_BYTES) for half in (k, v)]
            self.positions[position].append(unit_leaf(position, index + 1, roots))

    def tail(self, position: int, logits: F32 | None, record: bytes, token: int | None) -> None:
        """Unit ``n_layers + 1``: logits, sampler record, token; nothing at a position that chooses none."""
        roots: list[bytes] = []
        if logits is not None and token is not None:
            parts = (logits.astype("<f4").tobytes(), record, struct.pack("<I", token))
            roots = [part_root(part, TILE_BYTES) for part in parts]
        self.positions[position].append(unit_leaf(position, self.n_layers + 1, roots))

    def trap(self, position: int, unit: int, op: int) -> None:
        """Rule 10: the run ends in this unit, whose leaf says where."""
        del self.positions[position + 1 :]
        if position == len(self.positions):
            self.positions.append([])
        del self.positions[position][unit:]
        self.positions[position].append(trap_leaf(position, unit, op))

    def cut(self, positions: int) -> None:
        """Forget every position from ``positions`` on."""
        del self.positions[positions:]

    def unit_roots(self) -> list[bytes]:
        """For finding a difference between implementations: per unit, the root over the positions that have
        it.
        """
        return [
            tree_root([leaves[unit] for leaves in self.positions if unit < len(leaves)])
            for unit in range(self.n_layers + 2)
        ]

    def tree(self, header: StateHeader) -> StateTree:
        """The tree under ``state_root``, to open any of it. Raises InvalidMessage ``state.positions``."""
        return StateTree(header, self.positions)
