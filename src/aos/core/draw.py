"""One draw: from draw call, registry snapshot and claims to the draw record, and back.

Implements docs/spec/04-sortition.md, "Registry snapshot" and "Draw". ``build_draw_record`` is what the
dispatcher signs; ``draw_check`` recomputes it for a stranger. Arithmetic of thresholds and seats is
``sortition``'s. Nothing here knows whether
the beacon or the snapshot is to be trusted, nor whether an unanswered operator was asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from aos.core import hashes, merkle, sortition, vrf
from aos.core.codec import encode
from aos.core.encoding import canonical_json, lp, tagged_hash
from aos.core.statements import (
    DrawCall,
    DrawCounts,
    DrawEntry,
    DrawRecord,
    DrawStatus,
    JobType,
    Position,
    Signed,
    SnapshotEntry,
    Tag,
    VrfClaim,
    check_signed,
)
from aos.errors import AOSError, RuleViolation, VerificationError

KEY_AGE_EPOCHS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedTag:
    """What ``DrawCall.tag_commitment`` hides until results are committed. ``salt`` is 32 bytes."""

    salt: bytes
    tag: Tag
    position: Position

    def commitment(self) -> bytes:
        """What the draw call must hold for it (32 bytes)."""
        return hashes.tag_commitment(self.salt, self.tag, self.position)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedClaim:
    """A claim that belongs to its draw call and is its operator's. ``beta``: 64 bytes, empty for a
    decline."""

    claim: Signed[VrfClaim]
    beta: bytes

    @property
    def declined(self) -> bool:
        """True where the operator refused to be drawn."""
        return not self.beta


# --- registry snapshot


def snapshot_leaf(entry: SnapshotEntry) -> bytes:
    """Leaf hash of a snapshot entry."""
    return merkle.leaf_hash(canonical_json(encode(entry)))


def snapshot_root(network: str, max_range: int, entries: Sequence[SnapshotEntry]) -> bytes:
    """Root of a registry snapshot, 32 bytes.

    Raises VerificationError ``draw.snapshot_order`` (entries not ascending by node_id),
    ``draw.snapshot_key``, ``draw.snapshot_range``.
    """
    check_snapshot(max_range, entries)
    tree = merkle.tree_root([snapshot_leaf(entry) for entry in entries])
    return snapshot_root_of_tree(network, max_range, len(entries), tree)


def snapshot_root_of_tree(network: str, max_range: int, count: int, tree: bytes) -> bytes:
    """Root of a snapshot from the RFC 9162 root of its ``count`` leaves."""
    return tagged_hash(
        "snapshot", lp(network.encode()), max_range.to_bytes(8, "big"), count.to_bytes(8, "big"), tree
    )


def check_snapshot(max_range: int, entries: Sequence[SnapshotEntry]) -> None:
    """Raises VerificationError ``draw.snapshot_order``, ``draw.snapshot_key`` or ``draw.snapshot_range``."""
    names = [entry.node_id for entry in entries]
    if any(a >= b for a, b in pairwise(names)):
        raise VerificationError("draw.snapshot_order", "snapshot entries are not in ascending node_id order")
    nodes = {entry.node for entry in entries}
    if len(nodes) != len(entries):
        raise VerificationError("draw.snapshot_order", "two snapshot entries share a node number")
    # One key has one output in a draw: its owner would sit twice as often as two independent draws allow.
    if len({entry.vrf_key for entry in entries}) != len(entries):
        raise VerificationError("draw.snapshot_key", "two snapshot entries share a VRF key")
    try:
        sortition.validate_ranges(
            [sortition.OperatorRange(node_id=e.node_id, start=e.start, end=e.end) for e in entries], max_range
        )
    except AOSError as error:
        raise VerificationError("draw.snapshot_range", error.message) from None


def eligible(entry: SnapshotEntry, *, job_type: JobType, model_id: bytes, epoch: int) -> bool:
    """Whether an operator counts in a draw of ``epoch``: type and model offered, key two epochs old.

    ``since_epoch`` 0 counts at once: only the signed genesis snapshot can hold it.
    """
    old_enough = entry.since_epoch == 0 or entry.since_epoch + KEY_AGE_EPOCHS <= epoch
    return old_enough and job_type in entry.job_types and model_id in entry.models


# --- seed, call and claims


def make_draw_seed(
    vrf_seed: bytes, *, network: str, job_ref: bytes, attempt: int, beacon: bytes, snapshot_root: bytes
) -> tuple[bytes, bytes]:
    """D's (draw_seed, draw_proof): 64 and 80 bytes. ``vrf_seed`` is D's 32-byte VRF secret."""
    alpha = hashes.draw_seed_alpha(
        network=network, job_ref=job_ref, attempt=attempt, beacon=beacon, snapshot_root=snapshot_root
    )
    pi = vrf.ecvrf_prove(vrf_seed, alpha)
    return vrf.ecvrf_proof_to_hash(pi), pi


def verify_draw_call(call: Signed[DrawCall], *, network: str, dispatcher: str, vrf_key: bytes) -> DrawCall:
    """Check that D called this draw and that its seed is its VRF's only output for it.

    Raises VerificationError ``draw.foreign_call``, ``draw.call_signature``, ``draw.seed_proof``. Epoch,
    beacon and snapshot root are taken from the call: whether they are the right ones is for who holds the
    network file.
    """
    # 1. Of this network and dispatcher, signed by it.
    statement = call.statement
    if statement.network != network or statement.dispatcher != dispatcher:
        raise VerificationError("draw.foreign_call", "the draw call is of another network or dispatcher")
    _check_signature(call, dispatcher, "draw.call_signature", "the draw call")
    # 2. The seed is what the dispatcher's key gives for these inputs.
    alpha = hashes.draw_seed_alpha(
        network=network,
        job_ref=statement.job_ref,
        attempt=statement.attempt,
        beacon=statement.beacon,
        snapshot_root=statement.snapshot_root,
    )
    try:
        beta = vrf.ecvrf_verify(vrf_key, statement.draw_proof, alpha)
    except VerificationError as error:
        raise VerificationError("draw.seed_proof", f"draw seed: {error.message}") from error
    if beta != statement.draw_seed:
        raise VerificationError("draw.seed_proof", "the draw seed is not the output of its proof")
    return statement


def claim_alpha_of(call: DrawCall) -> bytes:
    """alpha_string of every claim that answers ``call``."""
    return hashes.claim_alpha(
        network=call.network,
        snapshot_root=call.snapshot_root,
        job_ref=call.job_ref,
        attempt=call.attempt,
        draw_seed=call.draw_seed,
    )


def make_claim(call: Signed[DrawCall], *, node_id: str, vrf_seed: bytes) -> VrfClaim:
    """An operator's claim, to be signed by it. ``vrf_seed`` is its 32-byte VRF secret."""
    statement = call.statement
    return VrfClaim(
        network=statement.network,
        node_id=node_id,
        job_ref=statement.job_ref,
        attempt=statement.attempt,
        draw_call=call.hash,
        answer="claim",
        reason="",
        pi=vrf.ecvrf_prove(vrf_seed, claim_alpha_of(statement)),
    )


def verify_claim(
    claim: Signed[VrfClaim], *, call: Signed[DrawCall], operator: SnapshotEntry
) -> VerifiedClaim:
    """Check that ``operator`` answered this draw call, and its VRF proof.

    Raises VerificationError ``draw.foreign_claim``, ``draw.claim_form``, ``draw.claim_signature``,
    ``draw.claim_proof``.
    """
    statement, of = claim.statement, call.statement
    # 1. An answer to this call by this operator.
    if (statement.network, statement.job_ref, statement.attempt, statement.draw_call) != (
        of.network,
        of.job_ref,
        of.attempt,
        call.hash,
    ):
        raise VerificationError("draw.foreign_claim", "the claim answers another draw call")
    if statement.node_id != operator.node_id:
        raise VerificationError("draw.foreign_claim", "the claim is another operator's")
    # 2. Either a proof and no reason, or a reason and no proof.
    declines = statement.answer == "decline"
    if declines != bool(statement.reason) or declines == bool(statement.pi):
        raise VerificationError("draw.claim_form", "a claim has a proof, a decline has a reason")
    # 3. Signed by it.
    _check_signature(claim, operator.node_id, "draw.claim_signature", "the claim")
    if declines:
        return VerifiedClaim(claim=claim, beta=b"")
    # 4. The proof is that of its registered key.
    try:
        beta = vrf.ecvrf_verify(operator.vrf_key, statement.pi, claim_alpha_of(of))
    except VerificationError as error:
        raise VerificationError("draw.claim_proof", f"{operator.node_id}: {error.message}") from error
    return VerifiedClaim(claim=claim, beta=beta)


# --- the record


def build_draw_record(
    *,
    call: Signed[DrawCall],
    max_range: int,
    operators: Sequence[SnapshotEntry],
    claims: Mapping[str, VerifiedClaim],
    opened: OpenedTag,
    min_operators: int,
    clock: Mapping[str, str],
) -> tuple[DrawRecord, tuple[DrawEntry, ...]]:
    """The record that D signs once a draw is over, and the entries under its root.

    ``operators`` is the whole snapshot in its order, ``claims`` what ``verify_claim`` returned, by node_id;
    claims of operators that are not eligible are left aside. Raises RuleViolation ``draw.no_operator``.
    """
    of = call.statement
    entries = tuple(
        _entry(of, operator, claims.get(operator.node_id), max_range, opened) for operator in operators
    )
    seats, filled = seats_of(of, operators, entries, min_operators)
    if not seats:
        raise RuleViolation("draw.no_operator", "no eligible operator answered the draw")
    record = DrawRecord(
        network=of.network,
        dispatcher=of.dispatcher,
        job_ref=of.job_ref,
        attempt=of.attempt,
        draw_call=call.hash,
        snapshot_root=of.snapshot_root,
        entries_root=entries_root(entries),
        counts=count_entries(entries),
        seats=seats,
        filled=filled,
        min_operators=min_operators,
        clock=dict(clock),
    )
    return record, entries


def entry_leaf(entry: DrawEntry) -> bytes:
    """Leaf hash of a draw entry."""
    return merkle.leaf_hash(canonical_json(encode(entry)))


def entries_root(entries: Sequence[DrawEntry]) -> bytes:
    """RFC 9162 root over a draw's entries, in snapshot order."""
    return merkle.tree_root([entry_leaf(entry) for entry in entries])


def count_entries(entries: Sequence[DrawEntry]) -> DrawCounts:
    """How many operators of the snapshot ended in each status."""
    statuses = [entry.status for entry in entries]
    return DrawCounts(
        selected=statuses.count("selected"),
        not_selected=statuses.count("not_selected"),
        declined=statuses.count("declined"),
        unanswered=statuses.count("unanswered"),
        ineligible=statuses.count("ineligible"),
    )


def total(counts: DrawCounts) -> int:
    """Number of operators in the snapshot that the counts are of."""
    return counts.selected + counts.not_selected + counts.declined + counts.unanswered + counts.ineligible


def verify_record_link(record: Signed[DrawRecord], *, call: Signed[DrawCall]) -> DrawRecord:
    """Check that the record is D's, about this draw call. Says nothing about its entries.

    Raises VerificationError ``draw.foreign_record``, ``draw.record_signature``.
    """
    statement, of = record.statement, call.statement
    if (
        statement.network,
        statement.dispatcher,
        statement.job_ref,
        statement.attempt,
        statement.draw_call,
        statement.snapshot_root,
    ) != (of.network, of.dispatcher, of.job_ref, of.attempt, call.hash, of.snapshot_root):
        raise VerificationError("draw.foreign_record", "the draw record is of another draw call")
    _check_signature(record, of.dispatcher, "draw.record_signature", "the draw record")
    return statement


def _entry(
    call: DrawCall,
    operator: SnapshotEntry,
    claim: VerifiedClaim | None,
    max_range: int,
    opened: OpenedTag,
) -> DrawEntry:
    status = status_of(
        call, operator, claim, max_range, sortition.widening_percent(opened.tag, opened.position)
    )
    named = claim.claim.hash if claim is not None and status != "ineligible" else b""
    return DrawEntry(node_id=operator.node_id, status=status, claim=named)


def status_of(
    call: DrawCall, operator: SnapshotEntry, claim: VerifiedClaim | None, max_range: int, percent: int
) -> DrawStatus:
    """An operator's status: what its entry, its verified claim and the widening ``percent`` give."""
    if not eligible(operator, job_type=call.job_type, model_id=call.model_id, epoch=call.epoch):
        return "ineligible"
    if claim is None:
        return "unanswered"
    if claim.declined:
        return "declined"
    threshold = sortition.threshold(operator.end - operator.start, max_range, percent)
    return "selected" if sortition.is_selected(claim.beta, threshold, max_range) else "not_selected"


def seats_of(
    call: DrawCall,
    operators: Sequence[SnapshotEntry],
    entries: Sequence[DrawEntry],
    min_operators: int,
) -> tuple[tuple[str, ...], int]:
    """(seats in their order, how many of them were filled) that follow from the statuses."""
    selected = [entry.node_id for entry in entries if entry.status == "selected"]
    open_to_filling = {entry.node_id for entry in entries if entry.status == "not_selected"}
    # The spans are those of all eligible operators; who cannot be seated is passed over, not taken out.
    spans = [
        (operator.node_id, operator.end - operator.start)
        for operator, entry in zip(operators, entries, strict=True)
        if entry.status != "ineligible"
    ]
    filled = sortition.fill_seats(
        call.draw_seed,
        call.attempt,
        spans,
        {node_id for node_id, _ in spans} - open_to_filling,
        max(0, min_operators - len(selected)),
    )
    order = sortition.seat_order(call.draw_seed, call.attempt, selected + filled)
    return tuple(order), len(filled)


def _check_signature(signed: Signed[Any], address: str, code: str, what: str) -> None:
    try:
        check_signed(signed, address=address)
    except AOSError as error:
        raise VerificationError(code, f"{what}: {error.message}") from error
