"""A requester's side of a dispatcher: ask, or submit, follow, and fetch the answer (docs/spec/09-http.md).

The client makes the nonce itself, checks the dispatcher's signed acceptance against it, and checks that the request bytes which
the dispatcher stored are those it meant. It decides nothing about receipts: ``aos.core.receipt`` does that, offline.
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from aos.client.answer import Answer, Stream
from aos.client.events import JobEvent, read_events
from aos.client.transfer import (
    MAX_REPLY_BYTES,
    NOT_COMPRESSED,
    BackgroundLoop,
    Reply,
    check_plain,
    exchange,
    next_of,
    whole,
)
from aos.core import hashes
from aos.core.codec import decode, encode
from aos.core.dispute.court import Read
from aos.core.encoding import b64u_decode, b64u_encode, canonical_json, parse_canonical, parse_json_strict
from aos.core.log.leaf import LogPromise, fact_bytes, log_leaf
from aos.core.signing import address_of
from aos.core.statements import Acceptance, ChatMessage, Request, Signed, sign, verify_signed
from aos.core.tee import References
from aos.core.tee_report import MAX_REPORT_BYTES, VerifiedEnclave, read_report, verify_report
from aos.core.trust import Policy, Trust
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable, VerificationError

MAX_ANSWER_BYTES = 8 * 1024 * 1024
_MAX_LIST_BYTES = 1 << 20
_RECONNECT_DELAY_S = 0.5
_MAX_RECONNECTS = 60

Messages = Sequence[Mapping[str, str]]
"""A conversation: mappings with ``role`` (system, user, assistant) and ``content``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What a requester asks for: a raw prompt, or messages for the model's chat template. ``params`` holds the guide's members
    (decimals as numbers or strings). ``webhook`` is told of the end; a ``private`` job needs the token to be read.
    """

    prompt: str | Messages
    model: str
    job_type: str = "opml"
    user: str = "local"
    tag: str = ""
    params: Mapping[str, Any]
    min_operators: int | None = None
    blind: bool = False
    private: bool = False
    webhook: str | None = None
    idempotency_key: str | None = None
    attested: bool = False
    """Send the prompt only where every enclave that could get it has been believed first; ``tee`` jobs alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """An accepted job: its bearer id, the salt of its hashes, and the dispatcher's signed acceptance."""

    job_id: str
    nonce: bytes
    acceptance: Signed[Acceptance]
    promise: Signed[LogPromise] | None = None
    """Of the acceptance's leaf in the dispatcher's log, where it keeps one. Keep it: it shows that a job was left out."""


class Client:
    """Talks to one dispatcher as one project. Use as a context manager.

    ``dispatcher`` is the address that must have signed every acceptance; ``trust`` is what answers are verified under where
    nothing else is said; ``model`` is asked for where none is named. ``aos.client.connect`` finds all of it.

    A call takes at most ``timeout_s`` seconds from the name's resolution to the answer's last byte, and an answer has at
    most 64 MiB; of a job's events, each silence and each event is limited. May be used from several threads.
    """

    def __init__(
        self,
        url: str,
        *,
        project: str,
        token: str,
        dispatcher: str | None,
        model: str = "",
        trust: Trust | None = None,
        policy: Policy | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self.model = model
        self.trust = trust
        self._url = url.rstrip("/")
        self._project = project
        self._token = token
        # Reads the files of private jobs. Whoever signs its questions may have none.
        self._bearer = {"Authorization": f"Bearer {token}"} if token else {}
        self._dispatcher = dispatcher
        self._policy = policy
        # A proxy is of no use for a dispatcher on this machine, and mostly cannot reach it.
        local = httpx.URL(self._url).host in ("127.0.0.1", "::1", "localhost")
        self._timeout_s = timeout_s
        self._loop = BackgroundLoop()
        self._http = httpx.AsyncClient(
            timeout=timeout_s, follow_redirects=False, trust_env=not local, headers=NOT_COMPRESSED
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._http.aclose())
        self._loop.close()

    def ask(self, prompt: str | Messages, **options: Any) -> Answer:
        """Ask, wait for the end, and fetch the answer with its receipt. Options are those of ``stream``.

        Raises AOSError; RuleViolation ``job.failed``, ``job.expired``, ``job.cancelled``.
        """
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        prompt: str | Messages,
        *,
        model: str = "",
        job_type: str = "opml",
        operators: int | None = None,
        user: str = "local",
        blind: bool = False,
        private: bool = False,
        webhook: str | None = None,
        attested: bool = False,
        **params: Any,
    ) -> Stream:
        """Ask, and read the text as it comes; it is provisional until ``Stream.answer`` is there.

        ``operators`` must commit the same result; ``job_type`` ``tee`` asks an enclave, which with
        ``attested`` is believed before the prompt is sent. ``params``: temperature, top_p, top_k,
        min_p, repeat_penalty, max_tokens, stop, seed.
        """
        accepted = self.submit(
            Submission(
                prompt=prompt,
                model=model or self.model,
                job_type=job_type,
                user=user,
                params=params,
                min_operators=operators,
                blind=blind,
                private=private,
                webhook=webhook,
                attested=attested,
            )
        )
        return Stream(accepted.job_id, self.events(accepted.job_id), self.fetch)

    def fetch(self, job_id: str, status: str = "") -> Answer:
        """The answer of a job that is over (with ``status``, where that is known), whoever submitted it.

        Raises RuleViolation ``job.no_answer`` before its end, ``job.failed``, ``job.expired``, ``job.cancelled``.
        """
        status = status or str(self.detail(job_id)["status"])
        if status in ("created", "dispatched", "running", "committed"):
            raise RuleViolation(
                "job.no_answer", f"the job is {status}", hint="follow its events until `done`"
            )
        if status not in ("verified", "disputed"):
            reason = self.detail(job_id).get("error") or "no reason given"
            raise RuleViolation(f"job.{status}", f"the job ended {status}: {reason}")
        return Answer(job_id=job_id, status=status, data=self.answer(job_id), trust=self.trust)

    def submit(self, submission: Submission) -> Accepted:
        """Submit a job and check what was accepted. Raises AOSError of the class that says who is at fault."""
        if self._dispatcher is None:  # before anything is sent: what comes back could not be checked
            raise _no_trust()
        model_id = self._believed_model(submission) if submission.attested else None
        nonce = secrets.token_bytes(32)
        job = {
            "tag": submission.job_type,
            "prompt": submission.prompt
            if isinstance(submission.prompt, str)
            else [encode(message) for message in _messages(submission.prompt)],
            "model": submission.model,
            "params": {
                k: str(v) if k == "seed" else v for k, v in submission.params.items()
            },  # JSON ends at 2^53
        }
        body: dict[str, Any] = {
            "from": self._project,
            "tag": submission.tag,
            "user": submission.user,
            "job": job,
            "verify": self._token,
            "nonce": b64u_encode(nonce),
        }
        if submission.min_operators is not None:
            body["min_operators"] = submission.min_operators
        for name in ("blind", "private"):
            if getattr(submission, name):
                body[name] = True
        if submission.webhook is not None:
            body["webhook"] = submission.webhook
        key = submission.idempotency_key or secrets.token_hex(16)
        response = self._call("POST", "/api/job/submit", json=body, headers={"Idempotency-Key": key})
        header = response.headers.get("x-aos-acceptance", "")
        acceptance = self._check_acceptance(header, nonce, self._dispatcher)
        job_id = self._result_of(response)
        if hashes.job_ref(job_id) != acceptance.statement.job_ref:
            raise VerificationError("client.job_ref", "the dispatcher's acceptance is of another job")
        self._check_request(job_id, submission, acceptance.statement, nonce, model_id)
        promise = _checked_promise(response.headers.get("x-aos-log-promise"), acceptance, self._dispatcher)
        return Accepted(job_id=job_id, nonce=nonce, acceptance=acceptance, promise=promise)

    def disputes(
        self, path: str = "", *, value: object = None, key: bytes | None = None, subject: bytes = b""
    ) -> bytes:
        """``GET``, or with ``value`` ``POST``, under ``/v1/aos/disputes``; the answer's body. ``key`` (32 bytes) signs a ``GET``
        about ``subject``, a claim or game, for a reader who is entitled without a token. Raises AOSError."""
        return self._court("disputes", path, "POST", value, key, subject)

    def audits(
        self, path: str = "", *, value: object = None, key: bytes | None = None, subject: bytes = b""
    ) -> bytes:
        """``GET``, or with ``value`` ``POST`` (below ``""``, ``PUT``), under ``/v1/aos/audits``; as ``disputes``."""
        return self._court("audits", path, "PUT" if path else "POST", value, key, subject)

    def _court(
        self, what: str, path: str, method: str, value: object, key: bytes | None, subject: bytes
    ) -> bytes:
        headers = dict(self._bearer)
        if key is not None and value is None and (self.trust is not None or not headers):
            headers["x-aos-reader"] = self._signed_reader(key, subject)
        more: dict[str, Any] = {} if value is None else {"json": value}
        return self._call(
            "GET" if value is None else method, f"/v1/aos/{what}{path}", headers=headers, **more
        ).content

    def _signed_reader(self, key: bytes, subject: bytes) -> str:
        if self.trust is None or self._dispatcher is None:
            raise _no_trust()
        question = Read(
            network=self.trust.network,
            dispatcher=self._dispatcher,
            reader=address_of(key),
            subject=subject,
            time=time.time_ns() // 1_000_000,
        )
        return b64u_encode(canonical_json(sign(key, question).to_json()))

    def attest(self, model: str) -> tuple[VerifiedEnclave, ...]:
        """Ask for documents over a nonce of ours from the enclaves that serve ``model``, and believe all of them or none.

        Raises ConfigError ``client.no_trust`` without a trust file and a policy; VerificationError ``tee.*``,
        ``attest.*``; Unavailable where no enclave answers.
        """
        if self.trust is None or self._policy is None:
            raise ConfigError(
                "client.no_trust",
                "no trust file names the enclaves that may be believed",
                hint="pass --trust FILE, or run where .aos/trust.json is",
            )
        accepted, trust = self._policy.accept_tee, self.trust

        def references(kind: str) -> References:
            if kind not in accepted:
                raise VerificationError("tee.policy", f"the policy does not accept a TEE of kind {kind}")
            return trust.references(kind)

        nonce = secrets.token_bytes(32)
        answer = self._call(
            "GET",
            "/v1/attestation/report",
            max_bytes=MAX_REPORT_BYTES,
            params={"model": model, "nonce": nonce.hex()},
        )
        return verify_report(
            read_report(answer.content),
            nonce=nonce,
            model_id=self._model_id(model),
            network=trust.network,
            references=references,
            at_ms=time.time_ns() // 1_000_000,
        )

    def _believed_model(self, submission: Submission) -> bytes:
        """The id of the model that the believed enclaves have loaded."""
        if submission.job_type != "tee":
            raise InvalidMessage(
                "client.attested", "only a tee job can be attested", field="job_type", hint="--type tee"
            )
        return self.attest(submission.model)[0].boot.model_id

    def _model_id(self, model: str) -> bytes:
        data = self._call("GET", "/v1/aos/models", max_bytes=_MAX_LIST_BYTES).content
        listed: Any = parse_json_strict(data, max_bytes=_MAX_LIST_BYTES)
        try:
            found = {str(entry["name"]): str(entry["model_id"]) for entry in listed["models"]}
        except (KeyError, TypeError):
            raise InvalidMessage("client.not_aos", "the dispatcher sent no list of models") from None
        if model not in found:
            raise InvalidMessage("model.unknown", f"the network has no model {model!r}", field="model")
        return b64u_decode(found[model], length=32)

    def events(self, job_id: str, *, after: str = "") -> Iterator[JobEvent]:
        """Follow a job to its end, resuming where the connection was lost; from its beginning, or after an event's id."""
        last_id = after
        failures = 0
        while True:
            headers = self._bearer | {"Accept": "text/event-stream"}
            if last_id:
                headers["Last-Event-ID"] = last_id
            failure: Exception = Unavailable("client.unreachable", "the dispatcher ends every stream at once")
            try:
                for event in self._follow(job_id, headers):
                    failures = 0
                    last_id = event.id or last_id
                    yield event
                    if event.kind == "done":
                        return
            except (httpx.HTTPError, TimeoutError, Unavailable) as error:
                failure = error
            failures += 1
            if failures > _MAX_RECONNECTS:
                if isinstance(failure, Unavailable):
                    raise failure
                raise self._unreachable(failure) from failure
            time.sleep(_RECONNECT_DELAY_S)

    def _follow(self, job_id: str, headers: dict[str, str]) -> Iterator[JobEvent]:
        """The events of one connection."""
        response, events = self._loop.run(self._open_events(job_id, headers))
        try:
            while (event := self._loop.run(next_of(events))) is not None:
                yield event
        finally:
            with suppress(RuntimeError):  # the client is closed already, or a read of ours was interrupted
                self._loop.run(_close(events, response))

    async def _open_events(
        self, job_id: str, headers: dict[str, str]
    ) -> tuple[httpx.Response, AsyncGenerator[JobEvent, None]]:
        request = self._http.build_request("GET", f"{self._url}/v1/aos/jobs/{job_id}/events", headers=headers)
        async with asyncio.timeout(self._timeout_s):
            response = await self._http.send(request, stream=True)
        try:
            check_plain(response)
            if response.status_code != 200:
                async with asyncio.timeout(self._timeout_s):
                    raise _error_of(await whole(response))
        except BaseException:
            await response.aclose()
            raise
        return response, read_events(response.aiter_raw())

    def answer(self, job_id: str) -> bytes:
        """The answer file's bytes, at most 8 MiB."""
        path = f"/v1/aos/jobs/{job_id}/answer"
        return self._call("GET", path, max_bytes=MAX_ANSWER_BYTES, headers=self._bearer).content

    def result(self, job_id: str) -> Any:
        """The guide's result rows."""
        return self._post("/api/job/result", {"job_id": job_id, "verify": self._token})

    def detail(self, job_id: str) -> Any:
        """The guide's job detail."""
        return self._post("/api/job/detail", {"job_id": job_id, "verify": self._token})

    def cancel(self, job_id: str) -> Any:
        """Ask for the job to be cancelled."""
        return self._post("/api/job/cancel", {"job_id": job_id, "verify": self._token})

    def results(self, user: str) -> Iterator[dict[str, Any]]:
        """All result rows of one user of this project, newest first; further pages are fetched as they are read."""
        body: dict[str, Any] = {"from": self._project, "user": user, "verify": self._token, "limit": 100}
        before = 10**18
        while True:
            reply = self._call("POST", "/api/job/verify", json=body)
            yield from self._result_of(reply)
            cursor = reply.json().get("cursor")
            if cursor is None:
                return
            # Pages go back in time: a dispatcher that leads on for ever is not followed.
            if not (
                isinstance(cursor, str) and re.fullmatch(r"[0-9]{1,18}", cursor) and int(cursor) < before
            ):
                raise InvalidMessage(
                    "client.not_aos",
                    f"the pages of the dispatcher at {self._url} lead nowhere",
                    field="cursor",
                )
            body["cursor"], before = cursor, int(cursor)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._result_of(self._call("POST", path, json=body))

    def _call(self, method: str, path: str, *, max_bytes: int = MAX_REPLY_BYTES, **arguments: Any) -> Reply:
        work = exchange(
            self._http,
            method,
            self._url + path,
            within_s=self._timeout_s,
            max_bytes=max_bytes,
            **arguments,
        )
        try:
            reply = self._loop.run(work)
        except (httpx.HTTPError, TimeoutError) as error:
            raise self._unreachable(error) from error
        if reply.status != 200:
            raise _error_of(reply)
        return reply

    def _result_of(self, reply: Reply) -> Any:
        try:
            return reply.json()["result"]
        except (ValueError, KeyError, TypeError):
            raise InvalidMessage(
                "client.not_aos",
                f"what answers at {self._url} is no AOS dispatcher",
                hint="is the address right? AOS_URL or --url",
            ) from None

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(
            "client.unreachable",
            f"no whole answer from the dispatcher at {self._url} within {self._timeout_s:g} s"
            if isinstance(error, TimeoutError)
            else f"no answer from the dispatcher at {self._url}: {type(error).__name__}",
            hint="is it running? `aos up` starts a local network",
        )

    def _check_acceptance(self, header: str, nonce: bytes, dispatcher: str) -> Signed[Acceptance]:
        try:
            pair = parse_json_strict(b64u_decode(header), max_bytes=16_384)
        except InvalidMessage as error:
            raise VerificationError(
                "client.acceptance", "the dispatcher sent no readable acceptance"
            ) from error
        acceptance = verify_signed(Acceptance, pair, address=dispatcher, where="acceptance")
        if acceptance.statement.nonce != nonce:
            raise VerificationError("client.nonce", "the dispatcher replaced the nonce of this submission")
        return acceptance

    def _check_request(
        self,
        job_id: str,
        submission: Submission,
        acceptance: Acceptance,
        nonce: bytes,
        model_id: bytes | None,
    ) -> None:
        data = self._call("GET", f"/v1/aos/jobs/{job_id}/request", headers=self._bearer).content
        if hashes.request_hash(nonce, data) != acceptance.request_hash:
            raise VerificationError("client.request_hash", "the stored request is not the accepted one")
        request = decode(Request, parse_canonical(data, max_bytes=1 << 20), where="request")
        prompt = submission.prompt if isinstance(submission.prompt, str) else _messages(submission.prompt)
        meant = (prompt, submission.model, submission.job_type, submission.user, submission.blind)
        stored = (request.job.prompt, request.job.model, request.job.tag, request.user, request.blind)
        if meant != stored or model_id not in (None, request.job.model_id):
            raise VerificationError("client.request", "the dispatcher changed the request")


async def _close(events: AsyncGenerator[JobEvent, None], response: httpx.Response) -> None:
    try:
        await events.aclose()
    finally:
        await response.aclose()


def _no_trust() -> ConfigError:
    return ConfigError(
        "client.no_trust",
        "no trust file names the dispatcher's key, so nothing that it signs can be checked",
        hint="pass --trust FILE, or run where .aos/trust.json is",
    )


def _messages(messages: Messages) -> tuple[ChatMessage, ...]:
    try:
        return tuple(ChatMessage(role=turn["role"], content=turn["content"]) for turn in messages)
    except (KeyError, TypeError):
        raise InvalidMessage(
            "client.messages", "a message has a role and a content, both text", field="prompt"
        ) from None


def encode_acceptance(accepted: Accepted) -> dict[str, Any]:
    """JSON form of an accepted job, for ``--json``."""
    return {
        "job_id": accepted.job_id,
        "nonce": encode(accepted.nonce),
        "acceptance": accepted.acceptance.to_json(),
        "log_promise": None if accepted.promise is None else accepted.promise.to_json(),
    }


def _checked_promise(
    header: str | None, acceptance: Signed[Acceptance], dispatcher: str
) -> Signed[LogPromise] | None:
    """Raises VerificationError ``client.promise``, ``signature.*``: no promise, or one about another leaf."""
    if header is None:
        return None
    try:
        pair = parse_json_strict(b64u_decode(header), max_bytes=16_384)
    except InvalidMessage as error:
        raise VerificationError(
            "client.promise", "the dispatcher sent no readable promise of its log"
        ) from error
    promise = verify_signed(LogPromise, pair, address=dispatcher, where="log_promise")
    told = promise.statement
    if told.leaf != log_leaf("acceptance", told.salt, fact_bytes(acceptance.to_json())):
        raise VerificationError("client.promise", "the dispatcher promised another leaf than this job's")
    return promise


def _error_of(response: Reply) -> AOSError:
    try:
        body = response.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    message = str(body.get("message") or body.get("detail") or f"HTTP {response.status}")
    code = str(body.get("error") or body.get("type") or "client.http").removeprefix("urn:aos:error:")
    field = body.get("field")
    if response.status in (401, 403):
        refused = VerificationError(code, message, field=field)
        refused.exit_code = ConfigError.exit_code  # our credentials are wrong; no answer was judged
        return refused
    if response.status in (409, 410):
        return RuleViolation(code, message, field=field)
    if response.status == 429 or response.status >= 500:
        return Unavailable(code, message, field=field)
    return InvalidMessage(code, message, field=field)
