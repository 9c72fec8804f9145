"""Lies that are signed: an honest answer file, stated anew by parties whose keys the attacker holds.

``restate`` takes a genuine file and makes every statement of its run again from the draw call on, each one bent before its party
signs it, so that every hash and signature downstream holds and nothing but the lie is wrong. Without a bend the new file is
VERIFIED: that is the twin of every attack made here.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal

from nacl.signing import SigningKey

from aos.adapters.nsm import Nsm
from aos.adapters.simulated_nsm import SimulatedNsm, SimulatedPlatform
from aos.attack.live import Live, Stolen
from aos.core import draw, hashes
from aos.core.answer import Answer, CommitPart, Opening, Receipt, draw_part
from aos.core.attest import cbor
from aos.core.codec import decode
from aos.core.encoding import parse_canonical
from aos.core.statements import (
    Acceptance,
    Commit,
    CommitSetEntry,
    DrawCall,
    ReceiptCore,
    ReceiptVrf,
    Request,
    Signed,
    hash_of,
    sign,
)
from aos.core.tee import TeeEvidence, public_key_info, sign_enclave
from aos.core.vrf import ecvrf_proof_to_hash, ecvrf_public_key

Role = Literal["executor", "checker", "blind"]
Bends = Mapping[str, Callable[[Any], Any]]
"""By statement: acceptance, draw_call, draw_record, claim, commit, commit_set, core (the first seat's), peer_core, countersign."""


def request_of(answer: Answer) -> Request:
    return decode(Request, parse_canonical(answer.request.encode(), max_bytes=1 << 20))


@dataclass(slots=True, kw_only=True)
class _Teller:
    live: Live
    answer: Answer
    bends: Bends

    def bent(self, name: str, statement: Any) -> Any:
        return self.bends[name](statement) if name in self.bends else statement

    def by_dispatcher(self, name: str, statement: Any) -> Signed[Any]:
        return sign(self.live.dispatcher_keys.signer, self.bent(name, statement))

    def keys(self, node_id: str) -> Stolen:
        return self.live.operators[node_id]


def reseeded(
    live: Live, change: Callable[[DrawCall], DrawCall] = lambda call: call
) -> Callable[[DrawCall], DrawCall]:
    """Bends a draw call's inputs, and gives it the seed that the dispatcher's own VRF key gives for them."""

    def bend(call: DrawCall) -> DrawCall:
        call = change(call)
        seed, proof = draw.make_draw_seed(
            live.dispatcher_keys.vrf,
            network=call.network,
            job_ref=call.job_ref,
            attempt=call.attempt,
            beacon=call.beacon,
            snapshot_root=call.snapshot_root,
        )
        return replace(call, draw_seed=seed, draw_proof=proof)

    return bend


def restate(
    live: Live,
    answer: Answer,
    *,
    evidence: TeeEvidence | None = None,
    tokens: tuple[int, ...] | None = None,
    **bends: Callable[[Any], Any],
) -> Answer:
    """The same run, told again. ``evidence`` and ``tokens`` take the place of the file's own.

    The answer must hold the whole draw. Every seat states the first one's result.
    """
    teller = _Teller(live=live, answer=answer, bends=bends)
    first, nonce = answer.receipt, answer.nonce
    tokens = answer.tokens if tokens is None else tokens
    evidence = answer.evidence if evidence is None else evidence
    acceptance: Signed[Acceptance] = teller.by_dispatcher("acceptance", answer.acceptance.statement)
    call: Signed[DrawCall] = teller.by_dispatcher("draw_call", answer.draw.draw_call.statement)
    told = first.countersign
    opened = draw.OpenedTag(salt=told.tag_salt, tag=told.tag, position=told.position)
    operators = [drawn.operator for drawn in answer.draw.entries]
    claims, verified = {}, {}
    for drawn in answer.draw.entries:
        node_id = drawn.operator.node_id
        if drawn.claim is not None and drawn.claim.statement.answer == "claim":
            keys = teller.keys(node_id)
            honest = draw.make_claim(call, node_id=node_id, vrf_seed=keys.vrf)
            claims[node_id] = sign(keys.signer, teller.bent("claim", honest))
            signed = sign(keys.signer, honest)
            verified[node_id] = replace(
                draw.verify_claim(signed, call=call, operator=drawn.operator), claim=claims[node_id]
            )
    record_value, entries = draw.build_draw_record(
        call=call,
        max_range=answer.draw.max_range,
        operators=operators,
        claims=verified,
        opened=opened,
        min_operators=answer.draw.draw_record.statement.min_operators,
        clock=answer.draw.draw_record.statement.clock,
    )
    record = teller.by_dispatcher("draw_record", record_value)
    seats = record.statement.seats
    numbers = {operator.node_id: operator.node for operator in operators}
    held = {receipt.core.operator: receipt for receipt in (answer.receipt, *answer.peers)}
    openings = {o.commit.statement.node_id: o for o in answer.commit.openings}
    result = hash_of(evidence.answer) if evidence is not None else first.core.state_root

    # --- commit
    made: dict[str, Opening] = {}
    for node_id in seats:
        template = (openings.get(node_id) or answer.commit.openings[0]).commit.statement
        salt = secrets.token_bytes(32)
        commit = replace(
            template,
            node_id=node_id,
            draw_record=record.hash,
            commitment=hashes.commitment(
                job_ref=template.job_ref,
                attempt=template.attempt,
                node_id=node_id,
                draw_record=record.hash,
                result=result,
                tokens_hash=hashes.tokens_hash(nonce, tokens),
                salt=salt,
            ),
            clock=_as_node(template.clock, template.node_id, node_id, numbers),
        )
        bent: Commit = teller.bent("commit", commit)
        made[node_id] = Opening(commit=sign(teller.keys(node_id).signer, bent), salt=salt)
    commit_set = teller.by_dispatcher(
        "commit_set",
        replace(
            answer.commit.commit_set.statement,
            draw_record=record.hash,
            commits=tuple(
                CommitSetEntry(node_id=node_id, commit=made[node_id].commit.hash) for node_id in sorted(seats)
            ),
            missing=(),
        ),
    )

    # --- receipts
    statuses = {entry.node_id: entry.status for entry in entries}
    blind = request_of(answer).blind or first.core.role == "blind"
    receipts = []
    for index, node_id in enumerate(seats):
        keys, source = teller.keys(node_id), held.get(node_id, first)
        pi = claims[node_id].statement.pi
        role: Role = "blind" if blind else "executor" if index == 0 else "checker"
        core = replace(
            first.core,
            operator=node_id,
            node=numbers[node_id],
            role=role,
            tokens_hash=hashes.tokens_hash(nonce, tokens),
            n_out=len(tokens),
            answer_statement=result if evidence is not None else b"",
            stream_head=_head(answer, role),
            sampling_seed=first.core.sampling_seed
            if first.core.seed_source == "request"
            else hashes.sampling_seed_from_draw(call.statement.draw_seed),
            vrf=ReceiptVrf(
                key=ecvrf_public_key(keys.vrf),
                alpha_hash=hashes.alpha_hash(draw.claim_alpha_of(call.statement)),
                pi=pi,
                beta=ecvrf_proof_to_hash(pi),
                status="selected" if statuses[node_id] == "selected" else "filled",
            ),
            draw_record=record.hash,
            draw_counts=record.statement.counts,
            commit_set=commit_set.hash,
            clock=_as_node(source.core.clock, source.core.operator, node_id, numbers),
        )
        core = teller.bent("core" if index == 0 else "peer_core", core)
        receipts.append(_countersigned(teller, source, core, keys.signer, record.hash, commit_set.hash))
    return replace(
        answer,
        log=None,
        receipt=receipts[0],
        peers=tuple(receipts[1:]),
        tokens=tokens,
        acceptance=acceptance,
        draw=draw_part(
            draw_call=call,
            draw_record=record,
            first_draw=None,
            max_range=answer.draw.max_range,
            operators=operators,
            entries=entries,
            claims=claims,
        ),
        commit=CommitPart(commit_set=commit_set, openings=tuple(made[node_id] for node_id in sorted(seats))),
        evidence=evidence,
    )


def countersigned_again(live: Live, answer: Answer, bend: Callable[[Any], Any]) -> Answer:
    """Every countersign bent and signed again by the dispatcher; nothing else changes."""

    def again(receipt: Receipt) -> Receipt:
        told = sign(live.dispatcher_keys.signer, bend(receipt.countersign))
        return replace(receipt, countersign=told.statement, countersign_signature=told.signature)

    return replace(answer, receipt=again(answer.receipt), peers=tuple(again(peer) for peer in answer.peers))


def _countersigned(
    teller: _Teller, source: Receipt, core: ReceiptCore, signer: bytes, record: bytes, commit_set: bytes
) -> Receipt:
    signed = sign(signer, core)
    countersign = teller.by_dispatcher(
        "countersign",
        replace(
            source.countersign,
            receipt=signed.hash,
            receipt_signature=sha256(signed.signature).digest(),
            draw_record=record,
            commit_set=commit_set,
        ),
    )
    return Receipt(
        core=signed.statement,
        signature=signed.signature,
        countersign=countersign.statement,
        countersign_signature=countersign.signature,
    )


def _head(answer: Answer, role: str) -> bytes:
    """The stream head of a role: the honest executor's own, for whoever executes now."""
    if role != "executor":
        return b""
    return next(
        (r.core.stream_head for r in (answer.receipt, *answer.peers) if r.core.stream_head), bytes(32)
    )


def _as_node(clock: Mapping[str, str], was: str, node_id: str, numbers: Mapping[str, int]) -> dict[str, str]:
    """A clock with one operator's own entry as another's."""
    own, other = str(numbers[was]), str(numbers[node_id])
    moved = dict(clock)
    moved[own], moved[other] = clock.get(other, "1"), clock.get(own, "1")
    return {node: moved[node] for node in sorted(moved, key=int)}


def resigned(live: Live, answer: Answer, signer: bytes, **changes: Any) -> Answer:
    """The first receipt's core changed, signed by ``signer``, and countersigned again by the dispatcher."""
    teller = _Teller(live=live, answer=answer, bends={})
    core = replace(answer.receipt.core, **changes)
    receipt = _countersigned(
        teller,
        answer.receipt,
        core,
        signer,
        answer.receipt.countersign.draw_record,
        answer.receipt.countersign.commit_set,
    )
    # A dispatcher that signs this has not logged it: the old place would be another receipt's.
    return replace(answer, receipt=receipt, log=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """What a SIMULATED platform is told to sign in a document, and when. Unsigned: as an emulator makes it."""

    user_data: bytes
    nonce: bytes
    public_key: bytes
    pcrs: Mapping[int, bytes]
    time: int
    unsigned: bool = False

    def signed_by(self, platform: SimulatedPlatform) -> bytes:
        module = Nsm(SimulatedNsm(platform, pcrs=self.pcrs, clock=lambda: self.time))
        made = module.attest(user_data=self.user_data, nonce=self.nonce, public_key=self.public_key)
        return made[:-96] + bytes(96) if self.unsigned else made


def _image_of(document: bytes) -> dict[int, bytes]:
    """PCR0, PCR1 and PCR2 of a genuine document."""
    envelope: Any = cbor.decode(document)
    payload: Any = cbor.decode(envelope[2], indefinite_maps=True)
    return {index: payload["pcrs"][index] for index in range(3)}


def reattested(
    evidence: TeeEvidence,
    platform: SimulatedPlatform,
    *,
    boot: Callable[[Any], Any] = lambda value: value,
    document: Callable[[Paper], Paper] = lambda value: value,
    answer: Callable[[Any], Any] = lambda value: value,
) -> TeeEvidence:
    """Evidence of another SIMULATED enclave for the same answer: its own key, ``platform``'s document, each bent, then signed."""
    key = SigningKey.generate()
    booted = boot(replace(evidence.boot, enclave_key=bytes(key.verify_key)))
    paper = document(
        Paper(
            user_data=hash_of(booted),
            nonce=booted.nonce,
            public_key=public_key_info(booted.enclave_key),
            pcrs=_image_of(evidence.document),
            time=booted.booted_at,
        )
    )
    told = answer(replace(evidence.answer, boot=hash_of(booted), sequence=1, previous=b""))
    return TeeEvidence(
        boot=booted,
        boot_signature=sign_enclave(key, booted),
        document=paper.signed_by(platform),
        answer=told,
        answer_signature=sign_enclave(key, told),
    )
