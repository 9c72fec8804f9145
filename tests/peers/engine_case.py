"""A dispatcher's inside on a real PostgreSQL, wired as ``aos.dispatcher.app`` does, with operators at its hub instead of links."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from peers.hub_peer import MODEL, MODEL_ID, PCRS, PLATFORM, HubPeer, OperatorPeer, now_ms

from aos.adapters.causal_clock import CausalClock, next_incarnation
from aos.adapters.postgres import Pool, connect_pool
from aos.core.clock import DISPATCHER, ClockState
from aos.core.codec import encode
from aos.core.draw_document import RecheckedDraw, read_draw_document, recheck_draws
from aos.core.encoding import b64u_decode
from aos.core.hashes import job_ref
from aos.core.receipt import verify_answer
from aos.core.report import Report
from aos.core.signing import address_of
from aos.core.statements import JobType, Params, Tag
from aos.core.tee import TeeBootEvidence
from aos.core.trust import (
    TeeMeasurement,
    Trust,
    TrustedBeacon,
    TrustedDispatcher,
    TrustedTeeRoot,
    load_policy,
)
from aos.core.vrf import ecvrf_public_key
from aos.dispatcher.attestation import Attestation
from aos.dispatcher.config import DispatcherConfig, load_config
from aos.dispatcher.events import Events
from aos.dispatcher.jobs import Jobs, Submitted
from aos.dispatcher.log import Log
from aos.dispatcher.messages import Messages
from aos.dispatcher.metrics import Metrics
from aos.dispatcher.registry import Registry
from aos.dispatcher.runs import Runs
from aos.dispatcher.setup import Founded, found_network
from aos.dispatcher.submission import NewJob

NETWORK = "aos-local-engine"
EPOCH_MS = 3_600_000
TEE_ROOTS = (TrustedTeeRoot(tee="simulated", root=PLATFORM.root),)
TEE_MEASUREMENTS = (
    TeeMeasurement(tee="simulated", pcr0=PCRS[0].hex(), pcr1=PCRS[1].hex(), pcr2=PCRS[2].hex()),
)
ENDS = ("agreed", "disputed", "single", "failed", "cancelled", "expired")


def secret(name: str) -> bytes:
    return sha256(b"engine case: " + name.encode()).digest()


def write_config(directory: Path, pg_url: str, **changes: Any) -> Path:
    """A dispatcher's configuration with its key files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("signer.key", "vrf.key", "beacon.seed", "log.key"):
        path = directory / name
        path.write_text(secret(name).hex() + "\n")
        path.chmod(0o600)
    values = {
        "pg_db_url": pg_url,
        "listen": "127.0.0.1:8081",
        "network_id": NETWORK,
        "signer_key": "file:signer.key",
        "vrf_key": "file:vrf.key",
        "beacon_seed_file": "beacon.seed",
        "beacon_length": 64,
        "log_key": "file:log.key",
        "tee_roots": [encode(root) for root in TEE_ROOTS],
        "tee_measurements": [encode(image) for image in TEE_MEASUREMENTS],
        "accept_tee": ["simulated"],
    }
    path = directory / "dispatcher.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


class Dispatcher:
    """One process's worth of a dispatcher: may be killed, another one goes on over the same database."""

    def __init__(self, pool: Pool, registry: Registry, clock: CausalClock, case: EngineCase) -> None:
        self.pool, self.registry, self.clock, self._case = pool, registry, clock, case
        self.events, self.metrics = Events(pool), Metrics()
        self.runs = Runs(pool, case.config, registry, clock, self.events, case.hub, moved=self.metrics.moved)
        self.attestation = Attestation(pool, case.config, case.hub, accepted=self.runs.wake_all)
        self.messages = Messages(
            pool,
            case.config,
            registry,
            clock,
            self.events,
            self.runs,
            told=self.metrics.message,
            attestation=self.attestation,
        )
        self.log = Log(pool, case.config, now_ms=now_ms)
        self._logging: asyncio.Task[None] | None = None
        self.jobs = Jobs(
            pool,
            case.config,
            registry,
            clock,
            self.events,
            started=self.runs.begin,
            under_way=lambda: self.runs.open,
            cancelled=self.runs.cancelled,
            log=self.log,
        )

    def die_after(self, statements: int) -> asyncio.Event:
        """Lose the database for good right after the n-th statement from now: what is not committed by then never was."""
        died = asyncio.Event()
        left = statements

        def count(_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._case.hub.cut()
                self.pool.terminate()
                died.set()

        for holder in self.pool._holders:
            assert holder._con is not None
            holder._con.add_query_logger(count)
        return died

    @classmethod
    async def start(cls, case: EngineCase) -> Dispatcher:
        pool = await connect_pool(case.config.pg_url, min_size=8, max_size=8)

        async def save(state: ClockState) -> None:
            await pool.execute(
                "INSERT INTO clock_state (state) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET state = excluded.state",
                json.dumps(state.to_json()),
            )

        text = await pool.fetchval("SELECT state FROM clock_state")
        stored = None if text is None else ClockState.decode(json.loads(text))
        incarnation = next_incarnation(0 if stored is None else stored.incarnation)
        clock = await CausalClock.open(DISPATCHER, stored, save, incarnation=incarnation)
        dispatcher = cls(pool, await Registry.load(pool, case.config), clock, case)
        case.hub.attach(dispatcher.messages.handle, clock)
        await dispatcher.log.open()
        dispatcher._logging = asyncio.create_task(dispatcher.log.run())
        await dispatcher.runs.start()
        return dispatcher

    async def kill(self) -> None:
        """End without a word: tasks are cut where they are, connections are dropped with their transactions."""
        if self._logging is not None:
            self._logging.cancel()
        await self.runs.stop()
        self.pool.terminate()


class EngineCase:
    """A founded network of hub peers, and a dispatcher that runs it."""

    def __init__(self, config_path: Path, operators: tuple[OperatorPeer, ...]) -> None:
        self.config_path = config_path
        self.config: DispatcherConfig = load_config(config_path, environment={})
        self.operators = operators
        self.hub = HubPeer(*operators)
        self.genesis_ms = now_ms() - EPOCH_MS // 2
        self.founded: Founded
        self.dispatcher: Dispatcher

    @classmethod
    async def open(cls, directory: Path, pg_url: str, *operators: OperatorPeer, **changes: Any) -> EngineCase:
        case = cls(write_config(directory, pg_url, **changes), operators)
        await case.found()
        case.dispatcher = await Dispatcher.start(case)
        for operator in operators:
            if operator.job_type == "tee" and case.config.tee_references:
                await case.boot(operator)
        return case

    async def boot(
        self,
        operator: OperatorPeer,
        /,
        *,
        edit: Callable[[TeeBootEvidence], TeeBootEvidence] | None = None,
        **changes: Any,
    ) -> bytes:
        """Have the operator's enclave boot under a challenge; the boot statement's hash. ``changes`` are of the statement
        before it is signed, ``edit`` of the evidence afterwards."""
        handle = self.dispatcher.messages.handle
        challenge = await handle(operator.node_id, "tee_challenge", {})
        evidence = operator.boot(challenge, **({"network": NETWORK} | changes))
        if edit is not None:
            evidence = edit(evidence)
        accepted = await handle(operator.node_id, "tee_boot", encode(evidence))
        return b64u_decode(accepted["boot"])

    async def found(self) -> None:
        dispatcher = address_of(secret("signer.key"))
        self.founded = await found_network(
            self.config_path,
            registrations=[o.registration(network=NETWORK, dispatcher=dispatcher) for o in self.operators],
            models={MODEL: MODEL_ID},
            genesis_ms=self.genesis_ms,
            epoch_ms=EPOCH_MS,
            project="tests",
        )
        for index, operator in enumerate(self.operators):
            operator.node = 2 + index

    async def close(self) -> None:
        await self.hub.close()
        await self.dispatcher.kill()

    async def restart(self) -> None:
        """Kill the dispatcher and start another one."""
        await self.hub.detach()
        await self.dispatcher.kill()
        self.hub.crash_at = None
        self.dispatcher = await Dispatcher.start(self)

    # --- asking

    def job(
        self, *, user: str = "someone", tag: Tag = "", job_type: JobType = "opml", **changes: Any
    ) -> NewJob:
        values: dict[str, Any] = {
            "project": self.founded.project,
            "token": self.founded.token,
            "tag": tag,
            "user": user,
            "job_type": job_type,
            "prompt": "What is AI?",
            "model": MODEL,
            "params": Params(
                temperature=1_000_000,
                top_p=500_000,
                top_k=0,
                min_p=0,
                repeat_penalty=1_000_000,
                max_tokens=64,
                stop=(),
                seed=None,
            ),
            "nonce": None,
            "min_operators": None,
            "blind": False,
            "private": False,
            "body_hash": secret("body"),
        }
        return NewJob(**(values | changes))

    async def submit(self, new: NewJob | None = None, *, key: str | None = None) -> Submitted:
        return await self.dispatcher.jobs.submit(self.job() if new is None else new, idempotency_key=key)

    async def ended(self, job_id: str, *, position: str | None = None) -> str:
        """Wait for a run's end; its state. The row is what a killed and restarted dispatcher leaves to look at."""
        return str(
            await self.until(
                """SELECT state FROM run WHERE job_id = $1 AND state = ANY($3)
                   AND CASE WHEN $2::text IS NULL THEN position <> 'before' ELSE position = $2 END""",
                job_id,
                position,
                ENDS,
            )
        )

    async def until(self, query: str, *arguments: Any) -> Any:
        """Wait until ``query`` gives a value that is neither null nor false; the value."""
        while True:
            value = await self.dispatcher.pool.fetchval(query, *arguments)
            if value is not None and value is not False:
                return value
            await asyncio.sleep(0.01)

    async def state(self, job_id: str) -> str:
        return str(
            await self.dispatcher.pool.fetchval(
                "SELECT state FROM run WHERE job_id = $1 AND position <> 'before'", job_id
            )
        )

    # --- judging

    def trust(self) -> Trust:
        beacon: Any = self.founded.network["beacon"]
        return Trust(
            network=NETWORK,
            dispatchers=(
                TrustedDispatcher(
                    address=address_of(secret("signer.key")), vrf_key=ecvrf_public_key(secret("vrf.key"))
                ),
            ),
            genesis=self.genesis_ms,
            epoch_ms=EPOCH_MS,
            beacon=TrustedBeacon(anchor=b64u_decode(beacon["anchor"]), length=beacon["length"]),
            registry_roots=(self.founded.registry_root,),
            tee_roots=TEE_ROOTS,
            tee_measurements=TEE_MEASUREMENTS,
            policy="dev",
            log_key=str(self.dispatcher.log.key),
        )

    async def report(self, job_id: str, attempt: int | None = None) -> Report:
        """The offline verdict over the job's answer file."""
        data = await self.dispatcher.jobs.answer(job_id, attempt)
        return verify_answer(data, trust=self.trust(), policy=load_policy("dev"))

    async def rechecked_draws(self, job_id: str) -> tuple[RecheckedDraw, ...]:
        """The job's public draw document, recomputed offline."""
        document = await self.dispatcher.jobs.draw(job_ref(job_id))
        return recheck_draws(read_draw_document(json.dumps(document).encode()), trust=self.trust())
