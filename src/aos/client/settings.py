"""Where a requester finds its dispatcher, project, token and trust: arguments, ``AOS_…``, then ``.aos/client.json``."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from aos.client.sync import Client
from aos.core.trust import Trust, load_policy, read_trust
from aos.errors import ConfigError

STATE_DIR = Path(".aos")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What a client needs. The token comes from the environment or a 0600 file, never from a flag."""

    url: str
    project: str
    token: str = field(repr=False)
    model: str
    dispatcher: str | None
    trust: Path | None

    def client(self) -> Client:
        """A client; what it believes of enclaves is the trust file's, under the trust file's policy."""
        trust = None if self.trust is None else load_trust(self.trust)
        return Client(
            self.url,
            project=self.project,
            token=self.token,
            dispatcher=self.dispatcher,
            model=self.model,
            trust=trust,
            policy=None if trust is None else load_policy(trust.policy),
        )


def state_dir() -> Path:
    """``$AOS_STATE_DIR``, else ``.aos`` here."""
    return Path(os.environ.get("AOS_STATE_DIR") or STATE_DIR)


def trust_path() -> Path | None:
    """``$AOS_TRUST``, else the state directory's trust file where there is one."""
    if named := os.environ.get("AOS_TRUST"):
        return Path(named)
    found = state_dir() / "trust.json"
    return found if found.is_file() else None


def load_client_settings(
    *, url: str | None = None, trust: Path | None = None, keyed: bool = False
) -> ClientSettings:
    """``keyed``: the caller signs with a key of its own, and needs no project.

    Raises ConfigError ``config.client`` naming what is missing and how to give it, ``config.url``, ``trust.*``.
    """
    path = state_dir() / "client.json"
    stored = _stored(path)
    values = {
        "url": url or os.environ.get("AOS_URL") or stored.get("url", ""),
        "project": os.environ.get("AOS_PROJECT") or stored.get("project", ""),
        "token": os.environ.get("AOS_TOKEN") or stored.get("token", ""),
    }
    for name, value in values.items():
        if not value and not (keyed and name != "url"):
            raise ConfigError(
                "config.client",
                f"no {name}: neither AOS_{name.upper()} nor {path} gives one",
                field=name,
                hint="start a local network with `aos up`, or set AOS_URL, AOS_PROJECT and AOS_TOKEN",
            )
    _check_url(values["url"])
    trust = trust or trust_path()
    return ClientSettings(
        **values,
        model=os.environ.get("AOS_MODEL") or stored.get("model", ""),
        dispatcher=None if trust is None else load_trust(trust).dispatchers[0].address,
        trust=trust,
    )


def find_url(url: str | None = None) -> str:
    """The dispatcher's URL alone: the argument, ``$AOS_URL``, ``client.json``.

    Raises ConfigError ``config.client``, ``config.url``.
    """
    path = state_dir() / "client.json"
    found = url or os.environ.get("AOS_URL") or _stored(path).get("url", "")
    if not found:
        raise ConfigError(
            "config.client",
            f"no url: neither AOS_URL nor {path} gives one",
            field="url",
            hint="pass --url, or start a local network with `aos up`",
        )
    _check_url(found)
    return found


def load_trust(path: Path) -> Trust:
    """The trust file at ``path``, which names a dispatcher. Raises ConfigError ``trust.unreadable``, ``trust.invalid``."""
    try:
        trust = read_trust(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            "trust.unreadable", f"{path}: {error.strerror}", hint="give the network's trust file with --trust"
        ) from error
    except ConfigError as error:
        error.message = f"{path}: {error.message}"
        raise
    if not trust.dispatchers:
        raise ConfigError("trust.invalid", f"{path} names no dispatcher", field="dispatchers")
    return trust


def _stored(path: Path) -> dict[str, str]:
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(
            "config.client", f"{path}: {error.strerror}", hint="use it as the user who started the network"
        ) from error
    except ValueError:
        stored = None
    if not isinstance(stored, dict) or not all(isinstance(value, str) for value in stored.values()):
        raise ConfigError(
            "config.client", f"{path} is damaged", hint="`aos up` writes it anew when it starts the network"
        )
    return stored


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or any(c.isspace() for c in url):
        raise ConfigError(
            "config.url",
            f"{url!r} is no http or https address",
            field="url",
            hint="such as http://127.0.0.1:20009: `aos up` prints it",
        )
