"""Rows that cannot be played yet, and known gaps: each with what is missing. A row moves from here to its topic when it can be."""

from aos.attack.table import Needs, not_yet

_LATER: tuple[tuple[int, str, Needs, str], ...] = (
    (
        28,
        "requester grinds prompts or ids",
        "chain",
        "the beacon is the dispatcher's; nobody else's enters the draw seed",
    ),
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
