"""TDX, SGX, SEV-SNP and NVIDIA evidence (docs/spec/12-attestation.md): genuine evidence and what was made of it."""

from __future__ import annotations

import base64
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attest_documents import VECTORS, key_of
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from aos.core.attest.intel import IntelPlatform, verify_intel
from aos.core.attest.nvidia import verify_nvidia
from aos.core.attest.result import AttestationResult
from aos.core.attest.snp import PRODUCTS, SIGNED_BYTES, Product, verify_snp

AT_MS = 1_780_000_000_000
JUNE_2025, MARCH_2026 = 1_750_500_000_000, 1_774_200_000_000
CLOUD = IntelPlatform(dynamic_platform=True, cached_keys=True, smt=True)
DAY = 86_400_000


def read(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def code(result: AttestationResult) -> str:
    assert (result.refusal is None) == (result.claims is not None)
    return result.refusal.code if result.refusal is not None else "ACCEPTED"


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


# --- Intel


def quote(name: str, data: bytes | None = None, **options: Any) -> AttestationResult:
    given: dict[str, Any] = {
        "collateral": read(f"tdx-sgx/{name}_collateral.json"),
        "at_ms": JUNE_2025,
        "platform": CLOUD,
    }
    return verify_intel(data if data is not None else read(f"tdx-sgx/{name}_quote.bin"), **(given | options))


TDX = read("tdx-sgx/tdx_v4_quote.bin")
COLLATERAL = json.loads(read("tdx-sgx/tdx_v4_collateral.json"))
SGX_STATUS = "ConfigurationAndSWHardeningNeeded"


def test_a_genuine_trust_domain_is_accepted_for_what_it_is() -> None:
    claims = quote("tdx_v4").require()
    assert (claims.tee, claims.tcb_status, claims.simulated) == ("tdx", "UpToDate", False)
    assert (claims.measurement("MRTD") or b"").hex().startswith("91eb2b44")
    assert claims.measurement("RTMR3") == bytes(48)
    assert claims.report_data is not None
    assert len(claims.report_data) == 64


def test_a_cloud_platform_is_refused_where_the_policy_does_not_say_so() -> None:
    assert code(quote("tdx_v4", platform=IntelPlatform())) == "attest.quote"


def test_an_sgx_quote_passes_only_where_its_status_is_allowed() -> None:
    assert code(quote("sgx_v3")) == "attest.quote"
    allowed = IntelPlatform(
        statuses=("UpToDate", SGX_STATUS), smt=True, cached_keys=True, dynamic_platform=True
    )
    claims = quote("sgx_v3", platform=allowed).require()
    assert (claims.tee, claims.tcb_status) == ("sgx", SGX_STATUS)
    assert claims.advisories == ("INTEL-SA-00289", "INTEL-SA-00615")
    assert (claims.measurement("MRENCLAVE") or b"").hex().startswith("33d8736d")
    assert (claims.report_data or b"").startswith(b"Hello, world!")
    denied = IntelPlatform(
        statuses=allowed.statuses, smt=True, cached_keys=True, dynamic_platform=True,
        rejected_advisories=("INTEL-SA-00615",),
    )  # fmt: skip
    assert code(quote("sgx_v3", platform=denied)) == "attest.quote"


def test_an_outdated_platform_is_refused() -> None:
    result = quote("tdx_v5_outdated", at_ms=1_771_600_000_000)
    assert result.refusal is not None
    assert (result.refusal.code, "No matching TCB level" in result.refusal.text) == ("attest.quote", True)


def test_a_genuine_debug_trust_domain_is_refused_as_one() -> None:
    assert code(quote("tdx_v4_DEBUG", at_ms=MARCH_2026)) == "attest.debug"


def test_a_trust_domain_with_a_service_domain_is_refused() -> None:
    data = replaced(read("tdx-sgx/tdx_v5_outdated_quote.bin"), 54 + 600, b"\x01")
    assert code(quote("tdx_v5_outdated", data, at_ms=1_771_600_000_000)) == "attest.migratable"


def test_a_status_that_is_never_acceptable_cannot_be_allowed() -> None:
    for statuses in ((), ("OutOfDate",), ("UpToDate", "Revoked")):
        with pytest.raises(ValueError, match="statuses"):
            quote("tdx_v4", platform=IntelPlatform(statuses=statuses))


@pytest.mark.parametrize("days", [-400, -2, 31, 400])
def test_collateral_holds_in_its_time_alone(days: int) -> None:
    assert code(quote("tdx_v4", at_ms=JUNE_2025 + days * DAY)) == "attest.quote"


def tampered(member: str, change: Any) -> bytes:
    return json.dumps({**COLLATERAL, member: change(COLLATERAL[member])}).encode()


@pytest.mark.parametrize(
    "collateral",
    [
        read("tdx-sgx/tdx_v5_outdated_collateral.json"),
        read("tdx-sgx/sgx_v3_collateral.json"),
        tampered("qe_identity", lambda t: t.replace('"isvprodid":2', '"isvprodid":3')),
        tampered("qe_identity_signature", lambda t: "00" * 64),
        tampered("tcb_info", lambda t: t.replace("OutOfDate", "UpToDate")),
        tampered("tcb_info_signature", lambda t: "00" * 64),
        tampered("root_ca_crl", lambda t: COLLATERAL["pck_crl"]),
        tampered("pck_crl", lambda t: COLLATERAL["root_ca_crl"]),
        b"",
        b"{}",
        b"\xff\xfe",
        b"[" * 5000,
    ],
    ids=[
        "other family",
        "sgx",
        "QE",
        "QE signature",
        "TCB",
        "TCB signature",
        "CRL",
        "CRL 2",
        "",
        "{}",
        "no text",
        "deep",
    ],
)
def test_spoiled_collateral_is_refused(collateral: bytes) -> None:
    assert code(quote("tdx_v4", collateral=collateral)) in ("attest.quote", "attest.collateral")


def test_tampered_collateral_really_differs() -> None:
    assert tampered("qe_identity", lambda t: t.replace('"isvprodid":2', '"isvprodid":3')) != tampered(
        "qe_identity", str
    )
    assert tampered("tcb_info", lambda t: t.replace("OutOfDate", "UpToDate")) != tampered("tcb_info", str)


def test_a_quote_has_the_length_that_it_states() -> None:
    exact = TDX.rstrip(b"\x00")[:4936].ljust(4936, b"\x00")
    assert quote("tdx_v4", exact).require().replay_id == quote("tdx_v4").require().replay_id
    for spoiled in (TDX + b"\x01", exact + b"x", exact[:-1], TDX[:600], TDX[:10], b"", bytes(20_000)):
        assert code(quote("tdx_v4", spoiled)) in ("attest.report", "attest.size")


def test_report_data_are_compared_in_all_64_bytes() -> None:
    data = quote("tdx_v4").require().report_data or b""
    assert code(quote("tdx_v4", report_data=data)) == "ACCEPTED"
    for other in (data[:32], data[:63] + bytes([data[63] ^ 1]), b"", data + b"\x00"):
        assert code(quote("tdx_v4", report_data=other)) == "attest.report_data"
    assert code(quote("tdx_v4", flipped(TDX, 8 * (48 + 520 + 40)))) == "attest.quote"


BODY = 48


@pytest.mark.parametrize(
    ("at", "new", "expected"),
    [
        (120, b"\x01", "attest.debug"),
        (120, b"\x02", "attest.debug"),
        (123, b"\x30", "attest.migratable"),
        (123, b"\x00", "attest.attributes"),
        (127, b"\x80", "attest.attributes"),
        (64, b"\x01", "attest.attributes"),
        (112, b"\x01", "attest.attributes"),
        (135, b"\x80", "attest.attributes"),
        (128, b"\x00", "attest.attributes"),
        (136, b"\x00", "attest.quote"),
    ],
)
def test_attributes_that_are_not_the_safe_ones_are_refused(at: int, new: bytes, expected: str) -> None:
    assert code(quote("tdx_v4", replaced(TDX, BODY + at, new))) == expected


@pytest.mark.parametrize(
    ("flags", "expected"), [(0x07, "attest.debug"), (0x04, "attest.attributes"), (0x15, "attest.attributes")]
)
def test_an_sgx_enclave_that_is_no_application_is_refused(flags: int, expected: str) -> None:
    assert (
        code(quote("sgx_v3", replaced(read("tdx-sgx/sgx_v3_quote.bin"), BODY + 48, bytes([flags]))))
        == expected
    )


def test_a_quote_with_a_flipped_bit_is_refused_or_says_the_same() -> None:
    chosen = random.Random(7).sample(range(8 * 4936), 60)
    genuine = quote("tdx_v4").require()
    for bit in chosen:
        result = quote("tdx_v4", flipped(TDX, bit))
        assert result.claims is None or (result.claims.measurements, result.claims.report_data) == (
            genuine.measurements,
            genuine.report_data,
        )


def test_hostile_quotes_end_in_a_refusal() -> None:
    source = random.Random(9)
    for _ in range(300):
        spoiled = bytearray(TDX)
        for _ in range(source.randrange(1, 6)):
            at = source.choice((source.randrange(len(spoiled)), source.randrange(632, 1300)))
            spoiled[at] = source.randrange(256)
        data = bytes(spoiled[: source.choice((len(spoiled), source.randrange(len(spoiled))))])
        assert code(quote("tdx_v4", data)).startswith(("attest.", "ACCEPTED"))


# --- AMD SEV-SNP


def pem_of(product: str, *, ark: str = "", ask: str = "", vcek: str = "") -> bytes:
    names = [(vcek or product, "vcek"), (ask or product, "ask"), (ark or product, "ark")]
    return b"".join(read(f"snp/{name}_{kind}.pem") for name, kind in names)


def snp(product: str, data: bytes | None = None, **options: Any) -> AttestationResult:
    given: dict[str, Any] = {"certificates_pem": pem_of(product), "at_ms": AT_MS}
    return verify_snp(data if data is not None else read(f"snp/{product}_report.bin"), **(given | options))


MILAN, TURIN = read("snp/milan_report.bin"), read("snp/turin_report.bin")


@pytest.mark.parametrize(
    ("product", "tcb"),
    [
        ("milan", {"BOOTLOADER": 4, "TEE": 0, "SNP": 0x18, "MICROCODE": 0xDB}),
        ("turin", {"FMC": 1, "BOOTLOADER": 1, "TEE": 1, "SNP": 4, "MICROCODE": 0x51}),
    ],
)
def test_a_genuine_report_is_accepted_with_its_products_byte_order(product: str, tcb: dict[str, int]) -> None:
    claims = snp(product).require()
    assert claims.anchor == f"ARK-{product.capitalize()}"
    assert {n[4:]: v[0] for n, v in claims.measurements if n.startswith("TCB_")} == tcb


def test_report_data_of_a_guest_are_compared_in_all_64_bytes() -> None:
    data = MILAN[0x50:0x90]
    assert code(snp("milan", report_data=data)) == "ACCEPTED"
    for other in (data[:32], data[:63] + bytes([data[63] ^ 1]), b""):
        assert code(snp("milan", report_data=other)) == "attest.report_data"


@pytest.mark.parametrize(
    ("pem", "expected"),
    [
        (pem_of("milan", vcek="turin"), "attest.chain_order"),
        (pem_of("milan", ask="turin"), "attest.chain_order"),
        (pem_of("milan", ark="turin"), "attest.chain_order"),
        (pem_of("turin"), "attest.signature"),
        (b"".join(read(f"snp/milan_{k}.pem") for k in ("ark", "ask", "vcek")), "attest.root"),
        (read("snp/milan_vcek.pem"), "attest.chain_order"),
        (pem_of("milan") + read("snp/milan_ark.pem"), "attest.certificate"),
        (b"", "attest.certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "attest.certificate"),
        (bytes(20_000), "attest.size"),
    ],
)
def test_certificates_that_are_not_this_chips_are_refused(pem: bytes, expected: str) -> None:
    assert code(snp("milan", certificates_pem=pem)) == expected


@pytest.mark.parametrize(
    ("at_ms", "expected"), [(JUNE_2025, "attest.not_yet_valid"), (2_100_000_000_000, "attest.expired")]
)
def test_a_chips_certificate_holds_in_its_time_alone(at_ms: int, expected: str) -> None:
    assert code(snp("milan", at_ms=at_ms)) == expected


@pytest.mark.parametrize("product", ["milan", "turin"])
def test_a_report_with_any_bit_flipped_is_refused(product: str) -> None:
    data = read(f"snp/{product}_report.bin")
    for bit in random.Random(3).sample(range(8 * len(data)), 120):
        assert code(snp(product, flipped(data, bit))) != "ACCEPTED"


def test_the_signature_is_little_endian_and_its_padding_says_nothing() -> None:
    r, s = MILAN[0x2A0:0x2D0], MILAN[0x2E8:0x318]
    turned = replaced(replaced(MILAN, 0x2A0, r[::-1]), 0x2E8, s[::-1])
    assert code(snp("milan", turned)) == "attest.signature"
    for at in (0x2D0, 0x2E7, 0x318, 0x32F, 0x330, 1183):
        assert code(snp("milan", replaced(MILAN, at, b"\x01"))) == "attest.report"


@pytest.mark.parametrize("data", [MILAN[:-1], MILAN + b"\x00", b""])
def test_a_report_has_its_one_length(data: bytes) -> None:
    assert code(snp("milan", data)) == "attest.size"


class OwnChip:
    """A chip of our own, SIMULATED: the only way to a truly signed report with another content, and to Genoa."""

    def __init__(self, product: str, tcb: dict[str, int], chip_id: bytes) -> None:
        known = next(p for p in PRODUCTS if p.name == product)
        self.ark_key, self.ask_key = (rsa.generate_private_key(65537, 4096) for _ in range(2))
        self.chip_id = chip_id
        ark = self._issue("ARK", self.ark_key.public_key(), self.ark_key, "ARK", authority=True)
        ask = self._issue("SEV", self.ask_key.public_key(), self.ark_key, "ARK", authority=True)
        extra = [
            ("2", b"\x16" + bytes([len(product) + 3]) + product.encode() + b"-B0"),
            ("4", chip_id[: known.chip_bytes]),
        ]
        extra += [(oid, b"\x02\x01" + bytes([tcb[name]])) for name, _, oid in known.tcb]
        vcek = self._issue("VCEK", key_of("vcek").public_key(), self.ask_key, "SEV", extra=extra)
        self.pem = (
            vcek.public_bytes(Encoding.PEM) + ask.public_bytes(Encoding.PEM) + ark.public_bytes(Encoding.PEM)
        )
        self.product = Product(
            name=product, ark=ark.fingerprint(hashes.SHA256()), tcb=known.tcb, chip_bytes=known.chip_bytes, models=known.models
        )  # fmt: skip

    @staticmethod
    def _issue(
        name: str, key: Any, signer: Any, issuer: str, *, authority: bool = False, extra: Any = ()
    ) -> x509.Certificate:
        start = datetime.fromtimestamp(AT_MS / 1000, UTC)
        names = [
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{n}, SIMULATED")]) for n in (name, issuer)
        ]
        builder = x509.CertificateBuilder().subject_name(names[0]).issuer_name(names[1]).public_key(key)
        builder = (
            builder.serial_number(7)
            .not_valid_before(start - timedelta(days=1))
            .not_valid_after(start + timedelta(days=1))
        )
        if authority:
            usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
            builder = builder.add_extension(x509.BasicConstraints(True, None), True).add_extension(
                usage, True
            )
        for oid, value in extra:
            made = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.3704.1." + oid), value)
            builder = builder.add_extension(made, critical=False)
        return builder.sign(
            signer, hashes.SHA384(), rsa_padding=padding.PSS(padding.MGF1(hashes.SHA384()), 48)
        )

    def report(self, *changes: tuple[int, bytes]) -> bytes:
        data = bytearray(1184)
        tcb = bytes([1, 2, 0, 0, 0, 0, 3, 4])
        fields = [(0, b"\x03"), (8, (0x3001F).to_bytes(8, "little")), (0x34, b"\x01"), (0x188, b"\x19\x11")]
        fields += [(at, tcb) for at in (0x38, 0x180, 0x1E0, 0x1F0)] + [(0x1A0, self.chip_id), *changes]
        for at, value in fields:
            data[at : at + len(value)] = value
        signed = bytes(data[:SIGNED_BYTES])
        r, s = decode_dss_signature(key_of("vcek").sign(signed, ec.ECDSA(hashes.SHA384())))
        data[0x2A0:0x2D0], data[0x2E8:0x318] = r.to_bytes(48, "little"), s.to_bytes(48, "little")
        return bytes(data)


@pytest.fixture(scope="module")
def genoa() -> OwnChip:
    return OwnChip("Genoa", {"bootloader": 1, "tee": 2, "snp": 3, "microcode": 4}, bytes(range(64)))


def test_a_genoa_report_of_a_simulated_chip_is_read_and_its_root_is_not_amds(genoa: OwnChip) -> None:
    given = {"certificates_pem": genoa.pem, "at_ms": AT_MS}
    assert verify_snp(genoa.report(), **given, products=(genoa.product,)).require().simulated
    assert code(verify_snp(genoa.report(), **given)) == "attest.root"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ((8, (0x3001F | 1 << 19).to_bytes(8, "little")), "attest.debug"),
        ((8, (0x3001F | 1 << 18).to_bytes(8, "little")), "attest.migratable"),
        ((8, (0x1001F).to_bytes(8, "little")), "attest.report"),
        ((0x30, b"\x01"), "attest.snp_vmpl"),
        ((0x34, b"\x02"), "attest.report"),
        ((0, b"\x04"), "attest.report"),
        ((0x48, b"\x02"), "attest.snp_key"),
        ((0x48, b"\x04"), "attest.snp_key"),
        ((0x1A0, b"\xff"), "attest.snp_chip"),
        ((0x188, b"\x19\x01"), "attest.snp_chip"),
        ((0x188, b"\x1a\x11"), "attest.snp_chip"),
        ((0x180, b"\x02"), "attest.snp_tcb"),
        ((0x187, b"\x03"), "attest.snp_tcb"),
        ((0x1E0, b"\x00"), "attest.snp_tcb"),
        ((0x38, b"\x00"), "attest.snp_tcb"),
    ],
)
def test_a_truly_signed_report_that_breaks_a_rule_is_refused(
    genoa: OwnChip, change: tuple[int, bytes], expected: str
) -> None:
    result = verify_snp(
        genoa.report(change), certificates_pem=genoa.pem, at_ms=AT_MS, products=(genoa.product,)
    )
    assert code(result) == expected


# --- NVIDIA


def gpu(name: str) -> tuple[bytes, bytes, bytes]:
    entry = json.loads(read(f"nvidia/{name}.json"))[0]
    return (
        base64.b64decode(entry["evidence"]),
        base64.b64decode(entry["certificate"]),
        bytes.fromhex(entry["nonce"]),
    )


HOPPER, HOPPER_PEM, HOPPER_NONCE = gpu("hopper_evidence")


def nvidia(data: bytes = HOPPER, pem: bytes = HOPPER_PEM, **options: Any) -> AttestationResult:
    return verify_nvidia(data, certificates_pem=pem, **({"at_ms": AT_MS} | options))


@pytest.mark.parametrize("name", ["hopper_evidence", "hopper_evidence_cert_hold"])
def test_genuine_gpu_evidence_holds_and_is_never_called_appraised(name: str) -> None:
    data, pem, nonce = gpu(name)
    result = nvidia(data, pem, nonce=nonce)
    status = {check.id: check.status for check in result.checks}
    assert code(result) == "ACCEPTED"
    assert (status["rim-1"], status["revocation-1"], status["firmware-1"]) == ("SKIP", "SKIP", "PASS")


def test_evidence_of_an_older_driver_holds_and_one_with_a_bad_signature_does_not() -> None:
    chain = read("nvidia/hopperCertChain.txt")
    for name, expected in (("", "ACCEPTED"), ("InvalidSignature", "attest.signature")):
        text = read(f"nvidia/hopperAttestationReport{name}.txt").decode().strip()
        assert code(nvidia(bytes.fromhex(text), chain)) == expected


def test_gpu_evidence_of_another_challenge_or_gpu_is_refused() -> None:
    _, other_pem, other_nonce = gpu("hopper_evidence_cert_hold")
    assert code(nvidia(nonce=other_nonce)) == "attest.nonce"
    assert code(nvidia(nonce=HOPPER_NONCE[:16])) == "attest.nonce"
    assert code(nvidia(pem=other_pem)) == "attest.signature"
    assert code(nvidia(root=bytes(32))) == "attest.root"
    assert code(nvidia(pem=b"")) == "attest.certificate"


def test_gpu_evidence_cut_lengthened_or_flipped_is_refused() -> None:
    source = random.Random(4)
    for length in source.sample(range(len(HOPPER)), 60):
        assert code(nvidia(HOPPER[:length])) in ("attest.size", "attest.report")
    assert code(nvidia(HOPPER + b"\x00")) == "attest.report"
    assert code(nvidia(bytes(20_000))) == "attest.size"
    for bit in source.sample(range(8 * len(HOPPER)), 80):
        assert code(nvidia(flipped(HOPPER, bit))) != "ACCEPTED"
