"""Migrations: plain .sql files of a package, in the order of their names, once each.

``migrate`` may be called by several processes at once: an advisory lock lets one of them work. A file that
was applied and has changed since is refused, so that history stays what it was.
"""

import hashlib
import re
from importlib import resources

from aos.adapters.postgres.pool import Connection, Pool, unavailable
from aos.errors import ConfigError

_NAME = re.compile(r"[0-9]{4}_[a-z0-9_]+\.sql")
_LOCK = 0x414F534D  # "AOSM"

_LEDGER = """
CREATE TABLE IF NOT EXISTS aos_migration (
    package    text        NOT NULL,
    name       text        NOT NULL,
    sha256     bytea       NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (package, name)
)
"""


def migration_files(package: str) -> list[tuple[str, str]]:
    """(name, SQL) of every migration in ``package`` (a dotted name), in order."""
    files = [entry for entry in resources.files(package).iterdir() if _NAME.fullmatch(entry.name)]
    return [(entry.name, entry.read_text("utf-8")) for entry in sorted(files, key=lambda entry: entry.name)]


async def migrate(pool: Pool, package: str) -> list[str]:
    """Apply what is missing of ``package``, all or nothing; the names applied now.

    Raises ConfigError ``migration.*``, Unavailable ``store.unavailable``.
    """
    files = migration_files(package)
    if not files:
        raise ConfigError("migration.none", f"{package} holds no migrations")
    async with unavailable(), pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await connection.execute(_LEDGER)
        done = await applied_migrations(connection, package)
        unknown = sorted(done.keys() - {name for name, _ in files})
        if unknown:
            raise ConfigError(
                "migration.newer",
                f"the database was made by a newer version: {unknown[0]}",
                hint="upgrade AOS",
            )
        applied = []
        for name, sql in files:
            digest = hashlib.sha256(sql.encode()).digest()
            if name in done:
                if done[name] != digest:
                    raise ConfigError("migration.changed", f"{name} has changed since it was applied")
                continue
            await connection.execute(sql)
            await connection.execute(
                "INSERT INTO aos_migration (package, name, sha256) VALUES ($1, $2, $3)", package, name, digest
            )
            applied.append(name)
        return applied


async def applied_migrations(connection: Connection, package: str) -> dict[str, bytes]:
    """Name and digest of every migration of ``package`` that the database has."""
    rows = await connection.fetch("SELECT name, sha256 FROM aos_migration WHERE package = $1", package)
    return {row["name"]: row["sha256"] for row in rows}


async def describe_schema(connection: Connection) -> list[str]:
    """Tables, columns, constraints, indexes, triggers and functions of the schema ``public`` in words, sorted.

    Two equal lists are equal schemas. The migrations' own ledger is left out.
    """
    columns = await connection.fetch(
        """
        SELECT c.relname AS rel, a.attname AS col, format_type(a.atttypid, a.atttypmod) AS kind,
               a.attnotnull AS req,
               coalesce(pg_get_expr(d.adbin, d.adrelid), '') AS init, a.attidentity::text AS ident
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE n.nspname = 'public' AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
        """
    )
    constraints = await connection.fetch(
        """
        SELECT c.relname AS rel, k.conname AS name, pg_get_constraintdef(k.oid) AS def
        FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'public'
        """
    )
    indexes = await connection.fetch(
        "SELECT tablename AS rel, indexdef AS def FROM pg_indexes WHERE schemaname = 'public'"
    )
    triggers = await connection.fetch(
        """
        SELECT pg_get_triggerdef(t.oid) AS def FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public' AND NOT t.tgisinternal
        """
    )
    functions = await connection.fetch(
        """
        SELECT pg_get_functiondef(p.oid) AS def FROM pg_proc p
        JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'public'
        """
    )
    lines = [
        " ".join(
            ["column", f"{r['rel']}.{r['col']}", r["kind"], "not null" * r["req"], r["init"], r["ident"]]
        )
        for r in columns
    ]
    lines += [f"constraint {r['rel']} {r['name']} {r['def']}" for r in constraints]
    lines += [f"index {r['rel']} {r['def']}" for r in indexes]
    lines += [f"trigger {r['def']}" for r in triggers] + [f"function {r['def']}" for r in functions]
    return sorted(line for line in lines if " aos_migration" not in line.replace(".", " "))
