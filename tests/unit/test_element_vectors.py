"""The vectors of elements (vectors/aos/dispute/elements.json; docs/spec/16-chain-disputes.md) by both: the Python referee, which
opens the unit itself, and the contracts' rules, which are given its context.
"""

import json
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from chain_steps import STEPS, context_of, referee
from dispute_runs import flipped
from engine_models import REPOSITORY
from evm import Deployed, Reverted, Revm, deploy

from aos.core.codec import decode
from aos.core.dispute.fine.bounds import Run, Unit, open_unit
from aos.core.dispute.fine.onchain import FAULTS, context_words
from aos.core.encoding import b64u_decode
from aos.core.manifest import Manifest

UNITS = json.loads((REPOSITORY / "vectors/aos/dispute/elements.json").read_text())["units"]


@cache
def steps() -> tuple[Deployed, ...]:
    """The rules, deployed once."""
    evm = Revm()
    return tuple(deploy(evm, name) for name in STEPS)


def unit_of(vector: dict[str, Any]) -> Unit:
    """The unit as a referee opens it."""
    run = Run(
        manifest=decode(Manifest, json.loads(vector["manifest"])),
        params=SimpleNamespace(**vector["params"]),
        salt=bytes.fromhex(vector["salt"]),
        state_root=bytes.fromhex(vector["state_root"]),
    )
    return open_unit(run, vector["position"], vector["unit"], b64u_decode(vector["bounds"]))


def proofs(case: dict[str, Any]) -> Iterator[tuple[bytes, int]]:
    """A case's proof and its changes, each with a contract's code."""
    proof = b64u_decode(case["proof"])
    yield proof, case["fault"]
    for at, fault in case.get("flipped", ()):
        yield flipped(proof, 8 * at), fault
    if "shorter" in case:
        yield proof[:-1], case["shorter"]
        yield proof + b"\0", case["longer"]


def fault(context: tuple[bytes | int, ...], case: dict[str, Any], proof: bytes) -> int:
    """The contract's code of a proof, 0 where it holds."""
    for step in steps():
        try:
            step.read("check", context, case["tile"], case["element"], case["shown"], proof)
        except Reverted as error:
            name = step.contract.error(error.data)
            if name == "OtherStep":
                continue
            assert name is not None
            assert name.startswith("Fault("), name
            return int(name[6:-1])
        return 0
    raise AssertionError(f"no contract has the rule of tile {case['tile']}")


@pytest.mark.parametrize("index", range(len(UNITS)))
def test_referee_and_contract_give_the_code_that_the_vector_says(index: int) -> None:
    vector = UNITS[index]
    unit = unit_of(vector)
    root = bytes.fromhex(vector["cases"][0]["unit_root"])
    words = b64u_decode(vector["context"])
    # The first words are the state root and the unit root, which a liar's case replaces.
    assert context_words(unit, root)[64:] == words[64:]
    for case in vector["cases"]:
        root = bytes.fromhex(case["unit_root"])
        context = context_of(unit, root)
        for proof, expected in proofs(case):
            code = referee(unit, root, case["tile"], case["element"], case["shown"], proof)
            assert code == FAULTS[expected]
            assert fault(context, case, proof) == expected, case["tile"]


def test_the_vectors_have_every_code() -> None:
    assert len(UNITS) >= 8
    found = {code for unit in UNITS for case in unit["cases"] for _, code in proofs(case)}
    assert found == set(range(12))
    assert any(case["shown"] != case["element"] for unit in UNITS for case in unit["cases"])
