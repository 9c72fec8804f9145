"""Fail-open traps: rows 43 to 46."""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from aos.attack.engines import damaged_copy, not_a_number, replayer
from aos.attack.forge import restate
from aos.attack.live import Live
from aos.attack.play import play
from aos.attack.table import Trial, row
from aos.core.answer import Answer, write_answer
from aos.core.receipt import Replayed, verify_answer
from aos.core.statements import Request
from aos.core.trust import load_policy
from aos.engine import load_engine
from aos.errors import Unavailable


@row(
    43,
    "empty state root, tokens, evidence",
    "params.job_type",
    "params.max_tokens",
    "tee.no_evidence",
    "reveal.job_type",
)
async def empty(live: Live, t: Trial) -> None:
    answer, attested = await live.opml(), await live.tee()

    def rootless(core: object) -> object:
        return replace(core, state_root=b"")  # type: ignore[type-var]

    def ended(core: object) -> object:
        return replace(core, finish_reason="stop")  # type: ignore[type-var]

    t.attack(
        "no state root in any seat",
        "params.job_type",
        live.judge(restate(live, answer, core=rootless, peer_core=rootless)),
    )
    nothing = restate(live, answer, tokens=(), core=ended, peer_core=ended)
    t.attack("no tokens in any seat", "params.max_tokens", live.judge(nothing))
    t.attack("no evidence", "tee.no_evidence", live.judge(replace(attested, evidence=None)))
    t.twin("the state root and tokens, told again", live.judge(restate(live, answer)))
    t.twin("the enclave's evidence", live.judge(attested))
    if live.guests:
        job = await play(live)
        seat = job.seats[0]
        await seat.honest_commit()
        core = await seat.core(rootless)
        t.attack("revealed to the dispatcher", "reveal.job_type", await seat.send_reveal(seat.reveal(core)))
        t.twin("a state root revealed", await job.finish_revealing())


@row(44, "data that makes the re-execution crash", "unchecked local-1")
async def crash(live: Live, t: Trial) -> None:
    answer = await live.opml()
    with tempfile.TemporaryDirectory(prefix="aos-attack-") as directory:
        path = Path(directory) / "broken.gguf"
        await asyncio.to_thread(damaged_copy, live.model_path, path, not_a_number)

        def broken(answer: Answer, request: Request) -> Replayed:
            return replayer(load_engine(path, kind="native"))(answer, request)

        t.attack("a model file that no engine loads", "unchecked local-1", live.judge(answer, replay=broken))
    engine = await live.own_engine()
    found = await asyncio.to_thread(live.judge, answer, replay=replayer(engine))
    t.twin("the file that loads", found)


@row(45, "verifier lacks model or network", "unchecked local-1", "unchecked trust-1")
async def lacking(live: Live, t: Trial) -> None:
    answer = await live.opml()

    def no_file(_answer: Answer, _request: Request) -> Replayed:
        raise Unavailable("engine.file_unreadable", "there is no model here")

    t.attack("no model file", "unchecked local-1", live.judge(answer, replay=no_file))
    report = verify_answer(write_answer(answer), trust=None, policy=load_policy("default"))
    missing = tuple(f"unchecked {name}" for name in report.missing if report.verdict == "PARTIAL")
    t.attack("no trust file", "unchecked trust-1", missing or (report.verdict,))
    t.twin("a trust file, and no replay asked for", live.judge(answer))


@row(46, "audit stripped on the way", "accept.tag", missing="audits of layers: nobody is made to take one")
async def stripped(live: Live, t: Trial) -> None:
    answer = await live.single()
    told = restate(live, answer, acceptance=lambda accepted: replace(accepted, tag="suspicion"))
    t.attack("accepted as a suspicion, run without one", "accept.tag", live.judge(told))
    t.twin("run as it was accepted", live.judge(restate(live, answer)))
