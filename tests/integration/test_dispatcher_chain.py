"""A dispatcher whose registry is a contract on a real node: ranges and stakes from final blocks, or no new draws."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from chain_node import settle
from evm import ETHER, Deployed, Node, deploy
from peers.engine_case import NETWORK, secret, write_config
from peers.hub_peer import MODEL, MODEL_ID, OperatorPeer

from aos.adapters.embedded.anvil import CHAIN_ID
from aos.adapters.postgres import Pool, connect_pool
from aos.core.beacon import BLOCK_LAG_MS
from aos.core.signing import address_of
from aos.core.vrf import ecvrf_public_key
from aos.dispatcher.config import load_config
from aos.dispatcher.registry import Registry
from aos.dispatcher.setup import admit_operator, found_network
from aos.errors import AOSError, ConfigError, RuleViolation, Unavailable, VerificationError

EPOCH_MS = 60_000
DISPATCHER = address_of(secret("signer.key"))
MAX_RANGE = 1_000_000


class Case:
    """A network founded over a contract; ``at(epoch)`` sets the dispatcher's clock."""

    def __init__(
        self, path: Path, pool: Pool, contract: Deployed, registry: Registry, clock: list[int]
    ) -> None:
        self.path, self.pool, self.contract, self.registry, self._clock = (
            path,
            pool,
            contract,
            registry,
            clock,
        )
        assert registry.chain is not None
        self.chain = registry.chain

    @property
    def node(self) -> Node:
        assert isinstance(self.contract.evm, Node)
        return self.contract.evm

    def at(self, epoch: int) -> None:
        self._clock[0] = self.registry.network.genesis_ms + epoch * EPOCH_MS + 1_000

    def registration(self, operator: OperatorPeer) -> object:
        return operator.registration(network=NETWORK, dispatcher=DISPATCHER, time_ms=self._clock[0]).to_json()

    async def settle(self) -> None:
        for _ in range(10):
            if not await self.chain.send():
                return
            settle(self.node)
        raise AssertionError("the transactions do not become final")

    async def entries(self, epoch: int) -> dict[str, tuple[int, int, int]]:
        """What is in force in ``epoch``; what the chain says now is then signed for the next."""
        self.at(epoch)
        snapshot = await self.registry.in_force(epoch)
        return {entry.node_id: (entry.start, entry.end, entry.stake) for entry in snapshot.entries}


def stake(contract: Deployed, operator: OperatorPeer, ether: int = 2) -> None:
    assert isinstance(contract.evm, Node)
    contract.evm.ask("anvil_setBalance", operator.node_id, hex(100 * ETHER))
    contract.send(operator.node_id, "deposit", ecvrf_public_key(operator.vrf_seed), value=ether * ETHER)
    settle(contract.evm)


Open = Callable[..., Any]


@pytest.fixture
def contract(steady_anvil: Node) -> Deployed:
    steady_anvil.ask("anvil_setBalance", DISPATCHER, hex(1_000 * ETHER))
    contract = deploy(steady_anvil, "OperatorRegistry", MAX_RANGE, ETHER, 3600, sender=DISPATCHER)
    settle(steady_anvil)
    return contract


@pytest.fixture
async def open_case(tmp_path: Path, pg_url: str, contract: Deployed) -> AsyncIterator[Open]:
    """``open_case(*genesis operators, beacon=…) -> Case``: they have staked, and the network is founded with them."""
    opened: list[tuple[Pool, Registry]] = []

    async def open_(*operators: OperatorPeer, beacon: bool = False, **changes: Any) -> Case:
        assert isinstance(contract.evm, Node)
        node = contract.evm
        chain = {"rpc_url": node.url, "chain_id": CHAIN_ID, "operator_registry": contract.address}
        settings = {"chain": chain | {"beacon": beacon}, "open_registration": True} | changes
        path = write_config(tmp_path, pg_url, **settings)
        for operator in operators:
            stake(contract, operator)
        genesis_ms = node.now() * 1_000
        mining = asyncio.create_task(keep_mining(node))
        try:
            await found_network(
                path,
                registrations=[o.registration(network=NETWORK, dispatcher=DISPATCHER) for o in operators],
                models={MODEL: MODEL_ID},
                genesis_ms=genesis_ms,
                epoch_ms=EPOCH_MS,
                project="tests",
            )
        finally:
            mining.cancel()
        config = load_config(path, environment={})
        pool = await connect_pool(config.pg_url, max_size=4)
        loaded = await Registry.load(pool, config)
        clock = [genesis_ms]
        registry = Registry(pool, config, loaded.network, wall_ms=lambda: clock[0], chain=loaded.chain)
        opened.append((pool, registry))
        return Case(path, pool, contract, registry, clock)

    yield open_
    for pool, registry in opened:
        await registry.close()
        await pool.close()


async def keep_mining(node: Node) -> None:
    while True:
        await asyncio.to_thread(settle, node)
        await asyncio.sleep(0.1)


async def test_genesis_ranges_and_stakes_are_the_contracts(open_case: Open) -> None:
    operators = [OperatorPeer(f"g{n}") for n in range(3)]
    case = await open_case(*operators)
    entries = await case.entries(0)
    assert set(entries) == {operator.node_id for operator in operators}
    for node_id, (start, end, units) in entries.items():
        assert case.contract.read("operatorRanges", node_id) == (start, end)
        assert units == 2 * 10**9  # gwei
    file = case.registry.network_file()
    assert file["chain"] == {"chain_id": CHAIN_ID, "operator_registry": case.contract.address}


async def test_without_a_stake_nobody_enters(open_case: Open) -> None:
    case = await open_case(OperatorPeer("g0"))
    late = OperatorPeer("late")
    case.at(1)
    with pytest.raises(RuleViolation) as refusal:
        await case.registry.register(case.registration(late))
    assert refusal.value.code == "registration.stake"
    assert await case.pool.fetchval("SELECT count(*) FROM operator WHERE node_id = $1", late.node_id) == 0
    stake(case.contract, late)
    assert (await case.registry.register(case.registration(late))).admitted
    assert late.node_id not in await case.entries(1)
    await case.settle()
    assert case.contract.read("operatorInfo", late.node_id)[4]
    await case.entries(2)
    assert late.node_id in await case.entries(3)


async def test_a_deposit_with_another_key_does_not_count(open_case: Open) -> None:
    case = await open_case(OperatorPeer("g0"))
    late, other = OperatorPeer("late"), OperatorPeer("other")
    case.node.ask("anvil_setBalance", late.node_id, hex(100 * ETHER))
    case.contract.send(late.node_id, "deposit", ecvrf_public_key(other.vrf_seed), value=2 * ETHER)
    settle(case.node)
    case.at(1)
    with pytest.raises(RuleViolation) as refusal:
        await case.registry.register(case.registration(late))
    assert refusal.value.code == "registration.chain_key"


async def test_who_leaves_or_is_slashed_is_out_of_the_next_snapshot(open_case: Open) -> None:
    operators = [OperatorPeer(f"g{n}") for n in range(3)]
    case = await open_case(*operators)
    court = deploy(case.node, "CourtDouble")
    case.contract.send(DISPATCHER, "setCourt", court.address)
    leaving, liar, honest = (operator.node_id for operator in operators)
    assert set(await case.entries(1)) == {leaving, liar, honest}
    case.contract.send(leaving, "requestExit")
    for call in (
        case.contract.contract.call("lock", liar),
        case.contract.contract.call("slash", liar, honest, ETHER, b"\x47" * 32),
    ):
        court.send(DISPATCHER, "act", case.contract.address, call)
    settle(case.node)
    await case.entries(2)
    assert set(await case.entries(3)) == {honest}
    # And no round of the dispatcher lets the liar in again: only a person does.
    await case.registry._give_ranges()
    await case.settle()
    assert not case.contract.read("operatorInfo", liar)[4]
    with pytest.raises(RuleViolation) as refusal:
        await case.registry.admit(leaving)
    assert refusal.value.code == "registration.leaving"
    await case.registry.admit(liar)  # it has a whole ether left
    await case.settle()
    assert case.contract.read("operatorInfo", liar)[4]


async def test_admitting_by_hand_sends_its_range(open_case: Open) -> None:
    case = await open_case(OperatorPeer("g0"), open_registration=False)
    late = OperatorPeer("late")
    case.at(1)
    assert not (await case.registry.register(case.registration(late))).admitted
    with pytest.raises(RuleViolation) as refusal:
        await admit_operator(case.path, late.node_id)
    assert refusal.value.code == "registration.stake"
    stake(case.contract, late)
    for _ in range(2):
        await admit_operator(case.path, late.node_id)
    await case.settle()
    assert case.contract.read("operatorInfo", late.node_id)[4]
    assert (
        await case.pool.fetchval(
            "SELECT count(*) FROM chain_transaction WHERE purpose LIKE $1", f"%{late.node_id}%"
        )
        == 1
    )


async def test_a_chain_that_cannot_be_read_ends_the_draws_with_the_epoch(open_case: Open) -> None:
    case = await open_case(OperatorPeer("g0"), OperatorPeer("g1"))
    assert len(await case.entries(1)) == 2  # signs epoch 2's too
    real = case.chain.view

    async def down() -> Any:
        raise Unavailable("chain.unavailable", "the node does not answer")

    case.chain.view = down
    assert len(await case.entries(2)) == 2
    case.registry._chain_trouble = None
    with pytest.raises(Unavailable) as refusal:
        await case.entries(3)
    assert refusal.value.code == "chain.unavailable"
    case.chain.view = real
    case.registry._chain_trouble = None
    assert len(await case.entries(3)) == 2


async def test_ranges_that_overlap_on_the_chain_are_not_signed(open_case: Open) -> None:
    operators = [OperatorPeer("g0"), OperatorPeer("g1")]
    case = await open_case(*operators)
    await case.entries(1)
    case.contract.send(DISPATCHER, "updateOperatorRange", operators[0].node_id, 0, MAX_RANGE)
    settle(case.node)
    await case.entries(2)
    with pytest.raises(VerificationError) as refusal:
        await case.entries(4)
    assert refusal.value.code == "draw.snapshot_range"
    case.contract.send(DISPATCHER, "updateOperatorRange", operators[0].node_id, 0, 10)
    settle(case.node)
    case.registry._chain_trouble = None
    await case.entries(4)
    assert (await case.entries(5))[operators[0].node_id][:2] == (0, 10)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"chain_id": 1}, "chain.id"),
        ({"operator_registry": "0x" + "77" * 20}, "chain.contract"),
        ({"rpc_url": "http://127.0.0.1:9/"}, "chain.unavailable"),
    ],
)
async def test_a_wrong_chain_founds_nothing(
    tmp_path: Path, pg_url: str, contract: Deployed, change: dict[str, Any], code: str
) -> None:
    assert isinstance(contract.evm, Node)
    chain = {
        "rpc_url": contract.evm.url,
        "chain_id": CHAIN_ID,
        "operator_registry": contract.address,
    } | change
    path = write_config(tmp_path, pg_url, chain=chain)
    operator = OperatorPeer("g0")
    stake(contract, operator)
    with pytest.raises(AOSError) as refusal:
        await found_network(
            path,
            registrations=[operator.registration(network=NETWORK, dispatcher=DISPATCHER)],
            models={MODEL: MODEL_ID},
            genesis_ms=contract.evm.now() * 1_000,
            epoch_ms=EPOCH_MS,
            project="tests",
        )
    assert refusal.value.code == code


async def test_the_beacon_is_a_final_block(open_case: Open) -> None:
    case = await open_case(OperatorPeer("g0"), beacon=True)
    value, source = await case.registry.beacon(0)
    assert source == "chain"
    begins_s = (case.registry.network.genesis_ms - BLOCK_LAG_MS) / 1_000
    number = 0
    while int(case.node.ask("eth_getBlockByNumber", hex(number), False)["timestamp"], 16) < begins_s:
        number += 1
    assert case.node.ask("eth_getBlockByNumber", hex(number), False)["hash"] == "0x" + value.hex()
    with pytest.raises(Unavailable) as refusal:
        await case.registry.beacon(10_000)
    assert refusal.value.code == "chain.too_early"
    assert case.registry.network_file()["beacon_source"] == "chain"


@pytest.mark.parametrize(
    "wrong",
    [{"rpc_url": "http://x"}, {"operator_registry": "0x12"}, {"chain_id": 0}, {"surprise": 1}],
)
def test_a_wrong_configuration_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    good = {"rpc_url": "http://127.0.0.1:1", "chain_id": 1, "operator_registry": "0x" + "11" * 20}
    chain = wrong if "rpc_url" in wrong else good | wrong
    with pytest.raises(ConfigError) as refusal:
        load_config(write_config(tmp_path, "postgres://x/y", chain=chain), environment={})
    assert refusal.value.code == "config.value"
