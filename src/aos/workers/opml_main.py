"""The opML worker: a canonical engine behind HTTP (docs/spec/09-http.md, "Worker").

Generates for executors and blind seats, replays the executor's tokens for checkers. It signs nothing and
keeps nothing: the operator that asks it does.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from aos.core.encoding import b64u_encode
from aos.errors import RuleViolation
from aos.ports import Engine, Generation, TokenEvent
from aos.workers import serving
from aos.workers.execution import (
    Answer,
    Work,
    check_request,
    effective_seed,
    read_request,
    require_canonical,
    run_engine,
    sampling_params,
    unsigned_answer,
)
from aos.workers.question import Question, SeedQuestion
from aos.workers.service import Backend

DEFAULT_LISTEN = "127.0.0.1:5006"


class OpmlBackend:
    """Answers questions with an engine in this process. ``model`` is the name that the seed's questions may
    use, ``isa`` what the native engine computes with."""

    kind: Literal["opml"] = "opml"
    ready = True

    def __init__(self, engine: Engine, *, model: str, isa: str = "") -> None:
        require_canonical(engine)
        self._engine = engine
        self._model = model
        self._isa = isa

    def describe(self) -> dict[str, Any]:
        return {
            "model_id": b64u_encode(self._engine.model_id),
            "engine": self._engine.profile,
            "isa": self._isa,
        }

    async def start(self) -> None:
        """The engine is loaded already."""

    async def stop(self) -> None:
        """Nothing outlives the process."""

    async def answer(self, question: Question | SeedQuestion) -> AsyncGenerator[TokenEvent | Answer, None]:
        work = self._seed_work(question) if isinstance(question, SeedQuestion) else self._work(question)
        async with aclosing(run_engine(self._engine, work)) as events:
            async for event in events:
                if isinstance(event, Generation):
                    yield unsigned_answer(self._engine, work, event)
                else:
                    yield event

    def _work(self, question: Question) -> Work:
        _, request = read_request(question.request)
        check_request(request, job_type="opml", model_id=self._engine.model_id)
        params = request.job.params
        return Work(
            prompt=request.job.prompt,
            params=sampling_params(params, effective_seed(params, question.sampling_seed)),
            nonce=question.nonce,
            replay=question.tokens,
        )

    def _seed_work(self, question: SeedQuestion) -> Work:
        if question.model != self._model:
            raise RuleViolation("worker.model", f"this worker has {self._model} loaded", field="model")
        seed = effective_seed(question.params, question.sampling_seed)
        return Work(
            prompt=question.prompt, params=sampling_params(question.params, seed), nonce=question.nonce
        )


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m aos.workers.opml_main``."""
    started_s = time.monotonic()
    parser = argparse.ArgumentParser(prog="opml-worker", description="Runs opML jobs for an operator.")
    serving.common_arguments(parser, listen=DEFAULT_LISTEN)
    parser.add_argument(
        "--engine", default="native", choices=("native", "reference"), help="default %(default)s"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="threads of the native engine; default: the cores that this process may use",
    )
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where the model's manifest is kept")
    arguments = parser.parse_args(argv)

    def make() -> tuple[Backend, str]:
        from aos.adapters.progress import Progress
        from aos.engine import isa_of, load_engine

        path = serving.find_model_file(arguments.model, arguments.models_dir)
        engine = load_engine(
            path,
            kind=arguments.engine,
            cache_dir=arguments.cache_dir,
            progress=Progress("loading the model"),
            threads=arguments.threads,
        )
        return OpmlBackend(engine, model=path.name, isa=isa_of(engine)), path.name

    return serving.run_worker(arguments, make, started_s)


if __name__ == "__main__":
    sys.exit(main())
