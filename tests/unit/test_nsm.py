"""/dev/nsm from Python, through its real ioctl layout, against the SIMULATED security module: limits, registers, errors, PKI.

SIMULATED: no hardware takes part. The kernel's side of the ioctl is played by a function that reads and writes through
the addresses that it is given, as the kernel does.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import os
import struct
from collections.abc import Callable
from hashlib import sha256, sha384
from pathlib import Path
from typing import Any

import pytest
from attest_documents import anchor_of
from hypothesis import given
from hypothesis import strategies as st

from aos.adapters import nsm
from aos.adapters.nsm import Nsm, NsmDevice, open_nsm
from aos.adapters.simulated_nsm import (
    INSTANCE_PREFIX,
    LABEL,
    LEAF_LIFE_MS,
    ROOT_NAME,
    SimulatedNsm,
    SimulatedPlatform,
    create_simulated_platform,
    load_simulated_platform,
    sign_document,
)
from aos.core.attest import cbor
from aos.core.attest.nitro import verify_nitro
from aos.core.attest.result import AWS_NITRO, simulated_anchor
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable

NOW = 1_780_000_000_000
PLATFORM = SimulatedPlatform(sha256(b"test platform").digest())
ANCHOR = simulated_anchor(PLATFORM.root)
PCRS = {index: sha384(f"register {index}".encode()).digest() for index in range(3)}


def refused(cls: type[AOSError], code: str, call: Callable[[], Any]) -> AOSError:
    with pytest.raises(cls) as caught:
        call()
    assert caught.value.code == code
    return caught.value


def module(now: int = NOW, **options: Any) -> SimulatedNsm:
    members: dict[str, Any] = {"pcrs": PCRS, "clock": lambda: now, "enclave": "00" * 8}
    return SimulatedNsm(PLATFORM, **(members | options))


def kernel(behind: SimulatedNsm, seen: list[int] | None = None) -> nsm.Ioctl:
    """The driver: reads the request and writes the response where struct nsm_raw says."""

    def ioctl(_descriptor: int, number: int, raw: Any) -> int:
        if seen is not None:
            seen.append(number)
        data = ctypes.string_at(ctypes.addressof(raw), 32)
        request_at, request_size, response_at, response_size = struct.unpack("<4Q", data)
        assert response_size == 0x3000
        if request_size > 0x1000:
            raise OSError(errno.EMSGSIZE, "Message too long")
        response = behind.request(ctypes.string_at(request_at, request_size))
        ctypes.memmove(response_at, response, len(response))
        ctypes.memmove(ctypes.addressof(raw) + 24, struct.pack("<Q", len(response)), 8)
        return 0

    return ioctl


@pytest.fixture(params=["device", "simulated"])
def client(request: pytest.FixtureRequest) -> Nsm:
    """The same client in front of the device's ioctl and in front of the SIMULATED module itself."""
    behind = module()
    return Nsm(NsmDevice(7, ioctl=kernel(behind)) if request.param == "device" else behind)


# --- the device ---------------------------------------------------------------------------------------------


def test_the_ioctl_is_the_kernels_header() -> None:
    assert nsm.NSM_IOCTL_RAW == (3 << 30 | 32 << 16 | 0x0A << 8) == 3223325184
    assert ctypes.sizeof(nsm._Raw) == 32
    seen: list[int] = []
    Nsm(NsmDevice(7, ioctl=kernel(module(), seen))).describe()
    assert seen == [3223325184]


@pytest.mark.parametrize(
    ("number", "cls", "code"),
    [
        (errno.EMSGSIZE, RuleViolation, "nsm.input_too_large"),
        (errno.EPERM, ConfigError, "nsm.permission"),
        (errno.EACCES, ConfigError, "nsm.permission"),
        (errno.EIO, Unavailable, "nsm.device_failed"),
        (errno.ENOTTY, Unavailable, "nsm.device_failed"),
        (errno.ENODEV, Unavailable, "nsm.device_failed"),
    ],
)
def test_every_error_of_the_kernel_is_named(number: int, cls: type[AOSError], code: str) -> None:
    def ioctl(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    refused(cls, code, lambda: Nsm(NsmDevice(7, ioctl=ioctl)).describe())


@pytest.mark.parametrize("size", [0, 0x3001, 2**63])
def test_a_response_of_an_impossible_length_is_not_read(size: int) -> None:
    def ioctl(_descriptor: int, _number: int, raw: Any) -> int:
        raw.response.len = size
        return 0

    refused(Unavailable, "nsm.device_failed", lambda: NsmDevice(7, ioctl=ioctl).request(b"\x60"))


@pytest.mark.parametrize("size", [0, 4097])
def test_a_request_out_of_bounds_reaches_no_module(size: int) -> None:
    def ioctl(*_: Any) -> int:
        raise AssertionError("it was sent")

    for behind in (NsmDevice(7, ioctl=ioctl), module()):
        refused(RuleViolation, "nsm.input_too_large", lambda behind=behind: behind.request(bytes(size)))


def test_a_file_that_is_no_device_fails_by_name(tmp_path: Path) -> None:
    path = tmp_path / "nsm"
    path.write_bytes(b"")
    device = NsmDevice.open(path)
    refused(Unavailable, "nsm.device_failed", lambda: Nsm(device).describe())
    device.close()
    refused(ConfigError, "nsm.device", lambda: NsmDevice.open(tmp_path / "none"))


# --- which module -------------------------------------------------------------------------------------------


def test_a_machine_with_the_device_never_simulates(tmp_path: Path) -> None:
    device = tmp_path / "nsm"
    device.write_bytes(b"")

    def simulation() -> SimulatedNsm:
        raise AssertionError("it simulated")

    refused(ConfigError, "nsm.simulation_refused", lambda: open_nsm(simulation, device=device))
    assert open_nsm(None, device=device).simulated is False


def test_a_machine_without_the_device_simulates_only_where_it_was_told_to(tmp_path: Path) -> None:
    none = tmp_path / "none"
    refused(ConfigError, "nsm.missing", lambda: open_nsm(None, device=none))
    assert open_nsm(module, device=none).simulated is True


def test_a_device_that_cannot_be_opened_is_not_replaced(tmp_path: Path) -> None:
    refused(ConfigError, "nsm.device", lambda: open_nsm(None, device=tmp_path))  # a directory


# --- requests, the same through both ------------------------------------------------------------------------


def test_it_describes_itself(client: Nsm) -> None:
    found = client.describe()
    assert found.module_id == f"{PLATFORM.instance}-enc{'00' * 8}"
    assert found.module_id.startswith("i-51a1a7ed")
    assert (found.max_pcrs, found.locked_pcrs, found.digest) == (32, tuple(range(16)), "SHA384")


def test_the_platforms_registers_are_locked_and_the_applications_are_not(client: Nsm) -> None:
    for index in range(16):
        locked, value = client.pcr(index)
        assert locked
        assert value == PCRS.get(index, value)
        refused(RuleViolation, "nsm.read_only_index", lambda index=index: client.extend_pcr(index, b"mine"))
    assert client.pcr(4)[1] == sha384(bytes(48) + PLATFORM.instance.encode()).digest()
    assert client.pcr(16) == (False, bytes(48))


def test_a_register_is_extended_then_locked_and_only_then_in_the_document(client: Nsm) -> None:
    first = client.extend_pcr(16, b"manifest")
    assert first == sha384(bytes(48) + b"manifest").digest()
    second = client.extend_pcr(16, b"more")
    assert second == sha384(first + b"more").digest()
    assert client.pcr(16) == (False, second)
    assert believed(client.attest()).measurement("PCR16") is None
    client.lock_pcr(16)
    assert client.pcr(16) == (True, second)
    assert believed(client.attest()).measurement("PCR16") == second
    refused(RuleViolation, "nsm.read_only_index", lambda: client.extend_pcr(16, b"again"))
    refused(RuleViolation, "nsm.read_only_index", lambda: client.lock_pcr(16))


def test_a_range_of_registers_is_locked_at_once(client: Nsm) -> None:
    client.lock_pcrs(20)
    assert [client.pcr(index)[0] for index in range(15, 22)] == [True] * 5 + [False] * 2
    refused(RuleViolation, "nsm.invalid_index", lambda: client.lock_pcrs(33))


@pytest.mark.parametrize("index", [-1, 32, 2**16])
def test_there_are_32_registers(index: int, client: Nsm) -> None:
    refused(RuleViolation, "nsm.invalid_index", lambda: client.pcr(index))


def test_its_entropy_is_new_each_time(client: Nsm) -> None:
    assert len({client.random(32) for _ in range(20)}) == 20
    assert len(client.random(256)) == 256
    for count in (0, 257):
        refused(RuleViolation, "nsm.invalid_argument", lambda count=count: client.random(count))


def believed(document: bytes, **options: Any) -> Any:
    return verify_nitro(document, roots=[ANCHOR], at_ms=NOW, **options).require()


@pytest.mark.parametrize(
    ("name", "largest", "smallest"), [("user_data", 512, 0), ("nonce", 512, 0), ("public_key", 1024, 1)]
)
def test_what_a_document_binds_has_a_largest_size(
    name: str, largest: int, smallest: int, client: Nsm
) -> None:
    member = {"user_data": "report_data"}.get(name, name)
    for size in {largest, smallest, 32}:
        assert getattr(believed(client.attest(**{name: bytes(size)})), member) == bytes(size)
    assert getattr(believed(client.attest()), member) is None
    refused(RuleViolation, "nsm.input_too_large", lambda: client.attest(**{name: bytes(largest + 1)}))


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (b"\xff", "InvalidOperation"),
        (cbor.encode("Reboot"), "InvalidOperation"),
        (cbor.encode({"Reboot": {}}), "InvalidOperation"),
        (cbor.encode({}), "InvalidOperation"),
        (cbor.encode({"GetRandom": {}, "DescribeNSM": {}}), "InvalidOperation"),
        (cbor.encode({"ExtendPCR": 16}), "InvalidOperation"),
        (cbor.encode(7), "InvalidOperation"),
        (cbor.encode({"DescribePCR": {"index": 32}}), "InvalidIndex"),
        (cbor.encode({"DescribePCR": {"index": True}}), "InvalidArgument"),
        (cbor.encode({"DescribePCR": {}}), "InvalidArgument"),
        (cbor.encode({"ExtendPCR": {"index": 3, "data": b"x"}}), "ReadOnlyIndex"),
        (cbor.encode({"ExtendPCR": {"index": 16, "data": "x"}}), "InvalidArgument"),
        (cbor.encode({"ExtendPCR": {"index": 16, "data": b""}}), "InvalidArgument"),
        (cbor.encode({"LockPCRs": {"range": 33}}), "InvalidIndex"),
        (cbor.encode({"LockPCRs": {"range": None}}), "InvalidArgument"),
        (cbor.encode({"Attestation": {"user_data": bytes(513)}}), "InputTooLarge"),
        (cbor.encode({"Attestation": {"nonce": bytes(513)}}), "InputTooLarge"),
        (cbor.encode({"Attestation": {"public_key": bytes(1025)}}), "InputTooLarge"),
        (cbor.encode({"Attestation": {"nonce": "text"}}), "InvalidArgument"),
        (cbor.encode({"Attestation": {"pcrs": None}}), "InvalidArgument"),
    ],
)
def test_the_module_itself_keeps_its_limits(request_: bytes, name: str) -> None:
    assert cbor.decode(module().request(request_)) == {"Error": name}


@given(st.binary(min_size=1, max_size=200))
def test_the_module_answers_whatever_it_is_sent(data: bytes) -> None:
    assert cbor.decode(module().request(data), indefinite_maps=True) is not None


class Answering:
    """A module that answers one thing."""

    simulated = True

    def __init__(self, response: bytes) -> None:
        self.response = response

    def request(self, _: bytes) -> bytes:
        return self.response


@pytest.mark.parametrize("name", sorted(nsm.ERRORS))
def test_every_error_of_the_module_has_a_code_of_its_own(name: str) -> None:
    client = Nsm(Answering(cbor.encode({"Error": name})))
    refused(nsm.ERRORS[name], nsm.CODES[name], client.describe)
    assert len(set(nsm.CODES.values())) == len(nsm.ERRORS) == 8


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"\xff",
        cbor.encode({"Error": "Unheard"}),
        cbor.encode({"Error": []}),
        cbor.encode({"Error": {}}),
        cbor.encode({"Error": {"InvalidArgument": None}}),
        cbor.encode({"Error": None}),
        cbor.encode({"Error": 0}),
        cbor.encode([]),
        cbor.encode({0: {}}),
        cbor.encode({"GetRandom": {"random": "text"}}),
        cbor.encode({"GetRandom": {"random": b""}}),
        cbor.encode({"GetRandom": {}}),
        cbor.encode("GetRandom"),
        cbor.encode({"DescribeNSM": {}}),
        cbor.encode({"GetRandom": {"random": b"x"}}) + b"\0",
    ],
)
def test_an_answer_of_another_shape_is_not_used(response: bytes) -> None:
    refused(Unavailable, "nsm.protocol", lambda: Nsm(Answering(response)).random(8))


def test_a_module_that_gives_too_little_entropy_is_asked_again() -> None:
    assert Nsm(Answering(cbor.encode({"GetRandom": {"random": b"xyz"}}))).random(8) == b"xyzxyzxy"


# --- documents and their chain ------------------------------------------------------------------------------


def test_a_document_has_the_shape_of_aws_and_another_root(client: Nsm) -> None:
    document = client.attest(user_data=b"u", nonce=b"n" * 32, public_key=b"k")
    result = verify_nitro(document, roots=[ANCHOR], at_ms=NOW, nonce=b"n" * 32, max_age_ms=0)
    assert {check.status for check in result.checks} == {"PASS"}
    claims = result.require()
    assert claims.simulated
    assert claims.anchor == "SIMULATED, NOT AWS"
    assert (claims.report_data, claims.nonce, claims.public_key) == (b"u", b"n" * 32, b"k")
    assert claims.time_ms == NOW
    assert claims.device == PLATFORM.instance
    root, regional, zonal, instance, leaf = claims.chain
    assert ROOT_NAME in root.subject
    assert all("SIMULATED" in one.subject for one in claims.chain)
    assert INSTANCE_PREFIX in instance.subject
    assert leaf.valid_until - leaf.valid_from == LEAF_LIFE_MS
    assert leaf.valid_from < NOW < leaf.valid_until < instance.valid_until < zonal.valid_until
    assert zonal.valid_until < regional.valid_until < root.valid_until
    payload = cbor.decode(document)[2]  # type: ignore[index]
    assert payload[0] == 0xBF, "a map of indefinite length, as modules of 2026 write it"


def test_the_default_verifier_does_not_believe_it(client: Nsm) -> None:
    for roots in ((), (AWS_NITRO,), (anchor_of(b"some other certificate"),)):
        refusal = verify_nitro(client.attest(), roots=roots, at_ms=NOW).refusal
        assert refusal is not None
        assert (refusal.id, refusal.code) == ("root-1", "attest.root")


def test_a_document_that_nobody_signed_is_refused_as_qemus_are() -> None:
    document = module()
    members = dict(cbor.decode(cbor.decode(Nsm(document).attest())[2], indefinite_maps=True))  # type: ignore[index, call-overload]
    refusal = verify_nitro(sign_document(members, None), roots=[ANCHOR], at_ms=NOW).refusal
    assert refusal is not None
    assert (refusal.id, refusal.code) == ("signature-1", "attest.signature")
    # QEMU's has no certificates either.
    bare = members | {"certificate": bytes(64), "cabundle": [bytes(64)]}
    refusal = verify_nitro(sign_document(bare, None), roots=[ANCHOR, AWS_NITRO], at_ms=NOW).refusal
    assert refusal is not None
    assert refusal.code == "attest.root"


def test_a_debug_enclave_of_the_simulated_platform_is_refused() -> None:
    for index in range(3):
        document = Nsm(module(pcrs=PCRS | {index: bytes(48)})).attest()
        refusal = verify_nitro(document, roots=[ANCHOR], at_ms=NOW).refusal
        assert refusal is not None
        assert refusal.code == "attest.debug"


def test_one_leaf_serves_for_its_three_hours_and_then_another(client: Nsm) -> None:
    times = [NOW, NOW + 60_000, NOW + LEAF_LIFE_MS - 120_000, NOW + LEAF_LIFE_MS, NOW]
    clock = iter(times)
    behind = Nsm(module(clock=lambda: next(clock)))
    chains = []
    for time in times:
        document = behind.attest()
        chains.append(verify_nitro(document, roots=[ANCHOR], at_ms=time).require().chain)
    assert chains[0] == chains[1] == chains[2] == chains[4]
    assert chains[3] != chains[2]
    assert chains[3][0] == chains[2][0]


def test_the_same_seed_gives_the_same_root_and_another_another() -> None:
    assert SimulatedPlatform(sha256(b"test platform").digest()).root == PLATFORM.root
    other = SimulatedPlatform(sha256(b"another").digest())
    assert (other.root, other.instance) != (PLATFORM.root, PLATFORM.instance)


# --- the platform's file ------------------------------------------------------------------------------------


def test_a_platform_file_is_labelled_private_and_gives_the_same_root_again(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "platform.key"
    root = create_simulated_platform(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["label"] == LABEL == "SIMULATED, NO HARDWARE"
    assert load_simulated_platform(path).root == root


def test_a_platform_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "platform.key"
    create_simulated_platform(path)
    before = path.read_bytes()
    refused(ConfigError, "platform.exists", lambda: create_simulated_platform(path))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["platform.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_platform_file_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "platform.key"
    create_simulated_platform(path)
    path.chmod(mode)
    assert "chmod 600" in str(
        refused(ConfigError, "platform.mode", lambda: load_simulated_platform(path)).hint
    )


@pytest.mark.parametrize(
    "bend",
    [
        lambda content: {**content, "label": "GENUINE HARDWARE"},
        lambda content: {**content, "seed": content["seed"][2:]},
        lambda content: {**content, "seed": bytes(32).hex()},
        lambda content: {**content, "seed": 5},
        lambda content: {**content, "root": bytes(32).hex()},
        lambda content: {name: value for name, value in content.items() if name != "label"},
        lambda content: [content],
    ],
    ids=["label", "short seed", "other seed", "number", "other root", "no label", "list"],
)
def test_a_bent_platform_file_is_refused_and_its_seed_is_not_printed(
    bend: Callable[[Any], Any], tmp_path: Path
) -> None:
    path = tmp_path / "platform.key"
    create_simulated_platform(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(bend(content)))
    error = refused(ConfigError, "platform.format", lambda: load_simulated_platform(path))
    assert content["seed"] not in f"{error} {error.hint} {error.__cause__}"


@pytest.mark.parametrize(
    "data",
    [b"[" * 1024, b'{"a":' * 204, b"\xff", b"", b"5", b"null", b'{"seed":"","seed":""}', b"1" * 1024],
    ids=["arrays", "objects", "no UTF-8", "empty", "number", "null", "twice", "a long number"],
)
def test_any_bytes_as_a_platform_file_are_refused_by_name(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "platform.key"
    path.write_bytes(data)
    path.chmod(0o600)
    refused(ConfigError, "platform.format", lambda: load_simulated_platform(path))


def test_a_platform_file_that_is_not_there_is_named_as_that(tmp_path: Path) -> None:
    refused(ConfigError, "platform.unreadable", lambda: load_simulated_platform(tmp_path / "none.key"))
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    refused(ConfigError, "platform.unwritable", lambda: create_simulated_platform(blocked / "x" / "p.key"))


# --- the encoder --------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.binary(max_size=300)
    | st.text(max_size=40)
)
shallow = scalars | st.lists(scalars, max_size=4) | st.dictionaries(st.text(max_size=5), scalars, max_size=4)


@given(shallow | st.lists(shallow, max_size=4) | st.dictionaries(st.integers(0, 40), shallow, max_size=4))
def test_what_is_encoded_is_read_back(value: Any) -> None:
    assert cbor.decode(cbor.encode(value)) == value


@pytest.mark.parametrize(
    ("value", "code"), [(2**64, "cbor.range"), (-(2**64) - 1, "cbor.range"), (1.5, "cbor.type")]
)
def test_what_has_no_place_is_not_encoded(value: Any, code: str) -> None:
    refused(InvalidMessage, code, lambda: cbor.encode(value))


def test_a_description_is_frozen(client: Nsm) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        client.describe().digest = "SHA256"  # type: ignore[misc]
