"""The enclave's secret and what it signs with it (docs/spec/10-tee.md, "Statements").

One ``Attester`` is one boot: a key made here that never leaves, the boot statement that binds it, and the
chain of answers. It does no I/O and reads no clock: time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nacl.signing import SigningKey

from aos.core import hashes
from aos.core.statements import Request, hash_of
from aos.core.tee import TeeAnswer, TeeBoot, TeeEvidence, sign_enclave
from aos.errors import RuleViolation
from aos.workers.enclave.messages import Boot, Booted
from aos.workers.execution import Answer

if TYPE_CHECKING:
    from aos.adapters.simulated_tee import SimulatedPlatform


@dataclass(frozen=True, slots=True, kw_only=True)
class Loadout:
    """What runs in this enclave: the engine's profile, the model that it hashed itself, and the
    measurement."""

    engine: str
    model_id: bytes
    measurement: bytes


class Attester:
    """One boot of the enclave. ``previous`` is the hash of the last answer statement, empty before the
    first."""

    def __init__(self, asked: Boot, *, loadout: Loadout, platform: SimulatedPlatform, now_ms: int) -> None:
        self._key = SigningKey.generate()
        self.boot = TeeBoot(
            network=asked.network,
            tee="simulated",
            operator=asked.operator,
            enclave_key=bytes(self._key.verify_key),
            measurement=loadout.measurement,
            engine=loadout.engine,
            model_id=loadout.model_id,
            nonce=asked.nonce,
            booted_at=now_ms,
            not_after=now_ms + asked.lifetime_ms,
        )
        self.boot_hash = hash_of(self.boot)
        self._boot_signature = sign_enclave(self._key, self.boot)
        self._document, self._document_signature = platform.attest(
            measurement=loadout.measurement,
            public_key=self.boot.enclave_key,
            user_data=self.boot_hash,
            nonce=asked.nonce,
            time_ms=now_ms,
        )
        self.sequence = 0
        self.previous = b""

    def booted(self, number: int) -> Booted:
        """The reply to the boot message ``number``."""
        return Booted(
            id=number,
            boot=self.boot,
            boot_signature=self._boot_signature,
            document=self._document,
            document_signature=self._document_signature,
        )

    def check(self, request: Request, *, operator: str, now_ms: int) -> None:
        """May this boot answer this request now?

        Raises RuleViolation ``enclave.other_operator``, ``enclave.other_network``, ``enclave.boot_expired``.
        """
        if operator != self.boot.operator:
            raise RuleViolation(
                "enclave.other_operator", "this enclave was booted for another operator", field="operator"
            )
        if request.network != self.boot.network:
            raise RuleViolation(
                "enclave.other_network",
                "this enclave was booted for another network",
                field="request.network",
            )
        if not self.boot.booted_at <= now_ms <= self.boot.not_after:
            raise RuleViolation("enclave.boot_expired", "the boot statement is not valid at this time")

    def sign_answer(
        self,
        answer: Answer,
        *,
        request: Request,
        request_bytes: bytes,
        nonce: bytes,
        job_ref: bytes,
        attempt: int,
        sampling_seed: str,
        now_ms: int,
    ) -> TeeEvidence:
        """Sign what was run. Every hash is computed here from the bytes that were executed.

        Raises RuleViolation ``enclave.boot_expired``; then no sequence number is used up.
        """
        self.check(request, operator=self.boot.operator, now_ms=now_ms)
        statement = TeeAnswer(
            boot=self.boot_hash,
            operator=self.boot.operator,
            sequence=self.sequence + 1,
            previous=self.previous,
            job_ref=job_ref,
            attempt=attempt,
            request_hash=hashes.request_hash(nonce, request_bytes),
            response_hash=hashes.response_hash(nonce, answer.text),
            tokens_hash=hashes.tokens_hash(nonce, answer.tokens),
            prompt_tokens_hash=answer.prompt_tokens_hash,
            model_id=self.boot.model_id,
            params_hash=hashes.params_hash(nonce, request.job.params),
            sampling_seed=sampling_seed,
            engine=self.boot.engine,
            n_prompt=answer.n_prompt,
            n_out=len(answer.tokens),
            finish_reason=answer.finish_reason,
            time=now_ms,
        )
        signature = sign_enclave(self._key, statement)
        self.sequence = statement.sequence
        self.previous = hash_of(statement)
        return TeeEvidence(
            boot=self.boot,
            boot_signature=self._boot_signature,
            document=self._document,
            document_signature=self._document_signature,
            answer=statement,
            answer_signature=signature,
        )
