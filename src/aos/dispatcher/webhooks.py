"""Tells whoever asked that a job is over (docs/spec/09-http.md, "Webhooks"): signed, stored, tried again, never to private places.

What is to be told is written with the fact itself, in one transaction (``Events.add``). A dispatcher killed at any point tells it
again after its next start; receivers know a repetition by its ``webhook-id``.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import structlog
from asyncpg import Record

from aos.adapters.postgres import Pool, unavailable
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.refusals import place
from aos.dispatcher.registry import now_ms
from aos.dispatcher.setup import webhook_secret
from aos.dispatcher.webhook_url import LOOPBACK_NAMES, allow_url, is_public
from aos.errors import AOSError, InvalidMessage, Unavailable

log = structlog.get_logger("aos.dispatcher")

TIMEOUT_S = 15.0
LOOK_S = 1.0
AT_ONCE = 16
_GONE = 410


def sign_message(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The ``webhook-signature`` header: ``v1,`` and base64 of HMAC-SHA256 over ``id.timestamp.body``."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


async def public_address(host: str, port: int, *, field: str = "webhook") -> str:
    """An address of ``host``, all of whose addresses are public. Raises InvalidMessage ``webhook.address``, Unavailable
    ``webhook.name``."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable("webhook.name", f"{host} has no address: {error.strerror}", field=field) from None
    addresses = [str(item[4][0]) for item in found]
    # All of them: a name with one public and one private address would be a private one at the next try.
    if not addresses or not all(is_public(ipaddress.ip_address(a.partition("%")[0])) for a in addresses):
        raise InvalidMessage("webhook.address", f"{field}: names an address that is not public", field=field)
    return addresses[0]


class Webhooks:
    """Sends what is due. ``told`` hears the outcome of every try: `delivered`, `refused`, `given_up`."""

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        *,
        told: Callable[[str], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._pool = pool
        self._config = config
        self._told = told
        self._task: asyncio.Task[None] | None = None
        # Of its own: no proxy, which would resolve names itself, and no redirect, which would name another host.
        self._http = httpx.AsyncClient(
            timeout=TIMEOUT_S,
            follow_redirects=False,
            trust_env=False,
            verify=tls or ssl.create_default_context(),
        )

    def start(self) -> None:
        """Begin to look for what is due."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End; what was not delivered stays due."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._http.aclose()

    async def _run(self) -> None:
        while True:
            sent = 0
            try:
                sent = await self._send_due()
            except Unavailable as error:
                log.warning("webhooks.wait", code=error.code)
            except Exception as error:
                log.error("webhooks.defect", **place(error))
            if not sent:
                await asyncio.sleep(LOOK_S)

    async def _send_due(self) -> int:
        async with unavailable():
            rows = await self._pool.fetch(
                """SELECT w.*, j.project_id FROM webhook w JOIN job j USING (job_id)
                   WHERE w.state = 'due' AND w.next_at <= $1 ORDER BY w.next_at LIMIT $2""",
                now_ms(),
                AT_ONCE,
            )
        await asyncio.gather(*map(self._send, rows))
        return len(rows)

    async def _send(self, row: Record) -> None:
        status = 0
        try:
            status = await self.post(row)
            code = "" if 200 <= status < 300 else f"http.{status}"
        except AOSError as error:
            code = error.code
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            code = f"webhook.{type(error).__name__.lower()}"
        retries = self._config.webhook_retries_s
        if not code:
            state, next_at = "delivered", 0
        elif status == _GONE or row["tries"] >= len(retries):
            state, next_at = "given_up", 0
        else:
            state, next_at = "due", now_ms() + 1000 * retries[row["tries"]]
        async with unavailable():
            await self._pool.execute(
                "UPDATE webhook SET state = $2, tries = tries + 1, next_at = $3 WHERE job_id = $1",
                row["job_id"],
                state,
                next_at,
            )
        self._told("refused" if state == "due" else state)
        log.info("webhook.tried", message=row["message_id"], tries=row["tries"] + 1, state=state, code=code)

    async def post(self, row: Record | Mapping[str, Any]) -> int:
        """One try. The status that the receiver answers. Raises InvalidMessage ``webhook.*``, Unavailable, httpx.HTTPError."""
        loopback = self._config.webhook_loopback
        allow_url(
            row["url"], loopback=loopback, field="webhook"
        )  # also what was stored before a setting changed
        url, parts = httpx.URL(row["url"]), urlsplit(row["url"])
        host = parts.hostname or ""
        if not (loopback and host in LOOPBACK_NAMES):
            port = parts.port or 443
            # The very address that was looked at: a second resolution could give another one.
            url = url.copy_with(host=await public_address(host, port))
        body = row["event"].encode()
        timestamp = int(time.time())
        request = self._http.build_request(
            "POST",
            url,
            content=body,
            headers={
                "Host": parts.netloc,
                "Content-Type": "application/json",
                "User-Agent": "AOS-webhook/1",
                "webhook-id": row["message_id"],
                "webhook-timestamp": str(timestamp),
                "webhook-signature": sign_message(
                    webhook_secret(self._config.keys.signer, row["project_id"]),
                    row["message_id"],
                    timestamp,
                    body,
                ),
            },
            extensions={"sni_hostname": host},
        )
        async with asyncio.timeout(TIMEOUT_S):
            response = await self._http.send(request, stream=True)
            await response.aclose()  # its body is nobody's business
        return response.status_code
