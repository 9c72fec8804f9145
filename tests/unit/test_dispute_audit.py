"""The layer audit (docs/spec/14-audit.md): honest runs pass on both engines, every kind of cheat is seen when its layer is
drawn, no changed byte of a bundle is taken for the operator's.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dispute_runs import GREEDY, SALT, SAMPLED, model_file
from engine_models import REPOSITORY, maker
from simulated_run import Network

from aos.core.arithmetic.matmul import DenseMatrix
from aos.core.dispute import audit
from aos.core.dispute.audit import AuditBundle, AuditRequest, chance, detections
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.state_tree import trap_leaf
from aos.core.statements import ChatMessage, Params, ReceiptCore
from aos.engine import forward
from aos.engine.audit import Auditor, Difference, Disclosed, make_bundle
from aos.engine.canonical import CanonicalEngine
from aos.engine.gguf import read_gguf
from aos.engine.manifest import tensor_leaves
from aos.engine.native import NativeEngine
from aos.engine.reference import ReferenceEngine
from aos.engine.trace import KnownRun, known_run
from aos.errors import AOSError, InvalidMessage, Unavailable, VerificationError

PROMPT = "what is the meaning"
BEACON = bytes(range(100, 132))
MODEL = "tiny-q8_0"
EVERY = [model.name for model in maker().MODELS]
_CORE = Network().run().receipt.core


class Claim:
    """A run with what its receipt says and its answer file discloses."""

    def __init__(
        self,
        engine: CanonicalEngine,
        name: str,
        members: dict[str, Any],
        prompt: Any = PROMPT,
        path: Path | None = None,
    ) -> None:
        self.engine, self.path = engine, path or model_file(name)
        self.params = maker().sampling_params(members)
        run = engine.run(prompt, self.params, salt=SALT)
        engine._drive(run, None, None)
        self.text = run.result().text
        self.known: KnownRun = known_run(run, engine.manifest)
        self.prompt = prompt
        self.leaves, _ = tensor_leaves(read_gguf(self.path))

    @property
    def header(self) -> Any:
        return self.known.tree.header

    @property
    def core(self) -> ReceiptCore:
        header = self.header
        names = ("model_id", "prompt_tokens_hash", "tokens_hash", "response_hash", "n_prompt", "n_out")
        return replace(
            _CORE,
            state_root=self.known.tree.root,
            sampling_seed=str(header.sampling_seed),
            finish_reason=header.finish_reason,
            **{name: getattr(header, name) for name in names},
        )

    def request(self, layers: int, beacon: bytes = BEACON) -> AuditRequest:
        return AuditRequest(state_root=self.known.tree.root, beacon=beacon, layers=layers)

    def bundle(self, layers: int, engine: Any = None, beacon: bytes = BEACON) -> bytes:
        return make_bundle(self.known, engine or self.engine, self.leaves, self.request(layers, beacon))

    def committing(self, tree: StateTree) -> None:
        self.known = replace(self.known, tree=tree, run=replace(self.known.run, state_root=tree.root))

    def auditor(self, layers: int, *, native: bool, beacon: bytes = BEACON, data: bytes = b"") -> Auditor:
        request = self.request(layers, beacon)
        bundle = AuditBundle.read(data or self.bundle(layers, beacon=beacon), request, self.core.model_id)
        params = asdict(self.params)
        disclosed = Disclosed(
            core=self.core,
            nonce=SALT,
            params=Params(**{**params, "seed": str(params["seed"])}),
            prompt=self.prompt,
            tokens=tuple(self.known.tokens[self.header.n_prompt :]),
            text=self.text,
        )
        return Auditor(bundle, disclosed, self.path, native=native)


def test_a_conversation_passes_and_another_template_is_another_model(tmp_path: Path) -> None:
    demo = REPOSITORY / "models" / "aos-demo.Q8_0.gguf"
    engine = NativeEngine(demo)
    asked: Any = (ChatMessage(role="user", content="What is AI?"),)
    claim = Claim(engine, "aos-demo", {**SAMPLED, "top_k": 0}, asked, demo)
    auditor = claim.auditor(1, native=True)
    assert found(auditor) == {}
    raw = demo.read_bytes()
    template = auditor.file.metadata["tokenizer.chat_template"]
    assert isinstance(template, bytes)
    (tmp_path / "other.gguf").write_bytes(raw.replace(template, b" " + template[1:], 1))
    with pytest.raises(Unavailable, match="template"):
        Auditor(auditor.bundle, auditor.disclosed, tmp_path / "other.gguf")


def found(auditor: Auditor) -> dict[str, Difference | str]:
    """What an audit finds wrong, by part."""
    out: dict[str, Difference | str] = {}
    try:
        auditor.run_is_the_receipts()
    except AOSError as error:
        out["around"] = error.code
    parts: list[tuple[str, Callable[[], Difference | None]]] = [("embedding", auditor.embedding)]
    parts += [(f"layer {layer}", lambda layer=layer: auditor.layer(layer)) for layer in auditor.plan.layers]
    parts.append(("tail", auditor.tail))
    for name, check in parts:
        difference = check()
        if difference is not None:
            out[name] = difference
    return out


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("members", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_an_honest_run_passes_and_both_engines_open_the_same_bytes(
    name: str, members: dict[str, Any]
) -> None:
    path = model_file(name)
    claim = Claim(ReferenceEngine(path), name, members)
    layers = claim.known.run.graph.n_layers
    data = claim.bundle(layers)
    assert data == claim.bundle(layers, NativeEngine(path))
    for native in (True, False):
        assert found(claim.auditor(layers, native=native, data=data)) == {}


def test_more_than_a_page_of_positions_passes() -> None:
    name = "tiny-q4_0"
    prompt = (maker().LONG)[:900]
    claim = Claim(NativeEngine(model_file(name)), name, {"temperature": 800_000, "max_tokens": 4}, prompt)
    assert claim.header.n_positions > 256
    assert found(claim.auditor(2, native=True)) == {}


@pytest.mark.parametrize("name", ["tiny-trap", "tiny-qwen3-trap"])
def test_a_run_that_traps_passes_and_a_trap_hidden_or_made_up_does_not(name: str) -> None:
    claim = Claim(
        ReferenceEngine(model_file(name)), name, {"temperature": 0, "max_tokens": 8}, "is it so? yes"
    )
    assert claim.header.finish_reason == "numeric_trap"
    layers = claim.known.run.graph.n_layers
    for native in (True, False):
        assert found(claim.auditor(layers, native=native)) == {}
    unit, op = claim.known.trap or (0, 0)
    units = [list(each) for each in claim.known.tree.units]
    units[-1][unit] = trap_leaf(len(units) - 1, unit, op + 1)
    claim.committing(StateTree(claim.header, units))
    part = "tail" if unit > layers else f"layer {unit - 1}"
    assert part in found(claim.auditor(layers, native=True))


def test_a_run_of_no_positions_passes() -> None:
    claim = Claim(ReferenceEngine(model_file(MODEL)), MODEL, GREEDY)
    run = claim.engine.replayed(PROMPT, (), claim.params, salt=SALT, cancelled=True)
    claim.known, claim.text = known_run(run, claim.engine.manifest), ""
    assert claim.header.n_positions == 0
    assert found(claim.auditor(2, native=True)) == {}


def test_disclosed_tokens_that_are_not_the_runs_are_said_to_be_that() -> None:
    claim = Claim(ReferenceEngine(model_file(MODEL)), MODEL, GREEDY)
    auditor = claim.auditor(1, native=True)
    for tokens in (auditor.disclosed.tokens[:-1], (*auditor.disclosed.tokens, 5), ()):
        disclosed = replace(auditor.disclosed, tokens=tokens)
        other = Auditor(auditor.bundle, disclosed, model_file(MODEL), native=True)
        for check in (other.run_is_the_receipts, other.embedding, other.tail):
            with pytest.raises(VerificationError) as refused:
                check()
            assert refused.value.code == "around.tokens"
    disclosed = replace(auditor.disclosed, tokens=(5, *auditor.disclosed.tokens[1:]))
    other = Auditor(auditor.bundle, disclosed, model_file(MODEL), native=True)
    with pytest.raises(VerificationError, match="other tokens"):
        other.run_is_the_receipts()
    assert other.embedding() is not None


def test_a_value_that_is_not_finite_is_a_lie_where_it_did_not_trap() -> None:
    claim = Claim(ReferenceEngine(model_file(MODEL)), MODEL, GREEDY)
    auditor = claim.auditor(2, native=True)
    for unit in (0, 1, 2):
        rows = np.frombuffer(auditor.bundle.residuals[unit], dtype="<f4").copy()
        rows[-3] = np.inf
        auditor.bundle.residuals[unit] = rows.tobytes()
        difference = auditor.tail() if unit == 2 else auditor.layer(unit)
        assert difference is not None
        assert (difference.unit, difference.position) == (unit, claim.header.n_positions - 1)


def test_a_trap_made_up_or_left_out_is_seen() -> None:
    engine = ReferenceEngine(model_file(MODEL))
    for unit in (1, 2, 3):
        claim = Claim(engine, MODEL, GREEDY)
        units = [list(each) for each in claim.known.tree.units]
        units[-1][unit:] = [trap_leaf(len(units) - 1, unit, 11)]
        n_out = claim.header.n_out - 1
        tokens = claim.known.tokens[: claim.header.n_prompt + n_out]
        text = engine.replayed(
            PROMPT, tokens[claim.header.n_prompt :], claim.params, salt=SALT, cancelled=True
        )
        honest = text.header()
        claim.text = text.result().text
        header = replace(honest, finish_reason="numeric_trap", n_positions=len(units))
        claim.known = replace(claim.known, tokens=tokens)
        claim.committing(StateTree(header, units))
        seen = found(claim.auditor(2, native=unit != 2))
        (difference,) = seen.values()
        assert isinstance(difference, Difference)
        assert (difference.unit, difference.position) == (unit, len(units) - 1)


# --- cheats: each in an engine that believes its lie and computes on from it


def _norm(engine: ReferenceEngine, layer: int) -> None:
    norms = engine._model.layers[layer].ffn_norm.copy()
    norms[3] = norms[3] * np.float32(1.5)
    engine._model.layers[layer] = replace(engine._model.layers[layer], ffn_norm=norms)


def _skipped(engine: ReferenceEngine, layer: int) -> None:
    h, old = engine._model.hyper, engine._model.layers[layer]
    out = DenseMatrix(np.zeros((h.width, h.n_heads * h.head_width), dtype=np.float32))
    down = DenseMatrix(np.zeros((h.width, h.ff_width), dtype=np.float32))
    engine._model.layers[layer] = replace(old, attn_output=out, down=down)


def _keys(engine: ReferenceEngine, layer: int) -> None:
    layers = engine._model.layers
    layers[layer] = replace(layers[layer], k=layers[layer].v)


LAYER_CHEATS = {"a norm": _norm, "a skipped layer": _skipped, "keys from elsewhere": _keys}


@pytest.mark.parametrize("cheat", LAYER_CHEATS)
@pytest.mark.parametrize("layer", [0, 1])
def test_an_altered_layer_is_seen_exactly_when_it_is_drawn(cheat: str, layer: int) -> None:
    engine = ReferenceEngine(model_file(MODEL))
    LAYER_CHEATS[cheat](engine, layer)
    claim = Claim(engine, MODEL, SAMPLED)
    for number in range(8):
        beacon = bytes([number]) * 32
        auditor = claim.auditor(1, native=number % 2 == 0, beacon=beacon)
        seen = found(auditor)
        if auditor.plan.layers == (layer,):
            (difference,) = seen.values()
            assert isinstance(difference, Difference)
            assert difference.unit == layer + 1
            assert difference.position == 0
        else:
            assert seen == {}


def _embedding(engine: ReferenceEngine) -> None:
    honest = engine._model.embedding
    engine._model.embedding = lambda tokens: honest([max(3, t - 1) for t in tokens])  # type: ignore[method-assign]


def _logits(engine: ReferenceEngine) -> None:
    norm = engine._model.output_norm.copy()
    norm[0] = norm[0] * np.float32(1.5)
    engine._model.output_norm = norm


EDGES = {"embedding": _embedding, "tail": _logits}


@pytest.mark.parametrize("part", EDGES)
@pytest.mark.parametrize("native", [True, False])
def test_another_embedding_or_tail_is_seen_in_every_audit(part: str, native: bool) -> None:
    engine = ReferenceEngine(model_file(MODEL))
    EDGES[part](engine)
    claim = Claim(engine, MODEL, SAMPLED)
    assert list(found(claim.auditor(1, native=native))) == [part]


def test_a_cache_from_elsewhere_is_seen_in_any_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = forward.attention

    def rolled(q: Any, keys: Any, values: Any, *rest: Any) -> Any:
        return honest(q, np.roll(keys, 1, axis=2), values, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(forward, "attention", rolled)
        claim = Claim(ReferenceEngine(model_file(MODEL)), MODEL, SAMPLED)
        bundles = [claim.bundle(1, beacon=bytes([number]) * 32) for number in range(6)]
    drawn = set()
    for number, data in enumerate(bundles):
        auditor = claim.auditor(1, native=True, beacon=bytes([number]) * 32, data=data)
        drawn.add(auditor.plan.layers)
        assert [name for name in found(auditor) if name.startswith("layer")] != []
    assert len(drawn) == 2


@pytest.mark.parametrize(
    "change", [{"seed": 22}, {"temperature": 1_200_000}, {"top_k": 3}, {"repeat_penalty": 1_500_000}]
)
@pytest.mark.parametrize("native", [True, False])
def test_other_sampling_than_the_receipts_is_seen_in_the_tail(change: dict[str, int], native: bool) -> None:
    claim = Claim(ReferenceEngine(model_file(MODEL)), MODEL, {**SAMPLED, **change})
    asked = maker().sampling_params(SAMPLED)
    honest = Claim(claim.engine, MODEL, SAMPLED).header
    header = replace(claim.header, params_hash=honest.params_hash, sampling_seed=asked.seed)
    claim.params = asked
    claim.committing(StateTree(header, claim.known.tree.units))
    assert "tail" in found(claim.auditor(1, native=native))


def test_an_early_stop_and_another_text_are_seen_around_the_model() -> None:
    claim = Claim(ReferenceEngine(model_file(MODEL)), MODEL, {**SAMPLED, "max_tokens": 4})
    asked = maker().sampling_params(SAMPLED)
    honest = Claim(claim.engine, MODEL, SAMPLED).header
    claim.params = asked
    claim.committing(StateTree(replace(claim.header, params_hash=honest.params_hash), claim.known.tree.units))
    assert found(claim.auditor(1, native=True)) == {"around": "around.stop"}
    other = Claim(claim.engine, MODEL, SAMPLED)
    other.text += "!"
    assert found(other.auditor(1, native=True)) == {"around": "around.text"}


# --- the bundle


def test_no_changed_byte_of_a_bundle_is_taken() -> None:
    claim = Claim(
        ReferenceEngine(model_file("tiny-q4_0")), "tiny-q4_0", {"temperature": 0, "max_tokens": 2}, "a"
    )
    data, request = claim.bundle(1), claim.request(1)
    AuditBundle.read(data, request, claim.core.model_id)
    codes: Counter[str] = Counter()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises((InvalidMessage, VerificationError)) as refused:
            AuditBundle.read(bytes(changed), request, claim.core.model_id)
        codes[refused.value.code] += 1
    assert set(codes) <= {
        "audit.bundle",
        "audit.manifest",
        "audit.weights",
        "audit.opening",
        "state.header",
    } | {"state.positions"}
    for short in (data[:-1], data + b"\0", b"", data[:40]):
        with pytest.raises(InvalidMessage, match="not the bundle"):
            AuditBundle.read(short, request, claim.core.model_id)


def test_a_bundle_of_random_bytes_never_does_more_than_refuse() -> None:
    claim = Claim(ReferenceEngine(model_file("tiny-q4_0")), "tiny-q4_0", GREEDY, "a")
    data, rng = claim.bundle(1), random.Random(4)
    for _ in range(300):
        at = rng.randrange(len(data))
        mixed = data[:at] + rng.randbytes(rng.randrange(1, 64)) + data[at + rng.randrange(64) :]
        if mixed != data:
            with pytest.raises(AOSError):
                AuditBundle.read(mixed, claim.request(1), claim.core.model_id)


def test_a_request_for_another_run_or_too_many_layers_is_refused() -> None:
    claim = Claim(ReferenceEngine(model_file(MODEL)), MODEL, GREEDY)
    with pytest.raises(VerificationError, match="another run"):
        make_bundle(claim.known, claim.engine, claim.leaves, replace(claim.request(1), state_root=bytes(32)))
    with pytest.raises(InvalidMessage, match="cannot be drawn"):
        claim.request(1).drawn(2**32 - 1)
    for layers in (0, 3):
        with pytest.raises(InvalidMessage, match="cannot be drawn"):
            claim.bundle(layers)
    with pytest.raises(InvalidMessage, match="32 bytes"):
        claim.bundle(1, beacon=b"short")


def test_another_model_file_is_said_to_be_that() -> None:
    claim = Claim(ReferenceEngine(model_file(MODEL)), MODEL, GREEDY)
    claim.path = model_file("tiny-f32")
    with pytest.raises(Unavailable, match="not the model"):
        found(claim.auditor(1, native=True))


def test_a_weight_changed_in_the_auditors_file_is_not_blamed_on_the_operator(tmp_path: Any) -> None:
    claim = Claim(ReferenceEngine(model_file(MODEL)), MODEL, GREEDY)
    auditor = claim.auditor(2, native=True)
    raw = bytearray(model_file(MODEL).read_bytes())
    tensor = next(t for t in auditor.file.tensors if t.name == "blk.1.ffn_up.weight")
    raw[tensor.offset + 5] ^= 1
    (tmp_path / "changed.gguf").write_bytes(raw)
    other = Auditor(auditor.bundle, auditor.disclosed, tmp_path / "changed.gguf", native=True)
    assert other.layer(0) is None
    with pytest.raises(Unavailable, match="ffn_up"):
        other.layer(1)


# --- the draw


def test_the_draw_is_a_uniform_subset_that_every_bit_of_its_inputs_changes() -> None:
    counts: Counter[tuple[int, ...]] = Counter()
    trials = 3000
    for number in range(trials):
        request = AuditRequest(state_root=bytes(32), beacon=number.to_bytes(32, "big"), layers=2)
        counts[request.drawn(5)] += 1
    assert set(counts) == set(combinations(range(5), 2))
    expected = trials / 10
    # Chi-square with 9 degrees of freedom: above 33.7 once in ten thousand.
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 33.7


def test_words_that_would_favour_a_layer_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_words", lambda *_: iter([2**64 - 1, 1]))
    assert AuditRequest(state_root=bytes(32), beacon=bytes(32), layers=1).drawn(3) == (1,)


def test_the_chance_is_that_of_every_subset_counted() -> None:
    for n, k, a in ((5, 2, 1), (6, 3, 2), (4, 4, 1), (7, 1, 7)):
        subsets = list(combinations(range(n), k))
        hits = sum(any(layer < a for layer in subset) for subset in subsets)
        assert chance(n, k, a) == Fraction(hits, len(subsets))
    rows = {row.cheat: row.probability for row in detections(32, 4)}
    assert rows["one layer skipped"] == Fraction(1, 8)
    assert rows["2 layers altered or skipped"] == 1 - Fraction(28 * 27, 32 * 31)
