"""Enclaves of operators: challenges, appraisal of boot evidence, and what is asked of them later (docs/spec/10-tee.md).

A boot is appraised under D's own configuration before anything of it is seated or believed; what was accepted is kept,
with its evidence. D's appraisal is D's claim: whoever verifies an answer appraises the evidence again.
"""

import asyncio
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from aos.adapters.postgres import Pool, unavailable
from aos.core.codec import decode, encode
from aos.core.encoding import b64u_encode, canonical_json
from aos.core.statements import hash_of
from aos.core.tee import (
    TeeBootEvidence,
    TeeEvidence,
    check_image,
    verify_answer_document,
    verify_boot,
)
from aos.core.tee_report import MAX_REPORTED, LeftOut
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.devices import seatable, weigh
from aos.dispatcher.hub import Hub
from aos.dispatcher.limits import DocumentLimits
from aos.dispatcher.refusals import NotFound, TooMany
from aos.dispatcher.registry import now_ms
from aos.errors import AOSError, RuleViolation, Unavailable, VerificationError

log = structlog.get_logger("aos.dispatcher")

CHALLENGE_MS = 120_000
MAX_CHALLENGES = 8
MAX_AGE_MS = 300_000
MAX_BOOTS_AN_HOUR = 240
"""Accepted ones, of one operator: each is a row that is kept."""
MAX_REPORTS = 4
_CODE = re.compile(r"[a-z0-9_.]{1,64}", re.ASCII)
DOCUMENT_WITHIN_S = 10.0
"""For all documents of a report together, and for one about an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _NoMembers:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What a report holds: documents of now, and which operators with accepted enclaves gave none."""

    found: tuple[TeeBootEvidence, ...]
    left_out: tuple[LeftOut, ...]


class Attestation:
    """Challenges and accepted boots of one dispatcher. ``accepted`` is called after every boot that was."""

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        hub: Hub,
        *,
        accepted: Callable[[], None] = lambda: None,
        wall_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._pool = pool
        self._config = config
        self._hub = hub
        self._accepted = accepted
        self._wall_ms = wall_ms
        self._challenges: dict[str, dict[bytes, int]] = {}
        self._reporting = 0
        self._documents = DocumentLimits()

    # --- the link's messages

    async def challenge(self, node_id: str, body: object) -> dict[str, Any]:
        """``tee_challenge``: a nonce for one boot, and the digest of the policy that it will be appraised by."""
        decode(_NoMembers, body, where="tee_challenge")
        now = self._wall_ms()
        open_ones = {
            nonce: until for nonce, until in self._challenges.get(node_id, {}).items() if until >= now
        }
        while len(open_ones) >= MAX_CHALLENGES:
            open_ones.pop(next(iter(open_ones)))
        nonce = secrets.token_bytes(32)
        open_ones[nonce] = now + CHALLENGE_MS
        self._challenges[node_id] = open_ones
        return {"nonce": b64u_encode(nonce), "policy": b64u_encode(self._config.tee_policy)}

    async def boot(self, node_id: str, body: object) -> dict[str, Any]:
        """``tee_boot``: appraise boot evidence; answers the boot statement's hash.

        1. under an open challenge of this operator, which is used up whatever follows; 2. of this network and operator,
        its registered draw key, a registered model, D's policy; 3. of a kind that D accepts, vouched for by a document
        that is fresh, up to a root, and of an image, that D's configuration names. Raises VerificationError ``tee.*``,
        ``attest.*``; RuleViolation ``tee.challenge``, ``tee.too_many_boots``; InvalidMessage ``field.*``.
        """
        evidence = decode(TeeBootEvidence, body, where="tee_boot")
        boot, now = evidence.boot, self._wall_ms()
        # 1
        until = self._challenges.get(node_id, {}).pop(boot.nonce, 0)
        if until < now:
            raise RuleViolation(
                "tee.challenge", "the boot statement repeats no challenge that is open", field="nonce"
            )
        # 2
        async with unavailable():
            operator = await self._pool.fetchrow(
                """SELECT vrf_key, models, (SELECT count(*) FROM tee_boot b WHERE b.node_id = $1
                                            AND b.accepted_at > now() - interval '1 hour') AS boots
                   FROM operator WHERE node_id = $1 AND admitted""",
                node_id,
            )
        stated = (boot.network, boot.operator, boot.policy)
        if operator is None or stated != (self._config.network, node_id, self._config.tee_policy):
            raise VerificationError(
                "tee.foreign", "the boot statement is of another network, operator or policy"
            )
        if operator["boots"] >= MAX_BOOTS_AN_HOUR:
            raise RuleViolation("tee.too_many_boots", "this operator's enclaves boot too often; try later")
        if boot.vrf_key != operator["vrf_key"]:
            raise VerificationError(
                "tee.vrf_key", "the boot statement names another draw key", field="vrf_key"
            )
        if boot.model_id not in operator["models"]:
            raise VerificationError(
                "tee.model", "the enclave has a model that this operator does not offer", field="model_id"
            )
        # 3
        references = self._config.tee_references.get(boot.tee)
        if references is None:
            raise VerificationError("tee.policy", f"this dispatcher accepts no TEE of kind {boot.tee}")
        claims = verify_boot(evidence, references=references, at_ms=now, max_age_ms=MAX_AGE_MS)
        check_image(claims, references.images)
        digest = hash_of(boot)
        # 4
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            cap = self._config.max_weight_per_device
            await weigh(db, device=claims.device_name, node_id=node_id, cap=cap, at_ms=now)
            await db.execute(
                """INSERT INTO tee_boot (boot_hash, node_id, model_id, evidence, not_after, device)
                   VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING""",
                digest,
                node_id,
                boot.model_id,
                canonical_json(encode(evidence)).decode(),
                boot.not_after,
                claims.device_name,
            )
        log.info("tee.boot_accepted", node=node_id, tee=boot.tee, boot=digest.hex())
        self._accepted()
        return {"boot": b64u_encode(digest)}

    # --- what was accepted

    async def require(self, node_id: str, model_id: bytes) -> None:
        """Raises RuleViolation ``tee.no_boot`` unless the operator has an accepted boot with this model, not over yet, on
        a device that carries no more than it may."""
        if node_id not in await self._seatable(model_id):
            raise RuleViolation(
                "tee.no_boot", "no boot of this operator's enclave is accepted for this model"
            )

    async def _seatable(self, model_id: bytes) -> frozenset[str]:
        cap = self._config.max_weight_per_device
        return await seatable(self._pool, model_id=model_id, cap=cap, at_ms=self._wall_ms())

    async def before(self, node_id: str, moment: datetime | None) -> frozenset[bytes]:
        """Hashes of the operator's boots that were accepted before ``moment`` (none where that is None)."""
        if moment is None:
            return frozenset()
        async with unavailable():
            rows = await self._pool.fetch(
                "SELECT boot_hash FROM tee_boot WHERE node_id = $1 AND accepted_at <= $2", node_id, moment
            )
        return frozenset(row["boot_hash"] for row in rows)

    async def boot_evidence(self, digest: bytes) -> TeeBootEvidence:
        """Accepted boot evidence by its boot statement's hash. Raises NotFound ``attestation.unknown``."""
        async with unavailable():
            text = await self._pool.fetchval("SELECT evidence FROM tee_boot WHERE boot_hash = $1", digest)
        if text is None:
            raise NotFound("attestation.unknown", "no boot evidence has this hash", field="attestation_id")
        return decode(TeeBootEvidence, json.loads(text))

    async def answer_evidence(self, job_id: str) -> Any:
        """The evidence of a job's first answer, as JSON. Raises RuleViolation ``attestation.no_answer``."""
        async with unavailable():
            text = await self._pool.fetchval(
                """SELECT c.evidence FROM result r JOIN receipt c ON c.receipt_id = r.receipt_id
                   WHERE r.job_id = $1 AND r.position <> 'before' ORDER BY r.seat LIMIT 1""",
                job_id,
            )
        if text is None:
            raise RuleViolation(
                "attestation.no_answer", "this job has no answer of an enclave (yet)", field="job_id"
            )
        return json.loads(text)

    async def report(self, model_id: bytes, nonce: bytes) -> Reported:
        """Documents of now over ``nonce`` from connected enclaves with this model, of accepted boots, checked as these
        were.

        All are asked at once, within 10 s; whoever gives none, or a bad one, is left out by name. Raises Unavailable
        ``attestation.none`` where nobody is left; TooMany ``attestation.busy``.
        """
        if self._reporting >= MAX_REPORTS:
            raise TooMany("attestation.busy", "enclaves are asked for as many reports as they can make")
        self._reporting += 1
        try:
            return await self._report(model_id, nonce)
        finally:
            self._reporting -= 1

    async def _report(self, model_id: bytes, nonce: bytes) -> Reported:
        able = sorted(await self._seatable(model_id) & self._hub.connected())
        asked, beyond = able[:MAX_REPORTED], able[MAX_REPORTED : 2 * MAX_REPORTED]
        refused = dict.fromkeys(beyond, "attestation.limit")
        # Each has the same limit and all begin now, so it is the report's too. A task group ends them with the asker.
        answers: dict[str, TeeBootEvidence] = {}

        async def ask(node_id: str) -> None:
            try:
                answers[node_id] = await self._document(node_id, model_id, nonce)
            except AOSError as error:
                # The code may be the operator's own word, and whoever reads the report reads it strictly.
                code = error.code if _CODE.fullmatch(error.code) else "attestation.refused"
                refused[node_id] = code
                log.warning("tee.no_document", node=node_id, code=code)

        async with asyncio.TaskGroup() as group:
            for node_id in asked:
                group.create_task(ask(node_id))
        found: dict[bytes, TeeBootEvidence] = {}
        for node_id in sorted(
            answers
        ):  # two operators may share a key on purpose, to spoil the report for all
            evidence = answers[node_id]
            if found.setdefault(evidence.boot.enclave_key, evidence) is not evidence:
                refused[node_id] = "tee.report_twice"
        if not found:
            raise Unavailable(
                "attestation.none",
                "no enclave with this model is connected and gives a document",
                hint="ask again later",
            )
        return Reported(
            found=tuple(found.values()),
            left_out=tuple(
                LeftOut(operator=node_id, code=refused[node_id]) for node_id in sorted(refused)[:MAX_REPORTED]
            ),
        )

    async def answer_document(self, job_id: str, evidence: TeeEvidence, nonce: bytes) -> bytes:
        """A document of now, over ``nonce``, for a job's answer; the enclave that signed it must still run.

        Raises TooMany ``attestation.busy``, ``attestation.rate``; Unavailable; RuleViolation with the enclave's code;
        VerificationError ``tee.answer_not_bound``, ``attest.*``.
        """
        boot, answer = evidence.boot, hash_of(evidence.answer)
        with self._documents.asking(job_id):
            reply = await self._ask(boot.operator, model_id=boot.model_id, answer=answer, nonce=nonce)
        references = self._config.tee_references.get(boot.tee)
        if references is None:
            raise VerificationError("tee.policy", f"this dispatcher accepts no TEE of kind {boot.tee}")
        verify_answer_document(
            reply.document, evidence=evidence, references=references, at_ms=self._wall_ms(), nonce=nonce
        )
        return reply.document

    async def _document(self, node_id: str, model_id: bytes, nonce: bytes) -> TeeBootEvidence:
        evidence = await self._ask(node_id, model_id=model_id, answer=b"", nonce=nonce)
        references = self._config.tee_references.get(evidence.boot.tee)
        if references is None or evidence.boot.operator != node_id:
            raise VerificationError("tee.foreign", "the document is of another enclave")
        claims = verify_boot(
            evidence, references=references, at_ms=self._wall_ms(), nonce=nonce, max_age_ms=MAX_AGE_MS
        )
        check_image(claims, references.images)
        async with unavailable():
            accepted = await self._pool.fetchval(
                """SELECT 1 FROM tee_boot
                   WHERE boot_hash = $1 AND node_id = $2 AND model_id = $3 AND not_after > $4""",
                hash_of(evidence.boot),
                node_id,
                model_id,
                self._wall_ms(),
            )
        if accepted is None:
            raise VerificationError("tee.not_accepted", "the document is of a boot that was never accepted")
        return evidence

    async def _ask(self, node_id: str, *, model_id: bytes, answer: bytes, nonce: bytes) -> TeeBootEvidence:
        body = {
            "model_id": b64u_encode(model_id),
            "answer": b64u_encode(answer),
            "nonce": b64u_encode(nonce),
        }
        try:
            async with asyncio.timeout(DOCUMENT_WITHIN_S):
                reply = await self._hub.request(node_id, "tee_document", body)
        except TimeoutError:
            raise Unavailable("attestation.late", "the enclave gives no document in time") from None
        return decode(TeeBootEvidence, reply, where="document")
