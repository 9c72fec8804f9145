"""Transactions of one account that survive everything: recorded in PostgreSQL before they are sent, sent again until they are
final.

A purpose is done at most once. Its transaction keeps its nonce whatever happens (a crash, a dropped transaction, a
reorganisation, fees that rise), so that of all the versions ever signed at most one can be mined. Only a final
receipt ends it. Nothing is ever sent at another nonce by itself: where the nonce was used for something else, the
purpose fails, and who wanted it looks at the chain and decides.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

import structlog
from eth_account import Account

from aos.adapters.chain.contracts import Contract
from aos.adapters.chain.node import Block, ChainNode, Fees, Receipt, Refused, Reverted
from aos.adapters.postgres import Connection, Pool, Record, unavailable
from aos.core.signing import address_of
from aos.errors import AOSError, RuleViolation, Unavailable

log = structlog.get_logger("aos.chain")

MAX_FEE_GWEI = 200
BUMP_AFTER_S = 120
"""A transaction that nobody mined for so long is signed again with higher fees."""
_LOCK = 0x414F5343  # "AOSC"
GWEI = 10**9

State = Literal["wanted", "sent", "done", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a purpose stands. ``block`` and ``created`` (a contract's address) are those of its final receipt."""

    purpose: str
    state: State
    nonce: int | None
    hash: bytes | None
    block: int | None
    created: str | None
    error: str
    wanted_at: datetime
    """By the database's clock."""


class Journal:
    """What one account has on one chain to do. Any number of processes may step it: one at a time does. ``pool`` must
    have two connections or more: one holds the lock.

    ``max_fee_gwei`` bounds what is ever offered for a unit of gas, whatever the node suggests.
    """

    def __init__(
        self,
        pool: Pool,
        node: ChainNode,
        key: bytes,
        *,
        max_fee_gwei: int = MAX_FEE_GWEI,
        bump_after_s: int = BUMP_AFTER_S,
    ) -> None:
        self._pool = pool
        self._node = node
        self._key = key
        self.sender = address_of(key)
        self._max_fee = max_fee_gwei * GWEI
        self._bump_after_s = bump_after_s
        self._woken = asyncio.Event()

    async def want(self, purpose: str, *, to: str | None, data: bytes, value: int = 0) -> Entry:
        """Record that this is to be done; ``to`` None deploys. A purpose that is there already is not touched, one that failed
        begins again. Raises RuleViolation ``chain.purpose`` where it was recorded for something else.
        """
        named = (self._node.chain_id, self.sender, purpose)
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await db.execute(
                """INSERT INTO chain_transaction (chain_id, sender, purpose, target, data, value)
                   VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (chain_id, sender, purpose) DO NOTHING""",
                *named,
                to,
                data,
                Decimal(value),
            )
            row = await db.fetchrow(
                "SELECT * FROM chain_transaction WHERE chain_id = $1 AND sender = $2 AND purpose = $3 FOR UPDATE",
                *named,
            )
            if (row["target"], row["data"], row["value"]) != (to, data, Decimal(value)):
                raise RuleViolation("chain.purpose", f"{purpose!r} was recorded for another transaction")
            if row["state"] == "failed":
                row = await db.fetchrow(
                    """UPDATE chain_transaction
                       SET state = 'wanted', nonce = NULL, hash = NULL, block = NULL, error = '', created_at = now()
                       WHERE id = $1 RETURNING *""",
                    row["id"],
                )
        self._woken.set()
        return _entry(row)

    async def entry(self, purpose: str) -> Entry | None:
        async with unavailable():
            row = await self._pool.fetchrow(
                "SELECT * FROM chain_transaction WHERE chain_id = $1 AND sender = $2 AND purpose = $3",
                self._node.chain_id,
                self.sender,
                purpose,
            )
        return None if row is None else _entry(row)

    async def newest(self, prefix: str) -> Entry | None:
        """The purpose that was wanted last of those that begin so."""
        async with unavailable():
            row = await self._pool.fetchrow(
                """SELECT * FROM chain_transaction WHERE chain_id = $1 AND sender = $2 AND starts_with(purpose, $3)
                   ORDER BY created_at DESC, id DESC LIMIT 1""",
                self._node.chain_id,
                self.sender,
                prefix,
            )
        return None if row is None else _entry(row)

    async def entries(self, prefix: str) -> list[Entry]:
        """Every purpose that begins so, in the order in which they were wanted."""
        async with unavailable():
            rows = await self._pool.fetch(
                """SELECT * FROM chain_transaction WHERE chain_id = $1 AND sender = $2 AND starts_with(purpose, $3)
                   ORDER BY id""",
                self._node.chain_id,
                self.sender,
                prefix,
            )
        return [_entry(row) for row in rows]

    async def open(self) -> list[Entry]:
        """What is not over, oldest first."""
        return [_entry(row) for row in await self._open()]

    async def step(self, *contracts: Contract) -> bool:
        """Once over everything that is open; False where nothing is. ``contracts`` give their errors' names.

        Raises Unavailable ``chain.*``, VerificationError ``chain.id``, InvalidMessage ``chain.answer``; what was recorded stays.
        """
        if not await self._open():
            return False
        refused: Refused | None = None
        async with self._alone() as ours:
            if ours:
                await self._node.check_chain()
                final = await self._node.block("finalized")
                final_count = await self._node.nonce(self.sender, final.number)
                for row in await self._open("sent"):
                    await self._follow(row, final, final_count)
                for row in await self._open("wanted"):
                    try:
                        await self._begin(row, contracts)
                    except Refused as error:  # what the node will not look at keeps nothing else waiting
                        refused = refused or error
        if refused is not None:
            raise refused
        return bool(await self._open())

    async def keep(self, *contracts: Contract, every_s: float = 5.0) -> None:
        """Step until cancelled. Trouble is logged, and tried again."""
        while True:
            try:
                await self.step(*contracts)
            except AOSError as error:
                log.warning("chain.not_sent", code=error.code, message=error.message)
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), every_s)

    # ---

    async def _open(self, state: State | None = None) -> list[Record]:
        async with unavailable():
            rows: list[Record] = await self._pool.fetch(
                """SELECT * FROM chain_transaction WHERE chain_id = $1 AND sender = $2 AND state IN ('wanted', 'sent')
                   AND ($3::text IS NULL OR state = $3) ORDER BY nonce NULLS LAST, id""",
                self._node.chain_id,
                self.sender,
                state,
            )
        return rows

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[bool]:
        """Whether this process is the only one here. The lock ends with its connection, so a dead process holds none."""
        key = int.from_bytes(bytes.fromhex(self.sender[2:10])) - (1 << 31)
        async with unavailable(), self._pool.acquire() as db:
            ours = bool(await db.fetchval("SELECT pg_try_advisory_lock($1, $2)", _LOCK, key))
            try:
                yield ours
            finally:
                if ours:
                    await db.execute("SELECT pg_advisory_unlock($1, $2)", _LOCK, key)

    async def _begin(self, row: Record, contracts: Sequence[Contract]) -> None:
        """Give a transaction its nonce, sign it, write it down, send it."""
        to, data, value = row["target"], row["data"], int(row["value"])
        try:
            gas = await self._node.estimate(sender=self.sender, to=to, data=data, value=value)
            gas += gas // 4
        except Reverted as refusal:
            named = (contract.error(refusal.data) for contract in contracts)
            reason = next((name for name in named if name), None)
            await self._end(row, "failed", error=f"the contract refuses: {reason or refusal.data.hex()}")
            return
        except RuleViolation as refusal:
            await self._end(row, "failed", error=refusal.message)
            return
        fees = self._capped(await self._node.fees())
        needed, held = value + gas * fees.max_fee, await self._node.balance(self.sender)
        if held < needed:
            await self._end(
                row,
                "failed",
                error=f"insufficient funds: {self.sender} has {_ether(held)} ether, at most {_ether(needed)} are needed",
            )
            return
        mined = await self._node.nonce(self.sender, "latest")
        async with unavailable():
            sent = await self._pool.fetchval(
                "SELECT max(nonce) FROM chain_transaction WHERE chain_id = $1 AND sender = $2 AND state = 'sent'",
                self._node.chain_id,
                self.sender,
            )
        nonce = max(mined, -1 if sent is None else sent + 1)
        raw, digest = self._sign(to, data, value, nonce=nonce, gas=gas, fees=fees)
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await self._record(db, row["id"], raw, digest, fees, nonce=nonce, gas=gas)
            await db.execute(
                "UPDATE chain_transaction SET state = 'sent', nonce = $2, hash = $3 WHERE id = $1",
                row["id"],
                nonce,
                digest,
            )
        await self._send(raw)

    async def _follow(self, row: Record, final: Block, final_count: int) -> None:
        """Look for a final receipt; until there is one, see that the node has the transaction."""
        async with unavailable():
            attempts = await self._pool.fetch(
                """SELECT *, extract(epoch FROM now() - made_at)::bigint AS age
                   FROM chain_attempt WHERE id = $1 AND nonce = $2 ORDER BY max_fee DESC""",
                row["id"],
                row["nonce"],
            )
        mined = False
        for attempt in attempts:
            receipt = await self._node.receipt(attempt["hash"])
            if receipt is None:
                continue
            mined = True
            if receipt.block <= final.number and await self._is_there(receipt):
                await self._end(
                    row,
                    "done" if receipt.succeeded else "failed",
                    digest=attempt["hash"],
                    receipt=receipt,
                    error="" if receipt.succeeded else "the transaction was mined and reverted",
                )
                return
        if mined:
            return
        if final_count > row["nonce"]:
            await self._end(
                row,
                "failed",
                error=f"another transaction of {self.sender} took its nonce {row['nonce']}; look before wanting it again",
            )
            return
        newest = attempts[0]
        if newest["age"] >= self._bump_after_s and await self._bump(row, newest):
            return
        await self._send(newest["raw"])

    async def _is_there(self, receipt: Receipt) -> bool:
        """Whether the receipt's block is on the chain: a node may still remember one of a history that is gone."""
        return (await self._node.block(receipt.block)).hash == receipt.block_hash

    async def _bump(self, row: Record, newest: Record) -> bool:
        """Sign it again with higher fees; False where they would be too high, or are what they were."""
        now = await self._node.fees()
        old_fee, old_tip = int(newest["max_fee"]), int(newest["tip"])
        fees = Fees(
            max_fee=max(now.max_fee, old_fee * 9 // 8 + 1), tip=max(now.tip, old_tip * 9 // 8 + 1)
        )  # nodes replace a transaction for an eighth more of both, and for nothing less
        if fees.max_fee > self._max_fee:
            return False
        raw, digest = self._sign(
            row["target"],
            row["data"],
            int(row["value"]),
            nonce=row["nonce"],
            gas=newest["gas"],
            fees=fees,
        )
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            await self._record(db, row["id"], raw, digest, fees, nonce=row["nonce"], gas=newest["gas"])
            await db.execute("UPDATE chain_transaction SET hash = $2 WHERE id = $1", row["id"], digest)
        await self._send(raw)
        return True

    def _capped(self, fees: Fees) -> Fees:
        if fees.max_fee <= self._max_fee:
            return fees
        if fees.max_fee // 2 > self._max_fee:
            raise Unavailable(
                "chain.fee",
                f"the node asks for {fees.max_fee / GWEI:.0f} gwei a unit of gas, {self._max_fee // GWEI} are allowed",
                hint="wait until it is cheaper, or raise max_fee_gwei",
            )
        return Fees(max_fee=self._max_fee, tip=min(fees.tip, self._max_fee))

    def _sign(
        self, to: str | None, data: bytes, value: int, *, nonce: int, gas: int, fees: Fees
    ) -> tuple[bytes, bytes]:
        fields: dict[str, Any] = {
            "type": 2,
            "chainId": self._node.chain_id,
            "nonce": nonce,
            "gas": gas,
            "maxFeePerGas": fees.max_fee,
            "maxPriorityFeePerGas": fees.tip,
            "data": data,
            "value": value,
        }
        if to is not None:
            fields["to"] = _checksummed(to)
        signed = Account.sign_transaction(fields, self._key)
        return bytes(signed.raw_transaction), bytes(signed.hash)

    @staticmethod
    async def _record(
        db: Connection, number: int, raw: bytes, digest: bytes, fees: Fees, *, nonce: int, gas: int
    ) -> None:
        await db.execute(
            """INSERT INTO chain_attempt (hash, id, raw, max_fee, tip, nonce, gas) VALUES ($1, $2, $3, $4, $5, $6, $7)
               ON CONFLICT DO NOTHING""",
            digest,
            number,
            raw,
            Decimal(fees.max_fee),
            Decimal(fees.tip),
            nonce,
            gas,
        )

    async def _send(self, raw: bytes) -> None:
        try:
            await self._node.send(raw)
        except (RuleViolation, Refused) as refusal:
            # It has it already, mostly. What matters is the receipt.
            log.debug("chain.send", message=refusal.message)

    async def _end(
        self,
        row: Record,
        state: State,
        *,
        digest: bytes | None = None,
        receipt: Receipt | None = None,
        error: str = "",
    ) -> None:
        async with unavailable():
            await self._pool.execute(
                """UPDATE chain_transaction SET state = $2, hash = coalesce($3, hash), block = $4, created = $5, error = $6
                   WHERE id = $1""",
                row["id"],
                state,
                digest,
                receipt and receipt.block,
                receipt and receipt.created,
                error,
            )
        log.info("chain.transaction", purpose=row["purpose"], state=state, error=error)


def _entry(row: Record) -> Entry:
    return Entry(
        purpose=row["purpose"],
        state=row["state"],
        nonce=row["nonce"],
        hash=row["hash"],
        block=row["block"],
        created=row["created"],
        error=row["error"],
        wanted_at=row["created_at"],
    )


def _ether(wei: int) -> str:
    return f"{Decimal(wei) / 10**18:.6f}"


def _checksummed(address: str) -> str:
    from eth_utils.address import to_checksum_address

    return str(to_checksum_address(address))
