"""The claimant's agent against a real node: its operator is challenged at the court, and nobody helps it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from court_games import BOND, SLASH, STAKE
from evm import Node
from integration.test_workers import MODEL
from peers.court_case import (
    BUDGET_S,
    CHALLENGERS,
    GRACE_S,
    WORKER_TOKEN,
    Chain,
    Challenge,
    Claimed,
    Player,
    Wire,
    claimed,
    configure,
    keeps_mining,
    sham,
    start_worker,
)
from peers.operator_under_test import OPERATOR, OperatorProcess, Scene, eventually, running, scene

from aos.adapters.chain.court import CourtContract, register_model_data
from aos.adapters.embedded.anvil import EmbeddedAnvil
from aos.core.codec import decode
from aos.core.dispute.coarse import aim, served_tree
from aos.core.dispute.fine.chain_around import TOKENS_UNIT
from aos.core.dispute.fine.chain_game import ChainGame, ChallengerMove, Stage
from aos.core.dispute.fine.chain_players import challenger_move
from aos.core.dispute.fine.chain_players import claimed as said_of
from aos.core.encoding import b64u_decode, b64u_encode, canonical_json, parse_json_strict
from aos.core.statements import Params
from aos.engine.native import NativeEngine
from aos.engine.party import Party
from aos.errors import Unavailable
from aos.operator import chain_games
from aos.operator.worker_client import WorkerClient
from aos.workers.execution import sampling_params


@pytest.fixture(scope="module")
def engine() -> NativeEngine:
    return NativeEngine(MODEL)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, url = start_worker(tmp_path_factory.mktemp("worker"), MODEL)
    yield url
    process.stop()


@dataclass(kw_only=True)
class Place:
    """An operator at its court; ``process`` where it is one of its own, that can be killed."""

    scene: Scene
    chain: Chain
    process: OperatorProcess | None
    wire: Wire
    model_id: bytes

    async def job(self, prompt: str) -> Claimed:
        return await claimed(self.scene.dispatcher, self.model_id, prompt=prompt)

    def challenge(self, job: Claimed, number: int, position: int, unit: int, play: Player) -> Challenge:
        return Challenge(
            chain=self.chain,
            claim=job.claim,
            account=CHALLENGERS[number],
            position=position,
            unit=unit,
            play=play,
        )

    def again(self) -> None:
        """kill -9, and the next process."""
        assert self.process is not None
        self.process.kill()
        self.process.start()

    async def ends(self, **games: int) -> None:
        """Until the operator itself counts its games like this, and is owed nothing."""

        async def so() -> bool:
            found: Any = (await self.scene.status())["court"]
            return found["games"] == games and not self.chain.court.read("owed", OPERATOR.address)

        async with keeps_mining(self.chain.node):
            await eventually(so, timeout_s=60)


Open = Callable[..., contextlib.AbstractAsyncContextManager[Place]]


@pytest.fixture
def place_at(
    tmp_path: Path, pg_url: str, redis_url: str, engine: NativeEngine, monkeypatch: pytest.MonkeyPatch
) -> Open:
    """``place_at(node, worker, own_process=…)``: until it is left."""
    monkeypatch.setattr(chain_games, "LOOK_EVERY_S", 0.3)
    monkeypatch.setattr(chain_games, "PLAYING_EVERY_S", 0.1)

    @contextlib.asynccontextmanager
    async def open_(node: Node, worker: str, *, own_process: bool = False) -> AsyncIterator[Place]:
        async with scene(tmp_path, pg_url, redis_url) as found:
            found.dispatcher.model_ids = (engine.manifest.model_id,)
            chain = Chain.deploy(node, found.dispatcher.keys.address)
            wire = Wire(node.url)
            configure(found, chain, worker, url=await wire.start())
            process = OperatorProcess(found.path, tmp_path / "operator.log") if own_process else None
            try:
                async with contextlib.nullcontext() if process else running(found.path):
                    if process is not None:
                        process.start()
                    await found.ready()
                    yield Place(
                        scene=found,
                        chain=chain,
                        process=process,
                        wire=wire,
                        model_id=engine.manifest.model_id,
                    )
            finally:
                if process is not None:
                    process.kill()
                await wire.stop()

    return open_


async def test_a_sham_challenge_is_refuted_through_a_kill_before_every_move(
    place_at: Open, steady_anvil: Node, worker: str
) -> None:
    async with place_at(steady_anvil, worker, own_process=True) as place:
        challenge = place.challenge(await place.job("What is AI?"), 0, 2, 1, sham("one", element=0))
        await challenge.open()
        assert await challenge.to_end(between=place.again) == "refuted"
        assert len(challenge.moves) >= 2
        await place.ends(refuted=1)
        assert place.chain.stake() == (2 * STAKE, 0)
        assert place.chain.node.balance(place.chain.court.address) == 0


async def test_challenges_that_come_while_the_node_is_away_are_answered_when_it_is_back(
    place_at: Open, steady_anvil: Node, worker: str
) -> None:
    async with place_at(steady_anvil, worker) as place:
        job = await place.job("What is AI?")
        place.wire.cut()
        challenges = [
            place.challenge(job, 0, 1, 3, sham("two", element=10_000)),  # no tile has that element
            place.challenge(job, 1, 2, 99, sham("nowhere")),  # the run has no such unit
            place.challenge(job, 2, 2, TOKENS_UNIT, sham("tokens")),
        ]
        for challenge in challenges:
            await challenge.open()

        async def told() -> bool:
            return any("court:" in problem for problem in (await place.scene.status())["problems"])

        await eventually(told)
        assert {(await challenge.game()).stage for challenge in challenges} == {Stage.ANSWER}
        place.wire.mend()
        ends = await asyncio.gather(*(challenge.to_end() for challenge in challenges))
        assert ends == ["refuted"] * 3
        await place.ends(refuted=3)
        assert place.chain.stake() == (2 * STAKE, 0)


async def test_a_game_that_a_reorganisation_undid_is_forgotten_and_played_when_it_comes_again(
    place_at: Open, steady_anvil: Node, worker: str, engine: NativeEngine
) -> None:
    async with place_at(steady_anvil, worker) as place:
        job = await place.job("What is AI?")
        # Registered by somebody else: with a block more, what is undone would have been final.
        steady_anvil.transact(
            CHALLENGERS[1], place.chain.models.address, register_model_data(engine.manifest)
        )
        before = steady_anvil.ask("evm_snapshot")
        challenge = place.challenge(job, 0, 1, 2, sham("three"))
        await challenge.open()

        async def answered() -> bool:
            return (await challenge.game()).stage == Stage.CHOOSE

        await eventually(answered)
        assert steady_anvil.ask("evm_revert", before)
        await place.ends(gone=1)
        challenge.forget()
        await challenge.open()
        assert await challenge.to_end() == "refuted"
        await place.ends(refuted=1)


async def test_an_operator_whose_claim_is_a_lie_loses_its_stake_once(
    place_at: Open, steady_anvil: Node, engine: NativeEngine, tmp_path: Path
) -> None:
    process, url = start_worker(tmp_path, MODEL, lie="weight")
    try:
        async with place_at(steady_anvil, url) as place:
            job = await place.job("What is AI?")
            play, position, unit = await honest(engine, job, url)
            waits = place.challenge(job, 1, position, unit, sham("waits"))
            await waits.open()
            challenge = place.challenge(job, 0, position, unit, play)
            await challenge.open()
            assert await challenge.to_end() == "convicted"
            await place.ends(convicted=1, settled=1)  # the agent gave the other challenger its bond back
            await waits.node.close()
            assert place.chain.stake() == (2 * STAKE - SLASH, 0)
            assert place.chain.court.read("owed", CHALLENGERS[1]) == BOND << 2
    finally:
        process.stop()


async def honest(engine: NativeEngine, job: Claimed, liar: str) -> tuple[Player, int, int]:
    """A challenger that has the model: where the claim is wrong, and its moves there."""
    receipt = job.result["receipt"]
    run = {
        "request": canonical_json(job.request).decode(),
        "nonce": b64u_encode(job.nonce),
        "sampling_seed": receipt["sampling_seed"],
        "tokens": job.result["tokens"],
        "state_root": receipt["state_root"],
    }
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        answer = await http.post(
            f"{liar}/api/v1/trace",
            json={"task": "leaves", "run": run, "party": None, "transcript": None},
            headers={"authorization": f"Bearer {WORKER_TOKEN}"},
        )
    served = answer.json()["result"]
    party = Party(engine, MODEL)
    params = decode(Params, job.request["job"]["params"])
    known = party.run(
        job.request["job"]["prompt"],
        job.result["tokens"],
        sampling_params(params, receipt["sampling_seed"]),
        salt=job.nonce,
    )
    assert engine.manifest.graph is not None
    theirs = served_tree(
        job.claim.claim.state_root,
        b64u_decode(served["header"]),
        [b64u_decode(units) for units in served["units"]],
        n_layers=engine.manifest.graph.n_layers,
    )
    found = aim(
        theirs,
        known.tree,
        claimed_tokens=[*served["prompt_tokens"], *job.result["tokens"]],
        own_tokens=list(known.tokens),
    )
    assert found is not None
    assert found.kind == "unit"
    leaf = theirs.units[found.position][found.unit]

    def play(game: ChainGame) -> ChallengerMove:
        said = said_of(game, leaf)
        return challenger_move(game, said, party.against(known, found.position, found.unit, said))

    return play, found.position, found.unit


@pytest.fixture
def own_anvil(tmp_path: Path, steady_anvil: Node) -> Iterator[Node]:
    """A node whose clock this test alone moves."""
    server = EmbeddedAnvil(tmp_path)
    node = Node(server.start())
    node.ask("anvil_autoImpersonateAccount", True)
    yield node
    node.close()
    server.stop()


async def test_a_challenger_that_goes_silent_loses_its_bond_even_while_nothing_is_final(
    place_at: Open, own_anvil: Node, worker: str
) -> None:
    async with place_at(own_anvil, worker) as place:
        challenge = place.challenge(await place.job("What is AI?"), 0, 1, 1, sham("silent"))
        await challenge.open()

        async def stands_at(stage: Stage) -> bool:
            return (await challenge.game()).stage == stage

        await eventually(lambda: stands_at(Stage.CHOOSE))
        own_anvil.wait(GRACE_S + BUDGET_S + 60)  # and its final blocks are in the future now
        await eventually(lambda: stands_at(Stage.OVER))
        await challenge.node.close()
        assert place.chain.court.read("owed", OPERATOR.address) == BOND << 2
        assert place.chain.stake() == (2 * STAKE, 0)


async def test_of_many_challenges_the_oldest_goes_on_before_a_younger_one_begins(
    place_at: Open, steady_anvil: Node, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were each given its turn, more challenges than can be answered in time would all be won by silence."""
    asked: list[int] = []
    ask = WorkerClient.trace

    async def trace(self: WorkerClient, question: dict[str, Any]) -> dict[str, Any]:
        if question["task"] == "court":
            game = decode(ChainGame, parse_json_strict(question["transcript"].encode(), max_bytes=1 << 22))
            asked.extend(number for number, each in enumerate(challenges) if each.id == game.id)
            if asked == [0, 1]:  # while the second one's trace is made, the first one's challenger moves
                await eventually(lambda: waits_for_its_challenger(challenges[0]))
                await challenges[0].move(await challenges[0].game())
        return await ask(self, question)

    async def waits_for_its_challenger(challenge: Challenge) -> bool:
        return (await challenge.game()).mover == "challenger"

    challenges: list[Challenge] = []
    monkeypatch.setattr(WorkerClient, "trace", trace)
    async with place_at(steady_anvil, worker) as place:
        job = await place.job("What is AI?")
        first = place.challenge(job, 3, 0, 99, sham("registers the model"))
        await first.open()
        assert await first.to_end() == "refuted"
        place.wire.cut()
        challenges += [
            place.challenge(job, number, number, 1, sham(f"many {number}", element=0)) for number in range(3)
        ]
        for challenge in challenges:
            await challenge.open()
        place.wire.mend()
        assert await asyncio.gather(*(each.to_end() for each in challenges[1:])) == ["refuted"] * 2
        assert await challenges[0].to_end() == "refuted"
        assert asked[:3] == [0, 1, 0]


async def test_games_that_are_known_go_on_while_the_node_shows_no_events(
    place_at: Open, steady_anvil: Node, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place_at(steady_anvil, worker) as place:
        challenge = place.challenge(await place.job("What is AI?"), 0, 1, 1, sham("four", element=0))
        await challenge.open()

        async def answered() -> bool:
            return (await challenge.game()).mover == "challenger"

        await eventually(answered)
        opened = CourtContract.opened

        async def refused(self: CourtContract, *, first: int, last: int, game: bytes | None = None) -> Any:
            if game is None:
                raise Unavailable("chain.unavailable", "the node refuses: too many results")
            return await opened(self, first=first, last=last, game=game)

        monkeypatch.setattr(CourtContract, "opened", refused)
        assert await challenge.to_end() == "refuted"
        assert any("too many results" in each for each in (await place.scene.status())["problems"])


async def test_a_defect_that_one_challenge_finds_loses_no_other_game(
    place_at: Open, steady_anvil: Node, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = WorkerClient.trace
    broken: set[bytes] = set()

    async def trace(self: WorkerClient, question: dict[str, Any]) -> dict[str, Any]:
        game = decode(ChainGame, parse_json_strict(question["transcript"].encode(), max_bytes=1 << 22))
        if game.id in broken:
            raise ValueError("not one of our errors")
        return await ask(self, question)

    monkeypatch.setattr(WorkerClient, "trace", trace)
    async with place_at(steady_anvil, worker) as place:
        job = await place.job("What is AI?")
        first, second = (
            place.challenge(job, number, number, 1, sham(f"defect {number}", element=0))
            for number in range(2)
        )
        broken.add(first.id)
        await first.open()
        await second.open()
        assert await second.to_end() == "refuted"
        assert any("court.defect" in each for each in (await place.scene.status())["problems"])
        broken.clear()
        assert await first.to_end() == "refuted"
