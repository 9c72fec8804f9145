"""Streamed text that a later verdict superseded (docs/sdk.md, "Stream"): marked for the reader, on the terminal and in the SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from aos.cli.ask import _Shown
from aos.client.answer import Answer, ShownText, Stream


@dataclass
class Event:
    kind: str
    data: dict[str, Any]


def text(piece: str, attempt: int = 1) -> Event:
    return Event("text", {"text": piece, "attempt": attempt})


DONE = Event("done", {"status": "verified"})


@pytest.mark.parametrize(
    ("pieces", "final", "shown", "superseded"),
    [
        ([(1, "a"), (1, "b")], "ab", "ab", False),
        ([(1, "a"), (1, "b"), (2, "abc")], "abc", "abc", False),
        ([(1, "ab"), (2, "a"), (2, "bc")], "abc", "abc", False),
        ([(1, "ab"), (2, "x")], "xy", "ab|x" + "y", True),
        ([(1, "ab")], "xy", "ab|xy", True),
        ([(1, "ab")], "a", "ab|a", True),
        ([], "ab", "ab", False),
        ([(1, "ab")], "", "ab|", True),
    ],
)
def test_what_is_shown_is_marked_where_it_does_not_count(
    pieces: list[tuple[int, str]], final: str, shown: str, superseded: bool
) -> None:
    told, out = ShownText(), ""
    for new, again in [*(told.push(*piece) for piece in pieces), told.finish(final)]:
        out += "|" * again + new
    assert out == shown
    assert told.superseded is superseded
    assert told.shown == final


def test_the_stream_of_the_sdk_says_so() -> None:
    def fetch(job_id: str, status: str) -> Answer:
        return Answer(job_id=job_id, status=status, data=json.dumps({"text": "right"}).encode())

    def events() -> Iterator[Event]:
        yield from (text("wro"), text("ng"), DONE)

    stream = Stream("job", events(), fetch)  # type: ignore[arg-type]
    assert "".join(stream) == "wrong"
    assert (stream.superseded, stream.text) == (False, "wrong")
    assert stream.answer.text == "right"
    assert (stream.superseded, stream.text) == (True, "right")


def test_aos_ask_marks_it_on_both_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _Shown(wanted=True)
    shown.push(1, "wrong text")
    shown.finish("right text")
    out, err = capsys.readouterr()
    assert out == "wrong text\n\n[superseded: the text above is not the answer; this is]\nright text\n"
    assert "superseded" in err
    assert shown.superseded


def test_aos_ask_marks_nothing_where_nothing_changed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _Shown(wanted=True)
    shown.push(1, "right ")
    shown.push(2, "right text")
    shown.finish("right text")
    assert capsys.readouterr() == ("right text\n", "")


def test_in_json_nothing_is_streamed_and_the_flag_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _Shown(wanted=False)
    shown.push(1, "wrong")
    shown.finish("right")
    assert capsys.readouterr() == ("", "")
    assert shown.superseded
