"""Runs that are computed together, that take over computed prefixes and that lose neighbours have the bits that
they have alone (spec 07: a position is computed alone), on every instruction set and number of threads.
"""

import gc
import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from engine_models import VECTORS, maker, model_bytes

from aos.engine.batching import BatchingEngine, Limits
from aos.engine.canonical import Claim, Run
from aos.engine.native import PAGE_POSITIONS, NativeEngine, NativeRun, instruction_sets
from aos.engine.prefixes import PrefixCache
from aos.engine.reference import ReferenceEngine
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable
from aos.ports import Generation, SamplingParams, TokenEvent

SALT = bytes(range(32))
LONG = "what is the meaning of the thing and you are in the end " * 25
GREEDY = SamplingParams(temperature=0, max_tokens=4)
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Case:
    prompt: str
    params: SamplingParams
    expected: Generation


def vector_cases(name: str) -> tuple[bytes, list[Case]]:
    vector: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    cases = [
        Case(
            case["prompt"],
            maker().sampling_params(case["params"]),
            Generation(
                prompt_tokens=tuple(case["prompt_tokens"]),
                tokens=tuple(case["tokens"]),
                text=case["text"],
                finish_reason=case["finish_reason"],
                state_root=bytes.fromhex(case["state_root"]),
            ),
        )
        for case in vector["cases"]
        if "error" not in case and case["finish_reason"] != "cancelled"
    ]
    assert cases
    return bytes.fromhex(vector["salt"]), cases


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    directory = tmp_path_factory.mktemp("models")

    def path(name: str) -> Path:
        file = directory / f"{name}.gguf"
        if not file.exists():
            file.write_bytes(model_bytes(name))
        return file

    return path


@pytest.fixture(scope="module")
def long_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context is several pages."""
    path = tmp_path_factory.mktemp("models") / "long.gguf"
    (model,) = [model for model in maker().MODELS if model.name == "tiny-q4_0"]
    path.write_bytes(maker().build_model(replace(model, name="long", n_ctx=1200)))
    return path


@pytest.fixture(scope="module")
def alone(long_path: Path) -> NativeEngine:
    return NativeEngine(long_path)


@pytest.fixture
def batching(long_path: Path) -> Iterator[BatchingEngine]:
    engine = BatchingEngine(NativeEngine(long_path), Limits(runs=4, waiting=64, pages=16))
    yield engine
    engine.close()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    done = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError(f"not within {PATIENCE_S:g} s: {what}")


# --- one step of many runs


class Schedule:
    """Joins, leaves, groups of positions and choices at random, over one batch."""

    def __init__(self, engine: NativeEngine, cases: list[Case], salt: bytes, seed: str) -> None:
        self.rng = random.Random(seed)
        self.engine, self.cases, self.salt = engine, cases, salt
        self.batch = engine.batch()
        self.open: list[tuple[Case, Run, NativeRun]] = []
        self.replays = 0

    def join(self, case: Case) -> None:
        claim = None
        if self.rng.random() < 0.3:
            claim = Claim(case.expected.tokens, cancelled=False)
            self.replays += 1
        run = self.engine.run(case.prompt, case.params, salt=self.salt, claim=claim)
        native = self.batch.begin(run.prompt, run.params)
        run.start(native)
        self.open.append((case, run, native))

    def step(self) -> None:
        chosen = [entry for entry in self.open if self.rng.random() < 0.7] or self.open[:1]
        parts = [
            (run, native, run.take(self.rng.choice((1, 2, 5, 16, 33, 200)))) for _, run, native in chosen
        ]
        computing = [part for part in parts if part[2]]
        if computing:
            self.batch.extend([(native, tokens) for _, native, tokens in computing])
            for run, _, _ in computing:
                run.computed()
        choosing = [(run, native) for run, native, tokens in parts if not tokens]
        if choosing:
            tokens = self.batch.choose([native for _, native in choosing])
            for (run, _), token in zip(choosing, tokens, strict=True):
                run.chosen(token)
        for case, run, native in list(self.open):
            if run.ended:
                assert run.result() == case.expected
                self.open.remove((case, run, native))

    def run(self) -> None:
        waiting = self.rng.sample(self.cases, len(self.cases))
        while waiting or self.open:
            while waiting and (not self.open or self.rng.random() < 0.5):
                self.join(waiting.pop())
            self.step()
            if len(self.open) > 2 and self.rng.random() < 0.1:
                # One leaves in the middle; its neighbours do not notice. It comes back from the beginning.
                case, _, _ = self.open.pop(self.rng.randrange(len(self.open)))
                waiting.append(case)


@pytest.mark.parametrize("name", ["tiny-mixed", "tiny-llama-3", "tiny-qwen2", "tiny-trap", "tiny-qwen3-trap"])
def test_a_random_schedule_gives_the_roots_of_the_vectors(name: str, paths: Callable[[str], Path]) -> None:
    salt, cases = vector_cases(name)
    for isa in instruction_sets():
        for threads in (1, 2, 5):
            engine = NativeEngine(paths(name), isa=isa, threads=threads, alone_below=0)
            short = [case for case in cases if threads == 1 or len(case.expected.prompt_tokens) <= 100]
            Schedule(engine, short, salt, f"{name}{isa}{threads}").run()
            gc.collect()
            assert engine.pages_in_use == 0


def test_a_trap_in_one_run_leaves_the_others_of_its_step_alone(paths: Callable[[str], Path]) -> None:
    salt, cases = vector_cases("tiny-trap")
    engine = NativeEngine(paths("tiny-trap"))
    for prompt in ("the meaning", "you are in the end", "b"):
        params = replace(GREEDY, max_tokens=1)
        cases.append(Case(prompt, params, engine.generate(prompt, params, salt=salt)))
    assert {case.expected.finish_reason for case in cases} > {"numeric_trap"}
    batch = engine.batch()
    runs = [engine.run(case.prompt, case.params, salt=salt) for case in cases]
    natives = [batch.begin(run.prompt, run.params) for run in runs]
    for run, native in zip(runs, natives, strict=True):
        run.start(native)
    while open_runs := [(run, native) for run, native in zip(runs, natives, strict=True) if not run.ended]:
        computing = [(run, native, run.take(64)) for run, native in open_runs if run.left_to_compute]
        if computing:
            batch.extend([(native, tokens) for _, native, tokens in computing])
            for run, _, _ in computing:
                run.computed()
        choosing = [(run, native) for run, native in open_runs if not run.ended and not run.left_to_compute]
        if choosing:
            tokens = batch.choose([native for _, native in choosing])
            for (run, _), token in zip(choosing, tokens, strict=True):
                run.chosen(token)
    assert [run.result() for run in runs] == [case.expected for case in cases]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (lambda batch, run, other: batch.extend([(run, [1]), (run, [1])]), "engine.step"),
        (lambda batch, run, other: batch.extend([]), "engine.step"),
        (lambda batch, run, other: batch.extend([(run, [])]), "engine.step"),
        (lambda batch, run, other: batch.extend([(run, [1] * 257)]), "engine.step"),
        (lambda batch, run, other: batch.extend([(run, [10**6])]), "engine.token"),
        (lambda batch, run, other: batch.extend([(other, [1])]), "engine.step"),
        (lambda batch, run, other: batch.choose([run]), "engine.step"),
        (lambda batch, run, other: batch.choose([]), "engine.step"),
        (lambda batch, run, other: run.adopt([], 1), "engine.step"),
        (lambda batch, run, other: run.adopt([], 3), "engine.step"),
        (lambda batch, run, other: run.page(0), "engine.step"),
        (lambda batch, run, other: run.reserve(10**9), "engine.step"),
    ],
)
def test_a_step_that_is_not_one_is_refused_whole_and_changes_nothing(
    bad: Callable[..., object], code: str, alone: NativeEngine
) -> None:
    batch = alone.batch()
    run = batch.begin([1, 5, 9], GREEDY)
    other = alone.batch().begin([1, 5, 9], GREEDY)
    with pytest.raises(AOSError) as refused:
        bad(batch, run, other)
    assert refused.value.code == code
    batch.extend([(run, [1, 5, 9])])
    (token,) = batch.choose([run])
    other.extend([1, 5, 9])
    assert token == other.choose()
    assert run.leaves(3).positions == other.leaves(3).positions


# --- taking a prefix over


def test_a_run_on_a_taken_over_prefix_of_any_length_has_the_bits_of_a_cold_one(long_path: Path) -> None:
    for isa in instruction_sets():
        engine = NativeEngine(long_path, isa=isa, threads=2, alone_below=0)
        cold = engine.generate(LONG, GREEDY, salt=SALT)
        n = len(cold.prompt_tokens)
        assert n > 2 * PAGE_POSITIONS
        batch = engine.batch()
        # What was computed for another continuation, and with an output of its own, serves as well.
        donor = engine.run(LONG, replace(GREEDY, max_tokens=8), salt=SALT)
        native = batch.begin(donor.prompt, donor.params)
        donor.start(native)
        while donor.left_to_compute:
            native.extend(donor.take(100))
            donor.computed()
        for positions in (1, 15, 16, 17, 255, 256, 257, 2 * PAGE_POSITIONS, n - 1):
            pages = [native.page(index) for index in range(-(-positions // PAGE_POSITIONS))]
            run = engine.run(LONG, GREEDY, salt=SALT)
            taker = batch.begin(run.prompt, run.params)
            taker.adopt(pages, positions)
            run.start(taker, positions)
            while not run.ended:
                if tokens := run.take(256):
                    taker.extend(tokens)
                    run.computed()
                else:
                    run.chosen(taker.choose())
            assert run.result() == cold, (isa, positions)
        while not donor.ended:
            if tokens := donor.take(256):
                native.extend(tokens)
                donor.computed()
            else:
                donor.chosen(native.choose())
        assert donor.result() == engine.generate(LONG, donor.params, salt=SALT), "takers wrote into its pages"


def test_the_cache_finds_the_longest_prefix_and_only_within_its_scope(alone: NativeEngine) -> None:
    batch = alone.batch()
    tokens = [3 + at % 300 for at in range(600)]
    run = batch.begin(tokens, GREEDY)
    for at in range(0, 600, 200):
        run.extend(tokens[at : at + 200])
    cache = PrefixCache()
    cache.release(cache.add(b"a", tokens, run.page))
    assert cache.pages == 3
    for asked, positions, pages in (
        (tokens, 600, 3),
        (tokens[:599], 599, 3),
        (tokens[:300] + [1] * 300, 300, 2),
        (tokens[:10], 10, 1),
        ([2, *tokens], 0, 0),
    ):
        found = cache.find(b"a", asked)
        cache.release(found)
        assert (found.positions, len(found.pages)) == (positions, pages)
    assert cache.find(b"b", tokens).positions == 0
    held = cache.find(b"a", tokens[:256])
    assert [cache.evict(), cache.evict()] == [True, True]
    assert not cache.evict(), "the first page is held"
    cache.release(held)
    assert cache.evict()
    assert cache.pages == 0


# --- many callers


def test_callers_at_the_same_time_get_what_the_reference_engine_gives_alone(
    paths: Callable[[str], Path],
) -> None:
    salt, cases = vector_cases("tiny-llama-2")
    reference = ReferenceEngine(paths("tiny-llama-2"))
    bad = replace(cases[0].params, temperature=-1)
    for threads in (1, 3):
        engine = BatchingEngine(NativeEngine(paths("tiny-llama-2"), threads=threads), Limits(runs=5))
        scoped = engine.scoped(b"s")

        def ask(number: int, engine: BatchingEngine = engine, scoped: Any = scoped) -> None:
            case = cases[number % len(cases)]
            taken = scoped if number % 2 else engine
            if number % 5 == 4:
                with pytest.raises(InvalidMessage):
                    taken.generate(case.prompt, bad, salt=salt)
            elif number % 7 == 6:
                assert (
                    taken.replay(case.prompt, case.expected.tokens, case.params, salt=salt) == case.expected
                )
            else:
                events: list[TokenEvent] = []
                result = taken.generate(case.prompt, case.params, salt=salt, on_token=events.append)
                assert result == case.expected
                assert tuple(event.token for event in events) == result.tokens
                if result.finish_reason != "numeric_trap":
                    assert "".join(event.text for event in events) == result.text

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(ask, range(6 * len(cases))))
        engine.close()
    assert reference.generate(cases[0].prompt, cases[0].params, salt=salt) == cases[0].expected


def test_a_shared_prefix_is_used_within_a_scope_and_never_outside(
    batching: BatchingEngine, alone: NativeEngine
) -> None:
    cold = alone.generate(LONG, GREEDY, salt=SALT)
    known = len(cold.prompt_tokens) - 1

    def reused(ask: Any) -> int:
        before = batching.reused_positions
        assert ask.generate(LONG, GREEDY, salt=SALT) == cold
        return batching.reused_positions - before

    assert reused(batching.scoped(b"ann")) == 0
    assert reused(batching.scoped(b"ann")) == known
    assert reused(batching.scoped(b"bob")) == 0
    assert reused(batching) == 0
    assert reused(batching) == 0, "what is asked outside of a scope is not kept"
    longer = LONG + "and more"
    assert batching.scoped(b"ann").generate(longer, GREEDY, salt=SALT) == alone.generate(
        longer, GREEDY, salt=SALT
    )


def test_a_conversation_continues_on_what_was_generated(
    batching: BatchingEngine, alone: NativeEngine
) -> None:
    first = batching.scoped(b"ann").generate(LONG, replace(GREEDY, max_tokens=30), salt=SALT)
    known = len(first.prompt_tokens) + len(first.tokens) - 1
    second = LONG + first.text + " and then the end"
    before = batching.reused_positions
    assert batching.scoped(b"ann").generate(second, GREEDY, salt=SALT) == alone.generate(
        second, GREEDY, salt=SALT
    )
    common = len(first.prompt_tokens) - 1
    assert common <= batching.reused_positions - before <= known


def test_a_tiny_cap_evicts_and_waits_but_changes_nothing(long_path: Path, alone: NativeEngine) -> None:
    native = NativeEngine(long_path)
    engine = BatchingEngine(native, Limits(runs=4, waiting=64, pages=3))
    prompts = [f"{'abcdefgh'[i]} {LONG}"[: 1100 + 40 * i] for i in range(8)]
    expected = [alone.generate(prompt, GREEDY, salt=SALT) for prompt in prompts]

    def ask(number: int) -> None:
        scoped = engine.scoped(bytes([number % 2]))
        assert scoped.generate(prompts[number % 8], GREEDY, salt=SALT) == expected[number % 8]
        assert native.pages_in_use <= 3

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))
    with pytest.raises(RuleViolation) as refused:
        engine.generate("a", replace(GREEDY, max_tokens=1100), salt=SALT)
    assert refused.value.code == "engine.memory_limit"
    engine.close()


def test_a_thousand_requests_at_once_are_answered_or_told_to_come_back(long_path: Path) -> None:
    engine = BatchingEngine(NativeEngine(long_path), Limits(runs=8, waiting=100, pages=8))
    expected = engine.generate("what is the", GREEDY, salt=SALT)
    together = threading.Barrier(200)
    outcomes: list[str] = []

    def ask() -> None:
        together.wait()
        for _ in range(5):
            try:
                outcomes.append(
                    "same" if engine.generate("what is the", GREEDY, salt=SALT) == expected else "different"
                )
            except Unavailable as refused:
                outcomes.append(refused.code)

    threads = [threading.Thread(target=ask) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1000
    assert set(outcomes) <= {"same", "engine.busy"}
    assert outcomes.count("same") >= 100
    assert engine.unfinished == 0
    engine.close()


def test_a_storm_of_cancellations_leaves_neighbours_and_memory_alone(
    batching: BatchingEngine, alone: NativeEngine
) -> None:
    steady = replace(GREEDY, max_tokens=40)
    expected = alone.generate(LONG, steady, salt=SALT)
    rng = random.Random("storm")
    counts = [rng.randrange(1, 6) for _ in range(40)]

    def cancel_after(count: int) -> None:
        seen: list[TokenEvent] = []
        result = batching.generate(
            "you are in", steady, salt=SALT, on_token=seen.append, cancelled=lambda: len(seen) >= count
        )
        claim = alone.replay(
            "you are in", result.tokens, steady, salt=SALT, cancelled=result.finish_reason == "cancelled"
        )
        assert claim == result

    def give_up(count: int) -> None:
        def raise_late(event: TokenEvent) -> None:
            if event.index == count:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            batching.scoped(b"x").generate("in the end", steady, salt=SALT, on_token=raise_late)

    def broken(count: int) -> None:
        def fails() -> bool:
            raise LookupError("the caller's own")

        with pytest.raises(LookupError):
            batching.generate(LONG, steady, salt=SALT, cancelled=fails)

    def keep_on(count: int) -> None:
        assert batching.generate(LONG, steady, salt=SALT) == expected

    with ThreadPoolExecutor(10) as pool:
        jobs = [
            pool.submit(rng.choice((cancel_after, give_up, broken)) if i % 4 else keep_on, count)
            for i, count in enumerate(counts)
        ]
        for job in jobs:
            job.result()
    wait_for(lambda: batching.unfinished == 0, "who gave up is let go")


def test_a_prompt_is_cancelled_between_its_steps(long_path: Path) -> None:
    engine = BatchingEngine(NativeEngine(long_path))
    asked = iter([False, True])
    result = engine.generate(LONG, GREEDY, salt=SALT, cancelled=lambda: next(asked))
    assert (result.finish_reason, result.tokens) == ("cancelled", ())
    engine.close()


def test_a_closed_engine_ends_what_runs_and_keeps_nothing(long_path: Path) -> None:
    native = NativeEngine(long_path)
    engine = BatchingEngine(native, Limits(runs=1, waiting=2, pages=8))
    begun = threading.Event()
    codes: list[str] = []

    def ask() -> None:
        try:
            engine.generate("a", replace(GREEDY, max_tokens=1000), salt=SALT, on_token=lambda _: begun.set())
        except Unavailable as refused:
            codes.append(refused.code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(PATIENCE_S)
    engine.close()
    for thread in threads:
        thread.join()
    assert codes == ["engine.stopped"] * 2
    with pytest.raises(Unavailable):
        engine.generate("a", GREEDY, salt=SALT)
    gc.collect()
    assert native.pages_in_use == 0


@pytest.mark.parametrize("limits", [{"runs": 0}, {"runs": 257}, {"pages": 0}, {"waiting": -1}])
def test_limits_out_of_range_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Limits(**limits)
