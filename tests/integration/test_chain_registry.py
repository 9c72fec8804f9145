"""Reading the registry from a real node, and from nodes that lie about their head, their history, or what is there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from chain_node import GENUINE, Between, connect, rich_key, settle
from evm import ACCOUNTS, ETHER, Deployed, Node, deploy

from aos.adapters.chain.node import MAX_ANSWER_BYTES, ChainNode
from aos.adapters.chain.registry import REGISTRY, SQL, STALE_S, OperatorContract
from aos.adapters.embedded.anvil import EmbeddedAnvil
from aos.adapters.postgres import Pool, connect_pool, migrate
from aos.errors import AOSError, Unavailable, VerificationError

OWNER, ALICE, BOB, *_ = ACCOUNTS
KEY = b"\x11" * 32


@pytest.fixture
async def pool(pg_url: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(pg_url)
    await migrate(pool, SQL)
    yield pool
    await pool.close()


@pytest.fixture
def registry(node: Node) -> Deployed:
    registry = deploy(node, "OperatorRegistry", 1_000_000, ETHER, 3600)
    for index, who in enumerate((ALICE, BOB)):
        registry.send(who, "deposit", KEY, value=(index + 1) * ETHER)
        registry.send(OWNER, "registerOperator", who, index * 500_000, (index + 1) * 500_000)
    settle(node)
    return registry


class Reader:
    """An OperatorContract over a lying node; ``now`` is its clock, at first that of the node's newest block."""

    def __init__(self, pool: Pool, chain: ChainNode, between: Between, registry: Deployed) -> None:
        self.pool, self.chain, self.between, self.registry = pool, chain, between, registry
        self.now = registry.evm.now()

    def open(self, address: str = "", **expected: Any) -> OperatorContract:
        return OperatorContract(
            self.chain, self.pool, address or self.registry.address, clock=lambda: self.now, **expected
        )


@pytest.fixture
async def reader(pool: Pool, anvil: EmbeddedAnvil, registry: Deployed) -> AsyncIterator[Reader]:
    between = Between()
    chain = connect(anvil.url, between)
    yield Reader(pool, chain, between, registry)
    await chain.close()


async def test_everybody_with_a_range_at_one_final_block(reader: Reader, node: Node) -> None:
    contract = reader.open(owner=OWNER, max_range=1_000_000)
    view = await contract.view()
    assert {a: (op.start, op.end, op.stake, op.vrf_key) for a, op in view.operators.items()} == {
        ALICE: (0, 500_000, ETHER, KEY),
        BOB: (500_000, 1_000_000, 2 * ETHER, KEY),
    }
    assert (contract.min_stake, contract.exit_delay_s) == (ETHER, 3600)
    # What is mined but not final is not seen.
    reader.registry.send(ALICE, "requestExit")
    assert set((await contract.view()).operators) == {ALICE, BOB}
    assert not (await contract.newest(ALICE)).registered
    settle(node)
    assert set((await contract.view()).operators) == {BOB}
    assert (await contract.operator(ALICE)).exit_at > 0


@pytest.mark.parametrize("wrong", ["nobody", "other contract", "owner", "max_range"])
async def test_another_contract_is_refused(reader: Reader, node: Node, wrong: str) -> None:
    address, expected = "", {"owner": OWNER, "max_range": 1_000_000}
    if wrong == "nobody":
        address = "0x" + "55" * 20
    elif wrong == "other contract":
        address = deploy(node, "ModelRegistry").address
        settle(node)
    elif wrong == "owner":
        expected["owner"] = ALICE
    else:
        expected["max_range"] = 600_000
    with pytest.raises(VerificationError) as refusal:
        await reader.open(address, **expected).view()
    assert refusal.value.code == ("chain.foreign" if wrong in expected else "chain.contract")


async def test_a_node_that_goes_back_behind_a_final_block(reader: Reader) -> None:
    view = await reader.open().view()
    old = reader.registry.evm.ask("eth_getBlockByNumber", hex(view.number - 1), False)  # type: ignore[attr-defined]
    reader.between.hook = lambda method, params: (
        old if method == "eth_getBlockByNumber" and params[0] == "finalized" else GENUINE
    )
    with pytest.raises(Unavailable) as refusal:
        await reader.open().view()
    assert refusal.value.code == "chain.stale"


async def test_a_node_with_another_history(reader: Reader, node: Node) -> None:
    view = await reader.open().view()
    settle(node)

    def other(method: str, params: list[Any]) -> Any:
        if method == "eth_getBlockByNumber" and params[0] == hex(view.number):
            return {"number": hex(view.number), "hash": "0x" + "66" * 32, "timestamp": hex(view.time)}
        return GENUINE

    reader.between.hook = other
    for _ in range(2):  # it is not believed the second time either
        with pytest.raises(VerificationError) as refusal:
            await reader.open().view()
        assert refusal.value.code == "chain.rewritten"
    reader.between.hook = lambda _, __: GENUINE
    assert (await reader.open().view()).number > view.number


@pytest.mark.parametrize(
    ("shift", "code"), [(STALE_S + 600, "chain.stale"), (-3_600, "chain.answer")], ids=["old", "future"]
)
async def test_a_node_whose_head_is_of_another_time(reader: Reader, shift: int, code: str) -> None:
    reader.now += shift
    with pytest.raises(AOSError) as refusal:
        await reader.open().view()
    assert refusal.value.code == code


async def test_a_final_block_beyond_the_head(reader: Reader) -> None:
    beyond = {"number": hex(10**9), "hash": "0x" + "66" * 32, "timestamp": hex(int(time.time()))}
    reader.between.hook = lambda method, params: (
        beyond if method == "eth_getBlockByNumber" and params[0] == "finalized" else GENUINE
    )
    with pytest.raises(AOSError) as refusal:
        await reader.open().view()
    assert refusal.value.code == "chain.answer"
    assert await reader.pool.fetchval("SELECT count(*) FROM chain_final") == 0


@pytest.mark.parametrize(
    "lie", ["0x", "0x" + "ff" * 32, "0x1", "0x" + "00" * 31 + "02", [], None, "0x" + "00" * 64]
)
async def test_answers_that_make_no_sense(reader: Reader, lie: Any) -> None:
    """Of every call in turn: refused, never half believed."""
    contract = reader.open()
    await contract.view()
    for function in ("getNumOperators", "operators", "operatorInfo", "operatorRanges"):
        selector = "0x" + REGISTRY.selector(function).hex()
        reader.between.hook = lambda method, params, selector=selector: (  # type: ignore[misc]
            lie if method == "eth_call" and params[0]["data"].startswith(selector) else GENUINE
        )
        if function == "getNumOperators" and lie == "0x" + "00" * 31 + "02":
            continue  # the truth
        if function == "getNumOperators" and lie == "0x" + "00" * 64:
            continue  # "none", with padding that the ABI allows
        with pytest.raises(AOSError) as refusal:
            await contract.view()
        assert refusal.value.code in ("chain.answer", "chain.reverted", "chain.unavailable"), function


async def test_a_node_that_went_away_and_came_back(reader: Reader) -> None:
    contract = reader.open()
    await contract.view()

    def down(*_: Any) -> Any:
        raise httpx.ConnectError("down")

    reader.between.hook = down
    with pytest.raises(Unavailable):
        await contract.view()
    reader.between.hook = lambda _, __: GENUINE
    assert len((await contract.view()).operators) == 2


async def test_the_first_block_that_is_not_older(reader: Reader, node: Node) -> None:
    blocks = {}
    for _ in range(6):
        node.wait(30)
        head = node.ask("eth_getBlockByNumber", "latest", False)
        blocks[int(head["number"], 16)] = int(head["timestamp"], 16)
    settle(node)
    reader.now = node.now()
    contract = reader.open()
    for number, at in blocks.items():
        for moment in (at, at - 1):
            found = await contract.block_since(moment)
            assert found.time >= moment
            if found.number != number:  # several blocks of one second
                assert found.number < number
            if found.number > 0:
                before = node.ask("eth_getBlockByNumber", hex(found.number - 1), False)
                assert int(before["timestamp"], 16) < moment
    with pytest.raises(Unavailable) as refusal:
        await contract.block_since(node.now() + 1_000)
    assert refusal.value.code == "chain.too_early"


async def test_the_original_interface_over_json_rpc(reader: Reader, node: Node) -> None:
    """As the original's operator asks: with nothing but its own ABI."""
    key, address = rich_key(node)
    assert key
    reader.registry.send(OWNER, "updateOperatorRange", BOB, 500_000, 600_000)
    assert reader.registry.read("operatorRanges", BOB) == (500_000, 600_000)
    assert list(reader.registry.read("getOperatorsInRange", 600_000)) == []
    assert reader.registry.read("operatorRanges", address) == (0, 0)


async def test_more_entries_than_a_node_answers_at_once_are_read_piece_by_piece(reader: Reader) -> None:
    """Who has money can make a contract write without end: whoever must see an event sees it all the same."""
    topics = [REGISTRY.topic("OperatorRegistered")]
    last = (await reader.chain.block("latest")).number
    ask = reader.chain.logs
    whole = await ask(reader.registry.address, topics, first=0, last=last)
    assert len(whole) == 2

    def bounded(refusal: Any) -> Any:
        def answer(method: str, params: list[Any]) -> Any:
            if method != "eth_getLogs" or int(params[0]["toBlock"], 16) == int(params[0]["fromBlock"], 16):
                return GENUINE
            return refusal

        return answer

    too_many = {"code": -32005, "message": "query returned more than 10000 results"}
    for refusal in (too_many, too_many | {"code": -32000}, "0x" + "00" * MAX_ANSWER_BYTES):
        reader.between.hook = bounded(refusal)
        assert await ask(reader.registry.address, topics, first=0, last=last) == whole
    reader.between.hook = lambda method, _: too_many if method == "eth_getLogs" else GENUINE
    reader.between.asked.clear()
    with pytest.raises(Unavailable):
        await ask(reader.registry.address, topics, first=0, last=1_999)
    assert len(reader.between.asked) <= 12
