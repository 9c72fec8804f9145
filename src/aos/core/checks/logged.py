"""Where acceptance and receipt are in the dispatcher's log: log-1, witness-1 (docs/spec/15-log.md)."""

from aos.core.answer import Receipt
from aos.core.checks.case import Case, Skip, refuse, short
from aos.core.codec import encode
from aos.core.log.checkpoint import Checkpoint, origin_of, verify_checkpoint, witnessed
from aos.core.log.leaf import Kind, LoggedLeaf, LogPart, fact_bytes, log_leaf
from aos.core.merkle import verify_inclusion


def log_1(case: Case) -> tuple[str, str]:
    """Acceptance and receipt are leaves of one tree that the trusted log signed, the first before the second."""
    part, checkpoint = _checkpoint(case)
    receipt = receipt_fact(case.answer.receipt)
    _in_tree(part.acceptance, "acceptance", fact_bytes(case.answer.acceptance.to_json()), checkpoint)
    _in_tree(part.receipt, "receipt", receipt, checkpoint)
    if part.acceptance.index >= part.receipt.index:
        raise refuse("log.order", "the receipt was logged before the job's acceptance")
    head = checkpoint.head
    return f"leaf {part.receipt.index} of {head.size} in the dispatcher's log", short(head.root)


def witness_1(case: Case) -> str:
    """A quorum of the trusted witnesses cosigned the checkpoint."""
    trust, (_, checkpoint) = case.trusted(), _checkpoint(case)
    wanted, keys = trust.witness_quorum, trust.witness_keys
    found = len(witnessed(checkpoint.note, keys))
    if wanted == 0:
        raise Skip("the trust file asks for no witnesses; the log may have told others something else")
    if found < wanted:
        raise Skip(f"{found} of {wanted} witnesses cosigned; the log may have told others something else")
    return f"{found} of {len(keys)} witnesses cosigned the checkpoint"


def receipt_fact(receipt: Receipt) -> bytes:
    """What is logged of a receipt: the dispatcher's countersign, which is over all the rest."""
    return fact_bytes(
        {"statement": encode(receipt.countersign), "signature": encode(receipt.countersign_signature)}
    )


def _checkpoint(case: Case) -> tuple[LogPart, Checkpoint]:
    key = case.trusted().log
    if key is None:
        raise Skip("the trust file names no log")
    if case.answer.log is None:
        raise Skip("the file carries no inclusion proof")
    if key.name != origin_of(case.core.network, case.core.dispatcher):
        raise refuse("log.foreign", "the trusted log is of another network or dispatcher than the answer")
    return case.answer.log, verify_checkpoint(case.answer.log.checkpoint, key)


def _in_tree(leaf: LoggedLeaf, kind: Kind, fact: bytes, checkpoint: Checkpoint) -> None:
    head = checkpoint.head
    if head.size == 0:
        raise refuse("merkle.index_out_of_range", "the signed tree is empty", field="log.checkpoint")
    verify_inclusion(log_leaf(kind, leaf.salt, fact), leaf.index, head.size, leaf.path, head.root)
