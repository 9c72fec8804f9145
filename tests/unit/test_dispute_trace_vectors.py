"""The vectors of the fine trace, judged without a model (vectors/aos/dispute/trace.json; docs/spec/11-trace.md)."""

import json
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from dispute_runs import flipped
from engine_models import REPOSITORY

from aos.core.codec import decode
from aos.core.dispute.fine.bounds import Run, Unit, open_unit
from aos.core.dispute.fine.tile import check_tile
from aos.core.dispute.trace_tree import TraceTree, TreeShape, fanout, opened_root, tile_hash
from aos.core.encoding import b64u_decode
from aos.core.manifest import Manifest
from aos.errors import VerificationError


@cache
def vectors() -> dict[str, Any]:
    """The file."""
    path = REPOSITORY / "vectors" / "aos" / "dispute" / "trace.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def unit_of(vector: dict[str, Any]) -> Unit:
    """The unit as a referee opens it."""
    run = Run(
        manifest=decode(Manifest, json.loads(vector["manifest"])),
        params=SimpleNamespace(**vector["params"]),
        salt=bytes.fromhex(vector["salt"]),
        state_root=bytes.fromhex(vector["state_root"]),
    )
    return open_unit(run, vector["position"], vector["unit"], b64u_decode(vector["bounds"]))


@pytest.mark.parametrize("index", range(12))
def test_trees(index: int) -> None:
    vector = vectors()["trees"][index]
    n = vector["tiles"]
    assert list(fanout(n)) == vector["fanout"]
    if "root" in vector:
        hashes = [tile_hash(tile.to_bytes(4, "big")) for tile in range(n)]
        assert TraceTree(hashes).root.hex() == vector["root"]
        path = iter(bytes.fromhex(each) for each in vector["path"])
        known = {tile: hashes[tile] for tile in vector["opened"]}
        assert opened_root(TreeShape(n), known, path).hex() == vector["root"]
        assert list(path) == []


@pytest.mark.parametrize("index", range(10))
def test_units(index: int) -> None:
    vector = vectors()["units"][index]
    unit, root = unit_of(vector), bytes.fromhex(vector["unit_root"])
    assert unit.shape is not None
    assert unit.shape.n_tiles == vector["tiles"]
    if vector["ops"]:
        assert [[op.name, op.first, op.grid.tiles, op.trap] for op in unit.shape.ops] == vector["ops"]
    for valid in vector["proofs"]:
        proof = b64u_decode(valid["proof"])
        check_tile(unit, root, valid["tile"], proof)
        for at, code in valid["refused"]:
            with pytest.raises(VerificationError) as caught:
                check_tile(unit, root, valid["tile"], flipped(proof, 8 * at))
            assert caught.value.code == code
    for lie in vector["lies"]:
        with pytest.raises(VerificationError) as caught:
            check_tile(unit, bytes.fromhex(lie["unit_root"]), lie["tile"], b64u_decode(lie["proof"]))
        assert caught.value.code == lie["code"]


def test_there_are_more_invalid_proofs_than_valid_ones_and_most_codes_among_them() -> None:
    units = vectors()["units"]
    assert len(units) == 10
    assert len(vectors()["trees"]) == 12
    codes = {code for unit in units for valid in unit["proofs"] for _, code in valid["refused"]}
    codes |= {lie["code"] for unit in units for lie in unit["lies"]}
    assert codes >= {
        "tile.value",
        "tile.path",
        "tile.state",
        "tile.weights",
        "tile.rope",
        "tile.tokens",
        "tile.commitment",
    }
