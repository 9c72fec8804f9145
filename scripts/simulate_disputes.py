"""Play SIMULATED disputes: .venv/bin/python scripts/simulate_disputes.py [--games 10000] [--jobs 1000] [--real 1000]
[--liars 1000]

Random lies, roles, orders, delays, stalls, contradictions, withheld and late moves, shams that lose on purpose, over a
tiny model with real openings and real signatures (tests/dispute_toy.py); every such game is also written as a transcript
and judged again. Then lies and sham challenges over the real trace of tiny models (tests/dispute_real.py), and whole runs
of liars that compute everything after their lie honestly (tests/liar_games.py), judged again, too. Ends with an
error at the first honest party that is convicted, loses or is left to the referee's clock, and at the first lie that goes
through.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from dispute_real import Job, lies_of  # noqa: E402
from dispute_simulation import play_job, tally  # noqa: E402
from liar_games import play_case  # noqa: E402
from liars import SHAPES  # noqa: E402

JOBS = [
    Job(model=model, temperature=temperature, top_k=top_k, repeat_penalty=penalty)
    for model in (
        "tiny-q4_0",
        "tiny-q6_k",
        "tiny-qwen2",
        "tiny-qwen3-partial",
        "tiny-llama-2",
        "tiny-f16",
        "tiny-mixed",
    )
    for temperature, top_k, penalty in ((0, 0, 1_000_000), (800_000, 40, 1_100_000))
]


def main() -> None:
    """Play, and print how the games ended."""
    parser = argparse.ArgumentParser(description="Play SIMULATED disputes and check who wins.")
    parser.add_argument("--games", type=int, default=10_000, help="disputes of two parties")
    parser.add_argument("--jobs", type=int, default=1_000, help="jobs of one honest operator and two liars")
    parser.add_argument(
        "--real", type=int, default=1_000, help="places at which real runs are lied about and challenged"
    )
    parser.add_argument(
        "--liars", type=int, default=1_000, help="runs that are lies from one place on, three games each"
    )
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first game; the same number is the same game"
    )
    options = parser.parse_args()
    began = time.perf_counter()
    numbers = range(options.first, options.first + options.games)
    ends, kinds = tally(numbers)
    for title, counts in (("how they ended", ends), ("what was tried, and what it came to", kinds)):
        print(f"SIMULATED disputes, {title}:")
        for name, count in sorted(counts.items()):
            print(f"  {count:6} {name}")
    jobs = Counter(play_job(number) for number in range(options.first, options.first + options.jobs))
    print("SIMULATED jobs, how the three claims stand:")
    for name, count in sorted(jobs.items()):
        print(f"  {count:6} {name}")
    real: Counter[str] = Counter()
    for index, job in enumerate(JOBS):
        first = options.first + index * options.real // len(JOBS)
        real.update(lies_of(job, range(first, options.first + (index + 1) * options.real // len(JOBS))))
    print(f"SIMULATED parties over the real trace of {len({job.model for job in JOBS})} tiny models:")
    for name, count in sorted(real.items()):
        print(f"  {count:6} {name}")
    liars: Counter[str] = Counter()
    for number in range(options.first, options.first + options.liars):
        liars.update(play_case(number))
    print(f"SIMULATED liars over the real trace of {len(SHAPES)} tiny models, more than 256 positions each:")
    for name, count in sorted(liars.items()):
        print(f"  {count:6} {name}")
    print(f"0 honest parties convicted or lost, 0 lies accepted; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
