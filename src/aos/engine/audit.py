"""The layer audit's arithmetic: an operator's bundle, and an auditor's exact check of it with the drawn layers' weights
(docs/spec/14-audit.md).

Of the model file only the tensors that are computed with are read, each checked under the receipt's ``model_id``. A layer
is computed over all positions at once, as a model of one layer whose embedding is the residual that enters it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aos.core.answer import Answer
from aos.core.arithmetic.floats import F32, NumericTrap, check_finite, require_ieee
from aos.core.arithmetic.ops import rms_norm
from aos.core.arithmetic.rope_table import rope_table
from aos.core.arithmetic.sampler import Rules, choose
from aos.core.dispute.audit import AuditBundle, AuditRequest, Plan, bundle_parts, layer_roots
from aos.core.dispute.fine.around import check_receipt
from aos.core.dispute.fine.bounds import Run, check_header
from aos.core.dispute.state_tree import TILE_BYTES, part_root, tokens_root, trap_leaf, unit_leaf
from aos.core.hashes import u32
from aos.core.manifest import GraphSizes, tensor_leaf
from aos.core.merkle import tree_root
from aos.core.statements import Params, Prompt, ReceiptCore, Request
from aos.engine.around import check_stop, check_text
from aos.engine.canonical import CanonicalEngine
from aos.engine.conversation import Conversations
from aos.engine.forward import Context, Op, tail_logits
from aos.engine.gguf import GGUF, read_gguf
from aos.engine.llama import ARCHITECTURES, ROPE_FACTORS, HyperParameters, Model, expected_tensors
from aos.engine.manifest import row_hashes, template_digest
from aos.engine.tokenizer import Tokenizer, read_vocabulary
from aos.engine.trace import CapturingEngine, KnownRun, known_run
from aos.errors import Unavailable, VerificationError
from aos.ports import SamplingParams

_AT_ONCE = 64
"""Positions of a tail, or of an embedding, that are computed together."""


def open_layers(
    known: KnownRun, engine: CapturingEngine, tensor_leaves: Sequence[bytes], request: AuditRequest
) -> tuple[int, Iterator[bytes]]:
    """The operator's side: what ``request`` asks of a run that it knows, as ``bundle_parts`` gives it. One prefill, of which
    only the residuals that are opened stay in memory beside the cache. ``tensor_leaves`` are those of the model file
    (``aos.engine.manifest.tensor_leaves``).

    Raises as ``bundle_parts``; Unavailable ``engine.memory``.
    """
    manifest, tree = known.run.manifest, known.tree
    graph = known.run.graph
    layers = request.drawn(graph.n_layers)
    header = tree.header
    watched = sorted({unit for layer in layers for unit in (layer, layer + 1)} | {graph.n_layers})
    capture = engine.capture(known.tokens[: header.n_positions], watched) if header.n_positions else None
    residuals = {unit: capture.residuals(unit).astype("<f4") for unit in watched} if capture else {}

    def payload(unit: int, position: int) -> tuple[bytes, bytes, bytes]:
        row = residuals[unit][position].tobytes()
        if capture is None or unit == 0:
            return row, b"", b""
        keys, values = capture.cache(unit - 1, position, position + 1)
        return row, keys.astype("<f2").tobytes(), values.astype("<f2").tobytes()

    return bundle_parts(tree, manifest, tensor_leaves, known.trap, request, payload)


def make_bundle(
    known: KnownRun, engine: CapturingEngine, tensor_leaves: Sequence[bytes], request: AuditRequest
) -> bytes:
    """``open_layers`` in one piece."""
    return b"".join(open_layers(known, engine, tensor_leaves, request)[1])


def bundle_of_answer(
    answer: Answer,
    request: Request,
    engine: CanonicalEngine,
    tensor_leaves: Sequence[bytes],
    audit: AuditRequest,
) -> bytes:
    """``make_bundle`` for whoever has the answer file and not the run: the run is computed once more. ``request`` is the
    answer's.

    Raises as ``make_bundle``; Unavailable ``audit.other_model``, ``audit.other_run``.
    """
    core = answer.receipt.core
    if engine.model_id != core.model_id:
        raise _other_model("it has another model_id")
    run = engine.replayed(
        request.job.prompt,
        answer.tokens,
        sampling_params(request.job.params, int(core.sampling_seed)),
        salt=answer.nonce,
        cancelled=core.finish_reason == "cancelled",
    )
    known = known_run(run, engine.manifest)
    if known.tree.root != core.state_root:
        raise Unavailable(
            "audit.other_run",
            "this machine computes another state root than the receipt's, and cannot open that",
            field="state_root",
            hint="only whoever computed it can; aos replay says what differs",
        )
    return make_bundle(known, engine, tensor_leaves, audit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosed:
    """What an auditor knows of a run beside its bundle, from the answer file: the signed receipt and what it hashes."""

    core: ReceiptCore
    nonce: bytes
    params: Params
    prompt: Prompt
    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where a run commits to another value than this arithmetic gives; ``position`` is None around the model.

    The first one of a unit is what a dispute can begin with: everything before it was the same.
    """

    unit: int | None
    position: int | None
    what: str


class Auditor:
    """Checks a bundle that has been read. Nothing depends on ``native`` or ``threads``."""

    def __init__(
        self,
        bundle: AuditBundle,
        disclosed: Disclosed,
        path: str | Path,
        *,
        native: bool = True,
        threads: int = 1,
    ) -> None:
        """Maps the file. Raises InvalidMessage ``gguf.*``, ``tokenizer.*``, ``chat.*``; Unavailable
        ``engine.file_unreadable``, and ``audit.other_model`` for a file whose tensors or tokenizer are not the receipt's.
        """
        self.bundle, self.disclosed = bundle, disclosed
        self.native, self.threads = native, threads
        self.plan: Plan = bundle.plan
        self.file = read_gguf(path)
        self.hyper = hyper_parameters(bundle.manifest.architecture, bundle.graph)
        self._numbers = {tensor.name: number for number, tensor in enumerate(self.file.tensors)}
        self._checked: set[str] = set()
        if len(self.file.tensors) != len(bundle.tensor_leaves):
            raise _other_model("it has another number of tensors")
        vocabulary = read_vocabulary(self.file.metadata)
        if vocabulary.digest() != bundle.manifest.tokenizer:
            raise _other_model("its tokenizer is another")
        self.tokenizer = Tokenizer(vocabulary)
        self._model = _Parts(self.file, self.hyper)
        self.prompt_tokens = self._prompt_tokens(disclosed.prompt)
        self.known = (*self.prompt_tokens, *disclosed.tokens)
        """Prompt and output."""

    def _prompt_tokens(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        template = self.file.metadata.get("tokenizer.chat_template")
        if template_digest(template) != self.bundle.manifest.chat_template:
            raise _other_model("its chat template is another")
        return Conversations(self.tokenizer, self.file.metadata).tokenize(prompt)

    def run_is_the_receipts(self) -> None:
        """The header is that of receipt, parameters and tokens; the run ends where and as it must, and spells its text.

        Raises VerificationError ``dispute.header``, ``tile.header``, ``around.*``.
        """
        bundle, disclosed = self.bundle, self.disclosed
        header, params = bundle.header, disclosed.params
        check_receipt(disclosed.core, header)
        run = Run(
            manifest=bundle.manifest,
            params=params,
            salt=disclosed.nonce,
            state_root=bundle.request.state_root,
        )
        check_header(run, header)
        self._check_count()
        if tokens_root(self.known) != header.tokens_root:
            raise VerificationError("around.tokens", "the header commits to other tokens")
        limit = min(params.max_tokens, bundle.graph.n_ctx - header.n_prompt)
        check_stop(self.tokenizer, disclosed.tokens, params.stop, limit, header.finish_reason)
        check_text(self.tokenizer, disclosed.tokens, params.stop, disclosed.text)

    def _check_count(self) -> None:
        header = self.bundle.header
        if (len(self.prompt_tokens), len(self.disclosed.tokens)) != (header.n_prompt, header.n_out):
            raise VerificationError("around.tokens", "the header counts other tokens than there are")

    def embedding(self) -> Difference | None:
        """Unit 0 at every position, from the tokens. The first difference. Raises VerificationError ``around.tokens``."""
        self._check_count()
        self._check_weights(["token_embd.weight"])
        bundle = self.bundle
        for first in range(0, len(bundle.leaves), _AT_ONCE):
            some = self.known[first : min(first + _AT_ONCE, len(bundle.leaves))]
            rows = self._model.embedding(list(some)).astype("<f4")
            for position, row in enumerate(rows, start=first):
                expected = unit_leaf(position, 0, [part_root(row.tobytes(), TILE_BYTES)])
                if not np.isfinite(row).all():
                    expected = trap_leaf(position, 0, Op.EMBEDDING)
                if bundle.leaves[position][0] != expected:
                    return Difference(unit=0, position=position, what="the embedding of its token is another")
        return None

    def layer(self, layer: int) -> Difference | None:
        """A drawn layer at every position that has it, from the residuals that enter it. The first difference."""
        unit = layer + 1
        positions, entering = self.plan.positions(unit), self._entering(layer)
        if (broken := _not_finite(layer, positions, entering)) is not None:
            return broken
        prefix = f"blk.{layer}."
        self._check_weights([name for name in expected_tensors(self.hyper) if name.startswith(prefix)])
        if not positions:
            return None
        compute = self._native_layer if self.native else self._reference_layer
        found = compute(layer, entering)
        opened = self.bundle.part_roots[unit]
        for position in positions:
            leaf = self.bundle.leaves[position][unit]
            if position == found.length:
                if leaf == trap_leaf(position, unit, found.trap_op):
                    return None
                return Difference(unit=unit, position=position, what=f"it traps, in op {found.trap_op}")
            roots = layer_roots(*found.row(position))
            if position >= len(opened):
                return Difference(unit=unit, position=position, what="it does not trap here")
            for name, here, there in zip(_PARTS, roots, opened[position], strict=True):
                if here != there:
                    return Difference(unit=unit, position=position, what=f"{name} {_ARE[name]}")
        return None

    def tail(self) -> Difference | None:
        """Final norm, logits, sampler and token wherever one is chosen. The first difference. Raises VerificationError
        ``around.tokens``.
        """
        self._check_count()
        output = "token_embd.weight" if self.hyper.tied else "output.weight"
        self._check_weights(["output_norm.weight", output])
        unit, tails, entering = self.plan.tail, self.plan.tails, self._entering(self.bundle.graph.n_layers)
        if (broken := _not_finite(unit - 1, tails, entering)) is not None:
            return broken
        for at in range(0, len(tails), _AT_ONCE):
            some = tails[at : at + _AT_ONCE]
            logits, trap_op = self._logits(output, entering[at : at + _AT_ONCE])
            for row, position in enumerate(some):
                roots, token = (None, trap_op) if row == len(logits) else self._chosen(position, logits[row])
                leaf = self.bundle.leaves[position][unit]
                if roots is None:
                    if leaf == trap_leaf(position, unit, token):
                        return None
                    return Difference(unit=unit, position=position, what=f"it traps, in op {token}")
                if leaf != unit_leaf(position, unit, roots):
                    what = "logits, sampler record or token are others"
                    return Difference(unit=unit, position=position, what=what)
                if position + 1 >= len(self.known) or self.known[position + 1] != token:
                    return Difference(unit=unit, position=position, what="the run has another token")
        return None

    # --- below

    def _entering(self, unit: int) -> F32:
        raw = np.frombuffer(self.bundle.residuals[unit], dtype="<f4")
        return raw.astype(np.float32).reshape(-1, self.hyper.width)

    def _check_weights(self, names: Sequence[str]) -> None:
        """The tensors are those under ``weights_root``, of the graph's shapes."""
        shapes = expected_tensors(self.hyper) | {ROPE_FACTORS: (self.hyper.n_rot // 2,)}
        for name in names:
            if name in self._checked:
                continue
            number = self._numbers.get(name)
            if number is None:
                raise _other_model(f"it has no tensor {name}")
            tensor = self.file.tensors[number]
            hashes, finite = row_hashes(self.file, tensor, self.threads)
            leaf = tensor_leaf(tensor.name, tensor.type.code, tensor.shape, tree_root(hashes))
            if leaf != self.bundle.tensor_leaves[number] or tensor.shape != shapes[name] or not finite:
                raise _other_model(f"its tensor {name} is another")
            self._checked.add(name)

    def _rope(self, positions: int) -> tuple[F32, F32]:
        """The table's first rows, as rule 4 gives them."""
        factors: list[float] | None = None
        if ROPE_FACTORS in self._numbers:
            self._check_weights([ROPE_FACTORS])
            factors = self._model.vector(ROPE_FACTORS).tolist()
        return rope_table(self.hyper.rope_base, self.hyper.n_rot, positions, factors)

    def _reference_layer(self, layer: int, entering: F32) -> "_Computed":
        require_ieee()
        alone = _LayerAlone(self._model, layer, entering)
        kept = _KeptLayer()
        _, trap = Context(alone, *self._rope(len(entering))).extend(range(len(entering)), kept)
        length, op = (len(entering), 0) if trap is None else (trap.position, trap.op)
        return _Computed(length=length, trap_op=op, row=kept.row)

    def _native_layer(self, layer: int, entering: F32) -> "_Computed":
        from aos.engine.layer import compute_layer

        found = compute_layer(self.file, self.hyper, layer, entering, self._rope, self.threads)
        width, kv = 4 * self.hyper.width, 2 * self.hyper.kv_width

        def row(position: int) -> tuple[bytes, bytes, bytes]:
            cache = slice(position * kv, (position + 1) * kv)
            residual = found.residuals[position * width : (position + 1) * width]
            return residual, found.keys[cache], found.values[cache]

        length, op = (len(entering), 0) if found.trap is None else found.trap
        return _Computed(length=length, trap_op=op, row=row)

    def _logits(self, output: str, entering: F32) -> tuple[F32, int]:
        """Logits of the positions before the first trap, and its op."""
        rows, trap_op = len(entering), 0
        while True:
            try:
                with np.errstate(all="ignore"):
                    return self._products(output, entering[:rows]), trap_op
            except NumericTrap as trap:
                rows, trap_op = trap.row, trap.op

    def _products(self, output: str, x: F32) -> F32:
        if not len(x):
            return np.zeros((0, self.hyper.n_vocab), dtype=np.float32)
        if not self.native:
            return tail_logits(self._model.with_tail(), x)
        from aos.engine.layer import matrix_product

        norm = self._model.vector("output_norm.weight")
        normed = rms_norm(x, norm, np.float32(self.hyper.eps), Op.OUTPUT_NORM)
        logits = matrix_product(self.file, self.file.tensors[self._numbers[output]], normed)
        check_finite(logits, Op.LOGITS)
        return logits

    def _chosen(self, position: int, logits: F32) -> tuple[list[bytes] | None, int]:
        """The roots of the tail's parts and its token; None and the op where the sampler traps."""
        step, seen = position + 1 - self.bundle.header.n_prompt, self.known[: position + 1]
        params, seed = self.disclosed.params, self.bundle.header.sampling_seed
        try:
            if self.native:
                from aos.engine.layer import native_choice

                token, record = native_choice(logits, seen, step, sampling_params(params, seed))
            else:
                with np.errstate(all="ignore"):
                    choice = choose(logits, seen, step, _rules(params, seed), Op.SAMPLER)
                token, record = choice.token, choice.record
        except NumericTrap as trap:
            return None, trap.op
        parts = (logits.astype("<f4").tobytes(), record, token.to_bytes(4, "little"))
        return [part_root(part, TILE_BYTES) for part in parts], token


_PARTS = ("the residual", "keys", "values")
_ARE = {"the residual": "is another", "keys": "are others", "values": "are others"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Computed:
    """A layer at its first ``length`` positions: ``row`` gives residual, K and V; at the next it traps in ``trap_op``."""

    length: int
    trap_op: int
    row: Callable[[int], tuple[bytes, bytes, bytes]]


class _KeptLayer:
    """A ``Sink`` that keeps a layer."""

    def __init__(self) -> None:
        self._rows: tuple[bytes, bytes, bytes] = (b"", b"", b"")
        self._sizes = (0, 0, 0)

    def embedding(self, first: int, residual: F32) -> None:
        """Nothing of the residual that enters is new."""

    def layer(self, first: int, index: int, residual: F32, keys: np.ndarray, values: np.ndarray) -> None:
        """See ``Sink``."""
        self._sizes = (4 * residual.shape[1], 2 * keys.shape[1], 2 * values.shape[1])
        self._rows = (
            residual.astype("<f4").tobytes(),
            keys.astype("<f2").tobytes(),
            values.astype("<f2").tobytes(),
        )

    def row(self, position: int) -> tuple[bytes, bytes, bytes]:
        """Of one position."""
        a, b, c = (
            data[position * size : (position + 1) * size]
            for data, size in zip(self._rows, self._sizes, strict=True)
        )
        return a, b, c


class _Parts(Model):
    """A model of which nothing is read before it is asked for."""

    def __init__(self, file: GGUF, hyper: HyperParameters) -> None:
        self.file, self.hyper = file, hyper
        self._tensors = {tensor.name: tensor for tensor in file.tensors}
        self._keep = False

    def vector(self, name: str) -> F32:
        """A vector's values."""
        return self._vector(name)

    def with_tail(self) -> Model:
        """With output norm and matrix."""
        self.output_norm = self._vector("output_norm.weight")
        self.output = self._matrix("token_embd.weight" if self.hyper.tied else "output.weight")
        return self


class _LayerAlone(_Parts):
    """The model of one layer whose embedding is the residual that enters it: token t is position t."""

    def __init__(self, whole: _Parts, layer: int, entering: F32) -> None:
        n_ctx = max(1, len(entering))
        super().__init__(whole.file, replace(whole.hyper, n_layers=1, n_ctx=n_ctx))
        self.layers = [self._layer(f"blk.{layer}.")]
        self._entering = entering

    def embedding(self, tokens: list[int]) -> F32:
        return self._entering[tokens]


def hyper_parameters(architecture: str, graph: GraphSizes) -> HyperParameters:
    """The sizes that a manifest names."""
    eps, base = (
        float(np.frombuffer(u32(bits), dtype=">f4")[0]) for bits in (graph.eps_bits, graph.rope_base_bits)
    )
    sizes = {name: getattr(graph, name) for name in graph.__slots__ if not name.endswith("_bits")}
    return HyperParameters(architecture=ARCHITECTURES[architecture], eps=eps, rope_base=base, **sizes)


def sampling_params(params: Params, seed: int) -> SamplingParams:
    """A request's parameters as an engine takes them, under the receipt's sampling seed."""
    return SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repeat_penalty=params.repeat_penalty,
        max_tokens=params.max_tokens,
        stop=params.stop,
        seed=seed,
    )


def _rules(params: Params, seed: int) -> Rules:
    return Rules(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repeat_penalty=params.repeat_penalty,
        seed=seed,
    )


def _not_finite(unit: int, positions: range, entering: F32) -> Difference | None:
    """Rule 10: a unit whose residual is not finite is a trap, and commits to no residual."""
    broken = np.flatnonzero(~np.isfinite(entering).all(axis=1))
    if not broken.size:
        return None
    what = "it commits to a value that is not finite, and did not trap"
    return Difference(unit=unit, position=positions[int(broken[0])], what=what)


def _other_model(what: str) -> Unavailable:
    return Unavailable(
        "audit.other_model",
        f"the file is not the model of this receipt: {what}",
        field="model",
        hint="give the file whose model_id the receipt names (aos model list)",
    )
