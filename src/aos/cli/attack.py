"""``aos attack``: the attacks that must fail, each played against a live network, each with its honest twin."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aos.cli import voice
from aos.cli.logs import quiet

if TYPE_CHECKING:
    from aos.attack.runner import ChainPlace, Place, Summary
    from aos.attack.table import Outcome, Row

ATTACK_EXAMPLES = """aos attack --list
aos attack --all
aos attack 13 22 48
aos attack --all --state .aos --json"""
_WIDTH = 14


def attack(
    numbers: Annotated[list[str] | None, typer.Argument(metavar="ROW…", help="Rows by number.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Every row that can be played.")] = False,
    listed: Annotated[
        bool, typer.Option("--list", help="Show the rows and what they need; play none.")
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", help="State directory of a running network; default: a new one, removed at the end."
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="The network's GGUF file; default: the demo model.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Play attacks against a live network: each must be refused for its own reason, and its honest twin accepted.

    Exit code 0 where all went as they must, 10 where an attack passed, met another reason, or a twin was refused, 11 where a row
    could not be played. Rows that need what does not exist yet are listed, and never counted as refused.
    """
    from aos.attack import runner

    if listed:
        _list(runner.chosen(numbers) if numbers else runner.rows(), as_json=as_json)
        return
    if every == bool(numbers):
        raise voice.usage("name rows, or --all", hint="aos attack --list shows the rows")
    quiet()
    wanted = runner.rows() if every else runner.chosen(numbers or [])
    chain = state is None and any(row.chain for row in wanted)
    with _place(state, model, chain=chain) as place:
        summary = runner.play_all(place, wanted, told=_teller(as_json))
    if as_json:
        voice.data_json("attack", _as_json(summary))
    else:
        for row in summary.later:
            if not every or row.needs:
                voice.data(
                    f"{'NOT YET' if row.needs else 'GAP':<{_WIDTH}}{row.number:>2} {row.title} · {_why(row)}"
                )
        voice.data(_headline(summary))
    raise typer.Exit(summary.exit_code)


@contextlib.contextmanager
def _place(state: Path | None, model: Path | None, *, chain: bool) -> "Iterator[Place]":
    """The network to attack: the running one in ``state``, or one of our own; with ``chain`` a second one where there is a node."""
    from aos.attack.runner import (
        GUEST_MODEL,
        GUESTS,
        LIARS,
        OPERATORS,
        SETTINGS,
        Place,
        guest_model,
        read_model_id,
        temporary_place,
    )
    from aos.cli.network import ENDINGS, found, interrupt_once
    from aos.engine import native_instruction_sets
    from aos.local.network import DEMO_MODEL, Guest, LocalNetwork

    file = (model or DEMO_MODEL).resolve()
    if state is not None:
        yield Place(state=state, model=file)
        return
    for number in ENDINGS:
        signal.signal(number, interrupt_once)
    with temporary_place() as directory:
        own = guest_model(directory, file)
        guests = [Guest(name=name, model=GUEST_MODEL, model_id=read_model_id(own)) for name in GUESTS]
        guests += [Guest(name=name, model=file.name, model_id=read_model_id(file)) for name in LIARS]
        network = LocalNetwork(
            directory / "state",
            found=found,
            model=file,
            say=voice.say,
            isas=native_instruction_sets()[-3:],
            opml_operators=OPERATORS,
            guests=guests,
            settings=SETTINGS,
        )
        voice.say("starting a network to attack; TEE enclaves are SIMULATED")
        until = threading.Event()
        with network.running() as running:
            keeper = threading.Thread(target=network.serve, args=(running, until))
            keeper.start()
            try:
                with _chain_place(directory / "chain", file, chain=chain) as second:
                    yield Place(state=directory / "state", model=file, guest_model=own, chain=second)
            finally:
                until.set()
                keeper.join()


@contextlib.contextmanager
def _chain_place(directory: Path, model: Path, *, chain: bool) -> "Iterator[ChainPlace | None]":
    """A network whose beacon is a block of a real node, which has an hour of blocks behind it."""
    from aos.adapters.chain.contracts import contract
    from aos.adapters.embedded.anvil import CHAIN_ID, EmbeddedAnvil, find_anvil
    from aos.attack.runner import ChainPlace
    from aos.cli.network import found
    from aos.core.vrf import ecvrf_public_key
    from aos.local.chain_gas import ETHER, PlayChain
    from aos.local.layout import Layout
    from aos.local.network import Account, Chain, Contracts, LocalNetwork

    if not chain or find_anvil() is None:
        yield None
        return
    directory.mkdir()
    anvil = EmbeddedAnvil(directory, begun_s=int(time.time()) - 3_600)
    node, registry = PlayChain(anvil.start()), contract("OperatorRegistry")

    def prepare(config: Path, accounts: Sequence[Account]) -> Contracts:
        owner = Layout(config.parent.parent).dispatcher_keys().address
        for address in (owner, *(account.node.keys.address for account in accounts)):
            node.fund(address, 100)
        made = node.send(owner, registry.creation(10**6, ETHER, 3_600))
        for account in accounts:
            key = ecvrf_public_key(account.node.keys.vrf)
            node.send(account.node.keys.address, registry.call("deposit", key), to=made, value=ETHER)
        node.mine_every(1)
        node.wait_final()
        return Contracts(operator_registry=made)

    network = LocalNetwork(
        directory / "state",
        found=found,
        model=model,
        say=voice.say,
        opml_operators=2,
        tee_operators=0,
        chain=Chain(
            rpc_url=node.url, chain_id=CHAIN_ID, prepare=prepare, settings={"beacon": True, "anchor_s": 0}
        ),
    )
    try:
        node.mine(300, 12)
        with network.running():
            yield ChainPlace(state=directory / "state", rpc_url=node.url)
    finally:
        anvil.stop()


def _teller(as_json: bool) -> Any:
    write = voice.say if as_json else voice.data

    def told(outcome: "Outcome") -> None:
        write(_line(outcome))

    return told


def _line(outcome: "Outcome") -> str:
    row = outcome.row
    line = f"{outcome.verdict:<{_WIDTH}}{row.number:>2} {row.title}"
    if outcome.verdict in ("REFUSED", "ACCEPTED"):
        codes = f" [{', '.join(outcome.codes)}]" if outcome.codes else ""
        return f"{line}{codes} · {'twin' if len(outcome.twins) == 1 else 'twins'} accepted"
    return f"{line} · {voice.plain(outcome.problem)}"


def _why(row: "Row") -> str:
    return f"needs {row.needs}: {row.reason}" if row.needs else row.reason


def _headline(summary: "Summary") -> str:
    refused, accepted = summary.count("REFUSED"), summary.count("ACCEPTED")
    attempts = sum(len(outcome.attempts) for outcome in summary.outcomes)
    twins = sum(len(outcome.twins) for outcome in summary.outcomes)
    missed = summary.count("SKIPPED", "BROKEN")
    bad = len(summary.outcomes) - refused - accepted - missed
    later = sum(bool(row.needs) for row in summary.later)
    words = [f"{refused} rows refused, {accepted} that must be accepted were"]
    words += [f"{bad} NOT AS THEY MUST BE"] * bool(bad)
    words += [f"{missed} could not be played"] * bool(missed)
    words += [f"{later} not yet, {len(summary.later) - later} gaps"] * bool(summary.later)
    return f"{'; '.join(words)} ({attempts} attacks, {twins} honest twins, {summary.seconds:.1f} s)"


def _list(rows: "tuple[Row, ...]", *, as_json: bool) -> None:
    if as_json:
        voice.data_json("attack.list", [_row_json(row) for row in rows])
        return
    for row in rows:
        voice.data(f"{row.number:>2} {row.title} {_how(row)}")


def _how(row: "Row") -> str:
    """What is expected of a row, or why it cannot be played."""
    if row.play is None:
        return f"· {row.standing}: {row.reason}"
    words = f"[{', '.join(row.codes)}]" if row.must_fail else "· must be accepted"
    words += " · on a network of its own" if row.guests else ""
    return words + (f" · not played: {row.missing}" if row.missing else "")


def _row_json(row: "Row") -> dict[str, Any]:
    return {
        "row": row.number,
        "title": row.title,
        "standing": row.standing,
        "codes": list(row.codes),
        "must_fail": row.must_fail,
        "own_network": row.guests,
        "reason": row.reason or None,
        "not_played": row.missing or None,
    }


def _as_json(summary: "Summary") -> dict[str, Any]:
    return {
        "exit_code": summary.exit_code,
        "seconds": round(summary.seconds, 1),
        "refused": summary.count("REFUSED"),
        "accepted": summary.count("ACCEPTED"),
        "rows": [
            {
                "row": outcome.row.number,
                "title": outcome.row.title,
                "verdict": outcome.verdict,
                "problem": outcome.problem or None,
                "seconds": round(outcome.seconds, 2),
                "attacks": [
                    {"name": a.name, "expected": list(a.expected), "found": a.found} for a in outcome.attempts
                ],
                "twins": [{"name": twin.name, "found": twin.found} for twin in outcome.twins],
            }
            for outcome in summary.outcomes
        ],
        "not_played": [_row_json(row) for row in summary.later],
    }
