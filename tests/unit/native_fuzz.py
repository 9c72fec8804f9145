"""Run as a program: damaged model files and absurd calls against the native engine, in a process that may die of them.

Prints one JSON line of what each came to, by code. Memory is capped, so that an absurd size is an error and not a slow machine.
"""

import json
import random
import resource
import struct
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from engine_models import model_bytes

from aos.engine import _native
from aos.engine.native import NativeEngine, instruction_sets
from aos.errors import AOSError
from aos.ports import SamplingParams

U8 = npt.NDArray[np.uint8]
NUMBERS = (0, 1, 2, 31, 33, 255, 256, 2**16, 2**20, 2**24, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
NAMES = (
    *("tiny-f32", "tiny-q4_0", "tiny-q4_k", "tiny-q5_k", "tiny-q6_k", "tiny-qwen2"),
    *("tiny-mixed", "tiny-qwen3-partial", "tiny-q5_1", "tiny-bf16"),
)


def damaged(rng: random.Random) -> bytes:
    """A tiny file with a few changes: most in its header, some among its weights."""
    data = bytearray(model_bytes(rng.choice(NAMES)))
    header = data.index(b"token_embd.weight") if rng.random() < 0.5 else len(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(header)
        match rng.randrange(6):
            case 0:
                data[at] = rng.choice((0, 1, 0x7C, 0x7F, 0x80, 0xFF))
            case 1:
                data[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) % 2**32)
            case 2:
                data[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
            case 3:
                data[at : at + 2] = struct.pack("<H", rng.choice((0x7C00, 0xFC00, 0x7E00, 1, 0x8001, 0x7BFF)))
            case 4:
                # A tensor's type or dimension, which follow its name.
                name = rng.choice((b"token_embd.weight", b"blk.0.ffn_up.weight", b"blk.0.attn_norm.weight"))
                at = data.index(name) + len(name) + rng.choice((4, 12, 20, 24))
                data[at : at + 4] = struct.pack(
                    "<I", rng.choice((0, 1, 2, 3, 4, 8, 12, 13, 14, 30, 31, 64, 2**31))
                )
            case _:
                del data[at : at + rng.randint(1, 64)]
    return bytes(data)


def files(path: Path, rng: random.Random, count: int, outcomes: Counter[str]) -> None:
    for _ in range(count):
        path.unlink(missing_ok=True)  # the one before may still be mapped
        path.write_bytes(damaged(rng))
        try:
            engine = NativeEngine(path, isa=rng.choice(instruction_sets()), threads=rng.choice((1, 2)))
            params = SamplingParams(max_tokens=2, temperature=0)
            outcomes[engine.generate("a é", params, salt=bytes(32)).finish_reason] += 1
        except AOSError as error:
            outcomes[error.code] += 1


SIZES = ("n_ctx", "n_layers", "n_vocab", "width", "ff_width", "n_heads", "n_kv_heads", "head_width", "n_rot")
GOOD = dict(zip(SIZES, (16, 1, 40, 32, 32, 2, 1, 16, 16), strict=True))
RULES = _native.SamplingRules(
    temperature=1.0,
    top_k=2**32 - 1,
    limit_top_p=True,
    top_p=0.5,
    min_p=0.0,
    penalise=True,
    penalty=1.1,
    seed=2**64 - 1,
)


def call(rng: random.Random) -> None:
    """One call of the compiled module with sizes and types that fit nothing."""
    raw = np.frombuffer(rng.randbytes(rng.choice((0, 1, 18, 34, 144, 210, 288, 1024))), dtype=np.uint8)
    rows = rng.choice((0, 1, 16, 17, 2**24, 2**32, 2**63, 2**64 - 1))
    columns = rng.choice((0, 1, 32, 256, 2**24, 2**32, 2**63, 2**64 - 1))
    kind = rng.choice((0, 1, 2, 3, 4, 6, 7, 8, 12, 13, 14, 15, 30, 31, 2**32 - 1))
    match rng.randrange(5):
        case 0:
            _native.dequantise(kind, rows, columns, raw)
        case 1:
            _native.product("scalar", kind, rows, raw, np.ones((1, columns % 4096), np.float32))
        case 2:
            logits = np.frombuffer(rng.randbytes(4 * rng.choice((1, 3, 40))), dtype=np.float32)
            _native.choose("scalar", logits, [rng.choice((0, 2, 2**32 - 1))], 0, RULES)
        case 3:
            _native.root(
                b"", rng.randbytes(rng.choice((0, 1, 31, 32, 64, 160))), rng.choice((0, 1, 2, 3, 2**64 - 1))
            )
        case _:
            sizes = GOOD | {rng.choice(SIZES): rng.choice((0, 1, 3, 31, 2**20, 2**40, 2**63, 2**64 - 1))}
            model(sizes, rng, raw)


def calls(rng: random.Random, count: int, outcomes: Counter[str]) -> None:
    for _ in range(5 * count):
        try:
            call(rng)
            outcomes["done"] += 1
        except _native.Error as error:
            outcomes[str(error.args[0])] += 1
        except MemoryError:
            outcomes["MemoryError"] += 1


def model(sizes: dict[str, int], rng: random.Random, raw: U8) -> None:
    """A model of such sizes, given a tensor, sealed and run. Its own codes are told by what is raised first."""
    table = np.zeros((min(sizes["n_ctx"], 64), min(sizes["n_rot"], 64) // 2), np.float32)
    made = _native.Model(
        isa="scalar", threads=1, alone_below=0, cos=table, sin=table, eps=1e-5, rope_neighbours=True, **sizes
    )
    with suppress(_native.Error):
        made.set_matrix(
            rng.choice((0, 1, 2**63)), rng.choice(("token_embd", "attn_q", "nothing")), 2, 16, 32, raw
        )
    with suppress(_native.Error):
        made.set_vector(rng.choice((0, 2**63)), "attn_norm", np.full(32, np.nan, np.float32))
    with suppress(_native.Error):
        _native.Run(_native.Batch(made), [rng.choice((0, 39, 2**32 - 1))], RULES)
    made.seal()


def main() -> None:
    path, seed, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    rng, of_files, of_calls = random.Random(seed), Counter[str](), Counter[str]()
    files(path, rng, count, of_files)
    calls(rng, count, of_calls)
    sys.stdout.write(json.dumps({"files": of_files, "calls": of_calls}) + "\n")


if __name__ == "__main__":
    main()
