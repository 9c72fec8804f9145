"""What the explorer reads: read-only transactions with a time limit, every statement with a row limit.

A job is named by its ``job_ref``. No statement here selects a prompt, an answer, a nonce, a user or a project, but for
``owner_of`` and ``content_of``, which serve whoever holds the project's token.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asyncpg import QueryCanceledError, Record

from aos.adapters.postgres import Connection, Pool, unavailable
from aos.errors import Unavailable

STATEMENT_MS = 3_000
RECENT_JOBS = 2_000
RECENT_DRAWS = 500
PAGE = 25
MOST_SEATS = 64
MOST_ATTEMPTS = 32
MOST_MODELS = 200
MOST_OPERATORS = 500


@asynccontextmanager
async def reading(pool: Pool) -> AsyncIterator[Connection]:
    """A read-only transaction of which no statement runs longer than 3 s. Raises Unavailable, also ``explorer.slow``."""
    try:
        async with unavailable(), pool.acquire() as db, db.transaction(readonly=True):
            await db.execute(f"SET LOCAL statement_timeout = {STATEMENT_MS}")
            yield db
    except QueryCanceledError:
        raise Unavailable(
            "explorer.slow", "the database took too long over this page", hint="ask for less: drop a filter"
        ) from None


async def recent(db: Connection) -> list[Record]:
    """The newest jobs of the last 24 hours, at most ``RECENT_JOBS``: when, state, and what its first result is."""
    rows: list[Record] = await db.fetch(
        """SELECT j.created_at, j.job_type, u.state, r.outcome, r.agreeing, r.tee,
                  extract(epoch FROM r.ended - j.created_at)::float8 AS seconds
           FROM (SELECT * FROM job WHERE created_at > now() - interval '24 hours' ORDER BY created_at DESC LIMIT $1) j
           JOIN run u ON u.job_id = j.job_id AND u.position <> 'before'
           LEFT JOIN LATERAL (
               SELECT min(s.outcome) FILTER (WHERE s.outcome NOT IN ('convicted', 'withheld')) AS outcome,
                      count(*) FILTER (WHERE s.outcome NOT IN ('convicted', 'withheld')) AS agreeing, min(s.created_at) AS ended,
                      min(c.core::json #>> '{statement,tee}') AS tee
               FROM result s JOIN receipt c USING (receipt_id)
               WHERE s.job_id = j.job_id AND s.position <> 'before' HAVING count(*) > 0) r ON true
           ORDER BY j.created_at DESC""",
        RECENT_JOBS,
    )
    return rows


async def jobs_by_hour(db: Connection) -> list[Record]:
    """Accepted jobs of the last 24 hours, by hour before now (0: the last 60 minutes) and job type; hours without are absent."""
    rows: list[Record] = await db.fetch(
        """SELECT floor(extract(epoch FROM now() - created_at) / 3600)::int AS ago, job_type, count(*) AS jobs
           FROM job WHERE created_at > now() - interval '24 hours' GROUP BY 1, 2"""
    )
    return rows


async def jobs_page(
    db: Connection, *, states: tuple[str, ...], job_type: str | None, before: int | None
) -> tuple[list[Record], int | None]:
    """First runs with their jobs, newest first, and the cursor of the next page. No state: all."""
    rows = await db.fetch(
        """SELECT u.run_id, u.state, u.attempt, j.job_ref, j.job_type, j.model, j.private, j.created_at,
                  (SELECT count(*) FROM result s WHERE s.job_id = j.job_id AND s.position <> 'before') AS results
           FROM run u JOIN job j USING (job_id)
           WHERE u.position <> 'before' AND u.run_id < $1 AND (cardinality($2::text[]) = 0 OR u.state = ANY($2))
                 AND ($3::text IS NULL OR j.job_type = $3)
           ORDER BY u.run_id DESC LIMIT $4""",
        2**63 - 1 if before is None else before,
        list(states),
        job_type,
        PAGE + 1,
    )
    return rows[:PAGE], rows[PAGE - 1]["run_id"] if len(rows) > PAGE else None


async def job(db: Connection, job_ref: bytes) -> Record | None:
    """A job's public facts; ``request_hash`` is salted with a nonce that is not among them."""
    return await db.fetchrow(
        """SELECT job_id, job_ref, job_type, model, model_id, request_hash, blind, private, max_tokens, created_at
           FROM job WHERE job_ref = $1""",
        job_ref,
    )


async def runs(db: Connection, job_id: str) -> list[Record]:
    """The job's runs, the first one first."""
    rows: list[Record] = await db.fetch(
        """SELECT run_id, tag, position, state, attempt, min_operators, error_code, created_at FROM run
           WHERE job_id = $1 ORDER BY run_id LIMIT $2""",
        job_id,
        MOST_ATTEMPTS,
    )
    return rows


async def attempts(db: Connection, job_id: str) -> list[Record]:
    """The job's attempts in order, with draw call, record and commit set as they were signed."""
    rows: list[Record] = await db.fetch(
        """SELECT attempt, run_id, draw_call, draw_record, commit_set, failure FROM attempt
           WHERE job_id = $1 ORDER BY attempt LIMIT $2""",
        job_id,
        MOST_ATTEMPTS,
    )
    return rows


async def seats(db: Connection, job_id: str) -> list[Record]:
    """The job's seats with the receipts that came; cores only where the attempt's results are committed."""
    rows: list[Record] = await db.fetch(
        """SELECT s.attempt, s.node_id, s.seat, s.role, s.standing, c.receipt_id, c.received_at,
                  r.created_at AS ended, c.core, c.countersign, r.outcome
           FROM seat s LEFT JOIN receipt c USING (job_id, attempt, node_id)
           LEFT JOIN result r USING (receipt_id)
           WHERE s.job_id = $1 ORDER BY s.attempt, s.seat LIMIT $2""",
        job_id,
        MOST_SEATS * 4,
    )
    return rows


async def draws(db: Connection) -> list[Record]:
    """The newest draws whose tag is open, at most ``RECENT_DRAWS``, with the standing of every seat."""
    rows: list[Record] = await db.fetch(
        """SELECT a.snapshot_epoch, a.draw_call, a.draw_record, a.entries, u.tag, u.position,
                  (SELECT json_object_agg(s.node_id, s.standing)::text FROM seat s
                   WHERE (s.job_id, s.attempt) = (a.job_id, a.attempt)) AS standings
           FROM attempt a JOIN run u USING (run_id)
           WHERE a.commit_set IS NOT NULL ORDER BY a.run_id DESC, a.attempt DESC LIMIT $1""",
        RECENT_DRAWS,
    )
    return rows


async def operator_rows(db: Connection) -> list[Record]:
    """Admitted operators, at most ``MOST_OPERATORS``."""
    rows: list[Record] = await db.fetch(
        """SELECT node_id, node, vrf_key, range_start, range_end, stake, job_types, models, since_epoch, registered_at
           FROM operator WHERE admitted ORDER BY node_id LIMIT $1""",
        MOST_OPERATORS,
    )
    return rows


async def operator_receipts(db: Connection, node_id: str) -> list[Record]:
    """An operator's newest receipts."""
    rows: list[Record] = await db.fetch(
        """SELECT c.receipt_id, c.received_at, c.attempt, j.job_ref, j.job_type, s.role, s.standing, r.outcome
           FROM receipt c JOIN job j USING (job_id) JOIN seat s USING (job_id, attempt, node_id)
           LEFT JOIN result r USING (receipt_id)
           WHERE c.node_id = $1 ORDER BY c.received_at DESC LIMIT $2""",
        node_id,
        PAGE,
    )
    return rows


async def attestations(db: Connection) -> list[Record]:
    """The newest receipts that came with evidence of an enclave."""
    rows: list[Record] = await db.fetch(
        """SELECT c.receipt_id, c.node_id, c.received_at, c.evidence, j.job_ref
           FROM receipt c JOIN job j USING (job_id)
           WHERE c.evidence IS NOT NULL ORDER BY c.received_at DESC LIMIT $1""",
        PAGE,
    )
    return rows


async def models(db: Connection) -> list[Record]:
    """Models by name with their manifests, at most ``MOST_MODELS``."""
    rows: list[Record] = await db.fetch(
        "SELECT name, model_id, manifest FROM model ORDER BY name LIMIT $1", MOST_MODELS
    )
    return rows


async def network_mark(db: Connection) -> str:
    """A text that changes when a job is accepted, moves on or ends, and with every move and verdict of a dispute."""
    row = await db.fetchrow(
        """SELECT (SELECT max(run_id) FROM run) AS last, (SELECT max(seq) FROM result) AS results,
                  (SELECT string_agg(state || n, ',' ORDER BY state) FROM (
                      SELECT state, count(*) AS n FROM run WHERE state IN
                      ('created', 'drawing', 'drawn', 'running', 'checking', 'committed') GROUP BY state) s) AS open,
                  (SELECT max(seq) FROM dispute_game) AS games, (SELECT count(*) FROM conviction) AS convicted,
                  (SELECT string_agg(mover || deadline, ',' ORDER BY seq) FROM dispute_game WHERE state = 'open') AS moves"""
    )
    return json.dumps(list(row))


async def job_mark(db: Connection, job_id: str) -> str:
    """A text that changes when one of the job's runs moves on or a receipt comes."""
    row = await db.fetchrow(
        """SELECT (SELECT string_agg(state || attempt, ',' ORDER BY run_id) FROM run WHERE job_id = $1) AS runs,
                  (SELECT count(*) FROM receipt WHERE job_id = $1) AS receipts,
                  (SELECT string_agg(g.state || g.mover, ',' ORDER BY g.seq) FROM dispute_game g JOIN receipt c
                   USING (receipt_id) WHERE c.job_id = $1) AS games""",
        job_id,
    )
    return json.dumps(list(row))


async def owner_of(db: Connection, job_ref: bytes) -> tuple[str, str] | None:
    """The id and the project of a job: never for a page."""
    row = await db.fetchrow("SELECT job_id, project_id FROM job WHERE job_ref = $1", job_ref)
    return None if row is None else (row["job_id"], row["project_id"])


async def content_of(db: Connection, job_id: str) -> dict[str, Any]:
    """Prompt and answer of a job, for whoever holds its project's token."""
    row = await db.fetchrow(
        """SELECT j.request, c.answer FROM job j
           LEFT JOIN result r ON r.job_id = j.job_id AND r.position <> 'before' AND r.seat = (
               SELECT min(seat) FROM result WHERE job_id = j.job_id AND position <> 'before')
           LEFT JOIN receipt c USING (receipt_id) WHERE j.job_id = $1""",
        job_id,
    )
    request = json.loads(row["request"])
    answer = None if row["answer"] is None else bytes(row["answer"]).decode("utf-8", "replace")
    return {"prompt": request["job"]["prompt"], "user": request["user"], "answer": answer}
