"""``aos``: one program, one module a topic. Commands are imported when they are called, so that ``aos verify`` and
``aos referee`` stay light."""

import errno
import sys

from aos.cli import voice
from aos.errors import AOSError, ConfigError

_INTERRUPTED = 130
_HINTS_OF_SYSTEM = {
    errno.ENOSPC: "free some disk space, or choose another place",
    errno.EDQUOT: "free some disk space, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that this user may use, or correct its owner and mode",
    errno.EPERM: "choose a place that this user may use, or correct its owner and mode",
    errno.ENOENT: "is the path right?",
    errno.ENOTDIR: "is the path right?",
    errno.EISDIR: "is the path right? a file is needed",
    errno.ENAMETOOLONG: "choose a shorter path",
}


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a locale without our signs must not end a command
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:]
    as_json = "--json" in arguments
    try:
        raise SystemExit(_run(arguments))
    except AOSError as error:
        raise SystemExit(voice.complain(error, as_json=as_json)) from None
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    except ModuleNotFoundError as error:
        if (error.name or "aos").partition(".")[0] == "aos":
            raise
        missing = ConfigError(
            "install.incomplete",
            f"the package {error.name} is not installed in {sys.prefix}",
            hint="run `make setup` in the checkout",
        )
        raise SystemExit(voice.complain(missing, as_json=as_json)) from None
    except OSError as error:
        as_json = as_json and not voice.give_up_stdout()
        refused = AOSError(
            "system.refused",
            f"{error.filename}: {error.strerror}" if error.filename else str(error),
            hint=_HINTS_OF_SYSTEM.get(error.errno or 0, "`aos doctor` looks at this machine"),
        )
        raise SystemExit(voice.complain(refused, as_json=as_json)) from None


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["verify"]:
        from aos.cli.verify import verify_command

        return verify_command(arguments[1:])
    if arguments[:1] == ["referee"]:
        from aos.cli.referee import referee_command

        return referee_command(arguments[1:])
    from aos.cli.app import app

    app(args=arguments, prog_name="aos")
    return 0


if __name__ == "__main__":
    main()
