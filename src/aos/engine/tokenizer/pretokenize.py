"""Splitting text into the words of a byte-pair vocabulary (docs/spec/07-inference.md, "Byte-pair
vocabularies").

Every kind is a list of regular expressions over character classes. Python's own classes follow its Unicode
version, so they are not used: non-ASCII characters are first replaced by one ASCII or combining character of
their pinned class, and the expressions name ASCII ranges only. Every expression here runs in linear time.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from aos.engine.tokenizer import unicode_table

LETTER, NUMBER, MARK, WHITE_SPACE, OTHER = "x", "0", "\N{COMBINING GRAVE ACCENT}", "\t", "!"
_CLASSES = (
    (LETTER, unicode_table.LETTERS),
    (NUMBER, unicode_table.NUMBERS),
    (MARK, unicode_table.MARKS),
    (WHITE_SPACE, unicode_table.WHITE_SPACE),
)


def _class_table() -> dict[int, str]:
    table = {}
    for stand_in, ranges in _CLASSES:
        for item in ranges.split():
            first, _, last = item.partition("-")
            for point in range(int(first, 16), int(last or first, 16) + 1):
                if point >= 0x80:
                    table[point] = stand_in
    return table


class _StandIns(dict[int, str | int]):
    """Argument of ``str.translate``: ASCII stands for itself, all else for its class."""

    def __missing__(self, point: int) -> str | int:
        return point if point < 0x80 else OTHER


_STAND_INS = _StandIns(_class_table())


def classes_digest() -> bytes:
    """SHA-256 of the class of every code point, one byte each, 0 … 0x10FFFF: L, N, M, W (white space; it
    wins) or O.
    """
    classes = bytearray(b"O" * 0x110000)
    for letter, (_, ranges) in zip(b"LNMW", _CLASSES, strict=True):
        for item in ranges.split():
            first, _, last = item.partition("-")
            start, stop = int(first, 16), int(last or first, 16) + 1
            classes[start:stop] = bytes([letter]) * (stop - start)
    return sha256(classes).digest()


CLASSES_DIGEST = bytes.fromhex("ded8ed1f544c9a78f749874920ee06c1b0d47518c0ba9a48bb113c07a6d3e7e7")


def is_white_space(text: str) -> bool:
    """Whether ``text`` is not empty and White_Space throughout."""
    return text != "" and all(c in "\t\n\v\f\r " for c in text.translate(_STAND_INS))


_CONTRACTION = r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_WHITE = r"[\t-\r ]*[\r\n]+|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"
_GPT2 = r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\t-\r A-Za-z0-9]+|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"


def _cased(letters: str, digits: str) -> str:
    return (
        rf"{_CONTRACTION}|[^\r\nA-Za-z0-9]?[{letters}]+|{digits}"
        rf"| ?[^\t-\r {letters}0-9]+[\r\n]*|{_WHITE}"
    )


@dataclass(frozen=True, slots=True)
class Splitter:
    """One way to split. Each expression splits what the one before it left, matches and gaps alike."""

    name: str
    expressions: tuple[re.Pattern[str], ...]

    def words(self, text: str) -> Iterator[str]:
        """The words of ``text`` in order; together they are the text."""
        classes = text.translate(_STAND_INS)
        spans = [(0, len(text))] if text else []
        for expression in self.expressions:
            spans = [part for span in spans for part in _split(expression, classes, span)]
        for start, end in spans:
            yield text[start:end]


def _split(expression: re.Pattern[str], classes: str, span: tuple[int, int]) -> Iterator[tuple[int, int]]:
    at, end = span
    for match in expression.finditer(classes, at, end):
        if match.start() > at:
            yield at, match.start()
        yield match.span()
        at = match.end()
    if at < end:
        yield at, end


def _splitter(name: str, *expressions: str) -> Splitter:
    return Splitter(name, tuple(re.compile(expression) for expression in expressions))


LLAMA3 = _splitter("llama3", _cased("A-Za-z", "[0-9]{1,3}"))
QWEN2 = _splitter("qwen2", _cased("A-Za-z", "[0-9]"))
QWEN35 = _splitter("qwen35", _cased(f"A-Za-z{MARK}", "[0-9]"))
GPT2 = _splitter("gpt2", _GPT2)
DIGITS_GPT2 = _splitter("digits-gpt2", "[0-9]", _GPT2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What ``tokenizer.ggml.pre`` says. ``whole_words``: a word that is a piece is not built from merges.
    ``add_bos`` is the default where the file does not say.
    """

    splitter: Splitter
    whole_words: bool = False
    add_bos: bool = False


_LLAMA3_KIND = Kind(splitter=LLAMA3, whole_words=True, add_bos=True)
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), _LLAMA3_KIND),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Kind(splitter=LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), Kind(splitter=QWEN2)),
    "qwen35": Kind(splitter=QWEN35),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "exaone4"), Kind(splitter=GPT2)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        Kind(splitter=DIGITS_GPT2),
    ),
}
