"""The signature section of an enclave image file (docs/spec/12-attestation.md, "Enclave image files").

CBOR: one map of ``signing_certificate`` (a PEM text, byte by byte as integers) and ``signature`` (a COSE_Sign1 over
``{"register_index": 0, "register_value": PCR0}``, byte by byte too).
"""

import hmac
import warnings
from dataclasses import dataclass
from hashlib import sha256, sha384

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from aos.core.attest import cbor
from aos.core.attest.certificates import link
from aos.core.attest.cose import sig_structure
from aos.core.attest.result import PANIC, UNREADABLE
from aos.errors import InvalidMessage, VerificationError

MAX_SIGNATURE_BYTES = 64 << 10
_MAX_ITEMS = 32_768
# Protected header, bytes of each of r and s, digest: by the curve of the certificate's key (RFC 9053, 2.1).
_ALGORITHMS: dict[str, tuple[bytes, int, hashes.HashAlgorithm]] = {
    "secp256r1": (bytes.fromhex("a10126"), 32, hashes.SHA256()),
    "secp384r1": (bytes.fromhex("a1013822"), 48, hashes.SHA384()),
    "secp521r1": (bytes.fromhex("a1013823"), 66, hashes.SHA512()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EifSigner:
    """Who signed PCR0: the certificate's subject, digests of its DER bytes (32 and 48 bytes) and its validity (Unix
    milliseconds), which nobody has judged."""

    subject: str
    certificate_sha256: bytes
    certificate_sha384: bytes
    valid_from: int
    valid_until: int


def read_signature(section: bytes, pcr0: bytes) -> EifSigner:
    """Read the section's content and verify its signature over ``pcr0`` (48 bytes).

    Raises InvalidMessage ``eif.signature_format``; VerificationError ``eif.signature`` where it signs another PCR0 or
    its certificate's key has not signed it.
    """
    try:
        entries = cbor.decode(section, max_items=_MAX_ITEMS)
    except InvalidMessage as error:
        raise _malformed(error.message) from error
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        raise _malformed("it is no array of one map")
    entry = entries[0]
    if set(entry) != {"signing_certificate", "signature"}:
        raise _malformed("its map has not the two members, certificate and signature")
    certificate = _certificate(_bytes(entry["signing_certificate"]))
    _verify(_bytes(entry["signature"]), certificate, pcr0)
    der = certificate.public_bytes(Encoding.DER)
    shown = link(certificate)
    return EifSigner(
        subject=shown.subject,
        certificate_sha256=sha256(der).digest(),
        certificate_sha384=sha384(der).digest(),
        valid_from=shown.valid_from,
        valid_until=shown.valid_until,
    )


def _malformed(message: str) -> InvalidMessage:
    return InvalidMessage(
        "eif.signature_format",
        f"the image file's signature section: {message}",
        field="signature",
        hint="sign the image file anew",
    )


def _false(message: str) -> VerificationError:
    return VerificationError(
        "eif.signature",
        f"the image file's signature: {message}",
        field="signature",
        hint="do not run this file; get it again from who signed it",
    )


def _bytes(value: object) -> bytes:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 256 for item in value):
        raise _malformed("certificate and signature must be arrays of bytes")
    return bytes(value)


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        with warnings.catch_warnings():  # odd serial numbers or names make the parser warn
            warnings.simplefilter("ignore")
            found = x509.load_pem_x509_certificates(pem)
            _ = [(one.subject, one.not_valid_before_utc, one.public_key()) for one in found]
    except UNREADABLE:
        raise _malformed("its certificate cannot be read") from None
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise _malformed("its certificate cannot be read") from None
    if len(found) != 1:
        raise _malformed(f"it has {len(found)} certificates, not one")
    return found[0]


def _verify(document: bytes, certificate: x509.Certificate, pcr0: bytes) -> None:
    key = certificate.public_key()
    algorithm = _ALGORITHMS.get(key.curve.name) if isinstance(key, ec.EllipticCurvePublicKey) else None
    if algorithm is None:
        raise _malformed("its certificate's key is not of P-256, P-384 or P-521")
    header, width, digest = algorithm
    try:
        envelope = cbor.decode(document)
    except InvalidMessage as error:
        raise _malformed(error.message) from error
    if not isinstance(envelope, list) or len(envelope) != 4:
        raise _malformed("its COSE_Sign1 is no array of four")
    protected, unprotected, payload, signature = envelope
    if protected != header or type(unprotected) is not dict or unprotected:
        raise _malformed("its headers are not the algorithm of its certificate's key alone")
    if type(payload) is not bytes or type(signature) is not bytes or len(signature) != 2 * width:
        raise _malformed("its payload or signature has not the right form")
    try:
        signed = cbor.decode(payload)
    except InvalidMessage as error:
        raise _malformed(error.message) from error
    if not isinstance(signed, dict) or set(signed) != {"register_index", "register_value"}:
        raise _malformed("its payload is no register")
    if signed["register_index"] != 0 or type(signed["register_index"]) is not int:
        raise _malformed("its payload is another register than PCR0")
    if not hmac.compare_digest(_bytes(signed["register_value"]), pcr0):
        raise _false("it signs another PCR0 than the one that this file has")
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - it has an algorithm
    r, s = int.from_bytes(signature[:width], "big"), int.from_bytes(signature[width:], "big")
    try:
        if r == 0 or s == 0:
            raise InvalidSignature
        key.verify(encode_dss_signature(r, s), sig_structure(protected, payload), ec.ECDSA(digest))
    except InvalidSignature:
        raise _false("its certificate's key has not signed it") from None
