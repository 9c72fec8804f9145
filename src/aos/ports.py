"""Every boundary of the product as a small Protocol. Adapters implement these; apps wire them.

The inference engine's port is the widest: docs/spec/07-inference.md says what an engine must do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from aos.core.statements import Prompt

MILLION = 1_000_000

FinishReason = Literal["stop", "length", "cancelled", "numeric_trap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """What decides the next token. Decimals are integers in millionths; ``seed`` is unsigned, 64 bits.

    ``top_k`` 0, ``top_p`` 1,000,000, ``min_p`` 0 and ``repeat_penalty`` 1,000,000 switch a rule off;
    temperature 0 takes the likeliest token. Ranges: docs/spec/07-inference.md, "Limits and parameters".
    """

    temperature: int = MILLION
    top_p: int = MILLION
    top_k: int = 0
    min_p: int = 0
    repeat_penalty: int = MILLION
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One generated token: its index among the output tokens, its id, and the text that became final with it.

    ``text`` may be empty (an unfinished UTF-8 sequence, a held-back possible stop string, the end token).
    """

    index: int
    token: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A finished run. ``tokens`` are all chosen ids, the end-of-sequence id included where it was chosen.

    ``state_root`` is None for engines that are not canonical.
    """

    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    state_root: bytes | None


class Engine(Protocol):
    """An inference engine over one loaded model. Not thread-safe: one run at a time."""

    @property
    def profile(self) -> str:
        """Engine and arithmetic version, for instance ``aos-canonical/1`` or ``llama.cpp/<build>``."""

    @property
    def canonical(self) -> bool:
        """True where the bits are those of docs/spec/07-inference.md, so that results can be compared and
        disputed.
        """

    @property
    def model_id(self) -> bytes: ...

    @property
    def n_ctx(self) -> int: ...

    def tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids of a prompt. A raw text: BOS as the file says, special tokens as plain text. A conversation: by the
        file's chat template, special tokens only where the template wrote them. Raises InvalidMessage
        ``tokenizer.text``, ``chat.*``.
        """

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        salt: bytes,
        on_token: Callable[[TokenEvent], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Generation:
        """Run ``prompt`` to its end. ``salt`` (32 bytes) goes into the token and text hashes of the header.

        ``on_token`` gets every token as it is chosen; the events' texts joined are ``Generation.text``, but
        for a held-back end where the run was cancelled or trapped. ``cancelled`` is asked between steps.
        Raises InvalidMessage (``engine.prompt_too_long``, ``engine.empty_prompt``, ``engine.params``,
        ``tokenizer.text``, ``chat.*``).
        """

    def replay(
        self,
        prompt: Prompt,
        tokens: Sequence[int],
        params: SamplingParams,
        *,
        salt: bytes,
        cancelled: bool = False,
    ) -> Generation:
        """Recompute, in one prefill, the run that ``tokens`` claim to be. Canonical engines only
        (RuleViolation ``engine.not_canonical`` elsewhere).

        The sampler and the stop rule are re-run: the result's ``tokens`` are what this engine would have
        chosen at each position given the claimed prefix, up to and including the first position that
        differs, ended there as if cancelled. Where the claim stops although the run goes on, that position
        is the next one. ``cancelled`` says that the claim itself is a run cancelled after ``tokens``. The
        claim holds exactly where ``tokens`` and ``state_root`` are the claimed ones. Raises as
        ``generate``, and InvalidMessage ``engine.token`` for an id outside the vocabulary.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class OnChainOperator:
    """An account as the OperatorRegistry holds it (docs/spec/17-registry.md). ``stake`` in wei, ``exit_at`` in Unix
    seconds (0: not leaving), the range half-open; ``vrf_key`` is 32 zero bytes where it never deposited.
    """

    node_id: str
    stake: int
    vrf_key: bytes
    exit_at: int
    games: int
    registered: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryView:
    """Every operator with a range, at one final block."""

    number: int
    hash: bytes
    time: int
    operators: Mapping[str, OnChainOperator]


class OperatorChain(Protocol):
    """The registry of operators on a chain, final blocks alone. Whatever goes wrong raises: there is no answer from memory."""

    min_stake: int

    async def view(self) -> RegistryView: ...

    async def operator(self, node_id: str) -> OnChainOperator: ...
