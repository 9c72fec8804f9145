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
from hashlib import sha256
from pathlib import Path

import numpy as np

from aos.core.arithmetic.floats import F32
from aos.core.arithmetic.rope_table import rope_table, table_root
from aos.core.codec import decode
from aos.core.dispute.state_tree import ARITHMETIC_VERSION
from aos.core.encoding import lp, tag, tagged_hash
from aos.core.manifest import CHUNK_TAG, CHUNK_WEIGHTS, GraphSizes, Manifest, tensor_leaf
from aos.core.merkle import tree_root
from aos.engine import loadable
from aos.engine.gguf import GGUF, Tensor, Value, read_gguf
from aos.engine.llama import ROPE_FACTORS, HyperParameters, check_tensors, read_hyper_parameters
from aos.engine.tokenizer import Tokenizer, read_vocabulary
from aos.errors import InvalidMessage

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, both counted over the digest and the weights tree."""

_PIECE = 1 << 20
_KEPT_TABLES = 4
_tables: dict[bytes, tuple[F32, F32]] = {}


def read_manifest(
    path: str | Path, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> Manifest:
    """Digest a GGUF file and describe it.

    Raises InvalidMessage (``gguf.*``; ``engine.not_finite``) and Unavailable (``engine.file_unreadable``).
    """
    return manifest_of(read_gguf(path), cache_dir=cache_dir, progress=progress)


def manifest_of(
    file: GGUF, *, cache_dir: Path | None = None, progress: Progress | None = None, threads: int = 1
) -> Manifest:
    """The manifest of a file that is already mapped. No result depends on ``threads``."""
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
    root, not_finite = weights_root(file, advance, threads)
    graph, table = _graph(file, cache_dir, not_finite)
    manifest = Manifest(
        file_sha256=digest,
        file_size=size,
        weights_root=root,
        architecture=_text(file.metadata.get("general.architecture")),
        graph=graph,
        tokenizer=_tokenizer_digest(file),
        chat_template=template_digest(file.metadata.get("tokenizer.chat_template")),
        rope_table=table,
        arithmetic=ARITHMETIC_VERSION if graph is not None else 0,
    )
    if cache_dir is not None:
        _write_atomically(cache_dir / f"model-{digest.hex()}.json", manifest.json())
    return manifest


def weights_root(
    file: GGUF, advance: Callable[[int], None] | None = None, threads: int = 1
) -> tuple[bytes, Tensor | None]:
    """The root over ``tensor_leaves``; and the first tensor with a weight or scale that is NaN or infinite."""
    leaves, not_finite = tensor_leaves(file, advance, threads)
    return tree_root(leaves), not_finite


def tensor_leaves(
    file: GGUF, advance: Callable[[int], None] | None = None, threads: int = 1
) -> tuple[list[bytes], Tensor | None]:
    """The leaf hash of every tensor in file order, each over its rows, each over its chunks of 256 weights; and the
    first tensor with a weight or scale that is NaN or infinite.
    """
    leaves = []
    not_finite: Tensor | None = None
    for tensor in file.tensors:
        _, rows_root, finite = _hash_rows(file, tensor, threads)
        if not finite and not_finite is None:
            not_finite = tensor
        leaves.append(tensor_leaf(tensor.name, tensor.type.code, tensor.shape, rows_root))
        if advance is not None:
            advance(tensor.size)
    return leaves, not_finite


def row_hashes(file: GGUF, tensor: Tensor, threads: int = 1) -> tuple[list[bytes], bool]:
    """The tree roots of every row's chunks (the last chunk of a row may be short); whether every weight and
    scale is finite, of a type that the canonical arithmetic has.
    """
    joined, _, finite = _hash_rows(file, tensor, threads)
    return [joined[at : at + 32] for at in range(0, len(joined), 32)], finite


def _hash_rows(file: GGUF, tensor: Tensor, threads: int) -> tuple[bytes, bytes, bool]:
    """The rows' roots joined, the root over them, and whether everything is finite."""
    with loadable():
        from aos.engine import _native

    return _native.hash_rows(
        type=tensor.type.code,
        data=np.frombuffer(file.tensor_bytes(tensor), dtype=np.uint8),
        row_bytes=tensor.row_bytes,
        chunk_bytes=tensor.type.bytes_of(CHUNK_WEIGHTS),
        prefix=b"\0" + CHUNK_TAG,
        threads=threads,
    )


def cached_rope_table(
    hyper: HyperParameters, factors: Sequence[float] | None, cache_dir: Path | None
) -> tuple[F32, F32]:
    """The table of rule 4: from this process or the cache, where it was made before, else computed and stored."""
    numbers = (*(() if factors is None else tuple(factors)), hyper.rope_base)
    key = tagged_hash("rope-cache", struct.pack(f">II{len(numbers)}d", hyper.n_rot, hyper.n_ctx, *numbers))
    shape = (2, hyper.n_ctx, hyper.n_rot // 2)
    path = None if cache_dir is None else cache_dir / f"rope-{key.hex()}.f32"
    table = None if path is None else _read_table(path, shape)
    if table is None:
        # The manifest and the engine of one file both ask.
        table = _tables.get(key) or rope_table(hyper.rope_base, hyper.n_rot, hyper.n_ctx, factors)
        if path is not None:
            raw = np.stack(table).astype("<f4").tobytes()
            _write_atomically(path, sha256(raw).digest() + raw)
    if len(_tables) >= _KEPT_TABLES:
        _tables.clear()
    _tables[key] = table
    return table


def _read_table(path: Path, shape: tuple[int, int, int]) -> tuple[F32, F32] | None:
    try:
        if not (_private(path.parent) and _private(path)):
            return None
        raw = path.read_bytes()
    except OSError:
        return None
    if len(raw) != 32 + 4 * shape[0] * shape[1] * shape[2]:
        return None
    if sha256(memoryview(raw)[32:]).digest() != raw[:32]:
        return None
    both = np.frombuffer(raw, dtype="<f4", offset=32).astype(np.float32).reshape(shape)
    return both[0], both[1]


def _graph(file: GGUF, cache_dir: Path | None, not_finite: Tensor | None) -> tuple[GraphSizes | None, bytes]:
    """Sizes and the rotary table's root where the canonical arithmetic covers the file; broken weights are refused
    either way.
    """
    try:
        Tokenizer(read_vocabulary(file.metadata))
        h = read_hyper_parameters(file)
        check_tensors(file, h)
    except InvalidMessage:
        return None, b""
    if not_finite is not None:
        raise InvalidMessage(
            "engine.not_finite",
            f"tensor {not_finite.name!r} holds a weight or a scale that is NaN or infinite",
            field=not_finite.name,
        )
    factors = next((t for t in file.tensors if t.name == ROPE_FACTORS), None)
    listed = None if factors is None else np.frombuffer(file.tensor_bytes(factors), dtype="<f4").tolist()
    try:
        root = table_root(*cached_rope_table(h, listed, cache_dir))
    except InvalidMessage:
        return None, b""
    sizes = {name: getattr(h, name) for name in GraphSizes.__slots__ if not name.endswith("_bits")}
    return GraphSizes(**sizes, eps_bits=_bits(h.eps), rope_base_bits=_bits(h.rope_base)), root


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _text(value: Value | None) -> str:
    return value.decode("utf-8", "replace")[:64] if isinstance(value, bytes) else ""


def template_digest(value: Value | None) -> bytes:
    """Of the file's chat template; empty where it has none."""
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
