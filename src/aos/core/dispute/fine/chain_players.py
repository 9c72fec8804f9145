"""What an honest party plays on a chain (docs/spec/16-chain-disputes.md, "How to play"). Pure: the game as its contract holds
it, and one's own trace of the unit, give the move.

A claimant shows what it has. A challenger goes to the first tile in which the claim differs from its own run, where all
operands are its own too, asks to see it, and names an element that is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aos.core.dispute.fine.bounds import LAST_OP, Bounds, Run, committed_outputs, open_unit
from aos.core.dispute.fine.chain_around import TOKENS_UNIT
from aos.core.dispute.fine.chain_game import (
    UNSEEN,
    Answer,
    AnswerTokens,
    AskParts,
    ChainGame,
    ChallengerMove,
    Choose,
    ClaimantMove,
    Node,
    Pick,
    Prove,
    Reveal,
    ShowParts,
    ShowTile,
    Stage,
)
from aos.core.dispute.fine.element import element_count
from aos.core.dispute.fine.grid import UnitShape
from aos.core.dispute.fine.onchain import HALVINGS, chain_bounds, context_words, frontier, way_down
from aos.core.dispute.state_tree import trap_leaf
from aos.core.dispute.trace_tree import TraceTree
from aos.core.merkle import HASH_BYTES
from aos.errors import RuleViolation


class ElementTrace(Protocol):
    """A party's own trace of one unit, by elements. ``aos.engine.trace.UnitTrace``."""

    @property
    def shape(self) -> UnitShape:
        """The unit's ops."""

    @property
    def tiles(self) -> Sequence[bytes]:
        """The bytes of every tile."""

    @property
    def tree(self) -> TraceTree:
        """The tree over them."""

    @property
    def unit_root(self) -> bytes:
        """What its maker signs of it."""

    @property
    def outputs(self) -> Sequence[tuple[int, bytes]]:
        """For every tile that a state root may commit, the hash of what this trace has there."""

    def prove_element(self, index: int, element: int) -> tuple[int, bytes]:
        """The element to show, and its proof."""

    def wrong_element(self, index: int, claimed: bytes) -> int:
        """The element to name of a tile that is claimed to be other bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What a challenger's trace takes over from the claim. ``aos.engine.trace.Claimed``."""

    trap_op: int
    cuts: tuple[int, int] | None


def claimed(game: ChainGame, leaf: bytes) -> Claimed:
    """What the claim says of the challenged unit, as far as it is known by now: by its leaf hash, and by what was shown."""
    ops = range(1, LAST_OP + 1)
    op = next((op for op in ops if trap_leaf(game.position, game.unit, op) == leaf), 0)
    head = game.head
    cuts = (int.from_bytes(head[8:12], "little"), int.from_bytes(head[12:16], "little")) if head else None
    return Claimed(trap_op=op, cuts=cuts)


def claimant_move(game: ChainGame, run: Run, bounds: bytes, trace: ElementTrace | None) -> ClaimantMove:
    """The claimant's next move. ``bounds`` open the unit under the run's state root (11's, of the trace), or are the proof of
    ``prove_tokens`` in a game about the tokens; ``trace`` is None in such a game, and where the run has no such unit. Raises
    RuleViolation ``dispute.stage`` where none is due.
    """
    if game.stage == Stage.ANSWER:
        if game.unit == TOKENS_UNIT:
            return AnswerTokens(model_id=run.manifest.model_id, state_root=run.state_root, proof=bounds)
        params = run.params
        return Answer(
            model_id=run.manifest.model_id,
            state_root=run.state_root,
            salt=run.salt,
            max_tokens=params.max_tokens,
            min_p=params.min_p,
            repeat_penalty=params.repeat_penalty,
            stop=tuple(params.stop),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            bounds=chain_bounds(bounds, run, game.position, game.unit),
            root=bytes(HASH_BYTES) if trace is None else trace.tree.root,
            children=() if trace is None else _below(trace.tree, (0, 0, 1)),
        )
    if game.mover != "claimant" or trace is None:
        raise RuleViolation(
            "dispute.stage", f"the game's stage is {Stage(game.stage).name}: no move of the claimant's is due"
        )
    if game.stage == Stage.REVEAL:
        return Reveal(children=_below(trace.tree, _node(game)))
    tile = game.node[1]
    if game.stage == Stage.TILE:
        return ShowTile(data=trace.tiles[tile])
    context = context_words(open_unit(run, game.position, game.unit, bounds), trace.unit_root)
    if game.stage == Stage.PARTS:
        opened, _, _ = Bounds.decode(bounds, run, game.position, game.unit)
        return ShowParts(context=context, hashes=opened.tile_hashes, head=opened.head)
    shown, proof = game.element, b""
    if game.element < element_count(trace.shape, tile):
        shown, proof = trace.prove_element(tile, game.element)
    return Prove(context=context, tile=tile, element=game.element, shown=shown, proof=proof)


def challenger_move(game: ChainGame, claim: Claimed, trace: ElementTrace) -> ChallengerMove:
    """The challenger's next move; ``trace`` is its own, made with ``claim``.

    Raises RuleViolation ``dispute.stage`` where none is due, ``dispute.no_difference`` where the claim is its own run.
    """
    if game.stage == Stage.PICK and game.tile is not None:
        return Pick(element=trace.wrong_element(game.node[1], game.tile))
    if game.stage != Stage.CHOOSE:
        raise RuleViolation(
            "dispute.stage",
            f"the game's stage is {Stage(game.stage).name}: no move of the challenger's is due",
        )
    shape, tree = trace.tree.shape, trace.tree
    node = _node(game)
    below = frontier(shape, node, HALVINGS)
    wrong = next(
        (
            at
            for at, (own, theirs) in enumerate(zip(below, game.children, strict=True))
            if tree.range(*own) != theirs
        ),
        None,
    )
    if not game.asked and not claim.trap_op and (wrong is None or _needs_cuts(trace, claim, below[wrong])):
        return AskParts()
    element = UNSEEN
    if wrong is None:
        wrong, element = _to_output(game, claim, trace, below), 0
    level, first, _ = below[wrong]
    if level == shape.depth and element_count(trace.shape, first) == 1:
        element = 0
    path, siblings = way_down(shape, node, HALVINGS, game.children, wrong)
    return Choose(path=path, node=game.children[wrong], siblings=tuple(siblings), element=element)


def _node(game: ChainGame) -> Node:
    level, first, end = game.node
    return level, first, end


def _below(tree: TraceTree, node: Node) -> tuple[bytes, ...]:
    return tuple(tree.range(*each) for each in frontier(tree.shape, node, HALVINGS))


def _needs_cuts(trace: ElementTrace, claim: Claimed, node: Node) -> bool:
    """Whether a difference below a node may come from nothing but other cuts in the sampler's record, which are inputs."""
    cuts = next((op.first for op in trace.shape.ops if op.name == "cuts"), None)
    level, _, end = node
    return cuts is not None and claim.cuts is None and end * trace.tree.shape.spans[level] > cuts


def _to_output(game: ChainGame, claim: Claimed, trace: ElementTrace, below: Sequence[Node]) -> int:
    """The node towards the first tile that the claim commits to other bytes of than its own trace, which is right, has."""
    spans, own = trace.tree.shape.spans, dict(trace.outputs)
    committed = committed_outputs(trace.shape, game.parts or (), claim.trap_op)
    tile = next((index for index, each in committed if own[index] != each), None)
    for at, (level, first, end) in enumerate(below):
        if tile is not None and first * spans[level] <= tile < end * spans[level]:
            return at
    raise RuleViolation("dispute.no_difference", "the claim differs nowhere from this run")
