"""What an image file is expected to be, as a file (docs/spec/12-attestation.md, "Expected measurements")."""

import hmac
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from aos.core.attest.eif import EnclaveImage
from aos.core.attest.policy import Hex32, Hex48
from aos.core.codec import MaxLength, Pattern, UInt, decode, encode
from aos.core.encoding import canonical_json, parse_json_strict
from aos.errors import ConfigError, InvalidMessage, VerificationError

MAX_BYTES = 1 << 20
"""Of a file of expected measurements, and of what ``nitro-cli`` prints."""

OptionalHex48 = Annotated[str, Pattern(r"(?:[0-9a-f]{96})?")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedSection:
    """One section, its content's size and SHA-384."""

    kind: Literal["kernel", "cmdline", "ramdisk", "signature", "metadata"]
    size: UInt
    sha384: Hex48


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMeasurements:
    """An image file, completely: itself, its registers and its sections. ``pcr8`` is empty where it is unsigned."""

    TYPE: ClassVar[str] = "aos.tee.measurements"
    V: ClassVar[int] = 1

    architecture: Literal["x86_64", "aarch64"]
    size: UInt
    sha256: Hex32
    pcr0: Hex48
    pcr1: Hex48
    pcr2: Hex48
    pcr8: OptionalHex48
    sections: Annotated[tuple[ExpectedSection, ...], MaxLength(32)]


def measurements_of(image: EnclaveImage) -> ImageMeasurements:
    """``image`` as a file of expected measurements states it."""
    return ImageMeasurements(
        architecture=image.architecture,
        size=image.size,
        sha256=image.sha256.hex(),
        pcr0=image.pcr0.hex(),
        pcr1=image.pcr1.hex(),
        pcr2=image.pcr2.hex(),
        pcr8="" if image.pcr8 is None else image.pcr8.hex(),
        sections=tuple(
            ExpectedSection(kind=section.kind, size=section.size, sha384=section.sha384.hex())
            for section in image.sections
        ),
    )


def measurements_file(measured: ImageMeasurements) -> bytes:
    """The file that ``load_measurements`` reads: canonical JSON and a line end."""
    return canonical_json(encode(measured)) + b"\n"


def load_measurements(data: bytes) -> ImageMeasurements:
    """Strictly decode a file of expected measurements. Raises ConfigError ``eif.expected``; a partial set is one."""
    try:
        expected = decode(ImageMeasurements, parse_json_strict(data, max_bytes=MAX_BYTES))
    except InvalidMessage as error:
        raise _no_expectation(error.message, error.field) from error
    if "0" * 96 in (expected.pcr0, expected.pcr1, expected.pcr2, expected.pcr8):
        raise _no_expectation("a register of zeros is a debug enclave's, and expects nothing", "pcr0")
    if not expected.sections:
        raise _no_expectation("it names no section", "sections")
    return expected


def _no_expectation(message: str, name: str | None) -> ConfigError:
    return ConfigError(
        "eif.expected",
        f"the expected measurements: {message}",
        field=name,
        hint="`aos tee pcrs FILE.eif --save FILE` writes such a file",
    )


def compare(measured: ImageMeasurements, expected: ImageMeasurements) -> None:
    """Raises VerificationError ``eif.measurement``, naming the first member that differs, registers first."""
    for name in ("pcr0", "pcr1", "pcr2", "pcr8", "sections", "architecture", "size", "sha256"):
        if getattr(measured, name) != getattr(expected, name):
            raise differs(name, "the expected measurements")


def compare_nitro_cli(measured: ImageMeasurements, printed: bytes) -> None:
    """Compare with what ``nitro-cli`` printed: ``describe-eif``, ``build-enclave``, or one of ``describe-enclaves``.

    Its checksum and signature checks must have passed, an enclave must not be in debug mode. Raises InvalidMessage
    ``eif.nitro_cli`` where it cannot be read, VerificationError ``eif.measurement`` or ``attest.debug``.
    """
    try:
        value = parse_json_strict(printed, max_bytes=MAX_BYTES, max_depth=64, allow_floats=True)
    except InvalidMessage as error:
        raise _unreadable(error.message) from error
    if isinstance(value, list):
        if len(value) != 1:
            raise _unreadable(f"it describes {len(value)} enclaves, not one")
        value = value[0]
    found = value.get("Measurements") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(found, dict):
        raise _unreadable("it has no Measurements")
    if value.get("Flags", "NONE") != "NONE":
        raise VerificationError(
            "attest.debug",
            "the enclave was started in debug mode: its registers are zero and its memory can be read",
            field="Flags",
            hint="end it, and start it without --debug-mode and --attach-console",
        )
    if value.get("CheckCRC", True) is not True or value.get("SignatureCheck", True) is not True:
        raise differs("CheckCRC", "nitro-cli")
    wanted = {"PCR0": measured.pcr0, "PCR1": measured.pcr1, "PCR2": measured.pcr2}
    if measured.pcr8:
        wanted["PCR8"] = measured.pcr8
    if {name for name in found if name.startswith("PCR")} != set(wanted):
        raise _unreadable(f"it has not exactly the registers {', '.join(wanted)}")
    for name, register in wanted.items():
        other = found[name]
        if not isinstance(other, str) or not hmac.compare_digest(other.encode(), register.encode()):
            raise differs(name.lower(), "nitro-cli")


def differs(name: str, who: str) -> VerificationError:
    """``name`` is another than ``who`` says."""
    return VerificationError(
        "eif.measurement",
        f"the image file's {name} is not the one that {who} states",
        field=name,
        hint="do not start it: build it anew from the sources of the expected one, or get that file",
    )


def _unreadable(message: str) -> InvalidMessage:
    return InvalidMessage(
        "eif.nitro_cli",
        f"what nitro-cli printed: {message}",
        field="Measurements",
        hint="nitro-cli describe-eif --eif-path FILE prints it",
    )
