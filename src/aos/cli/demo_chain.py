"""``aos demo-chain``: the story of a network on a chain, with the commands' own code behind every step."""

import asyncio
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aos.cli import voice
from aos.cli.logs import quiet
from aos.cli.network import ENDINGS, found, interrupt_once
from aos.errors import RuleViolation

if TYPE_CHECKING:
    from aos.local.demo_chain import Challenger, Say
    from aos.local.network import Account, RunningNetwork

DEMO_CHAIN_EXAMPLES = "aos demo-chain"
ETHER = 10**18
GRACE_S, BUDGET_S = 60, 3_600
"""Of the play court, the least at which anybody puts down a bond. Where both sides play, nobody waits for them."""
_CONVICTED = 10
_PASSWORD = "a play account"  # noqa: S105  of a keystore that holds play money


def demo_chain(
    *,
    state: Annotated[
        Path | None, typer.Option("--state-dir", help="Default: a new one, removed at the end.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """A network with money at stake: deploy, stake, register, run jobs; one operator lies, and a stranger wins its stake at the
    court. Needs `make chain-tools`.
    """
    from aos.cli.verify import render_report, stdout_colour
    from aos.local.demo_chain import Steps, run_chain_demo

    quiet()
    for number in ENDINGS:
        signal.signal(number, interrupt_once)

    def run(directory: Path) -> None:
        result = run_chain_demo(
            directory,
            found=found,
            steps=Steps(
                deploy=_deploy,
                stake=_stake,
                status=_status,
                token=_token,
                account=_account,
                stake_of=_stake_of,
                challenge=_challenge,
                anchors=_anchors,
            ),
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
    from aos.dispatcher.chain_setup import BOND, CourtParameters, deploy_contracts

    court = CourtParameters(bond=BOND, slash=ETHER, grace_s=GRACE_S, budget_s=BUDGET_S)
    return asyncio.run(deploy_contracts(config, min_stake=ETHER, exit_delay_s=336 * 3600, court=court))


def _status(config: Path) -> dict[str, Any]:
    from aos.dispatcher.chain_setup import chain_status

    return asyncio.run(chain_status(config))


def _token(config: Path, project: str) -> str:
    from aos.dispatcher.setup import new_token

    return asyncio.run(new_token(config, project, scopes=["challenge"]))


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


def _stake_of(config: Path) -> str:
    from aos.cli.chain import ether
    from aos.operator.chain import account as open_account

    async def run() -> str:
        async with open_account(config) as mine:
            return ether((await mine.standing()).stake)

    return asyncio.run(run())


def _account(directory: Path) -> str:
    from aos.adapters.keystore import create_keystore, new_key
    from aos.core.signing import address_of

    key = new_key()
    create_keystore(directory / "signer.json", key, _PASSWORD.encode(), kind="signer")
    return address_of(key)


def _challenge(challenger: "Challenger", say: "Say") -> dict[str, Any]:
    """As the stranger types it, in a directory and a process of its own. Raises RuleViolation ``demo.chain``."""
    command = ["challenge", str(challenger.answer), "--model", str(challenger.model), "--on-chain"]
    command += ["--court", challenger.court, "--key", "signer.json"]
    say(
        f"$ {voice.program()} challenge answer.aos --model {challenger.model.name} --on-chain --key signer.json"
    )
    settings = {
        "AOS_URL": challenger.url,
        "AOS_PROJECT": challenger.project,
        "AOS_TOKEN": challenger.token,
        "AOS_CHAIN_RPC_URL": challenger.rpc_url,
        "AOS_CHALLENGER_DB_URL": challenger.database,
        "AOS_KEYSTORE_PASSWORD": _PASSWORD,
        "AOS_STATE_DIR": str(challenger.directory),
    }
    done = _run([*command, "--yes", "--json"], settings, challenger.directory, say)
    if done.returncode != _CONVICTED:
        raise RuleViolation(
            "demo.chain", f"the challenge ended with exit code {done.returncode}: {done.stdout.strip()[:500]}"
        )
    found: dict[str, Any] = json.loads(done.stdout)["result"]
    return found


def _anchors(running: "RunningNetwork", rpc_url: str, registry: str) -> str:
    settings = {"AOS_URL": running.url, "AOS_TRUST": str(running.trust_path), "AOS_CHAIN_RPC_URL": rpc_url}
    with tempfile.TemporaryDirectory(prefix="aos-demo-chain-") as directory:
        settings["AOS_STATE_DIR"] = directory
        done = _run(
            ["log", "anchors", "--once", "--registry", registry], settings, Path(directory), voice.say
        )
    if done.returncode != 0:
        raise RuleViolation("demo.chain", f"the log and its anchor do not agree: {done.stdout.strip()}")
    return done.stdout.strip()


def _run(
    command: list[str], settings: dict[str, str], directory: Path, say: "Say"
) -> subprocess.CompletedProcess[str]:
    """A command of this program with these settings alone; what it says goes to ``say`` as it comes."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("AOS_")
    } | settings
    with subprocess.Popen(
        [sys.executable, "-m", "aos.cli.main", *command],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None  # noqa: S101  both are pipes
        assert process.stdout is not None  # noqa: S101
        for line in process.stderr:
            say(line.rstrip())
        out = process.stdout.read()
    return subprocess.CompletedProcess(command, process.returncode, out, "")
