"""The dispatcher's hash chain as a beacon (docs/spec/04-sortition.md, "Epoch and beacon").

x_N = H("beacon-seed", seed), x_(k-1) = H("beacon", x_k). The network file publishes the anchor x_0 and N;
epoch e shows x_(e+1). The chain binds the dispatcher beforehand; it is *not* unpredictable to the dispatcher.
"""

from aos.core.encoding import tagged_hash
from aos.errors import InvalidMessage, RuleViolation, VerificationError

MAX_LENGTH = 1 << 20
BLOCK_LAG_MS = 1_200_000
"""With a chain's beacon: how much older than its epoch a block is, so that it is final when the epoch begins."""


def beacon_anchor(seed: bytes, length: int) -> bytes:
    """x_0 (32 bytes) of a chain for ``length`` epochs. Raises InvalidMessage ``beacon.length``,
    ``beacon.seed``."""
    return _hash_forward(_end(seed, length), length)


def beacon_at(seed: bytes, length: int, epoch_index: int) -> bytes:
    """The beacon x_(epoch+1) of an epoch, 32 bytes; at most ``length`` hashes.

    Raises InvalidMessage ``beacon.length``, ``beacon.seed``; RuleViolation ``beacon.exhausted``.
    """
    end = _end(seed, length)
    if not 0 <= epoch_index < length:
        raise RuleViolation("beacon.exhausted", f"the chain has no value for epoch {epoch_index}")
    return _hash_forward(end, length - 1 - epoch_index)


def verify_beacon(anchor: bytes, epoch_index: int, value: bytes) -> bytes:
    """Check by ``epoch_index`` + 1 hashes that ``value`` is the epoch's beacon, and return it.

    Raises InvalidMessage ``beacon.value``, ``beacon.epoch`` (beyond 2^20); VerificationError
    ``beacon.mismatch``.
    """
    if len(value) != 32 or len(anchor) != 32:
        raise InvalidMessage("beacon.value", "anchor and beacon have 32 bytes", field="beacon")
    if not 0 <= epoch_index < MAX_LENGTH:
        raise InvalidMessage("beacon.epoch", f"epochs are 0 to {MAX_LENGTH - 1}", field="epoch")
    if _hash_forward(value, epoch_index + 1) != anchor:
        raise VerificationError("beacon.mismatch", "the beacon does not lead to its anchor", field="beacon")
    return value


def epoch_of(time_ms: int, genesis_ms: int, epoch_ms: int) -> int:
    """floor((time - genesis) / epoch length). Raises InvalidMessage ``beacon.epoch_length``,
    ``beacon.before_genesis``."""
    if epoch_ms < 1:
        raise InvalidMessage("beacon.epoch_length", "an epoch lasts at least 1 ms", field="epoch_ms")
    if time_ms < genesis_ms:
        raise InvalidMessage("beacon.before_genesis", "the time is before the network began", field="time")
    return (time_ms - genesis_ms) // epoch_ms


def block_time(epoch_index: int, genesis_ms: int, epoch_ms: int) -> int:
    """With a chain's beacon: the epoch's is the hash of the first block with at least this time (Unix seconds)."""
    return -(-(genesis_ms + epoch_index * epoch_ms - BLOCK_LAG_MS) // 1_000)


def verify_block_beacon(value: bytes, block_hash: bytes) -> None:
    """With a chain's beacon: whether ``value`` is the epoch's block. Raises VerificationError ``beacon.mismatch``."""
    if value != block_hash:
        raise VerificationError("beacon.mismatch", "the beacon is not the epoch's block", field="beacon")


def _end(seed: bytes, length: int) -> bytes:
    if not 1 <= length <= MAX_LENGTH:
        raise InvalidMessage("beacon.length", f"a chain has 1 to {MAX_LENGTH} values", field="length")
    if len(seed) != 32:
        raise InvalidMessage("beacon.seed", "a beacon seed has 32 bytes", field="seed")
    return tagged_hash("beacon-seed", seed)


def _hash_forward(value: bytes, steps: int) -> bytes:
    for _ in range(steps):
        value = tagged_hash("beacon", value)
    return value
