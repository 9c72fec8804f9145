"""Anchors of the log on a real node: each is sent once whatever happens, and a log that does not begin with one is convicted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from chain_node import GENUINE, Between, settle
from evm import ETHER, Deployed, Node, deploy
from log_cases import LOG, leaves
from peers.engine_case import EngineCase, secret
from peers.hub_peer import OperatorPeer
from peers.log_peer import LogPeer
from typer.testing import CliRunner

from aos.adapters.chain.anchors import AnchorReader, RegistryName, Seen, read_registry_name
from aos.adapters.chain.node import ChainNode
from aos.adapters.embedded.anvil import CHAIN_ID
from aos.cli.app import app
from aos.core import merkle
from aos.core.codec import encode
from aos.core.encoding import canonical_json
from aos.core.signing import address_of
from aos.dispatcher.anchors import Anchors
from aos.dispatcher.chain import DispatcherChain
from aos.dispatcher.config import Chain
from aos.errors import AOSError, ConfigError, InvalidMessage, Unavailable, VerificationError

DISPATCHER = address_of(secret("signer.key"))
NEVER = {"interval_ms": 600_000, "refresh_ms": 86_400_000}


def new_registry(node: Node, owner: str) -> Deployed:
    node.ask("anvil_setBalance", owner, hex(1_000 * ETHER))
    contract = deploy(node, "OperatorRegistry", 1_000_000, ETHER, 3600, sender=owner)
    settle(node)
    return contract


# --- the dispatcher


class Case:
    """A dispatcher with a log, and its contract on a real node behind ``between``."""

    def __init__(self, engine: EngineCase, node: Node, contract: Deployed, chain: DispatcherChain) -> None:
        self.engine, self.node, self.contract, self.chain = engine, node, contract, chain
        self.log = engine.dispatcher.log
        self.anchors = Anchors(self.log, chain)
        self.between = Between()
        chain._node._http = httpx.AsyncClient(transport=self.between)

    async def grow(self) -> tuple[int, bytes]:
        """One job more in the signed tree: its size and root."""
        assert await self.engine.ended((await self.engine.submit()).job_id) == "agreed"
        assert await self.log.sequence()
        head = await self.log.head()
        assert head is not None
        return head

    async def settle(self) -> None:
        for _ in range(10):
            if not await self.chain.send():
                return
            settle(self.node)
        raise AssertionError("the anchor does not become final")

    async def hour(self) -> None:
        """An hour goes by."""
        await self.engine.dispatcher.pool.execute(
            "UPDATE chain_transaction SET created_at = created_at - interval '1 hour'"
        )

    def held(self) -> tuple[int, bytes]:
        root, size = self.contract.read("lastAnchor")
        return size, root

    def anchored(self) -> int:
        """How many transactions the dispatcher has sent since it deployed."""
        return int(self.node.ask("eth_getTransactionCount", DISPATCHER, "latest"), 16)


@pytest.fixture
async def case(tmp_path: Path, pg_url: str, steady_anvil: Node) -> AsyncIterator[Case]:
    peers = [OperatorPeer(f"opml-{n}") for n in range(2)]
    engine = await EngineCase.open(tmp_path / "dispatcher", pg_url, *peers, log=NEVER)
    contract = new_registry(steady_anvil, DISPATCHER)
    told = Chain(rpc_url=steady_anvil.url, chain_id=CHAIN_ID, operator_registry=contract.address)
    chain = await DispatcherChain.open(engine.dispatcher.pool, replace(engine.config, chain=told))
    assert chain is not None
    yield Case(engine, steady_anvil, contract, chain)
    await chain.close()
    await engine.close()


async def test_a_tree_is_anchored_once_an_hour_and_only_where_it_has_grown(case: Case) -> None:
    sent = case.anchored()
    head = await case.grow()
    assert await case.anchors.step()
    assert not await case.anchors.step()  # it is under way
    await case.settle()
    assert case.held() == head
    grown = await case.grow()
    assert not await case.anchors.step()  # not an hour ago
    await case.hour()
    assert await case.anchors.step()
    await case.settle()
    assert case.held() == grown
    await case.hour()
    assert not await case.anchors.step()  # nothing is new
    assert case.anchored() == sent + 2


async def test_who_is_killed_anywhere_sends_it_once(case: Case) -> None:
    sent = case.anchored()
    head = await case.grow()

    def dies(method: str, params: list[Any]) -> Any:
        if method == "eth_sendRawTransaction":
            raise asyncio.CancelledError
        return GENUINE

    assert await case.anchors.step()
    case.between.hook = dies
    with pytest.raises(asyncio.CancelledError):
        await case.chain.send()
    case.between.hook = lambda _, __: GENUINE
    await case.grow()  # the next process finds a larger tree, and the smaller one still to be sent
    again = Anchors(case.log, case.chain)
    await case.hour()
    assert not await again.step()
    await case.settle()
    assert (case.held(), case.anchored()) == (head, sent + 1)


async def test_a_reorganisation_and_a_node_that_is_away_lose_no_anchor(case: Case) -> None:
    head = await case.grow()

    def away(method: str, params: list[Any]) -> Any:
        raise httpx.ConnectError("away")

    case.between.hook = away
    with pytest.raises(Unavailable):
        await case.anchors.step()
    assert await case.chain.newest_anchor() is None
    case.between.hook = lambda _, __: GENUINE
    before = case.node.ask("evm_snapshot")
    assert await case.anchors.step()
    await case.chain.send()
    assert case.held() == head
    assert case.node.ask("evm_revert", before)
    settle(case.node)  # another history, in which it did not happen
    assert case.held()[0] == 0
    await case.settle()
    assert case.held() == head


async def test_a_log_that_is_not_the_anchored_one_anchors_nothing(case: Case) -> None:
    await case.grow()
    for root, size in ((b"\1" * 32, 2), (b"\2" * 32, 10_000)):  # another history; a longer one
        case.contract.send(DISPATCHER, "anchor", root, size)
        settle(case.node)
        with pytest.raises(VerificationError) as refusal:
            await case.anchors.step()
        assert refusal.value.code == "log.anchor_fork"
    assert await case.chain.newest_anchor() is None


async def test_it_runs_beside_everything_else(case: Case) -> None:
    head = await case.grow()
    running = asyncio.create_task(case.anchors.run())
    await case.engine.until(
        "SELECT count(*) = 1 FROM chain_transaction WHERE purpose = $1", f"anchor {head[0]}"
    )
    running.cancel()
    await case.settle()
    assert case.held() == head


# --- a stranger


@pytest.fixture
def contract(steady_anvil: Node) -> Deployed:
    """Of the dispatcher whose log ``log_cases`` has."""
    return new_registry(steady_anvil, LOG.network.dispatcher)


@pytest.fixture
def peer() -> Iterator[LogPeer]:
    served = LogPeer(LOG, leaves(9))
    yield served
    served.close()


Aos = Callable[..., Any]


@pytest.fixture
def aos(
    tmp_path: Path, peer: LogPeer, contract: Deployed, steady_anvil: Node, monkeypatch: pytest.MonkeyPatch
) -> Aos:
    """``aos(…)`` runs ``aos log anchors --once --json …``: exit code and result."""
    state = tmp_path / ".aos"
    state.mkdir()
    (state / "trust.json").write_bytes(canonical_json(encode(LOG.trust())))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AOS_URL", peer.url)
    monkeypatch.setenv("AOS_CHAIN_RPC_URL", steady_anvil.url)
    for name in ("AOS_TRUST", "AOS_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, registry: str = "", human: bool = False) -> tuple[int, Any]:
        name = registry or f"eip155:{CHAIN_ID}:{contract.address}"
        done = CliRunner().invoke(
            app, ["log", "anchors", "--once", "--registry", name, *([] if human else ["--json"]), *arguments]
        )
        if isinstance(done.exception, AOSError):
            raise done.exception
        return done.exit_code, done.stdout if human else json.loads(done.stdout)["result"]

    return run


def anchor(contract: Deployed, size: int, *, from_: int = 0, final: bool = True) -> None:
    assert isinstance(contract.evm, Node)
    root = merkle.tree_root(leaves(size, from_=from_))
    contract.send(LOG.network.dispatcher, "anchor", root, size)
    if final:
        settle(contract.evm)


def saved(tmp_path: Path, what: str) -> list[Path]:
    return sorted((tmp_path / ".aos").glob(f"log-anchors.{what}-*.json"))


def test_an_honest_log_begins_with_every_anchor(
    aos: Aos, peer: LogPeer, contract: Deployed, tmp_path: Path
) -> None:
    assert aos()[0] == 11
    for size in (1, 4, 9):
        anchor(contract, size)
    code, found = aos()
    assert (code, found["state"], found["anchored"], found["compared"]) == (0, "ANCHORED", 9, 3)
    peer.leaves = leaves(12)
    anchor(contract, 11)
    anchor(contract, 12, final=False)  # what may yet be undone is not looked at
    code, found = aos()
    assert (code, found["size"], found["anchored"], found["compared"]) == (0, 12, 11, 2)
    code, text = aos(human=True)
    assert (code, text.startswith("ANCHORED   12 leaves begin with the 11 ")) == (0, True)
    assert not saved(tmp_path, "*")


@pytest.mark.parametrize("size", [4, 9])
def test_a_log_with_another_history_than_it_anchored_is_convicted(
    size: int, aos: Aos, peer: LogPeer, contract: Deployed, tmp_path: Path
) -> None:
    anchor(contract, size)
    assert aos()[0] == 0
    peer.leaves = leaves(9, from_=1)  # what strangers are told from now on
    for number in (1, 2):  # each time anew: the state stays what it was
        code, found = aos()
        assert (code, found["state"], found["code"]) == (10, "HISTORY CHANGED", "log.anchor_fork")
        assert len(saved(tmp_path, "fork")) == number
    file = str(saved(tmp_path, "fork")[0])
    peer.close()
    code, found = aos("--judge", file)
    assert (code, found["state"]) == (10, "CONVICTED")
    other = json.loads(Path(file).read_text())
    for changed, why in (
        (
            {"root": encode(replace(LOG.trust(), registry_roots=(b"\7" * 32,)))["registry_roots"][0]},
            "not_anchored",
        ),
        ({"checkpoint": LOG.checkpoint(leaves(12))}, "merkle"),
        ({"registry": "0x" + "11" * 20}, "conviction.foreign"),
    ):
        (tmp_path / "x.json").write_bytes(canonical_json(other | changed))
        code, found = aos("--judge", str(tmp_path / "x.json"))
        assert (code, found["state"], why in found["code"]) == (0, "NOTHING PROVEN", True), found
    (tmp_path / "x.json").write_text("{}")
    assert (
        CliRunner()
        .invoke(app, ["log", "anchors", "--registry", read_name(contract), "--judge", "x.json"])
        .exit_code
        == 12
    )


def read_name(contract: Deployed) -> str:
    return f"eip155:{CHAIN_ID}:{contract.address}"


def test_what_the_log_cannot_show_is_shouted_and_convicts_nobody(
    aos: Aos, peer: LogPeer, contract: Deployed, tmp_path: Path
) -> None:
    anchor(contract, 9)
    peer.leaves = leaves(5)
    code, found = aos()
    assert (code, found["state"], found["code"]) == (10, "NOT PROVEN", "log.behind_anchor")
    peer.leaves, peer.lie = leaves(12), leaves(12, from_=3)
    code, found = aos()
    assert (code, found["state"], found["code"]) == (10, "NOT PROVEN", "merkle.root_mismatch")
    peer.checkpoint = "no note"
    assert aos()[1]["code"].startswith("note.")
    assert (len(saved(tmp_path, "unproven")), saved(tmp_path, "fork")) == (3, [])
    assert json.loads(saved(tmp_path, "unproven")[0].read_text())["anchor"]["size"] == 9


def test_only_the_contract_of_the_logs_dispatcher_counts(
    aos: Aos, steady_anvil: Node, contract: Deployed
) -> None:
    foreign = new_registry(steady_anvil, DISPATCHER)
    for registry, code in (
        (read_name(foreign), "chain.foreign"),
        (f"eip155:{CHAIN_ID}:0x{'55' * 20}", "chain.contract"),
        (f"eip155:1:{contract.address}", "chain.id"),
        (contract.address, "chain.registry_name"),
    ):
        with pytest.raises(AOSError) as refusal:
            aos(registry=registry)
        assert refusal.value.code == code


def test_the_state_is_of_one_contract_and_never_begins_anew(
    aos: Aos, steady_anvil: Node, contract: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchor(contract, 9)
    assert aos()[0] == 0
    state = tmp_path / ".aos/log-anchors.json"
    text = state.read_text()
    for damaged in (
        "",
        "{}",
        "[]",
        text.replace(contract.address, "0x" + "11" * 20),
        text.replace('"size":9', '"size":"x"'),
    ):
        state.write_text(damaged)
        with pytest.raises(ConfigError) as refusal:
            aos()
        assert refusal.value.code == "log.state"
    state.write_text(text)
    monkeypatch.setenv("AOS_CHAIN_RPC_URL", "http://127.0.0.1:1")
    with pytest.raises(Unavailable) as away:
        aos()
    assert away.value.exit_code == 20
    assert state.read_text() == text


async def test_a_node_that_keeps_anchors_back_or_changes_history_is_not_believed(
    steady_anvil: Node, contract: Deployed
) -> None:
    between = Between()
    node = ChainNode(steady_anvil.url, chain_id=CHAIN_ID, transport=between)
    name = RegistryName(chain_id=CHAIN_ID, address=contract.address)
    reader = AnchorReader(node, name, LOG.network.dispatcher)
    anchor(contract, 4)
    first, seen = await reader.since(None)
    assert [found.size for found in first] == [4]
    assert await reader.since(seen) == ([], seen)
    anchor(contract, 9)
    told = steady_anvil.ask(
        "eth_getLogs", {"address": contract.address, "fromBlock": "0x0", "toBlock": "latest"}
    )
    told = told[-1:]

    async def refused(hook: Any, since: Seen | None = seen) -> str:
        between.hook = hook
        with pytest.raises(AOSError) as refusal:
            await reader.since(since)
        return refusal.value.code

    def logs(*entries: Any) -> Any:
        return lambda method, _: list(entries) if method == "eth_getLogs" else GENUINE

    assert await refused(logs()) == "chain.answer"
    for change in (
        {"address": "0x" + "11" * 20},
        {"removed": True},
        {"blockNumber": "0x1"},
        {"topics": ["0x" + "22" * 32, told[0]["topics"][1]]},
        {"topics": []},
        {"topics": [told[0]["topics"][0], "0x" + (7).to_bytes(32).hex()]},
        {"data": "0x"},
        {"data": "0x" + "33" * 32},
    ):
        assert await refused(logs(told[0] | change)) == "chain.answer", change
    assert await refused(logs(told[0], told[0])) == "chain.answer"
    assert await refused(lambda *_: GENUINE, replace(seen, hash=b"\1" * 32)) == "chain.rewritten"
    assert await refused(lambda *_: GENUINE, replace(seen, number=1 << 40)) == "chain.stale"
    assert await refused(lambda *_: GENUINE, replace(seen, last=replace(first[0], size=9))) == "chain.answer"
    between.hook = lambda *_: GENUINE
    new, now = await reader.since(seen)
    assert [found.size for found in new] == [9]
    assert now.last == new[0]
    await node.close()


def test_names_of_contracts() -> None:
    address = "0x" + "Ab" * 20
    assert str(read_registry_name(f"eip155:1:{address}")) == f"eip155:1:{address.lower()}"
    for wrong in (
        "",
        address,
        f"eip155:01:{address}",
        f"eip155:1:{address}0",
        f"eip155:0:{address}",
        f"cosmos:1:{address}",
    ):
        with pytest.raises(InvalidMessage):
            read_registry_name(wrong)
