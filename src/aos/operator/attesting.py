"""Keeping the enclaves of a TEE operator booted under the dispatcher's challenges (docs/spec/10-tee.md, "Challenge").

A boot without a challenge of this dispatcher, or one that it has not accepted, answers nothing: neither a draw is
claimed for it, nor a job run. An enclave that starts again has no boot; it gets a new challenge.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from aos.adapters.link import Link
from aos.core.codec import Bytes32, OptionalBytes32, decode, encode
from aos.core.encoding import b64u_encode
from aos.core.statements import hash_of
from aos.core.tee import MAX_LIFETIME_MS
from aos.errors import AOSError, RuleViolation, Unavailable, VerificationError
from aos.operator.identity import Identity
from aos.operator.network import Network
from aos.operator.worker_client import WorkerClient, WorkerStatus

log = structlog.get_logger("aos.operator")

LOOK_EVERY_S = 0.5
REFUSED_PAUSE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Challenge:
    nonce: Bytes32
    policy: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    model_id: Bytes32
    answer: OptionalBytes32
    nonce: Bytes32


class Attesting:
    """The enclaves behind ``clients``. ``problem`` says what keeps one from being accepted, empty where nothing does."""

    def __init__(self, clients: list[WorkerClient], identity: Identity, *, now_ms: Callable[[], int]) -> None:
        self._clients = clients
        self._identity = identity
        self._now_ms = now_ms
        self._accepted: dict[bytes, tuple[WorkerClient, bytes, int]] = {}
        self._pause_until: dict[str, float] = {}
        self.problem = "no enclave has been accepted yet" if clients else ""

    def accepted(self, status: WorkerStatus) -> bool:
        """Has the dispatcher accepted the boot that this worker's enclave is in, and is it not over?"""
        held = self._accepted.get(status.boot)
        return held is not None and held[2] > self._now_ms()

    def holds(self, model_id: bytes) -> bool:
        """Has the dispatcher accepted a boot with this model that is not over?"""
        now = self._now_ms()
        return any(held[1] == model_id and held[2] > now for held in self._accepted.values())

    async def run(self, link: Link, network: Network) -> None:
        """Boot what is not booted, renew what ends, until cancelled. Raises Unavailable where the link is gone."""
        if not self._clients:
            await asyncio.Event().wait()
        while True:
            for client in self._clients:
                try:
                    await self._look(client, link, network)
                except AOSError as error:
                    if link.closed:
                        raise
                    self._tell(client, error)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self, client: WorkerClient, link: Link, network: Network) -> None:
        loop_s = asyncio.get_running_loop().time()
        if self._pause_until.get(client.url, 0.0) > loop_s:
            return
        status = await client.status()
        if status.kind != "tee" or not status.model_id:
            return
        if self.accepted(status) and (
            status.busy or status.boot_until - self._now_ms() > MAX_LIFETIME_MS // 8
        ):
            return
        asked = decode(_Challenge, await link.request("tee_challenge", {}), where="tee_challenge")
        evidence = await client.boot(
            {
                "network": network.name,
                "operator": self._identity.node_id,
                "vrf_key": b64u_encode(self._identity.vrf_key),
                "policy": b64u_encode(asked.policy),
                "nonce": b64u_encode(asked.nonce),
            }
        )
        boot, now = evidence.boot, self._now_ms()
        self._accepted = {h: held for h, held in self._accepted.items() if held[2] > now}
        # Before it is sent: the dispatcher may draw this operator the moment that it has accepted it.
        self._accepted[hash_of(boot)] = (client, boot.model_id, boot.not_after)
        try:
            await link.request("tee_boot", encode(evidence))
        except BaseException:
            del self._accepted[hash_of(boot)]
            raise
        self.problem = ""
        log.info("enclave.accepted", worker=client.url, tee=boot.tee, boot=hash_of(boot).hex())

    def _tell(self, client: WorkerClient, error: AOSError) -> None:
        text = f"enclave of {client.url}: {error.message} [{error.code}]"
        if text != self.problem:
            log.warning("enclave.not_accepted", worker=client.url, code=error.code, message=error.message)
        self.problem = text
        if isinstance(error, RuleViolation | VerificationError) and not error.code.startswith("link."):
            # A refusal will not go away by asking again at once.
            self._pause_until[client.url] = asyncio.get_running_loop().time() + REFUSED_PAUSE_S

    async def on_document(self, body: object) -> dict[str, Any]:
        """``tee_document``: a document of now of an enclave with this model, or of the one that knows the answer.

        Raises Unavailable ``enclave.none``; RuleViolation with the enclave's code.
        """
        wanted = decode(_Wanted, body, where="tee_document")
        order = {"answer": b64u_encode(wanted.answer), "nonce": b64u_encode(wanted.nonce)}
        refused: AOSError = Unavailable("enclave.none", "no accepted enclave of this operator has this model")
        known = {held[0].url: held[0] for held in self._accepted.values() if held[1] == wanted.model_id}
        for client in known.values():
            try:
                evidence = await client.document(order)
                if hash_of(evidence.boot) in self._accepted:
                    return encode(evidence)  # type: ignore[no-any-return]
            except (Unavailable, RuleViolation) as error:
                refused = error
        raise refused
