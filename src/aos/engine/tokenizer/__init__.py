"""Text to ids and back, by what a GGUF file says about its tokens (docs/spec/07-inference.md, "Tokens").

Two kinds: ``llama`` (SentencePiece, by score) and ``gpt2`` (byte-level byte-pair, by rank). Names of special
tokens are plain text unless a caller vouches for the text: only then are they cut out of it.
"""

from collections.abc import Iterable, Sequence

from aos.engine.tokenizer.bpe import BytePairModel
from aos.engine.tokenizer.pretokenize import is_white_space
from aos.engine.tokenizer.spm import SentencePieceModel
from aos.engine.tokenizer.vocabulary import (
    BYTE,
    CONTROL,
    MAX_PIECE,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    SentencePieces,
    Vocabulary,
    decode_vocabulary,
    read_vocabulary,
    refuse,
)
from aos.errors import InvalidMessage

__all__ = ["Tokenizer", "Vocabulary", "decode_vocabulary", "read_vocabulary"]


class Tokenizer:
    """One vocabulary's tables, built once. Equal texts give equal ids, whoever asked before."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Raises InvalidMessage (``tokenizer.*``) where the vocabulary cannot spell every text."""
        self.vocabulary = vocabulary
        names = []
        for token, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.kinds, strict=True)):
            try:
                name = piece.decode("utf-8")
            except UnicodeDecodeError:
                raise refuse("piece", "tokens", f"piece {token} is not UTF-8") from None
            if len(piece) > MAX_PIECE or (not piece and kind in (NORMAL, USER_DEFINED)):
                raise refuse("piece", "tokens", f"piece {token} is empty or longer than {MAX_PIECE} bytes")
            if piece and kind in (CONTROL, UNKNOWN, USER_DEFINED):
                names.append((name, token))
        rules = vocabulary.rules
        self._model = (
            SentencePieceModel(vocabulary, rules)
            if isinstance(rules, SentencePieces)
            else BytePairModel(vocabulary, rules)
        )
        # Longest first, as the reference tokenizers cut them out of the text; ties in id order.
        self._names = sorted(names, key=lambda entry: -len(entry[0].encode()))
        self._always = {
            name for name, token in names if vocabulary.kinds[token] == USER_DEFINED and is_white_space(name)
        }

    def encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """Ids of a whole prompt, BOS and EOS as the file says.

        ``special``: the text is trusted, names of special tokens in it become these tokens. Raises
        InvalidMessage ``tokenizer.text`` where ``text`` holds lone surrogates.
        """
        vocabulary = self.vocabulary
        out = self._encode([(text, special)])
        if vocabulary.add_bos and vocabulary.bos is not None:
            out.insert(0, vocabulary.bos)
        if vocabulary.add_eos and vocabulary.eos is not None:
            out.append(vocabulary.eos)
        return tuple(out)

    def encode_runs(self, runs: Iterable[tuple[str, bool]]) -> tuple[int, ...]:
        """Ids of a rendered conversation: runs of text, and whether each is trusted.

        A name counts only within one trusted run; all else is one text. BOS leads as the file says, unless
        the runs bring it; EOS is not added, for the conversation goes on. Raises as ``encode``.
        """
        vocabulary = self.vocabulary
        out = self._encode(runs)
        if vocabulary.add_bos and vocabulary.bos is not None and out[:1] != [vocabulary.bos]:
            out.insert(0, vocabulary.bos)
        return tuple(out)

    def _encode(self, runs: Iterable[tuple[str, bool]]) -> list[int]:
        out: list[int] = []
        plain: list[str] = []
        first = True
        for fragment in (*self._fragments(runs), None):
            if isinstance(fragment, str):
                plain.append(fragment)
                continue
            if plain:
                out.extend(self._model.encode("".join(plain), first=first))
                plain, first = [], False
            if fragment is not None:
                out.append(fragment)
                first = True
        return out

    def _fragments(self, runs: Iterable[tuple[str, bool]]) -> list[str | int]:
        out: list[str | int] = []
        for text, trusted in _joined(runs):
            fragments: list[str | int] = [text]
            for name, token in self._names:
                if (trusted or name in self._always) and name in text:
                    fragments = [part for fragment in fragments for part in _cut(fragment, name, token)]
            out.extend(fragments)
        return out

    def piece(self, token: int) -> bytes:
        """The bytes that ``token`` adds to an output: nothing for control, unknown and unused tokens."""
        return self._model.outputs[token]

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes of ``tokens`` as a prompt: the inverse of ``encode``, added space prefixes removed."""
        out: list[bytes] = []
        at_start = True
        for token in tokens:
            piece, kind = self._model.outputs[token], self.vocabulary.kinds[token]
            if kind in (NORMAL, BYTE):
                out.append(self._model.unprefixed(piece) if at_start else piece)
                at_start = False
            else:
                out.append(piece)
                at_start = True
        return b"".join(out)


def _joined(runs: Iterable[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Adjacent runs of one trust as one, empty ones left out. Refuses what is not Unicode text."""
    out: list[tuple[list[str], bool]] = []
    for text, trusted in runs:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidMessage("tokenizer.text", "the text is not valid Unicode", field="prompt") from None
        if text and out and out[-1][1] == trusted:
            out[-1][0].append(text)
        elif text:
            out.append(([text], trusted))
    return [("".join(parts), trusted) for parts, trusted in out]


def _cut(fragment: str | int, name: str, token: int) -> list[str | int]:
    if isinstance(fragment, int) or name not in fragment:
        return [fragment]
    out: list[str | int] = []
    for index, part in enumerate(fragment.split(name)):
        if index:
            out.append(token)
        if part:
            out.append(part)
    return out
