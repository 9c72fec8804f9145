"""Dispatcher, links, clocks: rows 55 to 58."""

import secrets
from collections.abc import Callable
from dataclasses import replace

from aos.attack.forge import restate
from aos.attack.guest import Guest
from aos.attack.live import Live, Stolen
from aos.attack.play import play
from aos.attack.table import ACCEPTED, Trial, row
from aos.core.clock import MAX_LEAP, VectorClock
from aos.core.envelope import LinkHeader

HEARTBEAT = {"capacity": 1, "running": 0, "draining": False}


@row(
    55,
    "another operator's result or channel",
    "link.not_registered",
    "link.wrong_sender",
    "link.wrong_origin",
    "link.foreign_network",
    "link.replayed",
    "link.wrong_session",
    "signature.wrong_signer",
    "seat.none",
    "worker.unauthorised",
    "token.invalid",
)
async def anothers_channel(live: Live, t: Trial) -> None:
    stranger = Guest(
        live.url,
        network=live.network,
        dispatcher=live.dispatcher,
        keys=Stolen(signer=secrets.token_bytes(32), vrf=secrets.token_bytes(32)),
    )
    victim = next(iter(live.operators))
    t.attack("an operator that nobody registered", "link.not_registered", await stranger.connect())
    for name, code, bend in (
        ("a registered operator's name", "link.wrong_sender", lambda c: replace(c, node_id=victim)),
        (
            "another site's address",
            "link.wrong_origin",
            lambda c: replace(c, origin="http://evil.example:80"),
        ),
        ("another network", "link.foreign_network", lambda c: replace(c, network="elsewhere")),
        ("an old challenge", "link.replayed", lambda c: replace(c, dispatcher_nonce=bytes(32))),
    ):
        t.attack(name, code, await stranger.connect(statement=bend))
    t.attack("a worker without its token", "worker.unauthorised", await live.worker_status("x" * 43))
    t.twin("a worker with its token", await live.worker_status(live.worker_token()))
    body = live.seed_body()
    t.attack(
        "a project without its token",
        "token.invalid",
        await live.post("/api/job/submit", body | {"verify": "x" * 43}),
    )
    t.twin("a project with its token", await live.post("/api/job/submit", body))
    if live.guests:
        one, two = live.guests[0], live.guests[1]
        job = await play(live)
        seat = job.seats[0]
        other = next(guest for guest in live.guests if guest is not seat.guest)
        theirs = replace(seat, guest=other)
        t.attack("a commit without a seat", "seat.none", await theirs.send_commit())
        t.twin("the seat's own commit", await job.finish())
        t.attack(
            "a frame of another operator",
            "signature.wrong_signer",
            await one.call("heartbeat", HEARTBEAT, key=two.keys.signer),
        )
        await one.connect()
        t.attack(
            "a frame of another session",
            "link.wrong_session",
            await one.call("heartbeat", HEARTBEAT, header=lambda h: replace(h, session=bytes(32))),
        )
        t.twin("its own link", await one.connect())
        t.twin("a frame of its own", await one.call("heartbeat", HEARTBEAT))


@row(
    56,
    "clock rolled back, constant, skipped, forged",
    "clock.equivocation",
    "clock.rolled_back",
    "clock.own_entry_mismatch",
    "clock.forged_entry",
    "link.skipped",
    "clock.skipped",
    "clock.order",
)
async def clocks(live: Live, t: Trial) -> None:
    answer = await live.single()
    first = {"1": "1"}
    early = restate(live, answer, countersign=lambda c: replace(c, clock=first))
    t.attack("countersigned before it was revealed", "clock.order", live.judge(early))
    early = restate(live, answer, draw_record=lambda r: replace(r, clock=first))
    t.attack("drawn before it was called", "clock.order", live.judge(early))
    t.twin("the clocks as they were", live.judge(restate(live, answer)))
    if live.guests:
        guest = live.guests[0]

        def clock(**counts: int) -> Callable[[LinkHeader], LinkHeader]:
            return lambda header: replace(header, clock=_with(header.clock, guest.node, counts))

        for name, code, bend in (
            ("constant", "clock.equivocation", clock(own=-1)),
            ("rolled back", "clock.rolled_back", clock(own=-2)),
            ("without its own entry", "clock.own_entry_mismatch", clock(own=-(10**9))),
            ("forged for the dispatcher", "clock.forged_entry", clock(dispatcher=10**9)),
            ("skipped ahead", "clock.skipped", clock(own=MAX_LEAP)),
            ("skipped in the session", "link.skipped", lambda h: replace(h, counter=h.counter + 1)),
            ("forged for another operator", "clock.forged_entry", clock(other=10**9)),
        ):
            await guest.connect()
            t.twin("a clock that counts", await guest.call("heartbeat", HEARTBEAT))
            t.attack(name, code, await guest.call("heartbeat", HEARTBEAT, header=bend))
        t.twin("it may come back", await guest.connect())


def _with(clock: VectorClock, node: int, counts: dict[str, int]) -> VectorClock:
    """``clock`` with entries moved by so much; an entry below 1 is left out."""
    numbers = {"own": node, "dispatcher": 1, "other": 2 if node != 2 else 3}
    moved = dict(clock.items())
    for name, by in counts.items():
        moved[numbers[name]] = moved.get(numbers[name], 0) + by
    return VectorClock({name: count for name, count in moved.items() if count > 0})


@row(57, "same result twice, crash between commit and reveal", guests=True, must_fail=False)
async def again(live: Live, t: Trial) -> None:
    job = await play(live)
    seat = job.seats[0]
    commit = seat.commit()
    await seat.stream()
    for name in ("a commit", "the same commit again"):
        t.twin(name, await seat.send_commit(commit))
    await seat.guest.wait("commit_set", seat.key)
    core = await seat.core()
    t.twin("the link broken before the reveal, and opened again", await seat.guest.connect())
    await seat.guest.wait("commit_set", seat.key)
    t.twin("asked again for the reveal", ACCEPTED)
    t.twin("the commit once more", await seat.send_commit(commit))
    for name in ("the reveal", "the same reveal again"):
        t.twin(name, await seat.send_reveal(seat.reveal(core)))
    await job.status()
    rows = await live.rows_of(job.accepted.job_id)
    t.twin("one result", ACCEPTED if len(rows) == 1 else f"{len(rows)} results")
    t.twin("and its receipt", live.judge(await job.file()))


@row(
    58,
    "expiry during work, clock skew, cancel race",
    "link.stale",
    "job.too_late",
    "commit.late",
)
async def too_late(live: Live, t: Trial) -> None:
    accepted = await live.submit(min_operators=1)
    await live.follow(accepted.job_id)
    gone = {"job_id": accepted.job_id, "verify": live.token}
    t.attack("a cancel after the end", "job.too_late", await live.post("/api/job/cancel", gone))
    stranger_key = next(iter(live.operators.values()))
    late = Guest(live.url, network=live.network, dispatcher=live.dispatcher, keys=stranger_key)
    skewed = await late.connect(statement=lambda c: replace(c, time=c.time - 3_600_000))
    t.attack("a clock an hour behind", "link.stale", skewed)
    if not live.guests:
        t.twin("a job followed to its end", live.judge(await live.answer_of(accepted.job_id)))
        return
    job = await play(live, seats=2, blind=False)
    (honest,) = job.seats
    await honest.honest_commit()
    slow = await job.checker()
    await honest.guest.wait("commit_set", honest.key)  # the dispatcher went on without the other
    t.attack("a commit after the others were closed", "commit.late", await slow.send_commit())
    await honest.honest_reveal()
    await job.status()
    t.twin("who committed in time", live.judge(await job.file()))
    guest = live.guests[0]
    old = await guest.call("heartbeat", HEARTBEAT, header=lambda h: replace(h, time=h.time - 3_600_000))
    t.attack("a frame an hour old", "link.stale", old)
    t.twin("a link with the right time", await guest.connect())
    cancelled = await play(live)
    wanted = {"job_id": cancelled.accepted.job_id, "verify": live.token}
    t.twin("a cancel in time", await live.post("/api/job/cancel", wanted))
    late_commit = await cancelled.seats[0].send_commit()
    t.attack("a commit to a cancelled job", "commit.late", late_commit)
