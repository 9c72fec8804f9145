"""What a ``model_id`` stands for: the manifest of a model file, the graph that it names, and the tree over the file's
weights (docs/spec/07-inference.md, "Models").

Pure: a referee judges from a manifest without the file. ``aos.engine.manifest`` makes one from a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from aos.core.codec import Bytes32, MaxLength, OptionalBytes32, UInt, UInt32, encode
from aos.core.encoding import canonical_json, lp, tag, tagged_hash
from aos.core.hashes import u32
from aos.core.merkle import leaf_hash

CHUNK_WEIGHTS = 256
CHUNK_TAG = tag("weights-chunk")
TENSOR_TAG = tag("weights-tensor")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorType:
    """How a tensor's weights are stored: ``block_bytes`` bytes hold ``block_weights`` consecutive weights
    of a row.
    """

    name: str
    code: int
    block_weights: int
    block_bytes: int

    def bytes_of(self, weights: int) -> int:
        """The bytes of so many consecutive weights of a row, a multiple of the block's."""
        return weights // self.block_weights * self.block_bytes


TENSOR_TYPES: Mapping[int, TensorType] = {
    code: TensorType(name=name, code=code, block_weights=weights, block_bytes=size)
    for code, name, weights, size in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (30, "BF16", 1, 2),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphKind:
    """What distinguishes the graphs of the llama family.

    ``rope_halves``: rotated pairs are (i, i + n_rot/2), not (2i, 2i + 1). ``biases``: of q, k and v.
    ``head_norms``: RMSNorm of every head of q and k before RoPE. ``rope_factors``: the file may have
    ``rope_freqs.weight`` (Llama 3.1).
    """

    name: str
    rope_halves: bool
    biases: bool
    head_norms: bool
    rope_factors: bool


GRAPH_KINDS: Mapping[str, GraphKind] = {
    kind.name: kind
    for kind in (
        GraphKind(name="llama", rope_halves=False, biases=False, head_norms=False, rope_factors=True),
        GraphKind(name="qwen2", rope_halves=True, biases=True, head_norms=False, rope_factors=False),
        GraphKind(name="qwen3", rope_halves=True, biases=False, head_norms=True, rope_factors=False),
    )
}
"""By a manifest's ``architecture``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSizes:
    """Hyper-parameters of a graph; ``*_bits`` are binary32 bit patterns."""

    n_ctx: UInt32
    n_layers: UInt32
    n_vocab: UInt32
    width: UInt32
    ff_width: UInt32
    n_heads: UInt32
    n_kv_heads: UInt32
    head_width: UInt32
    n_rot: UInt32
    eps_bits: UInt32
    rope_base_bits: UInt32
    tied: bool

    @property
    def kv_width(self) -> int:
        """The values of K, and of V, at one position."""
        return self.n_kv_heads * self.head_width


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What ``model_id`` stands for.

    ``arithmetic`` is 0, and ``graph``, ``rope_table`` empty, where the canonical arithmetic does not cover
    the file.
    """

    TYPE: ClassVar[str] = "aos.model"
    V: ClassVar[int] = 2

    file_sha256: Bytes32
    file_size: UInt
    weights_root: Bytes32
    architecture: Annotated[str, MaxLength(64)]
    graph: GraphSizes | None
    tokenizer: Bytes32
    chat_template: OptionalBytes32
    rope_table: OptionalBytes32
    arithmetic: UInt32

    @property
    def model_id(self) -> bytes:
        """SHA-256("AOS/model/v1\\0" ‖ canonical JSON of the manifest)."""
        return tagged_hash("model", self.json())

    def json(self) -> bytes:
        """The canonical JSON."""
        return canonical_json(encode(self))


# --- the tree under ``weights_root``


def tensor_leaf(name: str, type_code: int, shape: tuple[int, ...], root: bytes) -> bytes:
    """A tensor's leaf hash. ``shape`` has the columns first; ``root`` is that over its rows' hashes, each the root over
    the row's chunks.
    """
    lengths = b"".join(length.to_bytes(8, "big") for length in shape)
    return leaf_hash(TENSOR_TAG + lp(name.encode()) + u32(type_code) + u32(len(shape)) + lengths + root)


def chunk_leaf(raw: bytes) -> bytes:
    """The leaf hash of a chunk of at most 256 weights of a row, from its bytes."""
    return leaf_hash(CHUNK_TAG + raw)


def tensor_count(graph: GraphSizes, kind: GraphKind) -> tuple[int, ...]:
    """How many tensors a file of the graph may have."""
    layer = 9 + 3 * kind.biases + 2 * kind.head_norms
    count = 2 + (not graph.tied) + graph.n_layers * layer
    return (count, count + 1) if kind.rope_factors else (count,)
