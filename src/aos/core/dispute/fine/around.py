"""What can be wrong around the model and is judged from openings alone: header, tokens, and the trap that ends a run
(docs/spec/11-trace.md, "Around the model"). What needs a tokenizer is ``aos.engine.around``.
"""

from collections.abc import Sequence

from aos.core.dispute.case import Case
from aos.core.dispute.fine.bounds import LAST_OP, Reader, Run, check_header, exists, state_shape
from aos.core.dispute.state_opening import (
    LeafOpening,
    Place,
    StateOpening,
    StateTree,
    open_tokens,
    verify_header,
    verify_leaves,
    verify_tiles,
    verify_tokens,
    verify_trap,
)
from aos.core.dispute.state_tree import (
    HEADER_BYTES,
    TOKEN,
    TOKENS_A_TILE,
    Part,
    StateHeader,
    StateShape,
    tokens_root,
)
from aos.core.hashes import u32
from aos.core.merkle import HASH_BYTES, range_path_length
from aos.core.statements import ReceiptCore
from aos.errors import VerificationError

MAX_AROUND_BYTES = 40 * 1024


# --- the claimant's side


def prove_header(tree: StateTree) -> bytes:
    """The header and its path: the proof of ``header``, and the beginning of the others."""
    return tree.header.entry() + b"".join(tree.open_header())


def prove_tokens(
    tree: StateTree, tokens: Sequence[int], position: int, trap_unit: int | None, tail: StateOpening | None
) -> bytes:
    """The proof of ``tokens``. ``tail`` opens the token that the tail at ``position`` chose, None where it chose none."""
    out = [prove_header(tree)]
    if trap_unit is not None:
        out.append(u32(trap_unit))
    if tail is not None:
        data, path = open_tokens(tokens, (position + 1) // TOKENS_A_TILE)
        out += [tail.encode(), data, *path]
    return b"".join(out)


def prove_trap(tree: StateTree, trap: tuple[int, int] | None) -> bytes:
    """The proof of ``trap``: the last leaf of the last position, and that it is a trap where the run says so; ``trap`` is
    its (unit, op).
    """
    out = [prove_header(tree)]
    if tree.units:
        last = len(tree.units) - 1
        unit = len(tree.units[last]) - 1
        out += [u32(trap[0]), u32(trap[1])] if trap is not None else [tree.units[last][unit]]
        out.append(tree.open_leaves(last, unit).encode())
    return b"".join(out)


# --- the referee's side


def check_header_proof(case: Case, run: Run, proof: bytes) -> StateHeader:
    """``header``: the header is that of the receipt, of the model and of the parameters.

    Raises VerificationError ``dispute.header``, ``tile.header``, ``tile.bounds``, ``state.*``.
    """
    reader = Reader(proof)
    header = _header(case.core, run, reader)
    reader.end()
    return header


def check_tokens_proof(case: Case, run: Run, position: int, proof: bytes) -> None:
    """``tokens``: the header's tokens are the disclosed ones, and the one at ``position`` + 1 is what the tail at
    ``position`` chose.

    Raises VerificationError ``around.tokens``, and as ``check_header_proof``.
    """
    reader = Reader(proof)
    header = _header(case.core, run, reader)
    trapped = header.finish_reason == "numeric_trap"
    shape = state_shape(run, header, reader.number() if trapped else None)
    if case.prompt_tokens is not None and case.tokens is not None:
        known = [*case.prompt_tokens, *case.tokens]
        if (header.n_prompt, header.n_out) != (len(case.prompt_tokens), len(case.tokens)):
            raise _wrong("tokens", "the header counts other tokens than there are")
        if tokens_root(known) != header.tokens_root:
            raise _wrong("tokens", "the header commits to other tokens than the receipt hashes")
    tail = shape.n_layers + 1
    if exists(shape, position, tail) and not shape.is_trap(position, tail) and shape.parts(position, tail):
        place = Place(position=position, unit=tail, part=TOKEN, tile=0)
        opening = StateOpening.decode(reader.take(StateOpening.size(shape, place)), shape, place)
        chosen = int.from_bytes(verify_tiles(run.state_root, shape, place, opening)[0], "little")
        part = Part(4 * (header.n_prompt + header.n_out), 4 * TOKENS_A_TILE)
        if position + 1 >= header.n_prompt + header.n_out:
            raise _wrong("tokens", "a tail chose a token that the run does not have")
        tile, index = divmod(position + 1, TOKENS_A_TILE)
        data = reader.take(part.tile_size(tile))
        ids = verify_tokens(header, tile, data, reader.hashes(range_path_length(tile, 1, part.tiles)))
        if ids[index] != chosen:
            raise _wrong("tokens", "a token of the run is not the one that the tail chose")
    reader.end()


def check_trap_proof(case: Case, run: Run, proof: bytes) -> None:
    """``trap``: a run that ends by a trap commits to one, and no other ends before its last tail.

    Raises VerificationError ``around.trap``, ``state.*``, and as ``check_header_proof``.
    """
    reader = Reader(proof)
    header = _header(case.core, run, reader)
    if header.finish_reason == "numeric_trap":
        unit, op = reader.number(), reader.number()
        if not 1 <= op <= LAST_OP:
            raise _wrong("trap", "no op has the number of the trap")
        shape = state_shape(run, header, unit)
        verify_trap(run.state_root, shape, op, _leaf_opening(reader, shape, header.n_positions - 1, unit))
    elif header.n_positions:
        shape = state_shape(run, header, None)
        last, unit = header.n_positions - 1, shape.n_layers + 1
        leaf = reader.take(HASH_BYTES)
        verify_leaves(run.state_root, shape, last, unit, [leaf], _leaf_opening(reader, shape, last, unit))
    reader.end()


def _leaf_opening(reader: Reader, shape: StateShape, position: int, unit: int) -> LeafOpening:
    return LeafOpening.decode(reader.take(LeafOpening.size(shape, position, unit)), shape, position, unit)


def _header(core: ReceiptCore, run: Run, reader: Reader) -> StateHeader:
    entry = reader.take(HEADER_BYTES)
    count = 1 + StateHeader.read(entry).n_positions
    header = verify_header(run.state_root, entry, reader.hashes(range_path_length(0, 1, count)))
    check_receipt(core, header)
    check_header(run, header)
    header.check()
    return header


def check_receipt(core: ReceiptCore, header: StateHeader) -> None:
    """Check that a run's header is what its receipt says. Raises VerificationError ``dispute.header`` naming the member."""
    stated = {
        "model_id": core.model_id,
        "prompt_tokens_hash": core.prompt_tokens_hash,
        "sampling_seed": int(core.sampling_seed),
        "n_prompt": core.n_prompt,
        "n_out": core.n_out,
        "finish_reason": core.finish_reason,
        "tokens_hash": core.tokens_hash,
        "response_hash": core.response_hash,
    }
    for name, value in stated.items():
        if getattr(header, name) != value:
            raise VerificationError(
                "dispute.header", f"receipt and state root disagree about {name}", field=name
            )


def _wrong(kind: str, what: str) -> VerificationError:
    return VerificationError(f"around.{kind}", what, field="proof")
