"""What a verifier trusts, and what it requires (docs/spec/08-receipts.md, "Trust file").

Trust is an argument: nothing in an answer file adds to it. Policies are small files that come with the package.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, ClassVar, Literal

from aos.core.attest.result import AWS_NITRO, simulated_anchor
from aos.core.codec import Address, Bytes32, MaxLength, NetworkId, Pattern, Range, TimeMs, decode
from aos.core.encoding import parse_json_strict
from aos.core.log.leaf import VerifierKey
from aos.core.log.note import COSIGNATURE, ED25519, NoteKey, read_vkey
from aos.core.tee import Image, References
from aos.errors import ConfigError, InvalidMessage

MAX_TRUST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedDispatcher:
    """A dispatcher by its address, and the VRF key that its draw seeds are proven with."""

    address: Address
    vrf_key: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedBeacon:
    """The published end of a dispatcher's hash chain, and how many epochs it serves."""

    anchor: Bytes32
    length: Annotated[int, Range(1, 1 << 20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedTeeRoot:
    """The root of a SIMULATED platform, by the SHA-256 of its certificate. AWS's is part of this program."""

    tee: Literal["simulated"]
    root: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class TeeMeasurement:
    """A reference value: an image that an enclave of this kind may run, in all three of its registers, in hex."""

    tee: Literal["simulated", "nitro"]
    pcr0: Annotated[str, Pattern(r"[0-9a-f]{96}")]
    pcr1: Annotated[str, Pattern(r"[0-9a-f]{96}")]
    pcr2: Annotated[str, Pattern(r"[0-9a-f]{96}")]

    @property
    def image(self) -> Image:
        return bytes.fromhex(self.pcr0), bytes.fromhex(self.pcr1), bytes.fromhex(self.pcr2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """A trust file."""

    TYPE: ClassVar[str] = "aos.trust"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatchers: Annotated[tuple[TrustedDispatcher, ...], MaxLength(64)]
    genesis: TimeMs
    epoch_ms: Annotated[int, Range(1, 2**53 - 1)]
    beacon: TrustedBeacon
    registry_roots: Annotated[tuple[Bytes32, ...], MaxLength(100_000)]
    tee_roots: Annotated[tuple[TrustedTeeRoot, ...], MaxLength(64)]
    tee_measurements: Annotated[tuple[TeeMeasurement, ...], MaxLength(256)]
    policy: Annotated[str, MaxLength(64)]
    log_key: VerifierKey = ""
    """The verifier key of the dispatcher's log; empty where none is trusted."""
    witnesses: Annotated[tuple[VerifierKey, ...], MaxLength(64)] = ()
    witness_quorum: Annotated[int, Range(0, 64)] = 0
    """How many of the witnesses must have cosigned a checkpoint; with 0 they count for nothing."""

    @property
    def log(self) -> NoteKey | None:
        """The log's key. Raises InvalidMessage ``note.vkey``; ``read_trust`` has looked already."""
        return read_vkey(self.log_key) if self.log_key else None

    @property
    def witness_keys(self) -> tuple[NoteKey, ...]:
        """The witnesses' keys, in the file's order."""
        return tuple(map(read_vkey, self.witnesses))

    def references(self, kind: str) -> References:
        """What this file believes of enclaves of ``kind``."""
        return tee_references(self.tee_roots, self.tee_measurements).get(
            kind, References(anchors=(), images=frozenset())
        )


def tee_references(
    roots: tuple[TrustedTeeRoot, ...], measurements: tuple[TeeMeasurement, ...]
) -> dict[str, References]:
    """Roots and images by kind. Nitro's root is AWS's and needs no name; without an image nothing of it is believed."""
    images: dict[str, set[Image]] = {}
    for measurement in measurements:
        images.setdefault(measurement.tee, set()).add(measurement.image)
    anchors = {"nitro": (AWS_NITRO,), "simulated": tuple(simulated_anchor(root.root) for root in roots)}
    return {
        kind: References(anchors=anchors[kind], images=frozenset(found)) for kind, found in images.items()
    }


def check_tee_references(roots: tuple[TrustedTeeRoot, ...], measurements: tuple[TeeMeasurement, ...]) -> None:
    """Raises InvalidMessage ``trust.tee``: a root without images or images without a root, a register of zeros, a root
    that is AWS's, or anything there twice."""
    if bool(roots) != any(measurement.tee == "simulated" for measurement in measurements):
        raise InvalidMessage(
            "trust.tee",
            "simulated roots need the measurements of images, and those need a root",
            field="tee_measurements",
        )
    if any("0" * 96 in (m.pcr0, m.pcr1, m.pcr2) for m in measurements):
        raise InvalidMessage(
            "trust.tee", "a register of zeros is a debug enclave's", field="tee_measurements"
        )
    if any(root.root == AWS_NITRO.sha256 for root in roots):
        raise InvalidMessage("trust.tee", "the root of AWS is not a simulated one", field="tee_roots")
    for name, listed in (("tee_roots", roots), ("tee_measurements", measurements)):
        if len(set(listed)) != len(listed):
            raise InvalidMessage("trust.tee", f"{name} names one twice", field=name)


def check_log_keys(trust: Trust) -> None:
    """Raises InvalidMessage ``note.vkey``, ``trust.log``: keys of another type, one twice, the log its own witness, a quorum
    that cannot be reached."""
    log, witnesses = trust.log, trust.witness_keys
    if log is not None and log.kind != ED25519:
        raise InvalidMessage("trust.log", "log_key is a key of type 1", field="log_key")
    if any(key.kind != COSIGNATURE for key in witnesses):
        raise InvalidMessage("trust.log", "witnesses are keys of type 4 (cosignature/v1)", field="witnesses")
    keys = [key.public for key in witnesses] + ([log.public] if log is not None else [])
    if len(set(keys)) != len(keys):
        raise InvalidMessage(
            "trust.log", "witnesses names a key twice, or the log as its own witness", field="witnesses"
        )
    if trust.witness_quorum > len(witnesses):
        raise InvalidMessage(
            "trust.log", "witness_quorum is more than there are witnesses", field="witness_quorum"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """``required`` are check ids (``a|b``: one of the two); a simulated TEE counts only where ``accept_tee`` names it."""

    name: Annotated[str, MaxLength(64)]
    required: Annotated[tuple[Annotated[str, MaxLength(64)], ...], MaxLength(64)]
    accept_tee: Annotated[tuple[Literal["simulated", "nitro", "tdx", "snp"], ...], MaxLength(4)]


def read_trust(data: bytes) -> Trust:
    """Strictly decode a trust file. Raises ConfigError ``trust.invalid``, also where a dispatcher is named twice."""
    try:
        value = parse_json_strict(data, max_bytes=MAX_TRUST_BYTES)
        if isinstance(value, dict):  # files of before there was a log name none
            value = {"log_key": "", "witnesses": [], "witness_quorum": 0, **value}
        trust = decode(Trust, value)
        check_tee_references(trust.tee_roots, trust.tee_measurements)
        check_log_keys(trust)
    except InvalidMessage as error:
        raise ConfigError("trust.invalid", f"the trust file: {error.message}", field=error.field) from error
    if len({dispatcher.address for dispatcher in trust.dispatchers}) != len(trust.dispatchers):
        raise ConfigError("trust.invalid", "the trust file names a dispatcher twice", field="dispatchers")
    return trust


def load_policy(name: str) -> Policy:
    """A policy that comes with the package. Raises ConfigError ``trust.policy``."""
    file = resources.files("aos.core").joinpath("policies", f"{name}.json")
    if not name.isalnum() or not file.is_file():
        raise ConfigError("trust.policy", f"no policy {name!r}", hint="dev, default and production are there")
    return decode(Policy, json.loads(file.read_text(encoding="utf-8")))
