"""The two players on the contracts, to the end: an honest one wins against every kind of lie and of sham challenge. SIMULATED
parties over real traces of tiny models.
"""

from __future__ import annotations

import os

import pytest
from court_games import BOND, CHALLENGER, SLASH, World, build
from court_players import Play, on_revm
from evm import Revm
from liar_games import JOBS, aimed
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
