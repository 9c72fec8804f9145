"""Model, weights, numerics: rows 2, 3, 4, 8, 9, 10."""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from aos.adapters.model_store import add_model
from aos.attack.engines import (
    Damage,
    adapted,
    coarser,
    damaged_copy,
    load,
    not_a_number,
    other_weight,
    replayer,
)
from aos.attack.forge import resigned, restate
from aos.attack.live import Live, refusal
from aos.attack.play import play, sampling, seed_of
from aos.attack.rows.disputes import told
from aos.attack.table import Trial, row
from aos.core import hashes
from aos.engine import load_engine, read_manifest

OTHER = b"\x5a" * 32


@row(2, "smaller model under the registered name", "params.model", "model.name_taken", "reveal.member")
async def smaller_model(live: Live, t: Trial) -> None:
    answer = await live.single()
    keys = live.operators[answer.receipt.core.operator]
    t.attack(
        "an operator signs another model",
        "params.model",
        live.judge(resigned(live, answer, keys.signer, model_id=OTHER)),
    )
    t.twin("the requested model", live.judge(answer))
    with tempfile.TemporaryDirectory(prefix="aos-attack-") as directory:
        place = Path(directory)
        other = await asyncio.to_thread(
            damaged_copy, live.model_path, place / "other.gguf", coarser, all_tensors=True
        )

        def register(path: Path) -> str:
            return refusal(
                lambda: add_model(
                    place,
                    path,
                    name=live.model,
                    read_manifest=lambda p, progress: read_manifest(p, progress=progress),
                )
            )

        t.twin("a name registered", await asyncio.to_thread(register, live.model_path))
        t.attack(
            "the name pointed at another file", "model.name_taken", await asyncio.to_thread(register, other)
        )
    if live.guests:
        job = await play(live)
        seat = job.seats[0]
        await seat.honest_commit()
        core = await seat.core(lambda core: replace(core, model_id=OTHER))
        t.attack("revealed to the dispatcher", "reveal.member", await seat.send_reveal(seat.reveal(core)))
        t.twin("the job's own model", await job.finish_revealing())


async def _run_with(live: Live, t: Trial, name: str, damage: Damage, *, all_tensors: bool) -> None:
    """A guest runs a file changed by ``damage`` under the registered name; a replay with the real file must see it."""
    real = live.guests_engine()
    wrong = await live.wrong_engine(name, damage, all_tensors=all_tensors)
    for engine, label in ((wrong, name), (real, "the registered weights")):
        job = await play(live)
        seat = job.seats[0]
        request = seat.request
        seat.take(
            await asyncio.to_thread(
                engine.generate,
                request.job.prompt,
                sampling(request, seed_of(seat.body, request)),
                salt=seat.nonce,
            )
        )
        judged = await job.finish(replay=replayer(real))
        if engine is wrong:
            t.attack(label, ("local.tokens", "local.state_root"), judged)
        else:
            t.twin(label, judged)


@row(
    3,
    "coarser quantisation under the right name",
    "local.tokens",
    "local.state_root",
    "tile.weights",
    guests=True,
)
async def coarser_weights(live: Live, t: Trial) -> None:
    await _run_with(live, t, "three-bit weights", coarser, all_tensors=True)
    await told(live, t, "among operators that compute", "coarse", "tile.weights", unit=1)


@row(4, "adapter merged silently", "local.tokens", "local.state_root", "tile.weights", guests=True)
async def merged_adapter(live: Live, t: Trial) -> None:
    await _run_with(live, t, "one tensor shifted", adapted, all_tensors=False)
    await told(live, t, "among operators that compute", "adapter", "tile.weights", unit=1)


@row(
    8,
    "overflow, NaN, infinity by weights or prompt",
    "engine.not_finite",
    missing="a prompt that overflows: with this model none does",
)
async def not_finite(live: Live, t: Trial) -> None:
    with tempfile.TemporaryDirectory(prefix="aos-attack-") as directory:
        place = Path(directory)
        for name, damage in (("nan", not_a_number), ("fine", other_weight)):
            path = place / f"{name}.gguf"
            await asyncio.to_thread(damaged_copy, live.model_path, path, damage)
            found = await asyncio.to_thread(refusal, lambda path=path: load_engine(path, kind="native"))  # type: ignore[misc]
            if name == "nan":
                t.attack("a scale that is no number", "engine.not_finite", found)
            else:
                t.twin("another weight, finite", found)


@row(
    9,
    "other batch, chunk, prefill",
    must_fail=False,
    missing="batches, prefix caches and thread counts: tests/determinism has them",
)
async def other_splits(live: Live, t: Trial) -> None:
    streamed, blind = await live.opml(), await live.blind()
    t.twin("operators with different instruction sets agree", live.judge(streamed))
    t.twin("token by token in every seat", live.judge(blind))
    replay = replayer(await live.own_engine())
    t.twin("all positions in one prefill, here", await asyncio.to_thread(live.judge, streamed, replay=replay))


@row(10, "tokenizer or template swapped", "agree.result", "unchecked local-1")
async def other_tokenizer(live: Live, t: Trial) -> None:
    answer = await live.opml()
    lie = hashes.response_hash(answer.nonce, "No.")
    told = restate(live, answer, peer_core=lambda core: replace(core, response_hash=lie))
    t.attack("other words for the same tokens", "agree.result", live.judge(told))
    t.twin("the same statements, told again", live.judge(restate(live, answer)))
    with tempfile.TemporaryDirectory(prefix="aos-attack-") as directory:
        path = Path(directory) / "drifted.gguf"
        await asyncio.to_thread(damaged_copy, live.model_path, path, other_weight)
        drifted = await load(path, live.state / "cache")
    engine = await live.own_engine()
    t.attack(
        "a verifier with another file: could not check, and blames nobody",
        "unchecked local-1",
        await asyncio.to_thread(live.judge, answer, replay=replayer(drifted)),
    )
    t.twin("a verifier with the file", await asyncio.to_thread(live.judge, answer, replay=replayer(engine)))
