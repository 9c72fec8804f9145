"""What a dispatcher says of the enclaves that serve a model, and what a requester makes of it before it sends a prompt
(docs/spec/10-tee.md, "For users").

The shape is the one that others document for ``GET /v1/attestation/report``: a list of attestations, each with the
signing key. The evidence in it is ours: a boot statement, its signature, a document of now over the asker's nonce.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from aos.core.attest.result import Claims
from aos.core.codec import Address, Bytes32, Bytes64, MaxLength, Pattern, decode
from aos.core.encoding import parse_json_strict
from aos.core.tee import Document, References, TeeBoot, TeeBootEvidence, check_image, verify_boot
from aos.errors import InvalidMessage, VerificationError

MAX_REPORT_BYTES = 1 << 21
MAX_REPORTED = 64
MAX_AGE_MS = 300_000
Hex32 = Annotated[str, Pattern(r"[0-9a-f]{64}")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAttestation:
    """One enclave. ``signing_address`` is its Ed25519 key, ``request_nonce`` the challenge that ``document`` repeats."""

    model_name: Annotated[str, MaxLength(256)]
    signing_address: Hex32
    signing_algo: Literal["ed25519"]
    request_nonce: Hex32
    operator: Address
    boot: TeeBoot
    boot_signature: Bytes64
    document: Document

    @property
    def evidence(self) -> TeeBootEvidence:
        return TeeBootEvidence(boot=self.boot, boot_signature=self.boot_signature, document=self.document)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An operator with an accepted enclave that gave no good document in time, and why: an error's code."""

    operator: Address
    code: Annotated[str, MaxLength(128)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeeReport:
    """The answer to ``GET /v1/attestation/report``; there is no gateway whose word counts."""

    TYPE: ClassVar[str] = "aos.tee.report"
    V: ClassVar[int] = 2

    model_id: Bytes32
    model_attestations: Annotated[tuple[ModelAttestation, ...], MaxLength(MAX_REPORTED)]
    left_out: Annotated[tuple[LeftOut, ...], MaxLength(MAX_REPORTED)]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEnclave:
    """An enclave that was believed: its boot statement, and what its document says."""

    boot: TeeBoot
    claims: Claims


def read_report(data: bytes) -> TeeReport:
    """Strictly decode a report; it names no enclave twice. Raises InvalidMessage ``encoding.*``, ``field.*``,
    ``tee.report_twice``."""
    report = decode(TeeReport, parse_json_strict(data, max_bytes=MAX_REPORT_BYTES), where="report")
    named = [reported.signing_address for reported in report.model_attestations]
    if len(set(named)) != len(named):
        raise InvalidMessage(
            "tee.report_twice", "the report names an enclave twice", field="model_attestations"
        )
    return report


def check_attestation(reported: ModelAttestation, *, model_id: bytes, nonce: bytes) -> None:
    """The members that repeat others do. Raises VerificationError ``tee.report``."""
    boot = reported.boot
    pairs: dict[str, tuple[object, object]] = {
        "signing_address": (reported.signing_address, boot.enclave_key.hex()),
        "request_nonce": (reported.request_nonce, nonce.hex()),
        "operator": (reported.operator, boot.operator),
        "model_id": (model_id, boot.model_id),
    }
    for name, (stated, known) in pairs.items():
        if stated != known:
            raise VerificationError(
                "tee.report", f"the report's {name} is not that of its evidence", field=name
            )


def check_valid(boot: TeeBoot, *, at_ms: int) -> None:
    """Raises VerificationError ``tee.boot_expired`` where the boot is over at ``at_ms`` (Unix milliseconds)."""
    if boot.not_after < at_ms:
        raise VerificationError("tee.boot_expired", "the enclave's boot is over", field="not_after")


def verify_report(
    report: TeeReport,
    *,
    nonce: bytes,
    model_id: bytes,
    network: str,
    references: Callable[[str], References],
    at_ms: int,
) -> tuple[VerifiedEnclave, ...]:
    """Believe every enclave of the report, or none of it.

    ``nonce`` (32 bytes) is the asker's own and fresh, ``model_id`` the model it wants, ``references`` what it believes of
    a kind of enclave (the trust file's, of the kinds that the policy accepts). Raises VerificationError ``tee.*``,
    ``attest.*``: nothing may be sent then.
    """
    if not report.model_attestations:
        raise VerificationError("tee.report", "the report names no enclave", field="model_attestations")
    if report.model_id != model_id:
        raise VerificationError("tee.report", "the report is of another model", field="model_id")
    found = []
    for reported in report.model_attestations:
        check_attestation(reported, model_id=model_id, nonce=nonce)
        boot = reported.boot
        if boot.network != network:
            raise VerificationError("tee.report", "the enclave is of another network", field="network")
        check_valid(boot, at_ms=at_ms)
        known = references(boot.tee)
        claims = verify_boot(
            reported.evidence, references=known, at_ms=at_ms, nonce=nonce, max_age_ms=MAX_AGE_MS
        )
        check_image(claims, known.images)
        found.append(VerifiedEnclave(boot=boot, claims=claims))
    return tuple(found)
