"""The seed's API (docs/spec/09-http.md): field names, envelope and status codes of the developer guide."""

import base64
import json
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from aos.core.encoding import canonical_json
from aos.dispatcher.jobs import Jobs
from aos.dispatcher.submission import MAX_BODY_BYTES, read_body, read_submission, text
from aos.errors import AOSError, InvalidMessage

router = APIRouter(prefix="/api/job", tags=["jobs"])

_JOB_ID = 64


def seed_error(error: AOSError) -> JSONResponse:
    """An error in the seed's envelope; the HTTP status equals its code."""
    body = {"code": error.http_status, "message": error.message, "error": error.code}
    if error.field:
        body["field"] = error.field
    if error.hint:
        body["hint"] = error.hint
    headers = {"Retry-After": "2"} if error.http_status == 503 else None
    return JSONResponse(body, status_code=error.http_status, headers=headers)


class TooLarge(InvalidMessage):
    http_status = 413


async def body_of(request: Request) -> bytes:
    """The body, refused before it is read where it is over 1 MiB."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise TooLarge("encoding.too_large", "the body is larger than 1 MiB")
    return bytes(data)


def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


def _ok(result: Any) -> JSONResponse:
    return JSONResponse({"code": 200, "result": result})


def _job_id(body: dict[str, Any]) -> str:
    job_id = text(body, "job_id", "job_id", _JOB_ID)
    if len(job_id) != _JOB_ID or any(c not in "0123456789abcdef" for c in job_id):
        raise InvalidMessage("field.range", "job_id: must be 64 hex digits", field="job_id")
    return job_id


def _only(body: dict[str, Any], *names: str) -> None:
    for name in body:
        if name not in names:
            raise InvalidMessage("field.unknown", f"{name[:64]}: no such member", field=name[:64])


def _token(body: dict[str, Any]) -> str | None:
    return text(body, "verify", "verify", 256) if "verify" in body else None


@router.post("/submit", summary="Submit a job")
async def submit(request: Request) -> Response:
    """The guide's body; `job.params` also takes seed, top_k, min_p, repeat_penalty, stop."""
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= 128 and key.isascii() and key.isprintable()):
        raise InvalidMessage(
            "field.range", "Idempotency-Key: 1 to 128 printable ASCII characters", field="Idempotency-Key"
        )
    new = read_submission(await body_of(request))
    accepted = await _jobs(request).submit(new, idempotency_key=key)
    signed = base64.urlsafe_b64encode(canonical_json(accepted.acceptance)).rstrip(b"=").decode()
    response = _ok(accepted.job_id)
    response.headers["x-aos-acceptance"] = signed
    if accepted.warning:
        response.headers["x-aos-warning"] = accepted.warning
    return response


@router.post("/result", summary="Result rows of a job")
async def result(request: Request) -> Response:
    body = read_body(await body_of(request))
    _only(body, "job_id", "verify")
    return _ok(await _jobs(request).result_rows(_job_id(body), token=_token(body)))


@router.post("/detail", summary="Request and status of a job")
async def detail(request: Request) -> Response:
    body = read_body(await body_of(request))
    _only(body, "job_id", "verify")
    return _ok(await _jobs(request).detail(_job_id(body), token=_token(body)))


@router.post("/verify", summary="All results for a user")
async def verify(request: Request) -> Response:
    body = read_body(await body_of(request))
    _only(body, "from", "user", "verify", "cursor", "limit")
    project, user = text(body, "from", "from", 128), text(body, "user", "user", 256)
    limit, cursor = body.get("limit", 20), body.get("cursor")
    if type(limit) is not int or not 1 <= limit <= 100:
        raise InvalidMessage("field.range", "limit: must be 1 to 100", field="limit")
    if cursor is not None and not (
        isinstance(cursor, str) and cursor.isascii() and cursor.isdigit() and len(cursor) < 19
    ):
        raise InvalidMessage("field.range", "cursor: must be one that this call gave", field="cursor")
    jobs = _jobs(request)
    await jobs.authenticate(project, text(body, "verify", "verify", 256))
    before = None if cursor is None else int(cursor)
    rows, following = await jobs.user_results(project, user, before=before, limit=limit)
    answer: dict[str, Any] = {"code": 200, "result": rows}
    if following is not None:
        answer["cursor"] = following
    return Response(json.dumps(answer), media_type="application/json")


@router.post("/cancel", summary="Cancel a job that is not committed")
async def cancel(request: Request) -> Response:
    body = read_body(await body_of(request))
    _only(body, "job_id", "verify")
    return _ok(await _jobs(request).cancel(_job_id(body), text(body, "verify", "verify", 256)))
