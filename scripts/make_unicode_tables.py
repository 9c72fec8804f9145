"""Make src/aos/engine/tokenizer/unicode_table.py: the character classes that byte-pair tokenizers split by
(docs/spec/07-inference.md, "Byte-pair vocabularies").

Ids must not depend on the Unicode version of somebody's Python, so the classes are pinned. Run it with a
CPython whose ``unicodedata`` is of that very version (3.13 for 15.1.0).
"""

import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

VERSION = "15.1.0"
TARGET = Path(__file__).resolve().parents[1] / "src" / "aos" / "engine" / "tokenizer" / "unicode_table.py"
# The property White_Space, which unicodedata does not offer. Unicode has not changed it since 6.3.
WHITE_SPACE = (
    *range(0x09, 0x0E),
    0x20,
    0x85,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x3000,
)
HEADER = '''"""Character classes of Unicode {version}, made by scripts/make_unicode_tables.py: ranges of code points in
hexadecimal, first-last. What is in no class is "other".
"""

UNICODE_VERSION = "{version}"
'''


def ranges(points: Iterable[int]) -> list[str]:
    """Ascending code points as ``first-last`` (or ``first`` alone)."""
    out: list[list[int]] = []
    for point in points:
        if out and out[-1][1] == point - 1:
            out[-1][1] = point
        else:
            out.append([point, point])
    return [f"{a:x}" if a == b else f"{a:x}-{b:x}" for a, b in out]


def module() -> str:
    """The module's text. Only right under the pinned version."""
    of_class: dict[str, list[int]] = {"L": [], "M": [], "N": []}
    for point in range(0x110000):
        major = unicodedata.category(chr(point))[0]
        if major in of_class:
            of_class[major].append(point)
    sections = {
        "LETTERS": of_class["L"],
        "MARKS": of_class["M"],
        "NUMBERS": of_class["N"],
        "WHITE_SPACE": list(WHITE_SPACE),
    }
    out = [HEADER.format(version=VERSION)]
    for name, points in sections.items():
        lines = [""]
        for item in ranges(points):
            if len(lines[-1]) + len(item) > 104:
                lines.append("")
            lines[-1] += (" " if lines[-1] else "") + item
        out.append(f'{name} = """\n' + "\n".join(lines) + '\n"""\n')
    return "\n".join(out)


def main() -> int:
    if unicodedata.unidata_version != VERSION:
        print(f"this Python knows Unicode {unicodedata.unidata_version}, not {VERSION}", file=sys.stderr)
        return 1
    TARGET.write_text(module(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
