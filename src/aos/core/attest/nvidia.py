"""NVIDIA GPU evidence: signature, chain, nonce (docs/spec/12-attestation.md, "NVIDIA").

What runs on the GPU is not appraised here: that needs the maker's reference files (RIM) and its revocation service.
"""

from cryptography import x509

from aos.core.attest import certificates
from aos.core.attest.nitro import check_nonce
from aos.core.attest.result import AttestationResult, Checklist, Claims, fingerprint, refuse

MAX_EVIDENCE_BYTES = 16_384
MAX_PEM_BYTES = 16_384
REQUEST_BYTES = 37
SIGNATURE_BYTES = 96
ROOT = bytes.fromhex("102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48")

_DRIVER, _VBIOS, _FWID, _TCB_INFO = 3, 6, 20, "2.23.133.5.4.1"


def verify_nvidia(
    evidence: bytes, *, certificates_pem: bytes, at_ms: int, nonce: bytes | None = None, root: bytes = ROOT
) -> AttestationResult:
    """Judge an SPDM 1.1 GET_MEASUREMENTS request with its response. Never raises for anything in them.

    ``certificates_pem``: leaf first, root last. ``root`` is the SHA-256 of the root certificate (32 bytes). The line
    ``rim-1`` is always a SKIP: "RIM not appraised".
    """

    def steps(checks: Checklist) -> Claims:
        return _verify(checks, evidence, certificates_pem, at_ms, nonce, root)

    return Checklist().run("nvidia", steps)


def _malformed(message: str) -> Exception:
    return refuse("report-1", "attest.report", message)


def _verify(
    checks: Checklist, evidence: bytes, pem: bytes, at_ms: int, nonce: bytes | None, root: bytes
) -> Claims:
    measurements, opaque = _layout(evidence)
    checks.passed("report-1", "one SPDM 1.1 request and its response, no byte over")
    if len(pem) > MAX_PEM_BYTES:
        raise refuse("chain-1", "attest.size", "the certificates are too large")
    chain = certificates.load_pem_chain(pem, limit=6)[::-1]
    if certificates.link(chain[0]).sha256 != root or len(chain) < 3:
        raise refuse("root-1", "attest.root", "the chain does not begin at NVIDIA's root")
    checks.passed("root-1", "the chain begins at NVIDIA's root")
    certificates.check_times(chain, at_ms)
    key = certificates.check_ecdsa_chain(chain, leaf_says_so=False)
    checks.passed("chain-1", f"{len(chain)} certificates, valid at that time")
    if not certificates.verify_raw_p384(key, evidence[-SIGNATURE_BYTES:], evidence[:-SIGNATURE_BYTES]):
        raise refuse("signature-1", "attest.signature", "the GPU's key has not signed this evidence")
    checks.passed("signature-1", "signed by the GPU's key")
    _firmware(checks, opaque, chain[-1])
    found = evidence[4:36]
    check_nonce(checks, found, nonce)
    checks.skipped("rim-1", "RIM not appraised: what runs on the GPU is not known")
    checks.skipped("revocation-1", "revocation not asked: a certificate on hold shows only there")
    return Claims(
        tee="nvidia",
        simulated=root != ROOT,
        anchor="NVIDIA Device Identity CA",
        anchor_sha256=root,
        device=certificates.link(chain[-2]).sha256.hex(),
        measurements=(("RECORD", measurements), *_versions(opaque)),
        nonce=found,
        chain=tuple(certificates.link(certificate) for certificate in chain),
        replay_id=fingerprint(evidence[:-SIGNATURE_BYTES]),
    )


def _firmware(checks: Checklist, opaque: dict[int, bytes], leaf: x509.Certificate) -> None:
    firmware = opaque.get(_FWID)
    if firmware is None:
        checks.skipped("firmware-1", "this driver's evidence does not name the firmware")
        return
    info = next((e.value for e in leaf.extensions if e.oid.dotted_string == _TCB_INFO), None)
    if len(firmware) != 48 or info is None or not info.public_bytes().endswith(firmware):
        raise refuse("firmware-1", "attest.gpu_firmware", "the firmware is not that of the certificate")
    checks.passed("firmware-1", "the firmware is the one that the leaf was issued for")


def _versions(opaque: dict[int, bytes]) -> tuple[tuple[str, bytes], ...]:
    """Driver and VBIOS as their maker writes them, ASCII: ``590.12``, ``96.00.A5.00.01``."""
    driver, vbios = opaque.get(_DRIVER, b"").rstrip(b"\0"), opaque.get(_VBIOS, b"")
    if not driver.isascii() or len(vbios) != 8 or any(vbios[5:]):
        return ()
    shown = ".".join(f"{byte:02X}" for byte in (*reversed(vbios[:4]), vbios[4]))
    return (("DRIVER", driver), ("VBIOS", shown.encode()))


def _layout(evidence: bytes) -> tuple[bytes, dict[int, bytes]]:
    """The measurement record and the opaque fields by their number."""
    if not REQUEST_BYTES + 8 + 34 + SIGNATURE_BYTES <= len(evidence) <= MAX_EVIDENCE_BYTES:
        raise refuse("report-1", "attest.size", "the evidence is too short or too long")
    if evidence[:2] != b"\x11\xe0" or evidence[REQUEST_BYTES : REQUEST_BYTES + 2] != b"\x11\x60":
        raise _malformed("the evidence is no SPDM 1.1 request for measurements with its response")
    begin = REQUEST_BYTES + 8
    end = begin + int.from_bytes(evidence[begin - 3 : begin], "little")
    body = evidence[:-SIGNATURE_BYTES]
    if end + 34 > len(body) or end + 34 + int.from_bytes(body[end + 32 : end + 34], "little") != len(body):
        raise _malformed("the lengths in the evidence do not add up")
    fields: dict[int, bytes] = {}
    position = end + 34
    while position < len(body):
        number = int.from_bytes(body[position : position + 2], "little")
        size = int.from_bytes(body[position + 2 : position + 4], "little")
        if position + 4 + size > len(body) or number in fields:
            raise _malformed("an opaque field is cut off or there twice")
        fields[number] = body[position + 4 : position + 4 + size]
        position += 4 + size
    return body[begin:end], fields
