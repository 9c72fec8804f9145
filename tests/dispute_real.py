"""Disputes over the real trace of tiny models: real runs, real openings, a claimant that alters what it likes.

``honest_run`` computes a job; ``Liar`` claims the same job with one tile of one unit made up (and all that follows in the
unit recomputed from it), or shows another trace than that of what it committed; ``false_trap`` and ``hidden_trap`` lie about
where a run is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

from dispute_toy import Key, _template
from engine_models import model_bytes

from aos.core import hashes
from aos.core.codec import encode
from aos.core.dispute import players
from aos.core.dispute.case import Case
from aos.core.dispute.fine.bounds import Unit
from aos.core.dispute.fine.referee import Canonical
from aos.core.dispute.fine.tile import recomputed
from aos.core.dispute.game import Game, apply, start
from aos.core.dispute.moves import Move, Open
from aos.core.dispute.rules import Rules
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.state_tree import StateHeader, part_root, tokens_root, trap_leaf, unit_leaf
from aos.core.encoding import b64u_decode
from aos.core.signing import sign_statement
from aos.core.statements import Params, Signed, sign
from aos.engine.gguf import read_gguf
from aos.engine.reference import ReferenceEngine
from aos.engine.trace import AbsentUnit, KnownRun, ModelWeights, UnitTrace, _OwnOperands, known_run
from aos.ports import SamplingParams

NONCE = bytes(range(32))
RULES = Rules(bond=1)


@dataclass(frozen=True, slots=True)
class Job:
    """A model, a prompt and how to sample."""

    model: str
    prompt: str = "what is the"
    max_tokens: int = 4
    temperature: int = 1_000_000
    top_p: int = 900_000
    top_k: int = 0
    min_p: int = 0
    repeat_penalty: int = 1_000_000
    seed: int = 3

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )

    @property
    def params(self) -> Params:
        return Params(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            max_tokens=self.max_tokens,
            stop=(),
            seed=str(self.seed),
        )


@dataclass(frozen=True)
class Model:
    """A tiny model, loaded."""

    engine: ReferenceEngine
    weights: ModelWeights


@cache
def load(name: str) -> Model:
    path = Path(mkdtemp(prefix="aos-dispute-")) / f"{name}.gguf"
    path.write_bytes(model_bytes(name))
    engine = ReferenceEngine(path)
    return Model(engine=engine, weights=ModelWeights(read_gguf(path)))


@dataclass(frozen=True)
class RealRun:
    """A run, and the traces that its owner makes of it."""

    job: Job
    known: KnownRun

    @property
    def model(self) -> Model:
        return load(self.job.model)

    @property
    def root(self) -> bytes:
        return self.known.tree.root

    @property
    def units(self) -> list[list[bytes]]:
        return [list(leaves) for leaves in self.known.tree.units]

    def trace(self, position: int, unit: int, against: Unit | None = None) -> UnitTrace:
        return _trace(self, position, unit, None if against is None else _Against(against))


@dataclass(frozen=True)
class _Against:
    """Hashable by what a trace takes from it."""

    unit: Unit

    def __hash__(self) -> int:
        return hash((self.unit.leaf, self.unit.cuts))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Against) and (self.unit.leaf, self.unit.cuts) == (
            other.unit.leaf,
            other.unit.cuts,
        )


_TRACES: dict[Any, UnitTrace] = {}


def _trace(run: RealRun, position: int, unit: int, against: _Against | None) -> UnitTrace:
    key = (run.job, run.root, position, unit, against)
    if key not in _TRACES:
        model = run.model
        _TRACES[key] = UnitTrace(
            run.known,
            model.weights,
            model.engine,
            position,
            unit,
            against=None if against is None else against.unit,
        )
    return _TRACES[key]


@cache
def honest_run(job: Job) -> RealRun:
    model = load(job.model)
    run = model.engine._drive(model.engine.run(job.prompt, job.sampling, salt=NONCE), None, None)
    known = known_run(run, model.engine.manifest)
    return RealRun(job=job, known=replace(known, run=replace(known.run, params=job.params)))


class AlteredTrace(UnitTrace):
    """The trace of a run with one tile altered; the unit's later tiles follow from it."""

    def __init__(self, run: RealRun, position: int, unit: int, index: int) -> None:
        self.altered = index
        super().__init__(run.known, run.model.weights, run.model.engine, position, unit, fast=False)

    def _compute(self, fast: bool) -> list[bytes]:
        operands = _OwnOperands(self)
        for index in range(self.shape.n_tiles):
            tile = recomputed(operands, index)
            operands.tiles.append(flipped(tile) if index == self.altered else tile)
        return operands.tiles


def parts_of(trace: UnitTrace) -> list[bytes]:
    """The unit's payload as the trace's tiles have it."""
    found: dict[int, bytes] = {}
    for op in trace.shape.ops:
        if op.part is not None:
            found[op.part] = b"".join(trace.tiles[op.first : op.first + op.grid.tiles])
    context = trace.context
    return [found.get(part, b"") for part in range(len(context.state.parts(context.position, context.unit)))]


def leaf_of(trace: UnitTrace, parts: Sequence[bytes]) -> bytes:
    """The leaf of the trace's unit with this payload."""
    position, unit = trace.context.position, trace.context.unit
    shape = trace.context.state.parts(position, unit)
    roots = [part_root(data, part.tile_bytes) for data, part in zip(parts, shape, strict=True)]
    return unit_leaf(position, unit, roots)


def after(units: list[list[bytes]], position: int, unit: int) -> None:
    """Put hashes that no entry belongs to behind a place: the game never gets there."""
    rng = Random(f"{position} {unit}")
    for at, leaves in enumerate(units):
        for of in range(len(leaves)):
            if (at, of) > (position, unit):
                leaves[of] = rng.randbytes(32)


def flipped(tile: bytes) -> bytes:
    """One bit of a value turned over, the highest below the exponent of an fp32: a number stays finite."""
    at = 2 if len(tile) > 3 else 0
    return tile[:at] + bytes([tile[at] ^ 0x40]) + tile[at + 1 :]


@dataclass(frozen=True)
class Liar:
    """A claimant that alters one tile, and what follows in the unit with it. ``how``: in the game it shows that trace
    (``tile``), the honest one (``output``), or the honest one with the altered values where they are committed (``late``).
    """

    honest: RealRun
    position: int
    unit: int
    index: int
    how: str = "tile"

    @cached_property
    def altered(self) -> AlteredTrace:
        return AlteredTrace(self.honest, self.position, self.unit, self.index)

    @property
    def lies(self) -> bool:
        """Whether what it committed differs: most rounding errors die in the next quantisation."""
        return self.run.units[self.position][self.unit] != self.honest.units[self.position][self.unit]

    @cached_property
    def run(self) -> RealRun:
        """What it claims."""
        units = self.honest.units
        after(units, self.position, self.unit)
        units[self.position][self.unit] = leaf_of(self.altered, parts_of(self.altered))
        return claimed(self.honest, self.honest.known.tree.header, units)

    def trace(self) -> UnitTrace:
        """Its trace in the game: bounds of what it committed, tiles as it likes."""
        tiles = list(self.altered.tiles)
        if self.how != "tile":
            tiles = list(self.honest.trace(self.position, self.unit).tiles)
        if self.how == "late":
            for op in self.altered.shape.ops:
                if op.part is not None:
                    end = op.first + op.grid.tiles
                    tiles[op.first : end] = self.altered.tiles[op.first : end]
        return _Shown(self.run, self.position, self.unit, parts_of(self.altered), tiles)


class _Shown(UnitTrace):
    """A claimant's trace with bounds of what it committed. ``tiles`` None: those of its run."""

    def __init__(
        self, run: RealRun, position: int, unit: int, parts: Sequence[bytes], tiles: Sequence[bytes] | None
    ) -> None:
        self._place, self._shown_parts, self._shown = (position, unit), tuple(parts), tiles
        super().__init__(run.known, run.model.weights, run.model.engine, position, unit)

    def _compute(self, fast: bool) -> Sequence[bytes]:
        return super()._compute(False) if self._shown is None else self._shown

    def payload(self, position: int, unit: int) -> tuple[bytes, ...]:
        if (position, unit) == self._place and self._shown_parts:
            return self._shown_parts
        return super().payload(position, unit)


def claimed(
    honest: RealRun,
    header: StateHeader,
    units: list[list[bytes]],
    *,
    tokens: Sequence[int] | None = None,
) -> RealRun:
    """A claim of these leaves."""
    known = honest.known
    tree = StateTree(header, units)
    return replace(
        honest,
        known=KnownRun(
            run=replace(known.run, state_root=tree.root),
            tree=tree,
            tokens=known.tokens if tokens is None else tokens,
        ),
    )


def false_trap(honest: RealRun, position: int, unit: int, op: int) -> tuple[RealRun, UnitTrace]:
    """A claim that ``op`` of a unit in the prompt was not finite, and the claimant's trace."""
    header = honest.known.tree.header
    prompt = honest.known.tokens[: header.n_prompt]
    units = [*honest.units[:position], [*honest.units[position][:unit], trap_leaf(position, unit, op)]]
    false = replace(
        header,
        finish_reason="numeric_trap",
        n_out=0,
        n_positions=position + 1,
        tokens_root=tokens_root(prompt),
        tokens_hash=hashes.tokens_hash(NONCE, ()),
        response_hash=hashes.response_hash(NONCE, ""),
    )
    run = claimed(honest, false, units, tokens=prompt)
    return run, _Shown(run, position, unit, (), None)


def hidden_trap(trapped: RealRun) -> tuple[RealRun, UnitTrace]:
    """A claim that goes on where the run is not finite (in the prompt), and the claimant's trace."""
    known = trapped.known
    header, trap = known.tree.header, known.trap
    assert trap is not None
    assert header.n_out == 0
    position, unit = header.n_positions - 1, trap[0]
    n_units = load(trapped.job.model).engine._model.hyper.n_layers + 2
    tokens = [*known.tokens, 1]
    on = replace(
        header,
        finish_reason="length",
        n_out=1,
        n_positions=header.n_prompt,
        tokens_root=tokens_root(tokens),
        tokens_hash=hashes.tokens_hash(NONCE, (1,)),
    )
    units = [*trapped.units[:position], *([bytes(32)] * n_units for _ in range(header.n_prompt - position))]
    units[position][:unit] = trapped.units[position][:unit]
    after(units, position, unit)
    first = claimed(trapped, on, units, tokens=tokens)
    trace = _Shown(first, position, unit, (), None)
    parts = parts_of(trace)
    units[position][unit] = leaf_of(trace, parts)
    run = claimed(trapped, on, units, tokens=tokens)
    return run, _Shown(run, position, unit, parts, trace.tiles)


def case_of(run: RealRun, claimant: Key) -> Case:
    """The claim that ``claimant`` signs about a run."""
    header, engine = run.known.tree.header, run.model.engine
    core = replace(
        _template(),
        operator=claimant.address,
        model_id=engine.manifest.model_id,
        params_hash=hashes.params_hash(NONCE, run.job.params),
        sampling_seed=str(header.sampling_seed),
        n_prompt=header.n_prompt,
        n_out=header.n_out,
        finish_reason=header.finish_reason,
        prompt_tokens_hash=header.prompt_tokens_hash,
        tokens_hash=header.tokens_hash,
        response_hash=header.response_hash,
        state_root=run.root,
    )
    return Case(
        core=core,
        signature=b64u_decode(sign_statement(claimant.secret, encode(core))),
        manifest=engine.manifest.json().decode(),
        nonce=NONCE,
        params=run.job.params,
        request="",
        prompt_tokens=None,
        tokens=None,
        text=None,
        tokenizer=None,
    )


@dataclass(frozen=True)
class PlayedReal:
    """A game over the real trace, with its moves and their times."""

    game: Game
    case: Case
    moves: list[tuple[Signed[Move], int]]


def first_difference(a: RealRun, b: RealRun) -> tuple[int, int, bytes]:
    """Position, unit, and the leaf of ``b`` there."""
    for position, (left, right) in enumerate(zip(a.known.tree.units, b.known.tree.units, strict=False)):
        for unit, (one, other) in enumerate(zip(left, right, strict=False)):
            if one != other:
                return position, unit, other
    raise AssertionError("the runs do not differ")


def play(
    claim: RealRun,
    own: RealRun,
    trace: UnitTrace | AbsentUnit,
    *,
    at: tuple[int, int, bytes] | None = None,
    choices: Random | None = None,
) -> PlayedReal:
    """Play a game about ``claim``. ``trace`` is the claimant's; ``choices``: the challenger chooses at random."""
    claimant, challenger = Key("real claimant"), Key("real challenger")
    arithmetic = Canonical()
    case = case_of(claim, claimant)
    position, unit, leaf = at or first_difference(claim, own)
    core = case.core
    opening: Move = Open(
        network=core.network,
        challenger=challenger.address,
        claimant=claimant.address,
        claim=case.claim,
        job_ref=core.job_ref,
        attempt=core.attempt,
        kind="unit",
        position=position,
        unit=unit,
        state_root=own.root if own.root != claim.root else bytes(32),
        leaf=leaf,
        bond=1,
    )
    moves: list[tuple[Signed[Move], int]] = [(sign(challenger.secret, opening), 0)]
    game = start(RULES, case, moves[0][0], at=0)
    while game.mover is not None:
        move: Move
        if game.mover == "claimant":
            move, key = players.answer(game, arithmetic, trace), claimant
        else:
            assert game.opened is not None
            context = game.opened.context
            assert isinstance(context, Unit)
            move, key = _choice(game, own, context, choices), challenger
        moves.append((sign(key.secret, move), game.turn))
        game = apply(game, arithmetic, moves[-1][0], at=game.turn)
    return PlayedReal(game=game, case=case, moves=moves)


def _choice(game: Game, own: RealRun, context: Unit, choices: Random | None) -> Move:
    if choices is None:
        return players.choose(game, own.trace(game.open.position, game.open.unit, context))
    return players.Choose(
        game=game.id,
        turn=game.turn,
        previous=game.taken[-1].hash,
        child=choices.randrange(len(game.children)),
    )


def lies_of(job: Job, numbers: Sequence[int]) -> dict[str, int]:
    """SIMULATED disputes about one job: random lies, each challenged by an honest party, and as many sham challenges of the
    honest claim. Returns how often each end came; raises AssertionError where an honest party lost."""
    ends: dict[str, int] = {}

    def count(name: str) -> None:
        ends[name] = ends.get(name, 0) + 1

    run = honest_run(job)
    positions = run.known.tree.header.n_positions
    for number in numbers:
        rng = Random(f"{job} {number}")
        position = rng.choice((0, positions - 1, rng.randrange(positions)))
        unit = rng.randrange(len(run.units[position]))
        trace = run.trace(position, unit)
        n_tiles = trace.shape.n_tiles
        if trace.context.trapped:
            continue
        index = rng.choice((0, n_tiles - 2, rng.randrange(n_tiles - 1))) if n_tiles > 1 else 0
        how = rng.choice(("tile", "late", "output"))
        liar = Liar(run, position, unit, index, how)
        if liar.lies:
            played = play(liar.run, run, liar.trace())
            (fault,) = played.game.faults
            assert fault.party == "claimant", (job, number, fault)
            count(f"lie at {trace.shape.op_of(index).name}, {how}: {fault.code}")
        else:
            count("lie without effect")
        played = play(run, liar.run if liar.lies else run, trace, at=(position, unit, bytes(32)), choices=rng)
        assert [f.party for f in played.game.faults] == ["challenger"], (job, number, played.game.faults)
        count("sham: dispute.refuted")
    return ends
