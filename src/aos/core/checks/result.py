"""What was committed, agreed and re-executed: commit-1, agree-1, resolve-1, clock-1, local-1. Enclaves: ``checks/enclave.py``."""

from dataclasses import dataclass
from itertools import pairwise

from aos.core import hashes
from aos.core.answer import Answer, Receipt
from aos.core.checks.case import Case, Replayed, Skip, refuse, same, short
from aos.core.checks.drawn import seat
from aos.core.checks.signed import countersign, operator_signature
from aos.core.clock import DISPATCHER, VectorClock
from aos.core.envelope import MAX_SKEW_MS
from aos.core.statements import check_signed, hash_of
from aos.errors import AOSError, VerificationError

OUT_OF_VOCABULARY = "engine.token"
CANONICAL = "aos-canonical/"
"""How the profile of an engine begins that repeats its bits (docs/spec/07-inference.md)."""


def commit_1(case: Case) -> str:
    """The commit set accounts for every seat, holds this commit, and the commit opens to this result."""
    core, commit_set = case.core, case.answer.commit.commit_set
    check_signed(commit_set, address=core.dispatcher)
    statement = commit_set.statement
    same(
        "commit.foreign_set",
        "the commit set is of another run",
        network=(statement.network, core.network),
        dispatcher=(statement.dispatcher, core.dispatcher),
        job_ref=(statement.job_ref, core.job_ref),
        attempt=(statement.attempt, core.attempt),
        draw_record=(statement.draw_record, core.draw_record),
        commit_set=(commit_set.hash, core.commit_set),
    )
    committed = [entry.node_id for entry in statement.commits]
    if committed != sorted(set(committed)):
        raise refuse("commit.order", "the commit set is not ascending by node_id, each once")
    if sorted(committed + list(statement.missing)) != sorted(case.record.statement.seats):
        raise refuse("commit.seats", "the commit set does not account for every seat once")
    _opening(case, case.answer.receipt)
    return f"{len(committed)} of {len(case.record.statement.seats)} seats committed before any reveal; this one opens"


def _opening(case: Case, receipt: Receipt) -> None:
    core = receipt.core
    found = [o for o in case.answer.commit.openings if o.commit.statement.node_id == core.operator]
    if not found:
        raise refuse("commit.missing", f"there is no opening for {core.operator}")
    commit, salt = found[0].commit, found[0].salt
    check_signed(commit, address=core.operator)
    held = {entry.node_id: entry.commit for entry in case.answer.commit.commit_set.statement.commits}
    if held.get(core.operator) != commit.hash:
        raise refuse("commit.not_in_set", f"the commit of {core.operator} is not in the commit set")
    expected = hashes.commitment(
        job_ref=core.job_ref,
        attempt=core.attempt,
        node_id=core.operator,
        draw_record=core.draw_record,
        result=core.state_root or core.answer_statement,
        tokens_hash=core.tokens_hash,
        salt=salt,
    )
    statement = commit.statement
    same(
        "commit.opening",
        "the commitment does not open to this result",
        network=(statement.network, core.network),
        job_ref=(statement.job_ref, core.job_ref),
        attempt=(statement.attempt, core.attempt),
        draw_record=(statement.draw_record, core.draw_record),
        commitment=(statement.commitment, expected),
    )


def agree_1(case: Case) -> tuple[str, str]:
    """The other receipts are of this run, in proven seats, and of the same result."""
    core, peers = case.core, case.answer.peers
    outcome = case.answer.receipt.countersign.outcome
    if outcome == "disputed" and case.answer.resolution is None:
        raise refuse("agree.disputed", "the dispatcher's countersign says that results differ")
    committed = len(case.answer.commit.commit_set.statement.commits)
    if outcome == "agreed" and (core.tee != "" or committed < 2):
        raise refuse(
            "agree.outcome", "the dispatcher's countersign says agreed, and there was nothing to compare"
        )
    if not peers:
        raise Skip("no other operator's receipt is in the file")
    seats = case.record.statement.seats
    names = [core.operator, *(peer.core.operator for peer in peers)]
    if len(set(names)) != len(names):
        raise refuse("agree.twice", "one operator appears twice")
    order = [seats.index(name) if name in seats else -1 for name in names]
    if order != sorted(order):
        raise refuse("agree.order", "the other receipts are not in seat order")
    proven = int(seat(case, case.answer.receipt))
    for peer in peers:
        operator_signature(peer)
        countersign(peer)
        other = peer.core
        same(
            "agree.foreign",
            f"the receipt of {other.operator} is of another run",
            network=(other.network, core.network),
            dispatcher=(other.dispatcher, core.dispatcher),
            job_ref=(other.job_ref, core.job_ref),
            attempt=(other.attempt, core.attempt),
            request_hash=(other.request_hash, core.request_hash),
            params_hash=(other.params_hash, core.params_hash),
            model_id=(other.model_id, core.model_id),
            sampling_seed=(other.sampling_seed, core.sampling_seed),
            draw_record=(other.draw_record, core.draw_record),
            draw_counts=(other.draw_counts, core.draw_counts),
            commit_set=(other.commit_set, core.commit_set),
        )
        theirs, ours = peer.countersign, case.answer.receipt.countersign
        same(
            "agree.countersign",
            f"the countersign of {other.operator} says otherwise",
            tag=(theirs.tag, ours.tag),
            position=(theirs.position, ours.position),
            tag_salt=(theirs.tag_salt, ours.tag_salt),
            outcome=(theirs.outcome, outcome),
        )
        proven += seat(case, peer)
        _opening(case, peer)
        if core.tee == "" and other.state_root != core.state_root:
            raise refuse("agree.state_root", f"{other.operator} committed another state root")
    if core.tee != "":
        raise Skip("enclave answers are not compared bit by bit")
    for peer in peers:
        same(
            "agree.result",
            f"{peer.core.operator} signed another result under the same state root",
            response_hash=(peer.core.response_hash, core.response_hash),
            tokens_hash=(peer.core.tokens_hash, core.tokens_hash),
            prompt_tokens_hash=(peer.core.prompt_tokens_hash, core.prompt_tokens_hash),
            n_prompt=(peer.core.n_prompt, core.n_prompt),
            n_out=(peer.core.n_out, core.n_out),
            finish_reason=(peer.core.finish_reason, core.finish_reason),
            engine=(peer.core.engine, core.engine),
        )
    if outcome not in ("agreed", "disputed"):
        raise refuse("agree.outcome", f"the dispatcher's countersign says {outcome}")
    if proven < 2:
        raise Skip("the same result, but filled seats: only a whole draw proves that the rule gave them")
    case.agreeing = proven
    who = f"{proven} operators" if proven == committed else f"{proven} of {committed} operators that"
    return f"{who} committed the same state root", short(core.state_root)


def resolve_1(case: Case) -> tuple[str, str]:
    """Where results differed: the dispatcher's signed word that this one is left, naming every claim."""
    signed, core = case.answer.resolution, case.core
    if signed is None:
        raise Skip("no dispute was resolved about this job")
    check_signed(signed, address=core.dispatcher)
    said = signed.statement
    same(
        "resolve.foreign",
        "the resolution is of another job, attempt or result",
        network=(said.network, core.network),
        dispatcher=(said.dispatcher, core.dispatcher),
        job_ref=(said.job_ref, core.job_ref),
        attempt=(said.attempt, core.attempt),
        state_root=(said.state_root, core.state_root),
        outcome=(case.answer.receipt.countersign.outcome, "disputed"),
    )
    named = {claim.claim: claim for claim in said.claims}
    for receipt in case.receipts:
        claim = named.get(hash_of(receipt.core))
        stated = (receipt.core.operator, receipt.core.state_root, "stands")
        if claim is None or (claim.operator, claim.state_root, claim.standing) != stated:
            raise refuse("resolve.claim", f"the resolution does not say that {receipt.core.operator} stands")
    committed = {entry.node_id for entry in case.answer.commit.commit_set.statement.commits}
    operators = [claim.operator for claim in said.claims]
    if (
        len(named) != len(said.claims)
        or len(set(operators)) != len(operators)
        or not set(operators) <= committed
    ):
        raise refuse("resolve.claims", "the resolution names claims that were not committed, or one twice")
    lost = [claim for claim in said.claims if claim.standing != "stands"]
    if any(claim.standing == "open" or claim.state_root == core.state_root for claim in lost) or any(
        claim.standing == "convicted" and not claim.evidence for claim in lost
    ):
        raise refuse("resolve.standing", "a claim is open, or convicted without a transcript")
    if any(claim.standing == "stands" and claim.state_root != core.state_root for claim in said.claims):
        raise refuse("resolve.standing", "two results stand")
    convicted = [claim.operator for claim in lost if claim.standing == "convicted"]
    return (
        f"{len(lost)} differing result{'s' if len(lost) != 1 else ''} lost, {len(convicted)} convicted; "
        "aos referee judges the transcripts again",
        " ".join(convicted),
    )


def clock_1(case: Case) -> str:
    """An event precedes another iff the later clock has counted it: entry of its sender, not less."""
    answer = case.answer
    commits = {o.commit.statement.node_id: o.commit.statement for o in answer.commit.openings}
    for receipt in case.receipts:
        core = receipt.core
        commit = commits.get(core.operator)
        if commit is None:
            raise refuse("commit.missing", f"there is no opening for {core.operator}")
        chain = (
            ("acceptance", DISPATCHER, answer.acceptance.statement.clock),
            *(("draw call", DISPATCHER, call.statement.clock) for call in case.calls),
            ("draw record", DISPATCHER, case.record.statement.clock),
            ("commit", core.node, commit.clock),
            ("commit set", DISPATCHER, answer.commit.commit_set.statement.clock),
            ("receipt", core.node, core.clock),
            ("countersign", DISPATCHER, receipt.countersign.clock),
        )
        events = [(name, node, VectorClock.decode(clock)) for name, node, clock in chain]
        for (before, sender, earlier), (after, receiver, later) in pairwise(events):
            ahead = 1 if sender == receiver else 0
            if earlier[sender] < 1 or later[sender] < earlier[sender] + ahead:
                raise refuse("clock.order", f"the {after} of {core.operator} has not counted the {before}")
        # Wall clocks prove nothing; two that contradict each other beyond what the link allows were not both read.
        issued, received = answer.acceptance.statement.issued_at, receipt.countersign.received_at
        order = (
            (issued - MAX_SKEW_MS, core.started_at),
            (core.started_at, core.finished_at),
            (core.finished_at, received + MAX_SKEW_MS),
            (issued, received + MAX_SKEW_MS),
        )
        if any(earlier_time > later_time for earlier_time, later_time in order):
            raise refuse(
                "clock.times", f"the times of {core.operator} do not follow acceptance and precede receipt"
            )
    return "acceptance → draw → commit → reveal → receipt are causally ordered"


def local_1(case: Case) -> str:
    """What was re-executed here is what was signed."""
    if case.replay is None:
        raise Skip("not re-executed here (use --replay --model PATH)")
    if case.core.tee != "" and not case.core.engine.startswith(CANONICAL):
        raise Skip("this enclave's engine is not the canonical one; nothing to compare bit by bit")
    try:
        replayed = case.replay(case.answer, case.request)
    except VerificationError:
        raise
    except AOSError as error:
        if error.code == OUT_OF_VOCABULARY:  # the operator's fault
            raise refuse("local.tokens", "the answer holds a token that the model does not have") from error
        # This verifier's own lack: another model, no file.
        raise Skip(f"could not be re-executed here: {error.message}") from error
    for comparison in compared(case.answer, replayed):
        if not comparison.equal:
            raise refuse(comparison.code, comparison.complaint)
    root = " and state root" if case.core.state_root else ""
    return f"re-executed here: the same {len(replayed.tokens)} tokens, text{root}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One thing that a re-execution is compared by: what was signed and what came out here, as text to show."""

    name: str
    signed: str
    here: str
    equal: bool
    code: str
    complaint: str


def compared(answer: Answer, replayed: Replayed) -> tuple[Comparison, ...]:
    """What was signed against what a re-execution gave; equal where every one of them is."""
    core = answer.receipt.core
    prompt = hashes.prompt_tokens_hash(answer.nonce, replayed.prompt_tokens)
    first = next(
        (i for i, (a, b) in enumerate(zip(answer.tokens, replayed.tokens, strict=False)) if a != b),
        min(len(answer.tokens), len(replayed.tokens)),
    )
    same_tokens = replayed.tokens == answer.tokens
    found = (
        Comparison(
            name="prompt tokens",
            signed=str(core.n_prompt),
            here=f"{len(replayed.prompt_tokens)}, {prompt.hex()[:16]}…",
            equal=(prompt, len(replayed.prompt_tokens)) == (core.prompt_tokens_hash, core.n_prompt),
            code="local.prompt_tokens",
            complaint="the prompt has other tokens here",
        ),
        Comparison(
            name="tokens",
            signed=str(len(answer.tokens)),
            here=str(len(replayed.tokens)) if same_tokens else f"others from token {first} on",
            equal=same_tokens,
            code="local.tokens",
            complaint="re-execution chose other tokens",
        ),
        Comparison(
            name="text",
            signed=f"{len(answer.text)} characters",
            here=f"{len(replayed.text)} characters",
            equal=replayed.text == answer.text,
            code="local.text",
            complaint="the tokens spell another text",
        ),
        Comparison(
            name="finish reason",
            signed=core.finish_reason,
            here=replayed.finish_reason,
            equal=replayed.finish_reason == core.finish_reason,
            code="local.finish_reason",
            complaint="re-execution ended for another reason",
        ),
        Comparison(
            name="state root",
            signed=core.state_root.hex(),
            here=(replayed.state_root or b"").hex(),
            equal=replayed.state_root == core.state_root,
            code="local.state_root",
            complaint="re-execution gave another state root",
        ),
    )
    # An enclave's receipt has an answer statement in the state root's place.
    return found if core.tee == "" else tuple(one for one in found if one.name != "state root")
