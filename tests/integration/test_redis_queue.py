"""The work queue on a real Redis: claiming from the dead, releasing, finishing, and a Redis that has lost its data."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from aos.adapters.embedded.redis import EmbeddedRedis
from aos.adapters.redis_queue import RedisQueue

TOPIC, GROUP = "test:queue", "operator"


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[RedisQueue]:
    found = RedisQueue(redis_url, topic=TOPIC, group=GROUP)
    await found.prepare()
    yield found
    await found.close()


async def fill(queue: RedisQueue, count: int, consumer: str) -> list[str]:
    """Entries that ``consumer`` has taken and not finished."""
    ids = [await queue.add({"n": str(n)}) for n in range(count)]
    taken = [await queue.next(consumer, wait_ms=1) for _ in range(count)]
    assert [entry.id for entry in taken if entry is not None] == ids
    return ids


async def test_a_released_entry_behind_many_busy_ones_is_claimed(queue: RedisQueue) -> None:
    ids = await fill(queue, 40, "busy")
    await queue.release("busy", ids[-1])
    entry = await queue.claim("other", idle_ms=60_000)
    assert entry is not None
    assert (entry.id, entry.fields["n"]) == (ids[-1], "39")
    assert await queue.claim("other", idle_ms=60_000) is None


async def test_an_entry_that_was_passed_over_is_not_offered_again_before_the_others(
    queue: RedisQueue,
) -> None:
    ids = await fill(queue, 3, "first")
    for entry_id in ids:
        await queue.release("first", entry_id)
    seen, after = [], ""
    while (entry := await queue.claim("second", idle_ms=1_000, after=after)) is not None:
        seen.append(entry.id)
        await queue.release("second", entry.id)
        after = entry.id
    assert seen == ids


async def test_what_is_touched_is_not_claimed(queue: RedisQueue) -> None:
    (entry_id,) = await fill(queue, 1, "first")
    await queue.release("first", entry_id)
    await queue.touch("first", entry_id)
    assert await queue.claim("second", idle_ms=60_000) is None


async def test_finished_entries_leave_nothing_on_the_stream(queue: RedisQueue, redis_url: str) -> None:
    for entry_id in await fill(queue, 200, "first"):
        await queue.finish(entry_id)
    assert await queue.depth() == 0
    async with Redis.from_url(redis_url) as redis:
        assert await redis.xlen(TOPIC) == 0
        assert (await redis.xpending(TOPIC, GROUP))["pending"] == 0


async def test_an_entry_deleted_by_others_ends_no_search(queue: RedisQueue, redis_url: str) -> None:
    ids = await fill(queue, 30, "first")
    async with Redis.from_url(redis_url) as redis:
        await redis.xdel(TOPIC, *ids[:-1])
    for entry_id in ids:
        await queue.release("first", entry_id)
    entry = await queue.claim("second", idle_ms=1_000)
    assert entry is not None
    assert entry.id == ids[-1]


async def test_every_call_survives_a_redis_that_lost_everything(
    queue: RedisQueue, redis_server: EmbeddedRedis
) -> None:
    for call in (
        lambda: queue.next("c", wait_ms=1),
        lambda: queue.held("c"),
        lambda: queue.claim("c", idle_ms=1),
        lambda: queue.touch("c", "1-1"),
        lambda: queue.release("c", "1-1"),
        lambda: queue.finish("1-1"),
    ):
        redis_server.flush()
        assert await call() is None  # type: ignore[no-untyped-call]
    entry_id = await queue.add({"n": "1"})
    await queue.prepare()
    entry = await queue.next("c", wait_ms=1_000)
    assert entry is not None
    assert entry.id == entry_id
