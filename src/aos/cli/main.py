"""``aos``: one program, one module a topic. Commands are imported when they are called, so that ``aos verify`` stays light."""

import sys

from aos.cli import voice
from aos.errors import AOSError


def main() -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["verify"]:
        from aos.cli.verify import verify_command

        raise SystemExit(verify_command(arguments[1:]))
    as_json = "--json" in arguments
    try:
        from aos.cli.app import app

        app(args=arguments, prog_name="aos")
    except AOSError as error:
        raise SystemExit(voice.complain(error, as_json=as_json)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
