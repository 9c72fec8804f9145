"""What the registries cost, on a real node under Prague's rules (pyrevm reads low)."""

from __future__ import annotations

from pathlib import Path

import pytest
from evm import ACCOUNTS, ETHER, Node, deploy
from gas import check_gas
from test_model_registry_contract import as_arguments

from aos.engine import read_manifest

OWNER, ALICE, BOB, *_ = ACCOUNTS
REGISTRATION = 130_000


def test_the_registry_of_operators(node: Node) -> None:
    registry = deploy(node, "OperatorRegistry", 10**6, ETHER, 86_400)
    court = deploy(node, "CourtDouble")
    creation = node.transact(OWNER, None, registry.contract.creation(10**6, ETHER, 86_400))
    check_gas("OperatorRegistry.deploy", creation.gas)
    registry.send(OWNER, "setCourt", court.address)
    calls: list[tuple[str, str, tuple[object, ...], int]] = [
        ("deposit", ALICE, (b"\x11" * 32,), ETHER),
        ("registerOperator", OWNER, (ALICE, 333_333, 666_666), 0),
        ("updateOperatorRange", OWNER, (ALICE, 333_334, 666_667), 0),
        ("anchor", OWNER, (b"\x22" * 32, 2**40), 0),
    ]
    for function, who, args, value in calls:
        limit = REGISTRATION if function == "registerOperator" else None
        check_gas(
            f"OperatorRegistry.{function}", registry.send(who, function, *args, value=value).gas, limit=limit
        )

    def judge(function: str, *args: object) -> int:
        return court.send(OWNER, "act", registry.address, registry.contract.call(function, *args)).gas

    check_gas("OperatorRegistry.lock", judge("lock", ALICE))
    check_gas("OperatorRegistry.unlock", judge("unlock", ALICE))
    judge("lock", ALICE)
    check_gas("OperatorRegistry.slash", judge("slash", ALICE, BOB, ETHER // 2, b"\x47" * 32))
    check_gas("OperatorRegistry.withdraw", registry.send(BOB, "withdraw", BOB).gas)
    check_gas("OperatorRegistry.requestExit", registry.send(ALICE, "requestExit").gas)


def test_the_registry_of_models(node: Node, repository: Path) -> None:
    models = deploy(node, "ModelRegistry")
    manifest = as_arguments(read_manifest(repository / "models/aos-demo.Q8_0.gguf"))
    check_gas("ModelRegistry.register", models.send(ALICE, "register", manifest, "").gas)


def test_growth_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AOS_UPDATE_GAS", raising=False)
    monkeypatch.setattr("gas.SNAPSHOT", Path(__file__).parent / "no-such-file.json")
    with pytest.raises(FileNotFoundError):
        check_gas("anything", 1)
    monkeypatch.undo()
    monkeypatch.delenv("AOS_UPDATE_GAS", raising=False)
    with pytest.raises(AssertionError, match="is not in"):
        check_gas("nothing.like.it", 1)
    with pytest.raises(AssertionError, match="are allowed"):
        check_gas("OperatorRegistry.registerOperator", 130_001, limit=130_000)
    with pytest.raises(AssertionError, match="it took"):
        check_gas("OperatorRegistry.registerOperator", 120_000)
