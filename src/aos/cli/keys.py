"""``aos keys``: make an operator's keys, and show what is public about them."""

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from aos.cli import voice
from aos.cli.help import Command, Group
from aos.errors import ConfigError

keys_app = typer.Typer(
    help="Make an operator's keys.", cls=Group, epilog="aos keys new keys", no_args_is_help=True
)


@keys_app.command(
    "new",
    cls=Command,
    short_help="Make a signing key and a VRF key.",
    epilog="""aos keys new keys
AOS_KEYSTORE_PASSWORD_FILE=password aos keys new keys --json""",
)
def new(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="Where to put signer.json and vrf.json.")
    ] = Path("keys"),
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Make a signing key and a VRF key, each in an encrypted keystore of mode 0600.

    The password comes from the file that $AOS_KEYSTORE_PASSWORD_FILE names, from $AOS_KEYSTORE_PASSWORD, or from a prompt.
    """
    from aos.adapters.keystore import create_keystore, new_key, read_password

    signer, vrf = directory / "signer.json", directory / "vrf.json"
    for path in (signer, vrf):  # both or none
        if path.exists():
            raise ConfigError(
                "keystore.exists",
                f"{path} exists already and is not replaced",
                hint=f"choose another directory: {voice.program()} keys new OTHER",
            )
    password = read_password(prompt=None if as_json or not sys.stdin.isatty() else new_password)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    node_id = create_keystore(signer, new_key(), password, kind="signer")
    vrf_key = create_keystore(vrf, new_key(), password, kind="vrf")
    if as_json:
        voice.data_json(
            "keys.new",
            {"node_id": node_id, "vrf_key": vrf_key, "signer_file": str(signer), "vrf_file": str(vrf)},
        )
        return
    voice.data(f"node_id     {node_id}\nsigner_key  file:{signer}\nvrf_key     file:{vrf}")
    voice.say(
        f"Put these three into the operator's configuration. VRF public key: {vrf_key}\n"
        "Keep the password: there is no other way into the files."
    )


def new_password() -> str:
    """A password that was typed twice. Raises ConfigError ``keystore.password_mismatch``."""
    first = getpass.getpass("Password for the new keystores: ")
    if getpass.getpass("Again: ") != first:
        raise ConfigError("keystore.password_mismatch", "the two passwords differ")
    return first
