"""Evidence of enclaves (docs/spec/09-http.md, docs/spec/10-tee.md "For users"): reports, signatures, stored evidence."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from aos.core.codec import encode
from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.tee import read_evidence, signed_text
from aos.core.tee_report import TeeReport
from aos.dispatcher.attestation import Attestation, Reported
from aos.dispatcher.jobs import Jobs
from aos.dispatcher.refusals import NotFound
from aos.dispatcher.routes_aos import bearer_token, job_id_of
from aos.dispatcher.schemas import AttestationAnswer, AttestationReport, TeeSignature, refusals
from aos.errors import InvalidMessage, RuleViolation

router = APIRouter(tags=["attestation"])

_Nonce = Annotated[str, Query(description="32 random bytes of yours, as 64 hex digits.")]
_NO_STORE = {"Cache-Control": "no-store"}


def _attestation(request: Request) -> Attestation:
    attestation: Attestation = request.app.state.attestation
    return attestation


def _nonce(text: str) -> bytes:
    if len(text) != 64 or any(c not in "0123456789abcdef" for c in text):
        raise InvalidMessage("field.range", "nonce: must be 64 lower-case hex digits", field="nonce")
    return bytes.fromhex(text)


def _report(model: str, model_id: bytes, nonce: bytes, reported: Reported) -> dict[str, Any]:
    return {
        "type": TeeReport.TYPE,
        "v": TeeReport.V,
        "model_id": b64u_encode(model_id),
        "model_attestations": [
            {
                "model_name": model,
                "signing_address": one.boot.enclave_key.hex(),
                "signing_algo": "ed25519",
                "request_nonce": nonce.hex(),
                "operator": one.boot.operator,
                **encode(one),
            }
            for one in reported.found
        ],
        "left_out": [encode(one) for one in reported.left_out],
    }


@router.get(
    "/v1/attestation/report",
    summary="Evidence of the enclaves that serve a model, made now",
    responses={200: {"model": AttestationReport}, **refusals(400, 404, 429, 503)},
)
async def report(request: Request, model: Annotated[str, Query(max_length=256)], nonce: _Nonce) -> Response:
    """Boot statements of the connected enclaves, each with a document over your nonce. Judge it yourself.

    `left_out` names operators with an accepted enclave that gave none in 10 s, or a bad one: they may still be drawn.
    """
    jobs: Jobs = request.app.state.jobs
    model_id = next((m["model_id"] for m in await jobs.models() if m["name"] == model), None)
    if model_id is None:
        raise NotFound("model.unknown", "model: the network has no model of this name", field="model")
    challenge, wanted = _nonce(nonce), b64u_decode(model_id, length=32)
    found = await _attestation(request).report(wanted, challenge)
    return JSONResponse(_report(model, wanted, challenge, found), headers=_NO_STORE)


@router.get(
    "/v1/signature/{job_id}",
    summary="The enclave's signature under an answer",
    responses={200: {"model": TeeSignature}, **refusals(401, 404, 409, 503)},
)
async def signature(
    request: Request,
    job_id: str,
    authorization: Annotated[str | None, Header(description="`Bearer <API token>` for private jobs.")] = None,
) -> Response:
    """What the enclave signed about a `tee` job's answer: `text` is the exact text, hashed requests and answers in it."""
    jobs: Jobs = request.app.state.jobs
    await jobs.may_read(job_id_of(job_id), token=bearer_token(authorization))
    held = await _attestation(request).answer_evidence(job_id)
    evidence = read_evidence(held)
    text = signed_text(evidence.answer).decode()
    return JSONResponse(
        {
            "text": text,
            "signature": evidence.answer_signature.hex(),
            "signing_address": evidence.boot.enclave_key.hex(),
            "signing_algo": "ed25519",
        },
        headers=_NO_STORE,
    )


@router.get(
    "/v1/aos/attestations/{attestation_id}",
    summary="Stored evidence of a boot or of an answer",
    responses={200: {"model": AttestationAnswer}, **refusals(400, 401, 404, 409, 429, 503)},
)
async def attestations(
    request: Request,
    attestation_id: str,
    nonce: Annotated[str | None, Query(description="A job's: a document of now for its answer, too.")] = None,
    authorization: Annotated[str | None, Header(description="`Bearer <API token>` for private jobs.")] = None,
) -> Response:
    """A boot statement's hash (base64url) gives its evidence, a job id that of its answer."""
    attestation = _attestation(request)
    if len(attestation_id) == 64:
        jobs: Jobs = request.app.state.jobs
        await jobs.may_read(job_id_of(attestation_id), token=bearer_token(authorization))
        held = await attestation.answer_evidence(attestation_id)
        shown: dict[str, Any] = {"evidence": held}
        if nonce is not None:
            document = await attestation.answer_document(attestation_id, read_evidence(held), _nonce(nonce))
            shown["answer_document"] = b64u_encode(document)
        return JSONResponse(shown, headers=_NO_STORE)
    if nonce is not None:
        raise RuleViolation(
            "attestation.boot_nonce", "a boot's document of now comes with the report", field="nonce"
        )
    try:
        digest = b64u_decode(attestation_id, length=32)
    except InvalidMessage:
        raise NotFound("attestation.unknown", "no such boot or job", field="attestation_id") from None
    return JSONResponse({"evidence": encode(await attestation.boot_evidence(digest))})
