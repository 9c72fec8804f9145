"""The checked-in artefacts are what the sources compile to."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from needed import absent

CODE_LIMIT = 24_576
"""EIP-170: no larger contract can be deployed."""


def artifacts(repository: Path) -> dict[str, Path]:
    """Where every artefact lies, by its path in the compiler's output."""
    return {
        f"{kind}/{path.name}": path
        for kind, folder in (
            ("src", repository / "src/aos/adapters/chain/artifacts"),
            ("test", repository / "contracts/test/artifacts"),
        )
        for path in folder.glob("*.json")
    }


def test_every_artefact_is_of_the_sources_that_lie_here(repository: Path) -> None:
    found = artifacts(repository)
    assert {"src/OperatorRegistry.json", "src/ModelRegistry.json"} <= set(found)
    for name, path in found.items():
        artifact = json.loads(path.read_text())
        for source, digest in artifact["sources"].items():
            content = (repository / "contracts" / source).read_bytes()
            assert hashlib.sha256(content).hexdigest() == digest, (
                f"{source} changed after {name} was compiled: make contracts"
            )
        assert artifact["compiler"].startswith("0.8.37+")
        size = len(artifact["deployed_bytecode"]) // 2
        assert size <= CODE_LIMIT, f"{name} has {size} bytes of code"


def test_every_source_is_in_some_artefact(repository: Path) -> None:
    used = {
        source
        for path in artifacts(repository).values()
        for source in json.loads(path.read_text())["sources"]
    }
    here = {
        f"{folder}/{path.name}"
        for folder in ("src", "test")
        for path in (repository / "contracts" / folder).glob("*.sol")
    }
    assert used == here


@pytest.mark.timeout(900)
def test_compiling_again_gives_the_same_bytes(repository: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (repository / "contracts/node_modules/solc").is_dir():
        absent("the compiler solc is not installed: make chain-tools")
    compiled = subprocess.run(
        [str(node), "compile.mjs", str(tmp_path)],
        cwd=repository / "contracts",
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert compiled.returncode == 0, compiled.stderr
    kept = artifacts(repository)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")} == set(kept)
    for name, path in kept.items():
        assert (tmp_path / name).read_bytes() == path.read_bytes(), f"{name}: make contracts"


@pytest.mark.parametrize("name", ["OperatorRegistry", "ModelRegistry"])
def test_the_package_ships_it(name: str) -> None:
    from aos.adapters.chain.contracts import contract

    assert contract(name).name == name
    assert len(contract(name).deployed_bytecode) > 1_000
