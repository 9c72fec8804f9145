"""``/v1/aos/disputes`` (docs/spec/09-http.md): claims, games, moves, transcripts. Errors are RFC 9457."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from aos.core.dispute.moves import MAX_GAME_BYTES
from aos.core.encoding import b64u_decode, parse_json_strict
from aos.dispatcher.disputes import Disputes
from aos.dispatcher.disputes_claims import Reader
from aos.dispatcher.refusals import NotFound, TooLarge, TooSlow
from aos.dispatcher.routes_seed import body_of
from aos.dispatcher.schemas import SignedStatement, body, refusals
from aos.errors import InvalidMessage

router = APIRouter(prefix="/v1/aos/disputes", tags=["disputes"])

MAX_SERVED_BYTES = 32 << 20
SERVE_S = 60.0
NO_STORE = {"Cache-Control": "no-store"}
_OBJECT: dict[str, Any] = {
    "description": "See docs/spec/13-dispute.md.",
    "content": {"application/json": {"schema": {"type": "object"}}},
}

Bearer = Annotated[str | None, Header(description="`Bearer <API token>` of the job's project.")]
SignedReader = Annotated[
    str | None,
    Header(
        alias="x-aos-reader",
        description="base64url of a Signed `aos.dispute_read` by one of the job's operators.",
    ),
]


def _court(request: Request) -> Disputes:
    court: Disputes = request.app.state.disputes
    return court


def cursor_of(cursor: str | None) -> int | None:
    """A page's cursor. Raises InvalidMessage ``field.range``."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise InvalidMessage("field.range", "cursor: must be one that a page gave", field="cursor")
    return int(cursor)


def name_of(text: str, what: Literal["job", "claim", "game", "audit"]) -> bytes:
    """The 32 bytes that a path names. Raises NotFound."""
    try:
        return b64u_decode(text, length=32)
    except InvalidMessage:
        code = "audit.unknown" if what == "audit" else f"dispute.unknown_{what}"
        raise NotFound(code, f"no such {what}", field=what) from None


def reader_of(request: Request, signed: str | None, authorization: str | None, subject: bytes) -> Reader:
    """Who asks about ``subject``. Raises as ``Claims.reader``."""
    scheme, _, token = (authorization or "").partition(" ")
    bearer = token.strip()[:256] if scheme.lower() == "bearer" else None
    return _court(request).reader(signed, bearer, subject=subject)


@router.get("", summary="Games, newest first", responses={200: _OBJECT, **refusals(400, 503)})
async def games(
    request: Request,
    cursor: Annotated[str | None, Query(description="Where the page before ended.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    job_ref: Annotated[str | None, Query(description="Only games about this job.")] = None,
) -> Response:
    """Public facts of games: who, where, which verdict; no token and no text."""
    page, following = await _court(request).games(
        before=cursor_of(cursor),
        limit=limit,
        job_ref=None if job_ref is None else name_of(job_ref, "job"),
    )
    return JSONResponse({"games": page, "cursor": following})


@router.post(
    "",
    summary="Challenge a claim",
    openapi_extra=body(SignedStatement),
    responses={200: _OBJECT, **refusals(400, 403, 404, 408, 409, 413, 503)},
)
async def open_game(request: Request, authorization: Bearer = None) -> Response:
    """A signed `aos.dispute_open`. Its signer is one of the job's operators, or the project's token comes with it."""
    value = parse_json_strict(await body_of(request), max_bytes=MAX_GAME_BYTES)
    reader = reader_of(request, None, authorization, b"")
    return JSONResponse(await _court(request).open(value, reader))


@router.get(
    "/waiting", summary="What waits for its signer", responses={200: _OBJECT, **refusals(400, 403, 503)}
)
async def waiting(request: Request, signed: SignedReader = None) -> Response:
    """Leaves to serve, claims to challenge, games to move in, audits to answer."""
    reader = reader_of(request, signed, None, b"")
    found = await _court(request).waiting(reader)
    settings = request.app.state.config.disputes
    found["keep_ms"] = settings.claim_window_ms + settings.window_ms + settings.audit_ms
    found["audit"] = await request.app.state.audits.waiting(reader)
    return JSONResponse(found, headers=NO_STORE)


@router.get("/convictions", summary="Who is convicted", responses={200: _OBJECT, **refusals(503)})
async def convictions(request: Request) -> Response:
    """Operators that lost a game as claimants, or contradicted themselves, with the digest of the transcript."""
    return JSONResponse({"convictions": await _court(request).convictions()})


@router.get("/claims/{claim}", summary="A claim", responses={200: _OBJECT, **refusals(400, 403, 404, 503)})
async def claim_of(
    request: Request, claim: str, signed: SignedReader = None, authorization: Bearer = None
) -> Response:
    """Receipt, request, tokens and text, for who may know them; its leaves are wanted from now on."""
    name = name_of(claim, "claim")
    reader = reader_of(request, signed, authorization, name)
    return JSONResponse(await _court(request).describe_claim(name, reader), headers=NO_STORE)


@router.get(
    "/claims/{claim}/chain",
    summary="A claim's claim at the court on a chain",
    responses={200: _OBJECT, **refusals(404, 503)},
)
async def chain_claim(request: Request, claim: str) -> Response:
    """What the operator signed for the court (docs/spec/16-chain-disputes.md, "Claims"), for everybody."""
    data = await _court(request).chain_claim(name_of(claim, "claim"))
    return Response(data, media_type="application/json")


@router.get(
    "/claims/{claim}/leaves",
    summary="A claim's header and leaf hashes",
    responses={200: _OBJECT, **refusals(400, 403, 404, 409, 503)},
)
async def leaves(
    request: Request, claim: str, signed: SignedReader = None, authorization: Bearer = None
) -> Response:
    """What the claimant served, checked against its state root. 409 `dispute.not_served` until it has."""
    name = name_of(claim, "claim")
    reader = reader_of(request, signed, authorization, name)
    return JSONResponse(await _court(request).leaves(name, reader), headers=NO_STORE)


@router.put(
    "/claims/{claim}/leaves",
    summary="Serve a claim's leaves",
    responses={200: _OBJECT, **refusals(400, 404, 408, 409, 413, 503)},
)
async def serve(request: Request, claim: str) -> Response:
    """Anybody's data that lead to what the claimant signed are the claimant's."""
    name = name_of(claim, "claim")
    data = bytearray()
    try:
        async with asyncio.timeout(SERVE_S):
            async for part in request.stream():
                data += part
                if len(data) > MAX_SERVED_BYTES:
                    raise TooLarge("encoding.too_large", "the body is larger than 32 MiB")
    except TimeoutError:
        raise TooSlow("http.request_timeout", f"the body did not come within {SERVE_S:g} s") from None
    value = await asyncio.to_thread(parse_json_strict, bytes(data), max_bytes=MAX_SERVED_BYTES)
    return JSONResponse(await _court(request).serve(name, value))


@router.get("/{game}", summary="A game", responses={200: _OBJECT, **refusals(404, 503)})
async def game_of(request: Request, game: str) -> Response:
    """Public facts of one game."""
    return JSONResponse(await _court(request).game(name_of(game, "game")))


@router.post(
    "/{game}/moves",
    summary="Move in a game",
    openapi_extra=body(SignedStatement),
    responses={200: _OBJECT, **refusals(400, 404, 408, 409, 413, 503)},
)
async def move(request: Request, game: str) -> Response:
    """A signed move; its signature is its credential. Sent again, it changes nothing."""
    value = parse_json_strict(await body_of(request), max_bytes=MAX_GAME_BYTES)
    return JSONResponse(await _court(request).move(name_of(game, "game"), value))


@router.get(
    "/{game}/transcript",
    summary="A game's transcript",
    responses={200: _OBJECT, **refusals(400, 403, 404, 503)},
)
async def transcript(
    request: Request, game: str, signed: SignedReader = None, authorization: Bearer = None
) -> Response:
    """The file that `aos referee` judges, for its parties and who may know the prompt."""
    name = name_of(game, "game")
    reader = reader_of(request, signed, authorization, name)
    data = await _court(request).transcript(name, reader)
    return Response(data, media_type="application/json", headers=NO_STORE)
