"""What a simulated enclave says runs in it (docs/spec/10-tee.md, "Measurement").

A digest over the source files that the enclave's process executes, the versions of the packages under them,
and the engine's profile. The enclave computes it about itself, so it is a claim; a real platform measures the
image before the first instruction.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aos.core.encoding import canonical_json, tagged_hash

_FILES = (
    "errors.py",
    "ports.py",
    "adapters/frames.py",
    "adapters/simulated_tee.py",
    "workers/execution.py",
)
_TREES = ("core", "engine", "workers/enclave")
_PACKAGES = ("PyNaCl", "coincurve", "numpy", "rfc8785", "xllamacpp")


def measured_manifest(engine: str) -> dict[str, Any]:
    """The manifest that is hashed: sorted ``[path, SHA-256]`` pairs, ``[package, version]`` pairs, Python,
    engine profile."""
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
        "type": "aos.tee.simulated_manifest",
        "v": 1,
        "engine": engine,
        "files": [[name, sha256(path.read_bytes()).hexdigest()] for name, path in files],
        "packages": [[name, version(name)] for name in _PACKAGES],
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def measurement(engine: str) -> bytes:
    """H("tee-measurement", canonical JSON of the manifest), 32 bytes."""
    return tagged_hash("tee-measurement", canonical_json(measured_manifest(engine)))
