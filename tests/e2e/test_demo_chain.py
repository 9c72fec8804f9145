"""`aos demo-chain` as a person runs it: a network of processes whose registry is a contract on a real node."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from machine import SLOW_MACHINE_S
from needed import absent

from aos.adapters.embedded.anvil import find_anvil

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_it_deploys_stakes_registers_runs_a_job_and_lets_one_leave(tmp_path: Path) -> None:
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
        timeout=2 * SLOW_MACHINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["verdict"] == "VERIFIED"
    ranges = sorted((op["start"], op["end"]) for op in result["operators"])
    assert len(ranges) == 3
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))
    assert {op["stake_ether"] for op in result["operators"]} == {"1"}
    whats = [transaction["what"] for transaction in result["gas"]]
    assert whats == [
        "deploy OperatorRegistry",
        "deploy ModelRegistry",
        *["deposit"] * 3,
        *["registerOperator"] * 3,
        "requestExit",
    ]
    assert all(t["gas"] <= 130_000 for t in result["gas"] if t["what"] == "registerOperator")
    assert "final block" in done.stderr
