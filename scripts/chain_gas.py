"""What the last move costs at the 7B shape, and a whole dispute about every op (docs/spec/16-chain-disputes.md).

``python scripts/make_chain_vectors.py --all FILE`` makes the games; ``python scripts/chain_gas.py FILE [OP …]`` plays them on an
anvil of its own under Prague's rules and prints gas: of the rule alone as a transaction, of ``prove``, of the whole dispute.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "unit")]

from chain_steps import judged  # noqa: E402
from court_games import OWNER, build  # noqa: E402
from evm import Node  # noqa: E402
from test_court_gas import Dispute, context, raw  # noqa: E402

from aos.adapters.embedded.anvil import EmbeddedAnvil  # noqa: E402


def main() -> None:
    """Play."""
    vector = json.loads(Path(sys.argv[1]).read_text())
    with TemporaryDirectory() as directory:
        server = EmbeddedAnvil(Path(directory))
        node = Node(server.start())
        try:
            world = build(node)
            number = 0
            print(f"{'unit':>4} {'op':22} {'tile':>6} {'bytes':>6} {'rule':>8} {'prove':>8} {'dispute':>8}")
            for each in (vector, *vector["other_units"]):
                unit = {"params": vector["params"], "salt": vector["salt"]} | each
                games = [game for game in unit["games"] if not sys.argv[2:] or game["op"] in sys.argv[2:]]
                for game in games:
                    proof, element = raw(game["proof"]), game["element"]
                    args = (context(unit), game["tile"], element, element, proof)
                    step, _ = judged(world.steps, *args)
                    rule = world.steps[step].send(OWNER, "check", *args).gas
                    dispute = Dispute(world, unit, number, register=game is games[0])
                    number += 1
                    prove = dispute.play(game)["prove"]
                    print(
                        f"{unit['unit']:4} {game['op']:22} {game['tile']:6} {len(proof):6} {rule:8} {prove:8} "
                        f"{dispute.total:8}",
                        flush=True,
                    )
        finally:
            node.close()
            server.stop()


if __name__ == "__main__":
    main()
