"""Founding a network, making projects, admitting operators: what `aos up`, `aos project` and `aos registry` call."""

import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aos.adapters.postgres import Pool, connect_pool, migrate, unavailable
from aos.core import beacon
from aos.core.statements import Registration, Signed
from aos.dispatcher.config import DispatcherConfig, load_config
from aos.dispatcher.registry import RANGES, Entered, Registry
from aos.errors import RuleViolation

MIGRATIONS = "aos.dispatcher.sql"


@dataclass(frozen=True, slots=True, kw_only=True)
class Founded:
    """A new network: its public file, its genesis registry's root, its first project. The token is shown this once."""

    network: dict[str, object]
    registry_root: bytes
    project: str
    token: str


async def found_network(
    config_path: Path,
    *,
    registrations: Sequence[Signed[Registration]],
    models: Mapping[str, bytes],
    genesis_ms: int,
    epoch_ms: int,
    project: str,
) -> Founded:
    """Initialise a dispatcher's database with a network, its genesis operators, models and a first project.

    An interrupted founding is begun again: nothing of it was published. Raises RuleViolation ``network.founded`` where jobs
    exist already, ConfigError, Unavailable.
    """
    config = load_config(config_path)
    pool = await connect_pool(config.pg_url, max_size=4)
    try:
        await migrate(pool, MIGRATIONS)
        await _write_network(
            pool,
            config,
            models=models,
            genesis_ms=genesis_ms,
            epoch_ms=epoch_ms,
            ranges=max(RANGES, 2 * len(registrations)),
        )
        registry = await Registry.load(pool, config)
        for registration in registrations:
            await registry.register(registration.to_json(), genesis=True)
        root = await registry.sign_genesis()
        project_id, token = await create_project(pool, project, quota=config.rerun_quota)
        return Founded(network=registry.network_file(), registry_root=root, project=project_id, token=token)
    finally:
        await pool.close()


async def _write_network(
    pool: Pool,
    config: DispatcherConfig,
    *,
    models: Mapping[str, bytes],
    genesis_ms: int,
    epoch_ms: int,
    ranges: int,
) -> None:
    async with unavailable(), pool.acquire() as db, db.transaction():
        if await db.fetchval("SELECT 1 FROM job LIMIT 1"):
            raise RuleViolation("network.founded", "this database holds a network with jobs already")
        await db.execute("TRUNCATE network, operator, snapshot, model, project, clock_state CASCADE")
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
            await db.execute("INSERT INTO model (name, model_id) VALUES ($1, $2)", name, model_id)


async def new_project(config_path: Path, name: str) -> tuple[str, str]:
    """(project id, token). Raises ConfigError, Unavailable."""
    config = load_config(config_path)
    pool = await connect_pool(config.pg_url, max_size=1)
    try:
        return await create_project(pool, name, quota=config.rerun_quota)
    finally:
        await pool.close()


async def list_operators(config_path: Path) -> list[Entered]:
    """Everybody who has registered, those who wait first. Raises ConfigError, Unavailable."""
    async with _opened(config_path) as registry:
        return await registry.operators()


async def admit_operator(config_path: Path, node_id: str) -> Entered:
    """Raises ConfigError, Unavailable, RuleViolation ``registration.unknown``, ``registration.full``."""
    async with _opened(config_path) as registry:
        return await registry.admit(node_id)


@asynccontextmanager
async def _opened(config_path: Path) -> AsyncIterator[Registry]:
    config = load_config(config_path)
    pool = await connect_pool(config.pg_url, max_size=1)
    try:
        yield await Registry.load(pool, config)
    finally:
        await pool.close()


async def create_project(pool: Pool, name: str, *, quota: int) -> tuple[str, str]:
    """A project with a token of 256 random bits, of which only the hash is stored."""
    project, token = f"p-{secrets.token_hex(8)}", secrets.token_urlsafe(32)
    async with unavailable():
        await pool.execute(
            "INSERT INTO project (project_id, name, token_hash, rerun_quota) VALUES ($1, $2, $3, $4)",
            project,
            name,
            token_hash(token),
            quota,
        )
    return project, token


def token_hash(token: str) -> bytes:
    """What is stored of a token. It has 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(b"AOS/project-token/v1\0" + token.encode("utf-8", "surrogatepass")).digest()


async def authenticate(pool: Pool, project: str, token: str) -> bool:
    """Whether ``token`` is that project's; compared in constant time."""
    async with unavailable():
        held: bytes | None = await pool.fetchval(
            "SELECT token_hash FROM project WHERE project_id = $1", project
        )
    return is_token(held, token)


def is_token(held: bytes | None, token: str) -> bool:
    """Whether ``token`` has the stored hash ``held`` (None: there is no such project); compared in constant time."""
    return hmac.compare_digest(bytes(32) if held is None else held, token_hash(token)) and held is not None
