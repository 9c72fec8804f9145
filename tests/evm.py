"""An EVM to run the contracts in: in this process (pyrevm), or a real node over JSON-RPC (anvil).

Gas is asserted on anvil alone: pyrevm keeps addresses and slots warm from one call to the next, and does not charge the
floor for calldata. It must never be told to commit: every later call would halt.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from eth_account import Account

from aos.adapters.chain.contracts import Contract, Event, contract
from aos.adapters.embedded.anvil import KEYS

ETHER = 10**18
TEST_ARTIFACTS = Path(__file__).resolve().parents[1] / "contracts/test/artifacts"
ACCOUNTS: tuple[str, ...] = tuple(Account.from_key(key).address.lower() for key in KEYS)
"""Addresses with plenty of ether, on either kind."""


class Reverted(Exception):
    """A call that the contract refused, with the data of the error."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data.hex())
        self.data = data


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    address: str
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A transaction that went through."""

    gas: int
    logs: tuple[Log, ...]
    created: str | None


class Evm(Protocol):
    """Transactions are mined at once, each in a block of its own. A refused one raises Reverted and changes nothing."""

    def transact(self, sender: str, to: str | None, data: bytes, value: int = 0) -> Done: ...

    def call(self, sender: str, to: str, data: bytes) -> bytes: ...

    def balance(self, address: str) -> int: ...

    def now(self) -> int:
        """The last block's time, seconds."""

    def wait(self, seconds: int) -> None:
        """Let time pass on the chain."""


class Revm:
    """pyrevm, in this process."""

    def __init__(self) -> None:
        import pyrevm

        self._pyrevm = pyrevm
        self._evm = pyrevm.EVM(gas_limit=2**40, spec_id="PRAGUE")
        self._number, self._time = 0, 1_800_000_000
        for account in ACCOUNTS:
            self._evm.set_balance(account, 10_000 * ETHER)
        self._next_block(0)

    def transact(self, sender: str, to: str | None, data: bytes, value: int = 0) -> Done:
        self._next_block(1)
        created = None
        try:
            if to is None:
                created = self._evm.deploy(sender, data, value=value)
            else:
                self._evm.message_call(sender, to, data, value=value)
        except RuntimeError as error:
            raise _revm_error(error) from None
        result = self._evm.result
        logs = tuple(
            Log(
                address=log.address.lower(),
                topics=tuple(bytes.fromhex(topic.removeprefix("0x")) for topic in log.topics),
                data=bytes(log.data[1]),
            )
            for log in result.logs or []
        )
        return Done(gas=result.gas_used, logs=logs, created=created and created.lower())

    def call(self, sender: str, to: str, data: bytes) -> bytes:
        mark = self._evm.snapshot()
        try:
            return bytes(self._evm.message_call(sender, to, data))
        except RuntimeError as error:
            raise _revm_error(error) from None
        finally:
            self._evm.revert(mark)

    def balance(self, address: str) -> int:
        return int(self._evm.get_balance(address))

    def code(self, address: str) -> bytes:
        """What is deployed there."""
        code = bytes(self._evm.get_code(address) or b"")
        return code[: -self._PADDING]

    _PADDING = 33
    """Zeros that revm puts behind code for itself."""

    @property
    def number(self) -> int:
        """The last block's."""
        return self._number

    def now(self) -> int:
        return self._time

    def wait(self, seconds: int) -> None:
        self._next_block(seconds)

    def _next_block(self, seconds: int) -> None:
        self._number += 1
        self._time += seconds
        self._evm.set_block_env(
            self._pyrevm.BlockEnv(number=self._number, timestamp=self._time, basefee=0, gas_limit=2**40)
        )


def _revm_error(error: RuntimeError) -> Exception:
    found = re.match(r"Revert \{.*output: 0x([0-9a-f]*)", str(error))
    return Reverted(bytes.fromhex(found[1])) if found else error


class Node:
    """anvil, over JSON-RPC; it signs for its accounts itself."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=60)

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, *params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = self._http.post("", json=body).json()
        if "error" in answer:
            data = answer["error"].get("data")
            if isinstance(data, str):
                raise Reverted(bytes.fromhex(data[2:]))
            raise RuntimeError(answer["error"])
        return answer["result"]

    def transact(self, sender: str, to: str | None, data: bytes, value: int = 0) -> Done:
        # Asked first: a mined failure does not say why.
        fields = {"from": sender, "data": "0x" + data.hex(), "value": hex(value), "gas": hex(16_000_000)}
        if to is not None:
            fields["to"] = to
        self.ask("eth_call", fields, "pending")
        sent = self.ask("eth_sendTransaction", fields)
        deadline = time.monotonic() + 60
        while (receipt := self.ask("eth_getTransactionReceipt", sent)) is None:
            assert time.monotonic() < deadline, "the node mines nothing"
            time.sleep(0.01)
        assert receipt["status"] == "0x1", receipt
        logs = tuple(
            Log(
                address=log["address"].lower(),
                topics=tuple(bytes.fromhex(topic[2:]) for topic in log["topics"]),
                data=bytes.fromhex(log["data"][2:]),
            )
            for log in receipt["logs"]
        )
        return Done(gas=int(receipt["gasUsed"], 16), logs=logs, created=receipt["contractAddress"])

    def call(self, sender: str, to: str, data: bytes) -> bytes:
        fields = {"from": sender, "to": to, "data": "0x" + data.hex()}
        return bytes.fromhex(self.ask("eth_call", fields, "latest")[2:])

    def balance(self, address: str) -> int:
        return int(self.ask("eth_getBalance", address, "latest"), 16)

    def now(self) -> int:
        return int(self.ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def wait(self, seconds: int) -> None:
        self.ask("evm_increaseTime", hex(seconds))
        self.ask("evm_mine")


@dataclass(frozen=True, slots=True)
class Deployed:
    """A contract at its address."""

    evm: Evm
    contract: Contract
    address: str

    def read(self, function: str, *args: object, sender: str = ACCOUNTS[0]) -> Any:
        data = self.evm.call(sender, self.address, self.contract.call(function, *args))
        return self.contract.answer(function, data)

    def send(self, sender: str, function: str, *args: object, value: int = 0) -> Done:
        return self.evm.transact(sender, self.address, self.contract.call(function, *args), value)

    def events(self, done: Done) -> list[Event]:
        own = (log for log in done.logs if log.address == self.address)
        return [found for log in own if (found := self.contract.event(log.topics, log.data)) is not None]

    def refuses(self, error: str, sender: str, function: str, *args: object, value: int = 0) -> None:
        """Fails unless the contract reverts with ``error`` (its name, with arguments where it has any)."""
        with pytest.raises(Reverted) as refusal:
            self.send(sender, function, *args, value=value)
        assert self.contract.error(refusal.value.data) == error


def deploy(evm: Evm, name: str, *args: object, sender: str = ACCOUNTS[0], value: int = 0) -> Deployed:
    """Deploy a contract of the release, or of ``contracts/test``."""
    path = TEST_ARTIFACTS / f"{name}.json"
    what = Contract.read(path) if path.is_file() else contract(name)
    done = evm.transact(sender, None, what.creation(*args), value)
    assert done.created is not None
    return Deployed(evm, what, done.created.lower())


def names(events: Sequence[Event]) -> list[str]:
    return [event.name for event in events]
