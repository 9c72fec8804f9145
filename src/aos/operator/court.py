"""What an operator asks of its dispatcher over HTTP beside the link: disputes and audits (docs/spec/09-http.md)."""

import asyncio
import contextlib
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from aos.core.dispute.court import Read
from aos.core.encoding import b64u_encode, canonical_json, parse_json_strict
from aos.core.statements import sign
from aos.errors import InvalidMessage, RuleViolation, Unavailable
from aos.operator.identity import Identity
from aos.operator.network import Network, public_client

MAX_DOCUMENT_BYTES = 48 << 20


@contextlib.contextmanager
def document() -> Iterator[None]:
    """Whatever form the dispatcher's documents have, nothing but this product's errors comes out."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        raise InvalidMessage(
            "dispute.document", f"the dispatcher's document has another form: {type(error).__name__}"
        ) from error


class CourtClient:
    """Asks one dispatcher, with questions that this operator signs."""

    def __init__(self, url: str, identity: Identity, *, now_ms: Callable[[], int]) -> None:
        self._http = public_client(url)
        self._identity = identity
        self._now_ms = now_ms

    async def close(self) -> None:
        """Let go of the HTTP client."""
        await self._http.aclose()

    def _question(self, network: Network, subject: bytes) -> dict[str, str]:
        question = Read(
            network=network.name,
            dispatcher=network.dispatcher,
            reader=self._identity.node_id,
            subject=subject,
            time=self._now_ms(),
        )
        pair = sign(self._identity.signer_key, question).to_json()
        return {"x-aos-reader": b64u_encode(canonical_json(pair))}

    async def get(self, network: Network, path: str, subject: bytes) -> dict[str, Any]:
        """A document about ``subject``. Raises as ``send``."""
        return await self._ask("GET", path, headers=self._question(network, subject))

    async def send(self, method: str, path: str, value: object) -> dict[str, Any]:
        """Send JSON. Raises Unavailable ``dispute.unreachable``; RuleViolation with the dispatcher's code."""
        return await self._ask(
            method, path, headers={"content-type": "application/json"}, content=json.dumps(value).encode()
        )

    async def send_bytes(self, path: str, data: bytes) -> dict[str, Any]:
        """``PUT`` bytes. Raises as ``send``."""
        headers = {"content-type": "application/octet-stream"}
        return await self._ask("PUT", path, headers=headers, content=data)

    async def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """A JSON object. Raises Unavailable ``dispute.unreachable``; RuleViolation with the dispatcher's code."""
        data = bytearray()
        try:
            async with asyncio.timeout(120), self._http.stream(method, path, timeout=60.0, **more) as answer:
                async for part in answer.aiter_raw():
                    data += part
                    if len(data) > MAX_DOCUMENT_BYTES:
                        break
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise Unavailable(
                "dispute.unreachable", f"the dispatcher does not answer: {type(error).__name__}"
            ) from error
        value = parse_json_strict(bytes(data), max_bytes=MAX_DOCUMENT_BYTES)
        if not isinstance(value, dict):
            raise InvalidMessage("dispute.document", "the dispatcher's answer is no object")
        if answer.status_code >= 500 or answer.status_code == 429:
            raise Unavailable("dispute.unreachable", f"the dispatcher answers with {answer.status_code}")
        if answer.status_code != 200:
            code = str(value.get("title", ""))[:64] or "dispute.refused"
            raise RuleViolation(code, str(value.get("detail", ""))[:300])
        return value
