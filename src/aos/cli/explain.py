"""``aos verify --explain``: every byte string of an answer file that is hashed, with its digest, beside what the file states.

Shows, decides nothing: the verdict is ``aos.core.receipt``'s. The bytes are put together here once more, from the
specification (docs/spec/01, 04, 06), and not by the code that verifies: the two must come to the same digests.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from aos.core import draw, hashes
from aos.core.answer import Answer, Receipt, read_answer
from aos.core.checks.logged import receipt_fact
from aos.core.codec import encode
from aos.core.encoding import b64u_encode, canonical_json, lp, parse_canonical, tag
from aos.core.log.leaf import KINDS, Kind, fact_bytes
from aos.core.signing import STATEMENT_PREFIX, keccak256
from aos.core.statements import Signed
from aos.errors import AOSError, InvalidMessage

_HASHES: dict[str, Callable[[bytes], bytes]] = {
    "SHA-256": lambda data: sha256(data).digest(),
    "Keccak-256": keccak256,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One hash: its name, what goes into it, those bytes, and the digest that the file states (None: nothing states it)."""

    name: str
    what: str
    data: bytes
    stated: bytes | None = None
    algorithm: str = "SHA-256"

    @property
    def digest(self) -> bytes:
        """The digest, computed here (32 bytes)."""
        return _HASHES[self.algorithm](self.data)

    def to_json(self) -> dict[str, str | None]:
        """As ``--json --explain`` prints it; bytes are base64url."""
        return {
            "name": self.name,
            "what": self.what,
            "algorithm": self.algorithm,
            "bytes": b64u_encode(self.data),
            "digest": self.digest.hex(),
            "stated": None if self.stated is None else self.stated.hex(),
        }


def explain(data: bytes) -> str:
    """Each hash with its bytes as a Python literal, to be hashed by whoever doubts it; a line where the file is unreadable."""
    try:
        rows = explained(data)
    except AOSError as error:
        return f"nothing to explain: {error.message} [{error.code}]\n"
    lines = []
    for row in rows:
        mark = ""
        if row.stated is not None:
            mark = "  = stated" if row.stated == row.digest else f"  ≠ stated {row.stated.hex()}"
        lines += [
            f"{row.name:<18} {row.digest.hex()}{mark}",
            f"  {row.algorithm} of {row.what}, {len(row.data)} bytes:",
            f"  {row.data!r}",
        ]
    return "\n".join(lines) + "\n"


def explained(data: bytes) -> list[Row]:
    """Every hash of an answer file. Raises as ``read_answer``."""
    return list(_rows(read_answer(data)))


def _rows(answer: Answer) -> Iterator[Row]:
    core, nonce, sign = answer.receipt.core, answer.nonce, answer.receipt.countersign
    yield _tagged(
        "request_hash", "request", "nonce ‖ request", nonce, answer.request.encode(), core.request_hash
    )
    yield _tagged(
        "response_hash", "response", "nonce ‖ text", nonce, answer.text.encode(), core.response_hash
    )
    ids = hashes.token_bytes(answer.tokens)
    yield _tagged("tokens_hash", "tokens", "nonce ‖ token ids, 4 bytes each", nonce, ids, core.tokens_hash)
    params = _params(answer)
    if params is not None:
        yield _tagged("params_hash", "params", "nonce ‖ job.params", nonce, params, core.params_hash)
    yield from _signed("acceptance", answer.acceptance, core.dispatcher)
    yield _tagged(
        "tag_commitment",
        "job-tag",
        "salt ‖ tag ‖ position, from the countersign",
        sign.tag_salt,
        lp(sign.tag.encode()) + lp(sign.position.encode()),
        answer.draw.draw_call.statement.tag_commitment,
    )
    yield from _drawn(answer)
    committed = {entry.node_id: entry.commit for entry in answer.commit.commit_set.statement.commits}
    receipts = {receipt.core.operator: receipt for receipt in (answer.receipt, *answer.peers)}
    for opening in answer.commit.openings:
        commit = opening.commit.statement
        receipt = receipts.get(commit.node_id)
        if receipt is not None:
            yield Row(
                name="commitment",
                what=f'"AOS/commitment/v1" 0x00 ‖ job_ref ‖ attempt ‖ {commit.node_id[:10]}… ‖ draw record ‖ result '
                "‖ tokens hash ‖ salt",
                data=tag("commitment")
                + commit.job_ref
                + commit.attempt.to_bytes(4, "big")
                + hashes.address_bytes(commit.node_id)
                + commit.draw_record
                + lp(receipt.core.state_root or receipt.core.answer_statement)
                + receipt.core.tokens_hash
                + opening.salt,
                stated=commit.commitment,
            )
        yield from _signed("commit", opening.commit, commit.node_id, committed.get(commit.node_id))
    yield from _signed("commit_set", answer.commit.commit_set, core.dispatcher, core.commit_set)
    for receipt in receipts.values():
        yield from _receipt(receipt)
    if answer.log is not None:
        yield from _logged("acceptance", answer.log.acceptance.salt, fact_bytes(answer.acceptance.to_json()))
        yield from _logged("receipt", answer.log.receipt.salt, receipt_fact(answer.receipt))
    if answer.resolution is not None:
        yield from _signed("resolution", answer.resolution, core.dispatcher)
    if answer.evidence is not None:
        boot, statement = answer.evidence.boot, answer.evidence.answer
        yield _statement("tee_boot", boot, statement.boot)
        yield _statement("tee_answer", statement, core.answer_statement)


def _params(answer: Answer) -> bytes | None:
    """``job.params`` of the saved request as canonical JSON; None where the request holds none."""
    try:
        request = parse_canonical(answer.request.encode(), max_bytes=hashes.MAX_REQUEST_BYTES)
    except InvalidMessage:
        return None
    job = request.get("job") if isinstance(request, dict) else None
    params = job.get("params") if isinstance(job, dict) else None
    return None if params is None else canonical_json(params)


def _drawn(answer: Answer) -> Iterator[Row]:
    part, core = answer.draw, answer.receipt.core
    call, record = part.draw_call.statement, part.draw_record.statement
    if part.complete:
        operators = [canonical_json(encode(entry.operator)) for entry in part.entries]
        tree = yield from _tree("snapshot", operators)
        yield Row(
            name="snapshot_root",
            what='"AOS/snapshot/v1" 0x00 ‖ network ‖ max_range ‖ count ‖ tree',
            data=tag("snapshot")
            + lp(call.network.encode())
            + part.max_range.to_bytes(8, "big")
            + len(operators).to_bytes(8, "big")
            + tree,
            stated=call.snapshot_root,
        )
        yield from _tree(
            "entries", [canonical_json(encode(entry.entry)) for entry in part.entries], record.entries_root
        )
    yield _tagged("beacon", "beacon", f"the beacon, the first of {call.epoch + 1} steps", call.beacon)
    yield from _signed("draw_call", part.draw_call, core.dispatcher, record.draw_call)
    yield Row(
        name="alpha_hash",
        what="alpha_string of the claims",
        data=draw.claim_alpha_of(call),
        stated=core.vrf.alpha_hash,
    )
    yield from _signed("draw_record", part.draw_record, core.dispatcher, core.draw_record)
    first = part.first_draw or part.draw_call
    if part.first_draw is not None:
        yield from _signed("first_draw", part.first_draw, core.dispatcher)
    yield _tagged(
        "sampling_seed",
        "sampling",
        "the first draw's seed; 8 bytes of it are used",
        first.statement.draw_seed,
    )
    for node_id in record.seats:
        place = call.draw_seed + call.attempt.to_bytes(4, "big")
        what = f"draw seed ‖ attempt ‖ {node_id[:10]}…"
        yield _tagged("seat-order", "seat-order", what, place, hashes.address_bytes(node_id))
    for entry in part.entries:
        if entry.claim is not None:
            yield from _signed("vrf_claim", entry.claim, entry.operator.node_id, entry.entry.claim)


def _receipt(receipt: Receipt) -> Iterator[Row]:
    core, sign = receipt.core, receipt.countersign
    yield _statement("receipt", core, sign.receipt)
    yield _message("receipt", core, core.operator)
    yield Row(
        name="receipt_signature",
        what=f"the signature of {core.operator[:10]}…",
        data=receipt.signature,
        stated=sign.receipt_signature,
    )
    yield _message("countersign", sign, core.dispatcher)


def _signed(name: str, pair: Signed[Any], address: str, stated: bytes | None = None) -> Iterator[Row]:
    yield _statement(name, pair.statement, stated)
    yield _message(name, pair.statement, address)


def _logged(kind: Kind, salt: bytes, fact: bytes) -> Iterator[Row]:
    row = _tagged(f"log {kind}", "log-fact", "salt ‖ the signed fact", salt, fact)
    yield row
    entry = tag("log-entry") + bytes([KINDS.index(kind) + 1]) + row.digest
    yield Row(name=f"log {kind} leaf", what="0x00 ‖ tag ‖ kind ‖ digest", data=b"\x00" + entry)


def _statement(name: str, statement: object, stated: bytes | None = None) -> Row:
    value = encode(statement)
    return _tagged(name, "statement", value["type"], canonical_json(value), stated=stated)


def _message(name: str, statement: object, address: str) -> Row:
    message = STATEMENT_PREFIX + canonical_json(encode(statement))
    return Row(
        name=f"{name} signed",
        what=f"the message that {address[:10]}… signed (EIP-191)",
        data=b"\x19Ethereum Signed Message:\n%d" % len(message) + message,
        algorithm="Keccak-256",
    )


def _tagged(
    name: str, domain: str, what: str, first: bytes, second: bytes = b"", stated: bytes | None = None
) -> Row:
    return Row(
        name=name, what=f'"AOS/{domain}/v1" 0x00 ‖ {what}', data=tag(domain) + first + second, stated=stated
    )


def _tree(name: str, entries: list[bytes], stated: bytes | None = None) -> Generator[Row, None, bytes]:
    """The rows of an RFC 9162 tree, leaves first; its root is returned."""
    level = []
    for index, entry in enumerate(entries):
        row = Row(name=f"{name}_leaf", what=f"0x00 ‖ entry {index}", data=b"\x00" + entry)
        yield row
        level.append(row.digest)
    while len(level) > 1:
        above = []
        for left, right in zip(level[::2], level[1::2], strict=False):
            last = len(level) == 2
            row = Row(
                name=f"{name}_root" if last and stated is not None else f"{name}_node",
                what="0x01 ‖ left ‖ right",
                data=b"\x01" + left + right,
                stated=stated if last else None,
            )
            yield row
            above.append(row.digest)
        level = above + level[len(above) * 2 :]
    return level[0] if level else sha256(b"").digest()
