"""An enclave's evidence, from the receipt to the platform's root: tee-1, tee-2, tee-3 (docs/spec/10-tee.md, "Appraisal")."""

from aos.core.checks.case import Case, Skip, refuse, same, short
from aos.core.statements import hash_of
from aos.core.tee import (
    TeeAnswer,
    check_image,
    check_received,
    verify_answer_statement,
    verify_boot,
)


def tee_1(case: Case) -> tuple[str, str]:
    """Receipt, answer statement, enclave key and boot statement belong together."""
    core, evidence = case.core, case.answer.evidence
    if core.tee == "":
        if evidence is not None:
            raise refuse("tee.unexpected", "an opML answer carries no enclave evidence")
        raise Skip("no enclave: an opML answer")
    if evidence is None:
        raise refuse("tee.no_evidence", "the receipt names an enclave and the file holds no evidence")
    _bound(core.operator, evidence.answer, case)
    same(
        "tee.not_bound",
        "the enclave's boot statement is of another network, kind or draw key",
        network=(evidence.boot.network, core.network),
        tee=(evidence.boot.tee, core.tee),
        vrf_key=(evidence.boot.vrf_key, core.vrf.key),
    )
    answer = verify_answer_statement(evidence)
    return (
        f"answer statement {answer.sequence} of the boot, signed by the enclave's key",
        short(hash_of(evidence.boot)),
    )


def tee_2(case: Case) -> tuple[str, str]:
    """A document of an accepted kind vouches for the boot statement, up to a trusted root."""
    core, evidence = case.core, case.answer.evidence
    if core.tee == "":
        raise Skip("no enclave: an opML answer")
    if evidence is None:
        raise Skip("there is no evidence to judge (tee-1)")
    if core.tee not in case.policy.accept_tee:
        raise refuse("tee.policy", f'policy "{case.policy.name}" does not accept a TEE of kind {core.tee}')
    received_at = case.answer.receipt.countersign.received_at
    claims = verify_boot(
        evidence.boot_evidence, references=case.trusted().references(core.tee), at_ms=received_at
    )
    check_received(evidence, claims, received_at=received_at)
    case.enclave = claims
    label = "SIMULATED, NO HARDWARE: " if claims.simulated else ""
    return (
        f"{label}document, {len(claims.chain)} certificates to a trusted root",
        short(claims.anchor_sha256),
    )


def tee_3(case: Case) -> tuple[str, str]:
    """The measured image is one that the trust file names."""
    if case.core.tee == "":
        raise Skip("no enclave: an opML answer")
    if case.enclave is None:
        raise Skip("nobody that is believed has measured the image (tee-2)")
    check_image(case.enclave, case.trusted().references(case.core.tee).images)
    return "PCR0, PCR1 and PCR2 are those of a named image", short(case.enclave.measurement("PCR0") or b"")


def _bound(operator: str, statement: TeeAnswer, case: Case) -> None:
    core = case.core
    same(
        "tee.not_bound",
        "the enclave's answer statement is of another answer",
        answer_statement=(hash_of(statement), core.answer_statement),
        operator=(statement.operator, operator),
        job_ref=(statement.job_ref, core.job_ref),
        attempt=(statement.attempt, core.attempt),
        request_hash=(statement.request_hash, core.request_hash),
        response_hash=(statement.response_hash, core.response_hash),
        tokens_hash=(statement.tokens_hash, core.tokens_hash),
        prompt_tokens_hash=(statement.prompt_tokens_hash, core.prompt_tokens_hash),
        model_id=(statement.model_id, core.model_id),
        params_hash=(statement.params_hash, core.params_hash),
        sampling_seed=(statement.sampling_seed, core.sampling_seed),
        engine=(statement.engine, core.engine),
        n_prompt=(statement.n_prompt, core.n_prompt),
        n_out=(statement.n_out, core.n_out),
        finish_reason=(statement.finish_reason, core.finish_reason),
    )
