"""Keys on disk: Web3 Secret Storage version 3 with scrypt (docs/spec/02-signing.md, "Keys").

Signing keys are ordinary keystores that any Ethereum tool reads. VRF seeds and log keys use the same format with a member
``"aos": {"kind": "vrf" or "log", "public_key": …}`` in place of the address. Passwords come from a file, the
environment or a prompt, never from a command line.
"""

import json
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from aos.core.encoding import parse_json_strict
from aos.core.signing import address_of
from aos.core.vrf import ecvrf_public_key
from aos.errors import AOSError, ConfigError, Unavailable

KeyKind = Literal["signer", "vrf", "log"]
"""``log``: an Ed25519 seed that signs a log's checkpoints, or cosigns those of others."""

SCRYPT_N = 1 << 17
MAX_SCRYPT_MEMORY = 1 << 29
MAX_FILE_BYTES = 16_384
MAX_PASSWORD_BYTES = 1024
PASSWORD_FILE_VARIABLE = "AOS_KEYSTORE_PASSWORD_FILE"  # noqa: S105  names of variables, not secrets
PASSWORD_VARIABLE = "AOS_KEYSTORE_PASSWORD"  # noqa: S105


def read_password(
    *,
    password_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    prompt: Callable[[], str] | None = None,
) -> bytes:
    """The password from, in this order: the file, the file that $AOS_KEYSTORE_PASSWORD_FILE names,
    $AOS_KEYSTORE_PASSWORD, the prompt. One trailing line end of a file is no part of it.

    Raises ConfigError ``keystore.password_missing``, ``keystore.password_empty``,
    ``keystore.password_too_long``, ``keystore.mode``, ``keystore.unreadable``.
    """
    environ = os.environ if environ is None else environ
    if password_file is None and PASSWORD_FILE_VARIABLE in environ:
        password_file = Path(environ[PASSWORD_FILE_VARIABLE])
    if password_file is not None:
        password = _read_private(password_file)
        password = password.removesuffix(b"\n").removesuffix(b"\r")
    elif PASSWORD_VARIABLE in environ:
        password = environ[PASSWORD_VARIABLE].encode("utf-8", "surrogateescape")
    elif prompt is not None:
        password = prompt().encode("utf-8")
    else:
        raise ConfigError(
            "keystore.password_missing",
            "no password for the keystore",
            hint=f"set {PASSWORD_FILE_VARIABLE} to a file that only you can read",
        )
    if not password:
        raise ConfigError("keystore.password_empty", "the password is empty")
    if len(password) > MAX_PASSWORD_BYTES:
        raise ConfigError("keystore.password_too_long", f"a password has at most {MAX_PASSWORD_BYTES} bytes")
    return password


def create_keystore(
    path: Path, key: bytes, password: bytes, *, kind: KeyKind, scrypt_n: int = SCRYPT_N
) -> str:
    """Write ``key`` (32 bytes), encrypted, to a new file of mode 0600; returns its address or
    Ed25519 public key (hex).

    The file appears whole or not at all, and never replaces another. ``scrypt_n`` is a power of two; 2^17
    takes 128 MiB. Raises ConfigError ``key.invalid``, ``keystore.exists``, ``keystore.password_empty``;
    Unavailable ``keystore.write``.
    """
    from eth_keyfile.keyfile import create_keyfile_json

    if not password:
        raise ConfigError("keystore.password_empty", "the password is empty")
    public = _public(key, kind)
    document: dict[str, Any] = create_keyfile_json(key, password, kdf="scrypt", iterations=scrypt_n)
    if kind != "signer":
        del document["address"]  # of the seed as a signing key: it would name a key that nobody may use
        document["aos"] = {"kind": kind, "public_key": public}
    else:
        document["address"] = public.removeprefix("0x")
    _write_new(path, json.dumps(document, indent=1).encode("ascii") + b"\n")
    return public


def load_keystore(path: Path, password: bytes, *, kind: KeyKind) -> bytes:
    """The 32-byte key in a keystore file of this kind.

    Raises ConfigError ``keystore.unreadable``, ``keystore.mode`` (others may read it), ``keystore.format``,
    ``keystore.kind``, ``keystore.too_costly``, ``keystore.wrong_password``, ``keystore.mismatch`` (the key
    inside is not the one that the file names).
    """
    from eth_keyfile.keyfile import decode_keyfile_json

    data = _read_private(path)
    try:
        document = parse_json_strict(data, max_bytes=MAX_FILE_BYTES)
    except AOSError as error:
        raise ConfigError("keystore.format", f"{path} is not a keystore: {error.message}") from error
    if not isinstance(document, dict) or document.get("version") != 3:
        raise ConfigError("keystore.format", f"{path} is not a version 3 keystore")
    mark = document.get("aos")
    found = mark.get("kind") if isinstance(mark, dict) else "signer"
    if found != kind:
        raise ConfigError("keystore.kind", f"{path} holds a {found} key, a {kind} key is needed")
    _check_cost(path, document)
    try:
        key = bytes(decode_keyfile_json(document, password))
    except ValueError as error:
        if "MAC mismatch" in str(error):
            raise ConfigError("keystore.wrong_password", f"the password does not open {path}") from None
        raise ConfigError("keystore.format", f"{path} is not a keystore: {error}") from error
    except (KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise ConfigError("keystore.format", f"{path} is not a keystore") from error
    named = mark.get("public_key") if isinstance(mark, dict) else document.get("address")
    public = _public(key, kind)
    if named is not None and str(named).lower().removeprefix("0x") != public.removeprefix("0x"):
        raise ConfigError("keystore.mismatch", f"the key inside {path} is not the one it names")
    return key


def new_key() -> bytes:
    """32 bytes from the operating system, valid as a signing key and as a VRF seed."""
    while True:
        key = secrets.token_bytes(32)
        try:
            address_of(key)
        except ConfigError:
            continue
        return key


def _public(key: bytes, kind: KeyKind) -> str:
    return address_of(key) if kind == "signer" else ecvrf_public_key(key).hex()


def _check_cost(path: Path, document: dict[str, Any]) -> None:
    """A keystore from elsewhere must not decide how much memory and time opening it takes."""
    crypto = document.get("crypto", document.get("Crypto"))
    if not isinstance(crypto, dict) or crypto.get("kdf") != "scrypt":
        raise ConfigError("keystore.format", f"{path} is not a scrypt keystore")
    params = crypto.get("kdfparams")
    numbers = [params.get(name) for name in ("n", "r", "p", "dklen")] if isinstance(params, dict) else [None]
    if any(isinstance(x, bool) or not isinstance(x, int) or x < 1 for x in numbers):
        raise ConfigError("keystore.format", f"{path} has no scrypt parameters")
    n, r, p, dklen = (x for x in numbers if isinstance(x, int))
    if 128 * n * r > MAX_SCRYPT_MEMORY or p > 16 or dklen != 32:
        raise ConfigError("keystore.too_costly", f"{path} asks for too much work to open")


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError("keystore.unreadable", f"{path} is not a file")
            if status.st_mode & 0o077:
                raise ConfigError("keystore.mode", f"others may read {path}", hint=f"run: chmod 600 {path}")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError("keystore.unreadable", f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError("keystore.unreadable", f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return data


def _write_new(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike rename, refuses where the name is taken
        finally:
            temporary.unlink()
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError:
        raise ConfigError("keystore.exists", f"{path} exists already and is not replaced") from None
    except OSError as error:
        raise Unavailable("keystore.write", f"cannot write {path}: {error.strerror}") from error
