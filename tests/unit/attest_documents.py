"""Documents in Nitro's format under a self-made root, each part of which a test can spoil. SIMULATED, NOT AWS.

The encoder is a second one, written for the tests: it also writes what the reader must refuse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from aos.core.attest.result import TrustAnchor, fingerprint, simulated_anchor

VECTORS = Path(__file__).resolve().parents[2] / "vectors/external/attestation"
NOW_MS = 1_764_000_000_000
START = datetime.fromtimestamp(NOW_MS // 1000, UTC)
HEADER = bytes.fromhex("a1013822")
LEAF_LIFE = timedelta(hours=3)


def head(major: int, value: int) -> bytes:
    """A CBOR head in its shortest form."""
    if value < 24:
        return bytes([major << 5 | value])
    for extra, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if value < 1 << (8 * size):
            return bytes([major << 5 | extra]) + value.to_bytes(size, "big")
    raise ValueError(value)


class Raw(bytes):
    """Bytes that stand for themselves in the encoding."""


def cbor(value: Any) -> bytes:
    if isinstance(value, Raw):
        return bytes(value)
    if value is None or value is True or value is False:
        return {None: b"\xf6", True: b"\xf5", False: b"\xf4"}[value]
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(cbor, value))
    return head(5, len(value)) + pairs(list(value.items()))


def pairs(items: list[tuple[Any, Any]]) -> bytes:
    return b"".join(cbor(key) + cbor(value) for key, value in items)


def key_of(name: str, curve: str = "p384") -> ec.EllipticCurvePrivateKey:
    """One key a name and curve, for as long as the tests run."""
    return _key(name, curve)


@cache
def _key(
    name: str, curve: str
) -> ec.EllipticCurvePrivateKey:  # not ``key_of``: a default counts as another call
    return ec.generate_private_key(ec.SECP384R1() if curve == "p384" else ec.SECP256R1())


@dataclass
class Link:
    """One certificate to be made."""

    name: str
    ca: bool = True
    path_length: int | None = None
    basic_critical: bool = True
    basic: bool = True
    usage: bool = True
    cert_sign: bool | None = None
    curve: str = "p384"
    hash: Any = field(default_factory=hashes.SHA384)
    start: datetime = START - timedelta(days=1)
    end: datetime = START + timedelta(days=30)
    extra: list[tuple[x509.ExtensionType, bool]] = field(default_factory=list)
    key_name: str = ""
    issuer_name: str = ""

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        return key_of(self.key_name or self.name, self.curve)


def default_links() -> list[Link]:
    return [
        Link("root"),
        Link("regional", path_length=2),
        Link("zonal", path_length=1),
        Link("instance", path_length=0),
        Link("leaf", ca=False, start=START - timedelta(seconds=3), end=START + LEAF_LIFE),
    ]


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name}, SIMULATED, NOT AWS")])


def issue(link: Link, issuer: Link) -> bytes:
    sign = link.ca if link.cert_sign is None else link.cert_sign
    builder = (
        x509.CertificateBuilder()
        .subject_name(_named(link.name))
        .issuer_name(_named(link.issuer_name or issuer.name))
        .public_key(link.key.public_key())
        .serial_number(1000 + len(link.name))
        .not_valid_before(link.start)
        .not_valid_after(link.end)
    )
    if link.basic:
        basic = x509.BasicConstraints(ca=link.ca, path_length=link.path_length)
        builder = builder.add_extension(basic, critical=link.basic_critical)
    if link.usage:
        usage = x509.KeyUsage(
            digital_signature=not sign,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=sign,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    for value, critical in link.extra:
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(issuer.key, link.hash).public_bytes(Encoding.DER)


def chain(links: list[Link]) -> list[bytes]:
    return [issue(link, links[max(0, position - 1)]) for position, link in enumerate(links)]


@cache
def default_chain() -> tuple[bytes, ...]:
    return tuple(chain(default_links()))


def anchor_of(root: bytes) -> TrustAnchor:
    return simulated_anchor(fingerprint(root))


def members(certificates: list[bytes] | tuple[bytes, ...] | None = None, **changes: Any) -> dict[str, Any]:
    """The payload's members; a change to ``...`` removes one."""
    made = list(certificates or default_chain())
    pcrs = {index: bytes([index + 1] * 48) if index in (0, 1, 2, 3, 4) else bytes(48) for index in range(16)}
    out: dict[str, Any] = {
        "module_id": "i-51a1a7ed000000000-enc51a1a7ed00000000",
        "digest": "SHA384",
        "timestamp": NOW_MS,
        "pcrs": pcrs,
        "certificate": made[-1],
        "cabundle": made[:-1],
        "public_key": None,
        "user_data": b"data",
        "nonce": b"challenge",
    }
    out.update(changes)
    return {name: value for name, value in out.items() if value is not ...}


def sign(
    payload: bytes, *, key: ec.EllipticCurvePrivateKey | None = None, protected: bytes = HEADER
) -> bytes:
    signed = cbor(["Signature1", protected, b"", payload])
    signature = (key or key_of("leaf")).sign(signed, ec.ECDSA(hashes.SHA384()))
    r, s = decode_dss_signature(signature)
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def document(payload: bytes | dict[str, Any], *, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """A whole document, truly signed."""
    data = payload if isinstance(payload, bytes) else cbor(payload)
    return cbor([HEADER, {}, data, sign(data, key=key)])
