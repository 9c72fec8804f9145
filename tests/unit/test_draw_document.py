"""The public draw document: what the dispatcher serves is what a stranger recomputes, and `aos draw` says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_run import CHAIN, Network, secret
from typer.testing import CliRunner

from aos.cli.app import app
from aos.core.answer import Answer
from aos.core.codec import encode
from aos.core.draw_document import read_draw_document, recheck_draws
from aos.core.encoding import b64u_encode
from aos.core.statements import sign
from aos.core.trust import Trust
from aos.errors import AOSError, InvalidMessage

NETWORK = Network()
FIRST = NETWORK.run()
SECOND = NETWORK.run(attempt=2)


def attempt(answer: Answer, *, opened: bool = True) -> dict[str, Any]:
    countersign = answer.receipt.countersign
    opening = {
        "tag": countersign.tag,
        "position": countersign.position,
        "salt": b64u_encode(countersign.tag_salt),
    }
    return encode(answer.draw) | {"tag_opening": opening if opened else None}


def document(*answers: Answer, opened: bool = True) -> bytes:
    ref = b64u_encode(answers[0].receipt.core.job_ref)
    return json.dumps(
        {"job_ref": ref, "attempts": [attempt(answer, opened=opened) for answer in answers]}, indent=1
    ).encode()


def test_every_attempt_of_a_job_is_recomputed() -> None:
    draws = recheck_draws(read_draw_document(document(FIRST, SECOND)), trust=NETWORK.trust())
    assert [d.draw.record.attempt for d in draws] == [1, 2]
    assert all(d.complete for d in draws)


def test_what_the_trust_file_does_not_say_is_named_and_not_claimed() -> None:
    read = read_draw_document(document(FIRST))
    (unknown,) = recheck_draws(read, trust=replace(NETWORK.trust(), registry_roots=()))
    assert (unknown.registry_trusted, unknown.complete) == (False, False)
    (hidden,) = recheck_draws(read_draw_document(document(FIRST, opened=False)), trust=NETWORK.trust())
    assert (hidden.draw.split_checked, hidden.complete) == (False, False)
    short = replace(NETWORK.trust().beacon, length=1)
    (beyond,) = recheck_draws(read, trust=replace(NETWORK.trust(), beacon=short))
    assert CHAIN > 1
    assert (beyond.beacon_checked, beyond.complete) == (False, False)


def no_first_draw() -> bytes:
    return document(FIRST, replace(SECOND, draw=replace(SECOND.draw, first_draw=None)))


def foreign_first_draw() -> bytes:
    other = NETWORK.run(job="job 2", attempt=2).draw.first_draw
    return document(replace(SECOND, draw=replace(SECOND.draw, first_draw=other)))


def seats_of_friends() -> bytes:
    record = FIRST.draw.draw_record.statement
    lie = sign(NETWORK.key, replace(record, seats=record.seats[::-1]))
    return document(replace(FIRST, draw=replace(FIRST.draw, draw_record=lie)))


def made_up_beacon() -> bytes:
    call = FIRST.draw.draw_call.statement
    lie = sign(NETWORK.key, replace(call, beacon=secret("made up")))
    return document(replace(FIRST, draw=replace(FIRST.draw, draw_call=lie)))


@pytest.mark.parametrize(
    ("make", "trust", "code"),
    [
        (lambda: document(SECOND, FIRST), NETWORK.trust(), "draw.foreign_document"),
        (lambda: document(FIRST, FIRST), NETWORK.trust(), "draw.foreign_document"),
        (
            lambda: document(FIRST, NETWORK.run(job="job 2", attempt=2)),
            NETWORK.trust(),
            "draw.foreign_document",
        ),
        (no_first_draw, NETWORK.trust(), "draw.foreign_document"),
        (foreign_first_draw, NETWORK.trust(), "draw.foreign_document"),
        (seats_of_friends, NETWORK.trust(), "draw.seats"),
        (made_up_beacon, NETWORK.trust(), "draw.seed_proof"),
        (
            lambda: document(FIRST),
            replace(NETWORK.trust(), beacon=replace(NETWORK.trust().beacon, anchor=secret("another chain"))),
            "beacon.mismatch",
        ),
        (lambda: document(FIRST), replace(NETWORK.trust(), network="elsewhere"), "trust.network"),
        (
            lambda: document(FIRST),
            replace(NETWORK.trust(), dispatchers=Network(name="elsewhere").trust().dispatchers),
            "trust.dispatcher",
        ),
    ],
)
def test_a_wrong_document_is_refused_by_name(make: Callable[[], bytes], trust: Trust, code: str) -> None:
    with pytest.raises(AOSError) as caught:
        recheck_draws(read_draw_document(make()), trust=trust)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{}", "field.missing"),
        (b'{"job_ref":"AA","attempts":[]}', "field.range"),
        (document(FIRST).replace(b'"attempts"', b'"attempts":[],"attempts"'), "encoding.duplicate_key"),
        (document(FIRST)[:-1], "encoding.syntax"),
    ],
)
def test_a_malformed_document_is_refused_by_name(data: bytes, code: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        read_draw_document(data)
    assert caught.value.code == code


def test_the_command_recomputes_offline(tmp_path: Path) -> None:
    trust, whole, hidden = tmp_path / "trust.json", tmp_path / "draw.json", tmp_path / "hidden.json"
    trust.write_text(json.dumps(encode(NETWORK.trust())))
    whole.write_bytes(document(FIRST, SECOND))
    hidden.write_bytes(document(FIRST, opened=False))
    shown = CliRunner().invoke(app, ["draw", str(whole), "--trust", str(trust)])
    assert shown.exit_code == 0, shown.output
    assert "PASS attempt 1: 4 of 4 eligible operators answered" in shown.output
    assert f"seat 0: {FIRST.receipt.core.operator}" in shown.output
    partial = CliRunner().invoke(app, ["draw", str(hidden), "--trust", str(trust)])
    assert partial.exit_code == 11
    assert "SKIP the tag is still hidden" in partial.output
    machine = CliRunner().invoke(app, ["draw", "-", "--trust", str(trust), "--json"], input=document(FIRST))
    assert json.loads(machine.stdout)["result"]["draws"][0]["unchecked"] == []
    whole.write_bytes(seats_of_friends())
    wrong = CliRunner().invoke(app, ["draw", str(whole), "--trust", str(trust)])
    assert isinstance(wrong.exception, AOSError)
    assert (wrong.exception.code, wrong.exception.exit_code) == ("draw.seats", 10)
