"""The TEE worker's host: HTTP on one side, the enclave on the other (docs/spec/10-tee.md, "Host").

The host forwards what the operator asks and returns what the enclave signed. With ``--platform-key`` the enclave is
SIMULATED, an ordinary process whose platform is a file, and every line and every document says so; with ``--vsock`` it
is one that runs already. It never takes the one for the other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from aos.core.codec import decode
from aos.core.encoding import b64u_encode
from aos.core.tee import TeeBootEvidence
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation
from aos.ports import TokenEvent
from aos.workers import serving
from aos.workers.enclave_host import EnclaveHost, SimulatedEnclave, VsockEnclave, describe
from aos.workers.execution import Answer, read_request
from aos.workers.question import Binding, BootOrder, DocumentOrder, Question, SeedQuestion
from aos.workers.service import Backend, log_event

DEFAULT_LISTEN = "127.0.0.1:5005"


class TeeBackend:
    """Answers questions in an enclave, for one operator on one network: the given ones, else the first that
    ask."""

    kind: Literal["tee"] = "tee"
    tracer = None
    capacity = 1

    def __init__(self, host: EnclaveHost, *, binding: Binding | None) -> None:
        self._host = host
        self._binding = binding

    @property
    def ready(self) -> bool:
        return self._host.ready

    def describe(self) -> dict[str, Any]:
        loaded = self._host.loaded
        return {
            "model_id": "" if loaded is None else b64u_encode(loaded.model_id),
            "engine": "" if loaded is None else loaded.engine,
            **describe(self._host),
        }

    async def start(self) -> None:
        await self._host.start()

    async def stop(self) -> None:
        await self._host.stop()

    async def boot(self, order: BootOrder) -> TeeBootEvidence:
        """Boot the enclave for its operator. Raises RuleViolation ``worker.other_operator``; what the enclave raises."""
        self._bind(order.binding)
        return await self._host.boot(order)

    async def document(self, order: DocumentOrder) -> TeeBootEvidence:
        """A document of now. Raises what the enclave raises."""
        return await self._host.document(order)

    async def answer(self, question: Question | SeedQuestion) -> AsyncGenerator[TokenEvent | Answer, None]:
        if isinstance(question, SeedQuestion):
            raise InvalidMessage(
                "question.unbound",
                "an enclave signs answers to the network's requests only; a bare prompt belongs to no job",
                field="request",
            )
        if question.role == "checker":
            raise RuleViolation("question.role", "an enclave replays nothing for others", field="role")
        _, request = read_request(question.request)
        asked = Binding(network=request.network, operator=question.operator)
        binding = self._bind(asked, network_field="request.network")
        async with aclosing(self._host.ask(question, binding)) as events:
            async for event in events:
                yield event

    def _bind(self, asked: Binding, *, network_field: str = "network") -> Binding:
        if self._binding is None:
            self._binding = asked
        if asked != self._binding:
            raise RuleViolation(
                "worker.other_operator",
                "this worker serves another operator or network",
                field="operator" if asked.operator != self._binding.operator else network_field,
            )
        return asked


def main(argv: Sequence[str] | None = None) -> int:
    """``tee-worker``, ``python -m aos.workers.tee_main``."""
    started_s = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="tee-worker", description="Runs TEE jobs for an operator, in an enclave or a SIMULATED one."
    )
    serving.common_arguments(parser, listen=DEFAULT_LISTEN)
    parser.add_argument(
        "--engine",
        default="native",
        choices=("native", "reference", "llama.cpp"),
        help="of a SIMULATED enclave; default %(default)s, whose answers can be replayed",
    )
    parser.add_argument("--operator", metavar="0x…", help="serve only this operator")
    parser.add_argument("--network", metavar="NAME", help="the operator's network")
    parser.add_argument(
        "--platform-key",
        type=Path,
        metavar="FILE",
        default=os.environ.get("AOS_TEE_PLATFORM_KEY"),
        help="start a SIMULATED enclave with this platform's file (also AOS_TEE_PLATFORM_KEY)",
    )
    parser.add_argument(
        "--vsock", metavar="CID:PORT", help="serve with the enclave that listens there (scripts/run_tee.sh)"
    )
    parser.add_argument(
        "--create-platform",
        type=Path,
        metavar="FILE",
        help="make such a file, print what a trust file says of it, end",
    )
    arguments = parser.parse_args(argv)
    if arguments.create_platform is not None:
        return _create_platform(arguments.create_platform)

    def make() -> tuple[Backend, str]:
        path = serving.find_model_file(arguments.model, arguments.models_dir)
        host = EnclaveHost(model=path, engine=arguments.engine, enclave=_enclave(arguments))
        return TeeBackend(host, binding=_binding(arguments)), path.name

    return serving.run_worker(arguments, make, started_s)


def _binding(arguments: argparse.Namespace) -> Binding | None:
    if (arguments.operator is None) != (arguments.network is None):
        raise ConfigError("worker.binding", "--operator and --network belong together")
    if arguments.operator is None:
        return None
    try:
        return decode(Binding, {"network": arguments.network, "operator": arguments.operator})
    except InvalidMessage as error:
        raise ConfigError("worker.binding", error.message) from error


def _enclave(arguments: argparse.Namespace) -> SimulatedEnclave | VsockEnclave:
    if (arguments.platform_key is None) == (arguments.vsock is None):
        raise ConfigError(
            "worker.enclave",
            "either --vsock CID:PORT for a real enclave or --platform-key FILE for a SIMULATED one",
            hint="tee-worker --create-platform FILE makes a SIMULATED platform's file",
        )
    if arguments.vsock is None:
        return SimulatedEnclave(platform_key=Path(arguments.platform_key))
    cid, _, port = arguments.vsock.partition(":")
    if not (cid.isdecimal() and port.isdecimal() and 3 < int(cid) < 2**32 and 0 < int(port) < 2**32):
        raise ConfigError("worker.enclave", "--vsock is an enclave's CID (4 or more) and port, as 16:5000")
    return VsockEnclave(cid=int(cid), port=int(port))


def _create_platform(path: Path) -> int:
    from aos.adapters.enclave_image import simulated_pcrs
    from aos.adapters.simulated_nsm import create_simulated_platform

    try:
        root = create_simulated_platform(path)
        registers = {f"pcr{index}": value.hex() for index, value in simulated_pcrs().items()}
        serving.write_line(
            json.dumps(
                {
                    "tee_roots": [{"tee": "simulated", "root": b64u_encode(root)}],
                    "tee_measurements": [{"tee": "simulated", **registers}],
                }
            )
        )
    except AOSError as error:
        log_event("platform.failed", code=error.code, message=error.message)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
