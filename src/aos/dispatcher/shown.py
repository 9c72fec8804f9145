"""Stored jobs and results as the developer guide shows them (docs/spec/09-http.md)."""

import json
from typing import Any

from asyncpg import Record

from aos.core.codec import decode, encode
from aos.core.encoding import MAX_INT, b64u_encode
from aos.core.job import STATUS
from aos.core.statements import ReceiptCore, Request


def job_detail(job: Record, run: Record) -> dict[str, Any]:
    """The guide's detail of a job and its first run."""
    request = decode(Request, json.loads(job["request"]))
    params = request.job.params
    shown: dict[str, Any] = {
        "temperature": params.temperature / 1_000_000,
        "top_p": params.top_p / 1_000_000,
        "max_tokens": params.max_tokens,
    }
    if params.seed is not None:
        # As text where other readers of JSON would round it; submit takes both.
        shown["seed"] = int(params.seed) if int(params.seed) <= MAX_INT else params.seed
    if params.top_k:
        shown["top_k"] = params.top_k
    if params.min_p:
        shown["min_p"] = params.min_p / 1_000_000
    if params.repeat_penalty != 1_000_000:
        shown["repeat_penalty"] = params.repeat_penalty / 1_000_000
    if params.stop:
        shown["stop"] = list(params.stop)
    detail = {
        "id": job["job_id"],
        "job": {
            "tag": request.job.tag,
            "prompt": encode(request.job.prompt),
            "model": request.job.model,
            "params": shown,
        },
        "user": request.user,
        "job_type": request.job.tag,
        "status": STATUS[run["state"]],
        "tag": run["tag"],
        "clock": json.loads(run["clock"]),
        "created_at": job["created_at"].strftime("%Y-%m-%d %H:%M:%S"),
        "position": run["position"],
        "attempt": run["attempt"],
    }
    if run["error_code"]:
        detail["error"] = f"{run['error_message']} [{run['error_code']}]"
    return detail


def result_row(row: Record) -> dict[str, Any]:
    """A row of the guide's results."""
    stored = json.loads(row["core"])
    core = decode(ReceiptCore, stored["statement"])
    return {
        "id": f"{row['node_id']}_{row['job_id']}_{row['tag']}",
        "job_id": row["job_id"],
        "operator": row["node_id"],
        "result": bytes(row["answer"]).decode("utf-8"),
        "verify_id": row["receipt_id"],
        "vrf": {
            "selected": core.vrf.status == "selected",
            "vrf_prompt_hash": core.vrf.alpha_hash.hex(),
            "vrf_random_value": core.vrf.beta.hex(),
            "vrf_verify_pubkey": core.vrf.key.hex(),
            "vrf_proof": core.vrf.pi.hex(),
        },
        "clock": json.loads(row["clock"]),
        "signature": stored["signature"],
        "job_type": row["job_type"],
        "tag": row["tag"],
        "created_at": row["created_at"].strftime("%Y-%m-%d %H:%M:%S"),
        "position": row["position"],
        "attempt": row["attempt"],
        "receipt_id": row["receipt_id"],
        "state_root": b64u_encode(core.state_root),
        "attestation": core.tee,
        "outcome": row["outcome"],
    }
