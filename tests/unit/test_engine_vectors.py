"""The reference engine gives every bit that vectors/aos/engine commits to (spec 07, "Vectors")."""

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import VECTORS, maker, model_bytes

from aos.core.arithmetic.floats import millionths, to_half
from aos.core.arithmetic.formats import BLOCK_FORMATS, dequantise, widen_bf16
from aos.core.arithmetic.matmul import BlockMatrix, DenseMatrix, quantise
from aos.core.arithmetic.ops import exp, rms_norm, silu_product
from aos.core.arithmetic.rope_table import rope_table
from aos.core.arithmetic.sampler import Rules, choose, philox4x32_10
from aos.core.codec import encode
from aos.engine.reference import ReferenceEngine
from aos.errors import InvalidMessage

FILES = sorted(path.stem for path in VECTORS.glob("tiny-*.json"))
ARITHMETIC = json.loads((VECTORS / "arithmetic.json").read_text(encoding="utf-8"))
GGUF = json.loads((VECTORS / "gguf.json").read_text(encoding="utf-8"))


def floats(patterns: list[str]) -> Any:
    return np.array([int(p, 16) for p in patterns], dtype=np.uint32).view(np.float32)


def same_bits(values: Any, patterns: list[str]) -> bool:
    return bool(
        (
            np.asarray(values, dtype=np.float32).reshape(-1).view(np.uint32)
            == floats(patterns).view(np.uint32)
        ).all()
    )


def vector_of(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return value


def test_there_is_a_vector_for_every_model() -> None:
    assert sorted(model.name for model in maker().MODELS) == FILES


@pytest.mark.parametrize("name", FILES)
def test_every_run_gives_the_committed_tokens_text_and_roots(name: str, tmp_path: Path) -> None:
    vector = vector_of(name)
    path = tmp_path / vector["file"]
    path.write_bytes(model_bytes(name))
    assert sha256(path.read_bytes()).hexdigest() == vector["file_sha256"]
    engine = ReferenceEngine(path)
    assert encode(engine.manifest) == vector["manifest"]
    assert engine.model_id.hex() == vector["model_id"]
    salt = bytes.fromhex(vector["salt"])
    for case in vector["cases"]:
        params = maker().sampling_params(case["params"])
        if "error" in case:
            with pytest.raises(InvalidMessage) as caught:
                engine.generate(case["prompt"], params, salt=salt)
            assert (caught.value.code, caught.value.field) == (case["error"], case["field"]), case["name"]
            continue
        leaves, result = engine.traced(case["prompt"], params, salt=salt)
        assert list(result.prompt_tokens) == case["prompt_tokens"], case["name"]
        assert list(result.tokens) == case["tokens"], case["name"]
        assert result.text == case["text"], case["name"]
        assert result.finish_reason == case["finish_reason"], case["name"]
        assert len(leaves.positions) == case["positions"], case["name"]
        assert [root.hex() for root in leaves.unit_roots()] == case["unit_roots"], case["name"]
        assert result.state_root is not None
        assert result.state_root.hex() == case["state_root"], case["name"]
        assert engine.replay(case["prompt"], result.tokens, params, salt=salt) == result, case["name"]


@pytest.mark.parametrize("case", GGUF["cases"], ids=lambda case: case["name"])
def test_a_broken_file_is_refused_by_name(case: dict[str, Any], tmp_path: Path) -> None:
    data = bytearray(model_bytes("tiny-q8_0"))
    if "length" in case:
        del data[case["length"] :]
    elif "append" in case:
        data += bytes.fromhex(case["append"])
    else:
        patch = bytes.fromhex(case["bytes"])
        assert data[case["at"] : case["at"] + len(patch)] != patch
        data[case["at"] : case["at"] + len(patch)] = patch
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with pytest.raises(InvalidMessage) as caught:
        ReferenceEngine(path)
    assert caught.value.code == case["error"]


def test_exp_and_silu_give_the_committed_bits() -> None:
    assert same_bits(exp(floats(ARITHMETIC["exp"]["x"])), ARITHMETIC["exp"]["y"])
    silu = ARITHMETIC["silu_product"]
    assert same_bits(silu_product(floats(silu["gate"]), floats(silu["up"])), silu["y"])


def test_halves_round_to_even_and_saturate() -> None:
    got = [f"{int(v):04x}" for v in to_half(floats(ARITHMETIC["half"]["x"])).view(np.uint16)]
    assert got == ARITHMETIC["half"]["y"]
    assert got[:5] == ["7bff", "7bff", "7bff", "7bff", "fbff"]


def test_quantisation_gives_the_committed_integers() -> None:
    q, d = quantise(floats(ARITHMETIC["quantise"]["x"])[None])
    assert q[:, 0].astype(int).tolist() == ARITHMETIC["quantise"]["q"]
    assert same_bits(d, ARITHMETIC["quantise"]["d"])
    assert not any(ARITHMETIC["quantise"]["q"][1])


def test_a_row_of_every_type_gives_the_committed_weights_and_product() -> None:
    def joined(patterns: str) -> Any:
        return floats([patterns[at : at + 8] for at in range(0, len(patterns), 8)])

    x = joined(ARITHMETIC["products"][0]["x"])[None]
    rows = ARITHMETIC["products"][1:]
    assert {row["type"] for row in rows} == {*BLOCK_FORMATS, "F16", "BF16", "F32"}
    for row in rows:
        raw = np.frombuffer(bytes.fromhex(row["packed"]), dtype=np.uint8)
        part = x[:, : row["columns"]]
        if row["type"] in BLOCK_FORMATS:
            unpack = BLOCK_FORMATS[row["type"]].unpack
            blocks = row["columns"] // (256 if row["type"].endswith("K") else 32)
            packed = raw.reshape(1, blocks, -1)
            expected = joined(row["weights"]).view(np.uint32)
            assert (dequantise(unpack(packed)).reshape(-1).view(np.uint32) == expected).all(), row["type"]
            y = BlockMatrix(packed, unpack, keep=False).product(*quantise(part))
        else:
            dense = widen_bf16(raw.view("<u2")) if row["type"] == "BF16" else raw.view(f"<f{raw.size // 288}")
            y = DenseMatrix(dense.astype(np.float32)[None]).product(part)
        assert same_bits(y, [row["y"]]), row["type"]


def test_rms_norm_gives_the_committed_bits() -> None:
    v = ARITHMETIC["rms_norm"]
    assert same_bits(rms_norm(floats(v["x"])[None], floats(v["weight"]), floats([v["eps"]])[0], 0), v["y"])


def test_the_rotary_table_gives_the_committed_bits() -> None:
    v = ARITHMETIC["rope_table"]
    cos, sin = rope_table(v["base"], v["n_rot"], v["positions"], v["factors"])
    assert same_bits(cos, v["cos"])
    assert same_bits(sin, v["sin"])


def test_millionths_become_the_nearest_binary32() -> None:
    for case in ARITHMETIC["millionths"]:
        assert same_bits([millionths(case["value"])], [case["bits"]])


def test_philox_gives_the_committed_words() -> None:
    for case in ARITHMETIC["philox"]:
        assert list(philox4x32_10(int(case["key"]), tuple(case["counter"]))) == case["words"]


def test_the_sampler_gives_the_committed_tokens_and_records() -> None:
    logits = floats(ARITHMETIC["sampler"][0]["logits"])
    for case in ARITHMETIC["sampler"][1:]:
        rules = Rules(**case["rules"])
        assert asdict(rules) == case["rules"]
        choice = choose(logits, case["seen"], case["step"], rules, 0)
        assert (choice.token, choice.record.hex()) == (case["token"], case["record"])
