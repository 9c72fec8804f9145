"""The fine trace and the one-tile referee (docs/spec/11-trace.md): every tile of an honest trace checks, and nothing else."""

import os
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from dispute_runs import GREEDY, SAMPLED, TinyRun, changed, flipped, opened, tiny_run
from dispute_sizes import SEVEN_B, benchmark, proof_size, sized_context, sized_shape
from engine_models import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from aos.core.arithmetic.floats import NumericTrap
from aos.core.arithmetic.sampler import choose
from aos.core.dispute.fine.bounds import Unit, open_unit
from aos.core.dispute.fine.tile import check_tile
from aos.core.dispute.state_opening import Place, StateOpening, StateTree
from aos.core.dispute.state_tree import trap_leaf
from aos.core.dispute.trace_tree import (
    MAX_TILES,
    TraceTree,
    TreeShape,
    fanout,
    opened_root,
    tile_hash,
)
from aos.core.manifest import TENSOR_TYPES, GraphSizes
from aos.engine.forward import Context, tail_logits
from aos.engine.native import NativeEngine
from aos.engine.trace import AbsentUnit, UnitTrace
from aos.errors import AOSError, InvalidMessage, VerificationError

MODELS = [model.name for model in tiny_models().MODELS]
PROMPT = "what is the meaning"


def places(run: TinyRun) -> list[tuple[int, int]]:
    """The embedding, one layer and the tail at the last position; and a tail that chooses nothing."""
    last, units = run.last, len(run.known.tree.units[run.last])
    found = {(last, 0), (last, min(1 + last % max(run.tail - 1, 1), units - 1)), (last, units - 1)}
    return sorted(found | {(0, run.tail)} if run.known.tree.header.n_prompt > 1 and last > 0 else found)


def check_all(trace: UnitTrace) -> Unit:
    """Every tile of an honest trace."""
    unit = opened(trace)
    assert unit.shape is not None
    assert unit.shape.n_tiles == trace.shape.n_tiles
    assert dict(unit.outputs).items() <= dict(trace.outputs).items()
    for index in range(trace.shape.n_tiles):
        check_tile(unit, trace.unit_root, index, trace.prove(index))
    return unit


@pytest.mark.parametrize("name", MODELS)
def test_every_tile_of_an_honest_trace_checks(name: str) -> None:
    members = SAMPLED if MODELS.index(name) % 2 else GREEDY
    prompt = "is it so? yes" if name == "tiny-trap" else PROMPT
    run = tiny_run(name, prompt, members)
    for position, unit in places(run):
        trace = run.trace(position, unit)
        check_all(trace)
        assert trace.tiles == run.trace(position, unit, fast=False).tiles


@pytest.mark.parametrize(
    "members", [GREEDY, SAMPLED, SAMPLED | {"top_k": 1}, SAMPLED | {"top_k": 0, "min_p": 0}]
)
@pytest.mark.parametrize("top_p", [0, 300_000, 1_000_000])
def test_every_sampling_rule_checks(members: dict[str, Any], top_p: int) -> None:
    run = tiny_run("tiny-f32", PROMPT, members | {"top_p": top_p})
    check_all(run.trace(run.last, run.tail))


def test_more_than_a_chunk_of_positions_checks() -> None:
    run = tiny_run("tiny-f16", "the end of it " * 34, SAMPLED)
    assert run.last > 300
    for position in (run.last, 256, 255):
        trace = run.trace(position, 1)
        unit = opened(trace)
        for op in trace.shape.ops:
            if op.whole is None or op.name in ("scores", "mix"):
                for tile in {0, op.grid.tiles // 2, op.grid.tiles - 1}:
                    check_tile(unit, trace.unit_root, op.first + tile, trace.prove(op.first + tile))


@pytest.mark.parametrize("name", ["tiny-mixed", "tiny-qwen3-partial", "tiny-trap"])
def test_the_native_engine_keeps_what_the_reference_engine_keeps(name: str) -> None:
    run = tiny_run(name, "is it so? yes", GREEDY)
    native = NativeEngine(run.weights.file.path)
    units = list(range(run.tail))
    ours, theirs = (each.capture(run.known.tokens, units) for each in (run.engine, native))
    count = run.last if run.known.trap is not None else run.last + 1
    for unit in units:
        a, b = ours.residuals(unit)[:count], theirs.residuals(unit)[:count]
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))
    for layer in range(run.tail - 1):
        for mine, other in zip(ours.cache(layer, 0, count), theirs.cache(layer, 0, count), strict=True):
            np.testing.assert_array_equal(mine.view(np.uint16), other.view(np.uint16))
    for kept in (None, theirs):
        trace = UnitTrace(run.known, run.weights, native, run.last, 1, capture=kept)
        assert trace.unit_root == run.trace(run.last, 1).unit_root


# --- proofs that do not hold

REFUSED = {
    "tile.length",
    "tile.path",
    "tile.state",
    "tile.tokens",
    "tile.weights",
    "tile.rope",
    "state.opening",
}


@pytest.mark.parametrize(("name", "members"), [("tiny-qwen2", SAMPLED), ("tiny-qwen3-partial", GREEDY)])
def test_any_flipped_bit_of_a_proof_is_refused(name: str, members: dict[str, Any]) -> None:
    run, rng = tiny_run(name, PROMPT, members), random.Random(7)
    seen = set()
    for position, unit in ((run.last, 0), (run.last, 1), (run.last, run.tail)):
        trace = run.trace(position, unit)
        claim, root = opened(trace), trace.unit_root
        for op in trace.shape.ops:
            index = op.first + rng.randrange(op.grid.tiles)
            proof = trace.prove(index)
            check_tile(claim, root, index, proof)
            for _ in range(12):
                with pytest.raises(VerificationError) as caught:
                    check_tile(claim, root, index, flipped(proof, rng.randrange(8 * len(proof))))
                seen.add(caught.value.code)
            for other in (proof[:-1], proof + b"\0", b"", proof[1:], proof + bytes(40_960)):
                with pytest.raises(VerificationError) as caught:
                    check_tile(claim, root, index, other)
            with pytest.raises(VerificationError, match="unit root"):
                check_tile(claim, flipped(root, 3), index, proof)
    assert seen <= REFUSED
    assert seen >= {"tile.path", "tile.state", "tile.tokens", "tile.weights", "tile.rope"}


@pytest.mark.parametrize(
    ("name", "members"), [("tiny-q4_0", SAMPLED), ("tiny-qwen3", GREEDY), ("tiny-qwen2", SAMPLED)]
)
def test_a_lie_in_any_op_is_found_where_it_is_told(name: str, members: dict[str, Any]) -> None:
    run, rng = tiny_run(name, PROMPT, members), random.Random(8)
    for position, unit in ((run.last, 0), (run.last, 1), (run.last, run.tail)):
        honest = run.trace(position, unit)
        claim = opened(honest)
        for op in honest.shape.ops:
            index = op.first + rng.randrange(op.grid.tiles)
            bit = rng.randrange(8 * len(honest.tiles[index]))
            liar = run.trace(position, unit)
            changed(liar, index, lambda tile, bit=bit: flipped(tile, bit))
            with pytest.raises(VerificationError) as caught:
                check_tile(claim, liar.unit_root, index, liar.prove(index))
            assert caught.value.code == "tile.value", op.name


PATTERNS = [
    b"\xff" * 4,
    *(np.float32(x).tobytes() for x in (np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, 0.0, -0.0, 1e19)),
]


def garbage(rng: random.Random, size: int) -> bytes:
    """Bytes that no op computes."""
    if rng.random() < 0.3:
        return rng.randbytes(size)
    one = [rng.choice(PATTERNS)] if rng.random() < 0.5 else PATTERNS
    return b"".join(rng.choice(one) for _ in range(size // 4 + 1))[:size]


@pytest.mark.parametrize(
    ("name", "members"), [("tiny-f32", SAMPLED), ("tiny-qwen3-partial", GREEDY), ("tiny-q6_k", SAMPLED)]
)
def test_whoever_signs_garbage_is_refused_and_never_stops_the_referee(
    name: str, members: dict[str, Any]
) -> None:
    run, rng = tiny_run(name, PROMPT, members), random.Random(10)
    codes = set()
    for unit in (0, 1, run.tail):
        for share in (0.3, 0.9, 1.0):
            liar = run.trace(run.last, unit)
            claim = opened(liar)
            liar.tiles = [garbage(rng, len(tile)) if rng.random() < share else tile for tile in liar.tiles]
            liar._tree = TraceTree([tile_hash(tile) for tile in liar.tiles])
            for op in liar.shape.ops:
                index = op.first + rng.randrange(op.grid.tiles)
                try:
                    check_tile(claim, liar.unit_root, index, liar.prove(index))
                except VerificationError as error:
                    codes.add(error.code)
    assert "tile.value" in codes
    assert codes <= {"tile.value", "tile.commitment", "tile.cut", "tile.trap", "tile.state"}


def test_operands_of_another_place_are_refused() -> None:
    run = tiny_run("tiny-q4_0", PROMPT, SAMPLED)
    trace = run.trace(run.last, 1)
    claim = opened(trace)
    scores = trace.shape.named("scores")

    class Elsewhere(UnitTrace):
        def open_state(self, place: Place) -> StateOpening:
            return super().open_state(replace(place, position=place.position + 1, count=place.count))

    liar = Elsewhere(run.known, run.weights, run.engine, run.last, 1)
    with pytest.raises(VerificationError) as caught:
        check_tile(claim, liar.unit_root, scores.first, liar.prove(scores.first))
    assert caught.value.code == "tile.state"


def test_another_tensors_or_rows_weights_are_refused() -> None:
    run = tiny_run("tiny-q4_0", PROMPT, GREEDY)
    trace = run.trace(run.last, 1)
    claim, index = opened(trace), trace.shape.named("k.chunks").first

    class Elsewhere(UnitTrace):
        moved: dict[str, Any]

        def open_weights(self, block: Any) -> Any:
            return super().open_weights(replace(block, **self.moved))

    for moved in (
        {"tensor": "blk.0.attn_v.weight"},
        {"tensor": "blk.1.attn_k.weight"},
        {"first_row": 4, "end_row": 8},
    ):
        Elsewhere.moved = moved
        liar = Elsewhere(run.known, run.weights, run.engine, run.last, 1)
        with pytest.raises(VerificationError) as caught:
            check_tile(claim, liar.unit_root, index, liar.prove(index))
        assert caught.value.code == "tile.weights"


# --- what the state root commits to


def convicted(claim: Unit, liar: UnitTrace, honest: UnitTrace) -> str:
    """The code with which the liar is convicted at the first tile where claim and honest trace part."""
    own = dict(honest.outputs)
    parted = [i for i, (a, b) in enumerate(zip(liar.tile_hashes, honest.tile_hashes, strict=True)) if a != b]
    parted += [index for index, committed in claim.outputs if own[index] != committed]
    with pytest.raises(VerificationError) as caught:
        check_tile(claim, liar.unit_root, parted[0], liar.prove(parted[0]))
    return caught.value.code


@pytest.mark.parametrize(("unit", "part"), [(0, 0), (1, 0), (1, 1), (1, 2), (3, 0), (3, 1), (3, 2)])
def test_a_state_root_that_commits_to_another_value_is_found(unit: int, part: int) -> None:
    run = tiny_run("tiny-q4_0", PROMPT, SAMPLED)
    honest = run.trace(run.last, unit)
    payload = list(honest.payload(run.last, unit))
    payload[part] = flipped(payload[part], 8 * (len(payload[part]) - 1))

    class Liar(UnitTrace):
        def payload(self, position: int, unit: int) -> tuple[bytes, ...]:
            place = (position, unit) == (self.context.position, self.context.unit)
            return tuple(payload) if place else super().payload(position, unit)

    lying = run.committing(run.last, unit, payload)
    liar = Liar(lying.known, run.weights, run.engine, run.last, unit)
    claim = opened(liar)
    checked = run.trace(run.last, unit, against=claim)
    assert convicted(claim, liar, checked) == "tile.commitment"


@pytest.mark.parametrize("shift", [8, 12])
def test_a_cut_that_is_not_the_samplers_is_found(shift: int) -> None:
    """A record with another cut, and everything after it computed from that cut."""
    run = tiny_run("tiny-f32", PROMPT, SAMPLED)
    honest = run.trace(run.last, run.tail)
    record = bytearray(honest.payload(run.last, run.tail)[1])
    wrong = int.from_bytes(record[shift : shift + 4], "little") ^ 1
    record[shift : shift + 4] = wrong.to_bytes(4, "little")
    lying_cuts = tuple(int.from_bytes(record[at : at + 4], "little") for at in (8, 12))

    class Liar(UnitTrace):
        pass

    liar = Liar(
        run.known,
        run.weights,
        run.engine,
        run.last,
        run.tail,
        against=replace(opened(honest), cuts=lying_cuts),
    )
    payload = liar.payload(run.last, run.tail)
    lying = run.committing(run.last, run.tail, payload)
    liar.known = lying.known
    liar.context = replace(liar.context, state_root=lying.known.run.state_root)
    claim = opened(liar)
    assert claim.cuts == lying_cuts
    checked = run.trace(run.last, run.tail, against=claim)
    assert convicted(claim, liar, checked) == "tile.cut"


def test_a_trap_where_there_is_none_is_found() -> None:
    run = tiny_run("tiny-q4_0", PROMPT, GREEDY)
    header = replace(run.known.tree.header, finish_reason="numeric_trap", n_positions=run.last + 1, n_out=1)
    header = replace(header, n_prompt=run.last)
    units = [list(each) for each in run.known.tree.units]
    units[-1] = [units[-1][0], trap_leaf(run.last, 1, 8)]
    lying = run.with_tree(StateTree(header, units))
    liar = lying.trace(run.last, 1)
    claim = opened(liar)
    checked = run.trace(run.last, 1, against=claim)
    assert convicted(claim, liar, checked) == "tile.trap"


def test_the_last_position_says_where_a_run_trapped() -> None:
    run = tiny_run("tiny-trap", "is it so? yes", GREEDY)
    assert run.known.trap is not None
    unit, last = run.known.trap[0], run.last
    bounds = AbsentUnit(run.known).bounds
    for position, absent in ((last, unit + 1), (last + 1, 0)):
        assert open_unit(run.known.run, position, absent, bounds).context is None
    # Who names an earlier unit would have none at the one that is challenged.
    at = 240 + 32 * (last + 1).bit_length()
    for lie, code in ((bytes(4), "tile.bounds"), (bytes(4) + bounds[at + 4 :], "state.opening")):
        with pytest.raises(VerificationError) as caught:
            open_unit(run.known.run, last, unit, bounds[:at] + lie)
        assert caught.value.code == code


def test_a_trap_that_is_missing_is_found() -> None:
    run = tiny_run("tiny-trap", "is it so? yes", GREEDY)
    assert run.known.trap is not None
    unit = run.known.trap[0]
    header = replace(
        run.known.tree.header,
        finish_reason="length",
        n_out=1,
        n_prompt=run.last + 1,
        n_positions=run.last + 1,
    )
    units = [list(each) for each in run.known.tree.units]
    honest = run.trace(run.last, unit)
    op = honest.shape.named("residual")
    residual = b"".join(honest.tiles[op.first : op.first + op.grid.tiles])
    graph = run.engine.manifest.graph
    assert graph is not None
    payload = (residual, bytes(2 * graph.kv_width), bytes(2 * graph.kv_width))
    units[-1] = [*units[-1], *[bytes(32)] * (run.tail + 1 - len(units[-1]))]
    lying = run.with_tree(StateTree(header, units))

    class Liar(UnitTrace):
        def payload(self, position: int, unit: int) -> tuple[bytes, ...]:
            place = (position, unit) == (self.context.position, self.context.unit)
            return payload if place else super().payload(position, unit)

    from aos.core.dispute.state_tree import part_root, unit_leaf

    units[-1][unit] = unit_leaf(
        run.last, unit, [part_root(payload[0], 1024), *(part_root(x, 512) for x in payload[1:])]
    )
    lying = run.with_tree(StateTree(header, units))
    liar = Liar(lying.known, run.weights, run.engine, run.last, unit)
    claim = opened(liar)
    checked = run.trace(run.last, unit, against=claim)
    own = dict(checked.outputs)
    assert own[checked.shape.n_tiles - 1] != dict(claim.outputs)[checked.shape.n_tiles - 1]
    with pytest.raises(VerificationError) as caught:
        check_tile(claim, liar.unit_root, checked.shape.n_tiles - 1, liar.prove(checked.shape.n_tiles - 1))
    assert caught.value.code == "tile.trap"


# --- bounds


def test_any_flipped_bit_of_the_bounds_is_refused() -> None:
    rng = random.Random(9)
    for name, prompt, members, unit in (
        ("tiny-q4_0", PROMPT, SAMPLED, 3),
        ("tiny-q4_0", PROMPT, GREEDY, 1),
        ("tiny-trap", "is it so? yes", GREEDY, 1),
    ):
        run = tiny_run(name, prompt, members)
        trace = run.trace(run.last, unit)
        bounds = trace.bounds
        for bit in rng.sample(range(8 * len(bounds)), 60):
            with pytest.raises((VerificationError, InvalidMessage)) as caught:
                open_unit(run.known.run, run.last, unit, flipped(bounds, bit))
            assert caught.value.code.split(".")[0] in ("tile", "state", "merkle")
        for other in (b"", bounds[:-1], bounds + b"\0", bytes(40_000)):
            with pytest.raises((VerificationError, InvalidMessage)):
                open_unit(run.known.run, run.last, unit, other)


def test_bounds_of_another_run_model_or_place_are_refused() -> None:
    run, other = tiny_run("tiny-q4_0", PROMPT, SAMPLED), tiny_run("tiny-f32", PROMPT, SAMPLED)
    bounds, known = run.trace(run.last, 1).bounds, run.known.run
    for wrong in (
        replace(known, manifest=other.known.run.manifest),
        replace(
            known, params=other.engine.run(PROMPT, replace(known.params, top_k=7), salt=bytes(32)).params
        ),
        replace(known, salt=bytes(32)),
        replace(known, state_root=bytes(32)),
    ):
        with pytest.raises(AOSError) as caught:
            open_unit(wrong, run.last, 1, bounds)
        assert caught.value.code in ("tile.header", "tile.bounds", "state.opening")
    with pytest.raises(AOSError):
        open_unit(known, run.last, 2, bounds)
    header = run.known.tree.header.entry() + b"".join(run.known.tree.open_header())
    assert open_unit(known, run.last + 1, 1, header).shape is None


# --- the tree


@given(st.integers(1, MAX_TILES))
def test_the_fan_out_is_even_and_holds_every_tile(n: int) -> None:
    widths = fanout(n)
    assert 1 <= len(widths) <= 3
    assert max(widths) <= 256
    assert int(np.prod(widths)) >= n
    assert len(widths) == 1 or 256 ** (len(widths) - 1) < n
    narrower = max(widths) - 1
    assert narrower ** len(widths) < n


def test_no_other_number_of_tiles_has_a_tree() -> None:
    for n in (0, -1, MAX_TILES + 1):
        with pytest.raises(InvalidMessage, match="tiles"):
            fanout(n)


@given(st.integers(1, 3000), st.data())
def test_opened_tiles_lead_to_the_root_and_no_others(n: int, data: st.DataObject) -> None:
    hashes = [tile_hash(index.to_bytes(4, "big")) for index in range(n)]
    tree, shape = TraceTree(hashes), TreeShape(n)
    some = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=20)))
    path = tree.path(some)
    known = {index: hashes[index] for index in some}
    rest = iter(path)
    assert opened_root(shape, known, rest) == tree.root
    assert list(rest) == []
    wrong = {**known, some[0]: bytes(32)}
    assert opened_root(shape, wrong, iter(path)) != tree.root
    level = data.draw(st.integers(0, shape.depth - 1))
    index = data.draw(st.integers(0, shape.count(level) - 1))
    children = tree.children(level, index)
    assert 1 <= len(children) <= 256


# --- sizes


@pytest.mark.parametrize("name", ["tiny-qwen3-partial", "tiny-q8_0"])
def test_the_sizes_of_proofs_follow_from_the_shape_alone(name: str) -> None:
    run = tiny_run(name, PROMPT, SAMPLED)
    for unit in (0, 1, run.tail):
        trace = run.trace(run.last, unit)
        types = {tensor.name: tensor.type for tensor in run.weights.file.tensors}
        for op in trace.shape.ops:
            if op.name != TRAP_OP:
                assert proof_size(trace.context, trace.shape, op.first, types) == len(
                    trace.prove(op.first)
                ), op.name


TRAP_OP = "trap"
WIDE = replace(
    SEVEN_B, width=8192, ff_width=28_672, n_heads=64, n_kv_heads=8, n_layers=80, n_vocab=152_064, n_ctx=32_768
)


@pytest.mark.parametrize(
    ("graph", "architecture", "position", "most"),
    [
        (SEVEN_B, "llama", 2000, 18_000),
        (SEVEN_B, "llama", 4095, 18_000),
        (WIDE, "qwen2", 32_000, 40_960),
        (replace(WIDE, n_layers=64, head_width=128, tied=True), "qwen3", 5000, 40_960),
    ],
)
@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "Q6_K", "F16", "F32"])
def test_no_proof_is_longer_than_the_bound(
    graph: GraphSizes, architecture: str, position: int, most: int, type_name: str
) -> None:
    stored = next(kind for kind in TENSOR_TYPES.values() if kind.name == type_name)
    if type_name == "F32":
        most = max(most, 23_000)
    for unit in (0, 1, graph.n_layers + 1):
        context = sized_context(graph, architecture, position, unit)
        shape = sized_shape(context)
        for op in shape.ops:
            for tile in {0, op.grid.tiles // 2, op.grid.tiles - 1}:
                size = proof_size(context, shape, op.first + tile, stored)
                assert size <= most, (op.name, size)


@pytest.mark.skipif(
    not os.environ.get("AOS_DISPUTE_7B"), reason="set AOS_DISPUTE_7B=1 (about a minute, 2 GB)"
)
def test_every_kind_of_op_of_the_7b_shape_checks_in_ten_milliseconds() -> None:
    for unit in (0, SEVEN_B.n_layers, SEVEN_B.n_layers + 1):
        trace, claim, _ = benchmark().synthetic(unit, types={"output": "Q6_K"})
        for name, cost in benchmark().measured(trace, claim, 4).items():
            assert cost.size <= 20_000, name
            assert cost.largest <= 10, name


# --- traps


class Loud:
    """An engine whose kept run is too loud: the residual before a unit, and the layer's earlier keys, are multiplied."""

    def __init__(self, run: TinyRun, unit: int, residual: float, keys: float) -> None:
        self.run, self.unit, self.scale, self.keys = run, unit, residual, keys

    def capture(self, tokens: Any, units: Any) -> "Loud":
        self.kept = self.run.engine.capture(tokens, units)
        return self

    def residuals(self, unit: int) -> Any:
        found = self.kept.residuals(unit)
        if unit != self.unit - 1:
            return found
        return np.clip(found * np.float64(self.scale), -3e38, 3e38).astype(np.float32)

    def cache(self, layer: int, first: int, end: int) -> Any:
        keys, values = self.kept.cache(layer, first, end)
        return np.clip(keys * np.float64(self.keys), -65504, 65504).astype(np.float16), values


class Nothing:
    """A sink."""

    def layer(self, *_: Any) -> None:
        pass


def reference_trap(run: TinyRun, loud: Loud, unit: int) -> int:
    """The op that traps in the reference engine's own unit; 0 where none does."""
    engine, position = run.engine, run.last
    x = loud.residuals(unit - 1)[position : position + 1].astype(np.float32)
    try:
        if unit == run.tail:
            with np.errstate(all="ignore"):
                logits = tail_logits(engine._model, x)[0]
                choose(
                    logits, run.known.tokens[: position + 1], 0, run.trace(position, unit).context.rules, 21
                )
            return 0
        context = Context(engine._model, engine._cos, engine._sin)
        context._reserve(position + 1)
        keys, values = loud.cache(unit - 1, 0, position)
        shape = (position, context.model.hyper.n_kv_heads, -1)
        context._keys[unit - 1][:, :, :position] = keys.reshape(shape).transpose(2, 1, 0)
        context._values[unit - 1][:position] = values.reshape(shape)
        with np.errstate(all="ignore"):
            context._layer(unit - 1, x, position, Nothing())  # type: ignore[arg-type]
    except NumericTrap as found:
        return found.op
    return 0


@pytest.mark.parametrize("name", ["tiny-f32", "tiny-q8_0", "tiny-qwen2", "tiny-qwen3", "tiny-mixed"])
def test_the_last_tile_names_the_op_that_traps_first(name: str) -> None:
    run = tiny_run(name, PROMPT, SAMPLED)
    seen = set()
    for unit, scale, keys in [
        *(
            (unit, scale, 1.0)
            for unit in (1, run.tail)
            for scale in (1.0, 1e12, 1e18, 1e19, 3e19, 1e30, 1e38)
        ),
        *((1, scale, keys) for scale in (1.0, 1e18) for keys in (1e3, 1e9)),
    ]:
        loud = Loud(run, unit, scale, keys)
        trace = UnitTrace(run.known, run.weights, loud, run.last, unit)
        assert trace.tiles == UnitTrace(run.known, run.weights, loud, run.last, unit, fast=False).tiles
        op = int.from_bytes(trace.tiles[-1], "little")
        assert op == reference_trap(run, loud, unit), (unit, scale, keys)
        seen.add(op)
    assert {0, 2, 19} <= seen


LOUD_TENSORS = {
    "attn_q": 3,
    "attn_k": 4,
    "attn_v": 5,
    "attn_output": 11,
    "ffn_gate": 14,
    "ffn_up": 15,
    "ffn_down": 17,
}


@pytest.mark.parametrize(("tensor", "op"), LOUD_TENSORS.items())
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_loud_weight_traps_in_its_own_product(tensor: str, op: int, architecture: str) -> None:
    graph = replace(
        SEVEN_B,
        n_layers=1,
        width=64,
        ff_width=96,
        n_heads=2,
        n_kv_heads=1,
        head_width=32,
        n_rot=32,
        n_vocab=300,
    )
    trace, claim, _ = benchmark().synthetic(
        1,
        graph=graph,
        position=20,
        architecture=architecture,
        default="F32",
        loud={**({"ffn_gate": 50, "ffn_up": 50} if op == 17 else {}), tensor: 1e40},
    )
    assert int.from_bytes(trace.tiles[-1], "little") == op
    # The claim says that nothing trapped.
    with pytest.raises(VerificationError) as caught:
        check_tile(claim, trace.unit_root, trace.shape.n_tiles - 1, trace.prove(trace.shape.n_tiles - 1))
    assert caught.value.code == "tile.trap"
    for index in range(0, trace.shape.n_tiles - 1, 7):
        part = trace.shape.op_of(index).part
        if part is None:
            check_tile(claim, trace.unit_root, index, trace.prove(index))
