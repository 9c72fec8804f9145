"""An operator keeps its enclaves booted under the dispatcher's challenges: when it asks, what it accepts, what it tells."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from simulated_run import Network as Run
from simulated_run import secret

from aos.core.codec import encode
from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.statements import hash_of
from aos.core.tee import MAX_LIFETIME_MS, TeeBootEvidence
from aos.errors import AOSError, RuleViolation, Unavailable
from aos.operator import attesting
from aos.operator.attesting import Attesting
from aos.operator.identity import Identity
from aos.operator.worker_client import WorkerStatus

EVIDENCE = Run().run(job_type="tee").evidence
assert EVIDENCE is not None
MODEL = EVIDENCE.boot.model_id
NONCE, POLICY = secret("a challenge"), secret("a policy")
IDENTITY = Identity(
    node_id="0x" + "11" * 20, signer_key=bytes(32), vrf_seed=bytes(32), vrf_key=secret("draw")
)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Worker:
    """A TEE worker at its HTTP border."""

    url: str = "http://worker"
    kind: str = "tee"
    busy: int = 0
    lane: int = 0
    booted: TeeBootEvidence | None = None
    lifetime_ms: int = 3_600_000
    orders: list[dict[str, Any]] = field(default_factory=list)
    refusal: AOSError | None = None

    async def status(self) -> WorkerStatus:
        boot = self.booted.boot if self.booted is not None else None
        return WorkerStatus(
            kind=self.kind,
            model="m",
            model_id=MODEL,
            engine="e",
            capacity=1,
            busy=self.busy,
            boot=b"" if boot is None else hash_of(boot),
            boot_until=0 if boot is None else boot.not_after,
        )

    async def boot(self, order: dict[str, Any]) -> TeeBootEvidence:
        self.orders.append(order)
        if self.refusal is not None:
            raise self.refusal
        assert EVIDENCE is not None
        now = now_ms()
        boot = replace(
            EVIDENCE.boot,
            nonce=b64u_decode(order["nonce"]),
            booted_at=now + len(self.orders),
            not_after=now + self.lifetime_ms,
        )
        self.booted = replace(EVIDENCE.boot_evidence, boot=boot)
        return self.booted

    async def document(self, order: dict[str, Any]) -> TeeBootEvidence:
        if self.refusal is not None:
            raise self.refusal
        assert self.booted is not None
        return self.booted


@dataclass
class Link:
    """A link to a dispatcher that may refuse."""

    closed: bool = False
    refusal: AOSError | None = None
    asked: list[str] = field(default_factory=list)

    async def request(self, method: str, _body: dict[str, Any]) -> dict[str, Any]:
        if self.closed:
            raise Unavailable("link.closed", "closed")
        self.asked.append(method)
        if method == "tee_challenge":
            return {"nonce": b64u_encode(NONCE), "policy": b64u_encode(POLICY)}
        if self.refusal is not None:
            raise self.refusal
        return {"boot": "A" * 43}


NETWORK: Any = type("N", (), {"name": "aos-test"})()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attesting, "LOOK_EVERY_S", 0.002)


async def keeping(parts: Attesting, link: Link, until: Callable[[], bool], *, more_s: float = 0.05) -> None:
    """Run until ``until``, and a moment longer, in which nothing more should happen."""
    task = asyncio.create_task(parts.run(link, NETWORK))  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        while not until():
            assert not task.done(), task
            await asyncio.sleep(0.002)
    await asyncio.sleep(more_s)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def attester(*workers: Worker) -> Attesting:
    return Attesting(list(workers), IDENTITY, now_ms=now_ms)  # type: ignore[arg-type]


async def test_an_enclave_is_booted_once_under_the_dispatchers_challenge() -> None:
    worker, link = Worker(), Link()
    parts = attester(worker)
    assert not parts.accepted(await worker.status())
    assert parts.problem
    await keeping(parts, link, lambda: not parts.problem)
    assert link.asked == ["tee_challenge", "tee_boot"]
    assert worker.orders == [
        {
            "network": "aos-test",
            "operator": IDENTITY.node_id,
            "vrf_key": b64u_encode(IDENTITY.vrf_key),
            "policy": b64u_encode(POLICY),
            "nonce": b64u_encode(NONCE),
        }
    ]
    assert parts.accepted(await worker.status())


async def test_an_enclave_that_started_anew_is_booted_anew() -> None:
    worker, link = Worker(), Link()
    parts = attester(worker)
    await keeping(parts, link, lambda: not parts.problem)
    worker.booted = None
    assert not parts.accepted(await worker.status())
    await keeping(parts, link, lambda: len(worker.orders) == 2)
    assert parts.accepted(await worker.status())


async def test_a_boot_is_renewed_before_its_end_and_not_in_a_run() -> None:
    worker, link = Worker(lifetime_ms=MAX_LIFETIME_MS // 8 - 1, busy=1), Link()
    parts = attester(worker)
    await keeping(parts, link, lambda: not parts.problem)
    assert len(worker.orders) == 1, "while it runs something, its boot stays"
    worker.busy = 0
    await keeping(parts, link, lambda: len(worker.orders) >= 2, more_s=0)


async def test_what_the_dispatcher_refuses_is_not_accepted_and_not_asked_again_at_once() -> None:
    worker = Worker()
    link = Link(refusal=RuleViolation("tee.measurement", "an image that nobody has named"))
    parts = attester(worker)
    await keeping(parts, link, lambda: "tee.measurement" in parts.problem)
    assert not parts.accepted(await worker.status())
    assert not parts.holds(MODEL)
    assert len(worker.orders) == 1


async def test_an_operator_is_ready_for_a_draw_before_the_dispatcher_can_make_one() -> None:
    worker = Worker()
    parts = attester(worker)
    ready: list[bool] = []

    class Drawing(Link):
        async def request(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
            if method == "tee_boot":
                ready.append(parts.holds(MODEL))
            return await super().request(method, body)

    await keeping(parts, Drawing(), lambda: not parts.problem)
    assert ready == [True]
    assert parts.holds(MODEL)
    assert not parts.holds(secret("another model"))


async def test_a_worker_that_is_away_is_asked_again_and_named() -> None:
    worker, link = Worker(refusal=Unavailable("worker.unavailable", "away")), Link()
    parts = attester(worker)
    await keeping(parts, link, lambda: len(worker.orders) >= 3, more_s=0)
    assert "worker.unavailable" in parts.problem
    worker.refusal = None
    await keeping(parts, link, lambda: not parts.problem)


async def test_a_lost_link_ends_it() -> None:
    parts = attester(Worker())
    with pytest.raises(Unavailable) as caught:
        await parts.run(Link(closed=True), NETWORK)  # type: ignore[arg-type]
    assert caught.value.code == "link.closed"


async def test_an_opml_worker_has_nothing_to_attest() -> None:
    worker, link = Worker(kind="opml"), Link()
    await keeping(attester(worker), link, lambda: True)
    assert (worker.orders, link.asked) == ([], [])


async def test_a_document_comes_from_an_accepted_enclave_with_that_model_alone() -> None:
    worker, link = Worker(), Link()
    parts = attester(worker)
    order = {"model_id": b64u_encode(MODEL), "answer": "", "nonce": b64u_encode(secret("mine"))}

    async def refused(code: str, **changes: Any) -> None:
        with pytest.raises(AOSError) as caught:
            await parts.on_document(order | changes)
        assert caught.value.code == code

    await refused("enclave.none")
    await keeping(parts, link, lambda: not parts.problem)
    assert await parts.on_document(order) == encode(worker.booted)
    await refused("enclave.none", model_id=b64u_encode(secret("another model")))
    await refused("field.range", nonce="")
    await refused("field.unknown", more=1)
    worker.refusal = RuleViolation("enclave.unknown_answer", "no such answer")
    await refused("enclave.unknown_answer")
    worker.refusal = None
    assert worker.booted is not None
    worker.booted = replace(worker.booted, boot=replace(worker.booted.boot, nonce=secret("not D's")))
    await refused("enclave.none")
