"""A tiny model with real openings and an arithmetic of hashes, over which whole disputes are played in microseconds.

SIMULATED: tiles are hashes of their operands, not products. All that the game rests on is real: trees, paths, signatures,
a state root that commits units, tiles that open their operands where the model dictates. ``Lie`` makes a run that is wrong
at one place and right (given that) everywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from typing import Any

from simulated_run import Network, secret

from aos.core.codec import encode
from aos.core.dispute.case import Case, OpenedUnit
from aos.core.dispute.moves import Kind
from aos.core.dispute.place import Shape
from aos.core.encoding import b64u_decode, canonical_json, tagged_hash
from aos.core.merkle import inclusion_path, inclusion_root, leaf_hash, tree_root
from aos.core.signing import address_of, sign_statement
from aos.core.statements import ReceiptCore
from aos.errors import InvalidMessage, VerificationError

AROUND: tuple[Kind, ...] = ("header", "prompt", "tokens", "stop", "text", "trap")
N_OUTPUTS = 2
TILE = 12


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy:
    """A model and a prompt. ``sizes``: tiles of the units (its length is the number of units); one more tile says which
    was the first that is not finite, if any. ``nan``: one tile in so many is not finite (0: none)."""

    seed: int
    n_positions: int
    sizes: tuple[int, ...]
    nan: int = 0

    @property
    def units(self) -> int:
        return len(self.sizes)

    def n_tiles(self, unit: int) -> int:
        return self.sizes[unit] + 1

    def number(self, *parts: object) -> int:
        return int.from_bytes(sha256(repr((self.seed, *parts)).encode()).digest()[:8], "big")

    def outputs(self, unit: int) -> range:
        return range(max(0, self.sizes[unit] - N_OUTPUTS), self.sizes[unit])

    def operands(self, position: int, unit: int, index: int) -> list[tuple[str, int, int, int]]:
        """Which values a tile reads: ``("trace", …)`` of this unit, ``("state", …)`` of earlier ones."""
        draw = self.number("operands", position, unit, index)
        found = []
        if index == self.sizes[unit]:
            return [("trace", position, unit, index - 1)]
        if index:
            found.append(("trace", position, unit, draw % index))
            found.append(("trace", position, unit, index - 1))
        if unit:
            below = self.outputs(unit - 1)
            found.append(("state", position, unit - 1, below[draw // 7 % len(below)]))
        elif position:
            last = self.outputs(self.units - 1)  # the token that the position before chose
            found.append(("state", position - 1, self.units - 1, last[-1]))
        if position:
            own = self.outputs(unit)
            found.append(("state", draw // 11 % position, unit, own[draw // 13 % len(own)]))
        return found

    def compute(self, position: int, unit: int, index: int, operands: Sequence[bytes]) -> bytes:
        """A tile ends with the number (from 1) of the first tile of its unit so far that is not finite, or 0."""
        if index == self.sizes[unit]:
            return operands[0][-2:]
        entry = repr((self.seed, position, unit, index)).encode() + b"".join(operands)
        digest = sha256(entry).digest()
        trap = operands[1][-2:] if index else b"\0\0"
        if trap == b"\0\0" and self.nan and int.from_bytes(digest[-4:], "big") % self.nan == 0:
            trap = (index + 1).to_bytes(2, "big")
        return digest[: TILE - 2] + trap

    def fact(self, kind: str) -> str:
        """What the header must say about something around the model."""
        return sha256(repr((self.seed, "fact", kind)).encode()).hexdigest()[:16]


@cache
def fanout(n_tiles: int) -> tuple[int, ...]:
    """Balanced: the least equal width, of as few levels as 12 a level allow (so that small units have three levels)."""
    for levels in (1, 2, 3):
        width = 1
        while width**levels < n_tiles:
            width += 1
        if width <= 12 or levels == 3:
            return (width,) * levels
    raise AssertionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Lie:
    """Where a run is wrong. ``what``: ``tile`` (trace and state alike), ``output`` (state commits another value than the
    trace has), ``trap`` (says not finite where it is), ``no_trap`` (goes on where it is not finite), ``short`` (leaves
    units out at the end), ``fact`` (the header about ``kind``)."""

    what: str
    position: int = 0
    unit: int = 0
    index: int = 0
    kind: str = ""


@dataclass(slots=True)
class Run:
    """What one party computed."""

    toy: Toy
    lie: Lie | None = None
    tiles: list[dict[int, list[bytes]]] = field(default_factory=list)
    state: list[dict[int, list[bytes]]] = field(default_factory=list)
    trap: tuple[int, int, int] | None = None
    facts: dict[str, str] = field(default_factory=dict)
    leaves: list[bytes] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        toy, lie = self.toy, self.lie
        self.facts = {kind: toy.fact(kind) for kind in AROUND}
        if lie is not None and lie.what == "fact":
            self.facts[lie.kind] = "a lie"
        for position in range(toy.n_positions):
            self.tiles.append({})
            self.state.append({})
            for unit in range(toy.units):
                if not self._unit(position, unit):
                    break
            if self.trap is not None:
                break
        if lie is not None and lie.what == "short" and len(self.places) > 1:
            del self.places[-1], self.leaves[-1]

    def _unit(self, position: int, unit: int) -> bool:
        toy, lie = self.toy, self.lie
        here = lie if lie is not None and (lie.position, lie.unit) == (position, unit) else None
        tiles = self.tiles[position].setdefault(unit, [])
        for index in range(toy.n_tiles(unit)):
            operands = [self.value(*source) for source in toy.operands(position, unit, index)]
            tile = toy.compute(position, unit, index, operands)
            if here and here.what == "tile" and here.index == index:
                tile = bytes([tile[0] ^ 1]) + tile[1:]
            tiles.append(tile)
        trap = int.from_bytes(tiles[-1], "big")
        if here and here.what == "trap" and not trap:
            trap = here.index + 1
        if trap and not (lie and lie.what == "no_trap"):
            self.trap = (position, unit, trap)
            self.places.append((position, unit))
            self.leaves.append(trap_leaf(position, unit, trap))
            return False
        state = [tiles[index] for index in toy.outputs(unit)]
        if here and here.what == "output":
            which = here.index % len(state)
            state[which] = sha256(state[which]).digest()[:TILE]
        self.state[position][unit] = state
        self.places.append((position, unit))
        self.leaves.append(unit_leaf(position, unit, [leaf_hash(value) for value in state]))
        return True

    def value(self, tree: str, position: int, unit: int, index: int) -> bytes:
        if tree == "trace":
            return self.tiles[position][unit][index]
        return self.state[position][unit][index - self.toy.outputs(unit)[0]]

    @property
    def header(self) -> bytes:
        return canonical_json({"n_leaves": len(self.leaves), "facts": self.facts})

    @property
    def all_leaves(self) -> list[bytes]:
        return [leaf_hash(self.header), *self.leaves]

    @property
    def root(self) -> bytes:
        return tree_root(self.all_leaves)

    def opening(self, place: int) -> list[str]:
        """The path of leaf ``place`` (0 is the header)."""
        return [h.hex() for h in inclusion_path(self.all_leaves, place)]

    def place(self, position: int, unit: int) -> int:
        """The number of a unit's leaf."""
        return 1 + self.places.index((position, unit))


def unit_leaf(position: int, unit: int, hashes: Sequence[bytes]) -> bytes:
    return leaf_hash(b"unit" + u32(position) + u32(unit) + b"".join(hashes))


def trap_leaf(position: int, unit: int, index: int) -> bytes:
    return leaf_hash(b"trap" + u32(position) + u32(unit) + u32(index))


def trap_output(toy: Toy, unit: int, trap: int) -> tuple[int, bytes]:
    """The last tile of a unit, and what must be in it where the state root says that it trapped there (0: not)."""
    return toy.sizes[unit], leaf_hash(trap.to_bytes(2, "big"))


def tile_hash(tile: bytes) -> bytes:
    return leaf_hash(b"tile" + tile)


@dataclass(slots=True)
class ToyTrace:
    """A party's trace of one unit of its run."""

    run: Run
    position: int
    unit: int

    @property
    def known(self) -> bool:
        return (self.position, self.unit) in self.run.places

    @property
    def tile_hashes(self) -> list[bytes]:
        return [tile_hash(tile) for tile in self.run.tiles[self.position][self.unit]]

    @property
    def outputs(self) -> tuple[tuple[int, bytes], ...]:
        toy, tiles = self.run.toy, self.run.tiles[self.position][self.unit]
        return tuple((at, leaf_hash(tiles[at])) for at in (*toy.outputs(self.unit), toy.sizes[self.unit]))

    @property
    def trapped(self) -> bool:
        return self.run.trap is not None and self.run.trap[:2] == (self.position, self.unit)

    @property
    def bounds(self) -> bytes:
        run = self.run
        shown: dict[str, Any] = {"header": run.header.decode(), "header_path": run.opening(0)}
        if not self.known:
            return canonical_json(shown)
        place = run.place(self.position, self.unit)
        shown |= {"place": place, "path": run.opening(place)}
        if self.trapped:
            assert run.trap is not None
            shown["trap"] = run.trap[2]
        else:
            shown["outputs"] = [leaf_hash(value).hex() for value in run.state[self.position][self.unit]]
        return canonical_json(shown)

    def prove(self, index: int) -> bytes:
        run, toy = self.run, self.run.toy
        hashes = self.tile_hashes
        shape = Shape(len(hashes), fanout(len(hashes)))
        operands = []
        for source in toy.operands(self.position, self.unit, index):
            value = run.value(*source)
            if source[0] == "trace":
                operands.append({"value": value.hex(), "path": trace_path(shape, source[3], hashes)})
            else:
                _, position, unit, _ = source
                state = run.state[position][unit]
                operands.append(
                    {
                        "value": value.hex(),
                        "leaf": [leaf_hash(item).hex() for item in state],
                        "path": run.opening(run.place(position, unit)),
                    }
                )
        value = run.tiles[self.position][self.unit][index]
        proof = {
            "value": value.hex(),
            "path": trace_path(shape, index, hashes),
            "operands": operands,
        }
        return canonical_json(proof)


def trace_path(shape: Shape, index: int, hashes: Sequence[bytes]) -> list[list[str]]:
    """The path of a tile: for every level from below, the inclusion path among its siblings."""
    node, levels = shape.root, []
    while not shape.is_tile(node):
        span = 1
        for width in shape.fanout[node.level + 1 :]:
            span *= width
        child = (index - node.first) // span
        levels.append([h.hex() for h in inclusion_path(shape.children(node, hashes), child)])
        node = shape.child(node, child)
    return levels[::-1]


def trace_root(shape: Shape, index: int, leaf: bytes, path: Sequence[Sequence[str]]) -> bytes:
    nodes, node = [], shape.root
    while not shape.is_tile(node):
        span = 1
        for width in shape.fanout[node.level + 1 :]:
            span *= width
        child = (index - node.first) // span
        nodes.append((child, shape.width(node)))
        node = shape.child(node, child)
    if len(path) != len(nodes):
        raise VerificationError("toy.path", "the path has another depth")
    value = leaf
    for (child, width), siblings in zip(reversed(nodes), path, strict=True):
        value = inclusion_root(value, child, width, [hex32(h) for h in siblings])
    return value


def hex32(text: object) -> bytes:
    if not isinstance(text, str) or len(text) != 64:
        raise InvalidMessage("toy.format", "a hash is 64 hex digits")
    return hexed(text)


def hexed(text: object) -> bytes:
    try:
        return bytes.fromhex(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InvalidMessage("toy.format", "hex expected") from None


def read_json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        raise InvalidMessage("toy.format", "no JSON") from None
    if not isinstance(value, dict):
        raise InvalidMessage("toy.format", "no object")
    return value


def member(value: dict[str, Any], name: str, kind: type) -> Any:
    found = value.get(name)
    if type(found) is not kind:
        raise InvalidMessage("toy.format", f"{name} is missing or mistyped")
    return found


@dataclass(frozen=True, slots=True)
class Opened:
    """The context that ``open_unit`` hands to ``check_tile``."""

    case: Case
    position: int
    unit: int
    n_leaves: int


@dataclass(frozen=True, slots=True)
class ToyArithmetic:
    """The referee's side: knows the toy's model, nothing of anybody's run."""

    toy: Toy

    def _header(self, case: Case, shown: dict[str, Any]) -> dict[str, Any]:
        raw = member(shown, "header", str).encode()
        header = read_json(raw)
        n_leaves = member(header, "n_leaves", int)
        path = [hex32(h) for h in member(shown, "header_path", list)]
        if inclusion_root(leaf_hash(raw), 0, n_leaves + 1, path) != case.core.state_root:
            raise VerificationError("toy.header", "the header is not that of the claim")
        return header

    def _number(self, position: int, unit: int) -> int:
        return position * self.toy.units + unit

    def open_unit(self, case: Case, position: int, unit: int, bounds: bytes) -> OpenedUnit:
        shown = read_json(bounds)
        n_leaves = self._header(case, shown)["n_leaves"]
        number = self._number(position, unit)
        context = Opened(case, position, unit, n_leaves)
        if position >= self.toy.n_positions or unit >= self.toy.units or number >= n_leaves:
            return OpenedUnit(leaf=b"", n_tiles=0, fanout=(), outputs=(), context=context)
        path = [hex32(h) for h in member(shown, "path", list)]
        outputs: tuple[tuple[int, bytes], ...]
        if "trap" in shown:
            trap = member(shown, "trap", int)
            if not 1 <= trap <= self.toy.sizes[unit]:
                raise VerificationError("toy.trap", "no such tile")
            leaf, outputs = trap_leaf(position, unit, trap), (trap_output(self.toy, unit, trap),)
        else:
            hashes = [hex32(h) for h in member(shown, "outputs", list)]
            places = self.toy.outputs(unit)
            if len(hashes) != len(places):
                raise VerificationError("toy.outputs", "another number of outputs")
            leaf = unit_leaf(position, unit, hashes)
            outputs = (*zip(places, hashes, strict=True), trap_output(self.toy, unit, 0))
        n_tiles = self.toy.n_tiles(unit)
        if inclusion_root(leaf, number + 1, n_leaves + 1, path) != case.core.state_root:
            raise VerificationError("toy.leaf", "the unit is not that of the claim")
        return OpenedUnit(
            leaf=leaf,
            n_tiles=n_tiles,
            fanout=fanout(n_tiles),
            outputs=outputs,
            context=context,
        )

    def unit_root(self, opened: OpenedUnit, position: int, unit: int, root: bytes) -> bytes:
        return tagged_hash("unit-root", u32(position), u32(unit), u32(opened.n_tiles), root)

    def check_tile(self, opened: OpenedUnit, unit_root: bytes, index: int, proof: bytes) -> None:
        context = opened.context
        assert isinstance(context, Opened)
        position, unit = context.position, context.unit
        shape = Shape(opened.n_tiles, opened.fanout)

        def under_trace(value: bytes, at: int, path: Any) -> None:
            root = trace_root(shape, at, tile_hash(value), path)
            if self.unit_root(opened, position, unit, root) != unit_root:
                raise VerificationError("toy.trace", "a value is not that of the unit root")

        shown = read_json(proof)
        value = hexed(member(shown, "value", str))
        under_trace(value, index, member(shown, "path", list))
        wanted = self.toy.operands(position, unit, index)
        given = member(shown, "operands", list)
        if len(given) != len(wanted):
            raise VerificationError("toy.operands", "another number of operands")
        operands = []
        for (tree, at, of, tile), item in zip(wanted, given, strict=True):
            if not isinstance(item, dict):
                raise InvalidMessage("toy.format", "an operand is an object")
            operand = hexed(member(item, "value", str))
            path = member(item, "path", list)
            if tree == "trace":
                under_trace(operand, tile, path)
            else:
                hashes = [hex32(h) for h in member(item, "leaf", list)]
                places = self.toy.outputs(of)
                if len(hashes) != len(places) or hashes[tile - places[0]] != leaf_hash(operand):
                    raise VerificationError("toy.operand", "an operand is not that of its leaf")
                number = self._number(at, of) + 1
                leaf = unit_leaf(at, of, hashes)
                root = inclusion_root(leaf, number, context.n_leaves + 1, [hex32(h) for h in path])
                if root != context.case.core.state_root:
                    raise VerificationError("toy.operand", "an operand is not that of the state root")
            operands.append(operand)
        if self.toy.compute(position, unit, index, operands) != value:
            raise VerificationError("toy.value", "the tile recomputes to another value")
        committed = dict(opened.outputs).get(index)
        if committed is not None and committed != leaf_hash(value):
            raise VerificationError("toy.output", "the state root commits another value")

    def check_around(self, case: Case, kind: Kind, position: int, unit: int, proof: bytes) -> None:
        header = self._header(case, read_json(proof))
        if kind == "stop":
            run = honest(self.toy)  # the toy's stop rule: as many leaves as the model has
            if header["n_leaves"] != len(run.leaves):
                raise VerificationError("toy.stop", "the run ends elsewhere")
        if header["facts"].get(kind) != self.toy.fact(kind):
            raise VerificationError("toy.fact", f"the header is wrong about {kind}")


@cache
def honest(toy: Toy) -> Run:
    """The run of whoever computes what it should."""
    return Run(toy)


def around_proof(run: Run) -> bytes:
    """The claimant's proof about anything around the model: the header, opened."""
    return canonical_json({"header": run.header.decode(), "header_path": run.opening(0)})


@cache
def _template() -> ReceiptCore:
    return Network().run().receipt.core


@dataclass(frozen=True, slots=True)
class Key:
    """A party's key, by a name."""

    name: str

    @property
    def secret(self) -> bytes:
        return _secret(self.name)

    @property
    def address(self) -> str:
        return _address(self.name)


@cache
def _secret(name: str) -> bytes:
    return secret(f"dispute {name}")


@cache
def _address(name: str) -> str:
    return address_of(_secret(name))


def case_of(toy: Toy, run: Run, claimant: Key) -> Case:
    """The claim that ``claimant`` signed about its run."""
    core = replace(
        _template(),
        operator=claimant.address,
        state_root=run.root,
        sampling_seed=str(toy.seed),
        n_prompt=1,
        n_out=toy.n_positions,
    )
    signature = b64u_decode(sign_statement(claimant.secret, encode(core)))
    return Case(
        core=core,
        signature=signature,
        manifest="",
        nonce=b"",
        params=None,
        request="",
        prompt_tokens=None,
        tokens=None,
        text=None,
        tokenizer=None,
    )
