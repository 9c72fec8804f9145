"""SHA-256 of many messages side by side, in every way that this processor has, against hashlib; rows and their tree (spec 07,
"Weights root").
"""

from hashlib import sha256
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.core.merkle import leaf_hash, tree_root
from aos.engine import _native

WAYS = _native.sha256_lanes()


def digests(prefix: bytes, data: bytes, size: int) -> bytes:
    return b"".join(sha256(prefix + data[at : at + size]).digest() for at in range(0, len(data), size))


def test_the_last_way_is_the_definition() -> None:
    assert WAYS[-1] == "plain"
    assert len(set(WAYS)) == len(WAYS)


@pytest.mark.parametrize("way", ["", *WAYS])
def test_every_length_up_to_four_blocks(way: str) -> None:
    rng = Random(1)
    for size in range(1, 260):
        prefix, data = rng.randbytes(size % 67), rng.randbytes(size * (1 + size % 35))
        assert _native.sha256_many(way, prefix, data, size) == digests(prefix, data, size)


@pytest.mark.parametrize("way", ["", *WAYS])
@pytest.mark.parametrize(("prefix", "size"), [(22, 144), (1, 64), (1, 512), (1, 1024), (0, 64), (64, 1)])
def test_every_number_of_messages(way: str, prefix: int, size: int) -> None:
    rng = Random(2)
    for count in range(1, 50):
        tag, data = rng.randbytes(prefix), rng.randbytes(size * count)
        assert _native.sha256_many(way, tag, data, size) == digests(tag, data, size)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["", *WAYS]),
    st.binary(max_size=200),
    st.integers(1, 1500),
    st.integers(1, 40),
    st.integers(0, 2**32),
)
def test_any_shape(way: str, prefix: bytes, size: int, count: int, seed: int) -> None:
    data = Random(seed).randbytes(size * count)
    assert _native.sha256_many(way, prefix, data, size) == digests(prefix, data, size)


def test_no_messages() -> None:
    assert _native.sha256_many("", b"tag", b"", 5) == b""


@pytest.mark.parametrize(
    ("way", "size", "code"),
    [("", 0, "engine.parameter"), ("", 3, "engine.parameter"), ("none", 4, "engine.isa")],
)
def test_what_is_refused(way: str, size: int, code: str) -> None:
    with pytest.raises(_native.Error) as caught:
        _native.sha256_many(way, b"", b"12345678", size)
    assert caught.value.args[0] == code


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("row_bytes", "chunk_bytes"),
    [(144, 144), (1152, 144), (18, 144), (162, 144), (6192, 144), (100, 7), (5, 1)],
)
@pytest.mark.parametrize("rows", [1, 2, 17, 200])
def test_rows_and_their_root(rows: int, row_bytes: int, chunk_bytes: int, threads: int) -> None:
    data, tag = Random(rows).randbytes(rows * row_bytes), b"\0tag"
    joined, root, finite = _native.hash_rows(
        type=99,
        data=np.frombuffer(data, dtype=np.uint8),
        row_bytes=row_bytes,
        chunk_bytes=chunk_bytes,
        prefix=tag,
        threads=threads,
    )
    expected = []
    for at in range(0, len(data), row_bytes):
        row = data[at : at + row_bytes]
        chunks = [row[i : i + chunk_bytes] for i in range(0, row_bytes, chunk_bytes)]
        expected.append(tree_root([leaf_hash(tag[1:] + chunk) for chunk in chunks]))
    assert joined == b"".join(expected)
    assert root == tree_root(expected)
    assert finite
