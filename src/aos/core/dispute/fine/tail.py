"""The ops of the tail: the last norm, the logits, and the sampler (docs/spec/11-trace.md, "Tail", "Sampler").

Where the temperature is not 0, the two cuts of the committed sampler record are inputs: everything else is a function of
them, and whether they are the right ones is a tile too.
"""

import struct
from math import isfinite, isnan
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aos.core.arithmetic.floats import CHUNK, F32, ZERO, Mask, millionths, running_sum
from aos.core.arithmetic.ops import exp
from aos.core.arithmetic.sampler import MILLION, U_SCALE, uniform_bits
from aos.core.dispute.fine.common import (
    TILE,
    add_norm,
    add_product,
    add_quantised,
    residual_source,
    source_of,
)
from aos.core.dispute.fine.grid import Grid, Op, OpList
from aos.core.dispute.fine.operands import Operands, Poisoned, Source, packed
from aos.core.dispute.state_opening import Place
from aos.core.dispute.state_tree import LOGITS, RECORD, TILE_BYTES, TOKEN, record_size
from aos.core.manifest import GraphSizes

SEEN_IDS = 8 * TILE_BYTES
"""Ids of a tile of the bitmap of tokens that occurred."""
SEEN_TOKENS = 1024
"""Tokens between two committed bitmaps."""
NONE = 2**32 - 1
HOLDS = (1).to_bytes(4, "little")
CHUNKS_A_TILE = 4
RUNNING_CHUNKS = 256

_CUTS = struct.Struct("<II")
_LARGEST = struct.Struct("<fI")
_RECORD_HEAD = struct.Struct("<IfII")
_PICK = struct.Struct("<II")


class Prefix(NamedTuple):
    """A prefix of the order, within a chunk of 256 ids or over all: its members' number and mass, the least weight among
    them (infinite without members), and the first id in the order that is none of them (or 2³² − 1).
    """

    members: int
    mass: float
    least: float
    next_id: int
    next_value: float
    next_weight: float


_PREFIX = struct.Struct("<IffIff")


class Cut(NamedTuple):
    """A prefix by its last member: its number, its mass, and its mass without that member."""

    members: int
    mass: float
    without: float


_CUT = struct.Struct("<Iff")


def tail_ops(graph: GraphSizes, position: int, n_prompt: int, *, sampled: bool) -> OpList:
    """Unit n_layers + 1 at ``position``; before the last position of the prompt nothing but the trap."""
    ops = OpList()
    if position < n_prompt - 1:
        ops.add_trap()
        return ops
    n, ids = graph.width, graph.n_vocab
    norm = source_of(add_norm(ops, "output_norm", residual_source, "output_norm.weight", 19, n=n))
    quantised = add_quantised(ops, "output_norm.quantised", norm, n)
    tensor = "token_embd.weight" if graph.tied else "output.weight"
    product = source_of(add_product(ops, "output", norm, quantised, tensor, (n, ids), 20))

    def copy(operands: Operands, group: int, first: int, end: int) -> bytes:
        return packed(product(operands, 0, first, end))

    grid = Grid(values=ids, tile=TILE, size=4)
    logits = source_of(ops.add("logits", grid, copy, part=LOGITS, by_value=True))
    seen = add_seen(ops, ids, position + 1)
    adjusted = add_adjusted(ops, logits, seen, ids)
    largest = add_largest(ops, adjusted, ids)
    if not sampled:
        add_token(ops, largest)
    else:
        Sampler(ops, adjusted, largest, ids).add()
    ops.add_trap()
    return ops


def add_seen(ops: OpList, ids: int, count: int) -> Op:
    """Which ids occur among the run's first ``count`` tokens, one bit each, with a running bitmap every 1,024 tokens."""

    def output(operands: Operands, group: int, first: int, end: int) -> bytes:
        low = group * SEEN_IDS
        high = min(low + SEEN_IDS, ids)
        bits = np.zeros(8 * grid.value_size(group), dtype=np.uint8)
        if first:
            before = operands.raw(seen, group, first - 1, first)
            bits = np.unpackbits(np.frombuffer(before, dtype=np.uint8), bitorder="little")
        for token in operands.tokens(first * SEEN_TOKENS, min(end * SEEN_TOKENS, count)):
            if low <= token < high:
                bits[token - low] = 1
        return np.packbits(bits, bitorder="little").tobytes()

    groups = -(-ids // SEEN_IDS)
    last = -(-(ids - (groups - 1) * SEEN_IDS) // 8)
    grid = Grid(
        groups=groups,
        values=-(-count // SEEN_TOKENS),
        tile=1,
        size=TILE_BYTES if groups > 1 else last,
        last_size=last,
    )
    seen = ops.add("seen", grid, output, element=0)
    return seen


def add_adjusted(ops: OpList, logits: Source, seen: Op, ids: int) -> Op:
    """Rule 9: l' after the repetition penalty and, but for T = 0, after division by T."""

    def output(operands: Operands, group: int, first: int, end: int) -> bytes:
        values, rules = logits(operands, 0, first, end), operands.context.rules
        part, segments = first // SEEN_IDS, seen.grid.values
        raw = np.frombuffer(operands.raw(seen, part, segments - 1, segments), dtype=np.uint8)
        bits = np.unpackbits(raw, bitorder="little")[first - part * SEEN_IDS :][: end - first]
        if rules.repeat_penalty != MILLION:
            factor = millionths(rules.repeat_penalty)
            values = np.where(bits == 1, np.where(values > ZERO, values / factor, values * factor), values)
        if rules.temperature:
            values = values / millionths(rules.temperature)
        return packed(values)

    return ops.add("adjusted", Grid(values=ids, tile=TILE, size=4), output, trap=21, by_value=True)


def add_largest(ops: OpList, adjusted: Op, ids: int) -> Op:
    """The largest l' and the lowest id that has it, per chunk and over all: fp32, u32."""
    chunks = -(-ids // CHUNK)

    def chunk(operands: Operands, group: int, first: int, end: int) -> bytes:
        values = operands.floats(adjusted, 0, first * CHUNK, min(end * CHUNK, ids))
        at = int(np.argmax(values))
        return packed(values[at]) + (first * CHUNK + at).to_bytes(4, "little")

    partial = ops.add("largest.chunks", Grid(values=chunks, tile=1, size=8), chunk, element=0)

    def over_all(operands: Operands, group: int, first: int, end: int) -> bytes:
        raw = np.frombuffer(operands.raw(partial, 0, 0, chunks), dtype="<f4").reshape(-1, 2)
        values = raw[:, 0]
        if not np.isfinite(values).all():
            raise Poisoned
        best: bytes = raw[int(np.argmax(values))].tobytes()
        return best

    return ops.add("largest", Grid(values=1, tile=1, size=8), over_all, element=0)


def read_largest(operands: Operands, largest: Op) -> tuple[np.float32, int]:
    """(m, its id). Raises Poisoned."""
    raw = operands.raw(largest, 0, 0, 1)
    value = np.frombuffer(raw[:4], dtype="<f4")[0]
    if not np.isfinite(value):
        raise Poisoned
    return value, _LARGEST.unpack(raw)[1]


def add_token(ops: OpList, largest: Op) -> None:
    """The token of temperature 0."""

    def output(operands: Operands, group: int, first: int, end: int) -> bytes:
        return read_largest(operands, largest)[1].to_bytes(4, "little")

    ops.add("token", Grid(values=1, tile=1, size=4), output, part=TOKEN)


class Sampler:
    """Steps 2 to 4 of rule 9 for a temperature above 0."""

    def __init__(self, ops: OpList, adjusted: Op, largest: Op, ids: int) -> None:
        self.ops, self.adjusted, self.largest, self.ids = ops, adjusted, largest, ids
        self.chunks = -(-ids // CHUNK)

    def add(self) -> None:
        """List the ops, in order."""
        ops, by_chunk = self.ops, Grid(values=self.chunks, tile=CHUNKS_A_TILE, size=_PREFIX.size)
        whole = Grid(values=1, tile=1, size=_PREFIX.size)
        flag = Grid(values=1, tile=1, size=4)
        grid = Grid(values=self.ids, tile=TILE, size=4)
        self.weights = ops.add("weights", grid, self._weights, by_value=True)
        self.cuts = ops.add("cuts", Grid(values=1, tile=1, size=_CUTS.size), self._cuts, element=0)
        self.before = ops.add("before.chunks", by_chunk, self._before, element=_PREFIX.size, by_value=True)
        self.before_all = ops.add("before", whole, self._before_all, element=0)
        ops.add("before.holds", flag, self._before_holds, demanded=HOLDS)
        by_chunk = Grid(values=self.chunks, tile=CHUNKS_A_TILE, size=_CUT.size)
        self.after = ops.add("after.chunks", by_chunk, self._after, element=_CUT.size, by_value=True)
        self.after_all = ops.add("after", Grid(values=1, tile=1, size=_CUT.size), self._after_all, element=0)
        ops.add("after.holds", flag, self._after_holds, demanded=HOLDS)
        self.running = ops.add(
            "running", Grid(values=self.chunks, tile=RUNNING_CHUNKS, size=4), self._running
        )
        by_chunk = Grid(values=self.chunks, tile=CHUNKS_A_TILE, size=_PICK.size)
        self.picks = ops.add("picks", by_chunk, self._picks, element=_PICK.size, by_value=True)
        size = record_size(self.ids)
        grid = Grid(values=size, tile=TILE_BYTES, size=1)
        ops.add("record", grid, self._record, part=RECORD, element=0)
        ops.add("token", flag, self._token, part=TOKEN)

    # --- operands

    def _chunk(self, op: Op, operands: Operands, chunk: int) -> F32:
        return operands.floats(op, 0, chunk * CHUNK, min((chunk + 1) * CHUNK, self.ids))

    def _read_cuts(self, operands: Operands) -> tuple[int, int]:
        before, after = _CUTS.unpack(operands.raw(self.cuts, 0, 0, 1))
        if max(before, after) >= self.ids:
            raise Poisoned
        return before, after

    def _value(self, operands: Operands, token: int) -> np.float32:
        # The whole tile, so that it need not be asked for twice.
        chunk = token // CHUNK
        return np.float32(self._chunk(self.adjusted, operands, chunk)[token - chunk * CHUNK])

    def _members(self, operands: Operands, chunk: int, cut: int) -> Mask:
        """Which ids of the chunk are at most ``cut`` in the order."""
        value, values = self._value(operands, cut), self._chunk(self.adjusted, operands, chunk)
        ids = np.arange(chunk * CHUNK, chunk * CHUNK + values.size)
        members: Mask = (values > value) | ((values == value) & (ids <= cut))
        return members

    # --- ops

    def _weights(self, operands: Operands, group: int, first: int, end: int) -> bytes:
        m, _ = read_largest(operands, self.largest)
        return packed(exp(operands.floats(self.adjusted, 0, first, end) - m))

    def _cuts(self, operands: Operands, group: int, first: int, end: int) -> bytes:
        context = operands.context
        if context.trapped:
            raise Poisoned
        place = Place(position=context.position, unit=context.unit, part=RECORD, tile=0)
        return operands.state(place)[0][8:16]

    def _before(self, operands: Operands, group: int, first: int, end: int) -> bytes:
        cut, _ = self._read_cuts(operands)
        out = []
        for chunk in range(first, end):
            members = self._members(operands, chunk, cut)
            values, weights = (
                self._chunk(self.adjusted, operands, chunk),
                self._chunk(self.weights, operands, chunk),
            )
            next_id, next_value, next_weight = NONE, 0.0, 0.0
            if not members.all():
                at = int(np.argmax(np.where(members, np.float32(-np.inf), values)))
                next_id, next_value, next_weight = chunk * CHUNK + at, float(values[at]), float(weights[at])
            least = float(weights[members].min()) if members.any() else float("inf")
            mass = _mass(weights, members)
            prefix = Prefix(int(members.sum()), mass, least, next_id, next_value, next_weight)
            out.append(_PREFIX.pack(*prefix))
        return b"".join(out)

    def _before_all(self, operands: Operands, group: int, first: int, end: int) -> bytes:
        read_largest(operands, self.largest)  # poisoned where any l' is not finite
        self._read_cuts(operands)
        parts = self._prefixes(operands, 0, self.chunks)
        best = Prefix(0, 0.0, 0.0, NONE, 0.0, 0.0)
        for part in parts:
            if part.next_id != NONE and (best.next_id == NONE or part.next_value > best.next_value):
                best = part
        mass = running_sum(np.array([part.mass for part in parts], dtype=np.float32))[-1]
        total = sum(part.members for part in parts)
        self._possible(total)
        least = min(part.least for part in parts)
        return _PREFIX.pack(total, mass, least, best.next_id, best.next_value, best.next_weight)

    def _prefixes(self, operands: Operands, first: int, end: int) -> list[Prefix]:
        return self._read_prefixes(operands.raw(self.before, 0, first, end))

    def _read_prefixes(self, raw: bytes) -> list[Prefix]:
        found = [Prefix(*each) for each in _PREFIX.iter_unpack(raw)]
        for prefix in found:
            self._possible(prefix.members, prefix.mass, prefix.next_value, prefix.next_weight)
            if isnan(prefix.least):
                raise Poisoned
        return found

    def _read_cut_values(self, raw: bytes) -> list[Cut]:
        found = [Cut(*each) for each in _CUT.iter_unpack(raw)]
        for cut in found:
            self._possible(cut.members, cut.mass, cut.without)
        return found

    def _possible(self, members: int, *values: float) -> None:
        """No ops give other values: only who lies has them, and they must not be computed with."""
        if members > self.ids or not all(map(isfinite, values)):
            raise Poisoned

    def _before_holds(self, operands: Operands, group: int, first: int, end: int) -> bytes:
        rules = operands.context.rules
        read_largest(operands, self.largest)
        self._read_cuts(operands)
        prefix = self._read_prefixes(operands.raw(self.before_all, 0, 0, 1))[0]
        most = min(rules.top_k or self.ids, self.ids)
        least = millionths(rules.min_p)
        ends = prefix.members == most or (rules.min_p > 0 and prefix.next_weight < least)
        holds = 1 <= prefix.members <= most and ends and (rules.min_p == 0 or prefix.least >= least)
        return int(holds).to_bytes(4, "little")

    def _after(self, operands: Operands, group: int, first: int, end: int) -> bytes:
        _, cut = self._read_cuts(operands)
        out = []
        for chunk in range(first, end):
            members, weights = self._members(operands, chunk, cut), self._chunk(self.weights, operands, chunk)
            others = members.copy()
            if cut // CHUNK == chunk:
                others[cut - chunk * CHUNK] = False
            out.append(_CUT.pack(int(members.sum()), _mass(weights, members), _mass(weights, others)))
        return b"".join(out)

    def _cuts_of(self, operands: Operands, first: int, end: int) -> list[Cut]:
        return self._read_cut_values(operands.raw(self.after, 0, first, end))

    def _after_all(self, operands: Operands, group: int, first: int, end: int) -> bytes:
        read_largest(operands, self.largest)
        self._read_cuts(operands)
        parts = self._cuts_of(operands, 0, self.chunks)
        masses = running_sum(np.array([(part.mass, part.without) for part in parts], dtype=np.float32).T)[
            :, -1
        ]
        total = sum(part.members for part in parts)
        self._possible(total)
        return _CUT.pack(total, masses[0], masses[1])

    def _after_holds(self, operands: Operands, group: int, first: int, end: int) -> bytes:
        rules = operands.context.rules
        read_largest(operands, self.largest)
        cuts = self._read_cuts(operands)
        before = self._read_prefixes(operands.raw(self.before_all, 0, 0, 1))[0]
        after = self._read_cut_values(operands.raw(self.after_all, 0, 0, 1))[0]
        if rules.top_p == MILLION:
            holds = cuts[0] == cuts[1]
        else:
            target = millionths(rules.top_p) * np.float32(before.mass)
            shortest = after.members == 1 or np.float32(after.without) < target
            holds = bool(after.members <= before.members and np.float32(after.mass) >= target and shortest)
        return int(holds).to_bytes(4, "little")

    def _running(self, operands: Operands, group: int, first: int, end: int) -> bytes:
        """Per chunk the mass of the chunks before it."""
        read_largest(operands, self.largest)
        self._read_cuts(operands)
        before = [ZERO]
        if first:
            before = [*operands.floats(self.running, 0, first - 1, first)]
        masses = (
            [part.mass for part in self._cuts_of(operands, max(first - 1, 0), end - 1)] if end > 1 else []
        )
        sums = running_sum(np.array([*before, *masses], dtype=np.float32))
        return packed(sums[1:] if first else sums)

    def _picks(self, operands: Operands, group: int, first: int, end: int) -> bytes:
        """Per chunk the lowest kept id whose running mass exceeds h, and the highest kept id."""
        context = operands.context
        _, cut = self._read_cuts(operands)
        after = self._read_cut_values(operands.raw(self.after_all, 0, 0, 1))[0]
        bits = uniform_bits(context.rules.seed, context.step)
        threshold = (np.float32(bits) * U_SCALE) * np.float32(after.mass)
        running = operands.floats(self.running, 0, first, end)
        out = []
        for chunk, before in zip(range(first, end), running, strict=True):
            members, weights = self._members(operands, chunk, cut), self._chunk(self.weights, operands, chunk)
            inside = running_sum(np.where(members, weights, ZERO))
            exceeding = np.flatnonzero(((before + inside) > threshold) & members)
            kept = np.flatnonzero(members)
            start = chunk * CHUNK
            lowest = start + int(exceeding[0]) if exceeding.size else NONE
            out.append(_PICK.pack(lowest, start + int(kept[-1]) if kept.size else NONE))
        return b"".join(out)

    def _record(self, operands: Operands, group: int, first: int, end: int) -> bytes:
        context = operands.context
        m, _ = read_largest(operands, self.largest)
        cuts = self._read_cuts(operands)
        head = _RECORD_HEAD.size
        out = b""
        if first == 0:
            bits = uniform_bits(context.rules.seed, context.step)
            out = bits.to_bytes(4, "little") + packed(m) + _CUTS.pack(*cuts)
        low, high = (max(first, head) - head) // 4, (end - head) // 4
        masses: list[float] = []
        if low < self.chunks:
            masses += [part.mass for part in self._prefixes(operands, low, min(high, self.chunks))]
        if high > self.chunks:
            start = max(low - self.chunks, 0)
            masses += [part.mass for part in self._cuts_of(operands, start, high - self.chunks)]
        return out + packed(np.array(masses, dtype=np.float32))

    def _token(self, operands: Operands, group: int, first: int, end: int) -> bytes:
        read_largest(operands, self.largest)
        self._read_cuts(operands)
        raw = operands.raw(self.picks, 0, 0, self.chunks)
        picks: npt.NDArray[np.uint32] = np.frombuffer(raw, dtype="<u4").reshape(-1, 2)
        lowest, highest = picks[:, 0][picks[:, 0] != NONE], picks[:, 1][picks[:, 1] != NONE]
        if not highest.size:
            raise Poisoned
        return int(lowest[0] if lowest.size else highest[-1]).to_bytes(4, "little")


def _mass(weights: F32, members: Mask) -> float:
    return float(running_sum(np.where(members, weights, ZERO))[-1])
