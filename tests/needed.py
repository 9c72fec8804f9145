"""What a test needs and may not find: elsewhere it is skipped, in CI it fails."""

import os

import pytest

IN_CI = os.environ.get("AOS_CI") == "1"


def absent(reason: str) -> None:
    """Skip the test, with the reason printed; in CI it fails."""
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)
