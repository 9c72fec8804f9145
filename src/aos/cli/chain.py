"""``aos chain`` and the operator's part of it: deploying the contracts, stakes, looking at both."""

import asyncio
import re
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aos.cli import voice
from aos.cli.help import Command, Group
from aos.cli.logs import quiet
from aos.cli.nodes import operator_app
from aos.errors import ConfigError, InvalidMessage

if TYPE_CHECKING:
    from aos.operator.chain import Standing

ETHER = 10**18
_AMOUNT = re.compile(r"(0|[1-9][0-9]{0,8})(\.[0-9]{1,18})?\Z")

chain_app = typer.Typer(
    help="Contracts on a chain: deploy them, look at them.",
    cls=Group,
    epilog="""aos chain deploy -c config-dispatcher.yaml
aos chain status -c config-dispatcher.yaml""",
    no_args_is_help=True,
)

DispatcherConfig = Annotated[Path, typer.Option("-c", "--config", help="The dispatcher's YAML file.")]
OperatorConfig = Annotated[Path, typer.Option("-c", "--config", help="The operator's YAML file.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Machine-readable output; asks nothing, so needs --yes.")
]


@chain_app.command(
    "deploy",
    cls=Command,
    short_help="Deploy the registries of operators and models, and the court.",
    epilog="""aos chain deploy -c config-dispatcher.yaml --min-stake 1 --exit-delay-hours 336
aos chain deploy -c config-dispatcher.yaml --bond 0.05 --slash 1 --grace-minutes 10 --budget-hours 24
aos chain deploy -c config-dispatcher.yaml --yes --json""",
)
def deploy(
    *,
    config: DispatcherConfig,
    min_stake: Annotated[str, typer.Option(metavar="ETHER", help="What an operator must stake.")] = "1",
    exit_delay_hours: Annotated[
        int, typer.Option(min=1, max=8760, help="How long a stake stays after an operator asked to leave.")
    ] = 336,
    bond: Annotated[
        str,
        typer.Option(metavar="ETHER", help="What a challenge at the court puts down; lost if it is refuted."),
    ] = "0.05",
    slash: Annotated[
        str, typer.Option(metavar="ETHER", help="What a convicted claim costs; default: the minimal stake.")
    ] = "",
    grace_minutes: Annotated[
        int, typer.Option(min=1, max=10_080, help="How much of each move's time counts for nobody.")
    ] = 10,
    budget_hours: Annotated[
        int, typer.Option(min=1, max=8760, help="What each party has beyond, for all of its moves in a game.")
    ] = 24,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Deploy OperatorRegistry, ModelRegistry and Court with the dispatcher's key, which will own the first.

    The court is named to the registry, for ever: it alone can take a stake, and its parameters cannot be changed. Whoever is
    to move and is silent for a move's grace and the rest of its budget has lost. The exit delay must be longer than claims are
    valid and a game can last: twice the budget and 17 times the grace.

    Recorded in the dispatcher's database before it is sent: run again after an interruption, it goes on, and it never deploys
    twice with the same parameters. About 34 million gas in eleven transactions.
    """
    from aos.dispatcher.chain_setup import CourtParameters, deploy_contracts

    stake = wei(min_stake)
    court = CourtParameters(
        bond=wei(bond),
        slash=wei(slash) if slash else stake,
        grace_s=grace_minutes * 60,
        budget_s=budget_hours * 3600,
    )
    quiet()
    confirm(
        f"deploy registries and court with the dispatcher's key (minimal stake {min_stake} ether, a lie costs"
        f" {ether(court.slash)})?",
        yes=yes,
        as_json=as_json,
    )
    done = asyncio.run(
        deploy_contracts(
            config, min_stake=stake, exit_delay_s=exit_delay_hours * 3600, court=court, say=voice.say
        )
    )
    if as_json:
        voice.data_json("chain.deploy", done)
        return
    for name, value in done.items():
        for each in value if isinstance(value, list) else [value]:
            voice.data(f"{name:<18} {each}")
    voice.say(
        f'Put it into the dispatcher\'s configuration: chain.operator_registry: "{done["operator_registry"]}"'
        f' and chain.court: "{done["court"]}"'
    )


@chain_app.command(
    "status",
    cls=Command,
    short_help="The node, the contracts, the operators, what is under way.",
    epilog="aos chain status -c config-dispatcher.yaml --json",
)
def status(*, config: DispatcherConfig, as_json: AsJson = False) -> None:
    """Read the chain as the dispatcher does: the newest final block, and what the registry holds in it."""
    from aos.dispatcher.chain_setup import chain_status

    quiet()
    found = asyncio.run(chain_status(config))
    if as_json:
        voice.data_json("chain.status", found)
        return
    operators = found.pop("operators")
    court = found.pop("court") or {"address": "none: claims are not disputable on this chain"}
    transactions = found.pop("transactions")
    for name, value in found.items():
        voice.data(f"{name:<18} {_word(value)}")
    for name, value in court.items():
        voice.data(f"{'court' if name == 'address' else '  ' + name:<18} {value}")
    for op in operators:
        state = f"leaving, {op['exit_at']}" if op["exit_at"] else f"[{op['start']}, {op['end']})"
        voice.data(f"operator           {op['node_id']}  {state}  {op['stake_ether']} ether")
    for transaction in transactions:
        voice.data(f"under way          {transaction}")


@operator_app.command(
    "stake",
    cls=Command,
    short_help="Bring the stake up to an amount, or show it.",
    epilog="""aos operator stake -c FILE.yaml
aos operator stake 1.5 -c FILE.yaml
aos operator stake 1.5 -c FILE.yaml --yes --json""",
)
def stake(
    amount: Annotated[
        str | None, typer.Argument(metavar="ETHER", help="What the stake is to be; nothing: show it.")
    ] = None,
    *,
    config: OperatorConfig,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Deposit what is missing to the amount, with this operator's VRF key. Run again, it deposits nothing more."""
    from aos.operator.chain import account

    quiet()
    target = None if amount is None else wei(amount)

    async def run() -> "Standing":
        async with account(config) as mine:
            standing = await mine.standing()
            if target is None:
                return standing
            if standing.stake < target:
                missing = ether(target - standing.stake)
                confirm(
                    f"deposit {missing} ether of {ether(standing.balance)} at {standing.registry}?",
                    yes=yes,
                    as_json=as_json,
                )
            return await mine.stake_to(target)

    _show(asyncio.run(run()), "operator.stake", as_json=as_json)


@operator_app.command(
    "exit",
    cls=Command,
    short_help="Leave the registry, and have the stake back.",
    epilog="""aos operator exit -c FILE.yaml
aos operator exit -c FILE.yaml --yes --json""",
)
def leave(*, config: OperatorConfig, yes: Yes = False, as_json: AsJson = False) -> None:
    """Ask to leave; run again after the delay, it frees the stake and pays it out with whatever else is owed.

    From the next epoch on this operator is in no draw. Its claims stay disputable while the delay runs.
    """
    from aos.operator.chain import account

    quiet()

    async def run() -> "Standing":
        async with account(config) as mine:
            standing = await mine.standing()
            if standing.stake and not standing.exit_at:
                confirm(f"give up the range of {standing.node_id} and leave?", yes=yes, as_json=as_json)
            return await mine.leave()

    _show(asyncio.run(run()), "operator.exit", as_json=as_json)


def confirm(question: str, *, yes: bool, as_json: bool) -> None:
    """Ask a person, once. Raises ConfigError ``cli.confirm`` where nobody can answer; ends the program at a no."""
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise ConfigError(
            "cli.confirm", f"nobody is here to answer: {question}", hint="--yes does it unasked"
        )
    if not typer.confirm(question, err=True):
        voice.say("nothing was done")
        raise typer.Exit(1)


def wei(text: str) -> int:
    """Ether as people write it, in wei. Raises InvalidMessage ``cli.amount``."""
    if not _AMOUNT.match(text) or not (amount := int(Decimal(text) * ETHER)):
        raise InvalidMessage(
            "cli.amount", f"not an amount of ether: {text[:40]!r}", field="ETHER", hint="such as 1 or 0.25"
        )
    return amount


def ether(amount: int) -> str:
    """Wei as ether, exactly."""
    whole, rest = divmod(amount, ETHER)
    return str(whole) + (f".{rest:018d}".rstrip("0") if rest else "")


def _show(standing: "Standing", name: str, *, as_json: bool) -> None:
    facts: dict[str, Any] = {
        "node_id": standing.node_id,
        "chain_id": standing.chain_id,
        "registry": standing.registry,
        "stake_ether": ether(standing.stake),
        "min_stake_ether": ether(standing.min_stake),
        "range": list(standing.range) if standing.range else None,
        "exit_at": datetime.fromtimestamp(standing.exit_at, UTC).isoformat() if standing.exit_at else None,
        "games": standing.games,
        "owed_ether": ether(standing.owed),
        "balance_ether": ether(standing.balance),
        "final": standing.final,
        "under_way": list(standing.open),
    }
    if as_json:
        voice.data_json(name, facts)
        return
    for label, value in facts.items():
        voice.data(f"{label:<18} {_word(value)}")
    if not standing.final:
        voice.say("mined, not final: the registry counts it once its block is")
    if standing.stake >= standing.min_stake and not standing.registered and not standing.exit_at:
        voice.say("next: `aos operator register`; the dispatcher then gives it a range")


def _word(value: object) -> str:
    if isinstance(value, list):
        return " … ".join(map(str, value)) or "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
