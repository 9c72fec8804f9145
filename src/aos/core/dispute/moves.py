"""The signed moves of a dispute (docs/spec/13-dispute.md, "Moves").

A move is a statement of its own type, signed as every statement. All but the first name the game, their turn and the
hash of the move before them. This module declares and reads them; what they mean is ``aos.core.dispute.game``'s.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal, TypeAlias

from aos.core.codec import (
    Address,
    Bytes32,
    MaxLength,
    NetworkId,
    OptionalBytes32,
    Range,
    UInt,
    UInt32,
)
from aos.core.encoding import canonical_json, lp, parse_json_strict, tagged_hash
from aos.core.signing import address_bytes
from aos.core.statements import Signed, read_signed
from aos.errors import InvalidMessage

Kind = Literal["unit", "header", "prompt", "tokens", "stop", "text", "trap"]
"""What a challenge is about: one unit of the model at one position, or something around the model."""

Party = Literal["claimant", "challenger"]

HASH_BYTES: Final = 32
MAX_WIDTH: Final = 256
MAX_LEVELS: Final = 3
MAX_TURN: Final = 2 * MAX_LEVELS + 1
MAX_GAME_BYTES: Final = 64 * 1024
MAX_BOUNDS_BYTES: Final = 32 * 1024
MAX_PROOF_BYTES: Final = 40 * 1024
Turn = Annotated[int, Range(1, MAX_TURN)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """The challenger, turn 0: this claim is wrong here. ``state_root`` and ``leaf`` are the challenger's own values;
    ``leaf`` is empty where ``kind`` is not ``unit``, and ``position`` and ``unit`` are then the kind's own matter."""

    TYPE: ClassVar[str] = "aos.dispute_open"
    V: ClassVar[int] = 1

    network: NetworkId
    challenger: Address
    claimant: Address
    claim: Bytes32
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    kind: Kind
    position: UInt32
    unit: UInt32
    state_root: Bytes32
    leaf: OptionalBytes32
    bond: UInt


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The claimant: the hashes of the children of the node that was asked for, one after the other. The first answer
    also opens the unit under the claim's ``state_root`` (``bounds``), and commits to ``unit_root``."""

    TYPE: ClassVar[str] = "aos.dispute_answer"
    V: ClassVar[int] = 1

    game: Bytes32
    turn: Turn
    previous: Bytes32
    claimant: Address
    claim: Bytes32
    position: UInt32
    unit: UInt32
    unit_root: Bytes32
    children: Annotated[bytes, MaxLength(MAX_WIDTH * HASH_BYTES)]
    bounds: Annotated[bytes, MaxLength(MAX_BOUNDS_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choose:
    """The challenger: this child of the last answer."""

    TYPE: ClassVar[str] = "aos.dispute_choose"
    V: ClassVar[int] = 1

    game: Bytes32
    turn: Turn
    previous: Bytes32
    child: Annotated[int, Range(0, MAX_WIDTH - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The claimant, last: what recomputes the one value in question, with every operand opened."""

    TYPE: ClassVar[str] = "aos.dispute_proof"
    V: ClassVar[int] = 1

    game: Bytes32
    turn: Turn
    previous: Bytes32
    proof: Annotated[bytes, MaxLength(MAX_PROOF_BYTES)]


Move: TypeAlias = Open | Answer | Choose | Proof
MOVES: Final[tuple[type[Move], ...]] = (Open, Answer, Choose, Proof)
_BY_TYPE: Final[dict[str, type[Move]]] = {cls.TYPE: cls for cls in MOVES}


def read_move(value: object, *, where: str = "move") -> Signed[Move]:
    """Decode ``{"statement", "signature"}`` strictly as a move; the signature is *not* verified.

    Raises InvalidMessage ``dispute.move_type``, ``field.*``, ``statement.*``.
    """
    statement = value.get("statement") if isinstance(value, dict) else None
    kind = statement.get("type") if isinstance(statement, dict) else None
    cls = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise InvalidMessage("dispute.move_type", "this is no move of a dispute", field=where)
    return read_signed(cls, value, where=where)


def parse_move(data: bytes) -> Signed[Move]:
    """Read a move as it is sent: JSON of at most 64 KiB. Raises InvalidMessage ``encoding.*``, and as ``read_move``."""
    return read_move(parse_json_strict(data, max_bytes=MAX_GAME_BYTES))


def move_size(move: Signed[Move]) -> int:
    """Bytes that a move counts for: canonical JSON of ``{"statement", "signature"}``."""
    return len(canonical_json(move.to_json()))


def game_id(move: Move) -> bytes:
    """The game that a move belongs to (32 bytes). Of one challenger there is one game about one claim."""
    if isinstance(move, Open):
        return tagged_hash(
            "dispute-game", lp(move.network.encode()), move.claim, address_bytes(move.challenger)
        )
    return move.game


def turn_of(move: Move) -> int:
    """The move's turn; 0 for the one that opens."""
    return 0 if isinstance(move, Open) else move.turn


def split_hashes(data: bytes) -> tuple[bytes, ...]:
    """The hashes that stand one after the other in ``data``. Raises InvalidMessage ``dispute.children_length``."""
    if len(data) % HASH_BYTES:
        raise InvalidMessage("dispute.children_length", "children are hashes of 32 bytes", field="children")
    return tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))
