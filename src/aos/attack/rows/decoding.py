"""Prompt, output, decoding: rows 11 to 19."""

import asyncio
import json
import unicodedata
from dataclasses import replace
from typing import Any

from aos.attack.engines import coarser, replayer, speculative
from aos.attack.forge import restate
from aos.attack.live import PARAMS, Live
from aos.attack.play import compute, play, sampling, seed_of
from aos.attack.table import Trial, row
from aos.core import hashes
from aos.core.answer import write_answer
from aos.core.statements import sign
from aos.errors import RuleViolation
from aos.ports import Engine, Generation

WILD = {"temperature": 1.5, "top_p": 1.0, "max_tokens": 24}
"""Parameters under which a choice is open, so that another sampler chooses otherwise."""


@row(
    11,
    "prompt changed by D",
    "io.request_hash",
    "accept.foreign",
    missing="a dispatcher that lies to a running operator",
)
async def changed_prompt(live: Live, t: Trial) -> None:
    answer = await live.opml()
    other = answer.request.replace("What is AI?", "What is it?")
    t.attack("another prompt in the file", "io.request_hash", live.judge(replace(answer, request=other)))
    asked = hashes.request_hash(answer.nonce, other.encode())
    told = restate(
        live,
        replace(answer, request=other),
        core=lambda core: replace(core, request_hash=asked),
        peer_core=lambda core: replace(core, request_hash=asked),
    )
    t.attack("all operators sign for the other prompt", "accept.foreign", live.judge(told))
    t.twin("the prompt that was accepted", live.judge(answer))


@row(
    12,
    "twins: duplicate keys, 1.0/1, trailing newline, NFC/NFD",
    "encoding.not_canonical",
    "encoding.duplicate_key",
    "encoding.float",
    "io.request_hash",
)
async def twins(live: Live, t: Trial) -> None:
    answer = await live.accented()
    data = write_answer(answer)
    decomposed = unicodedata.normalize("NFD", answer.request)
    body = json.dumps(live.seed_body()).encode()
    t.attack("a line end behind it", "encoding.not_canonical", live.judge(data + b"\n"))
    t.attack("spaces in it", "encoding.not_canonical", live.judge(json.dumps(json.loads(data)).encode()))
    t.attack("a member twice", "encoding.duplicate_key", live.judge(data[:-1] + b',"v":1}'))
    t.attack("1.0 for 1", "encoding.float", live.judge(data.replace(b'"v":1', b'"v":1.0', 1)))
    t.attack("the prompt decomposed", "io.request_hash", live.judge(replace(answer, request=decomposed)))
    t.attack(
        "a submission with a member twice",
        "encoding.duplicate_key",
        await live.post("/api/job/submit", body[:-1] + b',"tag":""}'),
    )
    t.twin("the file as it is", live.judge(data))
    t.twin("the submission as it is", await live.post("/api/job/submit", body))


@row(13, "output token replaced after signing", "io.tokens_hash", "io.response_hash", "reveal.content")
async def replaced_token(live: Live, t: Trial) -> None:
    answer = await live.opml()
    tokens = (*answer.tokens[:-1], answer.tokens[-1] ^ 1)
    t.attack("another token", "io.tokens_hash", live.judge(replace(answer, tokens=tokens)))
    t.attack("another word", "io.response_hash", live.judge(replace(answer, text=answer.text + ".")))
    t.twin("the signed tokens", live.judge(answer))
    if live.guests:
        job = await play(live)
        seat = job.seats[0]
        await seat.honest_commit()
        core, own = await seat.core(), seat.generation
        for name, changed in (
            ("another token revealed", {"tokens": [*own.tokens[:-1], own.tokens[-1] ^ 1]}),
            ("another text revealed", {"text": own.text + "."}),
        ):
            t.attack(name, "reveal.content", await seat.send_reveal(seat.reveal(core, **changed)))
        t.twin("the signed tokens revealed", await job.finish_revealing())


@row(
    14,
    "early fake end, over-long output",
    "params.max_tokens",
    "params.stop",
    "params.finish_reason",
    "chunk.flood",
    "reveal.member",
)
async def wrong_end(live: Live, t: Trial) -> None:
    answer = await live.stopped()
    told = restate(live, answer)
    t.twin("the same statements, told again", live.judge(told))
    longer = answer.tokens * (PARAMS["max_tokens"] // len(answer.tokens) + 1)
    t.attack(
        "more tokens than asked for", "params.max_tokens", live.judge(restate(live, answer, tokens=longer))
    )
    past = answer.text + live.stop + " and on"
    spoken = hashes.response_hash(answer.nonce, past)
    t.attack(
        "on past the stop string",
        "params.stop",
        live.judge(
            restate(
                live,
                replace(answer, text=past),
                core=lambda core: replace(core, response_hash=spoken),
                peer_core=lambda core: replace(core, response_hash=spoken),
            )
        ),
    )
    cut = restate(live, answer, core=lambda core: replace(core, finish_reason="cancelled"))
    t.attack("an end that nobody asked for", "params.finish_reason", live.judge(cut))
    if live.guests:
        job = await play(live)
        seat = job.seats[0]
        flood = replace(
            seat.chunks()[0].statement, index=2**20, previous=bytes(32), final=False, finish_reason=""
        )
        signed = sign(seat.guest.keys.signer, replace(flood, tokens=(1,) * 8))
        t.attack(
            "a stream without end",
            "chunk.flood",
            await seat.guest.call("stream_chunk", {"chunk": signed.to_json()}),
        )
        await seat.honest_commit()
        core = await seat.core(lambda core: replace(core, finish_reason="cancelled"))
        t.attack("revealed as cancelled", "reveal.member", await seat.send_reveal(seat.reveal(core)))
        t.twin("an honest stream", await job.finish_revealing())


async def _sampled_otherwise(live: Live, t: Trial, name: str, **changes: Any) -> None:
    """A guest signs the parameters that were asked for and samples with others; only a replay can see it."""
    replay = replayer(live.guests_engine())
    job = await play(live, params=WILD)
    seat = job.seats[0]
    lie, pieces = await compute(live, seat.body, **changes)
    if lie.tokens == seat.generation.tokens:
        raise RuleViolation("attack.no_lie", "the other sampler happened to choose the same tokens")
    seat.generation, seat.pieces = lie, pieces
    t.attack(name, "local.tokens", await job.finish(replay=replay))
    honest = await play(live, params=WILD)
    t.twin("sampled as asked", await honest.finish(replay=replay))


@row(15, "cheap model writes, big one scores", "local.tokens", guests=True)
async def cheap_writer(live: Live, t: Trial) -> None:
    real = live.guests_engine()
    job = await play(live, params=WILD)
    seat = job.seats[0]
    request = seat.request
    params, prompt = sampling(request, seed_of(seat.body, request)), request.job.prompt
    cheap = await _cheap(live)
    written = await asyncio.to_thread(cheap.generate, prompt, params, salt=seat.nonce)
    scored = await asyncio.to_thread(real.replay, prompt, written.tokens, params, salt=seat.nonce)
    seat.take(replace(written, state_root=scored.state_root))
    t.attack("scored by the registered weights", "local.tokens", await job.finish(replay=replayer(real)))
    honest = await play(live, params=WILD)
    t.twin("written by them", await honest.finish(replay=replayer(real)))


@row(16, "loose speculative decoding", "local.tokens", guests=True)
async def loose_speculation(live: Live, t: Trial) -> None:
    real, draft = live.guests_engine(), await _cheap(live)
    params = WILD | {"seed": 7}
    for loose in (True, False):
        job = await play(live, params=params)
        seat = job.seats[0]
        request = seat.request
        asked, prompt = sampling(request, seed_of(seat.body, request)), request.job.prompt
        own = seat.generation
        exact = await asyncio.to_thread(speculative, real, draft, prompt, asked, salt=seat.nonce)
        if exact != own:
            raise RuleViolation("attack.speculation", "exact speculation gave another run")
        proposed = await asyncio.to_thread(draft.generate, prompt, asked, salt=seat.nonce)
        if loose:
            seat.take(_accepting_one(own, proposed))
            t.attack("a near miss accepted", "local.tokens", await job.finish(replay=replayer(real)))
        else:
            seat.take(exact)
            t.twin("only what it would have chosen", await job.finish(replay=replayer(real)))


def _accepting_one(own: Generation, proposed: Generation) -> Generation:
    """The run with the first token that differs taken from the draft."""
    pairs = enumerate(zip(own.tokens, proposed.tokens, strict=False))
    place = next((index for index, (ours, theirs) in pairs if ours != theirs), None)
    if place is None:
        raise RuleViolation("attack.no_lie", "the draft model happened to choose the same tokens")
    tokens = (*own.tokens[:place], proposed.tokens[place], *own.tokens[place + 1 :])
    return replace(own, tokens=tokens)


async def _cheap(live: Live) -> Engine:
    """Three-bit weights that say they are the guests' model."""
    return await live.wrong_engine("three-bit weights", coarser, all_tensors=True)


@row(17, "seed chosen after seeing outputs", "seed.value", "reveal.member")
async def chosen_seed(live: Live, t: Trial) -> None:
    answer = await live.opml()

    def lucky(core: Any) -> Any:
        return replace(core, sampling_seed="7")

    t.attack(
        "all operators sign a seed of their choice",
        "seed.value",
        live.judge(restate(live, answer, core=lucky, peer_core=lucky)),
    )
    t.twin("the draw's seed, told again", live.judge(restate(live, answer)))
    if live.guests:
        job = await play(live)
        seat = job.seats[0]
        await seat.honest_commit()
        t.attack(
            "revealed to the dispatcher",
            "reveal.member",
            await seat.send_reveal(seat.reveal(await seat.core(lucky))),
        )
        t.twin("the draw's seed revealed", await job.finish_revealing())


@row(18, "temperature or top_p altered", "params.hash", "local.tokens")
async def other_parameters(live: Live, t: Trial) -> None:
    answer = await live.opml()
    other = bytes(32)

    def greedy(core: Any) -> Any:
        return replace(core, params_hash=other)

    t.attack(
        "all operators sign other parameters",
        "params.hash",
        live.judge(restate(live, answer, core=greedy, peer_core=greedy)),
    )
    t.twin("the request's parameters, told again", live.judge(restate(live, answer)))
    if live.guests:
        await _sampled_otherwise(
            live, t, "signed as asked, sampled at another temperature", temperature=10_000_000
        )


@row(19, "bias or watermark in the logits", "local.tokens", guests=True)
async def biased(live: Live, t: Trial) -> None:
    await _sampled_otherwise(live, t, "logits of used tokens pressed down", repeat_penalty=9_000_000)
