"""``aos up``, ``aos demo``, ``aos doctor``, ``aos project``: a whole network on this machine."""

import asyncio
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aos.cli import voice
from aos.cli.settings import state_dir
from aos.core.codec import encode

if TYPE_CHECKING:
    from aos.local.network import Founded, Genesis

project_app = typer.Typer(help="Projects of a dispatcher and their API tokens.", no_args_is_help=True)

StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Default: $AOS_STATE_DIR or .aos.")]
ModelFile = Annotated[Path | None, typer.Option("--model", help="GGUF file; default: the demo model.")]


def found(genesis: "Genesis") -> "Founded":
    """Initialise a dispatcher's database through the dispatcher's own code."""
    from aos.dispatcher.setup import found_network
    from aos.local.network import Founded

    founded = asyncio.run(
        found_network(
            genesis.config,
            registrations=genesis.registrations,
            models=genesis.models,
            genesis_ms=genesis.genesis_ms,
            epoch_ms=genesis.epoch_ms,
            project=genesis.project,
        )
    )
    return Founded(
        network=founded.network,
        registry_root=encode(founded.registry_root),
        project=founded.project,
        token=founded.token,
    )


def up(
    *,
    state: StateDir = None,
    operators: Annotated[int, typer.Option(min=1, max=16, help="opML operators.")] = 3,
    tee: Annotated[int, typer.Option(min=0, max=4, help="TEE operators (SIMULATED enclaves).")] = 1,
    model: ModelFile = None,
) -> None:
    """Run a local network until Ctrl-C. Prints its URL and where the API token is.

    Example: aos up    (then, in a second terminal: aos ask "What is AI?" --save answer.aos)
    """
    from aos.local.network import DEMO_MODEL, LocalNetwork

    until = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: until.set())
    network = LocalNetwork(
        state or state_dir(),
        found=found,
        opml_operators=operators,
        tee_operators=tee,
        model=model or DEMO_MODEL,
        say=voice.say,
        until=until,
    )
    voice.say("starting a local network; TEE enclaves are SIMULATED")
    with network.running() as running:
        voice.say()
        for name, value in (
            ("network", running.network_id),
            ("dispatcher", running.url),
            ("API docs", f"{running.url}/docs"),
            ("model", running.model_name),
            ("project", running.project),
            ("API token", f"in {running.client_path} (mode 0600)"),
            ("trust file", str(running.trust_path)),
        ):
            voice.data(f"{name:<12} {value}")
        voice.say('\nready. In a second terminal:  aos ask "What is AI?" --save answer.aos\nCtrl-C ends it.')
        network.serve(running, until)


def demo(
    *,
    state: Annotated[
        Path | None, typer.Option("--state-dir", help="Default: a new one, removed at the end.")
    ] = None,
) -> None:
    """Start a network, ask it, check the receipts, tamper with one, stop: under a minute.

    Example: aos demo
    """
    import tempfile

    from aos.cli.verify import render_report
    from aos.local.demo import run_demo

    def run(directory: Path) -> int:
        return run_demo(
            directory,
            found=found,
            say=voice.data,
            write=lambda text: voice.data(text, end=""),
            render=render_report,
        )

    if state is not None:
        raise typer.Exit(run(state))
    with tempfile.TemporaryDirectory(prefix="aos-demo-") as directory:
        raise typer.Exit(run(Path(directory) / "state"))


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Look at this machine, the checkout, the model and the local network; say what is wrong and what to do.

    Example: aos doctor
    """
    from aos.local.doctor import examine

    findings = examine(state_dir())
    if as_json:
        voice.data_json("doctor", [encode(finding) for finding in findings])
    else:
        for finding in findings:
            voice.data(f"{finding.verdict:<5}{finding.subject:<22} {finding.text}")
            if finding.hint:
                voice.data(f"{'':<28}{finding.hint}")
    if any(finding.verdict == "FAIL" for finding in findings):
        raise typer.Exit(1)


@project_app.command("new")
def project_new(
    name: Annotated[str, typer.Argument(help="A name for people.")],
    *,
    config: Annotated[Path, typer.Option("-c", "--config", help="The dispatcher's configuration.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Make a project. Its API token is shown once and stored only as a hash.

    Example: aos project new my-app -c .aos/dispatcher/config-dispatcher.yaml
    """
    from aos.dispatcher.setup import new_project

    project, token = asyncio.run(new_project(config, name))
    if as_json:
        voice.data_json("project.new", {"project": project, "token": token})
        return
    voice.data(f"project  {project}\ntoken    {token}")
    voice.say("This is the only time that the token is shown. Send it as `verify`; project is `from`.")
