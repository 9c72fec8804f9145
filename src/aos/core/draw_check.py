"""Rechecking a draw: all of it from every entry, or one seat from its own entry and two paths.

Implements docs/spec/04-sortition.md, step 6. What is compared is what ``aos.core.draw`` builds, worked out again; whether
beacon and snapshot are to be trusted is for who holds a trust file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aos.core import merkle, sortition
from aos.core.draw import (
    OpenedTag,
    VerifiedClaim,
    count_entries,
    entries_root,
    entry_leaf,
    seats_of,
    snapshot_leaf,
    snapshot_root,
    snapshot_root_of_tree,
    status_of,
    total,
    verify_claim,
    verify_draw_call,
    verify_record_link,
)
from aos.core.statements import DrawCall, DrawEntry, DrawRecord, Signed, SnapshotEntry, VrfClaim
from aos.errors import AOSError, VerificationError

MAX_WIDENING = 10
"""The widest ``sortition.widening_percent``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedDraw:
    """A draw of which everything was recomputed; ``claims`` by node_id. Without the opened tag
    ``split_checked`` is False: an output between the narrowest and the widest threshold passed either way."""

    call: DrawCall
    record: DrawRecord
    entries: tuple[DrawEntry, ...]
    claims: Mapping[str, VerifiedClaim]
    split_checked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSeat:
    """One operator's place in a draw. ``filled_checked`` is False where it sits by filling and that was not
    recomputed."""

    operator: SnapshotEntry
    entry: DrawEntry
    claim: VerifiedClaim
    seat: int
    filled_checked: bool


def verify_draw(
    *,
    call: Signed[DrawCall],
    record: Signed[DrawRecord],
    max_range: int,
    operators: Sequence[SnapshotEntry],
    entries: Sequence[DrawEntry],
    claims: Mapping[str, Signed[VrfClaim]],
    network: str,
    dispatcher: str,
    vrf_key: bytes,
    opened: OpenedTag | None,
) -> VerifiedDraw:
    """Recompute a whole draw. ``operators`` and ``entries`` are all of the snapshot, in its order.

    ``vrf_key`` is D's registered VRF key. Raises VerificationError ``draw.*``.
    """
    # 1. Call and seed.
    of = verify_draw_call(call, network=network, dispatcher=dispatcher, vrf_key=vrf_key)
    # 2. Record belongs to call.
    stated = verify_record_link(record, call=call)
    # 3. The snapshot is the one that the call names.
    if snapshot_root(network, max_range, operators) != of.snapshot_root:
        raise VerificationError("draw.snapshot_root", "the operators are not those of the snapshot root")
    # 4. Every operator of the snapshot once, in its order.
    if len(entries) != len(operators):
        raise VerificationError("draw.entry_missing", "the draw does not list every operator of the snapshot")
    for operator, entry in zip(operators, entries, strict=True):
        if entry.node_id != operator.node_id:
            raise VerificationError(
                "draw.entry_order", f"{operator.node_id} is not where the snapshot has it"
            )
    if entries_root(entries) != stated.entries_root:
        raise VerificationError("draw.entries_root", "the entries are not those of the draw record")
    if count_entries(entries) != stated.counts:
        raise VerificationError("draw.counts", "the record's counts are not those of its entries")
    # 5. The opened tag is the one that was hidden in the call.
    check_opening(of, opened)
    # 6. Every claim, and the status that follows from it.
    verified: dict[str, VerifiedClaim] = {}
    if claims.keys() - {operator.node_id for operator in operators}:
        raise VerificationError("draw.claim_unexpected", "a claim is of no operator in the snapshot")
    for operator, entry in zip(operators, entries, strict=True):
        claim = verify_entry(
            operator, entry, claims.get(operator.node_id), call=call, max_range=max_range, opened=opened
        )
        if claim is not None:
            verified[operator.node_id] = claim
    # 7. The seats that follow from the statuses.
    check_seats(of, stated, operators, entries)
    return VerifiedDraw(
        call=of,
        record=stated,
        entries=tuple(entries),
        claims=verified,
        split_checked=opened is not None,
    )


def check_seats(
    call: DrawCall, record: DrawRecord, operators: Sequence[SnapshotEntry], entries: Sequence[DrawEntry]
) -> None:
    """Check that the record's seats are those that the rule gives for these statuses.

    Raises VerificationError ``draw.seats``, ``draw.filled``.
    """
    seats, filled = seats_of(call, operators, entries, record.min_operators)
    if record.seats != seats:
        raise VerificationError("draw.seats", "the seats are not those that the rule gives")
    if record.filled != filled:
        raise VerificationError("draw.filled", "the number of filled seats is not what the rule gives")


def check_seat_order(call: DrawCall, record: DrawRecord) -> None:
    """Check that as many sit as the record's counts give, in the public order. Needs no entry.

    Raises VerificationError ``draw.seats``.
    """
    counts = record.counts
    filled = min(max(0, record.min_operators - counts.selected), counts.not_selected)
    if (record.filled, len(record.seats)) != (filled, counts.selected + filled):
        raise VerificationError("draw.seats", "the number of seats is not what the record's counts give")
    if len(set(record.seats)) != len(record.seats) or list(record.seats) != sortition.seat_order(
        call.draw_seed, call.attempt, record.seats
    ):
        raise VerificationError("draw.seats", "the seats are not in the order that the rule gives")


def check_opening(call: DrawCall, opened: OpenedTag | None) -> None:
    """Raises VerificationError ``draw.tag`` where the opening is not of the call's commitment."""
    if opened is not None and opened.commitment() != call.tag_commitment:
        raise VerificationError("draw.tag", "the opened tag is not the one that the draw call hides")


def verify_entry(
    operator: SnapshotEntry,
    entry: DrawEntry,
    claim: Signed[VrfClaim] | None,
    *,
    call: Signed[DrawCall],
    max_range: int,
    opened: OpenedTag | None,
) -> VerifiedClaim | None:
    """Check one operator's status against its claim; returns the claim, None where there is none.

    Raises VerificationError ``draw.claim_missing``, ``draw.claim_unexpected``, ``draw.status`` and as
    ``verify_claim``.
    """
    of = call.statement
    # 1. The claim that the entry names, and no other.
    if claim is None:
        if entry.claim:
            raise VerificationError("draw.claim_missing", f"{entry.node_id}: its claim is not there")
    elif claim.hash != entry.claim:
        raise VerificationError("draw.claim_unexpected", f"{entry.node_id}: the entry names another claim")
    # 2. What the claim says.
    verified = None if claim is None else verify_claim(claim, call=call, operator=operator)
    # 3. The status that follows.
    allowed = {status_of(of, operator, verified, max_range, c) for c in _percents(opened)}
    if entry.status not in allowed:
        wanted = " or ".join(sorted(allowed))
        raise VerificationError("draw.status", f"{entry.node_id} is {entry.status}, not {wanted}")
    if entry.status == "ineligible" and claim is not None:
        raise VerificationError("draw.claim_unexpected", f"{entry.node_id}: ineligible, and has a claim")
    return verified


def verify_seat(
    *,
    call: Signed[DrawCall],
    record: DrawRecord,
    max_range: int,
    operator: SnapshotEntry,
    entry: DrawEntry,
    claim: Signed[VrfClaim] | None,
    index: int,
    operator_path: Sequence[bytes],
    entry_path: Sequence[bytes],
    opened: OpenedTag,
) -> VerifiedSeat:
    """Check one seated operator from its own entry and two inclusion paths: who it is, that it is in the
    draw, that its proof is valid, and that it is below the threshold.

    ``record`` must be verified. A seat that was filled by the public rule is checked for being open to it;
    whether the rule gives this operator needs every entry (``verify_draw``). Raises VerificationError
    ``draw.not_seated``, ``draw.snapshot_root``, ``draw.entries_root``, ``draw.entry_order``, ``draw.status``
    and as ``verify_entry``.
    """
    of, count = call.statement, total(record.counts)
    # 1. It has a seat.
    if operator.node_id not in record.seats:
        raise VerificationError("draw.not_seated", f"{operator.node_id} has no seat in the draw record")
    # 2. Its registration is in the snapshot, its entry in the record.
    if entry.node_id != operator.node_id:
        raise VerificationError("draw.entry_order", f"{operator.node_id} has another operator's entry")
    try:
        tree = merkle.inclusion_root(snapshot_leaf(operator), index, count, operator_path)
    except AOSError as error:
        raise VerificationError("draw.snapshot_root", f"{operator.node_id}: {error.message}") from error
    if snapshot_root_of_tree(of.network, max_range, count, tree) != of.snapshot_root:
        raise VerificationError("draw.snapshot_root", f"{operator.node_id} is not in the snapshot")
    try:
        merkle.verify_inclusion(entry_leaf(entry), index, count, entry_path, record.entries_root)
    except AOSError as error:
        raise VerificationError("draw.entries_root", f"{operator.node_id}: {error.message}") from error
    # 3. Its claim and status.
    check_opening(of, opened)
    verified = verify_entry(operator, entry, claim, call=call, max_range=max_range, opened=opened)
    if verified is None or entry.status not in ("selected", "not_selected"):
        raise VerificationError("draw.status", f"{operator.node_id} sits, and is {entry.status}")
    if entry.status == "not_selected" and not record.filled:
        raise VerificationError("draw.status", f"{operator.node_id} sits, and no seat was filled")
    return VerifiedSeat(
        operator=operator,
        entry=entry,
        claim=verified,
        seat=record.seats.index(operator.node_id),
        filled_checked=entry.status == "selected",
    )


def _percents(opened: OpenedTag | None) -> tuple[int, ...]:
    """The widenings that may apply. The narrowest and the widest bound all others."""
    return (0, MAX_WIDENING) if opened is None else (sortition.widening_percent(opened.tag, opened.position),)
