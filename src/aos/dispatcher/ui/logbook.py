"""What the explorer shows of the transparency log (docs/spec/15-log.md): what its checkpoints and entries say in public.

No salt is read here, and no subject: whose fact a leaf is, only who holds the fact can tell.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from asyncpg import Record

from aos.adapters.postgres import Connection
from aos.core.log.checkpoint import TreeHead, read_head, with_signatures
from aos.core.log.leaf import KINDS, Kind
from aos.core.log.note import NoteKey, read_note, read_signature_line, read_vkey
from aos.dispatcher.ui.store import PAGE

MOST_CHECKPOINTS = 500
MOST_LINES = 512
_TIME_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosigned:
    """A witness, the greatest tree that it cosigned of late, and when it says that it did (seconds)."""

    witness: NoteKey
    size: int
    time_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A checkpoint. ``added``: leaves more than in the one before, None where that was not read; ``root``: base64, as in notes."""

    size: int
    added: int | None
    root: str
    time_s: int
    cosigned: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """The last signed tree: the note as the log serves it, what it says, and when the log signed it (seconds)."""

    head: TreeHead
    root: str
    time_s: int
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A leaf: its salted hash, its hash in the tree, and the first checkpoint that has it."""

    index: int
    kind: Kind
    digest: bytes
    leaf: bytes
    size: int
    time_s: int


async def latest(db: Connection) -> Latest | None:
    """The last signed tree with the cosignatures that came for it; None before the first."""
    row = await db.fetchrow("SELECT size, time_s, note FROM log_head")
    if row is None:
        return None
    lines = await db.fetch(
        "SELECT line FROM log_cosignature WHERE size = $1 ORDER BY witness LIMIT $2", row["size"], MOST_LINES
    )
    note = with_signatures(
        row["note"], [read_signature_line(line["line"].removesuffix("\n")) for line in lines]
    )
    head = read_head(read_note(row["note"]))
    return Latest(head=head, root=b64encode(head.root).decode("ascii"), time_s=row["time_s"], note=note)


async def checkpoints(db: Connection) -> list[Signed]:
    """The newest checkpoints, newest first, at most ``MOST_CHECKPOINTS``."""
    rows: Sequence[Record] = await db.fetch(
        "SELECT size, root, time_s, cosigned FROM log_checkpoint ORDER BY size DESC LIMIT $1",
        MOST_CHECKPOINTS,
    )
    before = [row["size"] for row in rows[1:]] + [0 if len(rows) < MOST_CHECKPOINTS else None]
    return [
        Signed(
            size=row["size"],
            added=None if old is None else row["size"] - old,
            root=b64encode(row["root"]).decode("ascii"),
            time_s=row["time_s"],
            cosigned=row["cosigned"],
        )
        for row, old in zip(rows, before, strict=True)
    ]


def growth(newest: Sequence[Signed], last: Latest | None) -> list[tuple[int, int]]:
    """(seconds, leaves) in the order of time: from nothing where the first checkpoint is among these, to the last signature."""
    if last is None or not newest:
        return []
    oldest = newest[-1]
    begun = [(oldest.time_s, 0)] if oldest.added == oldest.size else []
    return [*begun, *((item.time_s, item.size) for item in reversed(newest)), (last.time_s, last.head.size)]


async def witnesses(db: Connection) -> list[Cosigned]:
    """Who cosigned of late, by name: the last ``MOST_LINES`` lines, of each witness the one for the greatest tree."""
    rows = await db.fetch(
        """SELECT DISTINCT ON (witness) witness, size, line
           FROM (SELECT * FROM log_cosignature ORDER BY size DESC LIMIT $1) c ORDER BY witness, size DESC""",
        MOST_LINES,
    )
    return [
        Cosigned(
            witness=read_vkey(row["witness"]),
            size=row["size"],
            time_s=int.from_bytes(
                read_signature_line(row["line"].removesuffix("\n")).signature[:_TIME_BYTES], "big"
            ),
        )
        for row in rows
    ]


async def leaves(db: Connection, *, before: int) -> tuple[list[Leaf], int | None]:
    """Leaves below the index ``before``, newest first, and the cursor of the next page."""
    rows = await db.fetch(
        """SELECT l.leaf_index, l.kind, l.digest, l.leaf, c.size, c.time_s
           FROM (SELECT * FROM log_leaf WHERE leaf_index < $1 ORDER BY leaf_index DESC LIMIT $2) l
           CROSS JOIN LATERAL (
               SELECT size, time_s FROM log_checkpoint WHERE size > l.leaf_index ORDER BY size LIMIT 1) c
           ORDER BY l.leaf_index DESC""",
        before,
        PAGE + 1,
    )
    found = [
        Leaf(
            index=row["leaf_index"],
            kind=KINDS[row["kind"] - 1],
            digest=row["digest"],
            leaf=row["leaf"],
            size=row["size"],
            time_s=row["time_s"],
        )
        for row in rows
    ]
    return found[:PAGE], found[PAGE - 1].index if len(found) > PAGE else None


async def mark(db: Connection) -> str:
    """A text that changes when a tree is signed or cosigned."""
    row = await db.fetchrow(
        "SELECT size, time_s, (SELECT count(*) FROM log_cosignature c WHERE c.size = h.size) FROM log_head h"
    )
    return json.dumps(None if row is None else list(row))
