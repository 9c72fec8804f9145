"""OpenAI's API, scopes, limits and webhooks (09), asked of a real dispatcher. Whole answers: ``tests/e2e/test_openai.py``."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import asyncpg
import httpx
import pytest
from peers.dispatcher_process import DispatcherProcess, Founded, found
from peers.hub_peer import MODEL

from aos.adapters.embedded.postgres import EmbeddedPostgres
from aos.client import verify_webhook
from aos.core.codec import decode
from aos.core.hashes import job_ref
from aos.core.statements import ChatMessage, Request
from aos.dispatcher.config import load_config
from aos.dispatcher.schemas import OpenAIError
from aos.dispatcher.schemas_openai import ModelOffers
from aos.dispatcher.setup import NewProject, new_project, new_token, webhook_secret

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "What is AI?"}], "max_tokens": 10}


@pytest.fixture(scope="module")
def founded(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Founded]:
    name = "test_dispatcher_openai"
    yield found(
        tmp_path_factory.mktemp("openai"),
        postgres.create_database(name),
        webhook_loopback=True,
        webhook_retries_s=[0, 0, 0, 0],
    )
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def dispatcher(founded: Founded) -> Iterator[DispatcherProcess]:
    process = founded.process()
    try:
        yield process.start()
    finally:
        process.stop()


@pytest.fixture(scope="module")
def http(dispatcher: DispatcherProcess) -> Iterator[httpx.Client]:
    with dispatcher.client() as client:
        yield client


def query(founded: Founded, sql: str, *values: Any) -> Any:
    async def run() -> Any:
        db = await asyncpg.connect(founded.pg_url)
        try:
            return await db.fetch(sql, *values)
        finally:
            await db.close()

    return asyncio.run(run())


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def refused(answer: httpx.Response, status: int, code: str, param: str | None = None) -> None:
    """OpenAI's error shape."""
    assert answer.status_code == status, answer.text
    error = OpenAIError.model_validate_json(answer.content).error
    assert (error.code, error.param) == (code, param), answer.text
    assert answer.headers["content-type"] == "application/json"


def project(founded: Founded, **options: Any) -> NewProject:
    return asyncio.run(new_project(founded.config_path, "another", **options))


class Started:
    """A call whose answer nobody can give: no operator is connected."""

    def __init__(
        self, http: httpx.Client, body: dict[str, Any], token: str, path: str = "/v1/chat/completions"
    ) -> None:
        self._stream = http.stream("POST", path, json=body | {"stream": True}, headers=bearer(token))
        response = self._stream.__enter__()
        assert response.status_code == 200, response.read()
        self.job_id = response.headers["x-receipt-id"]
        self.lines = response.iter_lines()

    def data(self) -> Any:
        """The next chunk."""
        for line in self.lines:
            if line.startswith("data: "):
                return json.loads(line.removeprefix("data: "))
        return None

    def close(self) -> None:
        self._stream.__exit__(None, None, None)


@pytest.fixture
def start(
    dispatcher: DispatcherProcess, http: httpx.Client, founded: Founded
) -> Iterator[Callable[..., Started]]:
    """Starts calls; in the end their jobs are cancelled."""
    started: list[Started] = []

    with dispatcher.client() as client:

        def begin(body: dict[str, Any] = CHAT, *, token: str = founded.token, **more: Any) -> Started:
            started.append(Started(client, body, token, **more))
            return started[-1]

        yield begin
        for call in started:
            cancel(http, call.job_id, founded.token)
            call.close()


def cancel(http: httpx.Client, job_id: str, token: str) -> httpx.Response:
    return http.post("/api/job/cancel", json={"job_id": job_id, "verify": token})


# --- the request


def test_the_messages_travel_in_the_hashed_request(http: httpx.Client, start: Callable[..., Started]) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "<s> hi\0"}]
    call = start({**CHAT, "messages": messages, "seed": 7, "user": "alice"})
    request = decode(Request, http.get(f"/v1/aos/jobs/{call.job_id}/request").json())
    assert request.job.prompt == tuple(ChatMessage(**turn) for turn in messages)
    assert (request.job.params.seed, request.user, request.nonce_source) == ("7", "alice", "dispatcher")
    detail = http.post("/api/job/detail", json={"job_id": call.job_id}).json()["result"]
    assert detail["job"]["prompt"] == messages


def test_the_client_s_nonce_is_used_and_named(http: httpx.Client, start: Callable[..., Started]) -> None:
    call = start({**CHAT, "aos": {"nonce": "A" * 43}})
    request = decode(Request, http.get(f"/v1/aos/jobs/{call.job_id}/request").json())
    assert request.nonce_source == "client"


def test_the_seed_s_api_takes_messages_too(http: httpx.Client, founded: Founded) -> None:
    body = founded.body()
    body["job"]["prompt"] = CHAT["messages"]
    job_id = http.post("/api/job/submit", json=body).json()["result"]
    request = decode(Request, http.get(f"/v1/aos/jobs/{job_id}/request").json())
    assert request.job.prompt == (ChatMessage(role="user", content="What is AI?"),)
    cancel(http, job_id, founded.token)


def test_a_stream_begins_with_the_role_and_says_provisional(start: Callable[..., Started]) -> None:
    call = start()
    first = call.data()
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["aos"] == {"job_id": call.job_id, "provisional": True}
    assert call.job_id not in first["id"]


def test_a_job_that_is_cancelled_ends_its_stream_with_an_error(
    http: httpx.Client, founded: Founded, start: Callable[..., Started]
) -> None:
    call = start(path="/v1/completions", body={"model": MODEL, "prompt": "x"})
    call.data()
    cancel(http, call.job_id, founded.token)
    assert call.data()["error"]["code"] == "job.cancelled"
    assert call.data() is None


def test_a_call_without_streaming_waits_and_names_its_job_in_an_error(
    dispatcher: DispatcherProcess, http: httpx.Client, founded: Founded
) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        with dispatcher.client() as other:
            headers = bearer(founded.token)
            answers.append(other.post("/v1/chat/completions", json=CHAT | {"user": "waits"}, headers=headers))

    thread = threading.Thread(target=ask)
    thread.start()
    job_id = wait_for(lambda: query(founded, "SELECT job_id FROM job WHERE user_id = 'waits'"))[0]["job_id"]
    cancel(http, job_id, founded.token)
    thread.join(60)
    refused(answers[0], 409, "job.cancelled")
    assert answers[0].headers["x-receipt-id"] == job_id
    assert answers[0].headers["x-should-retry"] == "false"


def wait_for(read: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := read()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_the_same_key_and_body_is_the_same_job(
    dispatcher: DispatcherProcess, http: httpx.Client, founded: Founded
) -> None:
    headers = bearer(founded.token) | {"Idempotency-Key": "openai-1"}
    ids = []
    for _ in range(2):
        with http.stream(
            "POST", "/v1/completions", json={"model": MODEL, "prompt": "x", "stream": True}, headers=headers
        ) as r:
            ids.append(r.headers["x-receipt-id"])
    assert ids[0] == ids[1]
    other = http.post("/v1/completions", json={"model": MODEL, "prompt": "y"}, headers=headers)
    refused(other, 409, "idempotency.conflict", "Idempotency-Key")
    cancel(http, ids[0], founded.token)


# --- refusals


def test_without_a_key_nothing_is_answered(http: httpx.Client, founded: Founded) -> None:
    wrong: list[dict[str, str]] = [
        {},
        bearer("wrong"),
        {"Authorization": f"Basic {founded.token}"},
        {"Authorization": "Bearer"},
    ]
    for headers in wrong:
        answers = [
            http.post("/v1/chat/completions", json=CHAT, headers=headers),
            http.post("/v1/completions", json={}, headers=headers),
            http.get("/v1/models", headers=headers),
            http.get(f"/v1/models/{MODEL}", headers=headers),
        ]
        for answer in answers:
            refused(answer, 401, "token.invalid", "Authorization")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"model": "no-such.gguf"}, 404, "model.unknown", "model"),
        ({"max_tokens": 4097}, 400, "field.range", "max_tokens"),
        ({"logprobs": True}, 400, "param.unsupported", "logprobs"),
        ({"aos": {"verify": "redundant:9"}}, 400, "field.range", "aos.verify"),
        ({"aos": {"verify": "simulated"}}, 409, "job.no_operator", "aos.verify"),
        ({"aos": {"verify": "attested"}}, 400, "assurance.unavailable", "aos.verify"),
        ({"aos": {"webhook": "https://10.0.0.1/"}}, 400, "webhook.address", "aos.webhook"),
        ({"aos": {"webhook": "http://example.org/"}}, 400, "webhook.scheme", "aos.webhook"),
    ],
)
def test_a_refusal_names_the_member_as_this_api_does(
    http: httpx.Client, founded: Founded, changes: dict[str, Any], status: int, code: str, param: str
) -> None:
    before = query(founded, "SELECT count(*) FROM job")
    answer = http.post("/v1/chat/completions", json=CHAT | changes, headers=bearer(founded.token))
    refused(answer, status, code, param)
    assert "job." not in answer.json()["error"]["message"].partition(":")[0]
    assert "x-receipt-id" not in answer.headers
    assert query(founded, "SELECT count(*) FROM job") == before


def test_bodies_and_paths_that_cannot_be_are_refused_in_openai_s_shape(
    http: httpx.Client, founded: Founded
) -> None:
    headers = bearer(founded.token)
    big = http.post("/v1/chat/completions", content=b" " * ((1 << 20) + 1), headers=headers)
    refused(big, 413, "encoding.too_large")
    twice = b'{"model": "a", "model": "b"}'
    refused(
        http.post("/v1/completions", content=twice, headers=headers), 400, "encoding.duplicate_key", "model"
    )
    refused(http.get("/v1/embeddings"), 404, "http.not_found")
    refused(http.get("/v1/chat/completions"), 405, "http.method_not_allowed")
    refused(http.get("/v1/models/none.gguf", headers=headers), 404, "model.unknown", "model")


def test_a_model_without_a_template_is_refused_before_a_job_is_made(
    http: httpx.Client, founded: Founded
) -> None:
    manifest = json.dumps({"chat_template": "", "tokenizer": "A" * 43}).encode()
    query(founded, "UPDATE model SET manifest = $1", manifest)
    try:
        answer = http.post("/v1/chat/completions", json=CHAT, headers=bearer(founded.token))
        refused(answer, 400, "chat.no_template", "messages")
        offer = http.get(f"/v1/models/{MODEL}", headers=bearer(founded.token)).json()["aos"]
        assert (offer["chat"], offer["digests"]) == (False, {"tokenizer": "A" * 43})
    finally:
        query(founded, "UPDATE model SET manifest = NULL")


def test_the_models_say_what_they_are_offered_with(http: httpx.Client, founded: Founded) -> None:
    answer = http.get("/v1/models", headers=bearer(founded.token))
    (offer,) = ModelOffers.model_validate_json(answer.content).data
    assert offer.id == MODEL
    assert (offer.aos.operators.opml, offer.aos.operators.tee) == (2, 0)
    assert offer.aos.verify == ["signed", "redundant:2"]
    assert offer.aos.chat is None
    assert http.get(f"/v1/models/{MODEL}", headers=bearer(founded.token)).json()["id"] == MODEL


# --- scopes


def test_a_token_does_what_its_scopes_say_and_nothing_else(
    http: httpx.Client, founded: Founded, start: Callable[..., Started]
) -> None:
    tokens = {
        scope: asyncio.run(new_token(founded.config_path, founded.project, scopes=[scope]))
        for scope in ("submit", "read", "flag", "challenge")
    }
    start(token=tokens["submit"])
    for scope in ("read", "flag", "challenge"):
        refused(
            http.post("/v1/chat/completions", json=CHAT, headers=bearer(tokens[scope])),
            403,
            "token.scope",
            "Authorization",
        )
        seed = http.post("/api/job/submit", json=founded.body(verify=tokens[scope]))
        assert (seed.status_code, seed.json()["error"]) == (403, "token.scope")
    flagged = http.post("/api/job/submit", json=founded.body(verify=tokens["submit"], tag="malicious"))
    assert (flagged.status_code, flagged.json()["error"], flagged.json()["field"]) == (
        403,
        "token.scope",
        "tag",
    )
    private = f"/v1/aos/jobs/{founded.private}/answer"
    assert http.get(private, headers=bearer(tokens["read"])).status_code == 200
    assert http.get(private, headers=bearer(tokens["submit"])).json()["title"] == "token.scope"
    user = {"from": founded.project, "user": "someone"}
    assert http.post("/api/job/verify", json=user | {"verify": tokens["read"]}).status_code == 200
    assert http.post("/api/job/verify", json=user | {"verify": tokens["submit"]}).status_code == 403
    assert http.get("/v1/models", headers=bearer(tokens["challenge"])).status_code == 200
    assert cancel(http, founded.finished, tokens["read"]).json()["error"] == "token.scope"


def test_a_token_of_another_project_opens_nothing(http: httpx.Client, founded: Founded) -> None:
    other = project(founded)
    assert http.post("/api/job/submit", json=founded.body(verify=other.token)).status_code == 401
    private = http.get(f"/v1/aos/jobs/{founded.private}/answer", headers=bearer(other.token))
    assert private.json()["title"] == "token.required"
    assert cancel(http, founded.finished, other.token).status_code == 401


# --- limits


def limited(http: httpx.Client, token: str, **changes: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json=CHAT | changes, headers=bearer(token))


def test_a_project_s_requests_and_tokens_in_flight_are_limited(
    http: httpx.Client, founded: Founded, dispatcher: DispatcherProcess, start: Callable[..., Started]
) -> None:
    mine = project(founded, most_requests=2, most_tokens=1000)
    first = start({**CHAT, "max_tokens": 600}, token=mine.token)
    refused(limited(http, mine.token, max_tokens=401), 429, "project.tokens", "max_tokens")
    second = start({**CHAT, "max_tokens": 400}, token=mine.token)
    answer = limited(http, mine.token, max_tokens=1)
    refused(answer, 429, "project.requests")
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["type"] == "rate_limit_error"
    seed = http.post("/api/job/submit", json=founded.body(**{"from": mine.project, "verify": mine.token}))
    assert (seed.status_code, seed.headers["retry-after"]) == (429, "2")
    start()  # another project's requests do not count
    for call in (first, second):
        assert cancel(http, call.job_id, mine.token).status_code == 200
    wait_for(lambda: limited(http, mine.token, max_tokens=1001).json()["error"]["code"] == "project.tokens")
    start({**CHAT, "max_tokens": 1000}, token=mine.token).close()
    open_jobs = query(
        founded,
        "SELECT job_id FROM job JOIN run USING (job_id) WHERE project_id = $1 AND state = 'created'",
        mine.project,
    )
    for row in open_jobs:
        cancel(http, row["job_id"], mine.token)


def test_many_at_once_are_never_more_than_the_limit(founded: Founded, dispatcher: DispatcherProcess) -> None:
    mine = project(founded, most_requests=5)

    async def run() -> list[httpx.Response]:
        body = founded.body(**{"from": mine.project, "verify": mine.token})
        async with httpx.AsyncClient(base_url=dispatcher.url, trust_env=False, timeout=60) as client:
            return await asyncio.gather(*(client.post("/api/job/submit", json=body) for _ in range(20)))

    answers = asyncio.run(run())
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 15
    with dispatcher.client() as http:
        for answer in answers:
            if answer.status_code == 200:
                cancel(http, answer.json()["result"], mine.token)


# --- webhooks


class Receiver:
    """Somebody's server. ``statuses`` are answered in turn; after them 200."""

    def __init__(self, *statuses: int) -> None:
        self.messages: list[tuple[dict[str, str], bytes]] = []
        left = list(statuses)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.messages.append((dict(self.headers.items()), body))
                self.send_response(left.pop(0) if left else 200)
                self.send_header("location", "http://127.0.0.1:1/")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    made = Receiver(*getattr(request, "param", ()))
    yield made
    made.close()


def secret_of(founded: Founded) -> str:
    return webhook_secret(load_config(founded.config_path).keys.signer, founded.project)


def ended_job(http: httpx.Client, founded: Founded, url: str) -> str:
    job_id = str(http.post("/api/job/submit", json=founded.body(webhook=url)).json()["result"])
    cancel(http, job_id, founded.token)
    return job_id


def state_of(founded: Founded, job_id: str) -> tuple[str, int]:
    (row,) = query(founded, "SELECT state, tries FROM webhook WHERE job_id = $1", job_id)
    return row["state"], row["tries"]


def test_the_end_of_a_job_is_told_once_and_signed(
    http: httpx.Client, founded: Founded, receiver: Receiver
) -> None:
    job_id = ended_job(http, founded, receiver.url)
    wait_for(lambda: state_of(founded, job_id) == ("delivered", 1))
    ((headers, body),) = receiver.messages
    event = verify_webhook(secret_of(founded), headers, body)
    assert event["type"] == "job.done"
    assert event["data"] == {
        "job_id": job_id,
        "status": "cancelled",
        "attempt": 0,
        "answer": f"/v1/aos/jobs/{job_id}/answer",
    }
    assert founded.token.encode() not in body


@pytest.mark.parametrize("receiver", [(500, 302, 404)], indirect=True)
def test_what_is_not_taken_is_tried_again_with_the_same_id_and_body(
    http: httpx.Client, founded: Founded, receiver: Receiver
) -> None:
    job_id = ended_job(http, founded, receiver.url)
    wait_for(lambda: state_of(founded, job_id) == ("delivered", 4))
    assert len({headers["webhook-id"] for headers, _ in receiver.messages}) == 1
    assert len({body for _, body in receiver.messages}) == 1
    assert len(receiver.messages) == 4  # no redirect was followed


@pytest.mark.parametrize(("receiver", "tries"), [((500,) * 9, 5), ((410,), 1)], indirect=["receiver"])
def test_what_is_never_taken_is_given_up(
    http: httpx.Client, founded: Founded, receiver: Receiver, tries: int
) -> None:
    job_id = ended_job(http, founded, receiver.url)
    wait_for(lambda: state_of(founded, job_id) == ("given_up", tries))
    assert len(receiver.messages) == tries


def test_the_log_holds_no_url_secret_or_job_id(
    http: httpx.Client, dispatcher: DispatcherProcess, founded: Founded, receiver: Receiver
) -> None:
    job_id = ended_job(http, founded, receiver.url + "?key=hush")
    wait_for(lambda: state_of(founded, job_id)[0] == "delivered")
    text = dispatcher.log.read_text()
    assert "webhook.tried" in text
    for secret in ("hush", secret_of(founded), job_id, job_ref(job_id).hex()):
        assert secret not in text


def test_a_killed_dispatcher_tells_it_after_its_next_start_and_still_counts(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> None:
    name = "test_webhook_kill"
    founded = found(
        tmp_path_factory.mktemp("kill"),
        postgres.create_database(name),
        webhook_loopback=True,
        webhook_retries_s=[1] * 30,
    )
    url = receiver.url
    receiver.close()  # nobody listens yet
    process = founded.process()
    try:
        process.start()
        with process.client() as http:
            job_id = ended_job(http, founded, url)
            wait_for(lambda: state_of(founded, job_id)[1] > 0)
            mine = project(founded, most_requests=1)
            body = founded.body(**{"from": mine.project, "verify": mine.token})
            assert http.post("/api/job/submit", json=body).status_code == 200
        process.kill()
        back = Receiver()
        query(founded, "UPDATE webhook SET url = $1", back.url)
        process.start()
        wait_for(lambda: state_of(founded, job_id)[0] == "delivered")
        ((headers, told),) = back.messages
        assert verify_webhook(secret_of(founded), headers, told)["data"]["job_id"] == job_id
        back.close()
        with process.client() as http:
            refused(limited(http, mine.token), 429, "project.requests")
    finally:
        process.stop()
    postgres.drop_database(name)
