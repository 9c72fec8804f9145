"""`aos chain deploy` on a real node: registries and court, once, whatever kills it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chain_node import connect, settle
from evm import ETHER, Deployed, Node
from peers.engine_case import secret, write_config

from aos.adapters.chain.contracts import contract
from aos.adapters.chain.court import STEP_NAMES, CourtContract
from aos.adapters.chain.node import ChainNode
from aos.adapters.embedded.anvil import CHAIN_ID
from aos.core.signing import address_of
from aos.dispatcher.chain_setup import CourtParameters, chain_status, deploy_contracts
from aos.errors import ConfigError, RuleViolation

OWNER = address_of(secret("signer.key"))
DAYS = 86_400
COURT = CourtParameters(bond=ETHER // 50, slash=ETHER // 2, grace_s=60, budget_s=3_600)


@pytest.fixture
def funded(steady_anvil: Node) -> Iterator[Node]:
    steady_anvil.ask("anvil_setBalance", OWNER, hex(1_000 * ETHER))
    return steady_anvil


@pytest.fixture
def config(tmp_path: Path, pg_url: str, funded: Node) -> Path:
    return write_config(tmp_path, pg_url, chain={"rpc_url": funded.url, "chain_id": CHAIN_ID})


async def deployed(config: Path, node: Node, **changes: Any) -> dict[str, Any]:
    """With blocks that come."""
    options: dict[str, Any] = {"min_stake": ETHER, "exit_delay_s": 14 * DAYS, "court": COURT} | changes
    work = asyncio.create_task(deploy_contracts(config, **options))
    while not work.done():
        await asyncio.to_thread(settle, node)
        await asyncio.sleep(0.05)
    return work.result()


async def test_everything_is_deployed_once_and_a_registry_has_one_court(
    config: Path, funded: Node, pg_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sends = ChainNode.send
    died = 0

    async def dies(self: ChainNode, raw: bytes) -> None:
        """Every other transaction is the last thing that the process does, before or after it is out."""
        nonlocal died
        if died % 4 == 2:
            await sends(self, raw)
        died += 1
        if died % 2:
            raise asyncio.CancelledError
        await sends(self, raw)

    monkeypatch.setattr(ChainNode, "send", dies)
    before = int(funded.ask("eth_getTransactionCount", OWNER, "latest"), 16)
    for _ in range(40):
        try:
            done = await deployed(config, funded)
            break
        except asyncio.CancelledError:
            continue
    monkeypatch.undo()
    assert died > 8
    count = int(funded.ask("eth_getTransactionCount", OWNER, "latest"), 16)
    assert count - before == 2 + len(STEP_NAMES) + 3
    assert await deployed(config, funded) == done
    assert int(funded.ask("eth_getTransactionCount", OWNER, "latest"), 16) == count

    registry = Deployed(funded, contract("OperatorRegistry"), done["operator_registry"])
    assert registry.read("court").lower() == done["court"]
    node = connect(funded.url)
    try:
        facts = await CourtContract(node, done["court"]).facts(await node.block("finalized"))
    finally:
        await node.close()
    assert (facts.registry, facts.models) == (done["operator_registry"], done["model_registry"])
    assert (facts.bond, facts.slash, facts.grace_s, facts.budget_s) == (ETHER // 50, ETHER // 2, 60, 3_600)

    with pytest.raises(RuleViolation) as refusal:
        await deployed(config, funded, court=CourtParameters(bond=1, slash=1, grace_s=1, budget_s=1))
    assert refusal.value.code == "chain.court_set"
    assert int(funded.ask("eth_getTransactionCount", OWNER, "latest"), 16) == count

    write_config(
        config.parent,
        pg_url,
        chain={"rpc_url": funded.url, "chain_id": CHAIN_ID, "operator_registry": done["operator_registry"]},
    )
    status = await chain_status(config)
    assert status["court"] == {
        "address": done["court"],
        "model_registry": done["model_registry"],
        "bond_ether": "0.02",
        "slash_ether": "0.5",
        "grace_s": 60,
        "budget_s": 3_600,
    }
    assert status["transactions"] == []


@pytest.mark.parametrize("exit_delay_s", [COURT.game_s, 7 * DAYS], ids=["game", "claim"])
async def test_a_stake_must_stay_longer_than_a_game_and_a_claim(
    config: Path, funded: Node, exit_delay_s: int
) -> None:
    with pytest.raises(ConfigError) as refusal:
        await deployed(config, funded, exit_delay_s=exit_delay_s)
    assert refusal.value.code == "chain.exit_delay"


async def test_who_cannot_pay_is_told_and_goes_on_when_it_can(config: Path, funded: Node) -> None:
    funded.ask("anvil_setBalance", OWNER, hex(ETHER // 1_000_000))
    with pytest.raises(RuleViolation) as refusal:
        await deployed(config, funded)
    assert refusal.value.code == "chain.failed"
    assert "insufficient funds" in refusal.value.message
    funded.ask("anvil_setBalance", OWNER, hex(1_000 * ETHER))
    assert (await deployed(config, funded))["court"]
