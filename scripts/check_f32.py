"""Compare contracts/src/F32.sol with the reference arithmetic, pattern by pattern (docs/spec/16-chain-disputes.md).

``python scripts/check_f32.py [CASES]`` runs so many cases of every operation (default 1,000,000) in an in-process EVM, and
all 65,536 binary16 patterns. Prints a line per operation; exit status 1 where any differs.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from f32_cases import OPERATIONS, Comparison, differences  # noqa: E402


def main() -> int:
    """Run all operations."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    wrong = 0
    for name in OPERATIONS:
        found: Comparison = differences(name, count, seed=2026)
        wrong += len(found.differ)
        print(
            f"{name:10} {found.cases:9,} cases, {len(found.differ)} differ; results: {found.subnormal:,} subnormal or zero, "
            f"{found.infinite:,} infinite, {found.nan:,} NaN"
        )
        for a, b, ours, theirs in found.differ[:5]:
            print(f"    {a:08x} {b:08x}: {ours:08x} in the contract, {theirs:08x} in the reference")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
