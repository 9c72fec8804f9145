"""An audit over the network (docs/spec/14-audit.md, "Over the network"): who asks for it, which beacon draws its layers, what
the operator opens, in chunks that each prove themselves, and what the auditor found. Pure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from aos.core import vrf
from aos.core.codec import Address, Bytes32, Bytes80, NetworkId, Range, TimeMs, UInt32
from aos.core.dispute.audit import MAX_BUNDLE_BYTES, MAX_LAYERS, AuditRequest
from aos.core.encoding import lp, tag, tagged_hash
from aos.core.merkle import leaf_hash, tree_root
from aos.core.statements import ReceiptCore, Signed, check_signed, hash_of
from aos.errors import InvalidMessage, VerificationError

CHUNK_BYTES: Final = 1 << 20
MAX_CHUNKS: Final = MAX_BUNDLE_BYTES // CHUNK_BYTES
ASK_SKEW_MS: Final = 60_000
_CHUNK_TAG: Final = tag("audit-chunk")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditAsked:
    """The auditor: open ``layers`` layers of this claim. ``nonce`` is random and made after the claim was signed: whoever
    signed the claim could not foresee what is drawn, with the dispatcher's help neither."""

    TYPE: ClassVar[str] = "aos.audit_request"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    auditor: Address
    claim: Bytes32
    layers: Annotated[int, Range(1, MAX_LAYERS)]
    nonce: Bytes32
    time: TimeMs


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOrder:
    """The dispatcher: this request was taken, its beacon is the output of ``pi``, and it is due. ``audit`` is the request's
    hash, the audit's name."""

    TYPE: ClassVar[str] = "aos.audit_order"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    audit: Bytes32
    claim: Bytes32
    operator: Address
    pi: Bytes80
    due_at: TimeMs


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOpening:
    """The operator: the bundle that answers an audit, by its size and the root over its chunks."""

    TYPE: ClassVar[str] = "aos.audit_opening"
    V: ClassVar[int] = 1

    network: NetworkId
    operator: Address
    audit: Bytes32
    claim: Bytes32
    size: Annotated[int, Range(1, MAX_BUNDLE_BYTES)]
    chunks_root: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFound:
    """The auditor: what it found in that opening. Its word, and nobody's proof: a difference is challenged. ``code`` is the
    first check that failed; ``position`` and ``unit`` where, both 0 where it is no unit's matter or nothing is wrong."""

    TYPE: ClassVar[str] = "aos.audit_report"
    V: ClassVar[int] = 1

    network: NetworkId
    auditor: Address
    audit: Bytes32
    chunks_root: Bytes32
    found: Literal["right", "different"]
    position: UInt32
    unit: UInt32


# --- the beacon


def _alpha(asked: AuditAsked) -> bytes:
    return tag("audit-order") + lp(asked.network.encode()) + hash_of(asked)


def prove_beacon(vrf_seed: bytes, asked: AuditAsked) -> bytes:
    """The dispatcher's ``pi`` (80 bytes) for a request: one output per request, known to nobody without the key."""
    return vrf.ecvrf_prove(vrf_seed, _alpha(asked))


def beacon_of(vrf_key: bytes, asked: AuditAsked, pi: bytes) -> bytes:
    """The beacon (32 bytes) of an order. Raises VerificationError ``vrf.*``."""
    return tagged_hash("audit-beacon", vrf.ecvrf_verify(vrf_key, pi, _alpha(asked)))


def check_order(
    asked: Signed[AuditAsked],
    order: Signed[AuditOrder],
    core: ReceiptCore,
    *,
    vrf_key: bytes,
    dispatcher: str,
) -> AuditRequest:
    """What the audit of ``core`` asks for: request and order are of this network, signed, and of this claim.

    Raises VerificationError ``audit.foreign``, ``audit.no_state_root``, ``signature.*``, ``vrf.*``.
    """
    request, ordered = asked.statement, order.statement
    check_signed(asked, address=request.auditor)
    check_signed(order, address=dispatcher)
    claim = hash_of(core)
    said = (ordered.network, ordered.dispatcher, ordered.audit, ordered.claim, ordered.operator)
    if said != (core.network, dispatcher, hash_of(request), claim, core.operator) or (
        request.network,
        request.dispatcher,
        request.claim,
    ) != (*said[:2], claim):
        raise VerificationError(
            "audit.foreign", "request or order are of another claim, dispatcher or network"
        )
    if not core.state_root:
        raise VerificationError(
            "audit.no_state_root", "this receipt commits to no state root: nothing to audit"
        )
    return AuditRequest(
        state_root=core.state_root, beacon=beacon_of(vrf_key, request, ordered.pi), layers=request.layers
    )


# --- chunks


def chunk_sizes(size: int) -> Iterator[int]:
    """Bytes of each chunk of a bundle of ``size`` bytes: all but the last have ``CHUNK_BYTES``."""
    for at in range(0, size, CHUNK_BYTES):
        yield min(CHUNK_BYTES, size - at)


def chunk_hash(data: bytes) -> bytes:
    """A chunk's leaf under ``chunks_root``."""
    return leaf_hash(_CHUNK_TAG + data)


def chunks_root(hashes: Sequence[bytes]) -> bytes:
    """The root over the chunks' leaves."""
    return tree_root(hashes)


def check_opening(
    opening: Signed[AuditOpening], order: AuditOrder, hashes: Sequence[bytes], *, most: int
) -> None:
    """An opening answers this order, is signed, and its chunks are as many as its size says. ``most``: bytes allowed.

    Raises VerificationError ``audit.foreign``, ``audit.chunks``, ``signature.*``; InvalidMessage ``audit.too_large``.
    """
    said = opening.statement
    check_signed(opening, address=order.operator)
    if (said.network, said.operator, said.audit, said.claim) != (
        order.network,
        order.operator,
        order.audit,
        order.claim,
    ):
        raise VerificationError("audit.foreign", "the opening answers another order")
    if said.size > most:
        raise InvalidMessage(
            "audit.too_large",
            f"the bundle has {said.size} bytes, and {most} are allowed",
            field="size",
            hint="fewer layers make a smaller one",
        )
    if len(hashes) != -(-said.size // CHUNK_BYTES) or chunks_root(hashes) != said.chunks_root:
        raise VerificationError(
            "audit.chunks", "the chunks' hashes are not those that were signed", field="hashes"
        )


def check_chunk(opening: AuditOpening, hashes: Sequence[bytes], index: int, data: bytes) -> None:
    """One chunk is what was signed, whoever brings it. Raises InvalidMessage ``audit.no_chunk``; VerificationError
    ``audit.chunk``."""
    if not 0 <= index < len(hashes):
        raise InvalidMessage("audit.no_chunk", f"the bundle has chunks 0 to {len(hashes) - 1}", field="index")
    wanted = min(CHUNK_BYTES, opening.size - index * CHUNK_BYTES)
    if len(data) != wanted or chunk_hash(data) != hashes[index]:
        raise VerificationError("audit.chunk", f"chunk {index} is not the one that was signed", field="chunk")
