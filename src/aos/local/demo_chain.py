"""``aos demo-chain``: a network with money at stake, on a real Ethereum node, in one sitting.

Deploys, lets three operators stake and get their ranges, runs jobs, lets one operator lie, lets a stranger win its stake with what
is public, and shows that the liar is out and what every transaction cost. It prints only what happened.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from aos.adapters.embedded.anvil import CHAIN_ID, EmbeddedAnvil
from aos.client import Submission
from aos.core.answer import read_answer
from aos.core.receipt import verify_answer
from aos.core.report import Report
from aos.core.trust import load_policy, read_trust
from aos.errors import RuleViolation
from aos.local.chain_gas import ETHER, PlayChain, Spent
from aos.local.layout import Layout
from aos.local.network import DEMO_MODEL, Account, Chain, Contracts, Found, LocalNetwork, RunningNetwork

PROMPT = "What is AI?"
PARAMS = {"temperature": 1.0, "top_p": 0.5, "max_tokens": 24}
OPERATORS = 3
LIAR = "operator-2"
LIE = "weight"
"""One bit of one weight is another: the answer reads well, and is not the model's."""
EPOCH_MS = 15_000
ANCHOR_S = 10
PATIENCE_S = 120.0
MOST_JOBS = 40
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenger:
    """A stranger with an answer file, the model, a token that may only challenge, and an account on the chain."""

    directory: Path
    answer: Path
    model: Path
    url: str
    project: str
    token: str
    database: str
    rpc_url: str
    court: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What other parts' own commands do, which this app may not import."""

    deploy: Callable[[Path], dict[str, Any]]
    """``aos chain deploy`` with a dispatcher's configuration."""
    stake: Callable[[Account, str, str, str], None]
    """``aos operator stake``: account, node's URL, registry, dispatcher's address."""
    status: Callable[[Path], dict[str, Any]]
    """``aos chain status`` with a dispatcher's configuration."""
    token: Callable[[Path, str], str]
    """``aos project token --scope challenge`` with a dispatcher's configuration and a project."""
    account: Callable[[Path], str]
    """``aos keys new`` in a directory: the account's address."""
    stake_of: Callable[[Path], str]
    """``aos operator stake`` with an operator's configuration: the ether that it has staked."""
    challenge: Callable[[Challenger, Say], dict[str, Any]]
    """``aos challenge --on-chain``, its progress told line by line: what its ``--json`` says."""
    anchors: Callable[[RunningNetwork, str, str], str]
    """``aos log anchors --once``: node's URL and the registry's name; what it prints."""


def run_chain_demo(
    state_dir: Path, *, found: Found, steps: Steps, say: Say, render: Callable[[Report], str]
) -> dict[str, Any]:
    """Run the story in ``state_dir``; returns what came out, for ``--json``.

    Raises RuleViolation ``demo.job``, ``demo.chain``; ConfigError ``embedded.not_installed``; what a network raises.
    """
    begun = time.monotonic()
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    say(
        "AOS on a chain: stakes, ranges and the court are contracts, on a real Ethereum node of this machine."
    )
    say("The ether is play money.\n")
    anvil = EmbeddedAnvil(state_dir, block_s=1)
    chain = PlayChain(anvil.start())
    try:
        say(f"── an Ethereum node at {chain.url}, a block every second, final two blocks later\n")
        story = _Story(state_dir, chain, found=found, steps=steps, say=say, render=render)
        told = story.tell()
        spent = chain.spent()
    finally:
        anvil.stop()
    _show_gas(spent, story.names, say)
    seconds = time.monotonic() - begun
    say(f"\ndone in {seconds:.1f} s; network and node are stopped.")
    gas = [asdict(each) | {"who": story.names.get(each.sender, "?")} for each in spent]
    return {"seconds": round(seconds, 1), **told, "gas": gas}


class _Story:
    def __init__(
        self,
        state_dir: Path,
        chain: PlayChain,
        *,
        found: Found,
        steps: Steps,
        say: Say,
        render: Callable[[Report], str],
    ) -> None:
        self._root, self._chain, self._found = state_dir, chain, found
        self._steps, self._say, self._render = steps, say, render
        self._layout = Layout((state_dir / "network").resolve())
        self._config = self._layout.dispatcher_dir / "config-dispatcher.yaml"
        self._lie = state_dir / "lie"
        self.names: dict[str, str] = {}
        """Who is who, by address."""

    def tell(self) -> dict[str, Any]:
        self._lie.write_text("honest")
        network = LocalNetwork(
            self._layout.root,
            found=self._found,
            opml_operators=OPERATORS,
            tee_operators=0,
            say=self._say,
            chain=Chain(
                rpc_url=self._chain.url,
                chain_id=CHAIN_ID,
                prepare=self._prepare,
                settings={"anchor_s": ANCHOR_S},
            ),
            lies={LIAR: self._lie},
            epoch_ms=EPOCH_MS,
        )
        with network.running() as running:
            self._say("\n── the registry, read from the chain\n")
            before = self._registry()
            honest = self._honest(running)
            answer = self._lied(running)
            won = self._challenge(running, answer)
            after = self._aftermath(running, before)
            anchored = self._anchored(running)
        return {
            "operators": before["operators"],
            "operators_after": after["operators"],
            "verdict": honest.verdict,
            "liar": self._address(LIAR),
            "burnt_ether": after["burnt_ether"],
            "challenge": won,
            "anchored": anchored,
        }

    # --- deploy and stake

    def _prepare(self, config: Path, accounts: Sequence[Account]) -> Contracts:
        owner = self._layout.dispatcher_keys().address
        self.names |= {owner: "dispatcher"} | {a.node.keys.address: a.node.name for a in accounts}
        for address in self.names:
            self._chain.fund(address, 100)
        deployed = self._steps.deploy(config)
        registry, court = str(deployed["operator_registry"]), str(deployed["court"])
        for label, address in (
            ("OperatorRegistry", registry),
            ("ModelRegistry", deployed["model_registry"]),
            ("Court", court),
        ):
            self._say(f"  {label:<17} {address}")
        for account in accounts:
            self._steps.stake(account, self._chain.url, registry, owner)
            self._say(f"  {account.node.name} {account.node.keys.address} has staked 1 ether")
        self._chain.wait_final()
        return Contracts(operator_registry=registry, court=court)

    def _registry(self) -> dict[str, Any]:
        status = self._steps.status(self._config)
        self._say(f"  final block {status['final']}, {len(status['operators'])} operators")
        for op in status["operators"]:
            name = self.names[op["node_id"]]
            self._say(f"  {name}  [{op['start']:>6}, {op['end']:>6})  {op['stake_ether']} ether")
        return status

    def _address(self, name: str) -> str:
        return next(address for address, known in self.names.items() if known == name)

    # --- jobs

    def _honest(self, running: RunningNetwork) -> Report:
        self._say(f'\n── a job for all of them: "{PROMPT}"\n')
        report = self._checked(running, self._ask(running, OPERATORS))
        self._say(self._render(report))
        return report

    def _lied(self, running: RunningNetwork) -> Path:
        """An answer of the liar alone, kept in a file."""
        self._say(f"\n── {LIAR} computes with one bit of one weight changed, and is asked alone\n")
        self._lie.write_text(LIE)
        data, count = self._answered_by(running, self._address(LIAR))
        self._lie.write_text("honest")
        self._say(f"  drawn in job {count}. Its receipt, to whoever does not compute the answer again:")
        self._say(f"  {self._checked(running, data).headline}")
        path = self._root / "answer.aos"
        path.write_bytes(data)
        return path

    def _answered_by(self, running: RunningNetwork, operator: str) -> tuple[bytes, int]:
        """Ask one operator until the draw gives it to this one: the answer, and how often."""
        for count in range(1, MOST_JOBS + 1):
            data = self._ask(running, 1)
            if read_answer(data).receipt.core.operator == operator:
                return data, count
        raise RuleViolation("demo.job", f"{self.names[operator]} was drawn for none of {MOST_JOBS} jobs")

    def _ask(self, running: RunningNetwork, operators: int) -> bytes:
        submission = Submission(
            prompt=PROMPT,
            model=running.model_name,
            job_type="opml",
            user="demo",
            params=PARAMS,
            min_operators=operators,
        )
        with running.client() as client:
            accepted = client.submit(submission)
            status = "created"
            for event in client.events(accepted.job_id):
                if event.kind != "text":
                    status = str(event.data.get("status", status))
            if status != "verified":
                raise RuleViolation("demo.job", f"the job ended {status}")
            return client.answer(accepted.job_id)

    def _checked(self, running: RunningNetwork, data: bytes) -> Report:
        trust = read_trust(running.trust_path.read_bytes())
        return verify_answer(data, trust=trust, policy=load_policy(trust.policy))

    # --- the court

    def _challenge(self, running: RunningNetwork, answer: Path) -> dict[str, Any]:
        self._say("\n── a stranger computes it again, and takes the claim to the court\n")
        directory = self._root / "challenger"
        directory.mkdir(mode=0o700)
        address = self._steps.account(directory)
        self.names[address] = "challenger"
        self._chain.fund(address, 10)
        before = self._chain.balance(address)
        challenger = Challenger(
            directory=directory,
            answer=answer.resolve(),
            model=DEMO_MODEL.resolve(),
            url=running.url,
            project=running.project,
            token=self._steps.token(self._config, running.project),
            database=running.postgres.create_database("challenger"),
            rpc_url=self._chain.url,
            court=str(self._steps.status(self._config)["court"]["address"]),
        )
        won = self._steps.challenge(challenger, lambda line: self._say(f"  {line}"))
        gained = self._chain.balance(address) - before
        self._say(f"\n  {won['state']}: position {won['position']}, unit {won['unit']} [{won['code']}]")
        self._say(f"  the challenger's account: {gained / ETHER:+.4f} ether, bond back and gas paid")
        return won | {"address": address, "gained_wei": gained}

    # --- and then

    def _aftermath(self, running: RunningNetwork, before: Mapping[str, Any]) -> dict[str, Any]:
        self._say("\n── the registry now\n")
        self._until(
            lambda: len(self._steps.status(self._config)["operators"]) < len(before["operators"]),
            "the liar leaves the registry",
        )
        after, liar = self._registry(), self._address(LIAR)
        left = self._steps.stake_of(self._layout.root / LIAR / "config-operator.yaml")
        self._say(f"  {LIAR}  no range, {left} ether; {after['burnt_ether']} ether are burnt")
        self._until(lambda: liar not in self._snapshot(running), "a snapshot without the liar is in force")
        self._say("\n── a job with the ranges that are now in force\n")
        data = self._ask(running, OPERATORS - 1)
        drawn = {entry.operator.node_id for entry in read_answer(data).draw.entries}
        if liar in drawn:
            raise RuleViolation("demo.chain", "the liar is still in the draw")
        self._say(f"  in the draw: {', '.join(sorted(self.names[node_id] for node_id in drawn))}")
        self._say(f"  {self._checked(running, data).headline}")
        return after

    def _snapshot(self, running: RunningNetwork) -> set[str]:
        found = (
            httpx.get(f"{running.url}/v1/aos/registry", timeout=30, trust_env=False).raise_for_status().json()
        )
        return {str(entry["node_id"]) for entry in found["entries"]}

    def _anchored(self, running: RunningNetwork) -> str:
        self._say("\n── the dispatcher's log beside what it wrote on the chain\n")
        self._until(
            lambda: self._steps.status(self._config)["anchored_leaves"] > 0,
            "the log is anchored in a final block",
        )
        name = str(self._steps.status(self._config)["registry_name"])
        said = self._steps.anchors(running, self._chain.url, name)
        self._say(f"  {said}")
        return said

    def _until(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not ready():
            if time.monotonic() > deadline:
                raise RuleViolation("demo.chain", f"waited {PATIENCE_S:.0f} s in vain: {what}")
            time.sleep(0.5)


def _show_gas(spent: Sequence[Spent], names: Mapping[str, str], say: Say) -> None:
    say("\n── what it cost\n")
    for each in spent:
        failed = "" if each.succeeded else "  (refused)"
        say(f"  {names.get(each.sender, '?'):<11} {each.what:<34} {each.gas:>10,} gas{failed}")
    say(f"  {'':<11} {'in all':<34} {sum(each.gas for each in spent):>10,} gas")
