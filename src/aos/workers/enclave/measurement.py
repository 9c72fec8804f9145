"""What an enclave says runs in it (docs/spec/10-tee.md, "Measurement").

A digest over the source files that the enclave's process executes, the native engine, the interpreter with its library,
and every package under them, file by file. The enclave computes it about itself, so it is a claim; a real platform
measures the image before the first instruction. Computed in an image beforehand, it says what an enclave of that image
will claim.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aos.core.encoding import canonical_json, tagged_hash
from aos.errors import ConfigError

_FILES = (
    "errors.py",
    "ports.py",
    "adapters/frames.py",
    "adapters/simulated_tee.py",
    "workers/execution.py",
)
_TREES = ("core", "engine", "workers/enclave")
_PACKAGES = ("PyNaCl", "coincurve", "numpy", "rfc8785", "xllamacpp")
"""What the enclave's process imports by itself; what these need is measured with them."""

# What an installer writes about itself, with paths and dates of the machine; none of it is executed.
_NOT_OF_A_PACKAGE = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
_NOT_OF_THE_LIBRARY = frozenset({"__pycache__", "site-packages", "dist-packages"})
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)")


def measured_manifest(engine: str) -> dict[str, Any]:
    """The manifest that is hashed: sorted ``[path, SHA-256]`` pairs, ``[package, version, digest]`` triples, Python,
    engine profile. Raises ConfigError ``measurement.package``."""
    root = Path(__file__).resolve().parents[2]
    paths = {root / name for name in _FILES}
    for tree in _TREES:
        paths.update(path for path in (root / tree).rglob("*.py"))
    files = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    # The native engine's compiled part need not lie beside the sources.
    compiled = find_spec("aos.engine._native") if engine.startswith("aos-canonical/") else None
    if compiled is not None and compiled.origin is not None:
        files.append(("engine/_native", Path(compiled.origin)))
    return {
        "type": "aos.tee.manifest",
        "v": 2,
        "engine": engine,
        "files": [[name, _file(path)] for name, path in files],
        "packages": _packages(),
        "python": _python(),
    }


def measurement(engine: str) -> bytes:
    """H("tee-measurement", canonical JSON of the manifest), 32 bytes."""
    return digest_of(measured_manifest(engine))


def digest_of(manifest: dict[str, Any]) -> bytes:
    """H("tee-measurement", canonical JSON of ``manifest``), 32 bytes."""
    return tagged_hash("tee-measurement", canonical_json(manifest))


def _file(path: Path) -> str:
    with path.open("rb") as stream:
        digest = sha256()
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _tree(name: str, files: Iterable[tuple[str, Path]]) -> str:
    """One digest over many files, sorted by their names."""
    pairs = [[relative, _file(path)] for relative, path in sorted(files)]
    return tagged_hash(name, canonical_json(pairs)).hex()


@cache
def _python() -> dict[str, str]:
    """The interpreter's file, the shared library that it may be in, and its standard library."""
    library = Path(sysconfig.get_path("stdlib")).resolve()
    shared = Path(sysconfig.get_config_var("LIBDIR") or "") / (sysconfig.get_config_var("INSTSONAME") or "")
    linked = bool(sysconfig.get_config_var("Py_ENABLE_SHARED")) and shared.is_file()
    return {
        "version": ".".join(map(str, sys.version_info[:3])),
        "executable": _file(Path(sys.executable).resolve()),
        "shared": _file(shared) if linked else "",
        "library": _tree(
            "measured-library",
            (
                (path.relative_to(library).as_posix(), path)
                for path in library.rglob("*")
                if path.is_file() and not _NOT_OF_THE_LIBRARY & set(path.relative_to(library).parts)
            ),
        ),
    }


@cache
def _packages() -> list[list[str]]:
    found: dict[str, Distribution] = {}
    wanted = list(_PACKAGES)
    while wanted:
        name = wanted.pop()
        key = _normal(name)
        if key in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            if name in _PACKAGES:
                raise ConfigError(
                    "measurement.package", f"the package {name} is not installed", hint="run `make setup`"
                ) from None
            continue  # asked for by another package on other systems only
        found[key] = package
        for requirement in package.requires or ():
            text, _, marker = requirement.partition(";")
            if "extra" not in marker and (match := _REQUIREMENT.match(text)) is not None:
                wanted.append(match[1])
    return [[name, package.version, _package(name, package)] for name, package in sorted(found.items())]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _package(name: str, package: Distribution) -> str:
    files = []
    for path in package.files or ():
        if ".." in path.parts or "__pycache__" in path.parts or path.suffix == ".pyc":
            continue  # programs beside the library, whose first line is a path, and what Python writes itself
        if path.name in _NOT_OF_A_PACKAGE and path.parts[0].endswith(".dist-info"):
            continue
        files.append((path.as_posix(), Path(str(path.locate()))))
    if not files or not all(path.is_file() for _, path in files):
        raise ConfigError(
            "measurement.package", f"a file of the package {name} is missing", hint="run `make clean setup`"
        )
    return _tree("measured-package", files)
