"""Audits over the network (docs/spec/14-audit.md, "Over the network"): the page's members, the vectors, and what draws."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import typing
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_spec_members import form

from aos.core.codec import decode
from aos.core.dispute.audit_order import (
    CHUNK_BYTES,
    AuditAsked,
    AuditFound,
    AuditOpening,
    AuditOrder,
    beacon_of,
    check_chunk,
    check_opening,
    check_order,
    chunk_sizes,
)
from aos.core.encoding import b64u_decode
from aos.core.statements import ReceiptCore, check_signed, read_signed
from aos.errors import AOSError

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/spec/14-audit.md").read_text("utf-8")
VECTORS = json.loads((ROOT / "vectors/aos/dispute/audits.json").read_text("utf-8"))


@cache
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_audit_vectors", ROOT / "scripts/make_audit_vectors.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_lists_every_statement_member_by_member() -> None:
    rows = []
    for cls, by in (
        (AuditAsked, "auditor"),
        (AuditOrder, "D"),
        (AuditOpening, "operator"),
        (AuditFound, "auditor"),
    ):
        hints = typing.get_type_hints(cls, include_extras=True)
        members = "; ".join(f"`{f.name}` {form(hints[f.name])}" for f in fields(cls))
        rows.append(f"| `{cls.TYPE}` {cls.V} | {by} | {members} |")
    assert re.findall(r"^\| `aos\.audit_\w+` \d .*\|$", PAGE, re.M) == rows


def judged(case: dict[str, Any]) -> dict[str, Any]:
    """What an auditor, or a dispatcher, makes of a case: hexadecimal beacon and drawn layers; or the code of the refusal."""
    core = decode(ReceiptCore, VECTORS["core"])
    dispatcher, vrf_key = VECTORS["dispatcher"], bytes.fromhex(VECTORS["vrf_key"])
    try:
        asked = read_signed(AuditAsked, case["request"], where="request")
        order = read_signed(AuditOrder, case["order"], where="order")
        request = check_order(asked, order, core, vrf_key=vrf_key, dispatcher=dispatcher)
        drawn = list(request.drawn(case["n_layers"]))
        opening = read_signed(AuditOpening, case["opening"], where="opening")
        hashes = [b64u_decode(each, length=32) for each in case["hashes"]]
        check_opening(opening, order.statement, hashes, most=VECTORS["most"])
        for index, data in enumerate(case["chunks"]):
            chunk = data["fill"].encode() * data["size"]
            check_chunk(opening.statement, hashes, index, chunk)
        report = read_signed(AuditFound, case["report"], where="report")
        check_signed(report, address=asked.statement.auditor)
    except AOSError as error:
        return {"error": error.code}
    return {"error": None, "beacon": request.beacon.hex(), "drawn": drawn}


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any]) -> None:
    expected = {name: value for name, value in case.items() if name not in ("name", "changes")}
    assert judged(maker().changed(VECTORS["genuine"], case["changes"])) == expected


def test_the_script_makes_the_same_bytes() -> None:
    assert maker().made() == (ROOT / "vectors/aos/dispute/audits.json").read_text("utf-8")


def test_most_vectors_are_refused() -> None:
    refused = [case for case in VECTORS["cases"] if case["error"]]
    assert 2 * len(refused) > len(VECTORS["cases"])


def test_every_request_has_a_beacon_of_its_own() -> None:
    """One bit of the nonce, another claim, or another key gives another output; nobody without the VRF key has it."""
    m = maker()
    beacons = set()
    for changes in ({}, {"nonce": bytes(31) + b"\1"}, {"claim": bytes(32)}, {"layers": 2}):
        asked = m.asked(**changes)
        beacons.add(beacon_of(m.VRF_KEY, asked, m.prove(asked)))
    assert len(beacons) == 4


@pytest.mark.parametrize(
    ("size", "sizes"),
    [(1, [1]), (CHUNK_BYTES, [CHUNK_BYTES]), (2 * CHUNK_BYTES + 1, [CHUNK_BYTES, CHUNK_BYTES, 1])],
)
def test_chunks(size: int, sizes: list[int]) -> None:
    assert list(chunk_sizes(size)) == sizes
