"""The host's side of an enclave: start it, feed it, restart it (docs/spec/10-tee.md, "Host").

The host moves bytes and keeps the process alive; it holds no key and is believed by nobody. An enclave that
dies takes its key and sequence with it: the running question fails with ``enclave.died``, which may be tried
again once the next enclave has been booted under a new challenge. A SIMULATED enclave is a process of this host's; a
real one is started by ``scripts/run_tee.sh`` and reached over vsock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aos.adapters.frames import FrameStream
from aos.adapters.processes import spawn
from aos.core.statements import hash_of
from aos.core.tee import TeeBootEvidence
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
    Attest,
    Attested,
    Boot,
    Booted,
    Cancel,
    Failed,
    FromEnclave,
    FromHost,
    Load,
    Loaded,
    Shutdown,
    State,
    Status,
    Token,
    pack,
    read_from_enclave,
)
from aos.workers.execution import Answer
from aos.workers.question import Binding, BootOrder, DocumentOrder, Question
from aos.workers.service import log_event

LISTENS_WITHIN_S = 60.0
LOADS_WITHIN_S = 1800.0
REPLIES_WITHIN_S = 60.0
TOKEN_WITHIN_S = 600.0
LIFETIME_MS = 60 * 60 * 1000
_MODEL_PIECE = 1024 * 1024
_SOCKET_PREFIX, _SOCKET_NAME = "aos-enclave-", "enclave.sock"
_MAX_SOCKET_PATH = 103
"""sun_path with its end mark is 108 bytes on Linux, 104 on other systems."""
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH")
Inbox = asyncio.Queue["FromEnclave | Unavailable"]
_BLAME: dict[str, type[AOSError]] = {
    cls.__name__: cls for cls in (InvalidMessage, VerificationError, RuleViolation, Unavailable)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedEnclave:
    """An enclave that this host starts, with the file of its SIMULATED platform."""

    platform_key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class VsockEnclave:
    """An enclave that runs already."""

    cid: int
    port: int


class EnclaveHost:
    """Keeps the connection to one enclave, and the process of a SIMULATED one. One question at a time; the caller sees
    to that. Boots and documents may be asked for meanwhile."""

    def __init__(
        self,
        *,
        model: Path,
        engine: str,
        enclave: SimulatedEnclave | VsockEnclave,
        lifetime_ms: int = LIFETIME_MS,
    ) -> None:
        self._model = model
        self._engine = engine
        self._enclave = enclave
        self._lifetime_ms = lifetime_ms
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: FrameStream | None = None
        self._inboxes: dict[int, asyncio.Queue[FromEnclave | Unavailable]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._first_start: asyncio.Future[None] | None = None
        self._number = 0
        self._stopping = False
        self.loaded: Loaded | None = None
        self.booted: Booted | None = None
        self.starts = 0

    @property
    def label(self) -> str:
        """What stands behind the enclave."""
        return "SIMULATED, NO HARDWARE" if isinstance(self._enclave, SimulatedEnclave) else "AWS Nitro"

    @property
    def tee(self) -> str:
        return "simulated" if isinstance(self._enclave, SimulatedEnclave) else "nitro"

    @property
    def pid(self) -> int | None:
        """The process id of a SIMULATED enclave while it runs."""
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
        """End a SIMULATED enclave, which gets five seconds; leave another one."""
        self._stopping = True
        if self._stream is not None and isinstance(self._enclave, SimulatedEnclave):
            with contextlib.suppress(AOSError):
                await self._send(Shutdown(id=self._next()))
        await self._reap(within_s=5.0)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        if self._stream is not None:
            await self._stream.close()

    async def boot(self, order: BootOrder) -> TeeBootEvidence:
        """Make the enclave boot. Raises Unavailable where it is not running, RuleViolation ``enclave.busy`` in a run."""
        with self._conversation() as (number, inbox):
            await self._send(
                Boot(
                    id=number,
                    network=order.network,
                    operator=order.operator,
                    vrf_key=order.vrf_key,
                    policy=order.policy,
                    nonce=order.nonce,
                    lifetime_ms=self._lifetime_ms,
                )
            )
            reply = await _reply(inbox, within_s=REPLIES_WITHIN_S)
        if not isinstance(reply, Booted):
            raise VerificationError("enclave.protocol", "the enclave answered something else")
        self.booted = reply
        log_event("enclave.booted", label=self.label, boot=hash_of(reply.boot).hex(), operator=order.operator)
        return TeeBootEvidence(boot=reply.boot, boot_signature=reply.boot_signature, document=reply.document)

    async def document(self, order: DocumentOrder) -> TeeBootEvidence:
        """A document of now. Raises RuleViolation ``enclave.not_booted``, ``enclave.unknown_answer``; Unavailable."""
        with self._conversation() as (number, inbox):
            await self._send(Attest(id=number, answer=order.answer, nonce=order.nonce))
            reply = await _reply(inbox, within_s=REPLIES_WITHIN_S)
        if not isinstance(reply, Attested):
            raise VerificationError("enclave.protocol", "the enclave answered something else")
        return TeeBootEvidence(boot=reply.boot, boot_signature=reply.boot_signature, document=reply.document)

    async def ask(self, question: Question, binding: Binding) -> AsyncGenerator[TokenEvent | Answer, None]:
        """Run a question in the enclave. Closing the generator cancels the run there and waits for it to
        end. Raises Unavailable ``enclave.not_booted`` where there is no boot for ``binding`` that is still valid."""
        self._require_boot(binding)
        with self._conversation() as (number, inbox):
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
                        reply = await _reply(inbox, within_s=TOKEN_WITHIN_S)
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
                    await self._cancel(number, inbox)

    async def _cancel(self, number: int, inbox: Inbox) -> None:
        """Cancel a run; an enclave that does not obey within a minute is ended."""
        try:
            await self._send(Cancel(id=number))
            while not isinstance(await _reply(inbox, within_s=REPLIES_WITHIN_S), Answered):
                pass
        except AOSError as error:
            if error.code == "enclave.silent":
                await self._kill()

    def _require_boot(self, binding: Binding) -> None:
        if self._stream is None:
            raise Unavailable("enclave.starting", "the enclave is starting")
        boot = self.booted.boot if self.booted is not None else None
        now_ms = time.time_ns() // 1_000_000
        if (
            boot is None
            or Binding(network=boot.network, operator=boot.operator) != binding
            or not boot.booted_at <= now_ms <= boot.not_after
        ):
            raise Unavailable(
                "enclave.not_booted", "the enclave has not been booted under a dispatcher's challenge"
            )

    # --- the process ----------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Start the enclave, read what it says until it ends, and again."""
        assert self._first_start is not None  # noqa: S101 - start() made it
        pause_s = 0.1
        while not self._stopping:
            try:
                await self._serve_once()
                pause_s = 0.1
                continue
            except AOSError as error:
                await self._reap(within_s=0.0)
                if not self._first_start.done():
                    self._first_start.set_exception(error)
                    return
                log_event("enclave.start_failed", code=error.code, message=error.message)
            except Exception as error:  # a defect must not leave the worker without an enclave
                await self._reap(within_s=0.0)
                if not self._first_start.done():
                    self._first_start.set_exception(error)
                    return
                log_event("enclave.defect", error=repr(error))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 10.0)

    async def _serve_once(self) -> None:
        """One enclave, from its start to its end. Raises what stands in the way of its start."""
        assert self._first_start is not None  # noqa: S101 - start() made it
        stream = await self._start_once()
        if not self._first_start.done():
            self._first_start.set_result(None)
        try:
            await self._read_until_end(stream)
        finally:
            self._kill_process()
            self._stream = None
            self.booted = None
            for inbox in self._inboxes.values():
                inbox.put_nowait(Unavailable("enclave.died", "the enclave ended while it was needed"))
            await stream.close()
        await self._reap(within_s=0.0)
        if not self._stopping:
            log_event("enclave.died", label=self.label)

    async def _start_once(self) -> FrameStream:
        self.starts += 1
        if isinstance(self._enclave, SimulatedEnclave):
            stream = await self._spawn(self._enclave)
        else:
            stream = await FrameStream.connect_vsock(
                self._enclave.cid, self._enclave.port, max_frame=MAX_FRAME_BYTES
            )
        try:
            await self._load(stream)
        except BaseException:
            await stream.close()
            raise
        self._stream = stream
        return stream

    async def _spawn(self, enclave: SimulatedEnclave) -> FrameStream:
        # The socket's directory (mode 0700) is gone once we are connected: nothing is left behind, however we end.
        with tempfile.TemporaryDirectory(prefix=_SOCKET_PREFIX, dir=socket_base()) as directory:
            socket_path = Path(directory) / _SOCKET_NAME
            # -P: a directory that we happen to be started in brings no module into the enclave.
            argv: list[str | Path] = [
                sys.executable,
                "-P",
                "-m",
                "aos.workers.enclave",
                "--socket",
                socket_path,
            ]
            argv += ["--platform-key", enclave.platform_key, "--engine", self._engine]
            environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
            self._process = await asyncio.to_thread(spawn, argv, env=environment, output=sys.stderr.fileno())
            return await self._connect(self._process, socket_path)

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
        """Stream the model's bytes in, unless they are there, and learn what the enclave made of them."""
        await stream.write(pack(Status(id=self._next())))
        state = await _next_message(stream, begin_within_s=REPLIES_WITHIN_S)
        if not isinstance(state, State):
            raise VerificationError("enclave.protocol", "the enclave answered something else")
        reply: FromEnclave
        if state.loaded is not None:
            reply = state.loaded
        else:
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
            reply = await _next_message(stream, begin_within_s=LOADS_WITHIN_S)
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
                reply = read_from_enclave(payload)
                if (inbox := self._inboxes.get(reply.id)) is not None:  # else of one that nobody waits for
                    inbox.put_nowait(reply)
        except AOSError as error:
            log_event("enclave.broken_stream", code=error.code)

    async def _kill(self) -> None:
        """End the process; where it is not this host's, the connection, which ends the run."""
        self._kill_process()
        if self._stream is not None and self._process is None:
            await self._stream.close()

    def _kill_process(self) -> None:
        # Asked once: between two questions the process can end, and with it the number.
        if self._process is not None:
            self._process.kill()

    async def _reap(self, *, within_s: float) -> None:
        """Wait for the process to end; kill it when the time is over."""
        deadline = time.monotonic() + within_s
        while self.pid is not None:
            if time.monotonic() >= deadline:
                self._kill_process()
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

    @contextlib.contextmanager
    def _conversation(self) -> Iterator[tuple[int, Inbox]]:
        """A number for a message, and where its replies come."""
        number = self._next()
        self._inboxes[number] = asyncio.Queue()
        try:
            yield number, self._inboxes[number]
        finally:
            del self._inboxes[number]


async def _reply(inbox: Inbox, *, within_s: float) -> FromEnclave:
    """The next reply. Raises what the enclave refused with, or Unavailable ``enclave.silent``."""
    try:
        async with asyncio.timeout(within_s):
            reply = await inbox.get()
    except TimeoutError:
        raise Unavailable("enclave.silent", f"the enclave said nothing for {within_s:g} s") from None
    if isinstance(reply, Unavailable):
        raise reply
    if isinstance(reply, Failed):
        raise _error(reply)
    return reply


async def _next_message(stream: FrameStream, *, begin_within_s: float) -> FromEnclave:
    """The next message while the enclave is not served yet. Raises what it refused with."""
    payload = await stream.read(begin_within_s=begin_within_s)
    if payload is None:
        raise Unavailable("enclave.died", "the enclave ended before it had its model")
    reply = read_from_enclave(payload)
    if isinstance(reply, Failed):
        raise _error(reply)
    return reply


def socket_base() -> str:
    """Where the socket's directory is made: the temporary directory, or ``/tmp`` where that has too long a path for a
    Unix socket.

    Raises ConfigError ``enclave.socket_path`` where neither will do.
    """
    for base in (tempfile.gettempdir(), "/tmp"):  # noqa: S108  only the parent of a directory of our own
        path = Path(base) / f"{_SOCKET_PREFIX}12345678" / _SOCKET_NAME
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH and os.access(base, os.W_OK | os.X_OK):
            return base
    raise ConfigError(
        "enclave.socket_path",
        f"no temporary directory has a path short enough for a Unix socket ({_MAX_SOCKET_PATH} bytes)",
        hint="set TMPDIR to a writable directory with a short path",
    )


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
        "tee": host.tee,
        "label": host.label,
        "enclave": None
        if host.loaded is None
        else {
            "pid": host.pid,
            "starts": host.starts,
            "engine_digest": host.loaded.engine_digest.hex(),
            "boot": None if boot is None else hash_of(boot).hex(),
            "operator": None if boot is None else boot.operator,
            "not_after": None if boot is None else boot.not_after,
        },
    }
