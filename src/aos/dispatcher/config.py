"""A dispatcher's configuration: ``AOS_DISPATCHER_…`` variables over a YAML file over defaults, checked once at start."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aos.core.codec import decode
from aos.core.dispute.chain_claim import CourtDomain
from aos.core.keys import is_published, parse_key
from aos.core.log.note import COSIGNATURE, NoteKey, read_vkey
from aos.core.signing import address_of
from aos.core.tee import References, policy_digest
from aos.core.trust import TeeMeasurement, TrustedTeeRoot, check_tee_references, tee_references
from aos.core.vrf import ecvrf_public_key
from aos.errors import AOSError, ConfigError

_PREFIX = "AOS_DISPATCHER_"


class Deadlines(BaseModel):
    """Durations in milliseconds."""

    model_config = ConfigDict(extra="forbid")

    draw_ms: int = Field(3_000, ge=100, le=600_000)
    execution_ms: int = Field(120_000, ge=1_000, le=86_400_000)
    commit_ms: int = Field(60_000, ge=1_000, le=86_400_000)
    reveal_ms: int = Field(20_000, ge=1_000, le=86_400_000)
    expiry_ms: int = Field(900_000, ge=5_000, le=86_400_000 * 30)


class Disputes(BaseModel):
    """Parameters of games (docs/spec/13-dispute.md, "Clocks"). Durations in milliseconds, the bond in units of the registry.

    A claim may be challenged, and audited, for ``claim_window_ms`` after its reveal; a game takes moves for ``window_ms``. An
    audit is due ``audit_ms`` after it was ordered; a bundle has at most ``audit_bytes``, all that are held ``audits_bytes``.
    """

    model_config = ConfigDict(extra="forbid")

    claim_window_ms: int = Field(3_600_000, ge=1_000, le=86_400_000 * 30)
    grace_ms: int = Field(60_000, ge=100, le=86_400_000)
    budget_ms: int = Field(600_000, ge=0, le=86_400_000)
    window_ms: int = Field(3_600_000, ge=1_000, le=86_400_000 * 30)
    bond: int = Field(1, ge=0, le=1 << 40)
    audit_ms: int = Field(900_000, ge=1_000, le=86_400_000)
    audit_bytes: int = Field(256 << 20, ge=1 << 16, le=1 << 30)
    audits_bytes: int = Field(4 << 30, ge=1 << 16, le=1 << 44)
    audits_per_claim: int = Field(8, ge=0, le=1_000)

    @model_validator(mode="after")
    def _one_fits(self) -> "Disputes":
        if self.audits_bytes < self.audit_bytes:
            raise ValueError("audits_bytes must hold at least one bundle of audit_bytes")
        return self


class WitnessSettings(BaseModel):
    """A witness that is sent every checkpoint: its verifier key, and where its ``add-checkpoint`` is."""

    model_config = ConfigDict(extra="forbid")

    key: str
    url: str = Field(pattern=r"^https?://[^\s]{1,400}$")


class LogSettings(BaseModel):
    """The transparency log (docs/spec/15-log.md). Durations in milliseconds.

    Leaves are put into the tree and signed every ``interval_ms``, an unchanged tree is dated anew every ``refresh_ms``; a
    job's leaf is promised within ``merge_ms``. Answer files show a checkpoint that ``quorum`` witnesses cosigned, once there is.
    """

    model_config = ConfigDict(extra="forbid")

    interval_ms: int = Field(1_000, ge=50, le=600_000)
    refresh_ms: int = Field(60_000, ge=1_000, le=86_400_000)
    merge_ms: int = Field(600_000, ge=1_000, le=86_400_000 * 7)
    quorum: int = Field(0, ge=0, le=64)
    witnesses: list[WitnessSettings] = Field(default_factory=list, max_length=32)


class Chain(BaseModel):
    """The chain whose OperatorRegistry says who has which range, and whose court operators answer to (docs/chain.md).

    The log's checkpoint is anchored there every ``anchor_s`` seconds, where it has grown; with 0 never.
    """

    model_config = ConfigDict(extra="forbid")

    rpc_url: str = Field(repr=False)
    chain_id: int = Field(ge=1, lt=1 << 53)
    operator_registry: str = Field("", pattern=r"^(0x[0-9a-fA-F]{40})?$")
    court: str = Field("", pattern=r"^(0x[0-9a-fA-F]{40})?$")
    claim_hours: int = Field(168, ge=1, le=8_760)
    max_fee_gwei: int = Field(200, ge=1, le=1_000_000)
    beacon: bool = False
    anchor_s: int = Field(3_600, ge=0, le=86_400 * 30)

    @property
    def domain(self) -> CourtDomain | None:
        """The court that every opML result must come with a claim at; None where there is none."""
        return CourtDomain(chain_id=self.chain_id, court=self.court.lower()) if self.court else None

    @property
    def claim_s(self) -> int:
        """How long after its result a claim can be challenged at least, in seconds."""
        return self.claim_hours * 3_600


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    pg_db_url: str
    listen: str = "127.0.0.1:8081"
    origins: list[str] = Field(default_factory=list)
    network_id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    signer_key: str
    vrf_key: str
    beacon_seed_file: str
    log_key: str | None = None
    beacon_length: int = Field(65_536, ge=1, le=1 << 20)
    vrf_sort_precision: int = Field(6, ge=2, le=12)
    tee_roots: list[dict[str, str]] = Field(default_factory=list)
    tee_measurements: list[dict[str, str]] = Field(default_factory=list)
    accept_tee: list[Literal["simulated", "nitro"]] = Field(default_factory=list)
    max_weight_per_device: int | None = Field(None, ge=1, le=10**12)
    open_registration: bool = False
    deadlines: Deadlines = Field(default_factory=lambda: Deadlines.model_validate({}))
    disputes: Disputes = Field(default_factory=lambda: Disputes.model_validate({}))
    log: LogSettings = Field(default_factory=lambda: LogSettings.model_validate({}))
    chain: Chain | None = None
    rerun_quota: int = Field(100, ge=0, le=100_000)
    max_tokens_limit: int = Field(4_096, ge=1, le=1_000_000)
    max_open_runs: int = Field(20_000, ge=1, le=1_000_000)
    project_requests: int = Field(2_000, ge=1, le=1_000_000)
    project_tokens: int = Field(4_000_000, ge=1, le=10**12)
    webhook_loopback: bool = False
    webhook_retries_s: list[int] = Field(
        default_factory=lambda: [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400], max_length=32
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherKeys:
    """A dispatcher's secrets, 32 bytes each."""

    signer: bytes
    vrf: bytes
    beacon: bytes
    log: bytes | None
    """The Ed25519 seed that signs checkpoints; without one there is no log."""

    def __repr__(self) -> str:
        return f"DispatcherKeys({self.address})"

    @property
    def address(self) -> str:
        return address_of(self.signer)

    @property
    def vrf_public(self) -> bytes:
        return ecvrf_public_key(self.vrf)


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherConfig:
    """A checked configuration."""

    pg_url: str = field(repr=False)
    host: str
    port: int
    origins: frozenset[str]
    network: str
    keys: DispatcherKeys
    beacon_length: int
    max_range: int
    tee_references: dict[str, References]
    """What is believed of each kind of enclave that is accepted."""
    tee_policy: bytes
    """The digest of ``tee_references`` (32 bytes)."""
    tee_roots: tuple[TrustedTeeRoot, ...]
    tee_measurements: tuple[TeeMeasurement, ...]
    """What ``tee_references`` is made of, as a trust file lists it."""
    max_weight_per_device: int
    """How much of the range operators may hold together whose enclaves share a device."""
    open_registration: bool
    deadlines: Deadlines
    disputes: Disputes
    log: LogSettings
    witnesses: tuple[NoteKey, ...]
    """The keys of ``log.witnesses``, in their order."""
    chain: Chain | None
    """None: the registry is this dispatcher's own."""
    rerun_quota: int
    max_tokens_limit: int
    max_open_runs: int
    project_requests: int
    project_tokens: int
    webhook_loopback: bool
    webhook_retries_s: tuple[int, ...]


def load_config(path: Path, *, environment: Mapping[str, str] | None = None) -> DispatcherConfig:
    """Read and check ``path``. Raises ConfigError ``config.file``, ``config.value``, ``key.*``."""
    environ = os.environ if environment is None else environment
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            "config.file",
            f"cannot read {path}: {type(error).__name__}",
            hint="docs/template/config-dispatcher.yaml is a commented template",
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError("config.file", f"{path} must hold settings")
    for name in _Settings.model_fields:
        if (value := environ.get(_PREFIX + name.upper())) is not None:
            tree[name] = yaml.safe_load(value)
    try:
        settings = _Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError("config.value", f"{name}: {first['msg']}", field=name) from None
    return _checked(settings, path.parent)


def _checked(settings: _Settings, directory: Path) -> DispatcherConfig:
    host, _, port = settings.listen.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigError("config.value", "listen must be host:port", field="listen")
    development = re.fullmatch(r"dev(-.*)?|aos-local-.*", settings.network_id) is not None
    keys = DispatcherKeys(
        signer=_key(settings.signer_key, "signer_key", directory),
        vrf=_key(settings.vrf_key, "vrf_key", directory),
        beacon=_key(f"file:{settings.beacon_seed_file}", "beacon_seed_file", directory),
        log=None if settings.log_key is None else _key(settings.log_key, "log_key", directory),
    )
    if not development and any(
        key is not None and is_published(key) for key in (keys.signer, keys.vrf, keys.log)
    ):
        raise ConfigError(
            "key.published", "signer_key, vrf_key or log_key is a published test key", field="signer_key"
        )
    if keys.log in (keys.signer, keys.vrf, keys.beacon):
        raise ConfigError("config.value", "log_key must be a key of its own", field="log_key")
    roots, measurements = _references(settings)
    references = tee_references(roots, measurements)
    if settings.webhook_loopback and not development:
        raise ConfigError(
            "config.value",
            "webhook_loopback is for development networks (dev, dev-…, aos-local-…)",
            field="webhook_loopback",
        )
    return DispatcherConfig(
        pg_url=settings.pg_db_url,
        host=host,
        port=int(port),
        origins=frozenset(settings.origins or [f"http://{settings.listen}"]),
        network=settings.network_id,
        keys=keys,
        beacon_length=settings.beacon_length,
        max_range=10**settings.vrf_sort_precision,
        tee_references=references,
        tee_policy=policy_digest(references),
        tee_roots=roots,
        tee_measurements=measurements,
        max_weight_per_device=settings.max_weight_per_device or 10**settings.vrf_sort_precision // 4,
        open_registration=settings.open_registration,
        deadlines=settings.deadlines,
        disputes=settings.disputes,
        log=settings.log,
        witnesses=_witnesses(settings.log),
        chain=settings.chain,
        rerun_quota=settings.rerun_quota,
        max_tokens_limit=settings.max_tokens_limit,
        max_open_runs=settings.max_open_runs,
        project_requests=settings.project_requests,
        project_tokens=settings.project_tokens,
        webhook_loopback=settings.webhook_loopback,
        webhook_retries_s=tuple(settings.webhook_retries_s),
    )


def _witnesses(settings: LogSettings) -> tuple[NoteKey, ...]:
    try:
        keys = tuple(read_vkey(witness.key) for witness in settings.witnesses)
    except AOSError as error:
        raise ConfigError("config.value", f"log.witnesses: {error.message}", field="log.witnesses") from error
    if any(key.kind != COSIGNATURE for key in keys) or len({key.public for key in keys}) != len(keys):
        raise ConfigError(
            "config.value", "log.witnesses: keys of type 4 (cosignature/v1), each once", field="log.witnesses"
        )
    if settings.quorum > len(keys):
        raise ConfigError("config.value", "log.quorum is more than there are witnesses", field="log.quorum")
    return keys


def _key(value: str, name: str, directory: Path) -> bytes:
    if not value.startswith("file:"):
        return parse_key(value, name=name)
    path = directory / value.removeprefix("file:")
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                "keystore.mode", f"{name}: others may read {path}", field=name, hint=f"run: chmod 600 {path}"
            )
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("keystore.unreadable", f"{name}: cannot read {path}", field=name) from error
    if text.startswith("{"):
        from aos.adapters.keystore import load_keystore, read_password

        kinds: dict[str, Literal["vrf", "log"]] = {"vrf_key": "vrf", "log_key": "log"}
        return load_keystore(path, read_password(), kind=kinds.get(name, "signer"))
    return parse_key(text, name=name)


def _references(settings: _Settings) -> tuple[tuple[TrustedTeeRoot, ...], tuple[TeeMeasurement, ...]]:
    """What is believed of the accepted kinds. A kind without images, or images of a kind that is not accepted, is an
    error: an empty set of expected measurements must never mean that any will do."""
    try:
        roots = tuple(decode(TrustedTeeRoot, root, where="tee_roots") for root in settings.tee_roots)
        images = tuple(
            decode(TeeMeasurement, item, where="tee_measurements") for item in settings.tee_measurements
        )
        check_tee_references(roots, images)
    except AOSError as error:
        raise ConfigError("config.value", error.message, field=error.field) from None
    if set(tee_references(roots, images)) != set(settings.accept_tee):
        raise ConfigError(
            "config.value",
            "tee_measurements must name images of exactly the kinds that accept_tee names",
            field="tee_measurements",
        )
    return roots, images
