"""Receipts, replay, keys: rows 20 to 27."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from aos.attack.engines import replayer
from aos.attack.forge import resigned, restate
from aos.attack.live import Live, members, refusal
from aos.attack.play import play
from aos.attack.table import ACCEPTED, Trial, row
from aos.core import draw, merkle
from aos.core.answer import Answer, seated_only, write_answer
from aos.core.encoding import canonical_json
from aos.core.signing import CURVE_ORDER
from aos.core.statements import sign
from aos.core.trust import load_policy
from aos.errors import RuleViolation

STRANGER = bytes.fromhex("5ca1ab1e" * 8)
RETYPED = ("field.type", "field.range", "statement.type", "statement.version")
"""A member that has a few values only is out of its range with anything else."""
GONE = object()
Path = tuple[str | int, ...]


@row(
    20,
    "honest receipt replayed for another job",
    "accept.foreign",
    "vrf.foreign_draw",
    "commit.foreign_set",
    "receipt.countersign",
    "commit.foreign",
)
async def replayed(live: Live, t: Trial) -> None:
    one, two = await live.opml(), await live.opml("second")
    t.attack(
        "another job's acceptance", "accept.foreign", live.judge(replace(one, acceptance=two.acceptance))
    )
    t.attack("another job's draw", "vrf.foreign_draw", live.judge(replace(one, draw=two.draw)))
    t.attack("another job's commits", "commit.foreign_set", live.judge(replace(one, commit=two.commit)))
    swapped = replace(
        one.receipt,
        countersign=two.receipt.countersign,
        countersign_signature=two.receipt.countersign_signature,
    )
    t.attack("another job's countersign", "receipt.countersign", live.judge(replace(one, receipt=swapped)))
    t.twin("each with its own", live.judge(one))
    t.twin("the other with its own", live.judge(two))
    if live.guests:
        first, second = await play(live), await play(live)
        guest = second.seats[0].guest
        told = replace(first.seats[0].commit().statement, job_ref=second.key[0], node_id=guest.node_id)
        t.attack(
            "a commit to another job",
            "commit.foreign",
            await second.seats[0].send_commit(sign(guest.keys.signer, told)),
        )
        t.twin("a commit to its own job", await second.finish())
        await first.drop()


@row(
    21,
    "A's receipt signed by B; unregistered key",
    "signature.wrong_signer",
    "draw.not_seated",
)
async def signed_by_another(live: Live, t: Trial) -> None:
    answer = await live.single()
    t.attack("signed by a stranger", "signature.wrong_signer", live.judge(resigned(live, answer, STRANGER)))
    seats = set(answer.draw.draw_record.statement.seats)
    other = next(e.operator for e in answer.draw.entries if e.operator.node_id not in seats)
    keys = live.operators[other.node_id]
    told = resigned(live, answer, keys.signer, operator=other.node_id, node=other.node)
    t.attack(
        "stated and signed by an operator without a seat",
        "draw.not_seated",
        live.judge(told),
    )
    own = live.operators[answer.receipt.core.operator]
    t.twin("signed anew by its operator", live.judge(resigned(live, answer, own.signer)))
    if live.guests:
        job = await play(live)
        seat = job.seats[0]
        await seat.honest_commit()
        body = seat.reveal(await seat.core(), key=STRANGER)
        t.attack(
            "revealed under a stranger's signature", "signature.wrong_signer", await seat.send_reveal(body)
        )
        t.twin("revealed under its own", await job.finish_revealing())


def malleated(signature: bytes) -> bytes:
    """The other valid form of an ECDSA signature: s as n − s, the recovery id flipped."""
    s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


@row(
    22,
    "malleable, wrong or empty signature",
    "signature.high_s",
    "signature.empty",
    "envelope.signature_format",
    "field.range",
)
async def bad_signatures(live: Live, t: Trial) -> None:
    answer = await live.opml()
    high = replace(answer.receipt, signature=malleated(answer.receipt.signature))
    t.attack("the other form of the signature", "signature.high_s", live.judge(replace(answer, receipt=high)))
    document = members(write_answer(answer))
    for name, value in (("no signature", ""), ("one of another algorithm", "A" * 86)):
        document["receipt"]["signature"] = value
        t.attack(name, "field.range", live.judge(canonical_json(document)))
    t.twin("the signature itself", live.judge(answer))
    if live.guests:
        guest = live.guests[0]

        def resealed(change: Callable[[str], str]) -> Callable[[str], str]:
            return lambda text: text[:-132] + change(text[-132:-2]) + text[-2:]

        for name, code, change in (
            ("a frame malleated", "signature.high_s", lambda s: malleated(bytes.fromhex(s)).hex()),
            ("a frame unsigned", "signature.empty", lambda s: ""),
            ("a frame with 64 bytes", "envelope.signature_format", lambda s: s[:-2]),
        ):
            t.attack(name, code, await guest.connect(text=resealed(change)))
        t.twin("a frame as it was signed", await guest.connect())


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every member and item below ``value``, with its path; clocks are maps and left out."""
    items: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    for name, item in items:
        yield (*path, name), item
        if name != "clock":
            yield from walk(item, (*path, name))


def _changed(document: Any, path: Path, change: Callable[[Any], Any]) -> bytes:
    """The document with the value at ``path`` changed; ``GONE`` takes the member away."""
    container = document
    for step in path[:-1]:
        container = container[step]
    held = container[path[-1]]
    try:
        value = change(held)
        if value is GONE:
            del container[path[-1]]
        else:
            container[path[-1]] = value
        return _compact(document)
    finally:
        container[path[-1]] = held


def _compact(value: Any) -> bytes:
    """Canonical JSON, of values that have nothing but ASCII names and small integers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _doubled(value: Any, path: Path) -> bytes:
    """The document with the member at ``path`` written twice."""
    if isinstance(value, dict):
        parts = []
        for key in sorted(value):
            rest = path[1:] if path and path[0] == key else ()
            part = _compact(key) + b":" + _doubled(value[key], rest)
            parts += [part, part] if path == (key,) else [part]
        return b"{" + b",".join(parts) + b"}"
    if isinstance(value, list):
        return (
            b"["
            + b",".join(
                _doubled(item, path[1:] if path and path[0] == index else ())
                for index, item in enumerate(value)
            )
            + b"]"
        )
    return _compact(value)


@row(
    23,
    "every field dropped, duplicated, retyped, extended",
    "field.missing",
    "encoding.duplicate_key",
    *RETYPED,
    "field.unknown",
    "unchecked log-1",
)
async def every_field(live: Live, t: Trial) -> None:
    answer = await live.single()
    # One entry of the draw is like another: the shortened file has every kind of member.
    document = members(write_answer(replace(answer, draw=seated_only(answer.draw))))
    everything = list(walk(document))
    named = [path for path, _ in everything if isinstance(path[-1], str)]
    objects = [path for path, value in everything if isinstance(value, dict) and path[-1] != "clock"]

    required = [
        path for path in named if path != ("log",)
    ]  # the one member of this file that may be left out

    def wrap(value: Any) -> Any:
        return True if isinstance(value, list) else [value]

    def extend(value: Any) -> Any:
        return value | {"zzz": "1"}

    for name, wanted, cases in (
        ("dropped", ("field.missing",), [_changed(document, path, lambda _: GONE) for path in required]),
        ("written twice", ("encoding.duplicate_key",), [_doubled(document, path) for path in named]),
        ("retyped", RETYPED, [_changed(document, path, wrap) for path in named]),
        ("extended", ("field.unknown",), [_changed(document, path, extend) for path in objects]),
    ):
        found = [live.judge(case)[0] for case in cases]
        odd = next((code for code in found if code not in wanted), found[0])
        t.attack(f"{name}: {len(cases)} members, one by one", wanted, odd)
    policy = load_policy("dev")
    strict = replace(policy, required=(*policy.required, "log-1"))
    unlogged = _changed(document, ("log",), lambda _: GONE)
    t.attack("its place in the log left out", "unchecked log-1", live.judge(unlogged, policy=strict))
    t.twin("no member changed", _placed(live, _compact(document)))
    t.twin("the whole file", live.judge(answer))
    body = live.seed_body()
    for field in ("from", "user", "job", "verify"):
        without = {name: value for name, value in body.items() if name != field}
        code = "field.type" if field == "job" else "field.missing"
        t.attack(f"a submission without {field}", code, await live.post("/api/job/submit", without))
    t.attack("a submission with more", "field.unknown", await live.post("/api/job/submit", body | {"zzz": 1}))
    t.twin("a submission", await live.post("/api/job/submit", body))


@row(24, "A's receipt with B's openings", "commit.opening")
async def swapped_openings(live: Live, t: Trial) -> None:
    answer = await live.opml()
    salts = [opening.salt for opening in answer.commit.openings]
    pairs = zip(answer.commit.openings, [*salts[1:], salts[0]], strict=True)
    swapped = tuple(replace(opening, salt=salt) for opening, salt in pairs)
    t.attack("salts swapped", "commit.opening", _with_openings(live, answer, swapped))
    own = tuple(replace(opening, salt=bytes(32)) for opening in answer.commit.openings)
    t.attack("salts made up", "commit.opening", _with_openings(live, answer, own))
    t.twin("each with its own", live.judge(answer))


def _with_openings(live: Live, answer: Answer, openings: Any) -> tuple[str, ...]:
    return live.judge(replace(answer, commit=replace(answer.commit, openings=openings)))


@row(25, "version downgrade, unknown profile", "statement.version", "unchecked local-1")
async def downgrade(live: Live, t: Trial) -> None:
    answer = await live.opml()
    data = write_answer(answer)
    for version in (b"0", b"2"):
        changed = data.replace(b'"type":"aos.answer","v":1', b'"type":"aos.answer","v":' + version)
        t.attack(f"version {version.decode()} of the file", "statement.version", live.judge(changed))
    t.attack(
        "version 0 of a statement",
        "statement.version",
        live.judge(data.replace(b'"type":"aos.receipt","v":1', b'"type":"aos.receipt","v":0')),
    )
    engine = await live.own_engine()

    def profile(core: Any) -> Any:
        return replace(core, engine="aos-canonical/99")

    unknown = restate(live, answer, core=profile, peer_core=profile)
    t.attack(
        "a profile that this verifier does not know",
        "unchecked local-1",
        live.judge(unknown, replay=replayer(engine)),
    )
    t.twin("the version and profile of this build", live.judge(answer, replay=replayer(engine)))


@row(
    26,
    "parser bombs",
    "encoding.depth",
    "encoding.integer_range",
    "encoding.nan",
    "encoding.too_large",
)
async def bombs(live: Live, t: Trial) -> None:
    body = json.dumps(live.seed_body()).encode()
    for name, code, data in (
        ("30,000 brackets", "encoding.depth", b"[" * 30_000),
        ("an integer of 4,000 digits", "encoding.integer_range", b'{"from":' + b"1" * 4_000 + b"}"),
        ("NaN", "encoding.nan", b'{"from":NaN}'),
        ("2 MiB", "encoding.too_large", b'"' + b"a" * (2 << 20) + b'"'),
    ):
        t.attack(f"{name}, submitted", code, await live.post("/api/job/submit", data))
        if code != "encoding.too_large":
            t.attack(f"{name}, registered", code, await live.post("/v1/aos/registry", data))
        if code in ("encoding.depth", "encoding.nan"):
            t.attack(f"{name}, as an answer file", code, live.judge(data))
    if live.guests:
        guest = live.guests[0]
        t.attack(
            "a handshake of 1 MiB", "encoding.too_large", await guest.connect(text=lambda _: "[" * (1 << 20))
        )
        t.twin("a handshake of the usual size", await guest.connect())
    t.twin("a submission of the usual size", await live.post("/api/job/submit", body))


@row(
    27,
    "Merkle leaf as node, wrong index, foreign proof",
    "merkle.root_mismatch",
    "merkle.path_length",
    "merkle.index_out_of_range",
    "draw.snapshot_root",
    "draw.entries_root",
)
async def merkle_proofs(live: Live, t: Trial) -> None:
    answer = await live.single()
    answer_entries = answer.draw.entries
    leaves = [draw.entry_leaf(drawn.entry) for drawn in answer_entries]
    root, size = answer.draw.draw_record.statement.entries_root, len(leaves)
    if size < 3:
        raise RuleViolation("attack.too_small", "this network has too few operators for a tree")
    path = merkle.inclusion_path(leaves, 0)

    def check(leaf: bytes, index: int, proof: list[bytes]) -> str:
        return refusal(lambda: merkle.verify_inclusion(leaf, index, size, proof, root))

    inner = merkle.node_hash(leaves[0], leaves[1])
    t.attack("an inner node as a leaf", "merkle.path_length", check(inner, 0, path[1:]))
    t.attack(
        "a leaf's neighbours hashed as a leaf",
        "merkle.root_mismatch",
        check(merkle.leaf_hash(leaves[0] + leaves[1]), 0, path),
    )
    t.attack("the wrong index", "merkle.root_mismatch", check(leaves[0], 1, path))
    t.attack("an index beyond the tree", "merkle.index_out_of_range", check(leaves[0], size, path))
    t.twin("a leaf of the draw", check(leaves[0], 0, path))
    short = seated_only(answer.draw)
    t.twin("a shortened draw", _placed(live, replace(answer, draw=short)))
    kept = short.entries[0]
    for name, changed, code in (
        (
            "an entry's path of another tree",
            replace(kept, entry_path=(bytes(32), *kept.entry_path[1:])),
            "draw.entries_root",
        ),
        (
            "an operator's path of another tree",
            replace(kept, operator_path=(bytes(32), *kept.operator_path[1:])),
            "draw.snapshot_root",
        ),
    ):
        entries = (changed, *short.entries[1:])
        t.attack(name, code, live.judge(replace(answer, draw=replace(short, entries=entries))))


def _placed(live: Live, answer: Answer | bytes) -> str:
    """``accepted`` where nothing failed: of a shortened draw some checks must be skipped."""
    failed = [check.code for check in live.report(answer).checks if check.status == "FAIL"]
    return failed[0] if failed else ACCEPTED
