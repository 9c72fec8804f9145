"""``aos model``: register, download and list the models on this disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aos.adapters import model_store
from aos.cli import voice
from aos.cli.settings import state_dir
from aos.core.codec import encode

if TYPE_CHECKING:
    from aos.engine.manifest import Manifest

model_app = typer.Typer(help="Register, download and list models.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def _read_manifest(path: Path, progress: model_store.Progress | None) -> "Manifest":
    from aos.engine import read_manifest

    return read_manifest(path, progress=progress)


@model_app.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    *,
    name: Annotated[str | None, typer.Option(help="Name to register it under; default: the file's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read a GGUF file, digest it, and register its name. A name is never re-pointed.

    Example: aos model add models/aos-demo.Q8_0.gguf
    """
    entry = model_store.add_model(
        state_dir(), file, read_manifest=_read_manifest, name=name, progress=voice.Progress("digesting")
    )
    if as_json:
        voice.data_json("model.add", encode(entry))
        return
    voice.data(f"{entry.name}\n  model_id  {encode(entry.model_id)}\n  sha256    {entry.sha256.hex()}")


@model_app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(help="File name to download as.")] = "llama-2-7b-chat.Q4_0.gguf",
    *,
    url: Annotated[str | None, typer.Option(help="Where it is, if the name is not a known one.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The digest that the file must have.")] = None,
    models_dir: Annotated[Path, typer.Option("--models-dir")] = Path("models"),
    as_json: AsJson = False,
) -> None:
    """Download a model into ./models, resuming where an earlier try broke off.

    Without --sha256 the digest that the hub itself states is used; that is the hub's word about its own file.

    Example: aos model pull llama-2-7b-chat.Q4_0.gguf --sha256 HEX
    """
    from aos.adapters.model_download import pull_model

    pulled = pull_model(
        name, models_dir=models_dir, url=url, sha256_hex=sha256, progress=voice.Progress("downloading")
    )
    value = {
        "path": str(pulled.path),
        "size": pulled.size,
        "sha256": pulled.sha256.hex(),
        "checked_by": pulled.checked_by,
    }
    if as_json:
        voice.data_json("model.pull", value)
        return
    for key, text in value.items():
        voice.data(f"{key:<11} {text}")
    voice.say(f"register it: aos model add {pulled.path}")


@model_app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List the registered models."""
    entries = model_store.list_models(state_dir())
    if as_json:
        voice.data_json("model.list", [encode(entry) for entry in entries])
        return
    if not entries:
        voice.say("no model is registered; aos model add FILE.gguf registers one")
    for entry in entries:
        voice.data(f"{entry.name:<36} {entry.size:>13,}  {encode(entry.model_id)}")
