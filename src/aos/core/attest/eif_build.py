"""Build enclave image files and their ramdisks so that equal input gives equal bytes
(docs/spec/12-attestation.md, "Building an image file").

What makes builds differ is left no room: entries are sorted by name, owner and times are constants, inode numbers
count from 1, and the metadata hold what the caller says, never a clock's time.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from stat import S_IFDIR, S_IFLNK, S_IFREG
from typing import BinaryIO, Literal

from aos.core.attest.eif import (
    ARM64,
    HEADER,
    HEADER_BYTES,
    KINDS,
    MAGIC,
    MAX_CMDLINE_BYTES,
    MAX_METADATA_BYTES,
    MAX_SECTIONS,
    SECTION_HEADER,
    SECTION_HEADER_BYTES,
    VERSION,
    SectionKind,
)
from aos.core.encoding import canonical_json
from aos.errors import InvalidMessage

DEFAULT_MEMORY_BYTES = 1 << 30
DEFAULT_CPUS = 2
MAX_NAME_BYTES = 4095
_PIECE = 1 << 20
_TRAILER = "TRAILER!!!"
_NUMBERS = {kind: number for number, kind in KINDS.items()}
_FORMATS = {"directory": S_IFDIR, "file": S_IFREG, "link": S_IFLNK}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """``size`` bytes that ``stream`` gives from where it stands."""

    stream: BinaryIO
    size: int

    def pieces(self, what: str) -> Iterator[bytes]:
        left = self.size
        while left:
            piece = self.stream.read(min(left, _PIECE))
            if not piece:
                raise _refused(f"{what} ends {left} bytes early", what)
            left -= len(piece)
            yield piece
        if self.stream.read(1):
            raise _refused(f"{what} is longer than the {self.size} bytes announced", what)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpioEntry:
    """A file of a ramdisk. ``name`` is relative, without ``.`` and ``..``; ``permissions`` are the low twelve bits.
    ``content`` is a file's, ``target`` a symbolic link's."""

    name: str
    kind: Literal["directory", "file", "link"]
    permissions: int
    content: Source | None = None
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParts:
    """What an image file is made of. The first ramdisk boots, the others hold the application. ``metadata`` goes in as
    canonical JSON."""

    kernel: Source
    cmdline: str
    ramdisks: Sequence[Source]
    metadata: Mapping[str, object] = field(default_factory=dict)
    architecture: Literal["x86_64", "aarch64"] = "x86_64"


def _refused(message: str, field_name: str) -> InvalidMessage:
    return InvalidMessage("eif.input", message, field=field_name, hint="correct the image's parts")


def write_cpio(out: BinaryIO, entries: Iterable[CpioEntry]) -> int:
    """Write a "newc" cpio archive, sorted by name (as bytes), every time 0 and every owner 0; returns its size.

    A directory must be an entry of its own where something lies in it. Raises InvalidMessage ``eif.input``.
    """
    ordered = sorted(entries, key=lambda entry: entry.name.encode())
    known: dict[str, str] = {}
    for entry in ordered:
        _check(entry, known)
        known[entry.name] = entry.kind
    written = 0
    for inode, entry in enumerate(ordered, start=1):
        target = entry.target.encode()
        size = entry.content.size if entry.content is not None else len(target)
        mode = _FORMATS[entry.kind] | entry.permissions
        links = 2 if entry.kind == "directory" else 1
        written += _write(out, _newc(entry.name, inode=inode, mode=mode, links=links, size=size))
        for piece in (target,) if entry.content is None else entry.content.pieces(entry.name):
            written += _write(out, piece)
        written += _write(out, bytes(-written % 4))
    written += _write(out, _newc(_TRAILER, inode=0, mode=0, links=1, size=0))
    return written + _write(out, bytes(-written % 512))


def _check(entry: CpioEntry, known: Mapping[str, str]) -> None:
    name = entry.name
    parts = name.split("/")
    if not 0 < len(name.encode()) <= MAX_NAME_BYTES or "\0" in name or {"", ".", ".."} & set(parts):
        raise _refused(f"the name {name!r} is not a relative path in its one form", "name")
    if name == _TRAILER or name in known:
        raise _refused(f"the name {name!r} is there twice, or reserved", "name")
    parent = "/".join(parts[:-1])
    if parent and known.get(parent) != "directory":
        raise _refused(f"{name}: its directory is no entry of the archive", "name")
    if entry.permissions & ~0o7777:
        raise _refused(f"{name}: permissions {entry.permissions:o}", "permissions")
    if (entry.kind == "file") != (entry.content is not None) or (entry.kind == "link") != bool(entry.target):
        raise _refused(f"{name}: a file has content, a link a target, a directory neither", "content")
    if entry.content is not None and entry.content.size >= 1 << 32:
        raise _refused(f"{name}: a file of 4 GiB or more", "content")


def _newc(name: str, *, inode: int, mode: int, links: int, size: int) -> bytes:
    # magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    encoded = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + encoded
    return head + bytes(-len(head) % 4)


def _write(out: BinaryIO, data: bytes) -> int:
    out.write(data)
    return len(data)


def write_eif(out: BinaryIO, parts: ImageParts) -> int:
    """Write an unsigned image file to ``out``, which must be seekable and stand at 0; returns its size.

    Sections in the order of AWS's own tool: kernel, command line, metadata, ramdisks. Raises InvalidMessage
    ``eif.input``.
    """
    cmdline = parts.cmdline.encode()
    if not cmdline.isascii() or not parts.cmdline.isprintable() or not 0 < len(cmdline) <= MAX_CMDLINE_BYTES:
        raise _refused("the command line is not printable ASCII of 1 to 2048 bytes", "cmdline")
    metadata = canonical_json(dict(parts.metadata))
    if len(metadata) > MAX_METADATA_BYTES:
        raise _refused("the metadata are too large", "metadata")
    if not 2 <= len(parts.ramdisks) <= MAX_SECTIONS - 3:
        raise _refused("an image has two ramdisks or more: one that boots, and the application's", "ramdisks")
    contents: list[tuple[SectionKind, int, Iterator[bytes]]] = [
        ("kernel", parts.kernel.size, parts.kernel.pieces("kernel")),
        ("cmdline", len(cmdline), iter((cmdline,))),
        ("metadata", len(metadata), iter((metadata,))),
        *(("ramdisk", ramdisk.size, ramdisk.pieces("ramdisk")) for ramdisk in parts.ramdisks),
    ]
    if any(size == 0 for _, size, _ in contents):
        raise _refused("a part of the image is empty", "kernel")
    offsets, position = [], HEADER_BYTES
    for _, size, _ in contents:
        offsets.append(position)
        position += SECTION_HEADER_BYTES + size
    header = HEADER.pack(
        MAGIC,
        VERSION,
        ARM64 if parts.architecture == "aarch64" else 0,
        DEFAULT_MEMORY_BYTES,
        DEFAULT_CPUS,
        0,
        len(contents),
        *offsets,
        *[0] * (MAX_SECTIONS - len(contents)),
        *(size for _, size, _ in contents),
        *[0] * (MAX_SECTIONS - len(contents)),
        0,
        0,
    )
    out.write(header)
    crc = zlib.crc32(header[:-4])
    for kind, size, pieces in contents:
        for piece in chain((SECTION_HEADER.pack(_NUMBERS[kind], 0, size),), pieces):
            out.write(piece)
            crc = zlib.crc32(piece, crc)
    out.seek(HEADER_BYTES - 4)
    out.write(crc.to_bytes(4, "big"))
    out.seek(position)
    return position
