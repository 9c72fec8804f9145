"""One answer under judgement, and how a check says what it found.

A check takes a ``Case`` and returns what it saw, raises AOSError for what is wrong, or ``Skip`` for what it cannot check.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from aos.core import draw, draw_check, hashes, merkle
from aos.core.answer import Answer, DrawnOperator
from aos.core.attest.result import Claims
from aos.core.codec import decode
from aos.core.encoding import parse_canonical
from aos.core.statements import Request
from aos.core.trust import Policy, Trust
from aos.errors import VerificationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a re-execution gave: the ids that this engine would have chosen, what they spell, and the state root (32 bytes)."""

    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    state_root: bytes | None


Replay = Callable[[Answer, Request], Replayed]

CheckFunction = Callable[["Case"], str | tuple[str, str]]
"""Returns what it saw (and a value worth showing), raises AOSError for what is wrong and Skip for what it cannot check."""


class Skip(Exception):
    """This check could not be made, for the reason in its text."""


class Case:
    """One answer under judgement: what several checks need, worked out once."""

    def __init__(self, answer: Answer, trust: Trust | None, policy: Policy, replay: Replay | None) -> None:
        self.answer = answer
        self.trust = trust
        self.policy = policy
        self.replay = replay
        self.core = answer.receipt.core
        self.call = answer.draw.draw_call
        self.record = answer.draw.draw_record
        self.first_call = answer.draw.first_draw or self.call
        self.calls = (self.call,) if answer.draw.first_draw is None else (self.first_call, self.call)
        self.receipts = (answer.receipt, *answer.peers)
        self.agreeing = 1
        """Operators in proven seats that signed one result; ``agree-1`` counts them."""
        self.enclave: Claims | None = None
        """What the enclave's document says, once ``tee-2`` has believed it."""

    @cached_property
    def request(self) -> Request:
        """The saved request, decoded. Raises InvalidMessage ``encoding.*``, ``field.*``."""
        data = parse_canonical(self.answer.request.encode("utf-8"), max_bytes=hashes.MAX_REQUEST_BYTES)
        return decode(Request, data, where="request")

    @cached_property
    def opened(self) -> draw.OpenedTag:
        """The run's tag as the countersign opens it; the draw call's commitment is compared with the seat."""
        sign = self.answer.receipt.countersign
        return draw.OpenedTag(salt=sign.tag_salt, tag=sign.tag, position=sign.position)

    @cached_property
    def vrf_key(self) -> bytes | None:
        """The trusted VRF key of this answer's dispatcher."""
        known = self.trust.dispatchers if self.trust is not None else ()
        return next((d.vrf_key for d in known if d.address == self.core.dispatcher), None)

    @cached_property
    def drawn(self) -> dict[str, DrawnOperator]:
        """The draw's entries that are in the file, by node_id."""
        return {entry.operator.node_id: entry for entry in self.answer.draw.entries}

    def trusted(self) -> Trust:
        """The trust file. Raises Skip where there is none."""
        if self.trust is None:
            raise Skip("no trust file (--trust FILE)")
        return self.trust

    def seat_of(self, operator: str) -> draw_check.VerifiedSeat:
        """The verified seat of ``operator``. Raises VerificationError ``draw.*``."""
        part = self.answer.draw
        entry = self.drawn.get(operator)
        if entry is None:
            raise VerificationError("draw.not_seated", f"{operator} is not among the draw's entries")
        paths = (entry.operator_path, entry.entry_path)
        if part.complete:
            leaves = [draw.snapshot_leaf(e.operator) for e in part.entries]
            entries = [draw.entry_leaf(e.entry) for e in part.entries]
            paths = (
                tuple(merkle.inclusion_path(leaves, entry.index)),
                tuple(merkle.inclusion_path(entries, entry.index)),
            )
        return draw_check.verify_seat(
            call=self.call,
            record=self.record.statement,
            max_range=part.max_range,
            operator=entry.operator,
            entry=entry.entry,
            claim=entry.claim,
            index=entry.index,
            operator_path=paths[0],
            entry_path=paths[1],
            opened=self.opened,
        )


def refuse(code: str, message: str, *, field: str | None = None) -> VerificationError:
    """The error to raise for what a check found wrong."""
    return VerificationError(code, message, field=field)


def same(code: str, message: str, **pairs: tuple[object, object]) -> None:
    """Refuse with ``code`` where the two values of a pair differ; the error names it."""
    for name, (left, right) in pairs.items():
        if left != right:
            raise refuse(code, f"{message}: {name} differs", field=name)


def short(data: bytes) -> str:
    """The beginning of a hash, for people."""
    return f"{data.hex()[:6]}…"
