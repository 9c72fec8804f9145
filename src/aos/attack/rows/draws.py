"""Sortition and challenges: rows 29 to 34."""

import secrets
import time
from dataclasses import replace

from aos.attack.forge import reseeded, restate
from aos.attack.guest import Guest
from aos.attack.live import Live, Stolen, refusal
from aos.attack.play import seated, submit_to_guests
from aos.attack.table import Trial, row
from aos.core import draw, sortition
from aos.core.registration import make_registration
from aos.core.statements import Registration, Signed, VrfClaim, sign
from aos.errors import RuleViolation

REGISTRY = "/v1/aos/registry"
IDENTITY = b"\x01" + bytes(31)
"""The neutral element of the curve: a key under which everything verifies."""


def registration(live: Live, keys: Stolen, models: tuple[bytes, ...]) -> Signed[Registration]:
    return make_registration(
        signer_key=keys.signer,
        vrf_seed=keys.vrf,
        network=live.network,
        dispatcher=live.dispatcher,
        job_type="opml",
        models=models,
        time_ms=int(time.time() * 1000),
    )


@row(
    29,
    "operator grinds keys near the epoch",
    "registration.exists",
    "registration.key_taken",
    "draw.not_in_snapshot",
    guests=True,
)
async def young_keys(live: Live, t: Trial) -> None:
    old, fresh = live.guests[0], Stolen(signer=secrets.token_bytes(32), vrf=secrets.token_bytes(32))
    models = await live.models_of(old.node_id)
    nicer = registration(live, Stolen(signer=old.keys.signer, vrf=fresh.vrf), models)
    t.attack(
        "a nicer VRF key for the same operator",
        "registration.exists",
        await live.post(REGISTRY, nicer.to_json()),
    )
    twice = registration(live, Stolen(signer=fresh.signer, vrf=old.keys.vrf), models)
    t.attack(
        "one VRF key for two operators", "registration.key_taken", await live.post(REGISTRY, twice.to_json())
    )
    t.twin("a new operator enters", await live.post(REGISTRY, registration(live, fresh, models).to_json()))
    young = Guest(live.url, network=live.network, dispatcher=live.dispatcher, keys=fresh)
    t.twin("and may connect", await young.connect())
    try:
        accepted, key = await submit_to_guests(live)
        call = await old.call_of(key)
        found = await young.send_claim(young.claim(call))
        t.attack("and claims a seat at once", "draw.not_in_snapshot", found)
        t.twin("an old key is drawn", await (await seated(live, accepted, key)).finish())
    finally:
        await young.leave()


@row(
    30,
    '"not selected" to refuse, "selected" to be paid',
    "draw.claim_proof",
    "draw.claim_form",
    "draw.foreign_claim",
    "vrf.receipt",
)
async def false_claims(live: Live, t: Trial) -> None:
    answer = await live.single()
    word = "filled" if answer.receipt.core.vrf.status == "selected" else "selected"

    def other(core: object) -> object:
        return replace(core, vrf=replace(core.vrf, status=word))  # type: ignore[type-var,attr-defined]

    t.attack("a filled seat called drawn", "vrf.receipt", live.judge(restate(live, answer, core=other)))
    t.twin("the seat that it is", live.judge(restate(live, answer)))
    if live.guests:
        accepted, key = await submit_to_guests(live)
        guest, friend = live.guests[0], live.guests[1]
        call = await guest.call_of(key)
        lucky = draw.make_claim(call, node_id=guest.node_id, vrf_seed=secrets.token_bytes(32))
        t.attack("a proof of another key", "draw.claim_proof", await guest.send_claim(lucky))
        both = replace(guest.claim(call), answer="decline", reason="capacity")
        t.attack("a decline with a proof", "draw.claim_form", await guest.send_claim(both))
        stolen = await guest.send_claim(friend.claim(call), key=friend.keys.signer)
        t.attack("a friend's claim", "draw.foreign_claim", stolen)
        t.twin("honest claims", await (await seated(live, accepted, key)).finish())


@row(
    31,
    "invalid, foreign, non-canonical, small-order VRF proofs and keys",
    "vrf.key_invalid",
    "vrf.proof_invalid",
    "vrf.point_invalid",
    "vrf.scalar_range",
    "draw.claim_proof",
)
async def bad_proofs(live: Live, t: Trial) -> None:
    node_id, keys = next(iter(live.operators.items()))
    genuine = registration(live, keys, await live.models_of(node_id))
    other = Stolen(signer=secrets.token_bytes(32), vrf=keys.vrf)

    async def entered(**changes: object) -> str:
        signed = sign(keys.signer, replace(genuine.statement, **changes))  # type: ignore[arg-type]
        return await live.post(REGISTRY, signed.to_json())

    foreign = registration(live, other, genuine.statement.models).statement.possession
    proof = genuine.statement.possession
    for name, code, changes in (
        ("a key of small order", "vrf.key_invalid", {"vrf_key": IDENTITY}),
        ("a key that is no point", "vrf.key_invalid", {"vrf_key": b"\xff" * 32}),
        ("a proof for another operator", "vrf.proof_invalid", {"possession": foreign}),
        ("a proof that holds no point", "vrf.point_invalid", {"possession": b"\xff" * 32 + proof[32:]}),
        ("a scalar beyond the order", "vrf.scalar_range", {"possession": proof[:48] + b"\xff" * 32}),
    ):
        t.attack(name, code, await entered(**changes))
    t.twin("its own key and proof", await entered())
    if live.guests:
        accepted, key = await submit_to_guests(live)
        guest = live.guests[0]
        claim: VrfClaim = guest.claim(await guest.call_of(key))
        bent = claim.pi[:40] + bytes([claim.pi[40] ^ 1]) + claim.pi[41:]
        t.attack(
            "a claim's proof with one bit changed",
            "draw.claim_proof",
            await guest.send_claim(replace(claim, pi=bent)),
        )
        t.twin("the claim's own proof", await (await seated(live, accepted, key)).finish())


@row(
    32,
    "beacon withheld, stale, future",
    "beacon.mismatch",
    "beacon.epoch",
    missing="a stale one: this network is in its first epoch; who withholds its beacon serves nobody",
)
async def other_beacon(live: Live, t: Trial) -> None:
    answer = await live.single()
    later = answer.draw.draw_call.statement.epoch + 1_000
    for name, code, bend in (
        ("a beacon from nowhere", "beacon.mismatch", reseeded(live, lambda c: replace(c, beacon=bytes(32)))),
        ("an epoch in the future", "beacon.epoch", reseeded(live, lambda c: replace(c, epoch=later))),
    ):
        t.attack(name, code, live.judge(restate(live, answer, draw_call=bend)))
    t.twin("the epoch's beacon", live.judge(restate(live, answer, draw_call=reseeded(live))))


@row(33, "empty or self-chosen challenge", "draw.seed_proof")
async def own_challenge(live: Live, t: Trial) -> None:
    answer = await live.single()
    for name, seed in (
        ("a draw seed of D's choice", secrets.token_bytes(64)),
        ("an empty draw seed", bytes(64)),
    ):
        told = restate(live, answer, draw_call=lambda call, seed=seed: replace(call, draw_seed=seed))  # type: ignore[misc]
        t.attack(name, "draw.seed_proof", live.judge(told))
    t.twin("the seed that D's key gives", live.judge(restate(live, answer, draw_call=reseeded(live))))


@row(
    34,
    "modulo bias, range edges, no operator, overlap",
    "sortition.range_overlap",
    "sortition.range_bounds",
    "sortition.range_empty",
    "draw.snapshot_range",
    "job.no_operator",
    "field.range",
    missing="modulo bias, which is a matter of the arithmetic",
)
async def ranges(live: Live, t: Trial) -> None:
    answer = await live.single()
    entries = [drawn.operator for drawn in answer.draw.entries]
    if len(entries) < 2:
        raise RuleViolation("attack.too_small", "this network has one operator; ranges need two")
    limit, (one, two, *rest) = answer.draw.max_range, entries

    def check(*changed: object) -> str:
        found = [
            sortition.OperatorRange(node_id=e.node_id, start=e.start, end=e.end)  # type: ignore[attr-defined]
            for e in (*changed, *rest)
        ]
        return refusal(lambda: sortition.validate_ranges(found, limit))

    t.attack(
        "a range over another",
        "sortition.range_overlap",
        check(one, replace(two, start=one.start, end=one.end)),
    )
    t.attack("a range beyond the end", "sortition.range_bounds", check(replace(one, end=limit + 1), two))
    t.attack("an empty range", "sortition.range_empty", check(replace(one, end=one.start), two))
    t.twin("the registry's ranges", check(one, two))
    overlap = replace(two, start=one.start, end=one.end)
    t.attack(
        "a registry with overlapping ranges",
        "draw.snapshot_range",
        refusal(lambda: draw.snapshot_root(live.network, limit, [one, overlap, *rest])),
    )
    submit = "/api/job/submit"
    t.attack(
        "a quorum beyond the operators",
        "field.range",
        await live.post(submit, live.seed_body(min_operators=60)),
    )
    if live.guests:
        job = live.seed_body()["job"] | {"tag": "tee", "model": live.guest_model}
        t.attack(
            "a job that nobody offers", "job.no_operator", await live.post(submit, live.seed_body(job=job))
        )
    t.twin("a job for one operator", await live.post(submit, live.seed_body()))
