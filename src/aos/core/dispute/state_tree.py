"""The tree under ``state_root``: its hashes, its header, and the shape that a verifier dictates
(docs/spec/07-inference.md, "State root").

A run is positions, a position is units, a unit is up to three parts, a part is tiles; each is a tree of RFC 9162.
``state_opening`` opens what lies below a root.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from aos.core.encoding import tag
from aos.core.hashes import token_bytes, u32
from aos.core.manifest import GraphSizes
from aos.core.merkle import leaf_hash, tree_root
from aos.core.statements import FinishReason
from aos.errors import InvalidMessage, VerificationError

ARITHMETIC_VERSION = 1
HEADER_TAG = b"AOS/state-header/v2\0"
LEAF_TAG = b"AOS/state-leaf/v2\0"
POSITION_TAG = tag("state-position")
TRAP_TAG = tag("state-trap")
FINISH_CODES: dict[FinishReason, int] = {"stop": 1, "length": 2, "cancelled": 3, "numeric_trap": 4}

TILE_BYTES = 1024
CACHE_TILE_BYTES = 512
"""Of K and V: an attention op opens one tile of each of many positions."""
TOKENS_A_TILE = 64

RESIDUAL, KEYS, VALUES = 0, 1, 2
"""Parts of an embedding (the residual alone) and of a layer."""
LOGITS, RECORD, TOKEN = 0, 1, 2
"""Parts of a tail that chooses a token."""

_FINISHES = {code: reason for reason, code in FINISH_CODES.items()}
_HEADER = struct.Struct(">I32s32s32sQIII32s32s32sI")
HEADER_BYTES = len(HEADER_TAG) + _HEADER.size


# --- hashes


def tile_count(size: int, tile_bytes: int) -> int:
    """How many tiles ``size`` bytes are cut into; the last may be short."""
    return -(-size // tile_bytes)


def tile_hashes(data: bytes, tile_bytes: int) -> list[bytes]:
    """The leaf hashes of a part's tiles, a tile's entry being its bytes."""
    return [leaf_hash(data[at : at + tile_bytes]) for at in range(0, len(data), tile_bytes)]


def part_root(data: bytes, tile_bytes: int) -> bytes:
    """The root over a part's tiles; that of no leaves for a part of no bytes."""
    return tree_root(tile_hashes(data, tile_bytes))


def unit_leaf(position: int, unit: int, part_roots: Sequence[bytes]) -> bytes:
    """The leaf hash of a unit at a position; no ``part_roots`` for a tail that chooses no token."""
    return leaf_hash(LEAF_TAG + u32(position) + u32(unit) + b"".join(part_roots))


def trap_leaf(position: int, unit: int, op: int) -> bytes:
    """The leaf hash that stands for the unit in which the run trapped (rule 10)."""
    return leaf_hash(TRAP_TAG + u32(position) + u32(unit) + u32(op))


def position_leaf(position: int, unit_leaves: Sequence[bytes]) -> bytes:
    """The leaf hash of a position, from those of its units."""
    return position_leaf_over(position, len(unit_leaves), tree_root(unit_leaves))


def position_leaf_over(position: int, units: int, root: bytes) -> bytes:
    """``position_leaf`` from the number of its units and the root over them."""
    return leaf_hash(POSITION_TAG + u32(position) + u32(units) + root)


def tokens_root(tokens: Sequence[int]) -> bytes:
    """The root over tiles of 64 token ids (u32, little endian), prompt and output in one sequence."""
    return part_root(token_bytes(tokens), 4 * TOKENS_A_TILE)


# --- the header


@dataclass(frozen=True, slots=True, kw_only=True)
class StateHeader:
    """The first leaf. Hashes of texts, tokens and parameters are salted: those of aos.core.hashes, and
    ``run_params_hash``. ``tokens_root`` is not, so a header goes to nobody who may not know the tokens.
    """

    model_id: bytes
    prompt_tokens_hash: bytes
    params_hash: bytes
    sampling_seed: int
    n_prompt: int
    n_out: int
    finish_reason: FinishReason
    tokens_hash: bytes
    response_hash: bytes
    tokens_root: bytes
    n_positions: int

    def entry(self) -> bytes:
        """The leaf's entry."""
        return HEADER_TAG + _HEADER.pack(
            ARITHMETIC_VERSION,
            self.model_id,
            self.prompt_tokens_hash,
            self.params_hash,
            self.sampling_seed,
            self.n_prompt,
            self.n_out,
            FINISH_CODES[self.finish_reason],
            self.tokens_hash,
            self.response_hash,
            self.tokens_root,
            self.n_positions,
        )

    @classmethod
    def read(cls, entry: bytes) -> Self:
        """The header of an entry. Raises InvalidMessage ``state.header``; says nothing of its truth."""
        if len(entry) != HEADER_BYTES or not entry.startswith(HEADER_TAG):
            raise InvalidMessage("state.header", "the bytes are no state header", field="header")
        version, model, prompt, params, seed, n_prompt, n_out, finish, tokens, response, root, positions = (
            _HEADER.unpack_from(entry, len(HEADER_TAG))
        )
        if version != ARITHMETIC_VERSION or finish not in _FINISHES:
            raise InvalidMessage(
                "state.header", "the header's arithmetic version or finish reason is unknown", field="header"
            )
        return cls(
            model_id=model,
            prompt_tokens_hash=prompt,
            params_hash=params,
            sampling_seed=seed,
            n_prompt=n_prompt,
            n_out=n_out,
            finish_reason=_FINISHES[finish],
            tokens_hash=tokens,
            response_hash=response,
            tokens_root=root,
            n_positions=positions,
        )

    def check(self) -> Self:
        """Return the header if its numbers fit each other, as those of every run do.

        Raises VerificationError ``state.positions``: whoever committed to it computed no run.
        """
        with_output = self.n_prompt + self.n_out
        if self.finish_reason == "numeric_trap":
            low, high = (with_output if self.n_out else 1), with_output
        elif self.n_out:
            low = high = with_output - 1
        else:
            low, high = 0, 0 if self.finish_reason == "cancelled" else -1
        if not (self.n_prompt >= 1 and low <= self.n_positions <= high):
            raise VerificationError(
                "state.positions",
                f"no run of {self.n_prompt} prompt and {self.n_out} output tokens that ends by "
                f"{self.finish_reason} has {self.n_positions} positions",
                field="n_positions",
            )
        return self


# --- the shape: what a verifier dictates


class Part(NamedTuple):
    """A part's bytes and how they are cut."""

    size: int
    tile_bytes: int

    @property
    def tiles(self) -> int:
        """How many tiles it has; none where it is empty."""
        return tile_count(self.size, self.tile_bytes)

    def tile_size(self, tile: int) -> int:
        """The bytes of one tile. Raises InvalidMessage ``state.place``."""
        if not 0 <= tile < self.tiles:
            raise InvalidMessage("state.place", "the part has no such tile", field="tile")
        return min(self.tile_bytes, self.size - tile * self.tile_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateShape:
    """Every size of a run's tree: from the model's manifest, the run's parameters and its opened header.

    ``kv_width`` is key heads times head width. ``sampled``: the temperature is not 0, so tails hold a record.
    ``trap_unit``: the unit of the trap at the last position, None for a run that did not trap.
    """

    n_layers: int
    width: int
    kv_width: int
    n_vocab: int
    sampled: bool
    n_prompt: int
    n_positions: int
    trap_unit: int | None = None

    def units(self, position: int) -> int:
        """The unit leaves of a position. Raises InvalidMessage ``state.place``."""
        if not 0 <= position < self.n_positions:
            raise InvalidMessage("state.place", "the run has no such position", field="position")
        if self.trap_unit is not None and position == self.n_positions - 1:
            return self.trap_unit + 1
        return self.n_layers + 2

    def is_trap(self, position: int, unit: int) -> bool:
        """Whether the leaf there is a trap. Raises InvalidMessage ``state.place``."""
        if not 0 <= unit < self.units(position):
            raise InvalidMessage("state.place", "the position has no such unit", field="unit")
        return unit == self.trap_unit and position == self.n_positions - 1

    def parts(self, position: int, unit: int) -> tuple[Part, ...]:
        """What the unit committed there. Raises InvalidMessage ``state.place``, for a trap too."""
        if self.is_trap(position, unit):
            raise InvalidMessage("state.place", "the unit trapped: it committed no values", field="unit")
        residual = Part(4 * self.width, TILE_BYTES)
        if unit == 0:
            return (residual,)
        if unit <= self.n_layers:
            half = Part(2 * self.kv_width, CACHE_TILE_BYTES)
            return residual, half, half
        if position < self.n_prompt - 1:
            return ()
        record = record_size(self.n_vocab) if self.sampled else 0
        return Part(4 * self.n_vocab, TILE_BYTES), Part(record, TILE_BYTES), Part(4, TILE_BYTES)


def record_size(n_vocab: int) -> int:
    """Bytes of the sampler record of a temperature above 0 (rule 9)."""
    return 16 + 8 * tile_count(n_vocab, 256)


def graph_shape(
    header: StateHeader, graph: GraphSizes, *, sampled: bool, trap_unit: int | None
) -> StateShape:
    """The shape of a run of this graph. Raises as ``shape_of``."""
    return shape_of(
        header,
        n_layers=graph.n_layers,
        width=graph.width,
        kv_width=graph.kv_width,
        n_vocab=graph.n_vocab,
        sampled=sampled,
        trap_unit=trap_unit,
    )


def shape_of(
    header: StateHeader,
    *,
    n_layers: int,
    width: int,
    kv_width: int,
    n_vocab: int,
    sampled: bool,
    trap_unit: int | None = None,
) -> StateShape:
    """The shape of the run whose header is opened.

    Raises VerificationError ``state.positions``; InvalidMessage ``state.trap`` unless ``trap_unit`` is given
    exactly where the run trapped, and is a unit of the graph.
    """
    header.check()
    trapped = header.finish_reason == "numeric_trap"
    if trapped != (trap_unit is not None) or not 0 <= (trap_unit or 0) <= n_layers + 1:
        raise InvalidMessage(
            "state.trap", "the unit of the trap does not go with the header", field="trap_unit"
        )
    return StateShape(
        n_layers=n_layers,
        width=width,
        kv_width=kv_width,
        n_vocab=n_vocab,
        sampled=sampled,
        n_prompt=header.n_prompt,
        n_positions=header.n_positions,
        trap_unit=trap_unit,
    )
