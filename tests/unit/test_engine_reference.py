"""The reference engine: one result in every split, honest replays, limits, traps, text (spec 07)."""

import ctypes
import platform
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from engine_models import model_bytes

from aos.core.arithmetic.floats import F16, F32
from aos.engine import load_engine
from aos.engine.forward import Context, Op, tail_logits
from aos.engine.gguf import parse_gguf
from aos.engine.llama import Model
from aos.engine.reference import ReferenceEngine
from aos.engine.text import OutputText
from aos.errors import ConfigError, InvalidMessage
from aos.ports import Engine, SamplingParams, TokenEvent

SALT = bytes(32)
PROMPT = "what is the meaning of the end"
PARAMS = SamplingParams(max_tokens=12, seed=5)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ReferenceEngine:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(model_bytes("tiny-q4_0"))
    return ReferenceEngine(path)


@pytest.fixture(scope="module")
def trap_engine(tmp_path_factory: pytest.TempPathFactory) -> ReferenceEngine:
    path = tmp_path_factory.mktemp("model") / "tiny-trap.gguf"
    path.write_bytes(model_bytes("tiny-trap"))
    return ReferenceEngine(path)


class Recorder:
    """A sink that keeps the bytes of every unit."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], bytes] = {}

    def embedding(self, first: int, residual: F32) -> None:
        for position, row in enumerate(residual, start=first):
            self.rows[position, 0] = row.tobytes()

    def layer(self, first: int, index: int, residual: F32, keys: F16, values: F16) -> None:
        for position, parts in enumerate(zip(residual, keys, values, strict=True), start=first):
            self.rows[position, index + 1] = b"".join(part.tobytes() for part in parts)


def compute(
    engine: ReferenceEngine, tokens: Sequence[int], split: Sequence[int]
) -> tuple[dict[tuple[int, int], bytes], bytes]:
    context = Context(engine._model, engine._cos, engine._sin)
    recorder = Recorder()
    at, residuals = 0, []
    for count in split:
        rows, trap = context.extend(tokens[at : at + count], recorder)
        assert trap is None
        residuals.append(rows)
        at += count
    assert at == len(tokens)
    return recorder.rows, tail_logits(engine._model, np.concatenate(residuals)).tobytes()


@pytest.mark.parametrize(
    "name",
    [
        "tiny-q4_0",
        "tiny-q8_0",
        "tiny-f16",
        "tiny-mixed",
        "tiny-q5_1",
        "tiny-llama-2",
        "tiny-qwen2",
        "tiny-qwen3-partial",
    ],
)
def test_every_split_of_the_positions_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes(name))
    engine = ReferenceEngine(path)
    rng = random.Random(name)
    count = 280 if name == "tiny-q4_0" else 40
    tokens = [1, *(rng.randrange(3, engine._model.hyper.n_vocab) for _ in range(count - 1))]
    whole = compute(engine, tokens, [count])
    splits = [[1] * count, [count - 1, 1], [1, count - 1], [16] * (count // 16) + [count % 16]]
    cuts = sorted(rng.sample(range(1, count), 5))
    splits.append([b - a for a, b in zip([0, *cuts], [*cuts, count], strict=True)])
    for split in splits:
        assert compute(engine, tokens, [n for n in split if n]) == whole


def test_a_large_model_that_unpacks_on_the_fly_gives_the_same_bits(
    engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine.generate(PROMPT, PARAMS, salt=SALT)
    monkeypatch.setattr("aos.engine.llama.KEEP_UNPACKED_BELOW", 0)
    data = model_bytes("tiny-q4_0")
    small = Model(parse_gguf(memoryview(data), path=Path("tiny.gguf")))
    monkeypatch.setattr(engine, "_model", small)
    assert engine.generate(PROMPT, PARAMS, salt=SALT) == expected


def test_replaying_an_honest_run_gives_the_same_result(engine: ReferenceEngine) -> None:
    for params in (
        PARAMS,
        SamplingParams(temperature=0, max_tokens=5),
        SamplingParams(
            temperature=700_000, top_p=900_000, top_k=50, repeat_penalty=1_200_000, max_tokens=30, seed=9
        ),
    ):
        result = engine.generate(PROMPT, params, salt=SALT)
        assert engine.replay(PROMPT, result.tokens, params, salt=SALT) == result


def test_replay_ends_at_the_first_token_that_this_engine_would_not_choose(engine: ReferenceEngine) -> None:
    honest = engine.generate(PROMPT, PARAMS, salt=SALT)
    for at in (0, 5, len(honest.tokens) - 1):
        claimed = list(honest.tokens)
        claimed[at] = (claimed[at] + 1) % 300
        result = engine.replay(PROMPT, claimed, PARAMS, salt=SALT)
        assert result.tokens == honest.tokens[: at + 1]
        assert (result.state_root == honest.state_root) == (at == len(honest.tokens) - 1)


def test_a_claim_that_stops_early_or_late_is_not_what_replay_gives(engine: ReferenceEngine) -> None:
    honest = engine.generate(PROMPT, PARAMS, salt=SALT)
    short = engine.replay(PROMPT, honest.tokens[:4], PARAMS, salt=SALT)
    assert short.tokens == honest.tokens[:5]
    assert short.finish_reason == "cancelled"
    assert engine.replay(PROMPT, (*honest.tokens, 7, 7), PARAMS, salt=SALT) == honest
    assert engine.replay(PROMPT, (), PARAMS, salt=SALT).tokens == honest.tokens[:1]


@pytest.mark.parametrize("token", [-1, 10**9, True, "1"])
def test_a_claimed_token_outside_the_vocabulary_is_refused(engine: ReferenceEngine, token: object) -> None:
    with pytest.raises(InvalidMessage) as caught:
        engine.replay(PROMPT, (token,), PARAMS, salt=SALT)  # type: ignore[arg-type]
    assert caught.value.code == "engine.token"


def test_a_cancelled_run_replays_as_a_cancelled_run(engine: ReferenceEngine) -> None:
    events: list[TokenEvent] = []
    run = engine.generate(
        PROMPT, PARAMS, salt=SALT, on_token=events.append, cancelled=lambda: len(events) == 3
    )
    assert (run.finish_reason, len(run.tokens)) == ("cancelled", 3)
    assert engine.replay(PROMPT, run.tokens, PARAMS, salt=SALT, cancelled=True) == run
    early = engine.generate(PROMPT, PARAMS, salt=SALT, cancelled=lambda: True)
    assert (early.finish_reason, early.tokens, early.text) == ("cancelled", (), "")
    assert engine.replay(PROMPT, (), PARAMS, salt=SALT, cancelled=True) == early


def test_everything_that_the_header_names_changes_the_state_root(engine: ReferenceEngine) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=3)
    same_tokens = [
        engine.generate(PROMPT, greedy, salt=SALT),
        engine.generate(PROMPT, greedy, salt=bytes(31) + b"\1"),
        engine.generate(PROMPT, SamplingParams(temperature=0, max_tokens=3, seed=1), salt=SALT),
        engine.generate(PROMPT, SamplingParams(temperature=0, max_tokens=3, stop=("never",)), salt=SALT),
        engine.generate(PROMPT, SamplingParams(temperature=0, max_tokens=3, top_k=9), salt=SALT),
    ]
    assert len({run.tokens for run in same_tokens}) == 1
    assert len({run.state_root for run in same_tokens}) == len(same_tokens)


def test_streamed_texts_joined_are_the_text(engine: ReferenceEngine) -> None:
    for seed in range(20):
        events: list[TokenEvent] = []
        params = SamplingParams(temperature=5_000_000, max_tokens=40, seed=seed, stop=("th", "e t"))
        run = engine.generate(PROMPT, params, salt=SALT, on_token=events.append)
        assert "".join(event.text for event in events) == run.text
        assert [event.token for event in events] == list(run.tokens)
        assert [event.index for event in events] == list(range(len(run.tokens)))
        assert "th" not in run.text
        assert "e t" not in run.text


def test_a_prompt_that_fills_the_context_is_refused_and_one_less_runs(engine: ReferenceEngine) -> None:
    piece = "z"
    room = engine.n_ctx - len(engine.tokenize(""))
    fits = piece * (room - 2)
    assert len(engine.tokenize(fits)) == engine.n_ctx - 1
    run = engine.generate(fits, SamplingParams(max_tokens=50), salt=SALT)
    assert (len(run.tokens), run.finish_reason) in ((1, "length"), (1, "stop"))
    with pytest.raises(InvalidMessage) as caught:
        engine.generate(fits + piece, PARAMS, salt=SALT)
    assert caught.value.code == "engine.prompt_too_long"


@pytest.mark.parametrize("salt", [b"", bytes(31), bytes(33)])
def test_a_salt_of_another_length_is_refused(engine: ReferenceEngine, salt: bytes) -> None:
    with pytest.raises(InvalidMessage) as caught:
        engine.generate(PROMPT, PARAMS, salt=salt)
    assert caught.value.code == "engine.salt"


def test_a_trap_in_a_batch_is_the_one_that_single_steps_find(trap_engine: ReferenceEngine) -> None:
    tokens = list(trap_engine.tokenize("what is it? and ? then"))
    loud = trap_engine._model.hyper.n_vocab - 1
    first = tokens.index(loud)
    for split in (
        [len(tokens)],
        [1] * len(tokens),
        [first, len(tokens) - first],
        [first + 1, len(tokens) - first - 1],
    ):
        context = Context(trap_engine._model, trap_engine._cos, trap_engine._sin)
        at = 0
        for count in split:
            residuals, trap = context.extend(tokens[at : at + count], Recorder())
            at += count
            if trap is not None:
                break
        assert trap is not None
        assert (trap.position, trap.unit, trap.op) == (first, 1, Op.ATTN_NORM)
        assert len(residuals) == first - (at - count)


def test_a_trapped_run_ends_there_and_replays_to_the_same_root(trap_engine: ReferenceEngine) -> None:
    in_prompt = trap_engine.generate("is it? yes", PARAMS, salt=SALT)
    assert (in_prompt.finish_reason, in_prompt.tokens) == ("numeric_trap", ())
    assert trap_engine.replay("is it? yes", (), PARAMS, salt=SALT) == in_prompt
    other = trap_engine.generate("is it not? yes", PARAMS, salt=SALT)
    assert other.state_root != in_prompt.state_root


@contextmanager
def flushed_subnormals() -> Iterator[None]:
    """Sets FTZ and DAZ in this thread's MXCSR, as a library built with fast-math does."""
    libm = ctypes.CDLL("libm.so.6")
    saved, changed = ctypes.create_string_buffer(32), ctypes.create_string_buffer(32)
    libm.fegetenv(saved)
    libm.fegetenv(changed)
    mxcsr = int.from_bytes(changed.raw[28:32], "little") | 0x8040
    ctypes.memmove(changed, changed.raw[:28] + mxcsr.to_bytes(4, "little"), 32)
    libm.fesetenv(changed)
    try:
        yield
    finally:
        libm.fesetenv(saved)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="knows only glibc's x86-64 state"
)
def test_a_thread_that_flushes_subnormals_is_refused(engine: ReferenceEngine) -> None:
    with flushed_subnormals(), pytest.raises(ConfigError) as caught:
        engine.generate(PROMPT, PARAMS, salt=SALT)
    assert caught.value.code == "engine.flush_to_zero"
    assert engine.generate(PROMPT, PARAMS, salt=SALT).finish_reason == "length"


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_engine(tmp_path / "x.gguf", kind="fast")  # type: ignore[arg-type]
    assert caught.value.code == "engine.kind"


def test_the_reference_engine_is_an_engine(engine: ReferenceEngine) -> None:
    port: Engine = engine
    assert port.canonical
    assert port.profile == "aos-canonical/1"
    assert len(port.model_id) == 32


# --- text


def feed(pieces: Sequence[bytes], stop: Sequence[str]) -> tuple[list[str], OutputText]:
    text = OutputText(stop)
    released = []
    for piece in pieces:
        text.push(piece)
        released.append(text.release())
        if text.stopped:
            break
    text.finish()
    released.append(text.release())
    return released, text


def test_an_unfinished_character_is_held_back_until_its_last_byte() -> None:
    released, text = feed([b"a", b"\xf0\x9f", b"\xa6", b"\x99", b"b"], ())
    assert released == ["a", "", "", "\N{LLAMA}", "b", ""]
    assert text.text == "a\N{LLAMA}b"


def test_an_unfinished_character_at_the_end_becomes_a_replacement_character() -> None:
    assert feed([b"a", b"\xc3"], ())[1].text == "a\ufffd"
    assert feed([b"\xc3", b"x"], ())[1].text == "\ufffdx"


def test_a_possible_beginning_of_a_stop_string_is_held_back() -> None:
    released, text = feed([b"on", b"e EN", b"D", b" two"], ("END",))
    assert released == ["on", "e ", "", ""]
    assert (text.text, text.stopped) == ("one ", True)
    released, text = feed([b"one E", b"N", b"X"], ("END",))
    assert released == ["one ", "", "ENX", ""]


def test_the_stop_string_that_begins_first_cuts_the_text() -> None:
    assert feed([b"abc", b"def"], ("ef", "cd"))[1].text == "ab"
    assert feed([b"xaab"], ("aab", "ab"))[1].text == "x"


def test_text_does_not_depend_on_how_its_bytes_were_split() -> None:
    rng = random.Random(1)
    for _ in range(300):
        raw = bytes(
            rng.choice(b"ab\xc3\xa9\xf0\x9f\xa6\x99\xe2\x82\xac\xff") for _ in range(rng.randrange(30))
        )
        cuts = sorted(rng.randrange(len(raw) + 1) for _ in range(4))
        pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        released, text = feed(pieces, ())
        assert text.text == raw.decode("utf-8", "replace") == "".join(released)
