"""Tokens per second of several requests at a time on the native engine, against one after the other, and what a
known prefix saves.

    python benchmarks/batching.py models/aos-demo.Q8_0.gguf [--threads 2]
    python benchmarks/batching.py --shape tinyllama-1.1b --threads 2 --tokens 32
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from random_models import SHAPES, make

from aos.engine.batching import BatchingEngine, Limits
from aos.engine.native import NativeEngine
from aos.ports import Engine, Generation, SamplingParams

PARALLEL = (1, 2, 4, 8)
SALT = bytes(32)


def prompts(count: int) -> list[str]:
    return [f"{number}: what is the meaning of it" for number in range(count)]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ask_all(engine: Engine | BatchingEngine, count: int, params: SamplingParams) -> list[Generation]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda prompt: engine.generate(prompt, params, salt=SALT), prompts(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), help="a random model of this shape")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64, help="of each request; default %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if (arguments.model is None) == (arguments.shape is None):
        parser.error("name a model, or a --shape")
    path = arguments.model or make(SHAPES[arguments.shape])
    native = NativeEngine(path, threads=arguments.threads)
    engine = BatchingEngine(native, Limits(runs=max(PARALLEL), waiting=8, pages=64))
    # What was said is favoured: a run goes on to its limit and does not end by itself.
    params = SamplingParams(temperature=0, repeat_penalty=100_000, max_tokens=arguments.tokens)
    alone = [native.generate(prompt, params, salt=SALT) for prompt in prompts(max(PARALLEL))]
    print(f"{path.name}, {native.isa}, {arguments.threads} threads, median of {arguments.rounds}")
    rates: dict[int, list[float]] = {count: [] for count in PARALLEL}
    # On a busy machine processor time says more: waiting for memory is in it, waiting for a core is not.
    busy: dict[int, list[float]] = {count: [] for count in PARALLEL}
    for _ in range(arguments.rounds):
        for count in PARALLEL:
            answers: list[Generation] = []
            before = time.process_time()
            took = seconds(
                lambda count=count, answers=answers: answers.extend(ask_all(engine, count, params))
            )
            if answers != alone[:count]:
                raise SystemExit("an answer differs from that of the same request alone")
            tokens = sum(len(answer.tokens) for answer in answers)
            rates[count].append(tokens / took)
            busy[count].append(tokens / (time.process_time() - before))
    one, one_busy = median(rates[1]), median(busy[1])
    for count in PARALLEL:
        rate, cpu = median(rates[count]), median(busy[count])
        print(
            f"{count} requests: {rate:8.1f} tokens/s in all ({rate / one:.2f} of one request's), "
            f"{cpu:8.1f} per processor second ({cpu / one_busy:.2f})"
        )

    long = "what is the meaning of it all and so on " * 40
    while len(native.tokenize(long)) > min(native.n_ctx - 8, 700):
        long = long[: -len(long) // 20]
    short = SamplingParams(temperature=0, max_tokens=1)
    cold, warm = [], []
    for number in range(arguments.rounds):
        scoped = engine.scoped(number.to_bytes(4, "big"))
        cold.append(seconds(lambda scoped=scoped: scoped.generate(long, short, salt=SALT)))
        warm.append(seconds(lambda scoped=scoped: scoped.generate(long, short, salt=SALT)))
    print(
        f"first token after a prompt of {len(native.tokenize(long))}: {1000 * median(cold):.1f} ms cold, "
        f"{1000 * median(warm):.1f} ms with its prefix known"
    )
    engine.close()


if __name__ == "__main__":
    main()
