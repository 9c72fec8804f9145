"""``verify_answer``: one numbered list of checks over an answer file (docs/spec/08-receipts.md, "Checks, in order").

Pure and offline: trust and policy are arguments, and nothing in the file adds to them. Each check raises what it found
wrong, says why it was skipped, or returns what it saw. Levels and verdict are computed here, never read from the file.
Whether the text is true, or who stands behind an operator's key, no check can say (docs/threat-model.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise

from aos.core import draw, hashes, merkle
from aos.core.answer import MAX_RECEIPT_BYTES, Answer, DrawnOperator, Receipt, read_answer, receipt_bytes
from aos.core.beacon import epoch_of, verify_beacon
from aos.core.clock import DISPATCHER, VectorClock
from aos.core.codec import decode, encode
from aos.core.encoding import b64u_encode, parse_canonical
from aos.core.report import Check, Report, Status, Verdict
from aos.core.signing import verify_statement
from aos.core.statements import Request, check_signed, hash_of
from aos.core.tee import TeeAnswer, verify_simulated
from aos.core.trust import Policy, Trust
from aos.errors import AOSError, VerificationError

_UNREADABLE = ("encoding.", "field.missing", "statement.version", "statement.type")
_DUPLICATE_OR_FORM = ("encoding.duplicate_key", "encoding.not_canonical")
_ABSENT = ("tee.no_evidence", "commit.missing")
"""Failures that say: the file lacks what this check needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a re-execution gave: the state root (32 bytes) and the token ids that this engine would have chosen."""

    state_root: bytes | None
    tokens: tuple[int, ...]


Replay = Callable[[Answer, Request], Replayed]


CheckFunction = Callable[["_Case"], str | tuple[str, str]]
"""Returns what it saw (and a value worth showing), raises AOSError for what is wrong and _Skip for what it cannot check."""


class _Skip(Exception):
    """This check could not be made, for the reason in its text."""


def verify_answer(
    data: bytes, *, trust: Trust | None, policy: Policy, replay: Replay | None = None
) -> Report:
    """Judge an answer file. Never raises for what the file holds: a report says what is wrong with it.

    ``replay`` re-executes the request where the caller has the model; it may raise AOSError.
    """
    try:
        answer = read_answer(data)
    except AOSError as error:
        check = Check(id="file-1", status="FAIL", text=error.message, code=error.code)
        unreadable = error.code.startswith(_UNREADABLE) and error.code not in _DUPLICATE_OR_FORM
        return Report(
            checks=(check,),
            verdict="EVIDENCE MISSING" if unreadable else "NOT VERIFIED",
            levels=(),
            policy=policy.name,
            missing=(),
        )
    case = _Case(answer, trust, policy, replay)
    checks = tuple(_run(name, check, case) for name, check in CHECKS)
    status = {check.id: check.status for check in checks}
    missing = tuple(
        wanted for wanted in policy.required if all(status.get(x) != "PASS" for x in wanted.split("|"))
    )
    failed = [check.code for check in checks if check.status == "FAIL"]
    verdict: Verdict = "PARTIAL" if missing else "VERIFIED"
    if failed:
        verdict = "EVIDENCE MISSING" if all(code in _ABSENT for code in failed) else "NOT VERIFIED"
    levels = () if failed else _levels(case, status)
    return Report(checks=checks, verdict=verdict, levels=levels, policy=policy.name, missing=missing)


def _run(name: str, check: "CheckFunction", case: "_Case") -> Check:
    try:
        found = check(case)
        text, detail = (found, "") if isinstance(found, str) else found
        return Check(id=name, status="PASS", text=text, detail=detail)
    except _Skip as skip:
        return Check(id=name, status="SKIP", text=str(skip))
    except AOSError as error:
        return Check(id=name, status="FAIL", text=error.message, code=error.code)


def _levels(case: "_Case", status: dict[str, Status]) -> tuple[str, ...]:
    levels: list[str] = []
    if all(status.get(name) == "PASS" for name in ("receipt-1", "receipt-2", "io-1", "io-2")):
        levels.append("signed")
    if levels and status.get("agree-1") == status.get("commit-1") == "PASS":
        levels.append(f"redundant:{1 + len(case.answer.peers)}")
    if levels and status.get("tee-1") == "PASS":
        levels.append("simulated" if case.core.tee == "simulated" else "attested")
    if levels and status.get("local-1") == "PASS":
        levels.append("replayed")
    return tuple(levels)


class _Case:
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

    @cached_property
    def request(self) -> Request:
        data = parse_canonical(self.answer.request.encode("utf-8"), max_bytes=hashes.MAX_REQUEST_BYTES)
        return decode(Request, data, where="request")

    @cached_property
    def opened(self) -> draw.OpenedTag:
        sign = self.answer.receipt.countersign
        return draw.OpenedTag(salt=sign.tag_salt, tag=sign.tag, position=sign.position)

    @cached_property
    def vrf_key(self) -> bytes | None:
        """The trusted VRF key of this answer's dispatcher."""
        known = self.trust.dispatchers if self.trust is not None else ()
        return next((d.vrf_key for d in known if d.address == self.core.dispatcher), None)

    @cached_property
    def drawn(self) -> dict[str, DrawnOperator]:
        return {entry.operator.node_id: entry for entry in self.answer.draw.entries}

    def trusted(self) -> Trust:
        if self.trust is None:
            raise _Skip("no trust file (--trust FILE)")
        return self.trust

    def seat_of(self, operator: str) -> draw.VerifiedSeat:
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
        return draw.verify_seat(
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


def _refuse(code: str, message: str, *, field: str | None = None) -> VerificationError:
    return VerificationError(code, message, field=field)


def _same(code: str, message: str, **pairs: tuple[object, object]) -> None:
    for name, (left, right) in pairs.items():
        if left != right:
            raise _refuse(code, f"{message}: {name} differs", field=name)


def _short(data: bytes) -> str:
    return f"{data.hex()[:6]}…"


# --- the checks, in the order of the specification


def _file_1(case: _Case) -> str:
    """Sizes, strict JSON, canonical form, exact members: read_answer did all of it. Entries once, in their order."""
    indices = [entry.index for entry in case.answer.draw.entries]
    if indices != sorted(set(indices)):
        raise _refuse("file.draw_entries", "the draw's entries are not in their order, each once")
    if case.answer.draw.complete:
        if indices != list(range(len(indices))):
            raise _refuse("file.draw_entries", "the draw's entries do not have every index")
        if any(e.operator_path or e.entry_path for e in case.answer.draw.entries):
            raise _refuse("file.draw_entries", "a complete draw carries no paths")
    elif {e.operator.node_id for e in case.answer.draw.entries} != set(case.record.statement.seats):
        raise _refuse("file.draw_entries", "a shortened draw carries the seated operators, and no other")
    names = [opening.commit.statement.node_id for opening in case.answer.commit.openings]
    if names != sorted(set(names)):
        raise _refuse("file.openings", "the openings are not ascending by node_id, each once")
    if set(names) - {receipt.core.operator for receipt in case.receipts}:
        raise _refuse("file.openings", "an opening is of no receipt in the file")
    return "strict canonical JSON, exact members"


def _trust_1(case: _Case) -> tuple[str, str]:
    trust = case.trusted()
    if case.core.network != trust.network:
        raise _refuse("trust.network", f"the answer is of network {case.core.network}, not {trust.network}")
    if case.vrf_key is None:
        raise _refuse("trust.dispatcher", f"dispatcher {case.core.dispatcher} is not in the trust file")
    return "network and dispatcher are trusted", trust.network


def _receipt_1(case: _Case) -> tuple[str, str]:
    _operator_signature(case.answer.receipt)
    operator = case.core.operator
    return "canonical form, operator signature", f"{operator[:6]}…{operator[-4:]}"


def _operator_signature(receipt: Receipt) -> None:
    size = receipt_bytes(receipt)
    if size > MAX_RECEIPT_BYTES:
        raise _refuse("receipt.size", f"core and signatures are {size} bytes, more than {MAX_RECEIPT_BYTES}")
    verify_statement(encode(receipt.core), b64u_encode(receipt.signature), receipt.core.operator)


def _receipt_2(case: _Case) -> str:
    _countersign(case.answer.receipt)
    return "dispatcher's countersign: this receipt, draw and commit set"


def _countersign(receipt: Receipt) -> None:
    core, sign = receipt.core, receipt.countersign
    _same(
        "receipt.countersign",
        "the countersign is of another receipt",
        network=(sign.network, core.network),
        dispatcher=(sign.dispatcher, core.dispatcher),
        receipt=(sign.receipt, hash_of(core)),
        receipt_signature=(sign.receipt_signature, sha256(receipt.signature).digest()),
        draw_record=(sign.draw_record, core.draw_record),
        commit_set=(sign.commit_set, core.commit_set),
    )
    verify_statement(encode(sign), b64u_encode(receipt.countersign_signature), core.dispatcher)


def _io_1(case: _Case) -> str:
    request = case.request
    if hashes.request_hash(case.answer.nonce, case.answer.request.encode("utf-8")) != case.core.request_hash:
        raise _refuse("io.request_hash", "the request's hash is not that of the saved request bytes")
    _same(
        "io.request_network",
        "the request is of another network",
        network=(request.network, case.core.network),
        dispatcher=(request.dispatcher, case.core.dispatcher),
    )
    return "request hash equals the saved request bytes"


def _io_2(case: _Case) -> str:
    answer, core = case.answer, case.core
    if hashes.response_hash(answer.nonce, answer.text) != core.response_hash:
        raise _refuse("io.response_hash", "the response hash is not that of the saved text")
    if hashes.tokens_hash(answer.nonce, answer.tokens) != core.tokens_hash:
        raise _refuse("io.tokens_hash", "the tokens hash is not that of the saved tokens")
    if len(answer.tokens) != core.n_out:
        raise _refuse("io.n_out", "the number of tokens is not that of the saved tokens")
    return f"text and {core.n_out} tokens equal the signed hashes"


def _params_1(case: _Case) -> tuple[str, str]:
    core, job = case.core, case.request.job
    if hashes.params_hash(case.answer.nonce, job.params) != core.params_hash:
        raise _refuse("params.hash", "the parameters are not those of the request")
    if job.model_id != core.model_id:
        raise _refuse("params.model", "the model is not the requested one")
    if core.n_out > job.params.max_tokens or (core.finish_reason == "stop" and core.n_out == 0):
        raise _refuse("params.max_tokens", "the number of tokens is not possible under the request")
    if core.finish_reason == "cancelled":
        raise _refuse("params.finish_reason", "a cancelled run has no receipt")
    if any(stop and stop in case.answer.text for stop in job.params.stop):
        raise _refuse("params.stop", "the text goes on past a stop string")
    enclave = (core.tee != "", core.answer_statement != b"", core.state_root == b"")
    if enclave != (job.tag == "tee",) * 2 + (job.tag == "tee",):
        raise _refuse("params.job_type", "the receipt is not of the requested job type")
    return "model and parameters are the requested ones", _short(core.model_id)


def _accept_1(case: _Case) -> str:
    accepted, core, request = case.answer.acceptance.statement, case.core, case.request
    check_signed(case.answer.acceptance, address=core.dispatcher)
    _same(
        "accept.foreign",
        "the acceptance is of another job",
        network=(accepted.network, core.network),
        dispatcher=(accepted.dispatcher, core.dispatcher),
        job_ref=(accepted.job_ref, core.job_ref),
        request_hash=(accepted.request_hash, core.request_hash),
        nonce=(accepted.nonce, case.answer.nonce),
        issued_at=(accepted.issued_at, request.issued_at),
    )
    if case.opened.tag != accepted.tag if case.opened.position == "" else case.opened.tag == "":
        raise _refuse("accept.tag", "the run's tag is not the accepted one")
    if case.first_call.statement.epoch < accepted.epoch:
        raise _refuse("accept.epoch", "the first draw is of an epoch before the acceptance")
    return f"accepted by the dispatcher in epoch {accepted.epoch}"


def _beacon_1(case: _Case) -> str:
    trust, accepted = case.trusted(), case.answer.acceptance.statement
    if accepted.epoch != epoch_of(accepted.issued_at, trust.genesis, trust.epoch_ms):
        raise _refuse("beacon.epoch", "the accepted epoch is not that of the issue time")
    if case.first_call.statement.epoch > epoch_of(accepted.expires_at, trust.genesis, trust.epoch_ms):
        raise _refuse("beacon.epoch", "the first draw is of an epoch after the job expired")
    for call in case.calls:
        statement = call.statement
        if statement.beacon_source != "dispatcher":
            raise _Skip("the beacon is a chain's; no chain is read here")
        if statement.epoch >= trust.beacon.length:
            raise _refuse("beacon.epoch", "the epoch is beyond the published chain")
        verify_beacon(trust.beacon.anchor, statement.epoch, statement.beacon)
    return "beacon leads to the published anchor (dispatcher's: it could foresee it)"


def _registry_1(case: _Case) -> tuple[str, str]:
    trust = case.trusted()
    root = case.call.statement.snapshot_root
    if any(call.statement.snapshot_root not in trust.registry_roots for call in case.calls):
        raise _Skip("the trust file does not name this registry root; it is the dispatcher's word")
    return "registry root is trusted", _short(root)


def _draw_1(case: _Case) -> str:
    part, counts = case.answer.draw, case.record.statement.counts
    if not part.complete:
        for operator in case.record.statement.seats:
            case.seat_of(operator)
        raise _Skip("only the seated operators' entries are in the file")
    if case.vrf_key is None:
        raise _Skip("the dispatcher's VRF key is not known without a trust file")
    draw.verify_draw(
        call=case.call,
        record=case.record,
        max_range=part.max_range,
        operators=[entry.operator for entry in part.entries],
        entries=[entry.entry for entry in part.entries],
        claims={e.operator.node_id: e.claim for e in part.entries if e.claim is not None},
        network=case.core.network,
        dispatcher=case.core.dispatcher,
        vrf_key=case.vrf_key,
        opened=case.opened,
    )
    asked = draw.total(counts) - counts.ineligible
    answered = asked - counts.unanswered
    seats = len(case.record.statement.seats)
    return f"draw complete: {answered} of {asked} eligible operators answered, {seats} seated"


def _vrf_1(case: _Case) -> str:
    core, call = case.core, case.call.statement
    check_signed(case.call, address=core.dispatcher)
    draw.verify_record_link(case.record, call=case.call)
    _same(
        "vrf.foreign_draw",
        "the draw is of another run",
        network=(call.network, core.network),
        dispatcher=(call.dispatcher, core.dispatcher),
        job_ref=(call.job_ref, core.job_ref),
        attempt=(call.attempt, core.attempt),
        model_id=(call.model_id, core.model_id),
        job_type=(call.job_type, case.request.job.tag),
        draw_record=(case.record.hash, core.draw_record),
        draw_counts=(case.record.statement.counts, core.draw_counts),
        min_operators=(case.record.statement.min_operators, case.request.min_operators),
    )
    _seat(case, case.answer.receipt)
    draw.check_seat_order(call, case.record.statement)
    how = "below threshold"
    if core.vrf.status == "filled":
        how = "filled by the public rule"
        if not case.answer.draw.complete:
            raise _Skip("a filled seat: its rule needs every entry, and the file holds only the seated ones")
        operators = [entry.operator for entry in case.answer.draw.entries]
        entries = [entry.entry for entry in case.answer.draw.entries]
        draw.check_seats(call, case.record.statement, operators, entries)
    return f"operator drawn by VRF, proof valid, {how}"


def _seat(case: _Case, receipt: Receipt) -> None:
    core = receipt.core
    seat = case.seat_of(core.operator)
    claim = seat.claim
    _same(
        "vrf.receipt",
        "the receipt's VRF fields are not those of the draw",
        node=(core.node, seat.operator.node),
        key=(core.vrf.key, seat.operator.vrf_key),
        pi=(core.vrf.pi, claim.claim.statement.pi),
        beta=(core.vrf.beta, claim.beta),
        alpha_hash=(core.vrf.alpha_hash, hashes.alpha_hash(draw.claim_alpha_of(case.call.statement))),
        status=(core.vrf.status, "selected" if seat.entry.status == "selected" else "filled"),
    )
    if case.request.blind:
        expected = "blind"
    elif seat.seat == 0:
        expected = "executor"
    else:
        expected = "checker" if case.request.job.tag == "opml" else "blind"
    if core.role != expected:
        raise _refuse("vrf.role", f"seat {seat.seat} is the {expected}'s, not a {core.role}'s")
    if (core.stream_head != b"") != (core.role == "executor"):
        raise _refuse("vrf.stream", "only the executor of a streamed run has a stream head")


def _seed_1(case: _Case) -> str:
    core, own, first = case.core, case.request.job.params.seed, case.answer.draw.first_draw
    if (core.attempt == 1) != (first is None):
        raise _refuse(
            "seed.first_draw", "attempts above 1 carry the draw call of attempt 1, and no other does"
        )
    if first is not None:
        statement = first.statement
        check_signed(first, address=core.dispatcher)
        _same(
            "seed.first_draw",
            "the first draw is of another job",
            network=(statement.network, core.network),
            dispatcher=(statement.dispatcher, core.dispatcher),
            job_ref=(statement.job_ref, core.job_ref),
            attempt=(statement.attempt, 1),
            model_id=(statement.model_id, core.model_id),
        )
        if statement.epoch > case.call.statement.epoch:
            raise _refuse("seed.first_draw", "the first draw is of a later epoch than this one")
    source = "draw" if own is None else "request"
    seed = hashes.sampling_seed_from_draw(case.first_call.statement.draw_seed) if own is None else own
    if (core.seed_source, core.sampling_seed) != (source, seed):
        raise _refuse("seed.value", f"the sampling seed is not what the {source} gives")
    if first is not None:
        if case.vrf_key is None:
            raise _Skip("the dispatcher's VRF key is not known without a trust file")
        draw.verify_draw_call(first, network=core.network, dispatcher=core.dispatcher, vrf_key=case.vrf_key)
    return f"sampling seed follows from the {source}"


def _commit_1(case: _Case) -> str:
    core, commit_set = case.core, case.answer.commit.commit_set
    check_signed(commit_set, address=core.dispatcher)
    statement = commit_set.statement
    _same(
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
        raise _refuse("commit.order", "the commit set is not ascending by node_id, each once")
    if sorted(committed + list(statement.missing)) != sorted(case.record.statement.seats):
        raise _refuse("commit.seats", "the commit set does not account for every seat once")
    _opening(case, case.answer.receipt)
    return f"{len(committed)} of {len(case.record.statement.seats)} seats committed before any reveal; this one opens"


def _opening(case: _Case, receipt: Receipt) -> None:
    core = receipt.core
    found = [o for o in case.answer.commit.openings if o.commit.statement.node_id == core.operator]
    if not found:
        raise _refuse("commit.missing", f"there is no opening for {core.operator}")
    commit, salt = found[0].commit, found[0].salt
    check_signed(commit, address=core.operator)
    held = {entry.node_id: entry.commit for entry in case.answer.commit.commit_set.statement.commits}
    if held.get(core.operator) != commit.hash:
        raise _refuse("commit.not_in_set", f"the commit of {core.operator} is not in the commit set")
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
    _same(
        "commit.opening",
        "the commitment does not open to this result",
        network=(statement.network, core.network),
        job_ref=(statement.job_ref, core.job_ref),
        attempt=(statement.attempt, core.attempt),
        draw_record=(statement.draw_record, core.draw_record),
        commitment=(statement.commitment, expected),
    )


def _agree_1(case: _Case) -> tuple[str, str]:
    core, peers = case.core, case.answer.peers
    outcome = case.answer.receipt.countersign.outcome
    if outcome == "disputed":
        raise _refuse("agree.disputed", "the dispatcher's countersign says that results differ")
    if not peers:
        raise _Skip("no other operator's receipt is in the file")
    seats = case.record.statement.seats
    names = [core.operator, *(peer.core.operator for peer in peers)]
    if len(set(names)) != len(names):
        raise _refuse("agree.twice", "one operator appears twice")
    order = [seats.index(name) if name in seats else -1 for name in names]
    if order != sorted(order):
        raise _refuse("agree.order", "the other receipts are not in seat order")
    for peer in peers:
        _operator_signature(peer)
        _countersign(peer)
        other = peer.core
        _same(
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
        _same(
            "agree.countersign",
            f"the countersign of {other.operator} says otherwise",
            tag=(theirs.tag, ours.tag),
            position=(theirs.position, ours.position),
            tag_salt=(theirs.tag_salt, ours.tag_salt),
            outcome=(theirs.outcome, outcome),
        )
        _seat(case, peer)
        _opening(case, peer)
        if core.tee == "" and other.state_root != core.state_root:
            raise _refuse("agree.state_root", f"{other.operator} committed another state root")
    if core.tee != "":
        raise _Skip("enclave answers are not compared bit by bit")
    for peer in peers:
        _same(
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
    if outcome != "agreed":
        raise _refuse("agree.outcome", f"the dispatcher's countersign says {outcome}")
    return f"{len(names)} operators committed the same state root", _short(core.state_root)


def _clock_1(case: _Case) -> str:
    """An event precedes another iff the later clock has counted it: entry of its sender, not less."""
    answer = case.answer
    commits = {o.commit.statement.node_id: o.commit.statement for o in answer.commit.openings}
    for receipt in case.receipts:
        core = receipt.core
        commit = commits.get(core.operator)
        if commit is None:
            raise _refuse("commit.missing", f"there is no opening for {core.operator}")
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
                raise _refuse("clock.order", f"the {after} of {core.operator} has not counted the {before}")
        if core.started_at > core.finished_at:
            raise _refuse("clock.times", "the run ended before it began")
    return "acceptance → draw → commit → reveal → receipt are causally ordered"


def _tee_1(case: _Case) -> tuple[str, str]:
    core, evidence = case.core, case.answer.evidence
    if core.tee == "":
        if evidence is not None:
            raise _refuse("tee.unexpected", "an opML answer carries no enclave evidence")
        raise _Skip("no enclave: an opML answer")
    if evidence is None:
        raise _refuse("tee.no_evidence", "the receipt names an enclave and the file holds no evidence")
    _bound(core.operator, evidence.answer, case)
    _same(
        "tee.not_bound",
        "the enclave's boot statement is of another network or kind",
        network=(evidence.boot.network, core.network),
        tee=(evidence.boot.tee, core.tee),
    )
    if core.tee not in case.policy.accept_tee:
        raise _refuse("tee.policy", f'policy "{case.policy.name}" does not accept a TEE of kind {core.tee}')
    verify_simulated(
        evidence, roots=frozenset(root.key for root in case.trusted().tee_roots if root.tee == core.tee)
    )
    return "SIMULATED enclave: evidence bound to this answer", _short(evidence.boot.measurement)


def _bound(operator: str, statement: TeeAnswer, case: _Case) -> None:
    core = case.core
    _same(
        "tee.not_bound",
        "the enclave's answer statement is of another answer",
        answer_statement=(hash_of(statement), core.answer_statement),
        operator=(statement.operator, operator),
        job_ref=(statement.job_ref, core.job_ref),
        attempt=(statement.attempt, core.attempt),
        request_hash=(statement.request_hash, core.request_hash),
        response_hash=(statement.response_hash, core.response_hash),
        tokens_hash=(statement.tokens_hash, core.tokens_hash),
        prompt_tokens_hash=(statement.prompt_tokens_hash, core.prompt_tokens_hash),
        model_id=(statement.model_id, core.model_id),
        params_hash=(statement.params_hash, core.params_hash),
        sampling_seed=(statement.sampling_seed, core.sampling_seed),
        engine=(statement.engine, core.engine),
        n_prompt=(statement.n_prompt, core.n_prompt),
        n_out=(statement.n_out, core.n_out),
        finish_reason=(statement.finish_reason, core.finish_reason),
    )


def _local_1(case: _Case) -> str:
    if case.replay is None:
        raise _Skip("not re-executed here (use --replay --model PATH)")
    if case.core.tee != "":
        raise _Skip("this enclave's engine is not the canonical one; nothing to compare bit by bit")
    try:
        replayed = case.replay(case.answer, case.request)
    except VerificationError:
        raise
    except AOSError as error:  # this verifier's own lack: another model, no file
        raise _Skip(f"could not be re-executed here: {error.message}") from error
    if replayed.tokens != case.answer.tokens:
        raise _refuse("local.tokens", "re-execution chose other tokens")
    if replayed.state_root != case.core.state_root:
        raise _refuse("local.state_root", "re-execution gave another state root")
    return f"re-executed here: the same {len(replayed.tokens)} tokens and state root"


CHECKS: Sequence[tuple[str, CheckFunction]] = (
    ("file-1", _file_1),
    ("trust-1", _trust_1),
    ("receipt-1", _receipt_1),
    ("receipt-2", _receipt_2),
    ("io-1", _io_1),
    ("io-2", _io_2),
    ("params-1", _params_1),
    ("accept-1", _accept_1),
    ("beacon-1", _beacon_1),
    ("registry-1", _registry_1),
    ("draw-1", _draw_1),
    ("vrf-1", _vrf_1),
    ("seed-1", _seed_1),
    ("commit-1", _commit_1),
    ("agree-1", _agree_1),
    ("clock-1", _clock_1),
    ("tee-1", _tee_1),
    ("local-1", _local_1),
)
