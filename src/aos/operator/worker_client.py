"""Asking a worker over HTTP (docs/spec/09-http.md, "Worker"): its status, and one question with a streamed answer.

What comes back is decoded strictly and bounded. Whether it fits the job is checked by ``aos.operator.results``. Errors say
who should do something: ``WorkerBusy`` and ``Unavailable`` mean another time or another worker, ``RuleViolation`` and
``InvalidMessage`` that this job will not run better elsewhere. ``WorkerDied`` is the ``Unavailable`` that the job may be to
blame for: its worker took it and went down.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import httpx

from aos.core.codec import Bytes32, Label, MaxLength, OptionalBytes32, UInt32, decode
from aos.core.encoding import b64u_decode
from aos.core.statements import FinishReason
from aos.core.tee import TeeBootEvidence
from aos.errors import AOSError, InvalidMessage, RuleViolation, Unavailable

MAX_LINE_BYTES = 16 << 20
MAX_STATUS_BYTES = 1 << 16
STATUS_WITHIN_S = 5.0
TRACE_WITHIN_S = 900.0
MAX_TRACE_BYTES = 48 << 20
ENCLAVE_WITHIN_S = 70.0
SILENCE_S = 300.0
"""A worker that says nothing for so long is taken for dead."""

Tokens = Annotated[tuple[UInt32, ...], MaxLength(65_536)]


_NOT_NOW = ("worker.stopping", "enclave.starting", "enclave.not_booted", "enclave.busy")
_DIED = ("enclave.died", "enclave.silent", "engine.failed")


class WorkerBusy(Unavailable):
    """The worker runs another question; ask again in ``retry_after_s``."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("worker.busy", "the worker runs another question")
        self.retry_after_s = retry_after_s


class WorkerDied(Unavailable):
    """The worker took the question and went away, or its enclave did. Another try may end otherwise, or the same way."""

    def __init__(self, message: str) -> None:
        super().__init__("worker.died", message)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """What a worker says of itself. ``model_id`` is empty while it has none loaded; ``boot`` is the hash of its enclave's
    boot statement and ``boot_until`` its end (Unix milliseconds), empty and 0 where there is none."""

    kind: str
    model: str
    model_id: bytes
    engine: str
    capacity: int
    busy: int
    boot: bytes = b""
    boot_until: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLine:
    """One generated token and the text that became final with it."""

    event: Literal["token"]
    index: UInt32
    token: UInt32
    text: Annotated[str, MaxLength(65_536)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultLine:
    """A finished run. ``state_root`` is empty where the engine is not canonical; ``evidence`` is an enclave's."""

    event: Literal["result"]
    prompt_tokens_hash: Bytes32
    tokens: Tokens
    text: Annotated[str, MaxLength(4_000_000)]
    finish_reason: FinishReason
    n_prompt: UInt32
    state_root: OptionalBytes32
    engine: Label
    model_id: Bytes32
    evidence: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _ErrorLine:
    event: Literal["error"]
    code: Annotated[str, MaxLength(64)]
    message: Annotated[str, MaxLength(4096)]


_LINES: dict[str, type[TokenLine] | type[ResultLine] | type[_ErrorLine]] = {
    "token": TokenLine,
    "result": ResultLine,
    "error": _ErrorLine,
}


class WorkerClient:
    """One worker at ``url``; ``lane`` tells apart those that ask the same worker at the same time."""

    def __init__(self, url: str, *, token: str = "", lane: int = 0) -> None:
        self.url = url
        self.lane = lane
        self.name = f"{url}#{lane}" if lane else url
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(5.0, read=SILENCE_S),
            trust_env=False,
            limits=httpx.Limits(max_connections=4, max_keepalive_connections=1),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def status(self) -> WorkerStatus:
        """Raises Unavailable ``worker.unavailable``, InvalidMessage ``worker.protocol``."""
        try:
            async with (
                asyncio.timeout(STATUS_WITHIN_S),
                self._http.stream("GET", "/api/v1/status", timeout=STATUS_WITHIN_S) as answer,
            ):
                content = await _first_bytes(answer)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise self._gone(error) from error
        if answer.status_code != 200:
            raise Unavailable(
                "worker.unavailable", f"{self.url} answers its status with {answer.status_code}"
            )
        try:
            value = json.loads(content)["result"]
            model_id = str(value["model_id"])
            enclave = value.get("enclave") or {}
            boot = enclave.get("boot") or ""
            return WorkerStatus(
                kind=str(value["kind"]),
                model=str(value["model"]),
                model_id=b64u_decode(model_id, length=32) if model_id else b"",
                engine=str(value["engine"]),
                capacity=int(value["capacity"]),
                busy=int(value["busy"]),
                boot=bytes.fromhex(boot),
                boot_until=int(enclave["not_after"]) if boot else 0,
            )
        except (ValueError, KeyError, TypeError, AttributeError, InvalidMessage) as error:
            raise InvalidMessage("worker.protocol", f"{self.url} gives no worker status") from error

    async def trace(self, question: dict[str, Any]) -> dict[str, Any]:
        """What the worker says to a question of a dispute (docs/spec/09-http.md, "Worker"); it may compute for minutes.

        Raises Unavailable ``worker.unavailable``, ``worker.died``; RuleViolation with the worker's own code; InvalidMessage
        ``worker.protocol``.
        """
        data = bytearray()
        try:
            async with self._http.stream(
                "POST", "/api/v1/trace", json=question, timeout=httpx.Timeout(5.0, read=TRACE_WITHIN_S)
            ) as answer:
                async for part in answer.aiter_raw():
                    data += part
                    if len(data) > MAX_TRACE_BYTES:
                        raise InvalidMessage("worker.protocol", "the worker's trace is too large")
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.InvalidURL) as error:
            raise self._gone(error) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise WorkerDied(f"{self.url} went away in its answer: {type(error).__name__}") from error
        if answer.status_code != 200:
            raise self._refusal(answer, bytes(data))
        try:
            result = json.loads(data)["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidMessage("worker.protocol", f"{self.url} gives no trace") from error
        if not isinstance(result, dict):
            raise InvalidMessage("worker.protocol", f"{self.url} gives no trace")
        return result

    async def audit(self, question: dict[str, Any], *, most: int) -> AsyncGenerator[bytes]:
        """The bundle of an audit (docs/spec/09-http.md, "Worker"), piece by piece: at most ``most`` bytes.

        Raises as ``trace``; InvalidMessage ``audit.too_large``.
        """
        size = 0
        try:
            async with self._http.stream(
                "POST", "/api/v1/audit", json=question, timeout=httpx.Timeout(5.0, read=TRACE_WITHIN_S)
            ) as answer:
                if answer.status_code != 200:
                    raise self._refusal(answer, await _first_bytes(answer))
                async for part in answer.aiter_raw():
                    size += len(part)
                    if size > most:
                        raise InvalidMessage("audit.too_large", f"the bundle has more than {most} bytes")
                    yield part
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.InvalidURL) as error:
            raise self._gone(error) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise WorkerDied(f"{self.url} went away in its answer: {type(error).__name__}") from error

    async def boot(self, order: dict[str, Any]) -> TeeBootEvidence:
        """Boot the worker's enclave. Raises Unavailable ``worker.unavailable``, ``worker.died``; RuleViolation with the
        worker's own code; InvalidMessage ``worker.protocol``, ``field.*``."""
        return await self._enclave("/api/v1/boot", order)

    async def document(self, order: dict[str, Any]) -> TeeBootEvidence:
        """A document of now of the worker's enclave. Raises as ``boot``."""
        return await self._enclave("/api/v1/document", order)

    async def _enclave(self, path: str, order: dict[str, Any]) -> TeeBootEvidence:
        try:
            async with (
                asyncio.timeout(ENCLAVE_WITHIN_S),
                self._http.stream("POST", path, json=order, timeout=ENCLAVE_WITHIN_S) as answer,
            ):
                content = await _first_bytes(answer)
                if answer.status_code != 200:
                    raise self._refusal(answer, content)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise self._gone(error) from error
        try:
            value = json.loads(content)["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidMessage("worker.protocol", f"{self.url} answers {path} with no result") from error
        return decode(TeeBootEvidence, value, where="boot")

    async def ask(self, question: dict[str, Any]) -> AsyncGenerator[TokenLine | ResultLine, None]:
        """Tokens as they come, then the result. Leaving the iteration cancels the run.

        Raises WorkerBusy; WorkerDied ``worker.died`` (ended without a result, after it took the question);
        Unavailable ``worker.unavailable`` (does not take it now); RuleViolation with the worker's own code where it
        refuses the job; InvalidMessage ``worker.protocol``.
        """
        try:
            async with self._http.stream("POST", "/api/v1/question", json=question) as answer:
                if answer.status_code != 200:
                    raise self._refusal(answer, await _first_bytes(answer))
                async for text in _lines(answer):
                    line = _read_line(text)
                    if isinstance(line, _ErrorLine):
                        raise _worker_error(line.code, line.message)
                    yield line
                    if isinstance(line, ResultLine):
                        return
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.InvalidURL) as error:
            raise self._gone(error) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise WorkerDied(f"{self.url} went away in its answer: {type(error).__name__}") from error
        raise WorkerDied(f"{self.url} ended its answer before the result")

    def _gone(self, error: Exception) -> Unavailable:
        return Unavailable("worker.unavailable", f"{self.url} does not answer: {type(error).__name__}")

    def _refusal(self, answer: httpx.Response, body: bytes) -> AOSError:
        if answer.status_code == 429:
            wait = answer.headers.get("retry-after", "1")
            return WorkerBusy(min(float(wait), 60.0) if wait.isdecimal() else 1.0)
        try:
            value = json.loads(body)
            code, message = str(value["error"]), str(value["message"])
        except (ValueError, KeyError, TypeError):
            code, message = "worker.refused", f"the worker answered {answer.status_code}"
        if answer.status_code in (401, 403, 404, 405, 408) or code in _NOT_NOW:
            return Unavailable("worker.unavailable", f"{self.url}: {_plain(message)} [{_plain(code)}]")
        if answer.status_code >= 500:
            return WorkerDied(f"{self.url}: {_plain(message)} [{_plain(code)}]")
        return _worker_error(code, message)


def _worker_error(code: str, message: str) -> AOSError:
    if code in _NOT_NOW:
        return Unavailable("worker.unavailable", f"{_plain(message)} [{code}]")
    if code in _DIED:
        return WorkerDied(f"{_plain(message)} [{code}]")
    return RuleViolation(_plain(code)[:64] or "worker.failed", _plain(message)[:500])


def _plain(text: str) -> str:
    """``text`` as a database and a signed message can carry it: no control characters, no lone surrogates."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


async def _first_bytes(answer: httpx.Response) -> bytes:
    data = b""
    async for part in answer.aiter_bytes():
        data += part
        if len(data) > MAX_STATUS_BYTES:
            break
    return data


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    rest = b""
    async for part in answer.aiter_bytes():
        rest += part
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line:
                yield line
        if len(rest) > MAX_LINE_BYTES:
            raise InvalidMessage("worker.protocol", "the worker sent an endless line")


def _read_line(text: bytes) -> TokenLine | ResultLine | _ErrorLine:
    try:
        value = json.loads(text)
        kind = _LINES[value["event"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidMessage("worker.protocol", "the worker sent a line that is no event") from error
    return decode(kind, value)
