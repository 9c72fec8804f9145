"""The engine's 64-bit ARM build, under an emulator: the operations and runs of tiny models, with and without the processor's
dot product. All models: ``make neon``.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ("aarch64-linux-gnu-g++", "qemu-aarch64-static")
MODELS = "tiny-mixed,tiny-qwen2,tiny-trap"
"""Between them every architecture's shape of attention, half of the tensor types, a trap; the operations are of all types."""


@pytest.mark.timeout(900)  # compiled and emulated; a busy machine takes minutes
def test_the_arm_build_gives_the_bits_of_the_vectors(tmp_path: Path) -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing and os.environ.get("AOS_CI") != "1":
        pytest.skip(f"{' and '.join(missing)} not here: apt install g++-aarch64-linux-gnu qemu-user-static")
    done = subprocess.run(
        [
            sys.executable,
            REPOSITORY / "scripts" / "native_check.py",
            "--neon",
            "--build",
            tmp_path,
            "--models",
            MODELS,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal bits: scalar neon; 3 models" in done.stdout
    assert "equal bits: scalar neon neon-dot; 3 models" in done.stdout
