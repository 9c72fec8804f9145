"""Child processes of a local network: start them, wait until they answer, end them, restart crashed ones.

Every child gets a session of its own (so Ctrl-C in the terminal reaches us alone and we decide the order of
the end), a log file, and a kernel-sent signal when we die, however we die. It is single-machine plumbing for
``aos up``, the demo and the tests; it is no init system: no dependencies, no limits, no adoption of processes
it did not start.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

from aos.errors import Unavailable

_CHILD = Path(__file__).with_name("child.py")
_POLL_S = 0.02
_LOG_TAIL_BYTES = 2_000


# --- spawning


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The user a child runs as."""

    uid: int
    gid: int


class _Spawner:
    """One thread that starts all children and lives as long as the process.

    The kernel sends the death signal when the *thread* that started the child ends. A child started from a
    thread pool would die with its pool thread, in the middle of its work.
    """

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[
            tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]
        ] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._owner_pid: int | None = None

    def popen(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._owner_pid != os.getpid():  # first use, or we are a fork: threads are not inherited
                self._orders = queue.SimpleQueue()
                threading.Thread(target=self._run, args=(self._orders,), name="spawner", daemon=True).start()
                self._owner_pid = os.getpid()
            orders = self._orders
        done: Future[subprocess.Popen[bytes]] = Future()
        orders.put((start, done))
        return done.result()

    @staticmethod
    def _run(
        orders: queue.SimpleQueue[
            tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]
        ],
    ) -> None:
        while True:
            start, done = orders.get()
            try:
                done.set_result(start())
            except BaseException as error:
                done.set_exception(error)


_spawner = _Spawner()


def spawn(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    identity: Identity | None = None,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    output: IO[bytes] | int = subprocess.DEVNULL,
    death_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start ``argv`` in a session of its own.

    On Linux the kernel sends it ``death_signal`` when this process dies. ``identity`` needs root. ``env``
    replaces the whole environment. stdout and stderr both go to ``output``.
    """
    spec = {
        "argv": [str(word) for word in argv],
        "parent": os.getpid(),
        "signal": int(death_signal),
        "uid": identity.uid if identity else None,
        "gid": identity.gid if identity else None,
        "cwd": str(cwd) if cwd else None,
    }
    command = [sys.executable, "-I", "-S", str(_CHILD), json.dumps(spec)]
    return _spawner.popen(
        lambda: subprocess.Popen(
            command,
            env=None if env is None else dict(env),
            stdin=stdin,
            stdout=output,
            stderr=output if output == subprocess.DEVNULL else subprocess.STDOUT,
            start_new_session=True,
        )
    )


# --- ports and readiness

_reserved_ports: set[int] = set()


def port_is_free(port: int) -> bool:
    """True if a server could listen on 127.0.0.1:``port`` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now, below the range the kernel gives to outgoing connections.

    A server that comes back after a crash must find its port free. From the outgoing range any client may
    hold it, even a client of that very server, connected to itself while it retried.
    """
    low, high = 15_000, 32_768
    with contextlib.suppress(OSError, ValueError):
        high = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    draw = random.SystemRandom()
    for _ in range(200 if high - low >= 1_000 else 0):
        port = draw.randrange(low, high)
        if port not in _reserved_ports and port_is_free(port):
            _reserved_ports.add(port)
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:  # let the kernel choose
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Ready = Callable[["Process"], bool]


def port_open(port: int, host: str = "127.0.0.1") -> Ready:
    """Ready when something accepts connections on ``host:port``."""

    def check(_: Process) -> bool:
        try:
            with socket.create_connection((host, port), timeout=1.0):
                return True
        except OSError:
            return False

    return check


def http_ok(url: str) -> Ready:
    """Ready when GET ``url`` (plain http) answers with a 2xx status."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        raise ValueError(f"not a plain http address: {url}")
    host, port, path = parts.hostname, parts.port or 80, parts.path or "/"

    def check(_: Process) -> bool:
        connection = http.client.HTTPConnection(host, port, timeout=2.0)
        try:
            connection.request("GET", path)
            return 200 <= connection.getresponse().status < 300
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return check


def log_contains(text: str) -> Ready:
    """Ready when the child has written ``text`` to its log since it was last started."""
    wanted = text.encode()

    def check(process: Process) -> bool:
        return wanted in process.log_since_start()

    return check


# --- one child


class Process:
    """One supervised child: what to run, and the run that is under way.

    ``ready`` is asked every 20 ms until it is true or ``ready_timeout_s`` is over. ``env`` is added to our
    environment.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready: Ready | None = None,
        ready_timeout_s: float = 30.0,
        grace_s: float = 10.0,
    ) -> None:
        self.name = name
        self.argv = [str(word) for word in argv]
        self.log_path = log_path
        self._env = dict(env or {})
        self._cwd = cwd
        self._ready = ready
        self._ready_timeout_s = ready_timeout_s
        self._grace_s = grace_s
        self._popen: subprocess.Popen[bytes] | None = None
        self._asked = False
        self._log_offset = 0

    @property
    def pid(self) -> int | None:
        """Process id while it runs, else None."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else None

    def poll(self) -> int | None:
        """None while it runs; its exit status (negative: the signal) once it ended."""
        if self._popen is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._popen.poll()

    def start(self) -> None:
        """Start and wait until ready.

        Raises Unavailable (process.died, process.not_ready); then nothing runs.
        """
        if self.pid is not None:
            raise RuntimeError(f"{self.name} runs already")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._log_offset = log.tell()
            self._asked = False
            self._popen = spawn(self.argv, env={**os.environ, **self._env}, cwd=self._cwd, output=log)
        if self._ready is not None:
            try:
                self.wait_until(self._ready, self._ready_timeout_s)
            except BaseException:
                self.kill()
                raise

    def wait_until(self, condition: Ready, timeout_s: float) -> None:
        """Wait for ``condition``; raise Unavailable when the child ends first or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not condition(self):
            status = self.poll()
            if status is not None:
                raise Unavailable(
                    "process.died",
                    f"{self.name} ended with status {status} before it was ready",
                    hint=f"end of {self.log_path}:\n{self.log_tail()}",
                )
            if time.monotonic() > deadline:
                raise Unavailable(
                    "process.not_ready",
                    f"{self.name} was not ready within {timeout_s:g} s",
                    hint=f"end of {self.log_path}:\n{self.log_tail()}",
                )
            time.sleep(_POLL_S)

    def ask_to_stop(self) -> None:
        """SIGTERM, without waiting; ``stop`` waits."""
        if not self._asked and self._popen is not None and self._popen.poll() is None:
            self._asked = True
            self._popen.terminate()

    def stop(self) -> None:
        """SIGTERM; after the grace period SIGKILL to its process group. Returns when it is gone."""
        self.ask_to_stop()
        if self._popen is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(self._grace_s)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to its whole process group, as a crash would end it. Returns when it is gone."""
        if self._popen is None:
            return
        # The group may outlive its leader; its id cannot be reused while one member lives.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def log_since_start(self) -> bytes:
        """What it wrote since it was last started."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_offset)
            return log.read()

    def log_tail(self) -> str:
        """The end of what it wrote since it was last started, for a person."""
        return self.log_since_start()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()


# --- all children


class Service(Protocol):
    """What the supervisor needs of a child. Process, EmbeddedPostgres and EmbeddedRedis all have it."""

    name: str

    def start(self) -> object: ...
    def poll(self) -> int | None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """A child that ended by itself while it was supervised."""

    name: str
    status: int
    restarted: bool


@dataclass(slots=True)
class _Seat:
    service: Service
    restart: bool
    crashes: int = 0
    down_since: float | None = None
    retry_at: float = 0.0


class Supervisor:
    """Starts services in order, restarts those that crash, stops all."""

    def __init__(self, *, on_crash: Callable[[Crash], None] | None = None) -> None:
        self._seats: list[_Seat] = []
        self._on_crash = on_crash

    def start(self, service: Service, *, restart: bool = False) -> None:
        """Start ``service`` and keep it. If it fails to start, the others still run: call ``stop``."""
        service.start()
        self._seats.append(_Seat(service, restart))

    def check(self) -> None:
        """Look at every child once; restart what crashed, with a pause that doubles from 0.2 s to 10 s.

        Raises Unavailable (process.died) for a child that must not be restarted.
        """
        for seat in self._seats:
            if seat.down_since is None:
                status = seat.service.poll()
                if status is None:
                    continue
                if self._on_crash is not None:
                    self._on_crash(Crash(name=seat.service.name, status=status, restarted=seat.restart))
                if not seat.restart:
                    raise Unavailable("process.died", f"{seat.service.name} ended with status {status}")
                seat.down_since = time.monotonic()
                seat.retry_at = seat.down_since + (0.0 if seat.crashes == 0 else _pause(seat.crashes))
                seat.crashes += 1
            if time.monotonic() >= seat.retry_at:
                try:
                    seat.service.start()
                except Unavailable:
                    seat.retry_at = time.monotonic() + _pause(seat.crashes)
                    seat.crashes += 1
                else:
                    seat.down_since = None

    def run(self, until: threading.Event, *, every_s: float = 0.2) -> None:
        """Check again and again until the event is set."""
        while not until.wait(every_s):
            self.check()

    def stop(self) -> None:
        """Stop every child, whatever goes wrong with one of them: programs all at once, then, the last started
        first, the servers that they use.
        """
        errors: list[Exception] = []
        for seat in self._seats:
            if isinstance(seat.service, Process):
                seat.service.ask_to_stop()
        while self._seats:
            try:
                self._seats.pop().service.stop()
            except Exception as error:  # the others must still be stopped; raised below
                errors.append(error)
        if errors:
            raise ExceptionGroup("some services did not stop cleanly", errors)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _pause(crashes: int) -> float:
    return min(0.2 * 2.0 ** min(crashes - 1, 10), 10.0)
