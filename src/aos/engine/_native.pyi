"""The compiled part of the native engine (native/src/module.cpp). Raises ``Error(code, message)``."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

ALONE_BELOW: int
STEP: int

class Error(Exception): ...

class SamplingRules:
    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        limit_top_p: bool,
        top_p: float,
        min_p: float,
        penalise: bool,
        penalty: float,
        seed: int,
    ) -> None: ...

class Model:
    def __init__(
        self,
        *,
        isa: str,
        threads: int,
        alone_below: int,
        cos: F32,
        sin: F32,
        n_ctx: int,
        n_layers: int,
        n_vocab: int,
        width: int,
        ff_width: int,
        n_heads: int,
        n_kv_heads: int,
        head_width: int,
        n_rot: int,
        eps: float,
        rope_neighbours: bool,
    ) -> None: ...
    def set_matrix(self, layer: int, name: str, type: int, rows: int, columns: int, file: U8) -> None: ...
    def set_vector(self, layer: int, name: str, values: F32) -> None: ...
    def seal(self) -> None: ...
    def limit_threads(self, threads: int) -> None: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def isa(self) -> str: ...

class Run:
    def __init__(self, model: Model, prompt: Sequence[int], rules: SamplingRules) -> None: ...
    @property
    def commitment_ns(self) -> int: ...
    def extend(self, tokens: Sequence[int]) -> None: ...
    def choose(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def trap(self) -> tuple[int, int, int] | None: ...
    def leaves(self, positions: int) -> bytes: ...
    def leaves_to_trap(self) -> bytes: ...

def instruction_sets() -> list[str]: ...
def self_digest(isa: str) -> bytes: ...
def product(isa: str, type: int, rows: int, file: U8, x: F32) -> F32: ...
def dequantise(type: int, rows: int, columns: int, file: U8) -> F32: ...
def choose(
    isa: str, logits: F32, seen: Sequence[int], step: int, rules: SamplingRules
) -> tuple[int, bytes]: ...
def root(header: bytes, leaves: bytes) -> bytes: ...
def hash_rows(
    type: int, data: U8, row_bytes: int, chunk_bytes: int, prefix: bytes, threads: int
) -> tuple[bytes, bool]: ...
