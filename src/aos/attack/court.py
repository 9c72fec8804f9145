"""Disputes on the network under attack: jobs in which liars of ours sit beside the network's own operators, and games by hand.

The other side of every game is the network's own operators and dispatcher, which know nothing of us. What the liar claims is
defended here; who accuses an honest operator does it with a key of its own and the project's token, as ``aos challenge`` does.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from aos.attack.guest import Guest, Key, now_ms
from aos.attack.live import Live, code_of
from aos.attack.play import Seat, requested, sampling, seed_of
from aos.attack.table import ACCEPTED
from aos.client import Accepted
from aos.core import hashes
from aos.core.dispute.court import Read
from aos.core.dispute.fine.referee import Canonical
from aos.core.dispute.moves import HASH_BYTES, Answer, Choose, Move, Open, game_id, read_move
from aos.core.dispute.state_tree import StateHeader
from aos.core.dispute.transcript import Judgement, judge, read_transcript, replay
from aos.core.encoding import b64u_decode, b64u_encode, canonical_json
from aos.core.signing import address_of
from aos.core.statements import CommitSet, Prompt, ReceiptCore, Signed, hash_of, sign, verify_signed
from aos.engine.around import check_with_tokenizer
from aos.engine.party import Party
from aos.engine.trace import KnownRun
from aos.errors import RuleViolation, Unavailable, VerificationError
from aos.ports import Generation, SamplingParams

PATIENCE_S = 60.0
POLL_S = 0.05
SAMPLED: dict[str, Any] = {"seed": 11, "max_tokens": 24, "temperature": 0.8, "top_p": 0.9}
"""The disputed jobs' parameters: the seed is the request's, so that honest runs of one prompt are equal."""
DISPUTES = "/v1/aos/disputes"
Json = dict[str, Any]


# --- the court over HTTP


@dataclass(frozen=True, slots=True)
class Court:
    """The dispatcher's ``/v1/aos/disputes``."""

    live: Live

    async def _get(self, path: str, **headers: str) -> bytes:
        answer = await self.live.http.get(f"{self.live.url}{DISPUTES}{path}", headers=headers)
        if not answer.is_success:
            raise RuleViolation(code_of(answer), f"the court answers {answer.status_code} to {path[:20]}")
        return answer.content

    async def read(self, path: str, *, guest: Guest | None = None, subject: bytes = b"") -> Json:
        """A document that the project, or a guest, is entitled to. Raises RuleViolation with the court's code."""
        headers = self._bearer if guest is None else self._signed(guest, subject)
        value: Json = json.loads(await self._get(path, **headers))
        return value

    async def transcript(self, game: str) -> bytes:
        """A game's file."""
        return await self._get(f"/{game}/transcript", **self._bearer)

    async def open(self, opening: Open, key: bytes, *, token: bool = True) -> str:
        """Challenge; ``accepted`` or the refusal's code."""
        headers = self._bearer if token else {}
        return await self.live.post(DISPUTES, sign(key, opening).to_json(), **headers)

    async def move(self, game: str, move: Move, key: bytes) -> str:
        """Move; ``accepted`` or the refusal's code."""
        return await self.live.post(f"{DISPUTES}/{game}/moves", sign(key, move).to_json())

    async def serve(self, claim: str, leaves: Json | bytes) -> str:
        """Serve leaves of a claim; ``accepted`` or the refusal's code."""
        data = leaves if isinstance(leaves, bytes) else json.dumps(leaves).encode()
        path = f"{self.live.url}{DISPUTES}/claims/{claim}/leaves"
        return code_of(
            await self.live.http.put(path, content=data, headers={"content-type": "application/json"})
        )

    async def game(self, game: str) -> Json:
        """A game's public facts."""
        return await self.read(f"/{game}")

    async def games(self, job_ref: bytes) -> list[Json]:
        """The public facts of all games about a job."""
        games: list[Json] = (await self.read(f"?job_ref={b64u_encode(job_ref)}"))["games"]
        return games

    async def convicted(self, job_ref: bytes) -> dict[str, str]:
        """Who is convicted over a job, each with its code."""
        listed = (await self.read("/convictions"))["convictions"]
        return {each["node_id"]: each["code"] for each in listed if each["job_ref"] == b64u_encode(job_ref)}

    async def judged(self, game: str) -> Judgement:
        """The transcript judged here, by a stranger who has no model file."""
        data = await self.transcript(game)
        return await asyncio.to_thread(judge, data, Canonical(check_with_tokenizer))

    async def leaves(self, claim: str) -> Json:
        """A claim's leaves, once its claimant has served them. Raises RuleViolation ``dispute.not_served``."""
        await self.read(f"/claims/{claim}")  # from now on they are wanted

        async def served() -> Json | None:
            try:
                return await self.read(f"/claims/{claim}/leaves")
            except RuleViolation as error:
                if error.code != "dispute.not_served":
                    raise
            return None

        found: Json = await until(served, "a claimant serves its leaves")
        return found

    @property
    def _bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.live.token}"}

    def _signed(self, guest: Guest, subject: bytes) -> dict[str, str]:
        question = Read(
            network=self.live.network,
            dispatcher=self.live.dispatcher,
            reader=guest.node_id,
            subject=subject,
            time=now_ms(),
        )
        return {"x-aos-reader": b64u_encode(canonical_json(sign(guest.keys.signer, question).to_json()))}


async def until(ask: Callable[[], Any], what: str) -> Any:
    """Ask until there is an answer. Raises Unavailable ``attack.patience``."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = await ask()
                if found is not None:
                    return found
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise Unavailable("attack.patience", f"waited {PATIENCE_S:g} s in vain: {what}") from None


# --- liars among the network's operators


@dataclass(slots=True, kw_only=True)
class Accused:
    """A guest in its seat, its run, and the party that defends it. ``kind`` is None where it is honest."""

    court: Court
    seat: Seat
    kind: str | None
    party: Party
    known: KnownRun
    core: ReceiptCore | None = None

    @property
    def guest(self) -> Guest:
        return self.seat.guest

    @property
    def prompt(self) -> Prompt:
        return self.seat.request.job.prompt

    @property
    def asked(self) -> SamplingParams:
        """The parameters that it was asked to sample with."""
        return sampling(self.seat.request, seed_of(self.seat.body, self.seat.request))

    @property
    def claim(self) -> str:
        """The claim's name."""
        assert self.core is not None  # noqa: S101  revealed
        return b64u_encode(hash_of(self.core))

    async def reveal(self) -> None:
        """Reveal what its seat has committed."""
        self.core = await self.seat.core()
        code = await self.seat.send_reveal(self.seat.reveal(self.core))
        if code != ACCEPTED:
            raise RuleViolation("attack.twin", f"a reveal was refused with {code}")

    async def serve(self) -> str:
        """Serve this run's leaves, once they are wanted."""
        leaves = await asyncio.to_thread(self.party.leaves, self.known)

        async def taken() -> str | None:
            code = await self.court.serve(self.claim, leaves)
            return None if code == "dispute.not_wanted" else code

        return str(await until(taken, "a liar's leaves are wanted"))

    async def waiting(self) -> list[str]:
        """Games in which it is this guest's turn as claimant."""
        waits = await self.court.read("/waiting", guest=self.guest)
        return [each["game"] for each in waits["move"] if each["claim"] == self.claim]

    async def challenged(self, many: int) -> list[str]:
        """So many games in which it is to move, once they wait. Raises Unavailable ``attack.patience``."""

        async def enough() -> list[str] | None:
            games = await self.waiting()
            return games[:many] if len(games) >= many else None

        found: list[str] = await until(enough, "the liar is challenged")
        return found

    async def own_move(self, game: str) -> Move:
        """The next move of its claim's defence."""
        data = await self.court.transcript(game)
        return await asyncio.to_thread(self._own_move, data)

    def _own_move(self, data: bytes) -> Move:
        try:
            return self.party.move(self.known, "claimant", data)
        except VerificationError:
            # It committed to what nothing opens. It signs what it has: silence would only be withholding.
            game = replay(read_transcript(data), Canonical(check_with_tokenizer))
            if game.stage != "answer":
                raise
            return Answer(
                game=game.id,
                turn=game.turn,
                previous=game.taken[-1].hash,
                claimant=game.open.claimant,
                claim=game.open.claim,
                position=game.open.position,
                unit=game.open.unit,
                unit_root=secrets.token_bytes(32),
                children=b"",
                bounds=self.party.trace(self.known, game.open.position, game.open.unit).bounds,
            )

    async def defend(self) -> Json:
        """Serve, and answer one challenger until the game is proven: its public facts. The others wait in vain: one proof is
        enough."""
        await self.serve()
        (game,) = await self.challenged(1)

        async def proven() -> Json | None:
            if game in await self.waiting():
                code = await self.court.move(game, await self.own_move(game), self.guest.keys.signer)
                if code != ACCEPTED:
                    raise RuleViolation("attack.game", f"a liar's move was refused with {code}")
            found = await self.court.game(game)
            return found if found["state"] == "proven" else None

        found: Json = await until(proven, "the liar's game is proven")
        return found


@dataclass(slots=True, kw_only=True)
class Hearing:
    """A job with guests of ours beside the network's own operators, every seat blind."""

    live: Live
    accepted: Accepted
    key: Key
    accused: tuple[Accused, ...]

    async def revealed(self) -> bool:
        """Let ours reveal; False where somebody else was too slow to."""
        for each in self.accused:
            await each.reveal()
        await self.live.follow(self.accepted.job_id)
        rows = await self.live.rows_of(self.accepted.job_id)
        return len(rows) == self.live.honest_operators + len(self.accused)

    async def end(self) -> Json:
        """The data of the job's last event."""

        def run() -> Json:
            with self.live.client() as client:
                for event in client.events(self.accepted.job_id):
                    if event.kind == "done":
                        return dict(event.data)
            raise RuleViolation("attack.job", "the job's events ended before the job did")

        return await asyncio.to_thread(run)

    async def honest_result(self) -> str:
        """``accepted`` where the job ended resolved, without any of ours, and a stranger finds its answer VERIFIED."""
        ended = await self.end()
        if (ended["status"], ended["outcome"]) != ("verified", "resolved"):
            return f"job {ended['status']} {ended['outcome']}"
        rows = await self.live.rows_of(self.accepted.job_id)
        ours = {each.guest.node_id for each in self.accused}
        if not rows or ours & {row["operator"] for row in rows}:
            return "a liar's result was delivered"
        return (await asyncio.to_thread(self.live.judge, await self.live.answer_of(self.accepted.job_id)))[0]

    async def agreed(self) -> str:
        """``accepted`` where everybody agreed, ours too, and a stranger finds the answer VERIFIED."""
        ended = await self.end()
        if (ended["status"], ended["outcome"]) != ("verified", "agreed"):
            return f"job {ended['status']} {ended['outcome']}"
        rows = await self.live.rows_of(self.accepted.job_id)
        ours = {each.guest.node_id for each in self.accused}
        if not ours <= {row["operator"] for row in rows}:
            return "an honest result is missing"
        return (await asyncio.to_thread(self.live.judge, await self.live.answer_of(self.accepted.job_id)))[0]


Change = Callable[[Accused], None]
COPY = "copy"
"""The kind of a guest that signs what the one before it has."""


async def tried(live: Live, *kinds: str | None, changes: Sequence[Change | None] = ()) -> Hearing:
    """A job for every opML operator of the network and a guest for each of ``kinds``: liars of ``aos.attack.liars``, None for an
    honest one, ``COPY``. All have revealed. ``changes`` alter what a guest is about to commit. Asked again where an operator
    was too slow."""
    await _traced(live)
    guests = live.liars[: len(kinds)]
    for guest in guests:
        if (code := await guest.connect()) != ACCEPTED:
            raise RuleViolation("attack.guest", f"the dispatcher did not take a guest: {code}")
    try:
        for _ in range(3):
            hearing = await _committed(live, guests, kinds, changes)
            if hearing is not None and await hearing.revealed():
                return hearing
    finally:
        for guest in guests:
            await guest.leave()
    raise RuleViolation("attack.slow", "three times in a row an operator was too slow to commit or reveal")


async def _traced(live: Live) -> None:
    """Let every operator serve a claim before one that is disputed: the first time its worker reads the whole model, and who is
    too slow by then counts as silent."""
    if not live.traced:
        answer = await live.opml()
        for receipt in (answer.receipt, *answer.peers):
            await Court(live).leaves(b64u_encode(hash_of(receipt.core)))
        live.traced = True


async def fair(live: Live) -> Hearing:
    """The honest twin of every liar's job: the same request, and a guest that computes it as asked. Made once."""
    if live.fair is None:
        live.fair = await tried(live, None)
    return live.fair


async def _committed(
    live: Live, guests: Sequence[Guest], kinds: Sequence[str | None], changes: Sequence[Change | None]
) -> Hearing | None:
    """All seats have committed; None where one has not."""
    accepted = await live.submit(params=SAMPLED, blind=True, min_operators=live.honest_operators + len(kinds))
    key = (hashes.job_ref(accepted.job_id), 1)
    for guest in guests:
        if (code := await guest.send_claim(guest.claim(await guest.call_of(key)))) != ACCEPTED:
            raise RuleViolation("attack.twin", f"an honest claim was refused with {code}")
    accused: list[Accused] = []
    for guest, kind, change in zip_longest(guests, kinds, changes):
        accused.append(await _seated(live, guest, key, kind, accused[-1] if kind == COPY else None))
        if change is not None:
            change(accused[-1])
    for each in accused:
        if await each.seat.send_commit() != ACCEPTED:
            return None
    body = await guests[0].wait("commit_set", key)
    commit_set = verify_signed(CommitSet, body["commit_set"], address=live.dispatcher)
    if commit_set.statement.missing:
        return None
    return Hearing(live=live, accepted=accepted, key=key, accused=tuple(accused))


async def _seated(live: Live, guest: Guest, key: Key, kind: str | None, copied: Accused | None) -> Accused:
    body = await guest.wait("dispatch_job", key)
    court, honest = Court(live), await live.own_engine()

    def seat(generation: Generation) -> Seat:
        made = Seat(guest=guest, key=key, body=body, generation=generation, pieces=(), profile=honest.profile)
        made.take(generation)
        return made

    if copied is not None:
        return replace(copied, seat=seat(copied.seat.generation), kind=kind)
    engine, party = await live.player(kind)
    request, nonce = requested(body), b64u_decode(body["nonce"])
    asked, prompt = sampling(request, seed_of(body, request)), request.job.prompt
    made = await asyncio.to_thread(engine.generate, prompt, asked, salt=nonce)
    known = await asyncio.to_thread(party.run, prompt, made.tokens, asked, salt=nonce)
    if known.tree.root != made.state_root:
        raise RuleViolation("attack.no_lie", "a liar that traces another run than it gave")
    return Accused(court=court, seat=seat(made), kind=kind, party=party, known=known)


# --- accusers of honest operators


@dataclass(slots=True, kw_only=True)
class Accuser:
    """Somebody with a key of its own and the project's token, against the claim of one of the network's operators."""

    court: Court
    core: ReceiptCore
    header: StateHeader
    units: Sequence[Sequence[bytes]]
    bond: int
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def opening(self, **changes: Any) -> Open:
        """A challenge of the claim's first unit by somebody who has another leaf there, with ``changes``."""
        core = self.core
        members: dict[str, Any] = {
            "network": core.network,
            "challenger": address_of(self.key),
            "claimant": core.operator,
            "claim": hash_of(core),
            "job_ref": core.job_ref,
            "attempt": core.attempt,
            "kind": "unit",
            "position": 0,
            "unit": 0,
            "state_root": secrets.token_bytes(32),
            "leaf": secrets.token_bytes(32),
            "bond": self.bond << 4,
        }
        return Open(**(members | changes))

    async def accuse(self, opening: Open, *, last: bool = False) -> str:
        """Open a game and play it, always down to the first child, or the last: the code of the verdict against the
        accuser, or of the refusal; ``accepted`` where the claimant lost. Raises Unavailable where it is
        not decided."""
        code = await self.court.open(opening, self.key)
        if code != ACCEPTED:
            return code
        name = b64u_encode(game_id(opening))

        async def over() -> Json | None:
            game = await self.court.game(name)
            if game["state"] == "proven":
                return game
            if game["mover"] == opening.challenger:
                await self.court.move(name, await self._choice(name, last=last), self.key)
            return None

        game = await until(over, "the accuser's game is proven")
        return str(game["code"]) if game["against"] == "challenger" else ACCEPTED

    async def _choice(self, name: str, *, last: bool) -> Choose:
        held = json.loads(await self.court.transcript(name))["moves"]
        before: Signed[Any] = read_move(held[-1]["move"])
        count = len(before.statement.children) // HASH_BYTES
        return Choose(
            game=b64u_decode(name, length=32),
            turn=len(held),
            previous=before.hash,
            child=count - 1 if last else 0,
        )


async def accuser(live: Live, core: ReceiptCore) -> Accuser:
    """Somebody who is about to accuse a claim, and has read what its claimant serves."""
    court = Court(live)
    name = b64u_encode(hash_of(core))
    leaves = await court.leaves(name)
    rules = (await court.read(f"/claims/{name}"))["rules"]
    units = [b64u_decode(each) for each in leaves["units"]]
    return Accuser(
        court=court,
        core=core,
        header=StateHeader.read(b64u_decode(leaves["header"])),
        units=[[row[at : at + HASH_BYTES] for at in range(0, len(row), HASH_BYTES)] for row in units],
        bond=int(rules["bond"]),
    )
