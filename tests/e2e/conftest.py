"""A whole local network as processes, for the tests in this folder: the demo's network, kept up by its supervisor."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aos.cli.network import found
from aos.local.network import LocalNetwork, RunningNetwork

MODEL = Path(__file__).parents[2] / "models" / "aos-demo.Q8_0.gguf"


@pytest.fixture(scope="package")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    """Three opML operators and a simulated TEE operator; what is killed is started again."""
    state = tmp_path_factory.mktemp("network") / "state"
    local = LocalNetwork(state, found=found, opml_operators=3, tee_operators=1, model=MODEL)
    until = threading.Event()
    with local.running() as running:
        keeper = threading.Thread(target=local.serve, args=(running, until))
        keeper.start()
        try:
            yield running
        finally:
            until.set()
            keeper.join()
