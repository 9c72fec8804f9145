"""ECVRF-EDWARDS25519-SHA512-TAI of RFC 9381 (docs/spec/03-vrf.md).

Prove, verify, and a proof that an operator holds the key it registers. Group operations are libsodium's; the
verification procedure is section 5.3 with key validation always on. Stricter than the RFC in one point: keys
and Gamma must lie in the prime-order subgroup, so that a proof has one encoding. It does not say what is
drawn: 04-sortition does.
"""

from hashlib import sha512
from typing import NoReturn

from nacl import bindings
from nacl.exceptions import CryptoError

from aos.core.encoding import lp, tag
from aos.core.signing import address_bytes
from aos.errors import ConfigError, VerificationError

SEED_BYTES = 32
KEY_BYTES = 32
PROOF_BYTES = 80
OUTPUT_BYTES = 64

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_SUITE = b"\x03"
_IDENTITY = b"\x01" + b"\0" * 31


def ecvrf_public_key(seed: bytes) -> bytes:
    """The 32-byte public key Y of a 32-byte Ed25519 seed (RFC 8032, 5.1.5)."""
    return _secret(seed)[1]


def ecvrf_prove(seed: bytes, alpha_string: bytes) -> bytes:
    """The proof pi_string (80 bytes: Gamma ‖ c ‖ s) of ``alpha_string`` (section 5.1). Deterministic."""
    x, public_key, nonce_key = _secret(seed)
    # 2, 3
    h_string = encode_to_curve(public_key, alpha_string)
    # 4
    gamma = bindings.crypto_scalarmult_ed25519_noclamp(x, h_string)
    # 5
    k = nonce(nonce_key, h_string)
    # 6
    u = bindings.crypto_scalarmult_ed25519_base_noclamp(k)
    v = bindings.crypto_scalarmult_ed25519_noclamp(k, h_string)
    c = _challenge(public_key, h_string, gamma, u, v)
    # 7
    product = bindings.crypto_core_ed25519_scalar_mul(c + b"\0" * 16, x)
    s = bindings.crypto_core_ed25519_scalar_add(k, product)
    # 8
    return gamma + c + s


def ecvrf_verify(public_key: bytes, pi_string: bytes, alpha_string: bytes) -> bytes:
    """Check the proof and return beta_string, 64 bytes (section 5.3, validate_key = TRUE).

    Raises VerificationError ``vrf.key_invalid``, ``vrf.proof_length``, ``vrf.point_invalid``,
    ``vrf.scalar_range``, ``vrf.proof_invalid``.
    """
    # 1, 2, 3
    validate_public_key(public_key)
    # 4, 5, 6
    gamma, c, s = _decode_proof(pi_string)
    # 7
    h_string = encode_to_curve(public_key, alpha_string)
    # 8: U = s*B - c*Y
    u = bindings.crypto_core_ed25519_sub(_times_base(s), _times(c, public_key))
    # 9: V = s*H - c*Gamma
    v = bindings.crypto_core_ed25519_sub(_times(s, h_string), _times(c, gamma))
    # 10, 11
    if _challenge(public_key, h_string, gamma, u, v) != c[:16]:
        raise VerificationError("vrf.proof_invalid", "the VRF proof does not fit key and input")
    return _gamma_to_hash(gamma)


def ecvrf_proof_to_hash(pi_string: bytes) -> bytes:
    """beta_string of a proof that is *already verified* or self-made (section 5.2). Raises as its decoding
    does."""
    return _gamma_to_hash(_decode_proof(pi_string)[0])


def validate_public_key(public_key: bytes) -> bytes:
    """Return the key where it is a canonical point of the prime-order subgroup, not the identity (section
    5.4.5).

    Raises VerificationError ``vrf.key_invalid``.
    """
    if len(public_key) != KEY_BYTES or not _is_subgroup_point(public_key):
        raise VerificationError(
            "vrf.key_invalid", "the VRF key is no point of the prime-order subgroup", field="vrf_key"
        )
    return public_key


def possession_alpha(network: str, address: str, public_key: bytes) -> bytes:
    """What is proven when a VRF key is registered: the tag "vrf-possession", network id, 20-byte address,
    key."""
    return tag("vrf-possession") + lp(network.encode("utf-8")) + address_bytes(address) + public_key


def prove_possession(seed: bytes, *, network: str, address: str) -> bytes:
    """Proof (80 bytes) that the holder of ``seed`` registers its key for this operator of this network."""
    return ecvrf_prove(seed, possession_alpha(network, address, ecvrf_public_key(seed)))


def verify_possession(public_key: bytes, pi_string: bytes, *, network: str, address: str) -> bytes:
    """Check such a proof; returns the public key. Raises as ``ecvrf_verify``."""
    validate_public_key(public_key)
    ecvrf_verify(public_key, pi_string, possession_alpha(network, address, public_key))
    return public_key


def encode_to_curve(salt: bytes, alpha_string: bytes) -> bytes:
    """ECVRF_encode_to_curve_try_and_increment (section 5.4.1.1): the 32-byte encoding of H."""
    for counter in range(256):
        digest = sha512(_SUITE + b"\x01" + salt + alpha_string + bytes([counter]) + b"\0").digest()
        candidate = digest[:32]
        if _is_canonical(candidate):
            try:
                point = _times_cofactor(candidate)
            except CryptoError:
                continue  # not on the curve
            if point != _IDENTITY:
                return point
    _invalid("vrf.proof_invalid", "no point found for this input")  # one in 2^256


def nonce(nonce_key: bytes, h_string: bytes) -> bytes:
    """ECVRF_nonce_generation_RFC8032 (section 5.4.2.2): k as 32 bytes little-endian."""
    return bindings.crypto_core_ed25519_scalar_reduce(sha512(nonce_key + h_string).digest())


def _secret(seed: bytes) -> tuple[bytes, bytes, bytes]:
    """(x mod L, Y, second half of the hashed seed)."""
    if len(seed) != SEED_BYTES:
        raise ConfigError("key.invalid", "a VRF seed is 32 bytes")
    hashed = sha512(seed).digest()
    clamped = bytes([hashed[0] & 0xF8]) + hashed[1:31] + bytes([hashed[31] & 0x7F | 0x40])
    # Reduced: every point it multiplies has order L, and scalar arithmetic takes reduced scalars.
    x = bindings.crypto_core_ed25519_scalar_reduce(clamped + b"\0" * 32)
    return x, bindings.crypto_scalarmult_ed25519_base_noclamp(x), hashed[32:]


def _decode_proof(pi_string: bytes) -> tuple[bytes, bytes, bytes]:
    """(Gamma, c as 32 bytes, s), section 5.4.4."""
    if len(pi_string) != PROOF_BYTES:
        _invalid("vrf.proof_length", "a VRF proof has 80 bytes")
    gamma, c, s = pi_string[:32], pi_string[32:48] + b"\0" * 16, pi_string[48:]
    if not _is_subgroup_point(gamma):
        _invalid("vrf.point_invalid", "Gamma is no point of the prime-order subgroup")
    if int.from_bytes(s, "little") >= _L:
        _invalid("vrf.scalar_range", "s is not below the group's order")
    return gamma, c, s


def _challenge(*points: bytes) -> bytes:
    return sha512(_SUITE + b"\x02" + b"".join(points) + b"\0").digest()[:16]


def _gamma_to_hash(gamma: bytes) -> bytes:
    return sha512(_SUITE + b"\x03" + _times_cofactor(gamma) + b"\0").digest()


def _is_canonical(point: bytes) -> bool:
    """RFC 8032, 5.1.3: y below p, and no sign bit where x is 0 (y = 1 or -1)."""
    encoded = int.from_bytes(point, "little")
    y = encoded & (2**255 - 1)
    return y < _P and not (encoded >> 255 and y in (1, _P - 1))


def _is_subgroup_point(point: bytes) -> bool:
    return _is_canonical(point) and bindings.crypto_core_ed25519_is_valid_point(point)


def _times_cofactor(point: bytes) -> bytes:
    """8 times any point on the curve; libsodium's scalar multiplication takes only points of order L."""
    for _ in range(3):
        point = bindings.crypto_core_ed25519_add(point, point)
    return point


def _times(scalar: bytes, point: bytes) -> bytes:
    # libsodium refuses a zero scalar; s and c may be zero in a hostile proof.
    return _IDENTITY if not any(scalar) else bindings.crypto_scalarmult_ed25519_noclamp(scalar, point)


def _times_base(scalar: bytes) -> bytes:
    return _IDENTITY if not any(scalar) else bindings.crypto_scalarmult_ed25519_base_noclamp(scalar)


def _invalid(code: str, message: str) -> NoReturn:
    raise VerificationError(code, message, field="pi")
