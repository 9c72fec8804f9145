"""The enclave image's recipe says what the rest of the project says (deploy/enclave, docs/operator-guide.md)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from aos.adapters.installed import ENCLAVE_PACKAGES, installed_packages

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "deploy" / "enclave"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s\\]+)", path.read_text(), re.MULTILINE)
    return {normal(name): version for name, version in found}


def test_the_images_packages_are_those_that_the_enclave_needs_in_the_versions_that_are_tested() -> None:
    wanted = {normal(name): version for name, version, _ in installed_packages(ENCLAVE_PACKAGES)}
    assert pins(RECIPE / "requirements.txt") == wanted
    constraints = pins(ROOT / "constraints.txt")
    for name, version in pins(RECIPE / "requirements-build.txt").items():
        assert constraints[name] == version, name


def test_every_package_is_named_by_digests_and_nothing_else_is_taken() -> None:
    for name in ("requirements.txt", "requirements-build.txt"):
        text = (RECIPE / name).read_text()
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert all(re.fullmatch(r"\S+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines)
        assert all(lines[at + 1].startswith("    --hash") for at, line in enumerate(lines) if "==" in line)


def test_the_dockerfile_takes_base_images_from_its_caller_and_writes_no_compiled_python() -> None:
    text = (RECIPE / "Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BUILDER}", "${RUNTIME}", "scratch"]
    assert "PYTHONDONTWRITEBYTECODE=1" in text
    assert "SOURCE_DATE_EPOCH" in text
    assert "http" not in text
    assert "apt-get" not in text


def test_the_images_command_is_one_that_the_enclaves_program_takes() -> None:
    words = (RECIPE / "cmd").read_text().replace("@ENGINE@", "native").splitlines()
    at = words.index("aos.workers.enclave")
    assert words[at - 1] == "-m"
    done = subprocess.run(
        [sys.executable, *words[1 : at + 1], *words[at + 1 :], "--help"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for option in (word for word in words[at + 1 :] if word.startswith("--")):
        assert option in done.stdout
    assert all("=" in line for line in (RECIPE / "env").read_text().splitlines())


def test_the_allocators_file_is_read_as_it_is_written() -> None:
    value = yaml.safe_load((RECIPE / "allocator.yaml").read_text())
    assert value == {"memory_mib": 12288, "cpu_count": 6}
