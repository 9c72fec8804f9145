"""What an operator's database holds, as values, and how a row becomes one (schema: ``sql/``).

Statements are kept as the JSON text that was signed; ``to_text`` and ``from_text`` are the only way in and out.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from aos.adapters.postgres import Record
from aos.core.codec import decode
from aos.core.encoding import canonical_json, parse_json_strict
from aos.core.statements import SnapshotEntry

MAX_STORED_JSON = 1 << 26

State = Literal["stored", "executed", "committed", "revealing", "done", "failed", "cancelled"]
Role = Literal["executor", "checker", "blind"]
Json = dict[str, Any]


def to_text(value: object) -> str:
    """Canonical JSON as text, for a column."""
    return canonical_json(value).decode()


def from_text(text: str) -> Any:
    """The value of a column that ``to_text`` filled."""
    return parse_json_strict(text.encode(), max_bytes=MAX_STORED_JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """The operator's own row: whose database this is, what it pinned, and its causal state as stored."""

    node_id: str
    dispatcher: str
    clock_state: Json | None
    network: str | None
    dispatcher_vrf_key: bytes | None
    network_file: Json | None
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSnapshot:
    """A verified registry snapshot, as far as this operator needs it: its own entry, or None."""

    root: bytes
    epoch: int
    max_range: int
    entry: SnapshotEntry | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A draw call and the answer to it: stored together, before anything is sent."""

    job_ref: bytes
    attempt: int
    call_hash: bytes
    draw_call: Json
    claim: Json
    claim_hash: bytes
    answer: Literal["claim", "decline"]
    reason: str
    sent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAssignment:
    """A verified dispatch, ready to be stored."""

    job_ref: bytes
    attempt: int
    job_id: str
    role: Role
    seat: int
    model_id: bytes
    request: bytes
    nonce: bytes
    sampling_seed: str
    seed_source: Literal["request", "draw"]
    deadline: int
    draw_record: Json
    draw_record_hash: bytes
    stream: Json | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment(NewAssignment):
    """A stored dispatch with everything that has been made of it. JSON members are as signed or received."""

    state: State
    queue_entry: str | None
    worker: str | None
    started_at: int | None
    finished_at: int | None
    chunks_held: int
    result: Json | None
    commit_salt: bytes | None
    commit_statement: Json | None
    commit_hash: bytes | None
    commit_ack: Json | None
    commit_set: Json | None
    commit_set_hash: bytes | None
    receipt: Json | None
    receipt_signature: str | None
    failure_code: str | None
    failure_message: str | None
    failure_sent: bool

    @property
    def key(self) -> tuple[bytes, int]:
        return self.job_ref, self.attempt


_JSON_COLUMNS = ("draw_record", "stream", "result", "commit_statement", "commit_ack", "commit_set", "receipt")


def read_node_state(row: Record) -> NodeState:
    return NodeState(
        node_id=row["node_id"],
        dispatcher=row["dispatcher"],
        clock_state=None if row["clock_state"] is None else from_text(row["clock_state"]),
        network=row["network"],
        dispatcher_vrf_key=row["dispatcher_vrf_key"],
        network_file=None if row["network_file"] is None else json.loads(row["network_file"]),
        draining=row["draining"],
    )


def read_snapshot(row: Record) -> StoredSnapshot:
    entry = None if row["entry"] is None else decode(SnapshotEntry, from_text(row["entry"]))
    return StoredSnapshot(root=row["root"], epoch=row["epoch"], max_range=row["max_range"], entry=entry)


def read_draw(row: Record) -> Draw:
    return Draw(
        job_ref=row["job_ref"],
        attempt=row["attempt"],
        call_hash=row["call_hash"],
        draw_call=from_text(row["draw_call"]),
        claim=from_text(row["claim"]),
        claim_hash=row["claim_hash"],
        answer=row["answer"],
        reason=row["reason"],
        sent=row["sent"],
    )


def read_assignment(row: Record) -> Assignment:
    values = dict(row)
    for name in _JSON_COLUMNS:
        if values[name] is not None:
            values[name] = from_text(values[name])
    if values["request"] is None:
        values["request"] = b""
    return Assignment(**values)
