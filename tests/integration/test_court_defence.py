"""The claimant's agent against a real node: its operator is challenged at the court, and nobody helps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from court_games import BOND, STAKE
from dispute_runs import model_file
from evm import Node
from peers.court_case import (
    CHALLENGERS,
    Chain,
    Challenge,
    claimed,
    configure,
    keeps_mining,
    sham,
    start_worker,
)
from peers.operator_under_test import OPERATOR, OperatorProcess, Scene, eventually, scene

from aos.engine.reference import ReferenceEngine

MODEL = "tiny-q4_0"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, url = start_worker(tmp_path_factory.mktemp("worker"), model_file(MODEL))
    yield url
    process.stop()


@pytest.fixture(scope="module")
def model_id() -> bytes:
    return ReferenceEngine(model_file(MODEL)).manifest.model_id


@dataclass(kw_only=True)
class Place:
    """An operator as a process of its own, at its court."""

    scene: Scene
    chain: Chain
    process: OperatorProcess

    def again(self) -> None:
        """kill -9, and the next process."""
        self.process.kill()
        self.process.start()

    async def court(self) -> dict[str, Any]:
        return dict((await self.scene.status())["court"])


@pytest.fixture
async def place(
    tmp_path: Path, pg_url: str, redis_url: str, steady_anvil: Node, worker: str, model_id: bytes
) -> AsyncIterator[Place]:
    async with scene(tmp_path, pg_url, redis_url) as found:
        found.dispatcher.model_ids = (model_id,)
        chain = Chain.deploy(steady_anvil, found.dispatcher.keys.address)
        configure(found, chain, worker)
        process = OperatorProcess(found.path, tmp_path / "operator.log")
        process.start()
        try:
            await found.ready()
            yield Place(scene=found, chain=chain, process=process)
        finally:
            process.kill()


async def test_a_sham_challenge_is_refuted_through_a_kill_before_every_move(
    place: Place, model_id: bytes
) -> None:
    job = await claimed(place.scene.dispatcher, model_id, prompt="what is the")
    challenge = Challenge(
        chain=place.chain, claim=job.claim, account=CHALLENGERS[0], position=2, unit=1, play=sham("one")
    )
    assert await challenge.to_end(between=place.again) == "refuted"
    assert len(challenge.moves) >= 2
    async with keeps_mining(place.chain.node):

        async def paid() -> bool:
            games = (await place.court())["games"]
            return games == {"refuted": 1} and place.chain.court.read("owed", OPERATOR.address) == 0

        assert await eventually(paid, timeout_s=60)
    assert place.chain.stake() == (2 * STAKE, 0)
    assert place.chain.node.balance(place.chain.court.address) == 0
    assert BOND
    await asyncio.sleep(0)
