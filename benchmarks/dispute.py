"""What a dispute costs at a real shape: bytes of a tile's proof and the referee's time per kind of op, and the time to make
a unit's trace (docs/spec/11-trace.md, "Cost").

The weights and the run are random: one unit's own, of the shape and at the position asked for; everything else of the run
is a hash without an entry, which no proof opens. ``python benchmarks/dispute.py`` measures the 7B shape at position 2,000.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aos.core.arithmetic.floats import F16, F32
from aos.core.arithmetic.rope_table import table_leaf
from aos.core.dispute.fine.bounds import Run, Unit, open_unit
from aos.core.dispute.fine.tile import check_tile
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.state_tree import StateHeader, part_root, tokens_root, unit_leaf
from aos.core.hashes import run_params_hash
from aos.core.manifest import (
    GRAPH_KINDS,
    TENSOR_TYPES,
    GraphSizes,
    Manifest,
    TensorType,
    tensor_count,
    tensor_leaf,
)
from aos.core.merkle import MerkleTree, tree_root
from aos.engine.gguf import GGUF, Tensor
from aos.engine.manifest import row_hashes
from aos.engine.trace import KnownRun, ModelWeights, UnitTrace
from aos.ports import SamplingParams

SALT = bytes(range(32))
TYPES = {kind.name: kind for kind in TENSOR_TYPES.values()}
SEVEN_B = GraphSizes(
    n_ctx=4096,
    n_layers=32,
    n_vocab=32_000,
    width=4096,
    ff_width=11_008,
    n_heads=32,
    n_kv_heads=32,
    head_width=128,
    n_rot=128,
    eps_bits=int(np.float32(1e-5).view(np.uint32)),
    rope_base_bits=int(np.float32(10_000.0).view(np.uint32)),
    tied=False,
)
PARAMS = SamplingParams(
    temperature=800_000, top_p=950_000, top_k=0, min_p=1_000, repeat_penalty=1_100_000, seed=7
)


def random_rows(rng: np.random.Generator, kind: TensorType, rows: int, columns: int) -> bytes:
    """Random weights of any type, about 0.02 in size."""
    blocks = rows * columns // kind.block_weights
    if kind.name == "F32":
        return (rng.standard_normal(blocks, dtype=np.float32) * np.float32(0.02)).tobytes()
    if kind.name == "F16":
        return (rng.standard_normal(blocks, dtype=np.float32) * 0.02).astype("<f2").tobytes()
    if kind.name == "BF16":
        wide = rng.standard_normal(blocks, dtype=np.float32) * np.float32(0.02)
        return (wide.view(np.uint32) >> 16).astype("<u2").tobytes()
    raw = np.frombuffer(rng.bytes(blocks * kind.block_bytes), dtype=np.uint8).copy().reshape(blocks, -1)
    scale = {"Q8_0": 0.0003, "Q6_K": 0.00002, "Q4_K": 0.0002, "Q5_K": 0.0001}.get(kind.name, 0.003)
    places = {"Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2)}.get(
        kind.name, (0,)
    )
    for at in places:
        raw[:, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), dtype=np.uint8)
    return raw.tobytes()


def unit_tensors(graph: GraphSizes, unit: int, biases: bool, head_norms: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors that a unit's ops read."""
    if unit == 0:
        return {"token_embd.weight": (graph.width, graph.n_vocab)}
    if unit > graph.n_layers:
        return {"output_norm.weight": (graph.width,), "output.weight": (graph.width, graph.n_vocab)}
    attention = graph.n_heads * graph.head_width
    tensors: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (graph.width,),
        "attn_q.weight": (graph.width, attention),
        "attn_k.weight": (graph.width, graph.kv_width),
        "attn_v.weight": (graph.width, graph.kv_width),
        "attn_output.weight": (attention, graph.width),
        "ffn_norm.weight": (graph.width,),
        "ffn_gate.weight": (graph.width, graph.ff_width),
        "ffn_up.weight": (graph.width, graph.ff_width),
        "ffn_down.weight": (graph.ff_width, graph.width),
    }
    if biases:
        tensors |= {
            "attn_q.bias": (attention,),
            "attn_k.bias": (graph.kv_width,),
            "attn_v.bias": (graph.kv_width,),
        }
    if head_norms:
        tensors |= {"attn_q_norm.weight": (graph.head_width,), "attn_k_norm.weight": (graph.head_width,)}
    return {f"blk.{unit - 1}.{name}": shape for name, shape in tensors.items()}


class OneUnitsWeights(ModelWeights):
    """The weights of one unit, in a tree with as many tensors as the whole graph has."""

    def __init__(self, file: GGUF, n_tensors: int, cos: F32, sin: F32) -> None:
        self.file, self._cos, self._sin = file, cos, sin
        self._threads, self._rows = 2, {}
        rng = np.random.default_rng(1)
        leaves = [rng.bytes(32) for _ in range(n_tensors)]
        self._numbers = {}
        self._by_name = {tensor.name: tensor for tensor in file.tensors}
        for index, tensor in enumerate(file.tensors):
            number = (n_tensors // 2 + index) % n_tensors
            self._numbers[tensor.name] = number
            self._rows[tensor.name] = MerkleTree(row_hashes(file, tensor, 2)[0])
            root = self._rows[tensor.name].root
            leaves[number] = tensor_leaf(tensor.name, tensor.type.code, tensor.shape, root)
        self._count = n_tensors
        self._tree = MerkleTree(leaves)

    @property
    def n_tensors(self) -> int:
        return self._count

    def _tensor(self, name: str) -> Tensor:
        return self._by_name[name]


class RandomRun:
    """An engine that kept a random run. A ``CapturingEngine``, and its ``Capture``."""

    def __init__(self, rng: np.random.Generator, graph: GraphSizes, position: int, unit: int) -> None:
        count = position + 1
        self.kept: dict[int, F32] = {}
        self.caches: dict[int, tuple[F16, F16]] = {}
        for each in {unit - 1, unit} & set(range(graph.n_layers + 1)):
            self.kept[each] = rng.standard_normal((count, graph.width), dtype=np.float32)
            if each:
                halves = [rng.standard_normal((count, graph.kv_width), dtype=np.float32) for _ in range(2)]
                self.caches[each - 1] = halves[0].astype(np.float16), halves[1].astype(np.float16)

    def capture(self, tokens: Sequence[int], units: Sequence[int]) -> "RandomRun":
        return self

    def residuals(self, unit: int) -> F32:
        return self.kept[unit]

    def cache(self, layer: int, first: int, end: int) -> tuple[F16, F16]:
        keys, values = self.caches[layer]
        return keys[first:end], values[first:end]


def synthetic(
    unit: int,
    *,
    graph: GraphSizes = SEVEN_B,
    position: int = 2000,
    architecture: str = "llama",
    default: str = "Q4_0",
    types: dict[str, str] | None = None,
    params: SamplingParams = PARAMS,
    loud: dict[str, float] | None = None,
) -> tuple[UnitTrace, Unit, float]:
    """A random unit's trace, the unit as a referee opens it, and the seconds that the trace took. ``loud`` multiplies the
    weights of some F32 matrices.
    """
    rng = np.random.default_rng(unit)
    kind = GRAPH_KINDS[architecture]
    data, tensors = bytearray(), []
    for name, shape in unit_tensors(graph, unit, kind.biases, kind.head_norms).items():
        rows = shape[1] if len(shape) > 1 else 1
        chosen = (types or {}).get(name.split(".")[-2], default) if len(shape) > 1 else "F32"
        stored = TYPES[chosen]
        raw = random_rows(rng, stored, rows, shape[0])
        if len(shape) == 1:
            raw = (np.frombuffer(raw, dtype="<f4") + np.float32(1)).tobytes()
        factor = np.float64((loud or {}).get(name.split(".")[-2], 0.0))
        if factor:
            raw = np.clip(np.frombuffer(raw, dtype="<f4") * factor, -3e38, 3e38).astype("<f4").tobytes()
        tensors.append(Tensor(name=name, type=stored, shape=shape, offset=len(data), size=len(raw)))
        data += raw
    file = GGUF(path=Path(), version=3, metadata={}, tensors=tuple(tensors), data=memoryview(bytes(data)))
    angles = np.arange(graph.n_ctx)[:, None] * (10_000.0 ** (-np.arange(graph.n_rot // 2) * 2 / graph.n_rot))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    weights = OneUnitsWeights(file, tensor_count(graph, kind)[0], cos, sin)
    manifest = Manifest(
        file_sha256=bytes(32),
        file_size=len(data),
        weights_root=weights.root,
        architecture=architecture,
        graph=graph,
        tokenizer=bytes(32),
        chat_template=b"",
        rope_table=tree_root([table_leaf(c, s) for c, s in zip(cos, sin, strict=True)]),
        arithmetic=1,
    )
    n_out = min(100, position)
    n_prompt = position + 2 - n_out
    tokens = rng.integers(0, graph.n_vocab, n_prompt + n_out).tolist()
    header = StateHeader(
        model_id=manifest.model_id,
        prompt_tokens_hash=bytes(32),
        params_hash=run_params_hash(SALT, params),
        sampling_seed=params.seed,
        n_prompt=n_prompt,
        n_out=n_out,
        finish_reason="stop",
        tokens_hash=bytes(32),
        response_hash=bytes(32),
        tokens_root=tokens_root(tokens),
        n_positions=position + 1,
    )
    engine = RandomRun(rng, graph, position, unit)
    units = [[rng.bytes(32) for _ in range(graph.n_layers + 2)] for _ in range(position + 1)]
    known = KnownRun(
        run=Run(manifest=manifest, params=params, salt=SALT, state_root=bytes(32)),
        tree=StateTree(header, units),
        tokens=tokens,
    )
    start = time.perf_counter()
    trace = UnitTrace(known, weights, engine, position, unit)
    seconds = time.perf_counter() - start
    _commit(trace, known, engine, units, position, unit)
    return trace, open_unit(trace.known.run, position, unit, trace.bounds), seconds


def _commit(
    trace: UnitTrace, known: KnownRun, engine: RandomRun, units: list[list[bytes]], position: int, unit: int
) -> None:
    """Make the run's state root one that commits to what the trace has computed, and to all that it reads."""

    def joined(name: str) -> bytes:
        op = trace.shape.named(name)
        return b"".join(trace.tiles[op.first : op.first + op.grid.tiles])

    state = trace.context.state
    if 0 <= unit <= state.n_layers:
        residual = "embedding" if unit == 0 else "residual"
        engine.kept[unit][position] = np.frombuffer(joined(residual), dtype="<f4")
        for index, name in enumerate(("keys", "values") if unit else ()):
            engine.caches[unit - 1][index][position] = np.frombuffer(joined(name), dtype="<f2")
    places = [(position, each) for each in (unit - 1, unit) if each >= 0]
    places += [(at, unit) for at in range(position) if 0 < unit <= state.n_layers]
    for at, each in places:
        parts = state.parts(at, each)
        payload = trace.payload(at, each)
        roots = [part_root(part, cut.tile_bytes) for part, cut in zip(payload, parts, strict=True)]
        units[at][each] = unit_leaf(at, each, roots)
    tree = StateTree(known.tree.header, units)
    trace.known = replace(known, tree=tree, run=replace(known.run, state_root=tree.root))
    trace.context = replace(trace.context, state_root=tree.root)


class OpCost(NamedTuple):
    """Of an op: its tiles, the bytes of its largest proof, the referee's median and largest time, and the prover's median;
    times in ms, the referee's the best of some repetitions.
    """

    tiles: int
    size: int
    median: float
    largest: float
    proving: float


def measured(trace: UnitTrace, unit: Unit, samples: int, repeats: int = 5) -> dict[str, OpCost]:
    """What proving and checking tiles costs, by the name of the op."""
    rng = np.random.default_rng(0)
    out = {}
    for op in trace.shape.ops:
        count = op.grid.tiles
        some = {0, count - 1, *rng.integers(0, count, max(0, samples - 2)).tolist()}
        sizes, times, proving = [], [], []
        for tile in sorted(some):
            start = time.perf_counter()
            proof = trace.prove(op.first + tile)
            proving.append(1e3 * (time.perf_counter() - start))
            sizes.append(len(proof))
            best = float("inf")
            for _ in range(repeats):
                start = time.perf_counter()
                check_tile(unit, trace.unit_root, op.first + tile, proof)
                best = min(best, time.perf_counter() - start)
            times.append(1e3 * best)
        medians = float(np.median(times)), float(np.median(proving))
        out[op.name] = OpCost(count, max(sizes), medians[0], max(times), medians[1])
    return out


def main() -> None:
    """Print a line for every op."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--position", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--type", default="Q4_0", choices=sorted(TYPES))
    arguments = parser.parse_args()
    for label, unit in (("embedding", 0), ("layer", SEVEN_B.n_layers), ("tail", SEVEN_B.n_layers + 1)):
        trace, opened, seconds = synthetic(
            unit, position=arguments.position, default=arguments.type, types={"output": "Q6_K"}
        )
        print(
            f"{label}: {trace.shape.n_tiles} tiles, fan-out {trace._tree.shape.widths}, "
            f"trace {seconds:.1f} s, bounds {len(trace.bounds)} bytes"
        )
        print(f"  {'op':24} {'tiles':>6} {'bytes':>6} {'ms':>6} {'max':>6} {'prove':>6}")
        for name, cost in measured(trace, opened, arguments.samples).items():
            figures = f"{cost.median:6.2f} {cost.largest:6.2f} {cost.proving:6.1f}"
            print(f"  {name:24} {cost.tiles:6} {cost.size:6} {figures}")


if __name__ == "__main__":
    main()
