"""Image files of enclaves, made part by part so that a test can spoil any of them. The encoder is a second one, written
for the tests: it also writes what the reader must refuse. Nothing here is AWS's."""

from __future__ import annotations

import struct
import zlib
from base64 import encodebytes
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha384
from typing import Any

from attest_documents import Link, cbor, issue, key_of
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = 1, 2, 3, 4, 5
SIGNER = Link("eif signer", ca=False)
Section = tuple[int, bytes]


@dataclass
class Image:
    """A file to be made; what stays None follows from the sections."""

    sections: list[Section] = field(default_factory=lambda: list(PLAIN))
    magic: bytes = b".eif"
    version: int = 4
    flags: int = 0
    reserved: int = 0
    unused: int = 0
    count: int | None = None
    offsets: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    inner_sizes: dict[int, int] = field(default_factory=dict)
    section_flags: dict[int, int] = field(default_factory=dict)
    gap: dict[int, bytes] = field(default_factory=dict)
    tail: bytes = b""
    crc: int | None = None


PLAIN: Sequence[Section] = (
    (KERNEL, b"kernel " * 40),
    (CMDLINE, b"reboot=k panic=30 console=ttyS0"),
    (METADATA, b'{"ImageName":"test"}'),
    (RAMDISK, b"boot " * 30),
    (RAMDISK, b"application " * 30),
)


def made(image: Image) -> bytes:
    body, offsets, sizes = b"", [0] * 32, [0] * 32
    for number, (kind, content) in enumerate(image.sections):
        body += image.gap.get(number, b"")
        if number < 32:
            offsets[number] = 548 + len(body)
            sizes[number] = len(content)
        inner = image.inner_sizes.get(number, len(content))
        body += struct.pack(">HHQ", kind, image.section_flags.get(number, 0), inner) + content
    for number, value in image.offsets.items():
        offsets[number] = value
    for number, value in image.sizes.items():
        sizes[number] = value
    head = struct.pack(">4sHHQQ", image.magic, image.version, image.flags, 1 << 30, 2)
    head += struct.pack(">HH", image.reserved, len(image.sections) if image.count is None else image.count)
    head += struct.pack(">64Q", *offsets, *sizes) + struct.pack(">I", image.unused)
    body += image.tail
    crc = zlib.crc32(head + body) if image.crc is None else image.crc
    return head + struct.pack(">I", crc) + body


def h(*parts: bytes) -> bytes:
    """A register of zeros, extended by the digest of the parts."""
    return sha384(bytes(48) + sha384(b"".join(parts)).digest()).digest()


def registers(sections: Sequence[Section]) -> tuple[bytes, bytes, bytes]:
    """PCR0, PCR1, PCR2, worked out in another way than the reader does."""
    boot = [content for kind, content in sections if kind in (KERNEL, CMDLINE)]
    disks = [content for kind, content in sections if kind == RAMDISK]
    return h(*boot, *disks), h(*boot, disks[0]), h(*disks[1:])


def pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + encodebytes(der) + b"-----END CERTIFICATE-----\n"


ALGORITHMS: dict[str, tuple[bytes, int, Any]] = {
    "p256": (bytes.fromhex("a10126"), 32, hashes.SHA256()),
    "p384": (bytes.fromhex("a1013822"), 48, hashes.SHA384()),
}


def signature(pcr0: bytes, **changes: Any) -> bytes:
    """A signature section's content over ``pcr0``. Changes: ``key`` and ``curve`` of who signs, ``certificate`` (a PEM
    text), ``register`` (another index), ``protected``, ``unprotected``, ``payload``, ``raw`` (r ‖ s), ``entries``,
    ``members``."""
    curve = changes.get("curve", "p384")
    signer = Link("eif signer", ca=False, curve=curve)
    protected, width, digest = ALGORITHMS[curve]
    protected = changes.get("protected", protected)
    register = {"register_index": changes.get("register", 0), "register_value": list(pcr0)}
    payload = changes.get("payload", cbor(register))
    signed = cbor(["Signature1", protected, b"", payload])
    key: ec.EllipticCurvePrivateKey = changes.get("key", signer.key)
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(digest)))
    raw = changes.get("raw", r.to_bytes(width, "big") + s.to_bytes(width, "big"))
    document = cbor([protected, changes.get("unprotected", {}), payload, raw])
    entry = {
        "signing_certificate": list(changes.get("certificate", pem(issue(signer, signer)))),
        "signature": list(changes.get("document", document)),
    }
    entry.update(changes.get("members", {}))
    return cbor(changes.get("entries", [entry]))


def signed(sections: Sequence[Section] = PLAIN, **changes: Any) -> Image:
    """``sections`` with a signature over their PCR0, or over ``pcr0``."""
    pcr0 = changes.pop("pcr0", registers(sections)[0])
    return Image([*sections, (SIGNATURE, signature(pcr0, **changes))])


__all__ = ["Image", "key_of", "made", "pem", "registers", "signature", "signed"]
