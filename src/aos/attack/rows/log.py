"""The dispatcher's log: row 54. The attacker is the dispatcher, and signs with its own keys."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aos.attack.live import Live, refusal
from aos.attack.table import ACCEPTED, Trial, row
from aos.client.log import LogReader, look
from aos.core import merkle
from aos.core.answer import Answer
from aos.core.checks.logged import receipt_fact
from aos.core.encoding import b64u_decode, parse_json_strict, tagged_hash
from aos.core.keys import parse_key
from aos.core.log.checkpoint import Checkpoint, TreeHead, sign_checkpoint, verify_checkpoint
from aos.core.log.conviction import (
    BrokenPromise,
    Conviction,
    Fork,
    Reordered,
    Rollback,
    ShownFact,
    SplitView,
    judge,
)
from aos.core.log.leaf import Kind, LoggedLeaf, LogPart, LogPromise, entry_of, fact_bytes, log_leaf
from aos.core.log.note import NoteKey
from aos.core.statements import Signed, verify_signed
from aos.core.trust import load_policy
from aos.errors import AOSError, RuleViolation

_PAGE = 1000


@row(
    54,
    "D drops, tells two histories, reorders, back-dates",
    "log.split_view",
    "log.fork",
    "log.rollback",
    "log.broken_promise",
    "log.reordered",
    "log.order",
    "checkpoint.unsigned",
    "merkle.root_mismatch",
    missing="what was promised to nobody may be left out unseen; two strangers must compare, or name witnesses",
)
async def another_history(live: Live, t: Trial) -> None:
    log = _Log.of(live)
    answer = await live.opml()
    text = await log.checkpoint()
    honest = log.verified(text)
    size, now = honest.head.size, honest.time_s

    # --- two histories, told to two strangers, or to one after the other
    other = [tagged_hash("attack-leaf", bytes([n % 256, n // 256 % 256])) for n in range(size + 1)]
    t.attack(
        "two roots for one size",
        "log.split_view",
        log.convicted(
            SplitView(kind="split_view", log=str(log.key), first=text, second=log.signed(other[:size], now))
        ),
    )
    fork = Fork(
        kind="fork",
        log=str(log.key),
        first=text,
        second=log.signed(other, now),
        old_root=merkle.tree_root(other[:size]),
        path=tuple(merkle.consistency_path(other, size)),
    )
    t.attack("a larger tree that does not begin with the first", "log.fork", log.convicted(fork))
    t.attack(
        "another history, seen by who kept a checkpoint",
        "log.fork",
        await log.watched(log.signed(other[:3], now)),
    )
    shorter = log.signed(other[: size - 1], now + 1)
    t.attack(
        "the last leaf taken back",
        "log.rollback",
        log.convicted(Rollback(kind="rollback", log=str(log.key), first=text, second=shorter)),
    )
    t.twin("the log's own next checkpoint", await log.watched(text))

    # --- a job that was accepted and left out, or logged too late
    promise = await log.promise()
    statement = promise.statement
    leaves = await log.leaves_to(promise)
    dated = statement.integrate_by // 1000 + 1
    index = leaves.index(statement.leaf)
    dropped = [*leaves[:index], tagged_hash("attack-leaf", b"filler"), *leaves[index + 1 :]]
    t.attack(
        "an accepted job left out", "log.broken_promise", log.convicted(log.broken(promise, dropped, dated))
    )
    t.attack(
        "an accepted job logged after its time",
        "log.broken_promise",
        log.convicted(log.broken(promise, leaves[: statement.first], dated)),
    )
    kept = refusal(lambda: judge(log.broken(promise, leaves, dated)))
    t.twin("the same job, kept", ACCEPTED if kept == "conviction.kept" else kept)

    # --- order
    t.attack(
        "a draw recorded before it was called",
        "log.reordered",
        log.convicted(log.reordered(answer, honest=False)),
    )
    ordered = refusal(lambda: judge(log.reordered(answer, honest=True)))
    t.twin("recorded after it", ACCEPTED if ordered == "conviction.consistent" else ordered)
    policy = load_policy("dev")
    strict = replace(policy, required=(*policy.required, "log-1"))
    t.attack(
        "a receipt logged before its job was accepted",
        "log.order",
        live.judge(log.relogged(answer, ("receipt", "acceptance"), now), policy=strict),
    )
    t.attack(
        "a receipt that the log does not hold",
        "merkle.root_mismatch",
        live.judge(
            replace(answer, log=log.relogged(await live.opml("second"), ("acceptance", "receipt"), now).log),
            policy=strict,
        ),
    )
    foreign = log.relogged(answer, ("acceptance", "receipt"), now, seed=bytes(range(32)))
    t.attack("a log of somebody else", "checkpoint.unsigned", live.judge(foreign, policy=strict))
    t.twin("the answer with its place in the log", live.judge(answer, policy=strict))
    t.twin(
        "logged again, in order",
        live.judge(log.relogged(answer, ("acceptance", "receipt"), now), policy=strict),
    )


class _Log:
    """The network's log, with the dispatcher's own key."""

    def __init__(self, live: Live, key: NoteKey, seed: bytes) -> None:
        self.live, self.key, self._seed = live, key, seed

    @classmethod
    def of(cls, live: Live) -> "_Log":
        """Raises RuleViolation ``attack.no_log``."""
        path: Path = live.state / "dispatcher" / "log.key"
        key = live.trust.log
        if key is None or not path.is_file():
            raise RuleViolation("attack.no_log", "this network has no log, or its key is elsewhere")
        return cls(live, key, parse_key(path.read_text().strip(), name="log_key"))

    def verified(self, text: str) -> Checkpoint:
        return verify_checkpoint(text, self.key)

    def signed(self, leaves: Sequence[bytes], time_s: int, seed: bytes | None = None) -> str:
        """A checkpoint over any leaf hashes."""
        head = TreeHead(origin=self.key.name, size=len(leaves), root=merkle.tree_root(leaves))
        return sign_checkpoint(head, self._seed if seed is None else seed, time_s)

    def convicted(self, conviction: Conviction) -> str:
        """What the file convicts the log of; ``accepted`` where it proves nothing."""
        try:
            return judge(conviction, [self.key]).code
        except AOSError:
            return ACCEPTED

    async def checkpoint(self) -> str:
        def run() -> str:
            with LogReader(self.live.url) as reader:
                return reader.checkpoint()

        return await asyncio.to_thread(run)

    async def watched(self, held: str) -> str:
        """What a watcher who kept this checkpoint finds of the live log."""

        def run() -> str:
            with LogReader(self.live.url) as reader:
                found = look(reader, self.key, self.verified(held))
            if found.conviction is not None:
                return judge(found.conviction, [self.key]).code
            return ACCEPTED if found.broken is None else found.broken.code

        return await asyncio.to_thread(run)

    async def promise(self) -> Signed[LogPromise]:
        """The promise that a new job is answered with. Raises RuleViolation ``attack.no_promise``."""
        answer = await self.live.http.post(f"{self.live.url}/api/job/submit", json=self.live.seed_body())
        header = answer.headers.get("x-aos-log-promise", "")
        if not header:
            raise RuleViolation("attack.no_promise", f"no promise came with a job: {answer.status_code}")
        pair = parse_json_strict(b64u_decode(header), max_bytes=16_384)
        await self.live.follow(answer.json()["result"])
        return verify_signed(LogPromise, pair, address=self.live.dispatcher)

    async def leaves_to(self, promise: Signed[LogPromise]) -> list[bytes]:
        """The log's leaf hashes, up to the promised one and beyond. Raises RuleViolation ``attack.no_leaf``."""
        for _ in range(100):
            leaves = await asyncio.to_thread(self._leaves)
            if promise.statement.leaf in leaves[promise.statement.first :]:
                return leaves
            await asyncio.sleep(0.1)
        raise RuleViolation("attack.no_leaf", "the promised leaf does not come")

    def _leaves(self) -> list[bytes]:
        leaves: list[bytes] = []
        with LogReader(self.live.url) as reader:
            while page := reader.entries(len(leaves), _PAGE):
                leaves += [
                    merkle.leaf_hash(entry_of(e["kind"], b64u_decode(e["digest"], length=32))) for e in page
                ]
        return leaves

    def broken(self, promise: Signed[LogPromise], leaves: list[bytes], time_s: int) -> BrokenPromise:
        """A tree of these leaves, dated and shown against the promise."""
        first = promise.statement.first
        tail = leaves[first:]
        path = merkle.MerkleTree(leaves).range_path(first, len(tail)) if tail else []
        return BrokenPromise(
            kind="broken_promise",
            log=str(self.key),
            promise=promise,
            checkpoint=self.signed(leaves, time_s),
            leaves=tuple(tail),
            path=tuple(path),
        )

    def reordered(self, answer: Answer, *, honest: bool) -> Reordered:
        """A tree with the answer's draw record and draw call in it."""
        facts: dict[Kind, bytes] = {
            "draw_call": fact_bytes(answer.draw.draw_call.to_json()),
            "draw_record": fact_bytes(answer.draw.draw_record.to_json()),
        }
        order: list[Kind] = ["draw_call", "draw_record"] if honest else ["draw_record", "draw_call"]
        leaves = [log_leaf(kind, _salt(kind), facts[kind]) for kind in order]

        def shown(kind: Kind) -> ShownFact:
            at = order.index(kind)
            return ShownFact(
                kind=kind,
                fact=facts[kind].decode(),
                salt=_salt(kind),
                index=at,
                path=tuple(merkle.inclusion_path(leaves, at)),
            )

        return Reordered(
            kind="reordered",
            log=str(self.key),
            checkpoint=self.signed(leaves, 1),
            cause=shown("draw_call"),
            effect=shown("draw_record"),
        )

    def relogged(
        self, answer: Answer, order: tuple[Kind, Kind], time_s: int, seed: bytes | None = None
    ) -> Answer:
        """The answer, shown in a tree of its own two leaves in ``order``."""
        facts: dict[Kind, bytes] = {
            "acceptance": fact_bytes(answer.acceptance.to_json()),
            "receipt": receipt_fact(answer.receipt),
        }
        leaves = [log_leaf(kind, _salt(kind), facts[kind]) for kind in order]
        shown: dict[str, Any] = {
            kind: LoggedLeaf(salt=_salt(kind), index=at, path=tuple(merkle.inclusion_path(leaves, at)))
            for at, kind in enumerate(order)
        }
        return replace(answer, log=LogPart(checkpoint=self.signed(leaves, time_s, seed), **shown))


def _salt(kind: Kind) -> bytes:
    return tagged_hash("attack-salt", kind.encode())
