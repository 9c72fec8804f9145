"""What is installed where this runs, as digests: packages, interpreter, standard library
(docs/spec/12-attestation.md, "Image manifest").

Files are hashed as they lie there, not as their installer listed them. What an installer writes about itself, with
paths and times of the machine, and what Python writes when it runs, is left out: none of it is executed.
"""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from collections.abc import Collection, Iterable
from hashlib import sha256
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from aos.adapters.enclave_image import measured_manifest
from aos.core.encoding import canonical_json, tagged_hash
from aos.errors import ConfigError

ENCLAVE_PACKAGES = ("PyNaCl", "coincurve", "cryptography", "numpy", "xllamacpp")
"""What the enclave's process imports by itself; what these need belongs to it too."""

_NOT_OF_A_PACKAGE = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
# Nothing that runs imports the last three, and images leave them out.
_NOT_OF_THE_LIBRARY = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "idlelib", "ensurepip"}
)
_RUN_AT_START = ("*.pth", "sitecustomize.py", "usercustomize.py")
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)")


def image_manifest(*, packages: Collection[str] = ENCLAVE_PACKAGES) -> dict[str, Any]:
    """Everything that an image of this installation executes above the operating system.

    Raises ConfigError ``installed.package``.
    """
    return {
        "type": "aos.tee.image_manifest",
        "v": 1,
        "files": measured_manifest()["files"],
        "packages": installed_packages(packages),
        "python": installed_python(),
        "start": run_at_start(),
    }


def image_manifest_digest(manifest: dict[str, Any]) -> bytes:
    """H("tee-image-manifest", canonical JSON of ``manifest``), 32 bytes."""
    return tagged_hash("tee-image-manifest", canonical_json(manifest))


def installed_python() -> dict[str, str]:
    """Version; SHA-256 of the interpreter's file and of the shared library that it may be in (else empty); one digest
    over its standard library."""
    library = Path(sysconfig.get_path("stdlib")).resolve()
    directory, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    shared = Path(directory) / name if directory and name else None
    linked = sysconfig.get_config_var("Py_ENABLE_SHARED") and shared is not None and shared.is_file()
    inside = (
        (path.relative_to(library).as_posix(), path)
        for path in library.rglob("*")
        if path.is_file() and not _NOT_OF_THE_LIBRARY & set(path.relative_to(library).parts)
    )
    return {
        "version": ".".join(map(str, sys.version_info[:3])),
        "executable": _file(Path(sys.executable).resolve()),
        "shared": _file(shared) if linked and shared is not None else "",
        "library": _tree("installed-library", inside),
    }


def run_at_start() -> list[list[str]]:
    """Sorted [name, SHA-256] of the files beside the packages that Python executes before anything else."""
    places = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    found = {path.name: path for place in places for pattern in _RUN_AT_START for path in place.glob(pattern)}
    return [[name, _file(path)] for name, path in sorted(found.items())]


def installed_packages(names: Collection[str]) -> list[list[str]]:
    """Sorted [name, version, digest] of the named packages and of all that they need. Raises ConfigError
    ``installed.package``."""
    found: dict[str, Distribution] = {}
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            if name in names:
                raise _broken(f"the package {name} is not installed") from None
            continue  # needed on other systems only
        found[key] = package
        for requirement in package.requires or ():
            text, _, marker = requirement.partition(";")
            if "extra" not in marker and (match := _REQUIREMENT.match(text)) is not None:
                wanted.append(match[1])
    return [[name, package.version, _package(name, package)] for name, package in sorted(found.items())]


def _package(name: str, package: Distribution) -> str:
    files = []
    for path in package.files or ():
        if ".." in path.parts or "__pycache__" in path.parts or path.suffix == ".pyc":
            continue  # programs beside the library, whose first line is a path, and what Python compiled
        if path.name in _NOT_OF_A_PACKAGE and path.parts[0].endswith(".dist-info"):
            continue
        files.append((path.as_posix(), Path(str(path.locate()))))
    if not files or not all(path.is_file() for _, path in files):
        raise _broken(f"a file of the package {name} is missing")
    return _tree("installed-package", files)


def _broken(message: str) -> ConfigError:
    return ConfigError("installed.package", message, hint="run `make clean setup` in the checkout")


def _tree(name: str, files: Iterable[tuple[str, Path]]) -> str:
    """One digest over many files, sorted by their names."""
    pairs = [[relative, _file(path)] for relative, path in sorted(files)]
    return tagged_hash(name, canonical_json(pairs)).hex()


def _file(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def main() -> int:
    """``python -m aos.adapters.installed``: what `aos tee measure --json` prints, where there is no command line, as in
    an image."""
    manifest = image_manifest()
    value = {"digest": image_manifest_digest(manifest).hex(), "manifest": manifest}
    sys.stdout.write(json.dumps({"schema": "aos.cli.tee.measure/1", "result": value}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
