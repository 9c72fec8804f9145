"""OperatorRegistry, in an EVM in this process and on a real node."""

from __future__ import annotations

import pytest
from evm import ACCOUNTS, ETHER, Deployed, Evm, deploy, names

OWNER, ALICE, BOB, CAROL, COURT_USER, STRANGER = ACCOUNTS
MAX_RANGE = 600_000
DELAY = 7 * 86_400
KEY = bytes(range(32))
GAME = b"\x47" * 32


@pytest.fixture
def registry(evm: Evm) -> Deployed:
    return deploy(evm, "OperatorRegistry", MAX_RANGE, ETHER, DELAY)


def enter(registry: Deployed, who: str, start: int, end: int, stake: int = ETHER) -> None:
    registry.send(who, "deposit", KEY, value=stake)
    registry.send(OWNER, "registerOperator", who, start, end)


def test_deposit_register_read(registry: Deployed) -> None:
    done = registry.send(ALICE, "deposit", KEY, value=2 * ETHER)
    assert [(event.name, dict(event.args)) for event in registry.events(done)] == [
        (
            "StakeDeposited",
            {"operatorAddress": ALICE, "vrfKey": KEY, "amount": 2 * ETHER, "stake": 2 * ETHER},
        )
    ]
    assert names(registry.events(registry.send(OWNER, "registerOperator", ALICE, 10, 20))) == [
        "OperatorRegistered"
    ]
    assert registry.read("operatorRanges", ALICE) == (10, 20)
    assert registry.read("operatorInfo", ALICE) == (2 * ETHER, KEY, 0, 0, True)
    assert registry.read("getNumOperators") == 1
    assert registry.read("operators", 0) == ALICE
