"""RFC 9381 ECVRF: the RFC's examples with their intermediate values, and everything that must not verify."""

import json
from hashlib import sha512
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl import bindings

from aos.core import vrf
from aos.core.vrf import (
    ecvrf_proof_to_hash,
    ecvrf_prove,
    ecvrf_public_key,
    ecvrf_verify,
    encode_to_curve,
    nonce,
    prove_possession,
    validate_public_key,
    verify_possession,
)
from aos.errors import AOSError, ConfigError, VerificationError

ROOT = Path(__file__).parents[2] / "vectors"
RFC = json.loads((ROOT / "external/rfc9381/ecvrf-edwards25519-sha512-tai.json").read_text())["vectors"]
CASES = json.loads((ROOT / "aos/vrf/verify.json").read_text())["cases"]
SEED = bytes(range(32))
ADDRESS = "0x" + "11" * 20


@pytest.mark.parametrize("v", RFC, ids=lambda v: str(v["example"]))
def test_rfc_9381_examples_with_intermediate_values(v: dict[str, Any]) -> None:
    seed, alpha, pi = (bytes.fromhex(v[name]) for name in ("sk", "alpha", "pi"))
    public_key = ecvrf_public_key(seed)
    h = encode_to_curve(public_key, alpha)
    k = nonce(sha512(seed).digest()[32:], h)
    assert public_key.hex() == v["pk"]
    assert h.hex() == v["h"]
    assert k.hex() == v["k"]
    assert bindings.crypto_scalarmult_ed25519_base_noclamp(k).hex() == v["u"]
    assert bindings.crypto_scalarmult_ed25519_noclamp(k, h).hex() == v["v"]
    assert ecvrf_prove(seed, alpha).hex() == v["pi"]
    assert ecvrf_verify(public_key, pi, alpha).hex() == v["beta"]
    assert ecvrf_proof_to_hash(pi).hex() == v["beta"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_vectors(case: dict[str, Any]) -> None:
    pk, pi, alpha = (bytes.fromhex(case[name]) for name in ("pk", "pi", "alpha"))
    if case["error"] is None:
        assert ecvrf_verify(pk, pi, alpha).hex() == case["beta"]
    else:
        with pytest.raises(VerificationError) as caught:
            ecvrf_verify(pk, pi, alpha)
        assert caught.value.code == case["error"]


def test_every_single_bit_of_the_proof_matters() -> None:
    public_key, pi = ecvrf_public_key(SEED), ecvrf_prove(SEED, b"alpha")
    for bit in range(80 * 8):
        bent = bytearray(pi)
        bent[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerificationError):
            ecvrf_verify(public_key, bytes(bent), b"alpha")


@settings(max_examples=25)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=64))
def test_an_honest_proof_verifies_and_is_the_only_one_made(seed: bytes, alpha: bytes) -> None:
    pi = ecvrf_prove(seed, alpha)
    assert ecvrf_prove(seed, alpha) == pi
    assert ecvrf_verify(ecvrf_public_key(seed), pi, alpha) == ecvrf_proof_to_hash(pi)


@settings(max_examples=50)
@given(st.binary(min_size=80, max_size=80))
def test_random_bytes_are_no_proof(pi: bytes) -> None:
    with pytest.raises(VerificationError):
        ecvrf_verify(ecvrf_public_key(SEED), pi, b"alpha")


def test_proof_to_hash_decodes_as_strictly_as_verify() -> None:
    pi = ecvrf_prove(SEED, b"alpha")
    for bent, code in (
        (pi[:-1], "vrf.proof_length"),
        (b"\x01" + bytes(31) + pi[32:], "vrf.point_invalid"),
        (pi[:48] + b"\xff" * 32, "vrf.scalar_range"),
    ):
        with pytest.raises(VerificationError) as caught:
            ecvrf_proof_to_hash(bent)
        assert caught.value.code == code


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33), bytes(64)])
def test_a_seed_has_32_bytes(seed: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        ecvrf_prove(seed, b"")
    assert caught.value.code == "key.invalid"


def test_possession_is_bound_to_network_operator_and_key() -> None:
    public_key = ecvrf_public_key(SEED)
    pi = prove_possession(SEED, network="net", address=ADDRESS)
    assert verify_possession(public_key, pi, network="net", address=ADDRESS.upper().replace("X", "x")) == (
        public_key
    )
    for network, address in (("other", ADDRESS), ("net", "0x" + "12" * 20)):
        with pytest.raises(VerificationError) as caught:
            verify_possession(public_key, pi, network=network, address=address)
        assert caught.value.code == "vrf.proof_invalid"
    stolen = ecvrf_public_key(bytes(32))
    with pytest.raises(VerificationError) as caught:
        verify_possession(stolen, pi, network="net", address=ADDRESS)
    assert caught.value.code == "vrf.proof_invalid"
    with pytest.raises(VerificationError) as caught:
        verify_possession(bytes(32), pi, network="net", address=ADDRESS)
    assert caught.value.code == "vrf.key_invalid"
    with pytest.raises(AOSError) as malformed:
        verify_possession(public_key, pi, network="net", address="0x12")
    assert malformed.value.code == "address.format"


def test_a_proof_about_a_draw_is_no_proof_of_possession() -> None:
    public_key = ecvrf_public_key(SEED)
    alpha = vrf.possession_alpha("net", ADDRESS, public_key)
    pi = ecvrf_prove(SEED, alpha.replace(b"vrf-possession", b"draw"))
    with pytest.raises(VerificationError):
        verify_possession(public_key, pi, network="net", address=ADDRESS)


def test_validate_public_key_returns_the_key() -> None:
    public_key = ecvrf_public_key(SEED)
    assert validate_public_key(public_key) == public_key
