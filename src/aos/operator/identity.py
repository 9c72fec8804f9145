"""Who this operator is: its two keys, loaded from hex, key files or keystores, and refused where everybody has them.

Implements docs/spec/02-signing.md, "Keys". Errors name the setting and never repeat what it holds.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aos.adapters.keystore import KeyKind, load_keystore, read_password
from aos.core.keys import is_published, parse_key
from aos.core.signing import address_of
from aos.core.vrf import ecvrf_public_key
from aos.errors import ConfigError
from aos.operator.config import OperatorConfig, Warned, is_hex_key

_MAX_KEY_FILE_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """An operator's keys, 32 bytes each; ``node_id`` is the signing key's address, ``vrf_key`` the public VRF key."""

    node_id: str
    signer_key: bytes
    vrf_seed: bytes
    vrf_key: bytes

    def __repr__(self) -> str:
        return f"Identity(node_id={self.node_id!r})"


def load_identity(
    config: OperatorConfig, *, environment: Mapping[str, str] | None = None
) -> tuple[Identity, tuple[Warned, ...]]:
    """The operator's keys, and what there is to warn about.

    Raises ConfigError ``key.published`` (a key that everybody knows) and ``key.plain`` (a key written where its place
    belongs), both off a development network only; ``key.format``, ``key.mismatch`` (node_id is not signer_key's
    address), ``keystore.*``.
    """
    environ = os.environ if environment is None else environment
    signer = _load_key(config, "node.signer_key", config.signer_key, "signer", environ)
    vrf_seed = _load_key(config, "node.vrf_key", config.vrf_key, "vrf", environ)
    warnings: list[Warned] = []
    for name, key in (("node.signer_key", signer), ("node.vrf_key", vrf_seed)):
        if not is_published(key):
            continue
        if not config.development:
            raise ConfigError(
                "key.published",
                f"{name} is a published test key: anybody can sign with it",
                field=name,
                hint="make keys with `aos keys new`; on a development network set network.development: true",
            )
        warnings.append(
            Warned(key=name, reason="a published test key, accepted on this development network only")
        )
    for name, value in (("node.signer_key", config.signer_key), ("node.vrf_key", config.vrf_key)):
        if is_hex_key(value) and not config.development:
            raise ConfigError(
                "key.plain",
                f"{name} is the key itself, readable by whoever reads the configuration",
                field=name,
                hint="put it into a file (mode 600) or a keystore of `aos keys new`, and set file:PATH; plain keys are"
                " for development networks (network.development: true)",
            )
    address = address_of(signer)
    if address != config.node_id:
        raise ConfigError(
            "key.mismatch",
            f"node.node_id is {config.node_id}, but node.signer_key is the key of {address}",
            field="node.node_id",
        )
    identity = Identity(
        node_id=address, signer_key=signer, vrf_seed=vrf_seed, vrf_key=ecvrf_public_key(vrf_seed)
    )
    return identity, tuple(warnings)


def _load_key(
    config: OperatorConfig, name: str, value: str, kind: KeyKind, environ: Mapping[str, str]
) -> bytes:
    if is_hex_key(value):
        return parse_key(value, name=name)
    path = config.directory / Path(value.removeprefix("file:")).expanduser()
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            "keystore.unreadable",
            f"{name}: cannot read {path}: {error.strerror}",
            field=name,
            hint="64 hex digits, or file:PATH of a keystore from `aos keys new`",
        ) from error
    if data.lstrip()[:1] == b"{":
        given = config.keystore_password
        password = read_password(environ=environ) if given is None else given.encode()
        return load_keystore(path, password, kind=kind)
    if not stat.S_ISREG(mode) or mode & 0o077:
        raise ConfigError(
            "keystore.mode", f"{name}: others may read {path}", field=name, hint=f"run: chmod 600 {path}"
        )
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    return parse_key(text, name=name)
