"""Statements of an enclave and their verification (docs/spec/10-tee.md).

An enclave makes an Ed25519 key at boot. Its *boot statement* binds that key to operator, network, engine and
model; a platform document vouches for the boot statement; every *answer statement* is signed by the enclave's
key. Here only the simulated platform exists: its documents say SIMULATED, are signed by a key that is no
hardware maker's, and give the level *simulated*.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from aos.core.codec import (
    Address,
    Bytes32,
    Bytes64,
    Decimal64,
    Label,
    NetworkId,
    OptionalBytes32,
    Range,
    TimeMs,
    UInt,
    UInt32,
    decode,
    encode,
)
from aos.core.encoding import canonical_json
from aos.core.statements import FinishReason, hash_of
from aos.errors import VerificationError

_PREFIX = b"AOS/enclave-statement/v1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeeBoot:
    """The enclave, once per boot: whose it is, what runs in it, and the key that it made."""

    TYPE: ClassVar[str] = "aos.tee.boot"
    V: ClassVar[int] = 1

    network: NetworkId
    tee: Literal["simulated"]
    operator: Address
    enclave_key: Bytes32
    measurement: Bytes32
    engine: Label
    model_id: Bytes32
    nonce: Bytes32
    booted_at: TimeMs
    not_after: TimeMs


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedDocument:
    """The simulated platform's word for a boot statement. ``user_data`` is the boot statement's hash."""

    TYPE: ClassVar[str] = "aos.tee.simulated_document"
    V: ClassVar[int] = 1

    label: Literal["SIMULATED, NO HARDWARE"]
    measurement: Bytes32
    public_key: Bytes32
    user_data: Bytes32
    nonce: Bytes32
    time: TimeMs


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
class TeeEvidence:
    """What an answer file carries for a TEE answer: three statements, three Ed25519 signatures."""

    boot: TeeBoot
    boot_signature: Bytes64
    document: SimulatedDocument
    document_signature: Bytes64
    answer: TeeAnswer
    answer_signature: Bytes64


def sign_enclave(key: SigningKey, statement: object) -> bytes:
    """Ed25519 over the tagged canonical bytes of ``statement``; 64 bytes."""
    return key.sign(_PREFIX + canonical_json(encode(statement))).signature


def verify_enclave(public_key: bytes, statement: object, signature: bytes, *, what: str) -> None:
    """Raises VerificationError ``tee.<what>_signature``."""
    try:
        VerifyKey(public_key).verify(_PREFIX + canonical_json(encode(statement)), signature)
    except (BadSignatureError, ValueError):
        raise VerificationError(
            f"tee.{what}_signature", f"the {what} statement is not signed by the key that it names"
        ) from None


def read_evidence(value: object) -> TeeEvidence:
    """Strictly decode evidence. Raises InvalidMessage ``field.*``."""
    return decode(TeeEvidence, value, where="evidence")


def verify_simulated(evidence: TeeEvidence, *, roots: frozenset[bytes]) -> TeeAnswer:
    """Appraise simulated evidence against the simulated platform keys in ``roots``; returns the answer
    statement.

    1. the document is signed by a trusted simulated root; 2. it vouches for this boot statement, key, nonce,
    measurement; 3. the boot statement is signed by its own enclave key; 4. the answer statement belongs to
    this boot, its operator, model and engine, was made while the boot was valid, and is signed by the
    enclave's key. Raises VerificationError ``tee.*``.
    """
    if not roots:
        raise VerificationError("tee.no_trusted_root", "the trust file names no simulated root")
    # 1
    for root in sorted(roots):
        try:
            verify_enclave(root, evidence.document, evidence.document_signature, what="document")
            break
        except VerificationError:
            continue
    else:
        raise VerificationError(
            "tee.wrong_root", "the document is signed by no root that the trust file names"
        )
    boot, document, answer = evidence.boot, evidence.document, evidence.answer
    boot_hash = hash_of(boot)
    # 2
    if document.user_data != boot_hash or document.public_key != boot.enclave_key:
        raise VerificationError("tee.boot_not_bound", "the document vouches for another boot statement")
    if document.nonce != boot.nonce or document.measurement != boot.measurement:
        raise VerificationError(
            "tee.boot_not_bound", "document and boot statement differ in nonce or measurement"
        )
    # 3
    verify_enclave(boot.enclave_key, boot, evidence.boot_signature, what="boot")
    # 4
    if answer.boot != boot_hash or answer.operator != boot.operator:
        raise VerificationError("tee.answer_not_bound", "the answer statement belongs to another enclave")
    if answer.model_id != boot.model_id or answer.engine != boot.engine:
        raise VerificationError("tee.answer_not_bound", "the answer statement names another model or engine")
    if not boot.booted_at <= answer.time <= boot.not_after:
        raise VerificationError(
            "tee.boot_expired", "the answer was made outside the boot statement's validity"
        )
    if (answer.sequence == 1) != (answer.previous == b""):
        raise VerificationError("tee.sequence", "only the first answer of a boot has no predecessor")
    verify_enclave(boot.enclave_key, answer, evidence.answer_signature, what="answer")
    return answer
