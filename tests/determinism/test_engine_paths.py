"""Equal tokens and roots on every path: reference, scalar, AVX2 and AVX-512 (what the processor has), any
number of threads, any grouping of positions (spec 07; the vectors are the reference engine's).
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engine_models import VECTORS, maker, model_bytes

from aos.engine.native import NativeEngine, instruction_sets
from aos.engine.reference import ReferenceEngine
from aos.ports import Generation, SamplingParams

FILES = sorted(path.stem for path in VECTORS.glob("tiny-*.json"))
SALT = bytes(range(32))
SHORT = 100
"""Positions up to which a case also runs on several threads, where waking them costs more than the work."""


class GroupedEngine(NativeEngine):
    """Computes positions in groups of the given sizes, over and over; all at once where there are none."""

    grouping: Iterator[int] | None = None

    @property
    def step(self) -> int:  # type: ignore[override]
        return NativeEngine.step if self.grouping is None else next(self.grouping)


def one_by_one() -> Iterator[int]:
    while True:
        yield 1


def random_groups(seed: str) -> Iterator[int]:
    rng = random.Random(seed)
    while True:
        yield rng.choice((1, 2, 3, 4, 5, 11, 12, 15, 16, 17, 33))


@dataclass(frozen=True)
class Expected:
    prompt: str
    params: SamplingParams
    result: Generation
    unit_roots: list[bytes]

    @property
    def positions(self) -> int:
        return len(self.result.prompt_tokens) + len(self.result.tokens)


def check_every_path(path: Path, cases: list[Expected], salt: bytes) -> None:
    """Asserts that every path gives what is expected, replayed too."""
    for isa in instruction_sets():
        for threads in (1, 2, 5):
            engine = GroupedEngine(path, isa=isa, threads=threads, alone_below=0)
            for number, case in enumerate(cases):
                if threads > 1 and case.positions > SHORT:
                    continue
                groupings = [None, random_groups(f"{path.name}{number}")]
                if case.positions <= SHORT:
                    groupings.append(one_by_one())
                for grouping in groupings:
                    engine.grouping = grouping
                    leaves, result = engine.traced(case.prompt, case.params, salt=salt)
                    where = (path.name, isa, threads, number)
                    assert leaves.unit_roots() == case.unit_roots, where
                    assert result == case.result, where
                engine.grouping = None
                assert (
                    engine.replay(
                        case.prompt,
                        case.result.tokens,
                        case.params,
                        salt=salt,
                        cancelled=case.result.finish_reason == "cancelled",
                    )
                    == case.result
                )


@pytest.mark.parametrize("name", FILES)
def test_every_path_gives_the_roots_of_the_vectors(name: str, tmp_path: Path) -> None:
    vector: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    path = tmp_path / vector["file"]
    path.write_bytes(model_bytes(name))
    cases = [
        Expected(
            case["prompt"],
            maker().sampling_params(case["params"]),
            Generation(
                prompt_tokens=tuple(case["prompt_tokens"]),
                tokens=tuple(case["tokens"]),
                text=case["text"],
                finish_reason=case["finish_reason"],
                state_root=bytes.fromhex(case["state_root"]),
            ),
            [bytes.fromhex(root) for root in case["unit_roots"]],
        )
        for case in vector["cases"]
        if "error" not in case
    ]
    assert cases
    check_every_path(path, cases, bytes.fromhex(vector["salt"]))


def random_model(number: int) -> Any:
    """A recipe with a shape that divides nothing evenly, and types at random."""
    rng = random.Random(number)
    architecture = rng.choice(("llama", "llama", "qwen2", "qwen3"))
    kv_heads = rng.choice((1, 2, 3))
    heads = kv_heads * rng.choice((1, 2, 3, 5, 9))
    # One in four has blocks of 256 weights too. heads · head_width must be a multiple of a block.
    unit = 256 if number % 4 == 3 else 32
    if unit == 256:
        heads, kv_heads = 4, 2
    head_width = rng.choice([width for width in range(2, 130, 2) if heads * width % unit == 0])
    types = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
    types += ["Q4_K", "Q5_K", "Q6_K"] * (2 if unit == 256 else 0)
    width = unit * rng.choice((1, 2, 3) if unit == 256 else (1, 2, 3, 7, 9))
    ff_width = unit * rng.choice((1, 2) if unit == 256 else (1, 3, 8, 9, 17))
    parts = (
        "token_embd",
        "output",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    )
    return maker().TinyModel(
        name=f"random-{number}",
        architecture=architecture,
        default="Q4_0",
        width=width,
        ff_width=ff_width,
        layers=rng.choice((1, 2)),
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        n_rot=2 * rng.randrange(1, head_width // 2 + 1),
        n_ctx=330,
        tied=rng.random() < 0.5,
        types={part: rng.choice(types) for part in parts},
    )


@pytest.mark.parametrize("number", range(8))
def test_every_path_gives_the_reference_engines_roots_on_a_random_model(number: int, tmp_path: Path) -> None:
    path = tmp_path / f"random-{number}.gguf"
    path.write_bytes(maker().build_model(random_model(number)))
    reference = ReferenceEngine(path)
    rng = random.Random(f"prompts {number}")
    words = [
        "what",
        "is",
        "the",
        "meaning",
        "of",
        "the",
        "thing",
        "and",
        "you",
        "are",
        "in",
        "the",
        "end",
        "é",
        "🦙",
        ",.?",
    ]
    cases = []
    for length in (0, 3, 20, 75 if number % 4 else 290):
        prompt = " ".join(rng.choice(words) for _ in range(length))
        while len(reference.tokenize(prompt)) > length + 2:
            prompt = prompt[:-1]
        params = SamplingParams(
            temperature=rng.choice((0, 10_000, 700_000, 1_000_000, 10_000_000)),
            top_p=rng.choice((0, 1, 400_000, 950_000, 999_999, 1_000_000)),
            top_k=rng.choice((0, 1, 7, 317, 318, 10_000)),
            min_p=rng.choice((0, 1, 20_000, 1_000_000)),
            repeat_penalty=rng.choice((500_000, 1_000_000, 1_300_000)),
            max_tokens=rng.choice((1, 5, 12)),
            seed=rng.getrandbits(64),
            stop=rng.choice(((), ("th",))),
        )
        leaves, result = reference.traced(prompt, params, salt=SALT)
        cases.append(Expected(prompt, params, result, leaves.unit_roots()))
    check_every_path(path, cases, SALT)
