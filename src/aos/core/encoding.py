"""Bytes and values: canonical JSON, strict parsing, base64url, tagged hashes (docs/spec/01-encoding.md).

What is hashed or signed is RFC 8785 JSON of text, integers, booleans, null, lists and objects; there are no
floats in it. ``Fields`` reads a decoded object member by member into frozen values. This module knows no
message of its own.
"""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Mapping
from decimal import Decimal
from hashlib import sha256
from typing import NoReturn, TypeAlias, TypeVar

from aos.errors import InvalidMessage

_Kind = TypeVar("_Kind")

JsonValue: TypeAlias = "bool | int | str | Decimal | list[JsonValue] | dict[str, JsonValue] | None"

MAX_INT = 2**53 - 1
MAX_DEPTH = 16
MILLION = 1_000_000
_MAX_NUMBER_CHARS = 64

_CANONICAL = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))
_CANONICAL_BMP = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, separators=(",", ":"), sort_keys=True
)
_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_B64U = re.compile(r"[A-Za-z0-9_-]*\Z", re.ASCII)
_HEX = re.compile(r"[0-9a-f]*\Z", re.ASCII)
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?\Z", re.ASCII)
_TAG_NAME = re.compile(r"[a-z0-9]+(?:[-/][a-z0-9]+)*\Z", re.ASCII)


# --- canonical JSON


def canonical_json(value: object) -> bytes:
    """RFC 8785 bytes of a value made of str, int, bool, None, lists, tuples and dicts with str keys.

    Raises InvalidMessage: ``encoding.float`` (floats and Decimals), ``encoding.integer_range`` (beyond
    ±(2^53-1)), ``encoding.surrogate``, ``encoding.key`` (a key that is not text), ``encoding.depth``,
    ``encoding.type``.
    """
    if _check_value(value, MAX_DEPTH):
        return _CANONICAL.encode(_by_utf16(value)).encode()
    return _CANONICAL_BMP.encode(value).encode()


def _check_value(value: object, depth: int) -> bool:
    """True where some key lies beyond the basic multilingual plane: Python sorts by code points, RFC 8785 by UTF-16."""
    beyond = False
    if value is None or isinstance(value, bool):
        return beyond
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, int):
        if not -MAX_INT <= value <= MAX_INT:
            raise InvalidMessage("encoding.integer_range", "integers must lie within ±(2^53-1)")
    elif isinstance(value, list | tuple):
        _check_depth(depth)
        for item in value:
            beyond |= _check_value(item, depth - 1)
    elif isinstance(value, dict):
        _check_depth(depth)
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidMessage("encoding.key", "the keys of an object must be text")
            _check_text(key)
            beyond |= not key.isascii() and max(key) > "\uffff"
            beyond |= _check_value(item, depth - 1)
    elif isinstance(value, float | Decimal):
        raise InvalidMessage(
            "encoding.float", "canonical JSON holds no decimals", hint="use an integer in millionths"
        )
    else:
        raise InvalidMessage("encoding.type", f"{type(value).__name__} has no canonical form")
    return beyond


def _by_utf16(value: object) -> object:
    if isinstance(value, dict):
        ordered = sorted(value.items(), key=lambda member: member[0].encode("utf-16-be"))
        return {key: _by_utf16(item) for key, item in ordered}
    if isinstance(value, list | tuple):
        return [_by_utf16(item) for item in value]
    return value


def _check_text(text: str) -> None:
    if _SURROGATE.search(text):
        raise InvalidMessage("encoding.surrogate", "text holds a lone surrogate, which is not Unicode")


def _check_depth(depth: int) -> None:
    if depth <= 0:
        raise InvalidMessage("encoding.depth", "the value is nested too deep")


# --- parsing ---


def parse_json_strict(
    data: bytes, *, max_bytes: int, max_depth: int = MAX_DEPTH, allow_floats: bool = False
) -> JsonValue:
    """Parse JSON that leaves no room for two readings. Decimals, where allowed, come back as exact
    ``Decimal``.

    Raises InvalidMessage, checked in this order: ``encoding.too_large``, ``encoding.utf8``, ``encoding.bom``,
    ``encoding.depth``, then while reading ``encoding.duplicate_key``, ``encoding.nan``, ``encoding.number``
    (longer than 64 characters, or -0), ``encoding.integer_range``, ``encoding.float``, ``encoding.syntax``
    (trailing bytes included), and at last ``encoding.surrogate``.
    """
    if len(data) > max_bytes:
        raise InvalidMessage("encoding.too_large", f"the message is larger than {max_bytes} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidMessage("encoding.utf8", "the message is not UTF-8") from error
    if text.startswith("\ufeff"):
        raise InvalidMessage("encoding.bom", "the message begins with a byte order mark")
    check_nesting(data, max_depth)
    try:
        value: JsonValue = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_int=_parse_int,
            parse_float=_parse_decimal if allow_floats else _refuse_float,
        )
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidMessage("encoding.syntax", "the message is not one JSON value") from error
    if "\\u" in text:  # only an escape can bring in a surrogate: the bytes were UTF-8
        _check_texts(value)
    return value


def parse_canonical(data: bytes, *, max_bytes: int) -> JsonValue:
    """Parse canonical JSON. Raises as ``parse_json_strict``, and ``encoding.not_canonical`` for any other
    form."""
    value = parse_json_strict(data, max_bytes=max_bytes)
    if canonical_json(value) != data:
        raise InvalidMessage("encoding.not_canonical", "the bytes are not the canonical form of their value")
    return value


def check_nesting(data: bytes, max_depth: int) -> None:
    """Raises InvalidMessage ``encoding.depth`` where JSON is nested deeper than ``max_depth``. Its form is not checked."""
    depth = 0
    for token in _TOKENS.finditer(data):
        first = data[token.start()]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                raise InvalidMessage("encoding.depth", f"the message is nested deeper than {max_depth}")
        elif first in b"]}":
            depth -= 1


def _unique_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidMessage(
                    "encoding.duplicate_key", "an object names a member twice", field=ascii(key)[1:-1][:64]
                )
            seen.add(key)
    return members


def _refuse_constant(text: str) -> NoReturn:
    raise InvalidMessage("encoding.nan", f"{text} is not JSON")


def _refuse_float(text: str) -> NoReturn:
    raise InvalidMessage(
        "encoding.float", "decimals are not allowed here", hint="use an integer in millionths"
    )


def _parse_int(text: str) -> int:
    if text == "-0":
        raise InvalidMessage("encoding.number", "-0 is not an integer")
    if len(text) > 17 or not -MAX_INT <= (value := int(text)) <= MAX_INT:
        raise InvalidMessage("encoding.integer_range", "integers must lie within ±(2^53-1)")
    return value


def _parse_decimal(text: str) -> Decimal:
    if len(text) > _MAX_NUMBER_CHARS:
        raise InvalidMessage("encoding.number", "a number is longer than 64 characters")
    return Decimal(text)


def _check_texts(value: JsonValue) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_texts(item)


# --- binary as text, hashes, decimals ---


def b64u_encode(data: bytes) -> str:
    """base64url (RFC 4648, section 5) without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64u_decode(text: str, *, length: int | None = None) -> bytes:
    """The bytes of unpadded base64url, of exactly ``length`` where given.

    Raises InvalidMessage ``encoding.base64url`` (other characters, padding, trailing bits that are not zero)
    and ``encoding.length``.
    """
    if not _B64U.match(text) or len(text) % 4 == 1:
        raise InvalidMessage("encoding.base64url", "not unpadded base64url")
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64u_encode(data) != text:
        raise InvalidMessage("encoding.base64url", "base64url with trailing bits that are not zero")
    if length is not None and len(data) != length:
        raise InvalidMessage("encoding.length", f"expected {length} bytes, got {len(data)}")
    return data


def lp(data: bytes) -> bytes:
    """``data`` behind its length as 8 bytes, big-endian."""
    return len(data).to_bytes(8, "big") + data


def tag(name: str) -> bytes:
    """The domain tag b"AOS/<name>/v1\\0". ``name`` is lower-case words joined by ``-`` or ``/``."""
    if not _TAG_NAME.match(name):
        raise ValueError(f"not a tag name: {name!r}")
    return b"AOS/" + name.encode("ascii") + b"/v1\0"


def tagged_hash(name: str, *parts: bytes) -> bytes:
    """SHA-256 of the domain tag and the parts, one after the other (32 bytes).

    Every part must have a length fixed by the specification, or be wrapped in ``lp``: the hash does not mark
    where one part ends.
    """
    return sha256(tag(name) + b"".join(parts)).digest()


def millionths(value: str | int | Decimal) -> int:
    """The exact number of millionths in a decimal: "0.5" is 500000.

    Raises InvalidMessage ``encoding.number`` (not a plain decimal), ``encoding.precision`` (more than six
    decimals) and ``encoding.integer_range`` (beyond ±(2^53-1) millionths). Zeros behind the sixth decimal are
    no precision.
    """
    if isinstance(value, str):
        if len(value) > _MAX_NUMBER_CHARS or not _DECIMAL.match(value):
            raise InvalidMessage("encoding.number", "not a decimal number")
        value = Decimal(value)
    elif isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise InvalidMessage("encoding.number", "not a decimal number")
    if isinstance(value, int):
        value = Decimal(value)
    if not value.is_finite():
        raise InvalidMessage("encoding.number", "not a finite number")
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # noqa: S101  finite, so not 'n', 'N' or 'F'
    if not any(digits):
        return 0
    # Bounded before any power of ten is made, so that 1e999999 costs nothing.
    if value.adjusted() > 10:
        raise InvalidMessage("encoding.integer_range", "the number is too large")
    significant = int("".join(map(str, digits)))
    shift = exponent + 6
    if shift < -len(digits) or (shift < 0 and significant % 10**-shift):
        raise InvalidMessage("encoding.precision", "more than six decimals")
    result: int = significant * 10**shift if shift >= 0 else significant // 10**-shift
    if result > MAX_INT:
        raise InvalidMessage("encoding.integer_range", "the number is too large")
    return -result if sign else result


# --- decoding objects ---


class Fields:
    """Reads the members of one decoded object, strictly; every error names the member.

    The key set is checked at once: each of ``required`` must be there, and nothing but ``required`` and
    ``optional``. Raises InvalidMessage ``field.type`` (not an object, or a member of another kind),
    ``field.missing``, ``field.unknown``, ``field.range`` (length, value or form outside what is allowed).
    """

    __slots__ = ("_members", "_path")

    def __init__(
        self, value: object, required: Collection[str], optional: Collection[str] = (), *, path: str = ""
    ) -> None:
        if not isinstance(value, dict):
            raise InvalidMessage(
                "field.type", f"{path or 'the message'} must be an object", field=path or None
            )
        self._members: Mapping[str, object] = value
        self._path = path
        for name in required:
            if name not in value:
                self._fail("field.missing", name, "is missing")
        for name in value:
            if name not in required and name not in optional:
                shown = name if isinstance(name, str) else repr(name)
                self._fail("field.unknown", ascii(shown)[1:-1][:64], "is not a member of this message")

    def has(self, name: str) -> bool:
        """Whether the (optional) member is there."""
        return name in self._members

    def raw(self, name: str) -> object:
        """The member as it was decoded."""
        return self._members[name]

    def text(self, name: str, max_chars: int, *, min_chars: int = 0) -> str:
        """Text of ``min_chars`` to ``max_chars`` Unicode code points."""
        value = self._typed(name, str)
        if not min_chars <= len(value) <= max_chars:
            self._fail("field.range", name, f"must have {min_chars} to {max_chars} characters")
        return value

    def uint(self, name: str, max_value: int = MAX_INT, *, min_value: int = 0) -> int:
        """An integer of ``min_value`` to ``max_value``."""
        value = self._members[name]
        if isinstance(value, bool) or not isinstance(value, int):
            self._fail("field.type", name, "must be an integer")
        if not min_value <= value <= max_value:
            self._fail("field.range", name, f"must be {min_value} to {max_value}")
        return value

    def boolean(self, name: str) -> bool:
        """true or false."""
        return self._typed(name, bool)

    def b64u(self, name: str, length: int | None = None, *, max_bytes: int = 1 << 20) -> bytes:
        """Bytes written as unpadded base64url, of exactly ``length`` or else at most ``max_bytes``."""
        value = self._typed(name, str)
        if len(value) > (max_bytes * 4 + 2) // 3:
            self._fail("field.range", name, f"must be at most {max_bytes} bytes")
        try:
            return b64u_decode(value, length=length)
        except InvalidMessage as error:
            self._fail("field.range", name, f"is invalid: {error.message}", cause=error)

    def hex(self, name: str, length: int, *, prefix: str = "") -> bytes:
        """Exactly ``length`` bytes as lower-case hex behind ``prefix``."""
        value = self._typed(name, str)
        digits = value.removeprefix(prefix)
        if len(value) != len(prefix) + 2 * length or len(digits) != 2 * length or not _HEX.match(digits):
            self._fail("field.range", name, f"must be {prefix}{2 * length} lower-case hex digits")
        return bytes.fromhex(digits)

    def enum(self, name: str, allowed: Collection[str]) -> str:
        """One of a closed set of texts."""
        value = self._typed(name, str)
        if value not in allowed:
            self._fail("field.range", name, f"must be one of {', '.join(sorted(map(repr, allowed)))}")
        return value

    def array(self, name: str, max_items: int, *, min_items: int = 0) -> list[object]:
        """A list of ``min_items`` to ``max_items`` members."""
        value = self._typed(name, list)
        if not min_items <= len(value) <= max_items:
            self._fail("field.range", name, f"must have {min_items} to {max_items} members")
        return value

    def mapping(self, name: str) -> dict[str, object]:
        """An object as it was decoded."""
        return self._typed(name, dict)

    def fields(self, name: str, required: Collection[str], optional: Collection[str] = ()) -> "Fields":
        """A nested object; its errors carry the whole path."""
        return Fields(self._members[name], required, optional, path=self._full(name))

    def _typed(self, name: str, kind: type[_Kind]) -> _Kind:
        value = self._members[name]
        if not isinstance(value, kind):
            self._fail("field.type", name, f"must be {_KINDS[kind]}")
        return value

    def _full(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _fail(self, code: str, name: str, what: str, cause: Exception | None = None) -> NoReturn:
        full = self._full(name)
        raise InvalidMessage(code, f"{full} {what}", field=full) from cause


_KINDS: dict[type, str] = {str: "text", bool: "true or false", list: "a list", dict: "an object"}
