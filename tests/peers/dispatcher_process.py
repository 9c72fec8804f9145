"""A real dispatcher, as the process that a person starts, on a real database that already holds finished jobs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from peers.engine_case import EngineCase
from peers.hub_peer import MODEL, OperatorPeer

from aos.adapters.processes import free_port, spawn


class DispatcherProcess:
    """``python -m aos.dispatcher -c FILE``."""

    def __init__(self, config_path: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.link_url = f"ws://127.0.0.1:{port}/ws/operator"
        self.log = config_path.with_suffix(".log")
        self._config_path = config_path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> DispatcherProcess:
        """Start, and wait until it is ready."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AOS_DISPATCHER_")}
        argv = [sys.executable, "-m", "aos.dispatcher", "-c", str(self._config_path)]
        with self.log.open("ab") as log:
            self._process = spawn(argv, env=environment, output=log)
        deadline = time.monotonic() + 120
        with self.client() as http:
            while not self._is_ready(http):
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)
        return self

    def _is_ready(self, http: httpx.Client) -> bool:
        try:
            return http.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def kill(self) -> None:
        """SIGKILL, as a crash would end it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Founded:
    """A dispatcher's files and database. ``finished``: ended ``agreed``, user `someone`; ``flagged``: with the tag
    `suspicion`, user `flagged`; ``private``: a private one, user `hidden`. Nobody is connected any more."""

    directory: Path
    config_path: Path
    pg_url: str
    port: int
    project: str
    token: str
    operators: tuple[OperatorPeer, ...]
    finished: str
    flagged: str
    private: str

    def process(self) -> DispatcherProcess:
        return DispatcherProcess(self.config_path, self.port)

    def body(self, **changes: Any) -> dict[str, Any]:
        """The developer guide's submission."""
        return {
            "from": self.project,
            "tag": "",
            "user": "b77f1799de0148c07bc6ef630fb75ac267f31d147cd28797ad145afe72302632",
            "job": {
                "tag": "opml",
                "prompt": "What is AI?",
                "model": MODEL,
                "params": {"temperature": 1.0, "top_p": 0.5, "max_tokens": 1024},
            },
            "verify": self.token,
        } | changes


def found(directory: Path, pg_url: str, **changes: Any) -> Founded:
    """Found a network, let its dispatcher finish three jobs with two operators, and end it. ``changes`` of its configuration."""
    port = free_port()

    async def run() -> Founded:
        operators = (OperatorPeer("opml-0"), OperatorPeer("opml-1"))
        case = await EngineCase.open(directory, pg_url, *operators, listen=f"127.0.0.1:{port}", **changes)
        try:
            jobs = []
            for new in (
                case.job(),
                case.job(user="flagged", tag="suspicion"),
                case.job(user="hidden", private=True),
            ):
                jobs.append((await case.submit(new)).job_id)
                assert await case.ended(jobs[-1]) == "agreed"
        finally:
            await case.close()
        return Founded(
            directory=directory,
            config_path=case.config_path,
            pg_url=pg_url,
            port=port,
            project=case.founded.project,
            token=case.founded.token,
            operators=operators,
            finished=jobs[0],
            flagged=jobs[1],
            private=jobs[2],
        )

    return asyncio.run(run())
