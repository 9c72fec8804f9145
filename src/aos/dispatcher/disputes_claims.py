"""Claims in disputes: who may read them, and the leaves that their claimants serve (docs/spec/13-dispute.md, "The claim").

Nothing that shows tokens goes to anybody but the job's operators and its project; what a claimant serves is believed because it
leads to what the claimant signed, whoever brings it.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import structlog
from asyncpg import Record

from aos.adapters.postgres import Pool, unavailable
from aos.core import hashes
from aos.core.codec import MaxLength, UInt32, decode, encode
from aos.core.dispute.case import Arithmetic
from aos.core.dispute.coarse import served_tree
from aos.core.dispute.court import READ_SKEW_MS, Read
from aos.core.encoding import b64u_decode, b64u_encode, parse_canonical, tagged_hash
from aos.core.manifest import Manifest
from aos.core.statements import check_signed, read_signed
from aos.dispatcher.answers import read_tokens, write_tokens
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.disputes_book import CLAIM, core_of, rules_of
from aos.dispatcher.hub import Hub
from aos.dispatcher.refusals import NotFound
from aos.dispatcher.setup import holder_of
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


class Claims:
    """Claims of one dispatcher. ``arithmetic`` is the canonical one, which the referee recomputes with; ``check_tables`` raises
    InvalidMessage for tokenizer and template that a manifest does not name; ``changed`` is told where something may have ended.
    """

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        hub: Hub,
        *,
        arithmetic: Arithmetic,
        check_tables: Callable[[bytes, Manifest], object],
        now_ms: Callable[[], int],
        changed: Callable[[], None],
        told: Callable[[Literal["opened", "convicted"]], None],
    ) -> None:
        self._pool = pool
        self._config = config
        self._hub = hub
        self._arithmetic = arithmetic
        self._check_tables = check_tables
        self._now_ms = now_ms
        self._changed = changed
        self._told = told
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
        holder = await holder_of(self._pool, reader.token) if reader.token else None
        if holder is not None and holder.project == claim["project_id"] and "challenge" in holder.scopes:
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
            "tokens": list(read_tokens(row["tokens"])),
            "text": bytes(row["answer"]).decode("utf-8"),
            "served": row["served_at"] is not None,
            "closes_at": closes_at,
            "rules": encode(rules_of(self._config)),
        }

    async def chain_claim(self, claim: bytes) -> bytes:
        """A claim's claim at the court on a chain, as its operator signed it (canonical JSON). It tells no token: anybody may read
        it. Raises NotFound ``dispute.unknown_claim``, ``chain_claim.none``.
        """
        async with unavailable():
            await self._claim(self._pool, claim)
            signed = await self._pool.fetchval(
                "SELECT signed FROM chain_claim WHERE receipt_id = $1", b64u_encode(claim)
            )
        if signed is None:
            raise NotFound("chain_claim.none", "this result came with no claim at a court", field="claim")
        return str(signed).encode()

    async def _want(self, db: Any, row: Record) -> int:
        """When the claim can no longer be challenged here (ms). Its leaves are wanted too while a court would hear a challenge."""
        if row["closes_at"] is not None:
            return int(row["closes_at"])
        revealed = int(row["received_at"].timestamp() * 1000)
        closes_at = revealed + self._config.disputes.claim_window_ms
        if not core_of(row).statement.state_root:
            raise VerificationError("dispute.not_disputable", "this receipt commits to no state root")
        expires = await db.fetchval(
            "SELECT expires FROM chain_claim WHERE receipt_id = $1", row["receipt_id"]
        )
        if self._now_ms() < max(closes_at, 1_000 * (expires or 0)):
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
        try:
            self._check_tables(served.tokenizer, manifest)
        except InvalidMessage as error:
            raise VerificationError("dispute.foreign_data", error.message, field="tokenizer") from error
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
            "prompt_tokens": list(read_tokens(row["prompt_tokens"])),
        }

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
