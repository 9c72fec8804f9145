"""A node's vector clock with its stored state (docs/spec/05-clocks.md): persisted before anything that
counts it leaves.

The rules of merging and refusing are ``aos.core.clock``; where the state is stored is the app's.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from aos.core.clock import ClockState, MessageFacts, VectorClock
from aos.errors import InvalidMessage

_INCARNATION_EPOCH_S = 1_577_836_800  # 2020-01-01: seconds since then stay below 2^31 until 2088
_RESERVE = 1024


def next_incarnation(stored: int) -> int:
    """Above the stored incarnation (0 for none), and by the wall clock above those of a store that was
    lost.
    """
    return max(stored + 1, int(time.time()) - _INCARNATION_EPOCH_S)


class CausalClock:
    """A node's clock, in memory, with a stored state that is never behind what was sent.

    ``save`` stores a state durably. Own ticks are reserved in blocks, so that most cost no write; knowledge
    of others is written before the next message leaves. Concurrent writes are made one. Every start opens a
    new incarnation.
    """

    def __init__(self, state: ClockState, save: Callable[[ClockState], Awaitable[None]]) -> None:
        self._state = state
        self._save = save
        self._lock = asyncio.Lock()
        self._reserved = state.clock[state.node]
        self._unsaved = 1
        self._saved = 0

    @classmethod
    async def open(
        cls,
        node: int,
        stored: ClockState | None,
        save: Callable[[ClockState], Awaitable[None]],
        *,
        incarnation: int,
    ) -> "CausalClock":
        """Begin ``incarnation`` (``next_incarnation`` of the stored one) of this node, and store that.

        Raises InvalidMessage ``clock.range`` where the stored state is another node's.
        """
        if stored is None:
            state = ClockState(node=node, incarnation=incarnation)
        elif stored.node != node:
            raise InvalidMessage(
                "clock.range", f"the stored clock is node {stored.node}'s, not node {node}'s"
            )
        else:
            state = stored.reopened(incarnation)
        clock = cls(state, save)
        await clock.flush()
        return clock

    @property
    def node(self) -> int:
        return self._state.node

    @property
    def incarnation(self) -> int:
        return self._state.incarnation

    @property
    def now(self) -> VectorClock:
        """The clock as it stands, without an event."""
        return self._state.clock

    async def tick(self) -> VectorClock:
        """One more signed message or statement of this node: its clock, already persisted."""
        self._state = self._state.sign()
        clock = self._state.clock
        if clock[self._state.node] > self._reserved:
            self._unsaved += 1
        if self._saved < self._unsaved:
            await self.flush()
        return clock

    def observe(self, facts: MessageFacts, *, relayed: bool) -> None:
        """Merge a verified message. Raises VerificationError ``clock.*``; then nothing has changed."""
        self._state = self._state.observe(facts, gapless=False, relayed=relayed)
        self._unsaved += 1

    async def flush(self) -> None:
        """Store what was observed and not stored yet: to be called before what a message says is made durable."""
        wanted = self._unsaved
        async with self._lock:
            if self._saved >= wanted:
                return
            state, version = self._state, self._unsaved
            bound = state.clock[state.node] + _RESERVE
            clock = VectorClock({**dict(state.clock.items()), state.node: bound})
            await self._save(replace(state, clock=clock))
            self._reserved, self._saved = bound, version
