"""A local network's state directory: where everything is, and the keys and files that are made once.

Nothing here starts a process. Every secret is a file of mode 0600; the directory itself is 0700. Running ``prepare`` again on the
same directory changes nothing that exists.
"""

import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aos.adapters.enclave_image import simulated_pcrs
from aos.adapters.simulated_nsm import create_simulated_platform, load_simulated_platform
from aos.core.encoding import b64u_encode
from aos.core.registration import make_registration
from aos.core.signing import address_of
from aos.core.statements import Registration, Signed
from aos.core.vrf import ecvrf_public_key
from aos.errors import ConfigError

NodeKind = Literal["opml", "tee"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """One party's two secrets, 32 bytes each."""

    signer: bytes
    vrf: bytes

    @property
    def address(self) -> str:
        return address_of(self.signer)

    @property
    def vrf_key(self) -> bytes:
        return ecvrf_public_key(self.vrf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator of a local network: its keys, its files, its database's name."""

    name: str
    kind: NodeKind
    keys: Keys
    directory: Path
    database: str

    @property
    def config(self) -> Path:
        return self.directory / "config-operator.yaml"


class Layout:
    """Paths under ``root``, and what is made there once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def network_file(self) -> Path:
        return self.root / "network.json"

    @property
    def trust_file(self) -> Path:
        return self.root / "trust.json"

    @property
    def client_file(self) -> Path:
        return self.root / "client.json"

    @property
    def dispatcher_dir(self) -> Path:
        return self.root / "dispatcher"

    @property
    def platform_file(self) -> Path:
        return self.root / "simulated-platform.key"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    def make(self) -> None:
        """Create the directories. Raises ConfigError ``local.state_dir``."""
        try:
            for path in (self.root, self.dispatcher_dir, self.cache, self.root / "logs"):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                "local.state_dir",
                f"cannot make the state directory {self.root}: {error.strerror}",
                hint="choose another with --state-dir",
            ) from error

    def network_id(self) -> str:
        """``aos-local-`` and eight hex digits, chosen once."""
        return read_or_make(self.root / "network-id", lambda: f"aos-local-{secrets.token_hex(4)}")

    def dispatcher_keys(self) -> Keys:
        return _keys(self.dispatcher_dir)

    def beacon_seed_file(self) -> Path:
        path = self.dispatcher_dir / "beacon.seed"
        read_or_make(path, lambda: secrets.token_hex(32))
        return path

    def log_key_file(self) -> Path:
        """The seed that signs the log's checkpoints, made at the first call."""
        path = self.dispatcher_dir / "log.key"
        read_or_make(path, lambda: secrets.token_hex(32))
        return path

    def node(self, name: str, kind: NodeKind) -> Node:
        """The operator ``name``; its keys are made at the first call."""
        directory = self.root / name
        directory.mkdir(mode=0o700, exist_ok=True)
        return Node(
            name=name,
            kind=kind,
            keys=_keys(directory),
            directory=directory,
            database=name.replace("-", "_"),
        )

    def tee_trust(self) -> dict[str, Any]:
        """What to believe of the SIMULATED enclaves: the platform's root, made at the first call, and the image."""
        if not self.platform_file.exists():
            root = create_simulated_platform(self.platform_file)
        else:
            root = load_simulated_platform(self.platform_file).root
        registers = {f"pcr{index}": value.hex() for index, value in simulated_pcrs().items()}
        return {
            "tee_roots": [{"tee": "simulated", "root": b64u_encode(root)}],
            "tee_measurements": [{"tee": "simulated", **registers}],
        }


def registration(
    node: Node, *, network: str, dispatcher: str, model_ids: tuple[bytes, ...], time_ms: int
) -> Signed[Registration]:
    """The signed request of ``node`` to be entered in the registry."""
    return make_registration(
        signer_key=node.keys.signer,
        vrf_seed=node.keys.vrf,
        network=network,
        dispatcher=dispatcher,
        job_type=node.kind,
        models=model_ids,
        time_ms=time_ms,
    )


def write_private(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` with mode 0600, whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON, mode 0600, whole or not at all."""
    write_private(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_or_make(path: Path, make: Any) -> str:
    """The text of ``path`` without its line end; where there is no such file, it is written from ``make()``."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        text: str = make()
        write_private(path, text + "\n")
        return text


def _keys(directory: Path) -> Keys:
    signer = read_or_make(directory / "signer.key", lambda: secrets.token_hex(32))
    vrf = read_or_make(directory / "vrf.key", lambda: secrets.token_hex(32))
    return Keys(signer=bytes.fromhex(signer), vrf=bytes.fromhex(vrf))
