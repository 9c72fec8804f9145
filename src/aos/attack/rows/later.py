"""Rows that cannot be played yet, and known gaps: each with what is missing. A row moves from here to its topic when it can be."""

from aos.attack.table import Needs, not_yet

_LATER: tuple[tuple[int, str, Needs, str], ...] = (
    (
        1,
        "one weight bit flipped",
        "disputes",
        "networks dispute it; this command does not play that yet",
    ),
    (
        5,
        "layer skipped, early exit",
        "disputes",
        "networks dispute it; this command does not play that yet",
    ),
    (
        6,
        "KV cache quantised or taken over",
        "disputes",
        "networks dispute it; this command does not play that yet",
    ),
    (
        7,
        "attention forged at a late token",
        "disputes",
        "networks dispute it; this command does not play that yet",
    ),
    (
        28,
        "requester grinds prompts or ids",
        "chain",
        "this command's network has no chain; with one, a block enters the draw seed",
    ),
    (37, "approves everything", "disputes", "nobody plants faults yet"),
    (38, "accuses an honest operator", "disputes", "networks play it; this command does not yet"),
    (
        40,
        "behaves only when audited",
        "disputes",
        "an audit draws after the commitment (spec 14), but none runs on a network yet",
    ),
    (47, "silence around a deadline", "disputes", "networks play it; this command does not yet"),
    (49, "first, last, padding leaf", "disputes", "networks play it; this command does not yet"),
    (50, "both wrong in different places", "disputes", "networks play it; this command does not yet"),
    (
        51,
        "dispute spam, absurd quorums",
        "disputes",
        "networks play it; this command does not yet; too large a quorum is refused in row 34",
    ),
    (52, "data withheld, retention ended early", "log", "nothing says what must be kept, and until when"),
    (53, "oversized opening", "disputes", "networks play it; this command does not yet"),
    (
        54,
        "D drops, tells two histories, reorders, back-dates",
        "log",
        "two histories told to two strangers go unseen",
    ),
    (
        41,
        "many identities of one owner",
        "",
        "each costs a stake where the registry is on a chain, and nothing elsewhere",
    ),
    (42, "requester, operator and verifier in one hand", "", "whose trust file it is decides"),
)

for _number, _title, _needs, _reason in _LATER:
    not_yet(_number, _title, needs=_needs, reason=_reason)
