"""A job that guests of ours are drawn for: submission, draw, execution, commit, reveal, each step in a row's hands.

The guests' model is theirs alone, so every seat is a guest's. What they compute is computed: the native engine runs their file.
"""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aos.attack.guest import Bend, Guest, Key, same
from aos.attack.live import Live
from aos.attack.table import ACCEPTED
from aos.client import Accepted
from aos.core import draw, hashes
from aos.core.codec import decode, encode
from aos.core.encoding import b64u_decode, b64u_encode, parse_canonical
from aos.core.statements import (
    Chunk,
    Commit,
    CommitSet,
    DrawCall,
    DrawEntry,
    DrawRecord,
    ReceiptCore,
    ReceiptVrf,
    Request,
    Signed,
    sign,
    verify_signed,
)
from aos.core.vrf import ecvrf_proof_to_hash, ecvrf_public_key
from aos.errors import RuleViolation
from aos.ports import Generation, SamplingParams, TokenEvent

CHUNK_TOKENS = 8


@dataclass(slots=True, kw_only=True)
class Seat:
    """A guest in its seat. ``generation`` is what its engine gave; a row may put another in its place."""

    guest: Guest
    key: Key
    body: Mapping[str, Any]
    """The dispatch."""
    generation: Generation
    pieces: tuple[str, ...]
    """The text that became final with each token."""
    profile: str
    """Of the engine."""
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    head: bytes = b""

    def take(self, generation: Generation) -> None:
        """Answer with this instead. Its pieces are told with the last chunk."""
        self.generation = generation
        self.pieces = (*("" for _ in generation.tokens[1:]), generation.text)

    @property
    def nonce(self) -> bytes:
        return b64u_decode(self.body["nonce"])

    @property
    def request(self) -> Request:
        return requested(self.body)

    @property
    def draw_call(self) -> Signed[DrawCall]:
        return verify_signed(DrawCall, self.body["draw_call"], address=self.guest.dispatcher)

    @property
    def record(self) -> Signed[DrawRecord]:
        return verify_signed(DrawRecord, self.body["draw_record"], address=self.guest.dispatcher)

    def chunks(self) -> list[Signed[Chunk]]:
        """The streamed answer, eight tokens a chunk."""
        tokens, made, previous = self.generation.tokens, [], b""
        for index, start in enumerate(range(0, max(len(tokens), 1), CHUNK_TOKENS)):
            end = start + CHUNK_TOKENS
            final = end >= len(tokens)
            chunk = Chunk(
                network=self.guest.network,
                node_id=self.guest.node_id,
                job_ref=self.key[0],
                attempt=self.key[1],
                index=index,
                tokens=tokens[start:end],
                text="".join(self.pieces[start:end]),
                previous=previous,
                final=final,
                finish_reason=self.generation.finish_reason if final else "",
            )
            made.append(sign(self.guest.keys.signer, chunk))
            previous = made[-1].hash
        return made

    async def stream(self) -> None:
        """Send every chunk; nothing where this seat does not stream. Raises RuleViolation ``attack.twin``."""
        if self.body["role"] != "executor":
            return
        for chunk in self.chunks():
            _honest(await self.guest.call("stream_chunk", {"chunk": chunk.to_json()}))
            self.head = chunk.hash

    def commitment(self, **changes: Any) -> bytes:
        """What this seat commits to, with ``changes``."""
        members: dict[str, Any] = {
            "job_ref": self.key[0],
            "attempt": self.key[1],
            "node_id": self.guest.node_id,
            "draw_record": self.record.hash,
            "result": self.generation.state_root,
            "tokens_hash": hashes.tokens_hash(self.nonce, self.generation.tokens),
            "salt": self.salt,
        }
        return hashes.commitment(**(members | changes))

    def commit(self, **changes: Any) -> Signed[Commit]:
        """The signed commit, with ``changes``."""
        commit = Commit(
            network=self.guest.network,
            node_id=self.guest.node_id,
            job_ref=self.key[0],
            attempt=self.key[1],
            draw_record=self.record.hash,
            commitment=self.commitment(),
            clock=self.guest.tick(),
        )
        return sign(self.guest.keys.signer, replace(commit, **changes))

    async def send_commit(self, commit: Signed[Commit] | None = None) -> str:
        body = {"commit": (commit or self.commit()).to_json()}
        return await self.guest.call("job_commit", body)

    async def core(self, bend: Bend = same) -> ReceiptCore:
        """The receipt that this seat states, once the commit set is there; bent before it is signed."""
        body = await self.guest.wait("commit_set", self.key)
        commit_set = verify_signed(CommitSet, body["commit_set"], address=self.guest.dispatcher)
        entry = decode(DrawEntry, body["entry"])
        call, record, request = self.draw_call.statement, self.record, self.request
        pi = draw.make_claim(self.draw_call, node_id=self.guest.node_id, vrf_seed=self.guest.keys.vrf).pi
        result, own_seed = self.generation, request.job.params.seed
        core = ReceiptCore(
            network=self.guest.network,
            dispatcher=self.guest.dispatcher,
            operator=self.guest.node_id,
            node=self.guest.node,
            job_ref=self.key[0],
            attempt=self.key[1],
            role=self.body["role"],
            request_hash=hashes.request_hash(self.nonce, self.body["request"].encode()),
            response_hash=hashes.response_hash(self.nonce, result.text),
            tokens_hash=hashes.tokens_hash(self.nonce, result.tokens),
            prompt_tokens_hash=hashes.prompt_tokens_hash(self.nonce, result.prompt_tokens),
            model_id=request.job.model_id,
            params_hash=hashes.params_hash(self.nonce, request.job.params),
            sampling_seed=seed_of(self.body, request),
            seed_source="draw" if own_seed is None else "request",
            engine=self.profile,
            n_prompt=len(result.prompt_tokens),
            n_out=len(result.tokens),
            finish_reason=result.finish_reason,
            state_root=result.state_root or b"",
            tee="",
            answer_statement=b"",
            stream_head=self.head,
            vrf=ReceiptVrf(
                key=ecvrf_public_key(self.guest.keys.vrf),
                alpha_hash=hashes.alpha_hash(draw.claim_alpha_of(call)),
                pi=pi,
                beta=ecvrf_proof_to_hash(pi),
                status="selected" if entry.status == "selected" else "filled",
            ),
            draw_record=record.hash,
            draw_counts=record.statement.counts,
            commit_set=commit_set.hash,
            clock=self.guest.tick(),
            started_at=request.issued_at,
            finished_at=request.issued_at + 1,
        )
        bent: ReceiptCore = bend(core)
        return bent

    def reveal(self, core: ReceiptCore, *, key: bytes | None = None, **changes: Any) -> dict[str, Any]:
        """The body of ``job_result`` for a core, signed with ``key``; ``changes`` are made to the body."""
        signed = sign(key or self.guest.keys.signer, core)
        return {
            "receipt": encode(core),
            "signature": b64u_encode(signed.signature),
            "commit_salt": b64u_encode(self.salt),
            "text": self.generation.text,
            "tokens": list(self.generation.tokens),
            "evidence": None,
            "chain_claim": None,
        } | changes

    async def send_reveal(self, body: Mapping[str, Any]) -> str:
        return await self.guest.call("job_result", body)

    async def honest_commit(self) -> None:
        """Stream and commit. Raises RuleViolation ``attack.twin``."""
        await self.stream()
        _honest(await self.send_commit())

    async def honest_reveal(self) -> None:
        """Reveal. Raises RuleViolation ``attack.twin``."""
        _honest(await self.send_reveal(self.reveal(await self.core())))


@dataclass(slots=True, kw_only=True)
class Play:
    """A job among guests. ``seats`` are in the record's order."""

    live: Live
    accepted: Accepted
    key: Key
    seats: tuple[Seat, ...]

    async def status(self) -> str:
        """The job's end."""
        return await self.live.follow(self.accepted.job_id)

    async def file(self) -> bytes:
        """The answer file."""
        return await self.live.answer_of(self.accepted.job_id)

    async def finish(self, **how: Any) -> tuple[str, ...]:
        """Honest from here on, in every seat: what a stranger says of the answer file, judging it as ``how`` says."""
        for seat in self.seats:
            await seat.honest_commit()
        return await self.finish_revealing(**how)

    async def finish_revealing(self, **how: Any) -> tuple[str, ...]:
        """As ``finish``, where every seat has committed."""
        for seat in self.seats:
            await seat.honest_reveal()
        await self.status()
        return await asyncio.to_thread(self.live.judge, await self.file(), **how)

    async def checker(self) -> Seat:
        """The second seat of a streamed run, once the stream's end has reached it."""
        (first,) = self.seats
        name = first.record.statement.seats[1]
        guest = next(guest for guest in self.live.guests if guest.node_id == name)
        body = await guest.wait("dispatch_job", self.key)
        return replace(first, guest=guest, body=body, salt=secrets.token_bytes(32), head=b"")

    async def drop(self) -> None:
        """Cancel what will not be finished, so that nobody waits for it."""

        def run() -> None:
            with self.live.client() as client:
                client.cancel(self.accepted.job_id)

        await asyncio.to_thread(run)


async def submit_to_guests(live: Live, *, seats: int = 1, **changes: Any) -> tuple[Accepted, Key]:
    """A job for the guests' model, before anybody has claimed."""
    members = {"model": live.guest_model, "min_operators": seats, "blind": seats > 1} | changes
    accepted = await live.submit(**members)
    return accepted, (hashes.job_ref(accepted.job_id), 1)


async def seated(live: Live, accepted: Accepted, key: Key, *, claimed: frozenset[str] = frozenset()) -> Play:
    """Let every guest claim (but those in ``claimed``, which have) and run the job in the seats that the draw gives."""
    for guest in live.guests:
        call = await guest.call_of(key)
        if guest.node_id not in claimed:
            _honest(await guest.send_claim(guest.claim(call)))
    by_name = {guest.node_id: guest for guest in live.guests}
    waiting = [asyncio.create_task(guest.wait("dispatch_job", key)) for guest in live.guests]
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        first = next(iter(done)).result()
        names = first["draw_record"]["statement"]["seats"]
        blind = first["role"] == "blind"
        dispatched = names if blind else names[:1]
        bodies = [await by_name[name].wait("dispatch_job", key) for name in dispatched]
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    generation, pieces = await compute(live, bodies[0])
    seats = tuple(
        Seat(
            guest=by_name[name],
            key=key,
            body=body,
            generation=generation,
            pieces=pieces,
            profile=live.guests_engine().profile,
        )
        for name, body in zip(dispatched, bodies, strict=True)
    )
    return Play(live=live, accepted=accepted, key=key, seats=seats)


async def play(live: Live, *, seats: int = 1, **changes: Any) -> Play:
    """A job for the guests, drawn and executed honestly; nothing is committed yet. Asked again where chance gave more seats."""
    for _ in range(8):
        accepted, key = await submit_to_guests(live, seats=seats, **changes)
        found = await seated(live, accepted, key)
        if len(found.seats[0].record.statement.seats) == seats:
            return found
        await found.drop()
    raise RuleViolation("attack.draw", "eight draws in a row gave more seats than were asked for")


def requested(dispatch: Mapping[str, Any]) -> Request:
    """The request of a dispatch."""
    return decode(Request, parse_canonical(dispatch["request"].encode(), max_bytes=1 << 20))


def seed_of(dispatch: Mapping[str, Any], request: Request) -> str:
    """The sampling seed of a dispatch."""
    first = dispatch["first_draw"] or dispatch["draw_call"]
    drawn = hashes.sampling_seed_from_draw(decode(DrawCall, first["statement"]).draw_seed)
    return request.job.params.seed or drawn


def sampling(request: Request, seed: str, **changes: Any) -> SamplingParams:
    """A request's parameters as the engine takes them."""
    params = request.job.params
    made = SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repeat_penalty=params.repeat_penalty,
        max_tokens=params.max_tokens,
        stop=params.stop,
        seed=int(seed),
    )
    return replace(made, **changes)


async def compute(
    live: Live, dispatch: Mapping[str, Any], **changes: Any
) -> tuple[Generation, tuple[str, ...]]:
    """Run a dispatch on the guests' engine; ``changes`` to its sampling are a liar's."""
    request = requested(dispatch)
    engine, pieces = live.engine, list[str]()
    if engine is None:
        raise RuleViolation("attack.engine", "this network has no guests, so nothing is run here")

    def note(event: TokenEvent) -> None:
        pieces.append(event.text)

    generation = await asyncio.to_thread(
        engine.generate,
        request.job.prompt,
        sampling(request, seed_of(dispatch, request), **changes),
        salt=b64u_decode(dispatch["nonce"]),
        on_token=note,
    )
    return generation, tuple(pieces)


def _honest(code: str) -> None:
    """Raises RuleViolation ``attack.twin`` where an honest step was refused."""
    if code != ACCEPTED:
        raise RuleViolation("attack.twin", f"an honest step was refused with {code}")
