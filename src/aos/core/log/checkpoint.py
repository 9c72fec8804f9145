"""Checkpoints: what a log signs about its tree (docs/spec/15-log.md, "Checkpoints"; c2sp.org/tlog-checkpoint).

A log's checkpoint carries two lines of its one key: a plain signature, and a ``cosignature/v1`` that says when. Witnesses
add cosignatures. A checkpoint says what was signed, not that its tree is what anybody else saw: that is ``verify_consistency``.
"""

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from aos.core.log.note import (
    COSIGNATURE,
    ED25519,
    Note,
    NoteKey,
    NoteSignature,
    cosign_note,
    decode_base64,
    note_key,
    read_note,
    sign_note,
    verified_signatures,
)
from aos.core.merkle import EMPTY_ROOT, HASH_BYTES, MAX_TREE_SIZE
from aos.errors import InvalidMessage, VerificationError

_SIZE = re.compile(r"(?:0|[1-9][0-9]{0,15})\Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHead:
    """Origin, number of leaves and root (32 bytes) of a log's tree."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The note's text."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode('ascii')}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose log signature was verified; ``time_s`` is what the log says, in seconds since the epoch."""

    head: TreeHead
    note: Note
    time_s: int


def origin_of(network: str, dispatcher: str) -> str:
    """The origin line of a dispatcher's log: network id and address."""
    return f"aos/{network}/{dispatcher}"


def read_head(note: Note) -> TreeHead:
    """The three lines of a checkpoint. Raises InvalidMessage ``checkpoint.form``, ``checkpoint.empty_root``."""
    lines = note.text[:-1].split("\n")
    # An extension line would be signed and checked by nobody: a log of ours has none.
    if len(lines) != 3 or not lines[0] or not _SIZE.match(lines[1]):
        raise InvalidMessage("checkpoint.form", "a checkpoint is origin, size and root, one a line")
    size, root = int(lines[1]), decode_base64(lines[2], "checkpoint.form")
    if len(root) != HASH_BYTES or size > MAX_TREE_SIZE:
        raise InvalidMessage("checkpoint.form", "a root has 32 bytes, a size is below 2^53")
    if size == 0 and root != EMPTY_ROOT:
        raise InvalidMessage("checkpoint.empty_root", "an empty tree has the hash of nothing as its root")
    return TreeHead(origin=lines[0], size=size, root=root)


def timed(key: NoteKey) -> NoteKey:
    """The same key, as it signs times."""
    return NoteKey(name=key.name, kind=COSIGNATURE, public=key.public)


def verify_checkpoint(text: str, key: NoteKey) -> Checkpoint:
    """Read a checkpoint and check both of the log's lines.

    Raises InvalidMessage ``note.*``, ``checkpoint.*``; VerificationError ``note.signature``, ``checkpoint.origin``,
    ``checkpoint.unsigned`` (no line of this key), ``checkpoint.undated`` (no line that says when).
    """
    note = read_note(text)
    head = read_head(note)
    if head.origin != key.name:
        raise VerificationError("checkpoint.origin", f"the checkpoint is of {head.origin}, not of {key.name}")
    times = verified_signatures(note, (key, timed(key)))
    if str(key) not in times:
        raise VerificationError("checkpoint.unsigned", f"the checkpoint is not signed by {key}")
    if str(timed(key)) not in times:
        raise VerificationError("checkpoint.undated", "the log does not say when it signed the checkpoint")
    return Checkpoint(head=head, note=note, time_s=times[str(timed(key))])


def sign_checkpoint(head: TreeHead, seed: bytes, time_s: int) -> str:
    """The checkpoint's note with the log's two lines. The key's name is the origin."""
    lines = (sign_note(head.text, head.origin, seed), cosign_note(head.text, head.origin, seed, time_s))
    return str(Note(text=head.text, signatures=lines))


def log_key(origin: str, seed: bytes) -> NoteKey:
    """A log's verifier key."""
    return note_key(origin, seed, ED25519)


def witnessed(note: Note, witnesses: Sequence[NoteKey]) -> tuple[NoteKey, ...]:
    """The witnesses whose cosignature the note carries. Raises VerificationError ``note.signature``."""
    found = verified_signatures(note, witnesses)
    return tuple(key for key in witnesses if str(key) in found)


def with_signatures(text: str, lines: Sequence[NoteSignature]) -> str:
    """The note with further signature lines; one that is there already is not repeated."""
    note = read_note(text)
    return str(Note(text=note.text, signatures=tuple(dict.fromkeys((*note.signatures, *lines)))))
