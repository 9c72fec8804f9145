"""What the network offers with each model: from the registry in force, the models' manifests and what this dispatcher accepts."""

import json
from collections.abc import Collection
from typing import Any

from aos.core import draw as core_draw
from aos.core.encoding import b64u_encode
from aos.core.statements import SnapshotEntry
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.jobs import Jobs
from aos.dispatcher.openai_request import Assurance
from aos.dispatcher.registry import Registry
from aos.errors import InvalidMessage

_DIGESTS = ("file_sha256", "weights_root", "tokenizer", "chat_template", "rope_table")
MOST_SEATS = 64


async def offers_of(jobs: Jobs, registry: Registry, config: DispatcherConfig) -> list[dict[str, Any]]:
    """Every model in OpenAI's shape, with `aos`."""
    epoch = registry.epoch()
    snapshot = await registry.in_force(epoch)
    created = registry.network.genesis_ms // 1000
    return [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": config.network,
            "aos": _offer(model_id, manifest, snapshot.entries, epoch, config),
        }
        for name, model_id, manifest in await jobs.model_rows()
    ]


def check_offered(assurance: Assurance, accept_tee: Collection[str]) -> None:
    """Whether a dispatcher that takes these kinds of evidence can promise it. Raises InvalidMessage ``assurance.unavailable``."""
    hardware = set(accept_tee) - {"simulated"}
    if (assurance.level == "attested" and not hardware) or (
        assurance.level == "simulated" and not accept_tee
    ):
        raise InvalidMessage(
            "assurance.unavailable",
            f"aos.verify: this dispatcher takes no evidence for {assurance.level!r}",
            field="aos.verify",
            hint="GET /v1/models lists what each model is offered with",
        )


def _offer(
    model_id: bytes,
    manifest: bytes | None,
    entries: Collection[SnapshotEntry],
    epoch: int,
    config: DispatcherConfig,
) -> dict[str, Any]:
    able = {
        kind: sum(
            core_draw.eligible(entry, job_type=kind, model_id=model_id, epoch=epoch) for entry in entries
        )
        for kind in ("opml", "tee")
    }
    known = {} if manifest is None else json.loads(manifest)
    graph = known.get("graph") or {}
    return {
        "model_id": b64u_encode(model_id),
        "digests": {name: known[name] for name in _DIGESTS if known.get(name)},
        "architecture": known.get("architecture"),
        "arithmetic": known.get("arithmetic"),
        "context_length": graph.get("n_ctx"),
        "chat": None if manifest is None else bool(known["chat_template"]),
        "operators": able,
        "verify": _levels(able, config.tee_references),
    }


def _levels(able: dict[str, int], accept_tee: Collection[str]) -> list[str]:
    levels = ["signed"] if able["opml"] else []
    if able["opml"] > 1:
        levels.append(f"redundant:{min(able['opml'], MOST_SEATS)}")
    if able["tee"]:
        levels += sorted({"simulated" if kind == "simulated" else "attested" for kind in accept_tee})
    return levels
