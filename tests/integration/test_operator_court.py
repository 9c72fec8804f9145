"""An operator and the court on a chain: for which court it signs, and that each receipt has one claim there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peers.operator_under_test import eventually, rest, running, scene

from aos.core.dispute.chain_claim import CourtDomain
from aos.errors import InvalidMessage, VerificationError
from aos.operator.config import ChainConfig
from aos.operator.network import Network, check_court, read_network

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
