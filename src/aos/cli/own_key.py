"""The key that a command signs with: a keystore of `aos keys new`, or one that is made for this once."""

import getpass
import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

OwnKey = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Sign with this keystore (signer.json of `aos keys new`); default: a key made for this once.",
    ),
]


def own_key(path: Path | None) -> bytes:
    """32 bytes. The password comes as for `aos keys new`. Raises ConfigError ``keystore.*``."""
    if path is None:
        return secrets.token_bytes(32)
    from aos.adapters.keystore import load_keystore, read_password

    def ask() -> str:
        return getpass.getpass(f"Password of {path}: ")

    return load_keystore(path, read_password(prompt=ask if sys.stdin.isatty() else None), kind="signer")
