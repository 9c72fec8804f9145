"""An operator of ours on the network's link: every step by hand, each of which a row may bend.

It keeps to docs/spec/06-network.md, "Link", unless a row tells it not to. Statements are made and signed with the product's
code; the frames, their headers and counters are put together here.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from aos.adapters.link import origin_of
from aos.attack.live import Stolen
from aos.attack.table import ACCEPTED
from aos.core import draw, hashes
from aos.core.clock import DISPATCHER, VectorClock
from aos.core.encoding import b64u_decode
from aos.core.envelope import Envelope, LinkHeader, LinkSender, open_envelope, seal
from aos.core.signing import address_of
from aos.core.statements import Connect, DrawCall, Signed, VrfClaim, sign, verify_signed
from aos.errors import Unavailable

WAIT_S = 20.0
Key = tuple[bytes, int]
Bend = Callable[[Any], Any]


def same(value: Any) -> Any:
    """Bends nothing."""
    return value


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Guest:
    """One operator. ``node`` is its number, given by the dispatcher when it connects."""

    def __init__(self, url: str, *, network: str, dispatcher: str, keys: Stolen) -> None:
        self.url = url
        self.network = network
        self.dispatcher = dispatcher
        self.keys = keys
        self.node_id = address_of(keys.signer)
        self.node = 0
        self.incarnation = int(time.time()) - 1_577_836_800  # above those of earlier attacks on this network
        self.clock = VectorClock()
        self.closed = ""
        """The dispatcher's reason for closing the link; empty while it is open."""
        self._socket: ClientConnection | None = None
        self._sender: LinkSender | None = None
        self._reader: asyncio.Task[None] | None = None
        self._inbox: dict[tuple[str, Key], dict[str, Any]] = {}
        self._answers: dict[str, asyncio.Future[str | dict[str, Any]]] = {}
        self._changed = asyncio.Condition()

    # --- handshake

    async def connect(
        self,
        *,
        statement: Bend = same,
        statement_key: bytes | None = None,
        envelope_key: bytes | None = None,
        text: Bend = same,
    ) -> str:
        """Shake hands; ``accepted``, or the code that the dispatcher closed with.

        ``statement`` bends the connect statement before it is signed with ``statement_key``; ``text`` bends the frame sealed with
        ``envelope_key``.
        """
        await self.leave()
        self._inbox.clear()  # what is not done is offered again
        self.incarnation += 1
        url = self.url.replace("http", "ws", 1) + "/ws/operator"
        socket = await connect(url, proxy=None, compression=None, max_size=2 << 20)
        try:
            opening = open_envelope(await socket.recv(), expected_address=self.dispatcher)
            challenge: Any = opening.params[0]
            nonce, own = b64u_decode(challenge["nonce"]), secrets.token_bytes(32)
            said: Connect = statement(
                Connect(
                    purpose="operator-link",
                    network=self.network,
                    dispatcher=self.dispatcher,
                    origin=origin_of(self.url),
                    node_id=self.node_id,
                    dispatcher_nonce=nonce,
                    operator_nonce=own,
                    incarnation=self.incarnation,
                    time=now_ms(),
                )
            )
            signed = sign(statement_key or self.keys.signer, said)
            await socket.send(
                text(
                    seal(
                        envelope_key or self.keys.signer, id="c", method="connect", params=[signed.to_json()]
                    )
                )
            )
            answer = open_envelope(await socket.recv(), expected_address=self.dispatcher)
        except ConnectionClosed as error:
            return _reason(error)
        result: Any = answer.result
        self.node = result["ok"]["node"]
        self._socket, self.closed = socket, ""
        self._sender = LinkSender(
            network=self.network,
            to=self.dispatcher,
            session=hashes.session_id(nonce, own),
            incarnation=self.incarnation,
        )
        self._reader = asyncio.create_task(self._read(socket))
        return ACCEPTED

    async def leave(self) -> None:
        """Close the link, if it is open."""
        reader, self._reader = self._reader, None
        if self._socket is not None:
            await self._socket.close()
            self._socket = None
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, socket: ClientConnection) -> None:
        try:
            while True:
                await self._take(open_envelope(await socket.recv(), expected_address=self.dispatcher))
        except ConnectionClosed as error:
            self.closed = _reason(error)
        finally:
            for future in self._answers.values():
                if not future.done():
                    future.set_result(self.closed or "link.closed")
            async with self._changed:
                self._changed.notify_all()

    async def _take(self, envelope: Envelope) -> None:
        header = LinkHeader.decode(envelope.params[-1])
        self.clock = self.clock.merge(VectorClock({DISPATCHER: header.clock[DISPATCHER]}))
        if envelope.result is not None:
            future = self._answers.pop(envelope.id, None)
            if future is not None and not future.done():
                future.set_result(envelope.result)  # type: ignore[arg-type]
            return
        body: Any = envelope.params[0]
        if envelope.method != "dispute":  # a hint, which guests leave alone: they defend nothing
            async with self._changed:
                self._inbox[envelope.method, _key_of(envelope.method, body)] = body
                self._changed.notify_all()
        await self._send(envelope.id, envelope.method, [], {"ok": {}})

    # --- messages

    def tick(self) -> dict[str, str]:
        """The clock of one more signed statement or message."""
        self.clock = self.clock.tick(self.node)
        return self.clock.to_json()

    async def _send(
        self,
        request_id: str,
        method: str,
        params: list[Any],
        result: Any,
        *,
        header: Bend = same,
        text: Bend = same,
        key: bytes | None = None,
    ) -> str:
        """Send one frame; returns its text."""
        sender, socket = self._sender, self._socket
        if sender is None or socket is None:
            raise Unavailable("link.closed", "the guest has no link")
        made = header(sender.header(clock=VectorClock.decode(self.tick()), time_ms=now_ms()))
        frame = str(
            seal(
                key or self.keys.signer,
                id=request_id,
                method=method,
                params=[*params, made.to_json()],
                result=result,
            )
        )
        self._sender = sender.sent(frame)
        with contextlib.suppress(ConnectionClosed):
            await socket.send(text(frame))
        return frame

    async def call(
        self, method: str, body: Any, *, header: Bend = same, text: Bend = same, key: bytes | None = None
    ) -> str:
        """Send a request and wait: ``accepted``, the code of the refusal, or the code that the link was closed with."""
        answer = await self.ask(method, body, header=header, text=text, key=key)
        if isinstance(answer, str):
            return answer
        return ACCEPTED if "ok" in answer else str(answer["error"]["code"])

    async def ask(
        self, method: str, body: Any, *, header: Bend = same, text: Bend = same, key: bytes | None = None
    ) -> str | dict[str, Any]:
        """As ``call``, and the whole ``result``."""
        if self.closed:
            return self.closed
        request_id = secrets.token_hex(8)
        future: asyncio.Future[str | dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[request_id] = future
        await self._send(request_id, method, [body], None, header=header, text=text, key=key)
        async with asyncio.timeout(WAIT_S):
            return await future

    async def raw(self, text: str) -> str:
        """Send a frame of any kind; the code that the link is closed with."""
        if self._socket is None:
            raise Unavailable("link.closed", "the guest has no link")
        await self._socket.send(text)
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: bool(self.closed))
        return self.closed

    async def wait(self, method: str, key: Key) -> dict[str, Any]:
        """The dispatcher's request of this method about this run. Raises Unavailable ``link.closed``."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: (method, key) in self._inbox or bool(self.closed))
        if (method, key) not in self._inbox:
            raise Unavailable("link.closed", f"the dispatcher closed the link: {self.closed}")
        return self._inbox[method, key]

    def has(self, method: str, key: Key) -> bool:
        return (method, key) in self._inbox

    # --- the draw

    async def call_of(self, key: Key) -> Signed[DrawCall]:
        """The draw call of a run, once it has come."""
        body = await self.wait("draw_call", key)
        return verify_signed(DrawCall, body["draw_call"], address=self.dispatcher)

    def claim(self, call: Signed[DrawCall], **changes: Any) -> VrfClaim:
        """An honest claim, with ``changes``."""
        return replace(draw.make_claim(call, node_id=self.node_id, vrf_seed=self.keys.vrf), **changes)

    async def send_claim(self, claim: VrfClaim, *, key: bytes | None = None) -> str:
        """Sign and send a claim."""
        return await self.call("vrf_claim", {"claim": sign(key or self.keys.signer, claim).to_json()})


def _key_of(method: str, body: Any) -> Key:
    if method == "dispatch_job":
        return hashes.job_ref(body["job_id"]), body["attempt"]
    inner = next((body[name]["statement"] for name in ("draw_call", "commit_set") if name in body), body)
    return b64u_decode(inner["job_ref"]), inner["attempt"]


def _reason(error: ConnectionClosed) -> str:
    return (error.rcvd.reason if error.rcvd else "") or "link.closed"
