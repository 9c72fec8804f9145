"""The dispatcher's HTTP interfaces (09), asked over HTTP of a real process on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from peers.dispatcher_process import DispatcherProcess, Founded, found
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from aos.adapters.embedded.postgres import EmbeddedPostgres
from aos.core.codec import decode
from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.hashes import job_ref, request_hash
from aos.core.statements import Acceptance, Params, Request, read_signed
from aos.dispatcher import schemas, submission

TABLES = ("job", "run", "flag", "event", "attempt", "operator")


@pytest.fixture(scope="module")
def founded(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Founded]:
    name = "test_dispatcher_api"
    yield found(tmp_path_factory.mktemp("api"), postgres.create_database(name))
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


@pytest.fixture
def rows(founded: Founded) -> Callable[[], dict[str, int]]:
    """Counts what is stored."""

    async def count() -> dict[str, int]:
        db = await asyncpg.connect(founded.pg_url)
        try:
            return {name: await db.fetchval(f"SELECT count(*) FROM {name}") for name in TABLES}  # noqa: S608
        finally:
            await db.close()

    return lambda: asyncio.run(count())


def submit(http: httpx.Client, body: dict[str, Any], **headers: str) -> httpx.Response:
    return http.post("/api/job/submit", json=body, headers=headers)


def submitted(http: httpx.Client, body: dict[str, Any]) -> str:
    answer = submit(http, body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["result"])


def refused(answer: httpx.Response, status: int, code: str, field: str | None = None) -> None:
    """The seed's error envelope."""
    body = answer.json()
    assert (answer.status_code, body["code"], body["error"]) == (status, status, code), answer.text
    assert body.get("field") == field
    assert body["message"]


def refused_as_problem(answer: httpx.Response, status: int, code: str) -> None:
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, body["status"], body["title"]) == (status, status, code), answer.text
    assert body["type"] == f"urn:aos:error:{code}"


def changed(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``body`` with the member at ``path`` set, or taken out where ``value`` is ``...``."""
    copy = json.loads(json.dumps(body))
    *parents, last = path.split(".")
    place = copy
    for name in parents:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return dict(copy)


# --- submit


def test_a_submission_of_the_guide_is_answered_as_the_guide_says(
    http: httpx.Client, founded: Founded
) -> None:
    answer = submit(http, founded.body())
    assert answer.status_code == 200
    assert set(answer.json()) == {"code", "result"}
    job_id = answer.json()["result"]
    assert answer.json()["code"] == 200
    assert len(bytes.fromhex(job_id)) == 32
    acceptance = read_signed(
        Acceptance, json.loads(b64u_decode(answer.headers["x-aos-acceptance"]))
    ).statement
    data = http.get(f"/v1/aos/jobs/{job_id}/request").content
    assert acceptance.job_ref == job_ref(job_id)
    assert acceptance.request_hash == request_hash(acceptance.nonce, data)
    request = decode(Request, json.loads(data))
    assert (request.job.params.temperature, request.job.params.top_p) == (1_000_000, 500_000)
    assert founded.token.encode() not in data


def test_the_same_key_with_the_same_body_is_the_same_job(
    http: httpx.Client, founded: Founded, rows: Callable[[], dict[str, int]]
) -> None:
    first = submit(http, founded.body(), **{"Idempotency-Key": "same"})
    stored = rows()
    again = submit(http, founded.body(), **{"Idempotency-Key": "same"})
    assert again.json() == first.json()
    assert again.headers["x-aos-acceptance"] == first.headers["x-aos-acceptance"]
    assert rows() == stored


def test_the_same_key_with_another_body_is_refused(
    http: httpx.Client, founded: Founded, rows: Callable[[], dict[str, int]]
) -> None:
    submit(http, founded.body(), **{"Idempotency-Key": "other"})
    stored = rows()
    answer = submit(http, founded.body(user="another"), **{"Idempotency-Key": "other"})
    refused(answer, 409, "idempotency.conflict", "Idempotency-Key")
    assert rows() == stored


@pytest.mark.parametrize("key", ["", "k" * 129])
def test_an_unusable_key_is_refused(http: httpx.Client, founded: Founded, key: str) -> None:
    refused(submit(http, founded.body(), **{"Idempotency-Key": key}), 400, "field.range", "Idempotency-Key")


@pytest.mark.parametrize(
    ("path", "value", "status", "code", "field"),
    [
        ("from", ..., 400, "field.missing", "from"),
        ("from", 7, 400, "field.type", "from"),
        ("from", "p-nobody", 401, "token.invalid", "verify"),
        ("verify", "wrong", 401, "token.invalid", "verify"),
        ("verify", ..., 400, "field.missing", "verify"),
        ("verify", "x" * 257, 400, "field.range", "verify"),
        ("user", ..., 400, "field.missing", "user"),
        ("user", "a\0b", 400, "field.range", "user"),
        ("tag", "evil", 400, "field.range", "tag"),
        ("nonce", "short", 400, "field.range", "nonce"),
        ("min_operators", 0, 400, "field.range", "min_operators"),
        ("min_operators", 3, 400, "field.range", "min_operators"),
        ("min_operators", True, 400, "field.type", "min_operators"),
        ("blind", 1, 400, "field.type", "blind"),
        ("private", "yes", 400, "field.type", "private"),
        ("surprise", 1, 400, "field.unknown", "surprise"),
        ("job", ..., 400, "field.type", "job"),
        ("job.tag", "gpu", 400, "field.range", "job.tag"),
        ("job.tag", "tee", 409, "job.no_operator", "job.tag"),
        ("job.prompt", ..., 400, "field.missing", "job.prompt"),
        ("job.prompt", 7, 400, "field.type", "job.prompt"),
        ("job.prompt", ["no"], 400, "field.type", "job.prompt[0]"),
        ("job.prompt", [], 400, "field.range", "job.prompt"),
        ("webhook", "http://10.0.0.1/", 400, "webhook.scheme", "webhook"),
        ("job.prompt", "ä" * 131_073, 400, "field.range", "job.prompt"),
        ("job.model", "other.gguf", 404, "model.unknown", "job.model"),
        ("job.surprise", 1, 400, "field.unknown", "job.surprise"),
        ("job.params", [], 400, "field.type", "job.params"),
        ("job.params.surprise", 1, 400, "field.unknown", "job.params.surprise"),
        ("job.params.temperature", "hot", 400, "field.type", "job.params.temperature"),
        ("job.params.temperature", -1, 400, "field.range", "job.params.temperature"),
        ("job.params.top_p", 1.5, 400, "field.range", "job.params.top_p"),
        ("job.params.max_tokens", 0, 400, "field.range", "job.params.max_tokens"),
        ("job.params.max_tokens", 4_097, 400, "field.range", "job.params.max_tokens"),
        ("job.params.max_tokens", 1.5, 400, "field.type", "job.params.max_tokens"),
        ("job.params.seed", -1, 400, "field.range", "job.params.seed"),
        ("job.params.stop", [""], 400, "field.range", "job.params.stop"),
    ],
)
def test_a_wrong_submission_is_refused_by_name_and_stores_nothing(
    http: httpx.Client,
    founded: Founded,
    rows: Callable[[], dict[str, int]],
    path: str,
    value: Any,
    status: int,
    code: str,
    field: str,
) -> None:
    stored = rows()
    refused(submit(http, changed(founded.body(), path, value)), status, code, field)
    assert rows() == stored


@pytest.mark.parametrize(
    ("data", "code", "field"),
    [
        (b"", "encoding.syntax", None),
        (b"{", "encoding.syntax", None),
        (b"{} {}", "encoding.syntax", None),
        (b"[]", "field.type", None),
        (b'{"from": "a", "from": "b"}', "encoding.duplicate_key", "from"),
        (b'{"job": {"tag": "opml", "tag": "tee"}}', "encoding.duplicate_key", "tag"),
        (b'{"from": "\xff"}', "encoding.utf8", None),
        (b'{"user": NaN}', "encoding.nan", None),
        (b"[" * 100_000, "encoding.depth", None),
        (b'{"job": "\\ud800"}', "encoding.surrogate", None),
        (b'{"user": 1e999999999, "job": {"params": {}}}', "field.range", "job.tag"),
    ],
)
def test_a_body_that_can_be_read_in_two_ways_or_none_is_refused(
    http: httpx.Client, data: bytes, code: str, field: str | None
) -> None:
    refused(http.post("/api/job/submit", content=data), 400, code, field)


def test_a_number_that_would_take_for_ever_is_refused_at_once(http: httpx.Client, founded: Founded) -> None:
    data = json.dumps(founded.body()).replace('"top_p": 0.5', '"top_p": 1e999999999').encode()
    refused(http.post("/api/job/submit", content=data), 400, "encoding.integer_range", "job.params.top_p")


@pytest.mark.parametrize("call", ["submit", "result", "detail", "verify", "cancel"])
def test_a_body_over_one_mebibyte_is_refused(http: httpx.Client, call: str) -> None:
    refused(http.post(f"/api/job/{call}", content=b" " * ((1 << 20) + 1)), 413, "encoding.too_large")


def test_the_body_cap_holds_without_a_content_length(http: httpx.Client) -> None:
    def parts() -> Iterator[bytes]:
        yield from [b" " * 65_536] * 17

    refused(http.post("/api/job/submit", content=parts()), 413, "encoding.too_large")


# --- result, detail, verify, cancel


def test_result_has_the_guide_s_rows(http: httpx.Client, founded: Founded) -> None:
    answer = http.post("/api/job/result", json={"job_id": founded.finished}).json()
    assert (answer["code"], len(answer["result"])) == (200, 2)
    row = answer["result"][0]
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
    }
    assert guide | {"created_at"} <= set(row)
    assert row["job_id"] == founded.finished
    assert row["id"] == f"{row['operator']}_{founded.finished}_"
    assert {r["operator"] for r in answer["result"]} == {o.node_id for o in founded.operators}
    assert all(r["result"] == founded.operators[0].result.text for r in answer["result"])
    assert set(row["vrf"]) == {
        "selected",
        "vrf_prompt_hash",
        "vrf_random_value",
        "vrf_verify_pubkey",
        "vrf_proof",
    }


def test_a_flagged_job_s_rows_end_with_the_tag(http: httpx.Client, founded: Founded) -> None:
    result = http.post("/api/job/result", json={"job_id": founded.flagged}).json()["result"]
    assert {row["tag"] for row in result} == {"suspicion"}
    assert all(row["id"].endswith(f"_{founded.flagged}_suspicion") for row in result)


def test_detail_has_the_guide_s_members(http: httpx.Client, founded: Founded) -> None:
    job_id = submitted(http, founded.body())
    detail = http.post("/api/job/detail", json={"job_id": job_id}).json()["result"]
    body = founded.body()
    assert {name: detail[name] for name in ("id", "job", "user", "job_type", "status", "tag")} == {
        "id": job_id,
        "job": body["job"],
        "user": body["user"],
        "job_type": "opml",
        "status": "created",
        "tag": "",
    }
    assert int(detail["clock"]["1"]) > 0
    assert all(
        isinstance(part, str) and part.isdecimal() for pair in detail["clock"].items() for part in pair
    )
    assert datetime.strptime(detail["created_at"], "%Y-%m-%d %H:%M:%S")
    finished = http.post("/api/job/detail", json={"job_id": founded.finished}).json()["result"]
    assert finished["status"] == "verified"


def test_verify_pages_through_a_user_s_rows_newest_first(http: httpx.Client, founded: Founded) -> None:
    body = {"from": founded.project, "user": "someone", "verify": founded.token}
    whole = http.post("/api/job/verify", json=body).json()
    assert [row["job_id"] for row in whole["result"]] == [founded.finished] * 2
    assert "cursor" not in whole
    first = http.post("/api/job/verify", json=body | {"limit": 1}).json()
    second = http.post("/api/job/verify", json=body | {"limit": 1, "cursor": first["cursor"]}).json()
    assert first["result"] + second["result"] == whole["result"]
    assert "cursor" not in second


@pytest.mark.parametrize(
    ("changes", "status", "code", "field"),
    [
        ({"verify": "wrong"}, 401, "token.invalid", "verify"),
        ({"limit": 0}, 400, "field.range", "limit"),
        ({"limit": 101}, 400, "field.range", "limit"),
        ({"limit": True}, 400, "field.range", "limit"),
        ({"cursor": "-1"}, 400, "field.range", "cursor"),
        ({"cursor": 5}, 400, "field.range", "cursor"),
        ({"cursor": "9" * 19}, 400, "field.range", "cursor"),
        ({"page": 2}, 400, "field.unknown", "page"),
    ],
)
def test_a_wrong_verify_is_refused(
    http: httpx.Client, founded: Founded, changes: dict[str, Any], status: int, code: str, field: str
) -> None:
    body = {"from": founded.project, "user": "someone", "verify": founded.token}
    refused(http.post("/api/job/verify", json=body | changes), status, code, field)


@pytest.mark.parametrize("call", ["result", "detail", "cancel"])
@pytest.mark.parametrize(
    ("job_id", "status", "code"),
    [
        ("0" * 64, 404, "job.unknown"),
        ("0" * 63, 400, "field.range"),
        ("G" * 64, 400, "field.range"),
        (7, 400, "field.type"),
    ],
)
def test_a_wrong_job_id_is_refused(
    http: httpx.Client, founded: Founded, call: str, job_id: Any, status: int, code: str
) -> None:
    body = {"job_id": job_id} | ({"verify": founded.token} if call == "cancel" else {})
    refused(http.post(f"/api/job/{call}", json=body), status, code, "job_id")


@pytest.mark.parametrize("call", ["result", "detail"])
def test_a_private_job_is_shown_to_its_project_only(http: httpx.Client, founded: Founded, call: str) -> None:
    refused(http.post(f"/api/job/{call}", json={"job_id": founded.private}), 401, "token.required", "verify")
    wrong = {"job_id": founded.private, "verify": "wrong"}
    refused(http.post(f"/api/job/{call}", json=wrong), 401, "token.required", "verify")
    right = {"job_id": founded.private, "verify": founded.token}
    assert http.post(f"/api/job/{call}", json=right).status_code == 200


@pytest.mark.parametrize("what", ["events", "answer", "request"])
def test_a_private_job_s_files_need_the_token_in_a_header(
    http: httpx.Client, founded: Founded, what: str
) -> None:
    url = f"/v1/aos/jobs/{founded.private}/{what}"
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {founded.token}"}):
        refused_as_problem(http.get(url, headers=headers), 401, "token.required")
    refused_as_problem(http.get(f"{url}?verify={founded.token}"), 401, "token.required")
    answer = http.get(url, headers={"Authorization": f"Bearer {founded.token}"})
    assert answer.status_code == 200
    assert len(answer.content) > 100


def test_cancel_needs_the_token_and_holds(http: httpx.Client, founded: Founded) -> None:
    job_id = submitted(http, founded.body())
    refused(
        http.post("/api/job/cancel", json={"job_id": job_id, "verify": "no"}), 401, "token.invalid", "verify"
    )
    refused(http.post("/api/job/cancel", json={"job_id": job_id}), 400, "field.missing", "verify")
    for _ in range(2):
        answer = http.post("/api/job/cancel", json={"job_id": job_id, "verify": founded.token})
        assert answer.json() == {"code": 200, "result": "cancelled"}
    detail = http.post("/api/job/detail", json={"job_id": job_id}).json()["result"]
    assert detail["status"] == "cancelled"


def test_a_finished_job_is_not_cancelled(http: httpx.Client, founded: Founded) -> None:
    body = {"job_id": founded.finished, "verify": founded.token}
    refused(http.post("/api/job/cancel", json=body), 409, "job.too_late")


# --- what the documentation says is what the routes do


def test_the_documented_bodies_are_those_that_the_parser_reads() -> None:
    def names(model: type[BaseModel]) -> set[str]:
        return {field.alias or name for name, field in model.model_fields.items()}

    assert names(schemas.Submission) == submission._MEMBERS
    assert names(schemas.Job) == submission._JOB
    assert names(schemas.Params) == submission._PARAMS
    example = schemas.Submission.model_json_schema()["example"]
    read = submission.read_submission(json.dumps(example).encode())
    assert read.params.temperature == 1_000_000
    documented = schemas.Params.model_validate({})
    bare = changed(example, "job.params", {})
    assert submission.read_submission(json.dumps(bare).encode()).params == Params(
        temperature=int(documented.temperature * 1_000_000),
        top_p=int(documented.top_p * 1_000_000),
        top_k=documented.top_k,
        min_p=int(documented.min_p * 1_000_000),
        repeat_penalty=int(documented.repeat_penalty * 1_000_000),
        max_tokens=documented.max_tokens,
        stop=(),
        seed=None,
    )


def test_the_answers_are_those_that_are_documented(http: httpx.Client, founded: Founded) -> None:
    def answered(call: str, body: dict[str, Any]) -> bytes:
        return http.post(f"/api/job/{call}", json=body).content

    params = {
        "temperature": 0,
        "top_p": 0.25,
        "top_k": 5,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "max_tokens": 9,
    }
    params |= {"stop": ["x"], "seed": str(2**64 - 1)}
    accepted = answered("submit", changed(founded.body(), "job.params", params))
    job_id = schemas.Submitted.model_validate_json(accepted).result
    detail = schemas.DetailAnswer.model_validate_json(answered("detail", {"job_id": job_id}))
    assert detail.result.job.params.model_dump() == params
    for job in (founded.finished, founded.flagged):
        assert schemas.Results.model_validate_json(answered("result", {"job_id": job})).result
        schemas.DetailAnswer.model_validate_json(answered("detail", {"job_id": job}))
    user = {"from": founded.project, "user": "someone", "verify": founded.token, "limit": 1}
    assert schemas.UserResults.model_validate_json(answered("verify", user)).cursor
    schemas.Cancelled.model_validate_json(answered("cancel", {"job_id": job_id, "verify": founded.token}))
    schemas.SeedError.model_validate_json(answered("detail", {}))
    schemas.Problem.model_validate_json(http.get("/v1/aos/registry?root=A").content)
    schemas.RegistryAnswer.model_validate_json(http.get("/v1/aos/registry").content)
    schemas.Models.model_validate_json(http.get("/v1/aos/models").content)
    draw = http.get(f"/v1/aos/jobs/{b64u_encode(job_ref(job_id))}/draw")
    schemas.DrawAnswer.model_validate_json(draw.content)
    schemas.Health.model_validate_json(http.get("/health").content)
    schemas.Ready.model_validate_json(http.get("/ready").content)


# --- AOS's own routes


def test_events_replay_a_finished_job_and_resume(http: httpx.Client, founded: Founded) -> None:
    answer = http.get(f"/v1/aos/jobs/{founded.finished}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block for block in answer.text.split("\n\n") if block]
    assert [int(block.split("\n")[0].removeprefix("id: ")) for block in blocks] == list(
        range(1, len(blocks) + 1)
    )
    assert [block.split("\n")[1] for block in blocks][:: len(blocks) - 1] == ["event: status", "event: done"]
    rest = http.get(f"/v1/aos/jobs/{founded.finished}/events", headers={"Last-Event-ID": "2"})
    assert [block for block in rest.text.split("\n\n") if block] == blocks[2:]


@pytest.mark.parametrize("last", ["x", "-1", "9" * 19, "1.5"])
def test_an_event_id_that_cannot_be_is_refused(http: httpx.Client, founded: Founded, last: str) -> None:
    answer = http.get(f"/v1/aos/jobs/{founded.finished}/events", headers={"Last-Event-ID": last})
    refused_as_problem(answer, 400, "field.range")


def test_an_event_stream_tells_of_a_cancel_that_comes_while_it_is_read(
    http: httpx.Client, dispatcher: DispatcherProcess, founded: Founded
) -> None:
    job_id = submitted(http, founded.body())
    with dispatcher.client() as follower, follower.stream("GET", f"/v1/aos/jobs/{job_id}/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "id: 1"
        http.post("/api/job/cancel", json={"job_id": job_id, "verify": founded.token})
        told = [line for line in lines if line.startswith("data:")]
    assert json.loads(told[-1].removeprefix("data: "))["status"] == "cancelled"


def test_the_answer_and_the_request_are_for_who_holds_the_job_id(
    http: httpx.Client, founded: Founded
) -> None:
    answer = http.get(f"/v1/aos/jobs/{founded.finished}/answer")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    data = http.get(f"/v1/aos/jobs/{founded.finished}/request").content
    assert answer.json()["request"].encode() == data
    assert http.get(f"/v1/aos/jobs/{founded.finished}/answer?attempt=1").content == answer.content
    reference = b64u_encode(job_ref(founded.finished))
    for what in ("answer", "request", "events"):
        refused_as_problem(http.get(f"/v1/aos/jobs/{reference}/{what}"), 404, "job.unknown")
        refused_as_problem(
            http.get(f"/v1/aos/jobs/{job_ref(founded.finished).hex()}/{what}"), 404, "job.unknown"
        )


def test_an_answer_that_is_not_there_is_refused(http: httpx.Client, founded: Founded) -> None:
    job_id = submitted(http, founded.body())
    refused_as_problem(http.get(f"/v1/aos/jobs/{job_id}/answer"), 409, "job.no_answer")
    refused_as_problem(http.get(f"/v1/aos/jobs/{founded.finished}/answer?attempt=2"), 409, "job.no_answer")


@pytest.mark.parametrize("attempt", ["x", "0", "-1", "9999999999", "9" * 30])
def test_an_attempt_that_cannot_be_is_refused(http: httpx.Client, founded: Founded, attempt: str) -> None:
    answer = http.get(f"/v1/aos/jobs/{founded.finished}/answer?attempt={attempt}")
    refused_as_problem(answer, 400, "field.range")
    assert answer.json()["field"] == "attempt"


def test_the_draw_is_public_by_reference_and_tells_nothing_else(http: httpx.Client, founded: Founded) -> None:
    answer = http.get(f"/v1/aos/jobs/{b64u_encode(job_ref(founded.finished))}/draw")
    assert answer.status_code == 200
    attempt = answer.json()["attempts"][0]
    assert {"draw_call", "draw_record", "entries", "tag_opening"} <= set(attempt)
    assert [entry["claim"]["statement"]["type"] for entry in attempt["entries"]] == ["aos.vrf_claim"] * 2
    for secret in (founded.finished, "What is AI?", founded.operators[0].result.text, "someone"):
        assert secret not in answer.text
    refused_as_problem(http.get(f"/v1/aos/jobs/{founded.finished}/draw"), 404, "job.unknown")


def test_the_network_its_registry_and_its_models_are_public(http: httpx.Client, founded: Founded) -> None:
    assert http.get("/v1/aos/network").json()["type"] == "aos.network"
    registry = http.get("/v1/aos/registry").json()
    assert [entry["node_id"] for entry in registry["entries"]] == sorted(o.node_id for o in founded.operators)
    root = registry["snapshot"]["statement"]["root"]
    assert http.get("/v1/aos/registry", params={"root": root}).json()["entries"] == registry["entries"]
    refused_as_problem(http.get("/v1/aos/registry?root=AA"), 400, "field.range")
    refused_as_problem(http.get(f"/v1/aos/registry?root={'A' * 43}"), 404, "registry.unknown_root")
    assert [model["name"] for model in http.get("/v1/aos/models").json()["models"]] == [
        founded.body()["job"]["model"]
    ]


def test_an_unsigned_registration_stores_nothing(
    http: httpx.Client, rows: Callable[[], dict[str, int]]
) -> None:
    stored = rows()
    assert http.post("/v1/aos/registry", json={"statement": {}, "signature": ""}).status_code == 400
    assert rows() == stored


# --- the service


def test_the_service_says_that_it_lives_and_is_ready(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready", "operators": 0}


def test_the_documentation_lists_every_route_and_its_bodies(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    paths = document["paths"]
    posts = {f"/api/job/{name}" for name in ("submit", "result", "detail", "verify", "cancel")}
    posts |= {"/v1/aos/registry", "/v1/chat/completions", "/v1/completions"}
    gets = {f"/v1/aos/jobs/{{job_id}}/{name}" for name in ("events", "answer", "request")}
    gets |= {
        "/v1/aos/network",
        "/v1/aos/models",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/aos/jobs/{job_ref}/draw",
        "/health",
        "/ready",
        "/metrics",
    }
    assert posts | gets <= set(paths)
    for path in posts:
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        name = schema["$ref"].removeprefix("#/components/schemas/")
        assert document["components"]["schemas"][name]["additionalProperties"] is False
        assert {"200", "400", "413", "503"} <= set(paths[path]["post"]["responses"])
    page = http.get("/docs").text
    for path in set(paths) - {"/openapi.json"}:
        assert f"<code>{path}</code>" in page


def test_every_reference_in_the_documentation_leads_somewhere(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    names = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)))
    assert names
    for name in names:
        root, _, last = name.rpartition("/")
        assert root == "#/components/schemas"
        assert last in document["components"]["schemas"]


def test_the_documentation_asks_no_other_host(http: httpx.Client) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    links = re.findall(r"""(?:href|src|action|data)\s*=\s*["']?([^"'\s>]+)""", answer.text)
    assert links == ["/openapi.json"]
    assert not re.search(r"url\(|@import", answer.text)
    for url in re.findall(r"[a-z]+://[^\s<]+", answer.text):  # shown as text only
        assert urlsplit(url).hostname is None, url


def test_metrics_are_prometheus_text_and_hold_nobody_s_words(http: httpx.Client, founded: Founded) -> None:
    job_id = submitted(http, founded.body(user="a user of the metrics test"))
    wrong = changed(founded.body(), "job.model", "a model of the metrics test")
    refused(submit(http, wrong), 404, "model.unknown", "job.model")
    text = http.get("/metrics").text
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["aos_open_runs",] >= 1
    assert samples["aos_runs", "created"] >= 1
    assert samples["aos_operator_links",] == 0
    assert samples["aos_database_up",] == 1
    assert samples["aos_submissions_total", "opml"] >= 1
    assert samples["aos_submit_seconds_count",] >= 1
    assert samples["aos_refusals_total", "model.unknown"] >= 1
    secrets = (founded.token, founded.project, job_id, b64u_encode(job_ref(job_id)), founded.finished)
    for secret in (*secrets, "What is AI?", "of the metrics test"):
        assert secret not in text


def test_cancelled_runs_are_counted(http: httpx.Client, founded: Founded) -> None:
    def cancelled() -> float:
        text = http.get("/metrics").text
        return float(re.findall(r'^aos_runs_ended_total\{status="cancelled"\} (.*)$', text, re.MULTILINE)[0])

    before = cancelled()
    job_id = submitted(http, founded.body())
    http.post("/api/job/cancel", json={"job_id": job_id, "verify": founded.token})
    assert cancelled() == before + 1


def test_what_does_not_exist_is_refused_in_the_envelope_of_its_side(http: httpx.Client) -> None:
    refused(http.post("/api/job/nothing", json={}), 404, "http.not_found")
    refused(http.get("/api/job/submit"), 405, "http.method_not_allowed")
    refused_as_problem(http.get("/v1/aos/nothing"), 404, "http.not_found")
    refused_as_problem(http.delete("/v1/aos/registry"), 405, "http.method_not_allowed")
    assert http.get("/api/job/submit").headers["allow"] == "POST"
    refused_as_problem(http.get("/"), 404, "http.not_found")


def test_the_log_holds_no_prompt_token_or_job_id(
    http: httpx.Client, dispatcher: DispatcherProcess, founded: Founded
) -> None:
    body = changed(founded.body(user="a user of the log test"), "job.prompt", "a prompt of the log test")
    job_id = submitted(http, body)
    http.post("/api/job/cancel", json={"job_id": job_id, "verify": founded.token})
    text = dispatcher.log.read_text()
    assert "run" in text
    for secret in (founded.token, job_id, "a prompt of the log test", "a user of the log test"):
        assert secret not in text


def test_without_its_database_the_dispatcher_is_alive_not_ready_and_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("away"), settings={"fsync": "off"})
    server.start()
    try:
        founded = found(tmp_path_factory.mktemp("dispatcher"), server.create_database("away"))
        process = founded.process()
        try:
            process.start()
            with process.client() as http:
                job_id = submitted(http, founded.body())
                server.kill()
                assert http.get("/health").status_code == 200
                ready = http.get("/ready")
                refused_as_problem(ready, 503, "store.unavailable")
                assert ready.headers["retry-after"] == "2"
                refused(submit(http, founded.body()), 503, "store.unavailable")
                assert founded.pg_url not in ready.text
                server.start()
                for _ in range(600):
                    if http.get("/ready").status_code == 200:
                        break
                assert http.get("/ready").status_code == 200
                detail = http.post("/api/job/detail", json={"job_id": job_id}).json()["result"]
                assert detail["status"] == "created"
        finally:
            process.stop()
    finally:
        server.stop()
