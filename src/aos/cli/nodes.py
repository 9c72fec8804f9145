"""``aos operator``, ``aos dispatcher``, ``aos config``: running the network's nodes."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from aos.cli import voice
from aos.cli.help import Command, Group
from aos.errors import Unavailable

DRAIN_LOOK_S = 0.5

operator_app = typer.Typer(
    help="Run an operator, or ask a running one how it is.",
    cls=Group,
    epilog="""aos operator -i postgres://user:password@127.0.0.1:5432/operator_db
aos operator -c FILE.yaml
aos operator status -c FILE.yaml""",
    invoke_without_command=True,
)
dispatcher_app = typer.Typer(
    help="Found a network and run its dispatcher.",
    cls=Group,
    epilog="""aos dispatcher init -c FILE.yaml --model models/aos-demo.Q8_0.gguf
aos dispatcher run -c FILE.yaml""",
    no_args_is_help=True,
)
config_app = typer.Typer(
    help="Look at an operator's configuration.",
    cls=Group,
    epilog="aos config show -c docs/template/config-operator.yaml --origin",
    no_args_is_help=True,
)

ConfigFile = Annotated[Path, typer.Option("-c", "--config", help="The operator's YAML file.")]
DispatcherConfig = Annotated[Path, typer.Option("-c", "--config", help="The dispatcher's YAML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@operator_app.callback()
def operator(
    context: typer.Context,
    *,
    init: Annotated[
        str | None, typer.Option("-i", help="Initialise this database (postgres://…) and end.")
    ] = None,
    config: Annotated[Path | None, typer.Option("-c", help="Run with this YAML file.")] = None,
) -> None:
    """The guide's two flags."""
    if context.invoked_subcommand is not None:
        return
    if init is not None:
        init_db(init)
    elif config is not None:
        run(config=config)
    else:
        voice.say(context.get_help())
        raise typer.Exit(2)


@operator_app.command(
    "init-db",
    cls=Command,
    short_help="Create the operator's tables.",
    epilog="aos operator init-db postgres://user:password@127.0.0.1:5432/operator_db",
)
def init_db(
    url: Annotated[str, typer.Argument(metavar="URL", help="postgres://user:password@host:port/database")],
    *,
    as_json: AsJson = False,
) -> None:
    """Create the operator's database and tables. Running it again changes nothing."""
    from aos.operator.runer import configure_logging
    from aos.operator.runer import init_db as initialise

    configure_logging()
    applied = initialise(url)
    if as_json:
        voice.data_json("operator.init-db", {"migrations": applied})
    else:
        voice.say(f"the operator's database is ready ({len(applied)} migrations applied now)")


@operator_app.command("run", cls=Command, epilog="aos operator run -c FILE.yaml")
def run(*, config: ConfigFile) -> None:
    """Run the operator until SIGTERM or Ctrl-C."""
    from aos.operator.runer import run as run_operator

    raise typer.Exit(run_operator(config))


@operator_app.command(
    "status",
    cls=Command,
    short_help="Is it eligible, connected, drawn? What is wrong?",
    epilog="aos operator status -c .aos/operator-1/config-operator.yaml",
)
def status(*, config: ConfigFile, as_json: AsJson = False) -> None:
    """Ask a running operator whether it is eligible, connected, drawn, and what is wrong."""
    from aos.operator.runer import status as status_of

    result = status_of(config)
    if as_json:
        voice.data_json("operator.status", result)
        return
    for name, value in result.items():
        if name != "court" or value is not None:  # without a chain there is none
            voice.data(f"{name:<18} {_shown(value)}")


@operator_app.command(
    "drain",
    cls=Command,
    short_help="Let it finish, and take nothing new.",
    epilog="""aos operator drain -c .aos/operator-1/config-operator.yaml --wait
aos operator drain -c FILE.yaml --wait --timeout 600 --json""",
)
def drain(
    *,
    config: ConfigFile,
    wait: Annotated[bool, typer.Option("--wait", help="Return once nothing is under way.")] = False,
    timeout: Annotated[
        int | None, typer.Option("--timeout", min=1, metavar="SECONDS", help="With --wait: at most so long.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell a running operator to finish what it has and take nothing new.

    It lasts, over restarts too, until `aos operator resume`. Ctrl-C ends the waiting, not the draining; waiting again goes on.
    Exit code 20 where jobs were still under way after --timeout.
    """
    from aos.operator.runer import drain as drain_it

    if timeout is not None and not wait:
        raise voice.usage("--timeout is for --wait", hint="aos operator drain -c FILE --wait --timeout 600")
    result = drain_it(config)
    if wait:
        result = _wait_until_empty(config, result, timeout)
    if as_json:
        voice.data_json("operator.drain", result)
        return
    left = result["unfinished"]
    if left:
        voice.say(
            f"draining: {left} under way are finished, every draw is declined; --wait waits for the end"
        )
    else:
        voice.say("drained: nothing is under way, every draw is declined; it can be stopped now")


def _wait_until_empty(config: Path, result: dict[str, Any], timeout: int | None) -> dict[str, Any]:
    from aos.operator.runer import status as status_of
    from aos.progress import Steps

    until = None if timeout is None else time.monotonic() + timeout
    progress, total = Steps("finishing jobs"), result["unfinished"]
    while left := result["unfinished"]:
        total = max(total, left)
        progress(total - left, total)
        if until is not None and time.monotonic() >= until:
            raise Unavailable(
                "operator.not_drained",
                f"{left} jobs are still under way; the operator goes on draining",
                hint="wait again with `aos operator drain -c FILE --wait`",
            )
        time.sleep(DRAIN_LOOK_S)
        result = {"draining": True, "unfinished": status_of(config)["unfinished"]}
    if total:
        progress(total, total)
    return result


@operator_app.command(
    "resume",
    cls=Command,
    short_help="Take jobs again after a drain.",
    epilog="aos operator resume -c .aos/operator-1/config-operator.yaml",
)
def resume(*, config: ConfigFile, as_json: AsJson = False) -> None:
    """Tell a running operator that drains to take part in draws again."""
    from aos.operator.runer import resume as resume_it

    result = resume_it(config)
    if as_json:
        voice.data_json("operator.resume", result)
        return
    voice.say("resumed: it takes part in draws again; `aos operator status` shows how it is drawn")


@operator_app.command(
    "register",
    cls=Command,
    short_help="Ask the dispatcher to be entered in its registry.",
    epilog="""aos operator register -c FILE.yaml
aos operator register -c FILE.yaml --model-id kXwnqrlUM4kfkq-4JYHp3PXTmpN8RPQ4Opmi5BtWbmI""",
)
def register(
    *,
    config: ConfigFile,
    model_id: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="A model id, as `aos model add` prints it; default: what the workers serve."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register this operator, or tell a dispatcher that knows it what it offers now."""
    from aos.core.encoding import b64u_decode, b64u_encode
    from aos.operator.registration import register as register_operator

    models = [b64u_decode(text, length=32) for text in model_id or []]
    done = register_operator(config, models)
    facts = {
        "node_id": done.node_id,
        "network": done.network,
        "job_type": done.job_type,
        "models": [b64u_encode(model) for model in done.models],
        "admitted": done.admitted,
    }
    if as_json:
        voice.data_json("operator.register", facts)
        return
    for name, value in facts.items():
        voice.data(f"{name:<18} {_shown(value)}")
    if done.admitted:
        voice.say("it can be drawn two epochs from now; `aos operator status` says when")
    else:
        voice.say("it waits: the dispatcher's owner admits it with `aos registry admit`")


@dispatcher_app.command(
    "init",
    cls=Command,
    short_help="Found a network in an empty database.",
    epilog="""aos dispatcher init -c config-dispatcher.yaml --model models/aos-demo.Q8_0.gguf
aos dispatcher init -c FILE.yaml --model a.gguf --model b.gguf --epoch-minutes 60 --project my-app --json""",
)
def dispatcher_init(
    *,
    config: DispatcherConfig,
    model: Annotated[
        list[Path],
        typer.Option("--model", help="A GGUF file that the network may be asked for; may be repeated."),
    ],
    epoch_minutes: Annotated[
        int, typer.Option("--epoch-minutes", min=1, max=10_080, help="How long an epoch is; fixed for ever.")
    ] = 60,
    project: Annotated[str, typer.Option(metavar="NAME", help="Name of the first project.")] = "first",
    as_json: AsJson = False,
) -> None:
    """Found a network: make tables, genesis, a first project, and the trust file that its requesters verify with.

    Missing keys are made beside the configuration file, each 0600: keep them. The models are read for their digests only. Files
    network.json and trust.json beside the configuration are public.
    """
    from aos.cli.founding import found

    facts = found(config, model, epoch_ms=epoch_minutes * 60_000, project=project)
    if as_json:
        voice.data_json("dispatcher.init", facts)
        return
    for name, value in facts.items():
        voice.data(f"{name:<15} {_shown(value)}")
    voice.say(
        "This is the only time that the token is shown. Start it: aos dispatcher run -c FILE. Operators join with "
        "`aos operator register`."
    )


@dispatcher_app.command("run", cls=Command, epilog="aos dispatcher run -c FILE.yaml")
def dispatcher_run(*, config: DispatcherConfig) -> None:
    """Run a dispatcher until SIGTERM or Ctrl-C."""
    from aos.dispatcher.__main__ import main

    raise typer.Exit(main(["-c", str(config)]))


@config_app.command(
    "show",
    cls=Command,
    short_help="Print every setting; secrets are masked.",
    epilog="aos config show -c docs/template/config-operator.yaml --origin",
)
def show(
    *,
    config: ConfigFile,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value came from.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print every setting of an operator; secrets are masked."""
    from aos.operator.config import explain_config

    lines = explain_config(config)
    if as_json:
        voice.data_json(
            "config.show",
            [{"key": x.key, "value": x.value, "origin": x.origin, "note": x.note} for x in lines],
        )
        return
    for line in lines:
        where = f"  ({line.origin})" if origin and line.origin else ""
        note = f"  ! {line.note}" if line.note else ""
        voice.data(f"{line.key:<32} {line.value}{where}{note}")


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, dict):
        return " ".join(f"{key}={_shown(item)}" for key, item in value.items())
    return str(value)
