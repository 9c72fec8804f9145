"""AMD SEV-SNP reports with their chip's certificate (docs/spec/12-attestation.md, "AMD SEV-SNP")."""

import hmac
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import SignatureAlgorithmOID

from aos.core.attest import certificates
from aos.core.attest.result import UNREADABLE, AttestationResult, Checklist, Claims, fingerprint, refuse

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0
MAX_PEM_BYTES = 16_384
VERSIONS = frozenset({2, 3, 5})

_EXTENSIONS = "1.3.6.1.4.1.3704.1."
_CURRENT_TCB, _REPORTED_TCB, _COMMITTED_TCB = 0x38, 0x180, 0x1E0
_CHIP_ID, _REPORT_DATA = slice(0x1A0, 0x1E0), slice(0x50, 0x90)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A processor family. ``tcb`` maps a component to its byte in a TCB word and its certificate extension;
    ``chip_bytes`` of the chip's identifier are in the certificate; ``models`` are (family, first, last model)."""

    name: str
    ark: bytes
    tcb: tuple[tuple[str, int, str], ...]
    chip_bytes: int
    models: tuple[tuple[int, int, int], ...]


_ZEN3 = (("bootloader", 0, "3.1"), ("tee", 1, "3.2"), ("snp", 6, "3.3"), ("microcode", 7, "3.8"))
_ZEN5 = (
    ("fmc", 0, "3.9"),
    ("bootloader", 1, "3.1"),
    ("tee", 2, "3.2"),
    ("snp", 3, "3.3"),
    ("microcode", 7, "3.8"),
)
PRODUCTS = (
    Product(
        name="Milan",
        ark=bytes.fromhex("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"),
        tcb=_ZEN3,
        chip_bytes=64,
        models=((0x19, 0x00, 0x0F),),
    ),
    Product(
        name="Genoa",
        ark=bytes.fromhex("4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"),
        tcb=_ZEN3,
        chip_bytes=64,
        models=((0x19, 0x10, 0x1F), (0x19, 0xA0, 0xAF)),
    ),
    Product(
        name="Turin",
        ark=bytes.fromhex("1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"),
        tcb=_ZEN5,
        chip_bytes=8,
        models=((0x1A, 0x00, 0x1F),),
    ),
)


def verify_snp(
    report: bytes,
    *,
    certificates_pem: bytes,
    at_ms: int,
    report_data: bytes | None = None,
    products: tuple[Product, ...] = PRODUCTS,
) -> AttestationResult:
    """Judge a report (1184 bytes). Never raises for anything in ``report`` or ``certificates_pem``.

    ``certificates_pem``: VCEK, ASK, ARK, in this order. A report has no time: ``at_ms`` (Unix milliseconds) is the one
    at which the certificates are judged, and only ``report_data`` (64 bytes, all of them compared) can show that it is
    fresh.
    """

    def steps(checks: Checklist) -> Claims:
        return _verify(checks, report, certificates_pem, at_ms, report_data, products)

    return Checklist().run("snp", steps)


def reported_report_data(report: bytes) -> bytes:
    """The 64 bytes of report data that ``report`` states, its signature not judged. Raises VerificationError
    ``attest.size``, ``attest.report``."""
    _format(report)
    return report[_REPORT_DATA]


def _u64(report: bytes, offset: int) -> int:
    return int.from_bytes(report[offset : offset + 8], "little")


def _verify(
    checks: Checklist,
    report: bytes,
    pem: bytes,
    at_ms: int,
    report_data: bytes | None,
    products: tuple[Product, ...],
) -> Claims:
    _format(report)
    checks.passed("report-1", "a report of a known version, nothing unsigned in it")
    if len(pem) > MAX_PEM_BYTES:
        raise refuse("chain-1", "attest.size", "the certificates are too large")
    chain = certificates.load_pem_chain(pem, limit=3)[::-1]
    if len(chain) != 3:
        raise refuse("chain-1", "attest.chain_order", "the certificates must be VCEK, ASK and ARK")
    ark, ask, vcek = chain
    product = next(
        (p for p in products if hmac.compare_digest(p.ark, ark.fingerprint(hashes.SHA256()))), None
    )
    if product is None:
        raise refuse("root-1", "attest.root", "the chain begins at no root key of AMD's")
    checks.passed("root-1", "the chain begins at AMD's root key", product.name)
    certificates.check_times(chain, at_ms)
    key = _chain(ark, ask, vcek)
    checks.passed("chain-1", "root, signing key and chip, valid at that time")
    if not certificates.verify_raw_p384(key, _signature(report), report[:SIGNED_BYTES]):
        raise refuse("signature-1", "attest.signature", "the chip's key has not signed this report")
    checks.passed("signature-1", "signed by the chip's key")
    _chip(report, vcek, product)
    checks.passed("chip-1", "chip, product and firmware versions are those of the certificate")
    _guest(report)
    checks.passed("debug-1", "no debugging, no migration, privilege level 0")
    bind_report_data(checks, report[_REPORT_DATA], report_data)
    return Claims(
        tee="snp",
        simulated=product not in PRODUCTS,
        anchor=f"ARK-{product.name}",
        anchor_sha256=product.ark,
        device=report[_CHIP_ID].hex(),
        measurements=(
            ("MEASUREMENT", report[0x90:0xC0]),
            ("HOST_DATA", report[0xC0:0xE0]),
            ("ID_KEY_DIGEST", report[0xE0:0x110]),
            ("AUTHOR_KEY_DIGEST", report[0x110:0x140]),
            *(
                (f"TCB_{name.upper()}", report[_REPORTED_TCB + at : _REPORTED_TCB + at + 1])
                for name, at, _ in product.tcb
            ),
        ),
        report_data=report[_REPORT_DATA],
        chain=tuple(certificates.link(certificate) for certificate in chain),
        replay_id=fingerprint(report[:SIGNED_BYTES]),
    )


def bind_report_data(checks: Checklist, found: bytes, expected: bytes | None) -> None:
    """Raises VerificationError ``attest.report_data`` unless all 64 bytes are as expected."""
    if expected is None:
        checks.skipped("nonce-1", "no report data asked for")
    elif len(expected) != 64 or not hmac.compare_digest(found, expected):
        raise refuse("nonce-1", "attest.report_data", "the report data are not those expected")
    else:
        checks.passed("nonce-1", "all 64 bytes of report data as expected")


def _format(report: bytes) -> None:
    if len(report) != REPORT_BYTES:
        raise refuse("report-1", "attest.size", f"a report has {REPORT_BYTES} bytes, not {len(report)}")
    if int.from_bytes(report[:4], "little") not in VERSIONS:
        raise refuse("report-1", "attest.report", "a report of an unknown version")
    if int.from_bytes(report[0x34:0x38], "little") != 1:
        raise refuse("report-1", "attest.report", "the report is not signed by ECDSA P-384 with SHA-384")
    # r and s have room for 72 bytes each; what no signature covers must say nothing.
    tail = report[SIGNED_BYTES:]
    if any(tail[48:72]) or any(tail[120:]):
        raise refuse("report-1", "attest.report", "the unsigned end of the report is not zero")
    flags = int.from_bytes(report[0x48:0x4C], "little")
    if (flags >> 2) & 7 != 0:
        raise refuse("report-1", "attest.snp_key", "the report is not signed by a chip's own key (VCEK)")
    if flags & 2:
        raise refuse("report-1", "attest.snp_key", "the report hides its chip (MASK_CHIP_KEY)")


def _signature(report: bytes) -> bytes:
    tail = report[SIGNED_BYTES:]
    return tail[:48][::-1] + tail[72:120][::-1]


def _chain(ark: x509.Certificate, ask: x509.Certificate, vcek: x509.Certificate) -> ec.EllipticCurvePublicKey:
    for certificate in (ark, ask, vcek):
        if not _signed_by_pss(certificate):
            raise refuse(
                "chain-1", "attest.chain_algorithm", "a certificate is not signed by RSA-PSS with SHA-384"
            )
    for certificate, below in ((ark, 1), (ask, 0)):
        authority = certificate.public_key()
        if not isinstance(authority, rsa.RSAPublicKey) or authority.key_size != 4096:
            raise refuse("chain-1", "attest.chain_algorithm", "an authority's key is not RSA of 4096 bits")
        certificates.check_constraints(certificate, authority=True, below=below)
    certificates.check_issued(ark, ark)
    certificates.check_issued(ark, ask)
    certificates.check_issued(ask, vcek)
    if any(extension.critical for extension in vcek.extensions):
        raise refuse("chain-1", "attest.chain_extension", "the chip's certificate has a critical extension")
    key = vcek.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise refuse("chain-1", "attest.chain_algorithm", "the chip's key is not P-384")
    return key


def _signed_by_pss(certificate: x509.Certificate) -> bool:
    """RSA-PSS with SHA-384."""
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.RSASSA_PSS:
        return False
    try:
        parameters, digest = certificate.signature_algorithm_parameters, certificate.signature_hash_algorithm
    except UNREADABLE:
        return False
    return isinstance(parameters, padding.PSS) and isinstance(digest, hashes.SHA384)


def _extension(vcek: x509.Certificate, oid: str) -> bytes:
    for extension in vcek.extensions:
        if extension.oid.dotted_string == _EXTENSIONS + oid and isinstance(
            extension.value, x509.UnrecognizedExtension
        ):
            return extension.value.value
    raise refuse("chip-1", "attest.snp_chip", "the chip's certificate lacks one of AMD's extensions")


def _integer(value: bytes) -> int:
    if len(value) < 3 or value[0] != 2 or value[1] != len(value) - 2 or value[2] & 0x80:
        raise refuse("chip-1", "attest.snp_chip", "a version in the chip's certificate is no DER integer")
    return int.from_bytes(value[2:], "big")


def _chip(report: bytes, vcek: x509.Certificate, product: Product) -> None:
    name = _extension(vcek, "2")
    if name[:1] != b"\x16" or not name[2:].startswith(product.name.encode()):
        raise refuse("chip-1", "attest.snp_chip", "the chip's certificate is of another product")
    hardware = _extension(vcek, "4")
    chip_id = report[_CHIP_ID]
    if not any(chip_id) or not hmac.compare_digest(hardware, chip_id[: product.chip_bytes]):
        raise refuse("chip-1", "attest.snp_chip", "the report is of another chip than the certificate")
    if int.from_bytes(report[:4], "little") >= 3:
        family, model = report[0x188], report[0x189]
        if not any(family == f and first <= model <= last for f, first, last in product.models):
            raise refuse("chip-1", "attest.snp_chip", "the report is of another product than the certificate")
    for component, at, oid in product.tcb:
        reported, committed = report[_REPORTED_TCB + at], report[_COMMITTED_TCB + at]
        if _integer(_extension(vcek, oid)) != reported:
            raise refuse(
                "chip-1", "attest.snp_tcb", f"the {component} version is not that of the certificate"
            )
        if not reported <= committed <= report[_CURRENT_TCB + at]:
            raise refuse("chip-1", "attest.snp_tcb", f"the {component} versions are out of order")


def _guest(report: bytes) -> None:
    policy = _u64(report, 8)
    if policy >> 19 & 1:
        raise refuse("debug-1", "attest.debug", "the guest's policy allows debugging")
    if policy >> 18 & 1:
        raise refuse("debug-1", "attest.migratable", "the guest's policy allows a migration agent")
    if not policy >> 17 & 1:
        raise refuse("debug-1", "attest.report", "the guest's policy lacks the bit that is always one")
    if int.from_bytes(report[0x30:0x34], "little") != 0:
        raise refuse("debug-1", "attest.snp_vmpl", "the report is not of privilege level 0")
