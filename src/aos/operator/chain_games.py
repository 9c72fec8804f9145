"""An operator in games on a chain (docs/spec/16-chain-disputes.md): it sees every challenge of its claims at the court, and answers
each move with its own run, on its own.

The game is read from the newest block, because clocks run there: what a reorganisation undoes is answered again, and no move can
harm its maker in another history (a proof names what it proves). What is over counts once it is final. Moves are made by the
worker that has the model and go through the account's journal: a process that is killed goes on with the same transactions.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog

from aos.adapters.chain.court import (
    COURT,
    CourtContract,
    CourtFacts,
    Opened,
    move_data,
    register_model_data,
)
from aos.adapters.chain.node import Block
from aos.adapters.postgres import Record
from aos.core.codec import decode, encode
from aos.core.dispute.fine.chain_game import Answer, AnswerTokens, ChainGame, Prove, Stage, read_claimant_move
from aos.core.encoding import b64u_encode, canonical_json, parse_json_strict
from aos.core.manifest import Manifest
from aos.errors import AOSError, RuleViolation, VerificationError
from aos.operator.chain import OperatorAccount
from aos.operator.disputes import own_run, run_of
from aos.operator.identity import Identity
from aos.operator.store import Store
from aos.operator.worker_client import WorkerClient

log = structlog.get_logger("aos.operator")

LOOK_EVERY_S = 12.0
PLAYING_EVERY_S = 2.0
AGAIN_S = 15.0
BLOCKS_AT_ONCE = 2_000
CLOCKS_DIFFER_S = 3_600
MAX_MANIFEST_BYTES = 1 << 16
WITHDRAW = "withdraw from the court"


class CourtGames:
    """One operator's games at the court of its ``account``. ``worker`` gives the worker that has a model (32-byte id), None
    while there is none."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        account: OperatorAccount,
        court: CourtContract,
        *,
        worker: Callable[[bytes], WorkerClient | None],
    ) -> None:
        self._store = store
        self._identity = identity
        self._account = account
        self._worker = worker
        self._court = court
        self._place = (account.node.chain_id, court.address)
        self._again: dict[bytes, float] = {}
        self._unknown: set[bytes] = set()
        self._moved = False
        self.problem = ""

    async def run(self) -> None:
        """Look at every block, and more often while a game runs, until cancelled."""
        while True:
            pause_s = LOOK_EVERY_S
            try:
                if await self._look():
                    pause_s = 0.0 if self._moved else PLAYING_EVERY_S
                self.problem = ""
            except AOSError as error:
                if error.code not in self.problem:
                    log.warning("court.waits", code=error.code, message=error.message)
                self.problem = f"{error.message} [{error.code}]"
                pause_s = PLAYING_EVERY_S
            await asyncio.sleep(pause_s)

    async def describe(self) -> dict[str, Any]:
        """What a person sees of it: games that run, how the others ended, and what is in the way."""
        async with self._store.transaction() as db:
            ends = await db.fetch(
                "SELECT over, count(*) AS count FROM court_game WHERE (chain_id, court) = ($1, $2) GROUP BY over",
                *self._place,
            )
            problems = await db.fetch(
                "SELECT game, problem FROM court_game WHERE (chain_id, court) = ($1, $2) AND over = '' AND problem <> ''"
                " LIMIT 20",
                *self._place,
            )
        games = {row["over"] or "running": row["count"] for row in ends}
        found = [f"court: {self.problem}"] if self.problem else []
        found += [f"game {bytes(row['game']).hex()} at the court: {row['problem']}" for row in problems]
        found += [
            f"game {game.hex()} at the court is about a claim that this database does not hold: nobody answers it"
            for game in sorted(self._unknown)[:20]
        ]
        return {"address": self._court.address, "games": games, "problems": found}

    async def _look(self) -> bool:
        """Do what waits; whether a game runs.

        Who made a move looks again at once: the game that was opened first always comes first. So of more challenges than can be
        answered in time as many as possible are refuted, each from a trace that was made once; a round of all of them would
        lose all.
        """
        node = self._account.node
        await node.check_chain()
        final, trouble = await self._final()
        head = await node.block("latest")
        facts = await self._account.court_facts()
        assert facts is not None  # noqa: S101  there is a court
        try:
            await self._read(head, final)
        except AOSError as error:  # what is known of already goes on
            trouble = trouble or error
        async with self._store.transaction() as db:
            rows = await db.fetch(
                "SELECT g.*, c.job_ref, c.attempt FROM court_game g JOIN chain_claim c USING (chain_id, court, claim)"
                " WHERE (chain_id, court) = ($1, $2) AND g.over = '' ORDER BY g.block, g.game",
                *self._place,
            )
        self._moved = False
        for row in rows:
            if time.monotonic() >= self._again.get(bytes(row["game"]), 0.0):
                await self._try(row, self._play(row, head, final, facts))
            if self._moved:
                break
        if final is not None:
            await self._collect(final)
        if trouble is not None:
            raise trouble
        return bool(rows)

    async def _final(self) -> tuple[Block | None, AOSError | None]:
        """The newest final block. Where there is no news of one, games go on all the same: their clocks do."""
        try:
            return await self._account.final(), None
        except AOSError as error:
            return None, error

    # --- which games there are

    async def _read(self, head: Block, final: Block | None) -> None:
        """Note the games that were opened since the last look. What is final is read once, what is not each time."""
        async with self._store.transaction() as db:
            at = await db.fetchval(
                "SELECT block FROM court_read WHERE (chain_id, court) = ($1, $2)", *self._place
            )
        if at is None:
            at = await self._begin(final or head) - 1
        while final is not None and at < final.number:
            last = min(at + BLOCKS_AT_ONCE, final.number)
            await self._note(await self._court.opened(first=at + 1, last=last))
            block = final if last == final.number else await self._account.node.block(last)
            async with self._store.transaction() as db:
                await db.execute(
                    "INSERT INTO court_read (chain_id, court, block, time_s) VALUES ($1, $2, $3, $4)"
                    " ON CONFLICT (chain_id, court) DO UPDATE SET block = excluded.block, time_s = excluded.time_s",
                    *self._place,
                    block.number,
                    block.time,
                )
            at = last
        if head.number > at:
            await self._note(await self._court.opened(first=at + 1, last=head.number))

    async def _begin(self, newest: Block) -> int:
        """The first block in which a game about a claim of this operator may have been opened."""
        async with self._store.transaction() as db:
            signed_at = await db.fetchval(
                "SELECT min(signed_at) FROM chain_claim WHERE (chain_id, court) = ($1, $2)", *self._place
            )
        low, high = 0, newest.number
        while signed_at is not None and low < high:
            middle = (low + high) // 2
            if (await self._account.node.block(middle)).time >= signed_at - CLOCKS_DIFFER_S:
                high = middle
            else:
                low = middle + 1
        return high

    async def _note(self, opened: Iterable[Opened]) -> None:
        for each in opened:
            if each.claimant != self._identity.node_id:
                continue
            async with self._store.transaction() as db:
                known = await db.fetchval(
                    "INSERT INTO court_game (chain_id, court, game, claim, block)"
                    " SELECT chain_id, court, $3, claim, $5 FROM chain_claim WHERE (chain_id, court, claim) = ($1, $2, $4)"
                    " ON CONFLICT (chain_id, court, game) DO UPDATE SET block = excluded.block,"
                    " over = CASE court_game.over WHEN 'gone' THEN '' ELSE court_game.over END"
                    " RETURNING xmax = 0",
                    *self._place,
                    each.game,
                    each.claim,
                    each.block,
                )
            name = each.game.hex()
            if known:
                log.warning(
                    "court.challenged", game=name, position=each.position, unit=each.unit, block=each.block
                )
            elif known is None and each.game not in self._unknown:
                self._unknown.add(each.game)
                log.error("court.unknown_claim", game=name, claim=each.claim.hex())

    # --- one game

    async def _try(self, row: Record, work: Coroutine[Any, Any, str]) -> None:
        """A game that is in trouble keeps no other one waiting, and is tried again a little later."""
        game = bytes(row["game"])
        try:
            problem = await work
        except AOSError as error:
            problem = f"{error.message} [{error.code}]"
        except Exception as error:  # a defect that one challenge finds must not lose the other games
            log.exception("court.defect", game=game.hex())
            problem = f"a defect: {error!r} [court.defect]"
        if problem:
            self._again[game] = time.monotonic() + AGAIN_S
        if problem != row["problem"]:
            if problem:
                log.error("court.no_move", game=game.hex(), problem=problem)
            await self._set(game, problem=problem)

    async def _set(self, game: bytes, **values: object) -> None:
        changes = ", ".join(f"{name} = ${number}" for number, name in enumerate(values, 4))
        async with self._store.transaction() as db:
            await db.execute(
                f"UPDATE court_game SET {changes} WHERE (chain_id, court, game) = ($1, $2, $3)",  # noqa: S608  our own names
                *self._place,
                game,
                *values.values(),
            )

    async def _play(self, row: Record, head: Block, final: Block | None, facts: CourtFacts) -> str:
        """Do what the game waits for; what is in the way, empty where nothing is."""
        name = bytes(row["game"])
        game = await self._court.game(name, head)
        if game is None:
            if final is not None and row["block"] <= min(final.number, head.number):
                # Its block is no longer on the chain.
                await self._set(name, over="gone")
            return ""
        if (game.claimant, game.claim) != (self._identity.node_id, row["claim"]):
            raise VerificationError("chain.answer", "the node shows a game that is not about this claim")
        if game.stage == Stage.OVER:
            return await self._ended(name, final)
        if game.convicted:  # another game did that: this one only holds the stake
            return await self._want(f"settle game {name.hex()}", COURT.call("settle", name))
        if game.mover == "challenger":
            if head.time <= game.deadline:
                return ""
            return await self._want(f"time out game {name.hex()}", COURT.call("timeout", name))
        if head.time > game.deadline:
            raise RuleViolation("court.late", "the time to move in this game is over")
        return await self._move(row, game, head, facts)

    async def _ended(self, name: bytes, final: Block | None) -> str:
        game = None if final is None else await self._court.game(name, final)
        if game is not None and final is not None and game.stage == Stage.OVER:
            outcome = await self._court.outcome(game, final)
            await self._set(name, over=outcome.kind)
            say = log.error if outcome.kind == "convicted" else log.warning
            say("court.over", game=name.hex(), outcome=outcome.kind, code=outcome.code)
        return ""

    async def _move(self, row: Record, game: ChainGame, head: Block, facts: CourtFacts) -> str:
        asked = canonical_json(encode(game))
        digest = hashlib.sha256(asked).digest()
        if row["asked"] == digest:
            entry = await self._account.journal.entry(row["purpose"])
            if entry is not None and entry.state != "failed":
                return ""  # on its way, or in a block that this node has not seen yet
        held, worker = await own_run(
            self._store,
            self._worker,
            {"job_ref": b64u_encode(row["job_ref"]), "attempt": row["attempt"]},
        )
        run = run_of(held)
        made = await worker.trace(
            {"task": "court", "run": run, "party": "claimant", "transcript": asked.decode()}
        )
        move = read_claimant_move(made.get("kind"), made.get("move"))
        if isinstance(move, Answer | AnswerTokens) and not await self._court.model_known(move.model_id, head):
            text = str(made.get("manifest")).encode()
            manifest = decode(Manifest, parse_json_strict(text, max_bytes=MAX_MANIFEST_BYTES))
            name = f"register model {move.model_id.hex()}"
            return await self._want(name, register_model_data(manifest), to=facts.models)
        step = await self._court.step_of(move, head) if isinstance(move, Prove) else 0
        data = move_data(game.id, move, step=step)
        # Made anew, it is the same move and so the same purpose; another one is another.
        purpose = f"{made['kind']} in game {game.id.hex()} ({hashlib.sha256(data).hexdigest()[:16]})"
        problem = await self._want(purpose, data)
        await self._set(game.id, asked=digest, purpose=purpose)
        self._moved = True
        return problem

    async def _want(self, purpose: str, data: bytes, *, to: str | None = None) -> str:
        """Have it sent, once; again where it could not be: then, why."""
        known = await self._account.journal.entry(purpose)
        await self._account.journal.want(purpose, to=to or self._court.address, data=data)
        if known is None:
            log.warning("court.moved", purpose=purpose)
        return known.error if known is not None and known.state == "failed" else ""

    async def _collect(self, final: Block) -> None:
        """Take the bonds that are owed to this operator."""
        if not await self._court.owed(self._identity.node_id, final):
            return
        before = await self._account.journal.entries(WITHDRAW)
        if any(entry.state in ("wanted", "sent") for entry in before):
            return
        number = sum(entry.state == "done" for entry in before)  # one that failed is wanted again
        await self._want(f"{WITHDRAW} ({number})", COURT.call("withdraw", self._identity.node_id))
