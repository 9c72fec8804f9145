"""Evidence of any kind as one file, judged under one policy (docs/spec/12-attestation.md, "Evidence file").

A Nitro document stands for itself; the others need certificates or collateral and come as a JSON object.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from aos.core.attest.intel import verify_intel
from aos.core.attest.nitro import verify_nitro
from aos.core.attest.nvidia import verify_nvidia
from aos.core.attest.policy import AttestationPolicy, appraise
from aos.core.attest.result import AttestationResult
from aos.core.attest.snp import verify_snp
from aos.core.codec import MaxLength, decode
from aos.core.encoding import b64u_decode, parse_json_strict
from aos.errors import InvalidMessage

MAX_EVIDENCE_BYTES = 1 << 20


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
