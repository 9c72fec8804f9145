"""Where to challenge: a claim's header and leaf hashes against one's own run (docs/spec/13-dispute.md, "How to play").

What a claimant serves is data, not a move: ``served_tree`` believes it where it leads to the claim's ``state_root``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from aos.core.dispute.moves import Kind
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.state_tree import StateHeader, tokens_root
from aos.core.merkle import HASH_BYTES
from aos.errors import AOSError, VerificationError

_BEFORE_OUTPUT: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("header", ("model_id", "params_hash", "sampling_seed")),
    ("prompt", ("n_prompt", "prompt_tokens_hash")),
)
_AFTER_OUTPUT: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("stop", ("finish_reason", "n_out", "n_positions")),
    ("tokens", ("tokens_hash", "tokens_root")),
    ("text", ("response_hash",)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a challenge names; ``leaf`` is the challenger's own, empty where ``kind`` is not ``unit``."""

    kind: Kind
    position: int
    unit: int
    leaf: bytes


def served_tree(state_root: bytes, entry: bytes, units: Sequence[bytes], *, n_layers: int) -> StateTree:
    """A claim's tree, from what its claimant serves: the header's entry, and for every position its units' leaf hashes one
    after the other.

    Raises VerificationError ``dispute.served``: it is not what ``state_root`` commits, or no run of a model of ``n_layers``
    layers. Then nothing was served.
    """
    try:
        header = StateHeader.read(entry).check()
        split = [
            [leaves[at : at + HASH_BYTES] for at in range(0, len(leaves), HASH_BYTES)] for leaves in units
        ]
        tree = StateTree(header, split)
    except AOSError as error:
        raise _unserved(error.message) from error
    trapped = header.finish_reason == "numeric_trap"
    for position, leaves in enumerate(split):
        last = trapped and position == len(split) - 1
        whole = all(len(leaf) == HASH_BYTES for leaf in leaves)
        if not whole or not (len(leaves) == n_layers + 2 or (last and 1 <= len(leaves) <= n_layers + 2)):
            raise _unserved(f"position {position} has another number of units")
    if tree.root != state_root:
        raise _unserved("it does not lead to the state root")
    return tree


def aim(
    claim: StateTree, own: StateTree, *, claimed_tokens: Sequence[int] = (), own_tokens: Sequence[int] = ()
) -> Aim | None:
    """Where the claim first differs from one's own run of the same request; None where it does not.

    First what does not depend on the output; then whether the claim's run read other tokens than it disclosed, or than its
    tails chose; the leaves by position and unit; the rest of the header. Both token lists are prompt and output;
    ``claimed_tokens`` is what the claim's receipt hashes (its prompt is one's own by then), so the caller has checked it.
    Without it a claim whose leaves follow from a token that no tail chose is challenged where it can be recomputed.
    """
    theirs, ours = claim.header, own.header
    for kind, members in _BEFORE_OUTPUT:
        if any(getattr(theirs, name) != getattr(ours, name) for name in members):
            return _around(kind)
    read = [*own_tokens[: ours.n_prompt], *claimed_tokens[ours.n_prompt :]]
    other = _first_difference(read, own_tokens) if claimed_tokens else None
    before_other = max(0, (other or 0) - 1)
    if claimed_tokens and theirs.tokens_root != tokens_root(read):
        return _around("tokens", before_other)
    for position, (left, right) in enumerate(zip(claim.units, own.units, strict=False)):
        for unit, (leaf, wanted) in enumerate(zip(left, right, strict=False)):
            if leaf == wanted:
                continue
            if other is not None and other <= position:
                # The tail before committed one's own token, and the run went on with another.
                return _around("tokens", before_other)
            return Aim(kind="unit", position=position, unit=unit, leaf=wanted)
    if (theirs.finish_reason == "numeric_trap") != (ours.finish_reason == "numeric_trap"):
        return _around("trap")
    for kind, members in _AFTER_OUTPUT:
        if any(getattr(theirs, name) != getattr(ours, name) for name in members):
            return _around(kind, before_other if kind == "tokens" else 0)
    return None


def _first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    return next((at for at, (a, b) in enumerate(zip_longest(left, right)) if a != b), None)


def _around(kind: Kind, position: int = 0) -> Aim:
    return Aim(kind=kind, position=position, unit=0, leaf=b"")


def _unserved(what: str) -> VerificationError:
    return VerificationError(
        "dispute.served", f"the claimant's header and leaves are no data: {what}", field="leaves"
    )
