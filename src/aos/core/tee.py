"""Statements of an enclave and their verification (docs/spec/10-tee.md).

An enclave makes an Ed25519 key at boot. Its *boot statement* binds that key to operator, network, draw key, engine,
model and policy; the platform's attestation document vouches for the boot statement's hash; every *answer statement*
is signed by the enclave's key. Documents are AWS Nitro's format. Those of a SIMULATED platform have a root of their own,
which is believed only where it is named, and give the level *simulated*.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from aos.core.attest.nitro import MAX_DOCUMENT_BYTES, verify_nitro
from aos.core.attest.result import Claims, TrustAnchor
from aos.core.codec import (
    Address,
    Bytes32,
    Bytes64,
    Decimal64,
    Label,
    MaxLength,
    NetworkId,
    OptionalBytes32,
    Range,
    TimeMs,
    UInt,
    UInt32,
    decode,
    encode,
)
from aos.core.encoding import canonical_json, tagged_hash
from aos.core.statements import FinishReason, hash_of
from aos.errors import VerificationError

_PREFIX = b"AOS/enclave-statement/v1\n"
_SPKI = bytes.fromhex("302a300506032b6570032100")
"""DER of a SubjectPublicKeyInfo for Ed25519 (RFC 8410), up to the key's 32 bytes."""

MAX_LIFETIME_MS = 2 * 60 * 60 * 1000
"""How long a boot may last; a leaf certificate lives 3 h."""
MAX_BOOT_SKEW_MS = 5 * 60 * 1000
"""How far the enclave's clock may be from its security module's."""
MAX_LATE_MS = 60 * 60 * 1000
"""How long after the leaf's end a dispatcher may still receive an answer that was made before it."""

EnclaveKind = Literal["simulated", "nitro"]
Document = Annotated[bytes, MaxLength(MAX_DOCUMENT_BYTES)]
Image = tuple[bytes, bytes, bytes]
"""PCR0, PCR1, PCR2 of an enclave's image, 48 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeeBoot:
    """The enclave, once per boot: whose it is, what runs in it, and the key that it made.

    ``nonce`` is the dispatcher's challenge; ``policy`` the digest of what the dispatcher appraises by."""

    TYPE: ClassVar[str] = "aos.tee.boot"
    V: ClassVar[int] = 2

    network: NetworkId
    tee: EnclaveKind
    operator: Address
    vrf_key: Bytes32
    enclave_key: Bytes32
    engine: Label
    engine_digest: Bytes32
    model_id: Bytes32
    policy: Bytes32
    nonce: Bytes32
    booted_at: TimeMs
    not_after: TimeMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TeeAnswer:
    """The enclave, per answer. ``sequence`` starts at 1 and ``previous`` is the hash of the answer before
    (empty at 1)."""

    TYPE: ClassVar[str] = "aos.tee.answer"
    V: ClassVar[int] = 1

    boot: Bytes32
    operator: Address
    sequence: Annotated[int, Range(1, 2**53 - 1)]
    previous: OptionalBytes32
    job_ref: Bytes32
    attempt: UInt32
    request_hash: Bytes32
    response_hash: Bytes32
    tokens_hash: Bytes32
    prompt_tokens_hash: Bytes32
    model_id: Bytes32
    params_hash: Bytes32
    sampling_seed: Decimal64
    engine: Label
    n_prompt: UInt32
    n_out: UInt32
    finish_reason: FinishReason
    time: UInt


@dataclass(frozen=True, slots=True, kw_only=True)
class TeeBootEvidence:
    """A boot statement, its signature, and the platform's document for it."""

    boot: TeeBoot
    boot_signature: Bytes64
    document: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class TeeEvidence:
    """What an answer file carries for a TEE answer: boot evidence, and the answer statement with its signature."""

    boot: TeeBoot
    boot_signature: Bytes64
    document: Document
    answer: TeeAnswer
    answer_signature: Bytes64

    @property
    def boot_evidence(self) -> TeeBootEvidence:
        return TeeBootEvidence(boot=self.boot, boot_signature=self.boot_signature, document=self.document)


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """What a verifier believes of one kind of enclave: the roots of its documents, and the images that it knows."""

    anchors: tuple[TrustAnchor, ...]
    images: frozenset[Image]


def sign_enclave(key: SigningKey, statement: object) -> bytes:
    """Ed25519 over ``signed_text``; 64 bytes."""
    return key.sign(signed_text(statement)).signature


def signed_text(statement: object) -> bytes:
    """What an enclave signs: a tag, and the statement's canonical JSON."""
    return _PREFIX + canonical_json(encode(statement))


def verify_enclave(public_key: bytes, statement: object, signature: bytes, *, what: str) -> None:
    """Raises VerificationError ``tee.<what>_signature``."""
    try:
        VerifyKey(public_key).verify(signed_text(statement), signature)
    except (BadSignatureError, ValueError):
        raise VerificationError(
            f"tee.{what}_signature", f"the {what} statement is not signed by the key that it names"
        ) from None


def public_key_info(enclave_key: bytes) -> bytes:
    """The DER SubjectPublicKeyInfo of an enclave's key (44 bytes): what a document's ``public_key`` holds."""
    return _SPKI + enclave_key


def policy_digest(references: dict[str, References]) -> bytes:
    """H("tee-policy", …) of what an appraiser believes, by kind (32 bytes); the same set, the same digest."""
    return tagged_hash(
        "tee-policy",
        canonical_json(
            {
                kind: {
                    "roots": sorted(anchor.sha256.hex() for anchor in found.anchors),
                    "images": sorted([register.hex() for register in image] for image in found.images),
                }
                for kind, found in references.items()
            }
        ),
    )


def read_evidence(value: object) -> TeeEvidence:
    """Strictly decode evidence. Raises InvalidMessage ``field.*``."""
    return decode(TeeEvidence, value, where="evidence")


def verify_answer_statement(evidence: TeeEvidence) -> TeeAnswer:
    """From the answer statement to the boot statement, without any trust; returns the answer statement.

    1. the boot statement is signed by its own key and lasts no longer than allowed; 2. the answer statement belongs to
    this boot, its operator, model and engine, was made while the boot was valid, and has a predecessor exactly where it
    is not the first; 3. it is signed by the enclave's key. Raises VerificationError ``tee.*``.
    """
    boot, answer = evidence.boot, evidence.answer
    # 1
    _check_boot(boot, evidence.boot_signature)
    # 2
    if answer.boot != hash_of(boot) or answer.operator != boot.operator:
        raise VerificationError("tee.answer_not_bound", "the answer statement belongs to another enclave")
    if answer.model_id != boot.model_id or answer.engine != boot.engine:
        raise VerificationError("tee.answer_not_bound", "the answer statement names another model or engine")
    if not boot.booted_at <= answer.time <= boot.not_after:
        raise VerificationError(
            "tee.boot_expired", "the answer was made outside the boot statement's validity"
        )
    if (answer.sequence == 1) != (answer.previous == b""):
        raise VerificationError("tee.sequence", "only the first answer of a boot has no predecessor")
    # 3
    verify_enclave(boot.enclave_key, answer, evidence.answer_signature, what="answer")
    return answer


def _check_boot(boot: TeeBoot, signature: bytes) -> None:
    verify_enclave(boot.enclave_key, boot, signature, what="boot")
    if not 0 < boot.not_after - boot.booted_at <= MAX_LIFETIME_MS:
        raise VerificationError(
            "tee.lifetime", "the boot statement lasts longer than a boot may, or not at all"
        )


def verify_boot(
    evidence: TeeBootEvidence,
    *,
    references: References,
    at_ms: int,
    nonce: bytes | None = None,
    max_age_ms: int | None = None,
) -> Claims:
    """From the boot statement to the platform's root; returns the document's claims.

    1. somebody is believed at all; 2. the boot statement is signed by its own key; 3. the document holds at its own
    time, is not later than ``at_ms`` (Unix milliseconds), repeats the challenge, and is not older than ``max_age_ms``
    where that is given; 4. it vouches for this very statement and key; 5. enclave and security module had one time. The
    challenge is ``nonce``, for a document that was asked for anew, or else the boot statement's own; only then was the
    document made at boot. Its measurement is ``check_image``'s. Raises VerificationError ``tee.*``, ``attest.*``.
    """
    boot = evidence.boot
    # 1
    if not references.anchors:
        raise VerificationError("tee.no_trusted_root", f"no root is named for a TEE of kind {boot.tee}")
    # 2
    _check_boot(boot, evidence.boot_signature)
    # 3
    claims = verify_nitro(
        evidence.document,
        roots=references.anchors,
        at_ms=at_ms,
        nonce=boot.nonce if nonce is None else nonce,
        max_age_ms=max_age_ms,
    ).require()
    if claims.simulated != (boot.tee == "simulated"):
        raise VerificationError("tee.kind", "the boot statement names another kind than its document's root")
    # 4
    if claims.report_data != hash_of(boot) or claims.public_key != public_key_info(boot.enclave_key):
        raise VerificationError("tee.boot_not_bound", "the document vouches for another boot statement")
    # 5
    assert claims.time_ms is not None  # noqa: S101  a Nitro document has a time
    last = boot.booted_at if nonce is None else boot.not_after
    if not boot.booted_at - MAX_BOOT_SKEW_MS <= claims.time_ms <= last + MAX_BOOT_SKEW_MS:
        raise VerificationError("tee.clock", "the document was not made when the boot statement says")
    return claims


def check_image(claims: Claims, images: Collection[Image]) -> None:
    """The measured image is one of ``images``, in all three registers.

    Raises VerificationError ``tee.no_measurements``, ``tee.measurement``.
    """
    if not images:
        raise VerificationError("tee.no_measurements", "no image is named that an enclave may run")
    found = tuple(claims.measurement(f"PCR{index}") for index in range(3))
    if found not in images:
        raise VerificationError("tee.measurement", "the enclave runs an image that nobody has named")


def check_received(evidence: TeeEvidence, claims: Claims, *, received_at: int) -> None:
    """``received_at`` (Unix milliseconds), the dispatcher's word, bounds when an old leaf's key can have signed.

    Raises VerificationError ``tee.leaf_expired``.
    """
    until = claims.chain[-1].valid_until
    if evidence.answer.time > until or received_at > until + MAX_LATE_MS:
        raise VerificationError(
            "tee.leaf_expired", "the answer is later than the certificate that vouches for its enclave"
        )


def verify_answer_document(
    document: bytes, *, evidence: TeeEvidence, references: References, at_ms: int, nonce: bytes
) -> Claims:
    """A document that was asked for about one answer: over its statement's hash, its enclave's key, and ``nonce``.

    It takes the place of nothing that ``verify_evidence`` checks. Raises VerificationError ``attest.*``,
    ``tee.answer_not_bound``.
    """
    claims = verify_nitro(
        document, roots=references.anchors, at_ms=at_ms, nonce=nonce, max_age_ms=MAX_BOOT_SKEW_MS
    ).require()
    if claims.report_data != hash_of(evidence.answer) or claims.public_key != public_key_info(
        evidence.boot.enclave_key
    ):
        raise VerificationError("tee.answer_not_bound", "the document is of another answer or enclave")
    check_image(claims, references.images)
    return claims


def verify_evidence(
    evidence: TeeEvidence, *, references: References, at_ms: int, received_at: int | None = None
) -> TeeAnswer:
    """The whole way from an answer statement to a named root and a named image. ``received_at``: ``at_ms`` where it is
    not given. Raises VerificationError ``tee.*``, ``attest.*``."""
    answer = verify_answer_statement(evidence)
    claims = verify_boot(evidence.boot_evidence, references=references, at_ms=at_ms)
    check_image(claims, references.images)
    check_received(evidence, claims, received_at=at_ms if received_at is None else received_at)
    return answer
