"""Whatever anybody does: no money is made or lost, every stake is held exactly while games run, and no game is stuck."""

import copy
import random
from dataclasses import replace

import pytest
from court_games import (
    BOND,
    BUDGET,
    CHALLENGER,
    CLAIMANT,
    GRACE,
    OTHER,
    OWNER,
    SLASH,
    STAKE,
    Match,
    World,
    build,
    sign,
)
from dispute_runs import GREEDY, TinyRun, changed, flipped, tiny_run
from evm import ACCOUNTS, Done, Reverted, Revm, deploy, names

from aos.core.dispute.fine.around import prove_tokens
from aos.core.dispute.fine.bounds import state_shape
from aos.core.dispute.fine.chain_around import TOKENS_UNIT, open_token
from aos.core.dispute.fine.element import element_count
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.state_tree import tokens_root

CHALLENGERS = (CHALLENGER, OTHER, ACCOUNTS[4], ACCOUNTS[5])
ANSWER, REVEAL, CHOOSE, PROVE, OVER = 1, 2, 3, 4, 5
START = 4 * STAKE


class TokenGame:
    """A game about the token behind a position; what is no move in one is tried all the same."""

    def __init__(
        self, world: World, run: TinyRun, tokens: list[int], position: int, challenger: str, receipt: int
    ) -> None:
        self.court, self.challenger, self.position, self.unit = world.court, challenger, position, TOKENS_UNIT
        known = run.known
        header = replace(known.tree.header, tokens_root=tokens_root(tokens))
        tree = StateTree(header, known.tree.units)
        model_id = known.run.manifest.model_id
        self.claim = (CLAIMANT, receipt.to_bytes(32, "big"), model_id, tree.root, 2**40)
        self.claim_id = world.court.read("claimHash", self.claim)
        self.signature = sign(world, self.claim_id)
        self.id = world.court.read("gameId", self.claim_id, challenger)
        if header.n_prompt <= position + 1 < len(tokens):
            payload = run.trace(position, run.tail).payload(position, run.tail)
            self.proof = open_token(tree, state_shape(known.run, header, None), tokens, position, payload)
        else:
            self.proof = prove_tokens(tree, tokens, position, None, None)

    def open(self, *, value: int | None = None) -> Done:
        bond = self.court.read("requiredBond", self.claim_id) if value is None else value
        return self.court.send(
            self.challenger, "open", self.claim, self.signature, self.position, self.unit, value=bond
        )

    def answer(self) -> Done:
        return self.court.send(CLAIMANT, "answerTokens", self.id, *self.claim[2:4], self.proof)

    def descend(self, tile: int, element: int, *, at_once: bool) -> Done:
        return self.court.send(self.challenger, "choose", self.id, 0, 0, bytes(32), [], element)

    def prove(self, tile: int, element: int) -> Done:
        return self.court.send(CLAIMANT, "reveal", self.id, [])

    def convict(self) -> Done:
        """Without a game."""
        args = (self.claim, self.signature, self.position, self.proof)
        return self.court.send(self.challenger, "convictToken", *args)


class Table:
    """Four claims of one operator, two of them right, one with a lie in a unit and one with another token than was chosen;
    and games about them in any order.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world: World = build(Revm())
        self.court = self.world.court
        run = tiny_run("tiny-f32", "what is the meaning", GREEDY)
        honest = run.trace(run.last, 1)
        self.lie = honest.shape.named("gate.chunks").first
        liar = changed(copy.copy(honest), self.lie, lambda data: flipped(data, 1))
        self.games: list[Match | TokenGame] = [
            Match(
                world=self.world,
                run=run,
                trace=trace,
                position=run.last,
                unit=1,
                challenger=who,
                receipt=bytes([number]) * 32,
                committed=honest,
            )
            for number, trace in enumerate((honest, liar))
            for who in CHALLENGERS
        ]
        Match.register(self.world, run.known.run.manifest)
        self.run, self.honest = run, honest
        tokens = list(run.known.tokens)
        other = [*tokens[:-1], tokens[-1] ^ 1]
        self.games += [
            TokenGame(self.world, run, said, run.last - (number - 2) * behind, who, number)
            for number, said in ((2, other), (3, tokens))
            for behind, who in enumerate(CHALLENGERS)
        ]
        self.targets = {game.id: self._target(game) for game in self.games}
        self.paid = 0

    def _target(self, game: Match) -> tuple[int, int]:
        """The tile that the game is about, and its element."""
        tile = self.lie if self.rng.random() < 0.5 else self.rng.randrange(self.honest.shape.n_tiles)
        return tile, self.rng.randrange(element_count(self.honest.shape, tile))

    def stage(self, game: Match) -> int:
        found: int = self.court.read("games", game.id)[3]
        return found

    def act(self) -> None:
        """Something, lawful or not."""
        rng = self.rng
        game = rng.choice(self.games)
        tile, element = self.targets[game.id]
        actions = {
            0: lambda: game.open(value=rng.choice([None, None, BOND, 0])),
            ANSWER: game.answer,
            CHOOSE: lambda: game.descend(tile, element, at_once=True),
            PROVE: lambda: game.prove(tile, element),
            OVER: lambda: self.court.send(rng.choice(ACCOUNTS[:6]), "withdraw", rng.choice(ACCOUNTS[:6])),
        }
        choice = rng.random()
        if choice < 0.15:
            self.world.evm.wait(rng.choice([1, GRACE, BUDGET // 2, BUDGET + GRACE + 1]))
        elif choice < 0.3:
            function = rng.choice(["timeout", "settle"])
            self.court.send(rng.choice(CHALLENGERS), function, game.id)
        elif choice < 0.34:
            token = rng.choice([each for each in self.games if isinstance(each, TokenGame)])
            if names(self.court.events(token.convict())) != ["Convicted"] or token.claim[1][-1] != 2:
                raise RuntimeError("convicted of what is right")
        elif choice < 0.85:
            actions[self.stage(game)]()
        else:
            rng.choice(list(actions.values()))()

    def check(self) -> None:
        """What always holds."""
        games = [self.court.read("games", game.id) for game in self.games]
        open_bonds = sum(game[8] for game in games if game[3] not in (0, OVER))
        owed = sum(self.court.read("owed", account) for account in ACCOUNTS)
        assert self.world.evm.balance(self.court.address) == open_bonds + owed
        running = sum(game[3] not in (0, OVER) for game in games)
        stake, _, _, locks, _ = self.world.registry.read("operatorInfo", CLAIMANT)
        assert locks == running
        for game in self.games:
            assert self.court.read("running", game.claim_id) <= len(CHALLENGERS)
        convicted = any(self.court.read("convicted", game.claim_id) for game in self.games)
        assert stake >= START - 4 * SLASH
        if not convicted:
            assert stake == START
        registry = self.world.registry
        kept = sum(registry.read("owed", account) for account in ACCOUNTS) + registry.read("burnt")
        assert self.world.evm.balance(registry.address) == stake + kept == START

    def finish(self) -> None:
        """Every game can be ended by anybody, whatever its parties do."""
        self.world.evm.wait(2 * (BUDGET + GRACE) + 1)
        for game in self.games:
            if self.stage(game) not in (0, OVER):
                self.court.send(OWNER, "timeout", game.id)
                assert self.stage(game) == OVER
        for account in ACCOUNTS:
            if self.court.read("owed", account):
                self.court.send(account, "withdraw", account)
        assert self.world.evm.balance(self.court.address) == 0
        self.check()


@pytest.mark.parametrize("seed", range(3))
def test_random_moves_break_nothing(seed: int) -> None:
    table = Table(seed)
    done = 0
    for _ in range(100):
        try:
            table.act()
            done += 1
        except (Reverted, AssertionError):
            pass
        table.check()
    assert done > 15
    table.finish()


def test_an_operator_that_plays_is_never_slashed_for_what_is_right() -> None:
    """Whatever tile and element a challenger goes to, and by whichever way."""
    table = Table(9)
    rng = random.Random(9)
    for game in table.games[: len(CHALLENGERS)]:
        assert isinstance(game, Match)
        tile = rng.randrange(table.honest.shape.n_tiles)
        element = rng.randrange(element_count(table.honest.shape, tile))
        game.open()
        game.answer()
        game.descend(tile, element, at_once=bool(rng.randrange(2)))
        game.prove(tile, element)
        assert table.stage(game) == OVER
    right = list(table.run.known.tokens)
    places = [0, table.run.last, table.run.last + 1, rng.randrange(len(right))]
    for position, who in zip(places, CHALLENGERS, strict=True):
        about = TokenGame(table.world, table.run, right, position, who, 3)
        with pytest.raises(Reverted):
            about.convict()
        about.open()
        about.answer()
    stake, _, _, locks, registered = table.world.registry.read("operatorInfo", CLAIMANT)
    assert (stake, locks, registered) == (START, 0, True)
    assert table.court.read("owed", CLAIMANT) == 2 * len(CHALLENGERS) * BOND


def test_whoever_takes_its_money_takes_it_once() -> None:
    table = Table(10)
    world, game = table.world, table.games[0]
    thief = deploy(world.evm, "CourtThief", world.court.address)
    bond = world.court.read("requiredBond", game.claim_id)
    data = world.court.contract.call("open", game.claim, game.signature, game.position, game.unit)
    thief.send(OWNER, "act", data, value=bond)
    id_ = world.court.read("gameId", game.claim_id, thief.address)
    world.evm.wait(BUDGET + GRACE + 1)
    world.court.send(OTHER, "timeout", id_)
    assert world.court.read("owed", thief.address) == bond
    other = table.games[len(CHALLENGERS)]
    other.open()
    before = world.evm.balance(world.court.address)
    thief.send(OWNER, "act", world.court.contract.call("withdraw", thief.address))
    assert thief.read("attempts") == 1
    assert world.evm.balance(world.court.address) == before - bond
