"""How the command line speaks: data on stdout, talk on stderr, one shape for errors, ``--json`` for machines."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable, VerificationError
from aos.progress import Progress

__all__ = [
    "Progress",
    "bold",
    "colour",
    "complain",
    "data",
    "data_json",
    "data_of_others",
    "dim",
    "say",
    "usage",
]
SCHEMA = 1
BROKEN_PIPE = 141
"""Exit code when the reader of stdout went away: 128 + SIGPIPE, as a shell reports it."""

_NEXT_STEP: dict[str, str] = {
    "gguf": "the file is damaged, or no GGUF model: get it again",
    "config": "`aos config show -c FILE --origin` says where each value comes from",
    "trust": "`aos up` writes one for a local network; a public network publishes its own",
    "keystore": "`aos keys new -h` says where the password comes from",
    "key": "`aos keys new` makes keys",
    "store": "is PostgreSQL running at that address?",
    "token": "AOS_PROJECT and AOS_TOKEN must be those of a project of this dispatcher: `aos project new`",
    "job": "`aos job detail JOB_ID` shows its request and where it stands",
    "embedded": "`aos doctor` looks at this machine",
    "process": "`aos doctor` looks at this machine",
    "local": "`aos doctor` looks at this machine",
}
_NEXT_STEP_OF_CLASS: dict[type[AOSError], str] = {
    InvalidMessage: "correct it; -h shows examples",
    VerificationError: "nothing was accepted; what the other side sent does not hold",
    RuleViolation: "not possible as things stand; -h shows examples",
    Unavailable: "try again; `aos doctor` looks at this machine",
    ConfigError: "correct this setting; -h shows examples",
}


def data(text: str, *, end: str = "\n") -> None:
    """Write data to stdout at once. Ends the program quietly where nobody reads it any more."""
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        _to_nowhere(sys.stdout.fileno())
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        _to_nowhere(sys.stdout.fileno())
        refused = AOSError("system.refused", f"stdout: {error.strerror}", hint="is the disk full?")
        raise SystemExit(complain(refused)) from None


def give_up_stdout() -> bool:
    """Where stdout cannot be written, send what Python still holds nowhere (it would fail once more at exit), and return True."""
    try:
        sys.stdout.flush()
    except OSError:
        _to_nowhere(sys.stdout.fileno())
        return True
    return False


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def data_of_others(text: str, *, end: str = "\n") -> None:
    """Write text that somebody else made: on a terminal, control characters are shown and not obeyed."""
    data(plain(text) if sys.stdout.isatty() else text, end=end)


def plain(text: str) -> str:
    """``text`` with every control character but line end and tab written as an escape."""
    return "".join(c if c in "\n\t" or c.isprintable() else repr(c)[1:-1] for c in text)


def data_json(kind: str, value: Any) -> None:
    """Write one JSON document: ``{"schema": "aos.cli.<kind>/1", …}``."""
    data(json.dumps({"schema": f"aos.cli.{kind}/{SCHEMA}", "result": value}, indent=2, ensure_ascii=False))


def say(text: str = "", *, end: str = "\n") -> None:
    """Talk to the person, on stderr. A terminal that was closed is no reason to fail: the work goes on, or ends, without it."""
    try:
        sys.stderr.write(text + end)
        sys.stderr.flush()
    except OSError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  stays for the rest of the program


def colour() -> bool:
    """True where stderr is a terminal that wants colour."""
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if colour() else text


def bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if colour() else text


def complain(error: AOSError, *, as_json: bool = False) -> int:
    """Print an error with its field and hint; returns the exit code."""
    hint = error.hint or next_step(error)
    if as_json:
        body = {"code": error.code, "message": error.message, "field": error.field, "hint": hint}
        data(json.dumps({"schema": f"aos.cli.error/{SCHEMA}", "error": body}, indent=2, ensure_ascii=False))
    else:
        red = "\x1b[31merror\x1b[0m" if colour() else "error"
        say(f"{red}: {plain(error.message)} [{plain(error.code)}]")
        say(f"  hint: {plain(hint)}")
    return error.exit_code


def next_step(error: AOSError) -> str:
    """What to do about an error that says nothing about it itself."""
    by_code = _NEXT_STEP.get(error.code.partition(".")[0])
    by_class = (hint for cls, hint in _NEXT_STEP_OF_CLASS.items() if isinstance(error, cls))
    return by_code or next(by_class, "-h shows examples")


def usage(message: str, *, hint: str) -> AOSError:
    """A command that was called wrongly: exit code 2."""
    error = AOSError("cli.usage", message, hint=hint)
    error.exit_code = 2
    return error


def program() -> str:
    """How a shell in this directory calls this program: ``aos`` where it finds it, else the path."""
    own, found = Path(sys.executable).with_name("aos"), shutil.which("aos")
    if not own.exists() or (found is not None and os.path.samefile(found, own)):
        return "aos"
    return shlex.quote(str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own))
