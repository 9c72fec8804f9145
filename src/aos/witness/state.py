"""What a witness holds: of each log the last checkpoint that it cosigned, on disk before anybody is told, and what convicts it.

One directory, one process: a lock is held as long as it is open. A file appears whole or not at all.
"""

import fcntl
import os
from hashlib import sha256
from pathlib import Path

from aos.adapters.whole_file import write_whole
from aos.core.log.checkpoint import Checkpoint, verify_checkpoint
from aos.core.log.conviction import Conviction, write_conviction
from aos.core.log.note import NoteKey
from aos.errors import AOSError, ConfigError, Unavailable


class WitnessState:
    """The tree heads of one witness."""

    def __init__(self, directory: Path) -> None:
        """Raises ConfigError ``witness.state`` (cannot be used, or another witness is at work there)."""
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigError(
                "witness.state", f"another witness is at work in {directory}", hint="one state directory each"
            ) from None
        except OSError as error:
            raise ConfigError("witness.state", f"cannot use {directory}: {error.strerror}") from error

    def close(self) -> None:
        """Let another witness have the directory."""
        os.close(self._lock)

    def held(self, key: NoteKey) -> Checkpoint | None:
        """The last checkpoint of this log. Raises ConfigError ``witness.state`` (its file is damaged): it is never begun anew."""
        path = self._path(key)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("witness.state", f"cannot read {path}") from error
        try:
            return verify_checkpoint(text, key)
        except AOSError as error:
            raise ConfigError("witness.state", f"{path} is damaged: {error.message}") from error

    def keep(self, key: NoteKey, checkpoint: str) -> None:
        """Store a checkpoint of this log and flush it to the disk. Raises Unavailable ``witness.state``."""
        try:
            write_whole(self._path(key), checkpoint.encode())
        except OSError as error:
            raise Unavailable("witness.state", f"cannot write the state: {error.strerror}") from error

    def convict(self, key: NoteKey, conviction: Conviction) -> Path | None:
        """Save what convicts this log, the first of its kind; None where there is one. Raises Unavailable ``witness.state``."""
        path = self._path(key).with_suffix(f".{conviction.kind}.json")
        if path.exists():
            return None
        try:
            write_whole(path, write_conviction(conviction))
        except OSError as error:
            raise Unavailable("witness.state", f"cannot write the state: {error.strerror}") from error
        return path

    def _path(self, key: NoteKey) -> Path:
        return self._directory / f"{sha256(str(key).encode()).hexdigest()[:32]}.checkpoint"
