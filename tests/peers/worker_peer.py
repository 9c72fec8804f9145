"""A worker over real HTTP that answers as the tests want, and can die in the middle of an answer.

Its model is a rule: the answer's tokens follow from the request and the sampling seed, so that every worker peer
with the same ``salt`` gives the same answer. Dying closes the connection without an end, as a killed process does.
"""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256
from typing import Any

from aos.core import hashes
from aos.core.encoding import b64u_decode, b64u_encode

MODEL = "peer-model.gguf"
MODEL_ID = sha256(b"peer-model").digest()


class WorkerPeer:
    """Serves on a port of the kernel's choice; ``url`` after ``start``."""

    def __init__(self, *, n_tokens: int = 20, model_id: bytes = MODEL_ID, port: int = 0) -> None:
        self.n_tokens = n_tokens
        self.model_id = model_id
        self.port = port
        self.kind = "opml"
        self.salt = ""
        self.questions: list[dict[str, Any]] = []
        self.finished = 0
        self.cancelled = 0
        self.die_after_tokens: int | None = None
        self.error: tuple[str, str] | None = None
        self.change_result: dict[str, Any] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.hold_at = 0
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> WorkerPeer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """End as a killed process does: nothing is said to anybody."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    def hold(self, at_token: int) -> None:
        """Stop before this token until ``gate`` is set."""
        self.hold_at = at_token
        self.gate.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._handlers.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = next(
            (
                int(line.split(":")[1])
                for line in head.split("\r\n")
                if line.lower().startswith("content-length:")
            ),
            0,
        )
        body = await reader.readexactly(length)
        if head.startswith("GET /api/v1/status"):
            result = {
                "kind": self.kind,
                "model": MODEL,
                "model_id": b64u_encode(self.model_id),
                "engine": "peer/1",
                "capacity": 1,
                "busy": 0,
                "uptime_s": 1,
            }
            await self._whole(writer, {"code": 200, "result": result})
            return
        question = json.loads(body)
        self.questions.append(question)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n")
        if self.error is not None:
            await self._line(writer, {"event": "error", "code": self.error[0], "message": self.error[1]})
            return
        gone = asyncio.create_task(reader.read(1))
        answer = asyncio.create_task(self._answer(question, writer))
        done, _ = await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
        if answer not in done:
            self.cancelled += 1
        for task in (gone, answer):
            task.cancel()
        await asyncio.gather(gone, answer, return_exceptions=True)

    async def _answer(self, question: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        tokens, words = self.answer_of(question["request"], question["sampling_seed"])
        for index, (token, word) in enumerate(zip(tokens, words, strict=True)):
            if index == self.hold_at:
                await self.gate.wait()
            if index == self.die_after_tokens:
                self.die_after_tokens = None
                return
            await self._line(writer, {"event": "token", "index": index, "token": token, "text": word})
        await self.gate.wait()
        await self._line(writer, self.result_of(question, tokens, words) | self.change_result)
        self.finished += 1

    def answer_of(self, request: str, seed: str) -> tuple[list[int], list[str]]:
        digest = sha256(f"{self.salt}{seed}{request}".encode()).digest()
        tokens = [digest[i % 32] + 3 for i in range(self.n_tokens)]
        return tokens, [f" w{token}" for token in tokens]

    def result_of(self, question: dict[str, Any], tokens: list[int], words: list[str]) -> dict[str, Any]:
        nonce = b64u_decode(question["nonce"])
        root = sha256(json.dumps([self.salt, tokens]).encode()).digest()
        return {
            "event": "result",
            "prompt_tokens_hash": b64u_encode(hashes.prompt_tokens_hash(nonce, [1, 2, 3])),
            "tokens": tokens,
            "text": "".join(words),
            "finish_reason": "stop",
            "n_prompt": 3,
            "state_root": b64u_encode(root),
            "engine": "peer/1",
            "model_id": b64u_encode(self.model_id),
            "evidence": None,
        }

    async def _line(self, writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
        writer.write(json.dumps(value).encode() + b"\n")
        await writer.drain()

    async def _whole(self, writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(data) + data
        )
        await writer.drain()
