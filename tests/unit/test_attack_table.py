"""``aos attack``: every threat is in its table, a verdict needs its own reason, and a row notices that a check is missing."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from simulated_run import Network, params, secret
from typer.testing import CliRunner

from aos.attack import runner
from aos.attack.live import Live, Stolen, code_of, read_state, refusal
from aos.attack.table import ACCEPTED, ROWS, Attempt, Outcome, Row, Trial, Twin, not_yet
from aos.cli.app import app
from aos.core import receipt
from aos.core.answer import Answer
from aos.core.checks.case import Case
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation

ROOT = Path(__file__).resolve().parents[2]
LISTED = Path(__file__).parent / "attack_list.txt"


# --- the table


def threat_rows() -> dict[int, tuple[str, str]]:
    """Title and state of every row of docs/threat-model.md."""
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8").replace("`", "")
    return {
        int(number): (title, state)
        for number, title, state in re.findall(r"^\| (\d+) \| ([^|]+?) \| ([^|]+?) \|", text, re.MULTILINE)
    }


def test_every_row_of_the_threat_model_is_there_under_its_title() -> None:
    assert {row.number: row.title for row in runner.rows()} == {
        number: title for number, (title, _) in threat_rows().items()
    }


def test_a_row_that_cannot_be_played_says_what_it_needs() -> None:
    later = [row for row in runner.rows() if row.play is None]
    assert later
    for row in later:
        assert row.reason
        assert row.codes == ()
        assert row.standing == "gap" or row.standing.startswith("not yet: needs ")
    states = {number: state for number, (_, state) in threat_rows().items()}
    assert {row.number for row in later if not row.needs} == {n for n, s in states.items() if s == "gap"}
    assert not [row.number for row in later if states[row.number] in ("refused", "accepted")]


def test_a_row_that_is_played_has_codes_unless_it_must_be_accepted() -> None:
    for row in runner.rows():
        if row.play is not None:
            assert bool(row.codes) == row.must_fail, row.number


def test_a_row_cannot_be_entered_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        not_yet(1, "again", needs="log", reason="it is there")


def test_rows_are_chosen_by_number() -> None:
    assert [row.number for row in runner.chosen(["22", "13"])] == [13, 22]
    for wrong in ("0", "65", "x", "-1", "1e1", "²"):
        with pytest.raises(InvalidMessage) as refused:
            runner.chosen([wrong])
        assert refused.value.code == "attack.row"


def test_without_a_node_a_row_that_needs_one_is_a_written_gap() -> None:
    ready, later = runner.parted(runner.rows(), chain=False)
    missing = [row for row in later if row.needs == "chain"]
    assert [row.number for row in missing] == [28, 41]
    for row in missing:
        assert (row.play, row.standing) == (None, "not yet: needs chain")
        assert "make chain-tools" in row.reason
    played = {row.number for row in runner.parted(runner.rows(), chain=True)[0]}
    assert played == {28, 41} | {row.number for row in ready}
    assert len(ready) + len(later) == len(runner.rows())


# --- verdicts


@pytest.mark.parametrize(
    ("found", "twin", "verdict"),
    [
        ("io.tokens_hash", ACCEPTED, "REFUSED"),
        (ACCEPTED, ACCEPTED, "PASSED"),
        (ACCEPTED, "io.tokens_hash", "PASSED"),
        ("encoding.syntax", ACCEPTED, "WRONG REASON"),
        ("io.tokens_hash", "encoding.syntax", "TWIN REFUSED"),
    ],
)
def test_only_the_own_reason_and_an_accepted_twin_make_a_refusal(found: str, twin: str, verdict: str) -> None:
    trial = Trial()
    trial.attack("a token replaced", "io.tokens_hash", found)
    trial.twin("the token", twin)
    assert trial.verdict(must_fail=True) == verdict


def test_a_row_that_showed_no_attack_or_no_twin_has_shown_nothing() -> None:
    trial = Trial()
    assert trial.verdict(must_fail=True) == trial.verdict(must_fail=False) == "BROKEN"
    trial.attack("a token replaced", "io.tokens_hash", "io.tokens_hash")
    assert trial.verdict(must_fail=True) == "BROKEN"
    trial = Trial()
    trial.twin("the token", ACCEPTED)
    assert trial.verdict(must_fail=True) == "BROKEN"
    assert trial.verdict(must_fail=False) == "ACCEPTED"


def test_a_verifier_that_says_all_it_found_must_name_the_own_reason_among_it() -> None:
    trial = Trial()
    trial.attack("a splice", "vrf.foreign_draw", ("draw.tag", "vrf.foreign_draw"))
    trial.attack("a splice", "vrf.foreign_draw", ("draw.tag", "commit.opening"))
    assert [attempt.found for attempt in trial.attempts] == ["vrf.foreign_draw", "draw.tag"]
    assert [attempt.refused for attempt in trial.attempts] == [True, False]


@pytest.mark.parametrize(
    ("verdicts", "exit_code"),
    [
        (["REFUSED", "ACCEPTED"], 0),
        (["REFUSED", "PASSED", "BROKEN"], 10),
        (["WRONG REASON"], 10),
        (["TWIN REFUSED"], 10),
        (["REFUSED", "BROKEN"], 11),
        (["REFUSED", "SKIPPED"], 11),
        ([], 0),
    ],
)
def test_exit_codes(verdicts: list[Any], exit_code: int) -> None:
    outcomes = tuple(Outcome(row=ROWS[13], verdict=verdict, attempts=(), twins=()) for verdict in verdicts)
    assert runner.Summary(outcomes=outcomes, later=(), seconds=0).exit_code == exit_code


# --- rows against a file of a simulated run: without the product's check, the row fails

NETWORK = Network()


@cache
def answers() -> dict[str, Answer]:
    """What an honest network answers, by the name that a row asks for it."""
    return {
        "opml first": NETWORK.run(),
        "opml second": NETWORK.run(job="job 2"),
        "single": NETWORK.run(min_operators=1),
        "stopped": NETWORK.run(sampling=params(stop=("zebra",), max_tokens=24)),
        "tee first": NETWORK.run(job_type="tee"),
        "tee second": NETWORK.run(job="job 2", job_type="tee"),
    }


def simulated(tmp_path: Path) -> Live:
    """The rows' view of a run that was made here: no process, no guests, no HTTP."""
    platform = tmp_path / "simulated-platform.key"
    seed = secret(f"{NETWORK.name} simulated platform")
    root = NETWORK.platform.root.hex()
    platform.write_text(json.dumps({"label": "SIMULATED, NO HARDWARE", "root": root, "seed": seed.hex()}))
    platform.chmod(0o600)
    live = Live(
        state=tmp_path,
        url="http://127.0.0.1:9",
        project="p",
        token="t",
        model="demo.gguf",
        model_path=tmp_path / "demo.gguf",
        network=NETWORK.name,
        dispatcher=NETWORK.dispatcher,
        dispatcher_keys=Stolen(signer=NETWORK.key, vrf=NETWORK.vrf_seed),
        operators={o.node_id: Stolen(signer=o.key, vrf=o.vrf_seed) for o in NETWORK.operators},
        trust=NETWORK.trust(),
        http=httpx.AsyncClient(),
        stop="zebra",
    )
    live._answers.update(answers())
    return live


def played(row: Row, live: Live) -> Outcome:
    return asyncio.run(runner.play_row(row, live))


OFFLINE = {
    11: ("io-1", "accept-1"),
    13: ("io-2",),
    14: ("params-1",),
    17: ("seed-1",),
    20: ("accept-1", "commit-1"),
    21: ("receipt-1",),
    22: ("receipt-1",),
    24: ("commit-1 agree-1",),
    27: ("draw-1 vrf-1",),
    30: ("vrf-1",),
    32: ("beacon-1",),
    33: ("draw-1 seed-1",),
    43: ("params-1", "tee-1"),
    46: ("accept-1",),
    59: ("tee-2",),
    60: ("tee-1", "tee-2"),
    61: ("tee-1", "tee-2", "tee-3"),
    64: ("tee-2",),
}
"""Rows that ask nothing of a network but its answer files, each with checks that stand in their way (together, where two do)."""


def looks_at_nothing(_case: Case) -> str:
    return "nothing was looked at"


@pytest.mark.parametrize("number", OFFLINE)
def test_the_row_is_refused_for_its_own_reason(number: int, tmp_path: Path) -> None:
    outcome = played(ROWS[number], simulated(tmp_path))
    assert (outcome.verdict, outcome.problem) == ("REFUSED", "")
    assert set(outcome.codes) <= set(ROWS[number].codes)


@pytest.mark.parametrize(
    ("number", "checks"), [(number, checks) for number, each in OFFLINE.items() for checks in each]
)
def test_without_the_check_the_row_is_no_refusal(
    number: int, checks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = simulated(tmp_path)
    gone = checks.split()
    passing = [(name, looks_at_nothing if name in gone else check) for name, check in receipt.CHECKS]
    monkeypatch.setattr(receipt, "CHECKS", passing)
    outcome = played(ROWS[number], live)
    assert outcome.verdict in ("PASSED", "WRONG REASON")
    assert outcome.problem


def test_a_verifier_that_refuses_everything_fails_by_the_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = simulated(tmp_path)
    monkeypatch.setattr(live.__class__, "judge", lambda *_, **__: ("io.tokens_hash", "io.response_hash"))
    assert played(ROWS[13], live).verdict == "TWIN REFUSED"


def test_a_row_that_breaks_off_is_broken_and_never_refused(tmp_path: Path) -> None:
    async def play(live: Live, t: Trial) -> None:
        t.attack("a token replaced", "io.tokens_hash", "io.tokens_hash")
        t.twin("the token", ACCEPTED)
        raise RuleViolation("attack.no_lie", "the rest could not be played")

    row = replace(ROWS[13], play=play)
    outcome = played(row, simulated(tmp_path))
    assert outcome.verdict == "BROKEN"
    assert "attack.no_lie" in outcome.problem


def test_a_row_that_could_not_begin_is_broken_and_says_why(tmp_path: Path) -> None:
    async def begin(live: Live) -> None:
        raise RuleViolation("attack.no_lie", "there was nothing to lie about")

    live = simulated(tmp_path)
    row = replace(ROWS[13], begin=begin)
    asyncio.run(runner._begun(row, begin, live))
    outcome = played(row, live)
    assert outcome.verdict == "BROKEN"
    assert "attack.no_lie" in outcome.problem
    assert played(ROWS[14], live).verdict == "REFUSED"


def test_a_row_that_names_a_code_beside_the_table_is_a_defect(tmp_path: Path) -> None:
    async def play(live: Live, t: Trial) -> None:
        t.attack("a token replaced", "io.invented", "io.invented")
        t.twin("the token", ACCEPTED)

    with pytest.raises(AssertionError, match=r"io\.invented"):
        played(replace(ROWS[13], play=play), simulated(tmp_path))


def test_a_row_that_needs_guests_is_skipped_where_there_are_none(tmp_path: Path) -> None:
    outcome = played(ROWS[48], simulated(tmp_path))
    assert outcome.verdict == "SKIPPED"
    assert "--state" in outcome.problem


# --- the network's side


def test_refusals_are_read_in_both_envelopes() -> None:
    assert code_of(httpx.Response(200, json={"code": 200})) == ACCEPTED
    assert code_of(httpx.Response(403, json={"code": 403, "error": "token.invalid"})) == "token.invalid"
    assert code_of(httpx.Response(409, json={"title": "registration.exists"})) == "registration.exists"
    assert code_of(httpx.Response(502, text="bad gateway")) == "http 502"
    assert refusal(lambda: None) == ACCEPTED


def test_a_directory_that_is_no_network_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read_state(tmp_path, httpx.AsyncClient(), tmp_path / "model")
    assert refused.value.code == "attack.state"


def test_stolen_keys_are_not_shown() -> None:
    stolen = Stolen(signer=NETWORK.key, vrf=NETWORK.vrf_seed)
    assert NETWORK.key.hex() not in repr(stolen)
    assert repr(NETWORK.key) not in repr(stolen)


# --- the command


def test_the_list_is_what_it_was() -> None:
    """After a change of the table: ``aos attack --list > tests/unit/attack_list.txt``, and read the difference."""
    result = CliRunner().invoke(app, ["attack", "--list"])
    assert result.exit_code == 0
    assert result.stdout == LISTED.read_text(encoding="utf-8")


def test_the_list_as_json_has_every_row() -> None:
    result = CliRunner().invoke(app, ["attack", "--list", "--json"])
    shown = json.loads(result.stdout)
    assert shown["schema"] == "aos.cli.attack.list/1"
    assert [entry["row"] for entry in shown["result"]] == list(range(1, 65))
    assert all((entry["standing"] == "ready") == (entry["reason"] is None) for entry in shown["result"])


@pytest.mark.parametrize("arguments", [[], ["--all", "13"]])
def test_neither_all_nor_rows_is_a_usage_error(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["attack", *arguments])
    assert isinstance(result.exception, AOSError)
    assert result.exception.exit_code == 2


def test_attempt_and_twin_are_what_they_found() -> None:
    assert Attempt(name="x", expected=("a.b", "a.c"), found="a.c").refused
    assert not Twin(name="x", found="a.b").accepted
