"""What the dispatcher keeps of disputes, and a game from its rows (docs/spec/13-dispute.md).

Rows are the only state: a game is replayed from its signed moves each time, by the code that everybody judges with.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asyncpg import Record

from aos.core.codec import decode, encode
from aos.core.dispute.case import Arithmetic, Case
from aos.core.dispute.game import Game
from aos.core.dispute.moves import Kind, Move, Open, game_id, read_move
from aos.core.dispute.rules import Rules
from aos.core.dispute.transcript import Transcript, replay, transcript_of, write_transcript
from aos.core.encoding import b64u_encode
from aos.core.statements import ReceiptCore, Request, Signed, read_signed
from aos.dispatcher.answers import read_tokens
from aos.dispatcher.config import DispatcherConfig

_TOKENIZED: frozenset[Kind] = frozenset({"prompt", "stop", "text"})

CLAIM = """SELECT c.receipt_id, c.job_id, c.attempt, c.node_id, c.core, c.answer, c.tokens, c.received_at,
                  a.run_id, j.job_ref, j.project_id, j.request, j.nonce, j.model_id,
                  d.wanted_at, d.closes_at, d.header, d.units, d.prompt_tokens, d.served_at, m.manifest, m.tokenizer
           FROM receipt c JOIN attempt a USING (job_id, attempt) JOIN job j ON j.job_id = c.job_id
           LEFT JOIN dispute_claim d USING (receipt_id) LEFT JOIN dispute_model m ON m.model_id = j.model_id"""


def rules_of(config: DispatcherConfig) -> Rules:
    """The parameters of a game that begins now."""
    held = config.disputes
    return Rules(grace_ms=held.grace_ms, budget_ms=held.budget_ms, window_ms=held.window_ms, bond=held.bond)


async def begin_dispute(
    db: Any, config: DispatcherConfig, run: Record, receipts: Sequence[str], now: int
) -> None:
    """The roots of a run differ: every claim's leaves are wanted. Part of the transaction that ends the run."""
    window = config.disputes.claim_window_ms
    await db.execute(
        "INSERT INTO dispute_run (run_id, began_at, closes_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        run["run_id"],
        now,
        now + window + config.disputes.window_ms,
    )
    await db.executemany(
        "INSERT INTO dispute_claim (receipt_id, wanted_at, closes_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        [(receipt, now, now + window) for receipt in receipts],
    )


def core_of(row: Record) -> Signed[ReceiptCore]:
    """The claim of a row of ``CLAIM``."""
    return read_signed(ReceiptCore, json.loads(row["core"]))


def case_of(row: Record, kind: Kind) -> Case:
    """What a game of ``kind`` about a claim discloses, and no more. ``row`` is one of ``CLAIM``."""
    core = core_of(row)
    request = bytes(row["request"]).decode("utf-8")
    tokenized, tokens = kind in _TOKENIZED, kind in _TOKENIZED or kind == "tokens"
    return Case(
        core=core.statement,
        signature=core.signature,
        manifest=row["manifest"] or "",
        nonce=row["nonce"],
        params=decode(Request, json.loads(request)).job.params,
        request=request if kind == "prompt" else "",
        prompt_tokens=read_tokens(row["prompt_tokens"]) if tokens else None,
        tokens=read_tokens(row["tokens"]) if tokens else None,
        text=bytes(row["answer"]).decode("utf-8") if kind == "text" else None,
        tokenizer=row["tokenizer"] if tokenized else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A game as it is stored. ``transcript`` is judged at its last move, so that its bytes follow from the moves."""

    row: Record
    moves: tuple[tuple[Signed[Move], int], ...]
    evidence: tuple[Signed[Any], ...]
    rules: Rules
    case: Case

    def transcript(self, *, judged_at: int | None = None) -> Transcript:
        """The game's file, judged at its last move or at ``judged_at`` (ms)."""
        last = self.moves[-1][1]
        return transcript_of(
            self.rules,
            self.case,
            self.moves,
            judged_at=last if judged_at is None else max(last, judged_at),
            evidence=self.evidence,
        )

    def game(self, arithmetic: Arithmetic) -> Game:
        """The game after all its moves."""
        return replay(self.transcript(), arithmetic)

    def file(self) -> bytes:
        """The transcript's bytes, the same as long as nothing is added."""
        return write_transcript(self.transcript())


async def load(db: Any, row: Record) -> Held:
    """A game from its row of ``dispute_game``."""
    claim = await db.fetchrow(CLAIM + " WHERE c.receipt_id = $1", row["receipt_id"])
    moves = await db.fetch("SELECT at, move FROM dispute_move WHERE game = $1 ORDER BY turn", row["game"])
    more = await db.fetch(
        "SELECT at, statement FROM dispute_evidence WHERE game = $1 ORDER BY at, hash", row["game"]
    )
    taken: list[tuple[Signed[Move], int]] = [
        (read_move(json.loads(each["move"])), each["at"]) for each in moves
    ]
    evidence: list[Signed[Any]] = []
    for each in more:
        value = json.loads(each["statement"])
        statement = value["statement"]
        if statement["type"] != ReceiptCore.TYPE and game_id(read_move(value).statement) == row["game"]:
            taken.append((read_move(value), max(taken[-1][1], each["at"])))
        elif statement["type"] == ReceiptCore.TYPE:
            evidence.append(read_signed(ReceiptCore, value))
        else:
            evidence.append(read_move(value))
    opening = taken[0][0].statement
    assert isinstance(opening, Open)  # noqa: S101  turn 0 of a stored game
    return Held(
        row=row,
        moves=tuple(taken),
        evidence=tuple(evidence),
        rules=decode(Rules, json.loads(row["rules"])),
        case=case_of(claim, opening.kind),
    )


def public(row: Record) -> dict[str, Any]:
    """What everybody may know of a game: no token, text or opening. ``row``: ``dispute_game`` with job_ref, attempt,
    opening move, number of moves and their bytes."""
    opening = json.loads(row["opening"])["statement"]
    return {
        "game": b64u_encode(row["game"]),
        "job_ref": b64u_encode(row["job_ref"]),
        "attempt": row["attempt"],
        "claim": row["receipt_id"],
        "claimant": row["claimant"],
        "challenger": row["challenger"],
        "kind": opening["kind"],
        "position": opening["position"],
        "unit": opening["unit"],
        "bond": opening["bond"],
        "opened_at": row["opened_at"],
        "closes_at": row["closes_at"],
        "state": row["state"],
        "against": row["against"],
        "code": row["code"],
        "mover": row["mover"],
        "deadline": row["deadline"],
        "moves": row["moves"],
        "bytes": row["bytes"],
    }


GAMES = """SELECT g.*, j.job_ref, c.attempt, first.move AS opening,
                  (SELECT count(*) FROM dispute_move m WHERE m.game = g.game) AS moves,
                  (SELECT coalesce(sum(length(m.move)), 0) FROM dispute_move m WHERE m.game = g.game) AS bytes
           FROM dispute_game g JOIN receipt c USING (receipt_id) JOIN job j ON j.job_id = c.job_id
           JOIN dispute_move first ON first.game = g.game AND first.turn = 0"""


def rules_text(rules: Rules) -> str:
    """Rules as a row holds them."""
    return json.dumps(encode(rules), sort_keys=True)
