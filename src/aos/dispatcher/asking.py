"""Questions to operators that are under way: at most one for each run, attempt, operator and method.

What is asked is in the rows; a question that is lost with its link is simply asked again. Answers come back as messages of
their own (``aos.dispatcher.messages``).
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import structlog
from asyncpg import Record

from aos.adapters.postgres import Pool, unavailable
from aos.core.encoding import b64u_encode
from aos.dispatcher.hub import Hub
from aos.errors import AOSError, Unavailable

log = structlog.get_logger("aos.dispatcher")

POLL_S = 2.0
_CODE = re.compile(r"[a-z_]{1,24}(\.[a-z_]{1,32}){0,2}")
_RETRIED = ("store.", "queue.", "link.", "registry.", "internal")


class Asking:
    """Asks operators in the background. ``wake`` is told of a run for which something has changed."""

    def __init__(self, pool: Pool, hub: Hub, wake: Callable[[int], None]) -> None:
        self._pool = pool
        self._hub = hub
        self._wake = wake
        self._sending: dict[tuple[int, int, str, str], asyncio.Task[None]] = {}

    def connected(self) -> frozenset[str]:
        """node_ids with a live session."""
        return self._hub.connected()

    async def stop(self) -> None:
        """Give up what is under way."""
        tasks = list(self._sending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def cancelled(self, job_id: str, attempt: int) -> None:
        """Tell the seated operators of a cancelled attempt, as far as they are connected."""
        async with unavailable():
            rows = await self._pool.fetch(
                """SELECT s.node_id, j.job_ref, a.run_id FROM seat s JOIN job j USING (job_id)
                   JOIN attempt a USING (job_id, attempt) WHERE s.job_id = $1 AND s.attempt = $2""",
                job_id,
                attempt,
            )
        for row in rows:
            body = {"job_ref": b64u_encode(row["job_ref"]), "attempt": attempt}
            self.send(row["run_id"], attempt, row["node_id"], "cancel_job", body)
            self._wake(row["run_id"])

    def may_ask(self, run: Record, node_id: str, method: str) -> bool:
        """Whether the operator is there and not being asked this already."""
        under_way = (run["run_id"], run["attempt"], node_id, method) in self._sending
        return node_id in self._hub.connected() and not under_way

    def send(self, run_id: int, attempt: int, node_id: str, method: str, body: dict[str, Any]) -> None:
        """Ask an operator in the background; at most one such question is under way."""
        key = (run_id, attempt, node_id, method)
        if key in self._sending:
            return
        task = asyncio.create_task(self._ask(run_id, attempt, node_id, method, body))
        self._sending[key] = task
        task.add_done_callback(lambda _: self._sending.pop(key, None))

    async def _ask(self, run_id: int, attempt: int, node_id: str, method: str, body: dict[str, Any]) -> None:
        try:
            await self._hub.request(node_id, method, body)
            # It has taken it: offered again only after a reconnect, or when it stays silent for long.
            await asyncio.sleep(POLL_S * 5)
        except Unavailable as error:
            log.info("operator.unreachable", node=node_id, method=method, code=error.code)
        except AOSError as error:
            # The code is the operator's own word, and its message may hold anything: neither goes into a log unread.
            code = error.code if _CODE.fullmatch(error.code) else "unreadable"
            log.warning("operator.refused", node=node_id, method=method, code=code)
            if method == "dispatch_job" and not code.startswith(_RETRIED):
                await self._seat_failed(run_id, attempt, node_id, code)
                self._wake(run_id)
            else:
                await asyncio.sleep(POLL_S)

    async def _seat_failed(self, run_id: int, attempt: int, node_id: str, code: str) -> None:
        async with unavailable():
            await self._pool.execute(
                """UPDATE seat SET standing = 'failed', evidence = $4 FROM attempt a
                   WHERE a.run_id = $1 AND a.attempt = $2 AND seat.job_id = a.job_id AND seat.attempt = $2
                     AND seat.node_id = $3 AND seat.standing = 'seated'""",
                run_id,
                attempt,
                node_id,
                code,
            )

    def forget(self, node_id: str) -> None:
        """An operator's link is new: what it was asked before may not have reached it."""
        for key, task in list(self._sending.items()):
            if key[2] == node_id:
                task.cancel()
