"""An operator and the court on a chain: for which court it signs, and that each receipt has one claim there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from peers.operator_under_test import eventually, rest, running, scene

from aos.adapters.keystore import new_key
from aos.core.codec import decode, encode
from aos.core.dispute.chain_claim import CourtDomain, verify_claim
from aos.core.signing import address_of
from aos.core.statements import ReceiptCore
from aos.errors import InvalidMessage, VerificationError
from aos.operator.chain_claims import claim_for
from aos.operator.config import ChainConfig
from aos.operator.identity import Identity
from aos.operator.network import Network, check_court, read_network
from aos.operator.store import Store

VECTORS = Path(__file__).resolve().parents[2] / "vectors/aos/dispute/chain_claims.json"
CLAIMS = json.loads(VECTORS.read_text("utf-8"))
COURT = CourtDomain(chain_id=31337, court="0x" + "c0" * 20)


def network_file(**chain: Any) -> dict[str, Any]:
    return {
        "network": "test",
        "dispatcher": "0x" + "11" * 20,
        "vrf_key": "A" * 43,
        "genesis": 0,
        "epoch_ms": 1_000,
        "beacon": {"anchor": "A" * 43, "length": 4},
        "chain": {"chain_id": 31337, "operator_registry": "0x" + "22" * 20} | chain,
    }


def named(**changes: Any) -> Network:
    return read_network(network_file(**({"court": COURT.court, "claim_s": 168 * 3_600} | changes)))


def configured(court: CourtDomain | None = COURT, hours: int = 169) -> ChainConfig:
    return ChainConfig(
        rpc_url="http://127.0.0.1:1",
        chain_id=31337,
        operator_registry="0x" + "22" * 20,
        max_range=10**6,
        court=court,
        claim_hours=hours,
        max_fee_gwei=1,
    )


def test_the_court_is_the_configured_one_or_there_is_no_link() -> None:
    check_court(named(), configured())
    check_court(read_network(network_file()), None)  # a registry alone asks for no claims
    check_court(read_network(network_file()), configured())
    for config, code in (
        (None, "chain.court"),
        (configured(None), "chain.court"),
        (configured(CourtDomain(chain_id=1, court=COURT.court)), "chain.court"),
        (configured(CourtDomain(chain_id=31337, court="0x" + "c1" * 20)), "chain.court"),
        (configured(hours=168), "chain.claim_hours"),
    ):
        with pytest.raises(VerificationError) as refusal:
            check_court(named(), config)
        assert refusal.value.code == code


@pytest.mark.parametrize(
    "chain",
    [
        {"court": COURT.court},
        {"court": COURT.court, "claim_s": 0},
        {"court": COURT.court, "claim_s": "1"},
        {"court": COURT.court.upper(), "claim_s": 1},
        {"court": 5, "claim_s": 1},
        {"court": COURT.court, "claim_s": 1, "chain_id": 0},
    ],
)
def test_a_court_that_is_half_named_is_no_network_file(chain: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage) as refusal:
        read_network(network_file(**chain))
    assert refusal.value.code == "network.file"


async def test_an_operator_without_a_court_does_not_connect_and_says_why(
    tmp_path: Path, pg_url: str, redis_url: str
) -> None:
    async with scene(tmp_path, pg_url, redis_url) as found:
        found.dispatcher.chain = network_file(court=COURT.court, claim_s=3_600)["chain"]
        async with running(found.path):

            async def told() -> bool:
                answer = await rest(found.content, "GET", "/api/v1/operator/status")
                return "[chain.court]" in str(answer.json()["result"]["problems"])

            assert await eventually(told)
            assert not (await found.status())["connected"]


@pytest.fixture
async def store(pg_url: str) -> AsyncIterator[Store]:
    opened = await Store.open(pg_url, min_size=1, max_size=2, connect_timeout_s=10, acquire_timeout_s=10)
    yield opened
    await opened.close()


async def kept_run(store: Store, number: int) -> bytes:
    """A run that ended long ago, with all that it was about."""
    job_ref = bytes([number]) * 32
    async with store.transaction() as db:
        await db.execute(
            """INSERT INTO draw (job_ref, attempt, call_hash, draw_call, claim, claim_hash, answer, reason)
               VALUES ($1, 1, $1, '{}', '{}', $1, 'claim', '')""",
            job_ref,
        )
        await db.execute(
            """INSERT INTO assignment (job_ref, attempt, state, job_id, role, seat, model_id, request, nonce, sampling_seed,
                                       seed_source, deadline, draw_record, draw_record_hash, commit_set, receipt, changed_at)
               VALUES ($1, 1, 'done', $2, 'executor', 0, $1, 'asked', $1, '1', 'draw', 0, '{}', $1, '{}', '{}',
                       now() - interval '1000 hours')""",
            job_ref,
            job_ref.hex(),
        )
    return job_ref


async def erased(store: Store, job_ref: bytes) -> bool:
    await store.erase_content(1)
    held = await store.assignment(job_ref, 1)
    assert held is not None
    return not held.request


async def test_a_run_is_kept_as_long_as_its_claim_can_be_challenged_or_is(store: Store) -> None:
    async def claim(job_ref: bytes, expires_in_s: int) -> None:
        async with store.transaction() as db:
            await db.execute(
                """INSERT INTO chain_claim (chain_id, court, claim, job_ref, attempt, signed_at, expires, signed)
                   VALUES (1, 'c', $1, $1, 1, 0, extract(epoch FROM now())::bigint + $2, '{}')""",
                job_ref,
                expires_in_s,
            )

    async def change(sql: str) -> None:
        async with store.transaction() as db:
            await db.execute(sql)

    plain, fresh, late, lost = [await kept_run(store, number) for number in range(1, 5)]
    await claim(fresh, 60)
    await claim(late, -60)
    await claim(lost, -31 * 86_400)
    assert await erased(store, plain)
    assert await erased(store, lost)  # no court was read for a month: there is none any more
    assert not await erased(store, fresh)
    assert not await erased(store, late)  # challenged, maybe: its last blocks were not read
    await change("INSERT INTO court_read SELECT 1, 'c', 9, extract(epoch FROM now())::bigint - 61")
    assert not await erased(store, late)
    await change(
        "INSERT INTO court_game (chain_id, court, game, claim, block) SELECT 1, 'c', claim, claim, 3 FROM chain_claim"
    )
    await change("UPDATE court_read SET time_s = time_s + 60")
    assert not await erased(store, late)  # a game runs
    await change("UPDATE court_game SET over = 'refuted'")
    assert await erased(store, late)
    assert not await erased(store, fresh)


async def test_a_receipt_has_one_claim_at_a_court_however_often_it_is_sent(store: Store) -> None:
    core = decode(ReceiptCore, CLAIMS["receipt"])
    job_ref = await kept_run(store, 1)
    async with store.transaction() as db:
        await db.execute(
            "UPDATE assignment SET receipt = $2 WHERE job_ref = $1", job_ref, json.dumps(encode(core))
        )
    held = await store.assignment(job_ref, 1)
    assert held is not None
    key = new_key()
    identity = Identity(node_id=address_of(key), signer_key=key, vrf_seed=bytes(32), vrf_key=bytes(32))
    made = [
        await claim_for(store, identity, network, held, now_s=now_s, hours=2)
        for network, now_s in ((named(), 1_000), (named(), 9_000), (named(court="0x" + "c1" * 20), 1_000))
    ]
    assert made[0] == made[1]
    assert made[0] is not None
    assert made[2] is not None
    assert (made[0].claim, made[0].domain) == (made[2].claim, COURT)  # the same claim, at two courts
    assert (made[0].claim.claimant, made[0].claim.expires) == (identity.node_id, 1_000 + 7_200)
    for claim in made:
        assert claim is not None
        assert verify_claim(claim) == identity.node_id
    assert await claim_for(store, identity, read_network(network_file()), held, now_s=1, hours=2) is None
