"""Games on contracts that the two players play to the end, through the adapter, on either kind of EVM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from court_games import CHALLENGER, CLAIMANT, World
from evm import Done, Log, Reverted, Revm
from liars import Claim

from aos.adapters.chain.court import (
    BOUNDS,
    COURT,
    CourtContract,
    Outcome,
    game_id,
    move_data,
    open_data,
    register_model_data,
)
from aos.adapters.chain.node import Block, ChainNode, LogEntry
from aos.adapters.chain.node import Reverted as NodeReverted
from aos.adapters.chain.registry import REGISTRY
from aos.adapters.embedded.anvil import KEYS
from aos.core.codec import decode, encode
from aos.core.dispute.chain_claim import ChainClaim, CourtDomain, claim_hash, sign_claim
from aos.core.dispute.coarse import Aim
from aos.core.dispute.fine.chain_game import UNSEEN, AskParts, ChainGame, Choose, Move, Pick, Prove, Stage
from aos.core.dispute.fine.chain_players import challenger_move, claimant_move, claimed
from aos.core.dispute.fine.onchain import HALVINGS, way_down
from aos.core.dispute.trace_tree import TreeShape
from aos.core.encoding import parse_json_strict
from aos.engine.trace import UnitTrace

CHAIN_ID = 1  # pyrevm's


class EvmNode(ChainNode):
    """pyrevm where a node is expected: what the court's adapter asks, and no more."""

    def __init__(self, evm: Revm) -> None:
        self.evm, self.name, self.chain_id = evm, "pyrevm", CHAIN_ID
        self.told: list[tuple[int, Log]] = []

    def note(self, done: Done) -> None:
        """Remember the logs of a transaction."""
        self.told += [(self.evm.number, log) for log in done.logs]

    async def block(self, which: Any) -> Block:
        number = self.evm.number
        return Block(number=number, hash=hashlib.sha256(str(number).encode()).digest(), time=self.evm.now())

    async def calls(self, to: str, calls: Sequence[bytes], *, block: Block) -> list[bytes]:
        try:
            return [self.evm.call(CLAIMANT, to, data) for data in calls]
        except Reverted as refusal:
            raise NodeReverted(refusal.data) from None

    async def code(self, address: str, *, block: Block) -> bytes:
        return self.evm.code(address)

    async def logs(
        self, address: str, topics: Sequence[bytes | None], *, first: int, last: int
    ) -> list[LogEntry]:
        return [
            LogEntry(block=number, transaction=bytes(32), topics=log.topics, data=log.data)
            for number, log in self.told
            if first <= number <= last
            and log.address == address
            and len(log.topics) >= len(topics)
            and all(topic in (None, there) for topic, there in zip(topics, log.topics, strict=False))
        ]


class Refused(Exception):
    """A move that the contracts refuse, with the error's name."""


@dataclass(kw_only=True)
class Play:
    """One game about ``claim``, at ``aim``; its challenger has ``own``, and goes down by ``choices`` instead where it is a sham."""

    world: World
    node: Any
    send: Callable[[str, bytes, int], Done]
    claim: Claim
    own: Claim
    aim: Aim
    choices: Random | None = None
    chain_id: int = CHAIN_ID
    receipt: bytes = b"\x07" * 32

    def __post_init__(self) -> None:
        known = self.claim.known.run
        self.statement = ChainClaim(
            claimant=CLAIMANT,
            receipt=self.receipt,
            model_id=known.manifest.model_id,
            state_root=known.state_root,
            expires=2**40,
        )
        self.claim_id = claim_hash(self.statement)
        self.id = game_id(self.claim_id, CHALLENGER)
        self.court = CourtContract(self.node, self.world.court.address)
        self.moves: list[str] = []

    def register(self) -> None:
        """The model."""
        data = register_model_data(self.claim.known.run.manifest)
        self.world.evm.transact(CHALLENGER, self.world.models.address, data)

    async def open(self) -> None:
        """The challenge."""
        domain = CourtDomain(chain_id=self.chain_id, court=self.world.court.address)
        signed = sign_claim(KEYS[1], self.statement, domain)
        bond = await self.court.required_bond(self.claim_id, await self.node.block("latest"))
        data = open_data(self.statement, signed.signature, self.aim.position, self.aim.unit)
        self.send(CHALLENGER, data, bond)

    async def game(self) -> ChainGame:
        """As it stands."""
        found = await self.court.game(self.id, await self.node.block("latest"))
        assert found is not None
        return found

    async def step(self) -> bool:
        """The mover's move; False where the game is over."""
        game = await self.game()
        if game.stage == Stage.OVER:
            return False
        sender = CLAIMANT if game.mover == "claimant" else CHALLENGER
        move = self.claimants(game) if game.mover == "claimant" else self.challengers(game)
        # As an operator's agent hands it to whoever has the trace, and back.
        assert (
            decode(type(move), parse_json_strict(json.dumps(encode(move)).encode(), max_bytes=1 << 24))
            == move
        )
        step = (
            await self.court.step_of(move, await self.node.block("latest")) if isinstance(move, Prove) else 0
        )
        self.moves.append(type(move).__name__)
        try:
            self.send(sender, move_data(game.id, move, step=step), 0)
        except Refused:
            if sender == CHALLENGER or self.claim.told is None:
                raise
            # What it committed cannot be opened at all: it has no move.
            self.moves[-1] = "silence"
            self.world.evm.wait(game.deadline - self.world.evm.now() + 1)
            self.send(CHALLENGER, COURT.call("timeout", game.id), 0)
        return True

    def claimants(self, game: ChainGame) -> Move:
        """The claimant's move."""
        trace = self.claim.trace(game.position, game.unit)
        known = self.claim.known.run
        return claimant_move(game, known, trace.bounds, trace if isinstance(trace, UnitTrace) else None)

    def challengers(self, game: ChainGame) -> Move:
        """The challenger's."""
        rng = self.choices
        if rng is None:
            leaf = self.claim.known.tree.units[game.position][game.unit]
            said = claimed(game, leaf)
            trace = self.own.trace(game.position, game.unit, said)  # type: ignore[arg-type]
            assert isinstance(trace, UnitTrace)
            return challenger_move(game, said, trace)
        if game.stage == Stage.PICK:
            return Pick(element=rng.randrange(8))
        if not game.asked and rng.random() < 0.2:
            return AskParts()
        shape = TreeShape(game.tiles)
        level, first, end = game.node
        target = rng.randrange(len(game.children))
        path, siblings = way_down(shape, (level, first, end), HALVINGS, game.children, target)
        element = rng.choice((UNSEEN, UNSEEN, 0, rng.randrange(300)))
        return Choose(path=path, node=game.children[target], siblings=tuple(siblings), element=element)

    async def play(self) -> Outcome:
        """Open it, and move until it is over."""
        await self.open()
        while await self.step():
            pass
        return await self.court.outcome(await self.game(), await self.node.block("latest"))


def on_revm(world: World) -> tuple[EvmNode, Callable[[str, bytes, int], Done]]:
    """A node of the world's EVM, and how transactions get to its court."""
    assert isinstance(world.evm, Revm)
    node = EvmNode(world.evm)

    def send(sender: str, data: bytes, value: int) -> Done:
        try:
            done = world.evm.transact(sender, world.court.address, data, value)
        except Reverted as refusal:
            named = (each.error(refusal.data) for each in (COURT, BOUNDS, REGISTRY))
            raise Refused(next((name for name in named if name), refusal.data.hex())) from None
        node.note(done)
        return done

    return node, send
