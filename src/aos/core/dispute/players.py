"""What an honest party plays (docs/spec/13-dispute.md, "How to play"). Pure: the game and its own trace give the move.

An honest claimant shows what it has. An honest challenger goes to the first tile in which the claim differs from its own
run: every operand of that tile is then its own too, so that the claimed value cannot be recomputed.
"""

from collections.abc import Sequence

from aos.core.dispute.case import Arithmetic, OpenedUnit, UnitTrace
from aos.core.dispute.game import Game
from aos.core.dispute.moves import Answer, Choose, Proof
from aos.core.dispute.place import Node, Shape
from aos.core.merkle import tree_root
from aos.errors import RuleViolation


def own_unit_root(arithmetic: Arithmetic, game: Game, opened: OpenedUnit, trace: UnitTrace) -> bytes:
    """The ``unit_root`` of a party's own trace at the place in question."""
    shape = Shape(opened.n_tiles, opened.fanout)
    root = tree_root(shape.children(shape.root, trace.tile_hashes))
    return arithmetic.unit_root(opened, game.open.position, game.open.unit, root)


def answer(game: Game, arithmetic: Arithmetic, trace: UnitTrace) -> Answer | Proof:
    """The claimant's next move in a game about a unit. Raises RuleViolation ``dispute.stage`` where none is due."""
    opening = game.open
    if game.stage == "proof" and game.node is not None:
        return Proof(
            game=game.id,
            turn=game.turn,
            previous=game.taken[-1].hash,
            proof=trace.prove(game.node.first),
        )
    if game.stage != "answer":
        raise RuleViolation("dispute.stage", f"the game waits for {game.stage}, not for an answer")
    first = game.opened is None
    opened = game.opened
    if opened is None:
        opened = arithmetic.open_unit(game.case, opening.position, opening.unit, trace.bounds)
    shape = Shape(opened.n_tiles, opened.fanout) if opened.n_tiles else None
    node = game.node if game.node is not None else shape.root if shape is not None else None
    return Answer(
        game=game.id,
        turn=game.turn,
        previous=game.taken[-1].hash,
        claimant=opening.claimant,
        claim=opening.claim,
        position=opening.position,
        unit=opening.unit,
        unit_root=own_unit_root(arithmetic, game, opened, trace) if shape is not None else bytes(32),
        children=b"".join(shape.children(node, trace.tile_hashes)) if shape and node else b"",
        bounds=trace.bounds if first else b"",
    )


def prove(game: Game, proof: bytes) -> Proof:
    """The claimant's move in a game around the model. Raises RuleViolation ``dispute.stage`` where none is due."""
    if game.stage != "proof":
        raise RuleViolation("dispute.stage", f"the game waits for {game.stage}, not for a proof")
    return Proof(game=game.id, turn=game.turn, previous=game.taken[-1].hash, proof=proof)


def choose(game: Game, trace: UnitTrace) -> Choose:
    """The challenger's next move. Raises RuleViolation ``dispute.stage`` where none is due, ``dispute.no_difference``
    where the claim is the challenger's own run."""
    opened, node = game.opened, game.node
    if game.stage != "choose" or opened is None or node is None:
        raise RuleViolation("dispute.stage", f"the game waits for {game.stage}, not for a choice")
    shape = game.shape
    child = _first_difference(shape, node, game.children, trace)
    if child is None:
        tile = _output_difference(opened, trace)
        if tile is None or not node.first <= tile < node.first + node.count:
            raise RuleViolation("dispute.no_difference", "the claim differs nowhere from this run")
        child = next(
            index
            for index in range(shape.width(node))
            if tile < (c := shape.child(node, index)).first + c.count
        )
    return Choose(game=game.id, turn=game.turn, previous=game.taken[-1].hash, child=child)


def _first_difference(shape: Shape, node: Node, children: Sequence[bytes], trace: UnitTrace) -> int | None:
    own = shape.children(node, trace.tile_hashes)
    return next((index for index, hash_ in enumerate(children) if own[index] != hash_), None)


def _output_difference(opened: OpenedUnit, trace: UnitTrace) -> int | None:
    own = dict(trace.outputs)
    return next((tile for tile, hash_ in opened.outputs if own.get(tile) != hash_), None)
