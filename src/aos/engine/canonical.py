"""What every engine of the canonical arithmetic does alike (docs/spec/07-inference.md, "Text and stopping",
"State root").

A ``Computation`` computes, samples and commits; here are the limits, the text, the order of events, replay
and the header. So the engines differ in nothing but how they compute.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from aos.core.hashes import prompt_tokens_hash, response_hash, tokens_hash
from aos.engine.params import check_params, run_params_hash
from aos.engine.state import ARITHMETIC_VERSION, StateHeader, StateLeaves
from aos.engine.text import OutputText
from aos.engine.tokenizer import Tokenizer
from aos.errors import InvalidMessage
from aos.ports import FinishReason, Generation, SamplingParams, TokenEvent


class Computation(Protocol):
    """One run's forward pass, sampler and leaves."""

    @property
    def waiting(self) -> int:
        """Positions, from the last of the prompt on, that are computed and have no token yet."""

    @property
    def trapped(self) -> bool:
        """Whether nothing can be computed or chosen beyond the waiting positions (rule 10)."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Compute the next positions; any grouping of them gives the same bits. Ends at a trap."""

    def choose(self) -> int | None:
        """The token at the next waiting position, or None where its unit trapped."""

    def leaves(self, positions: int | None) -> StateLeaves:
        """The leaves of the first ``positions``; of None, those up to the trap."""

    def state_root(self, header: StateHeader, positions: int | None) -> bytes:
        """The root over the header and ``leaves(positions)``."""


class CanonicalEngine(ABC):
    """``aos.ports.Engine`` over a ``Computation``. Not thread-safe: one run at a time."""

    step: int
    """Positions computed together; any number gives the same bits."""

    def __init__(self, tokenizer: Tokenizer, model_id: bytes, n_ctx: int) -> None:
        self.tokenizer = tokenizer
        self._model_id = model_id
        self._n_ctx = n_ctx

    @abstractmethod
    def _begin(self, prompt: Sequence[int], params: SamplingParams) -> Computation:
        """A computation at position 0. ``prompt`` fits the context and ``params`` are checked."""

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
        return self._n_ctx

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
        return self._run(prompt, params, salt, on_token, cancelled).result()

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
        run = self._run(prompt, params, salt, on_token, cancelled)
        return run.leaves(), run.result()

    def _run(
        self,
        prompt: str,
        params: SamplingParams,
        salt: bytes,
        on_token: Callable[[TokenEvent], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> "_Run":
        run = _Run(self, prompt, params, salt)
        if run.compute(run.prompt, cancelled):
            while run.choose_next(on_token):
                if cancelled is not None and cancelled():
                    break
                if not run.compute(run.tokens[-1:], None):
                    break
        return run

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
        n_vocab = len(self.tokenizer.vocabulary.pieces)
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
    """One run: its computation, what was chosen, the text, and how it ended."""

    def __init__(self, engine: CanonicalEngine, prompt: str, params: SamplingParams, salt: bytes) -> None:
        if len(salt) != 32:
            raise InvalidMessage("engine.salt", "the salt is not 32 bytes", field="salt")
        self.engine = engine
        self.params = check_params(params)
        self.salt = salt
        self.prompt = list(engine.tokenizer.encode(prompt))
        if not self.prompt:
            raise InvalidMessage(
                "engine.empty_prompt", "the prompt is empty and the model has no BOS", field="prompt"
            )
        if len(self.prompt) >= engine.n_ctx:
            raise InvalidMessage(
                "engine.prompt_too_long",
                f"the prompt's {len(self.prompt)} tokens leave no room in the model's context of {engine.n_ctx}",
                field="prompt",
            )
        self.limit = min(params.max_tokens, engine.n_ctx - len(self.prompt))
        self.text = OutputText(params.stop)
        self.tokens: list[int] = []
        self.finish: FinishReason | None = None
        self._computation = engine._begin(self.prompt, self.params)

    def compute(self, tokens: Sequence[int], cancelled: Callable[[], bool] | None) -> bool:
        """Compute the next positions. False where the run ended (cancelled, or a trap comes next)."""
        at = 0
        while at < len(tokens) and not self._computation.trapped:
            if cancelled is not None and cancelled():
                return False
            count = self.engine.step
            self._computation.extend(tokens[at : at + count])
            at += count
        return self._ready()

    def _ready(self) -> bool:
        if self._computation.waiting:
            return True
        if self._computation.trapped:
            self.finish = "numeric_trap"
        return False

    def choose_next(self, on_token: Callable[[TokenEvent], None] | None) -> bool:
        """Sample at the next waiting position. False where the run ended, with or without a token."""
        if not self._ready():
            return False
        token = self._computation.choose()
        if token is None:
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

    def _committed(self) -> int | None:
        """Positions that the run commits to; None where a trap says so."""
        if self.finish == "numeric_trap":
            return None
        return len(self.prompt) + len(self.tokens) - 1 if self.tokens else 0

    def leaves(self) -> StateLeaves:
        """The leaves of the run as it stands."""
        return self._computation.leaves(self._committed())

    def result(self) -> Generation:
        """End the run where it stands (``cancelled`` where nothing else ended it)."""
        self.text.finish()
        finish: FinishReason = self.finish or "cancelled"
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
            state_root=self._computation.state_root(header, self._committed()),
        )
