"""A dispatcher and the enclaves of its operators: challenges, what is appraised at a boot, and what is not seated without.

The enclaves are SIMULATED; their statements and documents are really signed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey
from peers.engine_case import NETWORK, TEE_MEASUREMENTS, TEE_ROOTS, EngineCase, write_config
from peers.hub_peer import MODEL_ID, PCRS, PLATFORM, OperatorPeer, now_ms, secret

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
from aos.core.trust import TrustedTeeRoot, tee_references
from aos.dispatcher import attestation as attestation_module
from aos.dispatcher.attestation import CHALLENGE_MS, MAX_BOOTS_AN_HOUR, MAX_CHALLENGES
from aos.dispatcher.config import load_config
from aos.dispatcher.limits import DocumentLimits
from aos.dispatcher.refusals import TooMany, refusal
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable, VerificationError

OTHER = sha256(b"something else").digest()
MINE = sha256(b"a requester's nonce").digest()
REFERENCES = tee_references(TEE_ROOTS, TEE_MEASUREMENTS)["simulated"]
ROOTS = [encode(root) for root in TEE_ROOTS]
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


async def refused(cls: type[AOSError], code: str, boot: Awaitable[Any]) -> AOSError:
    with pytest.raises(cls) as caught:
        await boot
    assert caught.value.code == code
    return caught.value


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
    found = (await case.dispatcher.attestation.report(MODEL_ID, MINE)).found
    assert {evidence.boot.operator for evidence in found} == {first.node_id, second.node_id}
    assert all(evidence.boot.nonce != MINE for evidence in found), "the boot was under D's challenge"
    await refused(Unavailable, "attestation.none", case.dispatcher.attestation.report(OTHER, MINE))
    first.connected = second.connected = False
    await refused(Unavailable, "attestation.none", case.dispatcher.attestation.report(MODEL_ID, MINE))


def unaccepted(operator: OperatorPeer) -> Callable[[dict[str, Any]], TeeBootEvidence]:
    """Documents of a boot that is in order and that the dispatcher has never seen: of a challenge that was for another."""
    inner = OperatorPeer(operator.name, job_type="tee")
    assert operator.booted is not None
    boot = operator.booted.boot
    inner.boot({"nonce": encode(OTHER), "policy": encode(boot.policy)}, network=NETWORK)
    return inner.document


async def test_one_operator_cannot_spoil_the_report_of_the_others(
    open_case: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, *bad = (tee(f"tee-{index}") for index in range(6))
    case = await open_case(honest, *bad, deadlines={"draw_ms": 500})
    foreign, own, slow, broken, rude = bad
    foreign.document = honest.document  # type: ignore[method-assign]
    own.document = unaccepted(own)  # type: ignore[method-assign]
    broken.document = lambda _: encode(OTHER)  # type: ignore[method-assign]

    def refuse(_: dict[str, Any]) -> TeeBootEvidence:
        raise RuleViolation("x" * 500, "no")

    rude.document = refuse  # type: ignore[method-assign]
    asked: set[str] = set()
    all_asked, request = asyncio.Event(), case.hub.request

    async def together(node_id: str, method: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.add(node_id)
        if len(asked) == len(case.operators):
            all_asked.set()
        await all_asked.wait()  # nobody answers before everybody was asked
        if node_id == slow.node_id:
            raise TimeoutError
        answer: dict[str, Any] = await request(node_id, method, body)
        return answer

    monkeypatch.setattr(case.hub, "request", together)
    reported = await case.dispatcher.attestation.report(MODEL_ID, MINE)
    assert [evidence.boot.operator for evidence in reported.found] == [honest.node_id]
    assert {one.operator: one.code for one in reported.left_out} == {
        foreign.node_id: "tee.foreign",
        own.node_id: "tee.not_accepted",
        slow.node_id: "attestation.late",
        broken.node_id: "field.type",
        rude.node_id: "attestation.refused",
    }
    assert list(reported.left_out) == sorted(reported.left_out, key=lambda one: one.operator)


async def test_two_operators_with_one_enclaves_key_do_not_spoil_the_report(open_case: Open) -> None:
    honest, *pair = (tee(f"tee-{index}") for index in range(3))
    case = await open_case(honest, *pair)
    key = SigningKey(OTHER)
    for operator in pair:
        assert operator.booted is not None
        mine = replace(
            operator.booted.boot,
            enclave_key=bytes(key.verify_key),
        )
        shared = replace(operator.booted, boot=mine, boot_signature=sign_enclave(key, mine))
        operator.booted = shared
        await case.dispatcher.pool.execute(
            "UPDATE tee_boot SET boot_hash = $2 WHERE node_id = $1", operator.node_id, hash_of(mine)
        )
    reported = await case.dispatcher.attestation.report(MODEL_ID, MINE)
    first, second = sorted(operator.node_id for operator in pair)
    assert {evidence.boot.operator for evidence in reported.found} == {honest.node_id, first}
    assert [(one.operator, one.code) for one in reported.left_out] == [(second, "tee.report_twice")]


async def test_an_operator_that_never_answers_ends_no_report(
    open_case: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = tee()
    case = await open_case(operator)
    monkeypatch.setattr(attestation_module, "DOCUMENT_WITHIN_S", 0.05)
    monkeypatch.setattr(case.hub, "request", lambda *_: asyncio.Event().wait())
    await refused(Unavailable, "attestation.none", case.dispatcher.attestation.report(MODEL_ID, MINE))
    assert case.dispatcher.attestation._reporting == 0


async def test_a_boot_that_is_over_is_in_no_report(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator)
    await case.dispatcher.pool.execute("UPDATE tee_boot SET not_after = 0")
    await refused(Unavailable, "attestation.none", case.dispatcher.attestation.report(MODEL_ID, MINE))


async def test_an_answer_gets_a_document_of_its_own_on_demand(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator)
    job = (await case.submit(case.job(job_type="tee"))).job_id
    assert await case.ended(job) == "single"
    attestation = case.dispatcher.attestation
    evidence = read_evidence(await attestation.answer_evidence(job))
    document = await attestation.answer_document(job, evidence, MINE)
    verify_answer_document(document, evidence=evidence, references=REFERENCES, at_ms=now_ms(), nonce=MINE)
    operator.document = lambda body: replace(  # type: ignore[method-assign]
        evidence.boot_evidence, document=evidence.document
    )
    await refused(VerificationError, "attest.nonce", attestation.answer_document(job, evidence, MINE))
    await refused(RuleViolation, "attestation.no_answer", attestation.answer_evidence("0" * 64))


async def test_documents_about_answers_are_capped_by_job_and_overall(open_case: Open) -> None:
    operator = tee()
    case = await open_case(operator)
    job = (await case.submit(case.job(job_type="tee"))).job_id
    assert await case.ended(job) == "single"
    attestation, moment = case.dispatcher.attestation, [100.0]
    limits = attestation._documents = DocumentLimits(lambda: moment[0])
    evidence = read_evidence(await attestation.answer_evidence(job))
    for _ in range(limits.PER_JOB):
        moment[0] += 1
        await attestation.answer_document(job, evidence, MINE)
    with pytest.raises(TooMany) as caught:
        await attestation.answer_document(job, evidence, MINE)
    assert (caught.value.code, caught.value.retry_after_s) == ("attestation.rate", 55)
    answer = refusal("/v1/aos/attestations/x", caught.value)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "55")
    moment[0] += 55
    await attestation.answer_document(job, evidence, MINE)


def test_the_caps_on_documents_hold_in_every_order() -> None:
    moment = [0.0]
    limits = DocumentLimits(lambda: moment[0])
    with limits.asking("a"), pytest.raises(TooMany, match="already"), limits.asking("a"):
        pass
    with ExitStack() as stack:
        for index in range(limits.OVERALL_AT_ONCE):
            stack.enter_context(limits.asking(f"open {index}"))
        with pytest.raises(TooMany, match="already"), limits.asking("one more"):
            pass
    for index in range(limits.OVERALL - limits.OVERALL_AT_ONCE - 1):
        with limits.asking(f"job {index}"):
            pass
    with pytest.raises(TooMany, match="this dispatcher") as caught, limits.asking("another"):
        pass
    assert caught.value.retry_after_s == 60
    moment[0] = limits.WINDOW_S
    with limits.asking("another"):
        pass
    assert len(limits._asked) == 1, "what is over is forgotten"


# --- weight of a device


def of_one_device(case: EngineCase) -> int:
    """What one operator of the case weighs."""
    return int(case.founded.network["max_range"]) // 24


async def test_a_device_carries_no_more_of_the_range_than_it_may(open_case: Open) -> None:
    first, second, third = tee(), tee("tee-1"), tee("tee-2")
    case = await open_case(first, second, third, max_weight_per_device=125_000)
    pool = case.dispatcher.pool
    assert of_one_device(case) == 41_666
    assert {row["device"] for row in await pool.fetch("SELECT device FROM tee_boot")} == {
        f"simulated {PLATFORM.root.hex()}"
    }
    await case.boot(third)  # anew: it counts once
    case.dispatcher.attestation._config = replace(case.config, max_weight_per_device=124_997)
    error = await refused(VerificationError, "attest.policy_weight", case.boot(third))
    for part in (PLATFORM.root.hex(), "124998", "124997"):
        assert part in error.message
    await pool.execute("UPDATE tee_boot SET not_after = 0 WHERE node_id = $1", first.node_id)
    await case.boot(third)
    await refused(VerificationError, "attest.policy_weight", case.boot(first))


async def test_boots_at_the_same_moment_do_not_pass_the_cap_together(open_case: Open) -> None:
    operators = [tee(f"tee-{index}") for index in range(4)]
    case = await open_case(*operators)
    await case.dispatcher.pool.execute("DELETE FROM tee_boot")
    case.dispatcher.attestation._config = replace(case.config, max_weight_per_device=90_000)
    done = await asyncio.gather(*map(case.boot, operators), return_exceptions=True)
    assert sum(isinstance(one, bytes) for one in done) == 2
    assert {one.code for one in done if isinstance(one, AOSError)} == {"attest.policy_weight"}


async def test_two_devices_carry_what_each_may(open_case: Open) -> None:
    operators = [tee(f"tee-{index}") for index in range(2)]
    roots = [*ROOTS, encode(TrustedTeeRoot(tee="simulated", root=OTHER_PLATFORM.root))]
    case = await open_case(*operators, tee_roots=roots)
    await case.dispatcher.pool.execute("DELETE FROM tee_boot")
    case.dispatcher.attestation._config = replace(case.config, max_weight_per_device=41_666)
    await case.boot(operators[0])
    await refused(VerificationError, "attest.policy_weight", case.boot(operators[1]))
    await case.boot(operators[1], platform=OTHER_PLATFORM)


async def test_a_cap_that_was_lowered_keeps_the_later_ones_out_of_draws(open_case: Open) -> None:
    first, second = tee(), tee("tee-1")
    case = await open_case(first, second, deadlines={"draw_ms": 500})
    case.config = replace(case.config, max_weight_per_device=50_000)
    await case.restart()
    job = (await case.submit(case.job(job_type="tee"))).job_id
    assert await case.ended(job) == "single"
    assert ("vrf_claim", "tee.no_boot") in second.refusals
    assert (first.count("dispatch_job"), second.count("dispatch_job")) == (1, 0)
    assert [e.boot.operator for e in (await case.dispatcher.attestation.report(MODEL_ID, MINE)).found] == [
        first.node_id
    ]
    await case.rechecked_draws(job)


def test_a_cap_has_a_default_and_is_positive(tmp_path: Path) -> None:
    url = "postgresql://nobody@127.0.0.1/none"
    assert load_config(write_config(tmp_path, url), environment={}).max_weight_per_device == 250_000
    for wrong in (0, -1, "all"):
        with pytest.raises(ConfigError):
            load_config(write_config(tmp_path, url, max_weight_per_device=wrong), environment={})


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
