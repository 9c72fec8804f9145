"""``aos draw FILE``: recheck who was drawn for a job, from the dispatcher's public document (docs/spec/04-sortition.md).

The document is ``GET /v1/aos/jobs/{job_ref}/draw``. Offline; the recomputation is ``aos.core.draw_document``'s.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from aos.cli import voice
from aos.cli.verify import find_trust
from aos.core.draw import total
from aos.core.draw_document import MAX_DOCUMENT_BYTES, RecheckedDraw, read_draw_document, recheck_draws
from aos.errors import ConfigError, RuleViolation

_PARTIAL = 11
DRAW_EXAMPLES = """aos draw draw.json
aos draw draw.json --trust trust.json --json"""


def draw(
    file: Annotated[str, typer.Argument(help="Draw document, or - for standard input.")],
    trust: Annotated[
        str | None, typer.Option(help="Trust file; default: $AOS_TRUST or .aos/trust.json.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Recheck a job's draws offline: every claim, status and seat recomputed.

    Exit codes: 0 all of it, 10 a draw is wrong, 11 right as far as the trust file goes, 30 no trust file.
    """
    trusted = find_trust(trust)
    if trusted is None:
        raise ConfigError(
            "trust.unreadable", "a draw is rechecked against a trust file", hint="pass --trust FILE"
        )
    draws = recheck_draws(read_draw_document(_read(file)), trust=trusted)
    if json:
        voice.data_json("draw", {"draws": [_value(drawn) for drawn in draws]})
    else:
        for drawn in draws:
            voice.data(_lines(drawn))
    if not draws or not all(drawn.complete for drawn in draws):
        raise SystemExit(_PARTIAL)


def _read(name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read(MAX_DOCUMENT_BYTES + 1)
        with Path(name).open("rb") as file:
            return file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise RuleViolation("file.unreadable", f"{name}: {error.strerror}", hint="aos draw FILE") from error


def _lines(drawn: RecheckedDraw) -> str:
    record = drawn.draw.record
    counts = record.counts
    asked = total(counts) - counts.ineligible
    lines = [
        f"PASS attempt {record.attempt}: {asked - counts.unanswered} of {asked} eligible operators answered, "
        f"{counts.selected} selected, {record.filled} filled"
    ]
    lines += [f"     seat {index}: {node_id}" for index, node_id in enumerate(record.seats)]
    lines += [f"SKIP {what}" for what in _unchecked(drawn)]
    return "\n".join(lines)


def _unchecked(drawn: RecheckedDraw) -> list[str]:
    skipped = (
        (drawn.registry_trusted, "the trust file does not name the registry root"),
        (drawn.beacon_checked, "the beacon is not one of the trust file's chain"),
        (drawn.draw.split_checked, "the tag is still hidden: selected or not is checked between two bounds"),
    )
    return [what for checked, what in skipped if not checked]


def _value(drawn: RecheckedDraw) -> dict[str, object]:
    record = drawn.draw.record
    return {
        "attempt": record.attempt,
        "seats": list(record.seats),
        "statuses": {entry.node_id: entry.status for entry in drawn.draw.entries},
        "filled": record.filled,
        "unchecked": _unchecked(drawn),
    }
