"""The reference engine: the canonical arithmetic in plain NumPy (docs/spec/07-inference.md).

Slow but right, and the executable form of the specification. ``generate`` runs position by position after
the prompt, ``replay`` runs everything in large steps; both give the same bits and the same ``state_root``.
Not thread-safe.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aos.core.arithmetic.floats import F16, F32, NumericTrap, require_ieee
from aos.core.arithmetic.sampler import Rules, choose
from aos.core.dispute.state_tree import StateHeader
from aos.engine.canonical import CanonicalEngine
from aos.engine.forward import Context, Op, Trap, tail_logits
from aos.engine.gguf import read_gguf
from aos.engine.llama import Model
from aos.engine.manifest import Progress, cached_rope_table, manifest_of
from aos.engine.state import StateLeaves
from aos.engine.tokenizer import Tokenizer, read_vocabulary
from aos.ports import SamplingParams


class ReferenceEngine(CanonicalEngine):
    """``aos.ports.Engine`` over one mapped model."""

    step = 64

    def __init__(
        self, path: str | Path, *, cache_dir: Path | None = None, progress: Progress | None = None
    ) -> None:
        """Raises InvalidMessage (``gguf.*``, ``tokenizer.*``, ``engine.*``, ``rope.*``) for a file that it
        cannot run.
        """
        file = read_gguf(path)
        tokenizer = Tokenizer(read_vocabulary(file.metadata))
        self._model = Model(file)
        self.manifest = manifest_of(file, cache_dir=cache_dir, progress=progress)
        factors = self._model.rope_factors
        self._cos, self._sin = cached_rope_table(
            self._model.hyper,
            None if factors is None else factors.tolist(),
            cache_dir,
        )
        super().__init__(tokenizer, self.manifest.model_id, self._model.hyper.n_ctx, file.metadata)

    def _begin(self, prompt: Sequence[int], params: SamplingParams) -> "_Computation":
        require_ieee()
        return _Computation(self._model, self._cos, self._sin, prompt, params)

    def capture(self, tokens: Sequence[int], units: Sequence[int]) -> "_Kept":
        """See ``aos.engine.trace.CapturingEngine``."""
        require_ieee()
        kept = _Kept(self._model, self._cos, self._sin, units)
        kept.extend(tokens, self.step)
        return kept


class _Kept:
    """The residuals of some units, and the cache, of a run's positions. A ``Sink``, and a ``Capture``."""

    def __init__(self, model: Model, cos: F32, sin: F32, units: Sequence[int]) -> None:
        self._context = Context(model, cos, sin)
        self._residuals: dict[int, list[F32]] = {unit: [] for unit in units}

    def extend(self, tokens: Sequence[int], step: int) -> None:
        """Compute the positions, up to a trap."""
        for at in range(0, len(tokens), step):
            _, trap = self._context.extend(tokens[at : at + step], self)
            if trap is not None:
                break

    def embedding(self, first: int, residual: F32) -> None:
        """See ``Sink``."""
        self._keep(first, 0, residual)

    def layer(self, first: int, index: int, residual: F32, keys: F16, values: F16) -> None:
        """See ``Sink``."""
        self._keep(first, index + 1, residual)

    def _keep(self, first: int, unit: int, residual: F32) -> None:
        if unit in self._residuals:
            # A step that traps computes a unit again, for fewer positions.
            del self._residuals[unit][first:]
            self._residuals[unit] += list(residual)

    def residuals(self, unit: int) -> F32:
        """See ``aos.engine.trace.Capture``."""
        return np.stack(self._residuals[unit])

    def cache(self, layer: int, first: int, end: int) -> tuple[F16, F16]:
        """See ``aos.engine.trace.Capture``."""
        return self._context.cache(layer, first, end)


class _Computation:
    """Residuals that still wait for their tail, what was chosen, and what is committed."""

    def __init__(
        self, model: Model, cos: F32, sin: F32, prompt: Sequence[int], params: SamplingParams
    ) -> None:
        self._model = model
        self._rules = Rules(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repeat_penalty=params.repeat_penalty,
            seed=params.seed,
        )
        self._context = Context(model, cos, sin)
        self._leaves = StateLeaves(model.hyper.n_layers)
        self._n_prompt = len(prompt)
        self._seen = list(prompt)
        self._trap: Trap | None = None
        self._waiting = np.empty((0, model.hyper.width), dtype=np.float32)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def trap_position(self) -> int | None:
        return None if self._trap is None else self._trap.position

    def extend(self, tokens: Sequence[int]) -> None:
        skip = self._n_prompt - 1
        first = self._context.length
        residuals, self._trap = self._context.extend(tokens, self._leaves)
        for position in range(first, min(first + len(residuals), skip)):
            self._leaves.tail(position, None, b"", None)
        self._waiting = np.concatenate([self._waiting, residuals[max(0, skip - first) :]])

    def choose(self) -> int | None:
        step = len(self._seen) - self._n_prompt
        position = self._n_prompt - 1 + step
        row, self._waiting = self._waiting[:1], self._waiting[1:]
        try:
            logits = tail_logits(self._model, row)[0]
            with np.errstate(all="ignore"):
                choice = choose(logits, self._seen, step, self._rules, Op.SAMPLER)
        except NumericTrap as found:
            self._trap = Trap(position, self._model.hyper.n_layers + 1, found.op)
            return None
        self._leaves.tail(position, logits, choice.record, choice.token)
        self._seen.append(choice.token)
        return choice.token

    def leaves(self, positions: int | None) -> StateLeaves:
        if positions is not None:
            self._leaves.cut(positions)
        elif self._trap is not None:
            self._leaves.trap(self._trap.position, self._trap.unit, self._trap.op)
        return self._leaves

    def state_root(self, header: StateHeader, positions: int | None) -> bytes:
        return self.leaves(positions).tree(header).root
