"""Keystores: what is written opens again, elsewhere too; what is exposed, bent or too costly does not."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from aos.adapters.keystore import create_keystore, load_keystore, new_key, read_password
from aos.core.keys import PUBLISHED_KEYS, is_published, parse_key
from aos.core.signing import address_of
from aos.core.vrf import ecvrf_public_key
from aos.errors import ConfigError

N = 1 << 10
KEY = bytes(range(1, 33))


def code_of(call: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return caught.value.code


@pytest.mark.parametrize("kind", ["signer", "vrf"])
def test_a_key_comes_back_and_the_file_is_private(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "keys" / "k.json"
    public = create_keystore(path, KEY, b"pw", kind=kind, scrypt_n=N)
    assert public == (address_of(KEY) if kind == "signer" else ecvrf_public_key(KEY).hex())
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["k.json"]
    assert KEY.hex() not in path.read_text()
    assert load_keystore(path, b"pw", kind=kind) == KEY


def test_eth_account_reads_a_signer_keystore_and_the_other_way_round(tmp_path: Path) -> None:
    from eth_account import Account

    ours = tmp_path / "ours.json"
    create_keystore(ours, KEY, b"pw", kind="signer", scrypt_n=N)
    assert bytes(Account.decrypt(ours.read_text(), "pw")) == KEY
    theirs = tmp_path / "theirs.json"
    theirs.write_text(json.dumps(Account.encrypt(KEY, "pw", kdf="scrypt", iterations=N)))
    theirs.chmod(0o600)
    assert load_keystore(theirs, b"pw", kind="signer") == KEY


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    create_keystore(path, KEY, b"pw", kind="signer", scrypt_n=N)
    before = path.read_bytes()
    assert code_of(lambda: create_keystore(path, new_key(), b"pw", kind="signer", scrypt_n=N)) == (
        "keystore.exists"
    )
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["k.json"]


def test_a_wrong_password_or_kind_is_refused(tmp_path: Path) -> None:
    signer, vrf = tmp_path / "s.json", tmp_path / "v.json"
    create_keystore(signer, KEY, b"pw", kind="signer", scrypt_n=N)
    create_keystore(vrf, KEY, b"pw", kind="vrf", scrypt_n=N)
    assert code_of(lambda: load_keystore(signer, b"px", kind="signer")) == "keystore.wrong_password"
    assert code_of(lambda: load_keystore(signer, b"pw", kind="vrf")) == "keystore.kind"
    assert code_of(lambda: load_keystore(vrf, b"pw", kind="signer")) == "keystore.kind"
    assert code_of(lambda: load_keystore(tmp_path / "none", b"pw", kind="vrf")) == "keystore.unreadable"
    signer.chmod(0o640)
    assert code_of(lambda: load_keystore(signer, b"pw", kind="signer")) == "keystore.mode"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": 4}, "keystore.format"),
        ({"crypto": None}, "keystore.format"),
        ({"crypto.kdf": "pbkdf2"}, "keystore.format"),
        ({"crypto.kdfparams": {}}, "keystore.format"),
        ({"crypto.kdfparams.n": 1 << 30}, "keystore.too_costly"),
        ({"crypto.kdfparams.p": 1000}, "keystore.too_costly"),
        ({"crypto.kdfparams.n": True}, "keystore.format"),
        ({"crypto.mac": "00" * 32}, "keystore.wrong_password"),
        ({"crypto.ciphertext": "zz"}, "keystore.format"),
        ({"address": "00" * 20}, "keystore.mismatch"),
        ({"aos": {"kind": "vrf"}}, "keystore.kind"),
    ],
)
def test_a_bent_keystore_is_refused(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    path = tmp_path / "k.json"
    create_keystore(path, KEY, b"pw", kind="signer", scrypt_n=N)
    document = json.loads(path.read_text())
    for name, value in change.items():
        *parents, last = name.split(".")
        target = document
        for parent in parents:
            target = target[parent]
        target[last] = value
    path.write_text(json.dumps(document))
    assert code_of(lambda: load_keystore(path, b"pw", kind="signer")) == code


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b"{" * 100, b'{"version":3,"version":3}', b"x" * 20_000]
)
def test_what_is_no_keystore_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "k.json"
    path.write_bytes(data)
    path.chmod(0o600)
    assert code_of(lambda: load_keystore(path, b"pw", kind="signer")) in {
        "keystore.format",
        "keystore.unreadable",
    }


def test_the_password_comes_from_file_then_environment_then_prompt(tmp_path: Path) -> None:
    file = tmp_path / "pw"
    file.write_bytes(b"from file\n")
    file.chmod(0o600)
    both = {"AOS_KEYSTORE_PASSWORD_FILE": str(file), "AOS_KEYSTORE_PASSWORD": "from env"}
    assert read_password(environ=both) == b"from file"
    assert read_password(password_file=file, environ={}) == b"from file"
    assert read_password(environ={"AOS_KEYSTORE_PASSWORD": "from env"}, prompt=lambda: "p") == b"from env"
    assert read_password(environ={}, prompt=lambda: "p\u00e9") == "p\u00e9".encode()
    assert code_of(lambda: read_password(environ={})) == "keystore.password_missing"
    assert code_of(lambda: read_password(environ={}, prompt=lambda: "")) == "keystore.password_empty"
    assert code_of(lambda: read_password(environ={}, prompt=lambda: "x" * 1025)) == (
        "keystore.password_too_long"
    )
    file.chmod(0o644)
    assert code_of(lambda: read_password(password_file=file, environ={})) == "keystore.mode"


def test_published_keys_are_known() -> None:
    config = parse_key("0x77f4b2fbf3f32687f03d84d323bd5cb443f53b0fc338b51c24e319a520c87217")
    assert is_published(config)
    assert is_published(bytes(31) + b"\x01")
    assert not is_published(new_key())
    assert "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266" in {address_of(k) for k in PUBLISHED_KEYS}


@pytest.mark.parametrize(
    "text", ["", "0x", "zz" * 32, "ab" * 31, "ab" * 33, "ab" * 32 + "\n", " " + "ab" * 32]
)
def test_a_key_is_64_hex_digits_and_never_repeated_in_the_error(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_key(text, name="signer_key")
    assert (caught.value.code, caught.value.field) == ("key.format", "signer_key")
    assert not text.strip() or text.strip() not in str(caught.value)
