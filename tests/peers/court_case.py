"""An operator with a real worker and real contracts on a real node: jobs that end with a claim, and whoever challenges it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from chain_node import settle
from chain_steps import STEPS
from court_games import BOND, SLASH, STAKE
from evm import ACCOUNTS, ETHER, Deployed, Node, deploy
from peers.dispatcher_peer import MAX_RANGE, DispatcherPeer
from peers.operator_under_test import OPERATOR, Scene, write_config

from aos.adapters.chain.court import CourtContract, claim_tuple, game_id, move_data
from aos.adapters.chain.node import ChainNode
from aos.adapters.embedded.anvil import CHAIN_ID
from aos.adapters.processes import Process, log_contains
from aos.core.dispute.chain_claim import SignedChainClaim, claim_hash, parse_claim
from aos.core.dispute.fine.chain_game import UNSEEN, AskParts, ChainGame, ChallengerMove, Choose, Pick, Stage
from aos.core.dispute.fine.onchain import HALVINGS, way_down
from aos.core.dispute.trace_tree import TreeShape
from aos.core.encoding import canonical_json
from aos.errors import Unavailable

CHALLENGERS = ACCOUNTS[2:]
GRACE_S, BUDGET_S = 600, 86_400
PATIENCE_S = 120.0
WORKER_TOKEN = "a-token-of-the-tests-own"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The contracts of one network, and the operator's stake in them."""

    node: Node
    registry: Deployed
    models: Deployed
    court: Deployed

    @classmethod
    def deploy(
        cls, node: Node, dispatcher: str, *, grace_s: int = GRACE_S, budget_s: int = BUDGET_S
    ) -> Chain:
        for address in (dispatcher, OPERATOR.address):
            node.ask("anvil_setBalance", address, hex(100 * ETHER))
        registry = deploy(node, "OperatorRegistry", MAX_RANGE, STAKE, 30 * 86_400, sender=dispatcher)
        models = deploy(node, "ModelRegistry")
        bounds = deploy(node, "UnitBounds", models.address)
        steps = [deploy(node, name).address for name in STEPS]
        court = deploy(node, "Court", registry.address, bounds.address, steps, BOND, SLASH, grace_s, budget_s)
        registry.send(dispatcher, "setCourt", court.address)
        registry.send(OPERATOR.address, "deposit", OPERATOR.vrf_key, value=2 * STAKE)
        registry.send(dispatcher, "registerOperator", OPERATOR.address, 0, MAX_RANGE // 2)
        settle(node)
        return cls(node=node, registry=registry, models=models, court=court)

    def facts(self) -> dict[str, Any]:
        """What the network file says of it."""
        return {
            "chain_id": CHAIN_ID,
            "operator_registry": self.registry.address,
            "court": self.court.address,
            "claim_s": 3_600,
        }

    def settings(self, *, url: str | None = None) -> dict[str, Any]:
        """An operator's ``chain`` section."""
        return {
            "chain_rpc_url": url or self.node.url,
            "chain_id": CHAIN_ID,
            "vrf_range_contract": self.registry.address,
            "court": self.court.address,
        }

    def stake(self) -> tuple[int, int]:
        """The operator's stake and locks."""
        info = self.registry.read("operatorInfo", OPERATOR.address)
        return info[0], info[3]


def start_worker(directory: Path, model: Path, *, lie: str = "") -> tuple[Process, str]:
    """An opML worker's process with this model, a liar's where ``lie`` names one; and its address."""
    module = "aos.cli.lying_worker" if lie else "aos.workers.opml_main"
    environment = {"AOS_WORKER_TOKEN": WORKER_TOKEN, "TMPDIR": str(directory)}
    if lie:
        (directory / "lie").write_text(lie)
        environment["AOS_LIE"] = str(directory / "lie")
    process = Process(
        "worker",
        [sys.executable, "-m", module, "--model", str(model), "--listen", "127.0.0.1:0"],
        log_path=directory / "worker.log",
        env=environment,
        ready=log_contains('"worker.ready"'),
        ready_timeout_s=PATIENCE_S,
    )
    process.start()
    lines = process.log_since_start().decode().splitlines()
    return process, str(json.loads(next(line for line in lines if '"worker.ready"' in line))["address"])


async def claimed(dispatcher: DispatcherPeer, model_id: bytes, *, prompt: str) -> Claimed:
    """A job that the operator does to its end, with the claim that came with its result."""
    request = json.loads(dispatcher.request_bytes(model_id=model_id, prompt=prompt, seed="3"))
    request["job"]["params"]["max_tokens"] = 4
    job = await dispatcher.seated(request=canonical_json(request).decode())
    await dispatcher.commit(job)
    result = await dispatcher.reveal(job)
    claim = parse_claim(canonical_json(result["chain_claim"]))
    return Claimed(claim=claim, result=result, request=json.loads(job.request), nonce=job.nonce)


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A result and its claim."""

    claim: SignedChainClaim
    result: dict[str, Any]
    request: dict[str, Any]
    nonce: bytes


Player = Callable[[ChainGame], ChallengerMove]


@dataclass(kw_only=True)
class Challenge:
    """A challenger's side of one game: it opens it, and moves as ``play`` says whenever it is its turn."""

    chain: Chain
    claim: SignedChainClaim
    account: str
    position: int
    unit: int
    play: Player
    moves: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id = game_id(claim_hash(self.claim.claim), self.account)
        self.node = ChainNode(self.chain.node.url, chain_id=CHAIN_ID)
        self.forget()

    def forget(self) -> None:
        """What was read of the game before."""
        self.court = CourtContract(self.node, self.chain.court.address)

    async def game(self) -> ChainGame:
        while True:
            try:
                found = await self.court.game(self.id, await self.node.block("latest"))
            except Unavailable as error:
                if error.code != "chain.moved":  # read while a move came
                    raise
                continue
            assert found is not None
            return found

    async def open(self) -> None:
        await asyncio.to_thread(
            self.chain.court.send,
            self.account,
            "open",
            claim_tuple(self.claim.claim),
            self.claim.signature,
            self.position,
            self.unit,
            value=BOND << 2,
        )

    async def move(self, game: ChainGame) -> None:
        """Make the move that is due."""
        move = self.play(game)
        self.moves.append(type(move).__name__)
        data = move_data(game.id, move)
        await asyncio.to_thread(self.chain.node.transact, self.account, self.chain.court.address, data)

    async def to_end(self, *, between: Callable[[], Any] = lambda: None) -> str:
        """Once it is open, play to the end; ``between`` is called before the claimant's turn each time. How it ended."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._to_end(between)
        finally:
            await self.node.close()

    async def _to_end(self, between: Callable[[], Any]) -> str:
        turn: tuple[int, bytes] | None = None
        while (game := await self.game()).stage != Stage.OVER:
            if game.mover == "challenger":
                await self.move(game)
            elif turn != (game.stage, game.hash):
                turn = (game.stage, game.hash)
                between()
            await asyncio.sleep(0.05)
        outcome = await self.court.outcome(game, await self.node.block("latest"))
        return outcome.kind


def sham(seed: str, *, element: int | None = None) -> Player:
    """Goes down anywhere."""
    random = Random(seed)

    def play(game: ChainGame) -> ChallengerMove:
        if game.stage == Stage.PICK:
            return Pick(element=0)
        if not game.asked and random.random() < 0.5:
            return AskParts()
        target = random.randrange(len(game.children))
        level, first, end = game.node
        path, siblings = way_down(TreeShape(game.tiles), (level, first, end), HALVINGS, game.children, target)
        named = random.choice((UNSEEN, 0)) if element is None else element
        return Choose(path=path, node=game.children[target], siblings=tuple(siblings), element=named)

    return play


class Wire:
    """Stands between an operator and its node: ``cut`` makes every connection fail until ``mend``."""

    def __init__(self, url: str) -> None:
        self._host, self._port = url.removeprefix("http://").split(":")
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._is_cut = False

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self.cut()
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        self._is_cut = True
        for writer in self._open:
            writer.close()

    def mend(self) -> None:
        self._is_cut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            if self._is_cut:
                return
            there, back = await asyncio.open_connection(self._host, int(self._port))
            self._open.add(back)
            try:
                await asyncio.gather(_pass(reader, back), _pass(there, writer))
            finally:
                self._open.discard(back)
                back.close()
        finally:
            self._open.discard(writer)
            self._tasks.discard(task)
            writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def keeps_mining(node: Node) -> AsyncIterator[None]:
    """Blocks go on, so that what is mined becomes final."""

    async def mine() -> None:
        while True:
            await asyncio.to_thread(node.ask, "anvil_mine", hex(1))
            await asyncio.sleep(1.0)

    task = asyncio.create_task(mine())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def configure(scene: Scene, chain: Chain, worker: str, *, url: str | None = None) -> None:
    """Have the scene's operator use a real worker, and answer to the court."""
    scene.dispatcher.chain = chain.facts()
    scene.content["net"] |= {"workers": [worker], "worker_token": WORKER_TOKEN}
    scene.content["chain"] = chain.settings(url=url)
    write_config(scene.path.parent, scene.content)
