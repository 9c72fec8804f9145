"""Answers in OpenAI's shapes: streamed text never contradicts itself, and less than was asked for is an error."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_run import Network

from aos.core.statements import ReceiptCore
from aos.dispatcher.finished import Finished
from aos.dispatcher.openai_answer import Answerer, NotReached, StreamText, check_finished
from aos.dispatcher.openai_request import Asked, read_call
from aos.dispatcher.schemas_openai import ChatAnswer, TextAnswer
from aos.errors import AOSError, InvalidMessage, RuleViolation, Unavailable


@pytest.fixture(scope="module")
def cores() -> tuple[ReceiptCore, ...]:
    answer = Network().run()
    return (answer.receipt.core, *(peer.core for peer in answer.peers))


@pytest.fixture(scope="module")
def acceptance() -> Any:
    return Network().run().acceptance.statement


def finished(cores: tuple[ReceiptCore, ...], **changes: Any) -> Finished:
    values: dict[str, Any] = {
        "status": "verified",
        "outcome": "agreed" if len(cores) > 1 else "single",
        "attempt": 1,
        "error_code": "",
        "error_message": "",
        "reported": "",
        "receipts": cores,
        "receipt_ids": tuple("r" for _ in cores),
        "text": "hello",
    }
    return Finished(**values | changes)


def call(verify: str = "") -> Asked:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "aos": {"verify": verify or None}}
    return read_call("chat", json.dumps(body).encode(), project="p", token="t")


# --- text


def test_a_later_attempt_goes_on_where_the_first_one_ended() -> None:
    text = StreamText()
    assert [text.push(1, "ab"), text.push(1, "cd")] == ["ab", "cd"]
    assert [text.push(2, "a"), text.push(2, "bcdef"), text.push(2, "g")] == ["", "ef", "g"]
    assert text.finish("abcdefgh") == "h"


def test_a_later_attempt_that_says_something_else_ends_the_stream() -> None:
    text = StreamText()
    text.push(1, "abc")
    assert text.push(2, "ab") == ""
    with pytest.raises(NotReached) as error:
        text.push(2, "X")
    assert error.value.code == "stream.superseded"


@pytest.mark.parametrize("final", ["ab", "abX", ""])
def test_a_receipt_about_another_text_ends_the_stream(final: str) -> None:
    text = StreamText()
    text.push(1, "abc")
    with pytest.raises(NotReached):
        text.finish(final)


@given(st.text(max_size=30), st.lists(st.lists(st.integers(0, 30), max_size=4), max_size=4))
def test_attempts_of_one_text_give_that_text_once(whole: str, attempts: list[list[int]]) -> None:
    text, out = StreamText(), ""
    for attempt, cuts in enumerate(attempts, 1):
        places = [0, *sorted(min(cut, len(whole)) for cut in cuts)]
        for begin, end in itertools.pairwise(places):
            out += text.push(attempt, whole[begin:end])
    assert out + text.finish(whole) == whole


# --- what it is worth


@pytest.mark.parametrize("level", ["", "none", "signed"])
def test_one_receipt_is_enough_where_no_more_was_asked_for(
    cores: tuple[ReceiptCore, ...], level: Any
) -> None:
    assert check_finished(finished(cores[:1]), call(level)) == cores[0]


@pytest.mark.parametrize(
    ("outcome", "seats", "wanted", "reached"),
    [
        ("agreed", 3, "redundant:3", True),
        ("agreed", 3, "redundant:2", True),
        ("agreed", 2, "redundant:3", False),
        ("single", 1, "redundant:2", False),
        ("single", 3, "redundant:3", False),
        ("agreed", 3, "simulated", False),
        ("agreed", 3, "attested", False),
    ],
)
def test_redundancy_is_reached_or_refused(
    cores: tuple[ReceiptCore, ...], outcome: str, seats: int, wanted: str, reached: bool
) -> None:
    end = finished(cores[:seats], outcome=outcome)
    if reached:
        assert check_finished(end, call(wanted)) == cores[0]
        return
    with pytest.raises(NotReached) as error:
        check_finished(end, call(wanted))
    assert (error.value.code, error.value.field) == ("assurance.not_reached", "aos.verify")


@pytest.mark.parametrize(
    ("kind", "wanted", "reached"),
    [
        ("simulated", "simulated", True),
        ("simulated", "attested", False),
        ("nitro", "attested", True),
        ("nitro", "simulated", True),
        ("nitro", "redundant:2", False),
    ],
)
def test_simulated_evidence_is_never_attested(
    cores: tuple[ReceiptCore, ...], kind: Any, wanted: str, reached: bool
) -> None:
    end = finished((replace(cores[0], tee=kind),))
    if reached:
        check_finished(end, call(wanted))
        return
    with pytest.raises(NotReached):
        check_finished(end, call(wanted))


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"outcome": "disputed", "status": "disputed"}, NotReached, "job.disputed"),
        ({"status": "cancelled", "receipts": ()}, RuleViolation, "job.cancelled"),
        (
            {"status": "failed", "receipts": (), "error_code": "draw.no_operator", "error_message": "none"},
            Unavailable,
            "draw.no_operator",
        ),
        ({"status": "expired", "receipts": ()}, Unavailable, "job.expired"),
        (
            {"status": "failed", "receipts": (), "error_code": "run.no_result", "reported": "chat.refused"},
            InvalidMessage,
            "chat.refused",
        ),
        (
            {
                "status": "failed",
                "receipts": (),
                "error_code": "run.no_result",
                "reported": "engine.prompt_too_long",
            },
            InvalidMessage,
            "engine.prompt_too_long",
        ),
        (
            {"status": "failed", "receipts": (), "error_code": "run.no_result", "reported": "worker.gone"},
            Unavailable,
            "run.no_result",
        ),
    ],
)
def test_what_ended_without_an_answer_is_an_error_of_the_right_party(
    cores: tuple[ReceiptCore, ...], changes: dict[str, Any], error: type[AOSError], code: str
) -> None:
    with pytest.raises(error) as raised:
        check_finished(finished(cores, **changes), call())
    assert raised.value.code == code


def test_a_trapped_run_is_no_answer(cores: tuple[ReceiptCore, ...]) -> None:
    trapped = replace(cores[0], finish_reason="numeric_trap")
    with pytest.raises(NotReached) as error:
        check_finished(finished((trapped,)), call())
    assert error.value.code == "job.broken_off"


# --- shapes


def answerer(acceptance: Any, kind: Any, **members: Any) -> Answerer:
    body: dict[str, Any] = {"model": "m"} | members
    body |= {"messages": [{"role": "user", "content": "x"}]} if kind == "chat" else {"prompt": "x"}
    asked = read_call(kind, json.dumps(body).encode(), project="p", token="t")
    return Answerer(asked=asked, job_id="0" * 64, acceptance=acceptance)


def test_whole_answers_have_the_documented_members(cores: tuple[ReceiptCore, ...], acceptance: Any) -> None:
    end = finished(cores)
    chat = answerer(acceptance, "chat", aos={"verify": "redundant:2"}).whole(end, cores[0])
    ChatAnswer.model_validate(chat)
    assert chat["system_fingerprint"] == cores[0].engine
    assert chat["aos"]["verify"] == "redundant:2"
    assert chat["aos"]["nonce_source"] == "dispatcher"
    assert chat["usage"]["total_tokens"] == cores[0].n_prompt + cores[0].n_out
    text = answerer(acceptance, "text", aos={"nonce": "A" * 43}).whole(end, cores[0])
    TextAnswer.model_validate(text)
    assert text["aos"]["nonce_source"] == "client"


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("usage", [False, True])
def test_the_last_chunk_carries_aos_and_the_first_says_provisional(
    cores: tuple[ReceiptCore, ...], acceptance: Any, kind: str, usage: bool
) -> None:
    maker = answerer(acceptance, kind, stream=True, stream_options={"include_usage": usage})
    first, middle, last = maker.opening(), maker.text("x"), maker.closing(finished(cores), cores[0])
    assert first["aos"] == {"job_id": "0" * 64, "provisional": True}
    assert "aos" not in middle
    assert middle["system_fingerprint"] is None
    assert last[-1]["aos"]["provisional"] is False
    assert last[0]["choices"][0]["finish_reason"] == cores[0].finish_reason
    assert len(last) == 1 + usage
    for chunk in (first, middle, last[0]):
        assert ("usage" in chunk) is usage
        assert chunk.get("usage") is None
    if usage:
        assert last[1]["choices"] == []
        assert last[1]["usage"]["completion_tokens"] == cores[0].n_out
