"""``POST /add-checkpoint`` as in c2sp.org/tlog-witness, and nothing else that changes anything."""

import asyncio
import time
from collections.abc import Callable, Sequence

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from aos.core.log.checkpoint import read_head
from aos.core.log.note import COSIGNATURE, NoteKey, NoteSignature, cosign_note, note_key, read_note
from aos.core.log.witness import MAX_REQUEST_BYTES, AddCheckpoint, advance, convicts, read_add_checkpoint
from aos.errors import AOSError, InvalidMessage, RuleViolation, Unavailable, VerificationError
from aos.witness.state import WitnessState

READ_S = 10.0


class UnknownLog(VerificationError):
    """A log that this witness was not told of."""

    http_status = 404


class Witness:
    """Cosigns for the logs that it was told of, one checkpoint after the other."""

    def __init__(
        self,
        name: str,
        seed: bytes,
        logs: Sequence[NoteKey],
        state: WitnessState,
        *,
        now_s: Callable[[], int] = lambda: int(time.time()),
        shout: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.key = note_key(name, seed, COSIGNATURE)
        self.logs = {key.name: key for key in logs}
        self._seed, self._state, self._now_s, self._shout = seed, state, now_s, shout
        self._turn = asyncio.Lock()

    async def add(self, request: AddCheckpoint) -> NoteSignature:
        """Check, store, cosign. Raises as ``core.log.witness.advance``; UnknownLog, Unavailable."""
        key = self._log_of(request)
        async with self._turn:
            return await asyncio.to_thread(self._add, request, key)

    def size(self, request: AddCheckpoint) -> int:
        """The size that is held of the request's log."""
        held = self._state.held(self._log_of(request))
        return 0 if held is None else held.head.size

    def _log_of(self, request: AddCheckpoint) -> NoteKey:
        origin = read_head(read_note(request.checkpoint)).origin
        key = self.logs.get(origin)
        if key is None:
            raise UnknownLog("witness.unknown_log", f"not a log that is witnessed here: {origin[:80]}")
        return key

    def _add(self, request: AddCheckpoint, key: NoteKey) -> NoteSignature:
        held = self._state.held(key)
        try:
            checkpoint = advance(None if held is None else held.head, request, key)
        except (RuleViolation, VerificationError):
            conviction = convicts(held, request, key)
            if conviction is not None and (path := self._state.convict(key, conviction)) is not None:
                self._shout(f"{key.name} is convicted ({conviction.kind}): aos log convict {path}")
            raise
        line = cosign_note(checkpoint.note.text, self.key.name, self._seed, self._now_s())
        self._state.keep(key, str(checkpoint.note))
        return line


def create_app(witness: Witness) -> FastAPI:
    """The witness as an ASGI application."""
    app = FastAPI(title="AOS log witness", docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/add-checkpoint")
    async def add_checkpoint(request: Request) -> Response:
        try:
            async with asyncio.timeout(READ_S):
                body = b""
                async for part in request.stream():
                    body += part
                    if len(body) > MAX_REQUEST_BYTES:
                        raise InvalidMessage("witness.form", f"at most {MAX_REQUEST_BYTES} bytes")
            asked = read_add_checkpoint(body)
            try:
                return PlainTextResponse(str(await witness.add(asked)))
            except RuleViolation:
                size = await asyncio.to_thread(witness.size, asked)
                headers = {"Content-Type": "text/x.tlog.size"}  # exactly this: no charset
                return Response(f"{size}\n", status_code=409, headers=headers)
        except TimeoutError:
            return PlainTextResponse("the body did not come\n", status_code=408)
        except AOSError as error:
            return PlainTextResponse(f"{error}\n", status_code=_status(error))

    @app.get("/")
    async def who() -> Response:
        return PlainTextResponse(f"{witness.key}\n")

    return app


def _status(error: AOSError) -> int:
    if error.code in ("witness.inconsistent", "checkpoint.empty_root"):
        return 422
    if isinstance(error, InvalidMessage | VerificationError | Unavailable):
        return error.http_status
    return 500
