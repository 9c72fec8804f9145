"""A log for runs of ``simulated_run``: a tree with the run's acceptance and receipt among other leaves, signed and witnessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulated_run import Network, secret

from aos.core import merkle
from aos.core.answer import Answer
from aos.core.checks.logged import receipt_fact
from aos.core.log.checkpoint import TreeHead, log_key, origin_of, sign_checkpoint, with_signatures
from aos.core.log.leaf import Kind, LoggedLeaf, LogPart, fact_bytes, log_leaf
from aos.core.log.note import COSIGNATURE, NoteKey, NoteSignature, cosign_note, note_key, read_note
from aos.core.trust import Trust

AT = 1_790_000_000
WITNESSES = ("witness.example/one", "witness.example/two")


def leaf_of(number: int) -> bytes:
    """Some other leaf."""
    return log_leaf("snapshot", secret(f"salt {number}"), b"%d" % number)


@dataclass(frozen=True, slots=True)
class TestLog:
    """The log of a simulated network's dispatcher."""

    __test__ = False

    network: Network

    @property
    def seed(self) -> bytes:
        return secret(f"{self.network.name} log")

    @property
    def origin(self) -> str:
        return origin_of(self.network.name, self.network.dispatcher)

    @property
    def key(self) -> NoteKey:
        return log_key(self.origin, self.seed)

    def checkpoint(self, leaves: Sequence[bytes], *, time_s: int = AT, seed: bytes | None = None) -> str:
        """A signed checkpoint over these leaf hashes."""
        head = TreeHead(origin=self.origin, size=len(leaves), root=merkle.tree_root(leaves))
        return sign_checkpoint(head, self.seed if seed is None else seed, time_s)

    def trust(self, policy: str = "dev", *, quorum: int = 1) -> Trust:
        return replace(
            self.network.trust(policy),
            log_key=str(self.key),
            witnesses=tuple(str(witness_key(name)) for name in WITNESSES),
            witness_quorum=quorum,
        )

    def logged(
        self,
        answer: Answer,
        *,
        witnesses: Sequence[str] = WITNESSES[:1],
        order: Sequence[Kind] = ("acceptance", "receipt"),
        before: int = 5,
        behind: int = 3,
        seed: bytes | None = None,
        edit: Callable[[Any], Any] = lambda part: part,
    ) -> Answer:
        """The answer with its place in a tree of ``before`` other leaves, its own two in ``order``, and ``behind`` others."""
        facts = {
            "acceptance": fact_bytes(answer.acceptance.to_json()),
            "receipt": receipt_fact(answer.receipt),
        }
        salts = {kind: secret(f"salt of the {kind}") for kind in facts}
        leaves = [leaf_of(n) for n in range(before)]
        leaves += [log_leaf(kind, salts[kind], facts[kind]) for kind in order]
        leaves += [leaf_of(before + n) for n in range(behind)]
        shown = {
            kind: LoggedLeaf(
                salt=salts[kind],
                index=before + place,
                path=tuple(merkle.inclusion_path(leaves, before + place)),
            )
            for place, kind in enumerate(order)
        }
        text = self.checkpoint(leaves, seed=seed)
        text = with_signatures(text, [cosign(text, name) for name in witnesses])
        part = LogPart(checkpoint=text, acceptance=shown["acceptance"], receipt=shown["receipt"])
        return replace(answer, log=edit(part))


def witness_key(name: str) -> NoteKey:
    return note_key(name, secret(name), COSIGNATURE)


def cosign(text: str, name: str, *, seed: bytes | None = None, time_s: int = AT + 1) -> NoteSignature:
    return cosign_note(read_note(text).text, name, secret(name) if seed is None else seed, time_s)
