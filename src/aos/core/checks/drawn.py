"""Who was drawn, and with which seed: beacon-1, registry-1, draw-1, vrf-1, seed-1."""

from aos.core import draw, draw_check, hashes
from aos.core.answer import Receipt
from aos.core.beacon import epoch_of, verify_beacon
from aos.core.checks.case import Case, Skip, refuse, same, short
from aos.core.statements import check_signed


def beacon_1(case: Case) -> str:
    """The beacons lead to the trusted anchor, and the epochs fit the job's times."""
    trust, accepted = case.trusted(), case.answer.acceptance.statement
    if accepted.epoch != epoch_of(accepted.issued_at, trust.genesis, trust.epoch_ms):
        raise refuse("beacon.epoch", "the accepted epoch is not that of the issue time")
    if case.first_call.statement.epoch > epoch_of(accepted.expires_at, trust.genesis, trust.epoch_ms):
        raise refuse("beacon.epoch", "the first draw is of an epoch after the job expired")
    for call in case.calls:
        statement = call.statement
        if statement.beacon_source != "dispatcher":
            raise Skip("the beacon is a chain's; no chain is read here")
        if statement.epoch >= trust.beacon.length:
            raise refuse("beacon.epoch", "the epoch is beyond the published chain")
        verify_beacon(trust.beacon.anchor, statement.epoch, statement.beacon)
    return "beacon leads to the published anchor (dispatcher's: it could foresee it)"


def registry_1(case: Case) -> tuple[str, str]:
    """The snapshot roots are trusted."""
    trust = case.trusted()
    root = case.call.statement.snapshot_root
    if any(call.statement.snapshot_root not in trust.registry_roots for call in case.calls):
        raise Skip("the trust file does not name this registry root; it is the dispatcher's word")
    return "registry root is trusted", short(root)


def draw_1(case: Case) -> str:
    """The draw seed is D's only one, and the whole draw follows from it."""
    part, counts = case.answer.draw, case.record.statement.counts
    if case.vrf_key is not None:  # whatever else the file leaves out, it holds this
        draw.verify_draw_call(
            case.call, network=case.core.network, dispatcher=case.core.dispatcher, vrf_key=case.vrf_key
        )
    if not part.complete:
        for operator in case.record.statement.seats:
            case.seat_of(operator)
        raise Skip("only the seated operators' entries are in the file")
    if case.vrf_key is None:
        raise Skip("the dispatcher's VRF key is not known without a trust file")
    draw_check.verify_draw(
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


def vrf_1(case: Case) -> str:
    """This draw seated this operator."""
    core, call = case.core, case.call.statement
    check_signed(case.call, address=core.dispatcher)
    draw.verify_record_link(case.record, call=case.call)
    same(
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
    proven = seat(case, case.answer.receipt)
    draw_check.check_seat_order(call, case.record.statement)
    how = "below threshold"
    if not proven:
        raise Skip("a filled seat: its rule needs every entry, and the file holds only the seated ones")
    if core.vrf.status == "filled":
        how = "filled by the public rule"
        operators = [entry.operator for entry in case.answer.draw.entries]
        entries = [entry.entry for entry in case.answer.draw.entries]
        draw_check.check_seats(call, case.record.statement, operators, entries)
    return f"operator drawn by VRF, proof valid, {how}"


def seat(case: Case, receipt: Receipt) -> bool:
    """Check an operator's place and role in the draw; True where the file proves that the rule gave it the seat.

    Below its threshold an operator sits by its own proof; whether a seat was rightly filled, only every entry can tell.
    Raises ``draw.*``, ``vrf.receipt``, ``vrf.role``, ``vrf.stream``.
    """
    core = receipt.core
    seat = case.seat_of(core.operator)
    claim = seat.claim
    same(
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
        raise refuse("vrf.role", f"seat {seat.seat} is the {expected}'s, not a {core.role}'s")
    if (core.stream_head != b"") != (core.role == "executor"):
        raise refuse("vrf.stream", "only the executor of a streamed run has a stream head")
    return seat.filled_checked or case.answer.draw.complete


def seed_1(case: Case) -> str:
    """The sampling seed is the request's, or attempt 1's draw gives it."""
    core, own, first = case.core, case.request.job.params.seed, case.answer.draw.first_draw
    if (core.attempt == 1) != (first is None):
        raise refuse(
            "seed.first_draw", "attempts above 1 carry the draw call of attempt 1, and no other does"
        )
    if first is not None:
        statement = first.statement
        check_signed(first, address=core.dispatcher)
        same(
            "seed.first_draw",
            "the first draw is of another job",
            network=(statement.network, core.network),
            dispatcher=(statement.dispatcher, core.dispatcher),
            job_ref=(statement.job_ref, core.job_ref),
            attempt=(statement.attempt, 1),
            model_id=(statement.model_id, core.model_id),
        )
        if statement.epoch > case.call.statement.epoch:
            raise refuse("seed.first_draw", "the first draw is of a later epoch than this one")
    source = "draw" if own is None else "request"
    seed = hashes.sampling_seed_from_draw(case.first_call.statement.draw_seed) if own is None else own
    if (core.seed_source, core.sampling_seed) != (source, seed):
        raise refuse("seed.value", f"the sampling seed is not what the {source} gives")
    if first is not None or own is None:
        if case.vrf_key is None:
            raise Skip("the dispatcher's VRF key is not known without a trust file")
        draw.verify_draw_call(
            case.first_call, network=core.network, dispatcher=core.dispatcher, vrf_key=case.vrf_key
        )
    return f"sampling seed follows from the {source}"
