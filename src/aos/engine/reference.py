"""The reference engine: the canonical arithmetic in plain NumPy (docs/spec/07-inference.md).

Slow but right, and the executable form of the specification. ``generate`` runs position by position after
the prompt, ``replay`` runs everything in large steps; both give the same bits and the same ``state_root``.
Not thread-safe.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from aos.core.arithmetic.floats import NumericTrap, require_ieee
from aos.core.arithmetic.sampler import Rules, choose
from aos.core.hashes import prompt_tokens_hash, response_hash, tokens_hash
from aos.engine.forward import Context, Op, Trap, tail_logits
from aos.engine.gguf import read_gguf
from aos.engine.llama import Model
from aos.engine.manifest import Manifest, Progress, cached_rope_table, manifest_of
from aos.engine.params import check_params, run_params_hash
from aos.engine.state import ARITHMETIC_VERSION, StateHeader, StateLeaves
from aos.engine.text import OutputText
from aos.engine.tokenizer import Tokenizer, read_vocabulary
from aos.errors import InvalidMessage
from aos.ports import FinishReason, Generation, SamplingParams, TokenEvent

STEP = 64
"""Positions computed together; any number gives the same bits."""


class ReferenceEngine:
    """``aos.ports.Engine`` over one mapped model."""

    def __init__(
        self, path: str | Path, *, cache_dir: Path | None = None, progress: Progress | None = None
    ) -> None:
        """Raises InvalidMessage (``gguf.*``, ``tokenizer.*``, ``engine.*``, ``rope.*``) for a file that it
        cannot run.
        """
        file = read_gguf(path)
        self.tokenizer = Tokenizer(read_vocabulary(file.metadata))
        self._model = Model(file)
        self.manifest: Manifest = manifest_of(file, cache_dir=cache_dir, progress=progress)
        self._model_id = self.manifest.model_id
        factors = self._model.rope_factors
        self._cos, self._sin = cached_rope_table(
            self._model.hyper,
            None if factors is None else factors.tolist(),
            cache_dir,
            self.manifest.rope_table,
        )

    @property
    def profile(self) -> str:
        return f"aos-canonical/{ARITHMETIC_VERSION}"

    @property
    def canonical(self) -> bool:
        return True

    @property
    def model_id(self) -> bytes:
        return self._model_id

    @property
    def n_ctx(self) -> int:
        return self._model.hyper.n_ctx

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
    ) -> tuple[StateLeaves, Generation]:
        """``generate``, with the leaves that ``state_root`` is the root of."""
        run = _Run(self, prompt, params, salt)
        if run.compute(run.prompt, cancelled):
            while run.choose_next(on_token):
                if cancelled is not None and cancelled():
                    break
                if not run.compute(run.tokens[-1:], None):
                    break
        result = run.result()
        return run.leaves, result

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
        run = _Run(self, prompt, params, salt)
        n_vocab = self._model.hyper.n_vocab
        for token in tokens:
            if type(token) is not int or not 0 <= token < n_vocab:
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
    """One run: residuals that still wait for their tail, what was chosen, and what is committed."""

    def __init__(self, engine: ReferenceEngine, prompt: str, params: SamplingParams, salt: bytes) -> None:
        require_ieee()
        if len(salt) != 32:
            raise InvalidMessage("engine.salt", "the salt is not 32 bytes", field="salt")
        self.engine = engine
        self.params = check_params(params)
        self.salt = salt
        self.model = engine._model
        self.prompt = list(engine.tokenizer.encode(prompt))
        n_ctx = self.model.hyper.n_ctx
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
        self.rules = Rules(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repeat_penalty=params.repeat_penalty,
            seed=params.seed,
        )
        self.context = Context(self.model, engine._cos, engine._sin)
        self.leaves = StateLeaves(self.model.hyper.n_layers)
        self.text = OutputText(params.stop)
        self.tokens: list[int] = []
        self.trap: Trap | None = None
        self.finish: FinishReason | None = None
        self._waiting = np.empty((0, self.model.hyper.width), dtype=np.float32)

    def compute(self, tokens: Sequence[int], cancelled: Callable[[], bool] | None) -> bool:
        """Compute the next positions. False where the run ended (cancelled, or a trap comes next)."""
        skip = len(self.prompt) - 1
        parts = [self._waiting]
        for at in range(0, len(tokens), STEP):
            if cancelled is not None and cancelled():
                return False
            first = self.context.length
            residuals, self.trap = self.context.extend(tokens[at : at + STEP], self.leaves)
            for position in range(first, min(first + len(residuals), skip)):
                self.leaves.tail(position, None, b"", None)
            parts.append(residuals[max(0, skip - first) :])
            if self.trap is not None:
                break
        self._waiting = np.concatenate(parts)
        return self._ready()

    def _ready(self) -> bool:
        if len(self._waiting):
            return True
        if self.trap is not None:
            self.finish = "numeric_trap"
        return False

    def choose_next(self, on_token: Callable[[TokenEvent], None] | None) -> bool:
        """Sample at the next waiting position. False where the run ended, with or without a token."""
        if not self._ready():
            return False
        position = len(self.prompt) - 1 + len(self.tokens)
        row, self._waiting = self._waiting[:1], self._waiting[1:]
        try:
            logits = tail_logits(self.model, row)[0]
            with np.errstate(all="ignore"):
                choice = choose(
                    logits, [*self.prompt, *self.tokens], len(self.tokens), self.rules, Op.SAMPLER
                )
        except NumericTrap as found:
            self.trap = Trap(position, self.model.hyper.n_layers + 1, found.op)
            self.finish = "numeric_trap"
            return False
        self.leaves.tail(position, logits, choice.record, choice.token)
        self.tokens.append(choice.token)
        vocabulary = self.engine.tokenizer.vocabulary
        if choice.token == vocabulary.eos:
            self.finish = "stop"
        else:
            self.text.push(self.engine.tokenizer.piece(choice.token))
            if self.text.stopped:
                self.finish = "stop"
            elif len(self.tokens) == self.limit:
                self.finish = "length"
        if self.finish is not None:
            self.text.finish()
        if on_token is not None:
            on_token(TokenEvent(index=len(self.tokens) - 1, token=choice.token, text=self.text.release()))
        return self.finish is None

    def result(self) -> Generation:
        """End the run where it stands (``cancelled`` where nothing else ended it)."""
        finish: FinishReason = self.finish or "cancelled"
        self.text.finish()
        if finish == "numeric_trap" and self.trap is not None:
            self.leaves.trap(self.trap.position, self.trap.unit, self.trap.op)
        else:
            self.leaves.cut(len(self.prompt) + len(self.tokens) - 1 if self.tokens else 0)
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
            state_root=self.leaves.root(header),
        )
