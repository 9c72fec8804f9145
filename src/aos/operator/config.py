"""An operator's configuration: one table of keys, read from ``AOS_…`` variables, a YAML file and defaults.

Every key of the original network's file is in the table; one that this version has no use for says why, and a
file that sets it gets a warning. A key may be written under its section or, as the developer guide does,
without it. Signing keys are loaded by ``aos.operator.identity``, which also refuses published ones.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import yaml

from aos.core.dispute.chain_claim import CourtDomain
from aos.errors import ConfigError
from aos.operator.settings import KEYS, Key

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z")
_NETWORK = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_HEX_KEY = re.compile(r"(?:0x)?[0-9a-fA-F]{64}\Z")
_DEVELOPMENT = re.compile(r"dev(-.*)?|aos-local-.*")
_NO_PASSWORD_IN = ("file:",)


_BY_NAME = {key.name: key for key in KEYS}
_BY_SHORT = {key.short: key for key in KEYS}
_SECTIONS = frozenset(key.section for key in KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something in the configuration that works otherwise than its author may think."""

    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where one value came from: ``environment AOS_…``, ``file PATH`` or ``default``."""

    key: Key
    value: str | tuple[str, ...]
    origin: str

    @property
    def given(self) -> bool:
        return self.origin != "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A line of ``aos config show --origin``; secrets are masked."""

    key: str
    value: str
    origin: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainConfig:
    """The chain that this operator reads its range from, stakes on, and answers challenges at (docs/chain.md).

    ``court`` None: no claim is ever signed. ``claim_hours``: how long a claim of this operator can be challenged.
    """

    rpc_url: str
    chain_id: int
    operator_registry: str
    max_range: int
    court: CourtDomain | None
    claim_hours: int
    max_fee_gwei: int

    def __repr__(self) -> str:
        return f"ChainConfig({self.chain_id}, {self.operator_registry})"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorConfig:
    """A checked configuration. Relative paths start at ``directory``."""

    pg_url: str
    pool_min: int
    pool_max: int
    connect_timeout_s: int
    acquire_timeout_s: int
    retention_hours: int
    audit_mib: int
    queue_url: str
    topic: str
    rest_host: str
    rest_port: int
    workers: tuple[str, ...]
    worker_parallel: int
    worker_token: str
    dispatcher_link: str
    dispatcher_http: str
    dispatcher_address: str
    node_id: str
    signer_key: str
    vrf_key: str
    keystore_password: str | None
    node_type: Literal["opml", "tee"]
    max_held_jobs: int
    heartbeat_interval_s: int
    models: tuple[str, ...]
    network: str
    development: bool
    dispatcher_vrf_key: str
    chain: ChainConfig | None
    """None: no chain is read; the dispatcher's signed snapshot says which range is this operator's."""
    rows_maximum: int
    directory: Path
    warnings: tuple[Warned, ...]


def load_config(path: Path | None, *, environment: Mapping[str, str] | None = None) -> OperatorConfig:
    """Read and check a configuration. ``path`` None: environment and defaults alone.

    Raises ConfigError ``config.file`` (unreadable, not YAML, a key twice) and ``config.value`` (its ``field``
    names the key).
    """
    environ = os.environ if environment is None else environment
    settings, warnings = _settings(path, environ)
    return _checked(settings, warnings, path.parent if path is not None else Path())


def explain_config(path: Path | None, *, environment: Mapping[str, str] | None = None) -> list[Explained]:
    """Every key with its value, its origin and a note. Raises ConfigError ``config.file``."""
    settings, warnings = _settings(path, os.environ if environment is None else environment)
    notes: dict[str, list[str]] = {}
    for warning in warnings:
        notes.setdefault(warning.key, []).append(warning.reason)
    lines = [
        Explained(
            key=name,
            value=_shown(setting),
            origin=setting.origin,
            note="; ".join(notes.pop(name, [])),
        )
        for name, setting in settings.items()
    ]
    lines += [Explained(key=k, value="", origin="", note="; ".join(v)) for k, v in sorted(notes.items())]
    return lines


def is_hex_key(text: str) -> bool:
    """Whether ``text`` is a key itself, rather than the place of one."""
    return _HEX_KEY.match(text) is not None


def masked_url(url: str) -> str:
    """``url`` with its password, if any, as ``***``."""
    try:
        parts = urlsplit(url)
        if parts.password is None:
            return url
    except ValueError:
        return "***"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))


# --- reading


class _Loader(yaml.BaseLoader):
    """Every scalar is text, so that ``0x02a5…`` means the same with and without quotes; no key comes twice."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, "keys are words", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} comes twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            tree = yaml.load(stream, Loader=_Loader)  # noqa: S506  BaseLoader makes nothing but text, lists, mappings
    except OSError as error:
        raise ConfigError(
            "config.file",
            f"cannot read {path}: {error.strerror}",
            hint="docs/template/config-operator.yaml is a commented template",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}" if place is not None else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError("config.file", f"{path}{where}: {problem}") from None
    if tree in (None, ""):
        return {}
    if not isinstance(tree, dict):
        raise ConfigError("config.file", f"{path}: must hold sections such as `db:` and `node:`")
    return tree


def _settings(path: Path | None, environ: Mapping[str, str]) -> tuple[dict[str, Setting], list[Warned]]:
    warnings: list[Warned] = []
    from_file: dict[str, Any] = {}
    for name, value in (_read_file(path) if path is not None else {}).items():
        if name in _SECTIONS and isinstance(value, dict):
            members = {f"{name}.{short}": member for short, member in value.items()}
        elif name in _SECTIONS and value in ("", None):
            continue  # an empty section
        else:
            members = {_BY_SHORT[name].name if name in _BY_SHORT else name: value}
        for full, member in members.items():
            if full not in _BY_NAME:
                warnings.append(Warned(key=full, reason="no such key" + _nearest(full)))
            elif full in from_file:
                raise ConfigError("config.file", f"{path}: {full} is given twice", field=full)
            else:
                from_file[full] = member
    settings: dict[str, Setting] = {}
    for key in KEYS:
        if environ.get(key.variable):
            raw: Any = environ[key.variable]
            value = _listed(raw) if key.kind == "list" else raw
            settings[key.name] = Setting(key=key, value=value, origin=f"environment {key.variable}")
        elif key.name in from_file:
            value = _typed(key, from_file[key.name])
            settings[key.name] = Setting(key=key, value=value, origin=f"file {path}")
        else:
            settings[key.name] = Setting(key=key, value=key.default, origin="default")
    prefixes = tuple(f"AOS_{section.upper()}_" for section in _SECTIONS)
    known = {key.variable for key in KEYS}
    for variable in sorted(environ):
        if variable.startswith(prefixes) and variable not in known:
            warnings.append(Warned(key=variable, reason="no setting has this environment variable"))
    warnings += [
        Warned(key=name, reason=f"unused: {setting.key.unused}")
        for name, setting in settings.items()
        if setting.key.unused and setting.given
    ]
    if settings["chain.chain_id"].value in ("", "0"):
        warnings += [
            Warned(
                key=name,
                reason="unused: without chain.chain_id no chain is read; ranges are those of the dispatcher's signed registry",
            )
            for name in (
                "chain.chain_rpc_url",
                "chain.vrf_range_contract",
                "chain.vrf_sort_precision",
                "chain.court",
            )
            if settings[name].given
        ]
    for name in ("node.signer_key", "node.vrf_key"):
        if is_hex_key(str(settings[name].value)):
            warnings.append(
                Warned(key=name, reason="a plain key; `aos keys new` makes a keystore to name as file:PATH")
            )
    signer, vrf = settings["node.signer_key"].value, settings["node.vrf_key"].value
    if signer and signer == vrf:
        warnings.append(
            Warned(key="node.vrf_key", reason="the same as node.signer_key; `aos keys new` makes two")
        )
    return settings, warnings


def _nearest(name: str) -> str:
    candidates = list(_BY_NAME) + list(_BY_SHORT)
    near = difflib.get_close_matches(name, candidates, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _typed(key: Key, value: Any) -> str | tuple[str, ...]:
    if key.kind == "list":
        if isinstance(value, str):
            return _listed(value)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise _bad(key.name, "must be a list")
    if not isinstance(value, str):
        raise _bad(key.name, "must be a single value")
    return value


def _shown(setting: Setting) -> str:
    if isinstance(setting.value, tuple):
        return ", ".join(masked_url(item) for item in setting.value)
    if not setting.key.secret or setting.value.startswith(_NO_PASSWORD_IN):
        return setting.value
    if "://" in setting.value:
        return masked_url(setting.value)
    return "***" if setting.value else ""


# --- checking


def _bad(name: str, what: str, hint: str | None = None) -> ConfigError:
    return ConfigError("config.value", f"{name} {what}", field=name, hint=hint)


class _Values:
    """Typed access to the settings; every error names the key."""

    def __init__(self, settings: Mapping[str, Setting]) -> None:
        self._settings = settings

    def text(self, name: str) -> str:
        value = self._settings[name].value
        assert isinstance(value, str)  # noqa: S101  _typed made it so
        return value.strip()

    def needed(self, name: str, hint: str | None = None) -> str:
        value = self.text(name)
        if not value:
            raise _bad(name, "is missing", hint or f"set it in the file, or as {_BY_NAME[name].variable}")
        return value

    def integer(self, name: str) -> int:
        key, text = _BY_NAME[name], self.text(name)
        if not re.fullmatch(r"[0-9]{1,16}", text) or not key.low <= int(text) <= key.high:
            raise _bad(name, f"must be a whole number from {key.low} to {key.high}")
        return int(text)

    def flag(self, name: str) -> bool:
        text = self.text(name).lower()
        if text not in ("true", "false", "yes", "no", "1", "0"):
            raise _bad(name, "must be true or false")
        return text in ("true", "yes", "1")

    def items(self, name: str) -> tuple[str, ...]:
        value = self._settings[name].value
        assert isinstance(value, tuple)  # noqa: S101  _typed made it so
        return value

    def address(self, name: str) -> str:
        value = self.needed(name)
        if not _ADDRESS.match(value):
            raise _bad(name, "must be an address: 0x and 40 hex digits")
        return value.lower()


def _checked(settings: Mapping[str, Setting], warnings: list[Warned], directory: Path) -> OperatorConfig:
    values = _Values(settings)
    network = values.text("network.id")
    if network and not _NETWORK.match(network):
        raise _bad("network.id", "must be lower-case letters, digits and hyphens, at most 63")
    node_type = values.text("node.node_type")
    if node_type not in ("opml", "tee"):
        raise _bad("node.node_type", "must be opml or tee")
    topic = values.needed("queue.topic")
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", topic):
        raise _bad("queue.topic", "must be 1 to 64 letters, digits or . _ : -")
    pool_min, pool_max = values.integer("db.min_connect_pool"), values.integer("db.max_connect_pool")
    if pool_min > pool_max:
        raise _bad("db.min_connect_pool", "is larger than db.max_connect_pool")
    queue_url = values.needed("queue.queue_url")
    if urlsplit(queue_url).scheme not in ("redis", "rediss", "unix"):
        raise _bad("queue.queue_url", "must be redis://…, rediss://… or unix://…")
    vrf_public = values.text("network.dispatcher_vrf_key")
    if vrf_public and not re.fullmatch(r"[A-Za-z0-9_-]{43}", vrf_public):
        raise _bad("network.dispatcher_vrf_key", "must be 32 bytes as base64url (43 characters)")
    link, http = _dispatcher_urls(values.needed("net.dispatcher_url"))
    host, port = _host_and_port(values.needed("net.rest_url"))
    named = values.items("net.workers") or tuple(filter(None, [values.text("net.outer_url")]))
    workers = tuple(_worker_url(url) for url in named)
    if len(set(workers)) != len(workers):
        raise _bad("net.workers", "names a worker twice")
    return OperatorConfig(
        pg_url=database_url(values.needed("db.pg_db_url"), values.text("db.pg_db_name")),
        pool_min=pool_min,
        pool_max=pool_max,
        connect_timeout_s=values.integer("db.connect_timeout"),
        acquire_timeout_s=values.integer("db.acquire_timeout"),
        retention_hours=values.integer("db.retention_hours"),
        audit_mib=values.integer("db.audit_mib"),
        queue_url=queue_url,
        topic=topic,
        rest_host=host,
        rest_port=port,
        workers=workers,
        worker_parallel=values.integer("net.worker_parallel"),
        worker_token=_token(values, directory),
        dispatcher_link=link,
        dispatcher_http=http,
        dispatcher_address=values.address("node.dispatcher_address"),
        node_id=values.address("node.node_id"),
        signer_key=values.needed("node.signer_key", "`aos keys new` makes one"),
        vrf_key=values.needed("node.vrf_key", "`aos keys new` makes one"),
        keystore_password=_password(values, directory),
        node_type="tee" if node_type == "tee" else "opml",
        max_held_jobs=values.integer("node.cache_msg_maximum"),
        heartbeat_interval_s=values.integer("node.heartbeat_interval"),
        models=values.items("node.ai_models"),
        network=network,
        development=values.flag("network.development") or _DEVELOPMENT.fullmatch(network) is not None,
        dispatcher_vrf_key=vrf_public,
        chain=_chain(values),
        rows_maximum=values.integer("api.read_maximum"),
        directory=directory,
        warnings=tuple(warnings),
    )


def database_url(url: str, name: str) -> str:
    """``url`` as it is where it names a database, otherwise with ``name``. Raises ConfigError."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = None
    if parts is None or parts.scheme not in ("postgres", "postgresql"):
        raise _bad("db.pg_db_url", "must be postgres://user:password@host:port")
    if unquote(parts.path).strip("/"):
        return url
    if not name:
        raise _bad("db.pg_db_name", "is missing, and db.pg_db_url names no database")
    return urlunsplit(parts._replace(path="/" + quote(name, safe="")))


def _dispatcher_urls(text: str) -> tuple[str, str]:
    """(URL of the operator link, URL of the HTTP interface) of ``host:port`` or of a URL with a scheme."""
    parts = _split("net.dispatcher_url", text if "://" in text else f"ws://{text}")
    secure = {"ws": False, "http": False, "wss": True, "https": True}.get(parts.scheme)
    if secure is None or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise _bad("net.dispatcher_url", "must be host:port, or a ws, wss, http or https URL")
    base = parts.path.rstrip("/").removesuffix("/ws/operator")
    tail = "s" if secure else ""
    return f"ws{tail}://{parts.netloc}{base}/ws/operator", f"http{tail}://{parts.netloc}{base}"


def _host_and_port(text: str) -> tuple[str, int]:
    parts = _split("net.rest_url", text if "://" in text else f"http://{text}")
    if not parts.hostname or parts.port is None:
        raise _bad("net.rest_url", "must be host:port")
    return str(parts.hostname), int(parts.port)


def _worker_url(text: str) -> str:
    parts = _split("net.workers", text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _bad("net.workers", "must be a list of http URLs, or net.outer_url one")
    return str(urlunsplit(parts._replace(path=parts.path.rstrip("/"), query="", fragment="")))


def _split(name: str, url: str) -> Any:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no port
        return parts
    except ValueError:
        raise _bad(name, "is not an address") from None


def _chain(values: _Values) -> ChainConfig | None:
    chain_id = values.integer("chain.chain_id")
    if not chain_id:
        return None
    url = values.needed("chain.chain_rpc_url", "chain.chain_id is set, so a chain is to be read")
    parts = _split("chain.chain_rpc_url", url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _bad("chain.chain_rpc_url", "must be an http or https URL")
    return ChainConfig(
        rpc_url=url,
        chain_id=chain_id,
        operator_registry=values.address("chain.vrf_range_contract"),
        max_range=10 ** values.integer("chain.vrf_sort_precision"),
        court=CourtDomain(chain_id=chain_id, court=values.address("chain.court"))
        if values.text("chain.court")
        else None,
        claim_hours=values.integer("chain.claim_hours"),
        max_fee_gwei=values.integer("chain.max_fee_gwei"),
    )


def _token(values: _Values, directory: Path) -> str:
    path = values.text("net.worker_token_file")
    if path:
        return read_secret(directory / path, "net.worker_token_file")
    return values.text("net.worker_token")


def _password(values: _Values, directory: Path) -> str | None:
    path = values.text("node.keystore_password_file")
    if path:
        return read_secret(directory / path, "node.keystore_password_file")
    return values.text("node.keystore_password") or None


def read_secret(path: Path, field: str) -> str:
    """First line of a file that nobody else may read. Raises ConfigError ``config.file``; the content is in no message."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                "config.file",
                f"{field}: {path} is readable by others than its owner",
                field=field,
                hint=f"chmod 600 {path}",
            )
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "config.file", f"{field}: cannot read {path} ({type(error).__name__})", field=field
        ) from error
    if not lines or not lines[0].strip():
        raise ConfigError("config.file", f"{field}: {path} is empty", field=field)
    return lines[0].strip()
