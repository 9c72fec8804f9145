"""A play chain as its owner sees it: money for accounts, and what every transaction on it was and cost."""

import json
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from aos.adapters.chain.contracts import Contract, contract

ETHER = 10**18
FINAL_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """One transaction: what it did, who sent it (an address), and its gas."""

    what: str
    sender: str
    gas: int
    succeeded: bool


class PlayChain:
    """The anvil node at ``url``."""

    def __init__(self, url: str) -> None:
        self.url = url

    def fund(self, address: str, ether: int) -> None:
        """Play money for an account."""
        self._ask("anvil_setBalance", address, hex(ether * ETHER))

    def mine(self, blocks: int, apart_s: int) -> None:
        """So many blocks at once, as far apart by their own time."""
        self._ask("anvil_mine", hex(blocks), hex(apart_s))

    def mine_every(self, seconds: int) -> None:
        """From now on a block each time, whether there are transactions or not."""
        self._ask("evm_setIntervalMining", seconds)

    def send(self, sender: str, data: bytes, *, to: str | None = None, value: int = 0) -> str:
        """A transaction of any account, without its key, mined at once: the address of the contract that it made, or empty."""
        self._ask("anvil_impersonateAccount", sender)
        fields = {"from": sender, "data": "0x" + data.hex(), "value": hex(value)}
        digest = self._ask("eth_sendTransaction", fields if to is None else fields | {"to": to})
        while (receipt := self._ask("eth_getTransactionReceipt", digest)) is None:
            time.sleep(0.05)
        if int(receipt["status"], 16) != 1:
            raise RuntimeError(f"the play chain refused a transaction of {sender}")
        return str(receipt["contractAddress"] or "").lower()

    def wait_final(self) -> None:
        """Until everything mined so far is final. Raises TimeoutError."""
        head, deadline = int(self._ask("eth_blockNumber"), 16), time.monotonic() + FINAL_S
        while int(self._ask("eth_getBlockByNumber", "finalized", False)["number"], 16) < head:
            if time.monotonic() > deadline:
                raise TimeoutError(f"block {head} does not become final")
            time.sleep(0.2)

    def balance(self, address: str) -> int:
        """Wei, in the newest block."""
        return int(self._ask("eth_getBalance", address, "latest"), 16)

    def spent(self) -> list[Spent]:
        """Every transaction of the chain, in order."""
        known = _contracts()
        at: dict[str, Contract] = {}
        found: list[Spent] = []
        for number in range(int(self._ask("eth_blockNumber"), 16) + 1):
            for sent in self._ask("eth_getBlockByNumber", hex(number), True)["transactions"]:
                receipt = self._ask("eth_getTransactionReceipt", sent["hash"])
                data = bytes.fromhex(sent["input"][2:])
                if sent["to"] is None:
                    made = next(each for each in known.values() if data.startswith(each.bytecode))
                    at[receipt["contractAddress"].lower()] = made
                    what = f"deploy {made.name}"
                else:
                    called = at[sent["to"].lower()]
                    what = f"{called.name}.{_function(called, data)}"
                found.append(
                    Spent(
                        what=what,
                        sender=sent["from"].lower(),
                        gas=int(receipt["gasUsed"], 16),
                        succeeded=int(receipt["status"], 16) == 1,
                    )
                )
        return found

    def _ask(self, method: str, *params: Any) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.url, body, {"content-type": "application/json"})  # noqa: S310  our own node
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.loads(answer.read())["result"]


def _contracts() -> Mapping[str, Contract]:
    """Every contract of the release, by name."""
    names = (entry.name for entry in files("aos.adapters.chain").joinpath("artifacts").iterdir())
    made = {
        name.removesuffix(".json"): contract(name.removesuffix(".json"))
        for name in names
        if name.endswith(".json")
    }
    return {name: each for name, each in made.items() if each.bytecode}


def _function(called: Contract, data: bytes) -> str:
    return next(
        str(item["name"])
        for item in called.abi
        if item["type"] == "function" and called.selector(item["name"]) == data[:4]
    )
