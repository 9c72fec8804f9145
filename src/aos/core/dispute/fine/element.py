"""One element of a tile, as a contract judges it (docs/spec/16-chain-disputes.md, "Elements").

A tile of many values costs more gas to recompute than a transaction may spend, so the game on a chain goes one step
further: the challenger names an element of the tile, and the claimant proves that one. A tile is right exactly where all of
its elements are; a proof of an element is a tile's over fewer operands, with the path to what ``state_root`` commits behind.
"""

from collections.abc import Sequence

import numpy as np

from aos.core.dispute.fine.bounds import Unit
from aos.core.dispute.fine.grid import Op, UnitShape
from aos.core.dispute.fine.operands import Operands, Poisoned, UnitContext
from aos.core.dispute.fine.tile import MAX_PROOF_BYTES, OperandSource, ProofReader, TraceOperands, refused
from aos.core.dispute.trace_tree import TraceTree
from aos.core.merkle import MerkleTree, inclusion_root, leaf_hash, range_path_length, tree_root
from aos.errors import InvalidMessage, VerificationError


def element_count(shape: UnitShape, index: int) -> int:
    """The elements of tile ``index``. Raises InvalidMessage ``trace.tile``."""
    op = shape.op_of(index)
    return op.grid.tile_size(index - op.first) // op.element if op.element else 1


def _recomputed(operands: Operands, op: Op, tile: int, element: int) -> tuple[int, bytes]:
    """(Offset in the tile, bytes) of an element. Raises Poisoned."""
    group, first, end = op.grid.place(tile)
    size = op.element or op.grid.tile_size(tile)
    at = start = element * size
    if op.by_value:
        value, start = divmod(at, op.grid.value_size(group))
        first, end = first + value, first + value + 1
    with np.errstate(all="ignore"):
        if op.component is not None:
            return at, op.component(operands, group, first, start // size)
        data = op.compute(operands, group, first, end)
    return at, data[start : start + size]


def make_element_proof(
    context: UnitContext,
    shape: UnitShape,
    tiles: Sequence[bytes],
    tree: TraceTree,
    source: OperandSource,
    index: int,
    element: int,
) -> tuple[int, bytes]:
    """The element to prove and its proof, from a party's own trace: ``element``, or the first one whose operands make the
    whole tile all ones, where it is. Raises InvalidMessage ``trace.tile``, ``trace.element``.
    """
    op = shape.op_of(index)
    count = element_count(shape, index)
    if not 0 <= element < count:
        raise InvalidMessage("trace.element", f"the tile has {count} elements", field="element")
    others = range(count) if tiles[index] == b"\xff" * len(tiles[index]) else ()
    for shown in (element, *others):
        operands = TraceOperands(context, shape, tiles, source)
        operands.tile(index)
        try:
            at, data = _recomputed(operands, op, index - op.first, shown)
        except Poisoned:
            break
        if shown == element and data == tiles[index][at : at + len(data)]:
            break
    out = [operands.written, *tree.path(sorted(operands.used))]
    if op.part is not None and not context.trapped:
        hashes = [leaf_hash(tile) for tile in tiles[op.first : op.first + op.grid.tiles]]
        out += MerkleTree(hashes).range_path(index - op.first, 1)
    return shown, b"".join(out)


def wrong_element(
    context: UnitContext,
    shape: UnitShape,
    tiles: Sequence[bytes],
    source: OperandSource,
    index: int,
    claimed: bytes,
) -> int:
    """The element to name of a tile that is claimed to be other bytes than in a party's own trace, where all operands are the
    same. Where one's own tile is all ones, that is one whose operands are not finite: others may be right.
    """
    own, op = tiles[index], shape.op_of(index)
    if len(claimed) != len(own):
        return 0
    count = element_count(shape, index)
    if own == b"\xff" * len(own):
        for element in range(count):
            operands = TraceOperands(context, shape, tiles, source)
            operands.tile(index)
            try:
                _recomputed(operands, op, index - op.first, element)
            except Poisoned:
                return element
    size = len(own) // count
    return next(
        (e for e in range(count) if own[e * size : (e + 1) * size] != claimed[e * size : (e + 1) * size]), 0
    )


def part_roots(unit: Unit) -> tuple[bytes, ...]:
    """The roots of the parts that ``state_root`` commits for the unit; none where it trapped or chooses nothing."""
    if unit.shape is None or unit.context is None or unit.context.trapped:
        return ()
    expected = dict(unit.outputs)
    by_part = {op.part: op for op in unit.shape.ops if op.part is not None}
    hashes = (
        [expected[op.first + tile] for tile in range(op.grid.tiles)] if op is not None else []
        for op in map(by_part.get, range(1 + max(by_part, default=-1)))
    )
    return tuple(tree_root(each) for each in hashes)


def check_element(
    unit: Unit, claimed_root: bytes, index: int, element: int, shown: int, proof: bytes
) -> None:
    """Judge the claimant's proof of one element of a tile under its ``unit_root``; ``shown`` is the element that it
    chose to prove: another one only to show that the whole tile is all ones.

    Raises as ``check_tile``, by the same codes in the same order; InvalidMessage ``trace.element`` where the tile has
    no such element.
    """
    if unit.context is None or unit.shape is None:
        raise InvalidMessage("trace.tile", "the run has no such unit", field="index")
    count = element_count(unit.shape, index)
    if not (0 <= element < count and 0 <= shown < count):
        raise InvalidMessage("trace.element", f"the tile has {count} elements", field="element")
    if len(proof) > MAX_PROOF_BYTES:
        raise refused("tile.length", f"the proof is longer than {MAX_PROOF_BYTES} bytes")
    op = unit.shape.op_of(index)
    committed = op.part is not None and not unit.context.trapped
    behind = range_path_length(index - op.first, 1, op.grid.tiles) if committed else 0
    try:
        operands = ProofReader(unit.context, unit.shape, index, proof)
        try:
            at, value = _recomputed(operands, op, index - op.first, shown)
            holds = shown == element and operands.output[at : at + len(value)] == value
        except Poisoned:
            holds = operands.output == b"\xff" * len(operands.output)
        path = operands.finish(unit.context.state_root, claimed_root, behind=behind)
    except InvalidMessage as error:
        raise refused("tile.length", error.message) from error
    if not holds:
        raise VerificationError(
            "tile.value",
            f"element {element} of tile {index} of op {op.name} is another value when it is recomputed",
            field="proof",
        )
    found = leaf_hash(operands.output)
    if committed and op.part is not None:
        root = inclusion_root(found, index - op.first, op.grid.tiles, path)
        if root != part_roots(unit)[op.part]:
            raise _wrong("tile.commitment", index, op, "is not what the state root commits to")
    elif op.demanded is not None and not unit.context.trapped and operands.output != op.demanded:
        raise _wrong("tile.cut", index, op, "says that the record's cut is not the sampler's")
    elif op is unit.shape.ops[-1] and operands.output != unit.context.trap_op.to_bytes(4, "little"):
        raise _wrong("tile.trap", index, op, "is not the trap that the state root commits to")


def _wrong(code: str, index: int, op: Op, what: str) -> VerificationError:
    return VerificationError(code, f"tile {index} of op {op.name} {what}", field="proof")
