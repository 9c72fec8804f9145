"""What the dispatcher asks of a seated operator: dispatches, commit sets, cancellations (docs/spec/06-network.md).

Each is a numbered list of checks, then one change of state. Everything that the operator can recompute is
recomputed; what contradicts an earlier statement of the dispatcher is kept as evidence and refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from aos.adapters.causal_clock import CausalClock
from aos.core import draw as core_draw
from aos.core import hashes, merkle
from aos.core.codec import (
    Bytes32,
    ClockMap,
    MaxLength,
    Pattern,
    Range,
    TimeMs,
    UInt,
    UInt32,
    decode,
    encode,
)
from aos.core.encoding import b64u_encode, canonical_json, parse_canonical
from aos.core.statements import (
    CommitSet,
    DrawCall,
    DrawEntry,
    DrawRecord,
    Request,
    Role,
    Signed,
    read_signed,
    sign,
    verify_signed,
)
from aos.errors import RuleViolation, VerificationError
from aos.operator.identity import Identity
from aos.operator.network import BeaconCheck, ChainReader, Network
from aos.operator.results import make_receipt
from aos.operator.rows import Assignment, Draw, NewAssignment
from aos.operator.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    tokens: Annotated[tuple[UInt32, ...], MaxLength(65_536)]
    head: Bytes32
    finish_reason: Literal["stop", "length", "cancelled", "numeric_trap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dispatch:
    job_id: Annotated[str, Pattern(r"[0-9a-f]{64}")]
    clock: ClockMap
    attempt: Annotated[int, Range(1, 1_000_000)]
    role: Role
    seat: Annotated[int, Range(0, 63)]
    request: Annotated[str, MaxLength(hashes.MAX_REQUEST_BYTES)]
    nonce: Bytes32
    draw_call: Any
    draw_record: Any
    first_draw: Any
    stream: _Stream | None
    deadline: TimeMs


@dataclass(frozen=True, slots=True, kw_only=True)
class _CommitSetBody:
    commit_set: Any
    entry: DrawEntry
    entry_index: UInt
    entry_path: Annotated[tuple[Bytes32, ...], MaxLength(64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _CancelBody:
    job_ref: Bytes32
    attempt: Annotated[int, Range(1, 1_000_000)]


class Assignments:
    """The jobs of one network. ``stored`` is called when a job waits for a worker, ``wake`` when something is to be
    sent, ``stop`` when a run must end."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        network: Network,
        clock: CausalClock,
        *,
        stored: Callable[[], None],
        wake: Callable[[], None],
        stop: Callable[[bytes, int], None],
        now_ms: Callable[[], int],
        chain: ChainReader | None = None,
    ) -> None:
        self._store = store
        self._identity = identity
        self._network = network
        self._clock = clock
        self._stored = stored
        self._wake = wake
        self._stop = stop
        self._now_ms = now_ms
        self._beacon = BeaconCheck(network, chain)

    # --- dispatch_job

    async def on_dispatch(self, body: object) -> dict[str, Any]:
        """Handle ``dispatch_job``: verify and store; the answer says that it is stored.

        Raises InvalidMessage; VerificationError ``dispatch.*``, ``draw.*``, ``beacon.*``, ``signature.*``,
        ``equivocation.draw_call``, ``equivocation.draw_record``;
        RuleViolation ``dispatch.late``; Unavailable.
        """
        dispatch = decode(_Dispatch, body, where="dispatch")
        job_ref = hashes.job_ref(dispatch.job_id)
        draw = await self._store.draw(job_ref, dispatch.attempt)
        new, record = await self._verify_dispatch(dispatch, job_ref, draw)
        await self._check_first_draw(dispatch, job_ref)
        held = await self._store.assignment(job_ref, dispatch.attempt)
        if held is None and dispatch.deadline <= self._now_ms():
            raise RuleViolation("dispatch.late", "the deadline of this dispatch has passed")
        if held is None and await self._store.add_assignment(new):
            self._stored()
            return {}
        held = held or await self._store.assignment(job_ref, dispatch.attempt)
        if held is None:
            raise RuleViolation("dispatch.changed", "the dispatch changed while it was stored")
        await self._compare(held, new, record)
        if new.deadline > held.deadline:  # a dispatcher that was away puts its deadlines off
            await self._store.put_off(job_ref, dispatch.attempt, new.deadline)
        self._stored()
        self._wake()
        return {}

    async def _verify_dispatch(
        self, dispatch: _Dispatch, job_ref: bytes, draw: Draw | None
    ) -> tuple[NewAssignment, Signed[DrawRecord]]:
        address = self._network.dispatcher
        # 1. A draw that this operator answered with a claim, and no other draw call.
        if draw is None or draw.answer != "claim":
            raise VerificationError("dispatch.no_claim", "this operator made no claim in such a draw")
        call = read_signed(DrawCall, dispatch.draw_call, where="dispatch.draw_call")
        if call.hash != draw.call_hash:
            raise VerificationError("dispatch.draw_call", "the dispatch names another draw call")
        # 2. A record of that draw, signed, in which this operator holds the seat that it is given.
        record = verify_signed(
            DrawRecord, dispatch.draw_record, address=address, where="dispatch.draw_record"
        )
        drawn = record.statement
        if (
            (drawn.network, drawn.dispatcher) != (self._network.name, address)
            or (drawn.job_ref, drawn.attempt) != (job_ref, dispatch.attempt)
            or drawn.draw_call != draw.call_hash
            or drawn.snapshot_root != call.statement.snapshot_root
        ):
            raise VerificationError("dispatch.draw_record", "the draw record is of another draw")
        if dispatch.seat >= len(drawn.seats) or drawn.seats[dispatch.seat] != self._identity.node_id:
            raise VerificationError("dispatch.seat", "this operator does not hold that seat")
        # 3. The exact request, of this network, for the job type and model of the draw.
        data = dispatch.request.encode()
        request = decode(Request, parse_canonical(data, max_bytes=hashes.MAX_REQUEST_BYTES), where="request")
        if (request.network, request.dispatcher) != (self._network.name, address):
            raise VerificationError("dispatch.foreign_request", "the request is of another network")
        if (request.job.tag, request.job.model_id) != (call.statement.job_type, call.statement.model_id):
            raise VerificationError("dispatch.request", "the draw was for another job type or model")
        if request.min_operators != drawn.min_operators:
            raise VerificationError("dispatch.request", "the draw was for another number of operators")
        # 4. The role that the request and the seat give; a checker has something to check.
        role = _role(request, dispatch.seat)
        if dispatch.role != role:
            raise VerificationError("dispatch.role", f"the role of this seat is {role}")
        if (role == "checker") != (dispatch.stream is not None):
            raise VerificationError("dispatch.stream", "a checker gets the stream, nobody else does")
        # 5. The sampling seed: the request's own, or what attempt 1's draw seed gives.
        seed, source = await self._sampling_seed(dispatch, request, call, job_ref)
        new = NewAssignment(
            job_ref=job_ref,
            attempt=dispatch.attempt,
            job_id=dispatch.job_id,
            role=role,
            seat=dispatch.seat,
            model_id=request.job.model_id,
            request=data,
            nonce=dispatch.nonce,
            sampling_seed=seed,
            seed_source=source,
            deadline=dispatch.deadline,
            draw_record=record.to_json(),
            draw_record_hash=record.hash,
            stream=None if dispatch.stream is None else encode(dispatch.stream),
        )
        return new, record

    async def _sampling_seed(
        self, dispatch: _Dispatch, request: Request, call: Signed[DrawCall], job_ref: bytes
    ) -> tuple[str, Literal["request", "draw"]]:
        if (dispatch.attempt == 1) != (dispatch.first_draw is None):
            raise VerificationError("dispatch.first_draw", "attempts above 1 come with attempt 1's draw call")
        first = call
        if dispatch.first_draw is not None:
            first = verify_signed(
                DrawCall,
                dispatch.first_draw,
                address=self._network.dispatcher,
                where="dispatch.first_draw",
            )
            if (first.statement.job_ref, first.statement.attempt) != (job_ref, 1):
                raise VerificationError("dispatch.first_draw", "the first draw call is of another job")
            # Its seed gives the sampling seed: no more the dispatcher's choice than this attempt's own.
            core_draw.verify_draw_call(
                first,
                network=self._network.name,
                dispatcher=self._network.dispatcher,
                vrf_key=self._network.vrf_key,
            )
            await self._beacon.verify(first.statement)
        if request.job.params.seed is not None:
            return request.job.params.seed, "request"
        return hashes.sampling_seed_from_draw(first.statement.draw_seed), "draw"

    async def _check_first_draw(self, dispatch: _Dispatch, job_ref: bytes) -> None:
        """Attempt 1 had one draw call; where this operator holds it, the dispatch must name that one."""
        held = None if dispatch.first_draw is None else await self._store.draw(job_ref, 1)
        if held is None:
            return
        first = read_signed(DrawCall, dispatch.first_draw, where="dispatch.first_draw")
        if first.hash != held.call_hash:
            await self._store.add_evidence(
                "equivocation.draw_call",
                job_ref=job_ref,
                attempt=1,
                held=held.draw_call,
                received=first.to_json(),
            )
            raise VerificationError("equivocation.draw_call", "another draw call of attempt 1 is held")

    async def _compare(self, held: Assignment, new: NewAssignment, record: Signed[DrawRecord]) -> None:
        """A dispatch that came before must come again unchanged."""
        if held.draw_record_hash != record.hash:
            await self._store.add_evidence(
                "equivocation.draw_record",
                job_ref=new.job_ref,
                attempt=new.attempt,
                held=held.draw_record,
                received=record.to_json(),
            )
            raise VerificationError("equivocation.draw_record", "another draw record of this draw is held")
        same = (
            held.nonce == new.nonce
            and held.seat == new.seat
            and held.sampling_seed == new.sampling_seed
            and (not held.request or held.request == new.request)
            and (not held.request or held.stream == new.stream)
        )
        if not same:
            raise VerificationError("dispatch.changed", "this dispatch differs from the one that is held")

    # --- commit_set

    async def on_commit_set(self, body: object) -> dict[str, Any]:
        """Handle ``commit_set``: verify, make the receipt, store both. The reveal follows.

        Raises InvalidMessage; VerificationError ``commit_set.*``, ``signature.*``, ``merkle.*``,
        ``equivocation.commit_set``; RuleViolation ``commit_set.unknown``; Unavailable.
        """
        message = decode(_CommitSetBody, body, where="commit_set_message")
        signed = verify_signed(
            CommitSet, message.commit_set, address=self._network.dispatcher, where="commit_set"
        )
        statement = signed.statement
        held = await self._store.assignment(statement.job_ref, statement.attempt)
        if held is None or held.commit_hash is None:
            raise RuleViolation("commit_set.unknown", "this operator has no commit in such a run")
        # 1. One commit set for each job and attempt.
        if held.commit_set_hash is not None and held.commit_set is not None:
            if held.commit_set_hash != signed.hash:
                await self._evidence("equivocation.commit_set", held, held.commit_set, signed.to_json())
                raise VerificationError("equivocation.commit_set", "another commit set of this run is held")
            self._wake()
            return {}
        if held.state not in ("executed", "committed"):
            raise RuleViolation("commit_set.unknown", f"this run has ended here: {held.state}")
        # 2. Of this network, draw and run, in its one order.
        names = [entry.node_id for entry in statement.commits]
        seats = decode(DrawRecord, held.draw_record["statement"]).seats
        if (
            (statement.network, statement.dispatcher) != (self._network.name, self._network.dispatcher)
            or statement.draw_record != held.draw_record_hash
            or any(a >= b for a, b in pairwise(names))
            or not set(names) <= set(seats)
        ):
            raise VerificationError("commit_set.foreign", "the commit set is not one of this run's draw")
        # 3. It holds this operator's own commit: otherwise nothing is revealed.
        own = {entry.node_id: entry.commit for entry in statement.commits}.get(self._identity.node_id)
        if own != held.commit_hash:
            if held.commit_ack is not None:
                await self._evidence("commit_set.commit_dropped", held, held.commit_ack, signed.to_json())
            raise VerificationError(
                "commit_set.own_commit_missing", "the commit set does not hold this operator's commit"
            )
        # 4. The draw record holds this operator's own claim.
        draw = await self._store.draw(held.job_ref, held.attempt)
        status = self._own_status(message, held, draw)
        # 5. The receipt, once.
        await self._reveal(held, signed, status, draw)
        self._wake()
        return {}

    def _own_status(
        self, message: _CommitSetBody, held: Assignment, draw: Draw | None
    ) -> Literal["selected", "filled"]:
        record = decode(DrawRecord, held.draw_record["statement"])
        counts = record.counts
        size = counts.selected + counts.not_selected + counts.declined + counts.unanswered + counts.ineligible
        merkle.verify_inclusion(
            merkle.leaf_hash(canonical_json(encode(message.entry))),
            message.entry_index,
            size,
            message.entry_path,
            record.entries_root,
        )
        entry = message.entry
        if draw is None or entry.node_id != self._identity.node_id or entry.claim != draw.claim_hash:
            raise VerificationError(
                "commit_set.own_claim", "the draw record does not hold this operator's claim"
            )
        if entry.status not in ("selected", "not_selected"):
            raise VerificationError("commit_set.own_claim", f"a seated operator cannot be {entry.status}")
        return "selected" if entry.status == "selected" else "filled"

    async def _reveal(
        self,
        held: Assignment,
        commit_set: Signed[CommitSet],
        status: Literal["selected", "filled"],
        draw: Draw | None,
    ) -> None:
        assert draw is not None  # noqa: S101  _own_status has refused otherwise
        chunks = await self._store.chunks(held.job_ref, held.attempt)
        clock = await self._clock.tick()
        receipt = make_receipt(
            held,
            draw,
            identity=self._identity,
            network=self._network,
            node=self._clock.node,
            status=status,
            commit_set=commit_set.hash,
            stream_head=chunks[-1][1] if chunks else b"",
            clock=clock.to_json(),
        )
        signed = sign(self._identity.signer_key, receipt)
        await self._store.revealing(
            held.job_ref,
            held.attempt,
            commit_set=commit_set.to_json(),
            commit_set_hash=commit_set.hash,
            receipt=encode(signed.statement),
            signature=b64u_encode(signed.signature),
        )

    async def _evidence(self, kind: str, held: Assignment, first: Any, second: Any) -> None:
        await self._store.add_evidence(
            kind, job_ref=held.job_ref, attempt=held.attempt, held=first, received=second
        )

    # --- cancel_job

    async def on_cancel(self, body: object) -> dict[str, Any]:
        """Handle ``cancel_job``: a run without a commit ends here; one with a commit goes on.

        Raises InvalidMessage, Unavailable.
        """
        message = decode(_CancelBody, body, where="cancel_job")
        await self._store.cancelled(message.job_ref, message.attempt)
        self._stop(message.job_ref, message.attempt)
        return {}


def _role(request: Request, seat: int) -> Role:
    if request.blind:
        return "blind"
    if seat == 0:
        return "executor"
    return "blind" if request.job.tag == "tee" else "checker"
