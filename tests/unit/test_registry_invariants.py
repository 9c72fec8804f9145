"""OperatorRegistry under random calls of everybody: what a model of it in Python says, and money that never comes from nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from evm import ACCOUNTS, ETHER, Deployed, Reverted, Revm, deploy

OWNER, *OTHERS = ACCOUNTS
MAX_RANGE = 1_000
DELAY = 1_000
KEY = b"\x07" * 32
STEPS = 400


@dataclass
class Op:
    stake: int = 0
    locks: int = 0
    exit_at: int = 0
    held: tuple[int, int] | None = None
    known: bool = False


@dataclass
class Model:
    """The registry's rules once more, in a few lines."""

    ops: dict[str, Op] = field(default_factory=lambda: {who: Op() for who in OTHERS})
    owed: dict[str, int] = field(default_factory=dict)
    burnt: int = 0
    paid_in: int = 0
    paid_out: int = 0

    def deposit(self, who: str, amount: int) -> bool:
        op = self.ops[who]
        if amount == 0 or op.exit_at:
            return False
        op.known, op.stake = True, op.stake + amount
        self.paid_in += amount
        return True

    def register(self, who: str, start: int, end: int) -> bool:
        op = self.ops[who]
        if op.held or op.exit_at or op.stake < ETHER or not start < end <= MAX_RANGE:
            return False
        op.held = (start, end)
        return True

    def request_exit(self, who: str, now: int) -> bool:
        op = self.ops[who]
        if not op.known or op.exit_at:
            return False
        op.exit_at, op.held = now + DELAY, None
        return True

    def exit(self, who: str, now: int) -> bool:
        op = self.ops[who]
        if not op.exit_at or now < op.exit_at or op.locks:
            return False
        self.owed[who] = self.owed.get(who, 0) + op.stake
        self.ops[who] = Op()
        return True

    def withdraw(self, who: str) -> bool:
        if not self.owed.get(who):
            return False
        self.paid_out += self.owed.pop(who)
        return True

    def lock(self, who: str, now: int) -> bool:
        op = self.ops[who]
        if not op.stake or (op.exit_at and now >= op.exit_at):
            return False
        op.locks += 1
        return True

    def unlock(self, who: str) -> bool:
        if not self.ops[who].locks:
            return False
        self.ops[who].locks -= 1
        return True

    def slash(self, who: str, challenger: str, amount: int) -> bool:
        op = self.ops[who]
        if not op.locks:
            return False
        op.locks -= 1
        amount = min(amount, op.stake)
        op.stake -= amount
        self.owed[challenger] = self.owed.get(challenger, 0) + amount // 2
        self.burnt += amount - amount // 2
        op.held = None
        return True


def compare(registry: Deployed, model: Model) -> None:
    for who, op in model.ops.items():
        stake, key, exit_at, locks, registered = registry.read("operatorInfo", who)
        assert (stake, exit_at, locks) == (op.stake, op.exit_at, op.locks)
        assert registered == (op.held is not None)
        assert key == (KEY if op.known else bytes(32))
        assert registry.read("operatorRanges", who) == (op.held or (0, 0))
        assert registry.read("owed", who) == model.owed.get(who, 0)
    members = {who for who, op in model.ops.items() if op.held}
    assert registry.read("getNumOperators") == len(members)
    assert {registry.read("operators", index) for index in range(len(members))} == members
    for value in (0, 1, 499, 500, MAX_RANGE - 1, MAX_RANGE):
        found = list(registry.read("getOperatorsInRange", value))
        assert len(found) == len(set(found))
        assert set(found) == {
            who for who, op in model.ops.items() if op.held and op.held[0] <= value < op.held[1]
        }
    # Money: what lies here is what is staked, owed or burnt; none of it came from nothing.
    assert registry.read("burnt") == model.burnt
    balance = registry.evm.balance(registry.address)
    staked = sum(op.stake for op in model.ops.values())
    assert balance == staked + sum(model.owed.values()) + model.burnt
    assert balance == model.paid_in - model.paid_out


@pytest.mark.parametrize("seed", range(6))
def test_random_calls(revm: Revm, seed: int) -> None:
    rng = random.Random(seed)
    registry = deploy(revm, "OperatorRegistry", MAX_RANGE, ETHER, DELAY)
    court = deploy(revm, "CourtDouble")
    registry.send(OWNER, "setCourt", court.address)
    model = Model()
    counts = {True: 0, False: 0}

    def judge(function: str, *args: object) -> None:
        court.send(OWNER, "act", registry.address, registry.contract.call(function, *args))

    def step() -> tuple[Callable[[], bool], Callable[[], object]]:
        who, other = rng.choice(OTHERS), rng.choice(OTHERS)
        amount = rng.choice([0, 1, ETHER // 2, ETHER, 3 * ETHER + 1])
        start, end = rng.choice([(0, 500), (500, 1_000), (3, 3), (0, 1_001), (999, 1_000), (1, 2)])
        now = revm.now() + 1  # every transaction has a block of its own
        return rng.choice(
            [
                (
                    lambda: model.deposit(who, amount),
                    lambda: registry.send(who, "deposit", KEY, value=amount),
                ),
                (
                    lambda: model.deposit(who, amount),
                    lambda: registry.send(who, "deposit", KEY, value=amount),
                ),
                (
                    lambda: model.register(who, start, end),
                    lambda: registry.send(OWNER, "registerOperator", who, start, end),
                ),
                (lambda: model.request_exit(who, now), lambda: registry.send(who, "requestExit")),
                (lambda: model.exit(who, now), lambda: registry.send(who, "exit")),
                (lambda: model.withdraw(who), lambda: registry.send(who, "withdraw", OWNER)),
                (lambda: model.lock(who, now), lambda: judge("lock", who)),
                (lambda: model.lock(who, now), lambda: judge("lock", who)),
                (lambda: model.unlock(who), lambda: judge("unlock", who)),
                (
                    lambda: model.slash(who, other, amount),
                    lambda: judge("slash", who, other, amount, b"\x47" * 32),
                ),
            ]
        )

    for number in range(STEPS):
        expected, play = step()
        try:
            play()
            went = True
        except Reverted:
            went = False
        assert went == expected(), f"step {number}"
        counts[went] += 1
        if number % 10 == 0:
            compare(registry, model)
            revm.wait(rng.choice([0, DELAY // 3, DELAY]))
    compare(registry, model)
    assert min(counts.values()) > STEPS // 10, "too one-sided to show anything"

    # Nobody is stuck: games end, whoever wants to leave does, and everything that was not burnt comes back.
    for who, op in model.ops.items():
        for _ in range(op.locks):
            judge("unlock", who)
        if op.known and not op.exit_at:
            registry.send(who, "requestExit")
    revm.wait(DELAY)
    for who, op in model.ops.items():
        if op.known:
            registry.send(who, "exit")
        if registry.read("owed", who):
            registry.send(who, "withdraw", who)
    assert revm.balance(registry.address) == registry.read("burnt")
    assert registry.read("getNumOperators") == 0
