"""Transactions against a real node that drops, reorganises, restarts and lies: each is done once, or plainly not."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from chain_node import GENUINE, Between, connect, rich_key, settle
from evm import ETHER, Node

from aos.adapters.chain.contracts import contract
from aos.adapters.chain.journal import Journal
from aos.adapters.chain.node import ChainNode
from aos.adapters.chain.registry import SQL
from aos.adapters.embedded.anvil import EmbeddedAnvil
from aos.adapters.postgres import Pool, connect_pool, migrate
from aos.errors import AOSError, RuleViolation, Unavailable, VerificationError

SINK = "0x" + "ab" * 20


@pytest.fixture
async def pool(pg_url: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(pg_url)
    await migrate(pool, SQL)
    yield pool
    await pool.close()


@pytest.fixture
async def between() -> Between:
    return Between()


@pytest.fixture
async def chain(anvil: EmbeddedAnvil, between: Between) -> AsyncIterator[ChainNode]:
    chain = connect(anvil.url, between)
    yield chain
    await chain.close()


@pytest.fixture
def manual(node: Node) -> Iterator[Node]:
    """The node, mining only when told to."""
    node.ask("evm_setAutomine", False)
    yield node
    node.ask("evm_setAutomine", True)
    settle(node)


@pytest.fixture
def sink() -> str:
    """An address that nobody has paid yet."""
    return "0x" + random.randbytes(20).hex()


async def finish(journal: Journal, node: Node, rounds: int = 10) -> None:
    for _ in range(rounds):
        if not await journal.step():
            return
        settle(node)
    raise AssertionError(f"not over: {await journal.open()}")


async def test_a_purpose_is_done_once(pool: Pool, chain: ChainNode, node: Node, sink: str) -> None:
    key, _ = rich_key(node)
    journal = Journal(pool, chain, key)
    for _ in range(3):
        await journal.want("pay", to=sink, data=b"", value=7)
    await finish(journal, node)
    await journal.want("pay", to=sink, data=b"", value=7)
    assert not await journal.step()
    assert node.balance(sink) == 7
    done = await journal.entry("pay")
    assert done is not None
    assert (done.state, done.error) == ("done", "")
    with pytest.raises(RuleViolation) as refusal:
        await journal.want("pay", to=sink, data=b"", value=8)
    assert refusal.value.code == "chain.purpose"


async def test_it_is_written_down_before_it_is_sent(
    pool: Pool, chain: ChainNode, node: Node, between: Between, sink: str
) -> None:
    """Killed in the moment of sending: who comes next sends the same bytes."""
    key, _ = rich_key(node)
    seen: list[str] = []

    def dies(method: str, params: list[Any]) -> Any:
        if method == "eth_sendRawTransaction":
            seen.append(params[0])
            raise asyncio.CancelledError
        return GENUINE

    between.hook = dies
    journal = Journal(pool, chain, key)
    await journal.want("pay", to=sink, data=b"", value=7)
    with pytest.raises(asyncio.CancelledError):
        await journal.step()
    assert await pool.fetchval("SELECT raw FROM chain_attempt") == bytes.fromhex(seen[0][2:])
    assert node.balance(sink) == 0
    between.hook = lambda _, __: GENUINE
    await finish(Journal(pool, chain, key), node)
    assert node.balance(sink) == 7
    assert await pool.fetchval("SELECT count(*) FROM chain_attempt") == 1


async def test_a_dropped_transaction_is_sent_again(
    pool: Pool, chain: ChainNode, manual: Node, sink: str
) -> None:
    key, _ = rich_key(manual)
    journal = Journal(pool, chain, key)
    for number in range(3):
        await journal.want(f"pay {number}", to=sink, data=b"", value=1)
    await journal.step()
    nonces = [entry.nonce for entry in await journal.open()]
    assert nonces == [0, 1, 2]
    manual.ask("anvil_dropAllTransactions")
    manual.ask("anvil_mine")
    assert manual.balance(sink) == 0
    await journal.step()
    await finish(journal, manual)
    assert manual.balance(sink) == 3


async def test_a_reorganisation_undoes_nothing(pool: Pool, chain: ChainNode, manual: Node, sink: str) -> None:
    key, address = rich_key(manual)
    before = manual.ask("evm_snapshot")
    journal = Journal(pool, chain, key)
    await journal.want("pay", to=sink, data=b"", value=7)
    await journal.step()
    manual.ask("anvil_mine")
    assert manual.balance(sink) == 7
    await journal.step()
    assert [entry.state for entry in await journal.open()] == ["sent"]  # mined, not final
    assert manual.ask("evm_revert", before)
    manual.ask("anvil_mine", hex(3))  # another history, in which it did not happen
    assert manual.balance(sink) == 0
    await finish(journal, manual)
    assert manual.balance(sink) == 7
    assert int(manual.ask("eth_getTransactionCount", address, "latest"), 16) == 1


async def test_a_receipt_of_a_history_that_is_gone_ends_nothing(
    pool: Pool, chain: ChainNode, manual: Node, between: Between, sink: str
) -> None:
    key, _ = rich_key(manual)
    journal = Journal(pool, chain, key)
    await journal.want("pay", to=sink, data=b"", value=7)
    await journal.step()

    def remembers(method: str, params: list[Any]) -> Any:
        if method != "eth_getTransactionReceipt":
            return GENUINE
        return {
            "transactionHash": params[0],
            "blockNumber": "0x1",
            "blockHash": "0x" + "77" * 32,
            "status": "0x1",
            "gasUsed": "0x5208",
            "contractAddress": None,
        }

    between.hook = remembers
    manual.ask("anvil_mine", hex(4))
    await journal.step()
    assert [entry.state for entry in await journal.open()] == ["sent"]
    between.hook = lambda _, __: GENUINE
    await finish(journal, manual)
    assert manual.balance(sink) == 7


async def test_fees_rise_until_it_is_mined_and_not_beyond(
    pool: Pool, chain: ChainNode, manual: Node, sink: str
) -> None:
    key, _ = rich_key(manual)
    journal = Journal(pool, chain, key, bump_after_s=0)
    await journal.want("pay", to=sink, data=b"", value=7)
    for _ in range(4):
        await journal.step()
    rows = await pool.fetch("SELECT nonce, max_fee, tip FROM chain_attempt ORDER BY max_fee")
    assert len(rows) == 4
    assert {row["nonce"] for row in rows} == {0}
    for old, new in itertools.pairwise(rows):
        assert new["max_fee"] * 8 > old["max_fee"] * 9
        assert new["tip"] * 8 > old["tip"] * 9
    await finish(journal, manual)
    assert manual.balance(sink) == 7  # one of the versions, once

    greedy = Journal(pool, chain, key, bump_after_s=0, max_fee_gwei=1)
    await pool.execute("DELETE FROM chain_attempt")
    await greedy.want("pay more", to=sink, data=b"", value=1)
    for _ in range(30):
        with_fee = await _steps(greedy)
        assert with_fee in ("", "chain.fee")
    highest = await pool.fetchval("SELECT coalesce(max(max_fee), 0) FROM chain_attempt")
    assert highest <= 10**9


async def _steps(journal: Journal) -> str:
    try:
        await journal.step()
    except AOSError as error:
        return error.code
    return ""


async def test_a_node_that_asks_for_absurd_fees_gets_none(
    pool: Pool, chain: ChainNode, node: Node, between: Between, sink: str
) -> None:
    key, _ = rich_key(node)
    between.hook = lambda method, _: hex(10**15) if method == "eth_maxPriorityFeePerGas" else GENUINE
    journal = Journal(pool, chain, key)
    await journal.want("pay", to=sink, data=b"", value=7)
    with pytest.raises(Unavailable) as refusal:
        await journal.step()
    assert refusal.value.code == "chain.fee"
    assert await pool.fetchval("SELECT count(*) FROM chain_attempt") == 0


async def test_a_call_that_the_contract_refuses_costs_nothing(
    pool: Pool, chain: ChainNode, node: Node
) -> None:
    key, address = rich_key(node)
    registry = contract("OperatorRegistry")
    journal = Journal(pool, chain, key)
    await journal.want("deploy", to=None, data=registry.creation(1000, ETHER, 60))
    await finish(journal, node)
    deployed = await journal.entry("deploy")
    assert deployed is not None
    assert deployed.created is not None
    await journal.want("exit", to=deployed.created, data=registry.call("requestExit"))
    await journal.step(registry)
    refused = await journal.entry("exit")
    assert refused is not None
    assert (refused.state, refused.error) == ("failed", "the contract refuses: NotRegistered")
    assert int(node.ask("eth_getTransactionCount", address, "latest"), 16) == 1


async def test_a_poor_account_is_told_so(pool: Pool, chain: ChainNode, node: Node, sink: str) -> None:
    key, _ = rich_key(node, ether=1)
    journal = Journal(pool, chain, key)
    await journal.want("pay", to=sink, data=b"", value=2 * ETHER)
    await journal.step()
    failed = await journal.entry("pay")
    assert failed is not None
    assert failed.state == "failed"
    assert "nsufficient funds" in failed.error
    node.ask("anvil_setBalance", journal.sender, hex(5 * ETHER))
    with pytest.raises(RuleViolation):  # for something else it does not begin again
        await journal.want("pay", to=sink, data=b"", value=1)
    assert not await journal.open()
    await journal.want("pay", to=sink, data=b"", value=2 * ETHER)  # wanting it again begins it again
    await finish(journal, node)
    assert node.balance(sink) == 2 * ETHER


async def test_a_nonce_that_somebody_else_used_fails_it_for_a_person_to_look_at(
    pool: Pool, chain: ChainNode, manual: Node, sink: str
) -> None:
    key, address = rich_key(manual)
    journal = Journal(pool, chain, key)
    await journal.want("pay", to=sink, data=b"", value=7)
    await journal.step()
    manual.ask("anvil_dropAllTransactions")
    manual.ask("anvil_impersonateAccount", address)
    manual.ask("eth_sendTransaction", {"from": address, "to": SINK, "value": "0x1", "nonce": "0x0"})
    manual.ask("anvil_stopImpersonatingAccount", address)
    settle(manual)
    assert not await journal.step()
    failed = await journal.entry("pay")
    assert failed is not None
    assert failed.state == "failed"
    assert "took its nonce 0" in failed.error
    assert manual.balance(sink) == 0


async def test_two_processes_send_one_transaction(
    pool: Pool, chain: ChainNode, node: Node, sink: str
) -> None:
    key, address = rich_key(node)
    journals = [Journal(pool, chain, key) for _ in range(4)]
    await asyncio.gather(*(j.want("pay", to=sink, data=b"", value=7) for j in journals))
    for _ in range(4):
        await asyncio.gather(*(journal.step() for journal in journals))
        settle(node)
    await finish(journals[0], node)
    assert node.balance(sink) == 7
    assert int(node.ask("eth_getTransactionCount", address, "latest"), 16) == 1


async def test_another_chains_node_gets_nothing(
    pool: Pool, anvil: EmbeddedAnvil, node: Node, sink: str
) -> None:
    key, _ = rich_key(node)
    foreign = connect(anvil.url, chain_id=1)
    try:
        journal = Journal(pool, foreign, key)
        await journal.want("pay", to=sink, data=b"", value=7)
        with pytest.raises(VerificationError) as refusal:
            await journal.step()
        assert refusal.value.code == "chain.id"
        assert await pool.fetchval("SELECT count(*) FROM chain_attempt") == 0
    finally:
        await foreign.close()


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (httpx.ConnectError("down"), "chain.unavailable"),
        (httpx.ReadTimeout("slow"), "chain.unavailable"),
        ({"code": -32603, "message": "internal"}, "chain.unavailable"),
        ("0x01x", "chain.answer"),
        (7, "chain.answer"),
        (None, "chain.answer"),
        (["0x1"], "chain.answer"),
    ],
)
async def test_a_node_in_trouble_loses_nothing(
    pool: Pool, chain: ChainNode, node: Node, between: Between, sink: str, trouble: Any, code: str
) -> None:
    """Wherever in a round it happens."""
    key, address = rich_key(node)
    journal = Journal(pool, chain, key)
    await journal.want("pay", to=sink, data=b"", value=7)
    for at in ("eth_chainId", "eth_estimateGas", "eth_getTransactionCount", "eth_sendRawTransaction"):

        def fails(method: str, _: list[Any], at: str = at) -> Any:
            if method != at:
                return GENUINE
            if isinstance(trouble, Exception):
                raise trouble
            return trouble

        between.hook = fails
        if at != "eth_sendRawTransaction":
            with pytest.raises(AOSError) as refusal:
                await journal.step()
            assert refusal.value.code == code
        else:
            await _steps(journal)
    between.hook = lambda _, __: GENUINE
    await finish(journal, node)
    assert node.balance(sink) == 7
    assert int(node.ask("eth_getTransactionCount", address, "latest"), 16) == 1


async def test_a_nodes_address_keeps_its_secret(pool: Pool) -> None:
    secret = ChainNode("http://user:hunter2@127.0.0.1:9/v3/0123456789abcdef", chain_id=1)
    try:
        with pytest.raises(Unavailable) as refusal:
            await secret.check_chain()
        assert "127.0.0.1:9" in refusal.value.message
        assert "hunter2" not in str(refusal.value)
        assert "0123456789" not in str(refusal.value)
    finally:
        await secret.close()
