"""One layer, one product, one choice on the native side, without the rest of the model (for ``aos.engine.audit``)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aos.core.arithmetic.floats import F32, NumericTrap
from aos.engine import _native
from aos.engine.forward import Op
from aos.engine.gguf import GGUF, Tensor
from aos.engine.llama import HyperParameters
from aos.engine.native import chosen_isa, placed, sampling_rules, translated
from aos.ports import SamplingParams

_F32_CODE = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResult:
    """Of every position before the trap, if there is one: residuals (float32), K and V (binary16), one after the other.
    ``trap`` is (position, op).
    """

    residuals: bytes
    keys: bytes
    values: bytes
    trap: tuple[int, int] | None


def compute_layer(
    file: GGUF,
    hyper: HyperParameters,
    layer: int,
    entering: F32,
    rope: Callable[[int], tuple[F32, F32]],
    threads: int,
) -> LayerResult:
    """A layer over the residuals that enter it, [positions ≥ 1, width], all finite, from position 0 on.

    The native side sees a model of that one layer whose embedding, float32, is those residuals. ``rope`` gives that many rows
    of the rotary table. Raises InvalidMessage ``engine.*``, Unavailable ``engine.memory``.
    """
    count = len(entering)
    cos, sin = rope(count + 1)  # a prompt leaves room for a token
    with translated():
        model = _native.Model(
            isa=chosen_isa(),
            threads=threads,
            alone_below=_native.ALONE_BELOW,
            cos=cos,
            sin=sin,
            n_ctx=count + 1,
            n_layers=1,
            n_vocab=count,
            width=hyper.width,
            ff_width=hyper.ff_width,
            n_heads=hyper.n_heads,
            n_kv_heads=hyper.n_kv_heads,
            head_width=hyper.head_width,
            n_rot=hyper.n_rot,
            eps=hyper.eps,
            rope_neighbours=not hyper.architecture.rope_halves,
        )
        raw = np.ascontiguousarray(entering, dtype="<f4").view(np.uint8).reshape(-1)
        model.set_matrix(0, "token_embd", _F32_CODE, count, hyper.width, raw)
        model.set_vector(0, "output_norm", np.ones(hyper.width, dtype=np.float32))
        for tensor in file.tensors:
            if not tensor.name.startswith(f"blk.{layer}."):
                continue
            _, name = placed(tensor)
            data = np.frombuffer(file.tensor_bytes(tensor), dtype=np.uint8)
            if len(tensor.shape) == 1:
                model.set_vector(0, name, data.view("<f4").astype(np.float32))
            else:
                model.set_matrix(0, name, tensor.type.code, tensor.rows, tensor.columns, data)
        model.seal()
        batch = _native.Batch(model)
        run = _native.Run(batch, list(range(count)), sampling_rules(SamplingParams()))
        run.watch([1])
        for at in range(0, count, _native.STEP):
            batch.extend([(run, list(range(at, min(at + _native.STEP, count))))])
            if run.trap is not None:
                break
        trap = None if run.trap is None else (run.trap[0], run.trap[2])
        length = count if trap is None else trap[0]
        keys, values = run.cache(0, 0, length)
        return LayerResult(residuals=run.watched(1), keys=keys, values=values, trap=trap)


def matrix_product(file: GGUF, tensor: Tensor, x: F32) -> F32:
    """Rule 2 for rows of ``x`` [positions ≥ 1, columns]: [positions, rows]."""
    raw = np.frombuffer(file.tensor_bytes(tensor), dtype=np.uint8)
    with translated(tensor.name):
        return _native.product(chosen_isa(), tensor.type.code, tensor.rows, raw, np.ascontiguousarray(x))


def native_choice(logits: F32, seen: Sequence[int], step: int, params: SamplingParams) -> tuple[int, bytes]:
    """Rule 9: token and sampler record. Raises NumericTrap."""
    with translated():
        token, record = _native.choose(
            chosen_isa(), np.ascontiguousarray(logits), list(seen), step, sampling_rules(params)
        )
    if token < 0:
        raise NumericTrap(Op.SAMPLER, 0)
    return token, record
