"""Founding, registration with proof of possession, ranges, epochs and snapshots (docs/spec/04-sortition.md)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from peers.engine_case import NETWORK, secret, write_config
from peers.hub_peer import MODEL, MODEL_ID, OperatorPeer

from aos.adapters.postgres import Pool, connect_pool
from aos.core import draw, sortition
from aos.core.beacon import verify_beacon
from aos.core.encoding import b64u_decode
from aos.core.signing import address_of
from aos.core.statements import Registration, Signed, check_signed, sign
from aos.core.vrf import prove_possession
from aos.dispatcher.config import DispatcherConfig, load_config
from aos.dispatcher.registry import Registry
from aos.dispatcher.setup import Founded, authenticate, found_network, new_project
from aos.errors import AOSError, ConfigError, RuleViolation, Unavailable

EPOCH_MS = 60_000
GENESIS = 1_700_000_000_000
DISPATCHER = address_of(secret("signer.key"))


class Case:
    """A founded registry with a clock of the test's own; ``at(epoch)`` sets it."""

    def __init__(self, config_path: Path, founded: Founded, pool: Pool, config: DispatcherConfig) -> None:
        self.config_path, self.founded, self.pool, self.config = config_path, founded, pool, config
        self.registry: Registry
        self.now = GENESIS

    def at(self, epoch: int) -> None:
        self.now = GENESIS + epoch * EPOCH_MS + 1_000

    def registration(self, operator: OperatorPeer) -> Signed[Registration]:
        return operator.registration(network=NETWORK, dispatcher=DISPATCHER, time_ms=self.now)

    async def register(self, operator: OperatorPeer) -> str:
        return (await self.registry.register(self.registration(operator).to_json())).node_id


async def found(path: Path, *operators: OperatorPeer) -> Founded:
    return await found_network(
        path,
        registrations=[o.registration(network=NETWORK, dispatcher=DISPATCHER) for o in operators],
        models={MODEL: MODEL_ID},
        genesis_ms=GENESIS,
        epoch_ms=EPOCH_MS,
        project="tests",
    )


Open = Callable[..., Any]


@pytest.fixture
async def open_case(tmp_path: Path, pg_url: str) -> AsyncIterator[Open]:
    """``open_case(*genesis operators, **settings) -> Case``."""
    pools = []

    async def open_(*operators: OperatorPeer, **changes: Any) -> Case:
        path = write_config(tmp_path, pg_url, **({"open_registration": True} | changes))
        founded = await found(path, *operators)
        config = load_config(path, environment={})
        pools.append(await connect_pool(config.pg_url, max_size=4))
        loaded = await Registry.load(pools[-1], config)
        case = Case(path, founded, pools[-1], config)
        case.registry = Registry(pools[-1], config, loaded.network, wall_ms=lambda: case.now)
        return case

    yield open_
    for pool in pools:
        await pool.close()


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(AOSError) as refusal:
        yield
    assert refusal.value.code == code


def genesis_operators(count: int = 3) -> list[OperatorPeer]:
    return [OperatorPeer(f"genesis-{n}") for n in range(count)]


# --- founding


async def test_a_founded_network_has_a_signed_genesis_snapshot_of_contiguous_ranges(open_case: Open) -> None:
    operators = genesis_operators()
    case = await open_case(*operators)
    snapshot = await case.registry.in_force(0)
    check_signed(snapshot.signed, address=DISPATCHER)
    assert snapshot.root == case.founded.registry_root
    assert snapshot.root == draw.snapshot_root(NETWORK, 1_000_000, snapshot.entries)
    assert snapshot.signed.statement.previous == b""
    ranges = sorted((entry.start, entry.end) for entry in snapshot.entries)
    assert ranges[0][0] == 0
    assert all(left[1] == right[0] for left, right in pairwise(ranges))
    assert all(draw.eligible(e, job_type="opml", model_id=MODEL_ID, epoch=0) for e in snapshot.entries)
    sortition.validate_ranges(
        [sortition.OperatorRange(node_id=e.node_id, start=e.start, end=e.end) for e in snapshot.entries],
        1_000_000,
    )


async def test_the_network_file_is_what_the_founding_returned(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    assert case.registry.network_file() == case.founded.network
    beacon: Any = case.founded.network["beacon"]
    for epoch in (0, 1, 40):
        verify_beacon(b64u_decode(beacon["anchor"]), epoch, case.registry.beacon_of(epoch))


async def test_a_network_of_many_operators_can_be_founded(open_case: Open) -> None:
    case = await open_case(*genesis_operators(40))
    snapshot = await case.registry.in_force(0)
    assert snapshot.signed.statement.count == 40
    case.at(1)
    await case.register(OperatorPeer("one more"))


async def test_an_interrupted_founding_can_be_repeated(open_case: Open) -> None:
    operators = genesis_operators()
    case = await open_case(*operators)
    again = await found(case.config_path, *operators)
    assert again.registry_root == case.founded.registry_root


@pytest.mark.parametrize("change", [{"network_id": "dev-other"}, {"beacon_length": 65}])
async def test_a_database_of_another_network_is_refused(
    open_case: Open, pg_url: str, tmp_path: Path, change: dict[str, Any]
) -> None:
    case = await open_case(*genesis_operators())
    path = write_config(tmp_path / "other", pg_url, **change)
    with pytest.raises(ConfigError) as refusal:
        await Registry.load(case.pool, load_config(path, environment={}))
    assert refusal.value.code == "network.foreign"


# --- projects


async def test_a_project_s_token_is_stored_only_as_a_hash_and_opens_only_its_own_project(
    open_case: Open,
) -> None:
    case = await open_case(*genesis_operators())
    pool = case.pool
    made = await new_project(case.config_path, "second")
    project, token = made.project, made.token
    assert await authenticate(pool, project, token)
    assert not await authenticate(pool, case.founded.project, token)
    assert not await authenticate(pool, project, token + "x")
    assert not await authenticate(pool, "p-unknown", token)
    assert not await authenticate(pool, project, "")
    dump = repr(await pool.fetch("SELECT * FROM project JOIN token USING (project_id)"))
    assert token not in dump
    assert case.founded.token not in dump


# --- registration


async def test_a_new_operator_counts_two_epochs_after_it_registered(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    case.at(3)
    operator = OperatorPeer("late")
    node_id = await case.register(operator)
    eligible = {}
    for epoch in (3, 4, 5, 6):
        case.at(epoch)
        snapshot = await case.registry.in_force(epoch)
        entry = next((e for e in snapshot.entries if e.node_id == node_id), None)
        eligible[epoch] = entry is not None and draw.eligible(
            entry, job_type="opml", model_id=MODEL_ID, epoch=epoch
        )
    assert eligible == {3: False, 4: False, 5: True, 6: True}


async def test_an_operator_that_registers_in_epoch_0_does_not_count_at_once(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    case.at(0)
    node_id = await case.register(OperatorPeer("quick"))
    for epoch, expected in ((1, False), (2, False), (3, True)):
        case.at(epoch)
        snapshot = await case.registry.in_force(epoch)
        entry = next((e for e in snapshot.entries if e.node_id == node_id), None)
        counts = entry is not None and draw.eligible(entry, job_type="opml", model_id=MODEL_ID, epoch=epoch)
        assert counts == expected


async def test_registering_again_with_the_same_key_changes_nothing(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    operator = OperatorPeer("late")
    assert await case.register(operator) == await case.register(operator)
    assert await case.pool.fetchval("SELECT count(*) FROM operator") == 4


async def test_operators_that_register_at_once_get_different_numbers_and_ranges(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    await asyncio.gather(*(case.register(OperatorPeer(f"late-{n}")) for n in range(6)))
    rows = await case.pool.fetch("SELECT node, range_start FROM operator")
    assert len({row["node"] for row in rows}) == len({row["range_start"] for row in rows}) == 9


async def test_a_registry_without_a_free_range_says_so(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    with refused("registration.full"):
        for n in range(30):
            await case.register(OperatorPeer(f"late-{n}"))


async def test_without_open_registration_an_operator_waits_outside(open_case: Open) -> None:
    case = await open_case(*genesis_operators(), open_registration=False)
    node_id = await case.register(OperatorPeer("late"))
    assert await case.registry.member(node_id) is None
    case.at(2)
    assert node_id not in {entry.node_id for entry in (await case.registry.in_force(2)).entries}


async def test_who_waits_to_be_admitted_takes_no_range_from_who_is(open_case: Open) -> None:
    """Keys cost nothing: more registrations than the registry has ranges, and there is still room."""
    case = await open_case(*genesis_operators(), open_registration=False)
    waiting = [await case.register(OperatorPeer(f"late-{n}")) for n in range(30)]
    case.at(3)
    await case.registry.admit(waiting[-1])
    await case.registry.admit(waiting[-1])
    assert await case.registry.member(waiting[-1]) == 5
    for epoch in (4, 5):
        case.at(epoch)
        entries = {entry.node_id: entry for entry in (await case.registry.in_force(epoch)).entries}
    assert len(entries) == 4
    admitted = entries[waiting[-1]]
    assert admitted.start == max(entry.end for entry in entries.values() if entry is not admitted)
    assert draw.eligible(admitted, job_type="opml", model_id=MODEL_ID, epoch=5)
    assert not draw.eligible(admitted, job_type="opml", model_id=MODEL_ID, epoch=4)


async def test_the_queue_of_who_waits_to_be_admitted_is_bounded(
    open_case: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aos.dispatcher.registry.MAX_PENDING", 2)
    case = await open_case(*genesis_operators(), open_registration=False)
    for n in range(2):
        await case.register(OperatorPeer(f"late-{n}"))
    with refused("registration.queue_full"):
        await case.register(OperatorPeer("late-2"))
    await case.register(OperatorPeer("late-1"))  # known already


async def test_who_never_registered_cannot_be_admitted(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    with refused("registration.unknown"):
        await case.registry.admit("0x" + "11" * 20)


@pytest.mark.parametrize("epoch", [-1, 64])
async def test_a_clock_outside_the_network_s_epochs_is_the_dispatcher_s_fault(
    open_case: Open, epoch: int
) -> None:
    case = await open_case(*genesis_operators())
    case.at(epoch)
    with pytest.raises(Unavailable) as refusal:
        case.registry.epoch()
    assert refusal.value.code == "network.clock"


async def test_another_network_s_registration_is_refused(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    operator = OperatorPeer("late")
    signed = operator.registration(network="dev-other", dispatcher=DISPATCHER, time_ms=case.now)
    with refused("registration.foreign"):
        await case.registry.register(signed.to_json())


async def test_another_dispatcher_s_registration_is_refused(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    operator = OperatorPeer("late")
    signed = operator.registration(network=NETWORK, dispatcher=operator.node_id, time_ms=case.now)
    with refused("registration.foreign"):
        await case.registry.register(signed.to_json())


async def test_an_old_registration_is_refused(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    signed = case.registration(OperatorPeer("late"))
    case.now += 601_000
    with refused("registration.stale"):
        await case.registry.register(signed.to_json())


async def test_a_registration_signed_by_somebody_else_is_refused(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    statement = case.registration(OperatorPeer("late")).statement
    with refused("signature.wrong_signer"):
        await case.registry.register(sign(secret("thief"), statement).to_json())


async def test_a_key_that_the_registrant_does_not_hold_is_refused(open_case: Open) -> None:
    """Another operator's VRF key with that operator's own proof: the proof is bound to its holder's address."""
    victim, thief = genesis_operators()[0], OperatorPeer("thief")
    case = await open_case(victim)
    stolen = case.registration(victim).statement
    with refused("vrf.proof_invalid"):
        await case.registry.register(sign(thief.signer, replace(stolen, node_id=thief.node_id)).to_json())


async def test_a_vrf_key_cannot_be_registered_twice(open_case: Open) -> None:
    victim, twin = genesis_operators()[0], OperatorPeer("twin")
    case = await open_case(victim)
    twin.vrf_seed = victim.vrf_seed
    with refused("registration.key_taken"):
        await case.register(twin)


async def test_a_registered_operator_cannot_swap_its_vrf_key(open_case: Open) -> None:
    operator = genesis_operators()[0]
    case = await open_case(operator)
    operator.vrf_seed = b"\5" * 32
    with refused("registration.exists"):
        await case.register(operator)


async def test_a_proof_of_another_key_is_refused(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    operator = OperatorPeer("late")
    other = prove_possession(b"\6" * 32, network=NETWORK, address=operator.node_id)
    statement = replace(case.registration(operator).statement, possession=other)
    with refused("vrf.proof_invalid"):
        await case.registry.register(sign(operator.signer, statement).to_json())


@pytest.mark.parametrize("member", ["job_types", "models"])
async def test_a_registration_that_offers_nothing_is_refused(open_case: Open, member: str) -> None:
    case = await open_case(*genesis_operators())
    operator = OperatorPeer("late")
    statement = replace(case.registration(operator).statement, **{member: ()})
    with refused("registration.empty"):
        await case.registry.register(sign(operator.signer, statement).to_json())


# --- snapshots


async def test_every_snapshot_names_the_one_before(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    for epoch in (0, 1, 2, 7):
        case.at(epoch)
        await case.registry.in_force(epoch)
    epochs = [row["epoch"] for row in await case.pool.fetch("SELECT epoch FROM snapshot ORDER BY epoch")]
    chain = [(await case.registry.by_epoch(epoch)).signed for epoch in epochs]
    for earlier, later in pairwise(chain):
        assert later.statement.previous == earlier.hash
    assert epochs == [0, 1, 2, 3, 8]


async def test_a_draw_never_uses_a_snapshot_of_its_own_making(open_case: Open) -> None:
    """Registered in epoch 4, an operator is in no snapshot that is in force in epoch 4."""
    case = await open_case(*genesis_operators())
    case.at(4)
    before = (await case.registry.in_force(4)).root
    await case.register(OperatorPeer("late"))
    assert (await case.registry.in_force(4)).root == before


async def test_concurrent_signers_make_one_snapshot(open_case: Open) -> None:
    case = await open_case(*genesis_operators())
    case.at(5)
    others = [Registry(case.pool, case.config, case.registry.network) for _ in range(5)]
    roots = await asyncio.gather(*(registry.in_force(5) for registry in others))
    assert len({snapshot.signed.hash for snapshot in roots}) == 1
    assert await case.pool.fetchval("SELECT count(*) FROM snapshot WHERE epoch = 6") == 1


async def test_a_network_with_jobs_cannot_be_founded_anew(open_case: Open, pg_url: str) -> None:
    operators = genesis_operators()
    case = await open_case(*operators)
    await case.pool.execute(
        """INSERT INTO job (job_id, job_ref, project_id, user_id, job_type, model, model_id, request, request_hash, nonce,
                            acceptance, blind, private, created_at, max_tokens)
           VALUES ('j', '\\x01', $1, 'u', 'opml', 'm', '\\x01', '', '', '', '', false, false, now(), 1)""",
        case.founded.project,
    )
    with pytest.raises(RuleViolation) as refusal:
        await found(case.config_path, *operators)
    assert refusal.value.code == "network.founded"
