"""A slice of the SIMULATED disputes (scripts/simulate_disputes.py plays 10,000): no honest party is ever convicted, and
no lie goes through."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from dispute_simulation import CHALLENGER_TRICKS, CLAIMANT_TRICKS, play_job, play_one

GAMES = int(os.environ.get("AOS_DISPUTES", "240"))
"""More by hand: AOS_DISPUTES=10000."""


def test_the_honest_side_always_wins_and_no_honest_party_ever_loses() -> None:
    ends: Counter[str] = Counter()
    tried: set[str] = set()
    for number in range(GAMES):
        outcome = play_one(number)
        ends[f"{outcome.role} {outcome.verdict}"] += 1
        tried.add(outcome.trick)
    assert ends["liar proven"] > GAMES // 3
    assert ends["sham proven"] > GAMES // 5
    assert ends["liar defaulted"] > 0
    assert ends["sham defaulted"] > 0
    assert len(tried) >= 0.9 * len({*CLAIMANT_TRICKS, *CHALLENGER_TRICKS})


@pytest.mark.parametrize("start", range(0, 24, 8))
def test_the_honest_root_is_the_jobs_result_whatever_two_liars_and_their_shams_do(start: int) -> None:
    for number in range(start, start + 8):
        assert play_job(number).count("stands") == 1
