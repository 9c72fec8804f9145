"""``aos challenge --on-chain``: a challenge at the court of the claim's chain (docs/chain.md, docs/spec/16-chain-disputes.md)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from aos.adapters.chain.court import CourtContract, CourtFacts, Outcome, game_id
from aos.adapters.chain.court_seat import Seat, challenge, collect, convict_at_once
from aos.adapters.chain.journal import Journal
from aos.adapters.chain.node import ChainNode
from aos.adapters.chain.registry import REGISTRY, SQL, Finality
from aos.adapters.embedded.postgres import EmbeddedPostgres
from aos.adapters.postgres import connect_pool, create_database, migrate
from aos.cli import voice
from aos.cli.chain import confirm, ether
from aos.cli.challenge import Player
from aos.cli.logs import quiet
from aos.client.settings import state_dir
from aos.core import hashes
from aos.core.dispute.chain_claim import SignedChainClaim, check_claim, claim_hash, parse_claim
from aos.core.dispute.coarse import Aim
from aos.core.dispute.fine.bounds import state_shape
from aos.core.dispute.fine.chain_around import Accusation, accuse, accuse_token, aim_at_unit
from aos.core.dispute.fine.chain_game import ChainGame, ChallengerMove
from aos.core.dispute.fine.chain_players import challenger_move, claimed
from aos.core.dispute.state_opening import StateTree
from aos.engine.trace import UnitTrace
from aos.errors import RuleViolation, VerificationError

WORDS = {
    "open": "opening the game",
    "choose": "going down the trace",
    "askParts": "asking for the hashes of the tiles that the state root commits",
    "pick": "naming an element of the tile",
    "timeout": "the claimant's time is over",
    "settle": "another game has convicted the claim",
}
EXIT_CODES = {"refuted": 0, "convicted": 10, "settled": 11}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnChain:
    """What the command was told."""

    rpc_url: str
    court: str
    database: str
    max_fee_gwei: int
    yes: bool
    as_json: bool


def challenge_on_chain(player: Player, asked: OnChain) -> int:
    """Challenge where there is something to challenge; the exit code.

    Raises RuleViolation ``court.*``, ``chain_claim.*``, ``dispute.*``, ``chain.failed``; VerificationError ``chain_claim.*``,
    ``chain.*``, ``dispute.*``; InvalidMessage, Unavailable ``chain.*``.
    """
    quiet()
    found = Target.of(player)
    if found is None:
        if asked.as_json:
            voice.data_json("challenge.chain", {"state": "SAME", "exit_code": 0, "game": None})
        else:
            voice.data("SAME: this model computes what the claim says; there is nothing to challenge")
        return 0
    signed = parse_claim(player.chain_claim())
    check_claim(signed, player.core, signed.domain, valid_until=0)
    if asked.court and asked.court.lower() != signed.domain.court:
        raise VerificationError(
            "chain_claim.court",
            f"the operator signed its claim for the court {signed.domain.court}, not for {asked.court.lower()}",
            field="--court",
        )
    return asyncio.run(_run(player, found, signed, asked))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to do about a claim: convict it by its own data, or play about a unit."""

    tree: StateTree
    aim: Aim | None = None
    accusation: Accusation | None = None

    @classmethod
    def of(cls, player: Player) -> "Target | None":
        known, core, nonce = player.known, player.core, player.answer.nonce
        own = known.tree
        tree, prompt = own, list(known.tokens[: own.header.n_prompt])
        if own.root != core.state_root:
            tree, prompt = player.claimed()
        tokens = [*prompt, *player.claimed_tokens]
        for name, computed, stated in (
            ("prompt_tokens", hashes.prompt_tokens_hash(nonce, prompt), core.prompt_tokens_hash),
            ("tokens", hashes.tokens_hash(nonce, player.claimed_tokens), core.tokens_hash),
            ("params", hashes.params_hash(nonce, player.params), core.params_hash),
        ):
            if computed != stated:
                raise VerificationError(
                    "dispute.foreign_data", f"the {name} shown are not those of the claim", field=name
                )
        if found := accuse(core, tree, nonce=nonce, params=player.params, tokens=tokens):
            return cls(tree=tree, accusation=found)
        aim = player.aim()
        if aim is None:
            return None
        if aim.kind == "tokens":
            header, units = tree.header, tree.units
            trap_unit = len(units[-1]) - 1 if header.finish_reason == "numeric_trap" else None
            shape = state_shape(known.run, header, trap_unit)
            tail = player.party.trace(known, aim.position, shape.n_layers + 1)
            assert isinstance(tail, UnitTrace)  # noqa: S101  the claim's tail there is this run's
            payload = tail.payload(aim.position, shape.n_layers + 1)
            return cls(tree=tree, accusation=accuse_token(tree, shape, tokens, aim.position, payload))
        limits = {"max_tokens": player.params.max_tokens, "n_ctx": known.run.graph.n_ctx}
        unit = aim_at_unit(aim, tree, own, **limits)
        if unit is None:
            raise RuleViolation(
                "court.no_game",
                f"the claim differs in what is around the model ({aim.kind}), which no court on a chain judges",
                hint="without --on-chain it is challenged off the chain",
            )
        return cls(tree=tree, aim=unit)

    def say(self) -> str:
        if self.aim is not None:
            return f"unit {self.aim.unit} at position {self.aim.position}"
        return "convicted at once by its own data" if self.accusation else ""


async def _run(player: Player, found: Target, signed: SignedChainClaim, asked: OnChain) -> int:
    async with _seated(player.key, signed, asked) as seat:
        game = game_id(claim_hash(signed.claim), seat.journal.sender)
        await _agree(seat, signed, found, game, asked)

        async def play(state: ChainGame) -> ChallengerMove:
            said = claimed(state, found.tree.units[state.position][state.unit])
            trace = player.party.against(player.known, state.position, state.unit, said)
            return challenger_move(state, said, trace)

        def say(what: str) -> None:
            voice.say(f"· {WORDS.get(what, what)}")

        if found.accusation is not None:
            outcome = await convict_at_once(seat, signed, found.accusation, player.known.run.manifest)
        else:
            assert found.aim is not None  # noqa: S101  one of the two
            outcome = await challenge(seat, signed, found.aim.position, found.aim.unit, play, say=say)
        paid = await collect(seat, game, say=say)
        return _told(outcome, found, signed, game, paid, await seat.spent(game), asked)


@contextlib.asynccontextmanager
async def _seated(key: bytes, signed: SignedChainClaim, asked: OnChain) -> AsyncIterator[Seat]:
    """A seat at the claim's court, with the journal in the named database, or in one of its own below the state directory."""
    server = None
    if not asked.database:
        server = EmbeddedPostgres(state_dir() / "challenger")
        voice.say("starting the database that remembers transactions …")
    url = asked.database or await asyncio.to_thread(server.start)  # type: ignore[union-attr]
    try:
        await create_database(url)
        pool = await connect_pool(url, max_size=3, application_name="aos-challenge")
        node = ChainNode(asked.rpc_url, chain_id=signed.domain.chain_id)
        try:
            await migrate(pool, SQL)
            await node.check_chain()
            journal = Journal(pool, node, key, max_fee_gwei=asked.max_fee_gwei)
            finality = Finality(node, pool)
            yield Seat(node, CourtContract(node, signed.domain.court), journal, finality=finality)
        finally:
            await node.close()
            await pool.close()
    finally:
        if server is not None:
            await asyncio.to_thread(server.stop)


async def _agree(seat: Seat, signed: SignedChainClaim, found: Target, game: bytes, asked: OnChain) -> None:
    """Before money is put down: whether there is anything to win, and a person's word."""
    block = await seat.newest()
    facts = await seat.court.facts(block)
    if (
        await seat.journal.entries(f"court game {game.hex()}: ")
        or await seat.court.game(game, block) is not None
    ):
        voice.say("going on with what was begun before")
        return
    stake = await _stake(seat, facts, signed.claim.claimant)
    if not stake:
        raise RuleViolation(
            "court.no_stake",
            f"{signed.claim.claimant} has no stake at {facts.registry}: there is nothing to win",
        )
    bond = 0 if found.aim is None else await seat.court.required_bond(claim_hash(signed.claim), block)
    reward = min(facts.slash, stake) // 2
    puts = f"put down a bond of {ether(bond)} ether" if bond else "pay gas alone"
    confirm(
        f"challenge {signed.claim.claimant} at the court {seat.court.address} of chain {seat.node.chain_id} ({found.say()}):"
        f" {puts}, for a reward of {ether(reward)} ether?",
        yes=asked.yes,
        as_json=asked.as_json,
    )


async def _stake(seat: Seat, facts: CourtFacts, claimant: str) -> int:
    block = await seat.newest()
    (data,) = await seat.node.calls(facts.registry, [REGISTRY.call("operatorInfo", claimant)], block=block)
    stake: int = REGISTRY.answer("operatorInfo", data)[0]
    return stake


def _told(
    outcome: Outcome,
    found: Target,
    signed: SignedChainClaim,
    game: bytes,
    paid: int,
    spent: list[tuple[str, int]],
    asked: OnChain,
) -> int:
    code = EXIT_CODES[outcome.kind]
    facts: dict[str, Any] = {
        "state": outcome.kind.upper(),
        "exit_code": code,
        "code": outcome.code,
        "game": game.hex(),
        "chain_id": signed.domain.chain_id,
        "court": signed.domain.court,
        "claimant": signed.claim.claimant,
        "position": None if found.aim is None else found.aim.position,
        "unit": None if found.aim is None else found.aim.unit,
        "paid_ether": ether(paid),
        "transactions": [{"what": what, "gas": gas} for what, gas in spent],
    }
    if asked.as_json:
        voice.data_json("challenge.chain", facts)
        return code
    for what, gas in spent:
        voice.data(f"  {what:<16} {gas:>9,} gas")
    voice.data(f"  {'in all':<16} {sum(gas for _, gas in spent):>9,} gas; paid back {ether(paid)} ether")
    words = {
        "convicted": f"CONVICTED: the claim is proven wrong [{outcome.code}]; half of what {signed.claim.claimant} lost is yours",
        "refuted": "REFUTED: this challenge failed, and its bond is the claimant's",
        "settled": "SETTLED: another challenger has convicted the claim; the bond is back",
    }
    voice.data(words[outcome.kind])
    return code
