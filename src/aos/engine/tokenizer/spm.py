"""Ids of a text by a SentencePiece vocabulary: adjacent pieces join by score, what is no piece becomes bytes
(docs/spec/07-inference.md, "SentencePiece vocabularies").
"""

import heapq

from aos.engine.tokenizer.vocabulary import BYTE, NORMAL, USER_DEFINED, SentencePieces, Vocabulary, refuse

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class SentencePieceModel:
    """Tables of one vocabulary, built once. ``outputs`` are the bytes that each token adds to a text."""

    def __init__(self, vocabulary: Vocabulary, rules: SentencePieces) -> None:
        """Raises InvalidMessage ``tokenizer.byte_tokens``, ``tokenizer.piece``, ``tokenizer.duplicate``."""
        self._rules = rules
        self._ids: dict[str, int] = {}
        self._byte_ids: dict[int, int] = {}
        self.outputs: list[bytes] = []
        for token, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.kinds, strict=True)):
            self._add(token, piece, kind)
        if len(self._byte_ids) != 256:
            raise refuse(
                "byte_tokens", "tokens", f"has {len(self._byte_ids)} of the 256 byte tokens <0x00>..<0xFF>"
            )
        if SPACE not in self._ids:
            raise refuse("piece", "tokens", "has no piece for the space (U+2581)")

    def _add(self, token: int, piece: bytes, kind: int) -> None:
        text = piece.decode("utf-8")
        output = b""
        if kind == BYTE:
            value = _byte_value(text)
            if value is None or value in self._byte_ids:
                raise refuse("byte_tokens", "tokens", f"piece {token} is not a byte token of its own")
            self._byte_ids[value] = token
            output = bytes([value])
        elif kind == NORMAL:
            if text in self._ids:
                raise refuse("duplicate", "tokens", f"pieces {self._ids[text]} and {token} are the same")
            self._ids[text] = token
            output = text.replace(SPACE, " ").encode()
        elif kind == USER_DEFINED:
            output = piece
        self.outputs.append(output)

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Ids of a stretch of plain text; ``first`` where nothing or a special token stands before it."""
        prefix = " " if first and self._rules.add_space_prefix else ""
        return self._merge((prefix + text).replace(" ", SPACE))

    def _merge(self, text: str) -> list[int]:
        """Join adjacent pieces, highest score first, leftmost first among equals, until nothing joins."""
        ids, scores = self._ids, self._rules.scores
        symbols: list[str] = list(text)
        before = list(range(-1, len(symbols) - 1))
        after = [*range(1, len(symbols)), -1]
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0:
                return
            merged = symbols[left] + symbols[right]
            token = ids.get(merged)
            if token is not None:
                heapq.heappush(queue, (-scores[token], left, right, len(merged)))

        for left in range(len(symbols) - 1):
            offer(left, left + 1)
        while queue:
            _, left, right, length = heapq.heappop(queue)
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != length:
                continue
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[left] >= 0:
                before[after[left]] = left
            offer(before[left], left)
            offer(left, after[left])
        out: list[int] = []
        for symbol in symbols:
            if not symbol:
                continue
            token = ids.get(symbol)
            if token is not None:
                out.append(token)
            else:
                out.extend(self._byte_ids[value] for value in symbol.encode())
        return out

    def unprefixed(self, output: bytes) -> bytes:
        """``output`` as the first of a stretch, without the space that ``encode`` put before it."""
        return output.removeprefix(b" ") if self._rules.add_space_prefix else output


def _byte_value(text: str) -> int | None:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        digits = text[3:5]
        if all(c in "0123456789ABCDEF" for c in digits):
            return int(digits, 16)
    return None
