"""Where an operator stands in its network: is it drawn from, is it drawn, is its work taken; and if not, why not.

Everything is computed from what the operator itself holds: its registry entry, its own claims, its own receipts.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from aos.core import draw as core_draw
from aos.core import sortition
from aos.core.codec import decode
from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.statements import JobType, VrfClaim
from aos.core.vrf import ecvrf_proof_to_hash
from aos.operator.identity import Identity
from aos.operator.network import Network
from aos.operator.rows import Draw, StoredSnapshot
from aos.operator.store import Store

RECENT_S = 3600
MAX_RECENT_DRAWS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentDraws:
    """Draw calls of the last hour, at most the newest 100. ``selected`` counts this operator's outputs below its own
    width; ``seated`` also counts seats that were filled."""

    seen: int
    claimed: int
    declined: dict[str, int]
    selected: int
    seated: int

    def in_words(self) -> str:
        """For a person, without a verb for the operator."""
        if not self.seen:
            return "no draws seen in the last hour"
        if not self.claimed:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.declined.items()))
            return f"{self.seen} draws seen in the last hour, all declined ({reasons})"
        rest = f", {sum(self.declined.values())} declined" if self.declined else ""
        drawn = f"selected in {self.selected}" if self.selected else "not selected in any"
        return f"{self.seen} draws seen in the last hour, {drawn} of {self.claimed}{rest}, seated in {self.seated}"


def why_not_eligible(
    snapshot: StoredSnapshot | None,
    *,
    network: Network | None,
    identity: Identity,
    job_type: JobType,
    models: Collection[bytes],
    now_ms: int,
) -> str:
    """Why the newest registry snapshot does not let this operator into draws; empty where it does.

    ``models`` are those that its workers have loaded.
    """
    if network is None or snapshot is None:
        return "the registry has not been seen yet"
    entry = snapshot.entry
    if entry is None:
        return "not in the registry; register, and wait for the next epoch"
    if entry.vrf_key != identity.vrf_key:
        return "the registry holds another VRF key"
    if job_type not in entry.job_types:
        return f"not registered for {job_type} jobs"
    if not models:
        return "model missing: no worker has one loaded"
    listed = set(models) & set(entry.models)
    if not listed:
        return "model missing: no worker has a model that the registry lists for this operator"
    epoch = network.epoch_at(now_ms)
    if not any(core_draw.eligible(entry, job_type=job_type, model_id=m, epoch=epoch) for m in listed):
        counts_from = entry.since_epoch + core_draw.KEY_AGE_EPOCHS
        minutes = max(0, network.genesis + counts_from * network.epoch_ms - now_ms) // 60_000
        return f"key too young until epoch {counts_from} (now {epoch}; about {minutes} minutes)"
    return ""


async def recent_draws(store: Store) -> RecentDraws:
    """Raises Unavailable ``store.unavailable``."""
    draws = await store.recent_draws(within_s=RECENT_S, limit=MAX_RECENT_DRAWS)
    snapshots: dict[bytes, StoredSnapshot | None] = {}
    selected = 0
    for held, _ in draws:
        root = _root_of(held)
        if root not in snapshots:
            snapshots[root] = await store.snapshot(root)
        selected += _selected(held, snapshots[root]) is True
    return RecentDraws(
        seen=len(draws),
        claimed=sum(held.answer == "claim" for held, _ in draws),
        declined=dict(Counter(held.reason for held, _ in draws if held.answer == "decline")),
        selected=selected,
        seated=sum(seated for _, seated in draws),
    )


async def describe_last_draw(store: Store) -> dict[str, Any] | None:
    """The newest draw call and what came of it. Raises Unavailable ``store.unavailable``."""
    newest = await store.recent_draws(within_s=None, limit=1)
    if not newest:
        return None
    ((held, seated),) = newest
    return {
        "job_ref": b64u_encode(held.job_ref),
        "attempt": held.attempt,
        "answer": held.answer,
        "reason": held.reason,
        "selected": _selected(held, await store.snapshot(_root_of(held))),
        "seated": seated,
    }


def _root_of(held: Draw) -> bytes:
    return b64u_decode(held.draw_call["statement"]["snapshot_root"])


def _selected(held: Draw, snapshot: StoredSnapshot | None) -> bool | None:
    """Selected at the width of an unflagged job; a flagged one's wider range is not known to operators."""
    claim = decode(VrfClaim, held.claim["statement"])
    if not claim.pi or snapshot is None or snapshot.entry is None:
        return None
    width = snapshot.entry.end - snapshot.entry.start
    threshold = sortition.threshold(width, snapshot.max_range, 0)
    return sortition.is_selected(ecvrf_proof_to_hash(claim.pi), threshold, snapshot.max_range)
