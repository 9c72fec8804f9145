"""Tokenizer of the llama (SentencePiece, score-driven) kind from GGUF metadata (docs/spec/07-inference.md,
"Tokens").

Adjacent pieces merge by score, characters that are no piece fall back to bytes. Text never yields control,
unknown or byte tokens by their names. Byte-pair vocabularies (``gpt2``) are refused by name.
"""

import heapq
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from aos.engine.gguf import Value
from aos.errors import InvalidMessage

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
DIGEST_TAG = b"AOS/tokenizer/v1\0"
MAX_PIECE = 1024

T = TypeVar("T", bytes, float, int)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What the file says about its tokens. ``bos`` and ``eos`` are None where the file has none."""

    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]
    kinds: tuple[int, ...]
    bos: int | None
    eos: int | None
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool

    def digest(self) -> bytes:
        """SHA-256 over every member in a fixed binary form (docs/spec/07-inference.md, "Tokens")."""
        h = sha256(DIGEST_TAG + struct.pack("<I", len(self.pieces)))
        for piece, score, kind in zip(self.pieces, self.scores, self.kinds, strict=True):
            h.update(struct.pack("<I", len(piece)) + piece + struct.pack("<fB", score, kind))
        none = 0xFFFFFFFF
        h.update(
            struct.pack("<II", none if self.bos is None else self.bos, none if self.eos is None else self.eos)
        )
        h.update(bytes([self.add_bos, self.add_eos, self.add_space_prefix]))
        return h.digest()


def read_vocabulary(metadata: Mapping[str, Value]) -> Vocabulary:
    """Read and check the ``tokenizer.ggml.*`` keys.

    Raises InvalidMessage: ``tokenizer.unsupported`` (another kind), ``tokenizer.missing``,
    ``tokenizer.type``, ``tokenizer.length``, ``tokenizer.score``, ``tokenizer.kind``, ``tokenizer.piece``,
    ``tokenizer.duplicate``, ``tokenizer.byte_tokens``, ``tokenizer.special_id``.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model != b"llama":
        shown = model.decode("utf-8", "replace") if isinstance(model, bytes) else repr(model)
        raise InvalidMessage(
            "tokenizer.unsupported",
            f"the tokenizer {shown!r} is not of the llama (SentencePiece) kind",
            field="tokenizer.ggml.model",
            hint="run this model with the llama.cpp engine",
        )
    pieces = _array(metadata, "tokens", bytes)
    scores = _array(metadata, "scores", float)
    kinds = _array(metadata, "token_type", int)
    if not len(pieces) == len(scores) == len(kinds) or not pieces:
        raise _refuse("length", "tokens", "tokens, scores and token_type differ in length, or are empty")
    if not all(map(math.isfinite, scores)):
        raise _refuse("score", "scores", "a score is not a finite number")
    if any(kind not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE) for kind in kinds):
        raise _refuse("kind", "token_type", "a token type is not in 1..6")
    special = {name: _special(metadata, name, len(pieces)) for name in ("bos", "eos")}
    return Vocabulary(
        pieces=pieces,
        scores=scores,
        kinds=kinds,
        bos=special["bos"],
        eos=special["eos"],
        add_bos=_flag(metadata, "add_bos_token", default=special["bos"] is not None),
        add_eos=_flag(metadata, "add_eos_token", default=False),
        add_space_prefix=_flag(metadata, "add_space_prefix", default=True),
    )


class Tokenizer:
    """Text to ids and back over one vocabulary. Pure; its tables are built once."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Raises InvalidMessage (``tokenizer.*``) where the vocabulary cannot spell every text."""
        self.vocabulary = vocabulary
        self._ids: dict[str, int] = {}
        self._byte_ids: dict[int, int] = {}
        self._user_defined: list[tuple[str, int]] = []
        self._output: list[bytes] = []
        for token, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.kinds, strict=True)):
            self._add(token, piece, kind)
        if len(self._byte_ids) != 256:
            raise _refuse(
                "byte_tokens", "tokens", f"has {len(self._byte_ids)} of the 256 byte tokens <0x00>..<0xFF>"
            )
        if SPACE not in self._ids:
            raise _refuse("piece", "tokens", "has no piece for the space (U+2581)")
        # Longest first, as the reference tokenizers cut them out of the text; ties in id order.
        self._user_defined.sort(key=lambda entry: -len(entry[0].encode()))

    def _add(self, token: int, piece: bytes, kind: int) -> None:
        try:
            text = piece.decode("utf-8")
        except UnicodeDecodeError:
            raise _refuse("piece", "tokens", f"piece {token} is not UTF-8") from None
        output = b""
        if kind == BYTE:
            value = _byte_value(text)
            if value is None or value in self._byte_ids:
                raise _refuse("byte_tokens", "tokens", f"piece {token} is not a byte token of its own")
            self._byte_ids[value] = token
            output = bytes([value])
        elif kind in (NORMAL, USER_DEFINED):
            if not text or len(piece) > MAX_PIECE:
                raise _refuse("piece", "tokens", f"piece {token} is empty or longer than {MAX_PIECE} bytes")
            if text in self._ids:
                raise _refuse("duplicate", "tokens", f"pieces {self._ids[text]} and {token} are the same")
            self._ids[text] = token
            if kind == USER_DEFINED:
                self._user_defined.append((text, token))
            output = piece if kind == USER_DEFINED else text.replace(SPACE, " ").encode()
        self._output.append(output)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a whole prompt: BOS and EOS as the file says, special tokens' names as plain text.

        Raises InvalidMessage ``tokenizer.text`` where ``text`` holds lone surrogates.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidMessage("tokenizer.text", "the text is not valid Unicode", field="prompt") from None
        vocabulary = self.vocabulary
        out: list[int] = []
        if vocabulary.add_bos and vocabulary.bos is not None:
            out.append(vocabulary.bos)
        after_special = True
        for fragment in self._fragments(text):
            if isinstance(fragment, int):
                out.append(fragment)
                after_special = True
                continue
            prefix = " " if vocabulary.add_space_prefix and after_special else ""
            out.extend(self._encode_raw((prefix + fragment).replace(" ", SPACE)))
            after_special = False
        if vocabulary.add_eos and vocabulary.eos is not None:
            out.append(vocabulary.eos)
        return tuple(out)

    def _fragments(self, text: str) -> list[str | int]:
        fragments: list[str | int] = [text] if text else []
        for name, token in self._user_defined:
            split: list[str | int] = []
            for fragment in fragments:
                if isinstance(fragment, int) or name not in fragment:
                    split.append(fragment)
                    continue
                for index, part in enumerate(fragment.split(name)):
                    if index:
                        split.append(token)
                    if part:
                        split.append(part)
            fragments = split
        return fragments

    def _encode_raw(self, text: str) -> list[int]:
        """Merge adjacent pieces, highest score first, leftmost first among equals, until nothing merges."""
        ids, scores = self._ids, self.vocabulary.scores
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

    def piece(self, token: int) -> bytes:
        """The bytes that ``token`` adds to an output: nothing for control, unknown and unused tokens."""
        return self._output[token]

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes of ``tokens`` as a prompt: the inverse of ``encode``, added space prefixes removed."""
        out: list[bytes] = []
        at_start = True
        for token in tokens:
            piece, kind = self._output[token], self.vocabulary.kinds[token]
            if kind == USER_DEFINED:
                at_start = True
            elif kind in (NORMAL, BYTE):
                if at_start and self.vocabulary.add_space_prefix:
                    piece = piece.removeprefix(b" ")
                at_start = False
            out.append(piece)
        return b"".join(out)


def _byte_value(text: str) -> int | None:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        digits = text[3:5]
        if all(c in "0123456789ABCDEF" for c in digits):
            return int(digits, 16)
    return None


def _array(metadata: Mapping[str, Value], name: str, kind: type[T]) -> tuple[T, ...]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        raise _refuse("missing", name, "is missing")
    if not isinstance(value, tuple) or any(type(item) is not kind for item in value):
        raise _refuse("type", name, f"is not an array of {kind.__name__}")
    return value  # type: ignore[return-value]


def _special(metadata: Mapping[str, Value], name: str, n_tokens: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < n_tokens:
        raise _refuse("special_id", f"{name}_token_id", "is not the id of a token")
    return value


def _flag(metadata: Mapping[str, Value], name: str, *, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if type(value) is not bool:
        raise _refuse("type", name, "is not a truth value")
    return value


def _refuse(code: str, name: str, message: str) -> InvalidMessage:
    return InvalidMessage(
        f"tokenizer.{code}", f"tokenizer.ggml.{name} {message}", field=f"tokenizer.ggml.{name}"
    )
