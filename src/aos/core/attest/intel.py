"""Intel TDX and SGX quotes (docs/spec/12-attestation.md, "Intel TDX and SGX").

dcap-qvl checks signatures, chains, revocation lists and TCB levels; what it leaves open is checked here. It is
imported when a quote is judged, so that nothing else needs it.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aos.core.attest.result import PANIC, AttestationResult, Checklist, Claims, Tee, fingerprint, refuse
from aos.core.attest.snp import bind_report_data

if TYPE_CHECKING:
    import dcap_qvl

MAX_QUOTE_BYTES = 16_384
MAX_COLLATERAL_BYTES = 1 << 20
ACCEPTABLE_STATUSES = frozenset({"UpToDate", "SWHardeningNeeded", "ConfigurationAndSWHardeningNeeded"})
"""What a policy may allow. Out of date, revoked or wrongly configured platforms cannot be allowed."""
INTEL_ROOT = bytes.fromhex("44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3")
"""SHA-256 of the Intel SGX Root CA's certificate, which dcap-qvl carries."""

_SGX, _TDX = 0, 0x81
_HEADER = 48
_SGX_BODY, _TD10_BODY, _TD15_BODY = 384, 584, 648
_REPORT_DATA = {_SGX_BODY: 320, _TD10_BODY: 520, _TD15_BODY: 520}
_TD_DEBUG_BITS, _TD_SEPT_VE_DISABLE, _TD_MIGRATABLE, _TD_PERFMON = 0xFF, 1 << 28, 1 << 29, 1 << 63
_TD_KNOWN = _TD_SEPT_VE_DISABLE | 1 << 30 | 1 << 31  # protection keys, key locker
_XFAM_KNOWN = 0x6DBE7  # x87 to AMX of the TDX module's specification
_SGX_INIT, _SGX_DEBUG, _SGX_PROVISION, _SGX_LAUNCH = 1, 2, 16, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelPlatform:
    """What a platform may be. Clouds have several packages, cached keys and hyper-threads: a policy says so."""

    statuses: tuple[str, ...] = ("UpToDate",)
    rejected_advisories: tuple[str, ...] = ()
    min_tcb_evaluation: int = 0
    dynamic_platform: bool = False
    cached_keys: bool = False
    smt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quote:
    tee: Tee
    body: bytes
    signed: bytes
    whole: bytes


def verify_intel(
    quote: bytes,
    *,
    collateral: bytes,
    at_ms: int,
    platform: IntelPlatform | None = None,
    report_data: bytes | None = None,
    root_ca_der: bytes | None = None,
) -> AttestationResult:
    """Judge a quote (SGX of version 3 or 4, TDX of version 4 or 5) at ``at_ms`` (Unix milliseconds).

    ``collateral``: the JSON form of dcap-qvl, kept with the evidence, since it holds for 30 days. ``report_data``: all
    64 bytes. ``root_ca_der`` stands for Intel's root where a platform is SIMULATED. Never raises for anything in
    ``quote`` or ``collateral``; ValueError where ``platform`` names no statuses, or impossible ones.
    """
    kind: Tee = "sgx" if quote[4:8] == bytes(4) else "tdx"
    wanted = platform or IntelPlatform()
    if not wanted.statuses or not ACCEPTABLE_STATUSES.issuperset(wanted.statuses):
        raise ValueError(
            "the platform's statuses are empty or not acceptable"
        )  # the caller's, not the quote's

    def steps(checks: Checklist) -> Claims:
        return _verify(checks, quote, collateral, at_ms, wanted, report_data, root_ca_der)

    return Checklist().run(kind, steps)


def quoted_report_data(quote: bytes) -> bytes:
    """The 64 bytes of report data that ``quote`` states, its signatures not judged. Raises VerificationError
    ``attest.size``, ``attest.report``."""
    body = _layout(quote).body
    at = _REPORT_DATA[len(body)]
    return body[at : at + 64]


def _malformed(message: str) -> Exception:
    return refuse("report-1", "attest.report", message)


def _layout(quote: bytes) -> _Quote:
    if not _HEADER + _SGX_BODY + 4 <= len(quote) <= MAX_QUOTE_BYTES:
        raise refuse("report-1", "attest.size", "the quote is too short or too long")
    version = int.from_bytes(quote[:2], "little")
    tee = int.from_bytes(quote[4:8], "little")
    begin = _HEADER
    if version == 3 and tee == _SGX:
        size = _SGX_BODY
    elif version == 4 and tee in (_SGX, _TDX):
        size = _SGX_BODY if tee == _SGX else _TD10_BODY
    elif version == 5 and tee == _TDX:
        kind, size = int.from_bytes(quote[48:50], "little"), int.from_bytes(quote[50:54], "little")
        if (kind, size) not in ((2, _TD10_BODY), (3, _TD15_BODY)):
            raise _malformed("a body of an unknown type")
        begin += 6
    else:
        raise _malformed("a quote of an unknown version or kind")
    end = begin + size
    if end + 4 > len(quote):
        raise _malformed("the quote ends early")
    total = end + 4 + int.from_bytes(quote[end : end + 4], "little")
    # Quoting libraries hand out a buffer of fixed size, zero behind the quote; any other byte there is someone's.
    if total > len(quote) or any(quote[total:]):
        raise _malformed("the quote's length is not the one that it states")
    return _Quote(
        tee="sgx" if tee == _SGX else "tdx",
        body=quote[begin:end],
        signed=quote[:end],
        whole=quote[:total],
    )


def _verify(
    checks: Checklist,
    data: bytes,
    collateral: bytes,
    at_ms: int,
    platform: IntelPlatform,
    report_data: bytes | None,
    root_ca_der: bytes | None,
) -> Claims:
    quote = _layout(data)
    checks.passed("report-1", "a quote of a known version, of the length that it states")
    debug = _sgx_attributes(quote.body) if quote.tee == "sgx" else _td_attributes(quote.body)
    checks.passed("debug-1", debug)
    verified = _quote_claims(quote.whole, collateral, at_ms // 1000, platform, root_ca_der)
    status, advisories, device = verified
    checks.passed("quote-1", "quote, chains, revocation lists and TCB hold at that time", status)
    at = _REPORT_DATA[len(quote.body)]
    found = quote.body[at : at + 64]
    bind_report_data(checks, found, report_data)
    return Claims(
        tee=quote.tee,
        simulated=root_ca_der is not None,
        anchor="SIMULATED, NOT INTEL" if root_ca_der is not None else "Intel SGX Root CA",
        anchor_sha256=fingerprint(root_ca_der) if root_ca_der is not None else INTEL_ROOT,
        device=device,
        measurements=_measurements(quote),
        report_data=found,
        replay_id=fingerprint(quote.signed),
        tcb_status=status,
        advisories=advisories,
    )


def _td_attributes(body: bytes) -> str:
    attributes, xfam = int.from_bytes(body[120:128], "little"), int.from_bytes(body[128:136], "little")
    if attributes & _TD_DEBUG_BITS:
        raise refuse("debug-1", "attest.debug", "a debug trust domain")
    if attributes & _TD_MIGRATABLE:
        raise refuse("debug-1", "attest.migratable", "the trust domain may be migrated")
    if not attributes & _TD_SEPT_VE_DISABLE or attributes & ~_TD_KNOWN:
        raise refuse("debug-1", "attest.attributes", "the trust domain's attributes are not the safe ones")
    if xfam & ~_XFAM_KNOWN or xfam & 3 != 3:
        raise refuse("debug-1", "attest.attributes", "the trust domain has unknown processor features")
    if any(body[600:648]):  # TD 1.5 alone: a service domain could move this one elsewhere
        raise refuse("debug-1", "attest.migratable", "a service trust domain is bound to the domain")
    if any(body[64:112]) or any(body[112:120]):
        raise refuse("debug-1", "attest.attributes", "the TDX module is not Intel's own")
    return "no debugging, no migration, safe attributes, Intel's module"


def _sgx_attributes(body: bytes) -> str:
    flags = int.from_bytes(body[48:56], "little")
    if flags & _SGX_DEBUG:
        raise refuse("debug-1", "attest.debug", "a debug enclave")
    if not flags & _SGX_INIT or flags & (_SGX_PROVISION | _SGX_LAUNCH):
        raise refuse("debug-1", "attest.attributes", "the enclave's attributes are not an application's")
    return "no debugging, an application's attributes"


def _measurements(quote: _Quote) -> tuple[tuple[str, bytes], ...]:
    body = quote.body
    if quote.tee == "sgx":
        return (
            ("MRENCLAVE", body[64:96]),
            ("MRSIGNER", body[128:160]),
            ("ISVPRODID", body[256:258]),
            ("ISVSVN", body[258:260]),
            ("CONFIGID", body[192:256]),
            ("CONFIGSVN", body[260:262]),
        )
    rtmrs = tuple((f"RTMR{n}", body[328 + 48 * n : 376 + 48 * n]) for n in range(4))
    return (
        ("MRTD", body[136:184]),
        *rtmrs,
        ("MRSEAM", body[16:64]),
        ("MRCONFIGID", body[184:232]),
        ("MROWNER", body[232:280]),
        ("MROWNERCONFIG", body[280:328]),
    )


def _policy(now: int, platform: IntelPlatform) -> "dcap_qvl.QuotePolicy":
    import dcap_qvl

    policy = dcap_qvl.QuotePolicy.strict(now)
    policy = policy.allow_dynamic_platform(platform.dynamic_platform)
    policy = policy.allow_cached_keys(platform.cached_keys).allow_smt(platform.smt)
    for status in platform.statuses:
        policy = policy.allow_status(status)
    if platform.rejected_advisories:
        policy = policy.reject_advisories(list(platform.rejected_advisories))
    if platform.min_tcb_evaluation:
        policy = policy.min_tcb_eval_data_number(platform.min_tcb_evaluation)
    return policy


def _plain(text: str) -> str:
    """Part of it may be the quote's own: printable and short."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def _quote_claims(
    quote: bytes, collateral: bytes, now: int, platform: IntelPlatform, root_ca_der: bytes | None
) -> tuple[str, tuple[str, ...], str]:
    """Status, advisories, platform. Raises VerificationError ``attest.quote``, ``attest.collateral``."""
    import dcap_qvl

    if len(collateral) > MAX_COLLATERAL_BYTES:
        raise refuse("quote-1", "attest.size", "the collateral is too large")
    try:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral.decode())
    except (ValueError, TypeError, OverflowError):
        raise refuse("quote-1", "attest.collateral", "the collateral cannot be read") from None
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise refuse("quote-1", "attest.collateral", "the collateral cannot be read") from None
    try:
        verifier = (
            dcap_qvl.QuoteVerifier(root_ca_der) if root_ca_der is not None else dcap_qvl.QuoteVerifier()
        )
        claims: dict[str, Any] = json.loads(
            verifier.verify_with_policy(quote, parsed, now, _policy(now, platform)).to_json()
        )
    except (ValueError, OverflowError) as error:
        raise refuse("quote-1", "attest.quote", _plain(str(error))) from None
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise refuse("quote-1", "attest.quote", "the quote or its collateral cannot be read") from None
    status, advisories = claims["tcb"]["status"], tuple(claims["tcb"]["advisory_ids"])
    if status not in platform.statuses:
        raise refuse("quote-1", "attest.tcb_status", f"the platform's status is {status}")
    return status, advisories, bytes(claims["platform"]["pck"]["ppid"]).hex()
