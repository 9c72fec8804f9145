"""Downloading a model file: resumed where it broke off, checked before it gets its name.

What is checked is the file's SHA-256: the one that the caller gives, or else the one in the hub's own
``x-linked-etag`` header, which only says that the bytes are those the hub meant, and is named as that in the
result. Without either nothing is downloaded. Only https, but for servers on this machine's loopback.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal
from urllib.parse import urljoin, urlsplit

from aos.adapters.model_store import Progress, check_name, sync_directory
from aos.errors import (
    ConfigError,
    InvalidMessage,
    RuleViolation,
    Unavailable,
    VerificationError,
)

if TYPE_CHECKING:
    import httpx

DEFAULT_MODEL = "llama-2-7b-chat.Q4_0.gguf"
KNOWN_MODELS = {
    DEFAULT_MODEL: "https://huggingface.co/TheBloke/Llama-2-7B-Chat-GGUF/resolve/main/llama-2-7b-chat.Q4_0.gguf",
}
MAX_MODEL_BYTES = 64 * 1024**3
CheckedBy = Literal["sha256 given by the caller", "the hub's x-linked-etag header"]

_HUB_HEADER = "x-linked-etag"
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?\Z', re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})\Z", re.ASCII)
_MAX_REDIRECTS = 5
_ATTEMPTS = 5
_PIECE = 1024 * 1024
_PERMANENT = frozenset(range(400, 500)) - {408, 416, 429}


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledModel:
    """A downloaded file and who vouched for its digest."""

    path: Path
    size: int
    sha256: bytes
    checked_by: CheckedBy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    digest: bytes
    checked_by: CheckedBy


class _Interrupted(Exception):
    """The connection broke or the server is overloaded: the same request may succeed later."""


def pull_model(
    name: str = DEFAULT_MODEL,
    *,
    models_dir: Path = Path("models"),
    url: str | None = None,
    sha256_hex: str | None = None,
    progress: Progress | None = None,
    max_bytes: int = MAX_MODEL_BYTES,
    pause_s: float = 1.0,
) -> PulledModel:
    """Download ``name`` into ``models_dir``; ``url`` where the name is not a known one.

    A download that broke off is taken up again, in this call (five tries without a new byte, ``pause_s``
    doubling between them) and in later ones (``NAME.part`` stays). ``progress`` gets bytes done and bytes in
    all.

    Raises InvalidMessage ``model.name``, ``model.sha256``; ConfigError ``model.unknown``, ``model.url``;
    RuleViolation ``model.exists``, ``model.pull_running``, ``model.too_large``; VerificationError
    ``model.unchecked``, ``model.digest_mismatch``; Unavailable ``model.http``, ``model.interrupted``,
    ``model.no_space``, ``model.unwritable``.
    """
    check_name(name)
    address = url if url is not None else KNOWN_MODELS.get(name)
    if address is None:
        known = ", ".join(sorted(KNOWN_MODELS))
        raise ConfigError(
            "model.unknown", f"no address is known for {name}", hint=f"give --url; known: {known}"
        )
    _check_address(address, came_from=None)
    given = _given_digest(sha256_hex)
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with _part_file(models_dir, name) as part:
            download = _Download(
                address=address,
                target=models_dir / name,
                part=part,
                given=given,
                progress=progress,
                max_bytes=max_bytes,
            )
            return download.run(pause_s)
    except OSError as error:
        raise Unavailable("model.unwritable", f"cannot write in {models_dir}: {error.strerror}") from error


class _Download:
    """One call of ``pull_model``: the file so far, its running digest, and what is known of the whole."""

    def __init__(
        self,
        *,
        address: str,
        target: Path,
        part: BinaryIO,
        given: _Expected | None,
        progress: Progress | None,
        max_bytes: int,
    ) -> None:
        self._address = address
        self._target = target
        self._part = part
        self._note = target.with_name(target.name + ".part.json")
        self._expected = given
        self._progress = progress
        self._max_bytes = max_bytes
        self._digest = sha256()
        self._held = 0
        self._total: int | None = None
        self._etag = self._take_up()

    def run(self, pause_s: float) -> PulledModel:
        import httpx

        timeout = httpx.Timeout(30.0, read=60.0)
        with httpx.Client(timeout=timeout, headers={"accept-encoding": "identity"}) as client:
            failures = 0
            while True:
                before = self._held
                try:
                    done = self._attempt(client)
                    if done is not None:
                        return done
                    return self._finish()
                except _Interrupted as error:
                    failures = 1 if self._held > before else failures + 1
                    if failures >= _ATTEMPTS:
                        host = urlsplit(self._address).hostname
                        raise Unavailable(
                            "model.interrupted",
                            f"the download from {host} broke off {_ATTEMPTS} times without a new byte: {error}",
                            hint="run the same command again: it goes on where it stopped",
                        ) from error
                    time.sleep(pause_s * 2 ** (failures - 1))

    def _take_up(self) -> str | None:
        """Digest what an earlier call left, if it came from the same address; returns its ETag."""
        try:
            note = json.loads(self._note.read_bytes())
            same = note["url"] == self._address
            etag = note["etag"] if isinstance(note["etag"], str) else None
        except (OSError, ValueError, KeyError, TypeError):
            same, etag = False, None
        if not same:
            self._restart()
            return None
        self._part.seek(0)
        while piece := self._part.read(_PIECE):
            self._digest.update(piece)
            self._held += len(piece)
        return etag

    def _restart(self) -> None:
        self._part.seek(0)
        self._part.truncate()
        self._digest = sha256()
        self._held = 0

    def _attempt(self, client: httpx.Client) -> PulledModel | None:
        """One request, and its body to the end. Returns the result where the target is there already."""
        import httpx

        try:
            with self._open(client) as response:
                if (done := self._before_body(response)) is not None:
                    return done
                # As they come: pieces gathered to a size would be lost where the connection breaks.
                for piece in response.iter_raw():
                    self._take(piece)
        except httpx.TransportError as error:
            raise _Interrupted(type(error).__name__) from error
        finally:
            self._part.flush()
        if self._total is not None and self._held < self._total:
            raise _Interrupted("the server ended the body early")
        return None

    @contextmanager
    def _open(self, client: httpx.Client) -> Iterator[httpx.Response]:
        """GET the rest of the file, following redirects by hand; the hub's header counts on its own answer
        only."""
        headers = {}
        if self._held:
            headers["range"] = f"bytes={self._held}-"
            if self._etag is not None and not self._etag.startswith("W/"):
                headers["if-range"] = self._etag
        address = self._address
        for hop in range(_MAX_REDIRECTS + 1):
            with client.stream("GET", address, headers=headers) as response:
                if hop == 0:
                    self._learn_digest(response)
                if response.status_code not in (301, 302, 303, 307, 308):
                    yield response
                    return
                address = _check_address(response.headers.get("location", ""), came_from=address)
        raise Unavailable("model.http", f"more than {_MAX_REDIRECTS} redirects")

    def _learn_digest(self, response: httpx.Response) -> None:
        if self._expected is not None or response.status_code >= 400:
            return
        found = _SHA256.match(response.headers.get(_HUB_HEADER, ""))
        if found is None:
            raise VerificationError(
                "model.unchecked",
                f"the server names no digest ({_HUB_HEADER})",
                hint="give the file's digest with --sha256",
            )
        self._expected = _Expected(
            digest=bytes.fromhex(found.group(1)), checked_by="the hub's x-linked-etag header"
        )

    def _before_body(self, response: httpx.Response) -> PulledModel | None:
        """Judge status and headers; afterwards the body's first byte belongs at ``_held``."""
        status = response.status_code
        if status == 416 and self._held:
            self._restart()
            raise _Interrupted("the server has no such range")
        if status in _PERMANENT:
            raise Unavailable("model.http", f"the server answered {status}")
        if status not in (200, 206):
            raise _Interrupted(f"the server answered {status}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Unavailable("model.http", "the server encoded the file, which was not asked for")
        length = response.headers.get("content-length", "")
        if status == 206:
            found = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
            if found is None or int(found.group(1)) != self._held or not self._held:
                self._restart()
                raise _Interrupted("the server sent another range than asked for")
            self._total = int(found.group(3))
        else:
            self._restart()
            self._total = int(length) if length.isascii() and length.isdigit() else None
        if self._target.exists():
            return self._existing()
        self._check_room()
        self._etag = response.headers.get("etag")
        self._note.write_text(json.dumps({"url": self._address, "etag": self._etag}))
        self._part.seek(self._held)
        return None

    def _check_room(self) -> None:
        total = self._total
        if total is None:
            return
        if total > self._max_bytes:
            raise RuleViolation("model.too_large", f"{total} bytes are more than {self._max_bytes}")
        free = shutil.disk_usage(self._target.parent).free
        if total - self._held > free:
            raise Unavailable("model.no_space", f"{total - self._held} bytes to come, {free} free")

    def _take(self, piece: bytes) -> None:
        if self._held + len(piece) > (self._max_bytes if self._total is None else self._total):
            self._restart()
            raise RuleViolation("model.too_large", "the server sent more than it announced or is allowed")
        self._part.write(piece)
        self._digest.update(piece)
        self._held += len(piece)
        if self._progress is not None:
            self._progress(self._held, self._total or self._held)

    def _existing(self) -> PulledModel:
        assert self._expected is not None  # noqa: S101 - _learn_digest raised otherwise
        digest = sha256()
        with self._target.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
            size = file.tell()
        if digest.digest() != self._expected.digest:
            raise RuleViolation(
                "model.exists",
                f"{self._target} exists and is another file",
                hint="move it away first; nothing is overwritten",
            )
        self._note.unlink(missing_ok=True)
        self._part_path.unlink(missing_ok=True)
        return PulledModel(
            path=self._target, size=size, sha256=digest.digest(), checked_by=self._expected.checked_by
        )

    def _finish(self) -> PulledModel:
        assert self._expected is not None  # noqa: S101 - _learn_digest raised otherwise
        if self._digest.digest() != self._expected.digest:
            self._note.unlink(missing_ok=True)
            self._part_path.unlink(missing_ok=True)
            raise VerificationError(
                "model.digest_mismatch",
                f"the file is not the one that was named by {self._expected.checked_by}; it was removed",
            )
        os.fsync(self._part.fileno())
        os.replace(self._part_path, self._target)
        self._note.unlink(missing_ok=True)
        sync_directory(self._target.parent)
        return PulledModel(
            path=self._target,
            size=self._held,
            sha256=self._digest.digest(),
            checked_by=self._expected.checked_by,
        )

    @property
    def _part_path(self) -> Path:
        return self._target.with_name(self._target.name + ".part")


@contextmanager
def _part_file(models_dir: Path, name: str) -> Iterator[BinaryIO]:
    """The unfinished file, held by one process at a time."""
    path = models_dir / f"{name}.part"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "r+b") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuleViolation("model.pull_running", f"another process downloads {name}") from None
        yield part


def _given_digest(text: str | None) -> _Expected | None:
    if text is None:
        return None
    found = _SHA256.match(text.lower())
    if found is None:
        raise InvalidMessage("model.sha256", "a SHA-256 is 64 hex digits", field="sha256")
    return _Expected(digest=bytes.fromhex(found.group(1)), checked_by="sha256 given by the caller")


def _check_address(address: str, *, came_from: str | None) -> str:
    """The whole address, which is https, or http on this machine; a server elsewhere may not send us to this
    machine.
    """
    try:
        address = address if came_from is None else urljoin(came_from, address)
        parts = urlsplit(address)
    except ValueError:
        raise ConfigError("model.url", f"{ascii(address)[:200]} is no address") from None
    local = _is_loopback(parts.hostname)
    from_elsewhere = came_from is not None and not _is_loopback(urlsplit(came_from).hostname)
    if parts.username or parts.password or not parts.hostname:
        raise ConfigError("model.url", "the address must name a host and no user")
    if not (parts.scheme == "https" or (parts.scheme == "http" and local)) or (local and from_elsewhere):
        raise ConfigError(
            "model.url",
            f"refused to fetch from {parts.scheme}://{parts.hostname}",
            hint="use an https address",
        )
    return address


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
