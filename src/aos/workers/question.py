"""What a worker is asked over HTTP: the network's question and the seed's, boots and documents (docs/spec/09-http.md, "Worker").

Decoding only, strict in members, types and sizes. Whether a question may be answered is for the worker behind
it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from aos.core.codec import (
    Address,
    Bytes32,
    Decimal64,
    MaxLength,
    NetworkId,
    OptionalBytes32,
    Range,
    decode,
    encode,
)
from aos.core.encoding import millionths, parse_json_strict
from aos.core.statements import Params, Role
from aos.errors import InvalidMessage
from aos.ports import TokenEvent
from aos.workers.execution import Answer, Tokens

MAX_BODY_BYTES = 4 * 1024 * 1024
_SEED_DEFAULTS = Params(
    temperature=1_000_000,
    top_p=1_000_000,
    top_k=0,
    min_p=0,
    repeat_penalty=1_000_000,
    max_tokens=256,
    stop=(),
    seed=None,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One run for one seat of one job. ``request`` is the exact text of the request bytes; ``tokens`` what to
    replay."""

    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    operator: Address
    role: Role
    request: Annotated[str, MaxLength(1_048_576)]
    nonce: Bytes32
    sampling_seed: Decimal64
    tokens: Tokens | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedQuestion:
    """The original worker's question: a prompt without a job. Nothing of it can be signed or checked by
    others."""

    model: Annotated[str, MaxLength(256)]
    prompt: Annotated[str, MaxLength(1_000_000)]
    req_id: Annotated[str, MaxLength(256)]
    params: Params
    nonce: bytes
    sampling_seed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Whose enclave it is."""

    network: NetworkId
    operator: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class BootOrder:
    """What a boot statement is to bind beside what the enclave finds itself: the operator, its draw key, and the
    dispatcher's policy and challenge."""

    network: NetworkId
    operator: Address
    vrf_key: Bytes32
    policy: Bytes32
    nonce: Bytes32

    @property
    def binding(self) -> Binding:
        return Binding(network=self.network, operator=self.operator)


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentOrder:
    """A document of now: for the boot, or (``answer``: an answer statement's hash) for one of its answers."""

    answer: OptionalBytes32
    nonce: Bytes32


def read_boot_order(body: bytes) -> BootOrder:
    """Decode a body of ``POST /api/v1/boot``. Raises InvalidMessage ``encoding.*``, ``field.*``."""
    return decode(BootOrder, parse_json_strict(body, max_bytes=MAX_BODY_BYTES))


def read_document_order(body: bytes) -> DocumentOrder:
    """Decode a body of ``POST /api/v1/document``. Raises InvalidMessage ``encoding.*``, ``field.*``."""
    return decode(DocumentOrder, parse_json_strict(body, max_bytes=MAX_BODY_BYTES))


def read_question(body: bytes) -> Question | SeedQuestion:
    """Decode a body of ``POST /api/v1/question``; one with ``prompt`` and without ``request`` is the seed's.

    Raises InvalidMessage ``encoding.*``, ``field.*`` or ``question.tokens`` (a checker has tokens, nobody
    else does).
    """
    value = parse_json_strict(body, max_bytes=MAX_BODY_BYTES, allow_floats=True)
    if isinstance(value, dict) and "prompt" in value and "request" not in value:
        return _seed_question(value)
    if isinstance(value, dict):
        value = {"tokens": None, **value}
    question = decode(Question, value)
    if (question.role == "checker") != (question.tokens is not None):
        raise InvalidMessage(
            "question.tokens", "role checker needs tokens, other roles have none", field="tokens"
        )
    return question


def _seed_question(value: Mapping[str, Any]) -> SeedQuestion:
    given = value.get("params", {})
    if not isinstance(given, dict):
        raise InvalidMessage("field.type", "params must be an object", field="params")
    members: dict[str, Any] = encode(_SEED_DEFAULTS)
    for name, number in given.items():
        decimal = name in ("temperature", "top_p", "min_p", "repeat_penalty")
        members[name] = millionths(number) if decimal and isinstance(number, int | Decimal) else number
    seed = members["seed"]
    if type(seed) is int and seed >= 0:
        members["seed"] = str(seed)
    rest = {"req_id": "", **{name: item for name, item in value.items() if name != "params"}}
    asked = decode(_SeedBody, rest)
    params = decode(Params, members, where="params")
    return SeedQuestion(
        model=asked.model,
        prompt=asked.prompt,
        req_id=asked.req_id,
        params=params,
        nonce=secrets.token_bytes(32),
        sampling_seed=str(secrets.randbits(64)) if params.seed is None else params.seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _SeedBody:
    model: Annotated[str, MaxLength(256)]
    prompt: Annotated[str, MaxLength(1_000_000)]
    req_id: Annotated[str, MaxLength(256)]


def event_line(event: TokenEvent | Answer) -> bytes:
    """One line of the answer's stream."""
    name = "token" if isinstance(event, TokenEvent) else "result"
    return json_line({"event": name, **encode(event)})


def json_line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"
