"""A whole draw rechecked by a stranger: the honest one is recomputed, and each wrong piece is refused for its own reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from simulated_run import MAX_RANGE, MODEL, Network, Operator, secret

from aos.core import draw, draw_check, sortition
from aos.core.answer import Answer, DrawnOperator, seated_only
from aos.core.merkle import inclusion_path
from aos.core.statements import DrawCall, DrawEntry, DrawRecord, Signed, SnapshotEntry, VrfClaim, sign
from aos.core.vrf import ecvrf_public_key
from aos.errors import AOSError, RuleViolation, VerificationError

NETWORK = Network()
ANSWER = NETWORK.run(silent=["opml-3"], min_operators=2)
OTHER = secret("another hash")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Everything that ``verify_draw`` takes."""

    call: Signed[DrawCall]
    record: Signed[DrawRecord]
    max_range: int
    operators: tuple[SnapshotEntry, ...]
    entries: tuple[DrawEntry, ...]
    claims: Mapping[str, Signed[VrfClaim]]
    opened: draw.OpenedTag | None

    def verify(self, network: Network = NETWORK) -> draw_check.VerifiedDraw:
        return draw_check.verify_draw(
            call=self.call,
            record=self.record,
            max_range=self.max_range,
            operators=self.operators,
            entries=self.entries,
            claims=self.claims,
            network=network.name,
            dispatcher=network.dispatcher,
            vrf_key=ecvrf_public_key(network.vrf_seed),
            opened=self.opened,
        )

    def recorded(self, **changes: Any) -> Draw:
        """The draw with another record, signed by D."""
        return replace(self, record=sign(NETWORK.key, replace(self.record.statement, **changes)))

    def listed(self, entries: tuple[DrawEntry, ...]) -> Draw:
        """The draw with other entries, under a record that D signed over them."""
        return replace(
            self.recorded(entries_root=draw.entries_root(entries), counts=draw.count_entries(entries)),
            entries=entries,
        )

    def claimed(self, node_id: str, claim: Signed[VrfClaim] | None) -> Draw:
        """The draw with another claim of one operator, which its entry and D's record name."""
        rest = {name: held for name, held in self.claims.items() if name != node_id}
        claims = rest if claim is None else {**rest, node_id: claim}
        named = b"" if claim is None else claim.hash
        return replace(
            self.listed(tuple(replace(e, claim=named) if e.node_id == node_id else e for e in self.entries)),
            claims=claims,
        )


def of(answer: Answer) -> Draw:
    part = answer.draw
    sign_ = answer.receipt.countersign
    return Draw(
        call=part.draw_call,
        record=part.draw_record,
        max_range=part.max_range,
        operators=tuple(e.operator for e in part.entries),
        entries=tuple(e.entry for e in part.entries),
        claims={e.operator.node_id: e.claim for e in part.entries if e.claim is not None},
        opened=draw.OpenedTag(salt=sign_.tag_salt, tag=sign_.tag, position=sign_.position),
    )


HONEST = of(ANSWER)
CLAIMANT = next(e.node_id for e in HONEST.entries if e.claim)
SILENT = NETWORK.operators[3].node_id
INELIGIBLE = next(e.node_id for e in HONEST.entries if e.status == "ineligible")


def test_an_honest_draw_is_recomputed() -> None:
    verified = HONEST.verify()
    assert verified.split_checked
    assert verified.record == ANSWER.draw.draw_record.statement
    statuses = {entry.node_id: entry.status for entry in verified.entries}
    assert statuses[SILENT] == "unanswered"
    assert statuses[INELIGIBLE] == "ineligible"
    assert set(verified.claims) == {n for n, s in statuses.items() if s in ("selected", "not_selected")}


def test_before_the_tag_is_open_the_split_is_bounded_and_not_checked() -> None:
    assert not replace(HONEST, opened=None).verify().split_checked


def resigned(statement: VrfClaim, **changes: Any) -> Signed[VrfClaim]:
    operator = NETWORK.by_id(statement.node_id)
    return sign(operator.key, replace(statement, **changes))


def opening() -> draw.OpenedTag:
    assert HONEST.opened is not None
    return HONEST.opened


DECLINE = resigned(HONEST.claims[CLAIMANT].statement, answer="decline", reason="draining", pi=b"")


def called(**changes: Any) -> Draw:
    """The draw with another call, signed by D, and a record about it."""
    call = sign(NETWORK.key, replace(HONEST.call.statement, **changes))
    return replace(replace(HONEST, call=call).recorded(draw_call=call.hash), call=call)


def own_claim(**changes: Any) -> Draw:
    return HONEST.claimed(CLAIMANT, resigned(HONEST.claims[CLAIMANT].statement, **changes))


def statuses(node_id: str, status: Any) -> Draw:
    return HONEST.listed(
        tuple(replace(e, status=status) if e.node_id == node_id else e for e in HONEST.entries)
    )


def flipped() -> Draw:
    """A claimant called selected where it was not, or the other way round."""
    status = next(e.status for e in HONEST.entries if e.node_id == CLAIMANT)
    return statuses(CLAIMANT, "selected" if status == "not_selected" else "not_selected")


def another_snapshot(change: Callable[[SnapshotEntry], SnapshotEntry]) -> Draw:
    first, *rest = HONEST.operators
    return replace(HONEST, operators=(change(first), *rest))


def claim_of_the_ineligible() -> Draw:
    call, operator = HONEST.call, NETWORK.by_id(INELIGIBLE)
    claim = sign(operator.key, draw.make_claim(call, node_id=INELIGIBLE, vrf_seed=operator.vrf_seed))
    return HONEST.claimed(INELIGIBLE, claim)


def stranger_claim() -> Draw:
    call = HONEST.call
    claim = sign(secret("nobody"), draw.make_claim(call, node_id=CLAIMANT, vrf_seed=secret("nobody")))
    return replace(HONEST, claims={**HONEST.claims, "0x" + "ff" * 20: claim})


def foreign_proof() -> Draw:
    """A valid proof of another operator's key."""
    pi = draw.make_claim(HONEST.call, node_id=CLAIMANT, vrf_seed=secret("another key")).pi
    return own_claim(pi=pi)


def reused_proof() -> Draw:
    """The operator's own proof of another draw."""
    return own_claim(pi=of(NETWORK.run(job="job 2")).claims[CLAIMANT].statement.pi)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: of(Network(name="elsewhere").run()), "draw.foreign_call"),
        (lambda: called(network="other"), "draw.foreign_call"),
        (lambda: called(dispatcher=CLAIMANT), "draw.foreign_call"),
        (lambda: replace(HONEST, claims={**HONEST.claims, CLAIMANT: DECLINE}), "draw.claim_unexpected"),
        (lambda: replace(HONEST, call=sign(secret("x"), HONEST.call.statement)), "draw.call_signature"),
        (lambda: replace(HONEST, call=of(NETWORK.run(job="job 2")).call), "draw.foreign_record"),
        (lambda: HONEST.recorded(attempt=2), "draw.foreign_record"),
        (lambda: HONEST.recorded(job_ref=OTHER), "draw.foreign_record"),
        (lambda: HONEST.recorded(snapshot_root=OTHER), "draw.foreign_record"),
        (lambda: HONEST.recorded(draw_call=OTHER), "draw.foreign_record"),
        (lambda: HONEST.recorded(network="other"), "draw.foreign_record"),
        (lambda: HONEST.recorded(dispatcher=CLAIMANT), "draw.foreign_record"),
        (lambda: replace(HONEST, record=sign(secret("x"), HONEST.record.statement)), "draw.record_signature"),
        (lambda: replace(HONEST, operators=HONEST.operators[:-1]), "draw.snapshot_root"),
        (lambda: replace(HONEST, max_range=MAX_RANGE + 1), "draw.snapshot_root"),
        (lambda: another_snapshot(lambda o: replace(o, end=o.end - 1)), "draw.snapshot_root"),
        (lambda: another_snapshot(lambda o: replace(o, end=o.end + 1)), "draw.snapshot_range"),
        (lambda: another_snapshot(lambda o: replace(o, end=o.start)), "draw.snapshot_range"),
        (lambda: replace(HONEST, max_range=1), "draw.snapshot_range"),
        (lambda: replace(HONEST, max_range=0), "draw.snapshot_range"),
        (lambda: replace(HONEST, operators=HONEST.operators[::-1]), "draw.snapshot_order"),
        (
            lambda: another_snapshot(lambda o: replace(o, node=HONEST.operators[1].node)),
            "draw.snapshot_order",
        ),
        (
            lambda: another_snapshot(lambda o: replace(o, vrf_key=HONEST.operators[1].vrf_key)),
            "draw.snapshot_key",
        ),
        (lambda: HONEST.listed(HONEST.entries[:-1]), "draw.entry_missing"),
        (lambda: HONEST.listed(HONEST.entries[::-1]), "draw.entry_order"),
        (lambda: HONEST.recorded(entries_root=OTHER), "draw.entries_root"),
        (
            lambda: HONEST.recorded(counts=replace(HONEST.record.statement.counts, declined=1)),
            "draw.counts",
        ),
        (lambda: replace(HONEST, opened=draw.OpenedTag(salt=OTHER, tag="", position="")), "draw.tag"),
        (stranger_claim, "draw.claim_unexpected"),
        (lambda: replace(HONEST, claims={}), "draw.claim_missing"),
        (claim_of_the_ineligible, "draw.claim_unexpected"),
        (lambda: own_claim(network="other"), "draw.foreign_claim"),
        (lambda: own_claim(job_ref=OTHER), "draw.foreign_claim"),
        (lambda: own_claim(attempt=2), "draw.foreign_claim"),
        (lambda: own_claim(draw_call=OTHER), "draw.foreign_claim"),
        (
            lambda: HONEST.claimed(CLAIMANT, HONEST.claims[[*HONEST.claims][1]]),
            "draw.foreign_claim",
        ),
        (lambda: own_claim(reason="capacity"), "draw.claim_form"),
        (lambda: own_claim(pi=b""), "draw.claim_form"),
        (lambda: own_claim(answer="decline"), "draw.claim_form"),
        (lambda: own_claim(answer="decline", reason="capacity"), "draw.claim_form"),
        (
            lambda: HONEST.claimed(CLAIMANT, sign(secret("x"), HONEST.claims[CLAIMANT].statement)),
            "draw.claim_signature",
        ),
        (foreign_proof, "draw.claim_proof"),
        (reused_proof, "draw.claim_proof"),
        (flipped, "draw.status"),
        (lambda: statuses(CLAIMANT, "unanswered"), "draw.status"),
        (lambda: statuses(CLAIMANT, "ineligible"), "draw.status"),
        (lambda: statuses(SILENT, "declined"), "draw.status"),
        (lambda: statuses(INELIGIBLE, "unanswered"), "draw.status"),
        (lambda: own_claim(answer="decline", reason="capacity", pi=b""), "draw.status"),
        (lambda: HONEST.recorded(seats=HONEST.record.statement.seats[::-1]), "draw.seats"),
        (lambda: HONEST.recorded(seats=HONEST.record.statement.seats[:1]), "draw.seats"),
        (lambda: HONEST.recorded(seats=(SILENT, *HONEST.record.statement.seats[1:])), "draw.seats"),
        (lambda: HONEST.recorded(min_operators=1), "draw.seats"),
        (lambda: HONEST.recorded(filled=HONEST.record.statement.filled + 1), "draw.filled"),
    ],
)
def test_a_wrong_draw_is_refused_by_name(make: Callable[[], Draw], code: str) -> None:
    with pytest.raises(VerificationError) as caught:
        make().verify()
    assert caught.value.code == code


def test_a_draw_seed_is_the_only_output_of_the_dispatchers_key() -> None:
    call = HONEST.call.statement
    seed, proof = draw.make_draw_seed(
        secret("another vrf key"),
        network=call.network,
        job_ref=call.job_ref,
        attempt=call.attempt,
        beacon=call.beacon,
        snapshot_root=call.snapshot_root,
    )
    for changes in (
        {"draw_seed": OTHER * 2},
        {"draw_seed": seed, "draw_proof": proof},
        {"beacon": OTHER},
        {"attempt": 2},
        {"job_ref": OTHER},
        {"snapshot_root": OTHER},
        {"draw_proof": bytes(80)},
    ):
        bent = sign(NETWORK.key, replace(call, **changes))  # type: ignore[arg-type]
        with pytest.raises(VerificationError) as caught:
            draw.verify_draw_call(
                bent,
                network=NETWORK.name,
                dispatcher=NETWORK.dispatcher,
                vrf_key=ecvrf_public_key(NETWORK.vrf_seed),
            )
        assert caught.value.code == "draw.seed_proof"


def test_a_decline_is_listed_and_passed_over() -> None:
    decline = DECLINE
    claims = {
        name: draw.verify_claim(
            claim if name != CLAIMANT else decline,
            call=HONEST.call,
            operator=next(o for o in HONEST.operators if o.node_id == name),
        )
        for name, claim in HONEST.claims.items()
    }
    record, entries = draw.build_draw_record(
        call=HONEST.call,
        max_range=MAX_RANGE,
        operators=HONEST.operators,
        claims=claims,
        opened=opening(),
        min_operators=3,
        clock={"1": "9"},
    )
    assert CLAIMANT not in record.seats
    assert record.counts.declined == 1
    assert len(record.seats) == 2  # nobody is left to fill the third
    built = replace(
        HONEST,
        record=sign(NETWORK.key, record),
        entries=entries,
        claims={**HONEST.claims, CLAIMANT: decline},
    )
    assert built.verify().claims[CLAIMANT].declined


def test_nobody_answered_is_no_draw() -> None:
    assert HONEST.opened is not None
    with pytest.raises(RuleViolation) as caught:
        draw.build_draw_record(
            call=HONEST.call,
            max_range=MAX_RANGE,
            operators=HONEST.operators,
            claims={},
            opened=HONEST.opened,
            min_operators=1,
            clock={},
        )
    assert caught.value.code == "draw.no_operator"


def test_a_claim_of_who_is_not_eligible_is_left_aside() -> None:
    operator = next(o for o in HONEST.operators if o.node_id == INELIGIBLE)
    signer = NETWORK.by_id(INELIGIBLE)
    claim = sign(signer.key, draw.make_claim(HONEST.call, node_id=INELIGIBLE, vrf_seed=signer.vrf_seed))
    given = {INELIGIBLE: draw.verify_claim(claim, call=HONEST.call, operator=operator)}
    for name, held in HONEST.claims.items():
        of_it = next(o for o in HONEST.operators if o.node_id == name)
        given[name] = draw.verify_claim(held, call=HONEST.call, operator=of_it)
    record, entries = draw.build_draw_record(
        call=HONEST.call,
        max_range=MAX_RANGE,
        operators=HONEST.operators,
        claims=given,
        opened=opening(),
        min_operators=2,
        clock=HONEST.record.statement.clock,
    )
    assert entries == HONEST.entries
    assert record == HONEST.record.statement


@pytest.mark.parametrize(
    "changes",
    [
        {"seats": HONEST.record.statement.seats[:1]},
        {"seats": HONEST.record.statement.seats[::-1]},
        {"seats": (HONEST.record.statement.seats[0],) * 2},
        {"seats": (*HONEST.record.statement.seats, SILENT)},
        {"filled": HONEST.record.statement.filled + 1},
        {"min_operators": 9},
    ],
)
def test_seats_that_do_not_follow_from_the_counts_are_refused_without_any_entry(
    changes: dict[str, Any],
) -> None:
    call, record = HONEST.call.statement, HONEST.record.statement
    draw_check.check_seat_order(call, record)
    with pytest.raises(VerificationError) as caught:
        draw_check.check_seat_order(call, replace(record, **changes))
    assert caught.value.code == "draw.seats"


def test_one_operator_with_the_whole_range_is_always_selected() -> None:
    alone = Network(operators=(Operator(name="opml-0", job_type="opml", width=MAX_RANGE),))
    for number in range(5):
        drawn = of(alone.run(job=f"job {number}", min_operators=1))
        assert [entry.status for entry in drawn.verify(alone).entries] == ["selected"]


def test_a_key_counts_two_epochs_after_it_was_registered() -> None:
    young = NETWORK.operators[0].name
    for since, epoch, eligible in (
        (0, 0, True), (0, 1, True), (1, 1, False), (1, 2, False), (1, 3, True), (2, 3, False), (3, 3, False),
    ):  # fmt: skip
        entry = next(
            e
            for e in replace(NETWORK, since={young: since}).snapshot()
            if e.node_id == NETWORK.operators[0].node_id
        )
        assert draw.eligible(entry, job_type="opml", model_id=MODEL, epoch=epoch) is eligible
        assert not draw.eligible(entry, job_type="tee", model_id=MODEL, epoch=3)
        assert not draw.eligible(entry, job_type="opml", model_id=OTHER, epoch=3)


# --- one seat


def seat(drawn: DrawnOperator | None = None, **changes: Any) -> draw_check.VerifiedSeat:
    part = seated_only(ANSWER.draw)
    entry = part.entries[0] if drawn is None else drawn
    arguments: dict[str, Any] = {
        "call": part.draw_call,
        "record": part.draw_record.statement,
        "max_range": part.max_range,
        "operator": entry.operator,
        "entry": entry.entry,
        "claim": entry.claim,
        "index": entry.index,
        "operator_path": entry.operator_path,
        "entry_path": entry.entry_path,
        "opened": HONEST.opened,
    }
    return draw_check.verify_seat(**(arguments | changes))


def test_a_seat_is_proven_by_its_own_entry_and_two_paths() -> None:
    proven = seat()
    assert ANSWER.draw.draw_record.statement.seats[proven.seat] == proven.operator.node_id
    assert proven.filled_checked == (proven.entry.status == "selected")


def test_a_wrong_seat_is_refused_by_name() -> None:
    record = ANSWER.draw.draw_record.statement
    first, second = (e for e in ANSWER.draw.entries if e.operator.node_id in record.seats)
    for changes, code in (
        ({"record": replace(record, seats=())}, "draw.not_seated"),
        ({"entry": second.entry}, "draw.entry_order"),
        ({"operator": replace(first.operator, stake=1)}, "draw.snapshot_root"),
        ({"index": 99}, "draw.snapshot_root"),
        ({"operator_path": ()}, "draw.snapshot_root"),
        ({"entry_path": ()}, "draw.entries_root"),
        ({"entry": replace(first.entry, status="declined")}, "draw.entries_root"),
        ({"max_range": MAX_RANGE * 2}, "draw.snapshot_root"),
        ({"claim": None}, "draw.claim_missing"),
        ({"opened": draw.OpenedTag(salt=OTHER, tag="", position="")}, "draw.tag"),
    ):
        with pytest.raises(AOSError) as caught:
            seat(**changes)
        assert caught.value.code == code, changes


@pytest.mark.parametrize("declines", [False, True])
def test_who_did_not_answer_or_declined_cannot_sit(declines: bool) -> None:
    seated = HONEST.claimed(CLAIMANT, DECLINE) if declines else HONEST
    if declines:
        seated = seated.listed(
            tuple(replace(e, status="declined") if e.node_id == CLAIMANT else e for e in seated.entries)
        )
    name = CLAIMANT if declines else SILENT
    index = next(i for i, entry in enumerate(seated.entries) if entry.node_id == name)
    operators = [draw.snapshot_leaf(o) for o in seated.operators]
    entries = [draw.entry_leaf(e) for e in seated.entries]
    with pytest.raises(VerificationError) as caught:
        draw_check.verify_seat(
            call=seated.call,
            record=replace(seated.record.statement, seats=(name,)),
            max_range=MAX_RANGE,
            operator=seated.operators[index],
            entry=seated.entries[index],
            claim=seated.claims.get(name),
            index=index,
            operator_path=inclusion_path(operators, index),
            entry_path=inclusion_path(entries, index),
            opened=opening(),
        )
    assert caught.value.code == "draw.status"


def test_a_seat_below_the_threshold_needs_no_filling() -> None:
    answer = next(
        a for a in (NETWORK.run(job=f"job {n}") for n in range(20)) if a.receipt.core.vrf.status == "selected"
    )
    part = seated_only(answer.draw)
    drawn = next(e for e in part.entries if e.operator.node_id == answer.receipt.core.operator)
    record = replace(part.draw_record.statement, filled=0)
    assert seat(drawn, call=part.draw_call, record=record, opened=of(answer).opened).filled_checked


def test_a_seat_beyond_the_threshold_needs_a_draw_that_filled_seats() -> None:
    answer = next(
        a for a in (NETWORK.run(job=f"job {n}") for n in range(20)) if a.receipt.core.vrf.status == "filled"
    )
    record = answer.draw.draw_record.statement
    assert record.filled > 0
    drawn = next(e for e in answer.draw.entries if e.operator.node_id == answer.receipt.core.operator)
    leaves = [draw.snapshot_leaf(e.operator) for e in answer.draw.entries]
    entries = [draw.entry_leaf(e.entry) for e in answer.draw.entries]
    arguments: dict[str, Any] = {
        "call": answer.draw.draw_call,
        "operator_path": inclusion_path(leaves, drawn.index),
        "entry_path": inclusion_path(entries, drawn.index),
        "opened": of(answer).opened,
    }
    assert not seat(drawn, record=record, **arguments).filled_checked
    with pytest.raises(VerificationError) as caught:
        seat(drawn, record=replace(record, filled=0), **arguments)
    assert caught.value.code == "draw.status"


def test_the_widening_bounds_hold_for_every_tag() -> None:
    percents = {
        sortition.widening_percent(tag, position)
        for tag in ("", "suspicion", "malicious")
        for position in ("", "before", "after")
    }
    assert max(percents) == draw_check.MAX_WIDENING
    assert min(percents) == 0
