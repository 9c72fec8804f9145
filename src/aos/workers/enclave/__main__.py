"""``python -m aos.workers.enclave``: start the simulated enclave's process. Only a TEE worker's host has
reason to."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import resource
import sys
from pathlib import Path

from aos.adapters.simulated_tee import load_simulated_platform
from aos.errors import AOSError
from aos.workers.enclave.process import Enclave, listen, say

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m aos.workers.enclave", description=__doc__)
    parser.add_argument("--socket", required=True, help="Unix socket to listen on, in a directory of its own")
    parser.add_argument("--platform-key", required=True, type=Path, help="the simulated platform's key file")
    parser.add_argument("--engine", default="llama.cpp", choices=("llama.cpp", "native", "reference"))
    arguments = parser.parse_args()
    _close_up()

    async def run() -> None:
        platform = load_simulated_platform(arguments.platform_key)
        say(f"NO HARDWARE; simulated root {platform.public_key.hex()}")
        await listen(Enclave(platform, engine=arguments.engine), arguments.socket)

    try:
        asyncio.run(run())
    except AOSError as error:
        say(f"{error} {error.hint or ''}")
        return error.exit_code
    return 0


def _close_up() -> None:
    """Keep the keys in this process: no core file, no debugger of the same user, no privileges by way of exec."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        for option, value in ((_PR_SET_DUMPABLE, 0), (_PR_SET_NO_NEW_PRIVS, 1)):
            if prctl(option, value, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    sys.exit(main())
