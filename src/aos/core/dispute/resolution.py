"""What the games about a job's claims leave: bonds, and which result stands (docs/spec/13-dispute.md, "Resolution").

Pure functions over games; who stores and who pays is the registry's matter. A challenger's fault costs its bond and says
nothing about any claim, so a sham challenger that loses on purpose makes nobody right.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aos.core.dispute.game import Game

Standing = Literal["stands", "open", "withheld", "convicted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BondEvent:
    """One entry of the registry's ledger. ``locked``: from ``party``'s balance. ``returned``: to it. ``forfeited``:
    to ``party``, the other side. ``burnt``: to nobody (``party`` is empty)."""

    game: bytes
    event: Literal["locked", "returned", "forfeited", "burnt"]
    party: str
    units: int


def bond_events(game: Game, now: int) -> tuple[BondEvent, ...]:
    """What becomes of the bond, as far as it is settled at ``now`` (ms).

    Returned where the claimant is convicted, or silent to the end; forfeited to the claimant where the challenge was
    refuted, unlawful, contradicted or silent to the end; burnt where both are convicted.
    """
    opening, units = game.open, game.open.bond
    locked = BondEvent(game=game.id, event="locked", party=opening.challenger, units=units)
    verdict = game.verdict(now)
    guilty = {fault.party for fault in game.faults}
    if verdict.state == "open" or (verdict.state == "defaulted" and now < game.closes):
        return (locked,)
    losers: set[str] = set(guilty) or {verdict.against}
    if losers == {"claimant", "challenger"}:
        return locked, BondEvent(game=game.id, event="burnt", party="", units=units)
    if losers == {"claimant"}:
        return locked, BondEvent(game=game.id, event="returned", party=opening.challenger, units=units)
    return locked, BondEvent(game=game.id, event="forfeited", party=opening.claimant, units=units)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """``standing`` of each claim; ``state_root`` is that of the job's result, None while there is none."""

    standing: Mapping[bytes, Standing]
    state_root: bytes | None


def standing(games: Sequence[Game], now: int, *, contradicted: bool = False) -> Standing:
    """How a claim stands with these games about it: convicted by one proven fault of its claimant (or, where
    ``contradicted``, by two of its statements); withheld where its claimant was silent; open while any game is."""
    verdicts = [game.verdict(now) for game in games]
    if contradicted or any(v.state == "proven" and v.against == "claimant" for v in verdicts):
        return "convicted"
    if any(v.state == "defaulted" and v.against == "claimant" for v in verdicts):
        return "withheld"
    return "open" if any(v.state == "open" for v in verdicts) else "stands"


def resolve(
    claims: Mapping[bytes, bytes], games: Sequence[Game], now: int, *, contradicted: Collection[bytes] = ()
) -> Resolution:
    """The result of a job from its claims (name to ``state_root``) and all games about them, at ``now`` (ms).

    There is one exactly where a single state root has claims that stand, none of its claims is open, and every claim to
    another one is convicted or withheld. ``contradicted`` are claims whose claimant signed a contradiction elsewhere.
    """
    stand = {
        claim: standing(
            [game for game in games if game.open.claim == claim], now, contradicted=claim in contradicted
        )
        for claim in claims
    }
    roots = {claims[claim] for claim, state in stand.items() if state == "stands"}
    blocked = any(state == "open" for state in stand.values())
    only = roots.pop() if len(roots) == 1 and not blocked else None
    return Resolution(standing=stand, state_root=only)
