"""The demo's network as real processes: answers, receipts, refusals. What is killed: ``test_kills.py``."""

import json
import os
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from nacl.signing import VerifyKey
from peers.running_network import PARAMS, follow, judge, rows_of, submit, wait_until

from aos.client import Client, Submission
from aos.core.answer import read_answer
from aos.core.codec import encode
from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.receipt import verify_answer
from aos.core.statements import hash_of
from aos.core.tee import verify_answer_document
from aos.core.trust import load_policy, read_trust
from aos.errors import InvalidMessage, RuleViolation, VerificationError
from aos.local.network import LocalNetwork, RunningNetwork

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def assert_one_result_set(network: RunningNetwork, job_id: str, *, seats: int) -> None:
    rows = rows_of(network, job_id)
    assert len({(row["tag"], row["position"], row["attempt"]) for row in rows}) == 1
    assert Counter(row["operator"] for row in rows).most_common(1)[0][1] == 1
    assert 1 <= len(rows) <= seats


def test_an_opml_answer_is_verified_by_three_operators(network: RunningNetwork) -> None:
    accepted = submit(network, "What is AI?")
    assert follow(network, accepted.job_id) == "verified"
    report = judge(network, accepted.job_id)
    assert (report.verdict, report.exit_code) == ("VERIFIED", 0)
    assert "redundant:3" in report.levels
    assert_one_result_set(network, accepted.job_id, seats=3)


def test_a_tee_answer_is_simulated_and_says_so(network: RunningNetwork) -> None:
    accepted = submit(network, "What is AI?", "tee")
    assert follow(network, accepted.job_id) == "verified"
    report = judge(network, accepted.job_id)
    assert report.verdict == "VERIFIED"
    assert "simulated" in report.levels
    assert "attested" not in report.levels
    with network.client() as client:
        answer = client.answer(accepted.job_id)
    trust = read_trust(network.trust_path.read_bytes())
    strict = verify_answer(answer, trust=trust, policy=load_policy("default"))
    assert strict.exit_code == 10
    assert next(check for check in strict.checks if check.status == "FAIL").id == "tee-2"


def test_the_rows_have_the_guide_shape(network: RunningNetwork) -> None:
    accepted = submit(network, "What is AI?")
    follow(network, accepted.job_id)
    (row, *_) = rows_of(network, accepted.job_id)
    guide = {
        "id",
        "job_id",
        "operator",
        "result",
        "verify_id",
        "vrf",
        "clock",
        "signature",
        "job_type",
        "tag",
        "created_at",
    }
    assert guide <= row.keys()
    assert row["id"] == f"{row['operator']}_{accepted.job_id}_{row['tag']}"
    assert set(row["vrf"]) == {
        "selected",
        "vrf_prompt_hash",
        "vrf_random_value",
        "vrf_verify_pubkey",
        "vrf_proof",
    }
    assert all(isinstance(count, str) for count in row["clock"].values())


def test_blind_seats_all_generate_and_agree(network: RunningNetwork) -> None:
    accepted = submit(network, "What is a receipt?", blind=True)
    assert follow(network, accepted.job_id) == "verified"
    assert "redundant:3" in judge(network, accepted.job_id).levels


def test_a_request_seed_is_honoured_and_repeats(network: RunningNetwork) -> None:
    texts = set()
    for _ in range(2):
        accepted = submit(network, "What is AI?", params={"seed": 2**64 - 1})
        assert follow(network, accepted.job_id) == "verified"
        texts.add(rows_of(network, accepted.job_id)[0]["result"])
        assert judge(network, accepted.job_id).verdict == "VERIFIED"
    assert len(texts) == 1


def test_a_flagged_job_sends_the_users_earlier_jobs_out_again(network: RunningNetwork) -> None:
    first = submit(network, "What is AI?", user="flagged-user")
    follow(network, first.job_id)
    before = rows_of(network, first.job_id)
    flagged = submit(network, "What is a receipt?", user="flagged-user", tag="suspicion")
    assert follow(network, flagged.job_id) == "verified"
    following = submit(network, "What is a TEE?", user="flagged-user")
    assert follow(network, following.job_id) == "verified"
    assert {(row["tag"], row["position"]) for row in rows_of(network, following.job_id)} == {
        ("suspicion", "after")
    }
    wait_until(lambda: any(row["position"] == "before" for row in rows_of(network, first.job_id)))
    rows = rows_of(network, first.job_id)
    assert [row for row in rows if row["position"] == ""] == before
    again = [row for row in rows if row["position"] == "before"]
    assert {row["result"] for row in again} == {before[0]["result"]}
    assert {row["attempt"] for row in again} != {before[0]["attempt"]}


def test_a_wrong_token_and_an_unknown_model_are_refused_by_name(network: RunningNetwork) -> None:
    stranger = Client(network.url, project=network.project, token="x" * 43, dispatcher=network.dispatcher)
    submission = Submission(prompt="x", model=network.model_name, params=PARAMS)
    with stranger, pytest.raises(VerificationError) as refused:
        stranger.submit(submission)
    assert refused.value.code == "token.invalid"
    with network.client() as client, pytest.raises(InvalidMessage) as unknown:
        client.submit(Submission(prompt="x", model="no-such.gguf", params=PARAMS))
    assert unknown.value.field == "job.model"


def test_a_second_network_in_the_same_directory_is_refused_by_name(network: RunningNetwork) -> None:
    from aos.cli.network import found

    second = LocalNetwork(network.trust_path.parent, found=found)
    with pytest.raises(RuleViolation) as refused, second.running():
        pass
    assert refused.value.code == "local.running"


def test_no_log_holds_a_prompt_a_text_or_a_secret(network: RunningNetwork) -> None:
    prompt = "What is a zebra made of, secretly?"
    accepted = submit(network, prompt)
    follow(network, accepted.job_id)
    text = rows_of(network, accepted.job_id)[0]["result"].strip()
    state = network.trust_path.parent
    secrets = [network.token, prompt, text, *(key.read_text().strip() for key in state.glob("*/*.key"))]
    for log in (state / "logs").glob("*.log"):
        content = log.read_text(errors="replace")
        assert [secret for secret in secrets if secret in content] == [], log.name


def test_the_state_directory_is_closed_to_others(network: RunningNetwork) -> None:
    state = network.trust_path.parent
    assert state.stat().st_mode & 0o077 == 0
    for path in (network.client_path, *state.glob("*/*.key"), *state.glob("*/config-*.yaml")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_the_answer_file_holds_neither_job_id_nor_token(network: RunningNetwork, tmp_path: Path) -> None:
    accepted = submit(network, "What is AI?")
    follow(network, accepted.job_id)
    with network.client() as client:
        answer = client.answer(accepted.job_id).decode()
    assert accepted.job_id not in answer
    assert network.token not in answer
    bundle = json.loads(answer)
    for large in ("text", "tokens", "request", "evidence"):
        bundle.pop(large, None)
    log = bundle.pop("log")
    assert len(json.dumps(bundle, separators=(",", ":"))) <= 16 * 1024
    assert len(json.dumps(log, separators=(",", ":"))) <= 3 * 1024


def test_a_requester_believes_the_enclave_before_it_sends_a_prompt(network: RunningNetwork) -> None:
    trust = read_trust(network.trust_path.read_bytes())
    asked = Submission(
        prompt="What is AI?",
        model=network.model_name,
        job_type="tee",
        params={"temperature": 0, "max_tokens": 8},
        attested=True,
    )
    with Client(
        network.url,
        project=network.project,
        token=network.token,
        dispatcher=network.dispatcher,
        trust=trust,
        policy=load_policy("dev"),
    ) as client:
        (enclave,) = client.attest(network.model_name)
        assert enclave.claims.simulated
        accepted = client.submit(asked)
    assert follow(network, accepted.job_id) == "verified"
    with network.client() as client:
        answer = read_answer(client.answer(accepted.job_id))
    assert answer.evidence is not None
    assert answer.evidence.boot == enclave.boot
    strict = Client(
        network.url,
        project=network.project,
        token=network.token,
        dispatcher=network.dispatcher,
        trust=trust,
        policy=load_policy("production"),
    )
    with strict, pytest.raises(VerificationError, match="does not accept a TEE of kind simulated"):
        strict.submit(asked)
    # What the enclave signed, and its evidence, over HTTP.
    signed = httpx.get(f"{network.url}/v1/signature/{accepted.job_id}").json()
    key = VerifyKey(bytes.fromhex(signed["signing_address"]))
    key.verify(signed["text"].encode(), bytes.fromhex(signed["signature"]))
    assert bytes.fromhex(signed["signing_address"]) == answer.evidence.boot.enclave_key
    nonce = os.urandom(32)
    stored = httpx.get(
        f"{network.url}/v1/aos/attestations/{accepted.job_id}", params={"nonce": nonce.hex()}
    ).json()
    assert stored["evidence"] == encode(answer.evidence)
    verify_answer_document(
        b64u_decode(stored["answer_document"]),
        evidence=answer.evidence,
        references=trust.references("simulated"),
        at_ms=time.time_ns() // 1_000_000,
        nonce=nonce,
    )
    asked_again = [
        httpx.get(
            f"{network.url}/v1/aos/attestations/{accepted.job_id}", params={"nonce": os.urandom(32).hex()}
        )
        for _ in range(6)
    ]
    assert [reply.status_code for reply in asked_again] == [200] * 5 + [429]
    assert 1 <= int(asked_again[-1].headers["retry-after"]) <= 60
    assert asked_again[-1].json()["type"] == "urn:aos:error:attestation.rate"
    boot = b64u_encode(hash_of(answer.evidence.boot))
    kept = httpx.get(f"{network.url}/v1/aos/attestations/{boot}").json()["evidence"]
    assert kept == encode(answer.evidence.boot_evidence)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/attestation/report?model=none.gguf&nonce=" + "0" * 64, 404, "model.unknown"),
        ("/v1/attestation/report?model=aos-demo.Q8_0.gguf&nonce=AB", 400, "field.range"),
        ("/v1/attestation/report?model=aos-demo.Q8_0.gguf", 400, "field.range"),
        ("/v1/signature/" + "0" * 64, 404, "job.unknown"),
        ("/v1/signature/x", 404, "job.unknown"),
        ("/v1/aos/attestations/" + "A" * 43, 404, "attestation.unknown"),
        ("/v1/aos/attestations/x", 404, "attestation.unknown"),
        ("/v1/aos/attestations/" + "A" * 43 + "?nonce=" + "0" * 64, 409, "attestation.boot_nonce"),
    ],
)
def test_evidence_that_is_not_there_is_named_as_that(
    path: str, status: int, code: str, network: RunningNetwork
) -> None:
    answer = httpx.get(network.url + path)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:aos:error:{code}")


def test_an_opml_answer_has_no_signature_of_an_enclave(network: RunningNetwork) -> None:
    accepted = submit(network, "What is AI?")
    follow(network, accepted.job_id)
    answer = httpx.get(f"{network.url}/v1/signature/{accepted.job_id}")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:aos:error:attestation.no_answer")
