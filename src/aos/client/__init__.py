"""The Python SDK: ask a network, stream the text, keep the receipt, check it offline (docs/sdk.md)."""

from pathlib import Path

from aos.client.aio import AsyncClient, AsyncStream
from aos.client.answer import Answer, Stream
from aos.client.events import JobEvent
from aos.client.settings import load_client_settings
from aos.client.sync import Accepted, Client, Messages, Submission, encode_acceptance
from aos.client.webhook import verify_webhook

__all__ = [
    "Accepted",
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "Client",
    "JobEvent",
    "Messages",
    "Stream",
    "Submission",
    "connect",
    "connect_async",
    "encode_acceptance",
    "verify_webhook",
]


def connect(*, url: str | None = None, trust: Path | None = None) -> Client:
    """A client for the dispatcher that ``AOS_URL``, ``AOS_PROJECT``, ``AOS_TOKEN``, ``AOS_MODEL`` and ``AOS_TRUST`` name, or that
    the local network's state directory (``$AOS_STATE_DIR``, else ``.aos``) does. Raises ConfigError ``config.client``.
    """
    return load_client_settings(url=url, trust=trust).client()


def connect_async(*, url: str | None = None, trust: Path | None = None) -> AsyncClient:
    """As ``connect``, for asyncio."""
    return AsyncClient(connect(url=url, trust=trust))
