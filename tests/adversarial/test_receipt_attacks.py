"""Attacks on an answer file, each refused for its own reason; and no check that could be left out.

Most attackers here hold real keys: the operator's, another operator's, or the dispatcher's. What a lie needs to be signed is
signed, so that only the check named beside the attack stands in its way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import pytest
from logged_run import WITNESSES, TestLog, cosign
from simulated_run import (
    EPOCH_MS,
    GENESIS,
    MODEL,
    PCRS,
    PROMPT_TOKENS,
    STATE_ROOT,
    TEXT,
    TOKENS,
    Network,
    Operator,
    Result,
    params,
    resign_core,
    secret,
)

from aos.core import draw, receipt
from aos.core.answer import Answer, seated_only, write_answer
from aos.core.dispute.court import Resolution, ResolvedClaim
from aos.core.hashes import sampling_seed_from_draw
from aos.core.log.checkpoint import log_key, with_signatures
from aos.core.receipt import Replay, Replayed, verify_answer
from aos.core.report import Check, Report
from aos.core.signing import CURVE_ORDER
from aos.core.sortition import seat_order
from aos.core.statements import CommitSetEntry, DrawCall, DrawRecord, Signed, hash_of, sign
from aos.core.tee import public_key_info
from aos.core.trust import Policy, Trust, TrustedTeeRoot, load_policy
from aos.errors import InvalidMessage

NETWORK = Network()
STRANGER = secret("a stranger's key")
LOG = TestLog(NETWORK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A file and what the verifier was given; ``check`` must stop it, with ``code`` (empty: by not passing)."""

    name: str
    check: str
    code: str
    answer: Callable[[], Answer]
    trust: Callable[[], Trust] = NETWORK.trust
    policy: str = "dev"
    replay: Replay | None = None


def run(**options: Any) -> Callable[[], Answer]:
    return lambda: NETWORK.run(**options)


def single(**edit: Callable[[Any], Any]) -> Callable[[], Answer]:
    """One operator alone, with its or the dispatcher's statement changed before it was signed."""
    return run(min_operators=1, edit=edit)


def with_core(**changes: Any) -> Callable[[], Answer]:
    return single(core=lambda core: replace(core, **changes))


def key_of(answer: Answer) -> bytes:
    return NETWORK.by_id(answer.receipt.core.operator).key


def another(answer: Answer) -> Operator:
    """An opML operator without the answer's first seat."""
    first = answer.receipt.core.operator
    return next(o for o in NETWORK.operators if o.job_type == "opml" and o.node_id != first)


def spliced(member: str) -> Callable[[], Answer]:
    """Job 1's answer with one member of job 2's."""

    def make() -> Answer:
        other = NETWORK.run(job="job 2", prompt="Is this another question?")
        return replace(NETWORK.run(), **{member: getattr(other, member)})

    return make


def signed_by_stranger() -> Answer:
    answer = NETWORK.run(min_operators=1)
    return resign_core(answer, NETWORK, STRANGER)


def resigned_by_another() -> Answer:
    """A's receipt, stated and signed by B."""
    answer = NETWORK.run(min_operators=1)
    other = another(answer)
    entry = next(e for e in NETWORK.snapshot() if e.node_id == other.node_id)
    return resign_core(answer, NETWORK, other.key, operator=other.node_id, node=entry.node)


def logged(**options: Any) -> Callable[[], Answer]:
    return lambda: LOG.logged(NETWORK.run(), **options)


def logged_before_it_was_changed() -> Answer:
    """The dispatcher logged one receipt and shows another, signed as well."""
    part = LOG.logged(
        NETWORK.run(edit={"countersign": lambda sign: replace(sign, received_at=sign.received_at + 1)})
    )
    return replace(NETWORK.run(), log=part.log)


def acceptance_of_another() -> Answer:
    other = LOG.logged(replace(NETWORK.run(), acceptance=NETWORK.run(job="job 2").acceptance))
    return replace(NETWORK.run(), log=other.log)


def shown_of_an_empty_tree(part: Any) -> Any:
    return replace(part, checkpoint=LOG.checkpoint([]))


def with_cosignature(text: str, change: Callable[[Any], Any]) -> str:
    return with_signatures(text, [change(cosign(text, WITNESSES[0]))])


def forged_cosignature(part: Any) -> Any:
    def forge(line: Any) -> Any:
        return replace(line, signature=line.signature[:-1] + bytes([line.signature[-1] ^ 1]))

    return replace(part, checkpoint=with_cosignature(part.checkpoint, forge))


def forged_countersign() -> Answer:
    answer = NETWORK.run()
    forged = sign(STRANGER, answer.receipt.countersign)
    return replace(answer, receipt=replace(answer.receipt, countersign_signature=forged.signature))


def other_jobs_countersign() -> Answer:
    answer, other = NETWORK.run(), NETWORK.run(job="job 2")
    return replace(
        answer,
        receipt=replace(
            answer.receipt,
            countersign=other.receipt.countersign,
            countersign_signature=other.receipt.countersign_signature,
        ),
    )


def other_text() -> Answer:
    return replace(NETWORK.run(), text=TEXT.replace("AI", "AJ"))


def other_token() -> Answer:
    return replace(NETWORK.run(), tokens=(*TOKENS[:-1], TOKENS[-1] + 1))


def other_prompt() -> Answer:
    answer = NETWORK.run()
    return replace(answer, request=answer.request.replace("What is AI?", "What is it?"))


def redrawn(change: Callable[[DrawCall], DrawCall]) -> Callable[[DrawCall], DrawCall]:
    """A draw call with other inputs, and the seed that D's own VRF key gives for them."""

    def edit(call: DrawCall) -> DrawCall:
        call = change(call)
        seed, proof = draw.make_draw_seed(
            NETWORK.vrf_seed,
            network=call.network,
            job_ref=call.job_ref,
            attempt=call.attempt,
            beacon=call.beacon,
            snapshot_root=call.snapshot_root,
        )
        return replace(call, draw_seed=seed, draw_proof=proof)

    return edit


def shopped_seed(call: DrawCall) -> DrawCall:
    return replace(call, draw_seed=sha256(b"a nicer seed").digest() * 2)


def seats_for_friends(record: Any) -> Any:
    return replace(record, seats=tuple(reversed(record.seats)))


def flipped_claim() -> Answer:
    """The seated operator's claim with one bit of its proof changed, signed again by it; the record left alone."""
    answer = NETWORK.run()
    index, entry = next(
        (i, e)
        for i, e in enumerate(answer.draw.entries)
        if e.operator.node_id == answer.receipt.core.operator
    )
    assert entry.claim is not None
    pi = entry.claim.statement.pi
    claim = sign(key_of(answer), replace(entry.claim.statement, pi=pi[:40] + bytes([pi[40] ^ 1]) + pi[41:]))
    entries = list(answer.draw.entries)
    entries[index] = replace(entry, claim=claim)
    return replace(answer, draw=replace(answer.draw, entries=tuple(entries)))


def unregistered() -> Answer:
    """A whole honest run over a registry that nobody published."""
    return Network(operators=tuple(Operator(name=f"mallory-{n}", job_type="opml") for n in range(4))).run()


def foreign_salt() -> Answer:
    answer = NETWORK.run(min_operators=1)
    (opening,) = answer.commit.openings
    return replace(
        answer, commit=replace(answer.commit, openings=(replace(opening, salt=secret("another salt")),))
    )


def openings_swapped() -> Answer:
    answer = NETWORK.run()
    salts = [opening.salt for opening in answer.commit.openings]
    shifted = zip(answer.commit.openings, [*salts[1:], salts[0]], strict=True)
    openings = tuple(replace(opening, salt=salt) for opening, salt in shifted)
    return replace(answer, commit=replace(answer.commit, openings=openings))


def commit_after_the_set() -> Answer:
    """The operator commits again, to what it wishes it had said; D's set holds the first commit."""
    answer = NETWORK.run(min_operators=1)
    (opening,) = answer.commit.openings
    later = sign(key_of(answer), replace(opening.commit.statement, clock={"1": "9", "2": "9"}))
    return replace(answer, commit=replace(answer.commit, openings=(replace(opening, commit=later),)))


def peer_twice() -> Answer:
    answer = NETWORK.run()
    return replace(answer, peers=(answer.peers[0], *answer.peers))


def self_as_peer() -> Answer:
    answer = NETWORK.run(min_operators=1)
    return replace(answer, peers=(answer.receipt,))


def peer_of_another_job() -> Answer:
    """Other receipts by the same operators, in the same seats, of another job."""
    answer = NETWORK.run()
    seats = [peer.core.operator for peer in answer.peers]
    others = (NETWORK.run(job=f"job {n}").peers for n in range(2, 200))
    peers = next(peers for peers in others if [peer.core.operator for peer in peers] == seats)
    return replace(answer, peers=peers)


def covered_up_dispute() -> Answer:
    """Two state roots, and a dispatcher that countersigns ``agreed``."""
    loser = NETWORK.by_id(NETWORK.run().peers[0].core.operator).name
    return NETWORK.run(
        results={loser: Result(state_root=secret("another root"))},
        edit={"countersign": lambda c: replace(c, outcome="agreed")},
    )


def hidden_dissenter() -> Answer:
    """The operator that disagreed is left out of the file."""
    answer = NETWORK.run()
    loser = answer.peers[-1].core.operator
    disputed = NETWORK.run(results={NETWORK.by_id(loser).name: Result(state_root=secret("another root"))})
    kept = tuple(o for o in disputed.commit.openings if o.commit.statement.node_id != loser)
    return replace(disputed, peers=disputed.peers[:-1], commit=replace(disputed.commit, openings=kept))


def resolved(
    *,
    key: bytes | None = None,
    claims: Callable[[list[ResolvedClaim]], list[ResolvedClaim]] = list,
    **changes: Any,
) -> Answer:
    """One of three lied and lost its game: what the dispatcher says of the claims, ``changes`` made before it signs."""
    answer = NETWORK.run()
    loser = answer.peers[-1].core.operator
    disputed = NETWORK.run(results={NETWORK.by_id(loser).name: Result(state_root=secret("another root"))})
    kept = tuple(o for o in disputed.commit.openings if o.commit.statement.node_id != loser)
    stated = [
        ResolvedClaim(
            claim=hash_of(receipt.core),
            operator=receipt.core.operator,
            state_root=receipt.core.state_root,
            standing="convicted" if receipt.core.operator == loser else "stands",
            evidence=(sha256(b"transcript").digest(),) if receipt.core.operator == loser else (),
        )
        for receipt in (disputed.receipt, *disputed.peers)
    ]
    return replace(
        disputed,
        peers=disputed.peers[:-1],
        commit=replace(disputed.commit, openings=kept),
        resolution=resolution_of(disputed, claims(stated), key=key, **changes),
    )


def resolution_of(
    answer: Answer, claims: list[ResolvedClaim], *, key: bytes | None = None, **changes: Any
) -> Signed[Resolution]:
    core = answer.receipt.core
    said = Resolution(
        network=core.network,
        dispatcher=core.dispatcher,
        job_ref=core.job_ref,
        attempt=core.attempt,
        state_root=core.state_root,
        claims=tuple(claims),
        resolved_at=answer.receipt.countersign.received_at + 1,
        clock=answer.receipt.countersign.clock,
    )
    return sign(NETWORK.key if key is None else key, replace(said, **changes))


def resolved_without_a_dispute() -> Answer:
    """Nothing differed, and yet there is a resolution."""
    answer = NETWORK.run()
    claims = [
        ResolvedClaim(
            claim=hash_of(receipt.core),
            operator=receipt.core.operator,
            state_root=receipt.core.state_root,
            standing="stands",
            evidence=(),
        )
        for receipt in (answer.receipt, *answer.peers)
    ]
    return replace(answer, resolution=resolution_of(answer, claims))


def last_claim(**changes: Any) -> Callable[[], Answer]:
    """The loser's claim, told otherwise."""
    return lambda: resolved(claims=lambda found: [*found[:-1], replace(found[-1], **changes)])


def left_over_opening() -> Answer:
    answer = NETWORK.run()
    return replace(answer, peers=answer.peers[:-1])


def no_openings() -> Answer:
    answer = NETWORK.run(min_operators=1)
    return replace(answer, commit=replace(answer.commit, openings=()))


def uncommitted_seat(commit_set: Any) -> Any:
    """D forgets one of the seats altogether."""
    return replace(commit_set, commits=commit_set.commits[1:])


def ghost_in_the_set(commit_set: Any) -> Any:
    ghost = CommitSetEntry(node_id="0x" + "ff" * 20, commit=secret("ghost"))
    return replace(commit_set, commits=(*commit_set.commits, ghost))


def evidence_of_another_job() -> Answer:
    answer = NETWORK.run(job_type="tee")
    return replace(answer, evidence=NETWORK.run(job="job 2", job_type="tee").evidence)


def evidence_of_another_enclave() -> Answer:
    """The TEE operator answers from an enclave that was booted for another operator."""
    other = NETWORK.operators[0].node_id
    return NETWORK.run(
        job_type="tee",
        edit={
            "boot": lambda boot: replace(boot, operator=other),
            "enclave_answer": lambda a: replace(a, operator=other),
        },
    )


def evidence_for_an_opml_answer() -> Answer:
    return replace(NETWORK.run(min_operators=1), evidence=NETWORK.run(job_type="tee").evidence)


def document(**changes: Any) -> Callable[[], Answer]:
    """The trusted SIMULATED platform signs something else than the boot that the file shows."""
    return run(job_type="tee", edit={"document": lambda asked: replace(asked, **changes)})


def zero_signature() -> Answer:
    answer = NETWORK.run(job_type="tee")
    assert answer.evidence is not None
    unsigned = answer.evidence.document[:-96] + bytes(96)
    return replace(answer, evidence=replace(answer.evidence, document=unsigned))


def answer_of_another_boot() -> Answer:
    """A genuine document and boot of enclave A, and the answer statement of a boot B: the key and all else are the same."""
    answer = NETWORK.run(job_type="tee")
    other = NETWORK.run(
        job_type="tee", edit={"boot": lambda boot: replace(boot, nonce=secret("a second challenge"))}
    )
    assert answer.evidence is not None
    assert other.evidence is not None
    evidence = replace(
        other.evidence,
        boot=answer.evidence.boot,
        boot_signature=answer.evidence.boot_signature,
        document=answer.evidence.document,
    )
    return replace(other, evidence=evidence)


def no_evidence() -> Answer:
    return replace(NETWORK.run(job_type="tee"), evidence=None)


def other_platform() -> Trust:
    return replace(NETWORK.trust(), tee_roots=(TrustedTeeRoot(tee="simulated", root=secret("no root")),))


def colluding() -> Answer:
    """All seats sign the same wrong state root."""
    wrong = Result(state_root=secret("all seats agree on this"))
    return NETWORK.run(results={f"opml-{n}": wrong for n in range(4)})


def honest_engine(_answer: Answer, _request: Any) -> Replayed:
    return Replayed(
        prompt_tokens=PROMPT_TOKENS, tokens=TOKENS, text=TEXT, finish_reason="stop", state_root=STATE_ROOT
    )


def same_beacon_elsewhere() -> Trust:
    """The trust file of a network with another dispatcher, and by accident the same beacon chain."""
    return Network(name="elsewhere").trust()


def shopped_sampling_seed() -> Answer:
    """A retry takes its seed from its own draw instead of attempt 1's."""
    first = NETWORK.run(min_operators=1, attempt=2)
    shopped = sampling_seed_from_draw(first.draw.draw_call.statement.draw_seed)
    return NETWORK.run(
        min_operators=1, attempt=2, edit={"core": lambda core: replace(core, sampling_seed=shopped)}
    )


def no_first_draw() -> Answer:
    answer = NETWORK.run(attempt=2)
    return replace(answer, draw=replace(answer.draw, first_draw=None))


def needless_first_draw() -> Answer:
    answer = NETWORK.run()
    return replace(answer, draw=replace(answer.draw, first_draw=answer.draw.draw_call))


def foreign_first_draw() -> Answer:
    answer, other = NETWORK.run(attempt=2), NETWORK.run(job="job 2", attempt=2)
    return replace(answer, draw=replace(answer.draw, first_draw=other.draw.first_draw))


def counted_differently(record: Any) -> Any:
    counts = record.counts
    return replace(
        record,
        counts=replace(counts, unanswered=counts.unanswered + 1, ineligible=counts.ineligible - 1),
    )


def earlier(statement: Any) -> Any:
    return replace(statement, clock={"1": "1"})


def tampered_signature() -> Answer:
    """r unchanged, s replaced by n - s, v flipped: valid for a verifier that takes both."""
    answer = NETWORK.run()
    signature = answer.receipt.signature
    s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    high = signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])
    return replace(answer, receipt=replace(answer.receipt, signature=high))


def shortened(make: Callable[[], Answer]) -> Callable[[], Answer]:
    """The same file with only the seated operators' entries, which nobody can be kept from making."""

    def short() -> Answer:
        answer = make()
        return replace(answer, draw=seated_only(answer.draw))

    return short


def seats_held_back(record: DrawRecord) -> DrawRecord:
    """D seats one operator where the rule gives three."""
    return replace(record, seats=record.seats[:1])


def friends_seated(call: dict[str, DrawCall]) -> dict[str, Callable[[Any], Any]]:
    """D fills the open seats with whom it likes; the order of the seats is the public one."""

    def keep(statement: DrawCall) -> DrawCall:
        call["call"] = statement
        return statement

    def fill(record: DrawRecord) -> DrawRecord:
        opml = [o.node_id for o in NETWORK.operators if o.job_type == "opml"]
        drawn = NETWORK.run().draw
        selected = [e.operator.node_id for e in drawn.entries if e.entry.status == "selected"]
        others = [o for o in opml if o not in record.seats] + [o for o in record.seats if o not in selected]
        chosen = [*selected, *others][:3]
        assert set(chosen) != set(record.seats)
        seed, attempt = call["call"].draw_seed, call["call"].attempt
        return replace(record, seats=tuple(seat_order(seed, attempt, chosen)))

    return {"draw_call": keep, "draw_record": fill}


def friends_in_the_open_seats() -> Answer:
    answer = NETWORK.run(edit=friends_seated({}))
    return replace(answer, draw=seated_only(answer.draw))


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin(Operator):
    """An operator that registered another one's VRF key: both are drawn at once, or neither."""

    @property
    def vrf_seed(self) -> bytes:
        return secret("one key for two operators")


TWINS = Network(
    operators=(
        Twin(name="twin-0", job_type="opml"),
        Twin(name="twin-1", job_type="opml"),
        Operator(name="third", job_type="opml"),
    )
)


def unseated_peer() -> Answer:
    """An operator that nobody drew signs a receipt like its peers', and D countersigns it."""
    answer = NETWORK.run()
    seats = answer.draw.draw_record.statement.seats
    friend = next(o for o in NETWORK.operators if o.job_type == "opml" and o.node_id not in seats)
    entry = next(e for e in NETWORK.snapshot() if e.node_id == friend.node_id)
    as_first = replace(answer, receipt=answer.peers[-1])
    signed = resign_core(as_first, NETWORK, friend.key, operator=friend.node_id, node=entry.node)
    gone = answer.peers[-1].core.operator
    kept = tuple(o for o in answer.commit.openings if o.commit.statement.node_id != gone)
    return replace(
        answer,
        peers=(*answer.peers[:-1], signed.receipt),
        commit=replace(answer.commit, openings=kept),
    )


def stated_by_all(**changes: Any) -> Callable[[], Answer]:
    """Every seat signs the same lie about an honest run."""

    def lie(core: Any) -> Any:
        return replace(core, **changes)

    return run(edit={"core": lie, "peer_core": lie})


def other_words_by_all() -> Answer:
    """Honest tokens and state root; the text that all seats sign is not what the tokens spell."""
    lie = Result(text="No.")
    return NETWORK.run(results={f"opml-{n}": lie for n in range(4)})


def engine_that_knows_no_such_token(_answer: Answer, _request: Any) -> Replayed:
    raise InvalidMessage("engine.token", "a claimed token is not in the vocabulary", field="tokens")


ATTACKS = [
    Attack(
        name="an opening without its receipt", check="file-1", code="file.openings", answer=left_over_opening
    ),
    Attack(
        name="another network's trust file",
        check="trust-1",
        code="trust.network",
        answer=run(),
        trust=same_beacon_elsewhere,
    ),
    Attack(
        name="another network of the same dispatcher",
        check="trust-1",
        code="trust.network",
        answer=run(),
        trust=lambda: replace(NETWORK.trust(), network="elsewhere"),
    ),
    Attack(
        name="signed by a stranger",
        check="receipt-1",
        code="signature.wrong_signer",
        answer=signed_by_stranger,
    ),
    Attack(name="malleated signature", check="receipt-1", code="signature.high_s", answer=tampered_signature),
    Attack(
        name="stated and signed by another",
        check="commit-1",
        code="commit.missing",
        answer=resigned_by_another,
    ),
    Attack(
        name="forged countersign", check="receipt-2", code="signature.wrong_signer", answer=forged_countersign
    ),
    Attack(
        name="another job's countersign",
        check="receipt-2",
        code="receipt.countersign",
        answer=other_jobs_countersign,
    ),
    Attack(name="tampered prompt", check="io-1", code="io.request_hash", answer=other_prompt),
    Attack(name="tampered text", check="io-2", code="io.response_hash", answer=other_text),
    Attack(name="tampered token", check="io-2", code="io.tokens_hash", answer=other_token),
    Attack(name="token count", check="io-2", code="io.n_out", answer=with_core(n_out=len(TOKENS) - 1)),
    Attack(
        name="other parameters than asked for",
        check="params-1",
        code="params.hash",
        answer=with_core(params_hash=secret("greedy")),
    ),
    Attack(
        name="longer than asked for",
        check="params-1",
        code="params.max_tokens",
        answer=run(min_operators=1, sampling=params(max_tokens=len(TOKENS) - 1)),
    ),
    Attack(
        name="past the stop string",
        check="params-1",
        code="params.stop",
        answer=run(min_operators=1, sampling=params(stop=("thinking",))),
    ),
    Attack(
        name="fake early end",
        check="params-1",
        code="params.finish_reason",
        answer=with_core(finish_reason="cancelled"),
    ),
    Attack(
        name="another model",
        check="params-1",
        code="params.model",
        answer=with_core(model_id=secret("a smaller model")),
    ),
    Attack(
        name="another job's acceptance",
        check="accept-1",
        code="accept.foreign",
        answer=lambda: replace(NETWORK.run(), acceptance=NETWORK.run(job="job 2").acceptance),
    ),
    Attack(
        name="accepted under another tag",
        check="accept-1",
        code="accept.tag",
        answer=single(acceptance=lambda a: replace(a, tag="suspicion")),
    ),
    Attack(
        name="beacon from nowhere",
        check="beacon-1",
        code="beacon.mismatch",
        answer=single(draw_call=redrawn(lambda c: replace(c, beacon=secret("beacon of my own")))),
    ),
    Attack(
        name="an epoch of D's choice",
        check="beacon-1",
        code="beacon.epoch",
        answer=single(draw_call=redrawn(lambda c: replace(c, epoch=40))),
    ),
    Attack(
        name="unpublished registry",
        check="registry-1",
        code="",
        answer=unregistered,
        trust=NETWORK.trust,
        policy="default",
    ),
    Attack(
        name="draw seed of D's choice",
        check="draw-1",
        code="draw.seed_proof",
        answer=single(draw_call=shopped_seed),
        policy="default",
    ),
    Attack(
        name="operators miscounted",
        check="draw-1",
        code="draw.counts",
        answer=single(draw_record=counted_differently),
        policy="default",
    ),
    Attack(
        name="seats in another order",
        check="vrf-1",
        code="draw.seats",
        answer=run(edit={"draw_record": seats_for_friends}),
    ),
    Attack(
        name="altered VRF proof of the claim",
        check="draw-1",
        code="draw.claim_unexpected",
        answer=flipped_claim,
    ),
    Attack(
        name="altered VRF proof in the receipt",
        check="vrf-1",
        code="vrf.receipt",
        answer=single(core=lambda c: replace(c, vrf=replace(c.vrf, pi=bytes(80)))),
    ),
    Attack(
        name="filled seat called drawn",
        check="vrf-1",
        code="vrf.receipt",
        answer=single(
            core=lambda c: replace(
                c, vrf=replace(c.vrf, status="filled" if c.vrf.status == "selected" else "selected")
            )
        ),
    ),
    Attack(name="another's role", check="vrf-1", code="vrf.role", answer=with_core(role="checker")),
    Attack(
        name="fewer operators than asked for",
        check="vrf-1",
        code="vrf.foreign_draw",
        answer=run(edit={"draw_record": lambda r: replace(r, min_operators=2)}),
    ),
    Attack(
        name="another draw record",
        check="vrf-1",
        code="vrf.foreign_draw",
        answer=spliced("draw"),
    ),
    Attack(
        name="sampling seed of the operator's choice",
        check="seed-1",
        code="seed.value",
        answer=with_core(sampling_seed="7"),
    ),
    Attack(name="a retry's own seed", check="seed-1", code="seed.value", answer=shopped_sampling_seed),
    Attack(
        name="a retry without its first draw", check="seed-1", code="seed.first_draw", answer=no_first_draw
    ),
    Attack(
        name="a first draw for attempt 1", check="seed-1", code="seed.first_draw", answer=needless_first_draw
    ),
    Attack(
        name="another job's first draw", check="seed-1", code="seed.first_draw", answer=foreign_first_draw
    ),
    Attack(
        name="a first draw seed of D's choice",
        check="seed-1",
        code="draw.seed_proof",
        answer=run(min_operators=1, attempt=2, edit={"first_draw": shopped_seed}),
    ),
    Attack(name="another salt", check="commit-1", code="commit.opening", answer=foreign_salt),
    Attack(name="salts swapped", check="commit-1", code="commit.opening", answer=openings_swapped),
    Attack(name="a later commit", check="commit-1", code="commit.not_in_set", answer=commit_after_the_set),
    Attack(name="openings left out", check="commit-1", code="commit.missing", answer=no_openings),
    Attack(
        name="a seat forgotten by the commit set",
        check="commit-1",
        code="commit.seats",
        answer=run(edit={"commit_set": uncommitted_seat}),
    ),
    Attack(
        name="a commit of nobody's",
        check="commit-1",
        code="commit.seats",
        answer=single(commit_set=ghost_in_the_set),
    ),
    Attack(
        name="another run's commits", check="commit-1", code="commit.foreign_set", answer=spliced("commit")
    ),
    Attack(name="a dispute covered up", check="agree-1", code="agree.state_root", answer=covered_up_dispute),
    Attack(name="the dissenter left out", check="agree-1", code="agree.disputed", answer=hidden_dissenter),
    *(
        Attack(
            name=f"a resolution of another {name}",
            check="resolve-1",
            code="resolve.foreign",
            answer=lambda changes=changes: resolved(**changes),  # type: ignore[misc]
        )
        for name, changes in (
            ("network", {"network": "elsewhere"}),
            ("dispatcher", {"dispatcher": "0x" + "11" * 20}),
            ("job", {"job_ref": secret("another job")}),
            ("attempt", {"attempt": 2}),
            ("result", {"state_root": secret("another root")}),
        )
    ),
    Attack(
        name="a resolution where nothing differed",
        check="resolve-1",
        code="resolve.foreign",
        answer=resolved_without_a_dispute,
    ),
    Attack(
        name="a resolution signed by somebody else",
        check="resolve-1",
        code="signature.wrong_signer",
        answer=lambda: resolved(key=STRANGER),
    ),
    Attack(
        name="a resolution that withholds this very result",
        check="resolve-1",
        code="resolve.claim",
        answer=lambda: resolved(claims=lambda found: [replace(found[0], standing="withheld"), *found[1:]]),
    ),
    Attack(
        name="a resolution about a claim that was never committed",
        check="resolve-1",
        code="resolve.claims",
        answer=last_claim(operator="0x" + "22" * 20),
    ),
    Attack(
        name="a conviction without a transcript",
        check="resolve-1",
        code="resolve.standing",
        answer=last_claim(evidence=()),
    ),
    Attack(
        name="a resolution in which two results stand",
        check="resolve-1",
        code="resolve.standing",
        answer=last_claim(standing="stands", evidence=()),
    ),
    Attack(name="one operator counted twice", check="agree-1", code="agree.twice", answer=peer_twice),
    Attack(name="the operator as its own peer", check="agree-1", code="agree.twice", answer=self_as_peer),
    Attack(name="peers of another job", check="agree-1", code="agree.foreign", answer=peer_of_another_job),
    Attack(
        name="another text under the same state root",
        check="agree-1",
        code="agree.result",
        answer=lambda: NETWORK.run(
            results={NETWORK.by_id(NETWORK.run().peers[0].core.operator).name: Result(text="No.")}
        ),
    ),
    Attack(
        name="countersigned before it was revealed",
        check="clock-1",
        code="clock.order",
        answer=single(countersign=earlier),
    ),
    Attack(
        name="committed before it was drawn",
        check="clock-1",
        code="clock.order",
        answer=single(commit=lambda c: replace(c, clock={"2": "1", "3": "1", "4": "1", "5": "1", "6": "1"})),
    ),
    Attack(
        name="draw recorded before it was called",
        check="clock-1",
        code="clock.order",
        answer=single(draw_record=earlier),
    ),
    Attack(
        name="evidence of another job", check="tee-1", code="tee.not_bound", answer=evidence_of_another_job
    ),
    Attack(
        name="evidence of another's enclave",
        check="tee-1",
        code="tee.not_bound",
        answer=evidence_of_another_enclave,
    ),
    Attack(name="evidence left out", check="tee-1", code="tee.no_evidence", answer=no_evidence),
    Attack(
        name="evidence where there was no enclave",
        check="tee-1",
        code="tee.unexpected",
        answer=evidence_for_an_opml_answer,
    ),
    Attack(
        name="evidence under an unknown root",
        check="tee-2",
        code="attest.root",
        answer=run(job_type="tee"),
        trust=other_platform,
    ),
    Attack(
        name="simulated evidence under the default policy",
        check="tee-2",
        code="tee.policy",
        answer=run(job_type="tee"),
        policy="default",
    ),
    Attack(
        name="an image that nobody has named",
        check="tee-3",
        code="tee.measurement",
        answer=document(pcrs=PCRS | {2: PCRS[1]}),
    ),
    Attack(
        name="a debug enclave",
        check="tee-2",
        code="attest.debug",
        answer=document(pcrs=dict.fromkeys(range(3), bytes(48))),
    ),
    Attack(
        name="the document of another boot",
        check="tee-2",
        code="tee.boot_not_bound",
        answer=document(user_data=secret("another boot")),
    ),
    Attack(
        name="the document of another enclave's key",
        check="tee-2",
        code="tee.boot_not_bound",
        answer=document(public_key=public_key_info(secret("another enclave"))),
    ),
    Attack(
        name="a document over another challenge",
        check="tee-2",
        code="attest.nonce",
        answer=document(nonce=secret("yesterday's challenge")),
    ),
    Attack(
        name="a document from after the answer was received",
        check="tee-2",
        code="attest.future",
        answer=document(time=GENESIS + 10 * EPOCH_MS),
    ),
    Attack(
        name="a document from long before its boot",
        check="tee-2",
        code="tee.clock",
        answer=document(time=GENESIS - 2 * 3_600_000),
    ),
    Attack(
        name="a document of QEMU's, signed by nobody",
        check="tee-2",
        code="attest.signature",
        answer=zero_signature,
    ),
    Attack(
        name="a boot that lasts for a day",
        check="tee-1",
        code="tee.lifetime",
        answer=run(
            job_type="tee", edit={"boot": lambda boot: replace(boot, not_after=boot.not_after + 86_400_000)}
        ),
    ),
    Attack(
        name="an answer of one boot under the evidence of another",
        check="tee-1",
        code="tee.answer_not_bound",
        answer=answer_of_another_boot,
    ),
    Attack(
        name="everybody signs the same wrong result",
        check="local-1",
        code="local.state_root",
        answer=colluding,
        replay=honest_engine,
    ),
    Attack(
        name="draw seed of D's choice in a shortened draw",
        check="draw-1",
        code="draw.seed_proof",
        answer=shortened(single(draw_call=shopped_seed)),
    ),
    Attack(
        name="sampling seed by a draw seed of D's choice",
        check="seed-1",
        code="draw.seed_proof",
        answer=shortened(single(draw_call=shopped_seed)),
    ),
    Attack(
        name="seats held back in a shortened draw",
        check="vrf-1",
        code="draw.seats",
        answer=shortened(run(edit={"draw_record": seats_held_back})),
    ),
    Attack(
        name="two operators with one VRF key",
        check="draw-1",
        code="draw.snapshot_key",
        answer=lambda: TWINS.run(min_operators=2),
        trust=TWINS.trust,
    ),
    Attack(
        name="an operator that was not seated as a peer",
        check="agree-1",
        code="agree.order",
        answer=unseated_peer,
    ),
    Attack(
        name="agreement of one commitment",
        check="agree-1",
        code="agree.outcome",
        answer=single(countersign=lambda c: replace(c, outcome="agreed")),
    ),
    Attack(
        name="agreement of enclaves that nobody compared",
        check="agree-1",
        code="agree.outcome",
        answer=run(job_type="tee", edit={"countersign": lambda c: replace(c, outcome="agreed")}),
    ),
    Attack(
        name="a checker with a stream",
        check="agree-1",
        code="vrf.stream",
        answer=run(edit={"peer_core": lambda c: replace(c, stream_head=secret("a stream"))}),
    ),
    Attack(
        name="an executor without its stream",
        check="vrf-1",
        code="vrf.stream",
        answer=with_core(stream_head=b""),
    ),
    Attack(
        name="run before it was asked for",
        check="clock-1",
        code="clock.times",
        answer=with_core(started_at=0),
    ),
    Attack(
        name="finished after it was received",
        check="clock-1",
        code="clock.times",
        answer=with_core(finished_at=2**52),
    ),
    Attack(
        name="received before it was asked for",
        check="clock-1",
        code="clock.times",
        answer=single(
            core=lambda c: replace(c, started_at=c.started_at - 60_000, finished_at=c.started_at - 60_000),
            countersign=lambda c: replace(c, received_at=c.received_at - 120_000),
        ),
    ),
    Attack(
        name="another trusted dispatcher's acceptance",
        check="accept-1",
        code="accept.foreign",
        answer=single(acceptance=lambda a: replace(a, dispatcher=Network(name="elsewhere").dispatcher)),
        trust=lambda: replace(
            NETWORK.trust(),
            dispatchers=(*NETWORK.trust().dispatchers, *Network(name="elsewhere").trust().dispatchers),
        ),
    ),
    Attack(
        name="everybody signs another text for the same tokens",
        check="local-1",
        code="local.text",
        answer=other_words_by_all,
        replay=honest_engine,
    ),
    Attack(
        name="everybody signs another end",
        check="local-1",
        code="local.finish_reason",
        answer=stated_by_all(finish_reason="length"),
        replay=honest_engine,
    ),
    Attack(
        name="everybody signs another prompt's tokens",
        check="local-1",
        code="local.prompt_tokens",
        answer=stated_by_all(prompt_tokens_hash=secret("another prompt")),
        replay=honest_engine,
    ),
    Attack(
        name="everybody signs a shorter prompt",
        check="local-1",
        code="local.prompt_tokens",
        answer=stated_by_all(n_prompt=1),
        replay=honest_engine,
    ),
    Attack(
        name="the receipt in the log is another one",
        check="log-1",
        code="merkle.root_mismatch",
        answer=logged_before_it_was_changed,
        trust=LOG.trust,
    ),
    Attack(
        name="the acceptance in the log is another job's",
        check="log-1",
        code="merkle.root_mismatch",
        answer=acceptance_of_another,
        trust=LOG.trust,
    ),
    Attack(
        name="a stranger signed the checkpoint",
        check="log-1",
        code="checkpoint.unsigned",
        answer=logged(seed=STRANGER),
        trust=LOG.trust,
    ),
    Attack(
        name="receipt logged before the job was accepted",
        check="log-1",
        code="log.order",
        answer=logged(order=("receipt", "acceptance")),
        trust=LOG.trust,
    ),
    Attack(
        name="the checkpoint of an empty tree",
        check="log-1",
        code="merkle.index_out_of_range",
        answer=logged(edit=shown_of_an_empty_tree),
        trust=LOG.trust,
    ),
    Attack(
        name="a log of another network",
        check="log-1",
        code="log.foreign",
        answer=logged(),
        trust=lambda: replace(LOG.trust(), log_key=str(log_key("aos/elsewhere/0x00", secret("elsewhere")))),
    ),
    Attack(
        name="the place in the log is left out",
        check="log-1",
        code="",
        answer=run(),
        trust=LOG.trust,
        policy="production",
    ),
    Attack(
        name="a witness's cosignature is forged",
        check="witness-1",
        code="note.signature",
        answer=logged(witnesses=(), edit=forged_cosignature),
        trust=LOG.trust,
    ),
    Attack(
        name="everybody signs a token that the model does not have",
        check="local-1",
        code="local.tokens",
        answer=run(),
        replay=engine_that_knows_no_such_token,
    ),
]
BY_NAME = {attack.name: attack for attack in ATTACKS}


def judged(attack: Attack, policy: Policy | None = None) -> Report:
    return verify_answer(
        write_answer(attack.answer()),
        trust=attack.trust(),
        policy=policy or load_policy(attack.policy),
        replay=attack.replay,
    )


def test_the_model_of_the_attacks_is_the_one_that_is_asked_for() -> None:
    assert NETWORK.run().receipt.core.model_id == MODEL
    assert len(BY_NAME) == len(ATTACKS)


@pytest.mark.parametrize("name", BY_NAME)
def test_attack_is_refused_for_its_reason(name: str) -> None:
    attack = BY_NAME[name]
    report = judged(attack)
    check: Check = next(check for check in report.checks if check.id == attack.check)
    if attack.code:
        assert (check.status, check.code) == ("FAIL", attack.code)
        assert report.exit_code in (10, 12)
        assert report.levels == ()
    else:
        assert (check.status, report.verdict) == ("SKIP", "PARTIAL")
        assert attack.check in report.missing
    assert report.verdict != "VERIFIED"


@pytest.mark.parametrize("left_out", [name for name, _ in receipt.CHECKS])
def test_without_any_one_check_an_attack_gets_through(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt, "CHECKS", tuple(c for c in receipt.CHECKS if c[0] != left_out))
    through = []
    for attack in ATTACKS:
        if attack.check == left_out:
            policy = load_policy(attack.policy)
            without = replace(policy, required=tuple(x for x in policy.required if x != left_out))
            if judged(attack, without).verdict == "VERIFIED":
                through.append(attack.name)
    assert through, f"no attack needs {left_out}"


def test_a_filled_seat_that_the_file_does_not_prove_is_not_counted() -> None:
    """In a shortened draw D can seat friends where the rule would seat others: they agree, and count for nothing."""
    friends = verify_answer(
        write_answer(friends_in_the_open_seats()), trust=NETWORK.trust(), policy=load_policy("dev")
    )
    whole = verify_answer(
        write_answer(NETWORK.run(edit=friends_seated({}))), trust=NETWORK.trust(), policy=load_policy("dev")
    )
    honest = verify_answer(write_answer(NETWORK.run()), trust=NETWORK.trust(), policy=load_policy("dev"))
    selected = sum(
        1
        for receipt in (NETWORK.run().receipt, *NETWORK.run().peers)
        if receipt.core.vrf.status == "selected"
    )
    assert honest.levels == ("signed", "redundant:3")
    assert "draw.seats" in {check.code for check in whole.checks}
    assert selected < 3
    assert friends.levels == (("signed", f"redundant:{selected}") if selected > 1 else ("signed",))


def test_a_resolved_answer_is_verified() -> None:
    report = verify_answer(write_answer(resolved()), trust=NETWORK.trust(), policy=load_policy("dev"))
    assert report.verdict == "VERIFIED", report.checks
    assert next(check.status for check in report.checks if check.id == "resolve-1") == "PASS"
