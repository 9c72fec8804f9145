"""Evidence of TDX and SEV-SNP guests through a stand-in for configfs-tsm (docs/spec/12-attestation.md, "Guests").

The stand-in is SIMULATED: no guest was at hand. What it hands out is a genuine quote, or a report that a chip of our
own has truly signed, and goes through the verifiers.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from functools import cache
from hashlib import sha512
from pathlib import Path
from typing import Any

import pytest
from attest_documents import VECTORS
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fake_tsm import FakeTsm, oserror
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attest_platforms import AT_MS, OwnChip

from aos.adapters import tsm as tsm_module
from aos.adapters.tsm import MAX_BLOB_BYTES, ConfigFs, collect
from aos.cli.app import app
from aos.core.attest.evidence import Evidence, read_evidence
from aos.core.attest.guest import GuestReport, boot_report_data, certificate_table, guest_evidence
from aos.core.attest.intel import quoted_report_data
from aos.core.attest.snp import verify_snp
from aos.core.encoding import b64u_decode
from aos.errors import AOSError, ConfigError, InvalidMessage, Unavailable, VerificationError

REPORTS = Path("/fake/report")
BOOT = bytes(range(32))
DATA = boot_report_data(BOOT)
NAMES = {
    "vcek": bytes.fromhex("63da758de6644564adc5f4b93be8accd"),
    "ask": bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782"),
    "ark": bytes.fromhex("c0b406a4a803495297433fb6014cd0ae"),
    "vlek": bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1"),
}


@cache
def chip() -> OwnChip:
    return OwnChip("Genoa", {"bootloader": 1, "tee": 2, "snp": 3, "microcode": 4}, bytes(range(64)))


def table(certificates: dict[bytes, bytes]) -> bytes:
    """AMD's table, as a host fills it."""
    head, body = b"", b""
    start = 24 * (len(certificates) + 1)
    for name, der in certificates.items():
        head += name + (start + len(body)).to_bytes(4, "little") + len(der).to_bytes(4, "little")
        body += der
    return head + bytes(24) + body


def certificates() -> dict[bytes, bytes]:
    vcek, ask, ark = x509.load_pem_x509_certificates(chip().pem)
    found = {"ark": ark, "ask": ask, "vcek": vcek}  # not in the order of a chain: a table has none
    return {NAMES[name]: certificate.public_bytes(Encoding.DER) for name, certificate in found.items()}


def snp_report(inblob: bytes, level: int) -> tuple[bytes, bytes]:
    assert len(inblob) == 64
    return chip().report((0x50, inblob), (0x30, level.to_bytes(4, "little"))), table(certificates())


def fake(**options: Any) -> FakeTsm:
    return FakeTsm(REPORTS, options.pop("make_report", snp_report), **options)


def collected(tsm: FakeTsm, **options: Any) -> GuestReport:
    return collect(DATA, reports=REPORTS, files=tsm, **options)


def refusal(tsm: FakeTsm, **options: Any) -> str:
    with pytest.raises(AOSError) as caught:
        collected(tsm, **options)
    assert caught.value.hint
    return caught.value.code


# --- the honest path


def test_a_guests_report_is_collected_and_its_chain_judges_it() -> None:
    tsm = fake()
    report = collected(tsm)
    assert (report.provider, tsm.entries, tsm.made) == ("sev_guest", {}, 1)
    evidence = guest_evidence(report)
    assert (evidence.tee, evidence.collateral) == ("snp", "")
    assert evidence.certificates.encode() == chip().pem
    judged = verify_snp(
        report.document,
        certificates_pem=evidence.certificates.encode(),
        at_ms=AT_MS,
        report_data=DATA,
        products=(chip().product,),
    )
    assert judged.require().report_data == DATA
    # The chip is our own: AMD's roots do not know it.
    refused = verify_snp(report.document, certificates_pem=evidence.certificates.encode(), at_ms=AT_MS)
    assert refused.refusal is not None
    assert refused.refusal.code == "attest.root"


def test_report_data_bind_one_boot_statement_in_64_bytes() -> None:
    assert sha512(b"AOS/tee-report-data/v1\0" + BOOT).digest() == DATA
    assert boot_report_data(bytes(32)) != DATA
    with pytest.raises(ValueError, match="32 bytes"):
        boot_report_data(b"short")
    other = verify_snp(
        collected(fake()).document,
        certificates_pem=chip().pem,
        at_ms=AT_MS,
        report_data=boot_report_data(bytes(32)),
        products=(chip().product,),
    )
    assert other.refusal is not None
    assert other.refusal.code == "attest.report_data"


def test_a_quote_becomes_evidence_with_its_collateral() -> None:
    quote = (VECTORS / "tdx-sgx/tdx_v4_quote.bin").read_bytes()
    tsm = fake(provider="tdx_guest", has_auxblob=False, make_report=lambda inblob, level: (quote, b""))
    report = collect(quoted_report_data(quote), reports=REPORTS, files=tsm)
    assert (report.provider, report.auxiliary) == ("tdx_guest", b"")
    collateral = (VECTORS / "tdx-sgx/tdx_v4_collateral.json").read_bytes()
    evidence = guest_evidence(report, collateral=collateral)
    assert (evidence.tee, evidence.certificates, evidence.collateral.encode()) == ("tdx", "", collateral)
    with pytest.raises(InvalidMessage) as caught:
        guest_evidence(report)
    assert caught.value.code == "tsm.collateral"


def test_a_chosen_privilege_level_is_written_and_counted() -> None:
    report = collected(fake(), privilege_level=2)
    assert report.document[0x30] == 2
    assert refusal(fake(privilege_floor=1), privilege_level=0) == "tsm.failed"
    assert refusal(fake(), privilege_level=4) == "tsm.privilege_level"


# --- what the kernel refuses


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, "tsm.permission"),
        (errno.EPERM, "tsm.permission"),
        (errno.ENOENT, "tsm.absent"),
        (errno.ENXIO, "tsm.no_provider"),
        (errno.EIO, "tsm.failed"),
        (errno.ENOTTY, "tsm.failed"),
        (errno.EBUSY, "tsm.busy"),
        (errno.EINTR, "tsm.busy"),
        (errno.ETIMEDOUT, "tsm.busy"),
    ],
)
@pytest.mark.parametrize(
    "operation", ["make", "read outblob", "read auxblob", "write inblob", "read generation"]
)
def test_what_the_kernel_refuses_is_named_and_leaves_nothing_behind(
    number: int, expected: str, operation: str
) -> None:
    def before(kind: str, attribute: str) -> None:
        if f"{kind} {attribute}".strip() == operation:
            raise oserror(number)

    tsm = fake(before=before)
    if operation == "read auxblob" and number == errno.ENOENT:
        assert collected(tsm).auxiliary == b""
    else:
        assert refusal(tsm) == expected
    assert tsm.entries == {}


def test_a_busy_kernel_is_asked_again_and_an_endlessly_busy_one_is_not() -> None:
    left = [2]

    def before(kind: str, attribute: str) -> None:
        if attribute == "outblob" and left[0]:
            left[0] -= 1
            raise oserror(errno.EBUSY)

    tsm = fake(before=before)
    assert collected(tsm).document
    assert tsm.made == 3
    left[0] = 1000
    assert refusal(tsm) == "tsm.busy"
    assert tsm.made == 6


def test_no_provider_an_unknown_one_and_no_tree_are_told_apart() -> None:
    assert refusal(fake(provider=None)) == "tsm.no_provider"
    assert refusal(fake(provider="arm_cca_guest")) == "tsm.provider"
    assert refusal(fake(provider="sev_guest2")) == "tsm.provider"
    with pytest.raises(ConfigError) as caught:
        collect(DATA, reports=Path("/nowhere/report"), files=fake())
    assert caught.value.code == "tsm.absent"


def test_an_entry_that_cannot_be_removed_is_told_unless_something_worse_is() -> None:
    def stuck(kind: str, attribute: str) -> None:
        if kind == "remove":
            raise oserror(errno.EBUSY)

    tsm = fake(before=stuck)
    with pytest.raises(Unavailable) as caught:
        collected(tsm)
    assert caught.value.code == "tsm.failed"
    assert (caught.value.hint or "").startswith("rmdir ")
    tsm.provider = "nobody"
    assert refusal(tsm) == "tsm.provider"


# --- races


def test_a_write_that_the_kernel_swallowed_is_noticed() -> None:
    tsm = fake(lost_writes=1)
    assert collected(tsm).document  # the second try's
    assert refusal(fake(lost_writes=3)) == "tsm.conflict"


STEPS = ["read provider", "write inblob", "read generation", "read outblob", "read auxblob"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("always", [False, True])
def test_another_writer_is_never_answered_for(step: str, always: bool) -> None:
    """Whenever somebody else writes its own data, we get a report of ours, or none."""
    tsm = fake()
    busy = [False]
    times = [10_000 if always else 1]

    def before(kind: str, attribute: str) -> None:
        if f"{kind} {attribute}" == step and not busy[0] and times[0]:
            times[0] -= 1
            busy[0] = True
            for name in tsm.entries:
                tsm.write(REPORTS / name / "inblob", b"\xee" * 64)
            busy[0] = False

    tsm.before = before
    try:
        report = collected(tsm)
    except AOSError as error:
        assert error.code in ("tsm.conflict", "tsm.report_data")  # noqa: PT017
        assert always
    else:
        assert report.document[0x50:0x90] == DATA
    assert tsm.entries == {}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 11), max_size=6))
def test_no_interleaving_of_another_writer_gives_us_a_report_of_its_data(moments: list[int]) -> None:
    tsm = fake(make_report=lambda inblob, level: (PLAIN_REPORT[:0x50] + inblob + PLAIN_REPORT[0x90:], b""))
    count = [0]

    def before(kind: str, attribute: str) -> None:
        count[0] += 1
        if count[0] in moments:
            for entry in tsm.entries.values():
                entry.inblob = b"\xee" * 64
                entry.written += 1

    tsm.before = before
    try:
        report = collected(tsm)
    except AOSError as error:
        assert error.code in ("tsm.conflict", "tsm.report_data")  # noqa: PT017
    else:
        assert report.document[0x50:0x90] == DATA
    assert tsm.entries == {}


PLAIN_REPORT = (VECTORS / "snp/milan_report.bin").read_bytes()


def test_a_provider_that_changes_under_us_is_noticed() -> None:
    tsm = fake()

    def before(kind: str, attribute: str) -> None:
        if attribute == "auxblob":
            tsm.provider = "tdx_guest" if tsm.provider == "sev_guest" else "sev_guest"

    tsm.before = before
    assert refusal(tsm) in ("tsm.conflict", "tsm.document")


# --- what comes back


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (b"", "tsm.failed"),
        (b"x", "tsm.document"),
        (bytes(1184), "tsm.document"),
        (PLAIN_REPORT, "tsm.report_data"),
        (PLAIN_REPORT + b"\0", "tsm.document"),
        (bytes(MAX_BLOB_BYTES + 1), "tsm.failed"),
    ],
    ids=range(6),
)
@pytest.mark.parametrize("provider", ["sev_guest", "tdx_guest"])
def test_what_is_no_report_of_ours_is_refused(made: bytes, expected: str, provider: str) -> None:
    tsm = fake(provider=provider, make_report=lambda inblob, level: (made, b""))
    found = refusal(tsm)
    assert found == (
        "tsm.document" if provider == "tdx_guest" and expected == "tsm.report_data" else expected
    )


def test_a_generation_that_is_no_number_is_refused() -> None:
    class Odd(FakeTsm):
        def read(self, attribute: Path, limit: int) -> bytes:
            return b"-1\n" if attribute.name == "generation" else super().read(attribute, limit)

    assert refusal(Odd(REPORTS, snp_report)) == "tsm.failed"


def test_report_data_of_another_length_are_a_mistake_of_the_caller() -> None:
    for data in (b"", bytes(63), bytes(65)):
        with pytest.raises(ValueError, match="64 bytes"):
            collect(data, reports=REPORTS, files=fake())


# --- the host's certificates


def with_entries(**changes: bytes | None) -> dict[bytes, bytes]:
    found = certificates()
    for name, value in changes.items():
        if value is None:
            del found[NAMES[name]]
        else:
            found[NAMES[name]] = value
    return found


WHOLE = certificates()
SPOILED_TABLES: dict[str, bytes] = {
    "nothing": b"",
    "empty": bytes(24),
    "no end": table(WHOLE)[: 24 * 3],
    "cut": table(WHOLE)[:-1],
    "twice": table(WHOLE)[:24] + table(WHOLE),
    "no VCEK": table(with_entries(vcek=None)),
    "VLEK instead": table({**with_entries(vcek=None), NAMES["vlek"]: b"x"}),
    "no ASK": table(with_entries(ask=None)),
    "no ARK": table(with_entries(ark=None)),
    "certificate spoiled": table(with_entries(ask=b"\x30\x03\x02\x01\x01")),
    "certificate empty": table(with_entries(ask=b"")),
    "seventeen entries": table({bytes([n + 1] * 16): b"x" for n in range(17)}),
    "inside the head": table(WHOLE)[:16] + bytes(4) + table(WHOLE)[20:],
    "far outside": table(WHOLE)[:16] + b"\xff" * 8 + table(WHOLE)[24:],
}


@pytest.mark.parametrize("name", SPOILED_TABLES)
def test_a_table_that_gives_no_chain_is_refused_and_own_certificates_stand_for_it(name: str) -> None:
    report = GuestReport(provider="sev_guest", document=PLAIN_REPORT, auxiliary=SPOILED_TABLES[name])
    with pytest.raises(InvalidMessage) as caught:
        guest_evidence(report)
    assert caught.value.code == "tsm.certificates"
    pem = (VECTORS / "snp/milan_vcek.pem").read_bytes()
    assert guest_evidence(report, certificates_pem=pem).certificates.encode() == pem


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_table_makes_the_reader_raise_anything_but_its_own_error(data: bytes) -> None:
    try:
        certificate_table(data)
    except InvalidMessage as error:
        assert error.code == "tsm.certificates"  # noqa: PT017


# --- the system calls


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    entry = tmp_path / "entry"
    entry.mkdir()
    return entry


def test_the_system_calls_read_to_the_end_write_once_and_stop_at_the_cap(tree: Path) -> None:
    files = ConfigFs()
    (tree / "outblob").write_bytes(bytes(5000))
    (tree / "inblob").write_bytes(b"")
    assert files.read(tree / "outblob", 8192) == bytes(5000)
    assert len(files.read(tree / "outblob", 100)) == 101
    files.write(tree / "inblob", DATA)
    assert (tree / "inblob").read_bytes() == DATA
    made = tree / "aos-1"
    files.make(made)
    assert made.stat().st_mode & 0o777 == 0o700
    files.remove(made)
    assert not made.exists()
    refused: list[tuple[Callable[[], object], int]] = [
        (lambda: files.make(tree / "no" / "where"), errno.ENOENT),
        (lambda: files.make(tree), errno.EEXIST),
        (lambda: files.read(tree / "nothing", 10), errno.ENOENT),
        (lambda: files.remove(tree / "nothing"), errno.ENOENT),
    ]
    os.symlink(tree / "outblob", tree / "link")
    refused.append((lambda: files.read(tree / "link", 10), errno.ELOOP))
    refused.append((lambda: files.write(tree / "link", b"x"), errno.ELOOP))
    for call, number in refused:
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            call()
        assert caught.value.errno == number


def test_a_machine_without_the_kernels_tree_is_told_so() -> None:
    with pytest.raises((ConfigError, Unavailable)) as caught:
        collect(DATA, reports=Path("/proc/none/report"))
    assert caught.value.code == "tsm.absent"


def test_the_command_writes_an_evidence_file_bound_to_the_boot_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tsm = fake()
    tsm.root = tsm_module.REPORTS
    monkeypatch.setattr(tsm_module, "ConfigFs", lambda: tsm)
    file = tmp_path / "evidence.json"
    with pytest.raises(SystemExit) as done:
        app(args=["tee", "report", "--boot", BOOT.hex(), "-o", str(file), "--json"], prog_name="aos")
    assert done.value.code == 0
    assert json.loads(capsys.readouterr().out)["result"]["report_data"] == DATA.hex()
    evidence = read_evidence(file.read_bytes())
    assert isinstance(evidence, Evidence)
    judged = verify_snp(
        b64u_decode(evidence.document),
        certificates_pem=evidence.certificates.encode(),
        at_ms=AT_MS,
        report_data=DATA,
        products=(chip().product,),
    )
    assert judged.require().simulated
    for arguments in (
        [],
        ["--boot", "00"],
        ["--boot", BOOT.hex(), "--report-data", DATA.hex()],
        ["--report-data", "x"],
    ):
        with pytest.raises(AOSError) as caught:
            app(args=["tee", "report", *arguments, "-o", str(file)], prog_name="aos")
        assert (caught.value.code, caught.value.exit_code) == ("cli.usage", 2)


def test_the_error_for_foreign_report_data_is_a_refusal() -> None:
    tsm = fake(make_report=lambda inblob, level: (PLAIN_REPORT, b""))
    with pytest.raises(VerificationError):
        collected(tsm)
