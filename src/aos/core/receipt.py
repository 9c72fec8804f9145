"""``verify_answer``: one numbered list of checks over an answer file (docs/spec/08-receipts.md, "Checks, in order").

Pure and offline: trust and policy are arguments, and nothing in the file adds to them. Each check raises what it found
wrong, says why it was skipped, or returns what it saw. Levels and verdict are computed here, never read from the file.
Whether the text is true, or who stands behind an operator's key, no check can say (docs/threat-model.md).
"""

from collections.abc import Sequence

from aos.core.answer import read_answer
from aos.core.checks import drawn, enclave, job, logged, result, signed
from aos.core.checks.case import Case, CheckFunction, Replay, Replayed, Skip
from aos.core.report import Check, Report, Status, Verdict
from aos.core.trust import Policy, Trust
from aos.errors import AOSError

__all__ = ["CHECKS", "Replay", "Replayed", "verify_answer"]

CHECKS: Sequence[tuple[str, CheckFunction]] = (
    ("file-1", signed.file_1),
    ("trust-1", signed.trust_1),
    ("receipt-1", signed.receipt_1),
    ("receipt-2", signed.receipt_2),
    ("io-1", job.io_1),
    ("io-2", job.io_2),
    ("params-1", job.params_1),
    ("accept-1", job.accept_1),
    ("beacon-1", drawn.beacon_1),
    ("registry-1", drawn.registry_1),
    ("draw-1", drawn.draw_1),
    ("vrf-1", drawn.vrf_1),
    ("seed-1", drawn.seed_1),
    ("commit-1", result.commit_1),
    ("agree-1", result.agree_1),
    ("resolve-1", result.resolve_1),
    ("clock-1", result.clock_1),
    ("log-1", logged.log_1),
    ("witness-1", logged.witness_1),
    ("tee-1", enclave.tee_1),
    ("tee-2", enclave.tee_2),
    ("tee-3", enclave.tee_3),
    ("local-1", result.local_1),
)
"""Every check, in the order of the specification."""

_UNREADABLE = ("encoding.", "field.missing", "statement.version", "statement.type")
_DUPLICATE_OR_FORM = ("encoding.duplicate_key", "encoding.not_canonical")
_ABSENT = ("tee.no_evidence", "commit.missing")
"""Failures that say: the file lacks what this check needs."""


def verify_answer(
    data: bytes, *, trust: Trust | None, policy: Policy, replay: Replay | None = None
) -> Report:
    """Judge an answer file. Never raises for what the file holds: a report says what is wrong with it.

    ``replay`` re-executes the request where the caller has the model; it may raise AOSError.
    """
    try:
        answer = read_answer(data)
    except AOSError as error:
        check = Check(id="file-1", status="FAIL", text=error.message, code=error.code)
        unreadable = error.code.startswith(_UNREADABLE) and error.code not in _DUPLICATE_OR_FORM
        return Report(
            checks=(check,),
            verdict="EVIDENCE MISSING" if unreadable else "NOT VERIFIED",
            levels=(),
            policy=policy.name,
            missing=(),
        )
    case = Case(answer, trust, policy, replay)
    checks = tuple(_run(name, check, case) for name, check in CHECKS)
    status = {check.id: check.status for check in checks}
    missing = tuple(
        wanted for wanted in policy.required if all(status.get(x) != "PASS" for x in wanted.split("|"))
    )
    failed = [check.code for check in checks if check.status == "FAIL"]
    verdict: Verdict = "PARTIAL" if missing else "VERIFIED"
    if failed:
        verdict = "EVIDENCE MISSING" if all(code in _ABSENT for code in failed) else "NOT VERIFIED"
    levels = () if failed else _levels(case, status)
    return Report(checks=checks, verdict=verdict, levels=levels, policy=policy.name, missing=missing)


def _run(name: str, check: CheckFunction, case: Case) -> Check:
    try:
        found = check(case)
        text, detail = (found, "") if isinstance(found, str) else found
        return Check(id=name, status="PASS", text=text, detail=detail)
    except Skip as skip:
        return Check(id=name, status="SKIP", text=str(skip))
    except AOSError as error:
        return Check(id=name, status="FAIL", text=error.message, code=error.code)


def _levels(case: Case, status: dict[str, Status]) -> tuple[str, ...]:
    levels: list[str] = []
    if all(status.get(name) == "PASS" for name in ("receipt-1", "receipt-2", "io-1", "io-2")):
        levels.append("signed")
    if levels and status.get("agree-1") == status.get("commit-1") == "PASS":
        levels.append(f"redundant:{case.agreeing}")
    if levels and all(status.get(name) == "PASS" for name in ("tee-1", "tee-2", "tee-3")):
        levels.append("simulated" if case.core.tee == "simulated" else "attested")
    if levels and status.get("local-1") == "PASS":
        levels.append("replayed")
    return tuple(levels)
