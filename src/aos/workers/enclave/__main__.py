"""``python -m aos.workers.enclave``: the enclave's process. In an enclave it is the first program; a SIMULATED one is
started by a TEE worker's host."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import resource
import sys
import time
from pathlib import Path

from aos.adapters.nsm import Module, open_nsm
from aos.errors import AOSError
from aos.workers.enclave.process import Enclave, listen, say, speak_as

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m aos.workers.enclave", description=__doc__)
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", help="Unix socket to listen on, in a directory of its own")
    place.add_argument(
        "--vsock-port", type=int, metavar="PORT", help="vsock port to listen on, in an enclave"
    )
    parser.add_argument(
        "--platform-key",
        type=Path,
        metavar="FILE",
        help="simulate a platform; refused where /dev/nsm is there",
    )
    parser.add_argument("--engine", default="native", choices=("native", "reference", "llama.cpp"))
    arguments = parser.parse_args()
    _close_up()

    async def run() -> None:
        key = arguments.platform_key
        nsm = open_nsm(None if key is None else lambda: _simulated(key))
        speak_as(nsm)
        say(f"security module {nsm.describe().module_id}{', NO HARDWARE' if nsm.simulated else ''}")
        address = arguments.socket if arguments.vsock_port is None else arguments.vsock_port
        await listen(Enclave(nsm, engine=arguments.engine), address)

    try:
        asyncio.run(run())
    except AOSError as error:
        say(f"{error} {error.hint or ''}")
        return error.exit_code
    return 0


def _simulated(key: Path) -> Module:
    from aos.adapters.enclave_image import simulated_pcrs
    from aos.adapters.simulated_nsm import SimulatedNsm, load_simulated_platform

    platform = load_simulated_platform(key)
    return SimulatedNsm(platform, pcrs=simulated_pcrs(), clock=lambda: time.time_ns() // 1_000_000)


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
