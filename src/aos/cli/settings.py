"""Where a requester's command finds its dispatcher, project, token and trust: flags, ``AOS_…``, then ``.aos/client.json``."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from aos.client import Client
from aos.errors import ConfigError

STATE_DIR = Path(".aos")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What ``aos ask`` and ``aos job`` need. The token comes from the environment or a 0600 file, never from a flag."""

    url: str
    project: str
    token: str
    model: str
    dispatcher: str | None
    trust: Path | None

    def client(self) -> Client:
        return Client(self.url, project=self.project, token=self.token, dispatcher=self.dispatcher)


def state_dir() -> Path:
    """``$AOS_STATE_DIR``, else ``.aos`` here."""
    return Path(os.environ.get("AOS_STATE_DIR") or STATE_DIR)


def trust_path() -> Path | None:
    """``$AOS_TRUST``, else the state directory's trust file where there is one."""
    if named := os.environ.get("AOS_TRUST"):
        return Path(named)
    found = state_dir() / "trust.json"
    return found if found.is_file() else None


def load_client_settings(*, url: str | None = None, trust: Path | None = None) -> ClientSettings:
    """Raises ConfigError ``config.client`` naming what is missing and how to give it."""
    path = state_dir() / "client.json"
    stored: dict[str, str] = {}
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
    values = {
        "url": url or os.environ.get("AOS_URL") or stored.get("url", ""),
        "project": os.environ.get("AOS_PROJECT") or stored.get("project", ""),
        "token": os.environ.get("AOS_TOKEN") or stored.get("token", ""),
    }
    for name, value in values.items():
        if not value:
            raise ConfigError(
                "config.client",
                f"no {name}: neither AOS_{name.upper()} nor {path} gives one",
                field=name,
                hint="start a local network with `aos up`, or set AOS_URL, AOS_PROJECT and AOS_TOKEN",
            )
    trust = trust or trust_path()
    dispatcher = None
    if trust is not None:
        try:
            dispatcher = json.loads(trust.read_text(encoding="utf-8"))["dispatchers"][0]["address"]
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(
                "config.trust", f"{trust}: not a trust file ({type(error).__name__})"
            ) from error
    return ClientSettings(
        **values,
        model=os.environ.get("AOS_MODEL") or stored.get("model", ""),
        dispatcher=dispatcher,
        trust=trust,
    )
