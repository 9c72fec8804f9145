"""What a verifier says about a document, and the anchors that it may believe (docs/spec/12-attestation.md, "Result")."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from aos.core.report import Check
from aos.errors import VerificationError

Tee = Literal["nitro", "tdx", "sgx", "snp", "nvidia"]
UNREADABLE = (
    ValueError,
    TypeError,
    OverflowError,
    ArithmeticError,
    LookupError,
    RecursionError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the libraries below raise where bytes are nothing that they can read; some are plain Exceptions."""
PANIC = "PanicException"
"""The name of what libraries written in Rust raise where they give up: no Exception, and no class to import."""
MAX_FUTURE_MS = 60_000
"""How far a document's time may be ahead of the verifier's: two clocks never agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustAnchor:
    """A root certificate by the SHA-256 of its DER bytes (32 bytes), and whether it stands for hardware."""

    name: str
    sha256: bytes
    simulated: bool = False


AWS_NITRO = TrustAnchor(
    name="AWS Nitro Enclaves G1",
    sha256=bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"),
)
"""The commercial partition's root, 2019-10-28 to 2049-10-28."""


def simulated_anchor(fingerprint: bytes) -> TrustAnchor:
    """The root of a SIMULATED platform, ``fingerprint`` being the SHA-256 of its certificate (32 bytes)."""
    if len(fingerprint) != 32 or fingerprint == AWS_NITRO.sha256:
        raise ValueError("a simulated root is named by a SHA-256 that is not a maker's")
    return TrustAnchor(name="SIMULATED, NOT AWS", sha256=fingerprint, simulated=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLink:
    """One certificate of the chain, root first. ``valid_from`` and ``valid_until`` are Unix milliseconds."""

    subject: str
    sha256: bytes
    valid_from: int
    valid_until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What an accepted document says.

    ``anchor_sha256`` is the root certificate's (32 bytes). ``measurements`` are (register, bytes), in the platform's
    order; ``report_data`` is what the software inside had bound (Nitro: ``user_data``; TDX, SGX, SNP: 64 bytes). Null
    and empty differ. ``time_ms`` is None where the format has no time. ``replay_id`` (32 bytes) names what was signed:
    a signature can be rewritten, this cannot.
    """

    tee: Tee
    simulated: bool
    anchor: str
    anchor_sha256: bytes
    device: str
    measurements: tuple[tuple[str, bytes], ...]
    report_data: bytes | None = None
    public_key: bytes | None = None
    nonce: bytes | None = None
    time_ms: int | None = None
    chain: tuple[ChainLink, ...] = ()
    replay_id: bytes = b""
    tcb_status: str = ""
    advisories: tuple[str, ...] = ()

    @property
    def device_name(self) -> str:
        """What counts as one device: an instance, chip or platform by its maker's name; where it is SIMULATED, all that
        one root vouches for, since who holds its key may give the rest any name."""
        return f"simulated {self.anchor_sha256.hex()}" if self.simulated else f"{self.tee} {self.device}"

    def measurement(self, register: str) -> bytes | None:
        """The value of ``register``; None where the document has none."""
        return dict(self.measurements).get(register)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationResult:
    """The checks in their order, up to the first that failed. ``claims`` is None unless none failed: what a refused
    document says is nobody's word."""

    tee: Tee
    checks: tuple[Check, ...]
    claims: Claims | None

    @property
    def refusal(self) -> Check | None:
        """The check that failed."""
        return next((check for check in self.checks if check.status == "FAIL"), None)

    def require(self) -> Claims:
        """The claims. Raises VerificationError with the code of the check that failed."""
        refusal = self.refusal
        if refusal is not None or self.claims is None:
            code = refusal.code if refusal is not None else "attest.refused"
            raise VerificationError(code, refusal.text if refusal is not None else "the evidence is refused")
        return self.claims


@dataclass(slots=True)
class Checklist:
    """Collects lines while a verifier runs."""

    checks: list[Check] = field(default_factory=list)

    def passed(self, name: str, text: str, detail: str = "") -> None:
        """A check that held."""
        self.checks.append(Check(id=name, status="PASS", text=text, detail=detail))

    def skipped(self, name: str, text: str) -> None:
        """A check that nobody asked for or that nobody can make here."""
        self.checks.append(Check(id=name, status="SKIP", text=text))

    def run(self, tee: Tee, steps: Callable[["Checklist"], Claims]) -> AttestationResult:
        """Run ``steps``; its VerificationError becomes the last line, and so does what a library below cannot read."""
        try:
            # Certificates with odd serial numbers or names make the parser warn, and where warnings are errors, raise.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                claims = steps(self)
        except VerificationError as error:
            return self._refused(tee, error)
        except UNREADABLE:
            return self._refused(
                tee, refuse("evidence-1", "attest.unreadable", "the evidence cannot be read")
            )
        except BaseException as error:
            if type(error).__name__ != PANIC:
                raise
            return self._refused(
                tee, refuse("evidence-1", "attest.unreadable", "the evidence cannot be read")
            )
        return AttestationResult(tee=tee, checks=tuple(self.checks), claims=claims)

    def _refused(self, tee: Tee, error: VerificationError) -> AttestationResult:
        line = Check(
            id=error.field or "evidence-1", status="FAIL", text=error.message, detail="", code=error.code
        )
        return AttestationResult(tee=tee, checks=(*self.checks, line), claims=None)


def refuse(check: str, code: str, message: str) -> VerificationError:
    """The error that ends a verification; ``check`` is the line that it becomes."""
    return VerificationError(code, message, field=check)


def fingerprint(data: bytes) -> bytes:
    """SHA-256 of ``data``."""
    return sha256(data).digest()
