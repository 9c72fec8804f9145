"""The host's side of an enclave: start it, feed it, restart it (docs/spec/10-tee.md, "Host").

The host moves bytes and keeps the process alive; it holds no key and is believed by nobody. An enclave that
dies takes its key and sequence with it: the running question fails with ``enclave.died``, which may be tried
again, and the next enclave boots anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aos.adapters.frames import FrameStream
from aos.adapters.processes import spawn
from aos.core.codec import Address, NetworkId
from aos.core.statements import hash_of
from aos.errors import (
    AOSError,
    ConfigError,
    InvalidMessage,
    RuleViolation,
    Unavailable,
    VerificationError,
)
from aos.ports import TokenEvent
from aos.workers.enclave.messages import (
    MAX_FRAME_BYTES,
    Answered,
    Ask,
    Boot,
    Booted,
    Cancel,
    Failed,
    FromEnclave,
    FromHost,
    Load,
    Loaded,
    Shutdown,
    Token,
    pack,
    read_from_enclave,
)
from aos.workers.execution import Answer
from aos.workers.question import Question
from aos.workers.service import log_event

LISTENS_WITHIN_S = 60.0
LOADS_WITHIN_S = 1800.0
REPLIES_WITHIN_S = 60.0
TOKEN_WITHIN_S = 600.0
LIFETIME_MS = 60 * 60 * 1000
_MODEL_PIECE = 1024 * 1024
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH")
_BLAME: dict[str, type[AOSError]] = {
    cls.__name__: cls for cls in (InvalidMessage, VerificationError, RuleViolation, Unavailable)
}


def socket_parent() -> str:
    """The temporary directory, or /tmp where its path leaves no room: a Unix socket's address has at most 107 bytes."""
    given = tempfile.gettempdir()
    return given if len(os.fsencode(given)) <= 64 else "/tmp"  # noqa: S108  a directory of its own is made in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Whose enclave it is."""

    network: NetworkId
    operator: Address


class EnclaveHost:
    """Keeps one enclave process running. One question at a time; the caller sees to that."""

    def __init__(
        self, *, model: Path, engine: str, platform_key: Path, lifetime_ms: int = LIFETIME_MS
    ) -> None:
        self._model = model
        self._engine = engine
        self._platform_key = platform_key
        self._lifetime_ms = lifetime_ms
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: FrameStream | None = None
        self._inbox: asyncio.Queue[FromEnclave | Unavailable] = asyncio.Queue()
        self._keeper: asyncio.Task[None] | None = None
        self._first_start: asyncio.Future[None] | None = None
        self._number = 0
        self._stopping = False
        self.loaded: Loaded | None = None
        self.booted: Booted | None = None
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """The enclave's process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def ready(self) -> bool:
        return self._stream is not None

    async def start(self) -> None:
        """Start the enclave and give it its model. Raises what stands in the way of the first start."""
        self._first_start = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep())
        await self._first_start

    async def stop(self) -> None:
        """End the enclave. It gets five seconds."""
        self._stopping = True
        if self._stream is not None:
            with contextlib.suppress(AOSError):
                await self._send(Shutdown(id=self._next()))
        await self._reap(within_s=5.0)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})

    async def boot(self, binding: Binding) -> Booted:
        """Make the enclave boot for ``binding``. Raises Unavailable where it is not running."""
        number = self._next()
        nonce = secrets.token_bytes(32)
        await self._send(
            Boot(
                id=number,
                network=binding.network,
                operator=binding.operator,
                nonce=nonce,
                lifetime_ms=self._lifetime_ms,
            )
        )
        reply = await self._reply(number, within_s=REPLIES_WITHIN_S)
        if not isinstance(reply, Booted):
            raise VerificationError("enclave.protocol", "the enclave answered something else")
        self.booted = reply
        log_event(
            "enclave.booted",
            label="SIMULATED, NO HARDWARE",
            boot=hash_of(reply.boot).hex(),
            operator=binding.operator,
            measurement=reply.boot.measurement.hex(),
        )
        return reply

    async def ask(self, question: Question, binding: Binding) -> AsyncGenerator[TokenEvent | Answer, None]:
        """Run a question in the enclave. Closing the generator cancels the run there and waits for it to
        end."""
        await self._fresh_boot(binding)
        number = self._next()
        await self._send(
            Ask(
                id=number,
                operator=question.operator,
                job_ref=question.job_ref,
                attempt=question.attempt,
                request=question.request,
                nonce=question.nonce,
                sampling_seed=question.sampling_seed,
            )
        )
        over = False
        try:
            while not over:
                try:
                    reply = await self._reply(number, within_s=TOKEN_WITHIN_S)
                except AOSError:
                    over = True
                    raise
                if isinstance(reply, Token):
                    yield TokenEvent(index=reply.index, token=reply.token, text=reply.text)
                elif isinstance(reply, Answered):
                    over = True
                    yield _answer(reply)
        finally:
            if not over:
                await self._cancel(number)

    async def _cancel(self, number: int) -> None:
        """Cancel a run; an enclave that does not obey within a minute is ended."""
        try:
            await self._send(Cancel(id=number))
            while not isinstance(await self._reply(number, within_s=REPLIES_WITHIN_S), Answered):
                pass
        except AOSError as error:
            if error.code == "enclave.silent":
                self._kill()

    async def _fresh_boot(self, binding: Binding) -> None:
        """Boot where there is no boot for this operator, or less than half of its time is left."""
        if self._stream is None:
            raise Unavailable("enclave.starting", "the enclave is starting")
        boot = self.booted.boot if self.booted is not None else None
        now_ms = time.time_ns() // 1_000_000
        if (
            boot is None
            or Binding(network=boot.network, operator=boot.operator) != binding
            or not boot.booted_at <= now_ms <= boot.not_after - self._lifetime_ms // 2
        ):
            await self.boot(binding)

    # --- the process ----------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Start the enclave, read what it says until it ends, and again."""
        assert self._first_start is not None  # noqa: S101 - start() made it
        pause_s = 0.1
        while not self._stopping:
            try:
                stream = await self._start_once()
            except AOSError as error:
                await self._reap(within_s=0.0)
                if not self._first_start.done():
                    self._first_start.set_exception(error)
                    return
                log_event("enclave.start_failed", code=error.code, message=error.message)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 10.0)
                continue
            pause_s = 0.1
            if not self._first_start.done():
                self._first_start.set_result(None)
            await self._read_until_end(stream)
            self._stream = None
            self.booted = None
            self._inbox.put_nowait(Unavailable("enclave.died", "the enclave ended while it was needed"))
            await self._reap(within_s=0.0)
            if not self._stopping:
                log_event("enclave.died", label="SIMULATED, NO HARDWARE")

    async def _start_once(self) -> FrameStream:
        self.starts += 1
        # The socket's directory (mode 0700) is gone once we are connected: nothing is left behind, however we end.
        with tempfile.TemporaryDirectory(prefix="aos-enclave-", dir=socket_parent()) as directory:
            socket_path = Path(directory) / "enclave.sock"
            argv: list[str | Path] = [sys.executable, "-m", "aos.workers.enclave", "--socket", socket_path]
            argv += ["--platform-key", self._platform_key, "--engine", self._engine]
            environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
            self._process = await asyncio.to_thread(spawn, argv, env=environment, output=sys.stderr.fileno())
            stream = await self._connect(self._process, socket_path)
        try:
            await self._load(stream)
        except BaseException:
            await stream.close()
            raise
        self._inbox = asyncio.Queue()
        self._stream = stream
        return stream

    async def _connect(self, process: subprocess.Popen[bytes], socket_path: Path) -> FrameStream:
        deadline = time.monotonic() + LISTENS_WITHIN_S
        while True:
            try:
                return await FrameStream.connect_unix(str(socket_path), max_frame=MAX_FRAME_BYTES)
            except Unavailable:
                status = process.poll()
                if status == ConfigError.exit_code:
                    raise ConfigError(
                        "enclave.configuration", "the enclave refused to start, its log says why"
                    ) from None
                if status is not None:
                    raise Unavailable("enclave.died", f"the enclave ended with status {status}") from None
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.01)

    async def _load(self, stream: FrameStream) -> None:
        """Stream the model's bytes in and learn what the enclave made of them."""
        number = self._next()
        try:
            with self._model.open("rb") as file:
                await stream.write(pack(Load(id=number, size=os.fstat(file.fileno()).st_size)))
                while piece := file.read(_MODEL_PIECE):
                    await stream.write(piece)
        except OSError as error:
            raise Unavailable(
                "enclave.model_unreadable", f"cannot read the model: {error.strerror}"
            ) from error
        payload = await stream.read(begin_within_s=LOADS_WITHIN_S)
        if payload is None:
            raise Unavailable("enclave.died", "the enclave ended while it loaded the model")
        reply = read_from_enclave(payload)
        if isinstance(reply, Failed):
            raise _error(reply)
        if not isinstance(reply, Loaded) or reply.id != number:
            raise VerificationError("enclave.protocol", "the enclave answered something else")
        if self.loaded is not None and reply.model_id != self.loaded.model_id:
            raise Unavailable(
                "enclave.model_changed", "the model's file is no longer what it was at the start"
            )
        self.loaded = reply

    async def _read_until_end(self, stream: FrameStream) -> None:
        try:
            while (payload := await stream.read()) is not None:
                self._inbox.put_nowait(read_from_enclave(payload))
        except AOSError as error:
            log_event("enclave.broken_stream", code=error.code)
        finally:
            self._kill()
            await stream.close()

    def _kill(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def _reap(self, *, within_s: float) -> None:
        """Wait for the process to end; kill it when the time is over."""
        deadline = time.monotonic() + within_s
        while self.pid is not None:
            if time.monotonic() >= deadline:
                self._kill()
            await asyncio.sleep(0.01)

    # --- messages -------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _send(self, message: FromHost) -> None:
        if self._stream is None:
            raise Unavailable("enclave.starting", "the enclave is starting")
        try:
            await self._stream.write(pack(message))
        except Unavailable:
            raise Unavailable("enclave.died", "the enclave ended while it was needed") from None

    async def _reply(self, number: int, *, within_s: float) -> FromEnclave:
        """The next message for ``number``. Raises what the enclave refused with, or Unavailable
        ``enclave.silent``."""
        inbox = self._inbox
        while True:
            try:
                async with asyncio.timeout(within_s):
                    reply = await inbox.get()
            except TimeoutError:
                raise Unavailable("enclave.silent", f"the enclave said nothing for {within_s:g} s") from None
            if isinstance(reply, Unavailable):
                raise reply
            if reply.id != number:
                continue  # of a run that was cancelled
            if isinstance(reply, Failed):
                raise _error(reply)
            return reply


def _error(failed: Failed) -> AOSError:
    return _BLAME.get(failed.blame, AOSError)(failed.code, failed.message, field=failed.field)


def _answer(reply: Answered) -> Answer:
    return Answer(
        prompt_tokens_hash=reply.prompt_tokens_hash,
        tokens=reply.tokens,
        text=reply.text,
        finish_reason=reply.finish_reason,
        n_prompt=reply.n_prompt,
        state_root=reply.state_root,
        engine=reply.engine,
        model_id=reply.model_id,
        evidence=reply.evidence,
    )


def describe(host: EnclaveHost) -> dict[str, Any]:
    """The enclave's part of a worker's status."""
    boot = host.booted.boot if host.booted is not None else None
    return {
        "tee": "simulated",
        "label": "SIMULATED, NO HARDWARE",
        "enclave": None
        if host.loaded is None
        else {
            "pid": host.pid,
            "starts": host.starts,
            "measurement": host.loaded.measurement.hex(),
            "boot": None if boot is None else hash_of(boot).hex(),
            "operator": None if boot is None else boot.operator,
            "not_after": None if boot is None else boot.not_after,
        },
    }
