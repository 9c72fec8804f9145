"""Errors as HTTP answers and the bound on event streams, at the border of the web framework (09)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Query
from structlog.testing import capture_logs

from aos.dispatcher import refusals
from aos.dispatcher.streams import Found, Streams
from aos.errors import ConfigError, Unavailable

SECRET = "Key (job_id)=(636a5cf0) already exists"


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
async def http(told: list[str]) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    refusals.install(app, refused=told.append)

    @app.get("/api/job/defect")
    @app.get("/v1/aos/defect")
    @app.get("/v1/defect")
    async def defect() -> None:
        raise KeyError(SECRET)

    @app.get("/v1/aos/down")
    @app.get("/v1/down")
    @app.get("/api/job/down")
    async def down() -> None:
        raise Unavailable("store.unavailable", "PostgreSQL does not answer")

    @app.get("/v1/aos/config")
    @app.get("/v1/config")
    async def config() -> None:
        raise ConfigError("network.not_founded", "this database holds no snapshot", hint="found one")

    @app.get("/v1/aos/number")
    @app.get("/v1/number")
    async def number(attempt: int = Query(ge=1)) -> None:
        return None

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


async def test_a_defect_is_a_500_that_tells_nothing_of_itself(
    http: httpx.AsyncClient, told: list[str]
) -> None:
    with capture_logs() as logs:
        seed, problem = await http.get("/api/job/defect"), await http.get("/v1/aos/defect")
        openai = await http.get("/v1/defect")
    assert (seed.status_code, seed.json()["code"], seed.json()["error"]) == (500, 500, "internal")
    assert (problem.status_code, problem.json()["status"], problem.json()["title"]) == (500, 500, "internal")
    assert problem.headers["content-type"] == "application/problem+json"
    assert (openai.status_code, openai.json()["error"]["code"]) == (500, "internal")
    assert openai.json()["error"]["type"] == "server_error"
    assert told == ["internal"] * 3
    assert [(entry["event"], entry["kind"]) for entry in logs] == [("request.defect", "KeyError")] * 3
    assert "test_dispatcher_refusals.py" in logs[0]["where"]
    for text in (seed.text, problem.text, openai.text, repr(logs)):
        assert SECRET not in text


@pytest.mark.parametrize("path", ["/api/job/down", "/v1/aos/down", "/v1/down"])
async def test_what_may_be_tried_again_says_when(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"


@pytest.mark.parametrize("value", ["abc", "0", "1.5", ""])
async def test_a_parameter_that_cannot_be_is_named(http: httpx.AsyncClient, value: str) -> None:
    answer = await http.get(f"/v1/aos/number?attempt={value}")
    body = answer.json()
    assert (answer.status_code, body["title"], body["field"]) == (400, "field.range", "attempt")
    assert answer.headers["content-type"] == "application/problem+json"
    error = (await http.get(f"/v1/number?attempt={value}")).json()["error"]
    assert (error["code"], error["param"], error["type"]) == (
        "field.range",
        "attempt",
        "invalid_request_error",
    )


async def test_a_hint_is_passed_on(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/aos/config")
    assert (answer.status_code, answer.json()["hint"]) == (500, "found one")
    assert (await http.get("/v1/config")).json()["error"]["hint"] == "found one"


# --- event streams


async def never(after: int) -> Found:
    return []


async def test_followers_are_bounded_by_job_and_altogether() -> None:
    streams = Streams(most=3, most_a_job=2)
    open_ = [streams.follow(job, 0, [(1, "status", "{}")], never) for job in ("a", "a", "b")]
    for stream in open_:
        streams.check("c")
        assert await anext(stream) == "id: 1\nevent: status\ndata: {}\n\n"
    assert streams.open == 3
    with pytest.raises(refusals.TooMany) as refusal:
        streams.check("c")
    assert (refusal.value.code, refusal.value.http_status) == ("events.too_many", 429)
    await open_[2].aclose()
    streams.check("c")
    with pytest.raises(refusals.TooMany):
        streams.check("a")
    for stream in open_:
        await stream.aclose()
    assert streams.open == 0


async def test_a_stream_ends_where_the_database_is_lost_and_gives_its_place_back() -> None:
    async def lost(after: int) -> Found:
        raise Unavailable("store.unavailable", "PostgreSQL does not answer")

    streams = Streams()
    assert [event async for event in streams.follow("a", 0, [(1, "status", "{}")], lost)] == [
        "id: 1\nevent: status\ndata: {}\n\n"
    ]
    assert streams.open == 0
