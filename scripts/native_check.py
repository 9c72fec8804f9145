"""Check a build of the native engine without Python, for a processor that only an emulator has here, or with sanitizers.

    python scripts/native_check.py                       this processor
    python scripts/native_check.py --neon                64-bit ARM: Debian's cross compiler, qemu-user
    python scripts/native_check.py --sanitize address,undefined

Compiles native/check with the build's own flags, hands it the tiny models with the runs of vectors/aos/engine, and runs
it: every operation against the scalar definition, every run against its committed state root. For --neon:
apt install g++-aarch64-linux-gnu qemu-user-static.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import MODELS, build_model

from aos.core.dispute.state_tree import StateHeader, tokens_root
from aos.core.hashes import prompt_tokens_hash, response_hash, run_params_hash, tokens_hash
from aos.engine.gguf import read_gguf
from aos.engine.llama import ROPE_FACTORS, read_hyper_parameters
from aos.engine.manifest import cached_rope_table
from aos.engine.native import placed, sampling_rule_values
from aos.ports import SamplingParams

ROOT = Path(__file__).resolve().parents[1]
VECTORS = ROOT / "vectors" / "aos" / "engine"
CROSS_COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64-static"
PROCESSORS = ("cortex-a57", "max")
"""What qemu is told to be: without and with the dot product of bytes."""


def array(values: bytes, item_size: int) -> bytes:
    return struct.pack("<Q", len(values) // item_size) + values


def text(value: str) -> bytes:
    return array(value.encode(), 1)


def model_case(name: str, data: bytes, vector: dict[str, Any], directory: Path) -> bytes:
    """One model and its vector's runs as native/check/main.cpp reads them."""
    path = directory / f"{name}.gguf"
    path.write_bytes(data)
    file = read_gguf(path)
    hyper = read_hyper_parameters(file)
    factors = next((t for t in file.tensors if t.name == ROPE_FACTORS), None)
    values = None if factors is None else np.frombuffer(file.tensor_bytes(factors), dtype="<f4").tolist()
    cos, sin = cached_rope_table(hyper, values, None)
    sizes = (
        *(hyper.n_ctx, hyper.n_layers, hyper.n_vocab, hyper.width, hyper.ff_width),
        *(hyper.n_heads, hyper.n_kv_heads, hyper.head_width, hyper.n_rot),
    )
    out = [text(name), struct.pack("<9QfB", *sizes, hyper.eps, not hyper.architecture.rope_halves)]
    out += [array(table.astype("<f4").tobytes(), 4) for table in (cos, sin)]
    matrices, vectors = [], []
    for tensor in file.tensors:
        if tensor is factors:
            continue
        layer, part = placed(tensor)
        raw = bytes(file.tensor_bytes(tensor))
        head = struct.pack("<Q", layer) + text(part)
        if len(tensor.shape) == 1:
            vectors.append(head + array(raw, 4))
        else:
            shape = struct.pack("<IQQ", tensor.type.code, tensor.rows, tensor.columns)
            matrices.append(head + shape + array(raw, 1))
    cases = [run_case(case, vector) for case in vector["cases"] if "error" not in case]
    for parts in (matrices, vectors, cases):
        out += [struct.pack("<Q", len(parts)), *parts]
    return b"".join(out)


def run_case(case: dict[str, Any], vector: dict[str, Any]) -> bytes:
    """One run: sampling rules, tokens, header entry and state root."""
    params = SamplingParams(**{**case["params"], "stop": tuple(case["params"].get("stop", ()))})
    rules = sampling_rule_values(params)
    salt, prompt, tokens = bytes.fromhex(vector["salt"]), case["prompt_tokens"], case["tokens"]
    header = StateHeader(
        model_id=bytes.fromhex(vector["model_id"]),
        prompt_tokens_hash=prompt_tokens_hash(salt, prompt),
        params_hash=run_params_hash(salt, params),
        sampling_seed=params.seed,
        n_prompt=len(prompt),
        n_out=len(tokens),
        finish_reason=case["finish_reason"],
        tokens_hash=tokens_hash(salt, tokens),
        response_hash=response_hash(salt, case["text"]),
        tokens_root=tokens_root([*prompt, *tokens]),
        n_positions=case["positions"],
    )
    return b"".join(
        (
            struct.pack("<fIBffBfQ", *rules.values()),
            *(array(struct.pack(f"<{len(ids)}I", *ids), 4) for ids in (prompt, tokens)),
            struct.pack("<B", case["finish_reason"] == "numeric_trap"),
            array(header.entry(), 1),
            array(bytes.fromhex(case["state_root"]), 1),
        )
    )


def build(directory: Path, *, cross: bool, sanitize: str) -> Path:
    """Compile the check; returns the program."""
    tools = Path(sys.executable).parent
    options = ["-DAOS_MODULE=OFF", "-DAOS_CHECK=ON", f"-DAOS_SANITIZE={sanitize}", "-GNinja"]
    options.append(f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}")
    if cross:
        options += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
        options += [f"-DCMAKE_CXX_COMPILER={CROSS_COMPILER}", "-DCMAKE_EXE_LINKER_FLAGS=-static"]
    cmake = str(tools / "cmake")
    for command in (
        [cmake, "-S", str(ROOT / "native"), "-B", str(directory), *options],
        [cmake, "--build", str(directory), "--parallel", str(os.cpu_count() or 1)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return directory / "aos_check"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neon", action="store_true", help="cross-compile for 64-bit ARM and run under qemu")
    parser.add_argument("--sanitize", default="", metavar="LIST", help="sanitizers of the compiler")
    parser.add_argument("--build", type=Path, metavar="DIR", help="keep the build here")
    parser.add_argument("--models", metavar="NAMES", help="some models only, with commas between")
    options = parser.parse_args()
    missing = [tool for tool in (CROSS_COMPILER, EMULATOR) if options.neon and shutil.which(tool) is None]
    if missing:
        sys.stderr.write(
            f"{' and '.join(missing)} not found; Debian, Ubuntu: apt install g++-aarch64-linux-gnu qemu-user-static\n"
        )
        return 3
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        program = build(options.build or directory / "build", cross=options.neon, sanitize=options.sanitize)
        cases = directory / "cases"
        wanted = options.models.split(",") if options.models else [model.name for model in MODELS]
        with cases.open("wb") as out:
            for model in (model for model in MODELS if model.name in wanted):
                vector = json.loads((VECTORS / f"{model.name}.json").read_text(encoding="utf-8"))
                out.write(model_case(model.name, build_model(model), vector, directory))
        runs = [[EMULATOR, "-cpu", name] for name in PROCESSORS] if options.neon else [[]]
        for emulator in runs:
            sys.stdout.write(" ".join([*emulator, program.name]) + ": ")
            sys.stdout.flush()
            done = subprocess.run([*emulator, str(program), str(cases)], check=False)
            if done.returncode != 0:
                sys.stderr.write(f"{program.name} ended with status {done.returncode}\n")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
