"""What the contracts are given of a game (docs/spec/16-chain-disputes.md): a unit's context and bounds, and the way down its
trace's tree, halving after halving.
"""

from collections.abc import Sequence

from aos.core.dispute.fine.bounds import Bounds, Run, Unit
from aos.core.dispute.fine.element import part_roots
from aos.core.dispute.trace_tree import TreeShape
from aos.core.hashes import u32
from aos.core.manifest import GRAPH_KINDS
from aos.core.merkle import HASH_BYTES, node_hash, tree_root
from aos.errors import InvalidMessage

KINDS = {name: number for number, name in enumerate(GRAPH_KINDS)}
PARTS = 3
CONTEXT_BYTES = 33 * 32
HALVINGS = 4
"""A reveal shows the nodes so many halvings below a node."""

FAULTS = (
    "",
    "tile.length",
    "tile.state",
    "tile.tokens",
    "tile.weights",
    "tile.rope",
    "tile.path",
    "tile.value",
    "tile.commitment",
    "tile.cut",
    "tile.trap",
    "tile.value",
    "around.tokens",
    "dispute.header",
)
"""Codes of ``check_element`` by the contract's number, 0: it holds; the last two are those of ``chain_around``."""


def context_words(unit: Unit, unit_root: bytes) -> bytes:
    """The contract's ``Context``. Raises InvalidMessage ``trace.tile`` where the run has no such unit."""
    context = unit.context
    if context is None:
        raise InvalidMessage("trace.tile", "the run has no such unit", field="unit")
    graph, header, rules, state = context.graph, context.header, context.rules, context.state
    parts = part_roots(unit)
    roots = (
        context.state_root,
        unit_root,
        context.manifest.weights_root,
        context.manifest.rope_table,
        header.tokens_root,
        *parts,
        *[bytes(HASH_BYTES)] * (PARTS - len(parts)),
    )
    numbers = (
        KINDS[context.manifest.architecture],
        graph.n_ctx,
        graph.n_layers,
        graph.n_vocab,
        graph.width,
        graph.ff_width,
        graph.n_heads,
        graph.n_kv_heads,
        graph.head_width,
        graph.n_rot,
        graph.eps_bits,
        int(graph.tied),
        header.n_prompt,
        header.n_prompt + header.n_out,
        header.n_positions,
        0 if state.trap_unit is None else state.trap_unit + 1,
        rules.seed,
        rules.temperature,
        rules.top_k,
        rules.top_p,
        rules.min_p,
        rules.repeat_penalty,
        context.position,
        context.unit,
        context.trap_op,
    )
    return b"".join((*roots, *(number.to_bytes(32, "big") for number in numbers)))


def chain_bounds(data: bytes, run: Run, position: int, unit: int) -> bytes:
    """A unit's bounds as a contract takes them: the roots of its parts in place of the hashes of their tiles.

    Raises as ``Bounds.decode``.
    """
    bounds, _, _ = Bounds.decode(data, run, position, unit)
    out = [bounds.header, *bounds.header_path]
    if bounds.trap_unit is not None:
        out.append(u32(bounds.trap_unit))
    if bounds.leaf_opening is not None:
        out += [u32(bounds.op)] if bounds.op else [tree_root(part) for part in bounds.tile_hashes]
        out.append(bounds.leaf_opening.encode())
    out += bounds.last_units
    return b"".join(out)


def halvings(shape: TreeShape, tile: int) -> list[tuple[bool, tuple[int, int, int]]]:
    """The way from the root of a trace's tree to a tile, halving after halving: whether it goes to the right half, and the
    other half: level, first, end.
    """
    level, first, end = _single(shape, 0, 0, 1)
    way: list[tuple[bool, tuple[int, int, int]]] = []
    while end - first > 1:
        middle = first + (1 << ((end - first - 1).bit_length() - 1))
        right = tile >= middle * shape.spans[level]
        way.append((right, (level, first, middle) if right else (level, middle, end)))
        first, end = (middle, end) if right else (first, middle)
        level, first, end = _single(shape, level, first, end)
    return way


def frontier(shape: TreeShape, node: tuple[int, int, int], depth: int) -> list[tuple[int, int, int]]:
    """The nodes so many halvings below a node (level, first, end), from left to right."""
    level, first, end = _single(shape, *node)
    if depth == 0 or end - first == 1:
        return [(level, first, end)]
    middle = first + (1 << ((end - first - 1).bit_length() - 1))
    return [
        *frontier(shape, (level, first, middle), depth - 1),
        *frontier(shape, (level, middle, end), depth - 1),
    ]


def below_root(shape: TreeShape, node: tuple[int, int, int], depth: int, hashes: Sequence[bytes]) -> bytes:
    """The hash of a node that the hashes of its ``frontier`` lead to. Raises InvalidMessage ``trace.node``: another number."""
    level, first, end = _single(shape, *node)
    if depth == 0 or end - first == 1:
        if len(hashes) != 1:
            raise InvalidMessage("trace.node", "the node has another number of nodes below", field="children")
        return hashes[0]
    middle = first + (1 << ((end - first - 1).bit_length() - 1))
    left = (level, first, middle)
    count = len(frontier(shape, left, depth - 1))
    return node_hash(
        below_root(shape, left, depth - 1, hashes[:count]),
        below_root(shape, (level, middle, end), depth - 1, hashes[count:]),
    )


def way_down(
    shape: TreeShape, node: tuple[int, int, int], depth: int, hashes: Sequence[bytes], target: int
) -> tuple[int, list[bytes]]:
    """The way from a node to number ``target`` of its ``frontier``: a bit a halving, the first one highest, 1 the right half;
    and the hashes of the other halves, the lowest first.
    """
    path = 0
    siblings: list[bytes] = []
    while True:
        level, first, end = _single(shape, *node)
        if depth == 0 or end - first == 1:
            return path, siblings[::-1]
        depth -= 1
        middle = first + (1 << ((end - first - 1).bit_length() - 1))
        left, right = (level, first, middle), (level, middle, end)
        count = len(frontier(shape, left, depth))
        if target < count:
            siblings.append(below_root(shape, right, depth, hashes[count:]))
            path, node, hashes = path << 1, left, hashes[:count]
        else:
            siblings.append(below_root(shape, left, depth, hashes[:count]))
            path, node, hashes, target = path << 1 | 1, right, hashes[count:], target - count


def _single(shape: TreeShape, level: int, first: int, end: int) -> tuple[int, int, int]:
    """A node of one sibling is that of its children, as far as there are any."""
    while end - first == 1 and level < shape.depth:
        below = shape.children(level, first)
        level, first, end = level + 1, below.start, below.stop
    return level, first, end
