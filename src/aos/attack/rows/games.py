"""The dispute game: rows 38, 47, 49, 51, 52, 53, and 48 in part. The other side is always one of the network's own operators."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace

from aos.attack.court import Accused, Accuser, Court, Hearing, accuser, fair, tried, until
from aos.attack.guest import now_ms
from aos.attack.live import Live
from aos.attack.rows.disputes import convicted
from aos.attack.table import ACCEPTED, Trial, row
from aos.core.answer import read_answer
from aos.core.dispute.fine.referee import Canonical
from aos.core.dispute.moves import HASH_BYTES, Answer, Move, game_id, split_hashes
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.transcript import read_transcript
from aos.core.encoding import b64u_encode
from aos.core.merkle import tree_root
from aos.core.statements import hash_of
from aos.engine.around import check_with_tokenizer
from aos.errors import RuleViolation


async def _unharmed(court: Court, job_ref: bytes) -> str:
    """``accepted`` where nobody is convicted over a job."""
    found = await court.convicted(job_ref)
    return ACCEPTED if not found else f"convicted with {next(iter(found.values()))}"


@row(
    38,
    "accuses an honest operator",
    "dispute.refuted",
    "dispute.same_leaf",
    missing="the bond that the accuser loses is in the dispatcher's ledger alone",
)
async def accuses(live: Live, t: Trial) -> None:
    answer = await live.single()
    core = answer.receipt.core
    middle = (core.n_prompt + core.n_out) // 2
    sham = await accuser(live, core)
    for name, kind, place in (
        ("of a unit in the middle", "unit", (middle, 1)),
        ("of its parameters", "header", (0, 0)),
        ("of its prompt's tokens", "prompt", (0, 0)),
        ("of the token that it chose", "tokens", (core.n_prompt, 0)),
        ("of its end", "stop", (0, 0)),
        ("of its text", "text", (0, 0)),
        ("of having trapped", "trap", (0, 0)),
    ):
        one = replace(sham, key=secrets.token_bytes(32))
        leaf = one.opening().leaf if kind == "unit" else b""
        opening = one.opening(kind=kind, position=place[0], unit=place[1], leaf=leaf)
        t.attack(f"accused {name}", "dispute.refuted", await one.accuse(opening))
    own = replace(sham, key=secrets.token_bytes(32))
    opening = own.opening(position=middle, unit=1, leaf=sham.units[middle][1])
    t.attack("accused of the accuser's own value", "dispute.same_leaf", await own.accuse(opening))
    t.twin("nobody is convicted over it", await _unharmed(sham.court, core.job_ref))
    t.twin("and its answer stays VERIFIED", live.judge(answer))


# --- silence


async def _fall_silent(live: Live) -> None:
    """A liar answers one of its challengers in time, and then nobody; an accuser opens a game and plays no further."""
    honest = await live.single()
    hearing = await tried(live, "weight")
    (liar,) = hearing.accused
    await liar.serve()
    answered, silent = await liar.challenged(2)
    t = Trial()
    t.twin("an answer in time", await _answer(liar, answered))
    sham = await accuser(live, honest.receipt.core)
    opening = sham.opening()
    t.twin("a challenge", await sham.court.open(opening, sham.key))
    names = (answered, silent, b64u_encode(game_id(opening)))
    live.begun[47] = asyncio.create_task(_time_passes(t, hearing, sham, *names))


async def _answer(liar: Accused, game: str) -> str:
    return await liar.court.move(game, await liar.own_move(game), liar.guest.keys.signer)


async def _time_passes(
    t: Trial, hearing: Hearing, sham: Accuser, answered: str, silent: str, dropped: str
) -> Trial:
    (liar,) = hearing.accused
    court = liar.court
    for name, game, against in (
        ("no first answer", silent, "claimant"),
        ("no second answer", answered, "claimant"),
        ("no choice", dropped, "challenger"),
    ):
        t.attack(name, "dispute.silent", await _defaulted(court, game, against))
    t.twin("silence alone does not convict a claimant", await _unharmed(court, hearing.key[0]))
    t.twin("nor an accuser", await _unharmed(court, sham.core.job_ref))
    t.twin("the honest answer, without who is silent", await hearing.honest_result())
    t.twin("a late answer still counts", await _answer(liar, silent))
    cured = await court.game(silent)
    t.twin("and cures", ACCEPTED if cured["moves"] > 1 and not cured["against"] else str(cured["code"]))
    later = await liar.own_move(answered)
    closes = (await court.game(answered))["closes_at"]
    await asyncio.sleep(max(0, closes - now_ms()) / 1000 + 0.05)
    found = await court.move(answered, later, liar.guest.keys.signer)
    t.attack("an answer when the window has closed", "dispute.late", found)
    return t


async def _defaulted(court: Court, game: str, against: str) -> str:
    """The code that a silent party's game has, once it has one."""

    async def come() -> str | None:
        found = await court.game(game)
        return str(found["code"]) if (found["state"], found["against"]) == ("defaulted", against) else None

    return str(await until(come, f"a game defaults against its {against}"))


@row(
    47,
    "silence around a deadline",
    "dispute.silent",
    "dispute.late",
    guests=True,
    missing="one tick before the deadline and one after it, which nobody can hit over a network",
    begin=_fall_silent,
)
async def silence(live: Live, t: Trial) -> None:
    found: Trial = await live.begun[47]
    t.attempts += found.attempts
    t.twins += found.twins


# --- stories that change between games


async def stories_in_games(live: Live, t: Trial) -> None:
    """Row 48 in disputes: a claimant that answers one turn twice, or one challenger otherwise than another; an operator that
    challenges with another root than it revealed."""
    hearing = await tried(live, "weight")
    (liar,) = hearing.accused
    court, key = liar.court, liar.guest.keys.signer
    await liar.serve()
    first, second = await liar.challenged(2)
    before = await court.transcript(first)
    answer = await liar.own_move(first)
    for name in ("an answer", "the same again"):
        t.twin(name, await court.move(first, answer, key))
    await court.move(first, await asyncio.to_thread(_other_trace, before, answer), key)
    found = await _conviction(court, first, liar.guest.node_id)
    t.attack("two answers for one turn", "dispute.contradiction", found)
    before, answer = await court.transcript(second), await liar.own_move(second)
    await court.move(second, await asyncio.to_thread(_other_trace, before, answer), key)
    found = await _conviction(court, second, liar.guest.node_id)
    t.attack("another trace to another challenger", "dispute.two_unit_roots", found)
    await hearing.end()
    core = read_answer(await live.answer_of(hearing.accepted.job_id)).receipt.core
    sham = replace(await accuser(live, core), key=key)
    opening = sham.opening()
    await court.open(opening, key)
    named = await _conviction(court, b64u_encode(game_id(opening)), liar.guest.node_id)
    t.attack("a challenge with another root than its receipt", "dispute.two_state_roots", named)
    t.twin("the honest answer, without it", await hearing.honest_result())


def _other_trace(transcript: bytes, answer: Move) -> Answer:
    """A first answer, lawful by itself, that shows another tile at the end of the unit."""
    if not isinstance(answer, Answer):
        raise RuleViolation("attack.game", "the game does not begin with an answer")
    arithmetic = Canonical(check_with_tokenizer)
    case = read_transcript(transcript).case
    opened = arithmetic.open_unit(case, answer.position, answer.unit, answer.bounds)
    children = answer.children[:-HASH_BYTES] + secrets.token_bytes(HASH_BYTES)
    root = tree_root(split_hashes(children))
    return replace(
        answer,
        children=children,
        unit_root=arithmetic.unit_root(opened, answer.position, answer.unit, root),
    )


async def _conviction(court: Court, game: str, node_id: str) -> str:
    """The code that ``node_id`` is convicted with by this game."""
    listed = (await court.read("/convictions"))["convictions"]
    codes = [each["code"] for each in listed if (each["game"], each["node_id"]) == (game, node_id)]
    return str(codes[0]) if codes else "not convicted"


# --- edges


def _other_leaf(place: Callable[[Accused], tuple[int, int]]) -> Callable[[Accused], None]:
    """A run that commits to nothing known at one place."""

    def change(accused: Accused) -> None:
        position, unit = place(accused)
        tree = accused.known.tree
        units = [list(leaves) for leaves in tree.units]
        units[position][unit] = secrets.token_bytes(32)
        changed = StateTree(tree.header, units)
        accused.known = replace(
            accused.known, tree=changed, run=replace(accused.known.run, state_root=changed.root)
        )
        accused.seat.generation = replace(accused.seat.generation, state_root=changed.root)

    return change


@row(
    49,
    "first, last, padding leaf",
    "dispute.refuted",
    "dispute.no_such_place",
    "state.opening",
    guests=True,
)
async def edges(live: Live, t: Trial) -> None:
    answer = await live.single()
    sham = await accuser(live, answer.receipt.core)
    positions, tail = len(sham.units), len(sham.units[0]) - 1
    padding = sham.header.n_prompt - 2
    for name, position, unit, last in (
        ("the first leaf, its first tile", 0, 0, False),
        ("the first leaf, its last tile", 0, 0, True),
        ("the last leaf, its first tile", positions - 1, tail, False),
        ("the last leaf, its last tile", positions - 1, tail, True),
        ("a padding leaf: a tail that chose nothing", padding, tail, False),
    ):
        one = replace(sham, key=secrets.token_bytes(32))
        found = await one.accuse(one.opening(position=position, unit=unit), last=last)
        t.attack(f"accused at {name}", "dispute.refuted", found)
    for name, position, unit in (
        ("a unit behind the tail", 0, tail + 1),
        ("the last token's own position", positions, 0),
        ("a position behind all tokens", positions + 1, 0),
    ):
        one = replace(sham, key=secrets.token_bytes(32))
        found = await one.accuse(one.opening(position=position, unit=unit))
        t.attack(f"accused at {name}", "dispute.no_such_place", found)
    t.twin("its answer stays VERIFIED", live.judge(answer))
    jobs: tuple[dict[str, Callable[[Accused], tuple[int, int]]], ...] = (
        {"first": lambda _: (0, 0), "last": lambda a: (len(a.known.tree.units) - 1, tail)},
        {"padding": lambda a: (a.known.tree.header.n_prompt - 2, tail)},
    )
    for places in jobs:
        changes = [_other_leaf(place) for place in places.values()]
        hearing = await tried(live, *(None for _ in places), changes=changes)
        for (name, place), liar in zip(places.items(), hearing.accused, strict=True):
            await convicted(live, t, f"a lie in the {name} leaf", liar, "state.opening", place(liar))
        t.twin("the honest answer, without them", await hearing.honest_result())
    t.twin("every leaf as computed", await (await fair(live)).agreed())
    short = await live.ask(min_operators=live.honest_operators, params={"temperature": 0.0, "max_tokens": 1})
    sham = await accuser(live, short.receipt.core)
    t.attack("accused over a single token", "dispute.refuted", await sham.accuse(sham.opening()))
    t.twin("that one token", live.judge(short))


# --- spam


@row(
    51,
    "dispute spam, absurd quorums",
    "dispute.not_entitled",
    "dispute.bond",
    "dispute.same_root",
    "dispute.own_claim",
    "dispute.unknown_claim",
    "dispute.contradiction",
    "field.range",
)
async def spam(live: Live, t: Trial) -> None:
    answer = await live.single()
    core = answer.receipt.core
    one = await accuser(live, core)
    two, court = replace(one, key=secrets.token_bytes(32)), one.court
    for name, code, changes in (
        ("without a bond", "dispute.bond", {"bond": one.bond - 1}),
        ("with the claim's own root", "dispute.same_root", {"state_root": core.state_root}),
        ("of a claim that nobody made", "dispute.unknown_claim", {"claim": bytes(32)}),
    ):
        t.attack(name, code, await court.open(one.opening(**changes), one.key))
    t.attack(
        "by who may not know the prompt",
        "dispute.not_entitled",
        await court.open(one.opening(), one.key, token=False),
    )
    own = live.operators[core.operator].signer
    t.attack(
        "of its own claim",
        "dispute.own_claim",
        await court.open(one.opening(challenger=core.operator), own),
    )
    opening = one.opening(bond=one.bond)
    t.twin("once, with its bond", await court.open(opening, one.key))
    t.twin("sent again", await court.open(opening, one.key))
    mine = [g for g in await court.games(core.job_ref) if g["challenger"] == opening.challenger]
    t.twin("which is the same game", ACCEPTED if len(mine) == 1 else f"{len(mine)} games")
    t.attack(
        "a second at the first one's bond",
        "dispute.bond",
        await court.open(two.opening(bond=two.bond), two.key),
    )
    t.attack("another by the same key", "dispute.contradiction", await one.accuse(one.opening(position=1)))
    quorum = live.seed_body(min_operators=60)
    t.attack("a quorum beyond the operators", "field.range", await live.post("/api/job/submit", quorum))
    t.twin("its answer stays VERIFIED", live.judge(answer))


# --- data withheld


async def _withhold(live: Live) -> None:
    """A liar reveals, and serves nothing of its run."""
    live.begun[52] = await tried(live, "weight")


@row(
    52,
    "data withheld, retention ended early",
    "dispute.not_served",
    "dispute.served",
    "dispute.foreign_data",
    guests=True,
    missing="retention ended early: it is the operator's own loss, as it is then withheld",
    begin=_withhold,
)
async def withheld(live: Live, t: Trial) -> None:
    hearing: Hearing = live.begun[52]
    (liar,) = hearing.accused
    court = liar.court
    t.attack("serves nothing", "dispute.not_served", await _leaves(court, liar.claim))
    right = liar.party.leaves(liar.known)
    other = b64u_encode(secrets.token_bytes(32 * (len(liar.known.tree.units[0]))))
    for name, code, leaves in (
        ("serves leaves of its own making", "dispute.served", {"units": [other, *right["units"][1:]]}),
        ("serves another model's manifest", "dispute.foreign_data", {"manifest": "{}"}),
    ):
        t.attack(name, code, await court.serve(liar.claim, right | leaves))
    t.twin("the honest answer, without who withholds", await hearing.honest_result())
    found = await court.convicted(hearing.key[0])
    t.twin("who is not convicted: silence proves nothing", ACCEPTED if not found else "convicted")
    t.twin("its leaves, late", await court.serve(liar.claim, right))
    t.twin("and they are there", await _leaves(court, liar.claim))
    honest = (await live.single()).receipt.core
    await accuser(live, honest)
    t.twin("what an honest operator serves", await _leaves(court, b64u_encode(hash_of(honest))))


async def _leaves(court: Court, claim: str) -> str:
    try:
        await court.read(f"/claims/{claim}/leaves")
    except RuleViolation as error:
        return error.code
    return ACCEPTED


# --- sizes


@row(
    53,
    "oversized opening",
    "encoding.too_large",
    "field.range",
    guests=True,
    missing="all moves together beyond 64 KiB: this model's never are",
)
async def oversized(live: Live, t: Trial) -> None:
    hearing = await tried(live, "weight")
    (liar,) = hearing.accused
    court, key = liar.court, liar.guest.keys.signer
    t.attack(
        "leaves of 33 MiB",
        "encoding.too_large",
        await court.serve(liar.claim, b'"' + b"a" * (33 << 20) + b'"'),
    )
    t.twin("leaves as they are", await liar.serve())
    (game,) = await liar.challenged(1)
    honest = await liar.own_move(game)
    if not isinstance(honest, Answer):
        raise RuleViolation("attack.game", "the game does not begin with an answer")
    for name, code, move in (
        ("bounds beyond their cap", "field.range", replace(honest, bounds=bytes(32 * 1024 + 1))),
        ("children beyond their cap", "field.range", replace(honest, children=bytes(257 * 32))),
    ):
        t.attack(name, code, await court.move(game, move, key))
    huge = {"statement": {"pad": "a" * (64 * 1024)}, "signature": ""}
    path = f"/v1/aos/disputes/{game}/moves"
    t.attack("a move beyond 64 KiB", "encoding.too_large", await live.post(path, huge))
    t.twin("an answer of its size", await court.move(game, honest, key))
    await liar.defend()
    t.twin("the honest answer, for none of it changed the game", await hearing.honest_result())
