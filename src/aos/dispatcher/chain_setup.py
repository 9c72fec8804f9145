"""Deploying the contracts and looking at them: what ``aos chain`` calls."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aos.adapters.chain.anchors import RegistryName
from aos.adapters.chain.contracts import contract
from aos.adapters.chain.court import STEP_NAMES, CourtContract
from aos.adapters.chain.journal import Journal
from aos.adapters.chain.node import Block, ChainNode
from aos.adapters.chain.registry import REGISTRY, SQL, OperatorContract
from aos.adapters.postgres import connect_pool, create_database, migrate
from aos.dispatcher.chain import ether
from aos.dispatcher.config import Chain, DispatcherConfig, load_config
from aos.errors import ConfigError, RuleViolation, VerificationError

FINAL_S = 1_800.0
MOST_MOVES = 18
"""Of a game at a court (docs/spec/16-chain-disputes.md, "Money and time")."""
NOBODY = "0x" + "0" * 40
ETHER = 10**18
BOND, GRACE_S, BUDGET_S = ETHER // 20, 600, 86_400
"""Of a court, unasked. The bond is about what its refutation costs the claimant at 50 gwei a unit of gas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CourtParameters:
    """What a court is deployed with: ``bond`` of a challenge and ``slash`` of a convicted claim in wei; ``grace_s`` of each move
    that count for nobody, and ``budget_s`` that each party has for all of its moves beyond."""

    bond: int
    slash: int
    grace_s: int
    budget_s: int

    @property
    def game_s(self) -> int:
        """How long a game can last."""
        return 2 * self.budget_s + (MOST_MOVES - 1) * self.grace_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A transaction of a deployment; ``to`` None deploys."""

    purpose: str
    data: bytes
    to: str | None = None


async def deploy_contracts(
    path: Path,
    *,
    min_stake: int,
    exit_delay_s: int,
    court: CourtParameters | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Deploy OperatorRegistry, ModelRegistry and a Court with its rules with the dispatcher's key, and name the court to the
    registry; wait until all of it is final. ``court`` None: the parameters that `aos chain deploy` has unasked.

    Raises ConfigError ``chain.none``, ``chain.exit_delay``, ``config.*``; RuleViolation ``chain.failed``, ``chain.not_final``,
    ``chain.court_set``; VerificationError, InvalidMessage, Unavailable ``chain.*``.
    """
    config, chain = _configured(path)
    court = court or CourtParameters(bond=BOND, slash=min_stake, grace_s=GRACE_S, budget_s=BUDGET_S)
    if exit_delay_s <= max(court.game_s, chain.claim_s):
        raise ConfigError(
            "chain.exit_delay",
            f"a stake that can be taken out after {exit_delay_s} s answers for no claim: claims are valid for"
            f" {chain.claim_s} s (claim_hours), and a game can last {court.game_s} s",
            field="--exit-delay-hours",
            hint="it must be longer than claims are valid and a game lasts",
        )
    await create_database(config.pg_url)
    pool = await connect_pool(config.pg_url, max_size=3)
    node = ChainNode(chain.rpc_url, chain_id=chain.chain_id)
    try:
        await migrate(pool, SQL)
        journal = Journal(pool, node, config.keys.signer, max_fee_gwei=chain.max_fee_gwei)
        return await _Deployment(node, journal, say).run(config.max_range, min_stake, exit_delay_s, court)
    finally:
        await node.close()
        await pool.close()


class _Deployment:
    """Step after step. A contract's address is that of the account's count of transactions, which its journal keeps: so what is
    mined may be named to the next, and nothing else waits for finality.
    """

    def __init__(self, node: ChainNode, journal: Journal, say: Callable[[str], None]) -> None:
        self._node, self._journal, self._say = node, journal, say
        self._deadline = time.monotonic() + FINAL_S

    async def run(
        self, max_range: int, min_stake: int, exit_delay_s: int, court: CourtParameters
    ) -> dict[str, Any]:
        """The addresses, once all of it is final."""
        parameters = (max_range, min_stake, exit_delay_s)
        registry, models, *steps = await self._deploy(
            _creation("OperatorRegistry", *parameters),
            _creation("ModelRegistry"),
            *(_creation(name) for name in STEP_NAMES),
        )
        (bounds,) = await self._deploy(_creation("UnitBounds", models))
        asked = (registry, bounds, steps, court.bond, court.slash, court.grace_s, court.budget_s)
        wanted = _creation("Court", *asked)
        await self._check_free(registry, wanted)
        (address,) = await self._deploy(wanted)
        await self._do(
            _Call(purpose=f"name the court {address}", data=REGISTRY.call("setCourt", address), to=registry)
        )
        await self._until_final()
        return {
            "chain_id": self._node.chain_id,
            "owner": self._journal.sender,
            "operator_registry": registry,
            "model_registry": models,
            "court": address,
            "unit_bounds": bounds,
            "steps": steps,
        }

    async def _check_free(self, registry: str, wanted: _Call) -> None:
        """A registry has one court, for ever."""
        named = await court_of(self._node, registry)
        entry = await self._journal.entry(wanted.purpose)
        if named is not None and entry is None:
            raise RuleViolation(
                "chain.court_set",
                f"the registry's court is {named}, which was deployed with other parameters, and can never be another",
                hint="leave the parameters as they were, or deploy another registry (other --min-stake or --exit-delay-hours)",
            )

    async def _deploy(self, *calls: _Call) -> list[str]:
        for call in calls:
            await self._journal.want(call.purpose, to=None, data=call.data)
        return [str(await self._mined(call.purpose)) for call in calls]

    async def _do(self, call: _Call) -> None:
        await self._journal.want(call.purpose, to=call.to, data=call.data)
        await self._mined(call.purpose)

    async def _mined(self, purpose: str) -> str | None:
        """The address that was created."""
        while True:
            await self._journal.step(REGISTRY)
            entry = await self._journal.entry(purpose)
            if entry is None or entry.state == "failed":
                raise RuleViolation("chain.failed", f"{purpose}: {'' if entry is None else entry.error}")
            if entry.state == "done":
                return entry.created
            receipt = None if entry.hash is None else await self._node.receipt(entry.hash)
            if receipt is not None and receipt.succeeded:
                return receipt.created
            await self._wait(f"waiting for a block: {purpose.split(' 0x', maxsplit=1)[0]}")

    async def _until_final(self) -> None:
        while await self._journal.step(REGISTRY):
            await self._wait("waiting until the contracts are final")

    async def _wait(self, what: str) -> None:
        if time.monotonic() > self._deadline:
            raise RuleViolation(
                "chain.not_final",
                f"sent, and not final after {FINAL_S / 60:.0f} minutes",
                hint="nothing is lost: run the command again, it goes on with the same transactions",
            )
        self._say(what)
        await asyncio.sleep(1)


def _creation(name: str, *parameters: object) -> _Call:
    words = (" ".join(each) if isinstance(each, list) else str(each) for each in parameters)
    return _Call(purpose=" ".join(("deploy", name, *words)), data=contract(name).creation(*parameters))


async def court_of(node: ChainNode, registry: str) -> str | None:
    """The court that a registry names in the newest block."""
    block = await node.block("latest")
    (data,) = await node.calls(registry, [REGISTRY.call("court")], block=block)
    named = str(REGISTRY.answer("court", data)).lower()
    return None if named == NOBODY else named


async def chain_status(path: Path) -> dict[str, Any]:
    """Node, contract, operators and open transactions. Raises as ``deploy_contracts``."""
    config, chain = _configured(path)
    pool = await connect_pool(config.pg_url, max_size=3)
    node = ChainNode(chain.rpc_url, chain_id=chain.chain_id)
    try:
        await migrate(pool, SQL)
        if not chain.operator_registry:
            raise ConfigError(
                "chain.none",
                "the configuration names no OperatorRegistry",
                field="chain.operator_registry",
                hint="`aos chain deploy` deploys one and prints its address",
            )
        operators = OperatorContract(
            node, pool, chain.operator_registry, max_range=config.max_range, owner=config.keys.address
        )
        view = await operators.view()
        anchor = await operators.last_anchor()
        head = await node.block("latest")
        journal = Journal(pool, node, config.keys.signer)
        court = await court_of(node, operators.address)
        return {
            "node": node.name,
            "chain_id": chain.chain_id,
            "head": head.number,
            "final": view.number,
            "final_at": _time(view.time),
            "operator_registry": operators.address,
            "registry_name": str(RegistryName(chain_id=chain.chain_id, address=operators.address)),
            "anchored_leaves": 0 if anchor is None else anchor.size,
            "anchored_root": None if anchor is None else anchor.root.hex(),
            "owner": config.keys.address,
            "owner_ether": ether(await node.balance(config.keys.address)),
            "max_range": config.max_range,
            "min_stake_ether": ether(operators.min_stake),
            "exit_delay_hours": operators.exit_delay_s / 3600,
            "burnt_ether": ether(await operators.burnt()),
            "court": None
            if court is None
            else await _court_facts(CourtContract(node, court), operators.address, head),
            "operators": [
                {
                    "node_id": op.node_id,
                    "start": op.start,
                    "end": op.end,
                    "stake_ether": ether(op.stake),
                    "games": op.games,
                    "exit_at": _time(op.exit_at) if op.exit_at else None,
                }
                for op in view.operators.values()
            ],
            "transactions": [f"{entry.purpose} ({entry.state})" for entry in await journal.open()],
        }
    finally:
        await node.close()
        await pool.close()


async def _court_facts(court: CourtContract, registry: str, head: Block) -> dict[str, Any]:
    facts = await court.facts(head)
    if facts.registry != registry:
        raise VerificationError(
            "chain.foreign", f"the court {court.address} takes stakes of the registry {facts.registry}"
        )
    return {
        "address": court.address,
        "model_registry": facts.models,
        "bond_ether": ether(facts.bond),
        "slash_ether": ether(facts.slash),
        "grace_s": facts.grace_s,
        "budget_s": facts.budget_s,
    }


def _configured(path: Path) -> tuple[DispatcherConfig, Chain]:
    config = load_config(path)
    if config.chain is None:
        raise ConfigError(
            "chain.none",
            "the dispatcher's configuration names no chain",
            field="chain",
            hint="set chain.rpc_url and chain.chain_id (docs/chain.md)",
        )
    return config, config.chain


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
