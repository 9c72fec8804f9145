"""A stand-in for AWS's nitro-cli on a machine without Nitro Enclaves: SIMULATED, nothing is isolated or measured.

It prints what nitro-cli 1.4 prints (its src/common/json_output.rs) for the commands that our scripts use, keeps its
"enclaves" as files in $FAKE_NITRO_STATE, and misbehaves as $FAKE_NITRO says: words, separated by spaces. Every call's
arguments are appended to the file ``calls``.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from hashlib import sha384
from pathlib import Path

STATE = Path(os.environ["FAKE_NITRO_STATE"])
WORDS = set(os.environ.get("FAKE_NITRO", "").split())


def registers(path: str) -> dict[str, str]:
    """PCR0 to PCR2 of an image file, by a walk of its own."""
    data = Path(path).read_bytes()
    at, boot, disks = 548, b"", []
    while at < len(data):
        kind, _, size = struct.unpack(">HHQ", data[at : at + 12])
        content = data[at + 12 : at + 12 + size]
        if kind in (1, 2):
            boot += content
        elif kind == 3:
            disks.append(content)
        at += 12 + size

    def h(*parts: bytes) -> str:
        return sha384(bytes(48) + sha384(b"".join(parts)).digest()).hexdigest()

    found = {"HashAlgorithm": "Sha384 { ... }", "PCR0": h(boot, *disks), "PCR1": h(boot, disks[0])}
    return {**found, "PCR2": h(*disks[1:])}


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def show(value: object) -> int:
    print(json.dumps(value, indent=2))
    return 0


def enclaves() -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(STATE.glob("enclave-*.json"))]


def main() -> int:
    command = sys.argv[1]
    with (STATE / "calls").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    if f"{command}-fails" in WORDS:
        print(f"[ E99 ] {command} failed, as it was told to", file=sys.stderr)
        return 255
    if command == "describe-eif":
        found = registers(option("--eif-path"))
        if "other-register" in WORDS:
            found["PCR0"] = "ab" * 48
        return show(
            {"EifVersion": 4, "Measurements": found, "IsSigned": False, "CheckCRC": True, "ImageName": "toy"}
        )
    if command == "describe-enclaves":
        return show(enclaves())
    if command == "run-enclave":
        image, memory = option("--eif-path"), int(option("--memory"))
        if memory * (1 << 20) < 4 * Path(image).stat().st_size:
            print("[ E26 ] Insufficient memory requested", file=sys.stderr)
            return 26
        if "swaps" in WORDS:
            Path(image).write_bytes(Path(os.environ["FAKE_NITRO_OTHER"]).read_bytes())
        found = registers(image)
        if "runs-another" in WORDS:
            found["PCR2"] = "cd" * 48
        debug = {"--debug-mode", "--attach-console"} & set(sys.argv) or "debug" in WORDS
        described = {
            "EnclaveName": option("--enclave-name"),
            "EnclaveID": "i-51a1a7ed000000000-enc51a1a7ed00000000",
            "ProcessID": os.getpid(),
            "EnclaveCID": int(option("--enclave-cid")),
            "NumberOfCPUs": int(option("--cpu-count")),
            "CPUIDs": [1, 3],
            "MemoryMiB": memory,
            "State": "TERMINATING" if "dies" in WORDS else "RUNNING",
            "Flags": "DEBUG_MODE" if debug else "NONE",
            "Measurements": found,
        }
        (STATE / f"enclave-{option('--enclave-name')}.json").write_text(json.dumps(described))
        return show({name: described[name] for name in list(described)[:7]})
    if command == "terminate-enclave":
        name = option("--enclave-name")
        (STATE / f"enclave-{name}.json").unlink(missing_ok=True)
        return show({"EnclaveName": name, "Terminated": True})
    print(f"no such command: {command}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
