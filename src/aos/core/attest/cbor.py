"""The part of CBOR (RFC 8949) that attestation documents use, read strictly.

Integers of at most 64 bits, byte and text strings of definite length, arrays, maps, false, true, null. Every head in
its shortest form, every map key once. A map may be of indefinite length where the caller says so: security modules of
2026 write their payload that way. Tags, floats, chunked strings and everything else are refused, before anything of
the declared size is allocated. ``encode`` writes the same part, in its definite form.
"""

from collections.abc import Mapping

from aos.errors import InvalidMessage

MAX_DEPTH = 4
MAX_ITEMS = 256

_ARRAY, _MAP, _INDEFINITE, _BREAK = 4, 5, 31, 0xFF
_SIMPLE = {20: False, 21: True, 22: None}


def decode(data: bytes, *, indefinite_maps: bool = False, max_items: int = MAX_ITEMS) -> object:
    """The one item in ``data``, at most ``max_items`` in all. Raises InvalidMessage ``cbor.*``."""
    reader = _Reader(data, indefinite_maps, max_items)
    value = reader.item(0)
    if reader.position != len(data):
        raise InvalidMessage("cbor.trailing", "bytes follow the CBOR item")
    return value


def head(major: int, value: int) -> bytes:
    """The head of an item of type ``major`` with the argument ``value`` (below 2^64), in its shortest form."""
    if value < 24:
        return bytes([major << 5 | value])
    for extra, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if value < 1 << (8 * size):
            return bytes([major << 5 | extra]) + value.to_bytes(size, "big")
    raise InvalidMessage("cbor.range", "the integer does not fit into 64 bits")


def encode(value: object) -> bytes:
    """The bytes of ``value``: None, booleans, integers, bytes, text, lists, maps (in the order that they have).

    Raises InvalidMessage ``cbor.range``, ``cbor.type``.
    """
    if value is None or isinstance(value, bool):
        return {False: b"\xf4", True: b"\xf5", None: b"\xf6"}[value]
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return head(3, len(text)) + text
    if isinstance(value, list | tuple):
        return head(_ARRAY, len(value)) + b"".join(map(encode, value))
    if isinstance(value, Mapping):
        return head(_MAP, len(value)) + b"".join(encode(k) + encode(v) for k, v in value.items())
    raise InvalidMessage("cbor.type", f"{type(value).__name__} has no place here")


class _Reader:
    def __init__(self, data: bytes, indefinite_maps: bool, max_items: int) -> None:
        self.data = data
        self._max_items = max_items
        self.position = 0
        self._items = 0
        self._indefinite_maps = indefinite_maps

    def _take(self, count: int) -> bytes:
        if count > len(self.data) - self.position:
            raise InvalidMessage("cbor.truncated", "the CBOR item ends early")
        self.position += count
        return self.data[self.position - count : self.position]

    def _argument(self, extra: int) -> int:
        if extra < 24:
            return extra
        if extra > 27:
            raise InvalidMessage("cbor.indefinite", "an indefinite or reserved length")
        size = 1 << (extra - 24)
        value = int.from_bytes(self._take(size), "big")
        if value < (24 if size == 1 else 1 << (4 * size)):
            raise InvalidMessage("cbor.not_shortest", "a CBOR head is not in its shortest form")
        return value

    def item(self, depth: int) -> object:
        self._items += 1
        if depth > MAX_DEPTH or self._items > self._max_items:
            raise InvalidMessage("cbor.too_complex", "the CBOR is nested too deep or has too many items")
        head = self._take(1)[0]
        major, extra = head >> 5, head & 31
        if major == 7:
            if extra not in _SIMPLE:
                raise InvalidMessage("cbor.type", "floats and other simple values have no place here")
            return _SIMPLE[extra]
        if major == _MAP and extra == _INDEFINITE and self._indefinite_maps:
            return self._map(None, depth)
        value = self._argument(extra)
        if major == 0:
            return value
        if major == 1:
            return -1 - value
        if major == 2:
            return self._take(value)
        if major == 3:
            try:
                return self._take(value).decode()
            except UnicodeDecodeError:
                raise InvalidMessage("cbor.text", "a text string is not UTF-8") from None
        if major == _ARRAY:
            if value > self._max_items:
                raise InvalidMessage("cbor.too_complex", "an array has too many items")
            return [self.item(depth + 1) for _ in range(value)]
        if major == _MAP:
            return self._map(value, depth)
        raise InvalidMessage("cbor.type", "tags have no place here")

    def _map(self, count: int | None, depth: int) -> dict[object, object]:
        if count is not None and count > self._max_items:
            raise InvalidMessage("cbor.too_complex", "a map has too many members")
        out: dict[object, object] = {}
        read = 0
        while read != count:
            if count is None and self.position < len(self.data) and self.data[self.position] == _BREAK:
                self.position += 1
                break
            key = self.item(depth + 1)
            if type(key) not in (str, int):
                raise InvalidMessage("cbor.key", "a map key is neither text nor an integer")
            if key in out:
                raise InvalidMessage("cbor.duplicate", "a map key is there twice")
            out[key] = self.item(depth + 1)
            read += 1
        return out
