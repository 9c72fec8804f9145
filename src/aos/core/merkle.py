"""Merkle trees as in RFC 9162, section 2.1 (docs/spec/01-encoding.md, "Trees").

Leaf and node hashes, roots, inclusion and consistency paths, the inclusion of consecutive leaves at once, a
builder that needs O(log n) memory, and a tree that keeps its nodes. Everything but ``leaf_hash`` works on leaf
*hashes* (32 bytes), never on entries. It does not say what an
entry is: the entry carries its own domain tag, the RFC's 0x00 and 0x01 prefixes keep leaves and nodes apart.
"""

from collections.abc import Sequence
from hashlib import sha256

from aos.errors import InvalidMessage, VerificationError

HASH_BYTES = 32
MAX_TREE_SIZE = 2**53 - 1
EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 ‖ entry)."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right) of two 32-byte hashes."""
    return sha256(b"\x01" + left + right).digest()


class TreeBuilder:
    """Takes leaf hashes one by one; ``root()`` is that of the leaves so far. Keeps one hash per level."""

    __slots__ = ("_peaks", "_size")

    def __init__(self) -> None:
        self._size = 0
        self._peaks: list[bytes] = []  # roots of the perfect subtrees, largest first

    @property
    def size(self) -> int:
        """Number of leaves so far."""
        return self._size

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash (32 bytes; else InvalidMessage ``merkle.hash_length``)."""
        _check_hash(leaf, "leaf")
        size, node = self._size, leaf
        while size & 1:
            node = node_hash(self._peaks.pop(), node)
            size >>= 1
        self._peaks.append(node)
        self._size += 1

    def root(self) -> bytes:
        """Root of the leaves so far; SHA-256 of nothing where there are none."""
        if not self._peaks:
            return EMPTY_ROOT
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = node_hash(peak, node)
        return node


class MerkleTree:
    """A tree that keeps every node, so that a path costs no hashing."""

    __slots__ = ("_levels",)

    def __init__(self, leaf_hashes: Sequence[bytes]) -> None:
        """Raises InvalidMessage ``merkle.hash_length``."""
        _check_hashes(leaf_hashes)
        # Node i of level k is the root over the leaves i·2^k up to (i+1)·2^k, as far as there are any.
        self._levels = [list(leaf_hashes)]
        while len(self._levels[-1]) > 1:
            self._levels.append(_above(self._levels[-1]))

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        """The root; SHA-256 of nothing where there are no leaves."""
        return self._levels[-1][0] if self._levels[-1] else EMPTY_ROOT

    def range_path(self, first: int, count: int) -> list[bytes]:
        """What ``range_root`` needs beside ``count`` leaf hashes from ``first`` on; of one leaf it is its
        inclusion path.

        Raises InvalidMessage ``merkle.index_out_of_range``.
        """
        _check_range(first, count, self.size, InvalidMessage)
        path: list[bytes] = []
        for level in self._levels[:-1]:
            end = first + count
            if first & 1:
                path.append(level[first - 1])
            if end & 1 and end < len(level):
                path.append(level[end])
            first, end = first >> 1, end + 1 >> 1
            count = end - first
        return path


def tree_root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Merkle tree hash of the leaf hashes (RFC 9162, 2.1.1)."""
    builder = TreeBuilder()
    for leaf in leaf_hashes:
        builder.append(leaf)
    return builder.root()


def inclusion_path(leaf_hashes: Sequence[bytes], leaf_index: int) -> list[bytes]:
    """Hashes from the leaf's sibling up to the root's child (RFC 9162, 2.1.3.1).

    Raises InvalidMessage ``merkle.index_out_of_range``.
    """
    if not 0 <= leaf_index < len(leaf_hashes):
        raise InvalidMessage("merkle.index_out_of_range", "leaf index is beyond the tree", field="leaf_index")
    path: list[bytes] = []
    start, end = 0, len(leaf_hashes)
    while end - start > 1:
        split = start + _split(end - start)
        if leaf_index < split:
            path.append(tree_root(leaf_hashes[split:end]))
            end = split
        else:
            path.append(tree_root(leaf_hashes[start:split]))
            start = split
    path.reverse()
    return path


def inclusion_root(leaf: bytes, leaf_index: int, tree_size: int, path: Sequence[bytes]) -> bytes:
    """The root that ``path`` leads to from the leaf hash ``leaf`` (RFC 9162, 2.1.3.2, but for the
    comparison).

    Proves nothing until the caller compares it with a root it trusts. Raises InvalidMessage
    ``merkle.hash_length``, ``merkle.tree_size``; VerificationError ``merkle.index_out_of_range``,
    ``merkle.path_length``.
    """
    _check_hashes(path, leaf=leaf)
    _check_size(tree_size, "tree_size")
    if not 0 <= leaf_index < tree_size:
        raise VerificationError(
            "merkle.index_out_of_range", "leaf index is beyond the tree", field="leaf_index"
        )
    fn, sn, node = leaf_index, tree_size - 1, leaf
    for sibling in path:
        if sn == 0:
            raise VerificationError("merkle.path_length", "inclusion path is too long", field="path")
        if fn & 1 or fn == sn:
            node = node_hash(sibling, node)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            node = node_hash(node, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise VerificationError("merkle.path_length", "inclusion path is too short", field="path")
    return node


def verify_inclusion(
    leaf: bytes, leaf_index: int, tree_size: int, path: Sequence[bytes], root: bytes
) -> bytes:
    """Check that the leaf hash ``leaf`` is leaf ``leaf_index`` of the tree, and return ``root`` (RFC 9162,
    2.1.3.2).

    Raises InvalidMessage ``merkle.hash_length``, ``merkle.tree_size``; VerificationError
    ``merkle.index_out_of_range``, ``merkle.path_length``, ``merkle.root_mismatch``.
    """
    _check_hash(root, "root")
    if inclusion_root(leaf, leaf_index, tree_size, path) != root:
        raise VerificationError("merkle.root_mismatch", "inclusion path does not lead to the root")
    return root


def range_path_length(first: int, count: int, tree_size: int) -> int:
    """How many hashes ``range_root`` takes for ``count`` leaves from ``first`` on of ``tree_size``.

    Raises InvalidMessage ``merkle.tree_size``; VerificationError ``merkle.index_out_of_range``.
    """
    _check_size(tree_size, "tree_size")
    _check_range(first, count, tree_size, VerificationError)
    length, size = 0, tree_size
    while size > 1:
        end = first + count
        length += (first & 1) + (end & 1 and end < size)
        first, end, size = first >> 1, end + 1 >> 1, size + 1 >> 1
        count = end - first
    return length


def range_root(leaf_hashes: Sequence[bytes], first: int, tree_size: int, path: Sequence[bytes]) -> bytes:
    """The root that ``path`` leads to from consecutive leaf hashes, the leaves ``first``, ``first`` + 1, ….

    From the leaves up, each level takes a missing left neighbour, then a missing right one, from ``path``. Proves
    nothing until the caller compares the root with one it trusts. Raises InvalidMessage ``merkle.hash_length``,
    ``merkle.tree_size``; VerificationError ``merkle.index_out_of_range``, ``merkle.path_length``.
    """
    _check_hashes(leaf_hashes)
    _check_hashes(path)
    if len(path) != range_path_length(first, len(leaf_hashes), tree_size):
        raise VerificationError("merkle.path_length", "the path has another length than the tree dictates")
    level, rest, size = list(leaf_hashes), iter(path), tree_size
    while size > 1:
        if first & 1:
            level.insert(0, next(rest))
            first -= 1
        if len(level) & 1 and first + len(level) < size:
            level.append(next(rest))
        level = _above(level)
        first, size = first >> 1, size + 1 >> 1
    return level[0]


def consistency_path(leaf_hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """Proof that the first ``old_size`` leaves are a prefix of the tree (RFC 9162, 2.1.4.1); empty where
    equal.

    Raises InvalidMessage ``merkle.tree_size`` unless 1 <= old_size <= number of leaves.
    """
    if not 1 <= old_size <= len(leaf_hashes):
        raise InvalidMessage("merkle.tree_size", "old size is not within the tree", field="old_size")
    path: list[bytes] = []
    start, end, old, whole = 0, len(leaf_hashes), old_size, True
    while end - start != old:
        split = _split(end - start)
        if old <= split:
            path.append(tree_root(leaf_hashes[start + split : end]))
            end = start + split
        else:
            path.append(tree_root(leaf_hashes[start : start + split]))
            start, old, whole = start + split, old - split, False
    if not whole:
        path.append(tree_root(leaf_hashes[start:end]))
    path.reverse()
    return path


def verify_consistency(
    old_size: int, new_size: int, path: Sequence[bytes], old_root: bytes, new_root: bytes
) -> bytes:
    """Check that the new tree begins with the old one, and return ``new_root`` (RFC 9162, 2.1.4.2).

    An empty old tree is refused: it is consistent with everything and proves nothing. Raises InvalidMessage
    ``merkle.hash_length``, ``merkle.tree_size``; VerificationError ``merkle.size_order``,
    ``merkle.path_length``, ``merkle.root_mismatch``.
    """
    _check_hashes(path, old_root=old_root, new_root=new_root)
    _check_size(old_size, "old_size")
    _check_size(new_size, "new_size")
    if old_size > new_size:
        raise VerificationError("merkle.size_order", "the new tree is smaller than the old", field="new_size")
    if old_size == new_size:
        if path:
            raise VerificationError("merkle.path_length", "equal trees need no path", field="path")
        if old_root != new_root:
            raise VerificationError("merkle.root_mismatch", "two roots for one tree size")
        return new_root
    old_node, new_node = consistency_roots(old_size, new_size, path, old_root)
    if old_node != old_root:
        raise VerificationError(
            "merkle.root_mismatch", "path does not lead to the old root", field="old_root"
        )
    if new_node != new_root:
        raise VerificationError(
            "merkle.root_mismatch", "path does not lead to the new root", field="new_root"
        )
    return new_root


def consistency_roots(
    old_size: int, new_size: int, path: Sequence[bytes], seed: bytes
) -> tuple[bytes, bytes]:
    """The roots of the first ``old_size`` leaves and of all that ``path`` leads to (RFC 9162, 2.1.4.2, but for the comparison).

    ``seed`` is the old tree's root where ``old_size`` is a power of two, and is not looked at otherwise. Where the second root is a
    tree's, the first is that of its beginning, whoever made the path. Raises InvalidMessage ``merkle.hash_length``,
    ``merkle.tree_size``; VerificationError ``merkle.size_order``, ``merkle.path_length``.
    """
    _check_hashes(path, seed=seed)
    _check_size(old_size, "old_size")
    _check_size(new_size, "new_size")
    if old_size >= new_size:
        raise VerificationError("merkle.size_order", "the sizes do not ascend", field="new_size")
    if not path:
        raise VerificationError("merkle.path_length", "consistency path is empty", field="path")
    hashes = [seed, *path] if old_size & (old_size - 1) == 0 else list(path)
    fn, sn = old_size - 1, new_size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old_node = new_node = hashes[0]
    for sibling in hashes[1:]:
        if sn == 0:
            raise VerificationError("merkle.path_length", "consistency path is too long", field="path")
        if fn & 1 or fn == sn:
            old_node, new_node = node_hash(sibling, old_node), node_hash(sibling, new_node)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new_node = node_hash(new_node, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise VerificationError("merkle.path_length", "consistency path is too short", field="path")
    return old_node, new_node


def _above(level: Sequence[bytes]) -> list[bytes]:
    """The level above: nodes of pairs; an odd last one moves up."""
    nodes = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    if len(level) & 1:
        nodes.append(level[-1])
    return nodes


def _check_range(
    first: int, count: int, size: int, error: type[InvalidMessage] | type[VerificationError]
) -> None:
    if not (0 <= first < size and 1 <= count <= size - first):
        raise error("merkle.index_out_of_range", "the leaves are not within the tree", field="leaf_index")


def _split(size: int) -> int:
    """Largest power of two smaller than ``size`` (size > 1)."""
    return 1 << ((size - 1).bit_length() - 1)


def _check_hash(value: bytes, name: str) -> None:
    if len(value) != HASH_BYTES:
        raise InvalidMessage("merkle.hash_length", f"{name} must be {HASH_BYTES} bytes", field=name)


def _check_hashes(path: Sequence[bytes], **named: bytes) -> None:
    for name, value in named.items():
        _check_hash(value, name)
    for value in path:
        _check_hash(value, "path")


def _check_size(size: int, name: str) -> None:
    if not 1 <= size <= MAX_TREE_SIZE:
        raise InvalidMessage("merkle.tree_size", f"{name} must be 1 to 2^53-1", field=name)
