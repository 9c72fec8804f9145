"""The client for asyncio: the same calls, each on a thread of its own, so that there is one implementation to check."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from aos.client.answer import Answer, Stream
from aos.client.events import JobEvent
from aos.client.sync import Accepted, Client, Messages, Submission

T = TypeVar("T")


class AsyncStream(AsyncIterator[str]):
    """As ``Stream``; ``answer()`` is awaited."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def job_id(self) -> str:
        return self._stream.job_id

    @property
    def superseded(self) -> bool:
        return self._stream.superseded

    @property
    def text(self) -> str:
        return self._stream.text

    async def __anext__(self) -> str:
        text = await asyncio.to_thread(next, self._stream, None)
        if text is None:
            raise StopAsyncIteration
        return text

    async def answer(self) -> Answer:
        """Raises as ``Stream.answer``."""
        return await asyncio.to_thread(lambda: self._stream.answer)


class AsyncClient:
    """Use as an asynchronous context manager. Takes over ``client`` and closes it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._client.__exit__)

    async def _call(self, method: Callable[..., T], *arguments: Any, **options: Any) -> T:
        return await asyncio.to_thread(method, *arguments, **options)

    async def ask(self, prompt: str | Messages, **options: Any) -> Answer:
        """As ``Client.ask``."""
        return await self._call(self._client.ask, prompt, **options)

    async def stream(self, prompt: str | Messages, **options: Any) -> AsyncStream:
        """As ``Client.stream``."""
        return AsyncStream(await self._call(self._client.stream, prompt, **options))

    async def submit(self, submission: Submission) -> Accepted:
        """As ``Client.submit``."""
        return await self._call(self._client.submit, submission)

    async def fetch(self, job_id: str) -> Answer:
        """As ``Client.fetch``."""
        return await self._call(self._client.fetch, job_id)

    async def events(self, job_id: str, *, after: str = "") -> AsyncIterator[JobEvent]:
        """As ``Client.events``."""
        events = self._client.events(job_id, after=after)
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield event

    async def answer(self, job_id: str) -> bytes:
        """As ``Client.answer``."""
        return await self._call(self._client.answer, job_id)

    async def result(self, job_id: str) -> Any:
        """As ``Client.result``."""
        return await self._call(self._client.result, job_id)

    async def detail(self, job_id: str) -> Any:
        """As ``Client.detail``."""
        return await self._call(self._client.detail, job_id)

    async def cancel(self, job_id: str) -> Any:
        """As ``Client.cancel``."""
        return await self._call(self._client.cancel, job_id)
