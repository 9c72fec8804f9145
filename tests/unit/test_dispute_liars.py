"""Liars that compute everything after their lie honestly, in whole runs of more than 256 positions: the honest side wins every
game, and the verdict names the place of the lie. SIMULATED parties; scripts/simulate_disputes.py plays thousands.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from liar_games import JOBS, KINDS, aimed, dispute, play_case
from liars import SHAPES, honest, sampled_otherwise, swapped_token

CASES = int(os.environ.get("AOS_LIARS", "13"))
"""More by hand: AOS_LIARS=2000."""


def test_the_honest_side_wins_against_every_kind_of_lie_and_the_verdict_names_its_place() -> None:
    ends: Counter[str] = Counter()
    for number in range(CASES):
        ends.update(play_case(number))
    lies = sum(count for name, count in ends.items() if name.partition(":")[0].partition(",")[0] in KINDS)
    assert lies >= 0.8 * CASES, ends
    assert ends["random sham: dispute.refuted"] >= 0.7 * CASES, ends
    assert sum(count for name, count in ends.items() if name.startswith("sham")) >= 0.7 * CASES, ends


def test_the_shapes_are_those_that_matter() -> None:
    graphs = [honest(job).engine.manifest.graph for job in JOBS[::2]]
    assert len(graphs) == len(SHAPES) >= 3
    assert any(graph.n_heads > graph.n_kv_heads for graph in graphs if graph)
    assert any(graph.tied for graph in graphs if graph)
    assert any(graph.ff_width % 256 for graph in graphs if graph and graph.ff_width > 256)
    assert any(shape.types.get("output") == "Q6_K" and not shape.tied for shape in SHAPES.values())
    assert all(honest(job).header.n_positions > 256 for job in JOBS)


@pytest.mark.parametrize("job", JOBS[:2], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("back", "disclosed"), [(6, True), (3, True), (1, True), (6, False), (2, False), (200, False)]
)
def test_a_run_that_reads_another_token_than_it_chose_or_disclosed_is_challenged_for_that(
    job: object, back: int, disclosed: bool
) -> None:
    """Every tile of it can be recomputed: the units that read the token read what its root commits to."""
    run = honest(job)  # type: ignore[arg-type]
    at = len(run.known.tokens) - back
    token = next(each for each in (5, 6) if each != run.known.tokens[at])
    claim = swapped_token(run.job, at, token, disclosed=disclosed)
    assert claim is not None
    found = aimed(claim, run)
    assert found is not None
    assert found.kind == "tokens"
    played = dispute(claim, run)
    assert [(fault.party, fault.code) for fault in played.game.faults] == [("claimant", "around.tokens")]


def test_a_token_that_another_seed_chose_is_challenged_at_its_tail() -> None:
    """Its tokens differ, but they are those that its tails committed."""
    run = honest(JOBS[1])
    claim = next(
        each
        for each in (sampled_otherwise(JOBS[1], seed=seed) for seed in range(20, 30))
        if each.root != run.root
    )
    found = aimed(claim, run)
    assert found is not None
    assert (found.kind, found.unit) == ("unit", run.n_layers + 1)
