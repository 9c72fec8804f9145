"""The dispatcher's court (docs/spec/13-dispute.md, "In the network"): claims' data, games, moves, verdicts, convictions.

The referee is the core's game and nothing else; what it decides follows from the stored moves, so that anybody who reads the
transcript decides the same. Each step is one transaction under the game's lock, and doing it twice changes nothing. Deadlines
are by the clock that is given. How a job ends is ``aos.dispatcher.disputes_ending``'s matter.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from asyncpg import Record

from aos.adapters.postgres import Pool, unavailable
from aos.core import hashes
from aos.core.codec import MaxLength, UInt32, decode, encode
from aos.core.dispute.case import Arithmetic, check_case
from aos.core.dispute.coarse import served_tree
from aos.core.dispute.contradiction import contradiction
from aos.core.dispute.court import READ_SKEW_MS, Read, transcript_digest
from aos.core.dispute.game import Game, apply, start
from aos.core.dispute.moves import Answer, Move, Open, game_id, read_move, turn_of
from aos.core.dispute.resolution import bond_events
from aos.core.dispute.rules import required_bond
from aos.core.dispute.transcript import judge
from aos.core.encoding import b64u_decode, b64u_encode, parse_canonical, tagged_hash
from aos.core.manifest import Manifest
from aos.core.statements import ReceiptCore, Signed, check_signed, read_signed
from aos.dispatcher.answers import write_tokens
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.disputes_book import (
    CLAIM,
    GAMES,
    Held,
    case_of,
    core_of,
    load,
    public,
    rules_of,
    rules_text,
)
from aos.dispatcher.hub import Hub
from aos.dispatcher.moves import stored_json
from aos.dispatcher.refusals import NotFound
from aos.dispatcher.setup import authenticate
from aos.errors import AOSError, InvalidMessage, RuleViolation, Unavailable, VerificationError

log = structlog.get_logger("aos.dispatcher")

MAX_MANIFEST_CHARS = 64 * 1024
HINT_S = 20.0


class NotEntitled(VerificationError):
    """What was asked for reveals tokens, and this reader may not know them."""

    http_status = 403


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a claimant serves: header and leaf hashes of its run, and what a referee needs beside openings."""

    header: Annotated[bytes, MaxLength(1024)]
    units: Annotated[tuple[Annotated[bytes, MaxLength(1 << 16)], ...], MaxLength(1_000_000)]
    manifest: Annotated[str, MaxLength(MAX_MANIFEST_CHARS)]
    prompt_tokens: Annotated[tuple[UInt32, ...], MaxLength(1_000_000)]
    tokenizer: Annotated[bytes, MaxLength(8 << 20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Who asks: an address that signed its question just now, or the bearer of a project's token. Both may be empty."""

    address: str = ""
    token: str = ""


class Disputes:
    """Claims, games and verdicts of one dispatcher. ``arithmetic`` is the canonical one, which the referee recomputes with."""

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        hub: Hub,
        *,
        arithmetic: Arithmetic,
        tokenizer_digest: Callable[[bytes], bytes],
        now_ms: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._config = config
        self._hub = hub
        self._arithmetic = arithmetic
        self._tokenizer_digest = tokenizer_digest
        self._now_ms = now_ms
        self._changed = changed
        self._hints: set[asyncio.Task[None]] = set()

    # --- who may read

    def reader(self, header: str | None, token: str | None, *, subject: bytes) -> Reader:
        """Who asks about ``subject``. ``header`` is base64url of Signed ``aos.dispute_read``.

        Raises InvalidMessage, VerificationError ``dispute.read_foreign``, ``dispute.read_stale``, ``signature.*``.
        """
        if not header:
            return Reader(token=token or "")
        try:
            value = json.loads(b64u_decode(header[:4096]))
        except ValueError:
            raise InvalidMessage(
                "field.type", "x-aos-reader: base64url of a signed aos.dispute_read", field="x-aos-reader"
            ) from None
        signed = read_signed(Read, value, where="x-aos-reader")
        said = signed.statement
        if (said.network, said.dispatcher) != (self._config.network, self._config.keys.address) or (
            said.subject != subject
        ):
            raise VerificationError(
                "dispute.read_foreign", "the reader's statement is for another dispatcher or subject"
            )
        if abs(said.time - self._now_ms()) > READ_SKEW_MS:
            raise VerificationError("dispute.read_stale", "the reader's statement is stale; sign a new one")
        check_signed(signed, address=said.reader)
        return Reader(address=said.reader, token=token or "")

    async def _entitled(
        self, db: Any, claim: Record, reader: Reader, *, code: str = "dispute.not_entitled"
    ) -> None:
        """Whoever has the prompt anyhow: the seats of the attempt, and the project. Raises NotEntitled."""
        if reader.address and await db.fetchval(
            "SELECT 1 FROM seat WHERE job_id = $1 AND attempt = $2 AND node_id = $3",
            claim["job_id"],
            claim["attempt"],
            reader.address,
        ):
            return
        if reader.token and await authenticate(self._pool, claim["project_id"], reader.token):
            return
        raise NotEntitled(
            code,
            "openings show tokens: only the project and the job's operators may see them",
            hint="send the project's token, or sign as one of the job's operators",
        )

    async def _claim(self, db: Any, claim: bytes) -> Record:
        row = await db.fetchrow(CLAIM + " WHERE c.receipt_id = $1", b64u_encode(claim))
        if row is None:
            raise NotFound("dispute.unknown_claim", "no such claim", field="claim")
        return row

    # --- claims and their leaves

    async def describe_claim(self, claim: bytes, reader: Reader) -> dict[str, Any]:
        """A claim for who may know its tokens. Asking makes its leaves wanted, while it can be challenged."""
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            row = await self._claim(db, claim)
            await self._entitled(db, row, reader)
            closes_at = await self._want(db, row)
        if row["served_at"] is None:
            self._hint([row["node_id"]])
        core = core_of(row)
        return {
            "claim": row["receipt_id"],
            "receipt": core.to_json(),
            "request": bytes(row["request"]).decode("utf-8"),
            "nonce": b64u_encode(row["nonce"]),
            "tokens": [
                int.from_bytes(row["tokens"][i : i + 4], "little") for i in range(0, len(row["tokens"]), 4)
            ],
            "text": bytes(row["answer"]).decode("utf-8"),
            "served": row["served_at"] is not None,
            "closes_at": closes_at,
            "rules": encode(rules_of(self._config)),
        }

    async def _want(self, db: Any, row: Record) -> int:
        """When the claim can no longer be challenged (ms)."""
        if row["closes_at"] is not None:
            return int(row["closes_at"])
        revealed = int(row["received_at"].timestamp() * 1000)
        closes_at = revealed + self._config.disputes.claim_window_ms
        if not core_of(row).statement.state_root:
            raise VerificationError("dispute.not_disputable", "this receipt commits to no state root")
        if self._now_ms() < closes_at:
            await db.execute(
                "INSERT INTO dispute_claim (receipt_id, wanted_at, closes_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                row["receipt_id"],
                self._now_ms(),
                closes_at,
            )
        return closes_at

    async def serve(self, claim: bytes, value: object) -> dict[str, Any]:
        """Keep what the claimant serves. It says itself whether it is right: it must lead to what the claimant signed.

        Raises NotFound; RuleViolation ``dispute.not_wanted``; VerificationError ``dispute.served``,
        ``dispute.foreign_data``.
        """
        served = decode(Served, value, where="leaves")
        async with unavailable():
            row = await self._claim(self._pool, claim)
        if row["wanted_at"] is None:
            raise RuleViolation("dispute.not_wanted", "nobody has asked for the leaves of this claim")
        if row["served_at"] is not None:
            return {"claim": row["receipt_id"], "served": True}
        await asyncio.to_thread(self._check_served, row, served)
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await db.execute(
                """INSERT INTO dispute_model (model_id, manifest, tokenizer) VALUES ($1, $2, $3)
                   ON CONFLICT DO NOTHING""",
                row["model_id"],
                served.manifest,
                served.tokenizer,
            )
            await db.execute(
                """UPDATE dispute_claim SET header = $2, units = $3, prompt_tokens = $4, served_at = $5
                   WHERE receipt_id = $1 AND served_at IS NULL""",
                row["receipt_id"],
                served.header,
                list(served.units),
                write_tokens(served.prompt_tokens),
                self._now_ms(),
            )
            seats = await db.fetch(
                "SELECT node_id FROM seat WHERE job_id = $1 AND attempt = $2", row["job_id"], row["attempt"]
            )
        log.info("dispute.served", node=row["node_id"], claim=row["receipt_id"])
        self._hint(seat["node_id"] for seat in seats)
        self._changed()
        return {"claim": row["receipt_id"], "served": True}

    def _check_served(self, row: Record, served: Served) -> None:
        core = core_of(row).statement
        if tagged_hash("model", served.manifest.encode()) != core.model_id:
            raise VerificationError(
                "dispute.foreign_data", "the manifest is another model's", field="manifest"
            )
        manifest = decode(
            Manifest,
            parse_canonical(served.manifest.encode(), max_bytes=MAX_MANIFEST_CHARS),
            where="manifest",
        )
        if hashes.prompt_tokens_hash(row["nonce"], served.prompt_tokens) != core.prompt_tokens_hash:
            raise VerificationError(
                "dispute.foreign_data",
                "the prompt's tokens are not those of the receipt",
                field="prompt_tokens",
            )
        if self._tokenizer_digest(served.tokenizer) != manifest.tokenizer:
            raise VerificationError(
                "dispute.foreign_data", "the tokenizer's tables are another model's", field="tokenizer"
            )
        if manifest.graph is None:
            raise VerificationError(
                "dispute.not_disputable", "the model's arithmetic is not the canonical one"
            )
        served_tree(core.state_root, served.header, served.units, n_layers=manifest.graph.n_layers)

    async def leaves(self, claim: bytes, reader: Reader) -> dict[str, Any]:
        """What the claimant served. Raises NotEntitled; RuleViolation ``dispute.not_served``."""
        async with unavailable():
            row = await self._claim(self._pool, claim)
            await self._entitled(self._pool, row, reader)
        if row["served_at"] is None:
            raise RuleViolation("dispute.not_served", "the claimant has not served its leaves yet; ask again")
        return {
            "header": b64u_encode(row["header"]),
            "units": [b64u_encode(each) for each in row["units"]],
            "manifest": row["manifest"],
            "prompt_tokens": [
                int.from_bytes(row["prompt_tokens"][i : i + 4], "little")
                for i in range(0, len(row["prompt_tokens"]), 4)
            ],
        }

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
                   JOIN job j USING (job_id) WHERE c.node_id = $1 AND d.served_at IS NULL AND d.closes_at > $2""",
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
                    "bond": await self._bond(row),
                }
                for row in differing
            ],
            "move": [{"game": b64u_encode(row["game"]), "claim": row["receipt_id"]} for row in moves],
        }

    async def _bond(self, row: Record) -> int:
        async with unavailable():
            open_games = await self._pool.fetchval(
                "SELECT count(*) FROM dispute_game WHERE receipt_id = $1 AND state = 'open'",
                row["receipt_id"],
            )
        return required_bond(rules_of(self._config), open_games)

    # --- telling the operators

    def _hint(self, addresses: Iterable[str]) -> None:
        """Tell operators over their links that something waits for them. A hint that is lost costs time only."""
        for address in set(addresses) & self._hub.connected():
            task = asyncio.create_task(self._tell(address))
            self._hints.add(task)
            task.add_done_callback(self._hints.discard)

    async def _tell(self, address: str) -> None:
        try:
            async with asyncio.timeout(HINT_S):
                await self._hub.request(address, "dispute", {})
        except (AOSError, TimeoutError) as error:
            code = error.code if isinstance(error, Unavailable) else "refused"
            log.info("dispute.hint_lost", node=address, code=code)

    async def hint_run(self, run_id: int) -> None:
        """A run's results differ: its operators look what waits for them."""
        async with unavailable():
            rows = await self._pool.fetch(
                """SELECT s.node_id FROM seat s JOIN run r ON (r.job_id, r.attempt) = (s.job_id, s.attempt)
                   WHERE r.run_id = $1""",
                run_id,
            )
        self._hint(row["node_id"] for row in rows)
        self._changed()

    async def stop(self) -> None:
        """Give up the hints that are under way."""
        for task in list(self._hints):
            task.cancel()
        await asyncio.gather(*self._hints, return_exceptions=True)


def signed_by(game: Game, move: Move) -> str:
    """Whose turn a move's turn is."""
    return game.open.challenger if turn_of(move) % 2 == 0 else game.open.claimant
