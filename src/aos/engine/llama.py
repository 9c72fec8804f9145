"""The llama architecture as a GGUF file declares it: hyper-parameters, tensors, weights ready for the
arithmetic.

Implements docs/spec/07-inference.md, "The model file" and "The graph". Whatever the file holds beyond what
is understood here (another key of the architecture, another tensor, another type) is refused by name: it
might change the result. Weights that are not finite are refused before any inference.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from aos.core.arithmetic.floats import F32
from aos.core.arithmetic.matmul import BLOCK, BlockMatrix, DenseMatrix, unpack_q4_0, unpack_q8_0
from aos.engine.gguf import GGUF, Tensor, Value
from aos.errors import InvalidMessage

Unpack = Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.int8], F32]]
QUANTISED: Mapping[str, Unpack] = {"Q4_0": unpack_q4_0, "Q8_0": unpack_q8_0}
DENSE: Mapping[str, np.dtype[np.floating[Any]]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
KEEP_UNPACKED_BELOW = 1 << 26
"""Weights of a file up to which all of them stay unpacked in memory (4 bytes each)."""

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_HEADS = 1 << 12
MAX_CONTEXT = 1 << 20

_ARCHITECTURE_KEYS = frozenset(
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
        "rope.dimension_count",
        "rope.freq_base",
        "vocab_size",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperParameters:
    """Sizes of one model. ``eps`` and ``rope_base`` are the file's binary32 values."""

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
    are.
    """

    attn_norm: F32
    ffn_norm: F32
    q: "BlockMatrix | DenseMatrix"
    k: "BlockMatrix | DenseMatrix"
    v: "BlockMatrix | DenseMatrix"
    attn_output: "BlockMatrix | DenseMatrix"
    gate: "BlockMatrix | DenseMatrix"
    up: "BlockMatrix | DenseMatrix"
    down: "BlockMatrix | DenseMatrix"


class Model:
    """A checked llama model over its mapped file."""

    def __init__(self, file: GGUF) -> None:
        """Raises InvalidMessage: ``engine.architecture``, ``engine.parameter``, ``engine.tensor_*``,
        ``engine.not_finite``.
        """
        self.file = file
        self._tensors = {tensor.name: tensor for tensor in file.tensors}
        self.hyper = read_hyper_parameters(file)
        self._keep = sum(t.rows * t.columns for t in file.tensors) <= KEEP_UNPACKED_BELOW
        h = self.hyper
        expected = expected_tensors(h)
        for name in self._tensors.keys() - expected.keys() - {"rope_freqs.weight"}:
            _refuse("engine.tensor_unexpected", f"tensor {name!r} has no place in a llama graph", name)
        for name, shape in expected.items():
            self._check(name, shape)
        self.rope_factors = (
            self._vector("rope_freqs.weight", h.n_rot // 2) if "rope_freqs.weight" in self._tensors else None
        )
        for tensor in file.tensors:
            if tensor.type.name in QUANTISED:
                self._check_scales(tensor)
        self.layers = [self._layer(index) for index in range(h.n_layers)]
        self.output_norm = self._vector("output_norm.weight", h.width)
        self.output = self._matrix("token_embd.weight" if h.tied else "output.weight")

    def embedding(self, tokens: list[int]) -> F32:
        """Rule 8: dequantised rows of the embedding, d · q. Shape [len(tokens), width]."""
        tensor = self._tensors["token_embd.weight"]
        raw = np.frombuffer(self.file.tensor_bytes(tensor), dtype=np.uint8).reshape(
            tensor.rows, tensor.row_bytes
        )[tokens]
        if tensor.type.name in QUANTISED:
            integers, scales = QUANTISED[tensor.type.name](
                raw.reshape(len(tokens), -1, tensor.type.block_bytes)
            )
            rows: F32 = (scales[..., None] * integers.astype(np.float32)).reshape(len(tokens), -1)
            return rows
        return raw.view(DENSE[tensor.type.name]).astype(np.float32)

    def _layer(self, index: int) -> Layer:
        width = self.hyper.width
        prefix = f"blk.{index}."
        return Layer(
            attn_norm=self._vector(prefix + "attn_norm.weight", width),
            ffn_norm=self._vector(prefix + "ffn_norm.weight", width),
            q=self._matrix(prefix + "attn_q.weight"),
            k=self._matrix(prefix + "attn_k.weight"),
            v=self._matrix(prefix + "attn_v.weight"),
            attn_output=self._matrix(prefix + "attn_output.weight"),
            gate=self._matrix(prefix + "ffn_gate.weight"),
            up=self._matrix(prefix + "ffn_up.weight"),
            down=self._matrix(prefix + "ffn_down.weight"),
        )

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self._tensors.get(name)
        if tensor is None:
            _refuse("engine.tensor_missing", f"tensor {name!r} is missing", name)
        if tensor.shape != shape:
            _refuse("engine.tensor_shape", f"tensor {name!r} has shape {tensor.shape}, not {shape}", name)
        allowed = {"F32"} if len(shape) == 1 else {*QUANTISED, *DENSE}
        if tensor.type.name not in allowed:
            _refuse(
                "engine.tensor_type",
                f"tensor {name!r} is {tensor.type.name}; this engine computes {', '.join(sorted(allowed))}",
                name,
            )

    def _vector(self, name: str, length: int) -> F32:
        self._check(name, (length,))
        vector: F32 = self._dense(self._tensors[name])[0]
        return vector

    def _dense(self, tensor: Tensor) -> F32:
        raw = np.frombuffer(self.file.tensor_bytes(tensor), dtype=DENSE[tensor.type.name])
        weights = raw.reshape(tensor.rows, tensor.columns).astype(np.float32)
        if not np.isfinite(weights).all():
            _refuse("engine.not_finite", f"tensor {tensor.name!r} holds NaN or infinity", tensor.name)
        return weights

    def _check_scales(self, tensor: Tensor) -> None:
        raw = np.frombuffer(self.file.tensor_bytes(tensor), dtype=np.uint8).reshape(
            -1, tensor.type.block_bytes
        )
        for at in range(0, raw.shape[0], 1 << 20):
            if not np.isfinite(np.ascontiguousarray(raw[at : at + (1 << 20), :2]).view("<f2")).all():
                _refuse("engine.not_finite", f"a scale of {tensor.name!r} is NaN or infinite", tensor.name)

    def _matrix(self, name: str) -> BlockMatrix | DenseMatrix:
        tensor = self._tensors[name]
        if tensor.type.name in DENSE:
            return DenseMatrix(self._dense(tensor))
        unpack = QUANTISED[tensor.type.name]
        raw = np.frombuffer(self.file.tensor_bytes(tensor), dtype=np.uint8)
        blocks = raw.reshape(tensor.rows, tensor.columns // BLOCK, tensor.type.block_bytes)

        def load(first: int, last: int) -> tuple[F32, F32]:
            integers, scales = unpack(blocks[first:last])
            weights = np.ascontiguousarray(integers.transpose(1, 2, 0)).astype(np.float32)
            return weights, np.ascontiguousarray(scales.T)

        return BlockMatrix(tensor.rows, load, keep=self._keep)


def read_hyper_parameters(file: GGUF) -> HyperParameters:
    """Read and check the ``llama.*`` keys. Raises InvalidMessage ``engine.architecture`` or
    ``engine.parameter``.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture != b"llama":
        shown = (
            architecture.decode("utf-8", "replace") if isinstance(architecture, bytes) else repr(architecture)
        )
        raise InvalidMessage(
            "engine.architecture",
            f"the architecture {shown!r} is not llama",
            field="general.architecture",
            hint="run this model with the llama.cpp engine",
        )
    metadata = {key[6:]: value for key, value in file.metadata.items() if key.startswith("llama.")}
    _refuse_other_graphs(metadata)
    width = _count(metadata, "embedding_length", MAX_WIDTH)
    n_heads = _count(metadata, "attention.head_count", MAX_HEADS)
    n_kv_heads = _count(metadata, "attention.head_count_kv", MAX_HEADS, default=n_heads)
    head_width = _count(metadata, "attention.key_length", MAX_WIDTH, default=width // n_heads)
    if _count(metadata, "attention.value_length", MAX_WIDTH, default=head_width) != head_width:
        _refuse("engine.parameter", "keys and values differ in length", "llama.attention.value_length")
    if n_heads % n_kv_heads:
        _refuse(
            "engine.parameter",
            f"{n_heads} heads over {n_kv_heads} key heads",
            "llama.attention.head_count_kv",
        )
    n_rot = _count(metadata, "rope.dimension_count", MAX_WIDTH, default=head_width)
    if n_rot % 2 or n_rot > head_width:
        _refuse(
            "engine.parameter", f"{n_rot} rotated of {head_width} dimensions", "llama.rope.dimension_count"
        )
    ff_width = _count(metadata, "feed_forward_length", MAX_WIDTH)
    for name, columns in (
        ("embedding_length", width),
        ("feed_forward_length", ff_width),
        ("attention.head_count", n_heads * head_width),
    ):
        if columns % BLOCK:
            _refuse(
                "engine.parameter",
                f"rows of {columns} weights are not whole blocks of {BLOCK}",
                f"llama.{name}",
            )
    embedding = next((t for t in file.tensors if t.name == "token_embd.weight"), None)
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    n_vocab = len(tokens) if isinstance(tokens, tuple) else 0
    if embedding is None or embedding.rows != n_vocab or metadata.get("vocab_size", n_vocab) != n_vocab:
        _refuse(
            "engine.parameter",
            "vocabulary, vocab_size and embedding rows differ in number",
            "llama.vocab_size",
        )
    return HyperParameters(
        n_ctx=_count(metadata, "context_length", MAX_CONTEXT),
        n_layers=_count(metadata, "block_count", MAX_LAYERS),
        n_vocab=n_vocab,
        width=width,
        ff_width=ff_width,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_width=head_width,
        n_rot=n_rot,
        eps=_positive(metadata, "attention.layer_norm_rms_epsilon"),
        rope_base=_positive(metadata, "rope.freq_base", default=10_000.0),
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
    for index in range(h.n_layers):
        prefix = f"blk.{index}."
        tensors |= {
            prefix + "attn_norm.weight": (h.width,),
            prefix + "attn_q.weight": (h.width, attention),
            prefix + "attn_k.weight": (h.width, kv),
            prefix + "attn_v.weight": (h.width, kv),
            prefix + "attn_output.weight": (attention, h.width),
            prefix + "ffn_norm.weight": (h.width,),
            prefix + "ffn_gate.weight": (h.width, h.ff_width),
            prefix + "ffn_up.weight": (h.width, h.ff_width),
            prefix + "ffn_down.weight": (h.ff_width, h.width),
        }
    return tensors


def _refuse_other_graphs(metadata: Mapping[str, Value]) -> None:
    neutral: Mapping[str, tuple[Value, ...]] = {
        "expert_count": (0,),
        "expert_used_count": (0,),
        "rope.scaling.type": (b"none",),
        "rope.scale_linear": (1.0,),
        "tensor_data_layout": (b"Meta AI original pth",),
    }
    for name in metadata.keys() - _ARCHITECTURE_KEYS:
        if metadata[name] not in neutral.get(name, ()):
            _refuse("engine.parameter", f"llama.{name} is not understood by this engine", f"llama.{name}")


def _count(metadata: Mapping[str, Value], name: str, limit: int, *, default: int | None = None) -> int:
    value = metadata.get(name, default)
    if type(value) is not int or not 1 <= value <= limit:
        _refuse("engine.parameter", f"llama.{name} is not an integer in 1..{limit}", f"llama.{name}")
    return value


def _positive(metadata: Mapping[str, Value], name: str, *, default: float | None = None) -> float:
    value = metadata.get(name, default)
    if (
        type(value) is not float
        or not math.isfinite(value)
        or value <= 0
        or value != float(np.float32(value))
    ):
        _refuse("engine.parameter", f"llama.{name} is not a positive binary32", f"llama.{name}")
    return value


def _refuse(code: str, message: str, field: str) -> NoReturn:
    raise InvalidMessage(code, message, field=field)
