"""The operator as the tests run it: inside the test's process, or as a process of its own that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from aos.adapters.processes import free_port, spawn
from aos.operator.config import load_config
from aos.operator.identity import load_identity
from aos.operator.node import OperatorNode
from peers.dispatcher_peer import NETWORK, DispatcherPeer, Keys
from peers.worker_peer import WorkerPeer

OPERATOR = Keys.of("operator under test")


def settings(
    pg_url: str, redis_url: str, dispatcher: DispatcherPeer, workers: list[WorkerPeer], **node: Any
) -> dict[str, Any]:
    """A configuration as the file holds it."""
    return {
        "db": {"pg_db_url": pg_url, "connect_timeout": 5, "acquire_timeout": 5},
        "queue": {"queue_url": redis_url, "topic": "test:task"},
        "net": {
            "rest_url": f"127.0.0.1:{free_port()}",
            "workers": [worker.url for worker in workers],
            "dispatcher_url": dispatcher.url,
        },
        "node": {
            "node_id": OPERATOR.address,
            "signer_key": OPERATOR.signer.hex(),
            "vrf_key": OPERATOR.vrf_seed.hex(),
            "dispatcher_address": dispatcher.keys.address,
            "heartbeat_interval": 1,
            **node,
        },
        "network": {"id": NETWORK},
    }


def write_config(directory: Path, content: dict[str, Any]) -> Path:
    path = directory / "config-operator.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@contextlib.asynccontextmanager
async def running(path: Path) -> AsyncIterator[OperatorNode]:
    """Run an operator in this process; its own failure fails the test."""
    config = load_config(path, environment={})
    node = OperatorNode(config, load_identity(config, environment={})[0])
    task = asyncio.create_task(node.run())
    try:
        yield node
    finally:
        node.stop()
        await task


class OperatorProcess:
    """``operator-runer -c FILE`` as a process."""

    def __init__(self, path: Path, log: Path) -> None:
        self._path = path
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            argv = [sys.executable, "-m", "aos.operator.runer", "-c", str(self._path)]
            self._process = spawn(argv, env=dict(os.environ), output=log)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def wait(self, timeout_s: float = 30) -> int:
        assert self._process is not None
        return self._process.wait(timeout_s)

    def terminate(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self.wait()

    def log_text(self) -> str:
        return self._log.read_text()


async def rest(content: dict[str, Any], method: str, path: str, **kwargs: Any) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        return await http.request(method, f"http://{content['net']['rest_url']}{path}", **kwargs)


async def eventually(check: Any, *, timeout_s: float = 20) -> Any:
    """Ask ``check`` (a coroutine function) until it is true; its value. For what can only be asked, not waited for."""
    async with asyncio.timeout(timeout_s):
        while True:
            with contextlib.suppress(httpx.HTTPError, json.JSONDecodeError):
                value = await check()
                if value:
                    return value
            await asyncio.sleep(0.05)
