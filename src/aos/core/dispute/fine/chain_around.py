"""What a court on a chain judges around the model: whether a run's tokens are those that its tails chose, and whether its header
is what its receipt states (docs/spec/16-chain-disputes.md, "Tokens, receipt and parameters"). The contract is ``Around.sol``.

A function says whether what is shown is right. It raises where an opening does not hold: then nothing was shown, and nobody
is at fault.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aos.core.codec import encode
from aos.core.dispute.coarse import Aim
from aos.core.dispute.fine.around import prove_header, prove_tokens
from aos.core.dispute.fine.bounds import Reader
from aos.core.dispute.state_opening import (
    Place,
    StateOpening,
    StateTree,
    verify_header,
    verify_tiles,
    verify_tokens,
)
from aos.core.dispute.state_tree import (
    HEADER_BYTES,
    TOKEN,
    TOKENS_A_TILE,
    Part,
    StateHeader,
    StateShape,
    graph_shape,
    tokens_root,
)
from aos.core.encoding import b64u_encode, canonical_json, tagged_hash
from aos.core.hashes import params_hash, prompt_tokens_hash, run_params_hash, token_bytes, tokens_hash
from aos.core.manifest import GraphSizes, Manifest
from aos.core.merkle import range_path_length
from aos.core.statements import Params, ReceiptCore
from aos.errors import VerificationError

TOKENS_UNIT = 2**16 - 1
"""The unit of a game about the token behind a position."""

OTHER_TOKENS, OTHER_RECEIPT = 12, 13
"""The court's codes of a claim that is convicted here: ``around.tokens``, ``dispute.header``."""

MEMBERS = (
    "model_id",
    "prompt_tokens_hash",
    "tokens_hash",
    "response_hash",
    "state_root",
    "n_prompt",
    "n_out",
    "sampling_seed",
    "finish_reason",
)
"""What a receipt states of a run that its header (and its root) say too, by the contract's numbers."""


# --- the judge's side


def token_is_chosen(
    manifest: Manifest, graph: GraphSizes, state_root: bytes, position: int, proof: bytes
) -> bool:
    """Whether the token behind ``position`` is the one that the tail there chose; true, too, where none chose one.
    ``proof`` is that of ``prove_tokens``.

    Raises VerificationError ``tile.header``, ``tile.bounds``, ``state.*``; InvalidMessage ``state.*``.
    """
    reader = Reader(proof)
    header = _opened(reader, state_root)
    if header.model_id != manifest.model_id or header.n_prompt + header.n_out > graph.n_ctx:
        raise VerificationError("tile.header", "the header is of no run of the model", field="header")
    trap_unit = reader.number() if header.finish_reason == "numeric_trap" else None
    shape = _shape(header, graph, trap_unit)
    total = header.n_prompt + header.n_out
    if not header.n_prompt <= position + 1 < total:
        reader.end()
        return True
    place = Place(position=position, unit=graph.n_layers + 1, part=TOKEN, tile=0)
    opening = StateOpening.decode(reader.take(StateOpening.size(shape, place)), shape, place)
    chosen = int.from_bytes(verify_tiles(state_root, shape, place, opening)[0], "little")
    part = Part(4 * total, 4 * TOKENS_A_TILE)
    tile, index = divmod(position + 1, TOKENS_A_TILE)
    data = reader.take(part.tile_size(tile))
    ids = verify_tokens(header, tile, data, reader.hashes(range_path_length(tile, 1, part.tiles)))
    reader.end()
    return ids[index] == chosen


def tokens_are_hashed(state_root: bytes, opened: bytes, nonce: bytes, n_prompt: int, ids: bytes) -> bool:
    """Whether the header's ``tokens_root`` is that of the tokens which it hashes, all of which are shown (``token_bytes``).

    Raises VerificationError ``around.hashes``, ``tile.bounds``, ``state.opening``; InvalidMessage ``state.header``.
    """
    header = _header(state_root, opened)
    if len(ids) % 4 or n_prompt > len(ids) // 4:
        raise _unshown("the ids are none", "ids")
    tokens = [int.from_bytes(ids[at : at + 4], "little") for at in range(0, len(ids), 4)]
    prompt, output = tokens[:n_prompt], tokens[n_prompt:]
    hashes = (prompt_tokens_hash(nonce, prompt), tokens_hash(nonce, output))
    if hashes != (header.prompt_tokens_hash, header.tokens_hash):
        raise _unshown("the header hashes other tokens", "ids")
    counted = (header.n_prompt, header.n_out) == (len(prompt), len(output))
    return bool(tokens) and counted and tokens_root(tokens) == header.tokens_root


def receipt_states(
    state_root: bytes, opened: bytes, receipt: bytes, core: bytes, member: int, begin: int
) -> bool:
    """Whether the receipt whose hash is ``receipt``, its canonical JSON being ``core``, states of the run what the header says.
    ``begin`` is where the member begins, with the comma before it.

    Raises VerificationError ``around.receipt``, ``tile.bounds``, ``state.opening``; InvalidMessage ``state.header``.
    """
    header = _header(state_root, opened)
    if not 0 <= member < len(MEMBERS):
        raise VerificationError("around.receipt", "no such member is judged", field="member")
    return _states(receipt, core, begin, MEMBERS[member], _value(header, state_root, member))


def params_are_asked(
    state_root: bytes, opened: bytes, receipt: bytes, core: bytes, begin: int, nonce: bytes, params: Params
) -> bool:
    """Whether the run was computed with the parameters that its receipt hashes; ``begin`` is where ``params_hash`` begins in
    the receipt's canonical JSON, with the comma before it.

    Raises as ``receipt_states``, and VerificationError ``around.hashes`` where the receipt hashes other parameters.
    """
    header = _header(state_root, opened)
    if not _states(receipt, core, begin, "params_hash", _text(params_hash(nonce, params))):
        raise _unshown("the receipt hashes other parameters", "params")
    return run_params_hash(nonce, params) == header.params_hash


def may_end(header: StateHeader, max_tokens: int, n_ctx: int) -> bool:
    """Whether a run of so many tokens may have ended as its header says: what of a ``stop`` game needs no tokenizer. Bounds of a
    run that may not are no answer on a chain.
    """
    limit = min(max_tokens, n_ctx - header.n_prompt)
    if header.finish_reason == "stop":
        return header.n_out <= limit
    return header.n_out == limit if header.finish_reason == "length" else header.n_out < limit


# --- the accuser's side


@dataclass(frozen=True, slots=True, kw_only=True)
class Accusation:
    """A call of the court that convicts at once; ``arguments`` are those behind the claim and its signature."""

    function: Literal["convictToken", "convictTokens", "convictReceipt", "convictParams"]
    arguments: tuple[object, ...]


def accuse(
    core: ReceiptCore, tree: StateTree, *, nonce: bytes, params: Params, tokens: Sequence[int]
) -> Accusation | None:
    """What a claim's own data convict it of, without a run of one's own; None where they agree. ``nonce``, ``params`` and
    ``tokens`` (prompt and output) are what the receipt hashes: the caller has checked them.
    """
    header, text = tree.header, canonical_json(encode(core))
    opened = prove_header(tree)
    for member, name in enumerate(MEMBERS):
        begin = text.index(_key(name))
        if not text.startswith(_value(header, tree.root, member) + b",", begin + len(_key(name))):
            return Accusation(function="convictReceipt", arguments=(opened, text, member, begin))
    if header.params_hash != run_params_hash(nonce, params):
        shown = (
            nonce,
            params.max_tokens,
            params.min_p,
            params.repeat_penalty,
            canonical_json(list(params.stop)),
            params.temperature,
            params.top_k,
            params.top_p,
        )
        begin = text.index(_key("params_hash"))
        seed = (params.seed is None, int(params.seed or 0))
        return Accusation(function="convictParams", arguments=(opened, text, begin, shown, *seed))
    if header.tokens_root != tokens_root(tokens):
        return Accusation(
            function="convictTokens", arguments=(opened, nonce, core.n_prompt, token_bytes(tokens))
        )
    return None


def accuse_token(
    tree: StateTree, shape: StateShape, tokens: Sequence[int], position: int, payload: Sequence[bytes]
) -> Accusation:
    """That the token behind ``position`` is not the one that the tail there chose; as ``open_token``."""
    proof = open_token(tree, shape, tokens, position, payload)
    return Accusation(function="convictToken", arguments=(position, proof))


def aim_at_unit(found: Aim, tree: StateTree, own: StateTree, *, max_tokens: int, n_ctx: int) -> Aim | None:
    """The unit whose game at a court decides what a challenge off the chain is about; None where none does. A header that counts
    other tokens than its limits allow opens no unit, so its claimant is silent about the first; nor does a header that says that
    the run trapped open a leaf that says that it did not, or the other way round.
    """
    if found.kind == "unit":
        return found
    if found.kind == "trap":
        trapped = tree if tree.header.finish_reason == "numeric_trap" else own
        position = len(trapped.units) - 1
        unit = len(trapped.units[position]) - 1
        # All leaves that both have are the same. Where one has none, the other's may be right.
        if all(position < len(each.units) and unit < len(each.units[position]) for each in (tree, own)):
            return Aim(kind="unit", position=position, unit=unit, leaf=own.units[position][unit])
    if found.kind == "stop" and not may_end(tree.header, max_tokens, n_ctx):
        return Aim(kind="unit", position=0, unit=0, leaf=own.units[0][0])
    return None


def open_token(
    tree: StateTree, shape: StateShape, tokens: Sequence[int], position: int, payload: Sequence[bytes]
) -> bytes:
    """The proof of ``token_is_chosen`` by somebody else than the claimant: from the claim's tree (its leaves are served) and
    tokens, and ``payload``, what one's own tail at ``position`` holds. It leads to the claim's root where the claim's tail
    holds the same.

    Raises InvalidMessage ``state.place``, ``state.payload``, ``merkle.index_out_of_range``.
    """
    place = Place(position=position, unit=shape.n_layers + 1, part=TOKEN, tile=0)
    opening = tree.open_tiles(shape, place, [payload])
    return prove_tokens(tree, tokens, position, shape.trap_unit, opening)


# --- both


def _opened(reader: Reader, state_root: bytes) -> StateHeader:
    entry = reader.take(HEADER_BYTES)
    count = 1 + StateHeader.read(entry).n_positions
    return verify_header(state_root, entry, reader.hashes(range_path_length(0, 1, count)))


def _header(state_root: bytes, opened: bytes) -> StateHeader:
    reader = Reader(opened)
    header = _opened(reader, state_root)
    reader.end()
    return header


def _shape(header: StateHeader, graph: GraphSizes, trap_unit: int | None) -> StateShape:
    # A token's opening has one length whether or not tails hold a record.
    return graph_shape(header, graph, sampled=True, trap_unit=trap_unit)


def _states(receipt: bytes, core: bytes, begin: int, name: str, value: bytes) -> bool:
    """Whether a member of a receipt has this value (JSON)."""
    if tagged_hash("statement", core) != receipt:
        raise VerificationError("around.receipt", "the receipt is another", field="core")
    # No text of canonical JSON has these bytes within it, and no object in a receipt has such a member.
    key = _key(name)
    if not 0 <= begin <= len(core) or not core.startswith(key, begin):
        raise VerificationError("around.receipt", f"{name} does not begin there", field="begin")
    return core.startswith(value + b",", begin + len(key))


def _key(name: str) -> bytes:
    return b',"' + name.encode() + b'":'


def _value(header: StateHeader, state_root: bytes, member: int) -> bytes:
    """A member's JSON, as a receipt states it."""
    name = MEMBERS[member]
    value = state_root if name == "state_root" else getattr(header, name)
    if isinstance(value, bytes):
        return _text(value)
    return canonical_json(str(value) if name == "sampling_seed" else value)


def _text(value: bytes) -> bytes:
    return canonical_json(b64u_encode(value))


def _unshown(what: str, field: str) -> VerificationError:
    return VerificationError("around.hashes", f"nothing is shown: {what}", field=field)
