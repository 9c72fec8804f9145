"""What an opML worker does for its operator in a dispute (docs/spec/13-dispute.md, "In the network"): the leaves of a run that it
computed, and the next move of a game about it. It signs nothing and keeps nothing that it cannot compute again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from aos.core.codec import Bytes32, Decimal64, MaxLength, Range, decode, encode
from aos.core.dispute.audit import MAX_LAYERS, AuditRequest
from aos.core.encoding import parse_json_strict
from aos.errors import RuleViolation
from aos.workers.execution import (
    Tokens,
    check_request,
    effective_seed,
    read_request,
    sampling_params,
)

if TYPE_CHECKING:
    from aos.engine.native import NativeEngine
    from aos.engine.party import Party
    from aos.engine.reference import ReferenceEngine
    from aos.engine.trace import KnownRun

MAX_TRACE_BODY = 40 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRun:
    """A run of this worker: its request's exact text, nonce, seed, and the tokens that it gave."""

    request: Annotated[str, MaxLength(1_048_576)]
    nonce: Bytes32
    sampling_seed: Decimal64
    tokens: Tokens
    state_root: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceQuestion:
    """A body of ``POST /api/v1/trace``. ``leaves``: no ``transcript``. ``move``: the next move of ``party`` in the game that
    ``transcript`` (a transcript's exact text) is, about this run (claimant) or with it (challenger). ``court``: the claimant's
    in a game on a chain; ``transcript`` is the text of a ``ChainGame``."""

    task: Literal["leaves", "move", "court"]
    run: TracedRun
    party: Literal["claimant", "challenger"] | None
    transcript: Annotated[str, MaxLength(MAX_TRACE_BODY)] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQuestion:
    """A body of ``POST /api/v1/audit``: the layers of this run that ``beacon`` draws (docs/spec/14-audit.md)."""

    run: TracedRun
    beacon: Bytes32
    layers: Annotated[int, Range(1, MAX_LAYERS)]


def read_audit_question(body: bytes) -> AuditQuestion:
    """Raises InvalidMessage ``encoding.*``, ``field.*``."""
    return decode(AuditQuestion, parse_json_strict(body, max_bytes=MAX_TRACE_BODY))


def read_trace_question(body: bytes) -> TraceQuestion:
    """Raises InvalidMessage ``encoding.*``, ``field.*``; RuleViolation ``trace.question``."""
    question = decode(TraceQuestion, parse_json_strict(body, max_bytes=MAX_TRACE_BODY))
    moves = question.party is not None and question.transcript is not None
    if (question.task != "leaves") != moves or (question.task == "court" and question.party != "claimant"):
        raise RuleViolation("trace.question", "a move needs party and transcript, leaves neither")
    return question


class Tracer:
    """Traces runs of one engine, one question at a time."""

    def __init__(
        self, engine: NativeEngine | ReferenceEngine, path: Path, *, cache_dir: Path | None, threads: int
    ) -> None:
        self._engine = engine
        self._path = path
        self._cache_dir = cache_dir
        self._threads = threads
        self._party: Party | None = None
        self._turn = asyncio.Lock()

    async def answer(self, question: TraceQuestion) -> dict[str, Any]:
        """The members of ``result``.

        Raises RuleViolation ``worker.job_type``, ``worker.model``, ``trace.other_run`` (this engine computes another run),
        ``dispute.stage`` (nothing to move); what the game and the trace raise.
        """
        async with self._turn:
            return await asyncio.to_thread(self._answer, question)

    async def audit(self, question: AuditQuestion) -> tuple[int, Iterator[bytes]]:
        """The bundle that an audit asks for: its size, and its pieces. They are made while they are read, after the turn of
        this question: a slow reader keeps nobody waiting.

        Raises RuleViolation ``trace.other_run`` and the like; InvalidMessage ``audit.layers``, ``audit.too_large``;
        Unavailable ``engine.memory``.
        """
        async with self._turn:
            return await asyncio.to_thread(self._audit, question)

    def _audit(self, question: AuditQuestion) -> tuple[int, Iterator[bytes]]:
        party = self._ready()
        known = self._known(party, question.run)
        asked = AuditRequest(state_root=known.tree.root, beacon=question.beacon, layers=question.layers)
        return party.audit(known, asked)

    def _ready(self) -> Party:
        from aos.engine.party import Party  # only disputes and audits need it

        if self._party is None:
            self._party = Party(self._engine, self._path, cache_dir=self._cache_dir, threads=self._threads)
        return self._party

    def _answer(self, question: TraceQuestion) -> dict[str, Any]:
        party = self._ready()
        known = self._known(party, question.run)
        if question.task == "leaves":
            return party.leaves(known)
        assert question.transcript is not None  # noqa: S101  read_trace_question has looked
        if question.task == "court":
            return party.court_move(known, question.transcript.encode())
        return {"move": encode(party.move(known, question.party, question.transcript.encode()))}

    def _known(self, party: Party, run: TracedRun) -> KnownRun:
        _, request = read_request(run.request)
        check_request(request, job_type="opml", model_id=self._engine.model_id)
        params = request.job.params
        known = party.run(
            request.job.prompt,
            run.tokens,
            sampling_params(params, effective_seed(params, run.sampling_seed)),
            salt=run.nonce,
        )
        if known.tree.root != run.state_root:
            raise RuleViolation(
                "trace.other_run",
                "this worker computes another run than the operator has signed",
                hint="is it the worker, engine and model file that answered the job?",
            )
        return known
