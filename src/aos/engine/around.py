"""What can be wrong around the model and needs its tokenizer: the prompt's tokens, a conversation's by the model's template, the
end of a run, its text (docs/spec/11-trace.md, "Around the model").

A referee holds tokenizer and template as the bytes whose hashes the manifest names, no weights.
"""

from typing import TypeVar

from aos.core.codec import decode
from aos.core.dispute.case import Case
from aos.core.dispute.moves import Kind
from aos.core.encoding import parse_canonical
from aos.core.hashes import MAX_REQUEST_BYTES, u32
from aos.core.manifest import GraphSizes, Manifest
from aos.core.statements import Params, Prompt, Request
from aos.engine.conversation import Conversations
from aos.engine.manifest import template_digest
from aos.engine.text import OutputText
from aos.engine.tokenizer import Tokenizer, decode_vocabulary
from aos.errors import InvalidMessage, Unavailable, VerificationError
from aos.ports import FinishReason

T = TypeVar("T")


def check_with_tokenizer(
    case: Case, kind: Kind, manifest: Manifest, graph: GraphSizes, params: Params
) -> None:
    """Judge a ``prompt``, ``stop`` or ``text`` game. The case's data are checked but for ``tokenizer``; no proof is needed
    beside them.

    Raises VerificationError ``around.prompt``, ``around.stop``, ``around.text``: the claimant is wrong. Unavailable
    ``dispute.undisclosed`` where something is not disclosed, or tokenizer or template are not the model's.
    """
    tables = _disclosed(case.tokenizer, "the tokenizer's tables")
    try:
        tokenizer, template = read_tables(tables, manifest)
    except InvalidMessage as error:
        # Whoever made the file is at fault, not the claimant.
        raise Unavailable("dispute.undisclosed", error.message, field="tokenizer") from error
    prompt_tokens = _disclosed(case.prompt_tokens, "the prompt's tokens")
    if kind == "prompt":
        request = _disclosed(case.request or None, "the request")
        asked = decode(
            Request, parse_canonical(request.encode(), max_bytes=MAX_REQUEST_BYTES), where="request"
        )
        check_prompt(tokenizer, template, asked.job.prompt, prompt_tokens)
        return
    tokens = _disclosed(case.tokens, "the answer's tokens")
    limit = min(params.max_tokens, graph.n_ctx - len(prompt_tokens))
    if kind == "text":
        check_text(tokenizer, tokens, params.stop, _disclosed(case.text, "the answer's text"))
    else:
        check_stop(tokenizer, tokens, params.stop, limit, case.core.finish_reason)


def write_tables(tokenizer: Tokenizer, template: bytes) -> bytes:
    """What a referee needs between a text and its tokens: the tokenizer's tables; of a model with a chat template (not empty) that
    and its length behind them."""
    behind = template + u32(len(template)) if template else b""
    return tokenizer.vocabulary.encoded() + behind


def read_tables(data: bytes, manifest: Manifest) -> tuple[Tokenizer, bytes]:
    """Tokenizer and chat template (empty: the model has none), of ``write_tables``' bytes.

    Raises InvalidMessage ``tokenizer.encoding`` where they are none, or not those that the manifest names.
    """
    template = b""
    if manifest.chat_template:
        end = len(data) - 4
        begin = end - int.from_bytes(data[max(0, end) :], "big")
        if not 0 <= begin < end:
            raise _other_tables("there is no chat template behind the tables")
        data, template = data[:begin], data[begin:end]
    if template_digest(template or None) != manifest.chat_template:
        raise _other_tables("the chat template is not the one that the manifest names")
    vocabulary = decode_vocabulary(data)
    if vocabulary.digest() != manifest.tokenizer:
        raise _other_tables("the tables are not those that the manifest names")
    return Tokenizer(vocabulary), template


def _other_tables(what: str) -> InvalidMessage:
    return InvalidMessage("tokenizer.encoding", what, field="tokenizer")


def check_prompt(tokenizer: Tokenizer, template: bytes, prompt: Prompt, tokens: tuple[int, ...]) -> None:
    """The tokens are those of the prompt: of a text as it is, of a conversation through the template. Raises VerificationError
    ``around.prompt``."""
    try:
        if isinstance(prompt, str):
            right = tokenizer.encode(prompt)
        else:
            named = {"tokenizer.chat_template": template} if template else {}
            right = Conversations(tokenizer, named).tokenize(prompt)
    except InvalidMessage as error:
        raise VerificationError("around.prompt", f"no run has such a prompt: {error.message}") from error
    if right != tuple(tokens):
        raise VerificationError("around.prompt", "the prompt has other tokens", field="prompt_tokens")


def check_stop(
    tokenizer: Tokenizer, tokens: tuple[int, ...], stop: tuple[str, ...], limit: int, finish: FinishReason
) -> None:
    """The run ends where and as rule 11 and "Text and stopping" say. Raises VerificationError ``around.stop``."""
    ends = tokenizer.vocabulary.ends
    text = OutputText(stop)
    reason: FinishReason | None = None
    for index, token in enumerate(tokens):
        if reason is not None:
            raise VerificationError("around.stop", f"the run ends after {index} tokens", field="tokens")
        if token in ends:
            reason = "stop"
            continue
        text.push(_piece(tokenizer, token))
        if text.stopped:
            reason = "stop"
        elif index + 1 == limit:
            reason = "length"
    # A trap, or who cancels, may end a run anywhere, but not one that has ended.
    expected = (reason,) if reason is not None else ("numeric_trap", "cancelled")
    if finish not in expected:
        what = (
            "the run does not end there" if reason is None else f"the run ends by {reason}, not by {finish}"
        )
        raise VerificationError("around.stop", what, field="finish_reason")


def check_text(tokenizer: Tokenizer, tokens: tuple[int, ...], stop: tuple[str, ...], stated: str) -> None:
    """The tokens spell the text. Raises VerificationError ``around.text``."""
    text = OutputText(stop)
    for token in tokens:
        if token in tokenizer.vocabulary.ends or text.stopped:
            break
        text.push(_piece(tokenizer, token))
    text.finish()
    if text.text != stated:
        raise VerificationError("around.text", "the tokens spell another text", field="text")


def _piece(tokenizer: Tokenizer, token: int) -> bytes:
    if not 0 <= token < len(tokenizer.vocabulary.pieces):
        raise VerificationError("around.stop", "a token is not in the vocabulary", field="tokens")
    return tokenizer.piece(token)


def _disclosed(value: T | None, what: str) -> T:
    if value is None:
        raise Unavailable(
            "dispute.undisclosed",
            f"{what} cannot be judged from this file",
            hint="the parties can disclose it in the transcript's case",
        )
    return value
