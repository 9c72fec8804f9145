"""An opML worker that lies: it computes something else than it was asked, everything downstream of the lie included, and plays
its games as well as a liar can. For tests alone.

``AOS_LIE`` names a file that holds the kind of lie for questions that come from now on; what a job was lied about stays.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from aos.core.dispute.fine.tile import recomputed
from aos.engine import forward, reference
from aos.engine.audit import open_layers
from aos.engine.canonical import Claim, Run
from aos.engine.gguf import read_gguf
from aos.engine.manifest import tensor_leaves
from aos.engine.native import NativeEngine
from aos.engine.party import Party
from aos.engine.reference import ReferenceEngine
from aos.engine.trace import UnitTrace, _OwnOperands
from aos.ports import SamplingParams, TokenEvent
from aos.workers import serving
from aos.workers.execution import Answer
from aos.workers.opml_main import OpmlBackend
from aos.workers.question import Question, SeedQuestion
from aos.workers.tracer import AuditQuestion, TraceQuestion, Tracer

LATE = 6
"""The token of the answer that is replaced, from 1."""
LATE_POSITION = 10
"""The position from which on a head is altered, and the one whose keys and values are those of position 0."""

IN_WEIGHTS = ("weight", "norm", "layer")
IN_RUN = ("seed", "temperature", "early_stop", "token")
IN_ARITHMETIC = ("head", "logits", "cache")
IN_GAME = ("stall", "withhold")
KINDS = (*IN_WEIGHTS, *IN_ARITHMETIC, *IN_RUN, *IN_GAME)


def altered_model(path: Path, kind: str) -> Path:
    """The model file with other weights: of one bit, of one norm, or with a layer that adds nothing."""
    data = bytearray(path.read_bytes())
    tensors = {tensor.name: tensor for tensor in read_gguf(path).tensors}
    if kind == "weight":
        data[tensors["blk.2.ffn_up.weight"].offset + 34 * 7 + 5] ^= 0x40
    elif kind == "norm":
        data[tensors["blk.1.attn_norm.weight"].offset + 4 * 11 + 2] ^= 0x40
    else:
        for name in ("blk.1.attn_output.weight", "blk.1.ffn_down.weight"):
            tensor = tensors[name]
            data[tensor.offset : tensor.offset + tensor.size] = bytes(tensor.size)
    lying = Path(tempfile.mkdtemp(prefix="aos-liar-")) / path.name
    lying.write_bytes(data)
    return lying


class LyingNative(NativeEngine):
    """Says that it is the honest model with the asked parameters; ``kind`` says what it does instead."""

    def __init__(self, path: Path, honest: NativeEngine, kind: str) -> None:
        self.path = altered_model(path, kind) if kind in IN_WEIGHTS else path
        super().__init__(self.path)
        self.manifest, self._model_id, self.kind = honest.manifest, honest.model_id, kind

    def _begin(self, prompt: Sequence[int], params: SamplingParams) -> Any:
        if self.kind == "seed":
            params = replace(params, seed=(params.seed + 1) % 2**64)
        elif self.kind == "temperature":
            params = replace(params, temperature=params.temperature * 2)
        computation = super()._begin(prompt, params)
        return _Replacing(computation) if self.kind == "token" else computation

    def run(self, prompt: str, params: SamplingParams, *, salt: bytes, claim: Claim | None = None) -> Run:
        run = super().run(prompt, params, salt=salt, claim=claim)
        if self.kind == "early_stop":
            run.limit = max(1, run.limit - 3)
        return run


class _Replacing:
    """A computation whose ``LATE``-th token is another than it chose."""

    def __init__(self, computation: Any) -> None:
        self._computation, self._chosen = computation, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._computation, name)

    def choose(self) -> int | None:
        token: int | None = self._computation.choose()
        self._chosen += 1
        return 300 if token is not None and self._chosen == LATE else token


class LyingReference(ReferenceEngine):
    """The reference engine with another head, other logits, or keys and values from elsewhere, late in the prompt."""

    kind = "head"

    def _drive(self, *arguments: Any) -> Any:
        with _lying_arithmetic(self.kind):
            return super()._drive(*arguments)

    def capture(self, tokens: Sequence[int], units: Sequence[int]) -> Any:
        with _lying_arithmetic(self.kind):
            return super().capture(tokens, units)


class _lying_arithmetic:  # noqa: N801  a context, named as it reads
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __enter__(self) -> None:
        self.honest = forward.attention, reference.tail_logits, forward.Context._layer, forward.to_half

        def attention(*arguments: Any, **more: Any) -> Any:
            mixed = self.honest[0](*arguments, **more).copy()
            late = max(0, LATE_POSITION - int(arguments[3]))
            mixed.reshape(len(mixed), -1)[late:, 32:64] += np.float32(0.125)
            return mixed

        def tail_logits(model: Any, x: Any) -> Any:
            logits = self.honest[1](model, x).copy()
            logits[:, 256:320] += np.float32(0.5)
            return logits

        at: list[Any] = []

        def layer(context: Any, index: int, x: Any, first: int, sink: Any) -> Any:
            at[:] = [context, index, first, "keys"]
            return self.honest[2](context, index, x, first, sink)

        def to_half(values: Any) -> Any:
            half = self.honest[3](values)
            context, index, first, what = at
            at[3] = "values"
            row = LATE_POSITION - first
            if index == 1 and 0 <= row < len(half):
                half = half.copy()
                kept = context._keys[1][:, :, 0].T if what == "keys" else context._values[1][0]
                half[row] = kept if first else half[0]
            return half

        if self.kind == "head":
            forward.attention = attention  # type: ignore[assignment]
        elif self.kind == "cache":
            forward.Context._layer = layer  # type: ignore[method-assign]
            forward.to_half = to_half  # type: ignore[attr-defined]
        else:
            reference.tail_logits = tail_logits  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        forward.attention, reference.tail_logits, forward.Context._layer, forward.to_half = self.honest  # type: ignore


class LyingTrace(UnitTrace):
    """The trace that belongs to a lie about logits or sampling: what the liar committed, and what follows from it."""

    lie = ""

    def _compute(self, fast: bool) -> Sequence[bytes]:
        honest = self.context
        if self.lie == "seed":
            self.context = replace(honest, rules=replace(honest.rules, seed=(honest.rules.seed + 1) % 2**64))
        elif self.lie == "temperature":
            self.context = replace(
                honest, rules=replace(honest.rules, temperature=honest.rules.temperature * 2)
            )
        operands = _OwnOperands(self)
        try:
            for index in range(self.shape.n_tiles):
                tile = recomputed(operands, index)
                if self.lie == "logits" and index == self.shape.named("logits").first + 1:
                    values = np.frombuffer(tile, dtype="<f4").copy()
                    values[:64] += np.float32(0.5)
                    tile = values.tobytes()
                operands.tiles.append(tile)
        finally:
            self.context = honest
        return operands.tiles


class LyingParty(Party):
    """Plays with the traces of its lie."""

    lie = ""
    honest: Path

    def audit(self, known: Any, request: Any) -> Any:
        """Opens what it committed, under the honest model's weights: anything else opens nothing."""
        leaves, _ = tensor_leaves(read_gguf(self.honest))
        return open_layers(known, self._engine, leaves, request)

    def _own(self, known: Any, position: int, unit: int, against: Any) -> UnitTrace:
        graph = known.run.manifest.graph
        if self.lie not in ("seed", "temperature", "logits") or unit <= graph.n_layers:
            return super()._own(known, position, unit, against)
        lying = type("Trace", (LyingTrace,), {"lie": self.lie})
        trace: UnitTrace = lying(known, self._loaded(), self._engine, position, unit, against=against)
        return trace


class LyingBackend:
    """``OpmlBackend`` for each kind of lie, and the one that each job was told."""

    kind = "opml"
    ready = True
    capacity = 1

    def __init__(self, path: Path, lie: Path) -> None:
        self._path, self._lie = path, lie
        self._honest = NativeEngine(path)
        self._told: dict[bytes, str] = {}
        self.tracer = self

    @cache  # noqa: B019  one backend a process
    def _backend(self, kind: str) -> OpmlBackend:
        engine: Any = self._honest
        if kind in IN_ARITHMETIC:
            engine = LyingReference(self._path)
            engine.kind = kind
        elif kind in IN_WEIGHTS + IN_RUN:
            engine = LyingNative(self._path, self._honest, kind)
        elif kind in IN_GAME:
            engine = LyingNative(self._path, self._honest, "weight")
        path = engine.path if kind in IN_WEIGHTS else self._path
        tracer = Tracer(engine, path, cache_dir=None, threads=1)
        tracer._party = party = LyingParty(engine, path)
        party.lie, party.honest = kind, self._path
        return OpmlBackend(engine, model=self._path.name, tracer=tracer)

    def describe(self) -> dict[str, Any]:
        return self._backend("honest").describe()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def answer(self, question: Question | SeedQuestion) -> AsyncGenerator[TokenEvent | Answer, None]:
        kind = self._lie.read_text().strip()
        self._told[question.nonce] = kind
        if kind != "honest" and isinstance(question, Question):
            question = replace(question, role="executor", tokens=None)
        async for event in self._backend(kind).answer(question):
            yield event

    # --- as a tracer

    async def answer_trace(self, question: TraceQuestion) -> dict[str, Any]:
        kind = self._told[question.run.nonce]
        if (kind == "withhold") or (kind == "stall" and question.task == "move"):
            await asyncio.sleep(3600)
        tracer = self._backend(kind).tracer
        assert tracer is not None
        return await tracer.answer(question)

    async def audit_trace(self, question: AuditQuestion) -> Any:
        kind = self._told[question.run.nonce]
        if kind == "withhold":
            await asyncio.sleep(3600)
        tracer = self._backend(kind).tracer
        assert tracer is not None
        return await tracer.audit(question)


class _AsTracer:
    def __init__(self, backend: LyingBackend) -> None:
        self._backend = backend

    async def answer(self, question: TraceQuestion) -> dict[str, Any]:
        return await self._backend.answer_trace(question)

    async def audit(self, question: AuditQuestion) -> Any:
        return await self._backend.audit_trace(question)


def main() -> int:
    started = time.monotonic()
    import argparse

    parser = argparse.ArgumentParser()
    serving.common_arguments(parser, listen="127.0.0.1:0")
    arguments = parser.parse_args()

    def make() -> tuple[Any, str]:
        backend = LyingBackend(Path(arguments.model), Path(os.environ["AOS_LIE"]))
        backend.tracer = _AsTracer(backend)  # type: ignore[assignment]
        return backend, Path(arguments.model).name

    return serving.run_worker(arguments, make, started)


if __name__ == "__main__":
    sys.exit(main())
