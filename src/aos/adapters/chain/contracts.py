"""The compiled contracts: their code, and the calls, answers, errors and events that their ABI describes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.abi import (
    event_abi_to_log_topic,
    function_abi_to_4byte_selector,
    get_abi_input_types,
    get_abi_output_types,
)

from aos.errors import InvalidMessage

_PANIC = bytes.fromhex("4e487b71")
_ERROR_TEXT = bytes.fromhex("08c379a0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event of a contract, by name, with its arguments by name."""

    contract: str
    name: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """A compiled contract. Addresses in calls and answers are text with 0x, byte strings are bytes."""

    name: str
    abi: Sequence[Mapping[str, Any]]
    bytecode: bytes
    deployed_bytecode: bytes
    """As compiled: immutable values are zero in it."""
    immutables: Sequence[tuple[int, int]]
    """Where they stand in it: start and length."""

    @classmethod
    def read(cls, path: Path) -> "Contract":
        """From an artefact that ``contracts/compile.mjs`` wrote."""
        return cls._from(json.loads(path.read_text()))

    @classmethod
    def _from(cls, artifact: Mapping[str, Any]) -> "Contract":
        return cls(
            name=artifact["contract"],
            abi=artifact["abi"],
            bytecode=bytes.fromhex(artifact["bytecode"]),
            deployed_bytecode=bytes.fromhex(artifact["deployed_bytecode"]),
            immutables=[(start, length) for start, length in artifact["immutables"]],
        )

    def is_code(self, code: bytes) -> bool:
        """Whether ``code``, as a node holds it, is this contract's, whatever its immutable values are."""
        plain = bytearray(code)
        for start, length in self.immutables:
            plain[start : start + length] = bytes(len(plain[start : start + length]))
        return bytes(plain) == self.deployed_bytecode

    def creation(self, *args: object) -> bytes:
        """Data of the transaction that deploys it."""
        for item in self.abi:
            if item["type"] == "constructor":
                return self.bytecode + _encode(get_abi_input_types(item), args)  # type: ignore[arg-type]
        return self.bytecode

    def call(self, function: str, *args: object) -> bytes:
        """Data of a call. Values that do not fit the ABI are the caller's mistake: eth_abi's EncodingError."""
        item = self._item("function", function)
        return bytes(function_abi_to_4byte_selector(item)) + _encode(get_abi_input_types(item), args)

    def answer(self, function: str, data: bytes) -> Any:
        """What a call returned: nothing is None, one value itself, more a tuple.

        Raises InvalidMessage ``chain.answer`` for anything that the ABI does not allow.
        """
        types = get_abi_output_types(self._item("function", function))
        try:
            values = decode(types, data)
        except (DecodingError, OverflowError, ValueError):
            raise InvalidMessage(
                "chain.answer",
                f"the node's answer to {self.name}.{function} is not what the contract returns",
            ) from None
        if not types:
            return None
        return values[0] if len(values) == 1 else values

    def error(self, data: bytes) -> str | None:
        """The name of the error that reverted a call, with its arguments; None if it is not one of this contract."""
        for item in self.abi:
            if item["type"] == "error" and bytes(function_abi_to_4byte_selector(item)) == data[:4]:  # type: ignore[arg-type]
                values = _decoded(get_abi_input_types(item), data[4:])  # type: ignore[arg-type]
                if values is None:
                    return None
                return str(item["name"]) + (f"({', '.join(map(str, values))})" if values else "")
        if data[:4] == _ERROR_TEXT and (values := _decoded(["string"], data[4:])) is not None:
            return str(values[0])
        if data[:4] == _PANIC and (values := _decoded(["uint256"], data[4:])) is not None:
            return f"Panic(0x{values[0]:02x})"
        return None

    def event(self, topics: Sequence[bytes], data: bytes) -> Event | None:
        """A log entry of this contract's address; None for one that its ABI does not know."""
        for item in self.abi:
            if item["type"] != "event" or not topics or bytes(event_abi_to_log_topic(item)) != topics[0]:  # type: ignore[arg-type]
                continue
            inputs = item["inputs"]
            indexed = [(entry["name"], entry["type"]) for entry in inputs if entry["indexed"]]
            plain = [(entry["name"], entry["type"]) for entry in inputs if not entry["indexed"]]
            values = _decoded([kind for _, kind in plain], data)
            if values is None or len(topics) != 1 + len(indexed):
                return None
            args = dict(zip((name for name, _ in plain), values, strict=True))
            for (name, kind), topic in zip(indexed, topics[1:], strict=True):
                value = _decoded([kind], topic)
                if value is None:
                    return None
                args[name] = value[0]
            return Event(contract=self.name, name=item["name"], args=args)
        return None

    def topic(self, event: str) -> bytes:
        """What an event's log entries begin with."""
        return bytes(event_abi_to_log_topic(self._item("event", event)))

    def selector(self, function: str) -> bytes:
        return bytes(function_abi_to_4byte_selector(self._item("function", function)))

    def _item(self, kind: str, name: str) -> Any:
        for item in self.abi:
            if item["type"] == kind and item["name"] == name:
                return item
        raise KeyError(f"{self.name} has no {kind} {name}")


@lru_cache
def contract(name: str) -> Contract:
    """A contract that this release ships, by name: ``OperatorRegistry``, ``ModelRegistry``."""
    text = files("aos.adapters.chain").joinpath("artifacts", f"{name}.json").read_text()
    return Contract._from(json.loads(text))


def _encode(types: Sequence[str], args: Sequence[object]) -> bytes:
    return bytes(encode(types, args))


def _decoded(types: Sequence[str], data: bytes) -> tuple[Any, ...] | None:
    try:
        return tuple(decode(types, data))
    except (DecodingError, OverflowError, ValueError):
        return None
