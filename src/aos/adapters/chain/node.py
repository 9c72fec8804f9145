"""One JSON-RPC node of an EVM chain. It is believed about nothing that can be checked: chain id, form, sizes, final blocks.

A node that lies consistently about a final block's contents cannot be caught without a light client: run your own
(docs/chain.md).
"""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from aos.core.encoding import check_nesting
from aos.errors import ConfigError, InvalidMessage, RuleViolation, Unavailable, VerificationError

MAX_ANSWER_BYTES = 8 << 20
MAX_NESTED = 64
WITHIN_S = 20.0
BATCH = 100
_QUANTITY = re.compile(r"0x(0|[1-9a-f][0-9a-f]{0,63})\Z")
_BYTES = re.compile(r"0x(?:[0-9a-f]{2})*\Z", re.IGNORECASE)
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z")

Tag = Literal["latest", "finalized", "pending"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """``time`` in Unix seconds; hashes 32 bytes."""

    number: int
    hash: bytes
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of a mined transaction. ``created`` is the address of a contract that it deployed."""

    block: int
    block_hash: bytes
    succeeded: bool
    gas_used: int
    created: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """What a contract told in a block, for ``Contract.event``. ``transaction`` is a hash (32 bytes)."""

    block: int
    transaction: bytes
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    """Wei per unit of gas: at most in all, and for the block's maker."""

    max_fee: int
    tip: int


class ChainNode:
    """A node at ``url``, which must be of chain ``chain_id``. Errors never show the URL's path or password: providers put
    keys there.

    Every method raises Unavailable ``chain.unavailable`` (no answer), InvalidMessage ``chain.answer`` (an answer that makes
    no sense).
    """

    def __init__(self, url: str, *, chain_id: int, transport: httpx.AsyncBaseTransport | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                "config.value", "chain_rpc_url must be http://… or https://…", field="chain_rpc_url"
            )
        self.name = parts.hostname + (f":{parts.port}" if parts.port else "")
        self.chain_id = chain_id
        self._http = httpx.AsyncClient(
            timeout=WITHIN_S, trust_env=False, transport=transport, headers={"accept-encoding": "identity"}
        )
        self._url = url

    async def close(self) -> None:
        await self._http.aclose()

    async def check_chain(self) -> None:
        """Raises VerificationError ``chain.id``: this is another chain's node."""
        found = self._quantity(await self._ask("eth_chainId"))
        if found != self.chain_id:
            raise VerificationError(
                "chain.id",
                f"the node {self.name} is of chain {found}, chain {self.chain_id} is configured",
                field="chain_id",
            )

    async def block(self, which: Tag | int) -> Block:
        """Raises Unavailable ``chain.unavailable`` for one that the node does not have."""
        asked = which if isinstance(which, str) else hex(which)
        value = await self._ask("eth_getBlockByNumber", asked, False)
        if value is None:
            raise Unavailable("chain.unavailable", f"the node {self.name} has no block {asked}")
        if not isinstance(value, dict):
            raise self._nonsense()
        block = Block(
            number=self._quantity(value.get("number")),
            hash=self._bytes(value.get("hash"), 32),
            time=self._quantity(value.get("timestamp")),
        )
        if isinstance(which, int) and block.number != which:
            raise self._nonsense()
        return block

    async def calls(self, to: str, calls: Sequence[bytes], *, block: Block) -> list[bytes]:
        """What contract ``to`` answers at exactly this block. A revert is RuleViolation ``chain.reverted``."""
        # By hash: all answers are of one history, whatever is reorganised meanwhile.
        where = {"blockHash": "0x" + block.hash.hex(), "requireCanonical": True}
        asked = [("eth_call", ({"to": to, "data": "0x" + data.hex()}, where)) for data in calls]
        return [self._bytes(value) for value in await self._ask_many(asked)]

    async def code(self, address: str, *, block: Block) -> bytes:
        where = {"blockHash": "0x" + block.hash.hex(), "requireCanonical": True}
        return self._bytes(await self._ask("eth_getCode", address, where))

    async def logs(
        self, address: str, topics: Sequence[bytes | None], *, first: int, last: int
    ) -> list[LogEntry]:
        """What contract ``address`` told under these topics (None: any) in blocks ``first`` to ``last``, oldest first.

        A node can leave some out unseen: what must be complete is compared with the contract's state.
        """
        try:
            return await self._logs(address, topics, first=first, last=last)
        except (Refused, TooLarge, RuleViolation):
            if first >= last:
                raise
        # Nodes bound what they answer at once, and anybody can make a contract write much.
        middle = (first + last) // 2
        return [
            *await self.logs(address, topics, first=first, last=middle),
            *await self.logs(address, topics, first=middle + 1, last=last),
        ]

    async def _logs(
        self, address: str, topics: Sequence[bytes | None], *, first: int, last: int
    ) -> list[LogEntry]:
        wanted = {
            "address": address,
            "topics": [None if topic is None else "0x" + topic.hex() for topic in topics],
            "fromBlock": hex(first),
            "toBlock": hex(last),
        }
        found = await self._ask("eth_getLogs", wanted)
        if not isinstance(found, list):
            raise self._nonsense()
        entries, places = [], []
        for value in found:
            if not isinstance(value, dict) or not isinstance(listed := value.get("topics"), list):
                raise self._nonsense()
            entry = LogEntry(
                block=self._quantity(value.get("blockNumber")),
                transaction=self._bytes(value.get("transactionHash"), 32),
                topics=tuple(self._bytes(topic, 32) for topic in listed[:4]),
                data=self._bytes(value.get("data")),
            )
            asked = all(topic in (None, there) for topic, there in zip(topics, entry.topics, strict=False))
            if not first <= entry.block <= last or len(entry.topics) < len(topics) or not asked:
                raise self._nonsense()
            if str(value.get("address")).lower() != address.lower() or value.get("removed"):
                raise self._nonsense()
            entries.append(entry)
            places.append((entry.block, self._quantity(value.get("logIndex"))))
        if places != sorted(set(places)):
            raise self._nonsense()
        return entries

    async def nonce(self, address: str, which: Tag | int) -> int:
        """How many transactions of this account there are up to that block."""
        asked = which if isinstance(which, str) else hex(which)
        return self._quantity(await self._ask("eth_getTransactionCount", address, asked))

    async def balance(self, address: str) -> int:
        """Wei, in the newest block."""
        return self._quantity(await self._ask("eth_getBalance", address, "latest"))

    async def fees(self) -> Fees:
        """What a transaction should offer now: twice the base fee, so that it stays valid while fees double."""
        latest = await self._ask("eth_getBlockByNumber", "latest", False)
        base = self._quantity(latest.get("baseFeePerGas") if isinstance(latest, dict) else None)
        tip = self._quantity(await self._ask("eth_maxPriorityFeePerGas"))
        return Fees(max_fee=2 * base + tip, tip=tip)

    async def estimate(self, *, sender: str, to: str | None, data: bytes, value: int) -> int:
        """Gas that the transaction would take now. Raises RuleViolation ``chain.reverted``, ``chain.refused``."""
        fields = {"from": sender, "data": "0x" + data.hex(), "value": hex(value)}
        if to is not None:
            fields["to"] = to
        return self._quantity(await self._ask("eth_estimateGas", fields))

    async def send(self, raw: bytes) -> None:
        """Hand over a signed transaction. Raises RuleViolation ``chain.refused`` with what the node says."""
        await self._ask("eth_sendRawTransaction", "0x" + raw.hex())

    async def receipt(self, transaction: bytes) -> Receipt | None:
        """None: not mined, as far as this node knows."""
        value = await self._ask("eth_getTransactionReceipt", "0x" + transaction.hex())
        if value is None:
            return None
        if not isinstance(value, dict) or self._bytes(value.get("transactionHash"), 32) != transaction:
            raise self._nonsense()
        created = value.get("contractAddress")
        if created is not None and (not isinstance(created, str) or not _ADDRESS.match(created)):
            raise self._nonsense()
        return Receipt(
            block=self._quantity(value.get("blockNumber")),
            block_hash=self._bytes(value.get("blockHash"), 32),
            succeeded=self._quantity(value.get("status")) == 1,
            gas_used=self._quantity(value.get("gasUsed")),
            created=created.lower() if isinstance(created, str) else None,
        )

    # ---

    async def _ask(self, method: str, *params: Any) -> Any:
        return (await self._ask_many([(method, params)]))[0]

    async def _ask_many(self, asked: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        found: list[Any] = []
        for begin in range(0, len(asked), BATCH):
            part = asked[begin : begin + BATCH]
            body = [
                {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}
                for number, (method, params) in enumerate(part)
            ]
            answer = await self._post(body if len(body) > 1 else body[0])
            answers = answer if isinstance(answer, list) else [answer]
            by_id = {item.get("id"): item for item in answers if isinstance(item, dict)}
            if len(by_id) != len(part) or set(by_id) != set(range(len(part))):
                raise self._nonsense()
            found += [self._result(by_id[number]) for number in range(len(part))]
        return found

    async def _post(self, body: Any) -> Any:
        data = bytearray()
        try:
            async with (
                asyncio.timeout(WITHIN_S),
                self._http.stream("POST", self._url, json=body) as answer,
            ):
                async for part in answer.aiter_raw():
                    data += part
                    if len(data) > MAX_ANSWER_BYTES:
                        raise TooLarge(
                            "chain.answer",
                            f"the node {self.name} gives an answer of more than {MAX_ANSWER_BYTES} bytes",
                        )
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise Unavailable(
                "chain.unavailable", f"the node {self.name} does not answer: {type(error).__name__}"
            ) from None
        if answer.status_code != 200:
            # Some providers say by these that the answer would be too large.
            kind = Refused if answer.status_code in (400, 413) else Unavailable
            raise kind(
                "chain.unavailable", f"the node {self.name} answers with HTTP status {answer.status_code}"
            )
        try:
            check_nesting(bytes(data), MAX_NESTED)
            return json.loads(data)
        except (ValueError, InvalidMessage):
            raise self._nonsense() from None

    def _result(self, answer: dict[str, Any]) -> Any:
        error = answer.get("error")
        if error is None:
            if "result" not in answer:
                raise self._nonsense()
            return answer["result"]
        if not isinstance(error, dict):
            raise self._nonsense()
        said = str(error.get("message"))[:200]
        data = error.get("data")
        if isinstance(data, str) and _BYTES.match(data) and ("revert" in said or error.get("code") == 3):
            raise Reverted(bytes.fromhex(data[2:]))
        # -32000 is the client's word for a transaction or call that it will not take; others are its own trouble.
        if error.get("code") in (-32000, -32003, 3):
            raise RuleViolation("chain.refused", f"the node {self.name} refuses: {said}")
        raise Refused("chain.unavailable", f"the node {self.name} refuses: {said}")

    def _quantity(self, value: Any) -> int:
        if not isinstance(value, str) or not _QUANTITY.match(value):
            raise self._nonsense()
        return int(value, 16)

    def _bytes(self, value: Any, length: int | None = None) -> bytes:
        if not isinstance(value, str) or not _BYTES.match(value):
            raise self._nonsense()
        data = bytes.fromhex(value[2:])
        if length is not None and len(data) != length:
            raise self._nonsense()
        return data

    def _nonsense(self) -> InvalidMessage:
        return InvalidMessage("chain.answer", f"the node {self.name} gives an answer that makes no sense")


class Refused(Unavailable):
    """The node is there, and does not answer this."""


class TooLarge(InvalidMessage):
    """An answer that is longer than any that is read."""


class Reverted(RuleViolation):
    """A contract refused a call, with the data of its error."""

    def __init__(self, data: bytes) -> None:
        super().__init__("chain.reverted", "the contract refuses the call")
        self.data = data


def now_s() -> int:
    """Unix time in seconds."""
    return int(time.time())
