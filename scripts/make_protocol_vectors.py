"""Write ``vectors/aos/sortition`` and ``vectors/aos/receipt``: .venv/bin/python scripts/make_protocol_vectors.py

Deterministic: keys are hashes of names. The answer files are those of ``tests/simulated_run.py``: real signatures and proofs,
no inference. A case of ``receipt`` is a genuine file with some values replaced; who lies has signed the lie.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/adversarial")]

from test_receipt_conditions import BY_NAME, NETWORK  # noqa: E402

from aos.core import sortition  # noqa: E402
from aos.core.answer import Answer, write_answer  # noqa: E402
from aos.core.codec import encode  # noqa: E402
from aos.core.receipt import verify_answer  # noqa: E402
from aos.core.trust import load_policy  # noqa: E402
from aos.errors import AOSError  # noqa: E402

SEED = bytes(range(64))
MISSING = {"absent": True}


def outcome(call: Any, *arguments: Any) -> dict[str, Any]:
    """What a function gives, or the code with which it refuses."""
    try:
        return {"result": call(*arguments), "error": None}
    except AOSError as error:
        return {"result": None, "error": error.code}


def node(number: int) -> str:
    return f"0x{number:040x}"


def sortition_vectors() -> dict[str, Any]:
    million = 10**6
    thresholds = [
        (0, million, 0), (0, million, 10), (1, million, 10), (200_000, million, 0), (200_000, million, 3),
        (20_000, million, 3), (600_000, million, 10), (million, million, 10), (1, 1, 0), (1, 33, 3), (7, 34, 3),
        (2**53 - 1, 2**53 - 1, 10), (-1, million, 0), (million + 1, million, 0), (1, 0, 0), (1, -1, 0), (1, 2**53, 0),
        (1, million, -1), (1, million, 101),
        (2, 1, 0), (0, 0, 0), (5, 4, 100),
    ]  # fmt: skip
    edge = (7 * 2**512) // 10
    betas = [
        (edge, 7, 10), (edge + 1, 7, 10), (0, 0, 10), (0, 1, 2**53 - 1), (2**512 - 1, 10, 10), (2**512 - 1, 9, 10),
    ]  # fmt: skip
    bad_betas = [
        (bytes(63), 1, 10),
        (bytes(65), 1, 10),
        (b"", 1, 10),
        (bytes(64), -1, 10),
        (bytes(64), 11, 10),
        (bytes(64), 1, 0),
    ]
    pools = {
        "four": [(node(1), 100), (node(2), 300), (node(3), 0), (node(4), 600)],
        "nobody": [],
        "no width": [(node(9), 0), (node(8), 0)],
        "one": [(node(1), 5)],
    }
    fills = [
        ("four", 1, [], 1), ("four", 1, [], 3), ("four", 1, [], 9), ("four", 7, [], 2), ("four", 1, [4], 2),
        ("four", 1, [1, 2, 3, 4], 2), ("nobody", 1, [], 2), ("no width", 1, [], 2), ("one", 1, [], 2),
    ]  # fmt: skip
    cases = []
    for name, attempt, excluded, wanted in fills:
        gone = [node(n) for n in excluded]
        chosen = sortition.fill_seats(SEED, attempt, pools[name], gone, wanted)
        cases.append(
            {
                "candidates": pools[name],
                "attempt": attempt,
                "excluded": gone,
                "wanted": wanted,
                "result": chosen,
                "error": None,
            }
        )
    refused = [
        ([(node(1), 5), (node(1), 5)], 1, 1, SEED), ([(node(1), -1)], 1, 1, SEED), (pools["four"], 1, -1, SEED),
        (pools["four"], -1, 1, SEED), (pools["four"], 2**32, 1, SEED), (pools["four"], 1, 1, SEED[:63]),
        (pools["four"], 1, 1, b""), (pools["four"], 1, 1, SEED + b"\0"), ([(node(1), 1), (node(2), -5)], 1, 2, SEED),
    ]  # fmt: skip
    for candidates, attempt, wanted, seed in refused:
        case = {
            "candidates": candidates,
            "attempt": attempt,
            "excluded": [],
            "wanted": wanted,
            "draw_seed": seed.hex(),
        }
        cases.append(case | outcome(sortition.fill_seats, seed, attempt, candidates, (), wanted))
    ranges = [
        [(1, 0, 10), (2, 10, 20)], [(2, 5, 100)], [], [(1, 0, 10), (2, 9, 20)], [(1, 5, 5)], [(1, 6, 5)],
        [(1, 0, 101)], [(1, 0, 10), (1, 10, 20)], [(1, -1, 10)], [(1, 0, 50), (2, 10, 20)],
    ]  # fmt: skip
    return {
        "about": "docs/spec/04-sortition.md; draw_seed is 000102…3f where a case has none; error is the code of the refusal",
        "threshold": [
            {"width": w, "max_range": m, "percent": c} | outcome(sortition.threshold, w, m, c)
            for w, m, c in thresholds
        ],
        "selected": [
            {"beta": b.to_bytes(64, "big").hex(), "threshold": t, "max_range": m}
            | outcome(sortition.is_selected, b.to_bytes(64, "big"), t, m)
            for b, t, m in betas
        ]
        + [
            {"beta": b.hex(), "threshold": t, "max_range": m} | outcome(sortition.is_selected, b, t, m)
            for b, t, m in bad_betas
        ],
        "fill": cases,
        "order": [
            {"attempt": a, "nodes": [node(n) for n in ns]}
            | outcome(sortition.seat_order, SEED, a, [node(n) for n in ns])
            for a, ns in ((1, (1, 2, 3)), (2, (1, 2, 3)), (1, ()), (1, (1, 1)), (2**32, (1,)), (-1, (1,)))
        ],
        "ranges": [
            {"max_range": 100, "ranges": [[node(n), a, b] for n, a, b in rs]}
            | outcome(
                sortition.validate_ranges,
                [sortition.OperatorRange(node_id=node(n), start=a, end=b) for n, a, b in rs],
                100,
            )
            for rs in ranges
        ],
    }


def changes(before: Any, after: Any, path: tuple[str | int, ...] = ()) -> list[list[Any]]:
    """[path, value] pairs that turn one JSON value into another; {"absent": true} takes a member away."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for name in sorted({*before, *after}):
            if name not in after:
                found.append([[*path, name], MISSING])
            elif name not in before:
                found.append([[*path, name], after[name]])
            else:
                found += changes(before[name], after[name], (*path, name))
        return found
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            c for i, (b, a) in enumerate(zip(before, after, strict=True)) for c in changes(b, a, (*path, i))
        ]
    return [] if before == after and type(before) is type(after) else [[list(path), after]]


HONEST: dict[str, dict[str, Any]] = {
    "a blind run": {"blind": True, "min_operators": 2},
    "a re-run for a flag": {"tag": "malicious", "position": "before", "min_operators": 2},
    "an operator that did not answer": {"silent": ["opml-2"], "min_operators": 2},
}


def receipt_vectors() -> dict[str, Any]:
    genuine = {
        "three": NETWORK.run(),
        "two": NETWORK.run(min_operators=2),
        "one": NETWORK.run(min_operators=1),
        "tee": NETWORK.run(job_type="tee"),
        "retry": NETWORK.run(attempt=2, min_operators=1),
    }
    files = {name: write_answer(answer) for name, answer in genuine.items()}
    documents = {name: json.loads(data) for name, data in files.items()}
    trust = NETWORK.trust()
    cases = []

    def case(name: str, answer: Answer, policy: str, check: str | None) -> None:
        data = write_answer(answer)
        made = {base: changes(document, json.loads(data)) for base, document in documents.items()}
        base = min(made, key=lambda name: len(json.dumps(made[name])))
        report = verify_answer(data, trust=trust, policy=load_policy(policy))
        found = next((c for c in report.checks if c.id == check), None)
        cases.append(
            {
                "name": name,
                "file": base,
                "changes": made[base],
                "policy": policy,
                "verdict": report.verdict,
                "levels": list(report.levels),
                "check": check,
                "error": found.code if found is not None else None,
            }
        )

    for name, answer in genuine.items():
        case(f"genuine: {name}", answer, "dev", None)
    for name, options in HONEST.items():
        case(name, NETWORK.run(**options), "dev", None)
    seen = set()
    for name, attack in sorted(BY_NAME.items()):
        # One for each code, where the trust file and the verifier are the ordinary ones.
        if attack.code and attack.code not in seen and attack.replay is None and attack.trust() == trust:
            seen.add(attack.code)
            case(name, attack.answer(), attack.policy, attack.check)
    return {
        "about": "docs/spec/08-receipts.md: genuine answer files (canonical JSON as text) and what verify_answer says of them"
        ' with [path, value] changes, {"absent": true} taking a member away; the check that fails, and its error',
        "trust": encode(trust),
        "files": {name: data.decode() for name, data in files.items()},
        "cases": cases,
    }


def pretty(vectors: dict[str, Any]) -> str:
    """JSON with one case a line."""
    members = []
    for name, value in vectors.items():
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(case) for case in value)
            members.append(f"{json.dumps(name)}: [\n  {lines}\n ]")
        else:
            members.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(members) + "\n}"


def main() -> None:
    for name, vectors in (
        ("sortition/sortition", sortition_vectors()),
        ("receipt/answers", receipt_vectors()),
    ):
        path = ROOT / "vectors/aos" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pretty(vectors) + "\n")
        print(path.relative_to(ROOT), path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
