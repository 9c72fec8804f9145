"""An opML worker that lies: it computes something else than it was asked, everything downstream of the lie included, and plays
its games as well as a liar can. For networks of one's own: `aos demo-chain` and the tests start it.

``AOS_LIE`` names a file that holds the kind of lie for questions that come from now on; what a job was lied about stays.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aos.engine.native import NativeEngine
    from aos.engine.party import Party
    from aos.engine.reference import ReferenceEngine
    from aos.ports import TokenEvent
    from aos.workers.execution import Answer
    from aos.workers.opml_main import OpmlBackend
    from aos.workers.question import Question, SeedQuestion
    from aos.workers.tracer import AuditQuestion, TraceQuestion, Tracer

IN_GAME = ("stall", "withhold")
"""Lies about a weight whose games are not played: no move, or not even leaves."""


class LyingBackend:
    """``OpmlBackend`` for each kind of lie, and the one that each job was told."""

    kind = "opml"
    ready = True
    capacity = 1

    def __init__(self, path: Path, lie: Path) -> None:
        from aos.engine.native import NativeEngine

        self._path, self._lie = path, lie
        self._honest = NativeEngine(path)
        self._files = Path(tempfile.mkdtemp(prefix="aos-liar-"))
        self._told: dict[bytes, str] = {}
        self.tracer = self

    @cache  # noqa: B019  one backend a process
    def _backend(self, kind: str) -> OpmlBackend:
        from aos.workers.opml_main import OpmlBackend

        if kind == "honest":
            return OpmlBackend(self._honest, model=self._path.name, tracer=self._tracer(kind))
        return OpmlBackend(self._liar(kind)[0], model=self._path.name, tracer=self._tracer(kind))

    @cache  # noqa: B019
    def _liar(self, kind: str) -> tuple[NativeEngine | ReferenceEngine, Party]:
        from aos.attack import liars

        told = "weight" if kind in IN_GAME else kind
        return liars.liar(self._path, self._honest, told, directory=self._files)

    @cache  # noqa: B019
    def _tracer(self, kind: str) -> Tracer:
        from aos.workers.tracer import Tracer

        if kind == "honest":
            return Tracer(self._honest, self._path, cache_dir=None, threads=1)
        engine, party = self._liar(kind)
        tracer = Tracer(engine, self._path, cache_dir=None, threads=1)
        tracer._party = party
        return tracer

    def describe(self) -> dict[str, Any]:
        return self._backend("honest").describe()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def answer(self, question: Question | SeedQuestion) -> AsyncGenerator[TokenEvent | Answer, None]:
        from aos.workers.question import Question

        kind = self._lie.read_text().strip()
        self._told[question.nonce] = kind
        if kind != "honest" and isinstance(question, Question):
            question = replace(question, role="executor", tokens=None)
        async for event in self._backend(kind).answer(question):
            yield event

    # --- as a tracer

    async def answer_trace(self, question: TraceQuestion) -> dict[str, Any]:
        kind = self._told[question.run.nonce]
        if (kind == "withhold") or (kind == "stall" and question.task != "leaves"):
            await asyncio.sleep(3600)
        return await self._tracer(kind).answer(question)

    async def audit_trace(self, question: AuditQuestion) -> Any:
        kind = self._told[question.run.nonce]
        if kind == "withhold":
            await asyncio.sleep(3600)
        return await self._tracer(kind).audit(question)


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

    from aos.workers import serving

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
