"""Thresholds in integers, public filling of seats, seat order, ranges."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.core.encoding import tagged_hash
from aos.core.sortition import (
    OperatorRange,
    fill_seats,
    is_selected,
    seat_order,
    threshold,
    validate_ranges,
    widening_percent,
)
from aos.errors import AOSError, InvalidMessage, RuleViolation

SEED = bytes(range(64))
M = 10**6


def node(n: int) -> str:
    return f"0x{n:040x}"


@pytest.mark.parametrize(
    ("tag", "position", "percent"),
    [
        ("", "", 0), ("", "before", 0), ("", "after", 0),
        ("suspicion", "", 3), ("suspicion", "before", 3), ("suspicion", "after", 3),
        ("malicious", "", 0), ("malicious", "before", 10), ("malicious", "after", 3),
    ],
)  # fmt: skip
def test_widening_table(tag: str, position: str, percent: int) -> None:
    assert widening_percent(tag, position) == percent


@pytest.mark.parametrize(("tag", "position"), [("evil", ""), ("", "during"), ("Suspicion", "")])
def test_unknown_tags_are_refused(tag: str, position: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        widening_percent(tag, position)
    assert caught.value.code == "sortition.tag"


@pytest.mark.parametrize(
    ("width", "max_range", "percent", "expected"),
    [
        (1000, M, 0, 1000),
        (1000, M, 3, 2000),  # never worth more than one's own width
        (300_000, M, 3, 360_000),
        (300_000, M, 10, 500_000),
        (900_000, M, 10, M),  # capped
        (0, M, 10, 0),
        (M, M, 0, M),
        (7, 99, 3, 7 + 4),  # floor(99*3/100) = 2, twice
        (1, 1, 100, 1),
    ],
)
def test_threshold(width: int, max_range: int, percent: int, expected: int) -> None:
    assert threshold(width, max_range, percent) == expected


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((-1, M, 0), "sortition.width"),
        ((M + 1, M, 0), "sortition.width"),
        ((0, 0, 0), "sortition.max_range"),
        ((1, 2**53, 0), "sortition.max_range"),
        ((1, M, -1), "sortition.percent"),
        ((1, M, 101), "sortition.percent"),
    ],
)
def test_threshold_refuses(arguments: tuple[int, int, int], code: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        threshold(*arguments)
    assert caught.value.code == code


def test_selection_is_exact_at_the_boundary() -> None:
    # T/M = 1/4 exactly: the first beta not selected is 2^510.
    edge = 1 << 510
    assert is_selected((edge - 1).to_bytes(64, "big"), M // 4, M)
    assert not is_selected(edge.to_bytes(64, "big"), M // 4, M)
    # A third is no binary fraction: floating point cannot tell these two apart.
    edge = (1 << 512) // 3
    assert is_selected(edge.to_bytes(64, "big"), 1, 3)
    assert not is_selected((edge + 1).to_bytes(64, "big"), 1, 3)
    assert float(edge) == float(edge + 1)


def test_nobody_is_selected_at_zero_and_everybody_at_the_full_range() -> None:
    assert not is_selected(bytes(64), 0, M)
    assert is_selected(b"\xff" * 64, M, M)


@given(st.binary(min_size=64, max_size=64), st.integers(1, M), st.data())
def test_selection_equals_the_fraction(beta: bytes, max_range: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(0, max_range))
    expected = Fraction(int.from_bytes(beta, "big"), 2**512) < Fraction(t, max_range)
    assert is_selected(beta, t, max_range) == expected


@pytest.mark.parametrize(
    ("beta", "t", "code"),
    [
        (bytes(32), 1, "sortition.beta_length"),
        (bytes(65), 1, "sortition.beta_length"),
        (bytes(64), -1, "sortition.threshold"),
        (bytes(64), M + 1, "sortition.threshold"),
    ],
)
def test_selection_refuses(beta: bytes, t: int, code: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        is_selected(beta, t, M)
    assert caught.value.code == code


CANDIDATES = [(node(1), 100), (node(2), 300), (node(3), 0), (node(4), 600)]


def test_filling_follows_the_formula_of_the_specification() -> None:
    expected: list[str] = []
    n = 0
    while len(expected) < 3:
        digest = tagged_hash("seat", SEED, (7).to_bytes(4, "big"), n.to_bytes(4, "big"))
        r, n = int.from_bytes(digest, "big") % 1000, n + 1
        hit = node(1) if r < 100 else node(2) if r < 400 else node(4)
        if hit not in expected:
            expected.append(hit)
    assert fill_seats(SEED, 7, CANDIDATES, (), 3) == expected


def test_the_excluded_are_passed_over_without_moving_the_others() -> None:
    full = fill_seats(SEED, 1, CANDIDATES, (), 3)
    for gone in full:
        assert fill_seats(SEED, 1, CANDIDATES, {gone}, 2) == [name for name in full if name != gone]


def test_no_candidates_none_wanted_one_candidate() -> None:
    assert fill_seats(SEED, 1, [], (), 5) == []
    assert fill_seats(SEED, 1, CANDIDATES, (), 0) == []
    assert fill_seats(SEED, 1, [(node(1), 5)], (), 3) == [node(1)]
    assert fill_seats(SEED, 1, [(node(1), 5)], {node(1)}, 3) == []
    assert fill_seats(SEED, 1, CANDIDATES, {name for name, _ in CANDIDATES}, 3) == []


def test_who_is_never_hit_follows_in_snapshot_order() -> None:
    # Without width nobody is ever hit; the rest still sits, last and in order.
    assert fill_seats(SEED, 1, [(node(9), 0), (node(8), 0)], (), 2) == [node(9), node(8)]
    assert fill_seats(SEED, 1, CANDIDATES, (), 4)[-1] == node(3)
    # One in 10^15 is not hit within the bounded tries; it follows too.
    rare = [(node(5), 10**15), (node(6), 1)]
    assert fill_seats(SEED, 1, rare, (), 2) == [node(5), node(6)]


def test_attempt_and_seed_change_the_choice() -> None:
    many = [(node(i), 10) for i in range(1, 30)]
    first = fill_seats(SEED, 1, many, (), 5)
    assert fill_seats(SEED, 2, many, (), 5) != first
    assert fill_seats(bytes(64), 1, many, (), 5) != first
    assert fill_seats(SEED, 1, many, (), 5) == first


def test_filling_is_in_proportion_to_width() -> None:
    hits = Counter(fill_seats(SEED, attempt, CANDIDATES, (), 1)[0] for attempt in range(2000))
    # Five standard deviations around the expectation; the draw is fixed, so this never flickers.
    assert abs(hits[node(1)] - 200) < 68
    assert abs(hits[node(4)] - 1200) < 110
    assert hits[node(3)] == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((SEED[:32], 1, CANDIDATES, (), 1), "sortition.draw_seed"),
        ((SEED, -1, CANDIDATES, (), 1), "sortition.attempt"),
        ((SEED, 2**32, CANDIDATES, (), 1), "sortition.attempt"),
        ((SEED, 1, [*CANDIDATES, (node(1), 4)], (), 1), "sortition.duplicate_operator"),
        ((SEED, 1, [(node(1), -1)], (), 1), "sortition.width"),
        ((SEED, 1, CANDIDATES, (), -1), "sortition.seats"),
    ],
)
def test_filling_refuses(arguments: tuple, code: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidMessage) as caught:
        fill_seats(*arguments)
    assert caught.value.code == code


def test_seat_order_is_by_hash_and_does_not_depend_on_the_order_given() -> None:
    names = [node(i) for i in range(1, 9)]
    order = seat_order(SEED, 3, names)
    assert seat_order(SEED, 3, names[::-1]) == order
    assert order == sorted(
        names,
        key=lambda x: tagged_hash("seat-order", SEED, (3).to_bytes(4, "big"), bytes.fromhex(x[2:])),
    )
    assert seat_order(SEED, 4, names) != order
    assert seat_order(SEED, 3, []) == []
    for bad, code in (([node(1), node(1)], "sortition.duplicate_operator"), (["0x1"], "address.format")):
        with pytest.raises(AOSError) as caught:
            seat_order(SEED, 3, bad)
        assert caught.value.code == code


def spans(*pairs: tuple[int, int]) -> list[OperatorRange]:
    return [OperatorRange(node_id=node(i), start=a, end=b) for i, (a, b) in enumerate(pairs, 1)]


def test_touching_ranges_gaps_and_an_empty_registry_are_valid() -> None:
    validate_ranges([], M)
    validate_ranges(spans((0, M)), M)
    validate_ranges(spans((500, 700), (0, 500), (900, M)), M)
    assert spans((2, 5))[0].width == 3


@pytest.mark.parametrize(
    ("ranges", "code"),
    [
        (spans((5, 5)), "sortition.range_empty"),
        (spans((6, 5)), "sortition.range_empty"),
        (spans((-1, 5)), "sortition.range_bounds"),
        (spans((0, M + 1)), "sortition.range_bounds"),
        (spans((0, 5), (4, 6)), "sortition.range_overlap"),
        (spans((10, 20), (0, 100)), "sortition.range_overlap"),
        (spans((0, 5), (0, 5)), "sortition.range_overlap"),
        (spans((0, 5)) + spans((6, 8)), "sortition.duplicate_operator"),
    ],
)
def test_bad_ranges_are_refused(ranges: list[OperatorRange], code: str) -> None:
    with pytest.raises(RuleViolation) as caught:
        validate_ranges(ranges, M)
    assert caught.value.code == code
