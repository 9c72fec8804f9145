"""The tiny models of the engine's vectors, made by the script that makes the vectors."""

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]
VECTORS = REPOSITORY / "vectors" / "aos" / "engine"


@cache
def maker() -> ModuleType:
    """scripts/make_engine_vectors.py as a module."""
    return _module("scripts", "make_engine_vectors")


@cache
def tiny_models() -> ModuleType:
    """scripts/tiny_models.py as a module."""
    return _module("scripts", "tiny_models")


@cache
def quality() -> ModuleType:
    """benchmarks/quality.py as a module."""
    return _module("benchmarks", "quality")


def _module(directory: str, name: str) -> ModuleType:
    # A script imports its neighbours, as when it is run.
    path = str(REPOSITORY / directory)
    if path not in sys.path:
        sys.path.append(path)
    return importlib.import_module(name)


@cache
def model_bytes(name: str) -> bytes:
    """The GGUF file of one of the script's models."""
    (model,) = [model for model in maker().MODELS if model.name == name]
    data: bytes = maker().build_model(model)
    return data
