"""The import rule of docs/architecture.md, read from the source, not from what happens to be loaded.

core: the standard library and named primitives; NumPy in core/arithmetic and core/dispute/fine alone. engine and adapters: core,
ports, errors, never an app. Apps never each other; the CLI imports an app only inside the command that
starts it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "aos"

APPS = frozenset({"attack", "dispatcher", "operator", "workers", "local", "explorer", "witness", "cli"})
NUMPY_PACKAGES = ("aos.core.arithmetic", "aos.core.dispute.fine")
CORE_PACKAGES = frozenset({"coincurve", "nacl", "cryptography", "dcap_qvl", "Crypto"})
# Of the standard library: what reaches the world, or takes from it what must be an argument.
NOT_IN_CORE = frozenset(
    {"asyncio", "http", "logging", "multiprocessing", "random", "requests", "secrets", "selectors", "socket"}
    | {"sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib", "uuid"}
)
LIBRARY_PARTS = {
    "core": frozenset({"core", "errors"}),
    "engine": frozenset({"engine", "core", "ports", "errors"}),
    "adapters": frozenset({"adapters", "core", "ports", "errors"}),
    "client": frozenset({"client", "core", "errors"}),
    "ports": frozenset({"ports", "core", "errors"}),
    "errors": frozenset({"errors"}),
    "progress": frozenset(),
}
SHARED_BY_APPS = frozenset({"adapters", "client", "core", "engine", "errors", "ports", "progress"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    module: str
    line: int
    inside_function: bool


def imports_of(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[Import]:
    """Every import, those for type checking alone left out: they bring nothing into the process."""
    package = module.split(".") if is_package else module.split(".")[:-1]

    def visit(node: ast.AST, inside: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module=alias.name, line=node.lineno, inside_function=inside)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            if origin == "aos" or (node.level and not node.module):
                for alias in node.names:  # `from aos import core`: the name is the module
                    yield Import(module=f"{origin}.{alias.name}", line=node.lineno, inside_function=inside)
            else:
                yield Import(module=origin, line=node.lineno, inside_function=inside)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.orelse:
                yield from visit(child, inside)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "importlib.import_module",
            "import_module",
        ):
            name = node.args[0] if node.args else None
            text = (
                name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else "<computed>"
            )
            yield Import(module=text, line=node.lineno, inside_function=inside)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inside)
        else:
            deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, deeper)

    yield from visit(tree, False)


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What ``source``, standing at ``module`` (such as ``aos.core.vrf``), imports against the rule."""
    part = module.split(".")[1] if "." in module else ""
    found = []
    for item in imports_of(ast.parse(source), module, is_package=is_package):
        top, *rest = item.module.split(".")
        reason = None
        if top == "aos":
            reason = _inside(part, rest[0] if rest else "", lazily=item.inside_function)
        elif part == "core":
            reason = _outside_core(module, top, item)
        elif item.module == "<computed>" and part in ("engine", "ports", "errors"):
            reason = "imports a module whose name is computed"
        if reason is not None:
            found.append(f"{module}:{item.line}: {item.module}: {reason}")
    return found


def _inside(part: str, target: str, *, lazily: bool) -> str | None:
    if part in LIBRARY_PARTS:
        return None if target in LIBRARY_PARTS[part] else f"{part} may not import {target or 'aos'}"
    if part in APPS:
        if target == part or target in SHARED_BY_APPS or target == "":
            return None
        if part == "cli" and target in APPS:
            return None if lazily else "the CLI imports an app only inside the command that starts it"
        return f"the app {part} may not import {target}"
    return None if part == "" else f"the rule does not know the part {part}"


def _outside_core(module: str, top: str, item: Import) -> str | None:
    if top in NOT_IN_CORE:
        return "reaches the world; core is pure"
    if top in sys.stdlib_module_names or top in CORE_PACKAGES:
        return None
    if top == "numpy":
        if module in NUMPY_PACKAGES and not item.inside_function:
            return "NumPy must not load with the package itself"
        return (
            None
            if module.startswith(NUMPY_PACKAGES)
            else "NumPy is for core/arithmetic and core/dispute/fine"
        )
    return "not a primitive that core may use"


def module_of(path: Path) -> tuple[str, bool]:
    parts = ["aos", *path.relative_to(SOURCE).with_suffix("").parts]
    is_package = parts[-1] == "__init__"
    return ".".join(parts[:-1] if is_package else parts), is_package


def test_every_module_keeps_the_import_rule() -> None:
    paths = sorted(SOURCE.rglob("*.py"))
    assert len(paths) > 10, "the source was not found"
    found = []
    for path in paths:
        module, is_package = module_of(path)
        found += violations(path.read_text(), module, is_package=is_package)
    assert found == []


def test_numpy_enters_core_through_its_packages_alone() -> None:
    """Nothing else of core may import them while it loads: NumPy would come in by a side door."""
    found = []
    for path in sorted((SOURCE / "core").rglob("*.py")):
        module, is_package = module_of(path)
        if module.startswith(tuple(f"{package}." for package in NUMPY_PACKAGES)):
            continue
        for item in imports_of(ast.parse(path.read_text()), module, is_package=is_package):
            if item.module.startswith(NUMPY_PACKAGES) and not item.inside_function:
                found.append(f"{module}:{item.line}: {item.module}")
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("aos.core.vrf", "import httpx"),
        ("aos.core.vrf", "import numpy as np"),
        ("aos.core.vrf", "def f():\n    import numpy"),
        ("aos.core.vrf", "import socket"),
        ("aos.core.vrf", "import time"),
        ("aos.core.vrf", "if not TYPE_CHECKING:\n    import redis"),
        ("aos.core.vrf", "import importlib\nimportlib.import_module(NAME)"),
        ("aos.core.vrf", "import aos.adapters.postgres"),
        ("aos.core.vrf", "from aos import adapters"),
        ("aos.core.vrf", "from ..adapters import embedded"),
        ("aos.core.vrf", "from .. import ports"),
        ("aos.core.vrf", "def f():\n    from aos.dispatcher import routes"),
        ("aos.core.vrf", "try:\n    import fastapi\nexcept ImportError:\n    pass"),
        ("aos.core.arithmetic", "import numpy"),
        ("aos.core.dispute.fine", "import numpy"),
        ("aos.core.dispute.game", "import numpy"),
        ("aos.core.arithmetic.ops", "import torch"),
        ("aos.adapters.redis", "from aos.dispatcher.store import X"),
        ("aos.adapters.redis", "def f():\n    import aos.cli.main"),
        ("aos.adapters.redis", "from aos.engine import gguf"),
        ("aos.engine.gguf", "from aos.adapters import frames"),
        ("aos.ports", "from aos.engine.gguf import Model"),
        ("aos.dispatcher.app", "from aos.operator.config import Config"),
        ("aos.workers.main", "def f():\n    from aos.operator import link"),
        ("aos.operator.link", "from aos.cli.voice import say"),
        ("aos.cli.main", "from aos.dispatcher import app"),
        ("aos.cli.main", "if True:\n    import aos.operator.runer"),
        ("aos.utils.text", "from aos.core import codec"),
    ],
)
def test_a_breach_of_the_rule_is_found(module: str, source: str) -> None:
    assert violations(source, module), f"{source!r} in {module} went through"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("aos.core.vrf", "import hashlib\nfrom nacl import bindings\nfrom aos.errors import InvalidMessage"),
        ("aos.core.vrf", "from . import encoding\nfrom .merkle import leaf"),
        ("aos.core.vrf", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy"),
        ("aos.core.arithmetic.ops", "import numpy as np"),
        ("aos.core.dispute.fine.tile", "import numpy as np"),
        ("aos.core.arithmetic", "def f():\n    import numpy"),
        ("aos.adapters.redis", "import redis\nfrom aos.ports import Queue\nfrom aos.core import codec"),
        (
            "aos.dispatcher.app",
            "import fastapi\nfrom aos.adapters.postgres import pool\nfrom .config import C",
        ),
        ("aos.cli.main", "def up():\n    from aos.dispatcher import app"),
    ],
)
def test_what_the_rule_allows_goes_through(module: str, source: str) -> None:
    assert violations(source, module) == []
