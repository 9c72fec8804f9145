"""A work queue on one Redis stream with a consumer group: what several workers share and a crashed one leaves to others.

An entry is outstanding from ``add`` to ``finish``, which takes it off the stream. Whoever works on it calls ``touch`` so
that it is not taken for dead; whoever gives up calls ``release``, and another consumer's ``claim`` gets it at once. Nothing
here is the truth: a Redis that comes back empty is filled again from the database by its user. Needs Redis 6.2 or newer.
"""

from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.retry import Retry

from aos.errors import ConfigError, Unavailable

_RELEASED_MS = 365 * 24 * 3600 * 1000
"""The idle time given to a released entry: longer than any limit that a consumer claims by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry of the stream: its id there and its fields."""

    id: str
    fields: Mapping[str, str]


class RedisQueue:
    """Every method raises Unavailable ``queue.unavailable`` where Redis does not answer."""

    def __init__(self, url: str, *, topic: str, group: str, timeout_s: float = 5.0) -> None:
        """Raises ConfigError ``config.queue_url``. Nothing is connected yet."""
        self._topic = topic
        self._group = group
        try:
            # Whoever uses the queue waits and tries again; a second, hidden retry would only delay that.
            self._redis = Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
            )
        except ValueError as error:
            raise ConfigError(
                "config.queue_url", "queue_url is not a Redis URL", field="queue.queue_url"
            ) from error

    async def close(self) -> None:
        await self._redis.aclose()

    async def ping(self) -> None:
        async with _unavailable():
            await self._redis.ping()

    async def prepare(self) -> None:
        """Make stream and group where they are missing. Entries that are on the stream already will be delivered."""
        async with _unavailable():
            try:
                await self._redis.xgroup_create(self._topic, self._group, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def add(self, fields: Mapping[str, str]) -> str:
        """Put an entry on the stream; its id."""
        entry: dict[Any, Any] = dict(fields)
        async with _unavailable():
            return str(await self._redis.xadd(self._topic, entry))

    async def holds(self, entry_id: str) -> bool:
        """Whether the entry is on the stream and not finished."""
        async with _unavailable():
            return bool(await self._redis.xrange(self._topic, min=entry_id, max=entry_id, count=1))

    async def next(self, consumer: str, *, wait_ms: int) -> Entry | None:
        """The next entry that nobody has, for ``consumer``; None where none came within ``wait_ms``."""
        async with _unavailable():
            try:
                answer = await self._redis.xreadgroup(
                    self._group, consumer, {self._topic: ">"}, count=1, block=wait_ms
                )
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):  # Redis came back without its data
                    raise
                await self.prepare()
                return None
        return _first(_streams(answer))

    async def held(self, consumer: str) -> Entry | None:
        """The oldest entry that ``consumer`` has taken and not finished: what its former process left behind."""
        async with _unavailable():
            try:
                answer = await self._redis.xreadgroup(self._group, consumer, {self._topic: "0"}, count=1)
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                await self.prepare()
                return None
        return _first(_streams(answer))

    async def claim(self, consumer: str, *, idle_ms: int, after: str = "") -> Entry | None:
        """Take over an entry that was released, or that its consumer has not touched for ``idle_ms``.

        ``after``: look only behind this entry, which the caller has seen and left to others.
        """
        start = f"({after}" if after else "0-0"
        while True:  # one call looks at a few entries only, and says where to go on
            async with _unavailable():
                try:
                    answer = await self._redis.xautoclaim(
                        self._topic, self._group, consumer, min_idle_time=idle_ms, start_id=start, count=1
                    )
                except ResponseError as error:
                    if not str(error).startswith("NOGROUP"):
                        raise
                    await self.prepare()
                    return None
            start, entry = str(answer[0]), _first(answer[1])
            if entry is not None or start == "0-0":
                return entry

    async def touch(self, consumer: str, entry_id: str) -> None:
        """Say that ``consumer`` still works on the entry."""
        await self._set_idle(consumer, entry_id, 0)

    async def release(self, consumer: str, entry_id: str) -> None:
        """Leave the entry to whoever claims next."""
        await self._set_idle(consumer, entry_id, _RELEASED_MS)

    async def finish(self, entry_id: str) -> None:
        """Acknowledge the entry and take it off the stream. Call it when the result is stored, not before."""
        async with _unavailable(), self._redis.pipeline(transaction=True) as pipe:
            pipe.xack(self._topic, self._group, entry_id)
            pipe.xdel(self._topic, entry_id)
            try:
                await pipe.execute()
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise

    async def depth(self) -> int:
        """Outstanding entries: waiting or being worked on."""
        async with _unavailable():
            return int(await self._redis.xlen(self._topic))

    async def _set_idle(self, consumer: str, entry_id: str, idle_ms: int) -> None:
        async with _unavailable():
            try:
                await self._redis.xclaim(
                    self._topic, self._group, consumer, 0, [entry_id], idle=idle_ms, justid=True
                )
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise


def _streams(answer: Any) -> list[Any]:
    """Entries of the one stream that was read, in either protocol version's shape."""
    if not answer:
        return []
    if isinstance(answer, dict):
        (batches,) = answer.values()
        return [entry for batch in batches for entry in batch]
    return list(answer[0][1])


def _first(entries: list[Any]) -> Entry | None:
    for entry_id, fields in entries:
        if fields is not None:  # a deleted entry that was still pending
            return Entry(id=entry_id, fields=fields)
    return None


@asynccontextmanager
async def _unavailable() -> Any:
    try:
        yield
    except AuthenticationError as error:
        raise ConfigError(
            "config.queue_url", "Redis refuses the login in queue_url", field="queue.queue_url"
        ) from error
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable("queue.unavailable", f"Redis does not answer: {type(error).__name__}") from error
