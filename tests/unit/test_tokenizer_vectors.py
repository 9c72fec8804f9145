"""Every id, run and refusal that vectors/aos/tokenizer commits to (spec 07, "Vectors")."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
VECTORS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((REPOSITORY / "vectors" / "aos" / "tokenizer").glob("*.json"))
}
CASES = [(name, index) for name, vector in VECTORS.items() for index in range(len(vector["cases"]))]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_tokenizer_vectors", REPOSITORY / "scripts" / "make_tokenizer_vectors.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "index"), CASES)
def test_every_case_gives_what_is_committed(maker: ModuleType, name: str, index: int) -> None:
    vocabulary = VECTORS[name]["vocabulary"]
    case: dict[str, Any] = VECTORS[name]["cases"][index]
    result = maker.chat_outcome(vocabulary, case) if name == "chat" else maker.outcome(vocabulary, case)
    assert result
    assert {**case, **result} == case
    assert ("error" in case) == ("error" in result)


def test_there_are_vectors_of_every_kind_and_half_of_them_are_refusals() -> None:
    assert set(VECTORS) == {"spm", "bpe", "chat"}
    for vector in VECTORS.values():
        refused = sum("error" in case for case in vector["cases"])
        assert 2 * refused >= len(vector["cases"])
