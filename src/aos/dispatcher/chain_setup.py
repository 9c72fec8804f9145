"""Deploying the contracts and looking at them: what ``aos chain`` calls."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aos.adapters.chain.anchors import RegistryName
from aos.adapters.chain.contracts import contract
from aos.adapters.chain.journal import Journal
from aos.adapters.chain.node import ChainNode
from aos.adapters.chain.registry import SQL, OperatorContract
from aos.adapters.postgres import connect_pool, create_database, migrate
from aos.dispatcher.chain import ether
from aos.dispatcher.config import Chain, DispatcherConfig, load_config
from aos.errors import ConfigError, RuleViolation

FINAL_S = 1_800.0


async def deploy_contracts(
    path: Path, *, min_stake: int, exit_delay_s: int, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Deploy OperatorRegistry and ModelRegistry with the dispatcher's key; wait until both are final.

    Raises ConfigError ``chain.none``, ``config.*``; RuleViolation ``chain.failed``, ``chain.not_final``; VerificationError,
    InvalidMessage, Unavailable ``chain.*``.
    """
    config, chain = _configured(path)
    await create_database(config.pg_url)
    pool = await connect_pool(config.pg_url, max_size=3)
    node = ChainNode(chain.rpc_url, chain_id=chain.chain_id)
    try:
        await migrate(pool, SQL)
        journal = Journal(pool, node, config.keys.signer, max_fee_gwei=chain.max_fee_gwei)
        registry, models = contract("OperatorRegistry"), contract("ModelRegistry")
        parameters = (config.max_range, min_stake, exit_delay_s)
        wanted = {
            "operator_registry": (
                f"deploy OperatorRegistry {' '.join(map(str, parameters))}",
                registry.creation(*parameters),
            ),
            "model_registry": ("deploy ModelRegistry", models.creation()),
        }
        for purpose, data in wanted.values():
            await journal.want(purpose, to=None, data=data)
        deadline = time.monotonic() + FINAL_S
        while await journal.step():
            if time.monotonic() > deadline:
                raise RuleViolation(
                    "chain.not_final",
                    f"sent, and not final after {FINAL_S / 60:.0f} minutes",
                    hint="nothing is lost: run the command again, it goes on with the same transactions",
                )
            say("waiting until the contracts are final")
            await asyncio.sleep(2)
        done: dict[str, Any] = {"chain_id": chain.chain_id, "owner": config.keys.address}
        for name, (purpose, _) in wanted.items():
            entry = await journal.entry(purpose)
            if entry is None or entry.state != "done" or entry.created is None:
                raise RuleViolation("chain.failed", f"{purpose}: {'' if entry is None else entry.error}")
            done[name] = entry.created
        return done
    finally:
        await node.close()
        await pool.close()


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
