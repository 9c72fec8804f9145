"""A whole run in memory, with real keys, real proofs and real signatures: what dispatcher and operators would have signed.

Five operators (four opML, one TEE in a SIMULATED enclave) and one dispatcher. ``Network.run`` returns an answer file's value;
``edit`` changes one statement just before its owner signs it, so that everything after it follows and only the lie remains.
Deterministic: keys and salts are hashes of names. Text and state roots stand for an engine's; nothing is inferred here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256, sha384
from typing import Any

from nacl.signing import SigningKey

from aos.adapters.nsm import Nsm
from aos.adapters.simulated_nsm import SimulatedNsm, SimulatedPlatform
from aos.core import draw, hashes
from aos.core.answer import Answer, CommitPart, Opening, Receipt, draw_part
from aos.core.beacon import beacon_anchor, beacon_at
from aos.core.clock import VectorClock
from aos.core.codec import encode
from aos.core.encoding import canonical_json
from aos.core.merkle import tree_root
from aos.core.signing import address_of
from aos.core.statements import (
    Acceptance,
    Commit,
    CommitSet,
    CommitSetEntry,
    Countersign,
    DrawCall,
    FinishReason,
    JobType,
    Params,
    Position,
    ReceiptCore,
    ReceiptVrf,
    Request,
    RequestJob,
    Signed,
    SnapshotEntry,
    Tag,
    VrfClaim,
    hash_of,
    sign,
)
from aos.core.tee import (
    TeeAnswer,
    TeeBoot,
    TeeEvidence,
    policy_digest,
    public_key_info,
    sign_enclave,
)
from aos.core.trust import (
    TeeMeasurement,
    Trust,
    TrustedBeacon,
    TrustedDispatcher,
    TrustedTeeRoot,
    tee_references,
)
from aos.core.vrf import ecvrf_public_key

GENESIS = 1_700_000_000_000
EPOCH_MS = 60_000
CHAIN = 64
MAX_RANGE = 1_000_000
MODEL = sha256(b"model").digest()
TEXT = "AI is software that does what we call thinking when people do it.\n"
TOKENS = tuple(range(40, 57))
PROMPT_TOKENS = (1, 77, 300, 12, 9)
STATE_ROOT = sha256(b"state root").digest()
PCRS = {index: sha384(f"register {index}".encode()).digest() for index in range(3)}

Edit = Mapping[str, Callable[[Any], Any]]


def secret(name: str) -> bytes:
    """32 bytes that only the party of this name would know."""
    return sha256(b"simulated run: " + name.encode()).digest()


@cache
def platform_of(name: str) -> SimulatedPlatform:
    """The SIMULATED platform of the network ``name``."""
    return SimulatedPlatform(secret(f"{name} simulated platform"))


def measured(pcrs: Mapping[int, bytes] = PCRS) -> TeeMeasurement:
    """A trust file's reference value for an image with these registers."""
    return TeeMeasurement(tee="simulated", pcr0=pcrs[0].hex(), pcr1=pcrs[1].hex(), pcr2=pcrs[2].hex())


@dataclass(frozen=True, slots=True, kw_only=True)
class Documented:
    """What the SIMULATED security module is asked to sign, and when."""

    user_data: bytes | None
    nonce: bytes | None
    public_key: bytes | None
    time: int
    pcrs: Mapping[int, bytes]
    platform: SimulatedPlatform

    def sign(self) -> bytes:
        module = SimulatedNsm(
            self.platform, pcrs=self.pcrs, clock=lambda: self.time, enclave="51a1a7ed00000001"
        )
        return Nsm(module).attest(user_data=self.user_data, nonce=self.nonce, public_key=self.public_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """An operator's keys and what it offers."""

    name: str
    job_type: JobType
    width: int = 200_000

    @property
    def key(self) -> bytes:
        return secret(f"{self.name} signer")

    @property
    def vrf_seed(self) -> bytes:
        return secret(f"{self.name} vrf")

    @property
    def node_id(self) -> str:
        return address_of(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one operator's engine gave."""

    text: str = TEXT
    tokens: tuple[int, ...] = TOKENS
    prompt_tokens: tuple[int, ...] = PROMPT_TOKENS
    state_root: bytes = STATE_ROOT
    finish_reason: FinishReason = "stop"


def demo_operators() -> tuple[Operator, ...]:
    return (
        *(Operator(name=f"opml-{n}", job_type="opml") for n in range(4)),
        Operator(name="tee-0", job_type="tee"),
    )


def params(**changes: Any) -> Params:
    values: dict[str, Any] = {
        "temperature": 1_000_000,
        "top_p": 500_000,
        "top_k": 0,
        "min_p": 0,
        "repeat_penalty": 1_000_000,
        "max_tokens": 256,
        "stop": (),
        "seed": None,
    }
    return Params(**(values | changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A dispatcher and its operators. ``since`` gives an operator another ``since_epoch`` than genesis."""

    name: str = "simulated"
    operators: tuple[Operator, ...] = field(default_factory=demo_operators)
    since: Mapping[str, int] = field(default_factory=dict)
    model_id: bytes = MODEL

    @property
    def key(self) -> bytes:
        return secret(f"{self.name} dispatcher signer")

    @property
    def vrf_seed(self) -> bytes:
        return secret(f"{self.name} dispatcher vrf")

    @property
    def dispatcher(self) -> str:
        return address_of(self.key)

    @property
    def platform(self) -> SimulatedPlatform:
        return platform_of(self.name)

    @property
    def tee_roots(self) -> tuple[TrustedTeeRoot, ...]:
        return (TrustedTeeRoot(tee="simulated", root=self.platform.root),)

    def by_id(self, node_id: str) -> Operator:
        return next(operator for operator in self.operators if operator.node_id == node_id)

    def snapshot(self) -> tuple[SnapshotEntry, ...]:
        """The registry, by node_id ascending, each with the next range of its width."""
        entries, start = [], 0
        for index, operator in enumerate(sorted(self.operators, key=lambda o: o.node_id)):
            entries.append(
                SnapshotEntry(
                    node_id=operator.node_id,
                    node=2 + index,
                    vrf_key=ecvrf_public_key(operator.vrf_seed),
                    start=start,
                    end=start + operator.width,
                    stake=0,
                    job_types=(operator.job_type,),
                    models=(self.model_id,),
                    since_epoch=self.since.get(operator.name, 0),
                )
            )
            start += operator.width
        return tuple(entries)

    @property
    def root(self) -> bytes:
        """What D signs as the snapshot's root, whether or not the rules allow that snapshot."""
        leaves = [draw.snapshot_leaf(entry) for entry in self.snapshot()]
        return draw.snapshot_root_of_tree(self.name, MAX_RANGE, len(leaves), tree_root(leaves))

    def trust(self, policy: str = "dev") -> Trust:
        return Trust(
            network=self.name,
            dispatchers=(
                TrustedDispatcher(address=self.dispatcher, vrf_key=ecvrf_public_key(self.vrf_seed)),
            ),
            genesis=GENESIS,
            epoch_ms=EPOCH_MS,
            beacon=TrustedBeacon(anchor=beacon_anchor(secret("beacon"), CHAIN), length=CHAIN),
            registry_roots=(self.root,),
            tee_roots=self.tee_roots,
            tee_measurements=(measured(),),
            policy=policy,
        )

    def run(
        self,
        *,
        job: str = "job 1",
        job_type: JobType = "opml",
        min_operators: int = 3,
        attempt: int = 1,
        tag: Tag = "",
        position: Position = "",
        blind: bool = False,
        prompt: str = "What is AI?",
        sampling: Params | None = None,
        epoch: int = 3,
        results: Mapping[str, Result] | None = None,
        silent: Sequence[str] = (),
        edit: Edit | None = None,
    ) -> Answer:
        """One run, from request to countersigned receipts.

        ``results`` gives an operator (by name) another result; ``silent`` operators do not answer the draw.
        """
        edits = {} if edit is None else edit

        def made(name: str, statement: Any) -> Any:
            return edits[name](statement) if name in edits else statement

        run = _Run(network=self, made=made)
        asked = min_operators if job_type == "opml" else 1
        return run.answer(
            job=job,
            job_type=job_type,
            min_operators=asked,
            attempt=attempt,
            tag=tag,
            position=position,
            blind=blind,
            prompt=prompt,
            sampling=params() if sampling is None else sampling,
            epoch=epoch,
            results=results or {},
            silent=silent,
        )


class _Run:
    """The parties' work, one statement after the other; clocks are merged and ticked as messages would."""

    def __init__(self, *, network: Network, made: Callable[[str, Any], Any]) -> None:
        self.network = network
        self.made = made
        self.clocks: dict[int, VectorClock] = {}

    def tick(self, node: int, *heard: int) -> dict[str, str]:
        clock = self.clocks.get(node, VectorClock())
        for other in heard:
            clock = clock.merge(self.clocks.get(other, VectorClock()))
        self.clocks[node] = clock.tick(node)
        return self.clocks[node].to_json()

    def by_dispatcher(self, name: str, statement: Any) -> Signed[Any]:
        return sign(self.network.key, self.made(name, statement))

    def answer(
        self,
        *,
        job: str,
        job_type: JobType,
        min_operators: int,
        attempt: int,
        tag: Tag,
        position: Position,
        blind: bool,
        prompt: str,
        sampling: Params,
        epoch: int,
        results: Mapping[str, Result],
        silent: Sequence[str],
    ) -> Answer:
        network, made = self.network, self.made
        nonce = secret(f"{job} nonce")
        issued_at = GENESIS + epoch * EPOCH_MS + 1_000
        # --- submission
        request = made(
            "request",
            Request(
                network=network.name,
                dispatcher=network.dispatcher,
                project="demo",
                user="someone",
                job=RequestJob(
                    tag=job_type, prompt=prompt, model="demo.gguf", model_id=network.model_id, params=sampling
                ),
                min_operators=min_operators,
                blind=blind,
                nonce_source="client",
                issued_at=issued_at,
            ),
        )
        request_bytes = canonical_json(encode(request))
        request_hash = hashes.request_hash(nonce, request_bytes)
        job_id = hashes.job_id(
            network=network.name,
            dispatcher=network.dispatcher,
            request_hash=request_hash,
            issued_at=issued_at,
            secret=secret(f"{job} secret"),
        )
        job_ref = hashes.job_ref(job_id)
        acceptance = self.by_dispatcher(
            "acceptance",
            Acceptance(
                network=network.name,
                dispatcher=network.dispatcher,
                job_ref=job_ref,
                request_hash=request_hash,
                nonce=nonce,
                tag=tag if position == "" else "",
                epoch=epoch,
                expires_at=issued_at + 600_000,
                issued_at=issued_at,
                clock=self.tick(1),
            ),
        )
        # --- draw
        opened = draw.OpenedTag(salt=secret(f"{job} tag salt"), tag=tag, position=position)
        first = None
        if attempt > 1:
            first = self.by_dispatcher(
                "first_draw", self.draw_call(job_ref, job_type, 1, epoch, opened, issued_at)
            )
        call = self.by_dispatcher(
            "draw_call",
            self.draw_call(job_ref, job_type, attempt, epoch + (1 if attempt > 1 else 0), opened, issued_at),
        )
        operators = network.snapshot()
        signed_claims: dict[str, Signed[VrfClaim]] = {}
        verified: dict[str, draw.VerifiedClaim] = {}
        for entry in operators:
            operator = network.by_id(entry.node_id)
            offered = draw.eligible(
                entry, job_type=job_type, model_id=network.model_id, epoch=call.statement.epoch
            )
            if not offered or operator.name in silent:
                continue
            self.tick(entry.node, 1)
            claim = made("claim", draw.make_claim(call, node_id=entry.node_id, vrf_seed=operator.vrf_seed))
            signed_claims[entry.node_id] = sign(operator.key, claim)
            verified[entry.node_id] = draw.verify_claim(
                signed_claims[entry.node_id], call=call, operator=entry
            )
        record_value, entries = draw.build_draw_record(
            call=call,
            max_range=MAX_RANGE,
            operators=operators,
            claims=verified,
            opened=opened,
            min_operators=min_operators,
            clock=self.tick(1, *(entry.node for entry in operators)),
        )
        record = self.by_dispatcher("draw_record", record_value)
        # --- execution and commit
        nodes = {entry.node_id: entry.node for entry in operators}
        seats = record.statement.seats
        drawn_seed = hashes.sampling_seed_from_draw((first or call).statement.draw_seed)
        sampling_seed = drawn_seed if sampling.seed is None else sampling.seed
        held: dict[str, Result] = {}
        evidence: dict[str, TeeEvidence] = {}
        openings: dict[str, Opening] = {}
        for node_id in seats:
            operator = network.by_id(node_id)
            result = results.get(operator.name, Result())
            held[node_id] = result
            if job_type == "tee":
                evidence[node_id] = self.enclave_answer(
                    operator, result, request, request_bytes, nonce, job_ref, attempt, sampling_seed
                )
            salt = secret(f"{job} {operator.name} commit salt")
            commit = Commit(
                network=network.name,
                node_id=node_id,
                job_ref=job_ref,
                attempt=attempt,
                draw_record=record.hash,
                commitment=hashes.commitment(
                    job_ref=job_ref,
                    attempt=attempt,
                    node_id=node_id,
                    draw_record=record.hash,
                    result=hash_of(evidence[node_id].answer) if job_type == "tee" else result.state_root,
                    tokens_hash=hashes.tokens_hash(nonce, result.tokens),
                    salt=salt,
                ),
                clock=self.tick(nodes[node_id], 1),
            )
            openings[node_id] = Opening(commit=sign(operator.key, made("commit", commit)), salt=salt)
        commit_set = self.by_dispatcher(
            "commit_set",
            CommitSet(
                network=network.name,
                dispatcher=network.dispatcher,
                job_ref=job_ref,
                attempt=attempt,
                draw_record=record.hash,
                commits=tuple(
                    CommitSetEntry(node_id=node_id, commit=openings[node_id].commit.hash)
                    for node_id in sorted(seats)
                ),
                missing=(),
                clock=self.tick(1, *(nodes[node_id] for node_id in seats)),
            ),
        )
        # --- reveal
        alpha = hashes.alpha_hash(draw.claim_alpha_of(call.statement))
        statuses = {entry.node_id: entry.status for entry in entries}
        cores: dict[str, Signed[ReceiptCore]] = {}
        for index, node_id in enumerate(seats):
            operator, result = network.by_id(node_id), held[node_id]
            role = "blind" if blind else "executor" if index == 0 else "checker"
            enclave = evidence.get(node_id)
            core = ReceiptCore(
                network=network.name,
                dispatcher=network.dispatcher,
                operator=node_id,
                node=nodes[node_id],
                job_ref=job_ref,
                attempt=attempt,
                role=role,  # type: ignore[arg-type]
                request_hash=request_hash,
                response_hash=hashes.response_hash(nonce, result.text),
                tokens_hash=hashes.tokens_hash(nonce, result.tokens),
                prompt_tokens_hash=hashes.prompt_tokens_hash(nonce, result.prompt_tokens),
                model_id=network.model_id,
                params_hash=hashes.params_hash(nonce, request.job.params),
                sampling_seed=sampling_seed,
                seed_source="draw" if sampling.seed is None else "request",
                engine="simulated-engine/1" if enclave else "aos-canonical/1",
                n_prompt=len(result.prompt_tokens),
                n_out=len(result.tokens),
                finish_reason=result.finish_reason,
                state_root=b"" if enclave else result.state_root,
                tee="simulated" if enclave else "",
                answer_statement=hash_of(enclave.answer) if enclave else b"",
                stream_head=secret(f"{job} stream head") if role == "executor" else b"",
                vrf=ReceiptVrf(
                    key=ecvrf_public_key(operator.vrf_seed),
                    alpha_hash=alpha,
                    pi=signed_claims[node_id].statement.pi,
                    beta=verified[node_id].beta,
                    status="selected" if statuses[node_id] == "selected" else "filled",
                ),
                draw_record=record.hash,
                draw_counts=record.statement.counts,
                commit_set=commit_set.hash,
                clock=self.tick(nodes[node_id], 1),
                started_at=issued_at + 2_000,
                finished_at=issued_at + 9_000,
            )
            cores[node_id] = sign(operator.key, made("core" if index == 0 else "peer_core", core))
        # --- countersign
        roots = {held[node_id].state_root for node_id in seats}
        compared = job_type == "opml" and len(seats) > 1
        outcome = "single" if not compared else "agreed" if len(roots) == 1 else "disputed"
        receipts = []
        for node_id in seats:
            core_signed = cores[node_id]
            countersign = self.by_dispatcher(
                "countersign",
                Countersign(
                    network=network.name,
                    dispatcher=network.dispatcher,
                    receipt=core_signed.hash,
                    receipt_signature=sha256(core_signed.signature).digest(),
                    draw_record=record.hash,
                    commit_set=commit_set.hash,
                    tag=tag,
                    position=position,
                    tag_salt=opened.salt,
                    outcome=outcome,  # type: ignore[arg-type]
                    received_at=issued_at + 10_000,
                    clock=self.tick(1, *(nodes[n] for n in seats)),
                ),
            )
            receipts.append(
                Receipt(
                    core=core_signed.statement,
                    signature=core_signed.signature,
                    countersign=countersign.statement,
                    countersign_signature=countersign.signature,
                )
            )
        return Answer(
            receipt=receipts[0],
            peers=tuple(receipts[1:]),
            request=request_bytes.decode(),
            nonce=nonce,
            text=held[seats[0]].text,
            tokens=held[seats[0]].tokens,
            acceptance=acceptance,
            draw=draw_part(
                draw_call=call,
                draw_record=record,
                first_draw=first,
                max_range=MAX_RANGE,
                operators=operators,
                entries=entries,
                claims=signed_claims,
            ),
            commit=CommitPart(
                commit_set=commit_set, openings=tuple(openings[node_id] for node_id in sorted(seats))
            ),
            evidence=evidence.get(seats[0]),
        )

    def draw_call(
        self,
        job_ref: bytes,
        job_type: JobType,
        attempt: int,
        epoch: int,
        opened: draw.OpenedTag,
        issued_at: int,
    ) -> DrawCall:
        network = self.network
        beacon = beacon_at(secret("beacon"), CHAIN, epoch)
        seed, proof = draw.make_draw_seed(
            network.vrf_seed,
            network=network.name,
            job_ref=job_ref,
            attempt=attempt,
            beacon=beacon,
            snapshot_root=network.root,
        )
        return DrawCall(
            network=network.name,
            dispatcher=network.dispatcher,
            job_ref=job_ref,
            attempt=attempt,
            epoch=epoch,
            snapshot_root=network.root,
            beacon=beacon,
            beacon_source="dispatcher",
            draw_seed=seed,
            draw_proof=proof,
            job_type=job_type,
            model_id=network.model_id,
            tag_commitment=opened.commitment(),
            deadline=issued_at + 5_000,
            clock=self.tick(1),
        )

    def enclave_answer(
        self,
        operator: Operator,
        result: Result,
        request: Request,
        request_bytes: bytes,
        nonce: bytes,
        job_ref: bytes,
        attempt: int,
        sampling_seed: str,
    ) -> TeeEvidence:
        """What a SIMULATED enclave would sign for this answer."""
        network, made = self.network, self.made
        key = SigningKey(secret(f"{operator.name} enclave"))
        booted_at = request.issued_at - 30_000
        boot = made(
            "boot",
            TeeBoot(
                network=network.name,
                tee="simulated",
                operator=operator.node_id,
                vrf_key=ecvrf_public_key(operator.vrf_seed),
                enclave_key=bytes(key.verify_key),
                engine="simulated-engine/1",
                engine_digest=sha256(b"engine").digest(),
                model_id=network.model_id,
                policy=policy_digest(tee_references(network.tee_roots, (measured(),))),
                nonce=secret(f"{operator.name} boot nonce"),
                booted_at=booted_at,
                not_after=booted_at + 3_600_000,
            ),
        )
        document = made(
            "document",
            Documented(
                user_data=hash_of(boot),
                nonce=boot.nonce,
                public_key=public_key_info(boot.enclave_key),
                time=booted_at,
                pcrs=PCRS,
                platform=network.platform,
            ),
        )
        statement = made(
            "enclave_answer",
            TeeAnswer(
                boot=hash_of(boot),
                operator=operator.node_id,
                sequence=1,
                previous=b"",
                job_ref=job_ref,
                attempt=attempt,
                request_hash=hashes.request_hash(nonce, request_bytes),
                response_hash=hashes.response_hash(nonce, result.text),
                tokens_hash=hashes.tokens_hash(nonce, result.tokens),
                prompt_tokens_hash=hashes.prompt_tokens_hash(nonce, result.prompt_tokens),
                model_id=network.model_id,
                params_hash=hashes.params_hash(nonce, request.job.params),
                sampling_seed=sampling_seed,
                engine="simulated-engine/1",
                n_prompt=len(result.prompt_tokens),
                n_out=len(result.tokens),
                finish_reason=result.finish_reason,
                time=request.issued_at + 8_000,
            ),
        )
        return TeeEvidence(
            boot=boot,
            boot_signature=sign_enclave(key, boot),
            document=document.sign(),
            answer=statement,
            answer_signature=sign_enclave(key, statement),
        )


def resign_core(answer: Answer, network: Network, signer: bytes, **changes: Any) -> Answer:
    """The answer with its core changed and signed by ``signer``, and countersigned again by the dispatcher."""
    core = sign(signer, replace(answer.receipt.core, **changes))
    countersign = sign(
        network.key,
        replace(
            answer.receipt.countersign,
            receipt=core.hash,
            receipt_signature=sha256(core.signature).digest(),
        ),
    )
    receipt = Receipt(
        core=core.statement,
        signature=core.signature,
        countersign=countersign.statement,
        countersign_signature=countersign.signature,
    )
    return replace(answer, receipt=receipt)
