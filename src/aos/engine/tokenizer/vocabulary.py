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
        """SHA-256 of ``encoded``."""
        return sha256(self.encoded()).digest()

    def encoded(self) -> bytes:
        """Everything that decides ids, in a fixed binary form; ``decode_vocabulary`` is the inverse."""
        ends = _tokens(self.bos, self.eos)
        # Not there in files without them, whose digests are older than this member.
        further = b"" if self.eot is None and self.eom is None else _tokens(self.eot, self.eom)
        rules, out = self.rules, [_number(len(self.pieces))]
        if isinstance(rules, SentencePieces):
            for piece, score, kind in zip(self.pieces, rules.scores, self.kinds, strict=True):
                out += [_number(len(piece)), piece, _SCORE_AND_KIND.pack(score, kind)]
            flags = bytes([self.add_bos, self.add_eos, rules.add_space_prefix])
            return b"".join((SPM_TAG, *out, ends, flags, further))
        for piece, kind in zip(self.pieces, self.kinds, strict=True):
            out += [_number(len(piece)), piece, bytes([kind])]
        out.append(_number(len(rules.merges)))
        out += [_number(left) + _number(right) for left, right, _ in rules.merges]
        flags = bytes([self.add_bos, self.add_eos, rules.kind.whole_words])
        name = rules.kind.splitter.name.encode()
        return b"".join((BPE_TAG, *out, ends, flags, _number(len(name)), name, CLASSES_DIGEST, further))


_SCORE_AND_KIND = struct.Struct("<fB")


def _number(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _tokens(*tokens: int | None) -> bytes:
    return b"".join(_number(_NO_TOKEN if token is None else token) for token in tokens)


def decode_vocabulary(data: bytes) -> Vocabulary:
    """The vocabulary of ``Vocabulary.encoded``'s bytes. It is not checked beyond its form: its digest says whose it is.

    Raises InvalidMessage ``tokenizer.encoding``.
    """
    try:
        return _Decoder(data).vocabulary()
    except (IndexError, ValueError, KeyError, struct.error) as error:
        raise InvalidMessage(
            "tokenizer.encoding", "the bytes are no tokenizer tables", field="tokenizer"
        ) from error


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        self._at += size
        if self._at > len(self._data):
            raise IndexError
        return self._data[self._at - size : self._at]

    def number(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def token(self) -> int | None:
        number = self.number()
        return None if number == _NO_TOKEN else number

    def flag(self) -> bool:
        return (False, True)[self.take(1)[0]]

    def vocabulary(self) -> Vocabulary:
        sentences = self._data.startswith(SPM_TAG)
        if self.take(len(SPM_TAG if sentences else BPE_TAG)) != (SPM_TAG if sentences else BPE_TAG):
            raise ValueError
        pieces: list[bytes] = []
        scores: list[float] = []
        kinds: list[int] = []
        for _ in range(self.number()):
            pieces.append(self.take(self.number()))
            if sentences:
                score, kind = _SCORE_AND_KIND.unpack(self.take(_SCORE_AND_KIND.size))
                scores.append(score)
            else:
                kind = self.take(1)[0]
            kinds.append(kind)
        merges: tuple[tuple[int, int, int], ...] = ()
        if not sentences:
            pairs = [(self.number(), self.number()) for _ in range(self.number())]
            ids = {
                p: token for token, (p, kind) in enumerate(zip(pieces, kinds, strict=True)) if kind == NORMAL
            }
            merges = tuple((left, right, ids[pieces[left] + pieces[right]]) for left, right in pairs)
        bos, eos = self.token(), self.token()
        add_bos, add_eos, last = self.flag(), self.flag(), self.flag()
        rules: SentencePieces | BytePairs = SentencePieces(scores=tuple(scores), add_space_prefix=last)
        if not sentences:
            name = self.take(self.number()).decode()
            if self.take(len(CLASSES_DIGEST)) != CLASSES_DIGEST:
                raise ValueError
            splitters = {kind.splitter.name: kind.splitter for kind in KINDS.values()}
            rules = BytePairs(merges=merges, kind=Kind(splitter=splitters[name], whole_words=last))
        eot, eom = (self.token(), self.token()) if self._at < len(self._data) else (None, None)
        if self._at != len(self._data):
            raise ValueError
        return Vocabulary(
            pieces=tuple(pieces),
            kinds=tuple(kinds),
            bos=bos,
            eos=eos,
            eot=eot,
            eom=eom,
            add_bos=add_bos,
            add_eos=add_eos,
            rules=rules,
        )


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
