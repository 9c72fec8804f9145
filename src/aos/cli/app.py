"""The command tree. Each command imports what it runs inside itself, so that help and completion stay quick."""

from pathlib import Path
from typing import Annotated

import typer

from aos.cli import (
    log_anchors,  # noqa: F401  adds its command to `aos log`
    log_witness,  # noqa: F401  so does it
    voice,
)
from aos.cli.ask import ASK_EXAMPLES, ask, job_app
from aos.cli.attack import ATTACK_EXAMPLES, attack
from aos.cli.attest import attest_app
from aos.cli.audit import AUDIT_EXAMPLES, audit
from aos.cli.chain import chain_app
from aos.cli.challenge import CHALLENGE_EXAMPLES, challenge, dispute_app
from aos.cli.demo_chain import DEMO_CHAIN_EXAMPLES, demo_chain
from aos.cli.draw import DRAW_EXAMPLES, draw
from aos.cli.help import Command, Root
from aos.cli.keys import keys_app
from aos.cli.log import log_app
from aos.cli.models import model_app
from aos.cli.network import DEMO_EXAMPLES, DOCTOR_EXAMPLES, UP_EXAMPLES, demo, doctor, project_app, up
from aos.cli.nodes import config_app, dispatcher_app, operator_app
from aos.cli.registry import registry_app
from aos.cli.replay import REPLAY_EXAMPLES, replay
from aos.cli.tee import tee_app

app = typer.Typer(
    name="aos",
    help="Verifiable AI inference: ask a network, get an answer with a receipt that anyone can check offline.",
    cls=Root,
    epilog="""aos up                                     # a local network, until Ctrl-C
aos ask "What is AI?" --save answer.aos    # in a second terminal
aos verify answer.aos                      # offline; exit code 0 only when VERIFIED""",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        voice.data(f"aos {version('aos')}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """The command's help is the application's."""


@app.command(
    cls=Command,
    short_help="Check an answer file offline.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def verify(
    file: Annotated[Path, typer.Argument(help="Answer file (.aos).")],
    *,
    trust: Annotated[Path | None, typer.Option(help="Trust file.")] = None,
    policy: Annotated[str | None, typer.Option(help="dev, default or production.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    re_execute: Annotated[bool, typer.Option("--replay")] = False,
    model: Annotated[Path | None, typer.Option(help="The model's GGUF file.")] = None,
    explain: Annotated[bool, typer.Option("--explain")] = False,
) -> None:
    """For completion and the list of commands: ``aos.cli.main`` runs ``aos.cli.verify`` itself, without typer."""
    raise AssertionError(f"not reached: {file} {trust} {policy} {as_json} {re_execute} {model} {explain}")


@app.command(
    cls=Command,
    short_help="Judge a dispute's transcript offline.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def referee(
    file: Annotated[Path, typer.Argument(help="Transcript of a dispute.")],
    *,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """For completion and the list of commands: ``aos.cli.main`` runs ``aos.cli.referee`` itself, without typer."""
    raise AssertionError(f"not reached: {file} {as_json}")


app.command(cls=Command, short_help="Ask the network and check the answer.", epilog=ASK_EXAMPLES)(ask)
app.command(cls=Command, short_help="Recheck a job's draws offline.", epilog=DRAW_EXAMPLES)(draw)
app.command(cls=Command, short_help="Run an answer again here and compare.", epilog=REPLAY_EXAMPLES)(replay)
app.command(cls=Command, short_help="Dispute an answer with the model at hand.", epilog=CHALLENGE_EXAMPLES)(
    challenge
)
app.command(cls=Command, short_help="Check a few layers of an answer exactly.", epilog=AUDIT_EXAMPLES)(audit)
app.command(cls=Command, short_help="Run a local network until Ctrl-C.", epilog=UP_EXAMPLES)(up)
app.command(cls=Command, short_help="The whole story in under a minute.", epilog=DEMO_EXAMPLES)(demo)
app.command(
    "demo-chain", cls=Command, short_help="The story with stakes on a chain.", epilog=DEMO_CHAIN_EXAMPLES
)(demo_chain)
app.command(cls=Command, short_help="What is wrong here, and what to do.", epilog=DOCTOR_EXAMPLES)(doctor)
app.command(cls=Command, short_help="Play the attacks that must fail.", epilog=ATTACK_EXAMPLES)(attack)
app.add_typer(job_app, name="job")
app.add_typer(dispute_app, name="dispute")
app.add_typer(log_app, name="log")
app.add_typer(attest_app, name="attest")
app.add_typer(tee_app, name="tee")
app.add_typer(keys_app, name="keys")
app.add_typer(model_app, name="model")
app.add_typer(operator_app, name="operator")
app.add_typer(dispatcher_app, name="dispatcher")
app.add_typer(registry_app, name="registry")
app.add_typer(chain_app, name="chain")
app.add_typer(project_app, name="project")
app.add_typer(config_app, name="config")
