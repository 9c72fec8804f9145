"""From the bytes of a submission to a checked value (docs/spec/09-http.md). Pure: nothing is looked up or stored."""

import hashlib
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from aos.core.encoding import b64u_decode, millionths, parse_json_strict
from aos.core.statements import JobType, Params, Tag
from aos.errors import InvalidMessage

MAX_BODY_BYTES = 1 << 20
MAX_PROMPT_BYTES = 256 * 1024
_MILLION = 1_000_000
_MEMBERS = {"from", "tag", "user", "job", "verify", "nonce", "min_operators", "blind", "private"}
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
    prompt: str
    model: str
    params: Params
    nonce: bytes | None
    min_operators: int | None
    blind: bool
    private: bool
    body_hash: bytes

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
    prompt = text(job, "prompt", "job.prompt", MAX_PROMPT_BYTES)
    if len(prompt.encode("utf-8")) > MAX_PROMPT_BYTES:
        raise InvalidMessage(
            "field.range", f"job.prompt: longer than {MAX_PROMPT_BYTES} bytes", field="job.prompt"
        )
    nonce = body.get("nonce")
    return NewJob(
        project=text(body, "from", "from", 128),
        token=text(body, "verify", "verify", 256),
        tag=tag,
        user=text(body, "user", "user", 256),
        job_type=job_type,
        prompt=prompt,
        model=text(job, "model", "job.model", 256),
        params=_params(job.get("params", {})),
        nonce=None if nonce is None else _nonce(nonce),
        min_operators=_optional_integer(body.get("min_operators"), "min_operators", 1, 64),
        blind=_flag(body.get("blind", False), "blind"),
        private=_flag(body.get("private", False), "private"),
        body_hash=hashlib.sha256(b"AOS/submission/v1\0" + data).digest(),
    )


def text(body: dict[str, Any], name: str, field: str, limit: int) -> str:
    """A required string member. Raises InvalidMessage ``field.missing``, ``field.type``, ``field.range``."""
    if name not in body:
        raise InvalidMessage("field.missing", f"{field}: is missing", field=field)
    value = body[name]
    if not isinstance(value, str):
        raise InvalidMessage("field.type", f"{field}: must be a string", field=field)
    if "\0" in value and name != "prompt":
        raise InvalidMessage("field.range", f"{field}: must not hold U+0000", field=field)
    if len(value) > limit:
        raise InvalidMessage("field.range", f"{field}: longer than {limit} characters", field=field)
    return value


def _params(value: Any) -> Params:
    if not isinstance(value, dict):
        raise InvalidMessage("field.type", "job.params: must be an object", field="job.params")
    _only(value, _PARAMS, "job.params.")
    temperature = _decimal(value, "temperature", _MILLION, 0, 10 * _MILLION)
    if 0 < temperature < 10_000:
        raise InvalidMessage(
            "field.range", "job.params.temperature: must be 0, or 0.01 to 10", field="job.params.temperature"
        )
    return Params(
        temperature=temperature,
        top_p=_decimal(value, "top_p", _MILLION, 1, _MILLION),
        top_k=_integer(value, "top_k", 0, 0, 1_000_000),
        min_p=_decimal(value, "min_p", 0, 0, _MILLION),
        repeat_penalty=_decimal(value, "repeat_penalty", _MILLION, 1, 10 * _MILLION),
        max_tokens=_integer(value, "max_tokens", 256, 1, 1_000_000),
        stop=_stop(value.get("stop")),
        seed=_seed(value.get("seed")),
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


def _decimal(params: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    field = f"job.params.{name}"
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


def _integer(params: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = _optional_integer(params.get(name), f"job.params.{name}", low, high)
    return default if value is None else value


def _optional_integer(value: Any, field: str, low: int, high: int) -> int | None:
    if value is None:
        return None
    if type(value) is not int:
        raise InvalidMessage("field.type", f"{field}: must be an integer", field=field)
    if not low <= value <= high:
        raise InvalidMessage("field.range", f"{field}: must be {low} to {high}", field=field)
    return value


def _stop(value: Any) -> tuple[str, ...]:
    items = [] if value is None else [value] if isinstance(value, str) else value
    field = "job.params.stop"
    if not isinstance(items, list) or len(items) > 16:
        raise InvalidMessage("field.type", f"{field}: must be a string or a list of at most 16", field=field)
    if not all(isinstance(item, str) and 0 < len(item) <= 256 for item in items):
        raise InvalidMessage("field.range", f"{field}: strings of 1 to 256 characters", field=field)
    return tuple(items)


def _seed(value: Any) -> str | None:
    if value is None:
        return None
    field = "job.params.seed"
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if type(value) is not int:
        raise InvalidMessage("field.type", f"{field}: must be an unsigned integer", field=field)
    if not 0 <= value < 2**64:
        raise InvalidMessage("field.range", f"{field}: must be below 2^64", field=field)
    return str(value)


def _nonce(value: Any) -> bytes:
    try:
        return b64u_decode(value if isinstance(value, str) else "", length=32)
    except InvalidMessage:
        raise InvalidMessage("field.range", "nonce: must be 32 bytes as base64url", field="nonce") from None


def _flag(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidMessage("field.type", f"{field}: must be true or false", field=field)
    return value
