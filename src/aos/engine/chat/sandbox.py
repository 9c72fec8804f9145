"""Jinja2's immutable sandbox, closed further: what a value offers is a list, and every operation is paid for
(docs/spec/07-inference.md, "Chat templates").
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping

from jinja2 import Template, TemplateError, TemplateSyntaxError, pass_context
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from aos.engine.chat import marked
from aos.engine.chat.budget import KEY, MAX_CALL_DEPTH, Budget, budget_of, unusable
from aos.engine.chat.functions import (
    DICT_METHODS,
    FILTERS,
    GLOBALS,
    STRING_METHODS,
    TESTS,
    Function,
    key_of,
    text_of,
)
from aos.engine.chat.rewrite import MAX_INTEGER, Rewriter, check, template_error
from aos.errors import InvalidMessage

MAX_BRACKETS = 16
_LOOP_MEMBERS = frozenset(
    {
        "index",
        "index0",
        "revindex",
        "revindex0",
        "first",
        "last",
        "length",
        "previtem",
        "nextitem",
        "depth",
        "depth0",
    }
)
_NUMBERS: dict[str, Callable[[int | float, int | float], int | float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}
# What a template can cause in Python code; anything else is a fault of ours and stays one.
_TEMPLATE_FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)


class Environment(ImmutableSandboxedEnvironment):
    """One template's world."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    intercepted_unops = frozenset({"+", "-"})
    concat = staticmethod(marked.concat)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], finalize=_finalize, cache_size=0
        )
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)
        self.globals = dict(GLOBALS)
        self.macro_sizes: dict[str, int] = {}

    def getattr(self, obj: object, attribute: str) -> object:
        """Jinja's ``obj.attribute``."""
        if isinstance(obj, str):
            method = STRING_METHODS.get(attribute)
            return Function(method, (obj,)) if method else self.undefined(obj=obj, name=attribute)
        if isinstance(obj, dict):
            method = DICT_METHODS.get(attribute)
            if method is not None:
                return Function(method, (obj,))
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if isinstance(obj, Undefined):
            obj._fail_with_undefined_error()
        if isinstance(obj, Namespace) or (isinstance(obj, LoopContext) and attribute in _LOOP_MEMBERS):
            return getattr(obj, attribute, self.undefined(obj=obj, name=attribute))
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: object, argument: object) -> object:
        """Jinja's ``obj[argument]``, slices excepted."""
        if isinstance(obj, dict):
            key = key_of(argument)
            return obj[key] if key in obj else self.undefined(obj=obj, name=str(key))
        if isinstance(obj, str | list | tuple) and isinstance(argument, int):
            if -len(obj) <= argument < len(obj):
                return obj[argument]
            return self.undefined(obj=obj, name=str(argument))
        return self.getattr(obj, str(argument)) if isinstance(argument, str) else self.undefined(obj=obj)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Every arithmetic operator."""
        budget = budget_of(context)
        budget.spend(1)
        numbers = _NUMBERS.get(operator)
        if isinstance(left, int | float) and isinstance(right, int | float) and numbers is not None:
            return _bounded(numbers(left, right))
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return marked.concat((budget.text(left), budget.text(right)))
        if operator == "+" and isinstance(left, list) and isinstance(right, list):
            budget.spend(len(left) + len(right))
            return left + right
        if operator == "*" and isinstance(left, str) and isinstance(right, int):
            count = max(0, right)
            budget.spend(len(left) * count // 32)
            return marked.repeat(left, count)
        raise unusable(f"{operator!r} joins a {type(left).__name__} and a {type(right).__name__}")

    def call_unop(self, context: Context, operator: str, arg: object) -> object:
        """Signs."""
        budget_of(context).spend(1)
        if not isinstance(arg, int | float):
            raise unusable(f"{operator!r} stands before a {type(arg).__name__}")
        return _bounded(-arg if operator == "-" else +arg)

    def call(__self, __context: Context, __obj: object, *args: object, **kwargs: object) -> object:  # noqa: N805
        """Every call."""
        budget = budget_of(__context)
        if isinstance(__obj, Function):
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            budget.spend(1)
            return __obj(budget, *args, **kwargs)
        if isinstance(__obj, Undefined):
            return __obj(*args)
        if not isinstance(__obj, Macro):
            raise unusable(f"a {type(__obj).__name__} is called")
        budget.spend(1 + __self.macro_sizes.get(__obj.name, 0))
        if budget.depth == MAX_CALL_DEPTH:
            raise unusable("macros call each other too deeply")
        budget.depth += 1
        result: object = super().call(__context, __obj, *args, **kwargs)
        budget.depth -= 1
        return result


@pass_context
def _finalize(context: Context, value: object) -> str:
    return text_of(budget_of(context), value)


def _bounded(number: int | float) -> int | float:
    if isinstance(number, int) and abs(number) > MAX_INTEGER:
        raise unusable("a number needs more than 64 bits")
    return number


class Program:
    """A checked and compiled template."""

    def __init__(self, source: str) -> None:
        """Raises InvalidMessage ``chat.template``."""
        self._environment = Environment()
        try:
            _check_brackets(self._environment, source)
            tree = self._environment.parse(source)
            check(tree)
            rewriter = Rewriter()
            rewriter.visit(tree)
            self._environment.macro_sizes = rewriter.macro_sizes
            code = self._environment.compile(tree)
        except RecursionError:
            raise template_error("is nested too deeply") from None
        except TemplateSyntaxError as error:
            raise template_error(f"is not valid: {error.message}") from error
        except (SyntaxError, ValueError) as error:
            raise template_error(f"cannot be compiled: {error}") from error
        self._template = Template.from_code(self._environment, code, self._environment.globals)

    def run(self, variables: Mapping[str, object], budget: Budget) -> Iterator[str]:
        """What the template writes, piece by piece. Raises InvalidMessage ``chat.*``."""
        context = self._template.new_context({**variables, KEY: budget})
        pieces: Iterable[str] = self._template.root_render_func(context)
        try:
            yield from pieces
        except _TEMPLATE_FAULTS as error:
            raise InvalidMessage(
                "chat.render",
                f"the chat template fails on this conversation: {type(error).__name__}: {error}",
                field="messages",
            ) from error


def _check_brackets(environment: Environment, source: str) -> None:
    depth = 0
    for _, kind, value in environment.lex(source):
        if kind == "operator":
            depth += (value in "([{") - (value in ")]}")
            if depth > MAX_BRACKETS:
                raise template_error("is nested too deeply")
