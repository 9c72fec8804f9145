"""What OpenAI's routes take and give, for ``/openapi.json`` and ``/docs`` only; tests hold it against parser and answers."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from aos.dispatcher.schemas import Hex64, Shape, Status

_Level = Annotated[
    str,
    Field(
        pattern=r"^(none|signed|redundant:([2-9]|[1-5][0-9]|6[0-4])|simulated|attested)$",
        description="What the answer must be worth, else 422: none, signed, redundant:k (k operators commit the same result), "
        "simulated or attested (an enclave). Default: what the network makes of it.",
    ),
]


class AosAsked(Shape):
    """What OpenAI's API has no member for; clients send it as `extra_body={"aos": {…}}`."""

    verify: _Level | None = None
    nonce: str | None = Field(
        None,
        description="32 bytes as base64url; salts every public hash of this job. Default: the dispatcher's.",
    )
    blind: bool = Field(
        False, description="All seats generate; nothing is streamed before they have committed."
    )
    private: bool = Field(False, description="Reading this job needs the token as well as its id.")
    webhook: str | None = Field(
        None, max_length=2048, description="An https URL that is told of the end of the job."
    )
    top_k: int = Field(0, ge=0, le=1_000_000, description="0: off.")
    min_p: float = Field(0.0, ge=0, le=1)
    repeat_penalty: float = Field(1.0, gt=0, le=10)


class StreamOptions(Shape):
    """With `stream` only."""

    include_usage: bool = Field(False, description="One more chunk at the end, with `usage`.")


class TextPart(Shape):
    """A part of a message."""

    type: Literal["text"]
    text: str


class CallMessage(Shape):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]


class _Call(Shape):
    model: str = Field(max_length=256, description="An id of GET /v1/models.")
    temperature: float = Field(1.0, ge=0, le=10, description="0 (greedy), or 0.01 to 10; at most six places.")
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(256, ge=1, le=1_000_000, description="The dispatcher may allow less.")
    stop: str | list[str] = Field(default=[], description="At most 16 texts of 1 to 256 characters.")
    seed: int | str | None = Field(
        None, description="Below 2^64; as text where it exceeds 2^53. Default: from the draw."
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str = Field(
        "default", max_length=256, description="Whose job it is, for the project's own records."
    )
    safety_identifier: str | None = Field(
        None, max_length=256, description="The same, where there is no `user`."
    )
    aos: AosAsked | None = None


class ChatCall(_Call):
    """A conversation to go on. Members of OpenAI's API that are not listed are refused by name, unless they ask for nothing."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "model": "aos-demo.Q8_0.gguf",
                "messages": [{"role": "user", "content": "What is AI?"}],
                "top_p": 0.5,
                "aos": {"verify": "redundant:3"},
            }
        },
    )

    messages: list[CallMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=1_000_000, description="The newer name of max_tokens."
    )


class TextCall(_Call):
    """A raw prompt to go on with."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"model": "aos-demo.Q8_0.gguf", "prompt": "What is AI?", "max_tokens": 64}
        },
    )

    prompt: str | list[str] = Field(description="One text.")


class AosAnswer(Shape):
    """What stands in receipts and acceptance. The dispatcher's word: `aos verify` checks the answer file."""

    job_id: Hex64
    job_ref: str
    provisional: Literal[False]
    status: Status
    outcome: Literal["agreed", "single"]
    verify: _Level | None = Field(description="What was asked for.")
    claimed: list[str] = Field(description="Levels that the receipts claim.")
    attempt: int
    operators: list[str] = Field(description="Whose results are there, the first seat's first.")
    receipt_id: str
    model_id: str
    engine: str = Field(description="Engine and arithmetic version, as signed.")
    state_root: str = Field(description="base64url; empty for enclaves.")
    sampling_seed: str
    request_hash: str
    nonce: str
    nonce_source: Literal["client", "dispatcher"]
    answer: str = Field(description="Path of the answer file.")


class Usage(Shape):
    """Tokens, as the receipt counts them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(Shape):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Shape):
    """The one answer."""

    index: Literal[0]
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None


class TextChoice(Shape):
    """The one answer."""

    index: Literal[0]
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: None


class _Answer(Shape):
    id: str
    created: int
    model: str
    system_fingerprint: str = Field(description="Engine and arithmetic version, as signed.")
    usage: Usage
    aos: AosAnswer


class ChatAnswer(_Answer):
    """A whole answer. With `stream`: server-sent `chat.completion.chunk` objects."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextAnswer(_Answer):
    """A whole answer. With `stream`: server-sent `text_completion` objects."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class Able(Shape):
    """Operators in the registry that offer the model, by job type."""

    opml: int
    tee: int


class Offer(Shape):
    """What a model is, and what the network offers with it."""

    model_id: str
    digests: dict[str, str] = Field(description="SHA-256 digests of the model's manifest, base64url.")
    architecture: str | None
    arithmetic: int | None = Field(
        description="Version of the exact arithmetic; 0 where it does not cover the file."
    )
    context_length: int | None
    chat: bool | None = Field(description="Whether its file has a chat template; null where it is not known.")
    operators: Able
    verify: list[str] = Field(description="Levels that can be asked for; redundant:k for the largest k.")


class ModelOffer(Shape):
    """A model in OpenAI's shape."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aos: Offer


class ModelOffers(Shape):
    """The models of this network."""

    object: Literal["list"]
    data: list[ModelOffer]


CALLS = (ChatCall, TextCall)
