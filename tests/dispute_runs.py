"""Runs of the tiny models with everything that a dispute about them needs, and liars about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from engine_models import maker, model_bytes

from aos.core.dispute.fine.bounds import Unit, open_unit
from aos.core.dispute.fine.grid import Op
from aos.core.dispute.fine.operands import Operands
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.state_tree import part_root, unit_leaf
from aos.core.dispute.trace_tree import TraceTree, tile_hash
from aos.engine.gguf import read_gguf
from aos.engine.reference import ReferenceEngine
from aos.engine.trace import KnownRun, ModelWeights, UnitTrace, known_run

SALT = bytes(range(32))
GREEDY: dict[str, Any] = {"temperature": 0, "repeat_penalty": 3_000_000, "max_tokens": 6}
SAMPLED: dict[str, Any] = {
    "temperature": 1_300_000,
    "top_k": 200,
    "top_p": 900_000,
    "min_p": 1_000,
    "repeat_penalty": 1_100_000,
    "max_tokens": 6,
    "seed": 21,
}


@dataclass(frozen=True, kw_only=True)
class TinyRun:
    """A run of one of the script's models that its owner keeps."""

    engine: ReferenceEngine
    weights: ModelWeights
    known: KnownRun

    def trace(self, position: int, unit: int, **options: Any) -> UnitTrace:
        """The owner's trace of a unit."""
        return UnitTrace(self.known, self.weights, self.engine, position, unit, **options)

    @property
    def last(self) -> int:
        """The last position."""
        return self.known.tree.header.n_positions - 1

    @property
    def tail(self) -> int:
        """The number of the tails' unit."""
        assert self.engine.manifest.graph is not None
        return self.engine.manifest.graph.n_layers + 1

    def committing(self, position: int, unit: int, payload: Sequence[bytes]) -> "TinyRun":
        """The same run, but for what it commits to at one place."""
        tree = self.known.tree
        units = [list(each) for each in tree.units]
        cuts = self.trace(position, unit).context.state.parts(position, unit)
        roots = [part_root(data, cut.tile_bytes) for data, cut in zip(payload, cuts, strict=True)]
        units[position][unit] = unit_leaf(position, unit, roots)
        return self.with_tree(StateTree(tree.header, units))

    def with_tree(self, tree: StateTree) -> "TinyRun":
        """The same run, but for what it commits to."""
        run = replace(self.known.run, state_root=tree.root)
        return replace(self, known=replace(self.known, tree=tree, run=run))


@cache
def model_file(name: str) -> Path:
    """The GGUF file of one of the script's models."""
    path = Path(mkdtemp()) / f"{name}.gguf"
    path.write_bytes(model_bytes(name))
    return path


@cache
def engine_of(name: str) -> tuple[ReferenceEngine, ModelWeights]:
    """The engine of a model, and its weights."""
    path = model_file(name)
    return ReferenceEngine(path), ModelWeights(read_gguf(path))


def tiny_run(name: str, prompt: str, members: dict[str, Any]) -> TinyRun:
    """A run of a model from beginning to end."""
    engine, weights = engine_of(name)
    run = engine.run(prompt, maker().sampling_params(members), salt=SALT)
    engine._drive(run, None, None)
    return TinyRun(engine=engine, weights=weights, known=known_run(run, engine.manifest))


def opened(trace: UnitTrace) -> Unit:
    """The unit as a referee opens it from the owner's bounds."""
    context = trace.context
    return open_unit(trace.known.run, context.position, context.unit, trace.bounds)


def changed(trace: UnitTrace, index: int, change: Callable[[bytes], bytes]) -> UnitTrace:
    """A liar's trace: one tile is another, and signed for."""
    trace.tiles = [*trace.tiles[:index], change(trace.tiles[index]), *trace.tiles[index + 1 :]]
    trace._tree = TraceTree([tile_hash(tile) for tile in trace.tiles])
    return trace


def flipped(data: bytes, bit: int) -> bytes:
    """``data`` with one bit changed."""
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def computes(op: Op, operands: Operands, tile: int) -> None:
    """Ask for everything that a tile needs."""
    op.compute(operands, *op.grid.place(tile))
