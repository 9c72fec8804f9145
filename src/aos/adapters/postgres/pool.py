"""The connection pool and the translation of PostgreSQL's errors.

Rows come back with ``jsonb`` as text; statements are written out as SQL where they are used.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from aos.errors import ConfigError, Unavailable

Pool: TypeAlias = Any
"""asyncpg.Pool (the library ships no types)."""
Connection: TypeAlias = Any
Record: TypeAlias = Any

_DOWN = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # also what a connection says that died between a query and its release
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    ConnectionError,
    TimeoutError,
    OSError,
)


@asynccontextmanager
async def unavailable() -> AsyncIterator[None]:
    """Inside, an error that says the server is gone or busy becomes ``Unavailable`` ``store.unavailable``."""
    try:
        yield
    except _DOWN as error:
        raise Unavailable(
            "store.unavailable", f"PostgreSQL does not answer: {type(error).__name__}"
        ) from error


async def _keep(connection: Connection) -> None:
    """Nothing to reset when a connection goes back: no statement of ours changes its session (locks are those of transactions),
    and asyncpg's own reset is one more round trip for each statement."""


async def connect_pool(
    url: str,
    *,
    min_size: int = 1,
    max_size: int = 10,
    timeout_s: float = 10.0,
    application_name: str = "aos",
) -> Pool:
    """A pool of connections to ``url``: ``postgres://user:password@host:port/db``, ``…/db?host=/socket/dir``.

    Raises ConfigError ``config.pg_db_url`` where the URL, the database or the login is wrong, Unavailable
    ``store.unavailable`` where nobody answers. The URL's password is in no message.
    """
    try:
        return await asyncpg.create_pool(
            url,
            min_size=min_size,
            max_size=max_size,
            timeout=timeout_s,
            command_timeout=60,
            reset=_keep,
            server_settings={"application_name": application_name, "timezone": "UTC"},
        )
    except (asyncpg.InvalidCatalogNameError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        raise ConfigError(
            "config.pg_db_url", f"PostgreSQL refuses the login or the database: {error}", field="pg_db_url"
        ) from error
    except (ValueError, asyncpg.ClientConfigurationError) as error:
        raise ConfigError(
            "config.pg_db_url",
            "pg_db_url is not a PostgreSQL URL",
            field="pg_db_url",
            hint="postgres://user@host/db",
        ) from error
    except _DOWN as error:
        raise Unavailable(
            "store.unavailable", f"PostgreSQL does not answer: {type(error).__name__}"
        ) from error


async def create_database(url: str) -> bool:
    """Create the database that ``url`` names where it is missing; True where it was made.

    Raises as ``connect_pool``.
    """
    parts = urlsplit(url)
    name = parts.path.lstrip("/")
    if not name:
        raise ConfigError("config.pg_db_url", "pg_db_url names no database", field="pg_db_url")
    pool = await connect_pool(urlunsplit(parts._replace(path="/postgres")), max_size=1)
    try:
        async with unavailable(), pool.acquire() as connection:
            if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
                return False
            quoted = '"' + name.replace('"', '""') + '"'
            try:
                await connection.execute(f"CREATE DATABASE {quoted}")
            except asyncpg.DuplicateDatabaseError:
                return False
            return True
    finally:
        await pool.close()
