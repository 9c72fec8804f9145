"""Evidence of any kind as one file, judged under one policy (docs/spec/12-attestation.md, "Evidence file").

A Nitro document stands for itself; the others need certificates or collateral and come as a JSON object.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from aos.core.attest.intel import verify_intel
from aos.core.attest.nitro import verify_nitro
from aos.core.attest.nvidia import verify_nvidia
from aos.core.attest.policy import AttestationPolicy, appraise
from aos.core.attest.result import AttestationResult, Checklist, Claims, refuse
from aos.core.attest.snp import verify_snp
from aos.core.codec import MaxLength, decode
from aos.core.encoding import b64u_decode, parse_json_strict
from aos.core.tee import References, verify_boot
from aos.core.tee_report import (
    MAX_REPORT_BYTES,
    ModelAttestation,
    TeeReport,
    check_attestation,
    check_valid,
    read_report,
)
from aos.errors import InvalidMessage, VerificationError

MAX_EVIDENCE_BYTES = MAX_REPORT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """``document`` is base64url without padding; ``certificates`` PEM, the leaf first (SNP, NVIDIA); ``collateral`` the
    JSON text of dcap-qvl (TDX, SGX). What a kind does not need is empty."""

    TYPE: ClassVar[str] = "aos.attest.evidence"
    V: ClassVar[int] = 1

    tee: Literal["nitro", "tdx", "sgx", "snp", "nvidia"]
    document: Annotated[str, MaxLength(24_000)]
    certificates: Annotated[str, MaxLength(16_384)]
    collateral: Annotated[str, MaxLength(500_000)]


def read_evidence(data: bytes) -> Evidence | bytes:
    """An evidence file: the object where it begins with ``{``, else a bare Nitro document.

    Raises InvalidMessage ``field.*``, ``attest.evidence``.
    """
    if len(data) > MAX_EVIDENCE_BYTES:
        raise InvalidMessage("attest.evidence", f"evidence has at most {MAX_EVIDENCE_BYTES} bytes")
    if data[:1] != b"{":
        return data
    evidence = decode(Evidence, parse_json_strict(data, max_bytes=MAX_EVIDENCE_BYTES))
    needs = {"certificates": ("snp", "nvidia"), "collateral": ("tdx", "sgx")}
    for name, kinds in needs.items():
        if bool(getattr(evidence, name)) != (evidence.tee in kinds):
            raise InvalidMessage(
                "attest.evidence", f"{name} must be there for {' and '.join(kinds)} alone", field=name
            )
    return evidence


def judge_report(
    data: bytes, policy: AttestationPolicy, *, at_ms: int, challenge: bytes | None = None
) -> tuple[AttestationResult, ...]:
    """Verify and appraise every enclave of a dispatcher's report (docs/spec/10-tee.md, "For users").

    To the verifier's and the policy's lines come boot-1, that the document vouches for the boot statement beside it, and
    model-1 for the model that this statement names. ``challenge``: the asker's nonce. Raises InvalidMessage where the
    file is no report, or names no enclave.
    """
    report = read_report(data)
    if not report.model_attestations:
        raise InvalidMessage("attest.evidence", "the report names no enclave", field="model_attestations")
    return tuple(
        _reported(one, report.model_id, policy, at_ms, challenge) for one in report.model_attestations
    )


def _reported(
    reported: ModelAttestation,
    model_id: bytes,
    policy: AttestationPolicy,
    at_ms: int,
    challenge: bytes | None,
) -> AttestationResult:
    result = verify_nitro(reported.document, roots=policy.anchors(), at_ms=at_ms, nonce=challenge)
    claims = result.claims
    if claims is None:
        return result

    def bound(checks: Checklist) -> Claims:
        nonce = claims.nonce or b""
        try:
            check_attestation(reported, model_id=model_id, nonce=nonce)
            check_valid(reported.boot, at_ms=at_ms)
            verify_boot(
                reported.evidence,
                references=References(anchors=policy.anchors(), images=frozenset()),
                at_ms=at_ms,
                nonce=nonce,
            )
        except VerificationError as error:
            raise refuse("boot-1", error.code, error.message) from error
        checks.passed("boot-1", "vouches for the boot statement and its key", reported.operator)
        return claims

    whole = Checklist(list(result.checks)).run("nitro", bound)
    return appraise(whole, policy, at_ms, model_id=reported.boot.model_id)


def is_report(data: bytes) -> bool:
    """Does the file say that it is a dispatcher's report?"""
    if data[:1] != b"{" or len(data) > MAX_EVIDENCE_BYTES:
        return False
    try:
        value = parse_json_strict(data, max_bytes=MAX_EVIDENCE_BYTES)
    except InvalidMessage:
        return False
    return isinstance(value, dict) and value.get("type") == TeeReport.TYPE


def judge(
    data: bytes, policy: AttestationPolicy, *, at_ms: int, challenge: bytes | None = None
) -> AttestationResult:
    """Verify and appraise an evidence file at ``at_ms`` (Unix milliseconds).

    ``challenge``: the nonce (Nitro, NVIDIA) or all 64 bytes of report data (TDX, SGX, SNP) that the evidence must
    repeat. Raises InvalidMessage where the file is no evidence.
    """
    evidence = read_evidence(data)
    if isinstance(evidence, bytes):
        result = verify_nitro(evidence, roots=policy.anchors(), at_ms=at_ms, nonce=challenge)
        return appraise(result, policy, at_ms)
    document = b64u_decode(evidence.document)
    if evidence.tee == "nitro":
        result = verify_nitro(document, roots=policy.anchors(), at_ms=at_ms, nonce=challenge)
    elif evidence.tee == "snp":
        result = verify_snp(
            document, certificates_pem=evidence.certificates.encode(), at_ms=at_ms, report_data=challenge
        )
    elif evidence.tee == "nvidia":
        result = verify_nvidia(
            document, certificates_pem=evidence.certificates.encode(), at_ms=at_ms, nonce=challenge
        )
    else:
        result = verify_intel(
            document,
            collateral=evidence.collateral.encode(),
            at_ms=at_ms,
            platform=policy.platform(),
            report_data=challenge,
        )
        if result.tee != evidence.tee:
            raise InvalidMessage("attest.evidence", "the quote is of the other kind", field="tee")
    return appraise(result, policy, at_ms)
