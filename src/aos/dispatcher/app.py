"""Wiring of a dispatcher: one page from configuration to running service."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Gauge

from aos.adapters.causal_clock import CausalClock, next_incarnation
from aos.adapters.postgres import Pool, connect_pool, migrate, unavailable
from aos.core.clock import DISPATCHER, ClockState
from aos.dispatcher import routes_aos, routes_seed
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.events import Events
from aos.dispatcher.jobs import Jobs
from aos.dispatcher.link_server import LinkServer
from aos.dispatcher.messages import Messages
from aos.dispatcher.registry import Registry
from aos.dispatcher.runs import Runs
from aos.dispatcher.setup import MIGRATIONS
from aos.errors import AOSError


def create_app(config: DispatcherConfig) -> FastAPI:
    """The dispatcher as an ASGI application; everything opens in its lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = await connect_pool(config.pg_url, min_size=2, max_size=20)
        try:
            await migrate(pool, MIGRATIONS)
            registry = await Registry.load(pool, config)
            clock = await _open_clock(pool)
            events = Events(pool)
            links = LinkServer(config, registry, clock)
            runs = Runs(pool, config, registry, clock, events, links)
            messages = Messages(pool, config, registry, clock, events, runs)

            def connected(node_id: str) -> None:
                runs.forget(node_id)
                runs.wake_all()

            links.attach(messages.handle, connected)
            app.state.registry, app.state.links = registry, links
            app.state.jobs = Jobs(
                pool, config, registry, clock, events, started=runs.begin, cancelled=runs.cancelled
            )
            app.state.metrics = _metrics(runs, links)
            signing = asyncio.create_task(registry.keep_signing())
            await runs.start()
            try:
                yield
            finally:
                signing.cancel()
                await runs.stop()
                await links.close()
        finally:
            await pool.close()

    app = FastAPI(title="AOS dispatcher", version="1", lifespan=lifespan)
    app.include_router(routes_seed.router)
    app.include_router(routes_aos.router)

    @app.exception_handler(AOSError)
    async def refused(request: Request, error: AOSError) -> JSONResponse:
        seed = request.url.path.startswith("/api/")
        return routes_seed.seed_error(error) if seed else routes_aos.problem(error)

    return app


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


def _metrics(runs: Runs, links: LinkServer) -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("aos_open_runs", "Runs under way", registry=registry).set_function(lambda: float(runs.open))
    Gauge("aos_operator_links", "Live operator links", registry=registry).set_function(
        lambda: float(len(links.connected()))
    )
    return registry
