"""Founding a network, making projects, admitting operators: what `aos up`, `aos project` and `aos registry` call."""

import base64
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aos.adapters.postgres import Pool, connect_pool, migrate, unavailable
from aos.core import beacon
from aos.core.encoding import tagged_hash
from aos.core.statements import Registration, Signed
from aos.dispatcher.config import DispatcherConfig, load_config
from aos.dispatcher.registry import RANGES, Entered, Registry
from aos.errors import InvalidMessage, RuleViolation, Unavailable, VerificationError

MIGRATIONS = "aos.dispatcher.sql"
SCOPES = ("submit", "read", "flag", "challenge")
"""What a token may be for: submit and cancel jobs; read private jobs and a user's results; submit with a tag; open disputes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Founded:
    """A new network: its public file, its genesis registry's root, its first project. The token is shown this once."""

    network: dict[str, object]
    registry_root: bytes
    project: str
    token: str
    webhook_secret: str


async def found_network(
    config_path: Path,
    *,
    registrations: Sequence[Signed[Registration]],
    models: Mapping[str, bytes],
    genesis_ms: int,
    epoch_ms: int,
    project: str,
    manifests: Mapping[str, bytes] | None = None,
) -> Founded:
    """Initialise a dispatcher's database with a network, its genesis operators, models and a first project.

    ``manifests`` are the models' manifests by name, as the JSON that ``model_id`` is the hash of. An interrupted founding is
    begun again: nothing of it was published. Raises RuleViolation ``network.founded`` where jobs exist already,
    VerificationError ``model.manifest``, ConfigError, Unavailable.
    """
    config = load_config(config_path)
    pool = await connect_pool(config.pg_url, max_size=4)
    try:
        await migrate(pool, MIGRATIONS)
        await _write_network(
            pool,
            config,
            models=models,
            manifests=manifests or {},
            genesis_ms=genesis_ms,
            epoch_ms=epoch_ms,
            ranges=max(RANGES, 2 * len(registrations)),
        )
        registry = await Registry.load(pool, config)
        try:
            for registration in registrations:
                await registry.register(registration.to_json(), genesis=True)
            root = await registry.sign_genesis()
        finally:
            await registry.close()
        project_id, token = await create_project(pool, project, quota=config.rerun_quota)
        return Founded(
            network=registry.network_file(),
            registry_root=root,
            project=project_id,
            token=token,
            webhook_secret=webhook_secret(config.keys.signer, project_id),
        )
    finally:
        await pool.close()


async def _write_network(
    pool: Pool,
    config: DispatcherConfig,
    *,
    models: Mapping[str, bytes],
    manifests: Mapping[str, bytes],
    genesis_ms: int,
    epoch_ms: int,
    ranges: int,
) -> None:
    async with unavailable(), pool.acquire() as db, db.transaction():
        if await db.fetchval("SELECT 1 FROM job LIMIT 1"):
            raise RuleViolation("network.founded", "this database holds a network with jobs already")
        if await db.fetchval("SELECT 1 FROM log_checkpoint LIMIT 1"):
            # Founded anew it would contradict what it has signed.
            raise RuleViolation(
                "network.founded", "this database holds a network whose log is signed already"
            )
        await db.execute(
            "TRUNCATE network, operator, snapshot, model, project, token, clock_state, log_leaf, log_head CASCADE"
        )
        await db.execute(
            """INSERT INTO network (network, address, vrf_key, genesis_ms, epoch_ms, max_range, range_width,
                                    beacon_anchor, beacon_length)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)""",
            config.network,
            config.keys.address,
            config.keys.vrf_public,
            genesis_ms,
            epoch_ms,
            config.max_range,
            config.max_range // ranges,
            beacon.beacon_anchor(config.keys.beacon, config.beacon_length),
            config.beacon_length,
        )
        for name, model_id in models.items():
            manifest = manifests.get(name)
            if manifest is not None and tagged_hash("model", manifest) != model_id:
                raise VerificationError("model.manifest", f"{name}: the manifest is not the model id's")
            await db.execute(
                "INSERT INTO model (name, model_id, manifest) VALUES ($1, $2, $3)", name, model_id, manifest
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewProject:
    """A project and its first token, which is shown this once. ``webhook_secret`` checks what webhooks bring."""

    project: str
    token: str
    webhook_secret: str


async def new_project(
    config_path: Path,
    name: str,
    *,
    scopes: Sequence[str] = SCOPES,
    most_requests: int | None = None,
    most_tokens: int | None = None,
) -> NewProject:
    """Raises ConfigError, Unavailable, InvalidMessage ``token.scopes``."""
    config = load_config(config_path)
    pool = await connect_pool(config.pg_url, max_size=1)
    try:
        project, token = await create_project(
            pool,
            name,
            quota=config.rerun_quota,
            scopes=scopes,
            most_requests=most_requests,
            most_tokens=most_tokens,
        )
    finally:
        await pool.close()
    return NewProject(
        project=project, token=token, webhook_secret=webhook_secret(config.keys.signer, project)
    )


async def new_token(config_path: Path, project: str, *, scopes: Sequence[str]) -> str:
    """One more token for a project. Raises ConfigError, Unavailable, InvalidMessage ``token.scopes``, ``project.unknown``."""
    config = load_config(config_path)
    pool = await connect_pool(config.pg_url, max_size=1)
    try:
        return await create_token(pool, project, scopes=scopes)
    finally:
        await pool.close()


async def list_operators(config_path: Path) -> list[Entered]:
    """Everybody who has registered, those who wait first. Raises ConfigError, Unavailable."""
    async with _opened(config_path) as registry:
        return await registry.operators()


async def admit_operator(config_path: Path, node_id: str) -> Entered:
    """Raises ConfigError, Unavailable, RuleViolation as ``Registry.admit``."""
    async with _opened(config_path) as registry:
        entered = await registry.admit(node_id)
        if registry.chain is not None:
            with contextlib.suppress(Unavailable):  # it is recorded: the running dispatcher sends it
                await registry.chain.send()
        return entered


@asynccontextmanager
async def _opened(config_path: Path) -> AsyncIterator[Registry]:
    config = load_config(config_path)
    pool = await connect_pool(config.pg_url, max_size=3)
    try:
        registry = await Registry.load(pool, config)
        try:
            yield registry
        finally:
            await registry.close()
    finally:
        await pool.close()


async def create_project(
    pool: Pool,
    name: str,
    *,
    quota: int,
    scopes: Sequence[str] = SCOPES,
    most_requests: int | None = None,
    most_tokens: int | None = None,
) -> tuple[str, str]:
    """A project with a first token. Raises InvalidMessage ``token.scopes``."""
    project = f"p-{secrets.token_hex(8)}"
    check_scopes(scopes)
    async with unavailable():
        await pool.execute(
            "INSERT INTO project (project_id, name, rerun_quota, most_requests, most_tokens) VALUES ($1, $2, $3, $4, $5)",
            project,
            name,
            quota,
            most_requests,
            most_tokens,
        )
    return project, await create_token(pool, project, scopes=scopes)


async def create_token(pool: Pool, project: str, *, scopes: Sequence[str]) -> str:
    """A token of 256 random bits, of which only the hash is stored.

    Raises InvalidMessage ``token.scopes``, ``project.unknown``.
    """
    check_scopes(scopes)
    token = secrets.token_urlsafe(32)
    async with unavailable():
        stored = await pool.execute(
            """INSERT INTO token (token_hash, project_id, scopes)
               SELECT $1, project_id, $3 FROM project WHERE project_id = $2""",
            token_hash(token),
            project,
            [scope for scope in SCOPES if scope in scopes],
        )
    if stored == "INSERT 0 0":
        raise InvalidMessage("project.unknown", f"there is no project {project[:80]!r}", field="project")
    return token


def check_scopes(scopes: Sequence[str]) -> None:
    """Raises InvalidMessage ``token.scopes``."""
    if not scopes or any(scope not in SCOPES for scope in scopes):
        raise InvalidMessage(
            "token.scopes", f"a token's scopes are one or more of {', '.join(SCOPES)}", field="scope"
        )


def token_hash(token: str) -> bytes:
    """What is stored of a token. It has 256 random bits, so a plain hash is enough, and finding it by its hash tells
    nobody anything."""
    return hashlib.sha256(b"AOS/project-token/v1\0" + token.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Whose a token is, and what it may do."""

    project: str
    scopes: frozenset[str]


async def holder_of(pool: Pool, token: str) -> Holder | None:
    """The project that ``token`` is of; None where it is nobody's."""
    async with unavailable():
        row = await pool.fetchrow(
            "SELECT project_id, scopes FROM token WHERE token_hash = $1", token_hash(token)
        )
    return None if row is None else Holder(project=row["project_id"], scopes=frozenset(row["scopes"]))


async def authenticate(pool: Pool, project: str, token: str) -> bool:
    """Whether ``token`` is that project's."""
    holder = await holder_of(pool, token)
    return holder is not None and hmac.compare_digest(holder.project.encode(), project.encode())


def webhook_secret(signer: bytes, project: str) -> str:
    """The key that a project's webhooks are signed with (Standard Webhooks: ``whsec_`` and base64).

    It follows from the dispatcher's key, so that no table holds it.
    """
    key = hmac.new(signer, b"AOS/webhook-secret/v1\0" + project.encode(), hashlib.sha256).digest()
    return "whsec_" + base64.b64encode(key).decode()
