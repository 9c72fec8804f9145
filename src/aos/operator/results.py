"""From a worker's answer to what the operator signs (docs/spec/06-network.md, "Operator's order of work").

Chunks of eight tokens, the commit with its salt, the receipt. Each is made once, stored, and only then sent; a
worker that starts again must produce the chunks that are stored, otherwise nothing more is signed.
"""

import secrets
from collections.abc import Callable
from typing import Any, Literal

from aos.adapters.causal_clock import CausalClock
from aos.core import hashes
from aos.core.codec import decode, encode
from aos.core.draw import claim_alpha_of
from aos.core.encoding import canonical_json, parse_canonical
from aos.core.envelope import MAX_ENVELOPE_BYTES
from aos.core.statements import (
    Chunk,
    Commit,
    DrawCall,
    DrawRecord,
    ReceiptCore,
    ReceiptVrf,
    Request,
    TeeKind,
    VrfClaim,
    hash_of,
    sign,
)
from aos.core.tee import TeeEvidence, read_evidence, verify_enclave
from aos.core.vrf import ecvrf_proof_to_hash
from aos.errors import RuleViolation, VerificationError
from aos.operator.identity import Identity
from aos.operator.network import Network
from aos.operator.rows import Assignment, Draw
from aos.operator.store import Store
from aos.operator.worker_client import ResultLine, TokenLine

CHUNK_TOKENS = 8
MAX_SHOWN_BYTES = MAX_ENVELOPE_BYTES - (64 << 10)
"""Text, tokens and evidence of a result; the rest of its envelope is the receipt, below 64 KiB."""
FinishReason = Literal["", "stop", "length", "cancelled", "numeric_trap"]


class NotRepeatable(VerificationError):
    """A worker that started again produced something else than what was signed before."""

    def __init__(self) -> None:
        super().__init__("stream.not_repeatable", "the worker does not repeat what was streamed before")


class ChunkWriter:
    """Signs and stores the executor's stream as it comes. ``wake`` is called when a chunk is there to be sent.

    A full chunk waits for the next token or the end: only then is it known whether it is the final one.
    """

    def __init__(
        self,
        store: Store,
        identity: Identity,
        network: Network,
        held: Assignment,
        *,
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._identity = identity
        self._network = network
        self._held = held
        self._wake = wake
        self._stored: list[tuple[Any, bytes]] = []
        self._tokens: list[int] = []
        self._text = ""
        self._written_text = ""
        self._written_tokens: list[int] = []
        self._index = 0
        self._previous = b""

    async def open(self) -> None:
        """Load what an earlier run of this assignment has stored."""
        self._stored = await self._store.chunks(self._held.job_ref, self._held.attempt)

    async def token(self, line: TokenLine) -> None:
        """Take one token. Raises VerificationError ``worker.inconsistent``, ``stream.not_repeatable``."""
        if line.index != len(self._written_tokens) + len(self._tokens):
            raise VerificationError("worker.inconsistent", "the worker's token events are not in order")
        if len(self._tokens) == CHUNK_TOKENS:
            await self._write(self._text, "")
        self._tokens.append(line.token)
        self._text += line.text

    async def finish(self, result: ResultLine) -> None:
        """Write the final chunk, whose text is what ``result.text`` has beyond the chunks before. Raises as ``token``."""
        if [*self._written_tokens, *self._tokens] != list(result.tokens):
            raise VerificationError(
                "worker.inconsistent", "the worker's result has other tokens than its stream"
            )
        if not result.text.startswith(self._written_text):
            raise VerificationError(
                "worker.inconsistent", "the worker's result has another text than its stream"
            )
        await self._write(result.text[len(self._written_text) :], result.finish_reason)
        if self._index != len(self._stored):
            raise NotRepeatable

    async def _write(self, text: str, finish_reason: FinishReason) -> None:
        chunk = Chunk(
            network=self._network.name,
            node_id=self._identity.node_id,
            job_ref=self._held.job_ref,
            attempt=self._held.attempt,
            index=self._index,
            tokens=tuple(self._tokens),
            text=text,
            previous=self._previous,
            final=finish_reason != "",
            finish_reason=finish_reason,
        )
        digest = hash_of(chunk)
        if self._index < len(self._stored):
            if self._stored[self._index][1] != digest:
                raise NotRepeatable
        else:
            signed = sign(self._identity.signer_key, chunk).to_json()
            if not await self._store.add_chunk(
                self._held.job_ref, self._held.attempt, self._index, signed, digest
            ):
                # Another runner of the same assignment was quicker, or the assignment has ended.
                self._stored = await self._store.chunks(self._held.job_ref, self._held.attempt)
                if self._index >= len(self._stored) or self._stored[self._index][1] != digest:
                    raise NotRepeatable
            else:
                self._stored.append((signed, digest))
            self._wake()
        self._written_tokens += self._tokens
        self._written_text += text
        self._tokens, self._text = [], ""
        self._index += 1
        self._previous = digest


def read_request(held: Assignment) -> Request:
    """The stored request, which was decoded before it was stored."""
    return decode(Request, parse_canonical(held.request, max_bytes=hashes.MAX_REQUEST_BYTES))


def check_result(held: Assignment, result: ResultLine, *, node_id: str) -> None:
    """Does a worker's result fit the job? The operator is about to sign it.

    Raises VerificationError ``worker.wrong_model``, ``worker.inconsistent``, ``worker.no_state_root``,
    ``worker.evidence``, ``tee.*``; RuleViolation ``result.too_large``; InvalidMessage ``field.*``.
    """
    request = read_request(held)
    if result.model_id != held.model_id:
        raise VerificationError("worker.wrong_model", "the worker ran another model")
    if len(result.tokens) > request.job.params.max_tokens:
        raise VerificationError("worker.inconsistent", "the worker made more tokens than were asked for")
    shown = canonical_json({"text": result.text, "tokens": result.tokens, "evidence": result.evidence})
    if len(shown) > MAX_SHOWN_BYTES:
        raise RuleViolation("result.too_large", "the answer does not fit into a message of the link")
    if request.job.tag == "opml":
        if not result.state_root or result.evidence is not None:
            raise VerificationError("worker.no_state_root", "an opML result has a state root and no evidence")
        return
    if result.evidence is None:
        raise VerificationError("worker.evidence", "a TEE result needs evidence")
    _check_evidence(held, request, result, read_evidence(result.evidence), node_id)


def _check_evidence(
    held: Assignment, request: Request, result: ResultLine, evidence: TeeEvidence, node_id: str
) -> None:
    """Not an appraisal (the verifier's own roots decide that): whether the enclave speaks of this very answer."""
    answer = evidence.answer
    verify_enclave(evidence.boot.enclave_key, answer, evidence.answer_signature, what="answer")
    stated = (
        answer.boot,
        answer.operator,
        answer.job_ref,
        answer.attempt,
        answer.request_hash,
        answer.response_hash,
        answer.tokens_hash,
        answer.prompt_tokens_hash,
        answer.model_id,
        answer.params_hash,
        answer.sampling_seed,
        answer.engine,
        answer.n_prompt,
        answer.n_out,
        answer.finish_reason,
    )
    ours = (
        hash_of(evidence.boot),
        node_id,
        held.job_ref,
        held.attempt,
        hashes.request_hash(held.nonce, held.request),
        hashes.response_hash(held.nonce, result.text),
        hashes.tokens_hash(held.nonce, result.tokens),
        result.prompt_tokens_hash,
        result.model_id,
        hashes.params_hash(held.nonce, request.job.params),
        held.sampling_seed,
        result.engine,
        result.n_prompt,
        len(result.tokens),
        result.finish_reason,
    )
    if stated != ours:
        raise VerificationError("worker.evidence", "the enclave's answer statement is of another answer")


async def commit_result(
    store: Store,
    identity: Identity,
    network: Network,
    *,
    clock: CausalClock,
    held: Assignment,
    result: ResultLine,
    now_ms: int,
) -> bool:
    """Sign and store the commit of a checked result; False where there is one already, or the run has ended."""
    salt = secrets.token_bytes(32)
    commitment = hashes.commitment(
        job_ref=held.job_ref,
        attempt=held.attempt,
        node_id=identity.node_id,
        draw_record=held.draw_record_hash,
        result=committed_result(result),
        tokens_hash=hashes.tokens_hash(held.nonce, result.tokens),
        salt=salt,
    )
    commit = Commit(
        network=network.name,
        node_id=identity.node_id,
        job_ref=held.job_ref,
        attempt=held.attempt,
        draw_record=held.draw_record_hash,
        commitment=commitment,
        clock=(await clock.tick()).to_json(),
    )
    signed = sign(identity.signer_key, commit)
    return await store.executed(
        held.job_ref,
        held.attempt,
        result=encode(result),
        finished_at=now_ms,
        commit_salt=salt,
        commit=signed.to_json(),
        commit_hash=signed.hash,
    )


def committed_result(result: ResultLine) -> bytes:
    """What a commitment covers beside the tokens: the state root, or the enclave's answer statement's hash."""
    if result.evidence is None:
        return result.state_root
    return hash_of(read_evidence(result.evidence).answer)


def make_receipt(
    held: Assignment,
    draw: Draw,
    *,
    identity: Identity,
    network: Network,
    node: int,
    status: Literal["selected", "filled"],
    commit_set: bytes,
    stream_head: bytes,
    clock: dict[str, str],
) -> ReceiptCore:
    """The receipt of an executed assignment; ``status`` and ``commit_set`` (a hash) come with the commit set."""
    assert held.result is not None  # noqa: S101  the schema keeps it as long as there is no receipt
    assert held.started_at is not None  # noqa: S101  set when a worker took it
    assert held.finished_at is not None  # noqa: S101  set with the result
    result = decode(ResultLine, held.result)
    request = read_request(held)
    record = decode(DrawRecord, held.draw_record["statement"])
    call = decode(DrawCall, draw.draw_call["statement"])
    claim = decode(VrfClaim, draw.claim["statement"])
    evidence = None if result.evidence is None else read_evidence(result.evidence)
    tee: TeeKind = "" if evidence is None else evidence.boot.tee
    return ReceiptCore(
        network=network.name,
        dispatcher=network.dispatcher,
        operator=identity.node_id,
        node=node,
        job_ref=held.job_ref,
        attempt=held.attempt,
        role=held.role,
        request_hash=hashes.request_hash(held.nonce, held.request),
        response_hash=hashes.response_hash(held.nonce, result.text),
        tokens_hash=hashes.tokens_hash(held.nonce, result.tokens),
        prompt_tokens_hash=result.prompt_tokens_hash,
        model_id=result.model_id,
        params_hash=hashes.params_hash(held.nonce, request.job.params),
        sampling_seed=held.sampling_seed,
        seed_source=held.seed_source,
        engine=result.engine,
        n_prompt=result.n_prompt,
        n_out=len(result.tokens),
        finish_reason=result.finish_reason,
        state_root=b"" if evidence is not None else result.state_root,
        tee=tee,
        answer_statement=b"" if evidence is None else hash_of(evidence.answer),
        stream_head=stream_head,
        vrf=ReceiptVrf(
            key=identity.vrf_key,
            alpha_hash=hashes.alpha_hash(claim_alpha_of(call)),
            pi=claim.pi,
            beta=ecvrf_proof_to_hash(claim.pi),
            status=status,
        ),
        draw_record=held.draw_record_hash,
        draw_counts=record.counts,
        commit_set=commit_set,
        clock=clock,
        started_at=held.started_at,
        finished_at=max(held.finished_at, held.started_at),
    )
