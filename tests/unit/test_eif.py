"""Enclave image files: registers, structure, signature, building, comparison (docs/spec/12-attestation.md).

The reference's toy files have stated registers; everything else is made part by part and spoiled one part at a time.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zlib
from dataclasses import replace
from hashlib import sha256, sha384
from pathlib import Path
from typing import Any

import pytest
from attest_documents import Link, cbor, issue, key_of
from eif_files import (
    CMDLINE,
    KERNEL,
    METADATA,
    PLAIN,
    RAMDISK,
    SIGNATURE,
    Image,
    made,
    pem,
    registers,
    signature,
    signed,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aos.cli.app import app
from aos.core.attest.eif import MAX_CMDLINE_BYTES, MAX_EIF_BYTES, EnclaveImage, read_eif
from aos.core.attest.eif_build import CpioEntry, ImageParts, Source, write_cpio, write_eif
from aos.core.attest.measurements import (
    compare,
    compare_nitro_cli,
    load_measurements,
    measurements_file,
    measurements_of,
)
from aos.errors import AOSError, ConfigError, InvalidMessage, VerificationError

ROOT = Path(__file__).resolve().parents[2]


def read(data: bytes) -> EnclaveImage:
    return read_eif(io.BytesIO(data), len(data))


def code(data: bytes) -> str:
    with pytest.raises(AOSError) as caught:
        read(data)
    assert caught.value.hint
    return caught.value.code


# --- the reference's files


def toy(shared_fixtures: Path, name: str) -> bytes:
    return (shared_fixtures / "attestation" / "eif" / name).read_bytes()


@pytest.mark.parametrize("name", ["toy_unsigned.eif", "toy_signed.eif", "toy_boundary_shifted.eif"])
def test_a_toy_file_has_its_stated_registers(shared_fixtures: Path, name: str) -> None:
    stated = json.loads(toy(shared_fixtures, "expected.json"))[name]
    data = toy(shared_fixtures, name)
    image = read(data)
    assert {register: value.hex() for register, value in image.registers().items()} == stated
    assert image.sha256 == sha256(data).digest()
    assert (image.signer is not None) == ("PCR8" in stated)


def test_a_toy_file_with_a_wrong_checksum_is_refused(shared_fixtures: Path) -> None:
    assert code(toy(shared_fixtures, "toy_badcrc.eif")) == "eif.crc"


def test_a_shifted_boundary_keeps_the_registers_and_changes_everything_else(shared_fixtures: Path) -> None:
    plain, shifted = (read(toy(shared_fixtures, f"toy_{n}.eif")) for n in ("unsigned", "boundary_shifted"))
    assert plain.registers() == shifted.registers()
    assert plain.sha256 != shifted.sha256
    assert [s.sha384 for s in plain.sections[:2]] != [s.sha384 for s in shifted.sections[:2]]
    with pytest.raises(VerificationError) as caught:
        compare(measurements_of(shifted), measurements_of(plain))
    assert (caught.value.code, caught.value.field) == ("eif.measurement", "sections")


# --- reading


def test_registers_sections_and_digests_are_those_of_the_parts() -> None:
    data = made(Image())
    image = read(data)
    assert (image.pcr0, image.pcr1, image.pcr2) == registers(PLAIN)
    assert image.pcr8 is None
    assert [(s.size, s.sha384) for s in image.sections] == [
        (len(content), sha384(content).digest()) for _, content in PLAIN
    ]
    assert [s.kind for s in image.sections] == ["kernel", "cmdline", "metadata", "ramdisk", "ramdisk"]
    assert all(
        data[s.offset + 12 : s.offset + 12 + s.size] == c
        for s, (_, c) in zip(image.sections, PLAIN, strict=True)
    )
    assert (image.default_memory_bytes, image.default_cpus, image.architecture) == (1 << 30, 2, "x86_64")
    assert read(made(Image(flags=1))).architecture == "aarch64"


def test_more_ramdisks_and_no_metadata_are_a_file_too() -> None:
    sections = [PLAIN[0], PLAIN[1], *((RAMDISK, bytes([n] * (n + 1))) for n in range(30))]
    image = read(made(Image(list(sections))))
    assert (image.pcr0, image.pcr1, image.pcr2) == registers(sections)


class Dribbling(io.RawIOBase):
    """A raw stream gives what it has, not what it is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece = self._data[self._at : self._at + min(size, 7)]
        self._at += len(piece)
        return piece


def test_a_stream_may_give_little_at_a_time() -> None:
    data = made(signed())
    assert read_eif(Dribbling(data), len(data)) == read(data)  # type: ignore[arg-type]


class Zeros(io.RawIOBase):
    """A kernel of many zeros, never in memory at once; counts the largest piece that was asked for."""

    def __init__(self, head: bytes, zeros: int, tail: bytes) -> None:
        self.parts = [head, zeros, tail]
        self.largest = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self.largest = max(self.largest, size)
        head, zeros, tail = self.parts
        if head:
            self.parts[0] = head[size:]
            return bytes(head[:size])
        if zeros:
            count = min(size, zeros)
            self.parts[1] = zeros - count
            return bytes(count)
        self.parts[2] = tail[size:]
        return bytes(tail[:size])


def test_a_large_file_streams() -> None:
    size = 24 << 20
    sections = [(KERNEL, bytes(size)), *PLAIN[1:]]
    data = made(Image(sections))
    stream = Zeros(data[:560], size, data[560 + size :])
    image = read_eif(stream, len(data))  # type: ignore[arg-type]
    assert image.sections[0].size == size
    assert image.sha256 == sha256(data).digest()
    assert stream.largest <= 1 << 20


# --- structure

SPOILED: dict[str, tuple[Image, str]] = {
    "magic": (Image(magic=b".elf"), "eif.magic"),
    "version 3": (Image(version=3), "eif.version"),
    "version 5": (Image(version=5), "eif.version"),
    "unknown flag": (Image(flags=2), "eif.flags"),
    "reserved": (Image(reserved=1), "eif.header"),
    "unused": (Image(unused=1), "eif.header"),
    "no sections": (Image(count=0), "eif.section_count"),
    "33 sections": (Image(count=33), "eif.section_count"),
    "one section more than there are": (Image(count=6), "eif.offset"),
    "one section fewer than there are": (Image(count=4), "eif.section_table"),
    "an offset beyond the sections": (Image(offsets={5: 9}), "eif.section_table"),
    "a size beyond the sections": (Image(sizes={31: 1}), "eif.section_table"),
    "gap": (Image(gap={2: b"gap"}), "eif.offset"),
    "gap that the header hides": (Image(gap={2: b"gap"}, offsets={2: 883}), "eif.section_kind"),
    "gap that the header knows": (Image(gap={2: bytes(12)}), "eif.offset"),
    "overlap": (Image(offsets={3: 560}), "eif.offset"),
    "offsets swapped": (Image(offsets={0: 840, 1: 548}), "eif.offset"),
    "sizes differ": (Image(sizes={0: 1}), "eif.section_size"),
    "section longer than its header's table": (Image(inner_sizes={0: 281}), "eif.section_size"),
    "a declared size of 2^63": (Image(inner_sizes={4: 1 << 63}, sizes={4: 1 << 63}), "eif.section_size"),
    "a declared size of 60 GiB": (Image(inner_sizes={4: 60 << 30}, sizes={4: 60 << 30}), "eif.truncated"),
    "trailing byte": (Image(tail=b"\0"), "eif.trailing"),
    "trailing section": (Image(tail=made(Image())[548:]), "eif.trailing"),
    "checksum": (Image(crc=0), "eif.crc"),
    "section flags": (Image(section_flags={3: 1}), "eif.section_flags"),
    "kind 0": (Image([(0, b"x"), *PLAIN[1:]]), "eif.section_kind"),
    "kind 6": (Image([*PLAIN, (6, b"x")]), "eif.section_kind"),
    "two kernels": (Image([PLAIN[0], PLAIN[0], *PLAIN[1:]]), "eif.section_kind"),
    "two command lines": (Image([PLAIN[0], PLAIN[1], *PLAIN[1:]]), "eif.section_kind"),
    "two metadata": (Image([*PLAIN[:3], *PLAIN[2:]]), "eif.section_kind"),
    "two signatures": (
        Image([*PLAIN, *[(SIGNATURE, signature(registers(PLAIN)[0]))] * 2]),
        "eif.section_kind",
    ),
    "command line first": (Image([PLAIN[1], PLAIN[0], *PLAIN[2:]]), "eif.section_order"),
    "metadata last": (Image([*PLAIN[:2], *PLAIN[3:], PLAIN[2]]), "eif.section_order"),
    "ramdisk after the signature": (
        Image([*PLAIN, (SIGNATURE, signature(registers(PLAIN)[0])), PLAIN[4]]),
        "eif.section_order",
    ),
    "no kernel": (Image(list(PLAIN[1:])), "eif.section_count"),
    "no command line": (Image([PLAIN[0], *PLAIN[2:]]), "eif.section_count"),
    "one ramdisk": (Image(list(PLAIN[:4])), "eif.section_count"),
    "empty kernel": (Image([(KERNEL, b""), *PLAIN[1:]]), "eif.section_size"),
    "empty ramdisk": (Image([*PLAIN[:4], (RAMDISK, b"")]), "eif.section_size"),
    "long command line": (
        Image([PLAIN[0], (CMDLINE, b"a" * (MAX_CMDLINE_BYTES + 1)), *PLAIN[2:]]),
        "eif.section_size",
    ),
    "NUL in the command line": (Image([PLAIN[0], (CMDLINE, b"quiet\0"), *PLAIN[2:]]), "eif.cmdline"),
    "command line with a line end": (Image([PLAIN[0], (CMDLINE, b"quiet\n"), *PLAIN[2:]]), "eif.cmdline"),
    "command line not ASCII": (Image([PLAIN[0], (CMDLINE, "é".encode()), *PLAIN[2:]]), "eif.cmdline"),
    "metadata no JSON": (Image([*PLAIN[:2], (METADATA, b"x"), *PLAIN[3:]]), "eif.metadata"),
    "metadata no object": (Image([*PLAIN[:2], (METADATA, b"[]"), *PLAIN[3:]]), "eif.metadata"),
    "metadata nested deep": (Image([*PLAIN[:2], (METADATA, b"[" * 200_000), *PLAIN[3:]]), "eif.metadata"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_file_that_is_not_the_one_form_is_refused_by_name(name: str) -> None:
    image, expected = SPOILED[name]
    assert code(made(image)) == expected


def test_a_size_out_of_bounds_is_refused_before_a_byte_is_read() -> None:
    class Unreadable(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise AssertionError("it was read")

    for size in (0, 547, MAX_EIF_BYTES + 1):
        with pytest.raises(InvalidMessage) as caught:
            read_eif(Unreadable(), size)
        assert caught.value.code == "eif.size"


def test_a_file_cut_anywhere_or_grown_is_refused() -> None:
    data = made(signed())
    for end in range(0, len(data), 7):
        assert code(data[:end]) in ("eif.size", "eif.truncated")
        with pytest.raises(InvalidMessage) as caught:  # a file that shrinks while it is read
            read_eif(io.BytesIO(data[:end]), len(data))
        assert caught.value.code == "eif.truncated"
    with pytest.raises(InvalidMessage) as caught:
        read_eif(io.BytesIO(data + b"\0"), len(data))
    assert caught.value.code == "eif.trailing"


def test_every_flipped_bit_is_refused() -> None:
    data = made(Image())
    for bit in range(0, len(data) * 8, 5):
        spoiled = bytearray(data)
        spoiled[bit // 8] ^= 1 << (bit % 8)
        assert code(bytes(spoiled)).startswith("eif.")


SIGNED = made(signed())  # once: ECDSA draws a number, so the next one has other bytes


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_bytes_make_the_reader_raise_anything_but_its_own_errors(data: st.DataObject) -> None:
    base = bytearray(SIGNED if data.draw(st.booleans()) else made(Image()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(base) - 1))
        patch = data.draw(st.binary(max_size=12))
        base[at : at + len(patch)] = patch
    if data.draw(st.booleans()):  # the checksum right, so that what comes after it is reached
        base[544:548] = zlib.crc32(bytes(base[:544]) + bytes(base[548:])).to_bytes(4, "big")
    try:
        read(bytes(base))
    except AOSError as error:
        assert error.code.startswith("eif.")  # noqa: PT017


# --- signature


@pytest.mark.parametrize("curve", ["p256", "p384"])
def test_a_signed_file_names_its_signer_and_measures_the_certificate(curve: str) -> None:
    image = read(made(signed(curve=curve)))
    signer = Link("eif signer", ca=False, curve=curve)
    der = issue(signer, signer)
    assert image.signer is not None
    assert image.signer.subject == "CN=eif signer\\, SIMULATED\\, NOT AWS"
    assert image.pcr8 is not None
    assert image.registers().keys() == {"PCR0", "PCR1", "PCR2", "PCR8"}
    # ECDSA draws a number for each signature of a certificate, so only its own DER can be compared.
    assert len(der) > 0
    assert (image.pcr0, image.pcr1, image.pcr2) == registers(PLAIN)


def test_pcr8_is_the_certificates_digest_extended() -> None:
    signer = Link("eif signer", ca=False)
    der = issue(signer, signer)
    image = read(made(signed(certificate=pem(der))))
    assert image.pcr8 == sha384(bytes(48) + sha384(der).digest()).digest()
    assert image.signer is not None
    assert image.signer.certificate_sha256 == sha256(der).digest()


_PCR0 = registers(PLAIN)[0]
_OTHER = Link("other", ca=False)
SIGNATURES: dict[str, tuple[dict[str, Any], str]] = {
    "over another PCR0": ({"pcr0": bytes(48)}, "eif.signature"),
    "over half of PCR0": ({"pcr0": _PCR0[:24]}, "eif.signature"),
    "by another key": ({"key": key_of("stranger")}, "eif.signature"),
    "certificate of another": ({"certificate": pem(issue(_OTHER, _OTHER))}, "eif.signature"),
    "r zero": ({"raw": bytes(48) + bytes([1] * 48)}, "eif.signature"),
    "s zero": ({"raw": bytes([1] * 48) + bytes(48)}, "eif.signature"),
    "r and s beyond the order": ({"raw": b"\xff" * 96}, "eif.signature"),
    "signature of 95 bytes": ({"raw": bytes([1] * 95)}, "eif.signature_format"),
    "register 1": ({"register": 1}, "eif.signature_format"),
    "register false": ({"register": False}, "eif.signature_format"),
    "payload no register": ({"payload": cbor({"register_index": 0})}, "eif.signature_format"),
    "payload with one member more": (
        {"payload": cbor({"register_index": 0, "register_value": list(_PCR0), "x": 1})},
        "eif.signature_format",
    ),
    "payload of bytes": (
        {"payload": cbor({"register_index": 0, "register_value": _PCR0})},
        "eif.signature_format",
    ),
    "payload no CBOR": ({"payload": b"\xff"}, "eif.signature_format"),
    "another algorithm's header": ({"protected": bytes.fromhex("a10126")}, "eif.signature_format"),
    "something unsigned beside it": ({"unprotected": {1: -35}}, "eif.signature_format"),
    "document tagged": ({"document": b"\xd2\x84"}, "eif.signature_format"),
    "document empty": ({"document": b""}, "eif.signature_format"),
    "no entries": ({"entries": []}, "eif.signature_format"),
    "entries of text": ({"entries": ["x"]}, "eif.signature_format"),
    "an unknown member": ({"members": {"x": 1}}, "eif.signature_format"),
    "certificate as bytes": ({"members": {"signing_certificate": b"x"}}, "eif.signature_format"),
    "certificate of 256": ({"members": {"signing_certificate": [256]}}, "eif.signature_format"),
    "certificate of true": ({"members": {"signing_certificate": [True]}}, "eif.signature_format"),
    "certificate no PEM": ({"certificate": b"x"}, "eif.signature_format"),
    "certificate spoiled": ({"certificate": pem(b"\x30\x03\x02\x01\x01")}, "eif.signature_format"),
    "two certificates": ({"certificate": pem(issue(_OTHER, _OTHER)) * 2}, "eif.signature_format"),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_that_does_not_hold_is_refused_by_name(name: str) -> None:
    changes, expected = SIGNATURES[name]
    assert code(made(signed(**changes))) == expected


def test_a_signature_of_two_entries_is_refused() -> None:
    one = signature(_PCR0)
    assert code(made(Image([*PLAIN, (SIGNATURE, b"\x82" + one[1:] * 2)]))) == "eif.signature_format"
    assert code(made(Image([*PLAIN, (SIGNATURE, one + b"\0")]))) == "eif.signature_format"
    assert code(made(Image([*PLAIN, (SIGNATURE, bytes(65_537))]))) == "eif.section_size"


def test_a_signature_moved_to_other_content_is_refused() -> None:
    other = [(KERNEL, b"another kernel"), *PLAIN[1:]]
    assert code(made(Image([*other, (SIGNATURE, signature(_PCR0))]))) == "eif.signature"


# --- building


def source(data: bytes) -> Source:
    return Source(stream=io.BytesIO(data), size=len(data))


def parts(**changes: Any) -> ImageParts:
    content = dict(PLAIN)
    given_parts: dict[str, Any] = {
        "kernel": source(content[KERNEL]),
        "cmdline": content[CMDLINE].decode(),
        "ramdisks": [source(data) for kind, data in PLAIN if kind == RAMDISK],
        "metadata": {"ImageName": "test"},
    }
    return ImageParts(**{**given_parts, **changes})


def built(**changes: Any) -> bytes:
    out = io.BytesIO()
    size = write_eif(out, parts(**changes))
    assert out.tell() == size == len(out.getvalue())
    return out.getvalue()


def test_a_built_file_is_the_one_that_another_encoder_makes() -> None:
    assert built() == made(Image())
    assert built(architecture="aarch64") == made(Image(flags=1))


def test_the_builder_agrees_with_the_references_toy_file(shared_fixtures: Path) -> None:
    data = toy(shared_fixtures, "toy_unsigned.eif")
    contents = [data[s.offset + 12 : s.offset + 12 + s.size] for s in read(data).sections]
    out = io.BytesIO()
    write_eif(
        out,
        ImageParts(
            kernel=source(contents[0]),
            cmdline=contents[1].decode(),
            ramdisks=[source(contents[3]), source(contents[4])],
            metadata=json.loads(contents[2]),
        ),
    )
    mine = read(out.getvalue())
    assert mine.registers() == read(data).registers()
    # Only the metadata's order of members differs, and metadata are not measured.
    assert [s.sha384 for s in mine.sections if s.kind != "metadata"] == [
        s.sha384 for s in read(data).sections if s.kind != "metadata"
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"cmdline": ""},
        {"cmdline": "a\n"},
        {"cmdline": "é"},
        {"cmdline": "a" * (MAX_CMDLINE_BYTES + 1)},
        {"ramdisks": []},
        {"ramdisks": [source(b"x")]},
        {"ramdisks": [source(b"x") for _ in range(30)]},
        {"kernel": source(b"")},
        {"kernel": Source(stream=io.BytesIO(b"short"), size=6)},
        {"kernel": Source(stream=io.BytesIO(b"longer"), size=5)},
        {"metadata": {"x": "y" * (1 << 20)}},
    ],
    ids=range(11),
)
def test_parts_that_make_no_image_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage) as caught:
        write_eif(io.BytesIO(), parts(**changes))
    assert caught.value.code == "eif.input"


ENTRIES = [
    CpioEntry(name="init", kind="file", permissions=0o755, content=None),
    CpioEntry(name="dev", kind="directory", permissions=0o755),
    CpioEntry(name="rootfs", kind="directory", permissions=0o755),
    CpioEntry(name="rootfs/sh", kind="link", permissions=0o777, target="/bin/sh"),
]


def entries() -> list[CpioEntry]:
    return [replace(e, content=source(b"#!init")) if e.kind == "file" else e for e in ENTRIES]


def archive(given_entries: list[CpioEntry]) -> bytes:
    out = io.BytesIO()
    assert write_cpio(out, given_entries) == len(out.getvalue())
    return out.getvalue()


def unpacked(data: bytes) -> list[tuple[str, int, bytes, tuple[int, ...]]]:
    """Name, mode, content and the other numbers of every entry, by a reader of its own."""
    found, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = data[at + 110 : at + 110 + numbers[11] - 1].decode()
        body = at + (110 + numbers[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert not any(data[body:])
            return found
        found.append((name, numbers[1], data[body : body + numbers[6]], (numbers[0], *numbers[2:6])))
        at = (body + numbers[6] + 3) // 4 * 4


def test_a_cpio_archive_holds_what_it_was_given_sorted_and_without_times_or_owners() -> None:
    found = unpacked(archive(entries()))
    assert [(name, mode, content) for name, mode, content, _ in found] == [
        ("dev", 0o40755, b""),
        ("init", 0o100755, b"#!init"),
        ("rootfs", 0o40755, b""),
        ("rootfs/sh", 0o120777, b"/bin/sh"),
    ]
    # inode, uid, gid, links, mtime
    assert [numbers for *_, numbers in found] == [
        (1, 0, 0, 2, 0),
        (2, 0, 0, 1, 0),
        (3, 0, 0, 2, 0),
        (4, 0, 0, 1, 0),
    ]


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(4)))
def test_the_order_in_which_entries_come_changes_nothing(order: list[int]) -> None:
    shuffled = [entries()[position] for position in order]
    assert archive(shuffled) == archive(entries())


@pytest.mark.parametrize(
    "bad",
    [
        CpioEntry(name="", kind="directory", permissions=0o755),
        CpioEntry(name="/etc", kind="directory", permissions=0o755),
        CpioEntry(name="a/../b", kind="directory", permissions=0o755),
        CpioEntry(name="./a", kind="directory", permissions=0o755),
        CpioEntry(name="a//b", kind="directory", permissions=0o755),
        CpioEntry(name="a\0", kind="directory", permissions=0o755),
        CpioEntry(name="TRAILER!!!", kind="directory", permissions=0o755),
        CpioEntry(name="dev", kind="directory", permissions=0o755),
        CpioEntry(name="nowhere/a", kind="directory", permissions=0o755),
        CpioEntry(name="rootfs/sh/a", kind="directory", permissions=0o755),
        CpioEntry(name="x", kind="directory", permissions=0o40755),
        CpioEntry(name="x", kind="file", permissions=0o644),
        CpioEntry(name="x", kind="link", permissions=0o777),
        CpioEntry(name="x", kind="directory", permissions=0o755, target="y"),
        CpioEntry(
            name="x", kind="file", permissions=0o644, content=Source(stream=io.BytesIO(), size=1 << 32)
        ),
        CpioEntry(name="x", kind="file", permissions=0o644, content=Source(stream=io.BytesIO(b"a"), size=2)),
    ],
    ids=range(16),
)
def test_an_entry_that_has_no_one_form_is_refused(bad: CpioEntry) -> None:
    with pytest.raises(InvalidMessage) as caught:
        archive([*entries(), bad])
    assert caught.value.code == "eif.input"


# --- the tool, and the command


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


def tar_of(path: Path, *, time: int, order: int) -> Path:
    """A file system whose times, owners and order are ``time``'s and ``order``'s."""
    members = [
        ("bin", None),
        ("bin/python", b"python"),
        ("lib", None),
        ("lib/a.py", b"print()"),
        ("./dev", None),
    ]
    with tarfile.open(path, "w") as out:
        for name, data in members[::order]:
            info = tarfile.TarInfo(name)
            info.mtime, info.uid, info.uname = time, time, str(time)
            info.mode = 0o755
            if data is None:
                info.type = tarfile.DIRTYPE
                out.addfile(info)
            else:
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("sh")
        link.type, link.linkname, link.mtime = tarfile.SYMTYPE, "bin/python", time
        out.addfile(link)
        hard = tarfile.TarInfo("bin/again")
        hard.type, hard.linkname, hard.mode = tarfile.LNKTYPE, "bin/python", 0o755
        if order == 1:
            out.addfile(hard)
        else:
            hard.type, hard.size = tarfile.REGTYPE, 6
            out.addfile(hard, io.BytesIO(b"python"))
    return path


def build(directory: Path, *, time: int, order: int) -> Path:
    directory.mkdir()
    (directory / "init").write_bytes(b"init of the toy")
    os.utime(directory / "init", (time, time))
    (directory / "cmdline").write_text("reboot=k panic=30\n")
    (directory / "kernel").write_bytes(b"kernel of the toy")
    tar = tar_of(directory / "rootfs.tar", time=time, order=order)
    tool = ROOT / "scripts/pack_enclave.py"
    boot, application, image = (directory / n for n in ("boot.cpio", "application.cpio", "toy.eif"))
    parts_of_boot = f"--directory dev --file init={directory}/init:755 -o {boot}"
    parts_of_application = (
        f"--tar {tar} --prefix rootfs --line cmd=/bin/python --line cmd=-B -o {application}"
    )
    parts_of_image = f"--kernel {directory}/kernel --cmdline-file {directory}/cmdline --ramdisk {boot}"
    steps = [
        f"ramdisk {parts_of_boot}",
        f"ramdisk {parts_of_application}",
        f"image {parts_of_image} --ramdisk {application} --name toy --version 1 -o {image}",
    ]
    for step in steps:
        done = run(tool, *step.split())
        assert done.returncode == 0, done.stderr
    return image


def test_two_builds_of_the_same_input_are_equal_bytes(tmp_path: Path) -> None:
    first = build(tmp_path / "first", time=1_000_000_000, order=1)
    second = build(tmp_path / "second", time=1_700_000_000, order=-1)
    assert first.read_bytes() == second.read_bytes()
    image = read(first.read_bytes())
    assert [s.kind for s in image.sections] == ["kernel", "cmdline", "metadata", "ramdisk", "ramdisk"]
    names = [name for name, *_ in unpacked((tmp_path / "first/application.cpio").read_bytes())]
    assert names == [
        *("cmd", "rootfs", "rootfs/bin", "rootfs/bin/again", "rootfs/bin/python", "rootfs/dev", "rootfs/lib"),
        *(
            "rootfs/lib/a.py",
            "rootfs/proc",
            "rootfs/run",
            "rootfs/sh",
            "rootfs/sys",
            "rootfs/tmp",
            "rootfs/var",
        ),
    ]
    assert dict((n, c) for n, _, c, _ in unpacked((tmp_path / "first/application.cpio").read_bytes()))[
        "cmd"
    ] == (b"/bin/python\n-B\n")


def test_compiled_python_and_devices_are_refused(tmp_path: Path) -> None:
    for name, kind in (("lib/a.pyc", tarfile.REGTYPE), ("null", tarfile.CHRTYPE), ("pipe", tarfile.FIFOTYPE)):
        path = tmp_path / "bad.tar"
        with tarfile.open(path, "w") as out:
            info = tarfile.TarInfo(name)
            info.type = kind
            out.addfile(info)
        done = run(ROOT / "scripts/pack_enclave.py", "ramdisk", "--tar", path, "-o", tmp_path / "x.cpio")
        assert (done.returncode, "[eif.input]" in done.stderr) == (2, True), done.stderr


def aos(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run("-m", "aos.cli.main", *arguments)


def test_the_command_prints_measures_saves_and_compares(tmp_path: Path) -> None:
    file, saved = tmp_path / "image.eif", tmp_path / "measurements.json"
    file.write_bytes(made(signed()))
    done = aos("tee", "pcrs", file, "--save", saved)
    assert done.returncode == 0, done.stderr
    pcr0, pcr1, pcr2 = (register.hex() for register in registers(PLAIN))
    for line in (f"PCR0      {pcr0}", f"PCR1      {pcr1}", f"PCR2      {pcr2}"):
        assert line in done.stdout.splitlines()
    again = aos("tee", "pcrs", file, "--expect", saved)
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, f"AS EXPECTED: {saved}")
    file.write_bytes(made(Image([(KERNEL, b"another"), *PLAIN[1:]])))
    other = aos("tee", "pcrs", file, "--expect", saved, "--json")
    shown = json.loads(other.stdout)["result"]
    assert (other.returncode, shown["as_expected"], shown["difference"]["field"]) == (10, False, "pcr0")


def exit_code(*arguments: str | Path) -> tuple[int, str]:
    """Of the command, in this process."""
    with pytest.raises((AOSError, SystemExit)) as caught:
        app(args=[str(argument) for argument in arguments], prog_name="aos")
    if isinstance(caught.value, AOSError):
        return caught.value.exit_code, caught.value.code
    return int(caught.value.code or 0), ""


def test_the_commands_exit_codes_say_what_was_wrong(tmp_path: Path) -> None:
    file, saved = tmp_path / "image.eif", tmp_path / "measurements.json"
    file.write_bytes(made(Image()))
    saved.write_bytes(expected())
    assert exit_code("tee", "pcrs", file, "--expect", saved) == (0, "")
    saved.write_bytes(expected(sha256="ab" * 32))
    assert exit_code("tee", "pcrs", file, "--expect", saved) == (10, "eif.measurement")
    saved.write_text("{}")
    assert exit_code("tee", "pcrs", file, "--expect", saved) == (30, "eif.expected")
    assert exit_code("tee", "pcrs", file, "--nitro-cli", saved) == (2, "eif.nitro_cli")
    assert exit_code("tee", "pcrs", file, "--save", tmp_path / "no" / "where") == (30, "file.unwritable")
    file.write_bytes(made(Image(crc=1)))
    assert exit_code("tee", "pcrs", file) == (2, "eif.crc")
    file.write_bytes(made(signed(pcr0=bytes(48))))
    assert exit_code("tee", "pcrs", file) == (10, "eif.signature")
    assert exit_code("tee", "pcrs", tmp_path / "none.eif") == (12, "file.unreadable")


# --- expectations


def expected(**changes: Any) -> bytes:
    value = json.loads(measurements_file(measurements_of(read(made(Image())))))
    value.update(changes)
    return json.dumps({k: v for k, v in value.items() if v is not ...}).encode()


def test_an_expectation_is_read_as_it_was_written() -> None:
    measured = measurements_of(read(made(signed())))
    assert load_measurements(measurements_file(measured)) == measured
    compare(measured, measured)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        expected(pcr0=...),
        expected(pcr8=...),
        expected(sha256=...),
        expected(sections=...),
        expected(sections=[]),
        expected(pcr1="00" * 48),
        expected(pcr2="AB" * 48),
        expected(pcr0="ab" * 32),
        expected(v=2),
        expected(extra=1),
    ],
    ids=range(12),
)
def test_an_empty_or_partial_expectation_is_an_error(data: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        load_measurements(data)
    assert caught.value.code == "eif.expected"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"pcr0": "ab" * 48}, "pcr0"),
        ({"pcr1": "ab" * 48}, "pcr1"),
        ({"pcr2": "ab" * 48}, "pcr2"),
        ({"pcr8": "ab" * 48}, "pcr8"),
        ({"sha256": "ab" * 32}, "sha256"),
        ({"architecture": "aarch64"}, "architecture"),
        ({"size": 1}, "size"),
    ],
)
def test_any_difference_is_one(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(VerificationError) as caught:
        compare(measurements_of(read(made(Image()))), load_measurements(expected(**changes)))
    assert (caught.value.code, caught.value.field) == ("eif.measurement", name)


def printed(image: EnclaveImage, **changes: Any) -> dict[str, Any]:
    """What nitro-cli describe-eif prints, by its source."""
    found = {name: value.hex() for name, value in image.registers().items()}
    return {
        "EifVersion": 4,
        "Measurements": {"HashAlgorithm": "Sha384 { ... }", **found},
        "IsSigned": image.signer is not None,
        "CheckCRC": True,
        **changes,
    }


def test_what_nitro_cli_says_of_the_same_file_agrees() -> None:
    for data in (made(Image()), made(signed())):
        image = read(data)
        measured = measurements_of(image)
        compare_nitro_cli(measured, json.dumps(printed(image, Metadata={"x": 1.5})).encode())
        compare_nitro_cli(measured, json.dumps([printed(image, Flags="NONE", State="RUNNING")]).encode())


_IMAGE = read(made(Image()))
_REGISTERS = printed(_IMAGE)["Measurements"]
DISAGREEING: dict[str, tuple[Any, str]] = {
    "another PCR0": (printed(_IMAGE, Measurements={**_REGISTERS, "PCR0": "ab" * 48}), "eif.measurement"),
    "a number for PCR1": (printed(_IMAGE, Measurements={**_REGISTERS, "PCR1": 1}), "eif.measurement"),
    "a register missing": (
        printed(_IMAGE, Measurements={k: v for k, v in _REGISTERS.items() if k != "PCR2"}),
        "eif.nitro_cli",
    ),
    "a signature that we do not see": (
        printed(_IMAGE, Measurements={**_REGISTERS, "PCR8": "ab" * 48}),
        "eif.nitro_cli",
    ),
    "checksum wrong": (printed(_IMAGE, CheckCRC=False), "eif.measurement"),
    "signature wrong": (printed(_IMAGE, SignatureCheck=False), "eif.measurement"),
    "debug mode": (printed(_IMAGE, Flags="DEBUG_MODE"), "attest.debug"),
    "unknown flags": (printed(_IMAGE, Flags=None), "attest.debug"),
    "two enclaves": ([printed(_IMAGE)] * 2, "eif.nitro_cli"),
    "no enclave": ([], "eif.nitro_cli"),
    "no measurements": ({}, "eif.nitro_cli"),
    "a text": ("x", "eif.nitro_cli"),
}


@pytest.mark.parametrize("name", DISAGREEING)
def test_what_nitro_cli_says_of_another_file_does_not(name: str) -> None:
    value, expected_code = DISAGREEING[name]
    with pytest.raises(AOSError) as caught:
        compare_nitro_cli(measurements_of(_IMAGE), json.dumps(value).encode())
    assert caught.value.code == expected_code
