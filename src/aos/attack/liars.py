"""Operators that lie about what they computed: each cheats at one place, computes everything downstream of its lie, and in a game
defends it as well as a liar can. ``aos attack`` seats them, and the tests do.

``liar(path, honest, kind)`` is an engine that says that it is the honest model with the asked parameters, and the party that
plays its games.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from aos.attack.engines import Damage, adapted, coarser, damage_blocks
from aos.core.arithmetic.floats import F16, F32, NumericTrap
from aos.core.arithmetic.matmul import BlockMatrix, quantise
from aos.core.dispute.audit import AuditRequest
from aos.core.dispute.fine.tile import recomputed
from aos.core.statements import Prompt
from aos.engine.audit import open_layers
from aos.engine.canonical import Claim, Run
from aos.engine.fast_trace import whole_op
from aos.engine.forward import Context, Matrix, Sink
from aos.engine.gguf import GGUF, Tensor, read_gguf
from aos.engine.llama import Layer
from aos.engine.manifest import tensor_leaves
from aos.engine.native import NativeEngine
from aos.engine.party import Party
from aos.engine.reference import ReferenceEngine, _Kept
from aos.engine.trace import KnownRun, UnitTrace, _OwnOperands
from aos.ports import SamplingParams

LATE_TOKEN: Final = 6
"""The token of the answer that is replaced, from 1."""
OTHER_TOKEN: Final = 300
LATE_POSITION: Final = 10
"""The position from which on a head is forged, and the one whose keys and values are, in one layer, those of position 0."""
FOREIGN_POSITIONS: Final = 4
"""So many positions have their keys and values from elsewhere."""
FORGED_HEAD: Final = 1
_HEAD_ERROR, _LOGIT_ERROR = np.float32(0.125), np.float32(0.5)
_LOGIT_TILE, _LOGITS = 1, 64

IN_WEIGHTS: Final = ("weight", "norm", "layer", "exit", "coarse", "adapter")
IN_RUN: Final = ("seed", "temperature", "early_stop", "token")
IN_ARITHMETIC: Final = ("head", "logits", "cache", "coarse_cache", "foreign_cache")
KINDS: Final = (*IN_WEIGHTS, *IN_ARITHMETIC, *IN_RUN)


def liar(
    path: Path, honest: NativeEngine, kind: str, *, directory: Path
) -> tuple[NativeEngine | ReferenceEngine, Party]:
    """The engine and the party of a liar of this kind; ``honest`` is the engine of the model file ``path``. What it needs of
    files it puts in ``directory``."""
    engine: NativeEngine | ReferenceEngine
    true = path
    if kind in IN_ARITHMETIC:
        engine = LyingReference(path, kind)
    else:
        path = altered_model(path, kind, directory) if kind in IN_WEIGHTS else path
        engine = LyingNative(path, honest, kind)
    return engine, LyingParty(engine, path, kind=kind, honest=true)


# --- wrong weights

_Change = Callable[[bytearray, Mapping[str, Tensor], int], None]
"""Changes a model file's bytes; its tensors by name, and how many layers it has."""


def _one_bit(data: bytearray, tensors: Mapping[str, Tensor], _layers: int) -> None:
    data[tensors["blk.2.ffn_up.weight"].offset + 34 * 7 + 5] ^= 0x40


def _one_norm(data: bytearray, tensors: Mapping[str, Tensor], _layers: int) -> None:
    data[tensors["blk.1.attn_norm.weight"].offset + 4 * 11 + 2] ^= 0x40


def _without(*skipped: int) -> _Change:
    """Layers (from the end, where negative) that add nothing to the residual."""

    def change(data: bytearray, tensors: Mapping[str, Tensor], layers: int) -> None:
        for layer in skipped:
            for name in ("attn_output", "ffn_down"):
                tensor = tensors[f"blk.{layer % layers}.{name}.weight"]
                data[tensor.offset : tensor.offset + tensor.size] = bytes(tensor.size)

    return change


def _blocks(damage: Damage, *, all_tensors: bool) -> _Change:
    """``damage`` to the first quantised tensor of a layer, or to all."""

    def change(data: bytearray, tensors: Mapping[str, Tensor], _layers: int) -> None:
        damage_blocks(data, list(tensors.values()), damage, all_tensors=all_tensors)

    return change


_DAMAGE: Final[dict[str, _Change]] = {
    "weight": _one_bit,
    "norm": _one_norm,
    "layer": _without(1),
    "exit": _without(-1, -2),
    "coarse": _blocks(coarser, all_tensors=True),
    "adapter": _blocks(adapted, all_tensors=False),
}


def altered_model(path: Path, kind: str, directory: Path) -> Path:
    """A copy, in ``directory``, of a model file with the weights of this kind of lie."""
    data, file = bytearray(path.read_bytes()), read_gguf(path)
    _DAMAGE[kind](data, {tensor.name: tensor for tensor in file.tensors}, _layers_of(file))
    lying = directory / f"{kind}-{path.name}"
    lying.write_bytes(data)
    return lying


def _layers_of(file: GGUF) -> int:
    numbers = {int(t.name.split(".")[1]) for t in file.tensors if t.name.startswith("blk.")}
    return max(numbers) + 1


# --- wrong runs


class LyingNative(NativeEngine):
    """The native engine with the file ``path``; ``kind`` says what it does instead of what it was asked."""

    def __init__(self, path: Path, honest: NativeEngine, kind: str) -> None:
        super().__init__(path)
        self.manifest, self._model_id, self.kind = honest.manifest, honest.model_id, kind

    def _begin(self, prompt: Sequence[int], params: SamplingParams) -> Any:
        if self.kind == "seed":
            params = replace(params, seed=(params.seed + 1) % 2**64)
        elif self.kind == "temperature":
            params = replace(params, temperature=params.temperature * 2)
        computation = super()._begin(prompt, params)
        return _Replacing(computation) if self.kind == "token" else computation

    def run(self, prompt: Prompt, params: SamplingParams, *, salt: bytes, claim: Claim | None = None) -> Run:
        """See ``CanonicalEngine``."""
        run = super().run(prompt, params, salt=salt, claim=claim)
        if self.kind == "early_stop":
            run.limit = max(1, run.limit - 3)
        return run


class _Replacing:
    """A computation whose ``LATE_TOKEN``-th token is another than it chose."""

    def __init__(self, computation: Any) -> None:
        self._computation, self._chosen = computation, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._computation, name)

    def choose(self) -> int | None:
        token: int | None = self._computation.choose()
        self._chosen += 1
        return OTHER_TOKEN if token is not None and self._chosen == LATE_TOKEN else token


# --- wrong arithmetic


class LyingReference(ReferenceEngine):
    """The reference engine with a forged head, other logits, or keys and values that are coarser, or from elsewhere."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(path)
        self.kind = kind
        if kind == "logits":
            self._model = _Altered(self._model, output=_AddsTo(self._model.output, _other_logits))  # type: ignore[assignment]

    def _begin(self, prompt: Sequence[int], params: SamplingParams) -> Any:
        computation = super()._begin(prompt, params)
        computation._context = self._context()
        return computation

    def capture(self, tokens: Sequence[int], units: Sequence[int]) -> _Kept:
        """See ``ReferenceEngine``."""
        kept = _Kept(self._model, self._cos, self._sin, units)
        kept._context = self._context()
        kept.extend(tokens, self.step)
        return kept

    def _context(self) -> Context:
        return _LyingContext(self._model, self._cos, self._sin, self.kind)


class _Altered:
    """Something with other members."""

    def __init__(self, of: Any, **members: Any) -> None:
        self._of = of
        self.__dict__.update(members)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


class _AddsTo:
    """A matrix whose activations, or products, are altered by the way. No ``BlockMatrix``: it takes them as they are."""

    def __init__(
        self,
        matrix: Matrix,
        after: Callable[[F32], F32] | None = None,
        before: Callable[[F32], F32] | None = None,
    ) -> None:
        self._matrix, self._before, self._after = matrix, before, after

    def product(self, x: F32) -> F32:
        x = x if self._before is None else self._before(x)
        y: F32 = (
            self._matrix.product(*quantise(x))
            if isinstance(self._matrix, BlockMatrix)
            else self._matrix.product(x)
        )
        return y if self._after is None else self._after(y)


def _other_logits(logits: F32) -> F32:
    logits = logits.copy()
    logits[:, 256 * _LOGIT_TILE : 256 * _LOGIT_TILE + _LOGITS] += _LOGIT_ERROR
    return logits


class _Nothing:
    """A ``Sink`` that keeps nothing."""

    def embedding(self, first: int, residual: F32) -> None: ...

    def layer(self, first: int, index: int, residual: F32, keys: F16, values: F16) -> None: ...


class _Row(_Nothing):
    """A ``Sink`` that keeps the last row of a layer."""

    row: tuple[F32, F16, F16]

    def layer(self, first: int, index: int, residual: F32, keys: F16, values: F16) -> None:
        self.row = residual, keys, values


class _LyingContext(Context):
    """A context that takes one position at a time, and lies about some."""

    def __init__(self, model: Any, cos: F32, sin: F32, kind: str) -> None:
        super().__init__(model, cos, sin)
        self._kind, self._honest = kind, model
        self._elsewhere = Context(model, cos, sin)
        width = model.hyper.head_width
        self._head = slice(FORGED_HEAD * width, (FORGED_HEAD + 1) * width)

    def extend(self, tokens: Sequence[int], sink: Sink) -> Any:
        if self._kind == "foreign_cache":
            self._elsewhere.extend([(token + 1) % self.model.hyper.n_vocab for token in tokens], _Nothing())
        return super().extend(tokens, sink)

    def _layer(self, index: int, x: F32, first: int, sink: Sink) -> F32:
        rows = []
        for at in range(len(x)):
            position, row = first + at, _Row()
            forged = self._kind == "head" and position >= LATE_POSITION
            self.model = self._forged(index) if forged else self._honest
            try:
                super()._layer(index, x[at : at + 1], position, row)
            except NumericTrap as trap:
                raise NumericTrap(trap.op, at) from None
            finally:
                self.model = self._honest
            rows.append(self._cached(index, position, *row.row))
        residual, keys, values = (np.concatenate(each) for each in zip(*rows, strict=True))
        sink.layer(first, index, residual, keys, values)
        return residual

    def _forged(self, index: int) -> Any:
        layer: Layer = self._honest.layers[index]

        def before(mixed: F32) -> F32:
            mixed = mixed.copy()
            mixed.reshape(len(mixed), -1)[:, self._head] += _HEAD_ERROR
            return mixed

        wrong = replace(layer, attn_output=_AddsTo(layer.attn_output, before=before))  # type: ignore[arg-type]
        return _Altered(self._honest, layers={index: wrong})

    def _cached(
        self, index: int, position: int, residual: F32, keys: F16, values: F16
    ) -> tuple[F32, F16, F16]:
        """What stays of a position in the cache, and is committed; later positions attend to it."""
        if self._kind == "coarse_cache":
            keys, values = coarse(keys), coarse(values)
        elif (self._kind, index, position) == ("cache", 1, LATE_POSITION):
            keys, values = self.cache(index, 0, 1)
        elif self._kind == "foreign_cache" and position < FOREIGN_POSITIONS:
            keys, values = self._elsewhere.cache(index, position, position + 1)
        else:
            return residual, keys, values
        h = self.model.hyper
        shape = (h.n_kv_heads, h.head_width)
        self._keys[index][:, :, position] = keys.astype(np.float32).reshape(shape).T
        self._values[index][position] = values.astype(np.float32).reshape(shape)
        return residual, keys, values


def coarse(halves: F16) -> F16:
    """binary16 with four bits of mantissa, as an 8-bit cache holds."""
    return (halves.view(np.uint16) & np.uint16(0xFFC0)).view(np.float16)


# --- games


class LyingTrace(UnitTrace):
    """The trace that belongs to a lie about a head, logits or sampling: what was committed, and what follows from it."""

    kind = ""

    def _compute(self, fast: bool) -> Sequence[bytes]:
        with self._other_rules():
            operands = _OwnOperands(self)  # takes the rules as they are now
            for op in self.shape.ops:
                data, at = (whole_op(operands, op) if fast else None), 0
                for tile in range(op.grid.tiles):
                    size = op.grid.tile_size(tile)
                    made = recomputed(operands, op.first + tile) if data is None else data[at : at + size]
                    operands.tiles.append(self._told(op.name, tile, made))
                    at += size
        return operands.tiles

    @contextmanager
    def _other_rules(self) -> Iterator[None]:
        honest, rules = self.context, self.context.rules
        if self.kind == "seed":
            self.context = replace(honest, rules=replace(rules, seed=(rules.seed + 1) % 2**64))
        elif self.kind == "temperature":
            self.context = replace(honest, rules=replace(rules, temperature=rules.temperature * 2))
        try:
            yield
        finally:
            self.context = honest

    def _told(self, op: str, tile: int, made: bytes) -> bytes:
        late = self.context.position >= LATE_POSITION
        if (self.kind, op, tile, late) == ("head", "attention", FORGED_HEAD, True):
            return bytes((np.frombuffer(made, dtype="<f4") + _HEAD_ERROR).tobytes())
        if (self.kind, op, tile) == ("logits", "logits", _LOGIT_TILE):
            values = np.frombuffer(made, dtype="<f4").copy()
            values[:_LOGITS] += _LOGIT_ERROR
            return bytes(values.tobytes())
        return made


class LyingParty(Party):
    """Plays with the traces of its lie. ``honest`` is the model's own file."""

    def __init__(
        self, engine: NativeEngine | ReferenceEngine, path: Path, *, kind: str, honest: Path
    ) -> None:
        super().__init__(engine, path)
        self._kind, self._honest = kind, honest

    def audit(self, known: KnownRun, request: AuditRequest) -> tuple[int, Iterator[bytes]]:
        """Opens what it committed, under the model's own weights: anything else opens nothing."""
        leaves, _ = tensor_leaves(read_gguf(self._honest))
        return open_layers(known, self._engine, leaves, request)

    def _own(self, known: Any, position: int, unit: int, against: Any) -> UnitTrace:
        tail = unit > known.run.manifest.graph.n_layers
        if self._kind not in ("seed", "temperature", "logits") if tail else self._kind != "head":
            return super()._own(known, position, unit, against)
        trace = type("Trace", (LyingTrace,), {"kind": self._kind})
        made: UnitTrace = trace(known, self._loaded(), self._engine, position, unit, against=against)
        return made
