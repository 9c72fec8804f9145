"""Evidence that is neither genuine nor decent: whatever comes in, a verdict comes out, and it is a refusal.

A library below that panics, or names an algorithm that it does not know, must not show through.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from attest_documents import (
    NOW_MS,
    VECTORS,
    anchor_of,
    cbor,
    default_chain,
    document,
    members,
)
from cryptography.exceptions import UnsupportedAlgorithm

from aos.core.attest import certificates
from aos.core.attest.evidence import is_report, judge, judge_report
from aos.core.attest.intel import IntelPlatform, verify_intel
from aos.core.attest.nitro import verify_nitro
from aos.core.attest.policy import load_policy
from aos.core.attest.result import AWS_NITRO, PANIC, AttestationResult, Checklist
from aos.core.attest.snp import verify_snp
from aos.errors import AOSError, InvalidMessage

SIMULATED = anchor_of(default_chain()[0])


class PanicException(BaseException):
    """What a library written in Rust raises where it gives up."""


def refused(result: AttestationResult, code: str) -> None:
    assert result.claims is None
    assert result.refusal is not None
    assert result.refusal.code == code


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: Any, **__: Any) -> Any:
        raise error

    return raise_it


def test_the_panic_is_known_by_the_name_of_the_real_one() -> None:
    import dcap_qvl

    assert PanicException.__name__ == PANIC
    with pytest.raises((ValueError, BaseException)) as caught:
        dcap_qvl.parse_quote(b"")
    assert isinstance(caught.value, ValueError) or type(caught.value).__name__ == PANIC


@pytest.mark.parametrize(
    "error",
    [
        UnsupportedAlgorithm("an odd key"),
        ValueError("odd"),
        TypeError("odd"),
        OverflowError("odd"),
        IndexError("odd"),
        KeyError("odd"),
        RecursionError("odd"),
        PanicException("odd"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_library_gives_up_on_is_a_refusal(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "check_ecdsa_chain", raising(error))
    result = verify_nitro(document(members()), roots=[SIMULATED], at_ms=NOW_MS)
    refused(result, "attest.unreadable")
    assert [check.id for check in result.checks][-1] == "evidence-1"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_what_is_nobodys_evidence_is_not_swallowed(error: BaseException) -> None:
    with pytest.raises(type(error)):
        Checklist().run("nitro", raising(error))


@pytest.mark.parametrize("where", ["QuoteCollateralV3", "QuoteVerifier"])
def test_a_panic_of_the_quote_library_is_a_refusal(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import dcap_qvl

    folder = VECTORS / "tdx-sgx"
    made = raising(PanicException("index out of bounds"))
    fake = type(where, (), {"from_json": staticmethod(made), "verify_with_policy": made})
    monkeypatch.setattr(dcap_qvl, where, fake)
    result = verify_intel(
        (folder / "tdx_v4_quote.bin").read_bytes(),
        collateral=(folder / "tdx_v4_collateral.json").read_bytes(),
        at_ms=NOW_MS,
    )
    refused(result, {"QuoteCollateralV3": "attest.collateral", "QuoteVerifier": "attest.quote"}[where])


def test_the_callers_own_mistake_is_not_a_verdict() -> None:
    for statuses in ((), ("OutOfDate",)):
        with pytest.raises(ValueError, match="statuses"):
            verify_intel(
                bytes(1000), collateral=b"{}", at_ms=NOW_MS, platform=IntelPlatform(statuses=statuses)
            )


def spoiled(data: bytes, chance: random.Random) -> bytes:
    """A few bytes of it changed, dropped, doubled or inserted."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(out))
        kind = chance.randrange(4)
        if kind == 0:
            out[at] = chance.randrange(256)
        elif kind == 1:
            del out[at : at + chance.randint(1, 9)]
        elif kind == 2:
            out[at:at] = out[at : at + chance.randint(1, 9)]
        else:
            out[at:at] = chance.randbytes(chance.randint(1, 9))
        if not out:
            return b"\0"
    return bytes(out)


def test_a_spoiled_document_is_refused_and_nothing_else_comes_out() -> None:
    chance = random.Random(5)
    genuine = document(members())
    assert verify_nitro(genuine, roots=[SIMULATED], at_ms=NOW_MS).claims is not None
    for _ in range(400):
        changed = spoiled(genuine, chance)
        if changed != genuine:
            assert verify_nitro(changed, roots=[SIMULATED], at_ms=NOW_MS).claims is None


def test_a_spoiled_certificate_inside_a_truly_signed_document_is_refused() -> None:
    """The leaf's owner signs over certificates of its own making: the envelope holds, the chain must not."""
    chance = random.Random(6)
    chain = list(default_chain())
    for number in range(300):
        position = number % len(chain)
        changed = list(chain)
        changed[position] = spoiled(chain[position], chance)[:1024]
        if changed == chain:
            continue
        made = document(cbor(members(changed)))
        result = verify_nitro(made, roots=[SIMULATED], at_ms=NOW_MS)
        assert result.claims is None, (number, position)


def test_spoiled_snp_certificates_are_refused_and_nothing_else_comes_out() -> None:
    import base64

    folder = VECTORS / "snp"
    report = (folder / "milan_report.bin").read_bytes()
    pem = b"".join((folder / f"milan_{name}.pem").read_bytes() for name in ("vcek", "ask", "ark"))
    own = _first_body(pem)
    chance = random.Random(7)
    for _ in range(60):
        body = base64.encodebytes(spoiled(base64.b64decode(own), chance))
        bent = pem.replace(own, b"\n" + body)
        assert verify_snp(report, certificates_pem=bent, at_ms=NOW_MS).claims is None


def _first_body(pem: bytes) -> bytes:
    begin = pem.index(b"-----BEGIN CERTIFICATE-----") + 27
    return pem[begin : pem.index(b"-----END CERTIFICATE-----", begin)]


def test_spoiled_reports_and_evidence_files_end_in_a_verdict_or_a_named_error() -> None:
    policy = load_policy((VECTORS.parents[1] / "aos/attest/policy-nitro.json").read_bytes())
    text = (
        b'{"type":"aos.tee.report","v":2,"model_id":"'
        + b"A" * 43
        + b'","left_out":[],"model_attestations":[]}'
    )
    assert is_report(text)
    with pytest.raises(InvalidMessage, match="names no enclave"):
        judge_report(text, policy, at_ms=NOW_MS)
    chance = random.Random(8)
    for _ in range(200):
        changed = spoiled(text, chance)
        for reader in (judge, judge_report):
            try:
                results = reader(changed, policy, at_ms=NOW_MS)
            except AOSError:
                continue
            found = results if isinstance(results, tuple) else (results,)
            assert all(result.claims is None for result in found)


def test_a_simulated_root_named_beside_awss_does_not_make_a_document_awss() -> None:
    claims = verify_nitro(document(members()), roots=[AWS_NITRO, SIMULATED], at_ms=NOW_MS).require()
    assert claims.simulated
    assert claims.anchor == "SIMULATED, NOT AWS"
