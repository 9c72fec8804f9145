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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from peers.dispatcher_peer import NETWORK, DispatcherPeer, Job, Keys
from peers.worker_peer import WorkerPeer

from aos.adapters.processes import free_port, spawn
from aos.operator.config import load_config
from aos.operator.identity import load_identity
from aos.operator.node import OperatorNode

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


@dataclass(kw_only=True)
class Scene:
    """An operator's surroundings: its dispatcher, its workers, its configuration file."""

    dispatcher: DispatcherPeer
    workers: list[WorkerPeer]
    content: dict[str, Any]
    path: Path

    @property
    def worker(self) -> WorkerPeer:
        return self.workers[0]

    async def ready(self, *, connects: int = 1) -> None:
        """Until the operator is connected and could take a job."""
        await self.dispatcher.connected(times=connects)
        await eventually(self._is_ready)

    async def _is_ready(self) -> bool:
        return (await rest(self.content, "GET", "/ready")).status_code == 200

    async def status(self) -> dict[str, Any]:
        answer = await rest(self.content, "GET", "/api/v1/operator/status")
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()["result"]
        return result

    async def job_state(self, job: Job, wanted: str) -> None:
        """Until the operator's own list shows ``job`` in this state."""

        async def check() -> bool:
            answer = await rest(self.content, "GET", "/api/v1/operator/jobs")
            return any(
                (row["job_ref"], row["attempt"], row["state"]) == (*job.key, wanted)
                for row in answer.json()["result"]
            )

        await eventually(check)


@contextlib.asynccontextmanager
async def scene(
    directory: Path, pg_url: str, redis_url: str, *, workers: int = 1, **node: Any
) -> AsyncIterator[Scene]:
    """Peers that are up and a configuration that names them; no operator yet."""
    dispatcher = await DispatcherPeer(OPERATOR).start()
    peers = [await WorkerPeer().start() for _ in range(workers)]
    content = settings(pg_url, redis_url, dispatcher, peers, **node)
    try:
        yield Scene(
            dispatcher=dispatcher, workers=peers, content=content, path=write_config(directory, content)
        )
    finally:
        await dispatcher.stop()
        for peer in peers:
            await peer.stop()


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
