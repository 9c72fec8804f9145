"""Tokens per second of the reference engine beside llama.cpp, on one model, in one run.

python benchmarks/reference_engine.py [--model FILE.gguf] [--rounds 9] [--processes 1]

Four rates, the median over rounds whose engines take turns: decode and replay of the reference engine; llama.cpp through this
project's engine port (one request a token); llama.cpp by itself (one request for the whole text). With --processes N, N copies
run at the same time and each row is the mean of their medians: what a machine with N workers gives to each. Start it with
OPENBLAS_NUM_THREADS=1, as a local network starts its workers, or without, to see what that changes.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from aos.engine.llama_cpp import LlamaCppEngine
from aos.engine.reference import ReferenceEngine
from aos.ports import SamplingParams

DEMO_MODEL = Path(__file__).resolve().parents[1] / "models" / "aos-demo.Q8_0.gguf"
PROMPT = "What is AI?"
PARAMS = SamplingParams(temperature=1_000_000, top_p=500_000, max_tokens=128, seed=7)
SALT = bytes(32)
ROWS = ("reference, decode", "reference, replay", "llama.cpp, engine port", "llama.cpp, by itself")


def rates(model: Path, rounds: int) -> list[float]:
    """Positions per second, one median for each of ROWS."""
    reference, llama = ReferenceEngine(model), LlamaCppEngine(model, threads=1)
    claim = reference.generate(PROMPT, PARAMS, salt=SALT)
    body = {
        "prompt": list(llama.tokenize(PROMPT)),
        "n_predict": PARAMS.max_tokens,
        "temperature": 1.0,
        "top_p": 0.5,
        "top_k": 0,
        "min_p": 0.0,
        "samplers": ["top_p", "temperature"],
        "seed": 7,
        "cache_prompt": False,
    }

    def replay() -> int:
        again = reference.replay(PROMPT, claim.tokens, PARAMS, salt=SALT)
        assert again.state_root == claim.state_root
        return len(claim.prompt_tokens) + len(claim.tokens)

    calls: tuple[Callable[[], int], ...] = (
        lambda: len(reference.generate(PROMPT, PARAMS, salt=SALT).tokens),
        replay,
        lambda: len(llama.generate(PROMPT, PARAMS, salt=SALT).tokens),
        lambda: int(llama._server.post("/completion", body)["tokens_predicted"]),
    )
    measured: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, kept in zip(calls, measured, strict=True):
            start = time.perf_counter()
            count = call()
            if number:  # the first round warms up
                kept.append(count / (time.perf_counter() - start))
    return [statistics.median(kept) for kept in measured]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        each = pool.starmap(rates, [(options.model, options.rounds)] * options.processes, chunksize=1)
    means = [statistics.fmean(column) for column in zip(*each, strict=True)]
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "not set")
    print(
        f"{options.model.name}, {os.cpu_count()} cores, {options.processes} at once, OPENBLAS_NUM_THREADS {threads}"
    )
    for name, rate in zip(ROWS, means, strict=True):
        print(f"{name:<24}{rate:9,.0f} /s   {rate / means[-1]:6.3f} of llama.cpp by itself")


if __name__ == "__main__":
    main()
