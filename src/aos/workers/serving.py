"""From a command line to a worker that answers (docs/spec/09-http.md, "Worker"): address, token, server, end.

Loopback by default; any other address only with a token. SIGTERM and SIGINT: no new questions, a running one
gets five seconds, then the process ends with status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aos.errors import AOSError, ConfigError
from aos.workers.service import Backend, WorkerApp, log_event

_MIN_TOKEN_CHARS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where a worker listens. ``host`` is a literal address; port 0 lets the kernel choose."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback


def parse_listen(text: str) -> Listen:
    """``ADDRESS:PORT`` with a literal address (``localhost`` counts as 127.0.0.1).

    Raises ConfigError ``worker.listen``.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        host = str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
        if not 0 <= int(port) <= 65_535:
            raise ValueError(port)
    except ValueError:
        raise ConfigError(
            "worker.listen", f"not an address and port: {text!r}", hint="for instance 127.0.0.1:5005"
        ) from None
    return Listen(host=host, port=int(port))


def read_token() -> str | None:
    """The bearer token from AOS_WORKER_TOKEN or the file AOS_WORKER_TOKEN_FILE; None where neither is set.

    Raises ConfigError ``worker.token``.
    """
    token = os.environ.get("AOS_WORKER_TOKEN")
    file = os.environ.get("AOS_WORKER_TOKEN_FILE")
    if token is None and file is not None:
        try:
            token = Path(file).read_text().strip()
        except OSError as error:
            raise ConfigError("worker.token", f"cannot read the token file: {error.strerror}") from error
    if token is not None and (
        len(token) < _MIN_TOKEN_CHARS or not token.isascii() or not token.isprintable()
    ):
        raise ConfigError("worker.token", f"the token needs {_MIN_TOKEN_CHARS} or more printable characters")
    return token


def check_exposure(listen: Listen, token: str | None) -> None:
    """Raises ConfigError ``worker.exposed`` for an address that others reach, without a token."""
    if not listen.loopback and token is None:
        raise ConfigError(
            "worker.exposed",
            f"{listen.host} can be reached from elsewhere and there is no token",
            hint="set AOS_WORKER_TOKEN, or listen on 127.0.0.1",
        )


def open_socket(listen: Listen) -> socket.socket:
    """A bound TCP socket. Raises ConfigError ``worker.listen``."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((listen.host, listen.port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            "worker.listen", f"cannot listen on {listen.host}:{listen.port}: {error.strerror}"
        ) from error
    return bound


async def serve(
    backend: Backend, bound: socket.socket, *, model: str, token: str | None, started_s: float
) -> None:
    """Serve until SIGTERM or SIGINT. The socket listens only once the backend is ready."""
    import uvicorn

    app: WorkerApp

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.drain()
            await super().shutdown(sockets)

    # uvicorn raises the signal again when it is done; by then it has done what it asked for.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_before_serving)
    await backend.start()
    try:
        app = WorkerApp(backend, model=model, token=token)
        server = Server(
            uvicorn.Config(
                app,
                lifespan="off",
                loop="asyncio",
                http="h11",
                ws="none",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                date_header=False,
                h11_max_incomplete_event_size=64 * 1024,
                limit_concurrency=64,
                timeout_graceful_shutdown=8,
            )
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        host, port = bound.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        bound.listen(64)
        log_event(
            "worker.ready",
            kind=backend.kind,
            address=address,
            model=model,
            **backend.describe(),
            start_ms=_ms_since_process_start(started_s),
        )
        await server.serve(sockets=[bound])
    finally:
        await backend.stop()
        log_event("worker.stopped", kind=backend.kind)


def _exit_before_serving(number: int, frame: object) -> None:
    raise SystemExit(0)


def _ms_since_process_start(started_s: float) -> int:
    import time

    return int((time.monotonic() - started_s) * 1000)


def run_worker(
    arguments: argparse.Namespace, make: Callable[[], tuple[Backend, str]], started_s: float
) -> int:
    """The main of both workers: 0, or the error's exit code with its message and hint on stderr."""
    try:
        listen = parse_listen(arguments.listen)
        token = read_token()
        check_exposure(listen, token)
        with open_socket(listen) as bound:
            backend, model = make()
            asyncio.run(serve(backend, bound, model=model, token=token, started_s=started_s))
    except AOSError as error:
        log_event("worker.failed", code=error.code, message=error.message, hint=error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return 0
    return 0


def common_arguments(parser: argparse.ArgumentParser, *, listen: str) -> None:
    """The flags that both workers have."""
    parser.add_argument("--model", metavar="PATH", help="GGUF file, or the name of one in ./models")
    parser.add_argument("--listen", default=listen, metavar="ADDRESS:PORT", help="default %(default)s")
    parser.add_argument("--models-dir", default="models", type=Path, metavar="DIR", help="default ./models")


def find_model_file(name: str | None, models_dir: Path) -> Path:
    """The file that ``--model`` means: a path, or a file name in the models directory; the only one there
    where not given.

    Raises ConfigError ``worker.model_not_found``.
    """
    if name is not None:
        for candidate in (Path(name), models_dir / name):
            if candidate.is_file():
                return candidate
        raise ConfigError(
            "worker.model_not_found", f"no model {name!r}, neither as a path nor in {models_dir}"
        )
    found = sorted(models_dir.glob("*.gguf"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConfigError(
            "worker.model_not_found",
            f"name a model with --model (in {models_dir}: {names})",
            hint="aos model add FILE.gguf registers one",
        )
    return found[0]


def write_line(text: str) -> None:
    """Data for stdout."""
    sys.stdout.write(text + "\n")
