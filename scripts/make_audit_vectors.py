"""Write ``vectors/aos/dispute/audits.json``: .venv/bin/python scripts/make_audit_vectors.py

Deterministic: keys are hashes of names. ``genuine`` is one audit over the network with its signed statements; a case changes
places of it. Who lies has signed the lie: changed statements are signed anew by ``resign``, unless it is the signature's case.
"""

import copy
import json
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from simulated_run import Network  # noqa: E402

from aos.core.codec import decode, encode  # noqa: E402
from aos.core.dispute.audit import AuditRequest  # noqa: E402
from aos.core.dispute.audit_order import (  # noqa: E402
    CHUNK_BYTES,
    AuditAsked,
    AuditFound,
    AuditOpening,
    AuditOrder,
    beacon_of,
    chunk_hash,
    chunks_root,
    prove_beacon,
)
from aos.core.encoding import b64u_encode  # noqa: E402
from aos.core.signing import address_of  # noqa: E402
from aos.core.statements import hash_of, sign  # noqa: E402
from aos.core.vrf import ecvrf_public_key  # noqa: E402

MOST = 64 << 20
N_LAYERS = 32


def _secret(name: str) -> bytes:
    return sha256(b"audit vectors: " + name.encode()).digest()


VRF_SEED = _secret("vrf")
VRF_KEY = ecvrf_public_key(VRF_SEED)
KEYS = {name: _secret(name) for name in ("dispatcher", "auditor", "operator", "other")}
ADDRESSES = {name: address_of(key) for name, key in KEYS.items()}
CORE = replace(
    Network().run().receipt.core,
    dispatcher=ADDRESSES["dispatcher"],
    operator=ADDRESSES["operator"],
    state_root=_secret("state root"),
)
DATA = [b"a" * CHUNK_BYTES, b"b" * 5]
HASHES = [chunk_hash(each) for each in DATA]
_SIGNERS = {
    "request": ("auditor", AuditAsked),
    "order": ("dispatcher", AuditOrder),
    "opening": ("operator", AuditOpening),
    "report": ("auditor", AuditFound),
}


def asked(**changes: Any) -> AuditAsked:
    """The genuine request, with changed members."""
    request = AuditAsked(
        network=CORE.network,
        dispatcher=ADDRESSES["dispatcher"],
        auditor=ADDRESSES["auditor"],
        claim=hash_of(CORE),
        layers=3,
        nonce=_secret("nonce"),
        time=1_790_000_000_000,
    )
    return replace(request, **changes)


def prove(request: AuditAsked) -> bytes:
    """The dispatcher's proof for a request."""
    return prove_beacon(VRF_SEED, request)


def genuine() -> dict[str, Any]:
    """A whole audit."""
    request = asked()
    audit = hash_of(request)
    order = AuditOrder(
        network=CORE.network,
        dispatcher=ADDRESSES["dispatcher"],
        audit=audit,
        claim=hash_of(CORE),
        operator=ADDRESSES["operator"],
        pi=prove(request),
        due_at=1_790_000_900_000,
    )
    opening = AuditOpening(
        network=CORE.network,
        operator=ADDRESSES["operator"],
        audit=audit,
        claim=hash_of(CORE),
        size=sum(map(len, DATA)),
        chunks_root=chunks_root(HASHES),
    )
    report = AuditFound(
        network=CORE.network,
        auditor=ADDRESSES["auditor"],
        audit=audit,
        chunks_root=opening.chunks_root,
        found="right",
        position=0,
        unit=0,
    )
    statements = {"request": request, "order": order, "opening": opening, "report": report}
    return {
        **{name: sign(KEYS[_SIGNERS[name][0]], value).to_json() for name, value in statements.items()},
        "n_layers": N_LAYERS,
        "hashes": [b64u_encode(each) for each in HASHES],
        "chunks": [{"fill": chr(data[0]), "size": len(data)} for data in DATA],
    }


def changed(document: Any, changes: list[Any]) -> Any:
    """A copy with changes: (path, value) sets a place."""
    out = copy.deepcopy(document)
    for path, value in changes:
        place = out
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
    return out


def _resigned(name: str, by: str | None = None, **members: Any) -> list[Any]:
    """The change that puts a statement with other members, honestly signed by its author or by somebody else."""
    signer, cls = _SIGNERS[name]
    value = replace(decode(cls, genuine()[name]["statement"]), **members)
    return [[name], sign(KEYS[by or signer], value).to_json()]


def _cases() -> list[tuple[str, list[Any], str | None]]:
    other, zero = ADDRESSES["other"], bytes(32)
    nonce = asked(nonce=zero)
    pi = prove(asked())
    turned = bytes([pi[0]]) + bytes([pi[1] ^ 1]) + pi[2:]
    unsigned = genuine()["order"]["signature"]
    cases: list[tuple[str, list[Any], str | None]] = [
        ("genuine", [], None),
        ("one layer of one", [[["n_layers"], 3]], None),
        ("a report of a difference", [_resigned("report", found="different", position=7, unit=3)], None),
        ("more layers than there are", [[["n_layers"], 2]], "audit.layers"),
        ("request by another", [_resigned("request", by="other")], "signature.wrong_signer"),
        (
            "request with the order's signature",
            [[["request", "signature"], unsigned]],
            "signature.wrong_signer",
        ),
        ("request of another network", [_resigned("request", network="other")], "audit.foreign"),
        ("request for another dispatcher", [_resigned("request", dispatcher=other)], "audit.foreign"),
        ("request about another claim", [_resigned("request", claim=zero)], "audit.foreign"),
        ("request for no layer", [[["request", "statement", "layers"], 0]], "field.range"),
        ("another request under the same order", [_resigned("request", nonce=zero)], "audit.foreign"),
        ("order by another", [_resigned("order", by="other")], "signature.wrong_signer"),
        ("order of another network", [_resigned("order", network="other")], "audit.foreign"),
        ("order of another dispatcher", [_resigned("order", dispatcher=other)], "audit.foreign"),
        ("order of another audit", [_resigned("order", audit=zero)], "audit.foreign"),
        ("order about another claim", [_resigned("order", claim=zero)], "audit.foreign"),
        ("order to another operator", [_resigned("order", operator=other)], "audit.foreign"),
        ("proof of another request", [_resigned("order", pi=prove(nonce))], "vrf.proof_invalid"),
        (
            "proof by another key",
            [_resigned("order", pi=prove_beacon(KEYS["other"], asked()))],
            "vrf.proof_invalid",
        ),
        ("proof with a changed bit", [_resigned("order", pi=turned)], "vrf.point_invalid"),
        ("opening by another", [_resigned("opening", by="other")], "signature.wrong_signer"),
        ("opening of another network", [_resigned("opening", network="other")], "audit.foreign"),
        ("opening by another operator", [_resigned("opening", operator=other)], "audit.foreign"),
        ("opening of another audit", [_resigned("opening", audit=zero)], "audit.foreign"),
        ("opening about another claim", [_resigned("opening", claim=zero)], "audit.foreign"),
        ("opening of more bytes than allowed", [_resigned("opening", size=MOST + 1)], "audit.too_large"),
        ("opening of nothing", [[["opening", "statement", "size"], 0]], "field.range"),
        ("opening of fewer chunks", [_resigned("opening", size=CHUNK_BYTES)], "audit.chunks"),
        ("opening of other chunks", [_resigned("opening", chunks_root=zero)], "audit.chunks"),
        ("one hash less", [[["hashes"], [b64u_encode(HASHES[0])]]], "audit.chunks"),
        (
            "hashes in another order",
            [[["hashes"], [b64u_encode(each) for each in HASHES[::-1]]]],
            "audit.chunks",
        ),
        ("another chunk", [[["chunks", 1, "fill"], "c"]], "audit.chunk"),
        ("a chunk too short", [[["chunks", 0, "size"], CHUNK_BYTES - 1]], "audit.chunk"),
        ("a chunk too long", [[["chunks", 1, "size"], 6]], "audit.chunk"),
        (
            "a chunk too many",
            [[["chunks"], [*genuine()["chunks"], {"fill": "c", "size": 1}]]],
            "audit.no_chunk",
        ),
        ("report by another", [_resigned("report", by="other")], "signature.wrong_signer"),
        ("report of something else", [[["report", "statement", "found"], "maybe"]], "field.range"),
    ]
    return cases


def made() -> str:
    """The file's text."""
    request = AuditRequest(
        state_root=CORE.state_root, beacon=beacon_of(VRF_KEY, asked(), prove(asked())), layers=3
    )
    cases = []
    for name, changes, error in _cases():
        layers = next((value for path, value in changes if path == ["n_layers"]), N_LAYERS)
        case: dict[str, Any] = {"name": name, "changes": changes, "error": error}
        if error is None:
            case |= {"beacon": request.beacon.hex(), "drawn": list(request.drawn(layers))}
        cases.append(case)
    document = {
        "core": encode(CORE),
        "dispatcher": ADDRESSES["dispatcher"],
        "vrf_key": VRF_KEY.hex(),
        "most": MOST,
        "genuine": genuine(),
        "cases": cases,
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    (ROOT / "vectors/aos/dispute/audits.json").write_text(made(), encoding="utf-8")
