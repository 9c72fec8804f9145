"""Wiring of a dispatcher: one page from configuration to running service."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from aos.adapters.causal_clock import CausalClock, next_incarnation
from aos.adapters.postgres import Pool, connect_pool, migrate, unavailable
from aos.core.clock import DISPATCHER, ClockState
from aos.core.dispute.fine.referee import Canonical
from aos.dispatcher import (
    refusals,
    routes_aos,
    routes_attestation,
    routes_audits,
    routes_disputes,
    routes_log,
    routes_openai,
    routes_seed,
)
from aos.dispatcher.anchors import Anchors
from aos.dispatcher.attestation import Attestation
from aos.dispatcher.audits import Audits
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.disputes import Disputes
from aos.dispatcher.disputes_ending import Ending
from aos.dispatcher.events import Events
from aos.dispatcher.jobs import Jobs
from aos.dispatcher.limits import InFlight
from aos.dispatcher.link_server import LinkServer
from aos.dispatcher.log import Log
from aos.dispatcher.messages import Messages
from aos.dispatcher.metrics import Metrics
from aos.dispatcher.registry import Registry, now_ms
from aos.dispatcher.runs import Runs
from aos.dispatcher.schemas import body_schemas
from aos.dispatcher.schemas_openai import CALLS
from aos.dispatcher.setup import MIGRATIONS
from aos.dispatcher.streams import Streams
from aos.dispatcher.ui.routes import Explorer
from aos.dispatcher.ui.routes import data_router as ui_data
from aos.dispatcher.ui.routes import router as ui_pages
from aos.dispatcher.webhooks import Webhooks
from aos.dispatcher.witnesses import WitnessFeed
from aos.engine.around import check_with_tokenizer, read_tables


def create_app(config: DispatcherConfig) -> FastAPI:
    """The dispatcher as an ASGI application; everything opens in its lifespan."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = await connect_pool(config.pg_url, min_size=2, max_size=20)
        try:
            await migrate(pool, MIGRATIONS)
            registry = await Registry.load(pool, config)
            clock = await _open_clock(pool)
            events = Events(pool)
            links = LinkServer(config, registry, clock)
            in_flight = InFlight()
            await in_flight.load(pool)
            runs = Runs(
                pool, config, registry, clock, events, links, moved=metrics.moved, ended=in_flight.ended
            )
            attestation = Attestation(pool, config, links, accepted=runs.wake_all)
            messages = Messages(
                pool, config, registry, clock, events, runs, told=metrics.message, attestation=attestation
            )

            def connected(node_id: str) -> None:
                runs.forget(node_id)
                runs.wake_all()

            links.attach(messages.handle, connected)
            app.state.registry, app.state.links, app.state.runs = registry, links, runs
            held = None
            if config.keys.log is not None:
                held = Log(pool, config, now_ms=now_ms, measured=metrics.sequenced)
                await held.open()
            app.state.log = held
            app.state.jobs = Jobs(
                pool,
                config,
                registry,
                clock,
                events,
                started=runs.begin,
                under_way=lambda: runs.open,
                cancelled=runs.cancelled,
                in_flight=in_flight,
                log=held,
            )
            app.state.explorer = Explorer(pool, config, registry, app.state.jobs, held)
            app.state.config, app.state.metrics, app.state.streams = config, metrics, Streams()
            app.state.attestation = attestation
            signing = asyncio.create_task(registry.keep_signing())
            sending = None if registry.chain is None else asyncio.create_task(registry.chain.keep())
            webhooks = Webhooks(pool, config, told=metrics.webhook)
            arithmetic = Canonical(check_with_tokenizer)
            ending = Ending(pool, config, clock, events, runs.moves, arithmetic=arithmetic, now_ms=now_ms)
            app.state.disputes = court = Disputes(
                pool,
                config,
                links,
                arithmetic=arithmetic,
                check_tables=read_tables,
                now_ms=now_ms,
                changed=ending.wake,
                told=metrics.disputed,
            )
            app.state.audits = audits = Audits(
                pool,
                config,
                links,
                arithmetic=arithmetic,
                check_tables=read_tables,
                now_ms=now_ms,
                changed=ending.wake,
                told=metrics.disputed,
            )
            runs.disputed = court.hint_run
            erasing = asyncio.create_task(audits.run())
            judging = asyncio.create_task(ending.run(court))
            logging = [] if held is None else [asyncio.create_task(held.run()), *_feeds(config, held)]
            if held is not None and registry.chain is not None and registry.chain.anchor_s:
                logging.append(asyncio.create_task(Anchors(held, registry.chain).run()))
            await runs.start()
            webhooks.start()
            try:
                yield
            finally:
                signing.cancel()
                if sending is not None:
                    sending.cancel()
                judging.cancel()
                for task in logging:
                    task.cancel()
                erasing.cancel()
                await court.stop()
                await audits.stop()
                await webhooks.stop()
                await runs.stop()
                await links.close()
                await registry.close()
        finally:
            await pool.close()

    app = FastAPI(
        title="AOS dispatcher",
        version="1",
        description="Submit prompts, follow them, fetch answers with receipts that anyone can check. Bodies are strict JSON: "
        "no unknown member, no duplicate, at most 1 MiB.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(routes_seed.router)
    app.include_router(routes_openai.router)
    app.include_router(routes_aos.router)
    app.include_router(routes_disputes.router)
    app.include_router(routes_audits.router)
    app.include_router(routes_attestation.router)
    app.include_router(routes_log.router)
    app.include_router(ui_data)
    app.include_router(ui_pages)  # last: it answers every path below /ui that nobody else has
    refusals.install(app, refused=metrics.refused)
    _describe(app)
    return app


def _feeds(config: DispatcherConfig, held: Log) -> list[asyncio.Task[None]]:
    named = zip(config.witnesses, config.log.witnesses, strict=True)
    return [asyncio.create_task(WitnessFeed(held, key, witness.url).run()) for key, witness in named]


def _describe(app: FastAPI) -> None:
    """Put the schemas of the bodies, which routes read themselves, into the OpenAPI document."""

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            schemas = document["components"]["schemas"]
            schemas.update(body_schemas(*CALLS))
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for methods in document["paths"].values():
                for operation in methods.values():
                    operation["responses"].pop("422", None)  # refused as 400, in our own shape
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


async def _open_clock(pool: Pool) -> CausalClock:
    async def save(state: ClockState) -> None:
        async with unavailable():
            await pool.execute(
                "INSERT INTO clock_state (state) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET state = excluded.state",
                json.dumps(state.to_json()),
            )

    async with unavailable():
        text = await pool.fetchval("SELECT state FROM clock_state")
    stored = None if text is None else ClockState.decode(json.loads(text))
    incarnation = next_incarnation(0 if stored is None else stored.incarnation)
    return await CausalClock.open(DISPATCHER, stored, save, incarnation=incarnation)
