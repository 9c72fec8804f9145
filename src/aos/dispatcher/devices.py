"""Which operators' enclaves may be seated, and how much of the range one device may carry (docs/spec/12-attestation.md,
"Weight of a device").

A weight is what the registry gives an operator: the width of its range. An operator counts once on every device on which
it has an accepted boot that is not over, whatever the model.
"""

from aos.adapters.postgres import Connection, Pool, unavailable
from aos.core.attest.policy import check_device_weight

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('tee-device ' || $1, 0))"
_WEIGHT = """SELECT coalesce(sum(range_end - range_start), 0)::bigint FROM operator
             WHERE node_id = $2 OR node_id IN (SELECT node_id FROM tee_boot WHERE device = $1 AND not_after > $3)"""
# Who came to a device first stays: only a cap that was lowered since can make anybody too heavy here.
_SEATABLE = """
    WITH held AS (
        SELECT b.node_id, b.device, min(b.accepted_at) AS since, min(o.range_end - o.range_start) AS width
        FROM tee_boot b JOIN operator o USING (node_id)
        WHERE b.not_after > $2 AND b.device <> '' GROUP BY b.node_id, b.device
    ), summed AS (
        SELECT node_id, sum(width) OVER (PARTITION BY device ORDER BY since, node_id) AS weight FROM held
    )
    SELECT DISTINCT node_id FROM tee_boot WHERE model_id = $1 AND not_after > $2
    AND node_id NOT IN (SELECT node_id FROM summed WHERE weight > $3)"""


async def weigh(db: Connection, *, device: str, node_id: str, cap: int, at_ms: int) -> None:
    """Hold the device's lock until the transaction ends, and refuse one operator too many on it.

    Raises VerificationError ``attest.policy_weight``.
    """
    await db.execute(_LOCK, device)
    check_device_weight(device, await db.fetchval(_WEIGHT, device, node_id, at_ms), cap)


async def seatable(pool: Pool, *, model_id: bytes, cap: int, at_ms: int) -> frozenset[str]:
    """Operators with an accepted boot with this model that is not over, on no device that carries more than ``cap``."""
    async with unavailable():
        rows = await pool.fetch(_SEATABLE, model_id, at_ms, cap)
    return frozenset(row["node_id"] for row in rows)
