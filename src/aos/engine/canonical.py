"""What every engine of the canonical arithmetic does alike (docs/spec/07-inference.md, "Text and stopping",
"State root").

A ``Computation`` computes, samples and commits; here are the limits, the text, the order of events, replay
and the header. So the engines differ in nothing but how they compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aos.core.dispute.state_tree import ARITHMETIC_VERSION, StateHeader, tokens_root
from aos.core.hashes import prompt_tokens_hash, response_hash, run_params_hash, tokens_hash
from aos.core.manifest import Manifest
from aos.core.statements import Prompt
from aos.engine.conversation import Conversations
from aos.engine.gguf import Value
from aos.engine.params import check_params
from aos.engine.state import StateLeaves
from aos.engine.text import OutputText
from aos.engine.tokenizer import Tokenizer
from aos.errors import InvalidMessage
from aos.ports import FinishReason, Generation, SamplingParams, TokenEvent

if TYPE_CHECKING:
    from aos.engine.trace import Capture


class Computation(Protocol):
    """One run's forward pass, sampler and leaves."""

    @property
    def waiting(self) -> int:
        """Positions, from the last of the prompt on, that are computed and have no token yet."""

    @property
    def trap_position(self) -> int | None:
        """Where the run trapped: nothing can be computed or chosen beyond the positions that wait before it
        (rule 10).
        """

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
    manifest: Manifest

    def __init__(
        self, tokenizer: Tokenizer, model_id: bytes, n_ctx: int, metadata: Mapping[str, Value] | None = None
    ) -> None:
        """Conversations need the file's ``metadata``, which holds its chat template."""
        self.tokenizer = tokenizer
        self._conversations = Conversations(tokenizer, metadata or {})
        self._model_id = model_id
        self._n_ctx = n_ctx

    @abstractmethod
    def _begin(self, prompt: Sequence[int], params: SamplingParams) -> Computation:
        """A computation at position 0. ``prompt`` fits the context and ``params`` are checked."""

    @abstractmethod
    def capture(self, tokens: Sequence[int], units: Sequence[int]) -> Capture:
        """See ``aos.engine.trace.CapturingEngine``."""

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

    def tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids of a raw prompt or of a conversation. Raises InvalidMessage ``tokenizer.text``, ``chat.*``."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return self._conversations.tokenize(prompt)

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        salt: bytes,
        on_token: Callable[[TokenEvent], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Generation:
        """Run ``prompt`` to its end (see ``aos.ports.Engine``).

        Raises InvalidMessage ``engine.params``, ``engine.empty_prompt``, ``engine.prompt_too_long``,
        ``tokenizer.text``, ``chat.*``.
        """
        return self._drive(self.run(prompt, params, salt=salt), on_token, cancelled).result()

    def traced(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        salt: bytes,
        on_token: Callable[[TokenEvent], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> tuple[StateLeaves, Generation]:
        """``generate``, with the leaves of units that ``state_root`` commits to."""
        run = self._drive(self.run(prompt, params, salt=salt), on_token, cancelled)
        return run.leaves(), run.result()

    def replay(
        self,
        prompt: Prompt,
        tokens: Sequence[int],
        params: SamplingParams,
        *,
        salt: bytes,
        cancelled: bool = False,
    ) -> Generation:
        """Recompute the run that ``tokens`` claim to be (see ``aos.ports.Engine``).

        Raises as ``generate``, and InvalidMessage ``engine.token``.
        """
        return self.replayed(prompt, tokens, params, salt=salt, cancelled=cancelled).result()

    def replayed(
        self,
        prompt: Prompt,
        tokens: Sequence[int],
        params: SamplingParams,
        *,
        salt: bytes,
        cancelled: bool = False,
    ) -> Run:
        """``replay``, with everything that the run commits to."""
        claim = Claim(tokens=tuple(tokens), cancelled=cancelled)
        return self._drive(self.run(prompt, params, salt=salt, claim=claim), None, None)

    def run(self, prompt: Prompt, params: SamplingParams, *, salt: bytes, claim: Claim | None = None) -> Run:
        """A run that nothing of is computed yet; with ``claim``, its replay. Raises as ``generate`` and
        ``replay``.
        """
        return Run(self, prompt, params, salt, claim)

    def _drive(
        self,
        run: Run,
        on_token: Callable[[TokenEvent], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> Run:
        computation = self._begin(run.prompt, run.params)
        run.start(computation)
        while not run.ended:
            tokens = run.take(self.step)
            if tokens:
                if cancelled is not None and cancelled():
                    break
                computation.extend(tokens)
                run.computed()
            else:
                event = run.chosen(computation.choose())
                if event is not None and on_token is not None:
                    on_token(event)
        return run


@dataclass(frozen=True, slots=True)
class Claim:
    """The tokens that a run claims to be, and whether it claims to have been cancelled after them."""

    tokens: tuple[int, ...]
    cancelled: bool


class Run:
    """One run as steps that something else computes: what comes next, what was chosen, the text, the end.

    After ``start``: while not ``ended``, either ``take`` gives tokens, which are to be computed and then
    ``computed`` called, or it gives none, and a token is to be chosen and given to ``chosen``.
    """

    def __init__(
        self,
        engine: CanonicalEngine,
        prompt: Prompt,
        params: SamplingParams,
        salt: bytes,
        claim: Claim | None,
    ) -> None:
        if len(salt) != 32:
            raise InvalidMessage("engine.salt", "the salt is not 32 bytes", field="salt")
        self._engine = engine
        self.params = check_params(params)
        self.salt = salt
        self.prompt = list(engine.tokenize(prompt))
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
        self.tokens: list[int] = []
        self.finish: FinishReason | None = None
        self.ended = False
        self._text = OutputText(params.stop)
        self._claim = claim
        self._claimed: tuple[int, ...] = ()
        self._todo = self.prompt
        self._taken = 0
        self._computation: Computation | None = None
        if claim is not None:
            n_vocab = len(engine.tokenizer.vocabulary.pieces)
            for token in claim.tokens:
                if type(token) is not int or not 0 <= token < n_vocab:
                    raise InvalidMessage(
                        "engine.token", "a claimed token is not in the vocabulary", field="tokens"
                    )
            self._claimed = claim.tokens[: self.limit]
            self._todo = [*self.prompt, *self._claimed[:-1]]
            self.ended = claim.cancelled and not self._claimed

    @property
    def most_positions(self) -> int:
        """Positions that the run computes at most: its last token is chosen, not computed."""
        if self._claim is None:
            return len(self.prompt) + self.limit - 1
        return len(self.prompt) + min(len(self._claimed) + 1, self.limit) - 1

    @property
    def left_to_compute(self) -> int:
        """Tokens that are known and not computed; with none left, one is to be chosen."""
        return len(self._todo)

    def start(self, computation: Computation, positions: int = 0) -> None:
        """Compute with ``computation``, which has the prompt's first ``positions`` already."""
        self._computation = computation
        self._todo = self._todo[positions:]

    def take(self, most: int) -> Sequence[int]:
        """The next tokens to compute, at most ``most``; none where a token is to be chosen."""
        tokens = self._todo[:most]
        self._taken = len(tokens)
        return tokens

    def computed(self) -> None:
        """What was taken is computed, as far as no trap came before."""
        self._todo = self._todo[self._taken :]
        if self._started().trap_position is not None:
            self._todo = []
        self._check_trap()

    def close(self) -> None:
        """Let go of the computation and its memory. Nothing more can be asked of the run."""
        self._computation = None

    def _started(self) -> Computation:
        if self._computation is None:
            raise RuntimeError("the run has no computation")
        return self._computation

    def _check_trap(self) -> None:
        computation = self._started()
        if not self._todo and not computation.waiting and computation.trap_position is not None:
            self._end("numeric_trap")

    def _end(self, finish: FinishReason | None) -> None:
        self.finish = finish
        self.ended = True

    def chosen(self, token: int | None) -> TokenEvent | None:
        """Take the token at the next waiting position, None where its unit trapped."""
        if token is None:
            self._end("numeric_trap")
            return None
        self.tokens.append(token)
        tokenizer = self._engine.tokenizer
        if token in tokenizer.vocabulary.ends:
            self._end("stop")
        else:
            self._text.push(tokenizer.piece(token))
            if self._text.stopped:
                self._end("stop")
            elif len(self.tokens) == self.limit:
                self._end("length")
        if self.ended:
            self._text.finish()
        elif self._claim is None:
            self._todo = [token]
        else:
            self._follow(self._claim, token)
        return TokenEvent(index=len(self.tokens) - 1, token=token, text=self._text.release())

    def _follow(self, claim: Claim, token: int) -> None:
        """After a token of a replay that does not end the run: the claim's next, its end, or a difference."""
        count = len(self.tokens)
        if count > len(self._claimed) or token != self._claimed[count - 1]:
            self.ended = True
        elif count < len(self._claimed):
            self._check_trap()
        elif claim.cancelled:
            self.ended = True
        elif self._started().trap_position is not None:
            self._end("numeric_trap")
        else:
            self._todo = [token]

    def _committed(self) -> int | None:
        """Positions that the run commits to; None where a trap says so."""
        if self.finish == "numeric_trap":
            return None
        return len(self.prompt) + len(self.tokens) - 1 if self.tokens else 0

    def leaves(self) -> StateLeaves:
        """The leaves of the run as it stands."""
        return self._started().leaves(self._committed())

    def header(self) -> StateHeader:
        """What the run commits to first, as it stands. Ends its text."""
        self._text.finish()
        positions = self._committed()
        if positions is None:
            positions = (self._started().trap_position or 0) + 1
        return StateHeader(
            model_id=self._engine.model_id,
            prompt_tokens_hash=prompt_tokens_hash(self.salt, self.prompt),
            params_hash=run_params_hash(self.salt, self.params),
            sampling_seed=self.params.seed,
            n_prompt=len(self.prompt),
            n_out=len(self.tokens),
            finish_reason=self.finish or "cancelled",
            tokens_hash=tokens_hash(self.salt, self.tokens),
            response_hash=response_hash(self.salt, self._text.text),
            tokens_root=tokens_root([*self.prompt, *self.tokens]),
            n_positions=positions,
        )

    def result(self) -> Generation:
        """End the run where it stands (``cancelled`` where nothing else ended it)."""
        header = self.header()
        return Generation(
            prompt_tokens=tuple(self.prompt),
            tokens=tuple(self.tokens),
            text=self._text.text,
            finish_reason=header.finish_reason,
            state_root=self._started().state_root(header, self._committed()),
        )
