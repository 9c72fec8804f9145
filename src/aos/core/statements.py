"""Everything that a party signs, as values (docs/spec/06-network.md, "Statements", lists the members and who
signs).

A statement is canonical JSON with ``type`` and ``v``; its signature is ``signing.sign_statement``'s, its hash
``signing.statement_hash``. This module declares the members and makes ``Signed`` pairs; it decides nothing.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from aos.core import signing
from aos.core.codec import (
    Address,
    Bytes32,
    Bytes64,
    Bytes80,
    ClockMap,
    Decimal64,
    Label,
    MaxLength,
    NetworkId,
    OptionalBytes32,
    OptionalBytes80,
    Range,
    SignatureBytes,
    TimeMs,
    UInt,
    UInt32,
    decode,
    encode,
)
from aos.core.encoding import b64u_decode, b64u_encode

JobType = Literal["opml", "tee"]
Tag = Literal["", "suspicion", "malicious"]
Position = Literal["", "before", "after"]
Role = Literal["executor", "checker", "blind"]
DrawStatus = Literal["selected", "not_selected", "declined", "unanswered", "ineligible"]
Outcome = Literal["agreed", "disputed", "single"]
FinishReason = Literal["stop", "length", "cancelled", "numeric_trap"]
TeeKind = Literal["", "simulated", "nitro", "tdx", "snp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Sampling parameters of a request; decimals in millionths. ``seed`` is null where the draw gives it."""

    temperature: Annotated[int, Range(0, 10_000_000)]
    top_p: Annotated[int, Range(1, 1_000_000)]
    top_k: Annotated[int, Range(0, 1_000_000)]
    min_p: Annotated[int, Range(0, 1_000_000)]
    repeat_penalty: Annotated[int, Range(1, 10_000_000)]
    max_tokens: Annotated[int, Range(1, 1_000_000)]
    stop: Annotated[tuple[Annotated[str, MaxLength(256)], ...], MaxLength(16)]
    seed: Decimal64 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation. What it says is a stranger's text, whatever its role is called."""

    role: Annotated[str, MaxLength(64)]
    content: Annotated[str, MaxLength(1_000_000)]


Prompt = str | tuple[ChatMessage, ...]
"""A raw text, or a conversation that the operator puts through the model's own chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestJob:
    """What is asked: a raw prompt or a conversation, a model by name and id, and how to sample."""

    tag: JobType
    prompt: Annotated[str, MaxLength(1_000_000)] | Annotated[tuple[ChatMessage, ...], MaxLength(4096)]
    model: Annotated[str, MaxLength(256)]
    model_id: Bytes32
    params: Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The normalised submission: what is hashed, forwarded unchanged, and executed. Not signed by itself."""

    TYPE: ClassVar[str] = "aos.request"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    project: Annotated[str, MaxLength(128)]
    user: Annotated[str, MaxLength(256)]
    job: RequestJob
    min_operators: Annotated[int, Range(1, 64)]
    blind: bool
    nonce_source: Literal["client", "dispatcher"]
    issued_at: TimeMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """D, on submit: this request is job ``job_ref``; the deadlines are durations that the run must keep."""

    TYPE: ClassVar[str] = "aos.acceptance"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    job_ref: Bytes32
    request_hash: Bytes32
    nonce: Bytes32
    tag: Tag
    epoch: UInt
    expires_at: TimeMs
    issued_at: TimeMs
    clock: ClockMap


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotEntry:
    """One registered operator, a leaf of the registry snapshot."""

    node_id: Address
    node: Annotated[int, Range(2, 2**31)]
    vrf_key: Bytes32
    start: UInt
    end: UInt
    stake: UInt
    job_types: Annotated[tuple[JobType, ...], MaxLength(2)]
    models: Annotated[tuple[Bytes32, ...], MaxLength(64)]
    since_epoch: UInt


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """D, once an epoch: the registry in force from ``epoch`` on. ``root`` covers max_range, count and
    entries."""

    TYPE: ClassVar[str] = "aos.snapshot"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    epoch: UInt
    max_range: UInt
    count: UInt
    root: Bytes32
    previous: OptionalBytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawCall:
    """D to every eligible operator: a draw is on. Neither prompt, job_id nor tag are in it."""

    TYPE: ClassVar[str] = "aos.draw_call"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    epoch: UInt
    snapshot_root: Bytes32
    beacon: Bytes32
    beacon_source: Literal["dispatcher", "chain"]
    draw_seed: Bytes64
    draw_proof: Bytes80
    job_type: JobType
    model_id: Bytes32
    tag_commitment: Bytes32
    deadline: TimeMs
    clock: ClockMap


@dataclass(frozen=True, slots=True, kw_only=True)
class VrfClaim:
    """An operator's answer to a draw call: a proof, or a refusal with its reason."""

    TYPE: ClassVar[str] = "aos.vrf_claim"
    V: ClassVar[int] = 1

    network: NetworkId
    node_id: Address
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    draw_call: Bytes32
    answer: Literal["claim", "decline"]
    reason: Literal["", "draining", "capacity", "model", "job_type", "stale"]
    pi: OptionalBytes80


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawEntry:
    """What became of one operator of the snapshot in this draw; a leaf under ``DrawRecord.entries_root``."""

    node_id: Address
    status: DrawStatus
    claim: OptionalBytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawCounts:
    """How many operators of the snapshot ended in each status."""

    selected: UInt
    not_selected: UInt
    declined: UInt
    unanswered: UInt
    ineligible: UInt


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawRecord:
    """D, once the draw is over: every operator once, and the seats in their order (seat 0 executes)."""

    TYPE: ClassVar[str] = "aos.draw_record"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    draw_call: Bytes32
    snapshot_root: Bytes32
    entries_root: Bytes32
    counts: DrawCounts
    seats: Annotated[tuple[Address, ...], MaxLength(64)]
    filled: UInt
    min_operators: Annotated[int, Range(1, 64)]
    clock: ClockMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The executor's stream, eight tokens a chunk, each chained to the one before. Held by D and the seats,
    not public."""

    TYPE: ClassVar[str] = "aos.chunk"
    V: ClassVar[int] = 1

    network: NetworkId
    node_id: Address
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    index: UInt32
    tokens: Annotated[tuple[UInt32, ...], MaxLength(8)]
    text: Annotated[str, MaxLength(65_536)]
    previous: OptionalBytes32
    final: bool
    finish_reason: Literal["", "stop", "length", "cancelled", "numeric_trap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """An operator, before anybody reveals: the salted hash of its result."""

    TYPE: ClassVar[str] = "aos.commit"
    V: ClassVar[int] = 1

    network: NetworkId
    node_id: Address
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    draw_record: Bytes32
    commitment: Bytes32
    clock: ClockMap


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitAck:
    """D holds this commit: one that is missing from the commit set afterwards convicts D."""

    TYPE: ClassVar[str] = "aos.commit_ack"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    node_id: Address
    commit: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSetEntry:
    """One operator's ``aos.commit``, by its hash."""

    node_id: Address
    commit: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSet:
    """D, once for each (job, attempt): the commits that count, by node_id ascending; reveals follow."""

    TYPE: ClassVar[str] = "aos.commit_set"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    draw_record: Bytes32
    commits: Annotated[tuple[CommitSetEntry, ...], MaxLength(64)]
    missing: Annotated[tuple[Address, ...], MaxLength(64)]
    clock: ClockMap


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptVrf:
    """The operator's own proof in the draw; ``alpha_hash`` = SHA-256(alpha_string)."""

    key: Bytes32
    alpha_hash: Bytes32
    pi: Bytes80
    beta: Bytes64
    status: Literal["selected", "filled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptCore:
    """What an operator states about one answer, signed by it. Every member is bound by its signature."""

    TYPE: ClassVar[str] = "aos.receipt"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    operator: Address
    node: Annotated[int, Range(2, 2**31)]
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    role: Role
    request_hash: Bytes32
    response_hash: Bytes32
    tokens_hash: Bytes32
    prompt_tokens_hash: Bytes32
    model_id: Bytes32
    params_hash: Bytes32
    sampling_seed: Decimal64
    seed_source: Literal["request", "draw"]
    engine: Label
    n_prompt: UInt32
    n_out: UInt32
    finish_reason: FinishReason
    state_root: OptionalBytes32
    tee: TeeKind
    answer_statement: OptionalBytes32
    stream_head: OptionalBytes32
    vrf: ReceiptVrf
    draw_record: Bytes32
    draw_counts: DrawCounts
    commit_set: Bytes32
    clock: ClockMap
    started_at: TimeMs
    finished_at: TimeMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Countersign:
    """D over an operator's receipt: which draw and commit set it belongs to, and what the set's comparison
    gave."""

    TYPE: ClassVar[str] = "aos.countersign"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    receipt: Bytes32
    receipt_signature: Bytes32
    draw_record: Bytes32
    commit_set: Bytes32
    tag: Tag
    position: Position
    tag_salt: Bytes32
    outcome: Outcome
    received_at: TimeMs
    clock: ClockMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """An operator opening its link: bound to network, dispatcher, the URL it dialled and both nonces."""

    TYPE: ClassVar[str] = "aos.connect"
    V: ClassVar[int] = 1

    purpose: Literal["operator-link"]
    network: NetworkId
    dispatcher: Address
    origin: Annotated[str, MaxLength(512)]
    node_id: Address
    dispatcher_nonce: Bytes32
    operator_nonce: Bytes32
    incarnation: Annotated[int, Range(1, 2**31)]
    time: TimeMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """An operator asking to be entered in a registry: its VRF key with proof of possession, and what it
    offers."""

    TYPE: ClassVar[str] = "aos.registration"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    node_id: Address
    vrf_key: Bytes32
    possession: Bytes80
    job_types: Annotated[tuple[JobType, ...], MaxLength(2)]
    models: Annotated[tuple[Bytes32, ...], MaxLength(64)]
    time: TimeMs


S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed(Generic[S]):
    """A statement with its signer's signature. ``verify_signed`` is how one comes in; ``sign`` is how one
    goes out."""

    statement: S
    signature: SignatureBytes

    @property
    def hash(self) -> bytes:
        """The statement's hash (32 bytes); the signature is not part of it."""
        return signing.statement_hash(encode(self.statement))

    def to_json(self) -> dict[str, Any]:
        """``{"statement", "signature"}`` as it is sent and stored."""
        return {"statement": encode(self.statement), "signature": encode(self.signature)}


def sign(private_key: bytes, statement: S) -> Signed[S]:
    """Sign ``statement`` with a 32-byte secp256k1 key."""
    return Signed(
        statement=statement, signature=b64u_decode(signing.sign_statement(private_key, encode(statement)))
    )


def hash_of(statement: object) -> bytes:
    """Hash of a statement value, 32 bytes."""
    return signing.statement_hash(encode(statement))


def check_signed(signed: Signed[Any], *, address: str) -> None:
    """Check that ``address`` signed a pair that was decoded elsewhere. Raises as
    ``signing.verify_statement``."""
    signing.verify_statement(encode(signed.statement), b64u_encode(signed.signature), address)


def read_signed(cls: type[S], value: object, *, where: str = "") -> Signed[S]:
    """Decode ``{"statement", "signature"}`` strictly as ``cls``; the signature is *not* verified.

    Raises InvalidMessage ``field.*``, ``statement.*``.
    """
    pair = decode(_Pair, value, where=where)
    statement = decode(cls, pair.statement, where=f"{where}.statement" if where else "statement")
    return Signed(statement=statement, signature=pair.signature)


def verify_signed(cls: type[S], value: object, *, address: str, where: str = "") -> Signed[S]:
    """Decode ``{"statement", "signature"}`` strictly as ``cls`` and verify that ``address`` signed it.

    Raises InvalidMessage ``field.*`` or VerificationError ``signature.*``.
    """
    signed = read_signed(cls, value, where=where)
    check_signed(signed, address=address)
    return signed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    statement: Any
    signature: SignatureBytes
