"""No check of the game is there for nothing: without any one of them, some vector is judged otherwise.

Each guard of ``game.py`` (an ``if`` that refuses or convicts, a verified signature) is taken out in turn.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from test_dispute_vectors import TRANSCRIPTS, maker

from aos.core.dispute import game, transcript
from aos.core.dispute.fine.referee import Canonical
from aos.core.encoding import canonical_json

SOURCE = inspect.getsource(game)
JUDGES = ("start", "apply", "_earlier", "_answer", "_choose", "_proof")
KEPT_ELSEWHERE = {
    "not core.state_root": "check_case refuses it before the game begins",
    "size > rules.max_bytes": "a challenge has a fixed size far below; test_dispute_game.py tries it",
    "size > game.rules.max_bytes": "the same limit, before the signature is looked at; test_dispute_game.py tries it",
    "len(shape.fanout) > game.rules.levels or max(shape.fanout) > game.rules.width": "no rules of the vectors are tighter than "
    "the trees; test_dispute_game.py tries it",
}
DOCUMENTS = [
    (case, canonical_json(maker().changed(json.loads(TRANSCRIPTS["files"][case["file"]]), case["changes"])))
    for case in TRANSCRIPTS["cases"]
    if case["state"] != "UNDECIDED"
]


def guards() -> Iterator[tuple[str, str]]:
    """(function, condition or call) of everything that may be taken out."""
    for function in ast.parse(SOURCE).body:
        if isinstance(function, ast.FunctionDef) and function.name in JUDGES:
            for node in ast.walk(function):
                if isinstance(node, ast.If) and not node.orelse and refuses(node.body[-1]):
                    yield function.name, ast.unparse(node.test)
                elif isinstance(node, ast.Expr) and ast.unparse(node).startswith("check_signed("):
                    yield function.name, ast.unparse(node)


def refuses(last: ast.stmt) -> bool:
    called = ast.unparse(last)
    return isinstance(last, ast.Raise) or called.startswith(("return broken(", "return _lost("))


def without(function_name: str, guard: str) -> ModuleType:
    """The module without this guard."""
    tree = ast.parse(SOURCE)

    class Remove(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST:
            self.generic_visit(node)
            if ast.unparse(node.test) == guard:
                node.test = ast.Constant(value=False)
            return node

        def visit_Expr(self, node: ast.Expr) -> ast.AST:
            return ast.Pass() if ast.unparse(node) == guard else node

    for index, function in enumerate(tree.body):
        if isinstance(function, ast.FunctionDef) and function.name == function_name:
            tree.body[index] = Remove().visit(function)
    module = ModuleType("aos_dispute_game_mutant")
    sys.modules[module.__name__] = module
    exec(compile(ast.fix_missing_locations(tree), "mutant", "exec"), module.__dict__)  # noqa: S102
    return module


def differs(module: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(transcript, "start", module.start)
    monkeypatch.setattr(transcript, "apply", module.apply)
    for case, data in DOCUMENTS:
        try:
            found = transcript.judge(data, Canonical())
        except Exception:
            return True
        failed = next((check for check in found.checks if check.status == "FAIL"), None)
        faults = [] if found.game is None else [[fault.party, fault.code] for fault in found.game.faults]
        if (found.state, failed.id if failed else None, faults) != (
            case["state"],
            case["check"],
            case["faults"],
        ):
            return True
        if failed is not None and failed.code != case["error"]:
            return True
    return False


def test_the_guards_are_found_and_the_whole_module_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(guards())) >= 25
    assert {guard for _, guard in guards()} >= set(KEPT_ELSEWHERE)
    assert not differs(game, monkeypatch)


@pytest.mark.parametrize(("function", "guard"), [pair for pair in guards() if pair[1] not in KEPT_ELSEWHERE])
def test_without_any_one_check_a_vector_is_judged_otherwise(
    function: str, guard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert differs(without(function, guard), monkeypatch), f"{function} does without: {guard}"
