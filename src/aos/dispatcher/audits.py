"""Audits over the network (docs/spec/14-audit.md, "Over the network"): who may ask, which beacon draws, and the bundles on
their way from the operator to the auditor.

A bundle is taken chunk by chunk, each under the hash that the operator signed, and is an answer once the whole of it leads to the
claim's state root; what does not is no answer. Everything is in rows: whoever dies in between goes on from there.
"""

import asyncio
import json
import mmap
import tempfile
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from asyncpg import Record

from aos.adapters.postgres import unavailable
from aos.core.codec import Bytes32, MaxLength, decode
from aos.core.dispute.audit import AuditBundle, AuditRequest
from aos.core.dispute.audit_order import (
    ASK_SKEW_MS,
    MAX_CHUNKS,
    AuditAsked,
    AuditFound,
    AuditOpening,
    AuditOrder,
    beacon_of,
    check_chunk,
    check_opening,
    prove_beacon,
)
from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.statements import ReceiptCore, Signed, check_signed, read_signed, sign
from aos.dispatcher.disputes_book import core_of
from aos.dispatcher.disputes_claims import Claims, NotEntitled, Reader
from aos.dispatcher.moves import stored_json
from aos.dispatcher.refusals import NotFound, TooMany
from aos.errors import AOSError, RuleViolation, Unavailable, VerificationError

log = structlog.get_logger("aos.dispatcher")

SWEEP_S = 60.0

_AUDITS = """SELECT a.*, j.job_ref, c.attempt, c.node_id, c.core, j.model_id, j.job_id FROM audit a
             JOIN receipt c USING (receipt_id) JOIN job j ON j.job_id = c.job_id"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What an operator says that it will send: its signed opening, and the hash of each chunk."""

    opening: Any
    hashes: Annotated[tuple[Bytes32, ...], MaxLength(MAX_CHUNKS)]


class Audits(Claims):
    """Audits of the claims of one dispatcher."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._turn = asyncio.Semaphore(1)  # a check reads a whole bundle

    async def run(self) -> None:
        """Erase what has served its time, until cancelled."""
        while True:
            try:
                await self.erase()
            except Unavailable as error:
                log.warning("audit.not_erased", code=error.code)
            await asyncio.sleep(SWEEP_S)

    async def erase(self) -> int:
        """Delete the bundles of audits that have closed; how many."""
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            rows = await db.fetch(
                "UPDATE audit SET erased = true WHERE NOT erased AND closes_at <= $1 RETURNING audit",
                self._now_ms(),
            )
            await db.execute("DELETE FROM audit_chunk WHERE audit = ANY($1)", [row["audit"] for row in rows])
        return len(rows)

    # --- asking

    async def ask(self, value: object, reader: Reader) -> dict[str, Any]:
        """Take a signed request; the same one again gives the same audit. Its signer must be entitled, or send a token that is.

        Raises NotFound; NotEntitled; VerificationError ``audit.foreign``, ``audit.stale``, ``audit.no_state_root``,
        ``signature.*``; RuleViolation ``dispute.window_closed``, ``audit.under_way``, ``audit.too_many``; TooMany
        ``audit.full``.
        """
        signed = read_signed(AuditAsked, value, where="request")
        asked = signed.statement
        if (asked.network, asked.dispatcher) != (self._config.network, self._config.keys.address):
            raise VerificationError(
                "audit.foreign", "the request is for another dispatcher", field="dispatcher"
            )
        check_signed(signed, address=asked.auditor)
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            claim = await self._claim(db, asked.claim)
            await self._entitled(db, claim, Reader(address=asked.auditor, token=reader.token))
            await db.execute("SELECT 1 FROM receipt WHERE receipt_id = $1 FOR UPDATE", claim["receipt_id"])
            known = await db.fetchval("SELECT 1 FROM audit WHERE audit = $1", signed.hash)
            if known is None:
                await self._order(db, claim, signed)
        self._hint([claim["node_id"]])
        return await self.audit(signed.hash)

    async def _order(self, db: Any, claim: Record, signed: Signed[AuditAsked]) -> None:
        now, settings, asked = self._now_ms(), self._config.disputes, signed.statement
        if abs(asked.time - now) > ASK_SKEW_MS:
            raise VerificationError("audit.stale", "the request is stale; sign a new one", field="time")
        core = core_of(claim).statement
        if not core.state_root:
            raise VerificationError(
                "audit.no_state_root", "this receipt commits to no state root: nothing to audit"
            )
        closes_at = int(claim["received_at"].timestamp() * 1000) + settings.claim_window_ms
        if now >= closes_at:
            raise RuleViolation("dispute.window_closed", "the time to audit this claim is over")
        before = await db.fetchrow(
            """SELECT count(*) AS asked, count(*) FILTER (WHERE opened_at IS NULL AND due_at > $2) AS waiting
               FROM audit WHERE receipt_id = $1""",
            claim["receipt_id"],
            now,
        )
        if before["waiting"]:
            raise RuleViolation("audit.under_way", "an audit of this claim waits for its operator")
        if before["asked"] >= settings.audits_per_claim:
            raise RuleViolation("audit.too_many", f"this claim was audited {before['asked']} times already")
        held = await db.fetchval(
            """SELECT coalesce(sum(CASE WHEN opening IS NULL THEN $1 ELSE
                   (opening::json #>> '{statement,size}')::bigint END), 0) FROM audit WHERE NOT erased""",
            settings.audit_bytes,
        )
        if held + settings.audit_bytes > settings.audits_bytes:
            raise TooMany("audit.full", "this dispatcher holds as many bundles as it may; ask again later")
        order = AuditOrder(
            network=asked.network,
            dispatcher=asked.dispatcher,
            audit=signed.hash,
            claim=asked.claim,
            operator=core.operator,
            pi=prove_beacon(self._config.keys.vrf, asked),
            due_at=now + settings.audit_ms,
        )
        await db.execute(
            """INSERT INTO audit (audit, receipt_id, request, ordered, asked_at, due_at, closes_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7)""",
            signed.hash,
            claim["receipt_id"],
            stored_json(signed.to_json()),
            stored_json(sign(self._config.keys.signer, order).to_json()),
            now,
            order.due_at,
            closes_at + settings.audit_ms,
        )
        log.info("audit.ordered", audit=b64u_encode(signed.hash), node=core.operator, layers=asked.layers)

    # --- the operator's answer

    async def open(self, name: bytes, value: object) -> dict[str, Any]:
        """Take what an operator says that it will send; answers with the chunks that are missing.

        Raises NotFound; RuleViolation ``audit.closed``, ``audit.other_opening``; as ``check_opening``; and, where nothing is
        missing, as ``AuditBundle.read``.
        """
        opened = decode(Opened, value, where="")
        signed = read_signed(AuditOpening, opened.opening, where="opening")
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            row = await self._row(db, name, lock=True)
            order = _order_of(row)
            check_opening(signed, order.statement, opened.hashes, most=self._config.disputes.audit_bytes)
            if row["opening"] is None:
                self._still_open(row)
                await db.execute(
                    "UPDATE audit SET opening = $2, hashes = $3 WHERE audit = $1",
                    name,
                    stored_json(signed.to_json()),
                    list(opened.hashes),
                )
            elif json.loads(row["opening"]) != signed.to_json():
                raise RuleViolation("audit.other_opening", "another bundle is on its way for this audit")
        return await self._progress(name)

    async def put_chunk(self, name: bytes, index: int, data: bytes) -> dict[str, Any]:
        """Take one chunk, whoever brings it; again, it changes nothing. The last one is answered when all is checked.

        Raises NotFound; RuleViolation ``audit.closed``, ``audit.no_opening``; as ``check_chunk``; as ``AuditBundle.read``.
        """
        async with unavailable():
            row = await self._row(self._pool, name)
        if row["opened_at"] is None:
            opening = _opening_of(row)
            self._still_open(row)
            await asyncio.to_thread(check_chunk, opening.statement, row["hashes"], index, data)
            async with unavailable(), self._pool.acquire() as db, db.transaction():
                # Under the row's lock: a bundle that was refused meanwhile takes no chunk any more.
                now = await self._row(db, name, lock=True)
                if now["hashes"] == row["hashes"] and now["opened_at"] is None:
                    await db.execute(
                        "INSERT INTO audit_chunk (audit, index, data) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                        name,
                        index,
                        data,
                    )
        return await self._progress(name)

    async def _progress(self, name: bytes) -> dict[str, Any]:
        async with unavailable():
            row = await self._row(self._pool, name)
            held = await self._pool.fetch("SELECT index FROM audit_chunk WHERE audit = $1", name)
        done = row["opened_at"] is not None
        missing = (
            [] if done else sorted(set(range(len(row["hashes"] or ()))) - {each["index"] for each in held})
        )
        if not done and row["opening"] is not None and not missing:
            await self._check(row)
            done = True
        return {"audit": b64u_encode(name), "missing": missing, "opened": done}

    async def _check(self, row: Record) -> None:
        """A bundle whose chunks are all there: an answer, or none and thrown away."""
        refused: AOSError | None = None
        async with self._turn:
            try:
                await self._read(row)
            except Unavailable:
                raise
            except AOSError as error:
                refused = error
            async with unavailable(), self._pool.acquire() as db, db.transaction():
                now = await self._row(db, row["audit"], lock=True)
                if now["opening"] != row["opening"] or now["opened_at"] is not None:
                    return
                if refused is None:
                    await db.execute(
                        "UPDATE audit SET opened_at = $2, refused = '' WHERE audit = $1",
                        row["audit"],
                        self._now_ms(),
                    )
                else:
                    await db.execute("DELETE FROM audit_chunk WHERE audit = $1", row["audit"])
                    await db.execute(
                        "UPDATE audit SET opening = NULL, hashes = NULL, refused = $2 WHERE audit = $1",
                        row["audit"],
                        refused.code,
                    )
        name = b64u_encode(row["audit"])
        if refused is not None:
            log.warning("audit.refused", audit=name, node=row["node_id"], code=refused.code)
            raise refused
        log.info("audit.opened", audit=name, node=row["node_id"], late=self._now_ms() > row["due_at"])

    async def _read(self, row: Record) -> None:
        core = read_signed(ReceiptCore, json.loads(row["core"])).statement
        asked = _request_of(row).statement
        beacon = beacon_of(self._config.keys.vrf_public, asked, _order_of(row).statement.pi)
        request = AuditRequest(state_root=core.state_root, beacon=beacon, layers=asked.layers)
        with tempfile.TemporaryFile() as file:
            for index in range(len(row["hashes"])):
                async with unavailable():
                    data = await self._pool.fetchval(
                        "SELECT data FROM audit_chunk WHERE audit = $1 AND index = $2", row["audit"], index
                    )
                if data is None:  # another check has refused it
                    raise RuleViolation("audit.closed", "the bundle was refused already")
                await asyncio.to_thread(file.write, data)
            file.flush()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                await asyncio.to_thread(AuditBundle.read, whole, request, core.model_id, keep=False)

    def _still_open(self, row: Record) -> None:
        if row["erased"] or self._now_ms() >= row["closes_at"]:
            raise RuleViolation("audit.closed", "the time to answer this audit is over")

    # --- reading

    async def opening(self, name: bytes, reader: Reader) -> dict[str, Any]:
        """The signed opening and the chunks' hashes. Raises NotFound, NotEntitled; RuleViolation ``audit.no_opening``."""
        async with unavailable():
            row = await self._readable(name, reader)
        return {
            "opening": json.loads(row["opening"]),
            "hashes": [b64u_encode(each) for each in row["hashes"]],
        }

    async def chunk(self, name: bytes, index: int, reader: Reader) -> bytes:
        """One chunk of a bundle that was checked. Raises as ``opening``; NotFound ``audit.no_chunk``."""
        async with unavailable():
            await self._readable(name, reader)
            data: bytes | None = await self._pool.fetchval(
                "SELECT data FROM audit_chunk WHERE audit = $1 AND index = $2", name, index
            )
        if data is None:
            raise NotFound("audit.no_chunk", "the bundle has no such chunk", field="index")
        return data

    async def _readable(self, name: bytes, reader: Reader) -> Record:
        row = await self._row(self._pool, name)
        auditor = _request_of(row).statement.auditor
        if not reader.address or reader.address != auditor:
            claim = await self._claim(self._pool, b64u_decode(row["receipt_id"], length=32))
            await self._entitled(self._pool, claim, reader)
        if row["opened_at"] is None or row["erased"]:
            raise RuleViolation("audit.no_opening", "this audit has no answer to read")
        return row

    async def report(self, name: bytes, value: object) -> dict[str, Any]:
        """Keep what the auditor says that it found. Raises NotFound; VerificationError ``audit.foreign``, ``signature.*``;
        RuleViolation ``audit.no_opening``, ``audit.reported``."""
        signed = read_signed(AuditFound, value, where="report")
        said = signed.statement
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            row = await self._row(db, name, lock=True)
            asked, opening = _request_of(row).statement, _opening_of(row).statement
            check_signed(signed, address=asked.auditor)
            if (said.network, said.audit, said.chunks_root) != (asked.network, name, opening.chunks_root):
                raise VerificationError("audit.foreign", "the report is about another opening")
            if row["opened_at"] is None:
                raise RuleViolation("audit.no_opening", "this audit has no answer yet")
            if row["report"] is None:
                await db.execute(
                    "UPDATE audit SET report = $2 WHERE audit = $1", name, stored_json(signed.to_json())
                )
                log.info("audit.reported", audit=b64u_encode(name), node=row["node_id"], found=said.found)
            elif json.loads(row["report"]) != signed.to_json():
                raise RuleViolation("audit.reported", "this audit has another report already")
        return await self.audit(name)

    async def audit(self, name: bytes) -> dict[str, Any]:
        """An audit's public facts. Raises NotFound."""
        async with unavailable():
            return self._public(await self._row(self._pool, name))

    async def audits(
        self, *, before: int | None, limit: int, job_ref: bytes | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Audits, newest first, and the cursor of the next page."""
        async with unavailable():
            rows = await self._pool.fetch(
                _AUDITS
                + " WHERE a.seq < $1 AND ($3::bytea IS NULL OR j.job_ref = $3) ORDER BY a.seq DESC LIMIT $2",
                2**63 - 1 if before is None else before,
                limit + 1,
                job_ref,
            )
        page = rows[:limit]
        return [self._public(row) for row in page], str(page[-1]["seq"]) if len(rows) > limit else None

    async def waiting(self, reader: Reader) -> list[dict[str, Any]]:
        """Audits that wait for the address that asks. Raises NotEntitled where nobody signed the question."""
        if not reader.address:
            raise NotEntitled("dispute.not_entitled", "sign the question: it is about its signer")
        async with unavailable():
            rows = await self._pool.fetch(
                _AUDITS + " WHERE c.node_id = $1 AND a.opened_at IS NULL AND a.closes_at > $2 ORDER BY a.seq",
                reader.address,
                self._now_ms(),
            )
        return [self._public(row) for row in rows]

    def _public(self, row: Record) -> dict[str, Any]:
        """What everybody may know: the signed request, order, opening and report hold no token."""
        asked, order = _request_of(row).statement, _order_of(row).statement
        opening, report = (
            row["opening"] and json.loads(row["opening"]),
            row["report"] and json.loads(row["report"]),
        )
        if row["opened_at"] is None:
            state = "waiting" if self._now_ms() <= row["due_at"] else "defaulted"
        else:
            state = "opened" if report is None else report["statement"]["found"]
        return {
            "audit": b64u_encode(row["audit"]),
            "job_ref": b64u_encode(row["job_ref"]),
            "attempt": row["attempt"],
            "claim": row["receipt_id"],
            "operator": row["node_id"],
            "auditor": asked.auditor,
            "layers": asked.layers,
            "beacon": b64u_encode(beacon_of(self._config.keys.vrf_public, asked, order.pi)),
            "state": state,
            "refused": row["refused"],
            "asked_at": row["asked_at"],
            "due_at": row["due_at"],
            "closes_at": row["closes_at"],
            "opened_at": row["opened_at"],
            "request": json.loads(row["request"]),
            "order": json.loads(row["ordered"]),
            "opening": opening,
            "report": report,
        }

    async def _row(self, db: Any, name: bytes, *, lock: bool = False) -> Record:
        row = await db.fetchrow(_AUDITS + " WHERE a.audit = $1" + (" FOR UPDATE OF a" if lock else ""), name)
        if row is None:
            raise NotFound("audit.unknown", "no such audit", field="audit")
        return row


def _request_of(row: Record) -> Signed[AuditAsked]:
    return read_signed(AuditAsked, json.loads(row["request"]))


def _order_of(row: Record) -> Signed[AuditOrder]:
    return read_signed(AuditOrder, json.loads(row["ordered"]))


def _opening_of(row: Record) -> Signed[AuditOpening]:
    if row["opening"] is None:
        raise RuleViolation("audit.no_opening", "send the signed opening first")
    return read_signed(AuditOpening, json.loads(row["opening"]))
