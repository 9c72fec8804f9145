"""`verify_answer` over honest answers: which checks pass, which are skipped and why, and what verdict and levels follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from logged_run import WITNESSES, TestLog, witness_key
from simulated_run import PROMPT_TOKENS, STATE_ROOT, TEXT, TOKENS, Network, Operator, Result, params

from aos.core.answer import (
    MAX_FULL_DRAW,
    Answer,
    bundle_bytes,
    read_answer,
    receipt_bytes,
    seated_only,
    write_answer,
)
from aos.core.codec import encode
from aos.core.encoding import canonical_json
from aos.core.log.note import COSIGNATURE, note_key
from aos.core.receipt import CHECKS, Replayed, verify_answer
from aos.core.report import Check, Report
from aos.core.statements import Request
from aos.core.trust import load_policy, read_trust
from aos.errors import ConfigError

NETWORK = Network()
LOG = TestLog(NETWORK)
WITNESS = str(witness_key(WITNESSES[0]))


def judged(answer: Answer, *, policy: str = "dev", network: Network = NETWORK) -> Report:
    return verify_answer(write_answer(answer), trust=network.trust(), policy=load_policy(policy))


def status(report: Report) -> dict[str, str]:
    return {check.id: check.status for check in report.checks}


def test_three_agreeing_operators_are_redundant_3() -> None:
    report = judged(NETWORK.run())
    assert (report.verdict, report.exit_code) == ("VERIFIED", 0)
    assert report.levels == ("signed", "redundant:3")
    assert [check.id for check in report.checks] == [name for name, _ in CHECKS]
    assert [c.id for c in report.checks if c.status == "SKIP"] == [
        "resolve-1",
        "log-1",
        "witness-1",
        "tee-1",
        "tee-2",
        "tee-3",
        "local-1",
    ]
    assert report.headline == (
        'VERIFIED at level "redundant:3": 16 checks passed, 7 skipped (optional under policy "dev")'
    )


def test_a_logged_answer_passes_log_1_and_below_the_quorum_witness_1_is_skipped() -> None:
    answer = LOG.logged(NETWORK.run())
    data = write_answer(answer)
    report = verify_answer(data, trust=LOG.trust(), policy=load_policy("production"))
    assert report.headline == (
        'VERIFIED at level "redundant:3": 18 checks passed, 5 skipped (optional under policy "production")'
    )
    found = {check.id: check for check in report.checks}
    assert found["log-1"].text == "leaf 6 of 10 in the dispatcher's log"
    assert found["witness-1"].text == "1 of 2 witnesses cosigned the checkpoint"
    two = verify_answer(data, trust=LOG.trust(quorum=2), policy=load_policy("production"))
    none = verify_answer(data, trust=LOG.trust(quorum=0), policy=load_policy("production"))
    for report in (two, none):
        assert (status(report)["witness-1"], report.verdict) == ("SKIP", "VERIFIED")
    unlogged = verify_answer(write_answer(NETWORK.run()), trust=LOG.trust(), policy=load_policy("production"))
    assert (unlogged.verdict, unlogged.missing) == ("PARTIAL", ("log-1",))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"log_key": "no key"}, "log_key"),
        ({"log_key": WITNESS}, "log_key"),
        ({"witnesses": [str(LOG.key)]}, "witnesses"),
        ({"witnesses": [WITNESS, WITNESS]}, "witnesses"),
        ({"witness_quorum": 1}, "witness_quorum"),
        ({"witnesses": [str(note_key("x", LOG.seed, COSIGNATURE))]}, "witnesses"),
    ],
)
def test_a_trust_file_with_wrong_log_keys_is_refused(changes: dict[str, Any], code: str) -> None:
    file = encode(replace(LOG.trust(quorum=0), witnesses=()))
    assert read_trust(canonical_json(file)).log == LOG.key
    with pytest.raises(ConfigError) as caught:
        read_trust(canonical_json(file | changes))
    assert (caught.value.code, caught.value.field) == ("trust.invalid", code)


def test_a_trust_file_of_before_there_was_a_log_names_none() -> None:
    file = encode(NETWORK.trust())
    for name in ("log_key", "witnesses", "witness_quorum"):
        del file[name]
    assert read_trust(canonical_json(file)).log is None


def test_a_simulated_enclave_is_simulated_and_never_attested() -> None:
    report = judged(NETWORK.run(job_type="tee"))
    assert (report.verdict, report.levels) == ("VERIFIED", ("signed", "simulated"))
    assert "SIMULATED" in next(check.text for check in report.checks if check.id == "tee-2")


@pytest.mark.parametrize("policy", ["default", "production"])
def test_a_simulated_enclave_fails_where_the_policy_does_not_name_it(policy: str) -> None:
    report = judged(NETWORK.run(job_type="tee"), policy=policy)
    assert (report.verdict, report.exit_code, report.levels) == ("NOT VERIFIED", 10, ())
    assert next(check.code for check in report.checks if check.id == "tee-2") == "tee.policy"


def test_an_enclaves_answer_of_the_canonical_engine_can_be_replayed() -> None:
    """Attested and wrong is possible; where the engine repeats its bits, whoever has the model sees it."""

    def named(engine: str) -> Answer:
        edit = {
            name: (lambda statement: replace(statement, engine=engine))
            for name in ("boot", "enclave_answer", "core")
        }
        return NETWORK.run(job_type="tee", edit=edit)

    def replayed(answer: Answer, tokens: tuple[int, ...] = TOKENS) -> Check:
        def replay(_answer: Answer, _request: object) -> Replayed:
            return Replayed(
                prompt_tokens=PROMPT_TOKENS,
                tokens=tokens,
                text=TEXT,
                finish_reason="stop",
                state_root=STATE_ROOT,
            )

        report = verify_answer(
            write_answer(answer), trust=NETWORK.trust(), policy=load_policy("dev"), replay=replay
        )
        return next(check for check in report.checks if check.id == "local-1")

    canonical, other = named("aos-canonical/1"), named("llama.cpp/b1")
    assert (replayed(canonical).status, replayed(canonical, TOKENS[1:]).code) == ("PASS", "local.tokens")
    assert (replayed(other).status, replayed(other, TOKENS[1:]).status) == ("SKIP", "SKIP")


def test_an_answer_of_one_operator_is_signed_and_no_more() -> None:
    report = judged(NETWORK.run(min_operators=1))
    seats = len(NETWORK.run(min_operators=1).draw.draw_record.statement.seats)
    assert seats == 1
    assert (report.verdict, report.levels) == ("VERIFIED", ("signed",))


def test_a_dropped_peer_lowers_the_level_and_fails_nothing() -> None:
    answer = NETWORK.run()
    gone = answer.peers[-1].core.operator
    kept = tuple(o for o in answer.commit.openings if o.commit.statement.node_id != gone)
    fewer = replace(answer, peers=answer.peers[:-1], commit=replace(answer.commit, openings=kept))
    report = judged(fewer)
    assert (report.verdict, report.levels) == ("VERIFIED", ("signed", "redundant:2"))


@pytest.mark.parametrize(
    "options",
    [
        {"blind": True},
        {"attempt": 2},
        {"tag": "suspicion"},
        {"tag": "malicious", "position": "before"},
        {"tag": "suspicion", "position": "after"},
        {"sampling": params(seed="18446744073709551615")},
        {"silent": ["opml-2"], "min_operators": 2},
    ],
    ids=str,
)
def test_every_kind_of_run_verifies(options: dict[str, object]) -> None:
    assert judged(NETWORK.run(**options)).verdict == "VERIFIED"  # type: ignore[arg-type]


def test_without_a_trust_file_the_verdict_is_at_best_partial() -> None:
    report = verify_answer(write_answer(NETWORK.run()), trust=None, policy=load_policy("dev"))
    assert (report.verdict, report.exit_code) == ("PARTIAL", 11)
    skipped = {check.id for check in report.checks if check.status == "SKIP"}
    assert {"trust-1", "beacon-1", "registry-1", "draw-1"} <= skipped
    assert "trust-1" in report.missing


def test_a_registry_root_that_the_trust_file_does_not_name_is_skipped_and_never_passed() -> None:
    trust = replace(NETWORK.trust(), registry_roots=())
    data = write_answer(NETWORK.run())
    assert status(verify_answer(data, trust=trust, policy=load_policy("dev")))["registry-1"] == "SKIP"
    assert verify_answer(data, trust=trust, policy=load_policy("default")).verdict == "PARTIAL"


def test_production_wants_agreement_or_an_enclave() -> None:
    def logged(answer: Answer) -> Report:
        return verify_answer(
            write_answer(LOG.logged(answer)), trust=LOG.trust(), policy=load_policy("production")
        )

    assert logged(NETWORK.run()).verdict == "VERIFIED"
    alone = logged(NETWORK.run(min_operators=1))
    assert (alone.verdict, alone.missing) == ("PARTIAL", ("agree-1|tee-3",))


def test_a_shortened_draw_shows_the_seats_and_skips_completeness() -> None:
    answer = NETWORK.run()
    report = judged(replace(answer, draw=seated_only(answer.draw)))
    assert status(report)["draw-1"] == "SKIP"
    # seat 0 was below its threshold, so its seat needs nobody else's entry
    assert answer.receipt.core.vrf.status == "selected"
    assert status(report)["vrf-1"] == "PASS"


def test_a_shortened_draw_counts_the_operators_below_their_threshold() -> None:
    def selected(answer: Answer) -> int:
        return sum(r.core.vrf.status == "selected" for r in (answer.receipt, *answer.peers))

    runs = [NETWORK.run(job=f"job {n}", tag="suspicion") for n in range(12)]
    two = next(answer for answer in runs if selected(answer) == 2)
    report = judged(replace(two, draw=seated_only(two.draw)))
    assert (status(report)["agree-1"], report.levels) == ("PASS", ("signed", "redundant:2")), status(report)
    assert "2 of 3 operators" in next(check.text for check in report.checks if check.id == "agree-1")
    one = next(answer for answer in runs if selected(answer) == 1)
    report = judged(replace(one, draw=seated_only(one.draw)))
    assert (status(report)["agree-1"], report.levels) == ("SKIP", ("signed",))


def test_a_filled_seat_in_a_shortened_draw_is_skipped_and_never_passed() -> None:
    answer = next(
        answer
        for answer in (NETWORK.run(job=f"job {n}") for n in range(20))
        if answer.receipt.core.vrf.status == "filled"
    )
    assert judged(answer).verdict == "VERIFIED"
    report = judged(replace(answer, draw=seated_only(answer.draw)))
    assert status(report)["vrf-1"] == "SKIP"
    assert report.verdict == "PARTIAL"


def test_many_operators_are_written_shortened() -> None:
    crowd = Network(operators=tuple(Operator(name=f"o{n}", job_type="opml", width=20_000) for n in range(40)))
    answer = crowd.run(min_operators=2)
    data = write_answer(answer)
    report = verify_answer(data, trust=crowd.trust(), policy=load_policy("dev"))
    assert status(report)["draw-1"] == "SKIP"
    assert "FAIL" not in status(report).values()
    assert len(data) < 20_000


@pytest.mark.parametrize(("operators", "seats"), [(4, 2), (4, 3), (8, 8), (32, 2), (33, 8)])
def test_a_file_grows_with_seats_and_entries_and_no_further(operators: int, seats: int) -> None:
    crowd = Network(
        operators=tuple(
            Operator(name=f"o{n}", job_type="opml", width=1_000_000 // operators) for n in range(operators)
        )
    )
    answer = crowd.run(min_operators=seats)
    written = read_answer(write_answer(answer))
    seated, kept = 1 + len(written.peers), len(written.draw.entries)
    assert seated >= seats
    assert kept == (operators if operators <= MAX_FULL_DRAW else seated)
    assert bundle_bytes(written) <= 4096 + 5 * 1024 * seated + 1126 * kept
    if (operators, seats) == (4, 3):
        assert bundle_bytes(written) <= 16 * 1024


def test_core_and_signatures_stay_below_2_kb_for_any_length_of_answer() -> None:
    result = Result(text="word " * 50_000, tokens=tuple(range(60_000)))
    answer = NETWORK.run(sampling=params(max_tokens=100_000), results={f"opml-{n}": result for n in range(4)})
    assert receipt_bytes(answer.receipt) <= 2048
    assert judged(answer).verdict == "VERIFIED"


def test_disagreeing_operators_are_not_verified() -> None:
    other = Result(state_root=bytes(32))
    answer = NETWORK.run()
    loser = answer.peers[0].core.operator
    report = judged(NETWORK.run(results={NETWORK.by_id(loser).name: other}))
    assert report.verdict == "NOT VERIFIED"
    assert next(check.code for check in report.checks if check.id == "agree-1") == "agree.disputed"


# --- re-execution


HONEST = Replayed(
    prompt_tokens=PROMPT_TOKENS, tokens=TOKENS, text=TEXT, finish_reason="stop", state_root=STATE_ROOT
)


def replaying(answer: Answer, replayed: Replayed) -> Report:
    def replay(_answer: Answer, _request: Request) -> Replayed:
        return replayed

    return verify_answer(
        write_answer(answer), trust=NETWORK.trust(), policy=load_policy("dev"), replay=replay
    )


def test_a_replay_of_the_same_bits_adds_the_level_replayed() -> None:
    report = replaying(NETWORK.run(), HONEST)
    assert report.levels == ("signed", "redundant:3", "replayed")
    assert 'levels "redundant:3" and "replayed"' in report.headline


@pytest.mark.parametrize(
    ("replayed", "code"),
    [
        (replace(HONEST, state_root=bytes(32)), "local.state_root"),
        (replace(HONEST, state_root=None), "local.state_root"),
        (replace(HONEST, tokens=TOKENS[:-1]), "local.tokens"),
        (replace(HONEST, text=TEXT.strip()), "local.text"),
        (replace(HONEST, finish_reason="length"), "local.finish_reason"),
        (replace(HONEST, prompt_tokens=PROMPT_TOKENS[:-1]), "local.prompt_tokens"),
    ],
)
def test_a_replay_that_differs_overrules_any_number_of_signatures(replayed: Replayed, code: str) -> None:
    report = replaying(NETWORK.run(), replayed)
    assert report.verdict == "NOT VERIFIED"
    assert report.checks[-1].code == code


def test_a_replay_that_could_not_be_made_is_skipped_and_never_passed() -> None:
    def replay(_answer: Answer, _request: Request) -> Replayed:
        raise ConfigError("replay.other_model", "another model")

    report = verify_answer(
        write_answer(NETWORK.run()), trust=NETWORK.trust(), policy=load_policy("dev"), replay=replay
    )
    assert status(report)["local-1"] == "SKIP"
    assert "replayed" not in report.levels


# --- trust files


def test_a_trust_file_that_names_a_dispatcher_twice_is_refused() -> None:
    trust = NETWORK.trust()
    (dispatcher,) = trust.dispatchers
    other = replace(dispatcher, vrf_key=bytes(32))
    honest = replace(dispatcher, address="0x" + "12" * 20)
    assert read_trust(canonical_json(encode(replace(trust, dispatchers=(dispatcher, honest)))))
    with pytest.raises(ConfigError) as caught:
        read_trust(canonical_json(encode(replace(trust, dispatchers=(other, dispatcher)))))
    assert (caught.value.code, caught.value.field) == ("trust.invalid", "dispatchers")


# --- what is missing hides nothing


def test_a_file_without_its_openings_is_evidence_missing_and_with_any_lie_not_verified() -> None:
    answer = NETWORK.run()
    bare = replace(answer, commit=replace(answer.commit, openings=()))
    report = judged(bare)
    assert (report.verdict, report.exit_code, report.levels) == ("EVIDENCE MISSING", 12, ())
    lying = judged(replace(bare, text="another text"))
    assert (lying.verdict, lying.exit_code, lying.levels) == ("NOT VERIFIED", 10, ())
    stripped = replace(NETWORK.run(job_type="tee"), evidence=None)
    assert judged(stripped).exit_code == 12
    assert judged(replace(stripped, text="another text")).exit_code == 10
