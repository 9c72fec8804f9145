"""The simulated enclave's statements: what binds them, and that every change to any of them is found.

SIMULATED: no hardware takes part. The statements are made by the enclave's own attester and platform.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aos.adapters.simulated_tee import (
    LABEL,
    SimulatedPlatform,
    create_simulated_platform,
    load_simulated_platform,
)
from aos.workers.enclave.measurement import measured_manifest, measurement
from nacl.signing import SigningKey, VerifyKey

from aos.core import hashes
from aos.core.codec import encode
from aos.core.encoding import canonical_json, tagged_hash
from aos.core.statements import Params, Request, RequestJob, hash_of
from aos.core.tee import TeeEvidence, read_evidence, sign_enclave, verify_enclave, verify_simulated
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, VerificationError
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
    engine="llama.cpp/b1", model_id=sha256(b"model").digest(), measurement=sha256(b"m").digest()
)
PLATFORM = SimulatedPlatform(SigningKey(sha256(b"test platform").digest()))
ROOTS = frozenset({PLATFORM.public_key})
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


def boot(platform: SimulatedPlatform = PLATFORM, *, now_ms: int = NOW, nonce: bytes = NONCE) -> Attester:
    asked = Boot(id=1, network=NETWORK, operator=OPERATOR, nonce=nonce, lifetime_ms=LIFETIME)
    return Attester(asked, loadout=LOADOUT, platform=platform, now_ms=now_ms)


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
    statement = verify_simulated(evidence, roots=ROOTS | {bytes(STRANGER.verify_key)})
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


def test_the_document_says_simulated_and_vouches_for_the_boot_statement(evidence: TeeEvidence) -> None:
    document = evidence.document
    assert document.label == "SIMULATED, NO HARDWARE"
    assert evidence.boot.tee == "simulated"
    assert document.user_data == hash_of(evidence.boot)
    assert document.public_key == evidence.boot.enclave_key
    assert (document.nonce, document.measurement) == (NONCE, LOADOUT.measurement)


def test_evidence_survives_json_unchanged(evidence: TeeEvidence) -> None:
    again = read_evidence(json.loads(canonical_json(encode(evidence))))
    assert again == evidence
    verify_simulated(again, roots=ROOTS)


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
        verify_simulated(sign_one(attester), roots=ROOTS)


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
        LABEL: "GENUINE",
    }.get(value, value + "1")


@pytest.mark.parametrize("part", ["boot", "document", "answer"])
def test_no_member_of_any_statement_can_be_changed(part: str, evidence: TeeEvidence) -> None:
    statement = getattr(evidence, part)
    for member in dataclasses.fields(statement):
        changed = replace(statement, **{member.name: other(getattr(statement, member.name))})
        with pytest.raises(VerificationError) as caught:
            verify_simulated(replace(evidence, **{part: changed}), roots=ROOTS)
        assert caught.value.code.startswith("tee."), member.name


@pytest.mark.parametrize(
    ("member", "code"),
    [
        ("boot_signature", "tee.boot_signature"),
        ("document_signature", "tee.wrong_root"),
        ("answer_signature", "tee.answer_signature"),
    ],
)
def test_no_signature_can_be_changed(member: str, code: str, evidence: TeeEvidence) -> None:
    for position in (0, 31, 32, 63):
        signature = bytearray(getattr(evidence, member))
        signature[position] ^= 1
        changed = replace(evidence, **{member: bytes(signature)})
        refused(VerificationError, code, lambda changed=changed: verify_simulated(changed, roots=ROOTS))


def test_a_platform_that_the_trust_file_does_not_name_is_not_believed(evidence: TeeEvidence) -> None:
    own = sign_one(boot(SimulatedPlatform(STRANGER)))
    refused(VerificationError, "tee.wrong_root", lambda: verify_simulated(own, roots=ROOTS))
    refused(VerificationError, "tee.no_trusted_root", lambda: verify_simulated(evidence, roots=frozenset()))
    refused(
        VerificationError,
        "tee.wrong_root",
        lambda: verify_simulated(evidence, roots=frozenset({b"no key of 32 bytes"})),
    )


def resigned(evidence: TeeEvidence, key: SigningKey, **changes: Any) -> TeeEvidence:
    """The answer statement changed and signed by ``key``: what somebody with that key could do."""
    statement = replace(evidence.answer, **changes)
    return replace(evidence, answer=statement, answer_signature=sign_enclave(key, statement))


def test_another_key_than_the_booted_one_signs_nothing(evidence: TeeEvidence) -> None:
    forged = resigned(evidence, STRANGER)
    refused(VerificationError, "tee.answer_signature", lambda: verify_simulated(forged, roots=ROOTS))


def test_a_boot_statement_with_another_key_is_not_the_one_that_was_vouched_for(evidence: TeeEvidence) -> None:
    mine = replace(evidence.boot, enclave_key=bytes(STRANGER.verify_key))
    forged = resigned(
        replace(evidence, boot=mine, boot_signature=sign_enclave(STRANGER, mine)),
        STRANGER,
        boot=hash_of(mine),
    )
    refused(VerificationError, "tee.boot_not_bound", lambda: verify_simulated(forged, roots=ROOTS))


def attested(evidence: TeeEvidence, **changes: Any) -> TeeEvidence:
    """The document changed and signed by the trusted platform."""
    document = replace(evidence.document, **changes)
    signed = sign_enclave(SigningKey(sha256(b"test platform").digest()), document)
    return replace(evidence, document=document, document_signature=signed)


@pytest.mark.parametrize("member", ["user_data", "public_key", "nonce", "measurement"])
def test_a_genuine_document_for_another_boot_does_not_vouch_for_this_one(
    member: str, evidence: TeeEvidence
) -> None:
    verify_simulated(attested(evidence), roots=ROOTS)
    forged = attested(evidence, **{member: other(getattr(evidence.document, member))})
    refused(VerificationError, "tee.boot_not_bound", lambda: verify_simulated(forged, roots=ROOTS))


def test_a_boot_statement_that_its_own_key_did_not_sign_is_refused(evidence: TeeEvidence) -> None:
    """A host that knows the public key only: the platform would vouch, the possession of the key is missing."""
    unsigned = replace(evidence, boot_signature=sign_enclave(STRANGER, evidence.boot))
    refused(VerificationError, "tee.boot_signature", lambda: verify_simulated(unsigned, roots=ROOTS))


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
    refused(VerificationError, code, lambda: verify_simulated(forged, roots=ROOTS))


@pytest.mark.parametrize("time", [NOW, NOW + LIFETIME])
def test_both_ends_of_a_boots_validity_count(time: int, insider: tuple[TeeEvidence, SigningKey]) -> None:
    evidence, key = insider
    verify_simulated(resigned(evidence, key, time=time), roots=ROOTS)


@pytest.mark.parametrize(
    ("path", "value", "code", "field"),
    [
        (("document", "label"), "GENUINE HARDWARE", "field.range", "evidence.document.label"),
        (("document", "label"), "simulated, no hardware", "field.range", "evidence.document.label"),
        (("boot", "tee"), "nitro", "field.range", "evidence.boot.tee"),
        (("boot", "enclave_key"), "AAAA", "field.range", "evidence.boot.enclave_key"),
        (("answer", "sequence"), 0, "field.range", "evidence.answer.sequence"),
        (("answer", "sequence"), "1", "field.type", "evidence.answer.sequence"),
        (("answer", "sampling_seed"), str(2**64), "field.range", "evidence.answer.sampling_seed"),
        (("answer", "more"), 1, "field.unknown", "evidence.answer.more"),
        (("answer", "v"), 2, "statement.version", "evidence.answer.v"),
        (("document", "type"), "aos.tee.document", "statement.type", "evidence.document.type"),
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


# --- the simulated platform's key file ----------------------------------------------------------------------


def test_a_platform_file_is_labelled_private_and_gives_the_same_root_again(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "platform.key"
    root = create_simulated_platform(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["label"] == LABEL
    assert load_simulated_platform(path).public_key == root
    verify_simulated(sign_one(boot(load_simulated_platform(path))), roots=frozenset({root}))


def test_a_platform_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "platform.key"
    create_simulated_platform(path)
    before = path.read_bytes()
    refused(ConfigError, "platform.exists", lambda: create_simulated_platform(path))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["platform.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_platform_file_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "platform.key"
    create_simulated_platform(path)
    path.chmod(mode)
    assert "chmod 600" in str(
        refused(ConfigError, "platform.mode", lambda: load_simulated_platform(path)).hint
    )


@pytest.mark.parametrize(
    "bend",
    [
        lambda content: {**content, "label": "GENUINE HARDWARE"},
        lambda content: {**content, "seed": content["seed"][2:]},
        lambda content: {**content, "seed": bytes(32).hex()},
        lambda content: {**content, "seed": 5},
        lambda content: {**content, "public_key": bytes(32).hex()},
        lambda content: {name: value for name, value in content.items() if name != "label"},
        lambda content: [content],
    ],
    ids=["label", "short seed", "other seed", "number", "other key", "no label", "list"],
)
def test_a_bent_platform_file_is_refused_and_its_seed_is_not_printed(
    bend: Callable[[Any], Any], tmp_path: Path
) -> None:
    path = tmp_path / "platform.key"
    create_simulated_platform(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(bend(content)))
    error = refused(ConfigError, "platform.format", lambda: load_simulated_platform(path))
    assert content["seed"] not in f"{error} {error.hint} {error.__cause__}"


def test_a_platform_file_that_is_not_there_is_named_as_that(tmp_path: Path) -> None:
    refused(ConfigError, "platform.unreadable", lambda: load_simulated_platform(tmp_path / "none.key"))
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    refused(ConfigError, "platform.unwritable", lambda: create_simulated_platform(blocked / "x" / "p.key"))


# --- the measurement ----------------------------------------------------------------------------------------


def test_the_measurement_is_the_digest_of_a_manifest_of_what_runs() -> None:
    manifest = measured_manifest("llama.cpp/b1")
    assert measurement("llama.cpp/b1") == tagged_hash("tee-measurement", canonical_json(manifest))
    assert measurement("llama.cpp/b1") != measurement("llama.cpp/b2")
    names = [name for name, _ in manifest["files"]]
    assert names == sorted(set(names))
    import aos

    root = Path(aos.__file__).parent
    for name in ("core/tee.py", "engine/llama_cpp.py", "workers/enclave/process.py", "adapters/frames.py"):
        assert [name, sha256((root / name).read_bytes()).hexdigest()] in manifest["files"]
    assert not any(Path(name).is_absolute() for name in names)


def test_everything_that_the_enclave_process_imports_is_measured() -> None:
    script = """
import sys, json, aos
import aos.workers.enclave.__main__, aos.engine.llama_cpp, aos.engine.reference
files = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "aos"]
print(json.dumps([aos.__file__, files]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    package, files = json.loads(done.stdout)
    root = Path(package).parent
    run = {Path(file).relative_to(root).as_posix() for file in files if Path(file).stat().st_size > 0}
    measured = {name for name, _ in measured_manifest("llama.cpp/b1")["files"]}
    assert "workers/enclave/__main__.py" in run
    assert run <= measured, "only empty files may be left out"
