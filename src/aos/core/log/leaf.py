"""What is a leaf of the log, and how one is promised and shown (docs/spec/15-log.md, "Leaves").

A leaf says that the dispatcher held a fact, and nothing of what is in it: it is a hash under 32 random bytes, which those
get who may read the fact.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from aos.core.codec import Address, Bytes32, MaxLength, NetworkId, TimeMs, UInt
from aos.core.encoding import canonical_json, tag, tagged_hash
from aos.core.log.note import MAX_NOTE_BYTES
from aos.core.merkle import leaf_hash
from aos.errors import InvalidMessage

Kind = Literal[
    "acceptance",
    "draw_call",
    "draw_record",
    "commit",
    "commit_set",
    "result",
    "receipt",
    "verdict",
    "resolution",
    "evidence",
    "snapshot",
    "boot",
    "audit_order",
    "audit_report",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""A kind's number in an entry is its place here, from 1 on; migration 0009 says the same."""

SALT_BYTES = 32
ENTRY_BYTES = len(tag("log-entry")) + 1 + 32

NoteText = Annotated[str, MaxLength(MAX_NOTE_BYTES)]
VerifierKey = Annotated[str, MaxLength(320)]
Path = Annotated[tuple[Bytes32, ...], MaxLength(64)]


def fact_bytes(signed: Any) -> bytes:
    """The bytes of a signed fact: the canonical JSON of ``{"signature", "statement"}``."""
    return canonical_json(signed)


def log_entry(kind: Kind, salt: bytes, fact: bytes) -> bytes:
    """The entry: tag ‖ kind ‖ SHA-256(tag ‖ salt ‖ fact). ``salt`` has 32 bytes (else InvalidMessage ``log.salt``)."""
    if len(salt) != SALT_BYTES:
        raise InvalidMessage("log.salt", f"a salt has {SALT_BYTES} bytes", field="salt")
    return entry_of(kind, tagged_hash("log-fact", salt, fact))


def entry_of(kind: Kind, digest: bytes) -> bytes:
    """The entry over a fact's salted hash (32 bytes)."""
    return tag("log-entry") + bytes([KINDS.index(kind) + 1]) + digest


def read_entry(entry: bytes) -> tuple[Kind, bytes]:
    """Kind and salted hash of an entry. Raises InvalidMessage ``log.entry``."""
    head = tag("log-entry")
    if len(entry) != ENTRY_BYTES or not entry.startswith(head) or not 1 <= entry[len(head)] <= len(KINDS):
        raise InvalidMessage("log.entry", "not an entry of this log", field="entry")
    return KINDS[entry[len(head)] - 1], entry[len(head) + 1 :]


def log_leaf(kind: Kind, salt: bytes, fact: bytes) -> bytes:
    """The leaf hash of a fact (32 bytes)."""
    return leaf_hash(log_entry(kind, salt, fact))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedLeaf:
    """Where a fact is in the tree of a checkpoint, and the salt of its leaf."""

    salt: Bytes32
    index: UInt
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPart:
    """What an answer file shows of the log: a checkpoint, and in its tree the job's acceptance and its receipt."""

    checkpoint: NoteText
    acceptance: LoggedLeaf
    receipt: LoggedLeaf


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPromise:
    """D, with an acceptance: its leaf comes at index ``first`` or behind, and is in the tree of every checkpoint dated
    ``integrate_by`` or later."""

    TYPE: ClassVar[str] = "aos.log_promise"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    log_key: VerifierKey
    leaf: Bytes32
    salt: Bytes32
    first: UInt
    promised_at: TimeMs
    integrate_by: TimeMs
