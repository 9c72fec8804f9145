"""A local network whose first operator lies: its worker is ``peers.lying_worker``, all else is the product."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from aos.adapters.embedded.postgres import EmbeddedPostgres
from aos.local.layout import Node, read_or_make, write_private
from aos.local.network import ONE_THREAD, LocalNetwork

TESTS = Path(__file__).resolve().parents[1]
LIAR = "operator-1"


class LyingNetwork(LocalNetwork):
    """``lie`` is the file that names the lie; ``disputes`` are the dispatcher's parameters of games."""

    def __init__(self, *arguments: Any, lie: Path, disputes: dict[str, int], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._lie, self._disputes = lie, disputes

    def _dispatcher_config(self, postgres: EmbeddedPostgres, url: str) -> Path:
        path = super()._dispatcher_config(postgres, url)
        values = yaml.safe_load(path.read_text()) | {"disputes": self._disputes}
        write_private(path, yaml.safe_dump(values))
        return path

    def _add_worker(self, node: Node) -> None:
        if node.name != LIAR:
            super()._add_worker(node)
            return
        port = self._port(f"{node.name}-worker")
        token = read_or_make(node.directory / "worker.token", lambda: os.urandom(32).hex())
        self._add(
            f"{node.name}-worker",
            ["-m", "peers.lying_worker", "--model", str(self._model), "--listen", f"127.0.0.1:{port}"],
            f"http://127.0.0.1:{port}/health",
            ONE_THREAD | {"AOS_WORKER_TOKEN": token, "AOS_LIE": str(self._lie), "PYTHONPATH": str(TESTS)},
        )
