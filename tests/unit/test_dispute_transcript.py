"""A transcript is judged again by anybody: `aos referee`, its lines, codes and exits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dispute_table import ARITHMETIC, CHALLENGER, CLAIMANT, LIE, OTHER, RULES, T0, TOY, Table, lying, sent
from dispute_toy import Lie, case_of

from aos.cli.referee import referee_command
from aos.core.dispute.case import Arithmetic
from aos.core.dispute.moves import Move, read_move
from aos.core.dispute.transcript import (
    MAX_TRANSCRIPT_BYTES,
    Judgement,
    Transcript,
    judge,
    read_transcript,
    replay,
    transcript_of,
    write_transcript,
)
from aos.core.statements import Signed
from aos.errors import AOSError, Unavailable


def recorded(table: Table, turns: int = 8, *, after: int = 1) -> Transcript:
    """The transcript of honest play between these parties."""
    moves: list[tuple[Signed[Move], int]] = [(table.opening(), T0)]
    while table.game.mover is not None and table.game.turn < turns:
        move = table.next_move()
        key = CLAIMANT if table.game.mover == "claimant" else CHALLENGER
        table.send(move, after=after)
        moves.append((sent(key, move), table.last))
    return transcript_of(RULES, table.case, moves, judged_at=table.last)


def lie() -> Transcript:
    return recorded(Table(run=lying(LIE)))


def truth(turns: int = 8) -> Transcript:
    return recorded(Table(own=lying(LIE)), turns)


def judged(transcript: Transcript, arithmetic: Arithmetic = ARITHMETIC) -> Judgement:
    return judge(write_transcript(transcript), arithmetic)


def lines(found: Judgement) -> list[tuple[str, str, str]]:
    return [(check.id, check.status, check.code) for check in found.checks]


def test_a_proven_lie_is_convicted_with_the_move_that_shows_it() -> None:
    found = judged(lie())
    assert (found.state, found.exit_code) == ("CONVICTED", 10)
    assert lines(found)[-1] == ("move-7", "FAIL", "toy.value")
    assert {status for _, status, _ in lines(found)[:-1]} == {"PASS"}
    assert [name for name, _, _ in lines(found)] == [
        "file-1", "claim-1", "open-1", "data-1", *(f"move-{n}" for n in range(1, 8)),
    ]  # fmt: skip
    assert CLAIMANT.address in found.headline


def test_a_refuted_challenge_says_nothing_else_about_the_claim() -> None:
    found = judged(truth())
    assert (found.state, found.exit_code) == ("REFUTED", 0)
    assert {status for _, status, _ in lines(found)} == {"PASS"}
    assert "says nothing else about the claim" in found.headline


@pytest.mark.parametrize("turns", range(1, 8))
def test_a_game_that_is_not_over_is_undecided_before_and_after_the_deadline(turns: int) -> None:
    transcript = truth(turns)
    found = judged(transcript)
    assert (found.state, found.exit_code) == ("UNDECIDED", 11)
    assert lines(found)[-1] == ("clock-1", "SKIP", "")
    late = judged(replace(transcript, judged_at=10**12))
    assert late.state == "UNDECIDED"
    assert "nobody is convicted" in late.headline


def test_the_verdict_of_a_proven_game_does_not_depend_on_its_times() -> None:
    transcript = lie()
    again = replace(
        transcript,
        moves=tuple(replace(entry, at=0) for entry in transcript.moves),
        judged_at=0,
    )
    assert judged(again).state == "CONVICTED"
    assert lines(judged(again)) == lines(judged(transcript))


def test_replaying_a_transcript_is_all_the_state_that_there_is() -> None:
    table = Table(own=lying(LIE))
    transcript = recorded(table, 5)
    game = replay(read_transcript(write_transcript(transcript)), ARITHMETIC)
    assert game == table.game
    assert read_transcript(write_transcript(transcript)) == transcript


class Blind:
    """A referee that has nothing to recompute with."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def lacking(*_: object) -> None:
            raise Unavailable("dispute.cannot_recompute", "not here")

        return lacking


def test_what_a_referee_cannot_recompute_is_skipped_and_never_passes() -> None:
    found = judged(lie(), Blind())
    assert (found.state, found.exit_code) == ("UNDECIDED", 11)
    assert lines(found)[-1][:2] == ("move-1", "SKIP")


def contradicted(transcript: Transcript, **changes: Any) -> Transcript:
    """The challenger's first choice a second time, otherwise."""
    entry = transcript.moves[2]
    other = replace(read_move(entry.move).statement, **changes)
    more = transcript_of(
        RULES, transcript.case, [(sent(CHALLENGER, other), transcript.judged_at)], judged_at=0
    )
    return replace(transcript, moves=(*transcript.moves, *more.moves))


def test_a_contradiction_in_the_file_loses_for_its_author() -> None:
    found = judged(contradicted(truth(4), child=5))
    assert found.state == "REFUTED"
    assert found.checks[-1].detail == "dispute.contradiction"


def test_a_receipt_with_another_state_root_as_evidence_convicts_the_claimant() -> None:
    other = case_of(TOY, lying(Lie(what="tile")), CLAIMANT)
    transcript = truth(4)
    receipt = Signed(statement=other.core, signature=other.signature)
    more = transcript_of(RULES, transcript.case, [], judged_at=0, evidence=[receipt]).evidence
    found = judged(replace(transcript, evidence=more))
    assert (found.state, found.exit_code) == ("CONVICTED", 10)
    assert lines(found)[-1] == ("evidence-1", "FAIL", "dispute.two_state_roots")
    assert [hit.address for hit in found.contradictions] == [CLAIMANT.address]


@pytest.mark.parametrize(
    "evidence",
    [{}, 5, {"statement": {"type": "aos.dispute_open"}, "signature": ""}],
)
def test_evidence_that_shows_nothing_is_skipped(evidence: Any) -> None:
    found = judged(replace(truth(), evidence=(evidence,)))
    assert found.state == "REFUTED"
    assert found.checks[-1].status == "SKIP"


def test_a_statement_that_somebody_else_signed_is_no_evidence() -> None:
    other = case_of(TOY, lying(Lie(what="tile")), CLAIMANT)
    forged = Signed(statement=other.core, signature=sent(OTHER, other.core).signature)  # type: ignore[arg-type]
    found = judged(replace(truth(), evidence=(forged.to_json(),)))
    assert found.state == "REFUTED"
    assert "signature.wrong_signer" in found.checks[-1].text


# --- files that are no game


def edited(transcript: Transcript, path: list[Any], value: Any) -> bytes:
    document = json.loads(write_transcript(transcript))
    place = document
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


NO_GAMES: list[tuple[str, str, list[Any], Any]] = [
    ("file-1", "field.missing", ["case"], None),
    ("file-1", "field.unknown", ["more"], 1),
    ("file-1", "statement.type", ["type"], "aos.answer"),
    ("file-1", "statement.version", ["v"], 2),
    ("file-1", "dispute.no_moves", ["moves"], []),
    ("file-1", "dispute.time_order", ["moves", 3, "at"], T0 + 1),
    ("file-1", "dispute.time_order", ["judged_at"], T0),
    ("file-1", "field.range", ["rules", "levels"], 4),
    ("file-1", "field.range", ["rules", "width"], 257),
    ("file-1", "field.range", ["rules", "max_bytes"], 65537),
    ("claim-1", "signature.wrong_signer", ["case", "core", "n_out"], 3),
    ("claim-1", "dispute.foreign_data", ["case", "manifest"], "{}"),
    ("open-1", "dispute.move_type", ["moves", 0, "move"], {}),
    ("open-1", "signature.wrong_signer", ["moves", 0, "move", "statement", "bond"], 11),
    ("open-1", "dispute.wrong_claim", ["moves", 0, "move", "statement", "attempt"], 9),
    ("open-1", "dispute.bond", ["rules", "bond"], 11),
    ("move-1", "dispute.move_type", ["moves", 1, "move"], {}),
    ("move-1", "signature.wrong_signer", ["moves", 1, "move", "statement", "unit"], 9),
    ("move-2", "field.range", ["moves", 2, "move", "statement", "child"], 999),
    ("move-2", "signature.wrong_signer", ["moves", 2, "move", "statement", "child"], 5),
    ("move-1", "dispute.size", ["rules", "max_bytes"], 2_000),
    ("move-1", "dispute.late", ["rules", "window_ms"], 1),
]


@pytest.mark.parametrize(("check", "code", "path", "value"), NO_GAMES)
def test_a_file_that_no_referee_made_is_no_game(check: str, code: str, path: list[Any], value: Any) -> None:
    found = judge(edited(truth(), path, value), ARITHMETIC)
    assert (found.state, found.exit_code) == ("NOT A GAME", 12)
    failed = next(line for line in found.checks if line.status == "FAIL")
    assert (failed.id, failed.code) == (check, code)


def test_a_file_that_is_not_canonical_or_too_large_is_no_game() -> None:
    data = write_transcript(truth())
    for wrong, code in (
        (b" " + data, "encoding.not_canonical"),
        (data[:-1], "encoding.syntax"),
        (b"", "encoding.syntax"),
        (b" " * (MAX_TRANSCRIPT_BYTES + 1), "encoding.too_large"),
    ):
        found = judge(wrong, ARITHMETIC)
        assert (found.state, found.checks[0].code) == ("NOT A GAME", code)


def test_a_conviction_stands_whatever_is_appended_to_the_file() -> None:
    transcript = lie()
    again = contradicted(transcript, child=5)
    assert judged(again).state == "CONVICTED"
    garbage = replace(transcript, moves=(*transcript.moves, replace(transcript.moves[-1], move={})))
    found = judged(garbage)
    assert found.state == "CONVICTED"
    assert lines(found)[-1] == ("move-8", "FAIL", "dispute.move_type")


def test_no_part_of_a_game_convicts_an_honest_claimant() -> None:
    """Whatever the referee leaves out, repeats or reorders of a refuted challenge."""
    transcript = truth()
    moves = transcript.moves
    for keep in range(1, len(moves)):
        for skip in range(1, len(moves)):
            kept = tuple(m for n, m in enumerate(moves[: keep + 1]) if n != skip)
            assert judged(replace(transcript, moves=kept, judged_at=10**12)).state != "CONVICTED"
    twice = tuple(m for move in moves for m in (move, move))
    assert judged(replace(transcript, moves=twice)).state == "REFUTED"


# --- the command


def saved(transcript: Transcript, tmp_path: Path) -> str:
    path = tmp_path / "game.json"
    path.write_bytes(write_transcript(transcript))
    return str(path)


def test_the_command_prints_a_line_a_move_and_the_judgement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert referee_command([saved(lie(), tmp_path)], ARITHMETIC) == 10
    out, err = capsys.readouterr()
    assert err == ""
    assert [line[:4] for line in out.splitlines()] == ["PASS"] * 10 + ["FAIL", "CONV"]
    assert referee_command([saved(truth(), tmp_path)], ARITHMETIC) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("REFUTED: ")
    assert referee_command([saved(truth(3), tmp_path)], ARITHMETIC) == 11
    assert capsys.readouterr().out.splitlines()[-1].startswith("UNDECIDED: ")


def test_the_command_speaks_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert referee_command([saved(lie(), tmp_path), "--json"], ARITHMETIC) == 10
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "aos.cli.referee/1"
    result = document["result"]
    assert (result["state"], result["exit_code"]) == ("CONVICTED", 10)
    assert result["game"]["claimant"] == CLAIMANT.address
    assert (result["game"]["moves"], result["game"]["kind"]) == (8, "unit")
    assert result["verdict"]["code"] == "toy.value"
    assert len(result["checks"]) == 11


def test_a_file_that_is_not_there_or_no_game_exits_12(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert referee_command([str(tmp_path / "absent")], ARITHMETIC) == 12
    assert "file.unreadable" in capsys.readouterr().err
    (tmp_path / "text").write_text("no game")
    assert referee_command([str(tmp_path / "text")], ARITHMETIC) == 12
    assert "NOT A GAME: file-1 failed" in capsys.readouterr().out
    assert referee_command(["--frobnicate"], ARITHMETIC) == 2


def test_text_of_others_does_not_write_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "game.json"
    path.write_bytes(edited(truth(), ["\u009b31m\u001b[2J"], 1))
    assert referee_command([str(path)], ARITHMETIC) == 12
    out = capsys.readouterr().out
    assert "\u001b" not in out
    assert "\u009b" not in out


PROBE = """
import sys, json
sys.path[:0] = json.loads(sys.argv[2])
opened = []
sys.addaudithook(lambda event, args: opened.append(event) if event.startswith("socket.") else None)
from aos.cli.referee import referee_command
code = referee_command([sys.argv[1]])
print(json.dumps({"code": code, "modules": sorted(sys.modules), "sockets": opened}), file=sys.stderr)
"""


def test_the_command_loads_no_web_framework_or_database_and_opens_no_socket(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, saved(truth(1), tmp_path), "[]"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    seen = json.loads(done.stderr.splitlines()[-1])
    assert seen["code"] == 11, done.stderr
    wrong = ("fastapi", "asyncpg", "redis", "httpx", "websockets", "aos.dispatcher", "aos.adapters", "gguf")
    assert [name for name in seen["modules"] if name.startswith(wrong)] == []
    assert seen["sockets"] == []


def test_a_game_is_not_moved_to_another_claim() -> None:
    transcript = replace(truth(1), case=case_of(TOY, lying(LIE), OTHER))
    with pytest.raises(AOSError, match="wrong_claim"):
        replay(transcript, ARITHMETIC)
