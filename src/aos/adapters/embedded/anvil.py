"""A real Ethereum node on this machine, for the chain's demo and tests: foundry's ``anvil``, an npm package.

It holds play money alone: its accounts' keys are public. ``make chain-tools`` installs it.
"""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from aos.adapters.processes import spawn
from aos.errors import ConfigError, Unavailable

_START_TIMEOUT_S = 60.0
_LISTENING = re.compile(rb"Listening on 127\.0\.0\.1:(\d+)")
CHAIN_ID = 31337
KEYS = tuple(
    bytes.fromhex(key)
    for key in (
        "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
        "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
        "5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
        "7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
        "47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
        "8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
    )
)
"""Keys of accounts with 10,000 ether each. Everybody knows them."""


def find_anvil() -> Path | None:
    """The program: ``$AOS_ANVIL``, the npm package below ``contracts/``, or on the PATH."""
    if named := os.environ.get("AOS_ANVIL"):
        return Path(named)
    packages = Path(__file__).parents[4] / "contracts/node_modules/@foundry-rs"
    if found := sorted(packages.glob("anvil-*/bin/anvil")):
        return found[0]
    return Path(on_path) if (on_path := shutil.which("anvil")) else None


class EmbeddedAnvil:
    """A node at ``url``. Every transaction is mined at once, or every ``block_s`` seconds; a block is final when two lie on it.
    ``begun_s``: its first block's time, in Unix seconds; default: now. It forgets its chain when it stops.
    """

    def __init__(self, directory: Path, *, block_s: int | None = None, begun_s: int | None = None) -> None:
        self._log = directory / "anvil.log"
        self._block_s, self._begun_s = block_s, begun_s
        self._port = 0
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Only while started."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs, else None."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else None

    def start(self) -> str:
        """Start it; return its address once it listens.

        Raises ConfigError ``embedded.not_installed``, Unavailable ``embedded.start_failed``.
        """
        program = find_anvil()
        if program is None or not program.is_file():
            raise ConfigError(
                "embedded.not_installed",
                "the node `anvil` is not installed",
                hint="`make chain-tools` installs it with npm; AOS_ANVIL= names one that is elsewhere",
            )
        # Prague's rules: with the price of calldata that the gas ceilings are for.
        argv = [str(program), "--host", "127.0.0.1", "--port", str(self._port), "--hardfork", "prague"]
        argv += ["--slots-in-an-epoch", "1"]
        if self._block_s is not None:
            argv += ["--block-time", str(self._block_s)]
        if self._begun_s is not None:
            argv += ["--timestamp", str(self._begun_s)]
        with self._log.open("wb") as log:
            self._popen = spawn(argv, output=log)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (listening := _LISTENING.search(self._log.read_bytes())) is None:
            if self._popen.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = self._log.read_bytes()[-1_000:].decode(errors="replace")
                raise Unavailable("embedded.start_failed", "anvil did not start", hint=f"its output:\n{tail}")
            time.sleep(0.02)
        self._port = int(listening[1])
        return self.url

    def stop(self) -> None:
        """End it. Safe to call twice."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash would end it."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
