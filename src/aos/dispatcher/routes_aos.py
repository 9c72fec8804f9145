"""AOS's own routes (docs/spec/09-http.md): events, answer files, draws, registry, health. Errors are RFC 9457."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from aos.core.codec import encode
from aos.core.encoding import b64u_decode, parse_json_strict
from aos.dispatcher.jobs import Jobs, NotFound
from aos.dispatcher.registry import Registry
from aos.dispatcher.routes_seed import body_of
from aos.errors import AOSError, InvalidMessage

router = APIRouter()
KEEP_ALIVE_S = 15.0


def problem(error: AOSError) -> JSONResponse:
    """An error as application/problem+json."""
    body: dict[str, Any] = {
        "type": f"urn:aos:error:{error.code}",
        "title": error.code,
        "status": error.http_status,
        "detail": error.message,
    }
    if error.field:
        body["field"] = error.field
    if error.hint:
        body["hint"] = error.hint
    headers = {"Retry-After": "2"} if error.http_status == 503 else None
    return JSONResponse(
        body, status_code=error.http_status, headers=headers, media_type="application/problem+json"
    )


def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


def _registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry


def _id(job_id: str) -> str:
    if len(job_id) != 64 or any(c not in "0123456789abcdef" for c in job_id):
        raise NotFound("job.unknown", "no such job", field="job_id")
    return job_id


@router.get("/v1/aos/network", tags=["network"])
async def network(request: Request) -> Response:
    """The public network file."""
    return JSONResponse(_registry(request).network_file())


@router.get("/v1/aos/registry", tags=["network"])
async def registry(request: Request, root: str | None = None) -> Response:
    """The snapshot in force, or the one with `root`."""
    book = _registry(request)
    if root is None:
        found = await book.in_force(book.epoch())
    else:
        held = await book.by_root(b64u_decode(root, length=32))
        if held is None:
            raise NotFound("registry.unknown_root", "no snapshot has this root", field="root")
        found = held
    return JSONResponse(
        {"snapshot": found.signed.to_json(), "entries": [encode(entry) for entry in found.entries]}
    )


@router.post("/v1/aos/registry", tags=["network"])
async def register(request: Request) -> Response:
    """A signed registration of a new operator."""
    value = parse_json_strict(await body_of(request), max_bytes=64 * 1024)
    return JSONResponse({"node_id": await _registry(request).register(value)})


@router.get("/v1/aos/models", tags=["network"])
async def models(request: Request) -> Response:
    return JSONResponse({"models": await _jobs(request).models()})


@router.get("/v1/aos/jobs/{job_id}/events", tags=["jobs"])
async def events(request: Request, job_id: str) -> Response:
    """Server-sent events of a job, from the beginning or after `Last-Event-ID`."""
    last = request.headers.get("last-event-id", "0")
    if not (last.isascii() and last.isdigit() and len(last) < 19):
        raise InvalidMessage(
            "field.range", "Last-Event-ID: must be one of this stream", field="Last-Event-ID"
        )
    jobs = _jobs(request)
    first = await jobs.events_after(_id(job_id), int(last), wait_s=0)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _stream(jobs, job_id, int(last), first), media_type="text/event-stream", headers=headers
    )


async def _stream(
    jobs: Jobs, job_id: str, after: int, found: list[tuple[int, str, str]]
) -> AsyncIterator[str]:
    while True:
        for number, kind, data in found:
            after = number
            yield f"id: {number}\nevent: {kind}\ndata: {data}\n\n"
            if kind == "done":
                return
        found = await jobs.events_after(job_id, after, wait_s=KEEP_ALIVE_S)
        if not found:
            yield ": still here\n\n"


@router.get("/v1/aos/jobs/{job_id}/answer", tags=["jobs"])
async def answer(request: Request, job_id: str, attempt: int | None = None) -> Response:
    """The answer file, for whoever holds the job id."""
    data = await _jobs(request).answer(_id(job_id), attempt)
    return Response(data, media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get("/v1/aos/jobs/{job_id}/request", tags=["jobs"])
async def request_bytes(request: Request, job_id: str) -> Response:
    """The exact request bytes, for whoever holds the job id."""
    data = await _jobs(request).request_bytes(_id(job_id))
    return Response(data, media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get("/v1/aos/jobs/{job_ref}/draw", tags=["jobs"])
async def draw(request: Request, job_ref: str) -> Response:
    """Everything about a job's draws that a stranger needs to recheck them; public, by job_ref."""
    try:
        ref = b64u_decode(job_ref, length=32)
    except InvalidMessage:
        raise NotFound("job.unknown", "no such job", field="job_ref") from None
    return JSONResponse(await _jobs(request).draw(ref))


@router.get("/health", tags=["service"])
async def health() -> Response:
    return JSONResponse({"status": "ok"})


@router.get("/ready", tags=["service"])
async def ready(request: Request) -> Response:
    """200 when the database answers."""
    await _jobs(request).models()
    return JSONResponse({"status": "ready", "operators": len(request.app.state.links.connected())})


@router.get("/metrics", tags=["service"])
async def metrics(request: Request) -> Response:
    return Response(generate_latest(request.app.state.metrics), media_type=CONTENT_TYPE_LATEST)


@router.websocket("/ws/operator")
async def operator_link(socket: WebSocket) -> None:
    await socket.app.state.links.serve(socket)
