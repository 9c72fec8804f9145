"""A worker's HTTP surface (docs/spec/09-http.md, "Worker"), the same for opML and TEE.

A bare ASGI application with nine routes: a worker starts often and answers one operator, and what a framework
would add to its start it never uses. As many runs at a time as the ``Backend`` that answers has room for; a client
that goes away cancels its run.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import aclosing
from typing import Any, Literal, Protocol, runtime_checkable

from aos.core.codec import encode
from aos.core.tee import TeeBootEvidence
from aos.errors import AOSError, InvalidMessage, RuleViolation, Unavailable
from aos.ports import TokenEvent
from aos.workers.execution import Answer
from aos.workers.question import (
    MAX_BODY_BYTES,
    BootOrder,
    DocumentOrder,
    Question,
    SeedQuestion,
    event_line,
    json_line,
    read_boot_order,
    read_document_order,
    read_question,
)
from aos.workers.tracer import MAX_TRACE_BODY, Tracer, read_audit_question, read_trace_question

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_WITHIN_S = 30.0
PIECE_BYTES = 256 << 10
_ROUTES = (
    "/api/v1/question",
    "/api/v1/trace",
    "/api/v1/audit",
    "/api/v1/boot",
    "/api/v1/document",
    "/api/v1/status",
    "/health",
    "/metrics",
)
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


class Backend(Protocol):
    """What runs behind the HTTP surface. ``answer`` yields tokens, then one Answer; closing it cancels the
    run."""

    @property
    def kind(self) -> Literal["opml", "tee"]: ...
    @property
    def ready(self) -> bool: ...
    @property
    def tracer(self) -> Tracer | None:
        """What answers for its runs in disputes; None where the engine is not canonical."""

    @property
    def capacity(self) -> int:
        """Questions that it answers at a time."""

    def describe(self) -> dict[str, Any]:
        """The members of the status that only this worker knows: model_id, engine, and more."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def answer(self, question: Question | SeedQuestion) -> AsyncGenerator[TokenEvent | Answer, None]: ...


@runtime_checkable
class Attesting(Protocol):
    """What a backend with an enclave has beside that."""

    async def boot(self, order: BootOrder) -> TeeBootEvidence: ...
    async def document(self, order: DocumentOrder) -> TeeBootEvidence: ...


class WorkerApp:
    """The ASGI application around one backend. ``token``: what callers of /api must present, or None on
    loopback."""

    def __init__(
        self,
        backend: Backend,
        *,
        model: str,
        token: str | None,
        stop_grace_s: float = 5.0,
    ) -> None:
        self._backend = backend
        self._attesting = backend if isinstance(backend, Attesting) else None
        self._model = model
        self._token = token
        self._stop_grace_s = stop_grace_s
        self._started = time.monotonic()
        self._busy = 0
        self._draining = False
        self._stopping = asyncio.Event()
        self._runs = {"answered": 0, "cancelled": 0, "failed": 0, "refused": 0}
        self._tokens = 0
        self._run_seconds = 0.0

    def drain(self) -> None:
        """Take no new question; after the grace period end those that run with ``worker.stopping``."""
        self._draining = True
        asyncio.get_running_loop().call_later(self._stop_grace_s, self._stopping.set)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"unexpected ASGI scope {scope['type']}")
        reply = Reply(send)
        try:
            await self._route(scope, receive, reply)
        except AOSError as error:
            await reply.refuse(error)
        except Exception:
            # Neither prompt nor answer: a traceback shows code and error messages, never values of variables.
            log_event("worker.internal_error", traceback=traceback.format_exc(limit=20))
            await reply.refuse(AOSError("worker.internal", "the worker failed, its log says where"))

    async def _route(self, scope: Message, receive: Receive, reply: Reply) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        route = (scope["method"], scope["path"])
        if scope["path"].startswith("/api/"):
            self._authorise(headers)
        if route == ("POST", "/api/v1/question"):
            await self._question(await _json_body(headers, receive), receive, reply)
        elif route == ("POST", "/api/v1/boot"):
            order = read_boot_order(await _json_body(headers, receive))
            await reply.json(200, {"code": 200, "result": encode(await self._enclave().boot(order))})
        elif route == ("POST", "/api/v1/document"):
            wanted = read_document_order(await _json_body(headers, receive))
            await reply.json(200, {"code": 200, "result": encode(await self._enclave().document(wanted))})
        elif route == ("POST", "/api/v1/trace"):
            await self._trace(receive, reply)
        elif route == ("POST", "/api/v1/audit"):
            await self._audit(receive, reply)
        elif route == ("GET", "/api/v1/status"):
            await reply.json(200, {"code": 200, "result": self._status()})
        elif route == ("GET", "/health"):
            ready = self._backend.ready and not self._draining
            await reply.json(200 if ready else 503, {"status": "ok" if ready else "unavailable"})
        elif route == ("GET", "/metrics"):
            await reply.whole(200, b"text/plain; version=0.0.4; charset=utf-8", self._metrics())
        elif scope["path"] in _ROUTES:
            raise HttpRefusal(405, "http.method", "this route takes another method")
        else:
            raise HttpRefusal(404, "http.not_found", "no such route")

    def _enclave(self) -> Attesting:
        if self._attesting is None:
            raise RuleViolation("worker.no_enclave", "this worker has no enclave")
        return self._attesting

    def _authorise(self, headers: dict[bytes, bytes]) -> None:
        if self._token is not None:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
                raise HttpRefusal(401, "worker.unauthorised", "a bearer token is needed")
        else:
            # Without a token only this machine may ask, and a web page that had its name point here is not
            # this machine.
            host = headers.get(b"host", b"").decode("latin-1")
            if (host.rpartition(":")[0] or host) not in _LOOPBACK_NAMES and host not in _LOOPBACK_NAMES:
                raise HttpRefusal(
                    403, "worker.foreign_host", "the Host header must name this machine's loopback"
                )

    async def _trace(self, receive: Receive, reply: Reply) -> None:
        """One question of a dispute. It runs beside the questions: whoever waits for a move has a deadline."""
        if self._backend.tracer is None:
            raise RuleViolation("worker.not_canonical", "this worker's results cannot be disputed")
        question = read_trace_question(await read_body(receive, MAX_TRACE_BODY))
        await reply.json(200, {"code": 200, "result": await self._backend.tracer.answer(question)})

    async def _audit(self, receive: Receive, reply: Reply) -> None:
        """The layers that an audit drew, in pieces that are made as they are sent."""
        if self._backend.tracer is None:
            raise RuleViolation("worker.not_canonical", "this worker's results cannot be audited")
        question = read_audit_question(await read_body(receive, MAX_TRACE_BODY))
        size, parts = await self._backend.tracer.audit(question)
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await reply.begin_bytes(size)
            while piece := await asyncio.to_thread(_some, parts):
                if gone.done() or self._stopping.is_set():
                    return
                await reply.piece(piece)
            await reply.end()
        finally:
            gone.cancel()

    def _status(self) -> dict[str, Any]:
        return {
            "kind": self._backend.kind,
            "model": self._model,
            **self._backend.describe(),
            "capacity": self._backend.capacity,
            "busy": self._busy,
            "uptime_s": int(time.monotonic() - self._started),
        }

    def _metrics(self) -> bytes:
        lines = ["# TYPE aos_worker_runs_total counter"]
        lines += [
            f'aos_worker_runs_total{{outcome="{outcome}"}} {count}' for outcome, count in self._runs.items()
        ]
        lines += ["# TYPE aos_worker_tokens_total counter", f"aos_worker_tokens_total {self._tokens}"]
        lines += [
            "# TYPE aos_worker_run_seconds_total counter",
            f"aos_worker_run_seconds_total {self._run_seconds:.6f}",
        ]
        lines += ["# TYPE aos_worker_busy gauge", f"aos_worker_busy {self._busy}"]
        return ("\n".join(lines) + "\n").encode()

    async def _question(self, body: bytes, receive: Receive, reply: Reply) -> None:
        question = read_question(body)
        if self._draining:
            raise Unavailable("worker.stopping", "the worker is stopping")
        if self._busy >= self._backend.capacity:
            self._runs["refused"] += 1
            raise HttpRefusal(
                429, "worker.busy", "the worker runs as many questions as it can", retry_after_s=1
            )
        self._busy += 1
        started = time.monotonic()
        outcome = "failed"
        try:
            outcome = await self._run(question, receive, reply)
        finally:
            self._busy -= 1
            self._runs[outcome] += 1
            self._run_seconds += time.monotonic() - started

    async def _run(self, question: Question | SeedQuestion, receive: Receive, reply: Reply) -> str:
        """Answer until done, or until the client goes or the worker stops; returns the outcome's name."""
        answering = asyncio.ensure_future(self._stream(question, reply))
        gone = asyncio.ensure_future(_disconnected(receive))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({answering, gone, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done() or reply.ended:
                await answering
                return "answered"
            answering.cancel()
            await asyncio.wait({answering})  # ends when the engine is free again
            if not gone.done():
                raise Unavailable("worker.stopping", "the worker is stopping")
            return "cancelled"
        finally:
            for task in (answering, gone, stopping):
                task.cancel()

    async def _stream(self, question: Question | SeedQuestion, reply: Reply) -> None:
        async with aclosing(self._backend.answer(question)) as events:
            async for event in events:
                if isinstance(event, TokenEvent):
                    self._tokens += 1
                if not isinstance(question, SeedQuestion):
                    await reply.line(event_line(event))
                elif isinstance(event, Answer):
                    await reply.json(200, {"code": 200, "result": _seed_result(question, event)})
        await reply.end()


def _some(parts: Iterator[bytes]) -> bytes:
    """The next ``PIECE_BYTES`` or so; none at the end."""
    piece = bytearray()
    for part in parts:
        piece += part
        if len(piece) >= PIECE_BYTES:
            break
    return bytes(piece)


def _seed_result(question: SeedQuestion, answer: Answer) -> dict[str, Any]:
    from aos.core.encoding import b64u_encode

    return {
        "req_id": question.req_id,
        "model": question.model,
        "prompt": question.prompt,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "n_prompt": answer.n_prompt,
        "n_out": len(answer.tokens),
        "state_root": b64u_encode(answer.state_root),
        "model_id": b64u_encode(answer.model_id),
        "engine": answer.engine,
        "nonce": b64u_encode(question.nonce),
        "sampling_seed": question.sampling_seed,
    }


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _json_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
        raise HttpRefusal(415, "http.content_type", "the body must be application/json")
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    return await read_body(receive)


async def read_body(receive: Receive, most: int = MAX_BODY_BYTES) -> bytes:
    """A whole body of at most ``most`` bytes, within 30 s."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise InvalidMessage("http.body", "the client went away inside its request")
                body += message.get("body", b"")
                if len(body) > most:
                    raise _too_large(most)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise HttpRefusal(408, "http.timeout", f"the body took longer than {BODY_WITHIN_S:g} s") from None


def _too_large(most: int = MAX_BODY_BYTES) -> HttpRefusal:
    return HttpRefusal(413, "http.too_large", f"the body is larger than {most} bytes")


class HttpRefusal(RuleViolation):
    """A refusal that is HTTP's own, with its status."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(code, message)
        self.http_status = status
        self.retry_after_s = retry_after_s


class Reply:
    """One HTTP answer. A refusal before the first line is an HTTP error, after it an event of the stream."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False
        self.ended = False

    async def whole(self, status: int, content_type: bytes, body: bytes, *extra: tuple[bytes, bytes]) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self._begin(status, content_type, length, *extra)
        self.ended = True
        await self._send({"type": "http.response.body", "body": body})

    async def json(self, status: int, value: dict[str, Any], *extra: tuple[bytes, bytes]) -> None:
        await self.whole(status, b"application/json", json_line(value), *extra)

    async def line(self, line: bytes) -> None:
        if not self._begun:
            await self._begin(200, b"application/x-ndjson")
        await self._send({"type": "http.response.body", "body": line, "more_body": True})

    async def begin_bytes(self, size: int) -> None:
        length = (b"content-length", str(size).encode())
        await self._begin(200, b"application/octet-stream", length)

    async def piece(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        if not self.ended:
            self.ended = True
            await self._send({"type": "http.response.body", "body": b""})

    async def refuse(self, error: AOSError) -> None:
        if self.ended:
            return
        if self._begun:
            await self.line(json_line({"event": "error", "code": error.code, "message": error.message}))
            await self.end()
            return
        extra: list[tuple[bytes, bytes]] = []
        if isinstance(error, Unavailable):
            extra.append((b"retry-after", b"1"))
        if isinstance(error, HttpRefusal) and error.retry_after_s is not None:
            extra.append((b"retry-after", str(error.retry_after_s).encode()))
        if error.http_status == 401:
            extra.append((b"www-authenticate", b"Bearer"))
        body = {
            "code": error.http_status,
            "message": error.message,
            "field": error.field,
            "error": error.code,
        }
        await self.json(error.http_status, body, *extra)

    async def _begin(self, status: int, content_type: bytes, *extra: tuple[bytes, bytes]) -> None:
        self._begun = True
        headers = [(b"content-type", content_type), (b"cache-control", b"no-store"), *extra]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


def log_event(event: str, **members: object) -> None:
    """One line of JSON on stderr. Never a prompt, an answer or a secret."""
    line = json.dumps({"time_ms": time.time_ns() // 1_000_000, "event": event, **members}, default=str)
    print(line, file=sys.stderr, flush=True)
