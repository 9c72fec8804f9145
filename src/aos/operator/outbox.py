"""What an operator owes its dispatcher, read from PostgreSQL and sent until it is acknowledged.

Claims, chunks, commits, receipts, failures: everything is stored before it comes here, so that a lost link, a
lost answer or a lost process only means that it is sent again. Nothing is ever made anew for sending.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog

from aos.adapters.link import Link
from aos.core.codec import encode
from aos.core.encoding import b64u_encode
from aos.core.statements import CommitAck, verify_signed
from aos.errors import InvalidMessage, RuleViolation, VerificationError
from aos.operator.chain_claims import claim_for
from aos.operator.identity import Identity
from aos.operator.network import Network
from aos.operator.rows import Assignment, Draw
from aos.operator.store import Store
from aos.operator.tasks import end_tasks

log = structlog.get_logger("aos.operator")

RETRY_S = 2.0
_LATER_PREFIXES = ("store.", "queue.", "link.", "server.", "internal")

Key = tuple[str, bytes, int]


class Outbox:
    """Sends what is due over one link. ``wake`` says that something new may be due. Claims at a court are good for
    ``claim_hours``."""

    def __init__(
        self, store: Store, identity: Identity, *, claim_hours: int, now_ms: Callable[[], int]
    ) -> None:
        self._store = store
        self._identity = identity
        self._claim_hours = claim_hours
        self._now_ms = now_ms
        self._signal = asyncio.Event()
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    def wake(self) -> None:
        self._signal.set()

    async def run(self, link: Link, network: Network) -> None:
        """Send until cancelled. Raises Unavailable where the database or the link is gone."""
        try:
            while True:
                self._signal.clear()
                await self._start_due(link, network)
                waiting = asyncio.create_task(self._signal.wait())
                try:
                    await asyncio.wait(
                        {waiting, *self._tasks.values()},
                        timeout=RETRY_S,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    waiting.cancel()
                for key in [key for key, task in self._tasks.items() if task.done()]:
                    await self._tasks.pop(key)
        finally:
            await end_tasks(list(self._tasks.values()))
            self._tasks.clear()

    async def _start_due(self, link: Link, network: Network) -> None:
        for draw in await self._store.unsent_draws():
            self._start(("claim", draw.job_ref, draw.attempt), partial(self._claim, link, draw))
        for job_ref, attempt in await self._store.streaming():
            self._start(("job", job_ref, attempt), partial(self._stream, link, job_ref, attempt))
        for held in await self._store.in_state("executed"):
            self._start(("job", *held.key), partial(self._commit, link, network, held))
        for held in await self._store.in_state("revealing"):
            self._start(("job", *held.key), partial(self._reveal, link, network, held))
        for held in await self._store.unsent_failures():
            self._start(("job", *held.key), partial(self._failure, link, held))

    def _start(self, key: Key, send: Callable[[], Awaitable[Any]]) -> None:
        """One task a job: its messages leave in their order."""
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(_finished(send))

    async def _claim(self, link: Link, draw: Draw) -> None:
        if (
            await self._request(link, "vrf_claim", {"claim": draw.claim}, draw.job_ref, draw.attempt)
            is not _LATER
        ):
            await self._store.draw_sent(draw.job_ref, draw.attempt)

    async def _stream(self, link: Link, job_ref: bytes, attempt: int) -> bool:
        """Send chunks from the first that the dispatcher lacks; True when it holds all that are stored."""
        held = await self._store.assignment(job_ref, attempt)
        if held is None:
            return False
        wanted = first = held.chunks_held
        for index, (chunk, _) in enumerate(await self._store.chunks(job_ref, attempt, start=first), first):
            if index < wanted:  # the dispatcher had it already
                continue
            answer = await self._request(link, "stream_chunk", {"chunk": chunk}, job_ref, attempt)
            if answer is _LATER:
                return False
            if answer is None:
                await self._abandon(held, "stream.refused")
                return False
            following = answer.get("next")
            if type(following) is not int or not 0 <= following <= 2**31 - 1:
                raise InvalidMessage(
                    "link.answer", "the answer to a chunk names the next index", field="next"
                )
            await self._store.set_chunks_held(job_ref, attempt, following)
            if following <= index:  # it lacks an earlier one: begin there
                await asyncio.sleep(RETRY_S)
                return False
            wanted = following
        return True

    async def _commit(self, link: Link, network: Network, held: Assignment) -> None:
        if held.role == "executor" and not await self._stream(link, *held.key):
            return
        answer = await self._request(
            link, "job_commit", {"commit": held.commit_statement}, held.job_ref, held.attempt
        )
        if answer is _LATER:
            return
        if answer is None:
            await self._abandon(held, "commit.refused")
            return
        ack = verify_signed(CommitAck, answer.get("ack"), address=network.dispatcher, where="ack")
        named = (
            ack.statement.network,
            ack.statement.dispatcher,
            ack.statement.job_ref,
            ack.statement.attempt,
            ack.statement.node_id,
            ack.statement.commit,
        )
        expected = (
            network.name,
            network.dispatcher,
            held.job_ref,
            held.attempt,
            self._identity.node_id,
            held.commit_hash,
        )
        if named != expected:
            raise VerificationError("commit_ack.foreign", "the acknowledgement is of another commit")
        await self._store.committed(held.job_ref, held.attempt, ack.to_json())

    async def _reveal(self, link: Link, network: Network, held: Assignment) -> None:
        assert held.result is not None  # noqa: S101  the schema keeps it until the receipt is acknowledged
        assert held.commit_salt is not None  # noqa: S101  stored with the result
        now_s = self._now_ms() // 1_000
        claim = await claim_for(
            self._store, self._identity, network, held, now_s=now_s, hours=self._claim_hours
        )
        body = {
            "receipt": held.receipt,
            "signature": held.receipt_signature,
            "commit_salt": b64u_encode(held.commit_salt),
            "text": held.result["text"],
            "tokens": held.result["tokens"],
            "evidence": held.result["evidence"],
            "chain_claim": None if claim is None else encode(claim),
        }
        answer = await self._request(link, "job_result", body, held.job_ref, held.attempt)
        if answer is _LATER:
            return
        if answer is None:
            await self._abandon(held, "result.refused")
            return
        await self._store.done(held.job_ref, held.attempt)
        log.info("job.done", job_ref=b64u_encode(held.job_ref), attempt=held.attempt)

    async def _failure(self, link: Link, held: Assignment) -> None:
        body = {
            "job_ref": b64u_encode(held.job_ref),
            "attempt": held.attempt,
            "code": held.failure_code,
            "message": held.failure_message,
        }
        if await self._request(link, "job_failed", body, held.job_ref, held.attempt) is not _LATER:
            await self._store.failure_sent(held.job_ref, held.attempt)

    async def _abandon(self, held: Assignment, code: str) -> None:
        await self._store.abandoned(
            held.job_ref, held.attempt, code, "the dispatcher does not take it; see the log"
        )

    async def _request(
        self, link: Link, method: str, body: dict[str, Any], job_ref: bytes, attempt: int
    ) -> dict[str, Any] | None:
        """The answer; None where the dispatcher refuses for good; ``_LATER`` where it may take it another time."""
        try:
            return await link.request(method, body)
        except RuleViolation as error:
            later = error.code.startswith(_LATER_PREFIXES)
            log.warning(
                "dispatcher.refused",
                method=method,
                job_ref=b64u_encode(job_ref),
                attempt=attempt,
                code=error.code,
                message=error.message,
                again=later,
            )
            if not later:
                return None
            await asyncio.sleep(RETRY_S)
            return _LATER
        except InvalidMessage as error:  # it cannot be put into a frame, on this link or another
            log.error(
                "message.unsendable",
                method=method,
                job_ref=b64u_encode(job_ref),
                attempt=attempt,
                code=error.code,
            )
            return None


_LATER: dict[str, Any] = {}
"""Told apart by identity from an empty answer."""


async def _finished(send: Callable[[], Awaitable[Any]]) -> None:
    await send()
