"""An operator in disputes (docs/spec/13-dispute.md, "In the network"): it serves the leaves of its claims, answers games about
them, and challenges every claim in whose runs it committed another root, on its own.

The dispatcher is asked what waits, over HTTP, with a signed question; its hint over the link only says that it is time. Moves
are made by the worker that has the model, signed here, stored before they are sent, and once stored never made anew.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import structlog

from aos.core.codec import decode
from aos.core.dispute.coarse import aim, served_tree
from aos.core.dispute.moves import Answer, Move, Open, game_id, read_move, turn_of
from aos.core.encoding import b64u_decode, b64u_encode, canonical_json, parse_json_strict
from aos.core.hashes import tokens_hash
from aos.core.manifest import Manifest
from aos.core.statements import ReceiptCore, Signed, check_signed, hash_of, read_signed, sign
from aos.errors import AOSError, RuleViolation, Unavailable, VerificationError
from aos.operator.court import CourtClient, document
from aos.operator.identity import Identity
from aos.operator.network import Network
from aos.operator.rows import Assignment, from_text, to_text
from aos.operator.store import Store
from aos.operator.worker_client import WorkerClient

log = structlog.get_logger("aos.operator")

LOOK_EVERY_S = 15.0
AGAIN_S = 2.0
MAX_KNOWN = 1_000


class Disputes:
    """One operator's part in disputes. ``worker`` gives the worker that has a model (32-byte id), None while there is none;
    ``audited`` is told which audits wait (``aos.operator.audits``).
    """

    def __init__(
        self,
        store: Store,
        identity: Identity,
        *,
        court: CourtClient,
        network: Callable[[], Network | None],
        worker: Callable[[bytes], WorkerClient | None],
        audited: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._store = store
        self._identity = identity
        self._court = court
        self._network = network
        self._worker = worker
        self._audited = audited
        self._signal = asyncio.Event()
        self._refused: set[tuple[str, str, str]] = set()

    async def on_hint(self, body: object) -> dict[str, Any]:
        """Handle ``dispute``: something may wait. What it is, the dispatcher is asked."""
        self._signal.set()
        return {}

    async def run(self) -> None:
        """Look when hinted and every few seconds, until cancelled."""
        while True:
            self._signal.clear()
            pause_s = LOOK_EVERY_S
            try:
                if not await self._look():
                    pause_s = AGAIN_S
            except Unavailable as error:
                log.info("dispute.waits", code=error.code)
                pause_s = AGAIN_S
            except AOSError as error:
                log.warning("dispute.refused", code=error.code, message=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._signal.wait()

    async def _look(self) -> bool:
        """Do what waits; False where something of it is to be tried again soon."""
        network = self._network()
        if network is None:
            return True
        waiting = await self._court.get(network, "/v1/aos/disputes/waiting", b"")
        done = True
        with document():
            await self._store.keep_for(int(waiting["keep_ms"]))
            self._audited(waiting["audit"])
            for each in waiting["serve"]:
                done &= await self._try("serve", each["claim"], self._serve(network, each))
            for each in waiting["challenge"]:
                done &= await self._try("challenge", each["claim"], self._challenge(network, each))
            for each in waiting["move"]:
                done &= await self._try("move", each["game"], self._move(network, each))
        return done

    async def _try(self, what: str, name: str, work: Any) -> bool:
        try:
            with document():
                await work
        except AOSError as error:
            key = (what, name, error.code)
            if key not in self._refused and len(self._refused) < MAX_KNOWN:
                self._refused.add(key)
                log.warning(f"dispute.{what}_failed", name=name, code=error.code, message=error.message)
            return not isinstance(error, Unavailable) and error.code != "dispute.not_served"
        return True

    # --- as claimant

    async def _serve(self, network: Network, wanted: dict[str, Any]) -> None:
        held, worker = await self._own(wanted)
        if self._claim_of(held) != b64u_decode(wanted["claim"], length=32):
            raise VerificationError("dispute.wrong_claim", "this operator has signed no such claim")
        leaves = await worker.trace(
            {"task": "leaves", "run": run_of(held), "party": None, "transcript": None}
        )
        await self._court.send("PUT", f"/v1/aos/disputes/claims/{wanted['claim']}/leaves", leaves)
        log.info("dispute.served", claim=wanted["claim"])

    # --- as challenger

    async def _challenge(self, network: Network, wanted: dict[str, Any]) -> None:
        claim: Signed[ReceiptCore] = read_signed(ReceiptCore, wanted["receipt"], where="receipt")
        core = claim.statement
        check_signed(claim, address=core.operator)
        held, worker = await self._own(wanted)
        if (
            hash_of(core) != b64u_decode(wanted["claim"], length=32)
            or core.operator == self._identity.node_id
        ):
            raise VerificationError("dispute.wrong_claim", "the claim to challenge is another one")
        path = f"/v1/aos/disputes/claims/{wanted['claim']}"
        subject = b64u_decode(wanted["claim"], length=32)
        move = await self._stored(_game_of(network, core, self._identity.node_id), 0)
        if move is None:
            served = await self._court.get(network, path + "/leaves", subject)
            described = await self._court.get(network, path, subject)
            own = await worker.trace(
                {"task": "leaves", "run": run_of(held), "party": None, "transcript": None}
            )
            opening = await asyncio.to_thread(
                self._aimed, network, core, held, served, described, own, wanted["bond"]
            )
            if opening is None:
                raise VerificationError("dispute.no_difference", "the claim differs nowhere from this run")
            move = await self._keep(opening, hash_of(core))
        await self._court.send("POST", "/v1/aos/disputes", move)
        log.info("dispute.challenged", claim=wanted["claim"])

    def _aimed(
        self,
        network: Network,
        core: ReceiptCore,
        held: Assignment,
        served: dict[str, Any],
        described: dict[str, Any],
        own: dict[str, Any],
        bond: int,
    ) -> Open | None:
        assert held.receipt is not None  # noqa: S101  _own has looked
        manifest = decode(Manifest, parse_json_strict(own["manifest"].encode(), max_bytes=1 << 16))
        assert manifest.graph is not None  # noqa: S101  the worker has traced it
        root = b64u_decode(held.receipt["state_root"], length=32)
        trees = [
            served_tree(
                state_root,
                b64u_decode(each["header"]),
                [b64u_decode(unit) for unit in each["units"]],
                n_layers=manifest.graph.n_layers,
            )
            for state_root, each in ((core.state_root, served), (root, own))
        ]
        assert held.result is not None  # noqa: S101  _own has looked
        if tokens_hash(held.nonce, described["tokens"]) != core.tokens_hash:
            raise VerificationError(
                "dispute.served", "the dispatcher shows other tokens than the claim's receipt hashes"
            )
        found = aim(
            trees[0],
            trees[1],
            claimed_tokens=[*served["prompt_tokens"], *described["tokens"]],
            own_tokens=[*own["prompt_tokens"], *held.result["tokens"]],
        )
        if found is None:
            return None
        return Open(
            network=network.name,
            challenger=self._identity.node_id,
            claimant=core.operator,
            claim=hash_of(core),
            job_ref=core.job_ref,
            attempt=core.attempt,
            kind=found.kind,
            position=found.position,
            unit=found.unit,
            state_root=root,
            leaf=found.leaf,
            bond=bond,
        )

    # --- as either

    async def _move(self, network: Network, wanted: dict[str, Any]) -> None:
        game = b64u_decode(wanted["game"], length=32)
        transcript = await self._court.get(network, f"/v1/aos/disputes/{wanted['game']}/transcript", game)
        turn = len(transcript["moves"])
        move = await self._stored(game, turn)
        if move is None:
            first = read_move(transcript["moves"][0]["move"], where="moves[0]").statement
            if not isinstance(first, Open) or game_id(first) != game:
                raise VerificationError("dispute.wrong_game", "the transcript is of another game")
            held, worker = await self._own({"job_ref": b64u_encode(first.job_ref), "attempt": first.attempt})
            party = "claimant" if first.claimant == self._identity.node_id else "challenger"
            if party == "claimant" and self._claim_of(held) != first.claim:
                raise VerificationError("dispute.wrong_claim", "this operator has signed no such claim")
            made = await worker.trace(
                {
                    "task": "move",
                    "run": run_of(held),
                    "party": party,
                    "transcript": canonical_json(transcript).decode(),
                }
            )
            # The signature is no part of what is decided here: it is put in only to read the statement strictly.
            statement = read_move({"statement": made["move"], "signature": b64u_encode(bytes(65))}).statement
            if (game_id(statement), turn_of(statement)) != (game, turn):
                raise VerificationError("worker.inconsistent", "the worker's move is of another game or turn")
            move = await self._keep(statement, first.claim)
        await self._court.send("POST", f"/v1/aos/disputes/{wanted['game']}/moves", move)
        log.info("dispute.moved", game=wanted["game"], turn=turn)

    # --- what is kept

    async def _own(self, wanted: dict[str, Any]) -> tuple[Assignment, WorkerClient]:
        return await own_run(self._store, self._worker, wanted)

    def _claim_of(self, held: Assignment) -> bytes:
        return hash_of(decode(ReceiptCore, held.receipt))

    async def _stored(self, game: bytes, turn: int) -> dict[str, Any] | None:
        async with self._store.transaction() as db:
            text = await db.fetchval(
                "SELECT move FROM dispute_move WHERE game = $1 AND turn = $2", game, turn
            )
        return None if text is None else from_text(text)

    async def _keep(self, statement: Move, claim: bytes) -> dict[str, Any]:
        """Sign and store a move; the one that is stored already, where another was quicker.

        Raises VerificationError ``dispute.two_unit_roots`` before a signature that would convict this operator.
        """
        game, turn = game_id(statement), turn_of(statement)
        signed = sign(self._identity.signer_key, statement).to_json()
        async with self._store.transaction() as db:
            if isinstance(statement, Answer):
                place = (claim, statement.position, statement.unit)
                await db.execute(
                    """INSERT INTO dispute_unit_root (claim, position, unit, unit_root) VALUES ($1, $2, $3, $4)
                       ON CONFLICT DO NOTHING""",
                    *place,
                    statement.unit_root,
                )
                root = await db.fetchval(
                    "SELECT unit_root FROM dispute_unit_root WHERE (claim, position, unit) = ($1, $2, $3)",
                    *place,
                )
                if root != statement.unit_root:
                    raise VerificationError(
                        "dispute.two_unit_roots", "the worker traces this unit otherwise than before"
                    )
            await db.execute(
                "INSERT INTO dispute_move (game, turn, claim, move) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
                game,
                turn,
                claim,
                to_text(signed),
            )
            text = await db.fetchval(
                "SELECT move FROM dispute_move WHERE game = $1 AND turn = $2", game, turn
            )
        kept: dict[str, Any] = from_text(text)
        return kept


async def own_run(
    store: Store, worker_with: Callable[[bytes], WorkerClient | None], wanted: dict[str, Any]
) -> tuple[Assignment, WorkerClient]:
    """This operator's own run of the job that ``wanted`` names, and who can trace it.

    Raises RuleViolation ``dispute.not_kept``; Unavailable ``worker.unavailable``.
    """
    if "receipt" in wanted:
        wanted = wanted["receipt"]["statement"]
    job_ref, attempt = b64u_decode(wanted["job_ref"], length=32), wanted["attempt"]
    held = await store.assignment(job_ref, attempt)
    if held is None or held.receipt is None or held.result is None or not held.request:
        raise RuleViolation("dispute.not_kept", "this operator does not hold its run of that job any more")
    worker = worker_with(held.model_id)
    if worker is None:
        raise Unavailable("worker.unavailable", "no worker with the model answers")
    return held, worker


def run_of(held: Assignment) -> dict[str, Any]:
    """A run of this operator as its worker takes it (09, "Worker", ``trace``)."""
    assert held.result is not None  # noqa: S101  _own has looked
    return {
        "request": held.request.decode(),
        "nonce": b64u_encode(held.nonce),
        "sampling_seed": held.sampling_seed,
        "tokens": held.result["tokens"],
        "state_root": held.result["state_root"],
    }


def _game_of(network: Network, core: ReceiptCore, challenger: str) -> bytes:
    return game_id(
        Open(
            network=network.name,
            challenger=challenger,
            claimant=core.operator,
            claim=hash_of(core),
            job_ref=core.job_ref,
            attempt=core.attempt,
            kind="header",
            position=0,
            unit=0,
            state_root=bytes(32),
            leaf=b"",
            bond=0,
        )
    )
