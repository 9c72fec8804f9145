"""Conversations as prompts, by the template that the model's file carries (docs/spec/07-inference.md, "Chat
templates").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aos.core.statements import ChatMessage
from aos.engine.chat import marked
from aos.engine.chat.budget import Budget
from aos.engine.chat.rewrite import template_error
from aos.engine.chat.sandbox import Program
from aos.engine.gguf import Value
from aos.engine.tokenizer import Tokenizer
from aos.errors import InvalidMessage

__all__ = ["ChatMessage", "ChatTemplate", "Rendered", "template_of"]

MAX_TEMPLATE = 1 << 16
MAX_MESSAGES = 4096
MAX_CONVERSATION = 1 << 20
MAX_OUTPUT = 1 << 21
ROLES = ("system", "user", "assistant", "tool")
"""Chosen from a list, so as good as the template's own text: some build a special token's name from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A prompt as runs of text, each written by the template (True) or by somebody else."""

    runs: tuple[tuple[str, bool], ...]

    @property
    def text(self) -> str:
        """The whole prompt."""
        return "".join(text for text, _ in self.runs)


class ChatTemplate:
    """A model's template, checked and compiled once."""

    def __init__(self, source: bytes, tokenizer: Tokenizer) -> None:
        """Raises InvalidMessage ``chat.template``: longer than 65,536 bytes, not UTF-8, not valid, or using
        what cannot be bounded.
        """
        if len(source) > MAX_TEMPLATE:
            raise template_error(f"has more than {MAX_TEMPLATE} bytes")
        try:
            text = source.decode("utf-8")
        except UnicodeDecodeError:
            raise template_error("is not UTF-8") from None
        self._tokenizer = tokenizer
        self._program = Program(text)
        vocabulary = tokenizer.vocabulary
        self._ends = {
            name: marked.own("" if token is None else vocabulary.pieces[token].decode("utf-8"))
            for name, token in (("bos_token", vocabulary.bos), ("eos_token", vocabulary.eos))
        }

    def render(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True) -> Rendered:
        """The prompt of a conversation.

        Raises InvalidMessage: ``chat.messages`` (too many, too long, not Unicode), ``chat.refused`` (the
        template's own refusal), ``chat.steps``, ``chat.output``, ``chat.value``, ``chat.render``.
        """
        _check(messages)
        variables = {
            **self._ends,
            "messages": [{"role": _role(message.role), "content": message.content} for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        pieces, length = [], 0
        for piece in self._program.run(variables, Budget()):
            length += len(piece)
            if length > MAX_OUTPUT:
                raise InvalidMessage(
                    "chat.output", f"the prompt has more than {MAX_OUTPUT} characters", field="messages"
                )
            pieces.append(piece)
        return Rendered(runs=tuple(marked.runs(marked.concat(pieces))))

    def tokenize(
        self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True
    ) -> tuple[int, ...]:
        """Ids of the prompt: special tokens only where the template wrote their names. Raises as ``render``."""
        rendered = self.render(messages, add_generation_prompt=add_generation_prompt)
        return self._tokenizer.encode_runs(rendered.runs)


def template_of(metadata: Mapping[str, Value]) -> bytes:
    """The file's template. Raises InvalidMessage ``chat.no_template``."""
    source = metadata.get("tokenizer.chat_template")
    if not isinstance(source, bytes):
        raise InvalidMessage(
            "chat.no_template",
            "the model's file has no chat template",
            field="tokenizer.chat_template",
            hint="send a plain prompt, or use a model that was trained for chat",
        )
    return source


def _check(messages: Sequence[ChatMessage]) -> None:
    if len(messages) > MAX_MESSAGES:
        raise _bad_messages(f"there are more than {MAX_MESSAGES} messages")
    if sum(len(message.role) + len(message.content) for message in messages) > MAX_CONVERSATION:
        raise _bad_messages(f"the messages have more than {MAX_CONVERSATION} characters")
    for index, message in enumerate(messages):
        try:
            (message.role + message.content).encode("utf-8")
        except UnicodeEncodeError:
            raise _bad_messages(f"message {index} is not valid Unicode") from None


def _role(role: str) -> str:
    return marked.own(role) if role in ROLES else role


def _bad_messages(what: str) -> InvalidMessage:
    return InvalidMessage("chat.messages", what, field="messages")
