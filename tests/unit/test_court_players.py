"""The two players on the contracts, to the end: an honest one wins against every kind of lie and of sham challenge. SIMULATED
parties over real traces of tiny models.
"""

from __future__ import annotations

import os
from collections import Counter
from random import Random

import pytest
from court_games import BOND, CHALLENGER, CLAIMANT, SLASH, World, build
from court_players import Play, on_revm
from evm import Revm
from liar_games import JOBS, KINDS, aimed
from liars import Claim, honest, lie_at

from aos.core.dispute.coarse import Aim

pytest.importorskip("pyrevm", reason="pip install pyrevm")

CASES = int(os.environ.get("AOS_COURT_GAMES", "12"))
"""More by hand: AOS_COURT_GAMES=500."""


@pytest.fixture
def world() -> World:
    return build(Revm())


def play_of(world: World, claim: Claim, own: Claim, aim: Aim | None = None, **options: object) -> Play:
    found = aim or aimed(claim, own)
    assert found is not None
    node, send = on_revm(world)
    play = Play(world=world, node=node, send=send, claim=claim, own=own, aim=found, **options)  # type: ignore[arg-type]
    play.register()
    return play


@pytest.mark.parametrize("job", JOBS[:2], ids=["greedy", "sampled"])
@pytest.mark.parametrize("op", ["attn_norm", "q.chunks", "scores", "activation", "keys", "residual"])
async def test_an_honest_challenger_wins_against_a_liar(world: World, job: object, op: str) -> None:
    run = honest(job)  # type: ignore[arg-type]
    position, unit = run.header.n_positions - 1, 1
    tile = run.at(position, unit).shape.named(op).first
    claim = lie_at(run.job, position, unit, tile, alteration="signs")
    assert claim is not None
    play = play_of(world, claim, run)
    outcome = await play.play()
    assert (outcome.kind, outcome.code) == ("convicted", "tile.value")
    assert world.court.read("owed", CHALLENGER) == BOND
    assert world.registry.read("owed", CHALLENGER) == SLASH // 2


OPS_OF_THE_TAIL = (
    "output_norm.lanes",
    "logits",
    "adjusted",
    "weights",
    "cuts",
    "before.chunks",
    "before.holds",
    "picks",
    "token",
)


@pytest.mark.parametrize("op", OPS_OF_THE_TAIL)
@pytest.mark.parametrize("how", ["tile", "late", "output"])
async def test_a_lie_in_a_sampled_tail_is_found_with_the_cuts_that_it_shows(
    world: World, op: str, how: str
) -> None:
    run = honest(JOBS[1])
    position, unit = run.header.n_prompt, run.n_layers + 1
    tile = run.at(position, unit).shape.named(op).first
    claims = (lie_at(run.job, position, unit, tile, alteration=each, how=how) for each in ("signs", "bit"))
    claim = next((each for each in claims if each is not None), None)
    if claim is None:
        pytest.skip("nothing that is committed changes")
    outcome = await play_of(world, claim, run).play()
    assert outcome.kind == "convicted"
    assert outcome.code in ("tile.value", "tile.commitment", "tile.cut", "tile.trap")


async def test_random_lies_lose_and_random_challenges_of_what_is_right_lose() -> None:
    world = build(Revm(), slash=1)
    ends: Counter[str] = Counter()
    for number in range(CASES):
        rng = Random(f"court {number}")
        run = honest(rng.choice(JOBS))
        names = [name for name in KINDS if name not in ("an early stop", "a swapped token")]
        kind = names[number % len(names)]
        claim = next(
            (
                each
                for each in (KINDS[kind](rng, run.job) for _ in range(8))
                if each and each.root != run.root
            ),
            None,
        )
        aim = None if claim is None else aimed(claim, run)
        if claim is None or aim is None or aim.kind != "unit":
            ends["another kind of game"] += 1
            continue
        receipt = number.to_bytes(32, "big")
        outcome = await play_of(world, claim, run, aim, receipt=receipt).play()
        assert outcome.kind == "convicted", (number, kind, claim.told)
        ends[outcome.code] += 1
        place = Aim(
            kind="unit",
            position=rng.randrange(run.header.n_positions),
            unit=rng.randrange(run.n_layers + 3),
            leaf=b"",
        )
        outcome = await play_of(world, run, claim, place, receipt=receipt, choices=rng).play()
        assert outcome.kind == "refuted", (number, place)
        ends[outcome.kind] += 1
    assert sum(ends.values()) - ends["refuted"] >= CASES
    assert ends["refuted"] >= CASES // 2, ends
    assert world.court.read("owed", CLAIMANT) >= ends["refuted"] * BOND
