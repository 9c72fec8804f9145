"""Make the vectors of elements (vectors/aos/dispute/elements.json; docs/spec/16-chain-disputes.md, "Elements").

``python scripts/make_element_vectors.py`` writes them anew, from runs of the tiny models. A proof is checked from what the
vector holds: a referee opens the unit from manifest, parameters, salt, state root and bounds; a contract takes ``context``,
the same unit as words. ``fault`` is a contract's code, 0 where the proof holds.
"""

import copy
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from dispute_runs import GREEDY, SALT, SAMPLED, TinyRun, changed, flipped, opened, tiny_run  # noqa: E402

from aos.core.dispute.fine.bounds import Unit  # noqa: E402
from aos.core.dispute.fine.chain_players import Claimed  # noqa: E402
from aos.core.dispute.fine.element import check_element, element_count  # noqa: E402
from aos.core.dispute.fine.onchain import FAULTS, context_words  # noqa: E402
from aos.core.dispute.state_opening import StateTree  # noqa: E402
from aos.core.dispute.state_tree import trap_leaf  # noqa: E402
from aos.core.encoding import b64u_encode  # noqa: E402
from aos.engine.trace import UnitTrace  # noqa: E402
from aos.errors import VerificationError  # noqa: E402

VECTORS = ROOT / "vectors" / "aos" / "dispute" / "elements.json"
PROMPT = "what is the meaning"
LAYER = (
    "attn_norm.lanes attn_norm attn_norm.quantised q.chunks q rope_q keys scores exp mix attention attn_residual "
    "activation down.chunks residual q.finite trap"
)
TAIL = "logits seen adjusted largest weights cuts before.chunks before.holds after after.holds running picks record token"
UNITS: list[tuple[str, dict[str, Any], int, str]] = [
    ("tiny-f32", SAMPLED, 0, "embedding"),
    ("tiny-q4_0", SAMPLED, 1, LAYER),
    ("tiny-mixed", SAMPLED, -1, TAIL),
]
ONES = 11


class Committing(UnitTrace):
    """The trace of a claimant that committed to another payload of this unit."""

    committed: tuple[bytes, ...]

    def payload(self, position: int, unit: int) -> tuple[bytes, ...]:
        own = (position, unit) == (self.context.position, self.context.unit)
        return self.committed if own else super().payload(position, unit)


def fault_of(unit: Unit, root: bytes, index: int, element: int, shown: int, proof: bytes) -> int:
    """A contract's code."""
    try:
        check_element(unit, root, index, element, shown, proof)
    except VerificationError as error:
        # Where operands are not finite, a tile that is all ones holds.
        ones = unit.shape is not None and proof.startswith(b"\xff" * unit.shape.tile_size(index))
        return ONES if error.code == "tile.value" and ones else FAULTS.index(error.code)
    return 0


def case(unit: Unit, trace: UnitTrace, index: int, element: int) -> dict[str, Any]:
    """What a claimant proves of an element."""
    shown, proof = trace.prove_element(index, element)
    return {
        "unit_root": trace.unit_root.hex(),
        "tile": index,
        "element": element,
        "shown": shown,
        "proof": b64u_encode(proof),
        "fault": fault_of(unit, trace.unit_root, index, element, shown, proof),
    }


def changes(unit: Unit, root: bytes, found: dict[str, Any], proof: bytes) -> list[list[int]]:
    """Bytes whose lowest bit is flipped, and the code that each brings."""
    at = (found["tile"], found["element"], found["shown"])
    bits = sorted({0, len(proof) // 6, len(proof) // 2, 2 * len(proof) // 3, len(proof) - 1})
    return [[bit, fault_of(unit, root, *at, flipped(proof, 8 * bit))] for bit in bits]


def unit_vector(run: TinyRun, trace: UnitTrace, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """What is known of a unit, and proofs about it."""
    known = run.known.run
    params = {name: value for name, value in asdict(known.params).items() if name != "seed"}  # type: ignore[call-overload]
    return {
        "manifest": known.manifest.json().decode(),
        "params": {**params, "stop": list(params["stop"])},
        "salt": SALT.hex(),
        "state_root": known.state_root.hex(),
        "position": trace.context.position,
        "unit": trace.context.unit,
        "bounds": b64u_encode(trace.bounds),
        "context": b64u_encode(context_words(opened(trace), trace.unit_root)),
        "cases": cases,
    }


def plain(name: str, members: dict[str, Any], number: int, ops: str) -> dict[str, Any]:
    """Of each op a proof that holds, with changes, and two lies: one value, and a tile of ones."""
    run = tiny_run(name, PROMPT, members)
    trace = run.trace(run.last, run.tail if number < 0 else number)
    unit, cases = opened(trace), []
    for op in (trace.shape.named(each) for each in ops.split()):
        index = op.first + op.grid.tiles // 2
        element = element_count(trace.shape, index) // 2
        valid = case(unit, trace, index, element)
        proof = trace.prove_element(index, element)[1]
        valid["flipped"] = changes(unit, trace.unit_root, valid, proof)
        valid["shorter"] = fault_of(unit, trace.unit_root, index, element, valid["shown"], proof[:-1])
        valid["longer"] = fault_of(unit, trace.unit_root, index, element, valid["shown"], proof + b"\0")
        cases.append(valid)
        size = op.element or len(trace.tiles[index])
        for other in (
            flipped(trace.tiles[index], 8 * element * size),
            b"\xff" * len(trace.tiles[index]),
        ):
            liar = changed(copy.copy(trace), index, lambda _, other=other: other)
            cases.append(case(unit, liar, index, element))
    return unit_vector(run, trace, cases)


def committed_otherwise() -> dict[str, Any]:
    """A claimant whose state root commits to another residual than its trace has."""
    run = tiny_run("tiny-f32", PROMPT, SAMPLED)
    residual, *others = run.trace(run.last, 1).payload(run.last, 1)
    payload = (flipped(residual, 0), *others)
    lying = run.committing(run.last, 1, payload)
    kind = type("Liar", (Committing,), {"committed": payload})
    trace = kind(lying.known, run.weights, run.engine, run.last, 1)
    index = trace.shape.named("residual").first
    return unit_vector(lying, trace, [case(opened(trace), trace, index, 0)])


def cut_otherwise() -> list[dict[str, Any]]:
    """Claimants whose sampler's record says other cuts than the rules give, before and after top_p."""
    run, found = tiny_run("tiny-f32", PROMPT, SAMPLED), []
    record = run.trace(run.last, run.tail).payload(run.last, run.tail)[1]
    cuts = [int.from_bytes(record[at : at + 4], "little") for at in (8, 12)]
    for number, op in enumerate(("before.holds", "after.holds")):
        before, after = (cut ^ (number == at) for at, cut in enumerate(cuts))
        against = Claimed(trap_op=0, cuts=(before, after))
        payload = run.trace(run.last, run.tail, against=against).payload(run.last, run.tail)
        lying = run.committing(run.last, run.tail, payload)
        trace = lying.trace(run.last, run.tail, against=against)
        index = trace.shape.named(op).first
        found.append(unit_vector(lying, trace, [case(opened(trace), trace, index, 0)]))
    return found


def trapped() -> list[dict[str, Any]]:
    """A run that trapped, and one that says another trap: a tile of ones that holds by another element, and the trap."""
    found = []
    run = tiny_run("tiny-trap", "is it so? yes", GREEDY)
    tree, number = run.known.tree, run.trace(run.last, 1).context.trap_op
    for trap in (number, number + 1):
        units = [list(each) for each in tree.units]
        units[run.last][1] = trap_leaf(run.last, 1, trap)
        said = run.with_tree(StateTree(tree.header, units))
        trace = said.trace(said.last, 1)
        unit = opened(trace)
        cases = [case(unit, trace, trace.shape.n_tiles - 1, 0)]
        ones = (i for i, tile in enumerate(trace.tiles) if len(tile) > 4 and tile == b"\xff" * len(tile))
        for index in list(ones)[:2]:
            cases += [
                case(unit, trace, index, element) for element in (0, element_count(trace.shape, index) - 1)
            ]
        found.append(unit_vector(said, trace, cases))
    return found


def main() -> None:
    """Write the file."""
    vector = {
        "description": "docs/spec/16-chain-disputes.md; made by scripts/make_element_vectors.py",
        "units": [*(plain(*each) for each in UNITS), committed_otherwise(), *cut_otherwise(), *trapped()],
    }
    VECTORS.write_text(json.dumps(vector, indent=1) + "\n")


if __name__ == "__main__":
    main()
