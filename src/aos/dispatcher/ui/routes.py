"""Routes of the explorer. Everything is public but prompt and answer, which need the project's token in ``Authorization``."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute

from aos.adapters.postgres import Connection, Pool
from aos.core.encoding import b64u_decode
from aos.core.job import STATES, STATUS
from aos.core.tee import read_evidence
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.jobs import BadToken, Jobs, check_scope
from aos.dispatcher.log import Log
from aos.dispatcher.offers import offers_of
from aos.dispatcher.refusals import NotFound
from aos.dispatcher.registry import Registry
from aos.dispatcher.streams import Streams
from aos.dispatcher.ui import disputes, figures, logbook, plots, store, story
from aos.dispatcher.ui.judging import Judge
from aos.dispatcher.ui.pages import NAV, SECURITY, page, static, verifier
from aos.errors import AOSError, InvalidMessage, RuleViolation

MOST_FOLLOWERS = 256
KEPT_S = 2.0
"""How long a figure of the whole network is shown again before it is read anew."""
LOOK_S = 1.0
KEEP_ALIVE_LOOKS = 15


class Explorer:
    """What the pages of one dispatcher share."""

    def __init__(
        self, pool: Pool, config: DispatcherConfig, registry: Registry, jobs: Jobs, log: Log | None
    ) -> None:
        self.pool, self.config, self.registry, self.jobs, self.log = pool, config, registry, jobs, log
        self.judge = Judge(pool, config, registry, log)
        self.streams = Streams(most=MOST_FOLLOWERS, most_a_job=MOST_FOLLOWERS)
        self._kept: dict[str, tuple[float, Any]] = {}
        self._reading: dict[str, asyncio.Lock] = {}

    async def kept(self, name: str, read: Callable[[], Awaitable[Any]], *, seconds: float = KEPT_S) -> Any:
        """A value of the whole network, read at most every ``seconds`` however many ask. ``name`` is from a closed set."""
        async with self._reading.setdefault(name, asyncio.Lock()):
            at, value = self._kept.get(name, (0.0, None))
            if at == 0.0 or time.monotonic() - at > seconds:
                value = await read()
                self._kept[name] = (time.monotonic(), value)
            return value

    async def home(self) -> dict[str, Any]:
        """Counters and plots of the first page."""
        async with store.reading(self.pool) as db:
            hours = figures.by_hour(await store.jobs_by_hour(db))
            recent = await store.recent(db)
        ordered = figures.latencies(recent)
        return {
            "hours": hours,
            "jobs": sum(opml + tee for opml, tee in hours),
            "recent": len(recent),
            "levels": figures.assurance_counts(recent),
            "latency": figures.histogram(ordered),
            "median": figures.percentile(ordered, 50),
            "slow": figures.percentile(ordered, 95),
            "answered": len(ordered),
        }

    async def tallies(self) -> tuple[dict[str, figures.Tally], int]:
        """Every operator's selections over the newest open draws, and how many draws these are."""
        async with store.reading(self.pool) as db:
            rows = await store.draws(db)
        epochs = {row["snapshot_epoch"] for row in rows}
        entries = {epoch: (await self.registry.by_epoch(epoch)).entries for epoch in sorted(epochs)}
        max_range = self.registry.network.max_range
        found = await asyncio.to_thread(figures.tallies, rows, entries.__getitem__, max_range)
        return found, len(rows)

    async def mark(self, name: str, of: Callable[[Connection], Awaitable[str]]) -> str:
        """What ``of`` reads, which changes when anything happens that ``name`` stands for."""

        async def read() -> str:
            async with store.reading(self.pool) as db:
                return await of(db)

        found: str = await self.kept(f"mark of {name}", read, seconds=LOOK_S)
        return found


class _Page(APIRoute):
    """A route whose refusals are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except AOSError as error:
                request.app.state.metrics.refused(error.code)
                return page(
                    "refused.html",
                    here="",
                    network=_explorer(request).config.network,
                    status_code=error.http_status,
                    error=error,
                )

        return handle


router = APIRouter(prefix="/ui", include_in_schema=False, route_class=_Page)
data_router = APIRouter(prefix="/ui", include_in_schema=False)
"""What the pages' script asks for; refused as RFC 9457."""


def _explorer(request: Request) -> Explorer:
    explorer: Explorer = request.app.state.explorer
    return explorer


def _ref(text: str) -> bytes:
    try:
        return b64u_decode(text, length=32)
    except InvalidMessage:
        raise NotFound("job.unknown", "no such job", field="job_ref") from None


def _game(text: str) -> bytes:
    try:
        return b64u_decode(text, length=32)
    except InvalidMessage:
        raise NotFound("dispute.unknown", "no such game", field="game") from None


async def _job_id(explorer: Explorer, job_ref: str) -> tuple[str, str]:
    async with store.reading(explorer.pool) as db:
        found = await store.owner_of(db, _ref(job_ref))
    if found is None:
        raise NotFound("job.unknown", "no such job", field="job_ref")
    return found


@router.get("")
async def home(request: Request) -> Response:
    """Counters and plots."""
    explorer = _explorer(request)
    facts = await explorer.kept("home", explorer.home)
    state = request.app.state
    return page(
        "home.html",
        here="/ui",
        network=explorer.config.network,
        facts=facts,
        epoch=explorer.registry.epoch(),
        connected=len(state.links.connected()),
        under_way=sum((await explorer.jobs.open_states()).values()),
        plots=plots,
        dispatcher=explorer.config.keys.address,
    )


def _filters(request: Request) -> tuple[str, str, int | None]:
    query = request.query_params
    wanted, kind, before = query.get("status", ""), query.get("type", ""), query.get("before", "")
    if wanted and wanted not in STATUS.values():
        raise InvalidMessage("field.range", "status: no such status", field="status")
    if kind not in ("", "opml", "tee"):
        raise InvalidMessage("field.range", "type: must be opml or tee", field="type")
    return wanted, kind, _cursor(before)


def _cursor(text: str) -> int | None:
    if text and not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidMessage("field.range", "before: must be a cursor that a page gave", field="before")
    return int(text) if text else None


@router.get("/jobs")
async def jobs(request: Request) -> Response:
    """Newest first, filtered, in pages."""
    explorer = _explorer(request)
    wanted, kind, before = _filters(request)
    states = tuple(state for state in STATES if STATUS[state] == wanted)
    async with store.reading(explorer.pool) as db:
        rows, following = await store.jobs_page(db, states=states, job_type=kind or None, before=before)
    return page(
        "jobs.html",
        here="/ui/jobs",
        network=explorer.config.network,
        rows=rows,
        wanted=wanted,
        kind=kind,
        first=before is None,
        following=following,
        statuses=list(dict.fromkeys(STATUS.values())),
    )


@router.get("/jobs/{job_ref}")
async def job(request: Request, job_ref: str) -> Response:
    """Status, time line, checks, receipts."""
    explorer = _explorer(request)
    async with store.reading(explorer.pool) as db:
        found = await store.job(db, _ref(job_ref))
        if found is None:
            raise NotFound(
                "job.unknown", "no such job", field="job_ref", hint="a job page is named by its job_ref"
            )
        runs = await store.runs(db, found["job_id"])
        attempts = await store.attempts(db, found["job_id"])
        seats = await store.seats(db, found["job_id"])
        games = await disputes.of_job(db, found["job_ref"])
    first = next(run for run in runs if run["position"] != "before")
    results = [seat for seat in seats if seat["outcome"] and seat["attempt"] == first["attempt"]]
    verdict, judged = None, bool(results)
    if judged:
        try:
            verdict = await explorer.judge.judged(found["job_id"], first["attempt"])
        except RuleViolation:  # between the two reads a result cannot go away; its file may not be there yet
            judged = False
    receipts = [
        {
            "receipt_id": seat["receipt_id"],
            "core": json.loads(seat["core"])["statement"],
            "raw": {
                "core": json.loads(seat["core"]),
                "countersign": json.loads(seat["countersign"]) if seat["countersign"] else None,
            },
        }
        for seat in results
    ]
    return page(
        "job.html",
        here="/ui/jobs",
        network=explorer.config.network,
        job={key: found[key] for key in found.keys() if key != "job_id"},  # noqa: SIM118  a Record iterates over values
        run=first,
        reruns=[run for run in runs if run["position"] == "before"],
        steps=story.time_line(found, runs, attempts, seats),
        report=verdict and verdict.report,
        leaf=verdict and verdict.leaf,
        judged=judged,
        seats=[seat for seat in seats if seat["attempt"] == first["attempt"]],
        receipts=receipts,
        games=games,
        where=disputes.where,
    )


@router.get("/disputes")
async def games(request: Request) -> Response:
    """Games, newest first, in pages; who is convicted."""
    explorer = _explorer(request)
    before = _cursor(request.query_params.get("before", ""))
    async with store.reading(explorer.pool) as db:
        rows, following = await disputes.page_of(db, before=before)
        convicted = await disputes.convictions(db)
    return page(
        "disputes.html",
        here="/ui/disputes",
        network=explorer.config.network,
        rows=rows,
        first=before is None,
        following=following,
        convicted=convicted,
        where=disputes.where,
    )


@router.get("/disputes/{game}")
async def game(request: Request, game: str) -> Response:
    """One game: a ladder of moves, the verdict, the bond."""
    explorer = _explorer(request)
    async with store.reading(explorer.pool) as db:
        found = await disputes.game_of(db, _game(game))
    if found is None:
        raise NotFound("dispute.unknown", "no such game", field="game")
    return page("dispute.html", here="/ui/disputes", network=explorer.config.network, game=found, plots=plots)


@router.get("/operators")
async def operators(request: Request) -> Response:
    """Everybody admitted, selected against expected."""
    explorer = _explorer(request)
    tallies, draws = await explorer.kept("tallies", explorer.tallies)
    async with store.reading(explorer.pool) as db:
        rows = await store.operator_rows(db)
        convicted = {row["node_id"] for row in await disputes.convictions(db)}
    shown = [(row, tallies.get(row["node_id"], figures.Tally())) for row in rows]
    max_range = explorer.registry.network.max_range
    return page(
        "operators.html",
        here="/ui/operators",
        network=explorer.config.network,
        rows=shown,
        convicted=convicted,
        scale=max(
            (max(t.selected_per_mille(), t.expected_per_mille(max_range)) for _, t in shown), default=0
        ),
        draws=draws,
        connected=request.app.state.links.connected(),
        max_range=max_range,
        plots=plots,
    )


@router.get("/operators/{node_id}")
async def operator(request: Request, node_id: str) -> Response:
    """One operator."""
    explorer = _explorer(request)
    tallies, draws = await explorer.kept("tallies", explorer.tallies)
    async with store.reading(explorer.pool) as db:
        row = next((row for row in await store.operator_rows(db) if row["node_id"] == node_id), None)
        if row is None:
            raise NotFound("operator.unknown", "no admitted operator has this address", field="node_id")
        receipts = await store.operator_receipts(db, node_id)
        names = {model["model_id"]: model["name"] for model in await store.models(db)}
        convicted = await disputes.convictions(db, node_id)
    return page(
        "operator.html",
        here="/ui/operators",
        network=explorer.config.network,
        row=row,
        tally=tallies.get(node_id, figures.Tally()),
        draws=draws,
        receipts=receipts,
        convicted=convicted,
        models=[(names.get(model_id, ""), model_id) for model_id in row["models"]],
        connected=node_id in request.app.state.links.connected(),
        max_range=explorer.registry.network.max_range,
        plots=plots,
    )


@router.get("/models")
async def models(request: Request) -> Response:
    """Models, digests, and what each is offered with."""
    explorer = _explorer(request)
    return page(
        "models.html", here="/ui/models", network=explorer.config.network, models=await _offers(explorer)
    )


async def _offers(explorer: Explorer) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        return (await offers_of(explorer.jobs, explorer.registry, explorer.config))[: store.MOST_MODELS]

    found: list[dict[str, Any]] = await explorer.kept("offers", read)
    return found


@router.get("/attestations")
async def attestations(request: Request) -> Response:
    """Evidence of enclaves that came with receipts."""
    explorer = _explorer(request)
    async with store.reading(explorer.pool) as db:
        rows = await store.attestations(db)
    return page(
        "attestations.html",
        here="/ui/attestations",
        network=explorer.config.network,
        rows=[(row, read_evidence(json.loads(row["evidence"]))) for row in rows],
    )


@router.get("/log")
async def logged(request: Request) -> Response:
    """The transparency log: the last checkpoint, who witnessed it, how the tree grew; its leaves in pages."""
    explorer = _explorer(request)
    before, held = _cursor(request.query_params.get("before", "")), explorer.log
    if held is None:
        return page("log_none.html", here="/ui/log", network=explorer.config.network)
    async with store.reading(explorer.pool) as db:
        latest = await logbook.latest(db)
        size = 0 if latest is None else latest.head.size
        leaves, following = await logbook.leaves(db, before=size if before is None else min(before, size))
        first = before is None
        checkpoints = await logbook.checkpoints(db) if first else []
        witnesses = await logbook.witnesses(db) if first else []
    return page(
        "log.html",
        here="/ui/log",
        network=explorer.config.network,
        key=str(held.key),
        latest=latest,
        checkpoints=checkpoints,
        points=logbook.growth(checkpoints, latest),
        witnesses=witnesses,
        asked=len(explorer.config.witnesses),
        leaves=leaves,
        first=first,
        following=following,
        plots=plots,
    )


@router.get("/playground")
async def playground(request: Request) -> Response:
    """A form; the script submits it with the token that is typed in."""
    explorer = _explorer(request)
    offers = await _offers(explorer)
    return page(
        "playground.html",
        here="/ui/playground",
        network=explorer.config.network,
        models=offers,
        levels=sorted({level for offer in offers for level in offer["aos"]["verify"]}),
    )


@router.get("/verify")
async def verify() -> Response:
    """The browser verifier, the same bytes that work opened from disk."""
    data, headers = verifier()
    return Response(data, media_type="text/html; charset=utf-8", headers=headers)


@data_router.get("/static/{name}")
async def file(name: str) -> Response:
    """The style sheet, the script, the icon."""
    found = static(name)
    if found is None:
        raise NotFound("http.not_found", "there is no such file")
    headers = {**SECURITY, "Cache-Control": "public, max-age=86400"}
    return Response(found[0], media_type=found[1], headers=headers)


@data_router.get("/jobs/{job_ref}/content")
async def content(
    request: Request, job_ref: str, authorization: Annotated[str | None, Header()] = None
) -> Response:
    """Prompt and answer, for whoever holds the project's token with the scope `read`."""
    explorer = _explorer(request)
    scheme, _, token = (authorization or "").partition(" ")
    holder = await explorer.jobs.holder(
        token.strip()[:256] if scheme.lower() == "bearer" else None, field="Authorization"
    )
    check_scope(holder.scopes, "read", "Authorization")
    job_id, project = await _job_id(explorer, job_ref)
    if holder.project != project:
        raise BadToken("token.invalid", "the API token is not of this job's project", field="Authorization")
    async with store.reading(explorer.pool) as db:
        found = await store.content_of(db, job_id)
    return JSONResponse(found, headers={**SECURITY, "Cache-Control": "no-store"})


@data_router.get("/events")
async def events(request: Request) -> Response:
    """Server-sent events `changed`: of the network, of the job that ``of`` names, of the dispute that ``game`` names, or
    with ``log`` of the transparency log. They carry nothing: the page asks anew."""
    explorer = _explorer(request)
    name, played = request.query_params.get("of", ""), request.query_params.get("game", "")
    game = _game(played) if played else b""
    job_id = (await _job_id(explorer, name))[0] if name and not game else ""
    followed = played or job_id
    logs = bool(request.query_params.get("log"))
    explorer.streams.check(followed)

    async def look() -> str:
        if not followed:
            return await (
                explorer.mark("log", logbook.mark) if logs else explorer.mark("network", store.network_mark)
            )
        async with store.reading(explorer.pool) as db:
            return await (disputes.mark(db, game) if game else store.job_mark(db, job_id))

    headers = {**SECURITY, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _changes(explorer, followed, look), media_type="text/event-stream", headers=headers
    )


async def _changes(
    explorer: Explorer, followed: str, look: Callable[[], Awaitable[str]]
) -> AsyncIterator[str]:
    with explorer.streams.counted(followed):
        try:
            seen, quiet = await look(), 0
            yield "retry: 3000\nevent: open\ndata: \n\n"
            while True:
                await asyncio.sleep(LOOK_S)
                now = await look()
                if now != seen:
                    seen, quiet = now, 0
                    yield "event: changed\ndata: \n\n"
                elif (quiet := quiet + 1) % KEEP_ALIVE_LOOKS == 0:
                    yield ": still here\n\n"
        except AOSError:
            return  # the browser comes back


@router.get("/{rest:path}")
async def nowhere(rest: str) -> Response:
    """Every other path below /ui."""
    raise NotFound(
        "http.not_found", "there is no such page", hint=f"pages are {', '.join(path for path, _ in NAV)}"
    )
