"""The embedded Redis: what it keeps, what it refuses (docs/adr/0002)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from aos.adapters.embedded.redis import EmbeddedRedis
from aos.errors import RuleViolation


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    tmp_path.chmod(0o700)
    server = EmbeddedRedis(tmp_path / "state")
    yield server
    server.stop()


def test_data_and_address_survive_a_restart(server: EmbeddedRedis) -> None:
    url = server.start()
    with redis.Redis.from_url(url) as client:
        client.xadd("jobs", {"id": "7"})
    server.stop()
    assert server.start() == url
    with redis.Redis.from_url(url) as client:
        assert client.xlen("jobs") == 1


def test_what_was_answered_survives_kill_9(server: EmbeddedRedis) -> None:
    url = server.start()
    with redis.Redis.from_url(url) as client:
        client.xgroup_create("jobs", "workers", id="0", mkstream=True)
        for number in range(100):
            client.xadd("jobs", {"id": str(number)})
        client.xreadgroup("workers", "first", {"jobs": ">"}, count=10)
    server.kill()
    assert server.poll() == -signal.SIGKILL
    assert server.start() == url
    with redis.Redis.from_url(url) as client:
        assert client.xlen("jobs") == 100
        assert client.xpending("jobs", "workers")["pending"] == 10


def test_it_asks_for_the_password(server: EmbeddedRedis) -> None:
    url = server.start()
    bare = "redis://" + url.split("@")[1]
    with redis.Redis.from_url(bare) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    wrong = "redis://:wrong@" + url.split("@")[1]
    with redis.Redis.from_url(wrong) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    with redis.Redis.from_url(url) as client:
        rules = client.acl_getuser("default")
    assert "nopass" not in rules["flags"]


def test_the_password_is_in_no_command_line_and_not_in_the_log(server: EmbeddedRedis) -> None:
    url = server.start()
    password = url.split(":")[2].split("@")[0]
    assert len(password) == 48
    assert password.encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert password not in server.log_path.read_text()
    assert (server.log_path.parent / "password").stat().st_mode & 0o777 == 0o600


def test_a_second_start_on_the_same_state_is_refused_by_name(server: EmbeddedRedis, tmp_path: Path) -> None:
    server.start()
    with pytest.raises(RuleViolation, match=f"in use by process {os.getpid()}") as refusal:
        EmbeddedRedis(tmp_path / "state").start()
    assert refusal.value.code == "embedded.already_running"


def test_the_server_never_runs_as_root(server: EmbeddedRedis) -> None:
    server.start()
    status = Path(f"/proc/{server.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert "0" not in fields["Uid"].split()


def test_everything_it_writes_is_in_the_state_directory(server: EmbeddedRedis, tmp_path: Path) -> None:
    url = server.start()
    with redis.Redis.from_url(url) as client:
        client.set("a", "b")
        assert client.config_get("save")["save"] == ""
        assert client.config_get("appendonly")["appendonly"] == "yes"
    server.stop()
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    names = ("data/appendonly.aof", "lock", "log", "password", "port")
    assert files == {f"state/redis/{name}" for name in names}


def test_flush_empties_it(server: EmbeddedRedis) -> None:
    url = server.start()
    with redis.Redis.from_url(url) as client:
        client.set("a", "b")
        server.flush()
        assert client.dbsize() == 0
