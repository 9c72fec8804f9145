"""Answering draw calls (docs/spec/04-sortition.md, "Draw", steps 2 and 3).

A draw call is checked as far as an operator can, answered once, and the answer stored before it is sent. A
second, different call for the same job and attempt is kept as evidence and refused.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from aos.core import draw as core_draw
from aos.core.codec import decode
from aos.core.statements import DrawCall, Signed, VrfClaim, sign, verify_signed
from aos.errors import RuleViolation, VerificationError
from aos.operator.identity import Identity
from aos.operator.metrics import Metrics
from aos.operator.network import BeaconCheck, ChainReader, Network, Registry
from aos.operator.rows import Draw
from aos.operator.store import Store

Refusal = Literal["", "draining", "capacity", "model", "job_type", "stale"]
Readiness = Callable[[str, bytes], Awaitable[Refusal]]
"""Takes job type and model id: why this operator cannot run such a job now, or nothing."""

EPOCH_TOLERANCE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Body:
    draw_call: Any


class Draws:
    """Draw calls of one network. ``wake`` is called when there is something to send."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        network: Network,
        registry: Registry,
        *,
        readiness: Readiness,
        wake: Callable[[], None],
        now_ms: Callable[[], int],
        metrics: Metrics,
        chain: ChainReader | None = None,
    ) -> None:
        self._chain = chain
        self._store = store
        self._identity = identity
        self._network = network
        self._registry = registry
        self._readiness = readiness
        self._wake = wake
        self._now_ms = now_ms
        self._metrics = metrics
        self._beacon = BeaconCheck(network, chain)

    async def on_draw_call(self, body: object) -> dict[str, Any]:
        """Handle ``draw_call``: verify, answer, store. The claim follows as a message of its own.

        Raises InvalidMessage; VerificationError ``draw.*``, ``beacon.*``, ``signature.*``,
        ``equivocation.draw_call``; RuleViolation ``draw.epoch``; Unavailable.
        """
        # 1. Signed by the dispatcher, for this network, with the seed that its VRF key gives.
        value = decode(_Body, body).draw_call
        call = verify_signed(DrawCall, value, address=self._network.dispatcher, where="draw_call")
        statement = core_draw.verify_draw_call(
            call,
            network=self._network.name,
            dispatcher=self._network.dispatcher,
            vrf_key=self._network.vrf_key,
        )
        # 2. One call for each job and attempt; asked again, the stored answer is sent again.
        held = await self._store.draw(statement.job_ref, statement.attempt)
        if held is not None:
            if held.call_hash != call.hash:
                await self._store.add_evidence(
                    "equivocation.draw_call",
                    job_ref=statement.job_ref,
                    attempt=statement.attempt,
                    held=held.draw_call,
                    received=call.to_json(),
                )
                raise VerificationError(
                    "equivocation.draw_call", "another draw call for this job and attempt is held"
                )
            await self._store.draw_unsent(statement.job_ref, statement.attempt)
            self._wake()
            return {}
        # 3. Of this epoch or its neighbour, with that epoch's beacon.
        now = self._now_ms()
        if abs(statement.epoch - self._network.epoch_at(now)) > EPOCH_TOLERANCE:
            raise RuleViolation("draw.epoch", "the draw call is of another epoch", field="draw_call.epoch")
        await self._beacon.verify(statement)
        # 4. Over a snapshot that holds this operator with its key, old enough and offering the model.
        snapshot = await self._registry.snapshot(self._network, statement.snapshot_root)
        if snapshot.epoch > statement.epoch:
            raise VerificationError("draw.snapshot_epoch", "the snapshot is not in force at this epoch yet")
        entry = snapshot.entry
        if entry is None or not core_draw.eligible(
            entry, job_type=statement.job_type, model_id=statement.model_id, epoch=statement.epoch
        ):
            raise VerificationError("draw.not_eligible", "this operator is not eligible in this draw")
        if entry.vrf_key != self._identity.vrf_key:
            raise VerificationError("draw.foreign_key", "the registry holds another VRF key of this operator")
        # 5. With the range that the contract gives it, where a chain is read.
        if self._chain is not None:
            await self._chain.check_range(entry, self._network.epoch_ms)
        # 6. The one answer.
        await self._answer(call, now)
        self._wake()
        return {}

    async def _answer(self, call: Signed[DrawCall], now: int) -> None:
        statement = call.statement
        reason: Refusal = (
            "stale"
            if statement.deadline <= now
            else await self._readiness(statement.job_type, statement.model_id)
        )
        if reason:
            claim = VrfClaim(
                network=statement.network,
                node_id=self._identity.node_id,
                job_ref=statement.job_ref,
                attempt=statement.attempt,
                draw_call=call.hash,
                answer="decline",
                reason=reason,
                pi=b"",
            )
        else:
            claim = core_draw.make_claim(
                call, node_id=self._identity.node_id, vrf_seed=self._identity.vrf_seed
            )
        signed = sign(self._identity.signer_key, claim)
        self._metrics.draws.labels(answer=reason or "claim").inc()
        await self._store.add_draw(
            Draw(
                job_ref=statement.job_ref,
                attempt=statement.attempt,
                call_hash=call.hash,
                draw_call=call.to_json(),
                claim=signed.to_json(),
                claim_hash=signed.hash,
                answer=claim.answer,
                reason=reason,
                sent=False,
            )
        )
