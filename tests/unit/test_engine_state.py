"""What an engine commits to can be opened: every tile of a real run, recomputed, under the root of the native engine
(docs/spec/07-inference.md, "State root", "Openings").
"""

import json
from pathlib import Path

import numpy as np
import pytest
from engine_models import VECTORS, model_bytes

from aos.core.arithmetic.floats import F16, F32
from aos.core.arithmetic.rope_table import table_leaf
from aos.core.arithmetic.sampler import Rules, choose
from aos.core.dispute.state_opening import (
    Place,
    open_tokens,
    verify_header,
    verify_tiles,
    verify_tokens,
    verify_trap,
)
from aos.core.dispute.state_tree import StateHeader, StateShape, shape_of
from aos.core.merkle import MerkleTree, verify_inclusion
from aos.engine import _native
from aos.engine.forward import Context, tail_logits
from aos.engine.native import NativeEngine
from aos.engine.reference import ReferenceEngine
from aos.errors import VerificationError
from aos.ports import SamplingParams

SALT = bytes(32)
Payloads = dict[tuple[int, int], list[bytes]]


class Payload:
    """A sink that keeps the parts of every unit."""

    def __init__(self) -> None:
        self.parts: Payloads = {}

    def embedding(self, first: int, residual: F32) -> None:
        for position, row in enumerate(residual, start=first):
            self.parts[position, 0] = [row.tobytes()]

    def layer(self, first: int, index: int, residual: F32, keys: F16, values: F16) -> None:
        for position, parts in enumerate(zip(residual, keys, values, strict=True), start=first):
            self.parts[position, index + 1] = [part.tobytes() for part in parts]


@pytest.fixture
def engines(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ReferenceEngine, NativeEngine]:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes(request.param))
    return ReferenceEngine(path), NativeEngine(path)


def shape_of_run(
    header: StateHeader, engine: ReferenceEngine, params: SamplingParams, trap_unit: int | None = None
) -> StateShape:
    graph = engine.manifest.graph
    assert graph is not None
    return shape_of(
        header,
        n_layers=graph.n_layers,
        width=graph.width,
        kv_width=graph.n_kv_heads * graph.head_width,
        n_vocab=graph.n_vocab,
        sampled=params.temperature > 0,
        trap_unit=trap_unit,
    )


def recomputed(
    engine: ReferenceEngine, params: SamplingParams, n_prompt: int, tokens: list[int], positions: int
) -> Payloads:
    """The parts of every unit, from the tokens alone."""
    payload = Payload()
    context = Context(engine._model, engine._cos, engine._sin)
    residuals, trap = context.extend(tokens[:positions], payload)
    assert trap is None
    for position in range(positions):
        unit = engine._model.hyper.n_layers + 1
        payload.parts[position, unit] = []
        if position < n_prompt - 1:
            continue
        logits = tail_logits(engine._model, residuals[position : position + 1])[0]
        rules = Rules(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repeat_penalty=params.repeat_penalty,
            seed=params.seed,
        )
        choice = choose(logits, tokens[: position + 1], position - n_prompt + 1, rules, 0)
        token = np.uint32(choice.token).tobytes()
        payload.parts[position, unit] = [logits.tobytes(), choice.record, token]
    return payload.parts


@pytest.mark.parametrize("engines", ["tiny-q4_0", "tiny-qwen3", "tiny-q6_k"], indirect=True)
@pytest.mark.parametrize("temperature", [0, 1_000_000])
def test_every_tile_of_a_run_opens_under_the_native_engines_root(
    engines: tuple[ReferenceEngine, NativeEngine], temperature: int
) -> None:
    reference, native = engines
    params = SamplingParams(temperature=temperature, max_tokens=3, seed=3, top_p=900_000)
    run = native._drive(native.run("what is", params, salt=SALT), None, None)
    root = run.result().state_root
    assert root is not None
    tree = run.leaves().tree(run.header())
    assert tree.root == root
    header = verify_header(root, tree.header.entry(), tree.open_header()).check()
    tokens = [*run.prompt, *run.tokens]
    data, path = open_tokens(tokens, 0)
    assert list(verify_tokens(header, 0, data, path)) == tokens[:64]
    shape = shape_of_run(header, reference, params)
    parts = recomputed(reference, params, len(run.prompt), tokens, header.n_positions)
    opened = 0
    for unit in range(shape.n_layers + 2):
        first = header.n_prompt - 1 if unit == shape.n_layers + 1 else 0
        count = header.n_positions - first
        for part, committed in enumerate(shape.parts(first, unit)):
            for tile in range(committed.tiles):
                place = Place(position=first, unit=unit, part=part, tile=tile, count=count)
                opening = tree.open_tiles(shape, place, [parts[at, unit] for at in place.positions])
                assert len(verify_tiles(root, shape, place, opening)) == count
                opened += count
    assert opened > 20
    # A value that was not computed does not open.
    place = Place(position=1, unit=1, part=1, tile=0)
    payload = [bytes([parts[1, 1][1][0] ^ 1]) + parts[1, 1][1][1:]]
    opening = tree.open_tiles(shape, place, [[parts[1, 1][0], *payload, parts[1, 1][2]]])
    with pytest.raises(VerificationError):
        verify_tiles(root, shape, place, opening)


@pytest.mark.parametrize("engines", ["tiny-trap"], indirect=True)
def test_a_trap_opens_under_the_root_of_its_run(engines: tuple[ReferenceEngine, NativeEngine]) -> None:
    vector = json.loads((VECTORS / "tiny-trap.json").read_text(encoding="utf-8"))
    trapped = 0
    for case in vector["cases"]:
        if case.get("finish_reason") != "numeric_trap":
            continue
        params = SamplingParams(**case["params"])
        run = engines[1]._drive(engines[1].run(case["prompt"], params, salt=SALT), None, None)
        root = run.result().state_root
        assert root is not None
        tree = run.leaves().tree(run.header())
        assert tree.root == root
        header = tree.header.check()
        position, unit, op = run._started().native.trap  # type: ignore[attr-defined]
        assert header.n_positions == position + 1
        shape = shape_of_run(header, engines[0], params, unit)
        verify_trap(root, shape, op, tree.open_leaves(position, unit))
        with pytest.raises(VerificationError):
            verify_trap(root, shape, op + 1, tree.open_leaves(position, unit))
        trapped += 1
    assert trapped >= 3


@pytest.mark.parametrize("engines", ["tiny-llama-3"], indirect=True)
def test_one_position_of_the_rotary_table_opens_under_the_manifest(
    engines: tuple[ReferenceEngine, NativeEngine],
) -> None:
    engine = engines[0]
    leaves = [table_leaf(c, s) for c, s in zip(engine._cos, engine._sin, strict=True)]
    tree = MerkleTree(leaves)
    for position in (0, 1, engine.n_ctx - 1):
        path = tree.range_path(position, 1)
        verify_inclusion(leaves[position], position, engine.n_ctx, path, engine.manifest.rope_table)
        with pytest.raises(VerificationError):
            verify_inclusion(leaves[2], position, engine.n_ctx, path, engine.manifest.rope_table)


def test_leaves_that_are_not_whole_digests_of_units_are_refused() -> None:
    for leaves, units in ((bytes(33), 3), (bytes(32), 0)):
        with pytest.raises(_native.Error):
            _native.root(b"header", leaves, units)
