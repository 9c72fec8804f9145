"""Operators that lie, for disputes over real runs: each cheats at one chosen place and computes everything after it
honestly from its lie, in a whole run of its own: the same unit's later ops, the later units, the later positions, the
tokens that follow. Nothing in the product knows of them.

``lie_at`` alters one tile of any op; the other lies are ``weight``, ``skipped_layer``, ``foreign_cache``,
``sampled_otherwise``, ``replaced_token``, ``swapped_token``, ``early_stop`` and ``padding``. A ``Claim`` is a run with the
traces that its owner shows. tests/liar_games.py plays games about them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import numpy as np
from dispute_real import NONCE, Job, leaf_of, parts_of
from engine_models import maker, tiny_models

from aos.core import hashes
from aos.core.arithmetic.floats import F16, F32, NumericTrap
from aos.core.dispute.fine.bounds import Unit
from aos.core.dispute.fine.tile import OpenedWeights, recomputed
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.state_tree import StateHeader, record_size, tokens_root
from aos.engine.fast_trace import whole_op
from aos.engine.forward import Context, Trap
from aos.engine.gguf import read_gguf
from aos.engine.reference import ReferenceEngine, _Computation, _Kept
from aos.engine.state import StateLeaves
from aos.engine.text import OutputText
from aos.engine.trace import AbsentUnit, KnownRun, ModelWeights, UnitTrace, _OwnOperands, known_run

LONG = "what is the meaning of the thing and the other and you are in the end " * 20

_T = tiny_models().TinyModel
SHAPES = {
    model.name: model
    for model in (
        # Grouped queries and a tied output; rows of less than a chunk.
        *(each for each in maker().MODELS if each.name == "tiny-q4_0"),
        # A short last chunk of a product (288 columns), an untied output.
        *(each for each in maker().MODELS if each.name == "tiny-q8_0"),
        # Dense weights.
        *(each for each in maker().MODELS if each.name == "tiny-f16"),
        # The layout of llama-2-7b-chat.Q4_0.gguf, its output Q6_K, with room for more than 256 positions.
        _T(
            name="long-q6_k-output",
            default="Q4_0",
            width=256,
            ff_width=704,
            heads=4,
            kv_heads=2,
            head_width=64,
            n_rot=64,
            n_ctx=512,
            tied=False,
            types={"output": "Q6_K"},
        ),
    )
}


# --- an engine that puts something else in the place of what a unit computed


@dataclass(frozen=True, slots=True)
class Replaced:
    """The payload that a unit has in a liar's run (07, "State root"); empty: the residual before it, a skipped layer."""

    position: int
    unit: int
    payload: tuple[bytes, ...]


class _Collected:
    """A ``Sink`` that keeps the rows of one layer."""

    def __init__(self) -> None:
        self.rows: list[tuple[F32, F16, F16]] = []

    def layer(self, first: int, index: int, residual: F32, keys: F16, values: F16) -> None:
        self.rows.append((residual, keys, values))


class _LyingModel:
    def __init__(self, model: Any, context: _LyingContext) -> None:
        self._model, self._context = model, context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def embedding(self, tokens: Sequence[int]) -> F32:
        rows: F32 = self._model.embedding(tokens)
        lie = self._context.lie
        at = lie.position - self._context.length
        if lie.unit == 0 and 0 <= at < len(rows):
            rows = rows.copy()
            rows[at] = np.frombuffer(lie.payload[0], dtype="<f4")
        return rows


class _LyingContext(Context):
    def __init__(self, model: Any, cos: F32, sin: F32, lie: Replaced) -> None:
        self.lie = lie
        super().__init__(_LyingModel(model, self), cos, sin)  # type: ignore[arg-type]

    def _layer(self, index: int, x: F32, first: int, sink: Any) -> F32:
        lie, rows = self.lie, len(x)
        at = lie.position - first
        if lie.unit != index + 1 or not 0 <= at < rows:
            return super()._layer(index, x, first, sink)
        found = _Collected()
        for begin, end in ((0, at), (at, at + 1), (at + 1, rows)):
            if begin == end:
                continue
            try:
                super()._layer(index, x[begin:end], first + begin, found)
            except NumericTrap as trap:
                raise NumericTrap(trap.op, trap.row + begin) from None
            if begin == at:
                found.rows[-1] = self._replaced(index, x[at], found.rows[-1])
        residual, keys, values = (np.concatenate(each) for each in zip(*found.rows, strict=True))
        sink.layer(first, index, residual, keys, values)
        return residual

    def _replaced(self, index: int, before: F32, honest: tuple[F32, F16, F16]) -> tuple[F32, F16, F16]:
        residual, keys, values = honest
        if not self.lie.payload:
            return before[None], keys, values
        x, k, v = self.lie.payload
        residual = np.frombuffer(x, dtype="<f4").astype(np.float32)[None]
        keys, values = (np.frombuffer(each, dtype="<f2").astype(np.float16)[None] for each in (k, v))
        at, h = self.lie.position, self.model.hyper
        wide = keys.astype(np.float32).reshape(1, h.n_kv_heads, h.head_width)
        self._keys[index][:, :, at : at + 1] = wide.transpose(2, 1, 0)
        self._values[index][at] = values.astype(np.float32).reshape(h.n_kv_heads, h.head_width)
        return residual, keys, values


class _Tails(StateLeaves):
    """Leaves that keep what tails committed, and commit a record of the length that was asked for."""

    def __init__(self, n_layers: int, record_bytes: int) -> None:
        super().__init__(n_layers)
        self._record_bytes = record_bytes
        self.payloads: dict[int, tuple[bytes, bytes, bytes]] = {}

    def tail(self, position: int, logits: F32 | None, record: bytes, token: int | None) -> None:
        record = record[: self._record_bytes].ljust(self._record_bytes, b"\0") if logits is not None else b""
        super().tail(position, logits, record, token)
        if logits is not None and token is not None:
            self.payloads[position] = logits.astype("<f4").tobytes(), record, token.to_bytes(4, "little")


class _LyingComputation(_Computation):
    def __init__(self, engine: LyingEngine, prompt: Sequence[int], params: Any) -> None:
        super().__init__(engine._model, engine._cos, engine._sin, prompt, engine.sampling or params)
        h = self._model.hyper
        engine.tails = _Tails(h.n_layers, record_size(h.n_vocab) if params.temperature else 0)
        self._leaves = engine.tails
        self._engine_lie = engine.lie
        if engine.lie is not None:
            self._context = _LyingContext(engine._model, engine._cos, engine._sin, engine.lie)

    def choose(self) -> int | None:
        lie = self._engine_lie
        position = len(self._seen) - 1
        tail = self._model.hyper.n_layers + 1
        if lie is None or (lie.position, lie.unit) != (position, tail):
            return super().choose()
        self._waiting = self._waiting[1:]
        logits, record, token = lie.payload
        chosen = int.from_bytes(token, "little")
        if chosen >= self._model.hyper.n_vocab:
            # Bytes that are no token: the run cannot go on, so this liar calls it a trap.
            self._trap = Trap(position, tail, 21)
            return None
        self._leaves.tail(position, np.frombuffer(logits, dtype="<f4"), record, chosen)
        self._seen.append(chosen)
        return chosen


class LyingEngine(ReferenceEngine):
    """An engine with one lie in it. ``sampling``: it samples by these parameters and says that it did by others."""

    def __init__(self, of: ReferenceEngine, lie: Replaced | None = None, sampling: Any = None) -> None:
        self.__dict__.update(of.__dict__)
        self.lie, self.sampling = lie, sampling
        self.tails: _Tails | None = None

    def _begin(self, prompt: Sequence[int], params: Any) -> Any:
        return _LyingComputation(self, prompt, params)

    def capture(self, tokens: Sequence[int], units: Sequence[int]) -> Any:
        kept = _Kept(self._model, self._cos, self._sin, units)
        if self.lie is not None:
            kept._context = _LyingContext(self._model, self._cos, self._sin, self.lie)
        kept.extend(tokens, self.step)
        return kept


class _Everything:
    """A ``Capture`` of a whole run, all units at once."""

    def __init__(self, kept: Any, n_layers: int, positions: int) -> None:
        self._residuals = {
            unit: kept.residuals(unit) for unit in range(n_layers + 1) if kept._residuals[unit]
        }
        self._caches = [kept.cache(layer, 0, positions) for layer in range(n_layers)]

    def residuals(self, unit: int) -> F32:
        return self._residuals[unit]

    def cache(self, layer: int, first: int, end: int) -> tuple[F16, F16]:
        keys, values = self._caches[layer]
        return keys[first:end], values[first:end]


# --- claims


@cache
def _files(name: str) -> Path:
    path = Path(mkdtemp(prefix="aos-liars-")) / f"{name}.gguf"
    path.write_bytes(tiny_models().build_model(SHAPES[name]))
    return path


@cache
def model(name: str) -> tuple[ReferenceEngine, ModelWeights]:
    """The honest engine and weights of a shape."""
    return ReferenceEngine(_files(name)), ModelWeights(read_gguf(_files(name)))


@dataclass(frozen=True)
class Told:
    """Where a liar's first lie is: a tile of a unit, or only the unit; -1: the unit as a whole, or something around it."""

    what: str
    position: int = -1
    unit: int = -1
    index: int = -1


@dataclass(eq=False)
class Claim:
    """A run that somebody claims, and the traces that it shows of it. ``told`` is None where it is honest."""

    job: Job
    engine: ReferenceEngine
    weights: ModelWeights
    known: KnownRun
    text: str
    told: Told | None = None
    disclosed: Sequence[int] | None = None
    shown: dict[tuple[int, int], UnitTrace | AbsentUnit] = field(default_factory=dict)
    shows: Callable[[Claim, int, int], UnitTrace | None] | None = None

    @property
    def root(self) -> bytes:
        return self.known.tree.root

    @property
    def header(self) -> StateHeader:
        return self.known.tree.header

    @property
    def model(self) -> Claim:  # what dispute_real.case_of reads
        return self

    @property
    def n_layers(self) -> int:
        return self.engine._model.hyper.n_layers

    @cached_property
    def capture(self) -> Any:
        units = range(self.n_layers + 1)
        kept = self.engine.capture(self.known.tokens[: self.header.n_positions], units)
        return _Everything(kept, self.n_layers, self.header.n_positions)

    def trace(self, position: int, unit: int, against: Unit | None = None) -> UnitTrace | AbsentUnit:
        """The trace that it shows."""
        key = (position, unit)
        if against is None and key in self.shown:
            return self.shown[key]
        special = self.shows(self, position, unit) if against is None and self.shows is not None else None
        if special is not None:
            return special
        if position >= len(self.known.tree.units) or unit >= len(self.known.tree.units[position]):
            return AbsentUnit(self.known)
        trace = UnitTrace(
            self.known, self.weights, self.engine, position, unit, against=against, capture=self.capture
        )
        if against is None:
            self.shown[key] = trace
        return trace

    def at(self, position: int, unit: int) -> UnitTrace:
        trace = self.trace(position, unit)
        assert isinstance(trace, UnitTrace)
        return trace


def run_of(job: Job, engine: ReferenceEngine, weights: ModelWeights, told: Told | None = None) -> Claim:
    """What an engine computes of a job, to its end."""
    run = engine._drive(engine.run(job.prompt, job.sampling, salt=NONCE), None, None)
    known = known_run(run, engine.manifest)
    known = replace(known, run=replace(known.run, params=job.params))
    return Claim(job, engine, weights, known, run._text.text, told)


@cache
def honest(job: Job) -> Claim:
    """The honest run of a job."""
    return run_of(job, *model(job.model))


def recommitted(
    claim: Claim,
    told: Told,
    units: Sequence[Sequence[bytes]] | None = None,
    tokens: Any = None,
    **members: Any,
) -> Claim:
    """The claim of who commits to other leaves, or another header, over the same run."""
    tree = StateTree(
        replace(claim.header, **members), [list(each) for each in units or claim.known.tree.units]
    )
    known = KnownRun(
        run=replace(claim.known.run, state_root=tree.root),
        tree=tree,
        tokens=claim.known.tokens if tokens is None else tokens,
    )
    return replace(claim, known=known, told=told, shown={}, shows=None)


# --- lies about one tile, and about one unit


def a_bit(tile: bytes) -> bytes:
    """One bit of a value turned over, the highest below the exponent of an fp32: a number stays finite."""
    at = 2 if len(tile) > 3 else 0
    return tile[:at] + bytes([tile[at] ^ 0x40]) + tile[at + 1 :]


def all_signs(tile: bytes) -> bytes:
    """The highest bit of every fourth byte: each fp32 with the other sign."""
    return bytes(byte ^ 0x80 if at % 4 == min(3, len(tile) - 1) else byte for at, byte in enumerate(tile))


ALTERATIONS: dict[str, Callable[[bytes], bytes]] = {"bit": a_bit, "signs": all_signs}


def downstream(trace: UnitTrace, index: int, change: Callable[[bytes], bytes]) -> list[bytes]:
    """The tiles of a unit of which ``index`` is another, and all later ones follow from it."""
    operands = _OwnOperands(trace)
    operands.tiles = list(trace.tiles[:index])
    operands.tiles.append(change(trace.tiles[index]))
    for op in trace.shape.ops:
        end = op.first + op.grid.tiles
        if len(operands.tiles) >= end:
            continue
        data = whole_op(operands, op) if len(operands.tiles) == op.first else None
        while data is None and len(operands.tiles) < end:
            operands.tiles.append(recomputed(operands, len(operands.tiles)))
        at = 0
        for tile in range(op.grid.tiles if data is not None else 0):
            size = op.grid.tile_size(tile)
            operands.tiles.append(data[at : at + size])  # type: ignore[index]
            at += size
    return operands.tiles


class Shown(UnitTrace):
    """A trace of these tiles, over a run that committed to ``parts`` there."""

    def __init__(
        self, claim: Claim, position: int, unit: int, tiles: Sequence[bytes], parts: Sequence[bytes]
    ):
        self._shown, self._place, self._committed = tiles, (position, unit), tuple(parts)
        super().__init__(claim.known, claim.weights, claim.engine, position, unit, capture=claim.capture)

    def _compute(self, fast: bool) -> Sequence[bytes]:
        return self._shown

    def payload(self, position: int, unit: int) -> tuple[bytes, ...]:
        if (position, unit) == self._place:
            return self._committed
        return super().payload(position, unit)


def lie_at(
    job: Job, position: int, unit: int, index: int, *, alteration: str = "bit", how: str = "tile"
) -> Claim | None:
    """Who has another tile there and computes all that follows from it: later ops, units, positions and tokens. None where
    nothing that is committed changes. ``how``: in a game it shows its trace (``tile``), the honest one (``output``), or
    the honest one with its own values where they are committed (``late``).
    """
    run = honest(job)
    trace = run.at(position, unit)
    tiles = downstream(trace, index, ALTERATIONS[alteration])
    altered = Shown(run, position, unit, tiles, ())
    parts = parts_of(altered)
    if not parts or leaf_of(altered, parts) == run.known.tree.units[position][unit]:
        return None
    told = Told(f"{trace.shape.op_of(index).name}, {how}", position, unit, index)
    engine = LyingEngine(run.engine, Replaced(position, unit, tuple(parts)))
    claim = run_of(job, engine, run.weights, told)
    if claim.header.n_positions <= position or claim.known.trap == (unit, 21):
        return None
    shown = list(tiles)
    if how != "tile":
        shown = list(trace.tiles)
        for op in trace.shape.ops if how == "late" else ():
            if op.part is not None:
                shown[op.first : op.first + op.grid.tiles] = tiles[op.first : op.first + op.grid.tiles]
    claim.shown[position, unit] = Shown(claim, position, unit, shown, parts)
    return claim


def with_parts(trace: UnitTrace, parts: Sequence[bytes]) -> list[bytes]:
    """The tiles of a trace with these values where they are committed."""
    tiles = list(trace.tiles)
    for op in trace.shape.ops:
        if op.part is not None:
            at = 0
            for tile in range(op.grid.tiles):
                size = op.grid.tile_size(tile)
                tiles[op.first + tile] = parts[op.part][at : at + size]
                at += size
    return tiles


def replaced_unit(job: Job, what: str, position: int, unit: int, parts: Sequence[bytes]) -> Claim | None:
    """Who has these values there, from nowhere, and shows them over the honest ops of the unit."""
    run = honest(job)
    trace = run.at(position, unit)
    if leaf_of(trace, parts) == run.known.tree.units[position][unit]:
        return None
    tiles = with_parts(trace, parts)
    engine = LyingEngine(run.engine, Replaced(position, unit, tuple(parts)))
    claim = run_of(job, engine, run.weights, Told(what, position, unit))
    claim.shown[position, unit] = Shown(claim, position, unit, tiles, parts)
    return claim


def skipped_layer(job: Job, position: int, layer: int) -> Claim | None:
    """Who leaves a layer out at one position: what came in goes out."""
    trace = honest(job).at(position, layer)
    _, keys, values = trace.payload(position, layer)
    before = trace.payload(position, layer - 1)[0]
    return replaced_unit(job, "a skipped layer", position, layer, (before, keys, values))


def foreign_cache(job: Job, position: int, layer: int, rng: Random) -> Claim | None:
    """Who takes a layer's K and V of one position from another place of the run."""
    run = honest(job)
    other = rng.choice([each for each in range(run.header.n_positions) if each != position])
    trace = run.at(position, layer)
    _, keys, values = trace.payload(other, layer)
    parts = (trace.payload(position, layer)[0], keys, values)
    return replaced_unit(job, "a cache from elsewhere", position, layer, parts)


def replaced_token(job: Job, position: int, token: int) -> Claim | None:
    """Whose tail says that it chose another token, and goes on with it."""
    run = honest(job)
    trace = run.at(position, run.n_layers + 1)
    logits, record, _ = trace.payload(position, run.n_layers + 1)
    parts = (logits, record, token.to_bytes(4, "little"))
    return replaced_unit(job, "a replaced token", position, run.n_layers + 1, parts)


class _FalseRows:
    """Weights of another file, opened as if they were the model's."""

    def __init__(self, false: ModelWeights, true: ModelWeights, rows: str) -> None:
        self._false, self._true, self._rows = false, true, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._false, name)

    def open_weights(self, block: Any) -> OpenedWeights:
        opened = self._true.open_weights(block)
        if self._rows == "its own":
            opened.rows = self._false.open_weights(block).rows
        return opened


@cache
def _other_file(name: str, tensor: str, byte: int, bit: int) -> tuple[ReferenceEngine, ModelWeights]:
    path = Path(mkdtemp(prefix="aos-liars-")) / f"{name}.gguf"
    data = bytearray(_files(name).read_bytes())
    file = read_gguf(_files(name))
    (found,) = [each for each in file.tensors if each.name == tensor]
    raw = bytes(file.tensor_bytes(found))
    assert data.count(raw) == 1
    data[data.index(raw) + byte % len(raw)] ^= 1 << bit
    path.write_bytes(data)
    return ReferenceEngine(path), ModelWeights(read_gguf(path))


def weight(job: Job, tensor: str, byte: int, bit: int, rows: str) -> Claim | None:
    """Who runs a model of which one bit is another, and says that it is the model. In a game it opens ``rows``: "its own"
    under the model's path, or "the model's".
    """
    engine, true = model(job.model)
    false_engine, false = _other_file(job.model, tensor, byte, bit)
    lying = LyingEngine(false_engine)
    lying.manifest, lying._model_id = engine.manifest, engine.model_id
    return run_of(job, lying, _FalseRows(false, true, rows), Told(f"a bit of a weight, {rows}"))  # type: ignore[arg-type]


def sampled_otherwise(job: Job, **members: int) -> Claim:
    """Who samples by another seed or temperature than it was asked to, and shows the asked-for trace with its own values
    where they are committed.
    """
    engine = LyingEngine(honest(job).engine, sampling=replace(job, **members).sampling)
    claim = run_of(job, engine, honest(job).weights, Told("another " + " and ".join(members)))

    def shows(of: Claim, position: int, unit: int) -> UnitTrace | None:
        assert engine.tails is not None
        if unit <= of.n_layers or position not in engine.tails.payloads:
            return None
        asked = UnitTrace(of.known, of.weights, of.engine, position, unit, capture=of.capture)
        parts = engine.tails.payloads[position]
        return Shown(of, position, unit, with_parts(asked, parts), parts)

    claim.shows = shows
    return claim


def early_stop(job: Job, n_out: int, finish: str) -> Claim | None:
    """Who ends an honest run early and says that this is its end."""
    run = honest(job)
    if not 0 < n_out < run.header.n_out:
        return None
    n_prompt = run.header.n_prompt
    tokens = list(run.known.tokens[: n_prompt + n_out])
    text = OutputText(job.params.stop)
    for token in tokens[n_prompt:]:
        text.push(run.engine.tokenizer.piece(token))
    text.finish()
    claim = recommitted(
        run,
        Told("an early stop"),
        run.known.tree.units[: n_prompt + n_out - 1],
        tokens,
        n_out=n_out,
        n_positions=n_prompt + n_out - 1,
        finish_reason=finish,
        tokens_hash=hashes.tokens_hash(NONCE, tokens[n_prompt:]),
        response_hash=hashes.response_hash(NONCE, text.text),
        tokens_root=tokens_root(tokens),
    )
    claim.text = text.text
    return claim


def swapped_token(job: Job, at: int, token: int, *, disclosed: bool) -> Claim | None:
    """Whose run has another token at ``at`` than its tail chose (or, in the prompt, than it was asked), and follows from it.
    ``disclosed``: its receipt hashes these tokens; else the honest ones.
    """
    run = honest(job)
    n_prompt, n_out = run.header.n_prompt, run.header.n_out
    if run.known.tokens[at] == token or (disclosed and at < n_prompt):
        return None
    tokens = list(run.known.tokens[:n_prompt])
    if at < n_prompt:
        tokens[at] = token
    engine = run.engine
    computation = _Computation(engine._model, engine._cos, engine._sin, tokens, job.sampling)
    computation.extend(tokens)
    for index in range(n_prompt, n_prompt + n_out):
        chosen = computation.choose()
        assert chosen is not None
        tokens.append(token if index == at else chosen)
        computation._seen[-1] = tokens[-1]
        if index < n_prompt + n_out - 1:
            computation.extend(tokens[-1:])
    text = OutputText(job.params.stop)
    for each in tokens[n_prompt:]:
        text.push(engine.tokenizer.piece(each))
    text.finish()
    members: dict[str, Any] = {"tokens_root": tokens_root(tokens)}
    if disclosed:
        members["tokens_hash"] = hashes.tokens_hash(NONCE, tokens[n_prompt:])
        members["response_hash"] = hashes.response_hash(NONCE, text.text)
    units = computation.leaves(run.header.n_positions).positions
    claim = recommitted(run, Told("a swapped token", at), units, tokens, **members)
    claim.text = text.text if disclosed else run.text
    claim.disclosed = None if disclosed else run.known.tokens
    return claim


def padding(job: Job, position: int) -> Claim | None:
    """Who commits to something at a position of the prompt that chooses no token."""
    run = honest(job)
    tail = run.n_layers + 1
    if position >= run.header.n_prompt - 1:
        return None
    units = [list(each) for each in run.known.tree.units]
    units[position][tail] = Random(position).randbytes(32)
    return recommitted(run, Told("padding", position, tail), units)
