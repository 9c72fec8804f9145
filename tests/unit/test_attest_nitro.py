"""AWS Nitro documents (docs/spec/12-attestation.md): genuine ones have their stated verdicts, and nothing else passes."""

from __future__ import annotations

import json
import os
import random
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attest_documents as made
import pytest
from attest_documents import NOW_MS, Link, Raw, cbor, default_links, document, head, members, pairs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aos.core.attest import cbor as reader
from aos.core.attest.certificates import P384_ORDER
from aos.core.attest.nitro import verify_nitro
from aos.core.attest.result import AWS_NITRO, AttestationResult, simulated_anchor
from aos.errors import InvalidMessage, VerificationError

LATER_MS = 1_790_000_000_000
NITRO = made.VECTORS / "nitro"
SHARED = made.VECTORS.parents[3] / "shared/fixtures/attestation/nitro"
MANIFEST = json.loads((NITRO / "manifest.json").read_text())
OTHER_LICENCE = ("veracruz_2022-11-09.cbor", "veracruz_2022-11-09_badsig.cbor")
GENUINE = (NITRO / "og_2026-02-12_indef.cbor").read_bytes()
OLDER = (NITRO / "automata2_2023-09-28.cbor").read_bytes()
SIMULATED = made.anchor_of(made.default_chain()[0])


def judged(data: bytes, **options: Any) -> AttestationResult:
    return verify_nitro(data, **({"roots": [AWS_NITRO], "at_ms": LATER_MS} | options))


def code(data: bytes, **options: Any) -> str:
    refusal = judged(data, **options).refusal
    return refusal.code if refusal is not None else "ACCEPTED"


def own(data: bytes, **options: Any) -> str:
    return code(data, **({"roots": [SIMULATED], "at_ms": NOW_MS} | options))


def parts(data: bytes) -> list[Any]:
    value = reader.decode(data)
    assert isinstance(value, list)
    return value


def payload_of(data: bytes) -> dict[str, Any]:
    value = reader.decode(parts(data)[2], indefinite_maps=True)
    assert isinstance(value, dict)
    return value


# --- genuine documents


@pytest.mark.parametrize("entry", MANIFEST, ids=lambda e: Path(e["file"]).name)
def test_a_genuine_document_has_its_stated_verdict_for_its_stated_reason(entry: dict[str, Any]) -> None:
    data = (made.VECTORS / entry["file"]).read_bytes()
    result = judged(data)
    reason = {"REJECT: debug": "attest.debug", "REJECT: root ": "attest.root"}.get(entry["expected"][:13])
    if reason is not None:
        assert result.refusal is not None
        assert result.refusal.code == reason
        assert result.claims is None
        return
    claims = result.require()
    assert (claims.tee, claims.simulated, claims.anchor) == ("nitro", False, AWS_NITRO.name)
    assert claims.time_ms == entry["timestamp_ms"]
    assert {n: v.hex() for n, v in claims.measurements if any(v)} == {
        f"PCR{n}": v for n, v in entry["pcrs"].items()
    }
    for name, value in (
        ("user_data", claims.report_data),
        ("nonce", claims.nonce),
        ("public_key", claims.public_key),
    ):
        assert (value.hex() if value is not None else None) == entry[name]


@pytest.mark.parametrize("name", OTHER_LICENCE)
def test_a_genuine_document_of_another_licence_has_its_stated_verdict(name: str) -> None:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{name}: its licence keeps it out of this repository")
    expected = "attest.signature" if "badsig" in name else "ACCEPTED"
    assert code(path.read_bytes()) == expected


def test_a_document_tells_null_from_empty() -> None:
    claims = judged((NITRO / "marlin_2025-04-29_pcr16.cbor").read_bytes()).require()
    assert (claims.report_data, claims.nonce) == (b"", None)
    assert claims.measurement("PCR16") is not None


def test_the_instance_is_the_device() -> None:
    assert judged(GENUINE).require().device == "i-0340e0cb833504eb6"


@pytest.mark.parametrize(
    "entry", [e for e in MANIFEST if e["expected"].startswith("ACCEPT")], ids=lambda e: Path(e["file"]).name
)
def test_a_general_path_builder_agrees_about_every_genuine_chain(entry: dict[str, Any]) -> None:
    payload = payload_of((made.VECTORS / entry["file"]).read_bytes())
    certificates = [
        x509.load_der_x509_certificate(der) for der in [*payload["cabundle"], payload["certificate"]]
    ]
    verifier = (
        PolicyBuilder()
        .store(Store(certificates[:1]))
        .time(datetime.fromtimestamp(payload["timestamp"] // 1000, UTC))
        .max_chain_depth(8)
        .extension_policies(
            ca_policy=ExtensionPolicy.permit_all().require_present(
                x509.BasicConstraints, Criticality.CRITICAL, None
            ),
            ee_policy=ExtensionPolicy.permit_all(),
        )
        .build_client_verifier()
    )
    assert len(verifier.verify(certificates[-1], certificates[1:-1]).chain) == len(certificates)


def test_a_simulated_document_is_accepted_under_its_own_root_alone_and_says_so() -> None:
    data = document(members())
    assert judged(data, roots=[SIMULATED], at_ms=NOW_MS).require().simulated
    assert own(data, roots=[AWS_NITRO]) == "attest.root"
    assert own(data, roots=[]) == "attest.root"
    assert code(GENUINE, roots=[SIMULATED]) == "attest.root"


def test_a_root_of_the_same_name_is_another_root() -> None:
    genuine = x509.load_der_x509_certificate(payload_of(GENUINE)["cabundle"][0])
    links = default_links()
    forged = (
        x509.CertificateBuilder()
        .subject_name(genuine.subject)
        .issuer_name(genuine.subject)
        .public_key(links[0].key.public_key())
        .serial_number(genuine.serial_number)
        .not_valid_before(genuine.not_valid_before_utc)
        .not_valid_after(genuine.not_valid_after_utc)
        .sign(links[0].key, hashes.SHA384())
    )
    chain = [forged.public_bytes(made.Encoding.DER), *made.default_chain()[1:]]
    assert code(document(members(chain))) == "attest.root"


def test_the_root_of_aws_cannot_be_named_as_a_simulated_one() -> None:
    with pytest.raises(ValueError, match="maker's"):
        simulated_anchor(AWS_NITRO.sha256)


def test_a_document_as_qemu_makes_them_is_refused() -> None:
    payload = cbor(members(certificate=bytes(64), cabundle=[bytes(64)]))
    assert own(cbor([made.HEADER, {}, payload, bytes(64)])) == "attest.envelope"
    assert own(cbor([made.HEADER, {}, payload, bytes(96)])) == "attest.root"


# --- the envelope


def flips(data: bytes) -> list[int]:
    every = range(8 * len(data))
    if os.environ.get("AOS_ALL_BIT_FLIPS"):
        return list(every)
    chosen = random.Random(5).sample(every, 150)
    return sorted({*range(8 * 16), *chosen, *range(8 * (len(data) - 2), 8 * len(data))})


@pytest.mark.timeout(1800)
def test_a_genuine_document_with_any_bit_flipped_is_refused() -> None:
    """All of them with AOS_ALL_BIT_FLIPS=1; else those of both ends, and a sample."""
    accepted = []
    for bit in flips(GENUINE):
        spoiled = bytearray(GENUINE)
        spoiled[bit // 8] ^= 1 << bit % 8
        if code(bytes(spoiled)) == "ACCEPTED":
            accepted.append(bit)
    assert accepted == []


def test_a_document_cut_anywhere_is_refused() -> None:
    for length in range(len(GENUINE)):
        assert code(GENUINE[:length]) in ("attest.envelope", "attest.size")


ENVELOPE = parts(GENUINE)


@pytest.mark.parametrize(
    "spoiled",
    [
        GENUINE + b"\x00",
        b"\xd2" + GENUINE,
        b"\xd8\x62" + GENUINE,
        cbor(ENVELOPE[:3]),
        cbor([*ENVELOPE, b""]),
        cbor([ENVELOPE[0], {1: 2}, *ENVELOPE[2:]]),
        cbor([ENVELOPE[0], {1: -35}, *ENVELOPE[2:]]),
        cbor([ENVELOPE[0], [], *ENVELOPE[2:]]),
        cbor([ENVELOPE[0], -1, *ENVELOPE[2:]]),
        cbor([ENVELOPE[0], Raw(b"\xe0"), *ENVELOPE[2:]]),
        cbor([ENVELOPE[0], Raw(b"\xbf\xff"), *ENVELOPE[2:]]),
        cbor([ENVELOPE[0], None, *ENVELOPE[2:]]),
        cbor([*ENVELOPE[:2], None, ENVELOPE[3]]),
        cbor([*ENVELOPE[:2], b"", ENVELOPE[3]]),
        cbor([*ENVELOPE[:3], ENVELOPE[3][:-1]]),
        cbor([*ENVELOPE[:3], ENVELOPE[3] + b"\x00"]),
        cbor([*ENVELOPE[:3], made.key_of("leaf").sign(b"", made.ec.ECDSA(hashes.SHA384()))]),
        b"\x9f" + GENUINE[1:] + b"\xff",
        b"\x98\x04" + GENUINE[1:],
        b"\x84\x58\x04" + GENUINE[2:],
        b"\x84" * 500,
        b"\x5a\x06\x00\x00\x00",
        b"\x9f",
        b"\xbf",
        b"\xff",
    ],
)
def test_an_envelope_that_is_not_the_one_form_is_refused(spoiled: bytes) -> None:
    assert code(spoiled) == "attest.envelope"


@pytest.mark.parametrize(
    "protected",
    [cbor({1: alg}) for alg in (-7, -36, -8, 0, "ES384", None)]
    + [b"", b"\xa0", b"\xa2\x01\x38\x22\x01\x38\x22", cbor({1: -35, 2: [1]}), b"\xa1\x01\x39\x00\x22"],
)
def test_a_protected_header_that_is_not_es384_alone_is_refused_though_signed(protected: bytes) -> None:
    payload = cbor(members())
    data = cbor([protected, {}, payload, made.sign(payload, protected=protected)])
    assert own(data) == "attest.envelope"


@pytest.mark.parametrize("data", [b"", bytes(16_385), GENUINE + bytes(16_384)])
def test_a_document_too_short_or_too_long_is_refused_unread(data: bytes) -> None:
    assert code(data) == "attest.size"


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [0, P384_ORDER, P384_ORDER + 1, 2**384 - 1])
def test_a_signature_out_of_range_is_refused(which: int, value: int) -> None:
    halves = [ENVELOPE[3][:48], ENVELOPE[3][48:]]
    halves[which] = value.to_bytes(48, "big")
    assert code(cbor([*ENVELOPE[:3], b"".join(halves)])) == "attest.signature"


@pytest.mark.parametrize("data", [GENUINE, OLDER])
def test_a_rewritten_signature_holds_and_has_the_same_replay_id(data: bytes) -> None:
    protected, unprotected, payload, signature = parts(data)
    other = (P384_ORDER - int.from_bytes(signature[48:], "big")).to_bytes(48, "big")
    twin = cbor([protected, unprotected, payload, signature[:48] + other])
    assert twin != data
    assert judged(twin).require().replay_id == judged(data).require().replay_id
    assert judged(GENUINE).require().replay_id != judged(OLDER).require().replay_id


# --- the payload

BASE = members()
MANDATORY = ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle")


def doubled(name: str, value: Any) -> bytes:
    return head(5, len(BASE) + 1) + pairs([*BASE.items(), (name, value)])


def with_pcrs(**changes: Any) -> bytes:
    return cbor(members(**changes))


PCRS = BASE["pcrs"]
BAD_PAYLOADS = {
    **{f"without {name}": cbor(members(**{name: ...})) for name in MANDATORY},
    **{f"{name} twice": doubled(name, BASE[name]) for name in ("pcrs", "certificate", "cabundle", "nonce")},
    **{f"{name} null": cbor(members(**{name: None})) for name in MANDATORY},
    "an unknown member": cbor(members(extra=1)),
    "a register twice": cbor(members(pcrs=Raw(head(5, 17) + pairs([*PCRS.items(), (0, bytes(48))])))),
    "a register's number a bool": cbor(
        members(pcrs=Raw(head(5, 17) + pairs([*PCRS.items(), (True, bytes(48))])))
    ),
    "a negative register": cbor(members(pcrs={**PCRS, -1: bytes(48)})),
    "register 32": cbor(members(pcrs={**PCRS, 32: bytes(48)})),
    "a register named in text": cbor(members(pcrs={**PCRS, "16": bytes(48)})),
    "no register": cbor(members(pcrs={})),
    "registers as a list": cbor(members(pcrs=list(PCRS.values()))),
    **{
        f"without PCR{n}": cbor(members(pcrs={i: v for i, v in PCRS.items() if i != n}))
        for n in (0, 1, 2, 3, 4, 8)
    },
    **{f"a register of {n} bytes": cbor(members(pcrs={**PCRS, 16: bytes(n)})) for n in (0, 32, 47, 49, 64)},
    "digest SHA256": cbor(members(digest="SHA256")),
    "digest sha384": cbor(members(digest="sha384")),
    "digest as bytes": cbor(members(digest=b"SHA384")),
    "no bundle": cbor(members(cabundle=[])),
    "nine in the bundle": cbor(members(cabundle=[b"x"] * 9)),
    "an empty certificate": cbor(members(certificate=b"")),
    "a certificate of 1025 bytes": cbor(members(certificate=bytes(1025))),
    "a bundled certificate of 1025 bytes": cbor(members(cabundle=[bytes(1025)])),
    "a nonce of 513 bytes": cbor(members(nonce=bytes(513))),
    "a nonce as text": cbor(members(nonce="challenge")),
    "user data of 513 bytes": cbor(members(user_data=bytes(513))),
    "a public key of 1025 bytes": cbor(members(public_key=bytes(1025))),
    "an empty public key": cbor(members(public_key=b"")),
    "a time as a float": cbor(members(timestamp=Raw(b"\xfb" + bytes(8)))),
    "a time as a bignum": cbor(members(timestamp=Raw(b"\xc2\x46" + NOW_MS.to_bytes(6, "big")))),
    "a time as text": cbor(members(timestamp=str(NOW_MS))),
    "a time as a bool": cbor(members(timestamp=True)),
    "a time before 2020": cbor(members(timestamp=1_500_000_000_000)),
    "a time after 2100": cbor(members(timestamp=2**63)),
    "a tagged nonce": cbor(members(nonce=Raw(b"\xc2\x41\x01"))),
    "a nonce in chunks": cbor(members(nonce=Raw(b"\x5f\x41\x01\xff"))),
    "a nonce undefined": cbor(members(nonce=Raw(b"\xf7"))),
    "a head not in its shortest form": cbor(members(nonce=Raw(b"\x58\x01\x01"))),
    "a bundle of indefinite length": cbor(members(cabundle=Raw(b"\x9f\x41\x01\xff"))),
    "a module of another form": cbor(members(module_id="i-51a1a7ed000000000")),
    "a module with a line end": cbor(members(module_id="i-51a1a7ed000000000-enc51a1a7ed00000000\n")),
    "an empty module": cbor(members(module_id="")),
    "a member named in bytes": head(5, len(BASE) + 1) + pairs([*BASE.items(), (b"x", 1)]),
    "a map without an end": b"\xbf" + pairs(list(BASE.items())),
    "a map with bytes behind it": cbor(BASE) + b"\x00",
    "an odd map": b"\xbf" + pairs(list(BASE.items())) + cbor("nonce2") + b"\xff",
    "no map": cbor([1, 2]),
    "text that is not UTF-8": cbor(members(module_id=Raw(b"\x61\xff"))),
    "nested too deep": cbor(members(nonce=Raw(b"\x81" * 50 + b"\x00"))),
    "too many items": cbor(members(cabundle=[0] * 250)),
}


@pytest.mark.parametrize("name", BAD_PAYLOADS)
def test_a_malformed_payload_is_refused_though_truly_signed(name: str) -> None:
    assert own(document(BAD_PAYLOADS[name])) == "attest.payload"


@pytest.mark.parametrize(
    "payload",
    [
        cbor(BASE),
        b"\xbf" + pairs(list(BASE.items())) + b"\xff",
        cbor(members(nonce=..., user_data=..., public_key=...)),
        cbor(members(nonce=bytes(512), user_data=bytes(512), public_key=bytes(1024))),
        cbor(members(pcrs={**PCRS, 31: bytes(48)})),
    ],
    ids=["definite", "indefinite", "without the optional ones", "at the limits", "register 31"],
)
def test_every_form_that_modules_write_is_read(payload: bytes) -> None:
    assert own(document(payload)) == "ACCEPTED"


# --- the chain


def spoiled_chain(change: Any) -> str:
    links = default_links()
    links = change(links) or links
    certificates = made.chain(links)
    data = document(members(certificates), key=links[-1].key)
    return own(data, roots=[made.anchor_of(certificates[0])])


def _set(position: int, **changes: Any) -> Any:
    def change(links: list[Link]) -> None:
        for name, value in changes.items():
            setattr(links[position], name, value)

    return change


CRITICAL = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
BAD_CHAINS = {
    "an intermediate that is no authority": (_set(2, ca=False, path_length=None, cert_sign=True), "attest.chain_constraints"),
    "an intermediate that may not sign": (_set(2, cert_sign=False), "attest.chain_constraints"),
    "an intermediate whose constraints are not critical": (_set(2, basic_critical=False), "attest.chain_constraints"),
    "an intermediate without constraints": (_set(2, basic=False), "attest.chain_constraints"),
    "an intermediate without key usage": (_set(2, usage=False), "attest.chain_constraints"),
    "a path length exceeded": (_set(1, path_length=1), "attest.chain_path_length"),
    "a P-256 intermediate": (_set(2, curve="p256"), "attest.chain_algorithm"),
    "a P-256 leaf": (_set(4, curve="p256"), "attest.chain_algorithm"),
    "an intermediate signed with SHA-256": (_set(2, hash=hashes.SHA256()), "attest.chain_algorithm"),
    "a leaf signed with SHA-256": (_set(4, hash=hashes.SHA256()), "attest.chain_algorithm"),
    "an unknown critical extension": (_set(3, extra=[(CRITICAL, True)]), "attest.chain_extension"),
    "a leaf that is an authority": (_set(4, ca=True), "attest.chain_constraints"),
    "a leaf without constraints": (_set(4, basic=False), "attest.chain_constraints"),
    "a leaf without key usage": (_set(4, usage=False), "attest.chain_constraints"),
    "another issuer's name": (_set(3, issuer_name="elsewhere"), "attest.chain_order"),
    "an expired leaf": (_set(4, end=made.START - timedelta(seconds=1)), "attest.expired"),
    "a leaf that is not yet valid": (_set(4, start=made.START + timedelta(seconds=1)), "attest.not_yet_valid"),
    "an expired root": (_set(0, end=made.START - timedelta(seconds=1)), "attest.expired"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_a_chain_that_breaks_a_rule_is_refused(name: str) -> None:
    change, expected = BAD_CHAINS[name]
    assert spoiled_chain(change) == expected


def test_the_same_chain_unspoiled_is_accepted() -> None:
    assert spoiled_chain(lambda links: None) == "ACCEPTED"
    assert spoiled_chain(_set(3, extra=[(CRITICAL, False)])) == "ACCEPTED"


def test_a_leaf_cannot_issue_another_leaf() -> None:
    below = Link("below", ca=False, start=made.START - timedelta(seconds=3), end=made.START + made.LEAF_LIFE)

    def longer(links: list[Link]) -> list[Link]:
        for link in links:
            link.path_length = None
        return [*links, below]

    assert spoiled_chain(longer) == "attest.chain_constraints"


def test_a_certificate_signed_by_another_key_of_the_same_name_is_refused() -> None:
    certificates = list(made.default_chain())
    links = default_links()
    links[2].key_name = "impostor"
    certificates[3] = made.issue(links[3], links[2])
    assert own(document(members(certificates))) == "attest.chain_signature"


@pytest.mark.parametrize(
    ("bundle", "expected"),
    [
        (lambda b: b[::-1], "attest.root"),
        (lambda b: [b[0], *b[:0:-1]], "attest.chain_path_length"),
        (lambda b: b[1:], "attest.root"),
        (lambda b: [b[0], *b[2:]], "attest.chain_order"),
        (lambda b: b[:-1], "attest.chain_order"),
        (lambda b: [*b, b[-1]], "attest.chain_path_length"),
        (lambda b: payload_of(OLDER)["cabundle"], "attest.chain_order"),
    ],
    ids=[
        "reversed",
        "reversed below the root",
        "no root",
        "one missing",
        "last missing",
        "one twice",
        "another's",
    ],
)
def test_a_rearranged_bundle_is_refused_before_its_signature(bundle: Any, expected: str) -> None:
    payload = payload_of(GENUINE)
    payload["cabundle"] = bundle(payload["cabundle"])
    found = code(cbor([made.HEADER, {}, cbor(payload), ENVELOPE[3]]))
    assert found in (expected, "attest.chain_order", "attest.expired", "attest.not_yet_valid")


def test_the_leaf_of_another_genuine_document_is_refused() -> None:
    payload = payload_of(GENUINE)
    payload["certificate"] = payload_of(OLDER)["certificate"]
    assert code(cbor([made.HEADER, {}, cbor(payload), ENVELOPE[3]])) in (
        "attest.expired",
        "attest.chain_order",
    )


def test_a_time_moved_inside_the_window_breaks_the_signature_and_outside_the_chain() -> None:
    payload = payload_of(GENUINE)
    for moved, expected in (
        (1000, "attest.signature"),
        (10_860_000, "attest.expired"),
        (-60_000, "attest.not_yet_valid"),
    ):
        changed = {**payload, "timestamp": payload["timestamp"] + moved}
        raw = b"\xbf" + pairs(list(changed.items())) + b"\xff"
        assert code(cbor([made.HEADER, {}, raw, ENVELOPE[3]])) == expected


@pytest.mark.parametrize("der", [b"x", b"\x30\x00", bytes(100), made.default_chain()[-1] + b"\x00"])
def test_a_certificate_that_cannot_be_read_is_refused(der: bytes) -> None:
    assert own(document(members(certificate=der))) == "attest.certificate"


# --- debug, freshness, nonce


@pytest.mark.parametrize("register", [0, 1, 2])
def test_a_debug_enclave_is_refused_by_the_verifier_itself(register: int) -> None:
    assert own(document(members(pcrs={**PCRS, register: bytes(48)}))) == "attest.debug"


def test_a_document_is_stale_or_from_the_future_only_beyond_the_bounds() -> None:
    data = document(members())
    minute = 60_000
    assert own(data, at_ms=NOW_MS + 5 * minute, max_age_ms=5 * minute) == "ACCEPTED"
    assert own(data, at_ms=NOW_MS + 6 * minute, max_age_ms=5 * minute) == "attest.stale"
    assert own(data, at_ms=NOW_MS - minute) == "ACCEPTED"
    assert own(data, at_ms=NOW_MS - 2 * minute) == "attest.future"


@pytest.mark.parametrize(
    ("found", "asked"),
    [
        (b"other", b"challenge"),
        (b"chal", b"challenge"),
        (b"challenge", b"chal"),
        (None, b"challenge"),
        (b"", b"challenge"),
        (b"", b""),
        (None, b""),
        (b"challenge", b""),
    ],
)
def test_a_nonce_that_is_not_the_whole_challenge_is_refused(found: bytes | None, asked: bytes) -> None:
    assert own(document(members(nonce=found)), nonce=asked) == "attest.nonce"


def test_a_repeated_nonce_passes_and_an_unasked_one_is_a_skip() -> None:
    for nonce, status in ((b"challenge", "PASS"), (None, "SKIP")):
        result = judged(document(members()), roots=[SIMULATED], at_ms=NOW_MS, nonce=nonce)
        assert {c.id: c.status for c in result.checks}["nonce-1"] == status


def test_a_refused_document_gives_no_claims_and_its_code_is_raised() -> None:
    result = judged(GENUINE[:-1] + bytes([GENUINE[-1] ^ 1]))
    assert result.claims is None
    with pytest.raises(VerificationError) as raised:
        result.require()
    assert raised.value.code == "attest.signature"


def test_a_key_that_is_not_the_leafs_has_signed_nothing() -> None:
    assert own(document(members(), key=made.key_of("instance"))) == "attest.signature"


# --- hostile input


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=600))
def test_no_bytes_make_the_reader_raise_anything_but_its_own_error(data: bytes) -> None:
    for indefinite in (False, True):
        with suppress(InvalidMessage):
            reader.decode(data, indefinite_maps=indefinite)
    assert judged(data).claims is None
    assert own(document(data or b"\xa0")) == "attest.payload"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, len(made.default_chain()[-1]) - 1), st.binary(min_size=1, max_size=6))
def test_no_certificate_makes_the_verifier_raise(position: int, patch: bytes) -> None:
    """Behind a true signature and a trusted root: the certificates themselves are hostile."""
    leaf = made.default_chain()[-1]
    spoiled = leaf[:position] + patch + leaf[position + len(patch) :]
    found = own(document(members(certificate=spoiled[:1024])))
    assert found == "ACCEPTED" if spoiled == leaf else found.startswith("attest.")
    assert spoiled == leaf or found != "ACCEPTED"


def test_hostile_lengths_cost_no_time() -> None:
    hostile = [
        b"\x9a\xff\xff\xff\xff",
        b"\xbb" + b"\xff" * 8,
        b"\x5b" + b"\xff" * 8,
        b"\x84" + b"\x9b" + b"\x7f" * 8,
    ]
    hostile += [b"\xbf" * 16_000, b"\x81" * 16_000, b"\x98\xff" * 8000, b"\x84" + b"\x80" * 16_000]
    begin = time.process_time()
    for data in hostile:
        assert code(data) == "attest.envelope"
        assert own(document(data)) == "attest.payload"
    assert time.process_time() - begin < 1.0
