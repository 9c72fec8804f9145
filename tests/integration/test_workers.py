"""The real workers as processes: an opML worker, and a TEE worker with its SIMULATED enclave's process, over HTTP.

Started as ``aos up`` starts them, with the demo model. The enclave's own socket: ``test_enclave.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from aos.adapters.enclave_image import engine_digest, simulated_pcrs
from aos.adapters.frames import FrameStream
from aos.adapters.processes import Process, log_contains
from aos.adapters.simulated_nsm import create_simulated_platform
from aos.core import hashes
from aos.core.attest.result import simulated_anchor
from aos.core.codec import decode, encode
from aos.core.encoding import b64u_decode, b64u_encode, canonical_json
from aos.core.statements import Params, Request, RequestJob, hash_of
from aos.core.tee import (
    References,
    TeeBootEvidence,
    TeeEvidence,
    read_evidence,
    verify_answer_document,
    verify_boot,
    verify_evidence,
)
from aos.engine import load_engine
from aos.errors import ConfigError
from aos.ports import Engine, SamplingParams
from aos.workers.enclave_host import EnclaveHost, SimulatedEnclave
from aos.workers.question import MAX_BODY_BYTES

MODEL = Path(__file__).parents[2] / "models" / "aos-demo.Q8_0.gguf"
TOKEN = "a-token-of-the-tests-own"
NETWORK = "aos-test"
OPERATOR = "0x" + "11" * 20
OTHER_OPERATOR = "0x" + "22" * 20
NONCE = sha256(b"nonce").digest()
JOB_REF = sha256(b"job").digest()
VRF_KEY = sha256(b"draw key").digest()
POLICY = sha256(b"policy").digest()
PATIENCE_S = 120.0

GREEDY = Params(
    temperature=0,
    top_p=1_000_000,
    top_k=0,
    min_p=0,
    repeat_penalty=1_000_000,
    max_tokens=6,
    stop=(),
    seed=None,
)
# What was said before is favoured tenfold: it repeats itself to the end and never stops.
ENDLESS = replace(GREEDY, repeat_penalty=100_000, max_tokens=1_900)


@dataclass(frozen=True)
class Worker:
    """A worker's process and the way to it."""

    process: Process
    url: str
    references: References | None = None

    def get(self, path: str, token: str | None = TOKEN) -> httpx.Response:
        return httpx.get(self.url + path, headers=bearer(token), timeout=PATIENCE_S)

    def status(self) -> dict[str, Any]:
        answer = self.get("/api/v1/status").json()
        assert answer["code"] == 200
        result: dict[str, Any] = answer["result"]
        return result

    def runs(self, outcome: str) -> int:
        name = f'aos_worker_runs_total{{outcome="{outcome}"}} '
        (line,) = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name)]
        return int(line.removeprefix(name))

    def post(self, body: Any, token: str | None = TOKEN) -> httpx.Response:
        return httpx.post(self.url + "/api/v1/question", json=body, headers=bearer(token), timeout=PATIENCE_S)

    def boot(self, **changes: Any) -> TeeBootEvidence:
        """Boot the worker's enclave, as its operator does under a challenge."""
        order = {
            "network": NETWORK,
            "operator": OPERATOR,
            "vrf_key": b64u_encode(VRF_KEY),
            "policy": b64u_encode(POLICY),
            "nonce": b64u_encode(os.urandom(32)),
        }
        answer = self.send("boot", order | changes)
        assert answer.status_code == 200, answer.text
        return decode(TeeBootEvidence, answer.json()["result"])

    def send(self, route: str, body: Any) -> httpx.Response:
        url = f"{self.url}/api/v1/{route}"
        return httpx.post(url, json=body, headers=bearer(TOKEN), timeout=PATIENCE_S)

    def ask(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Every event of a question that is taken."""
        answer = self.post(body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.text.splitlines()]

    def give_up_after_one_token(self, body: dict[str, Any]) -> None:
        with self.stream(body) as answer:
            assert json.loads(next(answer.iter_lines()))["event"] == "token"

    def stream(self, body: dict[str, Any]) -> Any:
        return httpx.stream(
            "POST", self.url + "/api/v1/question", json=body, headers=bearer(TOKEN), timeout=PATIENCE_S
        )


def bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"authorization": f"Bearer {token}"}


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def started(directory: Path, kind: str, *arguments: str, token: str = TOKEN) -> Process:
    argv = [sys.executable, "-m", f"aos.workers.{kind}_main", "--model", str(MODEL)]
    env = {"AOS_WORKER_TOKEN": token, "TMPDIR": str(directory)}
    process = Process(
        kind,
        [*argv, "--listen", "127.0.0.1:0", *arguments],
        log_path=directory / f"{kind}.log",
        env=env,
        ready=log_contains('"worker.ready"'),
        ready_timeout_s=PATIENCE_S,
    )
    process.start()
    return process


def url_of(process: Process) -> str:
    lines = [line for line in process.log_since_start().decode().splitlines() if '"worker.ready"' in line]
    return str(json.loads(lines[0])["address"])


def start_tee(directory: Path, *arguments: str) -> Worker:
    key = directory / "platform.key"
    anchor, pcrs = simulated_anchor(create_simulated_platform(key)), simulated_pcrs()
    process = started(
        directory,
        "tee",
        *("--operator", OPERATOR, "--network", NETWORK, "--platform-key", str(key), *arguments),
    )
    references = References(anchors=(anchor,), images=frozenset({(pcrs[0], pcrs[1], pcrs[2])}))
    worker = Worker(process, url_of(process), references)
    worker.boot()
    return worker


@pytest.fixture(scope="module")
def opml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    directory = tmp_path_factory.mktemp("opml")
    process = started(directory, "opml", "--cache-dir", str(directory / "cache"))
    yield Worker(process, url_of(process))
    process.stop()


@pytest.fixture(scope="module")
def tee(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = start_tee(tmp_path_factory.mktemp("tee"))
    yield worker
    worker.process.stop()


@pytest.fixture(params=["opml", "tee"])
def worker(request: pytest.FixtureRequest) -> Worker:
    found: Worker = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The reference engine in this process: what an opML worker must give, to the bit."""
    return load_engine(MODEL, kind="reference", cache_dir=None)


def request_of(kind: str, engine: Engine, params: Params = GREEDY, **changes: Any) -> Request:
    job = RequestJob(
        tag="opml" if kind == "opml" else "tee",
        prompt="What is AI?",
        model=MODEL.name,
        model_id=engine.model_id,
        params=params,
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
        issued_at=1_780_000_000_000,
    )
    return replace(asked, **changes)


def question(request: Request, **changes: Any) -> dict[str, Any]:
    body = {
        "job_ref": b64u_encode(JOB_REF),
        "attempt": 1,
        "operator": OPERATOR,
        "role": "executor",
        "request": canonical_json(encode(request)).decode(),
        "nonce": b64u_encode(NONCE),
        "sampling_seed": "77",
    }
    return body | changes


def kind_of(worker: Worker) -> str:
    return worker.process.name


# --- both workers -------------------------------------------------------------------------------------------


def test_the_status_says_what_runs_and_that_it_is_free(worker: Worker, engine: Engine) -> None:
    status = worker.status()
    assert status["kind"] == kind_of(worker)
    assert status["model"] == MODEL.name
    assert b64u_decode(status["model_id"]) == engine.model_id
    assert (status["capacity"], status["busy"]) == (1, 0)
    assert type(status["uptime_s"]) is int
    assert worker.get("/health", token=None).status_code == 200


def test_an_answer_is_streamed_token_by_token_and_then_whole(worker: Worker, engine: Engine) -> None:
    *tokens, result = worker.ask(question(request_of(kind_of(worker), engine)))
    assert [event["event"] for event in tokens] == ["token"] * len(tokens)
    assert [event["index"] for event in tokens] == list(range(len(tokens)))
    assert result["event"] == "result"
    assert [event["token"] for event in tokens] == result["tokens"]
    assert "".join(event["text"] for event in tokens) == result["text"]
    assert len(result["tokens"]) == GREEDY.max_tokens
    assert result["finish_reason"] == "length"
    prompt = engine.tokenize("What is AI?")
    assert result["n_prompt"] == len(prompt)
    assert b64u_decode(result["prompt_tokens_hash"]) == hashes.prompt_tokens_hash(NONCE, prompt)
    assert b64u_decode(result["model_id"]) == engine.model_id


def test_the_first_token_comes_before_the_last_is_made(worker: Worker, engine: Engine) -> None:
    before = worker.runs("cancelled")
    with worker.stream(question(request_of(kind_of(worker), engine, ENDLESS))) as answer:
        lines = answer.iter_lines()  # kept: the response closes with it
        assert json.loads(next(lines))["index"] == 0
        assert worker.status()["busy"] == 1
    wait_for(lambda: worker.status()["busy"] == 0, "the run ends when its client goes")
    assert worker.runs("cancelled") == before + 1


def test_a_second_question_is_told_to_come_back(worker: Worker, engine: Engine) -> None:
    body = question(request_of(kind_of(worker), engine, ENDLESS))
    with worker.stream(body) as answer:
        lines = answer.iter_lines()  # kept: the response closes with it
        next(lines)
        refused = worker.post(body)
        assert (refused.status_code, refused.json()["error"]) == (429, "worker.busy")
        assert int(refused.headers["retry-after"]) >= 1
        assert worker.status()["busy"] == 1
    wait_for(lambda: worker.status()["busy"] == 0, "the run ends when its client goes")


def test_after_a_cancelled_run_the_next_answer_is_the_same_as_ever(worker: Worker, engine: Engine) -> None:
    asked = question(request_of(kind_of(worker), engine))
    before = worker.ask(asked)[-1]
    worker.give_up_after_one_token(question(request_of(kind_of(worker), engine, ENDLESS)))
    wait_for(lambda: worker.status()["busy"] == 0, "the run ends when its client goes")
    after = worker.ask(asked)[-1]
    for member in ("tokens", "text", "finish_reason", "state_root", "prompt_tokens_hash"):
        assert after[member] == before[member]


def test_the_requests_own_seed_wins_over_the_given_one(worker: Worker, engine: Engine) -> None:
    drawn = replace(GREEDY, temperature=10_000_000)
    own = request_of(kind_of(worker), engine, replace(drawn, seed="5"))
    first = worker.ask(question(own, sampling_seed="1"))[-1]["tokens"]
    assert worker.ask(question(own, sampling_seed="2"))[-1]["tokens"] == first
    without = request_of(kind_of(worker), engine, drawn)
    assert worker.ask(question(without, sampling_seed="5"))[-1]["tokens"] == first
    assert worker.ask(question(without, sampling_seed="6"))[-1]["tokens"] != first


def test_only_who_has_the_token_may_ask(worker: Worker, engine: Engine) -> None:
    body = question(request_of(kind_of(worker), engine))
    for token in (None, "x", TOKEN[:-1], TOKEN + "x"):
        for answer in (worker.get("/api/v1/status", token=token), worker.post(body, token=token)):
            assert (answer.status_code, answer.json()["error"]) == (401, "worker.unauthorised")
            assert answer.headers["www-authenticate"] == "Bearer"


def bent_request(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A question whose request bytes hold something else, in canonical form."""

    def bend(body: dict[str, Any]) -> dict[str, Any]:
        value = json.loads(body["request"])
        for path, item in changes.items():
            at = value
            *way, last = path.split("__")
            for name in way:
                at = at[name]
            at[last] = item
        return body | {"request": canonical_json(value).decode()}

    return bend


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda body: {key: value for key, value in body.items() if key != name}


def with_(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda body: body | changes


BAD = [
    ("a missing member", without("nonce"), 400, "field.missing", "nonce"),
    ("an unknown member", with_(extra=1), 400, "field.unknown", "extra"),
    ("a job_ref of 31 bytes", with_(job_ref=b64u_encode(bytes(31))), 400, "field.range", "job_ref"),
    ("no base64url", with_(nonce="+/=="), 400, "field.type", "nonce"),
    ("an upper-case address", with_(operator="0x" + "AA" * 20), 400, "field.range", "operator"),
    ("attempt 0", with_(attempt=0), 400, "field.range", "attempt"),
    ("an attempt in text", with_(attempt="1"), 400, "field.type", "attempt"),
    ("an attempt with a point", with_(attempt=1.0), 400, "field.type", "attempt"),
    ("an unknown role", with_(role="judge"), 400, "field.range", "role"),
    ("a seed of 65 bits", with_(sampling_seed=str(2**64)), 400, "field.range", "sampling_seed"),
    ("a negative seed", with_(sampling_seed="-1"), 400, "field.range", "sampling_seed"),
    ("a seed as a number", with_(sampling_seed=1), 400, "field.type", "sampling_seed"),
    ("tokens for an executor", with_(tokens=[1]), 400, "question.tokens", "tokens"),
    ("a checker without tokens", with_(role="checker"), 400, "question.tokens", "tokens"),
    ("a token of 33 bits", with_(role="checker", tokens=[2**32]), 400, "field.range", "tokens[0]"),
    ("too many tokens", with_(role="checker", tokens=[1] * 65_537), 400, "field.range", "tokens"),
    ("a request that is an object", with_(request={}), 400, "field.type", "request"),
    ("a request that is too long", with_(request=" " * 1_048_577), 400, "field.range", "request"),
    ("a request that is no JSON", with_(request="{"), 400, "encoding.syntax", None),
    (
        "a request with a space",
        lambda body: body | {"request": body["request"] + " "},
        400,
        "encoding.not_canonical",
        None,
    ),
    (
        "a request for another kind",
        lambda body: bent_request(job__tag="tee" if '"opml"' in body["request"] else "opml")(body),
        409,
        "worker.job_type",
        "request.job.tag",
    ),
    (
        "another model",
        bent_request(job__model_id=b64u_encode(bytes(32))),
        409,
        "worker.model",
        "request.job.model_id",
    ),
    (
        "an unknown member inside",
        bent_request(job__more=1),
        400,
        "field.unknown",
        "request.job.more",
    ),
    (
        "a temperature out of range",
        bent_request(job__params__temperature=10_000_001),
        400,
        "field.range",
        "request.job.params.temperature",
    ),
    (
        "max_tokens 0",
        bent_request(job__params__max_tokens=0),
        400,
        "field.range",
        "request.job.params.max_tokens",
    ),
    ("another version", bent_request(v=2), 400, "statement.version", "request.v"),
]


@pytest.mark.parametrize(
    ("bend", "status", "code", "field"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_input_is_refused_by_name(
    bend: Callable[[dict[str, Any]], dict[str, Any]],
    status: int,
    code: str,
    field: str | None,
    worker: Worker,
    engine: Engine,
) -> None:
    answer = worker.post(bend(question(request_of(kind_of(worker), engine))))
    value = answer.json()
    assert (answer.status_code, value["error"], value["field"]) == (status, code, field)
    assert value["code"] == status
    assert value["message"]
    assert worker.status()["busy"] == 0


def test_a_prompt_longer_than_the_context_is_refused(worker: Worker, engine: Engine) -> None:
    asked = request_of(kind_of(worker), engine)
    long = replace(asked, job=replace(asked.job, prompt="What is AI? " * 1_000))
    answer = worker.post(question(long))
    assert (answer.status_code, answer.json()["error"]) == (400, "engine.prompt_too_long")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "encoding.syntax"),
        (b"[]", "field.type"),
        (b"null", "field.type"),
        (b'{"a": 1, "a": 2}', "encoding.duplicate_key"),
        (b"\xff{}", "encoding.utf8"),
        (b"\xef\xbb\xbf{}", "encoding.bom"),
        (b"[" * 100_000, "encoding.depth"),
        (b'{"job_ref": NaN}', "encoding.nan"),
    ],
)
def test_a_body_that_is_no_strict_json_object_is_refused(body: bytes, code: str, worker: Worker) -> None:
    headers = {"content-type": "application/json", **bearer(TOKEN)}
    answer = httpx.post(worker.url + "/api/v1/question", content=body, headers=headers, timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()["error"]) == (400, code)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/v1/question", 405, "http.method"),
        ("POST", "/api/v1/status", 405, "http.method"),
        ("DELETE", "/metrics", 405, "http.method"),
        ("GET", "/", 404, "http.not_found"),
        ("GET", "/api/v1/question/", 404, "http.not_found"),
        ("GET", "/api/v1/../v1/shutdown", 404, "http.not_found"),
    ],
)
def test_there_are_no_other_routes(method: str, path: str, status: int, code: str, worker: Worker) -> None:
    answer = httpx.request(method, worker.url + path, headers=bearer(TOKEN), timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()["error"]) == (status, code)


def test_a_body_of_another_type_is_refused(worker: Worker) -> None:
    headers = {"content-type": "text/plain", **bearer(TOKEN)}
    answer = httpx.post(worker.url + "/api/v1/question", content=b"{}", headers=headers, timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()["error"]) == (415, "http.content_type")


def raw(worker: Worker, sent: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes and read the whole answer, without ever sending more."""
    host, port = worker.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            length = 0
            while (line := answer.readline()) != b"\r\n":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            return status, json.loads(answer.read(length))


def head(worker: Worker, *lines: str) -> bytes:
    first = ["POST /api/v1/question HTTP/1.1", f"Host: {worker.url.removeprefix('http://')}"]
    rest = ["Content-Type: application/json", *lines]
    return ("\r\n".join([*first, *rest]) + "\r\n\r\n").encode()


def test_a_body_that_is_announced_too_large_is_refused_before_a_byte_of_it_is_there(worker: Worker) -> None:
    sent = head(worker, f"Authorization: Bearer {TOKEN}", f"Content-Length: {MAX_BODY_BYTES + 1}")
    status, value = raw(worker, sent)
    assert (status, value["error"]) == (413, "http.too_large")


def test_a_body_without_a_length_is_cut_off_where_it_becomes_too_large(worker: Worker) -> None:
    size = MAX_BODY_BYTES + 1
    sent = head(worker, f"Authorization: Bearer {TOKEN}", "Transfer-Encoding: chunked")
    status, value = raw(worker, sent + f"{size:x}\r\n".encode() + b"[" * size + b"\r\n")
    assert (status, value["error"]) == (413, "http.too_large")


def test_who_has_no_token_is_refused_before_the_body(worker: Worker) -> None:
    status, value = raw(worker, head(worker, "Content-Length: 1000"))
    assert (status, value["error"]) == (401, "worker.unauthorised")


def test_neither_prompt_nor_answer_is_in_the_log(worker: Worker, engine: Engine) -> None:
    text = worker.ask(question(request_of(kind_of(worker), engine)))[-1]["text"]
    log = worker.process.log_since_start().decode()
    assert "What is AI" not in log
    assert text.strip()
    assert text.strip() not in log
    assert TOKEN not in log


# --- opML ---------------------------------------------------------------------------------------------------


def test_an_opml_answer_has_the_bits_of_the_specification(opml: Worker, engine: Engine) -> None:
    result = opml.ask(question(request_of("opml", engine)))[-1]
    params = SamplingParams(temperature=0, max_tokens=GREEDY.max_tokens, seed=77)
    expected = engine.generate("What is AI?", params, salt=NONCE)
    assert tuple(result["tokens"]) == expected.tokens
    assert result["text"] == expected.text
    assert b64u_decode(result["state_root"]) == expected.state_root
    assert result["engine"] == engine.profile
    assert result["evidence"] is None


def test_a_checker_replays_the_claimed_tokens(opml: Worker, engine: Engine) -> None:
    asked = request_of("opml", engine)
    claimed = opml.ask(question(asked))[-1]
    (replayed,) = opml.ask(question(asked, role="checker", tokens=claimed["tokens"]))
    assert replayed == claimed, "a replay is the whole run and streams nothing"
    lie = [*claimed["tokens"][:3], claimed["tokens"][3] ^ 1, *claimed["tokens"][4:]]
    (replayed,) = opml.ask(question(asked, role="checker", tokens=lie))
    assert replayed == claimed, "where the claim differs, the checker's own whole run"


def test_a_token_that_the_model_does_not_have_is_refused(opml: Worker, engine: Engine) -> None:
    answer = opml.post(question(request_of("opml", engine), role="checker", tokens=[2**32 - 1]))
    assert (answer.status_code, answer.json()["error"]) == (400, "engine.token")


def test_the_seeds_question_is_answered_whole(opml: Worker, engine: Engine) -> None:
    params = {"temperature": 0, "max_tokens": 5, "seed": 3}
    body = {"model": MODEL.name, "prompt": "What is AI?", "req_id": "r-1", "params": params}
    answer = opml.post(body)
    assert (answer.status_code, answer.json()["code"]) == (200, 200)
    result = answer.json()["result"]
    expected = engine.generate(
        "What is AI?",
        SamplingParams(temperature=0, max_tokens=5, seed=3),
        salt=b64u_decode(result["nonce"]),
    )
    assert (result["req_id"], result["model"], result["prompt"]) == ("r-1", MODEL.name, "What is AI?")
    assert (result["answer"], result["n_out"]) == (expected.text, 5)
    assert b64u_decode(result["state_root"]) == expected.state_root
    assert result["sampling_seed"] == "3"


@pytest.mark.parametrize(
    ("changes", "status", "code", "field"),
    [
        ({"model": "other.gguf"}, 409, "worker.model", "model"),
        ({"prompt": 5}, 400, "field.type", "prompt"),
        ({"params": []}, 400, "field.type", "params"),
        ({"params": {"temperature": 11}}, 400, "field.range", "params.temperature"),
        ({"params": {"top_p": "0.5"}}, 400, "field.type", "params.top_p"),
        ({"params": {"seed": -1}}, 400, "field.type", "params.seed"),
        ({"params": {"best_of": 3}}, 400, "field.unknown", "params.best_of"),
        ({"temperature": 1}, 400, "field.unknown", "temperature"),
    ],
)
def test_the_seeds_question_is_read_as_strictly(
    changes: dict[str, Any], status: int, code: str, field: str, opml: Worker
) -> None:
    answer = opml.post({"model": MODEL.name, "prompt": "What is AI?"} | changes)
    value = answer.json()
    assert (answer.status_code, value["error"], value["field"]) == (status, code, field)


def test_without_a_token_only_this_machine_by_its_own_name_may_ask(tmp_path: Path, engine: Engine) -> None:
    argv = [sys.executable, "-m", "aos.workers.opml_main", "--model", str(MODEL), "--listen", "127.0.0.1:0"]
    process = Process("opml", argv, log_path=tmp_path / "log", ready=log_contains('"worker.ready"'))
    process.start()
    try:
        url = url_of(process)
        assert httpx.get(url + "/api/v1/status", timeout=PATIENCE_S).status_code == 200
        answer = httpx.get(url + "/api/v1/status", headers={"host": "evil.example"}, timeout=PATIENCE_S)
        assert (answer.status_code, answer.json()["error"]) == (403, "worker.foreign_host")
    finally:
        process.stop()
    assert process.poll() == 0, "asked to end, it ends well"


def test_an_address_that_others_reach_needs_a_token(tmp_path: Path) -> None:
    for kind in ("opml", "tee"):
        argv = [sys.executable, "-m", f"aos.workers.{kind}_main", "--model", str(MODEL)]
        argv += ["--listen", "0.0.0.0:0"]
        process = Process(kind, argv, log_path=tmp_path / kind)
        process.start()
        try:
            wait_for(lambda process=process: process.poll() is not None, "it refuses to start")
        finally:
            process.kill()
        assert process.poll() == ConfigError.exit_code
        assert "worker.exposed" in process.log_tail()


# --- TEE, SIMULATED -----------------------------------------------------------------------------------------


def evidence_of(result: dict[str, Any], worker: Worker) -> TeeEvidence:
    evidence = read_evidence(result["evidence"])
    assert worker.references is not None
    verify_evidence(evidence, references=worker.references, at_ms=time.time_ns() // 1_000_000)
    return evidence


def test_the_status_of_a_tee_worker_says_that_it_is_simulated(tee: Worker) -> None:
    status = tee.status()
    assert (status["tee"], status["label"]) == ("simulated", "SIMULATED, NO HARDWARE")
    enclave = status["enclave"]
    assert alive(enclave["pid"])
    assert enclave["pid"] != tee.process.pid
    assert enclave["operator"] == OPERATOR
    assert bytes.fromhex(enclave["engine_digest"]) == engine_digest(status["engine"])


def test_a_tee_answer_carries_evidence_for_exactly_this_question(tee: Worker, engine: Engine) -> None:
    asked = request_of("tee", engine)
    result = tee.ask(question(asked))[-1]
    evidence = evidence_of(result, tee)
    statement = evidence.answer
    assert evidence.boot.network == NETWORK
    assert statement.operator == evidence.boot.operator == OPERATOR
    assert hash_of(evidence.boot).hex() == tee.status()["enclave"]["boot"]
    assert (statement.job_ref, statement.attempt, statement.sampling_seed) == (JOB_REF, 1, "77")
    assert statement.request_hash == hashes.request_hash(NONCE, canonical_json(encode(asked)))
    assert statement.response_hash == hashes.response_hash(NONCE, result["text"])
    assert statement.tokens_hash == hashes.tokens_hash(NONCE, result["tokens"])
    assert statement.params_hash == hashes.params_hash(NONCE, asked.job.params)
    assert statement.prompt_tokens_hash == b64u_decode(result["prompt_tokens_hash"])
    assert (statement.n_out, statement.finish_reason) == (len(result["tokens"]), "length")
    assert statement.engine == result["engine"]
    assert result["engine"] == engine.profile, (
        "the canonical engine unless told otherwise: it can be replayed"
    )
    assert statement.model_id == engine.model_id


def test_answers_are_numbered_and_a_cancelled_run_uses_no_number(tee: Worker, engine: Engine) -> None:
    asked = question(request_of("tee", engine))
    first = evidence_of(tee.ask(asked)[-1], tee).answer
    tee.give_up_after_one_token(question(request_of("tee", engine, ENDLESS)))
    wait_for(lambda: tee.status()["busy"] == 0, "the run ends when its client goes")
    second = evidence_of(tee.ask(asked)[-1], tee).answer
    assert second.boot == first.boot
    assert second.sequence == first.sequence + 1
    assert second.previous == hash_of(first)


@pytest.mark.parametrize(
    ("changes", "status", "code", "field"),
    [
        ({"role": "checker", "tokens": [1]}, 409, "question.role", "role"),
        ({"operator": OTHER_OPERATOR}, 409, "worker.other_operator", "operator"),
    ],
)
def test_an_enclave_works_for_one_operator_and_checks_for_nobody(
    changes: dict[str, Any], status: int, code: str, field: str, tee: Worker, engine: Engine
) -> None:
    answer = tee.post(question(request_of("tee", engine), **changes))
    value = answer.json()
    assert (answer.status_code, value["error"], value["field"]) == (status, code, field)


def test_a_request_of_another_network_is_refused(tee: Worker, engine: Engine) -> None:
    answer = tee.post(question(request_of("tee", engine, network="aos-other")))
    value = answer.json()
    assert (answer.status_code, value["error"], value["field"]) == (
        409,
        "worker.other_operator",
        "request.network",
    )


def test_an_enclave_signs_nothing_for_a_bare_prompt(tee: Worker) -> None:
    answer = tee.post({"model": MODEL.name, "prompt": "What is AI?"})
    value = answer.json()
    assert (answer.status_code, value["error"], value["field"]) == (400, "question.unbound", "request")


def ready_again(worker: Worker, former: int) -> bool:
    enclave = worker.status()["enclave"]
    return worker.get("/health").status_code == 200 and enclave["pid"] not in (None, former)


def test_an_enclave_that_is_killed_in_a_run_ends_it_by_name_and_the_next_one_boots_anew(
    tee: Worker, engine: Engine
) -> None:
    asked = question(request_of("tee", engine))
    before = evidence_of(tee.ask(asked)[-1], tee)
    status = tee.status()["enclave"]
    failed = tee.runs("failed")
    with tee.stream(question(request_of("tee", engine, ENDLESS))) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines))["event"] == "token"
        os.kill(status["pid"], signal.SIGKILL)
        *_, last = [json.loads(line) for line in lines]
    assert (last["event"], last["code"]) == ("error", "enclave.died")
    assert tee.process.poll() is None
    assert tee.runs("failed") == failed + 1
    wait_for(lambda: ready_again(tee, status["pid"]), "another enclave runs")
    refused = tee.post(asked)
    assert (refused.status_code, refused.json()["error"]) == (503, "enclave.not_booted")
    assert tee.status()["enclave"]["boot"] is None
    tee.boot()
    after = evidence_of(tee.ask(asked)[-1], tee)
    assert tee.status()["enclave"]["starts"] == status["starts"] + 1
    assert after.boot.enclave_key != before.boot.enclave_key
    assert after.boot.nonce != before.boot.nonce
    assert after.boot.engine_digest == before.boot.engine_digest
    assert (after.answer.sequence, after.answer.previous) == (1, b"")


def test_while_no_enclave_runs_a_question_is_told_to_come_back(tee: Worker, engine: Engine) -> None:
    asked = question(request_of("tee", engine))
    pid = tee.status()["enclave"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), "it is dead")
    seen = []

    def answered() -> bool:
        answer = tee.post(asked)
        if answer.status_code == 200:
            return True
        seen.append(answer.json()["error"])
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        if seen[-1] == "enclave.not_booted":
            tee.boot()
        return False

    wait_for(answered, "the next enclave answers")
    assert set(seen) <= {"enclave.starting", "enclave.died", "enclave.not_booted"}
    assert "enclave.not_booted" in seen


def test_a_document_of_now_vouches_for_the_boot_and_another_for_an_answer(
    tee: Worker, engine: Engine
) -> None:
    assert tee.references is not None
    tee.boot()
    evidence = evidence_of(tee.ask(question(request_of("tee", engine)))[-1], tee)
    nonce, now = os.urandom(32), time.time_ns() // 1_000_000
    order = {"answer": "", "nonce": b64u_encode(nonce)}
    fresh = decode(TeeBootEvidence, tee.send("document", order).json()["result"])
    assert fresh.boot == evidence.boot
    verify_boot(fresh, references=tee.references, at_ms=now, nonce=nonce, max_age_ms=300_000)
    order["answer"] = b64u_encode(hash_of(evidence.answer))
    of_answer = decode(TeeBootEvidence, tee.send("document", order).json()["result"])
    verify_answer_document(
        of_answer.document, evidence=evidence, references=tee.references, at_ms=now, nonce=nonce
    )
    unknown = tee.send("document", order | {"answer": b64u_encode(bytes(32))})
    assert (unknown.status_code, unknown.json()["error"]) == (409, "enclave.unknown_answer")


def test_an_enclave_boots_for_its_operator_only_and_not_in_a_run(tee: Worker, engine: Engine) -> None:
    order = {
        "network": NETWORK,
        "operator": OTHER_OPERATOR,
        "vrf_key": b64u_encode(VRF_KEY),
        "policy": b64u_encode(POLICY),
        "nonce": b64u_encode(bytes(32)),
    }
    refused = tee.send("boot", order)
    assert (refused.status_code, refused.json()["error"]) == (409, "worker.other_operator")
    refused = tee.send("boot", order | {"operator": OPERATOR, "nonce": ""})
    assert (refused.status_code, refused.json()["field"]) == (400, "nonce")
    with tee.stream(question(request_of("tee", engine, ENDLESS))) as answer:
        lines = answer.iter_lines()  # kept: the response closes with it
        next(lines)
        refused = tee.send("boot", order | {"operator": OPERATOR})
        assert (refused.status_code, refused.json()["error"]) == (409, "enclave.busy")
    wait_for(lambda: tee.status()["busy"] == 0, "the run ends when its client goes")


def test_a_worker_without_an_enclave_attests_to_nothing(opml: Worker) -> None:
    for route, body in (("boot", {}), ("document", {"answer": "", "nonce": b64u_encode(bytes(32))})):
        answer = opml.send(route, body)
        assert (answer.status_code, answer.json()["error"]) in (
            (409, "worker.no_enclave"),
            (400, "field.missing"),
        )
        assert opml.get(f"/api/v1/{route}").status_code == 405


@pytest.mark.parametrize(
    "arguments",
    [(), ("--platform-key", "p.key", "--vsock", "16:5000"), ("--vsock", "3:5000"), ("--vsock", "16")],
    ids=["neither", "both", "the parent's own CID", "no port"],
)
def test_a_tee_worker_is_told_which_enclave_it_has(arguments: tuple[str, ...], tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "aos.workers.tee_main", "--model", str(MODEL), *arguments]
    process = Process("tee", [*argv, "--listen", "127.0.0.1:0"], log_path=tmp_path / "log")
    process.start()
    wait_for(lambda: process.poll() is not None, "it refuses to start")
    assert process.poll() == ConfigError.exit_code
    assert "worker.enclave" in process.log_tail()


def test_llama_cpp_answers_in_an_enclave_by_choice(tmp_path: Path, engine: Engine) -> None:
    worker = start_tee(tmp_path, "--engine", "llama.cpp")
    try:
        result = worker.ask(question(request_of("tee", engine)))[-1]
        evidence_of(result, worker)
        assert result["engine"].startswith("llama.cpp/")
        assert result["state_root"] == ""
    finally:
        worker.process.stop()


def inodes(pid: int) -> set[str]:
    """What the open descriptors of a process are, without those that name a file."""
    found = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return {name for name in found if not name.startswith("/")}


def test_the_enclaves_socket_is_the_hosts_alone(tee: Worker) -> None:
    beginning = str(tee.process.log_path.parent / "aos-enclave-")
    if len(beginning) > 80:  # too long for a socket's path
        beginning = "/tmp/aos-enclave-"
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    bound = {Path(row[7]) for row in rows if len(row) > 7 and row[7].startswith(beginning)}
    assert bound, "the enclave listens"
    assert [path for path in bound if path.parent.exists()] == [], "nobody finds the way to it any more"


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A path that leaves room for a socket's name, however long the run's own temporary directory is."""
    with tempfile.TemporaryDirectory(prefix="aos-", dir="/tmp") as path:
        yield Path(path)


def test_until_the_host_is_connected_its_directory_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_directory: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_directory))
    create_simulated_platform(tmp_path / "platform.key")
    host = EnclaveHost(
        model=MODEL, engine="reference", enclave=SimulatedEnclave(platform_key=tmp_path / "platform.key")
    )
    modes: set[tuple[str, int]] = set()

    def look() -> list[Path]:
        made = list(short_directory.glob("aos-enclave-*"))
        for path in made:
            with contextlib.suppress(FileNotFoundError):
                modes.update((p.name[:7], p.stat().st_mode & 0o777) for p in (path, *path.iterdir()))
        return made

    async def run() -> None:
        starting = asyncio.create_task(host.start())
        while not starting.done():
            look()
            await asyncio.sleep(0)
        await starting
        assert look() == []
        await host.stop()

    asyncio.run(run())
    assert ("aos-enc", 0o700) in modes
    assert modes <= {("aos-enc", 0o700), ("enclave", 0o600)}


def test_a_temporary_directory_with_a_long_path_is_no_hindrance(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine
) -> None:
    directory = tmp_path_factory.mktemp("long") / ("d" * 120)
    directory.mkdir()
    worker = start_tee(directory)
    try:
        assert worker.ask(question(request_of("tee", engine)))[-1]["event"] == "result"
    finally:
        worker.process.stop()
    assert not list(directory.glob("aos-enclave-*"))


def test_the_enclave_inherits_neither_descriptors_nor_secrets(tee: Worker) -> None:
    pid, host = tee.status()["enclave"]["pid"], tee.process.pid
    assert host is not None
    if os.geteuid() != 0:  # its own user sees nothing of it, so there is no more to be checked from here
        with pytest.raises(PermissionError):
            inodes(pid)
        return
    assert inodes(pid) & inodes(host) <= {"anon_inode:[eventpoll]", "anon_inode:[eventfd]"}
    files = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            files.add(os.readlink(path))
    named = {name for name in files if name.startswith("/") and not name.startswith("/memfd:model")}
    assert named <= {"/dev/null", "/dev/urandom", str(tee.process.log_path)}
    given = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    names = {entry.partition("=")[0] for entry in given if entry}
    assert names <= {
        "PATH",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TMPDIR",
        "VIRTUAL_ENV",
        "PYTHONPATH",
        "LD_LIBRARY_PATH",
    }
    assert TOKEN not in "".join(given)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["NoNewPrivs"] == "1"
    assert "Max core file size        0                    0" in Path(f"/proc/{pid}/limits").read_text()
    assert Path(f"/proc/{pid}/mem").stat().st_uid == 0, "no process of the same user reads its memory"


def test_a_directory_that_the_worker_is_started_in_brings_nothing_into_the_enclave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aos").mkdir()
    (tmp_path / "aos" / "__init__.py").write_text("raise SystemExit('the wrong code')")
    create_simulated_platform(tmp_path / "platform.key")
    monkeypatch.chdir(tmp_path)
    host = EnclaveHost(
        model=MODEL, engine="reference", enclave=SimulatedEnclave(platform_key=tmp_path / "platform.key")
    )

    async def run() -> None:
        await asyncio.wait_for(host.start(), PATIENCE_S)
        await host.stop()

    asyncio.run(run())
    assert host.loaded is not None


def test_a_defect_in_the_keeping_leaves_no_worker_without_an_enclave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    create_simulated_platform(tmp_path / "platform.key")
    host = EnclaveHost(
        model=MODEL, engine="reference", enclave=SimulatedEnclave(platform_key=tmp_path / "platform.key")
    )
    real = host._read_until_end
    again = asyncio.Event()

    async def sound(stream: FrameStream) -> None:
        again.set()
        await real(stream)

    async def defective(stream: FrameStream) -> None:
        monkeypatch.setattr(host, "_read_until_end", sound)
        raise TypeError("not one of our errors")

    async def run() -> None:
        monkeypatch.setattr(host, "_read_until_end", defective)
        await asyncio.wait_for(host.start(), PATIENCE_S)
        first = host.pid
        await asyncio.wait_for(again.wait(), PATIENCE_S)
        assert host.ready
        assert host.pid not in (None, first)
        await host.stop()

    asyncio.run(run())
    assert "enclave.defect" in capfd.readouterr().err


def test_an_enclave_that_ends_while_it_is_killed_is_no_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between two looks at a process it can end: it is there at the first, gone at the second.
    host = EnclaveHost(
        model=MODEL, engine="reference", enclave=SimulatedEnclave(platform_key=tmp_path / "platform.key")
    )
    process = subprocess.Popen(["/bin/true"])
    real, looks = process.poll, [None]
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    monkeypatch.setattr(process, "poll", lambda: looks.pop() if looks else real())
    host._process = process
    asyncio.run(host._kill())
    assert host.pid is None


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_an_enclave_never_outlives_its_worker(how: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    worker = start_tee(tmp_path_factory.mktemp(how))
    pid = worker.status()["enclave"]["pid"]
    getattr(worker.process, how)()
    wait_for(lambda: not alive(pid), "the enclave ends with its host")
    if how == "stop":
        assert worker.process.poll() == 0
        assert not list(worker.process.log_path.parent.glob("aos-enclave-*"))
