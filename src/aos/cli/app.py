"""The command tree. Each command imports what it runs inside itself, so that help and completion stay quick."""

from pathlib import Path
from typing import Annotated

import typer

from aos.cli.ask import ask, job_app
from aos.cli.draw import draw
from aos.cli.keys import keys_app
from aos.cli.models import model_app
from aos.cli.network import demo, doctor, project_app, up
from aos.cli.nodes import config_app, dispatcher_app, operator_app

app = typer.Typer(
    name="aos",
    help="Verifiable AI inference: ask a network, get an answer with a receipt that anyone can check offline.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(ask)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def verify(
    file: Annotated[Path, typer.Argument(help="Answer file (.aos).")],
) -> None:
    """Check an answer file offline: one line a check, exit 0 only when VERIFIED (see `aos verify -h`)."""
    raise AssertionError(f"aos.cli.main runs verify itself ({file})")


app.command()(draw)
app.command()(up)
app.command()(demo)
app.command()(doctor)
app.add_typer(job_app, name="job")
app.add_typer(keys_app, name="keys")
app.add_typer(model_app, name="model")
app.add_typer(operator_app, name="operator")
app.add_typer(dispatcher_app, name="dispatcher")
app.add_typer(project_app, name="project")
app.add_typer(config_app, name="config")
