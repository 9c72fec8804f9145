"""`aos demo-chain` as a person runs it: three operators stake, one lies, and a stranger with what is public wins its stake at a
court on a real node.
"""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from machine import SLOW_MACHINE_S
from needed import absent

from aos.adapters.embedded.anvil import find_anvil

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_a_liar_loses_its_stake_to_a_stranger_and_is_out(tmp_path: Path) -> None:
    if find_anvil() is None:
        absent("anvil is not installed: make chain-tools")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "aos.cli.main",
            "demo-chain",
            "--state-dir",
            str(tmp_path / "state"),
            "--json",
        ],
        env={
            name: value
            for name, value in os.environ.items()
            if name == "AOS_ANVIL" or not name.startswith("AOS_")
        },
        capture_output=True,
        text=True,
        timeout=4 * SLOW_MACHINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["verdict"] == "VERIFIED"
    ranges = sorted((op["start"], op["end"]) for op in result["operators"])
    assert len(ranges) == 3
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))
    assert {op["stake_ether"] for op in result["operators"]} == {"1"}

    liar, won = result["liar"], result["challenge"]
    assert (won["state"], won["claimant"], won["code"]) == ("CONVICTED", liar, "tile.weights")
    assert won["gained_wei"] > 10**18 * 49 // 100  # half of the liar's ether, less gas
    assert result["burnt_ether"] == "0.5"
    assert [op for op in result["operators"] if op["node_id"] != liar] == result["operators_after"]
    assert result["anchored"].startswith("ANCHORED")

    gas = result["gas"]
    assert all(each["succeeded"] for each in gas)
    whats = Counter(each["what"] for each in gas)
    assert whats["OperatorRegistry.deposit"] == whats["OperatorRegistry.registerOperator"] == 3
    assert whats["Court.open"] == whats["Court.answer"] == whats["Court.prove"] == 1
    assert whats["Court.timeout"] == 0  # the liar played to its end, and lost by what it showed
    assert whats["OperatorRegistry.anchor"] >= 1
    assert {each["who"] for each in gas if each["what"].startswith("Court.")} == {"challenger", "operator-2"}
    assert max(each["gas"] for each in gas if each["what"].endswith("registerOperator")) <= 130_000
    game = sum(each["gas"] for each in gas if each["what"].startswith("Court."))
    assert game <= 1_900_000
    assert "final block" in done.stderr
