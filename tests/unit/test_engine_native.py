"""The native engine's own promises: every operation as the reference's, a wrong build is found, hostile floating-point states,
threads, cancelling, errors; damaged files never end the process (spec 07). Whole runs: tests/determinism.
"""

import ctypes
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_models import REPOSITORY, VECTORS, model_bytes, tiny_models

from aos.core.arithmetic.floats import F32
from aos.core.arithmetic.formats import BLOCK_FORMATS, dequantise, widen_bf16
from aos.core.arithmetic.matmul import BlockMatrix, DenseMatrix, quantise
from aos.engine import _native, load_engine
from aos.engine.gguf import read_gguf
from aos.engine.llama import DENSE
from aos.engine.native import NativeEngine, instruction_sets, sampling_rules
from aos.engine.reference import ReferenceEngine
from aos.errors import ConfigError, InvalidMessage
from aos.ports import SamplingParams, TokenEvent

SALT = bytes(range(32))
NATIVE = REPOSITORY / "native" / "src"
TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "BF16": 30,
}
OF_TYPE = {kind: f"tiny-{kind.lower()}" for kind in TYPES}
PARAMS = SamplingParams(temperature=700_000, top_p=900_000, max_tokens=12, seed=3)
COMPILER = shlex.split(os.environ.get("CXX", "c++"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes("tiny-q4_0"))
    return path


# --- operations


@pytest.mark.parametrize("kind", TYPES)
def test_rows_and_products_of_every_type_are_the_reference_engines(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes(OF_TYPE[kind]))
    file = read_gguf(path)
    tensor = next(
        t for t in file.tensors if t.type.name == kind and len(t.shape) == 2 and t.name.startswith("blk")
    )
    rng = np.random.default_rng(5)
    rows, columns = tensor.rows - 5, tensor.columns  # a last group that is not whole
    raw = np.frombuffer(file.tensor_bytes(tensor), dtype=np.uint8)[: rows * tensor.row_bytes]
    dense: F32 | None = None
    if kind in DENSE:
        values = raw.view(DENSE[kind]).reshape(rows, columns)
        dense = widen_bf16(values) if kind == "BF16" else values.astype(np.float32)
        weights = dense
    else:
        packed = raw.reshape(rows, -1, tensor.type.block_bytes)
        weights = dequantise(BLOCK_FORMATS[kind].unpack(packed)).reshape(rows, columns)
    got = _native.dequantise(TYPES[kind], rows, columns, raw)
    assert (got.view(np.uint32) == weights.view(np.uint32)).all()
    for positions in (1, 2, 3, 4, 11, 12, 16, 17, 37):
        x = rng.standard_normal((positions, columns)).astype(np.float32)
        x[0] *= np.float32(2.0**-110)  # a block that quantises to zero
        if dense is not None:
            expected = DenseMatrix(dense).product(x)
        else:
            expected = BlockMatrix(packed, BLOCK_FORMATS[kind].unpack, keep=False).product(*quantise(x))
        for isa in instruction_sets():
            y = _native.product(isa, TYPES[kind], rows, raw, x)
            assert (y.view(np.uint32) == expected.view(np.uint32)).all(), (isa, positions)


@pytest.mark.parametrize("isa", instruction_sets())
def test_the_sampler_gives_the_committed_tokens_and_records(isa: str) -> None:
    logits, *cases = json.loads((VECTORS / "arithmetic.json").read_text(encoding="utf-8"))["sampler"]
    values = np.array([int(bits, 16) for bits in logits["logits"]], dtype=np.uint32).view(np.float32)
    assert cases
    for case in cases:
        rules = sampling_rules(SamplingParams(**case["rules"]))
        token, record = _native.choose(isa, values, case["seen"], case["step"], rules)
        assert (token, record.hex()) == (case["token"], case["record"])


def test_the_plainest_definition_comes_first_and_all_give_one_digest() -> None:
    assert instruction_sets()[0] == "scalar"
    assert len({_native.self_digest(isa) for isa in instruction_sets()}) == 1


# --- the build

PROBE = """
#include <cstdio>
#include "error.h"
#include "self_test.h"
int main() {
  try { aos::self_test(aos::kScalar); } catch (const aos::Error& error) { std::puts(error.code()); return 1; }
  std::puts("as defined");
}
"""


def build_probes(directory: Path) -> dict[str, Path]:
    """Programs of the scalar definition, compiled without and with contraction, and the self-test."""
    (directory / "probe.cpp").write_text(PROBE)
    fused = ["-mfma"] if platform.machine() == "x86_64" else []
    compile_ = [*COMPILER, "-std=c++20", f"-I{NATIVE}", "-pthread"]
    others = [NATIVE / f"{name}.cpp" for name in ("cpu", "matrix", "memory", "pool", "self_test", "sha256")]
    subprocess.run([*compile_, "-O0", "-c", directory / "probe.cpp", *others], check=True, cwd=directory)
    objects = sorted(directory.glob("*.o"))
    programs = {}
    for contraction in ("off", "fast"):
        programs[contraction] = directory / contraction
        flags = ["-O2", f"-ffp-contract={contraction}", *fused]
        subprocess.run(
            [*compile_, *flags, NATIVE / "scalar.cpp", *objects, "-o", programs[contraction]], check=True
        )
    return programs


@pytest.mark.skipif(
    platform.machine() == "x86_64" and " fma " not in Path("/proc/cpuinfo").read_text(),
    reason="this processor has no fused multiply-add",
)
def test_a_build_that_contracts_is_found_by_the_self_test(tmp_path: Path) -> None:
    def outcome(program: Path) -> tuple[int, str]:
        done = subprocess.run([program], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip()

    programs = build_probes(tmp_path)
    assert outcome(programs["off"]) == (0, "as defined")
    assert outcome(programs["fast"]) == (1, "engine.self_test")


def test_nothing_native_can_end_the_process() -> None:
    ends = re.compile(r"\b(exit|_Exit|quick_exit|abort|terminate|assert|raise|kill)\s*\(")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(NATIVE.iterdir())
        for line in path.read_text(encoding="utf-8").splitlines()
        if ends.search(line.partition("//")[0])
    ]
    assert len(list(NATIVE.iterdir())) > 20
    assert found == []


def test_a_module_that_does_not_load_is_named_with_the_next_step_and_replaced_by_nothing(model: Path) -> None:
    program = (
        "import sys; sys.modules['aos.engine._native'] = None\n"
        "from aos.engine import load_engine\n"
        "from aos.errors import ConfigError\n"
        "for kind in ('native', 'reference'):\n"
        f"    try: load_engine({str(model)!r}, kind=kind)\n"
        "    except ConfigError as error: print(error.code, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("engine.native_missing ") and "make clean setup" in line for line in lines)


def test_an_instruction_set_that_is_not_here_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AOS_ISA", "avx1024")
    with pytest.raises(ConfigError, match="avx1024") as caught:
        load_engine(model, kind="native")
    assert caught.value.code == "engine.isa"
    assert "scalar" in str(caught.value.hint)


# --- floating-point state

FLOAT_STATE = """
#if defined(__x86_64__)
#include <xmmintrin.h>
unsigned get_state(void) { return _mm_getcsr() & 0xffc0; }
void set_state(unsigned state) { _mm_setcsr(state); }
#else
unsigned get_state(void) { unsigned long s; __asm__ volatile("mrs %0, fpcr" : "=r"(s)); return (unsigned)s; }
void set_state(unsigned state) { __asm__ volatile("msr fpcr, %0" : : "r"((unsigned long)state)); }
#endif
"""
HOSTILE = (
    # Flush to zero, subnormals are zero, and each rounding mode; exceptions stay masked.
    {"flush": 0x9FC0, "towards zero": 0x7F80, "up": 0x5F80, "flush and down": 0xBFC0}
    if platform.machine() == "x86_64"
    else {"flush": 1 << 24, "towards zero": 3 << 22, "up": 1 << 22, "flush and down": (1 << 24) | (2 << 22)}
)


@pytest.fixture(scope="module")
def float_state(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("float-state")
    (directory / "state.c").write_text(FLOAT_STATE)
    library = directory / "state.so"
    subprocess.run(
        [*COMPILER, "-x", "c", "-O1", "-shared", "-fPIC", directory / "state.c", "-o", library], check=True
    )
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("state", HOSTILE)
@pytest.mark.parametrize("isa", instruction_sets())
def test_a_state_that_another_library_left_changes_no_bit_and_is_put_back(
    state: str, isa: str, tmp_path: Path, float_state: ctypes.CDLL
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes("tiny-mixed"))
    rules = sampling_rules(PARAMS)
    prompt = list(range(60, 90))

    def leaves(threads: int) -> tuple[list[int], bytes]:
        # As when a library that was loaded long ago set it: the engine's threads inherit it too.
        engine = NativeEngine(path, isa=isa, threads=threads, alone_below=0)
        tokens = []
        before = float_state.get_state()
        float_state.set_state(hostile)
        try:
            batch = _native.Batch(engine._model)
            run = _native.Run(batch, prompt, rules)
            batch.extend([(run, prompt)])
            for _ in range(4):
                tokens += batch.choose([run])
                batch.extend([(run, tokens[-1:])])
            joined = run.leaves(len(prompt) + 3)
            digest = _native.self_digest(isa)
            after = float_state.get_state()
        finally:
            float_state.set_state(before)
        assert after == hostile
        return tokens, joined + digest

    hostile = float_state.get_state()
    expected = leaves(1)
    hostile = HOSTILE[state]
    assert leaves(1) == expected
    assert leaves(2) == expected


# --- threads, cancelling


@pytest.fixture
def no_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("no_switching")
def test_other_python_threads_run_during_a_long_computation(model: Path) -> None:
    # No thread is made to give up the lock: another one runs only where the computation has released it.
    engine = NativeEngine(model, isa="scalar")
    tokens = list(range(256))
    batch = _native.Batch(engine._model)
    runs = [_native.Run(batch, tokens, sampling_rules(PARAMS)) for _ in range(40)]
    seen, outcome = threading.Event(), []

    def compute() -> None:
        for run in runs:
            batch.extend([(run, tokens)])
            if seen.is_set():
                outcome.append("another thread ran")
                return
        outcome.append("alone to the end")

    worker = threading.Thread(target=compute)
    worker.start()
    seen.set()  # reached only when this thread gets the lock again
    worker.join()
    assert outcome == ["another thread ran"]


def test_a_run_is_cancelled_between_tokens_and_commits_to_what_it_did(model: Path) -> None:
    results = []
    for engine in (
        ReferenceEngine(model),
        *(NativeEngine(model, isa=isa, threads=2) for isa in instruction_sets()),
    ):
        seen: list[TokenEvent] = []
        result = engine.generate(
            "what is", PARAMS, salt=SALT, on_token=seen.append, cancelled=lambda seen=seen: len(seen) >= 3
        )
        assert (result.finish_reason, len(result.tokens)) == ("cancelled", 3)
        assert engine.replay("what is", result.tokens, PARAMS, salt=SALT, cancelled=True) == result
        results.append(result)
    assert len(set(results)) == 1


def test_a_batch_that_two_threads_use_is_refused_and_not_damaged(model: Path) -> None:
    engine = NativeEngine(model, isa="scalar")
    prompt = list(range(256))
    quiet, batch = _native.Batch(engine._model), _native.Batch(engine._model)
    alone = _native.Run(quiet, prompt, sampling_rules(PARAMS))
    quiet.extend([(alone, prompt)])
    run = _native.Run(batch, prompt, sampling_rules(PARAMS))
    codes: list[str] = []

    def second() -> None:
        while not codes and run.length == 0:
            try:
                batch.choose([run])
            except _native.Error as error:
                codes.append(error.args[0])

    other = threading.Thread(target=second)
    other.start()
    # Whichever comes first: the other's call finds this one at work, or nothing to choose from.
    while run.length == 0:
        try:
            batch.extend([(run, prompt)])
        except _native.Error as error:
            codes.append(error.args[0])
    other.join()
    assert set(codes) <= {"engine.busy", "engine.step"}
    assert batch.choose([run]) == quiet.choose([alone])


# --- files


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("pattern", [0x7C00, 0xFC00, 0x7E00, 0xFC01])
def test_a_number_that_is_not_finite_is_refused_by_the_native_packing_too(
    kind: str, pattern: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes(OF_TYPE[kind]))
    file = read_gguf(path)
    tensor = next(t for t in file.tensors if t.type.name == kind and len(t.shape) == 2)
    raw = np.frombuffer(file.tensor_bytes(tensor), dtype=np.uint8)
    bits, size = pattern, 2
    if kind in ("BF16", "F32"):
        bits = (bits >> 15 << 15) | 0x7F80 | (bits & 0x3FF) >> 3 | (bits & 1)
    if kind == "F32":
        bits, size = bits << 16, 4
    for place in BLOCK_FORMATS[kind].scales_at if kind in BLOCK_FORMATS else (0,):
        broken = raw.copy()
        at = len(broken) - tensor.type.block_bytes + place
        broken[at : at + size] = np.frombuffer(bits.to_bytes(size, "little"), dtype=np.uint8)
        with pytest.raises(_native.Error) as caught:
            _native.dequantise(tensor.type.code, tensor.rows, tensor.columns, broken)
        assert caught.value.args[0] == "engine.not_finite"


def test_damaged_files_and_absurd_calls_are_errors_and_never_end_the_process(tmp_path: Path) -> None:
    program = Path(__file__).with_name("native_fuzz.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path / "damaged.gguf", "1", "250"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout)
    families = {code.partition(".")[0] for code in outcomes["files"]}
    assert families <= {"gguf", "engine", "tokenizer", "rope", "stop", "length", "numeric_trap"}
    assert {"gguf", "engine", "length"} <= families
    assert {code.partition(".")[0] for code in outcomes["calls"]} <= {"engine", "done", "MemoryError"}
    assert outcomes["calls"]["engine.matrix"] > 0
    assert outcomes["calls"]["engine.parameter"] > 0


@pytest.mark.parametrize(
    ("keys", "n_ctx"),
    [
        ((("attention.sliding_window", 4, 4096), ("rope.freq_base", 6, 10_000.0)), 512),  # Mistral 7B 0.1
        ((("rope.freq_base", 6, 1_000_000.0),), 512),  # Mistral 7B 0.2 and later
        ((("tensor_data_layout", 8, "Meta AI original pth"),), 512),  # Llama 2, converted from Meta's files
        ((("rope.scaling.type", 8, "none"), ("expert_count", 4, 0)), 512),  # TinyLlama and other converters
        ((("attention.sliding_window", 4, 100),), 100),
    ],
)
def test_what_converters_write_for_the_llama_family_runs_alike_on_both_engines(
    keys: tuple[tuple[str, int, object], ...], n_ctx: int, tmp_path: Path
) -> None:
    (base,) = [model for model in tiny_models().MODELS if model.name == "tiny-q4_0"]
    made = replace(base, extra=keys, omit=frozenset({"rope.freq_base"}))
    # ``omit`` is of the file's own keys, an extra key of the same name included.
    if any(key == "rope.freq_base" for key, _, _ in keys):
        made = replace(
            made, extra=tuple(item for item in keys if item[0] != "rope.freq_base"), omit=frozenset()
        )
        made = replace(made, rope_base=next(value for key, _, value in keys if key == "rope.freq_base"))
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_models().build_model(made))
    native, reference = NativeEngine(path), ReferenceEngine(path)
    assert native.n_ctx == reference.n_ctx == n_ctx
    assert native.generate("the end", PARAMS, salt=SALT) == reference.generate("the end", PARAMS, salt=SALT)


def test_a_refusal_names_the_tensor(tmp_path: Path) -> None:
    data = bytearray(model_bytes("tiny-q4_0"))
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    tensor = next(t for t in read_gguf(path).tensors if t.name == "blk.1.ffn_up.weight")
    data[tensor.offset : tensor.offset + 2] = b"\x00\x7e"
    (tmp_path / "broken.gguf").write_bytes(data)
    with pytest.raises(InvalidMessage, match=re.escape("blk.1.ffn_up.weight")) as caught:
        NativeEngine(tmp_path / "broken.gguf")
    assert caught.value.code == "engine.not_finite"


@pytest.mark.parametrize("cached", [False, True])
def test_progress_covers_hashing_and_packing_and_ends_at_the_whole(
    cached: bool, model: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    if cached:
        NativeEngine(model, cache_dir=cache)
    told: list[tuple[int, int]] = []
    NativeEngine(model, cache_dir=cache, progress=lambda done, total: told.append((done, total)))
    done, totals = [pair[0] for pair in told], {pair[1] for pair in told}
    tensors = sum(tensor.size for tensor in read_gguf(model).tensors)
    assert totals == {model.stat().st_size + 2 * tensors}
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]
