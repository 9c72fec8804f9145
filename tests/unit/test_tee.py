"""The simulated enclave's statements: what binds them, and that every change to any of them is found.

SIMULATED: no hardware takes part. The statements are made by the enclave's own attester and platform.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256, sha384
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey, VerifyKey

from aos.adapters.enclave_image import engine_digest, measured_manifest, simulated_pcrs
from aos.adapters.nsm import Nsm
from aos.adapters.simulated_nsm import SimulatedNsm, SimulatedPlatform
from aos.core import hashes
from aos.core.attest.result import AWS_NITRO, simulated_anchor
from aos.core.codec import encode
from aos.core.encoding import canonical_json
from aos.core.statements import Params, Request, RequestJob, hash_of
from aos.core.tee import (
    MAX_BOOT_SKEW_MS,
    MAX_LATE_MS,
    MAX_LIFETIME_MS,
    References,
    TeeAnswer,
    TeeEvidence,
    policy_digest,
    public_key_info,
    read_evidence,
    sign_enclave,
    verify_answer_document,
    verify_boot,
    verify_enclave,
    verify_evidence,
)
from aos.errors import AOSError, InvalidMessage, RuleViolation, VerificationError
from aos.workers.enclave.attester import Attester, Loadout
from aos.workers.enclave.messages import Boot
from aos.workers.execution import Answer

NETWORK = "aos-test"
OPERATOR = "0x" + "11" * 20
OTHER_OPERATOR = "0x" + "22" * 20
NOW = 1_780_000_000_000
LIFETIME = 60_000
NONCE = sha256(b"job nonce").digest()
JOB_REF = sha256(b"job").digest()
LOADOUT = Loadout(
    engine="llama.cpp/b1", engine_digest=sha256(b"e").digest(), model_id=sha256(b"model").digest()
)
VRF_KEY = sha256(b"draw key").digest()
POLICY = sha256(b"policy").digest()
PCRS = {index: sha384(f"register {index}".encode()).digest() for index in range(3)}
IMAGE = (PCRS[0], PCRS[1], PCRS[2])
PLATFORM = SimulatedPlatform(sha256(b"test platform").digest())
REFERENCES = References(anchors=(simulated_anchor(PLATFORM.root),), images=frozenset({IMAGE}))
STRANGER = SigningKey(sha256(b"somebody else").digest())


def refused(cls: type[AOSError], code: str, call: Callable[[], Any]) -> AOSError:
    with pytest.raises(cls) as caught:
        call()
    assert caught.value.code == code
    return caught.value


def request(**changes: Any) -> Request:
    job = RequestJob(
        tag="tee",
        prompt="What is AI?",
        model="m.gguf",
        model_id=LOADOUT.model_id,
        params=Params(
            temperature=0,
            top_p=1_000_000,
            top_k=0,
            min_p=0,
            repeat_penalty=1_000_000,
            max_tokens=8,
            stop=(),
            seed=None,
        ),
    )
    asked = Request(
        network=NETWORK,
        dispatcher="0x" + "33" * 20,
        project="p",
        user="u",
        job=job,
        min_operators=1,
        blind=False,
        nonce_source="client",
        issued_at=NOW,
    )
    return replace(asked, **changes)


def answer(text: str = "It computes.") -> Answer:
    return Answer(
        prompt_tokens_hash=hashes.prompt_tokens_hash(NONCE, (1, 2, 3)),
        tokens=(5, 6, 7),
        text=text,
        finish_reason="stop",
        n_prompt=3,
        state_root=b"",
        engine=LOADOUT.engine,
        model_id=LOADOUT.model_id,
        evidence=None,
    )


def module(platform: SimulatedPlatform = PLATFORM, *, now_ms: int = NOW, pcrs: Any = PCRS) -> Nsm:
    return Nsm(SimulatedNsm(platform, pcrs=pcrs, clock=lambda: now_ms))


def boot(
    platform: SimulatedPlatform = PLATFORM, *, now_ms: int = NOW, nonce: bytes = NONCE, **options: Any
) -> Attester:
    asked = Boot(
        id=1,
        network=NETWORK,
        operator=OPERATOR,
        vrf_key=VRF_KEY,
        policy=POLICY,
        nonce=nonce,
        lifetime_ms=LIFETIME,
    )
    return Attester(asked, loadout=LOADOUT, nsm=module(platform, now_ms=now_ms, **options), now_ms=now_ms)


def judge(evidence: TeeEvidence, references: References = REFERENCES, **options: Any) -> TeeAnswer:
    return verify_evidence(evidence, references=references, **({"at_ms": NOW + 2} | options))


def sign_one(attester: Attester, *, text: str = "It computes.", now_ms: int = NOW + 1) -> TeeEvidence:
    asked = request()
    return attester.sign_answer(
        answer(text),
        request=asked,
        request_bytes=canonical_json(encode(asked)),
        nonce=NONCE,
        job_ref=JOB_REF,
        attempt=1,
        sampling_seed="77",
        now_ms=now_ms,
    )


@pytest.fixture(scope="module")
def evidence() -> TeeEvidence:
    return sign_one(boot())


# --- what an honest enclave says ----------------------------------------------------------------------------


def test_honest_evidence_is_believed_and_says_what_was_run(evidence: TeeEvidence) -> None:
    statement = judge(evidence)
    assert statement is evidence.answer
    asked = request()
    assert statement.request_hash == hashes.request_hash(NONCE, canonical_json(encode(asked)))
    assert statement.response_hash == hashes.response_hash(NONCE, "It computes.")
    assert statement.tokens_hash == hashes.tokens_hash(NONCE, (5, 6, 7))
    assert statement.params_hash == hashes.params_hash(NONCE, asked.job.params)
    assert (statement.job_ref, statement.attempt, statement.sampling_seed) == (JOB_REF, 1, "77")
    assert (statement.n_prompt, statement.n_out, statement.finish_reason) == (3, 3, "stop")
    assert (statement.model_id, statement.engine) == (LOADOUT.model_id, LOADOUT.engine)
    assert (statement.operator, statement.boot) == (OPERATOR, hash_of(evidence.boot))


def test_the_document_is_simulated_and_vouches_for_the_boot_statement(evidence: TeeEvidence) -> None:
    claims = verify_boot(evidence.boot_evidence, references=REFERENCES, at_ms=NOW, max_age_ms=0)
    assert claims.simulated
    assert evidence.boot.tee == "simulated"
    assert claims.report_data == hash_of(evidence.boot)
    assert claims.public_key == public_key_info(evidence.boot.enclave_key)
    assert (claims.nonce, claims.time_ms) == (NONCE, NOW)
    assert tuple(claims.measurement(f"PCR{index}") for index in range(3)) == IMAGE
    boot_ = evidence.boot
    assert (boot_.vrf_key, boot_.policy, boot_.engine_digest) == (VRF_KEY, POLICY, LOADOUT.engine_digest)


def test_evidence_survives_json_unchanged(evidence: TeeEvidence) -> None:
    again = read_evidence(json.loads(canonical_json(encode(evidence))))
    assert again == evidence
    judge(again)


def test_signatures_cover_a_tag_and_the_canonical_bytes(evidence: TeeEvidence) -> None:
    key = VerifyKey(evidence.boot.enclave_key)
    message = b"AOS/enclave-statement/v1\n" + canonical_json(encode(evidence.answer))
    key.verify(message, evidence.answer_signature)
    refused(
        VerificationError,
        "tee.answer_signature",
        lambda: verify_enclave(
            evidence.boot.enclave_key,
            evidence.answer,
            STRANGER.sign(message).signature,
            what="answer",
        ),
    )
    untagged = SigningKey(bytes(32)).sign(canonical_json(encode(evidence.answer))).signature
    refused(
        VerificationError,
        "tee.answer_signature",
        lambda: verify_enclave(
            bytes(SigningKey(bytes(32)).verify_key), evidence.answer, untagged, what="answer"
        ),
    )


def test_answers_are_numbered_and_chained_and_a_boot_starts_anew() -> None:
    attester = boot()
    signed = [sign_one(attester, text=f"answer {n}").answer for n in range(4)]
    assert [statement.sequence for statement in signed] == [1, 2, 3, 4]
    assert signed[0].previous == b""
    assert [statement.previous for statement in signed[1:]] == [hash_of(before) for before in signed[:-1]]
    assert attester.previous == hash_of(signed[-1])
    later = boot()
    assert later.boot.enclave_key != attester.boot.enclave_key
    assert later.boot_hash != attester.boot_hash
    assert sign_one(later).answer.sequence == 1


def test_every_answer_of_a_chain_is_believed() -> None:
    attester = boot()
    for _ in range(3):
        judge(sign_one(attester))


# --- alterations --------------------------------------------------------------------------------------------


def other(value: Any) -> Any:
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1, *value[1:]]) if value else bytes(32)
    if isinstance(value, int):
        return value + 1
    return {
        OPERATOR: OTHER_OPERATOR,
        "stop": "length",
        "simulated": "nitro",
    }.get(value, value + "1")


@pytest.mark.parametrize("part", ["boot", "answer"])
def test_no_member_of_any_statement_can_be_changed(part: str, evidence: TeeEvidence) -> None:
    statement = getattr(evidence, part)
    for member in dataclasses.fields(statement):
        changed = replace(statement, **{member.name: other(getattr(statement, member.name))})
        with pytest.raises(VerificationError) as caught:
            judge(replace(evidence, **{part: changed}))
        assert caught.value.code.startswith("tee."), member.name


@pytest.mark.parametrize(
    ("member", "code"),
    [("boot_signature", "tee.boot_signature"), ("answer_signature", "tee.answer_signature")],
)
def test_no_signature_can_be_changed(member: str, code: str, evidence: TeeEvidence) -> None:
    for position in (0, 31, 32, 63):
        signature = bytearray(getattr(evidence, member))
        signature[position] ^= 1
        changed = replace(evidence, **{member: bytes(signature)})
        refused(VerificationError, code, lambda changed=changed: judge(changed))


def test_no_bit_of_the_document_can_be_changed(evidence: TeeEvidence) -> None:
    for position in range(0, 8 * len(evidence.document), 97):
        document = bytearray(evidence.document)
        document[position // 8] ^= 1 << position % 8
        with pytest.raises(VerificationError) as caught:
            judge(replace(evidence, document=bytes(document)))
        assert caught.value.code.startswith("attest.")


def test_a_platform_that_the_trust_file_does_not_name_is_not_believed(evidence: TeeEvidence) -> None:
    own = sign_one(boot(SimulatedPlatform(sha256(b"a platform of my own").digest())))
    refused(VerificationError, "attest.root", lambda: judge(own))
    nobody = replace(REFERENCES, anchors=())
    refused(VerificationError, "tee.no_trusted_root", lambda: judge(evidence, nobody))
    aws = replace(REFERENCES, anchors=(AWS_NITRO,))
    refused(VerificationError, "attest.root", lambda: judge(evidence, aws))


def test_only_a_named_image_is_believed_and_in_all_its_registers(evidence: TeeEvidence) -> None:
    refused(
        VerificationError,
        "tee.no_measurements",
        lambda: judge(evidence, replace(REFERENCES, images=frozenset())),
    )
    for index in range(3):
        image = list(IMAGE)
        image[index] = sha384(b"another").digest()
        wrong = replace(REFERENCES, images=frozenset({(image[0], image[1], image[2])}))
        refused(VerificationError, "tee.measurement", lambda wrong=wrong: judge(evidence, wrong))


def test_a_boot_statement_may_not_call_a_simulated_platform_nitro(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SimulatedNsm, "simulated", False)
    refused(VerificationError, "tee.kind", lambda: judge(sign_one(boot())))


def resigned(evidence: TeeEvidence, key: SigningKey, **changes: Any) -> TeeEvidence:
    """The answer statement changed and signed by ``key``: what somebody with that key could do."""
    statement = replace(evidence.answer, **changes)
    return replace(evidence, answer=statement, answer_signature=sign_enclave(key, statement))


def test_another_key_than_the_booted_one_signs_nothing(evidence: TeeEvidence) -> None:
    forged = resigned(evidence, STRANGER)
    refused(VerificationError, "tee.answer_signature", lambda: judge(forged))


def test_the_boot_of_one_enclave_does_not_carry_the_answer_of_another(evidence: TeeEvidence) -> None:
    """Both are genuine, of one operator, model and platform; only the enclave differs."""
    theirs = sign_one(boot())
    mixed = replace(theirs, boot=evidence.boot, boot_signature=evidence.boot_signature)
    refused(VerificationError, "tee.answer_not_bound", lambda: judge(mixed))
    whole = replace(mixed, document=evidence.document)
    refused(VerificationError, "tee.answer_not_bound", lambda: judge(whole))
    bound = resigned(whole, STRANGER, boot=hash_of(evidence.boot))
    refused(VerificationError, "tee.answer_signature", lambda: judge(bound))


def test_a_boot_statement_with_another_key_is_not_the_one_that_was_vouched_for(evidence: TeeEvidence) -> None:
    mine = replace(evidence.boot, enclave_key=bytes(STRANGER.verify_key))
    forged = resigned(
        replace(evidence, boot=mine, boot_signature=sign_enclave(STRANGER, mine)),
        STRANGER,
        boot=hash_of(mine),
    )
    refused(VerificationError, "tee.boot_not_bound", lambda: judge(forged))


def attested(evidence: TeeEvidence, *, now_ms: int = NOW, **changes: Any) -> TeeEvidence:
    """Another document of the trusted platform for the same boot."""
    members = {
        "user_data": hash_of(evidence.boot),
        "nonce": evidence.boot.nonce,
        "public_key": public_key_info(evidence.boot.enclave_key),
    }
    return replace(evidence, document=module(now_ms=now_ms).attest(**(members | changes)))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"user_data": sha256(b"another boot").digest()}, "tee.boot_not_bound"),
        ({"user_data": None}, "tee.boot_not_bound"),
        ({"user_data": b""}, "tee.boot_not_bound"),
        ({"public_key": public_key_info(bytes(STRANGER.verify_key))}, "tee.boot_not_bound"),
        ({"public_key": bytes(STRANGER.verify_key)}, "tee.boot_not_bound"),
        ({"public_key": None}, "tee.boot_not_bound"),
        ({"nonce": sha256(b"yesterday's").digest()}, "attest.nonce"),
        ({"nonce": NONCE[:31]}, "attest.nonce"),
        ({"nonce": b""}, "attest.nonce"),
        ({"nonce": None}, "attest.nonce"),
    ],
)
def test_a_genuine_document_for_something_else_does_not_vouch_for_this_boot(
    changes: dict[str, Any], code: str, evidence: TeeEvidence
) -> None:
    judge(attested(evidence))
    refused(VerificationError, code, lambda: judge(attested(evidence, **changes)))


def test_a_documents_time_is_that_of_its_boot(evidence: TeeEvidence) -> None:
    for off in (-MAX_BOOT_SKEW_MS, MAX_BOOT_SKEW_MS):
        judge(attested(evidence, now_ms=NOW + off), at_ms=NOW + 2 * MAX_BOOT_SKEW_MS)
        late = attested(evidence, now_ms=NOW + off + (1 if off > 0 else -1))
        refused(
            VerificationError,
            "tee.clock",
            lambda late=late: judge(late, at_ms=NOW + 2 * MAX_BOOT_SKEW_MS),
        )
    refused(VerificationError, "attest.future", lambda: judge(evidence, at_ms=NOW - 60_001))


def test_a_stale_document_and_a_replayed_challenge_are_refused(evidence: TeeEvidence) -> None:
    def fresh(**options: Any) -> Any:
        return verify_boot(
            evidence.boot_evidence, references=REFERENCES, **({"at_ms": NOW, "max_age_ms": 300_000} | options)
        )

    fresh(at_ms=NOW + 300_000)
    refused(VerificationError, "attest.stale", lambda: fresh(at_ms=NOW + 300_001))
    refused(VerificationError, "attest.nonce", lambda: fresh(nonce=sha256(b"mine").digest()))
    refused(VerificationError, "attest.nonce", lambda: fresh(nonce=b""))


def test_an_old_leaf_cannot_sign_for_a_later_answer(evidence: TeeEvidence) -> None:
    """A leaf's key that got out is good for its three hours and the time that an answer may take, no longer."""
    until = verify_boot(evidence.boot_evidence, references=REFERENCES, at_ms=NOW).chain[-1].valid_until
    judge(evidence, received_at=until + MAX_LATE_MS)
    refused(
        VerificationError,
        "tee.leaf_expired",
        lambda: judge(evidence, received_at=until + MAX_LATE_MS + 1),
    )


def test_an_answer_can_have_a_document_of_its_own() -> None:
    attester = boot()
    evidence = sign_one(attester)
    mine = sha256(b"a requester's nonce").digest()
    document = attester.document(nonce=mine, answer=hash_of(evidence.answer))

    def check(document: bytes, of: TeeEvidence = evidence, **options: Any) -> Any:
        given = {"references": REFERENCES, "at_ms": NOW, "nonce": mine}
        return verify_answer_document(document, evidence=of, **(given | options))

    assert check(document).simulated
    refused(VerificationError, "attest.nonce", lambda: check(document, nonce=NONCE))
    refused(VerificationError, "attest.stale", lambda: check(document, at_ms=NOW + 300_001))
    refused(VerificationError, "tee.answer_not_bound", lambda: check(document, sign_one(attester)))
    refused(VerificationError, "tee.answer_not_bound", lambda: check(document, sign_one(boot())))
    refused(VerificationError, "tee.answer_not_bound", lambda: check(attester.document(nonce=mine)))
    unknown = replace(REFERENCES, images=frozenset({(IMAGE[1], IMAGE[1], IMAGE[2])}))
    refused(VerificationError, "tee.measurement", lambda: check(document, references=unknown))
    stranger = sha256(b"no answer of this boot").digest()
    refused(RuleViolation, "enclave.unknown_answer", lambda: attester.document(nonce=mine, answer=stranger))


def test_a_boot_statement_that_its_own_key_did_not_sign_is_refused(evidence: TeeEvidence) -> None:
    """A host that knows the public key only: the platform would vouch, the possession of the key is missing."""
    unsigned = replace(evidence, boot_signature=sign_enclave(STRANGER, evidence.boot))
    refused(VerificationError, "tee.boot_signature", lambda: judge(unsigned))


def test_the_modules_entropy_is_in_the_key_and_every_boot_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aos.workers.enclave.attester.secrets.token_bytes", bytes)
    keys = {boot().boot.enclave_key for _ in range(3)}
    assert len(keys) == 3, "the kernel's entropy alone would have given one key"
    monkeypatch.setattr(Nsm, "random", lambda _self, count: bytes(count))
    assert len({boot().boot.enclave_key for _ in range(2)}) == 1
    monkeypatch.undo()
    monkeypatch.setattr(Nsm, "random", lambda _self, count: bytes(count))
    assert len({boot().boot.enclave_key for _ in range(3)}) == 3


def test_a_policys_digest_names_the_set_and_not_its_order() -> None:
    other_image = (IMAGE[2], IMAGE[1], IMAGE[0])
    two = replace(REFERENCES, images=frozenset({IMAGE, other_image}))
    same = replace(REFERENCES, images=frozenset({other_image, IMAGE}))
    assert policy_digest({"simulated": two}) == policy_digest({"simulated": same})
    digests = {
        policy_digest(known)
        for known in (
            {},
            {"simulated": REFERENCES},
            {"nitro": REFERENCES},
            {"simulated": two},
            {"simulated": replace(REFERENCES, anchors=(AWS_NITRO,))},
        )
    }
    assert len(digests) == 5


@pytest.fixture
def insider() -> tuple[TeeEvidence, SigningKey]:
    """Evidence whose enclave key is known here, so that an enclave's own lies can be told."""
    attester = boot()
    return sign_one(attester), attester._key


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"boot": sha256(b"another boot").digest()}, "tee.answer_not_bound"),
        ({"operator": OTHER_OPERATOR}, "tee.answer_not_bound"),
        ({"model_id": sha256(b"another model").digest()}, "tee.answer_not_bound"),
        ({"engine": "llama.cpp/b2"}, "tee.answer_not_bound"),
        ({"time": NOW - 1}, "tee.boot_expired"),
        ({"time": NOW + LIFETIME + 1}, "tee.boot_expired"),
        ({"sequence": 2}, "tee.sequence"),
        ({"previous": sha256(b"before").digest()}, "tee.sequence"),
    ],
)
def test_even_a_signed_answer_must_belong_to_its_boot(
    changes: dict[str, Any], code: str, insider: tuple[TeeEvidence, SigningKey]
) -> None:
    evidence, key = insider
    forged = resigned(evidence, key, **changes)
    refused(VerificationError, code, lambda: judge(forged))


@pytest.mark.parametrize("time", [NOW, NOW + LIFETIME])
def test_both_ends_of_a_boots_validity_count(time: int, insider: tuple[TeeEvidence, SigningKey]) -> None:
    evidence, key = insider
    judge(resigned(evidence, key, time=time))


@pytest.mark.parametrize("lifetime", [0, -1, MAX_LIFETIME_MS + 1, 10**12])
def test_a_boot_lasts_no_longer_than_allowed(lifetime: int, insider: tuple[TeeEvidence, SigningKey]) -> None:
    evidence, key = insider
    forged = replace(evidence.boot, not_after=NOW + lifetime)
    boot_signature = sign_enclave(key, forged)
    longer = attested(replace(evidence, boot=forged, boot_signature=boot_signature))
    refused(VerificationError, "tee.lifetime", lambda: judge(longer))
    refused(
        VerificationError,
        "tee.lifetime",
        lambda: verify_boot(longer.boot_evidence, references=REFERENCES, at_ms=NOW),
    )


@pytest.mark.parametrize(
    ("path", "value", "code", "field"),
    [
        (("document",), "A" * 21_848, "field.range", "evidence.document"),
        (("document",), "+", "field.type", "evidence.document"),
        (("document",), {"label": "SIMULATED, NO HARDWARE"}, "field.type", "evidence.document"),
        (("boot", "tee"), "tdx", "field.range", "evidence.boot.tee"),
        (("boot", "v"), 1, "statement.version", "evidence.boot.v"),
        (("boot", "enclave_key"), "AAAA", "field.range", "evidence.boot.enclave_key"),
        (("answer", "sequence"), 0, "field.range", "evidence.answer.sequence"),
        (("answer", "sequence"), "1", "field.type", "evidence.answer.sequence"),
        (("answer", "sampling_seed"), str(2**64), "field.range", "evidence.answer.sampling_seed"),
        (("answer", "more"), 1, "field.unknown", "evidence.answer.more"),
        (("answer", "v"), 2, "statement.version", "evidence.answer.v"),
        (("boot", "type"), "aos.tee.document", "statement.type", "evidence.boot.type"),
        (("answer_signature",), "AAAA", "field.range", "evidence.answer_signature"),
    ],
)
def test_evidence_is_read_strictly(
    path: tuple[str, ...], value: Any, code: str, field: str, evidence: TeeEvidence
) -> None:
    bent = encode(evidence)
    at = bent
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    assert refused(InvalidMessage, code, lambda: read_evidence(bent)).field == field


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(TeeEvidence)])
def test_no_part_of_the_evidence_may_be_left_out(part: str, evidence: TeeEvidence) -> None:
    bent = encode(evidence)
    del bent[part]
    refused(InvalidMessage, "field.missing", lambda: read_evidence(bent))


# --- what an enclave refuses to sign ------------------------------------------------------------------------


def test_an_enclave_answers_only_for_its_operator_network_and_time() -> None:
    attester = boot()
    attester.check(request(), operator=OPERATOR, now_ms=NOW)
    refused(
        RuleViolation,
        "enclave.other_operator",
        lambda: attester.check(request(), operator=OTHER_OPERATOR, now_ms=NOW),
    )
    refused(
        RuleViolation,
        "enclave.other_network",
        lambda: attester.check(request(network="aos-other"), operator=OPERATOR, now_ms=NOW),
    )
    for time in (NOW - 1, NOW + LIFETIME + 1):
        refused(
            RuleViolation,
            "enclave.boot_expired",
            lambda time=time: attester.check(request(), operator=OPERATOR, now_ms=time),
        )


def test_an_answer_that_came_too_late_is_not_signed_and_uses_no_number() -> None:
    attester = boot()
    sign_one(attester)
    refused(RuleViolation, "enclave.boot_expired", lambda: sign_one(attester, now_ms=NOW + LIFETIME + 1))
    assert sign_one(attester).answer.sequence == 2


# --- the measurement ----------------------------------------------------------------------------------------


def test_the_registers_are_digests_of_a_manifest_of_what_runs() -> None:
    manifest = measured_manifest()
    below = canonical_json({"packages": manifest["packages"], "python": manifest["python"]})
    application = canonical_json({"files": manifest["files"]})

    def register(data: bytes) -> bytes:
        return sha384(bytes(48) + sha384(data).digest()).digest()

    assert simulated_pcrs() == {
        0: register(below + application),
        1: register(below),
        2: register(application),
    }
    names = [name for name, _ in manifest["files"] if name != "engine/_native"]
    assert names == sorted(set(names))
    import aos

    root = Path(aos.__file__).parent
    for name in ("core/tee.py", "engine/llama_cpp.py", "workers/enclave/process.py", "adapters/nsm.py"):
        assert [name, sha256((root / name).read_bytes()).hexdigest()] in manifest["files"]
    assert not any(Path(name).is_absolute() for name in names)


def test_an_engines_digest_covers_its_compiled_part() -> None:
    digests = {engine_digest(profile) for profile in ("aos-canonical/1", "aos-canonical/2", "llama.cpp/b1")}
    assert len(digests) == 3
    import xllamacpp

    compiled = [p for p in Path(xllamacpp.__file__).parent.rglob("*") if p.suffix == ".so"]
    assert compiled, "the digest of llama.cpp would be that of our Python files alone"


def test_everything_that_the_enclave_process_imports_is_measured() -> None:
    script = """
import sys, json, aos
import aos.workers.enclave.__main__, aos.engine.llama_cpp, aos.engine.reference, aos.engine.native
import aos.adapters.simulated_nsm
files = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "aos"]
print(json.dumps([aos.__file__, files]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    package, files = json.loads(done.stdout)
    root = Path(package).parent
    run = {
        "engine/_native" if path.name.startswith("_native.") else path.relative_to(root).as_posix()
        for path in map(Path, files)
        if path.stat().st_size > 0
    }
    measured = {name for name, _ in measured_manifest()["files"]}
    assert "workers/enclave/__main__.py" in run
    assert run <= measured, "only empty files may be left out"
