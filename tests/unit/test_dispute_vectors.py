"""The vectors of moves and transcripts (docs/spec/13-dispute.md): judged alike, and made anew byte for byte."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aos.core.codec import decode
from aos.core.dispute.chain_claim import (
    CourtDomain,
    SignedChainClaim,
    check_claim,
    claim_digest,
    claim_hash,
    parse_claim,
)
from aos.core.dispute.fine.referee import Canonical
from aos.core.dispute.moves import read_move
from aos.core.dispute.transcript import judge
from aos.core.encoding import canonical_json
from aos.core.statements import ReceiptCore
from aos.errors import InvalidMessage, VerificationError

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "vectors/aos/dispute"
MOVES = json.loads((VECTORS / "moves.json").read_text("utf-8"))
CLAIMS = json.loads((VECTORS / "chain_claims.json").read_text("utf-8"))
TRANSCRIPTS = json.loads((VECTORS / "transcripts.json").read_text("utf-8"))


@cache
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_dispute_vectors", ROOT / "scripts/make_dispute_vectors.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", MOVES["cases"], ids=lambda case: case["name"])
def test_moves_are_read_or_refused_by_name(case: dict[str, Any]) -> None:
    if case["error"] is None:
        assert read_move(case["move"]).hash.hex() == case["hash"]
        return
    with pytest.raises(InvalidMessage) as caught:
        read_move(case["move"])
    assert caught.value.code == case["error"]


@pytest.mark.parametrize("case", CLAIMS["cases"], ids=lambda case: case["name"])
def test_claims_at_a_court_are_taken_or_refused_by_name(case: dict[str, Any]) -> None:
    core, domain = decode(ReceiptCore, CLAIMS["receipt"]), decode(CourtDomain, CLAIMS["domain"])

    def checked() -> SignedChainClaim:
        signed = parse_claim(json.dumps(case["claim"]).encode())
        check_claim(signed, core, domain, valid_until=CLAIMS["valid_until"])
        return signed

    if case["error"] is None:
        signed = checked()
        assert claim_hash(signed.claim).hex() == case["hash"]
        assert claim_digest(signed.claim, domain).hex() == case["digest"]
        return
    with pytest.raises((InvalidMessage, VerificationError)) as caught:
        checked()
    assert caught.value.code == case["error"]


@pytest.mark.parametrize("case", TRANSCRIPTS["cases"], ids=lambda case: case["name"])
def test_transcripts_are_judged_as_they_say(case: dict[str, Any]) -> None:
    document = json.loads(TRANSCRIPTS["files"][case["file"]])
    found = judge(canonical_json(maker().changed(document, case["changes"])), Canonical())
    failed = next((check for check in found.checks if check.status == "FAIL"), None)
    assert (found.state, found.exit_code) == (case["state"], case["exit_code"])
    assert (failed.id if failed else None) == case["check"]
    if failed is not None:
        assert failed.code == case["error"]
    faults = [] if found.game is None else [[fault.party, fault.code] for fault in found.game.faults]
    assert faults == case["faults"]


@pytest.mark.parametrize("name", ["moves", "transcripts", "chain_claims"])
def test_the_script_makes_the_same_bytes(name: str) -> None:
    made = maker().pretty(maker().MADE[name]())
    assert made == (VECTORS / f"{name}.json").read_text("utf-8")


def test_most_vectors_are_refused_or_convict() -> None:
    for vectors in (MOVES, TRANSCRIPTS, CLAIMS):
        refused = [case for case in vectors["cases"] if case["error"]]
        assert 2 * len(refused) > len(vectors["cases"])
