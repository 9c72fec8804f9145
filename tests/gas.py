"""Gas that the contracts use, against what ``contracts/gas.json`` says: more than 5 % over it fails.

``AOS_UPDATE_GAS=1`` writes the file anew from what the tests measure.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

SNAPSHOT = Path(__file__).resolve().parents[1] / "contracts/gas.json"


def check_gas(name: str, used: int, *, limit: int | None = None) -> None:
    """Fails where ``used`` is more than ``limit``, is not in the snapshot, or grew by more than 5 %."""
    assert limit is None or used <= limit, f"{name} takes {used} gas, {limit} are allowed"
    known = json.loads(SNAPSHOT.read_text())
    if os.environ.get("AOS_UPDATE_GAS") == "1":
        known[name] = used
        SNAPSHOT.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        return
    assert name in known, f"{name} is not in {SNAPSHOT.name}: AOS_UPDATE_GAS=1"
    assert used * 100 <= known[name] * 105, f"{name} takes {used} gas, it took {known[name]}"
