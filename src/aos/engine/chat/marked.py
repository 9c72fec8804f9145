"""Text that knows which of its characters the template wrote itself (docs/spec/07-inference.md, "Chat
templates").

A plain ``str`` is a stranger's text throughout. Where an operation is not among these functions its result is
plain: the template loses a special token then, a stranger never gains one.
"""

import re
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

OWN, FOREIGN = b"\1", b"\0"
# What str.strip() takes off, written out: it must not follow the Unicode version of somebody's Python.
SPACES = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_WORD = re.compile(f"[^{re.escape(SPACES)}]+")
_UPPER = {lower: lower - 32 for lower in range(ord("a"), ord("z") + 1)}
_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


class Marked(str):
    """A string and, per character, whether the template wrote it (1) or somebody else (0)."""

    __slots__ = ("mask",)
    mask: bytes

    def __new__(cls, text: str, mask: bytes) -> "Marked":
        self = super().__new__(cls, text)
        self.mask = mask
        return self

    def __str__(self) -> "Marked":
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> "Marked":
        if not isinstance(key, slice):
            at = key.__index__() % len(self) if self else 0
            return Marked(str.__getitem__(self, key), self.mask[at : at + 1])
        return Marked(str.__getitem__(self, key), self.mask[key])


def own(text: str) -> Marked:
    """The template's own text."""
    return Marked(text, OWN * len(text))


def mask_of(text: str) -> bytes:
    """One byte per character."""
    return text.mask if isinstance(text, Marked) else FOREIGN * len(text)


def runs(text: str) -> list[tuple[str, bool]]:
    """Maximal runs of one writer: (text, whether the template wrote it)."""
    mask, out, start = mask_of(text), [], 0
    while start < len(mask):
        end = mask.find(FOREIGN if mask[start] else OWN, start)
        end = len(mask) if end < 0 else end
        out.append((str.__getitem__(text, slice(start, end)), bool(mask[start])))
        start = end
    return out


def concat(parts: Iterable[str]) -> str:
    """One after the other."""
    items = list(parts)
    text = "".join(items)
    if any(isinstance(item, Marked) for item in items):
        return Marked(text, b"".join(map(mask_of, items)))
    return text


def repeat(text: str, count: int) -> str:
    return Marked(str.__mul__(text, count), mask_of(text) * count)


def join(separator: str, parts: Iterable[str]) -> str:
    out: list[str] = []
    for index, part in enumerate(parts):
        if index:
            out.append(separator)
        out.append(part)
    return concat(out)


def cut(text: str, start: int, end: int) -> str:
    return text[start:end]


def lstrip(text: str, chars: str | None = None) -> str:
    rest = str.lstrip(text, SPACES if chars is None else chars)
    return cut(text, len(text) - len(rest), len(text))


def rstrip(text: str, chars: str | None = None) -> str:
    return cut(text, 0, len(str.rstrip(text, SPACES if chars is None else chars)))


def strip(text: str, chars: str | None = None) -> str:
    return lstrip(rstrip(text, chars), chars)


def removeprefix(text: str, prefix: str) -> str:
    return cut(text, len(prefix), len(text)) if text.startswith(prefix) else text


def removesuffix(text: str, suffix: str) -> str:
    return cut(text, 0, len(text) - len(suffix)) if suffix and text.endswith(suffix) else text


def split(text: str, separator: str | None = None, maxsplit: int = -1) -> list[str]:
    """As ``str.split``; without a separator ``maxsplit`` must be left out (ValueError)."""
    if separator is None:
        if maxsplit != -1:
            raise ValueError("maxsplit needs a separator")
        return [cut(text, *match.span()) for match in _WORD.finditer(text)]
    return _at_lengths(text, str.split(text, separator, maxsplit), len(separator))


def rsplit(text: str, separator: str, maxsplit: int = -1) -> list[str]:
    return _at_lengths(text, str.rsplit(text, separator, maxsplit), len(separator))


def splitlines(text: str) -> list[str]:
    out, at = [], 0
    for line, whole in zip(str.splitlines(text), str.splitlines(text, True), strict=True):
        out.append(cut(text, at, at + len(line)))
        at += len(whole)
    return out


def _at_lengths(text: str, parts: Sequence[str], gap: int) -> list[str]:
    out, at = [], 0
    for part in parts:
        out.append(cut(text, at, at + len(part)))
        at += len(part) + gap
    return out


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    if old:
        return join(new, split(text, old, count))
    limit = len(text) + 1 if count < 0 else min(count, len(text) + 1)
    out: list[str] = []
    for at in range(limit):
        out.extend((new, cut(text, at, at + 1)))
    return concat([*out, cut(text, limit, len(text))])


def upper(text: str) -> str:
    """Letters A to Z only: other case mappings follow a Unicode version."""
    return Marked(str.translate(text, _UPPER), mask_of(text))


def lower(text: str) -> str:
    """As ``upper``."""
    return Marked(str.translate(text, _LOWER), mask_of(text))


def capitalize(text: str) -> str:
    """As ``upper``, of the first character; the others become lower case."""
    return concat((upper(cut(text, 0, 1)), lower(cut(text, 1, len(text)))))


def title(text: str) -> str:
    """As ``capitalize``, of every run of letters A to Z."""
    changed = re.sub("[A-Za-z]+", lambda match: capitalize(match.group()), text)
    return Marked(changed, mask_of(text))
