"""Conversations in engines: the file's own template and tokenizer, the same ids as the prompt that the template makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizer_cases import bpe_metadata

from aos.core.codec import decode, encode
from aos.core.statements import ChatMessage, RequestJob
from aos.engine.conversation import Conversations
from aos.engine.native import NativeEngine
from aos.engine.tokenizer import Tokenizer, read_vocabulary
from aos.engine.tokenizer.vocabulary import CONTROL
from aos.errors import InvalidMessage
from aos.ports import SamplingParams

DEMO = Path(__file__).parents[2] / "models" / "aos-demo.Q8_0.gguf"
QUESTION = (ChatMessage(role="system", content="Be kind."), ChatMessage(role="user", content="What is AI?"))
GREEDY = SamplingParams(temperature=0, max_tokens=120)
SALT = bytes(32)


@pytest.fixture(scope="module")
def demo() -> NativeEngine:
    return NativeEngine(DEMO)


def test_a_conversation_has_the_ids_of_what_the_template_makes(demo: NativeEngine) -> None:
    assert demo.tokenize(QUESTION) == demo.tokenize("What is AI?\n")
    assert demo.tokenize(QUESTION) != demo.tokenize("What is AI?")


def test_a_conversation_runs_and_replays_like_its_prompt(demo: NativeEngine) -> None:
    chat = demo.generate(QUESTION, GREEDY, salt=SALT)
    assert chat == demo.generate("What is AI?\n", GREEDY, salt=SALT)
    assert chat.finish_reason == "stop"
    assert chat.text[0].isupper()
    assert demo.replay(QUESTION, chat.tokens, GREEDY, salt=SALT) == chat


def test_names_of_special_tokens_in_a_message_stay_text(demo: NativeEngine) -> None:
    said = demo.tokenize((ChatMessage(role="user", content="</s><s>"),))
    assert said.count(demo.tokenizer.vocabulary.bos) == 1
    assert demo.tokenizer.vocabulary.eos not in said


def test_special_tokens_come_from_the_template_alone() -> None:
    metadata = bpe_metadata(extra=(("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL)))
    tokenizer = Tokenizer(read_vocabulary(metadata))
    template = (
        b"{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
    )
    conversations = Conversations(tokenizer, {"tokenizer.chat_template": template})
    start = tokenizer.encode("<|im_start|>", special=True)[-1]
    ids = conversations.tokenize((ChatMessage(role="user", content="<|im_start|>"),))
    assert ids.count(start) == 2


@pytest.mark.parametrize(
    ("tokenizer", "metadata", "code"),
    [
        (True, {}, "chat.no_template"),
        (True, {"tokenizer.chat_template": 7}, "chat.no_template"),
        (False, {"tokenizer.chat_template": b"x"}, "chat.tokenizer"),
        (True, {"tokenizer.chat_template": b"{% x"}, "chat.template"),
        (True, {"tokenizer.chat_template": b"{{ raise_exception('no') }}"}, "chat.refused"),
    ],
)
def test_a_conversation_that_cannot_be_put_is_refused_by_name(
    demo: NativeEngine, tokenizer: bool, metadata: dict[str, Any], code: str
) -> None:
    conversations = Conversations(demo.tokenizer if tokenizer else None, metadata)
    for _ in range(2):
        with pytest.raises(InvalidMessage) as error:
            conversations.tokenize(QUESTION)
        assert error.value.code == code


# --- in the request


def job(prompt: Any) -> dict[str, Any]:
    params = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repeat_penalty": 1, "max_tokens": 1}
    return {
        "tag": "opml",
        "prompt": prompt,
        "model": "m",
        "model_id": "A" * 43,
        "params": params | {"stop": [], "seed": None},
    }


@pytest.mark.parametrize("prompt", ["", "What is AI?", [], [{"role": "user", "content": "x"}]])
def test_a_request_holds_a_text_or_messages_and_one_form_of_each(prompt: Any) -> None:
    read = decode(RequestJob, job(prompt))
    assert encode(read) == job(prompt)
    assert isinstance(read.prompt, str) == isinstance(prompt, str)


@pytest.mark.parametrize(
    ("prompt", "code", "field"),
    [
        (None, "field.type", "prompt"),
        (7, "field.type", "prompt"),
        ({"role": "user", "content": "x"}, "field.type", "prompt"),
        (["x"], "field.type", "prompt[0]"),
        ([{"role": "user"}], "field.missing", "prompt[0].content"),
        ([{"role": "user", "content": None}], "field.type", "prompt[0].content"),
        ([{"role": "user", "content": "x", "name": "y"}], "field.unknown", "prompt[0].name"),
        ([{"role": "r" * 65, "content": "x"}], "field.range", "prompt[0].role"),
        ([{"role": "user", "content": "x"}] * 4097, "field.range", "prompt"),
        ("x" * 1_000_001, "field.range", "prompt"),
    ],
)
def test_a_request_s_prompt_is_read_strictly(prompt: Any, code: str, field: str) -> None:
    with pytest.raises(InvalidMessage) as error:
        decode(RequestJob, job(prompt))
    assert (error.value.code, error.value.field) == (code, field)
