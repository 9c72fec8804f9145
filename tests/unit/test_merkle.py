"""RFC 9162 trees: known roots, every small tree, and every way to bend a proof."""

import json
from pathlib import Path

import pytest

from aos.core.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    TreeBuilder,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    range_path_length,
    range_root,
    tree_root,
    verify_consistency,
    verify_inclusion,
)
from aos.errors import AOSError, InvalidMessage, VerificationError

VECTORS = Path(__file__).parents[2] / "vectors" / "aos" / "merkle"


def leaves(count: int) -> list[bytes]:
    return [leaf_hash(bytes([i])) for i in range(count)]


def reference_root(hashes: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, word for word."""
    if not hashes:
        return EMPTY_ROOT
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return node_hash(reference_root(hashes[:split]), reference_root(hashes[split:]))


def test_roots_of_the_certificate_transparency_test_tree() -> None:
    entries = [
        bytes.fromhex(e)
        for e in (
            "", "00", "10", "2021", "3031", "40414243",
            "5051525354555657", "606162636465666768696a6b6c6d6e6f",
        )
    ]  # fmt: skip
    known = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ]
    hashes = [leaf_hash(e) for e in entries]
    assert [tree_root(hashes[: i + 1]).hex() for i in range(8)] == known


def test_builder_agrees_with_the_recursive_definition_at_every_size() -> None:
    builder = TreeBuilder()
    hashes = leaves(70)
    assert builder.root() == EMPTY_ROOT
    for i, leaf in enumerate(hashes):
        builder.append(leaf)
        assert builder.size == i + 1
        assert builder.root() == reference_root(hashes[: i + 1])


def test_every_leaf_of_every_small_tree_is_proven() -> None:
    for size in range(1, 20):
        hashes = leaves(size)
        root = tree_root(hashes)
        for index in range(size):
            path = inclusion_path(hashes, index)
            assert verify_inclusion(hashes[index], index, size, path, root) == root


def test_every_prefix_of_every_small_tree_is_consistent() -> None:
    for size in range(1, 20):
        hashes = leaves(size)
        root = tree_root(hashes)
        for old in range(1, size + 1):
            path = consistency_path(hashes, old)
            assert verify_consistency(old, size, path, tree_root(hashes[:old]), root) == root


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_no_other_index_or_size_passes_where_the_path_shape_differs(size: int) -> None:
    hashes = leaves(size)
    root = tree_root(hashes)
    for index in range(size):
        path = inclusion_path(hashes, index)
        for other in range(size + 3):
            if other != index:
                with pytest.raises(VerificationError):
                    verify_inclusion(hashes[index], other, size, path, root)
        with pytest.raises(VerificationError) as caught:
            verify_inclusion(hashes[index], size, size, path, root)
        assert caught.value.code == "merkle.index_out_of_range"


@pytest.mark.parametrize("size", [2, 3, 7, 8, 11])
def test_every_changed_path_hash_is_refused(size: int) -> None:
    hashes = leaves(size)
    root = tree_root(hashes)
    for index in range(size):
        path = inclusion_path(hashes, index)
        for i in range(len(path)):
            bent = [*path]
            bent[i] = bytes([bent[i][0] ^ 1]) + bent[i][1:]
            with pytest.raises(VerificationError) as caught:
                verify_inclusion(hashes[index], index, size, bent, root)
            assert caught.value.code == "merkle.root_mismatch"
        for wrong in (path[:-1], [*path, root], [root, *path]):
            with pytest.raises(VerificationError) as caught:
                verify_inclusion(hashes[index], index, size, wrong, root)
            assert caught.value.code == "merkle.path_length"


def test_a_node_cannot_pass_as_a_leaf() -> None:
    entries = [b"a", b"b", b"c", b"d"]
    hashes = [leaf_hash(e) for e in entries]
    root = tree_root(hashes)
    inner = hashes[0] + hashes[1]
    with pytest.raises(VerificationError) as caught:
        verify_inclusion(leaf_hash(inner), 0, 2, [node_hash(hashes[2], hashes[3])], root)
    assert caught.value.code == "merkle.root_mismatch"


@pytest.mark.parametrize(("old", "new"), [(1, 2), (3, 7), (4, 8), (6, 11), (8, 9)])
def test_every_bent_consistency_proof_is_refused(old: int, new: int) -> None:
    hashes = leaves(new)
    old_root, new_root = tree_root(hashes[:old]), tree_root(hashes)
    path = consistency_path(hashes, old)
    for i in range(len(path)):
        bent = [*path]
        bent[i] = bytes([bent[i][0] ^ 1]) + bent[i][1:]
        with pytest.raises(VerificationError) as caught:
            verify_consistency(old, new, bent, old_root, new_root)
        assert caught.value.code == "merkle.root_mismatch"
    for wrong in ([], path[:-1], [*path, new_root]):
        with pytest.raises(VerificationError):
            verify_consistency(old, new, wrong, old_root, new_root)
    forked = tree_root([*hashes[: old - 1], leaf_hash(b"fork")])
    with pytest.raises(VerificationError) as caught:
        verify_consistency(old, new, path, forked, new_root)
    assert caught.value.code == "merkle.root_mismatch"
    with pytest.raises(VerificationError) as caught:
        verify_consistency(new, old, path, new_root, old_root)
    assert caught.value.code == "merkle.size_order"


def test_equal_sizes_need_equal_roots_and_no_path() -> None:
    root = tree_root(leaves(3))
    assert verify_consistency(3, 3, [], root, root) == root
    with pytest.raises(VerificationError, match="two roots"):
        verify_consistency(3, 3, [], root, EMPTY_ROOT)
    with pytest.raises(VerificationError, match="no path"):
        verify_consistency(3, 3, [root], root, root)


def test_malformed_input_is_the_senders_fault() -> None:
    root = tree_root(leaves(3))
    for call in (
        lambda: TreeBuilder().append(b"short"),
        lambda: verify_inclusion(b"short", 0, 1, [], root),
        lambda: verify_inclusion(root, 0, 2, [b"\x00" * 31], root),
        lambda: verify_consistency(1, 2, [b"\x00" * 33], root, root),
    ):
        with pytest.raises(InvalidMessage) as caught:
            call()
        assert caught.value.code == "merkle.hash_length"
    for sized in (
        lambda: verify_inclusion(root, 0, 0, [], root),
        lambda: verify_inclusion(root, 0, 2**53, [], root),
        lambda: verify_consistency(0, 3, [], EMPTY_ROOT, root),
        lambda: consistency_path(leaves(3), 0),
        lambda: consistency_path(leaves(3), 4),
    ):
        with pytest.raises(InvalidMessage) as caught:
            sized()
        assert caught.value.code == "merkle.tree_size"
    for index in (-1, 3):
        with pytest.raises(InvalidMessage) as caught:
            inclusion_path(leaves(3), index)
        assert caught.value.code == "merkle.index_out_of_range"


def _vectors() -> list[dict[str, object]]:
    return json.loads((VECTORS / "proofs.json").read_text())["cases"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", _vectors(), ids=lambda c: str(c["name"]))
def test_vectors(case: dict) -> None:  # type: ignore[type-arg]
    path = [bytes.fromhex(p) for p in case["path"]]
    root = bytes.fromhex(case["root"])

    def run() -> bytes:
        if case["kind"] == "inclusion":
            return verify_inclusion(
                bytes.fromhex(case["leaf"]), case["leaf_index"], case["tree_size"], path, root
            )
        old_root = bytes.fromhex(case["old_root"])
        return verify_consistency(case["old_size"], case["tree_size"], path, old_root, root)

    if case["error"] is None:
        assert run() == root
    else:
        with pytest.raises(AOSError) as caught:
            run()
        assert caught.value.code == case["error"]


def test_consecutive_leaves_of_every_small_tree_are_proven_at_once() -> None:
    for size in range(1, 18):
        tree = MerkleTree(leaves(size))
        assert tree.root == tree_root(leaves(size))
        assert tree.size == size
        for first in range(size):
            assert tree.range_path(first, 1) == inclusion_path(leaves(size), first)
            for count in range(1, size - first + 1):
                path = tree.range_path(first, count)
                assert len(path) == range_path_length(first, count, size)
                opened = leaves(size)[first : first + count]
                assert range_root(opened, first, size, path) == tree.root
                bent = [*opened[:-1], leaf_hash(b"other")]
                assert range_root(bent, first, size, path) != tree.root
                for at in range(len(path)):
                    other = [*path[:at], bytes(32), *path[at + 1 :]]
                    assert range_root(opened, first, size, other) != tree.root
                if first + count < size:
                    with_next = leaves(size)[first + 1 : first + count + 1]
                    assert range_root(with_next, first, size, path) != tree.root


def test_a_range_outside_the_tree_or_with_another_path_is_refused() -> None:
    tree = MerkleTree(leaves(9))
    path = tree.range_path(3, 4)
    for opened, first, size, bent in (
        (leaves(9)[3:7], 3, 9, path[:-1]),
        (leaves(9)[3:7], 3, 9, [*path, bytes(32)]),
        (leaves(9)[3:7], 6, 9, path),
        (leaves(9)[3:7], -1, 9, path),
        ([], 3, 9, path),
    ):
        with pytest.raises(VerificationError):
            range_root(opened, first, size, bent)
    for first, count in ((9, 1), (0, 10), (0, 0), (-1, 2)):
        with pytest.raises(InvalidMessage):
            tree.range_path(first, count)
    with pytest.raises(InvalidMessage):
        range_root([bytes(31)], 0, 1, [])
    with pytest.raises(InvalidMessage):
        range_root(leaves(9)[3:7], 3, 9, [*path[:-1], bytes(33)])
    with pytest.raises(InvalidMessage):
        MerkleTree([b"short"])
    with pytest.raises(InvalidMessage):
        MerkleTree([]).range_path(0, 1)
    assert MerkleTree([]).root == EMPTY_ROOT
