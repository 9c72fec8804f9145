"""Model files made wrong, and engines that run them: what an operator that cheats on the model would have."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aos.core.answer import Answer
from aos.core.receipt import Replay, Replayed
from aos.core.statements import Prompt, Request
from aos.engine import load_engine
from aos.engine.gguf import Tensor, read_gguf
from aos.errors import RuleViolation
from aos.ports import Engine, Generation, SamplingParams

Q8_BLOCK = 34
Bytes = NDArray[np.uint8]
Damage = Callable[[Bytes], None]
"""Changes the blocks of one Q8_0 tensor, one a row: two bytes of scale, 32 signed weights."""


def other_weight(blocks: Bytes) -> None:
    """One bit of one weight."""
    blocks[0, 2] ^= 1


def coarser(blocks: Bytes) -> None:
    """Every weight with the precision of three bits, as a coarser quantisation has."""
    blocks[:, 2:] &= 0xE0


def adapted(blocks: Bytes) -> None:
    """Every second weight of the first block shifted: an adapter merged into one tensor."""
    weights = blocks[0, 2::2].view(np.int8)
    weights[:] = np.where(weights < 96, weights + 24, weights - 24)


def not_a_number(blocks: Bytes) -> None:
    """The first block's scale is NaN."""
    blocks[0, :2] = (0x00, 0x7E)


def damaged_copy(source: Path, target: Path, damage: Damage, *, all_tensors: bool = False) -> Path:
    """A copy of a model file with ``damage`` done to its first Q8_0 tensor of a layer, or to all of them."""
    data = bytearray(source.read_bytes())
    damage_blocks(data, read_gguf(source).tensors, damage, all_tensors=all_tensors)
    target.write_bytes(data)
    return target


def damage_blocks(data: bytearray, tensors: Sequence[Tensor], damage: Damage, *, all_tensors: bool) -> None:
    """``damage`` to a model file's bytes. Raises RuleViolation ``attack.model`` where it has no such weights."""
    wanted = [t for t in tensors if t.type.name == "Q8_0" and t.name.startswith("blk.")]
    if not wanted:
        raise RuleViolation("attack.model", "the model has no Q8_0 weights to change")
    whole = np.frombuffer(data, dtype=np.uint8)
    for tensor in wanted if all_tensors else wanted[:1]:
        damage(whole[tensor.offset : tensor.offset + tensor.size].reshape(-1, Q8_BLOCK))


async def load(path: Path, cache: Path) -> Engine:
    """The native engine with a file."""
    return await asyncio.to_thread(load_engine, path, kind="native", cache_dir=cache)


def under_name(engine: Engine, model_id: bytes) -> Engine:
    """The engine, saying in every state root that it is another model: its lie is then in the numbers alone."""
    engine._model_id = model_id  # type: ignore[attr-defined]
    return engine


def replayer(engine: Engine) -> Replay:
    """Re-executes an answer with ``engine``, as `aos verify --replay` does."""

    def replay(answer: Answer, request: Request) -> Replayed:
        core, params = answer.receipt.core, request.job.params
        if engine.model_id != core.model_id:
            raise RuleViolation("replay.other_model", "this engine has another model than the receipt")
        if engine.profile != core.engine:
            raise RuleViolation("replay.other_engine", f"the receipt is of engine {core.engine}")
        run = engine.replay(
            request.job.prompt,
            answer.tokens,
            SamplingParams(
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                min_p=params.min_p,
                repeat_penalty=params.repeat_penalty,
                max_tokens=params.max_tokens,
                stop=params.stop,
                seed=int(core.sampling_seed),
            ),
            salt=answer.nonce,
        )
        return Replayed(
            prompt_tokens=run.prompt_tokens,
            tokens=run.tokens,
            text=run.text,
            finish_reason=run.finish_reason,
            state_root=run.state_root,
        )

    return replay


def speculative(
    target: Engine, draft: Engine, prompt: Prompt, params: SamplingParams, *, salt: bytes
) -> Generation:
    """Exact speculative decoding: ``draft`` proposes, ``target`` keeps of the proposal what it would have chosen, and goes on."""
    tokens = draft.generate(prompt, params, salt=salt).tokens
    while True:
        checked = target.replay(prompt, tokens, params, salt=salt)
        if checked.tokens == tokens and checked.finish_reason != "cancelled":
            return checked
        tokens = checked.tokens
