"""A hostile reading of the verifiers: forgeries made in bulk, none of which may be accepted.

``AOS_READING=N`` tries N times as many; docs/log.md has the counts of the last long one. Chains of the tests' own are
SIMULATED; a general path builder is the second opinion about them.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attest_documents as made
import pytest
from attest_documents import NOW_MS, VECTORS, Link, cbor, default_links, document, head, members, pairs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)
from test_attest_platforms import HOPPER, MILAN, TDX, TURIN, flipped, nvidia, quote, snp
from test_attest_policy import (
    BASE,
    OWN_IMAGE,
    RULES,
    SGX_IMAGE,
    SIMULATED,
    SNP_IMAGE,
    TDX_IMAGE,
    policy,
)

from aos.core.attest import cbor as reader
from aos.core.attest.evidence import judge
from aos.core.attest.nitro import verify_nitro
from aos.core.attest.policy import load_policy
from aos.core.attest.result import AWS_NITRO, AttestationResult
from aos.core.attest.snp import verify_snp
from aos.core.encoding import b64u_encode
from aos.errors import AOSError, ConfigError

TIMES = int(os.environ.get("AOS_READING", "1"))
LATER_MS = 1_790_000_000_000
NITRO = VECTORS / "nitro"
NAMES = (
    "og_2026-02-12_indef",
    "automata2_2023-09-28",
    "evervault_2022-10-13_signed",
    "marlin_2025-04-29_pcr16",
    "automata1_2024-08-16_DEBUG",
    "marlin_custom_WRONGROOT",
)
DOCUMENTS = {name: (NITRO / f"{name}.cbor").read_bytes() for name in NAMES}
GOOD = NAMES[:4]


def accepted(data: bytes, **options: Any) -> bool:
    result = verify_nitro(data, **({"roots": [AWS_NITRO], "at_ms": LATER_MS} | options))
    return result.claims is not None


def parts(data: bytes) -> list[Any]:
    value = reader.decode(data)
    assert isinstance(value, list)
    return value


def payload_of(data: bytes) -> dict[str, Any]:
    value = reader.decode(parts(data)[2], indefinite_maps=True)
    assert isinstance(value, dict)
    return value


def test_the_genuine_ones_are_what_they_are() -> None:
    assert {name: accepted(data) for name, data in DOCUMENTS.items()} == {
        name: name in GOOD for name in NAMES
    }


# --- bits


@pytest.mark.parametrize("name", GOOD)
def test_no_flipped_bit_of_a_genuine_document_is_accepted(name: str) -> None:
    data = DOCUMENTS[name]
    chosen = random.Random(name).sample(range(8 * len(data)), min(60 * TIMES, 8 * len(data)))
    assert [bit for bit in chosen if accepted(flipped(data, bit))] == []


KINDS: dict[str, tuple[bytes, Callable[[bytes], AttestationResult], bool]] = {
    "milan": (MILAN, lambda data: snp("milan", data), True),
    "turin": (TURIN, lambda data: snp("turin", data), True),
    "hopper": (HOPPER, nvidia, True),
    "tdx": (TDX[:4936], lambda data: quote("tdx_v4", data), False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_of_another_kind_says_something_else(kind: str) -> None:
    """A quote carries certificates as text, some of whose bytes no signature covers; what it says stays the same."""
    data, judged, all_covered = KINDS[kind]
    genuine = judged(data).require()
    for bit in random.Random(kind).sample(range(8 * len(data)), min(25 * TIMES, 8 * len(data))):
        claims = judged(flipped(data, bit)).claims
        if claims is not None:
            assert not all_covered, bit
            assert (claims.measurements, claims.report_data, claims.device, claims.tcb_status) == (
                genuine.measurements,
                genuine.report_data,
                genuine.device,
                genuine.tcb_status,
            )


# --- splices


def test_no_splice_of_two_genuine_documents_is_accepted() -> None:
    for first, second in itertools.permutations(NAMES, 2):
        own, other = parts(DOCUMENTS[first]), parts(DOCUMENTS[second])
        for chosen in range(1, 15):  # which of the four parts are the other's
            mixed = [other[i] if chosen >> i & 1 else own[i] for i in range(4)]
            whole = cbor(mixed)
            if whole not in DOCUMENTS.values():
                assert not accepted(whole), (first, second, chosen)
        mine, theirs = payload_of(DOCUMENTS[first]), payload_of(DOCUMENTS[second])
        for name in mine.keys() & theirs.keys():
            if mine[name] != theirs[name]:
                changed = cbor([own[0], {}, cbor({**mine, name: theirs[name]}), own[3]])
                assert not accepted(changed), (first, second, name)
        for at in range(len(mine["cabundle"])):
            bundle = list(mine["cabundle"])
            bundle[at] = theirs["cabundle"][at % len(theirs["cabundle"])]
            if bundle != mine["cabundle"]:
                changed = cbor([own[0], {}, cbor({**mine, "cabundle": bundle}), own[3]])
                assert not accepted(changed), (first, second, at)


def test_every_arrangement_of_a_genuine_bundle_but_its_own_is_refused() -> None:
    payload, whole = payload_of(DOCUMENTS[GOOD[0]]), parts(DOCUMENTS[GOOD[0]])
    every = [*payload["cabundle"], payload["certificate"]]
    for length in range(1, len(every) + 1):
        for order in itertools.permutations(every, length):
            changed = {**payload, "cabundle": list(order[:-1]), "certificate": order[-1]}
            if list(order) != every:
                assert not accepted(cbor([whole[0], {}, cbor(changed), whole[3]]))


# --- encodings


def heads(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Where each head of one item begins and ends, and its argument."""
    position, left = 0, 1
    while left:
        first = data[position]
        extra = first & 31
        size = 0 if extra < 24 else 1 << (extra - 24)
        end = position + 1 + size
        value = extra if not size else int.from_bytes(data[position + 1 : end], "big")
        yield position, end, value
        major = first >> 5
        left += {4: value, 5: 2 * value}.get(major, 0) - 1
        position = end + (value if major in (2, 3) else 0)


def longer_heads(data: bytes) -> Iterator[bytes]:
    """``data`` with one head in a longer form than need be, in every way."""
    for begin, end, value in heads(data):
        for extra, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
            if size > end - begin - 1 and value < 1 << 8 * size and data[begin] >> 5 != 7:
                yield (
                    data[:begin]
                    + bytes([data[begin] & 0xE0 | extra])
                    + value.to_bytes(size, "big")
                    + data[end:]
                )


def test_no_other_encoding_of_a_genuine_envelope_is_accepted() -> None:
    for name in GOOD:
        data = DOCUMENTS[name]
        for changed in longer_heads(data):
            assert not accepted(changed)
        for tag in (0, 17, 18, 61, 98, 55799):
            assert not accepted(head(6, tag) + data)
        for byte in range(256):
            assert not accepted(bytes([byte]) + data[1:]) or bytes([byte]) == data[:1]
            assert not accepted(data + bytes([byte]))


def test_no_other_encoding_of_a_truly_signed_payload_is_accepted() -> None:
    payload = cbor(members())
    roots = [made.anchor_of(made.default_chain()[0])]
    assert accepted(document(payload), roots=roots, at_ms=NOW_MS)
    for changed in longer_heads(payload):
        assert not accepted(document(changed), roots=roots, at_ms=NOW_MS)


def test_no_member_may_be_there_twice_wherever_and_whatever_it_says() -> None:
    base = list(members().items())
    roots = [made.anchor_of(made.default_chain()[0])]
    for (name, value), at in itertools.product(base, range(len(base) + 1)):
        for said in (value, None, b"other"):
            doubled = [*base[:at], (name, said), *base[at:]]
            for whole in (head(5, len(doubled)) + pairs(doubled), b"\xbf" + pairs(doubled) + b"\xff"):
                assert not accepted(document(whole), roots=roots, at_ms=NOW_MS)


# --- time


def test_every_certificate_ends_on_its_own_millisecond() -> None:
    seconds = timedelta(seconds=1)
    for position, (offset, expected) in itertools.product(range(5), ((0, True), (1, False))):
        for edge in ("start", "end"):
            links = default_links()
            setattr(
                links[position],
                edge,
                made.START + (seconds * offset if edge == "start" else -seconds * offset),
            )
            chain = made.chain(links)
            roots = [made.anchor_of(chain[0])]
            data = document(members(chain))
            assert accepted(data, roots=roots, at_ms=NOW_MS) == expected, (position, edge)
    links = default_links()
    links[4].end = made.START
    chain = made.chain(links)
    roots = [made.anchor_of(chain[0])]
    assert not accepted(document(members(chain, timestamp=NOW_MS + 1)), roots=roots, at_ms=NOW_MS)


@pytest.mark.parametrize(("early", "expected"), [(60_000, True), (60_001, False)])
def test_the_future_begins_on_its_own_millisecond(early: int, expected: bool) -> None:
    roots = [made.anchor_of(made.default_chain()[0])]
    assert accepted(document(members()), roots=roots, at_ms=NOW_MS - early) == expected


# --- chains against a second opinion


def general(chain: list[bytes]) -> bool:
    """A general path builder's verdict, at the documents' time."""
    loaded = [x509.load_der_x509_certificate(der) for der in chain]
    required = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.CRITICAL, None)
    verifier = (
        PolicyBuilder()
        .store(Store(loaded[:1]))
        .time(datetime.fromtimestamp(NOW_MS // 1000, UTC))
        .max_chain_depth(8)
        .extension_policies(ca_policy=required, ee_policy=ExtensionPolicy.permit_all())
        .build_client_verifier()
    )
    try:
        found = verifier.verify(loaded[-1], loaded[1:-1]).chain
    except VerificationError:
        return False
    return len(found) == len(loaded)


def changed_link(link: Link, chance: random.Random) -> None:
    day = timedelta(days=1)
    name, values = chance.choice(
        [
            ("ca", [True, False]),
            ("path_length", [None, 0, 1, 2, 3]),
            ("basic_critical", [True, False]),
            ("basic", [True, False]),
            ("usage", [True, False]),
            ("cert_sign", [None, True, False]),
            ("curve", ["p384", "p256"]),
            ("hash", [hashes.SHA384(), hashes.SHA256(), hashes.SHA512()]),
            ("start", [made.START - day, made.START, made.START + day]),
            ("end", [made.START - day + day / 2, made.START, made.START + day]),
            ("issuer_name", ["", "root", "regional", "elsewhere"]),
            ("key_name", ["", "impostor"]),
        ]
    )
    setattr(link, name, chance.choice(values))
    if not link.ca:
        link.path_length = None


def test_what_we_accept_a_general_path_builder_accepts_too() -> None:
    chance = random.Random(11)
    ours = theirs = 0
    for _ in range(60 * TIMES):
        links = default_links()
        for _ in range(chance.randint(1, 3)):
            changed_link(links[chance.randrange(5)], chance)
        if chance.random() < 0.2:
            links.insert(chance.randrange(1, 4), Link("more", path_length=chance.choice([None, 0, 1, 2])))
        try:
            chain = made.chain(links)
        except ValueError:  # the maker refuses what has no encoding
            continue
        data = document(members(chain), key=links[-1].key) if links[-1].curve == "p384" else None
        if data is None or len(chain[0]) > 1024:
            continue
        mine = accepted(data, roots=[made.anchor_of(chain[0])], at_ms=NOW_MS)
        second = general(chain)
        ours, theirs = ours + mine, theirs + second
        assert not mine or second
    assert ours > 0, "the reading tries chains that hold, too"
    assert theirs >= ours


EXTENSIONS = [
    x509.NameConstraints([x509.DNSName("example.org")], None),
    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    x509.PolicyConstraints(0, None),
    x509.InhibitAnyPolicy(0),
    x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("1.2.3"), None)]),
    x509.SubjectAlternativeName([x509.DNSName("example.org")]),
    x509.TLSFeature([x509.TLSFeatureType.status_request]),
    x509.OCSPNoCheck(),
    x509.PrecertPoison(),
    x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
]


@pytest.mark.parametrize("extension", EXTENSIONS, ids=lambda e: type(e).__name__)
def test_no_critical_extension_that_we_do_not_apply_is_accepted_anywhere(
    extension: x509.ExtensionType,
) -> None:
    for position in range(5):
        links = default_links()
        links[position].extra = [(extension, True)]
        chain = made.chain(links)
        assert not accepted(document(members(chain)), roots=[made.anchor_of(chain[0])], at_ms=NOW_MS)


def leaf_with(key: Any) -> list[bytes]:
    """The default chain, its leaf for ``key``."""
    links = default_links()
    start, leaf, usage = made.START, links[4], x509.KeyUsage(*[True] + [False] * 8)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(made._named("leaf"))
        .issuer_name(made._named("instance"))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start - timedelta(seconds=3))
        .not_valid_after(leaf.end)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(usage, critical=True)
        .sign(links[3].key, hashes.SHA384())
    )
    return [*made.default_chain()[:4], certificate.public_bytes(Encoding.DER)]


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.BrainpoolP384R1()),
    ],
    ids=["RSA", "Ed25519", "P-256", "P-521", "secp256k1", "brainpoolP384"],
)
def test_no_key_of_another_kind_signs_a_document(key: Any) -> None:
    data = document(members(leaf_with(key)))
    result = verify_nitro(data, roots=[made.anchor_of(made.default_chain()[0])], at_ms=NOW_MS)
    assert result.refusal is not None
    assert result.refusal.code in ("attest.chain_algorithm", "attest.certificate", "attest.unreadable")


@pytest.mark.parametrize(
    "digest", [hashes.SHA256(), hashes.SHA512(), hashes.SHA3_384()], ids=lambda d: d.name
)
def test_a_document_signed_over_another_digest_is_refused(digest: hashes.HashAlgorithm) -> None:
    payload = cbor(members())
    signed = cbor(["Signature1", made.HEADER, b"", payload])
    r, s = made.decode_dss_signature(made.key_of("leaf").sign(signed, ec.ECDSA(digest)))
    data = cbor([made.HEADER, {}, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big")])
    assert not accepted(data, roots=[made.anchor_of(made.default_chain()[0])], at_ms=NOW_MS)


def test_a_signature_over_the_payload_alone_or_another_context_is_refused() -> None:
    payload, key = cbor(members()), made.key_of("leaf")
    roots = [made.anchor_of(made.default_chain()[0])]
    for signed in (
        payload,
        cbor(["Signature", made.HEADER, b"", payload]),
        cbor(["Signature1", made.HEADER, b"x", payload]),
        cbor(["Signature1", b"", b"", payload]),
        cbor(["Signature1", made.HEADER, payload]),
    ):
        r, s = made.decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384())))
        data = cbor([made.HEADER, {}, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big")])
        assert not accepted(data, roots=roots, at_ms=NOW_MS)


def test_no_mix_of_two_chips_certificates_carries_a_report() -> None:
    folder = VECTORS / "snp"
    names = [f"{product}_{kind}" for product in ("milan", "turin") for kind in ("vcek", "ask", "ark")]
    pem = {name: (folder / f"{name}.pem").read_bytes() for name in names}
    held = 0
    for chosen in itertools.product(names, repeat=3):
        for product, report in (("milan", MILAN), ("turin", TURIN)):
            whole = b"".join(pem[name] for name in chosen)
            result = verify_snp(report, certificates_pem=whole, at_ms=1_780_000_000_000)
            right = chosen == tuple(f"{product}_{kind}" for kind in ("vcek", "ask", "ark"))
            assert (result.claims is not None) == right, (product, chosen)
            held += right
    assert held == 2


# --- policies


FULL: dict[str, Any] = {
    **BASE,
    **SIMULATED,
    "tees": ["nitro", "simulated", "tdx", "sgx", "snp", "nvidia"],
    "tdx": [TDX_IMAGE],
    "sgx": [SGX_IMAGE],
    "snp": [SNP_IMAGE],
    "nvidia": [{"driver": "590.12", "vbios": "96.00.A5.00.01"}],
    "intel": RULES,
}
FREE = {"name", "nonce_required", "max_age_ms", "max_weight_per_device"}
"""Where more than one value of one kind has a meaning."""


def holes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every place of a policy with what could mean "any": missing (...), null, empty, zero, and other spellings."""
    if path:
        yield path, ...
        yield path, None
        yield path, [] if not isinstance(value, list) else ""
        yield path, {}
        yield path, ""
    if isinstance(value, str) and path[-1] not in ("type", "name"):
        for other in (
            value.upper(),
            f" {value}",
            f"{value}\n",
            f"0x{value}",
            value[:-1],
            f"{value}0",
            "*",
            value[::2],
        ):
            if other != value:
                yield path, other
    if isinstance(value, list):
        yield path, [*value, None]
        yield path, [*value, {}]
        yield path, [[]]
    for key, below in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from holes(below, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    at = copy
    for key in path[:-1]:
        at = at[key]
    if new is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return copy


def test_a_policy_with_a_hole_is_no_policy() -> None:
    assert policy(**FULL).tees
    loaded = []
    for path, new in holes(FULL):
        try:
            load_policy(json.dumps(changed(FULL, path, new)).encode())
        except ConfigError:
            continue
        loaded.append((path, new))
    for path, new in loaded:
        if path[0] in FREE:
            continue
        # What is left: an element of a list that may be shorter, and words that stand for themselves.
        may_be_fewer = new is ... and isinstance(path[-1], int) and len(parent(FULL, path)) > 1
        never_needed = path[:2] == ("intel", "rejected_advisories")
        another_number = path[-1] in ("driver", "vbios")
        assert may_be_fewer or never_needed or another_number, (path, new)


def parent(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def test_a_document_is_accepted_under_no_policy_that_does_not_name_all_of_its_image() -> None:
    data = document(members())
    for register in ("pcr0", "pcr1", "pcr2"):
        for other in ("11" * 48, OWN_IMAGE[register][:-1] + "f", OWN_IMAGE[register][::-1]):
            rules = policy(**{**SIMULATED, "nitro": [{**OWN_IMAGE, register: other}]})
            if other != OWN_IMAGE[register]:
                assert judge(data, rules, at_ms=NOW_MS).claims is None


def test_a_file_of_one_kind_is_never_read_as_another() -> None:
    """Every pair of kinds: the evidence of one under the name of the other."""
    base = {"type": "aos.attest.evidence", "v": 1, "certificates": "", "collateral": ""}
    rules = policy(**FULL)
    samples = {"nitro": DOCUMENTS[GOOD[0]], "tdx": TDX, "snp": MILAN, "nvidia": HOPPER}
    pem = (VECTORS / "snp/milan_vcek.pem").read_text()
    more = {"snp": {"certificates": pem}, "nvidia": {"certificates": pem}}
    collateral = (VECTORS / "tdx-sgx/tdx_v4_collateral.json").read_text()
    more |= {kind: {"collateral": collateral} for kind in ("tdx", "sgx")}
    for real, said in itertools.product(samples, ("nitro", "tdx", "sgx", "snp", "nvidia")):
        if real == said:
            continue
        value = {**base, "tee": said, "document": b64u_encode(samples[real]), **more.get(said, {})}
        try:
            result = judge(json.dumps(value).encode(), rules, at_ms=1_750_500_000_000)
        except AOSError:
            continue
        assert result.claims is None, (real, said)
