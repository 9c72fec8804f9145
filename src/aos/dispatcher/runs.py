"""The run engine: moves every open run through the table of ``aos.core.job``, one step a transaction.

A task for each open run reads its row, does what its state asks for, and waits for a message, a connection or a deadline. Nothing
is kept in memory that matters: a dispatcher killed at any point begins again from the rows. What operators send comes in through
``aos.dispatcher.messages``.
"""

import asyncio
import json
import secrets
from hashlib import sha256
from typing import Any

import structlog
from asyncpg import Record

from aos.adapters.causal_clock import CausalClock
from aos.adapters.postgres import Pool, unavailable
from aos.core import draw, merkle
from aos.core.codec import encode
from aos.core.encoding import b64u_encode, canonical_json
from aos.core.job import MAX_EXECUTIONS, STATUS, TERMINAL, RunEvent, RunState, next_state, outcome_of
from aos.core.statements import (
    Commit,
    CommitSet,
    CommitSetEntry,
    Countersign,
    DrawCall,
    DrawRecord,
    JobType,
    Outcome,
    ReceiptCore,
    Signed,
    VrfClaim,
    hash_of,
    read_signed,
    sign,
)
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.events import Events
from aos.dispatcher.hub import Hub
from aos.dispatcher.registry import Registry, SnapshotInForce, now_ms
from aos.errors import AOSError, RuleViolation, Unavailable

log = structlog.get_logger("aos.dispatcher")

POLL_S = 2.0
NO_OPERATOR_PAUSE_MS = 1_000
GATHER_MS = 3_000
RESTART_GRACE_MS = 15_000
SLOTS = 64
PARKED_S = 60.0
_WITHHELD = (
    "UPDATE seat SET standing = 'withheld' WHERE job_id = $1 AND attempt = $2 AND standing = 'committed'"
)
_RETRIED = ("store.", "queue.", "link.", "registry.", "internal")


class Runs:
    """Drives every open run."""

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        registry: Registry,
        clock: CausalClock,
        events: Events,
        hub: Hub,
    ) -> None:
        self._pool = pool
        self._config = config
        self._registry = registry
        self._clock = clock
        self._events = events
        self._hub = hub
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._wakes: dict[int, asyncio.Event] = {}
        self._sending: dict[tuple[int, int, str, str], asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(SLOTS)
        self._sweeper: asyncio.Task[None] | None = None
        self._started_ms = now_ms()

    async def start(self) -> None:
        """Take up every open run; deadlines that passed while nobody was here are put off once."""
        async with unavailable():
            await self._pool.execute(
                """UPDATE run SET deadline = greatest(deadline, $1)
                   WHERE state IN ('drawing', 'running', 'checking', 'committed')""",
                now_ms() + RESTART_GRACE_MS,
            )
            rows = await self._pool.fetch(
                """SELECT run_id FROM run WHERE state IN
                   ('created', 'drawing', 'drawn', 'running', 'checking', 'committed') ORDER BY run_id"""
            )
        for row in rows:
            self.begin(row["run_id"])
        self._sweeper = asyncio.create_task(self._sweep())
        log.info("runs.taken_up", open=len(rows))

    async def stop(self) -> None:
        """End the tasks; the rows keep everything."""
        tasks = [*self._tasks.values(), *self._sending.values()]
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin(self, run_id: int) -> None:
        """Drive a run that is new."""
        if run_id not in self._tasks:
            self._wakes[run_id] = asyncio.Event()
            self._tasks[run_id] = asyncio.create_task(self._drive(run_id))

    def wake(self, run_id: int) -> None:
        """Something came in for this run."""
        if run_id in self._wakes:
            self._wakes[run_id].set()

    def wake_all(self) -> None:
        """An operator connected: everybody looks whether it lacks something."""
        for event in self._wakes.values():
            event.set()

    @property
    def open(self) -> int:
        """Runs under way."""
        return len(self._tasks)

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
            self._send(row["run_id"], attempt, row["node_id"], "cancel_job", body)
            self.wake(row["run_id"])

    # --- one run

    async def _drive(self, run_id: int) -> None:
        try:
            parked = not self._hub.connected()
            while True:
                if parked:
                    await self._wait(run_id, PARKED_S)
                # Parked runs hold no slot: what nobody can serve does not stand in the way of what somebody can.
                async with self._slots:
                    parked = await self._work(run_id)
                if not parked:
                    return
        finally:
            self._tasks.pop(run_id, None)
            self._wakes.pop(run_id, None)

    async def _work(self, run_id: int) -> bool:
        """Step until the run is over (False) or has to wait for an operator to connect (True)."""
        while True:
            self._wakes[run_id].clear()
            try:
                pause_s = await self._step(run_id)
            except Unavailable as error:
                log.warning("run.waits", run=run_id, code=error.code)
                pause_s = 0.5
            except Exception:
                # A defect must not leave an accepted job without an end: it is tried again until it expires.
                log.exception("run.defect", run=run_id)
                pause_s = 5.0
            if pause_s is None:
                return False
            if pause_s == PARKED_S:
                return True
            await self._wait(run_id, pause_s)

    async def _wait(self, run_id: int, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wakes[run_id].wait()
        except TimeoutError:
            return

    async def _sweep(self) -> None:
        """End what has expired without having a slot."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                async with unavailable():
                    rows = await self._pool.fetch(
                        """SELECT r.*, j.job_type, j.blind, j.model_id, j.job_ref FROM run r JOIN job j USING (job_id)
                           WHERE state = 'created' AND r.expires_at <= $1 LIMIT 100""",
                        now_ms(),
                    )
                for row in rows:
                    await self._end(row, "expire", "job.expired", "the job's time is over")
                    self.wake(row["run_id"])
            except Unavailable as error:
                log.warning("sweep.waits", code=error.code)

    async def _step(self, run_id: int) -> float | None:
        """Do what the run's state asks for; seconds until it is worth another look, None at its end."""
        async with unavailable():
            run = await self._pool.fetchrow(
                "SELECT r.*, j.job_type, j.blind, j.model_id, j.job_ref FROM run r JOIN job j USING (job_id) WHERE run_id = $1",
                run_id,
            )
        assert run is not None  # noqa: S101  runs are never deleted
        state: RunState = run["state"]
        if state in TERMINAL:
            return None
        now = now_ms()
        if now >= run["expires_at"]:
            await self._end(run, "expire", "job.expired", "the job's time is over")
            return None
        if state == "created":
            if now < run["not_before"]:
                return float(run["not_before"] - now) / 1000
            return await self._call_draw(run, now)
        attempt = await self._attempt(run)
        if state == "drawing":
            return await self._collect_claims(run, attempt, now)
        if state == "drawn":
            await self._dispatch(run, now)
            return 0.0
        if state in ("running", "checking"):
            return await self._collect_commits(run, attempt, now)
        return await self._collect_reveals(run, attempt, now)

    async def _attempt(self, run: Record) -> Record:
        async with unavailable():
            row = await self._pool.fetchrow(
                "SELECT * FROM attempt WHERE job_id = $1 AND attempt = $2", run["job_id"], run["attempt"]
            )
        assert row is not None  # noqa: S101  written with the state that follows `created`
        return row

    async def _move(self, db: Any, run: Record, event: RunEvent, **members: Any) -> bool:
        """Compare and set; tells the followers of a first run. False where the run has moved meanwhile."""
        target = next_state(run["state"], event)
        names = ", ".join(f"{name} = ${i}" for i, name in enumerate(members, start=5))
        done = await db.execute(
            f"UPDATE run SET state = $3, clock = $4{', ' + names if names else ''} WHERE run_id = $1 AND state = $2",  # noqa: S608
            run["run_id"],
            run["state"],
            target,
            json.dumps(self._clock.now.to_json()),
            *members.values(),
        )
        if done == "UPDATE 0":
            return False
        if run["position"] != "before" and STATUS[target] != STATUS[run["state"]] and target not in TERMINAL:
            status = {"status": STATUS[target], "attempt": members.get("attempt", run["attempt"])}
            await self._events.add(db, run["job_id"], "status", status)
        log.info("run.moved", run=run["run_id"], state=target, attempt=members.get("attempt", run["attempt"]))
        return True

    async def _end(self, run: Record, event: RunEvent, code: str, message: str) -> None:
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await self._end_in(db, run, event, code, message)
        self._events.tell(run["job_id"])
        if run["attempt"]:
            await self.cancelled(run["job_id"], run["attempt"])

    async def _end_in(self, db: Any, run: Record, event: RunEvent, code: str, message: str) -> bool:
        if not await self._move(db, run, event, error_code=code, error_message=message):
            return False
        if run["position"] != "before":
            status = STATUS[next_state(run["state"], event)]
            data = {"status": status, "attempt": run["attempt"], "error": f"{message} [{code}]"}
            await self._events.add(db, run["job_id"], "done", data)
        return True

    async def _fail_attempt(self, run: Record, code: str, message: str) -> None:
        """This attempt gave nothing: draw again, or give up after the third that reached an operator."""
        log.warning("attempt.failed", run=run["run_id"], attempt=run["attempt"], code=code)
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            if run["executions"] >= MAX_EXECUTIONS:
                moved = await self._end_in(db, run, "given_up", code, message)
            else:
                pause = NO_OPERATOR_PAUSE_MS if code == "draw.no_operator" else 0
                moved = await self._move(db, run, "attempt_failed", not_before=now_ms() + pause)
            if moved:
                await db.execute(
                    "UPDATE attempt SET failure = $3 WHERE job_id = $1 AND attempt = $2",
                    run["job_id"],
                    run["attempt"],
                    code,
                )
                if run["state"] == "committed":
                    await db.execute(_WITHHELD, run["job_id"], run["attempt"])
        self._events.tell(run["job_id"])
        self.wake(run["run_id"])
        await self.cancelled(run["job_id"], run["attempt"])

    # --- created → drawing

    async def _call_draw(self, run: Record, now: int) -> float:
        epoch = self._registry.epoch()
        snapshot = await self._registry.in_force(epoch)
        able = _eligible(snapshot, run["job_type"], run["model_id"], epoch)
        present = able & self._hub.connected()
        if not present:
            return PARKED_S
        gathered = max(run["not_before"], int(run["created_at"].timestamp() * 1000)) + GATHER_MS
        if len(present) < run["min_operators"] and now < max(gathered, self._started_ms + GATHER_MS):
            return 0.25
        clock = (await self._clock.tick()).to_json()
        salt = secrets.token_bytes(32)
        opened = draw.OpenedTag(salt=salt, tag=run["tag"], position=run["position"])
        deadline = now_ms() + self._config.deadlines.draw_ms
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await db.execute("SELECT 1 FROM job WHERE job_id = $1 FOR UPDATE", run["job_id"])
            number = await db.fetchval(
                "SELECT coalesce(max(attempt), 0) + 1 FROM attempt WHERE job_id = $1", run["job_id"]
            )
            beacon = self._registry.beacon_of(epoch)
            seed, proof = draw.make_draw_seed(
                self._config.keys.vrf,
                network=self._config.network,
                job_ref=run["job_ref"],
                attempt=number,
                beacon=beacon,
                snapshot_root=snapshot.root,
            )
            call = DrawCall(
                network=self._config.network,
                dispatcher=self._config.keys.address,
                job_ref=run["job_ref"],
                attempt=number,
                epoch=epoch,
                snapshot_root=snapshot.root,
                beacon=beacon,
                beacon_source="dispatcher",
                draw_seed=seed,
                draw_proof=proof,
                job_type=run["job_type"],
                model_id=run["model_id"],
                tag_commitment=opened.commitment(),
                deadline=deadline,
                clock=clock,
            )
            if await self._move(db, run, "draw_called", attempt=number, deadline=deadline):
                await db.execute(
                    """INSERT INTO attempt (job_id, attempt, run_id, snapshot_epoch, tag_salt, draw_call)
                       VALUES ($1, $2, $3, $4, $5, $6)""",
                    run["job_id"],
                    number,
                    run["run_id"],
                    snapshot.signed.statement.epoch,
                    salt,
                    _json(sign(self._config.keys.signer, call).to_json()),
                )
        self._events.tell(run["job_id"])
        return 0.0

    # --- drawing → drawn

    async def _collect_claims(self, run: Record, attempt: Record, now: int) -> float:
        call = read_signed(DrawCall, json.loads(attempt["draw_call"]))
        snapshot = await self._registry.by_epoch(attempt["snapshot_epoch"])
        of = call.statement
        wanted = _eligible(snapshot, of.job_type, of.model_id, of.epoch)
        async with unavailable():
            rows = await self._pool.fetch(
                "SELECT node_id, claim, beta FROM claim WHERE job_id = $1 AND attempt = $2",
                run["job_id"],
                run["attempt"],
            )
        held = {row["node_id"] for row in rows}
        asked = (wanted - held) & self._hub.connected()
        # Who is not connected was not asked; it is waited for only while too few have claimed a seat.
        enough = not asked and sum(row["beta"] != b"" for row in rows) >= run["min_operators"]
        if now < run["deadline"] and not wanted <= held and not enough:
            for node_id in asked:
                self._send(run["run_id"], run["attempt"], node_id, "draw_call", {"draw_call": call.to_json()})
            return _pause(run, now)
        claims = {
            row["node_id"]: draw.VerifiedClaim(
                claim=read_signed(VrfClaim, json.loads(row["claim"])), beta=row["beta"]
            )
            for row in rows
        }
        await self._sign_record(run, attempt, call, snapshot, claims)
        return 0.0

    async def _sign_record(
        self,
        run: Record,
        attempt: Record,
        call: Signed[DrawCall],
        snapshot: SnapshotInForce,
        claims: dict[str, draw.VerifiedClaim],
    ) -> None:
        try:
            record, entries = draw.build_draw_record(
                call=call,
                max_range=self._registry.network.max_range,
                operators=snapshot.entries,
                claims=claims,
                opened=draw.OpenedTag(salt=attempt["tag_salt"], tag=run["tag"], position=run["position"]),
                min_operators=run["min_operators"],
                clock=(await self._clock.tick()).to_json(),
            )
        except RuleViolation as error:
            await self._fail_attempt(run, error.code, error.message)
            return
        signed = sign(self._config.keys.signer, record)
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            # A claim that came in after the record was built is either in it or refused: never stored beside it.
            await db.execute("SELECT 1 FROM run WHERE run_id = $1 FOR UPDATE", run["run_id"])
            stored = await db.fetchval(
                "SELECT count(*) FROM claim WHERE job_id = $1 AND attempt = $2", run["job_id"], run["attempt"]
            )
            if stored != len(claims) or not await self._move(db, run, "record_signed"):
                return
            await db.execute(
                "UPDATE attempt SET draw_record = $3, entries = $4 WHERE job_id = $1 AND attempt = $2",
                run["job_id"],
                run["attempt"],
                _json(signed.to_json()),
                _json([encode(entry) for entry in entries]),
            )
            for seat, node_id in enumerate(record.seats):
                if run["blind"]:
                    role = "blind"
                elif seat == 0:
                    role = "executor"
                else:
                    role = "checker" if run["job_type"] == "opml" else "blind"
                await db.execute(
                    "INSERT INTO seat (job_id, attempt, node_id, seat, role) VALUES ($1, $2, $3, $4, $5)",
                    run["job_id"],
                    run["attempt"],
                    node_id,
                    seat,
                    role,
                )

    # --- drawn → running

    async def _dispatch(self, run: Record, now: int) -> None:
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await self._move(
                db,
                run,
                "dispatched",
                executions=run["executions"] + 1,
                deadline=now + self._config.deadlines.execution_ms,
            )
        self._events.tell(run["job_id"])

    # --- running, checking → committed

    async def _collect_commits(self, run: Record, attempt: Record, now: int) -> float:
        seats = await self._seats(run)
        chunks = await self._chunks(run)
        final = bool(chunks) and json.loads(chunks[-1]["chunk"])["statement"]["final"]
        if run["state"] == "running" and final and any(seat["role"] == "checker" for seat in seats):
            async with unavailable(), self._pool.acquire() as db, db.transaction():
                await self._move(db, run, "stream_final", deadline=now + self._config.deadlines.commit_ms)
            return 0.0
        committed = [seat for seat in seats if seat["standing"] == "committed"]
        waiting = [seat for seat in seats if seat["standing"] == "seated"]
        streamed = run["state"] == "running" and any(seat["role"] == "checker" for seat in seats)
        if now >= run["deadline"] or not waiting or (streamed and seats[0]["standing"] == "failed"):
            if committed and not (streamed and not final):
                await self._sign_commit_set(run, attempt, seats)
            else:
                await self._fail_attempt(run, "run.no_result", "no operator committed a result in time")
            return 0.0
        for seat in waiting:
            if seat["role"] == "checker" and run["state"] != "checking":
                continue
            if self._may_ask(run, seat["node_id"], "dispatch_job"):
                body = await self._dispatch_body(run, attempt, seat, chunks)
                self._send(run["run_id"], run["attempt"], seat["node_id"], "dispatch_job", body)
        return _pause(run, now)

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
            if await self._move(db, run, "commit_set_signed", deadline=deadline):
                await db.execute(
                    "UPDATE attempt SET commit_set = $3 WHERE job_id = $1 AND attempt = $2",
                    run["job_id"],
                    run["attempt"],
                    _json(sign(self._config.keys.signer, commit_set).to_json()),
                )
        self._events.tell(run["job_id"])

    # --- committed → agreed, disputed, single

    async def _collect_reveals(self, run: Record, attempt: Record, now: int) -> float | None:
        seats = await self._seats(run)
        waiting = [seat for seat in seats if seat["standing"] == "committed"]
        revealed = [seat for seat in seats if seat["standing"] == "revealed"]
        if waiting and now < run["deadline"]:
            for seat in waiting:
                if self._may_ask(run, seat["node_id"], "commit_set"):
                    body = self._commit_set_body(attempt, seat["node_id"])
                    self._send(run["run_id"], run["attempt"], seat["node_id"], "commit_set", body)
            return _pause(run, now)
        if not revealed:
            await self._fail_attempt(run, "run.no_reveal", "no operator revealed its result in time")
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
            if not await self._move(db, run, event):
                return
            for row, core in zip(rows, cores, strict=True):
                clock = clocks[row["node_id"]]
                signed = self._countersign(run, attempt, core, outcome, clock, now)
                await db.execute(
                    "UPDATE receipt SET countersign = $2 WHERE receipt_id = $1",
                    row["receipt_id"],
                    _json(signed.to_json()),
                )
                await db.execute(
                    """INSERT INTO result (job_id, tag, position, node_id, seat, attempt, receipt_id, outcome, clock, created_at)
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, to_timestamp($10::double precision / 1000))""",
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
            await db.execute(_WITHHELD, run["job_id"], run["attempt"])
            if run["position"] != "before":
                await self._tell_end(db, run, rows, outcome)
        self._events.tell(run["job_id"])

    async def _tell_end(self, db: Any, run: Record, rows: list[Record], outcome: Outcome) -> None:
        if run["blind"]:
            text = {"text": bytes(rows[0]["answer"]).decode("utf-8"), "index": 0, "attempt": run["attempt"]}
            await self._events.add(db, run["job_id"], "text", text)
        status = "disputed" if outcome == "disputed" else "verified"
        done = {"status": status, "outcome": outcome, "attempt": run["attempt"]}
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

    # --- sending

    def _may_ask(self, run: Record, node_id: str, method: str) -> bool:
        under_way = (run["run_id"], run["attempt"], node_id, method) in self._sending
        return node_id in self._hub.connected() and not under_way

    def _send(self, run_id: int, attempt: int, node_id: str, method: str, body: dict[str, Any]) -> None:
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
            log.warning(
                "operator.refused", node=node_id, method=method, code=error.code, message=error.message
            )
            if method == "dispatch_job" and not error.code.startswith(_RETRIED):
                await self._seat_failed(run_id, attempt, node_id, error.code)
                self.wake(run_id)
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


def _eligible(snapshot: SnapshotInForce, job_type: JobType, model_id: bytes, epoch: int) -> frozenset[str]:
    return frozenset(
        entry.node_id
        for entry in snapshot.entries
        if draw.eligible(entry, job_type=job_type, model_id=model_id, epoch=epoch)
    )


def _pause(run: Record, now: int) -> float:
    """Seconds until the next look: the deadline, or the time after which a silent operator is asked again."""
    return min(POLL_S, float(run["deadline"] - now) / 1000)


def _json(value: object) -> str:
    return canonical_json(value).decode()
