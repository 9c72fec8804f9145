"""A game on a chain as its contract holds it, and its parties' moves (docs/spec/16-chain-disputes.md, "Moves").

Pure: how a game is read from a node, and a move sent, is ``aos.adapters.chain.court``'s.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, Literal, TypeAlias

from aos.core.codec import Address, Bytes32, MaxLength, Range, UInt, UInt32, decode, encode
from aos.core.dispute.fine.around import MAX_AROUND_BYTES
from aos.core.dispute.fine.bounds import MAX_BOUNDS_BYTES
from aos.core.dispute.fine.onchain import CONTEXT_BYTES, HALVINGS, PARTS, below_root
from aos.core.dispute.fine.tile import MAX_PROOF_BYTES
from aos.core.dispute.state_tree import RECORD
from aos.core.dispute.trace_tree import TreeShape, tile_hash
from aos.core.merkle import leaf_hash
from aos.errors import InvalidMessage, Unavailable

UNSEEN = 2**32 - 1
"""Named instead of an element by a challenger that must see the tile first."""

MAX_GAME_BYTES = 4 << 20
"""Of a game as JSON: the hashes of a tail's parts are most of it."""

Party = Literal["claimant", "challenger"]
Node: TypeAlias = tuple[int, int, int]
"""Siblings of a trace's tree: level, first, end."""
Children: TypeAlias = Annotated[tuple[Bytes32, ...], MaxLength(1 << HALVINGS)]
Parts: TypeAlias = Annotated[tuple[Annotated[tuple[Bytes32, ...], MaxLength(1 << 20)], ...], MaxLength(PARTS)]
Context: TypeAlias = Annotated[bytes, MaxLength(CONTEXT_BYTES)]
TileBytes: TypeAlias = Annotated[bytes, MaxLength(1 << 20)]


class Stage(IntEnum):
    """What a game waits for; the contract's numbers."""

    NONE = 0
    ANSWER = 1
    REVEAL = 2
    CHOOSE = 3
    PROVE = 4
    OVER = 5
    PARTS = 6
    TILE = 7
    PICK = 8


MOVERS: dict[Stage, Party] = {
    Stage.ANSWER: "claimant",
    Stage.REVEAL: "claimant",
    Stage.CHOOSE: "challenger",
    Stage.PROVE: "claimant",
    Stage.PARTS: "claimant",
    Stage.TILE: "claimant",
    Stage.PICK: "challenger",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainGame:
    """A game at some block, and what its claimant has shown in it.

    ``deadline`` in Unix seconds: the last one at which the mover is in time. ``tiles`` of the unit's trace (0 before the
    answer); ``node`` (level, first, end) with its ``hash`` is where the game stands, a tile once one is chosen, then with an
    ``element``. ``children`` are the nodes below that were shown last; ``parts`` the hashes of the tiles of the unit's parts
    and ``head`` the sampler record's first tile, once they were asked for; ``tile`` the chosen tile's bytes, where shown.
    """

    id: Bytes32
    claim: Bytes32
    claimant: Address
    challenger: Address
    stage: Annotated[int, Range(0, len(Stage) - 1)]
    position: UInt32
    unit: UInt32
    tiles: UInt32
    node: Annotated[tuple[UInt32, ...], MaxLength(3)]
    hash: Bytes32
    element: UInt32
    asked: bool
    deadline: UInt
    convicted: bool
    """Whether the claim is, in this game or another."""
    children: Children = ()
    parts: Parts | None = None
    head: TileBytes = b""
    tile: TileBytes | None = None

    @property
    def mover(self) -> Party | None:
        """Whose turn it is."""
        return MOVERS.get(Stage(self.stage))

    def check_shown(self) -> None:
        """Raises Unavailable ``chain.moved`` where what was shown is not what the contract was shown: state and events were
        read from two histories.
        """
        shape = TreeShape(self.tiles) if self.tiles else None
        fits = True
        if self.stage == Stage.CHOOSE and shape is not None:
            level, first, end = self.node
            try:
                fits = below_root(shape, (level, first, end), HALVINGS, self.children) == self.hash
            except InvalidMessage:
                fits = False
        if self.asked and self.stage != Stage.PARTS:
            fits = fits and self.parts is not None
        if self.head:
            fits = fits and bool(self.parts) and leaf_hash(self.head) == self.parts[RECORD][0]  # type: ignore[index]
        if self.stage == Stage.PICK:
            fits = fits and self.tile is not None and tile_hash(self.tile) == self.hash
        if not fits:
            raise Unavailable(
                "chain.moved", "the chain was reorganised while the game was read", hint="read it again"
            )


# --- the claimant's moves


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Open the unit with the run's parameters (decimals in millionths), and commit to its trace's ``root``; without
    ``children`` where the run has no such unit."""

    model_id: Bytes32
    state_root: Bytes32
    salt: Bytes32
    max_tokens: UInt
    min_p: UInt
    repeat_penalty: UInt
    stop: Annotated[tuple[str, ...], MaxLength(64)]
    temperature: UInt
    top_k: UInt
    top_p: UInt
    bounds: Annotated[bytes, MaxLength(MAX_BOUNDS_BYTES)]
    root: Bytes32
    children: Children


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTokens:
    """Show that the token behind the position is the one that the tail there chose (``prove_tokens``' bytes)."""

    model_id: Bytes32
    state_root: Bytes32
    proof: Annotated[bytes, MaxLength(MAX_AROUND_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reveal:
    """Show the nodes below the chosen one."""

    children: Children


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowParts:
    """Show the hashes of the tiles of the unit's parts, and the record's first tile; ``context``: 33 words."""

    context: Context
    hashes: Parts
    head: TileBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowTile:
    """Show the chosen tile."""

    data: TileBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Prove:
    """Prove the chosen ``element`` of the chosen ``tile``; ``shown`` is another one only where all of it is all ones."""

    context: Context
    tile: UInt32
    element: UInt32
    shown: UInt32
    proof: Annotated[bytes, MaxLength(MAX_PROOF_BYTES)]


# --- the challenger's


@dataclass(frozen=True, slots=True, kw_only=True)
class Choose:
    """Go down: ``path`` has a bit a halving, the first one highest, 1 the right half; ``siblings`` are the other halves, the
    lowest first. ``element`` counts at a tile alone.
    """

    path: UInt32
    node: Bytes32
    siblings: Annotated[tuple[Bytes32, ...], MaxLength(32)]
    element: UInt32


@dataclass(frozen=True, slots=True, kw_only=True)
class AskParts:
    """Ask for the hashes of the tiles of the unit's parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """Name the element of the tile that was shown."""

    element: UInt32


CLAIMANT_MOVES: dict[str, type[Any]] = {
    "answer": Answer,
    "answer_tokens": AnswerTokens,
    "reveal": Reveal,
    "show_parts": ShowParts,
    "show_tile": ShowTile,
    "prove": Prove,
}
"""By their names in JSON."""

ClaimantMove: TypeAlias = Answer | AnswerTokens | Reveal | ShowParts | ShowTile | Prove
ChallengerMove: TypeAlias = Choose | AskParts | Pick
Move: TypeAlias = ClaimantMove | ChallengerMove


def move_json(move: ClaimantMove) -> dict[str, Any]:
    """A claimant's move as ``{"kind", "move"}``."""
    kind = next(name for name, cls in CLAIMANT_MOVES.items() if type(move) is cls)
    return {"kind": kind, "move": encode(move)}


def read_claimant_move(kind: object, value: object) -> ClaimantMove:
    """The other way round, strictly. Raises InvalidMessage ``dispute.move_type``, ``field.*``."""
    cls = CLAIMANT_MOVES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise InvalidMessage("dispute.move_type", "this is no move of a claimant", field="kind")
    move: ClaimantMove = decode(cls, value, where="move")
    return move
