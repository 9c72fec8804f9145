"""``aos attack --all`` as a process against a network of its own: every row that exists is refused for its own reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from machine import REPOSITORY, SLOW_MACHINE_S

from aos.adapters.embedded.anvil import find_anvil
from aos.attack import runner

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_every_attack_is_refused_for_its_own_reason_and_its_twin_accepted(tmp_path: Path) -> None:
    model = REPOSITORY / "models" / "aos-demo.Q8_0.gguf"
    done = subprocess.run(
        [sys.executable, "-m", "aos.cli.main", "attack", "--all", "--json", "--model", str(model)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=6 * SLOW_MACHINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout)["result"]
    problems = {row["row"]: row["problem"] for row in result["rows"] if row["problem"]}
    assert problems == {}
    ready, later = runner.parted(runner.rows(), chain=find_anvil() is not None)
    table = {row.number: row for row in ready}
    assert {row["row"]: row["verdict"] for row in result["rows"]} == {
        number: "REFUSED" if row.must_fail else "ACCEPTED" for number, row in table.items()
    }
    assert [row["row"] for row in result["not_played"]] == [row.number for row in later]
    assert list(tmp_path.iterdir()) == []
