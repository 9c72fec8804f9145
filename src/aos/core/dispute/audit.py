"""The layer audit: layers drawn after the commitment, and what the operator opens of them (docs/spec/14-audit.md).

A bundle holds the leaves of the whole run and the residuals that enter the drawn layers and the tail. Everything else an
auditor computes from these and one layer's weights, and compares by hash. Pure: ``aos.engine.audit`` computes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb
from mmap import mmap
from typing import Self

from aos.core.codec import decode
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.state_tree import (
    CACHE_TILE_BYTES,
    HEADER_BYTES,
    TILE_BYTES,
    StateHeader,
    StateShape,
    graph_shape,
    part_root,
    trap_leaf,
    unit_leaf,
)
from aos.core.encoding import parse_canonical, tag, tagged_hash
from aos.core.hashes import u32
from aos.core.manifest import GRAPH_KINDS, GraphSizes, Manifest
from aos.core.merkle import HASH_BYTES, tree_root
from aos.errors import InvalidMessage, VerificationError

BUNDLE_TAG = tag("audit-bundle")
MAX_BUNDLE_BYTES = 1 << 30
MAX_MANIFEST_BYTES = 1 << 16
MAX_TENSORS = 65_536
MAX_LAYERS = 1024
BEACON_BYTES = 32
_WORDS = 1 << 64

Payload = Callable[[int, int], tuple[bytes, bytes, bytes]]
"""(unit, position) to the bytes of its residual, K and V, the latter two empty for the embedding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRequest:
    """What an audit asks of one run: the beacon and how many layers it draws."""

    state_root: bytes
    beacon: bytes
    layers: int

    def drawn(self, n_layers: int) -> tuple[int, ...]:
        """The drawn layers (0 the first), ascending: a uniform subset, in integers (partial Fisher-Yates over words of
        64 bits, those that would favour a layer passed over).

        Raises InvalidMessage ``audit.layers``, ``audit.beacon``.
        """
        if len(self.beacon) != BEACON_BYTES:
            raise InvalidMessage("audit.beacon", f"a beacon has {BEACON_BYTES} bytes", field="beacon")
        if not 1 <= self.layers <= n_layers <= MAX_LAYERS:
            raise InvalidMessage(
                "audit.layers", f"{self.layers} of {n_layers} layers cannot be drawn", field="layers"
            )
        words = _words(self.state_root, self.beacon)
        left = list(range(n_layers))
        for at in range(self.layers):
            bound = n_layers - at
            word = next(word for word in words if word < _WORDS - _WORDS % bound)
            other = at + word % bound
            left[at], left[other] = left[other], left[at]
        return tuple(sorted(left[: self.layers]))


def _words(state_root: bytes, beacon: bytes) -> Iterator[int]:
    block = 0
    while True:
        digest = tagged_hash("audit-draw", state_root, beacon, u32(block))
        yield from (int.from_bytes(digest[at : at + 8], "big") for at in range(0, HASH_BYTES, 8))
        block += 1


# --- what a bundle opens


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which values a bundle opens: from graph, run and draw alone."""

    shape: StateShape
    layers: tuple[int, ...]

    def positions(self, unit: int) -> range:
        """The positions that have a leaf of the unit: all, or all but the last of a run that trapped before it."""
        shape = self.shape
        last = shape.n_positions
        return range(last - 1 if last and unit >= shape.units(last - 1) else last)

    @property
    def tails(self) -> range:
        """The positions whose tail chose a token, or trapped."""
        return range(self.shape.n_prompt - 1, max(self.shape.n_prompt - 1, len(self.positions(self.tail))))

    @property
    def tail(self) -> int:
        """The tails' unit."""
        return self.shape.n_layers + 1

    def inputs(self) -> list[tuple[int, range]]:
        """Units whose residuals are opened, and where: those before each drawn layer, and before the tail."""
        before = [(layer, self.positions(layer + 1)) for layer in self.layers]
        return [*before, (self.shape.n_layers, self.tails)]

    def outputs(self) -> list[tuple[int, range]]:
        """Units whose parts are opened as roots: the drawn layers, where they did not trap."""
        shape, out = self.shape, []
        for layer in self.layers:
            count = len(self.positions(layer + 1))
            if count and shape.is_trap(count - 1, layer + 1):
                count -= 1
            out.append((layer + 1, range(count)))
        return out

    def input_bytes(self, unit: int) -> int:
        """Of an opened residual, and the roots of K and V beside it."""
        return 4 * self.shape.width + (2 * HASH_BYTES if unit else 0)

    @property
    def value_bytes(self) -> int:
        """Of all inputs and outputs."""
        size = sum(len(positions) * self.input_bytes(unit) for unit, positions in self.inputs())
        return size + 3 * HASH_BYTES * sum(len(positions) for _, positions in self.outputs())


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditBundle:
    """A bundle whose every byte is where ``state_root`` or ``model_id`` committed to it.

    ``leaves`` are per position those of its units; ``tensor_leaves`` those under ``weights_root``; ``residuals`` the
    float32 bytes of all positions of ``Plan.inputs``, by unit; ``part_roots`` those of ``Plan.outputs`` (residual, K, V
    per position), by unit. ``trap_op`` is None for a run that did not trap.
    """

    request: AuditRequest
    manifest: Manifest
    graph: GraphSizes
    header: StateHeader
    plan: Plan
    trap_op: int | None
    tensor_leaves: tuple[bytes, ...]
    leaves: tuple[tuple[bytes, ...], ...]
    residuals: dict[int, bytes]
    part_roots: dict[int, tuple[tuple[bytes, bytes, bytes], ...]]

    @classmethod
    def read(cls, data: bytes | mmap, request: AuditRequest, model_id: bytes, *, keep: bool = True) -> Self:
        """Check a bundle against what the auditor asked for and the receipt's ``model_id`` and ``state_root``. Without
        ``keep`` the residuals are checked and not kept: memory is then the leaves', whatever the bundle's size.

        Raises InvalidMessage ``audit.bundle`` (another form, size, beacon or number of layers) and ``state.header``,
        VerificationError ``audit.manifest``, ``audit.weights``, ``audit.opening``, ``state.positions``: whoever committed
        to a run can make a bundle that holds.
        """
        if len(data) > MAX_BUNDLE_BYTES:
            raise _form(f"it has more than {MAX_BUNDLE_BYTES} bytes")
        reader = _Reader(data)
        if reader.take(len(BUNDLE_TAG)) != BUNDLE_TAG:
            raise _form("it is none of this version")
        if (reader.take(BEACON_BYTES), reader.number()) != (request.beacon, request.layers):
            raise _form("it answers another beacon or number of layers")
        raw = reader.take(reader.number(MAX_MANIFEST_BYTES))
        if tagged_hash("model", raw) != model_id:
            raise VerificationError(
                "audit.manifest", "the manifest is not the receipt's model", field="manifest"
            )
        manifest = decode(Manifest, parse_canonical(raw, max_bytes=MAX_MANIFEST_BYTES), where="manifest")
        graph = _graph(manifest)
        header = StateHeader.read(reader.take(HEADER_BYTES))
        if header.model_id != model_id:
            raise _opening("the header names another model")
        trap = (reader.number(), reader.number()) if header.finish_reason == "numeric_trap" else None
        shape = _shape(graph, header, None if trap is None else trap[0])
        plan = Plan(shape=shape, layers=request.drawn(graph.n_layers))
        tensors = reader.number(MAX_TENSORS)
        units = [shape.units(position) for position in range(_positions(shape, reader))]
        if reader.left != HASH_BYTES * (tensors + sum(units)) + plan.value_bytes:
            raise _form("its length is not what the run and the draw say")
        tensor_leaves = reader.hashes(tensors)
        if tree_root(tensor_leaves) != manifest.weights_root:
            raise VerificationError(
                "audit.weights", "the tensors' leaves are not those of weights_root", field="tensor_leaves"
            )
        leaves = tuple(reader.hashes(count) for count in units)
        if StateTree(header, leaves).root != request.state_root:
            raise _opening("header and leaves do not lead to the state root")
        bundle = cls(
            request=request,
            manifest=manifest,
            graph=graph,
            header=header,
            plan=plan,
            trap_op=None if trap is None else trap[1],
            tensor_leaves=tensor_leaves,
            leaves=leaves,
            residuals={},
            part_roots={},
        )
        bundle._check_leaves()
        bundle._read_values(reader, keep)
        return bundle

    def _check_leaves(self) -> None:
        """The leaves that say nothing but their place."""
        shape = self.plan.shape
        if self.trap_op is not None:
            position, unit = shape.n_positions - 1, shape.trap_unit or 0
            if self.leaves[position][unit] != trap_leaf(position, unit, self.trap_op):
                raise _opening("the run did not trap in that op", position, unit)
        tail = self.plan.tail
        for position in self.plan.positions(tail)[: shape.n_prompt - 1]:
            is_trap = shape.is_trap(position, tail)
            if is_trap or self.leaves[position][tail] != unit_leaf(position, tail, ()):
                raise _opening("the tail of a prompt's position chooses nothing", position, tail)

    def _read_values(self, reader: "_Reader", keep: bool) -> None:
        width = 4 * self.plan.shape.width
        for unit, positions in self.plan.inputs():
            rows = []
            for position in positions:
                row = reader.take(width)
                roots = (part_root(row, TILE_BYTES), *reader.hashes(2 if unit else 0))
                if self.leaves[position][unit] != unit_leaf(position, unit, roots):
                    raise _opening("a residual is not the committed one", position, unit)
                if keep:
                    rows.append(row)
            if keep:
                self.residuals[unit] = b"".join(rows)
        for unit, positions in self.plan.outputs():
            roots_of_unit = []
            for position in positions:
                residual, keys, values = reader.hashes(3)
                if self.leaves[position][unit] != unit_leaf(position, unit, (residual, keys, values)):
                    raise _opening("the roots of a unit's parts are not the committed ones", position, unit)
                roots_of_unit.append((residual, keys, values))
            self.part_roots[unit] = tuple(roots_of_unit)


def bundle_parts(
    tree: StateTree,
    manifest: Manifest,
    tensor_leaves: Sequence[bytes],
    trap: tuple[int, int] | None,
    request: AuditRequest,
    payload: Payload,
) -> tuple[int, Iterator[bytes]]:
    """What the operator answers to ``request``: its bytes in number, and piece after piece, made as they are asked for.
    ``trap`` is the (unit, op) of a run that trapped.

    Raises InvalidMessage ``audit.layers``, ``audit.beacon``, ``audit.too_large``; VerificationError ``audit.opening``
    where the request is for another run.
    """
    if tree.root != request.state_root:
        raise _opening("the request is for another run")
    graph = _graph(manifest)
    shape = _shape(graph, tree.header, None if trap is None else trap[0])
    plan = Plan(shape=shape, layers=request.drawn(graph.n_layers))
    raw = manifest.json()
    head = [BUNDLE_TAG, request.beacon, u32(request.layers), u32(len(raw)), raw, tree.header.entry()]
    head += [u32(number) for number in trap or ()]
    head += [u32(len(tensor_leaves)), *tensor_leaves]
    head += [leaf for units in tree.units for leaf in units]
    size = sum(map(len, head)) + plan.value_bytes
    if size > MAX_BUNDLE_BYTES:
        raise InvalidMessage(
            "audit.too_large",
            f"the bundle would have {size} bytes, more than {MAX_BUNDLE_BYTES}",
            field="layers",
            hint="draw fewer layers",
        )

    def parts() -> Iterator[bytes]:
        yield b"".join(head)
        for unit, positions in plan.inputs():
            for position in positions:
                residual, keys, values = payload(unit, position)
                yield residual
                if unit:
                    yield from (part_root(half, CACHE_TILE_BYTES) for half in (keys, values))
        for unit, positions in plan.outputs():
            for position in positions:
                yield from layer_roots(*payload(unit, position))

    return size, parts()


def layer_roots(residual: bytes, keys: bytes, values: bytes) -> tuple[bytes, bytes, bytes]:
    """The roots of a layer's parts."""
    return (
        part_root(residual, TILE_BYTES),
        part_root(keys, CACHE_TILE_BYTES),
        part_root(values, CACHE_TILE_BYTES),
    )


# --- what an audit sees


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """A kind of cheat and the exact probability that one audit sees it, over the beacon."""

    cheat: str
    probability: Fraction


UNSEEN = (
    "what happened in layers that were not drawn",
    "a beacon that the operator knew, or could choose, before it signed the state root",
    "whether the operator computed the run itself, alone, or once",
    "whether it kept or passed on the prompt",
    "the inputs of the run, so far as the receipt's other checks do not bind them (aos verify)",
    "whether the model is the one that its name promises: model_id names a file",
)


def chance(n_layers: int, drawn: int, altered: int) -> Fraction:
    """That at least one of ``altered`` layers is among ``drawn`` uniform ones: 1 - C(n-a, k)/C(n, k)."""
    return 1 - Fraction(comb(n_layers - altered, drawn), comb(n_layers, drawn))


def detections(n_layers: int, drawn: int) -> tuple[Detection, ...]:
    """Each kind of cheat, whose lie the rest of the run follows honestly."""
    always = Fraction(1)
    some = sorted({count for count in (2, 4, n_layers // 2) if 1 < count < n_layers})
    rows = [
        ("another embedding, or other prompt tokens", always),
        ("other logits, another sampler, seed or temperature", always),
        ("an early or late stop, a replaced token, another text", always),
        ("another model in every layer", always),
        ("keys and values from elsewhere in every layer", always),
        ("keys and values from elsewhere in one layer", chance(n_layers, drawn, 1)),
        ("one layer altered: a weight, a norm, a head, at any position", chance(n_layers, drawn, 1)),
        ("one layer skipped", chance(n_layers, drawn, 1)),
        *((f"{count} layers altered or skipped", chance(n_layers, drawn, count)) for count in some),
    ]
    return tuple(Detection(cheat=cheat, probability=probability) for cheat, probability in rows)


# --- below


class _Reader:
    def __init__(self, data: bytes | mmap) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise _form("it is too short")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, most: int = (1 << 32) - 1) -> int:
        value = int.from_bytes(self.take(4), "big")
        if value > most:
            raise _form(f"a count is more than {most}")
        return value

    def hashes(self, count: int) -> tuple[bytes, ...]:
        raw = self.take(HASH_BYTES * count)
        return tuple(raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES))


def _positions(shape: StateShape, reader: _Reader) -> int:
    """Of a run whose leaves the bundle can hold: nothing is allocated for a count that it only claims."""
    if shape.n_positions * HASH_BYTES > reader.left:
        raise _form("it is too short")
    return shape.n_positions


def _graph(manifest: Manifest) -> GraphSizes:
    if manifest.graph is None or manifest.arithmetic != 1 or manifest.architecture not in GRAPH_KINDS:
        raise VerificationError(
            "audit.manifest", "the model is none of the canonical arithmetic", field="manifest.arithmetic"
        )
    return manifest.graph


def _shape(graph: GraphSizes, header: StateHeader, trap_unit: int | None) -> StateShape:
    """Whether tails hold a record is of no matter here: their parts are not opened."""
    return graph_shape(header, graph, sampled=False, trap_unit=trap_unit)


def _form(what: str) -> InvalidMessage:
    return InvalidMessage(
        "audit.bundle", f"this is not the bundle that was asked for: {what}", field="bundle"
    )


def _opening(what: str, position: int | None = None, unit: int | None = None) -> VerificationError:
    where = "" if position is None else f" (position {position}, unit {unit})"
    return VerificationError(
        "audit.opening",
        what + where,
        field="bundle",
        hint="whoever committed to the run can open it; ask the operator again",
    )
