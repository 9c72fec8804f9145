"""One authenticated link between dispatcher and operator, for either side (docs/spec/06-network.md,
"Link").

``Link`` seals and opens envelopes with their headers, pairs answers with requests by id, and hands requests
to a handler in the order in which they came; it knows no method: what a message means is the app's. A link
lives as long as its connection: what must survive is offered again by whoever still needs an answer.
``open_link`` is an operator's handshake.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from aos.adapters.causal_clock import CausalClock
from aos.core.clock import DISPATCHER, MAX_NODE, MessageFacts
from aos.core.codec import Address, Bytes32, NetworkId, TimeMs, decode
from aos.core.encoding import Fields, JsonValue
from aos.core.envelope import (
    MAX_ENVELOPE_BYTES,
    MAX_SKEW_MS,
    Envelope,
    LinkHeader,
    LinkSender,
    LinkSession,
    open_envelope,
    seal,
)
from aos.core.hashes import session_id
from aos.core.signing import address_of
from aos.core.statements import Connect, sign
from aos.errors import AOSError, InvalidMessage, RuleViolation, Unavailable, VerificationError

MAX_UNHANDLED = 256
MAX_OUTSTANDING = 128
REQUEST_TIMEOUT_S = 30.0

JsonObject = dict[str, Any]
RequestHandler = Callable[[str, JsonValue], Awaitable[JsonObject]]
"""Takes method and body, returns the members of ``ok``; an AOSError becomes the answer's ``error``."""


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """The body of ``connect_challenge``: the dispatcher's nonce for one connection."""

    purpose: Literal["operator-link"]
    network: NetworkId
    dispatcher: Address
    nonce: Bytes32
    time: TimeMs


class Wire(Protocol):
    """A connection that carries text frames. ``receive`` and ``send`` raise Unavailable ``link.closed`` at
    its end.
    """

    async def send(self, text: str) -> None: ...

    async def receive(self) -> str: ...

    async def close(self, code: int, reason: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkNames:
    """Who is on which end. ``relayed``: the peer holds messages of others that this side does not (True for
    an operator, whose peer is the dispatcher).
    """

    network: str
    own_address: str
    peer_address: str
    peer_node: int
    peer_incarnation: int
    session: bytes
    relayed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outgoing:
    id: str
    method: str
    params: tuple[JsonObject, ...]
    result: JsonObject | None


class Link:
    """An established session. ``run`` reads until the end; ``request`` may be called from any task
    meanwhile.

    A handler must not wait for an answer of the same peer to something that the peer answers only after
    this request.
    """

    def __init__(
        self,
        wire: Wire,
        names: LinkNames,
        *,
        private_key: bytes,
        clock: CausalClock,
        handle: RequestHandler,
        wall_ms: Callable[[], int] = now_ms,
    ) -> None:
        self.names = names
        self._wire = wire
        self._key = private_key
        self._clock = clock
        self._handle = handle
        self._wall_ms = wall_ms
        self._sender = LinkSender(
            network=names.network, to=names.peer_address, session=names.session, incarnation=clock.incarnation
        )
        self._receiver = LinkSession(
            network=names.network,
            own_address=names.own_address,
            peer_address=names.peer_address,
            session=names.session,
            incarnation=names.peer_incarnation,
        )
        self._outbox: asyncio.Queue[_Outgoing] = asyncio.Queue()
        self._waiting: dict[str, tuple[str, asyncio.Future[JsonObject]]] = {}
        self._window = asyncio.Semaphore(MAX_OUTSTANDING)
        self._inbox: asyncio.Queue[Envelope] = asyncio.Queue()
        self._unanswered = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    async def request(
        self, method: str, body: JsonObject, *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> JsonObject:
        """Send a request and return the members of its ``ok``. At most ``MAX_OUTSTANDING`` are under way, others wait.

        Raises RuleViolation with the peer's own code where it refuses; Unavailable ``link.closed``,
        ``link.timeout``.
        """
        async with self._window:
            return await self._request(method, body, timeout_s)

    async def _request(self, method: str, body: JsonObject, timeout_s: float) -> JsonObject:
        if self._closed:
            raise Unavailable("link.closed", "the link is closed")
        request_id = secrets.token_hex(16)
        future: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = (method, future)
        self._outbox.put_nowait(_Outgoing(id=request_id, method=method, params=(body,), result=None))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise Unavailable("link.timeout", f"no answer to {method} within {timeout_s:g} s") from None
        finally:
            del self._waiting[request_id]

    async def run(self) -> None:
        """Read and handle until the link ends.

        Raises Unavailable ``link.closed`` where the connection ended, InvalidMessage or VerificationError
        where the peer's message is refused; the link is closed with the refusal's code by then.
        """
        tasks = [asyncio.create_task(step()) for step in (self._read, self._work, self._write)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await next(iter(done))
        except (InvalidMessage, VerificationError) as error:
            await self.close(4400, error.code)
            raise
        finally:
            self._closed = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._fail_waiting()
            await self.close(1000, "")

    async def close(self, code: int, reason: str) -> None:
        """Close the connection; ``run`` ends. Safe to call again."""
        self._closed = True
        try:
            await self._wire.close(code, reason[:120])
        except Unavailable:
            return

    def open(self, text: str) -> tuple[Envelope, LinkHeader]:
        """Verify one received frame against this session and count it. Raises as it is refused."""
        envelope = open_envelope(text, expected_address=self.names.peer_address)
        is_answer = envelope.result is not None
        if len(envelope.params) != (1 if is_answer else 2):
            raise InvalidMessage("link.params", "params hold the body and the header", field="params")
        header = LinkHeader.decode(envelope.params[-1])
        receiver = self._receiver.accept(envelope, header, now_ms=self._wall_ms())
        facts = MessageFacts.of(
            sender=self.names.peer_node,
            incarnation=header.incarnation,
            digest=envelope.signed_digest,
            clock=header.clock,
        )
        self._clock.observe(facts, relayed=self.names.relayed)
        self._receiver = receiver
        return envelope, header

    async def _read(self) -> None:
        while True:
            envelope, _ = self.open(await self._wire.receive())
            if envelope.result is not None:
                self._resolve(envelope)
            elif self._unanswered >= MAX_UNHANDLED:
                raise VerificationError("link.flood", "too many requests without waiting for their answers")
            else:
                self._unanswered += 1
                self._inbox.put_nowait(envelope)
            await asyncio.sleep(
                0
            )  # frames may be there already: one who floods must not keep the others waiting

    async def _work(self) -> None:
        while True:
            envelope = await self._inbox.get()
            try:
                result: JsonObject = {"ok": await self._handle(envelope.method, envelope.params[0])}
            except AOSError as error:
                result = {"error": {"code": error.code, "message": error.message}}
            answer = _Outgoing(id=envelope.id, method=envelope.method, params=(), result=result)
            self._outbox.put_nowait(answer)

    def _resolve(self, envelope: Envelope) -> None:
        method, future = self._waiting.get(envelope.id, ("", None))
        if future is None or future.done():
            return  # its sender no longer waits
        if envelope.method != method:
            raise InvalidMessage(
                "link.answer", "an answer names another method than its request", field="method"
            )
        ok, error = _read_result(envelope.result)
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(ok)

    async def _write(self) -> None:
        # The only sender: counter, predecessor and clock of a session rise in the order in which frames
        # leave,
        # and no cancelled caller can leave a gap.
        while True:
            item = await self._outbox.get()
            clock = await self._clock.tick()
            header = self._sender.header(clock=clock, time_ms=self._wall_ms()).to_json()
            params = [*item.params, header]
            try:
                text = seal(self._key, id=item.id, method=item.method, params=params, result=item.result)
            except InvalidMessage as error:
                _, future = self._waiting.get(item.id, ("", None))
                if future is None:
                    raise
                if not future.done():
                    future.set_exception(error)
                continue
            self._sender = self._sender.sent(text)
            await self._wire.send(text)
            if item.result is not None:  # a peer that takes no answers may not ask for ever more of them
                self._unanswered -= 1

    def _fail_waiting(self) -> None:
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable("link.closed", "the link closed before the answer came"))


def _read_result(result: JsonValue) -> tuple[JsonObject, AOSError | None]:
    if isinstance(result, dict) and len(result) == 1:
        ok, error = result.get("ok"), result.get("error")
        if isinstance(ok, dict):
            return ok, None
        if (
            isinstance(error, dict)
            and isinstance(error.get("code"), str)
            and isinstance(error.get("message"), str)
        ):
            return {}, RuleViolation(str(error["code"])[:64], str(error["message"])[:500])
    raise InvalidMessage(
        "link.answer", 'an answer is {"ok": …} or {"error": {"code", "message"}}', field="result"
    )


async def open_link(
    wire: Wire,
    *,
    private_key: bytes,
    network: str,
    dispatcher: str,
    origin: str,
    incarnation: int,
    open_clock: Callable[[int], Awaitable[CausalClock]],
    handle: RequestHandler,
    wall_ms: Callable[[], int] = now_ms,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> tuple[Link, JsonObject]:
    """An operator's side of the handshake on a fresh connection: the link, and the dispatcher's ``ok``.

    ``dispatcher`` is the address from the operator's own configuration; ``origin`` is ``origin_of`` the
    dialled URL. ``incarnation`` is the one that the operator begins; ``open_clock`` gives its clock, in
    that incarnation, once the dispatcher has named its node number. ``run`` the link afterwards. Raises
    Unavailable ``link.closed``, ``link.timeout``; RuleViolation with the dispatcher's code where it
    refuses; InvalidMessage, VerificationError where its messages are not believed.
    """
    dispatcher = dispatcher.lower()
    try:
        async with asyncio.timeout(timeout_s):
            # 1
            opening = open_envelope(await wire.receive(), expected_address=dispatcher)
            if (
                opening.method != "connect_challenge"
                or len(opening.params) != 1
                or opening.result is not None
            ):
                raise InvalidMessage(
                    "link.challenge", "the dispatcher did not begin with its challenge", field="method"
                )
            challenge = decode(Challenge, opening.params[0], where="challenge")
            if (challenge.network, challenge.dispatcher) != (network, dispatcher):
                raise VerificationError(
                    "link.foreign_network", "the challenge is of another network or dispatcher"
                )
            if abs(challenge.time - wall_ms()) > MAX_SKEW_MS:
                raise VerificationError("link.stale", "the challenge is stale, or one of the clocks is wrong")
            # 2
            own_nonce = secrets.token_bytes(32)
            own_address = address_of(private_key)
            connect = Connect(
                purpose="operator-link",
                network=network,
                dispatcher=dispatcher,
                origin=origin,
                node_id=own_address,
                dispatcher_nonce=challenge.nonce,
                operator_nonce=own_nonce,
                incarnation=incarnation,
                time=wall_ms(),
            )
            request_id = secrets.token_hex(16)
            await wire.send(
                seal(
                    private_key,
                    id=request_id,
                    method="connect",
                    params=[sign(private_key, connect).to_json()],
                )
            )
            # 3
            answer = open_envelope(await wire.receive(), expected_address=dispatcher)
            ok, error = _read_result(answer.result)
            if error is not None:
                raise error
            if answer.id != request_id or answer.params:
                raise InvalidMessage(
                    "link.answer", "the dispatcher answered something else than connect", field="id"
                )
            fields = Fields(ok, ("session", "node", "incarnation", "network", "snapshot"), path="ok")
            session = session_id(challenge.nonce, own_nonce)
            if fields.b64u("session", 32) != session:
                raise VerificationError("link.wrong_session", "the dispatcher named another session")
            clock = await open_clock(fields.uint("node", MAX_NODE, min_value=2))
            names = LinkNames(
                network=network,
                own_address=own_address,
                peer_address=dispatcher,
                peer_node=DISPATCHER,
                peer_incarnation=fields.uint("incarnation", 2**31, min_value=1),
                session=session,
                relayed=True,
            )
            link = Link(wire, names, private_key=private_key, clock=clock, handle=handle, wall_ms=wall_ms)
            return link, ok
    except TimeoutError:
        raise Unavailable("link.timeout", f"no handshake within {timeout_s:g} s") from None


class ClientWire:
    """A WebSocket that this side dialled."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    @classmethod
    async def dial(cls, url: str, *, timeout_s: float = 10.0) -> "ClientWire":
        """Connect to ``url`` (ws or wss). Raises Unavailable ``link.unreachable``."""
        try:
            connection = await connect(
                url, open_timeout=timeout_s, max_size=MAX_ENVELOPE_BYTES, compression=None, proxy=None
            )
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise Unavailable("link.unreachable", f"no link to {url}: {type(error).__name__}") from error
        return cls(connection)

    async def send(self, text: str) -> None:
        try:
            await self._connection.send(text)
        except ConnectionClosed as error:
            raise _closed(error) from error

    async def receive(self) -> str:
        try:
            frame = await self._connection.recv()
        except ConnectionClosed as error:
            raise _closed(error) from error
        if not isinstance(frame, str):
            raise InvalidMessage("link.binary", "frames on the link are text")
        return frame

    async def close(self, code: int, reason: str) -> None:
        await self._connection.close(code, reason)


def _closed(error: ConnectionClosed) -> Unavailable:
    reason = error.rcvd.reason if error.rcvd else ""
    return Unavailable("link.closed", f"the peer closed the link{': ' + reason if reason else ''}")


def origin_of(url: str) -> str:
    """The origin that ``aos.connect`` names for a dialled URL: ``http(s)://host:port``, ws written as http,
    the port always shown. Raises InvalidMessage ``link.url``.
    """
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    scheme = {"ws": "http", "http": "http", "wss": "https", "https": "https"}.get(parts.scheme)
    try:
        port = parts.port or (443 if scheme == "https" else 80)
    except ValueError:
        scheme = None
    if scheme is None or not parts.hostname:
        raise InvalidMessage("link.url", "not a ws, wss, http or https URL", field="dispatcher_url")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{scheme}://{host}:{port}"
