"""The link's own bounds: what a peer may leave unread or unanswered, and what a full window means."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any

import pytest

from aos.adapters import link as link_module
from aos.adapters.causal_clock import CausalClock
from aos.adapters.link import MAX_OUTSTANDING, MAX_UNHANDLED, Link, LinkNames, now_ms
from aos.core.clock import ClockState
from aos.core.envelope import LinkSender, open_envelope, seal
from aos.core.signing import address_of
from aos.errors import RuleViolation, Unavailable, VerificationError

NETWORK, SESSION = "aos-test", b"\5" * 32
OWN, PEER = b"\1" * 32, b"\2" * 32


class Wire:
    """Frames in memory. ``taking`` False: the peer reads nothing more."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[str | None] = asyncio.Queue()
        self.sent: list[str] = []
        self.taking = asyncio.Event()
        self.taking.set()
        self.closed: tuple[int, str] | None = None
        self._changed = asyncio.Condition()

    async def send(self, text: str) -> None:
        await self.taking.wait()
        self.sent.append(text)
        async with self._changed:
            self._changed.notify_all()

    async def until_sent(self, count: int) -> None:
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: len(self.sent) >= count)

    async def receive(self) -> str:
        text = await self.incoming.get()
        if text is None:
            raise Unavailable("link.closed", "gone")
        return text

    async def close(self, code: int, reason: str) -> None:
        self.closed = self.closed or (code, reason)


async def save(_: ClockState) -> None:
    """The state is kept in memory."""


class Pair:
    """A link and its peer's pen."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.handled = 0
        self._sender = LinkSender(network=NETWORK, to=address_of(OWN), session=SESSION, incarnation=1)
        self._clock: CausalClock

    async def open(self) -> Link:
        self._clock = await CausalClock.open(1, None, save, incarnation=1)
        names = LinkNames(
            network=NETWORK,
            own_address=address_of(OWN),
            peer_address=address_of(PEER),
            peer_node=1,
            peer_incarnation=1,
            session=SESSION,
            relayed=True,
        )
        clock = await CausalClock.open(2, None, save, incarnation=1)
        return Link(self.wire, names, private_key=OWN, clock=clock, handle=self._handle)

    async def _handle(self, method: str, body: Any) -> dict[str, Any]:
        self.handled += 1
        return {}

    async def write(self, method: str, params: list[Any], request_id: str = "", result: Any = None) -> None:
        header = self._sender.header(clock=await self._clock.tick(), time_ms=now_ms()).to_json()
        text = seal(
            PEER,
            id=request_id or secrets.token_hex(8),
            method=method,
            params=[*params, header],
            result=result,
        )
        self._sender = self._sender.sent(text)
        self.wire.incoming.put_nowait(text)


async def test_a_peer_that_reads_no_answers_may_not_ask_for_ever() -> None:
    pair = Pair()
    link = await pair.open()
    pair.wire.taking.clear()
    for _ in range(MAX_UNHANDLED + 1):
        await pair.write("heartbeat", [{}])
    with pytest.raises(VerificationError) as caught:
        await asyncio.wait_for(link.run(), 30)
    assert caught.value.code == "link.flood"
    assert pair.wire.closed == (4400, "link.flood")


async def test_a_peer_that_reads_its_answers_may_ask_as_often_as_it_likes() -> None:
    pair = Pair()
    link = await pair.open()
    running = asyncio.create_task(link.run())
    for count in range(1, 2 * MAX_UNHANDLED + 1):
        await pair.write("heartbeat", [{}])
        if count % MAX_OUTSTANDING == 0:
            await pair.wire.until_sent(count)
    assert pair.handled == 2 * MAX_UNHANDLED
    pair.wire.incoming.put_nowait(None)
    with pytest.raises(Unavailable):
        await running


async def test_more_requests_than_the_window_holds_wait_and_are_all_answered() -> None:
    pair = Pair()
    link = await pair.open()
    running = asyncio.create_task(link.run())
    total = 3 * MAX_OUTSTANDING
    asking = [asyncio.create_task(link.request("draw_call", {"n": n})) for n in range(total)]
    answered = 0
    async with asyncio.timeout(60):
        while answered < total:
            await pair.wire.until_sent(answered + 1)
            assert len(pair.wire.sent) - answered <= MAX_OUTSTANDING
            envelope = open_envelope(pair.wire.sent[answered], expected_address=address_of(OWN))
            await pair.write(envelope.method, [], envelope.id, {"ok": {"n": envelope.params[0]["n"]}})  # type: ignore[index,call-overload]
            answered += 1
        assert [(await task)["n"] for task in asking] == list(range(total))
    pair.wire.incoming.put_nowait(None)
    with pytest.raises(Unavailable):
        await running


async def test_whoever_waits_for_the_window_of_a_link_that_ends_is_told() -> None:
    pair = Pair()
    link = await pair.open()
    running = asyncio.create_task(link.run())
    asking = [asyncio.create_task(link.request("draw_call", {})) for _ in range(MAX_OUTSTANDING + 5)]
    await pair.wire.until_sent(MAX_OUTSTANDING)
    pair.wire.incoming.put_nowait(None)
    with pytest.raises(Unavailable):
        await running
    for outcome in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(outcome, Unavailable)
        assert outcome.code == "link.closed"


async def test_a_peer_that_never_answers_is_given_up_by_name() -> None:
    pair = Pair()
    link = await pair.open()
    running = asyncio.create_task(link.run())
    with pytest.raises(Unavailable) as caught:
        await link.request("heartbeat", {}, timeout_s=0.05)
    assert caught.value.code == "link.timeout"
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_a_refusal_keeps_the_peers_own_code() -> None:
    pair = Pair()
    link = await pair.open()
    running = asyncio.create_task(link.run())
    asking = asyncio.create_task(link.request("job_commit", {}))
    await pair.wire.until_sent(1)
    envelope = open_envelope(pair.wire.sent[0], expected_address=address_of(OWN))
    await pair.write("job_commit", [], envelope.id, {"error": {"code": "commit.late", "message": "too late"}})
    with pytest.raises(RuleViolation) as caught:
        await asking
    assert caught.value.code == "commit.late"
    pair.wire.incoming.put_nowait(None)
    with pytest.raises(Unavailable):
        await running


def test_the_window_is_well_inside_what_the_peer_takes() -> None:
    assert link_module.MAX_OUTSTANDING <= link_module.MAX_UNHANDLED // 2
