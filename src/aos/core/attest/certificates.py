"""Certificate chains of attestation documents (docs/spec/12-attestation.md, "Chains").

The web's rules for chains want a host name; these chains have none, so the rules are written out here.
"""

from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from aos.core.attest.result import UNREADABLE, ChainLink, fingerprint, refuse

CHECK = "chain-1"
P384_ORDER = (
    0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
)
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
}

_NO_AUTHORITY: x509.Extension[x509.ExtensionType] = x509.Extension(
    ExtensionOID.BASIC_CONSTRAINTS, True, x509.BasicConstraints(ca=False, path_length=None)
)


def load(der: bytes) -> x509.Certificate:
    """One certificate, its extensions and key readable. Raises VerificationError ``attest.certificate``."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = (certificate.extensions, certificate.issuer, certificate.subject, certificate.public_key())
        _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    except UNREADABLE:
        raise refuse(CHECK, "attest.certificate", "a certificate cannot be read") from None
    if certificate.public_bytes(Encoding.DER) != der:
        raise refuse(CHECK, "attest.certificate", "a certificate is not in its one DER form")
    return certificate


def link(certificate: x509.Certificate) -> ChainLink:
    """``certificate`` in short."""
    return ChainLink(
        subject=certificate.subject.rfc4514_string(),
        sha256=fingerprint(certificate.public_bytes(Encoding.DER)),
        valid_from=_milliseconds(certificate.not_valid_before_utc),
        valid_until=_milliseconds(certificate.not_valid_after_utc),
    )


def _milliseconds(moment: datetime) -> int:
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * 86_400_000 + since.seconds * 1000


def check_times(chain: list[x509.Certificate], at_ms: int) -> None:
    """Raises VerificationError ``attest.expired`` or ``attest.not_yet_valid``."""
    for certificate in chain:
        if at_ms < _milliseconds(certificate.not_valid_before_utc):
            raise refuse(CHECK, "attest.not_yet_valid", "a certificate was not yet valid at that time")
        if at_ms > _milliseconds(certificate.not_valid_after_utc):
            raise refuse(CHECK, "attest.expired", "a certificate had expired at that time")


def check_ecdsa_chain(
    chain: list[x509.Certificate], *, leaf_says_so: bool = True
) -> ec.EllipticCurvePublicKey:
    """Root first, leaf last, the root believed already; P-384 and SHA-384 throughout. Returns the leaf's key.

    Names chain, each signs the next; authorities are marked so, critically, may sign certificates and keep their path
    length; the leaf is none and may sign data. Without ``leaf_says_so`` a leaf without basic constraints is none too
    (RFC 5280, 4.2.1.9). Raises VerificationError ``attest.chain_*``.
    """
    last = len(chain) - 1
    for position, certificate in enumerate(chain):
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
            raise refuse(CHECK, "attest.chain_algorithm", "a certificate's key is not P-384")
        if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
            raise refuse(CHECK, "attest.chain_algorithm", "a certificate is not signed by ECDSA with SHA-384")
        if certificate.version is not x509.Version.v3:
            raise refuse(CHECK, "attest.chain_constraints", "a certificate is not of version 3")
        check_constraints(
            certificate,
            authority=position < last,
            below=last - position - 1,
            says_so=leaf_says_so or position < last,
        )
        if position:
            check_issued(chain[position - 1], certificate)
    key = chain[last].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - the loop has seen it
    return key


def check_constraints(
    certificate: x509.Certificate, *, authority: bool, below: int, says_so: bool = True
) -> None:
    """Basic constraints, key usage and critical extensions; ``below``: how many authorities follow."""
    found: dict[x509.ObjectIdentifier, x509.Extension[x509.ExtensionType]] = {
        e.oid: e for e in certificate.extensions
    }
    for oid, extension in found.items():
        if extension.critical and oid not in _UNDERSTOOD:
            raise refuse(
                CHECK,
                "attest.chain_extension",
                "a certificate has a critical extension that nobody here knows",
            )
    usage = found.get(ExtensionOID.KEY_USAGE)
    if usage is None or not isinstance(usage.value, x509.KeyUsage):
        raise refuse(CHECK, "attest.chain_constraints", "a certificate has no key usage")
    basic = found.get(ExtensionOID.BASIC_CONSTRAINTS)
    if basic is None and not says_so and not authority:
        basic = _NO_AUTHORITY
    if basic is None or not isinstance(basic.value, x509.BasicConstraints):
        raise refuse(CHECK, "attest.chain_constraints", "a certificate has no basic constraints")
    if authority:
        if not (basic.critical and basic.value.ca and usage.value.key_cert_sign):
            raise refuse(
                CHECK, "attest.chain_constraints", "a certificate that signs another is no authority"
            )
        if basic.value.path_length is not None and basic.value.path_length < below:
            raise refuse(CHECK, "attest.chain_path_length", "the chain is longer than an authority allows")
    elif basic.value.ca or usage.value.key_cert_sign or not usage.value.digital_signature:
        raise refuse(CHECK, "attest.chain_constraints", "the leaf is an authority or may not sign documents")


def check_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> None:
    """Name, key identifiers where both have them, and signature."""
    try:
        authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        subject = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        pass  # neither is mandatory; the signature below decides
    else:
        if authority.key_identifier is not None and authority.key_identifier != subject.digest:
            raise refuse(CHECK, "attest.chain_order", "a certificate names another issuer's key")
    if certificate.issuer != issuer.subject:
        raise refuse(CHECK, "attest.chain_order", "a certificate names another issuer")
    try:
        certificate.verify_directly_issued_by(issuer)
    except UNREADABLE:
        raise refuse(
            CHECK, "attest.chain_signature", "a certificate is not signed by the one above it"
        ) from None


def verify_raw_p384(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    """ECDSA with SHA-384, ``signature`` being r ‖ s, 48 bytes each, big-endian, both in 1..n-1."""
    if len(signature) != 96:
        return False
    r, s = int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
    if not (0 < r < P384_ORDER and 0 < s < P384_ORDER):
        return False
    try:
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def load_pem_chain(pem: bytes, *, limit: int) -> list[x509.Certificate]:
    """The certificates of a PEM text of at most ``limit``, in its order. Raises ``attest.certificate``."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except UNREADABLE:
        raise refuse(CHECK, "attest.certificate", "the PEM certificates cannot be read") from None
    if not 1 <= len(found) <= limit:
        raise refuse(CHECK, "attest.certificate", f"there must be 1 to {limit} certificates")
    return [load(certificate.public_bytes(Encoding.DER)) for certificate in found]
