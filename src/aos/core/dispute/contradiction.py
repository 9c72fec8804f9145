"""Two signed statements of one party that cannot both be honest (docs/spec/13-dispute.md, "Contradictions").

Each pair is evidence by itself, whichever games it comes from: nobody's clock and no recomputation is needed.
"""

from dataclasses import dataclass
from typing import Any

from aos.core.dispute.moves import Answer, Choose, Move, Open, Proof, game_id, read_move, turn_of
from aos.core.statements import ReceiptCore, Signed, check_signed, hash_of, read_signed
from aos.errors import VerificationError

Evidence = Signed[Move] | Signed[ReceiptCore]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """``address`` signed both statements (hashes ascending); ``code`` says what is contradictory."""

    address: str
    code: str
    message: str
    hashes: tuple[bytes, bytes]


def read_evidence(value: object, *, where: str = "evidence") -> Evidence:
    """Decode ``{"statement", "signature"}`` as a move or a receipt's core; the signature is *not* verified.

    Raises InvalidMessage ``dispute.move_type``, ``field.*``, ``statement.*``.
    """
    statement = value.get("statement") if isinstance(value, dict) else None
    if isinstance(statement, dict) and statement.get("type") == ReceiptCore.TYPE:
        return read_signed(ReceiptCore, value, where=where)
    return read_move(value, where=where)


def contradiction(a: Evidence, b: Evidence, *, address: str) -> Contradiction:
    """The contradiction between two statements that ``address`` signed.

    Raises VerificationError ``dispute.no_contradiction``, ``signature.*``.
    """
    found = _between(a.statement, b.statement) or _between(b.statement, a.statement)
    if found is None:
        raise VerificationError("dispute.no_contradiction", "the two statements can both be honest")
    check_signed(a, address=address)
    check_signed(b, address=address)
    code, message = found
    low, high = sorted((hash_of(a.statement), hash_of(b.statement)))
    return Contradiction(address=address, code=code, message=message, hashes=(low, high))


def _between(a: Any, b: Any) -> tuple[str, str] | None:
    if hash_of(a) == hash_of(b):
        return None
    moves = Open | Answer | Choose | Proof
    if isinstance(a, moves) and isinstance(b, moves) and (game_id(a), turn_of(a)) == (game_id(b), turn_of(b)):
        return "dispute.contradiction", f"two different moves for turn {turn_of(a)} of one game"
    if isinstance(a, Answer) and isinstance(b, Answer):
        places = [(m.claimant, m.claim, m.position, m.unit) for m in (a, b)]
        if places[0] == places[1] and a.unit_root != b.unit_root:
            return (
                "dispute.two_unit_roots",
                f"two unit roots for unit {a.unit} at position {a.position} of one claim",
            )
    if isinstance(a, Open) and isinstance(b, ReceiptCore):
        runs = [
            (a.network, a.challenger, a.job_ref, a.attempt),
            (b.network, b.operator, b.job_ref, b.attempt),
        ]
        if runs[0] == runs[1] and b.state_root and a.state_root != b.state_root:
            return "dispute.two_state_roots", "a challenge with another state root than its own receipt"
    if isinstance(a, ReceiptCore) and isinstance(b, ReceiptCore):
        runs = [(c.network, c.operator, c.job_ref, c.attempt) for c in (a, b)]
        if runs[0] == runs[1] and a.state_root and b.state_root and a.state_root != b.state_root:
            return "dispute.two_state_roots", "two state roots for one attempt of a job"
    return None
