"""Many requests at a time on one native engine: continuous batching behind ``aos.ports.Engine``.

One thread steps a ``NativeBatch``: in each step every run that generates computes its next position, and runs
that still compute their prompt share what room is left. Requests join and leave between steps. No result
depends on what else runs (docs/spec/07-inference.md: a position is computed alone).
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from aos.core.statements import Prompt
from aos.engine.canonical import Claim, Run
from aos.engine.native import PAGE_POSITIONS, NativeEngine, NativeRun
from aos.engine.prefixes import Prefix, PrefixCache
from aos.errors import ConfigError, RuleViolation, Unavailable
from aos.ports import Engine, Generation, SamplingParams, TokenEvent

WITH_OTHERS = 64
"""Prompt positions that a step computes while others generate, who wait for it; alone it is the engine's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``runs`` at a time, ``waiting`` behind them, ``pages`` of 256 positions in use (cached ones included)."""

    MOST_PAGES: ClassVar[int] = 1 << 20
    runs: int = 8
    waiting: int = 64
    pages: int = 64

    def __post_init__(self) -> None:
        for name, most in (("runs", 256), ("waiting", 65_536), ("pages", self.MOST_PAGES)):
            if not (0 if name == "waiting" else 1) <= getattr(self, name) <= most:
                raise ConfigError("engine.limits", f"{name} is out of range (at most {most})", field=name)


@dataclass(eq=False, slots=True)
class _Request:
    """A request from its caller's thread. ``events`` is how it hears: tokens, then a result or an error."""

    run: Run
    cancelled: Callable[[], bool] | None
    scope: bytes | None
    pages: int
    events: queue.SimpleQueue[TokenEvent | Generation | BaseException] = field(
        default_factory=queue.SimpleQueue
    )
    left: bool = False
    native: NativeRun | None = None
    prefix: Prefix = field(default_factory=Prefix)
    added: list[Prefix] = field(default_factory=list)
    published: bool = False

    @property
    def exclusive_pages(self) -> int:
        """Pages that count as this run's: reserved, and not the cache's."""
        return self.pages - self.prefix.full_pages - sum(len(added.nodes) for added in self.added)

    @property
    def computation(self) -> NativeRun:
        if self.native is None:
            raise RuntimeError("the request has not begun")
        return self.native

    def wants_to_stop(self) -> bool:
        return self.left or (self.cancelled is not None and self.cancelled())


class BatchingEngine:
    """``aos.ports.Engine`` for any number of threads. ``close`` ends it; nothing outlives that."""

    def __init__(self, engine: NativeEngine, limits: Limits | None = None) -> None:
        self._engine = engine
        self._limits = limits or Limits()
        engine.limit_pages(self._limits.pages)
        self._lock = threading.Condition()
        self._arrived: deque[_Request] = deque()
        self._closed = False
        self._unfinished = 0
        self._batch = engine.batch()
        self._cache = PrefixCache()
        self._waiting: deque[_Request] = deque()
        self._active: list[_Request] = []
        self.reused_positions = 0
        """Positions that requests took over from the prefix cache instead of computing them."""
        self._thread = threading.Thread(target=self._serve, name="engine-batch", daemon=True)
        self._thread.start()

    @property
    def profile(self) -> str:
        return self._engine.profile

    @property
    def canonical(self) -> bool:
        return True

    @property
    def model_id(self) -> bytes:
        return self._engine.model_id

    @property
    def n_ctx(self) -> int:
        return self._engine.n_ctx

    @property
    def isa(self) -> str:
        return self._engine.isa

    @property
    def unfinished(self) -> int:
        """Requests that run or wait."""
        with self._lock:
            return self._unfinished

    def tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        """As the engine's."""
        return self._engine.tokenize(prompt)

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        salt: bytes,
        on_token: Callable[[TokenEvent], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Generation:
        """As ``CanonicalEngine.generate``. ``on_token`` is called on the caller's thread; ``cancelled`` on
        the engine's, where it must be quick.

        Raises also Unavailable ``engine.busy`` (too many wait) and ``engine.stopped``, RuleViolation
        ``engine.memory_limit`` (never fits).
        """
        return self.submit(prompt, params, salt=salt, on_token=on_token, cancelled=cancelled)

    def replay(
        self,
        prompt: Prompt,
        tokens: Sequence[int],
        params: SamplingParams,
        *,
        salt: bytes,
        cancelled: bool = False,
    ) -> Generation:
        """As ``CanonicalEngine.replay``. Raises as ``generate``."""
        return self.submit(prompt, params, salt=salt, claim=Claim(tuple(tokens), cancelled))

    def scoped(self, scope: bytes) -> Engine:
        """This engine for requests that may use one another's computed prefixes. How fast an answer comes
        tells who is in ``scope`` what others in it asked, so a scope is those who may know.
        """
        return _Scoped(self, scope)

    def close(self) -> None:
        """End every request with Unavailable ``engine.stopped``, and the thread."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self._thread.join()

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        salt: bytes,
        on_token: Callable[[TokenEvent], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        claim: Claim | None = None,
        scope: bytes | None = None,
    ) -> Generation:
        """``generate``, or with ``claim`` ``replay``, with prefixes shared inside ``scope``."""
        run = self._engine.run(prompt, params, salt=salt, claim=claim)
        pages = -(-run.most_positions // PAGE_POSITIONS)
        if pages > self._limits.pages:
            raise RuleViolation(
                "engine.memory_limit",
                f"prompt and max_tokens need {pages} pages of keys and values, the limit is "
                f"{self._limits.pages}",
                field="max_tokens",
                hint="ask for fewer tokens",
            )
        request = _Request(run, cancelled, scope, pages)
        with self._lock:
            if self._closed:
                raise _stopped()
            if self._unfinished >= self._limits.runs + self._limits.waiting:
                raise Unavailable("engine.busy", "too many requests wait already", hint="ask again later")
            self._unfinished += 1
            self._arrived.append(request)
            self._lock.notify_all()
        try:
            while True:
                event = request.events.get()
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, Generation):
                    return event
                if on_token is not None:
                    on_token(event)
        finally:
            request.left = True

    # --- the engine's thread

    def _serve(self) -> None:
        failure: BaseException = _stopped()
        try:
            while self._receive():
                self._admit()
                self._step()
        except BaseException as error:
            failure = error  # every caller gets it, none waits for ever
            raise
        finally:
            with self._lock:
                self._closed = True
                left = [*self._active, *self._waiting, *self._arrived]
            for request in left:
                self._finish(request, failure)

    def _receive(self) -> bool:
        """Take what arrived, waiting for it where there is nothing to do. False where the engine closes."""
        with self._lock:
            while not self._closed and not self._arrived and not self._active and not self._waiting:
                self._lock.wait()
            self._waiting.extend(self._arrived)
            self._arrived.clear()
            return not self._closed

    def _admit(self) -> None:
        """Let requests in, in the order in which they came, while the limits allow."""
        self._waiting = deque(request for request in self._waiting if not self._leaves(request))
        while self._waiting and len(self._active) < self._limits.runs and self._make_room(self._waiting[0]):
            request = self._waiting.popleft()
            try:
                self._begin(request)
            except Exception as error:
                self._finish(request, error)
            else:
                self._active.append(request)

    def _leaves(self, request: _Request) -> bool:
        """End a request that has ended, was cancelled or whose caller has gone."""
        try:
            if not request.run.ended and not request.wants_to_stop():
                return False
            if request.native is None:
                request.native = self._batch.begin(request.run.prompt, request.run.params)
                request.run.start(request.native)
            outcome: Generation | Exception = request.run.result()
        except Exception as error:
            outcome = error  # also what the caller's own `cancelled` raised: it is the caller's to hear
        self._finish(request, outcome)
        return True

    def _make_room(self, request: _Request) -> bool:
        """Hold the request's known prefix, and drop cached pages until the rest fits."""
        if request.scope is not None:
            # The last position of a prompt is always computed: its residual is not kept.
            request.prefix = self._cache.find(request.scope, request.run.prompt[:-1])
        while True:
            held = self._cache.pages + sum(active.exclusive_pages for active in self._active)
            if held + request.exclusive_pages <= self._limits.pages:
                return True
            if self._cache.evict():
                continue
            self._cache.release(request.prefix)
            request.prefix = Prefix()
            if self._active:
                return False
            # Nothing runs: what was in the way is this request's own prefix, which can go now.

    def _begin(self, request: _Request) -> None:
        run, prefix = request.run, request.prefix
        native = request.native = self._batch.begin(run.prompt, run.params)
        if prefix.positions:
            native.adopt(prefix.pages, prefix.positions)
            self.reused_positions += prefix.positions
        native.reserve(run.most_positions)
        run.start(native, prefix.positions)

    def _step(self) -> None:
        """One step of every run that is active: compute, choose, let go of those that end."""
        self._active = [request for request in self._active if not self._leaves(request)]
        try:
            self._compute()
            self._choose()
        except Exception as error:
            # Requests were checked before, so it is the machine or this engine: who was in the step hears of it.
            for request in self._active:
                self._finish(request, error)
            self._active = []

    def _compute(self) -> None:
        generating = [request for request in self._active if request.run.left_to_compute == 1]
        prompts = [request for request in self._active if request.run.left_to_compute > 1]
        share = max((WITH_OTHERS if generating else self._engine.step) // max(len(prompts), 1), 1)
        computing = [*generating, *prompts]
        if not computing:
            return
        self._batch.extend([(request.computation, request.run.take(share)) for request in computing])
        for request in computing:
            request.run.computed()
            if request.scope is not None and not request.published and request.run.left_to_compute == 0:
                request.published = True
                self._publish(request, request.scope)

    def _choose(self) -> None:
        # A run that generates chooses once and has then a position to compute; a replay chooses on.
        for _ in range(WITH_OTHERS):
            choosing = [r for r in self._active if not r.run.ended and r.run.left_to_compute == 0]
            if not choosing:
                return
            tokens = self._batch.choose([request.computation for request in choosing])
            for request, token in zip(choosing, tokens, strict=True):
                event = request.run.chosen(token)
                if event is not None:
                    request.events.put(event)

    def _publish(self, request: _Request, scope: bytes) -> None:
        native, run = request.computation, request.run
        tokens = [*run.prompt, *run.tokens][: native.length]
        request.added.append(self._cache.add(scope, tokens, native.page))

    def _finish(self, request: _Request, outcome: Generation | BaseException) -> None:
        """Tell the caller, and give back what the request held."""
        self._cache.release(request.prefix)
        for added in request.added:
            self._cache.release(added)
        request.added.clear()
        if request.scope is not None and request.published and isinstance(outcome, Generation):
            self._publish(request, request.scope)
            self._cache.release(request.added.pop())
        request.prefix = Prefix()
        request.native = None
        request.run.close()
        if isinstance(outcome, BaseException):
            outcome.__traceback__ = None  # its frames, and leaves that wait, would keep pages in use
            self._batch.settle_leaves()
        with self._lock:
            self._unfinished -= 1
        request.events.put(outcome)


@dataclass(frozen=True, slots=True)
class _Scoped:
    """A ``BatchingEngine`` whose requests share prefixes within one scope."""

    engine: BatchingEngine
    scope: bytes

    @property
    def profile(self) -> str:
        return self.engine.profile

    @property
    def canonical(self) -> bool:
        return self.engine.canonical

    @property
    def model_id(self) -> bytes:
        return self.engine.model_id

    @property
    def n_ctx(self) -> int:
        return self.engine.n_ctx

    def tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        return self.engine.tokenize(prompt)

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        salt: bytes,
        on_token: Callable[[TokenEvent], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Generation:
        return self.engine.submit(
            prompt, params, salt=salt, on_token=on_token, cancelled=cancelled, scope=self.scope
        )

    def replay(
        self,
        prompt: Prompt,
        tokens: Sequence[int],
        params: SamplingParams,
        *,
        salt: bytes,
        cancelled: bool = False,
    ) -> Generation:
        return self.engine.submit(
            prompt, params, salt=salt, claim=Claim(tuple(tokens), cancelled), scope=self.scope
        )


def _stopped() -> Unavailable:
    return Unavailable("engine.stopped", "the engine is stopping", hint="ask again later")
