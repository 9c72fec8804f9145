"""What a witness does with a checkpoint (docs/spec/15-log.md, "Witnesses"; c2sp.org/tlog-witness): pure, state is an argument."""

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from aos.core.log.checkpoint import Checkpoint, TreeHead, verify_checkpoint
from aos.core.log.conviction import Conviction, contradiction
from aos.core.log.note import MAX_NOTE_BYTES, NoteKey, decode_base64
from aos.core.merkle import HASH_BYTES, MAX_TREE_SIZE, verify_consistency
from aos.errors import AOSError, InvalidMessage, RuleViolation, VerificationError

MAX_PATH = 63
MAX_REQUEST_BYTES = MAX_NOTE_BYTES + (MAX_PATH + 2) * 48

_OLD = re.compile(r"old (0|[1-9][0-9]{0,15})\Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddCheckpoint:
    """The body of ``add-checkpoint``: the size that the witness is thought to hold, a path from there, and the checkpoint."""

    old_size: int
    path: tuple[bytes, ...]
    checkpoint: str


def read_add_checkpoint(body: bytes) -> AddCheckpoint:
    """Raises InvalidMessage ``witness.form``."""
    try:
        text = body.decode("utf-8") if len(body) <= MAX_REQUEST_BYTES else ""
    except UnicodeDecodeError:
        text = ""
    head, separator, note = text.partition("\n\n")
    first, *rest = head.split("\n")
    match = _OLD.match(first)
    if match is None or not separator or int(match[1]) > MAX_TREE_SIZE or len(rest) > MAX_PATH:
        raise InvalidMessage("witness.form", "the body is: old SIZE, hashes, an empty line, a checkpoint")
    path = tuple(decode_base64(line, "witness.form") for line in rest)
    if any(len(value) != HASH_BYTES for value in path):
        raise InvalidMessage("witness.form", "a hash has 32 bytes")
    return AddCheckpoint(old_size=int(match[1]), path=path, checkpoint=note)


def write_add_checkpoint(old_size: int, path: Sequence[bytes], checkpoint: str) -> bytes:
    """The body of ``add-checkpoint``."""
    lines = [f"old {old_size}", *(b64encode(value).decode("ascii") for value in path)]
    return ("\n".join(lines) + "\n\n" + checkpoint).encode()


def advance(held: TreeHead | None, request: AddCheckpoint, key: NoteKey) -> Checkpoint:
    """The checkpoint to cosign and to hold from now on.

    Raises InvalidMessage ``note.*``, ``checkpoint.*``, ``witness.form``; VerificationError ``note.signature``,
    ``checkpoint.*`` (not this log's), ``witness.inconsistent``; RuleViolation ``witness.conflict`` (another size is held).
    """
    checkpoint = verify_checkpoint(request.checkpoint, key)
    new, old_size = checkpoint.head, 0 if held is None else held.size
    if request.old_size > new.size:
        raise InvalidMessage("witness.form", "the old size is larger than the checkpoint's")
    if request.old_size != old_size:
        raise RuleViolation("witness.conflict", f"the last checkpoint cosigned here has {old_size} leaves")
    try:
        if held is None or held.size == 0:
            if request.path:
                raise VerificationError("merkle.path_length", "from an empty tree no path leads on")
        else:
            verify_consistency(held.size, new.size, request.path, held.root, new.root)
    except AOSError as error:
        raise VerificationError(
            "witness.inconsistent", f"not the tree that was cosigned before: {error.message}"
        ) from error
    return checkpoint


def convicts(held: Checkpoint | None, request: AddCheckpoint, key: NoteKey) -> Conviction | None:
    """What a checkpoint that was refused shows of its log, together with the one that is held; None where that is nothing: a
    path that does not hold is its sender's."""
    if held is None:
        return None
    try:
        new = verify_checkpoint(request.checkpoint, key)
        return contradiction(key, held, new, held.head.root, request.path)
    except AOSError:
        return None
