"""Enclave image files of AWS Nitro: what is in them, and the registers that they will be measured to
(docs/spec/12-attestation.md, "Enclave image files").

A file is read once, front to back, in pieces; nothing of a size that it only declares is held in memory. Header,
section headers, metadata and signature are not measured, and neither are the boundaries between what is: two files of
the same registers can differ, which is why the file's SHA-256 and each section's SHA-384 are reported too.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256, sha384
from typing import BinaryIO, Literal

from aos.core.attest.eif_signature import MAX_SIGNATURE_BYTES, EifSigner, read_signature
from aos.errors import InvalidMessage

MAGIC = b".eif"
VERSION = 4
HEADER_BYTES = 548
SECTION_HEADER_BYTES = 12
MAX_SECTIONS = 32
MAX_EIF_BYTES = 64 << 30
MAX_CMDLINE_BYTES = 2048
MAX_METADATA_BYTES = 1 << 20
PCR_BYTES = 48

SectionKind = Literal["kernel", "cmdline", "ramdisk", "signature", "metadata"]
KINDS: dict[int, SectionKind] = {1: "kernel", 2: "cmdline", 3: "ramdisk", 4: "signature", 5: "metadata"}
HEADER = struct.Struct(">4sHHQQHH32Q32QII")
SECTION_HEADER = struct.Struct(">HHQ")
ARM64 = 1

# What is kept whole has a cap of its own; kernel and ramdisks only pass through.
_KEPT: dict[SectionKind, int] = {
    "cmdline": MAX_CMDLINE_BYTES,
    "metadata": MAX_METADATA_BYTES,
    "signature": MAX_SIGNATURE_BYTES,
}
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EifSection:
    """One section: ``offset`` of its header in the file, ``size`` of its content in bytes, ``sha384`` of its content
    (48 bytes)."""

    kind: SectionKind
    offset: int
    size: int
    sha384: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveImage:
    """What an image file holds. ``pcr0``, ``pcr1`` and ``pcr2`` are 48 bytes: the whole, what boots it, the
    application. ``pcr8`` is None where the file is unsigned; the enclave's register is then zero."""

    size: int
    sha256: bytes
    architecture: Literal["x86_64", "aarch64"]
    default_memory_bytes: int
    default_cpus: int
    sections: tuple[EifSection, ...]
    cmdline: str
    pcr0: bytes
    pcr1: bytes
    pcr2: bytes
    pcr8: bytes | None
    signer: EifSigner | None

    def registers(self) -> dict[str, bytes]:
        """The registers that the file decides, by name."""
        named = {"PCR0": self.pcr0, "PCR1": self.pcr1, "PCR2": self.pcr2}
        return named if self.pcr8 is None else {**named, "PCR8": self.pcr8}


def extended(content_sha384: bytes) -> bytes:
    """A register of zeros extended once: SHA-384(48 zero bytes, then ``content_sha384``)."""
    return sha384(bytes(PCR_BYTES) + content_sha384).digest()


def read_eif(stream: BinaryIO, size: int) -> EnclaveImage:
    """Read and check the image file of ``size`` bytes that ``stream`` stands at the beginning of.

    Raises InvalidMessage ``eif.*`` for a file that is not in the one form, VerificationError ``eif.signature`` for a
    signature that does not hold.
    """
    if not HEADER_BYTES <= size <= MAX_EIF_BYTES:
        raise _bad("size", f"an image file has {HEADER_BYTES} to {MAX_EIF_BYTES} bytes, not {size}", "size")
    reader = _Reader(stream, size)
    header = _header(reader)
    whole, application = sha384(), sha384()
    boot = whole.copy()
    sections: list[EifSection] = []
    kept: dict[SectionKind, bytes] = {}
    ramdisks = 0
    for number in range(header.sections):
        offset, kind, length = _section_header(reader, header, number, sections)
        content = sha384()
        feeds = [content]
        if kind in ("kernel", "cmdline", "ramdisk"):
            feeds.append(whole)
        if kind == "ramdisk":
            ramdisks += 1
            if ramdisks > 1:
                feeds.append(application)
        pieces = bytearray()
        for piece in reader.content(length, kind):
            for feed in feeds:
                feed.update(piece)
            if kind in _KEPT:
                pieces += piece
        if kind in _KEPT:
            kept[kind] = bytes(pieces)
        if kind == "ramdisk" and ramdisks == 1:
            boot = whole.copy()
        sections.append(EifSection(kind=kind, offset=offset, size=length, sha384=content.digest()))
    _complete([section.kind for section in sections])
    reader.end(header.crc)
    pcr0 = extended(whole.digest())
    signer = read_signature(kept["signature"], pcr0) if "signature" in kept else None
    if "metadata" in kept:
        _metadata(kept["metadata"])
    return EnclaveImage(
        size=size,
        sha256=reader.sha256.digest(),
        architecture="aarch64" if header.flags & ARM64 else "x86_64",
        default_memory_bytes=header.memory,
        default_cpus=header.cpus,
        sections=tuple(sections),
        cmdline=_cmdline(kept["cmdline"]),
        pcr0=pcr0,
        pcr1=extended(boot.digest()),
        pcr2=extended(application.digest()),
        pcr8=None if signer is None else extended(signer.certificate_sha384),
        signer=signer,
    )


def _bad(code: str, message: str, field: str) -> InvalidMessage:
    return InvalidMessage(
        f"eif.{code}", f"the image file: {message}", field=field, hint="build the image file anew"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    flags: int
    memory: int
    cpus: int
    sections: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    crc: int


class _Reader:
    """The file's bytes in order, each digested once. The checksum leaves out its own four bytes."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self.position = 0
        self.sha256 = sha256()
        self._crc = 0

    def take(self, count: int, what: str, *, checked: bool = True) -> bytes:
        data = self._stream.read(count) if count <= self._size - self.position else b""
        while 0 < len(data) < count:  # a raw stream may give less at a time
            more = self._stream.read(count - len(data))
            if not more:
                break
            data += more
        if len(data) != count:
            raise _bad("truncated", f"it ends inside {what}", what)
        self.position += count
        self.sha256.update(data)
        if checked:
            self._crc = zlib.crc32(data, self._crc)
        return data

    def content(self, length: int, what: str) -> Iterator[bytes]:
        left = length
        while left:
            piece = self.take(min(left, _PIECE), what)
            left -= len(piece)
            yield piece

    def end(self, crc: int) -> None:
        if self.position != self._size or self._stream.read(1):
            raise _bad("trailing", "bytes follow the last section", "size")
        if crc != self._crc:
            raise _bad("crc", f"its checksum is {self._crc:08x}, the header says {crc:08x}", "eif_crc32")


def _header(reader: _Reader) -> _Header:
    first = reader.take(HEADER_BYTES - 4, "the header")
    last = reader.take(4, "the header", checked=False)
    magic, version, flags, memory, cpus, reserved, count, *rest = HEADER.unpack(first + last)
    offsets, sizes, unused, crc = tuple(rest[:32]), tuple(rest[32:64]), rest[64], rest[65]
    if magic != MAGIC:
        raise _bad("magic", "it does not begin with .eif", "magic")
    if version != VERSION:
        raise _bad("version", f"its version is {version}, not {VERSION}", "version")
    if flags & ~ARM64:
        raise _bad("flags", f"its header has unknown flags {flags:#06x}", "flags")
    if reserved or unused:
        raise _bad(
            "header", "a reserved field of its header is not zero", "reserved" if reserved else "unused"
        )
    if not 4 <= count <= MAX_SECTIONS:
        raise _bad("section_count", f"it has {count} sections, not 4 to {MAX_SECTIONS}", "num_sections")
    if any(offsets[count:]) or any(sizes[count:]):
        raise _bad("section_table", "its table names sections that it does not have", "section_offsets")
    return _Header(
        flags=flags, memory=memory, cpus=cpus, sections=count, offsets=offsets, sizes=sizes, crc=crc
    )


_ORDER: tuple[SectionKind, ...] = ("kernel", "cmdline", "metadata", "ramdisk", "signature")


def _section_header(
    reader: _Reader, header: _Header, number: int, before: list[EifSection]
) -> tuple[int, SectionKind, int]:
    """Offset, kind and size of section ``number``, judged before a byte of its content is read."""
    offset, where = reader.position, f"section {number}"
    if header.offsets[number] != offset:
        raise _bad(
            "offset",
            f"{where} lies at {offset}, the header says {header.offsets[number]}: a gap or an overlap",
            f"section_offsets[{number}]",
        )
    type_number, flags, length = SECTION_HEADER.unpack(reader.take(SECTION_HEADER_BYTES, where))
    kind = KINDS.get(type_number)
    if kind is None:
        raise _bad("section_kind", f"{where} is of the unknown kind {type_number}", where)
    if flags:
        raise _bad("section_flags", f"{where} has flags {flags:#06x}", where)
    if length != header.sizes[number]:
        raise _bad(
            "section_size",
            f"{where} has {length} bytes, the header says {header.sizes[number]}",
            f"section_sizes[{number}]",
        )
    if length == 0 or length > _KEPT.get(kind, MAX_EIF_BYTES):
        raise _bad("section_size", f"{where} ({kind}) of {length} bytes is empty or too large", where)
    seen = [section.kind for section in before]
    if kind != "ramdisk" and kind in seen:
        raise _bad("section_kind", f"{where} is a second {kind}", where)
    if seen and _ORDER.index(kind) < _ORDER.index(seen[-1]):
        raise _bad("section_order", f"{where} ({kind}) comes after a {seen[-1]}", where)
    return offset, kind, length


def _complete(kinds: list[SectionKind]) -> None:
    if kinds[:2] != ["kernel", "cmdline"]:
        raise _bad("section_count", "it has no kernel or no command line", "num_sections")
    if kinds.count("ramdisk") < 2:
        raise _bad(
            "section_count", "it has not two ramdisks, one that boots and the application's", "num_sections"
        )


def _cmdline(data: bytes) -> str:
    if not data.isascii() or not data.decode("ascii").isprintable():
        raise _bad("cmdline", "its command line is not printable ASCII", "cmdline")
    return data.decode("ascii")


def _metadata(data: bytes) -> None:
    """Metadata are not measured and nothing here believes them; but a section that says JSON must be JSON."""
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise _bad("metadata", "its metadata are no JSON", "metadata") from None
    if not isinstance(value, dict):
        raise _bad("metadata", "its metadata are no JSON object", "metadata")
