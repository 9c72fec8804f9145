"""Request, answer and acceptance: io-1, io-2, params-1, accept-1."""

from aos.core import hashes
from aos.core.checks.case import Case, refuse, same, short
from aos.core.statements import check_signed


def io_1(case: Case) -> str:
    """The saved request bytes are the signed ones."""
    request = case.request
    if hashes.request_hash(case.answer.nonce, case.answer.request.encode("utf-8")) != case.core.request_hash:
        raise refuse("io.request_hash", "the request's hash is not that of the saved request bytes")
    same(
        "io.request_network",
        "the request is of another network",
        network=(request.network, case.core.network),
        dispatcher=(request.dispatcher, case.core.dispatcher),
    )
    return "request hash equals the saved request bytes"


def io_2(case: Case) -> str:
    """The saved text and tokens are the signed ones."""
    answer, core = case.answer, case.core
    if hashes.response_hash(answer.nonce, answer.text) != core.response_hash:
        raise refuse("io.response_hash", "the response hash is not that of the saved text")
    if hashes.tokens_hash(answer.nonce, answer.tokens) != core.tokens_hash:
        raise refuse("io.tokens_hash", "the tokens hash is not that of the saved tokens")
    if len(answer.tokens) != core.n_out:
        raise refuse("io.n_out", "the number of tokens is not that of the saved tokens")
    return f"text and {core.n_out} tokens equal the signed hashes"


def params_1(case: Case) -> tuple[str, str]:
    """Model, parameters, lengths and job type are possible under the request."""
    core, job = case.core, case.request.job
    if hashes.params_hash(case.answer.nonce, job.params) != core.params_hash:
        raise refuse("params.hash", "the parameters are not those of the request")
    if job.model_id != core.model_id:
        raise refuse("params.model", "the model is not the requested one")
    if core.n_out > job.params.max_tokens or (core.finish_reason == "stop" and core.n_out == 0):
        raise refuse("params.max_tokens", "the number of tokens is not possible under the request")
    if core.finish_reason == "cancelled":
        raise refuse("params.finish_reason", "a cancelled run has no receipt")
    if any(stop and stop in case.answer.text for stop in job.params.stop):
        raise refuse("params.stop", "the text goes on past a stop string")
    enclave = (core.tee != "", core.answer_statement != b"", core.state_root == b"")
    if enclave != (job.tag == "tee",) * 3:
        raise refuse("params.job_type", "the receipt is not of the requested job type")
    return "model and parameters are the requested ones", short(core.model_id)


def accept_1(case: Case) -> str:
    """D accepted this request, and the run has the accepted tag."""
    accepted, core, request = case.answer.acceptance.statement, case.core, case.request
    check_signed(case.answer.acceptance, address=core.dispatcher)
    same(
        "accept.foreign",
        "the acceptance is of another job",
        network=(accepted.network, core.network),
        dispatcher=(accepted.dispatcher, core.dispatcher),
        job_ref=(accepted.job_ref, core.job_ref),
        request_hash=(accepted.request_hash, core.request_hash),
        nonce=(accepted.nonce, case.answer.nonce),
        issued_at=(accepted.issued_at, request.issued_at),
    )
    # A first run has the accepted tag; a re-run or the next job of a flagged user has the flag's.
    wrong = case.opened.tag != accepted.tag if case.opened.position == "" else case.opened.tag == ""
    if wrong:
        raise refuse("accept.tag", "the run's tag is not the accepted one")
    if case.first_call.statement.epoch < accepted.epoch:
        raise refuse("accept.epoch", "the first draw is of an epoch before the acceptance")
    return f"accepted by the dispatcher in epoch {accepted.epoch}"
