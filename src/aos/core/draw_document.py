"""A job's draws as the dispatcher serves them to anybody, rechecked (docs/spec/04-sortition.md, "Draw document").

No prompt, job_id or result is in it. ``recheck_draws`` needs the document and a trust file, nothing else.
"""

from dataclasses import dataclass
from typing import Annotated

from aos.core.answer import DrawnOperator
from aos.core.beacon import verify_beacon
from aos.core.codec import Bytes32, MaxLength, UInt, decode
from aos.core.draw import OpenedTag, verify_draw_call
from aos.core.draw_check import VerifiedDraw, verify_draw
from aos.core.encoding import parse_json_strict
from aos.core.statements import DrawCall, DrawRecord, Position, Signed, Tag
from aos.core.trust import Trust
from aos.errors import VerificationError

MAX_DOCUMENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TagOpening:
    """What opens ``DrawCall.tag_commitment``; it is served once results are committed."""

    tag: Tag
    position: Position
    salt: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnAttempt:
    """One attempt's draw, whole."""

    draw_call: Signed[DrawCall]
    draw_record: Signed[DrawRecord]
    first_draw: Signed[DrawCall] | None
    max_range: UInt
    entries: Annotated[tuple[DrawnOperator, ...], MaxLength(4096)]
    tag_opening: TagOpening | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawDocument:
    """All draws of one job that came to a record, by attempt ascending."""

    job_ref: Bytes32
    attempts: Annotated[tuple[DrawnAttempt, ...], MaxLength(1024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecheckedDraw:
    """A draw of which everything was recomputed, and what the trust file could not say about it."""

    draw: VerifiedDraw
    registry_trusted: bool
    beacon_checked: bool

    @property
    def complete(self) -> bool:
        """True where nothing rests on the dispatcher's word: registry, beacon and hidden tag included."""
        return self.registry_trusted and self.beacon_checked and self.draw.split_checked


def read_draw_document(data: bytes) -> DrawDocument:
    """Strictly decode a draw document of at most 64 MiB. Raises InvalidMessage ``encoding.*``, ``field.*``."""
    return decode(DrawDocument, parse_json_strict(data, max_bytes=MAX_DOCUMENT_BYTES))


def recheck_draws(document: DrawDocument, *, trust: Trust) -> tuple[RecheckedDraw, ...]:
    """Recompute every draw of a job.

    Raises VerificationError ``draw.*``, ``beacon.mismatch``, ``trust.network``, ``trust.dispatcher``; also
    ``draw.foreign_document`` (an attempt of another job, out of order, or with the first draw of another run).
    """
    numbers = [attempt.draw_record.statement.attempt for attempt in document.attempts]
    if numbers != sorted(set(numbers)):
        raise VerificationError("draw.foreign_document", "the attempts are not in their order, each once")
    return tuple(_recheck(attempt, document.job_ref, trust) for attempt in document.attempts)


def _recheck(attempt: DrawnAttempt, job_ref: bytes, trust: Trust) -> RecheckedDraw:
    call, opening = attempt.draw_call.statement, attempt.tag_opening
    # 1. Of this job, network and a trusted dispatcher.
    if call.job_ref != job_ref:
        raise VerificationError("draw.foreign_document", "an attempt is of another job")
    if call.network != trust.network:
        raise VerificationError(
            "trust.network", f"the draw is of network {call.network}, not {trust.network}"
        )
    known = {dispatcher.address: dispatcher.vrf_key for dispatcher in trust.dispatchers}
    if call.dispatcher not in known:
        raise VerificationError("trust.dispatcher", f"dispatcher {call.dispatcher} is not in the trust file")
    key = known[call.dispatcher]
    # 2. Every entry, claim and seat.
    drawn = verify_draw(
        call=attempt.draw_call,
        record=attempt.draw_record,
        max_range=attempt.max_range,
        operators=[entry.operator for entry in attempt.entries],
        entries=[entry.entry for entry in attempt.entries],
        claims={e.operator.node_id: e.claim for e in attempt.entries if e.claim is not None},
        network=trust.network,
        dispatcher=call.dispatcher,
        vrf_key=key,
        opened=None
        if opening is None
        else OpenedTag(salt=opening.salt, tag=opening.tag, position=opening.position),
    )
    # 3. The first draw, from which a later attempt takes its sampling seed.
    first = attempt.first_draw
    if (first is None) != (call.attempt == 1):
        raise VerificationError(
            "draw.foreign_document", "attempts above 1 carry the first draw, and no other does"
        )
    if first is not None:
        if (first.statement.job_ref, first.statement.attempt) != (job_ref, 1):
            raise VerificationError("draw.foreign_document", "the first draw is of another run")
        verify_draw_call(first, network=trust.network, dispatcher=call.dispatcher, vrf_key=key)
    # 4. Beacon and registry, as far as the trust file goes.
    calls = [call] if first is None else [first.statement, call]
    for statement in calls:
        if statement.beacon_source == "dispatcher":
            verify_beacon(trust.beacon.anchor, statement.epoch, statement.beacon)
    return RecheckedDraw(
        draw=drawn,
        registry_trusted=all(statement.snapshot_root in trust.registry_roots for statement in calls),
        beacon_checked=all(
            statement.beacon_source == "dispatcher" and statement.epoch < trust.beacon.length
            for statement in calls
        ),
    )
