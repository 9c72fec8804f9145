"""What operators send over the link: claims, chunks, commits, reveals, failures (docs/spec/06-network.md, "Link").

Each handler verifies, stores in one transaction, and answers; doing it twice changes nothing. What contradicts an earlier signed
message of the same operator is refused as ``equivocation.*`` and kept.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from asyncpg import Record

from aos.adapters.causal_clock import CausalClock
from aos.adapters.postgres import Pool, unavailable
from aos.core import draw, hashes
from aos.core.codec import Bytes32, MaxLength, Pattern, Range, UInt32, decode, encode
from aos.core.dispute.chain_claim import claim_hash
from aos.core.encoding import b64u_encode, canonical_json
from aos.core.statements import (
    Chunk,
    Commit,
    CommitAck,
    CommitSet,
    DrawCall,
    DrawEntry,
    DrawRecord,
    ReceiptCore,
    Request,
    Signed,
    VrfClaim,
    hash_of,
    read_signed,
    sign,
    verify_signed,
)
from aos.core.tee import TeeEvidence
from aos.dispatcher.answers import write_tokens
from aos.dispatcher.attestation import Attestation
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.events import Events
from aos.dispatcher.registry import Registry, now_ms
from aos.dispatcher.results import Reveal, SeatFacts, check_chunk, check_commit, check_reveal, read_reveal
from aos.dispatcher.runs import Runs
from aos.errors import AOSError, RuleViolation, VerificationError

log = structlog.get_logger("aos.dispatcher")

_COUNTED = frozenset({"vrf_claim", "job_commit", "job_result"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    claim: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    chunk: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Commit:
    commit: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    code: Annotated[str, Pattern(r"[a-z0-9_]+(\.[a-z0-9_]+)*")]
    message: Annotated[str, MaxLength(500)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heartbeat:
    capacity: UInt32
    running: UInt32
    draining: bool


class Messages:
    """Handlers of one dispatcher."""

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        registry: Registry,
        clock: CausalClock,
        events: Events,
        runs: Runs,
        *,
        told: Callable[[str, str], None],
        attestation: Attestation,
    ) -> None:
        self._pool = pool
        self._config = config
        self._registry = registry
        self._clock = clock
        self._events = events
        self._runs = runs
        self._told = told
        self._attestation = attestation
        self._handlers = {
            "tee_challenge": attestation.challenge,
            "tee_boot": attestation.boot,
            "vrf_claim": self._claim,
            "stream_chunk": self._chunk,
            "job_commit": self._commit,
            "job_result": self._result,
            "job_failed": self._failed,
            "heartbeat": self._heartbeat,
            "drain": self._drain,
        }

    async def handle(self, node_id: str, method: str, body: object) -> dict[str, Any]:
        """The members of ``ok``. Raises AOSError; RuleViolation ``link.unknown_method``."""
        try:
            answer = await self._handled(node_id, method, body)
        except AOSError as error:
            self._told(method, error.code)
            raise
        self._told(method, "ok")
        return answer

    async def _handled(self, node_id: str, method: str, body: object) -> dict[str, Any]:
        handler = self._handlers.get(method)
        if handler is None:
            raise RuleViolation("link.unknown_method", f"a dispatcher does not answer {method[:64]}")
        if method in _COUNTED:
            # The record made of these states that it counts them: a dispatcher killed in between must not forget.
            await self._clock.flush()
        return await handler(node_id, body)

    async def _run(self, job_ref: bytes, attempt: int) -> Record:
        """The run and attempt that a message is about. Raises RuleViolation ``run.unknown``."""
        async with unavailable():
            row = await self._pool.fetchrow(
                """SELECT a.*, r.position, r.deadline, j.job_ref, j.job_type, j.blind, j.request, j.nonce
                   FROM job j JOIN attempt a USING (job_id) JOIN run r USING (run_id)
                   WHERE j.job_ref = $1 AND a.attempt = $2""",
                job_ref,
                attempt,
            )
        if row is None:
            raise RuleViolation("run.unknown", "there is no such job or attempt")
        return row

    async def _seat(self, run: Record, node_id: str) -> Record:
        async with unavailable():
            row = await self._pool.fetchrow(
                "SELECT * FROM seat WHERE job_id = $1 AND attempt = $2 AND node_id = $3",
                run["job_id"],
                run["attempt"],
                node_id,
            )
        if row is None:
            raise VerificationError("seat.none", "this operator has no seat in this run")
        return row

    # --- vrf_claim

    async def _claim(self, node_id: str, body: object) -> dict[str, Any]:
        claim = read_signed(VrfClaim, decode(_Claim, body).claim, where="claim")
        run = await self._run(claim.statement.job_ref, claim.statement.attempt)
        snapshot = await self._registry.by_epoch(run["snapshot_epoch"])
        operator = next((entry for entry in snapshot.entries if entry.node_id == node_id), None)
        if operator is None:
            raise VerificationError("draw.not_in_snapshot", "this operator is not in the draw's snapshot")
        call = read_signed(DrawCall, json.loads(run["draw_call"]))
        verified = draw.verify_claim(claim, call=call, operator=operator)
        if claim.statement.answer == "claim" and call.statement.job_type == "tee":
            await self._attestation.require(node_id, call.statement.model_id)
        async with unavailable():
            held = await self._pool.fetchval(
                "SELECT claim FROM claim WHERE job_id = $1 AND attempt = $2 AND node_id = $3",
                run["job_id"],
                run["attempt"],
                node_id,
            )
            if held is not None:
                if read_signed(VrfClaim, json.loads(held)).hash != claim.hash:
                    await self._keep(run, node_id, "equivocation.claim", claim.to_json())
                    raise VerificationError("equivocation.claim", "another claim for this draw is held")
                return {}
            # Only while the draw is open, under the run's lock: a claim beside the record would contradict it.
            await self._pool.execute(
                """INSERT INTO claim (job_id, attempt, node_id, claim, beta)
                   SELECT $1, $2, $3, $4, $5 FROM run WHERE run_id = $6 AND state = 'drawing' AND attempt = $2
                   FOR UPDATE ON CONFLICT DO NOTHING""",
                run["job_id"],
                run["attempt"],
                node_id,
                _json(claim.to_json()),
                verified.beta,
                run["run_id"],
            )
        self._runs.wake(run["run_id"])
        return {}

    # --- stream_chunk

    async def _chunk(self, node_id: str, body: object) -> dict[str, Any]:
        chunk = verify_signed(Chunk, decode(_Chunk, body).chunk, address=node_id, where="chunk")
        statement = chunk.statement
        run = await self._run(statement.job_ref, statement.attempt)
        seat = await self._seat(run, node_id)
        if seat["role"] != "executor":
            raise VerificationError("chunk.role", "only the executor streams")
        check_chunk(
            statement,
            network=self._config.network,
            node_id=node_id,
            job_ref=run["job_ref"],
            attempt=run["attempt"],
            max_tokens=decode(Request, json.loads(run["request"])).job.params.max_tokens,
        )
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            live = await db.fetchrow(
                "SELECT state, attempt FROM run WHERE run_id = $1 FOR UPDATE", run["run_id"]
            )
            last = await db.fetchrow(
                "SELECT index, hash, chunk FROM chunk WHERE job_id = $1 AND attempt = $2 ORDER BY index DESC LIMIT 1",
                run["job_id"],
                run["attempt"],
            )
            following = 0 if last is None else last["index"] + 1
            if statement.index < following:
                held = await db.fetchval(
                    "SELECT hash FROM chunk WHERE job_id = $1 AND attempt = $2 AND index = $3",
                    run["job_id"],
                    run["attempt"],
                    statement.index,
                )
                if held == chunk.hash:
                    return {"next": following}
                second = True
            elif statement.index > following:
                return {"next": following}
            else:
                if live["attempt"] != run["attempt"] or live["state"] != "running":
                    raise RuleViolation("run.over", "this attempt takes no more chunks")
                await self._store_chunk(db, run, chunk, last)
                second = False
        if second:
            await self._keep(run, node_id, "equivocation.chunk", chunk.to_json())
            raise VerificationError("equivocation.chunk", "another chunk of this index is held")
        self._events.tell(run["job_id"])
        if statement.final:
            self._runs.wake(run["run_id"])
        return {"next": statement.index + 1}

    async def _store_chunk(self, db: Any, run: Record, chunk: Signed[Chunk], last: Record | None) -> None:
        statement = chunk.statement
        if last is not None and (
            statement.previous != last["hash"] or json.loads(last["chunk"])["statement"]["final"]
        ):
            raise VerificationError("chunk.chain", "the chunk does not follow the one before it")
        await db.execute(
            "INSERT INTO chunk (job_id, attempt, index, chunk, hash) VALUES ($1, $2, $3, $4, $5)",
            run["job_id"],
            run["attempt"],
            statement.index,
            _json(chunk.to_json()),
            chunk.hash,
        )
        if run["position"] != "before" and statement.text:
            text = {"text": statement.text, "index": statement.index, "attempt": run["attempt"]}
            await self._events.add(db, run["job_id"], "text", text)

    async def _keep(self, run: Record, node_id: str, code: str, statement: dict[str, Any]) -> None:
        """Keep a signed statement that contradicts an earlier one as evidence; the earlier one stays what counts."""
        async with unavailable():
            await self._pool.execute(
                """INSERT INTO evidence (job_id, attempt, node_id, code, statement) VALUES ($1, $2, $3, $4, $5)
                   ON CONFLICT DO NOTHING""",
                run["job_id"],
                run["attempt"],
                node_id,
                code,
                _json(statement),
            )
        log.warning("evidence.kept", code=code, node=node_id, run=run["run_id"])

    # --- job_commit

    async def _commit(self, node_id: str, body: object) -> dict[str, Any]:
        commit = verify_signed(Commit, decode(_Commit, body).commit, address=node_id, where="commit")
        run = await self._run(commit.statement.job_ref, commit.statement.attempt)
        seat = await self._seat(run, node_id)
        record = read_signed(DrawRecord, json.loads(run["draw_record"]))
        check_commit(commit.statement, network=self._config.network, node_id=node_id, record=record)
        if seat["commit"] is None:
            ack = CommitAck(
                network=self._config.network,
                dispatcher=self._config.keys.address,
                job_ref=run["job_ref"],
                attempt=run["attempt"],
                node_id=node_id,
                commit=commit.hash,
            )
            async with unavailable(), self._pool.acquire() as db, db.transaction():
                live = await db.fetchrow(
                    "SELECT state, attempt FROM run WHERE run_id = $1 FOR UPDATE", run["run_id"]
                )
                if live["attempt"] != run["attempt"] or live["state"] not in ("running", "checking"):
                    raise RuleViolation("commit.late", "this attempt takes no more commits")
                await db.execute(
                    """UPDATE seat SET standing = 'committed', commit = $4, ack = $5, committed_at = now()
                       WHERE job_id = $1 AND attempt = $2 AND node_id = $3 AND commit IS NULL""",
                    run["job_id"],
                    run["attempt"],
                    node_id,
                    _json(commit.to_json()),
                    _json(sign(self._config.keys.signer, ack).to_json()),
                )
            seat = await self._seat(run, node_id)
            self._runs.wake(run["run_id"])
        if read_signed(Commit, json.loads(seat["commit"])).hash != commit.hash:
            await self._keep(run, node_id, "equivocation.commit", commit.to_json())
            raise VerificationError("equivocation.commit", "another commit of this operator is held")
        return {"ack": json.loads(seat["ack"])}

    # --- job_result

    async def _result(self, node_id: str, body: object) -> dict[str, Any]:
        reveal = read_reveal(body)
        core = reveal.receipt
        run = await self._run(core.job_ref, core.attempt)
        seat = await self._seat(run, node_id)
        receipt = b64u_encode(hash_of(core))
        if seat["standing"] == "revealed":
            return await self._again(run, node_id, reveal, receipt)
        if seat["standing"] != "committed" or run["commit_set"] is None:
            raise RuleViolation(
                "reveal.not_expected", f"this seat is {seat['standing']}; there is nothing to reveal"
            )
        try:
            evidence = check_reveal(reveal, await self._facts(run, seat))
        except VerificationError as error:
            if error.code == "reveal.commitment":
                await self._broken(run, node_id, reveal)
            raise
        if not await self._store_reveal(run, node_id, reveal, receipt, evidence):
            return await self._again(run, node_id, reveal, receipt)
        self._runs.wake(run["run_id"])
        return {"receipt": receipt}

    async def _again(self, run: Record, node_id: str, reveal: Reveal, receipt: str) -> dict[str, Any]:
        """A reveal of a seat that has revealed: the same one is acknowledged, another one convicts."""
        async with unavailable():
            held = await self._pool.fetchval(
                "SELECT receipt_id FROM receipt WHERE job_id = $1 AND attempt = $2 AND node_id = $3",
                run["job_id"],
                run["attempt"],
                node_id,
            )
        if held != receipt:
            pair = {"statement": encode(reveal.receipt), "signature": encode(reveal.signature)}
            verify_signed(ReceiptCore, pair, address=node_id, where="receipt")
            await self._keep(run, node_id, "equivocation.receipt", pair)
            raise VerificationError("equivocation.receipt", "another receipt of this operator is held")
        return {"receipt": receipt}

    async def _facts(self, run: Record, seat: Record) -> SeatFacts:
        node_id = seat["node_id"]
        snapshot = await self._registry.by_epoch(run["snapshot_epoch"])
        operator = next(entry for entry in snapshot.entries if entry.node_id == node_id)
        entries = [decode(DrawEntry, entry) for entry in json.loads(run["entries"])]
        entry = next(entry for entry in entries if entry.node_id == node_id)
        async with unavailable():
            claim = await self._pool.fetchrow(
                "SELECT claim, beta FROM claim WHERE job_id = $1 AND attempt = $2 AND node_id = $3",
                run["job_id"],
                run["attempt"],
                node_id,
            )
            head = await self._pool.fetchval(
                "SELECT hash FROM chunk WHERE job_id = $1 AND attempt = $2 ORDER BY index DESC LIMIT 1",
                run["job_id"],
                run["attempt"],
            )
            first = await self._pool.fetchval(
                "SELECT draw_call FROM attempt WHERE job_id = $1 AND attempt = 1", run["job_id"]
            )
        assert claim is not None  # noqa: S101  only who claimed is seated
        request = decode(Request, json.loads(run["request"]))
        own = request.job.params.seed
        draw_seed = read_signed(DrawCall, json.loads(first)).statement.draw_seed
        commit_set: Signed[CommitSet] = read_signed(CommitSet, json.loads(run["commit_set"]))
        chain = self._config.chain
        committed_s = (run["deadline"] - self._config.deadlines.reveal_ms) // 1_000
        return SeatFacts(
            network=self._config.network,
            dispatcher=self._config.keys.address,
            node_id=node_id,
            node=operator.node,
            role=seat["role"],
            call=read_signed(DrawCall, json.loads(run["draw_call"])),
            record=read_signed(DrawRecord, json.loads(run["draw_record"])),
            status="selected" if entry.status == "selected" else "filled",
            vrf_key=operator.vrf_key,
            pi=read_signed(VrfClaim, json.loads(claim["claim"])).statement.pi,
            beta=claim["beta"],
            request=request,
            request_bytes=bytes(run["request"]),
            nonce=run["nonce"],
            sampling_seed=hashes.sampling_seed_from_draw(draw_seed) if own is None else own,
            commit=read_signed(Commit, json.loads(seat["commit"])),
            commit_set=commit_set.hash,
            stream_head=head if seat["role"] == "executor" and head is not None else b"",
            tee_references=self._config.tee_references,
            tee_boots=await self._attestation.before(node_id, seat["committed_at"]),
            court=None if chain is None else chain.domain,
            claim_until=0 if chain is None else committed_s + chain.claim_s,
            now_ms=now_ms(),
        )

    async def _broken(self, run: Record, node_id: str, reveal: Reveal) -> None:
        """A signed receipt that does not open its own signed commitment: kept as evidence, left out of the comparison."""
        pair = {
            "statement": encode(reveal.receipt),
            "signature": encode(reveal.signature),
            "commit_salt": encode(reveal.commit_salt),
        }
        await self._keep(run, node_id, "reveal.commitment", pair)
        async with unavailable():
            await self._pool.execute(
                """UPDATE seat SET standing = 'broken', evidence = 'reveal.commitment'
                   WHERE job_id = $1 AND attempt = $2 AND node_id = $3 AND standing = 'committed'""",
                run["job_id"],
                run["attempt"],
                node_id,
            )
        self._runs.wake(run["run_id"])

    async def _store_reveal(
        self, run: Record, node_id: str, reveal: Reveal, receipt: str, evidence: TeeEvidence | None
    ) -> bool:
        """False where this seat's receipt is there already."""
        pair = {"statement": encode(reveal.receipt), "signature": encode(reveal.signature)}
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            live = await db.fetchrow(
                "SELECT state, attempt FROM run WHERE run_id = $1 FOR UPDATE", run["run_id"]
            )
            if live["attempt"] != run["attempt"] or live["state"] != "committed":
                # One at the same time may have been the last that the run waited for.
                if await db.fetchval(
                    "SELECT 1 FROM receipt WHERE job_id = $1 AND attempt = $2 AND node_id = $3",
                    run["job_id"],
                    run["attempt"],
                    node_id,
                ):
                    return False
                raise RuleViolation("reveal.late", "this attempt takes no more reveals")
            stored = await db.fetchval(
                """INSERT INTO receipt (receipt_id, job_id, attempt, node_id, core, commit_salt, answer, tokens, evidence,
                                        received_at)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now()) ON CONFLICT DO NOTHING RETURNING true""",
                receipt,
                run["job_id"],
                run["attempt"],
                node_id,
                _json(pair),
                reveal.commit_salt,
                reveal.text.encode(),
                write_tokens(reveal.tokens),
                None if evidence is None else _json(encode(evidence)),
            )
            if stored and (claim := reveal.chain_claim) is not None:
                await db.execute(
                    "INSERT INTO chain_claim (receipt_id, claim, expires, signed) VALUES ($1, $2, $3, $4)",
                    receipt,
                    claim_hash(claim.claim),
                    claim.claim.expires,
                    _json(encode(claim)),
                )
            await db.execute(
                """UPDATE seat SET standing = 'revealed'
                   WHERE job_id = $1 AND attempt = $2 AND node_id = $3 AND standing = 'committed'""",
                run["job_id"],
                run["attempt"],
                node_id,
            )
        return stored is not None

    # --- the rest

    async def _failed(self, node_id: str, body: object) -> dict[str, Any]:
        failed = decode(_Failed, body)
        run = await self._run(failed.job_ref, failed.attempt)
        await self._seat(run, node_id)
        async with unavailable():
            await self._pool.execute(
                """UPDATE seat SET standing = 'failed', evidence = $4
                   WHERE job_id = $1 AND attempt = $2 AND node_id = $3 AND standing = 'seated'""",
                run["job_id"],
                run["attempt"],
                node_id,
                failed.code,
            )
        log.warning("seat.failed", node=node_id, run=run["run_id"], code=failed.code)
        self._runs.wake(run["run_id"])
        return {}

    async def _heartbeat(self, node_id: str, body: object) -> dict[str, Any]:
        decode(_Heartbeat, body)
        return {}

    async def _drain(self, node_id: str, body: object) -> dict[str, Any]:
        log.info("operator.draining", node=node_id)
        return {}


def _json(value: object) -> str:
    return canonical_json(value).decode()
