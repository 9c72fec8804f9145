"""Answer files and draw documents, put together from what is stored."""

import json
from typing import Any

from asyncpg import Record

from aos.adapters.postgres import Pool, unavailable
from aos.core.answer import Answer, CommitPart, DrawPart, Opening, Receipt, draw_part, write_answer
from aos.core.codec import decode, encode
from aos.core.dispute.court import Resolution
from aos.core.encoding import b64u_encode
from aos.core.hashes import token_bytes
from aos.core.statements import (
    Acceptance,
    Commit,
    CommitSet,
    Countersign,
    DrawCall,
    DrawEntry,
    DrawRecord,
    ReceiptCore,
    Signed,
    VrfClaim,
    read_signed,
)
from aos.core.tee import read_evidence
from aos.dispatcher.log import Log
from aos.dispatcher.registry import Registry
from aos.errors import RuleViolation


def read_tokens(data: bytes) -> tuple[int, ...]:
    """Token ids from their stored form (u32 little-endian), the inverse of ``hashes.token_bytes``."""
    return tuple(int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4))


def write_tokens(tokens: tuple[int, ...]) -> bytes:
    return token_bytes(tokens)


async def load_draw(pool: Pool, registry: Registry, attempt: Record) -> DrawPart:
    """The draw of one attempt, whole."""
    async with unavailable():
        first = await pool.fetchval(
            "SELECT draw_call FROM attempt WHERE job_id = $1 AND attempt = 1", attempt["job_id"]
        )
        rows = await pool.fetch(
            "SELECT node_id, claim FROM claim WHERE job_id = $1 AND attempt = $2",
            attempt["job_id"],
            attempt["attempt"],
        )
    snapshot = await registry.by_epoch(attempt["snapshot_epoch"])
    return draw_part(
        draw_call=read_signed(DrawCall, json.loads(attempt["draw_call"])),
        draw_record=read_signed(DrawRecord, json.loads(attempt["draw_record"])),
        first_draw=None if attempt["attempt"] == 1 else read_signed(DrawCall, json.loads(first)),
        max_range=registry.network.max_range,
        operators=snapshot.entries,
        entries=[decode(DrawEntry, entry) for entry in json.loads(attempt["entries"])],
        claims={row["node_id"]: read_signed(VrfClaim, json.loads(row["claim"])) for row in rows},
    )


async def build_answer_file(
    pool: Pool, registry: Registry, job: Record, attempt: int | None, log: Log | None
) -> bytes:
    """The answer file of the job's first run, or of the run that ended with ``attempt``; waits shortly for its place in the log.

    Raises RuleViolation ``job.no_answer``.
    """
    async with unavailable():
        results = await pool.fetch(
            """SELECT r.*, c.core, c.answer, c.tokens, c.evidence, c.countersign, c.commit_salt, s.commit
               FROM result r JOIN receipt c ON c.receipt_id = r.receipt_id
               JOIN seat s ON (s.job_id, s.attempt, s.node_id) = (r.job_id, r.attempt, r.node_id)
               WHERE r.job_id = $1 AND r.outcome NOT IN ('convicted', 'withheld')
                 AND ($2::int IS NULL AND r.position <> 'before' OR r.attempt = $2) ORDER BY r.seat""",
            job["job_id"],
            attempt,
        )
        if not results:
            raise RuleViolation(
                "job.no_answer", "this job has no result (yet)", hint="follow its events until `done`"
            )
        held = await pool.fetchrow(
            """SELECT a.*, u.resolution FROM attempt a LEFT JOIN dispute_run u USING (run_id)
               WHERE a.job_id = $1 AND a.attempt = $2""",
            job["job_id"],
            results[0]["attempt"],
        )
    assert held is not None  # noqa: S101  results refer to it by foreign key
    receipts = [_receipt(row) for row in results]
    openings = [
        Opening(commit=read_signed(Commit, json.loads(row["commit"])), salt=row["commit_salt"])
        for row in results
    ]
    first = results[0]
    return write_answer(
        Answer(
            receipt=receipts[0],
            peers=tuple(receipts[1:]),
            request=bytes(job["request"]).decode("utf-8"),
            nonce=job["nonce"],
            text=bytes(first["answer"]).decode("utf-8"),
            tokens=read_tokens(first["tokens"]),
            acceptance=read_signed(Acceptance, json.loads(job["acceptance"])),
            draw=await load_draw(pool, registry, held),
            commit=CommitPart(
                commit_set=read_signed(CommitSet, json.loads(held["commit_set"])),
                openings=tuple(sorted(openings, key=lambda o: o.commit.statement.node_id)),
            ),
            evidence=None if first["evidence"] is None else read_evidence(json.loads(first["evidence"])),
            resolution=None
            if held["resolution"] is None
            else read_signed(Resolution, json.loads(held["resolution"])),
            log=None if log is None else await log.part(job["job_id"], first["receipt_id"]),
        )
    )


def _receipt(row: Record) -> Receipt:
    core: Signed[ReceiptCore] = read_signed(ReceiptCore, json.loads(row["core"]))
    countersign = read_signed(Countersign, json.loads(row["countersign"]))
    return Receipt(
        core=core.statement,
        signature=core.signature,
        countersign=countersign.statement,
        countersign_signature=countersign.signature,
    )


async def draw_document(pool: Pool, registry: Registry, job: Record) -> dict[str, Any]:
    """Every attempt's draw, public: no prompt, no job_id; the tag only where results were committed."""
    async with unavailable():
        attempts = await pool.fetch(
            """SELECT a.*, r.tag, r.position FROM attempt a JOIN run r USING (run_id)
               WHERE a.job_id = $1 AND a.draw_record IS NOT NULL ORDER BY a.attempt""",
            job["job_id"],
        )
    draws = []
    for attempt in attempts:
        opened = None
        if attempt["commit_set"] is not None:
            opened = {
                "tag": attempt["tag"],
                "position": attempt["position"],
                "salt": b64u_encode(attempt["tag_salt"]),
            }
        draws.append(encode(await load_draw(pool, registry, attempt)) | {"tag_opening": opened})
    return {"job_ref": b64u_encode(job["job_ref"]), "attempts": draws}
