"""Lies about the computation: rows 1, 5, 6, 7, 37, 39, 40, 50.

The liars sit among the network's own operators, which compute, challenge and answer by themselves.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from aos.attack.court import COPY, Accused, fair, tried
from aos.attack.live import Live
from aos.attack.table import ACCEPTED, Trial, row
from aos.core.dispute.audit import AuditBundle, AuditRequest
from aos.engine.audit import Auditor, Difference, Disclosed, make_bundle
from aos.engine.gguf import read_gguf
from aos.engine.manifest import tensor_leaves
from aos.errors import AOSError, RuleViolation


async def first_difference(live: Live, liar: Accused) -> tuple[int, int]:
    """Position and unit of the first leaf that an honest run does not have. Raises RuleViolation ``attack.no_lie``."""
    _, honest = await live.player(None)
    known = await asyncio.to_thread(
        honest.run, liar.prompt, liar.seat.generation.tokens, liar.asked, salt=liar.seat.nonce
    )
    pairs = zip(liar.known.tree.units, known.tree.units, strict=False)
    for position, (told, right) in enumerate(pairs):
        for unit, (ours, theirs) in enumerate(zip(told, right, strict=False)):
            if ours != theirs:
                return position, unit
    raise RuleViolation("attack.no_lie", "the liar happened to compute what is right")


async def convicted(
    live: Live, t: Trial, name: str, liar: Accused, code: str, place: tuple[int, int]
) -> None:
    """The network must convict this liar with ``code``, over what its run has first at ``place``, and a stranger with it."""
    game = await liar.defend()
    t.attack(name, code, _verdict(game, place))
    judged = await liar.court.judged(game["game"])
    named = judged.state == "CONVICTED" and judged.verdict is not None
    t.attack(
        f"{name}: its transcript", code, judged.verdict.code if named and judged.verdict else judged.state
    )
    listed = await liar.court.convicted(liar.seat.key[0])
    t.attack(f"{name}: its operator", code, listed.get(liar.guest.node_id, "not convicted"))


def _verdict(game: dict[str, Any], place: tuple[int, int]) -> str:
    """The code of a game that convicts its claimant for what is at this place."""
    if game["against"] != "claimant":
        return f"against the {game['against']}"
    if (game["position"], game["unit"]) != place:
        return f"{game['code']} at position {game['position']}, unit {game['unit']}"
    return str(game["code"])


async def told(live: Live, t: Trial, name: str, kind: str, code: str, *, unit: int, late: int = 0) -> None:
    """A lie about a unit of the model: its first differing leaf is of ``unit``, at position ``late`` or later."""
    hearing = await tried(live, kind)
    (liar,) = hearing.accused
    place = await first_difference(live, liar)
    if place[1] != unit or place[0] < late:
        raise RuleViolation("attack.no_lie", f"the lie shows first at position {place[0]}, unit {place[1]}")
    await convicted(live, t, name, liar, code, place)
    t.twin("the honest answer, without it", await hearing.honest_result())


async def _honest(live: Live, t: Trial) -> None:
    t.twin("the same request computed as asked", await (await fair(live)).agreed())


@row(1, "one weight bit flipped", "tile.weights", guests=True)
async def one_bit(live: Live, t: Trial) -> None:
    await told(live, t, "one bit of one weight", "weight", "tile.weights", unit=3)
    await _honest(live, t)


@row(5, "layer skipped, early exit", "tile.weights", guests=True)
async def skipped(live: Live, t: Trial) -> None:
    await told(live, t, "a layer that adds nothing", "layer", "tile.weights", unit=2)
    await told(live, t, "the last two layers left out", "exit", "tile.weights", unit=3)
    await _honest(live, t)


@row(6, "KV cache quantised or taken over", "tile.commitment", guests=True)
async def cached(live: Live, t: Trial) -> None:
    await told(
        live, t, "keys and values with four bits of mantissa", "coarse_cache", "tile.commitment", unit=1
    )
    await told(live, t, "keys and values of another prompt", "foreign_cache", "tile.commitment", unit=1)
    await _honest(live, t)


@row(7, "attention forged at a late token", "tile.value", guests=True)
async def forged_head(live: Live, t: Trial) -> None:
    await told(live, t, "one head from position 10 on", "head", "tile.value", unit=1, late=10)
    await _honest(live, t)


@row(
    37,
    "approves everything",
    "around.tokens",
    guests=True,
    missing="the network plants no faults by itself: this one is ours",
)
async def approves(live: Live, t: Trial) -> None:
    hearing = await tried(live, "token", COPY)
    faulty, approver = hearing.accused
    await convicted_around(t, "a planted fault", faulty, "around.tokens")
    await convicted_around(t, "who signed it as its own", approver, "around.tokens")
    t.twin("the honest answer, without both", await hearing.honest_result())
    t.twin("who approves what is right", await (await tried(live, None, COPY)).agreed())


async def convicted_around(t: Trial, name: str, liar: Accused, code: str) -> None:
    game = await liar.defend()
    t.attack(name, code, game["code"] if game["against"] == "claimant" else f"against the {game['against']}")
    listed = await liar.court.convicted(liar.seat.key[0])
    t.attack(f"{name}: its operator", code, listed.get(liar.guest.node_id, "not convicted"))


@row(50, "both wrong in different places", "tile.weights", "around.tokens", guests=True)
async def two_liars(live: Live, t: Trial) -> None:
    hearing = await tried(live, "layer", "token")
    one, two = hearing.accused
    await convicted(live, t, "a layer left out", one, "tile.weights", await first_difference(live, one))
    await convicted_around(t, "a token replaced", two, "around.tokens")
    t.twin("the honest answer, without both", await hearing.honest_result())
    t.twin("both compute as asked", await (await tried(live, None, None)).agreed())


# --- layer audits


@row(
    40,
    "behaves only when audited",
    "audit.different",
    "audit.opening",
    "audit.bundle",
    guests=True,
    missing="an audit over the network: the openings are handed over here",
)
async def only_when_audited(live: Live, t: Trial) -> None:
    leaves, _ = await asyncio.to_thread(tensor_leaves, read_gguf(live.model_path))
    _, honest = await live.player(None)
    (liar,) = (await tried(live, "layer")).accused
    right = await asyncio.to_thread(
        honest.run, liar.prompt, liar.seat.generation.tokens, liar.asked, salt=liar.seat.nonce
    )
    layers = liar.known.run.graph.n_layers
    beacon = secrets.token_bytes(32)  # drawn now: the claims are signed
    (lying, _), (engine, _) = await live.player("layer"), await live.player(None)

    async def audited(
        accused: Accused, known: Any, by: Any, drawn: bytes = beacon, many: int = layers
    ) -> str:
        """What an auditor who drew ``many`` layers by ``beacon`` says where the operator opens ``known`` by ``drawn``."""
        asked = AuditRequest(state_root=known.tree.root, beacon=drawn, layers=many)
        bundle = await asyncio.to_thread(make_bundle, known, by, leaves, asked)
        asked = AuditRequest(state_root=accused.known.tree.root, beacon=beacon, layers=many)
        return await asyncio.to_thread(_audited, live, accused, asked, bundle)

    t.attack("opens the run that it signed", "audit.different", await audited(liar, liar.known, lying))
    t.attack("opens an honest run instead", "audit.opening", await audited(liar, right, engine))
    told = AuditRequest(state_root=liar.known.tree.root, beacon=b"", layers=1)
    numbers = (number.to_bytes(32) for number in count())
    lucky = next(drawn for drawn in numbers if 1 not in replace(told, beacon=drawn).drawn(layers))
    found = await audited(liar, liar.known, lying, lucky, 1)
    t.attack("draws by a beacon of its own", "audit.bundle", found)
    hearing = await fair(live)
    (honest_one,) = hearing.accused
    t.twin("opens what it computed as asked", await audited(honest_one, honest_one.known, engine))
    t.twin("and was paid for it", await hearing.agreed())


def _audited(live: Live, accused: Accused, asked: AuditRequest, data: bytes) -> str:
    """The code of the first thing that an auditor finds wrong."""
    assert accused.core is not None  # noqa: S101  revealed
    generation, job = accused.seat.generation, accused.seat.request.job
    try:
        opened = AuditBundle.read(data, asked, accused.core.model_id)
        auditor = Auditor(
            opened,
            Disclosed(
                core=accused.core,
                nonce=accused.seat.nonce,
                params=job.params,
                prompt=job.prompt,
                tokens=generation.tokens,
                text=generation.text,
            ),
            live.model_path,
            native=True,
            threads=1,
        )
        auditor.run_is_the_receipts()
        checks: list[Callable[[], Difference | None]] = [auditor.embedding, auditor.tail]
        checks += [lambda layer=layer: auditor.layer(layer) for layer in auditor.plan.layers]  # type: ignore[misc]
        different = any(check() is not None for check in checks)
    except AOSError as error:
        return error.code
    return "audit.different" if different else ACCEPTED
