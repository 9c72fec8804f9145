"""Rows that cannot be played yet, and known gaps: each with what is missing. A row moves from here to its topic when it can be."""

from aos.attack.table import Needs, not_yet

_LATER: tuple[tuple[int, str, Needs, str], ...] = (
    (
        28,
        "requester grinds prompts or ids",
        "chain",
        "this command's network has no chain; with one, a block enters the draw seed",
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
