"""Joining a network by commands: `aos operator register`, `aos registry list`, `aos registry admit`, on real processes."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from peers.dispatcher_process import DispatcherProcess
from peers.engine_case import NETWORK, secret, write_config
from peers.hub_peer import MODEL, MODEL_ID

from aos.adapters.processes import free_port
from aos.core.encoding import b64u_encode
from aos.core.signing import address_of
from aos.dispatcher.setup import found_network

NODE = address_of(secret("joining"))
MODEL_TEXT = b64u_encode(MODEL_ID)


def aos(*arguments: object) -> dict[str, Any]:
    """The JSON document of a command; its exit code under ``exit``."""
    done = subprocess.run(
        [sys.executable, "-m", "aos.cli.main", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return {**json.loads(done.stdout), "exit": done.returncode}


class Joining:
    """A dispatcher without operators, and the configuration of one that wants to join."""

    def __init__(self, directory: Path, dispatcher: Path, link_url: str) -> None:
        self.dispatcher = dispatcher
        self.values: dict[str, dict[str, Any]] = {
            "db": {"pg_db_url": "postgres://nobody@127.0.0.1:1/none"},
            "queue": {"queue_url": "redis://127.0.0.1:1"},
            "net": {"rest_url": "127.0.0.1:1", "workers": [], "dispatcher_url": link_url},
            "node": {
                "node_id": NODE,
                "signer_key": "file:operator.key",
                "vrf_key": "file:operator-vrf.key",
                "dispatcher_address": address_of(secret("signer.key")),
            },
            "network": {"id": NETWORK},
        }
        for name, key in (("operator.key", "joining"), ("operator-vrf.key", "joining vrf")):
            (directory / name).write_text(secret(key).hex())
            (directory / name).chmod(0o600)
        self.operator = directory / "config-operator.yaml"
        self.write()

    def write(self) -> None:
        self.operator.write_text(yaml.safe_dump(self.values))


@pytest.fixture
async def joining(tmp_path: Path, pg_url: str) -> Any:
    port = free_port()
    config = write_config(tmp_path, pg_url, listen=f"127.0.0.1:{port}", open_registration=False)
    await found_network(
        config,
        registrations=[],
        models={MODEL: MODEL_ID},
        genesis_ms=time.time_ns() // 1_000_000,
        epoch_ms=600_000,
        project="tests",
    )
    process = DispatcherProcess(config, port).start()
    yield Joining(tmp_path, config, process.link_url)
    process.stop()


def test_an_operator_registers_waits_and_is_admitted(joining: Joining) -> None:
    assert aos("registry", "list", "-c", joining.dispatcher)["result"] == []
    done = aos("operator", "register", "-c", joining.operator, "--model-id", MODEL_TEXT)
    assert done["result"] == {
        "node_id": NODE,
        "network": NETWORK,
        "job_type": "opml",
        "models": [MODEL_TEXT],
        "admitted": False,
    }
    (waiting,) = aos("registry", "list", "-c", joining.dispatcher)["result"]
    assert (waiting["node_id"], waiting["admitted"]) == (NODE, False)
    admitted = aos("registry", "admit", NODE.upper().replace("0X", "0x"), "-c", joining.dispatcher)["result"]
    assert (admitted["node_id"], admitted["admitted"], admitted["counts_from"]) == (NODE, True, 3)
    assert aos("operator", "register", "-c", joining.operator, "--model-id", MODEL_TEXT)["result"]["admitted"]


def test_registering_again_changes_what_it_offers_and_not_since_when(joining: Joining) -> None:
    aos("operator", "register", "-c", joining.operator, "--model-id", MODEL_TEXT)
    before = aos("registry", "admit", NODE, "-c", joining.dispatcher)["result"]
    other = b64u_encode(bytes(32))
    joining.values["node"]["node_type"] = "tee"
    joining.write()
    done = aos("operator", "register", "-c", joining.operator, "--model-id", MODEL_TEXT, "--model-id", other)
    assert done["result"]["models"] == [MODEL_TEXT, other]
    (after,) = aos("registry", "list", "-c", joining.dispatcher)["result"]
    assert after == before | {"job_types": ["tee"], "models": 2}


def test_what_cannot_be_registered_is_refused_by_name(joining: Joining) -> None:
    code = {
        "no worker": aos("operator", "register", "-c", joining.operator),
        "no model id": aos("operator", "register", "-c", joining.operator, "--model-id", "x"),
        "nobody of that name": aos("registry", "admit", "0x" + "11" * 20, "-c", joining.dispatcher),
    }
    joining.values["node"]["dispatcher_address"] = NODE
    joining.write()
    code["another dispatcher"] = aos("operator", "register", "-c", joining.operator, "--model-id", MODEL_TEXT)
    joining.values["net"]["dispatcher_url"] = "ws://127.0.0.1:1/ws/operator"
    joining.write()
    code["nobody there"] = aos("operator", "register", "-c", joining.operator, "--model-id", MODEL_TEXT)
    assert {what: (found["error"]["code"], found["exit"]) for what, found in code.items()} == {
        "no worker": ("registration.no_model", 30),
        "no model id": ("encoding.base64url", 2),
        "nobody of that name": ("registration.unknown", 1),
        "another dispatcher": ("registration.foreign", 30),
        "nobody there": ("link.unreachable", 20),
    }
