"""The TEE worker's host: HTTP on one side, the enclave's process on the other (docs/spec/10-tee.md, "Host").

SIMULATED: the enclave is an ordinary process and its platform a key file; every line and every document says
so. The host forwards what the operator asks and returns what the enclave signed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from aos.adapters.simulated_tee import create_simulated_platform
from aos.core.codec import decode
from aos.core.encoding import b64u_encode
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation
from aos.ports import TokenEvent
from aos.workers import serving
from aos.workers.enclave_host import Binding, EnclaveHost, describe
from aos.workers.execution import Answer, read_request
from aos.workers.question import Question, SeedQuestion
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
        if self._binding is not None:
            await self._host.boot(self._binding)

    async def stop(self) -> None:
        await self._host.stop()

    async def answer(self, question: Question | SeedQuestion) -> AsyncGenerator[TokenEvent | Answer, None]:
        if isinstance(question, SeedQuestion):
            raise InvalidMessage(
                "question.unbound",
                "an enclave signs answers to the network's requests only; a bare prompt belongs to no job",
                field="request",
            )
        if question.role == "checker":
            raise RuleViolation("question.role", "an enclave replays nothing for others", field="role")
        async with aclosing(self._host.ask(question, self._bind(question))) as events:
            async for event in events:
                yield event

    def _bind(self, question: Question) -> Binding:
        _, request = read_request(question.request)
        asked = Binding(network=request.network, operator=question.operator)
        if self._binding is None:
            self._binding = asked
        if asked != self._binding:
            raise RuleViolation(
                "worker.other_operator",
                "this worker serves another operator or network",
                field="operator" if asked.operator != self._binding.operator else "request.network",
            )
        return asked


def main(argv: Sequence[str] | None = None) -> int:
    """``tee-worker``, ``python -m aos.workers.tee_main``."""
    started_s = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="tee-worker", description="Runs TEE jobs for an operator. SIMULATED: no hardware is involved."
    )
    serving.common_arguments(parser, listen=DEFAULT_LISTEN)
    parser.add_argument(
        "--engine",
        default="llama.cpp",
        choices=("llama.cpp", "native", "reference"),
        help="default %(default)s",
    )
    parser.add_argument("--operator", metavar="0x…", help="serve only this operator; boot for it at start")
    parser.add_argument("--network", metavar="NAME", help="the operator's network")
    parser.add_argument(
        "--platform-key",
        type=Path,
        metavar="FILE",
        default=os.environ.get("AOS_TEE_PLATFORM_KEY"),
        help="the simulated platform's key file (also AOS_TEE_PLATFORM_KEY); made in ~/.aos where not given",
    )
    parser.add_argument("--create-platform", type=Path, metavar="FILE", help="make such a key file and end")
    arguments = parser.parse_args(argv)
    if arguments.create_platform is not None:
        return _create_platform(arguments.create_platform)

    def make() -> tuple[Backend, str]:
        path = serving.find_model_file(arguments.model, arguments.models_dir)
        host = EnclaveHost(
            model=path, engine=arguments.engine, platform_key=_platform_key(arguments.platform_key)
        )
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


def _platform_key(given: Path | None) -> Path:
    path = given if given is not None else Path.home() / ".aos" / "simulated-platform.key"
    if given is None and not path.exists():
        public_key = create_simulated_platform(path)
        log_event("platform.created", label="SIMULATED, NO HARDWARE", file=str(path), root=public_key.hex())
    return path


def _create_platform(path: Path) -> int:
    try:
        serving.write_line(create_simulated_platform(path).hex())
    except AOSError as error:
        log_event("platform.failed", code=error.code, message=error.message)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
