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
from dispute_real import Job, RealRun, false_trap, hidden_trap, honest_run
from evm import Revm
from liar_games import JOBS, KINDS, aimed
from liars import Claim, Shown, honest, lie_at, replaced_unit

from aos.core.dispute.coarse import Aim
from aos.core.dispute.fine.chain_players import Claimed
from aos.engine.trace import UnitTrace

pytest.importorskip("pyrevm", reason="pip install pyrevm")

PROMPT = "what is the"
CASES = int(os.environ.get("AOS_COURT_GAMES", "6"))
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


@pytest.mark.parametrize("op", ["output_norm.lanes", "logits", "adjusted", "weights", "before.chunks"])
@pytest.mark.parametrize("how", ["tile", "late", "output"])
async def test_a_lie_in_a_sampled_tail_is_found(world: World, op: str, how: str) -> None:
    run = honest(JOBS[1])
    position, unit = run.header.n_prompt, run.n_layers + 1
    tile = run.at(position, unit).shape.named(op).first
    claims = (lie_at(run.job, position, unit, tile, alteration=each, how=how) for each in ("signs", "bit"))
    claim = next(each for each in claims if each is not None)
    outcome = await play_of(world, claim, run).play()
    assert outcome.kind == "convicted"
    assert outcome.code in ("tile.value", "tile.commitment", "tile.cut")


@pytest.mark.parametrize("at", [8, 12], ids=["before", "after"])
async def test_other_cuts_than_the_samplers_are_found_with_the_cuts_that_are_shown(
    world: World, at: int
) -> None:
    """The trace follows from the cuts that are committed: by one's own cuts a challenger would name what is right."""
    run = honest(JOBS[1])
    position, unit = run.header.n_prompt, run.n_layers + 1
    logits, record, token = run.at(position, unit).payload(position, unit)
    cut = int.from_bytes(record[at : at + 4], "little")
    other = (cut + 1) % len(logits[::4])
    record = record[:at] + other.to_bytes(4, "little") + record[at + 4 :]
    claim = replaced_unit(run.job, "other cuts", position, unit, (logits, record, token))
    assert claim is not None
    # Its trace is that of the cuts that it committed.
    shown = UnitTrace(
        claim.known,
        claim.weights,
        claim.engine,
        position,
        unit,
        against=Claimed(
            trap_op=0, cuts=(int.from_bytes(record[8:12], "little"), int.from_bytes(record[12:16], "little"))
        ),
        capture=claim.capture,
    )
    claim.shown[position, unit] = Shown(claim, position, unit, shown.tiles, (logits, record, token))
    play = play_of(world, claim, run)
    outcome = await play.play()
    assert outcome.kind == "convicted"
    assert "AskParts" in play.moves


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


class Trapped:
    """A claim about a trap, as ``Play`` takes claims; ``trace`` is what its owner shows of the place."""

    told = "a trap"

    def __init__(self, run: RealRun, trace: UnitTrace | None = None) -> None:
        self.known, self._run, self._shown = run.known, run, trace

    def trace(self, position: int, unit: int, against: object = None) -> UnitTrace:
        if self._shown is not None:
            return self._shown
        run = self._run
        return UnitTrace(run.known, run.model.weights, run.model.engine, position, unit, against=against)  # type: ignore[arg-type]


@pytest.mark.parametrize(("position", "unit", "op"), [(0, 0, 1), (1, 1, 3), (2, 2, 10), (1, 3, 21)])
async def test_a_trap_that_did_not_happen_is_convicted(
    world: World, position: int, unit: int, op: int
) -> None:
    run = honest_run(Job(model="tiny-f32", prompt=PROMPT, temperature=0))
    claim, trace = false_trap(run, position, unit, op)
    at = Aim(kind="unit", position=position, unit=unit, leaf=b"")
    play = play_of(world, Trapped(claim, trace), Trapped(run), at)  # type: ignore[arg-type]
    outcome = await play.play()
    assert (outcome.kind, outcome.code) == ("convicted", "tile.trap")
    assert "AskParts" not in play.moves


async def test_a_trap_that_was_kept_quiet_is_convicted_and_a_true_one_is_refuted(world: World) -> None:
    trapped = honest_run(Job(model="tiny-trap", prompt="is it so? yes", max_tokens=1))
    assert trapped.known.trap is not None
    claim, trace = hidden_trap(trapped)
    at = Aim(
        kind="unit",
        position=trapped.known.tree.header.n_positions - 1,
        unit=trapped.known.trap[0],
        leaf=b"",
    )
    outcome = await play_of(world, Trapped(claim, trace), Trapped(trapped), at).play()  # type: ignore[arg-type]
    assert (outcome.kind, outcome.code) == ("convicted", "tile.trap")
    sham = play_of(world, Trapped(trapped), Trapped(claim), at, choices=Random(1), receipt=b"\x08" * 32)  # type: ignore[arg-type]
    assert (await sham.play()).kind == "refuted"


async def test_a_place_that_the_run_has_not_is_refuted(world: World) -> None:
    run = honest(JOBS[0])
    at = Aim(kind="unit", position=run.header.n_positions, unit=0, leaf=b"")
    play = play_of(world, run, run, at)
    assert (await play.play()).kind == "refuted"
    assert play.moves == ["Answer"]
