"""PostgreSQL: a pool, migrations from plain .sql files, and one place where its errors become ours.

Used by the dispatcher and the operator alike; knows no table of theirs. A migration directory is a Python
package of files named ``0001_what.sql``, applied in order under an advisory lock, never edited once applied.
"""

from aos.adapters.postgres.migrate import applied_migrations, describe_schema, migrate
from aos.adapters.postgres.pool import Connection, Pool, Record, connect_pool, create_database, unavailable

__all__ = [
    "Connection",
    "Pool",
    "Record",
    "applied_migrations",
    "connect_pool",
    "create_database",
    "describe_schema",
    "migrate",
    "unavailable",
]
