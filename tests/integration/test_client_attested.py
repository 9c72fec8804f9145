"""A requester that asks for ``attested``: it believes the enclaves before it sends a prompt, or sends nothing.

The dispatcher is a fake at the HTTP border that may report anything; enclaves are SIMULATED, their evidence is really signed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from nacl.signing import SigningKey
from simulated_run import PCRS, Documented, Network, measured, platform_of, secret

from aos.adapters.simulated_nsm import SimulatedPlatform
from aos.client import Client, Submission
from aos.core.codec import encode
from aos.core.encoding import b64u_encode
from aos.core.statements import hash_of
from aos.core.tee import TeeBoot, public_key_info, sign_enclave
from aos.core.trust import Policy, Trust, load_policy
from aos.errors import AOSError, ConfigError, InvalidMessage, Unavailable, VerificationError

NETWORK = Network()
MODEL_NAME = "demo.gguf"
OTHER = secret("something else")
KEY = SigningKey(secret("enclave"))
TRUST = NETWORK.trust()
DEV = load_policy("dev")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Enclave:
    """One entry of a report, and what is changed in it before or after it is signed.

    The time of a document is changed by what is added to now, in milliseconds.
    """

    boot: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    entry: dict[str, Any] = field(default_factory=dict)
    key: SigningKey = KEY

    def report(self, nonce: bytes) -> dict[str, Any]:
        now = now_ms()
        boot = TeeBoot(
            network=NETWORK.name,
            tee="simulated",
            operator="0x" + "11" * 20,
            vrf_key=secret("draw key"),
            enclave_key=bytes(self.key.verify_key),
            engine="simulated-engine/1",
            engine_digest=secret("engine"),
            model_id=NETWORK.model_id,
            policy=secret("policy"),
            nonce=secret("the dispatcher's challenge"),
            booted_at=now - 60_000,
            not_after=now + 3_600_000,
        )
        boot = replace(boot, **self.boot)
        asked = Documented(
            user_data=hash_of(boot),
            nonce=nonce,
            public_key=public_key_info(boot.enclave_key),
            time=now,
            pcrs=PCRS,
            platform=platform_of(NETWORK.name),
        )
        document = self.document | ({"time": now + self.document["time"]} if "time" in self.document else {})
        return {
            "model_name": MODEL_NAME,
            "signing_address": boot.enclave_key.hex(),
            "signing_algo": "ed25519",
            "request_nonce": nonce.hex(),
            "operator": boot.operator,
            "boot": encode(boot),
            "boot_signature": b64u_encode(sign_enclave(self.key, boot)),
            "document": b64u_encode(replace(asked, **document).sign()),
        } | self.entry


@dataclass
class Dispatcher:
    """What the fake says, and whether a prompt ever came."""

    enclaves: list[Enclave] = field(default_factory=lambda: [Enclave()])
    report: dict[str, Any] = field(default_factory=dict)
    left_out: list[dict[str, str]] = field(default_factory=list)
    models: dict[str, Any] = field(
        default_factory=lambda: {"models": [{"name": MODEL_NAME, "model_id": b64u_encode(NETWORK.model_id)}]}
    )
    status: int = 200
    prompts: list[bytes] = field(default_factory=list)
    nonces: list[bytes] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, Any]:
        parts = urlsplit(path)
        if parts.path == "/v1/aos/models":
            return 200, self.models
        query = parse_qs(parts.query)
        nonce = bytes.fromhex(query["nonce"][0])
        self.nonces.append(nonce)
        body = {
            "type": "aos.tee.report",
            "v": 2,
            "model_id": b64u_encode(NETWORK.model_id),
            "model_attestations": [enclave.report(nonce) for enclave in self.enclaves],
            "left_out": self.left_out,
        }
        if self.status != 200:
            return self.status, {"type": "urn:aos:error:attestation.none", "detail": "no enclave"}
        return 200, body | self.report


@contextmanager
def serving(dispatcher: Dispatcher) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, value = dispatcher.answer(self.path)
            self.reply(status, value)

        def do_POST(self) -> None:
            dispatcher.prompts.append(self.rfile.read(int(self.headers["content-length"])))
            self.reply(503, {"type": "urn:aos:error:server.test", "detail": "the test ends here"})

        def reply(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def submission(**changes: Any) -> Submission:
    asked = Submission(prompt="a secret", model=MODEL_NAME, job_type="tee", params={}, attested=True)
    return replace(asked, **changes)


def submit(
    dispatcher: Dispatcher,
    *,
    trust: Trust | None = TRUST,
    policy: Policy | None = DEV,
    asked: Submission | None = None,
) -> AOSError:
    with (
        serving(dispatcher) as url,
        Client(
            url, project="p", token="t", dispatcher=NETWORK.dispatcher, trust=trust, policy=policy
        ) as client,
        pytest.raises(AOSError) as caught,
    ):
        client.submit(asked or submission())
    return caught.value


def test_a_believed_enclave_gets_the_prompt() -> None:
    dispatcher = Dispatcher(enclaves=[Enclave(), Enclave(key=SigningKey(OTHER))])
    assert submit(dispatcher).code == "server.test"
    (prompt,) = dispatcher.prompts
    assert b"a secret" in prompt
    submit(dispatcher)
    assert len(set(dispatcher.nonces)) == 2, "every question has a challenge of its own"


def test_without_the_wish_nothing_is_asked_of_enclaves() -> None:
    dispatcher = Dispatcher(status=503)
    assert submit(dispatcher, asked=submission(attested=False)).code == "server.test"
    assert len(dispatcher.prompts) == 1
    assert dispatcher.nonces == []


HONEST = Enclave(key=SigningKey(OTHER))
BAD: list[tuple[str, Dispatcher, type[AOSError], str]] = [
    ("no enclave named", Dispatcher(enclaves=[]), VerificationError, "tee.report"),
    ("of another model", Dispatcher(report={"model_id": b64u_encode(OTHER)}), VerificationError, "tee.report"),
    ("an unknown member", Dispatcher(report={"gateway_attestation": {}}), InvalidMessage, "field.unknown"),
    ("an enclave named twice", Dispatcher(enclaves=[Enclave(), Enclave()]), InvalidMessage, "tee.report_twice"),
    ("another version", Dispatcher(report={"v": 1}), InvalidMessage, "statement.version"),
    ("no list of models", Dispatcher(models={}), InvalidMessage, "client.not_aos"),
    ("an unknown model", Dispatcher(models={"models": []}), InvalidMessage, "model.unknown"),
] + [
    (f"{where}: {code} {sorted(changes)}", Dispatcher(enclaves=[HONEST, Enclave(**{where: changes})]), cls, code)
    for where, changes, cls, code in (
        ("boot", {"network": "other"}, VerificationError, "tee.report"),
        ("boot", {"model_id": OTHER}, VerificationError, "tee.report"),
        ("boot", {"tee": "nitro"}, VerificationError, "tee.no_trusted_root"),
        ("boot", {"enclave_key": OTHER}, VerificationError, "tee.boot_signature"),
        ("boot", {"booted_at": 0, "not_after": 3_600_000}, VerificationError, "tee.boot_expired"),
        ("document", {"user_data": OTHER}, VerificationError, "tee.boot_not_bound"),
        ("document", {"public_key": public_key_info(OTHER)}, VerificationError, "tee.boot_not_bound"),
        ("document", {"nonce": OTHER}, VerificationError, "attest.nonce"),
        ("document", {"nonce": None}, VerificationError, "attest.nonce"),
        ("document", {"time": -360_000}, VerificationError, "attest.stale"),
        ("document", {"time": 360_000}, VerificationError, "attest.future"),
        ("document", {"pcrs": dict.fromkeys(range(3), bytes(48))}, VerificationError, "attest.debug"),
        ("document", {"pcrs": {0: PCRS[0], 1: PCRS[1], 2: PCRS[0]}}, VerificationError, "tee.measurement"),
        ("document", {"platform": SimulatedPlatform(OTHER)}, VerificationError, "attest.root"),
        ("entry", {"signing_address": OTHER.hex()}, VerificationError, "tee.report"),
        ("entry", {"request_nonce": OTHER.hex()}, VerificationError, "tee.report"),
        ("entry", {"operator": "0x" + "22" * 20}, VerificationError, "tee.report"),
        ("entry", {"signing_algo": "ecdsa"}, InvalidMessage, "field.range"),
        ("entry", {"document": "AAAA"}, VerificationError, "attest.envelope"),
    )
]  # fmt: skip


@pytest.mark.parametrize(("dispatcher", "cls", "code"), [case[1:] for case in BAD], ids=[c[0] for c in BAD])
def test_no_prompt_is_sent_where_an_enclave_is_not_believed(
    dispatcher: Dispatcher, cls: type[AOSError], code: str
) -> None:
    """One honest enclave beside it does not help: the draw decides, not the requester."""
    error = submit(dispatcher)
    assert (type(error), error.code) == (cls, code)
    assert dispatcher.prompts == []


def test_no_prompt_is_sent_where_no_enclave_answers() -> None:
    dispatcher = Dispatcher(status=503)
    error = submit(dispatcher)
    assert (type(error), error.code) == (Unavailable, "attestation.none")
    assert dispatcher.prompts == []


@pytest.mark.parametrize("policy", ["default", "production"])
def test_no_prompt_is_sent_to_a_simulated_enclave_unless_the_policy_names_it(policy: str) -> None:
    dispatcher = Dispatcher()
    assert submit(dispatcher, policy=load_policy(policy)).code == "tee.policy"
    assert dispatcher.prompts == []


@pytest.mark.parametrize(
    ("trust", "code"),
    [
        (replace(NETWORK.trust(), tee_measurements=()), "tee.no_trusted_root"),
        (
            replace(NETWORK.trust(), tee_measurements=(measured({0: PCRS[1], 1: PCRS[1], 2: PCRS[2]}),)),
            "tee.measurement",
        ),
        (replace(NETWORK.trust(), network="other"), "tee.report"),
        (None, "client.no_trust"),
    ],
)
def test_no_prompt_is_sent_where_the_trust_file_names_nothing_to_believe(
    trust: Trust | None, code: str
) -> None:
    dispatcher = Dispatcher()
    error = submit(dispatcher, trust=trust)
    assert error.code == code
    assert isinstance(error, ConfigError if trust is None else VerificationError)
    assert dispatcher.prompts == []


def test_only_a_tee_job_can_be_attested() -> None:
    dispatcher = Dispatcher()
    assert submit(dispatcher, asked=submission(job_type="opml")).code == "client.attested"
    assert dispatcher.prompts == []


def test_the_accepted_request_must_be_for_the_model_that_was_believed() -> None:
    client = Client("http://127.0.0.1:9", project="p", token="t", dispatcher=NETWORK.dispatcher)
    answer = NETWORK.run(job_type="tee")
    data = answer.request.encode()
    client._call = lambda *_, **__: type("R", (), {"content": data})()  # type: ignore[method-assign, assignment, return-value]
    asked = Submission(
        prompt="What is AI?", model="demo.gguf", job_type="tee", user="someone", params={}, attested=True
    )
    accepted = answer.acceptance.statement

    def check(model_id: bytes | None) -> None:
        client._check_request("0" * 64, asked, accepted, answer.nonce, model_id)

    check(NETWORK.model_id)
    check(None)
    with pytest.raises(VerificationError) as caught:
        check(OTHER)
    assert caught.value.code == "client.request"


# --- aos attest verify


def test_a_report_is_judged_enclave_by_enclave(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from aos.cli.app import app

    nonce = secret("my nonce")
    policy = {
        "type": "aos.attest.policy",
        "v": 2,
        "name": "simulation",
        "tees": ["simulated"],
        "simulated_roots": [platform_of(NETWORK.name).root.hex()],
        "nitro": [{f"pcr{index}": PCRS[index].hex() for index in range(3)}],
        "tdx": [],
        "sgx": [],
        "snp": [],
        "nvidia": [],
        "intel": None,
        "models": [NETWORK.model_id.hex()],
        "nonce_required": True,
        "max_age_ms": 300_000,
        "max_weight_per_device": 0,
    }
    (tmp_path / "policy.json").write_text(json.dumps(policy))

    def judge(dispatcher: Dispatcher) -> tuple[int, str]:
        _, report = dispatcher.answer(f"/v1/attestation/report?nonce={nonce.hex()}")
        (tmp_path / "report.json").write_text(json.dumps(report))
        arguments = ["attest", "verify", str(tmp_path / "report.json")]
        arguments += ["--policy", str(tmp_path / "policy.json"), "--nonce", nonce.hex()]
        done = CliRunner().invoke(app, arguments)
        return done.exit_code, done.output

    code, output = judge(Dispatcher(enclaves=[Enclave(), Enclave(key=SigningKey(OTHER))]))
    assert code == 0, output
    for line in ("boot-1", "measure-1", "model-1", "nonce-1"):
        assert output.count(f"PASS {line}") == 2
    verdict = (
        'ACCEPTED: SIMULATED nitro under policy "simulation", with its boot statement: its key and model'
    )
    assert output.count(verdict) == 2
    assert "ACCEPTED: 2 of 2 enclaves accepted\n" in output
    absent = {"operator": "0x" + "33" * 20, "code": "attestation.late"}
    code, output = judge(Dispatcher(left_out=[absent]))
    assert code == 0
    assert f"LEFT OUT {absent['operator']}: it gave the dispatcher no document [attestation.late]" in output
    assert "1 of 1 enclaves accepted; 1 left out, nothing is known of them" in output
    over = {"booted_at": now_ms() - 60_000, "not_after": now_ms() - 30_000}
    code, output = judge(Dispatcher(enclaves=[Enclave(boot=over)]))
    assert (code, "FAIL boot-1" in output, "[tee.boot_expired]" in output) == (10, True, True)
    code, output = judge(
        Dispatcher(enclaves=[Enclave(key=SigningKey(OTHER)), Enclave(document={"user_data": OTHER})])
    )
    assert code == 10
    assert "[tee.boot_not_bound]" in output
    assert "REFUSED: 1 of 2 enclaves accepted" in output
    code, output = judge(Dispatcher(enclaves=[Enclave(boot={"model_id": OTHER})]))
    assert (code, "[tee.report]" in output) == (10, True)
    policy["models"] = [sha256(b"another").hexdigest()]
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    code, output = judge(Dispatcher())
    assert (code, "[attest.policy_model]" in output) == (10, True)
