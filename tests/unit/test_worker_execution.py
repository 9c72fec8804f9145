"""Running an engine on its thread: a run that is given up has left the engine before the next one may begin."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
from engine_models import model_bytes

from aos.engine.reference import ReferenceEngine
from aos.errors import InvalidMessage
from aos.ports import Generation, SamplingParams, TokenEvent
from aos.workers.execution import Work, run_engine

WORK = Work(prompt="what is the", params=SamplingParams(max_tokens=6, temperature=0), nonce=bytes(32))


class SlowEngine:
    """An engine that gives one token and then does not look up until ``look`` is set, as in a long step."""

    profile = "slow/1"
    canonical = True
    model_id = bytes(32)
    n_ctx = 100

    def __init__(self) -> None:
        self.look = threading.Event()
        self.inside = 0
        self.most_inside = 0
        self.was_cancelled: list[bool] = []

    def tokenize(self, text: str) -> tuple[int, ...]:
        return (1,)

    def generate(
        self,
        prompt: str,
        params: SamplingParams,
        *,
        salt: bytes,
        on_token: Callable[[TokenEvent], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Generation:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        assert on_token is not None
        assert cancelled is not None
        on_token(TokenEvent(index=0, token=1, text="a"))
        assert self.look.wait(60)
        self.was_cancelled.append(cancelled())
        self.inside -= 1
        return Generation(
            prompt_tokens=(1,), tokens=(1,), text="a", finish_reason="cancelled", state_root=bytes(32)
        )

    def replay(
        self,
        prompt: str,
        tokens: Sequence[int],
        params: SamplingParams,
        *,
        salt: bytes,
        cancelled: bool = False,
    ) -> Generation:
        raise AssertionError("nobody replays here")


async def collect(engine: SlowEngine | ReferenceEngine, work: Work, began: asyncio.Event) -> list[object]:
    seen: list[object] = []
    async with aclosing(run_engine(engine, work)) as events:
        async for event in events:
            seen.append(event)
            began.set()
    return seen


async def test_a_real_run_gives_its_tokens_and_then_itself(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(model_bytes("tiny-f16"))
    engine = ReferenceEngine(path)
    *tokens, last = await collect(engine, WORK, asyncio.Event())
    assert isinstance(last, Generation)
    assert last == engine.generate(WORK.prompt, WORK.params, salt=WORK.nonce)
    assert [event.token for event in tokens if isinstance(event, TokenEvent)] == list(last.tokens)
    assert len(tokens) == len(last.tokens)


async def test_what_the_engine_refuses_reaches_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(model_bytes("tiny-f16"))
    bad = Work(prompt="a", params=SamplingParams(temperature=1), nonce=bytes(32))
    with pytest.raises(InvalidMessage) as caught:
        await collect(ReferenceEngine(path), bad, asyncio.Event())
    assert caught.value.code == "engine.params"


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_however_often_a_run_is_cancelled_it_ends_only_when_the_engine_is_free(times: int) -> None:
    engine, began = SlowEngine(), asyncio.Event()
    run = asyncio.create_task(collect(engine, WORK, began))
    await began.wait()
    for _ in range(times):
        run.cancel()
        assert not (await asyncio.wait({run}, timeout=0.05))[0], "the engine is still at work"
        assert engine.inside == 1
    engine.look.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert engine.inside == 0
    assert engine.was_cancelled == [True], "the engine was told"


async def test_the_next_run_finds_the_engine_free() -> None:
    engine, began = SlowEngine(), asyncio.Event()
    first = asyncio.create_task(collect(engine, WORK, began))
    await began.wait()
    first.cancel()
    await asyncio.wait({first}, timeout=0.05)
    first.cancel()

    async def second() -> list[object]:
        await asyncio.wait({first})
        return await collect(engine, WORK, asyncio.Event())

    following = asyncio.create_task(second())
    await asyncio.sleep(0)
    engine.look.set()
    assert isinstance((await following)[-1], Generation)
    assert engine.most_inside == 1
