"""``aos dispatcher init``: a network's keys, genesis and public files."""

import asyncio
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

import yaml

from aos.adapters import model_store
from aos.cli import voice
from aos.core.encoding import tagged_hash
from aos.errors import ConfigError, InvalidMessage

_KEYS = ("signer_key", "vrf_key", "log_key", "beacon_seed_file")


def found(config: Path, models: list[Path], *, epoch_ms: int, project: str) -> dict[str, Any]:
    """Found a network with the configuration file ``config``; what a person must know of it, the token among it.

    Raises RuleViolation ``network.founded``, ConfigError, Unavailable, and what a broken model file raises.
    """
    from aos.dispatcher.setup import found_first_network
    from aos.engine import read_manifest

    manifests: dict[str, bytes] = {}
    for path in models:
        name = model_store.check_name(path.name)
        if name in manifests:
            raise InvalidMessage("model.name", f"two files are named {name}", field="--model")
        if not path.is_file():
            raise voice.usage(
                f"there is no file {path}", hint="name a GGUF file; `aos model pull` downloads one"
            )
        with model_store.naming(path):
            manifests[name] = read_manifest(path, progress=voice.Progress(f"digesting {name}")).json()
    made = _make_keys(config)
    founded, trust = asyncio.run(
        found_first_network(
            config,
            models={name: tagged_hash("model", manifest) for name, manifest in manifests.items()},
            manifests=manifests,
            genesis_ms=time.time_ns() // 1_000_000,
            epoch_ms=epoch_ms,
            project=project,
        )
    )
    files = {"network.json": founded.network, "trust.json": trust}
    for name, value in files.items():
        (config.parent / name).write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return {
        "network": founded.network["network"],
        "dispatcher": founded.network["dispatcher"],
        "keys_made": made,
        "network_file": str(config.parent / "network.json"),
        "trust_file": str(config.parent / "trust.json"),
        "project": founded.project,
        "token": founded.token,
        "webhook_secret": founded.webhook_secret,
    }


def _make_keys(config: Path) -> list[str]:
    """Make the key files that the configuration names and that do not exist; their paths."""
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            "config.file",
            f"cannot read {config}: {type(error).__name__}",
            hint="docs/template/config-dispatcher.yaml is a commented template",
        ) from error
    made = []
    for name in _KEYS:
        value = settings.get(name) if isinstance(settings, dict) else None
        if not isinstance(value, str) or (name != "beacon_seed_file" and not value.startswith("file:")):
            continue  # plain keys, and what is no setting, are for the dispatcher to judge
        path = config.parent / value.removeprefix("file:")
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        made.append(str(path))
    return made
