"""Games at a court on a real node, through journals: killed at any move, dropped, reorganised; an honest party still wins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import court_games
import pytest
from chain_node import GENUINE, Between, connect, rich_key, settle
from court_games import BOND, GRACE, SLASH, World, build
from dispute_real import NONCE
from dispute_toy import Key
from evm import ACCOUNTS, ETHER, Node
from liar_games import JOBS, aimed, case_about
from liars import Claim, early_stop, honest, lie_at, swapped_token

from aos.adapters.chain.court import CourtContract, accuse_data, game_id, register_model_data
from aos.adapters.chain.court_seat import Seat, challenge, collect, convict_at_once
from aos.adapters.chain.journal import Journal
from aos.adapters.chain.node import ChainNode
from aos.adapters.chain.registry import SQL
from aos.adapters.embedded.anvil import CHAIN_ID, KEYS, EmbeddedAnvil
from aos.adapters.postgres import Pool, connect_pool, migrate
from aos.cli.challenge_chain import Target
from aos.core.dispute.chain_claim import ChainClaim, CourtDomain, SignedChainClaim, claim_hash, sign_claim
from aos.core.dispute.coarse import Aim
from aos.core.dispute.fine.bounds import state_shape
from aos.core.dispute.fine.chain_around import Accusation, accuse_token
from aos.core.dispute.fine.chain_game import ChainGame, ChallengerMove, Stage
from aos.core.dispute.fine.chain_players import challenger_move, claimant_move, claimed
from aos.core.dispute.state_opening import StateTree
from aos.engine.trace import UnitTrace
from aos.errors import RuleViolation, VerificationError

CLAIMANT = ACCOUNTS[1]
POLL_S = 0.02


@pytest.fixture
async def pool(pg_url: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(pg_url)
    await migrate(pool, SQL)
    yield pool
    await pool.close()


@pytest.fixture
def world(node: Node) -> World:
    return build(node)


def lie() -> tuple[Claim, Claim, Aim]:
    """A liar's claim, the honest run, and where they differ."""
    run = honest(JOBS[0])
    position = run.header.n_positions - 1
    tile = run.at(position, 1).shape.named("gate.chunks").first
    claim = lie_at(run.job, position, 1, tile, alteration="signs")
    assert claim is not None
    aim = aimed(claim, run)
    assert aim is not None
    return claim, run, aim


class Table:
    """A claim at the court, whoever sits down to play about it."""

    def __init__(
        self,
        pool: Pool,
        url: str,
        world: World,
        claim: Claim,
        receipt: int = 7,
        *,
        registers: bool = True,
    ) -> None:
        self.pool, self.url, self.world, self.claim = pool, url, world, claim
        self.nodes: list[ChainNode] = []
        known = claim.known.run
        self.between = Between()
        statement = ChainClaim(
            claimant=CLAIMANT,
            receipt=receipt.to_bytes(32, "big"),
            model_id=known.manifest.model_id,
            state_root=known.state_root,
            expires=2**40,
        )
        self.signed: SignedChainClaim = sign_claim(
            KEYS[1], statement, CourtDomain(chain_id=CHAIN_ID, court=world.court.address)
        )
        self.id = claim_hash(statement)
        self.manifest = known.manifest
        if registers:
            world.evm.transact(ACCOUNTS[0], world.models.address, register_model_data(known.manifest))

    def seat(self, key: bytes, between: Between | None = None) -> Seat:
        node = connect(self.url, between)
        self.nodes.append(node)
        return Seat(node, CourtContract(node, self.world.court.address), Journal(self.pool, node, key))

    async def __aenter__(self) -> Table:
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            await node.close()

    async def challenged(self) -> None:
        """Until a game runs."""
        while self.world.court.read("running", self.id) == 0:  # noqa: ASYNC110  it is the chain's to say
            await asyncio.sleep(POLL_S)

    async def defend(self, seat: Seat, game: bytes) -> None:
        """The claimant's part, until the game is over."""
        while True:
            await seat.step()
            block = await seat.node.block("latest")
            found = await seat.court.game(game, block)
            if found is not None and found.stage == Stage.OVER:
                return
            if found is not None and found.mover == "claimant" and not await seat.unmined(game):
                trace = self.claim.trace(found.position, found.unit)
                shown = trace if isinstance(trace, UnitTrace) else None
                await seat.move(found, claimant_move(found, self.claim.known.run, trace.bounds, shown), block)
            await asyncio.sleep(POLL_S)

    def challenger(self, own: Claim) -> Any:
        async def play(game: ChainGame) -> ChallengerMove:
            said = claimed(game, self.claim.known.tree.units[game.position][game.unit])
            trace = own.trace(game.position, game.unit, said)  # type: ignore[arg-type]
            assert isinstance(trace, UnitTrace)
            return challenger_move(game, said, trace)

        return play


async def until_final(work: asyncio.Task[Any], node: Node) -> Any:
    """Let blocks come until the work is done."""
    while not work.done():
        settle(node)
        await asyncio.sleep(0.05)
    return work.result()


async def test_a_challenger_that_is_killed_at_every_transaction_still_wins(
    pool: Pool, anvil: EmbeddedAnvil, node: Node, world: World
) -> None:
    claim, own, aim = lie()
    async with Table(pool, anvil.url, world, claim) as table:
        key, address = rich_key(node)
        game = game_id(table.id, address)
        defence = asyncio.create_task(table.defend(table.seat(KEYS[1]), game))
        sent: set[str] = set()

        def dies(method: str, params: list[Any]) -> Any:
            """The first time each transaction is sent, the process is gone."""
            if method == "eth_sendRawTransaction" and params[0] not in sent:
                sent.add(params[0])
                raise asyncio.CancelledError
            return GENUINE

        table.between.hook = dies
        deaths = 0
        while True:
            seat = table.seat(key, table.between)
            try:
                outcome = await challenge(
                    seat, table.signed, aim.position, aim.unit, table.challenger(own), poll_s=POLL_S
                )
                break
            except asyncio.CancelledError:
                deaths += 1
        assert (outcome.kind, outcome.code) == ("convicted", "tile.value")
        await defence
        assert deaths == len(sent) >= 4
        assert world.court.read("owed", address) == BOND
        assert world.registry.read("owed", address) == SLASH // 2
        table.between.hook = lambda _, __: GENUINE
        seat = table.seat(key)
        before = node.balance(address)
        gained = await until_final(asyncio.create_task(collect(seat, game, poll_s=POLL_S)), node)
        assert gained == BOND + SLASH // 2
        assert node.balance(address) > before + gained - 10**16
        spent = await seat.spent(game)
        assert [what for what, _ in spent][:2] == ["open", "choose"]
        assert [what for what, _ in spent][-2:] == ["withdraw", "reward"]
        assert all(20_000 < gas < 1_000_000 for _, gas in spent)
        # Called again, it takes nothing up again.
        again = await challenge(
            seat, table.signed, aim.position, aim.unit, table.challenger(own), poll_s=POLL_S
        )
        assert again == outcome
        assert await seat.spent(game) == spent


async def test_another_challenger_of_a_convicted_claim_is_told_so_and_a_game_beside_is_settled(
    pool: Pool, anvil: EmbeddedAnvil, node: Node, world: World
) -> None:
    claim, own, aim = lie()
    async with Table(pool, anvil.url, world, claim, receipt=8) as table:
        (first, winner), (second, beside), (third, _) = rich_key(node), rich_key(node), rich_key(node)

        async def challenged(key: bytes, play: Any = None) -> Any:
            return await challenge(
                table.seat(key),
                table.signed,
                aim.position,
                aim.unit,
                play or table.challenger(own),
                poll_s=POLL_S,
            )

        waiting = asyncio.Event()

        async def slow(game: ChainGame) -> ChallengerMove:
            await waiting.wait()
            return await table.challenger(own)(game)  # type: ignore[no-any-return]

        slowly = asyncio.create_task(challenged(second, slow))
        await table.challenged()
        games = [game_id(table.id, who) for who in (winner, beside)]
        defences = [asyncio.create_task(table.defend(table.seat(KEYS[1]), game)) for game in games]
        assert (await challenged(first)).kind == "convicted"
        waiting.set()
        assert (await slowly).kind == "settled"
        assert world.court.read("owed", beside) == BOND
        await asyncio.gather(*defences)
        with pytest.raises(RuleViolation) as refusal:
            await challenged(third)
        assert refusal.value.code == "court.convicted"


async def test_a_silent_claimant_is_timed_out_and_a_late_challenger_is_told(
    pool: Pool, anvil: EmbeddedAnvil, node: Node, world: World
) -> None:
    claim, own, aim = lie()
    async with Table(pool, anvil.url, world, claim, receipt=9) as table:
        key, address = rich_key(node)
        budget = world.court.read("budget")
        playing = asyncio.create_task(
            challenge(
                table.seat(key), table.signed, aim.position, aim.unit, table.challenger(own), poll_s=POLL_S
            )
        )
        await table.challenged()
        node.wait(GRACE + budget + 1)
        outcome = await playing
        assert (outcome.kind, outcome.code) == ("convicted", "silent")

        async with Table(pool, anvil.url, world, claim, receipt=10) as late:
            key, address = rich_key(node)
            game = game_id(late.id, address)
            seat = late.seat(key)

            async def never(game: ChainGame) -> ChallengerMove:
                node.wait(GRACE + budget + 1)
                return await late.challenger(own)(game)  # type: ignore[no-any-return]

            defence = asyncio.create_task(late.defend(late.seat(KEYS[1]), game))
            with pytest.raises(RuleViolation) as refusal:
                await challenge(seat, late.signed, aim.position, aim.unit, never, poll_s=POLL_S)
            assert refusal.value.code == "court.late"
            defence.cancel()


def other_token() -> tuple[Claim, Accusation]:
    """A claim whose last token is not the one that its tail chose, and what convicts it."""
    own = honest(JOBS[0])
    at = len(own.known.tokens) - 1
    claim = swapped_token(own.job, at, (own.known.tokens[at] + 1) % 200, disclosed=True)
    assert claim is not None
    tail = own.n_layers + 1
    payload = own.at(at - 1, tail).payload(at - 1, tail)
    shape = state_shape(claim.known.run, claim.header, None)
    return claim, accuse_token(claim.known.tree, shape, claim.known.tokens, at - 1, payload)


async def test_a_claim_is_convicted_at_once_though_the_liar_registered_no_model(
    pool: Pool, anvil: EmbeddedAnvil, node: Node, world: World
) -> None:
    """And though its challenger could not pay at first."""
    claim, accusation = other_token()
    async with Table(pool, anvil.url, world, claim, receipt=11, registers=False) as table:
        (key, address), (slow, loser) = rich_key(node, 0), rich_key(node)

        async def convict(key: bytes) -> Any:
            seat = table.seat(key)
            return await convict_at_once(seat, table.signed, accusation, table.manifest, poll_s=POLL_S)

        with pytest.raises(RuleViolation, match="insufficient funds"):
            await convict(key)
        node.ask("anvil_setBalance", address, hex(10**18))
        outcome = await convict(key)
        assert (outcome.kind, outcome.code) == ("convicted", "around.tokens")
        assert world.registry.read("owed", address) == SLASH // 2
        assert await convict(key) == outcome
        game = game_id(table.id, address)
        assert [what for what, _ in await table.seat(key).spent(game)] == ["register", "convictToken"]

        # Whose transaction came behind another's is not told that it has won.
        data = accuse_data(table.signed.claim, table.signed.signature, accusation)
        seat = table.seat(slow)
        entry = await seat.act(game_id(table.id, loser), accusation.function, data)
        await seat.step()
        row = await seat.journal.entry(entry.purpose)
        assert row is not None
        assert row.state == "failed"
        with pytest.raises(RuleViolation) as refusal:
            await convict(slow)
        assert refusal.value.code == "court.convicted"


@pytest.mark.parametrize(("name", "value"), [("GRACE", 59), ("BUDGET", 3_599)])
async def test_no_bond_is_put_down_at_a_court_without_time(
    pool: Pool, anvil: EmbeddedAnvil, node: Node, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    """A liar's claim may name a court of its own."""
    monkeypatch.setattr(court_games, name, value)
    claim, own, aim = lie()
    world = build(node)
    async with Table(pool, anvil.url, world, claim, receipt=12) as table:
        key, address = rich_key(node)
        with pytest.raises(RuleViolation) as refusal:
            await challenge(
                table.seat(key), table.signed, aim.position, aim.unit, table.challenger(own), poll_s=POLL_S
            )
        assert refusal.value.code == "court.clock"
        assert node.balance(address) == 100 * ETHER


class Asked:
    """What `aos challenge` knows of a claim, as ``Target`` asks it: ``own`` is its run."""

    def __init__(self, claim: Claim, own: Claim, **members: Any) -> None:
        case = case_about(claim, Key("claimant"))
        assert case.params is not None
        self.core = replace(case.core, operator=CLAIMANT, **members)
        self.answer, self.params, self.known = SimpleNamespace(nonce=NONCE), case.params, own.known
        self.party = SimpleNamespace(trace=lambda _, position, unit: own.trace(position, unit))
        n_prompt = claim.header.n_prompt
        tokens = list(claim.disclosed or claim.known.tokens)
        self._prompt, self.claimed_tokens = tokens[:n_prompt], tokens[n_prompt:]
        self._tree, self._aim = claim.known.tree, lambda: aimed(claim, own)
        self.own = own

    def claimed(self) -> tuple[StateTree, list[int]]:
        return self._tree, self._prompt

    def aim(self) -> Aim | None:
        return self._aim() if self._tree.root != self.own.root else None


def test_what_there_is_to_do_about_a_claim() -> None:
    run = honest(JOBS[0])
    assert Target.of(Asked(run, run)) is None  # type: ignore[arg-type]
    claim, own, aim = lie()
    found = Target.of(Asked(claim, own))  # type: ignore[arg-type]
    assert found is not None
    assert (found.aim, found.accusation) == (aim, None)
    # The run is the model's, and its receipt says something else.
    told = Target.of(Asked(run, run, n_out=run.header.n_out - 1))  # type: ignore[arg-type]
    assert told is not None
    assert told.accusation is not None
    assert told.accusation.function == "convictReceipt"
    with pytest.raises(VerificationError) as refusal:
        Target.of(Asked(run, run, tokens_hash=bytes(32)))  # type: ignore[arg-type]
    assert refusal.value.code == "dispute.foreign_data"
    early = early_stop(run.job, 3, "stop")
    assert early is not None
    with pytest.raises(RuleViolation) as refused:
        Target.of(Asked(early, run))  # type: ignore[arg-type]
    assert refused.value.code == "court.no_game"


async def test_a_claim_of_another_token_than_its_tail_chose_is_convicted_in_one_transaction(
    pool: Pool, anvil: EmbeddedAnvil, node: Node, world: World
) -> None:
    run = honest(JOBS[0])
    at = len(run.known.tokens) - 3
    claim = swapped_token(run.job, at, next(t for t in (5, 6) if t != run.known.tokens[at]), disclosed=True)
    assert claim is not None
    found = Target.of(Asked(claim, run))  # type: ignore[arg-type]
    assert found is not None
    assert found.accusation is not None
    async with Table(pool, anvil.url, world, claim, receipt=11) as table:
        key, address = rich_key(node)
        seat = table.seat(key)
        outcome = await convict_at_once(seat, table.signed, found.accusation, table.manifest, poll_s=POLL_S)
        assert (outcome.kind, outcome.code) == ("convicted", "around.tokens")
        assert (
            await convict_at_once(seat, table.signed, found.accusation, table.manifest, poll_s=POLL_S)
            == outcome
        )
        game = game_id(table.id, address)
        gained = await until_final(asyncio.create_task(collect(seat, game, poll_s=POLL_S)), node)
        assert gained == SLASH // 2
        assert [what for what, _ in await seat.spent(game)] == ["convictToken", "reward"]
        other, _ = rich_key(node)
        with pytest.raises(RuleViolation) as refusal:
            await convict_at_once(
                table.seat(other), table.signed, found.accusation, table.manifest, poll_s=POLL_S
            )
        assert refusal.value.code == "court.convicted"
