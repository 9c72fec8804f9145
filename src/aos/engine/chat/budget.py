"""How much a template may do, counted and not timed, so that every party stops it at the same place."""

from jinja2.runtime import Context, Undefined

from aos.errors import InvalidMessage

MAX_STEPS = 2_000_000
CHARACTERS_PER_STEP = 32
MAX_CALL_DEPTH = 16
MAX_VALUE_DEPTH = 32
KEY = "@budget"
"""Where a rendering's budget lies in its context; no name in a template can hold an ``@``."""


class Budget:
    """Steps left, and macro calls open."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.steps = steps
        self.depth = 0

    def spend(self, steps: int) -> None:
        """Raises InvalidMessage ``chat.steps``."""
        self.steps -= steps
        if self.steps < 0:
            raise InvalidMessage(
                "chat.steps",
                f"the chat template does more than {MAX_STEPS} steps",
                field="tokenizer.chat_template",
                hint="shorten the conversation, or use a model with a simpler template",
            )

    def text(self, text: str) -> str:
        """Pay for looking at, or making, a text."""
        self.spend(1 + len(text) // CHARACTERS_PER_STEP)
        return text

    def value(self, value: object, depth: int = 0) -> None:
        """Pay for a value as deep as it goes. Raises InvalidMessage ``chat.value`` for what has no text that
        is the same everywhere (functions, iterators), and for nesting beyond any message's.
        """
        self.spend(1)
        if depth > MAX_VALUE_DEPTH:
            raise unusable("a value is nested too deeply")
        if isinstance(value, str):
            self.text(value)
        elif isinstance(value, dict):
            for key, item in value.items():
                self.value(key, depth + 1)
                self.value(item, depth + 1)
        elif isinstance(value, list | tuple):
            for item in value:
                self.value(item, depth + 1)
        elif not isinstance(value, int | float | type(None) | Undefined):
            raise unusable(f"a {type(value).__name__} is used as a value")


def budget_of(context: Context) -> Budget:
    """The budget of the rendering that ``context`` belongs to."""
    budget = context.parent[KEY]
    if not isinstance(budget, Budget):
        raise TypeError("a rendering context has no budget")
    return budget


def unusable(message: str) -> InvalidMessage:
    """``chat.value``."""
    return InvalidMessage("chat.value", f"in the chat template {message}", field="tokenizer.chat_template")
