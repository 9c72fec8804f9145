"""The opML worker: a canonical engine behind HTTP (docs/spec/09-http.md, "Worker").

Generates for executors and blind seats, replays the executor's tokens for checkers. It signs nothing and
keeps nothing: the operator that asks it does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from aos.core.encoding import b64u_encode, canonical_json, tagged_hash
from aos.core.statements import Request
from aos.errors import ConfigError, RuleViolation
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
from aos.workers.tracer import Tracer

if TYPE_CHECKING:
    # Loaded with the native engine only: the reference engine must run where that does not load.
    from aos.engine.batching import BatchingEngine
    from aos.engine.native import NativeEngine

DEFAULT_LISTEN = "127.0.0.1:5006"
MAX_PARALLEL = 32
PrefixScope = Literal["off", "user", "project"]


class OpmlBackend:
    """Answers questions with an engine in this process. ``model`` is the name that the seed's questions may
    use, ``isa`` what the native engine computes with."""

    kind: Literal["opml"] = "opml"
    ready = True

    def __init__(
        self,
        engine: Engine,
        *,
        model: str,
        batching: BatchingEngine | None = None,
        capacity: int = 1,
        share_prefixes: PrefixScope = "off",
        isa: str = "",
        tracer: Tracer | None = None,
    ) -> None:
        """More than one question at a time, and prefixes shared among a user's or a project's, need ``batching``,
        the same engine for several (ConfigError ``worker.parallel``).
        """
        require_canonical(engine)
        self._engine = engine
        self._model = model
        self._isa = isa
        self.tracer = tracer
        self._batching = batching
        self._share_prefixes = share_prefixes
        self.capacity = capacity
        if self._batching is None and (capacity > 1 or share_prefixes != "off"):
            raise ConfigError(
                "worker.parallel",
                "this engine answers one question at a time and shares no prefixes",
                hint="start the worker with --engine native",
            )

    def describe(self) -> dict[str, Any]:
        return {
            "model_id": b64u_encode(self._engine.model_id),
            "engine": self._engine.profile,
            "isa": self._isa,
        }

    async def start(self) -> None:
        """The engine is loaded already."""

    async def stop(self) -> None:
        if self._batching is not None:
            await asyncio.to_thread(self._batching.close)

    async def answer(self, question: Question | SeedQuestion) -> AsyncGenerator[TokenEvent | Answer, None]:
        engine: Engine = self._engine if self._batching is None else self._batching
        if isinstance(question, SeedQuestion):
            work = self._seed_work(question)
        else:
            _, request = read_request(question.request)
            check_request(request, job_type="opml", model_id=engine.model_id)
            work = self._work(question, request)
            if self._batching is not None and self._share_prefixes != "off":
                engine = self._batching.scoped(prefix_scope(request, self._share_prefixes))
        ended: Generation | None = None
        async with aclosing(run_engine(engine, work)) as events:
            async for event in events:
                if isinstance(event, Generation):
                    ended = event
                else:
                    yield event
        if ended is not None and work.replay is not None and ended.finish_reason == "cancelled":
            # The claim is not what this engine computes: the checker's result is its own whole run.
            async with aclosing(run_engine(engine, replace(work, replay=None))) as events:
                async for event in events:
                    ended = event if isinstance(event, Generation) else ended
        if ended is not None:
            yield unsigned_answer(self._engine, work, ended)

    def _work(self, question: Question, request: Request) -> Work:
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


def prefix_scope(request: Request, scope: PrefixScope) -> bytes:
    """Who may notice, by how fast an answer comes, that a prompt began like this one
    (docs/adr/0007-prefixes-stay-with-their-owner.md).
    """
    owner = [request.network, request.dispatcher, request.project]
    if scope == "user":
        owner.append(request.user)
    return tagged_hash("prefix-scope", canonical_json([scope, *owner]))


def batching(engine: NativeEngine, *, parallel: int, memory_mib: int) -> BatchingEngine:
    """``engine`` for ``parallel`` questions at a time, with ``memory_mib`` for their keys and values (no more
    than two whole contexts each could use). Raises ConfigError ``worker.memory``.
    """
    from aos.engine.batching import BatchingEngine, Limits
    from aos.engine.native import PAGE_POSITIONS

    whole_context = -(-engine.n_ctx // PAGE_POSITIONS)
    pages = min(memory_mib * 2**20 // engine.page_bytes, 2 * parallel * whole_context, Limits.MOST_PAGES)
    if pages < 1:
        raise ConfigError(
            "worker.memory",
            f"--kv-memory must be at least {-(-engine.page_bytes // 2**20)} (MiB) with this model",
        )
    return BatchingEngine(engine, Limits(runs=parallel, waiting=parallel, pages=pages))


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
    parser.add_argument(
        "--parallel",
        type=_parallel,
        default=os.environ.get("AOS_WORKER_PARALLEL", "1"),
        metavar="N",
        help=f"questions at a time, 1 to {MAX_PARALLEL}, with the native engine; default "
        "AOS_WORKER_PARALLEL, else 1",
    )
    parser.add_argument(
        "--kv-memory",
        type=int,
        default=2048,
        metavar="MIB",
        help="most memory for keys and values of the native engine; default %(default)s",
    )
    parser.add_argument(
        "--share-prefixes",
        default="off",
        choices=("off", "user", "project"),
        help="compute equal beginnings of one user's or one project's prompts once; default %(default)s",
    )
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where the model's manifest is kept")
    arguments = parser.parse_args(argv)

    def make() -> tuple[Backend, str]:
        from aos.engine import isa_of, load_engine
        from aos.progress import Progress

        path = serving.find_model_file(arguments.model, arguments.models_dir)
        engine = load_engine(
            path,
            kind=arguments.engine,
            cache_dir=arguments.cache_dir,
            progress=Progress("loading the model"),
            threads=arguments.threads,
        )
        several = None
        if arguments.engine == "native":
            several = batching(
                cast("NativeEngine", engine), parallel=arguments.parallel, memory_mib=arguments.kv_memory
            )
        backend = OpmlBackend(
            engine,
            model=path.name,
            batching=several,
            capacity=arguments.parallel,
            share_prefixes=arguments.share_prefixes,
            isa=isa_of(engine),
            tracer=Tracer(
                cast("NativeEngine", engine), path, cache_dir=arguments.cache_dir, threads=arguments.threads
            ),
        )
        return backend, path.name

    return serving.run_worker(arguments, make, started_s)


def _parallel(text: str) -> int:
    count = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= count <= MAX_PARALLEL:
        raise argparse.ArgumentTypeError(f"not a number from 1 to {MAX_PARALLEL}")
    return count


if __name__ == "__main__":
    sys.exit(main())
