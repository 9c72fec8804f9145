"""Asking a dispatcher to be entered in its registry (docs/spec/04-sortition.md, 09-http.md)."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from aos.core.registration import make_registration
from aos.core.statements import Registration, Signed
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable
from aos.operator.config import OperatorConfig, load_config
from aos.operator.identity import load_identity
from aos.operator.network import check_pinned, get_document, public_client, read_network
from aos.operator.worker_client import WorkerClient

_MAX_NETWORK_FILE_BYTES = 64 * 1024
_MAX_ANSWER_BYTES = 64 * 1024
_CODE = re.compile(r"[a-z_]{1,32}\.[a-z0-9_]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What a dispatcher answered. Who is not ``admitted`` waits for `aos registry admit`."""

    node_id: str
    network: str
    job_type: str
    models: tuple[bytes, ...]
    admitted: bool


def register(path: Path | None, models: Sequence[bytes]) -> Registered:
    """Register the operator of this configuration for ``models``, or, where there are none, for what its workers serve now.

    Raises ConfigError (``config.*``, ``key.*``, ``registration.no_model``), Unavailable ``link.unreachable``,
    ``worker.unavailable``, VerificationError ``network.changed``, RuleViolation with the dispatcher's code where it refuses.
    """
    config = load_config(path)
    identity, _ = load_identity(config)
    return asyncio.run(_register(config, identity.signer_key, identity.vrf_seed, models))


async def _register(
    config: OperatorConfig, signer_key: bytes, vrf_seed: bytes, models: Sequence[bytes]
) -> Registered:
    served = tuple(models) or await _served(config)
    async with public_client(config.dispatcher_http) as http:
        network = read_network(
            await get_document(
                http, "/v1/aos/network", code="link.unreachable", max_bytes=_MAX_NETWORK_FILE_BYTES
            )
        )
        if network.dispatcher != config.dispatcher_address:
            raise ConfigError(
                "registration.foreign",
                f"another dispatcher answers at {config.dispatcher_http}: {network.dispatcher}",
                field="net.dispatcher_address",
            )
        check_pinned(
            network,
            configured=config.network,
            configured_key=config.dispatcher_vrf_key,
            pinned=None,
            pinned_key=None,
        )
        signed = make_registration(
            signer_key=signer_key,
            vrf_seed=vrf_seed,
            network=network.name,
            dispatcher=network.dispatcher,
            job_type=config.node_type,
            models=served,
            time_ms=time.time_ns() // 1_000_000,
        )
        answer = await _post(http, signed)
    return Registered(
        node_id=signed.statement.node_id,
        network=network.name,
        job_type=config.node_type,
        models=served,
        admitted=answer.get("admitted") is True,
    )


async def _post(http: httpx.AsyncClient, signed: Signed[Registration]) -> dict[str, Any]:
    try:
        answer = await http.post("/v1/aos/registry", json=signed.to_json())
        body = answer.json() if len(answer.content) <= _MAX_ANSWER_BYTES else None
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable(
            "link.unreachable", f"{http.base_url} does not answer: {type(error).__name__}"
        ) from error
    if not isinstance(body, dict):
        raise InvalidMessage("registration.answer", f"{http.base_url} answers with no JSON object")
    if answer.status_code != 200:
        kind = Unavailable if answer.status_code in (429, 503) else RuleViolation
        code = body.get("title")
        raise kind(
            code if isinstance(code, str) and _CODE.fullmatch(code) else "registration.refused",
            f"the dispatcher refuses: {str(body.get('detail', answer.status_code))[:300]}",
        )
    return body


async def _served(config: OperatorConfig) -> tuple[bytes, ...]:
    """What the configured workers have loaded, each once."""
    found: list[bytes] = []
    last: AOSError | None = None
    for url in config.workers:
        client = WorkerClient(url, token=config.worker_token)
        try:
            status = await client.status()
        except AOSError as error:
            last = error
            continue
        finally:
            await client.close()
        if status.model_id and status.model_id not in found:
            found.append(status.model_id)
    if not found:
        if last is not None:
            raise last
        raise ConfigError(
            "registration.no_model",
            "there is nothing to register for: no worker is configured, or none has a model loaded",
            field="net.workers",
            hint="start the workers first, or name the models: `aos operator register -c FILE --model-id ID`",
        )
    return tuple(found)
