"""Inference engines behind ``aos.ports.Engine``: the canonical native and reference engines, and llama.cpp.

Engines are imported when asked for, so that the rest of the product does not pay for them.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aos.ports import Engine

if TYPE_CHECKING:
    from aos.core.manifest import Manifest

EngineKind = Literal["native", "reference", "llama.cpp"]


def load_engine(
    path: str | Path,
    *,
    kind: EngineKind,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 1,
) -> Engine:
    """Load a GGUF file into an engine.

    ``cache_dir`` keeps the model's manifest and rotary table; ``progress`` gets bytes done and bytes in
    all; ``threads`` is for the native engine and llama.cpp (the reference engine uses one). ``native`` and
    ``reference`` give the same bits. Raises InvalidMessage (``gguf.*``, ``tokenizer.*``, ``engine.*``,
    ``rope.*``), Unavailable (``engine.file_unreadable``, ``engine.memory``), ConfigError (``engine.kind``,
    ``engine.native_missing``, ``engine.isa``, ``engine.threads``, ``engine.self_test``).
    """
    if kind == "native":
        with loadable():
            from aos.engine.native import NativeEngine

        return NativeEngine(path, cache_dir=cache_dir, progress=progress, threads=threads)
    if kind == "reference":
        from aos.engine.reference import ReferenceEngine

        return ReferenceEngine(path, cache_dir=cache_dir, progress=progress)
    if kind == "llama.cpp":
        from aos.engine.llama_cpp import LlamaCppEngine

        return LlamaCppEngine(path, cache_dir=cache_dir, progress=progress, threads=threads)
    from aos.errors import ConfigError

    raise ConfigError("engine.kind", f"{kind!r} is not an engine", hint="use native, reference or llama.cpp")


def native_instruction_sets() -> list[str]:
    """What the native engine can compute with here, the plainest first. Raises ConfigError ``engine.native_missing``."""
    with loadable():
        from aos.engine.native import instruction_sets

    return instruction_sets()


@contextmanager
def loadable() -> Iterator[None]:
    """Around the import of the native engine."""
    try:
        yield
    except ImportError as error:
        from aos.errors import ConfigError

        raise ConfigError(
            "engine.native_missing",
            f"the native engine does not load on this machine ({platform.machine()}, Python "
            f"{platform.python_version()}): {error}",
            hint="run `make clean setup` here: every engine hashes a model's weights with it",
        ) from error


def isa_of(engine: Engine) -> str:
    """The instruction set that an engine computes with, for people; empty where it is not the native one."""
    return str(getattr(engine, "isa", ""))


def read_manifest(
    path: str | Path, *, cache_dir: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> "Manifest":
    """What a GGUF file is: digests, sizes, ``model_id``. Raises as ``load_engine`` does for a broken file."""
    from aos.engine.manifest import read_manifest as read

    return read(path, cache_dir=cache_dir, progress=progress)
