"""A job's events: stored with the fact they tell of, replayed to whoever follows the job (docs/spec/09-http.md)."""

import asyncio
import json
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from aos.adapters.postgres import Pool, unavailable


class Events:
    """``add`` inside a transaction, ``tell`` after it; ``after`` reads, and waits where there is nothing yet."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def add(self, db: Any, job_id: str, kind: str, data: dict[str, Any]) -> None:
        """Number and store one event; the job's row lock gives the order. With `done` the job's webhook falls due."""
        seq = await db.fetchval(
            "UPDATE job SET events = events + 1 WHERE job_id = $1 RETURNING events", job_id
        )
        await db.execute(
            "INSERT INTO event (job_id, seq, kind, data) VALUES ($1, $2, $3, $4)",
            job_id,
            seq,
            kind,
            json.dumps(data, ensure_ascii=False),
        )
        if kind == "done":
            await db.execute(
                """UPDATE webhook SET state = 'due', event = $2, next_at = 0
                   WHERE job_id = $1 AND state = 'waiting'""",
                job_id,
                _webhook_body(job_id, data),
            )

    def tell(self, job_id: str) -> None:
        """Wake whoever waits for this job."""
        for event in self._waiting.get(job_id, ()):
            event.set()

    async def after(self, job_id: str, after: int, *, wait_s: float) -> list[tuple[int, str, str]]:
        """(id, kind, JSON) of every event after ``after``."""
        woken = asyncio.Event()
        self._waiting[job_id].add(woken)
        try:
            rows = await self._read(job_id, after)
            if not rows and wait_s > 0:
                try:
                    async with asyncio.timeout(wait_s):
                        await woken.wait()
                except TimeoutError:
                    return []
                rows = await self._read(job_id, after)
            return rows
        finally:
            self._waiting[job_id].discard(woken)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _read(self, job_id: str, after: int) -> list[tuple[int, str, str]]:
        async with unavailable():
            rows = await self._pool.fetch(
                "SELECT seq, kind, data FROM event WHERE job_id = $1 AND seq > $2 ORDER BY seq", job_id, after
            )
        return [(row["seq"], row["kind"], row["data"]) for row in rows]


def _webhook_body(job_id: str, data: dict[str, Any]) -> str:
    """What a webhook brings, the same at every try."""
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    told = {"job_id": job_id, **data, "answer": f"/v1/aos/jobs/{job_id}/answer"}
    return json.dumps({"type": "job.done", "timestamp": when, "data": told})
