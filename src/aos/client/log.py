"""A log as a stranger reads it: its HTTP interface, and one look of a watcher (docs/spec/15-log.md, "HTTP", "Convictions")."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from aos.core.encoding import b64u_decode, b64u_encode, parse_json_strict
from aos.core.log.anchor import Anchor, AnchorFork, anchor_contradiction
from aos.core.log.checkpoint import Checkpoint, verify_checkpoint
from aos.core.log.conviction import BrokenPromise, Conviction, contradiction, judge
from aos.core.log.leaf import LogPromise
from aos.core.log.note import MAX_NOTE_BYTES, NoteKey
from aos.core.log.tiles import WIDTH, Tile, TilePath, range_plan, tile_path, width_at
from aos.core.merkle import EMPTY_ROOT, HASH_BYTES, verify_inclusion
from aos.core.statements import Signed
from aos.errors import AOSError, InvalidMessage, Unavailable, VerificationError

MAX_PROOF_BYTES = 65_536
MAX_LIST_BYTES = 1 << 20


class LogReader:
    """Reads one dispatcher's log; believes nothing of it."""

    def __init__(self, url: str, *, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        # As the client: a proxy is of no use for a dispatcher on this machine.
        local = httpx.URL(self.url).host in ("127.0.0.1", "::1", "localhost")
        self._http = httpx.Client(timeout=timeout_s, follow_redirects=False, trust_env=not local)

    def __enter__(self) -> "LogReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def checkpoint(self) -> str:
        """The latest checkpoint as it was served. Raises Unavailable, InvalidMessage ``log.answer``."""
        data = self._get("checkpoint", MAX_NOTE_BYTES)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise _no_log("the checkpoint is not UTF-8") from None

    def entries(self, start: int, limit: int) -> list[dict[str, Any]]:
        """Entries as they are served: index, kind, digest."""
        listed = self._json(f"entries?start={start}&limit={limit}", MAX_LIST_BYTES).get("entries")
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise _no_log("it lists no entries")
        return listed

    def consistency(self, old_size: int, size: int) -> tuple[bytes, tuple[bytes, ...]]:
        """What the log says of its first ``old_size`` leaves: their root, and the path to that of ``size``."""
        found = self._json(f"consistency?from={old_size}&to={size}", MAX_PROOF_BYTES)
        return _hash(found.get("from_root")), _path(found)

    def inclusion(self, leaf: bytes, size: int) -> tuple[int, tuple[bytes, ...]]:
        """Index and path of a leaf in the tree of ``size``."""
        found = self._json(f"inclusion?leaf={b64u_encode(leaf)}&size={size}", MAX_PROOF_BYTES)
        index = found.get("index")
        if type(index) is not int:
            raise _no_log("it gives no index")
        return index, _path(found)

    def leaves(self, first: int, size: int) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """The leaf hashes from ``first`` to ``size``, and their path to the root (``merkle.range_root``), out of tiles."""
        if first >= size:
            return (), ()
        plan = range_plan(first, size - first, size)
        rows = {(0, index) for index in range(first // WIDTH, (size - 1) // WIDTH + 1)}
        tiles = {tile: self._tile(tile, size) for tile in sorted(rows | plan.tiles())}
        data = b"".join(tiles[tile] for tile in sorted(rows))
        at = first % WIDTH * HASH_BYTES
        row = data[at : at + (size - first) * HASH_BYTES]
        found = tuple(row[i : i + HASH_BYTES] for i in range(0, len(row), HASH_BYTES))
        return found, tuple(plan.resolve(tiles))

    def _tile(self, tile: Tile, size: int) -> bytes:
        level, index = tile
        width = width_at(level, index, size)
        path = tile_path(TilePath(level=level, index=index, width=width))
        data = self._get(f"tile/{path}", WIDTH * HASH_BYTES)
        if len(data) != width * HASH_BYTES:
            raise _no_log(f"tile {path} has {len(data)} bytes")
        return data

    def _json(self, path: str, limit: int) -> dict[str, Any]:
        value = parse_json_strict(self._get(path, limit), max_bytes=limit)
        if not isinstance(value, dict):
            raise _no_log("it answers no object")
        return value

    def _get(self, path: str, limit: int) -> bytes:
        try:
            with self._http.stream("GET", f"{self.url}/v1/aos/log/{path}") as response:
                data = b""
                for part in response.iter_bytes():
                    data += part
                    if len(data) > limit:
                        raise _no_log(f"it answers more than {limit} bytes")
                status = response.status_code
        except httpx.TransportError as error:
            raise Unavailable(
                "client.unreachable",
                f"no answer from the log at {self.url}: {type(error).__name__}",
                hint="is it running? `aos up` starts a local network",
            ) from error
        if status != 200:
            raise _refused(status, data, self.url)
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a watcher found. ``held`` is what to keep. ``conviction`` convicts the log before anybody; ``broken`` says what the
    log could not show, which convicts nobody and is as bad a sign."""

    seen: str
    held: Checkpoint | None
    conviction: Conviction | None = None
    broken: AOSError | None = None


def look(reader: LogReader, key: NoteKey, held: Checkpoint | None) -> Look:
    """Compare the log's checkpoint with the one that was kept. Raises Unavailable where the log does not answer."""
    seen = reader.checkpoint()
    try:
        new = verify_checkpoint(seen, key)
        if held is None:
            return Look(seen=seen, held=new)
        small, large = sorted((held.head.size, new.head.size))
        root, path = EMPTY_ROOT, tuple[bytes, ...]()
        later = new.time_s > held.time_s
        if 0 < small < large and not (later and new.head.size < held.head.size):
            root, path = reader.consistency(small, large)
        found = contradiction(key, held, new, root, path)
    except Unavailable:
        raise
    except AOSError as error:
        return Look(seen=seen, held=held, broken=error)
    if found is not None:
        return Look(seen=seen, held=held, conviction=found)
    return Look(seen=seen, held=new if new.head.size >= held.head.size else held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """What comparing a log with its anchors found, up to the first that does not hold. ``broken`` as in ``Look``."""

    compared: int
    fork: AnchorFork | None = None
    broken: AOSError | None = None


def look_at_anchors(
    reader: LogReader,
    key: NoteKey,
    checkpoint: Checkpoint,
    anchors: Sequence[Anchor],
    *,
    chain_id: int,
    registry: str,
) -> Anchored:
    """Whether the tree of ``checkpoint`` begins with each of the anchored ones. Raises Unavailable where the log does not
    answer."""
    for compared, anchor in enumerate(anchors):
        try:
            root, path = checkpoint.head.root, tuple[bytes, ...]()
            if anchor.size < checkpoint.head.size:
                root, path = reader.consistency(anchor.size, checkpoint.head.size)
            fork = anchor_contradiction(
                key, anchor, checkpoint, root, path, chain_id=chain_id, registry=registry
            )
        except Unavailable:
            raise
        except AOSError as error:
            return Anchored(compared=compared, broken=error)
        if fork is not None:
            return Anchored(compared=compared, fork=fork)
    return Anchored(compared=len(anchors))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How a promise stands. ``index`` is the leaf's place in ``checkpoint``; with no ``conviction`` either, its time is to come."""

    checkpoint: Checkpoint
    index: int | None = None
    conviction: BrokenPromise | None = None


def ask_promise(reader: LogReader, key: NoteKey, promise: Signed[LogPromise]) -> Kept:
    """Look for a promised leaf; where it is not in a tree that is dated late enough, gather what convicts the log.

    The promise's signature is the caller's to check. Raises Unavailable; VerificationError ``conviction.foreign`` (of another log),
    ``merkle.*``, ``log.answer`` where the log shows leaves that are not its tree's.
    """
    told = promise.statement
    if told.log_key != str(key):
        raise VerificationError("conviction.foreign", "the promise is of another log than the trust file's")
    checkpoint = verify_checkpoint(reader.checkpoint(), key)
    head = checkpoint.head
    if head.size > told.first:
        try:
            index, path = reader.inclusion(told.leaf, head.size)
        except VerificationError as error:
            if error.code != "log.unknown_leaf":
                raise
        else:
            verify_inclusion(told.leaf, index, head.size, path, head.root)
            return Kept(checkpoint=checkpoint, index=index)
    if checkpoint.time_s * 1000 < told.integrate_by:
        return Kept(checkpoint=checkpoint)
    leaves, paths = reader.leaves(told.first, head.size)
    conviction = BrokenPromise(
        kind="broken_promise",
        log=str(key),
        promise=promise,
        checkpoint=str(checkpoint.note),
        leaves=leaves,
        path=paths,
    )
    judge(conviction, [key])
    return Kept(checkpoint=checkpoint, conviction=conviction)


def _hash(value: object) -> bytes:
    if not isinstance(value, str):
        raise _no_log("a hash is missing")
    return b64u_decode(value, length=32)


def _path(found: dict[str, Any]) -> tuple[bytes, ...]:
    path = found.get("path")
    if not isinstance(path, list) or len(path) > 64:
        raise _no_log("it gives no path")
    return tuple(map(_hash, path))


def _no_log(what: str) -> InvalidMessage:
    return InvalidMessage(
        "log.answer", f"this is not how a log answers: {what}", hint="is the URL a dispatcher's?"
    )


def _refused(status: int, data: bytes, url: str) -> AOSError:
    code, detail = "log.answer", f"the log answers {status}"
    try:
        problem = parse_json_strict(data, max_bytes=MAX_PROOF_BYTES)
    except AOSError:
        problem = None
    if isinstance(problem, dict) and isinstance(problem.get("title"), str):
        code, detail = str(problem["title"])[:64], str(problem.get("detail", detail))[:300]
    if status >= 500:
        return Unavailable("client.unreachable", f"{url} answers {status}: {detail}")
    return VerificationError(code, detail)
