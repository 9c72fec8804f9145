"""Numbers of the explorer, from rows that were read: hours, latencies, assurance, shares. Pure."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aos.core import draw, sortition
from aos.core.encoding import b64u_decode
from aos.core.job import TERMINAL
from aos.core.statements import SnapshotEntry

EDGES_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
Row = Mapping[str, Any]


def by_hour(rows: Iterable[Row]) -> list[tuple[int, int]]:
    """(opml, tee) jobs of 24 hours, the oldest first."""
    counts = Counter({(row["ago"], row["job_type"]): row["jobs"] for row in rows if 0 <= row["ago"] < 24})
    return [(counts[ago, "opml"], counts[ago, "tee"]) for ago in range(23, -1, -1)]


def latencies(rows: Iterable[Row]) -> list[float]:
    """Seconds from acceptance to result, ascending."""
    return sorted(max(0.0, row["seconds"]) for row in rows if row["seconds"] is not None)


def percentile(ordered: Sequence[float], percent: int) -> float | None:
    """Nearest rank; None of nothing."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else None


def histogram(ordered: Sequence[float]) -> list[tuple[str, int]]:
    """How many lie below each of ``EDGES_S`` and not below the edge before."""
    counts = [0] * (len(EDGES_S) + 1)
    for value in ordered:
        counts[sum(value >= edge for edge in EDGES_S)] += 1
    names = [f"< {edge:g} s" for edge in EDGES_S] + [f"≥ {EDGES_S[-1]:g} s"]
    return list(zip(names, counts, strict=True))


def assurance(row: Row) -> str:
    """The strongest level that a job's stored results claim, or how it stands where it has none."""
    if row["outcome"] is None:
        return "no result" if row["state"] in TERMINAL else "under way"
    if row["outcome"] == "disputed":
        return "disputed"
    if row["outcome"] in ("agreed", "resolved") and row["agreeing"] > 1:
        return f"redundant:{row['agreeing']}"
    if row["tee"]:
        return "simulated" if row["tee"] == "simulated" else "attested"
    return "signed"


def assurance_counts(rows: Iterable[Row]) -> list[tuple[str, int]]:
    """How many jobs have each level, most first."""
    counts = Counter(assurance(row) for row in rows)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


@dataclass(slots=True)
class Tally:
    """One operator over the draws that were read. ``expected`` is the sum of its thresholds, in ``max_range``-ths."""

    eligible: int = 0
    answered: int = 0
    selected: int = 0
    expected: int = 0
    seated: int = 0
    standings: Counter[str] = field(default_factory=Counter)

    def expected_text(self, max_range: int) -> str:
        """The expected selections as an exact decimal where ``max_range`` is a power of ten, cut after six places."""
        whole, rest = divmod(self.expected, max_range)
        return f"{whole}.{rest * 1_000_000 // max_range:06d}".rstrip("0").rstrip(".")

    def selected_per_mille(self) -> int:
        """Selections in thousandths of the draws that it answered."""
        return self.selected * 1000 // self.answered if self.answered else 0

    def expected_per_mille(self, max_range: int) -> int:
        """Expected selections in thousandths of the draws that it answered."""
        return self.expected * 1000 // (max_range * self.answered) if self.answered else 0


def tallies(
    rows: Iterable[Row], entries_of: Callable[[int], Sequence[SnapshotEntry]], max_range: int
) -> dict[str, Tally]:
    """Selected against expected, by operator. Counted: draws that it was eligible for and answered with a claim."""
    found: dict[str, Tally] = {}
    for row in rows:
        call = json.loads(row["draw_call"])["statement"]
        percent = sortition.widening_percent(row["tag"], row["position"])
        of = {entry.node_id: entry for entry in entries_of(row["snapshot_epoch"])}
        seats = set(json.loads(row["draw_record"])["statement"]["seats"])
        standings = json.loads(row["standings"] or "{}")
        model_id = b64u_decode(call["model_id"])
        for entry in json.loads(row["entries"]):
            node, status = entry["node_id"], entry["status"]
            operator = of[node]
            if not draw.eligible(operator, job_type=call["job_type"], model_id=model_id, epoch=call["epoch"]):
                continue
            tally = found.setdefault(node, Tally())
            tally.eligible += 1
            if status in ("selected", "not_selected"):
                tally.answered += 1
                tally.selected += status == "selected"
                tally.expected += sortition.threshold(operator.end - operator.start, max_range, percent)
            if node in seats:
                tally.seated += 1
                tally.standings[standings.get(node, "seated")] += 1
    return found
