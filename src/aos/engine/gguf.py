"""Strict reader of GGUF model files, versions 2 and 3, little endian (docs/spec/07-inference.md, "The model
file").

Everything is checked before a weight is used: sizes first, then names, types, shapes, and that the tensors
lie one after the other inside the file. A broken file ends in InvalidMessage with a ``gguf.*`` code, never
in a crash. The file is mapped, not read. This module knows nothing about architectures; aos.engine.llama
does.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from aos.core.manifest import TENSOR_TYPES, TensorType
from aos.errors import InvalidMessage, Unavailable

MAGIC = b"GGUF"
MAX_TENSORS = 65_536
MAX_KEYS = 65_536
MAX_STRING = 1 << 24
MAX_ARRAY = 1 << 24
MAX_NAME = 64
MAX_KEY = 65_535
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 1 << 40

Scalar = int | float | bool | bytes
Value = Scalar | tuple[Scalar, ...]

_SCALARS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<B"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_SIGNED_BYTE, _BOOL, _STRING, _ARRAY = 1, 7, 8, 9
_SIGNED = tuple(byte - 256 if byte > 127 else byte for byte in range(256))
"""One object per value: an array of as many integers as bytes would else take 40 times the file's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """``columns`` consecutive weights make a row; ``rows`` counts over all further dimensions.

    ``offset`` is absolute in the file and ``size`` is in bytes, without the padding that follows.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def columns(self) -> int:
        return self.shape[0]

    @property
    def rows(self) -> int:
        rows = 1
        for length in self.shape[1:]:
            rows *= length
        return rows

    @property
    def row_bytes(self) -> int:
        return self.columns // self.type.block_weights * self.type.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUF:
    """A checked file: its metadata in file order (strings as bytes), its tensors in file order, and its
    mapped bytes.
    """

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    data: memoryview

    def tensor_bytes(self, tensor: Tensor) -> memoryview:
        """The raw bytes of ``tensor``, without padding."""
        return self.data[tensor.offset : tensor.offset + tensor.size]


def read_gguf(path: str | Path) -> GGUF:
    """Map and check ``path``.

    Raises InvalidMessage (``gguf.*``) where the file breaks the format, Unavailable
    (``engine.file_unreadable``) where it cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            data = (
                memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
                if size
                else memoryview(b"")
            )
    except OSError as error:
        raise Unavailable("engine.file_unreadable", f"cannot read {path.name}: {error.strerror}") from error
    return parse_gguf(data, path=path)


def parse_gguf(data: memoryview, *, path: Path) -> GGUF:
    """Check the bytes of a whole file. Raises InvalidMessage with a ``gguf.*`` code."""
    cursor = _Cursor(data)
    if bytes(cursor.take(4)) != MAGIC:
        _refuse("gguf.magic", "the file does not start with GGUF")
    version = cursor.unsigned(4)
    if version not in (2, 3):
        _refuse("gguf.version", f"version {version} is not 2 or 3 in little endian")
    n_tensors = cursor.unsigned(8)
    n_keys = cursor.unsigned(8)
    if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
        _refuse(
            "gguf.limit", f"{n_tensors} tensors and {n_keys} keys are more than {MAX_TENSORS} and {MAX_KEYS}"
        )
    metadata: dict[str, Value] = {}
    for _ in range(n_keys):
        key = _name(cursor.string(MAX_KEY), "a metadata key")
        if key in metadata:
            _refuse("gguf.duplicate_key", f"key {key!r} appears twice", field=key)
        metadata[key] = cursor.value()
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 65_536 or alignment & (alignment - 1):
        _refuse(
            "gguf.alignment", "general.alignment is not a power of two in 8..65536", field="general.alignment"
        )
    headers = [_tensor_header(cursor) for _ in range(n_tensors)]
    start = _padded(cursor.at, alignment)
    expected = 0
    tensors: list[Tensor] = []
    names: set[str] = set()
    for name, kind, shape, offset in headers:
        if name in names:
            _refuse("gguf.duplicate_tensor", f"tensor {name!r} appears twice", field=name)
        names.add(name)
        size = _size(name, kind, shape)
        if start + offset + size > len(data):
            _refuse("gguf.tensor_range", f"tensor {name!r} ends beyond the end of the file", field=name)
        if offset < expected:
            _refuse("gguf.tensor_overlap", f"tensor {name!r} overlaps the one before it", field=name)
        if offset != expected:
            _refuse("gguf.tensor_gap", f"tensor {name!r} does not follow the one before it", field=name)
        expected = _padded(offset + size, alignment)
        tensors.append(Tensor(name=name, type=kind, shape=shape, offset=start + offset, size=size))
    if tensors and len(data) > start + expected:
        _refuse("gguf.trailing_bytes", f"{len(data) - start - expected} bytes follow the last tensor")
    return GGUF(path=path, version=version, metadata=metadata, tensors=tuple(tensors), data=data)


class _Cursor:
    """Reads forward in ``data`` and refuses to leave it."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            _refuse("gguf.truncated", f"the file ends inside a field at byte {self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def string(self, limit: int) -> bytes:
        length = self.unsigned(8)
        if length > limit:
            _refuse("gguf.limit", f"a string of {length} bytes at byte {self.at} is longer than {limit}")
        return bytes(self.take(length))

    def value(self) -> Value:
        kind = self.unsigned(4)
        if kind == _ARRAY:
            return self._array()
        return self._scalar(kind)

    def _scalar(self, kind: int) -> Scalar:
        if kind == _STRING:
            return self.string(MAX_STRING)
        form = _SCALARS.get(kind)
        if form is None:
            _refuse("gguf.value_type", f"metadata type {kind} at byte {self.at} is unknown")
        (value,) = form.unpack(self.take(form.size))
        return self._bool(value) if kind == _BOOL else value

    def _array(self) -> tuple[Scalar, ...]:
        kind = self.unsigned(4)
        count = self.unsigned(8)
        if count > MAX_ARRAY:
            _refuse("gguf.limit", f"an array of {count} items at byte {self.at} is longer than {MAX_ARRAY}")
        if kind == _STRING:
            return tuple(self.string(MAX_STRING) for _ in range(count))
        form = _SCALARS.get(kind)
        if form is None:
            _refuse("gguf.value_type", f"array type {kind} at byte {self.at} is unknown or nested")
        raw = self.take(count * form.size)
        if kind == _SIGNED_BYTE:
            return tuple(_SIGNED[byte] for byte in raw)
        items = tuple(item for (item,) in form.iter_unpack(raw))
        return tuple(self._bool(item) for item in items) if kind == _BOOL else items

    def _bool(self, value: int) -> bool:
        if value > 1:
            _refuse("gguf.value_type", f"a truth value before byte {self.at} is neither 0 nor 1")
        return value == 1


def _tensor_header(cursor: _Cursor) -> tuple[str, TensorType, tuple[int, ...], int]:
    name = _name(cursor.string(MAX_NAME), "a tensor name")
    n_dimensions = cursor.unsigned(4)
    if not 1 <= n_dimensions <= MAX_DIMENSIONS:
        _refuse("gguf.tensor_shape", f"tensor {name!r} has {n_dimensions} dimensions", field=name)
    shape = tuple(cursor.unsigned(8) for _ in range(n_dimensions))
    code = cursor.unsigned(4)
    kind = TENSOR_TYPES.get(code)
    if kind is None:
        _refuse("gguf.tensor_type", f"tensor {name!r} has the unknown type {code}", field=name)
    return name, kind, shape, cursor.unsigned(8)


def _size(name: str, kind: TensorType, shape: tuple[int, ...]) -> int:
    elements = 1
    for length in shape:
        elements *= length
        if not 1 <= length <= MAX_ELEMENTS or elements > MAX_ELEMENTS:
            _refuse("gguf.tensor_shape", f"tensor {name!r} has the absurd shape {shape}", field=name)
    if shape[0] % kind.block_weights:
        _refuse("gguf.tensor_shape", f"rows of {name!r} are not whole {kind.name} blocks", field=name)
    return elements // kind.block_weights * kind.block_bytes


def _name(raw: bytes, what: str) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("gguf.name", f"{what} is not UTF-8")
    if not name:
        _refuse("gguf.name", f"{what} is empty")
    return name


def _padded(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment


def _refuse(code: str, message: str, *, field: str | None = None) -> NoReturn:
    raise InvalidMessage(code, message, field=field)
