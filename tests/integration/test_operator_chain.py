"""An operator's own account: staking and leaving by its commands, killed and run again; its range against the contract."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from chain_node import rich_key, settle
from evm import ACCOUNTS, ETHER, Deployed, Node, deploy

from aos.adapters.embedded.anvil import CHAIN_ID
from aos.adapters.keystore import new_key
from aos.cli.chain import ether, wei
from aos.core.beacon import BLOCK_LAG_MS, block_time
from aos.core.statements import SnapshotEntry
from aos.core.vrf import ecvrf_public_key
from aos.errors import ConfigError, InvalidMessage, RuleViolation, VerificationError
from aos.operator.chain import OperatorAccount, account

OWNER = ACCOUNTS[0]
DELAY = 3_600


@dataclass(frozen=True, kw_only=True)
class Place:
    """An operator's configuration, over a contract that it knows."""

    path: Path
    node_id: str
    vrf_key: bytes
    contract: Deployed

    @property
    def node(self) -> Node:
        assert isinstance(self.contract.evm, Node)
        return self.contract.evm

    def aos(self, *arguments: str) -> tuple[int, Any]:
        """``aos operator …`` as a person runs it, with --json."""
        done = subprocess.run(
            [sys.executable, "-m", "aos.cli.main", "operator", *arguments, "-c", str(self.path), "--json"],
            env={name: value for name, value in os.environ.items() if not name.startswith("AOS_")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, json.loads(done.stdout)


@pytest.fixture
def place(tmp_path: Path, pg_url: str, steady_anvil: Node) -> Place:
    contract = deploy(steady_anvil, "OperatorRegistry", 1_000_000, ETHER, DELAY)
    settle(steady_anvil)
    key, address = rich_key(steady_anvil)
    vrf = new_key()
    path = tmp_path / "config-operator.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "db": {"pg_db_url": pg_url},
                "net": {"dispatcher_url": "127.0.0.1:1"},
                "node": {
                    "node_id": address,
                    "signer_key": key.hex(),
                    "vrf_key": vrf.hex(),
                    "dispatcher_address": OWNER,
                },
                "network": {"development": "true"},
                "chain": {
                    "chain_rpc_url": steady_anvil.url,
                    "chain_id": CHAIN_ID,
                    "vrf_range_contract": contract.address,
                },
            }
        )
    )
    return Place(path=path, node_id=address, vrf_key=ecvrf_public_key(vrf), contract=contract)


def test_staking_twice_deposits_once(place: Place) -> None:
    code, answer = place.aos("stake", "1.5", "--yes")
    assert (code, answer["result"]["stake_ether"]) == (0, "1.5")
    assert place.contract.read("operatorInfo", place.node_id)[:2] == (ETHER * 3 // 2, place.vrf_key)
    assert place.aos("stake", "1.5", "--yes")[0] == 0
    assert place.aos("stake", "1", "--yes")[0] == 0  # it is more already
    assert place.contract.read("operatorInfo", place.node_id)[0] == ETHER * 3 // 2
    code, answer = place.aos("stake", "2", "--yes")
    assert answer["result"]["stake_ether"] == "2"
    assert place.node.balance(place.contract.address) == 2 * ETHER


def test_nothing_is_done_unasked(place: Place) -> None:
    code, answer = place.aos("stake", "1")
    assert (code, answer["error"]["code"]) == (30, "cli.confirm")
    assert place.node.balance(place.contract.address) == 0
    code, answer = place.aos("stake", "1e3", "--yes")
    assert (code, answer["error"]["code"]) == (2, "cli.amount")
    code, answer = place.aos("exit", "--yes")
    assert (code, answer["error"]["code"]) == (1, "chain.nothing")
    code, answer = place.aos("stake", "1000", "--yes")
    assert (code, answer["error"]["code"]) == (1, "chain.failed")
    assert "nsufficient funds" in answer["error"]["message"]


def test_amounts_are_exact() -> None:
    for text, amount in (
        ("1", ETHER),
        ("0.25", ETHER // 4),
        ("0.000000000000000001", 1),
        ("999999999", 999999999 * ETHER),
    ):
        assert wei(text) == amount
        assert ether(amount) == text
    for text in (
        "",
        "0",
        "0.0",
        "-1",
        "1e3",
        "1,5",
        "0x1",
        "01",
        ".5",
        "1.",
        "1.0000000000000000001",
        "nan",
        "1 ",
    ):
        with pytest.raises(InvalidMessage):
            wei(text)


@pytest.fixture
async def mine(place: Place) -> AsyncIterator[OperatorAccount]:
    async with account(place.path) as opened:
        yield opened


async def test_leaving_step_by_step(place: Place, mine: OperatorAccount) -> None:
    node = place.node
    await mine.stake_to(2 * ETHER)
    place.contract.send(OWNER, "registerOperator", place.node_id, 0, 10)
    settle(node)
    standing = await mine.standing()
    assert (standing.registered, standing.range, standing.final) == (True, (0, 10), True)
    standing = await mine.leave()
    assert (standing.registered, standing.stake) == (False, 2 * ETHER)
    assert standing.exit_at > node.now()
    with pytest.raises(RuleViolation) as refusal:
        await mine.stake_to(3 * ETHER)
    assert refusal.value.code == "chain.leaving"
    assert (await mine.leave()).exit_at == standing.exit_at  # not due yet: nothing happens


async def test_after_the_delay_the_stake_comes_back(place: Place) -> None:
    node = place.node
    short = deploy(node, "OperatorRegistry", 1_000_000, ETHER, 1)
    settle(node)
    content = yaml.safe_load(place.path.read_text())
    content["chain"]["vrf_range_contract"] = short.address
    place.path.write_text(yaml.safe_dump(content))
    before = node.balance(place.node_id)
    async with account(place.path) as mine:
        await mine.stake_to(2 * ETHER)
        while (await mine.leave()).stake:
            await asyncio.sleep(0.2)  # its second has to pass on the chain
            settle(node)
        with pytest.raises(RuleViolation) as refusal:
            await mine.leave()
        assert refusal.value.code == "chain.nothing"
    assert node.balance(short.address) == 0
    assert before - node.balance(place.node_id) < ETHER // 100  # fees


async def test_who_is_owed_withdraws(place: Place, mine: OperatorAccount) -> None:
    node = place.node
    court, liar = deploy(node, "CourtDouble"), ACCOUNTS[1]
    place.contract.send(OWNER, "setCourt", court.address)
    place.contract.send(liar, "deposit", b"\x11" * 32, value=ETHER)
    for call in ("lock", liar), ("slash", liar, place.node_id, ETHER, b"\x47" * 32):
        court.send(OWNER, "act", place.contract.address, place.contract.contract.call(*call))
    assert (await mine.standing()).owed == ETHER // 2
    before = node.balance(place.node_id)
    assert (await mine.leave()).owed == 0
    assert node.balance(place.node_id) > before + ETHER // 2 - 10**16


async def test_another_vrf_key_is_not_sent(place: Place) -> None:
    place.contract.send(place.node_id, "deposit", b"\x22" * 32, value=1)
    settle(place.node)
    async with account(place.path) as mine:
        with pytest.raises(RuleViolation) as refusal:
            await mine.stake_to(ETHER)
    assert refusal.value.code == "chain.key"


async def test_a_range_that_is_not_the_contracts_is_refused(place: Place, mine: OperatorAccount) -> None:
    await mine.stake_to(ETHER)
    place.contract.send(OWNER, "registerOperator", place.node_id, 0, 500_000)
    settle(place.node)
    entry = SnapshotEntry(
        node_id=place.node_id,
        node=2,
        vrf_key=place.vrf_key,
        start=0,
        end=500_000,
        stake=1,
        job_types=("opml",),
        models=(b"\x01" * 32,),
        since_epoch=0,
    )
    await mine.check_range(entry, 600_000)
    for start, end in ((0, 1_000_000), (0, 499_999), (1, 500_000)):
        with pytest.raises(VerificationError) as refusal:
            await mine.check_range(replace(entry, start=start, end=end), 600_000)
        assert refusal.value.code == "chain.range"
    # A change on the chain: the snapshot may be behind it for two epochs, and not for longer.
    place.contract.send(OWNER, "updateOperatorRange", place.node_id, 500_000, 600_000)
    settle(place.node)
    assert mine._looked is not None
    mine._looked = (mine._looked[0] - 60, mine._looked[1])
    await mine.check_range(entry, 600_000)
    await mine.check_range(replace(entry, start=500_000, end=600_000), 600_000)
    with pytest.raises(VerificationError):
        await mine.check_range(entry, 0)


async def test_the_epochs_block_is_the_same_for_everybody(place: Place, mine: OperatorAccount) -> None:
    genesis_ms = place.node.now() * 1_000
    assert block_time(0, genesis_ms, 1_000) == (genesis_ms - BLOCK_LAG_MS) // 1_000
    assert block_time(0, genesis_ms + 1, 1_000) == (genesis_ms - BLOCK_LAG_MS) // 1_000 + 1
    found = await mine.block_hash(block_time(0, genesis_ms, 1_000))
    assert place.node.ask("eth_getBlockByHash", "0x" + found.hex(), False) is not None


async def test_without_a_chain_there_is_nothing_to_stake_on(place: Place) -> None:
    content = yaml.safe_load(place.path.read_text())
    del content["chain"]
    place.path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as refusal:
        async with account(place.path):
            await asyncio.sleep(0)
    assert refusal.value.code == "chain.none"
