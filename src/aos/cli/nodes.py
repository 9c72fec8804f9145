"""``aos operator``, ``aos dispatcher``, ``aos config``: running the network's nodes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aos.cli import voice
from aos.errors import ConfigError, Unavailable

operator_app = typer.Typer(help="Run an operator.", invoke_without_command=True)
dispatcher_app = typer.Typer(help="Run a dispatcher.", no_args_is_help=True)
config_app = typer.Typer(help="Look at a configuration.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Option("-c", "--config", help="The operator's YAML file.")]
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
    """Run an operator, as the developer guide does.

    Example: aos operator -i postgres://user:password@127.0.0.1:5432/operator_db
    """
    if context.invoked_subcommand is not None:
        return
    if init is not None:
        init_db(init)
    elif config is not None:
        run(config=config)
    else:
        voice.say(context.get_help())
        raise typer.Exit(2)


@operator_app.command("init-db")
def init_db(url: Annotated[str, typer.Argument(help="postgres://user:password@host:port/database")]) -> None:
    """Create the operator's tables. Running it again changes nothing."""
    from aos.operator.runer import init_db as initialise

    initialise(url)
    voice.say("the operator's database is ready")


@operator_app.command("run")
def run(*, config: ConfigFile) -> None:
    """Run the operator until SIGTERM or Ctrl-C."""
    from aos.operator.runer import run as run_operator

    raise typer.Exit(run_operator(config))


@operator_app.command("status")
def status(*, config: ConfigFile, as_json: AsJson = False) -> None:
    """Ask a running operator whether it is eligible, connected, drawn, and what is wrong.

    Example: aos operator status -c .aos/operator-1/config-operator.yaml
    """
    result = _rest(config, "GET", "/api/v1/operator/status")
    if as_json:
        voice.data_json("operator.status", result)
        return
    for name, value in result.items():
        voice.data(f"{name:<16} {_shown(value)}")


@operator_app.command("drain")
def drain(*, config: ConfigFile) -> None:
    """Tell a running operator to finish what it has and take nothing new."""
    _rest(config, "POST", "/api/v1/operator/drain")
    voice.say(
        "draining: it declines every draw from now on; stop it when `aos operator status` shows nothing running"
    )


@dispatcher_app.command("run")
def dispatcher_run(
    *, config: Annotated[Path, typer.Option("-c", "--config", help="The dispatcher's YAML file.")]
) -> None:
    """Run a dispatcher until SIGTERM or Ctrl-C."""
    from aos.dispatcher.__main__ import main

    raise typer.Exit(main(["-c", str(config)]))


@config_app.command("show")
def show(
    *,
    config: ConfigFile,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value came from.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print every setting of an operator; secrets are masked.

    Example: aos config show -c docs/template/config-operator.yaml --origin
    """
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


def _rest(config: Path, method: str, path: str) -> dict[str, Any]:
    import httpx

    from aos.operator.config import load_config

    settings = load_config(config)
    host = "127.0.0.1" if settings.rest_host in ("0.0.0.0", "::", "") else settings.rest_host  # noqa: S104
    url = f"http://{host}:{settings.rest_port}{path}"
    try:
        response = httpx.request(method, url, timeout=10.0)
        body = response.json()
    except (httpx.TransportError, ValueError) as error:
        raise Unavailable(
            "operator.unreachable",
            f"no answer from the operator at {url}",
            hint="is it running? aos operator run -c FILE",
        ) from error
    if response.status_code != 200:
        raise ConfigError("operator.refused", str(body.get("message", response.status_code)))
    result = body["result"]
    return result if isinstance(result, dict) else {"result": result}


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, dict):
        return " ".join(f"{key}={_shown(item)}" for key, item in value.items())
    return str(value)
