"""Messages between host and enclave (docs/spec/10-tee.md, "Messages"): one canonical JSON object per frame.

The host numbers its messages; every reply carries the number it answers. Weights are the exception: after
``Load`` the host sends them as raw frames, in order, until ``size`` bytes are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from aos.core.codec import (
    Address,
    Bytes32,
    Bytes64,
    Decimal64,
    Label,
    MaxLength,
    NetworkId,
    OptionalBytes32,
    Range,
    UInt,
    UInt32,
    decode,
    encode,
)
from aos.core.encoding import canonical_json, parse_canonical
from aos.core.statements import FinishReason
from aos.core.tee import MAX_LIFETIME_MS, Document, TeeBoot
from aos.errors import InvalidMessage
from aos.workers.execution import Tokens

MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_MODEL_BYTES = 2**40


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Host: ``size`` bytes of a GGUF file follow as raw frames. Once for each process."""

    TYPE: ClassVar[str] = "aos.enclave.load"
    V: ClassVar[int] = 1

    id: UInt
    size: Annotated[int, Range(1, MAX_MODEL_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Enclave: what the bytes turned out to be, by its own hashing."""

    TYPE: ClassVar[str] = "aos.enclave.loaded"
    V: ClassVar[int] = 1

    id: UInt
    model_id: Bytes32
    engine: Label
    engine_digest: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """Host: make a key for this operator, its draw key and network, under the dispatcher's challenge and policy. A boot
    ends the one before."""

    TYPE: ClassVar[str] = "aos.enclave.boot"
    V: ClassVar[int] = 1

    id: UInt
    network: NetworkId
    operator: Address
    vrf_key: Bytes32
    policy: Bytes32
    nonce: Bytes32
    lifetime_ms: Annotated[int, Range(1, MAX_LIFETIME_MS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """Enclave: the boot statement and the platform's word for it. The private key stays."""

    TYPE: ClassVar[str] = "aos.enclave.booted"
    V: ClassVar[int] = 1

    id: UInt
    boot: TeeBoot
    boot_signature: Bytes64
    document: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest:
    """Host: a document of now, for the boot or (``answer``: an answer statement's hash) for one of its answers."""

    TYPE: ClassVar[str] = "aos.enclave.attest"
    V: ClassVar[int] = 1

    id: UInt
    answer: OptionalBytes32
    nonce: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """Enclave: the document that was asked for, beside the boot statement that it belongs to."""

    TYPE: ClassVar[str] = "aos.enclave.attested"
    V: ClassVar[int] = 1

    id: UInt
    boot: TeeBoot
    boot_signature: Bytes64
    document: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """Host, or whoever reaches the enclave: prove that you run, before anything is loaded or booted."""

    TYPE: ClassVar[str] = "aos.enclave.challenge"
    V: ClassVar[int] = 1

    id: UInt
    nonce: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenged:
    """Enclave: a document of now with that nonce, and nothing else bound into it."""

    TYPE: ClassVar[str] = "aos.enclave.challenged"
    V: ClassVar[int] = 1

    id: UInt
    document: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Host: run this request. ``request`` is the exact text of the request bytes."""

    TYPE: ClassVar[str] = "aos.enclave.ask"
    V: ClassVar[int] = 1

    id: UInt
    operator: Address
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    request: Annotated[str, MaxLength(1_048_576)]
    nonce: Bytes32
    sampling_seed: Decimal64


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """Enclave: one token of the run ``id``."""

    TYPE: ClassVar[str] = "aos.enclave.token"
    V: ClassVar[int] = 1

    id: UInt
    index: UInt32
    token: UInt32
    text: Annotated[str, MaxLength(65_536)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Enclave: the end of the run ``id``, with the evidence for it (``aos.core.tee.TeeEvidence``)."""

    TYPE: ClassVar[str] = "aos.enclave.answered"
    V: ClassVar[int] = 1

    id: UInt
    prompt_tokens_hash: Bytes32
    tokens: Tokens
    text: Annotated[str, MaxLength(2_000_000)]
    finish_reason: FinishReason
    n_prompt: UInt32
    state_root: OptionalBytes32
    engine: Label
    model_id: Bytes32
    evidence: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Host: end the run ``id``; its reply is then an error ``enclave.cancelled``, or its answer where that
    was quicker."""

    TYPE: ClassVar[str] = "aos.enclave.cancel"
    V: ClassVar[int] = 1

    id: UInt


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Host: what state are you in?"""

    TYPE: ClassVar[str] = "aos.enclave.status"
    V: ClassVar[int] = 1

    id: UInt


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Enclave: its state. ``loaded`` is what it said when it had loaded its model, null before; ``boot`` is the boot
    statement's hash, empty before; ``sequence`` counts its answers."""

    TYPE: ClassVar[str] = "aos.enclave.state"
    V: ClassVar[int] = 1

    id: UInt
    label: Annotated[str, MaxLength(64)]
    loaded: Loaded | None
    busy: bool
    boot: OptionalBytes32
    sequence: UInt


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """Host: forget everything and end."""

    TYPE: ClassVar[str] = "aos.enclave.shutdown"
    V: ClassVar[int] = 1

    id: UInt


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Enclave: message ``id`` was refused or its run failed; 0 where the message had no readable number."""

    TYPE: ClassVar[str] = "aos.enclave.failed"
    V: ClassVar[int] = 1

    id: UInt
    code: Annotated[str, MaxLength(128)]
    message: Annotated[str, MaxLength(1024)]
    blame: Annotated[str, MaxLength(32)]
    field: Annotated[str, MaxLength(256)] | None


FromHost = Load | Boot | Attest | Challenge | Ask | Cancel | Status | Shutdown
FromEnclave = Loaded | Booted | Attested | Challenged | Token | Answered | State | Failed
_FROM_HOST: dict[str, type[Any]] = {
    cls.TYPE: cls for cls in (Load, Boot, Attest, Challenge, Ask, Cancel, Status, Shutdown)
}
_FROM_ENCLAVE: dict[str, type[Any]] = {
    cls.TYPE: cls for cls in (Loaded, Booted, Attested, Challenged, Token, Answered, State, Failed)
}
M = TypeVar("M")


def pack(message: FromHost | FromEnclave) -> bytes:
    """The payload of a message's frame."""
    return canonical_json(encode(message))


def read_from_host(payload: bytes) -> FromHost:
    """Strictly decode what the host sent. Raises InvalidMessage ``encoding.*``, ``field.*``,
    ``enclave.unknown_message``."""
    return _read(payload, _FROM_HOST)  # type: ignore[no-any-return]


def read_from_enclave(payload: bytes) -> FromEnclave:
    """Strictly decode what the enclave sent. Raises as ``read_from_host``."""
    return _read(payload, _FROM_ENCLAVE)  # type: ignore[no-any-return]


def number_of(payload: bytes) -> int:
    """The number of a message that may be broken otherwise; 0 where there is none to be read."""
    try:
        value = parse_canonical(payload, max_bytes=MAX_FRAME_BYTES)
    except InvalidMessage:
        return 0
    number = value.get("id") if isinstance(value, dict) else None
    return number if type(number) is int and number >= 0 else 0


def _read(payload: bytes, known: dict[str, type[Any]]) -> Any:
    value = parse_canonical(payload, max_bytes=MAX_FRAME_BYTES)
    kind = value.get("type") if isinstance(value, dict) else None
    cls = known.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise InvalidMessage("enclave.unknown_message", "a message of no known type", field="type")
    return decode(cls, value)
