"""Supervised child processes: ready when they answer, gone when they should be, never orphaned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aos.adapters.processes import (
    Crash,
    Process,
    Supervisor,
    free_port,
    http_ok,
    log_contains,
    port_is_free,
    port_open,
)
from aos.errors import Unavailable

UP = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + UP

MakeProcess = Callable[..., Process]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeProcess]:
    made: list[Process] = []

    def create(code: str, *args: str, name: str = "child", **options: object) -> Process:
        argv = [sys.executable, "-c", code, *args]
        process = Process(name, argv, log_path=tmp_path / f"{name}.log", **options)  # type: ignore[arg-type]
        made.append(process)
        return process

    yield create
    for process in made:
        process.kill()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def test_start_returns_when_the_log_says_so(make: MakeProcess) -> None:
    process = make(UP, ready=log_contains("up"))
    process.start()
    assert process.pid is not None
    assert alive(process.pid)
    assert process.log_tail() == "up"


def test_a_line_of_an_earlier_run_does_not_count_as_ready(make: MakeProcess, tmp_path: Path) -> None:
    (tmp_path / "child.log").write_text("up\n")
    process = make("print('other')", ready=log_contains("up"))
    with pytest.raises(Unavailable) as failure:
        process.start()
    assert failure.value.code == "process.died"


def test_start_returns_when_the_server_answers(make: MakeProcess, tmp_path: Path) -> None:
    port = free_port()
    process = make(
        "import sys, http.server as s;"
        "s.HTTPServer(('127.0.0.1', int(sys.argv[1])), s.SimpleHTTPRequestHandler).serve_forever()",
        str(port),
        ready=http_ok(f"http://127.0.0.1:{port}/"),
        cwd=tmp_path,
    )
    process.start()
    assert port_open(port)(process)
    assert not port_is_free(port)
    assert not http_ok(f"http://127.0.0.1:{port}/absent")(process)


def test_a_child_that_ends_before_it_is_ready_is_named_with_its_last_words(make: MakeProcess) -> None:
    process = make("import sys; sys.exit('no such model')", name="worker", ready=log_contains("up"))
    with pytest.raises(Unavailable, match="worker ended with status 1") as failure:
        process.start()
    assert failure.value.code == "process.died"
    assert "no such model" in (failure.value.hint or "")


def test_a_child_that_is_not_ready_in_time_does_not_stay(make: MakeProcess) -> None:
    process = make(UP, ready=log_contains("never"), ready_timeout_s=0.3)
    with pytest.raises(Unavailable) as failure:
        process.start()
    assert failure.value.code == "process.not_ready"
    assert process.pid is None


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    process = Process("ghost", ["/nonexistent/program"], log_path=tmp_path / "l", ready=log_contains("up"))
    with pytest.raises(Unavailable) as failure:
        process.start()
    assert "/nonexistent/program" in (failure.value.hint or "")


def test_a_child_has_the_environment_and_a_session_of_its_own(make: MakeProcess) -> None:
    process = make(
        "import os; print(os.environ['AOS_X'], os.getsid(0) == os.getpid(), 'up', flush=True);" + UP,
        env={"AOS_X": "seven"},
        ready=log_contains("up"),
    )
    process.start()
    assert process.log_tail().startswith("seven True")


def test_stop_lets_a_child_end_in_its_own_way(make: MakeProcess) -> None:
    process = make(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit(3)))\n"
        "print('up', flush=True)\ntime.sleep(600)",
        ready=log_contains("up"),
    )
    process.start()
    process.stop()
    assert process.poll() == 3
    assert "bye" in process.log_tail()


def test_stop_kills_a_child_that_will_not_end(make: MakeProcess) -> None:
    process = make(STUBBORN, ready=log_contains("up"), grace_s=0.2)
    process.start()
    process.stop()
    assert process.poll() == -signal.SIGKILL


def test_kill_takes_the_childs_own_children_along(make: MakeProcess) -> None:
    process = make(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, 'up', flush=True)\ntime.sleep(600)",
        ready=log_contains("up"),
    )
    process.start()
    grandchild = int(process.log_tail().split()[0])
    assert alive(grandchild)
    process.kill()
    wait_for(lambda: not alive(grandchild), "the grandchild to end")


def test_children_die_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from aos.adapters.processes import Process, log_contains\n"
        f"p = Process('c', [sys.executable, '-c', {STUBBORN!r}], log_path=Path(sys.argv[1]),"
        " ready=log_contains('up'))\n"
        "p.start(); print(p.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    wait_for(lambda: not alive(child), "the child of the killed parent to end")


def test_a_child_outlives_the_thread_that_asked_for_it(make: MakeProcess) -> None:
    process = make(UP, ready=log_contains("up"))
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()
    second = make(UP, name="second", ready=log_contains("up"))
    second.start()  # the kernel has long had time to notice the end of the thread
    assert process.poll() is None


class Server:
    """What programs use; it writes down when it is stopped."""

    def __init__(self, name: str, order: Path) -> None:
        self.name, self._order = name, order

    def start(self) -> None:
        pass

    def poll(self) -> int | None:
        return None

    def stop(self) -> None:
        with self._order.open("a") as file:
            file.write(self.name)


def test_the_supervisor_stops_programs_at_once_and_then_what_they_use_the_last_started_first(
    make: MakeProcess, tmp_path: Path
) -> None:
    order = tmp_path / "order"
    # Each ends only when all three have been asked to.
    code = (
        "import pathlib, signal, sys, time\n"
        "asked = [pathlib.Path(sys.argv[1] + n) for n in 'abc']\n"
        "def end(*_):\n"
        "    pathlib.Path(sys.argv[1] + sys.argv[2]).touch()\n"
        "    while not all(path.exists() for path in asked): time.sleep(0.01)\n"
        "    open(sys.argv[1], 'a').write('.'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\nprint('up', flush=True)\ntime.sleep(600)"
    )
    with Supervisor() as supervisor:
        for name in "xy":
            supervisor.start(Server(name, order))
        for name in "abc":
            supervisor.start(make(code, str(order), name, name=name, ready=log_contains("up")))
    assert order.read_text() == "...yx"


def test_the_supervisor_restarts_a_crashed_child_and_says_so(make: MakeProcess) -> None:
    crashes: list[Crash] = []
    process = make(UP, name="worker", ready=log_contains("up"))
    with Supervisor(on_crash=crashes.append) as supervisor:
        supervisor.start(process, restart=True)
        first = process.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: process.poll() is not None, "the child to end")
        supervisor.check()
        assert process.pid not in (None, first)
        supervisor.check()
    assert crashes == [Crash(name="worker", status=-signal.SIGKILL, restarted=True)]


def test_the_supervisor_raises_for_a_child_that_must_not_be_restarted(make: MakeProcess) -> None:
    process = make(UP, name="dispatcher", ready=log_contains("up"))
    with Supervisor() as supervisor:
        supervisor.start(process)
        process.kill()
        with pytest.raises(Unavailable, match="dispatcher ended with status -9"):
            supervisor.check()


def test_the_supervisor_pauses_before_it_restarts_the_same_child_again(make: MakeProcess) -> None:
    crashes: list[Crash] = []
    process = make("pass", name="broken")
    with Supervisor(on_crash=crashes.append) as supervisor:
        supervisor.start(process, restart=True)
        done = threading.Event()
        runner = threading.Thread(target=supervisor.run, args=(done,), kwargs={"every_s": 0.005})
        began = time.monotonic()
        runner.start()
        wait_for(lambda: len(crashes) >= 3, "three crashes")
        took = time.monotonic() - began
        done.set()
        runner.join()
    assert took > 0.2, "the second restart waits at least 0.2 s"


def test_free_ports_are_distinct_and_out_of_the_way_of_outgoing_connections() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(port < first_outgoing for port in ports)
