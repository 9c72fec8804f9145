"""Operators' links at a real dispatcher process (06, "Link"): who holds connections open or floods them keeps nobody else out."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack

import httpx
import pytest
from peers.dispatcher_process import DispatcherProcess, Founded, found
from peers.engine_case import NETWORK, secret
from peers.hub_peer import OperatorPeer
from websockets.asyncio.client import connect

from aos.adapters.causal_clock import CausalClock, next_incarnation
from aos.adapters.embedded.postgres import EmbeddedPostgres
from aos.adapters.link import ClientWire, Link, open_link, origin_of
from aos.core.clock import ClockState, VectorClock
from aos.core.encoding import JsonValue
from aos.core.signing import address_of
from aos.dispatcher.link_server import MAX_UNAUTHENTICATED
from aos.errors import AOSError

DISPATCHER = address_of(secret("signer.key"))
_counts = itertools.count(100_000, 100_000)


@pytest.fixture(scope="module")
def founded(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Founded]:
    name = "test_dispatcher_links"
    yield found(tmp_path_factory.mktemp("links"), postgres.create_database(name))
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def dispatcher(founded: Founded) -> Iterator[DispatcherProcess]:
    process = founded.process()
    try:
        yield process.start()
    finally:
        process.stop()


async def dial(dispatcher: DispatcherProcess, operator: OperatorPeer) -> Link:
    incarnation = next_incarnation(0)

    async def save(state: ClockState) -> None:
        return None

    async def open_clock(node: int) -> CausalClock:
        # A count above all that this operator has signed before, as its stored state would hold.
        stored = ClockState(node=node, incarnation=1, clock=VectorClock({node: next(_counts)}))
        return await CausalClock.open(node, stored, save, incarnation=incarnation)

    async def handle(method: str, body: JsonValue) -> dict[str, object]:
        return {}

    link, _ = await open_link(
        await ClientWire.dial(dispatcher.link_url),
        private_key=operator.signer,
        network=NETWORK,
        dispatcher=DISPATCHER,
        origin=origin_of(dispatcher.url),
        incarnation=incarnation,
        open_clock=open_clock,
        handle=handle,
    )
    return link


HEARTBEAT = {"capacity": 1, "running": 0, "draining": False}


async def test_silent_connections_do_not_keep_an_operator_out(
    dispatcher: DispatcherProcess, founded: Founded
) -> None:
    async with AsyncExitStack() as stack:
        silent = [
            await stack.enter_async_context(connect(dispatcher.link_url, proxy=None))
            for _ in range(MAX_UNAUTHENTICATED)
        ]
        link = await dial(dispatcher, founded.operators[0])
        running = asyncio.create_task(link.run())
        assert await link.request("heartbeat", dict(HEARTBEAT)) == {}
        await silent[0].wait_closed()
        assert silent[0].close_reason == "link.busy"  # the oldest
        assert silent[-1].close_reason is None
        await link.close(1000, "")
        await asyncio.gather(running, return_exceptions=True)


async def test_an_operator_that_floods_its_link_keeps_nobody_waiting(
    dispatcher: DispatcherProcess, founded: Founded
) -> None:
    flooder, other = [await dial(dispatcher, operator) for operator in founded.operators]
    running = [asyncio.create_task(link.run()) for link in (flooder, other)]
    flood = [asyncio.create_task(flooder.request("heartbeat", dict(HEARTBEAT))) for _ in range(3_000)]
    slowest = 0.0
    async with httpx.AsyncClient(base_url=dispatcher.url, trust_env=False, timeout=60) as http:
        while not all(task.done() for task in flood):
            begun = asyncio.get_running_loop().time()
            assert (await http.get("/health")).status_code == 200
            slowest = max(slowest, asyncio.get_running_loop().time() - begun)
            assert await other.request("heartbeat", dict(HEARTBEAT)) == {}
    outcomes = await asyncio.gather(*flood, return_exceptions=True)
    assert all(outcome == {} or isinstance(outcome, AOSError) for outcome in outcomes)
    if "AOS_SHOW" in os.environ:
        print(f"slowest /health during the flood: {slowest * 1000:.0f} ms")
    for link in (flooder, other):
        await link.close(1000, "")
    await asyncio.gather(*running, return_exceptions=True)
