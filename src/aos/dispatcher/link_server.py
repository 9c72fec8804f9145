"""The operators' WebSocket (docs/spec/06-network.md, "Link"): handshake, one live session an operator, requests both ways.

Checks come in this order: sizes, connection, membership, signature; what a message says is ``messages``'. A second authenticated
connection of an operator replaces its first. Connections that have not proved who they are are few and short-lived.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from fastapi import WebSocket, WebSocketDisconnect

from aos.adapters.causal_clock import CausalClock
from aos.adapters.link import Challenge, Link, LinkNames
from aos.core.codec import encode
from aos.core.encoding import b64u_encode
from aos.core.envelope import MAX_SKEW_MS, open_envelope, seal
from aos.core.hashes import session_id
from aos.core.statements import Connect, check_signed, read_signed
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.refusals import place
from aos.dispatcher.registry import Registry, now_ms
from aos.errors import AOSError, InvalidMessage, Unavailable, VerificationError

log = structlog.get_logger("aos.dispatcher")

MAX_UNAUTHENTICATED = 64
HANDSHAKE_S = 10.0
SEND_S = 20.0
MAX_HANDSHAKE_BYTES = 16_384


class ServerWire:
    """A WebSocket that an operator dialled."""

    def __init__(self, socket: WebSocket, *, send_s: float = SEND_S) -> None:
        self._socket = socket
        self._send_s = send_s

    async def send(self, text: str) -> None:
        """Raises Unavailable ``link.closed``; ``link.stalled`` where the operator does not read."""
        try:
            async with asyncio.timeout(self._send_s):
                await self._socket.send_text(text)
        except TimeoutError as error:
            raise Unavailable("link.stalled", "the operator does not read from its link") from error
        except (WebSocketDisconnect, RuntimeError) as error:
            raise Unavailable("link.closed", "the operator closed the link") from error

    async def receive(self) -> str:
        try:
            frame = await self._socket.receive()
        except (WebSocketDisconnect, RuntimeError) as error:
            raise Unavailable("link.closed", "the operator closed the link") from error
        if frame["type"] == "websocket.disconnect":
            raise Unavailable("link.closed", "the operator closed the link")
        text = frame.get("text")
        if not isinstance(text, str):
            raise InvalidMessage("link.binary", "frames on the link are text")
        return text

    async def close(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(self._send_s):
                await self._socket.close(code, reason)
        except TimeoutError as error:
            raise Unavailable("link.stalled", "the operator does not read from its link") from error
        except (WebSocketDisconnect, RuntimeError) as error:
            raise Unavailable("link.closed", "the link was closed already") from error


class LinkServer:
    """All live links of a dispatcher; the run engine's ``Hub``."""

    def __init__(self, config: DispatcherConfig, registry: Registry, clock: CausalClock) -> None:
        self._config = config
        self._registry = registry
        self._clock = clock
        self._links: dict[str, Link] = {}
        self._handshakes: dict[asyncio.Task[tuple[str, Link]], None] = {}  # oldest first
        self._handle: Callable[[str, str, object], Awaitable[dict[str, Any]]] | None = None
        self._connected: Callable[[str], None] = lambda _: None

    def attach(
        self,
        handle: Callable[[str, str, object], Awaitable[dict[str, Any]]],
        connected: Callable[[str], None],
    ) -> None:
        """Say who handles requests, and who is told of new links."""
        self._handle, self._connected = handle, connected

    def connected(self) -> frozenset[str]:
        return frozenset(self._links)

    async def request(self, node_id: str, method: str, body: dict[str, Any]) -> dict[str, Any]:
        link = self._links.get(node_id)
        if link is None:
            raise Unavailable("link.closed", "the operator is not connected")
        return await link.request(method, body)

    async def close(self) -> None:
        """Close every link; operators come back by themselves."""
        await asyncio.gather(*(link.close(1012, "server.restart") for link in list(self._links.values())))

    async def serve(self, socket: WebSocket) -> None:
        """One connection, from accept to its end.

        Where too many have not proved who they are, the oldest of them goes: a handshake takes moments, so whoever holds
        connections open without a word cannot keep operators out.
        """
        if self._handle is None:
            await socket.close(1013, "link.busy")
            return
        await socket.accept()
        wire = ServerWire(socket)
        handshake = asyncio.create_task(self._handshake(wire))
        self._handshakes[handshake] = None
        if len(self._handshakes) > MAX_UNAUTHENTICATED:
            next(iter(self._handshakes)).cancel()
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await asyncio.wait((handshake,))
            node_id, link = handshake.result()
        except TimeoutError:
            await _refuse(wire, "link.timeout")
            return
        except asyncio.CancelledError:
            if not handshake.cancelled():
                raise
            await _refuse(wire, "link.busy")
            return
        except AOSError as error:
            log.warning("link.refused", code=error.code, message=error.message)
            await _refuse(wire, error.code)
            return
        finally:
            handshake.cancel()
            self._handshakes.pop(handshake, None)
        await self._run(node_id, link)

    async def _run(self, node_id: str, link: Link) -> None:
        previous = self._links.get(node_id)
        self._links[node_id] = link
        if previous is not None:
            await previous.close(4409, "link.replaced")
        log.info("link.open", node=node_id, links=len(self._links))
        running = asyncio.create_task(link.run())
        self._connected(node_id)
        try:
            await running
        except Unavailable as error:
            log.info("link.closed", node=node_id, code=error.code)
        except AOSError as error:
            log.warning("link.refused", node=node_id, code=error.code, message=error.message)
        finally:
            running.cancel()
            if self._links.get(node_id) is link:
                del self._links[node_id]

    async def _handshake(self, wire: ServerWire) -> tuple[str, Link]:
        key, network, own = self._config.keys.signer, self._config.network, self._config.keys.address
        # 1. The challenge.
        nonce = secrets.token_bytes(32)
        challenge = Challenge(
            purpose="operator-link", network=network, dispatcher=own, nonce=nonce, time=now_ms()
        )
        await wire.send(
            seal(key, id=secrets.token_hex(16), method="connect_challenge", params=[encode(challenge)])
        )
        # 2. Size, then what it says, then membership, then the signatures.
        text = await wire.receive()
        if len(text) > MAX_HANDSHAKE_BYTES:
            raise InvalidMessage("encoding.too_large", "the handshake is too large")
        envelope = open_envelope(text, expected_address=None)
        if envelope.method != "connect" or len(envelope.params) != 1 or envelope.result is not None:
            raise InvalidMessage("link.connect", "the first message must be connect", field="method")
        connect = read_signed(Connect, envelope.params[0], where="connect")
        said = connect.statement
        if (said.network, said.dispatcher) != (network, own):
            raise VerificationError("link.foreign_network", "connect is for another network or dispatcher")
        if said.origin not in self._config.origins:
            raise VerificationError(
                "link.wrong_origin", f"connect names the origin {said.origin}, which is not ours"
            )
        if said.dispatcher_nonce != nonce:
            raise VerificationError("link.replayed", "connect does not answer this connection's challenge")
        if abs(said.time - now_ms()) > MAX_SKEW_MS:
            raise VerificationError("link.stale", "connect is stale, or one of the clocks is wrong")
        node = await self._registry.member(said.node_id)
        if node is None:
            raise VerificationError("link.not_registered", f"{said.node_id} is not in the registry")
        if envelope.address.lower() != said.node_id:
            raise VerificationError("link.wrong_sender", "connect is sealed by somebody else than it names")
        check_signed(connect, address=said.node_id)
        # 3. The session.
        session = session_id(nonce, said.operator_nonce)
        snapshot = await self._registry.in_force(self._registry.epoch())
        ok = {
            "session": b64u_encode(session),
            "node": node,
            "incarnation": self._clock.incarnation,
            "network": self._registry.network_file(),
            "snapshot": snapshot.signed.to_json(),
        }
        await wire.send(seal(key, id=envelope.id, method="connect", params=[], result={"ok": ok}))
        names = LinkNames(
            network=network,
            own_address=own,
            peer_address=said.node_id,
            peer_node=node,
            peer_incarnation=said.incarnation,
            session=session,
            relayed=False,
        )
        assert self._handle is not None  # noqa: S101  serve has looked
        handle, node_id = self._handle, said.node_id

        async def answer(method: str, body: object) -> dict[str, Any]:
            try:
                return await handle(node_id, method, body)
            except AOSError:
                raise
            except Exception as error:
                # One message that we mishandle must not take the link, and with it every other job, down.
                log.error("message.defect", node=node_id, method=method, **place(error))
                raise Unavailable("internal", "the dispatcher could not handle this message") from error

        return node_id, Link(wire, names, private_key=key, clock=self._clock, handle=answer)


async def _refuse(wire: ServerWire, code: str) -> None:
    try:
        await wire.close(4403, code[:120])
    except Unavailable:
        return
