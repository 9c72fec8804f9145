"""Cost of the cryptographic primitives, one core: median over runs, in µs.

python benchmarks/primitives.py [RUNS]
"""

import statistics
import sys
import time
from collections.abc import Callable

from aos.core.envelope import open_envelope, seal
from aos.core.signing import address_of, sign_eip191, sign_statement, verify_eip191, verify_statement
from aos.core.vrf import ecvrf_prove, ecvrf_public_key, ecvrf_verify


def median_us(call: Callable[[], object], runs: int) -> float:
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    seed, key, alpha = bytes(range(32)), bytes(range(1, 33)), bytes(200)
    vrf_key, pi, address = ecvrf_public_key(seed), ecvrf_prove(seed, alpha), address_of(key)
    message = bytes(500)
    signature = sign_eip191(key, message)
    statement = {"type": "aos.benchmark", "v": 1, **{f"member{i}": "A" * 43 for i in range(12)}}
    signed = sign_statement(key, statement)
    envelope = seal(key, id="1", method="heartbeat", params=[statement])
    rows: list[tuple[str, Callable[[], object]]] = [
        ("VRF prove", lambda: ecvrf_prove(seed, alpha)),
        ("VRF verify", lambda: ecvrf_verify(vrf_key, pi, alpha)),
        ("EIP-191 sign", lambda: sign_eip191(key, message)),
        ("EIP-191 verify", lambda: verify_eip191(message, signature, address)),
        ("statement sign", lambda: sign_statement(key, statement)),
        ("statement verify", lambda: verify_statement(statement, signed, address)),
        ("envelope open", lambda: open_envelope(envelope, expected_address=address)),
    ]
    for name, call in rows:
        print(f"{name:18} {median_us(call, runs):8.1f} µs")


if __name__ == "__main__":
    main()
