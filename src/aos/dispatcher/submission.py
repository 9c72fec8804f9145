"""From the bytes of a submission to a checked value (docs/spec/09-http.md). Pure: nothing is looked up or stored."""

import hashlib
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from aos.core.encoding import b64u_decode, millionths, parse_json_strict
from aos.core.statements import ChatMessage, JobType, Params, Prompt, Tag
from aos.dispatcher.webhook_url import check_url
from aos.errors import InvalidMessage

MAX_BODY_BYTES = 1 << 20
MAX_PROMPT_BYTES = 256 * 1024
_MILLION = 1_000_000
MAX_MESSAGES = 4096
_MEMBERS = {"from", "tag", "user", "job", "verify", "nonce", "min_operators", "blind", "private", "webhook"}
_JOB = {"tag", "prompt", "model", "params"}
_PARAMS = {"temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "stop", "seed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A well-formed submission. ``body_hash`` is over the received bytes, for ``Idempotency-Key``."""

    project: str
    token: str
    tag: Tag
    user: str
    job_type: JobType
    prompt: Prompt
    model: str
    params: Params
    nonce: bytes | None
    min_operators: int | None
    blind: bool
    private: bool
    body_hash: bytes
    webhook: str | None = None

    def __repr__(self) -> str:
        return f"NewJob(project={self.project!r})"


def read_body(data: bytes) -> dict[str, Any]:
    """A JSON object of at most 1 MiB. Raises InvalidMessage ``encoding.*``, ``field.type``."""
    value = parse_json_strict(data, max_bytes=MAX_BODY_BYTES, allow_floats=True)
    if not isinstance(value, dict):
        raise InvalidMessage("field.type", "the body must be a JSON object")
    return value


def read_submission(data: bytes) -> NewJob:
    """Raises InvalidMessage, its ``field`` naming the member."""
    body = read_body(data)
    _only(body, _MEMBERS, "")
    job = body.get("job")
    if not isinstance(job, dict):
        raise InvalidMessage("field.type", "job: must be an object", field="job")
    _only(job, _JOB, "job.")
    tag = _one_of(body.get("tag", ""), ("", "suspicion", "malicious"), "tag")
    job_type = _one_of(job.get("tag"), ("opml", "tee"), "job.tag")
    nonce, webhook = body.get("nonce"), body.get("webhook")
    return NewJob(
        project=text(body, "from", "from", 128),
        token=text(body, "verify", "verify", 256),
        tag=tag,
        user=text(body, "user", "user", 256),
        job_type=job_type,
        prompt=prompt_of(job, "prompt", "job.prompt"),
        model=text(job, "model", "job.model", 256),
        params=_seed_params(job.get("params", {})),
        nonce=None if nonce is None else read_nonce(nonce, "nonce"),
        min_operators=optional_integer(body.get("min_operators"), "min_operators", 1, 64),
        blind=flag(body.get("blind", False), "blind"),
        private=flag(body.get("private", False), "private"),
        body_hash=hashlib.sha256(b"AOS/submission/v1\0" + data).digest(),
        webhook=None if webhook is None else check_url(webhook, "webhook"),
    )


def prompt_of(body: dict[str, Any], name: str, field: str) -> Prompt:
    """A raw prompt, or a conversation as a list of messages; at most 262,144 bytes in all."""
    if not isinstance(body.get(name), list):
        prompt = text(body, name, field, MAX_PROMPT_BYTES)
        check_size([prompt], field)
        return prompt
    messages = tuple(_message(item, f"{field}[{i}]") for i, item in enumerate(body[name][: MAX_MESSAGES + 1]))
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise InvalidMessage("field.range", f"{field}: 1 to {MAX_MESSAGES} messages", field=field)
    check_size([part for message in messages for part in (message.role, message.content)], field)
    return messages


def check_size(parts: list[str], field: str) -> None:
    """Raises InvalidMessage ``field.range`` where a prompt's parts have over 262,144 bytes."""
    if sum(len(part.encode("utf-8")) for part in parts) > MAX_PROMPT_BYTES:
        raise InvalidMessage("field.range", f"{field}: longer than {MAX_PROMPT_BYTES} bytes", field=field)


def _message(value: Any, field: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise InvalidMessage("field.type", f"{field}: must be an object", field=field)
    _only(value, {"role", "content"}, f"{field}.")
    return ChatMessage(
        role=text(value, "role", f"{field}.role", 64),
        content=text(value, "content", f"{field}.content", MAX_PROMPT_BYTES),
    )


def text(body: dict[str, Any], name: str, field: str, limit: int) -> str:
    """A required string member. Raises InvalidMessage ``field.missing``, ``field.type``, ``field.range``."""
    if name not in body:
        raise InvalidMessage("field.missing", f"{field}: is missing", field=field)
    value = body[name]
    if not isinstance(value, str):
        raise InvalidMessage("field.type", f"{field}: must be a string", field=field)
    if "\0" in value and name not in ("prompt", "content"):
        raise InvalidMessage("field.range", f"{field}: must not hold U+0000", field=field)
    if len(value) > limit:
        raise InvalidMessage("field.range", f"{field}: longer than {limit} characters", field=field)
    return value


def _seed_params(value: Any) -> Params:
    if not isinstance(value, dict):
        raise InvalidMessage("field.type", "job.params: must be an object", field="job.params")
    _only(value, _PARAMS, "job.params.")
    return read_params(value, "job.params.")


def read_params(value: dict[str, Any], prefix: str) -> Params:
    """Sampling parameters from their members in ``value``, which may hold others; ``prefix`` leads to them in errors."""
    temperature = _decimal(value, "temperature", prefix, _MILLION, 0, 10 * _MILLION)
    if 0 < temperature < 10_000:
        field = f"{prefix}temperature"
        raise InvalidMessage("field.range", f"{field}: must be 0, or 0.01 to 10", field=field)
    return Params(
        temperature=temperature,
        top_p=_decimal(value, "top_p", prefix, _MILLION, 1, _MILLION),
        top_k=_integer(value, "top_k", prefix, 0, 0, 1_000_000),
        min_p=_decimal(value, "min_p", prefix, 0, 0, _MILLION),
        repeat_penalty=_decimal(value, "repeat_penalty", prefix, _MILLION, 1, 10 * _MILLION),
        max_tokens=_integer(value, "max_tokens", prefix, 256, 1, 1_000_000),
        stop=_stop(value.get("stop"), f"{prefix}stop"),
        seed=_seed(value.get("seed"), f"{prefix}seed"),
    )


def _only(value: dict[str, Any], known: set[str], prefix: str) -> None:
    for name in value:
        if name not in known:
            raise InvalidMessage(
                "field.unknown", f"{prefix}{name[:64]}: no such member", field=f"{prefix}{name[:64]}"
            )


def _one_of(value: Any, allowed: tuple[Any, ...], field: str) -> Any:
    if not isinstance(value, str) or value not in allowed:
        words = ", ".join(repr(word) for word in allowed)
        raise InvalidMessage("field.range", f"{field}: must be one of {words}", field=field)
    return value


def _decimal(params: dict[str, Any], name: str, prefix: str, default: int, low: int, high: int) -> int:
    field = f"{prefix}{name}"
    value = params.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise InvalidMessage("field.type", f"{field}: must be a number", field=field)
    try:
        exact = millionths(value)
    except InvalidMessage as error:
        raise InvalidMessage(error.code, f"{field}: {error.message}", field=field) from None
    if not low <= exact <= high:
        raise InvalidMessage(
            "field.range",
            f"{field}: must be {Decimal(low) / _MILLION} to {Decimal(high) / _MILLION}",
            field=field,
        )
    return exact


def _integer(params: dict[str, Any], name: str, prefix: str, default: int, low: int, high: int) -> int:
    value = optional_integer(params.get(name), f"{prefix}{name}", low, high)
    return default if value is None else value


def optional_integer(value: Any, field: str, low: int, high: int) -> int | None:
    """Raises InvalidMessage ``field.type``, ``field.range``."""
    if value is None:
        return None
    if type(value) is not int:
        raise InvalidMessage("field.type", f"{field}: must be an integer", field=field)
    if not low <= value <= high:
        raise InvalidMessage("field.range", f"{field}: must be {low} to {high}", field=field)
    return value


def _stop(value: Any, field: str) -> tuple[str, ...]:
    items = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(items, list) or len(items) > 16:
        raise InvalidMessage("field.type", f"{field}: must be a string or a list of at most 16", field=field)
    if not all(isinstance(item, str) and 0 < len(item) <= 256 for item in items):
        raise InvalidMessage("field.range", f"{field}: strings of 1 to 256 characters", field=field)
    return tuple(items)


def _seed(value: Any, field: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if type(value) is not int:
        raise InvalidMessage("field.type", f"{field}: must be an unsigned integer", field=field)
    if not 0 <= value < 2**64:
        raise InvalidMessage("field.range", f"{field}: must be below 2^64", field=field)
    return str(value)


def read_nonce(value: Any, field: str) -> bytes:
    """Raises InvalidMessage ``field.range``."""
    try:
        return b64u_decode(value if isinstance(value, str) else "", length=32)
    except InvalidMessage:
        raise InvalidMessage("field.range", f"{field}: must be 32 bytes as base64url", field=field) from None


def flag(value: Any, field: str) -> bool:
    """Raises InvalidMessage ``field.type``."""
    if not isinstance(value, bool):
        raise InvalidMessage("field.type", f"{field}: must be true or false", field=field)
    return value
