"""An operator's PostgreSQL: what it drew, was assigned, computed and signed (values: ``rows``, schema: ``sql/``).

Every change of state is one transaction and compares before it sets: a method that returns False changed nothing,
because the row was no longer in the state that the caller thought. Prompts and answers are in the columns marked
(erased), and in no log.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aos.adapters.postgres import Connection, Pool, connect_pool, migrate, unavailable
from aos.errors import InvalidMessage, RuleViolation
from aos.operator.rows import (
    Assignment,
    Draw,
    Json,
    NewAssignment,
    NodeState,
    State,
    StoredSnapshot,
    from_text,
    read_assignment,
    read_draw,
    read_node_state,
    read_snapshot,
    to_text,
)

MIGRATIONS = "aos.operator.sql"
MAX_KEEP_MS = 90 * 86_400_000

_COLUMNS = ", ".join(Assignment.__dataclass_fields__)
_CHALLENGEABLE = """
    SELECT FROM chain_claim c WHERE (c.job_ref, c.attempt) = (assignment.job_ref, assignment.attempt) AND (
        c.expires > extract(epoch FROM now())
        OR EXISTS (SELECT FROM court_game g WHERE (g.chain_id, g.court, g.claim) = (c.chain_id, c.court, c.claim) AND g.over = '')
        OR c.expires > extract(epoch FROM now() - interval '30 days') AND NOT EXISTS
            (SELECT FROM court_read r WHERE (r.chain_id, r.court) = (c.chain_id, c.court) AND r.time_s > c.expires))"""
"""Whether a claim at a court may be challenged, or was, as far as its events have been read."""
_UNFINISHED = "('stored', 'executed', 'committed', 'revealing')"


class Store:
    """Typed access to the operator's database. Every method raises Unavailable ``store.unavailable``."""

    def __init__(self, pool: Pool, *, acquire_timeout_s: float = 60) -> None:
        self._pool = pool
        self._acquire_timeout_s = acquire_timeout_s

    @staticmethod
    async def open(
        url: str, *, min_size: int, max_size: int, connect_timeout_s: float, acquire_timeout_s: float
    ) -> "Store":
        """Connect and bring the schema up to date. Raises as ``connect_pool`` and ``migrate``."""
        pool = await connect_pool(
            url,
            min_size=min_size,
            max_size=max_size,
            timeout_s=connect_timeout_s,
            application_name="aos-operator",
        )
        try:
            await migrate(pool, MIGRATIONS)
        except BaseException:
            pool.terminate()
            raise
        return Store(pool, acquire_timeout_s=acquire_timeout_s)

    async def close(self) -> None:
        """Close the pool at once; what was not committed is rolled back."""
        self._pool.terminate()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside a transaction that is committed at the end."""
        async with (
            unavailable(),
            self._pool.acquire(timeout=self._acquire_timeout_s) as connection,
            connection.transaction(),
        ):
            yield connection

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with unavailable(), self._pool.acquire(timeout=self._acquire_timeout_s) as connection:
            yield connection

    async def ping(self) -> None:
        async with self._connection() as connection:
            await connection.execute("SELECT 1")

    # --- the node itself

    async def claim_node(self, node_id: str, dispatcher: str, *, owner: bytes) -> NodeState:
        """Take this database for ``node_id`` and the process ``owner``; one that used it until now will end.

        Raises RuleViolation ``operator.foreign_database`` where it is another operator's or another dispatcher's.
        """
        async with self.transaction() as connection:
            await connection.execute(
                "INSERT INTO node_state (node_id, dispatcher, owner) VALUES ($1, $2, $3)"
                " ON CONFLICT (only_row) DO NOTHING",
                node_id,
                dispatcher,
                owner,
            )
            row = await connection.fetchrow("UPDATE node_state SET owner = $1 RETURNING *", owner)
            state = read_node_state(row)
            if (state.node_id, state.dispatcher) != (node_id, dispatcher):
                raise RuleViolation(
                    "operator.foreign_database",
                    f"this database belongs to operator {state.node_id} at dispatcher {state.dispatcher}",
                    hint="give every operator a database of its own (db.pg_db_name)",
                )
            return state

    async def node(self) -> NodeState | None:
        """The row as it is now; None in a database that no operator has used."""
        async with self._connection() as connection:
            row = await connection.fetchrow("SELECT * FROM node_state")
        return None if row is None else read_node_state(row)

    async def pin_network(self, network: str, vrf_key: bytes, network_file: Json) -> None:
        """Keep what the first connection taught; later ones must say the same of network and key."""
        async with self._connection() as connection:
            await connection.execute(
                "UPDATE node_state SET network = $1, dispatcher_vrf_key = $2, network_file = $3",
                network,
                vrf_key,
                json.dumps(network_file),
            )

    async def save_clock(self, clock_state: Json, *, owner: bytes) -> None:
        """Persist the causal state. Raises RuleViolation ``operator.second_process`` for a former owner."""
        async with self._connection() as connection:
            done = await connection.execute(
                "UPDATE node_state SET clock_state = $1 WHERE owner = $2",
                to_text(clock_state),
                owner,
            )
        if not _changed(done):
            raise RuleViolation(
                "operator.second_process",
                "another process runs this operator on the same database",
                hint="stop one of them; this one ends now",
            )

    async def set_draining(self, draining: bool) -> None:
        """Whether draws are declined, in this process and the next ones."""
        async with self._connection() as connection:
            await connection.execute("UPDATE node_state SET draining = $1", draining)

    # --- registry snapshots

    async def save_snapshot(self, snapshot: StoredSnapshot, entry_json: Json | None) -> None:
        async with self._connection() as connection:
            await connection.execute(
                "INSERT INTO snapshot (root, epoch, max_range, entry) VALUES ($1, $2, $3, $4)"
                " ON CONFLICT (root) DO NOTHING",
                snapshot.root,
                snapshot.epoch,
                snapshot.max_range,
                None if entry_json is None else to_text(entry_json),
            )

    async def snapshot(self, root: bytes) -> StoredSnapshot | None:
        async with self._connection() as connection:
            row = await connection.fetchrow("SELECT * FROM snapshot WHERE root = $1", root)
        return None if row is None else read_snapshot(row)

    async def latest_snapshot(self) -> StoredSnapshot | None:
        """The newest snapshot that this operator has seen."""
        async with self._connection() as connection:
            row = await connection.fetchrow(
                "SELECT * FROM snapshot ORDER BY epoch DESC, stored_at DESC LIMIT 1"
            )
        return None if row is None else read_snapshot(row)

    # --- draws

    async def draw(self, job_ref: bytes, attempt: int) -> Draw | None:
        async with self._connection() as connection:
            row = await connection.fetchrow(
                "SELECT * FROM draw WHERE job_ref = $1 AND attempt = $2", job_ref, attempt
            )
        return None if row is None else read_draw(row)

    async def add_draw(self, draw: Draw) -> bool:
        """Store call and answer; False where (job_ref, attempt) has one already."""
        async with self._connection() as connection:
            done = await connection.execute(
                "INSERT INTO draw (job_ref, attempt, call_hash, draw_call, claim, claim_hash, answer, reason)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
                draw.job_ref,
                draw.attempt,
                draw.call_hash,
                to_text(draw.draw_call),
                to_text(draw.claim),
                draw.claim_hash,
                draw.answer,
                draw.reason,
            )
        return _changed(done)

    async def unsent_draws(self, *, max_age_s: int = 3600) -> list[Draw]:
        async with self._connection() as connection:
            rows = await connection.fetch(
                "SELECT * FROM draw WHERE NOT sent AND stored_at > now() - make_interval(secs => $1)"
                " ORDER BY stored_at LIMIT 1000",
                float(max_age_s),
            )
        return [read_draw(row) for row in rows]

    async def draw_sent(self, job_ref: bytes, attempt: int) -> None:
        async with self._connection() as connection:
            await connection.execute(
                "UPDATE draw SET sent = true WHERE job_ref = $1 AND attempt = $2", job_ref, attempt
            )

    async def draw_unsent(self, job_ref: bytes, attempt: int) -> None:
        """The dispatcher has asked again."""
        async with self._connection() as connection:
            await connection.execute(
                "UPDATE draw SET sent = false WHERE job_ref = $1 AND attempt = $2", job_ref, attempt
            )

    async def recent_draws(self, *, within_s: int | None, limit: int) -> list[tuple[Draw, bool]]:
        """The newest draws (of the last ``within_s`` seconds), and whether this operator got a seat; newest first."""
        async with self._connection() as connection:
            rows = await connection.fetch(
                "SELECT d.*, a.job_ref IS NOT NULL AS seated FROM draw d LEFT JOIN assignment a USING (job_ref, attempt)"
                " WHERE $1::double precision IS NULL OR d.stored_at > now() - make_interval(secs => $1)"
                " ORDER BY d.stored_at DESC LIMIT $2",
                None if within_s is None else float(within_s),
                limit,
            )
        return [(read_draw(row), row["seated"]) for row in rows]

    # --- assignments

    async def assignment(self, job_ref: bytes, attempt: int) -> Assignment | None:
        async with self._connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {_COLUMNS} FROM assignment WHERE job_ref = $1 AND attempt = $2",  # noqa: S608
                job_ref,
                attempt,
            )
        return None if row is None else read_assignment(row)

    async def add_assignment(self, new: NewAssignment) -> bool:
        """Store a dispatch; False where (job_ref, attempt) has one already."""
        async with self._connection() as connection:
            done = await connection.execute(
                "INSERT INTO assignment (job_ref, attempt, state, job_id, role, seat, model_id, request, nonce,"
                " sampling_seed, seed_source, deadline, draw_record, draw_record_hash, stream)"
                " VALUES ($1, $2, 'stored', $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
                " ON CONFLICT DO NOTHING",
                new.job_ref,
                new.attempt,
                new.job_id,
                new.role,
                new.seat,
                new.model_id,
                new.request,
                new.nonce,
                new.sampling_seed,
                new.seed_source,
                new.deadline,
                to_text(new.draw_record),
                new.draw_record_hash,
                None if new.stream is None else to_text(new.stream),
            )
        return _changed(done)

    async def in_state(self, *states: State) -> list[Assignment]:
        async with self._connection() as connection:
            rows = await connection.fetch(
                f"SELECT {_COLUMNS} FROM assignment WHERE state = ANY($1) ORDER BY stored_at",  # noqa: S608
                list(states),
            )
        return [read_assignment(row) for row in rows]

    async def unsent_failures(self) -> list[Assignment]:
        async with self._connection() as connection:
            rows = await connection.fetch(
                f"SELECT {_COLUMNS} FROM assignment"  # noqa: S608
                " WHERE state = 'failed' AND NOT failure_sent ORDER BY stored_at"
            )
        return [read_assignment(row) for row in rows]

    async def count_jobs(self) -> dict[str, int]:
        """How many jobs are in each state."""
        async with self._connection() as connection:
            rows = await connection.fetch("SELECT state, count(*) AS count FROM assignment GROUP BY state")
        return {row["state"]: row["count"] for row in rows}

    async def count_unfinished(self) -> int:
        """Jobs that wait for a worker or for the dispatcher; one whose dispatcher is silent for an hour holds no place."""
        async with self._connection() as connection:
            count = await connection.fetchval(
                f"SELECT count(*) FROM assignment WHERE state = 'stored' OR state IN {_UNFINISHED}"  # noqa: S608
                " AND changed_at > now() - interval '1 hour'"
            )
        return int(count)

    async def give_up_silent(self, older_than_hours: int) -> int:
        """End what was sent, and to which the dispatcher has not come back for so long; how many. Its run went on
        without this seat, or ended while the link was down."""
        async with self._connection() as connection:
            rows = await connection.fetch(
                "UPDATE assignment SET state = 'failed', failure_code = 'dispatcher.silent', failure_sent = true,"
                " failure_message = 'the dispatcher did not come back to this run', changed_at = now()"
                " WHERE state IN ('executed', 'committed', 'revealing')"
                " AND changed_at <= now() - make_interval(hours => $1) RETURNING 1",
                older_than_hours,
            )
        return len(rows)

    async def recent(self, limit: int) -> list[Assignment]:
        async with self._connection() as connection:
            rows = await connection.fetch(
                f"SELECT {_COLUMNS} FROM assignment ORDER BY stored_at DESC LIMIT $1",  # noqa: S608
                limit,
            )
        return [read_assignment(row) for row in rows]

    async def set_queue_entry(self, job_ref: bytes, attempt: int, entry: str | None) -> None:
        await self._update("queue_entry = $3", job_ref, attempt, "state = 'stored'", entry)

    async def set_stream(self, job_ref: bytes, attempt: int, stream: Json) -> bool:
        """A blind or not yet streamed dispatch that now has its stream; False where it has moved on."""
        return await self._update(
            "stream = $3", job_ref, attempt, "state = 'stored' AND stream IS NULL", to_text(stream)
        )

    async def begin(self, job_ref: bytes, attempt: int, *, worker: str, now_ms: int) -> bool:
        """A worker takes it up; the first start is kept. False where it needs no work any more."""
        return await self._update(
            "worker = $3, started_at = coalesce(started_at, $4)",
            job_ref,
            attempt,
            "state = 'stored'",
            worker,
            now_ms,
        )

    async def add_chunk(self, job_ref: bytes, attempt: int, index: int, chunk: Json, digest: bytes) -> bool:
        """Store a chunk before it is sent; False where it exists already."""
        async with self._connection() as connection:
            done = await connection.execute(
                "INSERT INTO chunk (job_ref, attempt, index, chunk, hash) SELECT $1, $2, $3, $4, $5"
                " FROM assignment WHERE job_ref = $1 AND attempt = $2 AND state = 'stored'"
                " ON CONFLICT DO NOTHING",
                job_ref,
                attempt,
                index,
                to_text(chunk),
                digest,
            )
        return _changed(done)

    async def chunks(self, job_ref: bytes, attempt: int, *, start: int = 0) -> list[tuple[Json, bytes]]:
        """(Signed chunk as JSON, its hash) from ``start`` on, in order."""
        async with self._connection() as connection:
            rows = await connection.fetch(
                "SELECT chunk, hash FROM chunk WHERE job_ref = $1 AND attempt = $2 AND index >= $3 ORDER BY index",
                job_ref,
                attempt,
                start,
            )
        return [(from_text(row["chunk"]), row["hash"]) for row in rows]

    async def streaming(self) -> list[tuple[bytes, int]]:
        """(job_ref, attempt) whose chunks the dispatcher does not hold all."""
        async with self._connection() as connection:
            rows = await connection.fetch(
                "SELECT DISTINCT a.job_ref, a.attempt FROM assignment a JOIN chunk c USING (job_ref, attempt)"
                " WHERE a.state IN ('stored', 'executed') AND c.index >= a.chunks_held"
            )
        return [(row["job_ref"], row["attempt"]) for row in rows]

    async def set_chunks_held(self, job_ref: bytes, attempt: int, count: int) -> None:
        """The dispatcher has said which chunk it wants next."""
        await self._update("chunks_held = $3", job_ref, attempt, "true", count)

    async def executed(
        self,
        job_ref: bytes,
        attempt: int,
        *,
        result: Json,
        finished_at: int,
        commit_salt: bytes,
        commit: Json,
        commit_hash: bytes,
    ) -> bool:
        """Result, salt and signed commit at once. False where another runner was first."""
        return await self._update(
            "state = 'executed', result = $3, finished_at = $4, commit_salt = $5, commit_statement = $6,"
            " commit_hash = $7",
            job_ref,
            attempt,
            "state = 'stored'",
            to_text(result),
            finished_at,
            commit_salt,
            to_text(commit),
            commit_hash,
        )

    async def put_off(self, job_ref: bytes, attempt: int, deadline: int) -> bool:
        """Take a later deadline (ms). False where no worker is wanted any more."""
        return await self._update(
            "deadline = greatest(deadline, $3)", job_ref, attempt, "state = 'stored'", deadline
        )

    async def committed(self, job_ref: bytes, attempt: int, ack: Json) -> bool:
        return await self._update(
            "state = 'committed', commit_ack = $3", job_ref, attempt, "state = 'executed'", to_text(ack)
        )

    async def revealing(
        self,
        job_ref: bytes,
        attempt: int,
        *,
        commit_set: Json,
        commit_set_hash: bytes,
        receipt: Json,
        signature: str,
    ) -> bool:
        """Commit set and receipt at once: the only receipt there will ever be. False where there is one."""
        return await self._update(
            "state = 'revealing', commit_set = $3, commit_set_hash = $4, receipt = $5, receipt_signature = $6",
            job_ref,
            attempt,
            "state IN ('executed', 'committed') AND commit_set IS NULL",
            to_text(commit_set),
            commit_set_hash,
            to_text(receipt),
            signature,
        )

    async def done(self, job_ref: bytes, attempt: int) -> bool:
        return await self._update("state = 'done'", job_ref, attempt, "state = 'revealing'")

    async def failed(self, job_ref: bytes, attempt: int, code: str, message: str) -> bool:
        """Give up before a commit exists. False where there is one, or it ended already."""
        return await self._update(
            "state = 'failed', failure_code = $3, failure_message = $4",
            job_ref,
            attempt,
            "state = 'stored'",
            code,
            message,
        )

    async def abandoned(self, job_ref: bytes, attempt: int, code: str, message: str) -> bool:
        """The dispatcher refuses what was made for good: nothing more is sent of it."""
        return await self._update(
            "state = 'failed', failure_code = $3, failure_message = $4, failure_sent = true",
            job_ref,
            attempt,
            f"state IN {_UNFINISHED}",
            code,
            message,
        )

    async def failure_sent(self, job_ref: bytes, attempt: int) -> None:
        await self._update("failure_sent = true", job_ref, attempt, "state = 'failed'")

    async def cancelled(self, job_ref: bytes, attempt: int) -> bool:
        """False where a commit exists, or it ended already."""
        return await self._update("state = 'cancelled'", job_ref, attempt, "state = 'stored'")

    async def _update(self, change: str, job_ref: bytes, attempt: int, where: str, *values: object) -> bool:
        async with self._connection() as connection:
            done = await connection.execute(
                f"UPDATE assignment SET {change}, changed_at = now()"  # noqa: S608  fragments of this module only
                f" WHERE job_ref = $1 AND attempt = $2 AND ({where})",
                job_ref,
                attempt,
                *values,
            )
        return _changed(done)

    # --- evidence and retention

    async def add_evidence(
        self, kind: str, *, job_ref: bytes | None, attempt: int | None, held: Json, received: Json
    ) -> None:
        """Keep two statements that contradict each other. One pair of a kind convicts: more of them are not kept."""
        texts = (to_text(held), to_text(received))
        digest = hashlib.sha256("\0".join((kind, *texts)).encode()).digest()
        async with self._connection() as connection:
            await connection.execute(
                "INSERT INTO evidence (kind, job_ref, attempt, held, received, digest)"
                " SELECT $1::text, $2::bytea, $3::integer, $4, $5, $6::bytea WHERE NOT EXISTS (SELECT 1 FROM evidence"
                " WHERE (kind, job_ref, attempt) IS NOT DISTINCT FROM ($1, $2, $3))"
                " ON CONFLICT (digest) DO NOTHING",
                kind,
                job_ref,
                attempt,
                *texts,
                digest,
            )

    async def evidence(self) -> Sequence[tuple[str, Json, Json]]:
        """(kind, what was held, what came after), oldest first."""
        async with self._connection() as connection:
            rows = await connection.fetch("SELECT kind, held, received FROM evidence ORDER BY id")
        return [(row["kind"], from_text(row["held"]), from_text(row["received"])) for row in rows]

    async def keep_for(self, keep_ms: int) -> None:
        """How long after a reveal a run may be disputed and audited, as the dispatcher says it (milliseconds).

        Raises InvalidMessage ``dispute.document`` for what no dispatcher may ask.
        """
        if not 0 <= keep_ms <= MAX_KEEP_MS:
            raise InvalidMessage("dispute.document", f"the dispatcher asks to keep runs for {keep_ms} ms")
        async with self._connection() as connection:
            await connection.execute("UPDATE node_state SET keep_ms = $1 WHERE keep_ms <> $1", keep_ms)

    async def erase_content(self, older_than_hours: int) -> int:
        """Erase prompts, texts and tokens of what ended that long ago, but nothing that can still be disputed, audited or answered
        at a court; the signed statements stay. What was signed in disputes goes that long after it was signed, and after the run
        that it is about: without the run nothing else can be signed. Rows erased."""
        async with self.transaction() as connection:
            keep = await connection.fetchval(
                "SELECT greatest(make_interval(hours => $1), coalesce(max(keep_ms), 0) * interval '1 millisecond')"
                " FROM node_state",
                older_than_hours,
            )
            rows = await connection.fetch(
                "UPDATE assignment SET request = NULL, stream = NULL, result = NULL, erased = true"  # noqa: S608
                " WHERE NOT erased AND (state IN ('done', 'cancelled') OR (state = 'failed' AND failure_sent))"
                f" AND changed_at <= now() - $1::interval AND NOT EXISTS ({_CHALLENGEABLE}) RETURNING job_ref, attempt",
                keep,
            )
            await connection.executemany(
                "DELETE FROM chunk WHERE job_ref = $1 AND attempt = $2",
                [(row["job_ref"], row["attempt"]) for row in rows],
            )
            for table in ("dispute_move", "dispute_unit_root"):
                await connection.execute(
                    f"DELETE FROM {table} m WHERE stored_at < now() - $1::interval AND NOT EXISTS"  # noqa: S608
                    " (SELECT FROM assignment a WHERE NOT a.erased AND a.stored_at <= m.stored_at)",
                    keep,
                )
        return len(rows)


def _changed(status: str) -> bool:
    return not status.endswith(" 0")
