"""The operator's own HTTP interface, for the person who runs it and for monitoring (docs/operator-guide.md).

Reads what the running operator knows; changes nothing but ``drain`` and ``resume``, and these only from this machine. It
shows job_refs, states and codes, never a job_id, a prompt, an answer or a key.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import generate_latest

from aos.errors import AOSError
from aos.operator.metrics import Metrics

_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")

Document = dict[str, Any]


class Surface(Protocol):
    """What the routes show."""

    metrics: Metrics

    async def status(self) -> Document: ...
    async def jobs(self) -> list[Document]: ...
    async def problems(self) -> list[str]:
        """Why no job can be worked on now; empty where one can."""

    async def drain(self) -> Document: ...
    async def resume(self) -> Document: ...


def build_app(operator: Surface) -> FastAPI:
    """The routes over one running operator."""
    app = FastAPI(title="AOS operator", docs_url="/docs", redoc_url=None, openapi_url="/openapi.json")

    @app.get("/health")
    async def health() -> Document:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """200 where a job could be worked on now, else 503 with the reasons."""
        problems = await operator.problems()
        body = {"status": "unavailable" if problems else "ok", "problems": problems}
        return JSONResponse(body, status_code=503 if problems else 200)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Prometheus text format."""
        text = generate_latest(operator.metrics.registry).decode()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api/v1/operator/status")
    async def status() -> JSONResponse:
        """Is it connected, eligible, selected, working; and what is wrong."""
        return await _enveloped(operator.status)

    @app.get("/api/v1/operator/jobs")
    async def jobs() -> JSONResponse:
        """The newest jobs, at most ``api.read_maximum``."""
        return await _enveloped(operator.jobs)

    @app.post("/api/v1/operator/drain")
    async def drain(request: Request) -> JSONResponse:
        """Take part in no more draws, until `resume`; what is held is finished. From this machine only."""
        return _elsewhere(request) or await _enveloped(operator.drain)

    @app.post("/api/v1/operator/resume")
    async def resume(request: Request) -> JSONResponse:
        """Take part in draws again. From this machine only."""
        return _elsewhere(request) or await _enveloped(operator.resume)

    return app


def _elsewhere(request: Request) -> JSONResponse | None:
    """The refusal of whoever asks from another machine, or through something that may speak for one."""
    host = request.client.host if request.client is not None else ""
    through = {"origin", "forwarded", "x-forwarded-for"} & set(request.headers)
    if host in _LOOPBACK and not through:
        return None
    body = {
        "code": 403,
        "message": "this is taken from this machine only",
        "field": None,
        "error": "operator.not_local",
    }
    return JSONResponse(body, status_code=403)


async def _enveloped(make: Callable[[], Awaitable[Any]]) -> JSONResponse:
    try:
        return JSONResponse({"code": 200, "result": await make()})
    except AOSError as error:
        body = {
            "code": error.http_status,
            "message": error.message,
            "field": error.field,
            "error": error.code,
        }
        return JSONResponse(body, status_code=error.http_status)
