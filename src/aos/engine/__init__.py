"""Inference engines behind ``aos.ports.Engine``: the canonical reference engine and llama.cpp.

Engines are imported when asked for, so that the rest of the product does not pay for them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aos.ports import Engine

if TYPE_CHECKING:
    from aos.engine.manifest import Manifest

EngineKind = Literal["reference", "llama.cpp"]


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
    all; ``threads`` is for llama.cpp (the reference engine uses one). Raises InvalidMessage (``gguf.*``,
    ``tokenizer.*``, ``engine.*``, ``rope.*``), Unavailable (``engine.file_unreadable``), ConfigError
    (``engine.kind``).
    """
    if kind == "reference":
        from aos.engine.reference import ReferenceEngine

        return ReferenceEngine(path, cache_dir=cache_dir, progress=progress)
    if kind == "llama.cpp":
        from aos.engine.llama_cpp import LlamaCppEngine

        return LlamaCppEngine(path, cache_dir=cache_dir, progress=progress, threads=threads)
    from aos.errors import ConfigError

    raise ConfigError("engine.kind", f"{kind!r} is not an engine", hint="use reference or llama.cpp")


def read_manifest(
    path: str | Path, *, cache_dir: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> "Manifest":
    """What a GGUF file is: digests, sizes, ``model_id``. Raises as ``load_engine`` does for a broken file."""
    from aos.engine.manifest import read_manifest as read

    return read(path, cache_dir=cache_dir, progress=progress)
