"""A chain costs nobody anything who does not use one: `aos verify` loads nothing of it, and no part needs web3."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
sys.argv = ["aos", "verify", "no-such-file.aos"]
from aos.cli.main import main
try:
    main()
except SystemExit:
    pass
print(sorted(m for m in sys.modules if m.split(".")[0] in ("web3", "eth_abi", "eth_account", "httpx", "aos") and
             (m.split(".")[0] != "aos" or m.startswith("aos.adapters.chain"))))
"""


def test_verifying_loads_nothing_of_a_chain() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_nothing_imports_web3() -> None:
    found = [
        str(path)
        for path in (ROOT / "src").rglob("*.py")
        if "import web3" in path.read_text() or "from web3" in path.read_text()
    ]
    assert found == []
