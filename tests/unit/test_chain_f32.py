"""contracts/src/F32.sol gives the reference arithmetic's bits (scripts/check_f32.py runs a million cases of each)."""

import pytest
from f32_cases import OPERATIONS, differences


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_bit_is_that_of_the_reference(name: str) -> None:
    found = differences(name, 4_000, seed=7)
    assert found.cases >= 4_000
    assert found.differ == []
