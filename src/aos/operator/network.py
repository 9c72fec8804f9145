"""What an operator believes about its network, and where it learnt it (docs/spec/09-http.md, 04-sortition.md).

The network file comes with the first connection, or from the configuration; afterwards network id, dispatcher and
VRF key must stay what they were. Registry snapshots are fetched when a draw call names an unknown one: the
dispatcher's signature and the root over all entries are checked before this operator's own entry is kept.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from aos.core import beacon, draw
from aos.core.codec import decode, encode
from aos.core.dispute.chain_claim import CourtDomain
from aos.core.encoding import b64u_decode, b64u_encode, parse_json_strict
from aos.core.statements import DrawCall, Snapshot, SnapshotEntry, read_signed, verify_signed
from aos.errors import InvalidMessage, Unavailable, VerificationError
from aos.operator.config import ChainConfig
from aos.operator.rows import StoredSnapshot
from aos.operator.store import Store

CLAIM_SLACK_S = 3_600
"""Between signing a claim and its check: clocks that differ, a link that was down."""
MAX_REGISTRY_BYTES = 8 << 20
DOCUMENT_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network file as far as an operator needs it. Times in ms; keys and hashes 32 bytes.

    ``court``: where every opML result must come with a claim at a court on a chain, which one; that claim must be good
    ``claim_s`` seconds after the result.
    """

    name: str
    dispatcher: str
    vrf_key: bytes
    genesis: int
    epoch_ms: int
    anchor: bytes
    length: int
    beacon_source: str
    court: CourtDomain | None = None
    claim_s: int = 0

    def epoch_at(self, time_ms: int) -> int:
        return beacon.epoch_of(time_ms, self.genesis, self.epoch_ms)


def read_network(value: object) -> Network:
    """Read a network file; members that an operator has no use for are passed over.

    Raises InvalidMessage ``network.file``.
    """
    try:
        members: Any = value
        chain = members["beacon"]
        network = Network(
            name=_word(members["network"]),
            dispatcher=_word(members["dispatcher"]).lower(),
            vrf_key=b64u_decode(_word(members["vrf_key"]), length=32),
            genesis=_count(members["genesis"]),
            epoch_ms=_count(members["epoch_ms"], low=1),
            anchor=b64u_decode(_word(chain["anchor"]), length=32),
            length=_count(chain["length"], low=1),
            beacon_source=_word(members.get("beacon_source", "dispatcher")),
            **_court(members.get("chain")),
        )
    except (KeyError, TypeError, IndexError, InvalidMessage) as error:
        raise InvalidMessage("network.file", f"the network file is incomplete: {error}") from error
    return network


def _court(chain: Any) -> dict[str, Any]:
    if chain is None or "court" not in chain:
        return {}
    named = {"chain_id": chain["chain_id"], "court": chain["court"]}
    return {
        "court": decode(CourtDomain, named, where="chain"),
        "claim_s": _count(chain["claim_s"], low=1),
    }


def check_court(network: Network, config: ChainConfig | None) -> None:
    """The court that the network names must be the configured one: a dispatcher alone cannot make an operator liable anywhere.

    Raises VerificationError ``chain.court``, ``chain.claim_hours``.
    """
    if network.court is None:
        return
    if config is None or config.court != network.court:
        named = f"{network.court.court} on chain {network.court.chain_id}"
        raise VerificationError(
            "chain.court",
            f"this network's results come with claims at the court {named}, and this operator is not configured for it",
            field="chain.court",
            hint="set chain.court and the rest of chain: once you have looked at that contract (docs/chain.md)",
        )
    if config.claim_hours * 3_600 < network.claim_s + CLAIM_SLACK_S:
        least = -(-(network.claim_s + CLAIM_SLACK_S) // 3_600)
        raise VerificationError(
            "chain.claim_hours",
            f"this network's claims must be good for {least} hours, this operator's are for {config.claim_hours}",
            field="chain.claim_hours",
        )


def _word(value: object) -> str:
    if not isinstance(value, str) or len(value) > 256:
        raise TypeError("a text is missing")
    return value


def _count(value: object, *, low: int = 0) -> int:
    if type(value) is not int or not low <= value < 2**53:
        raise TypeError("a number is missing")
    return value


class ChainReader(Protocol):
    """What an operator asks its own node (``aos.operator.chain``)."""

    async def check_range(self, entry: SnapshotEntry, epoch_ms: int) -> None:
        """Raises VerificationError ``chain.range`` where the contract gives this operator another range."""

    async def block_hash(self, time_s: int) -> bytes:
        """Hash of the first block that is not older; it is final. Raises Unavailable ``chain.*``."""


class BeaconCheck:
    """Checks beacons; remembers the last epoch's, so that one epoch's draws hash its chain, or ask the node, once."""

    def __init__(self, network: Network, chain: ChainReader | None = None) -> None:
        self._network = network
        self._chain = chain
        self._known: tuple[int, bytes] | None = None

    async def verify(self, call: DrawCall) -> None:
        """Raises VerificationError ``beacon.mismatch``, ``beacon.source``; InvalidMessage ``beacon.*``; with a chain's beacon
        also Unavailable ``chain.*``.
        """
        network = self._network
        if call.beacon_source != network.beacon_source:
            raise VerificationError(
                "beacon.source",
                f"this network's beacon is not the {call.beacon_source}'s",
                field="beacon_source",
            )
        if self._known == (call.epoch, call.beacon):
            return
        if call.beacon_source == "dispatcher":
            beacon.verify_beacon(network.anchor, call.epoch, call.beacon)
        elif self._chain is None:
            raise VerificationError(
                "beacon.source",
                "this network's beacon is a chain's, and this operator reads none",
                hint="set chain.chain_id, chain.chain_rpc_url and chain.vrf_range_contract",
            )
        else:
            since = beacon.block_time(call.epoch, network.genesis, network.epoch_ms)
            beacon.verify_block_beacon(call.beacon, await self._chain.block_hash(since))
        self._known = (call.epoch, call.beacon)


def public_client(url: str) -> httpx.AsyncClient:
    """For what a dispatcher shows to everybody. Not compressed, so that bytes received are bytes held."""
    headers = {"accept-encoding": "identity"}
    return httpx.AsyncClient(base_url=url, timeout=10.0, trust_env=False, headers=headers)


async def get_document(http: httpx.AsyncClient, path: str, *, code: str, max_bytes: int) -> Any:
    """A JSON document of at most ``max_bytes``, whole within 30 s.

    Raises Unavailable ``code``; InvalidMessage ``encoding.*``.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(DOCUMENT_WITHIN_S), http.stream("GET", path) as answer:
            async for part in answer.aiter_raw():
                data += part
                if len(data) > max_bytes:
                    break
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise Unavailable(code, f"{http.base_url} does not answer: {type(error).__name__}") from error
    if answer.status_code != 200:
        raise Unavailable(code, f"{http.base_url} answers with {answer.status_code}")
    return parse_json_strict(bytes(data), max_bytes=max_bytes)


class Registry:
    """Verified snapshots, from the database or the dispatcher's HTTP interface."""

    def __init__(self, store: Store, *, url: str, node_id: str) -> None:
        self._store = store
        self._node_id = node_id
        self._http = public_client(url)

    async def close(self) -> None:
        await self._http.aclose()

    async def look(self, network: Network) -> None:
        """Fetch the snapshot in force, so that a person sees it before the first draw names it. Raises as ``snapshot``."""
        path = "/v1/aos/registry"
        value = await get_document(
            self._http, path, code="registry.unavailable", max_bytes=MAX_REGISTRY_BYTES
        )
        signed = read_signed(
            Snapshot, value.get("snapshot") if isinstance(value, dict) else None, where="registry.snapshot"
        )
        snapshot, entry = verify_registry(value, network, signed.statement.root, self._node_id)
        await self._store.save_snapshot(snapshot, None if entry is None else encode(entry))

    async def snapshot(self, network: Network, root: bytes) -> StoredSnapshot:
        """The snapshot with this root.

        Raises Unavailable ``registry.unavailable``, VerificationError ``registry.*``, ``draw.snapshot_*``,
        ``signature.*``, InvalidMessage.
        """
        held = await self._store.snapshot(root)
        if held is not None:
            return held
        snapshot, entry = verify_registry(await self._fetch(root), network, root, self._node_id)
        await self._store.save_snapshot(snapshot, None if entry is None else encode(entry))
        return snapshot

    async def _fetch(self, root: bytes) -> Any:
        path = f"/v1/aos/registry?root={b64u_encode(root)}"
        return await get_document(self._http, path, code="registry.unavailable", max_bytes=MAX_REGISTRY_BYTES)


def verify_registry(
    value: Any, network: Network, root: bytes, node_id: str
) -> tuple[StoredSnapshot, SnapshotEntry | None]:
    """Check a registry document against its signature and ``root``; this operator's entry, or None.

    Raises InvalidMessage ``registry.document``, ``field.*``; VerificationError ``signature.*``,
    ``registry.foreign``, ``registry.root``, ``draw.snapshot_*``.
    """
    if not isinstance(value, dict) or not isinstance(value.get("entries"), list):
        raise InvalidMessage("registry.document", "the registry document has no entries")
    signed = verify_signed(
        Snapshot, value.get("snapshot"), address=network.dispatcher, where="registry.snapshot"
    )
    statement = signed.statement
    if statement.network != network.name or statement.dispatcher != network.dispatcher:
        raise VerificationError("registry.foreign", "the snapshot is of another network")
    entries = [decode(SnapshotEntry, e, where=f"entries[{i}]") for i, e in enumerate(value["entries"])]
    computed = draw.snapshot_root(network.name, statement.max_range, entries)
    if computed != root or statement.root != root or statement.count != len(entries):
        raise VerificationError("registry.root", "the registry's entries do not give the root that is named")
    entry = next((e for e in entries if e.node_id == node_id), None)
    snapshot = StoredSnapshot(root=root, epoch=statement.epoch, max_range=statement.max_range, entry=entry)
    return snapshot, entry


def check_pinned(
    network: Network, *, configured: str, configured_key: str, pinned: str | None, pinned_key: bytes | None
) -> None:
    """The dispatcher must describe the network that was configured, or seen the first time.

    Raises VerificationError ``network.changed``.
    """
    for known, named, what in (
        (configured, network.name, "network.id"),
        (pinned or "", network.name, "the network id of the first connection"),
        (configured_key, b64u_encode(network.vrf_key), "network.dispatcher_vrf_key"),
        (b64u_encode(pinned_key or b""), b64u_encode(network.vrf_key), "the VRF key of the first connection"),
    ):
        if known and known != named:
            raise VerificationError("network.changed", f"the dispatcher names {named}, {what} is {known}")
