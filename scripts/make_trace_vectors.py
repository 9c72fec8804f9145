"""Make the vectors of the fine trace (vectors/aos/dispute/trace.json; docs/spec/11-trace.md).

``python scripts/make_trace_vectors.py`` writes them anew, from runs of the tiny models. A proof is checked from what the
vector holds: manifest, parameters, salt and state root of the run, bounds of the unit; no weights.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from dispute_runs import GREEDY, SALT, SAMPLED, TinyRun, changed, flipped, opened, tiny_run  # noqa: E402

from aos.core.dispute.fine.bounds import Unit, open_unit  # noqa: E402
from aos.core.dispute.fine.tile import check_tile  # noqa: E402
from aos.core.dispute.trace_tree import TraceTree, fanout, tile_hash  # noqa: E402
from aos.core.encoding import b64u_encode  # noqa: E402
from aos.engine.trace import UnitTrace  # noqa: E402
from aos.errors import AOSError  # noqa: E402

VECTORS = ROOT / "vectors" / "aos" / "dispute" / "trace.json"
PROMPT = "what is the meaning"
SIZES = (1, 2, 3, 255, 256, 257, 1_000, 65_536, 65_537, 59_681, 1_000_000, 256**3)
UNITS: list[tuple[str, str, dict[str, Any], int, int, bool]] = [
    # model, prompt, parameters, position from the end, unit, a proof of every op
    ("tiny-f32", PROMPT, SAMPLED, 0, 0, True),
    ("tiny-f32", PROMPT, SAMPLED, 0, 1, True),
    ("tiny-f32", PROMPT, SAMPLED, 0, 3, True),
    ("tiny-f32", PROMPT, GREEDY, 0, 3, False),
    ("tiny-q4_0", PROMPT, GREEDY, 1, 2, False),
    ("tiny-qwen2", PROMPT, GREEDY, 0, 1, False),
    ("tiny-qwen3-partial", PROMPT, SAMPLED, 0, 2, False),
    ("tiny-llama-3", PROMPT, SAMPLED, 0, 2, False),
    ("tiny-trap", "is it so? yes", GREEDY, 0, 1, False),
]


def tree_vector(n: int) -> dict[str, Any]:
    """Widths, and for small trees the root over tiles that hold their own number."""
    vector: dict[str, Any] = {"tiles": n, "fanout": list(fanout(n))}
    if n <= 1_000:
        tree = TraceTree([tile_hash(index.to_bytes(4, "big")) for index in range(n)])
        some = sorted({0, n // 3, n // 2, n - 1})
        path = [each.hex() for each in tree.path(some)]
        vector |= {"root": tree.root.hex(), "opened": some, "path": path}
    return vector


def run_vector(run: TinyRun) -> dict[str, Any]:
    """What a referee knows of a run."""
    known = run.known.run
    params = {name: value for name, value in asdict(known.params).items() if name != "seed"}  # type: ignore[call-overload]
    return {
        "manifest": known.manifest.json().decode(),
        "params": {**params, "stop": list(params["stop"])},
        "salt": SALT.hex(),
        "state_root": known.state_root.hex(),
    }


def unit_vector(
    name: str, prompt: str, members: dict[str, Any], back: int, unit: int, every: bool
) -> dict[str, Any]:
    """One unit's trace, with a valid proof of every op or of some, and invalid ones."""
    run = tiny_run(name, prompt, members)
    position = run.last - back
    trace = run.trace(position, unit)
    claim = opened(trace)
    proofs = []
    for number, op in enumerate(trace.shape.ops):
        if every or number % 9 == 0 or number == len(trace.shape.ops) - 1:
            index = op.first + op.grid.tiles // 2
            proof = trace.prove(index)
            proofs.append(
                {
                    "tile": index,
                    "proof": b64u_encode(proof),
                    "refused": [refusal(claim, trace.unit_root, index, proof, at) for at in places(proof)],
                }
            )
    lies = [lie(run, claim, position, unit, op.first) for op in trace.shape.ops[:: 2 if every else 12]]
    return {
        "model": name,
        **run_vector(run),
        "position": position,
        "unit": unit,
        "bounds": b64u_encode(trace.bounds),
        "tiles": trace.shape.n_tiles,
        "ops": [[op.name, op.first, op.grid.tiles, op.trap] for op in trace.shape.ops],
        "unit_root": trace.unit_root.hex(),
        "proofs": proofs,
        "lies": lies,
    }


def places(proof: bytes) -> list[int]:
    """Bytes to change: in the tile, among the operands, at the end."""
    return sorted({0, len(proof) // 6, len(proof) // 2, len(proof) - 1})


def refusal(claim: Unit, root: bytes, index: int, proof: bytes, at: int) -> list[Any]:
    """A byte whose lowest bit is flipped, and the code that it brings."""
    return [at, code_of(claim, root, index, flipped(proof, 8 * at))]


def lie(run: TinyRun, claim: Unit, position: int, unit: int, index: int) -> dict[str, Any]:
    """Who signed for another value."""
    liar: UnitTrace = changed(
        run.trace(position, unit), index, lambda tile: flipped(tile, 8 * (len(tile) // 2))
    )
    proof = liar.prove(index)
    return {
        "tile": index,
        "unit_root": liar.unit_root.hex(),
        "proof": b64u_encode(proof),
        "code": code_of(claim, liar.unit_root, index, proof),
    }


def code_of(claim: Unit, root: bytes, index: int, proof: bytes) -> str:
    """The code with which a proof is refused, empty where it holds."""
    try:
        check_tile(claim, root, index, proof)
    except AOSError as error:
        return error.code
    return ""


def committed_otherwise() -> dict[str, Any]:
    """A state root that commits to another residual than the trace has."""
    run = tiny_run("tiny-f32", PROMPT, SAMPLED)
    payload = list(run.trace(run.last, 1).payload(run.last, 1))
    payload[0] = flipped(payload[0], 0)

    class Liar(UnitTrace):
        def payload(self, position: int, unit: int) -> tuple[bytes, ...]:
            place = (position, unit) == (self.context.position, self.context.unit)
            return tuple(payload) if place else super().payload(position, unit)

    lying = run.committing(run.last, 1, payload)
    liar = Liar(lying.known, run.weights, run.engine, run.last, 1)
    index = liar.shape.named("residual").first
    proof = liar.prove(index)
    claim = open_unit(lying.known.run, run.last, 1, liar.bounds)
    return {
        "model": "tiny-f32",
        **run_vector(lying),
        "position": run.last,
        "unit": 1,
        "bounds": b64u_encode(liar.bounds),
        "tiles": liar.shape.n_tiles,
        "ops": [],
        "unit_root": liar.unit_root.hex(),
        "proofs": [],
        "lies": [
            {
                "tile": index,
                "unit_root": liar.unit_root.hex(),
                "proof": b64u_encode(proof),
                "code": code_of(claim, liar.unit_root, index, proof),
            }
        ],
    }


def main() -> None:
    """Write the file."""
    vector = {
        "description": "docs/spec/11-trace.md; made by scripts/make_trace_vectors.py",
        "trees": [tree_vector(n) for n in SIZES],
        "units": [*(unit_vector(*unit) for unit in UNITS), committed_otherwise()],
    }
    VECTORS.write_text(json.dumps(vector, indent=1) + "\n")


if __name__ == "__main__":
    main()
