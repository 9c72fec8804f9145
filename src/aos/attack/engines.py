"""Model files made wrong, and engines that run them: what an operator that cheats on the model would have."""

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path

from aos.core.answer import Answer
from aos.core.receipt import Replay, Replayed
from aos.core.statements import Request
from aos.engine import load_engine
from aos.engine.gguf import Tensor, read_gguf
from aos.errors import RuleViolation
from aos.ports import Engine, Generation, SamplingParams

Q8_BLOCK = 34
Damage = Callable[[bytearray, Tensor], None]


def other_weight(data: bytearray, tensor: Tensor) -> None:
    """One bit of one weight."""
    data[tensor.offset + 2] ^= 1


def coarser(data: bytearray, tensor: Tensor) -> None:
    """Every weight with the precision of three bits, as a coarser quantisation has."""
    for block in range(tensor.offset, tensor.offset + tensor.size, Q8_BLOCK):
        for place in range(block + 2, block + Q8_BLOCK):
            weight = data[place] - 256 if data[place] > 127 else data[place]
            data[place] = (weight // 32 * 32) & 0xFF


def adapted(data: bytearray, tensor: Tensor) -> None:
    """Every second weight of the first row shifted: an adapter merged into one tensor."""
    for place in range(tensor.offset + 2, tensor.offset + Q8_BLOCK, 2):
        data[place] = (data[place] + 24) & 0xFF if data[place] < 96 else data[place] - 24


def not_a_number(data: bytearray, tensor: Tensor) -> None:
    """The first block's scale is NaN."""
    data[tensor.offset : tensor.offset + 2] = struct.pack("<H", 0x7E00)


def damaged_copy(source: Path, target: Path, damage: Damage, *, all_tensors: bool = False) -> Path:
    """A copy of a model file with ``damage`` done to its first Q8_0 tensor of a block, or to all of them."""
    tensors = [t for t in read_gguf(source).tensors if t.type.name == "Q8_0" and t.name.startswith("blk.")]
    if not tensors:
        raise RuleViolation("attack.model", f"{source} has no Q8_0 weights to change")
    data = bytearray(source.read_bytes())
    for tensor in tensors if all_tensors else tensors[:1]:
        damage(data, tensor)
    target.write_bytes(data)
    return target


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
    target: Engine, draft: Engine, prompt: str, params: SamplingParams, *, salt: bytes
) -> Generation:
    """Exact speculative decoding: ``draft`` proposes, ``target`` keeps of the proposal what it would have chosen, and goes on."""
    tokens = draft.generate(prompt, params, salt=salt).tokens
    while True:
        checked = target.replay(prompt, tokens, params, salt=salt)
        if checked.tokens == tokens and checked.finish_reason != "cancelled":
            return checked
        tokens = checked.tokens
