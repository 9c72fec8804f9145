"""secp256k1 signatures in Ethereum's personal_sign form (docs/spec/02-signing.md).

EIP-191 signatures over bytes, and over *statements*: canonical JSON objects with ``type`` and ``v``, signed
behind a prefix of their own, so that a statement can never pass as a link message or a transaction. Keys are
arguments; storing them is ``aos.adapters.keystore``.
"""

import re
from collections.abc import Mapping
from typing import Any

from coincurve import PrivateKey, PublicKey

from aos.core.encoding import b64u_decode, b64u_encode, canonical_json, tagged_hash
from aos.errors import ConfigError, InvalidMessage, VerificationError

SIGNATURE_BYTES = 65
STATEMENT_PREFIX = b"AOS/statement/v1\n"
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z", re.ASCII)


def keccak256(data: bytes) -> bytes:
    """Keccak-256 as Ethereum uses it (32 bytes); not SHA3-256."""
    # Loaded at the first signature: importing it costs a tenth of the command line's whole start time.
    from Crypto.Hash import keccak

    return keccak.new(digest_bits=256, data=data).digest()


def eip191_digest(message: bytes) -> bytes:
    """The 32 bytes that personal_sign signs for ``message``."""
    return keccak256(b"\x19Ethereum Signed Message:\n%d" % len(message) + message)


def address_of(private_key: bytes) -> str:
    """Lower-case address of a 32-byte private key. Raises ConfigError ``key.invalid``."""
    return _address(_private(private_key).public_key)


def address_bytes(address: str) -> bytes:
    """The 20 bytes of an address, whatever its letter case. Raises InvalidMessage ``address.format``."""
    if not _ADDRESS.match(address):
        raise InvalidMessage("address.format", "an address is 0x and 40 hex digits", field="address")
    return bytes.fromhex(address[2:])


def to_checksum(address: str) -> str:
    """The address in the mixed case of EIP-55."""
    digits = address_bytes(address).hex()
    digest = keccak256(digits.encode("ascii")).hex()
    return "0x" + "".join(d.upper() if int(h, 16) >= 8 else d for d, h in zip(digits, digest, strict=False))


def sign_eip191(private_key: bytes, message: bytes) -> bytes:
    """65 bytes r ‖ s ‖ v, v 27 or 28, s in the lower half, nonce as in RFC 6979. Raises ConfigError
    ``key.invalid``."""
    return sign_digest(private_key, eip191_digest(message))


def sign_digest(private_key: bytes, digest: bytes) -> bytes:
    """As ``sign_eip191``, over the 32 bytes of a digest that somebody made for signing."""
    signature = _private(private_key).sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes([27 + signature[64]])


def recover_eip191(message: bytes, signature: bytes) -> str:
    """Lower-case address whose key signed ``message``.

    Any well-formed signature recovers to some address: the result means nothing until it is compared. Raises
    InvalidMessage ``signature.empty``, ``signature.length``, ``signature.recovery_id`` (v is neither 27 nor
    28) and VerificationError ``signature.scalar_range``, ``signature.high_s``, ``signature.invalid``.
    """
    return recover_digest(eip191_digest(message), signature)


def recover_digest(digest: bytes, signature: bytes) -> str:
    """As ``recover_eip191``, over the 32 bytes that were signed: of a message its ``eip191_digest``."""
    if not signature:
        raise InvalidMessage("signature.empty", "the signature is empty", field="signature")
    if len(signature) != SIGNATURE_BYTES:
        raise InvalidMessage("signature.length", "a signature has 65 bytes", field="signature")
    if signature[64] not in (27, 28):
        raise InvalidMessage("signature.recovery_id", "the last byte must be 27 or 28", field="signature")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    if not (0 < r < CURVE_ORDER and 0 < s < CURVE_ORDER):
        raise VerificationError("signature.scalar_range", "r or s is out of range", field="signature")
    if s > CURVE_ORDER // 2:
        raise VerificationError("signature.high_s", "s is in the upper half of its range", field="signature")
    recoverable = signature[:64] + bytes([signature[64] - 27])
    try:
        key = PublicKey.from_signature_and_message(recoverable, digest, hasher=None)
    except Exception as error:  # coincurve raises a bare Exception where no key fits
        raise VerificationError(
            "signature.invalid", "no key can have signed this", field="signature"
        ) from error
    return _address(key)


def verify_eip191(message: bytes, signature: bytes, address: str) -> str:
    """Check that the key of ``address`` signed ``message``; returns the address in lower case.

    Raises as ``recover_eip191``; InvalidMessage ``address.format``; VerificationError
    ``signature.wrong_signer``.
    """
    expected = "0x" + address_bytes(address).hex()
    if recover_eip191(message, signature) != expected:
        raise VerificationError(
            "signature.wrong_signer", f"the signature is not that of {expected}", field="signature"
        )
    return expected


def statement_bytes(statement: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a statement: an object with a ``type`` (text) and a ``v`` (integer, at least 1).

    Raises InvalidMessage ``statement.type``, ``statement.version``, ``encoding.*``.
    """
    if not isinstance(statement.get("type"), str) or not statement["type"]:
        raise InvalidMessage("statement.type", "a statement needs a type", field="type")
    version = statement.get("v")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InvalidMessage("statement.version", "a statement needs a version", field="v")
    return canonical_json(statement)


def statement_hash(statement: Mapping[str, Any]) -> bytes:
    """Hash of a statement (32 bytes): tagged "statement" over its canonical bytes."""
    return tagged_hash("statement", statement_bytes(statement))


def sign_statement(private_key: bytes, statement: Mapping[str, Any]) -> str:
    """base64url of the EIP-191 signature over ``STATEMENT_PREFIX`` and the statement's canonical bytes."""
    return b64u_encode(sign_eip191(private_key, STATEMENT_PREFIX + statement_bytes(statement)))


def verify_statement(statement: Mapping[str, Any], signature: str, address: str) -> str:
    """Check that the key of ``address`` signed ``statement``; returns the address in lower case.

    Raises InvalidMessage ``statement.*``, ``encoding.*``, ``signature.empty``, ``signature.length``,
    ``signature.recovery_id``; VerificationError ``signature.*``.
    """
    message = STATEMENT_PREFIX + statement_bytes(statement)
    return verify_eip191(message, b64u_decode(signature), address)


def _private(key: bytes) -> PrivateKey:
    if len(key) != 32 or not 0 < int.from_bytes(key, "big") < CURVE_ORDER:
        raise ConfigError("key.invalid", "a signing key is 32 bytes, above zero and below the curve's order")
    return PrivateKey(key)


def _address(key: PublicKey) -> str:
    return "0x" + keccak256(key.format(compressed=False)[1:])[12:].hex()
