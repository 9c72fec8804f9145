"""Time to judge one genuine AWS Nitro document, one core, in ms: python benchmarks/attestation.py [RUNS]"""

import statistics
import sys
import time
from pathlib import Path

from aos.core.attest.nitro import verify_nitro
from aos.core.attest.result import AWS_NITRO

DOCUMENT = Path(__file__).parents[1] / "vectors/external/attestation/nitro/og_2026-02-12_indef.cbor"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    data, times = DOCUMENT.read_bytes(), []
    for _ in range(runs):
        start = time.perf_counter_ns()
        verify_nitro(data, roots=[AWS_NITRO], at_ms=1_790_000_000_000).require()
        times.append((time.perf_counter_ns() - start) / 1e6)
    print(f"median {statistics.median(times):.2f} ms, least {min(times):.2f} ms")


if __name__ == "__main__":
    main()
