"""What a dispatcher and its parties sign around a game (docs/spec/13-dispute.md, "In the network"): who asks to read, and what
became of a job whose results differed. Declarations only.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from aos.core.codec import (
    Address,
    Bytes32,
    ClockMap,
    MaxLength,
    NetworkId,
    OptionalBytes32,
    Range,
    TimeMs,
)
from aos.core.encoding import tagged_hash

ClaimStanding = Literal["stands", "open", "withheld", "convicted"]

READ_SKEW_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A party's request to read what only those entitled may: of one claim or game (``subject``), or what waits for it
    (empty). Good for ``READ_SKEW_MS`` around ``time``."""

    TYPE: ClassVar[str] = "aos.dispute_read"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    reader: Address
    subject: OptionalBytes32
    time: TimeMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedClaim:
    """How one claim of the job stood in the end. ``evidence`` are the digests of the transcripts that convict it."""

    claim: Bytes32
    operator: Address
    state_root: Bytes32
    standing: ClaimStanding
    evidence: Annotated[tuple[Bytes32, ...], MaxLength(64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """The dispatcher: of the differing results of this attempt, this root is the one left. Its word about what stands;
    what is convicted anybody judges again from the transcripts."""

    TYPE: ClassVar[str] = "aos.resolution"
    V: ClassVar[int] = 1

    network: NetworkId
    dispatcher: Address
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]
    state_root: Bytes32
    claims: Annotated[tuple[ResolvedClaim, ...], MaxLength(64)]
    resolved_at: TimeMs
    clock: ClockMap


def transcript_digest(transcript: bytes) -> bytes:
    """The name of a transcript's file."""
    return tagged_hash("dispute-transcript", transcript)
