"""The parameters and the table of the game (docs/spec/13-dispute.md, "The table").

The table alone says which event leads where; ``aos.core.dispute.game`` finds out which event a move is. A referee and a
contract share the table and differ in parameters.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from aos.core.codec import Range, UInt
from aos.core.dispute.moves import MAX_GAME_BYTES, MAX_LEVELS, MAX_WIDTH, Party
from aos.errors import RuleViolation

Stage = Literal["new", "answer", "choose", "proof", "over"]
"""What the game waits for."""

Event = Literal[
    "unit_opened",
    "around_opened",
    "children_shown",
    "node_chosen",
    "tile_chosen",
    "refuted",
    "broken",
    "illegal",
    "contradicted",
]

TABLE: Final[dict[tuple[Stage, Event], Stage]] = {
    ("new", "unit_opened"): "answer",
    ("new", "around_opened"): "proof",
    ("answer", "children_shown"): "choose",
    ("choose", "node_chosen"): "answer",
    ("choose", "tile_chosen"): "proof",
    ("answer", "refuted"): "over",
    ("proof", "refuted"): "over",
    ("answer", "broken"): "over",
    ("proof", "broken"): "over",
    ("answer", "illegal"): "over",
    ("choose", "illegal"): "over",
    ("proof", "illegal"): "over",
    ("answer", "contradicted"): "over",
    ("choose", "contradicted"): "over",
    ("proof", "contradicted"): "over",
    ("over", "contradicted"): "over",
}

MOVER: Final[dict[Stage, Party]] = {
    "new": "challenger",
    "answer": "claimant",
    "choose": "challenger",
    "proof": "claimant",
}
MAX_ESCALATION: Final = 4
"""A bond doubles for each game that is open against the claim, at most this often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Parameters of a game. Times are milliseconds; bonds are units of the registry.

    ``levels`` and ``width`` bound the tree, ``max_bytes`` all moves together. A move is free for ``grace_ms``; what it
    takes longer is its party's ``budget_ms``. After ``window_ms`` from the first move no late one cures anything.
    ``silence_convicts`` is for a clock that everybody can check, a chain's.
    """

    TYPE: ClassVar[str] = "aos.dispute_rules"
    V: ClassVar[int] = 1

    levels: Annotated[int, Range(1, MAX_LEVELS)] = MAX_LEVELS
    width: Annotated[int, Range(2, MAX_WIDTH)] = MAX_WIDTH
    max_bytes: Annotated[int, Range(1, MAX_GAME_BYTES)] = MAX_GAME_BYTES
    grace_ms: UInt = 60_000
    budget_ms: UInt = 600_000
    window_ms: UInt = 3_600_000
    bond: UInt = 1
    silence_convicts: bool = False


def next_stage(stage: Stage, event: Event) -> Stage:
    """The stage after ``event``. Raises RuleViolation ``dispute.transition`` where the table has none."""
    try:
        return TABLE[stage, event]
    except KeyError:
        raise RuleViolation("dispute.transition", f"a game that waits for {stage} takes no {event}") from None


def required_bond(rules: Rules, open_games: int) -> int:
    """The least bond of one more challenge where ``open_games`` are open against the same claim."""
    return rules.bond << min(max(open_games, 0), MAX_ESCALATION)


def markdown_table() -> str:
    """The table as the documentation shows it."""
    rows = [f"| {stage} | {event} | {target} |" for (stage, event), target in TABLE.items()]
    return "\n".join(["| waits for | event | then |", "|---|---|---|", *rows])
