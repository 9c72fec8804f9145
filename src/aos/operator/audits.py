"""An operator that is audited (docs/spec/14-audit.md, "Over the network"): it opens the layers that a beacon drew of its runs, on
its own.

Its worker makes the bundle, which is stored in parts before anything of it is sent, sent from there, and deleted as soon as the
dispatcher has it or takes it no more. One is on the way at a time: more are never on this disk.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import structlog

from aos.core.codec import decode
from aos.core.dispute.audit import AuditRequest
from aos.core.dispute.audit_order import (
    CHUNK_BYTES,
    AuditAsked,
    AuditOpening,
    AuditOrder,
    check_order,
    chunk_hash,
    chunks_root,
)
from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.statements import ReceiptCore, hash_of, read_signed, sign
from aos.errors import AOSError, Unavailable, VerificationError
from aos.operator.court import CourtClient, document
from aos.operator.disputes import own_run, run_of
from aos.operator.identity import Identity
from aos.operator.network import Network
from aos.operator.rows import from_text, to_text
from aos.operator.store import Store
from aos.operator.worker_client import WorkerClient

log = structlog.get_logger("aos.operator")

AGAIN_S = 2.0


class Audits:
    """One operator's part in audits. ``most``: bytes of a bundle that are stored and sent."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        *,
        court: CourtClient,
        network: Callable[[], Network | None],
        worker: Callable[[bytes], WorkerClient | None],
        most: int,
    ) -> None:
        self._store = store
        self._identity = identity
        self._court = court
        self._network = network
        self._worker = worker
        self._most = most
        self._wanted: list[dict[str, Any]] = []
        self._refused: set[str] = set()
        self._signal = asyncio.Event()

    def want(self, wanted: list[dict[str, Any]]) -> None:
        """These audits wait for an answer, as the dispatcher has just said."""
        self._wanted = wanted
        self._signal.set()

    async def run(self) -> None:
        """Answer what waits, until cancelled."""
        while True:
            await self._signal.wait()
            self._signal.clear()
            try:
                await self._answer_all()
            except Unavailable as error:
                log.info("audit.waits", code=error.code)
                await asyncio.sleep(AGAIN_S)
                self._signal.set()

    async def _answer_all(self) -> None:
        network, wanted = self._network(), self._wanted
        if network is None:
            return
        with document():
            names = [b64u_decode(each["audit"], length=32) for each in wanted]
        await self._forget_all_but(names)
        later: Unavailable | None = None
        for name, each in zip(names, wanted, strict=True):
            if each["audit"] in self._refused:
                continue
            try:
                with document():
                    await self._answer(network, name, each)
            except Unavailable as error:
                if await self._stored(name) is not None:
                    raise  # it is on its way: no second one beside it
                await self._forget(name)
                later = error
            except AOSError as error:
                self._refused.add(each["audit"])
                await self._forget(name)
                log.warning("audit.failed", name=each["audit"], code=error.code, message=error.message)
        self._refused.intersection_update({each["audit"] for each in wanted})
        if later is not None:
            raise later

    async def _answer(self, network: Network, name: bytes, wanted: dict[str, Any]) -> None:
        held, worker = await own_run(self._store, self._worker, wanted)
        core = decode(ReceiptCore, held.receipt)
        asked = read_signed(AuditAsked, wanted["request"], where="request")
        order = read_signed(AuditOrder, wanted["order"], where="order")
        if hash_of(asked.statement) != name:
            raise VerificationError("audit.foreign", "the request is another audit's")
        request = check_order(asked, order, core, vrf_key=network.vrf_key, dispatcher=network.dispatcher)
        opened = await self._stored(name)
        if opened is None:
            opened = await self._make(name, network, core, request, run_of(held), worker)
        path = f"/v1/aos/audits/{wanted['audit']}"
        progress = await self._court.send("PUT", path + "/opening", opened)
        missing = [int(index) for index in progress["missing"]]
        for index in missing:
            await self._court.send_bytes(f"{path}/chunks/{index}", await self._part(name, index))
        await self._forget(name)
        log.info("audit.opened", name=wanted["audit"], chunks=len(missing))

    async def _make(
        self,
        name: bytes,
        network: Network,
        core: ReceiptCore,
        request: AuditRequest,
        run: dict[str, Any],
        worker: WorkerClient,
    ) -> dict[str, Any]:
        await self._forget(name)  # parts that a process left when it died
        question = {"run": run, "beacon": b64u_encode(request.beacon), "layers": request.layers}
        hashes: list[bytes] = []
        size, rest = 0, bytearray()

        async def keep(data: bytes) -> None:
            async with self._store.transaction() as db:
                await db.execute(
                    "INSERT INTO audit_part (audit, index, data) VALUES ($1, $2, $3)", name, len(hashes), data
                )
            hashes.append(chunk_hash(data))

        async with contextlib.aclosing(worker.audit(question, most=self._most)) as pieces:
            async for piece in pieces:
                size += len(piece)
                rest += piece
                while len(rest) >= CHUNK_BYTES:
                    await keep(bytes(rest[:CHUNK_BYTES]))
                    del rest[:CHUNK_BYTES]
        if rest:
            await keep(bytes(rest))
        opening = AuditOpening(
            network=network.name,
            operator=self._identity.node_id,
            audit=name,
            claim=hash_of(core),
            size=size,
            chunks_root=chunks_root(hashes),
        )
        signed = sign(self._identity.signer_key, opening).to_json()
        async with self._store.transaction() as db:
            await db.execute(
                "INSERT INTO audit (audit, opening, hashes) VALUES ($1, $2, $3)",
                name,
                to_text(signed),
                hashes,
            )
        log.info("audit.made", name=b64u_encode(name), bytes=size)
        return {"opening": signed, "hashes": [b64u_encode(each) for each in hashes]}

    # --- what is kept

    async def _stored(self, name: bytes) -> dict[str, Any] | None:
        async with self._store.transaction() as db:
            row = await db.fetchrow("SELECT opening, hashes FROM audit WHERE audit = $1", name)
        if row is None:
            return None
        return {
            "opening": from_text(row["opening"]),
            "hashes": [b64u_encode(each) for each in row["hashes"]],
        }

    async def _part(self, name: bytes, index: int) -> bytes:
        async with self._store.transaction() as db:
            data: bytes | None = await db.fetchval(
                "SELECT data FROM audit_part WHERE audit = $1 AND index = $2", name, index
            )
        if data is None:
            raise VerificationError("audit.no_chunk", "the dispatcher asks for a chunk that there is not")
        return data

    async def _forget(self, name: bytes) -> None:
        async with self._store.transaction() as db:
            await db.execute("DELETE FROM audit WHERE audit = $1", name)
            await db.execute("DELETE FROM audit_part WHERE audit = $1", name)

    async def _forget_all_but(self, names: list[bytes]) -> None:
        async with self._store.transaction() as db:
            await db.execute("DELETE FROM audit WHERE NOT audit = ANY($1)", names)
            await db.execute("DELETE FROM audit_part WHERE NOT audit = ANY($1)", names)
