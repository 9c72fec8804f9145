"""The tiny models of the engine's vectors, made by the script that makes the vectors."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[2]
VECTORS = REPOSITORY / "vectors" / "aos" / "engine"


@cache
def maker() -> ModuleType:
    """scripts/make_engine_vectors.py as a module."""
    return _module("scripts", "make_engine_vectors")


@cache
def quality() -> ModuleType:
    """benchmarks/quality.py as a module."""
    return _module("benchmarks", "quality")


def _module(directory: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / directory / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def model_bytes(name: str) -> bytes:
    """The GGUF file of one of the script's models."""
    (model,) = [model for model in maker().MODELS if model.name == name]
    data: bytes = maker().build_model(model)
    return data
