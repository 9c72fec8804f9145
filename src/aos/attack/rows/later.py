"""Rows that cannot be played yet, and known gaps: each with what is missing. A row moves from here to its topic when it can be."""

from aos.attack.table import Needs, not_yet

_LATER: tuple[tuple[int, str, Needs, str], ...] = (
    (
        1,
        "one weight bit flipped",
        "disputes",
        "comparison and replay see it; no dispute on a network names the operation",
    ),
    (
        5,
        "layer skipped, early exit",
        "disputes",
        "comparison and replay see it; no dispute on a network names the layer",
    ),
    (
        6,
        "KV cache quantised or taken over",
        "disputes",
        "comparison and replay see it; no dispute on a network names the place",
    ),
    (
        7,
        "attention forged at a late token",
        "disputes",
        "comparison and replay see it; no dispute on a network names the head",
    ),
    (
        28,
        "requester grinds prompts or ids",
        "chain",
        "the beacon is the dispatcher's; nobody else's enters the draw seed",
    ),
    (37, "approves everything", "disputes", "nobody plants faults yet"),
    (38, "accuses an honest operator", "disputes", "no network plays the game yet"),
    (
        40,
        "behaves only when audited",
        "disputes",
        "an audit draws after the commitment (spec 14), but none runs on a network yet",
    ),
    (47, "silence around a deadline", "disputes", "no network plays the game yet"),
    (49, "first, last, padding leaf", "disputes", "no network plays the game yet"),
    (50, "both wrong in different places", "disputes", "no network plays the game yet"),
    (
        51,
        "dispute spam, absurd quorums",
        "disputes",
        "no network plays the game yet; too large a quorum is refused in row 34",
    ),
    (52, "data withheld, retention ended early", "log", "nothing says what must be kept, and until when"),
    (53, "oversized opening", "disputes", "no network plays the game yet"),
    (
        54,
        "D drops, tells two histories, reorders, back-dates",
        "log",
        "two histories told to two strangers go unseen",
    ),
    (41, "many identities of one owner", "", "registration costs nothing in this version"),
    (42, "requester, operator and verifier in one hand", "", "whose trust file it is decides"),
)

for _number, _title, _needs, _reason in _LATER:
    not_yet(_number, _title, needs=_needs, reason=_reason)
