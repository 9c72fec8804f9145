"""Checks of what operators send: chunks, commits, reveals. Pure; everything that D can recompute is recomputed."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

from aos.core import hashes
from aos.core.codec import Bytes32, MaxLength, SignatureBytes, UInt32, decode, encode
from aos.core.dispute.chain_claim import CourtDomain, SignedChainClaim, check_claim
from aos.core.draw import claim_alpha_of
from aos.core.encoding import b64u_encode
from aos.core.signing import verify_statement
from aos.core.statements import Chunk, Commit, DrawCall, DrawRecord, ReceiptCore, Request, Signed, hash_of
from aos.core.tee import References, TeeEvidence, read_evidence, verify_evidence
from aos.errors import VerificationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


MAX_CHUNK_CHARS = 16_384
"""Eight tokens, and what a stop string may have held back before them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reveal:
    """The body of ``job_result``."""

    receipt: ReceiptCore
    signature: SignatureBytes
    commit_salt: Bytes32
    text: Annotated[str, MaxLength(1 << 21)]
    tokens: Annotated[tuple[UInt32, ...], MaxLength(65_536)]
    evidence: Any
    chain_claim: SignedChainClaim | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatFacts:
    """What D knows of a seat when its operator reveals. Hashes are 32 bytes."""

    network: str
    dispatcher: str
    node_id: str
    node: int
    role: str
    call: Signed[DrawCall]
    record: Signed[DrawRecord]
    status: str
    vrf_key: bytes
    pi: bytes
    beta: bytes
    request: Request
    request_bytes: bytes
    nonce: bytes
    sampling_seed: str
    commit: Signed[Commit]
    commit_set: bytes
    stream_head: bytes
    tee_references: Mapping[str, References]
    tee_boots: frozenset[bytes]
    """Boot statements of this operator (hashes) that D had accepted before its commit."""
    court: CourtDomain | None
    """Where an opML result must come with a claim at a court on a chain: which; it must be good until ``claim_until`` (Unix
    seconds)."""
    claim_until: int
    now_ms: int


def _members(value: "DataclassInstance") -> dict[str, object]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _compare(code: str, what: str, stated: dict[str, object], known: dict[str, object]) -> None:
    for name, value in known.items():
        if stated[name] != value:
            raise VerificationError(code, f"{what}: {name} is not what it must be", field=name)


def check_chunk(
    chunk: Chunk, *, network: str, node_id: str, job_ref: bytes, attempt: int, max_tokens: int
) -> None:
    """Whether a signed chunk is this executor's, of this run, and no more than the request allows.

    Raises VerificationError ``chunk.foreign``, ``chunk.form``, ``chunk.flood``.
    """
    _compare(
        "chunk.foreign",
        "the chunk is of another run",
        {
            "network": chunk.network,
            "node_id": chunk.node_id,
            "job_ref": chunk.job_ref,
            "attempt": chunk.attempt,
        },
        {"network": network, "node_id": node_id, "job_ref": job_ref, "attempt": attempt},
    )
    if chunk.final != (chunk.finish_reason != "") or (not chunk.final and len(chunk.tokens) != 8):
        raise VerificationError("chunk.form", "a chunk holds eight tokens, the final one a finish reason")
    if len(chunk.text) > MAX_CHUNK_CHARS or 8 * chunk.index + len(chunk.tokens) > max_tokens:
        raise VerificationError("chunk.flood", "more tokens than were asked for, or more text than they give")
    if (chunk.index == 0) != (chunk.previous == b""):
        raise VerificationError("chunk.form", "only the first chunk has no predecessor")


def check_commit(commit: Commit, *, network: str, node_id: str, record: Signed[DrawRecord]) -> None:
    """Raises VerificationError ``commit.foreign``."""
    _compare(
        "commit.foreign",
        "the commit is of another run",
        {
            "network": commit.network,
            "node_id": commit.node_id,
            "job_ref": commit.job_ref,
            "attempt": commit.attempt,
            "draw_record": commit.draw_record,
        },
        {
            "network": network,
            "node_id": node_id,
            "job_ref": record.statement.job_ref,
            "attempt": record.statement.attempt,
            "draw_record": record.hash,
        },
    )


def check_reveal(reveal: Reveal, facts: SeatFacts) -> TeeEvidence | None:
    """Check a reveal against everything that D knows; returns TEE evidence where there is some.

    1. signed by the seat's operator; 2. every member that D can recompute; 3. text and tokens are the hashed ones; 4. it opens its
    commitment; 5. the claim at the court is there and this receipt's; 6. a TEE answer's evidence is bound to it.
    Raises VerificationError ``reveal.*``, ``signature.*``, ``chain_claim.*``, ``tee.*``.
    """
    core, job = reveal.receipt, facts.request.job
    # 1
    verify_statement(encode(core), b64u_encode(reveal.signature), facts.node_id)
    # 2
    record = facts.record.statement
    _compare(
        "reveal.member",
        "the receipt",
        _members(core),
        {
            "network": facts.network,
            "dispatcher": facts.dispatcher,
            "operator": facts.node_id,
            "node": facts.node,
            "job_ref": record.job_ref,
            "attempt": record.attempt,
            "role": facts.role,
            "request_hash": hashes.request_hash(facts.nonce, facts.request_bytes),
            "model_id": job.model_id,
            "params_hash": hashes.params_hash(facts.nonce, job.params),
            "sampling_seed": facts.sampling_seed,
            "seed_source": "draw" if job.params.seed is None else "request",
            "stream_head": facts.stream_head,
            "draw_record": facts.record.hash,
            "draw_counts": record.counts,
            "commit_set": facts.commit_set,
        },
    )
    _compare(
        "reveal.vrf",
        "the receipt's VRF fields",
        _members(core.vrf),
        {
            "key": facts.vrf_key,
            "alpha_hash": hashes.alpha_hash(claim_alpha_of(facts.call.statement)),
            "pi": facts.pi,
            "beta": facts.beta,
            "status": facts.status,
        },
    )
    if core.finish_reason == "cancelled" or core.started_at > core.finished_at:
        raise VerificationError("reveal.member", "the receipt is of no finished run", field="finish_reason")
    # 3
    _compare(
        "reveal.content",
        "the revealed text and tokens",
        {"response_hash": core.response_hash, "tokens_hash": core.tokens_hash, "n_out": core.n_out},
        {
            "response_hash": hashes.response_hash(facts.nonce, reveal.text),
            "tokens_hash": hashes.tokens_hash(facts.nonce, reveal.tokens),
            "n_out": len(reveal.tokens),
        },
    )
    if core.n_out > job.params.max_tokens:
        raise VerificationError("reveal.content", "more tokens than were asked for", field="n_out")
    # 4
    if (job.tag == "opml") != (core.state_root != b"" and core.tee == "" and core.answer_statement == b""):
        raise VerificationError(
            "reveal.job_type", "the receipt is not of the requested job type", field="tee"
        )
    expected = hashes.commitment(
        job_ref=core.job_ref,
        attempt=core.attempt,
        node_id=core.operator,
        draw_record=core.draw_record,
        result=core.state_root or core.answer_statement,
        tokens_hash=core.tokens_hash,
        salt=reveal.commit_salt,
    )
    if expected != facts.commit.statement.commitment:
        raise VerificationError("reveal.commitment", "the reveal does not open its commitment")
    # 5
    _check_chain_claim(reveal, facts)
    # 6
    if core.tee == "":
        return None
    references = facts.tee_references.get(core.tee)
    if references is None:
        raise VerificationError("reveal.tee", f"this dispatcher does not accept a TEE of kind {core.tee}")
    evidence = read_evidence(reveal.evidence)
    if hash_of(evidence.boot) not in facts.tee_boots:
        raise VerificationError(
            "reveal.tee_boot", "the answer is of a boot that was not accepted before the commit"
        )
    answer = verify_evidence(evidence, references=references, at_ms=facts.now_ms)
    stated, known = _members(answer), _members(core)
    shared = {name: known[name] for name in stated if name in known}
    _compare("reveal.tee", "the enclave's answer statement", stated, shared)
    boot = evidence.boot
    if hash_of(answer) != core.answer_statement or (boot.network, boot.tee, boot.vrf_key) != (
        facts.network,
        core.tee,
        facts.vrf_key,
    ):
        raise VerificationError("reveal.tee", "the evidence is of another answer, network, kind or draw key")
    return evidence


def _check_chain_claim(reveal: Reveal, facts: SeatFacts) -> None:
    claim = reveal.chain_claim
    if facts.court is None or not reveal.receipt.state_root:
        if claim is not None:
            raise VerificationError(
                "chain_claim.unwanted",
                "no claim at a court is asked for with this result",
                field="job_result.chain_claim",
            )
        return
    if claim is None:
        raise VerificationError(
            "chain_claim.missing",
            f"this network's opML results come with a claim at the court {facts.court.court}",
            field="job_result.chain_claim",
            hint="the operator sets chain.court (docs/chain.md)",
        )
    check_claim(claim, reveal.receipt, facts.court, valid_until=facts.claim_until)


def read_reveal(body: object) -> Reveal:
    """Strictly decode the body of ``job_result``. Raises InvalidMessage ``field.*``."""
    return decode(Reveal, body, where="job_result")
