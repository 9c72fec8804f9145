"""What the explorer shows of disputes: public facts of games, and each game as a ladder of moves (docs/spec/13-dispute.md).

Of a move the page tells who made it, when, how long it is, its hash, and which part of the trace it narrows the game to; no
opening, token or text. A verdict is the one that the dispatcher stored.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from asyncpg import Record

from aos.adapters.postgres import Connection
from aos.core.codec import decode
from aos.core.dispute.moves import HASH_BYTES, Answer, Choose, Open, Party, read_move
from aos.core.encoding import b64u_encode
from aos.core.manifest import Manifest
from aos.dispatcher.disputes_book import GAMES, public
from aos.dispatcher.ui.store import PAGE

MOST_OF_A_JOB = 64
MOST_CONVICTIONS = 100
_AROUND = {
    "header": "the header of the run",
    "prompt": "how the prompt becomes tokens",
    "tokens": "which tokens were committed",
    "stop": "where the answer stops",
    "text": "how the tokens become text",
    "trap": "a number that may not occur",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One move. ``parts`` is how many parts an answer shows, ``chosen`` the one that the next move goes to; ``after_s`` the
    seconds since the move before; ``tone``: the move that decided the game, for its party or against it."""

    turn: int
    party: Party
    what: str
    detail: str
    at: int
    after_s: float | None
    size: int
    hash: bytes
    parts: int = 0
    chosen: int | None = None
    tone: Literal["", "right", "wrong"] = ""


async def page_of(db: Connection, *, before: int | None) -> tuple[list[dict[str, Any]], int | None]:
    """Games, newest first, and the cursor of the next page."""
    rows = await db.fetch(
        GAMES + " WHERE g.seq < $1 ORDER BY g.seq DESC LIMIT $2",
        2**63 - 1 if before is None else before,
        PAGE + 1,
    )
    return [public(row) for row in rows[:PAGE]], rows[PAGE - 1]["seq"] if len(rows) > PAGE else None


async def of_job(db: Connection, job_ref: bytes) -> list[dict[str, Any]]:
    """The games about a job's claims, oldest first."""
    rows = await db.fetch(GAMES + " WHERE j.job_ref = $1 ORDER BY g.seq LIMIT $2", job_ref, MOST_OF_A_JOB)
    return [public(row) for row in rows]


async def game_of(db: Connection, game: bytes) -> dict[str, Any] | None:
    """One game's public facts, its ladder, the ledger of its bond and who is convicted by it."""
    row = await db.fetchrow(GAMES + " WHERE g.game = $1", game)
    if row is None:
        return None
    moves = await db.fetch("SELECT at, hash, move FROM dispute_move WHERE game = $1 ORDER BY turn", game)
    manifest = await db.fetchval(
        """SELECT m.manifest FROM receipt c JOIN job j USING (job_id) JOIN dispute_model m ON m.model_id = j.model_id
           WHERE c.receipt_id = $1""",
        row["receipt_id"],
    )
    bonds = await db.fetch("SELECT event, party, units, at FROM bond_event WHERE game = $1 ORDER BY at", game)
    guilty = await db.fetch(
        "SELECT node_id, code, digest, at FROM conviction WHERE game = $1 ORDER BY node_id", game
    )
    facts = public(row)
    return facts | {
        "where": where(facts, manifest),
        "rungs": ladder(moves, facts),
        "bonds": bonds,
        "guilty": guilty,
        "evidence": await db.fetchval("SELECT count(*) FROM dispute_evidence WHERE game = $1", game),
    }


async def convictions(db: Connection, node_id: str | None = None) -> list[Record]:
    """Who is convicted, newest first; of one operator, or of all."""
    rows: list[Record] = await db.fetch(
        """SELECT node_id, game, job_ref, code, at FROM conviction WHERE $1::text IS NULL OR node_id = $1
           ORDER BY at DESC, game LIMIT $2""",
        node_id,
        MOST_CONVICTIONS,
    )
    return rows


def where(facts: dict[str, Any], manifest: str | None) -> str:
    """What a game is about, in words. ``manifest``: the model's, where it is held."""
    if facts["kind"] != "unit":
        return _AROUND[facts["kind"]]
    return f"{_unit(facts['unit'], _layers(manifest))} at position {facts['position']}"


def _layers(manifest: str | None) -> int | None:
    """The number of layers that a stored manifest says; the dispatcher checked it when it took it."""
    graph = None if manifest is None else decode(Manifest, json.loads(manifest)).graph
    return None if graph is None else graph.n_layers


def _unit(unit: int, layers: int | None) -> str:
    if unit == 0:
        return "the embedding"
    if layers is None:
        return f"unit {unit}"
    return f"layer {unit} of {layers}" if unit <= layers else "the output head and sampler"


def ladder(rows: Sequence[Record], facts: dict[str, Any]) -> list[Rung]:
    """The moves of a game in order, the challenge first."""
    moves = [read_move(json.loads(row["move"])) for row in rows]
    rungs = []
    proven = "this one tile" if facts["kind"] == "unit" else "it"
    for turn, (row, signed) in enumerate(zip(rows, moves, strict=True)):
        move = signed.statement
        following = moves[turn + 1].statement if turn + 1 < len(moves) else None
        parts, chosen, detail = 0, None, ""
        if isinstance(move, Open):
            what = "Challenge"
            detail = (
                "this is not what the model computes; with a commitment to what the challenger has instead"
            )
        elif isinstance(move, Answer):
            what, parts = "Answer", len(move.children) // HASH_BYTES
            detail = f"the hashes of {parts} parts" + (
                ", and the unit opened under the state root" if move.bounds else ""
            )
            chosen = following.child if isinstance(following, Choose) else None
        elif isinstance(move, Choose):
            what, detail = "Choice", f"part {move.child + 1} is where we differ"
        else:
            what, detail = "Proof", f"{len(move.proof):,} bytes that everybody recomputes {proven} from"
        party: Party = "challenger" if turn % 2 == 0 else "claimant"
        decides = turn + 1 == len(rows) and facts["state"] == "proven"
        rungs.append(
            Rung(
                turn=turn,
                party=party,
                what=what,
                detail=detail,
                at=row["at"],
                after_s=None if turn == 0 else (row["at"] - rows[turn - 1]["at"]) / 1000,
                size=len(row["move"]),
                hash=bytes(row["hash"]),
                parts=parts,
                chosen=chosen,
                tone="" if not decides else "wrong" if facts["against"] == party else "right",
            )
        )
    return rungs


async def mark(db: Connection, game: bytes) -> str:
    """A text that changes when a move is made or a verdict falls."""
    row = await db.fetchrow(
        """SELECT state, against, settled, (SELECT count(*) FROM dispute_move m WHERE m.game = g.game) AS moves,
                  (SELECT count(*) FROM conviction c WHERE c.game = g.game) AS guilty
           FROM dispute_game g WHERE game = $1""",
        game,
    )
    return b64u_encode(game) if row is None else json.dumps(list(row))
