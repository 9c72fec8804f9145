"""Models of the llama family (llama, qwen2, qwen3) as a GGUF file declares them: hyper-parameters, tensors,
weights ready for the arithmetic.

Implements docs/spec/07-inference.md, "The model file" and "The graph". Whatever the file holds beyond what
is understood here (another key of the architecture, another tensor, another type) is refused by name: it
might change the result. Weights that are not finite are refused before any inference.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from aos.core.arithmetic.floats import F32
from aos.core.arithmetic.formats import BLOCK, BLOCK_FORMATS, U8, dequantise, widen_bf16
from aos.core.arithmetic.matmul import BlockMatrix, DenseMatrix
from aos.core.manifest import GRAPH_KINDS, GraphKind
from aos.engine.gguf import GGUF, Tensor, Value
from aos.errors import InvalidMessage

DENSE: Mapping[str, str] = {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}
"""NumPy's element type by the name of the tensor type; BF16 has none and is read as bit patterns."""

ROPE_FACTORS = "rope_freqs.weight"
KEEP_UNPACKED_BELOW = 1 << 26
"""Weights of a file up to which all of them stay unpacked in memory (4 bytes each)."""

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_HEADS = 1 << 12
MAX_CONTEXT = 1 << 20
MAX_WINDOW = (1 << 32) - 1
F32_MAX = float(np.finfo(np.float32).max)
_CHECKED_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture(GraphKind):
    """A kind of graph, and ``neutral_keys``: values of further keys that say what holds anyway."""

    neutral_keys: Mapping[str, tuple[Value, ...]]


_KEYS = frozenset(
    {
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "rope.dimension_count",
        "rope.freq_base",
        "vocab_size",
    }
)
_NEUTRAL: Mapping[str, tuple[Value, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.type": (b"none",),
    "rope.scaling.factor": (1.0,),
    "rope.scale_linear": (1.0,),
}
_MORE_NEUTRAL: Mapping[str, Mapping[str, tuple[Value, ...]]] = {
    "llama": {"tensor_data_layout": (b"Meta AI original pth",)}
}
ARCHITECTURES: Mapping[str, Architecture] = {
    name: Architecture(**asdict(kind), neutral_keys={**_NEUTRAL, **_MORE_NEUTRAL.get(name, {})})
    for name, kind in GRAPH_KINDS.items()
}
"""By the file's ``general.architecture``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperParameters:
    """Sizes of one model. ``eps`` and ``rope_base`` are the file's binary32 values."""

    architecture: Architecture
    n_ctx: int
    n_layers: int
    n_vocab: int
    width: int
    ff_width: int
    n_heads: int
    n_kv_heads: int
    head_width: int
    n_rot: int
    eps: float
    rope_base: float
    tied: bool

    @property
    def kv_width(self) -> int:
        return self.n_kv_heads * self.head_width


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Weights of one layer. A quantised product takes quantised activations, a dense one takes them as they
    are. ``biases`` are those of q, k and v; ``head_norms`` those of q and k, [head_width] each.
    """

    attn_norm: F32
    ffn_norm: F32
    q: BlockMatrix | DenseMatrix
    k: BlockMatrix | DenseMatrix
    v: BlockMatrix | DenseMatrix
    biases: tuple[F32, F32, F32] | None
    head_norms: tuple[F32, F32] | None
    attn_output: BlockMatrix | DenseMatrix
    gate: BlockMatrix | DenseMatrix
    up: BlockMatrix | DenseMatrix
    down: BlockMatrix | DenseMatrix


class Model:
    """A checked model over its mapped file."""

    def __init__(self, file: GGUF) -> None:
        """Raises InvalidMessage: ``engine.architecture``, ``engine.parameter``, ``engine.tensor_*``,
        ``engine.not_finite``.
        """
        self.file = file
        self._tensors = {tensor.name: tensor for tensor in file.tensors}
        self.hyper = read_hyper_parameters(file)
        check_tensors(file, self.hyper)
        self._keep = sum(t.rows * t.columns for t in file.tensors) <= KEEP_UNPACKED_BELOW
        h = self.hyper
        for tensor in file.tensors:
            self._check_finite(tensor)
        self.rope_factors = self._vector(ROPE_FACTORS) if ROPE_FACTORS in self._tensors else None
        self.layers = [self._layer(f"blk.{index}.") for index in range(h.n_layers)]
        self.output_norm = self._vector("output_norm.weight")
        self.output = self._matrix("token_embd.weight" if h.tied else "output.weight")

    def embedding(self, tokens: list[int]) -> F32:
        """Rule 8: dequantised rows of the embedding. Shape [len(tokens), width]."""
        tensor = self._tensors["token_embd.weight"]
        if tensor.type.name in DENSE:
            return _widened(tensor, self._elements(tensor).reshape(tensor.rows, -1)[tokens])
        packed = self._packed(tensor)[tokens]
        blocks = BLOCK_FORMATS[tensor.type.name].unpack(packed)
        return dequantise(blocks).reshape(len(tokens), -1)

    def _layer(self, prefix: str) -> Layer:
        architecture = self.hyper.architecture

        def vector(name: str) -> F32:
            return self._vector(prefix + name)

        def matrix(name: str) -> BlockMatrix | DenseMatrix:
            return self._matrix(f"{prefix}{name}.weight")

        return Layer(
            attn_norm=vector("attn_norm.weight"),
            ffn_norm=vector("ffn_norm.weight"),
            q=matrix("attn_q"),
            k=matrix("attn_k"),
            v=matrix("attn_v"),
            biases=(vector("attn_q.bias"), vector("attn_k.bias"), vector("attn_v.bias"))
            if architecture.biases
            else None,
            head_norms=(vector("attn_q_norm.weight"), vector("attn_k_norm.weight"))
            if architecture.head_norms
            else None,
            attn_output=matrix("attn_output"),
            gate=matrix("ffn_gate"),
            up=matrix("ffn_up"),
            down=matrix("ffn_down"),
        )

    def _check_finite(self, tensor: Tensor) -> None:
        if tensor.type.name in DENSE:
            elements = self._elements(tensor)
            for at in range(0, elements.size, _CHECKED_AT_ONCE):
                if not np.isfinite(_widened(tensor, elements[at : at + _CHECKED_AT_ONCE])).all():
                    _refuse("engine.not_finite", f"tensor {tensor.name!r} holds NaN or infinity", tensor.name)
            return
        blocks = self._packed(tensor).reshape(-1, tensor.type.block_bytes)
        for at in range(0, blocks.shape[0], _CHECKED_AT_ONCE):
            for scale in BLOCK_FORMATS[tensor.type.name].scales_at:
                # The upper byte of a little-endian binary16 has all its exponent bits.
                exponents = blocks[at : at + _CHECKED_AT_ONCE, scale + 1] & 0x7C
                if (exponents == 0x7C).any():
                    _refuse(
                        "engine.not_finite", f"a scale of {tensor.name!r} is NaN or infinite", tensor.name
                    )

    def _elements(self, tensor: Tensor) -> npt.NDArray[np.generic]:
        """Stored elements of a dense tensor, in file order."""
        return np.frombuffer(self.file.tensor_bytes(tensor), dtype=DENSE[tensor.type.name])

    def _packed(self, tensor: Tensor) -> U8:
        """Blocks [rows, blocks of a row, bytes of a block]."""
        raw = np.frombuffer(self.file.tensor_bytes(tensor), dtype=np.uint8)
        return raw.reshape(tensor.rows, -1, tensor.type.block_bytes)

    def _vector(self, name: str) -> F32:
        tensor = self._tensors[name]
        return _widened(tensor, self._elements(tensor))

    def _matrix(self, name: str) -> BlockMatrix | DenseMatrix:
        tensor = self._tensors[name]
        if tensor.type.name in DENSE:
            return DenseMatrix(_widened(tensor, self._elements(tensor)).reshape(tensor.rows, -1))
        return BlockMatrix(self._packed(tensor), BLOCK_FORMATS[tensor.type.name].unpack, keep=self._keep)


def check_tensors(file: GGUF, h: HyperParameters) -> None:
    """Names, shapes and types of a whole graph's tensors. Raises InvalidMessage ``engine.tensor_*``."""
    tensors = {tensor.name: tensor for tensor in file.tensors}
    expected = expected_tensors(h)
    if h.architecture.rope_factors and ROPE_FACTORS in tensors:
        expected[ROPE_FACTORS] = (h.n_rot // 2,)
    for name in tensors:
        if name not in expected:
            _refuse(
                "engine.tensor_unexpected",
                f"tensor {name!r} has no place in a {h.architecture.name} graph",
                name,
            )
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            _refuse("engine.tensor_missing", f"tensor {name!r} is missing", name)
        if tensor.shape != shape:
            _refuse("engine.tensor_shape", f"tensor {name!r} has shape {tensor.shape}, not {shape}", name)
        allowed = {"F32"} if len(shape) == 1 else {*BLOCK_FORMATS, *DENSE}
        if tensor.type.name not in allowed:
            _refuse(
                "engine.tensor_type",
                f"tensor {name!r} is {tensor.type.name}; this engine computes {', '.join(sorted(allowed))}",
                name,
            )


def _widened(tensor: Tensor, elements: npt.NDArray[np.generic]) -> F32:
    if tensor.type.name == "BF16":
        return widen_bf16(elements.astype(np.uint16))
    return elements.astype(np.float32)


def read_hyper_parameters(file: GGUF) -> HyperParameters:
    """Read and check the architecture's keys. Raises InvalidMessage ``engine.architecture`` or
    ``engine.parameter``.
    """
    declared = file.metadata.get("general.architecture")
    shown = declared.decode("utf-8", "replace") if isinstance(declared, bytes) else repr(declared)
    architecture = ARCHITECTURES.get(shown) if isinstance(declared, bytes) else None
    if architecture is None:
        raise InvalidMessage(
            "engine.architecture",
            f"the architecture {shown[:64]!r} is not one of {', '.join(ARCHITECTURES)}",
            field="general.architecture",
            hint="run this model with the llama.cpp engine",
        )
    keys = _Keys(architecture, file)
    width = keys.count("embedding_length", MAX_WIDTH)
    n_heads = keys.count("attention.head_count", MAX_HEADS)
    n_kv_heads = keys.count("attention.head_count_kv", MAX_HEADS, default=n_heads)
    head_width = keys.count("attention.key_length", MAX_WIDTH, default=width // n_heads)
    if keys.count("attention.value_length", MAX_WIDTH, default=head_width) != head_width:
        keys.refuse("attention.value_length", "keys and values differ in length")
    if n_heads % n_kv_heads:
        keys.refuse("attention.head_count_kv", f"{n_heads} heads over {n_kv_heads} key heads")
    n_rot = keys.count("rope.dimension_count", MAX_WIDTH, default=head_width)
    if n_rot % 2 or n_rot > head_width:
        keys.refuse("rope.dimension_count", f"{n_rot} rotated of {head_width} dimensions")
    ff_width = keys.count("feed_forward_length", MAX_WIDTH)
    for name, columns in (
        ("embedding_length", width),
        ("feed_forward_length", ff_width),
        ("attention.head_count", n_heads * head_width),
    ):
        if columns % BLOCK:
            keys.refuse(name, f"rows of {columns} weights are not whole blocks of {BLOCK}")
    embedding = next((t for t in file.tensors if t.name == "token_embd.weight"), None)
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    n_vocab = len(tokens) if isinstance(tokens, tuple) else 0
    if (
        embedding is None
        or embedding.rows != n_vocab
        or keys.count("vocab_size", n_vocab, default=n_vocab) != n_vocab
    ):
        keys.refuse("vocab_size", "vocabulary, vocab_size and embedding rows differ in number")
    n_ctx = keys.count("context_length", MAX_CONTEXT)
    if keys.values.get("attention.sliding_window") not in (None, 0):
        # Attention is over all earlier positions, which a window does not change in a context within it.
        n_ctx = min(n_ctx, keys.count("attention.sliding_window", MAX_WINDOW))
    return HyperParameters(
        architecture=architecture,
        n_ctx=n_ctx,
        n_layers=keys.count("block_count", MAX_LAYERS),
        n_vocab=n_vocab,
        width=width,
        ff_width=ff_width,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_width=head_width,
        n_rot=n_rot,
        eps=keys.positive("attention.layer_norm_rms_epsilon"),
        rope_base=keys.positive("rope.freq_base", default=10_000.0),
        tied=all(t.name != "output.weight" for t in file.tensors),
    )


def expected_tensors(h: HyperParameters) -> dict[str, tuple[int, ...]]:
    """Name and shape (columns first) of every tensor of the graph, ``rope_freqs.weight`` apart."""
    attention, kv = h.n_heads * h.head_width, h.kv_width
    tensors: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (h.width, h.n_vocab),
        "output_norm.weight": (h.width,),
    }
    if not h.tied:
        tensors["output.weight"] = (h.width, h.n_vocab)
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (h.width,),
        "attn_q.weight": (h.width, attention),
        "attn_k.weight": (h.width, kv),
        "attn_v.weight": (h.width, kv),
        "attn_output.weight": (attention, h.width),
        "ffn_norm.weight": (h.width,),
        "ffn_gate.weight": (h.width, h.ff_width),
        "ffn_up.weight": (h.width, h.ff_width),
        "ffn_down.weight": (h.ff_width, h.width),
    }
    if h.architecture.biases:
        layer |= {"attn_q.bias": (attention,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    if h.architecture.head_norms:
        layer |= {"attn_q_norm.weight": (h.head_width,), "attn_k_norm.weight": (h.head_width,)}
    for index in range(h.n_layers):
        tensors |= {f"blk.{index}.{name}": shape for name, shape in layer.items()}
    return tensors


class _Keys:
    """The keys that begin with the architecture's name, none of them unknown."""

    def __init__(self, architecture: Architecture, file: GGUF) -> None:
        self._prefix = architecture.name + "."
        self.values: dict[str, Value] = {
            key.removeprefix(self._prefix): value
            for key, value in file.metadata.items()
            if key.startswith(self._prefix)
        }
        for name, value in self.values.items():
            if name not in _KEYS and value not in architecture.neutral_keys.get(name, ()):
                self.refuse(name, "is not understood by this engine")

    def count(self, name: str, limit: int, *, default: int | None = None) -> int:
        value = self.values.get(name, default)
        if type(value) is not int or not 1 <= value <= limit:
            self.refuse(name, f"is not an integer in 1..{limit}")
        return value

    def positive(self, name: str, *, default: float | None = None) -> float:
        value = self.values.get(name, default)
        if type(value) is not float or not 0 < value <= F32_MAX or value != float(np.float32(value)):
            self.refuse(name, "is not a positive binary32")
        return value

    def refuse(self, name: str, message: str) -> NoReturn:
        _refuse("engine.parameter", f"{self._prefix}{name}: {message}", self._prefix + name)


def _refuse(code: str, message: str, field: str) -> NoReturn:
    raise InvalidMessage(code, message, field=field)
