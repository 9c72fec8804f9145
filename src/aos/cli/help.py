"""Help texts: what a command does, examples as they are typed, then arguments and options."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command whose ``epilog`` is its examples, one a line."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        super().format_help_text(ctx, formatter)
        _write_examples(self.epilog, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Nothing: the examples came first."""


class Group(TyperGroup):
    """A command with sub-commands whose ``epilog`` is its examples, one a line."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        super().format_help_text(ctx, formatter)
        _write_examples(self.epilog, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Nothing: the examples came first."""


def _write_examples(examples: str | None, formatter: Any) -> None:
    # Never wrapped: a line that is copied must work.
    if examples:
        formatter.write_paragraph()
        formatter.write("Examples:\n")
        for line in examples.splitlines():
            formatter.write(f"  {line}\n")
