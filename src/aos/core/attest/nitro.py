"""AWS Nitro attestation documents (docs/spec/12-attestation.md, "AWS Nitro")."""

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

from aos.core.attest import cbor, certificates
from aos.core.attest.cose import sig_structure
from aos.core.attest.result import (
    MAX_FUTURE_MS,
    AttestationResult,
    Checklist,
    Claims,
    TrustAnchor,
    fingerprint,
    refuse,
)
from aos.errors import InvalidMessage

MAX_DOCUMENT_BYTES = 16_384
MAX_CERTIFICATE_BYTES = 1024
MAX_BUNDLE = 8
MAX_PUBLIC_KEY_BYTES = 1024
MAX_USER_DATA_BYTES = 512
MAX_NONCE_BYTES = 512
PCR_BYTES = 48
REQUIRED_PCRS = frozenset({0, 1, 2, 3, 4, 8})
ES384_HEADER = bytes.fromhex("a1013822")

_EARLIEST, _LATEST = 1_577_836_800_000, 4_102_444_800_000  # 2020, 2100
_MODULE_ID = re.compile(r"i-[0-9a-f]{8,17}-enc[0-9a-f]{1,32}", re.ASCII)
_MANDATORY = frozenset({"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"})
_OPTIONAL = {
    "public_key": (1, MAX_PUBLIC_KEY_BYTES),
    "user_data": (0, MAX_USER_DATA_BYTES),
    "nonce": (0, MAX_NONCE_BYTES),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Payload:
    module_id: str
    timestamp: int
    pcrs: dict[int, bytes]
    certificate: bytes
    cabundle: list[bytes]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None


def verify_nitro(
    document: bytes,
    *,
    roots: Sequence[TrustAnchor],
    at_ms: int,
    nonce: bytes | None = None,
    max_age_ms: int | None = None,
) -> AttestationResult:
    """Judge a document (COSE_Sign1, at most 16 KiB). Never raises for anything in ``document``.

    The chain is judged at the document's own time, the only one at which an archived document can hold. ``at_ms`` is
    the verifier's time (Unix milliseconds): a document from later is refused, and one older than ``max_age_ms`` where
    that is given. ``nonce`` is the challenge that the document must repeat, whole.
    """

    def steps(checks: Checklist) -> Claims:
        return _verify(checks, document, tuple(roots), at_ms, nonce, max_age_ms)

    return Checklist().run("nitro", steps)


def _verify(
    checks: Checklist,
    document: bytes,
    roots: tuple[TrustAnchor, ...],
    at_ms: int,
    nonce: bytes | None,
    max_age_ms: int | None,
) -> Claims:
    protected, signed, signature = _envelope(document)
    checks.passed("envelope-1", "one COSE_Sign1, ES384, nothing unsigned beside it")
    payload = _payload(signed)
    checks.passed("payload-1", "every member there once, in its type and size", payload.module_id)
    anchor = _anchor(payload.cabundle[0], roots)
    checks.passed("root-1", "the chain begins at a trusted root", anchor.name)
    chain = [certificates.load(der) for der in (*payload.cabundle, payload.certificate)]
    certificates.check_times(chain, payload.timestamp)
    key = certificates.check_ecdsa_chain(chain)
    checks.passed("chain-1", f"{len(chain)} certificates, valid at the document's time")
    to_be_signed = sig_structure(protected, signed)
    if not certificates.verify_raw_p384(key, signature, to_be_signed):
        raise refuse("signature-1", "attest.signature", "the leaf's key has not signed this document")
    checks.passed("signature-1", "signed by the leaf's key")
    if any(payload.pcrs[index] == bytes(PCR_BYTES) for index in (0, 1, 2)):
        raise refuse("debug-1", "attest.debug", "a debug enclave: PCR0, PCR1 or PCR2 is zero")
    checks.passed("debug-1", "not a debug enclave")
    check_freshness(checks, payload.timestamp, at_ms=at_ms, max_age_ms=max_age_ms)
    check_nonce(checks, payload.nonce, nonce)
    return Claims(
        tee="nitro",
        simulated=anchor.simulated,
        anchor=anchor.name,
        anchor_sha256=anchor.sha256,
        device=payload.module_id.split("-enc", 1)[0],
        measurements=tuple((f"PCR{index}", payload.pcrs[index]) for index in sorted(payload.pcrs)),
        report_data=payload.user_data,
        public_key=payload.public_key,
        nonce=payload.nonce,
        time_ms=payload.timestamp,
        chain=tuple(certificates.link(certificate) for certificate in chain),
        replay_id=fingerprint(to_be_signed),
    )


def check_freshness(checks: Checklist, time_ms: int, *, at_ms: int, max_age_ms: int | None) -> None:
    """Raises VerificationError ``attest.future`` or ``attest.stale``."""
    if time_ms > at_ms + MAX_FUTURE_MS:
        raise refuse("fresh-1", "attest.future", "the document is from the future")
    if max_age_ms is None:
        checks.skipped("fresh-1", "no greatest age asked for")
    elif at_ms - time_ms > max_age_ms:
        raise refuse("fresh-1", "attest.stale", f"the document is older than {max_age_ms} ms")
    else:
        checks.passed("fresh-1", "not older than asked for")


def check_nonce(checks: Checklist, found: bytes | None, expected: bytes | None) -> None:
    """Raises VerificationError ``attest.nonce``. An empty challenge challenges nothing, so it never matches."""
    if expected is None:
        checks.skipped("nonce-1", "no nonce asked for")
    elif not expected or found is None or not hmac.compare_digest(found, expected):
        raise refuse("nonce-1", "attest.nonce", "the document does not repeat the nonce")
    else:
        checks.passed("nonce-1", "repeats the nonce")


def _envelope(document: bytes) -> tuple[bytes, bytes, bytes]:
    """Protected header, payload, signature."""
    if not 1 <= len(document) <= MAX_DOCUMENT_BYTES:
        raise refuse(
            "envelope-1",
            "attest.size",
            f"a document has 1 to {MAX_DOCUMENT_BYTES} bytes, not {len(document)}",
        )
    try:
        envelope = cbor.decode(document)
    except InvalidMessage as error:
        raise refuse("envelope-1", "attest.envelope", error.message) from error
    if not isinstance(envelope, list) or len(envelope) != 4:
        raise refuse("envelope-1", "attest.envelope", "the document is no array of four")
    protected, unprotected, payload, signature = envelope
    if type(protected) is not bytes or protected != ES384_HEADER:
        raise refuse("envelope-1", "attest.envelope", "the protected header is not ES384 alone")
    # No signature covers this map: whatever is in it, the signer has not said it.
    if type(unprotected) is not dict or unprotected:
        raise refuse("envelope-1", "attest.envelope", "the unprotected header is not an empty map")
    if type(payload) is not bytes or not payload:
        raise refuse("envelope-1", "attest.envelope", "the payload is not in the document")
    if type(signature) is not bytes or len(signature) != 96:
        raise refuse("envelope-1", "attest.envelope", "the signature has not 96 bytes")
    return protected, payload, signature


def _malformed(message: str) -> Exception:
    return refuse("payload-1", "attest.payload", message)


def _payload(data: bytes) -> _Payload:
    try:
        members = cbor.decode(data, indefinite_maps=True)
    except InvalidMessage as error:
        raise refuse("payload-1", "attest.payload", error.message) from error
    if not isinstance(members, dict):
        raise _malformed("the payload is no map")
    names = set(members)
    if not names >= _MANDATORY or names - _MANDATORY - set(_OPTIONAL):
        raise _malformed("the payload lacks a member or has an unknown one")
    module_id, timestamp, pcrs = members["module_id"], members["timestamp"], members["pcrs"]
    if type(module_id) is not str or _MODULE_ID.fullmatch(module_id) is None:
        raise _malformed("module_id is none")
    if members["digest"] != "SHA384":
        raise _malformed("digest is not SHA384")
    if type(timestamp) is not int or not _EARLIEST < timestamp < _LATEST:
        raise _malformed("timestamp is no time between 2020 and 2100")
    bundle = members["cabundle"]
    if type(bundle) is not list or not 1 <= len(bundle) <= MAX_BUNDLE:
        raise _malformed(f"cabundle has not 1 to {MAX_BUNDLE} certificates")
    optional = {
        name: _bytes(name, members[name], *limits) if members.get(name) is not None else None
        for name, limits in _OPTIONAL.items()
    }
    return _Payload(
        module_id=module_id,
        timestamp=timestamp,
        pcrs=_pcrs(pcrs),
        certificate=_bytes("certificate", members["certificate"], 1, MAX_CERTIFICATE_BYTES),
        cabundle=[_bytes("cabundle", item, 1, MAX_CERTIFICATE_BYTES) for item in bundle],
        public_key=optional["public_key"],
        user_data=optional["user_data"],
        nonce=optional["nonce"],
    )


def _bytes(name: str, value: object, low: int, high: int) -> bytes:
    if type(value) is not bytes or not low <= len(value) <= high:
        raise _malformed(f"{name} is not a byte string of {low} to {high} bytes")
    return value


def _pcrs(value: object) -> dict[int, bytes]:
    if type(value) is not dict or not 1 <= len(value) <= 32:
        raise _malformed("pcrs is no map of 1 to 32 registers")
    out: dict[int, bytes] = {}
    for index, register in value.items():
        if type(index) is not int or not 0 <= index < 32:
            raise _malformed("a register's number is not 0 to 31")
        out[index] = _bytes(f"PCR{index}", register, PCR_BYTES, PCR_BYTES)
    if not out.keys() >= REQUIRED_PCRS:
        raise _malformed("a register that every document has is missing")
    return out


def _anchor(root: bytes, roots: tuple[TrustAnchor, ...]) -> TrustAnchor:
    found = fingerprint(root)
    for anchor in roots:
        if hmac.compare_digest(anchor.sha256, found):
            return anchor
    raise refuse("root-1", "attest.root", "the chain begins at a root that is not trusted")
