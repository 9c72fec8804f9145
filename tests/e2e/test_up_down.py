"""`aos up` as a process: it ends when it is told to, leaves its state directory and nothing else, and starts on it again."""

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from machine import (
    REPOSITORY,
    SLOW_MACHINE_S,
    alive,
    all_commands,
    command_of,
    descendants,
    listening_below,
    modes_outside,
    shared_memory_of,
    wait_until,
)

from aos.client import Client, Submission
from aos.core.receipt import verify_answer
from aos.core.trust import load_policy, read_trust
from aos.local.layout import Layout

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

MODEL = REPOSITORY / "models" / "aos-demo.Q8_0.gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """One `aos up` in ``place/state``, whose temporary directory is ``place/tmp``."""

    process: subprocess.Popen[bytes]
    place: Path

    def talk(self) -> str:
        return (self.place / "stderr").read_text()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.talk() or self.process.poll() is not None, text)
        assert text in self.talk()

    def end(self) -> int:
        """Its exit status."""
        return self.process.wait(SLOW_MACHINE_S)


Start = Callable[..., Up]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A short path that every user may enter, as the server programs of a root user need it."""
    path = Path(tempfile.mkdtemp(prefix="aos-up-", dir="/tmp"))
    path.chmod(0o755)
    (path / "tmp").mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    begun: list[Up] = []

    def begin(**more: str) -> Up:
        argv = [sys.executable, "-m", "aos.cli.main", "up", "--operators", "1", "--model", str(MODEL)]
        environment = os.environ | {"TMPDIR": str(place / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"} | more
        with (place / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [*argv, "--state-dir", str(place / "state")],
                cwd=place,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        begun.append(Up(process=process, place=place))
        return begun[-1]

    yield begin
    for up in begun:
        up.process.terminate()
        up.end()


def test_one_ctrl_c_ends_it_and_leaves_its_state_directory_alone(start: Start, place: Path) -> None:
    before = modes_outside(place / "state")
    up = start()
    up.wait_for("ready.")
    started = descendants(up.process.pid)
    names = {command_of(pid) for pid, _ in started}
    for part in (
        "postgres",
        "redis-server",
        "aos.dispatcher",
        "aos.operator.runer",
        "aos.workers.opml_main",
        "aos.workers.tee_main",
        "aos.workers.enclave",
    ):
        assert any(part in name for name in names), part
    memory = shared_memory_of(started)
    assert memory, "PostgreSQL shares memory between its processes"
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 0
    assert [path for path in memory if Path(path).exists()] == []
    assert listening_below(place) == []
    assert [pid for pid in started if alive(pid)] == []
    assert sorted(path.name for path in place.iterdir()) == ["state", "stderr", "tmp"]
    assert list((place / "tmp").iterdir()) == []
    after = modes_outside(place / "state")
    assert {path: after.get(path, mode) for path, mode in before.items()} == before
    assert "Traceback" not in up.talk()


def test_impatience_while_it_stops_changes_nothing(start: Start, place: Path) -> None:
    up = start()
    up.wait_for("ready.")
    started = descendants(up.process.pid)
    up.process.send_signal(signal.SIGINT)
    up.wait_for("stopping")
    up.process.send_signal(signal.SIGINT)
    up.process.send_signal(signal.SIGTERM)
    assert up.end() == 0
    assert [pid for pid in started if alive(pid)] == []
    assert list((place / "tmp").iterdir()) == []
    assert "Traceback" not in up.talk()


def test_ctrl_c_before_it_is_up_ends_it_at_once(start: Start, place: Path) -> None:
    up = start()
    up.wait_for("PostgreSQL and Redis")
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 1
    assert "local.interrupted" in up.talk()
    assert "ready." not in up.talk()
    assert not [name for name in all_commands() if str(place) in name]
    assert list((place / "tmp").iterdir()) == []


def test_killed_itself_its_children_end_and_the_next_start_is_the_same_network(
    start: Start, place: Path
) -> None:
    up = start()
    up.wait_for("ready.")
    layout = Layout(place / "state")
    network, accepted = layout.network_id(), ask(layout)
    started = descendants(up.process.pid)
    up.process.kill()
    up.process.wait()
    again = start()
    again.wait_for("ready.")
    assert [pid for pid in started if alive(pid)] == []
    assert layout.network_id() == network
    with client(layout) as known:
        answer = known.answer(accepted)
        second = known.answer(ask(layout))
    trust = read_trust(layout.trust_file.read_bytes())
    for data in (answer, second):
        assert verify_answer(data, trust=trust, policy=load_policy("dev")).verdict == "VERIFIED"
    again.process.send_signal(signal.SIGTERM)
    assert again.end() == 0
    assert list((place / "tmp").iterdir()) == []


def test_the_terminal_is_closed_and_it_ends_in_order(place: Path) -> None:
    """SIGHUP, and every word to the person fails from then on."""
    ours, theirs = pty.openpty()
    argv = [
        sys.executable,
        "-m",
        "aos.cli.main",
        "up",
        "--operators",
        "1",
        "--tee",
        "0",
        "--model",
        str(MODEL),
    ]
    with subprocess.Popen(
        [*argv, "--state-dir", str(place / "hung-up")],
        cwd=place,
        env=os.environ | {"TMPDIR": str(place / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  one system call
    ) as process:
        os.close(theirs)
        try:
            seen = b""
            while b"ready." not in seen:
                seen += os.read(ours, 4096)
            started = descendants(process.pid)
        finally:
            os.close(ours)
        assert process.wait(SLOW_MACHINE_S) == 0
    assert [pid for pid in started if alive(pid)] == []
    assert list((place / "tmp").iterdir()) == []
    shutil.rmtree(place / "hung-up")


def test_a_long_temporary_directory_leaves_room_for_the_enclaves_socket(start: Start, place: Path) -> None:
    """A Unix socket's address has at most 107 bytes."""
    long = place / "tmp" / ("t" * 60) / ("t" * 60)
    long.mkdir(mode=0o755, parents=True)
    up = start(TMPDIR=str(long))
    up.wait_for("ready.")
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 0
    assert list(long.iterdir()) == []
    shutil.rmtree(long.parent)


def test_a_path_with_spaces_and_signs_of_every_kind_is_a_state_directory(place: Path) -> None:
    """And the command that is printed for a second terminal works when it is pasted."""
    state = place / "mein Netz – 日本 'q\" $x" / ("s" * 120)
    argv = [
        sys.executable,
        "-m",
        "aos.cli.main",
        "up",
        "--operators",
        "1",
        "--tee",
        "0",
        "--model",
        str(MODEL),
    ]
    environment = os.environ | {"TMPDIR": str(place / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [*argv, "--state-dir", str(state)],
        cwd=place,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        talk = []
        while "Ctrl-C ends it." not in "".join(talk):
            talk.append(process.stderr.readline())
            assert talk[-1], "".join(talk)
        command = next(line.strip() for line in talk if " ask " in line)
        asked = subprocess.run(
            ["bash", "-c", command],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SLOW_MACHINE_S,
            check=False,
        )
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(SLOW_MACHINE_S) == 0
    assert asked.returncode == 0, asked.stderr
    assert 'VERIFIED at level "signed"' in asked.stderr
    (place / "answer.aos").unlink()
    shutil.rmtree(state.parent)


def client(layout: Layout) -> Client:
    kept = json.loads(layout.client_file.read_text())
    address = layout.dispatcher_keys().address
    return Client(kept["url"], project=kept["project"], token=kept["token"], dispatcher=address)


def ask(layout: Layout) -> str:
    """The id of a job that has been answered."""
    submission = Submission(
        prompt="What is AI?", model=MODEL.name, params={"temperature": 0.0, "top_p": 1.0, "max_tokens": 16}
    )
    with client(layout) as asking:
        job = asking.submit(submission).job_id
        *_, last = asking.events(job)
    assert (last.kind, last.data["status"]) == ("done", "verified")
    return job
