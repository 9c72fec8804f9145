"""A dispatcher and the enclaves of its operators: challenges, what is appraised at a boot, and what is not seated without.

The enclaves are SIMULATED; their statements and documents are really signed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey
from peers.engine_case import NETWORK, TEE_MEASUREMENTS, TEE_ROOTS, EngineCase, write_config
from peers.hub_peer import MODEL_ID, PCRS, OperatorPeer, now_ms, secret

from aos.adapters.simulated_nsm import SimulatedPlatform
from aos.core.attest.result import AWS_NITRO
from aos.core.codec import encode
from aos.core.encoding import b64u_decode
from aos.core.statements import hash_of
from aos.core.tee import (
    TeeBootEvidence,
    policy_digest,
    read_evidence,
    sign_enclave,
    verify_answer_document,
)
from aos.core.trust import tee_references
from aos.dispatcher.attestation import CHALLENGE_MS, MAX_BOOTS_AN_HOUR, MAX_CHALLENGES
from aos.dispatcher.config import load_config
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable, VerificationError

OTHER = sha256(b"something else").digest()
MINE = sha256(b"a requester's nonce").digest()
REFERENCES = tee_references(TEE_ROOTS, TEE_MEASUREMENTS)["simulated"]
Open = Callable[..., Awaitable[EngineCase]]


@pytest.fixture
async def open_case(new_database: Callable[[], str], tmp_path: Path) -> AsyncIterator[Open]:
    opened: list[EngineCase] = []

    async def open_one(*operators: OperatorPeer, **changes: Any) -> EngineCase:
        case = await EngineCase.open(tmp_path / f"case-{len(opened)}", new_database(), *operators, **changes)
        opened.append(case)
        return case

    yield open_one
    for case in opened:
        await case.close()


def tee(name: str = "tee-0") -> OperatorPeer:
    return OperatorPeer(name, job_type="tee")


async def refused(cls: type[AOSError], code: str, boot: Awaitable[Any]) -> None:
    with pytest.raises(cls) as caught:
        await boot
    assert caught.value.code == code


async def booted(case: EngineCase) -> int:
    return int(await case.dispatcher.pool.fetchval("SELECT count(*) FROM tee_boot"))


async def test_a_boot_under_a_challenge_is_accepted_and_kept_with_its_evidence(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator)
    digest = await case.boot(operator)
    assert operator.booted is not None
    assert digest == hash_of(operator.booted.boot)
    assert operator.booted.boot.policy == policy_digest({"simulated": REFERENCES})
    assert await case.dispatcher.attestation.boot_evidence(digest) == operator.booted
    assert await booted(case) == 2, "the one before, which a run may still need, is kept too"


async def test_a_challenge_is_for_one_boot_of_one_operator_and_not_for_long(open_case: Open) -> None:
    first, second = tee(), tee("tee-1")
    case = await open_case(first, second)
    handle, attestation = case.dispatcher.messages.handle, case.dispatcher.attestation
    challenge = await handle(first.node_id, "tee_challenge", {})
    evidence = encode(first.boot(challenge, network=NETWORK))
    await handle(first.node_id, "tee_boot", evidence)
    await refused(RuleViolation, "tee.challenge", handle(first.node_id, "tee_boot", evidence))
    theirs = await handle(second.node_id, "tee_challenge", {})
    stolen = first.boot(theirs, network=NETWORK)
    await refused(RuleViolation, "tee.challenge", handle(first.node_id, "tee_boot", encode(stolen)))
    own = first.boot({"nonce": "A" * 43, "policy": theirs["policy"]}, network=NETWORK)
    await refused(RuleViolation, "tee.challenge", handle(first.node_id, "tee_boot", encode(own)))
    late = await handle(first.node_id, "tee_challenge", {})
    evidence = encode(first.boot(late, network=NETWORK))
    attestation._wall_ms = lambda: now_ms() + CHALLENGE_MS + 1_000
    await refused(RuleViolation, "tee.challenge", handle(first.node_id, "tee_boot", evidence))


async def test_an_operator_cannot_fill_the_table_with_boots(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator)
    await case.dispatcher.pool.execute(
        """INSERT INTO tee_boot (boot_hash, node_id, model_id, evidence, not_after)
           SELECT sha256(i::text::bytea), $1, $2, '', 0 FROM generate_series(1, $3) i""",
        operator.node_id,
        MODEL_ID,
        MAX_BOOTS_AN_HOUR - 1,
    )
    await refused(RuleViolation, "tee.too_many_boots", case.boot(operator))
    await case.dispatcher.pool.execute(
        "UPDATE tee_boot SET accepted_at = accepted_at - interval '2 hours' WHERE not_after = 0"
    )
    await case.boot(operator)


async def test_open_challenges_are_few(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator)
    handle = case.dispatcher.messages.handle
    challenges = [await handle(operator.node_id, "tee_challenge", {}) for _ in range(MAX_CHALLENGES + 1)]
    assert len({challenge["nonce"] for challenge in challenges}) == MAX_CHALLENGES + 1
    oldest = encode(operator.boot(challenges[0], network=NETWORK))
    await refused(RuleViolation, "tee.challenge", handle(operator.node_id, "tee_boot", oldest))
    newest = encode(operator.boot(challenges[-1], network=NETWORK))
    await handle(operator.node_id, "tee_boot", newest)


OTHER_PLATFORM = SimulatedPlatform(secret("a platform of the operator's own"))


def lies() -> list[tuple[dict[str, Any], str]]:
    """What a boot statement says, or the platform does, and how it is refused."""
    now = now_ms()
    return [
        ({"operator": "0x" + "22" * 20}, "tee.foreign"),
        ({"network": "aos-other"}, "tee.foreign"),
        ({"policy": OTHER}, "tee.foreign"),
        ({"vrf_key": OTHER}, "tee.vrf_key"),
        ({"model_id": OTHER}, "tee.model"),
        ({"tee": "nitro"}, "tee.policy"),
        ({"not_after": now + 86_400_000}, "tee.lifetime"),
        ({"booted_at": now - 3_600_000, "not_after": now}, "tee.clock"),
        ({"enclave_key": OTHER}, "tee.boot_signature"),
        ({"platform": OTHER_PLATFORM}, "attest.root"),
        ({"pcrs": dict.fromkeys(range(3), bytes(48))}, "attest.debug"),
        ({"pcrs": {0: PCRS[0], 1: PCRS[1], 2: PCRS[0]}}, "tee.measurement"),
        ({"clock": lambda: now_ms() - 360_000}, "attest.stale"),
        ({"clock": lambda: now_ms() + 120_000}, "attest.future"),
    ]


async def test_a_boot_that_is_not_what_it_must_be_gives_no_seat(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator)
    for changes, code in lies():
        await refused(VerificationError, code, case.boot(operator, **changes))
    assert await booted(case) == 1


def with_document(document: Callable[[bytes], bytes]) -> Callable[[TeeBootEvidence], TeeBootEvidence]:
    return lambda evidence: replace(evidence, document=document(evidence.document))


def with_another_key(evidence: TeeBootEvidence) -> TeeBootEvidence:
    key = SigningKey(OTHER)
    mine = replace(evidence.boot, enclave_key=bytes(key.verify_key))
    return replace(evidence, boot=mine, boot_signature=sign_enclave(key, mine))


EDITS: list[tuple[Callable[[TeeBootEvidence], TeeBootEvidence], str]] = [
    (with_document(lambda d: d[:-96] + bytes(96)), "attest.signature"),  # QEMU's
    (with_document(lambda d: d[:-1]), "attest.envelope"),
    (with_document(lambda d: d + b"\0"), "attest.envelope"),
    (lambda e: replace(e, boot_signature=bytes(64)), "tee.boot_signature"),
    (with_another_key, "tee.boot_not_bound"),
]


async def test_evidence_that_was_changed_is_refused(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator)
    for edit, code in EDITS:
        await refused(VerificationError, code, case.boot(operator, edit=edit))
    assert await booted(case) == 1


async def test_a_genuine_document_of_aws_under_a_simulation_only_trust_is_refused(open_case: Open) -> None:
    vectors = Path(__file__).parents[2] / "vectors/external/attestation/nitro"
    operator = tee()
    case = await open_case(operator)
    genuine = (vectors / "og_2026-02-12_indef.cbor").read_bytes()
    await refused(
        VerificationError, "attest.root", case.boot(operator, edit=with_document(lambda _: genuine))
    )


async def test_a_boot_message_is_read_strictly(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator)
    for body in ({}, {"boot": {}}, [], None, {"nonce": "A"}):
        for method in ("tee_boot", "tee_challenge"):
            if (method, body) == ("tee_challenge", {}):
                continue
            with pytest.raises(InvalidMessage):
                await case.dispatcher.messages.handle(operator.node_id, method, body)


async def test_without_an_accepted_boot_there_is_no_seat(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator, deadlines={"draw_ms": 300})
    await case.dispatcher.pool.execute("DELETE FROM tee_boot")
    job = (await case.submit(case.job(job_type="tee"))).job_id
    await asyncio.sleep(0.5)
    assert await case.state(job) == "created"
    assert operator.count("draw_call") == 0, "who has no accepted enclave is not drawn"
    await case.boot(operator)
    assert await case.ended(job) == "single"


async def test_a_claim_without_an_accepted_boot_is_refused(open_case: Open) -> None:
    good, bad = tee(), tee("tee-1")
    case = await open_case(good, bad, deadlines={"draw_ms": 500})
    await case.dispatcher.pool.execute("DELETE FROM tee_boot WHERE node_id = $1", bad.node_id)
    job = (await case.submit(case.job(job_type="tee"))).job_id
    assert await case.ended(job) == "single"
    assert ("vrf_claim", "tee.no_boot") in bad.refusals
    assert good.count("dispatch_job") == 1
    assert bad.count("dispatch_job") == 0


async def test_an_answer_of_a_boot_that_came_after_the_commit_is_refused(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator, deadlines={"reveal_ms": 1_000})
    operator.silent.add("commit_set")
    job = (await case.submit(case.job(job_type="tee"))).job_id
    await case.until("SELECT state = 'committed' FROM run WHERE job_id = $1", job)
    await case.dispatcher.pool.execute("UPDATE tee_boot SET accepted_at = accepted_at + interval '1 hour'")
    operator.silent.clear()
    await case.restart()
    await case.until("SELECT state <> 'committed' FROM run WHERE job_id = $1 AND ($2 OR true)", job, True)
    assert ("job_result", "reveal.tee_boot") in operator.refusals


async def test_an_enclave_is_refused_where_the_dispatcher_accepts_none(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator, accept_tee=[], tee_roots=[], tee_measurements=[])
    await refused(VerificationError, "tee.policy", case.boot(operator))


# --- what a requester gets


async def test_a_report_holds_a_document_over_the_askers_nonce(open_case: Open) -> None:
    first, second, absent = tee(), tee("tee-1"), tee("tee-2")
    case = await open_case(first, second, absent)
    absent.connected = False
    found = await case.dispatcher.attestation.report(MODEL_ID, MINE)
    assert {evidence.boot.operator for evidence in found} == {first.node_id, second.node_id}
    assert all(evidence.boot.nonce != MINE for evidence in found), "the boot was under D's challenge"
    await refused(Unavailable, "attestation.none", case.dispatcher.attestation.report(OTHER, MINE))
    first.connected = second.connected = False
    await refused(Unavailable, "attestation.none", case.dispatcher.attestation.report(MODEL_ID, MINE))


async def test_an_operator_that_gives_a_foreign_document_is_left_out_of_the_report(open_case: Open) -> None:
    honest, liar = tee(), tee("tee-1")
    case = await open_case(honest, liar)
    liar.document = honest.document  # type: ignore[method-assign]
    found = await case.dispatcher.attestation.report(MODEL_ID, MINE)
    assert [evidence.boot.operator for evidence in found] == [honest.node_id]


async def test_an_answer_gets_a_document_of_its_own_on_demand(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator)
    job = (await case.submit(case.job(job_type="tee"))).job_id
    assert await case.ended(job) == "single"
    attestation = case.dispatcher.attestation
    evidence = read_evidence(await attestation.answer_evidence(job))
    document = await attestation.answer_document(evidence, MINE)
    verify_answer_document(document, evidence=evidence, references=REFERENCES, at_ms=now_ms(), nonce=MINE)
    operator.document = lambda body: replace(  # type: ignore[method-assign]
        evidence.boot_evidence, document=evidence.document
    )
    await refused(VerificationError, "attest.nonce", attestation.answer_document(evidence, MINE))
    await refused(RuleViolation, "attestation.no_answer", attestation.answer_evidence("0" * 64))


# --- configuration

IMAGE = encode(TEE_MEASUREMENTS[0])
ROOT = encode(TEE_ROOTS[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"tee_measurements": []},
        {"tee_roots": []},
        {"tee_roots": [], "tee_measurements": []},
        {"accept_tee": []},
        {"accept_tee": ["simulated", "nitro"]},
        {"accept_tee": ["tdx"]},
        {"tee_measurements": [{name: value for name, value in IMAGE.items() if name != "pcr2"}]},
        {"tee_measurements": [IMAGE | {"pcr1": "0" * 96}]},
        {"tee_measurements": [IMAGE | {"pcr1": "ab"}]},
        {"tee_measurements": [IMAGE | {"pcr8": "0" * 96}]},
        {"tee_measurements": [IMAGE, IMAGE]},
        {"tee_roots": [ROOT, ROOT]},
        {"tee_roots": [ROOT | {"root": encode(AWS_NITRO.sha256)}]},
        {"tee_roots": [{"tee": "simulated", "key": ROOT["root"]}]},
        {"tee_roots": [ROOT | {"tee": "nitro"}]},
    ],
    ids=json.dumps,
)
def test_an_empty_or_partial_set_of_references_is_an_error(changes: dict[str, Any], tmp_path: Path) -> None:
    path = write_config(tmp_path, "postgresql://nobody@127.0.0.1/none", **changes)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environment={})
    assert caught.value.code == "config.value"


def test_nitro_is_accepted_only_with_images_of_its_own(tmp_path: Path) -> None:
    nitro = IMAGE | {"tee": "nitro"}
    path = write_config(
        tmp_path,
        "postgresql://nobody@127.0.0.1/none",
        tee_roots=[],
        tee_measurements=[nitro],
        accept_tee=["nitro"],
    )
    config = load_config(path, environment={})
    assert [anchor.name for anchor in config.tee_references["nitro"].anchors] == [AWS_NITRO.name]
    assert config.tee_policy == policy_digest(config.tee_references)
    assert b64u_decode(ROOT["root"]) not in {a.sha256 for a in config.tee_references["nitro"].anchors}
