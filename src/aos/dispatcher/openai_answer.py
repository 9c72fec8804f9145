"""Answers in OpenAI's shapes, made of a job's events and receipts (docs/spec/09-http.md, "OpenAI's API"). Pure."""

from dataclasses import dataclass
from typing import Any

from aos.client.answer import ShownText
from aos.core.encoding import b64u_encode
from aos.core.statements import Acceptance, ReceiptCore
from aos.dispatcher.finished import Finished
from aos.dispatcher.openai_request import Asked, Assurance, Kind
from aos.errors import AOSError, InvalidMessage, RuleViolation, Unavailable

_REQUESTERS = {
    "engine.prompt_too_long": "is longer than the model's context",
    "engine.empty_prompt": "is empty, and the model does not begin by itself",
    "engine.params": "goes with a parameter that the engine does not take",
    "engine.memory_limit": "and max_tokens need more memory than the workers give",
    "tokenizer.text": "is not valid Unicode",
    "chat.no_template": "cannot be put to this model, whose file has no chat template",
    "chat.template": "cannot be put to this model, whose chat template cannot be used",
    "chat.tokenizer": "cannot be put to this model, whose tokenizer is not known here",
    "chat.refused": "is refused by the model's chat template",
    "chat.messages": "has too many messages, or too long ones",
    "chat.steps": "takes the model's chat template too many steps",
    "chat.output": "is longer than a prompt may be",
    "chat.value": "cannot be rendered by the model's chat template",
    "chat.render": "cannot be rendered by the model's chat template",
}
"""Codes with which operators refuse what the requester sent, and how a sentence about the prompt goes on."""


class NotReached(RuleViolation):
    """There is an answer, and it is worth less than was asked for. Asking again may not help."""

    http_status = 422


class StreamText:
    """What of a job's text was passed on. A later attempt begins the text again: it may continue, never contradict."""

    def __init__(self) -> None:
        self._text = ShownText()

    @property
    def sent(self) -> str:
        return self._text.shown

    def push(self, attempt: int, text: str) -> str:
        """The part of ``text`` that is new to the reader. Raises NotReached ``stream.superseded``."""
        return self._new(*self._text.push(attempt, text))

    def finish(self, text: str) -> str:
        """The rest of the text that the receipt is about. Raises NotReached ``stream.superseded``."""
        return self._new(*self._text.finish(text))

    def _new(self, text: str, again: bool) -> str:
        if again:
            raise _superseded()
        return text


def _superseded() -> NotReached:
    return NotReached(
        "stream.superseded",
        "the text that was streamed is not the one that the receipt is about",
        hint="the answer file of this job holds the right one",
    )


def check_finished(finished: Finished, asked: Asked) -> ReceiptCore:
    """The receipt of the answer, where there is one that is worth what was asked for.

    Raises InvalidMessage where the request was at fault, Unavailable where nobody could run it, NotReached ``job.disputed``,
    ``job.broken_off``, ``assurance.not_reached``; RuleViolation ``job.cancelled``.
    """
    code, message, wanted = finished.error_code, finished.error_message, asked.assurance
    if finished.status == "cancelled":
        raise RuleViolation("job.cancelled", "the job was cancelled")
    if not finished.receipts:
        if (what := _REQUESTERS.get(finished.reported)) is not None:
            field = "messages" if asked.kind == "chat" else "prompt"
            raise InvalidMessage(finished.reported, f"{field}: {what}", field=field)
        raise Unavailable(code or f"job.{finished.status}", message or f"the job ended {finished.status}")
    core = finished.receipts[0]
    if finished.outcome == "disputed":
        raise NotReached(
            "job.disputed",
            "the operators committed different results",
            hint="the answer file holds all of them; aos replay says which one is right",
        )
    if core.finish_reason not in ("stop", "length"):
        raise NotReached(
            "job.broken_off", f"the run ended by {core.finish_reason}, in the middle of its text"
        )
    if not _reached(finished, wanted):
        raise NotReached(
            "assurance.not_reached",
            f"{wanted.name!r} was asked for, the receipts claim {', '.join(finished.claimed)}",
            field="aos.verify",
            hint="the answer file of this job holds what there is",
        )
    return core


def _reached(finished: Finished, wanted: Assurance) -> bool:
    claimed = finished.claimed
    if wanted.level == "redundant":
        return finished.outcome == "agreed" and len(finished.receipts) >= wanted.k
    if wanted.level == "simulated":
        return "simulated" in claimed or "attested" in claimed
    return wanted.level != "attested" or "attested" in claimed


@dataclass(frozen=True, slots=True, kw_only=True)
class Answerer:
    """Writes the answer of one accepted call."""

    asked: Asked
    job_id: str
    acceptance: Acceptance

    @property
    def kind(self) -> Kind:
        return self.asked.kind

    def whole(self, finished: Finished, core: ReceiptCore) -> dict[str, Any]:
        """The answer of a call without streaming."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": core.finish_reason, "logprobs": None}
        if self.kind == "chat":
            choice["message"] = {"role": "assistant", "content": finished.text, "refusal": None}
        else:
            choice["text"] = finished.text
        return {
            **self._head(chunk=False, fingerprint=core.engine),
            "choices": [choice],
            "usage": usage_of(core),
            "aos": self.about(finished, core),
        }

    def opening(self) -> dict[str, Any]:
        """The first chunk: who speaks, and that all of it is provisional."""
        delta = {"role": "assistant", "content": ""} if self.kind == "chat" else None
        return self._chunk("", delta=delta) | {"aos": {"job_id": self.job_id, "provisional": True}}

    def text(self, text: str) -> dict[str, Any]:
        """A chunk of text."""
        return self._chunk(text)

    def closing(self, finished: Finished, core: ReceiptCore) -> list[dict[str, Any]]:
        """What comes when the results are revealed and compared: the reason of the end, usage where asked for, `aos`."""
        about = {"aos": self.about(finished, core)}
        delta: dict[str, Any] | None = {} if self.kind == "chat" else None
        end = self._chunk("", delta=delta, finish_reason=core.finish_reason, fingerprint=core.engine)
        if not self.asked.include_usage:
            return [end | about]
        last = {**self._head(chunk=True, fingerprint=core.engine), "choices": [], "usage": usage_of(core)}
        return [end | about, last | about]

    def about(self, finished: Finished, core: ReceiptCore) -> dict[str, Any]:
        """The `aos` member: what stands in receipts and acceptance, so that a client need not fetch them to say it."""
        return {
            "job_id": self.job_id,
            "job_ref": b64u_encode(self.acceptance.job_ref),
            "provisional": False,
            "status": finished.status,
            "outcome": finished.outcome,
            "verify": self.asked.assurance.name or None,
            "claimed": finished.claimed,
            "attempt": finished.attempt,
            "operators": [receipt.operator for receipt in finished.receipts],
            "receipt_id": finished.receipt_ids[0],
            "model_id": b64u_encode(core.model_id),
            "engine": core.engine,
            "state_root": b64u_encode(core.state_root),
            "sampling_seed": core.sampling_seed,
            "request_hash": b64u_encode(self.acceptance.request_hash),
            "nonce": b64u_encode(self.acceptance.nonce),
            "nonce_source": "dispatcher" if self.asked.new.nonce is None else "client",
            "answer": f"/v1/aos/jobs/{self.job_id}/answer",
        }

    def _chunk(
        self,
        text: str,
        *,
        delta: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        fingerprint: str | None = None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        if self.kind == "chat":
            choice["delta"] = {"content": text} if delta is None else delta
        else:
            choice["text"] = text
        chunk = {**self._head(chunk=True, fingerprint=fingerprint), "choices": [choice]}
        return chunk | ({"usage": None} if self.asked.include_usage else {})

    def _head(self, *, chunk: bool, fingerprint: str | None) -> dict[str, Any]:
        chat = "chat.completion.chunk" if chunk else "chat.completion"
        reference = b64u_encode(self.acceptance.job_ref)
        return {
            "id": f"{'chatcmpl' if self.kind == 'chat' else 'cmpl'}-{reference}",
            "object": chat if self.kind == "chat" else "text_completion",
            "created": self.acceptance.issued_at // 1000,
            "model": self.asked.new.model,
            "system_fingerprint": fingerprint,
        }


def usage_of(core: ReceiptCore) -> dict[str, int]:
    """Tokens as the signed receipt counts them."""
    return {
        "prompt_tokens": core.n_prompt,
        "completion_tokens": core.n_out,
        "total_tokens": core.n_prompt + core.n_out,
    }


def no_retry(error: AOSError) -> dict[str, str]:
    """Headers of an error that came after the job was accepted: trying again would be another job, at somebody's cost."""
    return {
        "x-should-retry": "true" if isinstance(error, Unavailable) and error.http_status == 429 else "false"
    }
