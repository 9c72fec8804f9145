"""The native engine: the canonical arithmetic in C++ (native/src), with the bits of the reference engine.

This side reads and checks the model file; the native side holds the packed weights and computes, samples and
hashes. ``AOS_ISA`` forces an instruction set.
"""

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import numpy as np

from aos.core.arithmetic.floats import F16, F32, millionths
from aos.core.dispute.state_tree import StateHeader
from aos.engine import _native
from aos.engine.canonical import CanonicalEngine
from aos.engine.gguf import GGUF, Tensor, read_gguf
from aos.engine.llama import ROPE_FACTORS, HyperParameters, check_tensors, read_hyper_parameters
from aos.engine.manifest import Progress, cached_rope_table, manifest_of
from aos.engine.state import StateLeaves
from aos.engine.tokenizer import Tokenizer, read_vocabulary
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable
from aos.ports import MILLION, SamplingParams

ISA_VARIABLE = "AOS_ISA"
PAGE_POSITIONS = _native.PAGE
_CONFIGURATION = frozenset({"engine.isa", "engine.threads", "engine.self_test"})
_BROKEN_FILE = frozenset({"engine.not_finite", "engine.matrix", "engine.parameter"})


def instruction_sets() -> list[str]:
    """What this processor and this build have, the plainest first."""
    return _native.instruction_sets()


def chosen_isa(isa: str | None = None) -> str:
    """``isa``, else ``AOS_ISA``, else the fastest. Raises ConfigError ``engine.isa``."""
    name = isa or os.environ.get(ISA_VARIABLE) or instruction_sets()[-1]
    if name not in instruction_sets():
        raise ConfigError(
            "engine.isa",
            f"the instruction set {name!r} is unknown or this processor lacks it",
            field=ISA_VARIABLE,
            hint=f"use one of {', '.join(instruction_sets())}, or leave {ISA_VARIABLE} out",
        )
    return name


class NativeEngine(CanonicalEngine):
    """``aos.ports.Engine`` over one model packed into memory."""

    step = _native.STEP

    def __init__(
        self,
        path: str | Path,
        *,
        cache_dir: Path | None = None,
        progress: Progress | None = None,
        threads: int = 1,
        isa: str | None = None,
        alone_below: int = _native.ALONE_BELOW,
    ) -> None:
        """``isa`` is one of ``instruction_sets()``; without it ``AOS_ISA``, else the fastest. Work on fewer
        than ``alone_below`` bytes stays on one thread. No result depends on these, nor on ``threads``.

        Raises InvalidMessage (``gguf.*``, ``tokenizer.*``, ``engine.*``, ``rope.*``) for a file that it
        cannot run, ConfigError ``engine.isa``, ``engine.threads`` or ``engine.self_test``, Unavailable
        ``engine.memory``.
        """
        name = chosen_isa(isa)
        if not 1 <= threads <= 256:
            raise ConfigError("engine.threads", f"{threads} threads are not in 1..256", field="threads")
        file = read_gguf(path)
        tokenizer = Tokenizer(read_vocabulary(file.metadata))
        self.hyper = read_hyper_parameters(file)
        check_tensors(file, self.hyper)
        stages = _Stages(progress)
        # The file's hashes are made while its weights are packed: neither holds the interpreter's lock.
        with ThreadPoolExecutor(1, "manifest") as hasher:
            digested = hasher.submit(
                manifest_of, file, cache_dir=cache_dir, progress=stages.hashed, threads=threads
            )
            try:
                self._model = _load(file, self.hyper, cache_dir, name, threads, alone_below, stages.packed)
            except AOSError:
                digested.result()  # a broken file is refused by its manifest, as by every engine
                raise
            self.manifest = digested.result()
        mapped = file.data.obj
        if isinstance(mapped, mmap.mmap):
            # Everything is packed: the file's pages need not stay in memory.
            mapped.madvise(mmap.MADV_DONTNEED)
        super().__init__(tokenizer, self.manifest.model_id, self.hyper.n_ctx, file.metadata)

    @property
    def isa(self) -> str:
        """The instruction set that computes."""
        return self._model.isa

    def _begin(self, prompt: Sequence[int], params: SamplingParams) -> "NativeRun":
        return self.batch().begin(prompt, params)

    def capture(self, tokens: Sequence[int], units: Sequence[int]) -> "NativeCapture":
        """See ``aos.engine.trace.CapturingEngine``."""
        # A prompt leaves room for a token, and what is computed of it keeps no residual for its tail.
        run = self.batch().begin(tokens[: self.n_ctx - 1], SamplingParams())
        with translated():
            run.native.watch(units)
            for at in range(0, len(tokens), self.step):
                run.extend(tokens[at : at + self.step])
                if run.trap_position is not None:
                    break
        return NativeCapture(run.native, self.hyper.width, self.hyper.kv_width)

    def batch(self) -> "NativeBatch":
        """A batch with no runs. Any number of them may be open; their steps take turns at the threads."""
        return NativeBatch(self._model, self.hyper.n_layers)

    @property
    def page_bytes(self) -> int:
        """Memory of the keys and values of one page, ``PAGE_POSITIONS`` positions."""
        return self._model.page_bytes

    @property
    def pages_in_use(self) -> int:
        """Pages that runs or a prefix cache hold."""
        return self._model.pages_in_use

    def limit_pages(self, most: int) -> None:
        """Let no more than ``most`` pages be in use; taking another is Unavailable ``engine.memory``."""
        self._model.limit_pages(most)


Page = _native.Page


class NativeBatch:
    """Runs of one engine that are computed together, in any mixture of groups of positions. For one thread
    at a time (RuleViolation ``engine.busy``).
    """

    most_positions = _native.MOST
    """Of all runs in one ``extend``; of one run it is ``NativeEngine.step``."""

    def __init__(self, model: _native.Model, n_layers: int) -> None:
        self._n_layers = n_layers
        with translated():
            self._batch = _native.Batch(model)

    def begin(self, prompt: Sequence[int], params: SamplingParams) -> "NativeRun":
        """A run at position 0."""
        with translated():
            return NativeRun(
                _native.Run(self._batch, prompt, sampling_rules(params)), self._batch, self._n_layers
            )

    def extend(self, parts: Sequence[tuple["NativeRun", Sequence[int]]]) -> None:
        """Compute the next positions of each of these runs. A trap in one leaves the others alone."""
        with translated():
            self._batch.extend([(run.native, tokens) for run, tokens in parts])

    def choose(self, runs: Sequence["NativeRun"]) -> list[int | None]:
        """For each run the token at its next waiting position, or None where its unit trapped."""
        with translated():
            return [
                None if token < 0 else token for token in self._batch.choose([run.native for run in runs])
            ]

    def settle_leaves(self) -> None:
        """Hash the leaves that wait: a batch holds the pages that they are of."""
        with translated():
            self._batch.settle_leaves()


class NativeRun:
    """A native run (a ``Computation``), its codes as this product's errors and its leaves as
    ``StateLeaves``.
    """

    def __init__(self, run: _native.Run, batch: _native.Batch, n_layers: int) -> None:
        self.native = run
        self._run = run
        self._batch = batch
        self._n_layers = n_layers

    @property
    def length(self) -> int:
        """Positions that are computed."""
        return self._run.length

    def adopt(self, pages: Sequence[Page], positions: int) -> None:
        """Take the prompt's first ``positions`` over from ``pages`` that a run of the same tokens computed."""
        with translated():
            self._run.adopt(pages, positions)

    def page(self, index: int) -> Page:
        """The page of positions from ``PAGE_POSITIONS * index`` on."""
        with translated():
            return self._run.page(index)

    def reserve(self, positions: int) -> None:
        """Take pages for so many positions. Raises Unavailable ``engine.memory``."""
        with translated():
            self._run.reserve(positions)

    @property
    def waiting(self) -> int:
        return self._run.waiting

    @property
    def trap_position(self) -> int | None:
        return None if self._run.trap is None else self._run.trap[0]

    def extend(self, tokens: Sequence[int]) -> None:
        with translated():
            self._batch.extend([(self._run, tokens)])

    def choose(self) -> int | None:
        with translated():
            (token,) = self._batch.choose([self._run])
        return None if token < 0 else token

    def _hashes(self, positions: int | None) -> bytes:
        with translated():
            return self._run.leaves_to_trap() if positions is None else self._run.leaves(positions)

    def leaves(self, positions: int | None) -> StateLeaves:
        joined = self._hashes(positions)
        hashes = [joined[at : at + 32] for at in range(0, len(joined), 32)]
        units = self._n_layers + 2
        leaves = StateLeaves(self._n_layers)
        leaves.positions = [hashes[at : at + units] for at in range(0, len(hashes), units)]
        return leaves

    def state_root(self, header: StateHeader, positions: int | None) -> bytes:
        with translated():
            return _native.root(header.entry(), self._hashes(positions), self._n_layers + 2)


class NativeCapture:
    """``aos.engine.trace.Capture`` over the pages of a native run."""

    def __init__(self, run: _native.Run, width: int, kv_width: int) -> None:
        self._run, self._width, self._kv_width = run, width, kv_width

    def residuals(self, unit: int) -> F32:
        """See ``Capture``."""
        with translated():
            raw = self._run.watched(unit)
        return np.frombuffer(raw, dtype="<f4").reshape(-1, self._width)

    def cache(self, layer: int, first: int, end: int) -> tuple[F16, F16]:
        """See ``Capture``."""
        with translated():
            halves = self._run.cache(layer, first, end)
        keys, values = (np.frombuffer(raw, dtype="<f2").reshape(-1, self._kv_width) for raw in halves)
        return keys, values


def sampling_rules(params: SamplingParams) -> _native.SamplingRules:
    """Checked parameters as rule 9 uses them."""
    return _native.SamplingRules(**sampling_rule_values(params))


class RuleValues(TypedDict):
    """Decimals are the binary32 values nearest to the millionths."""

    temperature: float
    top_k: int
    limit_top_p: bool
    top_p: float
    min_p: float
    penalise: bool
    penalty: float
    seed: int


def sampling_rule_values(params: SamplingParams) -> RuleValues:
    """What ``sampling_rules`` hands over."""
    return RuleValues(
        temperature=float(millionths(params.temperature)),
        top_k=params.top_k,
        limit_top_p=params.top_p < MILLION,
        top_p=float(millionths(params.top_p)),
        min_p=float(millionths(params.min_p)),
        penalise=params.repeat_penalty != MILLION,
        penalty=float(millionths(params.repeat_penalty)),
        seed=params.seed,
    )


def placed(tensor: Tensor) -> tuple[int, str]:
    """Layer (0 for those that no layer has) and the native side's name of a tensor."""
    parts = tensor.name.split(".")
    layer, name = (int(parts[1]), parts[2]) if parts[0] == "blk" else (0, parts[0])
    return layer, f"{name}_bias" if parts[-1] == "bias" else name


def _load(
    file: GGUF,
    hyper: HyperParameters,
    cache_dir: Path | None,
    isa: str,
    threads: int,
    alone_below: int,
    packed: Progress,
) -> _native.Model:
    factors = next((t for t in file.tensors if t.name == ROPE_FACTORS), None)
    cos, sin = cached_rope_table(
        hyper,
        None if factors is None else _vector(file, factors).tolist(),
        cache_dir,
    )
    with translated():
        model = _native.Model(
            isa=isa,
            threads=threads,
            alone_below=alone_below,
            cos=cos,
            sin=sin,
            n_ctx=hyper.n_ctx,
            n_layers=hyper.n_layers,
            n_vocab=hyper.n_vocab,
            width=hyper.width,
            ff_width=hyper.ff_width,
            n_heads=hyper.n_heads,
            n_kv_heads=hyper.n_kv_heads,
            head_width=hyper.head_width,
            n_rot=hyper.n_rot,
            eps=hyper.eps,
            rope_neighbours=not hyper.architecture.rope_halves,
        )
    done, total = 0, sum(tensor.size for tensor in file.tensors)
    packed(done, total)
    for tensor in file.tensors:
        done += tensor.size
        packed(done, total)
        if tensor is factors:
            continue
        layer, name = placed(tensor)
        with translated(tensor.name):
            if len(tensor.shape) == 1:
                model.set_vector(layer, name, _vector(file, tensor))
            else:
                raw = np.frombuffer(file.tensor_bytes(tensor), dtype=np.uint8)
                model.set_matrix(layer, name, tensor.type.code, tensor.rows, tensor.columns, raw)
    with translated():
        model.seal()
    return model


class _Stages:
    """One progress over the two things that a load does at once: hashing, and packing the weights."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._hashed = self._to_hash = self._packed = self._to_pack = 0
        self._lock = threading.Lock()

    def hashed(self, done: int, total: int) -> None:
        """The manifest's progress."""
        self._hashed, self._to_hash = done, total
        self._show()

    def packed(self, done: int, total: int) -> None:
        """Bytes of tensors."""
        self._packed, self._to_pack = done, total
        self._show()

    def _show(self) -> None:
        with self._lock:
            if self._progress is not None and self._to_hash and self._to_pack:
                self._progress(self._hashed + self._packed, self._to_hash + self._to_pack)


def _vector(file: GGUF, tensor: Tensor) -> F32:
    return np.frombuffer(file.tensor_bytes(tensor), dtype="<f4").astype(np.float32)


@contextmanager
def translated(tensor: str | None = None) -> Iterator[None]:
    """The native side's codes as this product's errors."""
    try:
        yield
    except _native.Error as error:
        code, message = error.args
        raise _error(code, message, tensor) from error


def _error(code: str, message: str, tensor: str | None) -> AOSError:
    if code in _CONFIGURATION:
        return ConfigError(code, message)
    if code == "engine.memory":
        return Unavailable(code, message, hint="give the process more memory, or take a smaller model")
    if tensor is not None or code in _BROKEN_FILE:
        named = message if tensor is None else f"{tensor!r}: {message}"
        return InvalidMessage(code, named, field=tensor)
    return RuleViolation(code, message)
