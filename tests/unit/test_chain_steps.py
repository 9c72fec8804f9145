"""The contracts' one-step rules give the Python referee's verdicts, op by op, true and false; and an element of a tile is
judged as the tile is.
"""

import copy
import random
from dataclasses import replace
from functools import cache

import pytest
from chain_play import Player
from chain_steps import STEPS, context_of, judged, referee
from dispute_runs import GREEDY, SAMPLED, TinyRun, changed, flipped, opened, tiny_run
from evm import ACCOUNTS, Deployed, Revm, deploy

from aos.core.dispute.fine.bounds import Unit
from aos.core.dispute.fine.element import check_element, element_count
from aos.core.dispute.fine.tile import check_tile
from aos.engine.trace import UnitTrace
from aos.errors import InvalidMessage, VerificationError

PROMPT = "what is the meaning"


@cache
def steps() -> tuple[Deployed, ...]:
    """The rules, deployed once."""
    evm = Revm()
    return tuple(deploy(evm, name) for name in STEPS)


def agree(unit: Unit, trace: UnitTrace, index: int, element: int) -> str:
    """Both verdicts about the trace's own proof, which must be one."""
    shown, proof = trace.prove_element(index, element)
    expected = referee(unit, trace.unit_root, index, element, shown, proof)
    _, found = judged(steps(), context_of(unit, trace.unit_root), index, element, shown, proof)
    assert found == expected, trace.shape.op_of(index).name
    return found


UNITS = [
    ("tiny-f32", PROMPT, SAMPLED, 0),
    ("tiny-qwen3-partial", PROMPT, SAMPLED, 1),
    ("tiny-qwen2", PROMPT, GREEDY, 1),
    ("tiny-mixed", PROMPT, SAMPLED, -1),
    ("tiny-trap", "is it so? yes", GREEDY, 1),
]


def unit_of(name: str, prompt: str, members: dict[str, object], unit: int) -> tuple[TinyRun, UnitTrace, Unit]:
    run = tiny_run(name, prompt, members)
    trace = run.trace(run.last, run.tail if unit < 0 else unit)
    return run, trace, opened(trace)


@pytest.mark.parametrize(("name", "prompt", "members", "unit"), UNITS)
def test_contract_and_referee_agree_about_every_op(
    name: str, prompt: str, members: dict[str, object], unit: int
) -> None:
    _, trace, claim = unit_of(name, prompt, members, unit)
    rng = random.Random(name)
    for op in trace.shape.ops:
        tile = rng.randrange(op.grid.tiles)
        index = op.first + tile
        element = rng.randrange(element_count(trace.shape, index))
        assert agree(claim, trace, index, element) == ""
        size = op.element or op.grid.tile_size(tile)
        bit = 8 * element * size + rng.randrange(8 * size)
        liar = changed(copy.copy(trace), index, lambda data, bit=bit: flipped(data, bit))
        assert agree(claim, liar, index, element) != ""


@pytest.mark.parametrize(("name", "prompt", "members", "unit"), [UNITS[0], UNITS[3], UNITS[4]])
def test_a_tile_is_right_exactly_where_its_elements_are(
    name: str, prompt: str, members: dict[str, object], unit: int
) -> None:
    _, trace, claim = unit_of(name, prompt, members, unit)
    rng = random.Random(name)

    def wrong(about: UnitTrace, index: int) -> set[str]:
        """The codes of all elements of a tile."""
        codes = set()
        for element in range(element_count(trace.shape, index)):
            shown, proof = about.prove_element(index, element)
            codes.add(referee(claim, about.unit_root, index, element, shown, proof))
        return codes

    for op in trace.shape.ops:
        index = op.first + rng.randrange(op.grid.tiles)
        if element_count(trace.shape, index) > 32:
            continue
        assert wrong(trace, index) == {""}
        data = trace.tiles[index]
        for other in (flipped(data, rng.randrange(8 * len(data))), b"\xff" * len(data)):
            liar = changed(copy.copy(trace), index, lambda _, other=other: other)
            code = ""
            try:
                check_tile(claim, liar.unit_root, index, liar.prove(index))
            except VerificationError as error:
                code = error.code
            assert (wrong(liar, index) == {""}) == (code == ""), op.name


def test_any_changed_proof_is_refused_for_the_same_reason() -> None:
    rng = random.Random(5)
    for name, prompt, members, unit in UNITS:
        _, trace, claim = unit_of(name, prompt, members, unit)
        context = context_of(claim, trace.unit_root)
        for op in trace.shape.ops[:: 1 + len(trace.shape.ops) // 8]:
            shown, proof = trace.prove_element(op.first, 0)
            for other in (
                flipped(proof, rng.randrange(8 * len(proof))),
                flipped(proof, rng.randrange(8 * len(proof))),
                proof[:-1],
                proof + b"\0",
            ):
                expected = referee(claim, trace.unit_root, op.first, 0, shown, other)
                assert expected != ""
                assert judged(steps(), context, op.first, 0, shown, other)[1] == expected, op.name


def test_the_rarer_faults_agree() -> None:
    _, trace, claim = unit_of("tiny-f32", PROMPT, SAMPLED, 0)
    shown, proof = trace.prove_element(0, 0)
    other = flipped(proof, 8 * len(trace.tiles[0]) + 3)
    context = context_of(claim, trace.unit_root)
    assert referee(claim, trace.unit_root, 0, 0, shown, other) == "tile.tokens"
    assert judged(steps(), context, 0, 0, shown, other)[1] == "tile.tokens"
    # The unit's leaf is a trap that is not there.
    assert claim.context is not None
    trapped = replace(claim, context=replace(claim.context, trap_op=1))
    assert agree(trapped, trace, trace.shape.n_tiles - 1, 0) == "tile.trap"
    # The cuts are not those of the run's rules.
    _, trace, claim = unit_of("tiny-f32", PROMPT, SAMPLED, -1)
    assert claim.context is not None
    rules = replace(claim.context.rules, top_k=3, top_p=1_000_000)
    trace.context = replace(trace.context, rules=rules)
    claim = replace(claim, context=replace(claim.context, rules=rules))
    found = set()
    for name in ("before.holds", "after.holds"):
        index = trace.shape.named(name).first
        liar = changed(copy.copy(trace), index, lambda _: bytes(4))
        found.add(agree(claim, liar, index, 0))
    assert "tile.cut" in found


def test_no_tile_has_more_elements_than_it_has() -> None:
    _, trace, claim = unit_of(*UNITS[0])
    count = element_count(trace.shape, 0)
    with pytest.raises(InvalidMessage, match="elements"):
        trace.prove_element(0, count)
    with pytest.raises(InvalidMessage, match="elements"):
        check_element(claim, trace.unit_root, 0, count, 0, b"")
    shown, proof = trace.prove_element(0, 0)
    context = context_of(claim, trace.unit_root)
    product = steps()[STEPS.index("StepProduct")]
    product.refuses("NoSuchElement", ACCOUNTS[0], "check", context, 0, count, shown, proof)


def test_random_games_end_as_the_referee_says() -> None:
    player = Player(11)
    played = [player.play(number) for number in range(0, len(player.names), 3)]
    assert [each for each in played if each.contract != each.referee] == []
    assert len({each.op for each in played}) == len(played)
    assert len({each.referee for each in played}) >= 2
