"""The Nitro security module: its device, its requests, and which module an enclave takes (docs/spec/10-tee.md,
"Security module").

A module answers CBOR requests with CBOR. ``NsmDevice`` is the kernel's /dev/nsm; the SIMULATED one
(``aos.adapters.simulated_nsm``) has the same interface, limits and errors. ``open_nsm`` takes the device exactly where
there is one: it never falls back from one to the other.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from aos.core.attest import cbor
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable

DEVICE = Path("/dev/nsm")
MAX_REQUEST_BYTES = 4096
MAX_RESPONSE_BYTES = 12_288
MAX_USER_DATA_BYTES = 512
MAX_NONCE_BYTES = 512
MAX_PUBLIC_KEY_BYTES = 1024
MAX_RANDOM_BYTES = 256
FIRST_APPLICATION_PCR, PCRS = 16, 32
NSM_IOCTL_RAW: Final = 0xC0200A00
"""_IOWR(0x0A, 0, struct nsm_raw): 3 << 30 | 32 << 16 | 0x0A << 8."""

ERRORS: dict[str, type[AOSError]] = {
    "InvalidArgument": RuleViolation,
    "InvalidIndex": RuleViolation,
    "InvalidResponse": Unavailable,
    "ReadOnlyIndex": RuleViolation,
    "InvalidOperation": RuleViolation,
    "BufferTooSmall": RuleViolation,
    "InputTooLarge": RuleViolation,
    "InternalError": Unavailable,
}
"""The module's own errors; each has the code ``nsm.`` and its name in lower case with underscores."""
CODES = {
    "InvalidArgument": "nsm.invalid_argument",
    "InvalidIndex": "nsm.invalid_index",
    "InvalidResponse": "nsm.invalid_response",
    "ReadOnlyIndex": "nsm.read_only_index",
    "InvalidOperation": "nsm.invalid_operation",
    "BufferTooSmall": "nsm.buffer_too_small",
    "InputTooLarge": "nsm.input_too_large",
    "InternalError": "nsm.internal_error",
}


class Module(Protocol):
    """What answers: CBOR in, CBOR out."""

    @property
    def simulated(self) -> bool: ...

    def request(self, request: bytes) -> bytes:
        """One request (at most 4096 bytes) and its response (at most 12288). Raises AOSError ``nsm.*``."""


class _Iovec(ctypes.Structure):
    """struct nsm_iovec of linux/nsm.h."""

    _fields_ = (("addr", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Raw(ctypes.Structure):
    """struct nsm_raw of linux/nsm.h, 32 bytes."""

    _fields_ = (("request", _Iovec), ("response", _Iovec))


Ioctl = Callable[[int, int, Any], Any]


class NsmDevice:
    """The kernel's device, opened once. The raw ioctl needs CAP_SYS_ADMIN; the driver serialises calls anyway."""

    simulated = False

    def __init__(self, descriptor: int, *, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._descriptor = descriptor
        self._ioctl = ioctl
        self._turn = threading.Lock()

    @classmethod
    def open(cls, path: Path = DEVICE) -> NsmDevice:
        """Raises ConfigError ``nsm.device``."""
        try:
            return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise ConfigError(
                "nsm.device",
                f"cannot open {path}: {error.strerror}",
                hint="the enclave's process must be root to speak to its security module",
            ) from error

    def close(self) -> None:
        os.close(self._descriptor)

    def request(self, request: bytes) -> bytes:
        """See ``Module``. Raises RuleViolation ``nsm.input_too_large``, ConfigError ``nsm.permission``, Unavailable
        ``nsm.device_failed``."""
        if not 1 <= len(request) <= MAX_REQUEST_BYTES:
            raise RuleViolation("nsm.input_too_large", f"a request has 1 to {MAX_REQUEST_BYTES} bytes")
        # The buffers must live until the call returns: the kernel writes through plain addresses.
        sent = (ctypes.c_uint8 * len(request)).from_buffer_copy(request)
        received = (ctypes.c_uint8 * MAX_RESPONSE_BYTES)()
        raw = _Raw(
            request=_Iovec(addr=ctypes.addressof(sent), len=len(request)),
            response=_Iovec(addr=ctypes.addressof(received), len=MAX_RESPONSE_BYTES),
        )
        with self._turn:
            try:
                self._ioctl(self._descriptor, NSM_IOCTL_RAW, raw)
            except OSError as error:
                raise _ioctl_error(error) from error
        if not 1 <= raw.response.len <= MAX_RESPONSE_BYTES:
            raise Unavailable("nsm.device_failed", "the device gave a response of an impossible length")
        return bytes(received[: raw.response.len])


def _ioctl_error(error: OSError) -> AOSError:
    if error.errno == errno.EMSGSIZE:
        return RuleViolation("nsm.input_too_large", "the device takes no request of this size")
    if error.errno in (errno.EPERM, errno.EACCES):
        return ConfigError(
            "nsm.permission",
            "the device refuses raw requests of this process",
            hint="run the enclave's process as root (CAP_SYS_ADMIN)",
        )
    return Unavailable("nsm.device_failed", f"the device failed: {error.strerror}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a module says of itself."""

    version: tuple[int, int, int]
    module_id: str
    max_pcrs: int
    locked_pcrs: tuple[int, ...]
    digest: str


class Nsm:
    """Typed requests to a module. Arguments out of bounds are refused here, before they are sent; what the module
    refuses comes back under its own name (``CODES``); a response of another shape is Unavailable ``nsm.protocol``."""

    def __init__(self, module: Module) -> None:
        self._module = module

    @property
    def simulated(self) -> bool:
        """True where no hardware stands behind it."""
        return self._module.simulated

    def attest(
        self, *, user_data: bytes | None = None, nonce: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """An attestation document over what is given: ``user_data`` and ``nonce`` at most 512 bytes, ``public_key`` 1
        to 1024. Raises AOSError ``nsm.*``."""
        for name, value, low, high in (
            ("user_data", user_data, 0, MAX_USER_DATA_BYTES),
            ("nonce", nonce, 0, MAX_NONCE_BYTES),
            ("public_key", public_key, 1, MAX_PUBLIC_KEY_BYTES),
        ):
            if value is not None and not low <= len(value) <= high:
                raise RuleViolation("nsm.input_too_large", f"{name} has {low} to {high} bytes", field=name)
        asked = {"user_data": user_data, "nonce": nonce, "public_key": public_key}
        return _bytes(self._members("Attestation", asked), "document", 1, MAX_RESPONSE_BYTES)

    def random(self, count: int) -> bytes:
        """``count`` (1 to 256) bytes of the module's entropy. Raises AOSError ``nsm.*``."""
        if not 1 <= count <= MAX_RANDOM_BYTES:
            raise RuleViolation("nsm.invalid_argument", f"one request gives 1 to {MAX_RANDOM_BYTES} bytes")
        found = _bytes(self._members("GetRandom", None), "random", 1, MAX_RANDOM_BYTES)
        while len(found) < count:
            found += _bytes(self._members("GetRandom", None), "random", 1, MAX_RANDOM_BYTES)
        return found[:count]

    def describe(self) -> Description:
        """Raises AOSError ``nsm.*``."""
        members = self._members("DescribeNSM", None)
        version = tuple(members.get(f"version_{part}") for part in ("major", "minor", "patch"))
        locked = members.get("locked_pcrs")
        numbers = [*version, members.get("max_pcrs")]
        if (
            any(type(number) is not int for number in numbers)
            or type(members.get("module_id")) is not str
            or type(members.get("digest")) is not str
            or type(locked) is not list
            or any(type(index) is not int for index in locked)
        ):
            raise _protocol("DescribeNSM")
        return Description(
            version=version,  # type: ignore[arg-type]
            module_id=members["module_id"],
            max_pcrs=members["max_pcrs"],
            locked_pcrs=tuple(locked),
            digest=members["digest"],
        )

    def pcr(self, index: int) -> tuple[bool, bytes]:
        """Register ``index``: is it locked, and its value (48 bytes). Raises AOSError ``nsm.*``."""
        members = self._members("DescribePCR", {"index": _index(index)})
        if type(members.get("lock")) is not bool:
            raise _protocol("DescribePCR")
        return members["lock"], _bytes(members, "data", 48, 48)

    def extend_pcr(self, index: int, data: bytes) -> bytes:
        """SHA-384 of the register's value and ``data`` becomes its value, which is returned (48 bytes)."""
        members = self._members("ExtendPCR", {"index": _index(index), "data": data})
        return _bytes(members, "data", 48, 48)

    def lock_pcr(self, index: int) -> None:
        """Nothing changes register ``index`` any more; from now on documents show it."""
        self._told("LockPCR", {"index": _index(index)})

    def lock_pcrs(self, below: int) -> None:
        """Lock registers 0 to ``below`` - 1."""
        self._told("LockPCRs", {"range": below})

    def _told(self, name: str, arguments: dict[str, Any]) -> None:
        if self._ask(name, arguments) != name:
            raise _protocol(name)

    def _members(self, name: str, arguments: dict[str, Any] | None) -> dict[str, Any]:
        value = self._ask(name, arguments)
        if not isinstance(value, dict) or list(value) != [name] or not isinstance(value[name], dict):
            raise _protocol(name)
        return value[name]  # type: ignore[no-any-return]

    def _ask(self, name: str, arguments: dict[str, Any] | None) -> Any:
        request = cbor.encode(name if arguments is None else {name: arguments})
        response = self._module.request(request)
        try:
            value = cbor.decode(response, indefinite_maps=True)
        except InvalidMessage as error:
            raise Unavailable("nsm.protocol", f"the module's answer to {name}: {error.message}") from error
        if isinstance(value, dict) and list(value) == ["Error"]:
            said = value["Error"]
            if type(said) is not str or said not in ERRORS:
                raise _protocol(name)
            raise ERRORS[said](CODES[said], f"the security module refuses {name}: {said}")
        return value


def _index(index: int) -> int:
    if not 0 <= index < PCRS:
        raise RuleViolation("nsm.invalid_index", f"registers are numbered 0 to {PCRS - 1}")
    return index


def _bytes(members: dict[str, Any], name: str, low: int, high: int) -> bytes:
    value = members.get(name)
    if type(value) is not bytes or not low <= len(value) <= high:
        raise Unavailable(
            "nsm.protocol", f"the module's {name} is not a byte string of {low} to {high} bytes"
        )
    return value


def _protocol(name: str) -> Unavailable:
    return Unavailable("nsm.protocol", f"the module answered {name} in another shape")


def open_nsm(simulation: Callable[[], Module] | None, *, device: Path = DEVICE) -> Nsm:
    """The module of this machine: ``device`` where it is there, else the SIMULATED one that ``simulation`` makes.

    Neither stands in for the other. Raises ConfigError ``nsm.simulation_refused`` where both are there, ``nsm.missing``
    where neither is, ``nsm.device`` where the device cannot be opened.
    """
    if device.exists():
        if simulation is not None:
            raise ConfigError(
                "nsm.simulation_refused",
                f"{device} is there: this is a real enclave, and it does not simulate",
                hint="start it without --platform-key",
            )
        return Nsm(NsmDevice.open(device))
    if simulation is None:
        raise ConfigError(
            "nsm.missing",
            f"there is no {device}: this is no Nitro enclave",
            hint="--platform-key FILE simulates one, and every document then says so",
        )
    return Nsm(simulation())
