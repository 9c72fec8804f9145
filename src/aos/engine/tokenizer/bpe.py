"""Ids of a text by a byte-level byte-pair vocabulary: words, their bytes, then merges by rank
(docs/spec/07-inference.md, "Byte-pair vocabularies").
"""

import heapq

from aos.engine.tokenizer.vocabulary import NORMAL, USER_DEFINED, BytePairs, Vocabulary, refuse

_MAX_REMEMBERED = 1 << 16
_MAX_REMEMBERED_WORD = 64
_POSITION = (1 << 32) - 1


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    table = {chr(value): value for value in printable}
    return table | {chr(256 + index): value for index, value in enumerate(others)}


BYTE_OF = _byte_alphabet()
# The bytes that UTF-8 never has need no piece.
UTF8_BYTES = tuple(value for value in range(256) if value not in (0xC0, 0xC1) and value < 0xF5)


class BytePairModel:
    """Tables of one vocabulary, built once. ``outputs`` are the bytes that each token adds to a text."""

    def __init__(self, vocabulary: Vocabulary, rules: BytePairs) -> None:
        """Raises InvalidMessage ``tokenizer.byte_tokens`` where some text could not be spelt."""
        self._kind = rules.kind
        self.outputs: list[bytes] = []
        self._ids: dict[bytes, int] = {}
        for token, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.kinds, strict=True)):
            output = b""
            if kind == NORMAL:
                output = _bytes_of(piece, self._ids, token)
            elif kind == USER_DEFINED:
                output = piece
            self.outputs.append(output)
        missing = [value for value in UTF8_BYTES if bytes([value]) not in self._ids]
        if missing:
            raise refuse("byte_tokens", "tokens", f"has no piece for the byte 0x{missing[0]:02x}")
        self._of_byte = [self._ids.get(bytes([value]), 0) for value in range(256)]
        self._ranks = {left << 32 | right: rank for rank, (left, right, _) in enumerate(rules.merges)}
        self._joined = [joined for _, _, joined in rules.merges]
        self._remembered: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Ids of a stretch of plain text."""
        out: list[int] = []
        remembered = self._remembered
        for word in self._kind.splitter.words(text):
            ids = remembered.get(word)
            if ids is None:
                ids = self._word(word.encode())
                if len(word) <= _MAX_REMEMBERED_WORD:
                    if len(remembered) >= _MAX_REMEMBERED:
                        remembered.clear()
                    remembered[word] = ids
            out.extend(ids)
        return out

    def _word(self, word: bytes) -> tuple[int, ...]:
        if self._kind.whole_words:
            whole = self._ids.get(word)
            if whole is not None:
                return (whole,)
        return tuple(self._merge([self._of_byte[value] for value in word]))

    def _merge(self, symbols: list[int]) -> list[int]:
        """Join the adjacent pair of the lowest rank, leftmost among equals, until nothing joins.

        The queue holds rank and position in one integer; an entry is stale where another pair stands there.
        """
        ranks, joined, count = self._ranks, self._joined, len(symbols)
        after = list(range(1, count + 1))
        before = list(range(-1, count - 1))
        queue: list[int] = []
        for left in range(count - 1):
            rank = ranks.get(symbols[left] << 32 | symbols[left + 1])
            if rank is not None:
                queue.append(rank << 32 | left)
        heapq.heapify(queue)
        while queue:
            entry = heapq.heappop(queue)
            left, rank = entry & _POSITION, entry >> 32
            right = after[left]
            if symbols[left] < 0 or right == count or ranks.get(symbols[left] << 32 | symbols[right]) != rank:
                continue
            symbols[left], symbols[right] = joined[rank], -1
            beyond = after[left] = after[right]
            if beyond < count:
                before[beyond] = left
                rank_right = ranks.get(symbols[left] << 32 | symbols[beyond])
                if rank_right is not None:
                    heapq.heappush(queue, rank_right << 32 | left)
            previous = before[left]
            if previous >= 0:
                rank_left = ranks.get(symbols[previous] << 32 | symbols[left])
                if rank_left is not None:
                    heapq.heappush(queue, rank_left << 32 | previous)
        return [symbol for symbol in symbols if symbol >= 0]

    def unprefixed(self, output: bytes) -> bytes:
        """``output``: this kind puts nothing before a text."""
        return output


def _bytes_of(piece: bytes, ids: dict[bytes, int], token: int) -> bytes:
    """The bytes that a normal piece stands for, entered into ``ids``. A piece with a character outside the
    alphabet stands for itself, and no text gives it.
    """
    text = piece.decode("utf-8")
    if any(c not in BYTE_OF for c in text):
        return piece
    output = bytes(BYTE_OF[c] for c in text)
    ids[output] = token
    return output
