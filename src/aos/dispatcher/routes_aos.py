"""AOS's own routes (docs/spec/09-http.md): events, answer files, draws, registry, health. Errors are RFC 9457."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response, WebSocket
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST

from aos.core.codec import encode
from aos.core.encoding import b64u_decode, parse_json_strict
from aos.dispatcher import docs_page
from aos.dispatcher.jobs import Jobs
from aos.dispatcher.refusals import NotFound
from aos.dispatcher.registry import Registry
from aos.dispatcher.routes_seed import body_of
from aos.dispatcher.schemas import (
    DrawAnswer,
    Health,
    Models,
    Ready,
    Registered,
    RegistryAnswer,
    SignedStatement,
    body,
    refusals,
)
from aos.dispatcher.streams import KEEP_ALIVE_S, Found, Streams
from aos.errors import InvalidMessage, Unavailable

router = APIRouter()
READY_S = 5.0

_Attempt = Annotated[int | None, Query(ge=1, lt=2**31, description="Default: the job's first run.")]
_Bearer = Annotated[
    str | None, Header(description="`Bearer <API token>`; needed where the job is `private`.")
]
_JOB_TEXT = {
    "description": "As it is stored.",
    "content": {"application/json": {"schema": {"type": "object"}}},
}


def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


def _registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry


def job_id_of(job_id: str) -> str:
    """``job_id`` where it has the form of one. Raises NotFound ``job.unknown``."""
    if len(job_id) != 64 or any(c not in "0123456789abcdef" for c in job_id):
        raise NotFound("job.unknown", "no such job", field="job_id")
    return job_id


def bearer_token(authorization: str | None) -> str | None:
    """The token of an Authorization header; None where there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip()[:256] if scheme.lower() == "bearer" else None


@router.get(
    "/v1/aos/network",
    tags=["network"],
    summary="The network file",
    responses={200: {**_JOB_TEXT, "description": "Names, keys and beacon of the network."}},
)
async def network(request: Request) -> Response:
    """Public facts that a trust file is made of."""
    return JSONResponse(_registry(request).network_file())


@router.get(
    "/v1/aos/registry",
    tags=["network"],
    summary="The registry's signed snapshot",
    responses={200: {"model": RegistryAnswer}, **refusals(400, 404, 503)},
)
async def registry(
    request: Request,
    root: Annotated[str | None, Query(description="32 bytes as base64url: an earlier snapshot.")] = None,
) -> Response:
    """The snapshot in force, or the one with `root`."""
    book = _registry(request)
    if root is None:
        found = await book.in_force(book.epoch())
    else:
        try:
            wanted = b64u_decode(root, length=32)
        except InvalidMessage:
            raise InvalidMessage("field.range", "root: must be 32 bytes as base64url", field="root") from None
        held = await book.by_root(wanted)
        if held is None:
            raise NotFound("registry.unknown_root", "no snapshot has this root", field="root")
        found = held
    return JSONResponse(
        {"snapshot": found.signed.to_json(), "entries": [encode(entry) for entry in found.entries]}
    )


@router.post(
    "/v1/aos/registry",
    tags=["network"],
    summary="Register an operator",
    openapi_extra=body(SignedStatement),
    responses={200: {"model": Registered}, **refusals(400, 403, 408, 409, 413, 503)},
)
async def register(request: Request) -> Response:
    """A signed `aos.registration` with proof of possession of the VRF key."""
    value = parse_json_strict(await body_of(request), max_bytes=64 * 1024)
    entered = await _registry(request).register(value)
    return JSONResponse({"node_id": entered.node_id, "admitted": entered.admitted})


@router.get(
    "/v1/aos/models",
    tags=["network"],
    summary="Names and ids of models",
    responses={200: {"model": Models}, **refusals(503)},
)
async def models(request: Request) -> Response:
    """A name is given once and never re-pointed."""
    return JSONResponse({"models": await _jobs(request).models()})


@router.get(
    "/v1/aos/jobs/{job_id}/events",
    tags=["jobs"],
    summary="Follow a job",
    responses={
        200: {
            "description": "Events `status`, `text`, `done`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **refusals(400, 401, 403, 404, 429, 503),
    },
)
async def events(
    request: Request,
    job_id: str,
    last_event_id: Annotated[str, Header(description="Resume after this event.")] = "0",
    authorization: _Bearer = None,
) -> Response:
    """Server-sent events of a job, from the beginning or after `Last-Event-ID`."""
    last = last_event_id
    if not (last.isascii() and last.isdigit() and len(last) < 19):
        raise InvalidMessage(
            "field.range", "Last-Event-ID: must be one of this stream", field="Last-Event-ID"
        )
    jobs, streams = _jobs(request), _streams(request)
    await jobs.may_read(job_id_of(job_id), token=bearer_token(authorization))

    async def read(after: int) -> Found:
        return await jobs.events_after(job_id, after, wait_s=KEEP_ALIVE_S)

    first = await jobs.events_after(job_id, int(last), wait_s=0)
    streams.check(job_id)  # last: between here and the stream's start nothing waits
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        streams.follow(job_id, int(last), first, read), media_type="text/event-stream", headers=headers
    )


def _streams(request: Request) -> Streams:
    streams: Streams = request.app.state.streams
    return streams


@router.get(
    "/v1/aos/jobs/{job_id}/answer",
    tags=["jobs"],
    summary="The answer file",
    responses={200: _JOB_TEXT, **refusals(400, 401, 403, 404, 409, 503)},
)
async def answer(
    request: Request, job_id: str, attempt: _Attempt = None, authorization: _Bearer = None
) -> Response:
    """Text, receipt and all that `aos verify` needs, for whoever holds the job id."""
    jobs = _jobs(request)
    await jobs.may_read(job_id_of(job_id), token=bearer_token(authorization))
    data = await jobs.answer(job_id, attempt)
    return Response(data, media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get(
    "/v1/aos/jobs/{job_id}/request",
    tags=["jobs"],
    summary="The request bytes",
    responses={200: _JOB_TEXT, **refusals(401, 403, 404, 503)},
)
async def request_bytes(request: Request, job_id: str, authorization: _Bearer = None) -> Response:
    """The exact bytes that `request_hash` covers, for whoever holds the job id."""
    jobs = _jobs(request)
    await jobs.may_read(job_id_of(job_id), token=bearer_token(authorization))
    data = await jobs.request_bytes(job_id)
    return Response(data, media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get(
    "/v1/aos/jobs/{job_ref}/draw",
    tags=["jobs"],
    summary="A job's draws, public",
    responses={200: {"model": DrawAnswer}, **refusals(404, 503)},
)
async def draw(request: Request, job_ref: str) -> Response:
    """Everything about a job's draws that a stranger needs to recheck them; by job_ref, not by job id."""
    try:
        ref = b64u_decode(job_ref, length=32)
    except InvalidMessage:
        raise NotFound("job.unknown", "no such job", field="job_ref") from None
    return JSONResponse(await _jobs(request).draw(ref))


@router.get("/health", tags=["service"], summary="It runs", responses={200: {"model": Health}})
async def health() -> Response:
    """200 as long as the process answers."""
    return JSONResponse({"status": "ok"})


@router.get(
    "/ready", tags=["service"], summary="It can take jobs", responses={200: {"model": Ready}, **refusals(503)}
)
async def ready(request: Request) -> Response:
    """200 when the database answers, within five seconds."""
    try:
        async with asyncio.timeout(READY_S):
            await _jobs(request).open_states()
    except TimeoutError:
        raise Unavailable("store.unavailable", f"PostgreSQL did not answer within {READY_S:g} s") from None
    return JSONResponse({"status": "ready", "operators": len(request.app.state.links.connected())})


@router.get(
    "/metrics",
    tags=["service"],
    summary="Prometheus metrics",
    responses={
        200: {"description": "Counts and times.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
async def metrics(request: Request) -> Response:
    """Counts and times; nothing about a job, a project or a user."""
    state = request.app.state
    try:
        async with asyncio.timeout(READY_S):
            states = await _jobs(request).open_states()
    except (Unavailable, TimeoutError):
        states = None  # said by aos_database_up
    text = state.metrics.text(
        tasks=state.runs.open, links=len(state.links.connected()), streams=state.streams.open, states=states
    )
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/docs",
    tags=["service"],
    summary="This documentation",
    responses={200: {"description": "A page.", "content": {"text/html": {"schema": {"type": "string"}}}}},
)
async def docs(request: Request) -> Response:
    """One page without scripts, made from /openapi.json."""
    return HTMLResponse(docs_page.render(request.app.openapi()), headers=docs_page.HEADERS)


@router.websocket("/ws/operator")
async def operator_link(socket: WebSocket) -> None:
    await socket.app.state.links.serve(socket)
