"""The dispatcher's schema: what the migrations make is what ``schema.sql`` says, and once applied they stay as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import resources

import pytest

from aos.adapters.postgres import connect_pool, describe_schema, migrate
from aos.dispatcher.setup import MIGRATIONS
from aos.errors import ConfigError

FILES = [
    "0001_dispatcher.sql",
    "0002_evidence_pending.sql",
    "0003_tokens_limits_webhooks.sql",
    "0004_tee_boot.sql",
    "0005_disputes.sql",
    "0006_explorer.sql",
    "0007_tee_device.sql",
    "0008_audits.sql",
    "0009_log.sql",
    "0010_chain_claim.sql",
]


async def test_the_migrations_make_the_written_schema(new_database: Callable[..., str]) -> None:
    migrated, written = await connect_pool(new_database()), await connect_pool(new_database())
    try:
        assert await migrate(migrated, MIGRATIONS) == FILES
        await written.execute(resources.files(MIGRATIONS).joinpath("schema.sql").read_text("utf-8"))
        assert await describe_schema(migrated) == await describe_schema(written)
    finally:
        await migrated.close()
        await written.close()


async def test_migrating_twice_and_at_the_same_time_applies_once(pg_url: str) -> None:
    pools = [await connect_pool(pg_url) for _ in range(3)]
    try:
        applied = await asyncio.gather(*(migrate(pool, MIGRATIONS) for pool in pools))
        assert sorted(applied) == [[], [], FILES]
        assert await migrate(pools[0], MIGRATIONS) == []
    finally:
        for pool in pools:
            await pool.close()


async def test_a_migration_that_changed_after_it_was_applied_is_refused(pg_url: str) -> None:
    pool = await connect_pool(pg_url)
    try:
        await migrate(pool, MIGRATIONS)
        await pool.execute("UPDATE aos_migration SET sha256 = '\\x00'")
        with pytest.raises(ConfigError) as refusal:
            await migrate(pool, MIGRATIONS)
        assert refusal.value.code == "migration.changed"
    finally:
        await pool.close()


async def test_a_database_of_a_newer_version_is_refused(pg_url: str) -> None:
    pool = await connect_pool(pg_url)
    try:
        await migrate(pool, MIGRATIONS)
        await pool.execute(
            "INSERT INTO aos_migration (package, name, sha256) VALUES ($1, '9999_later.sql', '\\x00')",
            MIGRATIONS,
        )
        with pytest.raises(ConfigError) as refusal:
            await migrate(pool, MIGRATIONS)
        assert refusal.value.code == "migration.newer"
    finally:
        await pool.close()
