"""Fixtures that every test directory shares: real servers, and the material handed out beside us."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from evm import Evm, Node, Revm
from needed import absent

from aos.adapters.embedded.anvil import EmbeddedAnvil, find_anvil
from aos.adapters.embedded.postgres import EmbeddedPostgres
from aos.adapters.embedded.redis import EmbeddedRedis

REPOSITORY = Path(__file__).resolve().parent.parent

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """Reference material that is handed out beside the checkout and may not be copied into it.

    Absent: the test is skipped, in CI it fails.
    """
    path = REPOSITORY.parent / "shared" / "fixtures"
    if not path.is_dir():
        absent("the reference material is not here: ../shared/fixtures")
    return path


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """One real PostgreSQL for the whole run. It need not survive a power cut: no waiting for the disk."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), settings={"fsync": "off"})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def new_database(postgres: EmbeddedPostgres) -> Iterator[Callable[..., str]]:
    """``new_database(template=None) -> url``: a fresh database, dropped after the test."""
    names: list[str] = []

    def create(template: str | None = None) -> str:
        name = f"test_{next(_numbers)}"
        url = postgres.create_database(name, template=template)
        names.append(name)
        return url

    yield create
    for name in names:
        postgres.drop_database(name)


@pytest.fixture
def pg_url(new_database: Callable[..., str]) -> str:
    """Address of an empty database of the test's own."""
    return new_database()


@pytest.fixture(scope="session")
def template_database(postgres: EmbeddedPostgres) -> Callable[[str, Callable[[str], None]], str]:
    """``template_database(name, prepare) -> name``: a database that ``prepare(url)`` filled, once per run.

    For ``new_database(template=name)``. ``prepare`` must close its connections: a template may have none.
    """
    prepared: set[str] = set()

    def ensure(name: str, prepare: Callable[[str], None]) -> str:
        if name not in prepared:
            prepare(postgres.create_database(name))
            prepared.add(name)
        return name

    return ensure


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """One real Redis for the whole run."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """Address of the run's Redis, emptied for the test."""
    redis_server.flush()
    return redis_server.url()


@pytest.fixture
def revm() -> Revm:
    """An EVM in this process, new for every test."""
    if importlib.util.find_spec("pyrevm") is None:
        absent("pyrevm is not installed (there are wheels for CPython up to 3.12 on x86-64)")
    return Revm()


@pytest.fixture(scope="session")
def anvil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedAnvil]:
    """One real Ethereum node for the whole run. Contracts are each test's own; the clock is everybody's."""
    if find_anvil() is None:
        absent("anvil is not installed: make chain-tools")
    node = EmbeddedAnvil(tmp_path_factory.mktemp("anvil"))
    node.start()
    yield node
    node.stop()


@pytest.fixture
def node(anvil: EmbeddedAnvil) -> Iterator[Node]:
    """The node as an EVM: for gas, and for what only a real one does."""
    node = Node(anvil.url)
    yield node
    node.close()


@pytest.fixture(params=["revm", "anvil"])
def evm(request: pytest.FixtureRequest) -> Evm:
    """Either EVM: a test that takes this runs in both."""
    chosen: Evm = request.getfixturevalue("revm" if request.param == "revm" else "node")
    return chosen


@pytest.fixture(scope="session")
def steady_anvil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A second real node, whose clock nobody moves: for what reads the wall clock too. It signs for every account."""
    if find_anvil() is None:
        absent("anvil is not installed: make chain-tools")
    server = EmbeddedAnvil(tmp_path_factory.mktemp("steady-anvil"))
    node = Node(server.start())
    node.ask("anvil_autoImpersonateAccount", True)
    yield node
    node.close()
    server.stop()
