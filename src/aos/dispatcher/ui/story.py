"""A job's time line, from what was signed and stored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aos.core.clock import DISPATCHER

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """``at`` is the dispatcher's wall clock where one was kept, ``count`` its causal clock where the step was signed."""

    what: str
    detail: str = ""
    node: str = ""
    at: datetime | None = None
    count: str = ""
    tone: str = ""


def time_line(job: Row, runs: Sequence[Row], attempts: Sequence[Row], seats: Sequence[Row]) -> list[Step]:
    """From acceptance to the last result, attempt by attempt."""
    steps = [Step(what="Accepted", detail="request hash signed by the dispatcher", at=job["created_at"])]
    of_run = {row["run_id"]: row for row in runs}
    for attempt in attempts:
        run, number = of_run.get(attempt["run_id"]), attempt["attempt"]
        again = " (sent out again)" if run is not None and run["position"] == "before" else ""
        call = _statement(attempt["draw_call"])
        steps.append(
            Step(what=f"Draw {number} called{again}", detail=f"epoch {call['epoch']}", count=_count(call))
        )
        if attempt["draw_record"]:
            record = _statement(attempt["draw_record"])
            counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in record["counts"].items() if n)
            filled = f", {record['filled']} filled by the public rule" if record["filled"] else ""
            steps.append(
                Step(
                    what=f"{_of(len(record['seats']), 'seat')} drawn",
                    detail=counts + filled,
                    count=_count(record),
                )
            )
        if attempt["commit_set"]:
            commits = _statement(attempt["commit_set"])
            missing = f", {len(commits['missing'])} missing" if commits["missing"] else ""
            steps.append(
                Step(
                    what="Results committed",
                    detail=f"{_of(len(commits['commits']), 'commitment')} before any reveal{missing}",
                    count=_count(commits),
                )
            )
        held = [seat for seat in seats if seat["attempt"] == number]
        for seat in sorted((s for s in held if s["received_at"]), key=lambda s: s["received_at"]):
            steps.append(
                Step(
                    what="Receipt",
                    detail=f"seat {seat['seat']}, {seat['role']}",
                    node=seat["node_id"],
                    at=seat["received_at"],
                )
            )
        for seat in held:
            if seat["standing"] in ("failed", "withheld", "broken"):
                steps.append(
                    Step(what=f"Seat {seat['seat']} {seat['standing']}", node=seat["node_id"], tone="bad")
                )
        # What came out is what was not convicted, where anything was not.
        ended = min(
            (seat for seat in held if seat["ended"]), key=lambda s: s["outcome"] == "convicted", default=None
        )
        for seat in held:
            if seat["outcome"] == "convicted":
                steps.append(
                    Step(
                        what="Convicted in a dispute",
                        detail=f"seat {seat['seat']}",
                        node=seat["node_id"],
                        tone="bad",
                    )
                )
        if ended is not None:
            tone = "bad" if ended["outcome"] in ("disputed", "convicted") else "good"
            steps.append(Step(what=f"Outcome: {ended['outcome']}", at=ended["ended"], tone=tone))
        if attempt["failure"]:
            steps.append(Step(what=f"Attempt {number} failed", tone="bad"))
    for run in runs:
        if run["error_code"]:
            steps.append(Step(what="Ended without a result", detail=run["error_code"], tone="bad"))
    return steps


def _of(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _statement(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)["statement"]
    return found


def _count(statement: dict[str, Any]) -> str:
    return str(statement["clock"].get(str(DISPATCHER), ""))
