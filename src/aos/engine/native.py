"""The native engine: the canonical arithmetic in C++ (native/src), with the bits of the reference engine.

This side reads and checks the model file, tokenizes, ends runs by the text rules and writes the header; the
native side holds the packed weights and computes, samples and hashes. ``AOS_ISA`` forces an instruction
set. Not thread-safe: one run at a time.
"""

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from aos.core.arithmetic.floats import F32, millionths
from aos.core.hashes import prompt_tokens_hash, response_hash, tokens_hash
from aos.engine import _native
from aos.engine.gguf import GGUF, Tensor, read_gguf
from aos.engine.llama import ROPE_FACTORS, HyperParameters, check_tensors, read_hyper_parameters
from aos.engine.manifest import Manifest, Progress, cached_rope_table, manifest_of
from aos.engine.params import check_params, run_params_hash
from aos.engine.state import ARITHMETIC_VERSION, StateHeader, StateLeaves
from aos.engine.text import OutputText
from aos.engine.tokenizer import Tokenizer, read_vocabulary
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable
from aos.ports import MILLION, FinishReason, Generation, SamplingParams, TokenEvent

ISA_VARIABLE = "AOS_ISA"
_CONFIGURATION = frozenset({"engine.isa", "engine.threads", "engine.self_test"})
_BROKEN_FILE = frozenset({"engine.not_finite", "engine.matrix", "engine.parameter"})


def instruction_sets() -> list[str]:
    """What this processor and this build have, the plainest first."""
    return _native.instruction_sets()


class NativeEngine:
    """``aos.ports.Engine`` over one model packed into memory."""

    def __init__(
        self,
        path: str | Path,
        *,
        cache_dir: Path | None = None,
        progress: Progress | None = None,
        threads: int = 1,
        isa: str | None = None,
    ) -> None:
        """``isa`` is one of ``instruction_sets()``; without it ``AOS_ISA``, else the fastest.

        Raises InvalidMessage (``gguf.*``, ``tokenizer.*``, ``engine.*``, ``rope.*``) for a file that it
        cannot run, ConfigError ``engine.isa``, ``engine.threads`` or ``engine.self_test``, Unavailable
        ``engine.memory``.
        """
        name = isa or os.environ.get(ISA_VARIABLE) or instruction_sets()[-1]
        if name not in instruction_sets():
            raise ConfigError(
                "engine.isa",
                f"the instruction set {name!r} is unknown or this processor lacks it",
                field=ISA_VARIABLE,
                hint=f"use one of {', '.join(instruction_sets())}, or leave {ISA_VARIABLE} out",
            )
        if not 1 <= threads <= 256:
            raise ConfigError("engine.threads", f"{threads} threads are not in 1..256", field="threads")
        file = read_gguf(path)
        self.tokenizer = Tokenizer(read_vocabulary(file.metadata))
        self.hyper = read_hyper_parameters(file)
        check_tensors(file, self.hyper)
        self.manifest: Manifest = manifest_of(file, cache_dir=cache_dir, progress=progress)
        self._model_id = self.manifest.model_id
        self._model = _load(file, self.hyper, self.manifest, cache_dir, name, threads)
        mapped = file.data.obj
        if isinstance(mapped, mmap.mmap):
            # Everything is packed: the file's pages need not stay in memory.
            mapped.madvise(mmap.MADV_DONTNEED)

    @property
    def profile(self) -> str:
        return f"aos-canonical/{ARITHMETIC_VERSION}"

    @property
    def canonical(self) -> bool:
        return True

    @property
    def isa(self) -> str:
        """The instruction set that computes."""
        return self._model.isa

    @property
    def model_id(self) -> bytes:
        return self._model_id

    @property
    def n_ctx(self) -> int:
        return self.hyper.n_ctx

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Ids of a raw prompt. Raises InvalidMessage ``tokenizer.text``."""
        return self.tokenizer.encode(text)

    def generate(
        self,
        prompt: str,
        params: SamplingParams,
        *,
        salt: bytes,
        on_token: Callable[[TokenEvent], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Generation:
        """Run ``prompt`` to its end (see ``aos.ports.Engine``).

        Raises InvalidMessage ``engine.params``, ``engine.empty_prompt``, ``engine.prompt_too_long``,
        ``tokenizer.text``.
        """
        return self.traced(prompt, params, salt=salt, on_token=on_token, cancelled=cancelled)[1]

    def traced(
        self,
        prompt: str,
        params: SamplingParams,
        *,
        salt: bytes,
        on_token: Callable[[TokenEvent], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        split: Callable[[int], int] | None = None,
    ) -> tuple[StateLeaves, Generation]:
        """``generate``, with the leaves that ``state_root`` is the root of.

        ``split(rest)`` says how many of the positions that are left are computed next; every answer gives
        the same bits.
        """
        run = _Run(self, prompt, params, salt, split)
        if run.compute(run.prompt, cancelled):
            while run.choose_next(on_token):
                if cancelled is not None and cancelled():
                    break
                if not run.compute(run.tokens[-1:], None):
                    break
        result = run.result()
        return run.state_leaves(), result

    def replay(
        self,
        prompt: str,
        tokens: Sequence[int],
        params: SamplingParams,
        *,
        salt: bytes,
        cancelled: bool = False,
    ) -> Generation:
        """Recompute the run that ``tokens`` claim to be (see ``aos.ports.Engine``).

        Raises as ``generate``, and InvalidMessage ``engine.token``.
        """
        run = _Run(self, prompt, params, salt, None)
        for token in tokens:
            if type(token) is not int or not 0 <= token < self.hyper.n_vocab:
                raise InvalidMessage(
                    "engine.token", "a claimed token is not in the vocabulary", field="tokens"
                )
        claimed = list(tokens[: run.limit])
        if cancelled and not claimed:
            return run.result()
        run.compute([*run.prompt, *claimed[:-1]], None)
        for token in claimed:
            if not run.choose_next(None) or run.tokens[-1] != token:
                return run.result()
        if not cancelled and (not claimed or run.compute(claimed[-1:], None)):
            run.choose_next(None)
        return run.result()


class _Run:
    """One run: the native computation, the text, and how it ended."""

    def __init__(
        self,
        engine: NativeEngine,
        prompt: str,
        params: SamplingParams,
        salt: bytes,
        split: Callable[[int], int] | None,
    ) -> None:
        if len(salt) != 32:
            raise InvalidMessage("engine.salt", "the salt is not 32 bytes", field="salt")
        self.engine = engine
        self.params = check_params(params)
        self.salt = salt
        self.prompt = list(engine.tokenizer.encode(prompt))
        n_ctx = engine.n_ctx
        if not self.prompt:
            raise InvalidMessage(
                "engine.empty_prompt", "the prompt is empty and the model has no BOS", field="prompt"
            )
        if len(self.prompt) >= n_ctx:
            raise InvalidMessage(
                "engine.prompt_too_long",
                f"the prompt's {len(self.prompt)} tokens leave no room in the model's context of {n_ctx}",
                field="prompt",
            )
        self.limit = min(params.max_tokens, n_ctx - len(self.prompt))
        self.text = OutputText(params.stop)
        self.tokens: list[int] = []
        self.finish: FinishReason | None = None
        self._split = split
        self._leaves = b""
        with _translated():
            self._native = _native.Run(engine._model, self.prompt, sampling_rules(params))

    def compute(self, tokens: Sequence[int], cancelled: Callable[[], bool] | None) -> bool:
        """Compute the next positions. False where the run ended (cancelled, or a trap comes next)."""
        at = 0
        while at < len(tokens) and self._native.trap is None:
            if cancelled is not None and cancelled():
                return False
            rest = len(tokens) - at
            count = min(_native.STEP, rest if self._split is None else self._split(rest))
            with _translated():
                self._native.extend(tokens[at : at + count])
            at += count
        return self._ready()

    def _ready(self) -> bool:
        if self._native.waiting:
            return True
        if self._native.trap is not None:
            self.finish = "numeric_trap"
        return False

    def choose_next(self, on_token: Callable[[TokenEvent], None] | None) -> bool:
        """Sample at the next waiting position. False where the run ended, with or without a token."""
        if not self._ready():
            return False
        with _translated():
            token = self._native.choose()
        if token < 0:
            self.finish = "numeric_trap"
            return False
        self.tokens.append(token)
        tokenizer = self.engine.tokenizer
        if token == tokenizer.vocabulary.eos:
            self.finish = "stop"
        else:
            self.text.push(tokenizer.piece(token))
            if self.text.stopped:
                self.finish = "stop"
            elif len(self.tokens) == self.limit:
                self.finish = "length"
        if self.finish is not None:
            self.text.finish()
        if on_token is not None:
            on_token(TokenEvent(index=len(self.tokens) - 1, token=token, text=self.text.release()))
        return self.finish is None

    def result(self) -> Generation:
        """End the run where it stands (``cancelled`` where nothing else ended it)."""
        finish: FinishReason = self.finish or "cancelled"
        self.text.finish()
        with _translated():
            if finish == "numeric_trap":
                self._leaves = self._native.leaves_to_trap()
            else:
                self._leaves = self._native.leaves(
                    len(self.prompt) + len(self.tokens) - 1 if self.tokens else 0
                )
        header = StateHeader(
            model_id=self.engine.model_id,
            prompt_tokens_hash=prompt_tokens_hash(self.salt, self.prompt),
            params_hash=run_params_hash(self.salt, self.params),
            sampling_seed=self.params.seed,
            n_prompt=len(self.prompt),
            n_out=len(self.tokens),
            finish_reason=finish,
            tokens_hash=tokens_hash(self.salt, self.tokens),
            response_hash=response_hash(self.salt, self.text.text),
        )
        return Generation(
            prompt_tokens=tuple(self.prompt),
            tokens=tuple(self.tokens),
            text=self.text.text,
            finish_reason=finish,
            state_root=_native.root(header.entry(), self._leaves),
        )

    def state_leaves(self) -> StateLeaves:
        """The committed leaves by position and unit."""
        leaves = StateLeaves(self.engine.hyper.n_layers)
        hashes = [self._leaves[at : at + 32] for at in range(0, len(self._leaves), 32)]
        units = self.engine.hyper.n_layers + 2
        leaves.positions = [hashes[at : at + units] for at in range(0, len(hashes), units)]
        return leaves


def sampling_rules(params: SamplingParams) -> _native.SamplingRules:
    """Checked parameters as rule 9 uses them: binary32 nearest to the millionths."""
    return _native.SamplingRules(
        temperature=float(millionths(params.temperature)),
        top_k=params.top_k,
        limit_top_p=params.top_p < MILLION,
        top_p=float(millionths(params.top_p)),
        min_p=float(millionths(params.min_p)),
        penalise=params.repeat_penalty != MILLION,
        penalty=float(millionths(params.repeat_penalty)),
        seed=params.seed,
    )


def _load(
    file: GGUF, hyper: HyperParameters, manifest: Manifest, cache_dir: Path | None, isa: str, threads: int
) -> _native.Model:
    factors = next((t for t in file.tensors if t.name == ROPE_FACTORS), None)
    cos, sin = cached_rope_table(
        hyper,
        None if factors is None else _vector(file, factors).tolist(),
        cache_dir,
        manifest.rope_table,
    )
    with _translated():
        model = _native.Model(
            isa=isa,
            threads=threads,
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
    for tensor in file.tensors:
        if tensor is factors:
            continue
        parts = tensor.name.split(".")
        layer, name = (int(parts[1]), parts[2]) if parts[0] == "blk" else (0, parts[0])
        with _translated(tensor.name):
            if len(tensor.shape) == 1:
                vector = f"{name}_bias" if parts[-1] == "bias" else name
                model.set_vector(layer, vector, _vector(file, tensor))
            else:
                raw = np.frombuffer(file.tensor_bytes(tensor), dtype=np.uint8)
                model.set_matrix(layer, name, tensor.type.code, tensor.rows, tensor.columns, raw)
    with _translated():
        model.seal()
    return model


def _vector(file: GGUF, tensor: Tensor) -> F32:
    return np.frombuffer(file.tensor_bytes(tensor), dtype="<f4").astype(np.float32)


@contextmanager
def _translated(tensor: str | None = None) -> Iterator[None]:
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
