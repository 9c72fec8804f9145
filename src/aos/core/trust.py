"""What a verifier trusts, and what it requires (docs/spec/08-receipts.md, "Trust file").

Trust is an argument: nothing in an answer file adds to it. Policies are small files that come with the package.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, ClassVar, Literal

from aos.core.codec import Address, Bytes32, MaxLength, NetworkId, Range, TimeMs, decode
from aos.core.encoding import parse_json_strict
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
    """A key that vouches for enclaves of one kind."""

    tee: Literal["simulated"]
    key: Bytes32


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
    policy: Annotated[str, MaxLength(64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """``required`` are check ids (``a|b``: one of the two); a simulated TEE counts only where ``accept_tee`` names it."""

    name: Annotated[str, MaxLength(64)]
    required: Annotated[tuple[Annotated[str, MaxLength(64)], ...], MaxLength(64)]
    accept_tee: Annotated[tuple[Literal["simulated", "nitro", "tdx", "snp"], ...], MaxLength(4)]


def read_trust(data: bytes) -> Trust:
    """Strictly decode a trust file. Raises ConfigError ``trust.invalid``, also where a dispatcher is named twice."""
    try:
        trust = decode(Trust, parse_json_strict(data, max_bytes=MAX_TRUST_BYTES))
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
