"""Drawing the operators of an attempt (docs/spec/04-sortition.md): the signed call, the claims, the signed record."""

import json
import secrets

from asyncpg import Record

from aos.adapters.causal_clock import CausalClock
from aos.adapters.postgres import Pool, unavailable
from aos.core import draw
from aos.core.codec import encode
from aos.core.statements import DrawCall, JobType, Signed, VrfClaim, read_signed, sign
from aos.dispatcher.asking import Asking
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.devices import seatable
from aos.dispatcher.events import Events
from aos.dispatcher.moves import Moves, pause_until_deadline, stored_json
from aos.dispatcher.registry import Registry, SnapshotInForce, now_ms
from aos.errors import RuleViolation

PARKED_S = 60.0
"""What a step answers where no operator that could serve the run is connected."""
GATHER_MS = 3_000


class Drawing:
    """The steps of a run in the states ``created`` and ``drawing``; each answers in how many seconds to look again."""

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        registry: Registry,
        clock: CausalClock,
        events: Events,
        asking: Asking,
        moves: Moves,
    ) -> None:
        self._pool = pool
        self._config = config
        self._registry = registry
        self._clock = clock
        self._events = events
        self._asking = asking
        self._moves = moves
        self._started_ms = now_ms()

    async def call(self, run: Record, now: int) -> float:
        """Sign and store the call of the next attempt."""
        epoch = self._registry.epoch()
        snapshot = await self._registry.in_force(epoch)
        able = _eligible(snapshot, run["job_type"], run["model_id"], epoch)
        present = able & self._asking.connected()
        if run["job_type"] == "tee":  # who has no accepted enclave would only decline
            present &= await seatable(
                self._pool,
                model_id=run["model_id"],
                cap=self._config.max_weight_per_device,
                at_ms=now_ms(),
            )
        if not present:
            return PARKED_S
        gathered = max(run["not_before"], int(run["created_at"].timestamp() * 1000)) + GATHER_MS
        if len(present) < run["min_operators"] and now < max(gathered, self._started_ms + GATHER_MS):
            return 0.25
        clock = (await self._clock.tick()).to_json()
        beacon, beacon_source = await self._registry.beacon(epoch)
        salt = secrets.token_bytes(32)
        opened = draw.OpenedTag(salt=salt, tag=run["tag"], position=run["position"])
        deadline = now_ms() + self._config.deadlines.draw_ms
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            # First the run, then the job, as everywhere: the other way round would meet a cancel half-way.
            await db.execute("SELECT 1 FROM run WHERE run_id = $1 FOR UPDATE", run["run_id"])
            await db.execute("SELECT 1 FROM job WHERE job_id = $1 FOR NO KEY UPDATE", run["job_id"])
            number = await db.fetchval(
                "SELECT coalesce(max(attempt), 0) + 1 FROM attempt WHERE job_id = $1", run["job_id"]
            )
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
                beacon_source=beacon_source,
                draw_seed=seed,
                draw_proof=proof,
                job_type=run["job_type"],
                model_id=run["model_id"],
                tag_commitment=opened.commitment(),
                deadline=deadline,
                clock=clock,
            )
            if await self._moves.move(db, run, "draw_called", attempt=number, deadline=deadline):
                await db.execute(
                    """INSERT INTO attempt (job_id, attempt, run_id, snapshot_epoch, tag_salt, draw_call)
                       VALUES ($1, $2, $3, $4, $5, $6)""",
                    run["job_id"],
                    number,
                    run["run_id"],
                    snapshot.signed.statement.epoch,
                    salt,
                    stored_json(sign(self._config.keys.signer, call).to_json()),
                )
        self._events.tell(run["job_id"])
        return 0.0

    async def collect(self, run: Record, attempt: Record, now: int) -> float:
        """Ask for claims; with all of them, or at the deadline, sign the record and seat who was drawn."""
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
        asked = (wanted - held) & self._asking.connected()
        # Who is not connected was not asked; it is waited for only while too few have claimed a seat.
        enough = not asked and sum(row["beta"] != b"" for row in rows) >= run["min_operators"]
        if now < run["deadline"] and not wanted <= held and not enough:
            for node_id in asked:
                self._asking.send(
                    run["run_id"], run["attempt"], node_id, "draw_call", {"draw_call": call.to_json()}
                )
            return pause_until_deadline(run, now)
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
            await self._moves.fail_attempt(run, error.code, error.message)
            return
        signed = sign(self._config.keys.signer, record)
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            # A claim that came in after the record was built is either in it or refused: never stored beside it.
            await db.execute("SELECT 1 FROM run WHERE run_id = $1 FOR UPDATE", run["run_id"])
            stored = await db.fetchval(
                "SELECT count(*) FROM claim WHERE job_id = $1 AND attempt = $2", run["job_id"], run["attempt"]
            )
            if stored != len(claims) or not await self._moves.move(db, run, "record_signed"):
                return
            await db.execute(
                "UPDATE attempt SET draw_record = $3, entries = $4 WHERE job_id = $1 AND attempt = $2",
                run["job_id"],
                run["attempt"],
                stored_json(signed.to_json()),
                stored_json([encode(entry) for entry in entries]),
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


def _eligible(snapshot: SnapshotInForce, job_type: JobType, model_id: bytes, epoch: int) -> frozenset[str]:
    return frozenset(
        entry.node_id
        for entry in snapshot.entries
        if draw.eligible(entry, job_type=job_type, model_id=model_id, epoch=epoch)
    )
