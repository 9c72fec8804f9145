"""Verifiers and incentives, and stories that change: rows 35, 36, 39, 48."""

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

from aos.attack.court import COPY, tried
from aos.attack.forge import countersigned_again
from aos.attack.live import Live
from aos.attack.play import Play, Seat, play, seated, submit_to_guests
from aos.attack.rows.disputes import convicted_around
from aos.attack.rows.games import stories_in_games
from aos.attack.table import Trial, row
from aos.core.answer import read_answer
from aos.core.statements import sign
from aos.ports import Generation

WRONG_ROOT = hashlib.sha256(b"what two colluding operators agreed on").digest()


@row(35, "lazy operator copies before the reveal", "reveal.commitment", guests=True)
async def lazy_copy(live: Live, t: Trial) -> None:
    job = await play(live, seats=2)
    worker, lazy = job.seats
    await worker.honest_commit()
    copied = lazy.commit(commitment=worker.commitment())
    await lazy.send_commit(copied)
    body = worker.reveal(await worker.core())
    await worker.send_reveal(body)
    # By now it knows what the other revealed, salt and all; its own commitment still names the other.
    lazy.salt = worker.salt
    t.attack(
        "a commitment copied", "reveal.commitment", await lazy.send_reveal(lazy.reveal(await lazy.core()))
    )
    await job.status()
    t.twin("who worked is paid alone", live.judge(await job.file()))
    t.twin("two that worked", await (await play(live, seats=2)).finish())


@row(
    36,
    "reveals nothing, late, or something else",
    "reveal.commitment",
    "reveal.not_expected",
    guests=True,
)
async def bad_reveals(live: Live, t: Trial) -> None:
    job = await play(live, seats=2)
    honest, other = job.seats
    await honest.honest_commit()
    await other.honest_commit()
    own = other.generation
    other.generation = replace(own, state_root=WRONG_ROOT)
    found = await other.send_reveal(other.reveal(await other.core()))
    t.attack("something else than committed", "reveal.commitment", found)
    other.generation = own
    found = await other.send_reveal(other.reveal(await other.core()))
    t.attack("the right thing after that", "reveal.not_expected", found)
    await honest.honest_reveal()
    await job.status()
    t.twin("the other seat alone", live.judge(await job.file()))
    job = await play(live, seats=2)
    honest, silent = job.seats
    for seat in job.seats:
        await seat.honest_commit()
    await honest.honest_reveal()
    late = silent.reveal(await silent.core())
    await job.status()  # the dispatcher has waited for it as long as it waits
    t.attack("too late", "reveal.not_expected", await silent.send_reveal(late))
    t.twin("the seat that revealed in time", live.judge(await job.file()))


async def _all_reveal(job: Play, results: list[Generation]) -> None:
    for seat, result in zip(job.seats, results, strict=True):
        seat.generation = result
        await seat.honest_commit()
    for seat in job.seats:
        await seat.honest_reveal()
    await job.status()


@row(
    39,
    "colluding majority against one honest",
    "agree.disputed",
    "agree.state_root",
    "around.tokens",
    guests=True,
)
async def majority(live: Live, t: Trial) -> None:
    job = await play(live, seats=3)
    right = job.seats[0].generation
    wrong = replace(right, state_root=WRONG_ROOT)
    await _all_reveal(job, [wrong, right, wrong])
    data = await job.file()
    t.attack("two of three sign the same lie", "agree.disputed", live.judge(data))
    told = await asyncio.to_thread(_covered_up, live, data)
    t.attack("and the dispatcher says that they agreed", "agree.state_root", told)
    t.twin("three that computed it", await (await play(live, seats=3)).finish())
    hearing = await tried(live, "token", COPY, COPY, COPY)
    for number, colluding in enumerate(hearing.accused, start=1):
        await convicted_around(t, f"four of seven, the {number}.", colluding, "around.tokens")
    t.twin("the minority's answer, without them", await hearing.honest_result())


def _covered_up(live: Live, data: bytes) -> tuple[str, ...]:
    answer = read_answer(data)
    return live.judge(countersigned_again(live, answer, lambda c: replace(c, outcome="agreed")))


@row(
    48,
    "a story that changes",
    "equivocation.claim",
    "equivocation.chunk",
    "equivocation.commit",
    "equivocation.receipt",
    "dispute.contradiction",
    "dispute.two_unit_roots",
    "dispute.two_state_roots",
    guests=True,
)
async def two_stories(live: Live, t: Trial) -> None:
    accepted, key = await submit_to_guests(live)
    guest = live.guests[0]
    claim = guest.claim(await guest.call_of(key))
    t.twin("one claim", await guest.send_claim(claim))
    decline = replace(claim, answer="decline", reason="capacity", pi=b"")
    t.attack("a claim, then a decline", "equivocation.claim", await guest.send_claim(decline))
    job = await seated(live, accepted, key, claimed=frozenset({guest.node_id}))
    seat: Seat = job.seats[0]
    await seat.stream()
    first = seat.chunks()[0].statement
    other = sign(seat.guest.keys.signer, replace(first, text=first.text + "?"))
    t.attack(
        "a second text for the same chunk",
        "equivocation.chunk",
        await seat.guest.call("stream_chunk", {"chunk": other.to_json()}),
    )
    t.twin("one commit", await seat.send_commit())
    second = seat.commit(commitment=seat.commitment(salt=bytes(32)))
    t.attack("a second commit", "equivocation.commit", await seat.send_commit(second))
    core = await seat.core()
    t.twin("one receipt", await seat.send_reveal(seat.reveal(core)))
    later: Any = replace(core, finished_at=core.finished_at + 1)
    t.attack("a second receipt", "equivocation.receipt", await seat.send_reveal(seat.reveal(later)))
    await job.status()
    t.twin("the first story stands", live.judge(await job.file()))
    await stories_in_games(live, t)
