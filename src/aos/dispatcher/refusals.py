"""Errors as HTTP answers (docs/spec/09-http.md): the seed's envelope under ``/api/``, OpenAI's shape under ``/v1/`` but for
``/v1/aos/``, ``/v1/attestation/`` and ``/v1/signature/``, RFC 9457 everywhere else.

Every answer that is no success comes from here: our own errors, unknown routes and methods, unreadable parameters, defects. A
defect is logged by kind and place, never with its text: what a driver says of a failed statement may quote a stored row.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aos.errors import AOSError, InvalidMessage, Unavailable

log = structlog.get_logger("aos.dispatcher")

RETRY_AFTER_S = 2
SEED_PREFIX = "/api/"
OPENAI_PREFIX = "/v1/"
NOT_OPENAI = ("/v1/aos/", "/v1/attestation/", "/v1/signature/")
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class NotFound(InvalidMessage):
    """There is nothing of that name."""

    http_status = 404


class TooLarge(InvalidMessage):
    """More bytes than are read."""

    http_status = 413


class TooSlow(InvalidMessage):
    """The body did not come in time."""

    http_status = 408


class TooMany(Unavailable):
    """A limit of this service is reached for the moment."""

    http_status = 429
    retry_after_s = RETRY_AFTER_S


_HTTP_CODES = {404: "http.not_found", 405: "http.method_not_allowed"}


class _Refused(AOSError):
    """An error of HTTP itself."""

    def __init__(self, status: int) -> None:
        super().__init__(_HTTP_CODES.get(status, "http.refused"), HTTPStatus(status).phrase)
        self.http_status = status


class Defect(AOSError):
    """Something that must not happen has happened."""

    def __init__(self) -> None:
        super().__init__("internal", "the dispatcher failed at this request; nothing of it is told here")


def refusal(path: str, error: AOSError) -> JSONResponse:
    """``error`` in the envelope of the route that it happened in."""
    status = error.http_status
    headers = {"Cache-Control": "no-store"}
    if status in (429, 503):
        headers["Retry-After"] = str(getattr(error, "retry_after_s", RETRY_AFTER_S))
    if path.startswith(OPENAI_PREFIX) and not path.startswith(NOT_OPENAI):
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(openai_error(error), status_code=status, headers=headers)
    if path.startswith(SEED_PREFIX):
        body: dict[str, Any] = {"code": status, "message": error.message, "error": error.code}
        media_type = "application/json"
    else:
        body = {
            "type": f"urn:aos:error:{error.code}",
            "title": error.code,
            "status": status,
            "detail": error.message,
        }
        media_type = "application/problem+json"
    if error.field:
        body["field"] = error.field
    if error.hint:
        body["hint"] = error.hint
    return JSONResponse(body, status_code=status, headers=headers, media_type=media_type)


def openai_error(error: AOSError) -> dict[str, Any]:
    """``error`` as OpenAI's clients read it; ``code`` is the stable error code."""
    status = error.http_status
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    members = {"message": error.message, "type": kind, "param": error.field, "code": error.code}
    if error.hint:
        members["hint"] = error.hint
    return {"error": members}


def install(app: FastAPI, *, refused: Callable[[str], None]) -> None:
    """Answer every error of ``app``; ``refused`` is told the code of each."""

    @app.exception_handler(AOSError)
    async def ours(request: Request, error: AOSError) -> JSONResponse:
        refused(error.code)
        return refusal(request.url.path, error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        answer = await ours(request, _Refused(error.status_code))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        name = str(error.errors()[0]["loc"][-1])
        return await ours(
            request, InvalidMessage("field.range", f"{name}: is not what it must be", field=name)
        )

    app.add_middleware(_Defects, refused=refused)


class _Defects:
    """Outermost: an exception that nobody expected ends as a 500 without a word of it."""

    def __init__(self, app: ASGIApp, refused: Callable[[str], None]) -> None:
        self._app = app
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            route = getattr(scope.get("route"), "path", "none")
            log.error("request.defect", route=route, **place(error))
            defect = Defect()
            self._refused(defect.code)
            if started:
                raise ConnectionAbortedError("an answer broke off") from None
            await refusal(scope["path"], defect)(scope, receive, send)


def place(error: BaseException) -> dict[str, str]:
    """Kind and place of an exception, for the log: no text of it, which may hold what it is about."""
    where, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        where.append(f"{code.co_filename.rpartition('site-packages/')[2]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return {"kind": type(error).__name__, "where": " ".join(where[-6:])}
