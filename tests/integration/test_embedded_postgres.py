"""The embedded PostgreSQL: what it keeps, what it refuses, what it leaves alone (docs/adr/0002)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from aos.adapters.embedded.postgres import EmbeddedPostgres
from aos.errors import ConfigError, RuleViolation, Unavailable

AS_ROOT = os.geteuid() == 0


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    tmp_path.chmod(0o700)  # nobody else may enter, as below a closed home
    server = EmbeddedPostgres(tmp_path / "state")
    yield server
    server.stop()


async def execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def value(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_data_and_address_survive_a_restart(server: EmbeddedPostgres) -> None:
    url = server.start()
    await execute(url, "create table kept (n int); insert into kept values (7)")
    server.stop()
    assert server.pid is None
    assert server.start() == url
    assert await value(url, "select n from kept") == 7


async def test_what_was_committed_survives_kill_9(server: EmbeddedPostgres) -> None:
    url = server.start()
    await execute(url, "create table kept (n int); insert into kept values (7)")
    server.kill()
    assert server.poll() == -signal.SIGKILL
    assert server.start() == url
    assert await value(url, "select n from kept") == 7


async def test_the_disk_is_asked_to_keep_every_commit(server: EmbeddedPostgres) -> None:
    url = server.start()
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert await value(url, f"show {setting}") == "on"
    assert await value(url, "show server_encoding") == "UTF8"
    assert await value(url, "select datlocale from pg_database where datname = 'aos'") == "C.UTF-8"


def test_a_stale_pid_file_that_names_a_living_process_does_not_stop_a_start(server: EmbeddedPostgres) -> None:
    server.start()
    data = server.log_path.parent / "data"
    lines = (data / "postmaster.pid").read_text().splitlines()
    server.kill()
    wait_for(lambda: not processes_in(data), "the children of the killed server to end")
    (data / "postmaster.pid").write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    server.start()
    assert server.pid is not None


def processes_in(directory: Path) -> list[int]:
    wanted, found = directory.stat(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                cwd = (entry / "cwd").stat()
            except OSError:
                continue
            if (cwd.st_dev, cwd.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(int(entry.name))
    return found


def test_a_second_start_on_the_same_state_is_refused_by_name(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    server.start()
    with pytest.raises(RuleViolation, match=f"in use by process {os.getpid()}") as refusal:
        EmbeddedPostgres(tmp_path / "state").start()
    assert refusal.value.code == "embedded.already_running"
    assert server.pid is not None


def test_an_interrupted_initialisation_is_started_over(server: EmbeddedPostgres) -> None:
    half = server.log_path.parent / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    server.start()
    assert not half.exists()


def test_data_of_another_major_version_is_refused_and_left_alone(server: EmbeddedPostgres) -> None:
    data = server.log_path.parent / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("16\n")
    with pytest.raises(ConfigError, match="PostgreSQL 16") as refusal:
        server.start()
    assert refusal.value.code == "embedded.data_version"
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]


def test_damaged_data_is_an_error_that_shows_the_servers_words(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    (server.log_path.parent / "data" / "global" / "pg_control").unlink()
    with pytest.raises(Unavailable, match="status") as failure:
        server.start()
    assert failure.value.code == "embedded.start_failed"
    assert "pg_control" in (failure.value.hint or "")
    assert server.pid is None


@pytest.mark.skipif(not AS_ROOT, reason="only root can give a directory away")
def test_the_state_of_another_user_is_refused(server: EmbeddedPostgres) -> None:
    root = server.log_path.parent
    root.mkdir(parents=True)
    os.chown(root, 12345, 12345)
    with pytest.raises(ConfigError) as refusal:
        server.start()
    assert refusal.value.code == "embedded.foreign_state"


async def test_it_asks_for_the_password(server: EmbeddedPostgres) -> None:
    url = server.start()
    scheme, rest = url.split("://")
    wrong = f"{scheme}://aos:wrong@{rest.split('@')[1]}"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong.replace("aos:wrong@", "postgres:wrong@"))


async def test_our_role_cannot_run_programs_on_the_machine(server: EmbeddedPostgres) -> None:
    url = server.start()
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await execute(url, "copy (select 1) to program 'cat'")


def test_no_password_is_in_a_command_line_or_readable_by_others(server: EmbeddedPostgres) -> None:
    server.start()
    root = server.log_path.parent
    secrets = [(root / name).read_text().strip() for name in ("password", "admin-password")]
    command_lines = b"".join(read_or_empty(path / "cmdline") for path in Path("/proc").glob("[0-9]*"))
    log = server.log_path.read_text()
    for secret in secrets:
        assert len(secret) == 48
        assert secret.encode() not in command_lines
        assert secret not in log
    assert root.stat().st_mode & 0o777 == 0o700
    for name in ("password", "admin-password"):
        assert (root / name).stat().st_mode & 0o777 == 0o600


def read_or_empty(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_it_listens_on_the_loopback_address_alone(server: EmbeddedPostgres) -> None:
    port = int(server.start().rsplit(":", 1)[1].split("/")[0])
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in read_or_empty(Path(table)).decode().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_the_server_never_runs_as_root(server: EmbeddedPostgres) -> None:
    server.start()
    status = Path(f"/proc/{server.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert "0" not in fields["Uid"].split()
    if AS_ROOT:
        assert "0" not in fields["Gid"].split()
        assert fields["Groups"].split() == []
        assert int(fields["CapEff"], 16) == 0


def test_no_mode_changes_outside_the_state_directory(server: EmbeddedPostgres, tmp_path: Path) -> None:
    def modes() -> dict[str, int]:
        paths = [tmp_path, *tmp_path.parents]
        environment = Path(sys.prefix)
        paths += [environment, *environment.parents, *environment.rglob("*")]
        return {
            str(path): path.lstat().st_mode
            for path in paths
            if "__pycache__" not in path.parts and path.exists()
        }

    before = modes()
    server.start()
    server.create_database("other")
    server.stop()
    after = modes()
    assert {path: after.get(path, mode) for path, mode in before.items()} == before


def test_stop_leaves_nothing_but_the_state_directory(server: EmbeddedPostgres, tmp_path: Path) -> None:
    server.start()
    published = published_for(server.pid or 0) if AS_ROOT else None
    server.stop()
    assert published is None or not published.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert processes_in(server.log_path.parent / "data") == []


def test_the_server_ends_when_its_parent_is_killed_and_the_next_start_clears_up(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    script = (
        "import sys, time; from pathlib import Path;"
        "from aos.adapters.embedded.postgres import EmbeddedPostgres;"
        "server = EmbeddedPostgres(Path(sys.argv[1])); server.start(); print(server.pid, flush=True);"
        "time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "state")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert server_is(pid)
        left_behind = published_for(pid) if AS_ROOT else None
        parent.kill()
    server.start()  # at once: it waits for the old server to close
    assert not server_is(pid)
    if left_behind is not None:
        assert not left_behind.exists()


def server_is(pid: int) -> bool:
    return b"postgres" in read_or_empty(Path(f"/proc/{pid}/cmdline"))


def published_for(pid: int) -> Path:
    program = Path(read_or_empty(Path(f"/proc/{pid}/cmdline")).split(b"\0")[0].decode())
    return next(path for path in program.parents if path.name.startswith("aos-bin-"))


async def test_databases_are_made_copied_and_dropped(server: EmbeddedPostgres) -> None:
    server.start()
    url = server.create_database("pattern")
    await execute(url, "create table kept (n int); insert into kept values (7)")
    copy = server.create_database("copy", template="pattern")
    assert await value(copy, "select n from kept") == 7
    with pytest.raises(Unavailable, match="already exists"):
        server.create_database("copy")
    server.drop_database("copy")
    server.drop_database("copy")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(copy)


@pytest.mark.parametrize("name", ["", "Upper", "1st", 'a"; drop database aos; --', "a" * 64])
def test_a_name_that_needs_quoting_is_refused(server: EmbeddedPostgres, name: str) -> None:
    with pytest.raises(ValueError, match="not a database name"):
        server.create_database(name)
