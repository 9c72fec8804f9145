"""The image manifest: what an installation executes, and that a change of any of it shows
(docs/spec/12-attestation.md, "Image manifest")."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from aos.adapters import installed
from aos.adapters.installed import (
    ENCLAVE_PACKAGES,
    image_manifest,
    image_manifest_digest,
    installed_packages,
    installed_python,
)
from aos.cli.tee import _compare_manifests
from aos.errors import ConfigError, VerificationError


def aos(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aos.cli.main", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_every_package_that_the_enclaves_process_imports_is_in_the_manifest() -> None:
    script = """
import sys, json
import aos.workers.enclave.__main__, aos.engine.llama_cpp, aos.engine.reference, aos.engine.native
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    known = packages_distributions()
    needed = {
        name.replace("_", "-").lower()
        for module in json.loads(done.stdout)
        for name in known.get(module, [])
        if name != "aos" and module != "_distutils_hack"  # a .pth file's: in the manifest as what it is
    }
    measured = {name for name, _, _ in installed_packages(ENCLAVE_PACKAGES)}
    assert {"pynacl", "numpy"} <= needed
    assert needed - measured == set()


def fake_package(place: Path, *, content: str = "x = 1\n", needs: str = "") -> None:
    """A package as an installer leaves it, in ``place``."""
    info = place / "toy_package-1.0.dist-info"
    (place / "toy").mkdir(exist_ok=True)
    info.mkdir(exist_ok=True)
    (place / "toy/__init__.py").write_text(content)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n{needs}")
    names = ["toy/__init__.py", "toy/__pycache__/__init__.cpython-311.pyc", "../../../bin/toy"]
    names += [
        f"toy_package-1.0.dist-info/{name}" for name in ("METADATA", "RECORD", "INSTALLER", "direct_url.json")
    ]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))


def digest_in(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    monkeypatch.syspath_prepend(place)
    return installed_packages(("toy-package",))


def test_a_changed_byte_of_a_package_changes_its_digest_and_traces_of_installing_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(tmp_path)
    first = digest_in(tmp_path, monkeypatch)
    assert [entry[:2] for entry in first] == [["toy-package", "1.0"]]
    info = tmp_path / "toy_package-1.0.dist-info"
    (info / "INSTALLER").write_text("another")
    (info / "direct_url.json").write_text("{}")
    (tmp_path / "toy/__pycache__").mkdir()
    (tmp_path / "toy/__pycache__/__init__.cpython-311.pyc").write_bytes(b"x")
    assert digest_in(tmp_path, monkeypatch) == first
    fake_package(tmp_path, content="x = 2\n")
    assert digest_in(tmp_path, monkeypatch) != first


def test_what_a_package_needs_is_measured_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(
        tmp_path, needs='Requires-Dist: rfc8785>=0.1\nRequires-Dist: no-such-package; extra == "x"\n'
    )
    assert [name for name, *_ in digest_in(tmp_path, monkeypatch)] == ["rfc8785", "toy-package"]


def test_a_package_that_is_missing_or_broken_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(tmp_path)
    (tmp_path / "toy/__init__.py").unlink()
    for call in (lambda: digest_in(tmp_path, monkeypatch), lambda: installed_packages(("no-such-package",))):
        with pytest.raises(ConfigError) as caught:
            call()
        assert caught.value.code == "installed.package"


def test_a_changed_library_or_interpreter_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib/site-packages").mkdir(parents=True)
    (tmp_path / "lib/os.py").write_text("x")
    (tmp_path / "python").write_bytes(b"interpreter")
    monkeypatch.setattr(installed.sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
    monkeypatch.setattr(installed.sys, "executable", str(tmp_path / "python"))
    first = installed_python()
    (tmp_path / "lib/site-packages/other.py").write_text("left out")
    assert installed_python() == first
    (tmp_path / "lib/os.py").write_text("y")
    assert installed_python()["library"] != first["library"]
    (tmp_path / "python").write_bytes(b"another")
    assert installed_python()["executable"] != first["executable"]


def test_the_manifest_is_the_same_twice_and_its_digest_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "installed_python", lambda: {"version": "3"})
    monkeypatch.setattr(installed, "measured_manifest", lambda: {"files": [["a.py", "00"]]})
    monkeypatch.setattr(installed.sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "start.pth").write_text("import this")
    first, second = (image_manifest(packages=("rfc8785",)) for _ in range(2))
    assert first == second
    assert [name for name, _ in first["start"]] == ["start.pth"]
    assert image_manifest_digest(first) == image_manifest_digest(second)
    monkeypatch.setattr(installed, "measured_manifest", lambda: {"files": [["a.py", "01"]]})
    other = image_manifest(packages=("rfc8785",))
    assert image_manifest_digest(other) != image_manifest_digest(first)
    (tmp_path / "sitecustomize.py").write_text("")
    assert image_manifest(packages=("rfc8785",))["start"] != first["start"]


def test_the_command_prints_and_compares_the_manifest(tmp_path: Path) -> None:
    printed = aos("tee", "measure", "--json")
    assert printed.returncode == 0, printed.stderr
    result = json.loads(printed.stdout)["result"]
    assert result["digest"] == image_manifest_digest(result["manifest"]).hex()
    names = [name for name, _ in result["manifest"]["files"]]
    assert {"core/tee.py", "engine/_native"} <= set(names)
    saved = tmp_path / "manifest.json"
    saved.write_text(printed.stdout)
    done = aos("tee", "measure", "--expect", saved)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"manifest  {result['digest']}")


def test_another_manifest_is_refused_by_the_part_that_differs() -> None:
    manifest = {"type": "t", "v": 1, "files": [], "packages": [["a", "1", "00"]], "python": {}, "start": []}
    _compare_manifests(manifest, json.dumps({"result": {"manifest": manifest}}).encode())
    for part, other in (
        ("packages", []),
        ("python", {"version": "3"}),
        ("files", [["a", "0"]]),
        ("start", [["x", "0"]]),
    ):
        changed = json.dumps({"result": {"manifest": {**manifest, part: other}}}).encode()
        with pytest.raises(VerificationError) as caught:
            _compare_manifests(manifest, changed)
        assert (caught.value.code, caught.value.field) == ("installed.manifest", part)
    for wrong in (b"", b"{}", b'{"result": 1}', b'{"result": {"manifest": {}}}', b"[]"):
        with pytest.raises(ConfigError) as broken:
            _compare_manifests(manifest, wrong)
        assert broken.value.code == "installed.expected"
