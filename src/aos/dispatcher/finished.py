"""How a job's first run ended, as the dispatcher holds it: what the OpenAI answers are made of."""

import json
from dataclasses import dataclass

from asyncpg import Record

from aos.adapters.postgres import Pool, unavailable
from aos.core.codec import decode
from aos.core.job import STATUS
from aos.core.statements import ReceiptCore


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """``receipts`` are those of the seats that revealed, the first seat's, whose text this is, first. ``reported`` is the one
    code with which every operator that tried it refused the request; empty where there is none or they differ.
    """

    status: str
    outcome: str
    attempt: int
    error_code: str
    error_message: str
    reported: str
    receipts: tuple[ReceiptCore, ...]
    receipt_ids: tuple[str, ...]
    text: str

    @property
    def claimed(self) -> list[str]:
        """The levels that these receipts claim. The dispatcher's word: a verifier computes them from the answer file."""
        if not self.receipts:
            return []
        levels = ["signed"]
        if self.outcome == "agreed":
            levels.append(f"redundant:{len(self.receipts)}")
        kind = self.receipts[0].tee
        if kind:
            levels.append("simulated" if kind == "simulated" else "attested")
        return levels


async def load_finished(pool: Pool, job_id: str) -> Finished:
    """The state of a job's first run, with its results where it has any."""
    async with unavailable():
        run = await pool.fetchrow("SELECT * FROM run WHERE job_id = $1 AND position <> 'before'", job_id)
        rows: list[Record] = await pool.fetch(
            """SELECT r.receipt_id, r.outcome, c.core, c.answer FROM result r JOIN receipt c USING (receipt_id)
               WHERE r.job_id = $1 AND r.position <> 'before' ORDER BY r.seat""",
            job_id,
        )
        codes: list[Record] = []
        if not rows:
            codes = await pool.fetch(
                "SELECT DISTINCT evidence FROM seat WHERE job_id = $1 AND standing = 'failed'", job_id
            )
    assert run is not None  # noqa: S101  a job and its first run are one transaction
    return Finished(
        status=STATUS[run["state"]],
        outcome=rows[0]["outcome"] if rows else "",
        attempt=run["attempt"],
        error_code=run["error_code"],
        error_message=run["error_message"],
        reported=codes[0]["evidence"] if len(codes) == 1 else "",
        receipts=tuple(decode(ReceiptCore, json.loads(row["core"])["statement"]) for row in rows),
        receipt_ids=tuple(row["receipt_id"] for row in rows),
        text=bytes(rows[0]["answer"]).decode("utf-8") if rows else "",
    )
