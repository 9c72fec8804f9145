"""Where an embedded server lives: its corner of the state directory, its lock, secrets, port and user.

Shared by the embedded PostgreSQL and Redis (docs/adr/0002-embedded-servers.md). Everything that persists is
below the state directory. As root the server runs as ``nobody``, which may be unable to reach the state
directory or the virtual environment at all: it enters its data directory before it loses the privileges, and
its program files are published in a temporary directory of their own for as long as it runs. No mode outside
the state directory is ever changed.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from aos.adapters.processes import Identity, free_port, port_is_free
from aos.errors import ConfigError, RuleViolation, Unavailable

_PUBLISHED_PREFIX = "aos-bin-"
_ORPHAN_WAIT_S = 15.0


def service_identity() -> Identity | None:
    """Who the server runs as: None (ourselves) for an ordinary user, ``nobody`` for root."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise ConfigError(
            "embedded.no_unprivileged_user",
            "root cannot run the embedded servers, and this system has no user 'nobody'",
            hint="run as an ordinary user, or give the addresses of servers of your own",
        ) from None
    return Identity(uid=entry.pw_uid, gid=entry.pw_gid)


class Place:
    """One server's directory ``<state dir>/<name>/``: ``data/``, ``log``, ``lock``, ``port`` and secrets.

    Mode 0700; ``data/`` belongs to the user the server runs as.
    """

    def __init__(self, state_dir: Path, name: str) -> None:
        self.name = name
        self.root = state_dir.absolute() / name
        self.data = self.root / "data"
        self.log = self.root / "log"
        self.identity = service_identity()
        self._lock_fd: int | None = None
        self._published: Path | None = None
        self._published_fd: int | None = None

    # --- one owner at a time

    def acquire(self) -> None:
        """Create the directory and become its only user.

        Raises ConfigError (embedded.foreign_state) if it belongs to someone else, RuleViolation
        (embedded.already_running) if another process uses it.
        """
        try:
            self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            owner = self.root.stat().st_uid
            if owner != os.geteuid():
                raise PermissionError(f"it belongs to user id {owner}")
            self.root.chmod(0o700)
            lock_fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                "embedded.foreign_state",
                f"cannot use {self.root} for {self.name}: {error}",
                hint="run as the user who made the state directory, or choose another one",
            ) from error
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock_fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock_fd)
            raise RuleViolation(
                "embedded.already_running",
                f"{self.name} in {self.root} is already in use by process {holder}",
                hint=f"stop process {holder} first, or choose another state directory",
            ) from None
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = lock_fd

    def release(self) -> None:
        """Let others use it. Safe to call twice."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def new_data_dir(self, name: str) -> Path:
        """An empty directory of the server's own, mode 0700, in place of whatever had that name."""
        path = self.root / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        if self.identity is not None:
            os.chown(path, self.identity.uid, self.identity.gid)
        return path

    def wait_for_orphans(self) -> None:
        """Wait until no process works in the data directory.

        After our own violent death the server is still closing; after the server's, its children are. Raises
        RuleViolation (embedded.already_running) if one stays.
        """
        deadline = time.monotonic() + _ORPHAN_WAIT_S
        while (pid := _process_in(self.data)) is not None:
            if time.monotonic() > deadline:
                raise RuleViolation(
                    "embedded.already_running",
                    f"process {pid} still works in {self.data}",
                    hint=f"end process {pid} first, or choose another state directory",
                )
            time.sleep(0.02)

    # --- what persists beside the data

    def secret(self, name: str) -> str:
        """A random password of 192 bits, made on first use, kept with mode 0600."""
        path = self.root / name
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            value = secrets.token_hex(24)
            self._write(path, value)
            return value

    def port(self) -> int:
        """The port of the last start if it is free, so that addresses survive a restart; else a new one."""
        path = self.root / "port"
        try:
            recorded = int(path.read_text())
        except (FileNotFoundError, ValueError):
            recorded = None
        if recorded is not None and port_is_free(recorded):
            return recorded
        port = free_port()
        self._write(path, str(port))
        return port

    def _write(self, path: Path, text: str) -> None:
        # Complete or absent: a crash in between must not leave an empty password.
        partial = path.with_name(path.name + ".part")
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(fd)
        partial.replace(path)

    # --- program files for a user who cannot enter our directories

    def publish(self, base: Path, paths: Iterable[str]) -> Path:
        """Where the server may execute ``paths`` (files and directories below ``base``).

        For ourselves: ``base``. For another user: a copy in a fresh directory that only we can write and all
        can enter; ``withdraw`` removes it, the next ``publish`` of anyone removes what a crash left behind.
        """
        self.withdraw()
        if self.identity is None:
            return base
        parent = executable_temporary_directory()
        _sweep(parent)
        published = None
        while published is None:  # a sweep between mkdtemp and flock may take it from us: then once more
            published = Path(tempfile.mkdtemp(prefix=_PUBLISHED_PREFIX, dir=parent))
            self._published_fd = _lock_directory(published)
            if self._published_fd is None or not published.exists():
                published = None
        self._published = published
        for relative in paths:
            source, target = base / relative, published / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True)
            else:
                shutil.copy2(source, target)
        _open_to_all(published)
        return published

    def withdraw(self) -> None:
        """Remove the published copy, if there is one. Safe to call twice."""
        if self._published is not None:
            shutil.rmtree(self._published, ignore_errors=True)
            self._published = None
        if self._published_fd is not None:
            os.close(self._published_fd)
            self._published_fd = None


def _lock_directory(path: Path) -> int | None:
    """A descriptor that holds the lock on ``path``; None if another has it, or it is gone or not ours."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None


def _sweep(parent: Path) -> None:
    """Remove published copies whose owner died: their lock is free."""
    for path in parent.glob(_PUBLISHED_PREFIX + "*"):
        fd = _lock_directory(path)
        if fd is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(fd)


def executable_temporary_directory() -> Path:
    """Where every user may enter and programs may run. Raises Unavailable ``embedded.no_temporary_directory``."""
    for candidate in dict.fromkeys((tempfile.gettempdir(), "/var/tmp", "/tmp", "/run")):  # noqa: S108 - mkdtemp inside
        path = Path(candidate)
        try:
            enterable = all(step.stat().st_mode & stat.S_IXOTH for step in (path, *path.parents))
            executable = not os.statvfs(path).f_flag & os.ST_NOEXEC
        except OSError:
            continue
        if enterable and executable and os.access(path, os.W_OK):
            return path
    raise Unavailable(
        "embedded.no_temporary_directory",
        "no temporary directory that an unprivileged user may enter and execute from",
        hint="set TMPDIR to one, or run as an ordinary user",
    )


def _open_to_all(root: Path) -> None:
    root.chmod(0o755)
    for directory, names, files in os.walk(root):
        for name in names:
            (Path(directory) / name).chmod(0o755)
        for name in files:
            path = Path(directory) / name
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def _process_in(directory: Path) -> int | None:
    """The id of a process whose working directory is ``directory`` (Linux; None elsewhere)."""
    try:
        wanted = directory.stat()
        entries = os.listdir("/proc")
    except FileNotFoundError:
        return None
    for entry in entries:
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                found = os.stat(f"/proc/{entry}/cwd")
            except OSError:  # gone, or another user's: not one of ours
                continue
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return int(entry)
    return None
