"""Help texts: what a command does, examples as they are typed, then arguments and options."""

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

_DASHED = re.compile(r"-[A-Za-z0-9_-]{42}", re.ASCII)


class Command(TyperCommand):
    """A command whose ``epilog`` is its examples, one a line."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        super().format_help_text(ctx, formatter)
        _write_examples(self.epilog, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Nothing: the examples came first."""


class NamedByHash(Command):
    """A command whose arguments are hashes in base64url: one that begins with a dash is no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        dashed = [word for word in args if _DASHED.fullmatch(word)]
        if dashed and "--" not in args:
            args = [word for word in args if word not in dashed] + ["--", *dashed]
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """A command with sub-commands whose ``epilog`` is its examples, one a line."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        super().format_help_text(ctx, formatter)
        _write_examples(self.epilog, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Nothing: the examples came first."""


class Root(Group):
    """``aos`` itself: exit codes, variables and files that all commands share stand at the end, as on a manual page."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        for title, rows in _SHARED:
            with formatter.section(title):
                formatter.write_dl(rows)


_SHARED = (
    (
        "Exit codes",
        [
            ("0", "done; VERIFIED"),
            ("1", "an unexpected failure"),
            ("2", "called wrongly, or input that is not well formed"),
            ("10", "NOT VERIFIED: something does not hold"),
            ("11", "PARTIAL: a required check was skipped"),
            ("12", "evidence missing or unreadable"),
            ("20", "a service is not reachable, or not in time"),
            ("30", "bad configuration"),
        ],
    ),
    (
        "Environment",
        [
            ("AOS_STATE_DIR", "where a local network and model names are kept; default .aos"),
            (
                "AOS_URL, AOS_PROJECT, AOS_TOKEN",
                "the dispatcher, and whose token; default: those of `aos up`",
            ),
            ("AOS_MODEL, AOS_TRUST", "the model to ask for; the trust file to verify with"),
            ("AOS_KEYSTORE_PASSWORD_FILE", "file with the keystores' password (or AOS_KEYSTORE_PASSWORD)"),
            ("AOS_<SECTION>_<KEY>", "a setting of an operator; AOS_DISPATCHER_<KEY> of a dispatcher"),
            ("NO_COLOR", "no colour"),
        ],
    ),
    (
        "Files",
        [
            (".aos/client.json", "address, project and token of the local network (0600)"),
            (".aos/trust.json", "what verification believes of it; public"),
        ],
    ),
    (
        "Output",
        [
            ("stdout", 'data; with --json one document {"schema", "result" or "error"}'),
            ("stderr", "talk and progress"),
        ],
    ),
)


def _write_examples(examples: str | None, formatter: Any) -> None:
    # Never wrapped: a line that is copied must work.
    if examples:
        formatter.write_paragraph()
        formatter.write("Examples:\n")
        for line in examples.splitlines():
            formatter.write(f"  {line}\n")
