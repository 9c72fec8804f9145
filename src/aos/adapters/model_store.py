"""The models on an operator's disk: which name stands for which ``model_id``, and where the file lies.

A small JSON file in the state directory, replaced as a whole. A name is given once and never re-pointed: what
a receipt names today it names for ever. Reading a file's manifest is the engine's business and is passed in;
downloading is ``model_download``'s.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Protocol

from aos.core.codec import Bytes32, MaxLength, UInt, decode, encode
from aos.core.encoding import canonical_json, parse_canonical
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable, VerificationError

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

MAX_MODELS = 4096
_FILE = "models.json"
_MAX_FILE_BYTES = 16 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,254}\Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A registered model. ``path`` is where the file was when it was registered last."""

    name: Annotated[str, MaxLength(255)]
    model_id: Bytes32
    sha256: Bytes32
    size: UInt
    path: Annotated[str, MaxLength(4096)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A file for a name; ``entry`` is None where it only lies in the models directory."""

    path: Path
    entry: ModelEntry | None


class ModelManifest(Protocol):
    """What must be known of a file to register it (``aos.engine.read_manifest`` gives more)."""

    @property
    def model_id(self) -> bytes: ...
    @property
    def file_sha256(self) -> bytes: ...
    @property
    def file_size(self) -> int: ...


ReadManifest = Callable[[Path, Progress | None], ModelManifest]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Registry:
    TYPE: ClassVar[str] = "aos.models"
    V: ClassVar[int] = 1

    models: Annotated[tuple[ModelEntry, ...], MaxLength(MAX_MODELS)]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before what the engine says is wrong in it."""
    try:
        yield
    except AOSError as error:
        if error.code.startswith("gguf."):
            error.message = f"{path}: {error.message}"
        raise


def check_name(name: str) -> str:
    """A model's name is a file name: letters, digits, ``. _ + -``. Raises InvalidMessage ``model.name``."""
    if _NAME.match(name) is None:
        raise InvalidMessage(
            "model.name", f"{name[:64]!a} is no model's name", hint="a file name without directories"
        )
    return name


def list_models(state_dir: Path) -> tuple[ModelEntry, ...]:
    """Every registered model, in the order of registration. Raises ConfigError ``model.registry``."""
    path = state_dir / _FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError("model.registry", f"cannot read {path}: {error.strerror}") from error
    try:
        return decode(_Registry, parse_canonical(data.rstrip(b"\n"), max_bytes=_MAX_FILE_BYTES)).models
    except InvalidMessage as error:
        raise ConfigError("model.registry", f"{path} is damaged: {error.message}") from error


def add_model(
    state_dir: Path,
    file: Path,
    *,
    read_manifest: ReadManifest,
    name: str | None = None,
    progress: Progress | None = None,
) -> ModelEntry:
    """Digest ``file`` and register it under ``name`` (default: its file name).

    The same model under the same name is registered again without harm; the path is then the new one. Raises
    RuleViolation ``model.name_taken`` where the name stands for another ``model_id``, InvalidMessage
    ``model.name`` or what the engine says of a broken file, Unavailable ``model.unreadable``.
    """
    name = check_name(file.name if name is None else name)
    if not file.is_file():
        raise Unavailable("model.unreadable", f"there is no file {file}")
    _refuse_taken(list_models(state_dir), name, None)
    manifest = read_manifest(file, progress)
    entry = ModelEntry(
        name=name,
        model_id=manifest.model_id,
        sha256=manifest.file_sha256,
        size=manifest.file_size,
        path=str(file.resolve()),
    )
    with _exclusive(state_dir):
        known = list_models(state_dir)
        _refuse_taken(known, name, entry.model_id)
        rest = [other for other in known if other.name != name]
        place = next((i for i, other in enumerate(known) if other.name == name), len(rest))
        _write(state_dir, _Registry(models=(*rest[:place], entry, *rest[place:])))
    return entry


def find_model(state_dir: Path, name: str, *, models_dir: Path = Path("models")) -> FoundModel:
    """The file for ``name``: the registered one, else the one of that name in ``models_dir``.

    Only the size of a registered file is compared here; an engine that loads it computes ``model_id`` anew.
    Raises InvalidMessage ``model.name``, ConfigError ``model.not_found``, VerificationError
    ``model.changed``.
    """
    check_name(name)
    entry = next((entry for entry in list_models(state_dir) if entry.name == name), None)
    candidates = [models_dir / name] if entry is None else [Path(entry.path), models_dir / name]
    files = [path for path in candidates if path.is_file()]
    if not files:
        raise ConfigError(
            "model.not_found",
            f"there is no model {name}",
            hint=f"put the file into {models_dir}, or register it: aos model add FILE.gguf",
        )
    if entry is None:
        return FoundModel(path=files[0], entry=None)
    for path in files:
        if path.stat().st_size == entry.size:
            return FoundModel(path=path, entry=entry)
    raise VerificationError(
        "model.changed",
        f"{files[0]} has not the size that was registered as {name}",
        hint="register the changed file under another name",
    )


def _refuse_taken(known: tuple[ModelEntry, ...], name: str, model_id: bytes | None) -> None:
    for entry in known:
        if entry.name == name and model_id is not None and entry.model_id != model_id:
            raise RuleViolation(
                "model.name_taken",
                f"{name} stands for the model {entry.model_id.hex()} already",
                hint="a name is never re-pointed: register the file under another one (--name)",
            )
    if len(known) >= MAX_MODELS and all(entry.name != name for entry in known):
        raise RuleViolation("model.too_many", f"there are {MAX_MODELS} models registered already")


@contextmanager
def _exclusive(state_dir: Path) -> Iterator[None]:
    """One writer at a time, over processes."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        with (state_dir / f"{_FILE}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except AOSError:
        raise
    except OSError as error:
        raise ConfigError("model.registry", f"cannot write in {state_dir}: {error.strerror}") from error


def _write(state_dir: Path, registry: _Registry) -> None:
    """Replace the file: whoever reads it, or loses power, finds the old one or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=state_dir, prefix=f"{_FILE}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(canonical_json(encode(registry)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, state_dir / _FILE)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_directory(state_dir)


def sync_directory(path: Path) -> None:
    """Make a rename in ``path`` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
