"""How far the reference engine's and llama.cpp's logits are from exact ones, per tensor type.

python benchmarks/quality.py [--width 512] [--layers 4] [--positions 24] [--models 3] [TYPE ...]

For each type, random-weight models of the llama graph (made by scripts/make_engine_vectors.py) run on random tokens: once in
binary64 over the dequantised weights with nothing quantised on the way (neither activations nor keys and values), once in the
reference engine, once in llama.cpp as packaged in xllamacpp. An error is the root mean square, over all positions and the
vocabulary, of the difference of the logits, each position's mean taken out (llama.cpp gives log-probabilities). The ratio is the
geometric mean over the models; at most 1.05 is asked for.
"""

import argparse
import importlib.util
import math
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import numpy.typing as npt

from aos.core.arithmetic.formats import BLOCK_FORMATS, dequantise, widen_bf16
from aos.engine.forward import Context, tail_logits
from aos.engine.gguf import GGUF, Tensor, read_gguf
from aos.engine.llama import HyperParameters, read_hyper_parameters
from aos.engine.llama_cpp import LlamaCppEngine
from aos.engine.reference import ReferenceEngine
from aos.engine.state import StateLeaves

F64 = npt.NDArray[np.float64]
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32")
TARGET = 1.05


class ExactModel:
    """The graph of a file in binary64: what the logits would be if no operation rounded (to that precision)."""

    def __init__(self, path: Path) -> None:
        file = read_gguf(path)
        self.hyper: HyperParameters = read_hyper_parameters(file)
        self._weights = {tensor.name: weights_of(file, tensor) for tensor in file.tensors}

    def logits(self, tokens: list[int]) -> F64:
        """[len(tokens), n_vocab]."""
        h, w = self.hyper, self._weights
        x = w["token_embd.weight"][tokens]
        for index in range(h.n_layers):
            prefix = f"blk.{index}."
            x = x + self._attention(prefix, _norm(x, w[prefix + "attn_norm.weight"], h.eps))
            n = _norm(x, w[prefix + "ffn_norm.weight"], h.eps)
            gate, up = (n @ w[f"{prefix}ffn_{name}.weight"].T for name in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[prefix + "ffn_down.weight"].T
        output = w.get("output.weight", w["token_embd.weight"])
        return _norm(x, w["output_norm.weight"][0], h.eps) @ output.T

    def _attention(self, prefix: str, n: F64) -> F64:
        h, w = self.hyper, self._weights
        heads = []
        for name, count in (("q", h.n_heads), ("k", h.n_kv_heads), ("v", h.n_kv_heads)):
            y = n @ w[f"{prefix}attn_{name}.weight"].T
            if h.architecture.biases:
                y = y + w[f"{prefix}attn_{name}.bias"]
            heads.append(y.reshape(len(n), count, h.head_width))
        q, k, v = heads
        if h.architecture.head_norms:
            q = _norm(q, w[prefix + "attn_q_norm.weight"][0], h.eps)
            k = _norm(k, w[prefix + "attn_k_norm.weight"][0], h.eps)
        q, k = self._rope(q), self._rope(k)
        shared = h.n_heads // h.n_kv_heads
        k, v = np.repeat(k, shared, axis=1), np.repeat(v, shared, axis=1)
        scores = np.einsum("thi,jhi->htj", q, k) / math.sqrt(h.head_width)
        scores[:, np.triu(np.ones((len(n), len(n)), dtype=bool), 1)] = -np.inf
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = np.einsum("htj,jhi->thi", e / e.sum(axis=-1, keepdims=True), v)
        return mixed.reshape(len(n), -1) @ w[prefix + "attn_output.weight"].T

    def _rope(self, x: F64) -> F64:
        h = self.hyper
        half = h.n_rot // 2
        factors = self._weights.get("rope_freqs.weight", np.ones((1, half)))[0]
        angles = np.arange(len(x))[:, None] * h.rope_base ** (-np.arange(half) / half) / factors
        turn = np.exp(1j * angles)[:, None, :]
        out = x.copy()
        if h.architecture.rope_halves:
            pairs = (x[..., :half] + 1j * x[..., half : h.n_rot]) * turn
            out[..., :half], out[..., half : h.n_rot] = pairs.real, pairs.imag
        else:
            pairs = (x[..., 0 : h.n_rot : 2] + 1j * x[..., 1 : h.n_rot : 2]) * turn
            out[..., 0 : h.n_rot : 2], out[..., 1 : h.n_rot : 2] = pairs.real, pairs.imag
        return out


def weights_of(file: GGUF, tensor: Tensor) -> F64:
    """Dequantised weights [rows, columns]; the stored values are exact in binary32."""
    raw = np.frombuffer(file.tensor_bytes(tensor), dtype=np.uint8)
    name = tensor.type.name
    if name in BLOCK_FORMATS:
        values = dequantise(BLOCK_FORMATS[name].unpack(raw.reshape(tensor.rows, -1, tensor.type.block_bytes)))
    elif name == "BF16":
        values = widen_bf16(raw.view("<u2"))
    else:
        values = raw.view("<f2" if name == "F16" else "<f4")
    return values.reshape(tensor.rows, -1).astype(np.float64)


def _norm(x: F64, weight: F64, eps: float) -> F64:
    normed: F64 = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight.reshape(-1)
    return normed


def reference_logits(engine: ReferenceEngine, tokens: list[int]) -> F64:
    """The reference engine's logits after each of ``tokens``, [len(tokens), n_vocab]."""
    context = Context(engine._model, engine._cos, engine._sin)
    residuals, trap = context.extend(tokens, StateLeaves(engine._model.hyper.n_layers))
    if trap is not None:
        raise ValueError(f"the model traps: {trap}")
    return tail_logits(engine._model, residuals).astype(np.float64)


def llama_cpp_logits(engine: LlamaCppEngine, tokens: list[int], n_vocab: int) -> F64:
    """llama.cpp's log-probabilities after each of ``tokens``: its logits but for a constant a position."""
    rows = np.empty((len(tokens), n_vocab))
    letter = engine.tokenize("a")[-1]
    for position in range(len(tokens)):
        body = {
            "prompt": tokens[: position + 1],
            "n_predict": 1,
            "n_probs": n_vocab,
            "post_sampling_probs": False,
            # llama.cpp leaves the list out where the chosen token's text is an unfinished character, so a letter is
            # forced; what is listed is before any bias.
            "logit_bias": [[letter, 1e4]],
            "temperature": 0,
            "cache_prompt": False,
        }
        (choice,) = engine._server.post("/completion", body)["completion_probabilities"]
        for entry in choice["top_logprobs"]:
            rows[position, entry["id"]] = entry["logprob"]
    return rows


def distance(a: F64, b: F64) -> float:
    """Root mean square of the difference, each position's mean taken out."""
    difference = a - b
    difference = difference - difference.mean(axis=1, keepdims=True)
    return math.sqrt(float((difference * difference).mean()))


def vector_maker() -> ModuleType:
    """scripts/make_engine_vectors.py as a module."""
    path = Path(__file__).resolve().parents[1] / "scripts" / "make_engine_vectors.py"
    spec = importlib.util.spec_from_file_location("make_engine_vectors", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def errors(path: Path, tokens: list[int]) -> tuple[float, float, float]:
    """The logits' own spread, the reference engine's error, llama.cpp's error."""
    exact = ExactModel(path)
    true = exact.logits(tokens)
    ours = distance(reference_logits(ReferenceEngine(path), tokens), true)
    theirs = distance(llama_cpp_logits(LlamaCppEngine(path), tokens, exact.hyper.n_vocab), true)
    return distance(true, np.zeros_like(true)), ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", default=list(TYPES))
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--positions", type=int, default=24)
    parser.add_argument("--models", type=int, default=3)
    options = parser.parse_args()
    maker = vector_maker()
    print(
        f"width {options.width}, {options.layers} layers, {options.positions} positions, {options.models} models"
    )
    print(f"{'type':>5} {'spread':>9} {'reference':>10} {'llama.cpp':>10} {'ratio':>7}")
    worst = 0.0
    with TemporaryDirectory() as directory:
        for kind in options.types:
            rows = []
            for number in range(options.models):
                model = maker.TinyModel(
                    name=f"quality-{kind}-{number}",
                    default=kind,
                    width=options.width,
                    ff_width=3 * options.width,
                    layers=options.layers,
                    heads=options.width // 64,
                    kv_heads=options.width // 128,
                    head_width=64,
                    n_rot=64,
                    n_ctx=max(64, options.positions + 1),
                    tied=False,
                )
                path = Path(directory) / f"{model.name}.gguf"
                path.write_bytes(maker.build_model(model))
                rng = random.Random(number)
                tokens = [1, *(rng.randrange(3, 300) for _ in range(options.positions - 1))]
                rows.append(errors(path, tokens))
                path.unlink()
            spread, ours, theirs = (
                math.exp(sum(math.log(row[i]) for row in rows) / len(rows)) for i in range(3)
            )
            worst = max(worst, ours / theirs)
            print(f"{kind:>5} {spread:9.3f} {ours:10.2e} {theirs:10.2e} {ours / theirs:7.3f}", flush=True)
    print(f"largest ratio {worst:.3f}, asked for {TARGET} or less")
    sys.exit(worst > TARGET)


if __name__ == "__main__":
    main()
