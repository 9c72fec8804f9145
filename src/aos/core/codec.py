"""Strict, declarative codec between frozen dataclasses and JSON objects (docs/spec/01-encoding.md,
"Statements").

A dataclass declares its members with the annotated types below; ``encode`` gives the JSON object, ``decode``
reads one strictly: exact member set, exact types, exact lengths, ranges. Every refusal names the member. What
was decoded is valid by construction. The codec knows nothing about meaning; rules between members are the
caller's.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from aos.core.encoding import b64u_decode, b64u_encode
from aos.errors import InvalidMessage

T = TypeVar("T")

MAX_SAFE_INTEGER = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Length:
    """Bytes of exactly one of ``allowed`` lengths, written as base64url without padding."""

    allowed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A string that matches the whole expression."""

    expression: str


@dataclass(frozen=True, slots=True)
class MaxLength:
    """A string of at most ``limit`` characters, a list of at most ``limit`` items, or at most ``limit`` bytes."""

    limit: int


@dataclass(frozen=True, slots=True)
class Range:
    """An integer in ``low``..``high``, both included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class DecimalText:
    """An integer in 0..``high`` as a decimal string without leading zeros."""

    high: int


Bytes32 = Annotated[bytes, Length((32,))]
Bytes64 = Annotated[bytes, Length((64,))]
Bytes80 = Annotated[bytes, Length((80,))]
SignatureBytes = Annotated[bytes, Length((65,))]
OptionalBytes32 = Annotated[bytes, Length((0, 32))]
OptionalBytes80 = Annotated[bytes, Length((0, 80))]
Address = Annotated[str, Pattern(r"0x[0-9a-f]{40}")]
NetworkId = Annotated[str, Pattern(r"[a-z0-9][a-z0-9-]{0,62}")]
Label = Annotated[str, Pattern(r"[A-Za-z0-9][A-Za-z0-9._/+:-]{0,127}")]
UInt = Annotated[int, Range(0, MAX_SAFE_INTEGER)]
UInt32 = Annotated[int, Range(0, 2**32 - 1)]
TimeMs = Annotated[int, Range(0, MAX_SAFE_INTEGER)]
Decimal64 = Annotated[str, DecimalText(2**64 - 1)]
"""An unsigned 64-bit integer as a decimal string."""
ClockMap = Annotated[dict[str, str], MaxLength(4096)]
"""A vector clock: decimal node number to decimal count, no leading zeros, counts at least 1."""
Percent = Literal[0, 3, 10]

_POSITIVE = re.compile(r"[1-9][0-9]{0,15}\Z", re.ASCII)
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]*)\Z", re.ASCII)
_MAX_NODE = 2**31


def encode(value: object) -> Any:
    """JSON value of ``value``: dataclasses become objects, bytes become base64url, tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Any] = {}
        kind = getattr(type(value), "TYPE", None)
        if kind is not None:
            out["type"] = kind
            out["v"] = type(value).V  # type: ignore[attr-defined]
        for field in dataclasses.fields(value):
            out[_wire_name(field)] = encode(getattr(value, field.name))
        return out
    if isinstance(value, bytes):
        return b64u_encode(value)
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    return value


def decode(cls: type[T], value: object, *, where: str = "") -> T:
    """Read ``value`` as ``cls``. Raises InvalidMessage ``field.*``, naming the member by its path under
    ``where``."""
    return typing.cast(T, _dataclass_reader(cls)(value, where))


def _wire_name(field: "dataclasses.Field[Any]") -> str:
    return str(field.metadata.get("name", field.name))


def _refuse(code: str, where: str, message: str) -> InvalidMessage:
    return InvalidMessage(code, f"{where or 'value'}: {message}", field=where or None)


Reader = Callable[[object, str], Any]


def _dataclass_reader(cls: Any) -> Reader:
    return _cached_reader(get_origin(cls) or cls, get_args(cls))


@cache
def _cached_reader(cls: Any, arguments: tuple[Any, ...]) -> Reader:
    hints = typing.get_type_hints(cls, include_extras=True)
    bound = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))
    readers = {
        _wire_name(f): (f.name, _reader(bound.get(hints[f.name], hints[f.name])))
        for f in dataclasses.fields(cls)
    }
    kind = getattr(cls, "TYPE", None)
    version = getattr(cls, "V", None)
    expected = set(readers) | ({"type", "v"} if kind is not None else set())

    def read(value: object, where: str) -> Any:
        if type(value) is not dict:
            raise _refuse("field.type", where, "must be an object")
        prefix = f"{where}." if where else ""
        for name in sorted(expected - value.keys()):
            raise _refuse("field.missing", prefix + name, "is missing")
        for name in sorted(map(str, value.keys() - expected)):
            # The sender chose it: shown short and escaped, so that it cannot write on a reader's screen.
            raise _refuse("field.unknown", prefix + ascii(name)[1:-1][:64], "is not a member of this object")
        if kind is not None:
            if value["type"] != kind:
                raise _refuse("statement.type", prefix + "type", f"must be {kind!r}")
            if type(value["v"]) is not int or value["v"] != version:
                raise _refuse("statement.version", prefix + "v", f"must be {version}")
        return cls(**{attr: reader(value[name], prefix + name) for name, (attr, reader) in readers.items()})

    return read


def _reader(hint: Any) -> Reader:
    origin = get_origin(hint)
    if origin is Annotated:
        base, *marks = get_args(hint)
        return _annotated_reader(base, marks)
    if origin is Literal:
        return _literal_reader(get_args(hint))
    if origin in (Union, types.UnionType):
        options = [a for a in get_args(hint) if a is not type(None)]
        if len(options) == 2 and len(get_args(hint)) == 2:
            return _text_or_list_reader(hint, options)
        if len(options) != 1:
            raise TypeError(f"unsupported union {hint}")
        inner = _reader(options[0])
        return lambda value, where: None if value is None else inner(value, where)
    if origin is tuple:
        item = _reader(get_args(hint)[0])
        return _list_reader(item, 65536)
    if hint is Any:
        return lambda value, where: value
    if hint is bool:
        return _exact(bool, "true or false")
    if hint is str:
        return _exact(str, "a string")
    if dataclasses.is_dataclass(origin or hint):
        return _dataclass_reader(typing.cast(type[Any], hint))
    raise TypeError(f"unsupported member type {hint}")


def _text_or_list_reader(hint: Any, options: list[Any]) -> Reader:
    """A member that is text or a list: the JSON type says which, so that no value can be read in two ways."""
    text, items = options
    if get_args(text)[:1] != (str,) or get_origin(get_args(items)[0]) is not tuple:
        raise TypeError(f"unsupported union {hint}")
    read_text, read_list = _reader(text), _reader(items)

    def read(value: object, where: str) -> Any:
        if type(value) is str:
            return read_text(value, where)
        if type(value) is list:
            return read_list(value, where)
        raise _refuse("field.type", where, "must be a string or a list")

    return read


def _exact(kind: type, words: str) -> Reader:
    def read(value: object, where: str) -> Any:
        if type(value) is not kind:
            raise _refuse("field.type", where, f"must be {words}")
        return value

    return read


def _literal_reader(allowed: tuple[Any, ...]) -> Reader:
    def read(value: object, where: str) -> Any:
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise _refuse("field.range", where, f"must be one of {', '.join(map(repr, allowed))}")
        return value

    return read


def _list_reader(item: Reader, limit: int) -> Reader:
    def read(value: object, where: str) -> Any:
        if type(value) is not list:
            raise _refuse("field.type", where, "must be a list")
        if len(value) > limit:
            raise _refuse("field.range", where, f"has more than {limit} items")
        return tuple(item(entry, f"{where}[{index}]") for index, entry in enumerate(value))

    return read


def _annotated_reader(base: Any, marks: list[Any]) -> Reader:
    (mark,) = marks
    if base is bytes and isinstance(mark, Length):
        return _bytes_reader(lambda size: size in mark.allowed, " or ".join(map(str, mark.allowed)))
    if base is bytes and isinstance(mark, MaxLength):
        return _bytes_reader(lambda size: size <= mark.limit, f"at most {mark.limit}")
    if base is str and isinstance(mark, Pattern):
        return _pattern_reader(mark)
    if base is str and isinstance(mark, DecimalText):
        return _decimal_reader(mark)
    if base is str and isinstance(mark, MaxLength):
        return _text_reader(mark)
    if base is int and isinstance(mark, Range):
        return _int_reader(mark)
    if get_origin(base) is tuple and isinstance(mark, MaxLength):
        return _list_reader(_reader(get_args(base)[0]), mark.limit)
    if get_origin(base) is dict and isinstance(mark, MaxLength):
        return _clock_reader(mark)
    raise TypeError(f"unsupported annotation {mark} on {base}")


def _bytes_reader(fits: Callable[[int], bool], allowed: str) -> Reader:
    def read(value: object, where: str) -> Any:
        if type(value) is not str:
            raise _refuse("field.type", where, "must be a base64url string")
        try:
            data = b64u_decode(value)
        except InvalidMessage as error:
            raise _refuse("field.type", where, error.message) from None
        if not fits(len(data)):
            raise _refuse("field.range", where, f"must hold {allowed} bytes")
        return data

    return read


def _pattern_reader(mark: Pattern) -> Reader:
    expression = re.compile(mark.expression)

    def read(value: object, where: str) -> Any:
        if type(value) is not str:
            raise _refuse("field.type", where, "must be a string")
        if len(value) > 256 or expression.fullmatch(value) is None:
            raise _refuse("field.range", where, f"must match {mark.expression}")
        return value

    return read


def _decimal_reader(mark: DecimalText) -> Reader:
    digits = len(str(mark.high))

    def read(value: object, where: str) -> Any:
        if type(value) is not str:
            raise _refuse("field.type", where, "must be a decimal string")
        if len(value) > digits or _DECIMAL.match(value) is None or int(value) > mark.high:
            raise _refuse("field.range", where, f"must be a decimal string in 0..{mark.high}")
        return value

    return read


def _text_reader(mark: MaxLength) -> Reader:
    def read(value: object, where: str) -> Any:
        if type(value) is not str:
            raise _refuse("field.type", where, "must be a string")
        if len(value) > mark.limit:
            raise _refuse("field.range", where, f"has more than {mark.limit} characters")
        return value

    return read


def _int_reader(mark: Range) -> Reader:
    def read(value: object, where: str) -> Any:
        if type(value) is not int:
            raise _refuse("field.type", where, "must be an integer")
        if not mark.low <= value <= mark.high:
            raise _refuse("field.range", where, f"must be in {mark.low}..{mark.high}")
        return value

    return read


def _clock_reader(mark: MaxLength) -> Reader:
    def read(value: object, where: str) -> Any:
        if type(value) is not dict or len(value) > mark.limit:
            raise _refuse("field.type", where, "must be a vector clock")
        for node, count in value.items():
            if not (
                type(node) is str and _POSITIVE.match(node) and type(count) is str and _POSITIVE.match(count)
            ):
                raise _refuse("field.range", where, "maps decimal node numbers to decimal counts")
            if int(node) > _MAX_NODE or int(count) > MAX_SAFE_INTEGER:
                raise _refuse("field.range", where, "holds a number that is too large")
        return dict(value)

    return read
