"""Games about the claims of tests/liars.py, and random ones of them: SIMULATED parties over real traces of tiny models.

``dispute`` plays one game, its claimant and its challenger as they like; ``play_case`` draws a lie from a number, plays the
games that it leads to, in random order, and judges their transcripts again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from dispute_real import NONCE, Job, case_of
from dispute_toy import Key
from liars import (
    LONG,
    SHAPES,
    Claim,
    early_stop,
    foreign_cache,
    honest,
    lie_at,
    model,
    padding,
    replaced_token,
    sampled_otherwise,
    skipped_layer,
    swapped_token,
    weight,
)

from aos.core import hashes
from aos.core.codec import encode
from aos.core.dispute import players
from aos.core.dispute.case import Case
from aos.core.dispute.coarse import Aim, aim, served_tree
from aos.core.dispute.fine.around import prove_header, prove_tokens, prove_trap
from aos.core.dispute.fine.bounds import Unit
from aos.core.dispute.fine.referee import Canonical
from aos.core.dispute.game import Game, apply, start
from aos.core.dispute.moves import MAX_GAME_BYTES, Answer, Move, Open
from aos.core.dispute.resolution import resolve
from aos.core.dispute.rules import Rules
from aos.core.dispute.state_opening import Place as StatePlace
from aos.core.dispute.state_tree import TOKEN
from aos.core.dispute.transcript import judge, transcript_of, write_transcript
from aos.core.encoding import b64u_decode, canonical_json
from aos.core.signing import sign_statement
from aos.core.statements import Request, RequestJob, Signed, sign
from aos.engine.around import check_with_tokenizer
from aos.engine.trace import AbsentUnit, UnitTrace
from aos.errors import InvalidMessage, RuleViolation, VerificationError

RULES = Rules(grace_ms=10, budget_ms=20, window_ms=1_000, bond=1)
REFEREE = Canonical(check_with_tokenizer)


def case_about(claim: Claim, claimant: Key) -> Case:
    """The claim that ``claimant`` signs, with everything disclosed."""
    bare = case_of(claim, claimant)  # type: ignore[arg-type]
    tokens = claim.disclosed or claim.known.tokens
    n_prompt = claim.header.n_prompt
    job, params = claim.job, claim.job.params
    request = Request(
        network=bare.core.network,
        dispatcher=bare.core.dispatcher,
        project="",
        user="",
        job=RequestJob(
            tag="opml", prompt=job.prompt, model=job.model, model_id=claim.header.model_id, params=params
        ),
        min_operators=3,
        blind=False,
        nonce_source="client",
        issued_at=1,
    )
    text = canonical_json(encode(request)).decode()
    core = replace(bare.core, request_hash=hashes.request_hash(NONCE, text.encode()))
    return replace(
        bare,
        core=core,
        signature=b64u_decode(sign_statement(claimant.secret, encode(core))),
        request=text,
        prompt_tokens=tuple(tokens[:n_prompt]),
        tokens=tuple(tokens[n_prompt:]),
        text=claim.text,
        tokenizer=claim.engine.tokenizer.vocabulary.encoded(),
    )


@dataclass(frozen=True)
class Played:
    """A game that is over, or whose mover stays silent."""

    game: Game
    case: Case
    moves: list[tuple[Signed[Move], int]]
    at: int


def aimed(claim: Claim, own: Claim) -> Aim | None:
    """Where the owner of ``own`` challenges ``claim``, from what its claimant serves and disclosed."""
    tree = claim.known.tree
    served = served_tree(
        tree.root, tree.header.entry(), [b"".join(each) for each in tree.units], n_layers=claim.n_layers
    )
    disclosed = claim.disclosed or claim.known.tokens
    return aim(served, own.known.tree, claimed_tokens=disclosed, own_tokens=own.known.tokens)


def around(claim: Claim, kind: str, position: int) -> bytes:
    """The claimant's proof in a game around the model: what it has, true or not."""
    tree, trap = claim.known.tree, claim.known.trap
    if kind == "trap":
        return prove_trap(tree, trap)
    if kind != "tokens":
        return prove_header(tree)
    tail, opening = claim.n_layers + 1, None
    trapped = trap is not None and position == len(tree.units) - 1
    if claim.header.n_prompt - 1 <= position < len(tree.units) and not trapped:
        place = StatePlace(position=position, unit=tail, part=TOKEN, tile=0)
        opening = claim.at(position, tail).open_state(place)
    return prove_tokens(tree, claim.known.tokens, position, None if trap is None else trap[0], opening)


def dispute(
    claim: Claim,
    own: Claim,
    *,
    at: Aim | None = None,
    choices: Random | None = None,
    trick: str = "",
    names: tuple[str, str] = ("claimant", "challenger"),
) -> Played:
    """Play a game about ``claim``, whose challenger has ``own``. ``choices``: it chooses at random. ``trick`` is the
    claimant's: it stalls ("stall") or says two things at once ("contradict").
    """
    keys = {"claimant": Key(names[0]), "challenger": Key(names[1])}
    case = case_about(claim, keys["claimant"])
    target = at or aimed(claim, own)
    assert target is not None
    core = case.core
    first: Move = Open(
        network=core.network,
        challenger=keys["challenger"].address,
        claimant=core.operator,
        claim=case.claim,
        job_ref=core.job_ref,
        attempt=core.attempt,
        kind=target.kind,
        position=target.position,
        unit=target.unit,
        state_root=own.root if own.root != claim.root else bytes(32),
        leaf=target.leaf,
        bond=1,
    )
    moves: list[tuple[Signed[Move], int]] = [(sign(keys["challenger"].secret, first), 0)]
    game = start(RULES, case, moves[0][0], at=0)
    trace = claim.trace(target.position, target.unit) if target.kind == "unit" else None
    while game.mover is not None:
        if game.mover == "challenger":
            said = _chosen(game, own, choices)
        elif trick == "stall":
            return Played(game, case, moves, game.closes)
        elif trace is None:
            said = [players.prove(game, around(claim, target.kind, target.position))]
        else:
            said = [_answered(game, trace)]
            if trick == "contradict" and isinstance(said[0], Answer):
                said.append(replace(said[0], unit_root=bytes(32)))
        mover = keys[game.mover]
        for move in said:
            moves.append((sign(mover.secret, move), len(moves)))
            game = apply(game, REFEREE, moves[-1][0], at=moves[-1][1])
    return Played(game, case, moves, len(moves))


def _answered(game: Game, trace: UnitTrace | AbsentUnit) -> Move:
    try:
        return players.answer(game, REFEREE, trace)
    except (VerificationError, InvalidMessage):
        # What it committed cannot be opened at all: it signs that all the same.
        o = game.open
        return Answer(
            game=game.id,
            turn=game.turn,
            previous=game.taken[-1].hash,
            claimant=o.claimant,
            claim=o.claim,
            position=o.position,
            unit=o.unit,
            unit_root=bytes(32),
            children=bytes(64),
            bounds=trace.bounds,
        )


def _chosen(game: Game, own: Claim, choices: Random | None) -> list[Move]:
    assert game.opened is not None
    context = game.opened.context
    assert isinstance(context, Unit)
    if choices is None:
        position, unit = game.open.position, game.open.unit
        lies = own.told is not None
        trace = own.trace(position, unit, None if lies else context)
        assert isinstance(trace, UnitTrace)
        try:
            return [players.choose(game, trace)]
        except RuleViolation:
            if not lies:
                raise
    child = (choices or Random(game.id)).randrange(len(game.children))
    return [players.Choose(game=game.id, turn=game.turn, previous=game.taken[-1].hash, child=child)]


# --- random cases

JOBS = [
    Job(
        model=name,
        prompt=LONG[:560],
        max_tokens=6,
        temperature=temperature,
        top_k=top_k,
        repeat_penalty=penalty,
        seed=5,
    )
    for name in SHAPES
    for temperature, top_k, penalty in ((0, 0, 1_300_000), (800_000, 40, 1_100_000))
]
"""More than 256 positions each."""


def _place(rng: Random, run: Claim, units: range) -> tuple[int, int]:
    header = run.header
    edges = (0, 1, 254, 255, 256, 257, header.n_prompt - 2, header.n_prompt - 1, header.n_positions - 1)
    position = rng.choice((*edges, rng.randrange(header.n_positions), rng.randrange(256, header.n_positions)))
    return position, rng.choice(units)


def _of_op(rng: Random, job: Job, *names: str) -> Claim | None:
    run = honest(job)
    tail = run.n_layers + 1
    units = (
        range(tail + 1) if not names else range(tail, tail + 1) if names == ("logits",) else range(1, tail)
    )
    position, unit = _place(rng, run, units)
    if unit == tail:
        position = rng.randrange(run.header.n_prompt - 1, run.header.n_positions)
    shape = run.at(position, unit).shape
    op = rng.choice([op for op in shape.ops[:-1] if not names or op.name in names])
    tile = op.first + rng.choice((0, op.grid.tiles - 1, rng.randrange(op.grid.tiles)))
    how = rng.choice(("tile", "tile", "late", "output"))
    return lie_at(job, position, unit, tile, alteration=rng.choice(("bit", "signs")), how=how)


def _of_weight(rng: Random, job: Job) -> Claim | None:
    tensor = rng.choice(model(job.model)[1].file.tensors).name
    return weight(
        job, tensor, rng.randrange(1 << 20), rng.randrange(8), rng.choice(("its own", "the model's"))
    )


def _of_cache(rng: Random, job: Job) -> Claim | None:
    run = honest(job)
    return foreign_cache(job, *_place(rng, run, range(1, run.n_layers + 1)), rng)


def _of_skipped(rng: Random, job: Job) -> Claim | None:
    run = honest(job)
    return skipped_layer(job, *_place(rng, run, range(1, run.n_layers + 1)))


def _of_token(rng: Random, job: Job) -> Claim | None:
    header = honest(job).header
    position = rng.randrange(header.n_prompt - 1, header.n_positions)
    return replaced_token(job, position, rng.randrange(3, 200))


def _of_swap(rng: Random, job: Job) -> Claim | None:
    run = honest(job)
    at = rng.choice((0, 1, run.header.n_prompt - 1, rng.randrange(len(run.known.tokens))))
    at = rng.choice((at, rng.randrange(run.header.n_prompt, len(run.known.tokens))))
    return swapped_token(job, at, rng.randrange(3, 200), disclosed=rng.random() < 0.5)


KINDS: dict[str, Callable[[Random, Job], Claim | None]] = {
    "any op": _of_op,
    "one attention head": lambda rng, job: _of_op(
        rng, job, "attention", "mix", "mix.chunks", "scores", "exp"
    ),
    "one norm": lambda rng, job: _of_op(rng, job, "attn_norm", "ffn_norm", "attn_norm.sum", "ffn_norm.lanes"),
    "a tile of logits": lambda rng, job: _of_op(rng, job, "logits"),
    "a bit of a weight": _of_weight,
    "a skipped layer": _of_skipped,
    "a cache from elsewhere": _of_cache,
    "another seed": lambda rng, job: sampled_otherwise(job, seed=rng.randrange(10, 1 << 40)),
    "another temperature": lambda rng, job: sampled_otherwise(
        job, temperature=rng.randrange(900_000, 3_000_000)
    ),
    "an early stop": lambda rng, job: early_stop(job, rng.randrange(1, 6), rng.choice(("stop", "length"))),
    "a replaced token": _of_token,
    "a swapped token": _of_swap,
    "padding": lambda rng, job: padding(
        job, rng.choice((0, rng.randrange(200), honest(job).header.n_prompt - 2))
    ),
}


def play_case(number: int) -> Counter[str]:
    """A random lie, challenged by an honest party; the liar's challenge of the honest claim; another of the honest claim
    anywhere, by random choices: in random order. Raises AssertionError where an honest party lost, or was left to the
    clock, or the lie went through, or the verdict names another place. Returns how the games ended.
    """
    rng = Random(f"liar {number}")
    job = rng.choice(JOBS)
    names = list(KINDS)
    kind = names[number % len(names)] if rng.random() < 0.7 else "any op"
    run, claim = honest(job), None
    ends: Counter[str] = Counter()
    for _ in range(8):
        claim = KINDS[kind](rng, job)
        if claim is not None and claim.root != run.root:
            break
    else:
        ends[f"{kind}: nothing but what the next rounding swallows"] += 1
        return ends
    assert claim is not None
    story = (number, job, claim.told)
    trick = rng.choice(("",) * 8 + ("stall", "contradict"))
    position, unit = _place(rng, run, range(run.n_layers + 2))
    anywhere = Aim(kind="unit", position=position, unit=unit, leaf=rng.randbytes(32))
    back = aimed(run, claim)
    turns = [
        ("lie", lambda: dispute(claim, run, trick=trick, names=("liar", "honest"))),
        ("sham", lambda: dispute(run, claim, at=back, choices=_lost(back, rng), names=("honest", "liar"))),
        (
            "random sham",
            lambda: dispute(run, claim, at=anywhere, choices=rng, names=("honest", "other liar")),
        ),
    ]
    rng.shuffle(turns)
    games: list[Game] = []
    for role, play in turns:
        played = play()
        verdict = played.game.verdict(played.at)
        _check_again(played)
        if role != "lie":
            assert (verdict.state, verdict.against) == ("proven", "challenger"), (story, role, verdict)
            assert all(fault.party == "challenger" for fault in played.game.faults), (story, role)
            ends[f"{role}: {verdict.code}"] += 1
        else:
            assert verdict.against == "claimant", (story, verdict)
            assert all(fault.party == "claimant" for fault in played.game.faults), (story, verdict)
            assert verdict.state == ("defaulted" if trick == "stall" else "proven"), (story, verdict)
            if not trick:
                _names_the_place(played, claim, story)
            ends[f"{kind}{', ' if trick else ''}{trick}: {verdict.code}"] += 1
        games.append(played.game)
    claims = {game.open.claim: game.case.core.state_root for game in games}
    result = resolve(claims, games, RULES.window_ms)
    assert result.state_root == run.root, (story, result)
    return ends


def _lost(aimed_at: Aim | None, rng: Random) -> Random | None:
    """The liar chooses by its own run where it challenges a unit in which it differs, or else at random."""
    return None if aimed_at is not None and rng.random() < 0.7 else rng


def _names_the_place(played: Played, claim: Claim, story: object) -> None:
    """The verdict is about the unit of the lie and, where one tile was altered and shown, about that tile: or about the
    cuts, which are read from the committed record, where they are what the altered trace contradicts.
    """
    told, game = claim.told, played.game
    assert told is not None
    if told.unit >= 0:
        assert (game.open.kind, game.open.position, game.open.unit) == ("unit", told.position, told.unit), (
            story
        )
    if told.index >= 0 and told.what.endswith(", tile"):
        trace = claim.at(told.position, told.unit)
        cuts = [op.first for op in trace.shape.ops if op.name == "cuts"]
        assert game.node is not None, story
        assert game.node.first in (told.index, *cuts), (story, game.node)


def _check_again(played: Played) -> None:
    transcript = write_transcript(transcript_of(RULES, played.case, played.moves, judged_at=played.at))
    assert judge(transcript, REFEREE).verdict == played.game.verdict(played.at)
    assert played.game.size <= MAX_GAME_BYTES
