"""EIP-191 and statement signatures: agreement with eth-account, and every malformed or foreign signature."""

from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct

from aos.core.encoding import b64u_decode, b64u_encode, canonical_json, tagged_hash
from aos.core.signing import (
    CURVE_ORDER,
    STATEMENT_PREFIX,
    address_bytes,
    address_of,
    keccak256,
    recover_eip191,
    sign_eip191,
    sign_statement,
    statement_hash,
    to_checksum,
    verify_eip191,
    verify_statement,
)
from aos.errors import AOSError, ConfigError, InvalidMessage, VerificationError

KEY = bytes(range(1, 33))
OTHER = bytes(range(2, 34))
STATEMENT: dict[str, Any] = {"type": "aos.test", "v": 1, "n": 5, "text": "caf\u00e9"}


def test_keccak_is_not_sha3() -> None:
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


@pytest.mark.parametrize("message", [b"", b"hello", b"x" * 1000, "\u20ac".encode(), bytes(range(256))])
@pytest.mark.parametrize("key", [KEY, OTHER, bytes(31) + b"\x01"])
def test_signatures_are_those_of_eth_account(key: bytes, message: bytes) -> None:
    ours = sign_eip191(key, message)
    assert ours == bytes(Account.sign_message(encode_defunct(message), key).signature)
    assert to_checksum(address_of(key)) == Account.from_key(key).address
    assert verify_eip191(message, ours, Account.from_key(key).address) == address_of(key)


@pytest.mark.parametrize(
    "address",
    [
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    ],
)
def test_checksums_of_eip_55(address: str) -> None:
    assert to_checksum(address.lower()) == address


SIG = sign_eip191(KEY, b"m")
R, S = SIG[:32], int.from_bytes(SIG[32:64], "big")


@pytest.mark.parametrize(
    ("signature", "code"),
    [
        (b"", "signature.empty"),
        (SIG[:-1], "signature.length"),
        (SIG + b"\0", "signature.length"),
        (SIG[:64], "signature.length"),
        (SIG[:64] + bytes([SIG[64] - 27]), "signature.recovery_id"),
        (SIG[:64] + bytes([29]), "signature.recovery_id"),
        (SIG[:64] + bytes([37]), "signature.recovery_id"),
        (R + (CURVE_ORDER - S).to_bytes(32, "big") + bytes([55 - SIG[64]]), "signature.high_s"),
        (R + bytes(32) + b"\x1b", "signature.scalar_range"),
        (bytes(32) + SIG[32:], "signature.scalar_range"),
        (CURVE_ORDER.to_bytes(32, "big") + SIG[32:], "signature.scalar_range"),
        (R + CURVE_ORDER.to_bytes(32, "big") + b"\x1b", "signature.scalar_range"),
        (bytes(65), "signature.recovery_id"),
        ((5).to_bytes(32, "big") + SIG[32:], "signature.invalid"),
        (SIG[:64] + bytes([55 - SIG[64]]), "signature.wrong_signer"),
    ],
)
def test_a_bad_signature_is_refused_by_name(signature: bytes, code: str) -> None:
    with pytest.raises(AOSError) as caught:
        verify_eip191(b"m", signature, address_of(KEY))
    assert caught.value.code == code


def test_another_message_or_signer_is_refused() -> None:
    for message, address in ((b"n", address_of(KEY)), (b"m", address_of(OTHER))):
        with pytest.raises(VerificationError) as caught:
            verify_eip191(message, SIG, address)
        assert caught.value.code == "signature.wrong_signer"


@pytest.mark.parametrize(
    "address", ["", "0x", "11" * 20, "0x" + "1" * 39, "0x" + "g" * 40, "0x" + "1" * 40 + "\n"]
)
def test_an_address_has_one_form(address: str) -> None:
    for call in (address_bytes, to_checksum, lambda a: verify_eip191(b"m", SIG, a)):
        with pytest.raises(InvalidMessage) as caught:
            call(address)
        assert caught.value.code == "address.format"


@pytest.mark.parametrize("key", [b"", bytes(32), bytes(31), KEY + b"\0", CURVE_ORDER.to_bytes(32, "big")])
def test_a_key_out_of_range_is_refused(key: bytes) -> None:
    for call in (lambda: sign_eip191(key, b""), lambda: address_of(key)):
        with pytest.raises(ConfigError) as caught:
            call()
        assert caught.value.code == "key.invalid"


def test_a_statement_is_signed_over_its_canonical_bytes_behind_the_prefix() -> None:
    signature = sign_statement(KEY, STATEMENT)
    assert verify_statement(STATEMENT, signature, to_checksum(address_of(KEY))) == address_of(KEY)
    assert verify_statement(dict(reversed(STATEMENT.items())), signature, address_of(KEY))
    message = b"AOS/statement/v1\n" + canonical_json(STATEMENT)
    assert recover_eip191(message, b64u_decode(signature)) == address_of(KEY)
    assert statement_hash(STATEMENT) == tagged_hash("statement", canonical_json(STATEMENT))


@pytest.mark.parametrize(
    "change", [{"n": 6}, {"n": "5"}, {"v": 2}, {"type": "aos.other"}, {"extra": None}, {"text": "cafe\u0301"}]
)
def test_every_member_of_a_statement_is_bound(change: dict[str, Any]) -> None:
    signature = sign_statement(KEY, STATEMENT)
    with pytest.raises(VerificationError) as caught:
        verify_statement({**STATEMENT, **change}, signature, address_of(KEY))
    assert caught.value.code == "signature.wrong_signer"
    assert statement_hash({**STATEMENT, **change}) != statement_hash(STATEMENT)


def test_a_signature_without_the_prefix_signs_no_statement() -> None:
    bare = b64u_encode(sign_eip191(KEY, canonical_json(STATEMENT)))
    with pytest.raises(VerificationError) as caught:
        verify_statement(STATEMENT, bare, address_of(KEY))
    assert caught.value.code == "signature.wrong_signer"
    assert not STATEMENT_PREFIX.startswith(b"{")


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ({"v": 1}, "statement.type"),
        ({"type": 5, "v": 1}, "statement.type"),
        ({"type": "", "v": 1}, "statement.type"),
        ({"type": "t"}, "statement.version"),
        ({"type": "t", "v": True}, "statement.version"),
        ({"type": "t", "v": "1"}, "statement.version"),
        ({"type": "t", "v": 0}, "statement.version"),
        ({"type": "t", "v": 1, "x": 0.5}, "encoding.float"),
    ],
)
def test_what_is_no_statement_is_neither_signed_nor_verified(statement: dict[str, Any], code: str) -> None:
    for call in (
        lambda: sign_statement(KEY, statement),
        lambda: statement_hash(statement),
        lambda: verify_statement(statement, b64u_encode(SIG), address_of(KEY)),
    ):
        with pytest.raises(InvalidMessage) as caught:
            call()
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("signature", "code"),
    [("", "signature.empty"), ("!", "encoding.base64url"), ("AAAA", "signature.length")],
)
def test_a_statement_signature_has_one_form(signature: str, code: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        verify_statement(STATEMENT, signature, address_of(KEY))
    assert caught.value.code == code
