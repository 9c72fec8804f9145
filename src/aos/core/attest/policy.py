"""Attestation policies, small strict JSON files, and what they make of evidence
(docs/spec/12-attestation.md, "Policy file")."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal

from aos.core.attest.intel import ACCEPTABLE_STATUSES, IntelPlatform
from aos.core.attest.result import (
    AWS_NITRO,
    AttestationResult,
    Checklist,
    Claims,
    TrustAnchor,
    refuse,
    simulated_anchor,
)
from aos.core.codec import MAX_SAFE_INTEGER, MaxLength, Pattern, Range, UInt, UInt32, decode
from aos.core.encoding import parse_json_strict
from aos.errors import ConfigError, InvalidMessage

MAX_POLICY_BYTES = 1 << 20

Hex32 = Annotated[str, Pattern(r"[0-9a-f]{64}")]
Hex64 = Annotated[str, Pattern(r"[0-9a-f]{128}")]
Hex48 = Annotated[str, Pattern(r"[0-9a-f]{96}")]
PolicyTee = Literal["nitro", "tdx", "sgx", "snp", "nvidia", "simulated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroImage:
    """An enclave image: the whole, kernel and boot ramdisk, application. All three, as ``nitro-cli`` prints them."""

    pcr0: Hex48
    pcr1: Hex48
    pcr2: Hex48


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxImage:
    """A trust domain's image: what it started from and the four registers that it extended, its TDX module, and what its
    host configured it with (zeros where nothing)."""

    mrtd: Hex48
    rtmr0: Hex48
    rtmr1: Hex48
    rtmr2: Hex48
    rtmr3: Hex48
    mrseam: Hex48
    mrconfigid: Hex48
    mrowner: Hex48
    mrownerconfig: Hex48


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxImage:
    """An SGX enclave, and what its host configured it with (zeros where nothing)."""

    mrenclave: Hex32
    mrsigner: Hex32
    isvprodid: Annotated[int, Range(0, 65535)]
    min_isvsvn: Annotated[int, Range(0, 65535)]
    configid: Hex64
    configsvn: Annotated[int, Range(0, 65535)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpImage:
    """A guest's launch measurement, the processors it may run on and their least firmware versions, what its host
    configured it with, and who signed its identity block (zeros where nothing, where nobody). Only a Turin has an FMC."""

    measurement: Hex48
    product: Literal["Milan", "Genoa", "Turin"]
    min_fmc: Annotated[int, Range(0, 255)]
    min_bootloader: Annotated[int, Range(0, 255)]
    min_tee: Annotated[int, Range(0, 255)]
    min_snp: Annotated[int, Range(0, 255)]
    min_microcode: Annotated[int, Range(0, 255)]
    host_data: Hex32
    id_key_digest: Hex48
    author_key_digest: Hex48


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaVersions:
    """A GPU's driver ("590.12") and VBIOS ("96.00.A5.00.01"). Naming them is no appraisal of what runs there."""

    driver: Annotated[str, Pattern(r"[0-9]+(\.[0-9]+){1,3}")]
    vbios: Annotated[str, Pattern(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}")]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelRules:
    """What an Intel platform may be; ``IntelPlatform`` as a file has it."""

    statuses: Annotated[tuple[Annotated[str, MaxLength(64)], ...], MaxLength(8)]
    rejected_advisories: Annotated[tuple[Annotated[str, MaxLength(64)], ...], MaxLength(256)]
    min_tcb_evaluation: UInt32
    dynamic_platform: bool
    cached_keys: bool
    smt: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationPolicy:
    """Which evidence is believed. There is no member that allows debugging.

    ``max_age_ms`` null: archived evidence, of any age. ``models`` are model ids. ``max_weight_per_device`` caps what
    the enclaves of one device may weigh together.
    """

    TYPE: ClassVar[str] = "aos.attest.policy"
    V: ClassVar[int] = 2

    name: Annotated[str, MaxLength(64)]
    tees: Annotated[tuple[PolicyTee, ...], MaxLength(6)]
    simulated_roots: Annotated[tuple[Hex32, ...], MaxLength(16)]
    nitro: Annotated[tuple[NitroImage, ...], MaxLength(256)]
    tdx: Annotated[tuple[TdxImage, ...], MaxLength(256)]
    sgx: Annotated[tuple[SgxImage, ...], MaxLength(256)]
    snp: Annotated[tuple[SnpImage, ...], MaxLength(256)]
    nvidia: Annotated[tuple[NvidiaVersions, ...], MaxLength(256)]
    intel: IntelRules | None
    models: Annotated[tuple[Hex32, ...], MaxLength(1024)]
    nonce_required: bool
    max_age_ms: Annotated[int, Range(1, MAX_SAFE_INTEGER)] | None
    max_weight_per_device: UInt

    def anchors(self) -> tuple[TrustAnchor, ...]:
        """The roots of Nitro documents that this policy believes: AWS's where it names ``nitro``, those of SIMULATED
        platforms where it names ``simulated``."""
        own = tuple(simulated_anchor(bytes.fromhex(root)) for root in self.simulated_roots)
        return (*((AWS_NITRO,) if "nitro" in self.tees else ()), *own)

    def platform(self) -> IntelPlatform:
        """What an Intel platform may be under this policy."""
        rules = self.intel
        if rules is None:
            return IntelPlatform()
        return IntelPlatform(
            statuses=rules.statuses,
            rejected_advisories=rules.rejected_advisories,
            min_tcb_evaluation=rules.min_tcb_evaluation,
            dynamic_platform=rules.dynamic_platform,
            cached_keys=rules.cached_keys,
            smt=rules.smt,
        )


def load_policy(data: bytes) -> AttestationPolicy:
    """Strictly decode a policy file. Raises ConfigError ``attest.policy_invalid``; an empty or partial set of expected
    measurements is one."""
    try:
        policy = decode(AttestationPolicy, parse_json_strict(data, max_bytes=MAX_POLICY_BYTES))
    except InvalidMessage as error:
        raise _invalid(error.message, error.field) from error
    _check(policy)
    return policy


def _invalid(message: str, field: str | None) -> ConfigError:
    return ConfigError(
        "attest.policy_invalid",
        f"the attestation policy: {message}",
        field=field,
        hint="docs/spec/12-attestation.md lists its members",
    )


def _check(policy: AttestationPolicy) -> None:
    tees: Collection[str] = policy.tees
    if not tees or len(set(tees)) != len(tees):
        raise _invalid("tees is empty or names one twice", "tees")
    if ("simulated" in tees) != bool(policy.simulated_roots):
        raise _invalid("simulated needs simulated_roots, and they need it", "simulated_roots")
    if AWS_NITRO.sha256.hex() in policy.simulated_roots:
        raise _invalid("the root of AWS is not a simulated one", "simulated_roots")
    sets = {
        "nitro": (policy.nitro, bool({"nitro", "simulated"} & set(tees))),
        "tdx": (policy.tdx, "tdx" in tees),
        "sgx": (policy.sgx, "sgx" in tees),
        "snp": (policy.snp, "snp" in tees),
        "nvidia": (policy.nvidia, "nvidia" in tees),
    }
    for name, (images, needed) in sets.items():
        if bool(images) != needed:
            raise _invalid(
                f"{name}: expected measurements must be there exactly where the TEE is named", name
            )
    started: dict[str, list[str]] = {
        "nitro": [r for image in policy.nitro for r in (image.pcr0, image.pcr1, image.pcr2)],
        "tdx": [register for i in policy.tdx for register in (i.mrtd, i.mrseam)],
        "sgx": [register for i in policy.sgx for register in (i.mrenclave, i.mrsigner)],
        "snp": [image.measurement for image in policy.snp],
    }
    for name, registers in started.items():
        if any(not register.strip("0") for register in registers):
            raise _invalid(f"{name}: a register of zeros is a debug enclave's, or nobody's", name)
    if any(image.min_fmc and image.product != "Turin" for image in policy.snp):
        raise _invalid("snp: only a Turin has an FMC version", "snp")
    if not policy.models:
        raise _invalid("models is empty", "models")
    rules = policy.intel
    if (rules is not None) != bool({"tdx", "sgx"} & set(tees)):
        raise _invalid("intel must be there exactly where tdx or sgx is named", "intel")
    if rules is not None and (not rules.statuses or not ACCEPTABLE_STATUSES.issuperset(rules.statuses)):
        raise _invalid(f"statuses must be among {', '.join(sorted(ACCEPTABLE_STATUSES))}", "intel.statuses")


def appraise(
    result: AttestationResult,
    policy: AttestationPolicy,
    at_ms: int,
    *,
    model_id: bytes | None = None,
    device_weight: int | None = None,
) -> AttestationResult:
    """``result`` with the policy's lines behind the verifier's; a refused result stays as it is.

    ``model_id`` (32 bytes) is the one that the boot statement names, ``device_weight`` what the device's enclaves weigh
    together. ``at_ms`` is the time of judgement, Unix milliseconds.
    """
    if result.refusal is not None or result.claims is None:
        return result
    claims = result.claims
    fresh = {check.id: check.status for check in result.checks}.get("nonce-1") == "PASS"

    def steps(checks: Checklist) -> Claims:
        kind = "simulated" if claims.simulated else claims.tee
        if kind not in policy.tees:
            raise refuse("policy-1", "attest.policy_tee", f'policy "{policy.name}" does not name {kind}')
        if (claims.tee == "nitro" or claims.simulated) and claims.anchor_sha256 not in {
            a.sha256 for a in policy.anchors()
        }:
            raise refuse("policy-1", "attest.root", f'policy "{policy.name}" does not name this root')
        checks.passed("policy-1", f'policy "{policy.name}" names {kind}')
        _freshness(checks, claims, policy, at_ms=at_ms, challenged=fresh)
        _measured(checks, claims, policy)
        if model_id is None:
            checks.skipped("model-1", "no model asked for: a boot statement names it")
        elif model_id.hex() not in policy.models:
            raise refuse("model-1", "attest.policy_model", "the policy does not name this model")
        else:
            checks.passed("model-1", "the policy names the model")
        if device_weight is None:
            checks.skipped("weight-1", "no weight given")
        else:
            check_device_weight(claims.device_name, device_weight, policy.max_weight_per_device)
            checks.passed("weight-1", "the device's weight is within the policy's")
        return claims

    return Checklist(list(result.checks)).run(result.tee, steps)


def check_device_weight(device: str, weight: int, cap: int) -> None:
    """Raises VerificationError ``attest.policy_weight`` where the enclaves of ``device`` weigh more than ``cap``."""
    if weight > cap:
        raise refuse(
            "weight-1",
            "attest.policy_weight",
            f"the device {device} would carry {weight} of the range, and the cap is {cap}",
        )


def _freshness(
    checks: Checklist, claims: Claims, policy: AttestationPolicy, *, at_ms: int, challenged: bool
) -> None:
    if policy.nonce_required and not challenged:
        raise refuse(
            "policy-2", "attest.nonce_missing", "the policy requires a challenge, and none was checked"
        )
    if policy.max_age_ms is None:
        checks.skipped("policy-2", "archived evidence: its age is not judged")
    elif claims.time_ms is None:
        if not challenged:
            raise refuse("policy-2", "attest.stale", "evidence without a time is fresh only by a challenge")
        checks.passed("policy-2", "fresh by its challenge")
    elif at_ms - claims.time_ms > policy.max_age_ms:
        raise refuse("policy-2", "attest.stale", "the evidence is older than the policy allows")
    else:
        checks.passed("policy-2", "not older than the policy allows")


def _measured(checks: Checklist, claims: Claims, policy: AttestationPolicy) -> None:
    values = dict(claims.measurements)

    def hexed(register: str) -> str:
        return values[register].hex()

    if claims.tee == "nvidia":
        own_versions = tuple(values.get(name, b"").decode() for name in ("DRIVER", "VBIOS"))
        if not any((i.driver, i.vbios) == own_versions for i in policy.nvidia):
            raise refuse("driver-1", "attest.measurement", "the policy knows no such driver and VBIOS")
        checks.passed("driver-1", "a driver and a VBIOS that the policy names")
        checks.skipped("measure-1", "RIM not appraised: nothing to compare the measurements with")
        return
    if claims.tee == "nitro":
        believed = any(
            (i.pcr0, i.pcr1, i.pcr2) == (hexed("PCR0"), hexed("PCR1"), hexed("PCR2")) for i in policy.nitro
        )
    elif claims.tee == "tdx":
        names = tuple(field.name for field in fields(TdxImage))
        own = tuple(hexed(name.upper()) for name in names)
        believed = any(tuple(getattr(i, name) for name in names) == own for i in policy.tdx)
    elif claims.tee == "sgx":
        number, version, configured = (
            int.from_bytes(values[r], "little") for r in ("ISVPRODID", "ISVSVN", "CONFIGSVN")
        )
        mine = (hexed("MRENCLAVE"), hexed("MRSIGNER"), number, hexed("CONFIGID"), configured)
        believed = any(
            (i.mrenclave, i.mrsigner, i.isvprodid, i.configid, i.configsvn) == mine
            and version >= i.min_isvsvn
            for i in policy.sgx
        )
    else:
        believed = any(_snp(i, claims, values) for i in policy.snp)
    if not believed:
        raise refuse("measure-1", "attest.measurement", "the policy knows no image with these measurements")
    checks.passed("measure-1", "an image that the policy names")


def _snp(image: SnpImage, claims: Claims, values: dict[str, bytes]) -> bool:
    exact = {
        "MEASUREMENT": image.measurement,
        "HOST_DATA": image.host_data,
        "ID_KEY_DIGEST": image.id_key_digest,
        "AUTHOR_KEY_DIGEST": image.author_key_digest,
    }
    if claims.anchor != f"ARK-{image.product}":
        return False
    if any(values[name].hex() != expected for name, expected in exact.items()):
        return False
    least = {
        "TCB_BOOTLOADER": image.min_bootloader,
        "TCB_TEE": image.min_tee,
        "TCB_SNP": image.min_snp,
        "TCB_MICROCODE": image.min_microcode,
    }
    if image.product == "Turin":
        least["TCB_FMC"] = image.min_fmc
    return all(values[name][0] >= version for name, version in least.items())
