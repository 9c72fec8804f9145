"""The seed's API (docs/spec/09-http.md): field names, envelope and status codes of the developer guide."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from aos.core.encoding import b64u_encode, canonical_json
from aos.dispatcher.jobs import Jobs
from aos.dispatcher.metrics import Metrics
from aos.dispatcher.refusals import TooLarge, TooSlow
from aos.dispatcher.schemas import (
    Cancelled,
    CancelQuery,
    DetailAnswer,
    JobQuery,
    Results,
    Submission,
    Submitted,
    UserQuery,
    UserResults,
    body,
    refusals,
)
from aos.dispatcher.submission import MAX_BODY_BYTES, read_body, read_submission, text
from aos.errors import InvalidMessage

router = APIRouter(prefix="/api/job", tags=["jobs, as in the developer guide"])

BODY_S = 30.0
_JOB_ID = 64
_READ = refusals(400, 401, 403, 404, 408, 413, 503, seed=True)


async def body_of(request: Request) -> bytes:
    """The body; refused before it is read where it says that it is over 1 MiB, and where it is after all.

    Raises TooLarge ``encoding.too_large``, TooSlow ``http.request_timeout``.
    """
    said = request.headers.get("content-length", "")
    if said.isascii() and said.isdigit() and int(said[:20]) > MAX_BODY_BYTES:
        raise TooLarge("encoding.too_large", "the body is larger than 1 MiB")
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                data += part
                if len(data) > MAX_BODY_BYTES:
                    raise TooLarge("encoding.too_large", "the body is larger than 1 MiB")
    except TimeoutError:
        raise TooSlow("http.request_timeout", f"the body did not come within {BODY_S:g} s") from None
    except ClientDisconnect:
        raise InvalidMessage("http.disconnected", "the body broke off") from None
    return bytes(data)


def idempotency_key_of(key: str | None) -> str | None:
    """Raises InvalidMessage ``field.range``."""
    if key is not None and not (0 < len(key) <= 128 and key.isascii() and key.isprintable()):
        raise InvalidMessage(
            "field.range", "Idempotency-Key: 1 to 128 printable ASCII characters", field="Idempotency-Key"
        )
    return key


def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


def _ok(result: Any, **more: Any) -> JSONResponse:
    return JSONResponse({"code": 200, "result": result} | more, headers={"Cache-Control": "no-store"})


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


@router.post(
    "/submit",
    summary="Submit a job",
    openapi_extra=body(Submission),
    responses={
        200: {
            "model": Submitted,
            "headers": {
                "x-aos-acceptance": {
                    "description": "Signed `aos.acceptance`, base64url of its JSON.",
                    "schema": {"type": "string"},
                },
                "x-aos-log-promise": {
                    "description": "Signed `aos.log_promise`, base64url of its JSON: the acceptance's leaf in the log.",
                    "schema": {"type": "string"},
                },
                "x-aos-warning": {
                    "description": "What was not done although asked for: re-runs beyond the quota.",
                    "schema": {"type": "string"},
                },
            },
        },
        **refusals(400, 401, 403, 404, 408, 409, 413, 429, 503, seed=True),
    },
)
async def submit(
    request: Request,
    idempotency_key: str | None = Header(
        None, description="1 to 128 printable characters: the same key and body give the first answer again."
    ),
) -> Response:
    """The guide's body, and a few members more. A refused job leaves nothing behind."""
    key = idempotency_key_of(idempotency_key)
    new = read_submission(await body_of(request))
    begun = time.perf_counter()
    accepted = await _jobs(request).submit(new, idempotency_key=key)
    metrics: Metrics = request.app.state.metrics
    metrics.submitted(new.job_type, time.perf_counter() - begun)
    response = _ok(accepted.job_id)
    response.headers["x-aos-acceptance"] = b64u_encode(canonical_json(accepted.acceptance))
    if accepted.promise is not None:
        response.headers["x-aos-log-promise"] = b64u_encode(canonical_json(accepted.promise))
    if accepted.warning:
        response.headers["x-aos-warning"] = accepted.warning
    return response


@router.post(
    "/result",
    summary="Result rows of a job",
    openapi_extra=body(JobQuery),
    responses={200: {"model": Results}, **_READ},
)
async def result(request: Request) -> Response:
    """One row an operator and run, in the order in which they ended; none as long as there is no result."""
    body = read_body(await body_of(request))
    _only(body, "job_id", "verify")
    return _ok(await _jobs(request).result_rows(_job_id(body), token=_token(body)))


@router.post(
    "/detail",
    summary="Request and status of a job",
    openapi_extra=body(JobQuery),
    responses={200: {"model": DetailAnswer}, **_READ},
)
async def detail(request: Request) -> Response:
    """What was asked for, and how far it is."""
    body = read_body(await body_of(request))
    _only(body, "job_id", "verify")
    return _ok(await _jobs(request).detail(_job_id(body), token=_token(body)))


@router.post(
    "/verify",
    summary="All results for a user",
    openapi_extra=body(UserQuery),
    responses={200: {"model": UserResults}, **refusals(400, 401, 403, 408, 413, 503, seed=True)},
)
async def verify(request: Request) -> Response:
    """Rows of every job that this project has submitted for the user, newest first, in pages."""
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
    await jobs.authenticate(project, text(body, "verify", "verify", 256), "read")
    before = None if cursor is None else int(cursor)
    rows, following = await jobs.user_results(project, user, before=before, limit=limit)
    return _ok(rows) if following is None else _ok(rows, cursor=following)


@router.post(
    "/cancel",
    summary="Cancel a job that is not committed",
    openapi_extra=body(CancelQuery),
    responses={200: {"model": Cancelled}, **refusals(400, 401, 403, 404, 408, 409, 413, 503, seed=True)},
)
async def cancel(request: Request) -> Response:
    """Needs the project's token. Cancelling twice is no error; what is committed runs to its end."""
    body = read_body(await body_of(request))
    _only(body, "job_id", "verify")
    return _ok(await _jobs(request).cancel(_job_id(body), text(body, "verify", "verify", 256)))
