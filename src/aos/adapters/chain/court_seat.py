"""A party's seat at a court: its moves go through its journal, so that a process killed at any moment goes on where it was.

Whoever acts on the newest block may see it reorganised. Nothing is lost by that: a move fits the one state that it was made
for, every other refuses it, and the game is read again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from aos.adapters.chain.court import (
    BOUNDS,
    COURT,
    CourtContract,
    Outcome,
    accuse_data,
    game_id,
    move_data,
    open_data,
    register_model_data,
)
from aos.adapters.chain.journal import Entry, Journal
from aos.adapters.chain.node import Block, ChainNode
from aos.adapters.chain.registry import REGISTRY, Finality
from aos.core.dispute.chain_claim import SignedChainClaim, claim_hash
from aos.core.dispute.fine.chain_around import OTHER_RECEIPT, OTHER_TOKENS, Accusation
from aos.core.dispute.fine.chain_game import ChainGame, ChallengerMove, Move, Prove, Stage
from aos.core.dispute.fine.onchain import FAULTS
from aos.core.manifest import Manifest
from aos.core.signing import keccak256
from aos.errors import RuleViolation, Unavailable

POLL_S = 1.0
LEAST_GRACE_S, LEAST_BUDGET_S = 60, 3_600
"""Of a court at which money is put down: what `aos chain deploy` deploys at least. A claim names its court, and anybody can
deploy one at which nobody but a machine that waits for its victim is in time."""
_RETRIES = 3
"""How often a transaction that the contract refuses is tried again at the same state of the game."""


class Seat:
    """The account of ``journal`` at ``court``. With ``finality`` it plays by no node that is behind, or denies what was final."""

    def __init__(
        self,
        node: ChainNode,
        court: CourtContract,
        journal: Journal,
        *,
        finality: Finality | None = None,
    ) -> None:
        self.node, self.court, self.journal, self._finality = node, court, journal, finality

    async def newest(self) -> Block:
        """The block to act upon. Raises VerificationError, InvalidMessage, Unavailable ``chain.*``."""
        if self._finality is not None:
            await self._finality.block()
        return await self.node.block("latest")

    async def move(self, game: ChainGame, move: Move, block: Block) -> Entry:
        """Want a move that was made for the game as it stands at ``block``. The same move is wanted once."""
        step = await self.court.step_of(move, block) if isinstance(move, Prove) else 0
        name = type(move).__name__
        return await self.act(game.id, name[0].lower() + name[1:], move_data(game.id, move, step=step))

    async def act(
        self, game: bytes, what: str, data: bytes, *, value: int = 0, to: str | None = None
    ) -> Entry:
        """Want any transaction of a game: at the court, or ``to`` another contract."""
        target = self.court.address if to is None else to
        made_for = keccak256(target.encode() + value.to_bytes(32, "big") + data)[:6].hex()
        return await self.journal.want(f"{_prefix(game)}{what} {made_for}", to=target, data=data, value=value)

    @staticmethod
    def about(entry: Entry) -> str:
        """What a transaction of a game does, in a word."""
        return entry.purpose.partition(": ")[2].split()[0]

    async def step(self) -> None:
        """Send what is wanted, and send again what is not final. Raises as ``Journal.step``."""
        await self.journal.step(COURT, BOUNDS, REGISTRY)

    async def unmined(self, game: bytes) -> list[Entry]:
        """The game's transactions that no block holds, as far as the node knows."""
        return [
            entry
            for entry in await self.journal.open()
            if entry.purpose.startswith(_prefix(game))
            and (entry.hash is None or await self.node.receipt(entry.hash) is None)
        ]

    async def spent(self, game: bytes) -> list[tuple[str, int]]:
        """What was done in a game and the gas of each, in order."""
        found = []
        for entry in await self.journal.entries(_prefix(game)):
            receipt = None if entry.hash is None else await self.node.receipt(entry.hash)
            if receipt is not None:
                found.append((self.about(entry), receipt.gas_used))
        return found


async def challenge(
    seat: Seat,
    signed: SignedChainClaim,
    position: int,
    unit: int,
    play: Callable[[ChainGame], Awaitable[ChallengerMove]],
    *,
    say: Callable[[str], None] = lambda _: None,
    poll_s: float = POLL_S,
) -> Outcome:
    """Open a game about a unit of a claim, unless this account has one, and play it to its end. ``play`` makes the challenger's
    move. Whatever stops it, called again it goes on; a node that does not answer is asked again.

    Raises RuleViolation ``court.convicted`` (another challenger was first), ``court.expired``, ``court.clock`` (no time to play),
    ``court.late`` (this one was, and has lost), ``chain.failed``; VerificationError, InvalidMessage ``chain.*``; what ``play``
    raises.
    """
    game = game_id(claim_hash(signed.claim), seat.journal.sender)
    failed: dict[str, int] = {}
    said = ""
    while True:
        try:
            await seat.step()
            if await seat.unmined(game):
                await asyncio.sleep(poll_s)
                continue
            block = await seat.newest()
            found = await seat.court.game(game, block)
            if found is not None and found.stage == Stage.OVER:
                return await seat.court.outcome(found, block)
            entry = await _next(seat, signed, position, unit, found, block, play)
            waits = seat.about(entry) if entry is not None else _waits(found)
            if waits != said:
                said = waits
                say(waits)
            if entry is None:
                await asyncio.sleep(poll_s)
                continue
            await seat.step()
            after = await seat.journal.entry(entry.purpose)
            if after == entry:  # it was mined and reverted, which counts once it is final
                await asyncio.sleep(poll_s)
        except Unavailable as error:
            if error.message != said:
                said = error.message
                say(f"waiting: {error.message} [{error.code}]")
            await asyncio.sleep(5 * poll_s)
            continue
        if after is not None and after.state == "failed":
            failed[entry.purpose] = failed.get(entry.purpose, 0) + 1
            if failed[entry.purpose] >= _RETRIES:
                raise RuleViolation("chain.failed", f"{entry.purpose}: {after.error}")
            await asyncio.sleep(poll_s)


async def convict_at_once(
    seat: Seat,
    signed: SignedChainClaim,
    accusation: Accusation,
    manifest: Manifest,
    *,
    poll_s: float = POLL_S,
) -> Outcome:
    """Convict a claim at once by what its own data say, of the model with ``manifest``. Called again it goes on.

    Raises RuleViolation ``court.convicted``, ``court.expired``, ``chain.failed``; VerificationError, InvalidMessage,
    Unavailable ``chain.*``.
    """
    claim = claim_hash(signed.claim)
    game, data = game_id(claim, seat.journal.sender), accuse_data(signed.claim, signed.signature, accusation)
    wanted: Entry | None = None
    while True:
        await seat.step()
        if wanted is not None:
            wanted = await seat.journal.entry(wanted.purpose)
        if wanted is not None and wanted.state == "failed":
            raise RuleViolation("chain.failed", f"{wanted.purpose}: {wanted.error}")
        sent = next(
            (
                each
                for each in await seat.journal.entries(_prefix(game))
                if seat.about(each) == accusation.function and each.state != "failed"
            ),
            None,
        )
        block = await seat.newest()
        convicted, known = await seat.court.convicted(claim, block), True
        if sent is None:
            _check_open(signed, block, convicted=convicted)
            # What is judged by the model's sizes needs them there, and whoever lies does not register a model.
            known = accusation.function != "convictToken" or await seat.court.model_known(
                signed.claim.model_id, block
            )
            if known:
                wanted = await seat.act(game, accusation.function, data)
            else:
                models = (await seat.court.facts(block)).models
                wanted = await seat.act(game, "register", register_model_data(manifest), to=models)
        elif convicted:
            receipt = None if sent.hash is None else await seat.node.receipt(sent.hash)
            if receipt is not None and not receipt.succeeded:
                _check_open(signed, block, convicted=True)
            if receipt is not None:
                return Outcome(
                    kind="convicted",
                    code=FAULTS[OTHER_TOKENS if "Token" in accusation.function else OTHER_RECEIPT],
                )
        if sent is not None or not known:
            await asyncio.sleep(poll_s)


def _check_open(signed: SignedChainClaim, block: Block, *, convicted: bool) -> None:
    if convicted:
        raise RuleViolation(
            "court.convicted", "another challenger has convicted this claim: nothing is to be won by it"
        )
    if block.time > signed.claim.expires:
        raise RuleViolation("court.expired", "the claim's time to be challenged is over")


async def _next(
    seat: Seat,
    signed: SignedChainClaim,
    position: int,
    unit: int,
    game: ChainGame | None,
    block: Block,
    play: Callable[[ChainGame], Awaitable[ChallengerMove]],
) -> Entry | None:
    """What the challenger does now; None where it is the claimant's turn."""
    court, claim = seat.court, claim_hash(signed.claim)
    if game is None:
        _check_open(signed, block, convicted=await court.convicted(claim, block))
        facts = await court.facts(block)
        if facts.grace_s < LEAST_GRACE_S or facts.budget_s < LEAST_BUDGET_S:
            raise RuleViolation(
                "court.clock",
                f"the court {court.address} gives a move {facts.grace_s} s and a party {facts.budget_s} s in all: a challenger"
                " would lose its bond by being a little late",
            )
        bond = await court.required_bond(claim, block)
        data = open_data(signed.claim, signed.signature, position, unit)
        return await seat.act(game_id(claim, seat.journal.sender), "open", data, value=bond)
    if game.convicted:
        return await seat.act(game.id, "settle", COURT.call("settle", game.id))
    late = block.time > game.deadline
    if game.mover == "challenger":
        if late:
            raise RuleViolation(
                "court.late",
                "this challenger's time is over: the challenge is lost, and its bond",
                hint="anybody may end the game now",
            )
        return await seat.move(game, await play(game), block)
    return await seat.act(game.id, "timeout", COURT.call("timeout", game.id)) if late else None


def _waits(game: ChainGame | None) -> str:
    until = 0 if game is None else game.deadline
    return f"waiting for the claimant, who has time until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M:%S} UTC"


async def collect(
    seat: Seat, game: bytes, *, say: Callable[[str], None] = lambda _: None, poll_s: float = POLL_S
) -> int:
    """Withdraw what court and registry owe this account to it, and follow everything of the game until it is final: the wei.

    Raises RuleViolation ``chain.failed``; VerificationError, InvalidMessage, Unavailable ``chain.*``. Called again it goes on.
    """
    me, block = seat.journal.sender, await seat.node.block("latest")
    registry = (await seat.court.facts(block)).registry
    (data,) = await seat.node.calls(registry, [REGISTRY.call("owed", me)], block=block)
    owed = {seat.court.address: await seat.court.owed(me, block), registry: REGISTRY.answer("owed", data)}
    for address, contract, what in ((seat.court.address, COURT, "withdraw"), (registry, REGISTRY, "reward")):
        if owed[address]:
            await seat.act(game, what, contract.call("withdraw", me), to=address)
    said = False
    while any(entry.purpose.startswith(_prefix(game)) for entry in await seat.journal.open()):
        await seat.step()
        if not said and not await seat.unmined(game):
            said = True
            say("waiting until all of it is final")
        await asyncio.sleep(poll_s)
    for entry in await seat.journal.entries(_prefix(game)):
        if entry.state == "failed" and seat.about(entry) in ("withdraw", "reward"):
            raise RuleViolation("chain.failed", f"{entry.purpose}: {entry.error}")
    return sum(owed.values())


def _prefix(game: bytes) -> str:
    return f"court game {game.hex()}: "
