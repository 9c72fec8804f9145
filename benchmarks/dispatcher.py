"""Jobs a second from submit to stored, against a real dispatcher process on the embedded PostgreSQL (fsync on). No inference.

python benchmarks/dispatcher.py [--seconds 5] [--clients 1 50]

Every client keeps one connection and submits its next job when the last one is answered. The one registered operator is not
connected, so that jobs are accepted, signed, stored, and wait. Clients, dispatcher and PostgreSQL share the machine.
"""

import argparse
import asyncio
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

import yaml

from aos.adapters.embedded.postgres import EmbeddedPostgres
from aos.adapters.processes import free_port, spawn
from aos.core.signing import address_of
from aos.core.statements import Registration, sign
from aos.core.vrf import ecvrf_public_key, prove_possession
from aos.dispatcher.setup import Founded, found_network

NETWORK = "aos-local-benchmark"
MODEL = "benchmark.gguf"


def found(directory: Path, pg_url: str, port: int) -> tuple[Path, Founded]:
    """A network of one operator, which never connects."""
    signer, vrf, operator, operator_vrf, beacon = (secrets.token_bytes(32) for _ in range(5))
    for name, key in (("signer.key", signer), ("vrf.key", vrf), ("beacon.seed", beacon)):
        (directory / name).write_text(key.hex())
        (directory / name).chmod(0o600)
    settings = {
        "pg_db_url": pg_url,
        "listen": f"127.0.0.1:{port}",
        "network_id": NETWORK,
        "signer_key": "file:signer.key",
        "vrf_key": "file:vrf.key",
        "beacon_seed_file": "beacon.seed",
        "beacon_length": 64,
        "max_open_runs": 1_000_000,
        "project_requests": 1_000_000,
        "project_tokens": 10**12,
    }
    path = directory / "dispatcher.yaml"
    path.write_text(yaml.safe_dump(settings))
    now, address = time.time_ns() // 1_000_000, address_of(operator)
    registration = Registration(
        network=NETWORK,
        dispatcher=address_of(signer),
        node_id=address,
        vrf_key=ecvrf_public_key(operator_vrf),
        possession=prove_possession(operator_vrf, network=NETWORK, address=address),
        job_types=("opml",),
        models=(bytes(32),),
        time=now,
    )
    founding = found_network(
        path,
        registrations=[sign(operator, registration)],
        models={MODEL: bytes(32)},
        genesis_ms=now - 60_000,
        epoch_ms=3_600_000,
        project="benchmark",
    )
    return path, asyncio.run(founding)


def request_bytes(founded: Founded) -> bytes:
    body = {
        "from": founded.project,
        "tag": "",
        "user": secrets.token_hex(32),
        "job": {
            "tag": "opml",
            "prompt": "What is AI?",
            "model": MODEL,
            "params": {"temperature": 1.0, "top_p": 0.5, "max_tokens": 1024},
        },
        "verify": founded.token,
    }
    data = json.dumps(body).encode()
    head = f"POST /api/job/submit HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def client(port: int, founded: Founded, until: float, times: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = request_bytes(founded)
    while time.perf_counter() < until:
        begun = time.perf_counter()
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        times.append(time.perf_counter() - begun)
        assert head.startswith(b"HTTP/1.1 200"), body
    writer.close()


async def load(port: int, founded: Founded, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Jobs a second, and each job's seconds."""
    times: list[float] = []
    begun = time.perf_counter()
    await asyncio.gather(*(client(port, founded, begun + seconds, times) for _ in range(clients)))
    return len(times) / (time.perf_counter() - begun), times


async def listening(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 50])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory, port = Path(name), free_port()
        server = EmbeddedPostgres(directory / "postgres")
        server.start()
        try:
            path, founded = found(directory, server.create_database("benchmark"), port)
            with (directory / "dispatcher.log").open("wb") as log:
                argv = [sys.executable, "-m", "aos.dispatcher", "-c", str(path)]
                process = spawn(argv, env=dict(os.environ), output=log)
            try:
                asyncio.run(asyncio.wait_for(listening(port), 60))
                asyncio.run(load(port, founded, 4, 1.0))  # warms up
                print(f"submit → stored, {os.cpu_count()} cores, {options.seconds:g} s each")
                print(f"{'clients':>8}{'jobs/s':>10}{'p50 ms':>10}{'p99 ms':>10}")
                for clients in options.clients:
                    rate, times = asyncio.run(load(port, founded, clients, options.seconds))
                    parts = statistics.quantiles(times, n=100)
                    print(f"{clients:8}{rate:10.0f}{parts[49] * 1000:10.1f}{parts[98] * 1000:10.1f}")
            finally:
                process.terminate()
                process.wait(60)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
