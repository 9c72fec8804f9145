"""A whole network on one machine: PostgreSQL, Redis, a dispatcher, operators and their workers, each a process of its own.

Used by ``aos up``, ``aos demo`` and the end-to-end tests. The state directory holds everything; when the network ends, nothing else
is left. Every process may be killed at any time and is started again. The TEE operator's enclave is simulated.
"""

import contextlib
import fcntl
import json
import os
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aos.adapters.embedded.postgres import EmbeddedPostgres
from aos.adapters.embedded.redis import EmbeddedRedis
from aos.adapters.model_store import naming
from aos.adapters.processes import Crash, Process, Ready, Supervisor, free_port, http_ok, port_is_free
from aos.client import Client
from aos.core.codec import encode
from aos.core.encoding import tagged_hash
from aos.core.statements import Registration, Signed
from aos.errors import ConfigError, RuleViolation, Unavailable
from aos.local.layout import Layout, Node, NodeKind, read_or_make, registration, write_json, write_private

DEMO_MODEL = Path("models") / "aos-demo.Q8_0.gguf"
EPOCH_MS = 600_000
READY_TIMEOUT_S = 60.0
MIN_FREE_DISK = 256 << 20
"""A new network takes about 100 MiB, nearly all of it PostgreSQL's; the rest is room for its log to grow."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Several workers share the machine; the engines' products are too small for BLAS to gain from threads (docs/log.md)."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """What the dispatcher's database is initialised with, once."""

    pg_url: str
    config: Path
    registrations: tuple[Signed[Registration], ...]
    models: dict[str, bytes]
    manifests: dict[str, bytes]
    genesis_ms: int
    epoch_ms: int
    project: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Founded:
    """What initialising gave: the public network file, the root of the genesis registry, the project's token."""

    network: dict[str, Any]
    registry_root: str
    project: str
    token: str
    webhook_secret: str


Found = Callable[[Genesis], Founded]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An operator as it stakes: its node, and where its transactions are recorded."""

    node: Node
    pg_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contracts:
    """Where a network's contracts are. Without a ``court`` (empty) nobody signs claims for one."""

    operator_registry: str
    court: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain that the network's registry is to be on. ``prepare(config, accounts)`` deploys the contracts with the key of the
    dispatcher of that configuration, stakes for the operators, and says where they are; run again, it changes nothing.
    ``settings`` are the dispatcher's for its chain, beyond these.
    """

    rpc_url: str
    chain_id: int
    prepare: Callable[[Path, Sequence[Account]], Contracts]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """An opML operator of the genesis registry that somebody else runs: its keys are made, no process is started.

    It offers one model, given by its name and id.
    """

    name: str
    model: str
    model_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningNetwork:
    """A network that is up."""

    network_id: str
    url: str
    project: str
    token: str
    webhook_secret: str
    model_name: str
    dispatcher: str
    trust_path: Path
    client_path: Path
    isas: dict[str, str]
    """The instruction set of every opML operator's worker, as the worker says, by the operator's address."""
    processes: dict[str, Process]
    postgres: EmbeddedPostgres
    redis: EmbeddedRedis
    supervisor: Supervisor

    def client(self) -> Client:
        return Client(self.url, project=self.project, token=self.token, dispatcher=self.dispatcher)


class LocalNetwork:
    """Starts and ends a network in one state directory.

    ``found`` initialises the dispatcher's database the first time (``aos.dispatcher.setup`` behind it); ``say`` prints progress.
    ``isas`` are forced on the opML workers in turn; without them each worker takes the fastest that it has. ``guests`` are
    registered beside the operators; ``settings`` are the dispatcher's, beyond the ones that every local network has. With ``chain``
    stakes and ranges are a contract's. ``lies`` names opML operators whose worker is `aos.cli.lying_worker`, each with the
    file that says what it lies about; all else of theirs is the product.
    Where ``until`` is set before the network is up, the start is given up.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        found: Found,
        opml_operators: int = 3,
        tee_operators: int = 1,
        model: Path = DEMO_MODEL,
        say: Say = lambda _: None,
        restart: bool = True,
        isas: Sequence[str] = (),
        guests: Sequence[Guest] = (),
        settings: Mapping[str, Any] | None = None,
        until: threading.Event | None = None,
        chain: Chain | None = None,
        lies: Mapping[str, Path] | None = None,
        epoch_ms: int = EPOCH_MS,
    ) -> None:
        self._layout = Layout(state_dir.resolve())
        self._found = found
        self._kinds: list[tuple[str, NodeKind]] = [
            (f"operator-{i + 1}", "opml") for i in range(opml_operators)
        ] + [(f"operator-tee-{i + 1}", "tee") for i in range(tee_operators)]
        self._model = model.resolve()
        self._say = say
        self._restart = restart
        self._isas = isas
        self._guests = guests
        self._settings = dict(settings or {})
        self._chain = chain
        self._contracts = Contracts(operator_registry="")
        self._lies = dict(lies or {})
        self._epoch_ms = epoch_ms
        self._until = until or threading.Event()
        self._processes: dict[str, Process] = {}
        self._ready: dict[str, str] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[RunningNetwork]:
        """Start everything, yield the running network, end everything.

        Raises RuleViolation ``local.running`` (this state directory is in use) or ``local.interrupted``, ConfigError, Unavailable.
        """
        if not self._model.is_file():
            raise ConfigError(
                "local.model",
                f"no model at {self._model}",
                hint="run this in the checkout, or give --model FILE",
            )
        self._layout.make()
        self._check_disk()
        with self._locked(), Supervisor(on_crash=self._crashed) as supervisor:
            running = self._start(supervisor)
            try:
                yield running
            finally:
                self._say("stopping")

    def serve(self, running: RunningNetwork, until: threading.Event) -> None:
        """Keep every process up until the event is set."""
        running.supervisor.run(until)

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._layout.root).free
        if free < MIN_FREE_DISK:
            raise Unavailable(
                "local.disk",
                f"only {free >> 20} MiB are free for {self._layout.root}, {MIN_FREE_DISK >> 20} MiB are needed",
                hint="free some space, or choose another --state-dir",
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._layout.root / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                "local.state_dir",
                f"cannot write in the state directory {self._layout.root}: {error.strerror}",
                hint="make it writable for this user, or choose another with --state-dir",
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuleViolation(
                    "local.running",
                    f"a network already runs in {self._layout.root}",
                    hint="stop it with Ctrl-C, or choose another --state-dir",
                ) from None
            yield
        finally:
            os.close(descriptor)

    def _crashed(self, crash: Crash) -> None:
        then = "restarting it" if crash.restarted else "giving up"
        self._say(f"{crash.name} ended with status {crash.status}; {then}")

    # --- start

    def _start(self, supervisor: Supervisor) -> RunningNetwork:
        began = time.monotonic()
        layout = self._layout
        manifest = self._manifest()
        postgres, redis = EmbeddedPostgres(layout.root), EmbeddedRedis(layout.root)
        supervisor.start(postgres, restart=self._restart)
        supervisor.start(redis, restart=self._restart)
        self._say(f"  PostgreSQL and Redis      {time.monotonic() - began:4.1f} s")
        self._check_wanted()
        nodes = [layout.node(name, kind) for name, kind in self._kinds]
        url = f"http://127.0.0.1:{self._port('dispatcher')}"
        self._ensure_databases(postgres, nodes)
        dispatcher_config = self._dispatcher_config(postgres, url)
        if self._chain is not None:
            accounts = [Account(node=node, pg_url=postgres.url(node.database)) for node in nodes]
            self._contracts = self._chain.prepare(dispatcher_config, accounts)
            dispatcher_config = self._dispatcher_config(postgres, url)
        founded = self._founded(postgres, nodes, dispatcher_config, manifest, url)
        self._add_dispatcher(dispatcher_config, url)
        for node in nodes:
            self._add_worker(node)
            self._add_operator(node, postgres, redis, founded, url)
        for process in self._processes.values():
            supervisor.start(process, restart=self._restart)
        for name, process in self._processes.items():
            process.wait_until(self._wanted_and(http_ok(self._ready[name])), READY_TIMEOUT_S)
        self._say(f"  dispatcher, {len(nodes)} operators  {time.monotonic() - began:4.1f} s")
        return RunningNetwork(
            network_id=layout.network_id(),
            url=url,
            project=founded.project,
            token=founded.token,
            webhook_secret=founded.webhook_secret,
            model_name=self._model.name,
            dispatcher=layout.dispatcher_keys().address,
            trust_path=layout.trust_file,
            client_path=layout.client_file,
            isas={node.keys.address: self._isa(node) for node in nodes if node.kind == "opml"},
            processes=dict(self._processes),
            postgres=postgres,
            redis=redis,
            supervisor=supervisor,
        )

    def _check_wanted(self) -> None:
        if self._until.is_set():
            raise RuleViolation(
                "local.interrupted", "stopped before the network was up", hint="`aos up` starts it again"
            )

    def _wanted_and(self, ready: Ready) -> Ready:
        def check(process: Process) -> bool:
            self._check_wanted()
            return ready(process)

        return check

    def _port(self, name: str) -> int:
        """A port for ``name``, the same over restarts while it is free."""
        path = self._layout.root / "ports" / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        port = int(read_or_make(path, lambda: str(free_port())))
        if not port_is_free(port):
            path.unlink()
            return self._port(name)
        return port

    def _manifest(self) -> bytes:
        """The model's manifest, as the JSON that its id is the hash of."""
        from aos.engine import read_manifest

        with naming(self._model):
            return read_manifest(self._model, cache_dir=self._layout.cache).json()

    def _ensure_databases(self, postgres: EmbeddedPostgres, nodes: list[Node]) -> None:
        for database in ["dispatcher", *(node.database for node in nodes)]:
            marker = self._layout.root / "databases" / database
            marker.parent.mkdir(mode=0o700, exist_ok=True)
            if not marker.exists():
                postgres.drop_database(database)
                postgres.create_database(database)
                marker.touch(mode=0o600)

    def _dispatcher_config(self, postgres: EmbeddedPostgres, url: str) -> Path:
        layout = self._layout
        layout.dispatcher_keys()
        config = {
            "pg_db_url": postgres.url("dispatcher"),
            "listen": url.removeprefix("http://"),
            "origins": [url],
            "network_id": layout.network_id(),
            "signer_key": "file:signer.key",
            "vrf_key": "file:vrf.key",
            "beacon_seed_file": layout.beacon_seed_file().name,
            "log_key": f"file:{layout.log_key_file().name}",
            **layout.tee_trust(),
            "accept_tee": ["simulated"],
            "open_registration": True,
            "webhook_loopback": True,
        } | self._settings
        if self._chain is not None:
            config["chain"] = {
                "rpc_url": self._chain.rpc_url,
                "chain_id": self._chain.chain_id,
                "operator_registry": self._contracts.operator_registry,
                **self._court(),
                **self._chain.settings,
            }
        path = layout.dispatcher_dir / "config-dispatcher.yaml"
        write_private(path, yaml.safe_dump(config, sort_keys=False))
        return path

    def _founded(
        self, postgres: EmbeddedPostgres, nodes: list[Node], config: Path, manifest: bytes, url: str
    ) -> Founded:
        """Initialise the dispatcher's database once; write the public files and the client's secret."""
        layout, model_id = self._layout, tagged_hash("model", manifest)
        marker = layout.root / "founded.json"
        names = [*(node.name for node in nodes), *(guest.name for guest in self._guests)]
        if marker.exists():
            kept = json.loads(marker.read_text(encoding="utf-8"))
            if kept["model_id"] != encode(model_id):
                raise ConfigError(
                    "local.model_changed",
                    f"{self._model.name} is not the model that the network in {layout.root} was made with",
                    hint="choose another --state-dir; names are never re-pointed",
                )
            if kept["operators"] != names:
                raise ConfigError(
                    "local.operators_changed",
                    f"the network in {layout.root} was made with {', '.join(kept['operators'])}",
                    hint="give the same numbers of operators, or another --state-dir",
                )
            client = json.loads(layout.client_file.read_text(encoding="utf-8"))
            founded = Founded(
                network=kept["network"],
                registry_root=kept["registry_root"],
                project=client["project"],
                token=client["token"],
                webhook_secret=client.get("webhook_secret", ""),
            )
        else:
            now_ms = int(time.time() * 1000)
            network, dispatcher = layout.network_id(), layout.dispatcher_keys().address
            offers = [(node, model_id) for node in nodes]
            offers += [(layout.node(guest.name, "opml"), guest.model_id) for guest in self._guests]
            founded = self._found(
                Genesis(
                    pg_url=postgres.url("dispatcher"),
                    config=config,
                    registrations=tuple(
                        registration(
                            node,
                            network=network,
                            dispatcher=dispatcher,
                            model_ids=(offered,),
                            time_ms=now_ms,
                        )
                        for node, offered in offers
                    ),
                    models={self._model.name: model_id}
                    | {guest.model: guest.model_id for guest in self._guests},
                    manifests={self._model.name: manifest},
                    genesis_ms=now_ms,
                    epoch_ms=self._epoch_ms,
                    project="local",
                )
            )
        write_json(layout.network_file, founded.network)
        write_json(layout.trust_file, self._trust(founded))
        write_json(
            layout.client_file,
            {
                "url": url,
                "project": founded.project,
                "token": founded.token,
                "webhook_secret": founded.webhook_secret,
                "model": self._model.name,
            },
        )
        write_json(
            marker,
            {
                "network": founded.network,
                "registry_root": founded.registry_root,
                "model_id": encode(model_id),
                "operators": names,
            },
        )
        return founded

    def _trust(self, founded: Founded) -> dict[str, Any]:
        network = founded.network
        return {
            "type": "aos.trust",
            "v": 1,
            "network": network["network"],
            "dispatchers": [{"address": network["dispatcher"], "vrf_key": network["vrf_key"]}],
            "genesis": network["genesis"],
            "epoch_ms": network["epoch_ms"],
            "beacon": network["beacon"],
            "registry_roots": [founded.registry_root],
            **self._layout.tee_trust(),
            "policy": "dev",
            "log_key": network["log_key"],
            "witnesses": [],
            "witness_quorum": 0,
        }

    def _add(self, name: str, argv: list[str], ready: str, env: dict[str, str] | None = None) -> None:
        self._processes[name] = Process(
            name,
            [sys.executable, *argv],
            log_path=self._layout.log(name),
            env={"AOS_LOG_NAME": name} | (env or {}),
        )
        self._ready[name] = ready

    def _add_dispatcher(self, config: Path, url: str) -> None:
        self._add("dispatcher", ["-m", "aos.dispatcher", "-c", str(config)], f"{url}/ready")

    def _add_worker(self, node: Node) -> None:
        port, lie = self._port(f"{node.name}-worker"), self._lies.get(node.name)
        token = read_or_make(node.directory / "worker.token", lambda: os.urandom(32).hex())
        environment = ONE_THREAD | {"AOS_WORKER_TOKEN": token}
        name, common = f"{node.name}-worker", ["--model", str(self._model), "--listen", f"127.0.0.1:{port}"]
        if lie is not None:
            argv = ["-m", "aos.cli.lying_worker", *common]
            environment["AOS_LIE"] = str(lie)
        elif node.kind == "opml":
            argv = ["-m", "aos.workers.opml_main", *common]
            argv += ["--cache-dir", str(self._layout.cache), "--threads", "1"]
        else:
            argv = ["-m", "aos.workers.tee_main", *common]
            argv += ["--operator", node.keys.address, "--network", self._layout.network_id()]
            argv += ["--platform-key", str(self._layout.platform_file)]
        if node.kind == "opml" and self._isas:
            position = [other for other, kind in self._kinds if kind == "opml"].index(node.name)
            environment["AOS_ISA"] = self._isas[position % len(self._isas)]
        self._add(name, argv, f"http://127.0.0.1:{port}/health", environment)

    def _court(self) -> dict[str, str]:
        return {"court": self._contracts.court} if self._contracts.court else {}

    def _isa(self, node: Node) -> str:
        """What the worker of ``node`` says it computes with. Raises Unavailable ``local.worker``."""
        address = self._ready[f"{node.name}-worker"].removesuffix("/health")
        request = urllib.request.Request(  # noqa: S310  http, as this class wrote it
            f"{address}/api/v1/status",
            headers={"authorization": f"Bearer {(node.directory / 'worker.token').read_text().strip()}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=READY_TIMEOUT_S) as answer:  # noqa: S310
                return str(json.loads(answer.read(1 << 16))["result"]["isa"])
        except (OSError, ValueError, KeyError) as error:
            raise Unavailable(
                "local.worker",
                f"{node.name}'s worker gives no status: {error}",
                hint=f"read {self._layout.log(f'{node.name}-worker')}",
            ) from error

    def _add_operator(
        self, node: Node, postgres: EmbeddedPostgres, redis: EmbeddedRedis, founded: Founded, url: str
    ) -> None:
        rest, worker = self._port(node.name), self._port(f"{node.name}-worker")
        config = {
            "db": {"pg_db_url": postgres.url(node.database), "pg_db_name": node.database},
            "queue": {"queue_url": redis.url(), "topic": f"task:{node.name}"},
            "net": {
                "rest_url": f"127.0.0.1:{rest}",
                "workers": [f"http://127.0.0.1:{worker}"],
                "worker_token_file": "worker.token",
                "dispatcher_url": url,
            },
            "node": {
                "node_id": node.keys.address,
                "signer_key": "file:signer.key",
                "vrf_key": "file:vrf.key",
                "dispatcher_address": founded.network["dispatcher"],
                "node_type": node.kind,
                "ai_models": [self._model.name],
            },
            "network": {"id": founded.network["network"], "dispatcher_vrf_key": founded.network["vrf_key"]},
        }
        if self._chain is not None:
            config["chain"] = {
                "chain_rpc_url": self._chain.rpc_url,
                "chain_id": self._chain.chain_id,
                "vrf_range_contract": self._contracts.operator_registry,
                **self._court(),
            }
        write_private(node.config, yaml.safe_dump(config, sort_keys=False))
        argv = ["-m", "aos.operator.runer", "-c", str(node.config)]
        self._add(node.name, argv, f"http://127.0.0.1:{rest}/ready")
