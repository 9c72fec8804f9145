"""Files that convict a log (docs/spec/15-log.md, "Convictions"): signed words of one key that no honest log can all have said.

``judge`` needs nothing but the file. Who holds the key, a trust file says; that a log merely did not answer convicts nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from aos.core.codec import Bytes32, MaxLength, UInt, decode, encode
from aos.core.encoding import canonical_json, parse_canonical
from aos.core.log.checkpoint import Checkpoint, origin_of, verify_checkpoint
from aos.core.log.leaf import Kind, LogPromise, NoteText, Path, VerifierKey, log_leaf
from aos.core.log.note import ED25519, NoteKey, read_vkey
from aos.core.merkle import consistency_roots, inclusion_root, range_root
from aos.core.statements import (
    Acceptance,
    CommitSet,
    Countersign,
    DrawCall,
    DrawRecord,
    Signed,
    check_signed,
    hash_of,
    read_signed,
)
from aos.errors import InvalidMessage, VerificationError

MAX_CONVICTION_BYTES = 64 << 20
MAX_LEAVES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitView:
    """Two checkpoints of one size with different roots."""

    TYPE: ClassVar[str] = "aos.log_conviction"
    V: ClassVar[int] = 1

    kind: Literal["split_view"]
    log: VerifierKey
    first: NoteText
    second: NoteText


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """The tree of ``second`` begins with a tree of ``old_root``, which is not what ``first`` says of that size."""

    TYPE: ClassVar[str] = "aos.log_conviction"
    V: ClassVar[int] = 1

    kind: Literal["fork"]
    log: VerifierKey
    first: NoteText
    second: NoteText
    old_root: Bytes32
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """``second`` was signed later than ``first``, by the log's own dates, and has fewer leaves."""

    TYPE: ClassVar[str] = "aos.log_conviction"
    V: ClassVar[int] = 1

    kind: Literal["rollback"]
    log: VerifierKey
    first: NoteText
    second: NoteText


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenPromise:
    """A checkpoint dated at the promise's deadline or later, all of its leaves from ``promise.first`` on, and the promised one is
    not among them. ``path`` leads from those leaves to the root; both are empty where the tree ends before ``first``."""

    TYPE: ClassVar[str] = "aos.log_conviction"
    V: ClassVar[int] = 1

    kind: Literal["broken_promise"]
    log: VerifierKey
    promise: Signed[LogPromise]
    checkpoint: NoteText
    leaves: Annotated[tuple[Bytes32, ...], MaxLength(MAX_LEAVES)]
    path: Annotated[tuple[Bytes32, ...], MaxLength(128)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownFact:
    """A fact at its place in the tree: the exact text that was logged, and its salt."""

    kind: Kind
    fact: Annotated[str, MaxLength(1 << 20)]
    salt: Bytes32
    index: UInt
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Reordered:
    """``effect`` names ``cause`` by its hash, and comes before it in one tree. Both are D's own."""

    TYPE: ClassVar[str] = "aos.log_conviction"
    V: ClassVar[int] = 1

    kind: Literal["reordered"]
    log: VerifierKey
    checkpoint: NoteText
    cause: ShownFact
    effect: ShownFact


Conviction = SplitView | Fork | Rollback | BrokenPromise | Reordered
_KINDS: dict[str, type[Any]] = {
    "split_view": SplitView,
    "fork": Fork,
    "rollback": Rollback,
    "broken_promise": BrokenPromise,
    "reordered": Reordered,
}
CODES = {
    "split_view": "log.split_view",
    "fork": "log.fork",
    "rollback": "log.rollback",
    "broken_promise": "log.broken_promise",
    "reordered": "log.reordered",
}
_FACTS: dict[Kind, type[Any]] = {
    "acceptance": Acceptance,
    "draw_call": DrawCall,
    "draw_record": DrawRecord,
    "commit_set": CommitSet,
    "receipt": Countersign,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Convicted:
    """Whom a file convicts, and of what."""

    key: NoteKey
    kind: str
    text: str

    @property
    def code(self) -> str:
        """The stable code of what the log is convicted of."""
        return CODES[self.kind]


def read_conviction(data: bytes) -> Conviction:
    """Strictly decode a file: canonical JSON. Raises InvalidMessage ``encoding.*``, ``field.*``, ``conviction.kind``."""
    value = parse_canonical(data, max_bytes=MAX_CONVICTION_BYTES)
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InvalidMessage(
            "conviction.kind", f"kind must be one of {', '.join(sorted(_KINDS))}", field="kind"
        )
    found: Conviction = decode(_KINDS[kind], value)
    return found


def write_conviction(conviction: Conviction) -> bytes:
    """The file's bytes."""
    return canonical_json(encode(conviction))


def judge(conviction: Conviction, logs: Sequence[NoteKey] | None = None) -> Convicted:
    """What the file proves against the log whose key it names; ``logs`` are those whose conviction is worth something.

    Raises VerificationError ``conviction.*`` where it proves nothing; ``note.*``, ``checkpoint.*``, ``merkle.*``,
    ``signature.*`` where a part of it is not what it says.
    """
    key = read_vkey(conviction.log)
    if key.kind != ED25519:
        raise InvalidMessage("note.vkey", "a log's key is of type 1", field="log")
    if logs is not None and key not in logs:
        raise _nothing("untrusted_log", f"{key.name} is not a log that the trust file names")
    if isinstance(conviction, SplitView):
        text = _split_view(conviction, key)
    elif isinstance(conviction, Fork):
        text = _fork(conviction, key)
    elif isinstance(conviction, Rollback):
        text = _rollback(conviction, key)
    elif isinstance(conviction, BrokenPromise):
        text = _broken_promise(conviction, key)
    else:
        text = _reordered(conviction, key)
    return Convicted(key=key, kind=conviction.kind, text=text)


def contradiction(
    key: NoteKey, first: Checkpoint, second: Checkpoint, old_root: bytes, path: Sequence[bytes]
) -> Conviction | None:
    """The conviction that two checkpoints of ``key`` make, in whatever order they were seen; None where they agree.

    ``old_root`` and ``path`` are what the log says of the smaller one within the larger. Raises VerificationError ``merkle.*``
    where that proves neither agreement nor contradiction.
    """
    named = {"log": str(key), "first": str(first.note), "second": str(second.note)}
    if first.head.size == second.head.size:
        same = first.head.root == second.head.root
        return None if same else SplitView(kind="split_view", **named)
    if first.head.size > second.head.size and second.time_s > first.time_s:
        return Rollback(kind="rollback", **named)
    if first.head.size > second.head.size:
        first, second = second, first
        named |= {"first": str(first.note), "second": str(second.note)}
    if first.head.size == 0:
        return None
    found = _prefix(first, second, old_root, path)
    if found == first.head.root:
        return None
    return Fork(kind="fork", **named, old_root=found, path=tuple(path))


def _nothing(code: str, message: str) -> VerificationError:
    return VerificationError(f"conviction.{code}", message)


def _split_view(it: SplitView, key: NoteKey) -> str:
    first, second = verify_checkpoint(it.first, key), verify_checkpoint(it.second, key)
    if first.head.size != second.head.size:
        raise _nothing("sizes", "the two checkpoints are of different sizes")
    if first.head.root == second.head.root:
        raise _nothing("consistent", "the two checkpoints have one root")
    return f"two roots were signed for a tree of {first.head.size} leaves"


def _fork(it: Fork, key: NoteKey) -> str:
    first, second = verify_checkpoint(it.first, key), verify_checkpoint(it.second, key)
    if not 0 < first.head.size < second.head.size:
        raise _nothing("sizes", "the first checkpoint is not the smaller one")
    found = _prefix(first, second, it.old_root, it.path)
    if found != it.old_root:
        raise _nothing("old_root", "the path leads to another old root than the file says")
    if found == first.head.root:
        raise _nothing("consistent", "the second tree begins with the first")
    return f"the tree of {second.head.size} leaves does not begin with the {first.head.size} leaves signed before"


def _prefix(first: Checkpoint, second: Checkpoint, old_root: bytes, path: Sequence[bytes]) -> bytes:
    old, new = consistency_roots(first.head.size, second.head.size, path, old_root)
    if new != second.head.root:
        raise VerificationError("merkle.root_mismatch", "path does not lead to the new root", field="path")
    return old


def _rollback(it: Rollback, key: NoteKey) -> str:
    first, second = verify_checkpoint(it.first, key), verify_checkpoint(it.second, key)
    if second.head.size >= first.head.size:
        raise _nothing("sizes", "the second checkpoint is not smaller")
    if second.time_s <= first.time_s:
        raise _nothing("in_time", "the smaller checkpoint is not the later one")
    return f"{second.head.size} leaves were signed after {first.head.size}"


def _broken_promise(it: BrokenPromise, key: NoteKey) -> str:
    promise, checkpoint = it.promise.statement, verify_checkpoint(it.checkpoint, key)
    check_signed(it.promise, address=promise.dispatcher)
    if promise.log_key != str(key) or key.name != origin_of(promise.network, promise.dispatcher):
        raise _nothing("foreign", "the promise is about another log")
    if checkpoint.time_s * 1000 < promise.integrate_by:
        raise _nothing("in_time", "the checkpoint is dated before the promise's deadline")
    size, first = checkpoint.head.size, promise.first
    if len(it.leaves) != max(0, size - first):
        raise _nothing("leaves", f"the file must hold every leaf from {first} to {size - 1}")
    if it.leaves:
        if range_root(it.leaves, first, size, it.path) != checkpoint.head.root:
            raise VerificationError("merkle.root_mismatch", "the leaves do not lead to the root")
    elif it.path:
        raise VerificationError("merkle.path_length", "no leaves need no path", field="path")
    if promise.leaf in it.leaves:
        raise _nothing("kept", "the promised leaf is in the tree")
    return f"a leaf promised by {promise.integrate_by} is not in a tree dated {checkpoint.time_s * 1000}"


def _reordered(it: Reordered, key: NoteKey) -> str:
    checkpoint = verify_checkpoint(it.checkpoint, key)
    cause, effect = _shown(it.cause, key, checkpoint), _shown(it.effect, key, checkpoint)
    if not _follows(cause, effect):
        raise _nothing("order", "the second fact does not name the first")
    if it.cause.index <= it.effect.index:
        raise _nothing("consistent", "cause and effect are in their order")
    return f"{it.effect.kind} at {it.effect.index} comes before the {it.cause.kind} at {it.cause.index} that it names"


def _shown(shown: ShownFact, key: NoteKey, checkpoint: Checkpoint) -> Any:
    cls = _FACTS.get(shown.kind)
    if cls is None:
        raise _nothing("order", f"a {shown.kind} is not the dispatcher's own statement")
    fact = shown.fact.encode("utf-8")
    signed: Signed[Any] = read_signed(cls, parse_canonical(fact, max_bytes=1 << 20), where=shown.kind)
    said = signed.statement
    check_signed(signed, address=said.dispatcher)
    if key.name != origin_of(said.network, said.dispatcher):
        raise _nothing("foreign", f"the {shown.kind} is of another dispatcher than the log")
    leaf = log_leaf(shown.kind, shown.salt, fact)
    root = inclusion_root(leaf, shown.index, checkpoint.head.size, shown.path)
    if root != checkpoint.head.root:
        raise VerificationError("merkle.root_mismatch", f"the {shown.kind} does not lead to the root")
    return said


def _follows(cause: Any, effect: Any) -> bool:
    """Whether ``effect`` could not be made before ``cause`` was: it names its hash, or is a draw for the job that it accepts."""
    if isinstance(cause, Acceptance):
        return isinstance(effect, DrawCall) and effect.job_ref == cause.job_ref
    named = {DrawCall: "draw_call", DrawRecord: "draw_record", CommitSet: "commit_set"}
    member = named.get(type(cause), "")
    return bool(member) and getattr(effect, member, None) == hash_of(cause)
