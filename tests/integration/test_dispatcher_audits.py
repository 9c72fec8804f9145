"""Audits over the network, on a real PostgreSQL (docs/spec/14-audit.md, "Over the network"): who may ask, what an operator sends in
chunks across a dispatcher's death, and every bundle, request and report that is refused by name."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from dispute_real import Job, RealRun, honest_run
from fastapi import FastAPI
from peers import engine_case
from peers.engine_case import NETWORK, EngineCase, secret
from peers.hub_peer import OperatorPeer, Result

from aos.core.dispute import audit_order
from aos.core.dispute.audit import AuditBundle, AuditRequest
from aos.core.dispute.audit_order import (
    AuditAsked,
    AuditFound,
    AuditOpening,
    AuditOrder,
    check_opening,
    check_order,
    chunk_hash,
    chunk_sizes,
    chunks_root,
)
from aos.core.dispute.court import Read
from aos.core.encoding import b64u_decode, b64u_encode, canonical_json
from aos.core.signing import address_of
from aos.core.statements import ReceiptCore, Signed, hash_of, read_signed, sign
from aos.core.vrf import ecvrf_public_key
from aos.dispatcher import audits, refusals, routes_audits
from aos.dispatcher.audits import Audits
from aos.engine.audit import make_bundle

AUDITOR, OTHER = secret("auditor"), secret("somebody else")
CHUNK = 1024
DISPUTES = {"audits_per_claim": 3, "audit_ms": 600_000}


@dataclass
class Held:
    """A dispatcher with one finished job, and its operator's real run."""

    case: EngineCase
    run: RealRun
    operator: OperatorPeer
    core: ReceiptCore
    time_ms: int = 0

    def start(self) -> None:
        """A process's worth of the audits and their routes."""
        self.time_ms = self.time_ms or time.time_ns() // 1_000_000
        self.audits = Audits(
            self.case.dispatcher.pool,
            self.case.config,
            self.case.hub,  # type: ignore[arg-type]
            arithmetic=None,  # type: ignore[arg-type]
            check_tables=lambda data, manifest: None,
            now_ms=lambda: self.time_ms,
            changed=lambda: None,
            told=lambda event: None,
        )
        app = FastAPI()
        app.include_router(routes_audits.router)
        refusals.install(app, refused=lambda code: None)
        app.state.audits = app.state.disputes = self.audits
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://dispatcher")

    def asked(self, **changes: Any) -> AuditAsked:
        members: dict[str, Any] = {
            "network": NETWORK,
            "dispatcher": self.case.config.keys.address,
            "auditor": address_of(AUDITOR),
            "claim": hash_of(self.core),
            "layers": 1,
            "nonce": secret("nonce"),
            "time": self.time_ms,
        }
        return AuditAsked(**(members | changes))

    async def call(
        self,
        method: str,
        path: str,
        *,
        value: Any = None,
        data: bytes = b"",
        token: bool = False,
        key: bytes | None = None,
    ) -> httpx.Response:
        headers = {}
        if token:
            headers["authorization"] = f"Bearer {self.case.founded.token}"
        if key is not None:
            question = Read(
                network=NETWORK,
                dispatcher=self.case.config.keys.address,
                reader=address_of(key),
                subject=b64u_decode(path.split("/")[1], length=32),
                time=self.time_ms,
            )
            headers["x-aos-reader"] = b64u_encode(canonical_json(sign(key, question).to_json()))
        content = data if value is None else json.dumps(value).encode()
        return await self.http.request(method, "/v1/aos/audits" + path, content=content, headers=headers)

    async def ask(self, *, key: bytes = AUDITOR, token: bool = True, **changes: Any) -> httpx.Response:
        signed = sign(key, self.asked(**changes))
        return await self.call("POST", "", value=signed.to_json(), token=token)

    async def ordered(self, **changes: Any) -> tuple[str, AuditRequest, Signed[AuditOrder]]:
        answer = await self.ask(**changes)
        assert answer.status_code == 200, answer.text
        public = answer.json()
        order = read_signed(AuditOrder, public["order"])
        request = check_order(
            read_signed(AuditAsked, public["request"]),
            order,
            self.core,
            vrf_key=ecvrf_public_key(secret("vrf.key")),
            dispatcher=self.case.config.keys.address,
        )
        assert b64u_encode(request.beacon) == public["beacon"]
        return public["audit"], request, order

    def bundle(self, request: AuditRequest) -> bytes:
        model = self.run.model
        return make_bundle(self.run.known, model.engine, model.weights.tensor_leaves, request)

    def opened(
        self, name: str, data: bytes, *, key: bytes | None = None, **changes: Any
    ) -> tuple[dict[str, Any], list[bytes]]:
        hashes, at = [], 0
        for size in chunk_sizes(len(data)):
            hashes.append(chunk_hash(data[at : at + size]))
            at += size
        members: dict[str, Any] = {
            "network": NETWORK,
            "operator": self.operator.node_id,
            "audit": b64u_decode(name),
            "claim": hash_of(self.core),
            "size": len(data),
            "chunks_root": chunks_root(hashes),
        }
        signed = sign(key or self.operator.signer, AuditOpening(**(members | changes)))
        body = {"opening": signed.to_json(), "hashes": [b64u_encode(each) for each in hashes]}
        return body, [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]

    async def answer(self, name: str, data: bytes) -> httpx.Response:
        body, chunks = self.opened(name, data)
        last = await self.call("PUT", f"/{name}/opening", value=body)
        for index, chunk in enumerate(chunks):
            last = await self.call("PUT", f"/{name}/chunks/{index}", data=chunk)
        return last

    async def state(self, name: str) -> dict[str, Any]:
        answer = await self.call("GET", f"/{name}")
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture
async def held(tmp_path: Path, pg_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Held]:
    # Small chunks: a tiny model's bundle has several.
    monkeypatch.setattr(audit_order, "CHUNK_BYTES", CHUNK)
    run = honest_run(Job("tiny-q8_0", max_tokens=4))
    model_id = run.model.engine.model_id
    monkeypatch.setattr(engine_case, "MODEL_ID", model_id)
    operator = OperatorPeer("opml-0", model_id=model_id)
    operator.result = Result(state_root=run.known.tree.root)
    case = await EngineCase.open(tmp_path / "dispatcher", pg_url, operator, disputes=DISPUTES)
    job = (await case.submit()).job_id
    assert await case.ended(job) == "single"
    text = await case.dispatcher.pool.fetchval("SELECT core FROM receipt WHERE job_id = $1", job)
    held = Held(case, run, operator, read_signed(ReceiptCore, json.loads(text)).statement)
    held.start()
    yield held
    await case.close()


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json().get("title")) == (status, code), answer.text


async def test_a_bundle_comes_in_chunks_over_a_death_and_is_read_by_its_auditor(held: Held) -> None:
    name, request, order = await held.ordered()
    assert (await held.state(name))["state"] == "waiting"
    (waiting,) = await held.audits.waiting(replace_reader(held.operator.node_id))
    assert waiting["audit"] == name
    data = held.bundle(request)
    body, chunks = held.opened(name, data)
    assert len(chunks) > 3
    first = (await held.call("PUT", f"/{name}/opening", value=body)).json()
    assert first == {"audit": name, "missing": list(range(len(chunks))), "opened": False}
    for index in (1, 0, 1):
        await held.call("PUT", f"/{name}/chunks/{index}", data=chunks[index])
    await held.case.restart()
    held.start()
    again = (await held.call("PUT", f"/{name}/opening", value=body)).json()
    assert again["missing"] == list(range(2, len(chunks)))
    refused(await held.call("GET", f"/{name}/chunks/0", token=True), 409, "audit.no_opening")
    for index in again["missing"]:
        last = await held.call("PUT", f"/{name}/chunks/{index}", data=chunks[index])
    assert last.json() == {"audit": name, "missing": [], "opened": True}
    assert (await held.state(name))["state"] == "opened"
    assert await held.audits.waiting(replace_reader(held.operator.node_id)) == []
    for reader in ({"token": True}, {"key": AUDITOR}, {"key": held.operator.signer}):
        shown = (await held.call("GET", f"/{name}/opening", **reader)).json()
        hashes = [b64u_decode(each) for each in shown["hashes"]]
        check_opening(read_signed(AuditOpening, shown["opening"]), order.statement, hashes, most=len(data))
        parts = [
            (await held.call("GET", f"/{name}/chunks/{index}", **reader)).content
            for index in range(len(hashes))
        ]
        assert b"".join(parts) == data
    AuditBundle.read(b"".join(parts), request, held.core.model_id)
    for reader in ({}, {"key": OTHER}):
        refused(await held.call("GET", f"/{name}/chunks/0", **reader), 403, "dispute.not_entitled")
        refused(await held.call("GET", f"/{name}/opening", **reader), 403, "dispute.not_entitled")
    refused(await held.call("GET", f"/{name}/chunks/{len(chunks)}", token=True), 404, "audit.no_chunk")
    # The whole of it again changes nothing.
    assert (await held.answer(name, data)).json()["opened"]


def replace_reader(address: str) -> Any:
    return audits.Reader(address=address)


async def test_a_report_is_the_auditors_and_about_this_opening(held: Held) -> None:
    name, request, _ = await held.ordered()
    data = held.bundle(request)
    found = AuditFound(
        network=NETWORK,
        auditor=address_of(AUDITOR),
        audit=b64u_decode(name),
        chunks_root=chunks_root([]),
        found="right",
        position=0,
        unit=0,
    )
    path = f"/{name}/report"
    refused(await held.call("PUT", path, value=sign(AUDITOR, found).to_json()), 409, "audit.no_opening")
    await held.answer(name, data)
    refused(await held.call("PUT", path, value=sign(AUDITOR, found).to_json()), 403, "audit.foreign")
    root = b64u_decode((await held.state(name))["opening"]["statement"]["chunks_root"])
    found = replace(found, chunks_root=root)
    refused(await held.call("PUT", path, value=sign(OTHER, found).to_json()), 403, "signature.wrong_signer")
    for _ in range(2):
        answer = await held.call("PUT", path, value=sign(AUDITOR, found).to_json())
        assert answer.json()["state"] == "right"
    other = sign(AUDITOR, replace(found, found="different"))
    refused(await held.call("PUT", path, value=other.to_json()), 409, "audit.reported")
    listed = (await held.call("GET", "")).json()
    assert [each["state"] for each in listed["audits"]] == ["right"]
    assert not {"tokens", "text"} & set(json.dumps(listed).replace('"', " ").split())


async def test_who_is_not_entitled_and_what_is_not_fresh_orders_nothing(held: Held) -> None:
    refused(await held.ask(token=False), 403, "dispute.not_entitled")
    refused(await held.ask(key=OTHER), 403, "signature.wrong_signer")
    refused(await held.ask(network="aos-local-other"), 403, "audit.foreign")
    refused(await held.ask(dispatcher=address_of(OTHER)), 403, "audit.foreign")
    refused(await held.ask(time=held.time_ms - 60_001), 403, "audit.stale")
    refused(await held.ask(time=held.time_ms + 60_001), 403, "audit.stale")
    refused(await held.ask(claim=bytes(32)), 404, "dispute.unknown_claim")
    refused(await held.call("GET", "/" + b64u_encode(bytes(32))), 404, "audit.unknown")
    refused(await held.call("GET", "/nothing"), 404, "audit.unknown")
    assert await held.case.dispatcher.pool.fetchval("SELECT count(*) FROM audit") == 0
    own = await held.ask(key=held.operator.signer, token=False, auditor=held.operator.node_id)
    assert own.status_code == 200
    window = held.case.config.disputes.claim_window_ms
    held.time_ms += window
    refused(await held.ask(nonce=secret("late")), 409, "dispute.window_closed")


async def test_one_audit_of_a_claim_at_a_time_and_no_more_than_allowed(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await held.ask()
    assert (await held.ask()).json()["audit"] == first.json()["audit"]
    refused(await held.ask(nonce=secret("2")), 409, "audit.under_way")
    settings = held.case.config.disputes
    with monkeypatch.context() as patch:
        patch.setattr(settings, "audits_bytes", settings.audit_bytes)
        held.time_ms += DISPUTES["audit_ms"] + 1
        refused(await held.ask(nonce=secret("2"), time=held.time_ms), 429, "audit.full")
    for number in (2, 3):
        assert (await held.ask(nonce=secret(str(number)), time=held.time_ms)).status_code == 200
        held.time_ms += DISPUTES["audit_ms"] + 1
    refused(await held.ask(nonce=secret("4"), time=held.time_ms), 409, "audit.too_many")


async def test_silence_is_defaulted_a_late_answer_cures_it_and_closing_erases(held: Held) -> None:
    name, request, _ = await held.ordered()
    due = (await held.state(name))["due_at"]
    held.time_ms = due
    assert (await held.state(name))["state"] == "waiting"
    held.time_ms = due + 1
    assert (await held.state(name))["state"] == "defaulted"
    assert await held.case.dispatcher.pool.fetchval("SELECT count(*) FROM conviction") == 0
    assert (await held.answer(name, held.bundle(request))).json()["opened"]
    assert (await held.state(name))["state"] == "opened"
    assert await held.audits.erase() == 0
    held.time_ms = (await held.state(name))["closes_at"]
    assert await held.audits.erase() == 1
    refused(await held.call("GET", f"/{name}/chunks/0", token=True), 409, "audit.no_opening")
    assert await held.case.dispatcher.pool.fetchval("SELECT count(*) FROM audit_chunk") == 0
    assert (await held.state(name))["state"] == "opened"
    held.time_ms -= held.case.config.disputes.audit_ms + 1_000
    again, _, _ = await held.ordered(nonce=secret("again"), time=held.time_ms)
    held.time_ms = (await held.state(again))["closes_at"]
    body, _ = held.opened(again, b"whatever")
    refused(await held.call("PUT", f"/{again}/opening", value=body), 409, "audit.closed")


async def test_a_bundle_that_opens_something_else_is_no_answer(held: Held) -> None:
    name, request, _ = await held.ordered()
    good = held.bundle(request)
    for wrong, code in (
        (held.bundle(replace(request, beacon=bytes(32))), "audit.bundle"),
        (good[:-300] + bytes([good[-300] ^ 1]) + good[-299:], "audit.opening"),
        (good[:-1], "audit.bundle"),
        (b"x" * 3000, "audit.bundle"),
    ):
        answer = await held.answer(name, wrong)
        assert answer.json()["title"] == code, answer.text
        public = await held.state(name)
        assert (public["state"], public["refused"], public["opening"]) == ("waiting", code, None)
        assert await held.case.dispatcher.pool.fetchval("SELECT count(*) FROM audit_chunk") == 0
    assert (await held.answer(name, good)).json()["opened"]


async def test_openings_and_chunks_of_others_are_refused_by_name(held: Held) -> None:
    name, request, _ = await held.ordered()
    data = held.bundle(request)
    path = f"/{name}/opening"
    body, chunks = held.opened(name, data)
    refused(await held.call("PUT", f"/{name}/chunks/0", data=chunks[0]), 409, "audit.no_opening")
    for key, changes, code in (
        (OTHER, {}, "signature.wrong_signer"),
        (None, {"audit": bytes(32)}, "audit.foreign"),
        (None, {"claim": bytes(32)}, "audit.foreign"),
        (None, {"network": "aos-local-other"}, "audit.foreign"),
        (None, {"operator": address_of(OTHER)}, "audit.foreign"),
        (None, {"chunks_root": bytes(32)}, "audit.chunks"),
        (None, {"size": len(data) + CHUNK}, "audit.chunks"),
    ):
        forged, _ = held.opened(name, data, key=key, **changes)
        refused(await held.call("PUT", path, value=forged), 403, code)
    refused(
        await held.call("PUT", path, value=held.opened(name, data, size=(256 << 20) + 1)[0]),
        400,
        "audit.too_large",
    )
    refused(await held.call("PUT", path, value=body | {"hashes": body["hashes"][1:]}), 403, "audit.chunks")
    assert (await held.call("PUT", path, value=body)).status_code == 200
    refused(await held.call("PUT", path, value=held.opened(name, data + b"x")[0]), 409, "audit.other_opening")
    refused(await held.call("PUT", f"/{name}/chunks/0", data=chunks[1]), 403, "audit.chunk")
    refused(await held.call("PUT", f"/{name}/chunks/0", data=chunks[0][:-1]), 403, "audit.chunk")
    refused(await held.call("PUT", f"/{name}/chunks/99", data=chunks[0]), 400, "audit.no_chunk")
    refused(await held.call("PUT", f"/{name}/chunks/0", data=bytes(1 << 21)), 413, "encoding.too_large")


async def test_chunks_at_the_same_time_are_checked_once(held: Held) -> None:
    name, request, _ = await held.ordered()
    body, chunks = held.opened(name, held.bundle(request))
    await held.call("PUT", f"/{name}/opening", value=body)
    twice = [*enumerate(chunks), *enumerate(chunks)]
    answers = await asyncio.gather(
        *(held.call("PUT", f"/{name}/chunks/{index}", data=chunk) for index, chunk in twice)
    )
    assert {answer.status_code for answer in answers} == {200}
    assert (await held.state(name))["state"] == "opened"
