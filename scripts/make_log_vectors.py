"""Write ``vectors/aos/log``: .venv/bin/python scripts/make_log_vectors.py

Keys, salts and times are fixed, so that a second run writes the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from log_cases import KEY, Case, anchor_forks, checkpoints, convictions, vkeys  # noqa: E402

ABOUT = "docs/spec/15-log.md; error is what refuses the data, null where it must be accepted"


def documents() -> dict[str, dict[str, object]]:
    """File name to content."""
    return {
        "vkeys": {"about": ABOUT, "cases": listed(vkeys())},
        "checkpoints": {"about": ABOUT, "log": KEY, "cases": listed(checkpoints())},
        "convictions": {"about": ABOUT, "cases": listed(convictions())},
        "anchor_forks": {"about": ABOUT, "cases": listed(anchor_forks())},
    }


def listed(cases: Iterable[Case]) -> list[dict[str, str | None]]:
    return [{"name": case.name, "data": case.data, "error": case.code or None} for case in cases]


def main() -> None:
    directory = ROOT / "vectors/aos/log"
    directory.mkdir(exist_ok=True)
    for name, content in documents().items():
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (directory / f"{name}.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
