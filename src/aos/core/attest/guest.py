"""Evidence of TDX and SEV-SNP guests as the kernel hands it out (docs/spec/12-attestation.md, "Guests").

The kernel gives a document and, for SEV-SNP, a table of certificates that the host may have filled. Here they become
an evidence file, and here is what report data a boot statement is bound by.
"""

from dataclasses import dataclass
from hashlib import sha512
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from aos.core.attest.evidence import Evidence
from aos.core.attest.intel import quoted_report_data
from aos.core.attest.result import UNREADABLE
from aos.core.attest.snp import reported_report_data
from aos.core.encoding import b64u_encode, tag
from aos.errors import InvalidMessage, VerificationError

REPORT_DATA_BYTES = 64
Provider = Literal["tdx_guest", "sev_guest"]
PROVIDERS: dict[Provider, Literal["tdx", "snp"]] = {"tdx_guest": "tdx", "sev_guest": "snp"}

_ENTRY_BYTES = 24
_MAX_ENTRIES = 16
# AMD's GHCB specification 2.03, 4.1.8.1; the identifiers lie in the table in the order of their text.
_VCEK = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
_VLEK = bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1")
_ASK = bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782")
_ARK = bytes.fromhex("c0b406a4a803495297433fb6014cd0ae")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestReport:
    """What the kernel handed out: ``document`` is a quote or a report, ``auxiliary`` AMD's table of certificates, or
    empty."""

    provider: Provider
    document: bytes
    auxiliary: bytes


def boot_report_data(boot_hash: bytes) -> bytes:
    """The 64 bytes that bind a boot statement of hash ``boot_hash`` (32 bytes) into a quote or report:
    SHA-512 of the tag "tee-report-data" and the hash. All of them are compared, so nothing is left to add."""
    if len(boot_hash) != 32:
        raise ValueError("a statement's hash has 32 bytes")
    return sha512(tag("tee-report-data") + boot_hash).digest()


def check_report_data(report: GuestReport, asked: bytes) -> None:
    """Raises VerificationError ``tsm.report_data`` where the document was made for other report data than ``asked``
    (64 bytes), InvalidMessage ``tsm.document`` where it is none."""
    try:
        found = (
            quoted_report_data(report.document)
            if report.provider == "tdx_guest"
            else reported_report_data(report.document)
        )
    except VerificationError as error:
        raise InvalidMessage(
            "tsm.document",
            f"what the kernel handed out is no document of {report.provider}: {error.message}",
            field="outblob",
            hint="update the guest's kernel; `aos doctor` shows its version",
        ) from error
    if found != asked:
        raise VerificationError(
            "tsm.report_data",
            "the document was made for other report data than those asked for",
            field="outblob",
            hint="ask again; another process may write to the same entry",
        )


def guest_evidence(
    report: GuestReport, *, certificates_pem: bytes = b"", collateral: bytes = b""
) -> Evidence:
    """The evidence file's value.

    ``certificates_pem`` stands for AMD's table where the host filled none: VCEK, ASK, ARK. ``collateral`` is dcap-qvl's
    JSON for a quote. Raises InvalidMessage ``tsm.certificates``, ``tsm.collateral``.
    """
    tee = PROVIDERS[report.provider]
    if tee == "tdx":
        if not collateral:
            raise InvalidMessage(
                "tsm.collateral",
                "a quote is judged with its collateral, which holds for 30 days and is kept with it",
                field="collateral",
                hint="get it from a provisioning certificate service (dcap-qvl does that), as JSON",
            )
    elif not certificates_pem:
        certificates_pem = _pem(certificate_table(report.auxiliary))
    return Evidence(
        tee=tee,
        document=b64u_encode(report.document),
        certificates=certificates_pem.decode("ascii", "replace") if tee == "snp" else "",
        collateral=collateral.decode("utf-8", "replace") if tee == "tdx" else "",
    )


def _no_certificates(message: str) -> InvalidMessage:
    return InvalidMessage(
        "tsm.certificates",
        f"the host's table of certificates: {message}",
        field="auxblob",
        hint="get VCEK, ASK and ARK from AMD's key service for this chip and firmware, as PEM",
    )


def certificate_table(table: bytes) -> dict[bytes, bytes]:
    """AMD's table: identifier (16 bytes) to certificate, DER. Raises InvalidMessage ``tsm.certificates``."""
    entries: dict[bytes, bytes] = {}
    place = 0
    while True:
        entry = table[place : place + _ENTRY_BYTES]
        place += _ENTRY_BYTES
        if len(entry) < _ENTRY_BYTES or len(entries) == _MAX_ENTRIES:
            raise _no_certificates("it is empty, or has no end")
        if not any(entry):
            break
        name, offset, length = entry[:16], entry[16:20], entry[20:]
        begin = int.from_bytes(offset, "little")
        end = begin + int.from_bytes(length, "little")
        if name in entries or begin == end or end > len(table):
            raise _no_certificates("an entry is there twice, is empty, or lies outside of it")
        entries[name] = table[begin:end]
        if begin < place:
            raise _no_certificates("a certificate lies inside the table's own head")
    return entries


def _pem(entries: dict[bytes, bytes]) -> bytes:
    if _VCEK not in entries:
        why = "it has a VLEK, which this verifier does not take" if _VLEK in entries else "it has no VCEK"
        raise _no_certificates(why)
    if _ASK not in entries or _ARK not in entries:
        raise _no_certificates("it has no ASK or no ARK")
    try:
        return b"".join(
            x509.load_der_x509_certificate(entries[name]).public_bytes(Encoding.PEM)
            for name in (_VCEK, _ASK, _ARK)
        )
    except UNREADABLE:
        raise _no_certificates("a certificate cannot be read") from None
