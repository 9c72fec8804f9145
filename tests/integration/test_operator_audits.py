"""An operator that is audited, and what it keeps for disputes (docs/spec/14-audit.md, 13-dispute.md), on a real PostgreSQL: a
bundle is made once, sent across deaths and broken connections, never more than one on disk, and gone when it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from peers.dispatcher_peer import Job
from peers.operator_under_test import OPERATOR, Scene, eventually, running, scene

from aos.core.codec import decode
from aos.core.dispute import audit_order
from aos.core.dispute.audit_order import (
    AuditAsked,
    AuditOpening,
    AuditOrder,
    check_chunk,
    check_opening,
    prove_beacon,
)
from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.signing import address_of
from aos.core.statements import ReceiptCore, hash_of, read_signed, sign
from aos.core.vrf import ecvrf_public_key
from aos.errors import InvalidMessage, Unavailable
from aos.operator import audits
from aos.operator.audits import Audits
from aos.operator.identity import Identity
from aos.operator.network import Network
from aos.operator.store import Store

AUDITOR = bytes(range(1, 33))
CHUNK = 1000
BUNDLE = bytes(range(256)) * 18


class Court:
    """A dispatcher's side of audits: it checks what comes, and loses its connection where it is told to."""

    def __init__(self) -> None:
        self.order: Any = None
        self.opening: Any = None
        self.chunks: dict[int, bytes] = {}
        self.sent = 0
        self.fail_after: int | None = None
        self.refuse: Exception | None = None

    async def send(self, method: str, path: str, value: Any) -> dict[str, Any]:
        self._break()
        assert (method, path.rsplit("/", maxsplit=1)[1]) == ("PUT", "opening")
        opening = read_signed(AuditOpening, value["opening"])
        self.hashes = [b64u_decode(each, length=32) for each in value["hashes"]]
        check_opening(opening, self.order.statement, self.hashes, most=1 << 30)
        assert self.opening in (None, opening)
        self.opening = opening
        missing = sorted(set(range(len(self.hashes))) - set(self.chunks))
        return {"audit": "", "missing": missing, "opened": not missing}

    async def send_bytes(self, path: str, data: bytes) -> dict[str, Any]:
        self._break()
        index = int(path.rsplit("/", maxsplit=1)[1])
        check_chunk(self.opening.statement, self.hashes, index, data)
        self.chunks[index] = data
        self.sent += 1
        return {}

    def _break(self) -> None:
        if self.refuse is not None:
            raise self.refuse
        if self.fail_after is not None:
            if self.fail_after == 0:
                raise Unavailable("dispute.unreachable", "the connection broke")
            self.fail_after -= 1


class Worker:
    """A worker's bundle, in pieces of odd sizes."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.die_at: int | None = None

    async def audit(self, question: dict[str, Any], *, most: int) -> AsyncGenerator[bytes]:
        self.asked.append(question)
        for at in range(0, len(BUNDLE), 777):
            if self.die_at is not None and at >= self.die_at:
                raise Unavailable("worker.died", "the worker went away")
            if at > most:
                raise InvalidMessage("audit.too_large", "too many bytes")
            yield BUNDLE[at : at + 777]


class Audited:
    """One finished job of an operator, and an order to open it."""

    def __init__(self, found: Scene, store: Store, job: Job, core: ReceiptCore) -> None:
        self.store, self.core, self.court, self.worker = store, core, Court(), Worker()
        keys = found.dispatcher.keys
        self.network = Network(
            name=core.network,
            dispatcher=keys.address,
            vrf_key=ecvrf_public_key(keys.vrf_seed),
            genesis=0,
            epoch_ms=1,
            anchor=bytes(32),
            length=1,
            beacon_source="dispatcher",
        )
        asked = AuditAsked(
            network=core.network,
            dispatcher=keys.address,
            auditor=address_of(AUDITOR),
            claim=hash_of(core),
            layers=1,
            nonce=bytes(32),
            time=0,
        )
        order = AuditOrder(
            network=core.network,
            dispatcher=keys.address,
            audit=hash_of(asked),
            claim=hash_of(core),
            operator=core.operator,
            pi=prove_beacon(keys.vrf_seed, asked),
            due_at=1,
        )
        self.court.order = sign(keys.signer, order)
        self.wanted = {
            "audit": b64u_encode(hash_of(asked)),
            "job_ref": b64u_encode(job.job_ref),
            "attempt": 1,
            "request": sign(AUDITOR, asked).to_json(),
            "order": self.court.order.to_json(),
        }

    def operator(self, most: int = 1 << 20) -> Audits:
        """A process's worth of it."""
        identity = Identity(
            node_id=OPERATOR.address,
            signer_key=OPERATOR.signer,
            vrf_seed=OPERATOR.vrf_seed,
            vrf_key=ecvrf_public_key(OPERATOR.vrf_seed),
        )
        return Audits(
            self.store,
            identity,
            court=self.court,  # type: ignore[arg-type]
            network=lambda: self.network,
            worker=lambda model_id: self.worker,  # type: ignore[arg-type,return-value]
            most=most,
        )

    async def held(self) -> tuple[int, int]:
        async with self.store.transaction() as db:
            whole = await db.fetchval("SELECT count(*) FROM audit")
            return whole, await db.fetchval("SELECT count(*) FROM audit_part")


@pytest.fixture
async def audited(
    tmp_path: Path, pg_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Audited]:
    for module in (audit_order, audits):
        monkeypatch.setattr(module, "CHUNK_BYTES", CHUNK)
    async with scene(tmp_path, pg_url, redis_url) as found:
        async with running(found.path):
            await found.ready()
            job = await found.dispatcher.seated()
            await found.dispatcher.commit(job)
            await found.dispatcher.reveal(job)
            await found.job_state(job, "done")
        store = await Store.open(pg_url, min_size=1, max_size=2, connect_timeout_s=5, acquire_timeout_s=5)
        try:
            held = await store.assignment(job.job_ref, 1)
            assert held is not None
            yield Audited(found, store, job, decode(ReceiptCore, held.receipt))
        finally:
            await store.close()


async def answered(operator: Audits, wanted: list[dict[str, Any]]) -> None:
    operator.want(wanted)
    await operator._answer_all()


async def test_a_bundle_is_made_once_and_sent_across_deaths(audited: Audited) -> None:
    wanted = [audited.wanted]
    audited.worker.die_at = 2000
    with pytest.raises(Unavailable):
        await answered(audited.operator(), wanted)
    assert await audited.held() == (0, 0)  # what was no bundle yet is gone
    audited.worker.die_at = None
    for allowed in (0, 2, 0, 3):
        audited.court.fail_after = allowed
        with pytest.raises(Unavailable):
            await answered(audited.operator(), wanted)
        assert await audited.held() == (1, 5)
    audited.court.fail_after = None
    await answered(audited.operator(), wanted)
    assert b"".join(data for _, data in sorted(audited.court.chunks.items())) == BUNDLE
    assert audited.court.sent == 5, "no chunk is sent twice"
    assert len(audited.worker.asked) == 2
    assert await audited.held() == (0, 0)
    expected = audit_order.beacon_of(
        audited.network.vrf_key,
        read_signed(AuditAsked, audited.wanted["request"]).statement,
        audited.court.order.statement.pi,
    )
    assert audited.worker.asked[1]["beacon"] == b64u_encode(expected)


async def test_what_the_dispatcher_no_longer_waits_for_is_forgotten(audited: Audited) -> None:
    audited.court.fail_after = 1
    with pytest.raises(Unavailable):
        await answered(audited.operator(), [audited.wanted])
    assert await audited.held() == (1, 5)
    await answered(audited.operator(), [])
    assert await audited.held() == (0, 0)


async def test_what_is_no_order_is_not_answered_and_holds_nothing(audited: Audited) -> None:
    asked = read_signed(AuditAsked, audited.wanted["request"]).statement
    foreign = {
        "an order of somebody else": {"order": sign(AUDITOR, audited.court.order.statement).to_json()},
        "another's request": {"request": sign(OPERATOR.signer, asked).to_json()},
        "another audit": {"audit": b64u_encode(bytes(32))},
    }
    for name, change in foreign.items():
        await answered(audited.operator(), [audited.wanted | change])
        assert audited.worker.asked == [], name
    audited.court.refuse = InvalidMessage("audit.closed", "too late")
    for made, operator in ((1, audited.operator(most=2000)), (2, audited.operator())):
        for _ in range(2):
            await answered(operator, [audited.wanted])
        assert len(audited.worker.asked) == made, "it is not tried for ever"
        assert await audited.held() == (0, 0)
    assert audited.court.chunks == {}


async def test_what_can_still_be_disputed_is_kept_whatever_is_configured(audited: Audited) -> None:
    store, ref = audited.store, audited.core.job_ref

    async def age(hours: float) -> None:
        async with store.transaction() as db:
            for table, column in (
                ("assignment", "changed_at"),
                ("assignment", "stored_at"),
                ("dispute_move", "stored_at"),
                ("dispute_unit_root", "stored_at"),
            ):
                await db.execute(
                    f"UPDATE {table} SET {column} = {column} - make_interval(secs => $1)",  # noqa: S608
                    hours * 3600,
                )

    async def moves() -> tuple[int, int]:
        async with store.transaction() as db:
            return (
                await db.fetchval("SELECT count(*) FROM dispute_move"),
                await db.fetchval("SELECT count(*) FROM dispute_unit_root"),
            )

    async with store.transaction() as db:
        await db.execute(
            "INSERT INTO dispute_move (game, turn, claim, move) VALUES ($1, 1, $1, '{}')", bytes(32)
        )
        await db.execute(
            "INSERT INTO dispute_unit_root (claim, position, unit, unit_root) VALUES ($1, 0, 1, $1)",
            bytes(32),
        )
    await store.keep_for(2 * 3_600_000)
    await age(1.9)
    assert await store.erase_content(0) == 0
    assert await moves() == (1, 1)
    await age(0.2)
    assert await store.erase_content(5) == 0, "the operator may keep it longer"
    assert await store.erase_content(0) == 1
    held = await store.assignment(ref, 1)
    assert held is not None
    assert (held.request, held.result) == (b"", None)
    await store.erase_content(0)
    assert await moves() == (0, 0), "what was signed about a run goes after the run"
    for wrong in (-1, 91 * 86_400_000):
        with pytest.raises(InvalidMessage) as caught:
            await store.keep_for(wrong)
        assert caught.value.code == "dispute.document"


async def test_the_loop_answers_by_itself(audited: Audited) -> None:
    operator = audited.operator()
    audited.court.fail_after = 2
    loop = asyncio.create_task(operator.run())

    async def broken() -> bool:
        return audited.court.fail_after == 0

    async def done() -> bool:
        return audited.court.sent == 5 and await audited.held() == (0, 0)

    try:
        operator.want([audited.wanted])
        await eventually(broken)
        audited.court.fail_after = None
        await eventually(done)
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
