"""The GGUF reader: reads what the gguf package reads, and no damage to a file gets past it as anything but a named refusal."""

import os
import random
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from engine_models import maker, model_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aos.core.manifest import CHUNK_TAG
from aos.core.merkle import leaf_hash, tree_root
from aos.engine import read_manifest
from aos.engine.gguf import parse_gguf, read_gguf
from aos.engine.llama import Model
from aos.engine.manifest import row_hashes, weights_root
from aos.engine.reference import ReferenceEngine
from aos.errors import InvalidMessage, Unavailable
from aos.ports import SamplingParams

REFUSALS = {
    *(
        f"gguf.{code}"
        for code in (
            "magic",
            "version",
            "limit",
            "truncated",
            "value_type",
            "duplicate_key",
            "duplicate_tensor",
            "name",
            "alignment",
            "tensor_shape",
            "tensor_type",
            "tensor_range",
            "tensor_overlap",
            "tensor_gap",
            "trailing_bytes",
        )
    ),
    *(
        f"engine.{code}"
        for code in (
            "architecture",
            "parameter",
            "tensor_missing",
            "tensor_unexpected",
            "tensor_shape",
            "tensor_type",
            "not_finite",
        )
    ),
}
"""Every code that spec 07 gives to a file that is refused."""


@pytest.mark.parametrize("name", ["tiny-q8_0", "tiny-mixed", "tiny-qwen2", "tiny-qwen3-partial"])
def test_the_gguf_package_reads_the_same_tensors(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes(name))
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert len(ours.tensors) == len(theirs.tensors)
    for a, b in zip(ours.tensors, theirs.tensors, strict=True):
        assert (a.name, a.type.name, list(a.shape)) == (b.name, b.tensor_type.name, b.shape.tolist())
        assert bytes(ours.tensor_bytes(a)) == b.data.tobytes()
    assert set(ours.metadata) == {key for key in theirs.fields if not key.startswith("GGUF.")}


def test_a_file_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.gguf", tmp_path):
        with pytest.raises(Unavailable) as caught:
            read_gguf(path)
        assert caught.value.code == "engine.file_unreadable"


def test_every_truncation_is_refused() -> None:
    data = model_bytes("tiny-f32")
    rng = random.Random(2)
    for cut in [*range(64), *(rng.randrange(64, len(data) - 31) for _ in range(300))]:
        with pytest.raises(InvalidMessage) as caught:
            parse_gguf(memoryview(data[:cut]), path=Path("cut"))
        assert caught.value.code.startswith("gguf.")


def test_random_damage_is_refused_by_name_or_runs(tmp_path: Path) -> None:
    data = model_bytes("tiny-f32")
    header = data.index(b"blk.1.ffn_down.weight") + 60
    rng = random.Random(5)
    path = tmp_path / "damaged.gguf"
    refused: list[str] = []
    for _ in range(250):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(header) if rng.random() < 0.9 else rng.randrange(len(data))
            damaged[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        path.unlink(missing_ok=True)
        path.write_bytes(damaged)
        try:
            engine = ReferenceEngine(path)
            engine.generate("a", SamplingParams(max_tokens=1, temperature=0), salt=bytes(32))
        except InvalidMessage as error:
            refused.append(error.code)
    assert len(refused) > 50
    assert {code.split(".")[0] for code in refused} <= {"gguf", "engine", "tokenizer", "rope"}


NUMBERS = (0, 1, 2, 31, 33, 2**16, 2**20, 2**24, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A tiny file after a few changes: bytes and words anywhere in its header, cuts, pieces left out or doubled."""
    data = bytearray(model_bytes(draw(st.sampled_from(["tiny-f32", "tiny-q4_0", "tiny-qwen3-partial"]))))
    header = data.index(b"blk.0.attn_norm.weight") if draw(st.booleans()) else len(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, min(header, len(data)) - 1)))
        match draw(st.sampled_from(["byte", "word", "long", "cut", "delete", "double", "insert"])):
            case "byte":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "word":
                data[at : at + 4] = struct.pack("<I", draw(st.sampled_from(NUMBERS)) % 2**32)
            case "long":
                data[at : at + 8] = struct.pack("<Q", draw(st.sampled_from(NUMBERS)))
            case "cut":
                del data[at:]
            case "delete":
                del data[at : at + draw(st.integers(1, 64))]
            case "double":
                piece = data[at : at + draw(st.integers(1, 64))]
                data[at:at] = piece
            case _:
                data[at:at] = draw(st.binary(min_size=1, max_size=64))
    return bytes(data)


@st.composite
def damaged_fields(draw: st.DrawFn) -> bytes:
    """A tiny file with one number of its header (a count, length, type, dimension or offset) replaced."""
    name = draw(st.sampled_from(["tiny-f32", "tiny-q4_k", "tiny-qwen2"]))
    data = bytearray(model_bytes(name))
    where = [8, 16, 24]
    for piece in (b".context_length", b".block_count", b".head_count", b".feed_forward_length", b".tokens"):
        end = data.index(piece) + len(piece)
        where += [end, end + 4, end + 8]
    for tensor in (b"token_embd.weight", b"blk.0.ffn_up.weight", b"blk.0.attn_norm.weight"):
        end = data.index(tensor) + len(tensor)
        where += [end - len(tensor) - 8, end, end + 4, end + 12, end + 20, end + 24]
    at = draw(st.sampled_from(where))
    if draw(st.booleans()):
        data[at : at + 8] = struct.pack("<Q", draw(st.sampled_from(NUMBERS) | st.integers(0, 2**64 - 1)))
    else:
        data[at : at + 4] = struct.pack("<I", draw(st.integers(0, 2**32 - 1)))
    return bytes(data)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=damaged_files() | damaged_fields())
def test_a_damaged_file_is_read_or_refused_by_name_in_bounded_time_and_memory(data: bytes) -> None:
    tracemalloc.start()
    started = time.thread_time()
    refused = None
    try:
        Model(parse_gguf(memoryview(data), path=Path("damaged")))
    except InvalidMessage as error:
        refused = error.code
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert refused is None or refused in REFUSALS
    # 4 MiB for the names of as many layers as may be declared.
    assert peak < 4 * 2**20 + 25 * len(data)
    assert time.thread_time() - started < 5


@pytest.mark.parametrize(
    ("code", "form", "values"),
    [
        (0, "B", (0, 1, 127, 128, 255)),
        (1, "b", (-128, -1, 0, 1, 127)),
        (2, "H", (0, 65_535)),
        (3, "h", (-32_768, 32_767)),
        (4, "I", (0, 2**32 - 1)),
        (5, "i", (-(2**31), 2**31 - 1)),
        (6, "f", (0.5, -(2.0**-149))),
        (7, "?", (True, False)),
        (10, "Q", (0, 2**64 - 1)),
        (11, "q", (-(2**63), 2**63 - 1)),
        (12, "d", (0.1, -(2.0**-1074))),
    ],
)
def test_numbers_of_every_type_are_read_as_they_are(code: int, form: str, values: tuple[float, ...]) -> None:
    packed = [struct.pack("<" + form, value) for value in values]
    array = struct.pack("<IIQ", 9, code, len(values)) + b"".join(packed)
    entries = [array, *(struct.pack("<I", code) + value for value in packed)]
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries))
    for index, entry in enumerate(entries):
        data += struct.pack("<Q", 1) + str(index).encode() + entry
    got = list(parse_gguf(memoryview(data), path=Path("numbers")).metadata.values())
    assert got == [values, *values]
    assert [type(value) for value in got[1:]] == [type(value) for value in values]


def densest(kind: str) -> bytes:
    """A file of about 200 kB that becomes as many Python objects as its bytes can."""
    key = b"".join((struct.pack("<Q", 1), b"a", struct.pack("<I", 9)))
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    match kind:
        case "shorts":
            return start + key + struct.pack("<IQ", 3, 100_000) + b"\x80\x80" * 100_000
        case "bytes":
            return start + key + struct.pack("<IQ", 1, 200_000) + b"\x80" * 200_000
        case "strings":
            return start + key + struct.pack("<IQ", 8, 20_000) + (struct.pack("<Q", 2) + b"ab") * 20_000
        case "keys":
            keys = b"".join(
                struct.pack("<Q", 4) + f"{n:04x}".encode() + struct.pack("<IB", 0, 1) for n in range(12_000)
            )
            return b"GGUF" + struct.pack("<IQQ", 3, 0, 12_000) + keys
        case _:
            tensors = b"".join(
                struct.pack("<Q", 4) + f"{n:04x}".encode() + struct.pack("<IQIQ", 1, 8, 0, 32 * n)
                for n in range(3000)
            )
            head = b"GGUF" + struct.pack("<IQQ", 3, 3000, 0) + tensors
            return head + bytes(-len(head) % 32) + bytes(32 * 3000)


@pytest.mark.parametrize("kind", ["bytes", "shorts", "strings", "keys", "tensors"])
def test_the_densest_files_take_a_small_multiple_of_their_size(kind: str) -> None:
    data = densest(kind)
    tracemalloc.start()
    started = time.thread_time()
    parse_gguf(memoryview(data), path=Path(kind))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 25 * len(data), peak / len(data)
    assert time.thread_time() - started < 5


def test_a_count_that_the_file_cannot_hold_takes_no_memory() -> None:
    key = b"".join((struct.pack("<Q", 1), b"a", struct.pack("<I", 9)))
    for item, count in ((0, 2**24), (8, 2**24), (12, 2**24)):
        data = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IQ", item, count)
        tracemalloc.start()
        with pytest.raises(InvalidMessage) as caught:
            parse_gguf(memoryview(data), path=Path("short"))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert caught.value.code == "gguf.truncated"
        assert peak < 2**18


def test_weights_root_is_the_tree_over_tensors_rows_and_chunks() -> None:
    file = parse_gguf(memoryview(model_bytes("tiny-q8_0")), path=Path("m"))
    tensor = next(t for t in file.tensors if t.name == "blk.0.ffn_down.weight")
    raw = bytes(file.tensor_bytes(tensor))
    assert (tensor.columns, tensor.row_bytes) == (288, 9 * 34)
    rows = []
    for at in range(0, len(raw), 9 * 34):
        row = raw[at : at + 9 * 34]
        rows.append(tree_root([leaf_hash(CHUNK_TAG + row[: 8 * 34]), leaf_hash(CHUNK_TAG + row[8 * 34 :])]))
    assert row_hashes(file, tensor, threads=3) == (rows, True)
    changed = bytearray(model_bytes("tiny-q8_0"))
    changed[tensor.offset + 5] ^= 1
    assert weights_root(parse_gguf(memoryview(changed), path=Path("m"))) != weights_root(file)


def test_a_manifest_is_cached_by_digest_and_a_broken_cache_is_ignored(tmp_path: Path) -> None:
    path, cache = tmp_path / "model.gguf", tmp_path / "cache"
    path.write_bytes(model_bytes("tiny-q8_0"))
    calls: list[tuple[int, int]] = []
    first = read_manifest(path, cache_dir=cache, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    (entry,) = cache.glob("model-*.json")
    assert entry.read_bytes() == first.json()
    assert read_manifest(path, cache_dir=cache) == first == read_manifest(path)
    for content in (
        b"",
        b"{}",
        first.json()[:-1],
        first.json().replace(b'"arithmetic":1', b'"arithmetic":2') + b" ",
    ):
        entry.write_bytes(content)
        assert read_manifest(path, cache_dir=cache) == first
        assert entry.read_bytes() == first.json()
    (table,) = cache.glob("rope-*.f32")
    good = table.read_bytes()
    table.write_bytes(bytes(len(good)))
    salt = bytes(32)
    run = ReferenceEngine(path, cache_dir=cache).generate("a", SamplingParams(max_tokens=3), salt=salt)
    assert run == ReferenceEngine(path).generate("a", SamplingParams(max_tokens=3), salt=salt)
    assert table.read_bytes() == good


def test_a_changed_weight_changes_the_model_id(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes("tiny-q8_0"))
    first = read_manifest(path)
    data = bytearray(model_bytes("tiny-q8_0"))
    data[-40] ^= 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    second = read_manifest(other)
    assert (first.arithmetic, second.arithmetic) == (1, 1)
    assert first.weights_root != second.weights_root
    assert first.model_id != second.model_id


def test_a_file_outside_the_canonical_arithmetic_has_a_manifest_without_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    data = model_bytes("tiny-q8_0").replace(b"llama.attention.key_length", b"llama.attention.key_lenxxx")
    path.write_bytes(data)
    manifest = read_manifest(path)
    assert (manifest.arithmetic, manifest.graph, manifest.rope_table) == (0, None, b"")
    assert maker().MODELS
    with pytest.raises(InvalidMessage):
        ReferenceEngine(path)


@pytest.mark.parametrize("writable", ["file", "directory"])
def test_a_cached_manifest_that_others_could_write_is_not_believed(writable: str, tmp_path: Path) -> None:
    path, cache = tmp_path / "model.gguf", tmp_path / "cache"
    path.write_bytes(model_bytes("tiny-f32"))
    honest = read_manifest(path, cache_dir=cache)
    (cached,) = cache.glob("model-*.json")
    forged = replace(honest, weights_root=bytes(32))
    cached.write_bytes(forged.json())
    cached.chmod(0o600)
    cache.chmod(0o700)
    # This user's own word about its own file; whoever judges another party's answer gives no cache.
    assert read_manifest(path, cache_dir=cache) == forged
    assert read_manifest(path) == honest
    (cached if writable == "file" else cache).chmod(0o777)
    assert read_manifest(path, cache_dir=cache) == honest
    if writable == "file":
        cached.unlink()
        elsewhere = tmp_path / "elsewhere.json"
        elsewhere.write_bytes(forged.json())
        cached.symlink_to(elsewhere)
        assert read_manifest(path, cache_dir=cache) == honest


def test_a_cached_manifest_is_not_that_of_other_bytes_of_the_same_size_and_time(tmp_path: Path) -> None:
    path, cache = tmp_path / "model.gguf", tmp_path / "cache"
    data = bytearray(model_bytes("tiny-f32"))
    path.write_bytes(data)
    before, times = read_manifest(path, cache_dir=cache), path.stat()
    data[-64] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = read_manifest(path, cache_dir=cache)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (times.st_ino, times.st_mtime_ns)
    assert after.weights_root != before.weights_root
    assert after == read_manifest(path)
