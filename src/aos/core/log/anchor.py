"""Anchors: roots of a log that its dispatcher wrote into a contract (docs/spec/15-log.md, "Anchors").

Whoever reads the contract sees the same ones, so a log that was told otherwise to somebody contradicts itself before all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from aos.core.codec import Address, Bytes32, Range, UInt, decode, encode
from aos.core.encoding import canonical_json, parse_canonical
from aos.core.log.checkpoint import Checkpoint, verify_checkpoint
from aos.core.log.leaf import NoteText, Path, VerifierKey
from aos.core.log.note import NoteKey, read_vkey
from aos.core.merkle import consistency_roots
from aos.errors import VerificationError

MAX_ANCHOR_FORK_BYTES = 65_536
FORK_CODE = "log.anchor_fork"


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What a contract holds of a log: ``root`` (32 bytes) of its first ``size`` leaves, written in ``block``."""

    size: int
    root: bytes
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorFork:
    """The tree of ``checkpoint`` begins with a tree of ``old_root``, and the contract ``registry`` of chain ``chain_id`` holds
    ``root`` for that size. ``path`` is a consistency path, empty where ``checkpoint`` is of that size itself.

    The file alone proves what the log signed; what the contract holds, a node of the chain says.
    """

    TYPE: ClassVar[str] = "aos.log_anchor_fork"
    V: ClassVar[int] = 1

    log: VerifierKey
    chain_id: Annotated[int, Range(1, 2**53 - 1)]
    registry: Address
    block: UInt
    size: Annotated[int, Range(1, 2**53 - 1)]
    root: Bytes32
    checkpoint: NoteText
    old_root: Bytes32
    path: Path

    @property
    def anchor(self) -> Anchor:
        return Anchor(size=self.size, root=self.root, block=self.block)


def anchor_contradiction(
    key: NoteKey,
    anchor: Anchor,
    checkpoint: Checkpoint,
    old_root: bytes,
    path: Sequence[bytes],
    *,
    chain_id: int,
    registry: str,
) -> AnchorFork | None:
    """What an anchor and a checkpoint of ``key`` prove together; None where the checkpoint's tree begins with the anchored one.

    ``old_root`` and ``path`` are what the log says of the anchored size within the checkpoint's. Raises VerificationError
    ``log.behind_anchor`` (the checkpoint has fewer leaves), ``merkle.*`` where the path proves neither.
    """
    found = _root_at(anchor.size, checkpoint, old_root, path)
    if found == anchor.root:
        return None
    return AnchorFork(
        log=str(key),
        chain_id=chain_id,
        registry=registry,
        block=anchor.block,
        size=anchor.size,
        root=anchor.root,
        checkpoint=str(checkpoint.note),
        old_root=found,
        path=tuple(path) if checkpoint.head.size > anchor.size else (),
    )


def read_anchor_fork(data: bytes) -> AnchorFork:
    """Strictly decode a file: canonical JSON. Raises InvalidMessage ``encoding.*``, ``field.*``."""
    return decode(AnchorFork, parse_canonical(data, max_bytes=MAX_ANCHOR_FORK_BYTES))


def write_anchor_fork(fork: AnchorFork) -> bytes:
    """The file's bytes."""
    return canonical_json(encode(fork))


def check_anchor_fork(fork: AnchorFork) -> NoteKey:
    """What the file proves by itself: the log of the returned key signed a tree that begins otherwise than the anchor said of
    it. Whether the contract holds that anchor is the caller's to ask.

    Raises VerificationError ``conviction.consistent``, ``conviction.old_root``, ``log.behind_anchor``; ``note.*``,
    ``checkpoint.*``, ``merkle.*`` where a part of it is not what it says.
    """
    key = read_vkey(fork.log)
    found = _root_at(fork.size, verify_checkpoint(fork.checkpoint, key), fork.old_root, fork.path)
    if found != fork.old_root:
        raise VerificationError(
            "conviction.old_root", "the path leads to another old root than the file says"
        )
    if found == fork.root:
        raise VerificationError("conviction.consistent", "the tree begins with what was anchored")
    return key


def _root_at(size: int, checkpoint: Checkpoint, old_root: bytes, path: Sequence[bytes]) -> bytes:
    """The root of the first ``size`` leaves of a checkpoint's tree."""
    head = checkpoint.head
    if head.size < size:
        raise VerificationError(
            "log.behind_anchor", f"the log shows {head.size} leaves, {size} were anchored on the chain"
        )
    if head.size == size:
        if path:
            raise VerificationError("merkle.path_length", "equal sizes need no path", field="path")
        return head.root
    old, new = consistency_roots(size, head.size, path, old_root)
    if new != head.root:
        raise VerificationError("merkle.root_mismatch", "path does not lead to the new root", field="path")
    return old
