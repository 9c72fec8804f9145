"""From the body of an OpenAI call to a job (docs/spec/09-http.md, "OpenAI's API"). Pure: nothing is looked up or stored.

What these engines cannot do is refused by name, never passed over: an answer that silently ignored a parameter would be
verified as the answer to another question.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

from aos.core.statements import ChatMessage, JobType, Prompt
from aos.dispatcher.submission import (
    MAX_MESSAGES,
    NewJob,
    check_size,
    flag,
    optional_integer,
    read_body,
    read_nonce,
    read_params,
    text,
)
from aos.dispatcher.webhook_url import check_url
from aos.errors import InvalidMessage

Kind = Literal["chat", "text"]

ROLES = ("system", "user", "assistant")
NO_USER = "default"
_COMMON = {
    *("model", "temperature", "top_p", "max_tokens", "stop", "seed", "stream", "stream_options"),
    *("user", "safety_identifier", "aos"),
}
_OWN = {"chat": {"messages", "max_completion_tokens"}, "text": {"prompt"}}
_AOS = {"verify", "nonce", "blind", "private", "webhook", "top_k", "min_p", "repeat_penalty"}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "prompt_cache_key": (),
    "logprobs": (False,),
}
"""Members that are known and not offered, and the values that ask for nothing."""
_NEUTRAL_OWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "chat": {
        "top_logprobs": (0,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "verbosity": (),
        "web_search_options": (),
    },
    "text": {"best_of": (1,), "echo": (False,), "suffix": ("",)},
}
_REDUNDANT = re.compile(r"redundant:([2-9]|[1-5][0-9]|6[0-4])\Z", re.ASCII)
Level = Literal["", "none", "signed", "redundant", "simulated", "attested"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assurance:
    """What ``aos.verify`` asks for. ``level`` is empty where nothing was asked; ``k`` counts for `redundant` only."""

    level: Level = ""
    k: int = 0

    @property
    def name(self) -> str:
        return f"redundant:{self.k}" if self.level == "redundant" else self.level

    @property
    def job_type(self) -> JobType:
        return "tee" if self.level in ("simulated", "attested") else "opml"

    @property
    def min_operators(self) -> int | None:
        return self.k or (1 if self.level in ("none", "signed") else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A well-formed call."""

    kind: Kind
    new: NewJob
    stream: bool
    include_usage: bool
    assurance: Assurance


def read_call(kind: Kind, data: bytes, *, project: str, token: str) -> Asked:
    """Raises InvalidMessage, its ``field`` naming the member; ``param.unsupported`` for what is not offered."""
    body = read_body(data)
    _check_members(kind, body)
    extra = body.get("aos") if body.get("aos") is not None else {}
    if not isinstance(extra, dict):
        raise InvalidMessage("field.type", "aos: must be an object", field="aos")
    for name in extra:
        if name not in _AOS:
            raise _unknown(f"aos.{name[:64]}")
    stream, include_usage = _streaming(body)
    assurance = read_assurance(extra.get("verify"))
    nonce, webhook = extra.get("nonce"), extra.get("webhook")
    new = NewJob(
        project=project,
        token=token,
        tag="",
        user=_user(body),
        job_type=assurance.job_type,
        prompt=_messages(body) if kind == "chat" else _prompt(body),
        model=text(body, "model", "model", 256),
        params=read_params(_params(body), ""),
        nonce=None if nonce is None else read_nonce(nonce, "aos.nonce"),
        min_operators=assurance.min_operators,
        blind=flag(extra.get("blind", False), "aos.blind"),
        private=flag(extra.get("private", False), "aos.private"),
        body_hash=hashlib.sha256(b"AOS/openai/v1\0" + kind.encode() + b"\0" + data).digest(),
        webhook=None if webhook is None else check_url(webhook, "aos.webhook"),
    )
    # What is beside the usual parameters has its own place, so that its errors name it there.
    params = read_params(extra, "aos.")
    beside = replace(new.params, top_k=params.top_k, min_p=params.min_p, repeat_penalty=params.repeat_penalty)
    return Asked(
        kind=kind,
        new=replace(new, params=beside),
        stream=stream,
        include_usage=include_usage,
        assurance=assurance,
    )


def read_assurance(value: Any) -> Assurance:
    """Raises InvalidMessage ``field.type``, ``field.range``, ``assurance.unavailable``."""
    field = "aos.verify"
    if value is None:
        return Assurance()
    if not isinstance(value, str):
        raise InvalidMessage("field.type", f"{field}: must be a string", field=field)
    if found := _REDUNDANT.match(value):
        return Assurance(level="redundant", k=int(found[1]))
    if value in ("none", "signed", "simulated", "attested"):
        return Assurance(level=value)  # type: ignore[arg-type]
    if value in ("replayed", "disputable"):
        raise InvalidMessage(
            "assurance.unavailable",
            f"{field}: {value!r} is nothing that a dispatcher can promise",
            field=field,
            hint="a verifier replays the answer file itself: aos replay FILE --model GGUF",
        )
    raise InvalidMessage(
        "field.range",
        f"{field}: must be none, signed, redundant:2 … redundant:64, simulated or attested",
        field=field,
    )


def _check_members(kind: Kind, body: dict[str, Any]) -> None:
    neutral = _NEUTRAL | _NEUTRAL_OWN[kind]
    for name, value in body.items():
        if name in _COMMON or name in _OWN[kind]:
            continue
        if name not in neutral:
            raise _unknown(name[:64])
        if value is not None and not any(_same(value, allowed) for allowed in neutral[name]):
            raise InvalidMessage(
                "param.unsupported",
                f"{name}: this network does not offer it",
                field=name,
                hint="leave it out",
            )


def _same(value: Any, other: Any) -> bool:
    numbers = (int, Decimal)
    if type(value) in numbers and type(other) in numbers:
        return bool(value == other)
    return type(value) is type(other) and bool(value == other)


def _streaming(body: dict[str, Any]) -> tuple[bool, bool]:
    stream = flag(body["stream"], "stream") if body.get("stream") is not None else False
    options = body.get("stream_options")
    if options is None:
        return stream, False
    if not stream or not isinstance(options, dict):
        raise InvalidMessage(
            "field.type", "stream_options: an object, with stream true only", field="stream_options"
        )
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise _unknown(f"stream_options.{name[:64]}")
    if options.get("include_obfuscation") not in (None, False):
        raise InvalidMessage(
            "param.unsupported",
            "stream_options.include_obfuscation: this network does not offer it",
            field="stream_options.include_obfuscation",
        )
    return stream, flag(options.get("include_usage", False), "stream_options.include_usage")


def _user(body: dict[str, Any]) -> str:
    for name in ("user", "safety_identifier"):
        if body.get(name) is not None:
            return text(body, name, name, 256)
    return NO_USER


def _params(body: dict[str, Any]) -> dict[str, Any]:
    names = ("temperature", "top_p", "max_tokens", "stop", "seed")
    params = {name: body[name] for name in names if body.get(name) is not None}
    newer = body.get("max_completion_tokens")
    if newer is not None:
        optional_integer(newer, "max_completion_tokens", 1, 1_000_000)
        if params.setdefault("max_tokens", newer) != newer:
            raise InvalidMessage(
                "field.range",
                "max_tokens: is not max_completion_tokens; send one of them",
                field="max_tokens",
            )
    return params


def _prompt(body: dict[str, Any]) -> Prompt:
    value = body.get("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if value is None:
        raise InvalidMessage("field.missing", "prompt: is missing", field="prompt")
    if not isinstance(value, str):
        raise InvalidMessage("field.type", "prompt: must be one text", field="prompt")
    check_size([value], "prompt")
    return value


def _messages(body: dict[str, Any]) -> tuple[ChatMessage, ...]:
    value = body.get("messages")
    if value is None:
        raise InvalidMessage("field.missing", "messages: is missing", field="messages")
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        raise InvalidMessage(
            "field.type", f"messages: must be a list of 1 to {MAX_MESSAGES}", field="messages"
        )
    messages = tuple(_message(item, f"messages[{i}]") for i, item in enumerate(value))
    check_size([message.content for message in messages], "messages")
    return messages


def _message(value: Any, field: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise InvalidMessage("field.type", f"{field}: must be an object", field=field)
    for name, member in value.items():
        if name in ("role", "content") or member is None:
            continue
        if name in ("name", "tool_calls", "function_call", "refusal", "audio", "annotations"):
            if member in ([], {}):
                continue
            raise InvalidMessage(
                "param.unsupported",
                f"{field}.{name}: this network does not offer it",
                field=f"{field}.{name}",
            )
        raise _unknown(f"{field}.{name[:64]}")
    role = text(value, "role", f"{field}.role", 64)
    if role not in ROLES:
        raise InvalidMessage(
            "param.unsupported",
            f"{field}.role: must be one of {', '.join(ROLES)}",
            field=f"{field}.role",
            hint="`developer` is `system` to the models here" if role == "developer" else None,
        )
    return ChatMessage(role=role, content=_content(value.get("content"), f"{field}.content"))


def _content(value: Any, field: str) -> str:
    """A text, or text parts, which are joined as they stand."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidMessage("field.type", f"{field}: must be a text or a list of text parts", field=field)
    parts = []
    for index, part in enumerate(value):
        at = f"{field}[{index}]"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise InvalidMessage("field.type", f"{at}: must be a part with a type", field=at)
        if part["type"] != "text":
            raise InvalidMessage("param.unsupported", f"{at}.type: only text", field=f"{at}.type")
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise InvalidMessage("field.type", f"{at}: a text part has type and text", field=at)
        parts.append(part["text"])
    return "".join(parts)


def _unknown(field: str) -> InvalidMessage:
    return InvalidMessage("field.unknown", f"{field}: no such member", field=field)
