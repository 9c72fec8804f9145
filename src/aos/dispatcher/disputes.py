"""The dispatcher's court (docs/spec/13-dispute.md, "In the network"): claims' data, games, moves, verdicts, convictions.

The referee is the core's game and nothing else; what it decides follows from the stored moves, so that anybody who reads the
transcript decides the same. Each step is one transaction under the game's lock, and doing it twice changes nothing. Deadlines
are by the clock that is given. How a job ends is ``aos.dispatcher.disputes_ending``'s matter.
"""

import asyncio
import json
from typing import Any

import structlog
from asyncpg import Record

from aos.adapters.postgres import unavailable
from aos.core.dispute.case import check_case
from aos.core.dispute.contradiction import contradiction
from aos.core.dispute.court import transcript_digest
from aos.core.dispute.game import Game, apply, start
from aos.core.dispute.moves import Answer, Move, Open, game_id, read_move, turn_of
from aos.core.dispute.resolution import bond_events
from aos.core.dispute.rules import MAX_ESCALATION, required_bond
from aos.core.dispute.transcript import judge
from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.statements import ReceiptCore, Signed, check_signed, read_signed
from aos.dispatcher.disputes_book import (
    GAMES,
    Held,
    case_of,
    load,
    public,
    rules_of,
    rules_text,
)
from aos.dispatcher.disputes_claims import Claims, NotEntitled, Reader
from aos.dispatcher.moves import stored_json
from aos.dispatcher.refusals import NotFound
from aos.errors import InvalidMessage, RuleViolation, VerificationError

log = structlog.get_logger("aos.dispatcher")


class Disputes(Claims):
    """Games and verdicts about the claims of one dispatcher."""

    # --- games

    async def open(self, value: object, reader: Reader) -> dict[str, Any]:
        """Take a challenge; the same one again gives the same game. Its signer must be entitled, or send a token that is.

        Raises NotFound; NotEntitled; RuleViolation ``dispute.not_served``, ``dispute.window_closed``; and as
        ``aos.core.dispute.game.start``.
        """
        signed = read_move(value, where="move")
        opening = signed.statement
        if not isinstance(opening, Open):
            raise InvalidMessage("dispute.move_type", "a game begins with a challenge", field="move")
        check_signed(signed, address=opening.challenger)
        game = game_id(opening)
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            row = await self._claim(db, opening.claim)
            await self._entitled(db, row, Reader(address=opening.challenger, token=reader.token))
            await db.execute(
                "SELECT 1 FROM dispute_claim WHERE receipt_id = $1 FOR UPDATE", row["receipt_id"]
            )
            held = await db.fetchrow("SELECT * FROM dispute_game WHERE game = $1 FOR UPDATE", game)
            if held is None:
                await self._begin(db, row, signed, opening)
            else:
                await self._add(db, held, signed)
        self._after(opening.claimant, opening.challenger)
        return await self.game(game)

    async def _begin(self, db: Any, row: Record, signed: Signed[Move], opening: Open) -> None:
        now = self._now_ms()
        if row["served_at"] is None:
            raise RuleViolation("dispute.not_served", "the claimant has not served its leaves yet; ask again")
        if now >= row["closes_at"]:
            raise RuleViolation("dispute.window_closed", "the time to challenge this claim is over")
        open_games = await db.fetchval(
            "SELECT count(*) FROM dispute_game WHERE receipt_id = $1 AND state = 'open'", row["receipt_id"]
        )
        rules, case = rules_of(self._config), case_of(row, opening.kind)
        check_case(case)
        game = start(rules, case, signed, at=now, bond=required_bond(rules, open_games))
        await db.execute(
            """INSERT INTO dispute_game (game, receipt_id, claimant, challenger, rules, opened_at, closes_at, state)
               VALUES ($1, $2, $3, $4, $5, $6, $7, 'open')""",
            game.id,
            row["receipt_id"],
            opening.claimant,
            opening.challenger,
            rules_text(rules),
            now,
            game.closes,
        )
        await self._store_move(db, game.id, 0, opening.challenger, now, signed)
        own = await db.fetchval(
            "SELECT core FROM receipt WHERE job_id = $1 AND attempt = $2 AND node_id = $3",
            row["job_id"],
            row["attempt"],
            opening.challenger,
        )
        if own is not None:
            await self._contradicts(db, game.id, signed, read_signed(ReceiptCore, json.loads(own)), now)
        held = await db.fetchrow("SELECT * FROM dispute_game WHERE game = $1", game.id)
        self._told("opened")
        log.info("dispute.opened", game=b64u_encode(game.id), claimant=opening.claimant, kind=opening.kind)
        await self.settle(db, held, await load(db, held))

    async def move(self, game: bytes, value: object) -> dict[str, Any]:
        """Take a move. It says itself who made it: no other credential is needed. A move sent again changes nothing.

        Raises NotFound, and as ``aos.core.dispute.game.apply``.
        """
        signed = read_move(value, where="move")
        if game_id(signed.statement) != game:
            raise VerificationError("dispute.wrong_game", "the move is of another game", field="game")
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            row = await db.fetchrow("SELECT * FROM dispute_game WHERE game = $1 FOR UPDATE", game)
            if row is None:
                raise NotFound("dispute.unknown", "no such game", field="game")
            await self._add(db, row, signed)
        self._after(row["claimant"], row["challenger"])
        return await self.game(game)

    async def _add(self, db: Any, row: Record, signed: Signed[Move]) -> None:
        held = await load(db, row)
        now = max(self._now_ms(), held.moves[-1][1])
        before = await asyncio.to_thread(held.game, self._arithmetic)
        after = await asyncio.to_thread(apply, before, self._arithmetic, signed, at=now)
        if after == before:
            return
        author = signed_by(before, signed.statement)
        if after.turn > before.turn:
            await self._store_move(db, after.id, turn_of(signed.statement), author, now, signed)
            if isinstance(signed.statement, Answer):
                await self._compare_answers(db, row, signed, now)
        else:
            await self._store_evidence(db, after.id, signed, now)
        await self.settle(db, row, await load(db, row))

    async def _compare_answers(self, db: Any, row: Record, signed: Signed[Move], now: int) -> None:
        others = await db.fetch(
            """SELECT m.move FROM dispute_move m JOIN dispute_game g USING (game)
               WHERE g.receipt_id = $1 AND g.game <> $2 AND m.author = $3 AND m.turn = 1""",
            row["receipt_id"],
            row["game"],
            row["claimant"],
        )
        for other in others:
            await self._contradicts(db, row["game"], signed, read_move(json.loads(other["move"])), now)

    async def _contradicts(
        self, db: Any, game: bytes, mine: Signed[Any], other: Signed[Any], now: int
    ) -> None:
        """Keep ``other`` beside the game where it contradicts ``mine``, by the same signer."""
        statement = mine.statement
        address = statement.challenger if isinstance(statement, Open) else statement.claimant
        try:
            contradiction(mine, other, address=address)
        except VerificationError:
            return
        await self._store_evidence(db, game, other, now)

    async def _store_move(
        self, db: Any, game: bytes, turn: int, author: str, at: int, signed: Signed[Move]
    ) -> None:
        await db.execute(
            "INSERT INTO dispute_move (game, turn, author, at, hash, move) VALUES ($1, $2, $3, $4, $5, $6)",
            game,
            turn,
            author,
            at,
            signed.hash,
            stored_json(signed.to_json()),
        )

    async def _store_evidence(self, db: Any, game: bytes, signed: Signed[Any], at: int) -> None:
        await db.execute(
            """INSERT INTO dispute_evidence (game, at, hash, statement) VALUES ($1, $2, $3, $4)
               ON CONFLICT DO NOTHING""",
            game,
            at,
            signed.hash,
            stored_json(signed.to_json()),
        )

    # --- verdicts

    async def settle(self, db: Any, row: Record, held: Held) -> None:
        """Write down what the moves, and the time, have decided: verdict, ledger, convictions. Part of the caller's
        transaction, which holds the game's lock."""
        now = self._now_ms()
        game = await asyncio.to_thread(held.game, self._arithmetic)
        verdict = game.verdict(now)
        events = bond_events(game, now)
        await db.execute(
            """UPDATE dispute_game SET mover = $2, deadline = $3, state = $4, against = $5, code = $6, settled = $7
               WHERE game = $1""",
            game.id,
            "" if game.mover is None else game.address(game.mover),
            game.deadline,
            verdict.state,
            verdict.against,
            verdict.code,
            len(events) > 1,
        )
        await db.executemany(
            "INSERT INTO bond_event (game, event, party, units, at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            [(event.game, event.event, event.party, event.units, now) for event in events],
        )
        if verdict.state != row["state"]:
            log.info(
                "dispute.verdict",
                game=b64u_encode(game.id),
                state=verdict.state,
                against=verdict.against,
                code=verdict.code,
            )
        if verdict.state == "proven" or held.evidence:
            await self._convict(db, held, game, now)

    async def _convict(self, db: Any, held: Held, game: Game, now: int) -> None:
        """Who is convicted by this file, by the judgement that `aos referee` makes of it."""
        file = held.file()
        found = await asyncio.to_thread(judge, file, self._arithmetic)
        guilty = {each.address: each.code for each in found.contradictions}
        if found.state == "CONVICTED" and found.verdict is not None and game.open.claimant not in guilty:
            guilty[game.open.claimant] = found.verdict.code
        for fault in game.faults:
            if fault.party == "challenger" and fault.code == "dispute.contradiction":
                guilty.setdefault(game.open.challenger, fault.code)
        for address, code in guilty.items():
            job_ref = game.open.job_ref
            new = await db.fetchval(
                """INSERT INTO conviction (node_id, game, job_ref, code, digest, transcript, at)
                   VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING true""",
                address,
                game.id,
                job_ref,
                code,
                transcript_digest(file),
                file,
                now,
            )
            if new:
                self._told("convicted")
                log.warning("operator.convicted", node=address, code=code, game=b64u_encode(game.id))
            await db.execute(
                """UPDATE result r SET outcome = 'convicted' FROM job j
                   WHERE j.job_id = r.job_id AND j.job_ref = $1 AND r.attempt = $2 AND r.node_id = $3""",
                job_ref,
                game.open.attempt,
                address,
            )

    def _after(self, *parties: str) -> None:
        self._hint(parties)
        self._changed()

    # --- what everybody may read

    async def game(self, game: bytes) -> dict[str, Any]:
        """A game's public facts. Raises NotFound."""
        async with unavailable():
            row = await self._pool.fetchrow(GAMES + " WHERE g.game = $1", game)
        if row is None:
            raise NotFound("dispute.unknown", "no such game", field="game")
        return public(row)

    async def games(
        self, *, before: int | None, limit: int, job_ref: bytes | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Games, newest first, and the cursor of the next page."""
        async with unavailable():
            rows = await self._pool.fetch(
                GAMES
                + " WHERE g.seq < $1 AND ($3::bytea IS NULL OR j.job_ref = $3) ORDER BY g.seq DESC LIMIT $2",
                2**63 - 1 if before is None else before,
                limit + 1,
                job_ref,
            )
        page = rows[:limit]
        return [public(row) for row in page], str(page[-1]["seq"]) if len(rows) > limit else None

    async def convictions(self) -> list[dict[str, Any]]:
        """Who is convicted, by which transcript; newest first."""
        async with unavailable():
            rows = await self._pool.fetch(
                "SELECT node_id, game, job_ref, code, digest, at FROM conviction ORDER BY at DESC, game LIMIT 1000"
            )
        return [
            {
                "node_id": row["node_id"],
                "game": b64u_encode(row["game"]),
                "job_ref": b64u_encode(row["job_ref"]),
                "code": row["code"],
                "transcript": b64u_encode(row["digest"]),
                "at": row["at"],
            }
            for row in rows
        ]

    async def transcript(self, game: bytes, reader: Reader) -> bytes:
        """The game's file. Raises NotFound, NotEntitled."""
        async with unavailable():
            row = await self._pool.fetchrow("SELECT * FROM dispute_game WHERE game = $1", game)
            if row is None:
                raise NotFound("dispute.unknown", "no such game", field="game")
            if reader.address not in (row["claimant"], row["challenger"]) or not reader.address:
                claim = await self._claim(self._pool, b64u_decode(row["receipt_id"], length=32))
                await self._entitled(self._pool, claim, reader)
            held = await load(self._pool, row)
        return held.file()

    # --- what waits for a party

    async def waiting(self, reader: Reader) -> dict[str, Any]:
        """What waits for the address that asks: leaves to serve, claims to challenge, games to move in.

        Raises NotEntitled where nobody signed the question.
        """
        address = reader.address
        if not address:
            raise NotEntitled("dispute.not_entitled", "sign the question: it is about its signer")
        now = self._now_ms()
        async with unavailable():
            serve = await self._pool.fetch(
                """SELECT d.receipt_id, c.attempt, j.job_ref FROM dispute_claim d JOIN receipt c USING (receipt_id)
                   JOIN job j USING (job_id) WHERE c.node_id = $1 AND d.served_at IS NULL
                   AND (d.closes_at > $2 OR EXISTS
                        (SELECT FROM chain_claim k WHERE k.receipt_id = d.receipt_id AND 1000 * k.expires > $2))""",
                address,
                now,
            )
            challenge = await self._pool.fetch(
                """SELECT d.receipt_id, c.core, mine.core AS own FROM dispute_run u JOIN attempt a USING (run_id)
                   JOIN receipt mine ON (mine.job_id, mine.attempt) = (a.job_id, a.attempt) AND mine.node_id = $1
                   JOIN receipt c ON (c.job_id, c.attempt) = (a.job_id, a.attempt) AND c.node_id <> $1
                   JOIN dispute_claim d ON d.receipt_id = c.receipt_id
                   WHERE NOT u.ended AND d.served_at IS NOT NULL AND d.closes_at > $2 AND NOT EXISTS (
                       SELECT FROM dispute_game g WHERE g.receipt_id = c.receipt_id AND g.challenger = $1)""",
                address,
                now,
            )
            moves = await self._pool.fetch(
                "SELECT game, receipt_id, claimant FROM dispute_game WHERE mover = $1 AND closes_at > $2 ORDER BY seq",
                address,
                now,
            )
        differing = [
            row
            for row in challenge
            if json.loads(row["core"])["statement"]["state_root"]
            != json.loads(row["own"])["statement"]["state_root"]
        ]
        # A challenge is signed once: its bond must be enough however many games are opened before it comes.
        bond = required_bond(rules_of(self._config), MAX_ESCALATION)
        return {
            "serve": [
                {
                    "claim": row["receipt_id"],
                    "job_ref": b64u_encode(row["job_ref"]),
                    "attempt": row["attempt"],
                }
                for row in serve
            ],
            "challenge": [
                {
                    "claim": row["receipt_id"],
                    "receipt": json.loads(row["core"]),
                    "bond": bond,
                }
                for row in differing
            ],
            "move": [{"game": b64u_encode(row["game"]), "claim": row["receipt_id"]} for row in moves],
        }


def signed_by(game: Game, move: Move) -> str:
    """Whose turn a move's turn is."""
    return game.open.challenger if turn_of(move) % 2 == 0 else game.open.claimant
