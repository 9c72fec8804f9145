"""``aos log key``, ``aos log witness``: cosigning for others' logs (docs/spec/15-log.md, "Witnesses")."""

from pathlib import Path
from typing import Annotated

import typer

from aos.cli import voice
from aos.cli.help import Command
from aos.cli.log import AsJson, TrustFile, log_app, log_key, trusted_file


@log_app.command(
    "key",
    cls=Command,
    short_help="Make a witness's key, or show it.",
    epilog="""aos log key witness.json --name witness.example/one
AOS_KEYSTORE_PASSWORD_FILE=password aos log key witness.json --name witness.example/one --json""",
)
def key_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The keystore; made where it is not there.")],
    *,
    name: Annotated[str, typer.Option(help="The witness's name: a URL without its scheme.")],
    as_json: AsJson = False,
) -> None:
    """Print the verifier key of a witness, as dispatchers' configurations and trust files name it.

    The password comes from the file that $AOS_KEYSTORE_PASSWORD_FILE names, from $AOS_KEYSTORE_PASSWORD, or from a prompt.
    """
    from aos.adapters.keystore import create_keystore, new_key
    from aos.core.log.note import COSIGNATURE, note_key

    made = not file.exists()
    password = _password(as_json=as_json, new=made)
    if made:
        note_key(
            name, b"\0" * 32, COSIGNATURE
        )  # a name that cannot be one is refused before anything is written
        create_keystore(file, new_key(), password, kind="log")
    vkey = str(note_key(name, _seed(file, password), COSIGNATURE))
    if as_json:
        voice.data_json("log.key", {"vkey": vkey, "file": str(file), "made": made})
        return
    voice.data(vkey)
    if made:
        voice.say(f"made {file}; keep the password: there is no other way into it")


@log_app.command(
    "witness",
    cls=Command,
    short_help="Cosign for others until stopped.",
    epilog="""aos log witness witness.json --name witness.example/one --log 'aos/NETWORK/0x…+ID+KEY'
aos log witness witness.json --name witness.example/one --trust trust.json --listen 0.0.0.0:8099""",
)
def witness(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The witness's keystore (aos log key).")],
    *,
    name: Annotated[str, typer.Option(help="The witness's name, as in its verifier key.")],
    log: Annotated[
        list[str] | None,
        typer.Option(metavar="VKEY", help="A log to cosign for; may be repeated. Default: the trust file's."),
    ] = None,
    state: Annotated[
        Path, typer.Option(metavar="DIRECTORY", help="Where the last checkpoint of each log is kept.")
    ] = Path("witness-state"),
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where add-checkpoint is served.")
    ] = "127.0.0.1:8099",
    trust: TrustFile = None,
) -> None:
    """Serve `POST /add-checkpoint` (c2sp.org/tlog-witness): cosign every checkpoint that continues the tree held of its log.

    Checkpoints of a log that contradict each other are saved in the state directory, for `aos log convict`. The state must never
    be lost or copied back: a witness without memory cosigns two histories.
    """
    import uvicorn

    from aos.core.log.note import ED25519, read_vkey
    from aos.witness.service import Witness, create_app
    from aos.witness.state import WitnessState

    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) < 65_536:
        raise voice.usage("--listen must be HOST:PORT", hint="--listen 127.0.0.1:8099")
    keys = [read_vkey(text) for text in log] if log else [log_key(trusted_file(trust))]
    if any(key.kind != ED25519 for key in keys):
        raise voice.usage(
            "--log takes a log's verifier key, of type 1", hint="`aos log checkpoint --json` shows the origin"
        )
    seed = _seed(file, _password(as_json=False, new=False))
    held = WitnessState(state)
    server = Witness(name, seed, keys, held, shout=voice.say)
    for key in keys:
        held.held(key)  # a damaged state is said now
    config = uvicorn.Config(
        create_app(server),
        host=host,
        port=int(port),
        access_log=False,
        log_level="warning",
        server_header=False,
    )
    service = uvicorn.Server(config)
    listener = config.bind_socket()
    voice.say(
        f"{server.key}\nserves add-checkpoint at http://{host}:{listener.getsockname()[1]} for {len(keys)} log(s)"
    )
    try:
        service.run(sockets=[listener])
    finally:
        held.close()


def _password(*, as_json: bool, new: bool) -> bytes:
    import getpass
    import sys

    from aos.adapters.keystore import read_password
    from aos.cli.keys import new_password

    ask = new_password if new else (lambda: getpass.getpass("Password of the keystore: "))
    return read_password(prompt=None if as_json or not sys.stdin.isatty() else ask)


def _seed(file: Path, password: bytes) -> bytes:
    from aos.adapters.keystore import load_keystore

    return load_keystore(file, password, kind="log")
