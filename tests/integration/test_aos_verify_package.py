"""The small distribution aos-verify: built from the same files, installed alone, and of one voice with `aos verify`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from aos.cli.verify import verify_command
from aos.core.encoding import canonical_json

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "packages" / "aos-verify"
PROJECT = tomllib.loads((PACKAGE / "pyproject.toml").read_text())
WHOLE = tomllib.loads((ROOT / "pyproject.toml").read_text())
ANSWERS = json.loads((ROOT / "vectors/aos/receipt/answers.json").read_text())
ALLOWED = {
    # the four, and what they bring
    *("coincurve", "pynacl", "cryptography", "pycryptodome"),
    *("cffi", "pycparser", "typing-extensions", "aos-verify", "pip", "setuptools"),
}
LOADED = """
import json, sys
before = set(sys.modules)
import aos.cli.explain, aos.cli.verify
from aos.core.signing import keccak256
keccak256(b"")
names = set(sys.modules) - before
print(json.dumps({
    "aos": sorted(m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "aos"),
    "others": sorted({n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - {"aos"}),
}))
"""
BATCH = """
import contextlib, io, json, sys
from aos.cli.verify import main
out = []
for arguments in json.load(sys.stdin):
    sys.argv = ["aos-verify", *arguments]
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = main()
    out.append([code, stdout.getvalue(), stderr.getvalue()])
print(json.dumps(out))
"""

pytestmark = pytest.mark.timeout(600)


def answered(command: list[str | Path], **more: Any) -> str:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AOS_", "PYTHON"))
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **more)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    answered([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", target, PACKAGE])
    (found,) = target.glob("aos_verify-*.whl")
    return found


@pytest.fixture(scope="module")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment that holds the wheel and its dependencies. Without a package index: skipped, in CI
    a failure."""
    target = tmp_path_factory.mktemp("alone") / "venv"
    answered([sys.executable, "-m", "venv", target])
    programs = target / "bin"
    pip = [programs / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run(
        [*pip, "--only-binary", ":all:", "--constraint", ROOT / "constraints.txt", wheel],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = f"the dependencies of aos-verify cannot be installed here: {done.stderr.strip()[-300:]}"
        if os.environ.get("AOS_CI") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return programs


def test_the_wheel_takes_exactly_the_modules_that_verifying_imports() -> None:
    taken = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert all(source == f"../../src/{target}" for source, target in taken.items())
    loaded = json.loads(answered([sys.executable, "-c", LOADED]))
    imported = {str(Path(name).relative_to(ROOT / "src")) for name in loaded["aos"]}
    policies = {str(path.relative_to(ROOT / "src")) for path in ROOT.glob("src/aos/core/policies/*.json")}
    assert set(taken.values()) == imported | policies | {"aos/py.typed"}


def test_it_is_of_the_same_version_with_at_most_four_dependencies_that_the_whole_has_too() -> None:
    project, whole = PROJECT["project"], WHOLE["project"]
    assert project["version"] == whole["version"]
    assert project["requires-python"] == whole["requires-python"]
    assert len(project["dependencies"]) <= 4
    assert set(project["dependencies"]) <= set(whole["dependencies"])


def test_the_wheel_holds_the_very_files_of_the_source(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert len(names) > 40
        for name in names:
            assert archive.read(name) == (ROOT / "src" / name).read_bytes(), name


def test_alone_it_needs_and_loads_nothing_else(alone: Path) -> None:
    pip = [alone / "python", "-m", "pip", "--disable-pip-version-check"]
    installed = json.loads(answered([*pip, "list", "--format", "json"]))
    assert {package["name"].lower() for package in installed} <= ALLOWED
    answered([*pip, "check"])
    loaded = json.loads(answered([alone / "python", "-I", "-c", LOADED]))
    assert all(str(alone.parent) in name for name in loaded["aos"])
    assert {name.lstrip("_").split(".")[0] for name in loaded["others"]} <= {
        *("coincurve", "libsecp256k1", "nacl", "sodium", "cryptography", "openssl", "Crypto"),
        *("cffi", "cffi_backend", "pycparser", "typing_extensions"),
    }


def files(directory: Path) -> Iterator[list[str]]:
    """One command line for each vector."""
    trust = directory / "trust.json"
    trust.write_text(json.dumps(ANSWERS["trust"]))
    for number, case in enumerate(ANSWERS["cases"]):
        document = deepcopy(json.loads(ANSWERS["files"][case["file"]]))
        for path, value in case["changes"]:
            place = document
            for step in path[:-1]:
                place = place[step]
            if value == {"absent": True}:
                del place[path[-1]]
            else:
                place[path[-1]] = value
        name = directory / f"{number}.aos"
        name.write_bytes(canonical_json(document))
        yield [str(name), "--trust", str(trust), "--policy", case["policy"]]


def test_it_says_what_aos_verify_says_of_every_vector(alone: Path, tmp_path: Path) -> None:
    commands = list(files(tmp_path))
    genuine = commands[0]
    commands += [
        [*genuine, "--explain"],
        [*genuine, "--json", "--explain"],
        genuine[:1],
        [str(tmp_path / "absent.aos")],
        [*genuine, "--policy", "none"],
        [genuine[0], "--trust", genuine[0]],
    ]
    there = json.loads(
        answered([alone / "python", "-I", "-c", BATCH], input=json.dumps(commands), cwd=tmp_path)
    )
    codes = set()
    for command, said in zip(commands, there, strict=True):
        stdout, stderr = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            contextlib.chdir(tmp_path),
        ):
            code = verify_command(command)
        assert said == [code, stdout.getvalue(), stderr.getvalue()], command
        codes.add(code)
    assert codes == {0, 10, 11, 12, 30}


def test_the_program_answers_and_says_why_it_cannot_replay(alone: Path, tmp_path: Path) -> None:
    genuine = next(files(tmp_path))
    assert "VERIFIED at level" in answered([alone / "aos-verify", *genuine])
    assert "usage: aos-verify" in answered([alone / "aos-verify", "--help"])
    done = subprocess.run(
        [alone / "aos-verify", *genuine, "--replay", "--model", "model.gguf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "install aos" in done.stderr
