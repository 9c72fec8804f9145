"""What checking an answer costs: µs for `verify_answer`, ms for `aos verify` as a process. Medians; one core.

python benchmarks/receipts.py [--answer FILE --trust FILE] [--runs 200] [--starts 20]

Without files it checks answers of the tests' simulated run (real keys, proofs and signatures; text and state roots stand for an
engine's; the enclave is SIMULATED), so that the numbers need no network.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from aos.core.answer import write_answer
from aos.core.codec import encode
from aos.core.receipt import verify_answer
from aos.core.trust import Trust, load_policy, read_trust

ROOT = Path(__file__).resolve().parents[1]
DEV = load_policy("dev")


def simulated() -> list[tuple[str, bytes, Trust]]:
    sys.path.insert(0, str(ROOT / "tests"))
    from simulated_run import Network

    network = Network()
    trust = network.trust()
    return [
        (f"{job_type}, simulated run", write_answer(network.run(job_type=job_type)), trust)
        for job_type in ("opml", "tee")
    ]


def spread(call: Callable[[], object], runs: int) -> tuple[float, float]:
    """Median and 99th percentile, in seconds."""
    call()
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answer", type=Path)
    parser.add_argument("--trust", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--starts", type=int, default=20)
    options = parser.parse_args()
    if options.answer is not None:
        files = [(options.answer.name, options.answer.read_bytes(), read_trust(options.trust.read_bytes()))]
    else:
        files = simulated()
    print(f"{'answer file':28}{'bytes':>8}{'verify µs':>12}{'p99 µs':>10}{'aos verify ms':>16}{'p99 ms':>9}")
    for name, data, trust in files:

        def check(data: bytes = data, trust: Trust = trust) -> None:
            assert verify_answer(data, trust=trust, policy=DEV).verdict == "VERIFIED"

        verify = spread(check, options.runs)
        with tempfile.TemporaryDirectory() as directory:
            answer, trusted = Path(directory) / "answer.aos", Path(directory) / "trust.json"
            answer.write_bytes(data)
            trusted.write_text(json.dumps(encode(trust)))
            argv = [str(ROOT / ".venv/bin/aos"), "verify", str(answer), "--trust", str(trusted)]

            def start(argv: list[str] = argv) -> None:
                done = subprocess.run(argv, capture_output=True, check=False, env=dict(os.environ))
                assert done.returncode == 0, done.stderr.decode()

            process = spread(start, options.starts)
        print(
            f"{name:28}{len(data):8}{verify[0] * 1e6:12.0f}{verify[1] * 1e6:10.0f}{process[0] * 1000:16.0f}"
            f"{process[1] * 1000:9.0f}"
        )


if __name__ == "__main__":
    main()
