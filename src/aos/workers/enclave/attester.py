"""The enclave's secret and what it signs with it (docs/spec/10-tee.md, "Statements").

One ``Attester`` is one boot: a key made here that never leaves, the boot statement that binds it, and the
chain of answers. It does no I/O and reads no clock: time is an argument.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass

from nacl.signing import SigningKey

from aos.adapters.nsm import Nsm
from aos.core import hashes
from aos.core.encoding import tagged_hash
from aos.core.statements import Request, hash_of
from aos.core.tee import TeeAnswer, TeeBoot, TeeEvidence, public_key_info, sign_enclave
from aos.errors import RuleViolation
from aos.workers.enclave.messages import Boot, Booted
from aos.workers.execution import Answer

REMEMBERED = 256
"""So many of a boot's latest answers can still be given a document of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loadout:
    """What runs in this enclave: the engine's profile and the digest of its files, and the model that it hashed
    itself."""

    engine: str
    engine_digest: bytes
    model_id: bytes


class Attester:
    """One boot of the enclave. ``previous`` is the hash of the last answer statement, empty before the
    first. Raises what ``nsm`` raises."""

    def __init__(self, asked: Boot, *, loadout: Loadout, nsm: Nsm, now_ms: int) -> None:
        self._nsm = nsm
        # The parent feeds the kernel's entropy; the module's is not its to choose.
        self._key = SigningKey(tagged_hash("enclave-key", nsm.random(32), secrets.token_bytes(32)))
        self.boot = TeeBoot(
            network=asked.network,
            tee="simulated" if nsm.simulated else "nitro",
            operator=asked.operator,
            vrf_key=asked.vrf_key,
            enclave_key=bytes(self._key.verify_key),
            engine=loadout.engine,
            engine_digest=loadout.engine_digest,
            model_id=loadout.model_id,
            policy=asked.policy,
            nonce=asked.nonce,
            booted_at=now_ms,
            not_after=now_ms + asked.lifetime_ms,
        )
        self.boot_hash = hash_of(self.boot)
        self._boot_signature = sign_enclave(self._key, self.boot)
        self._document = self.document(nonce=asked.nonce)
        self._answers: OrderedDict[bytes, None] = OrderedDict()
        self.sequence = 0
        self.previous = b""

    def booted(self, number: int) -> Booted:
        """The reply to the boot message ``number``."""
        return Booted(id=number, boot=self.boot, boot_signature=self._boot_signature, document=self._document)

    def document(self, *, nonce: bytes, answer: bytes = b"") -> bytes:
        """A document of now for this boot, or for one of its answers (an answer statement's hash).

        Raises RuleViolation ``enclave.unknown_answer``, AOSError ``nsm.*``.
        """
        if answer and answer not in self._answers:
            raise RuleViolation(
                "enclave.unknown_answer",
                "this boot has not signed such an answer, or long ago",
                field="answer",
            )
        return self._nsm.attest(
            user_data=answer or self.boot_hash,
            nonce=nonce,
            public_key=public_key_info(self.boot.enclave_key),
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
        self._answers[self.previous] = None
        if len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)
        return TeeEvidence(
            boot=self.boot,
            boot_signature=self._boot_signature,
            document=self._document,
            answer=statement,
            answer_signature=signature,
        )
