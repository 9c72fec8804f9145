"""Make the vectors of the canonical engine (vectors/aos/engine; docs/spec/07-inference.md, "Vectors").

``python scripts/make_engine_vectors.py`` writes the vectors anew, ``--models DIR`` only writes the models
(tiny_models.py), which are not committed.
"""

import argparse
import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tiny_models import (
    MODELS,
    TYPE_CODES,
    TinyModel,
    build_model,
    noise,
    packed_string,
    tensor_bytes,
    vocabulary,
)

from aos.core.arithmetic.floats import millionths, to_half
from aos.core.arithmetic.formats import BLOCK_FORMATS, dequantise, widen_bf16
from aos.core.arithmetic.matmul import BlockMatrix, DenseMatrix, quantise
from aos.core.arithmetic.ops import exp, rms_norm, silu_product
from aos.core.arithmetic.rope_table import rope_table
from aos.core.arithmetic.sampler import Rules, choose, philox4x32_10
from aos.core.codec import encode
from aos.engine.reference import ReferenceEngine
from aos.errors import AOSError
from aos.ports import SamplingParams

ROOT = Path(__file__).resolve().parents[1]
VECTORS = ROOT / "vectors" / "aos" / "engine"
SALT = bytes(range(32))

LONG = "what is the meaning of the thing and the other and you are in the end " * 20
RUNS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "tiny-q4_0": [
        ("greedy", "what is the", {"temperature": 0, "max_tokens": 24}),
        ("the seed's parameters", "What is AI?", {"top_p": 500_000, "max_tokens": 32, "seed": 7}),
        (
            "more than one chunk of positions",
            LONG[:900],
            {"temperature": 800_000, "max_tokens": 8, "seed": 2**64 - 1},
        ),
        ("an empty prompt is BOS alone", "", {"max_tokens": 4, "seed": 1}),
    ],
    "tiny-q8_0": [
        ("greedy", "and you", {"temperature": 0, "max_tokens": 24}),
        (
            "everything at once",
            "é and\n\x00🦙",
            {
                "temperature": 1_300_000,
                "top_k": 40,
                "top_p": 900_000,
                "min_p": 10_000,
                "repeat_penalty": 1_100_000,
                "max_tokens": 40,
                "seed": 123456789,
            },
        ),
        ("top_k of one is greedy", "and you", {"top_k": 1, "max_tokens": 24, "seed": 5}),
        ("top_p of zero is greedy", "and you", {"top_p": 0, "max_tokens": 24, "seed": 5}),
    ],
    "tiny-f16": [
        ("greedy", "the end", {"temperature": 0, "max_tokens": 16}),
        ("hot", "the end", {"temperature": 10_000_000, "max_tokens": 16, "seed": 3}),
        ("cold", "the end", {"temperature": 10_000, "max_tokens": 16, "seed": 3}),
        ("cut to the context", LONG[:1070], {"max_tokens": 1000, "seed": 4}),
    ],
    "tiny-f32": [
        ("greedy", "of the", {"temperature": 0, "max_tokens": 16}),
        ("sampled", "of the", {"max_tokens": 16, "seed": 11}),
    ],
    "tiny-mixed": [
        ("greedy", "what is", {"temperature": 0, "max_tokens": 24}),
        ("sampled", "what is", {"min_p": 50_000, "max_tokens": 24, "seed": 8}),
        ("penalty below one", "what is", {"repeat_penalty": 500_000, "max_tokens": 24, "seed": 8}),
    ],
    "tiny-ends": [
        ("eos ends", "b", {"temperature": 0, "max_tokens": 8}),
        (
            "end of turn ends",
            "you are in the end",
            {"temperature": 0, "repeat_penalty": 1_500_000, "max_tokens": 8},
        ),
        ("end of message ends", "b", {"temperature": 0, "repeat_penalty": 1_500_000, "max_tokens": 8}),
    ],
    "tiny-trap": [
        ("trap in the prompt", "is it so? yes", {"max_tokens": 4}),
        ("trap in the first position after BOS", "?", {"max_tokens": 4}),
    ],
}
SHORT_RUNS: list[tuple[str, str, dict[str, Any]]] = [
    ("greedy", "what is the", {"temperature": 0, "repeat_penalty": 3_000_000, "max_tokens": 12}),
    ("sampled", LONG[:40], {"temperature": 5_000_000, "top_p": 900_000, "max_tokens": 12, "seed": 21}),
]
OUT_OF_RANGE: list[tuple[str, dict[str, Any]]] = [
    ("temperature", {"temperature": -1}),
    ("temperature", {"temperature": 9_999}),
    ("temperature", {"temperature": 10_000_001}),
    ("top_p", {"top_p": 1_000_001}),
    ("top_k", {"top_k": -1}),
    ("min_p", {"min_p": -1}),
    ("repeat_penalty", {"repeat_penalty": 99_999}),
    ("max_tokens", {"max_tokens": 0}),
    ("seed", {"seed": 2**64}),
    ("stop", {"stop": [""]}),
    ("stop", {"stop": ["x"] * 17}),
    ("stop", {"stop": ["x" * 257]}),
]


def sampling_params(members: dict[str, Any]) -> SamplingParams:
    """From a vector's members."""
    return SamplingParams(**{**members, "stop": tuple(members.get("stop", ()))})


def run_case(engine: ReferenceEngine, name: str, prompt: str, members: dict[str, Any]) -> dict[str, Any]:
    """What the engine does, as a vector."""
    case: dict[str, Any] = {"name": name, "prompt": prompt, "params": members}
    try:
        run, result = engine.traced(prompt, sampling_params(members), salt=SALT)
    except AOSError as error:
        return {**case, "error": error.code, "field": error.field}
    return {
        **case,
        "prompt_tokens": list(result.prompt_tokens),
        "tokens": list(result.tokens),
        "text": result.text,
        "finish_reason": result.finish_reason,
        "positions": len(run.positions),
        "unit_roots": [root.hex() for root in run.unit_roots()],
        "state_root": (result.state_root or b"").hex(),
    }


def model_vector(model: TinyModel, directory: Path) -> dict[str, Any]:
    path = directory / f"{model.name}.gguf"
    path.write_bytes(build_model(model))
    engine = ReferenceEngine(path)
    cases = [run_case(engine, *run) for run in RUNS.get(model.name, SHORT_RUNS)]
    if model.loud_piece or model.loud_norm:
        cases.extend(_search_traps(engine))
    if model.name == "tiny-q8_0":
        cases.extend(_stop_cases(engine, cases[0]))
        cases.extend(
            run_case(engine, f"{name} out of range", "and you", members) for name, members in OUT_OF_RANGE
        )
    too_long = "a" * (2 * model.n_ctx)
    cases.append(run_case(engine, "a prompt that fills the context", too_long, {}))
    return {
        "source": "scripts/make_engine_vectors.py",
        "file": path.name,
        "file_sha256": sha256(path.read_bytes()).hexdigest(),
        "model_id": engine.model_id.hex(),
        "manifest": encode(engine.manifest),
        "salt": SALT.hex(),
        "cases": cases,
    }


def _stop_cases(engine: ReferenceEngine, greedy: dict[str, Any]) -> list[dict[str, Any]]:
    """Stop strings inside, across and at the end of a text that the engine is known to write."""
    text = greedy["text"]
    stops = {
        "a stop string inside the text": [text[5:8]],
        "the earliest of several stop strings": [text[9:12], text[3:6], "never"],
        "a stop string that begins and does not end": [text[-2:] + "never"],
    }
    return [
        run_case(engine, name, greedy["prompt"], {**greedy["params"], "stop": s}) for name, s in stops.items()
    ]


def _search_traps(engine: ReferenceEngine) -> list[dict[str, Any]]:
    """The first one-letter prompt after which the engine chooses a token, and then traps."""
    for letter in "abcdefghijklmnopqrstuvwxyz":
        case = run_case(engine, "trap after a chosen token", letter, {"temperature": 0, "max_tokens": 4})
        if case["finish_reason"] == "numeric_trap" and case["tokens"]:
            return [case]
    raise ValueError("no prompt leads to a trap")


def bits(values: Any) -> list[str]:
    """binary32 bit patterns, eight hex digits each."""
    return [f"{int(v):08x}" for v in np.asarray(values, dtype=np.float32).reshape(-1).view(np.uint32)]


def arithmetic_vector() -> dict[str, Any]:
    edge = [0.0, -0.0, 1.0, -1.0, 88.0, 88.1, -87.0, -87.1, 1e30, -1e30, 0.34657359, -0.34657359, 1e-8]
    some = [float(v) for v in np.float32(noise("exp", 64) * 20)]
    x = np.array(edge + some, dtype=np.float32)
    halves = np.array(
        [65504, 65519, 65520, 1e9, -1e9, 2**-24, 2**-25, 3 * 2**-25, 1.0004883, 1.0014648], dtype=np.float32
    )
    activations = (noise("quantise", 96) * 3).astype(np.float32)
    activations[32:64] *= np.float32(2.0**-110)
    q, d = quantise(activations[None])
    normed = noise("norm", 64).astype(np.float32)
    weight = noise("norm weight", 64).astype(np.float32)
    table = rope_table(10_000.0, 8, 40, (1.0, 1.5, 8.0, 32.0))
    keys = [(0, (0, 0, 0, 0)), (2**64 - 1, (2**32 - 1,) * 4), (7, (1, 0, 0, 0))]
    return {
        "source": "scripts/make_engine_vectors.py",
        "exp": {"x": bits(x), "y": bits(exp(x))},
        "silu_product": {
            "gate": bits(some[:32]),
            "up": bits(some[32:]),
            "y": bits(
                silu_product(np.array(some[:32], dtype=np.float32), np.array(some[32:], dtype=np.float32))
            ),
        },
        "half": {"x": bits(halves), "y": [f"{int(v):04x}" for v in to_half(halves).view(np.uint16)]},
        "quantise": {
            "x": bits(activations),
            "q": q[:, 0].astype(int).tolist(),
            "d": bits(d),
        },
        "products": product_cases(),
        "rms_norm": {
            "x": bits(normed),
            "weight": bits(weight),
            "eps": bits([1e-5])[0],
            "y": bits(rms_norm(normed[None], weight, np.float32(1e-5), 0)),
        },
        "rope_table": {
            "base": 10_000,
            "n_rot": 8,
            "factors": [1.0, 1.5, 8.0, 32.0],
            "positions": 40,
            "cos": bits(table[0]),
            "sin": bits(table[1]),
        },
        "millionths": [
            {"value": v, "bits": bits([millionths(v)])[0]}
            for v in (0, 1, 333_333, 500_000, 700_000, 1_100_000)
        ],
        "philox": [
            {"key": str(key), "counter": list(counter), "words": list(philox4x32_10(key, counter))}
            for key, counter in keys
        ],
        "sampler": _sampler_cases(),
    }


def product_cases() -> list[dict[str, Any]]:
    """One row of every type: its packed bytes, dequantised weights, and its product with ``x`` (patterns joined)."""
    x = (noise("product", 512) * 2).astype(np.float32)
    x[64:96] = np.float32(2.0**-110)
    cases: list[dict[str, Any]] = [{"x": "".join(bits(x))}]
    for kind in TYPE_CODES:
        columns = 512 if kind.endswith("K") else 288
        raw = np.frombuffer(tensor_bytes(kind, f"product/{kind}", 1, columns, 1.0), dtype=np.uint8)
        part = x[None, :columns]
        if kind in BLOCK_FORMATS:
            unpack = BLOCK_FORMATS[kind].unpack
            packed = raw.reshape(1, columns // (256 if kind.endswith("K") else 32), -1)
            weights = dequantise(unpack(packed)).reshape(1, columns)
            y = BlockMatrix(packed, unpack, keep=True).product(*quantise(part))
        else:
            weights = (
                widen_bf16(raw.view("<u2"))
                if kind == "BF16"
                else raw.view({"F32": "<f4", "F16": "<f2"}[kind])
            )
            weights = weights.astype(np.float32).reshape(1, columns)
            y = DenseMatrix(weights).product(part)
        cases.append(
            {
                "type": kind,
                "columns": columns,
                "packed": raw.tobytes().hex(),
                "weights": "".join(bits(weights)) if kind in BLOCK_FORMATS else "",
                "y": bits(y)[0],
            }
        )
    return cases


def _sampler_cases() -> list[dict[str, Any]]:
    logits = (noise("sampler", 700) * 3).astype(np.float32)
    logits[[5, 400]] = logits.max() + np.float32(0.5)
    rules: list[dict[str, int]] = [
        {},
        {"temperature": 0},
        {"top_p": 500_000},
        {"top_k": 3},
        {"min_p": 100_000},
        {"temperature": 100_000},
        {"repeat_penalty": 1_500_000, "top_p": 990_000},
        {"top_k": 300, "min_p": 1_000, "top_p": 950_000},
    ]
    base = {"temperature": 1_000_000, "top_k": 0, "top_p": 1_000_000, "min_p": 0, "repeat_penalty": 1_000_000}
    cases: list[dict[str, Any]] = [{"logits": bits(logits)}]
    for index, members in enumerate(rules):
        rule = Rules(**{**base, **members, "seed": 1000 + index})
        chosen = choose(logits, [5, 17, 17, 699], index, rule, 0)
        cases.append(
            {
                "rules": asdict(rule),
                "seen": [5, 17, 17, 699],
                "step": index,
                "token": chosen.token,
                "record": chosen.record.hex(),
            }
        )
    return cases


def file_vector() -> dict[str, Any]:
    """Broken files: patches of one good file, and the code that each must be refused with."""
    model = next(m for m in MODELS if m.name == "tiny-q8_0")
    good = build_model(model)
    cases: list[dict[str, Any]] = []

    def patch(name: str, error: str, at: int, old: bytes, new: bytes) -> None:
        if good[at : at + len(old)] != old or len(old) != len(new):
            raise ValueError(f"{name}: the file does not hold what is patched")
        cases.append({"name": name, "error": error, "at": at, "bytes": new.hex()})

    def after(text: str) -> int:
        raw = packed_string(text)
        if good.count(raw) != 1:
            raise ValueError(f"{text} is not unique")
        return good.index(raw) + len(raw)

    def tensor(name: str) -> Callable[[int], int]:
        return lambda offset: after(name) + offset

    u32, u64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
    patch("another magic", "gguf.magic", 0, b"GGUF", b"GGML")
    patch("version 1", "gguf.version", 4, u32(3), u32(1))
    patch("big endian", "gguf.version", 4, u32(3), struct.pack(">I", 3))
    patch("too many tensors", "gguf.limit", 8, good[8:16], u64(2**40))
    patch("too many keys", "gguf.limit", 16, good[16:24], u64(2**63))
    patch("a string beyond the end", "gguf.limit", 24, good[24:32], u64(2**62))
    patch("an unknown metadata type", "gguf.value_type", after("general.name"), u32(8), u32(13))
    patch("nested arrays", "gguf.value_type", after("tokenizer.ggml.scores") + 4, u32(6), u32(9))
    patch(
        "an array beyond the limit",
        "gguf.limit",
        after("tokenizer.ggml.scores") + 8,
        u64(len(vocabulary())),
        u64(2**33),
    )
    patch(
        "an array beyond the end",
        "gguf.truncated",
        after("tokenizer.ggml.scores") + 8,
        u64(len(vocabulary())),
        u64(2**20),
    )
    patch(
        "a truth value of 2", "gguf.value_type", after("tokenizer.ggml.add_bos_token") + 4, b"\x01", b"\x02"
    )
    patch("a key twice", "gguf.duplicate_key", after("tokenizer.ggml.eos_token_id") - 12, b"eos", b"bos")
    gate, down = tensor("blk.0.ffn_gate.weight"), tensor("blk.0.ffn_down.weight")
    patch("no dimensions", "gguf.tensor_shape", gate(0), u32(2), u32(0))
    patch("five dimensions", "gguf.tensor_shape", gate(0), u32(2), u32(5))
    patch("a dimension of zero", "gguf.tensor_shape", gate(12), u64(288), u64(0))
    patch("an absurd dimension", "gguf.tensor_shape", gate(12), u64(288), u64(2**62))
    patch("rows that are not whole blocks", "gguf.tensor_shape", gate(4), u64(32), u64(33))
    patch("an unknown tensor type", "gguf.tensor_type", gate(20), u32(8), u32(99))
    patch("a tensor beyond the end", "gguf.tensor_range", gate(12), u64(288), u64(2**24))
    patch("overlapping tensors", "gguf.tensor_overlap", down(24), good[down(24) : down(24) + 8], u64(0))
    patch(
        "a gap between tensors",
        "gguf.tensor_gap",
        down(24),
        good[down(24) : down(24) + 8],
        u64(int.from_bytes(good[down(24) : down(24) + 8], "little") + 32),
    )
    patch(
        "a tensor name twice",
        "gguf.duplicate_tensor",
        after("blk.1.ffn_up.weight") - 19,
        b"blk.1.ffn_up.weight",
        b"blk.0.ffn_up.weight",
    )
    patch("a name that is not UTF-8", "gguf.name", after("blk.1.ffn_up.weight") - 1, b"t", b"\xff")
    patch(
        "another architecture", "engine.architecture", after("general.architecture") + 12, b"llama", b"gemma"
    )
    patch(
        "another tokenizer", "tokenizer.unsupported", after("tokenizer.ggml.model") + 12, b"llama", b"plamo"
    )
    patch(
        "an unknown key of the architecture",
        "engine.parameter",
        after("llama.attention.key_length") - 10,
        b"key_length",
        b"key_lenxxx",
    )
    patch(
        "heads that do not share evenly",
        "engine.parameter",
        after("llama.attention.head_count_kv") + 4,
        u32(1),
        u32(3),
    )
    patch(
        "more rotated than there are dimensions",
        "engine.parameter",
        after("llama.rope.dimension_count") + 4,
        u32(16),
        u32(18),
    )
    patch("no layers", "engine.parameter", after("llama.block_count") + 4, u32(2), u32(0))
    patch("a missing layer", "engine.tensor_missing", after("llama.block_count") + 4, u32(2), u32(3))
    patch("a layer too many", "engine.tensor_unexpected", after("llama.block_count") + 4, u32(2), u32(1))
    patch(
        "a vocabulary of another size",
        "engine.parameter",
        after("llama.vocab_size") + 4,
        u32(len(vocabulary())),
        u32(len(vocabulary()) + 1),
    )
    patch(
        "eps that is not a number",
        "engine.parameter",
        after("llama.attention.layer_norm_rms_epsilon") + 4,
        struct.pack("<f", 1e-5),
        struct.pack("<f", float("nan")),
    )
    patch(
        "a rotary base below one",
        "rope.base",
        after("llama.rope.freq_base") + 4,
        struct.pack("<f", 10_000.0),
        struct.pack("<f", 0.5),
    )
    patch(
        "a matrix of the wrong shape",
        "engine.tensor_shape",
        after("llama.feed_forward_length") + 4,
        u32(288),
        u32(320),
    )
    patch(
        "a score that is not a number",
        "tokenizer.score",
        after("tokenizer.ggml.scores") + 16,
        struct.pack("<f", 0.0),
        struct.pack("<f", float("inf")),
    )
    patch(
        "BOS outside the vocabulary",
        "tokenizer.special_id",
        after("tokenizer.ggml.bos_token_id") + 4,
        u32(1),
        u32(10**6),
    )
    start = (
        -(
            -(
                good.rindex(packed_string("output.weight"))
                + len(packed_string("output.weight"))
                + 4
                + 16
                + 4
                + 8
            )
            // 32
        )
        * 32
    )
    patch("an infinite scale", "engine.not_finite", start, good[start : start + 2], b"\x00\x7c")
    patch(
        "a scale that is not a number",
        "engine.not_finite",
        start + 34,
        good[start + 34 : start + 36],
        b"\x01\xfe",
    )
    cuts = (0, 3, 10, 23, 40, 2000, start - 1, start, len(good) - 32)
    for cut in cuts:
        code = "gguf.tensor_range" if cut > after("output.weight") else "gguf.truncated"
        cases.append({"name": f"cut after {cut} bytes", "error": code, "length": cut})
    cases.append({"name": "32 bytes too many", "error": "gguf.trailing_bytes", "append": bytes(32).hex()})
    return {
        "source": "scripts/make_engine_vectors.py",
        "file": f"{model.name}.gguf",
        "file_sha256": sha256(good).hexdigest(),
        "cases": cases,
    }


def write(name: str, value: dict[str, Any]) -> None:
    VECTORS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1, ensure_ascii=True) + "\n"
    (VECTORS / f"{name}.json").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, metavar="DIR", help="only write the models, into DIR")
    arguments = parser.parse_args()
    if arguments.models is not None:
        arguments.models.mkdir(parents=True, exist_ok=True)
        for model in MODELS:
            (arguments.models / f"{model.name}.gguf").write_bytes(build_model(model))
        return
    with TemporaryDirectory() as directory:
        for model in MODELS:
            write(model.name, model_vector(model, Path(directory)))
    write("arithmetic", arithmetic_vector())
    write("gguf", file_vector())


if __name__ == "__main__":
    main()
