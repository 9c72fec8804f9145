"""The scripts around an enclave: they start nothing that was not checked (docs/operator-guide.md, "A Nitro enclave").

nitro-cli, docker, dnf and systemctl are stand-ins, labelled SIMULATED: this machine has no Nitro Enclaves and no docker
daemon. What is behind them is real: the image files, `aos tee pcrs`, and an enclave process (its platform SIMULATED)
that answers the challenge over its socket.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from aos.adapters.enclave_image import simulated_pcrs
from aos.adapters.simulated_nsm import create_simulated_platform
from aos.core.attest.eif import read_eif
from aos.core.attest.eif_build import ImageParts, Source, write_eif
from aos.core.attest.measurements import compare_nitro_cli, measurements_file, measurements_of
from aos.errors import AOSError

ROOT = Path(__file__).resolve().parents[2]
IN_CI = os.environ.get("AOS_CI") == "1"
SCRIPTS = ("run_tee.sh", "init_env.sh", "build_enclave.sh", "setup.sh")


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def packed(directory: Path, *, application: bytes) -> Path:
    """A small image file, by our own packer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "kernel").write_bytes(b"kernel of the toy " * 100)
    (directory / "boot.cpio").write_bytes(b"boot " * 100)
    (directory / "application.cpio").write_bytes(application)
    image = directory / "aos-worker.eif"
    names = ("kernel", "boot.cpio", "application.cpio")
    with ExitStack() as stack, image.open("w+b") as out:
        files = [stack.enter_context((directory / name).open("rb")) for name in names]
        kernel, *ramdisks = (Source(stream=f, size=os.fstat(f.fileno()).st_size) for f in files)
        write_eif(out, ImageParts(kernel=kernel, cmdline="reboot=k panic=30 pci=off", ramdisks=ramdisks))
    with image.open("rb") as stream:
        measured = measurements_of(read_eif(stream, image.stat().st_size))
    image.with_suffix(".json").write_bytes(measurements_file(measured))
    return image


def policy(root: bytes, *, simulated: bool = True) -> dict[str, Any]:
    registers = {f"pcr{index}": value.hex() for index, value in simulated_pcrs().items()}
    return {
        "type": "aos.attest.policy", "v": 2, "name": "scripts",
        "tees": ["simulated"] if simulated else ["nitro"],
        "simulated_roots": [root.hex()] if simulated else [],
        "nitro": [registers], "tdx": [], "sgx": [], "snp": [], "nvidia": [], "intel": None, "models": ["00" * 32],
        "nonce_required": True, "max_age_ms": 60_000, "max_weight_per_device": 1,
    }  # fmt: skip


class Enclave:
    """One enclave process with a SIMULATED platform, and what to believe of it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="aos-scripts-"))
        key = self.directory / "platform.key"
        self.root = create_simulated_platform(key)
        self.socket = self.directory / "enclave.sock"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "aos.workers.enclave", "--socket", self.socket),
                *("--platform-key", key, "--engine", "reference"),
            ],
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not self.socket.exists():
            assert self.process.poll() is None, "the enclave did not start"
            assert time.monotonic() < deadline, "the enclave did not listen"
            time.sleep(0.02)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory)


@pytest.fixture(scope="module")
def enclave() -> Iterator[Enclave]:
    made = Enclave()
    yield made
    made.end()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("image"), application=b"application " * 100)


class Checkout:
    """A copy of what the scripts need, with stand-ins before the PATH."""

    def __init__(self, place: Path, image: Path, enclave: Enclave) -> None:
        self.place, self.enclave = place, enclave
        self.state = place / "state"
        self.state.mkdir()
        for name in SCRIPTS:
            (place / "scripts").mkdir(exist_ok=True)
            shutil.copy2(ROOT / "scripts" / name, place / "scripts" / name)
        shutil.copy2(ROOT / "scripts/pack_enclave.py", place / "scripts/pack_enclave.py")
        shutil.copytree(ROOT / "deploy", place / "deploy")
        shutil.copy2(ROOT / "pyproject.toml", place / "pyproject.toml")
        self.image = place / "build/enclave/aos-worker.eif"
        self.image.parent.mkdir(parents=True)
        shutil.copy2(image, self.image)
        python = sys.executable
        program(place / ".venv/bin/python", f'#!/bin/sh\nexec {python} "$@"\n')
        # The only detour: there is no vsock here, so the challenge goes to the enclave process's socket.
        program(
            place / ".venv/bin/aos",
            f'#!/bin/sh\nif [ "$2" = challenge ] && [ "$3 $4 $5 $6" = "--cid 16 --port 5005" ]; then\n'
            f'shift 6; set -- tee challenge --socket "$FAKE_SOCKET" "$@"\nfi\nexec {python} -m aos.cli.main "$@"\n',
        )
        self.measurements = place / "deploy/enclave/measurements.json"
        shutil.copy2(image.with_suffix(".json"), self.measurements)
        self.policy = place / "deploy/enclave/policy.json"
        self.policy.write_text(json.dumps(policy(enclave.root)))
        self.bin = place / "bin"
        peer = ROOT / "tests/peers/nitro_cli.py"
        program(self.bin / "nitro-cli", f'#!/bin/sh\nexec {python} {peer} "$@"\n')

    def run(
        self, script: str, *arguments: str, path: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.place / "scripts" / script, *arguments],
            capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL,
            env={
                "PATH": path or f"{self.bin}:/usr/local/bin:/usr/bin:/bin", "HOME": str(self.place),
                "FAKE_NITRO_STATE": str(self.state), "FAKE_SOCKET": str(self.enclave.socket), **environment,
            },
        )  # fmt: skip

    def calls(self) -> list[list[str]]:
        path = self.state / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def running(self) -> list[str]:
        return [path.name for path in self.state.glob("enclave-*.json")]


@pytest.fixture
def checkout(tmp_path: Path, image: Path, enclave: Enclave) -> Checkout:
    return Checkout(tmp_path, image, enclave)


# --- run_tee.sh


def test_an_expected_image_is_started_and_has_answered_the_challenge(checkout: Checkout) -> None:
    done = checkout.run("run_tee.sh")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (
        lines[-1] == "run_tee: aos-tee-worker runs at CID 16, port 5005, and has answered a fresh challenge"
    )
    accepted = 'ACCEPTED: the document only: SIMULATED nitro under policy "scripts"'
    assert any(line.startswith(accepted) for line in lines)
    assert any(line.startswith("PASS nonce-1") for line in lines)
    commands = [call[0] for call in checkout.calls()]
    assert commands == ["describe-eif", "describe-enclaves", "run-enclave", "describe-enclaves"]
    assert checkout.calls()[2] == [
        *("run-enclave", "--enclave-name", "aos-tee-worker", "--eif-path", "build/enclave/aos-worker.eif"),
        *("--enclave-cid", "16", "--cpu-count", "6", "--memory", "12288"),
    ]
    assert checkout.running() == ["enclave-aos-tee-worker.json"]
    # A second start finds the name taken, and leaves the first one alone.
    again = checkout.run("run_tee.sh")
    assert (again.returncode, "runs already" in again.stderr) == (30, True)
    assert checkout.running() == ["enclave-aos-tee-worker.json"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["debug"],
        ["--debug-mode"],
        ["--attach-console"],
        ["--debug-mode=true"],
        ["--memory", "12288", "--attach-console"],
        ["--config", "run.json"],
        ["--config=run.json"],
    ],
    ids=" ".join,
)
def test_debug_mode_is_refused_before_anything_runs(checkout: Checkout, arguments: list[str]) -> None:
    done = checkout.run("run_tee.sh", *arguments)
    assert (done.returncode, checkout.calls()) == (10, [])
    assert "debug mode" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cid", "3"],
        ["--cid", "x"],
        ["--cid"],
        ["--port", "0"],
        ["--memory", "63"],
        ["--memory", "1e9"],
        ["--cpu-count", "-1"],
        ["--name", "a b"],
        ["--name", "-x"],
        ["--enclave-name", "x"],
        ["start"],
    ],
    ids=" ".join,
)
def test_what_it_does_not_know_is_refused(checkout: Checkout, arguments: list[str]) -> None:
    assert (checkout.run("run_tee.sh", *arguments).returncode, checkout.calls()) == (2, [])


def test_another_image_is_refused_before_nitro_cli_sees_it(checkout: Checkout, tmp_path: Path) -> None:
    other = packed(tmp_path / "other", application=b"another application")
    done = checkout.run("run_tee.sh", "--eif", str(other))
    assert (done.returncode, "[eif.measurement]" in done.stderr, checkout.calls()) == (10, True, [])
    data = bytearray(checkout.image.read_bytes())
    data[-1] ^= 1
    checkout.image.write_bytes(data)
    done = checkout.run("run_tee.sh")
    assert (done.returncode, "[eif.crc]" in done.stderr, checkout.calls()) == (2, True, [])
    checkout.image.unlink()
    assert checkout.run("run_tee.sh").returncode == 12


def test_it_can_check_the_image_alone(checkout: Checkout) -> None:
    assert checkout.run("run_tee.sh", "--check").returncode == 0
    assert checkout.calls() == []


def test_without_nitro_cli_it_says_that_only_simulation_is_possible(checkout: Checkout) -> None:
    (checkout.bin / "nitro-cli").unlink()
    done = checkout.run("run_tee.sh")
    assert (done.returncode, "SIMULATED" in done.stderr) == (30, True)


def test_what_is_missing_or_too_little_stops_it(checkout: Checkout) -> None:
    big = packed(checkout.place / "big", application=bytes(20 << 20))
    arguments = ("--eif", str(big), "--measurements", str(big.with_suffix(".json")), "--memory", "64")
    done = checkout.run("run_tee.sh", *arguments)
    assert (done.returncode, "four times" in done.stderr, checkout.calls()) == (30, True, [])
    checkout.policy.unlink()
    assert checkout.run("run_tee.sh").returncode == 12


@pytest.mark.parametrize(
    ("words", "status", "started"),
    [
        ("describe-eif-fails", 20, False),
        ("other-register", 10, False),
        ("describe-enclaves-fails", 30, False),
        ("run-enclave-fails", 20, False),
        ("runs-another", 10, True),
        ("debug", 10, True),
        ("dies", 20, True),
    ],
)
def test_whatever_goes_wrong_leaves_no_enclave_running(
    checkout: Checkout, words: str, status: int, started: bool
) -> None:
    done = checkout.run("run_tee.sh", FAKE_NITRO=words)
    assert done.returncode == status, done.stderr
    assert checkout.running() == []
    ended = [call for call in checkout.calls() if call[0] == "terminate-enclave"]
    assert ended == ([["terminate-enclave", "--enclave-name", "aos-tee-worker"]] if started else [])


def test_an_image_exchanged_after_it_was_checked_is_noticed(checkout: Checkout) -> None:
    other = packed(checkout.place / "other", application=b"another application")
    done = checkout.run("run_tee.sh", FAKE_NITRO="swaps", FAKE_NITRO_OTHER=str(other))
    assert (done.returncode, "[eif.measurement]" in done.stderr, checkout.running()) == (10, True, [])


def test_an_enclave_that_fails_the_challenge_is_ended(checkout: Checkout) -> None:
    checkout.policy.write_text(json.dumps(policy(checkout.enclave.root, simulated=False)))
    done = checkout.run("run_tee.sh")
    assert (done.returncode, "attest.root" in done.stdout, checkout.running()) == (10, True, [])


def test_an_enclave_of_another_image_or_a_silent_one_is_ended(checkout: Checkout) -> None:
    other = policy(checkout.enclave.root)
    other["nitro"] = [{"pcr0": "ab" * 48, "pcr1": "ab" * 48, "pcr2": "ab" * 48}]
    checkout.policy.write_text(json.dumps(other))
    done = checkout.run("run_tee.sh")
    assert (done.returncode, "attest.measurement" in done.stdout, checkout.running()) == (10, True, [])
    done = checkout.run("run_tee.sh", FAKE_SOCKET=str(checkout.place / "nobody.sock"))
    assert (done.returncode, "[frame.no_peer]" in done.stderr, checkout.running()) == (20, True, [])


def test_a_challenge_is_fresh_each_time_and_names_what_it_checked(checkout: Checkout) -> None:
    command = [sys.executable, "-m", "aos.cli.main", "tee", "challenge", "--socket", checkout.enclave.socket]
    replies = []
    for _ in range(2):
        done = subprocess.run(
            [*command, "--policy", checkout.policy, "--json"], capture_output=True, text=True, check=True
        )
        replies.append(json.loads(done.stdout)["result"])
    assert {reply["verdict"] for reply in replies} == {"ACCEPTED"}
    assert replies[0]["claims"]["nonce"] != replies[1]["claims"]["nonce"]
    assert all(reply["claims"]["simulated"] for reply in replies)
    # It can stand for no boot and no answer: nothing is bound into it but the nonce.
    assert all((r["claims"]["report_data"], r["claims"]["public_key"]) == (None, None) for r in replies)


# --- init_env.sh


def recording(checkout: Checkout, *names: str, fails: str = "") -> None:
    """Stand-ins that write down how they were called."""
    for name in names:
        status = 1 if name == fails else 0
        run = 'exec "$@"' if name == "sudo" else f"exit {status}"
        program(checkout.bin / name, f'#!/bin/sh\necho "{name} $*" >>{checkout.state}/commands\n{run}\n')


def commands(checkout: Checkout) -> list[str]:
    path = checkout.state / "commands"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def nitro(checkout: Checkout) -> dict[str, str]:
    recording(checkout, "dnf", "systemctl", "make", "usermod", "sudo")
    (checkout.place / "device").touch()
    return {
        "AOS_NITRO_DEVICE": str(checkout.place / "device"),
        "AOS_NITRO_ALLOCATOR": str(checkout.place / "allocator.yaml"),
    }


def test_a_machine_without_enclaves_is_left_alone(checkout: Checkout, nitro: dict[str, str]) -> None:
    nitro["AOS_NITRO_DEVICE"] = str(checkout.place / "none")
    done = checkout.run("init_env.sh", **nitro)
    assert (done.returncode, commands(checkout)) == (1, [])
    done = checkout.run("init_env.sh", "--simulated", **nitro)
    assert (done.returncode, commands(checkout)) == (0, ["make setup"])
    assert "SIMULATED" in done.stdout


def test_an_instance_is_set_up_and_then_found_ready(checkout: Checkout, nitro: dict[str, str]) -> None:
    allocator = Path(nitro["AOS_NITRO_ALLOCATOR"])
    allocator.write_text("---\nmemory_mib: 512\ncpu_count: 2\n")
    done = checkout.run("init_env.sh", "--memory", "16384", "--cpu-count", "8", **nitro)
    assert done.returncode == 0, done.stderr
    text = allocator.read_text().splitlines()
    assert "memory_mib: 16384" in text
    assert "cpu_count: 8" in text
    assert "memory_mib: 512" in allocator.with_name("allocator.yaml.before-aos").read_text()
    made = [command for command in commands(checkout) if not command.startswith(("sudo", "usermod"))]
    assert made == [
        "systemctl enable nitro-enclaves-allocator.service",
        "systemctl restart nitro-enclaves-allocator.service",
        "make setup",
    ]
    checked = checkout.run("init_env.sh", "--check", "--memory", "16384", **nitro)
    assert checked.returncode == 0, checked.stderr
    before = allocator.read_text()
    again = checkout.run("init_env.sh", "--memory", "12288", **nitro)  # more is reserved already
    assert (again.returncode, allocator.read_text()) == (0, before)


def test_checking_changes_nothing_and_names_all_that_is_missing(
    checkout: Checkout, nitro: dict[str, str]
) -> None:
    recording(checkout, "systemctl", fails="systemctl")
    (checkout.bin / "nitro-cli").unlink()
    done = checkout.run("init_env.sh", "--check", **nitro)
    assert done.returncode == 1
    for what in ("nitro-cli", "reserves 0 MiB", "allocator does not run"):
        assert what in done.stderr
    assert commands(checkout) == ["systemctl is-active --quiet nitro-enclaves-allocator.service"]
    assert not Path(nitro["AOS_NITRO_ALLOCATOR"]).exists()


def test_an_allocator_that_does_not_start_is_told(checkout: Checkout, nitro: dict[str, str]) -> None:
    recording(checkout, "systemctl", fails="systemctl")
    program(
        checkout.bin / "systemctl",
        f'#!/bin/sh\necho "systemctl $*" >>{checkout.state}/commands\n[ "$1" = enable ]\n',
    )
    done = checkout.run("init_env.sh", **nitro)
    assert (done.returncode, "hugepages=12" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    "arguments", [["--memory"], ["--memory", "x"], ["--cpu-count", "0"], ["now"]], ids=" ".join
)
def test_what_the_setup_does_not_know_is_refused(
    checkout: Checkout, nitro: dict[str, str], arguments: list[str]
) -> None:
    assert (checkout.run("init_env.sh", *arguments, **nitro).returncode, commands(checkout)) == (2, [])


# --- build_enclave.sh

DOCKER = """#!/bin/sh
# SIMULATED: a docker that "builds" a tar of one file.
for word in "$@"; do case "$word" in type=tar,dest=*) to=${word#type=tar,dest=}; to=${to%%,*} ;; esac; done
mkdir -p work/opt/aos/bin && echo "$FAKE_PYTHON$(${FAKE_CLOCK:-true})" >work/opt/aos/bin/python
tar -C work -cf "$to" opt
"""
BASES = ["--builder", f"python@sha256:{'0' * 64}", "--runtime", f"python@sha256:{'1' * 64}"]


@pytest.fixture
def blobs(checkout: Checkout) -> Path:
    program(checkout.bin / "docker", DOCKER)
    directory = checkout.place / "blobs"
    directory.mkdir()
    for name in ("bzImage", "Image", "init", "nsm.ko"):
        (directory / name).write_bytes(f"{name} of the toy".encode())
    (directory / "cmdline").write_text("reboot=k panic=30\n")
    return directory


def test_two_builds_are_compared_and_their_measurements_saved(checkout: Checkout, blobs: Path) -> None:
    done = checkout.run("build_enclave.sh", *BASES, "--blobs", str(blobs), "--twice")
    assert done.returncode == 0, done.stderr
    assert "build_enclave: two builds, equal bytes" in done.stdout
    data = checkout.image.read_bytes()
    saved = json.loads((checkout.image.parent / "measurements.json").read_text())
    assert saved["sha256"] == sha256(data).hexdigest()
    for text in (
        b"/opt/aos/bin/python\n-P\n-B\n-m\naos.workers.enclave\n--vsock-port\n5005\n--engine\nnative\n",
    ):
        assert text in data
    assert b"PYTHONDONTWRITEBYTECODE=1\n" in data


def test_builds_that_differ_are_refused(checkout: Checkout, blobs: Path) -> None:
    done = checkout.run("build_enclave.sh", *BASES, "--blobs", str(blobs), "--twice", FAKE_CLOCK="date +%N")
    assert (done.returncode, "two builds differ" in done.stderr) == (10, True)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        BASES[:2],
        ["--builder", "python:3.11", *BASES[2:]],
        [*BASES[:2], "--runtime", "python:3.11@sha256:abc"],
        [*BASES, "--engine", "fast"],
        [*BASES, "--unknown"],
    ],
    ids=range(6),
)
def test_a_base_image_without_a_digest_is_refused(
    checkout: Checkout, blobs: Path, arguments: list[str]
) -> None:
    done = checkout.run("build_enclave.sh", *arguments, "--blobs", str(blobs))
    assert done.returncode == 2
    assert not (checkout.place / "work").exists()


def test_a_missing_blob_is_named(checkout: Checkout, blobs: Path) -> None:
    (blobs / "nsm.ko").unlink()
    done = checkout.run("build_enclave.sh", *BASES, "--blobs", str(blobs))
    assert (done.returncode, "nsm.ko" in done.stderr) == (12, True)


# --- all of them


def test_the_scripts_pass_shellcheck() -> None:
    checker = shutil.which("shellcheck")
    if checker is None:
        reason = "shellcheck is not installed"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    scripts = [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci/run"]
    done = subprocess.run([checker, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_stand_in_for_nitro_cli_agrees_with_the_reader(checkout: Checkout) -> None:
    """Its walk is its own: it must not be the reader's that agrees with itself."""
    described = subprocess.run(
        [sys.executable, ROOT / "tests/peers/nitro_cli.py", "describe-eif", "--eif-path", checkout.image],
        capture_output=True, check=True, env={"FAKE_NITRO_STATE": str(checkout.state)},
    )  # fmt: skip
    with checkout.image.open("rb") as stream:
        measured = measurements_of(read_eif(stream, checkout.image.stat().st_size))
    compare_nitro_cli(measured, described.stdout)
    with pytest.raises(AOSError):
        compare_nitro_cli(measured, described.stdout.replace(measured.pcr0.encode(), b"00" * 48))
