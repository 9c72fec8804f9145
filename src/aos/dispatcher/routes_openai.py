"""OpenAI's API (docs/spec/09-http.md, "OpenAI's API"): the stock clients work unchanged, and every answer has its receipt."""

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from aos.core.encoding import b64u_encode, canonical_json
from aos.core.statements import Acceptance, read_signed
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.finished import Finished
from aos.dispatcher.jobs import Jobs
from aos.dispatcher.metrics import Metrics
from aos.dispatcher.offers import check_offered, offers_of
from aos.dispatcher.openai_answer import Answerer, StreamText, check_finished, no_retry
from aos.dispatcher.openai_request import Asked, Kind, read_call
from aos.dispatcher.refusals import NotFound, openai_error, refusal
from aos.dispatcher.routes_aos import bearer_token
from aos.dispatcher.routes_seed import body_of, idempotency_key_of
from aos.dispatcher.schemas import body, refusals
from aos.dispatcher.schemas_openai import ChatAnswer, ChatCall, ModelOffer, ModelOffers, TextAnswer, TextCall
from aos.dispatcher.streams import KEEP_ALIVE_S, Streams
from aos.errors import AOSError

router = APIRouter(prefix="/v1", tags=["OpenAI's API"])

_Bearer = Annotated[str | None, Header(description="`Bearer <API token>`.")]
_Key = Annotated[
    str | None,
    Header(
        description="1 to 128 printable characters: the same key and body give the first answer again, of the same job."
    ),
]
_HEADERS = {
    "x-receipt-id": {
        "description": "The job id: opens events and answer file under /v1/aos/jobs/.",
        "schema": {"type": "string"},
    },
    "x-aos-log-promise": {
        "description": "Signed `aos.log_promise`, base64url of its JSON: the acceptance's leaf in the log.",
        "schema": {"type": "string"},
    },
    "x-aos-acceptance": {
        "description": "Signed `aos.acceptance`, base64url of its JSON.",
        "schema": {"type": "string"},
    },
}
_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
_CLIENT_GONE = 499
_FAILED = refusals(400, 401, 403, 404, 408, 409, 413, 422, 429, 503, openai=True)


@router.post(
    "/chat/completions",
    summary="A conversation's next message",
    openapi_extra=body(ChatCall),
    responses={200: {"model": ChatAnswer, "headers": _HEADERS, "content": _STREAM}, **_FAILED},
)
async def chat(request: Request, authorization: _Bearer = None, idempotency_key: _Key = None) -> Response:
    """The messages go to the operators as they are; the model's own chat template makes the prompt there. With `stream`, the
    text is provisional until the last chunk, which carries `aos`."""
    return await _answer("chat", request, authorization, idempotency_key)


@router.post(
    "/completions",
    summary="A raw prompt's continuation",
    openapi_extra=body(TextCall),
    responses={200: {"model": TextAnswer, "headers": _HEADERS, "content": _STREAM}, **_FAILED},
)
async def completions(
    request: Request, authorization: _Bearer = None, idempotency_key: _Key = None
) -> Response:
    """The prompt is fed to the model raw: names of special tokens in it are plain text."""
    return await _answer("text", request, authorization, idempotency_key)


@router.get(
    "/models",
    summary="Models, their digests, and what the network offers with each",
    responses={200: {"model": ModelOffers}, **refusals(401, 503, openai=True)},
)
async def models(request: Request, authorization: _Bearer = None) -> Response:
    """Names are given once and never re-pointed; `aos.model_id` is what a receipt binds."""
    return JSONResponse({"object": "list", "data": await _offers(request, authorization)})


@router.get(
    "/models/{model:path}",
    summary="One model",
    responses={200: {"model": ModelOffer}, **refusals(401, 404, 503, openai=True)},
)
async def model(request: Request, model: str, authorization: _Bearer = None) -> Response:
    """As in the list."""
    for offer in await _offers(request, authorization):
        if offer["id"] == model:
            return JSONResponse(offer)
    raise NotFound("model.unknown", f"model: no model {model[:80]!r} here", field="model")


async def _offers(request: Request, authorization: str | None) -> list[dict[str, Any]]:
    state = request.app.state
    await state.jobs.holder(bearer_token(authorization), field="Authorization")
    return await offers_of(state.jobs, state.registry, state.config)


async def _answer(
    kind: Kind, request: Request, authorization: str | None, idempotency_key: str | None
) -> Response:
    jobs: Jobs = request.app.state.jobs
    streams: Streams = request.app.state.streams
    metrics: Metrics = request.app.state.metrics
    token = bearer_token(authorization)
    key = idempotency_key_of(idempotency_key)
    holder = await jobs.holder(token, field="Authorization")
    asked = read_call(kind, await body_of(request), project=holder.project, token=token or "")
    config: DispatcherConfig = request.app.state.config
    check_offered(asked.assurance, config.tee_references)
    streams.check("")  # before a job is made that nobody could be shown
    begun = time.perf_counter()
    try:
        accepted = await jobs.submit(asked.new, idempotency_key=key)
    except AOSError as error:
        raise _renamed(error, asked) from None
    metrics.submitted(asked.new.job_type, time.perf_counter() - begun)
    job_id = accepted.job_id
    answerer = Answerer(
        asked=asked, job_id=job_id, acceptance=read_signed(Acceptance, accepted.acceptance).statement
    )
    headers = {
        "x-receipt-id": job_id,
        "x-aos-acceptance": b64u_encode(canonical_json(accepted.acceptance)),
        "Cache-Control": "no-store",
    }
    if accepted.promise is not None:
        headers["x-aos-log-promise"] = b64u_encode(canonical_json(accepted.promise))
    if asked.stream:
        return StreamingResponse(
            _stream(jobs, streams, answerer),
            media_type="text/event-stream",
            headers=headers | {"X-Accel-Buffering": "no"},
        )
    try:
        if (finished := await _ended(request, jobs, streams, job_id)) is None:
            return Response(status_code=_CLIENT_GONE)
        core = check_finished(finished, asked)
    except AOSError as error:
        refused = refusal(request.url.path, error)
        refused.headers.update(headers | no_retry(error))
        return refused
    return JSONResponse(answerer.whole(finished, core), headers=headers)


async def _ended(request: Request, jobs: Jobs, streams: Streams, job_id: str) -> Finished | None:
    """How the job ended; None where the client went away. That does not end its job: the receipt is there when it comes back."""
    after = 0
    with streams.counted(job_id):
        while True:
            events = await jobs.events_after(job_id, after, wait_s=KEEP_ALIVE_S)
            if not events and await request.is_disconnected():
                return None
            if events:
                after, kind, _ = events[-1]
                if kind == "done":
                    return await jobs.finished(job_id)


async def _stream(jobs: Jobs, streams: Streams, answerer: Answerer) -> AsyncIterator[str]:
    """Chunks as they come, then what the receipts say, then ``[DONE]``; an error in OpenAI's shape instead of these."""
    text, after = StreamText(), 0
    try:
        with streams.counted(answerer.job_id):
            yield _data(answerer.opening())
            while True:
                events = await jobs.events_after(answerer.job_id, after, wait_s=KEEP_ALIVE_S)
                if not events:
                    yield ": still here\n\n"
                for _, kind, data in events:
                    if kind == "text":
                        event = json.loads(data)
                        if new := text.push(event["attempt"], event["text"]):
                            yield _data(answerer.text(new))
                if events:
                    after, kind, _ = events[-1]
                    if kind == "done":
                        break
            finished = await jobs.finished(answerer.job_id)
            core = check_finished(finished, answerer.asked)
            if rest := text.finish(finished.text):
                yield _data(answerer.text(rest))
            for chunk in answerer.closing(finished, core):
                yield _data(chunk)
            yield "data: [DONE]\n\n"
    except AOSError as error:
        told = openai_error(error)
        told["error"]["aos"] = {"job_id": answerer.job_id}
        yield _data(told)


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _renamed(error: AOSError, asked: Asked) -> AOSError:
    """An error of the submission, with the names that this API gives to its members."""
    prompt = "messages" if asked.kind == "chat" else "prompt"
    names = {
        "verify": "Authorization",
        "job.prompt": prompt,
        "job.tag": "aos.verify",
        "job.model": "model",
        "min_operators": "aos.verify",
        "webhook": "aos.webhook",
        "job.params.max_tokens": "max_tokens",
    }
    field = names.get(error.field or "")
    if field is not None and error.field is not None:
        error.message = error.message.replace(error.field, field, 1)
        error.field = field
    return error
