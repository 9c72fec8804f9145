"""Who is drawn: thresholds, the public filling of seats, the order of seats (docs/spec/04-sortition.md).

Integers only. The proofs behind the draw are ``aos.core.vrf``'s, the draw as a whole is ``aos.core.draw``'s;
this module neither knows what a registry is nor whether an operator answered.
"""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from aos.core.encoding import MAX_INT, tagged_hash
from aos.core.signing import address_bytes
from aos.errors import InvalidMessage, RuleViolation

BETA_BYTES = 64
MAX_FILL_TRIES = 65_536
_PERCENT = {
    ("", ""): 0,
    ("", "before"): 0,
    ("", "after"): 0,
    ("suspicion", ""): 3,
    ("suspicion", "before"): 3,
    ("suspicion", "after"): 3,
    ("malicious", ""): 0,
    ("malicious", "before"): 10,
    ("malicious", "after"): 3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRange:
    """An operator's half-open share ``[start, end)`` of ``max_range``."""

    node_id: str
    start: int
    end: int

    @property
    def width(self) -> int:
        """``end`` - ``start``."""
        return self.end - self.start


def widening_percent(tag: str, position: str) -> int:
    """c for a run: suspicion 3, malicious before 10, malicious after 3, otherwise 0.

    Raises InvalidMessage ``sortition.tag`` for a tag or position outside the closed sets.
    """
    try:
        return _PERCENT[tag, position]
    except KeyError:
        raise InvalidMessage("sortition.tag", "unknown tag or position", field="tag") from None


def threshold(width: int, max_range: int, percent_c: int) -> int:
    """T = width + min(2·⌊max_range·c/100⌋, width), at most ``max_range``.

    An operator without width is never drawn. Raises InvalidMessage ``sortition.max_range``,
    ``sortition.width``, ``sortition.percent``.
    """
    _check_max_range(max_range)
    if not 0 <= width <= max_range:
        raise InvalidMessage("sortition.width", "a width lies within 0 and max_range", field="width")
    if not 0 <= percent_c <= 100:
        raise InvalidMessage("sortition.percent", "a percentage lies within 0 and 100", field="percent_c")
    return min(width + min(2 * (max_range * percent_c // 100), width), max_range)


def is_selected(beta: bytes, threshold: int, max_range: int) -> bool:
    """beta·max_range < T·2^512, beta read as a big-endian integer: the exact form of beta/2^512 <
    T/max_range.

    ``beta`` must come from ``ecvrf_verify``; this only compares. Raises InvalidMessage
    ``sortition.beta_length``, ``sortition.threshold``, ``sortition.max_range``.
    """
    _check_max_range(max_range)
    if len(beta) != BETA_BYTES:
        raise InvalidMessage("sortition.beta_length", "beta_string has 64 bytes", field="beta")
    if not 0 <= threshold <= max_range:
        raise InvalidMessage(
            "sortition.threshold", "a threshold lies within 0 and max_range", field="threshold"
        )
    return int.from_bytes(beta, "big") * max_range < threshold << 512


def fill_seats(
    draw_seed: bytes,
    attempt: int,
    candidates: Sequence[tuple[str, int]],
    excluded: Collection[str],
    seats_wanted: int,
) -> list[str]:
    """Public choice of up to ``seats_wanted`` further operators, in the order in which they were hit.

    ``candidates`` are (node_id, width) of *all* eligible operators in snapshot order; ``excluded`` are those
    who declined, did not answer, or sit already. r_n = int(H("seat", draw_seed, u32 attempt, u32 n)) mod
    total width picks the one whose span of the cumulative widths holds r_n; who is excluded or chosen is
    passed over. After 65,536 tries the rest follow in snapshot order. Fewer than wanted come back where
    there are no more. Raises InvalidMessage ``sortition.duplicate_operator``, ``sortition.width``,
    ``sortition.draw_seed``, ``sortition.attempt``, ``sortition.seats``.
    """
    _check_draw(draw_seed, attempt)
    if seats_wanted < 0:
        raise InvalidMessage("sortition.seats", "seats wanted cannot be negative", field="seats_wanted")
    names = [name for name, _ in candidates]
    if len(set(names)) != len(names):
        raise InvalidMessage("sortition.duplicate_operator", "an operator is a candidate twice")
    if any(width < 0 for _, width in candidates):
        raise InvalidMessage("sortition.width", "a width cannot be negative", field="width")
    remaining = {name: width for name, width in candidates if name not in excluded}
    bounds = list(accumulate(width for _, width in candidates))
    chosen: list[str] = []
    tries = range(MAX_FILL_TRIES) if bounds and bounds[-1] > 0 else range(0)
    for n in tries:
        if len(chosen) >= seats_wanted or not any(remaining.values()):
            break
        digest = tagged_hash("seat", draw_seed, attempt.to_bytes(4, "big"), n.to_bytes(4, "big"))
        name = names[bisect_right(bounds, int.from_bytes(digest, "big") % bounds[-1])]
        if name in remaining:
            del remaining[name]
            chosen.append(name)
    chosen.extend(list(remaining)[: seats_wanted - len(chosen)])
    return chosen


def seat_order(draw_seed: bytes, attempt: int, node_ids: Collection[str]) -> list[str]:
    """The seats in their public order, by H("seat-order", draw_seed, u32 attempt, 20-byte node_id); the first
    executes.

    Raises InvalidMessage ``sortition.duplicate_operator``, ``sortition.draw_seed``, ``sortition.attempt``,
    ``address.format``.
    """
    _check_draw(draw_seed, attempt)
    raw = {node_id: address_bytes(node_id) for node_id in node_ids}
    if len(set(raw.values())) != len(node_ids):
        raise InvalidMessage("sortition.duplicate_operator", "an operator sits twice")
    return sorted(
        raw, key=lambda name: tagged_hash("seat-order", draw_seed, attempt.to_bytes(4, "big"), raw[name])
    )


def validate_ranges(ranges: Sequence[OperatorRange], max_range: int) -> None:
    """Check that the ranges are non-empty, inside ``[0, max_range)``, apart from each other, one for each
    operator.

    Gaps are allowed. Raises InvalidMessage ``sortition.max_range``; RuleViolation ``sortition.range_empty``,
    ``sortition.range_bounds``, ``sortition.range_overlap``, ``sortition.duplicate_operator``.
    """
    _check_max_range(max_range)
    seen: set[str] = set()
    for item in ranges:
        if item.start >= item.end:
            raise RuleViolation("sortition.range_empty", f"{item.node_id} has an empty range")
        if item.start < 0 or item.end > max_range:
            raise RuleViolation("sortition.range_bounds", f"{item.node_id} reaches beyond 0 … {max_range}")
        if item.node_id.lower() in seen:
            raise RuleViolation("sortition.duplicate_operator", f"{item.node_id} has two ranges")
        seen.add(item.node_id.lower())
    ordered = sorted(ranges, key=lambda item: item.start)
    for left, right in pairwise(ordered):
        if right.start < left.end:
            raise RuleViolation("sortition.range_overlap", f"{left.node_id} and {right.node_id} overlap")


def _check_max_range(max_range: int) -> None:
    if not 1 <= max_range <= MAX_INT:
        raise InvalidMessage("sortition.max_range", "max_range lies within 1 and 2^53-1", field="max_range")


def _check_draw(draw_seed: bytes, attempt: int) -> None:
    if len(draw_seed) != BETA_BYTES:
        raise InvalidMessage("sortition.draw_seed", "a draw seed has 64 bytes", field="draw_seed")
    if not 0 <= attempt < 2**32:
        raise InvalidMessage("sortition.attempt", "an attempt is an unsigned 32-bit integer", field="attempt")
