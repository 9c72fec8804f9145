"""What a GGUF file says about its tokens: reading, checking, digest (docs/spec/07-inference.md, "Tokens")."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from aos.engine.gguf import Value
from aos.engine.tokenizer.pretokenize import CLASSES_DIGEST, KINDS, Kind
from aos.errors import InvalidMessage

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPM_TAG = b"AOS/tokenizer/v1\0"
BPE_TAG = b"AOS/tokenizer-bpe/v1\0"
MAX_PIECE = 1024
_NO_TOKEN = 0xFFFFFFFF

T = TypeVar("T", bytes, float, int)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieces:
    """The llama (SentencePiece, score-driven) kind."""

    scores: tuple[float, ...]
    add_space_prefix: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BytePairs:
    """The gpt2 (byte-level byte-pair) kind. ``merges`` are ids (left, right, joined), best first."""

    merges: tuple[tuple[int, int, int], ...]
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens of either kind. ``bos``, ``eos``, ``eot`` (end of turn) and ``eom`` (end of message) are None
    where the file has none.
    """

    pieces: tuple[bytes, ...]
    kinds: tuple[int, ...]
    bos: int | None
    eos: int | None
    add_bos: bool
    add_eos: bool
    rules: SentencePieces | BytePairs
    eot: int | None = None
    eom: int | None = None

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a generation."""
        return frozenset(token for token in (self.eos, self.eot, self.eom) if token is not None)

    def digest(self) -> bytes:
        """SHA-256 over everything that decides ids, in a fixed binary form."""
        ends = struct.pack(
            "<II",
            _NO_TOKEN if self.bos is None else self.bos,
            _NO_TOKEN if self.eos is None else self.eos,
        )
        # Not there in files without them, whose digests are older than this member.
        further = b""
        if self.eot is not None or self.eom is not None:
            further = struct.pack(
                "<II",
                _NO_TOKEN if self.eot is None else self.eot,
                _NO_TOKEN if self.eom is None else self.eom,
            )
        rules = self.rules
        if isinstance(rules, SentencePieces):
            h = sha256(SPM_TAG + struct.pack("<I", len(self.pieces)))
            for piece, score, kind in zip(self.pieces, rules.scores, self.kinds, strict=True):
                h.update(struct.pack("<I", len(piece)) + piece + struct.pack("<fB", score, kind))
            h.update(ends + bytes([self.add_bos, self.add_eos, rules.add_space_prefix]) + further)
            return h.digest()
        h = sha256(BPE_TAG + struct.pack("<I", len(self.pieces)))
        for piece, kind in zip(self.pieces, self.kinds, strict=True):
            h.update(struct.pack("<I", len(piece)) + piece + bytes([kind]))
        h.update(struct.pack("<I", len(rules.merges)))
        for left, right, _ in rules.merges:
            h.update(struct.pack("<II", left, right))
        name = rules.kind.splitter.name.encode()
        h.update(ends + bytes([self.add_bos, self.add_eos, rules.kind.whole_words]))
        h.update(struct.pack("<I", len(name)) + name + CLASSES_DIGEST + further)
        return h.digest()


def read_vocabulary(metadata: Mapping[str, Value]) -> Vocabulary:
    """Read and check the ``tokenizer.ggml.*`` keys.

    Raises InvalidMessage: ``tokenizer.unsupported`` (neither kind), ``tokenizer.pre`` (a byte-pair kind whose
    splitting is not known here), ``tokenizer.missing``, ``tokenizer.type``, ``tokenizer.length``,
    ``tokenizer.score``, ``tokenizer.kind``, ``tokenizer.piece``, ``tokenizer.duplicate``,
    ``tokenizer.merge``, ``tokenizer.special_id``.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in (b"llama", b"gpt2"):
        raise InvalidMessage(
            "tokenizer.unsupported",
            f"the tokenizer {_shown(model)} is neither of the llama (SentencePiece) nor of the gpt2 (byte-pair)"
            " kind",
            field="tokenizer.ggml.model",
            hint="use a model file with one of these tokenizers",
        )
    pre = _kind(metadata) if model == b"gpt2" else None
    pieces = _array(metadata, "tokens", bytes)
    kinds = _array(metadata, "token_type", int)
    if len(pieces) != len(kinds) or not pieces:
        raise refuse("length", "tokens", "tokens and token_type differ in length, or are empty")
    if any(kind not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE) for kind in kinds):
        raise refuse("kind", "token_type", "a token type is not in 1..6")
    rules = (
        _sentence_pieces(metadata, len(pieces)) if pre is None else _byte_pairs(metadata, pieces, kinds, pre)
    )
    bos, eos, eot, eom = (_special(metadata, name, len(pieces)) for name in ("bos", "eos", "eot", "eom"))
    return Vocabulary(
        pieces=pieces,
        kinds=kinds,
        bos=bos,
        eos=eos,
        eot=eot,
        eom=eom,
        add_bos=_adds(metadata, "bos", bos, default=pre is None or pre.add_bos),
        add_eos=_adds(metadata, "eos", eos, default=False),
        rules=rules,
    )


def _sentence_pieces(metadata: Mapping[str, Value], n_tokens: int) -> SentencePieces:
    scores = _array(metadata, "scores", float)
    if len(scores) != n_tokens:
        raise refuse("length", "scores", "differs in length from tokens")
    if not all(map(math.isfinite, scores)):
        raise refuse("score", "scores", "a score is not a finite number")
    return SentencePieces(scores=scores, add_space_prefix=_flag(metadata, "add_space_prefix", default=True))


def _kind(metadata: Mapping[str, Value]) -> Kind:
    pre = metadata.get("tokenizer.ggml.pre")
    kind = KINDS.get(pre.decode("utf-8", "replace")) if isinstance(pre, bytes) else None
    if kind is None:
        raise InvalidMessage(
            "tokenizer.pre",
            f"how the byte-pair kind {_shown(pre)} splits text is not known",
            field="tokenizer.ggml.pre",
            hint=f"known kinds are {', '.join(sorted(KINDS))}",
        )
    return kind


def _byte_pairs(
    metadata: Mapping[str, Value], pieces: tuple[bytes, ...], kinds: tuple[int, ...], kind: Kind
) -> BytePairs:
    ids: dict[bytes, int] = {}
    for token, (piece, token_kind) in enumerate(zip(pieces, kinds, strict=True)):
        if token_kind == NORMAL and ids.setdefault(piece, token) != token:
            raise refuse("duplicate", "tokens", f"pieces {ids[piece]} and {token} are the same")
    merges: dict[tuple[int, int], int] = {}
    for rank, entry in enumerate(_array(metadata, "merges", bytes)):
        left, _, right = entry.partition(b" ")
        a, b, joined = ids.get(left), ids.get(right), ids.get(left + right)
        if a is None or b is None or joined is None:
            raise refuse("merge", "merges", f"merge {rank} does not join two pieces to a third")
        if merges.setdefault((a, b), joined) != joined or len(merges) != rank + 1:
            raise refuse("merge", "merges", f"merge {rank} appears twice")
    return BytePairs(merges=tuple((a, b, joined) for (a, b), joined in merges.items()), kind=kind)


def _shown(value: Value | None) -> str:
    return repr(value.decode("utf-8", "replace")[:64]) if isinstance(value, bytes) else repr(value)[:64]


def _array(metadata: Mapping[str, Value], name: str, kind: type[T]) -> tuple[T, ...]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        raise refuse("missing", name, "is missing")
    if not isinstance(value, tuple) or any(type(item) is not kind for item in value):
        raise refuse("type", name, f"is not an array of {kind.__name__}")
    return value  # type: ignore[return-value]


def _special(metadata: Mapping[str, Value], name: str, n_tokens: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < n_tokens:
        raise refuse("special_id", f"{name}_token_id", "is not the id of a token")
    return value


def _adds(metadata: Mapping[str, Value], name: str, token: int | None, *, default: bool) -> bool:
    adds = _flag(metadata, f"add_{name}_token", default=default and token is not None)
    if adds and token is None:
        raise refuse("special_id", f"{name}_token_id", f"is missing, but add_{name}_token is true")
    return adds


def _flag(metadata: Mapping[str, Value], name: str, *, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if type(value) is not bool:
        raise refuse("type", name, "is not a truth value")
    return value


def refuse(code: str, name: str, message: str) -> InvalidMessage:
    """``tokenizer.<code>`` about the key ``tokenizer.ggml.<name>``."""
    return InvalidMessage(
        f"tokenizer.{code}", f"tokenizer.ggml.{name} {message}", field=f"tokenizer.ggml.{name}"
    )
