"""A real anvil for the adapters' tests, and somebody between it and them who lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
from eth_account import Account
from evm import ETHER, Node

from aos.adapters.chain.node import ChainNode
from aos.adapters.embedded.anvil import CHAIN_ID
from aos.adapters.keystore import new_key

GENUINE = object()
Hook = Callable[[str, list[Any]], Any]
"""``hook(method, params)``: GENUINE passes on the node's own answer; anything else is answered; an exception is raised."""


class Between(httpx.AsyncBaseTransport):
    """Hands requests to the real node, but for what ``hook`` answers. ``asked`` holds every method, in order."""

    def __init__(self) -> None:
        self._real = httpx.AsyncHTTPTransport()
        self.hook: Hook = lambda _, __: GENUINE
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        single = isinstance(body, dict)
        calls = [body] if single else body
        self.asked += [call["method"] for call in calls]
        lies = {call["id"]: self.hook(call["method"], call["params"]) for call in calls}
        real = await self._real.handle_async_request(request)
        answers = json.loads(await real.aread())
        answers = [answers] if single else answers
        for answer in answers:
            lie = lies[answer["id"]]
            if lie is GENUINE:
                continue
            answer.pop("result", None)
            answer.pop("error", None)
            if isinstance(lie, dict) and set(lie) <= {"code", "message", "data"} and "message" in lie:
                answer["error"] = lie
            else:
                answer["result"] = lie
        content = json.dumps(answers[0] if single else answers).encode()
        return httpx.Response(200, stream=httpx.ByteStream(content))

    async def aclose(self) -> None:
        await self._real.aclose()


def connect(url: str, between: Between | None = None, chain_id: int = CHAIN_ID) -> ChainNode:
    return ChainNode(url, chain_id=chain_id, transport=between)


def rich_key(node: Node, ether: int = 100) -> tuple[bytes, str]:
    """A new account of the test's own, with money."""
    key = new_key()
    address = Account.from_key(key).address.lower()
    node.ask("anvil_setBalance", address, hex(ether * ETHER))
    return key, address


def settle(node: Node) -> None:
    """Make everything mined so far final."""
    node.ask("anvil_mine", hex(4))
