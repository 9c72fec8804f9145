"""What a model file must hold for its graph, per architecture and tensor type, and what is refused by name (spec 07)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import maker, model_bytes

from aos.core.arithmetic.floats import NumericTrap
from aos.core.arithmetic.formats import BLOCK_FORMATS
from aos.core.arithmetic.matmul import BlockMatrix, DenseMatrix, quantise
from aos.engine.forward import Context, Op, products
from aos.engine.gguf import GGUF, parse_gguf
from aos.engine.llama import Model, read_hyper_parameters
from aos.engine.reference import ReferenceEngine
from aos.engine.state import StateLeaves
from aos.errors import InvalidMessage

OF_TYPE = {
    "Q4_0": "tiny-q4_0",
    "Q4_1": "tiny-q4_1",
    "Q5_0": "tiny-q5_0",
    "Q5_1": "tiny-q5_1",
    "Q8_0": "tiny-q8_0",
    "Q4_K": "tiny-q4_k",
    "Q5_K": "tiny-q5_k",
    "Q6_K": "tiny-q6_k",
    "F16": "tiny-f16",
    "BF16": "tiny-bf16",
    "F32": "tiny-f32",
}


def parsed(data: bytes) -> GGUF:
    return parse_gguf(memoryview(data), path=Path("model"))


def refusal(data: bytes) -> tuple[str, str | None]:
    with pytest.raises(InvalidMessage) as caught:
        Model(parsed(data))
    return caught.value.code, caught.value.field


def built(name: str, **changes: Any) -> bytes:
    (model,) = [model for model in maker().MODELS if model.name == name]
    data: bytes = maker().build_model(replace(model, **changes))
    return data


def without_tensor(data: bytes, name: str) -> bytes:
    """The file with one tensor called otherwise."""
    assert data.count(name.encode()) == 1
    return data.replace(name.encode(), (name[:-1] + "x").encode())


def test_every_type_of_the_specification_has_a_model() -> None:
    assert OF_TYPE.keys() == {*BLOCK_FORMATS, "F16", "BF16", "F32"}


@pytest.mark.parametrize("kind", OF_TYPE)
@pytest.mark.parametrize("tensor", ["token_embd.weight", "blk.0.ffn_down.weight"])
@pytest.mark.parametrize("pattern", ["infinity", "minus infinity", "quiet NaN", "signalling NaN"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(
    kind: str, tensor: str, pattern: str
) -> None:
    halves = {"infinity": 0x7C00, "minus infinity": 0xFC00, "quiet NaN": 0x7E00, "signalling NaN": 0xFC01}
    file = parsed(model_bytes(OF_TYPE[kind]))
    (found,) = [t for t in file.tensors if t.name == tensor]
    assert found.type.name == kind
    bits, size = halves[pattern], 2
    if kind in ("BF16", "F32"):
        bits = (bits >> 15 << 15) | 0x7F80 | (bits & 0x3FF) >> 3 | (bits & 1)
    if kind == "F32":
        bits, size = bits << 16, 4
    places = BLOCK_FORMATS[kind].scales_at if kind in BLOCK_FORMATS else (0,)
    for place in places:
        data = bytearray(file.data)
        # The last block, or the last weight.
        at = found.offset + found.size - found.type.block_bytes + place
        data[at : at + size] = bits.to_bytes(size, "little")
        assert refusal(bytes(data)) == ("engine.not_finite", tensor)


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_subnormal_scales_are_numbers(kind: str) -> None:
    file = parsed(model_bytes(OF_TYPE[kind]))
    data = bytearray(file.data)
    (down,) = [t for t in file.tensors if t.name == "blk.0.ffn_down.weight"]
    for block in range(down.offset, down.offset + down.size, down.type.block_bytes):
        for place in BLOCK_FORMATS[kind].scales_at:
            data[block + place : block + place + 2] = b"\x01\x00"
    matrix = Model(parsed(bytes(data))).layers[0].down
    # Every weight is a multiple of 2^-24, so such products are as well where the activations' scale is one.
    x = np.full((1, down.columns), 127.0, dtype=np.float32)
    assert isinstance(matrix, BlockMatrix)
    y = matrix.product(*quantise(x))
    assert np.isfinite(y).all()
    assert np.any(y != 0)
    assert np.array_equal(y * 2.0**24, np.rint(y * np.float32(2.0**24)))


@pytest.mark.parametrize("name", ["tiny-llama-2", "tiny-qwen2", "tiny-qwen3"])
def test_a_key_that_is_not_understood_is_refused_by_its_name(name: str) -> None:
    architecture = read_hyper_parameters(parsed(model_bytes(name))).architecture.name
    for key, kind, value in (
        ("attention.max_alibi_bias", 6, 1.0),
        ("rope.scaling.type", 8, "yarn"),
        ("rope.scaling.type", 8, "linear"),
        ("rope.scaling.factor", 6, 8.0),
        ("rope.scaling.original_context_length", 4, 64),
        ("rope.scale_linear", 6, 2.0),
        ("expert_count", 4, 8),
        ("attention.scale", 6, 0.5),
    ):
        data = built(name, extra=((key, kind, value),))
        assert refusal(data) == ("engine.parameter", f"{architecture}.{key}")
    neutral = (
        ("rope.scaling.type", 8, "none"),
        ("rope.scaling.factor", 6, 1.0),
        ("expert_count", 4, 0),
    )
    Model(parsed(built(name, extra=neutral)))


def test_a_key_of_another_architecture_is_not_read() -> None:
    data = built("tiny-qwen2", extra=(("x", 4, 1),)).replace(b"qwen2.x", b"llama.x")
    Model(parsed(data))


@pytest.mark.parametrize("value", ["qwen2moe", "qwen3moe", "gemma", "LLAMA", "", "llama\0"])
def test_an_architecture_that_is_not_understood_is_refused_by_its_name(value: str) -> None:
    file = parsed(model_bytes("tiny-qwen3"))
    metadata = {**file.metadata, "general.architecture": value.encode()}
    with pytest.raises(InvalidMessage) as caught:
        Model(replace(file, metadata=metadata))
    assert (caught.value.code, caught.value.field) == ("engine.architecture", "general.architecture")
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("tiny-qwen2", "blk.1.attn_k.bias"),
        ("tiny-qwen3", "blk.0.attn_q_norm.weight"),
        ("tiny-llama-2", "blk.1.attn_q.weight"),
    ],
)
def test_a_tensor_that_the_graph_needs_is_missed_by_its_name(name: str, tensor: str) -> None:
    data = without_tensor(model_bytes(name), tensor)
    assert refusal(data) == ("engine.tensor_unexpected", tensor[:-1] + "x")
    file = parsed(model_bytes(name))
    kept = tuple(t for t in file.tensors if t.name != tensor)
    with pytest.raises(InvalidMessage) as caught:
        Model(replace(file, tensors=kept))
    assert (caught.value.code, caught.value.field) == ("engine.tensor_missing", tensor)


@pytest.mark.parametrize(
    ("name", "architecture", "tensor"),
    [
        ("tiny-qwen2", "llama", "blk.0.attn_q.bias"),
        ("tiny-qwen2", "qwen3", "blk.0.attn_q.bias"),
        ("tiny-qwen3", "qwen2", "blk.0.attn_q_norm.weight"),
        ("tiny-llama-3", "qwen2", "rope_freqs.weight"),
    ],
)
def test_a_tensor_of_another_graph_is_refused_by_its_name(name: str, architecture: str, tensor: str) -> None:
    file = parsed(model_bytes(name))
    own = read_hyper_parameters(file).architecture.name
    metadata = {
        key.replace(own + ".", architecture + ".", 1) if key.startswith(own + ".") else key: value
        for key, value in file.metadata.items()
    }
    with pytest.raises(InvalidMessage) as caught:
        Model(replace(file, metadata={**metadata, "general.architecture": architecture.encode()}))
    assert (caught.value.code, caught.value.field) == ("engine.tensor_unexpected", tensor)


def test_rows_of_super_blocks_have_a_multiple_of_256_weights() -> None:
    with pytest.raises(InvalidMessage) as caught:
        parsed(built("tiny-q4_k", width=256, ff_width=288))
    assert (caught.value.code, caught.value.field) == ("gguf.tensor_shape", "blk.0.ffn_down.weight")


@pytest.mark.parametrize(
    ("window", "expected"),
    [(None, 128), (0, 128), (1, 1), (64, 64), (127, 127), (128, 128), (4096, 128)],
)
@pytest.mark.parametrize("name", ["tiny-llama-2", "tiny-qwen2", "tiny-qwen3"])
def test_a_sliding_window_caps_the_context(name: str, window: int | None, expected: int) -> None:
    extra = () if window is None else (("attention.sliding_window", 4, window),)
    assert read_hyper_parameters(parsed(built(name, extra=extra))).n_ctx == expected


def test_a_window_that_is_no_count_is_refused() -> None:
    data = built("tiny-llama-2", extra=(("attention.sliding_window", 6, 64.0),))
    assert refusal(data) == ("engine.parameter", "llama.attention.sliding_window")


def test_a_context_cut_by_a_window_gives_the_models_own_bits(tmp_path: Path) -> None:
    runs = []
    for extra in ((), (("attention.sliding_window", 4, 48),)):
        path = tmp_path / f"{len(extra)}.gguf"
        path.write_bytes(built("tiny-qwen3", extra=extra))
        engine = ReferenceEngine(path)
        context = Context(engine._model, engine._cos, engine._sin)
        runs.append(context.extend(list(range(260, 290)), StateLeaves(2))[0].tobytes())
    assert runs[0] == runs[1]


def test_the_files_rotary_factors_turn_the_angles(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes("tiny-llama-3"))
    engine = ReferenceEngine(path)
    factors = engine._model.rope_factors
    assert factors is not None
    assert (factors[0], factors[-1]) == (1, 8)
    # Position 80 at a factor of 8 is position 10 at 1.
    plain = tmp_path / "plain.gguf"
    plain.write_bytes(built("tiny-llama-3", rope_factors=()))
    other = ReferenceEngine(plain)
    assert other._model.rope_factors is None
    assert engine._cos[80, -1] == other._cos[10, -1]
    assert engine._sin[80, 0] == other._sin[80, 0]


@pytest.mark.parametrize(
    ("tensor", "op"),
    [
        ("blk.0.attn_q_norm.weight", Op.Q_NORM),
        ("blk.0.attn_k_norm.weight", Op.K_NORM),
    ],
)
def test_a_norm_of_a_head_that_overflows_traps_there(tensor: str, op: Op) -> None:
    trap = trapped(lambda values: np.full_like(values, 3e38), "tiny-qwen3", tensor)
    assert trap == (0, 1, op)


def test_a_bias_belongs_to_its_product() -> None:
    matrix = DenseMatrix(np.full((1, 32), 2e38 / 32, dtype=np.float32))
    x = np.ones((2, 32), dtype=np.float32)
    bias = np.full(1, 2e38, dtype=np.float32)
    assert np.isfinite(products(x, (matrix,), (Op.V,), (-bias,))[0]).all()
    with np.errstate(over="ignore"), pytest.raises(NumericTrap) as caught:
        products(x, (matrix,), (Op.V,), (bias,))
    assert (caught.value.op, caught.value.row) == (Op.V, 0)


def trapped(
    change: Callable[[Any], Any], name: str, tensor: str, token: int = 260
) -> tuple[int, int, int] | None:
    """Where a run traps whose vector ``tensor`` is changed."""
    file = parsed(model_bytes(name))
    data = bytearray(file.data)
    (found,) = [t for t in file.tensors if t.name == tensor]
    span = slice(found.offset, found.offset + found.size)
    data[span] = change(np.frombuffer(data[span], dtype="<f4")).astype("<f4").tobytes()
    model = Model(parsed(bytes(data)))
    half = model.hyper.n_rot // 2
    cos, sin = np.ones((8, half), dtype=np.float32), np.zeros((8, half), dtype=np.float32)
    _, trap = Context(model, cos, sin).extend([token], StateLeaves(model.hyper.n_layers))
    return None if trap is None else (trap.position, trap.unit, trap.op)
