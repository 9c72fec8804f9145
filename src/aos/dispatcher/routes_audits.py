"""``/v1/aos/audits`` (docs/spec/09-http.md): orders, bundles, reports. Errors are RFC 9457."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from aos.core.dispute.moves import MAX_GAME_BYTES
from aos.core.encoding import parse_json_strict
from aos.dispatcher.audits import Audits
from aos.dispatcher.routes_disputes import NO_STORE, Bearer, SignedReader, cursor_of, name_of, reader_of
from aos.dispatcher.routes_seed import body_of
from aos.dispatcher.schemas import (
    Audit,
    AuditList,
    AuditOpened,
    AuditProgress,
    SignedStatement,
    body,
    refusals,
)
from aos.dispatcher.submission import MAX_BODY_BYTES

router = APIRouter(prefix="/v1/aos/audits", tags=["audits"])

_BYTES = {"schema": {"type": "string", "format": "binary"}}
_CHUNK = {"requestBody": {"required": True, "content": {"application/octet-stream": _BYTES}}}


def _audits(request: Request) -> Audits:
    audits: Audits = request.app.state.audits
    return audits


@router.get("", summary="Audits, newest first", responses={200: {"model": AuditList}, **refusals(400, 503)})
async def audits(
    request: Request,
    cursor: Annotated[str | None, Query(description="Where the page before ended.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    job_ref: Annotated[str | None, Query(description="Only audits of this job.")] = None,
) -> Response:
    """Public facts of audits: who asked whom, which beacon draws, whether it was answered, and what the auditor found."""
    page, following = await _audits(request).audits(
        before=cursor_of(cursor), limit=limit, job_ref=None if job_ref is None else name_of(job_ref, "job")
    )
    return JSONResponse({"audits": page, "cursor": following})


@router.post(
    "",
    summary="Ask for an audit",
    openapi_extra=body(SignedStatement),
    responses={200: {"model": Audit}, **refusals(400, 403, 404, 408, 409, 413, 429, 503)},
)
async def ask(request: Request, authorization: Bearer = None) -> Response:
    """A signed `aos.audit_request`. Its signer is one of the job's operators, or the project's token comes with it."""
    value = parse_json_strict(await body_of(request), max_bytes=MAX_GAME_BYTES)
    reader = reader_of(request, None, authorization, b"")
    return JSONResponse(await _audits(request).ask(value, reader))


@router.get("/{audit}", summary="An audit", responses={200: {"model": Audit}, **refusals(404, 503)})
async def audit_of(request: Request, audit: str) -> Response:
    """Public facts of one audit."""
    return JSONResponse(await _audits(request).audit(name_of(audit, "audit")))


@router.put(
    "/{audit}/opening",
    summary="Answer an audit",
    openapi_extra=body(AuditOpened),
    responses={200: {"model": AuditProgress}, **refusals(400, 403, 404, 408, 409, 413, 503)},
)
async def open_audit(request: Request, audit: str) -> Response:
    """A signed `aos.audit_opening` with the hashes of its chunks; says which of them are missing. Sent again, it changes
    nothing."""
    value = parse_json_strict(await body_of(request), max_bytes=MAX_BODY_BYTES)
    return JSONResponse(await _audits(request).open(name_of(audit, "audit"), value))


@router.put(
    "/{audit}/chunks/{index}",
    summary="Send a chunk",
    openapi_extra=_CHUNK,
    responses={200: {"model": AuditProgress}, **refusals(400, 403, 404, 408, 409, 413, 503)},
)
async def put_chunk(request: Request, audit: str, index: int) -> Response:
    """A chunk's bytes: its hash is its credential. After the last one the whole is checked against the claim's state root;
    a bundle that does not lead there is thrown away."""
    data = await body_of(request)
    return JSONResponse(await _audits(request).put_chunk(name_of(audit, "audit"), index, data))


@router.get(
    "/{audit}/opening",
    summary="An audit's chunks",
    responses={200: {"model": AuditOpened}, **refusals(400, 403, 404, 409, 503)},
)
async def opening(
    request: Request, audit: str, signed: SignedReader = None, authorization: Bearer = None
) -> Response:
    """The signed opening and the chunks' hashes, for the auditor and who may know the prompt."""
    name = name_of(audit, "audit")
    reader = reader_of(request, signed, authorization, name)
    return JSONResponse(await _audits(request).opening(name, reader), headers=NO_STORE)


@router.get(
    "/{audit}/chunks/{index}",
    summary="A chunk",
    responses={
        200: {"description": "The chunk's bytes.", "content": {"application/octet-stream": _BYTES}},
        **refusals(400, 403, 404, 409, 503),
    },
)
async def chunk(
    request: Request, audit: str, index: int, signed: SignedReader = None, authorization: Bearer = None
) -> Response:
    """One chunk of a bundle that was checked, for the auditor and who may know the prompt."""
    name = name_of(audit, "audit")
    reader = reader_of(request, signed, authorization, name)
    data = await _audits(request).chunk(name, index, reader)
    return Response(data, media_type="application/octet-stream", headers=NO_STORE)


@router.put(
    "/{audit}/report",
    summary="Say what an audit found",
    openapi_extra=body(SignedStatement),
    responses={200: {"model": Audit}, **refusals(400, 403, 404, 408, 409, 413, 503)},
)
async def report(request: Request, audit: str) -> Response:
    """A signed `aos.audit_report` by the auditor: its word. Who can be convicted is challenged."""
    value = parse_json_strict(await body_of(request), max_bytes=MAX_GAME_BYTES)
    return JSONResponse(await _audits(request).report(name_of(audit, "audit"), value))
