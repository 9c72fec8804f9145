"""Exchanges with a server that nobody vouches for: every answer within a size and a time, counted while it comes.

``httpx`` limits single reads, never a whole exchange, so a server that sends a byte now and then holds a caller for as
long as it likes. A task can be ended in every phase (name, handshake, headers, body): exchanges are tasks of an event
loop, which a caller without one gets on a thread of its own.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from aos.core.encoding import check_nesting
from aos.errors import InvalidMessage

MAX_REPLY_BYTES = 64 * 1024 * 1024
NOT_COMPRESSED = {"accept-encoding": "identity"}
"""Asked for with every request, so that the bytes that are counted are the bytes that are held."""

T = TypeVar("T")

MAX_NESTED = 64
"""How deep JSON of a dispatcher may go: the library's own limit is the stack's, and ends the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer, as it came."""

    status: int
    headers: httpx.Headers
    content: bytes

    def json(self) -> Any:
        """The body's JSON. Raises ValueError where it is none, or nested too deep."""
        try:
            check_nesting(self.content, MAX_NESTED)
        except InvalidMessage as error:
            raise ValueError(error.message) from None
        return json.loads(self.content)


async def exchange(
    http: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    within_s: float,
    max_bytes: int = MAX_REPLY_BYTES,
    **arguments: Any,
) -> Reply:
    """One request and its answer, whole within ``within_s`` seconds and of at most ``max_bytes``.

    Raises TimeoutError, httpx.HTTPError, httpx.InvalidURL; InvalidMessage ``client.answer_too_large``,
    ``client.compressed``.
    """
    async with asyncio.timeout(within_s), http.stream(method, url, **arguments) as response:
        return await whole(response, max_bytes)


async def whole(response: httpx.Response, max_bytes: int = MAX_REPLY_BYTES) -> Reply:
    """Read an open answer to its end. Raises as ``exchange``, which limits the time too."""
    check_plain(response)
    data = bytearray()
    async for part in response.aiter_raw():
        data += part
        if len(data) > max_bytes:
            raise InvalidMessage(
                "client.answer_too_large", f"{response.url.host} sent more than {max_bytes} bytes"
            )
    return Reply(status=response.status_code, headers=response.headers, content=bytes(data))


def check_plain(response: httpx.Response) -> None:
    """Raises InvalidMessage ``client.compressed``: what is counted would not be what is held."""
    if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise InvalidMessage(
            "client.compressed", f"{response.url.host} compressed its answer, which was not asked for"
        )


class BackgroundLoop:
    """An event loop on a daemon thread, begun at its first use. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end, or cancel it where the caller is interrupted. Raises RuntimeError once closed."""
        with self._lock:
            if self._closed:
                work.close()
                raise RuntimeError("this client is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run, args=(self._loop,), name="aos-client", daemon=True
                )
                self._thread.start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the loop and its thread; nothing may be running on it."""
        with self._lock:
            loop, thread, self._closed = self._loop, self._thread, True
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run ``loop`` until it is stopped, then end what is left on it: streams that were left in the middle."""
    try:
        loop.run_forever()
        loop.run_until_complete(_end_tasks())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(_end_tasks())
    finally:
        loop.close()


async def _end_tasks() -> None:
    """Wait for all other tasks, at most a second; cancel what is left then."""
    quiet = 0
    while (
        quiet < 3
    ):  # a generator that ends lets go of the one inside it, whose closing is a task of its own a turn later
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if not left:
            quiet += 1
            continue
        quiet = 0
        _, late = await asyncio.wait(left, timeout=1.0)
        for task in late:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def next_of(items: AsyncIterator[T]) -> T | None:
    """The next item; None at the end."""
    return await anext(items, None)
