"""Running an engine for a request: what both workers do with it (docs/spec/09-http.md, "Worker").

Decodes the exact request bytes strictly, turns their parameters into the engine's, and runs the engine on a
thread of its own while the event loop stays free to notice a cancelled client. It hashes only what the answer
must name and signs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from aos.core import hashes
from aos.core.codec import Bytes32, Label, MaxLength, OptionalBytes32, UInt32, decode
from aos.core.encoding import parse_canonical
from aos.core.statements import FinishReason, JobType, Params, Prompt, Request
from aos.errors import ConfigError, InvalidMessage, RuleViolation
from aos.ports import Engine, Generation, SamplingParams, TokenEvent

MAX_TOKENS = 65_536
Tokens = Annotated[tuple[UInt32, ...], MaxLength(MAX_TOKENS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What an engine is asked: generate, or (with ``replay``) recompute the run that these tokens claim to
    be."""

    prompt: Prompt
    params: SamplingParams
    nonce: bytes
    replay: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished run as the operator receives it. ``state_root`` is empty for engines that are not canonical;
    ``evidence`` is the JSON of ``aos.core.tee.TeeEvidence``, or null for opML."""

    prompt_tokens_hash: Bytes32
    tokens: Tokens
    text: Annotated[str, MaxLength(4_000_000)]
    finish_reason: FinishReason
    n_prompt: UInt32
    state_root: OptionalBytes32
    engine: Label
    model_id: Bytes32
    evidence: Any


def read_request(text: str) -> tuple[bytes, Request]:
    """The exact bytes and the value of an ``aos.request`` given as text.

    Raises InvalidMessage ``encoding.*`` or ``field.*``.
    """
    data = text.encode("utf-8")
    return data, decode(Request, parse_canonical(data, max_bytes=hashes.MAX_REQUEST_BYTES), where="request")


def check_request(request: Request, *, job_type: JobType, model_id: bytes) -> None:
    """Is this request for this kind of worker and this model? Raises RuleViolation ``worker.job_type``,
    ``worker.model``."""
    if request.job.tag != job_type:
        raise RuleViolation(
            "worker.job_type",
            f"this worker runs {job_type} jobs, the request asks for {request.job.tag}",
            field="request.job.tag",
        )
    if request.job.model_id != model_id:
        raise RuleViolation(
            "worker.model", "this worker has another model loaded", field="request.job.model_id"
        )


def effective_seed(params: Params, sampling_seed: str) -> str:
    """The seed that the run uses: the request's own where it has one, else the one that follows from the
    draw."""
    seed = params.seed if params.seed is not None else sampling_seed
    if int(seed) >= 2**64:
        raise InvalidMessage("field.range", "sampling_seed must be below 2^64", field="sampling_seed")
    return seed


def sampling_params(params: Params, seed: str) -> SamplingParams:
    """The engine's parameters; both sides count decimals in millionths."""
    return SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repeat_penalty=params.repeat_penalty,
        max_tokens=params.max_tokens,
        stop=params.stop,
        seed=int(seed),
    )


def unsigned_answer(engine: Engine, work: Work, generation: Generation) -> Answer:
    """What an engine's run comes to, without evidence."""
    return Answer(
        prompt_tokens_hash=hashes.prompt_tokens_hash(work.nonce, generation.prompt_tokens),
        tokens=generation.tokens,
        text=generation.text,
        finish_reason=generation.finish_reason,
        n_prompt=len(generation.prompt_tokens),
        state_root=generation.state_root or b"",
        engine=engine.profile,
        model_id=engine.model_id,
        evidence=None,
    )


async def run_engine(engine: Engine, work: Work) -> AsyncGenerator[TokenEvent | Generation, None]:
    """Run on a thread; yields the tokens as they come, then the finished run.

    Closing the generator cancels the run and returns when the engine has let go of it, so that the next run
    finds it free. A replay is one prefill that nothing interrupts: closing then waits for its end. The caller
    must use ``aclosing``, and may have as many runs at a time as the engine takes. Raises what the engine raises.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[TokenEvent | Generation | Exception] = asyncio.Queue()
    ended = asyncio.Event()
    cancel = threading.Event()

    def tell(callback: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends, nobody listens
            loop.call_soon_threadsafe(callback, *args)

    def emit(event: TokenEvent | Generation | Exception) -> None:
        tell(events.put_nowait, event)

    def run() -> None:
        try:
            if work.replay is not None:
                emit(engine.replay(work.prompt, work.replay, work.params, salt=work.nonce))
            else:
                emit(
                    engine.generate(
                        work.prompt, work.params, salt=work.nonce, on_token=emit, cancelled=cancel.is_set
                    )
                )
        except Exception as error:
            emit(error)
        finally:
            tell(ended.set)

    # A daemon, not a pool's thread: a process that is told to end must not wait for a prefill nobody wants
    # any more.
    threading.Thread(target=run, name="engine", daemon=True).start()
    try:
        while True:
            event = await events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Generation):
                return
    finally:
        cancel.set()
        await _wait_for(ended)


async def _wait_for(ended: asyncio.Event) -> None:
    """Wait also where the caller is cancelled again meanwhile: the next run must not meet this one in the
    engine."""
    cancelled: asyncio.CancelledError | None = None
    while not ended.is_set():
        try:
            await ended.wait()
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def require_canonical(engine: Engine) -> None:
    """opML results are compared to the bit. Raises ConfigError ``worker.not_canonical``."""
    if not engine.canonical:
        raise ConfigError(
            "worker.not_canonical",
            f"the engine {engine.profile} does not repeat its bits, opML needs one that does",
        )
