"""The transparency log's core: public and own vectors, trees kept as tiles, witnesses, and what convicts a log."""

from __future__ import annotations

import importlib.util
import json
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_cases import KEY, LOG, fork, leaves, rollback, split_view
from logged_run import AT, WITNESSES, cosign, witness_key

from aos.core import merkle
from aos.core.encoding import canonical_json, tag
from aos.core.log import tiles
from aos.core.log.anchor import (
    Anchor,
    anchor_contradiction,
    check_anchor_fork,
    read_anchor_fork,
    write_anchor_fork,
)
from aos.core.log.checkpoint import TreeHead, read_head, timed, verify_checkpoint, with_signatures, witnessed
from aos.core.log.conviction import contradiction, judge, read_conviction
from aos.core.log.leaf import KINDS, log_entry, log_leaf, read_entry
from aos.core.log.note import read_note, read_signature_line, read_vkey, verified_signatures
from aos.core.log.tiles import TilePath, read_tile_path, tile_path
from aos.core.log.witness import AddCheckpoint, advance, read_add_checkpoint, write_add_checkpoint
from aos.errors import AOSError, InvalidMessage

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "vectors"


def vectors(name: str) -> list[dict[str, Any]]:
    return json.loads((VECTORS / f"aos/log/{name}.json").read_text("utf-8"))["cases"]  # type: ignore[no-any-return]


def refusal(judged: Any, *arguments: Any) -> str | None:
    try:
        judged(*arguments)
    except AOSError as error:
        return error.code
    return None


# --- vectors of others


EXTERNAL = json.loads((VECTORS / "external/transparency-dev/merkle.json").read_text("utf-8"))


def test_every_public_inclusion_vector_is_judged_as_it_says() -> None:
    judged = 0
    for case in EXTERNAL["inclusion"]:
        proof = [b64decode(item) for item in case["proof"] or ()]
        code = refusal(
            merkle.verify_inclusion,
            b64decode(case["leafHash"] or ""),
            case["leafIdx"],
            case["treeSize"],
            proof,
            b64decode(case["root"] or ""),
        )
        assert (code is not None) == case["wantErr"], case["name"]
        assert code is None or code.startswith("merkle.")
        judged += 1
    assert judged == 98


def test_every_public_consistency_vector_is_judged_as_it_says() -> None:
    judged = 0
    for case in EXTERNAL["consistency"]:
        proof = [b64decode(item) for item in case["proof"] or ()]
        roots = [b64decode(case[name] or "") for name in ("root1", "root2")]
        code = refusal(merkle.verify_consistency, case["size1"], case["size2"], proof, *roots)
        if {len(root) for root in roots} == {32}:
            assert (code is not None) == case["wantErr"], case["name"]
        else:  # stricter than the vectors: what has another length is no root, whatever the proof
            assert code == "merkle.hash_length"
        assert code is None or code.startswith("merkle.")
        judged += 1
    assert judged == 98


# --- own vectors


@pytest.mark.parametrize("case", vectors("vkeys"), ids=lambda case: str(case["name"]))
def test_verifier_keys(case: dict[str, Any]) -> None:
    assert refusal(read_vkey, case["data"]) == case["error"]
    if case["error"] is None:
        assert str(read_vkey(case["data"])) == case["data"]


@pytest.mark.parametrize("case", vectors("checkpoints"), ids=lambda case: str(case["name"]))
def test_checkpoints(case: dict[str, Any]) -> None:
    assert refusal(verify_checkpoint, case["data"], read_vkey(KEY)) == case["error"]
    if case["error"] is None:
        assert str(read_note(case["data"])) == case["data"]
        assert verify_checkpoint(case["data"], LOG.key).time_s == AT


@pytest.mark.parametrize("case", vectors("convictions"), ids=lambda case: str(case["name"]))
def test_convictions(case: dict[str, Any]) -> None:
    data = case["data"].encode()
    assert refusal(lambda: judge(read_conviction(data), [LOG.key])) == case["error"]
    if case["error"] is None:
        assert refusal(lambda: judge(read_conviction(data), [])) == "conviction.untrusted_log"
        assert judge(read_conviction(data)).key == LOG.key


@pytest.mark.parametrize("case", vectors("anchor_forks"), ids=lambda case: str(case["name"]))
def test_forks_from_an_anchor(case: dict[str, Any]) -> None:
    data = case["data"].encode()
    assert refusal(lambda: check_anchor_fork(read_anchor_fork(data))) == case["error"]
    if case["error"] is None:
        fork = read_anchor_fork(data)
        assert (check_anchor_fork(fork), write_anchor_fork(fork)) == (LOG.key, data)


@pytest.mark.parametrize(("anchored", "shown"), [(1, 9), (4, 9), (7, 9), (9, 9)])
def test_an_anchor_and_a_checkpoint_agree_or_make_a_file(anchored: int, shown: int) -> None:
    tree = leaves(shown)
    checkpoint = verify_checkpoint(LOG.checkpoint(tree), LOG.key)
    path = merkle.consistency_path(tree, anchored) if anchored < shown else []
    root = merkle.tree_root(tree[:anchored])
    where = {"chain_id": 1, "registry": "0x" + "11" * 20}
    honest = Anchor(size=anchored, root=root, block=3)
    assert anchor_contradiction(LOG.key, honest, checkpoint, root, path, **where) is None  # type: ignore[arg-type]
    other = Anchor(size=anchored, root=b"\1" * 32, block=3)
    fork = anchor_contradiction(LOG.key, other, checkpoint, root, path, **where)  # type: ignore[arg-type]
    assert fork is not None
    assert (check_anchor_fork(fork), fork.anchor) == (LOG.key, other)


def test_the_vectors_are_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_log_vectors", ROOT / "scripts/make_log_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, content in script.documents().items():
        assert json.loads((VECTORS / f"aos/log/{name}.json").read_text("utf-8")) == content
        codes = [case["error"] for case in content["cases"]]
        assert codes.count(None) <= len(codes) / 2


def test_the_note_of_the_specification_of_signed_notes_verifies() -> None:
    note = read_note(
        "This is an example message.\n\n— example.com/foo "
        "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
    )
    key = read_vkey("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
    assert verified_signatures(note, [key]) == {str(key): 0}
    assert verified_signatures(note, [timed(key)]) == {}


# --- leaves


def test_an_entry_says_its_kind_and_nothing_of_its_fact() -> None:
    fact, salt = b'{"a":1}', b"\7" * 32
    for number, kind in enumerate(KINDS, start=1):
        entry = log_entry(kind, salt, fact)
        assert entry == tag("log-entry") + bytes([number]) + sha256(tag("log-fact") + salt + fact).digest()
        assert read_entry(entry)[0] == kind
        assert log_leaf(kind, salt, fact) == merkle.leaf_hash(entry)
    assert log_entry("receipt", b"\0" * 32, fact) != log_entry("receipt", salt, fact)
    for wrong in (b"", entry[:-1], entry + b"\0", tag("log-entry") + b"\0" + entry[-32:], b"\0" + entry[1:]):
        assert refusal(read_entry, wrong) == "log.entry"
    assert refusal(log_entry, "receipt", b"short", fact) == "log.salt"


# --- trees as tiles


def grown(parts: list[int]) -> tuple[dict[tiles.Tile, bytes], list[bytes]]:
    """Tiles of a tree that grew in these steps, and its leaf hashes."""
    store: dict[tiles.Tile, bytes] = {}
    hashes: list[bytes] = []
    for count in parts:
        edge = {tile: store[tile] for tile in tiles.edge_tiles(len(hashes))}
        new = [sha256(b"%d" % (len(hashes) + n)).digest() for n in range(count)]
        store |= tiles.grow(len(hashes), edge, new)
        hashes += new
    return store, hashes


@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    picks=st.tuples(*[st.integers(0, 2**30)] * 3),
)
def test_a_tree_kept_as_tiles_gives_the_proofs_of_the_tree(
    parts: list[int], picks: tuple[int, int, int]
) -> None:
    store, hashes = grown(parts)
    size = 1 + picks[0] % len(hashes)  # an earlier tree's proofs come out of the later tiles
    index, old = picks[1] % size, 1 + picks[2] % size
    hashes = hashes[:size]
    root = merkle.tree_root(hashes)
    assert tiles.root_plan(size).resolve(store) == [root]
    path = tiles.inclusion_plan(index, size).resolve(store)
    assert merkle.verify_inclusion(hashes[index], index, size, path, root) == root
    path = tiles.consistency_plan(old, size).resolve(store)
    assert path == merkle.consistency_path(hashes, old)
    count = min(3, size - index)
    path = tiles.range_plan(index, count, size).resolve(store)
    assert merkle.range_root(hashes[index : index + count], index, size, path) == root


def test_a_tree_above_one_level_of_tiles() -> None:
    store, hashes = grown([65_000, 1_100])
    size = len(hashes)
    assert tiles.edge_tiles(size) == [(0, 258), (1, 1), (2, 0)]
    assert tiles.root_plan(size).resolve(store) == [merkle.tree_root(hashes)]
    tree = merkle.MerkleTree(hashes)
    assert tiles.inclusion_plan(1, size).resolve(store) == tree.range_path(1, 1)
    assert len(tiles.inclusion_plan(1, size).tiles()) <= 4
    for level, index in store:
        assert len(store[level, index]) == 32 * tiles.width_at(level, index, size)


def test_a_tile_that_is_not_there_or_too_short_is_named() -> None:
    store, _ = grown([300])
    for damaged in ({}, {**store, (0, 1): store[0, 1][:-32]}):
        for plan in (tiles.root_plan(300), tiles.inclusion_plan(0, 300), tiles.consistency_plan(7, 300)):
            with pytest.raises(InvalidMessage) as caught:
                plan.resolve(damaged)
            assert caught.value.code == "log.tile_missing"
        with pytest.raises(InvalidMessage):
            tiles.grow(300, damaged, [b"\0" * 32])


@pytest.mark.parametrize(
    ("path", "tile"),
    [
        ("0/000", TilePath(level=0, index=0, width=256)),
        ("0/x001/x234/067", TilePath(level=0, index=1_234_067, width=256)),
        ("63/999.p/1", TilePath(level=63, index=999, width=1)),
        ("entries/x001/000.p/255", TilePath(level=-1, index=1000, width=255)),
    ],
)
def test_paths_of_tiles(path: str, tile: TilePath) -> None:
    assert read_tile_path(path) == tile
    assert tile_path(tile) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "0",
        "0/0",
        "00/000",
        "64/000",
        "0/x000/001",
        "0/1000",
        "0/x1/000",
        "0/000.p/0",
        "0/000.p/256",
        "0/000.p/01",
        "0/000/",
        "/0/000",
        "0/000.p/1/",
        "0/٠٠٠",
        "0/001/x000",
        "-1/000",
        "entries/../000",
        "0/" + "x001/" * 7 + "000",
    ],
)
def test_other_paths_of_tiles_are_refused(path: str) -> None:
    assert refusal(read_tile_path, path) == "log.tile_path"


# --- witnesses


def request(old: int, new: int, **changes: Any) -> AddCheckpoint:
    path = merkle.consistency_path(leaves(new), old) if 0 < old <= new else []
    values: dict[str, Any] = {"old_size": old, "path": tuple(path), "checkpoint": LOG.checkpoint(leaves(new))}
    return AddCheckpoint(**(values | changes))


def head(size: int) -> TreeHead:
    return TreeHead(origin=LOG.origin, size=size, root=merkle.tree_root(leaves(size)))


def test_a_witness_goes_on_with_what_continues_its_tree() -> None:
    assert advance(None, request(0, 5), LOG.key).head == head(5)
    assert advance(head(5), request(5, 9), LOG.key).head == head(9)
    assert advance(head(5), request(5, 5), LOG.key).head == head(5)
    assert advance(None, request(0, 0), LOG.key).head.size == 0
    assert advance(head(0), request(0, 3), LOG.key).head == head(3)


@pytest.mark.parametrize(
    ("held", "asked", "code"),
    [
        (head(5), request(0, 9), "witness.conflict"),
        (None, request(5, 9), "witness.conflict"),
        (head(9), request(5, 9), "witness.conflict"),
        (head(9), request(9, 5), "witness.form"),
        (None, request(0, 5, path=(b"\0" * 32,)), "witness.inconsistent"),
        (head(5), request(5, 9, path=()), "witness.inconsistent"),
        (head(5), request(5, 9, checkpoint=LOG.checkpoint(leaves(9, from_=1))), "witness.inconsistent"),
        (head(5), request(5, 5, checkpoint=LOG.checkpoint(leaves(5, from_=1))), "witness.inconsistent"),
        (head(5), request(5, 5, path=(b"\0" * 32,)), "witness.inconsistent"),
        (
            head(5),
            request(5, 9, checkpoint=LOG.checkpoint(leaves(9), seed=b"\1" * 32)),
            "checkpoint.unsigned",
        ),
    ],
    ids=str,
)
def test_a_witness_does_not_cosign_anything_else(held: Any, asked: AddCheckpoint, code: str) -> None:
    assert refusal(advance, held, asked, LOG.key) == code


def test_the_body_of_add_checkpoint_is_read_strictly() -> None:
    asked = request(5, 9)
    body = write_add_checkpoint(asked.old_size, asked.path, asked.checkpoint)
    assert read_add_checkpoint(body) == asked
    for wrong in (
        b"",
        body.replace(b"old 5", b"old 05"),
        body.replace(b"old 5", b"old  5"),
        body.replace(b"old 5", b"5"),
        body.replace(b"=\n", b"\n", 1),
        body.replace(b"\n\n", b"\n", 2),
        b"old 0\n" + b"A" * 43 + b"=\n" * 64 + body,
        body + b"x" * 40_000,
        b"\xff" + body,
    ):
        assert refusal(read_add_checkpoint, wrong) in ("witness.form", "checkpoint.form"), wrong[:40]


def test_cosignatures_count_once_a_witness() -> None:
    text = LOG.checkpoint(leaves(5))
    lines = [cosign(text, name) for name in (WITNESSES[0], WITNESSES[0], WITNESSES[1])]
    note = read_note(with_signatures(text, lines))
    keys = [witness_key(name) for name in WITNESSES]
    assert witnessed(note, keys) == tuple(keys)
    assert witnessed(note, keys[:1]) == (keys[0],)
    assert len(note.signatures) == 4  # the same line is not repeated
    assert read_signature_line(str(lines[0]).removesuffix("\n")) == lines[0]


# --- what a watcher finds


def test_two_checkpoints_are_compared_in_whatever_order_they_were_seen() -> None:
    def checkpoint(count: int, from_: int = 0, time_s: int = AT) -> Any:
        return verify_checkpoint(LOG.checkpoint(leaves(count, from_=from_), time_s=time_s), LOG.key)

    path = merkle.consistency_path(leaves(9), 5)
    root = merkle.tree_root(leaves(5))
    assert contradiction(LOG.key, checkpoint(5), checkpoint(9), root, path) is None
    assert (
        contradiction(LOG.key, checkpoint(9), checkpoint(5), root, path) is None
    )  # an older one, seen later
    assert contradiction(LOG.key, checkpoint(5), checkpoint(5), root, ()) is None
    assert contradiction(LOG.key, checkpoint(0), checkpoint(5), merkle.EMPTY_ROOT, ()) is None
    other = merkle.consistency_path(leaves(9, from_=50), 5)
    found = {
        "split_view": contradiction(LOG.key, checkpoint(5), checkpoint(5, from_=1), root, ()),
        "rollback": contradiction(LOG.key, checkpoint(9), checkpoint(5, time_s=AT + 1), root, ()),
        "fork": contradiction(LOG.key, checkpoint(5), checkpoint(9, from_=50), root, other),
    }
    for kind, conviction in found.items():
        assert conviction is not None
        assert judge(conviction, [LOG.key]).kind == kind
    with pytest.raises(AOSError):  # a path that leads nowhere proves nothing
        contradiction(LOG.key, checkpoint(5), checkpoint(9, from_=50), root, path)


def test_a_conviction_file_is_small() -> None:
    for conviction in (split_view(), fork(7, 8), rollback()):
        assert len(canonical_json(conviction.log)) < 400
        assert len(str(conviction.first)) < 1000
    assert read_head(read_note(split_view().first)).size == 5
