"""Times in ms, one core: a genuine AWS Nitro document judged; a SIMULATED one made, and a whole answer's evidence judged.

python benchmarks/attestation.py [RUNS]
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from simulated_run import PCRS, Network, platform_of

from aos.adapters.nsm import Nsm
from aos.adapters.simulated_nsm import SimulatedNsm
from aos.core.attest.nitro import verify_nitro
from aos.core.attest.result import AWS_NITRO
from aos.core.tee import verify_evidence

DOCUMENT = Path(__file__).parents[1] / "vectors/external/attestation/nitro/og_2026-02-12_indef.cbor"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    data, network = DOCUMENT.read_bytes(), Network()
    answer = network.run(job_type="tee")
    evidence, references = answer.evidence, network.trust().references("simulated")
    assert evidence is not None
    received = answer.receipt.countersign.received_at
    module = Nsm(SimulatedNsm(platform_of(network.name), pcrs=PCRS, clock=lambda: evidence.boot.booted_at))
    measured(
        "AWS Nitro document judged",
        runs,
        lambda: verify_nitro(data, roots=[AWS_NITRO], at_ms=1_790_000_000_000).require(),
    )
    measured("SIMULATED document made", runs, lambda: module.attest(user_data=bytes(32), nonce=bytes(32)))
    measured(
        "evidence of a TEE answer judged, document to answer statement",
        runs,
        lambda: verify_evidence(evidence, references=references, at_ms=received),
    )


def measured(what: str, runs: int, run: Callable[[], object]) -> None:
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - start) / 1e6)
    print(f"{what}: median {statistics.median(times):.2f} ms, least {min(times):.2f} ms")


if __name__ == "__main__":
    main()
