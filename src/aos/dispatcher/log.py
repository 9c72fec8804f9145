"""The dispatcher's transparency log (docs/spec/15-log.md, "Sequencing"): leaves into the tree, checkpoints, promises, proofs.

Triggers write a leaf with its fact; the sequencer gives waiting leaves their places and signs the tree, all in one
transaction under an advisory lock. It keeps nothing: killed at any moment, the next one goes on from the rows, and nothing is
public that is not stored. Every proof is read out of tiles.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from asyncpg import Record

from aos.adapters.postgres import Pool, unavailable
from aos.core.log.checkpoint import TreeHead, log_key, origin_of, sign_checkpoint, with_signatures
from aos.core.log.leaf import KINDS, LoggedLeaf, LogPart, LogPromise, entry_of, log_leaf
from aos.core.log.note import NoteSignature, read_signature_line
from aos.core.log.tiles import (
    WIDTH,
    Plan,
    Tile,
    TilePath,
    consistency_plan,
    edge_tiles,
    grow,
    inclusion_plan,
    root_plan,
    width_at,
)
from aos.core.merkle import EMPTY_ROOT, HASH_BYTES
from aos.core.statements import Signed, sign
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.refusals import NotFound, place
from aos.errors import ConfigError, InvalidMessage, Unavailable

log = structlog.get_logger("aos.dispatcher")

BATCH = 4096
SETTLE_S = 2.0
MAX_ENTRIES = 1000
_LOCK = 0x414F534C  # "AOSL"


class Log:
    """The log of one dispatcher. ``measured`` is told how many leaves a pass took, and in how many seconds."""

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        *,
        now_ms: Callable[[], int],
        measured: Callable[[int, float], None] = lambda leaves, seconds: None,
    ) -> None:
        assert config.keys.log is not None  # noqa: S101  without a key there is no log to make
        self._pool, self._config, self._seed = pool, config, config.keys.log
        self._now_ms, self._measured = now_ms, measured
        self.origin = origin_of(config.network, config.keys.address)
        self.key = log_key(self.origin, self._seed)
        self.signed = asyncio.Event()
        """Set where a new tree was signed; whoever waits clears it."""
        self._size = 0
        self._time_s = 0
        self._wanted = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []

    async def open(self) -> None:
        """Take up the stored tree. Raises ConfigError ``log.foreign_key``, Unavailable."""
        async with unavailable():
            head = await self._pool.fetchrow("SELECT * FROM log_head")
        if head is not None and head["log_key"] != str(self.key):
            raise ConfigError(
                "log.foreign_key",
                "this database's log was signed with another key, and nobody would believe a new one",
                field="log_key",
                hint=f"its key is {head['log_key']}",
            )
        if head is not None:
            self._size, self._time_s = head["size"], head["time_s"]

    async def run(self) -> None:
        """Sequence at the interval, and when somebody waits, until cancelled."""
        while True:
            self._wanted.clear()
            waiting, self._waiting = self._waiting, []
            done = False
            try:
                done = await self.sequence()
            except Unavailable as error:
                log.warning("log.waits", code=error.code)
            except Exception as error:
                # A defect must not end the log for good; the leaves wait.
                log.error("log.defect", **place(error))
            if not done:
                self._waiting += waiting
                await asyncio.sleep(self._config.log.interval_ms / 1000)
                continue
            for future in waiting:
                if not future.done():
                    future.set_result(None)
            try:
                async with asyncio.timeout(self._config.log.interval_ms / 1000):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def settled(self, timeout_s: float = SETTLE_S) -> None:
        """Wait until what is stored now is in a signed tree, or the time is over."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wanted.set()
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return

    async def sequence(self) -> bool:
        """Give every waiting leaf its place and sign the tree; False where another process is at it. Raises Unavailable."""
        begun = time.perf_counter()
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            if not await db.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LOCK):
                return False
            # What is published must not be lost with the server's last second.
            await db.execute("SET LOCAL synchronous_commit = on")
            head = await db.fetchrow("SELECT * FROM log_head FOR UPDATE")
            size = before = 0 if head is None else head["size"]
            # Dated before the leaves are looked for: what was stored before this date is in this tree. Never back in time.
            time_s = max(self._now_ms() // 1000, 0 if head is None else head["time_s"])
            while True:
                rows = await db.fetch(
                    "SELECT seq, leaf FROM log_leaf WHERE leaf_index IS NULL ORDER BY seq LIMIT $1", BATCH
                )
                if rows:
                    size = await self._place(db, size, rows)
                if len(rows) < BATCH:
                    break
            stale = head is not None and time_s * 1000 >= head["time_s"] * 1000 + self._config.log.refresh_ms
            if size == before and head is not None and not stale:
                return True
            await self._sign(db, size, time_s, new=size > before)
        self._size, self._time_s = size, time_s
        if size > before:
            self._measured(size - before, time.perf_counter() - begun)
            self.signed.set()
        return True

    async def _place(self, db: Any, size: int, rows: Sequence[Record]) -> int:
        await db.execute(
            """UPDATE log_leaf l SET leaf_index = n.index
               FROM unnest($1::bigint[], $2::bigint[]) AS n (seq, index) WHERE l.seq = n.seq""",
            [row["seq"] for row in rows],
            list(range(size, size + len(rows))),
        )
        changed = grow(size, await _tiles(db, edge_tiles(size)), [row["leaf"] for row in rows])
        await db.executemany(
            """INSERT INTO log_tile (level, index, hashes) VALUES ($1, $2, $3)
               ON CONFLICT (level, index) DO UPDATE SET hashes = excluded.hashes""",
            [(level, index, hashes) for (level, index), hashes in changed.items()],
        )
        return size + len(rows)

    async def _sign(self, db: Any, size: int, time_s: int, *, new: bool) -> None:
        root = (await _resolved(db, root_plan(size)))[0] if size else EMPTY_ROOT
        note = sign_checkpoint(TreeHead(origin=self.origin, size=size, root=root), self._seed, time_s)
        if new:
            await db.execute(
                "INSERT INTO log_checkpoint (size, root, time_s, note) VALUES ($1, $2, $3, $4)",
                size,
                root,
                time_s,
                note,
            )
        await db.execute(
            """INSERT INTO log_head (log_key, size, time_s, note) VALUES ($1, $2, $3, $4) ON CONFLICT (only_row)
               DO UPDATE SET size = excluded.size, time_s = excluded.time_s, note = excluded.note""",
            str(self.key),
            size,
            time_s,
            note,
        )

    # --- promises

    @property
    def size(self) -> int:
        """Leaves in the signed tree as this process knows it: where a leaf that is not stored yet can come at the earliest."""
        return self._size

    def promise(self, first: int, salt: bytes, acceptance: bytes) -> Signed[LogPromise]:
        """Promise the leaf of an acceptance that is stored. ``first`` is ``size`` from before it was."""
        now = max(self._now_ms(), self._time_s * 1000)
        promise = LogPromise(
            network=self._config.network,
            dispatcher=self._config.keys.address,
            log_key=str(self.key),
            leaf=log_leaf("acceptance", salt, acceptance),
            salt=salt,
            first=first,
            promised_at=now,
            integrate_by=now + self._config.log.merge_ms,
        )
        return sign(self._config.keys.signer, promise)

    # --- what everybody may read

    async def checkpoint(self) -> str:
        """The latest checkpoint with its cosignatures. Raises NotFound ``log.empty`` before the first."""
        async with unavailable():
            head = await self._pool.fetchrow("SELECT size, note FROM log_head")
            if head is None:
                raise NotFound("log.empty", "no tree is signed yet", hint="ask again in a second")
            return with_signatures(head["note"], await self._cosignatures(head["size"]))

    async def head(self) -> tuple[int, bytes] | None:
        """Size and root of the last tree that was signed with leaves in it."""
        async with unavailable():
            row = await self._pool.fetchrow(
                "SELECT size, root FROM log_checkpoint ORDER BY size DESC LIMIT 1"
            )
        return None if row is None else (row["size"], row["root"])

    async def root_of(self, size: int) -> bytes:
        """The root of the first ``size`` leaves, which are signed."""
        async with unavailable():
            (root,) = await _resolved(self._pool, root_plan(size))
        return root

    async def public_size(self) -> int:
        """Leaves in the last signed tree."""
        async with unavailable():
            return await self._pool.fetchval("SELECT size FROM log_head") or 0

    async def entries(self, start: int, limit: int) -> list[dict[str, Any]]:
        """Entries from ``start`` on: index, kind, and the salted hash (base64url by the caller)."""
        async with unavailable():
            rows = await self._pool.fetch(
                "SELECT leaf_index, kind, digest FROM log_leaf WHERE leaf_index >= $1 ORDER BY leaf_index LIMIT $2",
                start,
                min(limit, MAX_ENTRIES),
            )
        return [
            {"index": row["leaf_index"], "kind": KINDS[row["kind"] - 1], "digest": row["digest"]}
            for row in rows
        ]

    async def inclusion(self, leaf: bytes, size: int | None) -> dict[str, Any]:
        """Index, path and root of a leaf in the tree of ``size``. Raises NotFound ``log.unknown_leaf``, ``log.size``."""
        size = await self._checked_size(size)
        async with unavailable():
            index = await self._pool.fetchval(
                "SELECT leaf_index FROM log_leaf WHERE leaf = $1 AND leaf_index < $2 ORDER BY leaf_index LIMIT 1",
                leaf,
                size,
            )
            if index is None:
                raise NotFound("log.unknown_leaf", f"no leaf of the first {size} has this hash", field="leaf")
            path, root = await self._proof(inclusion_plan(index, size), size)
        return {"index": index, "size": size, "root": root, "path": path}

    async def consistency(self, old_size: int, size: int | None) -> dict[str, Any]:
        """Path and both roots. Raises NotFound ``log.size``, InvalidMessage ``field.range``."""
        size = await self._checked_size(size)
        if not 1 <= old_size <= size:
            raise InvalidMessage("field.range", f"from: must be 1 to {size}", field="from")
        async with unavailable():
            path, root = await self._proof(consistency_plan(old_size, size), size)
            (old_root,) = await _resolved(self._pool, root_plan(old_size))
        return {"from": old_size, "to": size, "from_root": old_root, "to_root": root, "path": path}

    async def tile(self, tile: TilePath) -> bytes:
        """A tile's or an entry bundle's bytes. Raises NotFound ``log.unknown_tile``."""
        if tile.width > width_at(tile.level, tile.index, await self.public_size()):
            raise NotFound("log.unknown_tile", "the tree has no such tile, or not so wide a one")
        async with unavailable():
            if tile.level >= 0:
                held = await self._pool.fetchval(
                    "SELECT hashes FROM log_tile WHERE level = $1 AND index = $2", tile.level, tile.index
                )
                return bytes(held)[: tile.width * HASH_BYTES]
            first = tile.index * WIDTH
            rows = await self._pool.fetch(
                "SELECT kind, digest FROM log_leaf WHERE leaf_index >= $1 AND leaf_index < $2 ORDER BY leaf_index",
                first,
                first + tile.width,
            )
        entries = [entry_of(KINDS[row["kind"] - 1], row["digest"]) for row in rows]
        return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)

    # --- what an answer file shows

    async def part(self, job_id: str, receipt_id: str) -> LogPart | None:
        """A checkpoint with the job's acceptance and a receipt in its tree; None where they are in none within ``SETTLE_S``."""
        for last in (False, True):
            async with unavailable():
                rows = await self._pool.fetch(
                    """SELECT kind, salt, leaf_index FROM log_leaf
                       WHERE (kind, subject) IN ((1, $1::text), (7, $2::text)) AND leaf_index IS NOT NULL""",
                    job_id,
                    receipt_id,
                )
            if len(rows) == 2:
                return await self._part({row["kind"]: row for row in rows})
            if not last:
                await self.settled()
        return None

    async def _part(self, rows: dict[int, Record]) -> LogPart:
        highest = max(row["leaf_index"] for row in rows.values())
        async with unavailable():
            # Signed first of all that hold both, so that a file stays what it was; of the cosigned ones, where that is wanted.
            held = await self._pool.fetchrow(
                """SELECT size, note FROM log_checkpoint WHERE size > $1 AND cosigned >= $2 AND cosigned > 0
                   ORDER BY size LIMIT 1""",
                highest,
                self._config.log.quorum,
            ) or await self._pool.fetchrow(
                "SELECT size, note FROM log_checkpoint WHERE size > $1 ORDER BY size LIMIT 1", highest
            )
            note = with_signatures(held["note"], await self._cosignatures(held["size"]))
            leaves = [
                LoggedLeaf(
                    salt=rows[kind]["salt"],
                    index=rows[kind]["leaf_index"],
                    path=tuple(
                        await _resolved(self._pool, inclusion_plan(rows[kind]["leaf_index"], held["size"]))
                    ),
                )
                for kind in (1, 7)
            ]
        return LogPart(checkpoint=note, acceptance=leaves[0], receipt=leaves[1])

    # --- witnesses

    async def cosigned(self, size: int, witness: str, line: NoteSignature) -> None:
        """Store a witness's line for the checkpoint of ``size``, verified by the caller; the last one counts."""
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await db.execute("SELECT 1 FROM log_checkpoint WHERE size = $1 FOR UPDATE", size)
            await db.execute(
                """INSERT INTO log_cosignature (size, witness, line) VALUES ($1, $2, $3)
                   ON CONFLICT (size, witness) DO UPDATE SET line = excluded.line""",
                size,
                witness,
                str(line),
            )
            await db.execute(
                """UPDATE log_checkpoint SET cosigned = (SELECT count(*) FROM log_cosignature WHERE size = $1)
                   WHERE size = $1""",
                size,
            )

    async def _cosignatures(self, size: int) -> list[NoteSignature]:
        rows = await self._pool.fetch(
            "SELECT line FROM log_cosignature WHERE size = $1 ORDER BY witness", size
        )
        return [read_signature_line(row["line"].removesuffix("\n")) for row in rows]

    async def _checked_size(self, size: int | None) -> int:
        public = await self.public_size()
        if size is None:
            size = public
        if not 1 <= size <= public:
            raise NotFound("log.size", f"the signed tree has {public} leaves", field="size")
        return size

    async def _proof(self, plan: Plan, size: int) -> tuple[list[bytes], bytes]:
        (root,) = await _resolved(self._pool, root_plan(size))
        return await _resolved(self._pool, plan), root


async def _resolved(db: Any, plan: Plan) -> list[bytes]:
    return plan.resolve(await _tiles(db, sorted(plan.tiles())))


async def _tiles(db: Any, wanted: Sequence[Tile]) -> dict[Tile, bytes]:
    if not wanted:
        return {}
    rows = await db.fetch(
        """SELECT t.level, t.index, t.hashes FROM log_tile t
           JOIN unnest($1::smallint[], $2::bigint[]) AS w (level, index) USING (level, index)""",
        [level for level, _ in wanted],
        [index for _, index in wanted],
    )
    return {(row["level"], row["index"]): bytes(row["hashes"]) for row in rows}
