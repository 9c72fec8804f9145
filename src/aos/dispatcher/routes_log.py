"""``/v1/aos/log`` (docs/spec/15-log.md, "HTTP"): checkpoint, entries, proofs, tiles. Public; errors are RFC 9457."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.log.tiles import read_tile_path
from aos.dispatcher.log import MAX_ENTRIES, Log
from aos.dispatcher.refusals import NotFound
from aos.dispatcher.schemas import LogConsistency, LogEntries, LogInclusion, refusals
from aos.errors import InvalidMessage

router = APIRouter(prefix="/v1/aos/log", tags=["log"])

IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}
MUTABLE = {"Cache-Control": "no-cache"}
_BYTES: dict[str, Any] = {
    "description": "c2sp.org/tlog-tiles.",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
_Size = Annotated[int | None, Query(ge=1, lt=2**53, description="Default: the last signed tree.")]


def _log(request: Request) -> Log:
    held: Log | None = request.app.state.log
    if held is None:
        raise NotFound(
            "log.none", "this dispatcher keeps no log", hint="`log_key` in its configuration starts one"
        )
    return held


def _answer(found: dict[str, Any], *, fixed: bool) -> Response:
    """A proof between given sizes never changes; one for the last tree does."""
    shown = {
        name: b64u_encode(value)
        if isinstance(value, bytes)
        else [b64u_encode(item) for item in value]
        if isinstance(value, list)
        else value
        for name, value in found.items()
    }
    return JSONResponse(shown, headers=IMMUTABLE if fixed else MUTABLE)


@router.get(
    "/checkpoint",
    summary="The latest checkpoint",
    responses={
        200: {
            "description": "A C2SP signed note: origin, size, root; the log's signatures and its witnesses'.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **refusals(404, 503),
    },
)
async def checkpoint(request: Request) -> Response:
    """What the log says of its tree now."""
    return PlainTextResponse(await _log(request).checkpoint(), headers=MUTABLE)


@router.get("/entries", summary="Entries", responses={200: {"model": LogEntries}, **refusals(400, 404, 503)})
async def entries(
    request: Request,
    start: Annotated[int, Query(ge=0, lt=2**53, description="The first index.")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_ENTRIES)] = 100,
) -> Response:
    """Kinds and salted hashes, in the tree's order. What was logged is not in them."""
    found = await _log(request).entries(start, limit)
    shown = [entry | {"digest": b64u_encode(entry["digest"])} for entry in found]
    return JSONResponse({"entries": shown}, headers=MUTABLE)


@router.get(
    "/inclusion",
    summary="Where a leaf is",
    responses={200: {"model": LogInclusion}, **refusals(400, 404, 503)},
)
async def inclusion(
    request: Request,
    leaf: Annotated[str, Query(description="The leaf hash, 32 bytes as base64url.")],
    size: _Size = None,
) -> Response:
    """An inclusion path (RFC 9162) in the tree of `size` leaves."""
    try:
        wanted = b64u_decode(leaf, length=32)
    except InvalidMessage:
        raise InvalidMessage("field.range", "leaf: must be 32 bytes as base64url", field="leaf") from None
    return _answer(await _log(request).inclusion(wanted, size), fixed=size is not None)


@router.get(
    "/consistency",
    summary="That a tree begins with another",
    responses={200: {"model": LogConsistency}, **refusals(400, 404, 503)},
)
async def consistency(
    request: Request,
    old: Annotated[int, Query(alias="from", ge=1, lt=2**53, description="The smaller size.")],
    to: _Size = None,
) -> Response:
    """A consistency path (RFC 9162) and both roots."""
    return _answer(await _log(request).consistency(old, to), fixed=to is not None)


@router.get(
    "/tile/{tile:path}",
    summary="A tile, or a bundle of entries",
    responses={200: _BYTES, **refusals(400, 404, 503)},
)
async def tile(request: Request, tile: str) -> Response:
    """`LEVEL/INDEX[.p/WIDTH]` or `entries/INDEX[.p/WIDTH]`. Never changes: anybody may cache it for ever."""
    data = await _log(request).tile(read_tile_path(tile))
    return Response(data, media_type="application/octet-stream", headers=IMMUTABLE)
