"""A SIMULATED security module (docs/spec/10-tee.md, "Simulated platform"): NOT AWS, no hardware.

It answers what /dev/nsm answers, under the same limits and with the same errors, and signs documents of the same format
with a chain of its own below "AOS SIMULATED ROOT - NOT AWS". Everything follows from one seed of 32 bytes in a file:
whoever can read it can attest to anything. A verifier believes its root only where it is named, and calls it simulated.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256, sha384
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from aos.adapters import nsm
from aos.core.attest import cbor
from aos.core.attest.certificates import P384_ORDER
from aos.core.attest.nitro import ES384_HEADER, MAX_CERTIFICATE_BYTES, PCR_BYTES
from aos.core.encoding import parse_json_strict, tagged_hash
from aos.errors import ConfigError, InvalidMessage

LABEL: Final = "SIMULATED, NO HARDWARE"
ROOT_NAME: Final = "AOS SIMULATED ROOT - NOT AWS"
INSTANCE_PREFIX: Final = "i-51a1a7ed"
LEAF_LIFE_MS = 10_803_000
"""3 h and 3 s, as AWS's."""
_LEAF_AHEAD_MS = 3_000
_RENEW_MS = 60_000
_DAY_MS = 86_400_000
_ROOT_FROM, _ROOT_UNTIL = datetime(2020, 1, 1, tzinfo=UTC), datetime(2060, 1, 1, tzinfo=UTC)
_MAX_FILE_BYTES = 1024
_VERSION = (1, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Issued:
    """A certificate with its key."""

    der: bytes
    key: ec.EllipticCurvePrivateKey
    name: x509.Name


class SimulatedPlatform:
    """The maker's part: the root, and the chain of one machine. SIMULATED: all of it follows from ``seed`` (32 bytes)."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self.instance = INSTANCE_PREFIX + tagged_hash("simulated-instance", seed).hex()[:9]
        self._root = self._issue(
            ROOT_NAME, issuer=None, path_length=None, begin=_ROOT_FROM, end=_ROOT_UNTIL, serial=1
        )

    @property
    def root(self) -> bytes:
        """SHA-256 of the root's certificate: what a trust file must name to believe this platform (32 bytes)."""
        return sha256(self._root.der).digest()

    def chain(self, module_id: str, time_ms: int) -> tuple[list[bytes], ec.EllipticCurvePrivateKey]:
        """Certificates, root first, as AWS's bundle has them, and the leaf's key; valid from ``time_ms`` - 3 s on."""
        issued = [self._root]
        day = time_ms // _DAY_MS * _DAY_MS
        for name, path_length, days in (("regional", 2, 20), ("zonal", 1, 6), (self.instance, 0, 1)):
            issued.append(
                self._issue(
                    f"{name}.simulated",
                    issuer=issued[-1],
                    path_length=path_length,
                    begin=_moment(day - _DAY_MS),
                    end=_moment(day + days * _DAY_MS + _DAY_MS),
                    serial=day // 1000,
                )
            )
        begin = time_ms - _LEAF_AHEAD_MS
        leaf = self._issue(
            f"{module_id}.simulated",
            issuer=issued[-1],
            path_length=-1,
            begin=_moment(begin),
            end=_moment(begin + LEAF_LIFE_MS),
            serial=begin,
        )
        return [*(one.der for one in issued), leaf.der], leaf.key

    def _issue(
        self,
        name: str,
        *,
        issuer: _Issued | None,
        path_length: int | None,
        begin: datetime,
        end: datetime,
        serial: int,
    ) -> _Issued:
        """A certificate. ``path_length`` -1: a leaf. Keys and signatures are deterministic: the same once more."""
        named = sha256(name.encode()).digest()
        secret = tagged_hash("simulated-platform-key", self._seed, named, serial.to_bytes(8, "big"))
        wide = secret + tagged_hash("simulated-platform-key", secret)
        key = ec.derive_private_key(int.from_bytes(wide, "big") % (P384_ORDER - 1) + 1, ec.SECP384R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "AOS, SIMULATED"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        authority = path_length != -1
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if issuer is None else issuer.name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(
                x509.BasicConstraints(ca=authority, path_length=path_length if authority else None),
                critical=True,
            )
            .add_extension(_usage(authority=authority), critical=True)
        )
        signer = key if issuer is None else issuer.key
        der = builder.sign(signer, hashes.SHA384(), ecdsa_deterministic=True).public_bytes(Encoding.DER)
        if len(der) > MAX_CERTIFICATE_BYTES:
            raise ConfigError("platform.format", "a simulated certificate has grown too large")
        return _Issued(der=der, key=key, name=subject)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _moment(time_ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=time_ms // 1000)


def instance_pcr(instance: str) -> bytes:
    """PCR4 as the platform measures it: SHA-384 of 48 zero bytes and the instance's name."""
    return sha384(bytes(PCR_BYTES) + instance.encode("ascii")).digest()


class SimulatedNsm:
    """One enclave's module. ``pcrs``: what the platform measured before the first instruction, by register (0 to 15, 48
    bytes each; PCR4 is the instance's, the others zero). ``clock`` gives Unix milliseconds."""

    simulated = True

    def __init__(
        self,
        platform: SimulatedPlatform,
        *,
        pcrs: Mapping[int, bytes],
        clock: Callable[[], int],
        enclave: str = "",
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._platform = platform
        self._clock = clock
        self._entropy = entropy
        self._turn = threading.Lock()
        self.module_id = f"{platform.instance}-enc{enclave or entropy(8).hex()}"
        self._pcrs = {index: bytes(PCR_BYTES) for index in range(nsm.PCRS)}
        self._pcrs |= {4: instance_pcr(platform.instance)} | dict(pcrs)
        self._locked = set(range(nsm.FIRST_APPLICATION_PCR))
        self._bundle: list[bytes] = []
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._until_ms = 0

    def request(self, request: bytes) -> bytes:
        """See ``nsm.Module``; like the driver, one at a time."""
        if not 1 <= len(request) <= nsm.MAX_REQUEST_BYTES:
            raise nsm.ERRORS["InputTooLarge"](
                nsm.CODES["InputTooLarge"], f"a request has 1 to {nsm.MAX_REQUEST_BYTES} bytes"
            )
        with self._turn:
            try:
                return cbor.encode(self._answer(cbor.decode(request, indefinite_maps=True)))
            except InvalidMessage:
                return _error("InvalidOperation")
            except _Refused as refused:
                return _error(refused.name)

    def _answer(self, asked: object) -> object:
        if asked == "DescribeNSM":
            major, minor, patch = _VERSION
            return {
                "DescribeNSM": {
                    "version_major": major,
                    "version_minor": minor,
                    "version_patch": patch,
                    "module_id": self.module_id,
                    "max_pcrs": nsm.PCRS,
                    "locked_pcrs": sorted(self._locked),
                    "digest": "SHA384",
                }
            }
        if asked == "GetRandom":
            return {"GetRandom": {"random": self._entropy(nsm.MAX_RANDOM_BYTES)}}
        if not isinstance(asked, dict) or len(asked) != 1:
            raise _Refused("InvalidOperation")
        ((name, arguments),) = asked.items()
        handler = {
            "Attestation": self._attest,
            "DescribePCR": self._describe_pcr,
            "ExtendPCR": self._extend_pcr,
            "LockPCR": self._lock_pcr,
            "LockPCRs": self._lock_pcrs,
        }.get(name)
        if handler is None or not isinstance(arguments, dict):
            raise _Refused("InvalidOperation")
        return handler(arguments)

    def _describe_pcr(self, arguments: dict[Any, Any]) -> object:
        index = _register(arguments)
        return {"DescribePCR": {"lock": index in self._locked, "data": self._pcrs[index]}}

    def _extend_pcr(self, arguments: dict[Any, Any]) -> object:
        index, data = _register(arguments), arguments.get("data")
        if type(data) is not bytes or not data:
            raise _Refused("InvalidArgument")
        if index in self._locked:
            raise _Refused("ReadOnlyIndex")
        self._pcrs[index] = sha384(self._pcrs[index] + data).digest()
        return {"ExtendPCR": {"data": self._pcrs[index]}}

    def _lock_pcr(self, arguments: dict[Any, Any]) -> object:
        index = _register(arguments)
        if index in self._locked:
            raise _Refused("ReadOnlyIndex")
        self._locked.add(index)
        return "LockPCR"

    def _lock_pcrs(self, arguments: dict[Any, Any]) -> object:
        below = arguments.get("range")
        if type(below) is not int:
            raise _Refused("InvalidArgument")
        if not 0 <= below <= nsm.PCRS:
            raise _Refused("InvalidIndex")
        self._locked |= set(range(below))
        return "LockPCRs"

    def _attest(self, arguments: dict[Any, Any]) -> object:
        limits = {
            "user_data": nsm.MAX_USER_DATA_BYTES,
            "nonce": nsm.MAX_NONCE_BYTES,
            "public_key": nsm.MAX_PUBLIC_KEY_BYTES,
        }
        if set(arguments) - set(limits):
            raise _Refused("InvalidArgument")
        given = {name: arguments.get(name) for name in limits}
        for name, value in given.items():
            if value is not None and type(value) is not bytes:
                raise _Refused("InvalidArgument")
            if value is not None and len(value) > limits[name]:
                raise _Refused("InputTooLarge")
        now = self._clock()
        if self._key is None or now > self._until_ms - _RENEW_MS or now < self._until_ms - LEAF_LIFE_MS:
            self._bundle, self._key = self._platform.chain(self.module_id, now)
            self._until_ms = (now - _LEAF_AHEAD_MS) // 1000 * 1000 + LEAF_LIFE_MS
        members = {
            "module_id": self.module_id,
            "digest": "SHA384",
            "timestamp": now,
            "pcrs": {index: self._pcrs[index] for index in sorted(self._locked)},
            "certificate": self._bundle[-1],
            "cabundle": self._bundle[:-1],
            "public_key": given["public_key"],
            "user_data": given["user_data"],
            "nonce": given["nonce"],
        }
        return {"Attestation": {"document": sign_document(members, self._key)}}


class _Refused(Exception):
    """The module refuses, with one of its own names."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _error(name: str) -> bytes:
    return cbor.encode({"Error": name})


def _register(arguments: dict[Any, Any]) -> int:
    index = arguments.get("index")
    if type(index) is not int:
        raise _Refused("InvalidArgument")
    if not 0 <= index < nsm.PCRS:
        raise _Refused("InvalidIndex")
    return index


def sign_document(members: Mapping[str, Any], key: ec.EllipticCurvePrivateKey | None) -> bytes:
    """A COSE_Sign1 over ``members``, a map of indefinite length as modules of 2026 write it, signed by the leaf's key
    (RFC 6979). Without a key its signature is zero, as an emulator's (QEMU) is."""
    payload = b"\xbf" + b"".join(cbor.encode(n) + cbor.encode(v) for n, v in members.items()) + b"\xff"
    signature = bytes(96)
    if key is not None:
        signed = cbor.encode(["Signature1", ES384_HEADER, b"", payload])
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384(), deterministic_signing=True)))
        signature = r.to_bytes(48, "big") + s.to_bytes(48, "big")
    return cbor.encode([ES384_HEADER, {}, payload, signature])


def create_simulated_platform(path: Path) -> bytes:
    """Make a simulated platform's file (mode 0600, never overwritten) and return its root (32 bytes).

    Raises ConfigError ``platform.exists`` or ``platform.unwritable``.
    """
    seed = secrets.token_bytes(32)
    platform = SimulatedPlatform(seed)
    content = {"label": LABEL, "root": platform.root.hex(), "seed": seed.hex()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(content, indent=2) + "\n")
    except FileExistsError:
        raise ConfigError("platform.exists", f"{path} exists already") from None
    except OSError as error:
        raise ConfigError("platform.unwritable", f"cannot write {path}: {error.strerror}") from error
    return platform.root


def load_simulated_platform(path: Path) -> SimulatedPlatform:
    """Read a platform's file. Raises ConfigError ``platform.unreadable``, ``platform.mode``, ``platform.format``."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            "platform.unreadable",
            f"cannot read the simulated platform's key {path}: {error.strerror}",
            hint="aos up makes one; so does tee-worker --create-platform FILE",
        ) from error
    if mode & 0o077:
        raise ConfigError(
            "platform.mode", f"{path} can be read by others (mode {mode:o})", hint=f"chmod 600 {path}"
        )
    try:
        content: Any = parse_json_strict(data, max_bytes=_MAX_FILE_BYTES, max_depth=1)
        seed = bytes.fromhex(content["seed"])
        if content["label"] != LABEL or len(seed) != 32:
            raise ValueError("not a simulated platform")
        platform = SimulatedPlatform(seed)
        if platform.root.hex() != content["root"]:
            raise ValueError("seed and root do not belong together")
    except (InvalidMessage, ValueError, KeyError, TypeError):
        # Without the cause: a JSON error quotes the text it failed on, and that text may be the seed.
        raise ConfigError("platform.format", f"{path} is no simulated platform's file") from None
    return platform
