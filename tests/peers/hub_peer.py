"""Operators at the run engine's own border: they answer draw calls, dispatches and commit sets without a socket.

Everything that they send is really signed and proved, and their clocks count as over the link. Text and state roots stand for an
engine's; the enclave is SIMULATED. They can be told to be silent, to lie, and to lose the dispatcher at any message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from hashlib import sha256, sha384
from typing import Any

from nacl.signing import SigningKey

from aos.adapters.causal_clock import CausalClock
from aos.adapters.nsm import Nsm
from aos.adapters.simulated_nsm import SimulatedNsm, SimulatedPlatform
from aos.core import draw, hashes
from aos.core.clock import MessageFacts, VectorClock
from aos.core.codec import decode, encode
from aos.core.dispute.chain_claim import ChainClaim, CourtDomain, sign_claim
from aos.core.encoding import b64u_decode, b64u_encode, parse_canonical
from aos.core.signing import address_of
from aos.core.statements import (
    Chunk,
    Commit,
    CommitSet,
    DrawCall,
    DrawEntry,
    DrawRecord,
    FinishReason,
    JobType,
    ReceiptCore,
    ReceiptVrf,
    Registration,
    Request,
    Signed,
    VrfClaim,
    hash_of,
    sign,
    verify_signed,
)
from aos.core.tee import TeeAnswer, TeeBoot, TeeBootEvidence, TeeEvidence, public_key_info, sign_enclave
from aos.core.vrf import ecvrf_proof_to_hash, ecvrf_public_key, prove_possession
from aos.errors import RuleViolation, Unavailable

MODEL = "peer-model.gguf"
MODEL_ID = sha256(b"peer-model").digest()
PROMPT_TOKENS = (1, 77, 300)
CHUNK_TOKENS = 8

Handler = Callable[[str, str, object], Awaitable[dict[str, Any]]]
Key = tuple[bytes, int]


def secret(name: str) -> bytes:
    return sha256(b"hub peer: " + name.encode()).digest()


PLATFORM = SimulatedPlatform(secret("simulated platform"))
PCRS = {index: sha384(f"register {index}".encode()).digest() for index in range(3)}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an operator's engine gave. The text of a token is a word."""

    tokens: tuple[int, ...] = tuple(range(40, 61))
    state_root: bytes = sha256(b"state root").digest()
    finish_reason: FinishReason = "stop"

    @property
    def text(self) -> str:
        return _text(self.tokens)


def _text(tokens: tuple[int, ...]) -> str:
    return "".join(f"word{token} " for token in tokens)


class OperatorPeer:
    """One operator. ``deaf``: methods that it does not answer; ``silent``: what it answers and does nothing about.

    ``edit`` changes a statement (by class name) or the body of ``job_result`` just before it is signed or sent.
    """

    def __init__(self, name: str, *, job_type: JobType = "opml", model_id: bytes = MODEL_ID) -> None:
        self.name = name
        self.job_type: JobType = job_type
        self.model_id = model_id
        self.signer = secret(f"{name} signer")
        self.vrf_seed = secret(f"{name} vrf")
        self.node_id = address_of(self.signer)
        self.node = 0
        self.connected = True
        self.result = Result()
        self.deaf: set[str] = set()
        self.silent: set[str] = set()
        self.decline = False
        self.edit: dict[str, Callable[[Any], Any]] = {}
        self.court: CourtDomain | None = None
        self.refuse_dispatch: str | None = None
        self.received: list[tuple[str, dict[str, Any]]] = []
        self.refusals: list[tuple[str, str]] = []
        self.clock = VectorClock()
        self.booted: TeeBootEvidence | None = None
        self.module: Nsm | None = None
        self._made: dict[tuple[str, Key], Any] = {}
        self._runs: dict[Key, dict[str, Any]] = {}

    def registration(
        self, *, network: str, dispatcher: str, time_ms: int | None = None
    ) -> Signed[Registration]:
        """This operator's request to be registered, with proof of possession."""
        return sign(
            self.signer,
            Registration(
                network=network,
                dispatcher=dispatcher,
                node_id=self.node_id,
                vrf_key=ecvrf_public_key(self.vrf_seed),
                possession=prove_possession(self.vrf_seed, network=network, address=self.node_id),
                job_types=(self.job_type,),
                models=(self.model_id,),
                time=now_ms() if time_ms is None else time_ms,
            ),
        )

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.received)

    # --- statements, each made once

    def tick(self) -> dict[str, str]:
        self.clock = self.clock.tick(self.node)
        return self.clock.to_json()

    def once(self, kind: str, key: Key, make: Callable[[], Any]) -> Any:
        """The same statement again where it was made before, as a stored one is."""
        if (kind, key) not in self._made:
            value = make()
            edited = self.edit[type(value).__name__](value) if type(value).__name__ in self.edit else value
            self._made[kind, key] = sign(self.signer, edited)
        return self._made[kind, key]

    def made(self, kind: str, key: Key) -> Signed[Any]:
        """A statement that this operator has signed."""
        return self._made[kind, key]

    def claim(self, call: Signed[DrawCall]) -> dict[str, Any]:
        of = call.statement

        def make() -> VrfClaim:
            claim = draw.make_claim(call, node_id=self.node_id, vrf_seed=self.vrf_seed)
            return replace(claim, answer="decline", reason="capacity", pi=b"") if self.decline else claim

        return {"claim": self.once("claim", (of.job_ref, of.attempt), make).to_json()}

    def take(self, body: dict[str, Any]) -> Key:
        """Keep a dispatch. Raises RuleViolation where it is told to refuse."""
        if self.refuse_dispatch is not None:
            raise RuleViolation(self.refuse_dispatch, "this operator refuses the dispatch")
        key = (hashes.job_ref(body["job_id"]), body["attempt"])
        self._runs[key] = body
        return key

    def role(self, key: Key) -> str:
        return str(self._runs[key]["role"])

    def chunks(self, key: Key) -> list[dict[str, Any]]:
        tokens, made, previous = self.result.tokens, [], b""
        starts = range(0, max(len(tokens), 1), CHUNK_TOKENS)
        for index, start in enumerate(starts):
            part, final = tokens[start : start + CHUNK_TOKENS], start + CHUNK_TOKENS >= len(tokens)
            chunk = Chunk(
                network=self._call(key).network,
                node_id=self.node_id,
                job_ref=key[0],
                attempt=key[1],
                index=index,
                tokens=part,
                text=_text(part),
                previous=previous,
                final=final,
                finish_reason=self.result.finish_reason if final else "",
            )
            signed = self.once(f"chunk {index}", key, lambda chunk=chunk: chunk)
            previous = signed.hash
            made.append({"chunk": signed.to_json()})
        return made

    def commit(self, key: Key) -> dict[str, Any]:
        nonce = b64u_decode(self._runs[key]["nonce"])
        evidence = self.evidence(key)

        def make() -> Commit:
            return Commit(
                network=self._call(key).network,
                node_id=self.node_id,
                job_ref=key[0],
                attempt=key[1],
                draw_record=self._record(key).hash,
                commitment=hashes.commitment(
                    job_ref=key[0],
                    attempt=key[1],
                    node_id=self.node_id,
                    draw_record=self._record(key).hash,
                    result=self.result.state_root if evidence is None else hash_of(evidence.answer),
                    tokens_hash=hashes.tokens_hash(nonce, self.result.tokens),
                    salt=self.salt(key),
                ),
                clock=self.tick(),
            )

        return {"commit": self.once("commit", key, make).to_json()}

    def salt(self, key: Key) -> bytes:
        return secret(f"{self.name} salt {key[0].hex()} {key[1]}")

    def reveal(self, key: Key, body: dict[str, Any]) -> dict[str, Any]:
        evidence = self.evidence(key)
        commit_set = verify_signed(CommitSet, body["commit_set"], address=self._call(key).dispatcher)
        entry = decode(DrawEntry, body["entry"])
        signed = self.once("receipt", key, lambda: self._core(key, commit_set.hash, entry.status))
        revealed = {
            "receipt": encode(signed.statement),
            "signature": b64u_encode(signed.signature),
            "commit_salt": b64u_encode(self.salt(key)),
            "text": self.result.text,
            "tokens": list(self.result.tokens),
            "evidence": None if evidence is None else encode(evidence),
            "chain_claim": self.chain_claim(signed.statement),
        }
        return self.edit["job_result"](revealed) if "job_result" in self.edit else revealed

    def chain_claim(self, core: ReceiptCore, **changes: Any) -> Any:
        """The claim that goes with a receipt, where this operator knows a court."""
        if self.court is None or not core.state_root:
            return None
        claim = ChainClaim(
            claimant=self.node_id,
            receipt=hash_of(core),
            model_id=core.model_id,
            state_root=core.state_root,
            expires=now_ms() // 1_000 + 400_000,
        )
        return encode(sign_claim(self.signer, replace(claim, **changes), self.court))

    def _call(self, key: Key) -> DrawCall:
        return decode(DrawCall, self._runs[key]["draw_call"]["statement"])

    def _record(self, key: Key) -> Signed[DrawRecord]:
        return verify_signed(DrawRecord, self._runs[key]["draw_record"], address=self._call(key).dispatcher)

    def _request(self, key: Key) -> Request:
        return decode(Request, parse_canonical(self._runs[key]["request"].encode(), max_bytes=1 << 20))

    def _seed(self, key: Key) -> str:
        own = self._request(key).job.params.seed
        first = self._runs[key]["first_draw"] or self._runs[key]["draw_call"]
        return own or hashes.sampling_seed_from_draw(decode(DrawCall, first["statement"]).draw_seed)

    def _core(self, key: Key, commit_set: bytes, status: str) -> ReceiptCore:
        run, call, record, request = self._runs[key], self._call(key), self._record(key), self._request(key)
        nonce, evidence, result = b64u_decode(run["nonce"]), self.evidence(key), self.result
        pi = self._made["claim", key].statement.pi
        head = b""
        if run["role"] == "executor":
            head = hash_of(decode(Chunk, self.chunks(key)[-1]["chunk"]["statement"]))
        return ReceiptCore(
            network=call.network,
            dispatcher=call.dispatcher,
            operator=self.node_id,
            node=self.node,
            job_ref=key[0],
            attempt=key[1],
            role=run["role"],
            request_hash=hashes.request_hash(nonce, run["request"].encode()),
            response_hash=hashes.response_hash(nonce, result.text),
            tokens_hash=hashes.tokens_hash(nonce, result.tokens),
            prompt_tokens_hash=hashes.prompt_tokens_hash(nonce, PROMPT_TOKENS),
            model_id=request.job.model_id,
            params_hash=hashes.params_hash(nonce, request.job.params),
            sampling_seed=self._seed(key),
            seed_source="draw" if request.job.params.seed is None else "request",
            engine="peer-engine/1",
            n_prompt=len(PROMPT_TOKENS),
            n_out=len(result.tokens),
            finish_reason=result.finish_reason,
            state_root=result.state_root if evidence is None else b"",
            tee="" if evidence is None else "simulated",
            answer_statement=b"" if evidence is None else hash_of(evidence.answer),
            stream_head=head,
            vrf=ReceiptVrf(
                key=ecvrf_public_key(self.vrf_seed),
                alpha_hash=hashes.alpha_hash(draw.claim_alpha_of(call)),
                pi=pi,
                beta=ecvrf_proof_to_hash(pi),
                status="selected" if status == "selected" else "filled",
            ),
            draw_record=record.hash,
            draw_counts=record.statement.counts,
            commit_set=commit_set,
            clock=self.tick(),
            started_at=request.issued_at,
            finished_at=request.issued_at + 1_000,
        )

    def boot(
        self,
        challenge: dict[str, Any],
        *,
        network: str,
        platform: SimulatedPlatform = PLATFORM,
        pcrs: dict[int, bytes] | None = None,
        clock: Callable[[], int] | None = None,
        **changes: Any,
    ) -> TeeBootEvidence:
        """What this operator's SIMULATED enclave states under a challenge of the dispatcher's; ``changes`` are of its
        statement, before it is signed."""
        enclave, now = SigningKey(secret(f"{self.name} enclave")), now_ms()
        boot = TeeBoot(
            network=network,
            tee="simulated",
            operator=self.node_id,
            vrf_key=ecvrf_public_key(self.vrf_seed),
            enclave_key=bytes(enclave.verify_key),
            engine="peer-engine/1",
            engine_digest=sha256(b"peer engine").digest(),
            model_id=self.model_id,
            policy=b64u_decode(challenge["policy"]),
            nonce=b64u_decode(challenge["nonce"]),
            booted_at=now,
            not_after=now + 3_600_000,
        )
        boot = replace(boot, **changes)
        self.module = Nsm(
            SimulatedNsm(platform, pcrs=pcrs or PCRS, clock=clock or now_ms, enclave="51a1a7ed00000002")
        )
        self.booted = TeeBootEvidence(
            boot=boot,
            boot_signature=sign_enclave(enclave, boot),
            document=self.module.attest(
                user_data=hash_of(boot),
                nonce=boot.nonce,
                public_key=public_key_info(boot.enclave_key),
            ),
        )
        return self.booted

    def document(self, body: dict[str, Any]) -> TeeBootEvidence:
        """A document of now for the boot, or for the answer that the dispatcher names."""
        if self.booted is None or self.module is None:
            raise RuleViolation("enclave.not_booted", "there is no boot statement")
        answer = b64u_decode(body["answer"])
        document = self.module.attest(
            user_data=answer or hash_of(self.booted.boot),
            nonce=b64u_decode(body["nonce"]),
            public_key=public_key_info(self.booted.boot.enclave_key),
        )
        return replace(self.booted, document=document)

    def evidence(self, key: Key) -> TeeEvidence | None:
        """What this operator's SIMULATED enclave signs for the run; None for opML."""
        if self.job_type != "tee":
            return None
        run, request, result = self._runs[key], self._request(key), self.result
        nonce, enclave = b64u_decode(run["nonce"]), SigningKey(secret(f"{self.name} enclave"))
        booted = self.booted
        if booted is None:
            return None
        boot = booted.boot
        answer = TeeAnswer(
            boot=hash_of(boot),
            operator=self.node_id,
            sequence=1,
            previous=b"",
            job_ref=key[0],
            attempt=key[1],
            request_hash=hashes.request_hash(nonce, run["request"].encode()),
            response_hash=hashes.response_hash(nonce, result.text),
            tokens_hash=hashes.tokens_hash(nonce, result.tokens),
            prompt_tokens_hash=hashes.prompt_tokens_hash(nonce, PROMPT_TOKENS),
            model_id=request.job.model_id,
            params_hash=hashes.params_hash(nonce, request.job.params),
            sampling_seed=self._seed(key),
            engine="peer-engine/1",
            n_prompt=len(PROMPT_TOKENS),
            n_out=len(result.tokens),
            finish_reason=result.finish_reason,
            time=max(request.issued_at, boot.booted_at),
        )
        answer = self.edit["TeeAnswer"](answer) if "TeeAnswer" in self.edit else answer
        return TeeEvidence(
            boot=boot,
            boot_signature=booted.boot_signature,
            document=booted.document,
            answer=answer,
            answer_signature=sign_enclave(enclave, answer),
        )


class HubPeer:
    """The dispatcher's ``Hub``: every message between it and the operators goes through here, and is counted.

    With ``crash_at`` n the n-th message is the last before ``crashed`` is set: it reaches nobody, and nothing moves until
    ``attach`` names the next dispatcher. ``after`` puts the loss behind the message instead: it was handled, its answer is lost.
    """

    def __init__(self, *operators: OperatorPeer) -> None:
        self.operators = {operator.node_id: operator for operator in operators}
        self.messages = 0
        self.crash_at: int | None = None
        self.after = False
        self.crashed = asyncio.Event()
        self._attached = asyncio.Event()
        self._received = asyncio.Condition()
        self._handle: Handler | None = None
        self._clock: CausalClock | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._delivering: set[asyncio.Task[dict[str, Any]]] = set()
        self.delivered: list[tuple[str, str, object]] = []
        self._unfinished: dict[tuple[str, str, Key], asyncio.Task[None]] = {}

    def attach(self, handle: Handler, clock: CausalClock) -> None:
        """A dispatcher is there."""
        self._handle, self._clock = handle, clock
        self.crashed.clear()
        self._attached.set()

    def cut(self) -> None:
        """The dispatcher is going: nothing reaches it any more."""
        self._attached.clear()

    async def detach(self) -> None:
        """The dispatcher is gone: what is under way gets no answer."""
        self.cut()
        for task in list(self._delivering):
            task.cancel()
        await asyncio.gather(*self._delivering, return_exceptions=True)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def received(self, method: str) -> None:
        """Wait until an operator got such a request."""
        async with self._received:
            await self._received.wait_for(lambda: any(o.count(method) for o in self.operators.values()))

    # --- the Hub

    def connected(self) -> frozenset[str]:
        return frozenset(name for name, operator in self.operators.items() if operator.connected)

    async def request(self, node_id: str, method: str, body: dict[str, Any]) -> dict[str, Any]:
        operator = self.operators[node_id]
        if not operator.connected:
            raise Unavailable("link.closed", "the operator is not connected")
        lost = self._count()
        if lost and not self.after:
            await asyncio.Event().wait()
        assert self._clock is not None
        operator.received.append((method, body))
        async with self._received:
            self._received.notify_all()
        if method in operator.deaf:
            raise Unavailable("link.timeout", "no answer")
        # What the operator learns of the dispatcher's clock with the message.
        learned = (await self._clock.tick())[1]
        operator.clock = operator.clock.merge(VectorClock({1: learned}))
        if method == "tee_document":
            return encode(operator.document(body))  # type: ignore[no-any-return]
        self._react(operator, method, body)
        if lost:
            await asyncio.Event().wait()
        return {}

    def _count(self) -> bool:
        self.messages += 1
        if self.messages == self.crash_at:
            self._attached.clear()
            self.crashed.set()
            return True
        return False

    # --- the operators

    def _react(self, operator: OperatorPeer, method: str, body: dict[str, Any]) -> None:
        if method in operator.silent:
            return
        if method == "draw_call":
            call = verify_signed(
                DrawCall, body["draw_call"], address=body["draw_call"]["statement"]["dispatcher"]
            )
            key = (call.statement.job_ref, call.statement.attempt)
            self._begin(operator, "claim", key, self._claim(operator, call))
        elif method == "dispatch_job":
            key = operator.take(body)
            self._begin(operator, "work", key, self._work(operator, key))
        elif method == "commit_set":
            statement = body["commit_set"]["statement"]
            key = (b64u_decode(statement["job_ref"]), statement["attempt"])
            self._begin(operator, "reveal", key, self._reveal(operator, key, body))

    def _begin(self, operator: OperatorPeer, what: str, key: Key, work: Any) -> None:
        """One task for each thing to do; asked again while it is under way, nothing more is begun."""
        name = (operator.node_id, what, key)
        if name in self._unfinished:
            work.close()
            return
        task = asyncio.create_task(work)
        self._unfinished[name] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._unfinished.pop(name, None))

    async def _claim(self, operator: OperatorPeer, call: Signed[DrawCall]) -> None:
        await self.deliver(operator, "vrf_claim", operator.claim(call))

    async def _work(self, operator: OperatorPeer, key: Key) -> None:
        if operator.role(key) == "executor":
            for chunk in operator.chunks(key):
                if await self.deliver(operator, "stream_chunk", chunk) is None:
                    return
        if "job_commit" not in operator.silent:
            await self.deliver(operator, "job_commit", operator.commit(key))

    async def _reveal(self, operator: OperatorPeer, key: Key, body: dict[str, Any]) -> None:
        await self.deliver(operator, "job_result", operator.reveal(key, body))

    async def deliver(self, operator: OperatorPeer, method: str, body: object) -> dict[str, Any] | None:
        """Send until it is answered, as an outbox does; None where it is refused (``operator.refusals``)."""
        while True:
            await self._attached.wait()
            task = asyncio.create_task(self._once(operator, method, body))
            self._delivering.add(task)
            try:
                return await task
            except Unavailable:
                await asyncio.sleep(0)  # the store is away: an outbox keeps what it has, and sends it again
            except RuleViolation as error:
                operator.refusals.append((method, error.code))
                return None
            except Exception as error:
                code = getattr(error, "code", None)
                if code is None:
                    raise
                operator.refusals.append((method, code))
                return None
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is None or current.cancelling():
                    raise
            finally:
                self._delivering.discard(task)

    async def _once(self, operator: OperatorPeer, method: str, body: object) -> dict[str, Any]:
        lost = self._count()
        if lost and not self.after:
            await asyncio.Event().wait()
        assert self._handle is not None
        assert self._clock is not None
        clock = VectorClock.decode(operator.tick())
        facts = MessageFacts.of(
            sender=operator.node,
            incarnation=1,
            digest=sha256(repr((operator.node_id, clock)).encode()).digest(),
            clock=clock,
        )
        self._clock.observe(facts, relayed=False)
        answer = await self._handle(operator.node_id, method, body)
        self.delivered.append((operator.node_id, method, body))
        if lost:
            await asyncio.Event().wait()
        return answer
