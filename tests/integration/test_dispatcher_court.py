"""A dispatcher whose network has a court on a chain: opML results come with their operator's claim there, or not at all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peers.engine_case import EngineCase
from peers.hub_peer import OperatorPeer, now_ms

from aos.adapters.chain.journal import Journal
from aos.adapters.chain.node import ChainNode
from aos.adapters.chain.registry import OperatorContract
from aos.core.codec import decode, encode
from aos.core.dispute.chain_claim import (
    ChainClaim,
    CourtDomain,
    check_claim,
    claim_hash,
    parse_claim,
    sign_claim,
)
from aos.core.dispute.fine.referee import Canonical
from aos.core.encoding import b64u_decode
from aos.core.statements import ReceiptCore
from aos.dispatcher.chain import DispatcherChain
from aos.dispatcher.config import Chain
from aos.dispatcher.disputes import Disputes
from aos.dispatcher.disputes_claims import Reader
from aos.dispatcher.refusals import NotFound
from aos.engine.around import check_with_tokenizer, read_tables

COURT = CourtDomain(chain_id=31337, court="0x" + "c0" * 20)
Open = Callable[..., Any]


@pytest.fixture
async def open_case(tmp_path: Path, pg_url: str) -> AsyncIterator[Open]:
    """``open_case(*operators, court=…)``. The registry is the dispatcher's own: only reveals know of the court."""
    cases: list[EngineCase] = []

    async def open_(*operators: OperatorPeer, court: bool = True) -> EngineCase:
        case = await EngineCase.open(
            tmp_path / "dispatcher", pg_url, *operators, deadlines={"reveal_ms": 1_000}
        )
        cases.append(case)
        chain = Chain(rpc_url="http://127.0.0.1:1", chain_id=31337, court="0x" + "C0" * 20, claim_hours=100)
        messages = case.dispatcher.messages
        messages._config = replace(case.config, chain=chain if court else None)
        return case

    yield open_
    for case in cases:
        await case.close()


def opml(count: int) -> list[OperatorPeer]:
    operators = [OperatorPeer(f"opml-{n}") for n in range(count)]
    for operator in operators:
        operator.court = COURT
    return operators


def disputes_of(case: EngineCase, *, later_ms: int = 0) -> Disputes:
    return Disputes(
        case.dispatcher.pool,
        case.config,
        case.hub,
        arithmetic=Canonical(check_with_tokenizer),
        check_tables=read_tables,
        now_ms=lambda: now_ms() + later_ms,
        changed=lambda: None,
        told=lambda _: None,
    )


async def served(case: EngineCase, receipt: str) -> bytes:
    return await disputes_of(case).chain_claim(b64u_decode(receipt, length=32))


async def test_claims_are_checked_stored_and_served_to_everybody(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators)
    job = (await case.submit()).job_id
    assert await case.ended(job) == "agreed"
    rows = await case.dispatcher.pool.fetch("SELECT receipt_id, core FROM receipt")
    assert len(rows) == 2
    for row in rows:
        core = decode(ReceiptCore, json.loads(row["core"])["statement"])
        claim = parse_claim(await served(case, row["receipt_id"]))
        check_claim(claim, core, COURT, valid_until=0)
        name = await case.dispatcher.pool.fetchval(
            "SELECT claim FROM chain_claim WHERE receipt_id = $1", row["receipt_id"]
        )
        assert name == claim_hash(claim.claim)
    with pytest.raises(NotFound):
        await served(case, "A" * 43)


def changed(**changes: Any) -> Callable[[OperatorPeer, dict[str, Any]], Any]:
    """A claim that its operator signed as it is, and that says something else than the receipt."""

    def claim(operator: OperatorPeer, body: dict[str, Any]) -> Any:
        return operator.chain_claim(decode(ReceiptCore, body["receipt"]), **changes)

    return claim


def of_another_court(operator: OperatorPeer, body: dict[str, Any]) -> Any:
    claim = decode(ChainClaim, body["chain_claim"]["claim"])
    return encode(sign_claim(operator.signer, claim, replace(COURT, court="0x" + "c1" * 20)))


def of_another_operator(operator: OperatorPeer, body: dict[str, Any]) -> Any:
    other = OperatorPeer("other")
    claim = replace(decode(ChainClaim, body["chain_claim"]["claim"]), claimant=other.node_id)
    return encode(sign_claim(other.signer, claim, COURT))


def with_another_signature(operator: OperatorPeer, body: dict[str, Any]) -> Any:
    return body["chain_claim"] | {"signature": of_another_court(operator, body)["signature"]}


LIES: tuple[tuple[Callable[[OperatorPeer, dict[str, Any]], Any], str], ...] = (
    (lambda *_: None, "chain_claim.missing"),
    (changed(receipt=bytes(32)), "chain_claim.receipt"),
    (changed(state_root=bytes(32)), "chain_claim.state_root"),
    (changed(model_id=bytes(32)), "chain_claim.model"),
    (changed(expires=1_700_000_000), "chain_claim.expires"),
    (of_another_court, "chain_claim.court"),
    (of_another_operator, "chain_claim.claimant"),
    (with_another_signature, "signature.wrong_signer"),
    (lambda _, body: body["chain_claim"] | {"more": 1}, "field.unknown"),
    (lambda *_: "claim", "field.type"),
)


async def test_a_result_without_its_claim_is_refused_by_name_and_counts_for_nothing(open_case: Open) -> None:
    operators = opml(2)
    liar, honest = operators
    case = await open_case(*operators)
    told: dict[str, int] = {}

    def lied(body: dict[str, Any]) -> dict[str, Any]:
        lie, _ = LIES[told.setdefault(body["receipt"]["job_ref"], len(told))]
        return body | {"chain_claim": lie(liar, body)}

    liar.edit["job_result"] = lied
    jobs = [(await case.submit(case.job(user=f"user {number}"))).job_id for number in range(len(LIES))]
    for job in jobs:
        assert await case.ended(job) == "single"
        rows = await case.dispatcher.jobs.result_rows(job, token=None)
        assert [row["operator"] for row in rows] == [honest.node_id]
    refused = {code for method, code in liar.refusals if method == "job_result"}
    assert refused == {code for _, code in LIES}
    assert await case.dispatcher.pool.fetchval("SELECT count(*) FROM chain_claim") == len(LIES)


async def test_where_no_court_is_named_no_claim_is_taken(open_case: Open) -> None:
    operators = opml(2)
    operators[1].court = None
    case = await open_case(*operators, court=False)
    job = (await case.submit()).job_id
    assert await case.ended(job) == "single"
    assert ("job_result", "chain_claim.unwanted") in operators[0].refusals
    (row,) = await case.dispatcher.pool.fetch("SELECT receipt_id FROM receipt")
    with pytest.raises(NotFound) as refusal:
        await served(case, row["receipt_id"])
    assert refusal.value.code == "chain_claim.none"


async def test_the_same_reveal_again_changes_nothing(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators)
    bodies: list[dict[str, Any]] = []
    operators[0].edit["job_result"] = lambda body: bodies.append(body) or body  # type: ignore[func-returns-value]
    job = (await case.submit()).job_id
    assert await case.ended(job) == "agreed"
    before = await case.dispatcher.pool.fetch("SELECT * FROM chain_claim ORDER BY claim")
    later = operators[0].chain_claim(decode(ReceiptCore, bodies[0]["receipt"]), expires=2**40)
    for claim in (bodies[0]["chain_claim"], later):
        answer = await case.dispatcher.messages.handle(
            operators[0].node_id, "job_result", bodies[0] | {"chain_claim": claim}
        )
        assert set(answer) == {"receipt"}
    assert await case.dispatcher.pool.fetch("SELECT * FROM chain_claim ORDER BY claim") == before


async def test_leaves_can_be_asked_for_as_long_as_the_court_hears_challenges(open_case: Open) -> None:
    operators = opml(2)
    case = await open_case(*operators)
    job = (await case.submit()).job_id
    assert await case.ended(job) == "agreed"
    (first, second) = await case.dispatcher.pool.fetch("SELECT receipt_id, node_id FROM receipt")
    project = Reader(token=case.founded.token)
    for receipt, later_ms, wanted in ((first, 399_000_000, True), (second, 401_000_000, False)):
        disputes = disputes_of(case, later_ms=later_ms)
        name = b64u_decode(receipt["receipt_id"], length=32)
        assert (await disputes.describe_claim(name, project))["closes_at"] < now_ms() + later_ms
        waiting = await disputes.waiting(Reader(address=receipt["node_id"]))
        assert [each["claim"] for each in waiting["serve"]] == [receipt["receipt_id"]] * wanted


async def test_the_network_file_names_the_court_and_how_long_claims_are_good() -> None:
    chain = Chain(
        rpc_url="http://127.0.0.1:1",
        chain_id=31337,
        operator_registry="0x" + "11" * 20,
        court="0x" + "C0" * 20,
        claim_hours=100,
    )
    node = ChainNode(chain.rpc_url, chain_id=chain.chain_id)
    pool: Any = None  # nothing is read
    operators = OperatorContract(node, pool, chain.operator_registry)
    journal = Journal(pool, node, bytes([1]) * 32)
    facts = DispatcherChain(node, operators, journal, settings=chain).facts()
    await node.close()
    registry = {"chain_id": 31337, "operator_registry": "0x" + "11" * 20}
    assert facts == registry | {"court": COURT.court, "claim_s": 360_000}
    assert chain.model_copy(update={"court": ""}).domain is None


async def test_a_tee_result_has_no_claim(open_case: Open) -> None:
    tee = OperatorPeer("tee-0", job_type="tee")
    case = await open_case(*opml(1), tee)
    job = (await case.submit(case.job(job_type="tee"))).job_id
    assert await case.ended(job) == "single"
    assert await case.dispatcher.pool.fetchval("SELECT count(*) FROM chain_claim") == 0
