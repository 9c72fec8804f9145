"""What a SIMULATED platform measures of an enclave before its first instruction (docs/spec/10-tee.md, "Measurement").

Digests over the source files that the enclave's process executes and the versions of the packages under them, in the
shape of a Nitro image's registers. A real platform measures the image file; here an ordinary process reads files.
"""

from __future__ import annotations

import sys
from hashlib import sha256, sha384
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aos.core.encoding import canonical_json, tagged_hash

_FILES = (
    "errors.py",
    "ports.py",
    "adapters/enclave_image.py",
    "adapters/frames.py",
    "adapters/nsm.py",
    "adapters/simulated_nsm.py",
    "workers/execution.py",
)
_TREES = ("core", "engine", "workers/enclave")
_PACKAGES = ("PyNaCl", "coincurve", "cryptography", "numpy", "xllamacpp")
_NATIVE = "aos.engine._native"
_COMPILED = (".so", ".dylib", ".pyd")


def measured_manifest() -> dict[str, Any]:
    """What is measured: sorted ``[path, SHA-256]`` pairs, ``[package, version]`` pairs, Python."""
    root = Path(__file__).resolve().parents[1]
    paths = {root / name for name in _FILES}
    for tree in _TREES:
        paths.update((root / tree).rglob("*.py"))
    files = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    # The native engine's compiled part need not lie beside the sources.
    files += [("engine/_native", path) for path in _compiled(_NATIVE)]
    return {
        "type": "aos.tee.simulated_manifest",
        "v": 2,
        "files": [[name, _digest(path)] for name, path in files],
        "packages": [[name, version(name)] for name in _PACKAGES],
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def simulated_pcrs() -> dict[int, bytes]:
    """PCR0, PCR1 and PCR2 (48 bytes each) of what runs here: all of it, what lies under it, the application."""
    manifest = measured_manifest()
    below = canonical_json({"packages": manifest["packages"], "python": manifest["python"]})
    application = canonical_json({"files": manifest["files"]})
    return {0: _register(below + application), 1: _register(below), 2: _register(application)}


def engine_digest(profile: str) -> bytes:
    """H("tee-engine", canonical JSON of profile and files), 32 bytes: the engine's sources and its compiled parts."""
    root = Path(__file__).resolve().parents[1]
    files = [(path.relative_to(root).as_posix(), path) for path in sorted((root / "engine").rglob("*.py"))]
    package = _NATIVE if profile.startswith("aos-canonical/") else "xllamacpp"
    files += [(f"{package}/{path.name}", path) for path in _compiled(package)]
    listed = [[name, _digest(path)] for name, path in files]
    return tagged_hash("tee-engine", canonical_json({"profile": profile, "files": listed}))


def _compiled(module: str) -> list[Path]:
    """The compiled files of a module or package, by name; none where it is not there."""
    found = find_spec(module)
    if found is None:
        return []
    if found.submodule_search_locations is None:
        return [] if found.origin is None else [Path(found.origin)]
    folders = [Path(place) for place in found.submodule_search_locations]
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in _COMPILED)


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _register(data: bytes) -> bytes:
    # As Nitro's: a register of zeros, extended once by the SHA-384 of what is measured.
    return sha384(bytes(48) + sha384(data).digest()).digest()
