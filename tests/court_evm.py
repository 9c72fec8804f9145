"""Contracts in an in-process EVM, from the artefacts in contracts/artifacts. No gas figure may be taken from it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from aos.core.signing import keccak256

ROOT = Path(__file__).resolve().parents[1]
ARTIFACTS = (ROOT / "src/aos/adapters/chain/artifacts", ROOT / "contracts/test/artifacts", ROOT / "contracts/artifacts")
SENDER = "0x00000000000000000000000000000000000000a0"
GAS = 2**40


def artifact(name: str) -> dict[str, Any]:
    """A contract's artefact."""
    path = next(folder / f"{name}.json" for folder in ARTIFACTS if (folder / f"{name}.json").is_file())
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def selector(signature: str) -> bytes:
    """The four bytes that name a function."""
    return keccak256(signature.encode())[:4]


def in_process() -> Any:
    """A fresh EVM; skips the test where it is not installed."""
    pyrevm = pytest.importorskip("pyrevm", reason="pip install pyrevm")
    return pyrevm.EVM(gas_limit=GAS, spec_id="PRAGUE")


def reverted(error: RuntimeError) -> bytes:
    """The data with which a call was reverted; empty where it ran out of gas or the like."""
    found = re.search(r"output: 0x([0-9a-f]*)", str(error))
    return bytes.fromhex(found.group(1)) if found else b""
