"""Court: games about claims on a chain (docs/spec/16-chain-disputes.md)."""

import copy

import pytest
from court_games import (
    BOND,
    BUDGET,
    CHALLENGER,
    CLAIMANT,
    GRACE,
    OTHER,
    OWNER,
    SLASH,
    STAKE,
    Match,
    World,
    build,
    sign,
)
from dispute_runs import SAMPLED, changed, flipped, tiny_run
from evm import Deployed, Reverted, Revm, deploy, names

from aos.core.merkle import EMPTY_ROOT

pytest.importorskip("pyrevm", reason="pip install pyrevm")

PROMPT = "what is the meaning"
OVER = 5


@pytest.fixture
def world() -> World:
    return build(Revm())


def match(world: World, *, lie: str | None = None, unit: int = 1, **options: object) -> tuple[Match, int]:
    """A game about the last position, and the tile that is a lie (or just one of the op)."""
    run = tiny_run("tiny-f32", PROMPT, SAMPLED)
    trace = run.trace(run.last, unit)
    tile = trace.shape.named(lie or "q").first
    committed = trace
    if lie is not None:
        trace = changed(copy.copy(trace), tile, lambda data: flipped(data, 1))
    game = Match(
        world=world, run=run, trace=trace, position=run.last, unit=unit, committed=committed, **options
    )  # type: ignore[arg-type]
    return game, tile


def stage(game: Match) -> int:
    found: int = game.world.court.read("games", game.id)[3]
    return found


def stake(world: World) -> tuple[int, int]:
    """The claimant's stake and locks."""
    info = world.registry.read("operatorInfo", CLAIMANT)
    return info[0], info[3]


def owed(contract: Deployed, account: str) -> int:
    found: int = contract.read("owed", account)
    return found


@pytest.mark.parametrize("at_once", [False, True])
def test_who_challenges_what_is_right_loses_its_bond(world: World, at_once: bool) -> None:
    game, tile = match(world)
    game.register_model()
    game.open()
    assert stake(world) == (4 * STAKE, 1)
    game.answer()
    game.descend(tile, 0, at_once=at_once)
    done = game.prove(tile, 0)
    assert names(world.court.events(done)) == ["Refuted", "Ended"]
    assert owed(world.court, CLAIMANT) == BOND
    assert stake(world) == (4 * STAKE, 0)
    world.court.send(CLAIMANT, "withdraw", OTHER)
    assert world.evm.balance(world.court.address) == 0
    world.court.refuses("AlreadyChallenged", CHALLENGER, "open", game.claim, game.signature, 0, 0, value=BOND)


@pytest.mark.parametrize("lie", ["attn_norm.sum", "gate.chunks", "scores", "keys"])
def test_a_liar_is_slashed(world: World, lie: str) -> None:
    game, tile = match(world, lie=lie)
    game.register_model()
    game.open()
    game.answer()
    game.descend(tile, 0)
    done = game.prove(tile, 0)
    assert names(world.court.events(done)) == ["Convicted", "Ended"]
    assert owed(world.court, CHALLENGER) == BOND
    assert owed(world.registry, CHALLENGER) == SLASH // 2
    assert stake(world) == (4 * STAKE - SLASH, 0)
    assert not world.registry.read("operatorInfo", CLAIMANT)[4]


def test_a_liar_is_convicted_in_one_transaction(world: World) -> None:
    game, tile = match(world, lie="gate.chunks")
    game.register_model()
    game.convict(tile, 0)
    assert owed(world.registry, CHALLENGER) == SLASH // 2
    assert stake(world) == (4 * STAKE - SLASH, 0)
    with pytest.raises(Reverted) as refusal:  # once
        game.convict(tile, 0)
    assert world.court.contract.error(refusal.value.data) == "AlreadyConvicted"
    world.court.refuses("AlreadyConvicted", OTHER, "open", game.claim, game.signature, 0, 0, value=BOND)


def test_what_is_right_convicts_nobody_in_one_transaction(world: World) -> None:
    game, tile = match(world)
    game.register_model()
    with pytest.raises(Reverted) as refusal:
        game.convict(tile, 0)
    assert world.court.contract.error(refusal.value.data) == "ProvesNothing(0)"
    game.trace = changed(copy.copy(game.trace), 0, lambda data: flipped(data, 1))
    with pytest.raises(Reverted):  # a proof that does not lead to what was signed
        game.convict(tile, 0)
    assert stake(world) == (4 * STAKE, 0)


@pytest.mark.parametrize("silent", ["answer", "choose", "reveal", "prove"])
def test_who_is_silent_loses(world: World, silent: str) -> None:
    game, tile = match(world)
    game.register_model()
    game.open()
    if silent != "answer":
        game.answer()
    if silent in ("reveal", "prove"):
        game.descend(tile, 0, at_once=silent == "prove", reveals=False)
    last = world.court.read("games", game.id)[1]
    world.evm.wait(last + GRACE + BUDGET - world.evm.now() - 1)
    world.court.refuses("NotLate", OTHER, "timeout", game.id)
    world.evm.wait(2)
    if silent == "answer":
        with pytest.raises(Reverted) as refusal:
            game.answer()
        assert world.court.contract.error(refusal.value.data) == "TooLate"
    done = world.court.send(OTHER, "timeout", game.id)
    lost = "Refuted" if silent == "choose" else "Convicted"
    assert names(world.court.events(done)) == [lost, "Ended"]
    assert stage(game) == OVER
    assert stake(world)[1] == 0
    world.court.refuses("WrongStage(5)", OTHER, "timeout", game.id)
    for function in ("settle", "timeout"):
        with pytest.raises(Reverted):
            world.court.send(OTHER, function, game.id)


def test_many_challenge_one_claim_and_the_bond_doubles(world: World) -> None:
    first, tile = match(world, lie="gate.chunks")
    first.register_model()
    first.open()
    other, _ = match(world, lie="gate.chunks", challenger=OTHER)
    with pytest.raises(Reverted) as refusal:
        other.open(value=BOND)
    assert world.court.contract.error(refusal.value.data) == f"BondTooSmall({2 * BOND})"
    other.open()
    assert stake(world)[1] == 2
    # The sham challenger never moves again; the honest one wins, and the other gets its bond back.
    world.court.refuses("NotConvicted", OTHER, "settle", first.id)
    other.answer()
    other.descend(tile, 0, at_once=True)
    other.prove(tile, 0)
    world.court.send(OWNER, "settle", first.id)
    assert owed(world.court, CHALLENGER) == BOND
    assert owed(world.court, OTHER) == 2 * BOND
    assert stake(world) == (4 * STAKE - SLASH, 0)


def test_a_move_out_of_turn_or_of_another_stage_is_refused(world: World) -> None:
    game, tile = match(world)
    game.register_model()
    game.open()
    court = world.court
    court.refuses("WrongStage(1)", CLAIMANT, "reveal", game.id, [])
    court.refuses("WrongStage(1)", CHALLENGER, "choose", game.id, 0, 1, EMPTY_ROOT, [EMPTY_ROOT], 0)
    game.answer()
    court.refuses("NotYourTurn", CLAIMANT, "choose", game.id, 0, 1, EMPTY_ROOT, [EMPTY_ROOT], 0)
    court.refuses("NoSuchNode", CHALLENGER, "choose", game.id, 0, 1, EMPTY_ROOT, [EMPTY_ROOT], 0)
    court.refuses("NotTheNode", CHALLENGER, "choose", game.id, 0, 4, EMPTY_ROOT, [EMPTY_ROOT] * 4, 0)
    game.descend(tile, 0, at_once=True)
    context = (*game.context()[:-1], 1)
    court.refuses("OtherContext", CLAIMANT, "prove", game.id, context, tile, 0, 0, 0, b"")
    court.refuses("NotYourTurn", OTHER, "prove", game.id, game.context(), tile, 0, 0, 0, b"")


def test_a_claim_counts_as_its_operator_signed_it(world: World) -> None:
    game, _ = match(world)
    other = (game.claim[0], game.claim[1], game.claim[2], EMPTY_ROOT, game.claim[4])
    court = world.court
    court.refuses("BadSignature", CHALLENGER, "open", other, game.signature, 0, 0, value=BOND)
    court.refuses("BadSignature", CHALLENGER, "open", game.claim, game.signature[:-1], 0, 0, value=BOND)
    by_other = sign(world, game.claim_id, OTHER)
    court.refuses("BadSignature", CHALLENGER, "open", game.claim, by_other, 0, 0, value=BOND)
    court.refuses("OwnClaim", CLAIMANT, "open", game.claim, game.signature, 0, 0, value=BOND)
    late, _ = match(world, expires=world.evm.now() - 1)
    court.refuses("ClaimExpired", CHALLENGER, "open", late.claim, late.signature, 0, 0, value=BOND)


def test_a_challenge_of_a_unit_that_the_run_has_not_is_refuted(world: World) -> None:
    game, _ = match(world)
    game.register_model()
    world.court.send(CHALLENGER, "open", game.claim, game.signature, game.position + 1, 0, value=BOND)
    header = 240 + 32 * max(1, (game.opened.context.header.n_positions).bit_length())  # type: ignore[union-attr]
    args = (game.claim[2], game.claim[3], game.params, game.bounds[:header], bytes(32), [])
    done = world.court.send(CLAIMANT, "answer", game.id, *args)
    assert names(world.court.events(done)) == ["Refuted", "Ended"]


def test_bounds_that_do_not_hold_are_no_answer(world: World) -> None:
    game, _ = match(world)
    game.register_model()
    game.open()
    good = game.bounds
    for at in (0, 30, 100, 130, 210, 239, 241, len(good) // 2, len(good) - 1):
        game.bounds = flipped(good, 8 * at)
        with pytest.raises(Reverted):
            game.answer()
    for bad in (good[:-1], good + b"\0", b""):
        game.bounds = bad
        with pytest.raises(Reverted):
            game.answer()
    game.bounds = good
    params = game.params
    game.params = (*params[:-1], params[-1] + 1)
    with pytest.raises(Reverted):
        game.answer()
    game.params = params
    game.answer()


def test_a_payee_that_reverts_blocks_nobody(world: World) -> None:
    payee = deploy(world.evm, "Payee", world.registry.address)
    payee.send(OWNER, "behave", True, False)
    game, tile = match(world, lie="gate.chunks")
    game.register_model()
    game.open()
    game.answer()
    game.descend(tile, 0, at_once=True)
    game.prove(tile, 0)
    world.court.refuses("NotPaid", CHALLENGER, "withdraw", payee.address)
    assert owed(world.court, CHALLENGER) == BOND
    world.court.send(CHALLENGER, "withdraw", OTHER)
    world.court.refuses("NothingOwed", CHALLENGER, "withdraw", OTHER)


def test_who_names_an_element_that_the_tile_has_not_loses_its_bond(world: World) -> None:
    game, tile = match(world)
    game.register_model()
    game.open()
    game.answer()
    game.descend(tile, 2**32 - 2, at_once=True)
    shown, proof = game.trace.prove_element(tile, 0)
    step = game.step_of(tile, 0, shown, proof)
    # The claimant cannot use it against another element.
    args = (game.id, game.context(), tile, 2**32 - 2, step)
    world.court.refuses("ProvesNothing(101)", CLAIMANT, "prove", *args, 2**31, proof)
    done = world.court.send(CLAIMANT, "prove", *args, 2**32 - 2, proof)
    assert names(world.court.events(done)) == ["Refuted", "Ended"]


def test_a_unit_of_one_tile_can_be_challenged(world: World) -> None:
    run = tiny_run("tiny-f32", PROMPT, SAMPLED)
    trace = run.trace(0, run.tail)
    assert trace.shape.n_tiles == 1
    for lie in (False, True):
        shown = changed(copy.copy(trace), 0, lambda data: flipped(data, 1)) if lie else trace
        game = Match(
            world=world,
            run=run,
            trace=shown,
            committed=trace,
            position=0,
            unit=run.tail,
            receipt=bytes([lie]) * 32,
        )
        if not lie:
            game.register_model()
        game.open()
        game.answer()
        world.court.send(CHALLENGER, "choose", game.id, 0, 0, game.hashes[0], [], 0)
        done = game.prove(0, 0)
        assert names(world.court.events(done))[0] == ("Convicted" if lie else "Refuted")
