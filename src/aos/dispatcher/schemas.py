"""What the HTTP interfaces take and give, for ``/openapi.json`` and ``/docs`` only.

Bodies are read by ``aos.dispatcher.submission``, byte for byte; tests hold these declarations against that parser and against
what the routes really answer.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

GUIDE_JOB_ID = "5814075a7a4b7bc4db5450e7bc3ee2893562e3b2d9deb66a14da4e99d7276e0a"
GUIDE_USER = "b77f1799de0148c07bc6ef630fb75ac267f31d147cd28797ad145afe72302632"
GUIDE_TOKEN = "4cc2e1f9-0ac2-4af6-98f8-b814917b49b0"  # noqa: S105  the guide's own example

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", min_length=64, max_length=64)]
Clock = Annotated[
    dict[str, str],
    Field(description="Vector clock: node number to count, both decimal text; 1 is the dispatcher."),
]
CreatedAt = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", description="UTC.")]
TagName = Literal["", "suspicion", "malicious"]
PositionName = Literal["", "before", "after"]
Status = Literal[
    "created", "dispatched", "running", "committed", "verified", "disputed", "failed", "cancelled", "expired"
]
Project = Annotated[str, Field(max_length=128, description="The project id.")]
User = Annotated[str, Field(max_length=256, description="The user or device id.")]
Token = Annotated[str, Field(max_length=256, description="The project's API token.")]
PrivateToken = Annotated[
    str, Field(max_length=256, description="The project's API token; needed where the job is `private`.")
]


class Shape(BaseModel):
    """An object with these members and no other."""

    model_config = ConfigDict(extra="forbid")


class Params(Shape):
    """Sampling parameters. Decimals have at most six places."""

    temperature: float = Field(1.0, ge=0, le=10, description="0 (greedy), or 0.01 to 10.")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1_000_000, description="0: off.")
    min_p: float = Field(0.0, ge=0, le=1)
    repeat_penalty: float = Field(1.0, gt=0, le=10)
    max_tokens: int = Field(256, ge=1, le=1_000_000, description="The dispatcher may allow less.")
    stop: str | list[str] = Field(default=[], description="At most 16 texts of 1 to 256 characters.")
    seed: int | str | None = Field(
        None, description="Below 2^64; as text where it exceeds 2^53. Default: from the draw."
    )


class Message(Shape):
    """One turn of a conversation."""

    role: str = Field(max_length=64, description="system, user or assistant.")
    content: str


class Job(Shape):
    """What is to be run."""

    tag: Literal["opml", "tee"] = Field(description="The job type.")
    prompt: str | list[Message] = Field(
        description="A text, fed raw: special tokens are plain text. Or messages, put through the model's chat template by "
        "whoever runs it. At most 262,144 bytes."
    )
    model: str = Field(max_length=256, description="A name of GET /v1/aos/models.")
    params: Params = Params.model_validate({})


class Submission(Shape):
    """A job, by a project, for a user."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "from": "projectid",
                "tag": "",
                "user": GUIDE_USER,
                "job": {
                    "tag": "opml",
                    "prompt": "What is AI?",
                    "model": "llama-2-7b-chat.Q4_0.gguf",
                    "params": {"temperature": 1.0, "top_p": 0.5, "max_tokens": 1024},
                },
                "verify": GUIDE_TOKEN,
            }
        },
    )

    from_: Project = Field(alias="from")
    tag: TagName = Field(
        "", description="Flags the user: earlier jobs are run again, and the next one is watched."
    )
    user: User
    job: Job
    verify: Token
    nonce: str | None = Field(None, description="32 bytes as base64url; salts every public hash of this job.")
    min_operators: int | None = Field(None, ge=1, le=64)
    blind: bool = Field(False, description="All seats generate; nothing is shown before they have committed.")
    private: bool = Field(False, description="Reading this job needs the token as well as its id.")
    webhook: str | None = Field(
        None,
        max_length=2048,
        description="An https URL that is told when the job is over (Standard Webhooks, signed).",
    )


class JobQuery(Shape):
    """Names a job."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"job_id": GUIDE_JOB_ID}})

    job_id: Hex64
    verify: PrivateToken = ""


class CancelQuery(Shape):
    """Names a job, with the token of its project."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"job_id": GUIDE_JOB_ID, "verify": GUIDE_TOKEN}}
    )

    job_id: Hex64
    verify: Token


class UserQuery(Shape):
    """Names a user of a project."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"from": "projectid", "user": GUIDE_USER, "verify": GUIDE_TOKEN, "limit": 20}
        },
    )

    from_: Project = Field(alias="from")
    user: User
    verify: Token
    cursor: str | None = Field(None, pattern=r"^\d{1,18}$", description="From the page before.")
    limit: int = Field(20, ge=1, le=100)


class Submitted(Shape):
    """The job id: a bearer capability, keep it to yourself."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "code": 200,
                "result": "636a5cf015a1a4c7480317f114d5b06d69476b9d0d5a67dbe53e9b59de72769b",
            }
        },
    )

    code: Literal[200]
    result: Hex64


class Vrf(Shape):
    """How the operator came to its seat (RFC 9381, ECVRF-EDWARDS25519-SHA512-TAI); hex."""

    selected: bool = Field(description="False: it was seated by the public filling of empty seats.")
    vrf_prompt_hash: str = Field(description="SHA-256 of alpha_string.")
    vrf_random_value: str = Field(description="beta_string.")
    vrf_verify_pubkey: str
    vrf_proof: str = Field(description="pi_string.")


class ResultRow(Shape):
    """One operator's result of one run of a job."""

    id: str = Field(description="<operator>_<job_id>_<tag>")
    job_id: Hex64
    operator: str
    result: str = Field(description="The text.")
    verify_id: str
    vrf: Vrf
    clock: Clock
    signature: str = Field(description="The operator's, over its receipt.")
    job_type: Literal["opml", "tee"]
    tag: TagName
    created_at: CreatedAt
    position: PositionName = Field(
        description="`before`: a re-run that a flag caused; `after`: watched because of one."
    )
    attempt: int
    receipt_id: str
    state_root: str = Field(description="base64url; empty for tee.")
    attestation: str = Field(description="Kind of enclave; empty for opml.")
    outcome: Literal["agreed", "disputed", "single", "resolved"]


class Results(Shape):
    """Result rows; none as long as there is no result."""

    code: Literal[200]
    result: list[ResultRow]


class UserResults(Results):
    """One page of result rows, newest first."""

    cursor: str | None = Field(None, description="Where the next page begins; missing on the last one.")


class ShownParams(Shape):
    """Those of the submission; what has its default and is not of the guide is left out."""

    temperature: float
    top_p: float
    max_tokens: int
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    stop: list[str] | None = None
    seed: int | str | None = None


class ShownJob(Shape):
    """The submitted job."""

    tag: Literal["opml", "tee"]
    prompt: str | list[Message]
    model: str
    params: ShownParams


class Detail(Shape):
    """A job's request and status."""

    id: Hex64
    job: ShownJob
    user: str
    job_type: Literal["opml", "tee"]
    status: Status
    tag: TagName
    clock: Clock
    created_at: CreatedAt
    position: PositionName
    attempt: int
    error: str | None = Field(None, description="Where it failed: message and code.")


class DetailAnswer(Shape):
    """The detail of a job."""

    code: Literal[200]
    result: Detail


class Cancelled(Shape):
    """The job is cancelled."""

    code: Literal[200]
    result: Literal["cancelled"]


class SeedError(Shape):
    """An error under /api/. The HTTP status equals `code`."""

    code: int
    message: str
    error: str = Field(description="The stable error code.")
    field: str | None = Field(None, description="The member at fault.")
    hint: str | None = Field(None, description="The next step.")


class Problem(Shape):
    """An error anywhere else (RFC 9457)."""

    type: str = Field(description="urn:aos:error:<stable error code>")
    title: str = Field(description="The stable error code.")
    status: int
    detail: str
    field: str | None = Field(None, description="The member or parameter at fault.")
    hint: str | None = Field(None, description="The next step.")


class SignedStatement(Shape):
    """A signed statement: EIP-191 over its canonical JSON."""

    statement: dict[str, Any]
    signature: str


class AuditOpened(Shape):
    """What an operator will send: a signed `aos.audit_opening`, and the hash of each chunk."""

    opening: SignedStatement
    hashes: list[str] = Field(max_length=1024, description="32 bytes as base64url, one a chunk of 1 MiB.")


class AuditProgress(Shape):
    """Which chunks are missing, and whether the whole was checked against the claim's state root."""

    audit: str
    missing: list[int]
    opened: bool


class Audit(Shape):
    """An audit's public facts; `request`, `order`, `opening` and `report` are the signed statements."""

    audit: str
    job_ref: str
    attempt: int
    claim: str
    operator: str
    auditor: str
    layers: int
    beacon: str
    state: Literal["waiting", "defaulted", "opened", "right", "different"]
    refused: str = Field(description="Why the last bundle was no answer: an error code.")
    asked_at: int
    due_at: int
    closes_at: int
    opened_at: int | None
    request: SignedStatement
    order: SignedStatement
    opening: SignedStatement | None
    report: SignedStatement | None


class AuditList(Shape):
    """Audits, newest first."""

    audits: list[Audit]
    cursor: str | None


class RegistryAnswer(Shape):
    """A signed snapshot of the registry, with its entries."""

    snapshot: SignedStatement
    entries: list[dict[str, Any]]


class LogEntry(Shape):
    """A leaf: what kind of fact, and its salted hash."""

    index: int
    kind: str
    digest: Annotated[str, Field(description="32 bytes as base64url.")]


class LogEntries(Shape):
    """Entries of the log in the tree's order."""

    entries: list[LogEntry]


class LogInclusion(Shape):
    """An inclusion path; hashes are 32 bytes as base64url."""

    index: int
    size: int
    root: str
    path: list[str]


class LogConsistency(Shape):
    """A consistency path; hashes are 32 bytes as base64url."""

    from_: int = Field(alias="from")
    to: int
    from_root: str
    to_root: str
    path: list[str]


class Registered(Shape):
    """Who was entered, and whether it waits to be admitted."""

    node_id: str
    admitted: bool


class Model(Shape):
    """A name, and the hash of what it stands for."""

    name: str
    model_id: str


class Models(Shape):
    """The models of this network."""

    models: list[Model]


class DrawAnswer(Shape):
    """Every attempt's draw: call, record, entries, claims, and the open tag once results are committed."""

    job_ref: str
    attempts: list[dict[str, Any]]


class AttestationReport(Shape):
    """Enclaves that serve a model, each with a document over the nonce that was asked with."""

    type: Literal["aos.tee.report"]
    v: Literal[2]
    model_id: str
    model_attestations: list[dict[str, Any]] = Field(
        description="`model_name`, `signing_address`, `signing_algo`, `request_nonce`, `operator`, `boot`, "
        "`boot_signature`, `document`."
    )
    left_out: list[dict[str, str]] = Field(
        description="`operator` and `code` of each that has an accepted enclave and gave no good document in time."
    )


class TeeSignature(Shape):
    """An enclave's signature under an answer statement."""

    text: str = Field(description="What was signed: a tag and the answer statement's canonical JSON.")
    signature: str = Field(description="Ed25519, 64 bytes in hex.")
    signing_address: str = Field(description="The enclave's key, 32 bytes in hex.")
    signing_algo: Literal["ed25519"]


class AttestationAnswer(Shape):
    """Stored evidence; for an answer, where a nonce was given, a document of now."""

    evidence: dict[str, Any]
    answer_document: str | None = Field(default=None, description="COSE_Sign1 as base64url.")


class Health(Shape):
    """It runs."""

    status: Literal["ok"]


class Ready(Shape):
    """It can take jobs."""

    status: Literal["ready"]
    operators: int = Field(description="Operators connected.")


class OpenAIErrorBody(Shape):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="The member at fault.")
    code: str = Field(description="The stable error code.")
    hint: str | None = Field(None, description="The next step.")


class OpenAIError(Shape):
    """An error of OpenAI's API."""

    error: OpenAIErrorBody


_BODIES: list[type[BaseModel]] = [
    Submission,
    JobQuery,
    CancelQuery,
    UserQuery,
    SignedStatement,
    AuditOpened,
    SeedError,
    Problem,
    OpenAIError,
]
_REF = "#/components/schemas/{model}"


def body_schemas(*more: type[BaseModel]) -> dict[str, Any]:
    """JSON schemas of the request bodies and errors, and of ``more``, by name, for OpenAPI's ``components``."""
    bodies = [(model, "validation") for model in (*_BODIES, *more)]
    _, document = models_json_schema(bodies, ref_template=_REF)  # type: ignore[arg-type]
    return dict(document["$defs"])


def body(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI members of a route that reads this body itself."""
    media = {"schema": {"$ref": _REF.format(model=model.__name__)}}
    return {"requestBody": {"required": True, "content": {"application/json": media}}}


_MEANINGS = {
    400: "A member or parameter is wrong; `field` names it.",
    401: "The token is missing or wrong.",
    403: "What was signed is not believed, or the token is not for this.",
    404: "There is no such thing.",
    408: "The body did not come in time.",
    409: "Not allowed in this state.",
    413: "The body is over 1 MiB.",
    422: "There is an answer, and it is not worth what was asked for.",
    429: "A limit is reached; see Retry-After.",
    503: "The database is away; see Retry-After.",
}


def refusals(*statuses: int, seed: bool = False, openai: bool = False) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of these error statuses, in the dialect of the route."""
    model, media = ("SeedError", "application/json") if seed else ("Problem", "application/problem+json")
    if openai:
        model, media = "OpenAIError", "application/json"
    content = {media: {"schema": {"$ref": _REF.format(model=model)}}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}
