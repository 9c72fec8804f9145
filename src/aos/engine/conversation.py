"""The one place where an engine meets a model's chat template: compiled at the first conversation, not at the load.

A model whose template cannot be used still answers raw prompts.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aos.core.statements import ChatMessage
from aos.engine.gguf import Value
from aos.engine.tokenizer import Tokenizer
from aos.errors import InvalidMessage

if TYPE_CHECKING:
    from aos.engine.chat import ChatTemplate


class Conversations:
    """A model's conversations as token ids. ``tokenizer`` is None where this product does not know the file's."""

    def __init__(self, tokenizer: Tokenizer | None, metadata: Mapping[str, Value]) -> None:
        self._tokenizer = tokenizer
        self._source = metadata.get("tokenizer.chat_template")
        self._template: ChatTemplate | None = None

    def tokenize(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Ids of the prompt that the template makes, ready for the answer.

        Raises InvalidMessage ``chat.no_template``, ``chat.template``, ``chat.tokenizer``, and as
        ``ChatTemplate.tokenize`` does.
        """
        if self._template is None:
            from aos.engine.chat import ChatTemplate, template_of

            source = template_of({} if self._source is None else {"tokenizer.chat_template": self._source})
            if self._tokenizer is None:
                raise InvalidMessage(
                    "chat.tokenizer",
                    "the model's way to split text is not known here, so its template cannot be kept apart from "
                    "what people write",
                    field="messages",
                    hint="send a plain prompt",
                )
            self._template = ChatTemplate(source, self._tokenizer)
        return self._template.tokenize(messages)
