"""The answer file: a receipt with everything that a stranger needs to judge it (docs/spec/08-receipts.md, "Answer file").

``read_answer`` decodes strictly, ``write_answer`` is its inverse, ``draw_part`` keeps a draw small. Nothing is verified here:
that is ``receipt.verify_answer``'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from aos.core import draw, merkle
from aos.core.codec import Bytes32, MaxLength, SignatureBytes, UInt, UInt32, decode, encode
from aos.core.dispute.court import Resolution
from aos.core.encoding import canonical_json, parse_canonical
from aos.core.log.leaf import LogPart
from aos.core.statements import (
    Acceptance,
    Commit,
    CommitSet,
    Countersign,
    DrawCall,
    DrawEntry,
    DrawRecord,
    ReceiptCore,
    Signed,
    SnapshotEntry,
    VrfClaim,
)
from aos.core.tee import TeeEvidence
from aos.errors import InvalidMessage

MAX_ANSWER_BYTES = 8 * 1024 * 1024
MAX_RECEIPT_BYTES = 2048
MAX_FULL_DRAW = 32
"""Operators in a registry up to which an answer file carries the whole draw."""

Path = Annotated[tuple[Bytes32, ...], MaxLength(64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One operator's core and signature, and the dispatcher's countersign and signature."""

    core: ReceiptCore
    signature: SignatureBytes
    countersign: Countersign
    countersign_signature: SignatureBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnOperator:
    """One operator of the snapshot in a draw. ``index`` is its place; paths are empty where every index is present."""

    index: UInt32
    operator: SnapshotEntry
    entry: DrawEntry
    claim: Signed[VrfClaim] | None
    operator_path: Path
    entry_path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawPart:
    """A draw: all of it, or the seated operators with inclusion paths."""

    draw_call: Signed[DrawCall]
    draw_record: Signed[DrawRecord]
    first_draw: Signed[DrawCall] | None
    max_range: UInt
    entries: Annotated[tuple[DrawnOperator, ...], MaxLength(4096)]

    @property
    def complete(self) -> bool:
        """True where every operator of the snapshot is present."""
        return len(self.entries) == draw.total(self.draw_record.statement.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What opens one commitment: the commit and its salt."""

    commit: Signed[Commit]
    salt: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitPart:
    """The commit set, and the openings of those who revealed, by node_id ascending."""

    commit_set: Signed[CommitSet]
    openings: Annotated[tuple[Opening, ...], MaxLength(64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer file. ``request`` holds the exact canonical bytes as text."""

    TYPE: ClassVar[str] = "aos.answer"
    V: ClassVar[int] = 1

    receipt: Receipt
    peers: Annotated[tuple[Receipt, ...], MaxLength(63)]
    request: Annotated[str, MaxLength(1 << 20)]
    nonce: Bytes32
    text: Annotated[str, MaxLength(1 << 22)]
    tokens: Annotated[tuple[UInt32, ...], MaxLength(1_000_000)]
    acceptance: Signed[Acceptance]
    draw: DrawPart
    commit: CommitPart
    evidence: TeeEvidence | None
    resolution: Signed[Resolution] | None = None
    """Where results differed and games decided. The member is written only where there is one."""
    log: LogPart | None = None
    """Where acceptance and receipt are in the dispatcher's log. The member is written only where there is one."""


_LEFT_OUT = ("resolution", "log")
"""Members that are not written where there is nothing to say."""


def read_answer(data: bytes) -> Answer:
    """Strictly decode an answer file of at most 8 MiB: canonical JSON, exact members.

    Raises InvalidMessage ``encoding.*``, ``field.*``, ``statement.*``.
    """
    value = parse_canonical(data, max_bytes=MAX_ANSWER_BYTES)
    if isinstance(value, dict):
        for name in _LEFT_OUT:
            if value.get(name, value) is None:
                raise InvalidMessage("field.type", f"{name}: is left out where there is none", field=name)
        value = dict.fromkeys(_LEFT_OUT) | value
    return decode(Answer, value)


def write_answer(answer: Answer) -> bytes:
    """The file's bytes. Beyond ``MAX_FULL_DRAW`` operators only the seated ones' entries are kept, with paths."""
    if answer.draw.complete and len(answer.draw.entries) > MAX_FULL_DRAW:
        answer = replace(answer, draw=seated_only(answer.draw))
    return canonical_json(_written(answer))


def _written(answer: Answer) -> dict[str, Any]:
    value: dict[str, Any] = encode(answer)
    for name in _LEFT_OUT:
        if value[name] is None:
            del value[name]
    return value


def bundle_bytes(answer: Answer) -> int:
    """Bytes beside text, tokens, request and evidence."""
    bare = replace(answer, text="", tokens=(), request="", evidence=None)
    return len(canonical_json(_written(bare)))


def receipt_bytes(receipt: Receipt) -> int:
    """Bytes of the core's canonical JSON and both signatures as written.

    The clock's entries are not counted: how many there are follows from the network's size, not from the answer.
    """
    core = replace(receipt.core, clock={})
    return len(canonical_json(encode(core))) + 2 * len(encode(receipt.signature))


def draw_part(
    *,
    draw_call: Signed[DrawCall],
    draw_record: Signed[DrawRecord],
    first_draw: Signed[DrawCall] | None,
    max_range: int,
    operators: Sequence[SnapshotEntry],
    entries: Sequence[DrawEntry],
    claims: Mapping[str, Signed[VrfClaim]],
) -> DrawPart:
    """A whole draw as an answer file carries it. Claims that the record does not name are left out."""
    drawn = tuple(
        DrawnOperator(
            index=index,
            operator=operator,
            entry=entry,
            claim=claims.get(operator.node_id) if entry.claim else None,
            operator_path=(),
            entry_path=(),
        )
        for index, (operator, entry) in enumerate(zip(operators, entries, strict=True))
    )
    return DrawPart(
        draw_call=draw_call,
        draw_record=draw_record,
        first_draw=first_draw,
        max_range=max_range,
        entries=drawn,
    )


def seated_only(part: DrawPart) -> DrawPart:
    """The part of a whole draw that shows the seated operators, each with its inclusion paths."""
    operators = [draw.snapshot_leaf(drawn.operator) for drawn in part.entries]
    entries = [draw.entry_leaf(drawn.entry) for drawn in part.entries]
    seats = set(part.draw_record.statement.seats)
    kept = tuple(
        replace(
            drawn,
            operator_path=tuple(merkle.inclusion_path(operators, drawn.index)),
            entry_path=tuple(merkle.inclusion_path(entries, drawn.index)),
        )
        for drawn in part.entries
        if drawn.operator.node_id in seats
    )
    return replace(part, entries=kept)
