"""OperatorRegistry, in an EVM in this process and on a real node."""

from __future__ import annotations

import pytest
from evm import ACCOUNTS, ETHER, Deployed, Evm, Node, Reverted, Revm, deploy, names

from aos.adapters.chain.contracts import contract

OWNER, ALICE, BOB, CAROL, DAVE, STRANGER = ACCOUNTS
MAX_RANGE = 600_000
DELAY = 7 * 86_400
KEY = bytes(range(32))
GAME = b"\x47" * 32

ORIGINAL = {
    "MAX_RANGE": ("f09fbfed", [], ["uint256"]),
    "getNumOperators": ("d989a591", [], ["uint256"]),
    "getOperatorsInRange": ("784afa0c", ["uint256"], ["address[]"]),
    "operatorRanges": ("d50b1f4e", ["address"], ["uint256", "uint256"]),
    "operators": ("e28d4906", ["uint256"], ["address"]),
    "owner": ("8da5cb5b", [], ["address"]),
    "registerOperator": ("4358b54a", ["address", "uint256", "uint256"], []),
    "updateOperatorRange": ("866d204b", ["address", "uint256", "uint256"], []),
}
"""The original network's contract, all of it: selector, arguments, results."""


@pytest.fixture
def registry(evm: Evm) -> Deployed:
    return deploy(evm, "OperatorRegistry", MAX_RANGE, ETHER, DELAY)


@pytest.fixture
def court(registry: Deployed) -> Deployed:
    """Stands for the court: forwards what the test says."""
    double = deploy(registry.evm, "CourtDouble")
    registry.send(OWNER, "setCourt", double.address)
    return double


def enter(registry: Deployed, who: str, start: int, end: int, stake: int = ETHER) -> None:
    registry.send(who, "deposit", KEY, value=stake)
    registry.send(OWNER, "registerOperator", who, start, end)


def judge(registry: Deployed, court: Deployed, function: str, *args: object) -> list[str]:
    done = court.send(STRANGER, "act", registry.address, registry.contract.call(function, *args))
    return names(registry.events(done))


def court_refuses(error: str, registry: Deployed, court: Deployed, function: str, *args: object) -> None:
    with pytest.raises(Reverted) as refusal:
        court.send(STRANGER, "act", registry.address, registry.contract.call(function, *args))
    assert registry.contract.error(refusal.value.data) == error


@pytest.mark.parametrize("function", ORIGINAL)
def test_the_original_functions_keep_their_form(function: str) -> None:
    selector, inputs, outputs = ORIGINAL[function]
    (item,) = [item for item in contract("OperatorRegistry").abi if item.get("name") == function]
    assert contract("OperatorRegistry").selector(function).hex() == selector
    assert [entry["type"] for entry in item["inputs"]] == inputs
    assert [entry["type"] for entry in item["outputs"]] == outputs
    assert item["stateMutability"] == ("view" if outputs else "nonpayable")
    if function == "operatorRanges":
        assert [entry["name"] for entry in item["outputs"]] == ["start", "end"]


def test_deposit_register_read(registry: Deployed) -> None:
    done = registry.send(ALICE, "deposit", KEY, value=2 * ETHER)
    assert [(event.name, dict(event.args)) for event in registry.events(done)] == [
        (
            "StakeDeposited",
            {"operatorAddress": ALICE, "vrfKey": KEY, "amount": 2 * ETHER, "stake": 2 * ETHER},
        )
    ]
    done = registry.send(OWNER, "registerOperator", ALICE, 10, 20)
    assert [(event.name, dict(event.args)) for event in registry.events(done)] == [
        ("OperatorRegistered", {"operatorAddress": ALICE, "start": 10, "end": 20})
    ]
    assert registry.read("operatorRanges", ALICE) == (10, 20)
    assert registry.read("operatorInfo", ALICE) == (2 * ETHER, KEY, 0, 0, True)
    assert registry.read("getNumOperators") == 1
    assert registry.read("operators", 0) == ALICE
    assert registry.read("owner") == OWNER
    assert registry.read("MAX_RANGE") == MAX_RANGE


def test_ranges_are_half_open(registry: Deployed) -> None:
    """The original's were closed at both ends: a value on a boundary was two operators'."""
    enter(registry, ALICE, 0, 60_000)
    enter(registry, BOB, 60_000, MAX_RANGE)
    for value, holders in (
        (0, [ALICE]),
        (59_999, [ALICE]),
        (60_000, [BOB]),
        (MAX_RANGE - 1, [BOB]),
        (MAX_RANGE, []),
        (2**256 - 1, []),
    ):
        assert list(registry.read("getOperatorsInRange", value)) == holders, value


def test_what_a_range_may_be(registry: Deployed) -> None:
    registry.send(ALICE, "deposit", KEY, value=ETHER)
    for start, end in ((5, 5), (6, 5), (0, MAX_RANGE + 1), (MAX_RANGE, MAX_RANGE + 1), (2**128, 2**128 + 1)):
        registry.refuses("BadRange", OWNER, "registerOperator", ALICE, start, end)
    registry.send(OWNER, "registerOperator", ALICE, MAX_RANGE - 1, MAX_RANGE)
    registry.refuses("BadRange", OWNER, "updateOperatorRange", ALICE, 5, 5)
    registry.send(OWNER, "updateOperatorRange", ALICE, 5, 6)
    assert registry.read("operatorRanges", ALICE) == (5, 6)


def test_who_may_do_what(registry: Deployed) -> None:
    registry.send(ALICE, "deposit", KEY, value=ETHER)
    registry.refuses("NotOwner", ALICE, "registerOperator", ALICE, 0, 1)
    registry.refuses("NotOwner", ALICE, "updateOperatorRange", ALICE, 0, 1)
    registry.refuses("NotOwner", ALICE, "setCourt", ALICE)
    registry.refuses("NotOwner", ALICE, "anchor", GAME, 1)
    for who in (OWNER, ALICE):
        registry.refuses("NotCourt", who, "lock", ALICE)
        registry.refuses("NotCourt", who, "unlock", ALICE)
        registry.refuses("NotCourt", who, "slash", ALICE, OWNER, ETHER, GAME)


def test_the_owner_cannot_invent_operators(registry: Deployed) -> None:
    registry.refuses("StakeTooSmall", OWNER, "registerOperator", ALICE, 0, 1)
    registry.send(ALICE, "deposit", KEY, value=ETHER - 1)
    registry.refuses("StakeTooSmall", OWNER, "registerOperator", ALICE, 0, 1)
    registry.refuses("NotRegistered", OWNER, "updateOperatorRange", ALICE, 0, 1)
    registry.send(ALICE, "deposit", KEY, value=1)
    registry.send(OWNER, "registerOperator", ALICE, 0, 1)
    registry.refuses("IsRegistered", OWNER, "registerOperator", ALICE, 0, 1)


def test_the_vrf_key_stays(registry: Deployed) -> None:
    registry.refuses("NoVrfKey", ALICE, "deposit", bytes(32), value=ETHER)
    registry.refuses("NothingDeposited", ALICE, "deposit", KEY)
    registry.send(ALICE, "deposit", KEY, value=1)
    registry.refuses("VrfKeyDiffers", ALICE, "deposit", KEY[::-1], value=1)
    registry.refuses("VrfKeyDiffers", ALICE, "deposit", bytes(32), value=1)


def test_the_court_is_named_once(registry: Deployed, court: Deployed) -> None:
    registry.refuses("CourtIsSet", OWNER, "setCourt", court.address)
    fresh = deploy(registry.evm, "OperatorRegistry", MAX_RANGE, ETHER, DELAY)
    fresh.refuses("NoCourt", OWNER, "setCourt", STRANGER)


def test_leaving_takes_its_delay_and_pays(registry: Deployed) -> None:
    evm = registry.evm
    enter(registry, ALICE, 0, 10)
    enter(registry, BOB, 10, 20)
    registry.refuses("NotRegistered", CAROL, "requestExit")
    registry.refuses("NotLeaving", ALICE, "exit")
    done = registry.send(ALICE, "requestExit")
    assert names(registry.events(done)) == ["OperatorRemoved", "ExitRequested"]
    due = registry.read("operatorInfo", ALICE)[2]
    assert due - evm.now() == DELAY
    assert registry.read("operatorRanges", ALICE) == (0, 0)
    assert registry.read("operators", 0) == BOB
    assert list(registry.read("getOperatorsInRange", 5)) == []
    registry.refuses("IsLeaving", ALICE, "requestExit")
    registry.refuses("IsLeaving", ALICE, "deposit", KEY, value=ETHER)
    registry.refuses("IsLeaving", OWNER, "registerOperator", ALICE, 0, 10)
    evm.wait(DELAY // 2)
    registry.refuses(f"ExitNotDue({due})", ALICE, "exit")
    evm.wait(DELAY)
    registry.send(ALICE, "exit")
    assert registry.read("owed", ALICE) == ETHER
    assert registry.read("operatorInfo", ALICE) == (0, bytes(32), 0, 0, False)
    before = evm.balance(DAVE)
    registry.send(ALICE, "withdraw", DAVE)
    assert evm.balance(DAVE) == before + ETHER
    registry.refuses("NothingOwed", ALICE, "withdraw", DAVE)
    registry.send(ALICE, "deposit", KEY[::-1], value=ETHER)  # it may come back, with another key


def test_a_game_holds_the_stake(registry: Deployed, court: Deployed) -> None:
    evm = registry.evm
    enter(registry, ALICE, 0, 10)
    court_refuses("StakeTooSmall", registry, court, "lock", BOB)
    court_refuses("NothingLocked", registry, court, "unlock", ALICE)
    court_refuses("NothingLocked", registry, court, "slash", ALICE, BOB, ETHER, GAME)
    assert judge(registry, court, "lock", ALICE) == ["StakeLocked"]
    registry.send(ALICE, "requestExit")
    judge(registry, court, "lock", ALICE)  # claims that it signed are answered for while it leaves
    evm.wait(DELAY + 1)
    court_refuses("IsLeaving", registry, court, "lock", ALICE)  # else it could be held for ever
    registry.refuses("GamesRun(2)", ALICE, "exit")
    assert judge(registry, court, "unlock", ALICE) == ["StakeUnlocked"]
    registry.refuses("GamesRun(1)", ALICE, "exit")
    judge(registry, court, "unlock", ALICE)
    registry.send(ALICE, "exit")


def test_a_lost_game_halves_and_burns(registry: Deployed, court: Deployed) -> None:
    enter(registry, ALICE, 0, 10, stake=3 * ETHER)
    for _ in range(3):
        judge(registry, court, "lock", ALICE)
    assert judge(registry, court, "slash", ALICE, BOB, ETHER + 1, GAME) == ["OperatorRemoved", "Slashed"]
    assert registry.read("owed", BOB) == ETHER // 2
    assert registry.read("burnt") == ETHER // 2 + 1
    assert registry.read("operatorInfo", ALICE) == (2 * ETHER - 1, KEY, 0, 2, False)
    assert registry.read("operatorRanges", ALICE) == (0, 0)
    judge(registry, court, "slash", ALICE, CAROL, 100 * ETHER, GAME)  # no more than there is
    assert registry.read("owed", CAROL) == ETHER - 1
    assert registry.read("operatorInfo", ALICE)[0] == 0
    judge(registry, court, "slash", ALICE, CAROL, ETHER, GAME)  # a third game still ends
    assert registry.read("operatorInfo", ALICE) == (0, KEY, 0, 0, False)
    registry.refuses("StakeTooSmall", OWNER, "registerOperator", ALICE, 0, 10)


def test_challenging_oneself_never_pays(registry: Deployed, court: Deployed) -> None:
    enter(registry, ALICE, 0, 10)
    judge(registry, court, "lock", ALICE)
    judge(registry, court, "slash", ALICE, ALICE, ETHER, GAME)
    assert registry.read("owed", ALICE) * 2 <= ETHER


def test_a_payee_that_refuses_blocks_nobody(registry: Deployed, court: Deployed) -> None:
    evm = registry.evm
    payee = deploy(evm, "Payee", registry.address)
    payee.send(STRANGER, "behave", True, False)
    enter(registry, ALICE, 0, 10)
    judge(registry, court, "lock", ALICE)
    judge(registry, court, "slash", ALICE, payee.address, ETHER, GAME)
    withdraw = registry.contract.call("withdraw", payee.address)
    with pytest.raises(Reverted) as refusal:
        payee.send(STRANGER, "act", withdraw)
    assert registry.contract.error(refusal.value.data) == "NotPaid"
    assert (
        registry.read("owed", payee.address) == ETHER // 2
    )  # kept for it, and it may have it sent elsewhere
    before = evm.balance(DAVE)
    payee.send(STRANGER, "act", registry.contract.call("withdraw", DAVE))
    assert evm.balance(DAVE) == before + ETHER // 2


def test_a_payee_that_reaches_for_more_gets_what_it_is_owed(registry: Deployed, court: Deployed) -> None:
    evm = registry.evm
    payee = deploy(evm, "Payee", registry.address)
    payee.send(STRANGER, "act", registry.contract.call("deposit", KEY), value=ETHER)
    enter(registry, ALICE, 0, 10, stake=5 * ETHER)
    payee.send(STRANGER, "act", registry.contract.call("requestExit"))
    evm.wait(DELAY)
    payee.send(STRANGER, "act", registry.contract.call("exit"))
    payee.send(STRANGER, "behave", False, True)
    payee.send(STRANGER, "act", registry.contract.call("withdraw", payee.address))
    assert payee.read("attempts") == 1
    assert evm.balance(payee.address) == ETHER
    assert evm.balance(registry.address) == 5 * ETHER


def test_checkpoints_only_grow(registry: Deployed) -> None:
    done = registry.send(OWNER, "anchor", GAME, 7)
    assert [dict(event.args) for event in registry.events(done)] == [{"size": 7, "root": GAME}]
    assert registry.read("lastAnchor") == (GAME, 7)
    for size in (0, 6, 7):
        registry.refuses("AnchorNotLarger", OWNER, "anchor", GAME[::-1], size)


def test_parameters_that_make_no_registry(revm: Revm) -> None:
    for wrong in ((0, 1, 1), (2**53, 1, 1), (1, 0, 1), (1, 2**128, 1), (1, 1, 0), (1, 1, 2**40)):
        with pytest.raises(Reverted):
            deploy(revm, "OperatorRegistry", *wrong)


def test_money_sent_without_a_call_is_refused(registry: Deployed) -> None:
    with pytest.raises(Reverted):
        registry.evm.transact(ALICE, registry.address, b"", 5)


def test_deployed_code_is_recognised(node: Node) -> None:
    registry = deploy(node, "OperatorRegistry", MAX_RANGE, ETHER, DELAY)
    other = deploy(node, "OperatorRegistry", MAX_RANGE, 2 * ETHER, DELAY)
    for deployed in (registry, other):
        code = bytes.fromhex(node.ask("eth_getCode", deployed.address, "latest")[2:])
        assert code != deployed.contract.deployed_bytecode  # the immutable values are in it
        assert deployed.contract.is_code(code)
        assert not contract("ModelRegistry").is_code(code)
        for wrong in (b"", code[:-1], code + b"\0", bytes([code[0] ^ 1]) + code[1:]):
            assert not deployed.contract.is_code(wrong)
