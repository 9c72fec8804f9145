"""``aos demo-chain``: a network whose registry is a contract, on a real Ethereum node, in one sitting.

Starts the node (foundry's anvil, play money), deploys, lets three operators stake and get their ranges, runs a job whose draw uses
the ranges that the chain gives, lets one operator leave, and shows what every transaction cost. It prints only what happened.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aos.adapters.chain.contracts import contract
from aos.adapters.embedded.anvil import CHAIN_ID, EmbeddedAnvil
from aos.client import Submission
from aos.core.receipt import verify_answer
from aos.core.report import Report
from aos.core.trust import load_policy, read_trust
from aos.errors import RuleViolation
from aos.local.network import Account, Chain, Found, LocalNetwork, RunningNetwork

PROMPT = "What is AI?"
OPERATORS = 3
ETHER = 10**18
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What the operator's and the dispatcher's own commands do, which this app may not import."""

    deploy: Callable[[Path], dict[str, Any]]
    """``aos chain deploy`` with a dispatcher's configuration."""
    stake: Callable[[Account, str, str, str], None]
    """``aos operator stake``: account, node's URL, registry, dispatcher's address."""
    leave: Callable[[Path], None]
    """``aos operator exit`` with an operator's configuration."""
    status: Callable[[Path], dict[str, Any]]
    """``aos chain status`` with a dispatcher's configuration."""


def run_chain_demo(
    state_dir: Path, *, found: Found, steps: Steps, say: Say, render: Callable[[Report], str]
) -> dict[str, Any]:
    """Run the story in ``state_dir``; returns what came out, for ``--json``.

    Raises RuleViolation ``demo.job``, ``demo.chain``; ConfigError ``embedded.not_installed``; what a network raises.
    """
    begun = time.monotonic()
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    say("AOS on a chain: stakes and ranges are a contract's, on a real Ethereum node of this machine.")
    say("The ether is play money.\n")
    anvil = EmbeddedAnvil(state_dir, block_s=1)
    url = anvil.start()
    try:
        say(f"── an Ethereum node at {url}, a block every second, final two blocks later\n")
        registry: list[str] = []

        def prepare(config: Path, accounts: Sequence[Account]) -> str:
            registry.append(_prepare(url, config, accounts, steps, say))
            return registry[-1]

        network = LocalNetwork(
            state_dir / "network",
            found=found,
            opml_operators=OPERATORS,
            tee_operators=0,
            say=say,
            chain=Chain(rpc_url=url, chain_id=CHAIN_ID, prepare=prepare),
        )
        with network.running() as running:
            config = state_dir / "network/dispatcher/config-dispatcher.yaml"
            say("\n── the registry, read from the chain\n")
            before = _show(steps.status(config), say)
            report = _ask(running, say, render)
            leaver = state_dir / "network/operator-3/config-operator.yaml"
            say("\n── operator-3 leaves\n")
            steps.leave(leaver)
            after = _until_fewer(steps, config, len(before))
            _show(after, say)
            say("\n  its stake stays for the exit delay; it is in no snapshot from the next epoch on")
        gas = _gas(url)
        say("\n── what it cost\n")
        for line in gas:
            say(f"  {line['what']:<32} {line['gas']:>9,} gas")
    finally:
        anvil.stop()
    seconds = time.monotonic() - begun
    say(f"\ndone in {seconds:.1f} s; network and node are stopped.")
    return {
        "seconds": round(seconds, 1),
        "operator_registry": registry[-1],
        "verdict": report.verdict,
        "operators": before,
        "gas": gas,
    }


def _prepare(url: str, config: Path, accounts: Sequence[Account], steps: Steps, say: Say) -> str:
    from aos.local.layout import Layout

    owner = Layout(config.parent.parent).dispatcher_keys().address
    for address in (owner, *(account.node.keys.address for account in accounts)):
        _ask_node(url, "anvil_setBalance", address, hex(100 * ETHER))
    deployed = steps.deploy(config)
    registry = str(deployed["operator_registry"])
    say(f"  deployed: OperatorRegistry {registry}\n            ModelRegistry    {deployed['model_registry']}")
    for account in accounts:
        steps.stake(account, url, registry, owner)
        say(f"  {account.node.name} {account.node.keys.address} has staked 1 ether")
    _wait_final(url)
    return registry


def _wait_final(url: str) -> None:
    """Until everything mined so far is final."""
    head = int(_ask_node(url, "eth_blockNumber"), 16)
    while int(_ask_node(url, "eth_getBlockByNumber", "finalized", False)["number"], 16) < head:
        time.sleep(0.2)


def _show(status: dict[str, Any], say: Say) -> list[dict[str, Any]]:
    operators: list[dict[str, Any]] = status["operators"]
    say(f"  final block {status['final']}, {len(operators)} operators")
    for op in operators:
        say(f"  {op['node_id']}  [{op['start']:>6}, {op['end']:>6})  {op['stake_ether']} ether")
    return operators


def _until_fewer(steps: Steps, config: Path, count: int) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while len((status := steps.status(config))["operators"]) >= count:
        if time.monotonic() > deadline:
            raise RuleViolation("demo.chain", "the operator that left is still in the registry")
        time.sleep(0.5)
    return status


def _ask(running: RunningNetwork, say: Say, render: Callable[[Report], str]) -> Report:
    say(f'\n── a job: "{PROMPT}", drawn with these ranges\n')
    submission = Submission(
        prompt=PROMPT,
        model=running.model_name,
        job_type="opml",
        user="demo",
        params={"temperature": 1.0, "top_p": 0.5, "max_tokens": 128},
        min_operators=OPERATORS,
    )
    with running.client() as client:
        accepted = client.submit(submission)
        status = "created"
        for event in client.events(accepted.job_id):
            if event.kind != "text":
                status = str(event.data.get("status", status))
        if status != "verified":
            raise RuleViolation("demo.job", f"the job ended {status}")
        answer = client.answer(accepted.job_id)
    trust = read_trust(running.trust_path.read_bytes())
    report = verify_answer(answer, trust=trust, policy=load_policy(trust.policy))
    say(render(report))
    return report


def _gas(url: str) -> list[dict[str, Any]]:
    """Every transaction of the node's chain, in order."""
    registry = contract("OperatorRegistry")
    names = {
        registry.selector(item["name"]): item["name"] for item in registry.abi if item["type"] == "function"
    }
    creations = {name: contract(name).bytecode for name in ("OperatorRegistry", "ModelRegistry")}
    found: list[dict[str, Any]] = []
    for number in range(int(_ask_node(url, "eth_blockNumber"), 16) + 1):
        for transaction in _ask_node(url, "eth_getBlockByNumber", hex(number), True)["transactions"]:
            data = bytes.fromhex(transaction["input"][2:])
            what = names.get(data[:4], "?")
            if transaction["to"] is None:
                what = "deploy " + next(n for n, code in creations.items() if data.startswith(code))
            receipt = _ask_node(url, "eth_getTransactionReceipt", transaction["hash"])
            found.append({"what": what, "from": transaction["from"], "gas": int(receipt["gasUsed"], 16)})
    return found


def _ask_node(url: str, method: str, *params: Any) -> Any:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310  our own node
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.loads(answer.read())["result"]
