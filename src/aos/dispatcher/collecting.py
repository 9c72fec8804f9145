"""From seated operators to a result (docs/spec/06-network.md, "A run"): dispatch, commits, reveals, countersigns."""

import json
from hashlib import sha256
from typing import Any

from asyncpg import Record

from aos.adapters.causal_clock import CausalClock
from aos.adapters.postgres import Pool, unavailable
from aos.core import merkle
from aos.core.encoding import b64u_encode, canonical_json
from aos.core.job import RunEvent, outcome_of
from aos.core.statements import (
    Commit,
    CommitSet,
    CommitSetEntry,
    Countersign,
    DrawRecord,
    Outcome,
    ReceiptCore,
    Signed,
    hash_of,
    read_signed,
    sign,
)
from aos.dispatcher.asking import Asking
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.disputes_book import begin_dispute
from aos.dispatcher.events import Events
from aos.dispatcher.moves import WITHHELD, Moves, pause_until_deadline, stored_json
from aos.dispatcher.registry import now_ms


class Collecting:
    """The steps of a run from ``drawn`` to its result; each answers in how many seconds to look again."""

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        clock: CausalClock,
        events: Events,
        asking: Asking,
        moves: Moves,
    ) -> None:
        self._pool = pool
        self._config = config
        self._clock = clock
        self._events = events
        self._asking = asking
        self._moves = moves

    # --- drawn → running

    async def dispatch(self, run: Record, now: int) -> float:
        """Begin the execution; who is seated is asked from the next step on."""
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await self._moves.move(
                db,
                run,
                "dispatched",
                executions=run["executions"] + 1,
                deadline=now + self._config.deadlines.execution_ms,
            )
        self._events.tell(run["job_id"])
        return 0.0

    # --- running, checking → committed

    async def commits(self, run: Record, attempt: Record, now: int) -> float:
        """Send the work out; with all commits, or at the deadline, sign the set of them."""
        seats = await self._seats(run)
        chunks = await self._chunks(run)
        final = bool(chunks) and json.loads(chunks[-1]["chunk"])["statement"]["final"]
        if run["state"] == "running" and final and any(seat["role"] == "checker" for seat in seats):
            async with unavailable(), self._pool.acquire() as db, db.transaction():
                await self._moves.move(
                    db, run, "stream_final", deadline=now + self._config.deadlines.commit_ms
                )
            return 0.0
        committed = [seat for seat in seats if seat["standing"] == "committed"]
        waiting = [seat for seat in seats if seat["standing"] == "seated"]
        streamed = run["state"] == "running" and any(seat["role"] == "checker" for seat in seats)
        if now >= run["deadline"] or not waiting or (streamed and seats[0]["standing"] == "failed"):
            if committed and not (streamed and not final):
                await self._sign_commit_set(run, attempt, seats)
            else:
                await self._moves.fail_attempt(run, "run.no_result", "no operator committed a result in time")
            return 0.0
        for seat in waiting:
            if seat["role"] == "checker" and run["state"] != "checking":
                continue
            if self._asking.may_ask(run, seat["node_id"], "dispatch_job"):
                body = await self._dispatch_body(run, attempt, seat, chunks)
                self._asking.send(run["run_id"], run["attempt"], seat["node_id"], "dispatch_job", body)
        return pause_until_deadline(run, now)

    async def _seats(self, run: Record) -> list[Record]:
        async with unavailable():
            return list(
                await self._pool.fetch(
                    "SELECT * FROM seat WHERE job_id = $1 AND attempt = $2 ORDER BY seat",
                    run["job_id"],
                    run["attempt"],
                )
            )

    async def _chunks(self, run: Record) -> list[Record]:
        async with unavailable():
            return list(
                await self._pool.fetch(
                    "SELECT * FROM chunk WHERE job_id = $1 AND attempt = $2 ORDER BY index",
                    run["job_id"],
                    run["attempt"],
                )
            )

    async def _dispatch_body(
        self, run: Record, attempt: Record, seat: Record, chunks: list[Record]
    ) -> dict[str, Any]:
        async with unavailable():
            job = await self._pool.fetchrow("SELECT * FROM job WHERE job_id = $1", run["job_id"])
            first = await self._pool.fetchval(
                "SELECT draw_call FROM attempt WHERE job_id = $1 AND attempt = 1", run["job_id"]
            )
        assert job is not None  # noqa: S101  a run refers to it by foreign key
        stream = None
        if seat["role"] == "checker":
            statements = [json.loads(chunk["chunk"])["statement"] for chunk in chunks]
            stream = {
                "tokens": [token for statement in statements for token in statement["tokens"]],
                "head": b64u_encode(chunks[-1]["hash"]),
                "finish_reason": statements[-1]["finish_reason"],
            }
        return {
            "job_id": run["job_id"],
            "clock": self._clock.now.to_json(),
            "attempt": run["attempt"],
            "role": seat["role"],
            "seat": seat["seat"],
            "request": bytes(job["request"]).decode("utf-8"),
            "nonce": b64u_encode(job["nonce"]),
            "draw_call": json.loads(attempt["draw_call"]),
            "draw_record": json.loads(attempt["draw_record"]),
            "first_draw": None if run["attempt"] == 1 else json.loads(first),
            "stream": stream,
            "deadline": run["deadline"],
        }

    async def _sign_commit_set(self, run: Record, attempt: Record, seats: list[Record]) -> None:
        record = read_signed(DrawRecord, json.loads(attempt["draw_record"]))
        known = {seat["node_id"] for seat in seats if seat["standing"] == "committed"}
        clock = (await self._clock.tick()).to_json()
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            # Under the run's lock no further commit is acknowledged: the set holds every acknowledged one.
            await db.execute("SELECT 1 FROM run WHERE run_id = $1 FOR UPDATE", run["run_id"])
            rows = await db.fetch(
                "SELECT node_id, commit FROM seat WHERE job_id = $1 AND attempt = $2 AND standing = 'committed' ORDER BY node_id",
                run["job_id"],
                run["attempt"],
            )
            commits = tuple(
                CommitSetEntry(
                    node_id=row["node_id"], commit=read_signed(Commit, json.loads(row["commit"])).hash
                )
                for row in rows
            )
            names = {entry.node_id for entry in commits}
            if names != known:
                return  # one came in after the tick: the set's clock would not count it
            commit_set = CommitSet(
                network=self._config.network,
                dispatcher=self._config.keys.address,
                job_ref=run["job_ref"],
                attempt=run["attempt"],
                draw_record=record.hash,
                commits=commits,
                missing=tuple(sorted(seat["node_id"] for seat in seats if seat["node_id"] not in names)),
                clock=clock,
            )
            deadline = now_ms() + self._config.deadlines.reveal_ms
            if await self._moves.move(db, run, "commit_set_signed", deadline=deadline):
                await db.execute(
                    "UPDATE attempt SET commit_set = $3 WHERE job_id = $1 AND attempt = $2",
                    run["job_id"],
                    run["attempt"],
                    stored_json(sign(self._config.keys.signer, commit_set).to_json()),
                )
        self._events.tell(run["job_id"])

    # --- committed → agreed, disputed, single

    async def reveals(self, run: Record, attempt: Record, now: int) -> float:
        """Send the commit set out; with all reveals, or at the deadline, compare and countersign them."""
        seats = await self._seats(run)
        waiting = [seat for seat in seats if seat["standing"] == "committed"]
        revealed = [seat for seat in seats if seat["standing"] == "revealed"]
        if waiting and now < run["deadline"]:
            for seat in waiting:
                if self._asking.may_ask(run, seat["node_id"], "commit_set"):
                    body = self._commit_set_body(attempt, seat["node_id"])
                    self._asking.send(run["run_id"], run["attempt"], seat["node_id"], "commit_set", body)
            return pause_until_deadline(run, now)
        if not revealed:
            await self._moves.fail_attempt(run, "run.no_reveal", "no operator revealed its result in time")
            return 0.0
        await self._finish(run, attempt, [seat["node_id"] for seat in revealed])
        return 0.0

    def _commit_set_body(self, attempt: Record, node_id: str) -> dict[str, Any]:
        entries = json.loads(attempt["entries"])
        index = next(i for i, entry in enumerate(entries) if entry["node_id"] == node_id)
        leaves = [merkle.leaf_hash(canonical_json(entry)) for entry in entries]
        return {
            "commit_set": json.loads(attempt["commit_set"]),
            "entry": entries[index],
            "entry_index": index,
            "entry_path": [b64u_encode(item) for item in merkle.inclusion_path(leaves, index)],
        }

    async def _finish(self, run: Record, attempt: Record, known: list[str]) -> None:
        """Compare what was revealed, countersign it, and write the run's one result set. ``known`` are the seats that
        had revealed before the countersigns' clocks were made, in seat order."""
        clocks = {node_id: (await self._clock.tick()).to_json() for node_id in known}
        now = now_ms()
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await db.execute("SELECT 1 FROM run WHERE run_id = $1 FOR UPDATE", run["run_id"])
            rows = await db.fetch(
                """SELECT c.*, s.seat FROM receipt c JOIN seat s USING (job_id, attempt, node_id)
                   WHERE c.job_id = $1 AND c.attempt = $2 AND s.standing = 'revealed' ORDER BY s.seat""",
                run["job_id"],
                run["attempt"],
            )
            if [row["node_id"] for row in rows] != known:
                return
            cores = [read_signed(ReceiptCore, json.loads(row["core"])) for row in rows]
            roots = [core.statement.state_root for core in cores]
            outcome = outcome_of(run["job_type"], roots)
            event: RunEvent = (
                "revealed_agreed"
                if outcome == "agreed"
                else "revealed_disputed"
                if outcome == "disputed"
                else "revealed_single"
            )
            if not await self._moves.move(db, run, event):
                return
            for row, core in zip(rows, cores, strict=True):
                clock = clocks[row["node_id"]]
                signed = self._countersign(run, attempt, core, outcome, clock, now)
                await db.execute(
                    "UPDATE receipt SET countersign = $2 WHERE receipt_id = $1",
                    row["receipt_id"],
                    stored_json(signed.to_json()),
                )
                await db.execute(
                    """INSERT INTO result (job_id, tag, position, node_id, seat, attempt, receipt_id, outcome, clock, created_at,
                                           project_id, user_id)
                       SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, to_timestamp($10::double precision / 1000),
                              project_id, user_id FROM job WHERE job_id = $1""",
                    run["job_id"],
                    run["tag"],
                    run["position"],
                    row["node_id"],
                    row["seat"],
                    run["attempt"],
                    row["receipt_id"],
                    outcome,
                    json.dumps(clock),
                    now,
                )
            await db.execute(WITHHELD, run["job_id"], run["attempt"])
            if outcome == "disputed":
                await begin_dispute(db, self._config, run, [row["receipt_id"] for row in rows], now)
            if run["position"] != "before":
                await self._tell_end(db, run, rows, outcome)
        self._events.tell(run["job_id"])

    async def _tell_end(self, db: Any, run: Record, rows: list[Record], outcome: Outcome) -> None:
        if outcome == "disputed":
            return  # the games say how it ends
        if run["blind"]:
            text = {"text": bytes(rows[0]["answer"]).decode("utf-8"), "index": 0, "attempt": run["attempt"]}
            await self._events.add(db, run["job_id"], "text", text)
        done = {"status": "verified", "outcome": outcome, "attempt": run["attempt"]}
        await self._events.add(db, run["job_id"], "done", done)

    def _countersign(
        self,
        run: Record,
        attempt: Record,
        core: Signed[ReceiptCore],
        outcome: Outcome,
        clock: dict[str, str],
        now: int,
    ) -> Signed[Countersign]:
        return sign(
            self._config.keys.signer,
            Countersign(
                network=self._config.network,
                dispatcher=self._config.keys.address,
                receipt=hash_of(core.statement),
                receipt_signature=sha256(core.signature).digest(),
                draw_record=core.statement.draw_record,
                commit_set=core.statement.commit_set,
                tag=run["tag"],
                position=run["position"],
                tag_salt=attempt["tag_salt"],
                outcome=outcome,
                received_at=now,
                clock=clock,
            ),
        )
