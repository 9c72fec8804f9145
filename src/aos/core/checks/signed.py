"""Form, trust and signatures: file-1, trust-1, receipt-1, receipt-2."""

from hashlib import sha256

from aos.core.answer import MAX_RECEIPT_BYTES, Receipt, receipt_bytes
from aos.core.checks.case import Case, refuse, same
from aos.core.codec import encode
from aos.core.encoding import b64u_encode
from aos.core.signing import verify_statement
from aos.core.statements import hash_of


def file_1(case: Case) -> str:
    """Sizes, strict JSON, canonical form, exact members: read_answer did all of it. Entries once, in their order."""
    indices = [entry.index for entry in case.answer.draw.entries]
    if indices != sorted(set(indices)):
        raise refuse("file.draw_entries", "the draw's entries are not in their order, each once")
    if case.answer.draw.complete:
        if indices != list(range(len(indices))):
            raise refuse("file.draw_entries", "the draw's entries do not have every index")
        if any(e.operator_path or e.entry_path for e in case.answer.draw.entries):
            raise refuse("file.draw_entries", "a complete draw carries no paths")
    elif {e.operator.node_id for e in case.answer.draw.entries} != set(case.record.statement.seats):
        raise refuse("file.draw_entries", "a shortened draw carries the seated operators, and no other")
    names = [opening.commit.statement.node_id for opening in case.answer.commit.openings]
    if names != sorted(set(names)):
        raise refuse("file.openings", "the openings are not ascending by node_id, each once")
    if set(names) - {receipt.core.operator for receipt in case.receipts}:
        raise refuse("file.openings", "an opening is of no receipt in the file")
    return "strict canonical JSON, exact members"


def trust_1(case: Case) -> tuple[str, str]:
    """Network and dispatcher are those of the trust file."""
    trust = case.trusted()
    if case.core.network != trust.network:
        raise refuse("trust.network", f"the answer is of network {case.core.network}, not {trust.network}")
    if case.vrf_key is None:
        raise refuse("trust.dispatcher", f"dispatcher {case.core.dispatcher} is not in the trust file")
    return "network and dispatcher are trusted", trust.network


def receipt_1(case: Case) -> tuple[str, str]:
    """The core is its operator's, within its size."""
    operator_signature(case.answer.receipt)
    operator = case.core.operator
    return "canonical form, operator signature", f"{operator[:6]}…{operator[-4:]}"


def operator_signature(receipt: Receipt) -> None:
    """Raises ``receipt.size``, ``signature.*``."""
    size = receipt_bytes(receipt)
    if size > MAX_RECEIPT_BYTES:
        raise refuse("receipt.size", f"core and signatures are {size} bytes, more than {MAX_RECEIPT_BYTES}")
    verify_statement(encode(receipt.core), b64u_encode(receipt.signature), receipt.core.operator)


def receipt_2(case: Case) -> str:
    """D's countersign is of this core, signature, draw and commit set."""
    countersign(case.answer.receipt)
    return "dispatcher's countersign: this receipt, draw and commit set"


def countersign(receipt: Receipt) -> None:
    """Raises ``receipt.countersign``, ``signature.*``."""
    core, sign = receipt.core, receipt.countersign
    same(
        "receipt.countersign",
        "the countersign is of another receipt",
        network=(sign.network, core.network),
        dispatcher=(sign.dispatcher, core.dispatcher),
        receipt=(sign.receipt, hash_of(core)),
        receipt_signature=(sign.receipt_signature, sha256(receipt.signature).digest()),
        draw_record=(sign.draw_record, core.draw_record),
        commit_set=(sign.commit_set, core.commit_set),
    )
    verify_statement(encode(sign), b64u_encode(receipt.countersign_signature), core.dispatcher)
