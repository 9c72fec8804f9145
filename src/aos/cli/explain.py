"""``aos verify --explain``: every hash of an answer file by name, recomputed, beside what the file states.

Shows, decides nothing: the verdict is ``aos.core.receipt``'s. Names are those of docs/spec/06-network.md.
"""

from collections.abc import Iterator
from hashlib import sha256

from aos.core import draw, hashes
from aos.core.answer import Answer, read_answer
from aos.core.codec import encode
from aos.core.encoding import canonical_json
from aos.core.statements import hash_of
from aos.errors import AOSError

Row = tuple[str, str, bytes, bytes | None]
"""Name, what is hashed, the digest computed here, the digest that the file states (None: nothing states it)."""


def explain(data: bytes) -> str:
    """A table of the file's hashes, one a line; a line that says why where the file cannot be read."""
    try:
        rows = list(_rows(read_answer(data)))
    except AOSError as error:
        return f"nothing to explain: {error.message} [{error.code}]\n"
    lines = [
        "hash                what is hashed                                        digest, computed here"
    ]
    for name, what, computed, stated in rows:
        mark = "" if stated is None else "  = stated" if stated == computed else f"  ≠ stated {stated.hex()}"
        lines.append(f"{name:<19} {what:<53} {computed.hex()}{mark}")
    return "\n".join(lines) + "\n"


def _rows(answer: Answer) -> Iterator[Row]:
    core, nonce, part = answer.receipt.core, answer.nonce, answer.draw
    call, record = part.draw_call, part.draw_record
    request = answer.request.encode("utf-8")
    yield (
        "request_hash",
        f"nonce ‖ request, {len(request)} bytes",
        hashes.request_hash(nonce, request),
        core.request_hash,
    )
    text = len(answer.text.encode("utf-8"))
    yield (
        "response_hash",
        f"nonce ‖ text, {text} bytes",
        hashes.response_hash(nonce, answer.text),
        core.response_hash,
    )
    count = len(answer.tokens)
    yield (
        "tokens_hash",
        f"nonce ‖ {count} token ids, 4 bytes each",
        hashes.tokens_hash(nonce, answer.tokens),
        core.tokens_hash,
    )
    yield "acceptance", _json(answer.acceptance.statement), answer.acceptance.hash, None
    opened = draw.OpenedTag(
        salt=answer.receipt.countersign.tag_salt,
        tag=answer.receipt.countersign.tag,
        position=answer.receipt.countersign.position,
    )
    yield (
        "tag_commitment",
        "salt ‖ tag ‖ position, from the countersign",
        opened.commitment(),
        call.statement.tag_commitment,
    )
    if part.complete:
        root = draw.snapshot_root(
            call.statement.network, part.max_range, [entry.operator for entry in part.entries]
        )
        yield "snapshot_root", f"{len(part.entries)} registry entries", root, call.statement.snapshot_root
        entries = draw.entries_root([entry.entry for entry in part.entries])
        yield "entries_root", f"{len(part.entries)} draw entries", entries, record.statement.entries_root
    yield "draw_call", _json(call.statement), call.hash, record.statement.draw_call
    alpha = draw.claim_alpha_of(call.statement)
    yield (
        "alpha_hash",
        f"alpha_string of the claims, {len(alpha)} bytes",
        sha256(alpha).digest(),
        core.vrf.alpha_hash,
    )
    for entry in part.entries:
        if entry.claim is not None:
            who = entry.operator.node_id
            yield (
                "vrf_claim",
                f"{who[:10]}… {_json(entry.claim.statement)}",
                entry.claim.hash,
                entry.entry.claim,
            )
    yield "draw_record", _json(record.statement), record.hash, core.draw_record
    committed = {entry.node_id: entry.commit for entry in answer.commit.commit_set.statement.commits}
    receipts = {receipt.core.operator: receipt for receipt in (answer.receipt, *answer.peers)}
    for opening in answer.commit.openings:
        commit = opening.commit.statement
        receipt = receipts.get(commit.node_id)
        if receipt is not None:
            computed = hashes.commitment(
                job_ref=commit.job_ref,
                attempt=commit.attempt,
                node_id=commit.node_id,
                draw_record=commit.draw_record,
                result=receipt.core.state_root or receipt.core.answer_statement,
                tokens_hash=receipt.core.tokens_hash,
                salt=opening.salt,
            )
            yield "commitment", f"{commit.node_id[:10]}… result, tokens, salt", computed, commit.commitment
        what = f"{commit.node_id[:10]}… {_json(commit)}"
        yield "commit", what, opening.commit.hash, committed.get(commit.node_id)
    commit_set = answer.commit.commit_set
    yield "commit_set", _json(commit_set.statement), commit_set.hash, core.commit_set
    for receipt in receipts.values():
        who = f"{receipt.core.operator[:10]}…"
        yield "receipt", f"{who} {_json(receipt.core)}", hash_of(receipt.core), receipt.countersign.receipt


def _json(statement: object) -> str:
    value = encode(statement)
    return f"{value['type']}, {len(canonical_json(value))} bytes"
