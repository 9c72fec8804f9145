"""The model registry: a name stands for one model for ever; a damaged, changed or missing file is named as that."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from engine_models import model_bytes

from aos.adapters import model_store
from aos.adapters.model_store import Progress, add_model, check_name, find_model, list_models
from aos.engine import read_manifest
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable, VerificationError


@dataclass(frozen=True)
class Manifest:
    """Stands for a GGUF file's manifest where its content does not matter."""

    model_id: bytes
    file_sha256: bytes
    file_size: int


def manifest_of(path: Path, progress: Progress | None) -> Manifest:
    data = path.read_bytes()
    return Manifest(
        model_id=sha256(b"model" + data).digest(), file_sha256=sha256(data).digest(), file_size=len(data)
    )


def refused(cls: type[AOSError], code: str, call: Callable[[], Any]) -> AOSError:
    with pytest.raises(cls) as caught:
        call()
    assert caught.value.code == code
    return caught.value


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "files" / "a.gguf"
    path.parent.mkdir()
    path.write_bytes(b"first model")
    return path


def test_a_real_model_is_registered_under_what_the_engine_computes(tmp_path: Path, state: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(model_bytes("tiny-f16"))
    entry = add_model(
        state, path, read_manifest=lambda file, progress: read_manifest(file, progress=progress)
    )
    assert entry.model_id == read_manifest(path).model_id
    assert entry.sha256 == sha256(path.read_bytes()).digest()
    assert entry.size == path.stat().st_size
    assert find_model(state, "tiny.gguf", models_dir=tmp_path / "none").entry == entry


def test_what_was_added_is_listed_and_found_again(state: Path, file: Path, tmp_path: Path) -> None:
    assert list_models(state) == ()
    first = add_model(state, file, read_manifest=manifest_of)
    second = add_model(state, file, read_manifest=manifest_of, name="other-name.gguf")
    assert list_models(state) == (first, second)
    assert (first.name, first.path) == ("a.gguf", str(file))
    found = find_model(state, "other-name.gguf", models_dir=tmp_path / "none")
    assert (found.path, found.entry) == (file, second)
    assert sorted(os.listdir(state)) == ["models.json", "models.json.lock"], "no temporary file is left"


def test_a_name_is_never_pointed_at_another_model(state: Path, file: Path) -> None:
    entry = add_model(state, file, read_manifest=manifest_of)
    file.write_bytes(b"second model")
    error = refused(
        RuleViolation, "model.name_taken", lambda: add_model(state, file, read_manifest=manifest_of)
    )
    assert entry.model_id.hex() in error.message
    assert list_models(state) == (entry,)


def test_the_same_model_may_be_registered_again_from_another_place(state: Path, file: Path) -> None:
    add_model(state, file, read_manifest=manifest_of)
    add_model(state, file, read_manifest=manifest_of, name="b.gguf")
    moved = file.rename(file.with_name("moved.gguf"))
    again = add_model(state, moved, read_manifest=manifest_of, name="a.gguf")
    assert [entry.name for entry in list_models(state)] == ["a.gguf", "b.gguf"], "the order stays"
    assert list_models(state)[0] == again
    assert find_model(state, "a.gguf", models_dir=file.parent).path == moved


@pytest.mark.parametrize(
    "name", ["", ".hidden", "../x.gguf", "a/b.gguf", "a\\b", "a b", "a\n", "-x", "ä.gguf", "a" * 256]
)
def test_a_name_is_a_plain_file_name(name: str, state: Path, file: Path) -> None:
    refused(InvalidMessage, "model.name", lambda: check_name(name))
    refused(InvalidMessage, "model.name", lambda: find_model(state, name))
    refused(
        InvalidMessage, "model.name", lambda: add_model(state, file, read_manifest=manifest_of, name=name)
    )
    assert not state.exists()


def test_a_refused_name_cannot_write_control_characters_to_a_terminal() -> None:
    error = refused(InvalidMessage, "model.name", lambda: check_name("\x1b[2J"))
    assert "\x1b" not in error.message


def test_a_file_that_is_not_there_is_not_registered(state: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.gguf"
    refused(Unavailable, "model.unreadable", lambda: add_model(state, missing, read_manifest=manifest_of))
    refused(
        Unavailable,
        "model.unreadable",
        lambda: add_model(state, tmp_path, read_manifest=manifest_of, name="directory.gguf"),
    )


def test_a_broken_model_leaves_no_entry(state: Path, file: Path) -> None:
    refused(
        InvalidMessage,
        "gguf.magic",
        lambda: add_model(
            state, file, read_manifest=lambda path, progress: read_manifest(path, progress=progress)
        ),
    )
    assert list_models(state) == ()


def test_an_unregistered_file_in_the_models_directory_is_found_without_an_entry(
    state: Path, file: Path
) -> None:
    found = find_model(state, "a.gguf", models_dir=file.parent)
    assert (found.path, found.entry) == (file, None)


def test_a_registered_file_that_moved_into_the_models_directory_is_found(
    state: Path, file: Path, tmp_path: Path
) -> None:
    entry = add_model(state, file, read_manifest=manifest_of)
    models = tmp_path / "models"
    models.mkdir()
    moved = file.rename(models / "a.gguf")
    found = find_model(state, "a.gguf", models_dir=models)
    assert (found.path, found.entry) == (moved, entry)


def test_a_registered_file_of_another_size_is_refused(state: Path, file: Path, tmp_path: Path) -> None:
    add_model(state, file, read_manifest=manifest_of)
    file.write_bytes(b"first model, longer")
    refused(VerificationError, "model.changed", lambda: find_model(state, "a.gguf", models_dir=tmp_path))


def test_a_name_without_a_file_is_not_found_and_the_hint_says_what_to_do(state: Path, tmp_path: Path) -> None:
    error = refused(ConfigError, "model.not_found", lambda: find_model(state, "x.gguf", models_dir=tmp_path))
    assert "aos model add" in str(error.hint)


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: {**value, "v": 2},
        lambda value: {**value, "type": "aos.answer"},
        lambda value: {**value, "more": 1},
        lambda value: {**value, "models": [{**value["models"][0], "model_id": "AAAA"}]},
        lambda value: {**value, "models": [{**value["models"][0], "size": -1}]},
        lambda value: [],
    ],
    ids=["version", "type", "unknown member", "short id", "negative size", "list"],
)
def test_a_damaged_registry_stops_everything_and_is_not_overwritten(
    damage: Callable[[Any], Any], state: Path, file: Path
) -> None:
    add_model(state, file, read_manifest=manifest_of)
    registry = state / "models.json"
    registry.write_text(
        json.dumps(damage(json.loads(registry.read_text())), sort_keys=True, separators=(",", ":"))
    )
    before = registry.read_bytes()
    refused(ConfigError, "model.registry", lambda: list_models(state))
    refused(ConfigError, "model.registry", lambda: find_model(state, "a.gguf"))
    refused(ConfigError, "model.registry", lambda: add_model(state, file, read_manifest=manifest_of))
    assert registry.read_bytes() == before


def test_a_truncated_registry_is_damaged_not_empty(state: Path, file: Path) -> None:
    add_model(state, file, read_manifest=manifest_of)
    registry = state / "models.json"
    registry.write_bytes(registry.read_bytes()[:-10])
    refused(ConfigError, "model.registry", lambda: list_models(state))


def test_a_state_directory_that_cannot_be_made_is_named_as_that(file: Path) -> None:
    refused(
        ConfigError,
        "model.registry",
        lambda: add_model(file / "state", file, read_manifest=manifest_of),
    )


def test_writers_at_the_same_time_lose_nothing(state: Path, file: Path) -> None:
    names = [f"model-{n}.gguf" for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_model(state, file, read_manifest=manifest_of, name=name), names))
    assert sorted(entry.name for entry in list_models(state)) == sorted(names)


def test_two_models_that_want_one_name_at_the_same_time_do_not_both_get_it(
    state: Path, tmp_path: Path
) -> None:
    files = [tmp_path / f"{n}.bin" for n in range(8)]
    for n, path in enumerate(files):
        path.write_bytes(b"model %d" % n)

    def attempt(path: Path) -> str:
        try:
            add_model(state, path, read_manifest=manifest_of, name="one.gguf")
        except RuleViolation as error:
            return error.code
        return "added"

    with ThreadPoolExecutor(8) as pool:
        ends = sorted(pool.map(attempt, files))
    assert ends == ["added"] + ["model.name_taken"] * 7
    assert len(list_models(state)) == 1


def test_the_registry_holds_a_bounded_number_of_models(
    state: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_store, "MAX_MODELS", 2)
    for name in ("a.gguf", "b.gguf"):
        add_model(state, file, read_manifest=manifest_of, name=name)
    refused(
        RuleViolation,
        "model.too_many",
        lambda: add_model(state, file, read_manifest=manifest_of, name="c.gguf"),
    )
    add_model(state, file, read_manifest=manifest_of, name="b.gguf")
