"""``aos model``: register, download and list the models on this disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aos.adapters import model_store
from aos.cli import voice
from aos.cli.help import Command, Group
from aos.client.settings import state_dir
from aos.core.codec import encode

if TYPE_CHECKING:
    from aos.core.manifest import Manifest

model_app = typer.Typer(
    help="Register, download and list models.",
    cls=Group,
    epilog="""aos model add models/aos-demo.Q8_0.gguf
aos model pull llama-2-7b-chat.Q4_0.gguf
aos model list""",
    no_args_is_help=True,
)
MODELS_DIR = Path("models")

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def _read_manifest(path: Path, progress: model_store.Progress | None) -> "Manifest":
    from aos.engine import read_manifest

    with model_store.naming(path):
        return read_manifest(path, progress=progress)


def _file(named: Path) -> Path:
    """The file that a command names: a path, or a file name in ./models."""
    for path in (named, MODELS_DIR / named):
        if path.is_file():
            return path
    raise voice.usage(
        f"there is no file {named}, neither here nor in {MODELS_DIR}",
        hint="name a GGUF file; `aos model pull` downloads one",
    )


def _shown(entry: model_store.ModelEntry) -> dict[str, object]:
    """An entry as --json prints it: the digest in the form that sha256sum prints."""
    return {**encode(entry), "sha256": entry.sha256.hex()}


@model_app.command(
    "add",
    cls=Command,
    short_help="Digest a GGUF file and register its name.",
    epilog="aos model add models/aos-demo.Q8_0.gguf",
)
def add(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A GGUF file, or the name of one in ./models.")
    ],
    *,
    name: Annotated[str | None, typer.Option(help="Name to register it under; default: the file's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read a GGUF file, digest it, and register its name. A name is never re-pointed."""
    entry = model_store.add_model(
        state_dir(),
        _file(file),
        read_manifest=_read_manifest,
        name=name,
        progress=voice.Progress("digesting"),
    )
    if as_json:
        voice.data_json("model.add", _shown(entry))
        return
    voice.data(f"{entry.name}\n  model_id  {encode(entry.model_id)}\n  sha256    {entry.sha256.hex()}")


@model_app.command(
    "pull",
    cls=Command,
    short_help="Download a model into ./models.",
    epilog="""aos model pull llama-2-7b-chat.Q4_0.gguf --sha256 HEX
aos model pull mine.gguf --url https://example.org/mine.gguf --sha256 HEX""",
)
def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="File name to download as.")
    ] = "llama-2-7b-chat.Q4_0.gguf",
    *,
    url: Annotated[str | None, typer.Option(help="Where it is, if the name is not a known one.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The digest that the file must have.")] = None,
    models_dir: Annotated[Path, typer.Option("--models-dir", help="Where models lie.")] = MODELS_DIR,
    as_json: AsJson = False,
) -> None:
    """Download a model into ./models, resuming where an earlier try broke off.

    Without --sha256 the digest that the hub itself states is used; that is the hub's word about its own file.
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
    voice.say(f"register it: {voice.program()} model add {pulled.path}")


@model_app.command(
    "show",
    cls=Command,
    short_help="Digest a model anew and show what it is.",
    epilog="aos model show models/aos-demo.Q8_0.gguf\naos model show aos-demo.Q8_0.gguf --json",
)
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A registered name, or a GGUF file.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Read a model's file anew and show its digests, its graph, and whether it is what was registered under its name.

    Exit code 10 where the file is not the registered one any more.
    """
    known = next((entry for entry in model_store.list_models(state_dir()) if entry.name == model), None)
    path = Path(known.path) if known is not None and Path(known.path).is_file() else _file(Path(model))
    manifest = _read_manifest(path, voice.Progress("digesting"))
    same = None if known is None else manifest.model_id == known.model_id
    facts = {
        **encode(manifest),
        "model_id": encode(manifest.model_id),
        "path": str(path),
        "as_registered": same,
    }
    if as_json:
        voice.data_json("model.show", facts)
    else:
        words = {None: "not registered", True: "yes", False: "NO: the file has changed"}
        for name in (
            "path",
            "model_id",
            "file_sha256",
            "file_size",
            "weights_root",
            "architecture",
            "arithmetic",
        ):
            voice.data(f"{name:<14} {facts[name]}")
        for name, value in (facts["graph"] or {}).items():
            voice.data(f"  {name:<18} {value}")
        voice.data(f"{'as registered':<14} {words[same]}")
    if same is False:
        raise typer.Exit(10)


@model_app.command("list", cls=Command, epilog="aos model list --json")
def list_(*, as_json: AsJson = False) -> None:
    """List the registered models."""
    entries = model_store.list_models(state_dir())
    if as_json:
        voice.data_json("model.list", [_shown(entry) for entry in entries])
        return
    if not entries:
        voice.say("no model is registered; aos model add FILE.gguf registers one")
    for entry in entries:
        voice.data(f"{entry.name:<36} {entry.size:>13,}  {encode(entry.model_id)}")
