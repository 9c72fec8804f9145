"""Who attacks the court: each of these was once a way through."""

import pytest
from court_games import (
    BOND,
    BUDGET,
    CHALLENGER,
    CLAIMANT,
    GRACE,
    OTHER,
    SLASH,
    STAKE,
    UNIT_ROOT,
    Match,
    World,
    build,
    sign,
    words,
)
from dispute_runs import GREEDY, SAMPLED, flipped, tiny_run
from evm import Reverted, Revm, names

from aos.core.dispute.fine.bounds import Bounds
from aos.core.dispute.fine.onchain import chain_bounds
from aos.core.merkle import leaf_hash
from aos.core.signing import keccak256
from aos.engine.trace import AbsentUnit, UnitTrace

pytest.importorskip("pyrevm", reason="pip install pyrevm")


@pytest.fixture
def world() -> World:
    return build(Revm())


def honest(world: World, op: str, unit: int | None = None, **options: object) -> tuple[Match, int]:
    """A game about what is right at the last position, and the first tile of an op."""
    run = tiny_run("tiny-f32", "what is the meaning", SAMPLED)
    unit = run.tail if unit is None else unit
    trace = run.trace(run.last, unit)
    game = Match(world=world, run=run, trace=trace, position=run.last, unit=unit, **options)  # type: ignore[arg-type]
    return game, trace.shape.named(op).first


def test_a_wrong_path_below_a_part_convicts_nobody_in_one_transaction(world: World) -> None:
    game, tile = honest(world, "logits")
    game.register_model()
    root = words(UNIT_ROOT, game.claim_id, game.position, game.unit, game.trace.unit_root)
    signatures = [game.signature, sign(world, keccak256(root))]
    shown, proof = game.trace.prove_element(tile, 0)
    step = game.step_of(tile, 0, shown, proof)
    # The last hash of the proof is one of the path below the root of the logits, and the accuser brings it.
    args = (
        game.claim,
        signatures,
        game.context(),
        game.params,
        game.bounds,
        step,
        tile,
        0,
        flipped(proof, 8 * len(proof) - 1),
    )
    world.court.refuses("ProvesNothing(8)", CHALLENGER, "convict", *args)
    info = world.registry.read("operatorInfo", CLAIMANT)
    assert (info[0], info[3]) == (4 * STAKE, 0)


@pytest.mark.parametrize("absent", [False, True])
def test_the_last_position_says_where_a_run_trapped(world: World, absent: bool) -> None:
    run = tiny_run("tiny-trap", "is it so? yes", GREEDY)
    trapped = run.known.tree.header.n_positions - 1
    assert run.known.trap == (1, run.trace(trapped, 1).context.trap_op)
    game = Match(world=world, run=run, trace=run.trace(trapped, 1), position=trapped, unit=1)
    game.register_model()
    unit = 2 if absent else 1
    world.court.send(CHALLENGER, "open", game.claim, game.signature, trapped, unit, value=BOND)
    honest = chain_bounds(AbsentUnit(run.known).bounds, run.known.run, trapped, 2)
    at = 240 + 32 * (trapped + 1).bit_length()
    assert honest[at : at + 4] == (1).to_bytes(4, "big")
    place = (game.id, *game.claim[2:4], game.params)
    # A claimant that names an earlier unit would have none at this one.
    for lie in (b"", honest[at + 4 :]):
        with pytest.raises(Reverted):
            world.court.send(CLAIMANT, "answer", *place, honest[:at] + bytes(4) + lie, bytes(32), [])
    if absent:
        done = world.court.send(CLAIMANT, "answer", *place, honest, bytes(32), [])
        assert names(world.court.events(done)) == ["Refuted", "Ended"]
    else:
        game.answer()


def test_a_challenger_learns_which_committed_tile_is_wrong(world: World) -> None:
    """The trace is right, and the state root commits to other logits: no hash of the trace shows which."""
    run = tiny_run("tiny-f32", "what is the meaning", SAMPLED)
    trace = run.trace(run.last, run.tail)
    logits, *others = trace.payload(run.last, run.tail)
    wrong = trace.shape.named("logits").grid.tiles - 1
    lying = run.committing(run.last, run.tail, [flipped(logits, 8 * len(logits) - 9), *others])

    class Committing(UnitTrace):
        def payload(self, position: int, unit: int) -> tuple[bytes, ...]:
            logits, *others = parts = super().payload(position, unit)
            if unit != run.tail:
                return parts
            return flipped(logits, 8 * len(logits) - 9), *others

    liar = Committing(lying.known, run.weights, run.engine, run.last, run.tail)
    assert list(liar.tile_hashes) == list(trace.tile_hashes)
    game = Match(world=world, run=lying, trace=liar, position=run.last, unit=run.tail)
    game.register_model()
    game.open()
    court = world.court
    court.refuses("WrongStage(1)", CHALLENGER, "askParts", game.id)
    game.answer()
    court.refuses("NotYourTurn", CLAIMANT, "askParts", game.id)
    court.send(CHALLENGER, "askParts", game.id)
    shown = [
        list(part) for part in Bounds.decode(liar.bounds, lying.known.run, run.last, run.tail)[0].tile_hashes
    ]
    head = Bounds.decode(liar.bounds, lying.known.run, run.last, run.tail)[0].head
    for bad in (shown[:-1], [shown[0][:-1], *shown[1:]], [shown[0][::-1], *shown[1:]], [*shown, []]):
        court.refuses("NotTheNode", CLAIMANT, "showParts", game.id, game.context(), bad, head)
    for other in (b"", head[:-1], flipped(head, 64)):
        court.refuses("NotTheNode", CLAIMANT, "showParts", game.id, game.context(), shown, other)
    context = (*game.context()[:-1], 1)
    court.refuses("OtherContext", CLAIMANT, "showParts", game.id, context, shown, head)
    done = court.send(CLAIMANT, "showParts", game.id, game.context(), shown, head)
    assert court.events(done)[0].args["head"] == head
    court.refuses("AlreadyAsked", CHALLENGER, "askParts", game.id)
    own = [leaf_hash(tile) for tile in trace.tiles[trace.shape.named("logits").first :]]
    assert [tile for tile, each in enumerate(shown[0]) if each != own[tile]] == [wrong]
    tile = trace.shape.named("logits").first + wrong
    game.descend(tile, 0, at_once=True)
    done = game.prove(tile, 0)
    assert names(court.events(done)) == ["Convicted", "Ended"]


def test_who_does_not_show_the_parts_loses(world: World) -> None:
    game, _ = honest(world, "logits")
    game.register_model()
    game.open()
    game.answer()
    world.court.send(CHALLENGER, "askParts", game.id)
    world.evm.wait(GRACE + BUDGET + 1)
    assert names(world.court.events(world.court.send(OTHER, "timeout", game.id))) == ["Convicted", "Ended"]


def test_a_slash_protects_the_rest_of_a_stake_from_nobody(world: World) -> None:
    game, _ = honest(world, "logits")
    # The claimant spends its stake on itself, down to less than the least: what is left still answers for its claims.
    for number in range(8):
        own, _ = honest(world, "logits", receipt=bytes([number]) * 32, challenger=OTHER)
        if world.registry.read("operatorInfo", CLAIMANT)[0] < STAKE:
            break
        own.open()
        world.evm.wait(GRACE + BUDGET + 1)
        world.court.send(OTHER, "timeout", own.id)
    left = world.registry.read("operatorInfo", CLAIMANT)[0]
    assert 0 < left < STAKE
    game.open()
    world.evm.wait(GRACE + BUDGET + 1)
    world.court.send(OTHER, "timeout", game.id)
    assert world.registry.read("operatorInfo", CLAIMANT)[0] == left - min(SLASH, left)


def test_a_convicted_claimant_takes_no_bond(world: World) -> None:
    game, _ = honest(world, "logits")
    game.register_model()
    game.open()
    game.answer()
    other, _ = honest(world, "logits", challenger=OTHER)
    other.open()
    world.evm.wait(GRACE + BUDGET + 1)
    assert names(world.court.events(world.court.send(OTHER, "timeout", other.id))) == ["Convicted", "Ended"]
    world.court.send(CLAIMANT, "timeout", game.id)
    assert world.court.read("owed", CLAIMANT) == 0
    assert world.court.read("owed", CHALLENGER) == BOND
