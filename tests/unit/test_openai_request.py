"""Calls of OpenAI's API as jobs: what is read, and what is refused by name (docs/spec/09-http.md, "OpenAI's API")."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.core.statements import ChatMessage
from aos.dispatcher import openai_request, schemas_openai
from aos.dispatcher.offers import check_offered
from aos.dispatcher.openai_request import Asked, Assurance, read_assurance, read_call
from aos.errors import InvalidMessage

CHAT: dict[str, Any] = {"model": "m.gguf", "messages": [{"role": "user", "content": "What is AI?"}]}
TEXT: dict[str, Any] = {"model": "m.gguf", "prompt": "What is AI?"}


def read(body: dict[str, Any], kind: openai_request.Kind | None = None) -> Asked:
    kind = kind or ("chat" if "messages" in body else "text")
    return read_call(kind, json.dumps(body).encode(), project="p-1", token="t" * 43)


def refused(body: dict[str, Any], code: str, field: str, kind: openai_request.Kind | None = None) -> None:
    with pytest.raises(InvalidMessage) as error:
        read(body, kind)
    assert (error.value.code, error.value.field) == (code, field), error.value
    assert field in error.value.message


def test_a_call_with_nothing_but_what_it_needs() -> None:
    asked = read(CHAT)
    assert asked.new.prompt == (ChatMessage(role="user", content="What is AI?"),)
    assert (asked.new.job_type, asked.new.min_operators, asked.new.user) == ("opml", None, "default")
    assert (asked.stream, asked.include_usage, asked.assurance.level) == (False, False, "")
    assert asked.new.nonce is None
    params = asked.new.params
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (
        1_000_000,
        1_000_000,
        256,
        None,
    )
    assert read(TEXT).new.prompt == "What is AI?"
    assert read(TEXT | {"prompt": ["one"]}).new.prompt == "one"


def test_everything_that_is_offered_is_read() -> None:
    own = {"verify": "redundant:3", "nonce": "A" * 43, "blind": True, "private": True, "top_k": 5}
    own |= {"min_p": 0.25, "repeat_penalty": 1.5, "webhook": "https://example.org/x"}
    body = CHAT | {
        "temperature": 0.7,
        "top_p": 0.5,
        "max_completion_tokens": 9,
        "stop": "x",
        "seed": 2**53 - 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "alice",
        "aos": own,
    }
    asked = read(body)
    params, new = asked.new.params, asked.new
    assert (params.temperature, params.top_p, params.max_tokens) == (700_000, 500_000, 9)
    assert (params.top_k, params.min_p, params.repeat_penalty) == (5, 250_000, 1_500_000)
    assert (params.stop, params.seed) == (("x",), str(2**53 - 1))
    assert (new.nonce, new.blind, new.private, new.webhook) == (
        bytes(32),
        True,
        True,
        "https://example.org/x",
    )
    assert (new.user, new.min_operators, asked.stream, asked.include_usage) == ("alice", 3, True, True)
    assert "What" not in repr(new)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", True),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("presence_penalty", 0.1),
        ("frequency_penalty", -2),
        ("logit_bias", {"5": 1}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("store", True),
        ("reasoning_effort", "high"),
        ("audio", {}),
        ("service_tier", "flex"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(name: str, value: Any) -> None:
    refused(CHAT | {name: value}, "param.unsupported", name)


@pytest.mark.parametrize(
    ("name", "value"), [("logprobs", 0), ("logprobs", 5), ("echo", True), ("best_of", 3), ("suffix", "x")]
)
def test_what_is_not_offered_with_raw_prompts_is_refused_by_name(name: str, value: Any) -> None:
    refused(TEXT | {name: value}, "param.unsupported", name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 1),
        ("logprobs", False),
        ("top_logprobs", 0),
        ("presence_penalty", 0.0),
        ("frequency_penalty", 0),
        ("tools", []),
        ("tool_choice", "auto"),
        ("response_format", {"type": "text"}),
        ("logit_bias", {}),
        ("parallel_tool_calls", True),
        ("audio", None),
        ("temperature", None),
        ("stop", None),
        ("aos", None),
    ],
)
def test_what_asks_for_nothing_is_taken(name: str, value: Any) -> None:
    assert read(CHAT | {name: value}).new.params == read(CHAT).new.params


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"messages": None}, "field.missing", "messages"),
        ({"messages": []}, "field.type", "messages"),
        ({"messages": "hello"}, "field.type", "messages"),
        ({"messages": [7]}, "field.type", "messages[0]"),
        ({"messages": [{"role": "user"}]}, "field.type", "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "field.missing", "messages[0].role"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "param.unsupported", "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "param.unsupported", "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "param.unsupported",
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": ["x"]}]},
            "field.type",
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "param.unsupported",
            "messages[0].tool_calls",
        ),
        ({"messages": [{"role": "user", "content": "x", "size": 1}]}, "field.unknown", "messages[0].size"),
        ({"messages": [{"role": "user", "content": "ä" * 131_073}]}, "field.range", "messages"),
        ({"messages": [{"role": "user", "content": "x"}] * 4097}, "field.type", "messages"),
        ({"model": None}, "field.type", "model"),
        ({"prompt": "x"}, "field.unknown", "prompt"),
        ({"temperature": 11}, "field.range", "temperature"),
        ({"temperature": 0.001}, "field.range", "temperature"),
        ({"top_p": 0}, "field.range", "top_p"),
        ({"max_tokens": 0}, "field.range", "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "field.range", "max_tokens"),
        ({"seed": -1}, "field.range", "seed"),
        ({"stop": ["x"] * 17}, "field.type", "stop"),
        ({"stream": 1}, "field.type", "stream"),
        ({"stream_options": {"include_usage": True}}, "field.type", "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "field.unknown", "stream_options.x"),
        ({"user": "\0"}, "field.range", "user"),
        ({"aos": []}, "field.type", "aos"),
        ({"aos": {"tag": "malicious"}}, "field.unknown", "aos.tag"),
        ({"aos": {"nonce": "A"}}, "field.range", "aos.nonce"),
        ({"aos": {"blind": 1}}, "field.type", "aos.blind"),
        ({"aos": {"top_k": -1}}, "field.range", "aos.top_k"),
        ({"aos": {"webhook": "ftp://x"}}, "webhook.url", "aos.webhook"),
        ({"top_k": 5}, "field.unknown", "top_k"),
    ],
)
def test_a_wrong_member_is_named(changes: dict[str, Any], code: str, field: str) -> None:
    refused(CHAT | changes, code, field, "chat")


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("redundant:1", "field.range"),
        ("redundant:65", "field.range"),
        ("redundant:03", "field.range"),
        ("redundant:3\n", "field.range"),
        ("verified", "field.range"),
        ("replayed", "assurance.unavailable"),
        ("disputable", "assurance.unavailable"),
        (3, "field.type"),
    ],
)
def test_an_assurance_that_cannot_be_asked_for_is_refused(value: Any, code: str) -> None:
    with pytest.raises(InvalidMessage) as error:
        read_assurance(value)
    assert (error.value.code, error.value.field) == (code, "aos.verify")


@pytest.mark.parametrize(
    ("value", "job_type", "operators"),
    [
        ("none", "opml", 1),
        ("signed", "opml", 1),
        ("redundant:2", "opml", 2),
        ("redundant:64", "opml", 64),
        ("simulated", "tee", None),
        ("attested", "tee", None),
    ],
)
def test_an_assurance_chooses_job_type_and_operators(
    value: str, job_type: str, operators: int | None
) -> None:
    assurance = read_assurance(value)
    assert (assurance.name, assurance.job_type, assurance.min_operators) == (value, job_type, operators)


def test_evidence_that_this_dispatcher_does_not_take_is_not_promised() -> None:
    check_offered(Assurance(level="attested"), {"nitro"})
    check_offered(Assurance(level="simulated"), {"simulated"})
    for level, taken in (("attested", {"simulated"}), ("attested", set()), ("simulated", set())):
        with pytest.raises(InvalidMessage) as error:
            check_offered(Assurance(level=level), taken)  # type: ignore[arg-type]
        assert error.value.code == "assurance.unavailable"


def test_a_seed_beyond_what_json_holds_exactly_is_sent_as_text() -> None:
    assert read(CHAT | {"seed": str(2**64 - 1)}).new.params.seed == str(2**64 - 1)
    with pytest.raises(InvalidMessage) as error:
        read(CHAT | {"seed": 2**53})
    assert error.value.code == "encoding.integer_range"


def test_text_parts_are_joined_as_they_stand() -> None:
    parts = [{"type": "text", "text": "a\n"}, {"type": "text", "text": " b"}]
    asked = read(CHAT | {"messages": [{"role": "user", "content": parts, "name": None}]})
    assert asked.new.prompt == (ChatMessage(role="user", content="a\n b"),)


@given(
    st.dictionaries(st.text("abcxyz_.\0ä", min_size=1, max_size=9), st.integers(0, 9), min_size=1, max_size=4)
)
def test_members_that_nobody_knows_are_refused_by_name(members: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage) as error:
        read(CHAT | members, "chat")
    assert error.value.field in members
    assert error.value.code == "field.unknown"


def test_the_same_body_is_another_call_of_another_route() -> None:
    data = json.dumps(TEXT | {"messages": CHAT["messages"]}).encode()
    with pytest.raises(InvalidMessage):
        read_call("chat", data, project="p", token="t")
    assert read(CHAT).new.body_hash != read(CHAT | {"user": "x"}).new.body_hash


def test_the_documented_members_are_those_that_are_read() -> None:
    common = openai_request._COMMON
    assert set(schemas_openai.ChatCall.model_fields) == common | openai_request._OWN["chat"]
    assert set(schemas_openai.TextCall.model_fields) == common | openai_request._OWN["text"]
    assert set(schemas_openai.AosAsked.model_fields) == openai_request._AOS
    for model, kind in ((schemas_openai.ChatCall, "chat"), (schemas_openai.TextCall, "text")):
        read(model.model_json_schema()["example"], kind)  # type: ignore[arg-type]
