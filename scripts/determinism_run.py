"""Compare bits over random tiny models: every instruction set, thread count and grouping of positions, and the reference engine.

``python scripts/determinism_run.py --generations 10000`` makes models, prompts and parameters from ``--seed``, runs
each case on every path of the native engine in turn, and compares tokens, text, finish reason and ``state_root``. The
reference engine computes one case in ``--reference-every``; a replay in one prefill is made of every case. Prints one JSON
line at the end; exit code 1 where anything differed. ``--from`` continues where an earlier piece of the run ended.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tiny_models import TYPE_CODES, TinyModel, build_model

from aos.engine.native import NativeEngine, instruction_sets
from aos.engine.reference import ReferenceEngine
from aos.ports import MILLION, Generation, SamplingParams

TYPES_32 = tuple(name for name in TYPE_CODES if not name.endswith("_K"))
PARTS = (
    *("token_embd", "output", "attn_q", "attn_k", "attn_v"),
    *("attn_output", "ffn_gate", "ffn_up", "ffn_down"),
)
WORDS = [*"what is the meaning of the thing and you are in end it é 🦙 ,.? <s> 0".split(), "\n"]  # noqa: SIM905
GROUPS = (1, 2, 3, 4, 5, 7, 11, 12, 15, 16, 17, 31, 33, 64, 256)
CASES_A_MODEL = 12


class GroupedEngine(NativeEngine):
    """Computes positions in groups of the given sizes, over and over; all at once where there are none."""

    grouping: Iterator[int] | None = None

    @property
    def step(self) -> int:  # type: ignore[override]
        return NativeEngine.step if self.grouping is None else next(self.grouping)


def random_model(number: int, seed: int) -> TinyModel:
    """A recipe with shapes that divide nothing evenly; one in four is of 256-weight blocks."""
    rng = random.Random(f"{seed}/model/{number}")
    architecture = rng.choice(("llama", "llama", "qwen2", "qwen3"))
    kv_heads = rng.choice((1, 2, 3))
    heads = kv_heads * rng.choice((1, 2, 3, 5))
    wide = rng.random() < 0.25
    unit = 256 if wide else 32
    head_width = rng.choice(
        [w for w in range(2, 258, 2) if heads * w % unit == 0 and heads * w <= 1024] or [unit]
    )
    types = tuple(TYPE_CODES) if wide else TYPES_32
    width = unit * rng.choice((1, 2) if wide else (1, 2, 3, 7, 9))
    ff_width = unit * rng.choice((1, 2, 3) if wide else (1, 3, 8, 9, 17))
    n_rot = 2 * rng.randrange(1, head_width // 2 + 1)
    factors = tuple(rng.choice((1.0, 1.25, 2.0, 8.0)) for _ in range(n_rot // 2))
    return TinyModel(
        name=f"run-{seed}-{number}",
        architecture=architecture,
        default="Q8_0",
        width=width,
        ff_width=ff_width,
        layers=rng.choice((1, 2, 3)),
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        n_rot=n_rot,
        n_ctx=rng.choice((64, 300, 330)),
        rope_base=rng.choice((10_000.0, 500_000.0, 1_000_000.0)),
        rope_factors=factors if architecture == "llama" and rng.random() < 0.3 else (),
        tied=rng.random() < 0.5,
        types={part: rng.choice(types) for part in PARTS},
    )


def random_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice((0, 10_000, 700_000, MILLION, 10 * MILLION)),
        top_p=rng.choice((0, 1, 400_000, 950_000, 999_999, MILLION)),
        top_k=rng.choice((0, 1, 7, 317, 318, 10_000)),
        min_p=rng.choice((0, 0, 1, 20_000, MILLION)),
        repeat_penalty=rng.choice((500_000, MILLION, 1_300_000)),
        max_tokens=rng.choice((1, 5, 12, 20)),
        seed=rng.getrandbits(64),
        stop=rng.choice(((), (), ("th",), ("e", " a"))),
    )


def random_prompt(rng: random.Random, engine: NativeEngine) -> str:
    length = rng.choice((0, 1, 3, 8, 20, 20, 45, 90))
    prompt = " ".join(rng.choice(WORDS) for _ in range(length))
    while len(engine.tokenize(prompt)) > min(280, engine.n_ctx - 2):
        prompt = prompt[: len(prompt) * 3 // 4]
    return prompt


def grouping(rng: random.Random) -> Iterator[int]:
    while True:
        yield rng.choice(GROUPS)


def one_by_one() -> Iterator[int]:
    while True:
        yield 1


class Run:
    """Counts of one run, and every difference by name."""

    def __init__(self, seed: int, reference_every: int) -> None:
        self.seed = seed
        self.reference_every = reference_every
        self.cases = 0
        self.paths: Counter[str] = Counter()
        self.finishes: Counter[str] = Counter()
        self.differences: list[str] = []

    @property
    def generations(self) -> int:
        return sum(self.paths.values())

    def model(self, number: int, directory: Path) -> None:
        """Every case of one model, on every path."""
        path = directory / "model.gguf"
        path.unlink(missing_ok=True)  # an engine before may still have it mapped
        path.write_bytes(build_model(random_model(number, self.seed)))
        engines = {
            f"{isa}/{threads}": GroupedEngine(
                path, isa=isa, threads=threads, alone_below=0, cache_dir=directory
            )
            for isa in instruction_sets()
            for threads in (1, 2, 5)
        }
        reference = ReferenceEngine(path, cache_dir=directory)
        first = next(iter(engines.values()))  # what the others are compared with, where not the reference
        for case in range(CASES_A_MODEL):
            rng = random.Random(f"{self.seed}/case/{number}/{case}")
            prompt, params, salt = random_prompt(rng, first), random_params(rng), rng.randbytes(32)
            by_reference = self.cases % self.reference_every == 0
            expected = (reference if by_reference else first).generate(prompt, params, salt=salt)
            self.paths["reference" if by_reference else "first"] += 1
            self.cases += 1
            for name, engine in engines.items():
                for grouped, sizes in (
                    ("at once", None),
                    ("one by one", one_by_one()),
                    ("random", grouping(rng)),
                ):
                    # Waking five threads for every position of a long prompt on two cores shows nothing more.
                    if grouped == "one by one" and name.endswith("/5") and len(prompt) > 60:
                        continue
                    engine.grouping = sizes
                    got = engine.generate(prompt, params, salt=salt)
                    self.compare(expected, got, f"model {number} case {case} {name} {grouped}")
                    self.paths[f"{name} {grouped}"] += 1
                engine.grouping = None
                replayed = engine.replay(prompt, expected.tokens, params, salt=salt)
                self.compare(expected, replayed, f"model {number} case {case} {name} replay")
                self.paths[f"{name} replay"] += 1
            self.finishes[expected.finish_reason] += 1

    def compare(self, expected: Generation, got: Generation, where: str) -> None:
        if got != expected:
            self.differences.append(where)
            sys.stderr.write(f"DIFFERENT: {where}\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generations", type=int, default=10_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--from", dest="first", type=int, default=0, metavar="N", help="number of the first model"
    )
    parser.add_argument("--reference-every", type=int, default=4, metavar="N")
    options = parser.parse_args()
    begun, number = time.monotonic(), options.first
    run = Run(options.seed, options.reference_every)
    with TemporaryDirectory() as directory, suppress(KeyboardInterrupt):  # stopped, it reports what it did
        while run.generations < options.generations:
            run.model(number, Path(directory))
            number += 1
    report = {
        "generations": run.generations,
        "differences": len(run.differences),
        "cases": run.cases,
        "models": number - options.first,
        "next": number,
        "seed": options.seed,
        "instruction_sets": instruction_sets(),
        "reference": run.paths["reference"],
        "finish_reasons": dict(sorted(run.finishes.items())),
        "seconds": round(time.monotonic() - begun),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if run.differences or run.generations == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
