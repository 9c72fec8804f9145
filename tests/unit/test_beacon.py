"""The beacon's hash chain: every value leads to the anchor, none to another epoch."""

import pytest

from aos.core.beacon import MAX_LENGTH, beacon_anchor, beacon_at, epoch_of, verify_beacon
from aos.core.encoding import tagged_hash
from aos.errors import AOSError

SEED = bytes(range(32))
N = 50
ANCHOR = beacon_anchor(SEED, N)


def test_every_epoch_leads_to_the_anchor_and_to_no_other_epoch() -> None:
    values = [beacon_at(SEED, N, e) for e in range(N)]
    assert len({ANCHOR, *values}) == N + 1
    assert values[-1] == tagged_hash("beacon-seed", SEED)
    assert tagged_hash("beacon", values[0]) == ANCHOR
    for epoch, value in enumerate(values):
        assert verify_beacon(ANCHOR, epoch, value) == value
        for other in (epoch - 1, epoch + 1):
            with pytest.raises(AOSError):
                verify_beacon(ANCHOR, other, value)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: verify_beacon(ANCHOR, 0, bytes(32)), "beacon.mismatch"),
        (lambda: verify_beacon(ANCHOR, 0, ANCHOR), "beacon.mismatch"),
        (lambda: verify_beacon(bytes(32), 0, beacon_at(SEED, N, 0)), "beacon.mismatch"),
        (lambda: verify_beacon(ANCHOR, 0, bytes(31)), "beacon.value"),
        (lambda: verify_beacon(ANCHOR[:16], 0, bytes(32)), "beacon.value"),
        (lambda: verify_beacon(ANCHOR, -1, bytes(32)), "beacon.epoch"),
        (lambda: verify_beacon(ANCHOR, MAX_LENGTH, bytes(32)), "beacon.epoch"),
        (lambda: beacon_at(SEED, N, N), "beacon.exhausted"),
        (lambda: beacon_at(SEED, N, -1), "beacon.exhausted"),
        (lambda: beacon_anchor(SEED, 0), "beacon.length"),
        (lambda: beacon_anchor(SEED, MAX_LENGTH + 1), "beacon.length"),
        (lambda: beacon_anchor(b"short", 5), "beacon.seed"),
        (lambda: epoch_of(5, 0, 0), "beacon.epoch_length"),
        (lambda: epoch_of(9, 10, 5), "beacon.before_genesis"),
    ],
)
def test_refusals(call: object, code: str) -> None:
    with pytest.raises(AOSError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.code == code


def test_epochs_are_half_open() -> None:
    assert [epoch_of(t, 1000, 60) for t in (1000, 1059, 1060, 1119, 1120)] == [0, 0, 1, 1, 2]
