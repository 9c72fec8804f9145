"""Random games between a claimant and a challenger on the contracts, each judged by the Python referee too.

``python scripts/play_chain_games.py [GAMES [SEED]]`` (default 10,000) plays in an in-process EVM: open, answer, descent,
proof. More than half of the claimants lie, every op of every unit comes in turn. Prints verdicts by op and code; exit status
1 where contract and referee differ in one game.
"""

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "unit")]

from chain_play import Player  # noqa: E402


def main() -> int:
    """Play."""
    games = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    player = Player(int(sys.argv[2]) if len(sys.argv) > 2 else 2026)
    verdicts: Counter[str] = Counter()
    by_op: Counter[str] = Counter()
    lies = differ = 0
    for number in range(games):
        found = player.play(number)
        verdicts[found.referee or "holds"] += 1
        by_op[found.op] += 1
        lies += found.lied
        if found.referee != found.contract:
            differ += 1
            print(f"game {number}: {found}", flush=True)
        if number % 1000 == 999:
            print(f"{number + 1:,} games, {lies:,} with a lie, {differ} differ", flush=True)
    print("codes:", ", ".join(f"{code} {count:,}" for code, count in verdicts.most_common()))
    print("games by op:", ", ".join(f"{op} {count}" for op, count in sorted(by_op.items())))
    print(f"least of an op: {min(by_op.values())}; {len(by_op)} ops")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
