"""How the command line speaks: data on stdout, talk on stderr, one shape for errors, ``--json`` for machines."""

import json
import os
import sys
from typing import Any

from aos.errors import AOSError

SCHEMA = 1


def data(text: str, *, end: str = "\n") -> None:
    """Write data to stdout at once."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def data_json(kind: str, value: Any) -> None:
    """Write one JSON document: ``{"schema": "aos.cli.<kind>/1", …}``."""
    data(json.dumps({"schema": f"aos.cli.{kind}/{SCHEMA}", "result": value}, indent=2, ensure_ascii=False))


def say(text: str = "", *, end: str = "\n") -> None:
    """Talk to the person, on stderr."""
    sys.stderr.write(text + end)
    sys.stderr.flush()


def colour() -> bool:
    """True where stderr is a terminal that wants colour."""
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if colour() else text


def bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if colour() else text


def complain(error: AOSError, *, as_json: bool = False) -> int:
    """Print an error with its field and hint; returns the exit code."""
    if as_json:
        body = {"code": error.code, "message": error.message, "field": error.field, "hint": error.hint}
        data(json.dumps({"schema": f"aos.cli.error/{SCHEMA}", "error": body}, indent=2, ensure_ascii=False))
    else:
        red = "\x1b[31merror\x1b[0m" if colour() else "error"
        say(f"{red}: {error.message} [{error.code}]")
        if error.hint:
            say(f"  hint: {error.hint}")
    return error.exit_code


class Progress:
    """A byte counter on stderr for long work; silent where stderr is no terminal."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown = -1

    def __call__(self, done: int, total: int | None) -> None:
        if not sys.stderr.isatty():
            return
        percent = int(100 * done / total) if total else -1
        step = percent if total else done >> 22
        if step == self._shown:
            return
        self._shown = step
        if total:
            bar = "█" * (percent // 4) + "░" * (25 - percent // 4)
            say(f"\r{self._label} {bar} {percent:3d} %", end="" if done < total else "\n")
        else:
            say(f"\r{self._label} {done >> 20} MiB", end="")
