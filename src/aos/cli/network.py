"""``aos up``, ``aos demo``, ``aos doctor``, ``aos project``: a whole network on this machine."""

import asyncio
import functools
import shlex
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aos.cli import voice
from aos.cli.help import Command, Group
from aos.client.settings import state_dir
from aos.core.codec import encode

if TYPE_CHECKING:
    from aos.local.network import Founded, Genesis

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LABELS = {"api_docs": "API docs", "api_token_file": "API token", "trust_file": "trust file"}
_SHOWN = {"api_token_file": "in {} (mode 0600)"}
UP_EXAMPLES = """aos up
aos up --operators 1 --tee 0
AOS_STATE_DIR=/var/tmp/my-network aos up"""
DEMO_EXAMPLES = "aos demo"
DOCTOR_EXAMPLES = """aos doctor
aos doctor --json | jq -r '.result[] | select(.verdict == "FAIL") | .hint'"""

project_app = typer.Typer(
    help="Projects of a dispatcher and their API tokens.",
    cls=Group,
    epilog="aos project new my-app -c .aos/dispatcher/config-dispatcher.yaml",
    no_args_is_help=True,
)

StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Default: $AOS_STATE_DIR or .aos.")]
ModelFile = Annotated[
    Path | None, typer.Option("--model", help="GGUF file, or a model's name; default: the demo model.")
]
DispatcherConfigFile = Annotated[Path, typer.Option("-c", "--config", help="The dispatcher's configuration.")]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", help="submit, read, flag or challenge; may be repeated; default: all of them."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def found(genesis: "Genesis") -> "Founded":
    """Initialise a dispatcher's database through the dispatcher's own code."""
    from aos.dispatcher.setup import found_network
    from aos.local.network import Founded

    founded = asyncio.run(
        found_network(
            genesis.config,
            registrations=genesis.registrations,
            models=genesis.models,
            manifests=genesis.manifests,
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
        webhook_secret=founded.webhook_secret,
    )


def _model_file(named: Path | None) -> Path:
    """The file that ``--model`` means: a path, or the name of a registered model or of one in ./models."""
    from aos.adapters.model_store import find_model
    from aos.local.network import DEMO_MODEL

    if named is None or named.is_file() or named.name != str(named):
        return named or DEMO_MODEL
    return find_model(state_dir(), str(named)).path


def up(
    *,
    state: StateDir = None,
    operators: Annotated[int, typer.Option(min=1, max=16, help="opML operators.")] = 3,
    tee: Annotated[int, typer.Option(min=0, max=4, help="TEE operators (SIMULATED enclaves).")] = 1,
    model: ModelFile = None,
    as_json: AsJson = False,
) -> None:
    """Run a local network until Ctrl-C. Prints its URL and where the API token is."""
    from aos.local.network import LocalNetwork

    until = threading.Event()
    for number in ENDINGS:
        signal.signal(number, lambda *_: until.set())
    place = state or state_dir()
    network = LocalNetwork(
        place,
        found=found,
        opml_operators=operators,
        tee_operators=tee,
        model=_model_file(model),
        say=voice.say,
        until=until,
    )
    voice.say("starting a local network; TEE enclaves are SIMULATED")
    with network.running() as running:
        voice.say()
        facts = {
            "network": running.network_id,
            "dispatcher": running.url,
            "api_docs": f"{running.url}/docs",
            "model": running.model_name,
            "project": running.project,
            "api_token_file": str(running.client_path),
            "trust_file": str(running.trust_path),
        }
        if as_json:
            voice.data_json("up", facts)
        else:
            for name, value in facts.items():
                voice.data(f"{_LABELS.get(name, name):<12} {_SHOWN.get(name, '{}').format(value)}")
        voice.say(
            f"\nready. In a second terminal, in this directory:\n\n  {_ask_command(place)}\n\nCtrl-C ends it."
        )
        network.serve(running, until)


def _ask_command(state: Path) -> str:
    """What to type to ask this network."""
    default = state.absolute() == Path(".aos").absolute()
    where = "" if default else f"AOS_STATE_DIR={shlex.quote(str(state.absolute()))} "
    return f'{where}{voice.program()} ask "What is AI?" --save answer.aos'


def demo(
    *,
    state: Annotated[
        Path | None, typer.Option("--state-dir", help="Default: a new one, removed at the end.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a network, ask it, check the receipts, tamper with one, stop: under a minute.

    The answers stay in ./demo-answers; nothing else does.
    """
    import tempfile

    from aos.cli.verify import render_report, stdout_colour
    from aos.local.demo import Stage, run_demo

    for number in ENDINGS:
        signal.signal(number, interrupt_once)
    stage = Stage(
        say=voice.say if as_json else voice.data,
        write=_write_text(voice.say if as_json else voice.data_of_others),
        render=functools.partial(render_report, colour=not as_json and stdout_colour()),
        program=voice.program(),
    )

    def run(directory: Path) -> None:
        result = run_demo(directory, found=found, stage=stage)
        if as_json:
            voice.data_json("demo", result)

    if state is not None:
        run(state)
        return
    with tempfile.TemporaryDirectory(prefix="aos-demo-") as directory:
        run(Path(directory) / "state")


def interrupt_once(*_: object) -> None:
    """End a network of this command in order; further signals would only break off its cleaning up."""
    for number in ENDINGS:
        # Not SIG_IGN: of a signal that is pending now, Python would complain with a traceback.
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


def _write_text(write: Callable[..., None]) -> Callable[[str], None]:
    return lambda text: write(text, end="")


def doctor(*, as_json: AsJson = False) -> None:
    """Look at this machine, the installation, the model and the local network; say what is wrong and what to do.

    Exit code 1 where a local network could not run (FAIL), 0 otherwise. Changes nothing.
    """
    from aos.local.doctor import examine

    findings = examine(state_dir())
    if as_json:
        voice.data_json("doctor", [encode(finding) for finding in findings])
    else:
        for finding in findings:
            voice.data(f"{finding.verdict:<5}{finding.subject:<15} {finding.text}")
            if finding.hint:
                voice.data(f"{'':<21}→ {finding.hint}")
    if any(finding.verdict == "FAIL" for finding in findings):
        raise typer.Exit(1)


@project_app.command(
    "new",
    cls=Command,
    short_help="Make a project and its API token.",
    epilog="""aos project new my-app -c .aos/dispatcher/config-dispatcher.yaml
aos project new reader -c .aos/dispatcher/config-dispatcher.yaml --scope read
aos project new shop -c .aos/dispatcher/config-dispatcher.yaml --max-requests 20 --max-tokens 40000""",
)
def project_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for people.")],
    *,
    config: DispatcherConfigFile,
    scope: Scopes = None,
    max_requests: Annotated[
        int | None,
        typer.Option("--max-requests", min=1, help="Requests under way at once; default: the dispatcher's."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", min=1, help="Tokens that these may generate; default: the dispatcher's."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a project. Its API token is shown once and stored only as a hash."""
    from aos.dispatcher.setup import SCOPES, new_project

    made = asyncio.run(
        new_project(config, name, scopes=scope or SCOPES, most_requests=max_requests, most_tokens=max_tokens)
    )
    facts = {"project": made.project, "token": made.token, "webhook_secret": made.webhook_secret}
    if as_json:
        voice.data_json("project.new", facts)
        return
    for label, value in facts.items():
        voice.data(f"{label:<15} {value}")
    voice.say(
        "This is the only time that the token is shown. Send it as `verify` (project is `from`), or to /v1/ as API key."
    )


@project_app.command(
    "token",
    cls=Command,
    short_help="Make one more API token of a project.",
    epilog="aos project token p-0123456789abcdef -c .aos/dispatcher/config-dispatcher.yaml --scope submit",
)
def project_token(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="The project's id.")],
    *,
    config: DispatcherConfigFile,
    scope: Scopes = None,
    as_json: AsJson = False,
) -> None:
    """Make one more token of a project, for some of what its tokens may be for. It is shown once."""
    from aos.dispatcher.setup import SCOPES, new_token

    token = asyncio.run(new_token(config, project, scopes=scope or SCOPES))
    if as_json:
        voice.data_json("project.token", {"project": project, "token": token})
        return
    voice.data(f"{'token':<15} {token}")


@project_app.command(
    "list",
    cls=Command,
    short_help="Projects, their limits and tokens.",
    epilog="aos project list -c .aos/dispatcher/config-dispatcher.yaml",
)
def project_list(*, config: DispatcherConfigFile, as_json: AsJson = False) -> None:
    """List every project with its limits, its jobs and what its tokens are for. Tokens themselves are nowhere stored."""
    from aos.dispatcher.setup import list_projects

    rows = asyncio.run(list_projects(config))
    if as_json:
        voice.data_json("project.list", [asdict(row) for row in rows])
        return
    for row in rows:
        scopes = "; ".join(" ".join(token) for token in row.tokens) or "no token"
        voice.data(f"{row.project}  {voice.plain(row.name):<20} {row.jobs:>7} jobs  {scopes}")


@project_app.command(
    "revoke",
    cls=Command,
    short_help="Take none of its tokens any more.",
    epilog="""aos project revoke p-0123456789abcdef -c .aos/dispatcher/config-dispatcher.yaml
aos project token p-0123456789abcdef -c .aos/dispatcher/config-dispatcher.yaml""",
)
def project_revoke(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="The project's id.")],
    *,
    config: DispatcherConfigFile,
    as_json: AsJson = False,
) -> None:
    """Revoke all tokens of a project at once, for instance where one leaked; `aos project token` then makes a new one.

    Its jobs and results stay. Requests that are under way are finished.
    """
    from aos.dispatcher.setup import revoke_tokens

    revoked = asyncio.run(revoke_tokens(config, project))
    if as_json:
        voice.data_json("project.revoke", {"project": project, "revoked": revoked})
        return
    voice.say(f"revoked {revoked} token{'' if revoked == 1 else 's'} of {project}")
