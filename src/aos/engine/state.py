"""``state_root``: what a run of the canonical engine commits to (docs/spec/07-inference.md, "State root").

One header leaf, then one leaf per unit (embedding, layers, tail) of every position. Only leaf hashes are
kept.
"""

import struct
from dataclasses import dataclass

from aos.core.arithmetic.floats import F16, F32
from aos.core.encoding import tag
from aos.core.hashes import u32
from aos.core.merkle import leaf_hash, tree_root
from aos.ports import FinishReason

ARITHMETIC_VERSION = 1
HEADER_TAG = tag("state-header")
LEAF_TAG = tag("state-leaf")
TRAP_TAG = tag("state-trap")
FINISH_CODES: dict[FinishReason, int] = {"stop": 1, "length": 2, "cancelled": 3, "numeric_trap": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class StateHeader:
    """The first leaf. Hashes are salted: those of aos.core.hashes, and ``run_params_hash``."""

    model_id: bytes
    prompt_tokens_hash: bytes
    params_hash: bytes
    sampling_seed: int
    n_prompt: int
    n_out: int
    finish_reason: FinishReason
    tokens_hash: bytes
    response_hash: bytes

    def entry(self) -> bytes:
        return b"".join(
            (
                HEADER_TAG,
                u32(ARITHMETIC_VERSION),
                self.model_id,
                self.prompt_tokens_hash,
                self.params_hash,
                self.sampling_seed.to_bytes(8, "big"),
                u32(self.n_prompt),
                u32(self.n_out),
                u32(FINISH_CODES[self.finish_reason]),
                self.tokens_hash,
                self.response_hash,
            )
        )


class StateLeaves:
    """Leaf hashes of one run, by position and unit. A ``Sink`` of the forward pass."""

    def __init__(self, n_layers: int) -> None:
        self.n_layers = n_layers
        self.positions: list[list[bytes]] = []

    def embedding(self, first: int, residual: F32) -> None:
        """Unit 0: the residual, float32."""
        del self.positions[first:]
        for row in residual.astype("<f4"):
            self.positions.append([_leaf(len(self.positions), 0, row.tobytes())])

    def layer(self, first: int, index: int, residual: F32, keys: F16, values: F16) -> None:
        """Unit ``index + 1``: the residual, then K after RoPE and V, binary16."""
        rows = zip(residual.astype("<f4"), keys.astype("<f2"), values.astype("<f2"), strict=True)
        for position, (x, k, v) in enumerate(rows, start=first):
            self.positions[position].append(
                _leaf(position, index + 1, x.tobytes() + k.tobytes() + v.tobytes())
            )

    def tail(self, position: int, logits: F32 | None, record: bytes, token: int | None) -> None:
        """Unit ``n_layers + 1``: logits, sampler record, token; nothing at a position that chooses none."""
        payload = b""
        if logits is not None and token is not None:
            payload = logits.astype("<f4").tobytes() + record + struct.pack("<I", token)
        self.positions[position].append(_leaf(position, self.n_layers + 1, payload))

    def trap(self, position: int, unit: int, op: int) -> None:
        """Rule 10: the run ends in this unit, whose leaf says where."""
        del self.positions[position + 1 :]
        if position == len(self.positions):
            self.positions.append([])
        del self.positions[position][unit:]
        self.positions[position].append(leaf_hash(TRAP_TAG + u32(position) + u32(unit) + u32(op)))

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

    def root(self, header: StateHeader) -> bytes:
        """The ``state_root``."""
        leaves = [leaf_hash(header.entry())]
        for position in self.positions:
            leaves.extend(position)
        return tree_root(leaves)


def _leaf(position: int, unit: int, payload: bytes) -> bytes:
    return leaf_hash(LEAF_TAG + u32(position) + u32(unit) + payload)
