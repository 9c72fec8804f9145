"""Cases of the log's formats: what must be accepted, and what must be refused with which code. ``scripts/make_log_vectors.py``
writes them to ``vectors/aos/log``."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from logged_run import AT, WITNESSES, TestLog, cosign, leaf_of, witness_key
from simulated_run import Network, secret

from aos.core import merkle
from aos.core.checks.logged import receipt_fact
from aos.core.codec import encode
from aos.core.encoding import canonical_json
from aos.core.log.anchor import AnchorFork, write_anchor_fork
from aos.core.log.checkpoint import with_signatures
from aos.core.log.conviction import (
    BrokenPromise,
    Conviction,
    Fork,
    Reordered,
    Rollback,
    ShownFact,
    SplitView,
    write_conviction,
)
from aos.core.log.leaf import Kind, LogPromise, fact_bytes, log_leaf
from aos.core.log.note import NoteSignature, read_note, sign_note
from aos.core.statements import Signed, sign

NETWORK = Network()
LOG = TestLog(NETWORK)
KEY = str(LOG.key)
STRANGER = secret("a stranger's log key")
EMPTY = b64encode(merkle.EMPTY_ROOT).decode()


@dataclass(frozen=True, slots=True)
class Case:
    """``code`` is empty where the bytes must be accepted."""

    name: str
    data: str
    code: str


def leaves(count: int, *, from_: int = 0) -> list[bytes]:
    return [leaf_of(from_ + n) for n in range(count)]


def note_of(text: str, *more: NoteSignature) -> str:
    """A note of any text, signed twice by the log."""
    line = sign_note(text, LOG.origin, LOG.seed)
    when = cosign(text + "\n— x AAAAAAA=\n", LOG.origin, seed=LOG.seed, time_s=AT)
    return text + "\n" + str(line) + str(when) + "".join(map(str, more))


def checkpoints() -> Iterator[Case]:
    """Checkpoints of the log with the verifier key ``KEY``."""
    good = LOG.checkpoint(leaves(7))
    text, rest = good.split("\n\n")
    plain, timed, _ = rest.split("\n")
    origin, size, root = text.split("\n")
    yield Case("a checkpoint", good, "")
    yield Case("the empty tree", LOG.checkpoint([]), "")
    yield Case("with a witness", with_signatures(good, [cosign(good, WITNESSES[0])]), "")
    yield Case(
        "with a line of an unknown key", good + f"— stranger.example {b64encode(b'abcdefgh').decode()}\n", ""
    )
    yield Case("lines in the other order", f"{text}\n\n{timed}\n{plain}\n", "")
    yield Case("another size", f"{origin}\n8\n{root}\n\n{rest}", "note.signature")
    yield Case("another origin", good.replace(origin, origin + "0"), "checkpoint.origin")
    yield Case("another root", f"{origin}\n{size}\n{EMPTY}\n\n{rest}", "note.signature")
    yield Case("not dated", f"{text}\n\n{plain}\n", "checkpoint.undated")
    yield Case("dated and not signed", f"{text}\n\n{timed}\n", "checkpoint.unsigned")
    yield Case("signed by a stranger", LOG.checkpoint(leaves(7), seed=STRANGER), "checkpoint.unsigned")
    backdated = replace(read_note(good).signatures[1])
    moved = replace(backdated, signature=(AT - 1).to_bytes(8, "big") + backdated.signature[8:])
    yield Case("another date", f"{text}\n\n{plain}\n{moved}", "note.signature")
    short = replace(backdated, signature=backdated.signature[:-1])
    yield Case("a signature too short", f"{text}\n\n{plain}\n{short}", "note.signature")
    yield Case(
        "one good line, one bad of the same key", f"{text}\n\n{plain}\n{moved}{timed}\n", "note.signature"
    )
    yield Case("an extension line", note_of(f"{text}\nmore\n"), "checkpoint.form")
    yield Case("a size with a leading zero", note_of(f"{origin}\n07\n{root}\n"), "checkpoint.form")
    yield Case("a size with a sign", note_of(f"{origin}\n+7\n{root}\n"), "checkpoint.form")
    yield Case("a size in other digits", note_of(f"{origin}\n٧\n{root}\n"), "checkpoint.form")
    yield Case("a size beyond 2^53", note_of(f"{origin}\n9007199254740992\n{root}\n"), "checkpoint.form")
    yield Case(
        "a root of 31 bytes", note_of(f"{origin}\n7\n{b64encode(b'x' * 31).decode()}\n"), "checkpoint.form"
    )
    yield Case("a root in base64url", note_of(f"{origin}\n7\n{'-' * 43}=\n"), "checkpoint.form")
    yield Case(
        "a root with loose bits",
        note_of(f"{origin}\n7\n{root[:-2]}{'B' if root[-2] != 'B' else 'C'}=\n"),
        "checkpoint.form",
    )
    yield Case("an empty tree with a root", note_of(f"{origin}\n0\n{root}\n"), "checkpoint.empty_root")
    yield Case("no empty line", good.replace("\n\n", "\n"), "note.form")
    yield Case("no last newline", good[:-1], "note.form")
    yield Case("carriage returns", good.replace("\n", "\r\n"), "note.form")
    yield Case("no signatures", f"{text}\n\n", "note.form")
    yield Case("a hyphen for the dash", good.replace("—", "-"), "note.form")
    yield Case("a signature without padding", good.replace(plain, plain.rstrip("=")), "note.base64")
    yield Case("spaces in base64", good.replace(plain, plain + " "), "note.base64")
    yield Case("a signature of a key id alone", f"{text}\n\n{plain}\n— x AAAAAA==\n", "note.form")
    yield Case("too large", good + "— x " + "A" * 16_384 + "\n", "note.size")
    yield Case("65 lines", f"{text}\n\n" + f"{plain}\n" * 65, "note.size")


def vkeys() -> Iterator[Case]:
    """Verifier keys."""
    name, key_id, data = KEY.split("+", maxsplit=2)
    yield Case(
        "of C2SP's specification", "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", ""
    )
    yield Case("of a log", KEY, "")
    yield Case("of a witness", str(witness_key(WITNESSES[0])), "")
    yield Case("another name", f"{name}x+{key_id}+{data}", "note.vkey")
    yield Case("another id", f"{name}+{'0' * 8}+{data}", "note.vkey")
    yield Case("an id in capitals", f"{name}+{key_id.upper()}+{data}", "note.vkey")
    yield Case("no id", f"{name}+{data}", "note.vkey")
    yield Case("a name with a space", f"a b+{key_id}+{data}", "note.vkey")
    yield Case(
        "an unknown type", f"{name}+{key_id}+{b64encode(bytes([2]) + LOG.key.public).decode()}", "note.vkey"
    )
    yield Case(
        "31 bytes", f"{name}+{key_id}+{b64encode(bytes([1]) + LOG.key.public[:-1]).decode()}", "note.vkey"
    )
    identity = replace(LOG.key, public=b"\x01" + b"\0" * 31)
    yield Case("a point of small order", str(identity), "note.vkey")
    yield Case("a newline behind it", KEY + "\n", "note.vkey")
    yield Case("empty", "", "note.vkey")


# --- convictions


def promise(leaf: bytes, *, first: int = 4, by_s: int = AT, **changes: Any) -> Signed[LogPromise]:
    values: dict[str, Any] = {
        "network": NETWORK.name,
        "dispatcher": NETWORK.dispatcher,
        "log_key": KEY,
        "leaf": leaf,
        "salt": secret("a promised salt"),
        "first": first,
        "promised_at": (by_s - 600) * 1000,
        "integrate_by": by_s * 1000,
    }
    return sign(NETWORK.key, LogPromise(**(values | changes)))


def split_view() -> SplitView:
    return SplitView(
        kind="split_view", log=KEY, first=LOG.checkpoint(leaves(5)), second=LOG.checkpoint(leaves(5, from_=1))
    )


def fork(old: int, new: int) -> Fork:
    """Two trees that share nothing; the path is out of the second."""
    mine, theirs = leaves(old), leaves(new, from_=100)
    return Fork(
        kind="fork",
        log=KEY,
        first=LOG.checkpoint(mine),
        second=LOG.checkpoint(theirs),
        old_root=merkle.tree_root(theirs[:old]),
        path=tuple(merkle.consistency_path(theirs, old)),
    )


def rollback() -> Rollback:
    return Rollback(
        kind="rollback",
        log=KEY,
        first=LOG.checkpoint(leaves(9)),
        second=LOG.checkpoint(leaves(8), time_s=AT + 1),
    )


def broken(
    *, size: int = 9, first: int = 4, kept: bool = False, time_s: int = AT, **changes: Any
) -> BrokenPromise:
    tree = leaves(size)
    promised = tree[first] if kept else log_leaf("acceptance", secret("a promised salt"), b"lost")
    return BrokenPromise(
        kind="broken_promise",
        log=KEY,
        promise=promise(promised, first=first, **changes),
        checkpoint=LOG.checkpoint(tree, time_s=time_s),
        leaves=tuple(tree[first:]),
        path=tuple(merkle.MerkleTree(tree).range_path(first, size - first)) if first < size else (),
    )


def facts() -> dict[Kind, bytes]:
    """The dispatcher's own facts of one run."""
    answer = NETWORK.run()
    return {
        "acceptance": fact_bytes(answer.acceptance.to_json()),
        "draw_call": fact_bytes(answer.draw.draw_call.to_json()),
        "draw_record": fact_bytes(answer.draw.draw_record.to_json()),
        "commit_set": fact_bytes(answer.commit.commit_set.to_json()),
        "receipt": receipt_fact(answer.receipt),
    }


def reordered(cause: Kind, effect: Kind, *, honest: bool = False) -> Reordered:
    held = facts()
    order = (cause, effect) if honest else (effect, cause)
    tree = leaves(3) + [log_leaf(kind, secret(kind), held[kind]) for kind in order] + leaves(2, from_=3)

    def shown(kind: Kind) -> ShownFact:
        index = 3 + order.index(kind)
        return ShownFact(
            kind=kind,
            fact=held[kind].decode(),
            salt=secret(kind),
            index=index,
            path=tuple(merkle.inclusion_path(tree, index)),
        )

    return Reordered(
        kind="reordered", log=KEY, checkpoint=LOG.checkpoint(tree), cause=shown(cause), effect=shown(effect)
    )


def _file(name: str, conviction: Conviction, code: str = "") -> Case:
    return Case(name, write_conviction(conviction).decode(), code)


def convictions() -> Iterator[Case]:
    """Files; those with a code convict nobody."""
    yield _file("two roots for one size", split_view())
    for old, new in ((3, 8), (4, 9), (1, 2), (7, 8), (8, 13)):
        yield _file(f"a fork between {old} and {new} leaves", fork(old, new))
    yield _file("fewer leaves later", rollback())
    yield _file("a promised leaf is not there", broken())
    yield _file("a promised leaf is not there, from the first leaf on", broken(first=0))
    yield _file("the tree ends before the promised leaf", broken(size=4))
    yield _file("a date behind the deadline", broken(time_s=AT + 86_400))
    pairs: list[tuple[Kind, Kind]] = [
        ("acceptance", "draw_call"),
        ("draw_call", "draw_record"),
        ("draw_record", "commit_set"),
        ("draw_record", "receipt"),
        ("commit_set", "receipt"),
    ]
    for cause, effect in pairs:
        yield _file(f"{effect} before {cause}", reordered(cause, effect))
        yield _file(
            f"{effect} behind {cause}", reordered(cause, effect, honest=True), "conviction.consistent"
        )

    one = split_view()
    yield _file("one checkpoint twice", replace(one, second=one.first), "conviction.consistent")
    yield _file("sizes that differ", replace(one, second=LOG.checkpoint(leaves(6))), "conviction.sizes")
    yield _file(
        "a root that a stranger signed",
        replace(one, second=LOG.checkpoint(leaves(5, from_=1), seed=STRANGER)),
        "checkpoint.unsigned",
    )
    yield _file("a key that is no key", replace(one, log="nobody"), "note.vkey")
    yield _file("a witness's key", replace(one, log=str(witness_key(WITNESSES[0]))), "note.vkey")

    two = fork(3, 8)
    honest = replace(two, first=LOG.checkpoint(leaves(3, from_=100)))
    yield _file("a tree that begins with the first", honest, "conviction.consistent")
    yield _file("another old root than the path's", replace(two, old_root=secret("x")), "conviction.old_root")
    yield _file(
        "a path of another tree",
        replace(two, path=tuple(merkle.consistency_path(leaves(8), 3))),
        "merkle.root_mismatch",
    )
    power = fork(4, 9)
    yield _file(
        "another seed where the size is a power of two",
        replace(power, old_root=secret("x")),
        "merkle.root_mismatch",
    )
    yield _file("a path too short", replace(two, path=two.path[:-1]), "merkle.path_length")
    yield _file("a path too long", replace(two, path=(*two.path, secret("x"))), "merkle.path_length")
    yield _file("the larger one first", replace(two, first=two.second, second=two.first), "conviction.sizes")
    yield _file("a fork of the empty tree", replace(two, first=LOG.checkpoint([])), "conviction.sizes")

    three = rollback()
    yield _file(
        "more leaves later", replace(three, first=three.second, second=three.first), "conviction.sizes"
    )
    yield _file(
        "fewer leaves at the same time",
        replace(three, second=LOG.checkpoint(leaves(8))),
        "conviction.in_time",
    )

    four = broken()
    yield _file("the promised leaf is there", broken(kept=True), "conviction.kept")
    yield _file("a second before the deadline", broken(time_s=AT - 1), "conviction.in_time")
    yield _file("a leaf is kept back", replace(four, leaves=four.leaves[1:]), "conviction.leaves")
    yield _file(
        "another leaf in its place",
        replace(four, leaves=(secret("x"), *four.leaves[1:])),
        "merkle.root_mismatch",
    )
    yield _file(
        "a path where there are no leaves", replace(broken(size=4), path=(secret("x"),)), "merkle.path_length"
    )
    yield _file(
        "a promise of another log",
        broken(log_key=str(replace(LOG.key, name="aos/x/y"))),
        "conviction.foreign",
    )
    yield _file("a promise of another network", broken(network="elsewhere"), "conviction.foreign")
    forged = Signed(statement=replace(four.promise.statement, first=5), signature=four.promise.signature)
    yield _file("a promise that was changed", replace(four, promise=forged), "signature.wrong_signer")

    five = reordered("draw_call", "draw_record")
    yield _file(
        "two facts that name nothing of each other",
        reordered("acceptance", "draw_record"),
        "conviction.order",
    )
    yield _file(
        "the effect as its cause", replace(five, cause=five.effect, effect=five.cause), "conviction.order"
    )
    yield _file(
        "a salt of another leaf",
        replace(five, cause=replace(five.cause, salt=secret("x"))),
        "merkle.root_mismatch",
    )
    yield _file(
        "an index beyond the tree",
        replace(five, cause=replace(five.cause, index=7)),
        "merkle.index_out_of_range",
    )
    yield _file(
        "an operator's fact", replace(five, cause=replace(five.cause, kind="commit")), "conviction.order"
    )

    value = encode(one)
    yield Case(
        "a kind that nobody knows", canonical_json(value | {"kind": "odd"}).decode(), "conviction.kind"
    )
    yield Case(
        "no kind", canonical_json({k: v for k, v in value.items() if k != "kind"}).decode(), "conviction.kind"
    )
    yield Case("a member more", canonical_json(value | {"path": []}).decode(), "field.unknown")
    yield Case(
        "a member less",
        canonical_json({k: v for k, v in value.items() if k != "second"}).decode(),
        "field.missing",
    )
    yield Case("another version", canonical_json(value | {"v": 2}).decode(), "statement.version")
    yield Case("not canonical", write_conviction(one).decode() + " ", "encoding.not_canonical")


def anchor_fork(anchored: int, shown: int, **changes: Any) -> AnchorFork:
    """A log that anchored other leaves than those that it shows."""
    tree = leaves(shown, from_=100)
    old, path = merkle.tree_root(tree[:anchored]), tuple[bytes, ...]()
    if anchored < shown:
        path = tuple(merkle.consistency_path(tree, anchored))
    made = AnchorFork(
        log=KEY,
        chain_id=31337,
        registry="0x5fbdb2315678afecb367f032d93f642f64180aa3",
        block=7,
        size=anchored,
        root=merkle.tree_root(leaves(anchored)),
        checkpoint=LOG.checkpoint(tree),
        old_root=old,
        path=path,
    )
    return replace(made, **changes)


def anchor_forks() -> Iterator[Case]:
    """Files; those with a code prove nothing, whatever the contract holds."""

    def file(name: str, fork: AnchorFork, code: str = "") -> Case:
        return Case(name, write_anchor_fork(fork).decode(), code)

    for anchored, shown in ((1, 2), (3, 8), (4, 9), (9, 9), (8, 13)):
        yield file(f"{anchored} leaves anchored, {shown} others signed", anchor_fork(anchored, shown))
    honest = {"root": merkle.tree_root(leaves(3, from_=100))}
    yield file(
        "a tree that begins with what was anchored", anchor_fork(3, 8, **honest), "conviction.consistent"
    )
    same = anchor_fork(9, 9)
    yield file("the anchored tree itself", replace(same, root=same.old_root), "conviction.consistent")
    yield file("fewer leaves than were anchored", anchor_fork(3, 8, size=12), "log.behind_anchor")
    yield file(
        "another old root than the path's", anchor_fork(3, 8, old_root=secret("x")), "conviction.old_root"
    )
    yield file(
        "another old root than the checkpoint's", replace(same, old_root=secret("x")), "conviction.old_root"
    )
    yield file(
        "another seed where the size is a power of two",
        anchor_fork(4, 9, old_root=secret("x")),
        "merkle.root_mismatch",
    )
    other = tuple(merkle.consistency_path(leaves(8), 3))
    yield file("a path of another tree", anchor_fork(3, 8, path=other), "merkle.root_mismatch")
    yield file(
        "a path too short", replace(anchor_fork(3, 8), path=anchor_fork(3, 8).path[:-1]), "merkle.path_length"
    )
    yield file("a path where none is needed", replace(same, path=(secret("x"),)), "merkle.path_length")
    stranger = LOG.checkpoint(leaves(8, from_=100), seed=STRANGER)
    yield file("a root that a stranger signed", anchor_fork(3, 8, checkpoint=stranger), "checkpoint.unsigned")
    yield file("a key that is no key", anchor_fork(3, 8, log="nobody"), "note.vkey")
    value = encode(anchor_fork(3, 8))
    for name, changes, code in (
        ("a size of nothing", {"size": 0}, "field.range"),
        ("no chain", {"chain_id": 0}, "field.range"),
        ("an address in capitals", {"registry": value["registry"].upper()}, "field.range"),
        ("a member more", {"more": 1}, "field.unknown"),
        ("another type", {"type": "aos.log_conviction"}, "statement.type"),
    ):
        yield Case(name, canonical_json(value | changes).decode(), code)
    yield Case("not canonical", write_anchor_fork(same).decode() + " ", "encoding.not_canonical")
