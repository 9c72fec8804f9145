"""The llama.cpp engine: the same port, repeatable, near the reference, and statistically right (spec 07)."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from engine_models import maker, model_bytes, quality

from aos.engine import load_engine
from aos.engine.forward import Context, tail_logits
from aos.engine.llama_cpp import LlamaCppEngine
from aos.engine.reference import ReferenceEngine
from aos.engine.state import StateLeaves
from aos.errors import ConfigError, InvalidMessage, RuleViolation
from aos.ports import Engine, SamplingParams, TokenEvent

SALT = bytes(32)
PROMPT = "what is the"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(model_bytes("tiny-f16"))
    return path


@pytest.fixture(scope="module")
def engine(path: Path) -> LlamaCppEngine:
    return LlamaCppEngine(path)


@pytest.fixture(scope="module")
def reference(path: Path) -> ReferenceEngine:
    return ReferenceEngine(path)


def logprobs(reference: ReferenceEngine, prompt: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    context = Context(reference._model, reference._cos, reference._sin)
    residuals, _ = context.extend(reference.tokenize(prompt), StateLeaves(reference._model.hyper.n_layers))
    logits = tail_logits(reference._model, residuals[-1:])[0].astype(np.float64)
    shifted: np.ndarray[tuple[int], np.dtype[np.float64]] = logits - logits.max()
    return shifted - math.log(np.exp(shifted).sum())


def test_it_is_the_same_port_but_not_canonical(engine: LlamaCppEngine, reference: ReferenceEngine) -> None:
    port: Engine = engine
    assert not port.canonical
    assert port.profile.startswith("llama.cpp/")
    assert port.model_id == reference.model_id
    assert port.n_ctx == reference.n_ctx
    assert port.tokenize("a</s>b") == reference.tokenize("a</s>b")
    run = port.generate(PROMPT, SamplingParams(max_tokens=2), salt=SALT)
    assert run.state_root is None
    with pytest.raises(RuleViolation) as caught:
        port.replay(PROMPT, run.tokens, SamplingParams(), salt=SALT)
    assert caught.value.code == "engine.not_canonical"


def test_the_same_seed_gives_the_same_run_whatever_ran_before(engine: LlamaCppEngine, path: Path) -> None:
    params = SamplingParams(max_tokens=20, seed=2**63 + 5)
    first = engine.generate(PROMPT, params, salt=SALT)
    engine.generate(PROMPT + " end of the", SamplingParams(max_tokens=7, seed=1), salt=SALT)
    assert engine.generate(PROMPT, params, salt=SALT) == first
    assert LlamaCppEngine(path).generate(PROMPT, params, salt=SALT) == first
    others = {
        engine.generate(PROMPT, SamplingParams(max_tokens=20, seed=s), salt=SALT).tokens
        for s in (5, 6, 2**64 - 1)
    }
    assert len({*others, first.tokens}) == 4


def test_greedy_text_and_the_repetition_penalty_agree_with_the_reference(
    engine: LlamaCppEngine, reference: ReferenceEngine
) -> None:
    for prompt in (PROMPT, "of and", ""):
        for penalty in (1_000_000, 1_500_000):
            params = SamplingParams(temperature=0, repeat_penalty=penalty, max_tokens=8)
            ours, theirs = (e.generate(prompt, params, salt=SALT) for e in (reference, engine))
            assert (ours.tokens, ours.text) == (theirs.tokens, theirs.text)


def test_first_tokens_are_distributed_as_the_softmax(
    engine: LlamaCppEngine, reference: ReferenceEngine
) -> None:
    count = 1500
    probabilities = np.exp(logprobs(reference, PROMPT))
    counts = np.zeros(probabilities.size)
    for seed in range(count):
        counts[engine.generate(PROMPT, SamplingParams(max_tokens=1, seed=seed), salt=SALT).tokens[0]] += 1
    large = probabilities * count >= 5
    observed = [*counts[large], counts[~large].sum()]
    expected = [*(probabilities[large] * count), probabilities[~large].sum() * count]
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    degrees = len(observed) - 1
    assert degrees >= 5
    # Wilson and Hilferty's bound for one exceedance in about 30,000 (four standard deviations).
    assert statistic < degrees * (1 - 2 / (9 * degrees) + 4 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize(
    ("members", "largest_kept"),
    [({"top_k": 3}, 3), ({"top_p": 600_000}, None), ({"min_p": 300_000}, None), ({"top_p": 0}, 1)],
)
def test_truncating_parameters_keep_what_the_reference_keeps(
    engine: LlamaCppEngine, reference: ReferenceEngine, members: dict[str, int], largest_kept: int | None
) -> None:
    probabilities = np.exp(logprobs(reference, PROMPT))
    order = np.argsort(-probabilities)
    if largest_kept is None and "min_p" in members:
        largest_kept = int((probabilities >= 0.3 * probabilities.max()).sum())
    elif largest_kept is None:
        largest_kept = int((np.cumsum(probabilities[order]) < 0.6).sum()) + 1
    seen = {
        engine.generate(PROMPT, SamplingParams(max_tokens=1, seed=seed, **members), salt=SALT).tokens[0]
        for seed in range(120)
    }
    assert seen == set(order[:largest_kept].tolist())


def test_temperature_flattens_and_sharpens(engine: LlamaCppEngine) -> None:
    def distinct(temperature: int) -> int:
        params = (SamplingParams(temperature=temperature, max_tokens=1, seed=s) for s in range(60))
        return len({engine.generate(PROMPT, p, salt=SALT).tokens for p in params})

    assert distinct(10_000) == 1
    assert distinct(10_000_000) > distinct(1_000_000)


def test_stop_strings_streaming_and_limits_are_the_ports(engine: LlamaCppEngine) -> None:
    params = SamplingParams(temperature=3_000_000, max_tokens=30, seed=4)
    free = engine.generate(PROMPT, params, salt=SALT)
    stop = free.text[4:6]
    events: list[TokenEvent] = []
    run = engine.generate(
        PROMPT,
        SamplingParams(temperature=3_000_000, max_tokens=30, seed=4, stop=(stop,)),
        salt=SALT,
        on_token=events.append,
    )
    assert run.text == free.text[: free.text.index(stop)]
    assert run.finish_reason == "stop"
    assert run.tokens == free.tokens[: len(run.tokens)]
    assert "".join(event.text for event in events) == run.text
    cancelled = engine.generate(PROMPT, params, salt=SALT, cancelled=lambda: True)
    assert (cancelled.tokens, cancelled.finish_reason) == ((), "cancelled")


@pytest.mark.parametrize(
    ("prompt", "params", "salt", "code"),
    [
        ("a" * 2000, SamplingParams(), SALT, "engine.prompt_too_long"),
        ("a", SamplingParams(temperature=1), SALT, "engine.params"),
        ("a", SamplingParams(), b"", "engine.salt"),
        ("\ud800", SamplingParams(), SALT, "tokenizer.text"),
    ],
)
def test_what_the_reference_refuses_is_refused(
    engine: LlamaCppEngine, prompt: str, params: SamplingParams, salt: bytes, code: str
) -> None:
    with pytest.raises(InvalidMessage) as caught:
        engine.generate(prompt, params, salt=salt)
    assert caught.value.code == code


def test_threads_are_limited_and_broken_files_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as config:
        load_engine(path, kind="llama.cpp", threads=0)
    assert config.value.code == "engine.threads"
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model_bytes("tiny-f16").replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
    with pytest.raises(InvalidMessage) as caught:
        load_engine(broken, kind="llama.cpp")
    assert caught.value.code == "engine.load"


# A loud model's logits are no measure, and llama.cpp turns all dimensions of qwen3's heads.
@pytest.mark.parametrize(
    "name",
    [m.name for m in maker().MODELS if "trap" not in m.name and m.n_rot == m.head_width],
)
def test_every_type_and_architecture_gives_nearly_llama_cpps_logits(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes(name))
    reference, other = ReferenceEngine(path), LlamaCppEngine(path)
    tokens = list(reference.tokenize("what is the end of it"))
    ours = quality().reference_logits(reference, tokens)
    theirs = quality().llama_cpp_logits(other, tokens, ours.shape[1])
    # 8-bit activations differ by up to 3 %; a wrong pair, bias, norm or bit is of the size of the logits.
    assert quality().distance(ours, theirs) < 0.06 * quality().distance(ours, 0 * ours)


@pytest.mark.parametrize("name", [m.name for m in maker().MODELS if "trap" not in m.name])
def test_every_type_and_architecture_gives_nearly_the_exact_logits(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes(name))
    tokens = [1, *range(260, 269)]
    exact = quality().ExactModel(path).logits(tokens)
    ours = quality().reference_logits(ReferenceEngine(path), tokens)
    assert quality().distance(ours, exact) < 0.05 * quality().distance(exact, 0 * exact)


def test_ids_of_random_text_are_llama_cpps(engine: LlamaCppEngine) -> None:
    rng = random.Random(1)
    alphabet = "abcdehinorstw  .,?\n\t\N{LLAMA}\N{CJK UNIFIED IDEOGRAPH-4F60}é0<>/s\N{LOWER ONE EIGHTH BLOCK}"
    texts = ["".join(rng.choice(alphabet) for _ in range(rng.randrange(60))) for _ in range(300)]
    for text in [*texts, "</s>", "<s><unk>", "<0x41>"]:
        body = {"content": text, "add_special": True, "parse_special": False}
        assert engine.tokenize(text) == tuple(engine._server.post("/tokenize", body)["tokens"]), repr(text)
