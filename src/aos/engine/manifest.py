"""Model manifests and ``model_id`` (docs/spec/07-inference.md, "Models").

A manifest depends on the file alone, never on the engine that runs it. Its slow parts (``weights_root``)
are cached beside an application's state, keyed by the file's digest, which is computed anew every time: size,
time and inode of a file can be the same for other bytes. A cached manifest is still only this user's own word
about its file, so who judges somebody else's answer (``aos verify``, ``aos replay``, an enclave) gives no cache.
"""

import json
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from aos.core.arithmetic.floats import F32
from aos.core.arithmetic.rope_table import rope_table, table_digest
from aos.core.codec import Bytes32, MaxLength, OptionalBytes32, UInt, UInt32, decode, encode
from aos.core.encoding import canonical_json, lp, tag, tagged_hash
from aos.core.merkle import leaf_hash, tree_root
from aos.engine.gguf import GGUF, Tensor, Value, read_gguf
from aos.engine.llama import HyperParameters, Model
from aos.engine.state import ARITHMETIC_VERSION
from aos.engine.tokenizer import Tokenizer, read_vocabulary
from aos.errors import InvalidMessage

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, both counted over the digest and the weights tree."""

CHUNK_WEIGHTS = 256
CHUNK_TAG = b"\0" + tag("weights-chunk")
TENSOR_TAG = tag("weights-tensor")
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSizes:
    """Hyper-parameters of a graph; ``*_bits`` are binary32 bit patterns."""

    n_ctx: UInt32
    n_layers: UInt32
    n_vocab: UInt32
    width: UInt32
    ff_width: UInt32
    n_heads: UInt32
    n_kv_heads: UInt32
    head_width: UInt32
    n_rot: UInt32
    eps_bits: UInt32
    rope_base_bits: UInt32
    tied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What ``model_id`` stands for.

    ``arithmetic`` is 0, and ``graph``, ``rope_table`` empty, where the canonical arithmetic does not cover
    the file.
    """

    TYPE: ClassVar[str] = "aos.model"
    V: ClassVar[int] = 1

    file_sha256: Bytes32
    file_size: UInt
    weights_root: Bytes32
    architecture: Annotated[str, MaxLength(64)]
    graph: GraphSizes | None
    tokenizer: Bytes32
    chat_template: OptionalBytes32
    rope_table: OptionalBytes32
    arithmetic: UInt32

    @property
    def model_id(self) -> bytes:
        """SHA-256("AOS/model/v1\\0" ‖ canonical JSON of the manifest)."""
        return tagged_hash("model", self.json())

    def json(self) -> bytes:
        """The canonical JSON."""
        return canonical_json(encode(self))


def read_manifest(
    path: str | Path, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> Manifest:
    """Digest a GGUF file and describe it.

    Raises InvalidMessage (``gguf.*``; ``engine.not_finite``) and Unavailable (``engine.file_unreadable``).
    """
    return manifest_of(read_gguf(path), cache_dir=cache_dir, progress=progress)


def manifest_of(file: GGUF, *, cache_dir: Path | None = None, progress: Progress | None = None) -> Manifest:
    """The manifest of a file that is already mapped."""
    size = len(file.data)
    total = size + sum(tensor.size for tensor in file.tensors)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    whole = sha256()
    for at in range(0, size, _PIECE):
        piece = file.data[at : at + _PIECE]
        whole.update(piece)
        advance(len(piece))
    digest = whole.digest()
    cached = _read_cache(cache_dir, digest)
    if cached is not None:
        advance(total - done)
        return cached
    graph, table = _graph(file, cache_dir)
    manifest = Manifest(
        file_sha256=digest,
        file_size=size,
        weights_root=weights_root(file, advance),
        architecture=_text(file.metadata.get("general.architecture")),
        graph=graph,
        tokenizer=_tokenizer_digest(file),
        chat_template=_template_digest(file.metadata.get("tokenizer.chat_template")),
        rope_table=table,
        arithmetic=ARITHMETIC_VERSION if graph is not None else 0,
    )
    if cache_dir is not None:
        _write_atomically(cache_dir / f"model-{digest.hex()}.json", manifest.json())
    return manifest


def weights_root(file: GGUF, advance: Callable[[int], None] | None = None) -> bytes:
    """The root over tensors in file order, each over its rows, each over its chunks of 256 weights."""
    leaves = []
    for tensor in file.tensors:
        rows_root = tree_root(row_hashes(file, tensor, advance))
        shape = b"".join(length.to_bytes(8, "big") for length in tensor.shape)
        entry = (
            TENSOR_TAG
            + lp(tensor.name.encode())
            + struct.pack(">II", tensor.type.code, len(tensor.shape))
            + shape
        )
        leaves.append(leaf_hash(entry + rows_root))
    return tree_root(leaves)


def row_hashes(file: GGUF, tensor: Tensor, advance: Callable[[int], None] | None = None) -> list[bytes]:
    """The tree roots of every row's chunks (the last chunk of a row may be short)."""
    raw = file.tensor_bytes(tensor)
    row = tensor.row_bytes
    chunk = CHUNK_WEIGHTS // tensor.type.block_weights * tensor.type.block_bytes
    prefix = sha256(CHUNK_TAG)
    out: list[bytes] = []
    for start in range(0, len(raw), row):
        level: list[bytes] = []
        for at in range(start, start + row, chunk):
            leaf = prefix.copy()
            leaf.update(raw[at : min(at + chunk, start + row)])
            level.append(leaf.digest())
        out.append(_fold(level))
        if advance is not None and len(out) % 256 == 0:
            advance(256 * row)
    if advance is not None:
        advance(len(out) % 256 * row)
    return out


def cached_rope_table(
    hyper: HyperParameters,
    factors: Sequence[float] | None,
    cache_dir: Path | None,
    digest: bytes | None = None,
) -> tuple[F32, F32]:
    """The table of rule 4, read from the cache where a file has ``digest``, else computed and stored."""
    path = cache_dir / f"rope-{digest.hex()}.f32" if cache_dir is not None and digest else None
    shape = (2, hyper.n_ctx, hyper.n_rot // 2)
    if path is not None and path.is_file() and path.stat().st_size == 4 * shape[0] * shape[1] * shape[2]:
        both = np.fromfile(path, dtype="<f4").astype(np.float32).reshape(shape)
        if table_digest(both[0], both[1]) == digest:
            return both[0], both[1]
    cos, sin = rope_table(hyper.rope_base, hyper.n_rot, hyper.n_ctx, factors)
    if cache_dir is not None:
        content = np.stack([cos, sin]).astype("<f4").tobytes()
        _write_atomically(cache_dir / f"rope-{table_digest(cos, sin).hex()}.f32", content)
    return cos, sin


def _graph(file: GGUF, cache_dir: Path | None) -> tuple[GraphSizes | None, bytes]:
    """Sizes and rotary digest where the canonical arithmetic covers the file; broken weights are refused
    either way.
    """
    try:
        Tokenizer(read_vocabulary(file.metadata))
        model = Model(file)
    except InvalidMessage as error:
        if error.code == "engine.not_finite":
            raise
        return None, b""
    h = model.hyper
    factors = None if model.rope_factors is None else model.rope_factors.tolist()
    try:
        digest = table_digest(*cached_rope_table(h, factors, cache_dir))
    except InvalidMessage:
        return None, b""
    sizes = {name: getattr(h, name) for name in GraphSizes.__slots__ if not name.endswith("_bits")}
    return GraphSizes(**sizes, eps_bits=_bits(h.eps), rope_base_bits=_bits(h.rope_base)), digest


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _text(value: Value | None) -> str:
    return value.decode("utf-8", "replace")[:64] if isinstance(value, bytes) else ""


def _template_digest(value: Value | None) -> bytes:
    return tagged_hash("chat-template", value) if isinstance(value, bytes) else b""


def _tokenizer_digest(file: GGUF) -> bytes:
    try:
        return read_vocabulary(file.metadata).digest()
    except InvalidMessage:
        h = sha256(tag("tokenizer-metadata"))
        for key in sorted(key for key in file.metadata if key.startswith("tokenizer.ggml.")):
            value = file.metadata[key]
            items = value if isinstance(value, tuple) else (value,)
            h.update(lp(key.encode()) + struct.pack(">I", len(items)))
            for item in items:
                h.update(lp(item if isinstance(item, bytes) else repr(item).encode()))
        return h.digest()


def _fold(level: list[bytes]) -> bytes:
    """RFC 9162's root of leaf hashes, level by level: pairs become nodes, an odd last one moves up."""
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        level = [
            sha256(b"\x01" + left + right).digest()
            for left, right in zip(level[0::2], level[1::2], strict=False)
        ] + odd
    return level[0]


def _read_cache(cache_dir: Path | None, digest: bytes) -> Manifest | None:
    """A cached manifest that is well formed, names this file and that nobody else could have written; anything
    else is computed anew.
    """
    if cache_dir is None:
        return None
    try:
        path = cache_dir / f"model-{digest.hex()}.json"
        if not (_private(cache_dir) and _private(path)):
            return None
        raw = path.read_bytes()
        manifest = decode(Manifest, json.loads(raw))
    except (OSError, ValueError, InvalidMessage):
        return None
    return manifest if manifest.file_sha256 == digest and manifest.json() == raw else None


def _private(path: Path) -> bool:
    """Whether only this user (or root) can have written there. A link is not followed."""
    status = path.lstat()
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022 and not path.is_symlink()


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as stream:
        stream.write(content)
    os.replace(stream.name, path)
