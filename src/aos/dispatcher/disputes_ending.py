"""How disputes end (docs/spec/13-dispute.md, "Resolution"): deadlines that pass, and jobs whose result is found.

A task looks at the rows each second and when something changed. It keeps nothing: a dispatcher that was killed goes on from
the rows, and a verdict by the clock (``defaulted``) is cured by a late move in any case.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import structlog
from asyncpg import Record

from aos.adapters.causal_clock import CausalClock
from aos.adapters.postgres import Pool, unavailable
from aos.core.dispute.case import Arithmetic
from aos.core.dispute.court import ClaimStanding, Resolution, ResolvedClaim
from aos.core.dispute.resolution import resolve
from aos.core.encoding import b64u_decode
from aos.core.statements import ReceiptCore, read_signed, sign
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.disputes import Disputes
from aos.dispatcher.disputes_book import load
from aos.dispatcher.events import Events
from aos.dispatcher.moves import Moves, stored_json
from aos.dispatcher.refusals import place
from aos.errors import Unavailable

log = structlog.get_logger("aos.dispatcher")

LOOK_S = 1.0


class Ending:
    """Ends what is over: games by the clock, jobs by their games."""

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        clock: CausalClock,
        events: Events,
        moves: Moves,
        *,
        arithmetic: Arithmetic,
        now_ms: Callable[[], int],
    ) -> None:
        self._pool = pool
        self._config = config
        self._clock = clock
        self._events = events
        self._moves = moves
        self._arithmetic = arithmetic
        self._now_ms = now_ms
        self._signal = asyncio.Event()

    def wake(self) -> None:
        """Something changed."""
        self._signal.set()

    async def run(self, court: Disputes) -> None:
        """Look until cancelled."""
        while True:
            self._signal.clear()
            try:
                await self.look(court)
            except Unavailable as error:
                log.warning("disputes.wait", code=error.code)
            except Exception as error:
                # A defect in one dispute must not stop the clock of the others for good.
                log.error("disputes.defect", **place(error))
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._signal.wait()
            except TimeoutError:
                continue

    async def look(self, court: Disputes) -> None:
        """One look at every game and run that may be over. Raises Unavailable."""
        now = self._now_ms()
        async with unavailable():
            late = await self._pool.fetch(
                """SELECT game FROM dispute_game WHERE NOT settled
                   AND ((state = 'open' AND deadline < $1) OR closes_at <= $1)""",
                now,
            )
            runs = await self._pool.fetch("SELECT run_id FROM dispute_run WHERE NOT ended")
        for each in late:
            async with unavailable(), self._pool.acquire() as db, db.transaction():
                row = await db.fetchrow("SELECT * FROM dispute_game WHERE game = $1 FOR UPDATE", each["game"])
                await court.settle(db, row, await load(db, row))
        for each in runs:
            await self._end(each["run_id"], now)

    async def _end(self, run_id: int, now: int) -> None:
        async with unavailable():
            run = await self._pool.fetchrow(
                """SELECT r.*, j.job_ref, j.blind, u.began_at, u.closes_at FROM run r JOIN job j USING (job_id)
                   JOIN dispute_run u USING (run_id) WHERE r.run_id = $1""",
                run_id,
            )
        found = await self._resolve(run, now)
        if found is None and now < run["closes_at"]:
            return
        signed = None
        if found is not None:
            clock = (await self._clock.tick()).to_json()
            signed = sign(
                self._config.keys.signer,
                Resolution(
                    network=self._config.network,
                    dispatcher=self._config.keys.address,
                    job_ref=run["job_ref"],
                    attempt=run["attempt"],
                    state_root=found[0],
                    claims=found[1],
                    resolved_at=now,
                    clock=clock,
                ),
            )
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            done = await db.fetchval(
                """UPDATE dispute_run SET ended = true, resolution = $2 WHERE run_id = $1 AND NOT ended RETURNING true""",
                run_id,
                None if signed is None else stored_json(signed.to_json()),
            )
            if not done:
                return
            data: dict[str, Any] = {"status": "disputed", "outcome": "disputed", "attempt": run["attempt"]}
            if signed is not None:
                if not await self._moves.move(db, run, "games_resolved"):
                    return
                data = {"status": "verified", "outcome": "resolved", "attempt": run["attempt"]}
                await self._outcomes(db, run, signed.statement)
                if run["blind"] and run["position"] != "before":
                    await self._tell_text(db, run)
                elif not run["blind"]:
                    data["superseded"] = await self._is_superseded(db, run)
            if run["position"] != "before":
                await self._events.add(db, run["job_id"], "done", data)
        log.info("dispute.ended", run=run_id, resolved=signed is not None)
        self._events.tell(run["job_id"])

    async def _is_superseded(self, db: Any, run: Record) -> bool:
        """Whether another text stands than the one that the executor wrote, which was passed on."""
        rows = await db.fetch(
            """SELECT c.core, r.outcome FROM result r JOIN receipt c USING (receipt_id)
               WHERE r.job_id = $1 AND r.attempt = $2 ORDER BY r.seat""",
            run["job_id"],
            run["attempt"],
        )
        cores = [
            (read_signed(ReceiptCore, json.loads(row["core"])).statement, row["outcome"]) for row in rows
        ]
        standing = {core.response_hash for core, outcome in cores if outcome == "resolved"}
        return any(core.role == "executor" and core.response_hash not in standing for core, _ in cores)

    async def _tell_text(self, db: Any, run: Record) -> None:
        """Nothing of a blind run was told before: the text of the first seat that stands."""
        answer = await db.fetchval(
            """SELECT c.answer FROM result r JOIN receipt c USING (receipt_id)
               WHERE r.job_id = $1 AND r.attempt = $2 AND r.outcome = 'resolved' ORDER BY r.seat LIMIT 1""",
            run["job_id"],
            run["attempt"],
        )
        text = {"text": bytes(answer).decode("utf-8"), "index": 0, "attempt": run["attempt"]}
        await self._events.add(db, run["job_id"], "text", text)

    async def _outcomes(self, db: Any, run: Record, resolution: Resolution) -> None:
        words = {"stands": "resolved", "withheld": "withheld", "convicted": "convicted"}
        for claim in resolution.claims:
            await db.execute(
                "UPDATE result SET outcome = $4 WHERE job_id = $1 AND attempt = $2 AND node_id = $3",
                run["job_id"],
                run["attempt"],
                claim.operator,
                words[claim.standing],
            )

    async def _resolve(self, run: Record, now: int) -> tuple[bytes, tuple[ResolvedClaim, ...]] | None:
        """The root that is left with how every claim stands; None while there is none."""
        async with unavailable(), self._pool.acquire() as db:
            rows = await db.fetch(
                """SELECT c.receipt_id, c.core, d.served_at, d.wanted_at FROM result r
                   JOIN receipt c USING (receipt_id) JOIN dispute_claim d USING (receipt_id)
                   WHERE r.job_id = $1 AND r.attempt = $2 ORDER BY r.seat""",
                run["job_id"],
                run["attempt"],
            )
            games = await db.fetch(
                "SELECT * FROM dispute_game WHERE receipt_id = ANY($1)", [row["receipt_id"] for row in rows]
            )
            held = [await load(db, game) for game in games]
            convicted = await db.fetch(
                "SELECT node_id, digest FROM conviction WHERE job_ref = $1", run["job_ref"]
            )
        cores = {
            row["receipt_id"]: read_signed(ReceiptCore, json.loads(row["core"])).statement for row in rows
        }
        claims = {b64u_decode(name, length=32): core.state_root for name, core in cores.items()}
        guilty = {row["node_id"] for row in convicted}
        contradicted = {
            b64u_decode(name, length=32) for name, core in cores.items() if core.operator in guilty
        }
        played = [await asyncio.to_thread(each.game, self._arithmetic) for each in held]
        found = resolve(claims, played, now, contradicted=contradicted)
        standing: dict[bytes, ClaimStanding] = dict(found.standing)
        patience = self._config.disputes.grace_ms + self._config.disputes.budget_ms
        for row in rows:
            claim = b64u_decode(row["receipt_id"], length=32)
            if row["served_at"] is None and standing[claim] != "convicted":
                # Who serves no leaves is as one that is silent in a game.
                standing[claim] = "withheld" if now > row["wanted_at"] + patience else "open"
        roots = {claims[claim] for claim, state in standing.items() if state == "stands"}
        if len(roots) != 1 or "open" in standing.values():
            return None
        (root,) = roots
        resolved = tuple(
            ResolvedClaim(
                claim=b64u_decode(name, length=32),
                operator=core.operator,
                state_root=core.state_root,
                standing=standing[b64u_decode(name, length=32)],
                evidence=tuple(row["digest"] for row in convicted if row["node_id"] == core.operator),
            )
            for name, core in cores.items()
        )
        return root, resolved
