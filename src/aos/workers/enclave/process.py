"""The enclave's process: one connection, one model, one run at a time (docs/spec/10-tee.md, "Enclave").

The peer is the adversary. What it sends is a length-capped frame, then strict canonical JSON, then a known
message; anything else is answered with an error, and a frame that breaks the framing ends the connection,
never the process. The model comes in over the same connection, is kept in memory that is sealed against
change, and is hashed there. With a SIMULATED security module the memory is an ordinary process's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from aos.adapters.enclave_image import engine_digest
from aos.adapters.frames import FrameStream, vsock_listener
from aos.adapters.nsm import Nsm
from aos.core.codec import encode
from aos.errors import AOSError, InvalidMessage, RuleViolation, Unavailable, VerificationError
from aos.ports import Engine, Generation
from aos.workers.enclave.attester import Attester, Loadout
from aos.workers.enclave.messages import (
    MAX_FRAME_BYTES,
    Answered,
    Ask,
    Attest,
    Attested,
    Boot,
    Cancel,
    Challenge,
    Challenged,
    Failed,
    FromEnclave,
    FromHost,
    Load,
    Loaded,
    Shutdown,
    State,
    Status,
    Token,
    number_of,
    pack,
    read_from_host,
)
from aos.workers.execution import (
    Work,
    check_request,
    effective_seed,
    read_request,
    run_engine,
    sampling_params,
    unsigned_answer,
)

if TYPE_CHECKING:
    from aos.engine import EngineKind

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Enclave:
    """State of one enclave process. Connections come and go; model, boot and sequence stay until the process
    ends."""

    def __init__(self, nsm: Nsm, *, engine: EngineKind) -> None:
        self._nsm = nsm
        self._loaded: Loaded | None = None
        self._engine_kind: EngineKind = engine
        self._engine: Engine | None = None
        self._loadout: Loadout | None = None
        self._attester: Attester | None = None
        self._run: asyncio.Task[FromEnclave] | None = None
        self._run_id = 0
        self._handing_over: asyncio.Task[None] | None = None
        self._connected = False
        self.ended = asyncio.Event()

    async def serve(self, stream: FrameStream) -> None:
        """Answer one host until it goes; a second one at the same time is turned away."""
        if self._connected:
            with contextlib.suppress(AOSError):
                await stream.write(
                    pack(_failed(0, RuleViolation("enclave.connected", "another host is connected")))
                )
            await stream.close()
            return
        self._connected = True
        try:
            while not self.ended.is_set() and (payload := await stream.read()) is not None:
                await self._receive(payload, stream)
        except AOSError as error:
            say(f"connection ended: {error.code}")
            with contextlib.suppress(AOSError):
                await stream.write(pack(_failed(0, error)))
        except Exception as error:
            # Whatever a hostile model file or message brought about: this connection is over, the process is
            # not.
            say(f"connection ended: {type(error).__name__}")
        finally:
            await self._cancel_run()
            await stream.close()
            self._connected = False

    async def _receive(self, payload: bytes, stream: FrameStream) -> None:
        try:
            message = read_from_host(payload)
        except InvalidMessage as error:
            await stream.write(pack(_failed(number_of(payload), error)))
            return
        try:
            reply = await self._handle(message, stream)
        except (InvalidMessage, RuleViolation, VerificationError, Unavailable) as error:
            if error.code.startswith("frame."):
                raise
            reply = _failed(message.id, error)
        if reply is not None:
            await stream.write(pack(reply))

    async def _handle(self, message: FromHost, stream: FrameStream) -> FromEnclave | None:
        match message:
            case Load():
                return await self._load(message, stream)
            case Boot():
                return await self._boot(message)
            case Attest():
                return await self._attest(message)
            case Challenge():
                return await self._challenge(message)
            case Ask():
                self._ask(message, stream)
            case Cancel():
                if self._run is not None and message.id == self._run_id:
                    self._run.cancel()
            case Status():
                return State(
                    id=message.id,
                    label=label_of(self._nsm),
                    loaded=self._loaded,
                    busy=self._busy,
                    boot=self._attester.boot_hash if self._attester else b"",
                    sequence=self._attester.sequence if self._attester else 0,
                )
            case Shutdown():
                self.ended.set()
        return None

    @property
    def _busy(self) -> bool:
        return self._handing_over is not None and not self._handing_over.done()

    async def _load(self, message: Load, stream: FrameStream) -> Loaded:
        if self._engine is not None:
            raise RuleViolation("enclave.already_loaded", "this enclave has a model")
        descriptor = await _receive_model(message.size, stream)
        path = f"/proc/self/fd/{descriptor}"

        def load() -> tuple[Engine, Loadout]:
            from aos.engine import load_engine

            # No cache: a file that the host keeps could say anything about the weights.
            engine = load_engine(path, kind=self._engine_kind, cache_dir=None)
            digest = engine_digest(engine.profile)
            return engine, Loadout(engine=engine.profile, engine_digest=digest, model_id=engine.model_id)

        try:
            self._engine, loadout = await asyncio.to_thread(load)
        except BaseException:
            os.close(descriptor)
            raise
        self._loadout = loadout
        say(f"model {loadout.model_id.hex()} loaded, engine {loadout.engine}")
        self._loaded = Loaded(
            id=message.id,
            model_id=loadout.model_id,
            engine=loadout.engine,
            engine_digest=loadout.engine_digest,
        )
        return self._loaded

    async def _boot(self, message: Boot) -> FromEnclave:
        if self._loadout is None:
            raise RuleViolation("enclave.not_loaded", "an enclave without a model cannot say what it runs")
        if self._busy:
            raise RuleViolation("enclave.busy", "a run is under way")
        # The module's calls block, and its driver serialises them.
        self._attester = await asyncio.to_thread(
            Attester, message, loadout=self._loadout, nsm=self._nsm, now_ms=_now_ms()
        )
        say(f"boot {self._attester.boot_hash.hex()} for operator {message.operator}")
        return self._attester.booted(message.id)

    async def _attest(self, message: Attest) -> FromEnclave:
        if self._attester is None:
            raise RuleViolation("enclave.not_booted", "there is no boot statement to attest to")
        document = await asyncio.to_thread(
            self._attester.document, nonce=message.nonce, answer=message.answer
        )
        booted = self._attester.booted(message.id)
        return Attested(
            id=message.id, boot=booted.boot, boot_signature=booted.boot_signature, document=document
        )

    async def _challenge(self, message: Challenge) -> FromEnclave:
        # No user data and no key: it can be taken for no boot's document and no answer's.
        document = await asyncio.to_thread(self._nsm.attest, nonce=message.nonce)
        return Challenged(id=message.id, document=document)

    def _ask(self, message: Ask, stream: FrameStream) -> None:
        if self._engine is None or self._attester is None:
            raise RuleViolation("enclave.not_booted", "there is no boot statement to answer under")
        if self._busy:
            raise RuleViolation("enclave.busy", "a run is under way")
        self._run_id = message.id
        self._run = asyncio.create_task(self._signed_run(message, self._engine, self._attester, stream))
        self._handing_over = asyncio.create_task(_hand_over(message.id, self._run, stream))

    async def _signed_run(
        self, ask: Ask, engine: Engine, attester: Attester, stream: FrameStream
    ) -> FromEnclave:
        # 1. The request is read from the bytes that will be hashed; nothing about it is taken from anywhere
        # else.
        request_bytes, request = read_request(ask.request)
        # 2. It must be for this enclave's kind, model, operator, network and time.
        check_request(request, job_type="tee", model_id=engine.model_id)
        attester.check(request, operator=ask.operator, now_ms=_now_ms())
        # 3. The request's own seed wins over the host's.
        seed = effective_seed(request.job.params, ask.sampling_seed)
        params = sampling_params(request.job.params, seed)
        work = Work(prompt=request.job.prompt, params=params, nonce=ask.nonce)
        # 4. Run; tokens go out as they come, unsigned.
        generation: Generation | None = None
        async with aclosing(run_engine(engine, work)) as events:
            async for event in events:
                if isinstance(event, Generation):
                    generation = event
                else:
                    token = Token(id=ask.id, index=event.index, token=event.token, text=event.text)
                    await stream.write(pack(token))
        if generation is None:
            raise AOSError("enclave.internal", "the engine ended without a result")
        answer = unsigned_answer(engine, work, generation)
        # 5. Sign exactly what was run.
        evidence = attester.sign_answer(
            answer,
            request=request,
            request_bytes=request_bytes,
            nonce=ask.nonce,
            job_ref=ask.job_ref,
            attempt=ask.attempt,
            sampling_seed=seed,
            now_ms=_now_ms(),
        )
        return Answered(
            id=ask.id,
            prompt_tokens_hash=answer.prompt_tokens_hash,
            tokens=answer.tokens,
            text=answer.text,
            finish_reason=answer.finish_reason,
            n_prompt=answer.n_prompt,
            state_root=answer.state_root,
            engine=answer.engine,
            model_id=answer.model_id,
            evidence=encode(evidence),
        )

    async def _cancel_run(self) -> None:
        if self._run is not None and self._handing_over is not None:
            self._run.cancel()
            await asyncio.wait({self._handing_over})


async def _hand_over(number: int, run: asyncio.Task[FromEnclave], stream: FrameStream) -> None:
    """Send how a run ended: its signed answer or its named failure. Cancelling the run does not cancel
    this."""
    try:
        try:
            reply = await run
        except AOSError as error:
            if error.code.startswith("frame."):
                raise
            reply = _failed(number, error)
        except asyncio.CancelledError:
            reply = _failed(number, RuleViolation("enclave.cancelled", "the host cancelled the run"))
        except Exception as error:
            say(f"run failed: {type(error).__name__}")
            reply = _failed(number, AOSError("enclave.internal", "the run failed inside the enclave"))
        await stream.write(pack(reply))
    except AOSError as error:
        say(f"the run's end could not be handed over: {error.code}")


async def _receive_model(size: int, stream: FrameStream) -> int:
    """Raw frames of ``size`` bytes in all, into sealed memory; returns its descriptor.

    Raises InvalidMessage ``enclave.model_size`` or Unavailable ``enclave.memory``, ``frame.*``.
    """
    descriptor = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        held = 0
        while held < size:
            piece = await stream.read(begin_within_s=60.0)
            if piece is None:
                raise Unavailable("frame.truncated", "the stream ended inside a model")
            held += len(piece)
            if held > size:
                raise InvalidMessage("enclave.model_size", "more bytes of a model than announced")
            with memoryview(piece) as view:
                written = 0
                while written < len(view):
                    written += os.write(descriptor, view[written:])
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(descriptor)
        raise Unavailable("enclave.memory", f"no memory for the model: {error.strerror}") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


async def listen(enclave: Enclave, address: str | int) -> None:
    """Serve on a Unix socket (a path) or on a port of vsock (a number) until a host says shutdown."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await enclave.serve(FrameStream(reader, writer, max_frame=MAX_FRAME_BYTES))

    if isinstance(address, int):
        server = await asyncio.start_server(accept, sock=vsock_listener(address), limit=1024 * 1024)
    else:
        mask = os.umask(0o177)  # the host removes the socket as soon as it is connected: too late for a chmod
        server = await asyncio.start_unix_server(accept, address, limit=1024 * 1024)
        os.umask(mask)
    async with server:
        await enclave.ended.wait()


_said: list[str] = ["SIMULATED enclave"]


def label_of(nsm: Nsm) -> str:
    """What an enclave calls itself: never less than that it is simulated."""
    return "SIMULATED, NO HARDWARE" if nsm.simulated else "AWS Nitro"


def speak_as(nsm: Nsm) -> None:
    """From now on the lines of the log are those of an enclave with this security module."""
    _said[0] = "SIMULATED enclave" if nsm.simulated else "enclave"


def say(text: str) -> None:
    """A line of the enclave's log."""
    print(f"[{_said[0]} {os.getpid()}] {text}", file=sys.stderr, flush=True)


def _failed(number: int, error: AOSError) -> Failed:
    return Failed(
        id=number,
        code=error.code,
        message=error.message[:1024],
        blame=type(error).__name__,
        field=error.field[:256] if error.field is not None else None,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
