"""Rules 1 and 2: activation quantisation and matrix products (docs/spec/07-inference.md).

The only product handed to BLAS is the one of 32 small integers per block: every partial sum is an integer
below 2^24 (at most 128 · 32 · 127 · 32, in Q6_K), so it is exact in binary32 in any order, with or without
FMA. Everything inexact is done term by term in the written order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aos.core.arithmetic.floats import CHUNK, F32, ZERO
from aos.core.arithmetic.formats import BLOCK, U8, Blocks

BLOCKS_PER_CHUNK = CHUNK // BLOCK
QUANTISE_BELOW = np.float32(2.0**-100)
_TILE = 32


def quantise(x: F32) -> tuple[F32, F32]:
    """Rule 1 over rows ``x`` [T, n], n a multiple of 32, all finite.

    Returns (q [n/32, T, 32], integers of at most 127 in magnitude held as float32; d [n/32, T, 1]).
    """
    blocks = x.reshape(x.shape[0], -1, BLOCK).transpose(1, 0, 2)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    used = largest >= QUANTISE_BELOW
    divisor = np.where(used, largest, np.float32(1.0))
    scale = np.where(used, largest / np.float32(127.0), ZERO)
    inverse = np.where(used, np.float32(127.0) / divisor, ZERO)
    return np.rint(blocks * inverse), scale


class BlockMatrix:
    """A quantised weight matrix over its packed blocks [rows, blocks of a row, bytes].

    With ``keep`` the blocks stay unpacked (4 bytes a weight); without, every product unpacks them anew.
    """

    def __init__(
        self, packed: U8, unpack: Callable[[U8], Blocks], *, keep: bool, rows_per_tile: int = 4096
    ) -> None:
        self.rows = packed.shape[0]
        self._packed = packed
        self._unpack = unpack
        self._tiles = [(at, min(at + rows_per_tile, self.rows)) for at in range(0, self.rows, rows_per_tile)]
        self._kept = [self._load(*tile) for tile in self._tiles] if keep else None

    def product(self, q: F32, d: F32) -> F32:
        """Rule 2: [T, rows] from ``quantise``'s pair."""
        out = np.empty((q.shape[1], self.rows), dtype=np.float32)
        for index, (first, last) in enumerate(self._tiles):
            tile = self._kept[index] if self._kept is not None else self._load(first, last)
            for at in range(0, q.shape[1], _TILE):
                part = slice(at, at + _TILE)
                out[part, first:last] = _block_product(tile, q[:, part], d[:, part])
        return out

    def _load(self, first: int, last: int) -> "_Tile":
        blocks = self._unpack(self._packed[first:last])
        return _Tile(
            weights=np.ascontiguousarray(blocks.factors().transpose(1, 2, 0)).astype(np.float32),
            scales=_by_block(blocks.scales),
            offsets=None if blocks.offsets is None else _by_block(blocks.offsets),
            counts=None if blocks.counts is None else _by_block(blocks.counts.astype(np.float32)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tile:
    """Rows of a matrix with the block outermost: weights [blocks, 32, rows], the others [blocks, 1, rows]."""

    weights: F32
    scales: F32
    offsets: F32 | None
    counts: F32 | None


def _by_block(values: F32) -> F32:
    return np.ascontiguousarray(values.T)[:, None, :]


def _block_product(tile: _Tile, q: F32, d: F32) -> F32:
    terms = np.matmul(q, tile.weights)
    terms *= tile.scales * d
    if tile.offsets is not None and tile.counts is not None:
        # An exact integer of at most 63 · 32 · 127: how it is summed does not matter.
        sums = q.astype(np.int32).sum(axis=2, keepdims=True).astype(np.float32)
        terms += (tile.offsets * d) * (tile.counts * sums)
    return chunked_sum(terms, BLOCKS_PER_CHUNK)


def chunked_sum(terms: F32, chunk: int) -> F32:
    """Sum over the first axis: chunks of ``chunk`` terms, each in order from +0, added in order from +0."""
    total: F32 | None = None
    for start in range(0, terms.shape[0], chunk):
        # Adding +0 turns a leading -0 into +0, as the accumulator that starts at +0 does; no later sum can
        # be -0 again.
        part = terms[start] + ZERO
        for index in range(start + 1, min(start + chunk, terms.shape[0])):
            part += terms[index]
        total = part if total is None else total + part
    if total is None:
        raise ValueError("a sum needs at least one term")
    return total


class DenseMatrix:
    """An F16, BF16 or F32 weight matrix, held as float32 [columns, rows]; activations are not quantised."""

    def __init__(self, weights: F32) -> None:
        self.weights = np.ascontiguousarray(weights.T)
        self.rows = weights.shape[0]

    def product(self, x: F32) -> F32:
        """Rule 2 for ``x`` [T, columns]: products in chunks of 256, in order. Returns [T, rows]."""
        out = np.empty((x.shape[0], self.rows), dtype=np.float32)
        for row in range(x.shape[0]):
            out[row] = self._row(x[row])
        return out

    def _row(self, x: F32) -> F32:
        total: F32 | None = None
        scratch = np.empty(self.rows, dtype=np.float32)
        for start in range(0, x.shape[0], CHUNK):
            part = np.zeros(self.rows, dtype=np.float32)
            for index in range(start, min(start + CHUNK, x.shape[0])):
                np.multiply(self.weights[index], x[index], out=scratch)
                part += scratch
            total = part if total is None else total + part
        if total is None:
            raise ValueError("a product needs at least one column")
        return total
