"""Rows that cannot be played yet, and known gaps: each with what is missing. A row moves from here to its topic when it can be."""

from aos.attack.table import Needs, not_yet

_LATER: tuple[tuple[int, str, Needs, str], ...] = (
    (
        42,
        "requester, operator and verifier in one hand",
        "",
        "no check tells it from honest parties: only a verifier's own trust file, replay or audit does",
    ),
)

for _number, _title, _needs, _reason in _LATER:
    not_yet(_number, _title, needs=_needs, reason=_reason)
