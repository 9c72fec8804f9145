"""What an opML worker does for its operator in a dispute (docs/spec/13-dispute.md, "In the network"): the leaves of a run that it
computed, and the next move of a game about it. It signs nothing and keeps nothing that it cannot compute again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from aos.core.codec import Bytes32, Decimal64, MaxLength, decode, encode
from aos.core.encoding import b64u_encode, parse_json_strict
from aos.core.statements import Request
from aos.errors import RuleViolation
from aos.workers.execution import (
    Tokens,
    check_request,
    effective_seed,
    read_request,
    sampling_params,
)

if TYPE_CHECKING:
    from aos.core.dispute.case import UnitTrace as AnyTrace
    from aos.core.dispute.fine.bounds import Unit
    from aos.core.dispute.game import Game
    from aos.core.dispute.moves import Move
    from aos.engine.native import NativeEngine
    from aos.engine.reference import ReferenceEngine
    from aos.engine.trace import KnownRun, ModelWeights, UnitTrace

MAX_TRACE_BODY = 40 << 20
KEPT = 4
"""Runs and traces kept between two moves."""


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
    ``transcript`` (a transcript's exact text) is, about this run (claimant) or with it (challenger)."""

    task: Literal["leaves", "move"]
    run: TracedRun
    party: Literal["claimant", "challenger"] | None
    transcript: Annotated[str, MaxLength(MAX_TRACE_BODY)] | None


def read_trace_question(body: bytes) -> TraceQuestion:
    """Raises InvalidMessage ``encoding.*``, ``field.*``; RuleViolation ``trace.question``."""
    question = decode(TraceQuestion, parse_json_strict(body, max_bytes=MAX_TRACE_BODY))
    if (question.task == "move") != (question.party is not None and question.transcript is not None):
        raise RuleViolation("trace.question", "a move needs party and transcript, leaves neither")
    return question


class Tracer:
    """Traces runs of one engine. One question at a time: each computes a run once more."""

    def __init__(
        self, engine: NativeEngine | ReferenceEngine, path: Path, *, cache_dir: Path | None, threads: int
    ) -> None:
        self._engine = engine
        self._path = path
        self._cache_dir = cache_dir
        self._threads = threads
        self._weights: ModelWeights | None = None
        self._runs: OrderedDict[bytes, KnownRun] = OrderedDict()
        self._traces: OrderedDict[object, UnitTrace] = OrderedDict()
        self._turn = asyncio.Lock()

    async def answer(self, question: TraceQuestion) -> dict[str, Any]:
        """The members of ``result``.

        Raises RuleViolation ``worker.job_type``, ``worker.model``, ``trace.other_run`` (this engine computes another run),
        ``dispute.stage`` (nothing to move); what the game and the trace raise.
        """
        async with self._turn:
            return await asyncio.to_thread(self._answer, question)

    def _answer(self, question: TraceQuestion) -> dict[str, Any]:
        known = self._known(question.run)
        if question.task == "leaves":
            return self._leaves(known)
        assert question.transcript is not None  # noqa: S101  read_trace_question has looked
        return {"move": encode(self._move(known, question.party, question.transcript.encode()))}

    def _known(self, run: TracedRun) -> KnownRun:
        from aos.engine.trace import known_run

        if run.state_root in self._runs:
            self._runs.move_to_end(run.state_root)
            return self._runs[run.state_root]
        _, request = read_request(run.request)
        check_request(request, job_type="opml", model_id=self._engine.model_id)
        known = known_run(self._retrace(request, run), self._engine.manifest)
        if known.tree.root != run.state_root:
            raise RuleViolation(
                "trace.other_run",
                "this worker computes another run than the operator has signed",
                hint="is it the worker, engine and model file that answered the job?",
            )
        _keep(self._runs, run.state_root, known)
        return known

    def _retrace(self, request: Request, run: TracedRun) -> Any:
        params = request.job.params
        return self._engine.retrace(
            request.job.prompt,
            run.tokens,
            sampling_params(params, effective_seed(params, run.sampling_seed)),
            salt=run.nonce,
        )

    def _leaves(self, known: KnownRun) -> dict[str, Any]:
        tree = known.tree
        return {
            "header": b64u_encode(tree.header.entry()),
            "units": [b64u_encode(b"".join(leaves)) for leaves in tree.units],
            "manifest": self._engine.manifest.json().decode(),
            "prompt_tokens": list(known.tokens[: tree.header.n_prompt]),
            "tokenizer": b64u_encode(self._engine.tokenizer.vocabulary.encoded()),
        }

    def _move(self, known: KnownRun, party: str | None, data: bytes) -> Move:
        from aos.core.dispute import players
        from aos.core.dispute.fine.bounds import Unit
        from aos.core.dispute.fine.referee import Canonical
        from aos.core.dispute.transcript import read_transcript, replay
        from aos.engine.around import check_with_tokenizer

        arithmetic = Canonical(check_with_tokenizer)
        game = replay(read_transcript(data), arithmetic)
        if party != game.mover:
            raise RuleViolation("dispute.stage", f"it is the turn of {game.mover or 'nobody'}")
        if game.open.kind != "unit":
            return players.prove(game, self._around(known, game))
        if party == "claimant":
            return players.answer(game, arithmetic, self._trace(known, game.open.position, game.open.unit))
        context = None if game.opened is None else game.opened.context
        trace = self._own(
            known, game.open.position, game.open.unit, context if isinstance(context, Unit) else None
        )
        return players.choose(game, trace)

    def _trace(self, known: KnownRun, position: int, unit: int) -> AnyTrace:
        from aos.engine.trace import AbsentUnit
        from aos.errors import InvalidMessage

        try:
            return self._own(known, position, unit, None)
        except InvalidMessage as error:
            if error.code != "trace.unit":
                raise
            return AbsentUnit(known)

    def _own(self, known: KnownRun, position: int, unit: int, against: Unit | None) -> UnitTrace:
        from aos.engine.trace import UnitTrace

        key = (known.tree.root, position, unit, None if against is None else (against.leaf, against.cuts))
        if key not in self._traces:
            trace = UnitTrace(known, self._loaded(), self._engine, position, unit, against=against)
            _keep(self._traces, key, trace)
        return self._traces[key]

    def _loaded(self) -> ModelWeights:
        if self._weights is None:
            from aos.engine.gguf import read_gguf
            from aos.engine.trace import ModelWeights

            self._weights = ModelWeights(
                read_gguf(self._path), cache_dir=self._cache_dir, threads=self._threads
            )
        return self._weights

    def _around(self, known: KnownRun, game: Game) -> bytes:
        from aos.core.dispute.fine.around import prove_header, prove_tokens, prove_trap
        from aos.core.dispute.state_opening import Place
        from aos.core.dispute.state_tree import TOKEN
        from aos.errors import InvalidMessage

        if game.open.kind == "trap":
            return prove_trap(known.tree, known.trap)
        if game.open.kind != "tokens":
            return prove_header(known.tree)
        position, trap = game.open.position, known.trap
        tail = None
        graph = self._engine.manifest.graph
        assert graph is not None  # noqa: S101  the engine is canonical
        try:
            trace = self._own(known, position, graph.n_layers + 1, None)
        except InvalidMessage as error:
            if error.code != "trace.unit":
                raise
        else:
            if not trace.context.trapped:
                place = Place(position=position, unit=graph.n_layers + 1, part=TOKEN, tile=0)
                tail = trace.open_state(place)
        return prove_tokens(known.tree, known.tokens, position, None if trap is None else trap[0], tail)


def _keep(kept: OrderedDict[Any, Any], key: object, value: object) -> None:
    kept[key] = value
    while len(kept) > KEPT:
        kept.popitem(last=False)
