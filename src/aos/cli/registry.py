"""``aos registry``: who may take part in a dispatcher's network."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aos.cli import voice
from aos.cli.help import Command, Group
from aos.cli.logs import quiet

registry_app = typer.Typer(
    help="See who has registered with a dispatcher, and admit who waits.",
    cls=Group,
    epilog="aos registry list -c FILE.yaml\naos registry admit 0xADDRESS -c FILE.yaml",
    no_args_is_help=True,
)

DispatcherConfig = Annotated[Path, typer.Option("-c", "--config", help="The dispatcher's YAML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@registry_app.command(
    "list",
    cls=Command,
    short_help="Who has registered, those who wait first.",
    epilog="aos registry list -c .aos/dispatcher/config-dispatcher.yaml",
)
def list_registered(*, config: DispatcherConfig, as_json: AsJson = False) -> None:
    """List every registered operator, those who wait to be admitted first."""
    from aos.dispatcher.setup import list_operators

    operators = asyncio.run(list_operators(config))
    if as_json:
        voice.data_json("registry.list", [asdict(operator) for operator in operators])
        return
    for operator in operators:
        state = f"admitted, counts from epoch {operator.counts_from}" if operator.admitted else "waiting"
        if operator.convicted:
            state = "CONVICTED, not drawn from the next epoch on"
        models = f"{operator.models} model{'s' if operator.models != 1 else ''}"
        voice.data(f"{operator.node_id}  {'+'.join(operator.job_types):<8} {models:<10} {state}")
    if not operators:
        voice.say("nobody has registered")


@registry_app.command(
    "admit",
    cls=Command,
    short_help="Let a waiting operator in.",
    epilog="aos registry admit 0x9d8a62f656a8d1615c1294fd71e9cfb3e4855a4f -c FILE.yaml",
)
def admit(
    node_id: Annotated[str, typer.Argument(metavar="NODE_ID", help="The operator's address, 0x…")],
    *,
    config: DispatcherConfig,
    as_json: AsJson = False,
) -> None:
    """Give a waiting operator its range. It can be drawn two epochs from now; admitting twice changes nothing."""
    from aos.dispatcher.setup import admit_operator

    quiet()
    operator = asyncio.run(admit_operator(config, node_id.lower()))
    if as_json:
        voice.data_json("registry.admit", asdict(operator))
        return
    voice.say(f"{operator.node_id} is admitted; it can be drawn from epoch {operator.counts_from} on")
