"""Vector clocks and what a node knows of the others (docs/spec/05-clocks.md).

An event is a signed message: a node's own entry is the number of messages that it has signed, so the vector
follows from the messages. ``ClockState`` refuses by name what cannot be true; ``equivocation`` is the only
evidence. Nothing here stores or sends: the state is a value, to be persisted before a message that it counts
leaves the node.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aos.core.encoding import MAX_INT, Fields, b64u_encode
from aos.errors import InvalidMessage, VerificationError

MAX_NODES = 4096
MAX_NODE = 2**31
DISPATCHER = 1
MAX_LEARNED = 2**52
"""A count that a node takes from others leaves it as many of its own."""
MAX_LEAP = 2**24
"""So far a count may be above the highest held of its node: signed, and lost on the way or never meant to be sent here."""

_COUNT = re.compile(r"[1-9][0-9]{0,15}\Z", re.ASCII)


class VectorClock:
    """Immutable map of node number to count, both at least 1; a node that is not in it has count 0.

    JSON: ``{"1": "2"}``, decimal strings without leading zeros. Clocks are only partly ordered: of two, each
    may be ahead of the other (``concurrent_with``).
    """

    __slots__ = ("_counts",)

    def __init__(self, counts: Mapping[int, int] | Iterable[tuple[int, int]] = ()) -> None:
        checked = dict(counts)
        if len(checked) > MAX_NODES:
            raise InvalidMessage("clock.too_large", f"a clock has at most {MAX_NODES} entries", field="clock")
        for node, count in checked.items():
            if not 1 <= node <= MAX_NODE or not 1 <= count <= MAX_INT:
                raise InvalidMessage(
                    "clock.range", "a clock maps node numbers to counts from 1", field="clock"
                )
        self._counts = dict(sorted(checked.items()))

    @staticmethod
    def decode(value: object) -> "VectorClock":
        """Read the JSON form. Raises InvalidMessage ``clock.type``, ``clock.format``, ``clock.range``,
        ``clock.too_large``."""
        if not isinstance(value, dict):
            raise InvalidMessage("clock.type", "a clock is an object", field="clock")
        if len(value) > MAX_NODES:
            raise InvalidMessage("clock.too_large", f"a clock has at most {MAX_NODES} entries", field="clock")
        for node, count in value.items():
            if not (isinstance(node, str) and isinstance(count, str)):
                raise InvalidMessage("clock.type", "a clock maps text to text", field="clock")
            if not (_COUNT.match(node) and _COUNT.match(count)):
                raise InvalidMessage(
                    "clock.format", "a clock maps decimal node numbers to decimal counts", field="clock"
                )
        return VectorClock((int(node), int(count)) for node, count in value.items())

    def to_json(self) -> dict[str, str]:
        """As shown and sent, by ascending node number."""
        return {str(node): str(count) for node, count in self._counts.items()}

    def items(self) -> Iterable[tuple[int, int]]:
        """(node, count) by ascending node number."""
        return self._counts.items()

    def __getitem__(self, node: int) -> int:
        return self._counts.get(node, 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VectorClock) and self._counts == other._counts

    def __hash__(self) -> int:
        return hash(tuple(self._counts.items()))

    def __repr__(self) -> str:
        return f"VectorClock({self._counts})"

    def tick(self, node: int) -> "VectorClock":
        """The clock with one more event of ``node``."""
        return VectorClock({**self._counts, node: self[node] + 1})

    def merge(self, other: "VectorClock") -> "VectorClock":
        """The larger count of each node."""
        return VectorClock({n: max(self[n], other[n]) for n in {*self._counts, *other._counts}})

    def happens_before(self, other: "VectorClock") -> bool:
        """True where ``other`` has seen all that this one has, and something more."""
        return self != other and all(count <= other[node] for node, count in self._counts.items())

    def concurrent_with(self, other: "VectorClock") -> bool:
        """True where neither has seen all that the other has."""
        return self != other and not self.happens_before(other) and not other.happens_before(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFacts:
    """What the clocks need of a message whose signature was verified.

    ``counter`` is the number of messages that ``sender`` had signed with this one; ``digest`` (32 bytes)
    names the message; ``clock`` is the one in it.
    """

    sender: int
    incarnation: int
    counter: int
    digest: bytes
    clock: VectorClock

    @staticmethod
    def of(*, sender: int, incarnation: int, digest: bytes, clock: VectorClock) -> "MessageFacts":
        """Facts of a message that states its counter only as its own entry in ``clock``."""
        return MessageFacts(
            sender=sender, incarnation=incarnation, counter=clock[sender], digest=digest, clock=clock
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The last message held of a node. ``peak`` is the highest counter held of it in any incarnation."""

    incarnation: int
    counter: int
    digest: bytes
    peak: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockState:
    """A node's causal knowledge. Immutable; ``sign`` and ``observe`` return the next state.

    ``own_signed`` is False until this node has signed a message; ``own_named`` until, in this incarnation, a
    message has named it in its clock.
    """

    node: int
    incarnation: int
    clock: VectorClock = field(default_factory=VectorClock)
    own_signed: bool = False
    own_named: bool = False
    seen: Mapping[int, Seen] = field(default_factory=dict)

    def reopened(self, incarnation: int) -> "ClockState":
        """The stored state, in a higher incarnation: its count may be an old one, so it may be told once
        more.

        Raises InvalidMessage ``clock.range``.
        """
        if not self.incarnation < incarnation <= MAX_NODE:
            raise InvalidMessage(
                "clock.range", "a node begins again in a higher incarnation", field="incarnation"
            )
        return replace(self, incarnation=incarnation, own_named=False)

    def sign(self) -> "ClockState":
        """The state with one more message of this node: persist it, then sign with its ``clock``, then
        send. Raises InvalidMessage ``clock.range`` where 2^53-1 messages were signed."""
        return replace(self, clock=self.clock.tick(self.node), own_signed=True)

    def observe(self, facts: MessageFacts, *, gapless: bool = True, relayed: bool = False) -> "ClockState":
        """The state after receiving a verified message: its clock is merged, as far as it is believed.

        ``gapless``: every message of this sender should reach this node (an operator's do reach the
        dispatcher within a session; the dispatcher's go to many). ``relayed``: the sender holds messages of
        others that this node does not (the dispatcher); entries about them beyond what is held are then
        neither refused nor merged.

        A first message in a higher incarnation may start at any lower counter; none of a node that is no relay is more than
        2^24 above the highest held of it. A node that lost its state learns its
        own count, at most 2^52: until it has signed, from whoever names it; afterwards once in an incarnation,
        from a relaying sender (the dispatcher).

        Raises InvalidMessage ``clock.range``; VerificationError, checked in this order:
        ``clock.own_message``, ``clock.own_entry_mismatch``, ``clock.equivocation``, ``clock.rolled_back``,
        ``clock.skipped``, ``clock.forged_entry``.
        """
        if len(facts.digest) != 32 or facts.incarnation < 1:
            raise InvalidMessage("clock.range", "a message has a digest and an incarnation from 1")
        if facts.sender == self.node:
            raise VerificationError("clock.own_message", "the message claims to be this node's own")
        if facts.counter < 1 or facts.clock[facts.sender] != facts.counter:
            raise VerificationError(
                "clock.own_entry_mismatch",
                "the sender's entry is not the number of its message",
                field="clock",
            )
        last = self.seen.get(facts.sender)
        if last is not None and facts.incarnation <= last.incarnation:
            self._check_order(facts, last, gapless=gapless)
        if last is not None and not relayed and facts.counter - last.peak > MAX_LEAP:
            raise VerificationError(
                "clock.skipped",
                f"message {facts.counter}, and {last.peak} was the highest held of node {facts.sender}",
            )
        own = self.clock[self.node]
        learns = not self.own_signed or (relayed and not self.own_named)
        merged = dict(self.clock.items())
        for node, count in facts.clock.items():
            if node == facts.sender:
                held = count
            elif node == self.node:
                held = max(own, min(count, MAX_LEARNED)) if learns else own
            else:
                held = self.seen[node].peak if node in self.seen else 0
            if count > held and not (relayed and node != self.node):
                raise VerificationError(
                    "clock.forged_entry",
                    f"entry {count} for node {node}, of which {held} messages are held",
                    field="clock",
                )
            if min(count, held) > merged.get(node, 0):
                merged[node] = min(count, held)
        seen = Seen(
            incarnation=facts.incarnation,
            counter=facts.counter,
            digest=facts.digest,
            peak=max(facts.counter, last.peak if last else 0),
        )
        return replace(
            self,
            clock=VectorClock(merged),
            own_named=self.own_named or facts.clock[self.node] > 0,
            seen={**self.seen, facts.sender: seen},
        )

    @staticmethod
    def _check_order(facts: MessageFacts, last: Seen, *, gapless: bool) -> None:
        if facts.incarnation == last.incarnation:
            if facts.counter == last.counter and facts.digest != last.digest:
                raise VerificationError(
                    "clock.equivocation", f"node {facts.sender} signed two messages {facts.counter}"
                )
            if facts.counter > last.counter:
                if gapless and facts.counter != last.counter + 1:
                    raise VerificationError(
                        "clock.skipped", f"message {facts.counter} came right after message {last.counter}"
                    )
                return
        raise VerificationError(
            "clock.rolled_back",
            f"message {facts.incarnation}/{facts.counter} came after {last.incarnation}/{last.counter}",
        )

    def to_json(self) -> dict[str, Any]:
        """For storage; ``decode`` reads it back."""
        return {
            "node": self.node,
            "incarnation": self.incarnation,
            "clock": self.clock.to_json(),
            "own_signed": self.own_signed,
            "own_named": self.own_named,
            "seen": {
                str(node): {
                    "incarnation": s.incarnation,
                    "counter": s.counter,
                    "digest": b64u_encode(s.digest),
                    "peak": s.peak,
                }
                for node, s in sorted(self.seen.items())
            },
        }

    @staticmethod
    def decode(value: object) -> "ClockState":
        """Read a stored state. Raises InvalidMessage ``field.*``, ``clock.*``."""
        fields = Fields(
            value, ("node", "incarnation", "clock", "own_signed", "own_named", "seen"), path="clock_state"
        )
        seen: dict[int, Seen] = {}
        for name, entry in fields.mapping("seen").items():
            if not _COUNT.match(name):
                raise InvalidMessage("clock.format", "node numbers are decimal", field="clock_state.seen")
            path = f"clock_state.seen.{name}"
            item = Fields(entry, ("incarnation", "counter", "digest", "peak"), path=path)
            seen[int(name)] = Seen(
                incarnation=item.uint("incarnation", 2**31, min_value=1),
                counter=item.uint("counter", min_value=1),
                digest=item.b64u("digest", 32),
                peak=item.uint("peak", min_value=1),
            )
        return ClockState(
            node=fields.uint("node", MAX_NODE, min_value=1),
            incarnation=fields.uint("incarnation", 2**31, min_value=1),
            clock=VectorClock.decode(fields.raw("clock")),
            own_signed=fields.boolean("own_signed"),
            own_named=fields.boolean("own_named"),
            seen=seen,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivocation:
    """Two different messages under one number: convicts ``sender``, given both verified messages."""

    sender: int
    incarnation: int
    counter: int
    digests: tuple[bytes, bytes]


def equivocation(a: MessageFacts, b: MessageFacts) -> Equivocation:
    """The evidence that two *verified* messages are. Raises VerificationError ``clock.no_equivocation``."""
    same = (a.sender, a.incarnation, a.counter) == (b.sender, b.incarnation, b.counter)
    if not same or a.digest == b.digest:
        raise VerificationError("clock.no_equivocation", "the messages do not contradict each other")
    low, high = sorted((a.digest, b.digest))
    return Equivocation(sender=a.sender, incarnation=a.incarnation, counter=a.counter, digests=(low, high))
