"""``aos demo-chain``: the story of a network on a chain, with the commands' own code behind every step."""

import asyncio
import functools
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aos.cli import voice
from aos.cli.logs import quiet
from aos.cli.network import ENDINGS, found, interrupt_once

if TYPE_CHECKING:
    from aos.local.network import Account

DEMO_CHAIN_EXAMPLES = "aos demo-chain"
ETHER = 10**18


def demo_chain(
    *,
    state: Annotated[
        Path | None, typer.Option("--state-dir", help="Default: a new one, removed at the end.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """A network whose registry is a contract: deploy, stake, register, run a job, leave. Needs `make chain-tools`."""
    from aos.cli.verify import render_report, stdout_colour
    from aos.local.demo_chain import Steps, run_chain_demo

    quiet()
    for number in ENDINGS:
        signal.signal(number, interrupt_once)

    def run(directory: Path) -> None:
        result = run_chain_demo(
            directory,
            found=found,
            steps=Steps(deploy=_deploy, stake=_stake, leave=_leave, status=_status),
            say=voice.say if as_json else voice.data,
            render=functools.partial(render_report, colour=not as_json and stdout_colour()),
        )
        if as_json:
            voice.data_json("demo-chain", result)

    if state is not None:
        run(state)
        return
    with tempfile.TemporaryDirectory(prefix="aos-demo-chain-") as directory:
        run(Path(directory) / "state")


def _deploy(config: Path) -> dict[str, Any]:
    from aos.dispatcher.chain_setup import deploy_contracts

    return asyncio.run(deploy_contracts(config, min_stake=ETHER, exit_delay_s=336 * 3600))


def _status(config: Path) -> dict[str, Any]:
    from aos.dispatcher.chain_setup import chain_status

    return asyncio.run(chain_status(config))


def _stake(account: "Account", rpc_url: str, registry: str, dispatcher: str) -> None:
    from aos.adapters.embedded.anvil import CHAIN_ID
    from aos.operator.chain import account as open_account

    environment = {
        "AOS_DB_PG_DB_URL": account.pg_url,
        "AOS_NET_DISPATCHER_URL": "127.0.0.1:1",
        "AOS_NODE_NODE_ID": account.node.keys.address,
        "AOS_NODE_SIGNER_KEY": f"file:{account.node.directory / 'signer.key'}",
        "AOS_NODE_VRF_KEY": f"file:{account.node.directory / 'vrf.key'}",
        "AOS_NODE_DISPATCHER_ADDRESS": dispatcher,
        "AOS_CHAIN_CHAIN_ID": str(CHAIN_ID),
        "AOS_CHAIN_CHAIN_RPC_URL": rpc_url,
        "AOS_CHAIN_VRF_RANGE_CONTRACT": registry,
    }

    async def run() -> None:
        async with open_account(None, environment=environment) as mine:
            await mine.stake_to(ETHER)

    asyncio.run(run())


def _leave(config: Path) -> None:
    from aos.operator.chain import account as open_account

    async def run() -> None:
        async with open_account(config) as mine:
            await mine.leave()

    asyncio.run(run())
