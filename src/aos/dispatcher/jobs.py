"""What a requester can ask of the dispatcher: submit, read, cancel. Every rule of the seed's API that needs the database."""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from asyncpg import Record, UniqueViolationError

from aos.adapters.causal_clock import CausalClock
from aos.adapters.postgres import Pool, unavailable
from aos.core import draw as core_draw
from aos.core import hashes
from aos.core.codec import encode
from aos.core.encoding import b64u_encode, canonical_json
from aos.core.job import COLLECTED, STATUS, RunState, next_state
from aos.core.log.leaf import SALT_BYTES, fact_bytes
from aos.core.statements import Acceptance, Request, RequestJob, sign
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.events import Events
from aos.dispatcher.finished import Finished, load_finished
from aos.dispatcher.flags import rerun_earlier
from aos.dispatcher.limits import InFlight, Limits
from aos.dispatcher.log import Log
from aos.dispatcher.refusals import NotFound, TooMany
from aos.dispatcher.registry import Registry, now_ms
from aos.dispatcher.setup import Holder, holder_of, token_hash
from aos.dispatcher.shown import job_detail, result_row
from aos.dispatcher.submission import NewJob
from aos.dispatcher.webhook_url import allow_url
from aos.errors import InvalidMessage, RuleViolation, VerificationError


class BadToken(VerificationError):
    """The project's token is wrong."""

    http_status = 401


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """``acceptance`` is the signed pair as JSON; ``warning`` is empty where there is nothing to say."""

    job_id: str
    acceptance: dict[str, Any]
    warning: str
    promise: dict[str, Any] | None = None
    """The signed promise of the job's leaf in the log; None without a log, and where a first answer is given again."""


class Jobs:
    """Jobs of one dispatcher. ``started`` is told of every new run."""

    def __init__(
        self,
        pool: Pool,
        config: DispatcherConfig,
        registry: Registry,
        clock: CausalClock,
        events: Events,
        *,
        started: Callable[[int], None],
        under_way: Callable[[], int],
        cancelled: Callable[[int, str, int], Awaitable[None]],
        in_flight: InFlight | None = None,
        log: Log | None = None,
    ) -> None:
        self._log = log
        self._in_flight = in_flight or InFlight()
        self._pool = pool
        self._config = config
        self._registry = registry
        self._clock = clock
        self._events = events
        self._started = started
        self._under_way = under_way
        self._cancelled = cancelled

    async def authenticate(self, project: str, token: str, scope: str, *, field: str = "verify") -> None:
        """Raises BadToken ``token.invalid``, VerificationError ``token.scope``."""
        holder = await holder_of(self._pool, token)
        if holder is None or holder.project != project:
            raise _bad_token(field)
        check_scope(holder.scopes, scope, field)

    async def holder(self, token: str | None, *, field: str) -> Holder:
        """Whose an API key is. Raises BadToken ``token.invalid``."""
        holder = None if token is None else await holder_of(self._pool, token)
        if holder is None:
            raise BadToken(
                "token.invalid",
                "there is no such API key",
                field=field,
                hint="send a project's token as `Authorization: Bearer TOKEN`",
            )
        return holder

    # --- submit

    async def submit(self, new: NewJob, *, idempotency_key: str | None) -> Submitted:
        """Accept a job, or give the first answer again for the same key and body.

        Raises BadToken, VerificationError ``token.scope``, NotFound ``model.unknown``; InvalidMessage; RuleViolation
        ``idempotency.conflict``; TooMany ``dispatcher.full``, ``project.requests``, ``project.tokens``.
        """
        known = await self._known(new, idempotency_key)
        if known["scopes"] is None:
            raise _bad_token("verify")
        check_scope(known["scopes"], "submit", "verify")
        if new.tag:
            check_scope(known["scopes"], "flag", "tag")
        if known["job_id"] is not None:
            return _first_answer(new, known)
        if self._under_way() >= self._config.max_open_runs:
            raise TooMany("dispatcher.full", "as many runs are under way as this dispatcher takes; try later")
        if new.webhook is not None:
            allow_url(new.webhook, loopback=self._config.webhook_loopback, field="webhook")
        limits = Limits(
            requests=known["most_requests"] or self._config.project_requests,
            tokens=known["most_tokens"] or self._config.project_tokens,
        )
        self._in_flight.reserve(new.project, new.params.max_tokens, limits)
        stored = False
        try:
            submitted, runs = await self._accept(new, known, idempotency_key)
            stored = bool(runs)
        finally:
            if not stored:
                self._in_flight.release(new.project, new.params.max_tokens)
        if runs:
            self._in_flight.began(runs[0], new.project, new.params.max_tokens)
        for run_id in runs:
            self._started(run_id)
        return submitted

    async def _known(self, new: NewJob, key: str | None) -> Record:
        async with unavailable():
            row = await self._pool.fetchrow(_KNOWN, new.project, new.model, key, token_hash(new.token))
        assert row is not None  # noqa: S101  the statement gives one row, whatever is there
        return row

    async def _accept(self, new: NewJob, known: Record, key: str | None) -> tuple[Submitted, list[int]]:
        """Store a job; its runs, the first one first. No run where the same key was answered meanwhile."""
        issued_at = now_ms()
        request, nonce = await self._request(new, known, issued_at)
        data = canonical_json(encode(request))
        request_hash = hashes.request_hash(nonce, data)
        job_id = hashes.job_id(
            network=self._config.network,
            dispatcher=self._config.keys.address,
            request_hash=request_hash,
            issued_at=issued_at,
            secret=secrets.token_bytes(32),
        )
        expires_at = issued_at + self._config.deadlines.expiry_ms
        clock = (await self._clock.tick()).to_json()
        acceptance = sign(
            self._config.keys.signer,
            Acceptance(
                network=self._config.network,
                dispatcher=self._config.keys.address,
                job_ref=hashes.job_ref(job_id),
                request_hash=request_hash,
                nonce=nonce,
                tag=new.tag,
                epoch=self._registry.epoch_at(issued_at),
                expires_at=expires_at,
                issued_at=issued_at,
                clock=clock,
            ),
        ).to_json()
        salt, first = secrets.token_bytes(SALT_BYTES), 0 if self._log is None else self._log.size
        try:
            runs, warning = await self._store(
                new, request, data, nonce, job_id, acceptance, expires_at, key, salt
            )
        except UniqueViolationError:
            again = None if key is None else await self._again(new, key)
            if again is None:
                raise
            return again, []
        promise = None
        if self._log is not None:
            promise = self._log.promise(first, salt, fact_bytes(acceptance)).to_json()
        return Submitted(job_id=job_id, acceptance=acceptance, warning=warning, promise=promise), runs

    async def _again(self, new: NewJob, key: str) -> Submitted | None:
        row = await self._known(new, key)
        return None if row["job_id"] is None else _first_answer(new, row)

    async def _request(self, new: NewJob, known: Record, issued_at: int) -> tuple[Request, bytes]:
        model_id: bytes | None = known["model_id"]
        if model_id is None:
            raise NotFound("model.unknown", f"job.model: no model {new.model[:80]!r} here", field="job.model")
        if not isinstance(new.prompt, str) and known["manifest"] is not None:
            _check_template(known["manifest"])
        if new.params.max_tokens > self._config.max_tokens_limit:
            raise InvalidMessage(
                "field.range",
                f"job.params.max_tokens: at most {self._config.max_tokens_limit} here",
                field="job.params.max_tokens",
            )
        epoch = self._registry.epoch_at(issued_at)
        snapshot = await self._registry.in_force(epoch)
        able = sum(
            core_draw.eligible(entry, job_type=new.job_type, model_id=model_id, epoch=epoch)
            for entry in snapshot.entries
        )
        if able == 0:
            raise RuleViolation(
                "job.no_operator",
                f"no registered operator offers this model for {new.job_type}",
                field="job.tag",
                hint="GET /v1/aos/registry lists who offers what",
            )
        if new.min_operators is not None and new.min_operators > able:
            raise InvalidMessage(
                "field.range",
                f"min_operators: {able} operators offer this model for {new.job_type}",
                field="min_operators",
            )
        wanted = new.min_operators or (min(2, able) if new.job_type == "opml" else 1)
        request = Request(
            network=self._config.network,
            dispatcher=self._config.keys.address,
            project=new.project,
            user=new.user,
            job=RequestJob(
                tag=new.job_type, prompt=new.prompt, model=new.model, model_id=model_id, params=new.params
            ),
            min_operators=wanted,
            blind=new.blind,
            nonce_source="dispatcher" if new.nonce is None else "client",
            issued_at=issued_at,
        )
        return request, secrets.token_bytes(32) if new.nonce is None else new.nonce

    async def _store(
        self,
        new: NewJob,
        request: Request,
        data: bytes,
        nonce: bytes,
        job_id: str,
        acceptance: dict[str, Any],
        expires_at: int,
        key: str | None,
        log_salt: bytes,
    ) -> tuple[list[int], str]:
        clock = json.dumps(acceptance["statement"]["clock"])
        values = (
            job_id,
            hashes.job_ref(job_id),
            new.project,
            new.user,
            new.job_type,
            new.model,
            request.job.model_id,
            data,
            hashes.request_hash(nonce, data),
            nonce,
            canonical_json(acceptance).decode(),
            new.blind,
            new.private,
            key,
            new.body_hash if key is not None else None,
            datetime.fromtimestamp(request.issued_at / 1000, UTC),
            new.tag,
            request.min_operators,
            expires_at,
            clock,
            json.dumps({"status": "created", "attempt": 0}),
            new.params.max_tokens,
            log_salt,
        )
        warning = ""
        async with unavailable(), self._pool.acquire() as db:
            if not new.tag and new.webhook is None:
                runs = [await db.fetchval(_STORE, *values)]
            else:
                async with db.transaction():
                    runs = [await db.fetchval(_STORE, *values)]
                    if new.webhook is not None:
                        await db.execute(_WEBHOOK, job_id, f"msg_{secrets.token_hex(16)}", new.webhook)
                    if new.tag:
                        more, warning = await rerun_earlier(db, new, job_id, expires_at, clock)
                        runs += more
                    if warning:
                        await db.execute("UPDATE job SET warning = $2 WHERE job_id = $1", job_id, warning)
        self._events.tell(job_id)
        return runs, warning

    # --- read

    async def may_read(self, job_id: str, *, token: str | None) -> None:
        """Whether the id, or for a private job the id with its project's token, opens this job.

        Raises NotFound ``job.unknown``, BadToken ``token.required``, VerificationError ``token.scope``.
        """
        async with unavailable():
            row = await self._pool.fetchrow("SELECT project_id, private FROM job WHERE job_id = $1", job_id)
        if row is None:
            raise NotFound("job.unknown", "job_id: no such job", field="job_id")
        if not row["private"]:
            return
        holder = await holder_of(self._pool, token) if token else None
        if holder is None or holder.project != row["project_id"]:
            raise BadToken("token.required", "this job is private: send the project's token", field="verify")
        check_scope(holder.scopes, "read", "verify")

    async def _job(self, job_id: str) -> Record:
        async with unavailable():
            row = await self._pool.fetchrow("SELECT * FROM job WHERE job_id = $1", job_id)
        if row is None:
            raise NotFound("job.unknown", "job_id: no such job", field="job_id")
        return row

    async def result_rows(self, job_id: str, *, token: str | None) -> list[dict[str, Any]]:
        """The guide's result rows of every finished run of a job."""
        await self.may_read(job_id, token=token)
        async with unavailable():
            rows = await self._pool.fetch(_RESULTS + " AND r.job_id = $1 ORDER BY r.seq", job_id)
        return [result_row(row) for row in rows]

    async def user_results(
        self, project: str, user: str, *, before: int | None, limit: int
    ) -> tuple[list[dict[str, Any]], str | None]:
        """All result rows for a user, newest first, and the cursor of the next page."""
        async with unavailable():
            rows = await self._pool.fetch(
                _RESULTS
                + """ AND r.project_id = $1 AND r.user_id = $2 AND r.seq < $3
                      ORDER BY r.seq DESC LIMIT $4""",
                project,
                user,
                2**63 - 1 if before is None else before,
                limit + 1,
            )
        page = rows[:limit]
        return [result_row(row) for row in page], str(page[-1]["seq"]) if len(rows) > limit else None

    async def detail(self, job_id: str, *, token: str | None) -> dict[str, Any]:
        """The guide's job detail."""
        await self.may_read(job_id, token=token)
        job = await self._job(job_id)
        async with unavailable():
            run = await self._pool.fetchrow(
                "SELECT * FROM run WHERE job_id = $1 AND position <> 'before'", job_id
            )
        assert run is not None  # noqa: S101  a job and its first run are one transaction
        return job_detail(job, run)

    async def request_bytes(self, job_id: str) -> bytes:
        job = await self._job(job_id)
        return bytes(job["request"])

    async def answer(self, job_id: str, attempt: int | None) -> bytes:
        """The answer file of a finished run (default: the job's first). Raises NotFound, RuleViolation ``job.no_answer``."""
        from aos.dispatcher.answers import build_answer_file

        job = await self._job(job_id)
        return await build_answer_file(self._pool, self._registry, job, attempt, self._log)

    async def draw(self, job_ref: bytes) -> dict[str, Any]:
        """Public: call, record, entries, claims of every attempt, and the open tag where the run is over."""
        from aos.dispatcher.answers import draw_document

        async with unavailable():
            job = await self._pool.fetchrow("SELECT * FROM job WHERE job_ref = $1", job_ref)
        if job is None:
            raise NotFound("job.unknown", "no such job", field="job_ref")
        return await draw_document(self._pool, self._registry, job)

    async def model_rows(self) -> list[tuple[str, bytes, bytes | None]]:
        """Name, model_id and, where it is known, manifest of every model."""
        async with unavailable():
            rows = await self._pool.fetch("SELECT name, model_id, manifest FROM model ORDER BY name")
        return [(row["name"], row["model_id"], row["manifest"]) for row in rows]

    async def models(self) -> list[dict[str, str]]:
        """Names and ids."""
        return [
            {"name": name, "model_id": b64u_encode(model_id)} for name, model_id, _ in await self.model_rows()
        ]

    async def finished(self, job_id: str) -> Finished:
        """How the job's first run stands."""
        return await load_finished(self._pool, job_id)

    async def open_states(self) -> dict[str, int]:
        """How many runs are under way, by state."""
        async with unavailable():
            rows = await self._pool.fetch(
                """SELECT state, count(*) FROM run WHERE state IN
                   ('created', 'drawing', 'drawn', 'running', 'checking', 'committed') GROUP BY state"""
            )
        return {row["state"]: row["count"] for row in rows}

    async def events_after(self, job_id: str, after: int, *, wait_s: float) -> list[tuple[int, str, str]]:
        """(id, kind, JSON) of the events after ``after``; waits up to ``wait_s`` where there is none."""
        return await self._events.after(job_id, after, wait_s=wait_s)

    # --- cancel

    async def cancel(self, job_id: str, token: str) -> str:
        """Cancel a job that is not committed; cancelling twice is no error. Raises RuleViolation ``job.too_late``."""
        job = await self._job(job_id)
        await self.authenticate(job["project_id"], token, "submit")
        async with unavailable(), self._pool.acquire() as db, db.transaction():
            run = await db.fetchrow(
                "SELECT * FROM run WHERE job_id = $1 AND position <> 'before' FOR UPDATE", job_id
            )
            state: RunState = run["state"]
            if state == "cancelled":
                return "cancelled"
            if state in COLLECTED or state == "committed":
                raise RuleViolation(
                    "job.too_late", f"the job is {STATUS[state]}; it can no longer be cancelled"
                )
            await db.execute(
                """UPDATE run SET state = $2, error_code = 'job.cancelled',
                                  error_message = 'cancelled by the requester' WHERE run_id = $1""",
                run["run_id"],
                next_state(state, "cancel"),
            )
            await self._events.add(db, job_id, "done", {"status": "cancelled", "attempt": run["attempt"]})
        self._events.tell(job_id)
        self._in_flight.ended(run["run_id"])
        await asyncio.shield(self._cancelled(run["run_id"], job_id, run["attempt"]))
        return "cancelled"


def _bad_token(field: str) -> BadToken:
    return BadToken("token.invalid", "the API token is not this project's", field=field)


def _check_template(manifest: bytes) -> None:
    """Said here already where it is known; else the operators say it. Raises InvalidMessage ``chat.no_template``."""
    if not json.loads(manifest)["chat_template"]:
        raise InvalidMessage(
            "chat.no_template",
            "job.prompt: this model has no chat template",
            field="job.prompt",
            hint="send a plain prompt, or use a model that was trained for chat",
        )


def check_scope(scopes: Iterable[str], wanted: str, field: str) -> None:
    """Raises VerificationError ``token.scope``."""
    if wanted not in scopes:
        raise VerificationError(
            "token.scope",
            f"this token is not for what the scope {wanted!r} allows",
            field=field,
            hint=f"`aos project token` makes one with --scope {wanted}",
        )


def _first_answer(new: NewJob, row: Record) -> Submitted:
    """What the same Idempotency-Key was answered before. Raises RuleViolation ``idempotency.conflict``."""
    if row["idempotency_hash"] != new.body_hash:
        raise RuleViolation(
            "idempotency.conflict",
            "this Idempotency-Key was used with another body",
            field="Idempotency-Key",
        )
    return Submitted(job_id=row["job_id"], acceptance=json.loads(row["acceptance"]), warning=row["warning"])


# What a submission needs to know, in one round trip.
_KNOWN = """SELECT t.scopes, p.most_requests, p.most_tokens, m.model_id, m.manifest,
                   j.job_id, j.idempotency_hash, j.acceptance, j.warning
            FROM (VALUES (1)) AS one
            LEFT JOIN token t ON t.token_hash = $4 AND t.project_id = $1
            LEFT JOIN project p ON p.project_id = t.project_id
            LEFT JOIN model m ON m.name = $2
            LEFT JOIN job j ON j.project_id = $1 AND j.idempotency_key = $3"""

# A job with its first run and event, and the user's mark, if there is one, used up: all or nothing, in one round trip.
_STORE = """WITH mark AS (DELETE FROM flag WHERE project_id = $3 AND user_id = $4 RETURNING tag),
    stored AS (
        INSERT INTO job (job_id, job_ref, project_id, user_id, job_type, model, model_id, request, request_hash,
                         nonce, acceptance, blind, private, idempotency_key, idempotency_hash, created_at, events, max_tokens,
                         log_salt)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 1, $22, $23)),
    told AS (INSERT INTO event (job_id, seq, kind, data) VALUES ($1, 1, 'status', $21))
    INSERT INTO run (job_id, tag, position, state, min_operators, not_before, give_up_at, deadline, expires_at, clock)
    SELECT $1, CASE WHEN $17 <> '' THEN $17 ELSE coalesce((SELECT tag FROM mark), '') END,
           CASE WHEN $17 = '' AND EXISTS (SELECT FROM mark) THEN 'after' ELSE '' END,
           'created', $18, 0, $19, 0, $19, $20
    RETURNING run_id"""

_WEBHOOK = "INSERT INTO webhook (job_id, message_id, url) VALUES ($1, $2, $3)"

_RESULTS = """SELECT r.*, c.core, c.answer, j.job_type, j.user_id FROM result r
              JOIN receipt c ON c.receipt_id = r.receipt_id JOIN job j ON j.job_id = r.job_id
              WHERE r.outcome NOT IN ('convicted', 'withheld')"""
